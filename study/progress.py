"""What the terminal shows while a study runs: one screen that stays, or plain lines in a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from analysis.wording import besides
from study.cells import Cell
from study.choosing import score, winner
from study.config import Config
from study.records import Ledger, Row

if TYPE_CHECKING:
    from types import TracebackType

LINE_SECONDS = 10.0  # between two plain lines
SCREEN_SECONDS = 0.5  # between two screens
LEAST_SHARE = 0.05  # of what a part does, until the time that the rest takes is told


@dataclass(frozen=True)
class Count:
    """How far a part of the study is: ``things`` (a plural) done, of a total."""

    things: str
    done: Callable[[], int]
    total: int


class Progress:
    """Shows a study's state, at most as often as a person can read.

    Args:
        config: the study.
        ledger: its rows.
        cells: its cells.
    """

    def __init__(self, config: Config, ledger: Ledger, cells: Iterable[Cell]):
        self.config, self.ledger, self.cells = config, ledger, tuple(cells)
        self.phase = "starting"
        self.count: Count | None = None
        self.aside: Callable[[], str] = lambda: ""  # what goes on beside the part
        self.console = Console(file=sys.stdout, highlight=False)
        self.on_screen = self.console.is_terminal
        self._live = Live(console=self.console, auto_refresh=False, transient=True)
        self._started = time.monotonic()
        self._shown = 0.0
        self._entered, self._epochs_before = self._started, self._epochs()
        self._done_before, self._begun = 0, (0.0, 0)

    def __enter__(self) -> Progress:
        if self.on_screen:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.on_screen:
            self._live.stop()

    def say(self, line: str) -> None:
        """A line that stays."""
        if self.on_screen:
            self.console.print(Text(line))
        else:
            print(line, flush=True)

    def say_all(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.say(line)

    def enter(self, phase: str, count: Count | None = None) -> None:
        """Another part of the study begins; with a ``count``, the line says what is left."""
        self.phase, self.count = phase, count
        self._entered, self._epochs_before = time.monotonic(), self._epochs()
        self._done_before = count.done() if count else 0
        self._begun = self._entered, self._done_before
        self.show(now=True)

    def show(self, now: bool = False) -> None:
        """Show the state, if the last time is long enough ago."""
        wait = SCREEN_SECONDS if self.on_screen else LINE_SECONDS
        if not now and time.monotonic() - self._shown < wait:
            return
        self._shown = time.monotonic()
        if self.on_screen:
            self._live.update(self._screen(), refresh=True)
        else:
            print(self._line(), flush=True)

    def _line(self) -> str:
        parts = [f"[{clock(time.monotonic() - self._started)}] {self.phase}"]
        if self.count:
            parts.append(f"{self.count.things} {self.count.done()}/{self.count.total}")
        parts += [self._rate(), self._left(), self.aside()]
        return " · ".join(part for part in parts if part)

    def _screen(self) -> Group:
        metric = self.config.search.metric
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("cell", "done", "running", "pruned", "failed", f"best {metric}", "lr"):
            table.add_column(name, justify="left" if name == "cell" else "right")
        by_cell: dict[str, list[Row]] = {cell.name: [] for cell in self.cells}
        for row in self.ledger.rows("trials"):
            by_cell[row["cell"]].append(row)
        for cell, rows in by_cell.items():
            table.add_row(cell, *self._cell_columns(rows))
        return Group(Text(self._line(), style="bold"), table)

    def _cell_columns(self, rows: list[Row]) -> list[str]:
        states = [row["state"] for row in rows]
        best = winner(rows, self.config.search.metric)
        value = abs(score(best, self.config.search.metric)) if best else None
        return [
            f"{len(rows) - states.count('RUNNING')}/{self.config.search.trials}",
            str(states.count("RUNNING") or ""),
            str(states.count("PRUNED") or ""),
            str(states.count("FAIL") or ""),
            "" if value is None else f"{value:.3f}",
            f"{best['lr']:.1e} {besides(best)}".rstrip() if best else "",
        ]

    def _epochs(self) -> int:
        return len(self.ledger.tables["epochs"]) + len(self.ledger.tables["evaluation_epochs"])

    def _rate(self) -> str:
        epochs, seconds = self._epochs() - self._epochs_before, time.monotonic() - self._entered
        return f"{epochs / seconds:.1f} epochs/s" if epochs and seconds > 1 else ""

    def _left(self) -> str:
        """Time left of this part, where things go on as they have since the first of them ended:
        until then processes start and encoders are made.
        """
        if self.count is None:
            return ""
        now, done = time.monotonic(), self.count.done()
        if self._begun[1] == self._done_before:
            self._begun = now, done
        since, before = self._begun
        here, left = done - before, self.count.total - done
        if not left or here < LEAST_SHARE * (here + left):
            return ""
        return f"about {clock((now - since) / here * left)} left"


def clock(seconds: float) -> str:
    """``4:32``, or ``1:04:32`` with hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
