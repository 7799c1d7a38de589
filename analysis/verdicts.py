"""The verdict on a difference in accuracy: which there are, and when each is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

SURE = 0.05
"""A difference is decided where its p-value, after Holm, is below this."""
SMALL = 0.02
"""The smallest interesting difference in accuracy: 2 points."""

HIGHER, LOWER = "higher", "lower"
UNDER_2_POINTS = "under 2 points"
AT_CHANCE = "at chance"
"""Two are alike, and neither is surely better than chance: they may be alike because neither
learned, which is no evidence that an effect is small."""
NOT_DECIDED = "not decided"


def verdict(row: Mapping[object, float], learned: bool = True) -> str:
    """`HIGHER`, `LOWER`, `UNDER_2_POINTS`, `AT_CHANCE` or `NOT_DECIDED`.

    Args:
        row: ``difference low high p_holm repeats``.
        learned: whether at least one side is surely better than chance.
    """
    if row["p_holm"] < SURE:
        return HIGHER if row["difference"] > 0 else LOWER
    if row["repeats"] < 2 or row["low"] <= -SMALL or row["high"] >= SMALL:
        return NOT_DECIDED
    return UNDER_2_POINTS if learned else AT_CHANCE


def overall(verdicts: Iterable[str]) -> str:
    """``yes``, ``no``, ``mixed`` or ``not decided``: whether the first of two is better."""
    found = set(verdicts)
    if {HIGHER, LOWER} <= found:
        return "mixed"
    if HIGHER in found:
        return "yes"
    return "no" if LOWER in found or found == {UNDER_2_POINTS} else NOT_DECIDED
