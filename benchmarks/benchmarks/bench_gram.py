"""Inner products of a pair: y.y, y.g, g.g."""

from . import suite


class Gram(suite._Ours):
    """The kernel."""

    operation, kernel = "gram", True


class GramPeers(suite._Peers):
    """The kernel beside each peer."""

    operation, kernel = "gram", True
    params, param_names = suite.beside("gram"), suite.PEER_NAMES


class Compensated(suite._Ours):
    """The pass with error-free sums, which no peer has."""

    operation, kernel = "compensated", True
