"""The final evaluation: the only place where the test set is read.

Each cell's chosen configuration is trained anew, once a repeat, stops and keeps its best epoch
by the validation set, and is then tested. A repeat has a seed of its own for weights, batches
and labelled images, the same for every variant, so that variants can be compared pair by pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.packing import image_from_bytes
from data.sealing import digest, seal_json, unseal_json
from data.storage import InputError, Location
from study.cells import Cell, cells_of
from study.choosing import best_repeat, winner
from study.config import Config
from study.material import Material
from study.records import Ledger, Row, read_table
from study.seeds import seed_for

TEST_METRICS = ("test_loss", "test_acc", "test_f1", "test_precision", "test_recall")


@dataclass(frozen=True)
class Repeat:
    """One training of the final evaluation."""

    cell: Cell
    repeat: int
    lr: float

    def weights(self, run: Location) -> Location:
        """Where it leaves its weights until the best repeat is known."""
        return run / "models" / f"{self.cell.name}-repeat{self.repeat}.safetensors"

    @property
    def fit_name(self) -> str:
        """Names its checkpoint; a study that grows may choose another lr."""
        return f"{self.cell.name}-repeat{self.repeat}-lr{self.lr!r}"


def repeats_to_run(config: Config, ledger: Ledger) -> Iterator[Repeat]:
    """What is still to be evaluated, the longest first so that none is left for the end.

    A study that has grown may have chosen another learning rate: its cell is evaluated anew. A
    cell whose model is gone has its best repeat run again, which leaves it.
    """
    rows = ledger.rows("evaluations")
    done = {(row["cell"], row["repeat"], row["lr"]) for row in rows}
    for name in {row["cell"] for row in rows}:
        if not (_model_file(ledger.run, name).is_file() and _card_file(ledger.run, name).is_file()):
            best = best_repeat([r for r in rows if r["cell"] == name], config.search.metric)
            assert best is not None
            done.discard((name, best["repeat"], best["lr"]))
    for cell in sorted(cells_of(config), key=lambda cell: -cell.label_ratio):
        trials = [row for row in ledger.rows("trials") if row["cell"] == cell.name]
        chosen = winner(trials, config.search.metric)
        for repeat in range(config.evaluation.repeats):
            if chosen is not None and (cell.name, repeat, chosen["lr"]) not in done:
                yield Repeat(cell, repeat, chosen["lr"])


def evaluate(material: Material, repeat: Repeat) -> dict[str, Any]:
    """Train and test one repeat; runs in a worker.

    Returns:
        ``row`` of evaluations, ``epochs`` and ``predictions``: the rows of their tables.
    """
    from models.weights import to_bytes
    from study.fitting import Checkpoint, make_trainer
    from study.trial import train_classifier

    config, cell = material.config, repeat.cell
    seed = seed_for(config.seed, "repeat", repeat.repeat)
    checkpoint = Checkpoint(material.run, repeat.fit_name)
    fitted = train_classifier(
        material,
        cell,
        lr=repeat.lr,
        seed=seed,
        name=f"{cell.name}-repeat{repeat.repeat}",
        report=lambda row: None,
        repeat=repeat.repeat,
        checkpoint=checkpoint,
        final=True,
    )
    ends, module = fitted.ends, fitted.trained
    assert ends.best is not None
    assert ends.best_state is not None
    module.network.load_state_dict(ends.best_state)
    trainer = make_trainer(fitted.device)
    trainer.test(module, datamodule=fitted.data, verbose=False)
    repeat.weights(material.run).write_bytes(to_bytes(fitted.network.state_dict(), {}))
    checkpoint.delete()
    columns = {"cell": cell.name, "variant": cell.variant, "label_ratio": cell.label_ratio}
    columns |= {"repeat": repeat.repeat}
    best = {name: ends.best[name] for name in ("val_loss", "val_acc", "val_f1")}
    tested = {name: float(trainer.callback_metrics[name]) for name in TEST_METRICS}
    row = columns | {"seed": seed, "lr": repeat.lr, "epochs": len(ends.rows)}
    row |= {"best_epoch": ends.best["epoch"], **best, **tested}
    return {
        "row": row | {"seconds": sum(epoch["seconds"] for epoch in ends.rows)},
        "epochs": [columns | epoch for epoch in ends.rows],
        "predictions": [columns | one for one in _predictions(material, module.test_outputs)],
    }


def _predictions(material: Material, outputs: Any) -> Iterator[Row]:
    species = material.species
    for place, index in enumerate(material.rows("test")):
        yield {
            "file": material.images.files[index],
            "true": species[int(outputs.true[place])],
            "pred": species[int(outputs.pred[place])],
            "probability": float(outputs.probability[place]),
            "loss": float(outputs.loss[place]),
        }


def record(material: Material, ledger: Ledger, repeat: Repeat, result: dict[str, Any]) -> None:
    """Put a finished repeat into the ledger, and keep its weights if they are the cell's best.

    The weights come first: if the process dies in between, the repeat is run again.
    """
    own: Row = result["row"]
    others = [
        row
        for row in ledger.rows("evaluations")
        if (row["cell"], row["lr"]) == (own["cell"], own["lr"]) and row["repeat"] != own["repeat"]
    ]
    best = best_repeat([*others, own], material.config.search.metric)
    weights = repeat.weights(material.run)
    if best is own:
        content = weights.read_bytes()
        _model_file(material.run, repeat.cell.name).write_bytes(content)
        card = own | {
            "checksum": digest(content),
            "species": list(material.species),
            "image_size": material.images.image_size,
            "width": material.config.encoder.width,
            "normalise": material.config.encoder.normalise,
        }
        _card_file(material.run, repeat.cell.name).write_text(seal_json(card))
    for table, rows in (
        ("evaluation_epochs", result["epochs"]),
        ("predictions", result["predictions"]),
    ):
        if (own["cell"], own["repeat"]) in ledger.tables["evaluations"]:
            ledger.drop(table, cell=own["cell"], repeat=own["repeat"])
        for row in rows:
            ledger.put(table, row)
    ledger.put("evaluations", result["row"])
    ledger.flush()
    weights.delete()


def _model_file(run: Location, cell: str) -> Location:
    return run / "models" / f"{cell}.safetensors"


def _card_file(run: Location, cell: str) -> Location:
    return run / "models" / f"{cell}.json"


def predict(run: Location, metric: str, images: list[Location]) -> list[dict[str, Any]]:
    """Species and probabilities of images by the study's best classifier on validation.

    Returns:
        An object an image: ``file``, ``cell``, ``species``, ``probability``, ``probabilities``
        (species -> probability, largest first) and ``on_test``: how often the same classifier
        was right on test images that it gave this species, and those among them that it was
        about as sure of.

    Raises:
        InputError: the run has no model, a file is damaged or no image.
    """
    import torch

    from data.module import Batches
    from models.classifiers import build_classifier
    from models.weights import from_bytes

    chosen = best_repeat(read_table(run / "evaluations.parquet"), metric)
    if chosen is None:
        raise InputError(f"{run}: has no evaluated classifier, expected a run with repeats >= 1")
    card, content = _read_model(run, chosen["cell"])
    try:
        state, _ = from_bytes(content)
    except ValueError as error:
        raise InputError(f"{_model_file(run, chosen['cell'])}: {error}") from None
    encoder = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    pretrained = chosen["variant"] in ("B1", "B2")
    network = build_classifier(
        chosen["variant"],
        num_classes=len(card["species"]),
        image_size=card["image_size"],
        width=card["width"],
        encoder_state=encoder if pretrained else None,
        normalise=card["normalise"],
    )
    network.load_state_dict(state)
    network.eval()
    pixels = np.stack([_read_image(image, card["image_size"]) for image in images])
    with torch.inference_mode():
        batches = Batches(pixels, np.zeros(len(pixels)), np.arange(len(pixels)), 64)
        chances = np.concatenate([network(inputs).softmax(1).numpy() for inputs, _ in batches])
    tested = [
        row
        for row in read_table(run / "predictions.parquet")
        if (row["cell"], row["repeat"]) == (card["cell"], card["repeat"])
    ]
    return [
        _describe(str(image), chosen["cell"], card["species"], chance, tested)
        for image, chance in zip(images, chances, strict=True)
    ]


def _read_model(run: Location, cell: str) -> tuple[dict[str, Any], bytes]:
    again = f"expected the model of {cell}; delete it and resume, which trains it again"
    file = _card_file(run, cell)
    try:
        card = unseal_json(file.read_text())
        file = _model_file(run, cell)
        content = file.read_bytes()
    except (FileNotFoundError, ValueError):
        raise InputError(f"{file}: is missing or damaged, {again}") from None
    if digest(content) != card["checksum"]:
        raise InputError(f"{file}: is damaged (its checksum is wrong), {again}")
    return card, content


def _read_image(image: Location, image_size: int) -> np.ndarray:
    try:
        return image_from_bytes(image.read_bytes(), image_size)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{image}: found no such file, expected an image") from None
    except InputError as error:
        raise InputError(f"{image}: {error}") from None


def _describe(
    file: str, cell: str, species: list[str], chances: np.ndarray, tested: list[Row]
) -> dict[str, Any]:
    order = np.argsort(-chances, kind="stable")
    name, sure = species[order[0]], float(chances[order[0]])
    same = [row for row in tested if row["pred"] == name]
    alike = [row for row in same if abs(row["probability"] - sure) <= 0.15]
    return {
        "file": file,
        "cell": cell,
        "species": name,
        "probability": sure,
        "probabilities": {species[i]: float(chances[i]) for i in order},
        "on_test": {"same_species": _right(same), "and_as_sure": _right(alike)},
    }


def _right(rows: list[Row]) -> dict[str, int]:
    return {"images": len(rows), "right": sum(row["true"] == row["pred"] for row in rows)}
