"""M @ x and M.solve(b) through the public interface, for 1 and 16 right-hand sides."""

from . import suite
from .problems import COLUMNS, DTYPES, ORDERS, SIZES, THREADS, Problem, fits


class Apply(suite._Pair):
    """M @ x, one right-hand side."""

    operation = "apply"
    params = (SIZES, DTYPES, THREADS)
    param_names = ("n", "dtype", "threads")

    def setup(self, n: int, dtype: str, threads: int) -> None:
        """asv's."""
        self.prepare(Problem(n, dtype), threads)


class Solve(Apply):
    """M.solve(b)."""

    operation = "solve"


class ApplySeveral(suite._Pair):
    """M @ X, X of shape (n, 16)."""

    operation = "apply"
    params = (SIZES, ["float64", "float32"], ORDERS, THREADS)
    param_names = ("n", "dtype", "order", "threads")

    def setup(self, n: int, dtype: str, order: str, threads: int) -> None:
        """asv's."""
        if not fits(n, dtype, COLUMNS):
            raise NotImplementedError("needs too much memory")  # asv skips it
        self.prepare(Problem(n, dtype, COLUMNS, order), threads)


class PeakMemory:
    """Of the process: grad, update, x and the result are four vectors of 40 MB."""

    def setup(self) -> None:
        """asv's."""
        self.problem = Problem(10_000_000, "float32")

    def peakmem_ours(self) -> None:
        """With M @ x."""
        from .ours import Public

        Public().apply(self.problem)()

    def peakmem_numpy(self) -> None:
        """With plain NumPy, which forms temporaries."""
        from .peers import NumPy

        NumPy().apply(self.problem)()
