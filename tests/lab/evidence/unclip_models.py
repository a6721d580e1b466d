"""The toy world's unCLIP behind the very nodes an artist wires up, a batch of pictures at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.clip_vision
import comfy.sd
import comfy.utils
import comfy_extras.nodes_custom_sampler as core
import torch
from comfy.model_patcher import ModelPatcher
from lab.world.judge import Reading, judge
from lab.world.pack.general import WEIGHTS
from lab.world.pack.unclip import DRAWN, FILES, load_clip
from lab.world.scenes import SIZE
from palimpsest.nodes.diffusion.conditioning import Conditioning
from palimpsest.nodes.inversion.nodes import DDIMInvert
from palimpsest.nodes.text.image_embedding import ImageEmbedding
from palimpsest.nodes.text.text_states import text_states
from palimpsest.nodes.unclip.decoder.loading import Upsampler, load_decoder, load_upsampler, pixel_vae
from palimpsest.nodes.unclip.decoder.nodes import UnCLIPConditioning, UnCLIPSampler, Upsample
from palimpsest.nodes.unclip.prior.checkpoint import load
from palimpsest.nodes.unclip.prior.nodes import SamplePrior
from palimpsest.nodes.unclip.prior.prior import Prior
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from nodes import CLIPVisionEncode, VAEDecode, VAEEncode

BATCH = 16
STEPS = 20
PRIOR_CFG = 1.0
# The least likeness of a thing's edges. Enlarged pictures have none but soft ones, which are more alike: the judge's own bar lets more of them pass.
ALIKE = 0.85


@dataclass(frozen=True)
class Told:
    positive: Conditioning
    negative: Conditioning

    def rows(self, start: int, end: int) -> Told:
        return Told(*(_rows(conditioning, start, end) for conditioning in (self.positive, self.negative)))


@dataclass(frozen=True)
class UnCLIP:
    clip: comfy.sd.CLIP
    vision: comfy.clip_vision.ClipVisionModel
    prior: Prior
    decoder: ModelPatcher
    vae: comfy.sd.VAE
    upsamplers: tuple[Upsampler, Upsampler]
    steps: int = STEPS
    upsampling_steps: int = 0  # as many as published

    @classmethod
    def load(cls, weights: Path = WEIGHTS) -> UnCLIP:
        comfy.utils.set_progress_bar_enabled(False)
        upsamplers = tuple(load_upsampler(weights / FILES[part], None) for part in ("upsampler_64", "upsampler_128"))
        prior, decoder = load(weights / FILES["prior"], None), load_decoder(weights / FILES["decoder"], None)
        return cls(*load_clip(weights), prior, decoder, pixel_vae(), upsamplers)

    def imagine(self, texts: Sequence[str], candidates: int = 1, cfg: float = PRIOR_CFG) -> Tensor:
        """The prior's embeddings [B, width] of these texts, each from a seed of its own."""
        made = [
            SamplePrior.execute(self.prior, self.clip, text, "", self.steps, cfg, seed, candidates)[0].image_embeds
            for seed, text in enumerate(texts)
        ]
        return torch.cat(made)

    def see(self, images: Tensor) -> Tensor:
        """The embeddings [B, width] of pictures [B, 3, H, W] in 0..1."""
        return CLIPVisionEncode().encode(self.vision, images.movedim(1, -1), "center")[0].image_embeds

    def pooled(self, texts: Sequence[str]) -> Tensor:
        """The texts' own embeddings [B, width]."""
        return text_states(self.clip, texts, self.prior.width, "the measurement").pooled

    def tell(self, texts: Sequence[str], embeds: Tensor | None) -> Told:
        """One row for each text, with its embedding where there are any."""
        single = embeds.split(1) if embeds is not None else [None] * len(texts)
        told = [
            UnCLIPConditioning.execute(self.clip, text, None if row is None else ImageEmbedding(row), self.decoder)
            for text, row in zip(texts, single, strict=True)
        ]
        return Told(*(_joined([output[i] for output in told]) for i in (0, 1)))

    def sigmas(self, scheduler: str) -> Tensor:
        return core.BasicScheduler.execute(self.decoder, scheduler, self.steps, 1.0)[0]

    def draw(self, told: Told, count: int, cfg: float, label: str = "") -> Tensor:
        """Pictures [B, 3, DRAWN, DRAWN] in 0..1 from new noise, as published."""
        sampler, sigmas = UnCLIPSampler.execute("published")[0], self.sigmas("normal")
        pictures = []
        for start in tqdm(range(0, count, BATCH), desc=label):
            end = min(start + BATCH, count)
            rows = told.rows(start, end)
            guider = core.CFGGuider.execute(self.decoder, rows.positive, rows.negative, cfg)[0]
            empty = {"samples": torch.zeros(end - start, 3, DRAWN, DRAWN)}
            noise = core.RandomNoise.execute(start)[0]
            result = core.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, empty)[0]
            pictures.append(self.decode(result["samples"]))
        return torch.cat(pictures)

    def start(self, small: Tensor, told: Told, iterations: int = 3) -> Tensor:
        """x_T [B, 3, DRAWN, DRAWN] of pictures in 0..1, as a latent."""
        sigmas, parts = self.sigmas("karras"), []
        for start in tqdm(range(0, len(small), BATCH), desc="inverting"):
            pixels = small[start : start + BATCH].movedim(1, -1)
            latent = VAEEncode().encode(self.vae, pixels)[0]
            positive = told.rows(start, start + len(pixels)).positive
            inverted = DDIMInvert.execute(self.decoder, positive, latent, sigmas, "fixed_point", iterations)
            parts.append(inverted[2]["samples"])
        return torch.cat(parts)

    def draw_from(self, start: Tensor, told: Told, cfg: float = 1.0, eta: float = 0.0, label: str = "") -> Tensor:
        """Pictures from x_T; with eta, new noise on the way."""
        sigmas = self.sigmas("karras")
        euler = core.KSamplerSelect.execute("euler")[0]
        sampler = core.SamplerEulerAncestral.execute(eta, 1.0)[0] if eta else euler
        pictures = []
        for first in tqdm(range(0, len(start), BATCH), desc=label):
            latent = {"samples": start[first : first + BATCH]}
            rows = told.rows(first, first + BATCH)
            result = core.SamplerCustom.execute(
                self.decoder, False, first, cfg, rows.positive, rows.negative, sampler, sigmas, latent
            )
            pictures.append(self.decode(result[0]["samples"]))
        return torch.cat(pictures)

    def decode(self, latent: Tensor) -> Tensor:
        return VAEDecode().decode(self.vae, {"samples": latent})[0].movedim(-1, 1)

    def upsample(self, small: Tensor, label: str = "") -> Tensor:
        """Through both upsamplers, [B, 3, SIZE, SIZE]."""
        pictures = []
        for part in tqdm(small.split(BATCH), desc=label):
            picture = part.movedim(1, -1)
            for upsampler in self.upsamplers:
                picture = Upsample.execute(upsampler, picture, self.upsampling_steps, 0, 2, 512)[0]
            pictures.append(picture.movedim(-1, 1))
        return torch.cat(pictures)


def read_small(small: Tensor) -> list[Reading]:
    """Of pictures [B, 3, DRAWN, DRAWN], enlarged by interpolation, with the bar ALIKE for a thing."""
    found = []
    for reading in judge(F.interpolate(small, (SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 1)):
        known = tuple(seen for seen in reading.seen if seen.alike >= ALIKE)
        things = known if reading.style is not None else ()
        found.append(replace(reading, things=things, unknown=len(reading.seen) - len(known)))
    return found


def small(pictures: Tensor) -> Tensor:
    """As the decoder's training has them, [B, 3, DRAWN, DRAWN]."""
    return F.interpolate(pictures, (DRAWN, DRAWN), mode="bicubic", antialias=True).clamp(0, 1)


def _joined(conditionings: list[Conditioning]) -> Conditioning:
    """Several conditionings of one row each as one whose rows they are: ComfyUI gives each latent of the batch its own."""
    states = torch.cat([conditioning[0][0] for conditioning in conditionings])
    options = [conditioning[0][1] for conditioning in conditionings]
    joined = {name: torch.cat([option[name] for option in options]) for name in ("pooled_output", "attention_mask")}
    if "unclip_conditioning" in options[0]:
        entries = [option["unclip_conditioning"][0] for option in options]
        embeds = torch.cat([entry["clip_vision_output"].image_embeds for entry in entries])
        joined["unclip_conditioning"] = [{**entries[0], "clip_vision_output": ImageEmbedding(embeds)}]
    return [[states, joined]]


def _rows(conditioning: Conditioning, start: int, end: int) -> Conditioning:
    ((states, options),) = conditioning
    chosen = {name: options[name][start:end] for name in ("pooled_output", "attention_mask")}
    if "unclip_conditioning" in options:
        (entry,) = options["unclip_conditioning"]
        embeds = entry["clip_vision_output"].image_embeds[start:end]
        chosen["unclip_conditioning"] = [{**entry, "clip_vision_output": ImageEmbedding(embeds)}]
    return [[states[start:end], chosen]]
