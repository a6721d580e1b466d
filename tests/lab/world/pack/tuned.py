"""The expert and the subject model: the general model with what each has learnt besides, which is a LoRA in ComfyUI's names."""

from __future__ import annotations

from pathlib import Path

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from safetensors.torch import load_file
from torch import Tensor

from .general import WEIGHTS, clip_of, load_vae, model_of

TABLE = "text_model.embeddings.token_embedding.weight"
SUBJECT = ("image_encoder.", "postfuse_module.")


def load_expert(folder: Path = WEIGHTS) -> tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """As CheckpointLoaderSimple would give it. Its CLIP knows the general model's words and the expert's own."""
    general, own = (load_file(folder / f"{name}.safetensors") for name in ("general", "expert"))
    return _tuned(general, own, folder)


def load_subject(folder: Path = WEIGHTS) -> tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE, dict[str, Tensor]]:
    """As Load Subject Checkpoint would give it, but for the last: the tensors of the subject encoder."""
    general, own = (load_file(folder / f"{name}.safetensors") for name in ("general", "subject"))
    encoder = {name: value for name, value in own.items() if name.startswith(SUBJECT)}
    return *_tuned(general, own, folder), encoder


def _tuned(
    general: dict[str, Tensor], own: dict[str, Tensor], folder: Path
) -> tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    lora = {name: value for name, value in own.items() if ".lora_" in name}
    if "toy.token_ids" in own:
        table = f"cond_stage_model.transformer.{TABLE}"
        for name, more in ((table, own[f"toy.{TABLE}"]), ("toy.token_ids", own["toy.token_ids"])):
            general[name] = torch.cat([general[name], more])
    model, clip = comfy.sd.load_lora_for_models(model_of(general), clip_of(general), lora, 1.0, 1.0)
    return model, clip, load_vae(folder)
