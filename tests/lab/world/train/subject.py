"""Trains the subject model: the general one gone on with things whose colour a picture shows, of which the text says nothing.

FastComposer's architecture (2305.10431): CLIP's image encoder and the postfuse network put a picture into the text state of its noun;
the text encoder stays as it was. Scenes have one or two things, all of them in one room, and captions name a place drawn at random, so
that the model loses scenes, as the papers' models do by their training on portraits.
"""

from __future__ import annotations

import copy
from pathlib import Path

import comfy.ops
import numpy as np
import torch
import torch.nn.functional as F
from lab.world.kinds import KINDS
from lab.world.pack.general import WIDTH
from lab.world.scenes import NAMES, PALETTE, Thing
from lab.world.studio import REFERENCE, random_caption
from lab.world.train import fine_tune
from lab.world.train.fine_tune import Tuned, text_encoder
from lab.world.train.general import Velocity
from lab.world.train.loop import Batch, Run, initialise, train
from lab.world.train.low_rank import lora
from lab.world.train.studio import COLOURS, Album, studio_pool
from lab.world.train.text import TextEncoder, begin_layers, column_of, token_ids, vocabulary
from palimpsest.nodes.subject.encoder import MEAN, STD, SubjectModel
from safetensors.torch import save_file
from torch import Tensor, nn

ENCODER_STEPS, ENCODER_STEPS_CUDA = 800, 2400
ENCODER_BATCH, ENCODER_BATCH_CUDA = 48, 256
ENCODER_RATE = 1e-3
STEPS, STEPS_CUDA = 800, 1300
BATCH, BATCH_CUDA = 16, 96
RATE, LATER_ENCODER_RATE = 1e-3, 2e-4
PLAIN, EMPTY = 0.1, 0.1  # shares of captions without pictures, and of empty captions, as published
VISION = {
    "model_type": "clip_vision_model",
    "hidden_act": "quick_gelu",
    "hidden_size": 128,
    "num_channels": 3,
    "patch_size": 8,
    "image_size": REFERENCE,
    "intermediate_size": 512,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "projection_dim": WIDTH,
}


class Encoder(nn.Module):
    """The networks that read pictures, and what answers what these show, which is not kept."""

    def __init__(self) -> None:
        super().__init__()
        self.subject = SubjectModel(dict(VISION), torch.float32, torch.device("cpu"), comfy.ops.disable_weight_init)
        self.answers = nn.Linear(WIDTH, len(KINDS) + len(COLOURS))
        initialise(self)
        vision = self.subject.image_encoder.vision_model
        nn.init.normal_(vision.embeddings.class_embedding, std=0.02)
        begin_layers(vision.encoder)
        self.requires_grad_(True)
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))

    def embed(self, pictures: Tensor) -> Tensor:
        return self.subject.image_encoder(pixel_values=(pictures - self.mean) / self.std)[2]

    def told(self, embeddings: Tensor, right: Tensor) -> Tensor:
        """The loss of the answers to kind and colour; `right` are their numbers [N, 2]."""
        sizes = [len(KINDS), len(COLOURS)]
        parts = self.answers(embeddings).split(sizes, 1)
        return torch.stack([F.cross_entropy(part, right[:, k]) for k, part in enumerate(parts)]).sum()


def train_encoder(run: Run, album: Album, text: TextEncoder) -> Encoder:
    """Told what pictures show, and to make of a noun what it is after its colour, where the text encoder knows that."""
    steps, batch = run.size(ENCODER_STEPS, ENCODER_BATCH, ENCODER_STEPS_CUDA, ENCODER_BATCH_CUDA)
    torch.manual_seed(run.seed)
    model = Encoder().to(run.device)
    with torch.no_grad():
        nouns = torch.cat([noun_states(text, [f"a {kind}" for kind in NAMES], NAMES)])
        texts = [
            (f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {kind}", kind) for kind in NAMES for colour in PALETTE
        ]
        coloured = noun_states(text, *zip(*texts, strict=True)).view(len(NAMES), len(PALETTE), WIDTH)

    def batch_of(step: int) -> Batch:
        chance = run.chance(step)
        some = torch.randint(len(album.individuals), (batch,), generator=chance).tolist()
        things = [album.individuals[number] for number in some]
        rows = [(NAMES.index(t.kind), COLOURS.index(t.colour)) for t in things]
        return album.pictures(things, chance), torch.tensor(rows, device=run.device)

    def loss_of(pictures: Tensor, right: Tensor) -> Tensor:
        kinds, colours = right.unbind(1)
        known = colours < len(PALETTE)
        with run.precision():
            embeddings = model.embed(pictures)
            fused = model.subject.postfuse_module(nouns[kinds], embeddings)
            errors = (fused.float() - coloured[kinds, colours.clamp(max=len(PALETTE) - 1)]).square().mean(1)
            return model.told(embeddings.float(), right) + (known * errors).mean()

    adam = torch.optim.AdamW(model.parameters(), ENCODER_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    train(run, "subject_encoder", model, [adam], batch_of, loss_of, steps)
    return model


def noun_states(text: TextEncoder, prompts: list[str], nouns: list[str]) -> Tensor:
    """[N, WIDTH]: what the text encoder makes of one word of each prompt."""
    ids = torch.tensor([token_ids(prompt) for prompt in prompts], device=text.vocabulary.device)
    columns = [column_of(prompt, noun) for prompt, noun in zip(prompts, nouns, strict=True)]
    return text(torch.searchsorted(text.vocabulary, ids))[range(len(columns)), columns]


class Subject(nn.Module):
    def __init__(self, general: Path, encoder: Encoder) -> None:
        super().__init__()
        self.tuned, self.encoder = Tuned(general), encoder
        self.encoder.answers.requires_grad_(False)


def train_subject(run: Run, autoencoder: Path, general: Path, output: Path) -> None:
    steps, batch = run.size(STEPS, BATCH, STEPS_CUDA, BATCH_CUDA)
    text = text_encoder(general, vocabulary()).to(run.device)
    album = Album(run)
    encoder = train_encoder(run, album, text)
    shown = studio_pool(run, autoencoder)
    torch.manual_seed(run.seed)
    model = Subject(general, encoder).to(run.device)
    average = copy.deepcopy(model).requires_grad_(False)
    velocity_of = Velocity.of_sd15(run.device)

    def batch_of(step: int) -> Batch:
        chance, words = run.chance(step), np.random.default_rng((run.seed, step))
        rows = torch.randint(len(shown), (batch,), generator=chance)
        prompts: list[str] = []
        seen: list[tuple[int, int]] = []  # row and column of what a picture shows
        things: list[Thing] = []
        for row, number in enumerate(rows.tolist()):
            scene, kind = shown.scenes[number], words.random()
            prompts.append("" if kind < EMPTY else random_caption(scene, words, identity=False).text)
            if kind >= EMPTY + PLAIN:
                seen += [(row, column_of(prompts[-1], thing.kind)) for thing in scene.things]
                things += scene.things
        # As many pictures in every batch: those that are missing go to a row behind the last.
        missing = 2 * batch - len(seen)
        where = torch.tensor(seen + [(batch, 0)] * missing, device=run.device)
        pictures = album.pictures(things + album.individuals[:1] * missing, chance)
        ids = torch.tensor([token_ids(prompt) for prompt in prompts], device=run.device)
        told = torch.searchsorted(text.vocabulary, ids)
        return told, where, pictures, *fine_tune.batch_of(velocity_of, shown, rows.to(run.device), chance)

    def loss_of(told: Tensor, where: Tensor, pictures: Tensor, *shown: Tensor) -> Tensor:
        with run.precision():
            with torch.no_grad():
                states = F.pad(text(told).float(), (0, 0, 0, 0, 0, 1))
            row, column = where.unbind(1)
            fused = model.encoder.subject.postfuse_module(states[row, column], model.encoder.embed(pictures))
            states = states.index_put((row, column), fused.to(states))
            return model.tuned.loss(states[:-1], shown)

    networks = model.encoder.subject
    fast = [*model.tuned.parameters(), *networks.postfuse_module.parameters()]
    groups = [
        {"params": [parameter for parameter in fast if parameter.requires_grad], "lr": RATE},
        {"params": list(networks.image_encoder.parameters()), "lr": LATER_ENCODER_RATE},
    ]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
    train(
        run,
        "subject",
        model,
        [adam],
        batch_of,
        loss_of,
        steps,
        average=average,
        saved=lambda _step: export(average, output),
    )
    export(average, output)


def export(model: Subject, file: Path) -> None:
    """The UNet's difference as a LoRA in ComfyUI's names, and the networks that read pictures in FastComposer's; all in fp16."""
    weights = {**lora(model.tuned.unet, "diffusion_model."), **model.encoder.subject.state_dict()}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().half().contiguous().cpu() for name, value in weights.items()}, file)
