"""From a pair to its alignment and its metric."""

from . import suite


class Align(suite._Ours):
    """align(grad, update)."""

    operation = "align"


class AlignPeers(suite._Peers):
    """NumPy forms the three inner products, the angle and the condition number."""

    operation = "align"
    params, param_names = suite.beside("align"), suite.PEER_NAMES


class Construct(suite._Ours):
    """metric(grad, update)."""

    operation = "metric"


class ConstructPeers(AlignPeers):
    """The same formulas."""

    operation = "metric"
