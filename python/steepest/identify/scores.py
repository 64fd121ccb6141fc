"""Scores of a fit on held-out steps, with intervals from resampling blocks of steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

__all__ = ["BlockLength", "beyond_chance", "block_length", "interval", "r2", "ratio", "resampled"]

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
RESAMPLES = 2000
_AT_ONCE = 1 << 16  # blocks that are drawn at a time: few calls for short runs, little memory for long ones
LEVEL = 0.95
_ONCE_IN_200 = 0.995
_MOST_LOST = 0.75  # share of the variance that blocks may lose by their ends before it is no estimate any more


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


@dataclass(frozen=True)
class BlockLength:
    """Blocks for the bootstrap of the mean of a series.

    Attributes
    ----------
    steps : int
        Length of a block.
    widening : float
        By what the interval of the bootstrap is too narrow: blocks cut the correlation at their ends, and few of them
        vary less than they should.
    """

    steps: int
    widening: float = 1.0


def block_length(x: Array) -> BlockLength:
    """Length of blocks for the circular block bootstrap of the mean of a series.

    Parameters
    ----------
    x : ndarray, shape (T,)
        The series.

    Returns
    -------
    BlockLength
        From 1 to about T/4 steps.

    Notes
    -----
    Politis and White (2004), with the correction of Patton, Politis and White (2009): the autocovariances up to twice
    the lag behind which K_T of them in a row are insignificant, under a flat-top window. With their G = sum |k| R(k)
    and long-run variance s = sum R(k), blocks of length l give a variance that is too small by the factor
    1 - G/(l s); and T/l blocks call for Student's t with T/l - 1 degrees of freedom in place of the normal law
    (derived).
    """
    T = len(x)
    x = x - x.mean() if T else x
    variance = float(x @ x) / max(T, 1)
    if T < 8 or not variance > 0.0:
        return BlockLength(1, _of_few(T))
    longest = math.ceil(math.sqrt(T)) + max(5, math.ceil(math.log10(T)))
    longest = min(longest, T - 1)
    covariance = np.array([float(x[: T - k] @ x[k:]) / T for k in range(longest + 1)])
    small = np.abs(covariance[1:] / variance) < 2.0 * math.sqrt(math.log10(T) / T)
    run = max(5, math.ceil(math.sqrt(math.log10(T))))
    ends = [k for k in range(longest - run + 1) if small[k : k + run].all()]
    significant = np.flatnonzero(~small)
    last = ends[0] if ends else int(significant[-1]) + 1 if significant.size else 0
    if last == 0:
        return BlockLength(1, _of_few(T))
    bandwidth = min(2 * last, longest)
    lags = np.arange(-bandwidth, bandwidth + 1)
    window = np.clip(2.0 * (1.0 - np.abs(lags) / bandwidth), 0.0, 1.0)
    values = covariance[np.abs(lags)]
    spread, level = float(np.sum(window * np.abs(lags) * values)), float(np.sum(window * values))
    if level <= 0.0:
        return BlockLength(1, _of_few(T))
    length = (2.0 * spread**2 / (4.0 / 3.0 * level**2)) ** (1.0 / 3.0) * T ** (1.0 / 3.0)
    steps = int(min(max(1, math.ceil(length)), max(1, T // 4)))
    lost = min(max(spread / (level * steps), 0.0), _MOST_LOST)
    return BlockLength(steps, _of_few(T / steps) / math.sqrt(1.0 - lost))


def _of_few(blocks: float) -> float:
    """How much wider an interval from few blocks has to be than one from many."""
    if blocks <= 2.0:
        return 1.0
    student = float(stdtrit(blocks - 1.0, 0.5 + LEVEL / 2.0))
    return student / float(ndtri(0.5 + LEVEL / 2.0)) * math.sqrt(blocks / (blocks - 1.0))


def resampled(
    columns: Array, statistic: Statistic, influence: Array, rng: np.random.Generator
) -> tuple[float, float, int]:
    """Interval of 95% for a function of sums over steps: circular block bootstrap, 2000 resamples.

    Parameters
    ----------
    columns : ndarray, shape (T, k)
        What is summed, one row for each step.
    statistic : callable
        Of sums of shape (..., k), values of shape (...).
    influence : ndarray, shape (T,)
        What each step adds to the statistic, to first order: its correlation decides the length of the blocks.
    rng : numpy.random.Generator
        For the resampling.

    Returns
    -------
    low, high : float
        Percentiles, moved away from the estimate by `BlockLength.widening`; NaN for fewer than 4 steps.
    length : int
        Of the blocks.

    Notes
    -----
    Memory: the larger of 400 T/length and 2^18 numbers.
    """
    T = len(columns)
    if T < 4:
        return math.nan, math.nan, 1
    blocks = block_length(influence)
    length = blocks.steps
    count = math.ceil(T / length)
    sums = np.concatenate([np.zeros((1, columns.shape[1])), np.cumsum(np.concatenate([columns, columns[:length]]), 0)])
    of_blocks = np.ascontiguousarray((sums[length : T + length] - sums[:T]).T)  # sums over long rows are fast
    scores = np.empty(RESAMPLES)
    some = min(max(200, _AT_ONCE // count), RESAMPLES)
    for begin in range(0, RESAMPLES, some):
        starts = rng.integers(0, T, (min(some, RESAMPLES - begin), count))
        scores[begin : begin + some] = statistic(np.moveaxis(of_blocks.take(starts, axis=1).sum(axis=-1), 0, -1))
    estimate = float(statistic(columns.sum(axis=0)))
    low, high = np.quantile(scores, [(1.0 - LEVEL) / 2.0, (1.0 + LEVEL) / 2.0])
    widened = [estimate + blocks.widening * (float(end) - estimate) for end in (low, high)]
    return widened[0], widened[1], length


def interval(residual: Array, norm: Array, rng: np.random.Generator) -> tuple[float, float, int]:
    """Interval of 95% for `r2` over steps; see `resampled`.

    Parameters
    ----------
    residual, norm : ndarray, shape (T,)
        One for each step. `residual` may be a difference of two, for the difference of two scores.
    rng : numpy.random.Generator
        For the resampling.

    Returns
    -------
    low, high : float
        NaN for fewer than 4 steps.
    length : int
        Of the blocks.

    Notes
    -----
    For the metric that was fitted: what other training steps would have given is not part of it.
    """
    total = float(norm.sum())
    if not total > 0.0:
        return math.nan, math.nan, 1
    influence = residual - float(residual.sum()) / total * norm
    return resampled(
        np.stack([residual, norm], axis=1), lambda sums: 1.0 - ratio(sums[..., 0], sums[..., 1]), influence, rng
    )


def beyond_chance(residual: Array, norm: Array) -> float:
    """How far chance takes `r2` below its expectation once in 200 runs.

    Unlike `interval` it does not rest on an estimate of the correlation, which few steps cannot give.

    Parameters
    ----------
    residual, norm : ndarray, shape (T,)
        One for each step.

    Returns
    -------
    float
        Student's quantile times the standard error from the means of about sqrt(T) batches of as many steps; infinite
        for fewer than two batches.
    """
    T, total = len(residual), float(norm.sum())
    length = max(1, math.ceil(math.sqrt(T)))
    count = T // length
    if count < 2 or not total > 0.0:
        return math.inf
    influence = (residual - float(residual.sum()) / total * norm) / (total / T)
    means = influence[: count * length].reshape(count, length).mean(axis=1)
    return float(stdtrit(count - 1.0, _ONCE_IN_200) * np.std(means, ddof=1) / math.sqrt(count))


def ratio(a: Array, b: Array) -> Array:
    """Quotient where b > 0, and 1 where it is not.

    Parameters
    ----------
    a, b : ndarray
        Of one shape.

    Returns
    -------
    ndarray
        A score of 0 where there is nothing to explain.
    """
    return np.divide(a, b, out=np.ones_like(b), where=b > 0.0)
