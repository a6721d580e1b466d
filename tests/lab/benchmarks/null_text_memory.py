"""One null-text optimisation with the full-size UNet of SD1.5 or SDXL; prints what it takes of memory and time, as JSON.

    python null_text_memory.py SD1.5 32 fp32 --keep      # latent of 32 x 32, without checkpointing, on the CPU
    python null_text_memory.py SDXL 128 fp16 --count     # no run: the bytes that one evaluation would need

A process of its own, so that no peak hides in another's.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

sys.path[0] = str(Path(__file__).resolve().parents[2])

from support.host.in_process import enter_comfyui, enter_pack  # noqa: E402

EVALUATIONS = 2
BROKEN_CALL = (
    3  # of the middle block: after the source prompt's and the first evaluation's forward, where gradients are on
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["SD1.5", "SDXL"])
    parser.add_argument("latent", type=int, help="height and width")
    parser.add_argument("precision", choices=["fp32", "fp16", "fp16-as-fp32"], help="of weights and of computing")
    parser.add_argument("--keep", action="store_true", help="all activations: no checkpointing")
    parser.add_argument("--cuda", action="store_true", help="on the GPU")
    parser.add_argument("--count", action="store_true", help="count instead of running")
    options = parser.parse_args()
    enter_pack()
    with tempfile.TemporaryDirectory() as base:
        enter_comfyui(base, cpu=not options.cuda, use_pytorch_cross_attention=True)
        import torch

        dtype = torch.float32 if options.precision == "fp32" else torch.float16
        compute = torch.float32 if options.precision == "fp16-as-fp32" else None
        if options.count:
            from lab.benchmarks.live_bytes import count_evaluation

            print(json.dumps(count_evaluation(options.model, options.latent, dtype, compute, not options.keep)))
        else:
            with torch.inference_mode():
                print(json.dumps(measure(options, dtype, compute)))


def measure(options: argparse.Namespace, dtype: torch.dtype, compute: torch.dtype | None) -> dict[str, object]:
    """Bytes above what was in use before, weights loaded and a plain evaluation done: at most, and after each ending."""
    import comfy.model_management
    from lab.benchmarks.resident_memory import ResidentMemory
    from lab.benchmarks.subjects import full_size, full_size_conditioning
    from palimpsest.nodes.null_text.optimize import optimize
    from palimpsest.nodes.null_text.solvers import Effort
    from support.fixtures.sampling import random_trajectory, sample

    memory = GraphicsMemory() if options.cuda else ResidentMemory()
    model = full_size(options.model, dtype, compute, comfy.model_management.get_torch_device())
    unet = model.model.diffusion_model
    positive, negative = (full_size_conditioning(model.model, seed) for seed in (1, 2))
    trajectory = random_trajectory(model, positive, 1, size=(options.latent, options.latent), scheduler="simple")
    starts: list[float] = []

    def run(effort: Effort) -> None:
        optimize(model, positive, negative, trajectory, 7.5, effort, "null_text", checkpoint=not options.keep)

    def note_start(*_: object) -> None:
        starts.append(memory.clock())

    def broken_by(breaking: Callable[[], None]) -> int:
        calls = []

        def count(*_: object) -> None:
            calls.append(1)
            if len(calls) == BROKEN_CALL:
                breaking()

        handle = unet.middle_block[0].register_forward_pre_hook(count)
        try:
            run(Effort(inner_steps=2, tolerance=0.0))
        except (Broken, comfy.model_management.InterruptProcessingException):
            pass
        else:
            raise RuntimeError("the run was to be broken off and ended")
        finally:
            handle.remove()
        return memory.used() - before

    sample(model, trajectory.start, positive, negative, 1.0, trajectory.sigmas)
    before = memory.used()
    memory.reset_peak()
    handle = unet.register_forward_pre_hook(note_start)
    run(Effort(inner_steps=EVALUATIONS, tolerance=0.0))
    handle.remove()
    peak = memory.peak() - before
    after = {
        "result": memory.used() - before,
        "error": broken_by(_raise),
        "cancel": broken_by(comfy.model_management.interrupt_current_processing),
    }
    evaluations = starts[1 : EVALUATIONS + 2]
    return {
        "weights": sum(weight.nbytes for weight in unet.parameters()),
        "peak": peak,
        "after": after,
        "loaded_models": len(comfy.model_management.current_loaded_models),
        "seconds": [b - a for a, b in itertools.pairwise(evaluations)],
        "device": memory.name,
    }


class Broken(Exception):
    pass


def _raise() -> None:
    raise Broken


class GraphicsMemory:
    """What torch's allocator has given out on the GPU."""

    def __init__(self) -> None:
        import torch

        self.cuda = torch.cuda
        self.name = torch.cuda.get_device_name()

    def used(self) -> int:
        gc.collect()
        return self.cuda.memory_allocated()

    def reset_peak(self) -> None:
        self.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        return self.cuda.max_memory_allocated()

    def clock(self) -> float:
        self.cuda.synchronize()
        return time.perf_counter()


if __name__ == "__main__":
    main()
