"""Every loader with thousands of damaged and crafted files: each loads, or is refused in one clear sentence, and nothing else happens."""

from __future__ import annotations

import random
import resource
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from palimpsest.nodes.inversion.trajectory_io import load_trajectory, save_trajectory
from palimpsest.nodes.null_text.conditioning_io import load_conditioning, save_conditioning
from palimpsest.nodes.subject.checkpoint import load as load_subject
from palimpsest.nodes.unclip.decoder.loading import load_decoder, load_upsampler
from palimpsest.nodes.unclip.embeddings.embedding_io import load_embedding, save_embedding
from palimpsest.nodes.unclip.prior.checkpoint import load as load_prior
from support.fixtures import subject_checkpoint, twin_unclip
from support.fixtures.mutations import Payload, mutant
from support.fixtures.trajectories import example
from support.fixtures.twin_prior import TINY, karlo_layout, twin

pytestmark = [pytest.mark.model, pytest.mark.newest]

DAILY, ALL = 12, 1000  # mutants for each of the targets
LONGEST_MESSAGE = 1000
DECODER = ("model_name", "text_proj_name")  # of two files either may be what does not fit the other
MOST_MEMORY = 300 * 2**20  # that the largest peak may rise by, whatever a file claims


@dataclass(frozen=True)
class Target:
    """A loader, the socket that its errors begin with, and a good file for it."""

    load: Callable[[Path], object]
    socket: str | tuple[str, str]
    file: Path


@pytest.fixture(scope="module")
def targets(tmp_path_factory) -> dict[str, Target]:
    folder = tmp_path_factory.mktemp("good")
    prior = dict(twin(**{**TINY, "layers": 1}).state_dict())
    karlo_prior, stats = karlo_layout(prior)
    decoder, upsamplers = twin_unclip.decoder(), (twin_unclip.upsampler(1), twin_unclip.upsampler(2))
    unet, text_proj = decoder.diffusers()
    write = twin_unclip.write
    good = {
        "unet": write(folder, "unet.safetensors", unet),
        "text_proj": write(folder, "text_proj.safetensors", text_proj),
        "karlo": write(folder, "karlo.ckpt", decoder.karlo()),
        "prior": write(folder, "prior.safetensors", prior),
        "karlo_prior": write(folder, "prior.ckpt", karlo_prior),
        "upsampler": write(folder, "upsampler.ckpt", twin_unclip.karlo_upsampler(*upsamplers)),
        "first": write(folder, "first.safetensors", twin_unclip.copied(upsamplers[0])),
        "subject": write(folder, "subject.safetensors", subject_checkpoint.thumbnail()),
        "pickled_subject": write(folder, "subject.ckpt", subject_checkpoint.thumbnail()),
        "stats": folder / "stats.th",
        "trajectory": folder / "a.trajectory.safetensors",
        "embedding": folder / "a.embedding.safetensors",
        "conditioning": folder / "a.conditioning.safetensors",
    }
    torch.save(stats, good["stats"])
    save_trajectory(example(), good["trajectory"])
    save_conditioning(example().positive, good["conditioning"])
    save_embedding(torch.randn(2, 16), good["embedding"])
    found = {
        "trajectory": (load_trajectory, "trajectory file", "trajectory"),
        "embedding": (load_embedding, "embedding_file", "embedding"),
        "conditioning": (load_conditioning, "conditioning_file", "conditioning"),
        "prior": (lambda file: load_prior(file, None), "prior_name", "prior"),
        "prior of Karlo": (lambda file: load_prior(file, good["stats"]), "prior_name", "karlo_prior"),
        "statistics of Karlo": (lambda file: load_prior(good["karlo_prior"], file), "stats_name", "stats"),
        "decoder": (lambda file: load_decoder(file, good["text_proj"]), DECODER, "unet"),
        "text_proj": (lambda file: load_decoder(good["unet"], file), DECODER, "text_proj"),
        "decoder of Karlo": (lambda file: load_decoder(file, None), "model_name", "karlo"),
        "upsampler": (lambda file: load_upsampler(file, None), "model_name", "first"),
        "upsampler of Karlo": (lambda file: load_upsampler(file, None), "model_name", "upsampler"),
        "subject": (lambda file: load_subject(file, []), "ckpt_name", "subject"),
        "pickled subject": (lambda file: load_subject(file, []), "ckpt_name", "pickled_subject"),
    }
    return {name: Target(load, socket, good[file]) for name, (load, socket, file) in found.items()}


TARGETS = [
    *(
        "trajectory",
        "embedding",
        "conditioning",
        "prior",
        "prior of Karlo",
        "statistics of Karlo",
        "decoder",
        "text_proj",
        "decoder of Karlo",
    ),
    *("upsampler", "upsampler of Karlo", "subject", "pickled subject"),
]


@pytest.mark.parametrize("name", TARGETS)
def test_some_hundred_mutants_load_or_are_refused(targets, name, tmp_path, monkeypatch):
    attack(targets[name], name, DAILY, tmp_path, monkeypatch, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_twelve_thousand_mutants_load_or_are_refused(targets, name, tmp_path, monkeypatch):
    attack(targets[name], name, ALL, tmp_path, monkeypatch, seed=1)


def attack(target: Target, name: str, count: int, folder: Path, monkeypatch, seed: int) -> None:
    monkeypatch.chdir(folder)
    ran, file = folder / "ran", folder / f"mutant{target.file.suffix}"
    rng = random.Random(zlib.crc32(name.encode()) + seed)
    suffix = ".safetensors" if target.file.suffix == ".safetensors" else ".ckpt"
    original = target.file.read_bytes()
    outcomes, faults = Counter(), []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(count):
        file.write_bytes(mutant(original, suffix, rng, ran))
        start = time.monotonic()
        try:
            target.load(file)
            outcomes["loaded"] += 1
        except ValueError as error:
            message = str(error)
            outcomes["refused"] += 1
            if not (
                message.startswith(target.socket)
                and (file.name in message or "no file" in message)
                and "\n" not in message
                and len(message) <= LONGEST_MESSAGE
            ):
                faults.append((i, f"unclear: {message[:300]!r} ({len(message)} letters)"))
        except Exception as error:
            faults.append((i, f"{type(error).__name__}: {str(error)[:300]}"))
        if time.monotonic() - start > 10:
            faults.append((i, "took more than 10 seconds"))
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    print(name, dict(outcomes), f"{grown / 2**20:.0f} MB", *faults, sep="\n")
    assert faults == []
    assert not ran.exists()
    assert grown < MOST_MEMORY
    assert outcomes["refused"] > count / 3


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_not_run(targets, name, zipped, tmp_path):
    target, ran = targets[name], tmp_path / "ran"
    file = tmp_path / f"code{'.safetensors' if target.file.suffix == '.safetensors' else '.ckpt'}"
    for holding in (
        Payload(ran),
        {"state_dict": {"model.prd_emb": torch.zeros(1), "code": Payload(ran)}},
        [Payload(ran)] * 2,
    ):
        torch.save(holding, file, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=r"^[\w ]+: .*code") as refusal:
            target.load(file)
        assert str(refusal.value).startswith(target.socket)
    assert not ran.exists()
