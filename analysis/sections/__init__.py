"""The sections of the report, in the order of the page; one without content is None."""

from __future__ import annotations

from collections.abc import Callable

from analysis import tables
from analysis.figures.results import label_efficiency
from analysis.page import Picture, Section, draw
from analysis.sections.differences import differences_section
from analysis.sections.efficiency import efficiency_section
from analysis.sections.encoders import encoders_section, latent_section
from analysis.sections.errors import errors_section
from analysis.sections.quantised import quantised_section
from analysis.sections.reconstructions import reconstruction_section
from analysis.sections.robustness import robustness_section
from analysis.sections.run import run_section
from analysis.sections.search import leaderboard_section
from analysis.sections.shown import Shown
from analysis.sections.table_i import table_section

SECTIONS: tuple[Callable[[Shown], Section | None], ...] = (
    table_section,
    differences_section,
    efficiency_section,
    leaderboard_section,
    encoders_section,
    latent_section,
    reconstruction_section,
    errors_section,
    robustness_section,
    quantised_section,
    run_section,
)


def headline(shown: Shown) -> Picture | None:
    """The figure beside the answer; None before there is a test result."""
    table = shown.results.table
    if tables.with_results(table).empty:
        return None
    caption = (
        "Test accuracy against labelled training images. Bars: 95 % intervals. "
        "Bars that overlap do not mean that there is no difference: see Differences. "
        f"Counted are training labels, {tables.validation_note(shown.run)}."
    )
    return draw("label_efficiency", caption, label_efficiency(table), "27rem")
