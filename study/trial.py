"""One trial: a classifier trained in a cell with one configuration. Knows nothing of Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data.module import Batches, ButterflyDataModule
from data.sealing import digest
from models.augmentation import AUGMENTATIONS
from models.classifiers import build_classifier, encode_batches
from models.semisupervised import FixMatchModule
from models.training import ClassifierModule
from study.cells import Cell
from study.config import Config
from study.encoders import (
    EncoderPlan,
    encoder_digest,
    encoder_settings,
    load_encoder,
    plan_encoder,
)
from study.feature_cache import kept
from study.fitting import Checkpoint, EpochEnd, fit, use_device
from study.material import Material
from study.records import Row
from study.seeds import seed_for

METRICS = ("train_loss", "val_loss", "val_acc", "val_f1")
TEACHER_DECAY = 0.99  # of C's teacher, where training.average keeps no average


@dataclass(frozen=True)
class Fitted:
    """A trained classifier.

    Attributes:
        network: the whole classifier, images to scores.
        trained: the part of it that was trained, with the weights of its last epoch.
        data: what it was trained on; has test batches if they were asked for.
        ends: the rows of its epochs; has the weights of the best one if they were kept.
        device: where it was trained.
    """

    network: torch.nn.Module
    trained: ClassifierModule
    data: ButterflyDataModule
    ends: EpochEnd
    device: torch.device


def train_classifier(
    material: Material,
    cell: Cell,
    *,
    lr: float,
    settings: Mapping[str, object] | None = None,
    seed: int,
    report: Callable[[Row], object],
    logger: Any = False,
    repeat: int | None = None,
    checkpoint: Checkpoint | None = None,
    final: bool = False,
) -> Fitted:
    """Train one classifier.

    Args:
        material: the study's images and configuration.
        cell: the variant and the label ratio.
        lr: Adam's step.
        settings: what was chosen from `search.space`: dotted keys of the configuration.
        seed: of weights and batches.
        report: called with each epoch's row; may raise to end the trial.
        logger: Lightning's, for each epoch's metrics; see `study.tracking`.
        repeat: of the final evaluation; None in the search.
        checkpoint: where to go on from and save to.
        final: the final evaluation, and it alone: keep the best epoch's weights, and give the
            data module the test images.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    config = material.config.with_settings(settings or {})
    device = use_device(config)
    torch.manual_seed(seed)
    plan = plan_encoder(material, cell, repeat)
    network = build_classifier(
        cell.kind.name,
        num_classes=len(material.species),
        encoder_state=load_encoder(material, plan) if plan else None,
        **encoder_settings(config.recipe(cell.variant), material.images.image_size),
    )
    same = cell.kind.frozen and config.training.augment == "none"  # each image, each epoch
    inputs, labels, rows = _inputs(material, plan if same else None, network, device, final)
    trained = network.head if inputs.ndim == 2 else network
    labelled = rows["train"][_positions(material, cell, repeat)]
    data = ButterflyDataModule(
        inputs,
        labels,
        train=labelled,
        valid=rows["valid"],
        test=rows.get("test"),
        batch_size=config.training.batch_size,
        seed=seed,
        min_steps_per_epoch=config.training.min_steps_per_epoch,
        device=device,
        unlabelled=rows["train"] if cell.kind.semi else None,
        unlabelled_batch_size=config.semi.unlabelled_per_step,
    )
    module = _module(config, cell, trained, labels[labelled], len(material.species), lr, seed)
    ends = EpochEnd(config.search.metric, METRICS, report, keep=final, checkpoint=checkpoint)
    fit(
        module,
        data,
        ends,
        max_epochs=config.training.max_epochs,
        patience=config.training.patience,
        device=device,
        logger=logger,
    )
    return Fitted(network, module, data, ends, device)


def _module(
    config: Config,
    cell: Cell,
    network: Any,
    labels: np.ndarray,
    num_classes: int,
    lr: float,
    seed: int,
) -> ClassifierModule:
    """How the classifier is trained; C as the others, with the unlabelled images besides."""
    training = config.training
    options: dict[str, Any] = {
        "augment": AUGMENTATIONS.get(training.augment),
        "view_size": training.view_size,
        "cosine": training.schedule == "cosine",
        "decay": training.average,
        "weight_decay": training.weight_decay,
        "seed": seed_for(seed, "augment"),
    }
    if not cell.kind.semi:
        return ClassifierModule(network, num_classes, lr, **options)
    options["decay"] = training.average or TEACHER_DECAY
    return FixMatchModule(
        network,
        num_classes,
        lr,
        label_counts=torch.from_numpy(np.bincount(labels, minlength=num_classes)),
        threshold=config.semi.threshold,
        unlabelled_weight=config.semi.weight,
        **options,
    )


def _positions(material: Material, cell: Cell, repeat: int | None) -> np.ndarray:
    """Where the labelled images stand among the training images."""
    return np.searchsorted(material.rows("train"), material.labelled(cell.label_ratio, repeat))


def _inputs(
    material: Material,
    frozen: EncoderPlan | None,
    network: Any,
    device: torch.device,
    final: bool,
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """What the trained part sees, its labels, and the indices of each split in them.

    That is the pixels, or the outputs of a frozen encoder: where they are the same in every epoch
    of every trial, they are computed once. The test images are among them in the final
    evaluation only.
    """
    splits = ("train", "valid", "test") if final else ("train", "valid")
    rows = {split: material.rows(split) for split in splits}
    if frozen is None:
        return material.images.pixels, material.images.labels, rows
    chosen = np.concatenate(list(rows.values()))
    # By its weights, not its key alone: the code that they follow from may have changed since.
    weights = encoder_digest(material, frozen)
    name = f"{material.key}-{frozen.key}-{weights}-{digest(chosen.tobytes())[:12]}"
    features = kept(f"{name}.npy", lambda: _encode(material, chosen, network, device))
    bounds = np.cumsum([len(part) for part in rows.values()])[:-1]
    places = np.split(np.arange(len(chosen)), bounds)
    return features, material.images.labels[chosen], dict(zip(rows, places, strict=True))


def _encode(
    material: Material, chosen: np.ndarray, network: Any, device: torch.device
) -> np.ndarray:
    images = material.images
    batches = Batches(images.pixels, images.labels, chosen, 64, device=device)
    pixels = (inputs for inputs, _ in batches)
    return encode_batches(network.to(device), pixels).cpu().numpy()
