"""Training: losses fall, metrics are scikit-learn's over the whole set, bad numbers are loud."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from torch import Tensor, nn

from models.autoencoders import UNetEncoder
from models.classifiers import build_classifier, encode_batches
from models.memory import keep_freed_memory
from models.objectives.reconstruction import Reconstruction
from models.training import (
    ClassifierModule,
    PretrainingModule,
    trainer_options,
)

torch.set_num_threads(1)  # small tensors: two threads would wait for each other
SPECIES = 3


class Batches:
    """Tensors in batches, in order; the last one smaller."""

    def __init__(self, *tensors: Tensor, size: int = 16):
        self.tensors, self.size = tensors, size

    def __len__(self) -> int:
        return -(-len(self.tensors[0]) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        yield from zip(*(tensor.split(self.size) for tensor in self.tensors), strict=True)


def striped_images(count: int) -> tuple[Tensor, Tensor]:
    """Images ``(count, 3, 16, 16)`` in [-1, 1]; the striped colour channel is the class."""
    labels = torch.arange(count) % SPECIES
    images = torch.rand(count, 3, 16, 16) * 0.4 - 0.2
    images[torch.arange(count), labels, ::2] += 0.7
    return images, labels


class Rows(L.Callback):
    """What a callback finds in ``callback_metrics`` at the end of each validation."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.rows.append({k: float(v) for k, v in trainer.callback_metrics.items()})


def make_trainer(epochs: int, *callbacks: L.Callback) -> L.Trainer:
    return L.Trainer(
        **trainer_options(), accelerator="cpu", max_epochs=epochs, callbacks=list(callbacks)
    )


def encoder_state() -> dict[str, Tensor]:
    torch.manual_seed(5)
    return UNetEncoder(4).state_dict()


def test_autoencoder_learns_and_logs_both_losses() -> None:
    torch.manual_seed(0)
    images, labels = striped_images(48)
    module = PretrainingModule(Reconstruction(UNetEncoder(4)), lr=1e-2)
    rows = Rows()
    make_trainer(10, rows).fit(module, Batches(images, labels), Batches(images[:20], labels[:20]))
    assert set(rows.rows[0]) == {"train_loss", "valid_loss"}
    for name in ("train_loss", "valid_loss"):
        assert rows.rows[-1][name] < 0.7 * rows.rows[0][name]
    module.eval()
    with torch.no_grad():
        expected = F.mse_loss(module(images[:20]), images[:20]).item()
    assert rows.rows[-1]["valid_loss"] == pytest.approx(expected, rel=1e-5)


def test_autoencoder_trains_without_a_validation_set() -> None:
    trainer = make_trainer(1)
    module = PretrainingModule(Reconstruction(UNetEncoder(2)))
    trainer.fit(module, Batches(*striped_images(16)))
    assert set(trainer.callback_metrics) == {"train_loss"}


@pytest.mark.parametrize("variant", ["A", "B0", "B1", "B2"])
def test_classifier_learns(variant: str) -> None:
    state = encoder_state() if variant in ("B1", "B2") else None
    torch.manual_seed(0)
    images, labels = striped_images(90)
    network = build_classifier(variant, SPECIES, 16, 4, state)
    rows = Rows()
    trainer = make_trainer(20, rows)
    module = ClassifierModule(network, SPECIES, lr=5e-3)
    trainer.fit(module, Batches(images, labels), Batches(*striped_images(30)))
    assert set(rows.rows[0]) == {"train_loss", "val_loss", "val_acc", "val_f1"}
    assert rows.rows[-1]["train_loss"] < 0.5 * rows.rows[0]["train_loss"]
    assert rows.rows[-1]["val_acc"] > 0.8


def test_frozen_encoder_is_unchanged_by_training_and_a_fine_tuned_one_is_not() -> None:
    state = encoder_state()
    images, labels = striped_images(32)
    changed = {}
    for variant in ("B1", "B2"):
        network = build_classifier(variant, SPECIES, 16, 4, state)
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        batches = Batches(images, labels)
        make_trainer(2).fit(ClassifierModule(network, SPECIES, lr=1e-3), batches, batches)
        after = network.state_dict()
        changed[variant] = {name for name in after if not torch.equal(before[name], after[name])}
        assert network.training is (variant == "B2") or not network.encoder.training
    assert {name.split(".")[0] for name in changed["B1"]} == {"head"}
    assert {name.split(".")[0] for name in changed["B2"]} == {"encoder", "head"}


def test_training_on_cached_features_equals_training_on_images() -> None:
    images, labels = striped_images(40)
    state, results = encoder_state(), []
    for cached in (False, True):
        torch.manual_seed(3)
        network = build_classifier("B1", SPECIES, 16, 4, state)
        inputs = encode_batches(network, images.split(16)) if cached else images
        trained = network.head if cached else network
        batches = Batches(inputs, labels)
        trainer = make_trainer(3)
        trainer.fit(ClassifierModule(trained, SPECIES, lr=1e-3), batches, batches)
        results.append((network.head.state_dict(), trainer.callback_metrics["val_loss"].item()))
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-5)
    for name, weight in results[0][0].items():
        torch.testing.assert_close(weight, results[1][0][name], rtol=1e-3, atol=1e-5)


class Recorded(nn.Module):
    """A network whose logits are its inputs, so that a test can choose every prediction."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


@pytest.mark.parametrize("batch_size", [7, 500])
def test_metrics_equal_scikit_learns_over_the_whole_set(batch_size: int) -> None:
    torch.manual_seed(0)
    n, classes = 500, 20
    labels = torch.arange(n) // 25  # in class order, as a folder is read: 16 batches of few classes
    logits = torch.randn(n, classes) + 1.5 * F.one_hot(labels, classes)
    logits[:, 4] = -10.0  # a species that is never predicted
    labels = torch.where(labels == 9, 8, labels)  # one that is predicted but never true
    logits[:, 13] = -10.0
    labels = torch.where(labels == 13, 12, labels)  # one that is neither
    batches = Batches(logits, labels, size=batch_size)
    trainer = make_trainer(1)
    module = ClassifierModule(Recorded(), classes)
    (found,) = trainer.test(module, batches, verbose=False)

    pred = logits.argmax(1)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, pred, average="macro", zero_division=0
    )
    expected = {
        "test_loss": F.cross_entropy(logits, labels).item(),
        "test_acc": accuracy_score(labels, pred),
        "test_f1": f1,
        "test_precision": precision,
        "test_recall": recall,
    }
    assert found == pytest.approx(expected, abs=1e-6)
    (validated,) = trainer.validate(module, batches, verbose=False)
    assert validated == pytest.approx(
        {name.replace("test", "val"): expected[name] for name in list(expected)[:3]}, abs=1e-6
    )

    outputs = module.test_outputs
    assert outputs is not None
    assert torch.equal(outputs.true, labels)
    assert torch.equal(outputs.pred, pred)
    torch.testing.assert_close(outputs.probability, logits.softmax(1).max(1).values)
    torch.testing.assert_close(outputs.loss, F.cross_entropy(logits, labels, reduction="none"))


def test_train_loss_is_the_mean_over_images_not_over_batches() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(20, SPECIES), torch.randint(0, SPECIES, (20,))
    trainer = make_trainer(1)
    trainer.fit(ClassifierModule(Recorded(), SPECIES, lr=1e-12), Batches(logits, labels, size=16))
    expected = F.cross_entropy(logits, labels).item()
    assert trainer.callback_metrics["train_loss"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("train_value", "valid_value", "message"),
    [
        (0.0, float("nan"), "val_loss is nan at epoch 1"),
        (float("nan"), 0.0, "train_loss is nan at epoch 1"),
    ],
)
def test_classifier_loss_that_is_no_number_ends_the_training(
    train_value: float, valid_value: float, message: str
) -> None:
    labels = torch.zeros(8, dtype=torch.long)
    train, valid = torch.zeros(8, SPECIES), torch.zeros(8, SPECIES)
    train[3], valid[3] = train_value, valid_value  # one image of eight
    with pytest.raises(FloatingPointError, match=re.escape(message)):
        make_trainer(3).fit(
            ClassifierModule(Recorded(), SPECIES), Batches(train, labels), Batches(valid, labels)
        )


def test_autoencoder_loss_that_is_no_number_ends_the_training() -> None:
    images, labels = striped_images(16)
    images[3] = float("nan")
    module = PretrainingModule(Reconstruction(UNetEncoder(2)))
    with pytest.raises(FloatingPointError, match="train_loss is nan at epoch 1"):
        make_trainer(3).fit(module, Batches(images, labels))


def test_same_seed_gives_the_same_weights() -> None:
    images, labels = striped_images(48)
    trained = []
    for _ in range(2):
        torch.manual_seed(7)
        network = build_classifier("B0", SPECIES, 16, 4)
        make_trainer(2).fit(ClassifierModule(network, SPECIES), Batches(images, labels))
        trained.append(network.state_dict())
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_freed_memory_is_kept() -> None:
    if not keep_freed_memory():
        pytest.skip("the C library is not glibc")
    for _ in range(5):
        torch.ones(8_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(8_000_000)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    pages = 8_000_000 * 4 / resource.getpagesize()
    assert faults < 5 * pages  # else 20 times: every tensor's memory would be new
