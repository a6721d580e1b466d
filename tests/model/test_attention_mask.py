from functools import partial

import pytest
import torch
from palimpsest.nodes.display.heatmap import heatmap
from palimpsest.nodes.prompt_to_prompt.attention_mask import mask_of, otsu
from palimpsest.nodes.prompt_to_prompt.nodes import AttentionMask
from palimpsest.nodes.prompt_to_prompt.prompt_edit import prompt_edit
from palimpsest.nodes.text.tokens import tokenize
from skimage.filters import threshold_otsu
from support.fixtures.other_packs import deep_shrink
from support.fixtures.sampling import random_trajectory
from support.fixtures.tiny_models import conditioning, flow_dit, sd15, sdxl
from support.fixtures.unet_probe import UNetProbe, fingerprint, same

pytestmark = pytest.mark.model
UNET = sd15

TEXT = "a red cat on the grass"


@pytest.fixture(scope="module")
def trajectory(model):
    return random_trajectory(model, conditioning(model, 1), 4, batch=2)


def read(model, clip, trajectory, words="cat", text=TEXT, start=0.0, end=1.0, threshold=0.0, **optional):
    return AttentionMask.execute(model, clip, trajectory, text, words, start, end, threshold, **optional).args[:2]


def plain_map(model, trajectory, embedding, column, steps):
    """The word's attention at the full resolution of a 16 x 16 latent, from the weights of to_q and to_k."""
    unet = model.model.diffusion_model
    layers = [block[1].transformer_blocks[0].attn2 for block in (*unet.input_blocks[1:3], *unet.output_blocks[9:12])]
    queries: list[torch.Tensor] = []
    handles = [layer.to_q.register_forward_hook(lambda m, a, out: queries.append(out)) for layer in layers]
    total = 0.0
    for step in steps:
        sigma = trajectory.sigmas[step]
        timestep = model.get_model_object("model_sampling").timestep(sigma).expand(2)
        queries.clear()
        with torch.no_grad():
            unet(trajectory.latents[step] / (sigma**2 + 1) ** 0.5, timestep, embedding.expand(2, -1, -1))
            for layer, q in zip(layers, list(queries), strict=True):
                scores = torch.einsum(
                    "bnhc,khc->bhnk", q.unflatten(-1, (4, -1)), layer.to_k(embedding)[0].unflatten(-1, (4, -1))
                )
                attention = torch.softmax(scores / (q.shape[-1] / 4) ** 0.5, -1)[..., column].sum(1)
                total = total + attention / attention.mean(1, keepdim=True)
    for handle in handles:
        handle.remove()
    maps = total.view(2, 16, 16)
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low)


def test_map_is_the_words_cross_attention_along_the_trajectory(model, clip, trajectory):
    embedding = clip.encode_from_tokens_scheduled(clip.tokenize(TEXT))[0][0]
    for steps in (range(4), range(1, 3)):
        expected = plain_map(model, trajectory, embedding, 3, steps)
        mask, _ = read(model, clip, trajectory, start=steps.start / 4, end=steps.stop / 4, threshold=0.6)
        expected = torch.nn.functional.interpolate(expected[:, None], (128, 128), mode="bicubic")[:, 0].clamp(0, 1)
        sure = (expected - 0.6 * expected.amax((1, 2), keepdim=True)).abs() > 1e-4
        assert torch.equal(mask[sure], (expected > 0.6 * expected.amax((1, 2), keepdim=True)).float()[sure])
        assert 0.0 < float(mask.mean()) < 1.0


def test_sizes_and_values(model, clip, trajectory):
    mask, colours = read(model, clip, trajectory)
    assert mask.shape == (2, 128, 128) and set(mask.unique().tolist()) == {0.0, 1.0}
    assert colours.shape == (2, 128, 128, 3) and 0.0 <= float(colours.min()) <= float(colours.max()) <= 1.0
    image = torch.rand(1, 96, 100, 3)  # another size, and the few pixels that VAE Encode cuts
    mask, over = read(model, clip, trajectory, image=image)
    assert mask.shape == (2, 96, 100) and over.shape == (2, 96, 100, 3)
    assert float(read(model, clip, trajectory, threshold=1.0)[0].sum()) == 0.0


def test_reads_only_the_steps_asked_for_and_leaves_the_model_alone(model, clip, trajectory):
    before = fingerprint(model)
    with UNetProbe(model) as probe:
        read(model, clip, trajectory, start=0.5, end=0.75)
    assert [len(call.x) for call in probe.calls] == [2]
    assert probe.source_calls(trajectory.latents[2:3], trajectory.sigmas[2:3]) == [0]
    assert fingerprint(model) == before


def test_positive_and_edit_take_the_place_of_text_and_words(model, clip, trajectory):
    encoded = clip.encode_from_tokens_scheduled(clip.tokenize(TEXT))
    expected = read(model, clip, trajectory)[1]
    assert torch.equal(read(model, clip, trajectory, positive=encoded)[1], expected)
    assert not same(read(model, clip, trajectory, positive=conditioning(model, 5))[1], expected, 1e-3)
    edit = prompt_edit(partial(tokenize, clip), TEXT, "a red dog on the grass", "auto", "", "cat, dog")
    assert torch.equal(read(model, clip, trajectory, words="", text="", edit=edit)[1], expected)


@pytest.mark.parametrize("size", [(16, 16), (18, 16)])
def test_deep_shrink(model, clip, size):
    """Fault E8: layers' maps of other sizes could not be added."""
    trajectory = random_trajectory(model, conditioning(model, 1), 4, size=size, scheduler="normal")
    mask, _ = read(deep_shrink(model), clip, trajectory)
    assert mask.shape == (1, 8 * size[0], 8 * size[1])


def test_leaves_the_network_behind_the_last_layer_it_reads(model, clip):
    """Fault E19: every layer behind it was run for nothing."""
    trajectory = random_trajectory(model, conditioning(model, 1), 1, size=(64, 64))
    ran = []
    unet = model.model.diffusion_model
    handles = [
        block[0].register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, block in enumerate(unet.output_blocks)
    ]
    read(model, clip, trajectory)
    for handle in handles:
        handle.remove()
    assert ran == [0, 1, 2, 3, 4, 5]


def test_another_word_is_elsewhere(model, clip, trajectory):
    assert not torch.equal(read(model, clip, trajectory)[0], read(model, clip, trajectory, "grass")[0])


def test_sdxl(clip):
    model = sdxl()
    trajectory = random_trajectory(model, conditioning(model, 1), 2)
    positive = conditioning(model, 2)
    assert read(model, clip, trajectory, positive=positive)[0].shape == (1, 128, 128)


def test_otsu_equals_scikit_image_s():
    generator = torch.Generator().manual_seed(3)
    for share in (0.1, 0.4):
        inside = torch.rand(32, 32, generator=generator) < share
        maps = (0.25 + 0.4 * inside + 0.08 * torch.randn(32, 32, generator=generator)).clamp(0, 1)[None]
        maps.view(-1)[:2] = torch.tensor([0.0, 1.0])
        level, expected = float(otsu(maps)), float(threshold_otsu(maps.numpy(), nbins=256))
        assert abs(level - expected) <= 1.5 / 256
        assert (mask_of(maps, 0.0)[0] == inside).float().mean() > 0.98


def test_heatmap_rises_in_lightness():
    ramp = torch.linspace(0, 1, 50).view(1, 1, 50)
    lightness = heatmap(ramp, None)[0, 0] @ torch.tensor([0.2126, 0.7152, 0.0722])
    assert bool((lightness.diff() > 0).all())
    assert torch.equal(heatmap(ramp, None)[0, 0, 0], torch.tensor([0.0, 0.0, 0.02]))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"words": "dog"}, "^words: expected words as they stand in text, got 'dog'"),
        ({"words": " , "}, "^words: expected at least one word"),
        ({"text": ""}, "^text: expected a prompt with at least one word"),
        ({"words": "a red cat on the grass today"}, "^words: .* It has 7 tokens, and no prompt more than 6"),
        ({"start": 0.5, "end": 0.5}, "^end: expected at least one of the trajectory's 4 steps"),
        ({"image": torch.zeros(3, 8, 8, 3)}, "^image: expected one picture or the trajectory's 2, got a batch of 3"),
        # Fault R8: the mask was stretched over a picture that had been cropped before it was inverted.
        (
            {"image": torch.zeros(1, 128, 256, 3)},
            "^image: expected the inverted picture, .* 128 x 128 .* got .* 256 x 128",
        ),
        ({"image": torch.zeros(1, 300, 200, 3)}, "^image: expected the inverted picture, .* got one of 200 x 300"),
    ],
)
def test_refuses_naming_socket_and_value(model, clip, trajectory, options, says):
    with pytest.raises(ValueError, match=says):
        read(model, clip, trajectory, **options)


def test_refuses_what_does_not_fit(model, clip, trajectory):
    with pytest.raises(
        ValueError, match=r"^positive: expected an encoding of the text, which has 77 tokens, got .* 154"
    ):
        read(model, clip, trajectory, positive=conditioning(model, 2, tokens=154))
    edit = prompt_edit(partial(tokenize, clip), TEXT, TEXT, "auto", "", "")
    with pytest.raises(ValueError, match=r"^edit: expected one with blend_words of its source_text"):
        read(model, clip, trajectory, edit=edit)
    for other in (flow_dit(), sdxl()):
        with pytest.raises(ValueError, match=r"^model: expected the kind of model the trajectory"):
            read(other, clip, trajectory)
