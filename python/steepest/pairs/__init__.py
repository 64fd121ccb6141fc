"""Descent pairs: what each variant of the theory takes for gradient and update, from which one metric follows.

`continuous` takes the two vectors as they are; `discrete` makes a pair of a finite step, such that the step is natural
gradient descent exactly, for any learning rate.
"""

from __future__ import annotations

from steepest.pairs import energies
from steepest.pairs.clarke import ClarkePair, clarke
from steepest.pairs.continuous import continuous
from steepest.pairs.descent_pair import DescentPair
from steepest.pairs.discrete import discrete
from steepest.pairs.estimated import EstimatedPair, estimated
from steepest.pairs.state_extended import state_extended, state_extended_step
from steepest.pairs.stochastic import StochasticPair, stochastic
from steepest.pairs.time_extended import ChangeSplit, TimeExtended, split_change, time_extended
from steepest.pairs.windowed import EffectiveWindow, smallest_effective_window, windowed

__all__ = [
    "ChangeSplit",
    "ClarkePair",
    "DescentPair",
    "EffectiveWindow",
    "EstimatedPair",
    "StochasticPair",
    "TimeExtended",
    "clarke",
    "continuous",
    "discrete",
    "energies",
    "estimated",
    "smallest_effective_window",
    "split_change",
    "state_extended",
    "state_extended_step",
    "stochastic",
    "time_extended",
    "windowed",
]
