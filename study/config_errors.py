"""What is wrong with a configuration, in one line: the key, what was found, what was expected."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError


def first_problem(error: ValidationError, keys: Iterable[str]) -> str:
    """The problem that explains the others; ``keys``: all that could have been meant."""
    # An unknown key explains more than what follows from it, so it is named first.
    problems = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    problem, key = problems[0], _key(problems[0])
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key{nearest(key, keys)}"
    if problem["type"] == "value_error":  # raised by a section, and already says it all
        text = problem["msg"].removeprefix("Value error, ")
        return f"{key}{': ' if text.startswith('found') else '.'}{text}" if key else text
    branches = [_expected(other["msg"]) for other in problems if _key(other) == key]  # of a union
    return f"{key}: found {problem['input']!r}, expected {' or '.join(dict.fromkeys(branches))}"


def _key(problem: Any) -> str:
    parts = [str(part) for part in problem["loc"]]
    return ".".join(
        part
        for part in parts
        if not re.search(r"[\[(]|^(constrained-)?(int|float|PooledSplit)$", part)
    )


def _expected(message: str) -> str:
    text = re.sub(r"^(Input|Value|String|Keys) should (be )?", "", message)
    text = re.sub(r"^have (.*?)( after validation, not \d+)?$", r"\1", text)
    return text.replace("valid tuple", "list")


def nearest(found: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, comparing whole keys first and last parts after that."""
    known = list(known)
    close = difflib.get_close_matches(found, known, n=1, cutoff=0.6)
    if not close:
        by_last = {key.rsplit(".", 1)[-1]: key for key in known}
        last = difflib.get_close_matches(found.rsplit(".", 1)[-1], by_last, n=1, cutoff=0.6)
        close = [by_last[last[0]]] if last else []
    return f"; did you mean {close[0]}?" if close else ""
