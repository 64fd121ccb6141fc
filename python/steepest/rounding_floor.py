"""What rounding of the parameters does to an update that is a difference of them (theory, section 0)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from steepest import _core
from steepest.arrays import LongVector, widened

__all__ = ["angle_floor", "norms_of_squares", "rounding_norm", "spacing_norms"]

# Sums of squares within these limits have not lost anything that matters to the range of float64.
_LEAST, _GREATEST = 1e-270, 1e300
_PIECE = 1 << 16
_ROOT_12 = math.sqrt(12.0)


def rounding_norm(spacing: Any) -> Any:
    """Norm of the rounding of a difference of parameters, an error of one spacing in each element, evenly distributed.

    Parameters
    ----------
    spacing : float or ndarray
        2-norm of the distances to the next number, `spacing_norms`.

    Returns
    -------
    float or ndarray
        ``spacing / sqrt(12)``.
    """
    return spacing / _ROOT_12


def angle_floor(spacing: float, update_norm: float) -> float:
    """The angle that rounding of the parameters makes by itself (theory, section 0, derived).

    Parameters
    ----------
    spacing : float
        As of `rounding_norm`.
    update_norm : float
        Of the difference.

    Returns
    -------
    float
        psi_floor in rad; NaN if one is unknown.
    """
    return math.atan2(rounding_norm(spacing), update_norm)


def spacing_norms(params: LongVector, scale: Sequence[NDArray[np.float64]] | None = None) -> list[float]:
    """2-norm of the distances to the next number, for each array; in pieces, so that no second long vector is made.

    Parameters
    ----------
    params : LongVector
        Parameters before a step.
    scale : sequence of ndarray, optional
        Units of the elements, positive, one array for each of `params`.

    Returns
    -------
    list of float
        NaN for an array with NaN or Inf.
    """
    if scale is None:
        return norms_of_squares(_core.spacing_squares(params.segments), params)
    with np.errstate(over="ignore", invalid="ignore"):
        return [_norm(s, d, u) for s, d, u in zip(params.segments, params.dtypes, scale, strict=True)]


def norms_of_squares(squares: Sequence[float], params: LongVector) -> list[float]:
    """The `spacing_norms` from their squares.

    Parameters
    ----------
    squares : sequence of float
        Of `_core.spacing_squares`, or of a pass that finds them besides.
    params : LongVector
        Read again where a square has left the range of float64, or is not finite.

    Returns
    -------
    list of float
        NaN for an array with NaN or Inf.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return [
            math.sqrt(square) if _LEAST < square < _GREATEST else _norm(s, d)
            for square, s, d in zip(squares, params.segments, params.dtypes, strict=True)
        ]


def _norm(segment: NDArray[Any], dtype: str, scale: NDArray[np.float64] | None = None) -> float:
    if segment.size <= _PIECE:
        return _norm_of_piece(dtype, segment.ravel(), None if scale is None else scale.ravel())
    total = 0.0
    operands = [segment] if scale is None else [segment, scale]
    pieces = np.nditer(operands, ["external_loop", "buffered"], order="K", buffersize=_PIECE)
    for piece in pieces:
        one = (piece,) if scale is None else piece
        total = math.hypot(total, _norm_of_piece(dtype, *cast("Any", one)))
    return total


def _norm_of_piece(dtype: str, x: NDArray[Any], scale: NDArray[np.float64] | None = None) -> float:
    """NaN if a number is not finite."""
    if dtype == "bfloat16":  # the exponents of float32 and 16 bits less: the numbers lie 2^16 times wider
        spacing = np.spacing(np.abs(widened(x, dtype)).astype(np.float32)) * np.float64(65536)
    else:
        spacing = np.spacing(np.abs(x)).astype(np.float64)
    if scale is not None:
        spacing /= scale
    largest = float(spacing.max())
    if not math.isfinite(largest) or largest == 0.0:
        return largest if largest == 0.0 else math.nan
    spacing /= largest  # squares of subnormal numbers would vanish
    return largest * math.sqrt(float(spacing @ spacing))
