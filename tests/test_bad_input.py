"""Bad input through the command line: exit code 2, one line that names it, nothing half written.

Most of it is found before Ray starts, which is checked by forbidding it to. What is only found
while images are decoded is found beside Ray's start; there Ray is left out, and one subprocess
shows the whole way.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, draw_image, environment, left_behind, tiny_tree
from records_example import write_run

import study.pipeline
from study.cli import main

Command = Callable[..., str]


class RayStartedError(AssertionError):
    """Bad input was not found before Ray."""


@pytest.fixture
def refused(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Command:
    """Run a command that must be refused before Ray starts; its line on stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> str:
        forbid_ray(monkeypatch)
        code = exit_code(lambda: main([str(a) for a in arguments]))
        printed = capfd.readouterr()
        check_line(code, printed.out, printed.err)
        return printed.err.removeprefix("mariposa: ").rstrip("\n")

    return run


def exit_code(command: Callable[[], int]) -> int:
    try:
        return command()
    except SystemExit as end:
        return int(end.code or 0)


def check_line(code: int, out: str, err: str) -> None:
    assert code == 2, out + err
    assert re.fullmatch(r"mariposa: [^\n]+\n", err), err
    assert "Traceback" not in out


def forbid_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    import study.stages

    @contextlib.contextmanager
    def connected(address: str | None) -> Iterator[None]:
        raise RayStartedError
        yield

    monkeypatch.setattr(study.stages, "connected", connected)


def run_arguments(images: Path | None, out: Path, **changes: Any) -> list[str]:
    """``mariposa run`` of the tiny study on these images."""
    file = out.parent / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny_tree(images, **changes)))
    return ["run", str(file), "--out", str(out)]


def test_an_address_where_nothing_listens(
    refused: Command, own_images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    line = refused(*run_arguments(own_images, out), "--address", "127.0.0.1:1")
    assert line.startswith("--address 127.0.0.1:1: ")
    assert not (out / "tiny").exists()


def test_an_address_in_the_environment_where_nothing_listens(
    refused: Command, own_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left over from a cluster of yesterday."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    line = refused(*run_arguments(own_images, tmp_path / "runs"))
    assert line.startswith("RAY_ADDRESS=127.0.0.1:1: ")


def test_an_address_of_ray_client(refused: Command, own_images: Path, tmp_path: Path) -> None:
    """Tune would run on the cluster with copies of what decides, and fail."""
    line = refused(*run_arguments(own_images, tmp_path / "runs"), "--address", "ray://127.0.0.1:1")
    assert line.startswith("--address ray://127.0.0.1:1: found an address of Ray Client, expected ")
    assert "mariposa submit" in line


# --- The images ----------------------------------------------------------------------------------


def replace_by_text(images: Path) -> str:
    (images / "train" / "ATALA" / "notes.jpg").write_text("no image")
    return "train/ATALA/notes.jpg"


def truncate(images: Path) -> str:
    draw_image(images / "valid" / "ATALA" / "cut.png", 0, size=64)
    file = images / "valid" / "ATALA" / "cut.png"
    file.write_bytes(file.read_bytes()[:300])
    return "valid/ATALA/cut.png"


def empty_species(images: Path) -> str:
    (images / "train" / "EMPTY").mkdir()
    return "train/EMPTY"


def single_image(images: Path) -> str:
    draw_image(images / "train" / "RARE" / "0.png", 0)
    return "train/RARE"


def unknown_in_test(images: Path) -> str:
    draw_image(images / "test" / "STRANGER" / "0.png", 0)
    return "test/STRANGER"


def no_valid(images: Path) -> str:
    shutil.rmtree(images / "valid")
    return "valid/"


def missing(images: Path) -> str:
    shutil.rmtree(images)
    return "images"


def empty(images: Path) -> str:
    shutil.rmtree(images)
    images.mkdir()
    return "images"


def a_file(images: Path) -> str:
    shutil.rmtree(images)
    images.write_text("")
    return "images"


SPOILT: list[tuple[Callable[[Path], str], str]] = [
    (missing, "no such folder"),
    (empty, "an empty folder"),
    (a_file, "is not a folder"),
    (empty_species, "no image"),
    (single_image, "1 image"),
    (unknown_in_test, "a species that train/ lacks"),
    (no_valid, "without valid/"),
]
SPOILT_INSIDE: list[tuple[Callable[[Path], str], str]] = [
    (replace_by_text, "not an image"),
    (truncate, "truncated"),
]


@pytest.mark.parametrize(("spoil", "said"), SPOILT)
def test_a_bad_image_folder_is_refused_before_ray_starts(
    refused: Command, own_images: Path, tmp_path: Path, spoil: Callable[[Path], str], said: str
) -> None:
    name = spoil(own_images)
    out = tmp_path / "runs"
    line = refused(*run_arguments(own_images, out))
    assert name in line
    assert said in line
    assert "expected" in line
    assert not out.exists()
    assert name in refused("plan", "smoke", "--data", own_images)
    assert name in refused("data", "check", own_images)


@pytest.mark.parametrize(("spoil", "said"), SPOILT_INSIDE)
def test_a_bad_image_is_refused(
    refused: Command, own_images: Path, tmp_path: Path, spoil: Callable[[Path], str], said: str
) -> None:
    name = spoil(own_images)
    out = tmp_path / "runs"
    line = refused(*run_arguments(own_images, out))
    assert str(own_images / name) in line
    assert said in line
    assert left_behind(out) == []
    assert name in refused("data", "check", own_images)


def test_a_ratio_that_leaves_a_species_without_a_label(
    refused: Command, own_images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    cells = {"label_ratios": [5, 100]}
    line = refused(*run_arguments(own_images, out, cells=cells))
    assert line.startswith("cells.label_ratios: 5 % of the 8 training images of ATALA")
    assert left_behind(out) == []
    line = refused("plan", "smoke", "--data", own_images, "--set", "cells.label_ratios=[5]")
    assert line.startswith("cells.label_ratios: 5 % of the 8 training images of a species")


def test_a_ratio_that_leaves_no_image_without_a_label(
    refused: Command, own_images: Path, tmp_path: Path
) -> None:
    """97 % of 8 images a species are 8."""
    out = tmp_path / "runs"
    changes = {"cells": {"label_ratios": [50, 97]}, "encoder": {"pretrain_on": "unlabelled"}}
    command = run_arguments(own_images, out, **changes)
    line = refused(*command)
    assert line.startswith("cells.label_ratios: found 97, which labels all 24 training images")
    assert left_behind(out) == []
    assert refused("plan", *command[1:]) == line


def test_a_pooled_split_that_wants_more_than_there_is(
    refused: Command, own_images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    data = {"split": {"pooled": {"test_per_class": 10, "valid_per_class": 10}}}
    line = refused(*run_arguments(own_images, out, data=data))
    assert line.startswith("data.split: ATALA has 16 images; expected at least 22")
    split = ("--set", "data.split={pooled: {test_per_class: 10, valid_per_class: 10}}")
    assert refused("plan", "smoke", "--data", own_images, *split) == line
    assert left_behind(out) == []


# --- The configuration ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["quik"], "quik: found no preset or file of that name"),
        (["nowhere.yaml"], "nowhere.yaml: found no preset or file of that name"),
        (["smoke", "--set", "search.trial=3"], "did you mean search.trials?"),
        (["smoke", "--set", "cells.variants=[A, B7]"], "cells.variants.1: found 'B7'"),
        (["smoke", "--set", "cells.variants=[A, B2-]"], "found 'B2-', expected a recipe"),
        (["smoke", "--set", "search.trials=many"], "search.trials: found 'many'"),
        (["smoke", "--set", "search.trials=0"], "search.trials: found 0"),
        (["smoke", "--set", "search.lr=[0, 1]"], "search.lr.0: found 0"),
        (["smoke", "--set", "search.lr=[-1, 1]"], "search.lr.0: found -1"),
        (["smoke", "--set", "search.lr=[1e-2, 1e-4]"], "search.lr: found [0.01, 0.0001]"),
        (["smoke", "--set", "search.grace_period=9"], "search.grace_period: found 9"),
        (["smoke", "--set", "cells.label_ratios=[0]"], "cells.label_ratios.0: found 0"),
        (["smoke", "--set", "search.trials"], "--set search.trials: found no '='"),
        (["smoke", "--set", "search.trials={"], "--set search.trials: is not YAML"),
        (["smoke", "--name", "a/b"], "name: found 'a/b'"),
        (["smoke", "--data", "gs://"], "gs://"),
        (["smoke", "--data", "nothing://x/y"], "nothing://x/y"),
        (["smoke", "--out", "nothing://x/y"], "nothing://x/y"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_bad_configuration_is_refused(
    refused: Command, tmp_path: Path, command: str, arguments: list[str], said: str
) -> None:
    line = refused(command, *arguments)
    assert said in line
    assert list(tmp_path.iterdir()) == [], "nothing was written"


@pytest.mark.parametrize("content", [b"a: [1, 2\nb: }", b"\x89PNG\r\n", b"", b"- 1\n"])
def test_a_configuration_that_is_no_yaml_mapping(
    refused: Command, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    assert refused("run", "mine.yaml").startswith("mine.yaml: ")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["rum"],
        ["run", "--trials", "3"],
        ["resume"],
        ["leaderboard", "x", "--top", "0"],
        ["predict", "x"],
        ["data", "demo", "x", "--seed", "-1"],
        ["data"],
    ],
    ids=" ".join,
)
def test_a_command_that_does_not_exist_is_one_line_too(
    refused: Command, arguments: list[str]
) -> None:
    refused(*arguments)


# --- Where it is to be written -------------------------------------------------------------------


def test_an_out_that_is_a_file(refused: Command, tiny_images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = run_arguments(tiny_images, out)
    out.write_text("mine")
    line = refused(*arguments)
    assert str(out) in line
    assert out.read_text() == "mine"


def test_a_run_name_that_is_a_file_or_another_folder(
    refused: Command, tiny_images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    arguments = run_arguments(tiny_images, out)
    (out / "tiny").mkdir(parents=True)
    (out / "tiny" / "thesis.tex").write_text("mine")
    assert str(out / "tiny") in refused(*arguments)
    shutil.rmtree(out / "tiny")
    (out / "tiny").write_text("mine")
    assert str(out / "tiny") in refused(*arguments)


def test_no_permission(refused: Command, tiny_images: Path, tmp_path: Path) -> None:
    """/proc takes no folder, whoever asks: root is above permissions, but not above this."""
    out = Path("/proc/self/mariposa")
    arguments = run_arguments(tiny_images, tmp_path / "out")[:2]
    assert str(out) in refused(*arguments, "--out", out)
    if os.geteuid() != 0:
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        assert str(locked) in refused(*arguments, "--out", locked / "runs")
    assert "file name too long" in refused("leaderboard", tmp_path / ("x" * 300))
    folder = tmp_path / "closed"
    (folder / "run").mkdir(parents=True)
    refused("leaderboard", folder / "run")  # all is imported before rights are given up
    folder.chmod(0)
    with nobody(tmp_path):
        for command in ("leaderboard", "resume"):
            assert f"{folder}/run" in refused(command, folder / "run")


class Forbidding(BaseHTTPRequestHandler):
    """An object store that refuses all keys, whatever is asked of it."""

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):
            return self.forbid
        raise AttributeError(name)

    def forbid(self) -> None:
        answer = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def test_a_store_that_refuses(
    refused: Command, tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its errors have neither number nor file."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    images = ["--data", str(tiny_images)]
    with ThreadingHTTPServer(("127.0.0.1", 0), Forbidding) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = f"endpoint_override=127.0.0.1:{server.server_port}&scheme=http&region=us-east-1"
        uri = f"s3://bucket/runs?{options}"
        for command in (["run", "smoke", *images, "--out", uri], ["leaderboard", uri]):
            assert re.match(
                r"s3://bucket/runs.*ACCESS_DENIED.*; expected one that", refused(*command)
            )
        line = refused("run", "smoke", "--data", uri)
        assert re.match(r"s3://bucket/runs.*ACCESS_DENIED.*; expected train/", line)
        server.shutdown()


def test_a_run_that_may_be_entered_but_not_looked_into(refused: Command, tmp_path: Path) -> None:
    refused("run", "smoke", "--name", "a/b")  # all is imported before rights are given up
    with tempfile.TemporaryDirectory() as public:
        os.chmod(public, 0o755)
        run = Path(public, "run")
        run.mkdir()
        run.chmod(0o311)
        with nobody(tmp_path):
            line = refused("run", "smoke", "--out", public, "--name", "run")
    assert f"{run}: permission denied" in line


@contextlib.contextmanager
def nobody(folder: Path) -> Iterator[None]:
    """As a user who may enter the test's folder, but owns nothing."""
    if os.geteuid() != 0:
        yield
        return
    modes = {path: path.stat().st_mode for path in (folder, *folder.parents[:2])}
    for path, mode in modes.items():
        path.chmod(mode | 0o711)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)


@contextlib.contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[None]:
    folder.mkdir()
    size = f"size={kib}k"
    command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_no_disk(refused: Command, tiny_images: Path, tmp_path: Path) -> None:
    """The packed images do not fit: 48 of 16 × 16 pixels are 37 kB."""
    arguments = run_arguments(tiny_images, tmp_path / "out")[:2]
    disk = tmp_path / "disk"
    with small_disk(disk, 16):
        line = refused(*arguments, "--out", disk / "runs")
        assert str(disk / "runs") in line
        assert "no space left" in line
        assert left_behind(disk / "runs") == []


def test_no_disk_where_files_may_not_grow(tiny_images: Path, tmp_path: Path) -> None:
    """The same by a limit on the size of files, which needs no rights."""
    out = tmp_path / "out"
    arguments = run_arguments(tiny_images, out)
    program = (
        "import contextlib, sys, study.stages\n"
        "study.stages.connected = lambda address: contextlib.nullcontext()\n"
        "sys.exit(study.cli.main(sys.argv[1:]))"
    )

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run(
        [sys.executable, "-B", "-c", "import study.cli\n" + program, *arguments],
        cwd=tmp_path,
        env=environment(),
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=120,
    )
    check_line(done.returncode, done.stdout, done.stderr)
    assert str(out) in done.stderr
    assert left_behind(out) == []


# --- Runs that are there, or are not -------------------------------------------------------------


def write_study_yaml(run: Path, images: Path, **changes: Any) -> None:
    """A run that was begun with that configuration, and interrupted."""
    from study.config import config_from

    config = config_from(tiny_tree(images, **changes), "a test").model_dump(mode="json")
    study: dict[str, Any] = {
        "config": config,
        "versions": {},
        "commit": None,
        "machine": "",
        "data": {},
    }
    study |= {"state": "INTERRUPTED", "started": "", "seconds": 1.0, "failures": []}
    run.mkdir(parents=True)
    (run / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))


@pytest.mark.parametrize(
    ("there", "keys"),
    [
        ({"search": {"trials": 5}}, ["search.trials: 5 there, 2 here"]),
        ({"training": {"patience": 7}}, ["training.patience: 7 there, 4 here"]),
        (
            {"search": {"metric": "val_acc"}, "encoder": {"width": 4}},
            ["search.metric: 'val_acc' there, 'val_f1' here", "encoder.width: 4 there, 2 here"],
        ),
        ({"data": {"split": "pooled"}}, ["data.split"]),
    ],
)
def test_a_run_of_that_name_with_another_configuration(
    refused: Command, tiny_images: Path, tmp_path: Path, there: dict[str, Any], keys: list[str]
) -> None:
    out = tmp_path / "runs"
    write_study_yaml(out / "tiny", tiny_images, **there)
    before = (out / "tiny" / "study.yaml").read_bytes()
    line = refused(*run_arguments(tiny_images, out))
    assert str(out / "tiny") in line
    for key in keys:
        assert key in line
    assert (out / "tiny" / "study.yaml").read_bytes() == before
    assert left_behind(out) == ["tiny", "tiny/study.yaml"]


def test_a_renamed_run_is_resumed_where_it_lies(
    monkeypatch: pytest.MonkeyPatch, own_images: Path, tmp_path: Path
) -> None:
    """Its study.yaml has the old name: no second run may be begun under that."""
    out = tmp_path / "runs"
    write_study_yaml(out / "tiny", own_images)
    (out / "tiny").rename(out / "renamed")
    forbid_ray(monkeypatch)
    with pytest.raises(RayStartedError):
        main(["resume", str(out / "renamed")])
    assert sorted(path.name for path in out.iterdir()) == ["packed", "renamed"]


def test_a_run_renamed_to_what_no_run_may_be_named(
    refused: Command, own_images: Path, tmp_path: Path
) -> None:
    """Else the name would be written into its study.yaml, and no command could read that again."""
    run = tmp_path / "runs" / "tiny 2"
    write_study_yaml(tmp_path / "runs" / "tiny", own_images)
    (tmp_path / "runs" / "tiny").rename(run)
    before = (run / "study.yaml").read_bytes()
    assert "name: found 'tiny 2'" in refused("resume", run)
    assert (run / "study.yaml").read_bytes() == before


def test_a_name_that_is_not_utf8(refused: Command, own_images: Path, tmp_path: Path) -> None:
    """As archives made on Windows hold them."""
    image = next((own_images / "train").rglob("*.png"))
    os.rename(image, os.path.join(os.fsencode(image.parent), b"caf\xe9.png"))
    for command in (run_arguments(own_images, tmp_path / "runs"), ["data", "check", own_images]):
        line = refused(*command)
        assert r"caf\xe9.png: its name is not UTF-8" in line
    assert left_behind(tmp_path / "runs") == []


def test_a_name_of_two_lines(refused: Command, own_images: Path) -> None:
    (own_images / "train" / "ATALA" / "two\nlines.png").write_text("no image")
    assert r"/two\nlines.png: not an image" in refused("data", "check", own_images)


def test_an_argument_that_is_not_utf8(refused: Command, tiny_images: Path, tmp_path: Path) -> None:
    """As Python hands on the bytes of such a name."""
    images, folder = ["--data", tiny_images], tmp_path / "caf\udce9"
    for command in (
        ["run", "smoke", *images, "--out", folder],
        ["plan", "smoke", *images, "--out", folder],
        ["run", "smoke", "--data", folder],
        ["leaderboard", folder],
    ):
        assert r"caf\xe9: its name is not UTF-8" in refused(*command)


@pytest.mark.parametrize("option", ["--data", "--out", "--name"])
def test_an_empty_option_is_not_the_default(refused: Command, tmp_path: Path, option: str) -> None:
    """`--data "$FOLDER"` of a variable that is not set."""
    line = refused("run", "smoke", option, "")
    assert re.search("--data: found an empty|--out: found an empty|name: found ''", line)
    assert left_behind(tmp_path / "runs") == []


def test_a_report_without_room(refused: Command, example_run: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4000):
        run = tmp_path / "disk" / "run"
        shutil.copytree(example_run, run)
        with contextlib.suppress(OSError), (tmp_path / "disk" / "fill").open("wb") as fill:
            fill.write(bytes(2**22))
        assert "no space left on device; expected storage that can be written" in refused(
            "report", run
        )


READERS = (
    ["resume", "RUN"],
    ["report", "RUN"],
    ["leaderboard", "RUN"],
    ["leaderboard", "RUN", "--json"],
    ["predict", "RUN", "image.png"],
)


@pytest.mark.parametrize("arguments", READERS, ids=" ".join)
def test_a_run_that_does_not_exist(refused: Command, tmp_path: Path, arguments: list[str]) -> None:
    draw_image(tmp_path / "image.png", 0)
    for run in ("nowhere", "runs/nowhere", tmp_path / "nowhere", tmp_path / "image.png", tmp_path):
        line = refused(*[run if word == "RUN" else word for word in arguments])
        assert str(tmp_path / run) in line
    assert [path.name for path in tmp_path.iterdir()] == ["image.png"]


@pytest.mark.parametrize("arguments", READERS, ids=" ".join)
def test_a_run_whose_study_yaml_is_torn(
    refused: Command, tmp_path: Path, tiny_images: Path, arguments: list[str]
) -> None:
    draw_image(tmp_path / "image.png", 0)
    write_study_yaml(tmp_path / "runs" / "tiny", tiny_images)
    file = tmp_path / "runs" / "tiny" / "study.yaml"
    whole = file.read_bytes()
    marks = [whole.index(mark) for mark in (b"  data:", b"    image_size", b"  cells:")]
    if arguments[0] in ("resume", "predict"):  # whole lines are valid YAML, but not the study
        marks += [whole.index(mark) for mark in (b"versions:", b"state:", b"failures:")]
    for cut in (0, 5, *marks, *(mark + 7 for mark in marks)):
        file.write_bytes(whole[:cut])
        line = refused(*["tiny" if word == "RUN" else word for word in arguments])
        assert str(file) in line
        assert file.read_bytes() == whole[:cut]


@pytest.fixture(scope="session")
def example_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of a study that never ran, without models."""
    folder = tmp_path_factory.mktemp("example") / "mine"
    return write_run(folder, variants=("A", "B1"), ratios=(10, 100), trials=4, repeats=1)


@pytest.mark.parametrize("cell", ["B7@25", "A", "A@11", ""])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_leaderboard_of_an_unknown_cell(
    refused: Command, example_run: Path, cell: str, options: list[str]
) -> None:
    line = refused("leaderboard", example_run, "--cell", cell, *options)
    assert f"--cell: found {cell!r}, expected one of A@10, B1@10, A@100, B1@100" in line


def test_a_damaged_table_is_named(refused: Command, example_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(example_run, run)
    file = run / "trials.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    assert str(file) in refused("leaderboard", run)
    assert str(file) in refused("report", run)


def test_predict_without_models(refused: Command, example_run: Path, tmp_path: Path) -> None:
    draw_image(tmp_path / "image.png", 0)
    run = tmp_path / "copy"
    shutil.copytree(example_run, run)
    study = yaml.safe_load((run / "study.yaml").read_text()) | {"failures": []}
    (run / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    assert str(run / "models") in refused("predict", run, tmp_path / "image.png")
    (run / "evaluations.parquet").unlink()
    assert str(run) in refused("predict", run, tmp_path / "image.png")


def test_predict_of_what_is_no_image(
    refused: Command, make_material: Callable[..., Any], tmp_path: Path
) -> None:
    run = trained_run(make_material)
    draw_image(tmp_path / "good.png", 0)
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:99])
    for name in ("text.jpg", "cut.png", "nowhere.png", ".", "text.jpg/x.png"):
        line = refused("predict", run, tmp_path / "good.png", tmp_path / name)
        assert str((tmp_path / name).resolve()) in line
        assert "image" in line
    line = refused("predict", run, tmp_path / "good.png", "--cell", "B1@25")
    assert "--cell: found 'B1@25', expected one of A@100" in line


def trained_run(make_material: Callable[..., Any]) -> Path:
    """A run with one evaluated classifier, as a study leaves it."""
    from study.cells import Cell
    from study.evaluation import Repeat, evaluate, record
    from study.records import Ledger
    from study.study_file import write_study

    material = make_material(training={"max_epochs": 1})
    ledger, repeat = Ledger(material.run), Repeat(Cell("A", 100), 0, 1e-3)
    record(material, ledger, repeat, evaluate(material, repeat))
    ledger.save(closing=True)
    config = material.config.model_dump(mode="json")
    write_study(material.run, {"config": config, "data": {}, "state": "COMPLETE", "failures": []})
    return Path(str(material.run))


# --- The whole way, in a process of its own ------------------------------------------------------


def test_the_whole_way(own_images: Path, tmp_path: Path) -> None:
    name, out = replace_by_text(own_images), tmp_path / "runs"
    done = subprocess.run(
        [sys.executable, "-m", "study", *run_arguments(own_images, out)],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    check_line(done.returncode, done.stdout, done.stderr)
    assert name in done.stderr
    assert not out.exists() or left_behind(out) == []


def test_another_process_that_has_run_the_study_meanwhile(
    refused: Command, tmp_path: Path, own_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It began and ended while this one decoded images, so it holds no lock any more."""
    out, prepare = tmp_path / "runs", study.pipeline.prepare

    def slowly(*arguments: Any) -> Any:
        prepared = prepare(*arguments)
        write_study_yaml(out / "tiny", own_images)
        return prepared

    monkeypatch.setattr(study.pipeline, "prepare", slowly)
    line = refused(*run_arguments(own_images, out))
    assert "another process has run this study meanwhile" in line
    assert not (out / "tiny" / "labels.parquet").exists(), "nothing of it was overwritten"


def test_images_that_changed_since_the_run_began(
    refused: Command, tmp_path: Path, own_images: Path
) -> None:
    out = tmp_path / "runs"
    write_study_yaml(out / "tiny", own_images)
    file = out / "tiny" / "study.yaml"
    study = yaml.safe_load(file.read_text())
    study["data"] = {"key": "another", "layout": "folders"}
    file.write_text(yaml.safe_dump(study, sort_keys=False))
    before = file.read_bytes()
    grown = run_arguments(own_images, out, search={"trials": 9})
    for arguments in (grown, ["resume", out / "tiny"]):
        line = refused(*arguments)
        assert str(own_images) in line
        assert "its images are not those" in line
        assert file.read_bytes() == before, "nothing has begun"


@pytest.mark.parametrize("begun", [True, False])
def test_the_command_that_goes_on_can_be_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, begun: bool
) -> None:
    """Also where the folder has a blank, a cluster was named, or nothing is on disk yet."""

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("study.pipeline.run_study", interrupted)
    run = tmp_path / "my runs" / "smoke"
    if begun:
        run.mkdir(parents=True)
        (run / "study.yaml").touch()
    code = main(["run", "smoke", "--out", str(tmp_path / "my runs"), "--address", "local"])
    assert code == 130
    command = f"mariposa resume '{run}' --address local" if begun else "the same command"
    assert capsys.readouterr().err == f"mariposa: interrupted; go on with: {command}\n"
