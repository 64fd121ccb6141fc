"""M.to_dense()."""

from . import suite
from .problems import DENSE_SIZES, THREADS, Problem


class ToDense(suite._Pair):
    """The public method, which allocates the matrix."""

    operation = "assemble"
    params = (DENSE_SIZES, ["float64", "float32"], THREADS)
    param_names = ("n", "dtype", "threads")

    def setup(self, n: int, dtype: str, threads: int) -> None:
        """asv's."""
        self.prepare(Problem(n, dtype), threads)
