"""M @ x and M.solve(b) through the public interface, for 1 and 16 right-hand sides."""

from . import suite
from .problems import ORDERS, SIZES, THREADS, Problem

SEVERAL = (SIZES, ["float64", "float32"], THREADS, ORDERS)
SEVERAL_NAMES = (*suite.AXIS_NAMES, "order")


class Apply(suite._Ours):
    """M @ x, one right-hand side."""

    operation = "apply"


class ApplyPeers(suite._Peers):
    """The kernel, `out` given, beside each peer."""

    operation, kernel = "apply", True
    params, param_names = suite.beside("apply"), suite.PEER_NAMES


class ApplySeveral(suite._Ours):
    """M @ X, X of shape (n, 16)."""

    operation = "apply"
    params, param_names = SEVERAL, SEVERAL_NAMES


class ApplySeveralPeers(suite._Peers):
    """The kernel, `out` given, beside each peer."""

    operation, kernel = "apply", True
    params, param_names = suite.beside("apply", SEVERAL), (*SEVERAL_NAMES, "peer")


class Solve(suite._Ours):
    """M.solve(b)."""

    operation = "solve"


class SolvePeers(suite._Peers):
    """Beside each peer, of which scipy allocates its result too."""

    operation = "solve"
    params, param_names = suite.beside("solve"), suite.PEER_NAMES


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
