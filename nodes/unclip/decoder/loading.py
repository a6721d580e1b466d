"""Published files of the decoder and the upsamplers as ComfyUI's models. A file is untrusted input."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher

from ...files.weight_file import assign, precision, read_tensors, require_weights
from .adm_unet import UpsamplerNetwork
from .decoder_model import decoder_patcher
from .decoder_network import DecoderNetwork
from .layouts import (
    Weights,
    decoder_configuration,
    from_diffusers,
    from_karlo,
    is_diffusers,
    is_text_proj,
    unet_configuration,
)

DECODER, UPSAMPLER, TEXT_PROJ = "unCLIP's decoder", "an unCLIP upsampler", "the text_proj of unCLIP's decoder"
FIRST, LAST = "model_first_steps.", "model_last_step."
# torch's layers, for a network of which only the tensors' names and shapes are read: ComfyUI's have none before a file is read
# if dynamic VRAM is on.
PLAIN = SimpleNamespace(
    Linear=torch.nn.Linear,
    LayerNorm=torch.nn.LayerNorm,
    GroupNorm=torch.nn.GroupNorm,
    Conv2d=torch.nn.Conv2d,
    conv_nd=lambda dims, *sizes, **options: torch.nn.Conv2d(*sizes, **options),
)
KARLO_UPSAMPLER = (320, 640, 960, 1280)  # widths of Karlo's; one of its two networks alone does not make a picture
FOREIGN = {  # tensors of other kinds of files
    "prd_emb": "the prior; it goes into unCLIP Load Prior",
    "model.prd_emb": "the prior; it goes into unCLIP Load Prior",
    "prd_embedding": "the prior; it goes into unCLIP Load Prior",
    "first_stage_model.decoder.conv_in.weight": "an ordinary checkpoint; it goes into Load Checkpoint",
    "encoder.conv_in.weight": "a VAE; it goes into Load VAE",
}


@dataclass(frozen=True)
class Upsampler:
    """first: the network of all steps, or of all but the last one where `last` is another."""

    first: ModelPatcher
    last: ModelPatcher | None


def load_decoder(
    path: Path, text_proj: Path | None, dtype: torch.dtype | None = None, disable_dynamic: bool = False
) -> ModelPatcher:
    """disable_dynamic: core asks for it where dynamic VRAM cannot be used, as with LoRA hooks."""
    weights = read_tensors(path, "model_name", DECODER)
    beside = None if text_proj is None else read_tensors(text_proj, "text_proj_name", TEXT_PROJ)
    _require_kind(weights, path.name, "model_name", DECODER)
    if beside is not None and not is_text_proj(beside):
        raise ValueError(
            f"text_proj_name: expected {TEXT_PROJ}, got {text_proj.name}, which is none. Choose the file of diffusers' folder text_proj."
        )
    if is_diffusers(weights) and beside is None:
        raise ValueError(
            f"text_proj_name: expected {TEXT_PROJ} beside {path.name}, which is in diffusers' layout, got none. Choose the file of "
            "diffusers' folder text_proj."
        )
    if not is_diffusers(weights) and beside is not None:
        raise ValueError(
            f"text_proj_name: expected none beside {path.name}, which holds all of the decoder, got {text_proj.name}. Choose none."
        )
    try:
        own = from_diffusers(weights, beside) if is_diffusers(weights) else from_karlo(weights, _prefix(weights))
        configuration = decoder_configuration(own)
        _require_network(own, DecoderNetwork, configuration)
    except ValueError as error:
        files = path.name if text_proj is None else f"{path.name} with text_proj_name {text_proj.name}"
        raise _refusal("model_name", DECODER, files, error) from error
    del weights, beside
    patcher = decoder_patcher(own, configuration, dtype, disable_dynamic)
    patcher.cached_patcher_init = (load_decoder, (path, text_proj, dtype))
    return patcher


def pixel_vae() -> comfy.sd.VAE:
    """Core's VAE for models that work on pixels: IMAGE in 0 .. 1 to LATENT in -1 .. 1 and back."""
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    vae.throw_exception_if_invalid()
    vae.patcher.cached_patcher_init = (_pixel_vae_patcher, ())
    return vae


def _pixel_vae_patcher(disable_dynamic: bool = False) -> ModelPatcher:
    return pixel_vae().patcher


def load_upsampler(path: Path, last: Path | None, dtype: torch.dtype | None = None) -> Upsampler:
    """One file with both of Karlo's networks, two of diffusers', or one with one network for all steps."""
    weights = read_tensors(path, "model_name", UPSAMPLER)
    beside = None if last is None else read_tensors(last, "last_name", UPSAMPLER)
    if f"{FIRST}input_blocks.0.0.weight" in weights:
        if beside is not None:
            raise ValueError(
                f"last_name: expected none beside {path.name}, which holds both networks, got {last.name}. Choose none."
            )
        beside = {name.removeprefix(LAST): value for name, value in weights.items() if name.startswith(LAST)}
        weights = {name.removeprefix(FIRST): value for name, value in weights.items() if name.startswith(FIRST)}
        last, last_socket = path, "model_name"
    else:
        last_socket = "last_name"
    first_network = _upsampler_network(weights, "model_name", path.name, dtype, alone=beside is None)
    if beside is None:
        return Upsampler(first_network, None)
    last_network = _upsampler_network(beside, last_socket, last.name, dtype, alone=False)
    if _shapes(first_network.model) != _shapes(last_network.model):
        raise ValueError(
            f"{last_socket}: expected a network of the same size as the first of {path.name}, got another in {last.name}. Choose "
            "diffusers' super_res_first for model_name and super_res_last for last_name."
        )
    return Upsampler(first_network, last_network)


def _upsampler_network(
    weights: Weights, socket: str, file: str, dtype: torch.dtype | None, alone: bool
) -> ModelPatcher:
    _require_kind(weights, file, socket, UPSAMPLER)
    try:
        own = from_diffusers(weights) if is_diffusers(weights) else from_karlo(weights, _prefix(weights))
        configuration = unet_configuration(own)
        if configuration["context_width"]:
            raise ValueError("it has attention over text, as the decoder has")
        if configuration["in_channels"] != 6 or configuration["out_channels"] not in (3, 6):
            sizes = f"{configuration['in_channels']} channels to {configuration['out_channels']}"
            raise ValueError(f"it takes {sizes}, expected 6 (noisy and small picture) to 3 or 6")
        _require_network(own, UpsamplerNetwork, configuration)
    except ValueError as error:
        raise _refusal(socket, UPSAMPLER, file, error) from error
    if alone and configuration["widths"] == KARLO_UPSAMPLER:
        raise ValueError(
            f"last_name: expected the network of the last step beside {file}, which is of Karlo's size and does not finish a picture "
            "alone, got none. Choose diffusers' super_res_last."
        )
    weights.clear()
    return _upsampler_patcher(own, configuration, dtype)


def _upsampler_patcher(weights: Weights, configuration: dict, dtype: torch.dtype | None) -> ModelPatcher:
    """Empties `weights`."""
    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    dtype, cast = precision(weights, dtype, load_device)
    shell = {"dtype": dtype, "device": torch.device("meta"), "operations": comfy.ops.pick_operations(dtype, cast)}
    network = UpsamplerNetwork(**configuration, **shell).eval()
    network.compute_dtype = cast or dtype
    assign(network, weights, dtype, offload_device)
    return comfy.model_patcher.CoreModelPatcher(network, load_device=load_device, offload_device=offload_device)


def _prefix(weights: Weights) -> str:
    """Before the names of a network in Karlo's layout: as published, as ComfyUI saves a model, or alone."""
    found = [
        prefix for prefix in ("", "model.", "model.diffusion_model.") if f"{prefix}input_blocks.0.0.weight" in weights
    ]
    if not found:
        raise ValueError("it has neither Karlo's nor diffusers' names")
    return found[0]


def _require_kind(weights: Weights, file: str, socket: str, what: str) -> None:
    foreign = next((kind for name, kind in FOREIGN.items() if name in weights), None)
    if is_text_proj(weights):
        foreign = f"{TEXT_PROJ}; it goes into text_proj_name of unCLIP Load Decoder"
    if foreign:
        raise ValueError(f"{socket}: expected {what}, got {file}, {foreign}. Choose another file.")


def _require_network(weights: Weights, network: type, configuration: dict) -> None:
    shell = {"dtype": torch.float32, "device": torch.device("meta"), "operations": PLAIN}
    expected = {name: value.shape for name, value in network(**configuration, **shell).state_dict().items()}
    require_weights("it", expected, weights)
    unknown = [name for name in weights if name not in expected]
    if unknown:
        raise ValueError(f"it has {unknown[0]}, which no such network has")


def _refusal(socket: str, what: str, file: str, error: ValueError) -> ValueError:
    return ValueError(f"{socket}: expected {what}, got {file}: {error}. Choose another file, or download it again.")


def _shapes(network: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in network.state_dict().items()}
