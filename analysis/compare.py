"""Two studies, cell by cell: what the second scored on its test images, minus what the first did.

Where both have the same test images, and the same seeds (which draw labels, weights and batches),
the difference is taken image by image and seed by seed. Otherwise each score has its own draws,
the interval is wider, and what differs by the images counts as a difference between the studies.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.contrasts import draws_needed
from analysis.load import Run
from analysis.statistics import (
    CellScores,
    Draws,
    Estimate,
    Prior,
    Spread,
    difference,
    estimate,
    holm,
    interval_columns,
    pair,
    prior_of,
    score_cells,
    spread_of,
)
from analysis.wording import (
    NONE,
    aligned,
    besides,
    counted,
    metric_name,
    p_text,
    shorten,
    with_interval,
)

COLUMNS = ["cell", "variant", "label_ratio", *interval_columns(["first", "second"])]
COLUMNS += ["difference", "low", "high", "p", "p_holm"]
COLUMNS += ["paired", "repeats", "n", "first_lr", "second_lr", "first_recipe", "second_recipe"]
COLUMNS += ["first_settings", "second_settings"]
COLUMNS += ["first_val", "second_val"]
_NOT_THE_STUDY = ("name", "resources", "tracking")  # sections that do not change results

Scored = tuple[Mapping[str, CellScores], Draws]
Both = tuple[CellScores | None, CellScores | None]


@dataclass(frozen=True)
class Comparison:
    """Two studies side by side.

    Attributes:
        first, second: their locations.
        metric: acc, f1, precision, recall or loss, on the test images.
        validation: the search's metric if both have the same, else None.
        unpaired: why the differences are not paired; None if they are.
        changed: how configuration and data differ: key to both values.
        table: `COLUMNS`, a row a cell of either: scores with 95 % intervals (where ``paired``,
            over the repeats that both have), ``difference`` of the means (second minus first) with
            ``low``, ``high``, its p-value, the same after Holm over the rows, whether it is
            ``paired``, the number of ``repeats`` that it is over (the smaller one, if unpaired),
            test images ``n`` (likewise), the chosen lr and recipe (where the cell searches it),
            and the best validation score of a COMPLETE trial. What is not there is missing.
    """

    first: str
    second: str
    metric: str
    validation: str | None
    unpaired: str | None
    changed: dict[str, tuple[object, object]]
    table: pd.DataFrame


def compare(first: Run, second: Run, metric: str = "acc") -> Comparison:
    """Compare two studies, finished or not.

    Args:
        metric: acc, f1, precision, recall or loss.

    Raises:
        InputError: a record of either is torn, or its parts contradict each other.
    """
    reason = why_unpaired(first, second)
    cells = dict.fromkeys(sorted([*first.cells, *second.cells], key=lambda c: (c[2], c[1])))
    scored = (_scored_apart if reason else _scored_together)(
        first, second, draws_needed(len(cells))
    )
    rows = [{"cell": c, "variant": v, "label_ratio": r} for c, v, r in cells]
    of_rows = [_of_cell(str(row["cell"]), scored, not reason) for row in rows]
    priors = _priors(of_rows, metric, not reason)
    for row, both in zip(rows, of_rows, strict=True):
        row |= _scores(both, scored, metric)
        row |= _difference(both, scored, metric, not reason, priors)
    validation = first.metric if first.metric == second.metric else None
    _add_search(rows, first, second, validation)
    table = pd.DataFrame(rows, columns=COLUMNS)
    known = table["p"].notna()
    table.loc[known, "p_holm"] = holm(table.loc[known, "p"].tolist())
    table[["repeats", "n"]] = table[["repeats", "n"]].astype("Int64")
    names = (str(first.location), str(second.location))
    return Comparison(*names, metric, validation, reason, changes(first, second), table)


def why_unpaired(first: Run, second: Run) -> str | None:
    """Why the two cannot be compared image by image and seed by seed; None if they can."""
    prints = [run.study["data"].get("fingerprint") for run in (first, second)]
    if not prints[0] or prints[0] != prints[1]:
        return "other images"
    if set(first.predictions["file"]) != set(second.predictions["file"]):
        return "other test images"
    seeds = [run.evaluations.set_index(["cell", "repeat"])["seed"] for run in (first, second)]
    shared = seeds[0].index.intersection(seeds[1].index)
    if not (seeds[0][shared] == seeds[1][shared]).all():
        return "other seeds"
    return None


def _scored_together(first: Run, second: Run, draws: int) -> tuple[Scored, Scored]:
    """Both on the same draws of test images."""
    runs = {"1 ": first.predictions, "2 ": second.predictions}
    parts = [frame.assign(cell=mark + frame["cell"]) for mark, frame in runs.items()]
    scores, shared = score_cells(pd.concat(parts, ignore_index=True), first.species, draws)
    of_first, of_second = (
        {name.removeprefix(mark): each for name, each in scores.items() if name.startswith(mark)}
        for mark in runs
    )
    return (of_first, shared), (of_second, shared)


def _scored_apart(first: Run, second: Run, draws: int) -> tuple[Scored, Scored]:
    """Each on draws of its own test images."""
    return (
        score_cells(first.predictions, first.species, draws),
        score_cells(second.predictions, second.species, draws),
    )


def _of_cell(cell: str, scored: tuple[Scored, Scored], same: bool) -> Both:
    """A cell's scores in the first and the second; on the repeats they share, if the seeds are the
    ``same``.
    """
    first, second = (scores.get(cell) for scores, _ in scored)
    return _on_shared_repeats(first, second) if same else (first, second)


def _on_shared_repeats(first: CellScores | None, second: CellScores | None) -> Both:
    """Both on the repeats they share, if any, so that the scores shown match their difference."""
    shared = sorted(_shared(first, second)) if first and second else []
    if not (first and second and shared):
        return first, second
    return first.on(shared), second.on(shared)


@dataclass(frozen=True)
class _Priors:
    """What the rows say together of the variance between repeats: of the paired differences, and
    of the scores of each study.
    """

    paired: Prior
    first: Prior
    second: Prior


def _priors(of_rows: list[Both], metric: str, same: bool) -> _Priors:
    whole = [(first, second) for first, second in of_rows if first and second]
    shared = [both for both in whole if same and _shared(*both)]
    return _Priors(
        prior_of(pair(second, first, metric).value for first, second in shared),
        prior_of(first.value[metric] for first, _ in whole),
        prior_of(second.value[metric] for _, second in whole),
    )


def _shared(first: CellScores, second: CellScores) -> set[int]:
    return set(first.repeats) & set(second.repeats)


def _scores(both: Both, scored: tuple[Scored, Scored], metric: str) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, scores, (_, draws) in zip(("first", "second"), both, scored, strict=True):
        if scores is not None:
            row |= estimate(scores, metric, draws).columns(name)
    return row


def _difference(
    both: Both, scored: tuple[Scored, Scored], metric: str, same: bool, priors: _Priors
) -> dict[str, Any]:
    first, second = both
    if first is None or second is None:
        return {}
    shared = _shared(first, second)
    paired = same and bool(shared)
    if paired:
        found, p_value = difference(second, first, metric, scored[0][1], priors.paired)
    else:
        draws, of_each = (scored[0][1], scored[1][1]), (priors.first, priors.second)
        found, p_value = unpaired_difference(first, second, metric, draws, of_each)
    repeats = len(shared) if paired else min(len(first.repeats), len(second.repeats))
    most = math.inf if metric == "loss" else 1.0
    found = found.clipped(-most, most)
    row = {"difference": found.value, "low": found.low, "high": found.high, "p": p_value}
    return row | {"paired": paired, "repeats": repeats, "n": min(first.images, second.images)}


def unpaired_difference(
    first: CellScores,
    second: CellScores,
    metric: str,
    draws: tuple[Draws, Draws],
    priors: tuple[Prior, Prior],
) -> tuple[Estimate, float]:
    """Second minus first, each on its own images, with the two-sided p-value, which is NaN if
    either has a single repeat.

    Args:
        draws, priors: of the first and of the second.
    """
    one, other = (
        spread_of(each, metric, own, prior)
        for each, own, prior in zip((first, second), draws, priors, strict=True)
    )
    found = difference_of_means(other, one)
    known = min(len(first.repeats), len(second.repeats)) > 1
    return found.estimate(), found.p_value() if known else math.nan


def difference_of_means(one: Spread, other: Spread) -> Spread:
    """The difference of independent means; degrees of freedom by Welch (Biometrika 34, 1947)."""
    sd = math.hypot(one.sd, other.sd)
    if sd == 0:
        return Spread(one.value - other.value, np.zeros_like(one.shape), 0.0, one.freedom)
    # Reversed: draws with the same index may come from the same seed.
    shape = (one.sd * one.shape - other.sd * other.shape[::-1]) / sd
    freedom = sd**4 / (one.sd**4 / one.freedom + other.sd**4 / other.freedom)
    return Spread(one.value - other.value, shape, sd, freedom)


def _add_search(
    rows: list[dict[str, Any]], first: Run, second: Run, validation: str | None
) -> None:
    for name, run in (("first", first), ("second", second)):
        won = run.winners
        for row in rows:
            if row["cell"] in won.index:
                for key in ("lr", "recipe", "settings"):
                    row[f"{name}_{key}"] = won.loc[row["cell"], key]
                row[f"{name}_val"] = won.loc[row["cell"], validation] if validation else np.nan


def changes(first: Run, second: Run) -> dict[str, tuple[object, object]]:
    """How configuration, data and commit differ: dotted key to both values, None for a key that
    one of them lacks.
    """
    return dict(_different(_described(first), _described(second)))


def _described(run: Run) -> dict[str, Any]:
    config = {name: part for name, part in run.config.items() if name not in _NOT_THE_STUDY}
    data = {"data fingerprint": run.study["data"].get("fingerprint")}
    return config | data | {"commit": run.study.get("commit")}


def _different(
    first: Mapping[str, Any], second: Mapping[str, Any], before: str = ""
) -> Iterator[tuple[str, tuple[object, object]]]:
    for name in dict.fromkeys([*first, *second]):
        one, other = first.get(name), second.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _different(one, other, f"{before}{name}.")
        elif one != other:
            yield before + name, (one, other)


def to_json(compared: Comparison) -> str:
    """The whole comparison as one object, its table as a list; a missing value is null."""
    names = ("first", "second", "metric", "validation", "unpaired")
    whole: dict[str, Any] = {name: getattr(compared, name) for name in names}
    whole["changed"] = {key: list(values) for key, values in compared.changed.items()}
    whole["cells"] = json.loads(compared.table.to_json(orient="records", double_precision=15))
    return json.dumps(whole, indent=1, ensure_ascii=False, default=str)


def to_csv(compared: Comparison) -> str:
    """The table, comma-separated; a missing value is empty."""
    return str(compared.table.to_csv(index=False, lineterminator="\n"))


def render(compared: Comparison) -> str:
    """The comparison for the terminal."""
    lines = [f"first   {compared.first}", f"second  {compared.second}"]
    for key, values in compared.changed.items():
        before, after = (shorten(str(value), 40) for value in values)
        lines.append(f"  {key}: {before} → {after}")
    lines += ["", f"Test {metric_name(compared.metric)}, 95 % intervals; {_about(compared)}"]
    head = ["cell", "first", "second", "difference", "p"]
    if compared.validation:
        head.append(f"validation {metric_name(compared.validation)}")
    rows = [_texts(row)[: len(head)] for row in compared.table.to_dict("records")]
    return "\n".join([*lines, "", *aligned([head, *rows])])


def _about(compared: Comparison) -> str:
    """What the differences are, and their p-values."""
    if compared.table["difference"].isna().all():
        return "no cell has a test result in both."
    cells = int(compared.table["p"].notna().sum())
    paired = "paired by test image and seed, over the repeats that both have"
    kind = f"not paired ({compared.unpaired})" if compared.unpaired else paired
    about = f"differences are second − first, {kind}."
    if not cells:
        return f"{about}\nNo p: it takes two repeats in both."
    return f"{about}\np: after Holm over {counted(cells, 'cell')}."


def _texts(row: Mapping[Any, Any]) -> list[str]:
    texts = [str(row["cell"]), *(with_interval(row, name) for name in ("first", "second"))]
    texts.append(with_interval(row, "difference", "+.3f"))
    texts.append(NONE if pd.isna(row["p_holm"]) else p_text(row["p_holm"]))
    return [*texts, " → ".join(_chosen_text(row, name) for name in ("first", "second"))]


def _chosen_text(row: Mapping[Any, Any], name: str) -> str:
    value = row[f"{name}_val"]
    text = NONE if pd.isna(value) else f"{value:.3f}"
    chosen = besides({key: row[f"{name}_{key}"] for key in ("recipe", "settings")})
    return f"{text} ({chosen})" if chosen else text
