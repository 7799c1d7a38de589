"""What is compared with what, and how sure the differences are.

A contrast is a pair of variants, or of linear probes of two kinds of features, at the same label
ratio. P-values are adjusted by Holm over all ratios and contrasts; one repeat has no p-value, and
decides nothing. `analysis.verdicts` says what follows from them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.load import Run
from analysis.statistics import (
    DRAWS,
    CellScores,
    Draws,
    Estimate,
    Paired,
    Prior,
    above_chance,
    compare,
    difference_columns,
    holm,
    pair,
    prior_of,
)
from analysis.variants import (
    PRETRAINED,
    cell_name,
    is_best,
    is_semi,
    kind_of,
    recipe_of,
    variant_of,
)
from analysis.verdicts import verdict

MOST_ROWS = 40
"""For this many differences that are adjusted together, `DRAWS` draws are enough."""
PROBE = "probe: "
"""The prefix of the names of contrasts between probes."""
PRETRAINING, FINE_TUNING = "B2−B0", "B2−B1"
"""The names of the contrasts that the answer is about."""


@dataclass(frozen=True)
class Contrast:
    """One minus other.

    Attributes:
        one, other: variants, or names of probed features.
        effect: what the difference is due to.
        descriptive: they differ in more than one thing.
        probe: of linear probes, not of networks.
    """

    one: str
    other: str
    effect: str
    descriptive: bool = False
    probe: bool = False

    @property
    def name(self) -> str:
        return f"{PROBE if self.probe else ''}{self.one}−{self.other}"

    @property
    def columns(self) -> dict[str, object]:
        """What every table of differences has of it."""
        return {"contrast": self.name, "effect": self.effect, "descriptive": self.descriptive}


def sides(contrast: str) -> tuple[str, str]:
    """The two variants, or features, of a contrast's name."""
    one, _, other = contrast.removeprefix(PROBE).partition("−")
    return one, other


CONTRASTS = (
    Contrast("B2", "B0", "pretraining"),
    Contrast("B2", "B1", "fine-tuning"),
    Contrast("B2", "A", "the whole of B2 against A", descriptive=True),
    Contrast("C", "B0", "the unlabelled images in the classifier's training"),
    Contrast("C2", "B2", "the unlabelled images in the classifier's training"),
    Contrast("C2", "C", "pretraining, beside the unlabelled images"),
    Contrast("C2", "B0", "pretraining and the unlabelled images", descriptive=True),
    Contrast("pretrained", "random", "pretraining a frozen encoder", probe=True),
    Contrast("pretrained", "pixels", "a pretrained encoder against raw pixels", probe=True),
)


def asked(scores: Iterable[str], other_networks: Collection[str] = ()) -> list[Contrast]:
    """What is compared in a study: `CONTRASTS`, and the same for each encoder's recipe.

    Args:
        scores: the cells that have a result, as ``B2-denoising@10``.
        other_networks: recipes with another network than the common one, from which they then
            differ in more than pretraining.
    """
    found = list(CONTRASTS)
    names = {variant_of(cell) for cell in scores}
    for name in sorted(names):
        base, recipe = kind_of(name), recipe_of(name)
        if recipe:
            found += _of_recipe(name, base, recipe, recipe in other_networks or is_best(name))
        if recipe and base == "B2" and not {"B1", "B2"} <= names:  # else asked of the common one
            found.append(Contrast(name, f"B1-{recipe}", f"fine-tuning ({recipe})"))
    return found


def _of_recipe(name: str, base: str, recipe: str, other: bool) -> list[Contrast]:
    common = f"the encoder {recipe} instead of the common one"
    alone = "another network, pretrained" if other else "pretraining"
    found = []
    if base in PRETRAINED:
        found.append(Contrast(name, base, common))
    if base == "B2":
        found.append(Contrast(name, f"B0-{recipe}", f"pretraining ({recipe})"))
        found.append(Contrast(name, "B0", f"{alone} ({recipe})", descriptive=other))
    if base == "C":
        found.append(Contrast(name, f"B0-{recipe}", "the unlabelled images in training"))
    if base == "C2":
        both = f"{alone} ({recipe}) and the unlabelled images"
        found.append(Contrast(name, f"B2-{recipe}", "the unlabelled images in training"))
        found.append(Contrast(name, "C", f"{alone} ({recipe}), beside them", descriptive=other))
        found.append(Contrast(name, "B0", both, descriptive=True))
    if base == "pretrained":
        effect = f"{alone} ({recipe}), frozen"
        found.append(Contrast(name, base, common, probe=True))
        found.append(Contrast(name, "random", effect, descriptive=other, probe=True))
    return found


def by_recipe(run: Run) -> list[tuple[str, str]]:
    """(recipe, contrast) for the effect of pretraining, if only encoders with a recipe are
    fine-tuned.

    A recipe is compared with its own untrained network, or with B0 if that is the same.
    """
    if "B2" in run.variants:
        return []
    found = []
    for variant in run.variants:
        base, recipe = kind_of(variant), recipe_of(variant)
        if base != "B2" or is_best(variant):
            continue
        if f"B0-{recipe}" in run.variants:
            found.append((recipe, f"{variant}−B0-{recipe}"))
        elif "B0" in run.variants and recipe not in run.other_networks:
            found.append((recipe, f"{variant}−B0"))
    return found


def with_and_without(run: Run) -> list[tuple[str, str]]:
    """Each variant that is trained on the unlabelled images as well, and the same without them."""
    without = {"C": "B0", "C2": "B2"}
    semi = [(variant, kind_of(variant)) for variant in run.variants if is_semi(variant)]
    return [(variant, without[kind] + variant.removeprefix(kind)) for variant, kind in semi]


def of_other_encoders(differences: pd.DataFrame) -> pd.DataFrame:
    """The rows that compare an encoder's recipe with the common one in the same variant, with the
    ``recipe`` as a column.
    """
    names = [sides(contrast) for contrast in differences["contrast"]]
    own = [other in PRETRAINED and kind_of(one) == other != one for one, other in names]
    recipes = [recipe_of(one) for (one, _), is_own in zip(names, own, strict=True) if is_own]
    return differences.loc[np.array(own, dtype=bool)].assign(recipe=recipes)


COLUMNS = ["contrast", "effect", "descriptive", "label_ratio", "metric", "difference", "low"]
COLUMNS += ["high", "p", "p_holm", "verdict", "repeats", "n"]


def draws_needed(rows: int) -> int:
    """How many draws let the smallest p-value, 1 / (1 + draws), be decided even after Holm.

    Args:
        rows: differences that are adjusted together.
    """
    return DRAWS * max(1, -(-rows // MOST_ROWS))


@dataclass(frozen=True)
class Pairs:
    """All that is compared, by contrast and ratio, on the same draws.

    Attributes:
        learned: those with at least one side surely better than chance.
    """

    found: dict[tuple[Contrast, int], Paired]
    draws: Draws
    learned: frozenset[tuple[Contrast, int]]
    metric: str = "acc"

    def priors(self) -> dict[bool, Prior]:
        """What the differences say together of the variance between repeats: those of networks
        (False) and, apart, those of linear probes (True), in which seeds matter far less.
        """
        return {
            probe: prior_of(
                each.value for (contrast, _), each in self.found.items() if contrast.probe == probe
            )
            for probe in (False, True)
        }


def pairs(
    scores: Mapping[str, CellScores],
    draws: Draws,
    ratios: Sequence[int],
    metric: str = "acc",
    other_networks: Collection[str] = (),
) -> Pairs:
    """Pair the cells of every contrast, wherever both have a result and share a repeat.

    Args:
        scores: by ``VARIANT@RATIO``, and by ``FEATURES@RATIO`` of the probes.
        ratios: label ratios, percent.
        other_networks: as for `asked`.
    """
    found, learned = {}, set()
    able = {cell for cell, each in scores.items() if above_chance(each, draws)}
    for contrast in asked(scores, other_networks):
        for ratio in sorted(ratios):
            names = [cell_name(each, ratio) for each in (contrast.one, contrast.other)]
            one, other = map(scores.get, names)
            if one and other and set(one.repeats) & set(other.repeats):
                found[contrast, ratio] = pair(one, other, metric)
            if able & set(names):
                learned.add((contrast, ratio))
    return Pairs(found, draws, frozenset(learned), metric)


def contrasts(compared: Pairs) -> pd.DataFrame:
    """Every difference with interval, p-values and verdict: `COLUMNS`, see docs/RECORDS.md."""
    frame = pd.DataFrame(_rows(compared), columns=COLUMNS)
    frame["p_holm"] = holm(frame["p"].tolist())
    frame["verdict"] = [
        verdict(row, key in compared.learned)
        for row, key in zip(frame.to_dict("records"), compared.found, strict=True)
    ]
    return frame.astype({"descriptive": bool})[COLUMNS]


def _rows(compared: Pairs) -> Iterator[dict[str, object]]:
    priors = compared.priors()
    for (contrast, ratio), paired in compared.found.items():
        key = {"label_ratio": ratio, "metric": compared.metric}
        row = difference_columns(paired, compared.draws, priors[contrast.probe])
        yield contrast.columns | key | row


def change_with_labels(compared: Pairs, name: str) -> tuple[Estimate, float, int, int] | None:
    """How much larger a contrast is at the lowest label ratio than at the highest.

    Only ratios count at which at least one side is surely better than chance: where neither
    learned, there is no effect to see.

    Returns:
        The difference of the differences with its p-value, and the two ratios; None unless
        two ratios share two repeats.
    """
    changes = dict(_changes(compared))
    if name not in changes:
        return None
    both, few, many = changes[name]
    if len(both.repeats) < 2:
        return None
    prior = prior_of(change.value for change, _, _ in changes.values())
    return (*compare(both, compared.draws, prior), few, many)


def _changes(compared: Pairs) -> Iterator[tuple[str, tuple[Paired, int, int]]]:
    """Of each contrast between networks how much larger it is at its lowest ratio that counts
    than at its highest, and the two ratios: by name.
    """
    ratios: dict[Contrast, list[int]] = {}
    for contrast, ratio in compared.found:
        if not contrast.probe and (contrast, ratio) in compared.learned:
            ratios.setdefault(contrast, []).append(ratio)
    for contrast, counted in ratios.items():
        few, many = min(counted), max(counted)
        both = subtract(compared.found[contrast, few], compared.found[contrast, many])
        if few < many and both is not None:
            yield contrast.name, (both, few, many)


def subtract(one: Paired, other: Paired) -> Paired | None:
    """The difference of two differences on the repeats they share; None if they share none."""
    shared = tuple(sorted(set(one.repeats) & set(other.repeats)))
    if not shared:
        return None
    value, drawn = (
        _at(one, kind, shared) - _at(other, kind, shared) for kind in ("value", "drawn")
    )
    return Paired(value, drawn, shared, one.images, one.metric)


def _at(paired: Paired, kind: str, repeats: Sequence[int]) -> np.ndarray:
    values: np.ndarray = getattr(paired, kind)
    return values[[paired.repeats.index(repeat) for repeat in repeats]]
