"""The parts of a study on Ray: why a cell may have no result."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from data.storage import InputError
from study.cells import Cell, cells_of
from study.encoders import load_encoder, plan_encoder
from study.material import Material
from study.progress import Progress
from study.records import Ledger
from study.search import CUT_SHORT
from study.stages import Stages, why_no_result


@pytest.mark.parametrize(
    ("states", "reason"),
    [
        (["COMPLETE", "FAIL"], None),
        (["FAIL", "FAIL"], "all 2 trials failed: NaN"),
        (["FAIL", "PRUNED", "PRUNED"], "no trial was completed: 1 failed, 2 pruned"),
        ([], "no trial was completed: 0 failed, 0 pruned"),
    ],
)
def test_a_cell_has_a_result_if_a_trial_is_complete(states: list[str], reason: str | None) -> None:
    assert why_no_result([{"state": state, "error": "NaN"} for state in states]) == reason


def stages(material: Material) -> Stages:
    """As at the beginning of a session, without Ray."""
    ledger = Ledger(material.run)
    progress = Progress(material.config, ledger, cells_of(material.config))
    no_gpus: Any = SimpleNamespace(gpus=0.0, waits=list)
    return Stages(material, ledger, progress, no_gpus, lambda: None)


def test_a_search_that_ran_out_of_time_has_ended_until_more_trials_are_wanted(
    make_material: Callable[..., Any],
) -> None:
    """A later session writes what is missing, and does not search on."""
    search = {"trials": 2, "lr": [1e-4, 1e-2], "grace_period": 1, "max_seconds": 60}
    material = make_material(search=search)
    first = stages(material)
    assert not first.search.finished
    trial = first.search.next_trial()
    assert trial is not None
    first.end_search()
    assert first.search.finished
    again = stages(material)
    assert again.search.finished
    (row,) = (row for row in again.ledger.rows("trials") if row["trial_id"] == trial.trial_id)
    assert (row["state"], row["error"]) == ("PRUNED", CUT_SHORT), "it was lost with its driver"
    first.search.end(trial)
    assert stages(material).search.finished
    more = make_material(search=search | {"trials": 3})
    grown = Material(more.config, material.run, material.packed, material.key)
    assert not stages(grown).search.finished


def test_time_that_is_over_while_trials_are_put_off_ends_the_search_afterwards(
    make_material: Callable[..., Any],
) -> None:
    search = {"trials": 2, "lr": [1e-4, 1e-2], "grace_period": 1, "max_seconds": 60}
    found = stages(make_material(search=search))
    trial = found.search.next_trial()
    assert trial is not None
    found.search.postpone(trial)
    found.deadline = 0.0
    found.tick()
    assert not found.search.stopped, "nothing starts meanwhile"
    found.search.take_up_postponed()
    found.tick()
    assert found.search.stopped
    (row,) = found.ledger.rows("trials")
    assert (row["state"], row["error"]) == ("PRUNED", CUT_SHORT)


def test_trials_put_back_after_the_clocks_end_are_run_and_not_cut_short(
    make_material: Callable[..., Any],
) -> None:
    """As after epochs were lost: what is COMPLETE must not end as PRUNED without an epoch."""
    search = {"trials": 1, "lr": [1e-4, 1e-2], "grace_period": 1, "max_seconds": 60}
    material = make_material(search=search)
    first = stages(material)
    trial = first.search.next_trial()
    assert trial is not None
    epoch = {"epoch": 4, "train_loss": 1.0, "val_loss": 1.0, "val_acc": 0.5, "val_f1": 0.5}
    first.search.report(trial, epoch | {"seconds": 1.0, "ended": 0.0})
    first.search.end(trial)
    first.end_search()
    first.ledger.drop("epochs", trial_id=trial.trial_id)
    first.ledger.save(closing=True)
    again = stages(material)
    assert again.ledger.repaired
    taken = again.search.next_trial()
    assert taken is not None
    assert taken.trial_id == trial.trial_id


def test_it_is_said_why_an_encoder_failed(
    make_material: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """A cell that searches its recipe goes on without it, and its trials have no other reason."""
    study = stages(make_material())
    study.pool.failed["dense-1"] = "encoder dense-1: ValueError: of no use"
    study.say_how_many_failed()
    assert "encoder dense-1: ValueError: of no use" in capsys.readouterr().out
    plan = plan_encoder(study.material, Cell("B1", 100), None)
    assert plan is not None
    with pytest.raises(InputError, match="is missing; it could not be made"):
        load_encoder(study.material, plan)


def test_a_part_beside_the_answer_may_fail_and_the_study_is_reported(
    make_material: Callable[..., Any],
) -> None:
    class Broken:
        left = 1

        def __len__(self) -> int:
            return self.left

        def ended(self, seconds: float) -> list[tuple[str, Exception]]:
            self.left = 0
            return [("random", ValueError("image size 28x28"))]

    study = stages(make_material())
    study.progress.enter("features")
    study._finish(Broken())  # type: ignore[arg-type]
    assert study.failures == {"features": "ValueError: image size 28x28"}
