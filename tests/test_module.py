"""Batches and ButterflyDataModule: what a training step sees, also after a resume."""

from __future__ import annotations

import warnings
from itertools import chain
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from data.module import Batches, ButterflyDataModule

N = 50


@pytest.fixture
def images(tmp_path: Path) -> np.ndarray:
    """(N, 8, 8, 3): image i has the value i everywhere. A read-only map, as in a study."""
    pixels = np.broadcast_to(np.arange(N, dtype=np.uint8)[:, None, None, None], (N, 8, 8, 3))
    np.save(tmp_path / "images.npy", pixels)
    return np.load(tmp_path / "images.npy", mmap_mode="r")


LABELS = np.arange(N) % 5


def rows_of(inputs: torch.Tensor, low: float = -1.0, high: float = 1.0) -> list[int]:
    """Which images of the fixture a batch holds."""
    values = (inputs[:, 0, 0, 0].double() - low) * 255 / (high - low)
    return values.round().long().tolist()


def test_images_become_floats_in_the_value_range() -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (7, 6, 6, 3), np.uint8)
    pixels[0], pixels[1] = 0, 255
    batches = Batches(pixels, np.arange(7), np.arange(7), 4)

    inputs = torch.cat([inputs for inputs, _ in batches])

    low, high = -1.0, 1.0
    expected = low + (high - low) * pixels.astype(np.float64).transpose(0, 3, 1, 2) / 255
    assert inputs.dtype == torch.float32
    np.testing.assert_allclose(inputs.numpy(), expected, atol=1e-6)
    assert inputs[0].max() == low
    assert inputs[1].min() == pytest.approx(high)


def test_images_are_channels_last_in_memory(images: np.ndarray) -> None:
    inputs, _ = next(iter(Batches(images, LABELS, np.arange(N), 16, shuffle=True)))
    assert inputs.shape == (16, 3, 8, 8)
    assert inputs.is_contiguous(memory_format=torch.channels_last)


def test_an_unshuffled_epoch_is_in_the_order_of_the_indices(images: np.ndarray) -> None:
    chosen = np.array([30, 2, 41, 7, 19])
    batches = Batches(images, LABELS, chosen, 2)

    epochs = [[rows_of(inputs) for inputs, _ in batches] for _ in range(2)]

    assert len(batches) == 3
    assert epochs == [[[30, 2], [41, 7], [19]]] * 2
    assert torch.cat([targets for _, targets in batches]).tolist() == LABELS[chosen].tolist()


def test_a_shuffled_epoch_visits_each_image_once_with_its_label(images: np.ndarray) -> None:
    chosen = np.arange(10, 33)
    batches = Batches(images, LABELS, chosen, 8, shuffle=True)
    seen, targets = [], []
    for inputs, target in batches:
        seen += rows_of(inputs)
        targets += target.tolist()
    assert sorted(seen) == chosen.tolist()
    assert seen != chosen.tolist()
    assert targets == LABELS[seen].tolist()


def test_order_depends_on_seed_and_epoch_alone(images: np.ndarray) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = Batches(
            images, LABELS, np.arange(N), 16, shuffle=True, seed=seed, epoch=lambda: epoch
        )
        return [row for inputs, _ in batches for row in rows_of(inputs)]

    torch.manual_seed(1)
    np.random.seed(1)
    first = order(3, 4)
    torch.manual_seed(2)
    np.random.seed(2)
    assert order(3, 4) == first
    assert order(3, 5) != first
    assert order(4, 4) != first


def test_min_steps_goes_on_with_further_passes(images: np.ndarray) -> None:
    batches = Batches(images, LABELS, np.arange(10), 4, shuffle=True, min_steps=8)
    steps = [rows_of(inputs) for inputs, _ in batches]

    assert len(batches) == len(steps) == 8
    assert [len(step) for step in steps] == [4, 4, 2, 4, 4, 2, 4, 4]
    passes = [list(chain(*steps[i : i + 3])) for i in (0, 3)]
    assert [sorted(p) for p in passes] == [list(range(10))] * 2
    assert passes[0] != passes[1]


def test_min_steps_does_not_shorten_an_epoch(images: np.ndarray) -> None:
    assert len(Batches(images, LABELS, np.arange(10), 4, min_steps=2)) == 3


@pytest.mark.parametrize("shape", [(N, 6), (N, 4, 2, 2)])
def test_features_are_passed_on_as_they_are(shape: tuple[int, ...]) -> None:
    features = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    chosen = np.array([4, 1, 20])
    inputs, targets = next(iter(Batches(features, LABELS, chosen, 8)))
    assert torch.equal(inputs, torch.from_numpy(features[chosen]))
    assert targets.tolist() == LABELS[chosen].tolist()


def test_nothing_is_written_to_the_map(images: np.ndarray) -> None:
    before = np.array(images)
    for inputs, _ in Batches(images, LABELS, np.arange(N), 16):
        inputs.zero_()
    assert np.array_equal(images, before)


def test_batches_on_a_device_are_those_on_the_cpu(images: np.ndarray) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    arguments: dict[str, Any] = {"shuffle": True, "seed": 5, "min_steps": 9}
    cpu = Batches(images, LABELS, np.arange(7, 40), 8, **arguments)
    gpu = Batches(images, LABELS, np.arange(7, 40), 8, device="cuda", **arguments)
    for (x, y), (device_x, device_y) in zip(cpu, gpu, strict=True):
        assert device_x.device.type == device_y.device.type == "cuda"
        torch.testing.assert_close(device_x.cpu(), x)
        assert torch.equal(device_y.cpu(), y)


def test_the_device_path_copies_only_the_chosen_images(images: np.ndarray) -> None:
    """On the meta device, which has shapes and no data: the path that a GPU takes."""
    batches = Batches(images, LABELS, np.array([3, 9, 4]), 2, shuffle=True, device="meta")
    assert batches._inputs.shape == (3, 8, 8, 3)
    assert [tuple(inputs.shape) for inputs, _ in batches] == [(2, 3, 8, 8), (1, 3, 8, 8)]


def test_no_indices_is_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="0 indices"):
        Batches(images, LABELS, np.array([], int), 4)


def test_grey_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(5, 8, 8\); expected \(N, H, W, 3\)"):
        Batches(np.zeros((5, 8, 8), np.uint8), np.zeros(5), np.arange(5), 4)


class Recorder(lightning.LightningModule):
    """Trains one number, and writes down which images each step of each epoch saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.train_rows: dict[int, list[list[int]]] = {}
        self.valid_rows: list[int] = []
        self.test_rows: list[int] = []

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        self.train_rows.setdefault(self.current_epoch, []).append(rows_of(batch[0]))
        return (self.weight - batch[1].float()).square().mean()

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> None:
        self.valid_rows += rows_of(batch[0])

    def test_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.test_rows += rows_of(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAfterEpoch(Callback):
    """What a trial does: save from its own callback when an epoch ends."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_epoch_end(self, trainer: Any, _: Any) -> None:
        trainer.save_checkpoint(self.path)


class SaveAfterValidation(SaveAfterEpoch):
    def on_train_epoch_end(self, trainer: Any, _: Any) -> None: ...

    def on_validation_end(self, trainer: Any, _: Any) -> None:
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)


def data_module(images: np.ndarray, **options: Any) -> ButterflyDataModule:
    splits = {"train": np.arange(30), "valid": np.arange(30, 40)}
    return ButterflyDataModule(images, LABELS, **splits, batch_size=8, seed=11, **options)


def trainer(folder: Path, epochs: int, **options: Any) -> lightning.Trainer:
    defaults = {"enable_checkpointing": False, "callbacks": []}
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **(defaults | options),
    )


def test_a_trainer_sees_every_split(images: np.ndarray, tmp_path: Path) -> None:
    module, data = Recorder(), data_module(images, test=np.arange(40, 50), min_steps_per_epoch=6)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit = trainer(tmp_path, 2)
        fit.fit(module, data)
        fit.test(module, data, verbose=False)

    assert {epoch: len(steps) for epoch, steps in module.train_rows.items()} == {0: 6, 1: 6}
    assert sorted(chain(*module.train_rows[0][:4])) == list(range(30))
    assert module.train_rows[0] != module.train_rows[1]
    assert module.valid_rows[-10:] == list(range(30, 40))
    assert module.test_rows == list(range(40, 50))


def test_a_trainer_says_nothing_of_workers(
    images: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, 1).fit(Recorder(), data_module(images))
    said = [str(warning.message) for warning in caught] + caplog.messages
    assert not [text for text in said if "worker" in text or "DataLoader" in text]


def fit_whole(images: np.ndarray, folder: Path, epochs: int) -> dict[int, list[list[int]]]:
    module = Recorder()
    trainer(folder, epochs).fit(module, data_module(images))
    return module.train_rows


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("save", [SaveAfterEpoch, SaveAfterValidation, "checkpoint", "at the end"])
def test_a_resumed_trial_sees_the_batches_of_an_uninterrupted_one(
    images: np.ndarray, tmp_path: Path, save: Any
) -> None:
    path = tmp_path / "trial.ckpt"
    options: dict[str, Any] = {}
    if save == "checkpoint":
        saver = ModelCheckpoint(tmp_path / "new", filename="trial")
        path = tmp_path / "new" / "trial.ckpt"
        options = {"callbacks": [saver], "enable_checkpointing": True}
    elif save != "at the end":
        options = {"callbacks": [save(path)]}
    interrupted = trainer(tmp_path, 2, **options)
    interrupted.fit(Recorder(), data_module(images))
    if save == "at the end":
        interrupted.save_checkpoint(path)

    resumed = Recorder()
    trainer(tmp_path, 4).fit(resumed, data_module(images), ckpt_path=path, weights_only=False)

    whole = fit_whole(images, tmp_path, 4)
    assert set(whole) == {0, 1, 2, 3}
    assert resumed.train_rows == {epoch: whole[epoch] for epoch in (2, 3)}


def test_test_batches_without_test_images_are_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="no test indices"):
        data_module(images).test_dataloader()
