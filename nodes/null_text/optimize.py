"""Null-text inversion (2211.09794) along a trajectory: one negative conditioning entry for each step of its schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from ..diffusion.conditioning import Conditioning, is_guidance_distilled, require_timeless, with_own_controls
from ..diffusion.evaluation import Inside, run_inside
from ..diffusion.patched_model import OWN_GUIDANCE, require_repeatable, require_unedited
from ..diffusion.schedule import MADE_FOR, step_interval
from ..diffusion.source_run import RETRACING
from ..diffusion.trajectory import Trajectory
from .gradients import Denoiser, Evaluations, differentiable, with_embedding
from .solvers import Effort, Step, solve_fast, solve_null_text

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

METHODS = ("fast", "null_text", "negative_prompt")
BESIDE_TEXT = ("pooled_output", "conditioning_llama3")  # what encoders give beside the text; the second for HiDream-I1
PROMPT_CONDS = ("c_crossattn", "y")  # what UNets read of a prompt's text and pooled output


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

    method: "null_text" and "fast" as in solvers.py; "negative_prompt" gives the source prompt itself (2305.16807), with which
    guidance has no effect at any cfg.
    """
    trajectory.model.require_match(model)
    _require_negative(model)
    if method == "negative_prompt":
        if trajectory.cfg is None or not math.isclose(trajectory.cfg, 1.0):
            made = "by a guider with its own guidance" if trajectory.cfg is None else f"at cfg {trajectory.cfg:g}"
            raise ValueError(
                "trajectory: expected one made at cfg 1, because with the source prompt as the negative guidance has no effect, got "
                f"one made {made}. Remove this node and sample with that guidance and the negative prompt it was made "
                "with, or use the method fast or null_text, whose report says how close they come."
            )
        return [[embedding, dict(options)] for embedding, options in positive], Course()
    require_unedited(model, RETRACING)
    _require_plain(model, positive, negative, trajectory, cfg, method)
    if method == "null_text":
        search = _Embedding(negative, trajectory.batch)
    else:
        search = _Share(model, negative, positive, trajectory.batch)
    clone = differentiable(model) if method == "null_text" else model.clone()
    guider = comfy.samplers.CFGGuider(clone)
    found: Conditioning = []
    course = Course()
    entries = per_step([search.entry()] * trajectory.steps, trajectory.sigmas, cfg)
    guider.inner_set_conds({"positive": with_own_controls(positive), "negative": with_own_controls(entries)})

    def walk(inside: Inside) -> None:
        require_repeatable(inside)
        denoiser = Denoiser(inside.model, inside.model_options, checkpoint)
        course.evaluations = denoiser.evaluations
        flow = "CONST" in trajectory.model.sampling
        steps, sigmas = trajectory.steps, inside.sigmas
        x = trajectory.start.to(inside.noise)
        span = (trajectory.latents[-1].amax() - trajectory.latents[-1].amin()).item()
        for i in range(steps):
            sigma, sigma_next = float(sigmas[i]), float(sigmas[i + 1])
            cond = denoiser.predict(x, sigmas[i].expand(len(x)), "positive", inside.conds["positive"])
            unit = 1.0 if flow else (sigma_next**2 + 1.0) ** 0.5
            step = Step(x, trajectory.latents[i + 1].to(x), cond, sigma, sigma_next, cfg, unit)
            allowed = effort.at(i / steps) if method == "null_text" else effort
            uncond, before = search.solve(step, allowed, denoiser, inside, inside.conds["negative"][i])
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


class _Embedding:
    """What `null_text` looks for: the negative's embedding [B, N, D]. All else of the negative stays."""

    def __init__(self, negative: Conditioning, batch: int):
        ((embedding, self.options),) = negative
        self.embedding = embedding.float().cpu().expand(batch, -1, -1)

    def entry(self) -> list[Any]:
        return [self.embedding.cpu().clone(), self.options]

    def solve(
        self, step: Step, effort: Effort, denoiser: Denoiser, inside: Inside, negative: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the prediction with the new embedding, and the loss before [B]. negative: the entry of this step."""
        embedding = self.embedding.to(step.x)
        _require_own_text(negative, embedding)

        def predict(embedding: torch.Tensor) -> torch.Tensor:
            return denoiser.predict(step.x, step.level, "negative", [with_embedding(negative, embedding)])

        pull = partial(denoiser.predict_with_pullback, step.x, step.level, negative)
        self.embedding, uncond, before = solve_null_text(step, embedding, effort, predict, pull)
        return uncond, before


class _Share:
    """What `fast` looks for: a share [B] of the way from all that the negative's encoders say to what the positive's say."""

    def __init__(self, model: ModelPatcher, negative: Conditioning, positive: Conditioning, batch: int):
        ((null, self.options),) = negative
        ((source, source_options),) = positive
        length = _common_length(model, null.shape[1], source.shape[1])
        ends = {"cross_attn": [text.repeat(1, length // text.shape[1], 1) for text in (null, source)]}
        for key in BESIDE_TEXT:
            pair = [options.get(key) for options in (self.options, source_options)]
            if all(end is not None for end in pair):
                ends[key] = pair
        self.ends = {key: [_rows(end, batch) for end in pair] for key, pair in ends.items()}
        self.share = torch.zeros(batch)

    def entry(self) -> list[Any]:
        prompt = self._prompt(self.share)
        return [prompt.pop("cross_attn"), {**self.options, **prompt}]

    def solve(
        self, step: Step, effort: Effort, denoiser: Denoiser, inside: Inside, negative: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the prediction at the new share, and the loss before [B]. negative: the entry of this step."""

        def predict(share: torch.Tensor) -> torch.Tensor:
            cond = _encoded(inside, {**negative, **self._prompt(share.cpu())})
            return denoiser.predict(step.x, step.level, "negative", [cond])

        alike = _differ_in_prompt_alone(inside.conds["positive"], negative)
        share, uncond, before = solve_fast(step, predict, self.share.to(step.x), effort.tolerance, alike)
        self.share = share.cpu()
        return uncond, before

    def _prompt(self, share: torch.Tensor) -> dict[str, torch.Tensor]:
        return {key: torch.lerp(*pair, share.view(-1, *[1] * (pair[0].ndim - 1))) for key, pair in self.ends.items()}


def _common_length(model: ModelPatcher, null: int, source: int) -> int:
    """Cross-attention of a UNet sees no difference when a text is repeated; core joins prompts in this way too."""
    if null != source and not isinstance(model.model.diffusion_model, UNetModel):
        raise ValueError(
            f"negative: expected as many tokens as the positive's {source} for fast, got {null}: "
            f"{type(model.model).__name__} reads the position of each token, so the shorter text cannot be "
            "extended. Use the method negative_prompt."
        )
    return math.lcm(null, source)


def _rows(tensor: torch.Tensor, batch: int) -> torch.Tensor:
    return tensor.float().cpu().expand(batch, *tensor.shape[1:])


def _encoded(inside: Inside, cond: dict[str, Any]) -> dict[str, Any]:
    """`cond` with all that the model reads of it made anew, as core makes it at the start of a run without a mask."""
    (new,) = comfy.samplers.encode_model_conds(
        inside.model.extra_conds,
        [cond],
        inside.noise,
        inside.noise.device,
        "negative",
        latent_image=inside.latent,
        denoise_mask=None,
        seed=inside.seed,
        latent_shapes=[inside.latent.shape],
    )
    return new


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


def _require_negative(model: ModelPatcher) -> None:
    if is_guidance_distilled(model):
        raise ValueError(
            f"model: expected one with classifier-free guidance, got {type(model.model).__name__}, which is "
            "guidance-distilled: it reads its guidance as a number (FluxGuidance) and uses no negative "
            "prompt that could be optimised. Remove this node: invert with guidance 1, and edit with any guidance."
        )


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
            "cfg: expected the sampler's guidance, any value but 1, got 1, at which no negative prompt is "
            "read. At cfg 1 the source prompt alone reconstructs the picture: remove this node."
        )
    own = next((key for key in OWN_GUIDANCE if model.model_options.get(key)), None)
    if own is not None:
        raise ValueError(
            f"model: expected plain classifier-free guidance, got a model with a {own} of another "
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
            "area or a ControlNet of the old node, which ComfyUI copies to only one of the negative's entries. Use Conditioning "
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
