"""Projection of x off span{g}, and off span{y, g}."""

from . import suite
from .problems import DTYPES, SIZES, THREADS, Problem


class ProjectOffOne(suite._Pair):
    """The kernel, one vector."""

    operation = "project"
    kernel = True
    params = (SIZES, DTYPES, THREADS)
    param_names = ("n", "dtype", "threads")

    def setup(self, n: int, dtype: str, threads: int) -> None:
        """asv's."""
        self.prepare(Problem(n, dtype), threads)


class ProjectOffTwo(ProjectOffOne):
    """The kernel, two vectors."""

    operation = "project2"
