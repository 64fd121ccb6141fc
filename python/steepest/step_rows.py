"""From the arrays of one step to its rows: inner products of every block, rounding floor, lag-1 products."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from steepest import _core
from steepest.alignment import PairProducts, Status, pair_products, scaled, status_of
from steepest.arrays import ArrayOrMapping, Layout, LongVector, long_vector, widened
from steepest.row_format import DTYPE_CODE, NAN, NO_LAG, STATUS_CODE

__all__ = ["StepData", "difference", "fill_skipped", "fill_step", "ordered", "part"]


@dataclass(frozen=True)
class StepData:
    """Views of what is known of one step, all of one layout.

    Attributes
    ----------
    grad, update, params : LongVector or None
        At this step; `params` only if `update` is a difference of parameters.
    loss, time : float
        NaN if unknown.
    """

    grad: LongVector | None
    update: LongVector | None
    params: LongVector | None
    loss: float
    time: float


def fill_step(
    rows: NDArray[np.void], number: int, data: StepData, previous: StepData | None = None, resumed: bool = False
) -> None:
    """Compute the rows of one step.

    Parameters
    ----------
    rows : ndarray, shape (number of blocks,)
        Structured, to be written.
    number : int
        Of the step.
    data : StepData
        Of the step.
    previous : StepData, optional
        Of step ``number - 1``, for rows with lag.
    resumed : bool
        Whether the step is the first after a resume.
    """
    spacings = None if data.params is None else _spacings(data.params)
    lagged = "lag_yy" in (rows.dtype.names or ())
    for block in range(len(rows)):
        if block == 1 and len(rows) == 2:  # one named array is the whole vector
            rows[1] = rows[0]
            rows[1]["block"] = 1
            break
        y, g = (None if v is None else v if block == 0 else part(v, block - 1) for v in (data.grad, data.update))
        status, dtype, p = _pair(y, g)
        floor = NAN
        if spacings is not None:
            spacing = math.hypot(*spacings) if block == 0 else spacings[block - 1]
            floor = math.atan2(spacing / math.sqrt(12.0), scaled(math.sqrt(p.gg), p.g_exponent))
        row: tuple[Any, ...] = (
            number, STATUS_CODE[status], resumed, DTYPE_CODE.get(dtype, -1), block, data.time, data.loss,
            *p[:-1], floor, b"",
        )  # fmt: skip
        rows[block] = row + _lag_products(y, previous, block) if lagged else row


def fill_skipped(rows: NDArray[np.void], number: int, time: float, note: bytes, resumed: bool = False) -> None:
    """Write the rows of a step that the training loop skipped.

    Parameters
    ----------
    rows : ndarray, shape (number of blocks,)
        Structured, to be written.
    number : int
        Of the step.
    time : float
        When.
    note : bytes
        Why, at most `NOTE_BYTES` long.
    resumed : bool
        Whether the step is the first after a resume.
    """
    for name in rows.dtype.names or ():
        rows[name] = NAN if rows.dtype[name].kind == "f" else 0
    rows["step"], rows["time"], rows["note"], rows["resumed"] = number, time, note, resumed
    rows["status"], rows["dtype"], rows["block"] = STATUS_CODE["skipped"], -1, np.arange(len(rows))


def part(x: LongVector, i: int) -> LongVector:
    """One array of a long vector.

    Parameters
    ----------
    x : LongVector
        All arrays.
    i : int
        Which one.

    Returns
    -------
    LongVector
        The same memory.
    """
    return LongVector([x.segments[i]], Layout(None, (x.layout.shapes[i],)), (x.dtypes[i],))


def _pair(y: LongVector | None, g: LongVector | None) -> tuple[Status, str, PairProducts]:
    """Status, coarser dtype and inner products; NaN for what is missing."""
    if y is not None and g is not None:
        dtype, p = pair_products(y, g)
        return status_of(p), dtype, p
    yy = gg = (NAN, NAN, 0)
    if y is not None:
        yy = _square(y)
    if g is not None:
        gg = _square(g)
    p = PairProducts(yy[0], NAN, gg[0], yy[1], NAN, gg[1], yy[2], gg[2], NAN, NAN, NAN, True)
    present = y or g
    return "no_update" if g is None else "no_gradient", "" if present is None else present.coarsest, p


def _square(x: LongVector) -> tuple[float, float, int]:
    gram = _core.gram([x.segments])
    return float(gram.hi[0, 0]), float(gram.bound[0, 0]), gram.exponents[0]


def _lag_products(y: LongVector | None, previous: StepData | None, block: int) -> tuple[float | int, ...]:
    if y is None or previous is None or previous.grad is None or previous.update is None:
        return NO_LAG
    y0, g0 = (v if block == 0 else part(v, block - 1) for v in (previous.grad, previous.update))
    gram = _core.gram([y.segments, y0.segments, g0.segments])
    hi, bound, (e, e_y, e_g) = gram.hi, gram.bound, gram.exponents
    return float(hi[0, 1]), float(bound[0, 1]), float(hi[0, 2]), float(bound[0, 2]), e + e_y, e + e_g


def _spacings(params: LongVector) -> list[float]:
    """2-norm of the distances to the next number, for each array."""
    return [_spacing_norm(s, dtype) for s, dtype in zip(params.segments, params.dtypes, strict=True)]


# Of float64 and float32: integers of their width, the bits of the exponent, eps, and what a sum of squares must exceed
# for numbers without an exponent (zero, subnormal) not to matter.
_EXPONENT_BITS = {
    "float64": (np.uint64, np.uint64(0x7FF << 52), 2.0**-52, 1e-270),
    "float32": (np.uint32, np.uint32(0xFF << 23), 2.0**-23, 1e-55),
}


def _spacing_norm(segment: NDArray[Any], dtype: str) -> float:
    total = 0.0
    # In pieces: no second long vector.
    pieces = np.nditer(segment, flags=["external_loop", "buffered"], order="K", buffersize=1 << 14)
    for piece in pieces:
        total = math.hypot(total, _spacing_norm_of_piece(cast("Any", piece), dtype))
    return total


def _spacing_norm_of_piece(x: NDArray[Any], dtype: str) -> float:
    """2-norm of the spacings; NaN if one is not finite."""
    if dtype in _EXPONENT_BITS:  # the spacing is eps times the power of two that is left without the mantissa
        integer, bits, eps, negligible = _EXPONENT_BITS[dtype]
        power = (x.view(integer) & bits).view(dtype).astype(np.float64, copy=False)
        with np.errstate(over="ignore", invalid="ignore"):
            square = float(power @ power)
        if negligible < square < math.inf:
            return eps * math.sqrt(square)
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype == "bfloat16":  # the exponents of float32 and 16 bits less: the numbers lie 2^16 times wider
            spacing = np.spacing(np.abs(widened(x, dtype)).astype(np.float32)) * np.float64(65536)
        else:
            spacing = np.spacing(np.abs(x)).astype(np.float64)
    largest = float(spacing.max())
    if not math.isfinite(largest):
        return NAN
    spacing /= largest  # squares of subnormal numbers would vanish
    return largest * math.sqrt(float(spacing @ spacing))


def difference(after: LongVector, before: LongVector) -> LongVector:
    """params_next - params; bfloat16 in float64, where it is exact.

    Parameters
    ----------
    after, before : LongVector
        Of one layout.

    Returns
    -------
    LongVector
        In the wider dtype of the two.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        segments = [
            np.asarray(np.subtract(_computable(a, i), _computable(b, j)))
            for a, i, b, j in zip(after.segments, after.dtypes, before.segments, before.dtypes, strict=True)
        ]
    return LongVector(segments, after.layout, tuple(s.dtype.name for s in segments))


def _computable(segment: NDArray[Any], dtype: str) -> NDArray[Any]:
    return widened(segment, dtype) if dtype == "bfloat16" else segment


def ordered(x: ArrayOrMapping, name: str, layout: Layout | None) -> LongVector:
    """Views of a long vector, in the order of the names of another one.

    Parameters
    ----------
    x : array or mapping
        What the user handed in.
    name : str
        Of the argument.
    layout : Layout, optional
        With the same names; whether the shapes agree is not checked here.

    Returns
    -------
    LongVector
        Views.
    """
    if isinstance(x, Mapping) and layout is not None and layout.names is not None and set(x) == set(layout.names):
        x = {key: x[key] for key in layout.names}
    return long_vector(x, name)
