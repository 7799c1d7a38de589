"""The configuration of a study: YAML read into typed, frozen objects.

`load_config` takes a preset's name or a file, then `--set key=value` overrides. Whatever is
wrong with them is an `InputError` of one line: where, which key, what was found, what was
expected.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    model_validator,
)

from analysis.variants import (
    BEST,
    COMMON,
    KINDS,
    is_best,
    is_pretrained,
    kind_of,
    recipe_of,
    with_recipe,
)
from data.storage import InputError
from models.registry import ARCHITECTURES, OBJECTIVES

PRESETS = ("smoke", "quick", "paper", "full", "denoising", "rubric", "encoders")

AsTuple = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
RecipeName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,29}$")]
Percent = Annotated[int, Field(ge=1, le=100)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
WandbName = Annotated[str, Field(pattern=r"^[^\s/\\#?%:][^/\\#?%:]{0,127}$")]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class PooledSplit(Section):
    """Train, valid and test drawn anew per species from all images."""

    test_per_class: int = Field(25, ge=1)
    valid_per_class: int = Field(10, ge=1)


class _Pooled(Section):
    pooled: PooledSplit


def _read_split(value: object) -> object:
    if value == "folders" or isinstance(value, PooledSplit):
        return value
    if value in ("pooled", {"pooled": None}):
        return PooledSplit()
    if isinstance(value, dict) and set(value) == {"pooled"}:
        return _Pooled.model_validate(value).pooled
    counts = "test_per_class: 25, valid_per_class: 10"
    raise ValueError(f"found {value!r}, expected folders, pooled or {{pooled: {{{counts}}}}}")


def _read_range(value: object) -> object:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"found {value!r}, expected [low, high]")
    return tuple(value)


def _one_of(known: Collection[object]) -> BeforeValidator:
    def check(value: object) -> object:
        if not isinstance(value, str | int | float) or value not in known:
            raise ValueError(f"found {value!r}, expected {_either(known)}")
        return value

    return BeforeValidator(check)


def _either(names: Iterable[object]) -> str:
    *others, last = (repr(name) for name in names)
    return f"{', '.join(others)} or {last}" if others else last


def _read_variant(value: object) -> object:
    kind = kind_of(str(value))
    if not isinstance(value, str) or kind not in KINDS or value.startswith("A-"):
        form = "all but A also with a recipe of `encoders`, as B2-NAME"
        raise ValueError(f"found {value!r}, expected {_either(KINDS)} ({form})")
    return value


class Demo(Section):
    """How many butterflies are drawn where ``data.root`` is null."""

    train_per_species: int = Field(60, ge=2)
    valid_per_species: int = Field(10, ge=1)
    test_per_species: int = Field(25, ge=1)
    size: int = Field(96, ge=32, le=512)  # pixels


class Data(Section):
    root: Annotated[str, Field(min_length=1)] | None = (
        None  # None: the butterflies that the project draws itself
    )
    image_size: int = Field(128, ge=16, le=1024)
    split: Annotated[Literal["folders"] | PooledSplit, BeforeValidator(_read_split)] = "folders"
    demo: Demo = Demo()

    @field_serializer("split")
    def _write_split(self, split: str | PooledSplit) -> object:
        return split if isinstance(split, str) else {"pooled": split.model_dump()}


VariantName = Annotated[str, BeforeValidator(_read_variant)]


class Cells(Section):
    variants: Annotated[tuple[VariantName, ...], AsTuple, Field(min_length=1)] = (
        "A",
        "B0",
        "B1",
        "B2",
    )
    label_ratios: Annotated[tuple[Percent, ...], AsTuple, Field(min_length=1)] = (
        10,
        25,
        50,
        75,
        100,
    )

    @model_validator(mode="after")
    def _each_once(self) -> Cells:
        for key in ("variants", "label_ratios"):
            values = getattr(self, key)
            if len(set(values)) < len(values):
                raise ValueError(f"{key}: found {list(values)}, expected each value once")
        return self


class Encoder(Section):
    architecture: Annotated[str, _one_of(ARCHITECTURES)] = "unet"
    objective: Annotated[str, _one_of(OBJECTIVES)] = "reconstruction"
    width: int = Field(64, ge=1, le=512)  # channels of the first block, for A as well
    skips: Literal["added", "dropped", "narrow", "none"] = "added"  # of the U-Net's decoder
    colour: Literal["grey", "rgb"] = "grey"  # that a dense encoder sees
    salt: Share = 0.1  # of the pixels, where the objective adds noise
    pepper: Share = 0.1
    kl_warmup: Share = 0.2  # of the epochs, until a variational objective's KL counts in full
    hidden: Annotated[float, Field(gt=0, lt=1)] = 0.6  # share of patches, where some are masked
    pretrain_on: Literal["all", "unlabelled"] = "all"
    epochs: int = Field(30, ge=1)
    patience: int = Field(7, ge=1)
    batch_size: int = Field(64, ge=1)
    lr: Positive = 5.0e-4
    normalise: bool = False  # its features, before the classifier of B0, B1 and B2
    per_repeat: bool = True  # False: repeats share the search's encoder, if on the same images

    @model_validator(mode="after")
    def _noise_fits(self) -> Encoder:
        if self.salt + self.pepper > 1:
            found = f"found {self.pepper:g} with salt {self.salt:g}"
            raise ValueError(f"pepper: {found}, expected at most 1 together")
        return self

    @property
    def shared(self) -> bool:
        """Whether all repeats start from the search's encoder.

        Each labels other images, so what is unlabelled in the search is not so in a repeat.
        """
        return not self.per_repeat and self.pretrain_on == "all"


class Training(Section):
    batch_size: int = Field(64, ge=1)
    max_epochs: int = Field(30, ge=1)
    patience: int = Field(5, ge=1)
    augment: Literal["none", "light", "strong"] = "none"
    view_size: Annotated[int, Field(ge=16)] | None = (
        None  # pixels of augmented views, where smaller
    )
    schedule: Literal["constant", "cosine"] = "constant"  # of the learning rate, over max_epochs
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0  # decay of the weights' moving average
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    min_steps_per_epoch: int = Field(0, ge=0)


class SemiSupervised(Section):
    """Of variant C."""

    unlabelled_per_step: int = Field(96, ge=1)
    threshold: Share = 0.8  # a pseudo-label is sure above
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0  # of the unlabelled loss


class Search(Section):
    trials: int = Field(16, ge=1)  # per cell
    lr: Annotated[tuple[Positive, Positive], BeforeValidator(_read_range)] = (1.0e-5, 1.0e-2)
    sampler: Literal["tpe", "gp", "cmaes", "nsga2", "random"] = "tpe"
    scheduler: Literal["asha", "none"] = "asha"
    grace_period: int = Field(3, ge=1)
    reduction_factor: int = Field(3, ge=2)
    metric: Literal["val_f1", "val_acc", "val_loss"] = "val_f1"
    max_seconds: Positive | None = None

    @model_validator(mode="after")
    def _low_below_high(self) -> Search:
        low, high = self.lr
        if low > high:
            raise ValueError(f"lr: found [{low:g}, {high:g}], expected [low, high], low <= high")
        return self

    @property
    def mode(self) -> Literal["max", "min"]:
        return "min" if self.metric == "val_loss" else "max"


class Evaluation(Section):
    repeats: int = Field(5, ge=0, le=100)  # 0: search only
    noise: Annotated[tuple[Share, ...], AsTuple] = ()  # shares of noisy pixels to test with as well
    quantise: bool = False  # compare the best classifiers with their int8 forms


class Resources(Section):
    cpus_per_trial: int = Field(1, ge=1)
    gpus_per_trial: Literal["auto"] | Annotated[float, Field(ge=0, le=64)] = "auto"
    max_concurrent: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"

    @model_validator(mode="after")
    def _whole_above_one(self) -> Resources:
        gpus = self.gpus_per_trial
        if gpus != "auto" and gpus > 1 and gpus % 1:
            raise ValueError(f"gpus_per_trial: found {gpus:g}, expected a whole number above 1")
        return self


class Tracking(Section):
    wandb: Literal["online", "offline", "disabled"] = "offline"
    project: WandbName = "mariposa"
    entity: WandbName | None = None  # a user or a team; None: the key's own
    tensorboard: bool = False  # event files below RUN/tensorboard


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
        return self

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
        best = [v for v in self.cells.variants if self.recipes_of(v)]
        if best and self.search.sampler == "cmaes":
            raise ValueError(
                f"search.sampler: found cmaes, which searches numbers only, with {best[0]}; "
                f"expected tpe, gp, nsga2 or random"
            )

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
        view = self.training.view_size
        if view is not None:
            _require_multiple("training.view_size", view, names)
            self._require_views(view, self.data.image_size, sorted(names))

    def _require_views(self, view: int, size: int, architectures: Iterable[str]) -> None:
        if view > size:
            raise ValueError(
                f"training.view_size: found {view}, expected at most data.image_size = {size}"
            )
        if self.training.augment == "none" and set(self.cells.variants) != {"C"}:
            raise ValueError(
                f"training.view_size: found {view} with training.augment none, which makes no "
                "views; expected light or strong"
            )
        fixed = [
            n for n in architectures if n not in ARCHITECTURES or not ARCHITECTURES[n].any_size
        ]
        if fixed and view < size:
            able = ", ".join(n for n, a in ARCHITECTURES.items() if a.any_size)
            raise ValueError(
                f"training.view_size: found {view} with {fixed[0]}, which takes images of one "
                f"size, {size}; expected encoders of {able} alone"
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
        raise InputError(f"{where}: {_first_problem(error)}") from None


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
            f"{', '.join(PRESETS)}{_nearest(name, PRESETS)}"
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


def _first_problem(error: ValidationError) -> str:
    # An unknown key explains more than what follows from it, so it is named first.
    problems = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    problem, key = problems[0], _key(problems[0])
    if problem["type"] == "extra_forbidden":
        pooled = _flatten_fields(PooledSplit, "data.split.pooled.")
        return f"{key}: unknown key{_nearest(key, _flatten_fields(Config) + pooled)}"
    if problem["type"] == "value_error":  # raised above, and already says it all
        text = problem["msg"].removeprefix("Value error, ")
        return f"{key}{': ' if text.startswith('found') else '.'}{text}" if key else text
    branches = [_expected(other["msg"]) for other in problems if _key(other) == key]  # of a union
    return f"{key}: found {problem['input']!r}, expected {' or '.join(dict.fromkeys(branches))}"


def _key(problem: Any) -> str:
    parts = [str(part) for part in problem["loc"]]
    return ".".join(
        part
        for part in parts
        if not re.search(r"[\[(]|^(constrained-)?(int|float|PooledSplit)$", part)
    )


def _expected(message: str) -> str:
    text = re.sub(r"^(Input|Value|String|Keys) should (be )?", "", message)
    text = re.sub(r"^have (.*?)( after validation, not \d+)?$", r"\1", text)
    return text.replace("valid tuple", "list")


def _flatten_fields(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _flatten_fields(field.annotation, f"{prefix}{name}.")
    return keys


def _nearest(found: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, comparing whole keys first and last parts after that."""
    known = list(known)
    close = difflib.get_close_matches(found, known, n=1, cutoff=0.6)
    if not close:
        by_last = {key.rsplit(".", 1)[-1]: key for key in known}
        last = difflib.get_close_matches(found.rsplit(".", 1)[-1], by_last, n=1, cutoff=0.6)
        close = [by_last[last[0]]] if last else []
    return f"; did you mean {close[0]}?" if close else ""
