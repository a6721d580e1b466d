"""Trains the parts of the toy's unCLIP, one after the other."""

from pathlib import Path

from lab.toy import train_clip, train_decoder, train_prior, train_upsamplers
from lab.toy.pack.unclip import FILES
from lab.toy.scenes import sample_scenes
from lab.toy.unclip_scenes import drawn_large, drawn_small, families

LARGE_SCENES = 2048


def train(cache_folder: Path, seed: int) -> None:
    drawn = families(seed)
    pictures, masks = drawn_small(drawn, cache_folder / "pictures.pt")
    train_clip.train(cache_folder, drawn, pictures, masks, FILES["clip"], seed)
    pair = train_clip.trained_pair(FILES["clip"])
    embeds = train_clip.embeddings(pair, pictures)
    train_prior.train(cache_folder, drawn, pair, embeds, FILES["prior"], seed)
    train_decoder.train(cache_folder, drawn, pictures, pair, embeds, FILES["decoder"], seed)
    large = drawn_large(sample_scenes(LARGE_SCENES, seed + 6, split="train"))
    train_upsamplers.train_first(cache_folder, large, FILES["upsampler_64"], seed)
    train_upsamplers.train_second(cache_folder, large, FILES["upsampler_128"], seed)
