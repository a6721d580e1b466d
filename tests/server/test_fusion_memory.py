"""Two fused models' memory through a server that has little of it: taken and given back by every run, and never more by the run."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fixtures.server_runs import lora_file, second_checkpoint_file
from support.host.client import Client
from support.host.graphs import Fusion, saliency_fusion, subject_fusion
from support.host.server import Server

pytestmark = [pytest.mark.server, pytest.mark.slow]

STEPS, RUNS = 2, 20
FIRST, SECOND, LORA = "first.safetensors", "second.safetensors", "lora.safetensors"
# What a server without a graphics card has for little memory: models are unloaded after every run.
SPARING = ("--disable-smart-memory",)
MB = 2**20


@pytest.fixture(scope="module")
def host(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from support.fixtures import checkpoints

    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as environment:
        # glibc keeps freed memory of the size of most weights to itself, unless told what to give back.
        environment.setenv("MALLOC_MMAP_THRESHOLD_", str(2**16))
        with Server(comfyui, tmp_path_factory.mktemp("host"), arguments=SPARING) as running:
            running.link_model("checkpoints", checkpoints.sd15(), FIRST)
            running.link_model("checkpoints", second_checkpoint_file(folder))
            running.link_model("loras", lora_file(folder))
            yield running


def saliency() -> Fusion:
    return saliency_fusion(FIRST, STEPS, SECOND, LORA)


def saliency_fails(made: Fusion) -> dict:
    """By a mask for two pictures, which only the first step can see."""
    image = made.graph.add("EmptyImage", width=64, height=64, batch_size=2, color=0xFFFFFF)
    return {"mask": made.graph.add("ImageToMask", image=image[0], channel="red")[0], "mask_use": "force"}


def subject() -> Fusion:
    return subject_fusion(FIRST, SECOND, STEPS, scene_end=0.0)


def subject_fails(made: Fusion) -> dict:
    """By a sampler that adds noise, which is refused when both models are loaded."""
    for node in made.graph.values():
        if node["class_type"] == "KSamplerSelect":
            node["inputs"]["sampler_name"] = "euler_ancestral"
    return {}


MAKERS = pytest.mark.parametrize(("make", "fail"), [(saliency, saliency_fails), (subject, subject_fails)])


def resident(server: Server) -> float:
    """The server's memory in MB."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def loads_of(server: Server) -> list[str]:
    """What ComfyUI has been asked to load, by class."""
    return re.findall(r"Requested to load (\w+)", server.log)


def memory_after_free(server: Server, expected: float, timeout: float = 60) -> float:
    """The server's memory once it is as low as expected; it frees between two runs, which a client cannot see."""
    deadline = time.monotonic() + timeout
    while (found := resident(server)) > expected:
        assert time.monotonic() < deadline, f"{found:.0f} MB are still resident, expected at most {expected:.0f}"
        time.sleep(0.2)
    return found


@MAKERS
def test_many_runs_one_cancelled_and_one_failed_use_no_more_memory(host: Server, make, fail):
    """And freeing takes all weights out of memory: nothing else holds on to either model."""
    made = make()
    inputs = made.graph[made.guider.id]["inputs"]
    empty, memory, loads = resident(host), [], []
    with Client(host.address) as client:
        for i in range(RUNS):
            if i == RUNS // 2:
                inputs["cfg"] = 4.0
                assert client.run(made.graph, on_progress=lambda *_: client.interrupt()).status == "interrupted"
            if i == RUNS * 3 // 4:
                broken = make()
                broken.graph[broken.guider.id]["inputs"].update(fail(broken))
                assert client.run(broken.graph).status == "error"
            inputs["cfg"] = 5.0 + i / 10  # another guider each time
            before = len(loads_of(host))
            assert client.run(made.graph).status == "success"
            loads.append(loads_of(host)[before:])
            memory.append(resident(host))
        client.free()
    weights = (host.base / "models" / "checkpoints" / SECOND).stat().st_size / MB
    left = memory_after_free(host, empty + 0.3 * weights)
    print(
        f"MB resident: {empty:.0f} at first, {[round(m) for m in memory]}, {left:.0f} when freed; loaded: {loads[-1]}"
    )
    assert memory[-1] - left > 2 * weights
    assert max(memory[5:]) - memory[4] < 0.1 * weights
    # Both models and the VAE, which is the same in all runs, are loaded anew each time.
    assert all(run.count("BaseModel") == 2 for run in loads), loads
    assert [len(run) for run in loads[1:]] == [3] * (RUNS - 1), loads
