"""FixMatch: a classifier that learns from labelled and unlabelled images together.

A moving average of the network names a mildly changed view of each unlabelled image; where it is
sure, the network learns that name for a strongly changed view. After Sohn et al. 2020
(https://arxiv.org/abs/2001.07685), with two changes for few labels: the names come from the
average, not from the network itself (https://arxiv.org/abs/1703.01780), and are aligned with the
labelled images' distribution (https://arxiv.org/abs/1911.09785), or a few easy species take all.

Shapes: B labelled and U unlabelled images of a step, 3×H×W in [-1, 1]; K classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.augmentation import LIGHT, STRONG, Augmentation
from models.training import ClassifierModule, _RunningMean

ALIGNMENT_DECAY = 0.99


class PseudoLabels(nn.Module):
    """Names for unlabelled images, and which of them are sure.

    Distribution alignment: a probability is multiplied by how often the species is labelled, over
    how often it was predicted lately, and the K of an image are scaled to 1 again.

    Args:
        label_counts: ``(K,)``, the labelled images of each species.
        threshold: a name is sure if its aligned probability is above; in [0, 1].
    """

    labelled: Tensor
    predicted: Tensor

    def __init__(self, label_counts: Tensor, threshold: float):
        super().__init__()
        if not 0.0 <= threshold <= 1.0:
            raise ValueError(f"threshold {threshold}: expected 0 to 1")
        counts = label_counts.float()
        self.threshold = threshold
        self.register_buffer("labelled", counts / counts.sum())
        self.register_buffer("predicted", torch.full_like(counts, 1 / len(counts)))

    @torch.no_grad()
    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's logits ``(U, K)`` -> names ``(U,)`` int64, and ``(U,)`` bool: sure.

        Each call moves the average of what is predicted.
        """
        probability = logits.softmax(1)
        self.predicted.lerp_(probability.mean(0), 1 - ALIGNMENT_DECAY)
        confidence, names = self.align(probability).max(1)
        return names, confidence > self.threshold

    def align(self, probability: Tensor) -> Tensor:
        """Probabilities ``(U, K)``, brought nearer to the labelled species on average."""
        aligned = probability * (self.labelled / self.predicted.clamp(min=1e-6))
        return aligned / aligned.sum(1, keepdim=True)


def unlabelled_loss(logits: Tensor, names: Tensor, sure: Tensor) -> Tensor:
    """Cross entropy of the sure names, over all of them: the unsure count as 0.

    Args:
        logits: ``(U, K)`` of the strong views.
        names: ``(U,)`` int64.
        sure: ``(U,)`` bool.
    """
    return (F.cross_entropy(logits, names, reduction="none") * sure).mean()


class FixMatchModule(ClassifierModule):
    """Trains a classifier with unlabelled images beside the labelled ones.

    A training batch is ``{"labelled": (images (B, ...), labels (B,)), "unlabelled": images}``,
    as `lightning.pytorch.utilities.CombinedLoader` gives it for a data module whose
    ``train_dataloader`` returns a dictionary of two loaders. What follows unlabelled images in a
    tuple (their labels, say) is never looked at.

    It logs what `ClassifierModule` logs, and ``train_sure``, the share of unlabelled images that
    had a sure name. Views depend on (seed, epoch) alone, so a fit that goes on from the end of an
    epoch sees those that it would have seen.

    Args:
        network: images -> logits ``(B, K)``. It becomes the moving average, which is what is
            validated, tested and kept; what is trained is a copy of it, `student`.
        num_classes: K.
        lr: the learning rate.
        label_counts: ``(K,)``, the labelled images of each species.
        weak: what the teacher's views undergo, the paper's α.
        strong: what the student's views of unlabelled images undergo, the paper's 𝒜.
        augment: what labelled images undergo; None: as ``weak``, as in the paper.
        threshold: the least probability of a sure name, the paper's τ.
        unlabelled_weight: of the unlabelled images' loss, the paper's λ_u.
        decay: of the moving average, in (0, 1).
        options: the others of `ClassifierModule`.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        lr: float = 2e-3,
        *,
        label_counts: Tensor,
        weak: Augmentation = LIGHT,
        strong: Augmentation = STRONG,
        augment: Augmentation | None = None,
        threshold: float = 0.8,
        unlabelled_weight: float = 1.0,
        decay: float = 0.99,
        **options: Any,
    ):
        super().__init__(network, num_classes, lr, augment=augment, decay=decay, **options)
        if not decay:
            raise ValueError("decay 0: expected more, as the average names the images")
        self.pseudo_labels = PseudoLabels(label_counts, threshold)
        self.weak, self.strong = weak, strong
        self.unlabelled_weight = unlabelled_weight
        self._train_sure = _RunningMean()

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._train_sure.reset()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch["labelled"]
        unlabelled = batch["unlabelled"]
        unlabelled = unlabelled if isinstance(unlabelled, Tensor) else unlabelled[0]
        names, sure = self._name(unlabelled)
        views = [self._view(self.augment or self.weak, images), self._view(self.strong, unlabelled)]
        # One pass, so that batch norms see both kinds of images, as they will.
        logits = self.student(torch.cat(views)).float()
        loss = F.cross_entropy(logits[: len(labels)], labels)
        loss = loss + self.unlabelled_weight * unlabelled_loss(logits[len(labels) :], names, sure)
        self._train_loss.add(loss, len(labels))
        self._train_sure.add(sure.float().mean(), len(sure))
        return loss

    @torch.no_grad()
    def _name(self, unlabelled: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(self._view(self.weak, unlabelled)).float()
        names, sure = self.pseudo_labels(logits)
        return names, sure

    def _view(self, augmentation: Augmentation, images: Tensor) -> Tensor:
        return augmentation(images, self._random, self.view_size)

    def _log_train_loss(self) -> None:
        super()._log_train_loss()
        if self._train_sure.count:
            self.log("train_sure", self._train_sure.take("train_sure", self.epoch))
