"""What the names of variants and cells say: ``B2-NAME@25`` is B2 with a recipe, at 25 % labels."""

from __future__ import annotations


def kind_of(variant: str) -> str:
    """Of ``B2-NAME`` and of ``B2``: ``B2``."""
    return variant.partition("-")[0]


def recipe_of(variant: str) -> str:
    """Of ``B2-NAME``: ``NAME``; of ``B2``: nothing."""
    return variant.partition("-")[2]


def is_pretrained(variant: str) -> bool:
    """Whether it starts from a pretrained encoder."""
    return kind_of(variant) in ("B1", "B2")


def is_best(variant: str) -> bool:
    """Whether the variant's recipe is searched, as ``B2-best``."""
    return variant.endswith("-best")


def with_recipe(variant: str, recipe: object) -> str:
    """What was trained, from a row's variant and recipe: of B2-best, B2 or B2-NAME."""
    if not isinstance(recipe, str):
        return variant
    return kind_of(variant) if recipe == "encoder" else f"{kind_of(variant)}-{recipe}"


def cell_name(variant: str, label_ratio: int) -> str:
    """How a cell is written: ``B1@25``."""
    return f"{variant}@{label_ratio:g}"
