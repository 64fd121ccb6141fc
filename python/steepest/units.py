"""Units of the parameters: inner products in which a parameter of 1e-3 seconds counts like one of 10 metres."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest import _core
from steepest.arrays import ArrayOrMapping, Layout, LongVector, widened
from steepest.step_rows import ordered

__all__ = ["Units"]


class Units:
    """A positive number for each parameter, in which steps are measured (theory, section 0, Units, derived).

    With ``params = scale * x`` the gradient with respect to x is ``scale * grad``, and x moves by ``update / scale``:
    their inner products are those of the diagonal metric ``1/scale**2``.

    Parameters
    ----------
    scale : array or mapping name -> array
        Of the names and shapes of the parameters.
    layout : Layout
        Of the parameters.

    Attributes
    ----------
    scale, base : list of ndarray
        The scale and ``1/scale**2`` in float64: two resident long vectors (one if `scale` is in float64 already).
    crc : int
        Check sum of the scale.

    Raises
    ------
    ValueError
        Other names or shapes, or an element whose square or whose inverse square is not positive and finite.
    """

    def __init__(self, scale: ArrayOrMapping, layout: Layout) -> None:
        given = ordered(scale, "scale", layout)
        if given.layout != layout:
            raise ValueError(f"expected scale to be {layout} as the parameters, got {given.layout}")
        self.layout = layout
        self.scale = [widened(s, d) for s, d in zip(given.segments, given.dtypes, strict=True)]
        with np.errstate(all="ignore"):
            self.base = [np.asarray(1.0 / (s * s)) for s in self.scale]
        for what, arrays in (("scale", self.scale), ("1/scale^2", self.base)):
            wrong = _core.first_not_positive(arrays)
            if wrong >= 0:
                raise ValueError(
                    f"expected a positive scale with a finite inverse square, got another {what} at flat index {wrong}"
                )
        self.crc = 0
        for s in self.scale:
            self.crc = zlib.crc32(np.ascontiguousarray(s).reshape(-1).view(np.uint8).data, self.crc)

    def of_grad(self, x: LongVector | None) -> LongVector | None:
        """The gradient in these units, rounded to float64.

        Parameters
        ----------
        x : LongVector or None
            As given.

        Returns
        -------
        LongVector or None
            A copy.
        """
        return None if x is None else self._float64(x, np.multiply)

    def of_update(self, x: LongVector | None) -> LongVector | None:
        """The update in these units, rounded to float64.

        Parameters
        ----------
        x : LongVector or None
            As given.

        Returns
        -------
        LongVector or None
            A copy.
        """
        return None if x is None else self._float64(x, np.divide)

    def _float64(self, x: LongVector, operation: Any) -> LongVector:
        with np.errstate(all="ignore"):
            segments: list[NDArray[Any]] = [
                np.asarray(operation(widened(s, d), u))
                for s, d, u in zip(x.segments, x.dtypes, self.scale, strict=True)
            ]
        return LongVector(segments, x.layout, ("float64",) * len(segments))
