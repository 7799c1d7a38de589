"""``optuna-dashboard sqlite:///RUN/optuna.db`` shows each cell and its trials as they were."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pandas as pd
import pytest
import yaml
from records_example import write_run

from data.storage import Location
from study.config import config_from
from study.optuna_file import OptunaFile
from study.records import Ledger
from study.search import StudySearch


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose ``optuna.db`` was made from its records, as `mariposa resume` makes it."""
    folder = tmp_path_factory.mktemp("run") / "study"
    write_run(folder, ratios=(10, 25), variants=("A", "B2"), trials=7, repeats=0, encoders=0)
    config = config_from(yaml.safe_load((folder / "study.yaml").read_text())["config"], "a test")
    search = StudySearch(config, Ledger(Location(folder)), lambda _: True)
    OptunaFile(Location(folder)).save(search.searches.values())
    return folder


@pytest.fixture(scope="module")
def dashboard(run: Path) -> Iterator[str]:
    """The dashboard's address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = Path(sys.executable).with_name("optuna-dashboard")
    command = [str(program), f"sqlite:///{run}/optuna.db", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--server", "wsgiref"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield _answering(f"http://127.0.0.1:{port}", process)
        finally:
            process.kill()


def _answering(address: str, process: subprocess.Popen[bytes]) -> str:
    for _ in range(600):
        assert process.poll() is None, "the dashboard ended"
        try:
            urlopen(f"{address}/api/meta", timeout=30).close()
        except URLError:
            time.sleep(0.2)
        else:
            return address
    raise TimeoutError(address)


def _read(url: str) -> Any:
    with urlopen(url, timeout=60) as answer:
        return json.load(answer)


def _studies(dashboard: str) -> dict[str, int]:
    found = _read(f"{dashboard}/api/studies")["study_summaries"]
    return {each["study_name"]: each["study_id"] for each in found}


def test_there_is_a_study_a_cell(dashboard: str) -> None:
    assert set(_studies(dashboard)) == {"A@10", "A@25", "B2@10", "B2@25"}
    for summary in _read(f"{dashboard}/api/studies")["study_summaries"]:
        assert summary["directions"] == ["maximize"]


def test_trials_are_those_of_the_records(dashboard: str, run: Path) -> None:
    recorded = pd.read_parquet(run / "trials.parquet")
    epochs = pd.read_parquet(run / "epochs.parquet")
    for cell, number in _studies(dashboard).items():
        shown = _read(f"{dashboard}/api/studies/{number}")["trials"]
        rows = recorded[recorded["cell"] == cell].sort_values("trial_id")
        assert [trial["state"] for trial in shown] == [state.title() for state in rows["state"]]
        for trial, row in zip(shown, rows.itertuples(), strict=True):
            (param,) = trial["params"]
            assert (param["name"], float(param["param_external_value"])) == ("lr", row.lr)
            curve = epochs[epochs["trial_id"] == row.trial_id].sort_values("epoch")["val_f1"]
            reported = trial.get("intermediate_values", [])
            assert [step["value"] for step in reported] == pytest.approx(list(curve))
            if row.state == "COMPLETE":
                assert trial["values"] == [row.val_f1]


def test_pages_are_served(dashboard: str, run: Path) -> None:
    for page in ("/dashboard", f"/dashboard/studies/{_studies(dashboard)['B2@25']}"):
        with urlopen(dashboard + page, timeout=60) as answer:
            assert answer.status == 200
            assert "<title>Optuna Dashboard</title>" in answer.read().decode()
    with urlopen(f"{dashboard}/csv/{_studies(dashboard)['A@10']}", timeout=60) as answer:
        table = pd.read_csv(answer).set_index("Number")
    recorded = pd.read_parquet(run / "trials.parquet").set_index("trial_id")
    assert len(table) == 7
    for number, shown in table.iterrows():
        row = recorded.loc[f"A@10-{number:03d}"]
        assert shown["UserAttribute seed"] == row["seed"]
        assert shown["UserAttribute val_acc"] == pytest.approx(row["val_acc"], nan_ok=True)
