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

from analysis.variants import recipe_of
from data.invented import VERSION, draw_species
from data.sealing import digest, seal_json, unseal_json
from data.storage import InputError, Location
from study.cells import Cell
from study.feature_cache import kept
from study.material import Material
from study.records import Row
from study.sections import Encoder
from study.seeds import seed_for

NEWER = ("drawn", "schedule", "view_size")  # settings that older studies do not have


@dataclass(frozen=True)
class EncoderPlan:
    """An encoder to be pretrained.

    Attributes:
        key: names its files under ``encoders/``.
        name: of its recipe; None: the section ``encoder``.
        recipe: how it is built and trained.
        rows: indices of the images it is trained on; never one of valid or test, and none where
            it is trained on drawn ones.
        seed: of its weights and batches.
        repeat: the repeat of the final evaluation that it belongs to; None: the search's.
    """

    key: str
    name: str | None
    recipe: Encoder
    rows: tuple[int, ...]
    seed: int
    repeat: int | None

    @property
    def images(self) -> int:
        """How many images it is trained on."""
        return len(self.rows) or self.recipe.drawn.train

    def weights(self, run: Location) -> Location:
        return run / "encoders" / f"{self.key}.safetensors"

    def objective(self, run: Location) -> Location:
        """The whole of what was trained, decoder and all."""
        return run / "encoders" / f"{self.key}.objective.safetensors"

    def card(self, run: Location) -> Location:
        """The JSON beside the weights, written last: where it is, the encoder is whole."""
        return run / "encoders" / f"{self.key}.json"


@lru_cache(maxsize=1024)  # asked for each cell at each turn, and it goes through all file names
def plan_encoder(material: Material, cell: Cell, repeat: int | None) -> EncoderPlan | None:
    """The encoder that a cell's classifier starts from; None where it starts from none."""
    if not cell.kind.pretrained:
        return None
    settings = material.config.recipe(cell.variant)
    if settings.shared:
        repeat = None
    rows = _rows(material, settings, cell, repeat)
    seed = seed_for(material.config.seed, "encoder", repeat)
    images = material.images
    described = _described(settings) | {"image_size": images.image_size, "seed": seed}
    if settings.pretrain_on == "drawn":
        described["version"] = VERSION
    else:
        files = [images.files[row] for row in rows]
        described |= {"files": files, "fingerprint": images.fingerprint}
    text = json.dumps(described, sort_keys=True)
    key = f"{_short_name(settings)}-{hashlib.blake2b(text.encode(), digest_size=5).hexdigest()}"
    name = recipe_of(cell.variant) or None
    return EncoderPlan(key, name, settings, tuple(int(row) for row in rows), seed, repeat)


def _rows(material: Material, settings: Encoder, cell: Cell, repeat: int | None) -> np.ndarray:
    if settings.pretrain_on == "drawn":
        return np.empty(0, np.int64)
    rows = material.rows("train")
    if settings.pretrain_on == "unlabelled":
        rows = np.setdiff1d(rows, material.labelled(cell.label_ratio, repeat))
    return rows


def _described(settings: Encoder) -> dict[str, Any]:
    """What an encoder's key is made of; newer settings only where they are not as they were."""
    dumped, plain = settings.model_dump(), Encoder().model_dump()
    for name in ("per_repeat", "normalise", *(n for n in NEWER if dumped[n] == plain[n])):
        del dumped[name]
    return dumped


def _short_name(settings: Encoder) -> str:
    plain = settings.objective == "reconstruction"
    return settings.architecture if plain else f"{settings.architecture}-{settings.objective}"


def read_card(plan: EncoderPlan, run: Location) -> dict[str, Any] | None:
    """What was recorded of a pretrained encoder; None where it is not there yet, or torn."""
    files = [plan.weights(run), *([plan.objective(run)] if plan.repeat is None else [])]
    try:
        card = unseal_json(plan.card(run).read_text())
        found = {file.name: digest(file.read_bytes()) for file in files}
    except (FileNotFoundError, ValueError):
        return None
    return card if found == card.get("checksums") else None


def load_encoder(material: Material, plan: EncoderPlan) -> dict[str, Any]:
    """A fresh copy of the encoder's weights, name -> tensor.

    Raises:
        InputError: the file is missing or damaged.
    """
    return _tensors(plan.weights(material.run), plan.card(material.run))


def _tensors(file: Location, card: Location) -> dict[str, Any]:
    """Of a file of weights that is what its card says; read once, as another may replace it."""
    from models.weights import from_bytes

    try:
        expected = unseal_json(card.read_text())["checksums"][file.name]
        content = file.read_bytes()
        if digest(content) != expected:
            raise ValueError("is not what its card says")
        return from_bytes(content)
    except FileNotFoundError as error:
        raise InputError(
            f"{file}: it or its card is missing; it could not be made, or was deleted"
        ) from error
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{file}: it or its card is damaged; resume, and it is made again"
        ) from error


def encoder_digest(material: Material, plan: EncoderPlan) -> str:
    """The checksum of the encoder's weights, as its card has it."""
    card = unseal_json(plan.card(material.run).read_text())
    return str(card["checksums"][plan.weights(material.run).name])


def load_objective(material: Material, plan: EncoderPlan) -> Any:
    """The trained objective of the search's encoder, on the CPU and in evaluation mode.

    Raises:
        InputError: the file is damaged.
    """
    objective = new_objective(material, plan)
    objective.load_state_dict(_tensors(plan.objective(material.run), plan.card(material.run)))
    return objective.eval()


def new_objective(material: Material, plan: EncoderPlan) -> Any:
    """The plan's objective around its encoder, untrained; the weights follow from torch's seed."""
    from models.registry import build_encoder, build_objective

    settings = encoder_settings(plan.recipe, material.images.image_size)
    encoder = build_encoder(**settings)
    return build_objective(**settings, encoder=encoder, images=plan.images)


def encoder_settings(recipe: Encoder, image_size: int) -> dict[str, Any]:
    """What `models.registry` builds an encoder and its objective from."""
    return recipe.model_dump() | {"image_size": image_size}


def pretrain(material: Material, plan: EncoderPlan) -> dict[str, Any]:
    """Train an encoder on its images by its objective, keep its best epoch on valid, write it.

    One that is there already, whole, is not trained again.

    Paper, section III-A; Adam, early stopping on the loss over the validation images.

    Returns:
        ``{"row": a row of encoders_made, "epochs": rows of encoder_epochs}``.
    """
    from study.fitting import Checkpoint

    made = read_card(plan, material.run)
    if made is not None:  # by a task of a driver that died, or one whose machine did
        return made
    checkpoint = Checkpoint(material.run, plan.key)
    objective, best, epochs = _train(material, plan, checkpoint)
    row = {
        "encoder": plan.key,
        "recipe": plan.name,
        "architecture": plan.recipe.architecture,
        "objective": plan.recipe.objective,
        "images": plan.images,
        "epochs": len(epochs),
        "best_epoch": best["epoch"],
        "loss": best["valid_loss"],
        "seconds": sum(epoch["seconds"] for epoch in epochs),
        "repeat": plan.repeat,
    }
    card = {"row": row, "epochs": [{"encoder": plan.key, **epoch} for epoch in epochs]}
    card["checksums"] = _write_weights(material.run, plan, objective)
    plan.card(material.run).write_text(seal_json(card))
    checkpoint.delete()
    return card


def _train(material: Material, plan: EncoderPlan, checkpoint: Any) -> tuple[Any, Row, list[Row]]:
    """The objective with the weights of its best epoch, that epoch's row, and all of them."""
    import torch

    from data.module import ButterflyDataModule
    from models.training import PretrainingModule
    from study.fitting import EpochEnd, fit, use_device

    settings = plan.recipe
    device = use_device(material.config)
    torch.manual_seed(plan.seed)
    objective = new_objective(material, plan)
    pixels, rows, train, valid = _images(material, plan)
    data = ButterflyDataModule(
        pixels,
        rows,
        train=train,
        valid=valid,
        batch_size=settings.batch_size,
        seed=plan.seed,
        device=device,
    )
    metrics = ("train_loss", "valid_loss")
    ends = EpochEnd("valid_loss", metrics, lambda row: None, keep=True, checkpoint=checkpoint)
    fit(
        PretrainingModule(objective, settings.lr, settings.schedule == "cosine"),
        data,
        ends,
        max_epochs=settings.epochs,
        patience=settings.patience,
        device=device,
    )
    return objective, ends.restore_best(objective), ends.rows


def _images(material: Material, plan: EncoderPlan) -> tuple[np.ndarray, ...]:
    """Pixels, what an objective is told of which image, and indices of train and valid."""
    if not plan.rows:
        drawn, size = plan.recipe.drawn, material.images.image_size
        name = f"drawn-{VERSION}-{drawn.species}x{drawn.each}-{size}px-{plan.seed}.npy"
        pixels = kept(name, lambda: draw_species(drawn.species, drawn.each, size, plan.seed))
        rows = np.arange(len(pixels))
        is_valid = rows % drawn.each >= drawn.each - drawn.valid
        return pixels, rows, rows[~is_valid], rows[is_valid]
    pixels, train = material.images.pixels, np.array(plan.rows)
    rows = np.zeros(len(pixels), np.int64)
    rows[train] = np.arange(len(train))
    return pixels, rows, train, material.rows("valid")


def _write_weights(run: Location, plan: EncoderPlan, objective: Any) -> dict[str, str]:
    """Their checksums. The whole objective is kept of the search's encoder alone."""
    from models.weights import to_bytes

    named = {"encoder": plan.key}
    contents = {plan.weights(run): to_bytes(objective.encoder.state_dict(), named)}
    if plan.repeat is None:
        contents[plan.objective(run)] = to_bytes(objective.state_dict(), named)
    for file, content in contents.items():
        file.write_bytes(content)
    return {file.name: digest(content) for file, content in contents.items()}
