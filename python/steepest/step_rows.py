"""From the arrays of one step to its rows: inner products of every block, also with earlier steps, rounding floor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest import _core
from steepest.alignment import angle_tolerance, scaled
from steepest.arrays import EPSILON, ArrayOrMapping, Layout, LongVector, long_vector
from steepest.block_products import (
    MISSING,
    LagProducts,
    Pair,
    Product,
    angle_of,
    lag_of,
    normalized,
    pair_of,
    status_of,
    statuses_of,
    sum_of_lags,
    sum_of_pairs,
)
from steepest.parameter_difference import Difference, StepPass
from steepest.rounding_floor import angle_floor, rounding_norm
from steepest.row_format import DTYPE_CODE, LAG_PRODUCTS, NAN, STATUS_CODE

__all__ = [
    "StepData",
    "coarsest_of_blocks",
    "fill_lags",
    "fill_pairs",
    "fill_skipped",
    "fill_step",
    "lag_of_rows",
    "ordered",
    "scalar_row",
]

Triple = tuple[float, float, float]
Arrays = Sequence[NDArray[Any] | None]


@dataclass(frozen=True)
class StepData:
    """Views of what is known of one step, all of one layout.

    Attributes
    ----------
    grad, update : LongVector or None
        At this step.
    spacings : list of float or None
        Of the parameters, if `update` is a difference of them: see `rounding_floor.spacing_norms`.
    loss, time : float
        NaN if unknown.
    layout : Layout
        Of all.
    dtypes : list of str
        The coarser element type of grad and update in each array, as handed in; empty if both are missing.
    base : list of ndarray, optional
        Diagonal metric of the units, one array for each of the layout.
    decay_share : float
        Of decoupled weight decay in the update; NaN if unknown.
    sums : StepPass, optional
        A pass over `grad` and the parameters, in place of `update`.
    """

    grad: LongVector | None
    update: LongVector | None
    spacings: list[float] | None
    loss: float
    time: float
    layout: Layout
    dtypes: list[str]
    base: list[NDArray[Any]] | None = None
    decay_share: float = NAN
    sums: StepPass | None = None


def fill_step(
    rows: NDArray[np.void],
    number: int,
    data: StepData,
    previous: Sequence[StepData | None] = (),
    resumed: bool = False,
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
    previous : sequence of StepData or None
        Of the steps ``number - 1``, ``number - 2``, ..., for rows with lag; None where there is none.
    resumed : bool
        Whether the step is the first after a resume.

    Notes
    -----
    Each vector is read once for a lag of 0, unless sign or angle need a better pass, and ``lag`` times more otherwise:
    the products of the whole vector are sums over its arrays.
    """
    lag = lag_of_rows(rows)
    names, n_arrays = data.layout.names, len(data.layout.shapes)
    y, g = data.grad, data.update
    ys, gs, dtypes = _segments(y, n_arrays), _segments(g, n_arrays), data.dtypes or [""] * n_arrays
    bases = [None] * n_arrays if data.base is None else data.base
    spacings = [NAN] * n_arrays if data.spacings is None else data.spacings
    if n_arrays > 1:
        coarsest = max(dtypes, key=EPSILON.__getitem__) if dtypes[0] else ""
        dtypes, spacings = [coarsest, *dtypes], [math.hypot(*spacings), *spacings]
    tolerances = [0.0 if lag or not dtype else angle_tolerance(dtype) for dtype in dtypes]
    # Below the rounding floor an angle means nothing: no second pass over the vectors of plain gradient descent for it.
    roundings = [0.0 if lag or math.isnan(spacing) else rounding_norm(spacing) for spacing in spacings]
    squares, products = [r * r for r in roundings], None
    if n_arrays > 1 and data.sums is not None:
        products = data.sums.products(tolerances, squares)
    elif n_arrays > 1 and y is not None and g is not None and data.base is None:
        first = "compensated" if lag else "fast"
        products = _core.segment_angle_grams(y.segments, g.segments, tolerances, squares, first)
    if products is not None:
        rows["step"], rows["resumed"], rows["note"] = number, resumed, b""
        rows["time"], rows["loss"], rows["decay_share"] = data.time, data.loss, data.decay_share
        fill_pairs(rows, products, dtypes, np.array(spacings))
        if lag:
            _fill_lags_of_step(rows, [data, *previous[:lag]], lag)
        return
    if data.sums is not None:
        pairs = [_pair_of(data.sums.products(2 * tolerances, 2 * squares)[0].tolist())]
    else:
        pairs = list(map(pair_of, ys, gs, tolerances[-n_arrays:], bases, roundings[-n_arrays:]))
    if n_arrays > 1:
        whole = sum_of_pairs(pairs, tolerances[0])
        if whole is None:
            ys_all, gs_all = (None if x is None else x.segments for x in (y, g))
            whole = pair_of(ys_all, gs_all, tolerances[0], data.base, roundings[0])
        pairs.insert(0, whole)
    lags = _lags(previous[:lag], ys, gs, lag)
    present = y is not None, g is not None or data.sums is not None
    table = []
    for block, p in enumerate(pairs):
        floor = angle_floor(spacings[block], scaled(math.sqrt(p.gg), p.g_exponent))
        table.append((
            number, STATUS_CODE[status_of(*present, p)], resumed, DTYPE_CODE.get(dtypes[block], -1), block,
            data.time, data.loss, *p[:14], floor, data.decay_share, b"", *_lag_fields(lags[block]),
        ))  # fmt: skip
    rows[: len(table)] = table
    if n_arrays == 1 and names is not None:  # one named array is the whole vector
        rows[1] = rows[0]
        rows[1]["block"] = 1


def _pair_of(row: list[float]) -> Pair:
    """From a row of the core."""
    return Pair._make([*row[:9], int(row[9]), int(row[10]), *row[11:14], bool(row[14]), False])


def fill_pairs(
    rows: NDArray[np.void], products: NDArray[np.float64], dtypes: Sequence[str], spacings: NDArray[np.float64]
) -> None:
    """What rows hold of the pairs, field by field: a row by itself costs five microseconds, and there are thousands.

    Parameters
    ----------
    rows : ndarray, shape (..., blocks)
        Structured, to be written.
    products : ndarray, shape (..., blocks, 15)
        Of the core's ``segment_angle_grams``, of each block.
    dtypes : sequence of str
        Element type of each block.
    spacings : ndarray, shape (..., blocks)
        See `StepData`, NaN where there are none.
    """
    rows["block"], rows["dtype"] = np.arange(rows.shape[-1]), [DTYPE_CODE[name] for name in dtypes]
    rows["status"] = statuses_of(products.reshape(-1, products.shape[-1])).reshape(rows.shape)
    for i, name in enumerate(Pair._fields[:14]):
        rows[name] = products[..., i]
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.ldexp(np.sqrt(products[..., 2]), products[..., 10].astype(np.int32))
        rows["psi_floor"] = np.arctan2(rounding_norm(spacings), norms)


def fill_lags(
    rows: NDArray[np.void],
    products: NDArray[np.float64],
    vectors: Callable[[int, int], tuple[Arrays, Arrays] | None],
) -> None:
    """What rows hold of the products with earlier steps.

    Parameters
    ----------
    rows : ndarray, shape (steps, blocks)
        Structured, with lag, to be written.
    products : ndarray, shape (steps, lag, 1 + arrays, 4, 3)
        Of the core's ``segment_cross_products``, NaN where the vectors are missing, zero, not finite, or have to be
        scaled: these are read again, array by array.
    vectors : callable (t, j) -> (arrays, arrays) or None
        Gradient and update j steps before the t-th, None where there is no such step; single arrays may be None.
    """
    table = np.concatenate([products, np.zeros((*products.shape[:-1], 1))], axis=-1)
    for t, j in np.argwhere(np.isnan(products[:, :, :, 0, 0]).any(axis=-1)).tolist():
        here, before = vectors(t, 0), vectors(t, j + 1)
        if here is None or before is None:
            continue
        (ys, gs), (y0s, g0s), one = here, before, table[t, j]
        odd = np.flatnonzero(np.isnan(products[t, j, 1:, 0, 0])).tolist()
        for i in odd:
            one[i + 1] = lag_of(ys[i], gs[i], y0s[i], g0s[i])
        if np.isnan(products[t, j, 0, 0, 0]):
            one[0] = one[1] if len(one) == 2 else sum_of_lags([_lag_products(x) for x in one[1:].tolist()])
    by_block = table.swapaxes(1, 2)[:, : rows.shape[1]]  # steps, blocks, lag, products, numbers
    for k, name in enumerate(LAG_PRODUCTS):
        for i, part in enumerate(("", "_lo", "_bound", "_exponent")):
            rows[name + part] = by_block[:, :, :, k, i]


def _lag_products(numbers: list[list[float]]) -> LagProducts:
    yy, yg, gy, gg = (Product(hi, lo, bound, int(exponent)) for hi, lo, bound, exponent in numbers)
    return yy, yg, gy, gg


def _fill_lags_of_step(rows: NDArray[np.void], steps: Sequence[StepData | None], lag: int) -> None:
    """Of a step of several arrays with those before it, in one pass over the vectors of both."""
    n_arrays = len(rows) - 1
    products = np.full((1, lag, len(rows), len(LAG_PRODUCTS), 3), NAN)
    pairs = [None if one is None or one.grad is None or one.update is None else (one.grad, one.update) for one in steps]
    assert pairs[0] is not None  # or it has no products
    y, g = pairs[0]
    for j, before in enumerate(pairs[1:]):
        if before is not None:
            products[0, j] = _core.segment_cross_products(y.segments, g.segments, *(x.segments for x in before))

    def vectors(_: int, j: int) -> tuple[Arrays, Arrays] | None:
        one = steps[j] if j < len(steps) else None
        if one is None or (one.grad is None and one.update is None):
            return None
        return _segments(one.grad, n_arrays), _segments(one.update, n_arrays)

    fill_lags(rows[None], products, vectors)


def _lags(
    previous: Sequence[StepData | None],
    ys: Arrays,
    gs: Arrays,
    lag: int,
) -> list[list[LagProducts | None]]:
    """The products with the steps before, of the whole vector if it has several arrays, and of each array."""
    lags: list[list[LagProducts | None]] = [[None] * lag for _ in ys]
    for j, before in enumerate(previous):
        if before is not None:
            y0s, g0s = _segments(before.grad, len(ys)), _segments(before.update, len(ys))
            for own, products in zip(lags, map(lag_of, ys, gs, y0s, g0s), strict=True):
                own[j] = products
    if len(ys) > 1:
        lags.insert(0, [sum_of_lags(one) if None not in one else None for one in map(list, zip(*lags, strict=True))])
    return lags


def scalar_row(
    rows: NDArray[np.void],
    number: int,
    block: int,
    dtype: str,
    yy: Triple | None,
    yg: Triple | None,
    gg: Triple | None,
    *,
    y_exponent: int = 0,
    g_exponent: int = 0,
    psi_floor: float = NAN,
    loss: float = NAN,
    time: float = NAN,
    decay_share: float = NAN,
    sign_flip_variance: float = NAN,
    lags: Sequence[LagProducts | None] = (),
) -> None:
    """Fill one row with inner products that were formed elsewhere: on an accelerator, in a jitted loop.

    Parameters
    ----------
    rows : ndarray, shape (number of blocks,)
        Structured, of `row_dtype`; ``rows[block]`` is written.
    number : int
        Of the step.
    block : int
        Place in `Recording.blocks`.
    dtype : str
        The coarser element type of grad and update, one of `FLOAT_NAMES`.
    yy, yg, gg : tuple of float (hi, lo, bound), or None
        grad.grad, grad.update, update.update: the exact product is within `bound` of hi + lo. None where a vector is
        missing.
    y_exponent, g_exponent : int
        Powers of two by which grad and update were divided first.
    psi_floor, loss, time, decay_share, sign_flip_variance : float
        As the fields of the row.
    lags : sequence of LagProducts or None
        With step ``number - 1``, ``number - 2``, ...

    Raises
    ------
    ValueError
        grad.update is missing although both vectors are there, or the other way round.

    Notes
    -----
    A product that is not finite gives status ``nonfinite``. Where `bound` exceeds the product, the sign of grad.update
    is ``undecided``. A sum of squares of exactly 0 says that the vector is zero, so squares must not underflow there.
    """
    if (yg is None) != (yy is None or gg is None):
        raise ValueError("expected grad.update where there is a gradient and an update, and only there")
    parts = [MISSING if p is None else normalized(*p) for p in (yy, yg, gg)]
    finite = all(math.isfinite(x) for p in (yy, yg, gg) if p is not None for x in p)
    cosine = sine = NAN
    if not finite:
        parts = [MISSING] * 3
    elif parts[0].hi > 0.0 and parts[2].hi > 0.0:
        cosine, sine = angle_of(*parts)
    square, inner, last = parts
    p = Pair(
        square.hi, inner.hi, last.hi, square.lo, inner.lo, last.lo, square.bound, inner.bound, last.bound,
        y_exponent, g_exponent, cosine, sine, sign_flip_variance, finite,
    )  # fmt: skip
    lag = lag_of_rows(rows)
    known = [*lags[:lag], *[None] * (lag - len(lags))]
    rows[block] = (
        number, STATUS_CODE[status_of(yy is not None, gg is not None, p)], False, DTYPE_CODE[dtype], block, time, loss,
        *p[:14], psi_floor, decay_share, b"", *_lag_fields(known),
    )  # fmt: skip


def fill_skipped(
    rows: NDArray[np.void], blocks: int, number: int, time: float, note: bytes, resumed: bool = False
) -> None:
    """Write the rows of a step that the training loop skipped.

    Parameters
    ----------
    rows : ndarray, shape (candidates * blocks,)
        Structured, to be written.
    blocks : int
        Number of blocks.
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
        rows[name] = NAN if rows.dtype[name].base.kind == "f" else 0
    rows["step"], rows["time"], rows["note"], rows["resumed"] = number, time, note, resumed
    rows["status"], rows["dtype"], rows["block"] = STATUS_CODE["skipped"], -1, np.arange(len(rows)) % blocks


def coarsest_of_blocks(y: LongVector | None, g: LongVector | Difference | None) -> list[str]:
    """The coarser element type in each array.

    Parameters
    ----------
    y, g : LongVector, Difference or None
        Gradient and update of one layout.

    Returns
    -------
    list of str
        Empty if both are missing.
    """
    if y is None or g is None:
        x = g if y is None else y
        return [] if x is None else [*x.dtypes]
    return [a if EPSILON[a] >= EPSILON[b] else b for a, b in zip(y.dtypes, g.dtypes, strict=True)]


def lag_of_rows(rows: NDArray[np.void]) -> int:
    """With how many earlier steps rows have products.

    Parameters
    ----------
    rows : ndarray
        Structured, of `row_dtype`.

    Returns
    -------
    int
        0 if with none.
    """
    return rows.dtype["lag_yy"].shape[0] if "lag_yy" in (rows.dtype.names or ()) else 0


def _segments(x: LongVector | None, n: int) -> Arrays:
    return [None] * n if x is None else x.segments


def _lag_fields(lags: Sequence[LagProducts | None]) -> tuple[tuple[float, ...], ...]:
    """In the order of `row_dtype`."""
    if not lags:
        return ()
    columns = list(zip(*((MISSING,) * 4 if one is None else one for one in lags), strict=True))
    numbers = (tuple(p[i] for p in column) for column in columns for i in range(3))
    return *numbers, *(tuple(p.exponent for p in column) for column in columns)


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
