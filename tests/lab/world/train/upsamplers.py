"""Trains the upsamplers: 32 to 64 with a network of its own for the last step, as Karlo's, and 64 to 128 as DALL-E 2's last."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.ops import disable_weight_init
from lab.world.train.decoder import begin, export, level_weights
from lab.world.train.loop import Batch, Run, gaussian, train
from lab.world.train.muon import optimisers
from lab.world.train.pool import pictures_of, shrunk
from palimpsest.nodes.unclip.decoder.adm_unet import UpsamplerNetwork
from palimpsest.nodes.unclip.decoder.upsampling import DALLE2_STEPS, KARLO_STEPS, linear_betas
from palimpsest.nodes.unclip.respaced_schedule import RespacedSchedule, respaced
from torch import Tensor, nn

FIRST_STEPS, FIRST_STEPS_CUDA = 450, 2600
LAST_STEPS, LAST_STEPS_CUDA = 80, 650
SECOND_STEPS, SECOND_STEPS_CUDA = 350, 3050
BATCH, BATCH_CUDA = 4, 32
RATE, LAST_RATE = 2e-3, 1e-3
PICTURES, PICTURES_CUDA = 2048, 16384
HALFWAY, HALFWAY_CUDA = 96, 2048  # pictures that the first network has brought to its last step
MOST_WEIGHT = 20.0  # of a level, at most: where there is much noise, the small picture says nearly everything
MEDIUM = 64  # pixels of what the first one makes
CROP = 64  # pixels of the larger picture that are seen at once
# Of a colour of its own in each picture's noise: where x at the first levels is off in colour, the small picture is to be trusted.
COLOUR_NOISE = 0.4
STRENGTH_NOISE = 0.25  # likewise of the noise's strength, where no new noise is added
SHARES = (0, 1, -1, 0.5, -0.5)  # of the small picture in the pairs of channels that pass x on, for each colour
CONSTANT = 4.0
BLUR = 0.6  # pixels, of Karlo's and DALL-E 2's first upsampler
NOISE = 0.04
# Two channels for each group of the norms at full size: with one, all colours of a picture would be lost in them.
CONFIG = {
    "in_channels": 6,
    "out_channels": 3,
    "model_channels": 64,
    "time_width": 64,
    "widths": (64, 32),
    "blocks_per_level": 1,
    "attention": (False, False),
    "context_width": 0,
    "scale_shift": False,
}


def new_upsampler() -> UpsamplerNetwork:
    network = UpsamplerNetwork(dtype=torch.float32, device="cpu", operations=disable_weight_init, **CONFIG)
    begin(network)
    with torch.no_grad():
        pass_x_on(network)
    return network


def pass_x_on(network: UpsamplerNetwork) -> None:
    """Initial weights under which the answer is x, which is nearly eps where there is much noise.

    Channels come in pairs of opposite sign: a norm's group of two keeps their mean, and silu(a) - silu(-a) = a.
    """
    first, last = network.input_blocks[0][0], network.out[-1]
    first.weight.mul_(0.3)
    first.weight[1::2] = -first.weight[::2]
    first.bias.zero_()
    for colour in range(3):
        for i, share in enumerate(SHARES):
            channel = 2 * (len(SHARES) * colour + i)
            centre = torch.zeros_like(first.weight[0])
            centre[colour, 1, 1], centre[3 + colour, 1, 1] = 1, share
            first.weight[channel], first.weight[channel + 1] = centre, -centre
        pair = 2 * len(SHARES) * colour
        last.weight[colour, pair, 1, 1], last.weight[colour, pair + 1, 1, 1] = 1, -1
    for block in network.output_blocks.modules():
        if isinstance(block, ResBlock) and isinstance(block.skip_connection, nn.Conv2d):
            weight = block.skip_connection.weight  # of what comes up, and of the way down's channels behind it
            weight.zero_()
            weight[:, -len(weight) :, 0, 0] = torch.eye(len(weight))
            block.skip_connection.bias.zero_()


def keep_strength(network: UpsamplerNetwork) -> None:
    """A constant in the pairs that pass x on outweighs it in the last norm, and is taken off again behind it.

    Else the norm divides x by its own strength, and without new noise on the way what an answer is too weak by stays in the
    picture as grain. What the norm now loses, the mean of x, is left to training.
    """
    last = network.out[-1]
    *_, block = (block for block in network.output_blocks.modules() if isinstance(block, ResBlock))
    for colour in range(3):
        pair = 2 * len(SHARES) * colour
        block.skip_connection.bias[pair], block.skip_connection.bias[pair + 1] = CONSTANT, -CONSTANT
        last.weight[colour] *= CONSTANT
        last.bias[colour] = -CONSTANT


def enlarged(low: Tensor) -> Tensor:
    """As unCLIP Upsample makes the small picture as large as the one it draws."""
    return F.interpolate(low, scale_factor=2, mode="bicubic", antialias=True)


def halved(high: Tensor) -> Tensor:
    return F.interpolate(high, scale_factor=0.5, mode="bicubic", antialias=True).clamp(-1, 1)


def between(low: float, high: float, chance: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=chance).item()


def blurred(low: Tensor, sigma: float) -> Tensor:
    """By a Gaussian of 3 x 3 pixels."""
    side = torch.exp(torch.tensor([-0.5 / max(sigma, 1e-3) ** 2, 0.0, -0.5 / max(sigma, 1e-3) ** 2]))
    kernel = torch.outer(side, side) / side.sum() ** 2
    padded = F.pad(low, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, kernel.to(low.device).expand(3, 1, 3, 3), groups=3)


def slightly_blurred(low: Tensor, chance: torch.Generator) -> Tensor:
    return blurred(low, between(0, BLUR, chance))


def degraded(low: Tensor, chance: torch.Generator) -> Tensor:
    """Blur, noise and coarser pixels in any order, each as strong as chance will have it."""
    sigma, amount, factor = between(0.1, 0.9, chance), between(0, NOISE, chance), between(0.6, 1, chance)

    def noisier(x: Tensor) -> Tensor:
        return x + amount * gaussian(x, chance)

    def coarser(x: Tensor) -> Tensor:
        small = F.interpolate(x, scale_factor=factor, mode="bilinear", antialias=True)
        return F.interpolate(small, x.shape[2:], mode="bilinear")

    changes = [lambda x: blurred(x, sigma), noisier, *([coarser] if between(0, 1, chance) < 0.5 else [])]
    for i in torch.randperm(len(changes), generator=chance).tolist():
        low = changes[i](low)
    return low.clamp(-1, 1)


def crops(high: Tensor, count: int, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures in -1..1 and half their size, from bytes [N, 3, H, W]: crops of CROP pixels, at even places."""
    rows = torch.randint(len(high), (count,), generator=chance).tolist()
    places = 2 * torch.randint((high.shape[-1] - CROP) // 2 + 1, (count, 2), generator=chance)
    parts = [high[row, :, y : y + CROP, x : x + CROP] for row, (y, x) in zip(rows, places.tolist(), strict=True)]
    pictures = torch.stack(parts).float() / 127.5 - 1
    return pictures, halved(pictures)


def denoising(
    run: Run,
    model: UpsamplerNetwork,
    high: Tensor,
    batch: int,
    schedule: RespacedSchedule,
    damage: Callable[[Tensor, torch.Generator], Tensor],
    eta: float,
) -> tuple[Callable[[int], Batch], Callable[..., Tensor]]:
    """At the levels that unCLIP Upsample visits by itself: each is seen the more often."""
    alphas = schedule.alpha_bar
    weights = level_weights(alphas).clamp(max=MOST_WEIGHT)

    def batch_of(step: int) -> Batch:
        chance = run.chance(step)
        clean, low = crops(high, batch, chance)
        low = enlarged(damage(low, chance))
        levels = torch.randint(len(alphas), (batch,), generator=chance)
        alpha = alphas[levels].float()[:, None, None, None].to(run.device)
        noise = gaussian(clean, chance)
        kept = 1.0
        if eta == 0:
            kept = alpha.sqrt()
            noise = noise * (1 + STRENGTH_NOISE * kept * torch.randn(batch, 3, 1, 1, generator=chance).to(run.device))
        noise = noise + COLOUR_NOISE * kept * torch.randn(batch, 3, 1, 1, generator=chance).to(run.device)
        x = torch.cat([alpha.sqrt() * clean + (1 - alpha).sqrt() * noise, low], dim=1)
        x = x.contiguous(memory_format=torch.channels_last)
        return x, schedule.timesteps[levels].to(run.device), noise, weights[levels].to(run.device)

    def loss_of(x: Tensor, timesteps: Tensor, noise: Tensor, weight: Tensor) -> Tensor:
        with run.precision():
            eps = model(x, timesteps)
        return (weight * (eps.float() - noise).square().mean((1, 2, 3))).mean()

    return batch_of, loss_of


@torch.no_grad()
def halfway(
    run: Run, model: UpsamplerNetwork, low: Tensor, schedule: RespacedSchedule, chance: torch.Generator
) -> Tensor:
    """What all published steps but the last make of small pictures: x of the last step's level."""
    x = gaussian(low, chance)
    for i in range(len(schedule) - 1):
        alpha = float(schedule.alpha_bar[i])
        timesteps = schedule.timesteps[i].expand(len(x)).to(run.device)
        with run.precision():
            eps = model(torch.cat([x, low], dim=1), timesteps).float()
        x0 = ((x - (1 - alpha) ** 0.5 * eps) / alpha**0.5).clamp(-1, 1)
        x = schedule.step(i, x, x0, gaussian(x, chance))
    return x


def train_upsamplers(run: Run, first: Path, second: Path) -> None:
    pictures = pictures_of(run, PICTURES_CUDA if run.is_cuda else PICTURES).movedim(-1, 1).to(run.device)
    train_first(run, torch.cat([shrunk(part, MEDIUM) for part in pictures.split(256)]), first)
    train_second(run, pictures, second)


def train_first(run: Run, high: Tensor, output: Path) -> None:
    """high: pictures of MEDIUM pixels, in bytes."""
    steps, batch = run.size(FIRST_STEPS, BATCH, FIRST_STEPS_CUDA, BATCH_CUDA)
    torch.manual_seed(run.seed)
    model = new_upsampler().to(run.device, memory_format=torch.channels_last)
    average = copy.deepcopy(model).requires_grad_(False)
    schedule = respaced(KARLO_STEPS)
    parts = denoising(run, model, high, batch, schedule, slightly_blurred, eta=1.0)
    train(run, "upsampler_64", model, optimisers(model, RATE, other_rate=RATE), *parts, steps, average=average)

    steps, _ = run.size(LAST_STEPS, BATCH, LAST_STEPS_CUDA, BATCH_CUDA)
    last = copy.deepcopy(average).requires_grad_(True)
    last_average = copy.deepcopy(average).requires_grad_(False)
    count = min(HALFWAY_CUDA if run.is_cuda else HALFWAY, len(high))
    chance = run.chance(-1)
    clean = high[:count].float() / 127.5 - 1
    low = enlarged(slightly_blurred(halved(clean), chance))
    x = torch.cat([halfway(run, average, part, schedule, chance) for part in low.split(BATCH_CUDA)])
    alpha = float(schedule.alpha_bar[-1])

    def batch_of(step: int) -> Batch:
        rows = torch.randint(count, (batch,), generator=run.chance(step)).to(run.device)
        return x[rows], low[rows], clean[rows], torch.zeros_like(rows)

    def loss_of(noisy: Tensor, small: Tensor, wanted: Tensor, timesteps: Tensor) -> Tensor:
        with run.precision():
            eps = last(torch.cat([noisy, small], dim=1), timesteps)
        x0 = (noisy - (1 - alpha) ** 0.5 * eps.float()) / alpha**0.5
        return (x0 - wanted).abs().mean()

    both = optimisers(last, LAST_RATE, other_rate=LAST_RATE)
    train(run, "upsampler_64_last", last, both, batch_of, loss_of, steps, average=last_average)
    export({"model_first_steps.": average, "model_last_step.": last_average}, output)


def train_second(run: Run, high: Tensor, output: Path) -> None:
    """high: pictures of full size, in bytes."""
    steps, batch = run.size(SECOND_STEPS, BATCH, SECOND_STEPS_CUDA, BATCH_CUDA)
    torch.manual_seed(run.seed)
    model = new_upsampler()
    with torch.no_grad():
        keep_strength(model)
    model = model.to(run.device, memory_format=torch.channels_last)
    average = copy.deepcopy(model).requires_grad_(False)
    schedule = respaced(DALLE2_STEPS, linear_betas())
    parts = denoising(run, model, high, batch, schedule, degraded, eta=0.0)
    train(run, "upsampler_128", model, optimisers(model, RATE, other_rate=RATE), *parts, steps, average=average)
    export({"model.": average}, output)
