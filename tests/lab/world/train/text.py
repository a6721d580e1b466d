"""Captions as CLIP's tokens: the words of the world, and a text encoder that holds these alone."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import comfy.sd1_clip
import torch
from comfy.clip_model import CLIPTextModel
from lab.world.captions import MEDIA, PLACES
from lab.world.kinds import COLOURS, KINDS
from lab.world.pack.general import WIDTH, new_text_model
from lab.world.train.loop import initialise
from torch import Tensor, nn

COLUMNS = 77
WORDS = (
    *KINDS,
    *COLOURS,
    *PLACES.values(),
    *MEDIA.values(),
    "a an",
    "and next to the left of, the right of",
)


@cache
def _tokenizer() -> comfy.sd1_clip.SD1Tokenizer:
    return comfy.sd1_clip.SD1Tokenizer()


@cache
def _ids_of_word(word: str) -> tuple[int, ...]:
    rows = [token for token, _ in _tokenizer().tokenize_with_weights(word)["l"][0]]
    return tuple(rows[1 : rows.index(rows[-1])])


def token_ids(text: str) -> list[int]:
    """The COLUMNS ids that CLIP's tokenizer gives a caption, word by word, which is much faster."""
    words = [token for word in text.replace(",", " ,").split() for token in _ids_of_word(word)]
    start, end = 49406, 49407
    return [start, *words, *[end] * (COLUMNS - 1 - len(words))]


def column_of(text: str, word: str) -> int:
    """The column of a word of a caption, the last one if it has several."""
    words = text.replace(",", " ,").split()
    return sum(len(_ids_of_word(each)) for each in words[: words.index(word) + 1])


def vocabulary(texts: Iterable[str] = WORDS) -> Tensor:
    """The ids of all tokens of the texts, ascending, with those of the start and the end."""
    return torch.tensor(sorted({token for text in texts for token in token_ids(text)}))


def begin_layers(encoder: nn.Module) -> None:
    """CLIP's layers as they can be trained; at first they pass on what they get."""
    for layer in encoder.layers:
        nn.init.zeros_(layer.self_attn.out_proj.weight)
        nn.init.zeros_(layer.mlp.fc2.weight)
        for norm in (layer.layer_norm1, layer.layer_norm2):
            # ComfyUI adds in place to what the norms keep for the backward pass: they get a copy.
            norm.register_forward_pre_hook(lambda _module, inputs: (inputs[0].clone(),))


class TextEncoder(nn.Module):
    """CLIP's text encoder, whose token embedding has the rows of the vocabulary alone."""

    def __init__(self, words: Tensor) -> None:
        super().__init__()
        self.clip: CLIPTextModel = new_text_model()
        self.register_buffer("vocabulary", words)
        embeddings = self.clip.text_model.embeddings
        embeddings.token_embedding = nn.Embedding(len(words), WIDTH)
        initialise(self)
        # It starts as its word embeddings.
        nn.init.normal_(embeddings.token_embedding.weight)
        nn.init.normal_(embeddings.position_embedding.weight, std=0.1)
        begin_layers(self.clip.text_model.encoder)
        self.requires_grad_(True)
        self.clip.text_projection.requires_grad_(False)  # SD1.5 does not use it

    def forward(self, rows: Tensor) -> Tensor:
        """Rows of the vocabulary [B, C] to conditioning [B, C, WIDTH]. It looks back only: columns behind them would change nothing."""
        model, columns = self.clip.text_model, rows.shape[1]
        x = model.embeddings.token_embedding(rows) + model.embeddings.position_embedding.weight[:columns]
        ahead = torch.full((columns, columns), -torch.finfo(x.dtype).max, dtype=x.dtype, device=x.device).triu_(1)
        return model.final_layer_norm(model.encoder(x, mask=ahead)[0])
