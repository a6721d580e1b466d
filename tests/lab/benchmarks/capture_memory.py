"""Capture features of a 512 x 512 picture with the full-size SD1.5 UNet and print what that takes, as JSON.

A process of its own, because the peak of resident memory is one figure for the whole life of a process.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from support.host.in_process import enter_comfyui, enter_pack  # noqa: E402

LATENT = 64
SCHEDULE = 50
CAPTURED = 2  # steps run; all steps of a window weigh the same


def main() -> None:
    enter_pack()
    with tempfile.TemporaryDirectory() as base:
        enter_comfyui(base)
        import torch

        with torch.inference_mode():
            print(json.dumps(capture_memory()))


def capture_memory() -> dict[str, float]:
    """Bytes and counts; the peaks are those of the process so far, in the order they are reached."""
    import torch
    from lab.benchmarks.subjects import full_size_sd15
    from palimpsest.nodes.attention.unet_sites import decoder_depths, parse_sites
    from palimpsest.nodes.plug_and_play.features import capture
    from palimpsest.nodes.plug_and_play.windows import Windows
    from support.fixtures.sampling import random_trajectory, sample
    from support.fixtures.tiny_models import conditioning

    model = full_size_sd15()
    source = conditioning(model, 1)
    trajectory = random_trajectory(model, source, SCHEDULE, size=(LATENT, LATENT))
    sites = parse_sites("auto", decoder_depths(model))
    peak_loaded = peak_memory()
    sample(model, trajectory.latents[-2], source, source, 1.0, trajectory.sigmas[-2:])
    peak_plain = peak_memory()
    start = time.perf_counter()
    features = capture(model, trajectory, Windows(sites, CAPTURED, CAPTURED), torch.float16)
    seconds = time.perf_counter() - start
    peak_capture = peak_memory()
    step = features.records[0]
    attention = [tensor.nbytes for (kind, *_), tensor in step.items() if kind != "feature"]
    feature = [tensor.nbytes for (kind, *_), tensor in step.items() if kind == "feature"]
    windows = Windows.of(sites, 0.8, 0.5, SCHEDULE)
    return {
        "attention_sites": len(sites.attention),
        "attention_tensors": len(attention),
        "feature_tensors": len(feature),
        "attention_bytes": sum(attention),
        "feature_bytes": sum(feature),
        "attention_steps": windows.attention,
        "feature_steps": windows.feature,
        "captured_steps": len(features.records),
        "seconds_a_step": seconds / len(features.records),
        "peak_loaded": peak_loaded,
        "peak_plain": peak_plain,
        "peak_capture": peak_capture,
    }


def peak_memory() -> int:
    """Highest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
