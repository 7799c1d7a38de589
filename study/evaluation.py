"""The final evaluation: the only place where the test set is read.

Each cell's chosen configuration is trained anew, once a repeat, stops and keeps its best epoch
by the validation set, and is then tested, also on the test images in noise where the study asks
for it. A repeat has a seed of its own for weights, batches and labelled images, the same for
every variant, so that variants can be compared pair by pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data.sealing import digest, seal_json
from data.storage import Location
from study.cells import Cell, cells_of
from study.choosing import best_repeat, winner
from study.chosen import file_name, from_row, settings_of
from study.classifiers_kept import card_file, model_file
from study.config import Config
from study.material import Material
from study.records import TEST_METRICS, Ledger, Row
from study.seeds import seed_for

if TYPE_CHECKING:
    from study.trial import Fitted

PARTS = ("evaluation_epochs", "predictions", "robustness")  # tables with many rows a repeat


@dataclass(frozen=True)
class Repeat:
    """One training of the final evaluation."""

    cell: Cell
    repeat: int
    lr: float
    recipe: str | None = None  # where the search chose it
    settings: str | None = None  # where it chose some, see `study.chosen`

    @property
    def trained_as(self) -> Cell:
        """What is trained."""
        return self.cell.trained_as(self.recipe)

    @property
    def name(self) -> str:
        return f"{self.cell.name}-repeat{self.repeat}"

    def weights(self, run: Location) -> Location:
        """Where it leaves its weights until the best repeat is known."""
        return run / "models" / f"{self.name}.safetensors"

    @property
    def fit_name(self) -> str:
        """Names its checkpoint; a study that grows may choose another point."""
        return f"{self.name}-{file_name(self.lr, self.recipe, self.settings)}"


def repeat_of(row: Mapping[str, Any]) -> Repeat:
    """The repeat that a row of evaluations is of."""
    cell = Cell(row["variant"], row["label_ratio"])
    return Repeat(cell, row["repeat"], **from_row(row))


def noise_levels(config: Config) -> tuple[float, ...]:
    """The shares of noisy pixels in (0, 1] that a study tests with, in order, each once.

    A share of 0 is the clean test, which every study with a final evaluation has.
    """
    if config.evaluation.repeats == 0:
        return ()
    return tuple(sorted({share for share in config.evaluation.noise if share > 0}))


def forget_outdated(config: Config, ledger: Ledger) -> None:
    """Drop the evaluations of what a cell does not choose any more, before it is evaluated anew.

    A study that has grown may choose another configuration. Repeats of both are no sample of
    either, and a repeat that fails is never replaced.
    """
    for cell in cells_of(config):
        trial = _chosen(cell, config, ledger)
        for row in [row for row in ledger.rows("evaluations") if row["cell"] == cell.name]:
            if trial and from_row(row) != from_row(trial):
                for table in (*PARTS, "evaluations"):
                    ledger.drop(table, cell=cell.name, repeat=row["repeat"])
    ledger.flush()


def repeats_to_run(config: Config, ledger: Ledger) -> Iterator[Repeat]:
    """What is still to be evaluated; what took longest in the search first, not left for the end.

    A cell whose model is gone has its best repeat run again, which leaves it. So has a repeat that
    lacks a test in noise.
    """
    rows = ledger.rows("evaluations")
    done = {repeat_of(row) for row in rows} - set(_untested_in_noise(config, ledger))
    for name in {row["cell"] for row in rows}:
        if not (model_file(ledger.run, name).is_file() and card_file(ledger.run, name).is_file()):
            best = best_repeat([r for r in rows if r["cell"] == name], config.search.metric)
            assert best is not None
            done.discard(repeat_of(best))
    chosen = [(cell, _chosen(cell, config, ledger)) for cell in cells_of(config)]
    found = [(cell, trial) for cell, trial in chosen if trial is not None]
    for cell, trial in sorted(
        found, key=lambda one: (-(one[1]["seconds"] or 0), -one[0].label_ratio)
    ):
        for repeat in range(config.evaluation.repeats):
            one = Repeat(cell, repeat, **from_row(trial))
            if one not in done:
                yield one


def _chosen(cell: Cell, config: Config, ledger: Ledger) -> Mapping[str, Any] | None:
    trials = [row for row in ledger.rows("trials") if row["cell"] == cell.name]
    return winner(trials, config.search.metric)


def _untested_in_noise(config: Config, ledger: Ledger) -> Iterator[Repeat]:
    """The evaluations without all of the study's levels of noise."""
    tested = {(row["cell"], row["repeat"], row["noise"]) for row in ledger.rows("robustness")}
    for row in ledger.rows("evaluations"):
        wanted = {(row["cell"], row["repeat"], level) for level in noise_levels(config)}
        if not wanted <= tested:
            yield repeat_of(row)


def evaluate(material: Material, repeat: Repeat) -> dict[str, Any]:
    """Train and test one repeat; runs in a worker.

    Returns:
        The ``row`` of evaluations, and by the name of each of `PARTS` its rows.
    """
    from models.weights import to_bytes
    from study.fitting import Checkpoint
    from study.tracking import tracker
    from study.trial import train_classifier

    config, cell = material.config, repeat.cell
    seed = seed_for(config.seed, "repeat", repeat.repeat)
    checkpoint = Checkpoint(material.run, repeat.fit_name)
    columns = cell.columns | {"repeat": repeat.repeat}
    settings = settings_of(repeat.settings)
    facts = columns | repeat.trained_as.columns | {"cell": cell.name, "lr": repeat.lr, "seed": seed}
    facts |= settings
    with tracker(material, repeat.name, repeat.fit_name, "evaluation", facts) as tracked:
        fitted = train_classifier(
            material,
            repeat.trained_as,
            lr=repeat.lr,
            settings=settings,
            seed=seed,
            report=tracked.epoch,
            logger=tracked.loggers,
            repeat=repeat.repeat,
            checkpoint=checkpoint,
            final=True,
        )
        ends, module = fitted.ends, fitted.trained
        epoch = ends.restore_best(module.network)
        tested = _test(fitted)
        tracked.tested(tested)
    repeat.weights(material.run).write_bytes(to_bytes(fitted.network.state_dict(), {}))
    checkpoint.delete()
    best = {name: epoch[name] for name in ("val_loss", "val_acc", "val_f1")}
    row = columns | {"seed": seed, "lr": repeat.lr, "recipe": repeat.recipe}
    row |= {"settings": repeat.settings, "epochs": len(ends.rows)}
    row |= {"best_epoch": epoch["epoch"], **best, **tested}
    return {
        "row": row | {"seconds": sum(epoch["seconds"] for epoch in ends.rows)},
        "evaluation_epochs": [columns | epoch for epoch in ends.rows],
        "predictions": [columns | one for one in _predictions(material, module.test_outputs)],
        "robustness": [
            columns | {"noise": share} | one
            for share in noise_levels(config)
            for one in in_noise(material, fitted, share)
        ],
    }


def _test(fitted: Fitted) -> dict[str, float]:
    """Its scores on the test images, with the weights that it has now."""
    from study.fitting import make_trainer

    trainer = make_trainer(fitted.device)
    trainer.test(fitted.trained, datamodule=fitted.data, verbose=False)
    return {name: float(trainer.callback_metrics[name]) for name in TEST_METRICS}


def in_noise(material: Material, fitted: Fitted, share: float) -> Iterator[Row]:
    """What a classifier says of the test images in noise, a row an image.

    A frozen encoder's features were computed of clean images, so the whole network sees these.

    Args:
        share: of noisy pixels, in [0, 1].
    """
    from models.training import ClassifierModule
    from study.fitting import make_trainer
    from study.noisy import NoisyBatches

    judge = ClassifierModule(fitted.network, len(material.species))
    batches = NoisyBatches(material, material.rows("test"), share, fitted.device)
    make_trainer(fitted.device).test(judge, dataloaders=batches, verbose=False)
    yield from _predictions(material, judge.test_outputs)


def _predictions(material: Material, outputs: Any) -> Iterator[Row]:
    species = material.species
    for place, index in enumerate(material.rows("test")):
        yield {
            "file": material.images.files[index],
            "true": species[int(outputs.true[place])],
            "pred": species[int(outputs.pred[place])],
            "probability": float(outputs.probability[place]),
            "loss": float(outputs.loss[place]),
        }


def record(material: Material, ledger: Ledger, repeat: Repeat, result: dict[str, Any]) -> None:
    """Put a finished repeat into the ledger, and keep its weights if they are the cell's best.

    The weights come first: if the process dies in between, the repeat is run again.
    """
    own: Row = result["row"]
    of_cell = [row for row in ledger.rows("evaluations") if row["cell"] == own["cell"]]
    others = [row for row in of_cell if row["repeat"] != own["repeat"]]
    best = best_repeat([*others, own], material.config.search.metric)
    weights = repeat.weights(material.run)
    if best is own:
        content = weights.read_bytes()
        model_file(material.run, repeat.cell.name).write_bytes(content)
        card = own | {
            "checksum": digest(content),
            "species": list(material.species),
            "image_size": material.images.image_size,
            "recipe": material.config.recipe(repeat.trained_as.variant).model_dump(),
        }
        card_file(material.run, repeat.cell.name).write_text(seal_json(card))
    for table in PARTS:
        if len(others) < len(of_cell):
            ledger.drop(table, cell=own["cell"], repeat=own["repeat"])
        for row in result[table]:
            ledger.put(table, row)
    ledger.put("evaluations", own)
    ledger.flush()
    weights.delete()
