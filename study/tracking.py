"""Weights & Biases and TensorBoard: one run a trial, with the same names in both.

Whatever they do, no trial fails by it.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from data.packing import node_cache
from data.storage import Location
from study.config import Config
from study.wandb_files import own_temporary_files
from study.wandb_server import NOT_SENT, give_up, unreachable

log = logging.getLogger(__name__)

INIT_SECONDS = 10.0  # for a run's beginning, after the server has answered once
FINISH_SECONDS = 5.0  # for what is not sent when a trial ends
METRICS = ("val_f1", "val_acc", "val_loss")  # columns beside the hyperparameters
_EMPTY = 7  # bytes of a .wandb file without a record


class _Careful:
    """Its errors are said and forgotten."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        try:
            super().log_metrics(metrics, step)  # type: ignore[misc]
        except Exception as error:
            log.warning("%s took no metrics: %s", type(self).__name__, error)

    def save(self) -> None:
        with contextlib.suppress(Exception):
            super().save()  # type: ignore[misc]

    def finalize(self, status: str) -> None:
        with contextlib.suppress(Exception):
            super().finalize(status)  # type: ignore[misc]


class CarefulWandbLogger(_Careful, WandbLogger):
    """Lightning's own, with forgiven errors."""


class CarefulTensorBoardLogger(_Careful, TensorBoardLogger):
    """Lightning's own, with forgiven errors."""


@contextlib.contextmanager
def tracker(
    config: Config, run: Location, name: str, facts: Mapping[str, object]
) -> Iterator[list[Logger] | Literal[False]]:
    """Loggers for one trial; False where there is none to be had.

    W&B ``offline`` needs neither key nor network, and ``online`` becomes it where there is no
    server. Both write below the run's folder (``wandb/``, ``tensorboard/CELL/NAME/``), or below
    the node's cache where the run is on an object store, and are copied to it at the end.

    Args:
        config: the study; its section ``tracking`` says which.
        run: the run's folder; its name is the group.
        name: of the trial, such as ``B1@25-003``.
        facts: its hyperparameters.
    """
    folder = run.local if run.is_local else node_cache() / "tracking" / run.name
    board = _start_board(folder, name, facts) if config.tracking.tensorboard else None
    wandb_logger = _start_wandb(config, folder, name, facts)
    try:
        yield [one for one in (board, wandb_logger) if one is not None] or False
    finally:
        if wandb_logger is not None:
            _finish(wandb_logger)
        if board is not None:
            with contextlib.suppress(Exception):
                board.experiment.close()
        if not run.is_local:
            _keep(folder, run, [one for one in (board, wandb_logger) if one is not None])


def _start_wandb(
    config: Config, folder: Path, name: str, facts: Mapping[str, object]
) -> CarefulWandbLogger | None:
    """A run that is open; offline where the server is not to be had."""
    mode = config.tracking.wandb
    if mode == "disabled":
        return None
    try:
        if mode == "online" and unreachable() is None:
            try:
                return _open(folder, name, facts, "online")
            except Exception as error:
                give_up(error)
        return _open(folder, name, facts, "offline")
    except Exception as error:
        log.warning("W&B is off for %s: %s", name, error)
        return None


def _open(folder: Path, name: str, facts: Mapping[str, object], mode: str) -> CarefulWandbLogger:
    with own_temporary_files():
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        quiet = wandb.Settings(
            mode=mode,
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
            reinit="finish_previous",
        )
        logger = CarefulWandbLogger(
            project="mariposa",
            group=folder.name,
            name=name,
            save_dir=folder,
            settings=quiet,
            config=dict(facts),
        )
        assert logger.experiment  # opens the run here, where its errors are caught
        return logger


def _finish(logger: CarefulWandbLogger) -> None:
    """Close the run; where the server does not take it, this is the last one it is offered."""
    try:
        logger.experiment.finish()
    except TimeoutError as error:
        give_up(error)
        with contextlib.suppress(Exception):
            Path(logger.experiment.settings.sync_dir, NOT_SENT).touch()
    except Exception as error:
        log.warning("W&B did not close its run: %s", error)


def _start_board(
    folder: Path, name: str, facts: Mapping[str, object]
) -> CarefulTensorBoardLogger | None:
    cell = name.rsplit("-", 1)[0]
    try:
        logger = CarefulTensorBoardLogger(
            folder / "tensorboard", name=cell, version=name, default_hp_metric=False
        )
        logger.log_hyperparams(dict(facts))
        logger.save()
        _declare(logger, facts)
        return logger
    except Exception as error:
        log.warning("TensorBoard is off for %s: %s", name, error)
        return None


def _declare(logger: TensorBoardLogger, facts: Mapping[str, object]) -> None:
    """Fill TensorBoard's table of hyperparameters; Lightning would log a metric of -1 for it."""
    try:
        from torch.utils.tensorboard.summary import hparams
    except ImportError:  # with tensorboardX alone, which comes with Ray Tune
        from tensorboardX.summary import hparams  # type: ignore[import-untyped,no-redef]
    for summary in hparams(dict(facts), dict.fromkeys(METRICS, 0.0)):
        logger.experiment._get_file_writer().add_summary(summary)


def _keep(
    folder: Path, run: Location, loggers: list[CarefulTensorBoardLogger | CarefulWandbLogger]
) -> None:
    """Copy what loggers wrote on this node to the run's object store."""
    for logger in loggers:
        try:
            if isinstance(logger, TensorBoardLogger):
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
