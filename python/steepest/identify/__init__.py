"""Structured metrics that are constant over many steps: fitted to some, scored on later ones."""

from steepest.identify.comparison import compare
from steepest.identify.fit import identify
from steepest.identify.identification import BlockFit, Identification
from steepest.identify.lifetime import Lifetime, lifetime
from steepest.identify.procrustes import Procrustes, spd_procrustes
from steepest.identify.reference import ReferenceDistance, reference_distance
from steepest.identify.reference_course import ReferenceCourse, reference_course
from steepest.identify.selection import Selection, select
from steepest.identify.surrogates import SurrogateScores, surrogates

__all__ = [
    "BlockFit",
    "Identification",
    "Lifetime",
    "Procrustes",
    "ReferenceCourse",
    "ReferenceDistance",
    "Selection",
    "SurrogateScores",
    "compare",
    "identify",
    "lifetime",
    "reference_course",
    "reference_distance",
    "select",
    "spd_procrustes",
    "surrogates",
]
