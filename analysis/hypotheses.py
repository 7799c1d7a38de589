"""The questions of the study, answered in words that follow from the differences alone.

A question is answered ``yes`` or ``no`` where a difference is decided (`analysis.contrasts`);
``not decided`` is an answer, and comes with what would decide it (`analysis.power`).
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from analysis.contrasts import (
    AT_CHANCE,
    PROBE,
    SURE,
    Pairs,
    by_recipe,
    change_with_labels,
    not_after_holm,
    of_other_encoders,
)
from analysis.load import Run
from analysis.power import what_would_decide
from analysis.wording import in_points, largest, minus, p_sentence, percents, unbroken

COLUMNS = ["name", "question", "verdict", "text"]
PRETRAINING, FINE_TUNING, UNLABELLED = "B2−B0", "B2−B1", "C−B0"
FROZEN, PIXELS = f"{PROBE}pretrained−random", f"{PROBE}pretrained−pixels"
_QUESTIONS = {
    PRETRAINING: "Does pretraining help the fine-tuned network?",
    FROZEN: "Is a pretrained frozen encoder worth more than an untrained one, to a linear probe?",
    PIXELS: "Are a pretrained encoder's features worth more than raw pixels, to a linear probe?",
    FINE_TUNING: "Does fine-tuning the encoder beat freezing it?",
    UNLABELLED: "Does it help to train the classifier on the unlabelled images as well?",
}
_FEW = "Is pretraining worth more where labels are fewer?"

Row = tuple[str, str, str, str]


def hypotheses(
    run: Run, compared: Pairs, differences: pd.DataFrame, power: pd.DataFrame
) -> pd.DataFrame:
    """`COLUMNS`, docs/RECORDS.md: a row a question.

    Args:
        compared: what the differences are of.
        differences: what `contrasts` gave.
        power: what would decide them.
    """
    rows: list[Row] = []
    for contrast, question, recipe in _questions(run):
        if contrast == UNLABELLED and "C" not in run.variants:
            continue  # an addition to the paper's variants
        of_contrast = differences[differences["contrast"] == contrast]
        told = ("not asked", _not_asked(run, contrast))
        if len(of_contrast):
            told = overall(of_contrast), _text(of_contrast, power)
        rows.append((contrast, _of(recipe, question), *told))
        if question == _QUESTIONS[PRETRAINING]:
            few = _few_labels(compared, contrast)
            rows.append((f"{contrast}: few", _of(recipe, _FEW), *few))
    rows += _other_encoders(differences, power)
    return pd.DataFrame(rows, columns=COLUMNS)


def _questions(run: Run) -> Iterator[tuple[str, str, str]]:
    """Contrast, question and recipe: `_QUESTIONS`; where only encoders with a recipe are
    fine-tuned, those for each of them.
    """
    recipes = by_recipe(run)
    for contrast, question in _QUESTIONS.items():
        own = [(recipe, _of_recipe(contrast, recipe, name)) for recipe, name in recipes]
        own = [(recipe, name) for recipe, name in own if name]
        for recipe, name in own:
            yield name, question, recipe
        if not own:
            yield contrast, question, ""


def _of(recipe: str, question: str) -> str:
    return question.replace("?", f" ({recipe})?") if recipe else question


def _other_encoders(differences: pd.DataFrame, power: pd.DataFrame) -> Iterator[Row]:
    """Whether each recipe's encoder serves better than the common one, fine-tuned and frozen."""
    for recipe, rows in of_other_encoders(differences).groupby("recipe", sort=False):
        texts = []
        for contrast, of_contrast in rows.groupby("contrast", sort=False):
            text = _text(of_contrast, power)
            texts.append(f"{str(contrast).replace('−', ' − ')}: {text[0].lower()}{text[1:]}")
        question = f"Is the encoder {recipe} better than the common one?"
        yield f"encoder: {recipe}", question, overall(rows), unbroken(" ".join(texts))


def _of_recipe(contrast: str, recipe: str, pretraining: str) -> str:
    """The contrast's name for a recipe; empty where it is not about one."""
    names = {
        PRETRAINING: pretraining,
        FINE_TUNING: f"B2-{recipe}−B1-{recipe}",
        FROZEN: f"{PROBE}pretrained-{recipe}−random",
    }
    return names.get(contrast, "")


def _not_asked(run: Run, contrast: str) -> str:
    wanted = [] if contrast.startswith(PROBE) else contrast.split("−")
    missing = [variant for variant in wanted if variant not in run.variants]
    if missing:
        return f"The study has no {' and no '.join(missing)}."
    return "The study has no result for it: both sides must be tested at one ratio at least."


def overall(rows: pd.DataFrame) -> str:
    """``yes``, ``no``, ``mixed`` or ``not decided``, from the verdicts of differences."""
    found = set(rows["verdict"])
    if {"higher", "lower"} <= found:
        return "mixed"
    if "higher" in found:
        return "yes"
    return "no" if "lower" in found or found == {"under 2 points"} else "not decided"


def _text(rows: pd.DataFrame, power: pd.DataFrame) -> str:
    parts = []
    for verdict, phrase in (("higher", "Yes"), ("lower", "No, it lowers accuracy")):
        chosen = rows[rows["verdict"] == verdict]
        if len(chosen):
            each = [
                f"at {row['label_ratio']:g} % labels by {in_points(row, verdict == 'lower')}"
                for row in chosen.to_dict("records")
            ]
            parts.append(f"{phrase}: {', '.join(each)}.")
    small = rows[rows["verdict"] == "under 2 points"]
    if len(small):
        parts.append(f"At {percents(small['label_ratio'])} any effect is under 2 points.")
    blind = rows[rows["verdict"] == AT_CHANCE]
    if len(blind):
        at = percents(blind["label_ratio"])
        parts.append(f"At {at} neither is surely better than chance, so that it cannot be told.")
    undecided = rows[rows["verdict"] == "not decided"]
    if len(undecided):
        parts.append(_undecided(undecided, power, whole=len(undecided) == len(rows)))
    return unbroken(minus(" ".join(parts)))


def _undecided(rows: pd.DataFrame, power: pd.DataFrame, whole: bool) -> str:
    start = "Not decided by this data" + ("" if whole else f" at {percents(rows['label_ratio'])}")
    widest = largest(rows)
    which = "largest difference there" if len(rows) > 1 else "difference"
    text = f"{start}; the {which} is {in_points(widest)}, at {widest['label_ratio']:g} % labels"
    why = not_after_holm(widest)
    text += f": {why}." if why else "."
    return f"{text} {what_would_decide(power, widest)}".rstrip()


def _few_labels(compared: Pairs, contrast: str) -> tuple[str, str]:
    """Whether pretraining is worth more where labels are fewer: verdict and text."""
    found = change_with_labels(compared, contrast)
    if found is None:
        both = " and ".join(contrast.split("−"))
        return "not asked", (
            f"It takes {both} at two label ratios, one of the two surely better than chance, and "
            "two repeats."
        )
    change, p_value, few, many = found
    values = {"difference": change.value, "low": change.low, "high": change.high}
    text = (
        f"The effect at {few:g} % labels less that at {many:g} % is {in_points(values)}, "
        f"{p_sentence(p_value)} (one test, not adjusted for the others)."
    )
    if p_value >= SURE or change.low <= 0 <= change.high:
        return "not decided", unbroken(minus(f"Not decided by this data. {text}"))
    at = {key[1]: each for key, each in compared.found.items() if key[0].name == contrast}
    effect = float(at[few].value.mean())
    verdict, start = "no", "No, less."
    if change.value > 0:
        verdict, start = ("yes", "Yes.") if effect > 0 else ("no", "No, it only costs less there.")
    return verdict, unbroken(minus(f"{start} {text}"))
