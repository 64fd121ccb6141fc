"""M.to_dense()."""

from . import suite
from .problems import DENSE_SIZES, THREADS

AXES = (DENSE_SIZES, ["float64", "float32"], THREADS)


class ToDense(suite._Ours):
    """The public method, which allocates the matrix."""

    operation = "assemble"
    params = AXES


class ToDensePeers(suite._Peers):
    """The kernel, `out` given, beside each peer."""

    operation, kernel = "assemble", True
    params, param_names = suite.beside("assemble", AXES), suite.PEER_NAMES
