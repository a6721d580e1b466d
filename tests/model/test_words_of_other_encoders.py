"""Words of a prompt as columns of T5 and language models, by the tokenizers and templates that ComfyUI ships."""

from __future__ import annotations

import io
import re
from functools import cache

import comfy.sd
import comfy.sd1_clip
import comfy.text_encoders.anima
import comfy.text_encoders.cosmos
import comfy.text_encoders.flux
import comfy.text_encoders.hidream
import comfy.text_encoders.hunyuan_image
import comfy.text_encoders.lumina2
import comfy.text_encoders.pixart_t5
import comfy.text_encoders.qwen_image
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.wan
import comfy.text_encoders.z_image
import pytest
import sentencepiece
import torch
from comfy.supported_models_base import ClipTarget
from palimpsest.nodes.text.prompt_tokens import BYTES
from palimpsest.nodes.text.tokens import columns_of_conditioning, tokenize
from support.fixtures.prompts import SENTENCES
from support.fixtures.tiny_clip import CONFIG, tokenizer_only
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

pytestmark = pytest.mark.model


TEXTS = [*SENTENCES, "a red cat on the grass"] * 20  # what small vocabularies are made from
MISTRAL = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
    "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
)  # fmt: skip


@cache
def pieces(kind: str, **special) -> torch.Tensor:
    """A small SentencePiece model as text encoder files hold one: pieces of words, and bytes for the rest."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=450, byte_fallback=True, model_type=kind,
        character_coverage=0.98, hard_vocab_limit=False, minloglevel=9, **special,
    )  # fmt: skip
    return torch.ByteTensor(list(model.getvalue()))


class SmallGemma(comfy.text_encoders.lumina2.LuminaTokenizer):
    def __init__(self):
        super().__init__(tokenizer_data={"spiece_model": pieces("bpe")})


class SmallUMT5(comfy.text_encoders.wan.WanT5Tokenizer):
    def __init__(self):
        vocabulary = pieces("unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
        super().__init__(tokenizer_data={"spiece_model": vocabulary})


class SmallTekken(comfy.sd1_clip.SDTokenizer):
    """Core's Mistral3Tokenizer, which needs transformers before 5.15, with a small vocabulary of Mistral's kind."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        vocabulary = Tokenizer(models.BPE())
        vocabulary.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=600, special_tokens=[*MISTRAL], initial_alphabet=[*BYTES], show_progress=False
        )
        vocabulary.train_from_iterator(TEXTS, trainer)
        super().__init__(
            "", pad_with_end=False, embedding_size=5120, embedding_key="mistral3_24b", has_end_token=False, pad_to_max_length=False,
            pad_token=11, start_token=1, max_length=99999999, min_length=1, pad_left=True, disable_weights=True,
            tokenizer_class=comfy.text_encoders.flux.MistralTokenizerClass,
            tokenizer_args={"tokenizer_object": vocabulary, "legacy": False},
        )  # fmt: skip


class SmallMistral(comfy.text_encoders.flux.Flux2Tokenizer):
    def __init__(self):
        super().__init__(tokenizer_data={"mistral3_24b_tokenizer_class": SmallTekken})


KINDS = {
    "flux": comfy.text_encoders.flux.FluxTokenizer,
    "flux2": SmallMistral,
    "flux2_klein": comfy.text_encoders.flux.KleinTokenizer,
    "chroma": comfy.text_encoders.pixart_t5.PixArtTokenizer,
    "sd3": comfy.text_encoders.sd3_clip.SD3Tokenizer,
    "qwen_image": comfy.text_encoders.qwen_image.QwenImageTokenizer,
    "z_image": comfy.text_encoders.z_image.ZImageTokenizer,
    "lumina2": SmallGemma,
    "anima": comfy.text_encoders.anima.AnimaTokenizer,
    "hidream": comfy.text_encoders.hidream.HiDreamTokenizer,
    "wan": SmallUMT5,
    "cosmos": comfy.text_encoders.cosmos.CosmosT5Tokenizer,
}
DAILY = ("flux2", "sd3", "qwen_image", "lumina2", "wan")
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
            marks = ("<|im_start|>", "<|im_end|>", "</s>", "assistant", "<pad>", "[INST]", "[/INST]")
            special = {token for token in part.ids if token in marks}
            assert not special & set(part.of(part.content))


def test_weights_are_weights_or_text_as_the_encoder_reads_them():
    text = "a (red:1.2) cat"
    for kind in ("chroma", "sd3", "wan"):
        assert tokenize(clip(kind), text).spelled_words == ("a", "red", "cat")
    for kind in ("qwen_image", "flux2"):
        assert tokenize(clip(kind), text).spelled_words == ("a", "(red:1.2)", "cat")
        assert tokenize(clip(kind), text).find(tokenize(clip(kind), "red"))


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


@pytest.mark.parametrize("loaded", [("clip_l", "clip_g"), ("clip_l",), ("clip_g",)])
@torch.inference_mode()
def test_sd3_without_t5_has_the_columns_that_core_encodes(loaded):
    small = {f"clip_{name}_model_config": {**CONFIG, "num_hidden_layers": 3} for name in "lg"}
    encoders = comfy.text_encoders.sd3_clip.sd3_clip(
        **{name: name in loaded for name in ("clip_l", "clip_g")}, t5=False
    )
    target = ClipTarget(comfy.text_encoders.sd3_clip.SD3Tokenizer, encoders)
    only = comfy.sd.CLIP(target, model_options=small)
    for text in ("a red cat on the grass", "a red cat, " * 30):
        prompt = tokenize(only, text)
        [[encoding, _]] = only.encode_from_tokens_scheduled(only.tokenize(text))
        assert len(prompt.ids) == encoding.shape[1] == columns_of_conditioning(encoding, {})
        assert prompt.words == tokenize(clip("sd3"), text).encodings[0][1].words
        assert len(prompt.encodings) == 1 and spelled(prompt, prompt.words[2]).startswith("cat")


def test_an_encoder_that_is_not_loaded_has_columns_but_no_words():
    """Core writes zeros where HiDream-I1 has no T5."""
    whole = clip("hidream")
    part = tokenizer_only(KINDS["hidream"])
    part.cond_stage_model = comfy.text_encoders.hidream.HiDreamTEModel(False, False, False, False)
    part.cond_stage_model.llama = torch.nn.Identity()  # as if it were loaded
    text = "a red cat on the grass"
    expected, prompt = tokenize(whole, text), tokenize(part, text)
    assert prompt.ids == expected.ids
    first = len(expected.encodings[0][1].ids)
    assert prompt.content == tuple(column for column in expected.content if column >= first) != ()
    cats = prompt.find(tokenize(part, "red cat")), expected.find(tokenize(whole, "red cat"))
    assert cats[0] == tuple(column for column in cats[1] if column >= first) != ()


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
