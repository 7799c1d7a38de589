"""What a study's best classifier says of new images."""

from __future__ import annotations

from typing import Any

import numpy as np

from data.decoding import BadImageError, read_file
from data.packing import image_from_bytes
from data.storage import InputError, Location
from study.choosing import best_repeat
from study.classifiers_kept import load_classifier
from study.records import Row, read_table


def predict(
    run: Location, metric: str, images: list[Location], cell: str | None = None
) -> list[dict[str, Any]]:
    """Species and probabilities of images by the study's best classifier on validation.

    Args:
        run: the run's folder.
        metric: the best by which.
        images: files.
        cell: the best of this one only, such as ``B1@25``.

    Returns:
        An object an image: ``file``, ``cell``, ``species``, ``probability``, ``probabilities``
        (species -> probability, largest first) and ``on_test``: how often the same classifier
        was right on test images that it gave this species, and those among them that it was
        about as sure of.

    Raises:
        InputError: the run has no model, or none of that cell; a file is damaged or no image.
    """
    import torch

    from data.module import Batches

    evaluated = read_table(run / "evaluations.parquet")
    of_cell = [row for row in evaluated if cell in (None, row["cell"])]
    chosen = best_repeat(of_cell, metric)
    if chosen is None and evaluated:
        in_order = sorted(evaluated, key=lambda row: (row["label_ratio"], row["variant"]))
        found = ", ".join(dict.fromkeys(row["cell"] for row in in_order))
        raise InputError(f"--cell: found {cell!r}, expected one of {found}")
    if chosen is None:
        raise InputError(f"{run}: has no evaluated classifier, expected a run with repeats >= 1")
    network, card = load_classifier(run, chosen["cell"])
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


def _read_image(image: Location, image_size: int) -> np.ndarray:
    try:
        return image_from_bytes(read_file(image), image_size)
    except BadImageError as error:
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
