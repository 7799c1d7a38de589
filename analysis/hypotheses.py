"""The questions of the study, and the answers that follow from the differences alone.

A question is answered ``yes`` or ``no`` where a difference is decided (`analysis.verdicts`);
``not decided`` is an answer, and comes with what would decide it (`analysis.power`).
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from analysis.contrasts import (
    FINE_TUNING,
    PRETRAINING,
    PROBE,
    Pairs,
    by_recipe,
    change_with_labels,
    of_other_encoders,
    sides,
    with_and_without,
)
from analysis.load import Run
from analysis.sentences import reply
from analysis.verdicts import NOT_DECIDED, SURE, overall
from analysis.wording import in_points, p_sentence, spaced, unbroken

COLUMNS = ["name", "question", "verdict", "text"]
NOT_ASKED = "not asked"
NO_RESULT = "The study has no result for it: both sides must be tested at one ratio at least."
FROZEN, PIXELS = f"{PROBE}pretrained−random", f"{PROBE}pretrained−pixels"
_QUESTIONS = {
    PRETRAINING: "Does pretraining help the fine-tuned network?",
    FROZEN: "Is a pretrained frozen encoder worth more than an untrained one, to a linear probe?",
    PIXELS: "Are a pretrained encoder's features worth more than raw pixels, to a linear probe?",
    FINE_TUNING: "Does fine-tuning the encoder beat freezing it?",
}
_UNLABELLED = "Does it help to train the classifier on the unlabelled images as well?"
_FEW = "Is pretraining worth more where labels are fewer?"

Row = tuple[str, str, str, str]


def hypotheses(
    run: Run, compared: Pairs, differences: pd.DataFrame, power: pd.DataFrame
) -> pd.DataFrame:
    """`COLUMNS`, see docs/RECORDS.md: one row per question.

    Args:
        compared: what `analysis.contrasts.pairs` gave.
        differences: what `contrasts` gave for it.
        power: what `analysis.power.power` gave for both.
    """
    rows: list[Row] = []
    for contrast, question, recipe in _questions(run):
        of_contrast = differences[differences["contrast"] == contrast]
        found = (NOT_ASKED, _not_asked(run, contrast))
        if len(of_contrast):
            found = overall(of_contrast["verdict"]), unbroken(reply(of_contrast, power))
        rows.append((contrast, _about(question, recipe), *found))
        if question == _QUESTIONS[PRETRAINING]:
            few = _few_labels(compared, contrast)
            rows.append((f"{contrast}: few", _about(_FEW, recipe), *few))
    rows += _other_encoders(differences, power)
    return pd.DataFrame(rows, columns=COLUMNS)


def _questions(run: Run) -> Iterator[tuple[str, str, str]]:
    """Contrast, question and recipe of each of `_QUESTIONS`; once for each recipe, if only
    encoders with a recipe are fine-tuned; and what they are about, if not of the plain ones.
    """
    recipes = by_recipe(run)
    for contrast, question in _QUESTIONS.items():
        own = [(recipe, _of_recipe(contrast, recipe, name)) for recipe, name in recipes]
        own = [(recipe, name) for recipe, name in own if name]
        for recipe, name in own:
            yield name, question, recipe
        if not own:
            yield contrast, question, ""
    for one, other in with_and_without(run):  # an addition to the paper's variants
        yield f"{one}−{other}", _UNLABELLED, "" if one == "C" else one


def _about(question: str, recipe: str) -> str:
    """The question, with the recipe that it is about, if any."""
    return question.replace("?", f" ({recipe})?") if recipe else question


def _other_encoders(differences: pd.DataFrame, power: pd.DataFrame) -> Iterator[Row]:
    """Whether the encoder of each recipe is better than the common one, fine-tuned and frozen."""
    for recipe, rows in of_other_encoders(differences).groupby("recipe", sort=False):
        texts = []
        for contrast, of_contrast in rows.groupby("contrast", sort=False):
            text = reply(of_contrast, power)
            texts.append(f"{spaced(str(contrast))}: {text[0].lower()}{text[1:]}")
        question = f"Is the encoder {recipe} better than the common one?"
        yield f"encoder: {recipe}", question, overall(rows["verdict"]), unbroken(" ".join(texts))


def _of_recipe(contrast: str, recipe: str, pretraining: str) -> str:
    """The name of the contrast for a recipe; empty if it is not about encoders of a recipe."""
    names = {
        PRETRAINING: pretraining,
        FINE_TUNING: f"B2-{recipe}−B1-{recipe}",
        FROZEN: f"{PROBE}pretrained-{recipe}−random",
    }
    return names.get(contrast, "")


def _not_asked(run: Run, contrast: str) -> str:
    wanted = [] if contrast.startswith(PROBE) else sides(contrast)
    missing = [variant for variant in wanted if variant not in run.variants]
    if missing:
        return f"The study has no {' and no '.join(missing)}."
    return NO_RESULT


def _few_labels(compared: Pairs, contrast: str) -> tuple[str, str]:
    """Whether pretraining is worth more where labels are fewer: verdict and text."""
    found = change_with_labels(compared, contrast)
    if found is None:
        both = " and ".join(sides(contrast))
        return NOT_ASKED, (
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
        return NOT_DECIDED, unbroken(f"Not decided by this data. {text}")
    at = {key[1]: each for key, each in compared.found.items() if key[0].name == contrast}
    effect = float(at[few].value.mean())
    verdict, start = "no", "No, less."
    if change.value > 0:
        verdict, start = ("yes", "Yes.") if effect > 0 else ("no", "No, it only costs less there.")
    return verdict, unbroken(f"{start} {text}")
