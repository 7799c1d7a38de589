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
    """8 of 20 were done before it began, and half a minute went into the start: 6 more in the
    minute since the first of them leave 4 for 40 seconds.
    """
    done = [8]

    def line(time: float, ended: int) -> str:
        monkeypatch.setattr(progress.time, "monotonic", lambda: time)
        done[0] = ended
        shown.show(now=True)
        return capsys.readouterr().out

    shown.enter("search", Count("trials", lambda: done[0], 20))
    assert capsys.readouterr().out == "[0:00] search · trials 8/20\n", "nothing known yet"
    assert line(120, 8) == "[0:20] search · trials 8/20\n"
    assert line(130, 10) == "[0:30] search · trials 10/20\n", "the first two"
    assert line(190, 16) == "[1:30] search · trials 16/20 · about 0:40 left\n"
    assert line(200, 20) == "[1:40] search · trials 20/20\n"


def test_a_part_without_a_count_has_no_time_left(
    shown: Progress, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown.enter("search", Count("trials", lambda: 10, 20))
    shown.aside = lambda: "pretraining 1 encoder"
    monkeypatch.setattr(progress.time, "monotonic", lambda: 160.0)
    shown.enter("end of the search")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "[1:00] end of the search · pretraining 1 encoder"
