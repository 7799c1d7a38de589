"""How the networks are trained: Lightning modules, and the Trainer settings that cost least.

Shapes: B images of a batch, N of a set, K classes. Every metric is over a whole set, never a mean
of batch values; F1, precision and recall are macro averages over species.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from models.augmentation import Augmentation
from models.averaging import MovingAverage
from models.objectives import Objective


@dataclass(frozen=True)
class TestOutputs:
    """What a classifier said of every test image, in the order of the images, on the CPU."""

    __test__ = False  # no test case, whatever pytest makes of the name

    true: Tensor  # (N,) int64, the species
    pred: Tensor  # (N,) int64, the species with the highest probability
    probability: Tensor  # (N,) float32 in [0, 1], of pred
    loss: Tensor  # (N,) float32, cross entropy in nats


class _RunningMean:
    """A mean over an epoch that stays on the device: `LightningModule.log` costs 0.5 ms a step."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.total: Tensor | None = None
        self.count = 0

    def add(self, mean: Tensor, count: int) -> None:
        total = mean.detach() * count
        self.total = total if self.total is None else self.total + total
        self.count += count

    def take(self, name: str, epoch: int) -> float:
        """The mean, once; raises FloatingPointError where it is not finite."""
        assert self.total is not None
        value = (self.total / self.count).item()
        self.reset()
        return require_finite(name, value, epoch)


def require_finite(name: str, value: float, epoch: int) -> float:
    """Returns ``value``.

    Raises:
        FloatingPointError: it is NaN or infinite: ``val_loss is nan at epoch 3``, from 1.
    """
    if value - value != 0.0:
        raise FloatingPointError(f"{name} is {value} at epoch {epoch}")
    return value


class _TrainedModule(L.LightningModule):
    """Adam, and ``train_loss`` as the mean over the images of an epoch.

    ``train_loss`` is logged together with the validation metrics where there are any, so that
    callbacks find a whole row at the end of an epoch in ``trainer.callback_metrics``.
    """

    def __init__(self, network: nn.Module, lr: float, cosine: bool = False):
        super().__init__()
        self.network = network
        self.lr, self.cosine = lr, cosine
        self._train_loss = _RunningMean()

    @property
    def epoch(self) -> int:
        """The epoch that runs, counted from 1."""
        return self.current_epoch + 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam over what is not frozen, one pass over memory for each tensor."""
        weights = [weight for weight in self.network.parameters() if weight.requires_grad]
        return torch.optim.Adam(weights, lr=self.lr, fused=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def on_train_epoch_start(self) -> None:
        self._train_loss.reset()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # No LRScheduler: it would have to know the number of steps before the epochs of a
        # checkpoint are restored, and asking Lightning for it by then starts the first epoch.
        if self.cosine:
            steps = (self.trainer.max_epochs or 1) * int(self.trainer.num_training_batches)
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = self.lr * warm_cosine((self.global_step + 0.5) / steps)

    def on_train_epoch_end(self) -> None:
        self._log_train_loss()

    def _log_train_loss(self) -> None:
        if self._train_loss.count:
            self.log("train_loss", self._train_loss.take("train_loss", self.epoch))


class PretrainingModule(_TrainedModule):
    """Trains an encoder by an objective: Adam.

    Batches are ``(images, rows)``: which of the training images they are. Logs ``train_loss`` and
    ``valid_loss`` once an epoch. Noise in the validation is the same in every epoch.

    Args:
        objective: see `models.objectives`.
        lr: Adam's learning rate, with ``cosine`` the greatest.
        cosine: as of `ClassifierModule`.
    """

    def __init__(self, objective: Objective, lr: float = 5e-4, cosine: bool = False):
        super().__init__(objective, lr, cosine)
        self.objective = objective
        self._valid_loss = _RunningMean()

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.objective.progress = self.current_epoch / max(1, self.trainer.max_epochs or 1)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        images, rows = batch
        loss = self.objective.loss(images, rows)
        self._train_loss.add(loss, len(images))
        return loss

    def on_validation_epoch_start(self) -> None:
        self._valid_loss.reset()

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        images, rows = batch
        with torch.random.fork_rng(_cuda_devices(images)):
            torch.manual_seed(batch_idx)
            self._valid_loss.add(self.objective.valid_loss(images, rows), len(images))

    def on_validation_epoch_end(self) -> None:
        self._log_train_loss()
        self.log("valid_loss", self._valid_loss.take("valid_loss", self.epoch))


def _cuda_devices(images: Tensor) -> list[torch.device]:
    return [images.device] if images.is_cuda else []


SCORES = {
    "acc": (MulticlassAccuracy, "micro"),
    "f1": (MulticlassF1Score, "macro"),
    "precision": (MulticlassPrecision, "macro"),
    "recall": (MulticlassRecall, "macro"),
}


def _scores(num_classes: int, names: Sequence[str]) -> dict[str, Any]:
    def make(name: str) -> Any:
        metric, average = SCORES[name]
        return metric(num_classes=num_classes, average=average, validate_args=False)

    return {name: make(name) for name in names}


WARM_UP = 0.05  # of all steps


def warm_cosine(passed: float) -> float:
    """The share of the greatest learning rate: up to 1 on a line, then down to 0 on a cosine.

    Args:
        passed: the share of all steps that has passed, in [0, 1].
    """
    if passed < WARM_UP:
        return passed / WARM_UP
    return (1 + math.cos(math.pi * (passed - WARM_UP) / (1 - WARM_UP))) / 2


class ClassifierModule(_TrainedModule):
    """Trains a classifier: cross entropy, Adam.

    Batches are ``(inputs, labels)``; inputs are whatever the network takes, so that the head of a
    frozen encoder's classifier can be trained on features. Logs ``train_loss val_loss val_acc
    val_f1`` once an epoch, and ``test_loss test_acc test_f1 test_precision test_recall``.
    Accuracy is micro; the others are macro over the species that occur in the labels or the
    predictions, with 0 for a species never predicted, as in scikit-learn.

    Args:
        network: inputs -> logits ``(B, K)``; with ``decay`` it becomes the moving average, which
            is what is validated, tested and kept, and a copy of it, `student`, is trained.
        num_classes: K.
        lr: the learning rate, with ``cosine`` the greatest.
        augment: what the training images undergo in each step; None: nothing. Views depend on
            (seed, epoch) alone, so a fit that goes on from the end of an epoch sees those that
            it would have seen.
        view_size: pixels a side of what ``augment`` gives; None: the images' own size. Networks
            that average their maps can learn, faster, on smaller views than they are tested on
            (Touvron et al. 2019, https://arxiv.org/abs/1906.06423).
        cosine: the learning rate rises over the first 5 % of the steps and then falls to 0.
        decay: of a moving average of the weights, in [0, 1); 0: none is kept.
        weight_decay: AdamW's, for matrices and kernels only; 0 is Adam.
        seed: of the views.

    Attributes:
        test_outputs: every test image's outcome, after a test; None before.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        lr: float = 1e-4,
        *,
        augment: Augmentation | None = None,
        view_size: int | None = None,
        cosine: bool = False,
        decay: float = 0.0,
        weight_decay: float = 0.0,
        seed: int = 0,
    ):
        super().__init__(network, lr, cosine)
        self._copy = copy.deepcopy(network) if decay else None
        self.average = MovingAverage(network, decay) if decay else None
        self.augment, self.view_size = augment, view_size
        self.weight_decay = weight_decay
        self.seed, self._random = seed, torch.Generator()
        self.val_metrics = MetricCollection(_scores(num_classes, ("acc", "f1")), prefix="val_")
        self.test_metrics = MetricCollection(_scores(num_classes, tuple(SCORES)), prefix="test_")
        self.mean_loss = MeanMetric(nan_strategy="disable")  # else it leaves NaN out of the mean
        self.test_outputs: TestOutputs | None = None
        self._judged: list[tuple[Tensor, ...]] = []

    @property
    def student(self) -> Any:
        """The network that is trained."""
        return self.network if self._copy is None else self._copy

    def train(self, mode: bool = True) -> ClassifierModule:
        """As `nn.Module.train`, but the average stays in evaluation mode."""
        super().train(mode)
        if self.average is not None:
            self.network.eval()
        return self

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, or AdamW, over what the student trains."""
        weights = [weight for weight in self.student.parameters() if weight.requires_grad]
        if not self.weight_decay:
            return torch.optim.Adam(weights, lr=self.lr, fused=True)
        groups = [
            {"params": [w for w in weights if w.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.lr, fused=True)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        (state,) = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)
        self._random.manual_seed(int(state))

    def on_train_batch_end(self, *step: Any) -> None:
        if self.average is not None:
            self.average.update(self.student, self.global_step)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, labels = batch
        if self.augment is not None:
            inputs = self.augment(inputs, self._random, self.view_size)
        loss = F.cross_entropy(self.student(inputs).float(), labels)
        self._train_loss.add(loss, len(labels))
        return loss

    def on_validation_epoch_start(self) -> None:
        self._judged.clear()

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        self._judged.append(self._judge(*batch))

    def on_validation_epoch_end(self) -> None:
        self._log_train_loss()
        self._log_scores(self.val_metrics, "val_loss", self._take_judged())

    def on_test_epoch_start(self) -> None:
        self._judged.clear()

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        self._judged.append(self._judge(*batch))

    def on_test_epoch_end(self) -> None:
        outputs = self._take_judged()
        self._log_scores(self.test_metrics, "test_loss", outputs)
        self.test_outputs = outputs

    def _judge(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        logits = self.network(inputs).float()
        probability, pred = logits.softmax(1).max(1)
        return labels, pred, probability, F.cross_entropy(logits, labels, reduction="none")

    def _take_judged(self) -> TestOutputs:
        columns = [torch.cat(column).cpu() for column in zip(*self._judged, strict=True)]
        self._judged.clear()
        return TestOutputs(*columns)

    def _log_scores(self, metrics: MetricCollection, loss_name: str, outputs: TestOutputs) -> None:
        # One update an epoch: an update a batch takes longer than a small network's forward pass.
        metrics.to("cpu").reset()
        metrics.update(outputs.pred, outputs.true)
        self.mean_loss.to("cpu").reset()
        self.mean_loss.update(outputs.loss)
        loss = self.mean_loss.compute()
        require_finite(loss_name, loss.item(), self.epoch)
        self.log_dict({loss_name: loss, **metrics.compute()})


def trainer_options() -> dict[str, Any]:
    """Keyword arguments for `lightning.Trainer` that leave out what a trial has no use for.

    One device; no logger, progress bar, summary, checkpoint or sanity check.
    """
    return {
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "plugins": LightningEnvironment(),  # on a Slurm cluster, Slurm's would requeue its job
    }
