"""The least time that a search's epochs can take here: bare PyTorch over a tensor in memory.

The same networks (`models.classifiers`), Adam as `models.training` sets it, the same batches and a
validation with accuracy and macro F1 each epoch; no Ray, no Lightning, no records. Two ways to use
the cores: a process with one thread each, which take the next trial from a queue, or one process
with all threads. For B1 the frozen encoder's features are computed once, which is counted.

    python benchmarks/floor.py --data DIR --epochs-per-trial 10 10 2 2 2 2 10 6

takes about as many seconds as there are epochs, on 2 cores at 64 px and width 16; twice that with
``--one-process`` too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.memory import MEMORY_ENVIRONMENT

BATCH = 64


@dataclass(frozen=True)
class Place:
    """A process among those that share the work."""

    number: int
    processes: int
    threads: int
    barrier: Any
    folder: Path


def load(data: str, image_size: int, cache: Path) -> dict[str, Path]:
    """Decode the images by the project's packing, which is not part of what is measured."""
    import numpy as np

    from data.folders import find_images
    from data.packing import open_packed, pack_images
    from data.storage import Location

    folder = find_images(Location(data))
    key, _ = pack_images(folder, image_size, Location(cache), os.cpu_count() or 1)
    images = open_packed(Location(cache), key, cache / "node")
    splits = np.array(images.splits)
    files = {}
    for split in ("train", "valid"):
        rows = np.flatnonzero(splits == split)
        files[split] = cache / f"{split}.npz"
        np.savez(files[split], pixels=images.pixels[rows], labels=images.labels[rows])
    return files


def in_memory(file: Path) -> tuple[Any, Any]:
    """Images (N, 3, H, W) float32 in [-1, 1], channels last, and labels (N,)."""
    import numpy as np
    import torch

    with np.load(file) as arrays:
        pixels, labels = torch.from_numpy(arrays["pixels"]), torch.from_numpy(arrays["labels"])
    return pixels.permute(0, 3, 1, 2).float().mul_(2 / 255).sub_(1), labels


def train(options: argparse.Namespace, data: dict[str, tuple[Any, Any]], epochs: int) -> float:
    """One trial; its last macro F1."""
    import torch
    import torch.nn.functional as F

    torch.manual_seed(0)
    network = trained_part(options)
    adam = torch.optim.Adam(network.parameters(), lr=options.lr, fused=True)
    inputs, labels = data["train"]
    score = 0.0
    for _ in range(epochs):
        network.train()
        total = torch.zeros(())
        for rows in torch.randperm(len(inputs)).split(BATCH):
            loss = F.cross_entropy(network(inputs.index_select(0, rows)), labels[rows])
            adam.zero_grad(set_to_none=True)
            loss.backward()
            adam.step()
            total += loss.detach()
        score = validate(network, *data["valid"])
    return score


def validate(network: Any, inputs: Any, labels: Any) -> float:
    import torch

    network.eval()
    with torch.no_grad():
        pred = torch.cat([network(part).argmax(1) for part in inputs.split(BATCH)])
    counts = torch.bincount(20 * labels + pred, minlength=400).view(20, 20).float()
    return float((2 * counts.diag() / (counts.sum(0) + counts.sum(1)).clamp(min=1)).mean())


def trained_part(options: argparse.Namespace) -> Any:
    """The network, or its head alone where the encoder is frozen."""
    from models.classifiers import build_classifier

    network: Any = build_classifier(
        options.variant, 20, options.image_size, options.width, encoder_state=_encoder(options)
    )
    return network if options.variant == "A" else network.head


def _encoder(options: argparse.Namespace) -> Any:
    if options.variant == "A":
        return None
    from models.weights import from_bytes

    return from_bytes(Path(options.encoder).read_bytes())


def features(
    options: argparse.Namespace, data: dict[str, tuple[Any, Any]], place: Place
) -> dict[str, Any]:
    """The data as the trained part sees it; each process computes its share of the features."""
    if options.variant == "A":
        return data
    import numpy as np
    import torch

    from models.classifiers import build_classifier, encode_batches

    network: Any = build_classifier(
        options.variant, 20, options.image_size, options.width, encoder_state=_encoder(options)
    )
    for split, (inputs, _) in data.items():
        own = inputs.chunk(place.processes)[place.number]
        shares = encode_batches(network, own.split(BATCH)).numpy()
        np.save(place.folder / f"{split}-{place.number}.npy", shares)
    place.barrier.wait()

    def whole(split: str) -> Any:
        files = [place.folder / f"{split}-{n}.npy" for n in range(place.processes)]
        return torch.from_numpy(np.concatenate([np.load(file) for file in files]))

    return {split: (whole(split), labels) for split, (_, labels) in data.items()}


def worker(
    options: argparse.Namespace, place: Place, files: dict[str, Path], todo: Any, said: Any, go: Any
) -> None:
    """A process: ready, then trials until the queue is empty, then done."""
    import torch

    torch.set_num_threads(place.threads)
    torch.set_flush_denormal(True)
    data = {split: in_memory(file) for split, file in files.items()}
    trained_part(options)
    said.put("ready")
    go.wait()
    data = features(options, data, place)
    while (epochs := todo.get()) is not None:
        train(options, data, epochs)
    said.put("done")


def measure(
    options: argparse.Namespace, files: dict[str, Path], processes: int, threads: int
) -> dict[str, float]:
    """Seconds of the training, and with starting Python and importing torch."""
    context = mp.get_context("spawn")
    todo, said, go = context.Queue(), context.Queue(), context.Event()
    for epochs in [*options.epochs_per_trial, *[None] * processes]:
        todo.put(epochs)
    started = time.monotonic()
    barrier, folder = context.Barrier(processes), files["train"].parent
    places = [Place(n, processes, threads, barrier, folder) for n in range(processes)]
    workers = [
        context.Process(target=worker, args=(options, place, files, todo, said, go))
        for place in places
    ]
    for process in workers:
        process.start()
    _hear(said, workers)
    ready = time.monotonic()
    go.set()
    _hear(said, workers)
    ended = time.monotonic()
    for process in workers:
        process.join()
    return {"training": round(ended - ready, 3), "with_start": round(ended - started, 3)}


def _hear(said: Any, workers: list[Any]) -> None:
    """Wait for a word from every process."""
    for _ in workers:
        said.get(timeout=3600)


def ways(options: argparse.Namespace) -> Iterator[tuple[str, int, int]]:
    cores = os.cpu_count() or 1
    yield "a_process_a_core", cores, 1
    if options.one_process:
        yield "one_process", 1, cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a folder with train/ and valid/")
    parser.add_argument("--variant", choices=("A", "B1"), default="A")
    parser.add_argument("--encoder", help="safetensors of the encoder, for B1")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--epochs-per-trial", type=int, nargs="+", default=[4] * 8)
    parser.add_argument("--one-process", action="store_true", help="also one with all threads")
    parser.add_argument("--cache", type=Path, help="a folder to decode into; default temporary")
    options = parser.parse_args()
    # As the project's workers have it; the C library reads it when a process starts.
    os.environ.update(MEMORY_ENVIRONMENT)
    with tempfile.TemporaryDirectory() as folder:
        files = load(options.data, options.image_size, options.cache or Path(folder))
        found = {
            name: measure(options, files, processes, threads)
            for name, processes, threads in ways(options)
        }
    epochs = sum(options.epochs_per_trial)
    print(json.dumps({"variant": options.variant, "epochs": epochs, **found}))


if __name__ == "__main__":
    main()
