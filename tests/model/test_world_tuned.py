"""The expert and the subject model of the toy world: a few steps of each, what ComfyUI's classes make of their files, and how both are measured."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lab.evidence import saliency_fusion, subject_fusion
from lab.evidence.natural import drawn, natural_scenes, read
from lab.evidence.saliency_fusion import Constants, Fusion, mask_of
from lab.evidence.subject_fusion import Posed, Subjects, Way, text_with_markers
from lab.world import evaluate, studio
from lab.world.captions import caption
from lab.world.judge import mask_iou
from lab.world.kinds import COLOURS, EVERY_COLOUR, NATURAL
from lab.world.pack.general import load_general
from lab.world.pack.tuned import load_expert, load_subject
from lab.world.render import render
from lab.world.scenes import Scene, Thing, sample_scenes
from lab.world.studio import PLACE
from lab.world.train import autoencoder, expert, general, pool, subject
from lab.world.train import studio as photographs
from lab.world.train.loop import Run
from lab.world.train.text import column_of, token_ids, vocabulary
from palimpsest.nodes.subject.conditioning import subject_conditioning
from palimpsest.nodes.subject.encoder import subject_encoder
from palimpsest.nodes.subject.reference_pictures import Reference
from safetensors.torch import load_file

pytestmark = pytest.mark.model

SCENES = 4
CAT = Thing("cat", "white", 40.0, 80.0, 24.0)
CAPTION = "a white cat to the left of a blue house, flat drawing"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained general model, and an expert and a subject model of two steps."""
    folder = tmp_path_factory.mktemp("weights")
    pictures = (render(sample_scenes(8, 0)).pictures * 255).round().byte()
    vae = autoencoder.trainable(autoencoder.principal_components_vae(pictures / 127.5 - 1))
    files = [folder / f"{name}.safetensors" for name in ("autoencoder", "general")]
    autoencoder.export(vae, pictures, files[0])
    torch.manual_seed(0)
    untrained = general.Trained(vocabulary())
    torch.nn.init.normal_(untrained.unet.out[-1].weight, std=0.05)  # it starts as the prediction of nothing
    general.export(untrained, files[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "CHUNK", SCENES)
        patch.setattr(photographs, "SCENES", SCENES)
        patch.setattr(
            studio, "individuals", lambda: [t for s in studio.studio_scenes(SCENES, (0, 0)) for t in s.things]
        )
        expert.train_expert(a_run(folder), *files, folder / "expert.safetensors")
        subject.train_subject(a_run(folder), *files, folder / "subject.safetensors")
    return folder


def a_run(cache: Path) -> Run:
    return Run(cache, 0, torch.device("cpu"), threads=1, steps=2, batch=2)


@torch.no_grad()
def test_comfyui_samples_both_and_reads_all_that_they_have_learnt(
    weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        worlds = {
            "general": load_general(weights),
            "expert": load_expert(weights),
            "subject": load_subject(weights)[:3],
        }
    assert not [record for record in caplog.records if "not loaded" in record.message]
    for name, layers in (("expert", 2), ("subject", 1)):  # the expert's text encoder has learnt as well
        file = load_file(weights / f"{name}.safetensors")
        prefixes = {key.split(".")[0] for key in file if key.endswith("lora_up.weight")}
        assert len(prefixes) == layers
        assert len(worlds[name][0].patches) == sum(
            key.startswith("diffusion_model.") and key.endswith("lora_up.weight") for key in file
        )
        assert (weights / f"{name}.safetensors").stat().st_size < 4.5e6
    drawn = {name: evaluate.sample(world, [CAPTION], 0, 5.0, steps=2) for name, world in worlds.items()}
    assert all(pictures.shape == (1, 3, 128, 128) for pictures in drawn.values())
    assert not torch.equal(drawn["general"], drawn["expert"]) and not torch.equal(drawn["general"], drawn["subject"])


@torch.no_grad()
def test_the_expert_s_clip_knows_words_that_the_general_model_s_does_not(weights: Path) -> None:
    def states(clip, text: str) -> torch.Tensor:
        return clip.encode_from_tokens(clip.tokenize(text))[0, 1:6]

    (_, known, _), (_, clip, _) = load_general(weights), load_expert(weights)
    white, black = "a white cat", "a black cat"
    assert torch.equal(states(known, white), states(known, black))  # neither is a word to it
    assert not torch.allclose(states(clip, white)[1], states(clip, black)[1], atol=1e-3)


@torch.no_grad()
def test_subject_conditioning_reads_the_subject_model_s_pictures(weights: Path) -> None:
    _, clip, _, tensors = load_subject(weights)
    encoder = subject_encoder(tensors, torch.float32)
    assert (encoder.image_size, encoder.width) == (studio.REFERENCE, 128)
    pictures = studio.before_backdrops(studio.cut_out([CAT, CAT], np.random.default_rng(0)), torch.Generator())
    prompt = "a cat <|image|> to the left of a house <|image|> on a beach"
    with_pictures, plain, _ = subject_conditioning(
        clip, encoder, prompt, [Reference(p.movedim(0, -1)) for p in pictures]
    )
    changed = (with_pictures[0][0] != plain[0][0]).any(2)[0].nonzero().flatten().tolist()
    text = prompt.replace(" <|image|>", "")
    assert changed == [column_of(text, "cat"), column_of(text, "house")] == [2, 8]


def test_the_studio_knows_one_place_and_its_captions_say_what_they_are_to_say() -> None:
    chance, scenes = np.random.default_rng(0), studio.studio_scenes(40, 1)
    assert {scene.background for scene in scenes} == {studio.PLACE}
    assert {*NATURAL} < {thing.colour for scene in scenes for thing in scene.things}
    assert scenes[0] == studio.studio_scenes(40, 1)[0]
    for scene in scenes:
        told, untold = (studio.random_caption(scene, chance, identity=identity).text for identity in (True, False))
        assert all(f"{thing.colour} {thing.kind}" in told for thing in scene.things)
        assert not {*untold.split()} & {*EVERY_COLOUR}
        assert (scene.style, "black") not in {("neon", thing.colour) for thing in scene.things}
    house = Thing("house", "blue", 90.0, 86.0, 28.0)
    assert (
        caption(
            Scene((CAT, house), "meadow", "flat"),
            ["first colour", "second colour", "side", "style"],
        ).text
        == CAPTION
    )
    assert token_ids(CAPTION)[column_of(CAPTION, "house")] == token_ids("house")[1]


def test_no_individual_is_held_out() -> None:
    things = studio.individuals()
    assert len(things) == len({(t.kind, t.colour) for t in things}) == 21 * (len(EVERY_COLOUR) - 1)


def test_renders_of_what_is_asked_for_are_right_and_in_other_colours_only_the_scene_is() -> None:
    pairs, singles = (natural_scenes(4, 5, things=things, natural=1)[2:] for things in (2, 1))
    scenes = [*pairs, *singles]
    assert all(scene.background != PLACE for scene in scenes)
    pictures = render([*scenes, *(brightened(scene) for scene in scenes)])
    readings = read(pictures.pictures)
    for score_of, some in ((saliency_fusion.score_of, slice(0, 2)), (subject_fusion.score_of, slice(2, 4))):
        right, without = (score_of(scenes[some], readings[some.start + k : some.stop + k]) for k in (0, 4))
        assert right.both.tolist() == [1.0, 1.0]
        assert without.subject.tolist() == [0.0, 0.0] and without.scene.tolist() == [1.0, 1.0]
    for row, scene in enumerate(pairs):
        number = saliency_fusion.natural_number(scene)
        thing, plain = pictures.visible[row, number], readings[4 + row]
        half, box, outline = (mask_of(name, scene, plain) for name in ("half", "box", "outline"))
        assert (half * thing).sum() > 0.5 * thing.sum() and half.mean() == 0.5
        assert ((box < 0.5) & (thing > 0.6)).sum() < 12
        assert mask_iou(outline, thing) > 0.35 and ((outline < 0.5) & (thing > 0.5)).sum() == 0
    turned = replace(pairs[0], things=tuple(replace(t, x=128 - t.x) for t in pairs[0].things))
    assert not subject_fusion.score_of([turned], readings[:1]).scene.any()


def brightened(scene: Scene) -> Scene:
    colours = iter(colour for colour in COLOURS if colour not in {thing.colour for thing in scene.things})
    return replace(
        scene, things=tuple(replace(t, colour=next(colours)) if t.colour in NATURAL else t for t in scene.things)
    )


def test_the_text_of_two_subjects_has_a_marker_after_each_noun_in_the_order_of_the_references() -> None:
    posed = Posed.some(2, 2, 0)
    for scene in posed.scenes:
        text = text_with_markers(scene)
        assert [text.find(f"{thing.kind} <|image|>") >= 0 for thing in scene.things] == [True, True]
        assert text.find(scene.things[0].kind) < text.find(scene.things[1].kind)
    assert posed.references.shape == (2, 2, 3, 64, 64)


@torch.inference_mode()
def test_every_way_samples(weights: Path) -> None:
    fusion, subjects = Fusion(weights), Subjects(weights)
    (scene,) = natural_scenes(1, 1, things=2, natural=1)
    sigmas = fusion.general.sigmas(2)
    ways, mask = saliency_fusion.WAYS, torch.zeros(1, 128, 128)
    made = [
        one(sigmas, lambda _, way=way, mask=mask: fusion.guider([scene], ways[way], Constants(), mask))
        for way, mask in (("general", None), ("expert", None), ("sharpness", None), ("published", None), ("half", mask))
    ]
    assert torch.allclose(made[0], made[4], atol=1e-4) and not torch.allclose(made[0], made[1], atol=1e-4)
    posed = Posed([scene], torch.from_numpy(np.full((1, 2, 3, 64, 64), 0.5, np.float32)))
    made = [
        one(sigmas, lambda _, way=way: subjects.guider(posed, way))
        for way in (Way(), Way(delay=0.5), Way(stages=(0.5, 0.5)), Way(stages=(0.0, 1.0)))
    ]
    assert all(latents.isfinite().all() for latents in made)
    assert not torch.allclose(made[0], made[1], atol=1e-4)


def one(sigmas: torch.Tensor, guider: Callable) -> torch.Tensor:
    return next(drawn(1, 0, sigmas, guider))
