"""The section about errors: which species are taken for which, and how sure the classifier is."""

from __future__ import annotations

from typing import Any

import pandas as pd
from markupsafe import Markup

from analysis.errors import calibration, calibration_error
from analysis.figures import errors as figures_errors
from analysis.page import Section, keyed
from analysis.sections.shown import Shown
from analysis.wording import counted


def errors_section(shown: Shown) -> Section | None:
    """The best cell's confusions, with the images of the most frequent, and its calibration."""
    run, cell = shown.run, shown.cell
    rows = shown.predictions
    if rows.empty:
        return None
    section = Section("errors", "Errors")
    section.text(
        f"Of {cell}, the best variant at the highest label ratio by validation, on the test "
        f"images, over {counted(rows['repeat'].nunique(), 'repeat')}."
    )
    caption = "What each species’ test images are called, in percent; under 10 % is left out."
    section.figure("confusion", caption, figures_errors.confusion(rows, run.species))
    if len(shown.confused):
        section.heading("Most often confused")
        section.note(
            "Counted in predictions over all repeats. Left, images that were wrong; right, images "
            "of what they were taken for."
        )
        section.album([_pair(row, shown) for row in shown.confused.to_dict("records")])
    _add_calibration(section, rows)
    return section


def _pair(row: dict[Any, Any], shown: Shown) -> tuple[Markup, list[Markup]]:
    key = f"confused {row['true']}|{row['pred']}"
    share = keyed(f"{100 * row['share']:.0f}\xa0%", f"{key} share")
    times = keyed(f"{row['times']:,}", f"{key} times")
    of = keyed(f"{row['of']:,}", f"{key} of")
    text = Markup("<b>{}</b> taken for <b>{}</b>: {} ({} of {})")
    wrong = shown.thumbnails.images(row["files"], row["true"])
    like = shown.thumbnails.images(row["like"], row["pred"])
    arrow = [Markup('<i class="arrow">→</i>')] if wrong and like else []
    return text.format(row["true"], row["pred"], share, times, of), [*wrong, *arrow, *like]


def _add_calibration(section: Section, rows: pd.DataFrame) -> None:
    table = calibration(rows)
    error = keyed(f"{calibration_error(table):.3f}", "calibration ece")
    section.heading("Is it as sure as it is right?")
    text = Markup("Expected calibration error: {}. With few predictions chance alone raises it.")
    section.text(text.format(error))
    caption = (
        "Share of right predictions against the probability that was given, all repeats together; "
        "red: the distance to being calibrated. Below, how many predictions there are."
    )
    section.figure("reliability", caption, figures_errors.reliability(table), "auto")
