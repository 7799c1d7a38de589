"""What W&B and TensorBoard are told, and that nothing of them can hold up or fail a trial."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import torch
import wandb
from conftest import environment, tiny_tree
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from wandb.proto.wandb_internal_pb2 import Record

import study.evaluation
import study.fitting
from data.storage import Location
from study import loggers, tracking, tuning, wandb_files, wandb_server
from study.cells import Cell
from study.choosing import best_epoch
from study.config import Config, config_from
from study.evaluation import Repeat, evaluate
from study.fitting import make_trainer
from study.material import Material
from study.records import TEST_METRICS, Row
from study.search import Trial
from study.tracking import Tracked, tracker
from study.trial import METRICS
from study.wandb_files import sweep
from study.wandb_server import closing_notice, not_sent, notice

KEY = "0123456789abcdef" * 2 + "01234567"
FACTS = {"variant": "A", "label_ratio": 25, "lr": 1e-3, "seed": 1}


class Server:
    """As much of a W&B server as its client needs; loopback, and its mood can change.

    ``mood``: ``well``, ``fails`` (500), ``hangs``, or ``stranger`` (knows no key).
    """

    def __init__(self, mood: str):
        self.mood, self.asked, self.closed = mood, list[tuple[str, Any]](), Event()
        self.history: list[dict[str, Any]] = []  # of the one run that it knows
        self.summary: dict[str, Any] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                outer.answer(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        question = json.loads(body) if request.path == "/graphql" else {"query": "", "body": body}
        self.asked.append((request.path, question))
        if self.mood == "hangs":
            self.closed.wait(120)
        content = json.dumps(self.content(question)).encode()
        request.send_response(500 if self.mood == "fails" else 200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def content(self, question: dict[str, Any]) -> dict[str, Any]:
        text = question["query"]
        if "body" in question:
            self.take(question["body"])
        if "RunResumeStatus" in text:
            return {"data": {"model": {"bucket": self.bucket(question["variables"]["name"])}}}
        if "upsertBucket" in text:
            project = {"id": "p", "name": "mariposa", "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "YQ==", "name": question["variables"]["name"], "config": "{}"}
            bucket |= {"displayName": None, "description": "", "sweepName": None}
            bucket |= {"historyLineCount": 0, "project": project}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if "createRunFiles" in text:
            made = {"runID": "YQ==", "uploadHeaders": [], "files": []}
            return {"data": {"createRunFiles": made}}
        if "Viewer" in text and self.mood != "stranger":
            return {"data": {"viewer": {"id": "dQ==", "entity": "me", "username": "me"}}}
        return {"data": {"viewer": None}}

    def bucket(self, name: str) -> dict[str, Any] | None:
        """What a client that goes on with a run has to know of it."""
        if not self.history:
            return None
        known = {"id": "YQ==", "name": name, "config": "{}", "wandbConfig": '{"t": {}}'}
        known |= {"historyLineCount": len(self.history), "eventsLineCount": 0, "logLineCount": 0}
        known |= {"historyTail": json.dumps([json.dumps(self.history[-1])]), "eventsTail": "[]"}
        return known | {"summaryMetrics": json.dumps(self.summary), "tags": []}

    def take(self, body: bytes) -> None:
        """Lines of a run's files, each at its place."""
        files = json.loads(body).get("files", {}) if body.startswith(b"{") else {}
        for name, part in files.items():
            lines = [json.loads(line) for line in part["content"]]
            if name == "wandb-history.jsonl":
                self.history[part["offset"] :] = lines
            if name == "wandb-summary.json":
                self.summary = lines[-1]

    def runs(self) -> list[dict[str, Any]]:
        """What was said of each new run."""
        return [q["variables"] for _, q in self.asked if "upsertBucket" in q["query"]]

    def close(self) -> None:
        self.closed.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Server]]:
    """A server of that mood, which W&B takes for its own."""
    servers: list[Server] = []

    def start(mood: str) -> Server:
        servers.append(Server(mood))
        monkeypatch.setenv("WANDB_BASE_URL", servers[-1].url)
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(autouse=True)
def _a_new_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B as a new process finds it, with a key."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    _forget()
    yield
    _forget()


def _forget() -> None:
    wandb.teardown()
    wandb_server._probe_once.cache_clear()
    wandb_server._given_up.clear()


@pytest.fixture
def run(tmp_path: Path) -> Location:
    return Location(tmp_path / "moths")


def config_with(**keys: Any) -> Config:
    return config_from(tiny_tree(tracking=keys), "a test")


ONLINE = config_with(wandb="online")
TRIAL = Trial("A@100-007", Cell("A", 100), lr=3e-3, seed=5)
REST = ("train_loss", "val_loss", "val_acc", "seconds")  # of an epoch's row
SearchTrial = Callable[[Material, Trial, Callable[[Row], object]], None]


@pytest.fixture
def search_trial(monkeypatch: pytest.MonkeyPatch) -> SearchTrial:
    """What Ray Tune runs, outside of it; takes what is reported to Tune."""

    def run_it(material: Material, trial: Trial, report: Callable[[Row], object]) -> None:
        monkeypatch.setattr(tuning.tune, "report", report)
        monkeypatch.setattr(tuning.ray.util, "get_node_ip_address", lambda: "here")
        tuning.run_trial({"trial": vars(trial) | {"cell": vars(trial.cell)}}, material)

    return run_it


def track(
    config: Config, run: Location, name: str = "A@25-000", study_id: str = ""
) -> AbstractContextManager[Tracked]:
    return tracker(Material(config, run, run, "", study_id), name, name, "search", FACTS)


def log_a_trial(config: Config, run: Location, name: str = "A@25-000") -> None:
    with track(config, run, name) as tracked:
        log_epoch(tracked, 1, 0.5)


def log_epoch(tracked: Tracked, epoch: int, f1: float) -> None:
    """As a fit does: Lightning's loggers come first."""
    row = {"train_loss": 1.0, "val_loss": 1.0 - f1, "val_acc": f1, "val_f1": f1}
    for logger in tracked.loggers or []:
        logger.log_metrics(row | {"epoch": epoch - 1}, 4 * epoch - 1)
    tracked.epoch({"epoch": epoch, **row, "seconds": 2.0})


def runs_of(run: Location) -> list[str]:
    return sorted(path.name for path in run.local.glob("wandb/*run-*"))


def contents(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


# --- W&B without a server ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mood", "reason"),
    [
        ("no key", "no key for http://127.0.0.1"),
        ("refuses", "Connection refused"),
        ("fails", "500"),
        ("hangs", "no answer in 1 s"),
        ("stranger", "the key is not known there"),
    ],
)
def test_without_a_server_a_study_says_so_once_and_keeps_its_runs(
    serve: Callable[[str], Server],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    run: Location,
    mood: str,
    reason: str,
) -> None:
    monkeypatch.setattr(wandb_server, "PROBE_SECONDS", 1.0)
    server = serve(mood)
    if mood == "no key":
        monkeypatch.delenv("WANDB_API_KEY")
        monkeypatch.setenv("NETRC", str(run.local / "none"))
    if mood == "refuses":
        server.close()
    with caplog.at_level(logging.DEBUG):
        said = notice(ONLINE, run)
        log_a_trial(ONLINE, run)
        log_a_trial(ONLINE, run, "A@25-001")
    assert said is not None
    assert reason in said
    assert f"wandb sync {run}/wandb/offline-run-*" in said
    assert "\n" not in said
    assert len(server.asked) <= 1, "a process asks once"
    found = runs_of(run)
    assert [name.split("-")[0] for name in found] == ["offline"] * 2
    assert closing_notice(ONLINE, run) == (
        f"2 W&B runs were not sent; send them with: wandb sync {run}/wandb/offline-run-*"
    )
    assert KEY not in caplog.text + said
    assert KEY.encode() not in contents(run.local)


def test_a_server_that_dies_is_waited_for_once(
    serve: Callable[[str], Server], monkeypatch: pytest.MonkeyPatch, run: Location
) -> None:
    monkeypatch.setattr(loggers, "FINISH_SECONDS", 1.0)
    server = serve("well")
    assert notice(ONLINE, run) is None
    log_a_trial(ONLINE, run)
    with track(ONLINE, run, "A@25-001") as tracked:
        assert tracked.loggers
        server.mood = "hangs"
        log_epoch(tracked, 1, 0.5)
    asked = len(server.asked)
    log_a_trial(ONLINE, run, "A@25-002")
    assert len(server.asked) - asked <= 1, "the third trial waits for nobody"
    states = sorted((name.startswith("offline"), name in not_sent(run)) for name in runs_of(run))
    assert states == [(False, False), (False, True), (True, True)]
    said = closing_notice(ONLINE, run)
    assert said is not None
    assert said.startswith("2 W&B runs were not sent")


def test_a_server_is_told_name_group_and_hyperparameters(
    serve: Callable[[str], Server], run: Location
) -> None:
    server = serve("well")
    log_a_trial(config_with(wandb="online", project="butterflies", entity="lab"), run)
    first = server.runs()[0]
    assert (first["displayName"], first["groupName"], first["project"]) == (
        "A@25-000",
        "moths",
        "butterflies",
    )
    assert (first["entity"], first["jobType"]) == ("lab", "search")
    told = {name: one["value"] for name, one in json.loads(first["config"]).items()}
    assert told.items() >= FACTS.items()
    assert closing_notice(ONLINE, run) is None
    assert KEY.encode() not in contents(run.local)


def test_an_offline_study_asks_nobody(serve: Callable[[str], Server], run: Location) -> None:
    server = serve("well")
    offline = config_with(wandb="offline")
    assert notice(offline, run) is None
    log_a_trial(offline, run)
    assert closing_notice(offline, run) is None
    assert server.asked == []


# --- The same in both ----------------------------------------------------------------------------


def test_tensorboard_and_wandb_hold_the_rows_of_the_records(
    make_material: Callable[..., Material], search_trial: SearchTrial
) -> None:
    made = make_material(
        tracking={"wandb": "offline", "tensorboard": True}, training={"max_epochs": 3}
    )
    rows: list[Row] = []
    search_trial(made, TRIAL, rows.append)
    expected = [[row[name] for name in METRICS] for row in rows]
    assert len(expected) == 3

    folder = made.run.local / "tensorboard" / "A@100" / "A@100-007"
    events = EventAccumulator(str(folder)).Reload()
    scalars = {name: [one.value for one in events.Scalars(name)] for name in METRICS}
    shown = [list(values) for values in zip(*scalars.values(), strict=True)]
    assert shown == [pytest.approx(values) for values in expected]
    tables = events.PluginTagToContent("hparams")
    table = HParamsPluginData.FromString(tables["_hparams_/session_start_info"])
    shown_facts = {k: v.number_value for k, v in table.session_start_info.hparams.items()}
    assert shown_facts.items() >= {"lr": 3e-3, "label_ratio": 100, "seed": 5}.items()
    assert set(events.Tags()["scalars"]) == {*METRICS, "epoch"}

    (found,) = tracked_runs(made.run)
    opened = found.opened
    assert (opened.display_name, opened.run_group) == ("A@100-007", "tiny")
    assert (opened.project, opened.entity, opened.job_type) == ("mariposa", "", "search")
    config = {one.key: json.loads(one.value_json) for one in opened.config.update}
    facts = {"cell": "A@100", "variant": "A", "label_ratio": 100, "lr": 3e-3, "seed": 5}
    assert config.items() >= facts.items()
    kept = {name: [one[name] for one in found.history if name in one] for name in METRICS}
    assert [list(values) for values in zip(*kept.values(), strict=True)] == expected


@dataclass
class TrackedRun:
    """One .wandb file, read as ``wandb sync`` reads it."""

    folder: str
    opened: Any
    history: list[dict[str, Any]]
    summary: dict[str, Any]  # the last value of each, in the order in which they were written
    exit_code: int


def tracked_runs(run: Location) -> list[TrackedRun]:
    """All that lie below the run's folder, in the order in which they were begun."""
    return [read_run(file) for file in sorted(run.local.rglob("*.wandb"))]


def read_run(file: Path) -> TrackedRun:
    records = all_records(file)
    (opened,) = [one.run for one in records if one.HasField("run")]
    history: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    for one in records:
        if one.HasField("history"):
            history.append(named(one.history.item))
            summary |= history[-1]
        if one.HasField("summary"):
            summary |= named(one.summary.update)
    return TrackedRun(file.parent.name, opened, history, summary, records[-1].exit.exit_code)


def named(items: Any) -> dict[str, Any]:
    return {one.key or ".".join(one.nested_key): json.loads(one.value_json) for one in items}


def all_records(file: Path) -> list[Any]:
    """Its records, when W&B's own process has written the last one."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        records = list(wandb_records(file))
        if records and records[-1].HasField("exit"):
            return records
        time.sleep(0.05)
    raise AssertionError(f"{file}: is not finished")


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format behind 7 bytes."""
    content, place, whole = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        _, size, kind = struct.unpack_from("<IHB", content, place)
        whole += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or its last part
            yield Record.FromString(whole)
            whole = b""


def test_neither_is_written_where_neither_is_wanted(run: Location) -> None:
    with track(config_with(wandb="disabled"), run) as tracked:
        assert tracked.loggers is False
        log_epoch(tracked, 1, 0.5)
    assert not run.local.exists()


BOARD, RUN = loggers.TensorBoardLogger, wandb.sdk.wandb_run.Run
BREAKS = [(BOARD, "log_metrics"), (BOARD, "finalize"), (wandb, "init"), (RUN, "log")]
BREAKS += [(RUN, "finish"), (wandb.sdk.wandb_summary.Summary, "update")]


@pytest.mark.parametrize(("owner", "method"), BREAKS)
def test_neither_fails_a_fit_when_it_breaks(
    make_material: Callable[..., Material],
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    method: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no network, no key, no disk")

    made = make_material(
        tracking={"wandb": "offline", "tensorboard": owner is BOARD}, training={"max_epochs": 2}
    )
    monkeypatch.setattr(owner, method, fail)
    for number in range(2):  # one after another, in one process
        assert evaluate(made, Repeat(TRIAL.cell, number, 3e-3))["row"]["epochs"] == 2
    if method != "init":
        assert len(runs_of(made.run)) == 2, "none has its rows in another's run"


def test_both_are_copied_to_an_object_store() -> None:
    store = Location(f"mock://bucket/{uuid.uuid4().hex}")
    log_a_trial(config_with(wandb="offline", tensorboard=True), store)
    (folder,) = (store / "wandb").children()
    assert folder.name in not_sent(store)
    assert [file.name for file in folder.children() if file.name.endswith(".wandb")]
    board = store / "tensorboard" / "A@25" / "A@25-000"
    assert "hparams.yaml" in [file.name for file in board.children()]
    left = Path(os.environ["MARIPOSA_CACHE"], "tracking", store.name)
    assert [file for file in left.rglob("*run-*") if file.is_dir()] == []


LATER_RANK = """
import sys
from data.storage import Location
from study.config import load_config
from study.material import Material
from study.tracking import tracker
run = Location(sys.argv[1])
config = load_config("smoke", ["tracking.tensorboard=true"])
with tracker(Material(config, run, run, ""), "A@25-000", "A@25-000", "search", {}) as tracked:
    for logger in tracked.loggers:
        logger.log_metrics({"val_f1": 0.25}, 3)
"""


def test_a_fit_does_not_take_slurms_signals_for_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NTASKS", "PROCID", "JOB_ID", "LOCALID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{name}", "1")
    trainer = make_trainer(torch.device("cpu"))
    environment = trainer._accelerator_connector.cluster_environment
    assert isinstance(environment, LightningEnvironment)
    assert (trainer.global_rank, trainer.world_size) == (0, 1)


@pytest.mark.parametrize("variable", ["SLURM_PROCID", "RANK"])
def test_a_machine_that_slurm_counts_second_writes_them_too(
    run: Location, tmp_path: Path, variable: str
) -> None:
    command = [sys.executable, "-c", LATER_RANK, str(run)]
    variables = environment(**{variable: "1", "MARIPOSA_CACHE": str(tmp_path / "cache")})
    done = subprocess.run(command, env=variables, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    (found,) = tracked_runs(run)
    assert [one["val_f1"] for one in found.history] == [0.25]
    events = EventAccumulator(str(run.local / "tensorboard" / "A@25" / "A@25-000")).Reload()
    assert [one.value for one in events.Scalars("val_f1")] == [0.25]


# --- How a fit ends, and what W&B says of it ---------------------------------------------------


def test_the_summary_is_of_the_best_epoch(run: Location) -> None:
    with track(config_with(wandb="offline"), run) as tracked:
        for epoch, f1 in ((1, 0.25), (2, 0.75), (3, 0.5)):
            log_epoch(tracked, epoch, f1)
    (found,) = tracked_runs(run)
    assert [one["val_f1"] for one in found.history] == [0.25, 0.75, 0.5]
    best = {"best_epoch": 2, "train_loss": 1.0, "val_loss": 0.25, "val_acc": 0.75, "val_f1": 0.75}
    assert found.summary.items() >= best.items()
    assert found.summary.items() >= {"epochs": 3, "seconds": 6.0}.items()


def test_the_final_evaluation_tells_what_its_test_found(
    make_material: Callable[..., Material],
) -> None:
    made = make_material(
        tracking={"wandb": "offline", "tensorboard": True}, training={"max_epochs": 3}
    )
    row = evaluate(made, Repeat(TRIAL.cell, 0, 3e-3))["row"]
    (found,) = tracked_runs(made.run)
    assert (found.opened.display_name, found.opened.job_type) == ("A@100-repeat0", "evaluation")
    in_both = ("epochs", "best_epoch", "val_loss", "val_acc", "val_f1", "seconds", *TEST_METRICS)
    assert {name: found.summary[name] for name in in_both} == {name: row[name] for name in in_both}
    assert found.summary["state"] == "COMPLETE"
    assert not any(name in one for one in found.history for name in TEST_METRICS)

    events = EventAccumulator(str(made.run.local / "tensorboard" / "A@100" / "A@100-repeat0"))
    shown = {name: events.Reload().Scalars(name)[-1].value for name in TEST_METRICS}
    assert shown == pytest.approx({name: row[name] for name in TEST_METRICS})


def test_a_test_that_fails_leaves_no_run_open(
    make_material: Callable[..., Material], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise ValueError("no test images")

    made = make_material(tracking={"wandb": "offline"}, training={"max_epochs": 1})
    monkeypatch.setattr(study.evaluation, "_test", fail)
    with pytest.raises(ValueError, match="no test images"):
        evaluate(made, Repeat(TRIAL.cell, 0, 3e-3))
    (found,) = tracked_runs(made.run)
    assert (found.summary["state"], found.exit_code) == ("FAIL", 1)
    assert wandb.run is None


@pytest.mark.parametrize("state", ["COMPLETE", "PRUNED", "FAIL"])
def test_a_trial_of_the_search_says_how_it_ended(
    make_material: Callable[..., Material], search_trial: SearchTrial, state: str
) -> None:
    rows: list[Row] = []

    def report(row: Row) -> None:
        rows.append(row)
        if (state, row.get("epoch")) == ("PRUNED", 2):
            sys.exit(0)  # as Ray Tune does

    made = make_material(tracking={"wandb": "offline"}, training={"max_epochs": 3})
    trial = replace(TRIAL, lr=1e38) if state == "FAIL" else TRIAL
    with pytest.raises(SystemExit) if state == "PRUNED" else nullcontext():
        search_trial(made, trial, report)
    (found,) = tracked_runs(made.run)
    assert (found.summary["state"], found.exit_code) == (state, int(state == "FAIL"))
    epochs = [row for row in rows if "epoch" in row]
    assert found.summary["epochs"] == len(epochs) == {"COMPLETE": 3, "PRUNED": 2, "FAIL": 0}[state]
    best = best_epoch(epochs, "val_f1") or {"epoch": None}
    assert found.summary.get("best_epoch") == best["epoch"]
    assert found.summary.get("val_f1") == best.get("val_f1")
    told = {name for one in found.history for name in one} | set(found.summary)
    assert not told & set(TEST_METRICS), "the search has seen no test image"


# --- One run, whichever process works on it ------------------------------------------------------


def test_a_trial_that_goes_on_is_the_same_run(
    make_material: Callable[..., Material],
    search_trial: SearchTrial,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its first process dies after the second epoch's report."""
    monkeypatch.setattr(study.fitting, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(study.fitting, "CHECKPOINT_COST", 1e9)
    rows: list[Row] = []

    class Died(BaseException):
        pass

    def dies(row: Row) -> None:
        if row["epoch"] == 2:
            raise Died

    made = make_material(tracking={"wandb": "offline"}, training={"max_epochs": 3})
    with pytest.raises(Died):
        search_trial(made, TRIAL, dies)
    search_trial(made, TRIAL, rows.append)
    first, second = tracked_runs(made.run)
    assert first.opened.run_id == second.opened.run_id
    assert first.folder != second.folder
    assert [one["epoch"] for one in first.history] == [0, 1]
    assert [one["epoch"] for one in second.history] == [1, 2], "from the first's checkpoint"
    assert second.summary["epochs"] == 3, "those of the first as well"
    assert second.summary["val_f1"] == max(row["val_f1"] for row in rows)


def test_a_run_is_of_one_study_and_one_configuration(run: Location) -> None:
    def key(study_id: str, fit_name: str) -> str:
        made = Material(ONLINE, run, run, "", study_id)
        return str(tracking._told(made, "B2-best@25-003", fit_name, "search", FACTS)["id"])

    ids = {key(one, fit) for one in ("a", "b") for fit in ("B2-best@25-003-lr0.1", "other")}
    assert len(ids) == 4
    assert key("a", "other") in ids
    assert all(re.fullmatch(r"B2-best-25-003-[0-9a-f]{12}", one) for one in ids)


def test_sessions_of_a_trial_are_sent_as_one_run(
    serve: Callable[[str], Server], run: Location
) -> None:
    """By ``wandb sync``, which a user gives all of a study's folders."""
    offline = config_with(wandb="offline")
    with suppress(SystemExit), track(offline, run) as tracked:
        log_epoch(tracked, 1, 0.75)
        sys.exit(0)
    with track(offline, run) as tracked:
        tracked.epoch({"epoch": 1, "val_f1": 0.75, **dict.fromkeys(REST, 0.5)})
        log_epoch(tracked, 2, 0.5)
    tracked_runs(run)  # waits for both files
    server = serve("well")
    folders = [str(path) for path in run.local.glob("wandb/offline-run-*")]
    command = [str(Path(sys.executable).with_name("wandb")), "sync", *folders]
    done = subprocess.run(command, env=environment(), capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    assert len({one["name"] for one in server.runs()}) == 1
    assert [one["trainer/global_step"] for one in server.history] == [3, 7]
    assert [one["_step"] for one in server.history] == [0, 1]
    said = {"state": "COMPLETE", "epochs": 2, "best_epoch": 1, "val_f1": 0.75}
    assert server.summary.items() >= said.items()
    assert not_sent(run) == []


# --- Temporary files -----------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from data.storage import Location
from study.config import load_config
from study.material import Material
from study.tracking import tracker
run = Location(sys.argv[1])
material = Material(load_config("smoke"), run, run, "")
with tracker(material, "A@25-000", "A@25-000", "search", {}) as tracked:
    assert tracked.loggers
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_worker_leaves_nothing_in_the_temporary_folder() -> None:
    with tempfile.TemporaryDirectory(prefix="m") as folder:  # a socket's path must be short
        common, cache = Path(folder, "tmp"), Path(folder, "cache")
        common.mkdir()
        variables = environment(TMPDIR=str(common), MARIPOSA_CACHE=str(cache))
        del variables["WANDB_CACHE_DIR"], variables["WANDB_DATA_DIR"]
        command = [sys.executable, "-c", KILLED, f"{folder}/run"]
        done = subprocess.run(command, env=variables, capture_output=True, timeout=120)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        assert sorted(common.iterdir()) == []
        assert list(cache.glob("wandb-tmp/*/*wandb-media")), "it was made"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MARIPOSA_CACHE", str(cache))
            sweep()
        assert [each for each in cache.glob("wandb-tmp/*") if each.is_dir()] == []


def test_a_living_process_keeps_its_temporary_files(run: Location) -> None:
    with track(config_with(wandb="offline"), run) as tracked:
        assert tracked.loggers
        folders = [each for each in wandb_files._base().iterdir() if each.is_dir()]
        sweep()
        assert folders
        assert all(each.is_dir() for each in folders)
