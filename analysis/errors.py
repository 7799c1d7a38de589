"""What classifiers get wrong on the test set, and whether they are as sure as they are right."""

from __future__ import annotations

import numpy as np
import pandas as pd

PAIR_COLUMNS = ["true", "pred", "times", "of", "share", "files", "like"]
BINS = 15


def most_confused(predictions: pd.DataFrame, top: int = 5, images: int = 3) -> pd.DataFrame:
    """The pairs of species that are confused most often, with images to look at.

    Args:
        predictions: one cell's rows of ``predictions.parquet``.
        top: how many pairs at most.
        images: how many of each kind at most.

    Returns:
        ``true pred times of share files like``, most ``times`` first: ``times`` of all ``of``
        predictions (over repeats) for images of ``true`` said ``pred``. ``files`` are the images
        of ``true`` most often and most surely called ``pred``; ``like`` those of ``pred``, first
        the ones that are most often and most surely recognised.
    """
    called = _how_often(predictions)
    of = predictions.groupby("true").size()
    wrong = called[called["true"] != called["pred"]]
    pairs = wrong.groupby(["true", "pred"])["times"].sum().reset_index()
    pairs = pairs.sort_values("times", ascending=False, kind="stable", ignore_index=True).head(top)
    pairs["of"] = pairs["true"].map(of).astype("int64")
    pairs["share"] = pairs["times"] / pairs["of"]
    keys = [(str(t), str(p)) for t, p in zip(pairs["true"], pairs["pred"], strict=True)]
    files = [_files(called, true, pred, images) for true, pred in keys]
    like = [_examples(called, pred, images) for _, pred in keys]
    pairs["files"] = pd.Series(files, dtype=object, index=pairs.index)
    pairs["like"] = pd.Series(like, dtype=object, index=pairs.index)
    return pairs[PAIR_COLUMNS]


def _how_often(predictions: pd.DataFrame) -> pd.DataFrame:
    """One row per image and predicted species: how often over the repeats, and how confidently."""
    groups = predictions.groupby(["true", "pred", "file"])["probability"]
    called = groups.agg(times="size", sure="mean").reset_index()
    return called.sort_values(["times", "sure"], ascending=False, kind="stable")


def _files(called: pd.DataFrame, true: str, pred: str, images: int) -> list[str]:
    found = called.loc[(called["true"] == true) & (called["pred"] == pred), "file"]
    return [str(file) for file in found.head(images)]


def _examples(called: pd.DataFrame, species: str, images: int) -> list[str]:
    own = called[called["true"] == species]
    first = own["pred"] != species  # False sorts first
    ordered = own.assign(first=first).sort_values("first", kind="stable")
    return [str(file) for file in pd.unique(ordered["file"])[:images]]


def calibration(predictions: pd.DataFrame, bins: int = BINS) -> pd.DataFrame:
    """How often predictions of similar confidence are right: the table of a reliability diagram.

    Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv:1706.04599): bins of equal
    width; a bin (a, b] holds confidences over a.

    Args:
        predictions: one cell's rows of ``predictions.parquet``, all repeats together.

    Returns:
        ``low high confidence accuracy predictions``, one row per non-empty bin: its bounds, the
        mean probability of its predictions, the share that was right, and their number.
    """
    sure = predictions["probability"].to_numpy(dtype=float)
    right = (predictions["true"] == predictions["pred"]).to_numpy(dtype=float)
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, sure, side="left") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    held = np.flatnonzero(count)
    mean = {
        name: np.bincount(place, values, bins)[held] / count[held]
        for name, values in (("confidence", sure), ("accuracy", right))
    }
    bounds = {"low": edges[:-1][held], "high": edges[1:][held]}
    return pd.DataFrame({**bounds, **mean, "predictions": count[held]})


def calibration_error(table: pd.DataFrame) -> float:
    """The expected calibration error (ECE), in [0, 1]: |confidence − accuracy| over predictions.

    Args:
        table: what `calibration` gives. With few predictions per bin the error is too high, by
            chance alone.
    """
    if table.empty:
        return float("nan")
    gap = (table["confidence"] - table["accuracy"]).abs()
    return float(np.average(gap, weights=table["predictions"]))
