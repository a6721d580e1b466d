"""Trains the toy's diffusion prior: from what the text encoder made of a caption to the image embedding of its scene."""

import copy
import random
from pathlib import Path

import torch
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from comfy.ops import disable_weight_init
from lab.toy.checkpoint import initialise
from lab.toy.fine_tune import fine_tune
from lab.toy.pack.unclip import WIDTH
from lab.toy.scenes import Scene, training_caption
from lab.toy.train_clip import Pair, Read
from palimpsest.nodes.unclip.prior.checkpoint import BARE, DIFFUSERS, IN_BLOCKS, LAYERS, QKV
from palimpsest.nodes.unclip.prior.transformer import EMBEDDING, PriorTransformer
from palimpsest.nodes.unclip.respaced_schedule import squaredcos_cap_v2
from safetensors.torch import save_file
from torch import Tensor

MODEL_WIDTH, LAYERS_DEEP = 64, 4
STEPS = 1000
BATCH = 128
LEARNING_RATE = 1e-3
TEXT_DROPOUT = 0.2  # as Karlo's


def new_prior() -> PriorTransformer:
    model = PriorTransformer(MODEL_WIDTH, LAYERS_DEEP, WIDTH, torch.float32, torch.float32, "cpu", disable_weight_init)
    initialise(model)
    torch.nn.init.normal_(model.positions, std=0.1)
    torch.nn.init.normal_(model.query, std=0.1)
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
    sees = visible[:, None] & torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    mask = torch.zeros(sees.shape).masked_fill_(~sees, torch.finfo(x.dtype).min)[:, None]
    for block in model.blocks:
        x, _ = block(x, [], mask, x.shape[1])
    return model.out_proj(model.norm_out(x[:, -1]))


def train(cache_folder: Path, drawn: list[Scene], pair: Pair, embeds: Tensor, output: Path, seed: int) -> None:
    """embeds: of the scenes' pictures."""
    mean, std = embeds.mean(0), embeds.std(0)
    clean = (embeds - mean) / std
    alphas = (1 - squaredcos_cap_v2()).cumprod(0).float()
    torch.manual_seed(seed)
    model = new_prior()
    average = copy.deepcopy(model).requires_grad_(False)

    def loss_of_step(step: int) -> Tensor:
        rng = random.Random(step)
        rows = [rng.randrange(len(drawn)) for _ in range(BATCH)]
        words = ["" if rng.random() < TEXT_DROPOUT else training_caption(drawn[row], rng) for row in rows]
        torch.manual_seed(seed + step)
        timesteps = torch.randint(0, len(alphas), (BATCH,))
        alpha = alphas[timesteps][:, None]
        z = alpha.sqrt() * clean[rows] + (1 - alpha).sqrt() * torch.randn(BATCH, WIDTH)
        return (answer(model, z, pair.read(words), timesteps) - clean[rows]).square().mean()

    fine_tune(cache_folder / "prior.pt", model, loss_of_step, STEPS, {model: LEARNING_RATE}, average)
    weights = {**diffusers_layout(average), "clip_mean": mean[None], "clip_std": std[None]}
    save_file({name: value.detach().half().contiguous() for name, value in weights.items()}, output)


def diffusers_layout(model: PriorTransformer) -> dict[str, Tensor]:
    """The names of diffusers' PriorTransformer."""
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
