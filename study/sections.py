"""The sections of a configuration: every key that can be set, its type, its range, its default.

How sections fit together is `study.config`'s. A value that does not fit is an error that says what
was found and what was expected.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from types import NoneType
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_serializer,
    model_serializer,
    model_validator,
)

from analysis.variants import KINDS, kind_of
from models.registry import ARCHITECTURES, OBJECTIVES

AsTuple = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
Percent = Annotated[int, Field(ge=1, le=100)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
WandbName = Annotated[str, Field(pattern=r"^[^\s/\\#?%:][^/\\#?%:]{0,127}$")]


Scalar = bool | int | float | str | None


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def keys_of(section: type[BaseModel], prefix: str = "") -> list[str]:
    """The dotted keys of a section and of those in it."""
    keys: list[str] = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        optional = [kind for kind in get_args(field.annotation) if kind is not NoneType]
        inner = optional[0] if len(optional) == 1 else field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += keys_of(inner, f"{prefix}{name}.")
    return keys


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


class Drawn(Section):
    """What there is to learn from where ``pretrain_on`` is drawn: see `data.invented`."""

    species: int = Field(600, ge=2)
    each: int = Field(40, ge=2)  # images

    @property
    def valid(self) -> int:
        """Of each species, the images for validation: one in twenty, and at least one."""
        return max(1, self.each // 20)

    @property
    def train(self) -> int:
        """Images for training, of all species."""
        return self.species * (self.each - self.valid)


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
    pretrain_on: Literal["all", "unlabelled", "drawn"] = "all"
    drawn: Drawn = Drawn()
    epochs: int = Field(30, ge=1)
    patience: int = Field(7, ge=1)
    batch_size: int = Field(64, ge=1)
    lr: Positive = 5.0e-4
    schedule: Literal["constant", "cosine"] = "constant"  # of the learning rate, over its epochs
    view_size: Annotated[int, Field(ge=16)] | None = None  # pixels, of objectives that show views
    normalise: bool = False  # its features, before the classifier of B0, B1 and B2
    per_repeat: bool = True  # False: repeats share the search's encoder, if on the same images

    @model_validator(mode="after")
    def _noise_fits(self) -> Encoder:
        if self.salt + self.pepper > 1:
            found = f"found {self.pepper:g} with salt {self.salt:g}"
            raise ValueError(f"pepper: {found}, expected at most 1 together")
        return self

    @model_validator(mode="after")
    def _species_are_known(self) -> Encoder:
        if self.objective == "species" and self.pretrain_on != "drawn":
            raise ValueError(
                f"pretrain_on: found {self.pretrain_on} with objective species, which needs the "
                "species of each image; expected drawn"
            )
        return self

    @property
    def shared(self) -> bool:
        """Whether all repeats start from the search's encoder.

        Each labels other images, so what is unlabelled in the search is not so in a repeat.
        """
        return not self.per_repeat and self.pretrain_on != "unlabelled"


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


class _Sparse(Section):
    """Written without what is not given."""

    @model_serializer(mode="wrap")
    def _write(self, write: Any) -> dict[str, Any]:
        return {name: value for name, value in write(self).items() if value is not None}


class Choices(_Sparse):
    """What one more key is searched over: one of these values."""

    choice: Annotated[tuple[Scalar, ...], AsTuple, Field(min_length=2)]

    @model_validator(mode="after")
    def _each_once(self) -> Choices:
        if self.choice and len(set(map(repr, self.choice))) < len(self.choice):
            raise ValueError(f"choice: found {list(self.choice)}, expected each value once")
        return self

    @property
    def range(self) -> tuple[float, float]:
        """Low and high, where numbers are searched."""
        return 0.0, 0.0

    @property
    def log(self) -> bool:
        """Whether numbers are searched by their logarithm."""
        return False

    @property
    def extremes(self) -> tuple[Scalar, ...]:
        """Values of which all others fit if these do: the choices, or both ends of a range."""
        return self.choice


class Numbers(_Sparse):
    """The same for real numbers: exactly one of these, named as Ray Tune and SciPy do."""

    uniform: Annotated[tuple[float, float], BeforeValidator(_read_range)] | None = None
    loguniform: Annotated[tuple[Positive, Positive], BeforeValidator(_read_range)] | None = None
    choice: Annotated[tuple[Scalar, ...], AsTuple, Field(min_length=2)] | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Numbers:
        given = [name for name in Numbers.model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "nothing"
            raise ValueError(f"found {found}, expected one of {', '.join(Numbers.model_fields)}")
        if self.choice is None and not self.range[0] < self.range[1]:
            low, high = self.range
            raise ValueError(f"{given[0]}: found [{low:g}, {high:g}], expected low < high")
        return self

    @property
    def range(self) -> tuple[float, float]:
        """As of `Choices`, and so are the others."""
        return self.loguniform or self.uniform or (0.0, 0.0)

    @property
    def log(self) -> bool:
        return self.loguniform is not None

    @property
    def extremes(self) -> tuple[Scalar, ...]:
        return self.range if self.choice is None else self.choice


Domain = Choices | Numbers


class TrainingSpace(_Sparse):
    """Not what an epoch is, nor when a trial ends: ASHA compares trials by their epochs."""

    batch_size: Choices | None = None
    augment: Choices | None = None
    view_size: Choices | None = None
    schedule: Choices | None = None
    average: Numbers | None = None
    weight_decay: Numbers | None = None


class SemiSpace(_Sparse):
    """Of variant C."""

    unlabelled_per_step: Choices | None = None
    threshold: Numbers | None = None
    weight: Numbers | None = None


class Space(Section):
    """What each trial draws beside the learning rate, by the sections that it is in."""

    training: TrainingSpace = TrainingSpace()
    semi: SemiSpace = SemiSpace()

    @property
    def domains(self) -> dict[str, Domain]:
        """By dotted keys, as ``training.weight_decay``."""
        return {
            f"{section}.{name}": domain
            for section, keys in (("training", self.training), ("semi", self.semi))
            for name, domain in keys
            if domain is not None
        }


class Search(Section):
    trials: int = Field(16, ge=1)  # per cell
    lr: Annotated[tuple[Positive, Positive], BeforeValidator(_read_range)] = (1.0e-5, 1.0e-2)
    space: Space = Space()  # what is searched besides
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
