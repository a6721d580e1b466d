"""The toy world's latent-diffusion model in ComfyUI's own classes: SD1.5's blocks and file layout, much narrower."""

from __future__ import annotations

from pathlib import Path

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
from comfy.model_patcher import ModelPatcher
from comfy.supported_models_base import ClipTarget
from comfy.taesd.taesd import TAESD
from safetensors.torch import load_file
from torch import Tensor

# The pack is linked into custom_nodes/, so the weights are found from where this file really lies.
WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
LATENT_CHANNELS = 4
WIDTH = 128  # of the text encoder, and so of the UNet's cross-attention
VOCABULARY = 49408
GROUPS = 8  # of the norms: 32 would be one for each channel, and take away its mean

# As ComfyUI detects SD1.5, but for model_channels (320) and their multiples (1, 2, 4, 4), context_dim (768), and attention
# at the first level, where 1024 places that all look at each other would take half of the time.
UNET_CONFIG = {
    "image_size": 32,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "model_channels": 48,
    "channel_mult": [1, 1, 2, 2],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [0, 0, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0],
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
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "eos_token_id": 49407,
}


class Operations(comfy.ops.disable_weight_init):
    """ComfyUI's layers, with norms of GROUPS groups."""

    class GroupNorm(comfy.ops.disable_weight_init.GroupNorm):
        def __init__(self, num_groups: int, num_channels: int, **options) -> None:
            super().__init__(GROUPS, num_channels, **options)


class _Config(comfy.supported_models.SD15):
    """SD1.5's noise schedule and latent format, and SD2.1's velocity prediction."""

    unet_extra_config = {"num_heads": -1, "num_head_channels": 24}
    custom_operations = Operations

    def model_type(self, state_dict: dict[str, Tensor], prefix: str = "") -> ModelType:
        return ModelType.V_PREDICTION


def clip_class(text_config: dict, columns: int = 77) -> type[comfy.sd1_clip.SD1ClipModel]:
    """SD1's text encoder, as ComfyUI wraps it, at the size of text_config and for that many tokens."""

    class TextModel(comfy.sd1_clip.SDClipModel):
        def __init__(self, device="cpu", dtype=None, model_options={}):  # noqa: B006, ComfyUI's signature
            super().__init__(
                device=device,
                dtype=dtype,
                max_length=columns,
                textmodel_json_config=dict(text_config),
                return_projected_pooled=False,
                model_options=model_options,
            )

    class Clip(comfy.sd1_clip.SD1ClipModel):
        def __init__(self, device="cpu", dtype=None, model_options={}):  # noqa: B006, ComfyUI's signature
            super().__init__(device=device, dtype=dtype, model_options=model_options, clip_model=TextModel)

    return Clip


def tokenizer_class(columns: int = 77) -> type[comfy.sd1_clip.SD1Tokenizer]:
    """CLIP's tokenizer, for that many tokens."""

    class Tokenizer(comfy.sd1_clip.SD1Tokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data={}):  # noqa: B006, ComfyUI's signature
            super().__init__(embedding_directory, {**tokenizer_data, "clip_l_max_length": columns})

    return Tokenizer


def new_vae() -> StageA:
    """ComfyUI's Stable Cascade autoencoder (f = 4, 4 channels) at a quarter of its width."""
    return (
        StageA(levels=2, bottleneck_blocks=4, c_hidden=96, c_latent=LATENT_CHANNELS, codebook_size=1)
        .eval()
        .requires_grad_(False)
    )


def new_unet() -> BaseModel:
    config = _Config(dict(UNET_CONFIG))
    config.set_inference_dtype(torch.float32, None)
    return config.get_model({}, "")


def new_text_model() -> CLIPTextModel:
    return CLIPTextModel(TEXT_CONFIG, torch.float32, "cpu", comfy.ops.disable_weight_init)


def load_vae(folder: Path = WEIGHTS) -> comfy.sd.VAE:
    """The autoencoder that every latent model of the world shares."""
    # ComfyUI detects a StageA of its own width alone: start from another autoencoder of 4 channels, and exchange it.
    vae = comfy.sd.VAE(sd=TAESD(latent_channels=LATENT_CHANNELS).state_dict())
    vae.downscale_ratio = vae.upscale_ratio = 4
    model = new_vae()
    model.load_state_dict(under("", load_file(folder / "autoencoder.safetensors")))
    vae.first_stage_model = model.to(vae.vae_dtype)
    vae.patcher = ModelPatcher(
        vae.first_stage_model, load_device=vae.device, offload_device=comfy.model_management.vae_offload_device()
    )
    return vae


def load_general(folder: Path = WEIGHTS) -> tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """As CheckpointLoaderSimple would give it."""
    weights = load_file(folder / "general.safetensors")
    return model_of(weights), clip_of(weights), load_vae(folder)


def model_of(weights: dict[str, Tensor]) -> ModelPatcher:
    """The UNet of the general model's file."""
    model = new_unet()
    model.load_model_weights(under("model.diffusion_model.", weights), "")
    model.diffusion_model.to(memory_format=torch.channels_last)  # a quarter faster on a CPU
    device = comfy.model_management.get_torch_device()
    return ModelPatcher(model, load_device=device, offload_device=comfy.model_management.unet_offload_device())


def clip_of(weights: dict[str, Tensor], columns: int = 77) -> comfy.sd.CLIP:
    """The text encoder of the general model's file."""
    text = under("cond_stage_model.transformer.", weights)
    text["text_projection.weight"] = torch.eye(WIDTH)  # SD1.5 does not use it either
    return assembled_clip(text, weights["toy.token_ids"], columns)


def assembled_clip(text: dict[str, Tensor], token_ids: Tensor, columns: int = 77) -> comfy.sd.CLIP:
    """Of a file which has the rows of its own words alone in its token embedding."""
    name = "text_model.embeddings.token_embedding.weight"
    rows = torch.zeros(VOCABULARY, WIDTH)
    rows[token_ids.long()] = text[name]
    places = "text_model.embeddings.position_embedding.weight"
    text = text | {name: rows, places: text[places][:columns]}
    config = {**TEXT_CONFIG, "max_position_embeddings": columns}
    target = ClipTarget(tokenizer_class(columns), clip_class(config, columns))
    return comfy.sd.CLIP(target, state_dict={f"clip_l.transformer.{key}": value for key, value in text.items()})


def under(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of that prefix, without it, in float32."""
    return {key[len(prefix) :]: value.float() for key, value in weights.items() if key.startswith(prefix)}
