"""Which Chromium or Chrome the browser ring runs, and what is said where there is none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MACOS = tuple(f"/Applications/{name}.app/Contents/MacOS/{name}" for name in ("Google Chrome", "Chromium"))
HOW_TO_GET_ONE = (
    "No Chromium or Chrome found: install one (Debian: apt install chromium) or name it with CHROMIUM=<program>."
)


def find_browser() -> str | None:
    if named := os.environ.get("CHROMIUM"):
        return shutil.which(named)
    found = [path for name in NAMES if (path := shutil.which(name))]
    return next(iter(found + [path for path in MACOS if Path(path).exists()]), None)


def why_left_out() -> str | None:
    """The line that stands for the whole browser ring on a machine without a browser; under CI that is a failure instead."""
    if os.environ.get("CI") or find_browser():
        return None
    return f"The browser ring was left out. {HOW_TO_GET_ONE}"
