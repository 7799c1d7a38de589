"""Weights & Biases and TensorBoard: one run a fit, with the same names in both.

Whatever they do, no fit fails by it. One that goes on in another process is the same run to W&B,
by an id that follows from the study and the fit. What W&B's summary says of a run at its end is
what the records say of it.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger

from data.packing import node_cache
from data.sealing import digest
from data.storage import Location
from study.choosing import best_epoch
from study.loggers import (
    FINISH_SECONDS,
    CarefulTensorBoardLogger,
    CarefulWandbLogger,
    finish_wandb,
    start_board,
    start_wandb,
)
from study.material import Material
from study.records import TEST_METRICS, Row

log = logging.getLogger(__name__)

METRICS = ("val_f1", "val_acc", "val_loss")
Job = Literal["search", "evaluation"]
State = Literal["COMPLETE", "PRUNED", "FAIL"]
_EMPTY = 7  # bytes of a .wandb file without a record


class Tracked:
    """A fit as it is tracked; what it is told here is in W&B's summary at the end.

    Args:
        metric: decides which epoch is the best.
        board: of TensorBoard.
        wandb: of W&B.
    """

    def __init__(
        self,
        metric: str,
        board: CarefulTensorBoardLogger | None,
        wandb: CarefulWandbLogger | None,
    ):
        self.metric, self.board, self.wandb = metric, board, wandb
        self._rows: list[Row] = []
        self._scores: Mapping[str, float] = {}

    @property
    def runs(self) -> list[CarefulTensorBoardLogger | CarefulWandbLogger]:
        return [one for one in (self.board, self.wandb) if one is not None]

    @property
    def loggers(self) -> list[Logger] | Literal[False]:
        """For Lightning; False where there is none to be had."""
        return [*self.runs] or False

    def epoch(self, row: Row) -> None:
        """An epoch has ended, or is on record in the checkpoint that the fit goes on from."""
        self._rows.append(row)

    def tested(self, scores: Mapping[str, float]) -> None:
        """The final evaluation, and it alone, has tested the best epoch's weights."""
        self._scores = dict(scores)
        if self.board is not None:
            self.board.log_metrics(scores, 0)

    def summary(self, state: State) -> Row:
        """As in the records: scores are of the best epoch."""
        values: Row = {"state": state, "epochs": len(self._rows), **self._scores}
        best = best_epoch(self._rows, self.metric)
        if best is not None:
            values |= {name: best[name] for name in ("train_loss", *METRICS)}
            values |= {"best_epoch": best["epoch"]}
            values |= {"seconds": sum(row["seconds"] for row in self._rows)}
        return values


@contextlib.contextmanager
def tracker(
    material: Material, name: str, fit_name: str, job: Job, facts: Mapping[str, object]
) -> Iterator[Tracked]:
    """Track one fit for as long as the block lasts, and say how it ended.

    W&B ``offline`` needs neither key nor network, and ``online`` becomes it where there is no
    server. Both write below the run's folder (``wandb/``, ``tensorboard/CELL/NAME/``), or below
    the node's cache where the run is on an object store, and are copied to it at the end.

    Args:
        material: the study; the section ``tracking`` says which, the run's name is the group.
        name: as people see it, such as ``B1@25-003``.
        fit_name: its checkpoint's: under the same one, the fit goes on.
        job: what the fit is part of.
        facts: its hyperparameters.
    """
    config, run = material.config, material.run
    folder = run.local if run.is_local else node_cache() / "tracking" / run.name
    board = None
    if config.tracking.tensorboard:
        metrics = METRICS + (TEST_METRICS if job == "evaluation" else ())
        board = start_board(folder, name, facts, metrics)
    told = _told(material, name, fit_name, job, facts)
    wandb = start_wandb(config.tracking.wandb, folder, told)
    tracked = Tracked(config.search.metric, board, wandb)
    state: State = "FAIL"
    try:
        yield tracked
        state = "COMPLETE"
    except SystemExit as end:  # code 0: how Ray Tune ends one that is stopped, in its report
        state = "FAIL" if end.code else "PRUNED"
        raise
    finally:
        if wandb is not None:
            finish_wandb(wandb, tracked.summary(state), failed=state == "FAIL")
        if board is not None:
            with contextlib.suppress(Exception):
                board.experiment.close()
        if not run.is_local:
            _keep(folder, run, tracked.runs)


def _told(
    material: Material, name: str, fit_name: str, job: Job, facts: Mapping[str, object]
) -> dict[str, Any]:
    """What W&B is told of a run; its id holds no character that W&B refuses."""
    tracking, study = material.config.tracking, material.run.name
    key = digest(f"{material.study_id} {study} {fit_name}".encode())[:12]
    return {
        "project": tracking.project,
        "entity": tracking.entity,
        "group": study,
        "job_type": job,
        "name": name,
        "id": f"{name.replace('@', '-')}-{key}",
        "resume": "allow",
        "config": dict(facts),
    }


def _keep(
    folder: Path, run: Location, loggers: list[CarefulTensorBoardLogger | CarefulWandbLogger]
) -> None:
    """Copy what loggers wrote on this node to the run's object store."""
    for logger in loggers:
        try:
            if isinstance(logger, CarefulTensorBoardLogger):
                written = Path(logger.log_dir)
            else:
                written = Path(logger.experiment.settings.sync_dir)
                _await_whole(written)
            for file in [file for file in written.rglob("*") if file.is_file()]:
                place = run
                for part in file.relative_to(folder).parts:
                    place = place / part
                place.upload(file)
            shutil.rmtree(written)
        except Exception as error:
            log.warning("%s stays on this node: %s", type(logger).__name__, error)


def _await_whole(folder: Path) -> None:
    """W&B says that a run is finished a moment before its file is written."""
    deadline, before = time.monotonic() + FINISH_SECONDS, -1
    while time.monotonic() < deadline:
        size = sum(file.stat().st_size for file in folder.glob("*.wandb"))
        if size == before and size > _EMPTY:
            return
        before = size
        time.sleep(0.2)
