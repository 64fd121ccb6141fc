"""Structured metrics that are constant over many steps: fitted to some, scored on later ones."""

from steepest.identify.comparison import compare
from steepest.identify.fit import identify
from steepest.identify.identification import BlockFit, Identification
from steepest.identify.lifetime import Lifetime, lifetime
from steepest.identify.selection import Selection, select
from steepest.identify.surrogates import SurrogateScores, surrogates

__all__ = [
    "BlockFit",
    "Identification",
    "Lifetime",
    "Selection",
    "SurrogateScores",
    "compare",
    "identify",
    "lifetime",
    "select",
    "surrogates",
]
