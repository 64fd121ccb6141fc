"""The update as a difference of parameters, which the compiled core forms in registers while it reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steepest import _core
from steepest.arrays import EPSILON, LongVector, Segment

__all__ = ["Difference", "StepPass", "difference_dtypes"]


def difference_dtypes(after: LongVector, before: LongVector) -> tuple[str, ...]:
    """Element types of params_next - params: the finer of the two, and float64 for bfloat16, where it is exact.

    Parameters
    ----------
    after, before : LongVector
        Of one layout.

    Returns
    -------
    tuple of str
        One for each array.
    """
    return tuple(
        "float64" if "bfloat16" in (a, b) else min(a, b, key=EPSILON.__getitem__)
        for a, b in zip(after.dtypes, before.dtypes, strict=True)
    )


@dataclass(frozen=True)
class Difference:
    """params_next - params, not formed yet.

    Attributes
    ----------
    after, before : LongVector
        Of one layout.
    dtypes : tuple of str
        To which each array is rounded: 'float64', 'float32' or 'float16'.
    floor_after : bool
        Whether `after` is what the update was rounded to, and not `before`.
    in_place : bool
        Whether the difference may take the memory of `before`, for which nobody has use then.
    """

    after: LongVector
    before: LongVector
    dtypes: tuple[str, ...]
    floor_after: bool = False
    in_place: bool = False

    @classmethod
    def of(cls, after: LongVector, before: LongVector) -> Difference:
        """As NumPy rounds it; bfloat16 in float64, where it is exact.

        Parameters
        ----------
        after, before : LongVector
            Of one layout.

        Returns
        -------
        Difference
            In new memory, once it is formed.
        """
        return cls(after, before, difference_dtypes(after, before))

    def formed(self) -> LongVector:
        """The long vector.

        Returns
        -------
        LongVector
            In new memory unless `in_place`.
        """
        return LongVector(self.segments(range(len(self.dtypes))), self.after.layout, self.dtypes)

    def segments(self, wanted: Sequence[int]) -> list[Segment]:
        """Some of its arrays.

        Parameters
        ----------
        wanted : sequence of int
            Which.

        Returns
        -------
        list of ndarray
            All arrays; those that are not wanted are the ones of `before`.
        """
        found = [*self.before.segments]
        for i in wanted:
            if not (self.in_place and self.before.dtypes[i] == self.dtypes[i]):
                found[i] = np.empty(found[i].shape, self.dtypes[i])
        ends, starts, out = ([x[i] for i in wanted] for x in (self.after.segments, self.before.segments, found))
        _core.difference(ends, starts, out)
        return found


class StepPass:
    """One pass over a gradient and the parameters before and after a step.

    Parameters
    ----------
    grad : LongVector
        Of the layout of both.
    difference : Difference
        The update.
    """

    def __init__(self, grad: LongVector, difference: Difference) -> None:
        self._difference = difference
        self._sums = _core.StepSums(
            grad.segments,
            difference.after.segments,
            difference.before.segments,
            difference.dtypes,
            difference.floor_after,
        )

    @property
    def spacing_squares(self) -> list[float]:
        """As `_core.spacing_squares`."""
        return self._sums.spacing_squares

    def products(self, tolerances: Sequence[float], rounding_squared: Sequence[float]) -> NDArray[np.float64]:
        """The rows of ``_core.segment_angle_grams(grad, update, ...)``, bit for bit.

        Parameters
        ----------
        tolerances, rounding_squared : sequence of float
            For the whole and for each array.

        Returns
        -------
        ndarray, shape (1 + number of arrays, 15)
            Of the whole and of each array.

        Notes
        -----
        An angle that the pass does not settle is read from the update, which is formed then, where it is needed.
        """
        rows, unsettled = self._sums.rows(tolerances, rounding_squared)
        if unsettled:
            n = len(self._difference.dtypes)
            wanted = range(n) if 0 in unsettled else [i - 1 for i in unsettled]
            rows, _ = self._sums.rows(tolerances, rounding_squared, self._difference.segments(wanted))
        return rows
