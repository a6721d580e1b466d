"""Rewrite locales/en from the recorded nodes, and take out of the other languages what no longer says the same. `make locales`.

Sockets and widgets keep their English names in every language, because errors and help pages name them. Translated are the
names and descriptions of nodes, tooltips, categories, and what js/ draws.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LOCALES = ROOT / "locales"
RECORDED = ROOT / "tests" / "server" / "object_info.json"

Texts = dict[str, Any]


def english() -> dict[str, Texts]:
    """The files of locales/en by name, as ComfyUI's frontend asks for them."""
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    nodes = {name: _node(info) for name, info in recorded.items()}
    categories = {part for info in recorded.values() for part in info["category"].split("/")}
    named = {part: part.replace("_", " ") for part in sorted(categories)}
    return {"nodeDefs.json": nodes, "main.json": {"nodeCategories": named, "palimpsest": _drawn()}}


def _drawn() -> dict[str, str]:
    """What js/ draws on the nodes, which js/languages.mjs looks up."""
    scripts = "".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "js").glob("*.mjs")))
    return {text: text for text in sorted(set(re.findall(r'\b(?:say|later)\("((?:[^"\\]|\\.)+)"', scripts)))}


def _node(info: dict[str, Any]) -> Texts:
    inputs = {name: {"tooltip": tooltip} for name, tooltip in _tooltips(info["input"]) if tooltip}
    outputs = {str(i): {"tooltip": tooltip} for i, tooltip in enumerate(info.get("output_tooltips") or []) if tooltip}
    texts = {"display_name": info["display_name"], "description": info["description"], "inputs": inputs}
    return {**texts, "outputs": outputs} if outputs else texts


def _tooltips(inputs: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A choice's own widgets are called after it, with the dot that a key cannot have."""
    for kind in ("required", "optional"):
        for name, (_, *more) in inputs.get(kind, {}).items():
            options = more[0] if more else {}
            yield f"{prefix}{name}", options.get("tooltip", "")
            for choice in options.get("options", []):
                if isinstance(choice, dict):
                    yield from _tooltips(choice["inputs"], f"{prefix}{name}_")
            template = options.get("template", {})
            if "input" in template:
                yield from _tooltips(template["input"], f"{prefix}{name}_")


def flat(texts: Texts, prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in texts.items():
        place = f"{prefix}{key}"
        found.update(flat(value, f"{place} ") if isinstance(value, dict) else {place: value})
    return found


def kept(texts: Texts, known: dict[str, str], before: dict[str, str], prefix: str = "") -> Texts:
    """A language's texts without those whose English is gone or has changed."""
    left: Texts = {}
    for key, value in texts.items():
        place = f"{prefix}{key}"
        if isinstance(value, dict):
            inner = kept(value, known, before, f"{place} ")
            if inner:
                left[key] = inner
        elif place in known and known[place] == before.get(place):
            left[key] = value
    return left


def read(file: Path) -> Texts:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def write(file: Path, texts: Texts) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(texts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    for name, texts in english().items():
        known, before = flat(texts), flat(read(LOCALES / "en" / name))
        for folder in sorted(path for path in LOCALES.iterdir() if path.name != "en") if LOCALES.exists() else []:
            left = kept(read(folder / name), known, before)
            write(folder / name, left)
            print(f"{folder.name}/{name}: {len(known) - len(flat(left))} of {len(known)} texts to translate")
        write(LOCALES / "en" / name, texts)


if __name__ == "__main__":
    main()
