"""The line that says how far a study is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from study import progress
from study.cells import cells_of
from study.progress import Count, Progress
from study.records import Ledger


@pytest.fixture
def shown(make_material: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Progress:
    """Of a study whose clock stands at 100 s."""
    material = make_material()
    monkeypatch.setattr(progress.time, "monotonic", lambda: 100.0)
    return Progress(material.config, Ledger(material.run), cells_of(material.config))


def test_what_is_left_is_told_by_what_this_part_has_done_in_this_session(
    shown: Progress, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """8 of 20 were done before it began: 6 more in a minute leave 6 for another."""
    done = [8]
    shown.enter("search", Count("trials", lambda: done[0], 20))
    assert capsys.readouterr().out == "[0:00] search · trials 8/20\n", "nothing known yet"
    done[0] = 14
    monkeypatch.setattr(progress.time, "monotonic", lambda: 160.0)
    shown.show(now=True)
    assert capsys.readouterr().out == "[1:00] search · trials 14/20 · about 1:00 left\n"
    done[0] = 20
    shown.show(now=True)
    assert capsys.readouterr().out == "[1:00] search · trials 20/20\n"


def test_a_part_without_a_count_has_no_time_left(
    shown: Progress, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown.enter("search", Count("trials", lambda: 10, 20))
    shown.aside = lambda: "pretraining 1 encoder"
    monkeypatch.setattr(progress.time, "monotonic", lambda: 160.0)
    shown.enter("end of the search")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "[1:00] end of the search · pretraining 1 encoder"
