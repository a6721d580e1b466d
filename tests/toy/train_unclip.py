"""Trains the parts of the toy's unCLIP, one after the other."""

from pathlib import Path

from toy import train_clip, train_decoder, train_prior, train_upsamplers
from toy.pack.unclip import FILES
from toy.scenes import SIZE, sample_scenes
from toy.unclip_scenes import MEDIUM, SMALL, families, pictures

LARGE_SCENES = 2048


def train(cache_folder: Path, seed: int) -> None:
    drawn = families(seed)
    small, medium = pictures(drawn, cache_folder / "pictures.pt", SMALL, MEDIUM)
    train_clip.train(cache_folder, drawn, medium, FILES["clip"], seed)
    pair = train_clip.trained_pair(FILES["clip"])
    embeds = train_clip.embeddings(pair, medium)
    train_prior.train(cache_folder, drawn, pair, embeds, FILES["prior"], seed)
    train_decoder.train(cache_folder, drawn, small, pair, embeds, FILES["decoder"], seed)
    train_upsamplers.train_first(cache_folder, medium, FILES["upsampler_64"], seed)
    large = sample_scenes(LARGE_SCENES, seed + 6, split="train")
    (high,) = pictures(large, cache_folder / "large_pictures.pt", SIZE)
    train_upsamplers.train_second(cache_folder, high, FILES["upsampler_128"], seed)
