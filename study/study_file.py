"""``study.yaml``: what a run is, as its driver keeps it, with a copy beside it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import yaml

from data.sealing import seal_lines, unseal_lines
from data.storage import InputError, Location

COPY = ".study.yaml"
_CHECKSUM = "# blake2b ", ""  # what stands around it


def write_study(run: Location, study: Mapping[str, Any]) -> None:
    """Replace ``study.yaml`` and its copy, each with its checksum in the first line."""
    text = yaml.safe_dump(dict(study), sort_keys=False, allow_unicode=True)
    content = seal_lines(text, *_CHECKSUM)
    for name in (COPY, "study.yaml"):  # the copy first: it is never older
        (run / name).write_bytes(content)


def is_study(run: Location) -> bool:
    """Whether there is a run at all: its ``study.yaml``, or the copy of it."""
    return any((run / name).is_file() for name in ("study.yaml", COPY))


def read_study(run: Location) -> dict[str, Any]:
    """``study.yaml`` of a run; where it is gone or damaged, it is restored from its copy.

    Raises:
        InputError: there is no such run, or its file and the copy are torn.
    """
    if not is_study(run):
        raise InputError(f"{run}: found no study.yaml, expected the folder of a run")
    file = run / "study.yaml"
    with suppress(FileNotFoundError, ValueError):
        return _from_yaml(file.read_bytes())
    try:
        study = _from_yaml((run / COPY).read_bytes())
    except (FileNotFoundError, ValueError):
        raise InputError(
            f"{file}: is damaged, expected the study's configuration as YAML; put back a copy "
            f"of it, or begin anew under another --name"
        ) from None
    write_study(run, study)
    return study


def _from_yaml(content: bytes) -> dict[str, Any]:
    unseal_lines(content, *_CHECKSUM)
    try:
        study = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise ValueError("is no YAML") from error
    # Somebody else's file has no checksum: it is whole if its last key is there.
    if not isinstance(study, dict) or not {"config", "failures"} <= study.keys():
        raise ValueError("lacks config or failures")
    return study
