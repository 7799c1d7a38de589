"""A study whose images and records lie on S3: moto's server on this machine's loopback.

The same study as on disk, through the same code. Its driver is killed and it is resumed; then the
storage stops answering for a while.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pandas as pd
import pytest
import witness
import yaml
from conftest import SPECIES, World, ended_trials, tiny_tree

from data.storage import Location
from study.records import read_table

CELLS = {"A@50", "A@100", "B1@50", "B1@100"}
TRIALS = 3
SILENT_SECONDS = 20.0
pytestmark = pytest.mark.timeout(400)


@dataclass(frozen=True)
class Store:
    """A bucket on a server that can be made to keep silent."""

    port: int
    process: subprocess.Popen[bytes]

    def uri(self, key: str) -> str:
        options = f"endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"
        return f"s3://bucket/{key}?{options}"

    def keys(self, prefix: str) -> set[str]:
        bucket = boto3.resource("s3", endpoint_url=f"http://127.0.0.1:{self.port}").Bucket("bucket")
        return {one.key for one in bucket.objects.filter(Prefix=prefix)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    log = (tmp_path_factory.mktemp("moto") / "log.txt").open("w")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (keys | {"AWS_DEFAULT_REGION": "us-east-1"}).items():
            patch.setenv(name, value)
        try:
            wait_for_port(port)
            client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
            client.create_bucket(Bucket="bucket")
            yield Store(port, process)
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
            log.close()


def wait_for_port(port: int) -> None:
    limit = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < limit, "moto's server does not start"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, store: Store, tiny_images: Path) -> World:
    """The images are in the bucket; the trials pause, so that there is time to disturb them."""
    bucket = Location(store.uri("images"))
    for file in sorted(tiny_images.rglob("*.png")):
        (bucket / str(file.relative_to(tiny_images))).write_bytes(file.read_bytes())
    beside = tmp_path_factory.mktemp("beside")
    witness.install(beside)
    (beside / "pause").write_text("0.4")
    more = witness.environment(beside, "here") | {"WITNESS_PAUSE": str(beside / "pause")}
    return World(tmp_path_factory.mktemp("cwd"), dict(os.environ) | more)


@pytest.fixture(scope="module")
def run(world: World, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Location:
    """A finished study whose driver was killed, and whose storage kept silent for a while."""
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny_tree(search={"trials": TRIALS})))
    run = Location(store.uri("out/tiny"))
    command = ("run", str(file), "--data", store.uri("images"), "--out", store.uri("out"))
    driver = world.start(*command)
    wait_for_ended_trials(run, 2, driver)
    driver.kill()
    driver.communicate()

    driver = world.start("resume", str(run))
    wait_for_ended_trials(run, 5, driver)
    store.process.send_signal(signal.SIGSTOP)
    time.sleep(SILENT_SECONDS)
    store.process.send_signal(signal.SIGCONT)
    out, err = driver.communicate(timeout=250)
    assert driver.returncode == 0, err
    assert out.splitlines()[-1] == str(run / "report.html")
    return run


def wait_for_ended_trials(run: Location, count: int, driver: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 150
    while len(ended_trials(run)) < count:
        assert time.monotonic() < limit, f"no {count} trials after 150 s"
        assert driver.poll() is None, driver.communicate()[1]
        time.sleep(0.1)


def test_a_study_on_s3_is_whole(run: Location) -> None:
    study = yaml.safe_load((run / "study.yaml").read_text())
    assert (study["state"], study["failures"]) == ("COMPLETE", [])
    trials = pd.DataFrame(read_table(run / "trials.parquet"))
    epochs = pd.DataFrame(read_table(run / "epochs.parquet"))
    assert trials.groupby("cell").size().to_dict() == dict.fromkeys(CELLS, TRIALS)
    assert set(trials["state"]) <= {"COMPLETE", "PRUNED"}
    assert not epochs.duplicated(["trial_id", "epoch"]).any()
    assert epochs.groupby("trial_id").size().to_dict() == dict(
        zip(trials["trial_id"], trials["epochs"], strict=True)
    )
    assert len(read_table(run / "evaluations.parquet")) == len(CELLS)


def test_everything_lies_in_the_bucket_and_nothing_elsewhere(
    run: Location, store: Store, world: World
) -> None:
    keys = {key.removeprefix("out/tiny/") for key in store.keys("out/tiny/")}
    keys = {key for key in keys if not key.endswith("/")}  # the mark of an empty folder
    wanted = {"study.yaml", "labels.parquet", "trials.parquet", "epochs.parquet", "table_i.csv"}
    wanted |= {"predictions.parquet", "report.html", "optuna.db", "encoders.csv", "clusters.csv"}
    assert wanted <= keys
    assert {key for key in keys if key.endswith(".safetensors")} >= {
        f"models/{cell}.safetensors" for cell in CELLS
    }
    folders = ("checkpoints/", "journal/")
    assert [key for key in keys if ".part-" in key or key.startswith(folders)] == []
    assert list(world.folder.iterdir()) == []


def test_commands_read_a_run_on_s3(run: Location, store: Store, world: World) -> None:
    code, out, err = world.run("leaderboard", str(run), "--top", "3", "--json")
    assert code == 0, err
    assert [row["rank"] for row in json.loads(out)] == [1, 2, 3]
    (run / "report.html").delete()
    code, out, err = world.run("report", str(run))
    assert code == 0, err
    assert out.strip() == str(run / "report.html")
    assert "<html" in (run / "report.html").read_text()
    image = store.uri(sorted(store.keys("images/test"))[0])
    code, out, err = world.run("predict", str(run), image, "--json")
    assert code == 0, err
    (answer,) = json.loads(out)
    assert set(answer["probabilities"]) == set(SPECIES)


def test_images_on_s3_are_checked(store: Store, world: World) -> None:
    code, out, err = world.run("data", "check", store.uri("images"))
    assert code == 0, err
    assert all(name in out for name in SPECIES)
    torn = Location(store.uri("torn"))
    for key in store.keys("images/"):
        content = Location(store.uri(key)).read_bytes()
        (torn / key.removeprefix("images/")).write_bytes(content)
    (torn / "train" / SPECIES[0] / "which one?.png").write_bytes(content)
    code, out, _ = world.run("data", "check", str(torn))
    assert code == 0, "a key may hold what ends a URI's path"
    victim = torn / "train" / SPECIES[0] / "000.png"
    victim.write_bytes(victim.read_bytes()[:200])
    code, _, err = world.run("data", "check", str(torn))
    assert code == 2
    assert str(victim) in err


def test_a_bucket_that_is_not_there_is_bad_input(store: Store, world: World) -> None:
    there = store.uri("images")
    missing = there.replace("s3://bucket/", "s3://nowhere/")
    for command in (
        ("run", "smoke", "--data", there, "--out", missing),
        ("run", "smoke", "--data", missing, "--out", there),
        ("leaderboard", missing),
    ):
        code, _, err = world.run(*command)
        assert code == 2, command
        assert len(err.splitlines()) == 1
        assert "nowhere" in err
