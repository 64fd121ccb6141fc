"""Structured metrics that are constant over many steps: fitted to some, scored on later ones."""

from steepest.identify.comparison import compare
from steepest.identify.fit import identify
from steepest.identify.identification import BlockFit, Identification

__all__ = ["BlockFit", "Identification", "compare", "identify"]
