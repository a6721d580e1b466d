"""The kernels that ComfyUI chooses by --use-split-cross-attention and --use-quad-cross-attention: edits and masks of transformers.

Core chooses one of its functions for all of its modules when it is imported: PyTorch's in this ring, on the oldest ComfyUI what it takes
on a CPU, --use-quad-cross-attention's. Daily a function is put in the place of the one that was chosen, in the module of the model; the
long form starts ComfyUI anew with the argument.
"""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from pathlib import Path

import comfy.ldm.cosmos.predict2
import comfy.ldm.flux.math
import comfy.ldm.hidream.model
import comfy.ldm.lumina.model
import comfy.ldm.modules.attention as kernels
import comfy.ldm.modules.diffusionmodules.mmdit
import comfy.ldm.qwen_image.model
import comfy.ldm.wan.model
import comfy.ops
import pytest
import torch
from support.cases import cases
from support.fixtures.tiny_transformers import KINDS
from support.fixtures.transformer_edits import EDITS, Pictured

pytestmark = pytest.mark.model

# Which module calls the kernel.
CALLS = {
    **dict.fromkeys(("flux", "flux2", "chroma"), comfy.ldm.flux.math),
    **dict.fromkeys(("sd3", "sd35_medium"), comfy.ldm.modules.diffusionmodules.mmdit),
    "qwen_image": comfy.ldm.qwen_image.model,
    **dict.fromkeys(("lumina2", "z_image"), comfy.ldm.lumina.model),
    "wan": comfy.ldm.wan.model,
    "cosmos": comfy.ldm.cosmos.predict2,
    "hidream": comfy.ldm.hidream.model,
}
NAMES = ("optimized_attention", "optimized_attention_masked")  # by which it does
AS_STARTED = ("flux", "sd3")
MADE = (*EDITS, Pictured.attention_mask)
ARGUMENTS = {"attention_split": "use_split_cross_attention", "attention_sub_quad": "use_quad_cross_attention"}
SAME = 3e-6  # relative; measured at most 1.6e-6 for pictures, of Z-Image, and 1.3e-7 for maps


def results(name: str) -> list[torch.Tensor]:
    pictured = Pictured(name)
    return [make(pictured) for make in MADE]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def run_with(monkeypatch: pytest.MonkeyPatch, name: str, kernel: str) -> None:
    module = CALLS[name]
    for called in set(NAMES) & set(vars(module)):
        monkeypatch.setattr(module, called, getattr(kernels, kernel))


@pytest.mark.parametrize(("name", "kernel"), cases(product(KINDS, ARGUMENTS), *product(AS_STARTED, ARGUMENTS)))
@torch.inference_mode()
def test_every_kernel_gives_what_pytorch_s_attention_gives(name, kernel, monkeypatch):
    run_with(monkeypatch, name, "attention_pytorch")
    wanted = results(name)

    def no_other(*args, **kwargs):
        raise AssertionError("PyTorch's attention ran")

    run_with(monkeypatch, name, kernel)
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
from model.test_attention_kernels import AS_STARTED, CALLS, results
assert all(CALLS[name].optimized_attention is kernels.{kernel} for name in AS_STARTED)
with torch.inference_mode():
    torch.save({{name: results(name) for name in AS_STARTED}}, sys.argv[1])
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
    for name in AS_STARTED:
        run_with(monkeypatch, name, "attention_pytorch")
        assert all(relative(one, other) < SAME for one, other in zip(got[name], results(name), strict=True))
