"""The variational objectives: their two terms, how they train, what they can draw."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.utils.data import DataLoader, TensorDataset

from models.objectives import variational
from models.objectives.variational import BOUND, DenoisingVariational, Variational, draw
from models.registry import OBJECTIVES, build_encoder, build_objective
from models.training import PretrainingModule, trainer_options
from models.weights import from_bytes, to_bytes

torch.set_num_threads(1)  # small tensors: two threads would wait for each other
SIZES = {"dense": 28, "unet": 32}
KINDS = ("variational", "denoising_variational")
every_architecture = pytest.mark.parametrize("architecture", SIZES)
every_kind = pytest.mark.parametrize("kind", KINDS)


def images(count: int, size: int, seed: int = 0) -> Tensor:
    """Stripes of two directions and some noise, ``(count, 3, size, size)`` in [-1, 1]."""
    random = torch.Generator().manual_seed(seed)
    stripes = (torch.arange(size) // 4 % 2).float().mul(1.2).sub(0.6)
    found = torch.rand(count, 3, size, size, generator=random).mul(0.4).sub(0.2)
    found[::2] += stripes
    found[1::2] += stripes[:, None]
    return found


def smooth_images(count: int, size: int) -> Tensor:
    """Clouds of colour, ``(count, 3, size, size)`` in [-1, 1]."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")


def build(kind: str, architecture: str = "dense", seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    width = {"dense": 64, "unet": 8}[architecture]  # of few dense units all may be dead
    settings = {"width": width, "image_size": SIZES[architecture], **settings}
    encoder = build_encoder(architecture, **settings)
    return build_objective(kind, encoder, **settings)


def rows(batch: Tensor) -> Tensor:
    return torch.arange(len(batch))


def test_the_divergence_is_that_of_torch() -> None:
    mean, log_variance = torch.randn(2, 5, 7, 2, 3)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    found = variational.kl_divergence(mean, log_variance)
    torch.testing.assert_close(found, expected.sum((1, 2, 3)))
    assert variational.kl_divergence(torch.zeros(2, 3), torch.zeros(2, 3)).tolist() == [0, 0]


def test_the_likelihood_is_that_of_torch() -> None:
    values, mean = torch.rand(2, 4, 1, 28, 28)
    log_scale = torch.tensor(-1.7)
    expected = Normal(mean, log_scale.exp()).log_prob(values).sum((1, 2, 3))
    torch.testing.assert_close(variational.log_likelihood(values, mean, log_scale), expected)


def test_latents_have_the_mean_and_spread_that_they_are_drawn_with() -> None:
    torch.manual_seed(0)
    mean, log_variance = torch.tensor([3.0, -1.0]), torch.tensor([0.0, -4.0])
    drawn = draw(mean.expand(40_000, 2), log_variance.expand(40_000, 2))
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.std(0), (0.5 * log_variance).exp(), atol=0.01, rtol=0.02)


def test_gradients_pass_through_the_draw() -> None:
    torch.manual_seed(0)
    mean = torch.zeros(20_000, requires_grad=True)
    log_variance = torch.zeros(20_000, requires_grad=True)
    draw(mean, log_variance).square().mean().mul(20_000).backward()
    # E z² = mean² + variance: its derivatives are 2 · mean = 0, and the variance, 1.
    assert mean.grad is not None
    assert log_variance.grad is not None
    assert mean.grad.mean().item() == pytest.approx(0, abs=0.05)
    assert log_variance.grad.mean().item() == pytest.approx(1, abs=0.05)


@every_kind
@every_architecture
def test_everything_gets_a_gradient(kind: str, architecture: str) -> None:
    objective = build(kind, architecture)
    objective.progress = 1.0
    batch = images(8, SIZES[architecture])
    objective.loss(batch, rows(batch)).backward()
    for name, weight in objective.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.any(), name


def test_the_divergence_counts_little_by_little() -> None:
    objective = build("variational", kl_warmup=0.25).eval()
    batch = images(6, 28)

    def loss(progress: float) -> float:
        objective.progress = progress
        torch.manual_seed(1)
        return objective.loss(batch, rows(batch)).item()

    torch.manual_seed(1)
    likelihood, divergence = (part.mean().item() for part in objective.evidence(batch, batch))
    assert divergence > 0
    assert loss(0.0) == pytest.approx(-likelihood)
    assert loss(0.1) == pytest.approx(0.4 * divergence - likelihood)
    assert loss(0.25) == loss(0.9) == pytest.approx(divergence - likelihood)
    torch.manual_seed(1)
    objective.progress = 0.0
    assert objective.valid_loss(batch).item() == pytest.approx(loss(1.0)), "always in full"
    objective.kl_warmup = 0.0
    assert loss(0.0) == loss(1.0)


def test_pretraining_says_how_far_it_is() -> None:
    seen = []

    class Watched(Variational):
        def loss(self, images: Tensor, rows: Tensor) -> Tensor:
            seen.append(self.kl_weight)
            return super().loss(images, rows)

    objective = Watched(build_encoder("dense", width=8, image_size=28), kl_warmup=0.5)
    train(objective, images(8, 28), epochs=4)
    assert seen == [0.0, 0.5, 1.0, 1.0]


def train(objective: Any, batch: Tensor, epochs: int, lr: float = 1e-3) -> L.Trainer:
    loader = DataLoader(TensorDataset(batch, rows(batch)), batch_size=len(batch))
    trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", **trainer_options())
    trainer.fit(PretrainingModule(objective, lr), loader, loader)
    return trainer


@pytest.mark.parametrize("kind", OBJECTIVES)
@every_architecture
def test_every_recipe_trains_every_architecture(kind: str, architecture: str) -> None:
    objective = build(kind, architecture, images=32, drawn={"species": 8, "each": 4})
    batch = smooth_images(32, SIZES[architecture])  # any two differ, also in strong views

    def valid_loss() -> float:
        torch.manual_seed(0)
        with torch.no_grad():
            return float(objective.eval().valid_loss(batch, torch.arange(32)))

    before = valid_loss()
    train(objective.train(), batch, epochs=25, lr=3e-3)
    assert valid_loss() < before


def test_the_scale_finds_the_error() -> None:
    """Where the likelihood is best, its variance is the mean squared error."""
    objective = build("variational", kl_warmup=0.0)
    batch = images(64, 28)
    train(objective, batch, epochs=200)
    with torch.no_grad():
        error = (objective(batch) - objective.target(batch)).square().mean().sqrt()
    assert objective.log_scale.exp().item() == pytest.approx(float(error), rel=0.15)


def test_from_noise_the_clean_image_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = build("denoising_variational", salt=0.3, pepper=0.2)
    batch, calls = images(6, 28), []
    whole = Variational.evidence

    def watched(self: Variational, shown: Tensor, wanted: Tensor) -> Any:
        calls.append((shown, wanted))
        return whole(self, shown, wanted)

    monkeypatch.setattr(Variational, "evidence", watched)
    for _ in range(2):
        objective.loss(batch, rows(batch))
    objective.valid_loss(batch)
    for shown, wanted in calls:
        assert wanted is batch
        assert ((shown == 1).all(1)).float().mean() == pytest.approx(0.3, abs=0.03)
        assert ((shown == -1).all(1)).float().mean() == pytest.approx(0.2, abs=0.03)
    assert not torch.equal(calls[0][0], calls[1][0]), "fresh noise in every step"


def test_without_noise_both_are_the_same() -> None:
    plain = build("variational")
    denoising = build("denoising_variational", salt=0.0, pepper=0.0)
    batch, losses = images(6, 28), []
    for objective in (plain, denoising):
        shown = objective.shown(batch)
        torch.manual_seed(4)
        losses.append([part.mean().item() for part in objective.evidence(shown, batch)])
    assert losses[0] == losses[1]


@every_kind
def test_the_encoder_that_is_kept_is_that_of_a_denoising_autoencoder(kind: str) -> None:
    found, other = build(kind).encoder.state_dict(), build("denoising").encoder.state_dict()
    assert {name: value.shape for name, value in found.items()} == {
        name: value.shape for name, value in other.items()
    }
    assert all(torch.equal(found[name], other[name]) for name in found), "from one seed"


@every_kind
@every_architecture
def test_its_state_comes_back_from_bytes(kind: str, architecture: str) -> None:
    first, second = build(kind, architecture), build(kind, architecture, seed=1)
    second.load_state_dict(from_bytes(to_bytes(first)))
    batch = images(4, SIZES[architecture])
    first.eval(), second.eval()
    assert torch.equal(first(batch), second(batch))
    assert torch.equal(first(batch), first(batch)), "given back from the mean, without a draw"


@every_kind
@every_architecture
def test_samples_are_pictures(kind: str, architecture: str) -> None:
    objective, size = build(kind, architecture).eval(), SIZES[architecture]
    with torch.no_grad():
        first, again, other = (
            objective.sample(5, size, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
        )
        assert first.shape == objective.target(images(5, size)).shape
    pictures = objective.autoencoder.pictures(first)
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_means_lie_around_the_prior() -> None:
    objective = build("variational")
    batch = images(32, 28) + 0.3
    mean, _ = objective.posterior(batch)
    torch.testing.assert_close(mean.mean(0), torch.zeros_like(mean[0]), atol=1e-5, rtol=0)
    train(objective, batch, epochs=60)
    with torch.no_grad():
        samples = objective.eval().sample(200, 28, torch.Generator().manual_seed(0))
    assert samples.mean().item() == pytest.approx(objective.target(batch).mean().item(), abs=0.05)


@every_architecture
def test_a_batch_may_be_a_single_image(architecture: str) -> None:
    objective = build("variational", architecture)
    batch = images(5, SIZES[architecture])
    objective.loss(batch, rows(batch))
    loss = objective.loss(batch[:1], rows(batch[:1]))
    loss.backward()
    assert loss.isfinite()


def test_extreme_weights_stay_finite() -> None:
    objective = build("variational")
    with torch.no_grad():
        objective.log_variance.weight.mul_(1e6)
        objective.log_variance.bias.fill_(1e6)
    batch = images(4, 28)
    _, log_variance = objective.posterior(batch)
    assert log_variance.abs().max() <= BOUND
    loss = objective.valid_loss(batch)
    loss.backward()
    assert loss.isfinite()
    assert all(weight.grad.isfinite().all() for weight in objective.parameters())


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_a_warm_up_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"kl_warmup .*: expected a share in \[0, 1\]"):
        build("variational", kl_warmup=value)


def test_noise_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="expected shares"):
        DenoisingVariational(build_encoder("dense", width=8), salt=0.7, pepper=0.7)
