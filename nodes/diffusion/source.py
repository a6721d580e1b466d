"""Evaluating a source picture's row, for what is read inside the network while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from ..attention.calls import ModelOptions, mark_source_pass
from .conditioning import Conditioning, with_own_controls
from .evaluation import Conds, Inside, evaluate, run_inside
from .patched_model import without_step_caches
from .trajectory import Trajectory

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher

Area = tuple[int, ...] | None  # height, width, y, x in latent pixels, as core's conditions have it


def read_source(
    model: BaseModel,
    conds: Conds,
    x: torch.Tensor,
    sigma: torch.Tensor,
    model_options: ModelOptions,
    area: Area = None,
    calc_cond_batch: Callable = comfy.samplers.calc_cond_batch,
    socket: str = "source",
) -> None:
    """Run the network on x as far as it is read. Of the conditions one, without an area, must be active at sigma.

    model_options: of a source pass, with what reads and where it leaves. area: the only part of x that the network is to see.
    socket: where the prompt comes from, for errors.
    """
    what_to_do = f"Connect one plain prompt to `{socket}`."
    if any("area" in cond for cond in conds):
        raise ValueError(f"{socket}: expected one prompt for the whole picture, got one with an area. {what_to_do}")
    if area is not None:
        conds = [{**cond, "area": area} for cond in conds]
    active = sum(comfy.samplers.get_area_and_mult(cond, x, sigma) is not None for cond in conds)
    if active != 1:
        raise ValueError(
            f"{socket}: expected one prompt for the whole picture at every step, got {active} active ones at sigma "
            f"{float(sigma[0]):.4f}. {what_to_do}"
        )
    if evaluate(model, conds, x, sigma, model_options, calc_cond_batch=calc_cond_batch) is not None:
        raise ValueError(
            "model: expected one whose network runs at every step, so that the source can be read inside "
            "it, got one with a patch that skipped it, as EasyCache and LazyCache do. Remove that node."
        )


def visit(
    model: ModelPatcher,
    trajectory: Trajectory,
    source: Conditioning,
    steps: range,
    read: Callable[[int, ModelOptions], None],
    seen: Callable[[int], None] = lambda step: None,
    socket: str = "source",
) -> None:
    """At each of `steps`, let read(step, options) add what reads, run the trajectory's latent under `source`, call seen(step)."""
    trajectory.model.require_match(model)
    guider = comfy.samplers.CFGGuider(without_step_caches(model))
    guider.inner_set_conds({"positive": with_own_controls(source)})
    guider.model_options = mark_source_pass(guider.model_options)

    def whole_batch(executor, x: torch.Tensor, *args, **kwargs):
        if len(x) != trajectory.batch:
            raise ValueError(
                f"model: expected one whose network sees all {trajectory.batch} pictures of the trajectory at once, got one that another pack "
                f"shows {len(x)} at a time. Connect the model from before that node."
            )
        return executor(x, *args, **kwargs)

    def walk(inside: Inside) -> None:
        for visited, step in enumerate(steps):
            x = trajectory.latents[step].to(inside.noise)
            sigma = inside.sigmas[step].expand(len(x))
            options = mark_source_pass(inside.model_options)
            # The rows of a picture batch do not see each other; core's windows would leave the last of them as all that was read.
            options.pop("context_handler", None)
            add_wrapper_with_key(
                WrappersMP.DIFFUSION_MODEL, "palimpsest.visit", whole_batch, options, is_model_options=True
            )
            read(step, options)
            read_source(inside.model, inside.conds["positive"], x, sigma, options, socket=socket)
            seen(step)
            inside.show(visited, inside.latent, x)

    latent = model.model.process_latent_out(trajectory.latents[-1])
    run_inside(guider, latent, trajectory.sigmas, len(steps), walk)
