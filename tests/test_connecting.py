"""A machine that is too busy to start Ray in the half minute that Ray gives itself."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from data.storage import InputError
from study.cluster import ATTEMPTS, connected

pytestmark = pytest.mark.timeout(60)

TOO_SLOW = "The current node timed out during startup. This could happen because ..."


def busy(monkeypatch: pytest.MonkeyPatch, failures: int) -> list[Any]:
    """A Ray that starts only after so many attempts; what it was asked for."""
    asked: list[Any] = []

    def init(**options: Any) -> None:
        asked.append(options)
        if len(asked) <= failures:
            raise Exception(TOO_SLOW)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return asked


def test_it_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = busy(monkeypatch, ATTEMPTS - 1)
    with connected(None):
        pass
    assert len(asked) == ATTEMPTS
    assert asked[0] == asked[-1]


def test_and_said_in_one_line_where_it_never_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = busy(monkeypatch, 99)
    with pytest.raises(InputError, match=r"^a local Ray: Ray has not started in .* 30 s, expected"):
        with connected(None):
            pass
    assert len(asked) == ATTEMPTS


def test_other_errors_are_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: Any) -> None:
        raise KeyError("a fault")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(KeyError, match="a fault"), connected(None):
        pass
