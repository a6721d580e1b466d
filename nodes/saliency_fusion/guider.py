"""Two or more models in one sampling, each where its guidance is salient (MagicFusion, 2303.13126; Face-diffuser, 2311.10329).

All models are evaluated at the sampler's own latent and sigma and blended as denoised predictions, in which every prediction
type is the same; only the saliency needs eps units, for which a guidance response is divided by sigma.

What is put on a model that changes its guidance (RescaleCFG, PAG, SAG ...) changes that model's prediction, before the blend.
What the sampler adds for the run (the CFG++ samplers read the unconditional prediction in this way) sees the blend, of which
there is then also a conditional and an unconditional one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from .blending import Decision, blend, hard_weights, soft_weights
from .common_ground import require_common_ground, require_levels
from .expert import Expert, ExpertGuider, Guided, ModelOptions, Prompted, looking, post_cfg_functions
from .preview import with_mask
from .saliency import log_saliency, strength
from .second_module import KEY
from .windows import Window


@dataclass(frozen=True)
class Blending:
    """general_uncond: subtract the general model's unconditional prediction in an expert's saliency, as MagicFusion's code does,
    instead of its own, as the paper has it. temperature: None for a hard mask."""

    blur: str = "box"
    general_uncond: bool = False
    temperature: float | None = None

    @property
    def hard(self) -> bool:
        return self.temperature in (None, 0.0)


class FusionGuider(comfy.samplers.CFGGuider):
    """Samples like the general model's CFGGuider, which it is wherever no expert takes part.

    maps_everything: reckon every model's saliency, also where masks decide.
    """

    def __init__(self, general: Prompted, experts: Sequence[Expert], blending: Blending, maps_everything: bool = False):
        for expert in experts:
            require_common_ground(general.model, expert.model, (general.socket, expert.socket))
        super().__init__(general.model)
        self.set_conds(general.positive, general.negative)
        self.set_cfg(general.cfg)
        self.general = general
        self.blending = blending
        self.maps_everything = maps_everything
        self.experts: list[ExpertGuider] = []
        hooked = any(side.has_hooks for side in (general, *experts))
        for expert in experts:
            others = [guider.model_patcher for guider in (self, *self.experts)]
            self.experts.append(ExpertGuider(expert, Window.of(*expert.span, general.model), others, hooked))
        self.active: list[ExpertGuider] = []
        self.decision: Decision | None = None
        self.noise_mask: torch.Tensor | None = None

    def sample(
        self, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False, seed=None
    ):
        if latent_image.is_nested or latent_image.ndim < 4:
            raise ValueError(
                "latent_image: expected one of pictures, [B, C, H, W], got one of several parts, such as with sound."
            )
        sampler = self.staged(sampler)
        device, hard = self.model_patcher.load_device, self.blending.hard
        self.active = [
            own for own in self.experts if len(sigmas) > 1 and own.enters(sigmas, latent_image, device, hard)
        ]
        for own in self.active:
            require_levels(own.expert.model, own.window, sigmas, own.expert.socket)
        guider = super()
        if self.active and self.active[0].is_alone_at(float(sigmas.max())):
            guider = self.active[0].by_itself()
        elif self.active and callback is not None:
            callback = with_mask(callback, self.model_patcher, lambda: self.decision)
        self.noise_mask = denoise_mask
        try:
            return guider.sample(noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed)
        finally:
            self.active, self.decision, self.noise_mask = [], None, None

    def staged(self, sampler: comfy.samplers.Sampler) -> comfy.samplers.Sampler:
        return sampler

    def outer_sample(self, *args, **kwargs):
        add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, self._load, self.model_options, is_model_options=True)
        return super().outer_sample(*args, **kwargs)

    def _load(self, executor, model, noise_shape, conds, *args, **kwargs):
        """All models in one go, because each that is loaded later may drive out the ones before it."""
        of_experts = [patcher for own in self.active for patcher in own.models()]
        loading = {**conds, KEY: [{"additional_models": of_experts}]}
        inner, _, models = executor(model, noise_shape, loading, *args, **kwargs)
        theirs = {id(patcher) for patcher in of_experts}  # which are cleaned up with the experts' own runs
        return inner, conds, [patcher for patcher in models if id(patcher) not in theirs]

    def inner_sample(
        self, noise, latent_image, device, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, **shapes
    ):
        arguments = noise, latent_image, device, sampler, sigmas, denoise_mask, callback, disable_pbar, seed
        run = partial(super().inner_sample, *arguments, **shapes)
        for own in reversed(self.active):
            run = partial(own.around, run, noise, latent_image, sampler, sigmas, self.noise_mask, seed)
        return run()

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006, core's signature
        sigma = float(timestep[0])
        alone = next((own for own in self.active if own.is_alone_at(sigma)), None)
        acting = [own for own in self.active if own.window.holds(sigma)]
        self.decision = None
        if alone is None and not acting:
            return super().predict_noise(x, timestep, model_options, seed)
        of_model = post_cfg_functions(self.model_options)
        of_run = [f for f in post_cfg_functions(model_options) if not any(f is own for own in of_model)]
        reads_uncond = bool(of_run) and model_options.get("disable_cfg1_optimization", False)
        if alone is not None:
            guided = [alone.guided(x, timestep, seed, reads_uncond)]
        else:
            options = {**model_options, "sampler_post_cfg_function": of_model}
            guided = self._guided(x, timestep, options, seed, acting, reads_uncond)
            self.decision = self._decide(guided, acting, sigma)
        denoised, cond, uncond = (
            self._blended([getattr(each, name) for each in guided]) for name in ("denoised", "cond", "uncond")
        )
        for function in of_run:
            denoised = function(
                {
                    "denoised": denoised, "cond_denoised": cond, "uncond_denoised": uncond, "cond_scale": self.cfg,
                    "cond": self.conds["positive"], "uncond": self.conds["negative"], "model": self.inner_model,
                    "model_options": model_options, "sigma": timestep, "input": x,
                }
            )  # fmt: skip
        return denoised

    def _guided(
        self, x, timestep, model_options: ModelOptions, seed, acting: list[ExpertGuider], reads_uncond: bool
    ) -> list[Guided]:
        """The general model's, then the experts'. At guidance 1 the unconditional prediction is left out where nothing reads it."""
        compete = self.maps_everything or any(own.competes for own in acting)
        options, seen = looking(model_options, reads_uncond or compete)
        self.inner_model.current_patcher = self.model_patcher  # an expert may share the module
        guided = [Guided(super().predict_noise(x, timestep, options, seed), *seen[-1])]
        for own in acting:
            read = (self.maps_everything or own.competes) and not self.blending.general_uncond
            guided.append(own.guided(x, timestep, seed, reads_uncond or read))
        return guided

    def _blended(self, predictions: list[torch.Tensor]) -> torch.Tensor:
        return (
            predictions[0] if self.decision is None else blend(predictions, self.decision.weights, self.blending.hard)
        )

    def _decide(self, guided: list[Guided], acting: list[ExpertGuider], sigma: float) -> Decision:
        sides = [self.general, *(own.expert for own in acting)]
        read = [any(own.competes for own in acting), *(own.competes for own in acting)]
        maps = []
        for side, prediction, wanted in zip(sides, guided, read, strict=True):
            if not (wanted or self.maps_everything):
                maps.append(torch.zeros_like(prediction.denoised[:, 0]))
                continue
            uncond = guided[0].uncond if self.blending.general_uncond else prediction.uncond
            response = strength((prediction.cond - uncond) / sigma, self.blending.blur)
            maps.append(log_saliency(response, side.sharpness, side.cfg))
        log_maps, masks = torch.stack(maps), [own.mask_for(guided[0].denoised) for own in acting]
        if self.blending.hard:
            weights = hard_weights(log_maps, masks)
        else:
            weights = soft_weights(log_maps, masks, self.blending.temperature)
        return Decision(log_maps, weights, tuple(self.experts.index(own) for own in acting))
