"""The section on differences: questions, every contrast, and what would decide the open ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from analysis import tables
from analysis.contrasts import PROBE
from analysis.load import Run
from analysis.page import Cell, Grid, Section
from analysis.sections.cells import grouped, p_value, points, ratio, value, verdict, word
from analysis.sections.shown import Shown
from analysis.variants import cell_name
from analysis.verdicts import NOT_DECIDED
from analysis.wording import counted

FEW_REPEATS = (
    "Two or three repeats say little of the spread between seeds: intervals and p rest on the rows "
    "together, and are too sure where one row’s seeds spread far more than those of the others."
)


def differences_section(shown: Shown) -> Section | None:
    """Contrasts between variants on the same images and seeds, and what would decide them."""
    found = shown.results.contrasts
    if found.empty:
        return None
    section = Section("differences", "Differences")
    section.answers(shown.results.hypotheses.to_dict("records"))
    section.heading("Every difference")
    section.text(
        "In test accuracy, in points, between two variants on the same images, labels and seeds. "
        "B2−B0 is the effect of pretraining, B2−B1 that of fine-tuning; B2−A mixes pretraining "
        "with another architecture, and only describes."
    )
    rows = grouped(found.to_dict("records"), "contrast", _difference_cells)
    caption = (
        "Under each difference its 95 % interval. p: two-sided, from the same draws; Holm: "
        "adjusted for all ratios and contrasts. A difference counts as decided where the latter is "
        "under 0.05. How far repeats spread is judged from each row and all others together. "
        "“At chance”: neither is surely better than guessing, which says nothing of "
        "how little they differ. Contrasts named “probe” are of linear classifiers of frozen "
        "features."
    )
    caption = " ".join([caption, *_conditions(shown.run, found)])
    fewer = int((found["repeats"] < tables.configured_repeats(shown.run)).sum())
    if fewer:
        section.note(
            "A difference is over the repeats that both sides have, and those alike in both (the "
            f"same encoders, the same labels) count once: {counted(fewer, 'row')} below over fewer "
            "than were asked for."
        )
    names = ["<Contrast", "Labels", "Points", "p", "p (Holm)", "<Verdict"]
    section.table(Grid("Differences", names, rows, caption))
    if found["repeats"].between(2, 3).any():
        section.note(FEW_REPEATS)
    _add_power(section, shown.results.power)
    return section


def _conditions(run: Run, found: pd.DataFrame) -> list[str]:
    """What the rows are conditional on, beside the chosen lr: sentences."""
    untrained = found["contrast"].str.startswith(PROBE) & found["contrast"].str.endswith("−random")
    random = (
        "Those with random are conditional on one untrained encoder." if untrained.any() else ""
    )
    return [text for text in (tables.shared_encoder(run), random) if text]


def _difference_cells(row: dict[Any, Any]) -> list[Cell]:
    key = f"differences {cell_name(row['contrast'], row['label_ratio'])}"
    return [
        replace(word(row["contrast"]), small=str(row["effect"])),
        ratio(row, key),
        points(row, key),
        p_value(row, "p", key),
        p_value(row, "p_holm", key),
        verdict(str(row["verdict"])),
    ]


def _add_power(section: Section, power: pd.DataFrame) -> None:
    open_ones = power[power["verdict"] == NOT_DECIDED]
    if open_ones.empty:
        return
    rows = grouped(open_ones.to_dict("records"), "contrast", _power_cells)
    caption = (
        "About how many repeats, or test images of the same kinds, would find the difference (or 2 "
        "points, if it is smaller) with a chance of 80 %, all else as it was. A dash: no number "
        "would. The numbers are estimated from the repeats that there are, and from few of them "
        "may be off by a third or more."
    )
    names = ["<Contrast", "Labels", "To be found", "Repeats", "Needed", "Test images", "Needed"]
    section.table(Grid("What would decide the open ones", names, rows, caption, folded=True))


def _power_cells(row: dict[Any, Any]) -> list[Cell]:
    key = f"power {cell_name(row['contrast'], row['label_ratio'])}"
    cells = [word(row["contrast"]), ratio(row, key), value(row, "target", ".1f", key, 100)]
    return cells + [
        value(row, name, ",.0f", key)
        for name in ("repeats", "repeats_needed", "n", "images_needed")
    ]
