"""How numbers, names and short texts are written in sentences, tables and on the terminal."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import pandas as pd  # slow to import, and not needed at run time

Row: TypeAlias = "Mapping[Any, Any] | pd.Series"
NONE = "–"
"""What is shown in place of a missing value."""


_METRICS = {"acc": "accuracy", "f1": "macro F1", "precision": "macro precision"}
_METRICS |= {"recall": "macro recall", "loss": "loss"}


def metric_name(metric: str) -> str:
    """``macro F1`` for ``f1``, and for ``val_f1``."""
    return _METRICS[metric.removeprefix("val_")]


def percents(ratios: Sequence[int] | pd.Series) -> str:
    """``10, 25 and 50 %``."""
    return f"{listed([f'{ratio:g}' for ratio in sorted(ratios)])} %"


def counted(number: int, thing: str) -> str:
    """``1 repeat``, ``1,200 repeats``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def minus(text: str) -> str:
    """With minus signs for hyphens before a digit, and without the sign of a number shown as 0."""
    text = re.sub(r"(?<![\w.])[+-](0(?:\.0+)?)(?!\d|\.\d)", r"\1", text)
    return re.sub(r"-(?=[\d.])", "−", text)


def p_text(p_value: float) -> str:
    """``0.012``, or ``< 0.001`` if it is smaller."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def p_sentence(p_value: float) -> str:
    """``p = 0.012``, or ``p < 0.001``."""
    return f"p {'' if p_value < 0.001 else '= '}{p_text(p_value)}"


def besides(row: Row) -> str:
    """What the search chose beside lr: ``masked, augment strong, weight_decay 0.0032``, or ``""``.

    Args:
        row: of trials, evaluations or Table I.
    """
    recipe, settings = row.get("recipe"), row.get("settings")
    parts = [recipe] if isinstance(recipe, str) else []
    if isinstance(settings, str):
        for key, value in json.loads(settings).items():
            text = f"{value:.2g}" if isinstance(value, float) else str(value).lower()
            parts.append(f"{key.split('.')[-1]} {text}")
    return ", ".join(parts)


def spaced(contrast: str) -> str:
    """``B2 − B0`` for ``B2−B0``."""
    return contrast.replace("−", " − ")


def unbroken(text: str) -> str:
    """With no line break between a number and its unit, or around a minus between names."""
    text = text.replace(" %", "\xa0%").replace(" − ", "\xa0−\xa0")
    return re.sub(r"(?<=\d) (?=points?\b)", "\xa0", text)


def interval(row: Row, name: str) -> tuple[float, float, float]:
    """A value of a row and the ends of its interval: ``low`` and ``high`` for ``difference``,
    ``NAME_low`` and ``NAME_high`` for any other name.
    """
    low, high = ("low", "high") if name == "difference" else (f"{name}_low", f"{name}_high")
    return row[name], row[low], row[high]


def unsigned(value: float, low: float, high: float) -> tuple[float, float, float]:
    """The size of a difference with its interval, for sentences that say which way it goes."""
    return (-value, -high, -low) if value < 0 else (value, low, high)


def with_interval(row: Row, name: str, form: str = ".3f", scale: float = 1, unit: str = "") -> str:
    """``0.512 [0.471, 0.553]``, ``51.2 % [47.1, 55.3]``; a dash if there is no value.

    Args:
        form: of each number, as for `format`.
        scale: what each number is multiplied by.
        unit: what follows the value.
    """
    if math.isnan(row[name]):
        return NONE
    value, low, high = (format(scale * each, form) for each in interval(row, name))
    return minus(f"{value}{unit} [{low}, {high}]")


def in_points(row: Row, sign: bool = True) -> str:
    """A difference: ``+3.0 points [95 % interval +1.2 to +4.8]``.

    Args:
        sign: whether to show it, or only the size, if words say which way the difference goes.
    """
    ends = interval(row, "difference")
    form = "+.1f" if sign else ".1f"
    value, low, high = (format(100 * each, form) for each in (ends if sign else unsigned(*ends)))
    return minus(f"{value} points [95 % interval {low} to {high}]")


def listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def shorten(text: str, length: int = 26) -> str:
    """A text cut to that many characters; by default to what fits beside a plot."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of texts as lines for the terminal, in columns."""
    widest = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(text.ljust(wide) for text, wide in zip(row, widest, strict=True)).rstrip()
        for row in rows
    ]


def rounded_up(number: int) -> str:
    """``17``; from 100 on to two digits: ``about 18,000`` for 17,451."""
    if number < 100:
        return f"{number}"
    unit = 10 ** (len(str(number)) - 2)
    return f"about {-(-number // unit) * unit:,}"


def label_count(count: float, least: float, most: float) -> str:
    """``1,200``; what lies beyond the counts that there were is only known to be ``more than`` the
    ``most`` (inf), or the ``least`` ``or fewer`` (−inf).
    """
    if math.isinf(count):
        return minus(f"more than {most:,}" if count > 0 else f"{least:,} or fewer")
    return minus(f"{count:,.0f}")


def label_interval(row: Row, name: str, less: float = 0) -> str:
    """``120 or fewer to 450``, ``450 or more``; empty where there are no ends.

    Args:
        row: of `analysis.efficiency` or `analysis.labels_needed`.
        less: what the numbers of that name have less than numbers of labels.
    """
    _, low, high = interval(row, name)
    least, most = row["least"] - less, row["most"] - less
    if math.isnan(low):
        return ""
    first = label_count(low, least, most)
    if low == high or high <= least:
        return first
    if math.isinf(high):
        return "any number" if math.isinf(low) else f"{first} or more"
    return f"{first} to {label_count(high, least, most)}"


def largest(rows: pd.DataFrame) -> pd.Series:
    """The row with the largest difference, whatever its sign."""
    return rows.iloc[int(rows["difference"].abs().argmax())]
