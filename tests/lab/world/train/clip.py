"""Trains the CLIP pair: a text encoder and an image encoder that put a picture and its caption into the same direction.

A batch has scenes of the same kinds next to each other, so that kinds alone do not tell which picture a caption belongs to. Contrast is slow to
teach so small an image encoder; it is also asked what is where, patch by patch, and what captions could say. What answers is not kept.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from comfy.clip_vision import clip_preprocess
from lab.world.pack.general import WIDTH, under
from lab.world.pack.unclip import SEEN, new_image_encoder
from lab.world.scenes import NAMES, PALETTE, PLACES, Scene, Thing, held_out
from lab.world.styles import STYLES
from lab.world.train.general import Questions
from lab.world.train.loop import Batch, Run, initialise, train
from lab.world.train.muon import optimisers
from lab.world.train.pool import NOTHING, Pool, picture_pool, told
from lab.world.train.text import TextEncoder, begin_layers, vocabulary
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

STEPS, STEPS_CUDA = 900, 3700
BATCH, BATCH_CUDA = 64, 512
SCENES, SCENES_CUDA = 16384, 49152
RATE, OTHER_RATE = 2e-3, 2e-3
ALIKE = 4  # scenes of the same kinds, next to each other in a batch
SCALE, MOST_SCALE = 1 / 0.07, 100.0  # of cosines, at the start and at most, as CLIP's
AT_ONCE = 256  # pictures


@dataclass(frozen=True)
class Read:
    """states: [B, TOLD, WIDTH]; pooled: [B, WIDTH], projected; mask: [B, TOLD] bool, up to the end token."""

    states: Tensor
    pooled: Tensor
    mask: Tensor


class Pair(nn.Module):
    def __init__(self, words: Tensor) -> None:
        super().__init__()
        self.text, self.image = TextEncoder(words), new_image_encoder()
        self.text.clip.text_projection.requires_grad_(True)
        initialise(self.image)
        embeddings = self.image.vision_model.embeddings
        nn.init.normal_(embeddings.class_embedding, std=0.1)
        nn.init.normal_(embeddings.position_embedding.weight, std=0.1)
        begin_layers(self.image.vision_model.encoder)
        self.image.requires_grad_(True)
        self.log_scale = nn.Parameter(torch.tensor(math.log(SCALE)))

    @property
    def end(self) -> int:
        """The row of the end token."""
        return len(self.text.vocabulary) - 1

    def read(self, rows: Tensor) -> Read:
        """Of rows of the vocabulary [B, TOLD]."""
        states = self.text(rows)
        end = (rows == self.end).int().argmax(1)
        pooled = self.text.clip.text_projection(states[torch.arange(len(rows), device=rows.device), end])
        return Read(states, pooled, torch.arange(rows.shape[1], device=rows.device) <= end[:, None])

    def see(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Image embeddings [B, WIDTH], not normalised, of `pixels_of`, and states of the patches [B, patches, width]."""
        states, _, embeds, _ = self.image(pixel_values=pixels)
        return embeds, states[:, 1:]


def pixels_of(pictures: Tensor) -> Tensor:
    """What the image encoder takes, of pictures in bytes [B, 3, SEEN, SEEN]."""
    return clip_preprocess(pictures.movedim(1, -1) / 255, SEEN)


class Asked(nn.Module):
    """What the image encoder is asked besides: what is where, of the patches, and what captions name, of the embedding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches = Questions(width // 4)
        self.names = nn.Linear(WIDTH, len(NAMES) * (1 + len(PALETTE)) + len(STYLES) + len(PLACES))
        # A colour that a kind never has in training is no possible answer: that it is rare shall not be learnt.
        never = [[all(held_out(alone(kind, colour, s)) for s in STYLES) for colour in PALETTE] for kind in NAMES]
        self.register_buffer("never", torch.tensor(never))

    def forward(self, embeds: Tensor, states: Tensor, shown: Pool) -> Tensor:
        side = math.isqrt(states.shape[1])
        features = F.pixel_shuffle(states.transpose(1, 2).unflatten(2, (side, side)), 2)
        kinds, colours = len(NAMES), len(PALETTE)
        present, coloured, style, place = self.names(embeds).split(
            [kinds, kinds * colours, len(STYLES), len(PLACES)], 1
        )
        kind = shown.kinds.long()
        there = kind != NOTHING
        wanted = F.one_hot(kind.where(there, kinds), kinds + 1).amax(1)[:, :kinds].float()
        coloured = coloured.unflatten(1, (kinds, colours)).masked_fill(self.never, -torch.inf)
        coloured = coloured.gather(1, kind.where(there, 0)[..., None].expand(-1, -1, colours))
        return (
            self.patches(features, shown)
            + F.binary_cross_entropy_with_logits(present, wanted, reduction="sum") / len(embeds)
            + F.cross_entropy(coloured.flatten(0, 1), shown.colours.long().flatten(), ignore_index=NOTHING)
            + 0.3 * F.cross_entropy(style, shown.styles.long())
            + 0.3 * F.cross_entropy(place, shown.backgrounds.long())
        )


def alone(kind: str, colour: str, style: str) -> Scene:
    return Scene((Thing(kind, colour, 64.0, 80.0, 24.0),), PLACES[0], style)


def by_kinds(pool: Pool) -> Tensor:
    """Rows of the pool, so that scenes of the same kinds stand next to each other."""
    kinds = pool.kinds.long().sort(1).values
    return (kinds[:, 0] * (NOTHING + 1) + kinds[:, 1]).argsort(stable=True)


def alike(pool: Pool, order: Tensor, count: int, chance: torch.Generator) -> Pool:
    """`count` scenes, in runs of ALIKE that follow each other in `order`."""
    starts = torch.randint(len(order), (-(-count // ALIKE),), generator=chance)
    places = (starts[:, None] + torch.arange(ALIKE)).flatten()[:count] % len(order)
    return pool.rows(order[places.to(order.device)])


def contrast(cosines: Tensor, scale: Tensor) -> Tensor:
    """CLIP's loss [texts, pictures]."""
    own = torch.arange(len(cosines), device=cosines.device)
    logits = scale * cosines
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def train_clip(run: Run, output: Path) -> None:
    steps, batch = run.size(STEPS, BATCH, STEPS_CUDA, BATCH_CUDA)
    words = vocabulary()
    pool = scenes_of(run, words).to(run.device)
    order = by_kinds(pool)
    torch.manual_seed(run.seed)
    pair = Pair(words)
    model = nn.ModuleDict({"pair": pair, "asked": Asked(pair.image.visual_projection.in_features)}).to(run.device)
    average = copy.deepcopy(model).requires_grad_(False)

    def batch_of(step: int) -> Batch:
        chance = run.chance(step)
        shown = alike(pool, order, batch, chance)
        return told(shown, chance, 0.0, pair.end), pixels_of(shown.latents), *shown.parts()

    def loss_of(rows: Tensor, pixels: Tensor, *shown: Tensor) -> Tensor:
        with run.precision():
            embeds, states = pair.see(pixels)
            texts = pair.read(rows).pooled
        embeds, states = embeds.float(), states.float()
        cosines = F.normalize(texts.float(), dim=1) @ F.normalize(embeds, dim=1).T
        return contrast(cosines, pair.log_scale.exp().clamp(max=MOST_SCALE)) + model["asked"](
            embeds, states, Pool(*shown)
        )

    def saved(step: int) -> None:
        matched = share_matched(average["pair"], pool, order, run.chance(-1))
        print(f"clip: {100 * matched:.0f} % of captions find their picture among {AT_ONCE}", flush=True)
        export(average["pair"], output)

    parts = optimisers(model, RATE, other_rate=OTHER_RATE)
    train(run, "clip", model, parts, batch_of, loss_of, steps, average=average, saved=saved)
    export(average["pair"], output)


def scenes_of(run: Run, words: Tensor) -> Pool:
    """What CLIP pair, prior and decoder are trained on."""
    return picture_pool(run, SCENES_CUDA if run.is_cuda else SCENES, words)


@torch.no_grad()
def share_matched(pair: Pair, pool: Pool, order: Tensor, chance: torch.Generator) -> float:
    shown = alike(pool, order, AT_ONCE, chance)
    texts = pair.read(told(shown, chance, 0.0, pair.end)).pooled
    cosines = F.normalize(texts, dim=1) @ F.normalize(pair.see(pixels_of(shown.latents))[0], dim=1).T
    return (cosines.argmax(1).cpu() == torch.arange(AT_ONCE)).float().mean().item()


def export(pair: Pair, file: Path) -> None:
    """A published CLIP's names in fp16, with the vocabulary's token ids beside its embedding rows."""
    weights = {**pair.text.clip.state_dict(), **pair.image.state_dict()}
    weights = {name: value.detach().half().contiguous().cpu() for name, value in weights.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({**weights, "toy.token_ids": pair.text.vocabulary.int().cpu()}, file)


def trained_pair(file: Path) -> Pair:
    weights = load_file(file)
    pair = Pair(weights["toy.token_ids"].long())
    own = under("", weights)
    pair.text.clip.load_state_dict({name: value for name, value in own.items() if name.startswith("text_")})
    pair.image.load_state_dict({name: value for name, value in own.items() if name.startswith("vi")})
    return pair.requires_grad_(False)


@torch.no_grad()
def embeddings(pair: Pair, pictures: Tensor) -> Tensor:
    """[N, WIDTH] of pictures in bytes [N, 3, SEEN, SEEN]."""
    return torch.cat([pair.see(pixels_of(part))[0] for part in pictures.split(AT_ONCE)])
