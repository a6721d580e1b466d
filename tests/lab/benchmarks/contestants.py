"""What is timed: the pack's operations, and the plain ComfyUI calls each of them is held against."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import comfy.samplers
import comfy.sd1_clip
import torch
from comfy.model_patcher import ModelPatcher
from lab.benchmarks.published import PublishedRecipe
from lab.benchmarks.subjects import Subject
from palimpsest.nodes.attention.unet_sites import decoder_depths, parse_sites
from palimpsest.nodes.diffusion.trajectory import Trajectory
from palimpsest.nodes.inversion.ddim import invert
from palimpsest.nodes.plug_and_play.features import Features, capture
from palimpsest.nodes.plug_and_play.injection import plug_and_play
from palimpsest.nodes.plug_and_play.windows import Windows
from palimpsest.nodes.prompt_to_prompt.attention_mask import word_maps
from palimpsest.nodes.prompt_to_prompt.control import prompt_to_prompt
from palimpsest.nodes.prompt_to_prompt.prompt_edit import prompt_edit
from palimpsest.nodes.prompt_to_prompt.settings import Settings
from palimpsest.nodes.text.tokens import tokenize
from support.fixtures import tiny_clip
from support.fixtures.sampling import sample, schedule

CFG = 7.5
FEATURE_END, ATTENTION_END = 0.8, 0.5
CROSS_END, SELF_END = 0.8, 0.4

BARE = "bare UNet calls, one row"
DDIM = "inversion, ddim"
FIXED_POINT = "inversion, fixed_point, at most 5 calls per step on average"
PLAIN = "plain CFG sampling"
LIVE = "Plug-and-Play edit without captured features"
CAPTURED = "Plug-and-Play edit with captured features"
CAPTURE = "capture of features"
BLENDED = "Prompt-to-Prompt edit with local blend"
MASK = "Attention Mask"
PUBLISHED_INVERSION = "published inversion"
PUBLISHED_EDIT = "published edit"

# What is divided by what, and the most it may be.
BARS = (
    (DDIM, BARE, 1.05),
    (MASK, BARE, 0.75),
    (LIVE, PLAIN, 1.5),
    (BLENDED, PLAIN, 1.6),
    (CAPTURED, PLAIN, 1.15),
)
BARRED = {name for above, below, _ in BARS for name in (above, below)}

Run = Callable[[], float]  # does the work and returns the seconds that count


@dataclass
class Measurement:
    """One contestant's cost. A call is one forward of the UNet, a row one picture in it."""

    calls: int
    rows: int
    seconds: list[float] = field(default_factory=list)  # of each run


class UNetCounter:
    def __init__(self, model: ModelPatcher) -> None:
        self.calls = self.rows = 0
        self._unet = model.model.diffusion_model

    def __enter__(self) -> UNetCounter:
        self._handle = self._unet.register_forward_pre_hook(self._count)
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.remove()

    def _count(self, module: torch.nn.Module, args: tuple) -> None:
        self.calls += 1
        self.rows += len(args[0])


class _BareCalls(comfy.samplers.Sampler):
    """One UNet call for every level of a trajectory and nothing else; only the calls are timed, not what surrounds them."""

    def __init__(self, trajectory: Trajectory) -> None:
        self.trajectory = trajectory
        self.seconds = 0.0

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> torch.Tensor:
        conds, options = [model_wrap.conds["positive"]], extra_args["model_options"]
        latents = self.trajectory.latents.to(noise)
        start = _now()
        for x, sigma in zip(latents[:-1], sigmas[:-1, None], strict=True):
            comfy.samplers.calc_cond_batch(model_wrap.inner_model, conds, x, sigma, options)
        self.seconds = _now() - start
        return latent_image


def contestants(subject: Subject) -> dict[str, Run]:
    """In an order that puts next to each other what is divided."""
    model = subject.model
    sigmas = schedule(model, subject.steps)
    trajectory = invert(model, subject.source, subject.latent, sigmas, "ddim")
    windows = Windows.of(parse_sites(subject.blocks, decoder_depths(model)), FEATURE_END, ATTENTION_END, subject.steps)
    features = capture(model, trajectory, windows, torch.float16)
    words = partial(tokenize, tiny_clip.tokenizer_only(comfy.sd1_clip.SD1Tokenizer))
    word_edit = prompt_edit(words, "a cat on a mat", "a dog on a mat", "auto", "", "cat, dog")
    settings = Settings.of(word_edit, subject.steps, CROSS_END, SELF_END, 0.2, 0.3)

    def edit(features: Features | None) -> torch.Tensor:
        return _cfg_sampling(plug_and_play(model, trajectory, windows, features), subject, trajectory)

    runs = {
        FIXED_POINT: _timed(lambda: invert(model, subject.source, subject.latent, sigmas, "fixed_point", 5)),
        DDIM: _timed(lambda: invert(model, subject.source, subject.latent, sigmas, "ddim")),
        BARE: lambda: _bare_calls(subject, trajectory),
        MASK: _timed(lambda: word_maps(model, trajectory, subject.source, [(2,)], 77, range(subject.steps))),
        CAPTURE: _timed(lambda: capture(model, trajectory, windows, torch.float16)),
        CAPTURED: _timed(lambda: edit(features)),
        PLAIN: _timed(lambda: _cfg_sampling(model, subject, trajectory)),
        LIVE: _timed(lambda: edit(None)),
        BLENDED: _timed(
            lambda: _cfg_sampling(prompt_to_prompt(model, trajectory, subject.source, settings), subject, trajectory)
        ),
    }
    if not subject.published_inversion_steps:
        return {name: run for name, run in runs.items() if name in BARRED}
    published = PublishedRecipe(model, subject.source, subject.positive, subject.negative)
    runs[PUBLISHED_EDIT] = _timed(lambda: published.edit(trajectory, windows, CFG))
    runs[PUBLISHED_INVERSION] = _timed(lambda: published.invert(subject.latent, subject.published_inversion_steps))
    return runs


def measure(
    subject: Subject, runs: dict[str, Run], repetitions: int, progress: Callable[[str], None]
) -> dict[str, Measurement]:
    """Every contestant once in the first repetition, those of the bars in all of them.

    They take turns, every other repetition in reverse, so that a drift of the machine meets all of them alike.
    """
    measured: dict[str, Measurement] = {}
    for repetition in range(repetitions):
        names = [name for name in runs if repetition == 0 or name in BARRED]
        for name in names[:: -1 if repetition % 2 else 1]:
            gc.collect()
            with UNetCounter(subject.model) as counter:
                seconds = runs[name]()
            measured.setdefault(name, Measurement(counter.calls, counter.rows)).seconds.append(seconds)
            progress(f"{subject.name}: {repetition + 1} of {repetitions}: {name}: {seconds:.2f} s")
    return measured


def _timed(work: Callable[[], object]) -> Run:
    def run() -> float:
        start = _now()
        work()
        return _now() - start

    return run


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _bare_calls(subject: Subject, trajectory: Trajectory) -> float:
    sampler = _BareCalls(trajectory)
    guider = comfy.samplers.CFGGuider(subject.model)
    guider.inner_set_conds({"positive": subject.source})
    noise = torch.zeros_like(subject.latent)
    guider.sample(noise, subject.latent, sampler, trajectory.sigmas, disable_pbar=True, seed=0)
    return sampler.seconds


def _cfg_sampling(model: ModelPatcher, subject: Subject, trajectory: Trajectory) -> torch.Tensor:
    return sample(model, trajectory.start, subject.positive, subject.negative, CFG, trajectory.sigmas)[-1]
