"""Structured metrics that are constant over many steps: fitted to some, scored on later ones."""

from steepest.identify.comparison import compare
from steepest.identify.fit import identify
from steepest.identify.identification import BlockFit, Identification
from steepest.identify.selection import Selection, select

__all__ = ["BlockFit", "Identification", "Selection", "compare", "identify", "select"]
