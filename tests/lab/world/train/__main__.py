"""Trains the toy world from its seed, and goes on where it was stopped: `make toy`, or one part with PART=general.

PART=sizes prints what a training step costs. `make evidence PART=toy` judges what is trained.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from support.host.in_process import enter_comfyui, enter_pack

ROOT = Path(__file__).resolve().parents[4]
PARTS = ("autoencoder", "general", "transformer", "expert", "subject", "clip", "prior", "decoder", "upsamplers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "part",
        nargs="?",
        choices=(*PARTS, "sizes"),
        help="if none is named, all of them are trained, one after the other",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--cache", type=Path, default=ROOT / ".cache" / "world", help="where states and latents are kept"
    )
    parser.add_argument("--weights", type=Path, help="where the trained weights are, if not in the repository")
    parser.add_argument("--threads", type=int, help="processor threads; all of them without")
    parser.add_argument(
        "--steps", type=int, help="instead of the part's own number: the last third of them lowers the rate"
    )
    parser.add_argument("--batch", type=int, help="pictures a step, instead of the part's own number")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    enter_pack()
    enter_comfyui(tempfile.gettempdir(), cpu=device.type == "cpu", use_pytorch_cross_attention=True)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    torch.set_float32_matmul_precision("high")

    from lab.world.pack.general import WEIGHTS
    from lab.world.pack.unclip import FILES
    from lab.world.train import sizes
    from lab.world.train.autoencoder import train_autoencoder
    from lab.world.train.clip import train_clip
    from lab.world.train.decoder import train_decoder
    from lab.world.train.expert import train_expert
    from lab.world.train.general import train_general
    from lab.world.train.loop import Run
    from lab.world.train.prior import train_prior
    from lab.world.train.subject import train_subject
    from lab.world.train.transformer import train_transformer
    from lab.world.train.upsamplers import train_upsamplers

    weights = arguments.weights or WEIGHTS
    cache = arguments.cache / str(arguments.seed)
    if arguments.part == "sizes":
        return sizes.report()
    run = Run(cache, arguments.seed, device, torch.get_num_threads(), arguments.steps, arguments.batch)
    autoencoder, general, transformer, expert, subject = (weights / f"{name}.safetensors" for name in PARTS[:5])
    unclip = {name: weights / file for name, file in FILES.items()}
    trainings = {
        "autoencoder": lambda: train_autoencoder(run, autoencoder),
        "general": lambda: train_general(run, autoencoder, general),
        "transformer": lambda: train_transformer(run, autoencoder, general, transformer),
        "expert": lambda: train_expert(run, autoencoder, general, expert),
        "subject": lambda: train_subject(run, autoencoder, general, subject),
        "clip": lambda: train_clip(run, unclip["clip"]),
        "prior": lambda: train_prior(run, unclip["clip"], unclip["prior"]),
        "decoder": lambda: train_decoder(run, unclip["clip"], unclip["decoder"]),
        "upsamplers": lambda: train_upsamplers(run, unclip["upsampler_64"], unclip["upsampler_128"]),
    }
    for part in [arguments.part] if arguments.part else PARTS:
        trainings[part]()
    return None


if __name__ == "__main__":
    sys.exit(main())
