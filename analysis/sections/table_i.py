"""The section Table I, with the paper's own beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from analysis import tables
from analysis.load import Run
from analysis.page import Cell, Grid, Section
from analysis.paper import SPECIES
from analysis.sections.cells import (
    grouped,
    ratio,
    value,
    with_interval,
    word,
)
from analysis.sections.shown import Shown
from analysis.variants import cell_name
from analysis.wording import besides, counted

METRICS = ("acc", "f1", "precision", "recall", "loss")
FEW_IMAGES = 5
"""Of a species with fewer test images the page says so."""


def table_section(shown: Shown) -> Section:
    """Table I, what its intervals are conditional on, and the paper's table beside it."""
    section = Section("table-i", "Table I")
    run, table = shown.run, shown.results.table
    if table.empty:
        section.text("There is none: the study only searches (evaluation.repeats is 0).")
        return section
    names = ["<Variant", "Labels", *(tables.HEADINGS[metric] for metric in METRICS)]
    rows = grouped(table.to_dict("records"), "label_ratio", _table_cells)
    names += ["lr", "Epochs", "Seconds", "n", "Repeats"]
    section.table(Grid("Table I", names, rows, tables.caption(run)))
    section.note(_conditional(run, table, shown.results.scored[1].count))
    if len(run.species) == SPECIES:  # with other data it would only confuse
        _add_paper(section, shown.results.paper)
    return section


def _table_cells(row: dict[Any, Any]) -> list[Cell]:
    key = f"table_i {cell_name(row['variant'], row['label_ratio'])}"
    cells = [replace(word(row["variant"]), small=besides(row)), ratio(row, key, row["labels"])]
    reason = "" if pd.isna(row["reason"]) else str(row["reason"])
    tested = not pd.isna(row["test_acc"])
    if tested:
        cells += [with_interval(row, f"test_{metric}", ".3f", key) for metric in METRICS]
    else:
        cells.append(Cell(reason, "long", f"{key} reason", span=len(METRICS)))
    cells.append(value(row, "lr", ".1e", key))
    cells += [_spent(row, name, key) for name in ("epochs", "seconds")]
    cells.append(value(row, "n", ",.0f", key))
    repeats = value(row, "repeats", ".0f", key)
    return [*cells, Cell(repeats.text, key=repeats.key, small=reason if tested else "")]


def _spent(row: dict[Any, Any], name: str, key: str) -> Cell:
    """What the search spent, with the final evaluation below it."""
    search = value(row, f"search_{name}", ",.0f", key)
    final = value(row, f"final_{name}", ",.0f", key)
    return replace(search, small=f"+ {final.text}" if final.key else "")


def _conditional(run: Run, table: pd.DataFrame, draws: int) -> str:
    text = (
        f"The intervals come from {draws:,} draws of repeats and of test images (stratified by "
        "species), the same draws for every cell; their width allows for how few repeats there "
        "are (Student’s t). They are conditional on the chosen learning rate: another search could "
        "choose another one. "
    )
    done = table.loc[table["repeats"] > 0, "repeats"]
    if (done == 1).any():
        which = "" if (done == 1).all() else f" (in {counted(int((done == 1).sum()), 'cell')})"
        text += (
            f"With one repeat{which} they are over test images alone, and know nothing of the "
            "seed. "
        )
    if ((done == 2) | (done == 3)).any():
        text += (
            "With two or three repeats they rest on few, and may be too narrow where seeds matter "
            "more than images. "
        )
    tested = run.predictions.drop_duplicates("file")["true"].value_counts()
    rare = int((tested < FEW_IMAGES).sum())
    if rare:
        text += (
            f"Of {rare:,} species there are fewer than "
            f"{FEW_IMAGES} test images, and macro F1, precision and recall rest on them as much as "
            "on any other. "
        )
    shared = tables.shared_encoder(run)
    text += f"{shared} " if shared else ""
    return text + "The same table is in table_i.csv, table_i.md and table_i.tex."


def _add_paper(section: Section, paper: pd.DataFrame) -> None:
    """The cells that the paper has as well; nothing if there are none."""
    both = paper[paper["ours_acc"].notna()]
    if both.empty:
        return
    metrics = ("acc", "f1", "precision", "recall")
    names = ["<Variant", "Labels", *("paper", "as paper", "ours") * len(metrics)]
    groups = [("", 2), *((tables.HEADINGS[metric], 3) for metric in metrics)]
    rows = grouped(both.to_dict("records"), "label_ratio", _paper_cells)
    caption = (
        "The paper’s figures; ours, computed as the paper did: F1, precision and recall macro "
        "within unshuffled batches of 64 in class order, averaged over batches; and ours over the "
        "whole test set. Where a batch holds few of the species, a wrong prediction mostly names "
        "one that is not in it and counts as one more species without a hit: that lowers the "
        "former. The data are not the paper’s, unless you gave them."
    )
    section.heading("Beside the paper’s table")
    section.table(Grid("Beside the paper’s table", names, rows, caption, groups))


def _paper_cells(row: dict[Any, Any]) -> list[Cell]:
    key = f"paper {cell_name(row['variant'], row['label_ratio'])}"
    cells = [word(row["variant"]), ratio(row, key)]
    for metric in ("acc", "f1", "precision", "recall"):
        columns = [f"{source}_{metric}" for source in ("paper", "batched", "ours")]
        cells += [value(row, column, ".3f", key) for column in columns]
    return cells
