"""Trains the toy world from its seed; goes on where it was stopped.

make toy                    # everything: about four hours on two cores, by the time of single steps
make toy PART=transformer   # one part, which reads the weights of those before it
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
from lab.toy import train_expert, train_general, train_subject, train_transformer, train_unclip, train_vae  # noqa: E402
from lab.toy.pack.general import WEIGHTS, load_vae  # noqa: E402

PARTS = ("vae", "general", "expert", "subject", "unclip", "transformer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=PARTS, help="everything without it")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    parts, seed = [arguments.part] if arguments.part else PARTS, arguments.seed
    torch.set_flush_denormal(True)
    cache = ROOT / ".cache" / "toy" / str(seed)
    cache.mkdir(parents=True, exist_ok=True)
    vae = train_vae.train(cache, WEIGHTS / "vae.safetensors", seed) if "vae" in parts else load_vae().first_stage_model
    general = WEIGHTS / "general.safetensors"
    if "general" in parts:
        train_general.train(cache, vae, general, seed)
    if "expert" in parts:
        train_expert.train(cache, vae, general, WEIGHTS / "expert.safetensors", seed)
    if "subject" in parts:
        train_subject.train(cache, vae, general, WEIGHTS / "subject.safetensors", seed)
    if "unclip" in parts:
        train_unclip.train(cache, seed)
    if "transformer" in parts:
        train_transformer.train(cache, vae, general, WEIGHTS / "transformer.safetensors", seed)


if __name__ == "__main__":
    main()
