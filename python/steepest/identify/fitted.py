"""What every family of metrics hands back after its fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from steepest.metrics.interface import Metric

__all__ = ["BlockFacts", "Estimate", "FitStatus", "Fitted"]

Array = NDArray[np.float64]
FitStatus = Literal[
    "ok",
    "not_positive_definite",
    "underdetermined",
    "not_identified",
    "too_few_steps",
    "not_converged",
    "inconsistent",
    "not_constant",
]


class Estimate(Protocol):
    """The fitted numbers of one family."""

    def metric(self, block: int, floor: float | None, symmetric: bool) -> Metric:
        """As a metric.

        Parameters
        ----------
        block : int
            Place in the blocks.
        floor : float, optional
            What stands for elements that are not positive.
        symmetric : bool
            The symmetric estimate instead of the fit of y from g.

        Returns
        -------
        Metric
            Of the block.
        """

    def elements(self, block: int, symmetric: bool) -> Any:
        """The fitted numbers as they are, zeros included.

        Parameters
        ----------
        block : int
            Place in the blocks.
        symmetric : bool
            The symmetric estimate instead of the fit of y from g.

        Returns
        -------
        float, array or mapping
            Of the family.
        """


@dataclass(frozen=True)
class BlockFacts:
    """What a family knows about its fit of one block.

    Attributes
    ----------
    parameters : int
        Numbers fitted, of the metric.
    status : str
        See `steepest.identify.BlockFit`; what the scores say in addition is found later.
    dimension : int
        Directions that the family tells apart: the elements of a diagonal, the rows of a matrix.
    determined : int
        How many of them the fitted steps determine: elements that moved, the rank of the updates.
    not_positive : int
        How many of these the fit maps to 0, since no positive number fits.
    smallest, largest : float
        Smallest and largest positive eigenvalue of M where it is determined; NaN if there are none.
    notes : tuple of str
        The conditions for a unique metric, and whether they hold, in words.
    """

    parameters: int
    status: FitStatus
    dimension: int
    determined: int
    not_positive: int
    smallest: float
    largest: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fitted:
    """Fit of a family to the first steps, and what is needed to score it on the others.

    Attributes
    ----------
    estimate : Estimate
        The fitted numbers.
    in_sample : ndarray, shape (blocks, 5)
        Sums over the fitted steps of the squared norms of y - M g, g - P y, y - S g, y, g: M fits y from g, P fits g
        from y, S is the symmetric estimate; NaN for what the family does not have. In units of powers of two, one for
        y and one for g.
    held_out : ndarray, shape (steps held out, blocks, 5)
        The same numbers for each later step.
    numbers : list of int
        Of the steps held out.
    fitted_steps, dropped : int
        How many steps were fitted, and how many left out since they are not finite.
    facts : tuple of BlockFacts
        Of each block.
    """

    estimate: Estimate
    in_sample: Array
    held_out: Array
    numbers: list[int]
    fitted_steps: int
    dropped: int
    facts: tuple[BlockFacts, ...]
