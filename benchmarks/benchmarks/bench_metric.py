"""From a pair to its alignment and its metric."""

from . import suite
from .problems import DTYPES, SIZES, THREADS, Problem


class Align(suite._Pair):
    """align(grad, update); NumPy forms the three inner products, the angle and the condition number."""

    operation = "align"
    params = (SIZES, DTYPES, THREADS)
    param_names = ("n", "dtype", "threads")

    def setup(self, n: int, dtype: str, threads: int) -> None:
        """asv's."""
        self.prepare(Problem(n, dtype), threads)


class Construct(Align):
    """metric(grad, update)."""

    operation = "metric"
