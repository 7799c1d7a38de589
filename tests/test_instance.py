"""What it means to tell the training images apart."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.autoencoders import UNetEncoder
from models.objectives.instance import Instance, changed
from models.residual import ResidualEncoder

torch.set_num_threads(1)
SIZE, IMAGES = 32, 16


def images(count: int = IMAGES, seed: int = 0) -> Tensor:
    """Images (count, 3, SIZE, SIZE) in [-1, 1] of smooth colours."""
    random = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 4, 4, generator=random) * 2 - 1
    return F.interpolate(small, SIZE, mode="bilinear")


def build(seed: int = 0, count: int = IMAGES) -> Instance:
    torch.manual_seed(seed)
    return Instance(ResidualEncoder(8), count)


def train(objective: Instance, steps: int) -> list[float]:
    objective.train()
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        loss = objective.loss(images(), torch.arange(IMAGES))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def accuracy(objective: Instance) -> float:
    """Of 8 views of each training image, as a share."""
    torch.manual_seed(0)
    found = objective.eval().logits(changed(images().repeat(8, 1, 1, 1))).argmax(1)
    return float((found == torch.arange(IMAGES).repeat(8)).float().mean())


@torch.no_grad()
def valid_loss(objective: Instance, count: int = IMAGES, seed: int = 1) -> float:
    """Of images that were not trained on."""
    torch.manual_seed(0)
    return objective.eval().valid_loss(images(count, seed=seed)).item()


def test_it_learns_to_tell_images_apart() -> None:
    objective = build()
    before = accuracy(objective)
    unseen = [valid_loss(objective, seed=seed) for seed in range(1, 9)]
    losses = train(objective, 250)
    assert losses[0] == pytest.approx(math.log(IMAGES), rel=0.25), "chance"
    assert sum(losses[-20:]) / 20 < 0.7 * math.log(IMAGES)
    assert before < 0.3
    assert accuracy(objective) > 0.6
    since = [valid_loss(objective, seed=seed) for seed in range(1, 9)]
    assert sum(since) < 0.95 * sum(unseen), "and so also images that it has not seen"


def test_a_seed_gives_the_same_training_again() -> None:
    first, again, other = (train(build(seed), 3) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def slow_loss(logits: Tensor, views: Tensor, colours: Tensor) -> float:
    """Smoothed cross entropy whose targets are counted pixel by pixel."""
    total = 0.0
    for logit, view in zip(logits.log_softmax(1).tolist(), views[:, 0].flatten(1), strict=True):
        for row, colour in enumerate(colours):
            share = int((view == colour).sum()) / SIZE**2
            total -= (0.9 * share + 0.1 / IMAGES) * logit[row]
    return total / len(views)


def test_targets_are_shared_by_area(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.objectives.instance.changed", lambda images, size: images)
    objective, shown = build(), []
    logits = torch.randn(IMAGES, IMAGES) * 4
    monkeypatch.setattr(objective, "logits", lambda views: shown.append(views) or logits)
    colours = torch.linspace(-1, 1, IMAGES)  # one for each image, and nothing else in it
    batch = colours[:, None, None, None].expand(IMAGES, 3, SIZE, SIZE)
    for seed in range(8):
        torch.manual_seed(seed)
        rows = torch.randperm(IMAGES)
        found = objective.loss(batch[rows].contiguous(), rows).item()
        assert found == pytest.approx(slow_loss(logits, shown[-1], colours), rel=1e-5)
    mixed = [views.flatten(1).std(1).gt(0).all().item() for views in shown]
    assert sum(mixed) >= 4
    boxes = {tuple((view[0, 0] == view[0, 0, 0, 0]).flatten().tolist()) for view in shown}
    assert len(boxes) >= 4, "each batch draws its own box"


class Known(nn.Module):
    """Gives all views of an image the same map and no two images, or each view any map."""

    channels, stride = 6, 1

    def __init__(self, alike: bool):
        super().__init__()
        self.alike = alike

    def forward(self, images: Tensor) -> Tensor:
        half = len(images) // 2
        named = torch.eye(6)[:half].repeat(2, 1)
        maps = named if self.alike else torch.randn(len(images), 6)
        return maps[:, :, None, None].expand(-1, -1, 2, 2)


def test_views_that_are_alike_have_a_low_validation_loss() -> None:
    losses = []
    for alike in (True, False):
        torch.manual_seed(0)
        objective = Instance(Known(alike), IMAGES).eval()
        losses.append(valid_loss(objective, 6))
    assert losses[0] < 0.5 < math.log(6) < losses[1]


def test_the_validation_loss_is_a_mean_over_both_directions() -> None:
    objective = build()
    train(objective, 20)  # until the two directions differ
    objective.eval()
    with torch.no_grad():
        torch.manual_seed(1)
        found = objective.valid_loss(images(5)).item()
        torch.manual_seed(1)
        z = objective(changed(images(5).repeat(2, 1, 1, 1)))
    cosine = F.cosine_similarity(z[:5, None], z[None, 5:], dim=2) / 0.1
    terms = [cosine[i, i] - torch.logsumexp(cosine[i], 0) for i in range(5)]
    terms += [cosine[i, i] - torch.logsumexp(cosine[:, i], 0) for i in range(5)]
    assert found == pytest.approx(-sum(terms).item() / 10, abs=1e-5)


def test_a_single_image_is_a_batch() -> None:
    objective = build().train()
    loss = objective.loss(images(1), torch.tensor([3]))
    loss.backward()
    assert loss.isfinite()
    assert valid_loss(objective, 1) == 0.0


@pytest.mark.parametrize("rows", [[0, IMAGES], [-1, 3]])
def test_rows_of_no_training_image_are_refused(rows: list[int]) -> None:
    with pytest.raises(ValueError, match=f"rows .*: expected 0 to {IMAGES - 1}") as raised:
        build().loss(images(2), torch.tensor(rows))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("arguments", [(0, 0.1), (4, 0.0), (4, float("nan"))])
def test_arguments_out_of_range_are_refused(arguments: tuple[int, float]) -> None:
    with pytest.raises(ValueError, match="expected more than 0"):
        Instance(UNetEncoder(4), *arguments)


def test_under_bfloat16_it_is_nearly_the_same() -> None:
    found = []
    for enabled in (False, True):
        objective = build()
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = objective.loss(images(), torch.arange(IMAGES))
            valid = objective.eval().valid_loss(images())
        loss.backward()
        assert loss.dtype == valid.dtype == torch.float32
        found.append((loss.item(), valid.item()))
    assert found[1] == pytest.approx(found[0], abs=0.1)
