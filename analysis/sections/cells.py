"""The cells of the page's tables, each number with the key that traces it to its frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.page import Cell, Row
from analysis.verdicts import HIGHER, LOWER
from analysis.wording import NONE, interval, minus, p_text

Values = Mapping[Any, Any]


def word(value: object, style: str = "t") -> Cell:
    """A text, left-aligned; a dash if it is missing."""
    return Cell(NONE if value is None or pd.isna(value) else str(value), style)  # type: ignore[call-overload]


def value(row: Values, name: str, form: str, key: str, scale: float = 1.0) -> Cell:
    """A number of a row, times ``scale``; a dash if it is missing, "none" if it is infinite."""
    found = row.get(name)
    if found is None or pd.isna(found):
        return Cell(NONE)
    text = "none" if abs(found) == float("inf") else format(found * scale, form)
    return Cell(minus(text), key=f"{key} {name}")


def with_interval(row: Values, name: str, form: str, key: str, scale: float = 1.0) -> Cell:
    """A number with its interval below it."""
    cell = value(row, name, form, key, scale)
    if not cell.key:
        return cell
    _, low, high = interval(row, name)
    return replace(cell, small=minus(f"{low * scale:{form}} to {high * scale:{form}}"))


def ratio(row: Values, key: str, labels: object = None) -> Cell:
    """A label ratio with the number of labelled images below it."""
    small = "" if labels is None or pd.isna(labels) else f"{labels:,.0f}"  # type: ignore[call-overload]
    return Cell(f"{row['label_ratio']:g}\xa0%", key=f"{key} label_ratio", small=small)


def p_value(row: Values, name: str, key: str) -> Cell:
    """A p-value; ``< 0.001`` if it is smaller than that."""
    found = row[name]
    if pd.isna(found):
        return Cell(NONE)
    text = p_text(found).replace(" ", "\xa0")
    return Cell(text, key=f"{key} {name}")


def points(row: Values, key: str) -> Cell:
    """A difference in points with its interval below it."""
    return with_interval(row, "difference", "+.1f", key, 100)


def verdict(verdict: str, higher: str = HIGHER, lower: str = LOWER) -> Cell:
    """The verdict on a difference, with an arrow if it is decided."""
    text = {HIGHER: f"▲ {higher}", LOWER: f"▼ {lower}"}.get(verdict, verdict)
    return Cell(text, {HIGHER: "t up", LOWER: "t down"}.get(verdict, "t soft"))


def percent(cell: Cell) -> Cell:
    """The same cell, its number marked as a percentage."""
    return replace(cell, text=f"{cell.text}\xa0%")


def encoder(row: Values) -> Cell:
    """The encoder of a row; a control is marked as one."""
    name = str(row["encoder"])
    controls = {"random": "random (control: untrained)", "pixels": "pixels (control)"}
    return Cell(controls.get(name, name), "t")


def grouped(rows: list[dict[Any, Any]], by: str, cells: Any) -> list[Row]:
    """The rows of a table, with a line wherever the value of ``by`` changes.

    Leading texts that repeat the row above are faint.
    """
    found: list[Row] = []
    for row, last in zip(rows, [None, *rows], strict=False):
        made = cells(row)
        if last is not None and last[by] == row[by]:
            made = _faint(made, cells(last))
        found.append(Row(made, last is not None and last[by] != row[by]))
    return found


def _faint(cells: list[Cell], above: list[Cell]) -> list[Cell]:
    same = [a.style == "t" and a.text == b.text for a, b in zip(cells, above, strict=False)]
    first = same.index(False) if False in same else len(same)
    return [replace(cell, style="t again") for cell in cells[:first]] + cells[first:]
