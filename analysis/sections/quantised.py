"""The section about the best classifiers in int8: size, time, accuracy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from analysis.page import Cell, Grid, Row, Section
from analysis.quantised import BATCHES, KINDS, is_stale, read, slower
from analysis.sections.cells import percent, points, value, word
from analysis.sections.shown import Shown


def quantised_section(shown: Shown) -> Section | None:
    """Each variant's best classifier beside its int8 form; None before `mariposa quantise`."""
    found = read(shown.run)
    if found.empty:
        return None
    rows: list[dict[Any, Any]] = found.to_dict("records")
    section = Section("quantised", "Quantised")
    section.text(
        "Each variant’s best classifier, by validation, and the same with its convolutions and "
        "linear layers in int8."
    )
    if is_stale(shown.run, found):
        section.note(
            "The study has been evaluated anew since: `mariposa quantise` brings this up to date."
        )
    section.table(_grid(rows))
    for sentence in slower(rows):
        section.text(sentence)
    section.note(
        "The difference is int8 less float32 on the same test images, of the one repeat whose "
        "weights are kept: its interval (Tango’s score interval) is over test images, and knows "
        "nothing of other seeds. Bounds for rounding come from training images alone."
    )
    return section


def _grid(rows: list[dict[Any, Any]]) -> Grid:
    names = ["<Classifier", "Weights int8", "float32", "int8"]
    names += [*KINDS] * (len(BATCHES) + 1)
    groups = [("", 2), ("Megabytes", 2), ("ms, one image", 2), ("ms, 64 images", 2)]
    groups += [("Test accuracy", 2), ("", 2)]
    return Grid(
        "Quantised",
        [*names, "Points", "Agree"],
        [Row(_cells(row)) for row in rows],
        f"Megabytes: of the files. Times: the median of a call, and under it the 95 % quantile, on "
        f"one thread of {rows[0]['machine']}; the two networks took turns. Agree: test images of "
        f"which both say the same.",
        groups,
    )


def _cells(row: dict[Any, Any]) -> list[Cell]:
    key = f"quantised {row['cell']}"
    cells = [word(row["cell"]), percent(value(row, "int8_share", ".1f", key, 100))]
    cells += [value(row, f"weights_bytes_{kind}", ".2f", key, 1e-6) for kind in KINDS]
    cells += [_time(row, f"ms_{batch}_{kind}", key) for batch in BATCHES for kind in KINDS]
    cells += [value(row, f"test_acc_{kind}", ".3f", key) for kind in KINDS]
    cells.append(points(row, key))
    return [*cells, percent(value(row, "agreement", ".1f", key, 100))]


def _time(row: dict[Any, Any], name: str, key: str) -> Cell:
    return replace(value(row, name, ".2f", key), small=f"{row[f'{name}_p95']:.2f}")
