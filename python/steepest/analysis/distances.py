"""Distance between the metrics of consecutive steps, from recorded inner products: section 5."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from steepest import _core
from steepest.analysis.pair_rows import chunks
from steepest.progress import shown
from steepest.row_format import STATUS_CODE
from steepest.twofold import Twofold

__all__ = ["metric_distances"]

Array = NDArray[np.float64]
Rows = NDArray[np.void]

# M_opt = alpha (I + yh yh^T - gh gh^T) with the unit vectors of -grad and update; the four columns are those of the
# step before and of this one.
_BEFORE, _NOW = np.diag([1.0, -1.0, 0.0, 0.0]), np.diag([0.0, 0.0, 1.0, -1.0])


def metric_distances(
    rows_of: Callable[[slice], Rows], step: NDArray[np.int64], sizes: tuple[int, ...], progress: str | None = None
) -> tuple[Array, Array, Array]:
    """Affine-invariant distance between the condition-optimal metrics of the step before and each step.

    Parameters
    ----------
    rows_of : callable
        Range of steps -> rows with lag, shape (steps, blocks).
    step : ndarray, shape (T,)
        Numbers of the steps.
    sizes : tuple of int
        Number of parameters of each block.
    progress : str, optional
        Label of a progress bar.

    Returns
    -------
    distance, bulk, plane : ndarray, shape (T, blocks)
        NaN where one of the two steps has no metric or was not recorded.

    Notes
    -----
    Of the continuous pairs. The 4 x 4 Gram matrix of the unit vectors and the eigenvalues are in double-double, so that
    metrics that differ by 1e-9 still compare; some 25 microseconds a row.
    """
    shape = (len(step), len(sizes))
    bulk, plane = np.full(shape, np.nan), np.full(shape, np.nan)
    parts = shown(list(chunks(*shape)), progress is not None, f"distances of {progress}")
    dimensions = np.array(sizes)
    for part in parts:
        if part.stop < 2:
            continue
        start = max(part.start, 1)
        rows = rows_of(slice(start - 1, part.stop))
        ok = rows["status"] == STATUS_CODE["ok"]
        numbers = step[start - 1 : part.stop]
        usable = ok[1:] & ok[:-1] & (np.diff(numbers) == 1)[:, None] & np.isfinite(rows["lag_gg"][1:, :, 0])
        t, b = np.nonzero(usable)
        before, now = rows[t, b], rows[t + 1, b]
        log_ratio, high, low = _unit_gram(before, now)
        logs = _core.low_rank_log_ratios(1.0, _BEFORE, 1.0, _NOW, high, low)
        # NaN everywhere: an angle so near 90 degrees that the metric is singular to working precision.
        rank = np.isfinite(logs).sum(axis=1)
        plane[start + t, b] = np.where(rank > 0, np.sqrt(np.nansum((logs + log_ratio[:, None]) ** 2, axis=1)), np.nan)
        bulk[start + t, b] = np.where(rank > 0, np.sqrt(dimensions[b] - rank) * np.abs(log_ratio), np.nan)
    return np.hypot(bulk, plane), bulk, plane


def _unit_gram(before: Rows, now: Rows) -> tuple[Array, Array, Array]:
    """log(alpha_now/alpha_before), and the Gram matrices of unit vectors -grad, update of both, high and low parts."""
    squares = [(rows, kind) for rows in (before, now) for kind in ("y", "g")]
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        norms = [_own(rows, 2 * kind).sqrt() for rows, kind in squares]
        exponents = [rows[f"{kind}_exponent"] for rows, kind in squares]
        inner = {(0, 1): (_own(before, "yg"), exponents[0] + exponents[1])}
        inner[2, 3] = _own(now, "yg"), exponents[2] + exponents[3]
        for i in (0, 1):
            for j in (2, 3):
                name = f"lag_{squares[j][1]}{squares[i][1]}"
                inner[i, j] = (
                    Twofold(now[name][:, 0], now[name + "_lo"][:, 0]),
                    now[name + "_exponent"][:, 0],
                )
        high, low = np.zeros((len(now), 4, 4)), np.zeros((len(now), 4, 4))
        high[:, range(4), range(4)] = 1.0
        for (i, j), (product, exponent) in inner.items():
            unit = product.ldexp(exponent - exponents[i] - exponents[j]) / (norms[i] * norms[j])
            sign = -1.0 if i % 2 != j % 2 else 1.0  # of -grad and update
            high[:, i, j] = high[:, j, i] = sign * unit.hi
            low[:, i, j] = low[:, j, i] = sign * np.asarray(unit.lo)
        # alpha = yy / (-yg)
        ratio = (_own(now, "yy") * _own(before, "yg")) / (_own(before, "yy") * _own(now, "yg"))
        shift = (exponents[2] - exponents[3]) - (exponents[0] - exponents[1])
        near = ratio.ldexp(np.clip(shift, -60, 60)) - Twofold(np.ones(len(now)))
        difference = near.hi + near.lo
        logs = np.where(
            (np.abs(difference) < 0.5) & (np.abs(shift) < 60),
            np.log1p(np.maximum(difference, -0.6)),
            np.log(np.abs(ratio.hi)) + shift * np.log(2.0),
        )
    return logs, high, low


def _own(rows: Rows, name: str) -> Twofold:
    return Twofold(rows[name], rows[name + "_lo"])
