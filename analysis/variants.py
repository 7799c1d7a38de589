"""The variants, and what the names of variants and cells say: ``B2-NAME@25`` is the kind B2 with
the encoder's recipe NAME, at 25 % of the labels.
"""

from __future__ import annotations

KINDS = {
    "A": "from scratch",
    "B0": "B2's network, random weights",
    "B1": "pretrained, frozen",
    "B2": "pretrained, fine-tuned",
    "C": "B0's network, also on unlabelled images",
    "C2": "B2, also on unlabelled images",
}
SEMI = ("C", "C2")
"""The kinds whose classifiers are trained on the unlabelled images as well."""
PRETRAINED = ("B1", "B2", "C2")
"""The kinds that start from a pretrained encoder."""
COMMON = "encoder"
"""What the search calls the recipe of the section ``encoder``."""
BEST = "best"
"""The recipe of a variant whose recipe is searched: ``B2-best``."""


def kind_of(variant: str) -> str:
    """Of ``B2-NAME`` and of ``B2``: ``B2``."""
    return variant.partition("-")[0]


def recipe_of(variant: str) -> str:
    """Of ``B2-NAME``: ``NAME``; of ``B2``: nothing."""
    return variant.partition("-")[2]


def is_pretrained(variant: str) -> bool:
    """Whether it starts from a pretrained encoder."""
    return kind_of(variant) in PRETRAINED


def is_semi(variant: str) -> bool:
    """Whether its classifier is trained on the unlabelled images as well."""
    return kind_of(variant) in SEMI


def is_best(variant: str) -> bool:
    """Whether the variant's recipe is searched."""
    return recipe_of(variant) == BEST


def with_recipe(variant: str, recipe: object) -> str:
    """What a trial or repeat trains: the variant with the recipe that was chosen for it.

    Args:
        recipe: `COMMON` or a recipe's name; anything else where none is searched.
    """
    if not isinstance(recipe, str):
        return variant
    return kind_of(variant) if recipe == COMMON else f"{kind_of(variant)}-{recipe}"


def title(variant: str) -> str:
    """``B2-NAME: pretrained, fine-tuned``."""
    return f"{variant}: {KINDS[kind_of(variant)]}"


def cell_name(variant: str, label_ratio: float) -> str:
    """``B1@25``."""
    return f"{variant}@{label_ratio:g}"


def variant_of(cell: str) -> str:
    """Of ``B1@25``: ``B1``."""
    return cell.partition("@")[0]
