"""Lightning's loggers of W&B and TensorBoard: opened quietly, their errors said and forgiven."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from study.wandb_files import own_temporary_files
from study.wandb_server import NOT_SENT, give_up, unreachable

log = logging.getLogger(__name__)

INIT_SECONDS = 10.0  # for a run's beginning, after the server has answered once
FINISH_SECONDS = 5.0  # for what is not sent when a run ends
STEP = "trainer/global_step"  # as Lightning calls it

# A fit has one process. Lightning's loggers would take the rank that Slurm or torchrun gave to who
# started Ray there for its own, and write nothing on any machine but the first.
rank_zero_only.rank = 0  # type: ignore[attr-defined]


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


def start_wandb(
    mode: Literal["online", "offline", "disabled"], folder: Path, told: Mapping[str, Any]
) -> CarefulWandbLogger | None:
    """A run that is open; offline where the server is not to be had.

    Args:
        mode: as in the configuration.
        folder: where ``wandb/`` is made.
        told: what `wandb.init` is told of the run.
    """
    if mode == "disabled":
        return None
    try:
        if mode == "online" and unreachable() is None:
            try:
                return _open(folder, told, "online")
            except Exception as error:
                give_up(error)
        return _open(folder, told, "offline")
    except Exception as error:
        log.warning("W&B is off for %s: %s", told["name"], error)
        return None


def _open(folder: Path, told: Mapping[str, Any], mode: str) -> CarefulWandbLogger:
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
            x_save_requirements=False,  # of all that is installed: 0.25 s of a run's 0.3
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
            reinit="create_new",  # even if this process could not finish the last one
        )
        run = wandb.init(dir=folder, settings=quiet, **told)
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        return CarefulWandbLogger(save_dir=folder, experiment=run)


def finish_wandb(logger: CarefulWandbLogger, summary: Mapping[str, Any], failed: bool) -> None:
    """Close the run; where the server does not take it, this is the last one it is offered.

    The summary comes last, as W&B makes one of its own from the last values that are logged.
    """
    try:
        logger.experiment.summary.update(dict(summary))
    except Exception as error:
        log.warning("W&B took no summary: %s", error)
    try:
        logger.experiment.finish(exit_code=int(failed))
    except TimeoutError as error:
        give_up(error)
        with contextlib.suppress(Exception):
            Path(logger.experiment.settings.sync_dir, NOT_SENT).touch()
    except Exception as error:
        log.warning("W&B did not close its run: %s", error)


def start_board(
    folder: Path, name: str, facts: Mapping[str, object], metrics: tuple[str, ...]
) -> CarefulTensorBoardLogger | None:
    """Event files in ``tensorboard/CELL/NAME/``; ``metrics`` stand beside the hyperparameters."""
    cell = name.rsplit("-", 1)[0]
    try:
        logger = CarefulTensorBoardLogger(
            folder / "tensorboard", name=cell, version=name, default_hp_metric=False
        )
        logger.log_hyperparams(dict(facts))
        logger.save()
        _declare(logger, facts, metrics)
        return logger
    except Exception as error:
        log.warning("TensorBoard is off for %s: %s", name, error)
        return None


def _declare(
    logger: TensorBoardLogger, facts: Mapping[str, object], metrics: tuple[str, ...]
) -> None:
    """Fill TensorBoard's table of hyperparameters; Lightning would log a metric of -1 for it."""
    try:
        from torch.utils.tensorboard.summary import hparams
    except ImportError:  # with tensorboardX alone, which comes with Ray Tune
        from tensorboardX.summary import hparams  # type: ignore[import-untyped,no-redef]
    for summary in hparams(dict(facts), dict.fromkeys(metrics, 0.0)):
        logger.experiment._get_file_writer().add_summary(summary)
