"""Writes down what is really trained and fetched on a machine, beside the program's own records.

Imported by every Python process of a machine of `machines`. Appends lines of JSON to $WITNESS:
the start of each fit of a classifier, each of its epochs, each pretraining, each file fetched.
After each epoch of the search trials pause, for the seconds in the file $WITNESS_PAUSE if there is
one: so there is time to kill them on a quick machine as well.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
import uuid
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
Function = Callable[..., Any]


def install(folder: Path) -> None:
    """Make Python import this module where `environment` of that folder is set."""
    (folder / "site").mkdir(parents=True)
    (folder / "site" / "sitecustomize.py").write_text("import witness\n")


def environment(folder: str | Path, machine: str) -> dict[str, str]:
    """What the processes of a machine of that name need; the folder as they call it."""
    return {
        "PYTHONPATH": os.pathsep.join((f"{folder}/site", str(HERE.parent), str(HERE))),
        "WITNESS": f"{folder}/witness.jsonl",
        "WITNESS_MACHINE": machine,
    }


def read(folder: Path, what: str | None = None) -> list[dict[str, Any]]:
    """What was witnessed there, of that kind or all."""
    file = folder / "witness.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    notes = [json.loads(line) for line in lines]
    return [one for one in notes if what in (None, one["what"])]


def note(what: str, **facts: object) -> None:
    file = os.environ["WITNESS"]
    line = json.dumps({"what": what, "machine": os.environ["WITNESS_MACHINE"], **facts})
    with open(file, "a") as stream:
        stream.write(line + "\n")


def pause() -> None:
    file = os.environ.get("WITNESS_PAUSE")
    if file is not None:
        time.sleep(float(Path(file).read_text()))


def training(function: Function) -> Function:
    """A row whose epoch ended before the fit began comes from its checkpoint."""

    @functools.wraps(function)
    def witnessed(*arguments: Any, **options: Any) -> Any:
        report, began = options["report"], time.time()
        fit, file = uuid.uuid4().hex[:8], options["checkpoint"].file
        name, found = file.name.rpartition("-lr")[0], file.is_file()
        note("fit", fit=fit, name=name, checkpoint=found)

        def witnessed_report(row: dict[str, Any]) -> Any:
            new = row["ended"] > began
            note("epoch", fit=fit, name=name, epoch=row["epoch"], new=new)
            if new and options.get("repeat") is None:
                pause()
            return report(row)

        return function(*arguments, **options | {"report": witnessed_report})

    return witnessed


def pretraining(function: Function) -> Function:
    @functools.wraps(function)
    def witnessed(material: Any, plan: Any) -> Any:
        note("pretraining", encoder=plan.key)
        result = function(material, plan)
        note("pretrained", encoder=plan.key)
        return result

    return witnessed


def fetching(function: Function) -> Function:
    @functools.wraps(function)
    def witnessed(self: Any, *arguments: Any, **options: Any) -> Any:
        note("fetch", file=self.name)
        return function(self, *arguments, **options)

    return witnessed


WITNESSED: dict[str, dict[str, Callable[[Function], Function]]] = {
    "study.trial": {"train_classifier": training},
    "study.encoders": {"pretrain": pretraining},
    "data.storage": {"Location.download": fetching},
}


class Finder:
    """Replaces the functions as soon as the program imports them, and not before."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in WITNESSED:
            return None
        spec = PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.loader is not None
        run_code = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            run_code(module)
            for place, witness in WITNESSED[name].items():
                *classes, last = place.split(".")
                owner = functools.reduce(getattr, classes, module)
                setattr(owner, last, witness(getattr(owner, last)))

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "WITNESS" in os.environ:
    sys.meta_path.insert(0, Finder())
