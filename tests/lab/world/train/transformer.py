"""Trains the world's transformer, a small MMDiT, on the latents of the UNet, told by the text encoder that the UNet was trained with."""

from __future__ import annotations

import copy
from pathlib import Path

import comfy.ops
import torch
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper as MMDiT
from lab.world.pack.general import under
from lab.world.pack.transformer import CONFIG, TEXT_COLUMNS
from lab.world.train.general import CAPTION_DROPOUT, SCENES, SCENES_CUDA
from lab.world.train.loop import Batch, Run, gaussian, initialise, train
from lab.world.train.muon import optimisers
from lab.world.train.pool import chosen, latent_pool
from lab.world.train.text import TextEncoder
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

STEPS, STEPS_CUDA = 2600, 7700
BATCH, BATCH_CUDA = 64, 256
RATE, OTHER_RATE = 2e-3, 2e-3
# Of the logit of a step's time. What is where is decided where there is more noise than picture.
TIME_MEAN, TIME_STD = 0.6, 1.0
CONTEXT_GAIN = 6  # the mean over all tokens makes a word's value small


def new_transformer() -> MMDiT:
    model = MMDiT(**CONFIG, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    initialise(model)
    width = model.hidden_size
    for block in model.joint_blocks:
        for stream in (block.context_block, block.x_block):
            nn.init.ones_(stream.attn.ln_q.weight)
            nn.init.ones_(stream.attn.ln_k.weight)
            modulation = stream.adaLN_modulation[-1]
            nn.init.zeros_(modulation.weight)
            nn.init.zeros_(modulation.bias)
            if not stream.pre_only:
                # Open gates before branches that start at nothing: these learn from the first step.
                modulation.bias.data.unflatten(0, (6, width))[[2, 5]] = 1
                for last in (stream.attn.proj, stream.mlp.fc2):
                    nn.init.zeros_(last.weight)
                    nn.init.zeros_(last.bias)
        block.context_block.attn.qkv.weight.data[2 * width :] *= CONTEXT_GAIN
    for layer in (model.final_layer.linear, model.final_layer.adaLN_modulation[-1]):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model.requires_grad_(True)


def trained_text(general: Path) -> TextEncoder:
    """The text encoder of the general model's file."""
    weights = load_file(general)
    text = TextEncoder(weights["toy.token_ids"].long())
    own = under("cond_stage_model.transformer.", weights)
    own["text_projection.weight"] = text.clip.text_projection.weight.data  # SD1.5 does not use it
    text.clip.load_state_dict(own)
    return text.requires_grad_(False)


def flow(clean: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, their times from 0 (no noise) to 1, and the velocity from the picture to the noise."""
    noise = gaussian(clean, chance)
    time = torch.sigmoid(TIME_MEAN + TIME_STD * torch.randn(len(clean), generator=chance)).to(clean.device)
    return torch.lerp(clean, noise, time[:, None, None, None]), time, noise - clean


def train_transformer(run: Run, autoencoder: Path, general: Path, output: Path) -> None:
    steps, batch = run.size(STEPS, BATCH, STEPS_CUDA, BATCH_CUDA)
    text = trained_text(general).to(run.device)
    words = text.vocabulary.cpu()
    pool = latent_pool(run, SCENES_CUDA if run.is_cuda else SCENES, words, autoencoder).to(run.device)
    torch.manual_seed(run.seed)
    model = new_transformer().to(run.device)
    average = copy.deepcopy(model).requires_grad_(False)

    def batch_of(step: int) -> Batch:
        chance = run.chance(step)
        shown, rows = chosen(pool, batch, chance, CAPTION_DROPOUT, len(words) - 1)
        return rows, *flow(shown.latents.float(), chance)

    def loss_of(rows: Tensor, noisy: Tensor, time: Tensor, wanted: Tensor) -> Tensor:
        with run.precision():
            with torch.no_grad():
                context = text(rows)[:, :TEXT_COLUMNS]
            velocity = model(noisy, 1000 * time, context=context)
        return (velocity.float() - wanted).square().mean()

    train(
        run,
        "transformer",
        model,
        optimisers(model, RATE, other_rate=OTHER_RATE),
        batch_of,
        loss_of,
        steps,
        average=average,
        saved=lambda _step: export(average, output),
    )
    export(average, output)


def export(model: MMDiT, file: Path) -> None:
    """SD3's key names, in fp16."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.detach().half().contiguous().cpu() for key, value in model.state_dict().items()}, file)
