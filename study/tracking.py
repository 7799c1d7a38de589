"""Weights & Biases: one group a study, one run a trial. Whatever it does, no trial fails by it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from lightning.pytorch.loggers import WandbLogger

from data.packing import node_cache
from data.storage import Location
from study.config import Config

log = logging.getLogger(__name__)


class CarefulWandbLogger(WandbLogger):
    """Lightning's own logger, except that an error of W&B is said and forgotten."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        try:
            super().log_metrics(metrics, step)
        except Exception as error:
            log.warning("W&B took no metrics: %s", error)


@contextlib.contextmanager
def tracker(
    config: Config, run: Location, name: str, facts: Mapping[str, object]
) -> Iterator[WandbLogger | Literal[False]]:
    """A logger for one trial; False where there is none to be had.

    ``offline`` needs neither key nor network. It writes below the run's ``wandb/``, or below the
    node's cache where the run is on an object store; ``wandb sync`` sends it later.

    Args:
        config: the study; ``tracking.wandb`` says which mode.
        run: the run's folder; its name is the group.
        name: of the W&B run.
        facts: what W&B shows as the run's configuration.
    """
    logger = _start(config, run, name, facts) if config.tracking.wandb != "disabled" else False
    try:
        yield logger
    finally:
        if logger:
            with contextlib.suppress(Exception):
                logger.experiment.finish()


def _start(
    config: Config, run: Location, name: str, facts: Mapping[str, object]
) -> CarefulWandbLogger | Literal[False]:
    try:
        import wandb

        folder = run.local if run.is_local else Path(node_cache()) / "wandb-runs" / run.name
        folder.mkdir(parents=True, exist_ok=True)
        quiet = wandb.Settings(
            mode=config.tracking.wandb,
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            init_timeout=20,
            reinit="finish_previous",
        )
        logger = CarefulWandbLogger(
            project="mariposa",
            group=run.name,
            name=name,
            save_dir=folder,
            settings=quiet,
            config=dict(facts),
        )
        assert logger.experiment  # opens the run here, where its errors are caught
        return logger
    except Exception as error:
        log.warning("W&B is off for %s: %s", name, error)
        return False
