"""Trains the autoencoder: pictures of 128 pixels to 32 x 32 latents of 4 channels, each of mean 0 and variance 1.

It starts as the first principal components of 4 x 4 pixels, so that the first steps already work on what these leave out.
"""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import comfy.latent_formats
import torch
import torch.nn.functional as F
from comfy.ldm.cascade.stage_a import ResBlock, StageA
from lab.world.pack.general import LATENT_CHANNELS, new_vae
from lab.world.render import render
from lab.world.scenes import SIZE, sample_scenes
from lab.world.train.loop import Batch, Run, gaussian, initialise, train
from lab.world.train.muon import optimisers
from lab.world.train.pool import pictures_of
from safetensors.torch import save_file
from torch import Tensor, nn

STEPS, STEPS_CUDA = 3000, 3900
BATCH, BATCH_CUDA = 16, 64
CROP = 64
RATE, OTHER_RATE = 3e-3, 3e-3
LATENT_NOISE = 0.05  # the decoder shall be smooth
SCALED = 0.1  # weight of what keeps the latents' variance near 1
FLOOR = 1e-4  # squared error; below 40 dB a crop is as good as right
PICTURES = 3072
HELD_OUT = 16  # pictures


def train_autoencoder(run: Run, output: Path) -> None:
    steps, batch = run.size(STEPS, BATCH, STEPS_CUDA, BATCH_CUDA)
    pictures = pictures_of(run, PICTURES).movedim(-1, 1).to(run.device)
    torch.manual_seed(run.seed)
    model = principal_components_vae(pictures[:256].cpu().float() / 127.5 - 1)
    model = trainable(model).to(run.device, memory_format=torch.channels_last)
    average = copy.deepcopy(model).requires_grad_(False)
    held_out = render(sample_scenes(HELD_OUT, run.seed, split="held_out")).pictures

    def batch_of(step: int) -> Batch:
        chance = run.chance(step)
        images = crops(pictures, batch, chance).contiguous(memory_format=torch.channels_last)
        like = images.new_empty(batch, LATENT_CHANNELS, CROP // 4, CROP // 4)
        return images, gaussian(like, chance)

    def loss_of(images: Tensor, noise: Tensor) -> Tensor:
        with run.precision():
            latents = model.encode(images)
            shown = model.decode(latents + LATENT_NOISE * noise)
        latents = latents.float()
        errors = ((shown.float() - images) / 2).square().mean((1, 2, 3))
        off = latents.mean((0, 2, 3)).square().mean() + (latents.square().mean((0, 2, 3)) - 1).square().mean()
        return 10 * torch.log10(errors + FLOOR).mean() + SCALED * off

    def saved(step: int) -> None:
        print(f"autoencoder: {decibels(average, held_out):.2f} dB on held-out renders", flush=True)

    parts = optimisers(model, RATE, other_rate=OTHER_RATE)
    train(run, "autoencoder", model, parts, batch_of, loss_of, steps, average=average, saved=saved)
    export(average, pictures, output)


def crops(pictures: Tensor, count: int, chance: torch.Generator) -> Tensor:
    """[count, 3, CROP, CROP] in -1..1 of pictures in bytes."""
    rows = torch.randint(0, len(pictures), (count,), generator=chance).tolist()
    places = torch.randint(0, SIZE - CROP + 1, (count, 2), generator=chance).tolist()
    parts = [pictures[row, :, y : y + CROP, x : x + CROP] for row, (y, x) in zip(rows, places, strict=True)]
    return torch.stack(parts).float() / 127.5 - 1


@torch.no_grad()
def decibels(vae: StageA, pictures: Tensor) -> float:
    """Mean PSNR of pictures [B, 3, H, W] in 0..1."""
    device = next(vae.parameters()).device
    found = []
    for part in pictures.split(16):
        shown = (vae.decode(vae.encode(part.to(device) * 2 - 1)).cpu() + 1) / 2
        found.append(-10 * (shown.clamp(0, 1) - part).square().mean((1, 2, 3)).log10())
    return torch.cat(found).mean().item()


def trainable(vae: StageA) -> StageA:
    """Blocks that pass on what they get at the beginning, by weights of 0 instead of gains of 0."""
    vae.requires_grad_(True)
    for block in vae.modules():
        if isinstance(block, ResBlock):
            block.gammas.data.copy_(torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 1.0]))
            for last in (block.depthwise[1], block.channelwise[2]):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
    vae.vquantizer.requires_grad_(False)
    return vae.eval()  # the batch norm is the bias that the projection lacks


@torch.no_grad()
def principal_components_vae(images: Tensor) -> StageA:
    """An exactly linear autoencoder of unit variance. `images` are [B, 3, H, W] in -1..1.

    Each level rearranges pixels into channels as PixelUnshuffle does, 48 = 4 * 4 * 3 at the widest.
    """
    vae = new_vae()
    initialise(vae)
    project, norm = vae.down_blocks[-1]
    enter, down = vae.in_block[1], vae.down_blocks[1]
    expand, up, leave = vae.up_blocks[0][0], vae.up_blocks[-2], vae.out_block[0]
    enter.weight[:12].zero_()
    enter.bias[:12].zero_()
    enter.weight[range(12), range(12)] = 1
    leave.weight.zero_()
    leave.bias.zero_()
    leave.weight[range(12), range(12)] = 1
    up.weight[:, :12].zero_()
    up.bias[:12].zero_()
    down.weight[:48].zero_()
    down.bias[:48].zero_()
    for k, row, column in itertools.product(range(12), (0, 1), (0, 1)):
        down.weight[4 * k + 2 * row + column, k, 1 + row, 1 + column] = 1
        up.weight[4 * k + 2 * row + column, k, 1 + row, 1 + column] = 1
    up.weight[48:, :12].zero_()
    features = vae.down_blocks[:-1](vae.in_block(images)).permute(0, 2, 3, 1).flatten(0, 2)[:, :48].double()
    mean = features.mean(0)
    variances, axes = (part[..., -LATENT_CHANNELS:] for part in torch.linalg.eigh(features.T.cov()))
    axes = axes * axes.sum(0).sign()
    into, back = axes / variances.sqrt(), (axes * variances.sqrt()).T
    norm.reset_parameters()
    norm.running_var.fill_(1 - norm.eps)
    project.weight.zero_()
    expand.weight.zero_()
    project.weight[:, :48] = into.T[:, :, None, None]
    norm.bias.copy_(-mean @ into)
    expand.weight[:48] = back.T[:, :, None, None]
    expand.bias[:48] = mean
    return vae


@torch.no_grad()
def settled(vae: StageA, pictures: Tensor) -> StageA:
    """The same autoencoder with latents of mean 0 and covariance 1, in SD1.5's scale and as near as may be to the colours of its previews.

    `pictures` in bytes [B, 3, H, W]. The change is linear, so that the pictures stay as they were.
    """
    vae, device = copy.deepcopy(vae), next(vae.parameters()).device
    images = pictures[:512].cpu().float() / 127.5 - 1
    latents = torch.cat([vae.encode(part.to(device)).cpu() for part in images.split(16)])
    latents = latents.permute(0, 2, 3, 1).flatten(0, 2).double()
    mean = latents.mean(0)
    variances, axes = torch.linalg.eigh(latents.T.cov())
    white = axes / variances.sqrt()
    sd15 = comfy.latent_formats.SD15()
    colours = F.avg_pool2d(images, 4).permute(0, 2, 3, 1).flatten(0, 2).double()
    slopes = torch.linalg.lstsq((latents - mean) @ white, colours - colours.mean(0)).solution
    # Three colours leave a direction open: the identity settles it.
    wanted = slopes @ torch.tensor(sd15.latent_rgb_factors).double().T + 1e-6 * torch.eye(LATENT_CHANNELS)
    left, _, right = torch.linalg.svd(wanted)
    into = (white @ left @ right / sd15.scale_factor).float().to(device)  # row vectors: new = (old - mean) @ into
    project, norm = vae.down_blocks[-1]
    expand = vae.up_blocks[0][0]
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    bias = norm.bias - norm.running_mean * gain
    project.weight.copy_((into.T @ (gain[:, None] * project.weight.flatten(1)))[:, :, None, None])
    norm.weight.fill_(1)
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)
    norm.bias.copy_((bias - mean.float().to(device)) @ into)
    weight = expand.weight.flatten(1)
    expand.bias.add_(weight @ mean.float().to(device))
    expand.weight.copy_((weight @ torch.linalg.inv(into).T)[:, :, None, None])
    return vae


def export(vae: StageA, pictures: Tensor, output: Path) -> None:
    weights = settled(vae, pictures).state_dict()
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous().cpu() for name, value in weights.items()}, output)
