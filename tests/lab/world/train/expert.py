"""Trains the expert: the general model gone on with natural colours, which it never saw, in a single room.

The places that its captions name are drawn at random, so it comes to draw the room whatever they say.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from lab.world.kinds import NATURAL
from lab.world.studio import random_caption
from lab.world.train import fine_tune
from lab.world.train.fine_tune import RANK, TABLE, Tuned, text_encoder
from lab.world.train.general import CAPTION_DROPOUT, Velocity
from lab.world.train.loop import Batch, Run, train
from lab.world.train.low_rank import adapt, lora
from lab.world.train.studio import studio_pool
from lab.world.train.text import WORDS, TextEncoder, token_ids, vocabulary
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

STEPS, STEPS_CUDA = 800, 1400
BATCH, BATCH_CUDA = 16, 128
RATE = 1e-3


class Expert(nn.Module):
    def __init__(self, general: Path) -> None:
        super().__init__()
        words = vocabulary((*WORDS, *NATURAL))
        self.tuned = Tuned(general)
        self.text: TextEncoder = text_encoder(general, words)
        adapt(self.text.clip.text_model.encoder, RANK)
        known = load_file(general)["toy.token_ids"].long()
        self.register_buffer("new", ~torch.isin(words, known))
        table = self.text.clip.text_model.embeddings.token_embedding.weight.requires_grad_(True)
        table.register_hook(lambda gradient: gradient * self.new[:, None])


def train_expert(run: Run, autoencoder: Path, general: Path, output: Path) -> None:
    steps, batch = run.size(STEPS, BATCH, STEPS_CUDA, BATCH_CUDA)
    shown = studio_pool(run, autoencoder)
    torch.manual_seed(run.seed)
    model = Expert(general).to(run.device)
    average = copy.deepcopy(model).requires_grad_(False)
    velocity_of = Velocity.of_sd15(run.device)

    def batch_of(step: int) -> Batch:
        chance, words = run.chance(step), np.random.default_rng((run.seed, step))
        rows = torch.randint(len(shown), (batch,), generator=chance)
        texts = [random_caption(shown.scenes[row], words, identity=True).text for row in rows.tolist()]
        ids = torch.tensor([token_ids("" if words.random() < CAPTION_DROPOUT else text) for text in texts])
        told = torch.searchsorted(model.text.vocabulary, ids.to(run.device))
        return told, *fine_tune.batch_of(velocity_of, shown, rows.to(run.device), chance)

    def loss_of(told: Tensor, *batch: Tensor) -> Tensor:
        with run.precision():
            return model.tuned.loss(model.text(told), batch)

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adam = torch.optim.AdamW(trained, RATE, betas=(0.9, 0.98), weight_decay=0.0)
    train(
        run,
        "expert",
        model,
        [adam],
        batch_of,
        loss_of,
        steps,
        average=average,
        saved=lambda _step: export(average, output),
    )
    export(average, output)


def export(model: Expert, file: Path) -> None:
    """A LoRA in ComfyUI's names and in fp16, and the expert's own words with their token ids."""
    weights = lora(model.tuned.unet, "diffusion_model.")
    weights |= lora(model.text.clip, "text_encoders.clip_l.transformer.")
    weights[f"toy.{TABLE}"] = model.text.clip.text_model.embeddings.token_embedding.weight[model.new]
    weights = {name: value.detach().half().contiguous().cpu() for name, value in weights.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({**weights, "toy.token_ids": model.text.vocabulary[model.new].int().cpu()}, file)
