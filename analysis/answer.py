"""The answer: what the results say, in a few sentences that follow from them alone.

"Not decided by this data" is an answer. `analysis.verdicts` says when a difference is decided.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.contrasts import (
    FINE_TUNING,
    PRETRAINING,
    by_recipe,
    of_other_encoders,
    with_and_without,
)
from analysis.load import Run
from analysis.sentences import more_labels, statement
from analysis.tables import shared_encoder
from analysis.variants import COMMON, cell_name, is_best, kind_of, recipe_of
from analysis.verdicts import HIGHER, LOWER
from analysis.wording import (
    besides,
    counted,
    in_points,
    label_count,
    largest,
    listed,
    metric_name,
    spaced,
    unbroken,
    with_interval,
)


def answer(
    run: Run,
    table: pd.DataFrame,
    differences: pd.DataFrame,
    needed: pd.DataFrame,
    gained: pd.DataFrame,
    power: pd.DataFrame | None = None,
) -> list[str]:
    """The answer, one sentence per element.

    Args:
        table: Table I.
        differences: what `contrasts` gave.
        needed, gained: what `analysis.labels_needed` gave.
        power: what `analysis.power.power` gave; with it, the first question, if it is open, comes
            with what would decide it (the page says so for all questions).
    """
    if table.empty or table["test_acc"].isna().all():
        return _without_test(run)
    pretraining = _pretraining(run, differences, power) + _fine_tuning(run, differences)
    pretraining += _other_encoders(differences)
    unlabelled = _unlabelled(run, differences, None if run.pretrained else power)
    first = pretraining + unlabelled if run.pretrained else unlabelled + pretraining
    known = table[table["test_acc"].notna()]
    best = best_variant(run, int(known["label_ratio"].max()))
    labels = [_levels(run, known, best), *_labels_needed(best, needed, gained)]
    parts = [*first, *labels, *_chosen_recipes(table), shared_encoder(run)]
    return [unbroken(part) for part in parts if part]


def _without_test(run: Run) -> list[str]:
    searched = run.config.get("evaluation", {}).get("repeats", 0) == 0
    why = "this study only searches (evaluation.repeats is 0)" if searched else "no cell is tested"
    sentences = [f"There is no test result: {why}."]
    if len(run.winners):
        best = run.winners.iloc[0]
        chosen = besides(best)
        others = f" ({chosen})" if chosen else ""
        score = f"{metric_name(run.metric)} {best[run.metric]:.3f}"
        sentences.append(
            f"On the validation set the best cell is {best['cell']}, with {score} at a learning "
            f"rate of {best['lr']:.1e}{others}; the trial was chosen by that value, which "
            "flatters it."
        )
    else:
        sentences.append("No trial has been completed.")
    return [*sentences, "Whether pretraining helps is not decided by this data."]


def _pretraining(run: Run, differences: pd.DataFrame, power: pd.DataFrame | None) -> list[str]:
    """One sentence; if only encoders with a recipe are fine-tuned, one for each of them."""
    recipes = by_recipe(run)
    if recipes:
        return [
            statement(_rows(differences, name), f"Pretraining ({recipe}: {spaced(name)})", power)
            for recipe, name in recipes
        ]
    missing = [each for each in ("B2", "B0") if each not in run.variants]
    if missing:
        return [
            f"Whether pretraining helps is not decided by this data: the study has no "
            f"{' and no '.join(missing)}, and pretraining's effect is B2 − B0, the same network "
            "with and without pretrained weights."
        ]
    return [statement(_rows(differences, PRETRAINING), "Pretraining (B2 − B0)", power)]


def _rows(differences: pd.DataFrame, contrast: str) -> pd.DataFrame:
    return differences[differences["contrast"] == contrast]


def _unlabelled(run: Run, differences: pd.DataFrame, power: pd.DataFrame | None) -> list[str]:
    """A sentence for each variant that sees them: against the same without them."""
    return [
        statement(
            _rows(differences, f"{one}−{other}"),
            f"Learning from the unlabelled images besides ({one} − {other})",
            power,
        )
        for one, other in with_and_without(run)
        if other in run.variants
    ]


def _fine_tuning(run: Run, differences: pd.DataFrame) -> list[str]:
    """One sentence; if only encoders with a recipe are frozen, one for each of them."""
    if {"B1", "B2"} <= set(run.variants):
        subject = "Fine-tuning the encoder instead of freezing it (B2 − B1)"
        return [statement(_rows(differences, FINE_TUNING), subject)]
    fine_tuned = [v for v in run.variants if kind_of(v) == "B2" and recipe_of(v) and not is_best(v)]
    pairs = [(variant, f"B1-{recipe_of(variant)}") for variant in fine_tuned]
    return [
        statement(_rows(differences, f"{tuned}−{frozen}"), f"Fine-tuning ({tuned} − {frozen})")
        for tuned, frozen in pairs
        if frozen in run.variants
    ] or ["Whether fine-tuning beats a frozen encoder is not asked: B1 or B2 is not in the study."]


def _other_encoders(differences: pd.DataFrame) -> list[str]:
    """How the encoders' recipes compare with the common one: one sentence, or none if there is
    only one encoder.
    """
    rows = of_other_encoders(differences)
    parts, named = [], set()
    for verdict, verb in ((HIGHER, "raised"), (LOWER, "lowered")):
        chosen = rows[rows["verdict"] == verdict]
        if len(chosen):
            most, names = largest(chosen), sorted(set(chosen["recipe"]))
            named |= set(names)
            which = f"{spaced(most['contrast'])} at {most['label_ratio']:g} %"
            parts.append(
                f"{listed(names)} {verb} test accuracy, most {which}, by "
                f"{in_points(most, sign=False)}"
            )
    others = len(set(rows["recipe"]) - named)
    if others:
        of_them = counted(others, "other encoder") if parts else counted(others, "encoder")
        parts.append(f"{of_them} {'is' if others == 1 else 'are'} not decidedly better or worse")
    return [f"Beside the common encoder: {'; '.join(parts)}."] if parts else []


def _levels(run: Run, known: pd.DataFrame, variant: str) -> str:
    most, least = known["label_ratio"].max(), known["label_ratio"].min()
    rows = known[known["variant"] == variant].set_index("label_ratio")
    text = f"With {_labels(rows.loc[most])} {variant}, by validation the best variant there, "
    accuracy = {
        ratio: with_interval(row, "test_acc", ".1f", 100, " %") for ratio, row in rows.iterrows()
    }
    text += f"classifies {accuracy[most]} of the test images correctly"
    if least != most and least in rows.index:
        text += f"; with {_labels(rows.loc[least])}, {accuracy[least]}"
    return f"{text}{_guessing(run)}."


def _labels_needed(variant: str, needed: pd.DataFrame, gained: pd.DataFrame) -> list[str]:
    """What the highest round accuracies take, and whether more labels still help."""
    own = gained[gained["variant"] == variant]
    if own.empty:
        return []
    exact = needed[(needed["variant"] == variant) & (needed["bound"] == "exact")].tail(2)
    passed = [
        f"{100 * row['acc']:.0f} % with {row['needed']:,.0f} labels{_ends(row)}"
        for row in exact.to_dict("records")
    ]
    curve = f"By its curve {variant} reaches {listed(passed)}. " if passed else ""
    return [curve + more_labels(own.iloc[0])]


def _ends(row: dict[Any, Any]) -> str:
    if pd.isna(row["needed_low"]):
        return " (by one repeat, which says nothing of other seeds)"
    low, high = (
        label_count(row[f"needed_{end}"], row["least"], row["most"]) for end in ("low", "high")
    )
    return f" [{low} to {high}]"


def _guessing(run: Run) -> str:
    """What always guessing the most frequent species would score, if clearly more than 1 / K."""
    true = run.predictions.drop_duplicates("file")["true"]
    share, species = true.value_counts(normalize=True).max(), len(run.species)
    if share * species < 1.5:
        return ""
    return f" (always naming the most frequent of the {species} species: {100 * share:.1f} %)"


def _chosen_recipes(table: pd.DataFrame) -> list[str]:
    """Which recipes the search chose, for the variants that search their encoder's recipe."""
    found = table[table["recipe"].notna()]
    sentences = []
    for variant, rows in found.groupby("variant"):
        parts = [
            f"{', '.join(f'{ratio:g} %' for ratio in sorted(own['label_ratio']))}: "
            + ("the common one (encoder)" if recipe == COMMON else str(recipe))
            for recipe, own in rows.groupby("recipe", sort=False)
        ]
        sentences.append(
            f"Of the encoders, the search chose for {variant} at {'; at '.join(parts)}."
        )
    return sentences


def _labels(row: pd.Series) -> str:
    count = "" if pd.isna(row["labels"]) else f" ({row['labels']:,} images)"
    return f"{row.name:g} % labels{count}"


def best_variant(run: Run, ratio: int) -> str:
    """The variant with the best mean validation metric in the final evaluation at a ratio."""
    rows = run.evaluations[run.evaluations["label_ratio"] == ratio]
    means = rows.groupby("variant")[run.metric].mean()
    return str(means.idxmin() if run.metric == "val_loss" else means.idxmax())


def best_cell(run: Run) -> str | None:
    """`best_variant` at the highest ratio that has a result."""
    if run.evaluations.empty:
        return None
    ratio = int(run.evaluations["label_ratio"].max())
    return cell_name(best_variant(run, ratio), ratio)
