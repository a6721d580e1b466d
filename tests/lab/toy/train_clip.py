"""Trains the toy's CLIP pair: a text encoder and an image encoder that put a scene and its caption into the same place.

A few hundred steps of contrast alone teach so small an image encoder colours and places but no shapes. So it is also asked for the
object's outline, patch by patch, and for the values that captions name. What answers these is not kept.
"""

import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from comfy.clip_vision import clip_preprocess
from lab.toy import scenes
from lab.toy.checkpoint import initialise, keep_norm_inputs
from lab.toy.fine_tune import fine_tune
from lab.toy.pack.unclip import WIDTH, new_image_encoder, new_text_encoder
from lab.toy.scenes import Scene
from lab.toy.train_general import token_ids
from lab.toy.unclip_scenes import ATTRIBUTES, FAMILIES, MEMBERS, SMALL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

STEPS = 3000
BATCH = 16  # families
LEARNING_RATE = 1e-3
SCALE = 1 / 0.07  # of cosines at the start, as CLIP's; at most 100
TOKENS = 24  # as many as the longest caption has, and some more
END = 49407
PATCH = 4  # pixels
CAPTIONS = [
    scenes.caption(Scene(shape, colour, texture, position, background))
    for shape, colour, texture, position, background in zip(
        *((list(values) * 8)[:8] for values in ATTRIBUTES.values()), strict=True
    )
]
HELD_OUT = torch.tensor(
    [
        [[scenes.held_out(Scene(s, c, "plain", p, "white")) for p in scenes.POSITIONS] for c in scenes.COLOURS]
        for s in scenes.SHAPES
    ]
)
NONE = torch.tensor(False)


@dataclass(frozen=True)
class Read:
    """states: [B, TOKENS, WIDTH]; pooled: [B, WIDTH], projected; mask: [B, TOKENS] bool, up to the end token."""

    states: Tensor
    pooled: Tensor
    mask: Tensor


class Pair(nn.Module):
    """The encoders; the text encoder's token embedding holds the rows of the scenes' vocabulary alone."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.image = new_text_encoder(), new_image_encoder()
        ids = {token for text in ("", *CAPTIONS) for token in token_ids(text)}
        self.register_buffer("vocabulary", torch.tensor(sorted(ids)))
        self.text.text_model.embeddings.token_embedding = nn.Embedding(len(ids), WIDTH)
        self.log_scale = nn.Parameter(torch.tensor(math.log(SCALE)))
        patch, width = PATCH**2, self.image.visual_projection.in_features
        self.outline = nn.Linear(width, patch)
        self.names = nn.Linear(WIDTH, sum(map(len, ATTRIBUTES.values())))
        initialise(self)
        embeddings = self.text.text_model.embeddings
        nn.init.normal_(embeddings.token_embedding.weight)
        nn.init.normal_(embeddings.position_embedding.weight, std=0.1)
        nn.init.normal_(self.image.vision_model.embeddings.class_embedding, std=0.02)
        for encoder in (self.text.text_model.encoder, self.image.vision_model.encoder):
            keep_norm_inputs(encoder)
        self.requires_grad_(True)

    def read(self, captions: list[str]) -> Read:
        """What the text encoder makes of the first TOKENS of 77 tokens: it looks back only, so that the others change nothing."""
        ids = torch.tensor([token_ids(text)[:TOKENS] for text in captions])
        text, model = self.text, self.text.text_model
        x = model.embeddings.token_embedding(torch.searchsorted(self.vocabulary, ids))
        x = x + model.embeddings.position_embedding.weight[:TOKENS]
        ahead = torch.full((TOKENS, TOKENS), -torch.finfo(x.dtype).max).triu_(1)
        states = model.final_layer_norm(model.encoder(x, mask=ahead)[0])
        end = (ids == END).int().argmax(1)
        pooled = text.text_projection(states[torch.arange(len(ids)), end])
        return Read(states, pooled, torch.arange(TOKENS) <= end[:, None])

    def see(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Image embeddings [B, WIDTH], not normalised, of pictures [B, 3, H, W] in 0..1, and the first layer's states [B, patches, width]."""
        pixels = clip_preprocess(images.movedim(1, -1), SMALL)
        _, states, embeds, _ = self.image(pixel_values=pixels, intermediate_output=0)
        return embeds, states[:, 1:]

    def questions(self, embeds: Tensor, states: Tensor, masks: Tensor, codes: Tensor) -> Tensor:
        """Loss of what is asked besides. masks: [B, SMALL, SMALL] in 0..1; codes: [B, attributes].

        What would make a held-out triple is no possible answer: none is learnt to be less likely than another.
        """
        patches = F.pixel_unshuffle(masks[:, None], PATCH).flatten(2).transpose(1, 2)
        loss = F.binary_cross_entropy_with_logits(self.outline(states), patches)
        answers = self.names(embeds).split([len(values) for values in ATTRIBUTES.values()], dim=1)
        shape, colour, _, position, _ = codes.T
        never = {
            "shape": HELD_OUT[:, colour, position].T,
            "colour": HELD_OUT[shape, :, position],
            "position": HELD_OUT[shape, colour],
        }
        for name, logits, own in zip(ATTRIBUTES, answers, codes.T, strict=True):
            loss = loss + F.cross_entropy(logits.masked_fill(never.get(name, NONE), -torch.inf), own)
        return loss


def named(scene: Scene, words: str) -> list[int]:
    """Which value of each attribute a caption names, -1 where it says nothing of it."""
    said = {"position": scenes.POSITIONS[scene.position][1] in words, "background": "background" in words}
    return [values.index(getattr(scene, name)) if said.get(name, True) else -1 for name, values in ATTRIBUTES.items()]


def contrast(cosines: Tensor, fits: Tensor) -> Tensor:
    """CLIP's loss [texts, pictures]. What fits a text besides the picture it was made for counts neither for nor against."""
    own = torch.arange(len(cosines))
    logits = cosines.masked_fill(fits & ~torch.eye(len(cosines), dtype=torch.bool), -torch.inf)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def train(
    cache_folder: Path,
    drawn: list[Scene],
    pictures: Tensor,
    masks: Tensor,
    output: Path,
    seed: int,
) -> None:
    """pictures, masks: of the scenes, in bytes."""
    torch.manual_seed(seed)
    pair = Pair()
    codes = torch.tensor([named(scene, scenes.caption(scene)) for scene in drawn])

    def loss_of_step(step: int) -> Tensor:
        rng = random.Random(step)
        chosen = rng.sample(range(FAMILIES), BATCH)
        rows = [MEMBERS * family + i for family in chosen for i in range(MEMBERS)]
        words = [scenes.training_caption(drawn[row], rng) for row in rows]
        told = torch.tensor([named(drawn[row], text) for row, text in zip(rows, words, strict=True)])
        fits = ((told[:, None] == codes[rows]) | (told[:, None] < 0)).all(2)
        texts = F.normalize(pair.read(words).pooled, dim=1)
        embeds, states = pair.see(pictures[rows].float() / 255)
        cosines = texts @ F.normalize(embeds, dim=1).T
        asked = pair.questions(embeds, states, masks[rows].float() / 255, codes[rows])
        return contrast(pair.log_scale.exp().clamp(max=100) * cosines, fits) + asked

    fine_tune(cache_folder / "clip.pt", pair, loss_of_step, STEPS, {pair: LEARNING_RATE})
    weights = {**pair.text.state_dict(), **pair.image.state_dict()}
    weights = {name: value.detach().half().contiguous() for name, value in weights.items()}
    save_file({**weights, "toy.token_ids": pair.vocabulary.int()}, output)


def trained_pair(file: Path) -> Pair:
    weights = {name: value.float() for name, value in load_file(file).items()}
    pair = Pair()
    pair.text.load_state_dict({name: value for name, value in weights.items() if name.startswith("text_")})
    pair.image.load_state_dict({name: value for name, value in weights.items() if name.startswith("vi")})
    return pair.requires_grad_(False)


@torch.no_grad()
def embeddings(pair: Pair, pictures: Tensor) -> Tensor:
    """[N, WIDTH] of pictures in bytes."""
    return torch.cat([pair.see(part.float() / 255)[0] for part in pictures.split(256)])
