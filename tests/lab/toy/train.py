"""Trains the toy world from its seed; goes on where it was stopped: make toy

About three and a half hours on two cores, by the time of single steps.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[0] = str(ROOT / "tests")

from support.host.in_process import enter_pack  # noqa: E402
from support.host.provision import comfyui_location  # noqa: E402

enter_pack()
sys.path.insert(1, str(comfyui_location()))

from comfy.cli_args import args as comfy_args  # noqa: E402

comfy_args.cpu = True
comfy_args.use_pytorch_cross_attention = True

import torch  # noqa: E402
from lab.toy import train_expert, train_general, train_subject, train_unclip, train_vae  # noqa: E402
from lab.toy.pack.general import WEIGHTS  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    torch.set_flush_denormal(True)
    cache = ROOT / ".cache" / "toy" / str(seed)
    cache.mkdir(parents=True, exist_ok=True)
    vae = train_vae.train(cache, WEIGHTS / "vae.safetensors", seed)
    general = WEIGHTS / "general.safetensors"
    train_general.train(cache, vae, general, seed)
    train_expert.train(cache, vae, general, WEIGHTS / "expert.safetensors", seed)
    train_subject.train(cache, vae, general, WEIGHTS / "subject.safetensors", seed)
    train_unclip.train(cache, seed)


if __name__ == "__main__":
    main()
