"""The records of a run as pandas frames: the only module of ``analysis`` that reads them.

A file that a study has not written yet is an empty frame with the same columns, so that tables
and figures of an unfinished study need no special case. A file that cannot be read is an error.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from analysis.liveness import driver_is_gone
from analysis.variants import COMMON, cell_name, is_best, is_pretrained, recipe_of, with_recipe
from data.sealing import unseal_end
from data.storage import InputError, Location
from data.tables import from_parquet

if TYPE_CHECKING:  # imported where used: the package must load in an instant
    import numpy as np
    import pandas as pd

T = TypeVar("T")

_TEXT, _INT, _FLOAT = "str", "int64", "float64"
_CELL = {"cell": _TEXT, "variant": _TEXT, "label_ratio": _INT}
_CHOSEN = {"val_loss": _FLOAT, "val_acc": _FLOAT, "val_f1": _FLOAT}
_PREDICTED = {"file": _TEXT, "true": _TEXT, "pred": _TEXT, "probability": _FLOAT, "loss": _FLOAT}
_CURVE = {"epoch": _INT, "train_loss": _FLOAT, **_CHOSEN, "seconds": _FLOAT, "ended": _FLOAT}

LATER = {"recipe", "settings"}
"""Columns that older versions did not write."""
COLUMNS: dict[str, dict[str, str]] = {
    "labels": {"label_ratio": _INT, "repeat": _FLOAT, "file": _TEXT},
    "trials": {
        "trial_id": _TEXT,
        **_CELL,
        "lr": _FLOAT,
        "recipe": _TEXT,
        "settings": _TEXT,
        "seed": _INT,
        "state": _TEXT,
        "epochs": _FLOAT,
        "best_epoch": _FLOAT,
        **_CHOSEN,
        "seconds": _FLOAT,
        "node": _TEXT,
        "error": _TEXT,
    },
    "epochs": {"trial_id": _TEXT, **_CELL, **_CURVE},
    "evaluations": {
        **_CELL,
        "repeat": _INT,
        "seed": _INT,
        "lr": _FLOAT,
        "recipe": _TEXT,
        "settings": _TEXT,
        "epochs": _INT,
        "best_epoch": _INT,
        **_CHOSEN,
        "test_loss": _FLOAT,
        "test_acc": _FLOAT,
        "test_f1": _FLOAT,
        "test_precision": _FLOAT,
        "test_recall": _FLOAT,
        "seconds": _FLOAT,
    },
    "evaluation_epochs": {**_CELL, "repeat": _INT, **_CURVE},
    "predictions": {**_CELL, "repeat": _INT, **_PREDICTED},
    "robustness": {**_CELL, "repeat": _INT, "noise": _FLOAT, **_PREDICTED},
    "encoders_made": {
        "encoder": _TEXT,
        "recipe": _TEXT,
        "architecture": _TEXT,
        "objective": _TEXT,
        "images": _INT,
        "epochs": _INT,
        "best_epoch": _INT,
        "loss": _FLOAT,
        "seconds": _FLOAT,
        "repeat": _FLOAT,
    },
    "encoder_epochs": {
        "encoder": _TEXT,
        "epoch": _INT,
        "train_loss": _FLOAT,
        "valid_loss": _FLOAT,
        "seconds": _FLOAT,
        "ended": _FLOAT,
    },
    "reconstructions": {
        "encoder": _TEXT,
        "file": _TEXT,
        "loss": _FLOAT,
        "noisy_loss": _FLOAT,
        "median_loss": _FLOAT,
        "clean_loss": _FLOAT,
        "elbo": _FLOAT,
        "kl": _FLOAT,
    },
    "features/files": {"file": _TEXT, "split": _TEXT, "species": _TEXT},
    "features/ENCODER.noise": {"noise": _FLOAT, "file": _TEXT, "cluster": _INT},
}


@dataclass(frozen=True)
class Run:
    """One run folder. Each frame is read on first use, and kept.

    Ratios are percent, losses nats, scores fractions in [0, 1], times seconds (``ended``: since
    1970, UTC). A missing value is NaN, never 0. Reading raises `InputError` if a file is torn
    or lacks a column.
    """

    location: Location
    study: dict[str, Any]
    """``study.yaml``: config, versions, commit, data, state, started, seconds, machine."""

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as resolved."""
        return dict(self.study["config"])

    @property
    def name(self) -> str:
        return str(self.config.get("name") or self.location.name)

    @property
    def state(self) -> str:
        """RUNNING, COMPLETE, INTERRUPTED or FAILED at the time of loading."""
        return str(self.study.get("state", "RUNNING"))

    @property
    def metric(self) -> str:
        """What the search chooses by: val_f1, val_acc or val_loss."""
        return str(self.config.get("search", {}).get("metric", "val_f1"))

    @property
    def out_of_time(self) -> bool:
        """Whether ``search.max_seconds`` ended the search before all trials were done."""
        return is_capped(self.location, int(self.config.get("search", {}).get("trials", 0)))

    @property
    def variants(self) -> list[str]:
        return sorted(str(v) for v in self.config["cells"]["variants"])

    @property
    def pretrained(self) -> list[str]:
        """The variants that start from a pretrained encoder."""
        return [variant for variant in self.variants if is_pretrained(variant)]

    @property
    def pretrained_as(self) -> list[str]:
        """`pretrained`, with B1-best and B2-best replaced by all that they may be."""
        found = {one: None for variant in self.pretrained for one in self.trained_as(variant)}
        return list(found)

    def trained_as(self, variant: str) -> list[str]:
        """What a variant's trials may train: a variant per recipe that it searches, or itself."""
        recipes = (COMMON, *self.config.get("encoders", {}))
        return [with_recipe(variant, r) for r in recipes] if is_best(variant) else [variant]

    @property
    def searches_more(self) -> bool:
        """Whether anything is searched beside lr: recipes or `search.space`."""
        space = self.config.get("search", {}).get("space") or {}
        return any(map(is_best, self.variants)) or any(space.values())

    def recipe(self, variant: str) -> dict[str, Any]:
        """The settings of the encoder that a variant starts from."""
        return self.recipe_named(recipe_of(variant) or None)

    def recipe_named(self, name: object) -> dict[str, Any]:
        """The settings of a recipe of ``encoders``; of the section ``encoder`` without a name, as
        ``recipe`` is missing in its rows of ``encoders_made``.
        """
        named = isinstance(name, str)
        found = self.config.get("encoders", {}).get(name) if named else self.config.get("encoder")
        return dict(found or {})

    @property
    def other_networks(self) -> frozenset[str]:
        """Recipes whose network differs from that of the section ``encoder``, pretraining aside."""
        common = self.recipe_named(None)
        return frozenset(
            name
            for name, recipe in self.config.get("encoders", {}).items()
            if any(recipe.get(key) != common.get(key) for key in NETWORK)
        )

    def encoders_of(self, variant: str) -> pd.DataFrame:
        """The rows of ``encoders_made`` with a variant's settings, whatever the recipe's name."""
        wanted = self.recipe(variant)
        own = [self.recipe_named(name) == wanted for name in self.encoders_made["recipe"]]
        return self.encoders_made.loc[own]

    @property
    def label_ratios(self) -> list[int]:
        """Percent."""
        return sorted(self.config["cells"]["label_ratios"])

    @property
    def cells(self) -> list[tuple[str, str, int]]:
        """(cell, variant, label ratio) of every cell, in the order of Table I."""
        pairs = [(v, r) for r in self.label_ratios for v in self.variants]
        return [(cell_name(v, r), v, r) for v, r in pairs]

    @property
    def species(self) -> list[str]:
        """Every species of the study, sorted."""
        named = self.study.get("data", {}).get("species")
        if named:
            return sorted(str(s) for s in named)
        return sorted(set(self.predictions["true"]) | set(self.predictions["pred"]))

    @property
    def counts(self) -> dict[str, int]:
        """Images of train, valid and test; a split that is not recorded is left out."""
        return {str(k): int(v) for k, v in (self.study["data"].get("counts") or {}).items()}

    @cached_property
    def labels(self) -> pd.DataFrame:
        """Which images are labelled: ``label_ratio repeat file``; repeat NaN in the search."""
        return self._frame("labels")

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row per trial; ``val_*`` are of the epoch with the best `metric`, so far if it is
        RUNNING. Only a study that is RUNNING has such trials.
        """
        trials = self._frame("trials")
        if self.state != "RUNNING":
            return trials[trials["state"] != "RUNNING"].reset_index(drop=True)
        from analysis.leaderboard import so_far

        return so_far(trials, self.epochs, self.metric)

    @cached_property
    def winners(self) -> pd.DataFrame:
        """Each cell's chosen trial, by cell: `analysis.leaderboard.winners`."""
        from analysis.leaderboard import winners

        return winners(self.trials, self.metric)

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """One row per trial and epoch."""
        return self._frame("epochs")

    @cached_property
    def evaluations(self) -> pd.DataFrame:
        """One row per cell and repeat of the final evaluation."""
        return self._frame("evaluations")

    @cached_property
    def evaluation_epochs(self) -> pd.DataFrame:
        """One row per cell, repeat and epoch of the final evaluation."""
        return self._frame("evaluation_epochs")

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """One row per cell, repeat and test image; ``loss`` is its cross entropy in nats."""
        return self._frame("predictions")

    @cached_property
    def robustness(self) -> pd.DataFrame:
        """As `predictions`, for test images with a share ``noise`` > 0 of noisy pixels."""
        return self._frame("robustness")

    @cached_property
    def encoders_made(self) -> pd.DataFrame:
        """One row per encoder; ``loss`` is that of its objective on the validation images."""
        return self._frame("encoders_made")

    @cached_property
    def encoder_epochs(self) -> pd.DataFrame:
        """One row per encoder and epoch."""
        return self._frame("encoder_epochs")

    @cached_property
    def feature_files(self) -> pd.DataFrame:
        """The images in the order of `features`: ``file split species``."""
        return self._frame("features/files")

    @cached_property
    def encoders(self) -> list[str]:
        """Encoders with features in ``features/``, the controls random and pixels last."""
        names = [each.name for each in (self.location / "features").children()]
        found = {name.removesuffix(".npy") for name in names if name.endswith(".npy")}
        controls = [each for each in CONTROLS if each in found]
        return sorted(found - set(CONTROLS)) + controls

    def features(self, encoder: str) -> np.ndarray:
        """An encoder's output for each image of `feature_files`: float32 (N, D)."""
        import numpy as np

        file = self.location / "features" / f"{encoder}.npy"
        found = _read(file, _numpy)
        if found.ndim != 2 or len(found) != len(self.feature_files):
            images = len(self.feature_files)
            raise InputError(f"{file}: found shape {found.shape}, expected ({images}, D)")
        return np.asarray(found, dtype=np.float32)

    @cached_property
    def reconstructions(self) -> pd.DataFrame:
        """One row per encoder with a decoder and test image: how well it removes the noise."""
        return self._frame("reconstructions")

    def pictures_given_back(self, encoder: str) -> dict[str, np.ndarray]:
        """``original noisy median reconstructed`` (n, H, W, C), ``samples`` (m, H, W, C), uint8,
        and ``shown``, the n files; empty for an encoder without a decoder.
        """
        file = self.location / "reconstructions" / f"{encoder}.npz"
        return _read(file, lambda sealed: dict(_numpy(sealed))) if file.is_file() else {}

    def clusters_in_noise(self, encoder: str) -> pd.DataFrame:
        """The cluster of each noisy image by an encoder's features: ``noise file cluster``."""
        file = self.location / "features" / f"{encoder}.noise.parquet"
        return read_frame(file, COLUMNS["features/ENCODER.noise"])

    def _frame(self, name: str) -> pd.DataFrame:
        return read_frame(self.location / f"{name}.parquet", COLUMNS[name])


def is_capped(run: Location, trials: int) -> bool:
    """Whether ``search.max_seconds`` ended a search for that many trials per cell."""
    file = run / CAPPED
    return file.is_file() and file.read_text().strip() == str(trials)


def cut_short(trials: pd.DataFrame) -> pd.Series:
    """Which trials ``search.max_seconds`` ended: PRUNED, with an ``error``, and by no rung."""
    return (trials["state"] == "PRUNED") & trials["error"].notna()


def stopped_by_rung(trials: pd.DataFrame) -> pd.Series:
    """Which trials ASHA stopped: PRUNED, and not by the clock."""
    return (trials["state"] == "PRUNED") & ~cut_short(trials)


CAPPED = ".capped"
"""A file that marks a search ended by ``search.max_seconds``: the trials per cell asked for."""


CONTROLS = ("random", "pixels")
"""What every encoder must beat: the untrained network, and the image itself."""


NETWORK = ("architecture", "width", "colour", "normalise")
"""The settings of an encoder that change its network, and not only its pretraining."""


def load(run: str | Path | Location) -> Run:
    """Open a run folder, local or on an object store.

    Raises:
        InputError: it is not a run (no study.yaml), or study.yaml is torn.
    """
    import yaml

    def parse(content: bytes) -> Any:
        return yaml.safe_load(content.decode("utf-8"))

    location = Location(run)
    file = location / "study.yaml"
    if not file.is_file():
        raise InputError(f"{location}: no study.yaml in it; expected the folder of a run")
    study = _read(file, parse)
    if isinstance(study, dict) and study.get("state") == "RUNNING" and driver_is_gone(location):
        study = _read(file, parse)  # it may just have ended, and have said so before
        if study.get("state") == "RUNNING":
            study["state"] = "INTERRUPTED"  # the driver was killed before it could say so
    config = study.get("config") if isinstance(study, dict) else None
    cells = config.get("cells") if isinstance(config, dict) else None
    if not isinstance(cells, dict) or not {"variants", "label_ratios"} <= set(cells):
        raise InputError(f"{file}: no config.cells with variants and label_ratios; is it torn?")
    study["data"] = study.get("data") or {}
    return Run(location, study)


def read_frame(file: Location, columns: dict[str, str]) -> pd.DataFrame:
    """A parquet file, or an empty frame if there is none.

    Raises:
        InputError: it cannot be read, or lacks one of the columns.
    """
    import pandas as pd

    if not file.is_file():
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in columns.items()})
    frame = _read(file, lambda content: from_parquet(content).to_pandas())
    for name in LATER & columns.keys() - set(frame):
        frame[name] = None
    missing = [name for name in columns if name not in frame]
    if missing:
        raise InputError(f"{file}: no column {missing[0]}; found {' '.join(map(str, frame))}")
    return frame.astype({name: _FLOAT for name, kind in columns.items() if kind == _FLOAT})


def _numpy(sealed: bytes) -> Any:
    """What `numpy.save` or `numpy.savez` wrote."""
    import numpy as np

    return np.load(io.BytesIO(unseal_end(sealed, required=False)), allow_pickle=False)


def _read(file: Location, parse: Callable[[bytes], T]) -> T:
    try:
        return parse(file.read_bytes())
    except Exception as error:  # the parsers share no base class for a torn file
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{file}: cannot be read ({reason}); expected a whole file: put back a copy of it, "
            f"or delete it and resume"
        ) from None
