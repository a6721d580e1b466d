"""The decoder as a ComfyUI MODEL in pixel space, for core's samplers, guiders, schedulers and masks."""

from __future__ import annotations

from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.supported_models_base
import torch
from comfy.model_patcher import ModelPatcher

from ...files.weight_file import assign, precision
from ..respaced_schedule import squaredcos_cap_v2
from .decoder_network import DecoderNetwork
from .layouts import Weights

# The last twenty steps of the cosine schedule rise from sigma 32 to 20000, where a rounding error of the predicted noise is
# thousands of grey levels of the picture. Core's schedulers begin below them.
NOISIEST = 979


class CosineSampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
    """eps prediction on the cosine schedule. Sigmas above NOISIEST have timesteps too: the published sampler begins there."""

    def _register_schedule(self, **_: Any) -> None:
        super()._register_schedule(given_betas=squaredcos_cap_v2())

    def set_sigmas(self, sigmas: torch.Tensor) -> None:
        super().set_sigmas(sigmas)
        self.sigmas = self.sigmas[: NOISIEST + 1]


class PixelSpace(comfy.latent_formats.LatentFormat):
    latent_channels = 3
    spacial_downscale_ratio = 1
    latent_rgb_factors = torch.eye(3).tolist()


class DecoderConfig(comfy.supported_models_base.BASE):
    latent_format = PixelSpace
    unet_extra_config = {}
    memory_usage_factor = 1.0  # as SD1.5, whose network is of the same shape


class UnCLIPDecoder(comfy.model_base.BaseModel):
    """Reads text states, their mask and pooled output, and core's unclip_conditioning for the image embedding.

    A conditioning without an image embedding, such as CLIP Text Encode's, gets the one that the decoder learned for this case.
    """

    def __init__(self, config: DecoderConfig, device: torch.device):
        """The network is on the meta device until it is given its weights. device: where those will be."""
        super().__init__(config, comfy.model_base.ModelType.EPS, torch.device("meta"), DecoderNetwork)
        self.device = device
        self.model_sampling = CosineSampling(config)

    def extra_conds(self, **kwargs: Any) -> dict[str, comfy.conds.CONDRegular]:
        network: DecoderNetwork = self.diffusion_model
        socket = kwargs.get("prompt_type", "positive")
        require_picture(kwargs["noise"].shape)
        states, text_embed = kwargs.get("cross_attn"), kwargs.get("pooled_output")
        require_width(socket, "text states", states, network.text_width)
        require_width(socket, "a text embedding", text_embed, network.text_width)
        image_embed = image_embedding(socket, kwargs.get("unclip_conditioning"), network.image_width)
        if image_embed is None:
            image_embed = network.cf_param.detach()[None]
        require_share(socket, len(image_embed), kwargs["noise"].shape[0])
        conds = {
            "c_crossattn": states,
            "text_mask": text_mask(socket, kwargs.get("attention_mask"), states),
            "text_embed": text_embed,
            "image_embed": image_embed.to(states),
        }
        return {name: comfy.conds.CONDRegular(value.to(kwargs["device"])) for name, value in conds.items()}


def text_mask(socket: str, mask: torch.Tensor | None, states: torch.Tensor) -> torch.Tensor:
    """[B, L], 1 for tokens that are read: all of them if the conditioning has no mask."""
    if mask is None:
        return torch.ones(states.shape[:2])
    if mask.shape[-1] != states.shape[1]:
        raise ValueError(
            f"{socket}: expected a mask for each of the text's {states.shape[1]} tokens, got one for {mask.shape[-1]}. Conditioning Concat "
            "does not join masks: put both texts into one unCLIP Decoder Conditioning, or use Conditioning Combine."
        )
    return mask.reshape(-1, states.shape[1]).float()


def image_embedding(socket: str, unclip_conditioning: list[dict[str, Any]] | None, width: int) -> torch.Tensor | None:
    """[B, width], the sum of a conditioning's image embeddings, weighted by their strengths."""
    if not unclip_conditioning:
        return None
    for entry in unclip_conditioning:
        if entry["noise_augmentation"] > 0:
            raise ValueError(
                f"noise_augmentation: expected 0, since this decoder was trained without, got {entry['noise_augmentation']}. Use "
                "unCLIP Decoder Conditioning."
            )
        require_width(socket, "an image embedding", entry["clip_vision_output"].image_embeds, width)
    return sum(entry["strength"] * entry["clip_vision_output"].image_embeds.float() for entry in unclip_conditioning)


def require_width(socket: str, what: str, value: torch.Tensor | None, width: int) -> None:
    if value is None or value.shape[-1] != width:
        got = "none" if value is None else f"one {value.shape[-1]} wide"
        raise ValueError(
            f"{socket}: expected {what} {width} wide, as the decoder takes it, got {got}. Connect unCLIP Decoder Conditioning with the CLIP "
            "that the decoder was trained with."
        )


def require_share(socket: str, embeddings: int, pictures: int) -> None:
    """Core would cut a longer batch of embeddings to the batch of the latent, without a word."""
    if pictures % embeddings:
        raise ValueError(
            f"{socket}: expected one image embedding, or one for each of the latent's {pictures} pictures, got {embeddings}. Give the latent "
            "the same batch size, or use the output single, which gives the embeddings one by one."
        )


def require_picture(shape: torch.Size) -> None:
    if len(shape) != 4 or shape[1] != PixelSpace.latent_channels:
        raise ValueError(
            f"latent_image: expected pictures in pixel space, [batch, {PixelSpace.latent_channels}, height, width], got {list(shape)}. "
            "Connect Empty Latent Image, 64 x 64 for Karlo, or VAE Encode with the decoder's own vae."
        )


def clipped(args: dict[str, Any]) -> torch.Tensor:
    """Every published sampler of these models clips the guided prediction to the range of pixels."""
    return args["denoised"].clamp(-1.0, 1.0)


def decoder_patcher(
    weights: Weights, configuration: dict[str, Any], dtype: torch.dtype | None = None, disable_dynamic: bool = False
) -> ModelPatcher:
    """The network's tensors and arguments as a MODEL, loaded as core loads a diffusion model. Empties `weights`."""
    config = DecoderConfig(configuration)
    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    dtype, cast = precision(weights, dtype, load_device)
    config.set_inference_dtype(dtype, cast)
    model = UnCLIPDecoder(config, offload_device)
    assign(model.diffusion_model, weights, dtype, offload_device)
    kind = ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = kind(model, load_device=load_device, offload_device=offload_device)
    patcher.set_model_sampler_post_cfg_function(clipped)
    return patcher
