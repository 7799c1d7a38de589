"""`mariposa serve`: the page of one run on this machine alone, live while the study runs."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import REPOSITORY
from records_example import write_run

from analysis import serve
from data.storage import InputError, Location
from study.cli import main

SMALL: dict[str, Any] = {"species": ("Atala", "Map"), "per_species": (12, 4, 10), "ratios": (100,)}
SMALL |= {"trials": 4, "repeats": 2, "features": 4, "encoders": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "live", state="RUNNING", **SMALL)


@contextmanager
def serving(run: Path) -> Iterator[int]:
    """A server of a run in a thread; its port."""
    with serve.bind(0) as server:
        server.live = serve.LivePage(Location(run))  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def port(folder: Path) -> Iterator[int]:
    with serving(folder) as port:
        yield port


def get(port: int, path: str = "/", **headers: str) -> tuple[int, str, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), answer.headers


def test_the_page_is_there_and_knows_that_it_is_live(port: int) -> None:
    status, html, headers = get(port)
    assert status == 200
    assert "<h1>live</h1>" in html
    assert "This study is RUNNING" in html
    version = json.loads(get(port, "/version")[1])
    assert f'data-live="{version["version"]}"' in html
    assert (version["state"], version["problem"]) == ("live · running", None)
    assert headers["Cache-Control"] == "no-store"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize(
    "path",
    [
        "/study.yaml",
        "/trials.parquet",
        "/../live/study.yaml",
        "/..%2f..%2f..%2fetc/passwd",
        "//etc/passwd",
        "/?/../study.yaml",
        "/version/",
    ],
)
def test_nothing_else_is_served(port: int, path: str) -> None:
    status, body, _ = get(port, path)
    assert (status, body) == (404, "there are only / and /version\n")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "", "localhost.:1"])
def test_another_hosts_name_is_refused(port: int, host: str) -> None:
    """A page elsewhere whose name is made to point at this machine must not read the study."""
    for path in ("/", "/version"):
        assert get(port, path, Host=host)[0] == 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8642", "localhost:9000", "[::1]:80"])
def test_this_machines_names_are_not_and_any_tunnels_port(port: int, host: str) -> None:
    assert get(port, "/version", Host=host)[0] == 200


def test_nothing_can_be_sent(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/", body="x")
    assert connection.getresponse().status == 501


def test_only_this_machine_is_listened_to(port: int) -> None:
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", port), timeout=5)


def wait_for(port: int, key: str, value: object, negate: bool = False) -> dict[str, Any]:
    """Poll as a page does until a key of the version has a value (or another one)."""
    for _ in range(400):
        version: dict[str, Any] = json.loads(get(port, "/version")[1])
        if (version[key] == value) != negate:
            return version
        time.sleep(0.1)
    raise AssertionError(f"{key} did not change: {version}")


def add_trial(folder: Path, **changes: object) -> None:
    trials = pd.read_parquet(folder / "trials.parquet")
    row = trials.iloc[[0]].assign(trial_id="A@100-900", **changes)
    pd.concat([trials, row], ignore_index=True).to_parquet(folder / "new", index=False)
    (folder / "new").replace(folder / "trials.parquet")


def test_new_records_make_a_new_page_and_torn_ones_keep_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "REST", 0.01)
    folder = write_run(tmp_path / "run", state="RUNNING", **SMALL)
    with serving(folder) as port:
        before = json.loads(get(port, "/version")[1])["version"]
        add_trial(folder)
        wait_for(port, "version", before, negate=True)
        assert "A@100-900" in get(port)[1]
        whole = (folder / "trials.parquet").read_bytes()
        (folder / "trials.parquet").write_bytes(b"PAR1")
        problem = wait_for(port, "problem", None, negate=True)["problem"]
        assert "trials.parquet" in problem
        assert "A@100-900" in get(port)[1]
        (folder / "trials.parquet").write_bytes(whole)
        wait_for(port, "problem", None)
    assert not (folder / "report.html").exists()  # a server writes no report into a running study


def test_the_command_serves_until_interrupted(folder: Path) -> None:
    options: dict[str, Any] = {"cwd": REPOSITORY, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-m", "study", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(command, **options) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.endswith("/ shows live; Ctrl-C ends it\n")
            assert get(int(line.split("/")[2].split(":")[1]))[0] == 200
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()


Command = Callable[..., tuple[int, str]]


@pytest.fixture
def run_command(capsys: pytest.CaptureFixture[str]) -> Command:
    """``mariposa serve`` that ends at once; its exit code and standard error."""

    def run(*arguments: object) -> tuple[int, str]:
        try:
            code = main(["serve", *map(str, arguments)])
        except SystemExit as end:
            code = int(end.code or 0)
        return code, capsys.readouterr().err

    return run


def test_a_port_that_is_taken_is_said_in_a_line(
    run_command: Command, folder: Path, port: int
) -> None:
    code, error = run_command(folder, "--port", port)
    assert code == 2
    assert error == (
        f"mariposa: --port: found {port} (Address already in use), expected a free port\n"
    )


def test_bad_input_is_said_in_a_line(run_command: Command, folder: Path, tmp_path: Path) -> None:
    for arguments in ([tmp_path], [folder, "--port", "70000"], [folder, "--port", "x"]):
        code, error = run_command(*arguments)
        assert (code, error.count("\n")) == (2, 1)
        assert error.startswith("mariposa: ")
    with pytest.raises(InputError, match="expected a free port"):
        serve.bind(-1)


CHROMIUM = shutil.which("chromium")


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian: apt install chromium)")
def test_an_open_page_follows_and_keeps_filter_and_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    monkeypatch.setattr(serve, "REST", 0.01)
    folder = write_run(tmp_path / "run", state="RUNNING", **SMALL)
    with serving(folder) as port, sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, wrong = browser.new_page(), []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda m: m.type == "error" and wrong.append(m.text))
        page.goto(f"http://127.0.0.1:{port}/")
        section = page.locator("[data-chart=trials]")
        page.evaluate(
            "document.querySelector('#leaderboard').scrollIntoView({behavior: 'instant'})"
        )
        page.wait_for_selector("[data-chart=trials][data-drawn]")
        section.get_by_label("Cell").select_option("A@100")
        section.get_by_role("button", name="Loss", exact=True).last.click()
        page.wait_for_timeout(300)
        assert section.locator("output").inner_text() == "4 of 16 trials"
        place = page.evaluate("scrollY")
        add_trial(folder, val_loss=0.0)
        page.locator("output", has_text="5 of 17 trials").wait_for(timeout=60_000)
        first = page.locator(".tabulator-row [tabulator-field=id]").first
        assert first.inner_text() == "A@100-900"  # still sorted by loss
        assert section.get_by_label("Cell").input_value() == "A@100"
        assert page.evaluate("scrollY") == place
        assert "17 trials" in page.locator(".meta").inner_text()
        assert page.locator("#live").inner_text() == "live · running"
        browser.close()
    assert wrong == []
