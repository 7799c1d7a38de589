"""What every encoder promises to classifiers, objectives and features, whatever it is made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.registry import ARCHITECTURES, build_encoder, build_objective
from models.residual import ResidualBlock
from models.transformer import TransformerEncoder, positions, split_patches
from models.weights import from_bytes, to_bytes

torch.set_num_threads(1)  # small tensors: two threads would wait for each other
FORMATS = (torch.contiguous_format, torch.channels_last)
ONE_SIZE = {"dense"}  # built for one size of images, by its setting image_size


def images(count: int = 3, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    """Images ``(count, 3, height, width)`` in [-1, 1]."""
    random = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, height, width, generator=random) * 2 - 1


def build(name: str, seed: int = 0, width: int = 16) -> Any:
    torch.manual_seed(seed)
    return build_encoder(name, width=width, image_size=32)


every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


@every_architecture
def test_images_become_maps(name: str) -> None:
    encoder = build(name)
    maps = encoder(images())
    size = 32 // encoder.stride
    assert maps.shape == (3, encoder.channels, size, size)
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()
    assert maps.is_contiguous(memory_format=torch.channels_last)
    assert encoder.stride % ARCHITECTURES[name].stride == 0
    assert isinstance(encoder.pooled, bool)


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - ONE_SIZE))
def test_the_narrowest_encoders_give_images_back(name: str, width: int) -> None:
    given = build_objective("reconstruction", build(name, width=width))(images())
    assert given.shape == images().shape


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - ONE_SIZE))
@pytest.mark.parametrize("size", [(16, 16), (48, 48), (32, 64)])
def test_the_same_encoder_takes_other_sizes(name: str, size: tuple[int, int]) -> None:
    encoder = build(name).eval()
    maps = encoder(images(2, *size))
    assert maps.shape[2:] == tuple(pixels // encoder.stride for pixels in size)
    assert maps.isfinite().all()


@every_architecture
def test_classifiers_of_any_size_average_maps_of_any_size(name: str) -> None:
    """`training.view_size` relies on it."""
    assert ARCHITECTURES[name].any_size == (build(name).pooled and name not in ONE_SIZE)


@every_architecture
@pytest.mark.parametrize("size", [(36, 32), (32, 36), (31, 31)])
def test_other_sizes_are_refused(name: str, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"image size {size[0]}×{size[1]}: expected ") as raised:
        build(name)(images(2, *size))
    assert "\n" not in str(raised.value)


@every_architecture
def test_a_width_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="width 0"):
        build(name, width=0)


@every_architecture
def test_every_weight_and_the_images_get_a_gradient(name: str) -> None:
    encoder, x = build(name), images(8).requires_grad_()
    encoder(x).square().mean().backward()
    assert x.grad is not None
    assert x.grad.any()
    for weight_name, weight in encoder.named_parameters():
        assert weight.grad is not None, weight_name
        assert weight.grad.isfinite().all(), weight_name
        assert weight.grad.any(), weight_name


@every_architecture
def test_it_can_learn(name: str) -> None:
    encoder, x = build(name), images(8)
    goal = build(name, seed=1).eval()(x).detach()
    optimizer = torch.optim.Adam(encoder.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = (encoder(x) - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@every_architecture
def test_one_image_of_the_smallest_size_can_be_trained_on(name: str) -> None:
    """As the last batch of an epoch may be; at that size a map may have one cell."""
    size = ARCHITECTURES[name].stride if name not in ONE_SIZE else 32
    encoder = build(name)
    seen = {key: value.clone() for key, value in encoder.named_buffers()}
    encoder(images(1, size, size)).sum().backward()
    assert all(torch.equal(value, seen[key]) for key, value in encoder.named_buffers())


@every_architecture
def test_weights_come_back_from_bytes(name: str) -> None:
    encoder = build(name)
    encoder(images())  # in training mode, so that running statistics have moved
    state = from_bytes(to_bytes(encoder))
    other = build(name, seed=1)
    other.load_state_dict(state)
    x = images(seed=1)
    assert torch.equal(other.eval()(x), encoder.eval()(x))


@every_architecture
def test_the_seed_decides_the_weights(name: str) -> None:
    first, again, other = (build(name, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@every_architecture
def test_in_evaluation_mode_an_image_has_one_answer(name: str) -> None:
    encoder, x = build(name).eval(), images()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    given = x.clone()
    first = encoder(x)
    assert torch.equal(encoder(x), first)
    torch.testing.assert_close(encoder(x[1:2]), first[1:2], rtol=1e-4, atol=1e-5)
    assert torch.equal(x, given), "the batch is left alone"
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


@every_architecture
def test_memory_format_and_gradients_change_nothing(name: str) -> None:
    encoder, x = build(name).eval(), images()
    expected = encoder(x)
    for memory_format in FORMATS:
        in_memory = x.contiguous(memory_format=memory_format)
        torch.testing.assert_close(encoder(in_memory), expected, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(encoder(in_memory), expected, rtol=1e-4, atol=1e-5)


def test_a_residual_block_of_zeros_is_its_shortcut() -> None:
    block = ResidualBlock(4, 4, 1).eval()
    torch.nn.init.zeros_(block.second.weight)
    maps = images(2)[:, [0, 1, 2, 0]]
    torch.testing.assert_close(block(maps), maps.relu())


def test_patches_are_pieces_of_the_image_row_by_row() -> None:
    x = images(2, 16, 24)
    patches = split_patches(x)
    assert patches.shape == (2, 6, 3 * 8 * 8)
    piece = x[1, :, 8:16, 16:24]  # second row, third column
    assert torch.equal(patches[1, 5].view(8, 8, 3), piece.permute(1, 2, 0))


def test_every_place_has_its_own_position_and_neighbours_are_alike() -> None:
    places = positions(6, 5, 32, torch.device("cpu"))
    assert places.shape == (30, 32)
    assert places.abs().max() <= 1
    near = torch.cdist(places, places)
    assert near[~torch.eye(30, dtype=torch.bool)].min() > 0.1
    grid = near[0].view(6, 5)
    assert grid[0, 1] < grid[0, 2] < grid[0, 3]
    torch.testing.assert_close(grid[1, 0], grid[0, 1])  # rows and columns count alike
    torch.testing.assert_close(places[:5], positions(2, 5, 32, torch.device("cpu"))[:5])


def transformer() -> TransformerEncoder:
    torch.manual_seed(0)
    return TransformerEncoder(8).eval()


def test_patches_know_their_place_and_each_other() -> None:
    encoder = transformer()
    x = images(1, 8, 8).repeat(1, 1, 2, 2)  # the same patch four times
    maps = encoder(x)[0].flatten(1)
    assert (maps[:, 0] - maps[:, 3]).abs().max() > 1e-3
    other = x.clone()
    other[:, :, 8:, 8:] = images(1, 8, 8, seed=1)
    assert (encoder(other)[0, :, 0, 0] - maps[:, 0]).abs().max() > 1e-4, "by attention"
