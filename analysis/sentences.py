"""The verdicts on a contrast in words: stated for the answer, or as the reply to a question."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from analysis.power import ONE_REPEAT, what_would_decide
from analysis.verdicts import AT_CHANCE, HIGHER, LOWER, NOT_DECIDED, SURE, UNDER_2_POINTS
from analysis.wording import in_points, largest, p_sentence, percents

_STATEMENTS = {
    HIGHER: "raised test accuracy at {} labels",
    LOWER: "lowered test accuracy at {} labels",
    UNDER_2_POINTS: "changed test accuracy by less than 2 points, if at all, at {} labels",
    AT_CHANCE: "cannot be judged at {} labels, where neither is surely better than chance",
    NOT_DECIDED: "is not decided by this data at {}",
}
_REPLIES = {
    HIGHER: "Yes: {}.",
    LOWER: "No, it lowers accuracy: {}.",
    UNDER_2_POINTS: "At {} any effect is under 2 points.",
    AT_CHANCE: "At {} neither is surely better than chance, so that it cannot be judged.",
}

_MORE_LABELS = {
    HIGHER: "More labels still help: {}.",
    LOWER: "More labels do not help: {}.",
    UNDER_2_POINTS: "More labels hardly help: {}, under 2 points either way.",
    AT_CHANCE: "Whether more labels help cannot be judged: {} is not surely better than chance.",
    NOT_DECIDED: "Whether more labels still help is not decided by this data: {}.",
}


def more_labels(row: pd.Series) -> str:
    """``More labels still help: from 600 to 1,200 B0 gains 5.1 points [95 % interval …].``

    Args:
        row: of `analysis.labels_needed.gains`.
    """
    if row["verdict"] == AT_CHANCE:
        return _MORE_LABELS[AT_CHANCE].format(row["variant"])
    verb = "loses" if row["difference"] < 0 else "gains"
    change = (
        f"from {row['labels']:,} to {row['to_labels']:,} {row['variant']} {verb} "
        f"{in_points(row, sign=False)}"
    )
    if row["verdict"] == NOT_DECIDED:
        alone = _decided_alone(row, "variants")
        change += f": {alone}" if alone else ""
    sentence = _MORE_LABELS[row["verdict"]].format(change)
    return f"{sentence} {ONE_REPEAT}" if row["repeats"] < 2 else sentence


def statement(rows: pd.DataFrame, subject: str, power: pd.DataFrame | None = None) -> str:
    """``SUBJECT raised test accuracy at 10 % labels, by 3.0 points; it lowered …``.

    Args:
        rows: of `analysis.contrasts`, the same contrast at each ratio.
        power: what `analysis.power` gave; with it, what would decide an open contrast is said.
    """
    if rows.empty:
        return f"{subject} is not decided by this data: no ratio has both results."
    if set(rows["verdict"]) == {NOT_DECIDED}:
        needed = "" if power is None else what_would_decide(power, largest(rows)).rstrip(".")
        end = f"; {needed[0].lower()}{needed[1:]}." if needed else "."
        return f"{subject}: its effect on test accuracy is {_not_decided(rows)}{end}"
    parts = [
        _STATEMENTS[verdict].format(percents(own["label_ratio"])) + _most(own, verdict)
        for verdict, own in _by_verdict(rows)
    ]
    return f"{subject} {'; it '.join(parts)}."


def reply(rows: pd.DataFrame, power: pd.DataFrame) -> str:
    """``Yes: at 10 % labels by 3.0 points. Not decided by this data at 25 % labels; …``.

    Args:
        rows: of `analysis.contrasts`, the same contrast at each ratio.
        power: what `analysis.power` gave, which says what would decide it.
    """
    parts = []
    for verdict, own in _by_verdict(rows):
        if verdict == NOT_DECIDED:
            open_still = _not_decided(own)
            parts.append(f"{open_still[0].upper()}{open_still[1:]}.")
            parts.append(what_would_decide(power, largest(own)))
        elif verdict in (HIGHER, LOWER):
            each = [
                f"at {row['label_ratio']:g} % labels by {in_points(row, sign=False)}"
                for row in own.to_dict("records")
            ]
            parts.append(_REPLIES[verdict].format(", ".join(each)))
        else:
            parts.append(_REPLIES[verdict].format(percents(own["label_ratio"])))
    return " ".join(parts).rstrip()


def _by_verdict(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    for verdict in _STATEMENTS:
        own = rows[rows["verdict"] == verdict]
        if len(own):
            yield verdict, own


def _most(rows: pd.DataFrame, verdict: str) -> str:
    """By how much accuracy rose or fell, as the end of a clause."""
    if verdict not in (HIGHER, LOWER):
        return ""
    most = largest(rows)
    extent = "by" if len(rows) == 1 else f"most at {most['label_ratio']:g} %, by"
    return f", {extent} {in_points(most, sign=False)}"


def _not_decided(rows: pd.DataFrame) -> str:
    """``not decided by this data at 10 % labels; the difference is +3.0 points``."""
    widest = largest(rows)
    which, where = "", ""
    if len(rows) > 1:
        which, where = "largest ", f", at {widest['label_ratio']:g} %"
    alone = _decided_alone(widest)
    return (
        f"not decided by this data at {percents(rows['label_ratio'])} labels; the {which}"
        f"difference is {in_points(widest)}{where}{f': {alone}' if alone else ''}"
    )


def _decided_alone(row: pd.Series, adjusted: str = "differences") -> str:
    """Whether an open difference would be decided if it were the only one; else nothing.

    With one repeat there is no p-value.

    Args:
        adjusted: what it is adjusted for.
    """
    if not row["p"] < SURE:
        return ""
    return (
        f"alone it would count ({p_sentence(row['p'])}), among all {adjusted} it does not "
        f"({p_sentence(row['p_holm'])} after Holm)"
    )
