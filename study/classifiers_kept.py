"""The classifiers that a study keeps: of each cell the best repeat by validation, and its card.

``models/CELL.safetensors`` holds the weights; ``models/CELL.json`` beside it says what they are
of: the repeat's row of evaluations, the species in the order of the outputs, and how the network
is built.
"""

from __future__ import annotations

from typing import Any

from analysis.variants import is_pretrained, kind_of
from data.sealing import digest, unseal_json
from data.storage import InputError, Location


def model_file(run: Location, cell: str) -> Location:
    return run / "models" / f"{cell}.safetensors"


def card_file(run: Location, cell: str) -> Location:
    return run / "models" / f"{cell}.json"


def load_classifier(run: Location, cell: str) -> tuple[Any, dict[str, Any]]:
    """A cell's classifier, on the CPU and in evaluation mode, and its card.

    It takes images (B, 3, H, W) in [-1, 1] and gives logits (B, K).

    Raises:
        InputError: it is missing or damaged.
    """
    from models.classifiers import build_classifier
    from models.weights import from_bytes

    card, content = _read(run, cell)
    try:
        state = from_bytes(content)
    except ValueError as error:
        raise InputError(f"{model_file(run, cell)}: {error}") from None
    encoder = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    kind = kind_of(card["variant"])
    network = build_classifier(
        kind,
        num_classes=len(card["species"]),
        image_size=card["image_size"],
        encoder_state=encoder if is_pretrained(kind) else None,
        **card["recipe"],
    )
    network.load_state_dict(state)
    return network.eval(), card


def _read(run: Location, cell: str) -> tuple[dict[str, Any], bytes]:
    again = f"expected the model of {cell}; delete it and resume, which trains it again"
    file = card_file(run, cell)
    try:
        card = unseal_json(file.read_text())
        file = model_file(run, cell)
        content = file.read_bytes()
    except (FileNotFoundError, ValueError):
        raise InputError(f"{file}: is missing or damaged, {again}") from None
    if digest(content) != card["checksum"]:
        raise InputError(f"{file}: is damaged (its checksum is wrong), {again}")
    return card, content
