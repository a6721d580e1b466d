"""What edits cost on diffusion transformers: time on a small one and on a few blocks of full width, memory at full depth."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from lab.benchmarks.live_bytes import LiveBytes
from palimpsest.nodes.attention.calls import AllSeen, mark_source_pass
from palimpsest.nodes.attention.families import family_of
from palimpsest.nodes.attention.joint_attention import Attention, on_attention
from palimpsest.nodes.attention.structure import structure_of
from palimpsest.nodes.diffusion.source import visit
from palimpsest.nodes.plug_and_play.injection import plug_and_play
from palimpsest.nodes.plug_and_play.windows import Windows
from palimpsest.nodes.prompt_to_prompt.block_maps import MapSums
from support.fixtures.tiny_models import CPU
from support.fixtures.tiny_transformers import KINDS, Kind
from support.fixtures.transformer_edits import begin, path
from torch._subclasses.fake_tensor import FakeTensorMode

CFG = 3.5
PLAIN, EDIT = "plain CFG sampling", "Plug-and-Play edit"
ALONE, EDIT_ALONE = "sampling at guidance 1", "Plug-and-Play edit at guidance 1"
EDIT_AT_MOST = 1.6  # of plain CFG sampling, while it injects at every step
MAP_AT_MOST = 1.0  # of one block's attention, beside that attention
MEMORY_AT_MOST = 0.1  # what the count of a step's records may be off

FLUX = {
    "vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 3072, "num_heads": 24, "axes_dim": [16, 56, 56],
}  # fmt: skip
FLUX2 = {"context_in_dim": 15360, "hidden_size": 6144, "num_heads": 48, "axes_dim": [32, 32, 32, 32]}
SD3 = {
    "adm_in_channels": 2048, "qk_norm": "rms",
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}},
}  # fmt: skip
QWEN = {
    "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 3584, "axes_dims_rope": (16, 56, 56),
}  # fmt: skip
Z_IMAGE = {
    "dim": 3840, "cap_feat_dim": 2560, "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48],
}  # fmt: skip


def wide(name: str, text: int, pooled: int = 0, **changes: object) -> Kind:
    """A family of KINDS at other widths; text and pooled are those of what it reads."""
    kind = KINDS[name]
    return replace(kind, more={**kind.more, **changes}, text=text, width_of_pooled=pooled or kind.width_of_pooled)


def sd3(depth: int, blocks: int, second: int) -> Kind:
    """MMDiT's width is 64 channels for each of `depth`. second: how many blocks attend twice."""
    wide_text = {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 64 * depth}}
    more = {"depth": depth, "num_blocks": blocks, "x_block_self_attn_layers": [*range(second)]}
    return wide("sd3", 4096, 2048, **{**SD3, "context_embedder_config": wide_text, **more})


@dataclass(frozen=True)
class Stack:
    """A model that is timed. side: of its latent. tokens: of its prompts. words: whose maps are read, a token each.

    One run of an attention tells of as many words as a head has channels, less one; the small model's have 16.
    """

    name: str
    kind: Kind
    tokens: int
    words: int = 40
    side: int = 64
    steps: int = 1
    repetitions: int = 5

    def __str__(self) -> str:
        return f"{self.name}, {self.side} x {self.side}"


STACKS = (
    Stack("small Flux.1, width 64, 5 blocks", KINDS["flux"], 256, words=12, steps=4),
    Stack(
        "Flux.1, width 3072, 1 double and 1 single block",
        wide("flux", 4096, 768, **FLUX, depth=1, depth_single_blocks=1),
        256,
        side=32,
        repetitions=3,
    ),
    Stack("SD3.5 Medium, width 1536, 2 blocks", sd3(24, 2, 1), 154, repetitions=3),
)
# At full depth, for a picture of 1024 x 1024: the side of its latent, and the tokens of a prompt.
FULL = {
    "SD3.5 Medium": (sd3(24, 24, 13), 128, 154),
    "SD3.5 Large": (sd3(38, 38, 0), 128, 154),
    "Z-Image": (wide("z_image", 2560, **Z_IMAGE, n_layers=30), 128, 128),
    "Flux.1": (wide("flux", 4096, 768, **FLUX, depth=19, depth_single_blocks=38), 128, 256),
    "Qwen-Image": (wide("qwen_image", 3584, **QWEN, num_layers=60), 128, 128),
    "Flux.2": (wide("flux2", 15360, 768, **FLUX2, depth=8, depth_single_blocks=48), 64, 512),
}


@dataclass
class Timed:
    """Processor seconds: of whole runs by name, and of pairs (a block's attention, its map of words)."""

    runs: dict[str, list[float]] = field(default_factory=dict)
    maps: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Memory:
    """Bytes of one step's records: as Capture Features counts them before it runs, of these those of queries and keys, as they
    are held, and by how much an edited step's peak is above a plain one's."""

    counted: int
    attention: int
    held: int
    above_plain: int


@torch.inference_mode()
def time_edits(stack: Stack, progress: Callable[[str], None]) -> Timed:
    """Both runs of a ratio in turns, every other time in reverse."""
    model = stack.kind.model()
    source, positive, negative = (stack.kind.conditioning(seed, stack.tokens) for seed in (2, 3, 4))
    trajectory = path(stack.kind, model, source, stack.steps, height=stack.side, width=stack.side)
    windows = Windows.of(structure_of(model).sites("auto"), 1.0, 1.0, stack.steps)
    edited = plug_and_play(model, trajectory, windows)

    def sampled(model: ModelPatcher, cfg: float) -> None:
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        noise, euler = begin(trajectory), comfy.samplers.sampler_object("euler")
        guider.sample(noise, torch.zeros_like(noise), euler, trajectory.sigmas, disable_pbar=True, seed=0)

    runs = {PLAIN: (model, CFG), EDIT: (edited, CFG), ALONE: (model, 1.0), EDIT_ALONE: (edited, 1.0)}
    timed = Timed()
    for patched in (model, edited):
        sampled(patched, 1.0)
    for repetition in range(stack.repetitions):
        for name in [*runs][:: -1 if repetition % 2 else 1]:
            gc.collect()
            start = time.process_time()
            sampled(*runs[name])
            timed.runs.setdefault(name, []).append(time.process_time() - start)
        progress(f"{stack}: {repetition + 1} of {stack.repetitions}")
    timed.maps = _time_maps(stack, model, trajectory)
    return timed


def _time_maps(stack: Stack, model: ModelPatcher, trajectory) -> list[tuple[float, float]]:
    """Beside each attention that sees the text of one evaluation."""
    family = family_of(model)
    sums = MapSums(family, [[column] for column in range(stack.words)], stack.tokens, range(10**6))
    pairs: list[tuple[float, float]] = []

    def both(call: Attention) -> None:
        if not call.has_text:
            return
        work = (lambda: call.run(call.q, call.k, call.v), lambda: sums.add(call))
        for repetition in range(2 * stack.repetitions):
            seconds = [0.0, 0.0]
            for which in (0, 1) if repetition % 2 else (1, 0):
                start = time.process_time()
                work[which]()
                seconds[which] = time.process_time() - start
            pairs.append(tuple(seconds))

    visit(
        model,
        trajectory,
        trajectory.positive,
        range(1),
        lambda step, options: on_attention(options, family, both, leave=True),
    )
    return pairs


@torch.no_grad()
def count_memory(name: str) -> Memory:
    """One step in bf16 on tensors that have shapes but no values: bytes of all storages that are alive at once."""
    kind, side, tokens = FULL[name]
    with _without_values(kind) as (model, live):
        patcher = ModelPatcher(model, load_device=CPU, offload_device=CPU)
        model.current_patcher = patcher
        structure = structure_of(patcher)
        sites = structure.sites("auto")
        x, sigma = kind.latent(1, height=side, width=side), torch.full((1,), 0.6)
        conds = [_conds(model, kind.conditioning(seed, tokens), x) for seed in (2, 3, 4)]
        counted, attention = (
            structure.values(chosen, x) * torch.bfloat16.itemsize for chosen in (sites, replace(sites, features=()))
        )

        def evaluate(rows: list, options: dict) -> int:
            """The highest that is alive during it."""
            live.peak = live.now
            with suppress(AllSeen):
                comfy.samplers.calc_cond_batch(model, rows, x, sigma, options)
            return live.peak

        def options() -> dict:
            return comfy.model_patcher.create_model_options_clone(patcher.model_options)

        at_rest = live.now
        plain = evaluate(conds[1:], options()) - at_rest
        reading = mark_source_pass(options())
        record = structure.record(reading, sites)
        peak = evaluate(conds[:1], reading)
        held = live.now - at_rest
        injecting = options()
        structure.inject(injecting, sites, {(i, row[0]["uuid"]): record for i, row in enumerate(conds[1:])})
        peak = max(peak, evaluate(conds[1:], injecting)) - at_rest
    return Memory(counted, attention, held, peak - plain)


@contextmanager
def _without_values(kind: Kind) -> Iterator[tuple[BaseModel, LiveBytes]]:
    config = kind.config({**kind.unet, **kind.more})
    config.unet_config["dtype"] = torch.bfloat16
    config.set_inference_dtype(torch.bfloat16, None)
    model = config.get_model({}, device=torch.device("meta"))
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        for layer in model.diffusion_model.modules():
            for key, weight in list(layer.named_parameters(recurse=False)):
                empty = torch.empty(weight.shape, dtype=weight.dtype)
                setattr(layer, key, torch.nn.Parameter(empty, requires_grad=False))
            for key, buffer in list(layer.named_buffers(recurse=False)):
                setattr(layer, key, torch.empty(buffer.shape, dtype=buffer.dtype))
        yield model, live


def _conds(model: BaseModel, prompt: list, x: torch.Tensor) -> list[dict]:
    conds = comfy.sampler_helpers.convert_cond(prompt)
    return comfy.samplers.encode_model_conds(model.extra_conds, conds, x, CPU, "positive")
