"""The questions on noise, answered: are encoders that learned to remove it more robust to it?

What decides is how much accuracy noise costs (`analysis.robustness`), not the accuracy in noise,
where a better classifier would win whatever its encoder. A classifier near chance has little to
lose, so the text also says which is right more often in noise, and one that is no better than
chance in noise is not called the more robust.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from analysis.contrasts import sides
from analysis.hypotheses import COLUMNS, NO_RESULT, NOT_ASKED
from analysis.load import Run
from analysis.power import ONE_REPEAT
from analysis.reconstructions import DENOISING
from analysis.verdicts import AT_CHANCE, HIGHER, LOWER, NOT_DECIDED, UNDER_2_POINTS, overall
from analysis.wording import in_points, largest, unbroken

_OTHERS = {"plain": "plainly pretrained ones", "none": "no pretraining"}


def noise_questions(run: Run, differences: pd.DataFrame) -> pd.DataFrame:
    """Rows as those of `analysis.hypotheses`, for each objective that removes noise.

    Args:
        differences: what `differences_in_noise` gave.
    """
    columns = [*differences, "objective", "against", "one", "other"]
    oriented = pd.DataFrame(_denoising_first(run, differences), columns=columns)
    rows = []
    for objective in sorted(set(oriented["objective"])) or DENOISING[:1]:
        for against, others in _OTHERS.items():
            same = (oriented["objective"] == objective) & (oriented["against"] == against)
            changes, accuracies = (
                oriented[same & (oriented["of"] == kind)] for kind in ("change", "acc")
            )
            name, kind = f"noise: {objective}−{against}", objective.replace("_", " ")
            question = f"Are {kind} encoders more robust to noise than {others}?"
            if len(changes):
                text = _text(changes, accuracies)
                rows.append((name, question, overall(changes["verdict"]), text))
            elif against == "plain":
                rows.append((name, question, NOT_ASKED, _not_asked(run)))
    return pd.DataFrame(rows, columns=COLUMNS)


def _not_asked(run: Run) -> str:
    if not any(run.config.get("evaluation", {}).get("noise") or ()):
        return "The study does not test in noise (evaluation.noise)."
    if not any(is_denoising(run, variant) for variant in run.variants):
        return "The study has no denoising encoder."
    return NO_RESULT


def is_denoising(run: Run, variant: str) -> bool:
    """Whether a variant starts from an encoder that learned to remove noise."""
    return variant in run.pretrained and _objective(run, variant) in DENOISING


def _objective(run: Run, variant: str) -> str:
    return str(run.recipe(variant).get("objective"))


def _denoising_first(run: Run, differences: pd.DataFrame) -> Iterator[dict[Any, Any]]:
    """The differences between a denoising encoder and another or none, turned to that order."""
    for row in differences[~differences["descriptive"]].to_dict("records"):
        one, other = sides(row["contrast"])
        if is_denoising(run, one) == is_denoising(run, other):
            continue
        if is_denoising(run, other):
            one, other, row = other, one, _turned(row)
        against = "plain" if other in run.pretrained else "none"
        added = {"objective": _objective(run, one), "against": against}
        yield row | added | {"one": one, "other": other}


def _turned(row: dict[Any, Any]) -> dict[Any, Any]:
    ends = {"difference": -row["difference"], "low": -row["high"], "high": -row["low"]}
    turned = {HIGHER: LOWER, LOWER: HIGHER}
    return row | ends | {"verdict": turned.get(row["verdict"], row["verdict"])}


def _text(changes: pd.DataFrame, accuracies: pd.DataFrame) -> str:
    decided = [*_decided(changes, HIGHER, "Yes", "loses less accuracy than")]
    decided += _decided(changes, LOWER, "No", "loses more accuracy than")
    parts, judged = [*decided], changes[changes["verdict"] != AT_CHANCE]
    if len(judged) < len(changes):
        parts.append(_at_chance(len(changes) - len(judged), len(changes)))
    if len(judged) and not decided:
        parts.append(_open(judged))
    elif NOT_DECIDED in set(judged["verdict"]):
        parts.append("The other comparisons are not decided by this data.")
    parts += _decided(accuracies, HIGHER, "In noise itself", "is right more often than")
    parts += _decided(accuracies, LOWER, "In noise itself", "is right less often than")
    return unbroken(" ".join(parts))


def _decided(rows: pd.DataFrame, verdict: str, start: str, does: str) -> Iterator[str]:
    """A sentence on the pairs of variants with that verdict, if there are any."""
    found = []
    for (one, other), part in rows.groupby(["one", "other"], sort=False):
        chosen = part[part["verdict"] == verdict]
        if len(chosen):
            most = largest(chosen)
            found.append(
                f"{one} {does} {other} in {len(chosen)} of {len(part)} "
                f"comparisons, most {_where(most)}: {in_points(most)}"
            )
    if found:
        yield f"{start}: {'; '.join(found)}."


def _at_chance(count: int, total: int) -> str:
    return (
        f"In {count} of {total} comparisons it cannot be judged: what loses less there, or both, "
        "is not surely better than chance in noise, and had no more to lose."
    )


def _open(changes: pd.DataFrame) -> str:
    """A sentence on comparisons of which none is decided."""
    most = largest(changes)
    if (changes["verdict"] == UNDER_2_POINTS).all():
        return "Where it can be judged, any difference is under 2 points."
    return (
        f"Not decided by this data; the largest difference: {_where(most)} noise changes the "
        f"accuracy of {most['one']} by {in_points(most)} compared with that of {most['other']}."
        + (f" {ONE_REPEAT}" if most["repeats"] < 2 else "")
    )


def _where(row: Any) -> str:
    return f"at {row['label_ratio']:g} % labels with {100 * row['noise']:g} % noisy pixels"
