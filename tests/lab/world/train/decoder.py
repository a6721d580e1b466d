"""Trains the unCLIP decoder: pictures of DRAWN pixels from an image embedding, a caption, or both.

It is told by the embeddings of pictures, hardly disturbed: what it makes of another vector, such as a text's embedding, it has not learnt. As the
UNet of the general model, it is also asked what is where. What answers is not kept.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.ops import disable_weight_init
from lab.world.pack.general import WIDTH
from lab.world.pack.unclip import DRAWN
from lab.world.train.clip import embeddings, scenes_of, trained_pair
from lab.world.train.general import ASKED, Questions
from lab.world.train.loop import Batch, Run, gaussian, initialise, train
from lab.world.train.muon import optimisers
from lab.world.train.pool import Pool, shrunk, told
from palimpsest.nodes.unclip.decoder.adm_unet import AdmUNet, ContextAttention
from palimpsest.nodes.unclip.decoder.decoder_network import VARIANCE, DecoderNetwork
from palimpsest.nodes.unclip.respaced_schedule import squaredcos_cap_v2
from safetensors.torch import save_file
from torch import Tensor, nn

STEPS, STEPS_CUDA = 1000, 6700
BATCH, BATCH_CUDA = 16, 128
RATE, OTHER_RATE = 2e-3, 2e-3
TEXT_DROPOUT, EMBEDDING_DROPOUT = 0.5, 0.1  # each on its own, as published
# At most, in deviations of the embeddings: what lies between two pictures, as in a morph, is drawn as one of them.
EMBEDDING_NOISE = 0.3
ASKED_BLOCK = 3  # of the output blocks, of CELLS x CELLS places
# Two channels at least for each of a norm's groups where the answer is read, else it would lose the colour of the whole picture.
CONFIG = {
    "in_channels": 3,
    "out_channels": 6,
    "model_channels": 64,
    "widths": (64, 32, 128),
    "blocks_per_level": 1,
    "attention": (False, False, True),
    "time_width": 64,
    "context_width": 64,
    "scale_shift": True,
}
EXTRA_TOKENS = 4
PIXEL_STD, MOST_WEIGHT = 0.5, 100.0


class Trained(nn.Module):
    """The decoder, and what answers the questions."""

    def __init__(self) -> None:
        super().__init__()
        self.network = new_decoder()
        block = self.network.output_blocks[ASKED_BLOCK][0]
        self.questions = Questions(block.out_channels)
        self.features: list[Tensor] = []
        block.register_forward_hook(lambda _module, _inputs, output: self.features.append(output))

    def forward(self, noisy: Tensor, timesteps: Tensor, **told_by: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The predicted noise, where the variance lies (-1 to 1), and the features that are asked."""
        self.features.clear()
        found: list[Tensor] = []
        options = {VARIANCE: lambda variance, _options: found.append(variance)}
        eps = self.network(noisy, timesteps, transformer_options=options, **told_by)
        return eps, found[0], self.features.pop()


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


@dataclass(frozen=True)
class LearnedRange:
    """The noise by its squared error, its variance by the variational bound (2102.09672, eq. 16); of each level, [T]."""

    alphas: Tensor
    low: Tensor  # the logarithm of the posterior's variance
    high: Tensor  # that of beta
    gain: Tensor  # by how much the posterior's mean is off where the predicted noise is off by 1
    weights: Tensor

    @classmethod
    def of_cosine(cls, device: torch.device) -> LearnedRange:
        betas = squaredcos_cap_v2()
        alphas = (1 - betas).cumprod(0)
        before = torch.cat([alphas.new_ones(1), alphas[:-1]])
        posterior = (1 - before) / (1 - alphas) * betas
        values = (
            alphas,
            posterior.clamp_min(1e-20).log(),
            betas.log(),
            betas / ((1 - betas) * (1 - alphas)).sqrt(),
            level_weights(alphas),
        )
        return cls(*(value.float().to(device) for value in values))

    def noised(self, clean: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy pictures, their timesteps, which are spread evenly, and the noise."""
        count, device = len(clean), clean.device
        spread = (torch.randperm(count, generator=chance) + torch.rand(count, generator=chance)) / count
        timesteps = (spread * len(self.alphas)).long().clamp(max=len(self.alphas) - 1).to(device)
        noise = gaussian(clean, chance)
        alpha = self.alphas[timesteps][:, None, None, None]
        return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise, timesteps, noise

    def loss(self, error: Tensor, fraction: Tensor, timesteps: Tensor) -> Tensor:
        """error: of the noise; fraction: where the variance lies between its bounds."""
        squared = self.weights[timesteps] * error.square().mean((1, 2, 3))
        return (squared + self._bound(fraction, error.detach(), timesteps)).mean()

    def _bound(self, fraction: Tensor, error: Tensor, timesteps: Tensor) -> Tensor:
        """Bits per dimension [B] between the step back and the network's, where there is one with noise."""
        low, high, gain = (values[timesteps][:, None, None, None] for values in (self.low, self.high, self.gain))
        log_variance = low + (fraction + 1) / 2 * (high - low)
        off = (gain * error).square()
        kl = 0.5 * (log_variance - low - 1 + (low - log_variance).exp() + off * (-log_variance).exp())
        return kl.mean((1, 2, 3)) / math.log(2) * (timesteps > 0)


def train_decoder(run: Run, clip: Path, output: Path) -> None:
    steps, batch = run.size(STEPS, BATCH, STEPS_CUDA, BATCH_CUDA)
    pair = trained_pair(clip).to(run.device)
    pool = scenes_of(run, pair.text.vocabulary.cpu()).to(run.device)
    embeds = embeddings(pair, pool.latents)
    std = embeds.std(0)
    diffusion = LearnedRange.of_cosine(run.device)
    torch.manual_seed(run.seed)
    model = Trained().to(run.device, memory_format=torch.channels_last)
    average = copy.deepcopy(model).requires_grad_(False)

    def batch_of(step: int) -> Batch:
        chance = run.chance(step)
        rows = torch.randint(len(embeds), (batch,), generator=chance).to(run.device)
        shown = pool.rows(rows)
        text = told(shown, chance, TEXT_DROPOUT, pair.end)
        unseen = (torch.rand(batch, 1, generator=chance) < EMBEDDING_DROPOUT).to(run.device)
        strength = EMBEDDING_NOISE * torch.rand(batch, 1, generator=chance)
        seen = embeds[rows] + (strength * torch.randn(batch, WIDTH, generator=chance)).to(run.device) * std
        clean = shrunk(shown.latents, DRAWN).float() / 127.5 - 1
        noised = diffusion.noised(clean.contiguous(memory_format=torch.channels_last), chance)
        return text, seen, unseen, *noised, *shown.parts()

    def loss_of(
        text: Tensor,
        seen: Tensor,
        unseen: Tensor,
        noisy: Tensor,
        timesteps: Tensor,
        noise: Tensor,
        *shown: Tensor,
    ) -> Tensor:
        read = pair.read(text)
        with run.precision():
            eps, fraction, features = model(
                noisy,
                timesteps,
                context=read.states,
                text_mask=read.mask.float(),
                text_embed=read.pooled,
                image_embed=torch.where(unseen, model.network.cf_param, seen),
            )
        asked = model.questions(features, Pool(*shown))
        return diffusion.loss(eps.float() - noise, fraction.float(), timesteps) + ASKED * asked

    train(
        run,
        "decoder",
        model,
        optimisers(model, RATE, other_rate=OTHER_RATE),
        batch_of,
        loss_of,
        steps,
        average=average,
        saved=lambda _step: export({"model.": average.network}, output),
    )
    export({"model.": average.network}, output)


def export(networks: dict[str, AdmUNet], file: Path) -> None:
    """Karlo's layout in fp16, each network under its prefix: its attention's matrices are 1x1 convolutions."""
    one_by_one = ("qkv.weight", "encoder_kv.weight", "proj_out.weight")
    weights = {
        prefix + name: value[..., None] if name.endswith(one_by_one) else value
        for prefix, network in networks.items()
        for name, value in network.state_dict().items()
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().half().contiguous().cpu() for name, value in weights.items()}, file)
