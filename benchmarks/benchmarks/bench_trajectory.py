"""steepest.recording of whole arrays: 200 steps of 50 blocks, float32, with 3 and with 7 inner products a step."""

from typing import Any

from . import suite
from .problems import THREADS, Trajectory

AXES = ([50_000, 1_000_000], ["float32"], THREADS)


def _trajectory(at: dict[str, Any]) -> Trajectory:
    return Trajectory(at["n"], at["dtype"])


class Trajectory3(suite._Ours):
    """lag=0."""

    operation = "trajectory3"
    params = AXES

    def problem_at(self, at: dict[str, Any]) -> Trajectory:
        """200 steps."""
        return _trajectory(at)


class Trajectory7(Trajectory3):
    """lag=1, the default."""

    operation = "trajectory7"


class Trajectory3Peers(suite._Peers):
    """lag=0, beside each peer."""

    operation = "trajectory3"
    params, param_names = suite.beside("trajectory3", AXES), suite.PEER_NAMES

    def problem_at(self, at: dict[str, Any]) -> Trajectory:
        """200 steps."""
        return _trajectory(at)


class Trajectory7Peers(Trajectory3Peers):
    """lag=1, beside each peer."""

    operation = "trajectory7"
