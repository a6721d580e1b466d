"""Reference pictures: padding, resizing, backgrounds and what is refused."""

import pytest
import torch
from palimpsest.nodes.subject.reference_pictures import Reference, prepared, references

pytestmark = pytest.mark.unit


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))


def test_a_square_picture_of_the_right_size_is_left_alone():
    image = picture(32, 32)
    assert torch.equal(prepared(Reference(image), 32), image.movedim(-1, 0))


@pytest.mark.parametrize(("height", "width"), [(32, 20), (20, 32)])
def test_the_short_side_is_padded_with_black_evenly(height, width):
    image = picture(height, width)
    out = prepared(Reference(image), 32)
    inner = out[:, :, 6:26] if height > width else out[:, 6:26]
    assert torch.equal(inner, image.movedim(-1, 0))
    assert float(out.abs().sum()) == pytest.approx(float(image.sum()), rel=1e-5)


def test_an_odd_difference_is_padded_as_published():
    """One column is lacking, so that resizing stretches: 33 rows and 32 columns to 32 x 32."""
    image = torch.ones(33, 20, 3)
    out = prepared(Reference(image), 32)
    across = torch.nn.functional.pad(torch.ones(3, 33, 20), (6, 6))
    assert across.shape == (3, 33, 32)
    assert torch.equal(out, torch.nn.functional.interpolate(across[None], (32, 32), mode="bilinear", antialias=True)[0])


def test_a_mask_crops_to_the_subject_and_makes_the_rest_noise_of_bytes():
    image, mask = picture(40, 60), torch.zeros(40, 60)
    mask[10:30, 20:40] = 1.0
    mask[12, 22] = 0.4
    out = prepared(Reference(image, mask), 20).movedim(0, -1)
    inside = image[10:30, 20:40]
    same = (out == inside).all(dim=-1)
    assert not same[2, 2] and int((~same).sum()) == 1
    level = out[2, 2] * 255
    assert (level - level.round()).abs().max() < 1e-4 and level.max() <= 254
    assert torch.equal(out, prepared(Reference(image, mask), 20).movedim(0, -1))


def test_the_noise_is_uniform_and_independent_of_the_picture():
    mask = torch.zeros(64, 64)
    mask[0, 0] = mask[-1, -1] = 1.0
    first, second = (prepared(Reference(torch.full((64, 64, 3), v), mask), 64)[:, 1:-1, 1:-1] for v in (0.0, 1.0))
    assert torch.equal(first, second)
    counts = torch.histc(first * 255, 5, 0, 255) / first.numel()
    assert (counts - 0.2).abs().max() < 0.02


def test_a_white_mask_changes_nothing():
    image = picture(30, 40)
    assert torch.equal(prepared(Reference(image, torch.ones(30, 40)), 32), prepared(Reference(image), 32))


def sockets(*pairs):
    names = [("images", "mask"), ("image_2", "mask_2"), ("image_3", "mask_3"), ("image_4", "mask_4")]
    return [(name, image, mask_name, mask) for (name, mask_name), (image, mask) in zip(names, pairs, strict=False)]


def test_references_keep_the_order_of_sockets_and_batches():
    batch, other = torch.stack([picture(8, 8, 1), picture(8, 8, 2)]), torch.rand(1, 5, 7, 4)
    mask = torch.ones(8, 8)
    found = references(sockets((batch, mask), (None, None), (other, None)))
    assert [tuple(reference.image.shape) for reference in found] == [(8, 8, 3), (8, 8, 3), (5, 7, 3)]
    assert torch.equal(found[1].image, batch[1]) and torch.equal(found[2].image, other[0, ..., :3])
    assert [reference.mask is None for reference in found] == [False, False, True]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(torch.rand(5, 8, 8, 3), None)], r"^images: expected at most 4 reference pictures.* got 5"),
        ([(torch.rand(3, 8, 8, 3), None), (torch.rand(2, 8, 8, 3), None)], r"^images: expected at most 4 .* got 5"),
        ([(torch.rand(0, 8, 8, 3), None)], r"^images: expected one or more pictures, .* got \[0, 8, 8, 3\]"),
        ([(torch.rand(1, 8, 8, 3), None), (torch.rand(1, 0, 8, 3), None)], r"^image_2: expected one or more pictures"),
        ([(torch.rand(1, 8, 8, 3), torch.ones(1, 9, 8))], r"^mask: expected one mask or 1 of the size of images, 8 x 8, got 1 of 8 x 9"),
        ([(torch.rand(1, 8, 8, 3), torch.ones(2, 8, 8))], r"^mask: expected one mask or 1 .* got 2"),
        ([(torch.rand(2, 8, 8, 3), torch.stack([torch.ones(8, 8), torch.zeros(8, 8)]))], r"^mask: expected white where the subject is"),
        ([(torch.rand(1, 8, 8, 3), None), (None, torch.ones(1, 8, 8))], r"^mask_2: expected a mask of image_2, got one without"),
    ],
)  # fmt: skip
def test_what_is_no_reference_is_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        references(sockets(*pairs))
