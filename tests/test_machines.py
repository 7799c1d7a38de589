"""A study on three machines that die: what it leaves is what an undisturbed one leaves.

One study on a real Ray cluster, submitted as a job. While it runs, processes and machines are
killed, and one is cut off the network; then the head dies, and the study is submitted again to a
new one. `witness` says what was really trained, beside the records.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import optuna
import pandas as pd
import pytest
import witness
import yaml
from machines import Cluster, Machine, cluster, namespaces_can_be_made

from data.demo import write_demo
from study.stopping import Rungs

CELLS = ("A@50", "A@100", "B2@50", "B2@100")
TRIALS, GRACE, FACTOR, EPOCHS = 4, 2, 3, 12  # rungs at 2 and 6
STUDY = f"""
name: survivor
data: {{image_size: 32}}
cells: {{variants: [A, B2], label_ratios: [50, 100]}}
encoder: {{width: 8, epochs: 8, patience: 8, per_repeat: false, normalise: true}}
training: {{batch_size: 32, max_epochs: {EPOCHS}, patience: {EPOCHS}, min_steps_per_epoch: 10}}
search: {{trials: {TRIALS}, lr: [1.0e-4, 1.0e-2], grace_period: {GRACE}}}
evaluation: {{repeats: 1}}
tracking: {{wandb: disabled}}
"""
CHECKPOINT_SECONDS = "0.5"
PAUSE_SECONDS = "3"  # an epoch, until all deaths are over: the search must not end before
WORTH_KILLING = set(range(3, EPOCHS)) - {6}  # last epochs of trials that go on, whatever they are
PATIENCE = 200.0  # seconds for something to come about
pytestmark = pytest.mark.timeout(900)
Something = TypeVar("Something")


@dataclass
class Survivor:
    """A study that has been through it all.

    Attributes:
        machines: it runs on them.
        log: of its jobs.
        killed: which trial lost its process, by what happened; each had a checkpoint.
        notes: what was witnessed, on every machine and all their boots.
    """

    machines: Cluster
    log: Path
    killed: dict[str, str] = field(default_factory=dict)
    notes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.machines.shared / "survivor"

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.run / f"{name}.parquet")

    @property
    def pause(self) -> Path:
        return self.machines.shared / "pause"

    def given_up(self, machine: Machine) -> bool:
        """Whether Ray has said that it counts the machine as dead."""
        lines = self.log.read_text().splitlines()
        return any(f"address: {machine.address} " in li and "marked dead" in li for li in lines)

    def submit(self, *more: str) -> subprocess.Popen[str]:
        shutil.copy(self.log.with_name("study.yaml"), self.machines.head.temporary)
        out = str(self.machines.shared)
        return self.machines.submit("run", "study.yaml", "--out", out, *more, log=self.log)

    def trial_to_lose(self, *machines: Machine) -> tuple[Machine, str]:
        """A trial in the midst of it on one of the machines, that has a checkpoint."""

        def look() -> tuple[Machine, str] | None:
            for machine in machines:
                fits = machine.witnessed("fit")
                epochs = [n for n in machine.witnessed("epoch") if n["fit"] == fits[-1]["fit"]]
                if not epochs or epochs[-1]["epoch"] not in WORTH_KILLING:
                    continue
                if list((self.run / "checkpoints").glob(f"{fits[-1]['name']}-lr*.ckpt")):
                    return machine, fits[-1]["name"]
            return None

        return wait_for(look, "trial with a checkpoint")

    @contextmanager
    def going_on(self, how: str, trial: str) -> Iterator[None]:
        """Something takes the trial's process away; returns when it has been taken up again."""
        self.killed[how] = trial
        before = self._fits(trial)
        yield
        wait_for(lambda: self._fits(trial) - before, f"{trial} taken up again ({how})")

    def _fits(self, trial: str) -> set[str]:
        notes = [note for machine in self.machines for note in machine.witnessed("fit")]
        return {note["fit"] for note in notes if note["name"] == trial}


def wait_for(look: Callable[[], Something | None], what: str) -> Something:
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        found = look()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"no {what} after {PATIENCE:.0f} s")


def kill_process(title: str, *machines: Machine) -> None:
    """SIGKILL for the first process of that title; its machine lives on."""

    def look() -> int | None:
        return next((pid for machine in machines for pid in machine.find(title)), None)

    os.kill(wait_for(look, title), signal.SIGKILL)


@pytest.fixture(scope="module")
def survivor(tmp_path_factory: pytest.TempPathFactory) -> Survivor:
    if not namespaces_can_be_made():
        warnings.warn("no namespaces here: the machines are processes on this host", stacklevel=1)
    folder = tmp_path_factory.mktemp("machines")
    write_demo(
        folder / "images", train_per_species=6, valid_per_species=2, test_per_species=2, size=48
    )
    (folder / "study.yaml").write_text(STUDY)
    pace = {"MARIPOSA_CHECKPOINT_SECONDS": CHECKPOINT_SECONDS}
    pace |= {"WITNESS_PAUSE": str(folder / "out" / "pause")}
    with cluster(folder / "disks", folder / "out", **pace) as machines:
        story = Survivor(machines, folder / "job.log")
        story.pause.write_text(PAUSE_SECONDS)
        try:
            live_through(story, folder / "images")
        except BaseException:
            print(story.log.read_text()[-6000:])
            raise
    for disk in sorted(folder.glob("disks/*/")):
        story.notes += [note | {"disk": disk.name} for note in witness.read(disk)]
    return story


def live_through(story: Survivor, images: Path) -> None:
    """What happens to the study, in order."""
    machines = story.machines
    head, (first, second) = machines.head, machines.workers
    # On the head's own disk, where no worker can read them.
    shutil.copytree(images, head.temporary / "images")
    arguments = ("--data", f"{head.own_temporary}/images")
    story.submit(*arguments)
    kill_process("ray::pretrain", *machines)

    place, trial = story.trial_to_lose(first, second)
    with story.going_on("process", trial):
        kill_process("ray::ImplicitFunc", place)

    _, trial = story.trial_to_lose(second)
    with story.going_on("machine", trial):
        second.kill()
        machines.up(second.name)

    _, trial = story.trial_to_lose(first)
    with story.going_on("network", trial):
        first.cut_off()
        wait_for(lambda: story.given_up(first), f"{first.name} given up")
        first.let_back()
        machines.rejoin(first.name)

    _, story.killed["head"] = story.trial_to_lose(*machines)
    head.kill()
    story.pause.write_text("0")
    machines.up(head.name)  # a new one: it has no images, but they were packed under --out
    job = story.submit(*arguments)  # while the workers still belong to the old head
    machines.up(first.name, second.name)
    kill_process("ray::evaluate", *machines)
    assert job.wait(timeout=300) == 0


def test_the_job_succeeds_and_the_study_is_complete(survivor: Survivor) -> None:
    assert "succeeded" in survivor.log.read_text().splitlines()[-2]
    study = yaml.safe_load((survivor.run / "study.yaml").read_text())
    assert (study["state"], study["failures"]) == ("COMPLETE", [])


def test_every_cell_has_its_trials_and_each_its_last_epoch(survivor: Survivor) -> None:
    trials = survivor.table("trials")
    expected = {f"{cell}-{number:03d}" for cell in CELLS for number in range(TRIALS)}
    assert sorted(trials["trial_id"]) == sorted(expected)
    assert set(trials["state"]) <= {"COMPLETE", "PRUNED"}
    assert set(trials[trials["state"] == "COMPLETE"]["epochs"]) == {EPOCHS}
    assert set(trials[trials["state"] == "PRUNED"]["epochs"]) <= {GRACE, GRACE * FACTOR}


def test_every_epoch_is_there_once(survivor: Survivor) -> None:
    epochs = survivor.table("epochs").groupby("trial_id")["epoch"].apply(list)
    for row in survivor.table("trials").itertuples():
        assert sorted(epochs[row.trial_id]) == list(range(1, row.epochs + 1))


def test_asha_decided_what_the_recorded_values_imply(survivor: Survivor) -> None:
    """Once more through the rungs, in the order in which the values were recorded."""
    rungs = {cell: Rungs(GRACE, EPOCHS, FACTOR) for cell in CELLS}
    stopped = set()
    for row in survivor.table("epochs").itertuples():
        if not rungs[row.cell].goes_on(row.trial_id, row.epoch, row.val_f1):
            stopped.add((row.trial_id, row.epoch))
    pruned = survivor.table("trials").query("state == 'PRUNED'")
    assert stopped == set(zip(pruned["trial_id"], pruned["epochs"], strict=True))


def test_no_trial_starts_from_scratch_where_it_has_a_checkpoint(survivor: Survivor) -> None:
    first_epochs: dict[str, dict[str, Any]] = {}
    for note in survivor.notes:
        if note["what"] == "epoch":
            first_epochs.setdefault(note["fit"], note)
    fits = [note for note in survivor.notes if note["what"] == "fit" and note["checkpoint"]]
    begun = [first_epochs[fit["fit"]] for fit in fits if fit["fit"] in first_epochs]
    assert [note for note in begun if note["new"]] == []
    assert {note["name"] for note in begun} >= set(survivor.killed.values())


def test_trials_land_on_all_machines(survivor: Survivor) -> None:
    addresses = {machine.address for machine in survivor.machines}
    assert set(survivor.table("trials")["node"]) == addresses


def test_each_machine_fetches_the_images_once(survivor: Survivor) -> None:
    """The head too: it decodes them under --out and maps a copy of its own."""
    disks = sorted(survivor.machines.folder.glob("*-*/"))
    fetched = {disk.name: len(list(disk.glob("cache/*.npy"))) for disk in disks}
    notes = Counter(n["disk"] for n in survivor.notes if n["what"] == "fetch")
    assert len(fetched) >= 6
    assert notes == {name: count for name, count in fetched.items() if count}
    assert set(notes.values()) == {1}


def test_an_encoder_is_made_once_and_used_everywhere(survivor: Survivor) -> None:
    made = [note for note in survivor.notes if note["what"] == "pretrained"]
    begun = [note for note in survivor.notes if note["what"] == "pretraining"]
    (encoder,) = survivor.table("encoders_made")["encoder"]
    assert [note["encoder"] for note in made] == [encoder]
    assert len(begun) >= 2  # its first process was killed
    users = {n["machine"] for n in survivor.notes if n["what"] == "fit" and "B2" in n["name"]}
    assert users - {made[0]["machine"]}


def test_optuna_has_every_trial_and_nothing_running(survivor: Survivor) -> None:
    storage = f"sqlite:///{survivor.run / 'optuna.db'}"
    trials = survivor.table("trials").sort_values("trial_id").groupby("cell")
    for cell in CELLS:
        study = optuna.load_study(study_name=cell, storage=storage)
        ours = trials.get_group(cell)
        assert [t.state.name for t in study.trials] == list(ours["state"])
        assert [t.params["lr"] for t in study.trials] == list(ours["lr"])


def test_table_i_is_complete_and_nothing_is_left_over(survivor: Survivor) -> None:
    table = pd.read_csv(survivor.run / "table_i.csv")
    assert {f"{row.variant}@{row.label_ratio}" for row in table.itertuples()} == set(CELLS)
    assert not table.drop(columns=["reason", "recipe", "settings"]).isna().any().any()
    assert len(survivor.table("evaluations")) == len(CELLS)
    left = [p for name in ("checkpoints", "journal") for p in (survivor.run / name).glob("*")]
    left += [p for p in survivor.run.rglob(".part-*")]
    left += list(survivor.run.glob("models/*-repeat*"))
    assert left == []
