"""The section on labels: accuracy against labels, how many it takes, and how many are saved."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis import tables
from analysis.page import Cell, Grid, Row, Section
from analysis.sections import charts
from analysis.sections.cells import grouped, p_value, percent, points, ratio, value, verdict, word
from analysis.sections.shown import Shown
from analysis.variants import cell_name
from analysis.wording import label_count, label_interval


def efficiency_section(shown: Shown) -> Section | None:
    """Every metric against labels, and how many labels pretraining saves."""
    table, saved = shown.results.table, shown.results.labels_saved
    data = charts.efficiency(table)
    if not data["lines"] or table["label_ratio"].nunique() == 1:
        return None  # for one ratio the figure beside the answer shows everything
    section = Section("label-efficiency", "Label efficiency")
    section.chart("efficiency", data)
    _add_labels_needed(section, shown)
    if len(saved):
        section.heading("Labels saved")
        rows = grouped(saved.to_dict("records"), "variant", _saved_cells)
        caption = (
            "How many labels the baseline needs, read between the ratios of its own curve, for "
            "the accuracy that the variant reaches. “More than”: the baseline does not reach it, "
            "even with all of its labels. “At most”, “or fewer”: it reaches it with its fewest "
            f"labels, and with how few is not known.{_without_ends(saved, 'saved')}"
        )
        names = ["<Variant", "<Baseline", "Labels", "Accuracy", "Baseline needs", "Saved", "<"]
        section.table(Grid("Labels saved", names, rows, caption))
    return section


def _add_labels_needed(section: Section, shown: Shown) -> None:
    needed, gained = shown.results.labels_needed, shown.results.labels_gained
    if len(needed):
        section.heading("Labels needed")
        names = ["Accuracy", *needed["variant"].unique()]
        rows = [Row(_needed_cells(own.to_dict("records"))) for _, own in needed.groupby("acc")]
        caption = (
            "How many labels each variant needs for a test accuracy, read between the ratios of "
            f"its own curve; {tables.validation_note(shown.run)}. “Or fewer”: the fewest that were "
            f"studied reach it.{_without_ends(needed, 'needed')}"
        )
        section.table(Grid("Labels needed", names, rows, caption))
    if len(gained):
        section.heading("Do more labels still help?")
        caption = (
            "What each variant gains in test accuracy, in points, from about half of its labels to "
            "all of them. p: as under Differences; Holm: adjusted for the variants."
        )
        names = ["<Variant", "From", "To", "Points", "p", "p (Holm)", "<Verdict"]
        rows = [Row(_gained_cells(row)) for row in gained.to_dict("records")]
        section.table(Grid("Do more labels still help?", names, rows, caption))


def _without_ends(frame: pd.DataFrame, name: str) -> str:
    if frame[f"{name}_low"].notna().all():
        return ""
    return " Without an interval: it takes two repeats in every cell of the curve."


def _needed_cells(rows: list[dict[Any, Any]]) -> list[Cell]:
    keys = [f"labels_needed {row['variant']}@{row['acc']:g}" for row in rows]
    cells = [percent(value(rows[0], "acc", ".0f", keys[0], 100))]
    for key, row in zip(keys, rows, strict=True):
        if row["bound"] == "at most":
            cells.append(Cell(f"{row['needed']:,.0f} or fewer", key=f"{key} needed"))
        else:
            cells.append(_count(row, "needed", key))
    return cells


def _gained_cells(row: dict[Any, Any]) -> list[Cell]:
    key = f"labels_gained {row['variant']}"
    return [
        word(row["variant"]),
        value(row, "labels", ",.0f", key),
        value(row, "to_labels", ",.0f", key),
        points(row, key),
        p_value(row, "p", key),
        p_value(row, "p_holm", key),
        verdict(str(row["verdict"])),
    ]


def _saved_cells(row: dict[Any, Any]) -> list[Cell]:
    key = f"labels_saved {cell_name(row['variant'], row['label_ratio'])}"
    accuracy = value(row, "acc", ".3f", key)
    cells = [word(row["variant"]), word(row["baseline"]), ratio(row, key, row["labels"]), accuracy]
    cells.append(_count(row, "needed", key))
    cells.append(_count(row, "saved", key, row["labels"]))
    return [*cells, Cell("at most" if row["bound"] == "at most" else "", "t soft")]


def _count(row: dict[Any, Any], name: str, key: str, less: int = 0) -> Cell:
    """Labels with their interval below; ``less`` as for `label_interval`."""
    text = label_count(row[name], row["least"] - less, row["most"] - less)
    return Cell(text, key=f"{key} {name}", small=label_interval(row, name, less))
