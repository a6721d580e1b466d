"""The kernels that ComfyUI chooses by --use-split-cross-attention and --use-quad-cross-attention: edits and masks of transformers.

Core chooses one of its functions for all of its modules when it is imported: PyTorch's in this ring, on the oldest ComfyUI what it takes
on a CPU, --use-quad-cross-attention's. Daily a function is put in the place of the one that was chosen, in the module of the model; the
long form starts ComfyUI anew with the argument.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import comfy.ldm.flux.math
import comfy.ldm.modules.attention as kernels
import comfy.ldm.modules.diffusionmodules.mmdit
import comfy.ops
import pytest
import torch
from support.fixtures.transformer_edits import EDITS, Pictured

pytestmark = pytest.mark.model

CALLS = {"flux": comfy.ldm.flux.math, "sd3": comfy.ldm.modules.diffusionmodules.mmdit}  # which module calls the kernel
MADE = (*EDITS, Pictured.attention_mask)
ARGUMENTS = {"attention_split": "use_split_cross_attention", "attention_sub_quad": "use_quad_cross_attention"}
SAME = 1e-6  # relative; measured 4e-7 for pictures and 9e-8 for maps


def results(name: str) -> list[torch.Tensor]:
    pictured = Pictured(name)
    return [make(pictured) for make in MADE]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("kernel", ARGUMENTS)
@pytest.mark.parametrize("name", CALLS)
@torch.inference_mode()
def test_every_kernel_gives_what_pytorch_s_attention_gives(name, kernel, monkeypatch):
    monkeypatch.setattr(CALLS[name], "optimized_attention", kernels.attention_pytorch)
    wanted = results(name)

    def no_other(*args, **kwargs):
        raise AssertionError("PyTorch's attention ran")

    monkeypatch.setattr(CALLS[name], "optimized_attention", getattr(kernels, kernel))
    monkeypatch.setattr(comfy.ops, "scaled_dot_product_attention", no_other)
    got = results(name)
    assert all(relative(one, other) < SAME for one, other in zip(got, wanted, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))


CHILD = """
import sys
sys.path.insert(0, {tests!r})
from support.host.in_process import enter_comfyui, enter_pack
enter_pack()
enter_comfyui({base!r}, {argument}=True)
import torch
import comfy.ldm.modules.attention as kernels
from model.test_attention_kernels import CALLS, results
assert all(module.optimized_attention is kernels.{kernel} for module in CALLS.values())
with torch.inference_mode():
    torch.save({{name: results(name) for name in CALLS}}, sys.argv[1])
"""


@pytest.mark.long
@pytest.mark.parametrize("kernel", ARGUMENTS)
@torch.inference_mode()
def test_a_comfyui_with_the_argument_gives_it_too(kernel, tmp_path, monkeypatch):
    code = CHILD.format(
        tests=str(Path(__file__).parents[1]), base=str(tmp_path), argument=ARGUMENTS[kernel], kernel=kernel
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "results.pt")], check=True, timeout=600)
    got = torch.load(tmp_path / "results.pt", weights_only=True)
    for name, module in CALLS.items():
        monkeypatch.setattr(module, "optimized_attention", kernels.attention_pytorch)
        assert all(relative(one, other) < SAME for one, other in zip(got[name], results(name), strict=True))
