"""Rows of core's nodes that patch a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from lab.evidence.compatibility.checks import relative
from lab.evidence.compatibility.graph import NEGATIVE, SOURCE, Graph, core, encoded, sample, schedule
from lab.evidence.compatibility.rows import Row
from support.fixtures import tiny_models
from support.fixtures.two_gpus import two_gpus

GROUP = "model patches"
Patch = Callable[[ModelPatcher], ModelPatcher]


def row(name: str, patch: Patch, group: str = GROUP, **options) -> Row:
    return Row(group, name, lambda graph: replace(graph, **graph.patched(patch)), **options)


def drawing(name: str, patch: Patch) -> Row:
    """A patch that draws at random in each call: what core's own sampling differs by from seed to seed is no fault."""

    def change(graph: Graph) -> Graph:
        graph = replace(graph, **graph.patched(patch))
        prompts = graph.prompt(SOURCE), graph.prompt(NEGATIVE)
        first, second = (sample(replace(graph, seed=seed), graph.model, *prompts).latent for seed in (0, 1))
        return replace(graph, tolerance=2.0 * relative(second, first))

    return Row(GROUP, name, change)


def caching(name: str, patch: Patch) -> Row:
    """A patch that skips evaluations: what core's own sampling differs by without it is no fault."""

    def change(graph: Graph) -> Graph:
        prompts = graph.prompt(SOURCE), graph.prompt(NEGATIVE)
        plain = sample(graph, graph.model, *prompts).latent
        graph = replace(graph, whole=graph.model, **graph.patched(patch))
        return replace(graph, tolerance=2.0 * relative(sample(graph, graph.model, *prompts).latent, plain))

    return Row(GROUP, name, change)


def node(name: str, **inputs) -> Patch:
    return lambda model: core(name, model, **inputs)


def sampling(name: str, patch: Patch) -> Row:
    """A patch of the levels themselves: the schedule is the patched model's own."""

    def change(graph: Graph) -> Graph:
        models = graph.patched(patch)
        return replace(graph, sigmas=schedule(models["model"]), **models)

    return Row("noise levels and predictions", name, change)


def low_rank(rank: int = 2, strength: float = 0.3, seed: int = 6) -> dict[str, torch.Tensor]:
    """A LoRA file for two_level(): every to_q and to_v."""
    generator = torch.Generator().manual_seed(seed)
    file = {}
    for name, weight in tiny_models.two_level().model.state_dict().items():
        if name.endswith((".to_q.weight", ".to_v.weight")):
            name = name.removesuffix(".weight")
            file[f"{name}.lora_up.weight"] = strength * torch.randn(len(weight), rank, generator=generator)
            file[f"{name}.lora_down.weight"] = torch.randn(rank, weight.shape[1], generator=generator) / rank
    return file


def bypassed(model: ModelPatcher) -> ModelPatcher:
    return comfy.sd.load_bypass_lora_for_models(model, None, low_rank(), 1.0, 0.0)[0]


def lora(seed: int = 5, strength: float = 0.05) -> Patch:
    """What LoraLoader makes of a file: weights of a residual block and of a to_q, patched."""

    def patch(model: ModelPatcher) -> ModelPatcher:
        patched = model.clone()
        weights = model.model.state_dict()
        generator = torch.Generator().manual_seed(seed)
        names = [name for name in weights if name.endswith(("0.out_layers.3.weight", "attn1.to_q.weight"))]
        added = {name: ("diff", (strength * torch.randn(weights[name].shape, generator=generator),)) for name in names}
        assert len(patched.add_patches(added)) == len(names) > 0
        return patched

    return patch


def variant(graph: Graph) -> Graph:
    """The expert is the general model with a LoRA, which shares its weights."""
    return replace(graph, expert=lora()(graph.model))


def merged(model: ModelPatcher) -> ModelPatcher:
    return core("nodes_model_merging.ModelMergeSimple", model, lora(9, 0.1)(model), 0.5)


CACHE = {"reuse_threshold": 0.3, "start_percent": 0.0, "end_percent": 1.0, "verbose": False}
SHRINK = {
    "block_number": 1, "downscale_factor": 2.0, "start_percent": 0.0, "downscale_after_skip": True,
    "downscale_method": "bicubic", "upscale_method": "bicubic",
}  # fmt: skip
TILE = {"max_depth": 0, "scale_depth": False}
WINDOWS = {
    "context_length": 2, "context_overlap": 1, "context_schedule": "standard_static", "context_stride": 1,
    "closed_loop": False, "fuse_method": "pyramid", "dim": 0,
}  # fmt: skip


def perp_neg(model: ModelPatcher) -> ModelPatcher:
    return core("nodes_perpneg.PerpNeg", model, encoded(""), 1.0)


def sharpened(model: ModelPatcher) -> ModelPatcher:
    import comfy_extras.nodes_post_processing  # noqa: F401, before nodes_latent, which imports it in a circle

    operation = core("nodes_latent.LatentOperationSharpen", 3, 1.0, 0.1)
    return core("nodes_latent.LatentApplyOperationCFG", model, operation)


def three_frames(graph: Graph) -> Graph:
    """Three latents, of which the model sees two at a time."""
    picture = {**graph.picture, "samples": graph.picture["samples"].repeat(3, 1, 1, 1)}
    models = graph.patched(
        lambda model: core("nodes_context_windows.ContextWindowsManualNode", model, freenoise=False, **WINDOWS)
    )
    noise = torch.cat([graph.noise, graph.noise.flip(2), graph.noise.flip(3)])
    return replace(graph, picture=picture, noise=noise, whole=graph.model, **models)


ROWS = [
    row("no other node", lambda model: model.clone(), group="no other node"),
    row("LoRA", lora()),
    row(
        "LoRA of every to_q and to_v", lambda model: comfy.sd.load_lora_for_models(model, None, low_rank(), 1.0, 0.0)[0]
    ),
    row("LoRA, bypass", bypassed),
    Row(GROUP, "LoRA on the expert only (one checkpoint)", variant, only=("Saliency Fusion", "Subject Fusion")),
    row("ModelMergeSimple", merged),
    row("FreeU", node("nodes_freelunch.FreeU", b1=1.1, b2=1.2, s1=0.9, s2=0.2)),
    row("FreeU_V2", node("nodes_freelunch.FreeU_V2", b1=1.3, b2=1.4, s1=0.9, s2=0.2)),
    row("PerturbedAttentionGuidance", node("nodes_pag.PerturbedAttentionGuidance", scale=3.0)),
    row("SelfAttentionGuidance", node("nodes_sag.SelfAttentionGuidance", scale=0.5, blur_sigma=2.0)),
    row("HyperTile", node("nodes_hypertile.HyperTile", tile_size=32, swap_size=1, **TILE)),
    drawing("HyperTile, swap_size 3", node("nodes_hypertile.HyperTile", tile_size=32, swap_size=3, **TILE)),
    drawing("TomePatchModel", node("nodes_tomesd.TomePatchModel", ratio=0.5)),
    row(
        "PatchModelAddDownscale, all steps",
        node("nodes_model_downscale.PatchModelAddDownscale", end_percent=1.0, **SHRINK),
    ),
    row(
        "PatchModelAddDownscale, first steps",
        node("nodes_model_downscale.PatchModelAddDownscale", end_percent=0.35, **SHRINK),
    ),
    row("RescaleCFG", node("nodes_model_advanced.RescaleCFG", multiplier=0.7)),
    row("RenormCFG", node("nodes_lumina2.RenormCFG", cfg_trunc=100.0, renorm_cfg=1.0)),
    row("CFGNorm", node("nodes_cfg.CFGNorm", strength=1.0)),
    row("CFGZeroStar", node("nodes_cfg.CFGZeroStar")),
    row("CFGOverride", node("nodes_custom_sampler.CFGOverride", cfg=2.0, start_percent=0.3, end_percent=1.0)),
    row("TCFG", node("nodes_tcfg.TCFG")),
    row("APG", node("nodes_apg.APG", eta=0.5, norm_threshold=5.0, momentum=0.0)),
    row("Mahiro", node("nodes_mahiro.Mahiro")),
    row("FreSca", node("nodes_fresca.FreSca", scale_low=1.0, scale_high=1.25, freq_cutoff=3)),
    row("PerpNeg (model)", perp_neg),
    row("NAGuidance", node("nodes_nag.NAGuidance", nag_scale=5.0, nag_alpha=0.5, nag_tau=1.5)),
    row("Epsilon Scaling", node("nodes_eps.EpsilonScaling", scaling_factor=1.05)),
    row("TemporalScoreRescaling", node("nodes_eps.TemporalScoreRescaling", tsr_k=0.95, tsr_sigma=1.0)),
    row("LatentApplyOperationCFG", sharpened),
    row("VideoLinearCFGGuidance", node("nodes_video_model.VideoLinearCFGGuidance", min_cfg=1.0)),
    row("VideoTriangleCFGGuidance", node("nodes_video_model.VideoTriangleCFGGuidance", min_cfg=1.0)),
    caching("EasyCache", node("nodes_easycache.EasyCacheNode", **CACHE)),
    caching("LazyCache", node("nodes_easycache.LazyCacheNode", **CACHE)),
    row("DifferentialDiffusion", node("nodes_differential_diffusion.DifferentialDiffusion", strength=1.0)),
    row(
        "UNetSelfAttentionMultiply",
        node("nodes_attention_multiply.UNetSelfAttentionMultiply", q=1.2, k=1.0, v=0.9, out=1.0),
    ),
    row(
        "UNetCrossAttentionMultiply",
        node("nodes_attention_multiply.UNetCrossAttentionMultiply", q=1.2, k=1.0, v=0.9, out=1.0),
    ),
    row("TorchCompileModel, backend eager", node("nodes_torch_compile.TorchCompileModel", backend="eager")),
    row("MultiGPU CFG Split, simulated", two_gpus),
    Row(GROUP, "ContextWindowsManual, one window of pictures", three_frames),
    sampling(
        "ModelSamplingDiscrete, v",
        node("nodes_model_advanced.ModelSamplingDiscrete", sampling="v_prediction", zsnr=False),
    ),
    sampling(
        "ModelSamplingDiscrete, v, zsnr",
        node("nodes_model_advanced.ModelSamplingDiscrete", sampling="v_prediction", zsnr=True),
    ),
    sampling(
        "ModelSamplingDiscrete, x0", node("nodes_model_advanced.ModelSamplingDiscrete", sampling="x0", zsnr=False)
    ),
    sampling(
        "ModelSamplingDiscrete, lcm", node("nodes_model_advanced.ModelSamplingDiscrete", sampling="lcm", zsnr=False)
    ),
    *(
        sampling(
            f"ModelSamplingContinuousEDM, {kind}",
            node("nodes_model_advanced.ModelSamplingContinuousEDM", sampling=kind, sigma_max=120.0, sigma_min=0.002),
        )
        for kind in ("v_prediction", "edm", "edm_playground_v2.5", "eps", "cosmos_rflow")
    ),
    sampling(
        "ModelSamplingContinuousV",
        node("nodes_model_advanced.ModelSamplingContinuousV", sampling="v_prediction", sigma_max=500.0, sigma_min=0.03),
    ),
]
