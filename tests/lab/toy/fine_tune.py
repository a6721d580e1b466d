"""What the trainings that start from the general model share: its weights to begin with, and the loop."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from comfy.latent_formats import SD3
from comfy.ldm.cascade.stage_a import StageA
from lab.toy.checkpoint import load_checkpoint, save_checkpoint, warmup_cosine
from lab.toy.scenes import Scene, render
from lab.toy.train_general import Trained
from lab.toy.train_vae import linear_encoder
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import trange

RANK = 16
SAVE_EVERY = 250
EMA_DECAY = 0.999


def trained_general(file: Path, captions: Iterable[str]) -> Trained:
    """The general model with a vocabulary of its own: the words of `captions`, of which it may not know all."""
    weights = load_file(file)
    model = Trained(captions)
    model.unet.load_state_dict(_under("model.diffusion_model.", weights))
    text = _under("cond_stage_model.transformer.", weights)
    known = weights["toy.token_ids"].tolist()
    rows = model.text.text_model.embeddings.token_embedding.weight.data
    for row, token in enumerate(model.vocabulary.tolist()):
        if token in known:
            rows[row] = text["text_model.embeddings.token_embedding.weight"][known.index(token)]
    del text["text_model.embeddings.token_embedding.weight"]
    model.text.load_state_dict(text, strict=False)
    return model


def _under(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value.float() for name, value in weights.items() if name.startswith(prefix)}


def latents_of(scenes: list[Scene], vae: StageA) -> Tensor:
    """[B, 16, 16, 16] in the model's space."""
    weight, bias = linear_encoder(vae)
    latents = [
        F.conv2d(render(scenes[i : i + 64])[0] * 2 - 1, weight, bias, stride=8)
        for i in trange(0, len(scenes), 64, desc="encoding scenes")
    ]
    return SD3().process_in(torch.cat(latents))


def fine_tune(
    cache_file: Path,
    model: nn.Module,
    loss_of_step: Callable[[int], Tensor],
    steps: int,
    learning_rates: dict[nn.Module, float],
    average: nn.Module | None = None,
) -> None:
    """Trains what of those parts of model asks for gradients; its state, and so its progress, is in cache_file.

    loss_of_step is a function of the step alone, so that a resumed run repeats it. average: a copy of model that follows it.
    """
    groups = [
        {"params": [p for p in part.parameters() if p.requires_grad], "lr": rate}
        for part, rate in learning_rates.items()
    ]
    parameters = [p for group in groups for p in group["params"]]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, warmup_cosine(100, steps))
    state = {"model": model, "optimiser": optimiser, "schedule": schedule}
    if average is not None:
        state["average"] = average
    first = load_checkpoint(cache_file, state)
    running = 0.0
    progress = trange(first, steps, initial=first, total=steps, desc=cache_file.stem)
    for step in progress:
        loss = loss_of_step(step)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if average is not None:
            decay = min(EMA_DECAY, (step + 1) / (step + 10))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        running += max(0.02, 1 / (step - first + 1)) * (loss.item() - running)
        progress.set_postfix(loss=f"{running:.4f}", refresh=False)
        if step % SAVE_EVERY == SAVE_EVERY - 1 or step + 1 == steps:
            save_checkpoint(cache_file, state, step + 1)
