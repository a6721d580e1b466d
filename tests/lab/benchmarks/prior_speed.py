"""unCLIP Sample Prior beside diffusers' loop on the same random weights, in float32 on the CPU; prints JSON.

    python prior_speed.py                 # Karlo's size, 20 layers of width 2048; needs 10 GB
    python prior_speed.py --layers 4 --repetitions 1

The prompt fills all 77 positions, the longest there is. A process of its own, so that no peak hides in another's.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from support.host.in_process import enter_comfyui, enter_pack  # noqa: E402

STEPS, CFG, CLAMP = 25, 4.0, 10.0
LENGTHS = (77, 2)  # tokens of the prompt and of the empty negative one
CANDIDATES = (1, 4)
SEED = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    enter_pack()
    with tempfile.TemporaryDirectory() as base:
        enter_comfyui(base)
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        with torch.inference_mode():
            print(json.dumps(prior_speed(options.layers, options.repetitions)))


def prior_speed(layers: int, repetitions: int) -> dict:
    import torch
    from lab.benchmarks.resident_memory import ResidentMemory
    from palimpsest.nodes.unclip.prior.checkpoint import prior
    from palimpsest.nodes.unclip.prior.prior import Options, sample
    from support.fixtures.twin_prior import KARLO_WIDTH, loop, published_noise, random_text, twin

    size = {**KARLO_WIDTH, "layers": layers}
    text = random_text(size["embedding"], LENGTHS)
    published = twin(**size)
    state = dict(published.state_dict())
    del published
    made = prior(state, "random", None)
    gc.collect()

    def ours(count: int):
        noise = published_noise(SEED, STEPS, count, size["embedding"])
        return sample(made, text, noise, Options(STEPS, CFG, CLAMP))

    memory = ResidentMemory()
    result: dict = {
        "layers": layers,
        "threads": torch.get_num_threads(),
        "weights": made.patcher.model_size(),
        "peak": {},
        "runs": {},
    }
    sample(made, text, published_noise(SEED, 2, 1, size["embedding"]), Options(2))  # libraries make room for themselves
    for count in CANDIDATES:
        before = memory.used()
        memory.reset_peak()
        ours(count)
        result["peak"][count] = memory.peak() - before

    published = twin(**size)
    for count in CANDIDATES:
        runs = []
        for i in range(repetitions):
            contestants = {
                "ours": lambda count=count: ours(count),
                "published": lambda count=count: loop(published, text, SEED, count, STEPS, CFG, CLAMP),
            }
            seconds, answers = {}, {}
            for name in sorted(contestants, reverse=i % 2 == 1):
                start = time.perf_counter()
                answers[name] = contestants[name]()
                seconds[name] = time.perf_counter() - start
            difference = (answers["ours"] - answers["published"]).abs().max() / answers["published"].abs().max()
            runs.append({**seconds, "difference": float(difference)})
            print(f"candidates: {count}, {runs[-1]}", file=sys.stderr)
        result["runs"][count] = runs
    return result


if __name__ == "__main__":
    main()
