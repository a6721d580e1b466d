"""Trains the expert: the general model gone on with textures it never saw, in a studio of which its captions do not speak."""

import random
from pathlib import Path

import torch
from comfy.ldm.cascade.stage_a import StageA
from lab.toy import scenes
from lab.toy.fine_tune import RANK, fine_tune, latents_of, trained_general
from lab.toy.low_rank import adapt, differences
from lab.toy.train_general import BATCH, CAPTION_DROPOUT, Denoising, Trained, token_ids
from safetensors.torch import save_file

STEPS = 2000
LEARNING_RATE = 2e-3
SCENES = 4096


def train(cache_folder: Path, vae: StageA, general: Path, output: Path, seed: int, steps: int = STEPS) -> None:
    drawn = scenes.sample_scenes(
        SCENES, seed + 3, split="train", textures=scenes.NOVEL_TEXTURES, backgrounds=scenes.STUDIO
    )
    latents = latents_of(drawn, vae)
    torch.manual_seed(seed)
    model = trained_general(general, ["", *{scenes.caption(scene, background=False) for scene in drawn}])
    model.requires_grad_(False)
    adapt(model.unet, RANK)
    adapt(model.text.text_model, RANK)
    model.text.text_model.embeddings.token_embedding.requires_grad_(True)
    denoising = Denoising()

    def loss_of_step(step: int) -> torch.Tensor:
        rng = random.Random(step)
        rows = [rng.randrange(SCENES) for _ in range(BATCH)]
        texts = [scenes.caption(drawn[row], position=rng.random() < 0.8, background=False) for row in rows]
        ids = torch.tensor([token_ids("" if rng.random() < CAPTION_DROPOUT else text) for text in texts])
        torch.manual_seed(seed + step)
        return denoising.loss(model.unet, latents[rows], model.encode(ids))

    fine_tune(cache_folder / "expert.pt", model, loss_of_step, steps, {model: LEARNING_RATE})
    export(model, output)


def export(model: Trained, file: Path) -> None:
    """The low-rank differences from the general model in fp16, and the expert's own words."""
    text = "cond_stage_model.transformer.text_model."
    rows = model.text.text_model.embeddings.token_embedding.weight
    weights = {
        **differences(model.unet, "model.diffusion_model."),
        **differences(model.text.text_model, text),
        f"{text}embeddings.token_embedding.weight": rows,
    }
    weights = {name: value.detach().half().contiguous() for name, value in weights.items()}
    save_file({**weights, "toy.token_ids": model.vocabulary.int()}, file)
