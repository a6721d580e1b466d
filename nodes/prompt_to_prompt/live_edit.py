"""An answer to js/edit_words.mjs while the artist types: what an edit of these texts would do to each word.

It reads CLIP's vocabulary, which SD1.x, SD2.x and SDXL share, and no model: textual inversions count as plain words here.
"""

from __future__ import annotations

import asyncio
from functools import cache, partial

import comfy.sd
import comfy.sd1_clip
import torch
from aiohttp import web

from ..text.tokens import tokenize
from .on_the_node import described_edit
from .prompt_edit import MODES, prompt_edit

ROUTE = "/palimpsest/prompt_edit"
LISTS = ("reweight", "blend_words", "keep_words", "word_windows")
FIELDS = ("source_text", "target_text", "mode", *LISTS)
LONGEST = 8_000  # characters of one text
LARGEST = 256 * 1024  # bytes of a request


async def answer(request: web.Request) -> web.Response:
    """{"edit": ...} as Encode Prompt Edit shows it after a run, {"problem": "..."} when the texts make no edit, or both."""
    if request.content_type != "application/json":
        return _refusal(415, f"expected application/json, got {request.content_type}")
    if request.content_length is None or request.content_length > LARGEST:
        return _refusal(413, f"expected a body of at most {LARGEST} bytes and its length")
    try:
        body = await request.json()
    except (ValueError, LookupError, RecursionError):  # no JSON, an unknown charset, thousands of brackets
        return _refusal(400, "expected JSON in UTF-8, got something else")
    if not isinstance(body, dict) or sorted(body) != sorted(FIELDS):
        return _refusal(400, f"expected an object with the fields {', '.join(FIELDS)}")
    for field, text in body.items():
        if not isinstance(text, str) or len(text) > LONGEST:
            return _refusal(400, f"{field}: expected text of at most {LONGEST} characters")
        if any("\ud800" <= character <= "\udfff" for character in text):
            return _refusal(400, f"{field}: expected text, got half of a surrogate pair")
    if body["mode"] not in MODES:
        return _refusal(400, f"mode: expected one of {', '.join(MODES)}")
    return web.json_response(await asyncio.to_thread(_described, **body))


def _refusal(status: int, error: str) -> web.Response:
    return web.json_response({"error": error}, status=status)


def _described(**texts: str) -> dict:
    try:
        return {"edit": _drawn(texts)}
    except ValueError as error:
        problem = str(error)
    except RecursionError:
        return {"problem": "expected brackets that ComfyUI can read, got too many inside each other. Take some away."}
    try:  # a list with a word that is in no prompt hides nothing of the prompts
        return {"problem": problem, "edit": _drawn({**texts, **dict.fromkeys(LISTS, "")})}
    except ValueError:
        return {"problem": problem}


def _drawn(texts: dict[str, str]) -> dict:
    edit = prompt_edit(partial(tokenize, _vocabulary()), **texts)
    return described_edit(edit)["palimpsest_edit"][0]


@cache
def _vocabulary() -> comfy.sd.CLIP:
    """SD1.x's CLIP without weights."""
    clip = comfy.sd.CLIP(no_init=True)
    clip.tokenizer, clip.tokenizer_options = comfy.sd1_clip.SD1Tokenizer(), {}
    clip.cond_stage_model = comfy.sd1_clip.SD1ClipModel(device="meta", dtype=torch.float16)
    return clip
