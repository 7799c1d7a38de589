"""The paper's Table I beside ours, and beside ours computed the way the paper computed it.

The paper's F1, precision and recall are macro averages *within* the batches of an unshuffled
loader, averaged over the batches. A batch of 64 in class order holds three or four of 20 species;
every wrong prediction names a species that is not in the batch, and counts there as one of
precision 0 and recall 0. So an accuracy of 0.606 comes with an F1 of 0.221.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd

from analysis.load import Run
from analysis.statistics import METRICS

BATCH, SPECIES = 64, 20
COLUMNS = ["variant", "label_ratio"]
COLUMNS += [f"{kind}_{name}" for name in METRICS for kind in ("paper", "ours", "batched")]


def paper_table(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """`COLUMNS`, see docs/RECORDS.md: one row per cell of the paper, by ratio and variant.

    Args:
        table: Table I of this study; a cell that it lacks has the paper's figures alone.
    """
    published = published_table()
    cells = {"variant": [c[0] for c in published], "label_ratio": [c[1] for c in published]}
    frame = pd.DataFrame(cells)
    ours = {(row["variant"], row["label_ratio"]): row for row in table.to_dict("records")}
    batched = _batched(run)
    for name in METRICS:
        frame[f"paper_{name}"] = [published[cell][name] for cell in published]
        frame[f"ours_{name}"] = [ours.get(c, {}).get(f"test_{name}", np.nan) for c in published]
        frame[f"batched_{name}"] = [batched.get(c, {}).get(name, np.nan) for c in published]
    return frame[COLUMNS].astype({name: float for name in COLUMNS[2:]})


@cache
def published_table() -> dict[tuple[str, int], dict[str, float]]:
    """The paper's Table I: (variant, label ratio) to its metrics."""
    with files("analysis").joinpath("paper_table_i.csv").open(encoding="utf-8") as stream:
        frame = pd.read_csv(stream, comment="#")
    rows: list[dict[Any, Any]] = frame.to_dict("records")
    return {
        (row["variant"], row["label_ratio"]): {k: float(row[f"test_{k}"]) for k in METRICS}
        for row in rows
    }


def _batched(run: Run) -> dict[tuple[str, int], dict[str, float]]:
    """Each cell's metrics computed the paper's way, averaged over repeats."""
    index, found = pd.Index(run.species), []
    for key, rows in run.predictions.groupby(["variant", "label_ratio", "repeat"]):
        ordered = rows.sort_values(["true", "file"])
        true, pred = (index.get_indexer(pd.Index(ordered[name])) for name in ("true", "pred"))
        scores = batch_metrics(true, pred) | {"loss": float(rows["loss"].mean())}
        found.append((*key[:2], *(scores[name] for name in METRICS)))
    frame = pd.DataFrame(found, columns=["variant", "label_ratio", *METRICS])
    means = frame.groupby(["variant", "label_ratio"]).mean()
    return dict(zip(means.index, means.to_dict("records"), strict=True))


def batch_metrics(true: np.ndarray, pred: np.ndarray) -> dict[str, float]:
    """Accuracy, and macro F1, precision and recall within batches, averaged over the batches.

    A batch's macro mean is over the species that are in it or predicted in it, as scikit-learn's
    (``average="macro", zero_division=0``) and torchmetrics'.

    Args:
        true, pred: species of the images in the loader's order, (N,).
    """
    cuts = range(BATCH, len(true), BATCH)
    parts = zip(np.split(true, cuts), np.split(pred, cuts), strict=True)
    mean = np.mean([_macro(*part) for part in parts], axis=0)
    scores = dict(zip(("f1", "precision", "recall"), map(float, mean), strict=True))
    return scores | {"acc": float((true == pred).mean())}


def _macro(true: np.ndarray, pred: np.ndarray) -> tuple[float, float, float]:
    kinds = np.union1d(true, pred)[:, None]
    are, named = true == kinds, pred == kinds
    found, support, predicted = ((are & named).sum(1), are.sum(1), named.sum(1))
    precision = found / np.maximum(predicted, 1)
    recall = found / np.maximum(support, 1)
    f1 = 2 * found / (support + predicted)
    return float(f1.mean()), float(precision.mean()), float(recall.mean())
