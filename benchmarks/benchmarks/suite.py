"""What the asv classes share: one operation at each point of the axes, and what is measured there.

asv calls `setup` before every measurement. The underscores keep it from taking the base classes for benchmarks.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import ours, peers
from .ceiling import PLAIN, ceilings
from .checking import check
from .problems import COLUMNS, DTYPES, SIZES, THREADS, NotApplicable, Problem, Trajectory, fits
from .timing import Call, interleaved

AXES = (SIZES, DTYPES, THREADS)
AXIS_NAMES = ("n", "dtype", "threads")


def peers_of(operation: str) -> list[str]:
    """Names of the peers that have an operation, installed or not: the axes must not depend on that."""
    return [peer.name for peer in peers.PEERS if hasattr(peer, operation)]


class _Point:
    """One operation at one point of the axes, through the public interface or, where there is none, the kernel."""

    operation = ""
    kernel = False
    timeout = 300
    params: tuple[list[Any], ...] = AXES
    param_names: tuple[str, ...] = AXIS_NAMES

    def setup(self, *point: Any) -> None:
        """asv's: data, threads, our call."""
        at = dict(zip(self.param_names, point, strict=True))
        self.threads = at["threads"]
        self.problem = self.problem_at(at)
        ours.set_threads(self.threads)
        self.limits = peers.threads_of_peers(self.threads)
        by: Any = ours.Kernel() if self.kernel else ours.Public()
        self.ours: Call = getattr(by, self.operation)(self.problem)
        self.ours()  # faults pages in, starts threads

    def problem_at(self, at: dict[str, Any]) -> Problem | Trajectory:
        """Skipped by asv where it is too large."""
        columns = COLUMNS if "order" in at else 1
        if not fits(at["n"], at["dtype"], columns):
            raise NotImplementedError("needs too much memory")
        return Problem(at["n"], at["dtype"], columns, at.get("order", "C"))


class _Ours(_Point):
    """Time, share of what the memory allows, and memory."""

    def time_ours(self, *_point: Any) -> None:
        """Seconds of a call."""
        self.ours()

    def track_of_ceiling(self, *_point: Any) -> float:
        """Median time of the fastest bare loop with the same reads and writes over ours; NaN if there is none."""
        bare = ceilings(self.operation, self.problem, self.threads)
        plain = {name: call for name, call in bare.items() if name.split()[0] == PLAIN}
        if not plain:
            return math.nan
        times = {name: float(np.median(x)) for name, x in interleaved({"ours": self.ours, **plain}).items()}
        return min(times[name] for name in plain) / times["ours"]

    track_of_ceiling.unit = "of a bare loop"  # type: ignore[attr-defined]

    def peakmem_ours(self, *_point: Any) -> None:
        """Of the process, with its data."""
        self.ours()


class _Peers(_Point):
    """Median time over that of each peer, taken in turn. `params` ends with their names."""

    def setup(self, *point: Any) -> None:
        """asv's: the call of the peer too; skipped by asv where there is none."""
        super().setup(*point)
        peer = next(peer for peer in peers.PEERS if peer.name == point[-1])
        if peer.missing:
            raise NotImplementedError(peer.missing)
        try:
            self.its: Call = getattr(peer, self.operation)(self.problem)
        except NotApplicable:
            raise NotImplementedError(f"{peer.name} cannot do this") from None

    def track_ratio(self, *_point: Any) -> float:
        """Ours over its; below 1 is faster."""
        numpy: Call = getattr(peers.NumPy(), self.operation)(self.problem)
        calls = {"ours": self.ours, "its": self.its}
        check(self.operation, self.problem, {"numpy": numpy, **calls})
        times = interleaved(calls)
        return float(np.median(times["ours"]) / np.median(times["its"]))

    track_ratio.unit = "x the peer"  # type: ignore[attr-defined]


def beside(operation: str, axes: tuple[list[Any], ...] = AXES) -> tuple[list[Any], ...]:
    """Axes with the peers of an operation as the last one."""
    return (*axes, peers_of(operation))


PEER_NAMES = (*AXIS_NAMES, "peer")
