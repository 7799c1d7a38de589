"""The leaderboard while a study runs: redrawn on a terminal, line by line through a pipe.

The records are read again only if they have changed, and the terminal is redrawn only if what it
shows has changed: between two changes a look costs a few calls of ``stat``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pandas as pd
from rich.console import Console
from rich.live import Live
from rich.text import Text

from analysis.leaderboard import STEADY, View, first_line, table_lines
from analysis.liveness import driver_is_gone
from analysis.load import Run, load
from data.storage import Location

SECONDS = 2.0  # between two looks at a local run
_REMOTE_SECONDS = 10.0  # between two looks at an object store, each of which reads the files
_LINE = 240  # width of a line in a pipe
_ENDED = ("COMPLETE", "PRUNED", "FAIL")
_STYLES = {"RUNNING": "cyan", "PRUNED": "dim", "FAIL": "red"}


@dataclass
class Follower:
    """A run's state and trials, as they are on disk now.

    Raises:
        InputError: as `load`, on the first look.
    """

    location: Location
    run: Run = field(init=False)
    trials: pd.DataFrame = field(init=False)
    _seen: dict[str, object] = field(default_factory=dict, init=False)

    def look(self) -> bool:
        """Read what has changed, and say whether anything has."""
        study = self._changed("study.yaml")
        changed = [self._changed(f"{name}.parquet") for name in ("trials", "epochs")]
        killed = not study and self.running and driver_is_gone(self.location)
        if study or killed or any(changed):
            self.run = load(self.location)
            self.trials = self.run.trials
        return study or killed or any(changed)

    @property
    def running(self) -> bool:
        return self.run.state == "RUNNING"

    @property
    def pause(self) -> float:
        """Seconds until the next look."""
        return SECONDS if self.location.is_local else _REMOTE_SECONDS

    def _changed(self, name: str) -> bool:
        now = _version(self.location / name)
        before, self._seen[name] = self._seen.get(name, self), now
        return now != before


def _version(file: Location) -> object:
    """A value that changes when the file is replaced; None if there is no file."""
    try:
        if not file.is_local:
            return hash(file.read_bytes())
        stat = os.stat(file.path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def watch(location: Location, view: View, sleep: Callable[[float], None] = time.sleep) -> None:
    """Show the leaderboard until the study ends, and then once more for good.

    On a terminal it takes the whole screen; elsewhere each trial is printed when it ends, and the
    board that ``--sort`` and ``--top`` ask for follows at the end.

    Raises:
        InputError: as `load` and `sort_by`.
    """
    follower, console = Follower(location), Console()
    follower.look()
    view.board(follower.trials, follower.run.metric)  # an unknown column is an error at once
    if console.is_terminal and not console.is_dumb_terminal:
        _watch_terminal(follower, view, console, sleep)
        return
    for line in _ended_trials(follower, view, sleep):
        print(line, flush=True)


def _watch_terminal(
    follower: Follower, view: View, console: Console, sleep: Callable[[float], None]
) -> None:
    if follower.running:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            changed, shown = True, console.size
            while follower.running:
                size = console.size
                if changed or size != shown:
                    live.update(_screen(follower, view, size.width, size.height), refresh=True)
                    shown = size
                sleep(follower.pause)
                changed = follower.look()
    console.print(_screen(follower, view, console.width, None))


def _screen(follower: Follower, view: View, width: int, height: int | None) -> Text:
    """The header, and as many lines of the board as fit."""
    board = view.board(follower.trials, follower.run.metric)
    room = len(board) if height is None else max(height - 6, 1)
    lines = table_lines(board.head(room), follower.run.metric, width, STEADY)
    text = Text(no_wrap=True, overflow="crop")
    text.append(f"{header(follower.run, follower.trials, view)}\n\n", style="bold")
    text.append(f"{lines[0]}\n", style="bold")
    for line, state in zip(lines[1:], board["state"], strict=False):
        text.append(f"{line}\n", style=_STYLES.get(str(state), ""))
    if len(board) > room:
        text.append(f"… {len(board) - room:,} more\n", style="dim")
        text.append(_last_failure(board.iloc[room:]), style="red")
    return text


def _last_failure(hidden: pd.DataFrame) -> str:
    failed = hidden[hidden["state"] == "FAIL"]
    if failed.empty:
        return ""
    row = failed.iloc[-1]
    return f"{row['trial_id']} failed: {first_line(row['error'])}"


def header(run: Run, trials: pd.DataFrame, view: View) -> str:
    """``quick · running · 34 of 120 trials ended · 2 running · 1 failed``."""
    chosen = trials if view.cell is None else trials[trials["cell"] == view.cell]
    states = chosen["state"].value_counts()
    cells = len(run.cells) if view.cell is None else 1
    total = max(cells * int(run.config.get("search", {}).get("trials", 0)), len(chosen))
    ended = int(chosen["state"].isin(_ENDED).sum())
    parts = [run.name, *([view.cell] if view.cell else []), run.state.lower()]
    parts.append(f"{ended:,} of {total:,} trials ended")
    parts += [
        f"{int(states[state]):,} {name}"
        for state, name in (("RUNNING", "running"), ("PRUNED", "pruned"), ("FAIL", "failed"))
        if states.get(state)
    ]
    return " · ".join(parts)


def _ended_trials(follower: Follower, view: View, sleep: Callable[[float], None]) -> Iterator[str]:
    """The leaderboard's lines as trials end, each with its rank at that time; then the header."""
    printed: set[str] = set()
    while True:
        board = View(view.cell).board(follower.trials, follower.run.metric)
        new = board[board["state"].isin(_ENDED) & ~board["trial_id"].isin(printed)]
        if len(new):
            new = new.sort_values("trial_id", kind="stable")
            lines = table_lines(new, follower.run.metric, _LINE, STEADY)
            yield from lines[1:] if printed else lines
            printed |= set(new["trial_id"])
        if not follower.running:
            break
        sleep(follower.pause)
        follower.look()
    yield header(follower.run, follower.trials, view)
    if view.sort or view.top:
        board = view.board(follower.trials, follower.run.metric)
        yield from table_lines(board, follower.run.metric, _LINE, STEADY)
