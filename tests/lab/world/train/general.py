"""Trains the UNet and the text encoder together on latents of the world.

Beside the noise, the UNet is asked what is where: which kind and colour each cell of the picture has, its style and its background, from the
features of one block. The renderer knows the answers, and words get their meaning much earlier by them. What answers is not kept.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel
from lab.world.pack.general import new_unet
from lab.world.scenes import NAMES, PALETTE, PLACES
from lab.world.stream import CELLS
from lab.world.styles import STYLES
from lab.world.train.loop import Batch, Run, gaussian, initialise, train
from lab.world.train.muon import optimisers
from lab.world.train.pool import NOTHING, Pool, chosen, latent_pool
from lab.world.train.text import TextEncoder, vocabulary
from safetensors.torch import save_file
from torch import Tensor, nn

STEPS, STEPS_CUDA = 2400, 6000
BATCH, BATCH_CUDA = 32, 256
SCENES, SCENES_CUDA = 24576, 131072
RATE, OTHER_RATE = 2e-3, 2e-3
CAPTION_DROPOUT = 0.12
ASKED_BLOCK = 7  # of the output blocks, of CELLS x CELLS places
ASKED = 0.1  # weight of the questions
MOST_SNR = 5.0  # beyond which less noise counts no more for the denoised picture (2303.09556)


class Trained(nn.Module):
    """UNet and text encoder, and what answers the questions."""

    def __init__(self, words: Tensor) -> None:
        super().__init__()
        self.unet: UNetModel = new_unet().diffusion_model
        initialise(self.unet)
        for layer in self.unet.modules():
            if isinstance(layer, ResBlock):
                nn.init.zeros_(layer.out_layers[-1].weight)
            elif isinstance(layer, SpatialTransformer):
                nn.init.zeros_(layer.proj_out.weight)
                for block in layer.transformer_blocks:
                    block.attn2.to_v.weight.data *= 8  # the mean over 77 tokens makes a word's value small
        nn.init.zeros_(self.unet.out[-1].weight)
        self.unet.requires_grad_(True)
        self.text = TextEncoder(words)
        channels = self.unet.output_blocks[ASKED_BLOCK][0].out_channels
        self.questions = Questions(channels)
        self.features: list[Tensor] = []
        self.unet.output_blocks[ASKED_BLOCK][-1].register_forward_hook(
            lambda _module, _inputs, output: self.features.append(output)
        )

    def forward(self, noisy: Tensor, timesteps: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The predicted velocity, and the features that are asked."""
        self.features.clear()
        velocity = self.unet(noisy, timesteps, context=self.text(rows))
        return velocity, self.features.pop()


class Questions(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cells = nn.Conv2d(channels, 1 + len(NAMES) + len(PALETTE), 1)
        self.whole = nn.Linear(channels, len(STYLES) + len(PLACES))

    def forward(self, features: Tensor, shown: Pool) -> Tensor:
        """The loss of all answers."""
        features = features.float()
        kinds, colours = self.cells(features).split([1 + len(NAMES), len(PALETTE)], 1)
        style, place = self.whole(features.mean((2, 3))).split([len(STYLES), len(PLACES)], 1)
        things = shown.things.long().flatten(1)
        nothing = torch.full_like(shown.kinds[:, :1], NOTHING)
        kind = torch.cat([nothing, shown.kinds], 1).long().gather(1, things).view(-1, CELLS, CELLS)
        colour = torch.cat([nothing, shown.colours], 1).long().gather(1, things).view(-1, CELLS, CELLS)
        kind = torch.where(kind == NOTHING, 0, kind + 1)
        return (
            F.cross_entropy(kinds, kind)
            + F.cross_entropy(colours, colour, ignore_index=NOTHING)
            + 0.3 * F.cross_entropy(style, shown.styles.long())
            + 0.3 * F.cross_entropy(place, shown.backgrounds.long())
        )


@dataclass(frozen=True)
class Velocity:
    """The velocity loss on SD1.5's schedule, as ComfyUI holds it: sigma = sqrt((1 - alpha) / alpha)."""

    alphas: Tensor

    @classmethod
    def of_sd15(cls, device: torch.device) -> Velocity:
        return cls(1 / (new_unet().model_sampling.sigmas.to(device) ** 2 + 1))

    def noised(self, clean: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noisy latents, their timesteps, the velocity wanted, and the weight of its squared error; the timesteps are spread evenly."""
        count, device, steps = len(clean), clean.device, len(self.alphas)
        spread = (torch.randperm(count, generator=chance) + torch.rand(count, generator=chance)) / count
        timesteps = (spread * steps).long().clamp(max=steps - 1).to(device)
        noise = gaussian(clean, chance)
        alpha = self.alphas[timesteps][:, None, None, None]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        alpha = alpha.flatten()
        weight = (1 + (alpha / (1 - alpha)).clamp(max=MOST_SNR)) * (1 - alpha)
        return noisy, timesteps, velocity, weight


def train_general(run: Run, autoencoder: Path, output: Path) -> None:
    steps, batch = run.size(STEPS, BATCH, STEPS_CUDA, BATCH_CUDA)
    words = vocabulary()
    pool = latent_pool(run, SCENES_CUDA if run.is_cuda else SCENES, words, autoencoder).to(run.device)
    torch.manual_seed(run.seed)
    model = Trained(words).to(run.device, memory_format=torch.channels_last)
    average = copy.deepcopy(model).requires_grad_(False)
    velocity_of = Velocity.of_sd15(run.device)

    def batch_of(step: int) -> Batch:
        chance = run.chance(step)
        shown, rows = chosen(pool, batch, chance, CAPTION_DROPOUT, len(words) - 1)
        return rows, *velocity_of.noised(shown.latents.float(), chance), *shown.parts()

    def loss_of(
        rows: Tensor, noisy: Tensor, timesteps: Tensor, wanted: Tensor, weights: Tensor, *shown: Tensor
    ) -> Tensor:
        with run.precision():
            velocity, features = model(noisy, timesteps.float(), rows)
        errors = (velocity.float() - wanted).square().mean((1, 2, 3))
        return (weights * errors).mean() + ASKED * model.questions(features, Pool(*shown))

    train(
        run,
        "general",
        model,
        optimisers(model, RATE, other_rate=OTHER_RATE),
        batch_of,
        loss_of,
        steps,
        average=average,
        saved=lambda _step: export(average, output),
    )
    export(average, output)


def export(model: Trained, file: Path) -> None:
    """Writes SD1.5's key names in fp16, with the vocabulary's token ids beside its embedding rows."""
    weights = {f"model.diffusion_model.{key}": value for key, value in model.unet.state_dict().items()}
    weights |= {f"cond_stage_model.transformer.{key}": value for key, value in model.text.clip.state_dict().items()}
    del weights["cond_stage_model.transformer.text_projection.weight"]
    weights = {key: value.detach().half().contiguous().cpu() for key, value in weights.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({**weights, "toy.token_ids": model.text.vocabulary.int().cpu()}, file)
