"""The columns in which several models share a picture, and the one that samples an unCLIP decoder."""

from __future__ import annotations

import torch
from lab.evidence.compatibility.checks import apart, every_call_is_its_own, near
from lab.evidence.compatibility.graph import NEGATIVE, SOURCE, TARGET, Graph, cfg_guider, run, sample, sample_guided
from palimpsest.nodes.saliency_fusion.nodes import SaliencyFusionGuider, SubjectFusion

EXPERT_CFG = 6.0
SCENE_END = 0.3


def _fused(graph: Graph, mask: float | None) -> torch.Tensor:
    options = {"mask": torch.full((1, 16, 16), mask), "mask_use": "decide"} if mask is not None else {}
    guider = run(
        SaliencyFusionGuider, model=graph.model, positive=graph.prompt(SOURCE), negative=graph.prompt(NEGATIVE),
        cfg=graph.cfg, model_expert=graph.expert, positive_expert=graph.prompt(TARGET),
        negative_expert=graph.prompt(NEGATIVE), cfg_expert=EXPERT_CFG, **options,
    )["guider"]  # fmt: skip
    return sample_guided(graph, guider).latent


def saliency_fusion(graph: Graph) -> torch.Tensor:
    """A mask of ones gives the result of the expert alone, a mask of zeros that of the general model alone. Saliency gives neither of them."""
    negative = graph.prompt(NEGATIVE)
    expert = sample(graph, graph.expert, graph.prompt(TARGET), negative, EXPERT_CFG, guide=cfg_guider).latent
    general = sample(graph, graph.model, graph.prompt(SOURCE), negative, guide=cfg_guider).latent
    near("expert everywhere", _fused(graph, 1.0), expert, graph.tolerance)
    near("expert nowhere", _fused(graph, 0.0), general, graph.tolerance)
    made = _fused(graph, None)
    apart("fusion beside the general model", made, general)
    apart("fusion beside the expert", made, expert)
    return made


def subject_fusion(graph: Graph) -> torch.Tensor:
    """With the scene stage only, the result is that of the scene model alone. With the subject stage only, it is that of the subject model alone."""
    plain, subject, negative = graph.prompt(SOURCE), graph.prompt(TARGET), graph.prompt(NEGATIVE)

    def fused(scene_end: float, fusion_end: float) -> torch.Tensor:
        guider = run(
            SubjectFusion, model_scene=graph.model, model_subject=graph.expert, positive=plain, positive_subject=subject,
            negative=negative, cfg=graph.cfg, scene_end=scene_end, fusion_end=fusion_end,
        )["guider"]  # fmt: skip
        return sample_guided(graph, guider).latent

    scene = sample(graph, graph.model, plain, negative, guide=cfg_guider).latent
    alone = sample(graph, graph.expert, subject, plain, guide=cfg_guider).latent
    near("scene alone", fused(1.0, 1.0), scene, graph.tolerance)
    near("subject alone", fused(0.0, 0.0), alone, graph.tolerance)
    made = fused(SCENE_END, 0.6)
    border = float(graph.model.get_model_object("model_sampling").percent_to_sigma(SCENE_END))
    if float(graph.sigmas[:-1].min()) < border:  # else every step is the scene's
        apart("fusion beside the scene", made, scene)
    return made


def decoder(graph: Graph) -> torch.Tensor:
    """Each prediction in a sampling equals that of a separate run which evaluates nothing else."""
    positive, negative = graph.prompt(SOURCE), graph.prompt(NEGATIVE)
    made = sample(graph, graph.model, positive, negative)
    every_call_is_its_own(graph, graph.model, positive, negative, made)
    return made.latent
