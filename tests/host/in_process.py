"""The pack, and ComfyUI itself, inside the running Python: for tests and measurements that need no server."""

from __future__ import annotations

import sys
import types
from pathlib import Path

from host.provision import ROOT, Missing, comfyui_location


def name_pack() -> None:
    """Make the pack importable as `palimpsest`: ComfyUI has a module `nodes`, which the pack's own folder would shadow."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    pack = types.ModuleType("palimpsest")
    pack.__path__ = [str(ROOT)]
    sys.modules.setdefault("palimpsest", pack)


def enter_comfyui(base_directory: str, **options: object) -> None:
    """Make ComfyUI importable, on the CPU and with its folders in `base_directory`.

    options: ComfyUI's command line by attribute, such as use_pytorch_cross_attention=True.
    """
    if "comfy" in sys.modules:
        return
    comfyui = comfyui_location()
    if not (comfyui / "main.py").is_file():
        raise Missing(f"No ComfyUI at {comfyui}: `make test` fetches it; COMFYUI_PATH names one you have.")
    sys.path.insert(0, str(comfyui))
    from comfy.cli_args import args  # reads no command line unless asked to

    for name, value in {"cpu": True, "base_directory": base_directory, **options}.items():
        setattr(args, name, value)
