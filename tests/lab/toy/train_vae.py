"""Trains the toy autoencoder (8x smaller, 16 channels) on crops of scenes and photographs."""

import itertools
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from comfy.latent_formats import SD3
from comfy.ldm.cascade.stage_a import ResBlock, StageA
from lab.toy import photos
from lab.toy.checkpoint import initialise, load_checkpoint, save_checkpoint, warmup_cosine
from lab.toy.pack.general import LATENT_CHANNELS, new_vae
from lab.toy.sampling import psnr
from lab.toy.scenes import render, sample_scenes
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import trange

STEPS = 800
BATCH = 8
CROP = 64
LEARNING_RATE = 6e-4
# Of the latents as the model sees them. Smaller than one: at SD1.5's largest sigma the layout must be hidden, or the model
# reads it off the noise instead of the words; flat areas spread a latent's mean over all of its 256 cells.
LATENT_STD = 0.3
LATENT_NOISE = 0.02 * LATENT_STD  # the decoder shall be smooth


def scene_pool(count: int, seed: int) -> Tensor:
    """[count, 3, 128, 128] uint8 training scenes."""
    scenes = sample_scenes(count, seed, split="train")
    return torch.cat([_bytes(render(scenes[i : i + 64])[0]) for i in range(0, count, 64)])


def photo_pool(count: int, seed: int) -> Tensor:
    rng = random.Random(seed)
    return _bytes(torch.stack([photos.random_crop(rng)[0] for _ in range(count)]))


def _bytes(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)


def _recoloured(image: Tensor, rng: random.Random) -> Tensor:
    """A dozen photographs are few: other colours make them more."""
    if rng.random() < 0.3:
        return image
    if rng.random() < 0.4:
        return photos.LOOKS[rng.choice(list(photos.LOOKS))](image)
    image = image[rng.sample(range(3), 3)]
    image = image.clamp(min=0) ** rng.uniform(0.7, 1.4)
    gray = image.mean(0, keepdim=True)
    return torch.lerp(gray, image, rng.uniform(0.4, 1.2)).clamp(0, 1)


def _batch(scenes: Tensor, crops: Tensor, step: int) -> Tensor:
    """[BATCH, 3, CROP, CROP] in -1..1; a function of the step alone, so that a resumed run repeats it."""
    rng = random.Random(step)
    images = []
    for i in range(BATCH):
        is_photo = i % 2 == 1
        pool = crops if is_photo else scenes
        image = pool[rng.randrange(len(pool))].float() / 255
        top, left = rng.randint(0, 128 - CROP), rng.randint(0, 128 - CROP)
        image = image[:, top : top + CROP, left : left + CROP]
        if is_photo:
            image = _recoloured(image.transpose(1, 2) if rng.random() < 0.3 else image, rng)
            image = image.flip(-1) if rng.random() < 0.5 else image
        images.append(image)
    return torch.stack(images) * 2 - 1


def reconstruct(vae: StageA, images: Tensor) -> Tensor:
    """Images in 0..1 through encoder and decoder."""
    with torch.no_grad():
        return ((vae.decode(vae.encode(images * 2 - 1)) + 1) / 2).clamp(0, 1)


@torch.no_grad()
def principal_components_vae(images: Tensor) -> StageA:
    """An exactly linear autoencoder: the first 16 principal components of 8x8 patches, in SD3's latent format.

    Every stage rearranges pixels into channels as PixelUnshuffle does, 192 = 8 * 8 * 3 at the widest, and the residual
    blocks are closed by their gammas. `images` are [B, 3, H, W] in -1..1.
    """
    vae = new_vae()
    initialise(vae)
    enter, downs, project, norm = vae.in_block[1], (vae.down_blocks[1], vae.down_blocks[3]), *vae.down_blocks[-1]
    expand, ups, leave = vae.up_blocks[0][0], (vae.up_blocks[-2], vae.up_blocks[-4]), vae.out_block[0]
    for layer in (enter, leave, *downs, *ups):
        layer.weight.zero_()
        layer.bias.zero_()
    enter.weight[range(12), range(12)] = 1
    leave.weight[range(12), range(12)] = 1
    for down, up, channels in zip(downs, ups, (12, 48), strict=True):
        nn.init.normal_(up.weight[:, channels:], std=0.02)  # channels that no pixel takes yet
        for k, row, column in itertools.product(range(channels), (0, 1), (0, 1)):
            down.weight[4 * k + 2 * row + column, k, 1 + row, 1 + column] = 1
            up.weight[4 * k + 2 * row + column, k, 1 + row, 1 + column] = 1

    features = vae.down_blocks[:-1](vae.in_block(images)).permute(0, 2, 3, 1).flatten(0, 2).double()
    mean = features.mean(0)
    variances, axes = (part[..., -LATENT_CHANNELS:] for part in torch.linalg.eigh(features.T.cov()))
    axes = axes * axes.sum(0).sign()
    # Half way to whitening: the UNet then spends less on noise-like detail than on layout and colour.
    scale = variances**-0.25
    scale *= LATENT_STD / (variances * scale**2).mean().sqrt()
    # A rotation, so that the channels show about the colours SD3's live previews expect of them (orthogonal Procrustes).
    sd3 = SD3()
    colours = F.avg_pool2d(images, 8).permute(0, 2, 3, 1).flatten(0, 2).double()
    slopes = torch.linalg.lstsq((features - mean) @ axes * scale, colours - colours.mean(0)).solution
    # Three colours leave thirteen directions open: the identity settles them, and a seed always gives the same latents.
    turn = slopes @ torch.tensor(sd3.latent_rgb_factors).double().T + 1e-6 * torch.eye(LATENT_CHANNELS)
    left, _, right = torch.linalg.svd(turn)
    into = (axes * scale) @ left @ right / sd3.scale_factor  # latent = (features - mean) @ into + shift_factor
    back = (left @ right).T @ (axes / scale).T * sd3.scale_factor
    # The batch norm, always in evaluation mode, is the bias that the projection lacks.
    norm.reset_parameters()
    norm.running_var.fill_(1 - norm.eps)
    project.weight.copy_(into.T[:, :, None, None])
    norm.bias.copy_(sd3.shift_factor - mean @ into)
    expand.weight.copy_(back.T[:, :, None, None])
    expand.bias.copy_(mean - sd3.shift_factor * back.sum(0))
    return vae


@torch.no_grad()
def linear_encoder(vae: StageA) -> tuple[Tensor, Tensor]:
    """The whole encoder as one 8x8 convolution of stride 8 (weight, bias): what it is, and some forty times faster."""
    bias = vae.encode(torch.zeros(1, 3, 8, 8))[0, :, 0, 0]
    impulses = vae.encode(torch.eye(192).reshape(192, 3, 8, 8))[:, :, 0, 0] - bias
    return impulses.T.reshape(LATENT_CHANNELS, 3, 8, 8), bias


def start(seed: int) -> tuple[StageA, Tensor, Tensor]:
    """The linear autoencoder, and the pools of scenes and photographs (uint8) that its decoder goes on to learn from."""
    torch.manual_seed(seed)
    scenes, crops = scene_pool(4096, seed), photo_pool(1536, seed)
    return principal_components_vae(torch.cat([scenes[:320], crops[:160]]).float() / 127.5 - 1), scenes, crops


def train(cache: Path, output: Path, seed: int, steps: int = STEPS) -> StageA:
    """Trains the decoder alone, so the latents stay linear in the pixels and do not depend on this training."""
    vae, scenes, crops = start(seed)
    decoder = nn.ModuleList([vae.up_blocks, vae.out_block]).requires_grad_(True)
    for block in vae.up_blocks:
        if isinstance(block, ResBlock):
            block.gammas.requires_grad_(True)
    held_out = render(sample_scenes(16, seed, split="held_out"))[0]
    photo = photos.held_out_photo()
    optimiser = torch.optim.AdamW(decoder.parameters(), LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, warmup_cosine(100, steps))
    state = {"model": vae, "optimiser": optimiser, "schedule": schedule}
    first = load_checkpoint(cache / "vae.pt", state)
    progress = trange(first, steps, initial=first, total=steps, desc="VAE")
    for step in progress:
        images = _batch(scenes, crops, step)
        torch.manual_seed(seed + step)
        with torch.no_grad():
            latents = vae.encode(images)
            latents += LATENT_NOISE * torch.randn_like(latents)
        error = vae.decode(latents) - images
        # Root-mean-square by picture: hard photographs must not drown out the scenes' last decibels.
        loss = (error.square().flatten(1).mean(1) + 1e-7).sqrt().mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 99 or step + 1 == steps:
            save_checkpoint(cache / "vae.pt", state, step + 1)
            progress.write(
                f"VAE step {step + 1}: held-out scenes {psnr(reconstruct(vae, held_out), held_out):.2f} dB, "
                f"held-out photograph {psnr(reconstruct(vae, photo), photo):.2f} dB"
            )
    export(vae, output)
    return vae


def export(vae: StageA, output: Path) -> None:
    save_file({key: value.half().contiguous() for key, value in vae.state_dict().items()}, output)
