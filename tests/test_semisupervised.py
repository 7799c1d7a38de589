"""FixMatch: its loss by hand, its teacher, its alignment, and a fit that is interrupted."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.module import Batches, ButterflyDataModule
from data.storage import Location
from models.augmentation import Augmentation
from models.semisupervised import FixMatchModule, PseudoLabels, unlabelled_loss
from study import fitting
from study.fitting import Checkpoint, EpochEnd, fit, make_trainer
from study.trial import METRICS

torch.set_num_threads(1)  # small tensors: two threads would wait for each other
CPU = torch.device("cpu")
SPECIES = 3
NOTHING = Augmentation()
Row = dict[str, Any]


class KilledError(Exception):
    """What ends a fit in the middle."""


# --- names and their loss


def test_names_are_aligned_by_hand() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.5, 0.4, 0.0], [0.0, 0.0, 3.0]])
    labelling = PseudoLabels(torch.tensor([2, 6, 2]), threshold=0.5)
    names, sure = labelling(logits)
    predicted = [1 / 3] * 3
    probabilities = [[math.exp(v) / sum(map(math.exp, row)) for v in row] for row in logits]
    for k in range(3):
        mean = sum(row[k] for row in probabilities) / 3
        predicted[k] = 0.99 * predicted[k] + 0.01 * mean
    for i, row in enumerate(probabilities):
        aligned = [
            p * share / q for p, share, q in zip(row, (0.2, 0.6, 0.2), predicted, strict=True)
        ]
        best = max(aligned) / sum(aligned)
        assert names[i] == aligned.index(max(aligned))
        assert sure[i] == (best > 0.5)
    assert names.tolist() == [1, 1, 2], "alignment overrules the first, whose greatest is 0"
    torch.testing.assert_close(labelling.predicted, torch.tensor(predicted))


def biased_logits(count: int, random: torch.Generator) -> Tensor:
    """A teacher that says species 0 nearly always."""
    return torch.randn(count, SPECIES, generator=random) + torch.tensor([3.0, 0.0, 0.0])


def test_alignment_makes_the_names_follow_the_labelled_species() -> None:
    random = torch.Generator().manual_seed(0)
    labelling = PseudoLabels(torch.tensor([1, 1, 2]), threshold=0.0)
    for _ in range(500):
        labelling(biased_logits(64, random))
    probability = biased_logits(4000, random).softmax(1)
    off = probability.mean(0) - labelling.labelled
    aligned = labelling.align(probability)
    torch.testing.assert_close(aligned.sum(1), torch.ones(4000))
    assert off.abs().max() > 0.5
    assert (aligned.mean(0) - labelling.labelled).abs().max() < 0.3 * off.abs().max()
    names, sure = labelling(biased_logits(4000, random))
    assert sure.all(), "any name is above 0"
    assert names.bincount(minlength=SPECIES).argmax() == 2, "the species with most labels"
    assert set(labelling.state_dict()) == {"labelled", "predicted"}


def test_only_sure_names_count_and_all_images_divide() -> None:
    logits = torch.randn(4, SPECIES, requires_grad=True)
    names, sure = torch.tensor([0, 1, 2, 0]), torch.tensor([True, False, True, False])
    loss = unlabelled_loss(logits, names, sure)
    logs = logits.log_softmax(1)
    torch.testing.assert_close(loss, -(logs[0, 0] + logs[2, 2]) / 4)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient[[1, 3]].any()


# --- a step


class Spread(nn.Sequential):
    """A network with a batch norm, small enough to follow: ``(B, 3, 16, 16)`` -> ``(B, 3)``."""

    def __init__(self) -> None:
        torch.manual_seed(4)
        super().__init__(
            nn.Conv2d(3, 6, 3, 2, 1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, 2, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, SPECIES),
        )


def module_of(network: nn.Module | None = None, **options: Any) -> FixMatchModule:
    options = {"lr": 1e-2, "label_counts": torch.tensor([2, 2, 2]), "decay": 0.9} | options
    options = {"weight_decay": 0.05, "cosine": True} | options
    return FixMatchModule(network or Spread(), SPECIES, **options)


def batch(labelled: int = 6, unlabelled: int = 12) -> dict[str, Any]:
    torch.manual_seed(6)
    pictures = torch.rand(labelled + unlabelled, 3, 16, 16) * 2 - 1
    labels = torch.arange(labelled) % SPECIES
    return {"labelled": (pictures[:labelled], labels), "unlabelled": pictures[labelled:]}


def test_a_steps_loss_and_gradient_by_hand() -> None:
    module = module_of(weak=NOTHING, strong=NOTHING, threshold=0.36, unlabelled_weight=0.7).train()
    one = batch()
    images, labels = one["labelled"]
    student = copy.deepcopy(module.student)
    with torch.no_grad():
        names, sure = copy.deepcopy(module.pseudo_labels)(module.network(one["unlabelled"]))
    assert 0 < int(sure.sum()) < len(sure), "the test would show nothing"
    logits = student(torch.cat([images, one["unlabelled"]]))
    unsure = F.cross_entropy(logits[6:][sure], names[sure], reduction="sum") / 12
    expected = F.cross_entropy(logits[:6], labels) + 0.7 * unsure
    loss = module.training_step(one, 0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    for ours, theirs in zip(module.student.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    assert all(weight.grad is None for weight in module.network.parameters())


def test_the_teacher_is_the_given_network_in_evaluation_mode() -> None:
    network = Spread()
    module = module_of(network).train()
    assert module.network is network
    assert not network.training
    assert module.student.training
    before = {name: value.clone() for name, value in network.state_dict().items()}
    module.training_step(batch(), 0).backward()
    after = network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before), "not by a step alone"


def test_labels_of_unlabelled_images_are_not_looked_at() -> None:
    losses = []
    for labels in (None, torch.zeros(12, dtype=torch.long), torch.full((12,), -99)):
        one = batch()
        if labels is not None:
            one["unlabelled"] = (one["unlabelled"], labels)
        losses.append(module_of().train().training_step(one, 0).item())
    assert losses[0] == losses[1] == losses[2]


def test_views_may_be_smaller_than_the_images() -> None:
    module = module_of(view_size=8).train()
    seen: list[tuple[int, ...]] = []
    for network in (module.student, module.network):
        network.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    module.training_step(batch(), 0)
    assert sorted(seen) == [(12, 3, 8, 8), (18, 3, 8, 8)]


@pytest.mark.parametrize("options", [{"threshold": 1.1}, {"threshold": -0.1}, {"decay": 1.0}])
def test_settings_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} .*: expected 0"):
        module_of(**options)
    with pytest.raises(ValueError, match="decay 0: expected more"):
        module_of(decay=0)


# --- whole fits


class TwoStreams(ButterflyDataModule):
    """Labelled batches beside unlabelled ones; an epoch is a pass over the unlabelled."""

    def __init__(self, unlabelled: Any, **options: Any):
        super().__init__(**options)
        self.unlabelled = unlabelled

    def train_dataloader(self) -> Any:
        order: Any = {"shuffle": True, "epoch": self._epoch}
        rest = Batches(self._inputs, self._labels, self.unlabelled, 12, seed=9, **order)
        few = self._batches(self._train, seed=2, min_steps=len(rest), **order)
        return {"labelled": few, "unlabelled": rest}


def stripes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images ``(count, 16, 16, 3)`` uint8; the striped colour channel is the species."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % SPECIES
    pixels = random.integers(60, 140, (count, 16, 16, 3))
    pixels[np.arange(count), ::2, :, labels] += 90
    return pixels.astype(np.uint8), labels


def two_streams(spoil_labels: bool = False) -> TwoStreams:
    """6 labelled and 36 unlabelled images, and 30 to validate and test on."""
    pixels, labels = stripes(66, 1)
    if spoil_labels:
        labels[6:36] = 0  # of those that are unlabelled only
    places = np.arange(66)
    return TwoStreams(
        inputs=pixels,
        labels=labels,
        train=places[:6],
        unlabelled=places[:36],
        valid=places[36:],
        test=places[36:],
        batch_size=6,
    )


class Fit:
    """One fit, as a study makes it."""

    def __init__(
        self,
        checkpoint: Checkpoint | None = None,
        kill_after: int | None = None,
        epochs: int = 4,
        data: TwoStreams | None = None,
        network: nn.Module | None = None,
        **options: Any,
    ):
        self.network = network or Spread()
        self.module = module_of(self.network, **options)
        self.data = data or two_streams()

        def report(row: Row) -> None:
            if kill_after is not None and row["epoch"] > kill_after:
                raise KilledError

        self.ends = EpochEnd("val_f1", (*METRICS, "train_sure"), report, True, checkpoint)
        self.trainer = fit(
            self.module, self.data, self.ends, max_epochs=epochs, patience=99, device=CPU
        )

    def values(self) -> list[Row]:
        return [
            {name: value for name, value in row.items() if name not in ("seconds", "ended")}
            for row in self.ends.rows
        ]

    def weights(self) -> dict[str, bytes]:
        return {k: v.numpy().tobytes() for k, v in self.module.state_dict().items()}


@pytest.fixture(scope="module")
def undisturbed() -> Fit:
    return Fit()


def test_every_epoch_has_the_rows_of_a_classifier(undisturbed: Fit) -> None:
    assert [row["epoch"] for row in undisturbed.ends.rows] == [1, 2, 3, 4]
    assert undisturbed.trainer.global_step == 4 * 3, "an epoch is a pass over the 36"
    assert all(0 <= row["train_sure"] <= 1 for row in undisturbed.ends.rows)


def test_what_is_validated_tested_and_kept_is_the_average(undisturbed: Fit) -> None:
    network, module = undisturbed.network, undisturbed.module
    trainer = make_trainer(CPU)
    (scores,) = trainer.test(module, undisturbed.data, verbose=False)
    assert scores["test_loss"] == pytest.approx(undisturbed.ends.rows[-1]["val_loss"], rel=1e-5)
    pixels, labels = zip(*undisturbed.data.val_dataloader(), strict=True)
    with torch.no_grad():
        expected = F.cross_entropy(network.eval()(torch.cat(pixels)), torch.cat(labels))
        others = F.cross_entropy(module.student.eval()(torch.cat(pixels)), torch.cat(labels))
    assert scores["test_loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert scores["test_loss"] != pytest.approx(others.item(), rel=1e-3)
    assert undisturbed.ends.best_state is not None
    Spread().load_state_dict(undisturbed.ends.best_state)  # it can be loaded without FixMatch


class Watched(Spread):
    """Notes the learning rate of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.rates: list[float] = []
        self.optimizer: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if self.optimizer is not None:
            self.rates.append(self.optimizer.param_groups[0]["lr"])
        return super().forward(x)


def test_the_learning_rate_rises_and_falls_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    configure = FixMatchModule.configure_optimizers

    def watched(module: FixMatchModule) -> torch.optim.Optimizer:
        optimizer = configure(module)
        module.student.optimizer = optimizer
        return optimizer

    monkeypatch.setattr(FixMatchModule, "configure_optimizers", watched)
    rates = Fit(epochs=20, network=Watched()).module.student.rates
    assert len(rates) == 60
    assert 0 < rates[0] < rates[1] < rates[2] <= 1e-2, "5 % of 60 steps"
    assert max(rates) == rates[3] == pytest.approx(1e-2, rel=1e-3)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[31] == pytest.approx(0.5e-2, rel=0.05), "half of it in the middle of the fall"
    assert 0 < rates[-1] < 1e-5


def test_weights_decay_and_offsets_do_not(undisturbed: Fit) -> None:
    (optimizer,) = undisturbed.trainer.optimizers
    groups = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}
    assert groups.keys() == {0.05, 0.0}
    assert all(weight.ndim > 1 for weight in groups[0.05])
    assert all(weight.ndim == 1 for weight in groups[0.0])
    trained = {id(weight) for weight in undisturbed.module.student.parameters()}
    assert {id(weight) for group in groups.values() for weight in group} == trained


def test_the_same_seed_gives_the_same_fit_and_another_another(undisturbed: Fit) -> None:
    assert Fit().weights() == undisturbed.weights()
    assert Fit(seed=1).weights() != undisturbed.weights(), "other views"


def test_the_rest_of_the_labels_changes_nothing(undisturbed: Fit) -> None:
    assert Fit(data=two_streams(spoil_labels=True)).weights() == undisturbed.weights()


@pytest.mark.parametrize("kill_after", [1, 3])
def test_an_interrupted_fit_goes_on_bit_for_bit(
    undisturbed: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_after: int
) -> None:
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(fitting, "CHECKPOINT_COST", math.inf)
    checkpoint = Checkpoint(Location(tmp_path), "x")
    with pytest.raises(KilledError):
        Fit(checkpoint, kill_after)
    again = Fit(checkpoint)
    assert again.values() == undisturbed.values()
    assert again.weights() == undisturbed.weights()


def test_it_learns_from_two_labels_a_species() -> None:
    mild = Augmentation(flip=0.5, brightness=0.1)
    learnt = Fit(epochs=30, weak=mild, strong=Augmentation(flip=0.5, brightness=0.2, erase=0.5))
    last = learnt.ends.rows[-1]
    assert last["val_acc"] > 0.9
    assert last["train_sure"] > learnt.ends.rows[0]["train_sure"]
    assert last["train_loss"] < learnt.ends.rows[0]["train_loss"]


def test_a_loss_that_is_no_number_raises() -> None:
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) at epoch \d"):
        Fit(lr=1e38)
