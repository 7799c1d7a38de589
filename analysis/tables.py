"""Table I, and how it is written as CSV, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.leaderboard import first_line
from analysis.load import Run
from analysis.statistics import (
    METRICS,
    CellScores,
    Draws,
    estimate,
    interval_columns,
    score_cells,
)
from analysis.wording import NONE, besides, with_interval

TEST_COLUMNS = interval_columns(f"test_{name}" for name in METRICS)
SPENT = ["trials", "search_epochs", "search_seconds", "final_epochs", "final_seconds"]
TIMED = ["search_seconds", "final_seconds"]
"""Left out of the written table, so that the same study gives the same table to the digit."""
TABLE_I = ["variant", "label_ratio", "labels", "n", "repeats", "lr", "valid_labels"]
TABLE_I += [*SPENT, *TEST_COLUMNS, "reason", "recipe", "settings"]
HEADINGS = {"loss": "Loss", "acc": "Accuracy", "f1": "F1", "precision": "Precision"}
HEADINGS["recall"] = "Recall"


def table_i(run: Run, scored: tuple[Mapping[str, CellScores], Draws] | None = None) -> pd.DataFrame:
    """Table I: one row per cell of the configuration, by ratio and variant.

    Args:
        scored: what `score_cells` gave for this run, if it is at hand.

    Returns:
        `TABLE_I`: what was labelled, chosen and spent (epochs and seconds of the search and of
        the final evaluation, summed), each test metric's mean over repeats with ``_low`` and
        ``_high`` (95 %, crossed bootstrap), and ``reason``: why a row has no result, or fewer
        repeats than configured. ``labels`` counts labelled training images. No row where the
        configuration has no final evaluation (``evaluation.repeats: 0``).

    Raises:
        InputError: a record is torn, or its parts contradict each other.
    """
    if configured_repeats(run) == 0:
        return pd.DataFrame(columns=TABLE_I)
    scores, draws = scored or score_cells(run.predictions, run.species)
    lrs = chosen_lrs(run)
    others = {name: _chosen(run, name) for name in ("recipe", "settings")}
    labels = labelled(run)
    rows = []
    for cell, variant, ratio in run.cells:
        row = {"variant": variant, "label_ratio": ratio, "labels": labels.get(ratio)}
        row |= {
            "lr": lrs.get(cell),
            **{name: chosen.get(cell) for name, chosen in others.items()},
            "repeats": 0,
            "n": None,
            "reason": reason(run, cell),
        }
        row |= {"valid_labels": run.counts.get("valid"), **spent(run, cell)}
        if cell in scores:
            row |= {"n": scores[cell].images, "repeats": len(scores[cell].repeats)}
            for name in METRICS:
                row |= estimate(scores[cell], name, draws).columns(f"test_{name}")
        rows.append(row)
    frame = pd.DataFrame(rows, columns=TABLE_I)
    whole = ["labels", "n", "repeats", "valid_labels", "trials", "search_epochs", "final_epochs"]
    return frame.astype(
        {
            **dict.fromkeys(whole, "Int64"),
            **dict.fromkeys(["lr", "search_seconds", "final_seconds", *TEST_COLUMNS], "float64"),
        }
    )


def with_results(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of Table I with a test result and a known number of labels."""
    return table[table["test_acc"].notna() & table["labels"].notna()]


def spent(run: Run, cell: str) -> dict[str, float]:
    """`SPENT` of a cell. Seconds are summed over trainings, also those that ran side by side."""
    trials = run.trials[run.trials["cell"] == cell]
    final = run.evaluations[run.evaluations["cell"] == cell]
    return {
        "trials": len(trials),
        "search_epochs": int(trials["epochs"].sum()),
        "search_seconds": float(trials["seconds"].sum()),
        "final_epochs": int(final["epochs"].sum()),
        "final_seconds": float(final["seconds"].sum()),
    }


def configured_repeats(run: Run) -> int:
    """Repeats of the final evaluation; 0 if the study only searches."""
    return int(run.config.get("evaluation", {}).get("repeats", 0))


def labelled(run: Run) -> dict[int, int]:
    """The number of labelled training images at each ratio, in the search."""
    labels = run.labels
    counts = labels[labels["repeat"].isna()].groupby("label_ratio").size()
    return {int(ratio): int(count) for ratio, count in counts.items()}  # type: ignore[call-overload]


def chosen_lrs(run: Run) -> dict[str, float]:
    """Each cell's lr in the final evaluation, or else that of its best COMPLETE trial so far."""
    return {cell: float(lr) for cell, lr in _chosen(run, "lr").items()}


def _chosen(run: Run, name: str) -> dict[str, Any]:
    won = run.winners[name].to_dict()
    used = run.evaluations.drop_duplicates("cell").set_index("cell")[name].to_dict()
    return {str(cell): value for cell, value in {**won, **used}.items()}


def reason(run: Run, cell: str) -> str | None:
    """Why a cell has no result, or not all of its repeats; None if it is complete."""
    wanted = configured_repeats(run)
    done = int((run.evaluations["cell"] == cell).sum())
    if done:
        return None if done >= wanted else f"{done} of {wanted} repeats so far"
    trials = run.trials[run.trials["cell"] == cell]
    states = trials["state"].value_counts().to_dict()
    total = max(int(run.config.get("search", {}).get("trials", 0)), len(trials))
    finished = len(trials) - states.get("RUNNING", 0)
    if len(trials) and states.get("FAIL", 0) == len(trials):
        return f"all {len(trials)} trials failed: {common_error(trials)}"
    if finished < total and run.out_of_time:
        return f"search.max_seconds was over: {finished} of {total} trials begun"
    if finished < total:
        return f"search not finished: {finished} of {total} trials"
    if not states.get("COMPLETE"):
        failed, pruned = states.get("FAIL", 0), states.get("PRUNED", 0)
        return f"no trial was completed: {failed} failed, {pruned} pruned"
    return "not evaluated yet" if run.state == "RUNNING" else "not evaluated"


def common_error(trials: pd.DataFrame) -> str:
    """The first line of the most frequent error."""
    errors = trials["error"].map(first_line)
    named = errors[errors != ""]
    return "no error was recorded" if named.empty else str(named.mode().iloc[0])


def validation_note(run: Run) -> str:
    """How many validation labels were used in addition to the counted labels."""
    count = run.counts.get("valid")
    number = "the" if count is None else f"{count:,}"
    return f"plus {number} validation labels used for choosing"


def caption(run: Run) -> str:
    """What the numbers of Table I are, in one paragraph."""
    parts = [
        f"Test set: mean over repeats with 95 % intervals, macro over {len(run.species)} species.",
        f"Labels: labelled training images, {validation_note(run)} (lr, epoch).",
        "Epochs: trained in the search + in the final evaluation.",
        "Intervals: crossed bootstrap over repeats and test images, conditional on the chosen lr"
        + (" and what else was searched" if run.searches_more else "")
        + ("." if per_repeat(run) or not run.pretrained else " and on the shared encoders."),
    ]
    return " ".join(parts)


def per_repeat(run: Run) -> bool:
    """Whether each repeat has its own pretrained encoder, as `study.config` decides it."""
    recipes = [run.recipe(variant) for variant in run.pretrained_as]
    return all(
        recipe.get("per_repeat", True) or recipe.get("pretrain_on") == "unlabelled"
        for recipe in recipes
    )


def shared_encoder(run: Run) -> str:
    """What repeats that share their pretrained encoder leave open, as a sentence; else nothing."""
    if per_repeat(run) or not run.pretrained_as:
        return ""
    return (
        "Repeats share one pretrained encoder (encoder.per_repeat is false): all that is said of "
        "pretrained variants is conditional on that encoder, and another may do better or worse."
    )


def costs(table: pd.DataFrame) -> pd.DataFrame:
    """What each cell cost: `SPENT`."""
    return table[["variant", "label_ratio", *SPENT]]


def to_csv(frame: pd.DataFrame) -> str:
    return str(frame.to_csv(index=False))


def to_markdown(frame: pd.DataFrame, text: str) -> str:
    """Table I as Markdown, with its caption below it."""
    head, rows = readable(frame)
    lines = [head, ["---"] * 2 + ["---:"] * (len(head) - 3) + ["---"], *rows]
    table = [" | ".join(_escape_markdown(each) for each in line) for line in lines]
    return "\n".join(f"| {line} |" for line in table) + f"\n\n{text}\n"


def to_latex(frame: pd.DataFrame, text: str) -> str:
    """Table I as a LaTeX table, which needs the package booktabs."""
    head, rows = readable(frame)
    body = [" & ".join(_escape_latex(each) for each in row) + r" \\" for row in rows]
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table*}",
        rf"\caption{{{_escape_latex(text)}}}",
        r"\centering\small",
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 2)}l}}",
        r"\toprule",
        " & ".join(_escape_latex(each) for each in head) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def readable(frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of Table I as text: ``0.512 [0.471, 0.553]``."""
    head = ["Variant", "Labelled", "Labels", "n", "Repeats", "lr"]
    head += ["Epochs", *HEADINGS.values(), "Note"]
    rows = []
    for row in frame.to_dict("records"):
        chosen = besides(row)
        name = f"{row['variant']} ({chosen})" if chosen else str(row["variant"])
        cells = [name, f"{row['label_ratio']:g} %"]
        cells += [NONE if pd.isna(row[k]) else f"{row[k]}" for k in ("labels", "n", "repeats")]
        cells.append(NONE if pd.isna(row["lr"]) else f"{row['lr']:.1e}")
        cells.append(f"{row['search_epochs']:,} + {row['final_epochs']:,}")
        cells += [with_interval(row, f"test_{name}") for name in METRICS]
        rows.append([*cells, "" if pd.isna(row["reason"]) else str(row["reason"])])
    return head, rows


def _escape_markdown(text: str) -> str:
    for character in r"\`*_<|":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}
_LATEX |= {NONE: "--", "−": "$-$", "<": r"\textless{}", ">": r"\textgreater{}"}


def _escape_latex(text: str) -> str:
    return " ".join("".join(_LATEX.get(character, character) for character in text).split())
