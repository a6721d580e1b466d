"""What the expert and the subject model share: the general model to begin with, and what they are trained on and asked."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from lab.world.pack.general import new_unet, under
from lab.world.train.general import ASKED_BLOCK, Velocity
from lab.world.train.loop import Batch
from lab.world.train.low_rank import adapt
from lab.world.train.pool import NOTHING
from lab.world.train.studio import COLOURS, Studio
from lab.world.train.text import TextEncoder
from safetensors.torch import load_file
from torch import Tensor, nn

RANK = 12
ASKED = 0.1  # weight of the questions
TABLE = "text_model.embeddings.token_embedding.weight"


def text_encoder(general: Path, words: Tensor) -> TextEncoder:
    """The general model's, with a vocabulary of those ids, of which it may not know all: the others start at random."""
    weights = load_file(general)
    known = weights["toy.token_ids"].tolist()
    text = TextEncoder(words)
    own = under("cond_stage_model.transformer.", weights)
    own["text_projection.weight"] = text.clip.text_projection.weight.data  # SD1.5 does not use it
    rows = text.clip.text_model.embeddings.token_embedding.weight.detach().clone()
    for row, token in enumerate(words.tolist()):
        if token in known:
            rows[row] = own[TABLE][known.index(token)]
    text.clip.load_state_dict({**own, TABLE: rows})
    return text.requires_grad_(False)


class Tuned(nn.Module):
    """The general model's UNet with low-rank differences, asked which colour each cell has. What answers is not kept."""

    def __init__(self, general: Path) -> None:
        super().__init__()
        self.unet: UNetModel = new_unet().diffusion_model
        self.unet.load_state_dict(under("model.diffusion_model.", load_file(general)))
        channels = self.unet.output_blocks[ASKED_BLOCK][0].out_channels
        adapt(self.unet, RANK)
        self.questions = nn.Conv2d(channels, len(COLOURS), 1)
        self.features: list[Tensor] = []
        self.unet.output_blocks[ASKED_BLOCK][-1].register_forward_hook(
            lambda _module, _inputs, output: self.features.append(output)
        )

    def loss(self, states: Tensor, batch: Batch) -> Tensor:
        """Told by states [B, COLUMNS, WIDTH]; of a `batch_of`."""
        noisy, timesteps, wanted, weights, colours = batch
        self.features.clear()
        velocity = self.unet(noisy, timesteps.float(), context=states)
        errors = (velocity.float() - wanted).square().mean((1, 2, 3))
        answers = self.questions(self.features.pop().float())
        asked = F.cross_entropy(answers, colours.long(), ignore_index=NOTHING)
        return (weights * errors).mean() + ASKED * asked


def batch_of(velocity_of: Velocity, shown: Studio, rows: Tensor, chance: torch.Generator) -> Batch:
    """Of those rows of the studio."""
    return *velocity_of.noised(shown.latents[rows].float(), chance), shown.colours[rows]
