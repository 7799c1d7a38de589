"""What a benchmark writes: ``results/NAME.json`` with its figures and where they were taken."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("ray", "optuna", "torch", "lightning", "torchmetrics", "numpy")


def spread(values: Sequence[float]) -> dict[str, float]:
    """``n``, ``mean`` and ``sd`` (of the sample; 0 for one value), ``low`` and ``high``.

    Values that are missing (NaN) are left out, and ``n`` says how many there are.
    """
    values = [value for value in values if value == value]
    if not values:
        return {"n": 0}
    return {
        "n": len(values),
        "mean": round(statistics.fmean(values), 4),
        "sd": round(statistics.stdev(values), 4) if len(values) > 1 else 0.0,
        "low": round(min(values), 4),
        "high": round(max(values), 4),
    }


def write_result(name: str, command: Sequence[str], figures: Mapping[str, Any]) -> Path:
    """Replace ``results/NAME.json``.

    Args:
        name: of the benchmark.
        command: its arguments.
        figures: plain values.
    """
    content = {
        "benchmark": name,
        "command": " ".join(["python", f"benchmarks/{name}.py", *command]),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        **figures,
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    file.write_text(json.dumps(content, indent=1) + "\n")
    return file


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")
