"""Null-text inversion (2211.09794) along a trajectory: one negative conditioning entry for each step of its schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch

from ..diffusion.conditioning import Conditioning, require_timeless, with_own_controls
from ..diffusion.evaluation import Inside, run_inside
from ..diffusion.patched_model import require_unedited
from ..diffusion.schedule import MADE_FOR, step_interval
from ..diffusion.trajectory import Trajectory
from .gradients import PROMPT_CONDS, Denoiser, Evaluations, Pullback, differentiable, with_embedding
from .solvers import Effort, Step, solve_fast, solve_null_text

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

METHODS = ("fast", "null_text", "negative_prompt")
OWN_GUIDANCE = (
    "sampler_cfg_function",
    "sampler_post_cfg_function",
    "sampler_pre_cfg_function",
    "sampler_calc_cond_batch_function",
)


@dataclass
class Course:
    """What an optimisation went through: loss [B] of each step with the embedding it started from and with its own."""

    evaluations: Evaluations = field(default_factory=Evaluations)
    before: list[torch.Tensor] = field(default_factory=list)
    after: list[torch.Tensor] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)  # dB of the latent reached, against the trajectory's
    final: torch.Tensor | None = None  # [B, C, H, W], where the path ended


@torch.no_grad()
def optimize(
    model: ModelPatcher,
    positive: Conditioning,
    negative: Conditioning,
    trajectory: Trajectory,
    cfg: float,
    effort: Effort,
    method: str,
    on_step: Callable[[int, int, float], None] = lambda step, steps, psnr: None,
    checkpoint: bool = True,
) -> tuple[Conditioning, Course]:
    """The negative that retraces `trajectory` at guidance `cfg`, and how it was found.

    method: "null_text" and "fast" as in solvers; "negative_prompt" gives the source prompt itself (2305.16807): then the
    guidance vanishes whatever cfg is.
    """
    trajectory.model.require_match(model)
    if method == "negative_prompt":
        return [[embedding, dict(options)] for embedding, options in positive], Course()
    require_unedited(model)
    _require_plain(model, positive, negative, trajectory, cfg, method)
    if method == "null_text":
        search = _Text(negative, trajectory.batch, effort)
    else:
        search = _Way(negative, positive, trajectory.batch, effort.tolerance)
    clone = differentiable(model) if method == "null_text" else model.clone()
    guider = comfy.samplers.CFGGuider(clone)
    found: Conditioning = []
    course = Course()
    entries = per_step([search.entry()] * trajectory.steps, trajectory.sigmas, cfg)
    guider.inner_set_conds({"positive": with_own_controls(positive), "negative": with_own_controls(entries)})

    def walk(inside: Inside) -> None:
        denoiser = Denoiser(inside.model, inside.model_options, checkpoint)
        course.evaluations = denoiser.evaluations
        flow = "CONST" in trajectory.model.sampling
        steps, sigmas = trajectory.steps, inside.sigmas
        x = trajectory.start.to(inside.noise)
        span = (trajectory.latents[-1].amax() - trajectory.latents[-1].amin()).item()
        for i in range(steps):
            level = sigmas[i].expand(len(x))
            sigma, sigma_next = float(sigmas[i]), float(sigmas[i + 1])
            cond = denoiser.predict(x, level, "positive", inside.conds["positive"])
            unit = 1.0 if flow else (sigma_next**2 + 1.0) ** 0.5
            step = Step(x, trajectory.latents[i + 1].to(x), cond, sigma, sigma_next, cfg, unit)
            at_step = _AtStep(denoiser, x, level, inside.conds["negative"][i], i / steps)
            uncond, before = search.solve(step, at_step, inside.conds["positive"])
            found.append(search.entry())
            after = step.loss(uncond)
            course.before.append(before.cpu())
            course.after.append(after.cpu())
            course.psnr.append(float(20.0 * torch.tensor(span).log10() - 10.0 * after.mean().clamp_min(1e-20).log10()))
            inside.show(i, step.guided(uncond), x)
            on_step(i, steps, course.psnr[-1])
            x = step.next(uncond)
        course.final = x.cpu()

    latent = model.model.process_latent_out(trajectory.latents[-1])
    try:
        run_inside(guider, latent, trajectory.sigmas, trajectory.steps, walk)
    finally:
        if method == "null_text":
            comfy.model_management.load_models_gpu([model])  # takes the clone's weight wrappers off
    return per_step(found, trajectory.sigmas, cfg), course


def per_step(entries: Conditioning, sigmas: torch.Tensor, cfg: float) -> Conditioning:
    """The i-th entry active at the levels of step i only."""
    made_for = {MADE_FOR: {"sigmas": sigmas, "cfg": cfg}}
    return [
        [embedding, {**options, **step_interval(sigmas, i, i), **made_for}]
        for i, (embedding, options) in enumerate(entries)
    ]


class _Text:
    """The search of `null_text`: the negative's embedding [B, N, D]; all else of the negative stays."""

    def __init__(self, negative: Conditioning, batch: int, effort: Effort):
        self.effort = effort
        ((embedding, self.options),) = negative
        self.embedding = embedding.float().cpu().expand(batch, -1, -1)

    def entry(self) -> list[Any]:
        return [self.embedding.cpu().clone(), self.options]

    def solve(self, step: Step, at_step: _AtStep, positive: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the prediction with the new embedding, and the loss before [B]."""
        embedding = self.embedding.to(step.x)
        _require_own_text(at_step.cond, embedding)
        effort = self.effort.at(at_step.progress)
        self.embedding, uncond, before = solve_null_text(step, at_step, embedding, effort)
        return uncond, before


class _Way:
    """The search of `fast`: how far from the negative's text and pooled output to the positive's; all else stays."""

    def __init__(self, negative: Conditioning, positive: Conditioning, batch: int, tolerance: float):
        self.tolerance = tolerance
        ((null, self.options),) = negative
        ((source, source_options),) = positive
        length = math.lcm(null.shape[1], source.shape[1])  # as core joins prompts: attention sees no difference
        self.texts = [_rows(text.repeat(1, length // text.shape[1], 1), batch) for text in (null, source)]
        pooled = [options.get("pooled_output") for options in (self.options, source_options)]
        self.pooled = None if any(p is None for p in pooled) else [_rows(p, batch) for p in pooled]
        self.share = torch.zeros(batch)

    def entry(self) -> list[Any]:
        return [self._between(self.texts, self.share), {**self.options, **self._pooled_output(self.share)}]

    def solve(self, step: Step, at_step: _AtStep, positive: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
        def predict(share: torch.Tensor) -> torch.Tensor:
            prompt = {"cross_attn": self._between(self.texts, share.cpu()), **self._pooled_output(share.cpu())}
            cond = at_step.denoiser.with_prompt(at_step.cond, prompt, step.x)
            return at_step.denoiser.predict(step.x, at_step.level, "negative", [cond])

        share = self.share.to(step.x)
        alike = _differ_in_prompt_alone(positive, at_step.cond)
        share, uncond, before = solve_fast(step, predict, share, self.tolerance, alike)
        self.share = share.cpu()
        return uncond, before

    def _between(self, ends: list[torch.Tensor], share: torch.Tensor) -> torch.Tensor:
        return torch.lerp(*ends, share.view(-1, *[1] * (ends[0].ndim - 1)))

    def _pooled_output(self, share: torch.Tensor) -> dict[str, torch.Tensor]:
        return {} if self.pooled is None else {"pooled_output": self._between(self.pooled, share)}


def _rows(tensor: torch.Tensor, batch: int) -> torch.Tensor:
    return tensor.float().cpu().expand(batch, *tensor.shape[1:])


@dataclass(frozen=True)
class _AtStep:
    """solvers.NullText, by one of the negative's entries."""

    denoiser: Denoiser
    x: torch.Tensor
    level: torch.Tensor
    cond: dict[str, Any]
    progress: float  # share of the steps before this one

    def predict(self, embedding: torch.Tensor) -> torch.Tensor:
        return self.denoiser.predict(self.x, self.level, "negative", [with_embedding(self.cond, embedding)])

    def predict_with_pullback(self, embedding: torch.Tensor) -> tuple[torch.Tensor, Pullback]:
        return self.denoiser.predict_with_pullback(self.x, self.level, self.cond, embedding)


def _differ_in_prompt_alone(positive: list[dict[str, Any]], negative: dict[str, Any]) -> bool:
    """Whether the model reads the same from both, as process_conds left them, but for text and pooled output."""
    if len(positive) != 1:
        return False
    apart = ("cross_attn", "pooled_output", "model_conds", "uuid", MADE_FOR)
    a = {key: value for key, value in positive[0].items() if key not in apart}
    b = {key: value for key, value in negative.items() if key not in (*apart, "timestep_start", "timestep_end")}
    for cond, read in ((positive[0], a), (negative, b)):
        read |= {("read", key): value.cond for key, value in cond["model_conds"].items() if key not in PROMPT_CONDS}
    return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return a is b or (isinstance(a, (int, float, str, tuple)) and a == b)


def _require_plain(
    model: ModelPatcher,
    positive: Conditioning,
    negative: Conditioning,
    trajectory: Trajectory,
    cfg: float,
    method: str,
) -> None:
    if abs(cfg - 1.0) < 1e-6:
        raise ValueError(
            "cfg: expected the guidance the sampler will use, any but 1, got 1, at which no negative prompt is read. To get "
            "the picture back at cfg 1, sample with the source prompt: no optimisation is needed."
        )
    own = next((key for key in OWN_GUIDANCE if model.model_options.get(key)), None)
    if own is not None:
        raise ValueError(
            f"model: expected plain classifier-free guidance, whose target is known, got a model with a {own} of another "
            "node (such as RescaleCFG). Connect the model from before that node."
        )
    for socket, conditioning in (("positive", positive), ("negative", negative)):
        one = socket == "negative" or method == "fast"
        if not conditioning or conditioning[0][0] is None or (one and len(conditioning) > 1):
            raise ValueError(
                f"{socket}: expected one prompt, got {len(conditioning)} combined, or one without text. Connect a single "
                f"CLIP Text Encode{', or use the method null_text' if socket == 'positive' else ''}."
            )
        if comfy.sampler_helpers.cond_has_hooks(conditioning):
            raise ValueError(
                f"{socket}: expected conditioning without hooks (scheduled LoRAs or models), got some. Connect it from before "
                "the node that set them."
            )
        if len(conditioning[0][0]) not in (1, trajectory.batch):
            raise ValueError(
                f"{socket}: expected one prompt, or one for each of the trajectory's {trajectory.batch} pictures, got "
                f"{len(conditioning[0][0])}."
            )
    require_timeless(negative, "negative")
    if any("area" in options or options.get("control_apply_to_uncond") for _, options in positive):
        raise ValueError(
            "positive: expected prompts for the whole picture or with masks, and ControlNets applied to both prompts, got an "
            "area or a ControlNet of the old node, which core copies to one of the negative's entries only. Use Conditioning "
            "(Set Mask), or Apply ControlNet with both prompts."
        )


def _require_own_text(negative: dict[str, Any], embedding: torch.Tensor) -> None:
    """Raise ValueError unless the model reads the prompt's embedding as it stands."""
    text = negative["model_conds"].get("c_crossattn")
    if text is None or text.cond.shape != embedding.shape:
        got = "none" if text is None else f"one of shape {tuple(text.cond.shape)}"
        raise ValueError(
            f"model: expected one that reads the negative's text {tuple(embedding.shape)} by cross-attention as it stands "
            f"(SD1.x, SD2.x, SDXL), got {got}. Use the method fast or negative_prompt with this model."
        )
