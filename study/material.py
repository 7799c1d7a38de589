"""What trials work on: the images of a study, their splits and labels, on this node.

Everything is opened once a process and shared by its trials; the pixels are a memory map that
all processes of a node share.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from data.packing import PackedImages, open_packed
from data.splits import label_subset, pooled_split
from data.storage import Location
from study.config import Config
from study.records import Row
from study.sections import PooledSplit
from study.seeds import seed_for


@dataclass(frozen=True)
class Material:
    """A study as its workers know it; small, so it can be sent to each.

    Attributes:
        config: the study.
        run: the run's folder.
        packed: the folder of packed images (OUT/packed).
        key: which of them.
        study_id: tells the study from any other, one of the same name as well.
    """

    config: Config
    run: Location
    packed: Location
    key: str
    study_id: str = ""

    def patient(self, seconds: float) -> Material:
        """The same, with storage that may refuse for so long."""
        run, packed = Location(self.run, seconds), Location(self.packed, seconds)
        return replace(self, run=run, packed=packed)

    @property
    def images(self) -> PackedImages:
        return _open(self.packed, self.key)

    @property
    def species(self) -> tuple[str, ...]:
        return self.images.species

    def rows(self, split: str) -> np.ndarray:
        """Indices (n,) of the images of ``train``, ``valid`` or ``test``, in order."""
        return _splits(self.packed, self.key, self.config)[split]

    def labelled(self, ratio: int, repeat: int | None = None) -> np.ndarray:
        """Indices (n,) of the training images that are labelled.

        They depend on (seed, ratio) alone, are nested, and are the same for every variant; each
        repeat of the final evaluation draws its own, None is the search's.
        """
        train = self.rows("train")
        seed = seed_for(self.config.seed, "labels", repeat)
        return train[label_subset(self.images.labels[train], ratio, seed, self.species)]

    def label_rows(self) -> Iterable[Row]:
        """The rows of ``labels.parquet``."""
        for repeat in (None, *range(self.config.evaluation.repeats)):
            for ratio in sorted(self.config.cells.label_ratios):
                for index in self.labelled(ratio, repeat):
                    file = self.images.files[index]
                    yield {"label_ratio": ratio, "repeat": repeat, "file": file}


def checkpoint_file(run: Location, name: str) -> Location:
    """Where a fit of that name keeps its checkpoint until it ends."""
    return run / "checkpoints" / f"{name}.ckpt"


@lru_cache(maxsize=2)
def _open(packed: Location, key: str) -> PackedImages:
    return open_packed(packed, key)


@lru_cache(maxsize=8)
def _splits(packed: Location, key: str, config: Config) -> dict[str, np.ndarray]:
    images = _open(packed, key)
    names = np.array(images.splits)
    split = config.data.split
    if isinstance(split, PooledSplit):
        names = pooled_split(
            images.labels,
            seed_for(config.seed, "split"),
            split.test_per_class,
            split.valid_per_class,
            images.species,
        )
    return {name: np.flatnonzero(names == name) for name in ("train", "valid", "test")}
