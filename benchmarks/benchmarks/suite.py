"""What the asv classes share: set up one point of the axes, time ours, track the ratio to plain NumPy."""

from __future__ import annotations

from typing import Any

from . import ours, peers
from .problems import Problem
from .timing import ratio


class _Pair:
    """One operation by steepest and by plain NumPy. asv calls `setup` before every measurement.

    The underscore keeps asv from taking the base class for a benchmark.
    """

    operation = ""
    kernel = False  # through the public interface, unless there is none
    timeout = 300

    def prepare(self, problem: Problem, threads: int) -> None:
        """Make the two calls."""
        ours.set_threads(threads)
        self.limits = peers.threads_of_peers(threads)
        by: Any = ours.Kernel() if self.kernel else ours.Public()
        self.ours = getattr(by, self.operation)(problem)
        self.numpy = getattr(peers.NumPy(), self.operation)(problem)
        self.ours()  # faults pages in, starts threads

    def time_ours(self, *_axes: Any) -> None:
        """Seconds of a call."""
        self.ours()

    def track_ratio(self, *_axes: Any) -> float:
        """Median time over that of plain NumPy, taken in turn."""
        return ratio(self.ours, self.numpy)

    track_ratio.unit = "x plain NumPy"  # type: ignore[attr-defined]
