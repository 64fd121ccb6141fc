"""What every family of metrics hands back after its fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from steepest.metrics.interface import Metric

__all__ = ["Estimate", "Fitted"]

Array = NDArray[np.float64]


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
class Fitted:
    """Fit of a family to the first steps, and what is needed to score it on the others.

    Attributes
    ----------
    estimate : Estimate
        The fitted numbers.
    in_sample : ndarray, shape (blocks, 5)
        Sums over the fitted steps of the squared norms of y - M g, g - P y, y - S g, y, g: M fits y from g, P fits g
        from y, S is the symmetric estimate. In units of powers of two, one for y and one for g.
    held_out : ndarray, shape (steps held out, blocks, 5)
        The same numbers for each later step.
    numbers : list of int
        Of the steps held out.
    fitted_steps, dropped : int
        How many steps were fitted, and how many left out since they are not finite.
    parameters : tuple of int
        Numbers fitted for each block.
    moved, clipped : tuple of int
        How many of a block's parameters have moved in the fitted steps; how many of its fitted numbers are 0 although
        they have, since no positive number fits.
    smallest, largest : tuple of float
        Positive elements of M; NaN if there are none.
    """

    estimate: Estimate
    in_sample: Array
    held_out: Array
    numbers: list[int]
    fitted_steps: int
    dropped: int
    parameters: tuple[int, ...]
    moved: tuple[int, ...]
    clipped: tuple[int, ...]
    smallest: tuple[float, ...]
    largest: tuple[float, ...]
