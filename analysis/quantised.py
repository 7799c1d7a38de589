"""A study's best classifiers in int8: ``quantised.parquet``, read and shown.

Both networks see the same test images, so the difference in accuracy is paired image by image.
It is of one repeat, the one whose weights the study keeps: its interval is over test images
alone, and says nothing of other seeds.

That interval is T. Tango's score interval (Stat. Med. 17, 1998, 891-908) and not the bootstrap of
`analysis.statistics`. The two networks differ on a handful of images, or on none: there a
bootstrap's interval is far too narrow, or has no width at all, and this one keeps near 95 %. It
takes no notice of species, which makes it a little wider than one drawn per species.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.load import Run, read_frame
from analysis.wording import aligned, with_interval

FILE = "quantised.parquet"
BATCHES = (1, 64)  # images per timed call
KINDS = ("float32", "int8")
_TIMES = [f"ms_{batch}_{kind}{end}" for batch in BATCHES for kind in KINDS for end in ("", "_p95")]
COLUMNS = {
    **dict.fromkeys(("variant", "cell"), "str"),
    **dict.fromkeys(("label_ratio", "repeat"), "int64"),
    "lr": "float64",
    **dict.fromkeys(("weights_bytes_float32", "weights_bytes_int8"), "int64"),
    **dict.fromkeys(("int8_share", *_TIMES, "test_acc_float32", "test_acc_int8"), "float64"),
    **dict.fromkeys(("difference", "low", "high", "agreement"), "float64"),
    **dict.fromkeys(("gained", "lost", "images", "calibrated"), "int64"),
    **dict.fromkeys(("operators", "machine"), "str"),
}
"""The columns and their types; docs/RECORDS.md describes them."""

Z = 1.959964  # of 95 %, two-sided


def read(run: Run) -> pd.DataFrame:
    """One row per variant; empty if the study was never quantised.

    Raises:
        InputError: the record is damaged.
    """
    return read_frame(run.location / FILE, COLUMNS)


def is_stale(run: Run, found: pd.DataFrame) -> bool:
    """Whether the study has been evaluated again since."""
    chosen = ["cell", "repeat", "lr"]
    return len(found[chosen].merge(run.evaluations[chosen])) < len(found)


def paired_interval(gained: int, lost: int, images: int) -> tuple[float, float]:
    """The 95 % interval of a paired difference of two accuracies, (gained - lost) / images.

    Args:
        gained: images that only the first has right.
        lost: images that only the second has right.
        images: of both, at least 1.
    """
    from scipy.optimize import brentq

    value, hair = (gained - lost) / images, 1e-12

    def beyond(difference: float) -> float:
        """Positive if the data are further from a difference than chance explains."""
        apart = gained - lost - images * difference
        return apart**2 - Z**2 * _variance(gained, lost, images, difference)

    low = -1.0 if lost == images else brentq(beyond, -1.0, value - hair)
    high = 1.0 if gained == images else brentq(beyond, value + hair, 1.0)
    return float(low), float(high)


def _variance(gained: int, lost: int, images: int, difference: float) -> float:
    """The variance of gained - lost if that were the true difference (Tango's eq. 9)."""
    a = 2 * images
    b = -gained - lost + (2 * images - gained + lost) * difference
    c = -lost * difference * (1 - difference)
    only_second = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    return images * (2 * only_second + difference * (1 - difference))


def render(rows: Sequence[Mapping[Any, Any]]) -> str:
    """The record as a table for the terminal, one line per variant, with notes."""
    return "\n".join([*aligned([_HEAD, *map(_texts, rows)]), "", *_notes(rows)])


_HEAD = ["cell", "MB", "ms, 1 image (p95)", "ms, 64 images (p95)", "accuracy"]
_HEAD += ["points [95 %]", "agree"]


def _texts(row: Mapping[Any, Any]) -> list[str]:
    return [
        str(row["cell"]),
        " → ".join(f"{row[f'weights_bytes_{kind}'] / 1e6:.2f}" for kind in KINDS),
        *(" → ".join(_time(row, f"ms_{batch}_{kind}") for kind in KINDS) for batch in BATCHES),
        " → ".join(f"{row[f'test_acc_{kind}']:.3f}" for kind in KINDS),
        with_interval(row, "difference", "+.1f", 100),
        f"{100 * row['agreement']:.1f} %",
    ]


def _time(row: Mapping[Any, Any], name: str) -> str:
    return f"{row[name]:.2f} ({row[f'{name}_p95']:.2f})"


def _notes(rows: Sequence[Mapping[Any, Any]]) -> list[str]:
    first = rows[0]
    share = min(row["int8_share"] for row in rows)
    return [
        f"float32 → int8 ({100 * share:.1f} % of the weights, or more), "
        f"with bounds from {first['calibrated']:,} training images.",
        f"Accuracy and agreement on {first['images']:,} test images; intervals over test images, "
        f"of the one repeat that is kept.",
        f"Times: medians on one thread of {first['machine']}.",
        *slower(rows),
    ]


def slower(rows: Sequence[Mapping[Any, Any]]) -> list[str]:
    """Sentences on where int8 takes longer than float32 (medians), and on missing operators; none
    if there is nothing to say.
    """
    sentences = [_slower_with(batch, rows) for batch in BATCHES]
    if _by_hand(rows):
        sentences.append("The machine has no operators for int8: it was computed in float32.")
    return [sentence for sentence in sentences if sentence]


def _slower_with(batch: int, rows: Sequence[Mapping[Any, Any]]) -> str:
    cells = [r["cell"] for r in rows if r[f"ms_{batch}_int8"] > r[f"ms_{batch}_float32"]]
    images = "1 image" if batch == 1 else f"{batch} images"
    return f"With {images}, int8 is slower for {', '.join(cells)}." if cells else ""


def _by_hand(rows: Sequence[Mapping[Any, Any]]) -> bool:
    return any(row["operators"] == "none" for row in rows)
