"""The models of a fusion with their prompts, and how an expert is evaluated beside the general model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from ..diffusion.conditioning import Conditioning, with_own_controls
from .blending import Mask, Resized, keeps_out
from .saliency import Sharpness
from .second_module import KEY, beside
from .windows import Window

if TYPE_CHECKING:
    import comfy.hooks
    from comfy.model_patcher import ModelPatcher

ModelOptions = dict[str, Any]


@dataclass(frozen=True)
class Prompted:
    """A model with its prompts. socket: the input it came by, for errors."""

    model: ModelPatcher
    positive: Conditioning
    negative: Conditioning
    cfg: float
    sharpness: Sharpness
    socket: str = "model"

    def __post_init__(self) -> None:
        for prompt in ("positive", "negative"):
            if not getattr(self, prompt):
                raise ValueError(
                    f"{self.socket}: expected a {prompt} prompt for it, got empty conditioning. Connect a CLIP Text Encode."
                )

    @property
    def has_hooks(self) -> bool:
        return any(comfy.sampler_helpers.cond_has_hooks(prompt) for prompt in (self.positive, self.negative))


@dataclass(frozen=True)
class Expert(Prompted):
    """span: the sampling percents between which it takes part. takes_over: from its end on, it samples alone."""

    span: tuple[float, float] = (0.0, 1.0)
    mask: Mask | None = None
    takes_over: bool = False


@dataclass(frozen=True)
class Guided:
    """A model's guided prediction, and the two predictions that it was made of."""

    denoised: torch.Tensor
    cond: torch.Tensor
    uncond: torch.Tensor


def looking(model_options: ModelOptions, needs_uncond: bool) -> tuple[ModelOptions, list[tuple[torch.Tensor, ...]]]:
    """Options with which a prediction leaves (cond, uncond) in the list. needs_uncond: also at guidance 1."""
    seen: list[tuple[torch.Tensor, ...]] = []

    def look(args: dict[str, Any]) -> torch.Tensor:
        seen.append((args["cond_denoised"], args["uncond_denoised"]))
        return args["denoised"]

    options = {**model_options, "sampler_post_cfg_function": [look, *post_cfg_functions(model_options)]}
    if needs_uncond:
        options["disable_cfg1_optimization"] = True
    return options, seen


def post_cfg_functions(model_options: ModelOptions) -> list[Callable[[dict[str, Any]], torch.Tensor]]:
    return model_options.get("sampler_post_cfg_function", [])


class ExpertGuider(comfy.samplers.CFGGuider):
    """An expert's own sampling run, held open around the general model's: all of core's but the loading and the steps.

    Hooks, wrappers, callbacks, ControlNets and processed conditions are set up as if the expert sampled alone.
    """

    def __init__(self, expert: Expert, window: Window, others: Sequence[ModelPatcher], hooked: bool):
        super().__init__(expert.model)
        self.set_conds(*_with_state_of_their_own(expert.positive, expert.negative))
        self.set_cfg(expert.cfg)
        self.model_patcher = beside(self.model_patcher, others, hooked, expert.model, expert.socket)
        self.model_patcher.remove_additional_models("multigpu")  # a second model runs on one GPU, as core's own
        self.model_options = self.model_patcher.model_options
        self.expert = expert
        self.window = window
        self.mask: Resized = None

    def enters(self, sigmas: torch.Tensor, latent: torch.Tensor, device: torch.device, hard: bool) -> bool:
        """Whether it takes part in a run from that latent, which it gets ready for. device: where predictions are blended."""
        mask = self.expert.mask
        self.mask = None if mask is None else (mask.use, mask.resized(latent).to(device))
        if keeps_out(self.mask, hard):
            return False
        return self.is_alone_at(float(sigmas[:-1].min())) or self.window.meets(sigmas)

    def mask_for(self, x: torch.Tensor) -> Resized:
        """At the size of x, which some samplers enlarge on their way."""
        if self.mask is not None and self.mask[1].shape[-2:] != x.shape[-2:]:
            self.mask = self.mask[0], self.expert.mask.resized(x).to(x.device)
        return self.mask

    @property
    def competes(self) -> bool:
        """Whether its saliency decides about any place."""
        return self.mask is None or self.mask[0] != "decide"

    def is_alone_at(self, sigma: float) -> bool:
        return self.expert.takes_over and self.window.is_over_at(sigma)

    def by_itself(self) -> comfy.samplers.CFGGuider:
        guider = comfy.samplers.CFGGuider(self.model_patcher)
        guider.original_conds, guider.cfg = self.original_conds, self.cfg
        return guider

    def models(self) -> list[ModelPatcher]:
        """The expert's, then those that its patches and prompts bring along."""
        of_prompts, _ = comfy.sampler_helpers.get_additional_models(
            self.original_conds, self.model_patcher.model_dtype()
        )
        return [self.model_patcher, *self.model_patcher.get_nested_additional_models(), *of_prompts]

    def around(
        self, run: Callable[[], torch.Tensor], noise, latent_image, sampler, sigmas, denoise_mask, seed
    ) -> torch.Tensor:
        """What `run` returns, called where the expert's sampler would run."""
        self.run = run
        self.last: tuple[torch.Tensor, ...] = ()
        try:
            self.sample(noise, latent_image, sampler, sigmas, denoise_mask, disable_pbar=True, seed=seed)
            return self.result
        finally:
            for name in ("run", "last", "result", "run_options"):
                self.__dict__.pop(name, None)

    def outer_sample(
        self,
        noise,
        latent_image,
        sampler,
        sigmas,
        denoise_mask=None,
        callback=None,
        disable_pbar=False,
        seed=None,
        **shapes,
    ):
        patcher, device = self.model_patcher, self.model_patcher.load_device
        self.inner_model = patcher.model
        add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, self._hold, self.model_options, is_model_options=True)
        comfy.samplers.cast_to_load_options(self.model_options, device=device, dtype=patcher.model_dtype())
        noise, latent_image = (x.to(device, torch.float32) for x in (noise, latent_image))
        patcher.pre_run()
        try:
            return self.inner_sample(
                noise,
                latent_image,
                device,
                sampler,
                sigmas.to(device),
                denoise_mask,
                callback,
                disable_pbar,
                seed,
                **shapes,
            )
        finally:
            patcher.cleanup()
            comfy.sampler_helpers.cleanup_models(self.conds, self.models()[1:])
            del self.inner_model

    def _hold(self, executor, guider, sigmas, extra_args, callback, noise, *rest, **named) -> torch.Tensor:
        """In the sampler's place, inside of all wrappers around it."""
        self.run_options = extra_args["model_options"]
        self.result = self.run()
        return noise

    def guided(self, x: torch.Tensor, timestep: torch.Tensor, seed: int | None, needs_uncond: bool) -> Guided:
        device = self.model_patcher.load_device
        here = x.to(device)
        self.inner_model.current_patcher = self.model_patcher  # the general model may share the module
        options, seen = looking(self.run_options, needs_uncond)
        denoised = self.outer_predict_noise(here, timestep.to(device), options, seed)
        if seen:
            self.last = (here, *seen[-1])
        # A wrapper that answers without a call, such as LazyCache, adds the last step's change to x: so do these.
        before, cond, uncond = self.last
        answers = denoised, *((cond, uncond) if seen else (here + (cond - before), here + (uncond - before)))
        return Guided(*(answer.to(x.device) for answer in answers))


def _with_state_of_their_own(positive: Conditioning, negative: Conditioning) -> tuple[Conditioning, Conditioning]:
    """Copies whose ControlNets and hooks belong to one run. Both keep the state of the step, and another model may use them too."""
    both = with_own_controls([*positive, *negative])
    keyframes: dict[int, comfy.hooks.HookKeyframeGroup] = {}
    groups: dict[int, comfy.hooks.HookGroup] = {}

    def own(hooks: comfy.hooks.HookGroup) -> comfy.hooks.HookGroup:
        if id(hooks) not in groups:
            copied = hooks.clone()
            for hook in copied.hooks:
                hook.hook_keyframe = keyframes.setdefault(id(hook.hook_keyframe), hook.hook_keyframe.clone())
            groups[id(hooks)] = groups[id(copied)] = copied
        return groups[id(hooks)]

    for _, options in both:
        if "hooks" in options:
            options["hooks"] = own(options["hooks"])
        control = options.get("control")
        while control is not None:
            if control.extra_hooks is not None:
                control.extra_hooks = own(control.extra_hooks)
            control = control.previous_controlnet
    return both[: len(positive)], both[len(positive) :]
