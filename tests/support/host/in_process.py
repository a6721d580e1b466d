"""The pack and ComfyUI in this process, for tests and measurements that need no server."""

from __future__ import annotations

import sys
import types
from pathlib import Path

from support.host.provision import ROOT, Missing, comfyui_location


def enter_pack() -> None:
    """Make the pack importable as `palimpsest`, and what lies in tests/ by its own name.

    ComfyUI has a module of the name `nodes`, which the pack's folder would shadow.
    """
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    if str(ROOT / "tests") not in sys.path:
        sys.path.insert(0, str(ROOT / "tests"))
    pack = types.ModuleType("palimpsest")
    pack.__path__ = [str(ROOT)]
    sys.modules.setdefault("palimpsest", pack)


def enter_comfyui(base: str, **options: object) -> Path:
    """Make ComfyUI importable, on the CPU and with its folders below `base`; where it lies is returned.

    options: ComfyUI's command line by attribute, such as use_pytorch_cross_attention=True.
    """
    comfyui = comfyui_location()
    if "comfy" in sys.modules:
        return comfyui
    if not (comfyui / "main.py").is_file():
        raise Missing(f"No ComfyUI at {comfyui}: `make test` fetches it; COMFYUI_PATH names one you have.")
    sys.path.insert(0, str(comfyui))
    import utils.install_util  # noqa: F401  ComfyUI 0.16's nodes.py puts comfy/, which has a utils.py, before this folder
    from comfy.cli_args import args  # reads no command line unless asked to

    for name, value in {"cpu": True, "base_directory": base, **options}.items():
        setattr(args, name, value)
    return comfyui


def enter(base: str) -> None:
    """Both, as a process of its own has them that measures beside others."""
    enter_pack()
    enter_comfyui(base, use_pytorch_cross_attention=True)
