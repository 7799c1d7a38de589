"""The encoders of a study: which it needs, and how one is pretrained.

An encoder's key is a hash of all that its weights follow from: architecture, sizes, schedule,
seed, and the exact list of images. Two cells that need the same key share one file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from data.sealing import digest, seal_json, unseal_json
from data.storage import InputError, Location
from study.cells import VARIANTS, Cell
from study.material import Material
from study.records import Row
from study.seeds import seed_for


@dataclass(frozen=True)
class EncoderPlan:
    """An encoder to be pretrained.

    Attributes:
        key: names its files under ``encoders/``.
        rows: indices of the images it is trained on; never one of valid or test.
        seed: of its weights and batches.
        repeat: the repeat of the final evaluation that it belongs to; None: the search's.
    """

    key: str
    rows: tuple[int, ...]
    seed: int
    repeat: int | None

    def weights(self, run: Location) -> Location:
        return run / "encoders" / f"{self.key}.safetensors"

    def card(self, run: Location) -> Location:
        """The JSON beside the weights, written last: where it is, the encoder is whole."""
        return run / "encoders" / f"{self.key}.json"


@lru_cache(maxsize=1024)  # asked for each cell at each turn, and it goes through all file names
def plan_encoder(material: Material, cell: Cell, repeat: int | None) -> EncoderPlan | None:
    """The encoder that a cell's classifier starts from; None where it starts from none."""
    if not VARIANTS[cell.variant].pretrained:
        return None
    settings = material.config.encoder
    if not settings.per_repeat:
        repeat = None
    rows = material.rows("train")
    if settings.pretrain_on == "unlabelled":
        rows = np.setdiff1d(rows, material.labelled(cell.label_ratio, repeat))
    seed = seed_for(material.config.seed, "encoder", repeat)
    images = material.images
    described = settings.model_dump(exclude={"per_repeat", "normalise"}) | {
        "image_size": images.image_size,
        "seed": seed,
        "files": [images.files[row] for row in rows],
        "fingerprint": images.fingerprint,
    }
    text = json.dumps(described, sort_keys=True)
    key = f"{settings.architecture}-{hashlib.blake2b(text.encode(), digest_size=5).hexdigest()}"
    return EncoderPlan(key, tuple(int(row) for row in rows), seed, repeat)


def read_card(plan: EncoderPlan, run: Location) -> dict[str, Any] | None:
    """What was recorded of a pretrained encoder; None where it is not there yet, or torn."""
    try:
        card = unseal_json(plan.card(run).read_text())
        weights = plan.weights(run).read_bytes()
    except (FileNotFoundError, ValueError):
        return None
    whole = digest(weights) == card.get("checksum")
    return card if whole else None


def load_encoder(material: Material, plan: EncoderPlan) -> dict[str, Any]:
    """A fresh copy of the encoder's weights, name -> tensor.

    Raises:
        InputError: the file is damaged.
    """
    from models.weights import from_bytes

    file = plan.weights(material.run)
    if read_card(plan, material.run) is None:
        raise InputError(f"{file}: it or its card is damaged; resume, and it is made again")
    return from_bytes(file.read_bytes())[0]


def pretrain(material: Material, plan: EncoderPlan) -> dict[str, Any]:
    """Train the autoencoder on its images, keep its best epoch on valid, write the encoder.

    Paper, section III-A; Adam, early stopping on the loss over the validation images.

    Returns:
        ``{"row": a row of encoders_made, "epochs": rows of encoder_epochs}``.
    """
    import torch

    from data.module import ButterflyDataModule
    from models.autoencoders import UNetAutoencoder
    from models.training import AutoencoderModule
    from models.weights import to_bytes
    from study.fitting import Checkpoint, EpochEnd, fit, use_device

    settings = material.config.encoder
    device = use_device(material.config)
    torch.manual_seed(plan.seed)
    network = UNetAutoencoder(settings.width)
    module = AutoencoderModule(network, settings.lr)
    data = ButterflyDataModule(
        material.images.pixels,
        material.images.labels,
        train=np.array(plan.rows),
        valid=material.rows("valid"),
        batch_size=settings.batch_size,
        seed=plan.seed,
        device=device,
    )
    epochs: list[Row] = []
    checkpoint = Checkpoint(material.run, plan.key)
    metrics = ("train_loss", "valid_loss")
    ends = EpochEnd("valid_loss", metrics, epochs.append, keep=True, checkpoint=checkpoint)
    fit(
        module,
        data,
        ends,
        max_epochs=settings.epochs,
        patience=settings.patience,
        device=device,
    )
    assert ends.best is not None
    assert ends.best_state is not None
    network.load_state_dict(ends.best_state)
    content = to_bytes(network.encoder.state_dict(), {"encoder": plan.key})
    row = {
        "encoder": plan.key,
        "architecture": settings.architecture,
        "objective": "reconstruction",
        "images": len(plan.rows),
        "epochs": len(epochs),
        "best_epoch": ends.best["epoch"],
        "loss": ends.best["valid_loss"],
        "seconds": sum(epoch["seconds"] for epoch in epochs),
        "repeat": plan.repeat,
    }
    card = {"row": row, "epochs": [{"encoder": plan.key, **epoch} for epoch in epochs]}
    plan.weights(material.run).write_bytes(content)
    whole = card | {"checksum": digest(content), "width": settings.width}
    plan.card(material.run).write_text(seal_json(whole))
    checkpoint.delete()
    return card
