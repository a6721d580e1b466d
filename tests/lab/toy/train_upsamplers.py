"""Trains the toy's upsamplers: 32 to 64 with a network of its own for the last step, as Karlo's, and 64 to 128 as DALL-E 2's last."""

import copy
import random
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.ops import disable_weight_init
from lab.toy.fine_tune import fine_tune
from lab.toy.scenes import SIZE
from lab.toy.train_decoder import MOST_WEIGHT, begin, export, level_weights, mixed_precision
from lab.toy.unclip_scenes import MEDIUM
from palimpsest.nodes.unclip.decoder.adm_unet import UpsamplerNetwork
from palimpsest.nodes.unclip.decoder.upsampling import DALLE2_STEPS, KARLO_STEPS, linear_betas
from palimpsest.nodes.unclip.respaced_schedule import RespacedSchedule, respaced
from torch import Tensor, nn

FIRST_STEPS, LAST_STEPS, SECOND_STEPS, FINE_STEPS = 3000, 500, 3500, 4500
BATCH = 4
LEARNING_RATE, LAST_RATE, FINE_RATE = 3e-3, 1e-3, 1.5e-3
FINE_WEIGHT = 10.0  # at most, of a level: what is left to learn is seen under little noise
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
    """As unCLIP Upsample makes the small picture as large as the one it paints."""
    return F.interpolate(low, scale_factor=2, mode="bicubic", antialias=True)


def blurred(low: Tensor, sigma: float) -> Tensor:
    """By a Gaussian of 3 x 3 pixels."""
    side = torch.exp(torch.tensor([-0.5 / max(sigma, 1e-3) ** 2, 0.0, -0.5 / max(sigma, 1e-3) ** 2]))
    kernel = torch.outer(side, side) / side.sum() ** 2
    padded = F.pad(low, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, kernel.expand(3, 1, 3, 3), groups=3)


def degraded(low: Tensor, rng: random.Random) -> Tensor:
    """Blur, noise and coarser pixels in any order, each as strong as chance will have it."""
    sigma, amount, factor = rng.uniform(0.1, 0.9), rng.uniform(0, NOISE), rng.uniform(0.6, 1)

    def coarser(x: Tensor) -> Tensor:
        small = F.interpolate(x, scale_factor=factor, mode="bilinear", antialias=True)
        return F.interpolate(small, x.shape[2:], mode="bilinear")

    changes = [lambda x: blurred(x, sigma), lambda x: x + amount * torch.randn_like(x), coarser]
    if rng.random() < 0.5:
        changes.pop()
    for change in rng.sample(changes, len(changes)):
        low = change(low)
    return low.clamp(-1, 1)


def crops(high: Tensor, count: int, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Pictures in -1..1 and half their size, from bytes [N, 3, H, W]: crops of CROP pixels, at even places."""
    chosen = []
    for _ in range(count):
        row, *places = (rng.randrange(high.shape[0]), *(2 * rng.randrange((s - CROP) // 2 + 1) for s in high.shape[2:]))
        chosen.append(high[row, :, places[0] : places[0] + CROP, places[1] : places[1] + CROP])
    pictures = torch.stack(chosen).float() / 127.5 - 1
    return pictures, F.avg_pool2d(pictures, 2)


def denoising(
    model: UpsamplerNetwork,
    high: Tensor,
    schedule: RespacedSchedule,
    damage: Callable[[Tensor, random.Random], Tensor],
    seed: int,
    eta: float,
    most_weight: float = MOST_WEIGHT,
) -> Callable[[int], Tensor]:
    """At the levels that unCLIP Upsample visits by itself: each is seen the more often."""
    alphas = schedule.alpha_bar
    weights = level_weights(alphas).clamp(max=most_weight)

    def loss_of_step(step: int) -> Tensor:
        rng = random.Random(step)
        torch.manual_seed(seed + step)
        clean, low = crops(high, BATCH, rng)
        low = enlarged(damage(low, rng))
        levels = torch.randint(0, len(alphas), (BATCH,))
        alpha = alphas[levels].float()[:, None, None, None]
        noise = torch.randn_like(clean)
        kept = 1.0
        if eta == 0:
            kept = alpha.sqrt()
            noise = noise * (1 + STRENGTH_NOISE * kept * torch.randn(BATCH, 3, 1, 1))
        noise = noise + COLOUR_NOISE * kept * torch.randn(BATCH, 3, 1, 1)
        x = torch.cat([alpha.sqrt() * clean + (1 - alpha).sqrt() * noise, low], dim=1)
        with mixed_precision():
            eps = model(x, schedule.timesteps[levels])
        return (weights[levels] * (eps.float() - noise).square().mean((1, 2, 3))).mean()

    return loss_of_step


def first_steps(model: UpsamplerNetwork, low: Tensor, schedule: RespacedSchedule) -> Tensor:
    """What all published steps but the last make of small pictures: x of the last step's level."""
    x = torch.randn_like(low)
    for i in range(len(schedule) - 1):
        alpha = float(schedule.alpha_bar[i])
        with mixed_precision():
            eps = model(torch.cat([x, low], dim=1), schedule.timesteps[i].expand(len(x))).float()
        x0 = ((x - (1 - alpha) ** 0.5 * eps) / alpha**0.5).clamp(-1, 1)
        x = schedule.step(i, x, x0, torch.randn_like(x))
    return x


def train_first(cache_folder: Path, large: Tensor, output: Path, seed: int) -> None:
    """large: pictures of SIZE pixels, in bytes."""
    high = torch.cat([F.avg_pool2d(part.float(), SIZE // MEDIUM).round().byte() for part in large.split(64)])
    torch.manual_seed(seed)
    model = new_upsampler()
    average = copy.deepcopy(model).requires_grad_(False)

    def damage(low: Tensor, rng: random.Random) -> Tensor:
        return blurred(low, rng.uniform(0, BLUR))

    schedule = respaced(KARLO_STEPS)
    loss = denoising(model, high, schedule, damage, seed, eta=1.0)
    fine_tune(cache_folder / "upsampler_64.pt", model, loss, FIRST_STEPS, {model: LEARNING_RATE}, average)
    last = copy.deepcopy(average).requires_grad_(True)
    last_average = copy.deepcopy(average).requires_grad_(False)
    alpha = float(schedule.alpha_bar[-1])

    def loss_of_last_step(step: int) -> Tensor:
        rng = random.Random(step)
        torch.manual_seed(seed + step)
        clean, low = crops(high, BATCH, rng)
        low = enlarged(damage(low, rng))
        with torch.no_grad():
            x = first_steps(average, low, schedule)
        with mixed_precision():
            eps = last(torch.cat([x, low], dim=1), torch.zeros(len(x), dtype=torch.long)).float()
        return ((x - (1 - alpha) ** 0.5 * eps) / alpha**0.5 - clean).abs().mean()

    fine_tune(
        cache_folder / "upsampler_64_last.pt", last, loss_of_last_step, LAST_STEPS, {last: LAST_RATE}, last_average
    )
    export({"model_first_steps.": average, "model_last_step.": last_average}, output)


def train_second(cache_folder: Path, large: Tensor, output: Path, seed: int) -> None:
    """large: pictures of SIZE pixels, in bytes."""
    torch.manual_seed(seed)
    model = new_upsampler()
    with torch.no_grad():
        keep_strength(model)
    average = copy.deepcopy(model).requires_grad_(False)
    schedule = respaced(DALLE2_STEPS, linear_betas())
    loss = denoising(model, large, schedule, degraded, seed, eta=0.0)
    fine_tune(cache_folder / "upsampler_128.pt", model, loss, SECOND_STEPS, {model: LEARNING_RATE}, average)
    model = copy.deepcopy(average).requires_grad_(True)
    loss = denoising(model, large, schedule, degraded, seed + SECOND_STEPS, eta=0.0, most_weight=FINE_WEIGHT)
    fine_tune(cache_folder / "upsampler_128_fine.pt", model, loss, FINE_STEPS, {model: FINE_RATE}, average)
    export({"model.": average}, output)
