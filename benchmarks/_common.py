"""What the benchmarks share: CPU seconds, interleaved rounds, curves, JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np


def seconds_of(call: Callable[[], Any], threads: int) -> float:
    """Seconds that a call takes: of CPU with one thread, where neighbours on a shared machine
    matter least, of the wall clock with more."""
    clock = time.process_time if threads == 1 else time.perf_counter
    start = clock()
    call()
    return clock() - start


def interleaved_medians(
    calls: dict[Any, Callable[[int], Any]], rounds: int, threads: int
) -> dict[Any, float]:
    """Median seconds of each call(round), all of them once per round, one after the other."""
    times: dict[Any, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds_of(partial(call, number), threads))
    return {name: statistics.median(values) for name, values in times.items()}


def at_recall(curve: Sequence[tuple[float, float]], recall: float) -> float | None:
    """Queries per second at a recall, between neighbouring settings, linear in log(rate)."""
    points = sorted(curve)
    if not points or recall > points[-1][0]:
        return None
    if recall < points[0][0]:
        return points[0][1]  # slower than need be: in the peer's disfavour only by its own setting
    recalls = [p[0] for p in points]
    # A slower setting that finds less is not part of the curve.
    rates = np.maximum.accumulate([p[1] for p in points][::-1])[::-1]
    return float(np.exp(np.interp(recall, recalls, np.log(rates))))


def environment() -> dict[str, Any]:
    """Say on what the figures were taken."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def write_json(path: str | None, result: dict[str, Any]) -> None:
    """Write the result where --json says."""
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(result, indent=1))
