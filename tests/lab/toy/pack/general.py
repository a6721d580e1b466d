"""The toy latent-diffusion model in ComfyUI's own classes: SD1.5's topology and file layout at a fraction of its width."""

from pathlib import Path

import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import torch
from comfy.clip_model import CLIPTextModel
from comfy.ldm.cascade.stage_a import StageA
from comfy.model_base import BaseModel, ModelType
from comfy.supported_models_base import ClipTarget
from comfy.taesd.taesd import TAESD
from safetensors.torch import load_file
from torch import Tensor

# The pack is linked into custom_nodes/, so the weights are found from where this file really lies.
WEIGHTS = Path(__file__).resolve().parent.parent / "weights"

WIDTH = 128  # of the text encoder, and so of the UNet's cross-attention
VOCABULARY = 49408
COLUMNS = 77  # of the text encoder
LATENT_CHANNELS = 16

# As ComfyUI detects SD1.5, but for in_channels and out_channels (4), model_channels (320), channel_mult (1, 2, 4, 4),
# context_dim (768) and heads (8).
UNET_CONFIG = {
    "image_size": 32,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "model_channels": 64,
    "channel_mult": [1, 1, 1, 1],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": WIDTH,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "use_temporal_attention": False,
    "adm_in_channels": None,
    "legacy": False,
}

TEXT_CONFIG = {
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": COLUMNS,
    "hidden_act": "quick_gelu",
    "eos_token_id": 49407,
}


def clip_class(text_config: dict) -> type[comfy.sd1_clip.SD1ClipModel]:
    """SD1's text encoder, as ComfyUI wraps it, at the size of text_config."""

    class TextModel(comfy.sd1_clip.SDClipModel):
        def __init__(self, device="cpu", dtype=None, model_options={}):  # noqa: B006, ComfyUI's signature
            super().__init__(
                device=device,
                dtype=dtype,
                textmodel_json_config=dict(text_config),
                return_projected_pooled=False,
                model_options=model_options,
            )

    class Clip(comfy.sd1_clip.SD1ClipModel):
        def __init__(self, device="cpu", dtype=None, model_options={}):  # noqa: B006, ComfyUI's signature
            super().__init__(device=device, dtype=dtype, model_options=model_options, clip_model=TextModel)

    return Clip


def _latent_format() -> comfy.latent_formats.SD3:
    """SD3's, with the gain and the offsets that make live previews of the toy's smaller latents show its colours."""
    latents = comfy.latent_formats.SD3()
    latents.latent_rgb_factors = [[2.8 * factor for factor in row] for row in latents.latent_rgb_factors]
    latents.latent_rgb_factors_bias = [-0.06, -0.12, -0.11]
    return latents


class _Config(comfy.supported_models.SD15):
    """SD1.5's noise schedule and SD2.1's velocity prediction over SD3's 16 latent channels."""

    unet_extra_config = {"num_heads": 4, "num_head_channels": -1}
    latent_format = staticmethod(_latent_format)

    def model_type(self, state_dict: dict[str, Tensor], prefix: str = "") -> ModelType:
        return ModelType.V_PREDICTION

    def inpaint_model(self) -> bool:
        return False  # SD1.5 would take more than 4 input channels for a mask's


def new_vae() -> StageA:
    """ComfyUI's Stable Cascade autoencoder, 8x and 16 channels: linear at its core, so a small one keeps flat colours."""
    return (
        StageA(levels=3, bottleneck_blocks=3, c_hidden=192, c_latent=LATENT_CHANNELS, codebook_size=1)
        .eval()
        .requires_grad_(False)
    )


def new_unet() -> BaseModel:
    config = _Config(UNET_CONFIG)
    config.set_inference_dtype(torch.float32, None)
    return config.get_model({}, "")


def new_text_model() -> CLIPTextModel:
    return CLIPTextModel(TEXT_CONFIG, torch.float32, "cpu", comfy.ops.disable_weight_init)


def load_vae() -> comfy.sd.VAE:
    """The autoencoder that every toy latent model shares."""
    # ComfyUI detects no StageA of this size: start from the other autoencoder of 8x and 16 channels, and exchange it.
    vae = comfy.sd.VAE(sd=TAESD(latent_channels=LATENT_CHANNELS).state_dict())
    model = new_vae()
    model.load_state_dict(_prefixed(load_file(WEIGHTS / "vae.safetensors"), ""))
    vae.first_stage_model = model.to(vae.vae_dtype)
    vae.patcher = comfy.model_patcher.ModelPatcher(
        vae.first_stage_model, load_device=vae.device, offload_device=comfy.model_management.vae_offload_device()
    )
    return vae


def load_general(file: Path = WEIGHTS / "general.safetensors"):
    """The toy as CheckpointLoaderSimple would give it: ModelPatcher, CLIP, VAE."""
    return assembled(load_file(file))


def load_tuned(name: str, folder: Path = WEIGHTS):
    """The general model with what `name` has learnt besides."""
    return assembled(merged(load_file(folder / "general.safetensors"), load_file(folder / f"{name}.safetensors")))


def merged(general: dict[str, Tensor], tuned: dict[str, Tensor]) -> dict[str, Tensor]:
    """The general model's weights plus the low-rank differences; what else the tuned file holds takes the place of theirs."""
    weights = general | {name: value for name, value in tuned.items() if not name.endswith((".down", ".up"))}
    for name in {name.rpartition(".")[0] for name in tuned if name.endswith(".up")}:
        change = tuned[f"{name}.up"].float() @ tuned[f"{name}.down"].float()
        weights[name] = general[name].float() + change.view(general[name].shape)
    return weights


def assembled(weights: dict[str, Tensor]):
    model = new_unet()
    model.load_model_weights(_prefixed(weights, "model.diffusion_model."), "")
    device = comfy.model_management.get_torch_device()
    patcher = comfy.model_patcher.ModelPatcher(
        model, load_device=device, offload_device=comfy.model_management.unet_offload_device()
    )
    return patcher, assembled_text(weights), load_vae()


def assembled_text(weights: dict[str, Tensor], columns: int = COLUMNS) -> comfy.sd.CLIP:
    """The text encoder of a latent model's weights. A causal encoder of fewer columns gives the same states in those."""
    text = _prefixed(weights, "cond_stage_model.transformer.")
    text["text_projection.weight"] = torch.eye(WIDTH)  # SD1.5 does not use it either
    positions = "text_model.embeddings.position_embedding.weight"
    text[positions] = text[positions][:columns]
    return assembled_clip(text, weights["toy.token_ids"], {**TEXT_CONFIG, "max_position_embeddings": columns})


def assembled_clip(text: dict[str, Tensor], token_ids: Tensor, text_config: dict) -> comfy.sd.CLIP:
    """text: the encoder's weights, of whose token embedding there are the rows of token_ids alone."""
    name = "text_model.embeddings.token_embedding.weight"
    rows = torch.zeros(VOCABULARY, text_config["hidden_size"])
    rows[token_ids.long()] = text[name]
    weights = {f"clip_l.transformer.{key}": value for key, value in (text | {name: rows}).items()}
    return comfy.sd.CLIP(
        ClipTarget(comfy.sd1_clip.SD1Tokenizer, clip_class(text_config)),
        tokenizer_data={"clip_l_max_length": text_config["max_position_embeddings"]},
        state_dict=weights,
    )


def _prefixed(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value.float() for key, value in weights.items() if key.startswith(prefix)}
