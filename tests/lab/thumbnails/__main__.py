"""`make thumbnails`: the picture of each shipped workflow in ComfyUI's template browser: what the workflow itself makes on the toy model.

make thumbnails                          # rewrites example_workflows/*.jpg
make thumbnails ONLY="Swap a word"       # those whose names begin so
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from lab.thumbnails import edits, fusion, unclip
from lab.thumbnails.compose import save
from lab.thumbnails.toy import Toy
from support.host.client import Client
from support.host.provision import ROOT, comfyui_location
from support.host.server import WITH_TOY, Server

FOLDER = ROOT / "example_workflows"
RECIPES = edits.RECIPES | fusion.RECIPES | unclip.RECIPES


def main() -> None:
    chosen = [name for name in RECIPES if name.startswith(os.environ.get("ONLY", ""))]
    with tempfile.TemporaryDirectory(prefix="palimpsest-thumbnails-") as base:
        server = Server(comfyui_location(), Path(base), WITH_TOY)
        with server, Client(server.address) as client:
            toy = Toy(server, client)
            for name in chosen:
                file = FOLDER / f"{name}.jpg"
                save(RECIPES[name](toy, name).drawn(), file)
                print(f"{file}: {file.stat().st_size / 1000:.1f} kB")


if __name__ == "__main__":
    main()
