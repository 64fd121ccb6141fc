"""Projection of x off span{g}, and off span{y, g}."""

from . import suite


class ProjectOffOne(suite._Ours):
    """The kernel, one vector."""

    operation, kernel = "project", True


class ProjectOffOnePeers(suite._Peers):
    """The kernel beside each peer."""

    operation, kernel = "project", True
    params, param_names = suite.beside("project"), suite.PEER_NAMES


class ProjectOffTwo(suite._Ours):
    """The kernel, two vectors."""

    operation, kernel = "project2", True


class ProjectOffTwoPeers(suite._Peers):
    """The kernel beside each peer."""

    operation, kernel = "project2", True
    params, param_names = suite.beside("project2"), suite.PEER_NAMES
