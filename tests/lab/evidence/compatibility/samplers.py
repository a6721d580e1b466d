"""Rows of core's samplers, schedules and guiders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import comfy.samplers
import torch
from lab.evidence.compatibility.graph import Graph, cfg_guider, core, encoded, schedule
from lab.evidence.compatibility.rows import Row

STEPS = 4
CUSTOM = "nodes_custom_sampler"
RETRACING = ("euler", "ddim")


def sampler(name: str) -> Row:
    def change(graph: Graph) -> Graph:
        return replace(graph, sampler=core(f"{CUSTOM}.KSamplerSelect", name), retraces=name in RETRACING)

    return Row("samplers", name, change)


def sampler_node(name: str, node: str, *options, takes_model: bool = False) -> Row:
    def change(graph: Graph) -> Graph:
        model = (graph.model,) if takes_model else ()
        return replace(graph, sampler=core(node, *model, *options), retraces=False)

    return Row("samplers", name, change)


def levels(name: str, make: Callable[[Graph], torch.Tensor]) -> Row:
    return Row("schedules", name, lambda graph: replace(graph, sigmas=make(graph)))


def scheduler(name: str) -> Row:
    return levels(name, lambda graph: schedule(graph.model, STEPS, name))


def made(node: str, *options) -> Callable[[Graph], torch.Tensor]:
    return lambda graph: core(node, *options)


def guider(name: str, guide: Callable, cfg: float = 4.0) -> Row:
    return Row("guiders", name, lambda graph: replace(graph, guide=guide, cfg=cfg))


def basic(model, positive, negative, cfg):
    return core(f"{CUSTOM}.BasicGuider", model, positive)


def dual_cfg(style: str) -> Callable:
    def guide(model, positive, negative, cfg):
        return core(f"{CUSTOM}.DualCFGGuider", model, positive, positive, negative, cfg, cfg, style)

    return guide


def dual_model(model, positive, negative, cfg):
    return core(f"{CUSTOM}.DualModelGuider", model, positive, cfg, model_negative=model.clone(), negative=negative)


def perp_neg(model, positive, negative, cfg):
    return core("nodes_perpneg.PerpNegGuider", model, positive, negative, encoded(""), cfg, 1.0)


ROWS = [
    *map(sampler, comfy.samplers.SAMPLER_NAMES),
    sampler_node("SamplerEulerAncestral, eta 0", f"{CUSTOM}.SamplerEulerAncestral", 0.0, 1.0),
    sampler_node("SamplerLMS, order 2", f"{CUSTOM}.SamplerLMS", 2),
    sampler_node("SamplerDPMPP_2M_SDE, eta 0", f"{CUSTOM}.SamplerDPMPP_2M_SDE", "midpoint", 0.0, 1.0, "cpu"),
    sampler_node("SamplerER_SDE, ODE", f"{CUSTOM}.SamplerER_SDE", "ODE", 3, 1.0, 1.0),
    sampler_node(
        "SamplerSASolver, eta 0", f"{CUSTOM}.SamplerSASolver", 0.0, 0.2, 0.8, 1.0, 3, 4, False, False, takes_model=True
    ),
    sampler_node("SamplerLCMUpscale", "nodes_advanced_samplers.SamplerLCMUpscale", 2.0, 1, "bicubic"),
    sampler_node("SamplerEulerCFGpp", "nodes_advanced_samplers.SamplerEulerCFGpp", "regular"),
    *map(scheduler, comfy.samplers.SCHEDULER_NAMES),
    levels("KarrasScheduler", made(f"{CUSTOM}.KarrasScheduler", STEPS, 14.6, 0.03, 7.0)),
    levels("ExponentialScheduler", made(f"{CUSTOM}.ExponentialScheduler", STEPS, 14.6, 0.03)),
    levels("PolyexponentialScheduler", made(f"{CUSTOM}.PolyexponentialScheduler", STEPS, 14.6, 0.03, 1.0)),
    levels("LaplaceScheduler", made(f"{CUSTOM}.LaplaceScheduler", STEPS, 14.6, 0.03, 0.0, 0.5)),
    levels("VPScheduler", made(f"{CUSTOM}.VPScheduler", STEPS, 19.9, 0.1, 0.001)),
    levels(
        "BetaSamplingScheduler", lambda graph: core(f"{CUSTOM}.BetaSamplingScheduler", graph.model, STEPS, 0.6, 0.6)
    ),
    levels("SDTurboScheduler, 1 step", lambda graph: core(f"{CUSTOM}.SDTurboScheduler", graph.model, 1, 1.0)),
    levels("SDTurboScheduler, 4 steps", lambda graph: core(f"{CUSTOM}.SDTurboScheduler", graph.model, 4, 1.0)),
    levels("AlignYourStepsScheduler", made("nodes_align_your_steps.AlignYourStepsScheduler", "SD1", STEPS, 1.0)),
    levels("GITSScheduler", made("nodes_gits.GITSScheduler", 1.2, STEPS, 1.0)),
    levels("denoise 0.5", lambda graph: core(f"{CUSTOM}.BasicScheduler", graph.model, "normal", STEPS, 0.5)),
    levels("SplitSigmas, low part", lambda graph: core(f"{CUSTOM}.SplitSigmas", schedule(graph.model, 6), 2)[1]),
    levels("SplitSigmas, high part", lambda graph: core(f"{CUSTOM}.SplitSigmas", schedule(graph.model, 6), 3)[0]),
    levels("SetFirstSigma", lambda graph: core(f"{CUSTOM}.SetFirstSigma", graph.sigmas, 20.0)),
    levels(
        "ExtendIntermediateSigmas",
        lambda graph: core(f"{CUSTOM}.ExtendIntermediateSigmas", graph.sigmas, 2, -1.0, 12.0, "linear"),
    ),
    levels("FlipSigmas", lambda graph: core(f"{CUSTOM}.FlipSigmas", graph.sigmas)),
    guider("CFGGuider at 1", cfg_guider, 1.0),
    guider("BasicGuider", basic),
    guider("DualCFGGuider, regular", dual_cfg("regular")),
    guider("DualCFGGuider, nested", dual_cfg("nested")),
    guider("DualModelGuider", dual_model),
    guider("PerpNegGuider", perp_neg),
]
