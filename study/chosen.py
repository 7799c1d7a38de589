"""What the search chooses for a classifier: as Optuna has it, as records do, and in names of files.

Records have ``lr``, ``recipe`` (where the cell searches it) and ``settings``: a JSON object of what
`search.space` adds, dotted keys of the configuration and their values; null where it adds nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

COLUMNS = ("lr", "recipe", "settings")


class Chosen(TypedDict):
    lr: float
    recipe: str | None
    settings: str | None


def from_point(point: Mapping[str, Any]) -> Chosen:
    """Of a value for each hyperparameter."""
    settings = {name: value for name, value in point.items() if name not in COLUMNS}
    text = json.dumps(settings, sort_keys=True) if settings else None
    return {"lr": point["lr"], "recipe": point.get("recipe"), "settings": text}


def from_row(row: Mapping[str, Any]) -> Chosen:
    """Of a row of trials or evaluations; older ones lack columns."""
    return {"lr": row["lr"], "recipe": row.get("recipe"), "settings": row.get("settings")}


def to_point(row: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The values of these hyperparameters in a row."""
    values = {**row, **settings_of(row.get("settings"))}
    return {name: values[name] for name in names}


def settings_of(text: str | None) -> dict[str, Any]:
    """Dotted keys of the configuration, and their values."""
    return json.loads(text) if text else {}


def file_name(lr: float, recipe: str | None, settings: str | None) -> str:
    """Tells one choice from another."""
    short = hashlib.blake2b(settings.encode(), digest_size=5).hexdigest() if settings else None
    return "-".join(part for part in (f"lr{lr!r}", recipe, short) if part)
