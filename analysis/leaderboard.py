"""The trials of a study, best first: as a frame, as JSON, and for the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.wording import besides, shorten
from data.storage import InputError

_ORDER = {"COMPLETE": 0, "PRUNED": 0, "RUNNING": 1}  # anything else, FAIL above all, comes last
_WHOLE = ("seed", "epochs", "best_epoch")


def ascending(metric: str) -> bool:
    """Whether less is better, as for a loss."""
    return metric.endswith("loss")


def leaderboard(
    trials: pd.DataFrame, metric: str, cell: str | None = None, top: int | None = None
) -> pd.DataFrame:
    """Trials best first by a metric, ties by lower ``val_loss``.

    COMPLETE and PRUNED trials come first, then RUNNING ones, then those that failed.

    Args:
        trials: as ``trials.parquet``.
        metric: val_f1, val_acc or val_loss.
        cell: only this one, as ``B1@25``; None for all.
        top: how many rows at most.

    Returns:
        ``rank``, from 1, and the columns of ``trials``.
    """
    chosen = trials if cell is None else trials[trials["cell"] == cell]
    score = chosen[metric] if ascending(metric) else -chosen[metric]
    keys = {
        "order": chosen["state"].map(lambda state: _ORDER.get(state, 2)),
        "score": score,
        "loss": chosen["val_loss"],
        "trial_id": chosen["trial_id"],
    }
    order = pd.DataFrame(keys).sort_values(list(keys), na_position="last").index
    ranked = chosen.loc[order].reset_index(drop=True)
    ranked.insert(0, "rank", np.arange(1, len(ranked) + 1))
    return ranked if top is None else ranked.head(top)


def so_far(trials: pd.DataFrame, epochs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The trials, with the epochs, seconds and best epoch that RUNNING ones have reached so far.

    Args:
        trials: as ``trials.parquet``.
        epochs: as ``epochs.parquet``.
        metric: val_f1, val_acc or val_loss.
    """
    running = trials[trials["state"] == "RUNNING"]
    own = epochs[epochs["trial_id"].isin(running["trial_id"]) & epochs[metric].notna()]
    if own.empty:
        return trials
    score = own[metric] if ascending(metric) else -own[metric]
    best = own.assign(score=score).sort_values(["trial_id", "score", "epoch"])
    best = best.drop_duplicates("trial_id").set_index("trial_id")
    by_trial = own.groupby("trial_id")
    known = best[["val_loss", "val_acc", "val_f1"]].assign(
        best_epoch=best["epoch"], epochs=by_trial["epoch"].max(), seconds=by_trial["seconds"].sum()
    )
    found = trials.set_index("trial_id", drop=False)
    found.loc[known.index, known.columns] = known
    return found.set_index(trials.index)


def sort_by(board: pd.DataFrame, column: str, top: int | None = None) -> pd.DataFrame:
    """A leaderboard sorted by another column; missing values come last.

    Args:
        board: what `leaderboard` gives; ``rank`` stays the place by the metric.
        column: highest first for ``val_f1`` and ``val_acc``, lowest first for all others;
            ``-COLUMN`` reverses that.
        top: how many rows at most.

    Raises:
        InputError: there is no such column.
    """
    name = column.removeprefix("-")
    if name not in board:
        raise InputError(f"--sort: found {column!r}, expected one of {', '.join(map(str, board))}")
    rising = (name not in ("val_f1", "val_acc")) != column.startswith("-")
    found = board.sort_values(name, ascending=rising, na_position="last", kind="stable")
    found = found.reset_index(drop=True)
    return found if top is None else found.head(top)


@dataclass(frozen=True)
class View:
    """Which part of a leaderboard to show: the arguments of `leaderboard` and `sort_by`."""

    cell: str | None = None
    top: int | None = None
    sort: str | None = None

    def board(self, trials: pd.DataFrame, metric: str) -> pd.DataFrame:
        if self.sort is None:
            return leaderboard(trials, metric, self.cell, self.top)
        return sort_by(leaderboard(trials, metric, self.cell), self.sort, self.top)


def winners(trials: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Each cell's COMPLETE trial with the best metric, ties by lower ``val_loss``.

    Returns:
        The columns of ``trials``, indexed by cell; a cell without a COMPLETE trial has no row.
    """
    complete = trials[(trials["state"] == "COMPLETE") & trials[metric].notna()]
    ranked = leaderboard(complete, metric).drop(columns="rank")
    return ranked.drop_duplicates("cell").set_index("cell", drop=False)


def to_json(frame: pd.DataFrame) -> str:
    """A list of objects, one per row; a missing value is null."""
    rows = [
        {str(name): _plain(name, value) for name, value in row.items()}
        for row in frame.to_dict("records")
    ]
    return json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False)


def _plain(name: object, value: Any) -> Any:
    if pd.isna(value):
        return None
    if name in _WHOLE:
        return int(value)
    return value.item() if isinstance(value, np.generic) else value


def to_csv(frame: pd.DataFrame) -> str:
    """Comma-separated, with a header; a missing value is empty."""
    whole = {name: "Int64" for name in _WHOLE if name in frame}
    return str(frame.astype(whole).to_csv(index=False, lineterminator="\n"))


def render(frame: pd.DataFrame, metric: str, width: int = 100) -> str:
    """A leaderboard for the terminal: one line per trial, cut to the width in columns."""
    return "\n".join(table_lines(frame, metric, width))


def table_lines(
    frame: pd.DataFrame, metric: str, width: int, least: Sequence[int] = (0,) * 9
) -> list[str]:
    """The lines of `render`: a header, and one line per trial, with the reason if it failed.

    Args:
        least: minimal width of each column; `STEADY` for a table that grows.
    """
    other = "loss" if metric != "val_loss" else "val_f1"
    lines = [["#", "trial", "state", "lr", metric, other, "epochs", "s", "error"]]
    for row in frame.to_dict("records"):
        texts = [str(row["rank"]), trial_name(row), str(row["state"])]
        texts += [number(row["lr"], ".1e"), number(row[metric], ".4f")]
        beside = row["val_loss" if other == "loss" else other]
        texts += [number(beside, ".4f"), epochs(row), number(row["seconds"], ".1f")]
        lines.append([*texts, first_line(row["error"])])
    widest = [
        max(wide, *map(len, column))
        for wide, column in zip(least, zip(*lines, strict=True), strict=True)
    ]
    if frame.empty:
        lines.append(["", "no trial yet"])
    return [shorten(_line(line, widest), width) for line in lines]


def trial_name(row: Mapping[Any, Any]) -> str:
    """A trial's name, with what is searched beside lr."""
    return f"{row['trial_id']} {besides(row)}".rstrip()


STEADY = (3, 10, 8, 7, 8, 6, 7, 6, 0)
"""Column widths that fit nearly every trial."""


def _line(texts: list[str], widest: list[int]) -> str:
    left = (1, 2, 8)  # trial, state, error; the others are numbers
    cells = [
        text.ljust(wide) if column in left else text.rjust(wide)
        for column, (text, wide) in enumerate(zip(texts, widest, strict=False))
    ]
    return "  ".join(cells).rstrip()


def number(value: float, form: str) -> str:
    """A number, or an empty string if it is missing; a huge one in scientific notation."""
    if pd.isna(value):
        return ""
    return format(value, form if abs(value) < 1e7 else ".1e")


def epochs(row: Mapping[Any, Any]) -> str:
    """Epochs trained, with the best of them in brackets."""
    trained, best = number(row["epochs"], ".0f"), number(row["best_epoch"], ".0f")
    return f"{trained} ({best})" if best else trained


def first_line(error: object) -> str:
    """The first line of an error that is not empty."""
    if error is None or (isinstance(error, float) and np.isnan(error)) or error is pd.NA:
        return ""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shorten(lines[0], 200) if lines else ""
