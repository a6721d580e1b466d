"""`make thumbnails`: what the shipped workflows make on the toy's models, for ComfyUI's template browser and the help pages.

make thumbnails                          # rewrites example_workflows/*.jpg, and js/docs/*.webp, which help_pictures.py and strips.py name
make thumbnails ONLY="Swap a word"       # those whose names begin so
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from lab.thumbnails import edits, fusion, transformers, unclip
from lab.thumbnails.compose import save
from lab.thumbnails.help_pictures import PICTURES, take
from lab.thumbnails.strips import QUALITY, STRIPS, joined
from lab.thumbnails.toy import Toy
from support.host.client import Client
from support.host.frontend import launch
from support.host.provision import ROOT, comfyui_location
from support.host.server import WITH_TOY, Server

FOLDER = ROOT / "example_workflows"
HELP = ROOT / "js" / "docs"
RECIPES = edits.RECIPES | fusion.RECIPES | unclip.RECIPES | transformers.RECIPES


def main() -> None:
    chosen = [name for name in RECIPES if name.startswith(os.environ.get("ONLY", ""))]
    with tempfile.TemporaryDirectory(prefix="palimpsest-thumbnails-") as base:
        server = Server(comfyui_location(), Path(base), WITH_TOY)
        with server, Client(server.address) as client, launch() as browser:
            toy = Toy(server, client)
            for name in chosen:
                file = FOLDER / f"{name}.jpg"
                save(RECIPES[name](toy, name).drawn(), file)
                made = [file]
                if name in PICTURES:
                    made += take(browser, server.address, toy.last[name], PICTURES[name], HELP)
                if name in STRIPS:
                    stem, pictures = STRIPS[name]
                    made.append(HELP / f"{stem}.webp")
                    joined(pictures(toy, name)).save(made[-1], quality=QUALITY, method=6)
                print(*(f"{file.name}: {file.stat().st_size / 1000:.1f} kB" for file in made), sep="\n")


if __name__ == "__main__":
    main()
