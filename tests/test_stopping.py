"""ASHA's rungs: the decisions are Ray's own, and an interruption changes none of them."""

from __future__ import annotations

import random

import pytest
from ray.tune.schedulers.async_hyperband import _Bracket
from ray.tune.schedulers.trial_scheduler import TrialScheduler

from study.stopping import Rungs

Event = tuple[str, int, float]  # trial, epoch, score


def interleaved(seed: int, trials: int, epochs: int) -> list[Event]:
    """Trials that start one after another and report side by side, in a random order."""
    chance = random.Random(seed)
    waiting = {f"t{i}": 1 for i in range(trials)}
    events = []
    while waiting:
        name = chance.choice(list(waiting)[:4])
        # Few distinct scores, so that many trials stand exactly on a cutoff.
        events.append((name, waiting[name], chance.choice([0.1, 0.2, 0.25, 0.5, 0.75, 1.0])))
        waiting[name] += 1
        if waiting[name] > epochs:
            del waiting[name]
    return events


def decide(rungs: Rungs, events: list[Event], out: set[str]) -> list[bool]:
    """What becomes of each report; a trial that is stopped reports no more (``out``)."""
    decisions = []
    for trial, epoch, score in events:
        if trial not in out:
            decisions.append(rungs.goes_on(trial, epoch, score))
            if not decisions[-1]:
                out.add(trial)
    return decisions


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize(("grace", "factor"), [(1, 2), (1, 3), (2, 3), (3, 3), (3, 4)])
def test_decisions_are_those_of_ray(mode: str, grace: int, factor: int) -> None:
    sign = 1 if mode == "max" else -1  # a loss arrives here negated
    for seed in range(20):
        events = interleaved(seed, trials=25, epochs=30)
        bracket = _Bracket(grace, 30, factor, s=0)
        out: set[str] = set()
        theirs = []
        for trial, epoch, value in events:
            if trial in out or epoch >= 30:  # at 30 Ray says STOP too: the trial is complete
                continue
            action = bracket.on_result(type("T", (), {"trial_id": trial})(), epoch, sign * value)
            theirs.append(action != TrialScheduler.STOP)
            if not theirs[-1]:
                out.add(trial)
        ours = decide(
            Rungs(grace, 30, factor), [(t, e, sign * v) for t, e, v in events if e < 30], set()
        )
        assert ours == theirs
        assert False in ours


def test_the_first_at_a_rung_goes_on_and_none_is_stopped_between_rungs() -> None:
    rungs = Rungs(grace_period=3, max_epochs=27, reduction_factor=3)
    assert sorted(rungs.values) == [3, 9]
    assert rungs.goes_on("a", 3, 0.5)
    assert rungs.goes_on("b", 2, -1.0)
    assert not rungs.goes_on("b", 3, 0.4)
    assert rungs.goes_on("c", 3, 0.6)
    assert rungs.goes_on("a", 27, -1.0), "complete, not stopped"


def test_an_epoch_is_judged_once() -> None:
    rungs = Rungs(1, 9, 3)
    rungs.goes_on("a", 1, 0.5)
    assert rungs.goes_on("a", 1, 0.1), "a trial that went back to its checkpoint"
    assert rungs.values[1] == {"a": 0.5}


@pytest.mark.parametrize("cut", range(0, 200, 23))
def test_rungs_put_back_from_records_decide_as_if_never_interrupted(cut: int) -> None:
    events = interleaved(7, trials=20, epochs=27)
    out: set[str] = set()
    whole = Rungs(1, 27, 3)
    expected = decide(whole, events, out)

    out = set()
    before = Rungs(1, 27, 3)
    first = decide(before, events[:cut], out)
    after = Rungs(1, 27, 3)
    for epoch, scores in reversed(before.values.items()):  # records come in any order
        for trial, score in reversed(scores.items()):
            after.record(trial, epoch, score)
    assert first + decide(after, events[cut:], out) == expected
    assert after.values == whole.values


def test_no_rungs_where_the_grace_period_is_the_whole_training() -> None:
    rungs = Rungs(grace_period=5, max_epochs=5, reduction_factor=3)
    assert all(rungs.goes_on(str(i), 5, -float(i)) for i in range(10))
