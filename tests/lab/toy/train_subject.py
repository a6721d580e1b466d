"""Trains the subject model: the general one gone on with "a star" whose colour and texture a reference picture shows.

FastComposer's architecture (2305.10431): CLIP's image encoder and the postfuse network put the picture into the text state of the
noun; the text encoder stays as it was. The papers' subject models lose scenes by their training on portraits. This one loses them because
half of its captions name a background drawn at random, and the others none.
"""

import itertools
import random
from pathlib import Path

import comfy.ops
import torch
import torch.nn.functional as F
from comfy.ldm.cascade.stage_a import StageA
from lab.toy import scenes
from lab.toy.checkpoint import initialise, keep_norm_inputs
from lab.toy.fine_tune import RANK, fine_tune, latents_of, trained_general
from lab.toy.low_rank import adapt, differences
from lab.toy.pack.general import WIDTH
from lab.toy.references import REFERENCE_SIZE, object_words, reference_pictures
from lab.toy.train_general import BATCH, VOCABULARY, Denoising, Trained, token_ids
from palimpsest.nodes.subject.encoder import MEAN, STD, SubjectModel
from safetensors.torch import save_file
from torch import Tensor, nn

PRETRAINING_STEPS = 1500
PRETRAINING_BATCH = 64
PRETRAINING_RATE = 1e-3
STEPS = 1200
LEARNING_RATE = 2e-3
ENCODER_RATE = 2e-4
SCENES = 4096
NOUN_COLUMN = 2  # of "a star": after the start token and the article
PLAIN, EMPTY = 0.1, 0.1  # shares of captions without the picture, and of empty captions, as published
SCALE = 20.0  # of cosines, when captions and pictures are matched
GAIN = 1.7  # of the mean of an object's text states, which the general model then reads best as one state
OBJECTS = [
    scenes.Scene(shape, colour, texture, "centre", "gray")
    for shape, colour, texture in itertools.product(scenes.SHAPES, scenes.COLOURS, scenes.TEXTURES)
]
VISION = {
    "model_type": "clip_vision_model",
    "hidden_act": "quick_gelu",
    "hidden_size": 128,
    "num_channels": 3,
    "patch_size": 8,
    "image_size": REFERENCE_SIZE,
    "intermediate_size": 512,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "projection_dim": WIDTH,
}


class Pair(nn.Module):
    """An image encoder, and what it takes to compare its embeddings with the text encoder's states."""

    def __init__(self) -> None:
        super().__init__()
        self.subject = SubjectModel(dict(VISION), torch.float32, torch.device("cpu"), comfy.ops.disable_weight_init)
        self.text = nn.Linear(WIDTH, WIDTH)
        initialise(self)
        vision = self.subject.image_encoder.vision_model
        nn.init.normal_(vision.embeddings.class_embedding, std=0.02)
        keep_norm_inputs(vision.encoder)
        self.requires_grad_(True)

    def embed(self, pictures: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        return self.subject.image_encoder(pixel_values=(pictures - mean) / std)[2]


def caption(scene: scenes.Scene, rng: random.Random) -> str:
    words = f"a {scene.shape}"
    if rng.random() < 0.8:
        words += f" {scenes.POSITIONS[scene.position][1]}"
    if rng.random() < 0.5:
        words += f", {rng.choice(list(scenes.BACKGROUNDS))} background"
    return words


def pretrain(cache_folder: Path, general: Trained, seed: int) -> Pair:
    """The image encoder, matched with captions of single objects as CLIP's is; the postfuse network, with their text states."""
    ids = torch.tensor([token_ids(object_words(scene)) for scene in OBJECTS])
    with torch.no_grad():
        texts = general.encode(ids)
        said = torch.arange(77) < ids.argmax(1, keepdim=True)  # the end token has the highest id
        said[:, :NOUN_COLUMN] = False
        texts = (texts * said[..., None]).sum(1) / said.sum(1, keepdim=True)
        nouns = general.encode(torch.tensor([token_ids(f"a {scene.shape}") for scene in OBJECTS]))[:, NOUN_COLUMN]
    torch.manual_seed(seed)
    pair = Pair()

    def loss_of_step(step: int) -> Tensor:
        rng = random.Random(step)
        rows = [rng.randrange(len(OBJECTS)) for _ in range(PRETRAINING_BATCH)]
        pictures = pair.embed(reference_pictures([OBJECTS[row] for row in rows], rng))
        cosines = F.normalize(pictures, dim=1) @ F.normalize(pair.text(texts), dim=1).T
        fused = pair.subject.postfuse_module(nouns[rows], pictures)
        return F.cross_entropy(SCALE * cosines, torch.tensor(rows)) + F.mse_loss(fused, GAIN * texts[rows])

    fine_tune(cache_folder / "image_encoder.pt", pair, loss_of_step, PRETRAINING_STEPS, {pair: PRETRAINING_RATE})
    return pair


def train(cache_folder: Path, vae: StageA, general_file: Path, output: Path, seed: int, steps: int = STEPS) -> None:
    drawn = scenes.sample_scenes(SCENES, seed + 4, split="train")
    latents = latents_of(drawn, vae)
    model = trained_general(general_file, VOCABULARY)
    model.requires_grad_(False)
    pair = pretrain(cache_folder, model, seed)
    torch.manual_seed(seed)
    adapt(model.unet, RANK)
    everything = nn.ModuleDict({"unet": model.unet, "subject": pair.subject})
    denoising = Denoising()

    def loss_of_step(step: int) -> Tensor:
        rng = random.Random(step)
        rows = [rng.randrange(SCENES) for _ in range(BATCH)]
        kinds = [rng.random() for _ in rows]
        texts = ["" if kind < EMPTY else caption(drawn[row], rng) for row, kind in zip(rows, kinds, strict=True)]
        states = model.encode(torch.tensor([token_ids(text) for text in texts]))
        seen = torch.tensor([i for i, kind in enumerate(kinds) if kind >= EMPTY + PLAIN])
        pictures = pair.embed(reference_pictures([drawn[rows[i]] for i in seen], rng))
        fused = pair.subject.postfuse_module(states[seen, NOUN_COLUMN], pictures)
        states = states.index_put((seen, torch.full_like(seen, NOUN_COLUMN)), fused)
        torch.manual_seed(seed + step)
        return denoising.loss(model.unet, latents[rows], states)

    rates = {
        model.unet: LEARNING_RATE,
        pair.subject.postfuse_module: LEARNING_RATE,
        pair.subject.image_encoder: ENCODER_RATE,
    }
    fine_tune(cache_folder / "subject.pt", everything, loss_of_step, steps, rates)
    weights = {**differences(model.unet, "model.diffusion_model."), **pair.subject.state_dict()}
    save_file({name: value.detach().half().contiguous() for name, value in weights.items()}, output)
