"""Batches straight from the memory map, without DataLoader workers.

Shapes: N images, B a batch, 3 × H × W a picture, D features of one image.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import lightning
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor


class Batches:
    """The batches of an epoch, as often as it is iterated.

    A batch is one gather from the map and two operations in place: at 64 images of 64 × 64 a
    fifth of a millisecond, less than handing it over from a worker process takes.

    Args:
        inputs: (N, H, W, 3) uint8, usually a memory map that other processes share; or (N, ...)
            float32 features, which are passed on as they are.
        labels: (N,) integers.
        indices: which of the N, in the order in which an unshuffled epoch visits them.
        batch_size: the last batch of a pass may be smaller.
        shuffle: draw another order for each epoch, from (seed, epoch) alone.
        seed: at least 0.
        epoch: tells the number of the epoch that begins.
        min_steps: an epoch goes on with further passes until it has so many batches.
        device: where batches are made. Not the CPU: the chosen images are moved there once.

    Yields:
        (inputs, targets): (B, 3, H, W) float32 in [-1, 1], channels last in memory, or
        (B, ...) features; (B,) int64.

    Raises:
        ValueError: there is nothing to iterate, or images that are not (N, H, W, 3).
    """

    def __init__(
        self,
        inputs: npt.NDArray[Any],
        labels: npt.NDArray[Any],
        indices: npt.NDArray[Any],
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        epoch: Callable[[], int] = lambda: 0,
        min_steps: int = 0,
        device: str | torch.device = "cpu",
    ):
        rows = np.asarray(indices, np.int64)
        if len(rows) == 0 or batch_size < 1:
            raise ValueError(f"{len(rows)} indices in batches of {batch_size}; expected some")
        if inputs.dtype == np.uint8 and (inputs.ndim != 4 or inputs.shape[-1] != 3):
            raise ValueError(f"images of shape {inputs.shape}; expected (N, H, W, 3)")
        self.batch_size, self.min_steps = batch_size, min_steps
        self._shuffle, self._seed, self._epoch = shuffle, seed, epoch
        self._device = torch.device(device)
        self._targets = torch.from_numpy(np.asarray(labels, np.int64)[rows]).to(self._device)
        if self._device.type == "cpu":  # no copy: the map stays shared
            self._inputs, self._rows = _shared(inputs), torch.from_numpy(rows)
        else:
            self._inputs = torch.from_numpy(np.asarray(inputs)[rows]).to(self._device)
            self._rows = torch.arange(len(rows), device=self._device)

    def __len__(self) -> int:
        return max(self._steps_of_a_pass, self.min_steps)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._epoch_of(self._epoch())

    @property
    def _steps_of_a_pass(self) -> int:
        return -(-len(self._rows) // self.batch_size)

    def _epoch_of(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        random = np.random.default_rng([self._seed, epoch])
        for step in range(len(self)):
            within = step % self._steps_of_a_pass
            if within == 0:
                order = self._order(random)
            chosen = order[within * self.batch_size : (within + 1) * self.batch_size]
            inputs = self._inputs.index_select(0, self._rows.index_select(0, chosen))
            yield self._normalised(inputs), self._targets.index_select(0, chosen)

    def _order(self, random: np.random.Generator) -> Tensor:
        if not self._shuffle:
            return torch.arange(len(self._rows), device=self._device)
        return torch.from_numpy(random.permutation(len(self._rows))).to(self._device)

    def _normalised(self, inputs: Tensor) -> Tensor:
        if inputs.dtype != torch.uint8:
            return inputs
        images = inputs.permute(0, 3, 1, 2).to(torch.float32)  # NHWC is channels last already
        return images.mul_(2 / 255).sub_(1)


def _shared(array: npt.NDArray[Any]) -> Tensor:
    """A tensor over the array's own memory, which nothing here writes to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(array))


class ButterflyDataModule(lightning.LightningDataModule):
    """Training, validation and test batches of one trial.

    Args:
        inputs: (N, H, W, 3) uint8 images, or (N, D) float32 features of a frozen encoder.
        labels: (N,) indices of species.
        train: indices into ``inputs`` of the labelled training images.
        valid: those of the validation images.
        test: those of the test images; None where nobody is to read them.
        batch_size: images a step; the paper's is 64.
        seed: of the training batches' order. A trial that resumes at epoch e sees the batches
            that it would have seen uninterrupted.
        min_steps_per_epoch: an epoch of few images goes on with further shuffled passes.
        device: where batches are made.
        unlabelled: indices of images that are trained on without their labels; None: there are
            none. Training batches are then ``{"labelled": ..., "unlabelled": ...}``, and an epoch
            has as many steps as without them.
        unlabelled_batch_size: of those, a step.
    """

    def __init__(
        self,
        inputs: npt.NDArray[Any],
        labels: npt.NDArray[Any],
        *,
        train: npt.NDArray[Any],
        valid: npt.NDArray[Any],
        test: npt.NDArray[Any] | None = None,
        batch_size: int = 64,
        seed: int = 0,
        min_steps_per_epoch: int = 0,
        device: str | torch.device = "cpu",
        unlabelled: npt.NDArray[Any] | None = None,
        unlabelled_batch_size: int = 64,
    ):
        super().__init__()
        self._inputs, self._labels = inputs, labels
        self._train, self._valid, self._test = train, valid, test
        self._batch_size, self._seed = batch_size, seed
        self._min_steps = min_steps_per_epoch
        self._device = device
        self._unlabelled, self._unlabelled_batch_size = unlabelled, unlabelled_batch_size

    def train_dataloader(self) -> Any:
        labelled = self._shuffled(self._train, self._batch_size, self._min_steps)
        if self._unlabelled is None:
            return labelled
        beside = self._shuffled(self._unlabelled, self._unlabelled_batch_size, len(labelled))
        return CombinedLoader({"labelled": labelled, "unlabelled": beside}, "min_size")

    def val_dataloader(self) -> Batches:
        return self._batches(self._valid)

    def test_dataloader(self) -> Batches:
        if self._test is None:
            raise ValueError("no test indices were given")
        return self._batches(self._test)

    def _epoch(self) -> int:
        """The epoch that begins.

        Not ``trainer.current_epoch``: while a checkpoint from the end of an epoch is restored,
        that still counts the epoch before, and Lightning fetches the first batch by then.
        """
        if self.trainer is None:
            return 0
        return self.trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]

    def _shuffled(self, indices: npt.NDArray[Any], batch_size: int, min_steps: int) -> Batches:
        order = {"shuffle": True, "seed": self._seed, "epoch": self._epoch}
        return self._batches(indices, batch_size, min_steps=min_steps, **order)

    def _batches(
        self, indices: npt.NDArray[Any], batch_size: int | None = None, **order: Any
    ) -> Batches:
        return Batches(
            self._inputs,
            self._labels,
            indices,
            batch_size or self._batch_size,
            device=self._device,
            **order,
        )
