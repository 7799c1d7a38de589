"""Numbers in words, as sentences, tables and the terminal have them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd  # slow to import, and a command's one line needs none


def percents(ratios: Sequence[int] | pd.Series) -> str:
    """``10, 25 and 50 %``."""
    return f"{listed([f'{ratio:g}' for ratio in sorted(ratios)])} %"


def counted(number: int, thing: str) -> str:
    """``1 repeat``, ``1,200 repeats``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def minus(text: str) -> str:
    """Hyphens before a digit as minus signs; what is shown as 0 has no sign."""
    text = re.sub(r"(?<![\w.])[+-](0(?:\.0+)?)(?!\d|\.\d)", r"\1", text)
    return re.sub(r"-(?=[\d.])", "−", text)


def p_text(p_value: float) -> str:
    """``0.012``, or ``< 0.001`` where it is smaller."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def p_sentence(p_value: float) -> str:
    """``p = 0.012``, or ``p < 0.001``."""
    return f"p {'' if p_value < 0.001 else '= '}{p_text(p_value)}"


def spaced(contrast: str) -> str:
    """``B2 − B0`` of ``B2−B0``, as sentences have it."""
    return contrast.replace("−", " − ")


def unbroken(text: str) -> str:
    """Without a line break between a number and its unit, or around a minus between names."""
    text = text.replace(" %", "\xa0%").replace(" − ", "\xa0−\xa0")
    return re.sub(r"(?<=\d) (?=points?\b)", "\xa0", text)


def in_points(row: Any, unsigned: bool = False) -> str:
    """A difference with its interval.

    Args:
        unsigned: the words before it say which way it goes.
    """
    ends = [100 * row[name] for name in ("difference", "low", "high")]
    if not unsigned:
        value, low, high = (f"{end:+.1f}" for end in ends)
    else:
        sign = -1.0 if ends[0] < 0 else 1.0
        value, *rest = (sign * end for end in ends)
        value, (low, high) = f"{value:.1f}", (f"{end:.1f}" for end in sorted(rest))
    return minus(f"{value} points [95 % interval {low} to {high}]")


def listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def rounded_up(number: int) -> str:
    """Of 100 and more two digits: ``17``, ``about 18,000`` of 17,451."""
    if number < 100:
        return f"{number}"
    unit = 10 ** (len(str(number)) - 2)
    return f"about {-(-number // unit) * unit:,}"


def largest(rows: pd.DataFrame) -> pd.Series:
    """The row with the largest difference, whichever its sign."""
    return rows.iloc[int(rows["difference"].abs().argmax())]
