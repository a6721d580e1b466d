"""Embedding arithmetic: its identities for any vectors, and scipy's geometric_slerp as an implementation that is not ours."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from palimpsest.nodes.unclip.embeddings.sphere import NothingLeft, cosine, mix, slerp, text_diff, unit
from scipy.spatial import geometric_slerp
from support.fixtures.without_float64 import WithoutFloat64

pytestmark = pytest.mark.unit

WIDTH = 8
VECTORS = arrays(np.float64, WIDTH, elements=st.floats(-100, 100, width=32)).filter(lambda x: np.linalg.norm(x) > 1e-3)
THETAS = st.floats(0, 1)
ANY_TIME = settings(deadline=None)


def tensor(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.copy())


def theta(*values: float) -> torch.Tensor:
    return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64)


def angle(a: torch.Tensor, b: torch.Tensor) -> float:
    """Kahan's formula, which is accurate for all angles."""
    u, v = unit(a), unit(b)
    return 2 * math.atan2(float((u - v).norm()), float((u + v).norm()))


@ANY_TIME
@given(VECTORS, VECTORS)
def test_the_ends_are_the_inputs_to_the_bit(a: np.ndarray, b: np.ndarray):
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        u, v = tensor(a).to(dtype), tensor(b).to(dtype)
        assume(bool((u != 0).any() and (v != 0).any()))
        both = slerp(u, v, theta(0.0, 1.0))
        assert both.dtype == dtype
        assert both[0].view(torch.uint8).equal(u.view(torch.uint8))
        assert both[1].view(torch.uint8).equal(v.view(torch.uint8))


@ANY_TIME
@given(VECTORS, VECTORS, THETAS)
def test_norms_go_linearly_so_equal_norms_are_kept(a: np.ndarray, b: np.ndarray, t: float):
    u, v = tensor(a), tensor(b)
    expected = (1 - t) * float(u.norm()) + t * float(v.norm())
    assert float(slerp(u, v, theta(t)).norm()) == pytest.approx(expected, rel=1e-12)
    assert float(slerp(u, v * (u.norm() / v.norm()), theta(t)).norm()) == pytest.approx(float(u.norm()), rel=1e-12)


@ANY_TIME
@given(VECTORS, VECTORS, THETAS)
def test_the_way_back_is_the_same_way(a: np.ndarray, b: np.ndarray, t: float):
    u, v = tensor(a), tensor(b)
    assume(math.pi - angle(u, v) > 1e-4 or angle(u, v) == math.pi)
    there, back = slerp(u, v, theta(t)), slerp(v, u, 1 - theta(t))
    torch.testing.assert_close(there, back, rtol=0, atol=1e-9 * float(u.norm() + v.norm()))


@ANY_TIME
@given(VECTORS, VECTORS, THETAS, THETAS, THETAS)
def test_parts_of_a_way_make_the_whole(a: np.ndarray, b: np.ndarray, s: float, t: float, r: float):
    u, v = tensor(a), tensor(b)
    assume(math.pi - angle(u, v) > 1e-4)
    part = slerp(slerp(u, v, theta(s)), slerp(u, v, theta(t)), theta(r))
    whole = slerp(u, v, theta(s + r * (t - s)))
    torch.testing.assert_close(part, whole, rtol=0, atol=1e-9 * float(u.norm() + v.norm()))


@ANY_TIME
@given(VECTORS, VECTORS, THETAS)
def test_the_angle_goes_linearly(a: np.ndarray, b: np.ndarray, t: float):
    u, v = tensor(a), tensor(b)
    between = slerp(u, v, theta(t))
    assert angle(u, between) == pytest.approx(t * angle(u, v), abs=1e-7)
    assert angle(between, v) == pytest.approx((1 - t) * angle(u, v), abs=1e-7)


@ANY_TIME
@given(VECTORS, VECTORS, st.lists(THETAS, min_size=1, max_size=5))
def test_it_is_scipys_on_unit_vectors(a: np.ndarray, b: np.ndarray, ts: list[float]):
    u, v = unit(tensor(a)), unit(tensor(b))
    assume(1e-6 < angle(u, v) < math.pi - 1e-4)
    expected = geometric_slerp(u.numpy(), v.numpy(), np.array(ts))
    torch.testing.assert_close(slerp(u, v, torch.tensor(ts, dtype=torch.float64)), tensor(expected), rtol=0, atol=1e-9)


@ANY_TIME
@given(VECTORS, THETAS, st.floats(0.5, 2, width=32))
def test_one_direction_stays_one_direction(a: np.ndarray, t: float, scale: float):
    u = tensor(a)
    expected = u * ((1 - t) + t * scale)
    torch.testing.assert_close(slerp(u, u * scale, theta(t)), expected, rtol=0, atol=1e-9 * float(u.norm()))


@ANY_TIME
@given(VECTORS, THETAS)
def test_opposite_directions_have_a_way_of_their_own(a: np.ndarray, t: float):
    """cos(pi t) u + sin(pi t) w with one w at a right angle to u."""
    u = tensor(a)
    w = slerp(u, -u, theta(0.5))
    size = float(u.norm())
    assert abs(float(u @ w)) < 1e-9 * size**2
    expected = math.cos(math.pi * t) * u + math.sin(math.pi * t) * w
    torch.testing.assert_close(slerp(u, -u, theta(t)), expected, rtol=0, atol=1e-9 * size)
    torch.testing.assert_close(slerp(-u, u, 1 - theta(t)), expected, rtol=0, atol=1e-9 * size)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.floats(1e-9, 1e-5))
def test_nearly_equal_and_nearly_opposite_directions_keep_norm_and_angle(seed: int, off: float):
    generator = torch.Generator().manual_seed(seed)
    u, noise = torch.randn(2, 768, dtype=torch.float64, generator=generator)
    for v in (u + off * noise, -u + off * noise):
        way = slerp(u, v, torch.linspace(0, 1, 9, dtype=torch.float64))
        torch.testing.assert_close(way.norm(dim=-1), torch.lerp(u.norm(), v.norm(), torch.linspace(0, 1, 9).double()))
        steps = [angle(x, y) for x, y in pairwise(way)]
        assert steps == pytest.approx([angle(u, v) / 8] * 8, rel=1e-5)


def test_batches_and_thetas_broadcast():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 1, 16, generator=generator), torch.randn(1, 1, 16, generator=generator)
    thetas = torch.tensor([[0.0, 0.3, 0.5, 1.0]])
    all_at_once = slerp(a, b, thetas)
    assert all_at_once.shape == (3, 4, 16) and all_at_once.dtype == torch.float32
    for i in range(3):
        for k in range(4):
            assert all_at_once[i, k].equal(slerp(a[i, 0], b[0, 0], thetas[0, k]))


@ANY_TIME
@given(VECTORS, VECTORS, VECTORS, st.floats(0, 0.5))
def test_text_diff_is_the_papers_formula(a: np.ndarray, text: np.ndarray, base: np.ndarray, t: float):
    image, z_t, z_t0 = tensor(a), tensor(text), tensor(base)
    difference = text / np.linalg.norm(text) - base / np.linalg.norm(base)
    assume(np.linalg.norm(difference) > 1e-3)
    z_d = difference / np.linalg.norm(difference)
    z_i = a / np.linalg.norm(a)
    assume(1e-4 < angle(tensor(z_i), tensor(z_d)) < math.pi - 1e-4)
    expected = np.linalg.norm(a) * geometric_slerp(z_i, z_d, np.array([t]))[0]
    found = text_diff(image, z_t, z_t0, theta(t))
    torch.testing.assert_close(found, tensor(expected), rtol=0, atol=1e-8 * float(image.norm()))
    assert float(found.norm()) == pytest.approx(float(image.norm()), rel=1e-12)
    alone = text_diff(image, z_t, None, theta(t))
    torch.testing.assert_close(alone, slerp(image, z_t * (image.norm() / z_t.norm()), theta(t)))


def test_text_diff_at_zero_is_the_picture_to_the_bit_and_no_difference_is_an_error():
    generator = torch.Generator().manual_seed(1)
    image, text = torch.randn(2, 1, 768, generator=generator), torch.randn(768, generator=generator)
    assert text_diff(image, text, -text, torch.zeros(1, 1)).equal(image)
    with pytest.raises(NothingLeft):
        text_diff(image, text, 2 * text, torch.tensor([[0.5]]))


@ANY_TIME
@given(st.lists(VECTORS, min_size=2, max_size=5), st.data())
def test_mix_is_the_weighted_sum_with_the_norm_of_its_parts(vectors: list[np.ndarray], data: st.DataObject):
    weights = data.draw(st.lists(st.floats(-2, 2, width=32), min_size=len(vectors), max_size=len(vectors)).filter(any))
    plain = sum(w * x for w, x in zip(weights, vectors, strict=True))
    norms = sum(abs(w) * np.linalg.norm(x) for w, x in zip(weights, vectors, strict=True))
    assume(np.linalg.norm(plain) > 1e-3 * norms)
    found = mix([tensor(x) for x in vectors], weights, keep_norm=False)
    torch.testing.assert_close(found, tensor(np.asarray(plain)), rtol=0, atol=1e-12 * norms)
    kept = mix([tensor(x) for x in vectors], weights, keep_norm=True)
    assert cosine(kept, found) == pytest.approx(1)
    assert float(kept.norm()) == pytest.approx(norms / sum(map(abs, weights)), rel=1e-9)


def test_one_weight_alone_gives_its_embedding_to_the_bit():
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randn(4, 768, generator=generator) * 17.2 for _ in range(3)]
    for keep_norm in (True, False):
        assert mix(rows, [0.0, 1.0, 0.0], keep_norm).equal(rows[1])
    with pytest.raises(NothingLeft):
        mix([rows[0], rows[0]], [1.0, -1.0], keep_norm=True)


@ANY_TIME
@given(VECTORS, VECTORS)
def test_cosine_is_numpys(a: np.ndarray, b: np.ndarray):
    expected = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    assert float(cosine(tensor(a), tensor(b))) == pytest.approx(expected, abs=1e-12)
    assert float(cosine(tensor(a), 3 * tensor(a))) == pytest.approx(1) == -float(cosine(tensor(a), -tensor(a)))


def test_a_device_without_float64_is_enough_E1():
    a, b = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1))
    there = [x.as_subclass(WithoutFloat64) for x in (a, b)]
    thetas = torch.tensor([[0.0, 0.3, 1.0]])
    assert torch.equal(slerp(*(x[:, None] for x in there), thetas), slerp(a[:, None], b[:, None], thetas))
    assert torch.equal(mix(there, [1.0, 0.5], True), mix([a, b], [1.0, 0.5], True))
    assert torch.equal(cosine(*there), cosine(a, b))
    assert torch.equal(text_diff(there[0], *there[1][:2], thetas[0]), text_diff(a, *b[:2], thetas[0]))
