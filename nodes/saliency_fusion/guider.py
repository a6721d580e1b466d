"""Two or more models in one sampling, each where its guidance is salient (MagicFusion, 2303.13126; Face-diffuser, 2311.10329).

All models are evaluated at the sampler's own latent and sigma and blended as denoised predictions, in which every prediction
type is the same; only the saliency needs eps units, for which a guidance response is divided by sigma.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import comfy.hooks
import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import torch

from ..diffusion.conditioning import Conditioning
from .blending import Decision, Mask, Resized, blend, hard_weights, soft_weights
from .common_ground import require_common_ground, require_levels
from .preview import with_mask
from .saliency import log_saliency, strength
from .shared_weights import KEY, Weights, share_weights
from .windows import Window

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


@dataclass(frozen=True)
class Prompted:
    """A model with its prompts. k: how sharply its saliency stands out. socket: the input it came by, for errors."""

    model: ModelPatcher
    positive: Conditioning
    negative: Conditioning
    cfg: float
    k: float = 1.0
    socket: str = "model"

    def __post_init__(self) -> None:
        for prompt in ("positive", "negative"):
            if not getattr(self, prompt):
                raise ValueError(
                    f"{self.socket}: expected a {prompt} prompt for it, got empty conditioning. Connect a CLIP Text Encode."
                )
        if not self.k > 0.0:
            raise ValueError(
                f"k: expected a number above 0 for `{self.socket}`, got {self.k:g}. 1 is the published value."
            )


@dataclass(frozen=True)
class Expert(Prompted):
    """span: the sampling percents between which it takes part. takes_over: from its end on, it samples alone."""

    span: tuple[float, float] = (0.0, 1.0)
    mask: Mask | None = None
    takes_over: bool = False


@dataclass(frozen=True)
class Blending:
    """general_uncond: subtract the general model's unconditional prediction in an expert's saliency, as MagicFusion's code does,
    instead of its own, as the paper has it. temperature: None for a hard mask."""

    blur: str = "box"
    general_uncond: bool = False
    temperature: float | None = None


@dataclass(frozen=True)
class _Guided:
    denoised: torch.Tensor
    cond: torch.Tensor
    uncond: torch.Tensor
    cfg: float


class FusionGuider(comfy.samplers.CFGGuider):
    """Samples like the general model's CFGGuider, which it is wherever no expert takes part."""

    def __init__(self, general: Prompted, experts: Sequence[Expert], blending: Blending):
        for expert in experts:
            require_common_ground(general.model, expert.model, (general.socket, expert.socket))
        everyone = [general, *experts]
        self.weights, *others = share_weights([m.model for m in everyone], [m.socket for m in everyone])
        super().__init__(self.weights.loaded)
        self.set_conds(general.positive, general.negative)
        self.set_cfg(general.cfg)
        for weights in others:  # conditioning with hooks can make core go over to another patcher
            if weights.loaded is self.weights.loaded:
                weights.loaded = self.model_patcher
        self.weights.loaded = self.model_patcher
        self.general = general
        windows = [Window.of(*expert.span, general.model) for expert in experts]
        self.experts = [_ExpertGuider(*each) for each in zip(experts, windows, others, strict=True)]
        self.blending = blending
        self.active: list[_ExpertGuider] = []
        self.decision: Decision | None = None
        self.turn = -1

    def sample(
        self, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False, seed=None
    ):
        if latent_image.is_nested or latent_image.ndim < 4:
            raise ValueError(
                "latent_image: expected one of pictures, [B, C, H, W], got one of several parts, such as with sound."
            )
        self.active = [guider for guider in self.experts if len(sigmas) > 1 and guider.is_needed(sigmas)]
        for guider in self.active:
            require_levels(guider.expert.model, guider.window, sigmas, guider.expert.socket)
        patchers = [patcher for guider in self.active for patcher in guider.needed_models()]
        self.model_patcher.set_additional_models(KEY, patchers)
        if callback is not None and self.active:
            callback = with_mask(callback, self.model_patcher, lambda: self.decision)
        try:
            return super().sample(noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed)
        finally:
            self.model_patcher.remove_additional_models(KEY)
            self.active, self.decision, self.turn = [], None, -1

    def outer_sample(self, *args, **kwargs):
        try:
            return super().outer_sample(*args, **kwargs)
        finally:
            for patcher in self._other_loaded():
                patcher.cleanup()

    def inner_sample(
        self, noise, latent_image, device, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, **shapes
    ):
        """Inside every expert's own run, so that its hooks, wrappers and ControlNets are set up as in sampling it alone."""
        for patcher in self._other_loaded():
            patcher.pre_run()
        sample = super().inner_sample

        def run() -> torch.Tensor:
            for weights in (self.weights, *(guider.weights for guider in self.active)):
                if weights.own is not None:  # core knows of no hooks but those of conditions, and would keep no weights
                    weights.loaded.hook_mode = comfy.hooks.EnumHookMode.MaxSpeed
            return sample(
                noise,
                latent_image,
                device,
                self.staged(sampler),
                sigmas,
                denoise_mask,
                callback,
                disable_pbar,
                seed,
                **shapes,
            )

        for guider in reversed(self.active):
            run = partial(guider.around, run, noise, latent_image, sampler, sigmas, denoise_mask, seed)
        return run()

    def staged(self, sampler: comfy.samplers.Sampler) -> comfy.samplers.Sampler:
        return sampler

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006, core's signature
        sigma = float(timestep[0])
        alone = next((guider for guider in self.active if guider.is_alone_at(sigma)), None)
        acting = [guider for guider in self.active if guider.window.holds(sigma)]
        if alone is not None or not acting:
            self.decision = None
            if alone is not None:
                return alone.predict(x, timestep, seed)
            return super().predict_noise(x, timestep, self._with_weights(model_options), seed)
        options = self._with_weights(model_options)
        calls = [partial(_guided, super().predict_noise, self, x, timestep, options, seed)]
        calls += [partial(guider.guided, x, timestep, seed) for guider in acting]
        self.turn = -self.turn  # variants of a checkpoint then change places in memory once a step, not twice
        guided = [call() for call in calls[:: self.turn]][:: self.turn]
        self.decision = self._decide(guided, acting, sigma)
        hard = self.blending.temperature in (None, 0.0)
        return blend([g.denoised for g in guided], self.decision.weights, hard)

    def _decide(self, guided: list[_Guided], acting: list[_ExpertGuider], sigma: float) -> Decision:
        maps = []
        for model, prediction in zip([self.general, *(guider.expert for guider in acting)], guided, strict=True):
            uncond = guided[0].uncond if self.blending.general_uncond else prediction.uncond
            response = prediction.cfg * (prediction.cond - uncond) / sigma
            maps.append(log_saliency(strength(response, self.blending.blur), model.k))
        masks: list[Resized] = [
            mask and (mask.use, mask.resized(guided[0].denoised)) for mask in (guider.expert.mask for guider in acting)
        ]
        log_maps = torch.stack(maps)
        if self.blending.temperature is None:
            weights = hard_weights(log_maps, masks)
        else:
            weights = soft_weights(log_maps, masks, self.blending.temperature)
        return Decision(log_maps, weights, tuple(self.experts.index(guider) for guider in acting))

    def _with_weights(self, model_options: dict[str, Any]) -> dict[str, Any]:
        if self.weights.own is None:
            return model_options
        options = comfy.model_patcher.create_model_options_clone(model_options)
        self.weights.attach(options)
        return options

    def _other_loaded(self) -> list[ModelPatcher]:
        loaded = {id(guider.weights.loaded): guider.weights.loaded for guider in self.active}
        return [patcher for patcher in loaded.values() if patcher is not self.model_patcher]


class _ExpertGuider(comfy.samplers.CFGGuider):
    """An expert's own run around the general model's: everything of core's but the loading, which the two share."""

    def __init__(self, expert: Expert, window: Window, weights: Weights):
        super().__init__(expert.model.clone() if weights.shared else weights.loaded)
        self.set_conds(expert.positive, expert.negative)
        self.set_cfg(expert.cfg)
        if not weights.shared:
            weights.loaded = self.model_patcher
        self.expert = expert
        self.window = window
        self.weights = weights

    def is_needed(self, sigmas: torch.Tensor) -> bool:
        if self.expert.mask is not None and self.expert.mask.keeps_everything_out:
            return False
        alone_at_last = self.is_alone_at(float(sigmas[:-1].min()))
        return alone_at_last or self.window.meets(sigmas)

    def needed_models(self) -> list[ModelPatcher]:
        dtype = self.weights.loaded.model_dtype()
        of_prompts, _ = comfy.sampler_helpers.get_additional_models(self.original_conds, dtype)
        return [self.weights.loaded, *self.model_patcher.get_nested_additional_models(), *of_prompts]

    def is_alone_at(self, sigma: float) -> bool:
        return self.expert.takes_over and self.window.is_over_at(sigma)

    def around(
        self, run: Callable[[], torch.Tensor], noise, latent_image, sampler, sigmas, denoise_mask, seed
    ) -> torch.Tensor:
        held = _Held(sampler, run)
        self.sample(noise, latent_image, held, sigmas, denoise_mask, disable_pbar=True, seed=seed)
        return held.result

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
        device, loaded = self.model_patcher.load_device, self.weights.loaded
        self.inner_model = loaded.model
        for hook, patches in self.model_patcher.hook_patches.items():
            loaded.hook_patches.setdefault(hook, patches)
        comfy.samplers.cast_to_load_options(self.model_options, device=device, dtype=loaded.model_dtype())
        try:
            return self.inner_sample(
                noise, latent_image, device, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, **shapes
            )
        finally:
            comfy.sampler_helpers.cleanup_models(self.conds, [])
            del self.inner_model

    def predict(self, x: torch.Tensor, timestep: torch.Tensor, seed: int | None) -> torch.Tensor:
        options = comfy.model_patcher.create_model_options_clone(self.run_options)
        self.weights.attach(options)
        return self.outer_predict_noise(x, timestep, options, seed)

    def guided(self, x: torch.Tensor, timestep: torch.Tensor, seed: int | None) -> _Guided:
        options = comfy.model_patcher.create_model_options_clone(self.run_options)
        self.weights.attach(options)
        return _guided(self.outer_predict_noise, self, x, timestep, options, seed)


class _Held(comfy.samplers.Sampler):
    """Keeps a guider's run open, with its model options, while another one samples."""

    def __init__(self, sampler: comfy.samplers.Sampler, run: Callable[[], torch.Tensor]):
        self.run = run
        # What tells samplers apart, for model patches that follow a trajectory themselves.
        for name in ("sampler_function", "extra_options"):
            if hasattr(sampler, name):
                setattr(self, name, getattr(sampler, name))

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        model_wrap.run_options = extra_args["model_options"]
        try:
            self.result = self.run()
        finally:
            del model_wrap.run_options
        return noise


def _guided(
    predict: Callable, guider: comfy.samplers.CFGGuider, x, timestep, model_options: dict[str, Any], seed
) -> _Guided:
    """Both predictions that a guidance is made of, beside its result."""
    seen: dict[str, Any] = {}

    def look(args: dict[str, Any]) -> torch.Tensor:
        seen.update(cond=args["cond_denoised"], uncond=args["uncond_denoised"], cfg=args["cond_scale"])
        return args["denoised"]

    others = model_options.get("sampler_post_cfg_function", [])
    options = {**model_options, "sampler_post_cfg_function": [look, *others], "disable_cfg1_optimization": True}
    return _Guided(predict(x, timestep, options, seed), **seen)
