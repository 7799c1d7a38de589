"""A table of real learning curves, for benchmarks that replay searches: results/curves.csv.

A row is one training: cell × learning rate × seed, with its macro F1 on the validation images
after each epoch, in [0, 1], and its seconds an epoch. All curves are whole (no early stopping). The
images, splits, labels and the encoder are those of a finished study RUN, here that of

    mariposa run quick --name photos --data DIR --set data.split=pooled   # DIR: butterflies20
    python benchmarks/curves.py runs/photos                               # 10 minutes, one thread
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator

import numpy as np
from record import RESULTS

from data.storage import Location
from study.cells import Cell, cells_of
from study.config import config_from
from study.material import Material
from study.records import Row
from study.seeds import seed_for
from study.study_file import read_study
from study.trial import train_classifier

TABLE = RESULTS / "curves.csv"
CELLS = ("A@10", "B1@10", "B2@10", "A@50", "B1@50", "B2@50")
LRS = tuple(float(f"{lr:.3g}") for lr in np.logspace(-5, -2, 19))  # six a decade
SEEDS = 2
EPOCHS = 12


class Curves:
    """The table, read.

    Attributes:
        cells: their names.
        lrs: (L,), ascending.
        f1: cell -> (L, seeds, epochs), in [0, 1].
    """

    def __init__(self) -> None:
        with TABLE.open(newline="") as file:
            rows = list(csv.DictReader(file))
        self.cells = tuple(dict.fromkeys(row["cell"] for row in rows))
        self.lrs = np.unique([float(row["lr"]) for row in rows])
        self.f1 = {cell: self._of(rows, cell) for cell in self.cells}

    def _of(self, rows: list[dict[str, str]], cell: str) -> np.ndarray:
        own = sorted(
            (float(row["lr"]), int(row["seed"]), [float(row[name]) for name in _epochs()])
            for row in rows
            if row["cell"] == cell
        )
        return np.array([f1 for _, _, f1 in own]).reshape(len(self.lrs), -1, EPOCHS)

    def at(self, cell: str, lr: float) -> np.ndarray:
        """(seeds, epochs): between the two recorded rates next to it, linear in log lr."""
        place = np.interp(np.log(lr), np.log(self.lrs), np.arange(len(self.lrs)))
        below = min(int(place), len(self.lrs) - 2)
        part = place - below
        curves = self.f1[cell]
        return (1 - part) * curves[below] + part * curves[below + 1]


def _epochs() -> tuple[str, ...]:
    return tuple(f"f1_{epoch}" for epoch in range(1, EPOCHS + 1))


def material_of(run: Location) -> Material:
    """What the study's trials worked on, with whole curves and no tracking."""
    study = read_study(run)
    tree = study["config"]
    tree["training"] |= {"max_epochs": EPOCHS, "patience": EPOCHS}
    tree["tracking"]["wandb"] = "disabled"
    config = config_from(tree, str(run))
    return Material(config, run, run.parent / "packed", study["data"]["key"])


def train(material: Material, cell: Cell, lr: float, seed: int) -> list[float | str]:
    """A row of the table."""
    rows: list[Row] = []
    train_classifier(
        material,
        cell,
        lr=lr,
        seed=seed_for(seed, "curves", cell.name),  # the same for each lr: only the rate differs
        report=rows.append,
    )
    seconds = sum(row["seconds"] for row in rows) / len(rows)
    return [cell.name, lr, seed, round(seconds, 3), *(round(row["val_f1"], 4) for row in rows)]


def trainings(material: Material) -> Iterator[tuple[Cell, float, int]]:
    for cell in cells_of(material.config):
        if cell.name in CELLS:
            yield from ((cell, lr, seed) for lr in LRS for seed in range(SEEDS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="the folder of a finished study")
    material = material_of(Location(parser.parse_args().run))
    began = time.process_time()
    with TABLE.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["cell", "lr", "seed", "seconds", *_epochs()])
        for cell, lr, seed in trainings(material):
            table.writerow(train(material, cell, lr, seed))
            file.flush()
            print(f"{cell.name} {lr:g} {seed}  {time.process_time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
