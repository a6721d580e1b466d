"""Trains the second toy world from its seed, and goes on where it was stopped: `make second-toy`, or one part with PART=general."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from support.host.in_process import enter_comfyui, enter_pack

ROOT = Path(__file__).resolve().parents[4]
PARTS = ("autoencoder",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=PARTS, help="all of them, one after the other, if none is named")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "world", help="where states and latents are kept")
    parser.add_argument("--weights", type=Path, help="where the trained weights go, if not into the repository")
    parser.add_argument("--threads", type=int, help="processor threads; all of them without")
    parser.add_argument("--steps", type=int, help="instead of the part's own number")
    parser.add_argument("--batch", type=int, help="pictures a step, instead of the part's own number")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    enter_pack()
    enter_comfyui(tempfile.gettempdir(), cpu=device.type == "cpu", use_pytorch_cross_attention=True)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True

    from lab.world.pack.general import WEIGHTS
    from lab.world.train.autoencoder import train_autoencoder
    from lab.world.train.loop import Run

    run = Run(
        cache=arguments.cache / str(arguments.seed),
        seed=arguments.seed,
        device=device,
        threads=torch.get_num_threads(),
        steps=arguments.steps,
        batch=arguments.batch,
    )
    run.cache.mkdir(parents=True, exist_ok=True)
    weights = arguments.weights or WEIGHTS
    for part in [arguments.part] if arguments.part else PARTS:
        if part == "autoencoder":
            train_autoencoder(run, weights / "autoencoder.safetensors")


if __name__ == "__main__":
    sys.exit(main())
