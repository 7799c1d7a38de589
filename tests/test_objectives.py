"""What every pretraining objective promises, over every encoder; and what each of them means."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.autoencoders import SKIPS, UNetAutoencoder, UNetEncoder
from models.noise import salt_and_pepper
from models.objectives.denoising import Denoising
from models.objectives.masked import Masked
from models.objectives.reconstruction import Reconstruction
from models.registry import ARCHITECTURES, OBJECTIVES, build_encoder, build_objective
from models.weights import from_bytes, to_bytes
from study.sections import Encoder

torch.set_num_threads(1)
SIZE, IMAGES = 32, 12


def images(count: int = IMAGES, seed: int = 0) -> Tensor:
    """Images (count, 3, SIZE, SIZE) in [-1, 1] of smooth colours."""
    random = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 4, 4, generator=random) * 2 - 1
    return F.interpolate(small, SIZE, mode="bilinear")


def build(objective: str, architecture: str = "unet", seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    width = 64 if architecture == "dense" else 8  # of 8, 4 and 2 units all may be dead
    known = {"width": width, "image_size": SIZE, "images": IMAGES} | settings
    known["drawn"] = {"species": 4, "each": IMAGES // 4}
    return build_objective(objective, build_encoder(architecture, **known), **known)


def loss_of(objective: Any, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return objective.loss(images(), torch.arange(IMAGES))


every_pair = [(o, a) for o in OBJECTIVES for a in ARCHITECTURES]


@pytest.mark.parametrize(("name", "architecture"), every_pair)
def test_a_loss_is_a_number_that_trains_the_encoder(name: str, architecture: str) -> None:
    objective = build(name, architecture).train()
    loss = loss_of(objective)
    assert loss.shape == ()
    assert loss.isfinite()
    loss.backward()
    grads = [p.grad for p in objective.encoder.parameters()]
    assert any(g is not None and g.abs().sum() > 0 for g in grads)


@pytest.mark.parametrize(("name", "architecture"), every_pair)
def test_the_same_seed_gives_the_same_loss(name: str, architecture: str) -> None:
    losses = [loss_of(build(name, architecture).train()).item() for _ in range(2)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_validation_changes_nothing(name: str) -> None:
    objective = build(name).eval()
    before = {k: v.clone() for k, v in objective.state_dict().items()}
    with torch.no_grad():
        value = objective.valid_loss(images(5, seed=1), torch.arange(5))
    assert value.shape == ()
    assert value.isfinite()
    assert all(torch.equal(before[k], v) for k, v in objective.state_dict().items())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_its_weights_go_to_disk_and_back(name: str) -> None:
    objective, other = build(name).eval(), build(name, seed=1).eval()
    other.load_state_dict(from_bytes(to_bytes(objective.state_dict())))
    with torch.no_grad():
        found = []
        for each in (objective, other):
            torch.manual_seed(0)
            found.append(each.valid_loss(images(5), torch.arange(5)).item())
    assert found[0] == found[1]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_learns(name: str) -> None:
    objective = build(name).train()
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        loss = loss_of(objective, seed=step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10]) or sum(losses[-10:]) < sum(losses[:10]) - 10


def test_the_configuration_knows_the_same_skips() -> None:
    assert set(get_args(Encoder.model_fields["skips"].annotation)) == set(SKIPS)


# --- Denoising and masking ------------------------------------------------------------------------


def test_noise_has_its_shares_and_leaves_the_rest() -> None:
    clean = images(200).clamp(-0.9, 0.9)
    noisy = salt_and_pepper(clean, 0.1, 0.2, torch.Generator().manual_seed(0))
    white, black = (noisy == 1).all(1), (noisy == -1).all(1)
    assert white.float().mean().item() == pytest.approx(0.1, abs=0.005)
    assert black.float().mean().item() == pytest.approx(0.2, abs=0.005)
    untouched = ~(white | black)
    kept = untouched.unsqueeze(1).expand_as(clean)
    assert torch.equal(noisy[kept], clean[kept])
    assert torch.equal(clean, images(200).clamp(-0.9, 0.9)), "its input is not changed"


@pytest.mark.parametrize("shares", [(-0.1, 0.1), (0.1, 1.1), (0.6, 0.5)])
def test_noise_out_of_range_is_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="expected shares in"):
        Denoising(UNetEncoder(4), *shares)


def test_denoising_compares_with_the_clean_image() -> None:
    objective = Denoising(UNetEncoder(8), 0.2, 0.1).eval()
    torch.manual_seed(3)
    found = objective.valid_loss(images())
    torch.manual_seed(3)
    noisy = salt_and_pepper(images(), 0.2, 0.1)
    assert found.item() == pytest.approx(F.mse_loss(objective(noisy), images()).item())


def test_a_mask_hides_its_share_of_whole_patches() -> None:
    objective = Masked(UNetEncoder(8), hidden=0.75).eval()
    mask = objective.draw_mask(images())
    patches = mask.view(IMAGES, 4, 8, 4, 8).float().mean((2, 4))
    assert set(patches.unique().tolist()) == {0.0, 1.0}
    assert (patches.sum((1, 2)) == 12).all()
    assert len({tuple(p.flatten().tolist()) for p in patches}) > 1, "each image has its own"


def test_only_hidden_pixels_count() -> None:
    objective = Masked(UNetEncoder(8)).eval()
    torch.manual_seed(0)
    found = objective.valid_loss(images())
    torch.manual_seed(0)
    mask = objective.draw_mask(images())
    given = objective(images().masked_fill(mask, 0.0))
    hidden = mask.expand_as(given)
    assert found.item() == pytest.approx(F.mse_loss(given[hidden], images()[hidden]).item())


# --- The U-Net's skips ----------------------------------------------------------------------------


def bypass(skips: str) -> float:
    """How far the output follows the first block alone, with the bottleneck cut: error ratio."""
    torch.manual_seed(0)
    objective = Reconstruction(UNetEncoder(8, dropout=0.0), skips).train()
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    for _ in range(150):
        loss = objective.loss(images(), torch.arange(IMAGES))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network = objective.autoencoder.eval()
    with torch.no_grad():
        first, second, latent = network.encoder.block_outputs(images())
        skips_now = (network._skip(0, second), network._skip(1, first))
        whole = F.mse_loss(network.decode(latent, skips_now), images())
        cut = F.mse_loss(network.decode(torch.zeros_like(latent), skips_now), images())
    return (cut / whole).item()


def test_the_remedies_make_the_bottleneck_matter() -> None:
    """Without what passes through the bottleneck, a decoder with the paper's skips loses least."""
    lost = {skips: bypass(skips) for skips in SKIPS}
    assert min(lost, key=lost.__getitem__) == "added", lost


def test_dropped_skips_are_dropped_in_training_only() -> None:
    network = UNetAutoencoder(UNetEncoder(8, dropout=0.0), "dropped")
    torch.manual_seed(0)
    maps = torch.rand(64, 8, 4, 4)
    factors = (network.train()._skip(1, maps) / maps).mean((1, 2, 3))  # type: ignore[operator]
    assert set(factors.round().int().tolist()) == {0, 2}
    assert network.eval()._skip(1, maps) is maps


def test_narrow_skips_carry_an_eighth_of_the_channels() -> None:
    network = UNetAutoencoder(UNetEncoder(16), "narrow")
    assert [narrow[0].out_channels for narrow in network.narrows] == [4, 2]  # type: ignore[index]


def test_unknown_skips_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one of added, dropped, narrow, none"):
        UNetAutoencoder(UNetEncoder(4), "wide")
