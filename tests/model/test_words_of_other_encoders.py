"""Words of a prompt as columns of T5 and language models, by the tokenizers and templates that ComfyUI ships."""

from __future__ import annotations

import io
import re
from functools import cache

import comfy.text_encoders.anima
import comfy.text_encoders.flux
import comfy.text_encoders.hidream
import comfy.text_encoders.hunyuan_image
import comfy.text_encoders.lumina2
import comfy.text_encoders.pixart_t5
import comfy.text_encoders.qwen_image
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.z_image
import pytest
import sentencepiece
import torch
from palimpsest.nodes.text.tokens import columns_of_conditioning, tokenize
from support.fixtures.prompts import SENTENCES
from support.fixtures.tiny_clip import tokenizer_only

pytestmark = pytest.mark.model


@cache
def gemma_vocabulary() -> torch.Tensor:
    """A small SentencePiece model as Gemma's files hold one: pieces of words, and bytes for the rest."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*SENTENCES, "a red cat on the grass"] * 20), model_writer=model, vocab_size=500, byte_fallback=True,
        model_type="bpe", character_coverage=0.98, hard_vocab_limit=False, minloglevel=9,
    )  # fmt: skip
    return torch.ByteTensor(list(model.getvalue()))


class SmallGemma(comfy.text_encoders.lumina2.LuminaTokenizer):
    def __init__(self):
        super().__init__(tokenizer_data={"spiece_model": gemma_vocabulary()})


KINDS = {
    "flux": comfy.text_encoders.flux.FluxTokenizer,
    "flux2_klein": comfy.text_encoders.flux.KleinTokenizer,
    "chroma": comfy.text_encoders.pixart_t5.PixArtTokenizer,
    "sd3": comfy.text_encoders.sd3_clip.SD3Tokenizer,
    "qwen_image": comfy.text_encoders.qwen_image.QwenImageTokenizer,
    "z_image": comfy.text_encoders.z_image.ZImageTokenizer,
    "lumina2": SmallGemma,
    "anima": comfy.text_encoders.anima.AnimaTokenizer,
    "hidream": comfy.text_encoders.hidream.HiDreamTokenizer,
}
DAILY = ("chroma", "sd3", "qwen_image", "lumina2")
ALL = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in DAILY else pytest.mark.long) for kind in KINDS]
)


@cache
def clip(kind: str):
    return tokenizer_only(KINDS[kind])


def spelled(prompt, columns) -> str:
    """As the tokens spell these columns, without marks of spaces."""
    text = "".join(prompt.of(columns))
    for mark in ("\u2581", "\u0120", "</w>"):
        text = text.replace(mark, "")
    text = re.sub(r"<0x(..)>", lambda byte: chr(int(byte[1], 16)), text)
    return text.lower()


@ALL
def test_each_word_has_its_tokens_in_every_encoder(kind):
    text = "a fluffy Cat, on the green grass: hippopotamuses"
    prompt = tokenize(clip(kind), text)
    assert list(prompt.spelled_words) == text.lower().split()
    for number, (start, part) in enumerate(prompt.encodings):
        assert spelled(part, part.content) == "".join(text.lower().split())
        if kind == "hidream" and number > 0:  # its Llama tokenizer joins words in some versions of transformers
            continue
        for word, columns in zip(text.lower().split(), part.words, strict=True):
            assert spelled(part, columns) == word
            assert spelled(prompt, [start + column for column in columns]) == word
    assert len(prompt.encodings) == {"sd3": 2, "hidream": 3}.get(kind, 1)
    assert len(prompt.content) == len(set(prompt.content))


@ALL
def test_phrases_are_found_with_or_without_punctuation_and_not_inside_words(kind):
    prompt = tokenize(clip(kind), "two red cats, a red cat.")

    def find(phrase):
        return prompt.find(tokenize(clip(kind), phrase))

    last = {column for column in prompt.words[5]}
    assert find("red cat") and set(find("cat")) <= last
    assert set(find("Red cats,")) == {*prompt.words[1], *prompt.words[2]}
    assert find("at") == find("dog") == ()


@ALL
def test_any_text_has_columns_and_no_column_two_words(kind):
    for text in SENTENCES:
        prompt = tokenize(clip(kind), text)
        assert len(prompt.content) == len(set(prompt.content))
        assert all(0 <= column < len(prompt.ids) for column in prompt.content)
        for _, part in prompt.encodings[: 2 if kind == "sd3" else 1]:
            assert all(part.words), (text, part.words)
        for _, part in prompt.encodings:
            special = {token for token in part.ids if token in ("<|im_start|>", "<|im_end|>", "</s>", "assistant")}
            assert not special & set(part.of(part.content))


def test_weights_are_weights_or_text_as_the_encoder_reads_them():
    text = "a (red:1.2) cat"
    assert tokenize(clip("chroma"), text).spelled_words == ("a", "red", "cat")
    assert tokenize(clip("sd3"), text).spelled_words == ("a", "red", "cat")
    assert tokenize(clip("qwen_image"), text).spelled_words == ("a", "(red:1.2)", "cat")
    assert tokenize(clip("qwen_image"), text).find(tokenize(clip("qwen_image"), "red"))


def test_qwen_image_s_template_is_cut_as_core_cuts_it():
    """The rule of QwenImageTEModel.encode_token_weights, on states that say which token they are of."""

    class Encoder(torch.nn.Module):
        def encode_token_weights(self, chunks):
            ids = torch.tensor([[token for token, *_ in chunks[0]]])
            return ids[..., None].float(), None, {"attention_mask": torch.ones_like(ids)}

    model = torch.nn.Module.__new__(comfy.text_encoders.qwen_image.QwenImageTEModel)
    torch.nn.Module.__init__(model)
    model.clip, model.clip_name = "qwen25_7b", "qwen25_7b"
    model.qwen25_7b = Encoder()
    for text in ("a red cat", "\n\na red cat", "<|im_start|>user\na red cat"):
        tokens = clip("qwen_image").tokenize(text)
        states = model.encode_token_weights(tokens)[0]
        prompt = tokenize(clip("qwen_image"), text)
        assert len(prompt.ids) == states.shape[1]
        vocabulary = clip("qwen_image").tokenizer.qwen25_7b.inv_vocab
        read = [vocabulary[int(token)] for token in states[0, :, 0]]
        assert [read[column] for column in prompt.content] == list(prompt.of(prompt.content))
        assert spelled(prompt, prompt.find(tokenize(clip("qwen_image"), "red cat"))) == "redcat"


def test_columns_of_a_conditioning():
    text = torch.zeros(1, 128, 8)
    assert columns_of_conditioning(text, {}) == 128
    llama = torch.zeros(1, 32, 140, 8)
    assert columns_of_conditioning(text, {"conditioning_llama3": llama}) == 128 + 280
    assert columns_of_conditioning(text, {"t5xxl_ids": torch.zeros(9)}) == 9


def test_encoders_of_no_known_model_are_refused():
    hunyuan = tokenizer_only(comfy.text_encoders.hunyuan_image.HunyuanImageTokenizer)
    with pytest.raises(ValueError, match=r"^clip: expected the text encoders of a model .* got byt5, qwen25_7b"):
        tokenize(hunyuan, 'a sign "open"')
