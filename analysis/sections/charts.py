"""What the page's charts show, as plain data for the scripts in ``static``.

Species and files are referred to by their index in a list, so that each name is on the page once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.figures.drawing import variant_styles
from analysis.leaderboard import first_line, leaderboard
from analysis.load import Run
from analysis.sections.thumbnails import MOST, SIZE, Thumbnails
from analysis.statistics import METRICS, interval_columns
from analysis.tables import with_results
from analysis.variants import COMMON, is_best, title
from analysis.wording import metric_name

Data = dict[str, Any]


def efficiency(table: pd.DataFrame) -> Data:
    """Each test metric against labels, with its interval, one list per variant.

    Args:
        table: Table I.
    """
    known = with_results(table)
    lines = []
    for variant, rows in known.groupby("variant"):
        points = {"ratio": rows["label_ratio"].tolist(), "labels": rows["labels"].tolist()}
        for metric in METRICS:
            ends = [_numbers(rows[name]) for name in interval_columns([f"test_{metric}"])]
            points[metric] = list(map(list, zip(*ends, strict=True)))
        lines.append(_style(str(variant), known["variant"].unique()) | points)
    return {"lines": lines}


def _style(variant: str, among: Iterable[str]) -> Data:
    colour, marker = variant_styles(list(among))[variant]
    style = {"colour": colour, "marker": marker}
    return {"variant": variant, "name": title(variant)} | style


def trials(run: Run) -> Data:
    """Every trial, best first, one list per column; a missing value is null.

    Scores are rounded to the four digits shown, which keeps a page with 10,000 trials small.
    """
    ranked = leaderboard(run.trials, run.metric)
    chosen = set(run.winners["trial_id"])
    columns: Data = {name: ranked[name].tolist() for name in ("trial_id", "cell", "state")}
    for name in ("lr", "epochs", "best_epoch"):
        columns[name] = _numbers(ranked[name])
    for name in ("val_f1", "val_acc", "val_loss", "seconds"):
        columns[name] = _numbers(ranked[name].astype(float).round(4))
    columns["chosen"] = [trial in chosen for trial in columns["trial_id"]]
    others = _searched(run)
    settings = [json.loads(text) if isinstance(text, str) else {} for text in ranked["settings"]]
    recipes = [name if isinstance(name, str) else None for name in ranked["recipe"]]
    for each in others:
        name = each["name"]
        columns[name] = recipes if name == "recipe" else [_drawn(one, each) for one in settings]
    columns["error"] = [first_line(error) for error in ranked["error"]]
    cells = [{"cell": c, "variant": v, "ratio": r} for c, v, r in run.cells]
    names: Data = {"metric": run.metric, "metric_name": metric_name(run.metric)}
    names["searched"] = others
    styles = [_style(variant, run.variants) for variant in run.variants]
    return {"columns": columns, "cells": cells, "variants": styles, **names}


def _searched(run: Run) -> list[Data]:
    """What is searched beside lr: its name in the columns and on the page, and its levels, or
    whether its numbers are searched by their logarithm.
    """
    found: list[Data] = []
    if any(map(is_best, run.variants)):
        levels = [COMMON, *run.config["encoders"]]
        found.append({"name": "recipe", "title": "recipe", "levels": levels})
    for section, keys in (run.config["search"].get("space") or {}).items():
        for key, domain in keys.items():
            levels = [_word(value) for value in domain.get("choice") or ()]
            own = {"levels": levels} if levels else {"log": "loguniform" in domain}
            found.append({"name": f"{section}.{key}", "title": key.replace("_", " "), **own})
    return found


def _drawn(settings: Mapping[str, Any], searched: Data) -> object:
    """What a trial drew: a number, a level in words, or None where its variant has no such key."""
    if searched["name"] not in settings:
        return None
    value = settings[searched["name"]]
    return _word(value) if "levels" in searched else value


def _word(value: object) -> str:
    return "none" if value is None else str(value).lower()


def latent_map(points: pd.DataFrame, thumbnails: Thumbnails, first: str) -> Data:
    """Every encoder's map of the same images.

    Args:
        points: ``latents.parquet``; of more than 3,000 images a fixed random sample.
        first: the encoder whose map is shown at first.
    """
    images = shown_images(points)
    species = sorted(images["species"].unique())
    maps = []
    for encoder, rows in points.groupby("encoder", sort=False):
        of = rows.set_index("file").loc[images["file"]]
        plane = {"x": _numbers(of["x"].round(2)), "y": _numbers(of["y"].round(2))}
        maps.append({"encoder": encoder, **plane, "cluster": of["cluster"].tolist()})
    maps.sort(key=lambda each: each["encoder"] != first)
    return {
        "maps": maps,
        "files": images["file"].tolist(),
        "splits": images["split"].tolist(),
        "species": species,
        "of": pd.Index(species).get_indexer(pd.Index(images["species"])).tolist(),
        "total": int(points["file"].nunique()),
        "thumbs": [thumbnails.place.get(file, -1) for file in images["file"]],
        "columns": thumbnails.columns,
        "size": SIZE,
    }


def shown_images(points: pd.DataFrame) -> pd.DataFrame:
    """``file split species`` of the images on the map, sorted by species and file."""
    images = points[["file", "split", "species"]].drop_duplicates("file")
    if len(images) > MOST:
        images = images.sample(MOST, random_state=0)
    return images.sort_values(["species", "file"], ignore_index=True)


def _numbers(column: pd.Series) -> list[float | None]:
    values = column.to_numpy(dtype=float, na_value=np.nan)
    return [float(value) if np.isfinite(value) else None for value in values]
