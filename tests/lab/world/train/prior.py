"""Trains the diffusion prior: from what the text encoder made of a caption to the image embedding of a picture that it fits."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from comfy.ops import disable_weight_init
from lab.world.pack.general import WIDTH
from lab.world.train.clip import Read, embeddings, scenes_of, trained_pair
from lab.world.train.loop import Batch, Run, gaussian, initialise, train
from lab.world.train.muon import optimisers
from lab.world.train.pool import told
from palimpsest.nodes.unclip.prior.checkpoint import BARE, DIFFUSERS, IN_BLOCKS, LAYERS, QKV
from palimpsest.nodes.unclip.prior.transformer import EMBEDDING, PriorTransformer
from palimpsest.nodes.unclip.respaced_schedule import squaredcos_cap_v2
from safetensors.torch import save_file
from torch import Tensor, nn

STEPS, STEPS_CUDA = 700, 2800
BATCH, BATCH_CUDA = 128, 1024
RATE, OTHER_RATE = 2e-3, 2e-3
MODEL_WIDTH, LAYERS_DEEP = 128, 3
TEXT_DROPOUT = 0.1  # as published


def new_prior() -> PriorTransformer:
    model = PriorTransformer(MODEL_WIDTH, LAYERS_DEEP, WIDTH, torch.float32, torch.float32, "cpu", disable_weight_init)
    initialise(model)
    nn.init.normal_(model.positions, std=0.1)
    nn.init.normal_(model.query, std=0.1)
    for block in model.blocks:  # at first they pass on what they get
        nn.init.zeros_(block.proj.weight)
        nn.init.zeros_(block.down.weight)
    return model.requires_grad_(True)


def answer(model: PriorTransformer, z: Tensor, read: Read, timesteps: Tensor) -> Tensor:
    """The clean embeddings [B, WIDTH] for noisy ones at timesteps [B], each with its own text: the whole sequence at once."""
    tokens = read.states.shape[1]
    parts = (
        model.text_proj(read.states),
        model.embedding_proj(read.pooled)[:, None],
        model.time_embed(timestep_embedding(timesteps, model.width))[:, None],
        model.image_proj(z)[:, None],
        model.query.expand(len(z), -1, -1),
    )
    x = torch.cat(parts, dim=1) + torch.cat([model.positions[:, :tokens], model.positions[:, EMBEDDING:]], dim=1)
    visible = torch.cat([read.mask, read.mask.new_ones(len(z), 4)], dim=1)
    sees = visible[:, None] & torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
    mask = torch.zeros(sees.shape, device=x.device).masked_fill_(~sees, torch.finfo(x.dtype).min)[:, None]
    for i, block in enumerate(model.blocks):
        x, _ = block(x, [], mask, 1 if i == len(model.blocks) - 1 else x.shape[1])
    return model.out_proj(model.norm_out(x[:, -1]))


def train_prior(run: Run, clip: Path, output: Path) -> None:
    steps, batch = run.size(STEPS, BATCH, STEPS_CUDA, BATCH_CUDA)
    pair = trained_pair(clip).to(run.device)
    pool = scenes_of(run, pair.text.vocabulary.cpu()).to(run.device)
    embeds = embeddings(pair, pool.latents)
    mean, std = embeds.mean(0), embeds.std(0)
    clean = (embeds - mean) / std
    alphas = (1 - squaredcos_cap_v2()).cumprod(0).float().to(run.device)
    torch.manual_seed(run.seed)
    model = new_prior().to(run.device)
    average = copy.deepcopy(model).requires_grad_(False)

    def batch_of(step: int) -> Batch:
        chance = run.chance(step)
        rows = torch.randint(len(clean), (batch,), generator=chance).to(run.device)
        text = told(pool.rows(rows), chance, TEXT_DROPOUT, pair.end)
        timesteps = torch.randint(len(alphas), (batch,), generator=chance).to(run.device)
        alpha = alphas[timesteps][:, None]
        z = alpha.sqrt() * clean[rows] + (1 - alpha).sqrt() * gaussian(clean[rows], chance)
        return z, text, timesteps, clean[rows]

    def loss_of(z: Tensor, text: Tensor, timesteps: Tensor, wanted: Tensor) -> Tensor:
        return (answer(model, z, pair.read(text), timesteps) - wanted).square().mean()

    def saved(_step: int) -> None:
        export(average, mean, std, output)

    train(
        run, "prior", model, optimisers(model, RATE, other_rate=OTHER_RATE), batch_of, loss_of, steps,
        average=average, saved=saved,
    )  # fmt: skip
    export(average, mean, std, output)


def export(model: PriorTransformer, mean: Tensor, std: Tensor, file: Path) -> None:
    """The names of diffusers' PriorTransformer, in fp16."""
    weights = {**diffusers_layout(model), "clip_mean": mean[None], "clip_std": std[None]}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().half().contiguous().cpu() for name, value in weights.items()}, file)


def diffusers_layout(model: PriorTransformer) -> dict[str, Tensor]:
    own = model.state_dict()
    made = {row[DIFFUSERS]: own[row[0]] for row in BARE}
    for end in ("weight", "bias"):
        made |= {f"{row[DIFFUSERS]}.{end}": own[f"{row[0]}.{end}"] for row in LAYERS}
        for i in range(len(model.blocks)):
            theirs = f"transformer_blocks.{i}."
            made |= {f"{theirs}{row[DIFFUSERS]}.{end}": own[f"blocks.{i}.{row[0]}.{end}"] for row in IN_BLOCKS}
            parts = own[f"blocks.{i}.qkv.{end}"].chunk(3)
            made |= {f"{theirs}{name}.{end}": part for name, part in zip(QKV[DIFFUSERS], parts, strict=True)}
    return made
