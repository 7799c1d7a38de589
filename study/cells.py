"""What a study compares and what it searches.

A cell is one variant × one label ratio, a row of Table I, written ``B1@25``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from analysis.variants import COMMON, cell_name, is_pretrained, is_semi, kind_of, with_recipe
from study.config import Config
from study.sections import Scalar


@dataclass(frozen=True)
class Variant:
    """How a classifier of one of `analysis.variants.KINDS` is trained."""

    name: str
    frozen: bool = False  # never changes its encoder

    @property
    def semi(self) -> bool:
        """Whether its training sees the unlabelled images as well."""
        return is_semi(self.name)

    @property
    def pretrained(self) -> bool:
        """Whether it starts from a pretrained encoder."""
        return is_pretrained(self.name)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("A"),
        Variant("B0"),
        Variant("B1", frozen=True),
        Variant("B2"),
        Variant("C"),
        Variant("C2"),
    )
}


@dataclass(frozen=True)
class Hyperparameter:
    """What is searched: its range, scale, unit, the value to try first, and why this range.

    With ``choices`` it is one of them, and the range means nothing.
    """

    name: str
    low: float
    high: float
    log: bool
    unit: str
    first: Scalar
    why: str
    choices: tuple[Scalar, ...] = ()

    def has(self, value: Scalar) -> bool:
        """Whether the value can be searched."""
        if self.choices or not isinstance(value, int | float):
            return value in self.choices
        return self.low <= value <= self.high


def searched(config: Config, variant: str) -> tuple[Hyperparameter, ...]:
    """What a variant's cells search: one line a hyperparameter."""
    low, high = config.search.lr
    found = [Hyperparameter("lr", low, high, True, "Adam step", 1e-4, "the one that moves F1 most")]
    if recipes := config.recipes_of(variant):
        why = "best encoders are a result, not a choice"
        found.append(Hyperparameter("recipe", 0, 0, False, "", COMMON, why, recipes))
    for key, domain in config.space_of(variant).items():
        first, why = config.value_of(key), "the study asks for it"
        found.append(
            Hyperparameter(key, *domain.range, domain.log, "", first, why, domain.choice or ())
        )
    return tuple(found)


@dataclass(frozen=True)
class Cell:
    variant: str
    label_ratio: int  # percent of the training images of each species

    @property
    def name(self) -> str:
        return cell_name(self.variant, self.label_ratio)

    @property
    def columns(self) -> dict[str, str | int]:
        """What every record of it has."""
        return {"cell": self.name, "variant": self.variant, "label_ratio": self.label_ratio}

    @property
    def kind(self) -> Variant:
        """The variant without its encoder's recipe: of ``B2-denoising`` it is B2."""
        return VARIANTS[kind_of(self.variant)]

    def trained_as(self, recipe: str | None) -> Cell:
        """The cell whose classifiers those with a searched recipe are; without, itself."""
        return replace(self, variant=with_recipe(self.variant, recipe))

    def trial_id(self, number: int) -> str:
        """The name of the cell's trial of that number, from 0."""
        return f"{self.name}-{number:03d}"


def cells_of(config: Config) -> tuple[Cell, ...]:
    """All cells, by ratio and then variant."""
    return tuple(
        Cell(variant, ratio)
        for ratio in sorted(config.cells.label_ratios)
        for variant in sorted(config.cells.variants)
    )


def trained_cells(config: Config, cell: Cell) -> tuple[Cell, ...]:
    """What a cell's trials may be: one cell for each recipe that it searches, or itself."""
    return tuple(replace(cell, variant=variant) for variant in config.trained_as(cell.variant))


def all_trained_cells(config: Config) -> list[Cell]:
    """`trained_cells` of all cells of a study."""
    return [one for cell in cells_of(config) for one in trained_cells(config, cell)]


def trial_number(trial_id: str) -> int:
    """The trial's number in its cell, from 0."""
    return int(trial_id.rsplit("-", 1)[1])
