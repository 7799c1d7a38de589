"""How much memory concurrent trials take, and that they share one copy of the images.

Trials are stopped at the end of their first epoch, when each has read every training and
validation image, and all are looked at together: PSS (a page shared by n processes counts 1/n for
each) of each process, and of the packed images' mapping alone. Once with 1 process and once with
8, started by `multiprocessing`; then 8 as Ray's workers.

    python benchmarks/memory.py --data DIR --image-size 128

takes about 3 minutes on 2 cores, most of it the 17 epochs.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing as mp
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from record import write_result

MIB = 2**20


def trial(material: Any, number: int, meeting: Path) -> None:
    """One trial of A up to the end of its first epoch; waits there until all have been seen."""
    from study.cells import Cell
    from study.trial import train_classifier

    def report(row: dict[str, Any]) -> None:
        (meeting / f"{os.getpid()}.ready").touch()
        while not (meeting / "go").exists():
            time.sleep(0.1)

    train_classifier(material, Cell("A", 100), lr=1e-3, seed=number, report=report)


def prepare(options: argparse.Namespace, folder: Path) -> Any:
    from data.storage import Location
    from study.config import config_from
    from study.images import images_of, prepare
    from study.pipeline import open_study

    tree = {
        "name": "memory",
        "data": {"image_size": options.image_size, "root": str(Path(options.data).resolve())},
        "encoder": {"width": options.width},
        "training": {"max_epochs": 1},
        "search": {"grace_period": 1},
        "evaluation": {"repeats": 0},
        "tracking": {"wandb": "disabled"},
    }
    config = config_from(tree, "memory.py")
    out = Location(folder)
    study = open_study(config, out / config.name, None)
    return prepare(config, out, out / config.name, study, images_of(config, study))[0]


def smaps(pid: int, mapped: str) -> tuple[float, float, float]:
    """MiB of a process: its PSS, and of the mapped file its PSS and its resident size."""
    total = pss = resident = 0.0
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):  # "address rights offset device inode file"
            inside = line.endswith(mapped)
        elif name in ("Pss:", "Rss:"):
            size = int(rest[0]) / 1024
            total += size * (name == "Pss:")
            pss += size * (inside and name == "Pss:")
            resident += size * (inside and name == "Rss:")
    return total, pss, resident


def look(meeting: Path, processes: int, mapped: str) -> dict[str, float]:
    """Wait until all processes are at their meeting, look at them, and let them go."""
    deadline = time.monotonic() + 1800
    while len(ready := list(meeting.glob("*.ready"))) < processes:
        if time.monotonic() > deadline:
            raise SystemExit(f"only {len(ready)} of {processes} processes came")
        time.sleep(0.2)
    seen = [smaps(int(file.stem), mapped) for file in ready]
    (meeting / "go").touch()
    totals, shares, resident = zip(*seen, strict=True)
    return {
        "processes": processes,
        "pss_mib": round(sum(totals), 1),
        "pss_per_process_mib": round(sum(totals) / processes, 1),
        "images_pss_mib": round(sum(shares), 1),
        "images_rss_mib": round(sum(resident), 1),
    }


@contextlib.contextmanager
def spawned(material: Any, processes: int, meeting: Path) -> Iterator[None]:
    context = mp.get_context("spawn")
    workers = [
        context.Process(target=trial, args=(material, number, meeting))
        for number in range(processes)
    ]
    for worker in workers:
        worker.start()
    yield
    for worker in workers:
        worker.join()


@contextlib.contextmanager
def in_ray(material: Any, processes: int, meeting: Path) -> Iterator[None]:
    import ray

    here = {"PYTHONPATH": str(Path(__file__).parent)}
    ray.init(
        address="local",
        num_cpus=processes,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": here},
    )
    remote = ray.remote(trial)
    running = [remote.remote(material, number, meeting) for number in range(processes)]
    yield
    ray.get(running)
    ray.shutdown()


Way = Callable[[Any, int, Path], contextlib.AbstractContextManager[None]]


def measure(material: Any, way: Way, processes: int, cache: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        with way(material, processes, Path(folder)):
            return look(Path(folder), processes, str(cache / f"{material.key}.npy"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a folder with train/ and valid/")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--processes", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="memory-") as name:
        folder = Path(name)
        os.environ["MARIPOSA_CACHE"] = str(folder / "cache")
        material = prepare(options, folder)
        size = material.images.pixels.nbytes / MIB
        many = options.processes
        found: dict[str, Any] = {"images_mib": round(size, 1)}
        found["copies_would_be_mib"] = round(size * many, 1)
        runs: tuple[tuple[str, Way, int], ...] = (
            ("one", spawned, 1),
            ("many", spawned, many),
            ("many_in_ray", in_ray, many),
        )
        for label, way, processes in runs:
            found[label] = measure(material, way, processes, folder / "cache")
            print(label, found[label], flush=True)
    print({key: found[key] for key in ("images_mib", "copies_would_be_mib")})
    print(write_result("memory", sys.argv[1:], found))


if __name__ == "__main__":
    main()
