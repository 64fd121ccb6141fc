"""Descent pairs: what each variant of the theory takes for gradient and update, from which one metric follows.

`continuous` takes the two vectors as they are; `discrete` makes a pair of a finite step, such that the step is natural
gradient descent exactly, for any learning rate.
"""

from __future__ import annotations

from steepest.pairs.continuous import continuous
from steepest.pairs.descent_pair import DescentPair
from steepest.pairs.discrete import discrete

__all__ = ["DescentPair", "continuous", "discrete"]
