"""The configuration of a study: YAML read into typed, frozen objects.

`load_config` takes a preset's name or a file, then `--set key=value` overrides. Whatever is
wrong with them is an `InputError` of one line: where, which key, what was found, what was
expected.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from importlib import resources
from itertools import combinations, product
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator

from analysis.variants import (
    BEST,
    COMMON,
    is_best,
    is_pretrained,
    is_semi,
    kind_of,
    recipe_of,
    with_recipe,
)
from data.storage import InputError
from models.registry import ARCHITECTURES
from study.config_errors import first_problem, nearest
from study.sections import (
    Cells,
    Data,
    Domain,
    Encoder,
    Evaluation,
    PooledSplit,
    Resources,
    Scalar,
    Search,
    Section,
    SemiSpace,
    SemiSupervised,
    Tracking,
    Training,
    keys_of,
)

PRESETS = ("smoke", "quick", "paper", "full", "denoising", "rubric", "encoders")

RecipeName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,29}$")]


class Recipes(dict[str, Encoder]):
    """Encoders by name; never changed, so it has a hash, as all of a configuration has."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))


class Config(Section):
    """A whole study (see README, "Configuration")."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = "quick"
    seed: int = Field(0, ge=0)
    data: Data = Data()
    cells: Cells = Cells()
    encoder: Encoder = Encoder()
    encoders: Annotated[dict[RecipeName, Encoder], AfterValidator(Recipes)] = Recipes()
    training: Training = Training()
    semi: SemiSupervised = SemiSupervised()
    search: Search = Search()
    evaluation: Evaluation = Evaluation()
    resources: Resources = Resources()
    tracking: Tracking = Tracking()

    @model_validator(mode="before")
    @classmethod
    def _recipes_are_changes(cls, tree: Any) -> Any:
        """A recipe says only in what it differs from the section ``encoder``."""
        if not isinstance(tree, dict) or not isinstance(tree.get("encoders"), dict):
            return tree
        common = tree.get("encoder") or {}
        if not isinstance(common, dict):
            return tree
        whole = {
            name: {**common, **changes} if isinstance(changes, dict) else changes
            for name, changes in tree["encoders"].items()
        }
        return {**tree, "encoders": whole}

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        grace, epochs = self.search.grace_period, self.training.max_epochs
        if grace > epochs:
            raise ValueError(
                f"search.grace_period: found {grace}, "
                f"expected at most training.max_epochs = {epochs}"
            )
        self._require_other_names()
        for variant in self.cells.variants:
            self._require_recipe(variant)
            for one in self.trained_as(variant):
                self._require_unlabelled(one)
        self._require_size()
        self._require_sampler()
        self._require_space()
        return self

    def with_settings(self, settings: Mapping[str, object]) -> Config:
        """The study with what a trial has been given of `search.space`: dotted keys and values.

        Raises:
            ValidationError: a value does not fit.
        """
        if not settings:
            return self
        tree = self.model_dump() | {"search": self.search.model_dump(exclude={"space"})}
        for key, value in settings.items():
            _assign(tree, key, value)
        return Config.model_validate(tree)

    def value_of(self, key: str) -> Any:
        """By a dotted key, as ``training.augment``."""
        value: Any = self
        for name in key.split("."):
            value = getattr(value, name)
        return value

    def values_of(self, key: str) -> tuple[Any, ...]:
        """What trials may have for a key: its value, or those or the ends of what is searched."""
        domain = self.search.space.domains.get(key)
        return (self.value_of(key),) if domain is None else domain.extremes

    def space_of(self, variant: str) -> dict[str, Domain]:
        """What else a variant's trials draw; what is `semi` is of C and C2 alone."""
        found = self.search.space.domains
        return {k: d for k, d in found.items() if is_semi(variant) or k[:5] != "semi."}

    def recipe(self, variant: str) -> Encoder:
        """The settings of the encoder that a variant starts from: ``B2``, or ``B2-NAME``."""
        name = recipe_of(variant)
        return self.encoders[name] if name else self.encoder

    def recipes_of(self, variant: str) -> tuple[str, ...]:
        """The recipes that are searched for a variant; none, where it has one of its own."""
        return (COMMON, *self.encoders) if is_best(variant) else ()

    def trained_as(self, variant: str) -> tuple[str, ...]:
        """The variants that a variant's trials may be; ``B2-best`` may be ``B2`` or ``B2-NAME``."""
        searched = self.recipes_of(variant)
        return tuple(with_recipe(variant, name) for name in searched) or (variant,)

    def encoders_of(self, variant: str) -> tuple[Encoder, ...]:
        """The settings of the encoders that a variant may start from, one if none is searched."""
        return tuple(self.recipe(one) for one in self.trained_as(variant))

    def _require_other_names(self) -> None:
        for name in (BEST, COMMON):
            if name in self.encoders:
                raise ValueError(f"encoders: found {name!r}, expected another name for a recipe")

    def _require_recipe(self, variant: str) -> None:
        name = recipe_of(variant)
        if name == BEST and not self.encoders:
            raise ValueError(f"cells.variants: found {variant!r}, expected recipes in encoders")
        if name != BEST and name not in self.encoders and variant != kind_of(variant):
            known = ", ".join(self.encoders) or "none"
            raise ValueError(
                f"cells.variants: found {variant!r}, expected a recipe of encoders ({known}) "
                f"or {BEST}"
            )

    def _require_sampler(self) -> None:
        choices = [v for v in self.cells.variants if self.recipes_of(v)]
        domains = self.search.space.domains.items()
        choices += [f"search.space.{key}" for key, domain in domains if domain.choice]
        if choices and self.search.sampler == "cmaes":
            raise ValueError(
                f"search.sampler: found cmaes, which searches numbers only, with {choices[0]}; "
                f"expected tpe, gp, nsga2 or random"
            )

    def _require_space(self) -> None:
        if self.search.space.semi != SemiSpace() and not any(map(is_semi, self.cells.variants)):
            variants = ", ".join(self.cells.variants)
            raise ValueError(
                f"search.space.semi: found with cells.variants {variants}, expected C among them"
            )
        for settings in self._settings_to_try():
            try:
                self.with_settings(settings)
            except ValidationError as error:
                problem = first_problem(error, keys_of(Config))
                where = f": found {settings}, with which " if len(settings) > 1 else "."
                raise ValueError(f"search.space{where}{problem}") from None

    def _settings_to_try(self) -> Iterator[dict[str, Scalar]]:
        """Each value alone and each two together: no check of a configuration reads three."""
        for count in (1, 2):
            for domains in combinations(self.search.space.domains.items(), count):
                for values in product(*(domain.extremes for _, domain in domains)):
                    yield dict(zip((key for key, _ in domains), values, strict=True))

    def _require_size(self) -> None:
        trained = [r for v in self.cells.variants if v != "A" for r in self.encoders_of(v)]
        pretrained = any(map(is_pretrained, self.cells.variants))
        control = [self.encoder] if pretrained else []  # `random` is the section's, untrained
        for recipe in trained + control:
            if recipe.architecture == "dense" and recipe.width % 4:
                raise ValueError(
                    f"encoder.width: found {recipe.width}, expected a multiple of 4 for dense"
                )
        names = {recipe.architecture for recipe in trained}
        names |= {"A"} if "A" in self.cells.variants else set()
        of_control = {recipe.architecture for recipe in control}
        _require_multiple("data.image_size", self.data.image_size, names | of_control)
        for name, recipe in self._named_encoders():
            if recipe.view_size is not None:
                _require_multiple(f"{name}.view_size", recipe.view_size, {recipe.architecture})
                self._require_views(f"{name}.view_size", recipe.view_size, [recipe.architecture])
        view = self.training.view_size
        if view is not None:
            _require_multiple("training.view_size", view, names)
            self._require_views("training.view_size", view, sorted(names))
            self._require_augmented(view)

    def _named_encoders(self) -> Iterator[tuple[str, Encoder]]:
        yield "encoder", self.encoder
        for name, recipe in self.encoders.items():
            yield f"encoders.{name}", recipe

    def _require_views(self, key: str, view: int, architectures: Iterable[str]) -> None:
        """Views are at most as large as the images, and smaller where the network takes both."""
        size = self.data.image_size
        if view > size:
            raise ValueError(f"{key}: found {view}, expected at most data.image_size = {size}")
        fixed = [
            n for n in architectures if n not in ARCHITECTURES or not ARCHITECTURES[n].any_size
        ]
        if fixed and view < size:
            able = ", ".join(n for n, a in ARCHITECTURES.items() if a.any_size)
            raise ValueError(
                f"{key}: found {view} with {fixed[0]}, which takes images of one "
                f"size, {size}; expected encoders of {able} alone"
            )

    def _require_augmented(self, view: int) -> None:
        if self.training.augment == "none" and not all(map(is_semi, self.cells.variants)):
            raise ValueError(
                f"training.view_size: found {view} with training.augment none, which makes no "
                "views; expected light or strong"
            )

    def _require_unlabelled(self, variant: str) -> None:
        unlabelled = self.recipe(variant).pretrain_on == "unlabelled"
        if unlabelled and is_pretrained(variant) and 100 in self.cells.label_ratios:
            name = recipe_of(variant)
            raise ValueError(
                f"{f'encoders.{name}' if name else 'encoder'}.pretrain_on: found unlabelled with "
                f"a label ratio of 100, which leaves no unlabelled image; expected "
                f"cells.label_ratios below 100"
            )


def _require_multiple(key: str, pixels: int, architectures: Iterable[str]) -> None:
    strides = {n: ARCHITECTURES[n].stride if n in ARCHITECTURES else 4 for n in architectures}
    for name, stride in sorted(strides.items(), key=lambda item: (-item[1], item[0])):
        if pixels % stride:
            raise ValueError(f"{key}: found {pixels}, expected a multiple of {stride} for {name}")


def load_config(
    source: str | Path | Mapping[str, Any] | None = None,
    overrides: Iterable[str] = (),
    changes: Mapping[str, object] | None = None,
) -> Config:
    """Read a configuration.

    Args:
        source: a preset's name, a YAML file, or its content; None is the preset ``quick``.
        overrides: ``key=value`` with dotted keys and YAML values, as after ``--set``.
        changes: dotted keys and their values, applied last.

    Raises:
        InputError: anything wrong with one of them.
    """
    name = "configuration" if isinstance(source, Mapping) else str(source or "quick")
    tree = deepcopy(dict(source)) if isinstance(source, Mapping) else _read_source(name)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise InputError(f"--set {override}: found no '=', expected key=value")
        _assign(tree, key.strip(), _parse_yaml(text, f"--set {key}"))
    for key, value in (changes or {}).items():
        _assign(tree, key, value)
    return config_from(tree, name)


def config_from(tree: Mapping[str, Any], where: str) -> Config:
    """Check a tree of plain values; ``where`` names it in errors."""
    try:
        return Config.model_validate(dict(tree))
    except ValidationError as error:
        keys = keys_of(Config) + keys_of(PooledSplit, "data.split.pooled.")
        raise InputError(f"{where}: {first_problem(error, keys)}") from None


def differences(old: Config, new: Config) -> list[str]:
    """The dotted keys in which two studies of one name differ and must not.

    ``name``, ``resources``, ``tracking`` and what has `grown` may differ.
    """
    before, after = _flatten(old.model_dump()), _flatten(new.model_dump() | {"name": old.name})
    free = ("resources.", "tracking.", *grown(old, new))
    return sorted(
        key
        for key in before.keys() | after.keys()
        if not key.startswith(free) and before.get(key) != after.get(key)
    )


def grown(old: Config, new: Config) -> list[str]:
    """Of ``search.trials`` and ``evaluation.repeats``, those that the new study has more of."""
    found = {
        "search.trials": new.search.trials > old.search.trials,
        "evaluation.repeats": new.evaluation.repeats > old.evaluation.repeats,
    }
    return [key for key, more in found.items() if more]


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _read_source(name: str) -> dict[str, Any]:
    if name in PRESETS:
        text = resources.files("study.presets").joinpath(f"{name}.yaml").read_text("utf-8")
    elif _is_file(name):
        try:
            text = Path(name).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{name}: cannot be read ({error}); expected a YAML file") from None
    else:
        raise InputError(
            f"{name}: found no preset or file of that name, expected a YAML file or one of "
            f"{', '.join(PRESETS)}{nearest(name, PRESETS)}"
        )
    tree = _parse_yaml(text, name)
    if not isinstance(tree, dict):
        found = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise InputError(f"{name}: found {found}, expected a YAML mapping of configuration keys")
    return tree


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except OSError:  # longer than any name can be
        return False


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-4 as text; people mean the number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        line = " ".join(str(error).split())
        raise InputError(f"{where}: is not YAML ({line}); expected YAML") from None


def _assign(tree: dict[str, Any], key: str, value: object) -> None:
    *sections, last = key.split(".")
    for section in sections:
        if not isinstance(tree.get(section), dict):  # `data.split: folders`: the later one counts
            tree[section] = {}
        tree = tree[section]
    tree[last] = value
