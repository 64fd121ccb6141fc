"""A multiple of the identity plus a matrix of small rank, as the compiled core takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest import _core
from steepest.arrays import LongVector

__all__ = ["LowRankForm"]

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class LowRankForm:
    """``2**exponent (scalar I + W K W^T)``, W the vectors divided by 2**exponents.

    Attributes
    ----------
    scalar : float
        Factor of the identity.
    vectors : tuple of LongVector
        Columns of W before scaling.
    exponents : tuple of int
        Powers of two that bring the columns to a norm near 1.
    core : ndarray, shape (k, k)
        K, symmetric.
    exponent : int
        Common power of two.
    """

    scalar: float
    vectors: tuple[LongVector, ...]
    exponents: tuple[int, ...]
    core: Matrix
    exponent: int = 0

    def operator(self) -> _core.Operator:
        """For the compiled core.

        Returns
        -------
        Operator
            Of the same matrix.
        """
        flags = [False] * len(self.vectors)
        segments: list[Any] = [v.segments for v in self.vectors]
        return _core.Operator(segments, list(self.exponents), flags, self.core, self.exponent, self.scalar)
