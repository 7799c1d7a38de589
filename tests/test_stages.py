"""The parts of a study on Ray: why a cell may have no result."""

from __future__ import annotations

import pytest

from study.stages import why_no_result


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
