"""Trains the toy's transformer, a small MMDiT, on the latents of scenes, told by the text encoder that the UNet was trained with.

On one core a step takes 0.32 seconds of the processor, so all of it 75 minutes.
"""

import copy
import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import comfy.ops
import torch
from comfy.ldm.cascade.stage_a import StageA
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper as MMDiT
from lab.toy import scenes
from lab.toy.checkpoint import initialise, load_checkpoint, save_checkpoint
from lab.toy.fine_tune import trained_general
from lab.toy.pack.transformer import CONFIG, LATENT_STD, TEXT_COLUMNS
from lab.toy.train_general import CAPTION_DROPOUT, SCENES, VOCABULARY, latent_pool, token_ids
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import trange

STEPS = 14000
# The rate is constant before these last steps, so that a training that was stopped can be given another end.
DECAY_SHARE = 0.25
BATCH = 16
LEARNING_RATE = 2e-3
EMA_DECAY = 0.999
CONTEXT_GAIN = 6  # of a word's values in attention, which the mean over all tokens makes small
# Of the logit of a step's time. The shape of an object is decided where there is more noise than picture.
TIME_MEAN, TIME_STD = 0.8, 1.0
SAVE_EVERY = 200
REMEMBERED = 100_000  # captions, in some 2 GB


def new_transformer() -> MMDiT:
    model = MMDiT(**CONFIG, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    initialise(model)
    width = model.hidden_size
    for block in model.joint_blocks:
        for stream in (block.context_block, block.x_block):
            nn.init.ones_(stream.attn.ln_q.weight)
            nn.init.ones_(stream.attn.ln_k.weight)
            modulation = stream.adaLN_modulation[-1]
            nn.init.zeros_(modulation.weight)
            nn.init.zeros_(modulation.bias)
            if not stream.pre_only:
                # Open gates before branches that start at nothing: these learn from the first step.
                modulation.bias.data.unflatten(0, (6, width))[[2, 5]] = 1
                for last in (stream.attn.proj, stream.mlp.fc2):
                    nn.init.zeros_(last.weight)
                    nn.init.zeros_(last.bias)
        block.context_block.attn.qkv.weight.data[2 * width :] *= CONTEXT_GAIN
    for layer in (model.final_layer.linear, model.final_layer.adaLN_modulation[-1]):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model.requires_grad_(True)


def text_states(general: Path) -> Callable[[str], Tensor]:
    """A function of a caption that gives its states [TEXT_COLUMNS, WIDTH] in the general model's encoder."""
    model = trained_general(general, VOCABULARY)

    @lru_cache(REMEMBERED)
    @torch.no_grad()
    def states(text: str) -> Tensor:
        return model.encode(torch.tensor([token_ids(text)]))[0, :TEXT_COLUMNS].clone()

    return states


def flow_loss(model: MMDiT, clean: Tensor, context: Tensor) -> Tensor:
    """Latents [B, C, H, W] under random noise at random times; the model answers the velocity from picture to noise."""
    noise = torch.randn_like(clean)
    time = torch.sigmoid(TIME_MEAN + TIME_STD * torch.randn(len(clean)))
    noisy = torch.lerp(clean, noise, time[:, None, None, None])
    return (model(noisy, 1000 * time, context=context) - (noise - clean)).square().mean()


def trapezoid(steps: int) -> Callable[[int], float]:
    decay = DECAY_SHARE * steps
    return lambda step: min(1.0, (step + 1) / 100, max(0.02, (steps - step) / decay))


def batch(step: int, drawn: Sequence[scenes.Scene]) -> tuple[list[int], list[str]]:
    rng = random.Random(step)
    rows = [rng.randrange(SCENES) for _ in range(BATCH)]
    texts = [scenes.training_caption(drawn[row], rng) for row in rows]
    return rows, ["" if rng.random() < CAPTION_DROPOUT else text for text in texts]


def train(cache_folder: Path, vae: StageA, general: Path, output: Path, seed: int, steps: int = STEPS) -> None:
    latents, _, drawn = latent_pool(vae, cache_folder / "latents.pt", seed)
    states = text_states(general)
    torch.manual_seed(seed)
    model = new_transformer()
    average = copy.deepcopy(model).requires_grad_(False)
    parameters = list(model.parameters())
    optimiser = torch.optim.AdamW(parameters, LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, trapezoid(steps))
    state = {"model": model, "average": average, "optimiser": optimiser, "schedule": schedule}
    first = load_checkpoint(cache_folder / "transformer.pt", state)

    running = 1.0
    progress = trange(first, steps, initial=first, total=steps, desc="transformer")
    for step in progress:
        rows, texts = batch(step, drawn)
        torch.manual_seed(seed + step)
        loss = flow_loss(model, latents[rows].float() / LATENT_STD, torch.stack([states(text) for text in texts]))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        decay = min(EMA_DECAY, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), parameters, 1 - decay)
        running += 0.02 * (loss.item() - running)
        progress.set_postfix(loss=f"{running:.4f}", refresh=False)
        if step % SAVE_EVERY == SAVE_EVERY - 1 or step + 1 == steps:
            save_checkpoint(cache_folder / "transformer.pt", state, step + 1)
            export(average, output)


def export(model: MMDiT, file: Path) -> None:
    """SD3's key names, in fp16."""
    save_file({key: value.detach().half().contiguous() for key, value in model.state_dict().items()}, file)
