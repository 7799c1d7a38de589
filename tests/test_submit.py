"""Studies as Ray jobs: on a real cluster with its dashboard, from a clean copy of the files.

The cluster has ports, a home (so its own token) and a temporary folder of its own, and knows
nothing of the checkout the tests run in but its virtual environment.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from conftest import ended_trials

from data.demo import write_demo
from study.cli import main

REPOSITORY = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
TINY = """
name: tiny
seed: 3
data: {image_size: 32}
cells: {variants: [A], label_ratios: [100]}
encoder: {width: 4, epochs: 1, per_repeat: false}
training: {batch_size: 32, max_epochs: 8, patience: 8, min_steps_per_epoch: 20}
search: {trials: 6, lr: [1.0e-4, 1.0e-2], grace_period: 8}
evaluation: {repeats: 1}
"""
# Without this, the environment's editable installation would supply what an upload lacks.
NO_EDITABLE_INSTALL = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
"""
PORTS = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
PORTS += ("ray-client-server-port", "runtime-env-agent-port", "metrics-export-port")


pytestmark = pytest.mark.timeout(900)  # where other work shares the machine


@dataclass
class Place:
    """A checkout, images and a home, and how to run commands there."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    address: str = ""

    @property
    def checkout(self) -> Path:
        return self.folder / "checkout"

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MARIPOSA_"))}
        return kept | {
            "HOME": str(self.folder / "home"),
            "XDG_CACHE_HOME": str(Path.home() / ".cache"),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder / "python"),
            "MARIPOSA_CACHE": str(self.folder / "cache"),
            "RAY_USAGE_STATS_ENABLED": "0",
            **self.variables,
        }

    def start(self, *command: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=self.checkout,
            env=self.environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call(self, *command: str, **variables: str) -> tuple[int, str, str]:
        process = self.start(*command, **variables)
        out, err = process.communicate(timeout=400)
        return process.returncode, out, err

    def submit(self, *more: str) -> tuple[str, ...]:
        """The command that submits the tiny study."""
        places = ("--data", "../images", "--out", "../runs", "--address", self.address)
        return ("python", "-m", "study", "submit", "tiny.yaml", *places, *more)

    def state(self, name: str) -> str:
        text = (self.folder / "runs" / name / "study.yaml").read_text()
        return str(yaml.safe_load(text)["state"])


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Short, as Ray puts sockets there, and a path of a socket has 107 characters at most."""
    path = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    checkout = path / "checkout"
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (REPOSITORY / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, checkout / name)
    (checkout / "tiny.yaml").write_text(TINY)
    who = ["-c", "user.name=a test", "-c", "user.email=a@test"]
    for arguments in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *arguments], cwd=checkout, check=True)
    write_demo(
        path / "images", train_per_species=6, valid_per_species=2, test_per_species=3, size=48
    )
    (path / "home").mkdir()
    (path / "python").mkdir()
    (path / "python" / "sitecustomize.py").write_text(NO_EDITABLE_INSTALL)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def secured(folder: Path) -> Iterator[Place]:
    """A cluster started as people do once they have a token: authentication is on."""
    place = Place(folder)
    code, _, err = place.call("ray", "get-auth-token", "--generate")
    assert code == 0, err
    with_cluster = _cluster(place)
    yield next(with_cluster)
    with_cluster.close()


@pytest.fixture(scope="module")
def open_to_all(folder: Path) -> Iterator[Place]:
    """A cluster without authentication."""
    with_cluster = _cluster(Place(folder, {"RAY_AUTH_MODE": "disabled"}))
    yield next(with_cluster)
    with_cluster.close()


def _cluster(place: Place) -> Iterator[Place]:
    ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
    options = [f"--{name}={port}" for name, port in ports.items()]
    options += ["--min-worker-port=0", "--max-worker-port=0", "--node-ip-address=127.0.0.1"]
    options += ["--num-cpus=2", "--object-store-memory=100000000"]
    temporary = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    log = (place.folder / "ray.log").open("w")
    head = subprocess.Popen(
        ["ray", "start", "--head", "--block", f"--temp-dir={temporary}", *options],
        cwd=place.folder,
        env=place.environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        place.address = f"http://127.0.0.1:{ports['dashboard-port']}"
        _wait_for_dashboard(place.address, head)
        yield place
    finally:
        _end(head, temporary)
        log.close()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _wait_for_dashboard(address: str, head: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + 120
    while time.monotonic() < limit and head.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/", timeout=5).close()
            return
        except OSError as error:
            if getattr(error, "code", None) in (401, 403):
                return
        time.sleep(0.2)
    raise AssertionError("no dashboard after 120 s")


def _end(head: subprocess.Popen[bytes], temporary: str) -> None:
    """Kill this cluster's processes, by their ids, and no other's."""
    tree = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
    head.terminate()
    for process in psutil.process_iter(["cmdline"]):
        if any(temporary in word for word in process.info["cmdline"] or ()):
            tree.append(process)
    for process in tree:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    head.wait(timeout=30)
    psutil.wait_procs(tree, timeout=10)
    shutil.rmtree(temporary, ignore_errors=True)


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], what: str) -> None:
    limit = time.monotonic() + 240
    while time.monotonic() < limit and process.poll() is None:
        if condition():
            return
        time.sleep(0.2)
    process.kill()
    raise AssertionError(f"no {what} after 240 s: {process.communicate()}")


def test_a_submitted_study_is_followed_stopped_and_resumed(secured: Place) -> None:
    run = secured.folder / "runs" / "tiny"
    first = secured.start(*secured.submit())
    assert first.stdout is not None
    assert first.stdout.readline().startswith("tiny: submitted to http")
    second = secured.start(*secured.submit())
    assert second.stdout is not None
    assert second.stdout.readline().startswith("tiny: runs already on http")

    first.send_signal(signal.SIGINT)  # ends the following, not the job
    out, err = first.communicate(timeout=120)
    assert (first.returncode, err) == (130, "")
    stop = out.rsplit("stop it: ", 1)[1].split()
    assert stop[0] == "RAY_AUTH_MODE=token"

    _wait_for(lambda: bool(ended_trials(run)), second, "finished trial")
    code, _, err = secured.call(*stop[1:], RAY_AUTH_MODE="token")  # as it says there
    assert code == 0, err
    out, err = second.communicate(timeout=120)
    assert (second.returncode, err) == (130, "")
    assert "search · trials 0/6" in out, "the job's log shows its progress"
    assert out.splitlines()[-1] == "tiny: stopped; the same command goes on with it"
    assert secured.state("tiny") == "INTERRUPTED"
    before = pd.read_parquet(run / "trials.parquet").set_index("trial_id")

    again = secured.start(*secured.submit())
    _wait_for(lambda: secured.state("tiny") == "RUNNING", again, "running study")
    code, out, err = secured.call("python", "-m", "study", "leaderboard", "../runs/tiny", "--json")
    assert code == 0, err
    assert sum(row["state"] == "COMPLETE" for row in json.loads(out)) >= 1
    out, err = again.communicate(timeout=400)
    assert (again.returncode, err) == (0, "")
    assert out.splitlines()[-1] == "tiny: SUCCEEDED"
    assert out.count("Running entrypoint") == 1, "the log of the stopped job is not shown again"
    after = pd.read_parquet(run / "trials.parquet").set_index("trial_id")
    assert after.groupby("cell").size().to_dict() == {"A@100": 6}
    ended = before[before["state"] != "RUNNING"]
    pd.testing.assert_frame_equal(after.loc[ended.index], ended)  # none is run again
    study = yaml.safe_load((run / "study.yaml").read_text())
    head = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(head, cwd=secured.checkout, capture_output=True, text=True).stdout
    assert (study["state"], study["commit"]) == ("COMPLETE", commit.strip())
    assert (run / "report.html").is_file()


def test_the_jobs_exit_code_is_the_commands(secured: Place) -> None:
    """What only the cluster can know, here that it has no such images."""
    code, out, err = secured.call(*secured.submit("--data", "../none", "--name", "lost"))
    assert (code, err) == (2, "")
    said = [line for line in out.splitlines() if line.startswith("mariposa: ")]
    assert len(said) == 1
    assert str(secured.folder / "none") in said[0]
    assert out.splitlines()[-1] == "lost: FAILED, exit code 2"


def test_without_waiting_it_says_how_to_follow_and_another_study_of_that_name_is_refused(
    secured: Place,
) -> None:
    code, out, err = secured.call(*secured.submit("--name", "later", "--no-wait"))
    assert (code, err) == (0, "")
    assert out.startswith("later: submitted to http")
    code, _, err = secured.call(*secured.submit("--name", "later", "--set", "seed=4"))
    assert code == 2
    assert "a job of that name runs" in err
    assert err.count("\n") == 1
    code, _, err = secured.call(
        "ray", "job", "stop", "later", "--address", secured.address, RAY_AUTH_MODE="token"
    )
    assert code == 0, err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--set", "search.trails=1"], "did you mean search.trials?"),
        (["--address", "http://127.0.0.1:9"], "--address http://127.0.0.1:9"),
        (["--address", "ray://127.0.0.1:10001"], "expected a dashboard"),
        (["--working-dir", "study"], "tiny.yaml: lies outside"),
        (["--working-dir", "nowhere"], "--working-dir nowhere: found no folder"),
        (["--out", "s3://key:secret@bucket/runs"], "--out: found a user or a key"),
    ],
)
def test_what_is_wrong_here_is_said_here(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    said: str,
) -> None:
    """Without a cluster."""
    place = Place(folder, address="http://127.0.0.1:9")
    monkeypatch.chdir(place.checkout)
    code = main(list(place.submit(*more)[3:]))
    require_refused(code, *capsys.readouterr(), said)


def test_another_clusters_token_is_refused(secured: Place) -> None:
    printed = secured.call(*secured.submit("--working-dir", ".."), RAY_AUTH_TOKEN="f" * 64)
    require_refused(*printed, "Forbidden")


def require_refused(code: int, out: str, err: str, said: str) -> None:
    assert (code, out) == (2, "")
    assert err.startswith("mariposa: ")
    assert said in err
    assert err.count("\n") == 1
    assert "secret" not in err


def ray_job_submit(place: Place, *command: str) -> tuple[int, str, str]:
    """As people type it; while a new cluster has no agent, again."""
    submit = ("ray", "job", "submit", "--address", place.address, "--working-dir", ".", "--")
    limit = time.monotonic() + 120
    while True:
        code, out, err = place.call(*submit, *command)
        if "No available agent" not in out + err or time.monotonic() > limit:
            return code, out, err


def test_ray_job_submit_is_enough_and_needs_no_token_where_there_is_none(
    open_to_all: Place,
) -> None:
    images, runs = open_to_all.folder / "images", open_to_all.folder / "runs"
    study = ["python", "-m", "study", "run", "tiny.yaml", "--data", str(images)]
    code, out, _ = ray_job_submit(open_to_all, *study)
    assert code == 1
    assert "mariposa: --out runs: lies in the copy of the working directory" in out

    study += ["--out", str(runs), "--name", "plain", "--set", "search.trials=2"]
    code, out, err = ray_job_submit(open_to_all, *study)
    assert code == 0, out + err
    assert "final evaluation" in out
    assert "succeeded" in out + err
    assert len(pd.read_parquet(runs / "plain" / "trials.parquet")) == 2

    code, out, err = open_to_all.call(
        *open_to_all.submit("--name", "plain", "--set", "search.trials=2")
    )
    assert (code, err) == (0, ""), "a finished study writes its report again"
    assert "search · " not in out


def test_an_upload_is_the_packages_and_little_more(folder: Path) -> None:
    """All that a job needs is there, and neither data sets nor runs, which may be gigabytes."""
    place = Place(folder)
    (place.checkout / "runs").mkdir(exist_ok=True)
    for name in ("runs/table.csv", "photo.jpg", "weights.safetensors", "analysis/icon.png"):
        (place.checkout / name).write_bytes(bytes(10))
    code, out, err = place.call("python", "-c", LIST_UPLOAD)
    assert code == 0, err
    names = set(out.splitlines())
    listed = subprocess.run(
        ["git", "ls-files", "data", "models", "study", "analysis"],
        cwd=place.checkout,
        capture_output=True,
        text=True,
    )
    assert names >= {*listed.stdout.splitlines(), "analysis/icon.png", "tiny.yaml"}
    assert not names & {"runs/table.csv", "photo.jpg", "weights.safetensors"}
    assert not any(name.startswith((".git/", ".venv/")) for name in names)


# The files that `mariposa submit` would upload from here, by Ray's own packaging.
LIST_UPLOAD = """
import zipfile
from pathlib import Path
from ray._private.runtime_env.packaging import create_package
from study.submission import EXCLUDES
target = Path("../upload.zip").resolve()
create_package(".", target, include_gitignore=True, excludes=[".git", ".venv", *EXCLUDES])
print("\\n".join(zipfile.ZipFile(target).namelist()))
"""
