"""The section about the search: every trial, how it went, and what it was worth."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from analysis import course, tables
from analysis.figures import search as figures_search
from analysis.importance import ENOUGH, importance
from analysis.leaderboard import epochs, leaderboard, trial_name
from analysis.load import Run
from analysis.page import Cell, Grid, Row, Section, keyed
from analysis.sections import charts
from analysis.sections.cells import value, word
from analysis.sections.shown import Shown
from analysis.wording import metric_name, minus

TOP = 3  # trials of each cell without scripts


def leaderboard_section(shown: Shown) -> Section | None:
    """All trials as a chart; without scripts, the best of each cell as a table."""
    run = shown.run
    if run.trials.empty:
        return None
    section = Section("leaderboard", "Leaderboard")
    section.chart("trials", charts.trials(run))
    section.table(_best(run))
    _add_lr(section, shown)
    _add_curves(section, shown)
    _add_rungs(section, run)
    _add_importance(section, run)
    return section


def _best(run: Run) -> Grid:
    ranked = leaderboard(run.trials, run.metric)
    ranked = ranked[ranked["state"] != "FAIL"].groupby("cell").head(TOP)
    chosen = set(run.winners["trial_id"])
    rows = [Row(_trial_cells(row, row["trial_id"] in chosen)) for row in ranked.to_dict("records")]
    names = ["#", "<Trial", "<Cell", "<State", "lr", "Validation F1", "Accuracy", "Loss"]
    caption = (
        f"The best {TOP} trials of each cell by validation {metric_name(run.metric)}, ranked over "
        "the whole study; in brackets the best epoch. All trials are in trials.parquet. A pruned "
        "trial is never chosen."
    )
    return Grid("Leaderboard", [*names, "Epochs", "s"], rows, caption, stands_in=True)


def _trial_cells(row: dict[Any, Any], chosen: bool) -> list[Cell]:
    key = f"trials {row['trial_id']}"
    state = "chosen" if chosen else str(row["state"]).lower()
    cells = [value(row, "rank", ",.0f", key), word(trial_name(row)), word(row["cell"]), word(state)]
    cells.append(value(row, "lr", ".1e", key))
    cells += [value(row, name, ".4f", key) for name in ("val_f1", "val_acc", "val_loss")]
    return [*cells, Cell(epochs(row), key=f"{key} epochs"), value(row, "seconds", ".1f", key)]


def _add_lr(section: Section, shown: Shown) -> None:
    run = shown.run
    caption = (
        f"Validation {metric_name(run.metric)} of each trial against its learning rate, a plot a "
        "cell; the line is at the chosen one. An optimum at the edge of a plot means that the "
        "range was too narrow there."
    )
    shape = (run.metric, run.variants, run.label_ratios)
    figure = figures_search.lr_search(
        run.trials, tables.chosen_lrs(run), *shape, run.config["search"]["lr"], course.rungs(run)
    )
    section.figure("lr_search", caption, figure, "44rem", stands_in=True)


def _add_curves(section: Section, shown: Shown) -> None:
    run = shown.run
    if run.epochs.empty:
        return
    caption = (
        f"Validation {metric_name(run.metric)} after each epoch of the search, a plot a cell. "
        "Grey: trials (at most 60 a cell). Bold: the trial whose learning rate was chosen."
    )
    chosen = {str(k): str(v) for k, v in run.winners["trial_id"].items()}
    shape = (run.metric, run.variants, run.label_ratios)
    section.heading("Learning curves")
    figure = figures_search.learning_curves(run.epochs, chosen, *shape)
    section.figure("learning_curves", caption, figure, "44rem")


def _add_rungs(section: Section, run: Run) -> None:
    rungs, most = course.rungs(run), course.max_epochs(run)
    if not rungs or run.epochs["ended"].isna().all():
        return
    saved = course.savings(run.trials, most)
    section.heading("Early stopping")
    if saved.trained:
        text = Markup(
            "{} of {} trials were stopped early: {} epochs instead of {}, at most {} saved."
        )
        numbers = {"stopped": f"{saved.stopped:,}", "trials": f"{saved.trials:,}"}
        numbers |= {"trained": f"{saved.trained:,}", "whole": f"{saved.trained + saved.saved:,}"}
        numbers["share"] = f"{100 * saved.share:.0f}\xa0%"
        section.text(text.format(*(keyed(t, f"savings {name}") for name, t in numbers.items())))
    caption = (
        "Above, each trial of the search from start to end; faint lines are the rungs at which "
        "ASHA judged. Below, the epochs that this took; the area is what it saved, at most: "
        "without rungs, patience would have ended some trials as well."
    )
    figure = figures_search.rungs_over_time(run.epochs, run.trials, rungs, most)
    section.figure("rungs_over_time", caption, figure, "40rem")


def _add_importance(section: Section, run: Run) -> None:
    found = importance(run.trials, run.metric)
    if found.shares.empty:
        return
    section.heading("What the score depends on")
    text = Markup("A random forest explains {} of the variance of trials that it had not seen{}.")
    explained = keyed(minus(f"{100 * found.explained:.0f}\xa0%"), "importance explained")
    if found.explained < ENOUGH:
        section.note(text.format(explained, ": too little to say what the score depends on"))
        return
    caption = (
        f"How much of the variation of validation {metric_name(run.metric)} between trials is due "
        "to each factor, and to factors together (×): functional analysis of variance of that "
        "forest."
    )
    section.note(text.format(explained, ""))
    section.figure("importance", caption, figures_search.importance(found.shares), "auto")
