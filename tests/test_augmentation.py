"""Augmentation against independent references: torch's flips, torchvision, colorsys, arithmetic."""

from __future__ import annotations

import colorsys
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import affine

from models import augmentation
from models.augmentation import AUGMENTATIONS, LIGHT, STRONG, Augmentation

torch.set_num_threads(1)  # small tensors: two threads would wait for each other
NEITHER = 0.5  # the middle of every range


def images(count: int = 3, height: int = 16, width: int = 16) -> Tensor:
    """Smooth coloured images ``(count, 3, height, width)`` in [-1, 1], each another."""
    random = torch.Generator().manual_seed(3)
    coarse = torch.rand(count, 3, 5, 5, generator=random) * 2 - 1
    return F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def views(x: Tensor, seed: int = 0, **options: Any) -> Tensor:
    return Augmentation(**options)(x, seeded(seed))


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``draw(value)``: every number drawn from now on, as a share of its range."""

    def fix(value: float) -> None:
        monkeypatch.setattr(
            augmentation,
            "_draw",
            lambda count, images, random: (torch.full((len(images),), value),) * count,
        )

    return fix


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(16, 16), (12, 20)])
def test_the_defaults_change_nothing(shape: tuple[int, int], memory_format: Any) -> None:
    x = images(3, *shape).contiguous(memory_format=memory_format)
    before = x.clone()
    torch.testing.assert_close(views(x), x, rtol=0, atol=2e-6)
    assert torch.equal(x, before), "the batch itself is left alone"


def test_a_flip_is_torchs() -> None:
    x = images(3, 12, 20)
    torch.testing.assert_close(views(x, flip=1.0), x.flip(3), rtol=0, atol=2e-6)


def test_half_of_the_views_are_flipped() -> None:
    x = images(1).expand(1000, -1, -1, -1)
    flipped = (views(x, flip=0.5) - x).abs().amax((1, 2, 3)) > 0.1
    assert 430 < int(flipped.sum()) < 570, "4.4 standard deviations"


@pytest.mark.parametrize(("value", "turns"), [(0.0, -1), (1.0, 1)])
def test_a_rotation_by_90_degrees_is_torchs(draw: Any, value: float, turns: int) -> None:
    draw(value)
    x = images()
    found = views(x, rotation=90.0)
    torch.testing.assert_close(found, x.rot90(turns, (2, 3)), rtol=0, atol=1e-5)


def test_a_rotation_of_a_rectangle_is_torchvisions(draw: Any) -> None:
    draw(1.0)
    x = images(2, 24, 40)
    expected = affine(x, -30.0, [0, 0], 1.0, [0.0, 0.0], InterpolationMode.BILINEAR)
    inside = affine(torch.ones_like(x), -30.0, [0, 0], 1.0, [0.0, 0.0]) == 1
    inside &= F.avg_pool2d(inside.float(), 3, 1, 1) == 1  # where no border is mixed in
    assert inside.float().mean() > 0.5
    found = views(x, rotation=30.0)
    torch.testing.assert_close(found[inside], expected[inside], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("value", "part"), [(0.0, slice(None, 8)), (1.0, slice(8, None))])
def test_a_quarter_of_the_area_is_a_corner_enlarged(draw: Any, value: float, part: slice) -> None:
    draw(value)
    x = images()
    expected = F.interpolate(x[:, :, part, part], scale_factor=2, mode="bilinear")
    found = views(x, area=(0.25, 0.25))
    inner = (..., slice(1, -1), slice(1, -1))  # at the borders a view sees what lies beside it
    torch.testing.assert_close(found[inner], expected[inner], rtol=0, atol=1e-5)


def test_a_view_that_is_larger_than_the_image_reflects_it(draw: Any) -> None:
    draw(NEITHER)
    x = images(2, 16, 16)
    found = views(x, area=(4.0, 4.0))
    small = F.avg_pool2d(x, 2)  # a sample between four pixels is their mean
    torch.testing.assert_close(found[:, :, 4:12, 4:12], small, rtol=0, atol=1e-5)
    torch.testing.assert_close(found[:, :, :4, 4:12], small[:, :, :4].flip(2), rtol=0, atol=1e-5)


def test_a_stretch_keeps_the_area(draw: Any) -> None:
    draw(1.0)
    x = images(1, 32, 32)
    found = Augmentation(stretch=1.0)._grid(x, 32, 32, seeded())
    across = found[0, 0, -1, 0] - found[0, 0, 0, 0]
    down = found[0, -1, 0, 1] - found[0, 0, 0, 1]
    assert (across / down).item() == pytest.approx(2.0, rel=1e-4)
    assert (across * down).item() == pytest.approx((2 * 31 / 32) ** 2, rel=1e-4)


def test_brightness_and_contrast_by_hand(draw: Any) -> None:
    draw(1.0)
    x = images()
    found = views(x, brightness=0.3, contrast=0.4)
    torch.testing.assert_close(found, (x * 1.4 + 0.3).clamp(-1, 1), rtol=0, atol=1e-5)
    draw(0.0)
    found = views(x, brightness=0.3, contrast=0.4)
    torch.testing.assert_close(found, (x * 0.6 - 0.3).clamp(-1, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{"grey": 1.0}, {"saturation": 1.0}])
def test_without_saturation_only_brightness_is_left(draw: Any, options: dict[str, float]) -> None:
    draw(0.0)
    x = images()
    luma = (x * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    torch.testing.assert_close(views(x, **options), luma.expand_as(x), rtol=0, atol=2e-3)


def test_hue_turns_the_colours_of_the_standard_librarys_yiq(draw: Any) -> None:
    draw(1.0)
    x = images(1, 4, 4) * 0.4  # no colour leaves [0, 1] when turned
    turn = math.radians(40)
    for before, after in zip(
        x[0].flatten(1).T.tolist(), views(x, hue=40.0)[0].flatten(1).T.tolist(), strict=True
    ):
        y, i, q = colorsys.rgb_to_yiq(*((value + 1) / 2 for value in before))
        turned = i * math.cos(turn) - q * math.sin(turn), i * math.sin(turn) + q * math.cos(turn)
        expected = colorsys.yiq_to_rgb(y, *turned)
        assert after == pytest.approx([2 * value - 1 for value in expected], abs=0.02)


def test_erased_squares_are_grey_and_of_the_promised_size() -> None:
    x = torch.ones(400, 3, 20, 20)
    found = views(x, erase=0.5)
    erased = found[:, 0] == 0
    assert torch.equal(found == 0, erased[:, None].expand_as(found)), "all three channels"
    assert torch.equal(found[found != 0], torch.ones(int((found != 0).sum())))
    area = erased.sum((1, 2))
    assert 150 < int((area > 0).sum()) < 250, "half of the views, within 5 standard deviations"
    rows, columns = erased.any(2).sum(1), erased.any(1).sum(1)
    assert torch.equal(area, rows * columns), "rectangles"
    assert rows.max() <= 11, "0.5 of 20 pixels, and one for where it begins"
    inner = area[(~erased[:, [0, -1]].any((1, 2))) & (~erased[:, :, [0, -1]].any((1, 2)))]
    assert inner[inner > 0].min() >= 9, "0.2 of 20 pixels, less one, squared"


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_views_of_a_preset(name: str) -> None:
    x = images(1).expand(12, -1, -1, -1)
    augment = AUGMENTATIONS[name]
    found = augment(x, seeded())
    assert found.shape == x.shape
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.min() >= -1
    assert found.max() <= 1
    distances = torch.cdist(found.flatten(1), found.flatten(1)).fill_diagonal_(math.inf)
    assert distances.min() > 0.5, "every image of the batch has its own parameters"
    assert torch.equal(augment(x, seeded()), found), "the seed decides"
    assert not torch.equal(augment(x, seeded(1)), found)
    in_colour = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(augment(in_colour, seeded()), found)


def test_strong_changes_more_than_light() -> None:
    x = images(64)
    distance = [(augment(x, seeded()) - x).abs().mean() for augment in (LIGHT, STRONG)]
    assert 0.03 < distance[0] < distance[1]


def test_only_the_given_generator_is_drawn_from() -> None:
    before = torch.get_rng_state()
    random = seeded()
    first, second = (STRONG(images(), random) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first, second), "the generator moves on"


def test_views_may_have_another_size() -> None:
    x = images(4, 24, 24)
    small = Augmentation()(x, seeded(), size=12)
    torch.testing.assert_close(small, F.avg_pool2d(x, 2), rtol=0, atol=1e-5)
    assert LIGHT(images(2, 12, 20), seeded(), size=8).shape == (2, 3, 8, 8)


def test_autocast_does_not_coarsen_the_views() -> None:
    x = images()
    expected = STRONG(x, seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = STRONG(x, seeded())
    assert torch.equal(found, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_makes_the_same_views() -> None:
    x = images(8, 32, 32)
    found = STRONG(x.cuda(), seeded())
    torch.testing.assert_close(found.cpu(), STRONG(x, seeded()), rtol=0, atol=1e-3)
    own = torch.Generator("cuda").manual_seed(0)
    assert STRONG(x.cuda(), own).device == found.device


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, "flip 1.5: expected 0 to 1"),
        ({"erase": -0.1}, "erase -0.1: expected 0 to 1"),
        ({"rotation": -1.0}, "rotation -1.0: expected 0 to inf"),
        ({"hue": math.nan}, "hue nan: expected 0 to inf"),
        ({"area": (0.0, 1.0)}, "area (0.0, 1.0): expected 0 < least <= most"),
        ({"area": (1.0, 0.5)}, "area (1.0, 0.5): expected 0 < least <= most"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        Augmentation(**options)
    assert str(raised.value) == message
