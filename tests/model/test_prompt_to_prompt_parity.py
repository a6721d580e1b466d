"""Equality with prompt-to-prompt written independently, as attention processors of a diffusers UNet with the same weights."""

from functools import partial

import pytest
import torch
from palimpsest.nodes.diffusion.schedule import first_steps
from palimpsest.nodes.prompt_to_prompt.control import Settings, prompt_to_prompt
from palimpsest.nodes.prompt_to_prompt.prompt_edit import prompt_edit
from palimpsest.nodes.text.tokens import tokenize
from support.cases import cases
from support.fixtures.sampling import random_trajectory, sample
from support.fixtures.tiny_models import conditioning, sd15
from support.fixtures.twin_prompt_to_prompt import Control, PublishedPromptToPrompt
from support.fixtures.twin_unet import sd15_twin

pytestmark = [pytest.mark.model, pytest.mark.newest]
UNET = sd15

CFG = 7.5
STEPS = 10


def replace(source, own, columns):
    """The published replace for a swap of single tokens is the identity mapper; `columns` says which columns differ."""
    mapper = torch.zeros(77, 77)
    for i, j, weight in columns:
        mapper[i, j] = weight
    return torch.einsum("bhpw,wn->bhpn", source, mapper)


def refine(source, own, mapper, aligned):
    """AttentionRefine: gathers the source's columns, -1 where there is none."""
    return source[..., mapper] * aligned + own * (1 - aligned)


def run_both(model, clip, texts, published, cross, self_end, size, batch=1, steps=STEPS, **words):
    source, negative, positive = (conditioning(model, seed) for seed in (1, 2, 3))
    trajectory = random_trajectory(model, source, steps, batch, (size, size))
    said = (words.get(name, "") for name in ("reweight", "blend", "keep", "windows"))
    edit = prompt_edit(partial(tokenize, clip), *texts, "auto", *said)
    settings = Settings.of(edit, steps, cross, self_end, 0.2, published.threshold, words.get("self_start", 0.0))
    patched = prompt_to_prompt(model, trajectory, source, settings)
    start = trajectory.start.flip(-1)  # away from the source's own path
    ours = sample(patched, start, positive, negative, CFG, trajectory.sigmas)

    timesteps = model.get_model_object("model_sampling").timestep(trajectory.sigmas[:-1])
    text = torch.cat([rows[0][0].repeat(batch, 1, 1) for rows in (source, negative, positive)])
    twin = PublishedPromptToPrompt(sd15_twin(model), published)
    theirs = twin.denoise(start, trajectory.latents, trajectory.sigmas, timesteps, text, CFG)
    assert len(ours) == len(theirs) == steps + 1
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()
    return ours[-1], trajectory, lambda: sample(model, start, positive, negative, CFG, trajectory.sigmas)[-1]


def assert_equal(*args, **options):
    result, _, plain = run_both(*args, **options)
    assert (result - plain()).norm() > 0.01 * result.norm()


@pytest.mark.parametrize("batch", cases([1, 2], 2))
def test_swap_of_words_of_one_and_of_several_tokens(model, clip, batch):
    # begin a red cat on the grass: 1-6; hippopotamuses has tokens 3, 4, 5 here, so all that follows moves by two.
    texts = "a red cat on the grass", "a blue hippopotamuses on the grass"
    edit = prompt_edit(partial(tokenize, clip), *texts, "replace", "", "")
    assert edit.target.words == ((1,), (2,), (3, 4, 5), (6,), (7,), (8,))
    columns = [
        (0, 0, 1),
        (1, 1, 1),
        (2, 2, 1),
        *((3, j, 1 / 3) for j in (3, 4, 5)),
        *((i, i + 2, 1) for i in (4, 5, 6, 7)),
    ]
    columns += [(j, j, 1) for j in range(10, 77)]
    published = Control(partial(replace, columns=columns), 8, 4, self_pixels=8**2)
    assert_equal(model, clip, texts, published, 0.8, 0.4, 16, batch)


@pytest.mark.long  # daily with factors, below
def test_refinement(model, clip):
    texts = "a cat on the grass", "a fluffy red cat on the green grass"
    mapper, aligned = torch.arange(77), torch.ones(77)
    mapper[:10] = torch.tensor([0, 1, -1, -1, 2, 3, 4, -1, 5, 6])
    aligned[[2, 3, 7]] = 0
    published = Control(partial(refine, mapper=mapper, aligned=aligned), 6, 10, self_pixels=8**2)
    assert_equal(model, clip, texts, published, 0.6, 1.0, 16)


def test_reweighting(model, clip):
    texts = "a fluffy cat on the red grass", "a fluffy cat on the red grass"
    equalizer = torch.ones(77)
    equalizer[2], equalizer[6] = 2.5, -1.0
    published = Control(lambda source, own: source * equalizer, 8, 4, self_pixels=8**2)
    assert_equal(model, clip, texts, published, 0.8, 0.4, 16, reweight="fluffy: 2.5, red: -1")


def test_reweighted_refinement_acts_on_the_refined_maps(model, clip):
    texts = "a cat on the grass", "a fluffy cat on the grass"
    mapper, aligned, equalizer = torch.arange(77), torch.ones(77), torch.ones(77)
    mapper[:8] = torch.tensor([0, 1, -1, 2, 3, 4, 5, 6])
    aligned[2], equalizer[2], equalizer[3] = 0, 3.0, 0.5
    published = Control(lambda s, own: refine(s, own, mapper, aligned) * equalizer, 8, 4, self_pixels=8**2)
    assert_equal(model, clip, texts, published, 0.8, 0.4, 16, reweight="fluffy: 3, cat: 0.5")


def test_windows_of_words(model, clip):
    """Fault P4: a window for each word, and self-attention that starts after the first step."""
    texts = "a red cat on the grass", "a blue dog on the grass"
    alpha = torch.zeros(STEPS, 77)
    alpha[:6] = 1.0
    alpha[:, 2] = alpha[:, 3] = 0.0
    alpha[:2, 2] = alpha[4:9, 3] = 1.0
    equalizer = torch.ones(77)
    equalizer[3] = 2.0
    published = Control(lambda source, own: source * equalizer, 6, 8, 8**2, alpha=alpha, self_start=3)
    options = {"reweight": "dog: 2", "self_start": 0.3, "windows": "blue: 0.2, dog: 0.4-0.9"}
    assert_equal(model, clip, texts, published, 0.6, 0.8, 16, **options)


def test_words_whose_place_must_not_change(model, clip):
    """Fault P4: the published substruct_words."""
    texts = "a red cat on the grass", "a red dog on the grass"
    blend = {"blend": ([3], [3], 1), "threshold": 0.8}
    published = Control(lambda source, own: source, 4, 2, 16**2, kept=([6], [6]), **blend)
    options = {"blend": "cat, dog", "steps": 5}
    result, trajectory, _ = run_both(model, clip, texts, published, 0.8, 0.4, 32, **options, keep="grass")
    freer = run_both(
        model, clip, texts, Control(lambda source, own: source, 4, 2, 16**2, **blend), 0.8, 0.4, 32, **options
    )[0]
    as_source = [((path - trajectory.latents[-1]).abs().amax(1) < 1e-4).sum() for path in (result, freer)]
    assert as_source[0] > as_source[1]


@pytest.mark.parametrize(
    ("size", "steps"),
    cases([(32, 5), (32, STEPS), (64, 3)], (32, 5)),
)
def test_local_blend(model, clip, size, steps):
    """64 is the published size, with its literal limit of 32 x 32 pixels for self-attention."""
    texts = "a red cat on the grass", "a red dog on the grass"
    windows = first_steps(0.8, steps), first_steps(0.4, steps)
    pixels = 32**2 if size == 64 else 16**2
    blend = [3], [3], first_steps(0.2, steps)
    # Random weights look everywhere nearly alike: only a high threshold parts the picture.
    published = Control(lambda source, own: source, *windows, pixels, blend, threshold=0.9)
    result, trajectory, _ = run_both(model, clip, texts, published, 0.8, 0.4, size, steps=steps, blend="cat, dog")
    kept = (result - trajectory.latents[-1]).abs().amax(1) < 1e-4
    assert 0.01 < float(kept.float().mean()) < 0.99
