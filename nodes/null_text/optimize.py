"""Null-text inversion (2211.09794) along a trajectory: one negative conditioning entry for each step of its schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import latent_preview
import torch

from ..diffusion.step_intervals import MADE_FOR, require_timeless, step_interval
from ..diffusion.trajectory import Conditioning, Trajectory
from .gradients import Denoiser, Evaluations, Pullback, differentiable, with_embedding
from .solvers import Effort, Source, Step, solve_fast, solve_null_text

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
    _require_plain(model, positive, negative, trajectory, cfg, method)
    embedding = negative[0][0].float().cpu().expand(trajectory.batch, -1, -1)
    source = None
    if method == "fast":
        embedding = _as_long(embedding, positive[0][0])
        source = _as_long(positive[0][0].float().cpu(), embedding).expand_as(embedding)
    clone = model.clone() if method == "fast" else differentiable(model)
    sampler = _Optimizer(trajectory, cfg, embedding, source, effort, on_step, checkpoint)
    guider = comfy.samplers.CFGGuider(clone)
    entries = per_step(negative, [embedding] * trajectory.steps, trajectory.sigmas, cfg)
    guider.inner_set_conds({"positive": positive, "negative": entries})
    latent = model.model.process_latent_out(trajectory.latents[-1])
    callback = latent_preview.prepare_callback(clone, trajectory.steps)
    try:
        guider.sample(torch.zeros_like(latent), latent, sampler, trajectory.sigmas, callback=callback, seed=0)
    finally:
        if method == "null_text":
            comfy.model_management.load_models_gpu([model])  # takes the clone's weight wrappers off
    return per_step(negative, sampler.embeddings, trajectory.sigmas, cfg), sampler.course


def per_step(negative: Conditioning, embeddings: list[torch.Tensor], sigmas: torch.Tensor, cfg: float) -> Conditioning:
    """An entry for each step with all that the negative has, its text [B, N, D] replaced, active at that step's levels."""
    made_for = {MADE_FOR: {"sigmas": sigmas, "cfg": cfg}}
    return [
        [embedding, {**negative[0][1], **step_interval(sigmas, i, i), **made_for}]
        for i, embedding in enumerate(embeddings)
    ]


class _Optimizer(comfy.samplers.Sampler):
    """Runs inside a guider like any sampler, so that loading, conditions, previews and cancel are ComfyUI's own.

    start: [B, N, D], the embedding to begin with; source: the source prompt's, for `fast`; None for `null_text`.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        cfg: float,
        start: torch.Tensor,
        source: torch.Tensor | None,
        effort: Effort,
        on_step: Callable[[int, int, float], None],
        checkpoint: bool,
    ):
        self.trajectory = trajectory
        self.cfg = cfg
        self.start = start
        self.source = source
        self.effort = effort
        self.on_step = on_step
        self.checkpoint = checkpoint
        self.embeddings: list[torch.Tensor] = []
        self.course = Course()

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> torch.Tensor:
        trajectory, course, steps = self.trajectory, self.course, self.trajectory.steps
        positive, negative = model_wrap.conds["positive"], model_wrap.conds["negative"]
        _require_own_text(negative, self.start)
        denoiser = Denoiser(model_wrap.inner_model, extra_args["model_options"], self.checkpoint)
        course.evaluations = denoiser.evaluations
        flow = "CONST" in trajectory.model.sampling
        x, embedding = trajectory.start.to(noise), self.start.to(noise)
        source = None
        if self.source is not None:
            source = Source(self.source.to(noise), _differ_in_text_alone(positive, negative[0]))
        span = (trajectory.latents[-1].amax() - trajectory.latents[-1].amin()).item()
        for i in range(steps):
            level = sigmas[i].expand(len(x))
            sigma, sigma_next = float(sigmas[i]), float(sigmas[i + 1])
            cond = denoiser.predict(x, level, positive)
            unit = 1.0 if flow else (sigma_next**2 + 1.0) ** 0.5
            step = Step(x, trajectory.latents[i + 1].to(x), cond, sigma, sigma_next, self.cfg, unit)
            null_text = _NullText(denoiser, x, level, negative[i])
            if source is None:
                solution = solve_null_text(step, null_text, embedding, self.effort.at(i, steps))
            else:
                solution = solve_fast(step, null_text, embedding, source, self.effort)
            embedding = solution.embedding
            self.embeddings.append(embedding.cpu().clone())
            after = step.loss(solution.uncond)
            course.before.append(solution.loss_before.cpu())
            course.after.append(after.cpu())
            course.psnr.append(float(20.0 * torch.tensor(span).log10() - 10.0 * after.mean().clamp_min(1e-20).log10()))
            callback(i, step.guided(solution.uncond), x, steps)
            self.on_step(i, steps, course.psnr[-1])
            x = step.next(solution.uncond)
        course.final = x.cpu()
        return x


@dataclass(frozen=True)
class _NullText:
    """solvers.NullText, by one of the negative's entries."""

    denoiser: Denoiser
    x: torch.Tensor
    level: torch.Tensor
    cond: dict[str, Any]

    def predict(self, embedding: torch.Tensor) -> torch.Tensor:
        return self.denoiser.predict(self.x, self.level, [with_embedding(self.cond, embedding)])

    def predict_with_pullback(self, embedding: torch.Tensor) -> tuple[torch.Tensor, Pullback]:
        return self.denoiser.predict_with_pullback(self.x, self.level, self.cond, embedding)


def _differ_in_text_alone(positive: list[dict[str, Any]], negative: dict[str, Any]) -> bool:
    """Whether the model reads the same from both, as process_conds left them, but for the text."""
    if len(positive) != 1:
        return False
    apart = ("cross_attn", "pooled_output", "model_conds", "uuid", MADE_FOR)
    a = {key: value for key, value in positive[0].items() if key not in apart}
    b = {key: value for key, value in negative.items() if key not in (*apart, "timestep_start", "timestep_end")}
    for cond, read in ((positive[0], a), (negative, b)):
        read |= {("read", key): value.cond for key, value in cond["model_conds"].items() if key != "c_crossattn"}
    return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return a is b or (isinstance(a, (int, float, str, tuple)) and a == b)


def _as_long(embedding: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """[B, N, D] over and over, as core joins prompts of different lengths: attention sees no difference."""
    return embedding.repeat(1, math.lcm(embedding.shape[1], other.shape[1]) // embedding.shape[1], 1)


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
            "cfg: expected the guidance the sampler will use, above 1, got 1, at which no negative prompt is read. To get "
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


def _require_own_text(negative: list[dict[str, Any]], embedding: torch.Tensor) -> None:
    """Raise ValueError unless the model reads the prompt's embedding as it stands, one entry for each step."""
    text = negative[0]["model_conds"].get("c_crossattn")
    if text is None or text.cond.shape != embedding.shape:
        got = "none" if text is None else f"one of shape {tuple(text.cond.shape)}"
        raise ValueError(
            f"model: expected one that reads the negative's text {tuple(embedding.shape)} by cross-attention as it stands "
            f"(SD1.x, SD2.x, SDXL), got {got}. Use the method negative_prompt with this model."
        )
