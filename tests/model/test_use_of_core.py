"""Every name of ComfyUI that the pack uses exists in the ComfyUI under test, and every call fits it."""

from pathlib import Path

import pytest
from comfy_import_guard.report import check_pack
from comfy_import_guard.resolve import Resolver
from comfy_import_guard.signature import SignatureResolver
from support.host.provision import ROOT

pytestmark = [pytest.mark.model, pytest.mark.compat]


class Checkout:
    """What comfy-import-guard asks of a git clone, answered by the unpacked ComfyUI."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read_file(self, ref: str, path: str) -> str | None:
        file = self.folder / path
        return file.read_text(encoding="utf-8") if file.is_file() else None

    def is_dir(self, ref: str, path: str) -> bool:
        return (self.folder / path).is_dir()


def test_what_the_pack_uses_of_comfyui_is_there(comfyui: Path):
    resolver = Resolver(Checkout(comfyui), comfyui.name)
    found = check_pack(resolver, "palimpsest", str(ROOT / "nodes"), sig=SignatureResolver(resolver))
    assert found["references"] > 100
    assert found["breaking"] == found["signature_drift"] == found["unparseable"] == []
