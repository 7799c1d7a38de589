"""One Lightning fit as every part of a study does it: device, early stopping, best epoch.

The order at the end of an epoch matters:

1. validation, and early stopping on the monitored metric;
2. the epoch's row is reported (which may end the trial);
3. then a checkpoint, if one is due. It holds the rows of all its epochs, and a fit that goes on
   from it reports them again: whoever lost the last ones gets them back.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping

from data.sealing import seal_end, unseal_end
from data.storage import Location
from models.memory import keep_freed_memory
from models.training import trainer_options
from study.choosing import is_better
from study.config import Config
from study.material import checkpoint_file
from study.records import Row

# At least between two checkpoints.
CHECKPOINT_SECONDS = float(os.environ.get("MARIPOSA_CHECKPOINT_SECONDS", 15.0))
CHECKPOINT_COST = 0.02  # at most this share of the time goes into them
log = logging.getLogger(__name__)


def use_device(config: Config) -> torch.device:
    """The device that Ray gave this process; sets the threads of PyTorch's operators.

    A trial has as many threads as CPUs, one by default: trials side by side with a thread each
    do more than one after another with all threads, as small layers do not fill two cores.
    """
    torch.set_num_threads(config.resources.cpus_per_trial)
    torch.set_flush_denormal(True)  # Adam's moments of unused weights shrink to them
    torch.backends.cudnn.deterministic = True  # the same seed gives the same weights
    keep_freed_memory()
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Checkpoint:
    """A fit's checkpoint on the study's storage, sealed.

    Args:
        run: the run's folder.
        name: of the fit; nothing that the fit depends on may change under the same name.
    """

    def __init__(self, run: Location, name: str):
        self.file = checkpoint_file(run, name)

    def save(self, trainer: L.Trainer) -> None:
        """Write it; a fit can do without, so storage that refuses is no error."""
        try:
            with tempfile.TemporaryDirectory() as folder:
                local = Path(folder) / "fit.ckpt"
                trainer.save_checkpoint(local)
                content = local.read_bytes()
            Location(self.file).write_bytes(seal_end(content))  # impatient
        except OSError as error:
            log.warning("%s: cannot be written (%s), going on without", self.file, error)

    def delete(self) -> None:
        self.file.delete()

    def fetch(self, folder: Path) -> Path | None:
        """A local copy for Lightning; None where there is none, or a damaged one."""
        try:
            content = unseal_end(self.file.read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        local = folder / "fit.ckpt"
        local.write_bytes(content)
        return local


class EpochEnd(L.Callback):
    """Makes a row of every epoch, keeps the best, reports it, and saves checkpoints.

    Args:
        monitor: the metric that decides which epoch is best.
        metrics: the logged metrics that go into the row.
        report: called with the row of each epoch; may raise to end the fit.
        keep: whether to keep the weights of the best epoch, in ``best_state``.
        checkpoint: where to save; None: nowhere.
    """

    def __init__(
        self,
        monitor: str,
        metrics: tuple[str, ...],
        report: Callable[[Row], object],
        keep: bool = False,
        checkpoint: Checkpoint | None = None,
    ):
        self.monitor, self.metrics, self.report = monitor, metrics, report
        self.keep, self.checkpoint = keep, checkpoint
        self.rows: list[Row] = []
        self.best: Row | None = None
        self.best_state: dict[str, torch.Tensor] | None = None
        self._epoch_started = self._saved = time.monotonic()
        self._save_cost = 0.0

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        logged = trainer.callback_metrics
        row: Row = {"epoch": trainer.current_epoch + 1}
        row |= {name: float(logged[name]) for name in self.metrics}
        row |= {"seconds": time.monotonic() - self._epoch_started, "ended": time.time()}
        self.rows.append(row)
        if is_better(row, self.best, self.monitor):
            self.best = row
            if self.keep:
                network: Any = pl_module.network
                self.best_state = {k: v.detach().clone() for k, v in network.state_dict().items()}
        self.report(row)
        self._save_if_due(trainer)
        self._epoch_started = time.monotonic()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Not at the start of training, which Lightning leaves out where no epoch is left.
        for row in self.rows:  # of the checkpoint that the fit goes on from
            self.report(row)
        self._epoch_started = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        state = {"rows": self.rows, "rng": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda_rng"] = torch.cuda.get_rng_state()
        return state | ({"best": self.best_state} if self.keep else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])
        for row in self.rows:
            if is_better(row, self.best, self.monitor):
                self.best = row
        self.best_state = state_dict.get("best")
        torch.set_rng_state(state_dict["rng"])
        if "cuda_rng" in state_dict and torch.cuda.is_available():
            torch.cuda.set_rng_state(state_dict["cuda_rng"])

    def restore_best(self, network: torch.nn.Module) -> Row:
        """Give the network the weights of the best epoch, kept by ``keep``; that epoch's row."""
        assert self.best is not None
        assert self.best_state is not None
        network.load_state_dict(self.best_state)
        return self.best

    def _save_if_due(self, trainer: L.Trainer) -> None:
        wait = max(CHECKPOINT_SECONDS, self._save_cost / CHECKPOINT_COST)
        started = time.monotonic()
        if self.checkpoint is None or started - self._saved < wait or trainer.should_stop:
            return
        self.checkpoint.save(trainer)
        self._saved = time.monotonic()
        self._save_cost = self._saved - started


def fit(
    module: L.LightningModule,
    data: L.LightningDataModule,
    ends: EpochEnd,
    *,
    max_epochs: int,
    patience: int,
    device: torch.device,
    logger: Any = False,
) -> L.Trainer:
    """Train until ``max_epochs``, or ``patience`` epochs without a better metric."""
    mode = "min" if ends.monitor.endswith("loss") else "max"
    # At a training epoch's end Lightning calls EarlyStopping after all others, and a checkpoint
    # saved by then would have forgotten the epoch; so it checks at the end of validation.
    stop = EarlyStopping(
        ends.monitor,
        patience=patience,
        mode=mode,
        check_finite=False,
        check_on_train_epoch_end=False,
    )
    trainer = make_trainer(device, max_epochs=max_epochs, logger=logger, callbacks=[stop, ends])
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = ends.checkpoint.fetch(Path(folder)) if ends.checkpoint else None
        trainer.fit(module, datamodule=data, ckpt_path=found, weights_only=True)
    return trainer


def make_trainer(device: torch.device, **options: Any) -> L.Trainer:
    """A silent trainer on that device; bf16 autocast on a GPU only."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    on_gpu = device.type == "cuda"
    bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    return L.Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        precision="bf16-mixed" if bf16 else "32-true",
        log_every_n_steps=1_000_000,
        use_distributed_sampler=False,
        **trainer_options() | options,
    )
