"""Ray's tasks and the cluster's capacity, on a local Ray that believes in two GPUs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from conftest import REPOSITORY, tiny_tree
from ray import cloudpickle

from data.storage import InputError, Location, StorageError
from study import capacity as study_capacity
from study import cluster, pretraining, tuning
from study.capacity import Capacity
from study.cells import Cell
from study.cluster import require_seen_by_all
from study.config import config_from
from study.gpu_memory import share_for
from study.material import Material
from study.records import Ledger, Row
from study.search import StudySearch
from study.stopping import Rungs
from study.tasks import Tasks, is_out_of_memory, loses_the_gpu

GIB = 2**30
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module", autouse=True)
def _two_gpus() -> Iterator[None]:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster._QUIET.items():
            patch.setenv(name, value)
        options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False}
        options |= {"runtime_env": {"env_vars": cluster._WORKERS}}
        ray.init("local", num_cpus=4, num_gpus=2, **options)
        yield
        ray.shutdown()
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def capacity(**resources: Any) -> Capacity:
    return Capacity(config_from(tiny_tree(resources=resources), "a test"))


def test_slots_follow_from_what_a_trial_needs() -> None:
    assert capacity(gpus_per_trial=0).slots() == 4
    assert capacity(gpus_per_trial=1).slots() == 2
    assert capacity(gpus_per_trial=0.25, cpus_per_trial=2).slots() == 2
    assert capacity(gpus_per_trial=0, max_concurrent=3).slots() == 3
    assert capacity(gpus_per_trial=0.6).slots() == 2, "a share is of one GPU"
    assert capacity(gpus_per_trial=64).slots() == 1, "that waits for machines to come"


def test_auto_shares_the_gpus_that_there_are() -> None:
    assert capacity().gpus == 0.125
    assert capacity().slots() == 4, "there are only so many CPUs"


def test_what_an_autoscaler_may_add_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = study_capacity._autoscaled(REPOSITORY / "cluster.yaml")
    total = {name: sum(count * one[name] for one, count in found) for name in ("CPU", "GPU")}
    assert total == {"CPU": 32.0, "GPU": 8.0}
    monkeypatch.setattr(study_capacity, "_autoscaled", lambda: found)
    assert capacity(gpus_per_trial=0.5).slots() == 16


def test_nothing_is_added_to_a_ray_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head of a cluster has the autoscaler's file, whichever Ray a study there uses."""
    found = study_capacity._autoscaled(REPOSITORY / "cluster.yaml")
    monkeypatch.setattr(study_capacity, "_autoscaled", lambda: found)
    alone = Capacity(
        config_from(tiny_tree(resources={"gpus_per_trial": 0.5}), "a test"), alone=True
    )
    assert alone.slots() == 4
    wanted = {"cpus_per_trial": 8, "gpus_per_trial": 4}
    with pytest.raises(InputError, match="found 8 CPUs"):
        Capacity(config_from(tiny_tree(resources=wanted), "a test"), alone=True).require_room()


def test_a_trial_that_no_machine_can_take_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would wait for such a machine in silence."""
    capacity(cpus_per_trial=4, gpus_per_trial=2).require_room()
    with pytest.raises(InputError, match="found 8 CPUs for a trial, expected at most 4 CPUs"):
        capacity(cpus_per_trial=8, gpus_per_trial=0).require_room()
    with pytest.raises(InputError, match="found 1 CPUs and 3 GPUs"):
        capacity(gpus_per_trial=3).require_room()
    large = capacity(cpus_per_trial=8, gpus_per_trial=0)
    assert len(large.waits()) == 1
    assert large.waits() == [], "not at every turn"
    found = study_capacity._autoscaled(REPOSITORY / "cluster.yaml")
    monkeypatch.setattr(study_capacity, "_autoscaled", lambda: found)
    with pytest.raises(InputError, match="found 8 CPUs"):
        capacity(cpus_per_trial=8, gpus_per_trial=4).require_room()
    assert capacity(gpus_per_trial=1).waits() == []


def visible_gpus() -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_what_asks_for_no_gpu_sees_none() -> None:
    """PyTorch would take one that it sees, whatever it was given."""
    asked = {0: "", 1: "0"}
    for gpus, seen in asked.items():
        tasks = Tasks(visible_gpus, capacity(gpus_per_trial=gpus))
        tasks.add("one")
        assert results(tasks) == {"one": seen}


def test_a_limit_that_is_given_counts_as_it_is() -> None:
    assert capacity(gpus_per_trial=0, max_concurrent=64).slots() == 64


def share_of_a_gpu() -> float:
    return float(ray.get_runtime_context().get_assigned_resources().get("GPU", 0))


FULL = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
)


def needs(share: float, error: Exception = FULL[0]) -> float:
    """A task that fits into that share of a GPU."""
    mine = share_of_a_gpu()
    if mine < share:
        raise error
    return mine


def results(tasks: Tasks) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    while len(tasks):
        found |= dict(tasks.ended(5))
    return found


def test_a_task_out_of_gpu_memory_gets_a_larger_share() -> None:
    have = capacity(gpus_per_trial=0.25)
    tasks = Tasks(needs, have)
    for name, error in zip("abc", FULL, strict=True):
        tasks.add(name, 0.5, error)
    assert results(tasks) == {"a": 0.5, "b": 0.5, "c": 0.5}
    assert have.gpus == 0.5
    assert not any(map(loses_the_gpu, FULL)), "the process can go on"


def test_a_task_that_no_gpu_holds_ends_with_the_error() -> None:
    tasks = Tasks(needs, capacity(gpus_per_trial=0.5))
    tasks.add("much", 2.0)
    error = results(tasks)["much"]
    assert is_out_of_memory(error)
    assert "CUDA out of memory" in str(error)


def dies_once(folder: Path) -> str:
    try:
        (folder / "died").touch(exist_ok=False)
    except FileExistsError:
        return "done"
    os.kill(os.getpid(), 9)
    return "never"


def test_a_task_whose_process_dies_is_run_again(tmp_path: Path) -> None:
    tasks = Tasks(dies_once, capacity(gpus_per_trial=0))
    tasks.add("one", tmp_path)
    assert results(tasks) == {"one": "done"}


def own_process(name: int) -> int:
    return os.getpid()


def test_a_task_on_a_gpu_leaves_no_process_that_holds_its_memory() -> None:
    tasks = Tasks(own_process, capacity(gpus_per_trial=1), lambda: 1)
    for name in range(3):
        tasks.add(name, name)
    assert len(set(results(tasks).values())) == 3


def test_no_more_tasks_at_once_than_told(tmp_path: Path) -> None:
    tasks = Tasks(needs, capacity(gpus_per_trial=0.5), lambda: 1)
    for name in range(3):
        tasks.add(name, 0.0)
    assert results(tasks) == {0: 0.5, 1: 0.5, 2: 0.5}


def test_a_run_on_the_only_machine_is_seen(tmp_path: Path) -> None:
    require_seen_by_all(Location(tmp_path))


def test_a_run_that_another_machine_does_not_see_is_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own,) = ray.nodes()
    monkeypatch.setattr(ray, "nodes", lambda: [own, own | {"NodeManagerAddress": "10.9.8.7"}])
    with pytest.raises(InputError, match=r"is not seen by the machine .*expected an --out"):
        require_seen_by_all(Location(tmp_path / "elsewhere"))


def test_the_share_is_the_smallest_that_a_trial_fits_in() -> None:
    assert share_for(1 * GIB, 80 * GIB) == 0.125
    assert share_for(9 * GIB, 80 * GIB) == 0.25
    assert share_for(17 * GIB, 80 * GIB) == 0.5
    assert share_for(40 * GIB, 80 * GIB) == 1.0
    assert share_for(100 * GIB, 80 * GIB) == 1.0


def trial_that_needs(share: float) -> Callable[..., None]:
    def trial(config: dict[str, Any], material: None) -> None:
        from ray import tune

        if share_of_a_gpu() < share:
            tune.report({"out_of_memory": "OutOfMemoryError: CUDA out of memory", "node": "here"})
            return
        row = dict.fromkeys(("train_loss", "val_loss", "val_acc", "val_f1", "seconds"), 0.5)
        for epoch in (1, 2):
            tune.report({"epoch": epoch, **row, "ended": 0.0, "node": "here"})

    return trial


def test_trials_out_of_gpu_memory_go_on_with_a_larger_share(
    make_material: Callable[..., Material], monkeypatch: pytest.MonkeyPatch
) -> None:
    material = make_material(
        resources={"gpus_per_trial": 0.25},
        training={"max_epochs": 2},
        cells={"variants": ["A"], "label_ratios": [50, 100]},
    )
    monkeypatch.setattr(tuning, "run_trial", trial_that_needs(1.0))
    ledger = Ledger(material.run)
    search = StudySearch(material.config, ledger, lambda cell: True)
    have, said = Capacity(material.config), []
    tuning.run_search(material, search, have, have.slots, lambda: None, said.append)
    assert have.gpus == 1.0
    assert [line.split()[-4] for line in said] == ["0.5", "1"]
    trials = ledger.rows("trials")
    assert sorted(row["state"] for row in trials) == ["COMPLETE"] * 4
    assert {row["trial_id"] for row in trials} == {
        Cell("A", ratio).trial_id(number) for ratio in (50, 100) for number in (0, 1)
    }


def test_a_trial_that_no_gpu_holds_fails(
    make_material: Callable[..., Material], monkeypatch: pytest.MonkeyPatch
) -> None:
    material = make_material(
        resources={"gpus_per_trial": 1},
        training={"max_epochs": 2},
        cells={"variants": ["A"], "label_ratios": [100]},
    )
    monkeypatch.setattr(tuning, "run_trial", trial_that_needs(2.0))
    ledger = Ledger(material.run)
    search = StudySearch(material.config, ledger, lambda cell: True)
    have = Capacity(material.config)
    tuning.run_search(material, search, have, have.slots, lambda: None, print)
    assert {(row["state"], row["error"]) for row in ledger.rows("trials")} == {
        ("FAIL", "OutOfMemoryError: CUDA out of memory")
    }


def search_all(material: Material) -> tuple[list[Row], list[str]]:
    """The records of a search's trials, and what it said."""
    ledger, said = Ledger(material.run), []
    search = StudySearch(material.config, ledger, lambda cell: True)
    have = Capacity(material.config)
    tuning.run_search(material, search, have, have.slots, lambda: None, said.append)
    assert search.finished
    return ledger.rows("trials"), said


def trial_that_dies_at_its_end(folder: Path) -> Callable[..., None]:
    """The first whose actor Tune gives to the next trial takes that actor's process along."""

    def trial(config: dict[str, Any], material: None) -> None:
        from ray import tune

        row = dict.fromkeys(("train_loss", "val_loss", "val_acc", "val_f1", "seconds"), 0.5)
        try:
            for epoch in (1, 2):
                tune.report({"epoch": epoch, **row, "ended": 0.0, "node": "here"})
        except SystemExit:  # how Tune ends a trial that was stopped
            dies_once(folder)
            raise

    return trial


def test_a_trial_is_not_lost_with_the_process_that_it_was_to_take_over(
    make_material: Callable[..., Material], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Tune counts one death twice there, and gives up a trial that has not begun."""
    material = make_material(
        resources={"gpus_per_trial": 0, "max_concurrent": 1},
        training={"max_epochs": 2},
        search={"trials": 4},
        cells={"variants": ["A"], "label_ratios": [100]},
    )
    monkeypatch.setattr(tuning, "run_trial", trial_that_dies_at_its_end(tmp_path))
    monkeypatch.setattr(Rungs, "goes_on", lambda *_: False)
    trials, said = search_all(material)
    assert (tmp_path / "died").exists()
    assert said == [f"A@100-001: its process was lost; {tuning.GOES_ON}"]
    assert [(row["state"], row["epochs"]) for row in trials] == [("PRUNED", 1)] * 4


def trial_that_loses_its_gpu(folder: Path) -> Callable[..., None]:
    """Once; and runs everything else in the process that is left."""

    def train(*args: Any, report: Callable[[Any], object], **kwargs: Any) -> None:
        try:
            (folder / "lost").touch(exist_ok=False)
        except FileExistsError:
            row = dict.fromkeys(("train_loss", "val_loss", "val_acc", "val_f1", "seconds"), 0.5)
            assert os.getpid() != int((folder / "lost").read_text())
            report({"epoch": 1, **row, "ended": 0.0})
            return
        (folder / "lost").write_text(str(os.getpid()))
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def trial(config: dict[str, Any], material: Material) -> None:
        import study.trial

        study.trial.train_classifier = train  # type: ignore[assignment]
        tuning.run_trial(config, material)

    return trial


def test_a_process_without_its_gpu_is_given_to_no_other_trial(
    make_material: Callable[..., Material], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    material = make_material(
        resources={"gpus_per_trial": 1, "max_concurrent": 1},
        training={"max_epochs": 1},
        cells={"variants": ["A"], "label_ratios": [100]},
    )
    monkeypatch.setattr(tuning, "run_trial", trial_that_loses_its_gpu(tmp_path))
    trials, said = search_all(material)
    reason = "AcceleratorError: CUDA error: an illegal memory access was encountered"
    assert said == [f"A@100-000: {reason}; {tuning.GOES_ON}"]
    assert [(row["state"], row["error"]) for row in trials] == [("COMPLETE", None)] * 2


def test_the_search_goes_on_where_ray_ends_a_trial_for_want_of_memory(
    make_material: Callable[..., Material], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Tune does not know Ray's error for a death, and ends; so it does here for the first death."""
    from ray.air.execution._internal import actor_manager

    material = make_material(
        resources={"gpus_per_trial": 0},
        training={"max_epochs": 2},
        cells={"variants": ["A"], "label_ratios": [50, 100]},
    )
    monkeypatch.setattr(tuning, "run_trial", trial_that_dies_once(tmp_path))
    monkeypatch.setattr(actor_manager, "RayActorError", KeyboardInterrupt)
    trials, said = search_all(material)
    assert said
    assert all("its process was lost" in line for line in said)
    assert [(row["state"], row["epochs"]) for row in trials] == [("COMPLETE", 2)] * 4


def trial_that_dies_once(folder: Path) -> Callable[..., None]:
    def trial(config: dict[str, Any], material: None) -> None:
        dies_once(folder)
        trial_that_needs(0.0)(config, material)

    return trial


def trial_that_always_dies(config: dict[str, Any], material: None) -> None:
    os.kill(os.getpid(), 9)


def test_a_trial_that_always_loses_its_process_fails(
    make_material: Callable[..., Material], monkeypatch: pytest.MonkeyPatch
) -> None:
    material = make_material(
        resources={"gpus_per_trial": 0},
        search={"trials": 1},
        cells={"variants": ["A"], "label_ratios": [50, 100]},
    )
    monkeypatch.setattr(tuning, "run_trial", trial_that_always_dies)
    monkeypatch.setattr(tuning, "LOST_PROCESSES", 2)
    trials, said = search_all(material)
    names = ("A@50-000", "A@100-000")
    again = [f"{name}: its process was lost; {tuning.GOES_ON}" for name in names]
    given_up = [f"{name} failed: its process was lost (3 in all)" for name in names]
    assert sorted(said) == sorted(2 * again + given_up)
    assert [(row["state"], row["error"]) for row in trials] == [
        ("FAIL", "its process was lost (3 in all)")
    ] * 2


def refuses(material: Material, plan: object) -> None:
    raise StorageError(f"{material.run}: storage has refused for 180 s")


def test_an_encoder_that_storage_refuses_ends_the_study_and_no_trial(
    make_material: Callable[..., Material], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its trials would be FAIL for good, also when storage works again."""
    monkeypatch.setattr(pretraining, "pretrain", refuses)
    material = make_material(resources={"gpus_per_trial": 0})
    pool = pretraining.EncoderPool(material, Ledger(material.run), Capacity(material.config))
    pool.want([Cell("B1", 100)], [None])
    with pytest.raises(StorageError, match="refused"):
        pool.collect(60.0)


def test_a_search_that_waits_for_an_encoder_holds_no_processor(
    make_material: Callable[..., Material], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune keeps its actors, and their processors, as long as more trials are to come."""
    material = make_material(resources={"gpus_per_trial": 0}, training={"max_epochs": 2})
    monkeypatch.setattr(tuning, "run_trial", trial_that_needs(0.0))
    there, ledger = {"A"}, Ledger(material.run)
    search = StudySearch(material.config, ledger, lambda cell: cell.variant in there)
    have = Capacity(material.config)
    tuning.run_search(material, search, have, have.slots, lambda: None, print)
    assert {row["variant"] for row in ledger.rows("trials")} == {"A"}
    assert not search.finished
    assert not search.can_start
    everything = ray.remote(num_cpus=ray.cluster_resources()["CPU"])(lambda: "pretrained")
    assert ray.get(everything.remote(), timeout=60) == "pretrained"
    there.add("B1")
    tuning.run_search(material, search, have, have.slots, lambda: None, print)
    assert search.finished
    assert [row["state"] for row in ledger.rows("trials")] == ["COMPLETE"] * 8


def test_trials_that_are_stopped_close_their_wandb_runs(
    make_material: Callable[..., Material], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the last one of an actor, which Tune ends without waiting."""
    material = make_material(
        tracking={"wandb": "offline"},
        resources={"gpus_per_trial": 1, "max_concurrent": 2},
        cells={"variants": ["A"], "label_ratios": [100]},
    )
    monkeypatch.setattr(Rungs, "goes_on", lambda *_: False)
    trials, _ = search_all(material)
    assert [row["state"] for row in trials] == ["PRUNED"] * 2
    closed = [b'"PRUNED"' in file.read_bytes() for file in material.run.local.rglob("*.wandb")]
    assert closed == [True] * 2
