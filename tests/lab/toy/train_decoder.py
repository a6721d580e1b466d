"""Trains the toy's unCLIP decoder: 32 x 32 pixels from an image embedding, a caption, or both."""

import copy
import math
import random
from pathlib import Path

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.ops import disable_weight_init
from lab.toy.checkpoint import initialise
from lab.toy.fine_tune import fine_tune
from lab.toy.pack.unclip import WIDTH
from lab.toy.scenes import Scene, training_caption
from lab.toy.train_clip import Pair
from palimpsest.nodes.unclip.decoder.adm_unet import AdmUNet, ContextAttention
from palimpsest.nodes.unclip.decoder.decoder_network import VARIANCE, DecoderNetwork
from palimpsest.nodes.unclip.respaced_schedule import squaredcos_cap_v2
from safetensors.torch import save_file
from torch import Tensor, nn

STEPS, LAST_STEPS = 8000, 4000
BATCH = 16
LEARNING_RATE, LAST_RATE = 1e-3, 5e-4
# Of each component, whose deviation is about 3, in the last steps: what lies between two pictures is painted as the nearer one.
EMBEDDING_NOISE = 2.5
TEXT_DROPOUT, EMBEDDING_DROPOUT = 0.5, 0.1  # each on its own, as published
CONFIG = {
    "in_channels": 3,
    "out_channels": 6,
    "model_channels": 64,
    "widths": (64, 64, 64),
    "blocks_per_level": 1,
    "attention": (False, True, True),
    "time_width": 64,
    "context_width": 64,
    "scale_shift": True,
}
EXTRA_TOKENS = 4
PIXEL_STD, MOST_WEIGHT = 0.5, 100.0


def begin(network: AdmUNet) -> None:
    """Initial weights under which every layer passes on what it gets, and the network says nothing."""
    initialise(network)
    for layer in network.modules():
        if isinstance(layer, ResBlock):
            nn.init.zeros_(layer.out_layers[-1].weight)
        elif isinstance(layer, ContextAttention):
            nn.init.zeros_(layer.proj_out.weight)
    nn.init.zeros_(network.out[-1].weight)
    network.requires_grad_(True)


def new_decoder() -> DecoderNetwork:
    network = DecoderNetwork(
        WIDTH, WIDTH, EXTRA_TOKENS, dtype=torch.float32, device="cpu", operations=disable_weight_init, **CONFIG
    )
    begin(network)
    nn.init.zeros_(network.cf_param)
    return network


def level_weights(alphas: Tensor) -> Tensor:
    """Of the squared error of eps at each level, as 2206.00364 weights the denoised picture.

    What is decided under much noise, places and colours, is then learnt in time.
    """
    return (1 + (1 / alphas - 1) / PIXEL_STD**2).clamp(max=MOST_WEIGHT).float()


class LearnedRange:
    """Training on the cosine schedule: the noise by its squared error, its variance by the variational bound (2102.09672, eq. 16)."""

    def __init__(self) -> None:
        betas = squaredcos_cap_v2()
        self.alphas = (1 - betas).cumprod(0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), self.alphas[:-1]])
        self.posterior = (1 - before) / (1 - self.alphas) * betas
        # Of the posterior's mean: by how much it is off where the predicted noise is off by 1.
        self.gain = betas / ((1 - betas) * (1 - self.alphas)).sqrt()
        self.low, self.high = self.posterior.clamp_min(1e-20).log(), betas.log()
        self.weights = level_weights(self.alphas)

    def noised(self, clean: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        alpha = self.alphas[timesteps].float()[:, None, None, None]
        return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise

    def bound(self, fraction: Tensor, error: Tensor, timesteps: Tensor) -> Tensor:
        """Bits per dimension [B] between the step back and the network's, where there is one with noise.

        fraction: of the network; error: of its noise, which this bound does not train.
        """
        low, high, gain = (
            values[timesteps].float()[:, None, None, None] for values in (self.low, self.high, self.gain)
        )
        log_variance = low + (fraction + 1) / 2 * (high - low)
        off = (gain * error.detach()).square()
        kl = 0.5 * (log_variance - low - 1 + (low - log_variance).exp() + off * (-log_variance).exp())
        return kl.mean((1, 2, 3)) / math.log(2) * (timesteps > 0)


def train(
    cache_folder: Path,
    drawn: list[Scene],
    small: Tensor,
    pair: Pair,
    embeds: Tensor,
    output: Path,
    seed: int,
) -> None:
    """small: the scenes in bytes [N, 3, 32, 32]; embeds: the image embeddings of the same pictures."""
    diffusion = LearnedRange()
    torch.manual_seed(seed)
    model = new_decoder()
    average = copy.deepcopy(model).requires_grad_(False)

    def loss_of_step(network: DecoderNetwork, step: int, most_noise: float) -> Tensor:
        rng = random.Random(step)
        rows = [rng.randrange(len(drawn)) for _ in range(BATCH)]
        words = ["" if rng.random() < TEXT_DROPOUT else training_caption(drawn[row], rng) for row in rows]
        unseen = torch.tensor([[rng.random() < EMBEDDING_DROPOUT] for _ in rows])
        torch.manual_seed(seed + step)
        timesteps = torch.randint(0, len(diffusion.alphas), (BATCH,))
        clean = small[rows].float() / 127.5 - 1
        noise = torch.randn_like(clean)
        seen = embeds[rows] + most_noise * torch.rand(BATCH, 1) * torch.randn(BATCH, WIDTH)
        read = pair.read(words)
        found: list[Tensor] = []
        with mixed_precision():
            eps = network(
                diffusion.noised(clean, timesteps, noise),
                timesteps,
                read.states,
                transformer_options={VARIANCE: lambda variance, _options: found.append(variance)},
                text_mask=read.mask.float(),
                text_embed=read.pooled,
                image_embed=torch.where(unseen, network.cf_param, seen),
            )
        error = eps.float() - noise
        squared = error.square().mean((1, 2, 3))
        return (diffusion.weights[timesteps] * squared).mean() + diffusion.bound(
            found[0].float(), error, timesteps
        ).mean()

    fine_tune(
        cache_folder / "decoder.pt",
        model,
        lambda step: loss_of_step(model, step, 0.0),
        STEPS,
        {model: LEARNING_RATE},
        average,
    )
    last = copy.deepcopy(average).requires_grad_(True)
    fine_tune(
        cache_folder / "decoder_last.pt",
        last,
        lambda step: loss_of_step(last, STEPS + step, EMBEDDING_NOISE),
        LAST_STEPS,
        {last: LAST_RATE},
        average,
    )
    export({"model.": average}, output)


def mixed_precision() -> torch.autocast:
    """bfloat16 where the processor calculates in it."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported())


def export(networks: dict[str, AdmUNet], file: Path) -> None:
    """Karlo's layout in fp16, each network under its prefix: its attention's matrices are 1x1 convolutions."""
    one_by_one = ("qkv.weight", "encoder_kv.weight", "proj_out.weight")
    save_file(
        {
            prefix + name: (value[..., None] if name.endswith(one_by_one) else value).detach().half().contiguous()
            for prefix, network in networks.items()
            for name, value in network.state_dict().items()
        },
        file,
    )
