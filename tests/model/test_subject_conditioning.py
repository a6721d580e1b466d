"""Subject conditioning, compared with the published procedure over transformers' CLIP on the same weights."""

from __future__ import annotations

import gc

import comfy.hooks
import comfy.model_management
import comfy.sd1_clip
import pytest
import torch
from comfy.sd1_clip import SD1Tokenizer, SDTokenizer
from comfy_extras.nodes_hooks import CreateHookKeyframe, SetClipHooks, SetHookKeyframes
from palimpsest.nodes.subject.conditioning import subject_conditioning
from palimpsest.nodes.subject.markers import parse
from palimpsest.nodes.subject.nodes import SubjectConditioning
from palimpsest.nodes.subject.reference_pictures import Reference, prepared
from safetensors.torch import save_file
from support.fixtures import tiny_clip
from support.fixtures.twin_subject import MARKER, tiny

from nodes import CLIPSetLastLayer, CLIPTextEncode

pytestmark = pytest.mark.model

TEXTS = [
    (f"a man {MARKER} and a woman {MARKER} reading a book", "a man and a woman reading a book"),
    (f"photo of a hippopotamus{MARKER}, smiling; a cat{MARKER}", "photo of a hippopotamus, smiling; a cat"),
    (f"the man{MARKER}'s hat on a dog {MARKER}", "the man's hat on a dog"),
    (f"A Man{MARKER}\nand\t{'word ' * 60}child{MARKER}", f"A Man\nand\t{'word ' * 60}child"),
]


@pytest.fixture(scope="module")
def made(clip):
    return tiny(clip)


@pytest.fixture(scope="module")
def encoder(made):
    return made[0]


def pictures(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.rand(*size, 3, generator=generator) for size in sizes]


PAIR = pictures((300, 220), (224, 311))


def conditioned(clip, encoder, text, found):
    return subject_conditioning(clip, encoder, text, [Reference(picture) for picture in found])


def states(conditioning):
    [[found, _]] = conditioning
    return found[0]


def encode(clip, text):
    [conditioning] = CLIPTextEncode().encode(clip, text)
    return conditioning


@pytest.mark.parametrize(("text", "plain"), TEXTS)
def test_it_equals_the_published_procedure_over_transformers(clip, made, text, plain):
    encoder, twin = made
    positive_subject, positive, prompt = conditioned(clip, encoder, text, PAIR)
    fused, unfused = twin(text, PAIR)
    assert (states(positive_subject) - fused).abs().max() < 1e-5
    assert (states(positive) - unfused).abs().max() < 1e-5
    marked = twin.tokens(text)[1]
    assert [slot + 1 for slot in prompt.slots] == marked.nonzero().flatten().tolist()
    assert (fused - unfused)[marked].abs().max() > 0.1


@pytest.mark.parametrize("count", [1, 3, 4])
def test_one_to_four_subjects_equal_the_published_procedure(clip, made, count):
    encoder, twin = made
    found = pictures((300, 220), (224, 311), (90, 90), (40, 100))[:count]
    text = " and ".join(f"a {noun} {MARKER}" for noun in ("man", "woman", "boy", "girl")[:count])
    positive_subject, positive, prompt = conditioned(clip, encoder, text, found)
    fused, unfused = twin(text, found)
    assert (states(positive_subject) - fused).abs().max() < 1e-5
    assert (states(positive) - unfused).abs().max() < 1e-5
    assert len(prompt.slots) == int(twin.tokens(text)[1].sum()) == count


@pytest.mark.parametrize(("text", "plain"), TEXTS)
def test_all_other_tokens_are_the_plain_text_s_bit_for_bit(clip, encoder, text, plain):
    positive_subject, positive, prompt = conditioned(clip, encoder, text, PAIR)
    reference = encode(clip, plain)
    assert torch.equal(states(positive), states(reference))
    assert torch.equal(positive[0][1]["pooled_output"], reference[0][1]["pooled_output"])
    changed = (states(positive_subject) != states(reference)).any(dim=-1).nonzero().flatten().tolist()
    assert changed == [slot + 1 for slot in prompt.slots]


def test_preparing_and_embedding_equal_the_published(made):
    encoder, twin = made
    for picture in pictures((300, 220), (221, 500), (100, 40), (33, 20), (224, 224), (64, 64)):
        assert (prepared(Reference(picture), 224) - twin.prepare(picture)).abs().max() < 1e-6
        # Published scripts resize bytes, which rounds: at most one level of 255.
        quantised = (picture * 255).round()
        theirs = twin.prepare(quantised.byte()).float() / 255
        assert (prepared(Reference(quantised / 255), 224) - theirs).abs().max() < 1.01 / 255
    pixels = torch.stack([prepared(Reference(picture), 224) for picture in PAIR])
    with torch.no_grad():
        theirs = twin.vision(twin.normalise(pixels)).image_embeds
    assert (encoder.embed(pixels) - theirs).abs().max() < 1e-5


def test_swapping_the_pictures_swaps_the_subjects(clip, encoder):
    text = f"a man {MARKER} and a man {MARKER}"
    one, _, prompt = conditioned(clip, encoder, text, PAIR)
    other, _, _ = conditioned(clip, encoder, text, PAIR[::-1])
    first, second = (slot + 1 for slot in prompt.slots)
    alone, _, _ = conditioned(clip, encoder, f"a man {MARKER} and a man", PAIR[1:])
    assert (states(other)[first] - states(alone)[first]).abs().max() < 1e-6
    assert (states(one) - states(other)).abs()[[first, second]].amax(dim=-1).min() > 1e-3


def test_both_markers_mean_the_same(clip, encoder):
    published, _, _ = conditioned(clip, encoder, f"a man {MARKER} and a dog {MARKER}", PAIR)
    ours, _, prompt = conditioned(clip, encoder, "a man<subject> and a dog <subject>", PAIR)
    assert torch.equal(states(published), states(ours))
    assert prompt.nouns == ("man", "dog")


def test_a_network_of_zeros_leaves_the_normalised_text(clip, made):
    encoder, _ = tiny(clip, seed=1)
    network = encoder.patcher.model.postfuse_module
    for mlp in (network.mlp1, network.mlp2):
        mlp.fc2.weight.data.zero_()
        mlp.fc2.bias.data.zero_()
    positive_subject, positive, prompt = conditioned(clip, encoder, f"a man {MARKER} walks", PAIR[:1])
    column = prompt.slots[0] + 1
    assert (states(positive_subject)[column] - network.layer_norm(states(positive)[column])).abs().max() < 1e-6


def test_weights_act_after_the_pictures_are_put_in(clip, encoder):
    plain, _, prompt = conditioned(clip, encoder, f"a man {MARKER} in a red hat", PAIR[:1])
    column = prompt.slots[0] + 1
    elsewhere, positive, _ = conditioned(clip, encoder, f"a man {MARKER} in a (red:1.5) hat", PAIR[:1])
    assert torch.equal(states(positive), states(encode(clip, "a man in a (red:1.5) hat")))
    assert (states(elsewhere)[column] - states(plain)[column]).abs().max() < 1e-6
    empty = states(encode(clip, ""))[column]
    for text in (
        f"a (man {MARKER}:1.4) in a red hat",
        f"a (man:1.4){MARKER} in a red hat",
        f"a (man{MARKER}:1.4) in a red hat",
    ):
        weighted, positive, _ = conditioned(clip, encoder, text, PAIR[:1])
        assert torch.equal(states(positive), states(encode(clip, "a (man:1.4) in a red hat")))
        expected = empty + 1.4 * (states(plain)[column] - empty)
        assert (states(weighted)[column] - expected).abs().max() < 1e-5
        changed = (states(weighted) != states(positive)).any(dim=-1).nonzero().flatten().tolist()
        assert changed == [column]


def test_long_prompts_keep_their_subjects_in_every_chunk(clip, made):
    encoder, twin = made
    words = "and some grass " * 30
    text = f"a man {MARKER} {words} under a hippopotamus {MARKER} there"
    positive_subject, positive, prompt = conditioned(clip, encoder, text, PAIR)
    assert torch.equal(states(positive), states(encode(clip, text.replace(f" {MARKER}", ""))))
    assert states(positive).shape[0] == 154
    changed = (states(positive_subject) != states(positive)).any(dim=-1).nonzero().flatten().tolist()
    assert changed == [2, 77 + 1 + prompt.slots[1] - 75]
    pixels = torch.stack([twin.normalise(twin.prepare(picture)) for picture in PAIR])
    with torch.no_grad():
        marked = torch.zeros(154, dtype=torch.bool)
        marked[changed] = True
        fused = twin.postfuse(states(positive), twin.vision(pixels).image_embeds, marked)
    assert (states(positive_subject) - fused).abs().max() < 1e-5


def test_a_textual_inversion_can_be_a_subject(encoder, tmp_path):
    save_file({"emb_params": torch.randn(2, tiny_clip.WIDTH)}, tmp_path / "hero.safetensors")
    clip = tiny_clip.sd1(embedding_directory=str(tmp_path))
    clip.tokenizer.clip_l.embedding_size = tiny_clip.WIDTH
    prompt = parse(clip, f"photo of embedding:hero {MARKER} there")
    assert (prompt.nouns, prompt.slots) == (("embedding:hero",), (3,))
    positive_subject, positive, _ = conditioned(clip, encoder, f"photo of embedding:hero {MARKER} there", PAIR[:1])
    changed = (states(positive_subject) != states(positive)).any(dim=-1).nonzero().flatten().tolist()
    assert changed == [4]
    with pytest.raises(ValueError, match=r"^text: .* got 'embedding:missing', which this clip reads as nothing"):
        parse(clip, f"photo of embedding:missing {MARKER}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_encoders_compute_in_single(clip, dtype):
    """ComfyUI keeps text encoders in fp16 and casts their weights for computing."""
    encoder, twin = tiny(clip, dtype)
    assert {weight.dtype for weight in encoder.patcher.model.postfuse_module.parameters()} == {dtype}
    text = f"a man {MARKER} and a dog {MARKER}"
    positive_subject, _, _ = conditioned(clip, encoder, text, PAIR)
    fused, _ = twin(text, PAIR)
    assert states(positive_subject).dtype == torch.float32
    assert (states(positive_subject) - fused).abs().max() < 1e-5


def test_the_inputs_are_left_as_they_were_and_again_is_the_same(clip, encoder):
    text, found = f"a man {MARKER} and a dog {MARKER}", [picture.clone() for picture in PAIR]
    before = {name: value.clone() for name, value in encoder.patcher.model.state_dict().items()}
    with torch.inference_mode():
        one, plain, _ = conditioned(clip, encoder, text, found)
        other, _, _ = conditioned(clip, encoder, text, found)
    assert torch.equal(states(one), states(other))
    assert one[0][1] is not plain[0][1]
    assert all(torch.equal(a, b) for a, b in zip(found, PAIR, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in encoder.patcher.model.state_dict().items())


def test_comfyui_can_unload_it_and_lends_it_again(clip, encoder):
    text = f"a man {MARKER}"
    one, _, _ = conditioned(clip, encoder, text, PAIR[:1])
    assert any(entry.model is encoder.patcher for entry in comfy.model_management.current_loaded_models)
    comfy.model_management.unload_all_models()
    gc.collect()
    assert not comfy.model_management.current_loaded_models
    other, _, _ = conditioned(clip, encoder, text, PAIR[:1])
    assert torch.equal(states(one), states(other))


def test_a_lora_on_the_clip_acts_on_both_outputs(clip, encoder):
    name = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    changed = clip.clone()
    changed.add_patches({name: (torch.ones(2 * tiny_clip.WIDTH, tiny_clip.WIDTH) * 0.05,)})
    text = f"a man {MARKER} walks"
    with_lora, plain, prompt = conditioned(changed, encoder, text, PAIR[:1])
    assert torch.equal(states(plain), states(encode(changed, "a man walks")))
    without, _, _ = conditioned(clip, encoder, text, PAIR[:1])
    column = prompt.slots[0] + 1
    assert (states(with_lora)[column] - states(without)[column]).abs().max() > 1e-4


def test_a_lora_that_is_scheduled_gives_an_entry_for_each_of_its_strengths(encoder):
    clip = tiny_clip.sd1()
    layer = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    up, down = torch.ones(2 * tiny_clip.WIDTH, 1), 0.1 * torch.ones(1, tiny_clip.WIDTH)
    hooks = comfy.hooks.create_hook_lora({f"{layer}.lora_up.weight": up, f"{layer}.lora_down.weight": down}, 0.0, 1.0)
    [keyframes] = CreateHookKeyframe().create_hook_keyframe(0.0, 0.0)
    [keyframes] = CreateHookKeyframe().create_hook_keyframe(1.0, 0.5, keyframes)
    [hooks] = SetHookKeyframes().set_hook_keyframes(hooks, keyframes)
    [clip] = SetClipHooks().apply_hooks(clip, True, True, hooks)
    positive_subject, positive, prompt = conditioned(clip, encoder, f"a man {MARKER} walks", PAIR[:1])
    reference = encode(clip, "a man walks")
    assert [entry[1]["clip_start_percent"] for entry in positive_subject] == [0.0, 0.5]
    column = prompt.slots[0] + 1
    for (fused, _), (plain, _), (expected, _) in zip(positive_subject, positive, reference, strict=True):
        assert torch.equal(plain, expected)
        assert (fused != plain).any(dim=-1).nonzero()[:, 1].tolist() == [column]
    off, on = (entry[0][0, column] for entry in positive_subject)
    assert (off - on).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{MARKER} a man", r"a noun right before each marker, .* got nothing before marker 1"),
        (f"a man {MARKER}{MARKER}", r"a noun right before each marker, .* got another marker before marker 2"),
        (f"a man, {MARKER} walks", r"a noun right before each marker, .* got ',' before marker 1"),
        (f"a man {MARKER} and (a dog), <subject>", r"a noun right before each marker, .* got ',' before marker 2"),
        ("a man and a dog", r"one marker for each of the 2 reference pictures.* got 0"),
        (f"a man {MARKER}", r"one marker for each of the 2 .* got 1 in"),
        (f"a man {MARKER}, a dog {MARKER}, a cat {MARKER}", r"one marker for each of the 2 .* got 3 in"),
        ("", r"one marker .* got 0 in"),
    ],
)
def test_markers_that_do_not_fit_are_refused(clip, encoder, text, message):
    with pytest.raises(ValueError, match=rf"^text: expected {message}"):
        conditioned(clip, encoder, text, PAIR)


class _OneChunk(SDTokenizer):
    def tokenize_with_weights(self, *args, **kwargs):
        return super().tokenize_with_weights(*args, **kwargs)[:1]


def test_a_subject_beyond_what_the_clip_reads_is_refused(encoder):
    """ComfyUI's own tokeniser reads on in another chunk; one that cuts off, as other packs have, loses subjects."""
    clip = tiny_clip.sd1()
    clip.tokenizer = SD1Tokenizer(tokenizer=_OneChunk)
    assert len(conditioned(clip, encoder, f"a man {MARKER} and {'word ' * 90}", PAIR[:1])[0]) == 1
    with pytest.raises(ValueError, match=r"^text: expected every subject among the 75 tokens .* got 'dog' at token 95"):
        conditioned(clip, encoder, f"a man {'word ' * 91} a dog {MARKER}", PAIR[:1])


def test_other_text_encoders_and_layers_are_refused(clip, encoder):
    text = f"a man {MARKER}"
    [skipping] = CLIPSetLastLayer().set_last_layer(clip, -2)
    with pytest.raises(ValueError, match=r"^clip: expected its last layer, .* got layer -2"):
        conditioned(skipping, encoder, text, PAIR[:1])
    [last] = CLIPSetLastLayer().set_last_layer(clip, -1)
    same, _, _ = conditioned(last, encoder, text, PAIR[:1])
    assert (states(same) - states(conditioned(clip, encoder, text, PAIR[:1])[0])).abs().max() < 1e-6
    with pytest.raises(ValueError, match=r"^clip: expected SD1.x's text encoder, .* got [gl], [gl]"):
        conditioned(tiny_clip.sdxl(), encoder, text, PAIR[:1])


def test_an_encoder_of_another_width_is_refused(clip):
    encoder, _ = tiny(clip)
    wide = type(encoder)(encoder.patcher, 768, encoder.image_size)
    with pytest.raises(ValueError, match=r"^clip: expected a text encoder of the subject encoder's width, 768, got 64"):
        conditioned(clip, wide, f"a man {MARKER}", PAIR[:1])


def test_the_node_reads_batches_and_sockets_in_order(clip, encoder):
    text = f"a man {MARKER}, a dog {MARKER}, a cat {MARKER}"
    batch, other = torch.stack(pictures((50, 40), (50, 40))), pictures((30, 60))[0]
    mask = torch.zeros(1, 30, 60)
    mask[:, 5:20, 10:40] = 1.0
    positive_subject, positive = SubjectConditioning.execute(
        clip, encoder, batch, text, image_2=other[None], mask_2=mask
    ).args
    expected, plain, _ = subject_conditioning(
        clip, encoder, text, [Reference(batch[0]), Reference(batch[1]), Reference(other, mask[0])]
    )
    assert torch.equal(states(positive_subject), states(expected)) and torch.equal(states(positive), states(plain))
    unmasked, _ = SubjectConditioning.execute(clip, encoder, batch, text, image_2=other[None]).args
    changed = (states(unmasked) != states(positive_subject)).any(dim=-1).nonzero().flatten().tolist()
    assert changed == [8]
