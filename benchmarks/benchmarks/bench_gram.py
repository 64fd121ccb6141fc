"""Inner products of a pair: y.y, y.g, g.g."""

from . import suite
from .problems import DTYPES, SIZES, THREADS, Problem


class Gram(suite._Pair):
    """The kernel."""

    operation = "gram"
    kernel = True
    params = (SIZES, DTYPES, THREADS)
    param_names = ("n", "dtype", "threads")

    def setup(self, n: int, dtype: str, threads: int) -> None:
        """asv's."""
        self.prepare(Problem(n, dtype), threads)
