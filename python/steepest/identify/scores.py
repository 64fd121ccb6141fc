"""Scores of a fit on held-out steps, with intervals from resampling blocks of steps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["block_length", "interval", "r2"]

Array = NDArray[np.float64]
RESAMPLES = 2000
LEVEL = 0.95


def r2(residual: Any, norm: Any) -> float:
    """Share that is explained, ``1 - sum residual / sum norm``; NaN if there is nothing to explain.

    Parameters
    ----------
    residual, norm : array_like
        Squared norms of what is left and of all, one for each step.

    Returns
    -------
    float
        At most 1, below 0 where M = 0 would be better.
    """
    total = float(np.sum(norm))
    return 1.0 - float(np.sum(residual)) / total if total > 0.0 else math.nan


def block_length(x: Array) -> int:
    """Length of blocks for the circular block bootstrap of the mean of a series.

    Parameters
    ----------
    x : ndarray, shape (T,)
        The series.

    Returns
    -------
    int
        From 1 to about T/4.

    Notes
    -----
    Politis and White (2004), with the correction of Patton, Politis and White (2009): the autocovariances up to twice
    the lag behind which K_T of them in a row are insignificant, under a flat-top window.
    """
    T = len(x)
    x = x - x.mean() if T else x
    variance = float(x @ x) / max(T, 1)
    if T < 8 or not variance > 0.0:
        return 1
    longest = math.ceil(math.sqrt(T)) + max(5, math.ceil(math.log10(T)))
    longest = min(longest, T - 1)
    covariance = np.array([float(x[: T - k] @ x[k:]) / T for k in range(longest + 1)])
    small = np.abs(covariance[1:] / variance) < 2.0 * math.sqrt(math.log10(T) / T)
    run = max(5, math.ceil(math.sqrt(math.log10(T))))
    ends = [k for k in range(longest - run + 1) if small[k : k + run].all()]
    significant = np.flatnonzero(~small)
    last = ends[0] if ends else int(significant[-1]) + 1 if significant.size else 0
    if last == 0:
        return 1
    bandwidth = min(2 * last, longest)
    lags = np.arange(-bandwidth, bandwidth + 1)
    window = np.clip(2.0 * (1.0 - np.abs(lags) / bandwidth), 0.0, 1.0)
    values = covariance[np.abs(lags)]
    spread, level = float(np.sum(window * np.abs(lags) * values)), float(np.sum(window * values))
    if level <= 0.0:
        return 1
    length = (2.0 * spread**2 / (4.0 / 3.0 * level**2)) ** (1.0 / 3.0) * T ** (1.0 / 3.0)
    return int(min(max(1, math.ceil(length)), max(1, T // 4)))


def interval(
    residual: Array, norm: Array, rng: np.random.Generator, length: int | None = None
) -> tuple[float, float, int]:
    """Interval of 95% for `r2` over steps: circular block bootstrap, percentiles of 2000 resamples.

    Parameters
    ----------
    residual, norm : ndarray, shape (T,)
        One for each step. `residual` may be a difference of two, for the difference of two scores.
    rng : numpy.random.Generator
        For the resampling.
    length : int, optional
        Of the blocks; by default `block_length` of what a step adds to the score.

    Returns
    -------
    low, high : float
        NaN for fewer than 4 steps.
    length : int
        Of the blocks.

    Notes
    -----
    For the metric that was fitted: what other training steps would have given is not part of it. Memory: 2000 T/length
    numbers.
    """
    T = len(norm)
    total = float(norm.sum())
    if T < 4 or not total > 0.0:
        return math.nan, math.nan, 1
    if length is None:
        length = block_length(residual - float(residual.sum()) / total * norm)
    count = math.ceil(T / length)

    def block_sums(x: Array) -> Array:
        sums = np.concatenate([[0.0], np.cumsum(np.concatenate([x, x[:length]]))])
        return np.asarray(sums[length : T + length] - sums[:T])

    of_residual, of_norm = block_sums(residual), block_sums(norm)
    scores = np.empty(RESAMPLES)
    for begin in range(0, RESAMPLES, 200):
        starts = rng.integers(0, T, (200, count))
        norms = of_norm[starts].sum(axis=1)
        left = of_residual[starts].sum(axis=1)
        scores[begin : begin + 200] = 1.0 - np.divide(left, norms, out=np.ones(200), where=norms > 0.0)
    low, high = np.quantile(scores, [(1.0 - LEVEL) / 2.0, (1.0 + LEVEL) / 2.0])
    return float(low), float(high), length
