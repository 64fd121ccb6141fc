"""Time and peak memory of one metric of very many parameters: `python benchmarks/large.py [n]`, float32, Linux.

Makes grad, update, x and a result of n = 1e8 elements (1.5 GiB), then prints for each operation the best of three times
and how far the resident memory rose above what was there before.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import steepest

MIB = 2**20


def status(field: str) -> float:
    """A line of /proc/self/status, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / MIB
    raise LookupError(field)


def measure(call: Callable[[], Any]) -> tuple[float, float]:
    """Best of three times in seconds, and the rise of the peak of resident memory in MiB."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, times = status("VmRSS"), []
    for _ in range(3):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
        del result
    return min(times), status("VmHWM") - before


def main(n: int) -> None:
    rng = np.random.default_rng(0)
    grad = rng.standard_normal(n, dtype=np.float32)
    update = rng.standard_normal(n, dtype=np.float32)
    update *= np.float32(0.3)
    update -= grad
    update *= np.float32(1e-3)
    x = rng.standard_normal(n, dtype=np.float32)
    out = np.zeros_like(x)
    metric = steepest.metric(grad, update)
    operations: dict[str, Callable[[], Any]] = {
        "metric": lambda: steepest.metric(grad, update),
        "metric, cond": lambda: steepest.metric(grad, update).cond(),
        "M @ x": lambda: metric @ x,
        "M @ x, out=": lambda: metric.matvec(x, out=out),
        "M.solve(x), out=": lambda: metric.solve(x, out=out),
        "M.sqrt() @ x, out=": lambda: metric.sqrt().matvec(x, out=out),
    }
    print(f"n = {n:.0e}, float32, {x.nbytes / MIB:.0f} MiB a vector, {steepest.get_num_threads()} threads")
    for name, call in operations.items():
        seconds, rise = measure(call)
        print(f"{name:20s} {1e3 * seconds:8.1f} ms   peak memory + {rise:6.1f} MiB")
    print(metric)


if __name__ == "__main__":
    main(int(float(sys.argv[1])) if len(sys.argv) > 1 else 10**8)
