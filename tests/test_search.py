"""The search's contract, without Ray: an analytic objective and a ten-line loop drive it.

Every trial's curve is known: its height falls with the distance of its learning rate from the
cell's best, and the smaller the rate the slower it rises, so that curves cross.
"""

from __future__ import annotations

import errno
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

import study.optuna_file
import study.samplers
import study.search
from data.storage import Location
from study.cells import Cell, trial_number
from study.choosing import winner
from study.config import Config, config_from
from study.optuna_file import OptunaFile
from study.records import Ledger, Row
from study.samplers import SAMPLERS
from study.search import CUT_SHORT, StudySearch, Trial

EPOCHS = 27
BEST_LR = {"A@10": 3e-5, "B1@10": 3e-4, "A@100": 3e-3, "B1@100": 1e-3}
every_search = pytest.mark.parametrize(
    ("sampler", "scheduler"), list(product(SAMPLERS, ("asha", "none")))
)


def configure(**search: Any) -> Config:
    trials = 9 if search.get("sampler") == "gp" else 16  # a tenth of a second each
    search = {"trials": trials, "lr": [1e-5, 1e-2], "grace_period": 3} | search
    cells = {"variants": ["A", "B1"], "label_ratios": [10, 100]}
    tree = {"cells": cells, "training": {"max_epochs": EPOCHS}, "search": search}
    return config_from(tree, "a test")


def curve(cell: str, lr: float, epoch: int) -> float:
    """val_f1 of a trial at an epoch, in [0, 1)."""
    height = max(0.05, 0.9 - 0.25 * abs(math.log10(lr / BEST_LR[cell])))
    return height * (1 - math.exp(-epoch * (1 + math.log10(lr / 1e-5)) / 6))


def epoch_row(trial: Trial, epoch: int) -> Row:
    f1 = curve(trial.cell.name, trial.lr, epoch)
    return {
        "epoch": epoch,
        "train_loss": 1.0,
        "val_loss": 1 - f1,
        "val_acc": f1,
        "val_f1": f1,
        "seconds": 1.0,
        "ended": float(epoch),
    }


def always(cell: Cell) -> bool:
    return True


def drive(
    search: StudySearch,
    at_once: int = 1,
    stop_after: int | None = None,
    row: Callable[[Trial, int], Row] = epoch_row,
) -> None:
    """Run trials side by side, an epoch of each in turn, until no more or ``stop_after`` epochs.

    A trial that was interrupted goes on after its last epoch on record.
    """
    reports = 0
    live: list[tuple[Trial, Iterator[int]]] = []
    while True:
        while len(live) < at_once and (trial := search.next_trial()):
            done = [e["epoch"] for e in search.ledger.rows("epochs") if is_of(e, trial)]
            live.append((trial, iter(range(max(done, default=0) + 1, EPOCHS + 1))))
        if not live:
            return
        for trial, epochs in list(live):
            epoch = next(epochs, None)
            goes_on = epoch is not None and search.report(trial, row(trial, epoch))
            reports += 1
            if reports == stop_after:
                return
            if not goes_on or epoch == EPOCHS:
                search.end(trial)
                live.remove((trial, epochs))


def is_of(row: Row, trial: Trial) -> bool:
    return bool(row["trial_id"] == trial.trial_id)


def run(folder: Path, config: Config, **options: Any) -> Ledger:
    ledger = Ledger(Location(folder))
    drive(StudySearch(config, ledger, always), **options)
    return ledger


def outcome(ledger: Ledger) -> dict[str, tuple[Any, ...]]:
    names = ("lr", "seed", "state", "epochs", "best_epoch", "val_f1", "error")
    return {row["trial_id"]: tuple(row[n] for n in names) for row in ledger.rows("trials")}


def epochs_of(ledger: Ledger) -> set[tuple[str, int]]:
    return {(row["trial_id"], row["epoch"]) for row in ledger.rows("epochs")}


def of_cell(ledger: Ledger, cell: str) -> list[Row]:
    rows = [row for row in ledger.rows("trials") if row["cell"] == cell]
    return sorted(rows, key=lambda row: row["trial_id"])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    ledger = run(tmp_path_factory.mktemp("undisturbed"), configure())
    ledger.save()
    return ledger


@every_search
@pytest.mark.parametrize("at_once", [1, 3])
def test_each_cell_finds_its_own_best_learning_rate(
    tmp_path: Path, sampler: str, scheduler: str, at_once: int
) -> None:
    config = configure(sampler=sampler, scheduler=scheduler)
    ledger = run(tmp_path, config, at_once=at_once)
    assert Counter(row["cell"] for row in ledger.rows("trials")) == dict.fromkeys(
        BEST_LR, config.search.trials
    )
    for cell, best in BEST_LR.items():
        chosen = winner(of_cell(ledger, cell), "val_f1")
        assert chosen is not None
        near = 4 if sampler == "random" else 2.5
        assert best / near < chosen["lr"] < best * near, cell
        assert chosen["epochs"] == EPOCHS


def test_every_cell_gets_exactly_its_trials_and_all_end_evenly(tmp_path: Path) -> None:
    started: list[str] = []

    class Watched(StudySearch):
        def next_trial(self) -> Trial | None:
            trial = super().next_trial()
            started.extend([trial.cell.name] if trial else [])
            return trial

    ledger = Ledger(Location(tmp_path))
    drive(Watched(configure(trials=6), ledger, always), at_once=3)
    assert Counter(row["cell"] for row in ledger.rows("trials")) == dict.fromkeys(BEST_LR, 6)
    for n in range(len(started)):
        so_far = Counter(started[: n + 1])
        assert max(so_far.values()) - min(so_far[cell] for cell in BEST_LR) <= 1
    assert {row["state"] for row in ledger.rows("trials")} == {"COMPLETE", "PRUNED"}


def test_pruning_saves_most_epochs_and_prunes_before_the_end_only(undisturbed: Ledger) -> None:
    trials = undisturbed.rows("trials")
    pruned = [row["epochs"] for row in trials if row["state"] == "PRUNED"]
    assert set(pruned) == {3, 9}
    assert all(row["epochs"] == EPOCHS for row in trials if row["state"] == "COMPLETE")
    assert sum(row["epochs"] for row in trials) < 0.6 * EPOCHS * len(trials)


def test_a_row_tells_of_the_best_epoch_not_the_last(tmp_path: Path) -> None:
    def peak(trial: Trial, epoch: int) -> Row:
        return epoch_row(trial, epoch) | {"val_f1": 1 - abs(epoch - 5) / 100, "val_loss": epoch}

    ledger = run(tmp_path, configure(trials=1), row=peak)
    for row in ledger.rows("trials"):
        assert (row["best_epoch"], row["val_f1"], row["val_loss"]) == (5, 1.0, 5)
        assert (row["epochs"], row["seconds"]) == (EPOCHS, EPOCHS)


def test_the_first_trial_is_the_papers_learning_rate(undisturbed: Ledger, tmp_path: Path) -> None:
    assert all(of_cell(undisturbed, cell)[0]["lr"] == 1e-4 for cell in BEST_LR)
    ledger = run(tmp_path, configure(trials=2, lr=[1e-3, 1e-2]))
    assert all(1e-3 <= row["lr"] <= 1e-2 for row in ledger.rows("trials"))
    assert len({row["lr"] for row in ledger.rows("trials")}) == 8


@every_search
def test_no_rate_is_tried_twice_and_only_asha_stops_trials(
    tmp_path: Path, sampler: str, scheduler: str
) -> None:
    trials = run(
        tmp_path, configure(trials=6, sampler=sampler, scheduler=scheduler), at_once=2
    ).rows("trials")
    assert len({row["lr"] for row in trials}) == 21, "1e-4 in each of four cells, else its own"
    ends = {(row["state"], row["epochs"]) for row in trials}
    stopped = {("PRUNED", 3), ("PRUNED", 9)} if scheduler == "asha" else set()
    assert ends == {("COMPLETE", EPOCHS)} | stopped


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_loss_is_minimised(tmp_path: Path, sampler: str) -> None:
    config = configure(metric="val_loss", trials=8, sampler=sampler)
    ledger = run(tmp_path, config)
    for cell in BEST_LR:
        rows = of_cell(ledger, cell)
        chosen = winner(rows, "val_loss")
        assert chosen is not None
        assert chosen["val_loss"] == min(r["val_loss"] for r in rows if r["state"] == "COMPLETE")
        assert "PRUNED" in {row["state"] for row in rows}


# --- Interrupted ---------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("stop_after", [1, 3, 30, 31, 57, 100, 251, 400])
def test_an_interrupted_search_ends_as_an_undisturbed_one(
    tmp_path: Path, undisturbed: Ledger, stop_after: int, durable: bool
) -> None:
    """Killed after any epoch, with its last records on disk or not yet."""
    ledger = run(tmp_path, configure(), stop_after=stop_after)
    if durable:
        ledger.flush()
    again = run(tmp_path, configure())
    assert outcome(again) == outcome(undisturbed)
    assert epochs_of(again) == epochs_of(undisturbed)


def one_fails(trial: Trial, epoch: int) -> Row:
    bad = trial.trial_id == "A@100-001" and epoch == 3
    return epoch_row(trial, epoch) | ({"val_f1": math.nan} if bad else {})


@pytest.fixture(scope="module")
def whole_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Ledger]:
    @lru_cache
    def whole(sampler: str, scheduler: str) -> Ledger:
        config = configure(sampler=sampler, scheduler=scheduler)
        return run(tmp_path_factory.mktemp(sampler), config, row=one_fails)

    return whole


@every_search
@pytest.mark.parametrize("stop_after", [58, 301])
def test_every_search_goes_on_as_if_undisturbed(
    tmp_path: Path,
    whole_of: Callable[[str, str], Ledger],
    sampler: str,
    scheduler: str,
    stop_after: int,
) -> None:
    config = configure(sampler=sampler, scheduler=scheduler)
    run(tmp_path, config, stop_after=stop_after, row=one_fails).flush()
    again = run(tmp_path, config, row=one_fails)
    assert outcome(again) == outcome(whole_of(sampler, scheduler))
    assert epochs_of(again) == epochs_of(whole_of(sampler, scheduler))


def test_killed_between_a_verdict_and_its_record(tmp_path: Path, undisturbed: Ledger) -> None:
    """The report that prunes is on disk, and the driver dies before it ends the trial."""
    ledger = Ledger(Location(tmp_path))
    search = StudySearch(configure(), ledger, always)
    while True:
        trial = search.next_trial()
        assert trial is not None
        epochs = (e for e in range(1, EPOCHS + 1) if not search.report(trial, epoch_row(trial, e)))
        if next(epochs, None) is not None:
            break
        search.end(trial)
    ledger.save()
    assert outcome(run(tmp_path, configure())) == outcome(undisturbed)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_interrupted_again_and_again_side_by_side(tmp_path: Path, sampler: str) -> None:
    config = configure(sampler=sampler)
    for _ in range(12):
        run(tmp_path, config, at_once=3, stop_after=61)
    ledger = run(tmp_path, config, at_once=3)
    assert Counter(row["cell"] for row in ledger.rows("trials")) == dict.fromkeys(
        BEST_LR, config.search.trials
    )
    assert {row["state"] for row in ledger.rows("trials")} == {"COMPLETE", "PRUNED"}
    epochs = Counter(row["trial_id"] for row in ledger.rows("epochs"))
    assert all(row["epochs"] == epochs[row["trial_id"]] for row in ledger.rows("trials"))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_finished_search_grows_by_what_is_missing(tmp_path: Path, sampler: str) -> None:
    small = run(tmp_path, configure(sampler=sampler, trials=6))
    small.save(closing=True)
    before = outcome(small)
    config = configure(sampler=sampler)
    grown = run(tmp_path, config)
    assert len(grown.rows("trials")) == 4 * config.search.trials
    assert {name: outcome(grown)[name] for name in before} == before
    again = StudySearch(config, Ledger(Location(tmp_path)), always)
    assert again.finished
    assert again.next_trial() is None


def test_an_epoch_reported_twice_is_judged_once(tmp_path: Path) -> None:
    """As when a trial's machine dies and it goes back to its checkpoint."""
    ledger = Ledger(Location(tmp_path))
    search = StudySearch(configure(), ledger, always)
    trial = search.next_trial()
    assert trial is not None
    for epoch in (1, 2, 3, 2, 3, 4):
        assert search.report(trial, epoch_row(trial, epoch) | {"seconds": float(epoch)})
    assert search.report(trial, epoch_row(trial, 3) | {"val_f1": 0.0})
    row = search.end(trial)
    assert (row["epochs"], row["seconds"]) == (4, 10.0)
    assert [e["val_f1"] for e in ledger.rows("epochs")] == [
        curve(trial.cell.name, trial.lr, epoch) for epoch in (1, 2, 3, 4)
    ]


@pytest.fixture
def short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(SAMPLERS["tpe"], memory=8)
    monkeypatch.setitem(study.samplers.SAMPLERS, "tpe", short)
    monkeypatch.setattr(study.search, "GOOD", 2)


@pytest.mark.usefixtures("short_memory")
@pytest.mark.parametrize("stop_after", [57, 400, 401])
def test_a_search_that_forgets_most_trials_goes_on_as_if_undisturbed(
    tmp_path: Path, stop_after: int
) -> None:
    whole = run(tmp_path / "whole", configure(trials=30))
    run(tmp_path / "cut", configure(trials=30), stop_after=stop_after)
    cut = run(tmp_path / "cut", configure(trials=30))
    assert outcome(cut) == outcome(whole)
    for cell, best in BEST_LR.items():
        chosen = winner(of_cell(cut, cell), "val_f1")
        assert chosen is not None
        assert best / 2.5 < chosen["lr"] < best * 2.5, cell


@pytest.mark.usefixtures("short_memory")
def test_its_sampler_sees_a_bounded_number_and_optunas_file_gets_all(tmp_path: Path) -> None:
    ledger = Ledger(Location(tmp_path))
    search = StudySearch(configure(trials=30), ledger, always)
    database = OptunaFile(Location(tmp_path))
    drive(search, at_once=3, stop_after=300)
    database.save(search.searches.values())
    drive(search, at_once=3)
    database.save(search.searches.values())
    assert all(len(cell.study.trials) <= 8 + 3 for cell in search.searches.values())
    for cell in BEST_LR:
        numbers = [trial.number for trial in open_database(tmp_path, cell).trials]
        finished = [r for r in of_cell(ledger, cell) if r["state"] != "RUNNING"]
        assert sorted(numbers) == [trial_number(row["trial_id"]) for row in finished]


def test_a_trial_whose_record_was_lost_comes_again_at_its_place(
    tmp_path: Path, undisturbed: Ledger
) -> None:
    ledger = run(tmp_path, configure(scheduler="none", trials=6))
    whole = outcome(ledger)
    ledger.drop("trials", trial_id="A@10-003")
    ledger.save()
    again = run(tmp_path, configure(scheduler="none", trials=6))
    assert outcome(again) == whole, "also its learning rate: it follows from those before it"
    assert epochs_of(again) == epochs_of(ledger) | {("A@10-003", e + 1) for e in range(EPOCHS)}


# --- Failed, withheld, stopped -------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_that_is_no_number_fails_the_trial_and_the_search_goes_on(
    tmp_path: Path, value: float
) -> None:
    def spoilt(trial: Trial, epoch: int) -> Row:
        bad = trial.trial_id == "A@100-001" and epoch == 2
        return epoch_row(trial, epoch) | ({"val_f1": value} if bad else {})

    ledger = run(tmp_path, configure(trials=4), row=spoilt)
    ledger.save(closing=True)
    failed = [row for row in ledger.rows("trials") if row["state"] == "FAIL"]
    assert [row["trial_id"] for row in failed] == ["A@100-001"]
    assert failed[0]["error"] == f"val_f1 is {value} at epoch 2"
    assert (failed[0]["epochs"], failed[0]["best_epoch"]) == (2, 1)
    assert len(run(tmp_path, configure(trials=5)).rows("trials")) == 20, "can be opened again"


def test_a_failed_trial_leaves_no_mark_on_the_rungs(tmp_path: Path) -> None:
    """Its NaN fell on a rung; read back from the records, it must not stop all others there."""

    def spoilt(trial: Trial, epoch: int) -> Row:
        bad = trial.trial_id == "A@100-001" and epoch == 3
        return epoch_row(trial, epoch) | ({"val_f1": math.nan} if bad else {})

    whole = run(tmp_path / "whole", configure(trials=8), row=spoilt)
    run(tmp_path / "cut", configure(trials=8), row=spoilt, stop_after=112)
    assert outcome(run(tmp_path / "cut", configure(trials=8), row=spoilt)) == outcome(whole)


def test_killed_after_a_metric_that_is_no_number(tmp_path: Path) -> None:
    ledger = Ledger(Location(tmp_path))
    search = StudySearch(configure(trials=2), ledger, always)
    trial = search.next_trial()
    assert trial is not None
    assert not search.report(trial, epoch_row(trial, 1) | {"val_f1": math.nan})
    ledger.flush()
    states = {
        row["trial_id"]: row["state"] for row in run(tmp_path, configure(trials=2)).rows("trials")
    }
    assert states.pop(trial.trial_id) == "FAIL"
    assert len(states) == 7


def test_a_trial_that_raises_is_fail_with_its_reason(tmp_path: Path) -> None:
    ledger = Ledger(Location(tmp_path))
    search = StudySearch(configure(trials=2), ledger, always)
    raising, silent = search.next_trial(), search.next_trial()
    assert raising is not None
    assert silent is not None
    search.report(raising, epoch_row(raising, 1))
    search.fail(raising, "OutOfMemoryError: 3 GiB")
    row = search.end(raising, node="10.0.0.1")
    assert (row["state"], row["error"]) == ("FAIL", "OutOfMemoryError: 3 GiB")
    assert (row["epochs"], row["node"]) == (1, "10.0.0.1")
    row = search.end(silent)
    assert (row["state"], row["epochs"], row["val_f1"]) == ("FAIL", 0, None)
    assert row["error"]
    drive(search)
    assert Counter(row["state"] for row in ledger.rows("trials"))["FAIL"] == 2
    assert len(ledger.rows("trials")) == 8


def test_cells_are_withheld_until_their_encoder_is_there(tmp_path: Path) -> None:
    there: set[str] = set()
    config = configure(trials=2)
    search = StudySearch(config, Ledger(Location(tmp_path)), lambda c: c.variant in {"A"} | there)
    trials = [search.next_trial() for _ in range(5)]
    assert [trial.cell.name for trial in trials if trial] == ["A@100", "A@10"] * 2
    assert trials[-1] is None
    assert not search.finished, "None means: not now"
    there.add("B1")
    trial = search.next_trial()
    assert trial is not None
    assert trial.cell.name == "B1@100"


def test_an_interrupted_trial_waits_for_its_encoder_too(tmp_path: Path) -> None:
    config = configure(trials=1)
    search = StudySearch(config, Ledger(Location(tmp_path)), lambda cell: cell.variant == "B1")
    assert search.next_trial() is not None
    search = StudySearch(config, Ledger(Location(tmp_path)), lambda cell: cell.variant == "A")
    trials = [search.next_trial() for _ in range(3)]
    assert [trial.cell.name for trial in trials if trial] == ["A@100", "A@10"]
    assert not search.finished


def test_a_cell_whose_encoder_cannot_be_had_is_given_up(tmp_path: Path) -> None:
    ledger = Ledger(Location(tmp_path))
    lost = Cell("B1", 10)
    run(tmp_path, configure(trials=3), stop_after=1)  # one interrupted trial
    ledger = Ledger(Location(tmp_path))
    search = StudySearch(configure(trials=3), ledger, lambda cell: cell != lost)
    search.give_up(lost, "encoder x: MemoryError")
    search.give_up(lost, "encoder x: MemoryError")
    drive(search)
    assert search.finished
    rows = of_cell(ledger, lost.name)
    assert [(row["state"], row["error"]) for row in rows] == [
        ("FAIL", "encoder x: MemoryError")
    ] * 3
    others = [row for row in ledger.rows("trials") if row["cell"] != lost.name]
    assert len(others) == 9
    assert "FAIL" not in {row["state"] for row in others}
    assert StudySearch(configure(trials=3), Ledger(Location(tmp_path)), always).finished


def test_a_search_out_of_time_starts_nothing_and_prunes_what_runs(tmp_path: Path) -> None:
    search = StudySearch(configure(), Ledger(Location(tmp_path)), always)
    early, late = search.next_trial(), search.next_trial()
    assert early is not None
    assert late is not None
    for epoch in range(1, EPOCHS):
        search.report(late, epoch_row(late, epoch))
    search.stop()
    assert search.next_trial() is None
    assert search.finished
    assert not search.report(early, epoch_row(early, 1))
    row = search.end(early)
    assert (row["state"], row["error"]) == ("PRUNED", CUT_SHORT)
    search.report(late, epoch_row(late, EPOCHS))
    assert search.end(late)["state"] == "COMPLETE", "its last epoch was its last anyway"


def test_a_search_out_of_time_leaves_no_trial_that_waits(tmp_path: Path) -> None:
    """Handed back by a lost process, put off for want of memory, or lost after the end."""
    ledger = Ledger(Location(tmp_path))
    search = StudySearch(configure(), ledger, always)
    trials = [search.next_trial() for _ in range(4)]
    lost, put_off, late, later = (trial for trial in trials if trial)
    search.report(lost, epoch_row(lost, 1))
    search.take_up([lost])
    search.postpone(put_off)
    search.stop()
    search.take_up_postponed()
    search.take_up([late])
    search.postpone(later)
    search.end(later)
    rows = ledger.rows("trials")
    assert {(row["state"], row["error"]) for row in rows} == {("PRUNED", CUT_SHORT)}
    assert [row["epochs"] for row in rows] == [1, 0, 0, 0]
    again = StudySearch(configure(), Ledger(Location(tmp_path)), always)
    assert not again.finished, "more may be asked for, and follow what is there"


# --- optuna.db -----------------------------------------------------------------------------------


def open_database(folder: Path, cell: str) -> optuna.Study:
    return optuna.load_study(study_name=cell, storage=f"sqlite:///{folder / 'optuna.db'}")


def saved(folder: Path, ledger: Ledger, config: Config) -> None:
    search = StudySearch(config, ledger, always)
    OptunaFile(Location(folder)).save(search.searches.values())


def check_database(folder: Path, ledger: Ledger) -> None:
    curves: dict[str, dict[int, float]] = {}
    for row in ledger.rows("epochs"):
        if row["val_f1"] is not None:
            curves.setdefault(row["trial_id"], {})[row["epoch"]] = row["val_f1"]
    for cell in BEST_LR:
        found = open_database(folder, cell).trials
        finished = [row for row in of_cell(ledger, cell) if row["state"] != "RUNNING"]
        assert [t.state.name for t in found] == [row["state"] for row in finished]
        for trial, row in zip(found, finished, strict=True):
            assert trial.params == {"lr": row["lr"]}
            assert trial.intermediate_values == curves.get(row["trial_id"], {})
            if row["state"] == "COMPLETE":
                assert trial.value == row["val_f1"] == max(trial.intermediate_values.values())
            if row["state"] == "PRUNED":
                assert trial.last_step == row["epochs"] < EPOCHS
            assert trial.user_attrs == {
                name: value
                for name, value in row.items()
                if value is not None and name not in ("lr", "state")
            }
            # Each epoch ends a second after the one before, the first at 1: not when it was told.
            assert trial.datetime_start == datetime.fromtimestamp(0)
            assert trial.datetime_complete == datetime.fromtimestamp(row["epochs"])


def test_optuna_knows_pruned_trials_with_their_curves_and_finished_ones_by_their_best(
    tmp_path: Path,
) -> None:
    ledger = Ledger(Location(tmp_path))
    search, database = StudySearch(configure(), ledger, always), OptunaFile(Location(tmp_path))
    drive(search, at_once=2, stop_after=150)
    database.save(search.searches.values())  # in the middle, with two trials running
    check_database(tmp_path, ledger)
    drive(search)
    database.save(search.searches.values())
    ends = {row["trial_id"] for row in ledger.rows("trials") if row["state"] == "RUNNING"}
    assert len(ends) == 2, "the loop above left them"
    check_database(tmp_path, ledger)
    states = [t.state for cell in BEST_LR for t in open_database(tmp_path, cell).trials]
    assert set(states) == {TrialState.COMPLETE, TrialState.PRUNED}


def test_optunas_file_can_be_rebuilt_from_the_records(tmp_path: Path, undisturbed: Ledger) -> None:
    saved(tmp_path, Ledger(undisturbed.run), configure())
    check_database(tmp_path, undisturbed)
    for cell, best in BEST_LR.items():
        assert best / 2.5 < open_database(tmp_path, cell).best_trial.params["lr"] < best * 2.5


def test_optuna_is_told_of_failed_trials(tmp_path: Path) -> None:
    def spoilt(trial: Trial, epoch: int) -> Row:
        bad = trial.trial_id.endswith("-001") and epoch == 2
        return epoch_row(trial, epoch) | ({"val_f1": math.nan} if bad else {})

    ledger = run(tmp_path, configure(trials=3), row=spoilt)
    saved(tmp_path, ledger, configure(trials=3))
    check_database(tmp_path, ledger)
    assert open_database(tmp_path, "A@10").trials[1].state == TrialState.FAIL


def test_what_storage_refused_of_optunas_file_is_copied_by_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(Location(tmp_path))
    search, database = StudySearch(configure(), ledger, always), OptunaFile(Location(tmp_path))
    drive(search, at_once=2, stop_after=150)

    def no_room(self: Location, source: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Location, "upload", no_room)
        with pytest.raises(OSError, match="No space left"):
            database.save(search.searches.values())
    database.save(search.searches.values())
    check_database(tmp_path, ledger)


@pytest.mark.parametrize("schema", [study.optuna_file._SCHEMA, "another"])
def test_optunas_file_is_the_same_where_optunas_tables_are_not_known(
    tmp_path: Path, undisturbed: Ledger, monkeypatch: pytest.MonkeyPatch, schema: str
) -> None:
    monkeypatch.setattr(study.optuna_file, "_SCHEMA", schema)
    saved(tmp_path, undisturbed, configure())
    check_database(tmp_path, undisturbed)
