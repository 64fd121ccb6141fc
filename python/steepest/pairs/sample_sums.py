"""Unbiased inner products of expectations, from one pass over independent samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import Layout, LongVector, widened
from steepest.step_rows import ordered

__all__ = [
    "Estimate",
    "Samples",
    "Statistic",
    "Sums",
    "noise_of_mean",
    "sample_sums",
    "standard_error",
    "u_statistic",
]

Array = NDArray[np.float64]
# Numbers of one block of samples in float64.
_BLOCK = 2**20


class Estimate(NamedTuple):
    """A number estimated from samples.

    Attributes
    ----------
    value : float
        Unbiased.
    standard_error : float
        Of `value`; NaN where the samples do not give it.
    """

    value: float
    standard_error: float


class Statistic(NamedTuple):
    """An unbiased estimate with what its error follows from.

    Attributes
    ----------
    value : float
        The estimate.
    influence : ndarray, shape (N,)
        Its linear part for each sample.
    left_out : ndarray, shape (N,)
        Its values when one sample is left out.
    """

    value: float
    influence: Array
    left_out: Array

    @property
    def estimate(self) -> Estimate:
        """The value with its standard error."""
        return Estimate(self.value, standard_error(self.influence))


@dataclass(frozen=True)
class Samples:
    """N long vectors, each array with a first axis of samples.

    Attributes
    ----------
    whole : LongVector
        All of them.
    layout : Layout
        Of one.
    n : int
        N.
    """

    whole: LongVector
    layout: Layout
    n: int

    @classmethod
    def of(cls, x: Any, name: str, like: Samples | None) -> Samples:
        """Views of the samples of the user.

        Parameters
        ----------
        x : array or mapping
            First axis = sample.
        name : str
            Of the argument.
        like : Samples, optional
            Of the same shape.

        Returns
        -------
        Samples
            Views.

        Raises
        ------
        ValueError
            No common first axis, fewer than 2 samples, or not the shape of `like`.
        """
        whole = ordered(x, name, None if like is None else like.layout)
        lengths = {shape[0] if shape else None for shape in whole.layout.shapes}
        n = next(iter(lengths))
        if len(lengths) > 1 or n is None:
            raise ValueError(f"expected the first axis of {name} to run over the samples, got {whole.layout}")
        if n < 2:
            raise ValueError(f"expected at least 2 samples of {name} along the first axis, got {whole.layout}")
        if like is not None and whole.layout != like.whole.layout:
            raise ValueError(f"expected {name} of the same shape as update, {like.whole.layout}, got {whole.layout}")
        return cls(whole, Layout(whole.layout.names, tuple(shape[1:] for shape in whole.layout.shapes)), n)

    @property
    def coarsest(self) -> str:
        """The element type with the largest rounding unit."""
        return self.whole.coarsest


class Sums(NamedTuple):
    """What one pass over the samples gives, for y the gradients (not negated) and g the updates.

    Attributes
    ----------
    n : int
        Number of samples N.
    yy, yg, gg : Statistic
        E[y].E[y], E[y].E[g], E[g].E[g].
    y_noise, g_noise : float
        tr Cov/N.
    sine_squared : float
        Of the angle between all y_i and all g_i, each stacked to one vector; NaN without samples of y.
    y_mean, g_mean : list of ndarray
        Sample means, in float64.
    products : ndarray, shape (N,)
        y_i.g_i.
    """

    n: int
    yy: Statistic
    yg: Statistic
    gg: Statistic
    y_noise: float
    g_noise: float
    sine_squared: float
    y_mean: list[Array]
    g_mean: list[Array]
    products: Array


def sample_sums(y: Samples | LongVector, g: Samples) -> Sums:
    """One pass over the samples, in blocks of columns.

    Parameters
    ----------
    y : Samples or LongVector
        Gradients, or the one without noise.
    g : Samples
        Updates.

    Returns
    -------
    Sums
        Sums in float64. O(N n): U statistics and leave-one-out values need the row sums and the diagonals of the Gram
        matrix of the samples alone.
    """
    n = g.n
    # y.sum(y), y.sum(g), g.sum(y), g.sum(g), and the diagonals y.y, y.g, g.g
    rows, diagonals = np.zeros((4, n)), np.zeros((3, n))
    full = 0.0
    means: tuple[list[Array], list[Array]] = ([], [])
    width = max(1, _BLOCK // n)
    y_vector = y.whole if isinstance(y, Samples) else y
    for i, size in enumerate(g.layout.sizes):
        G, Y = g.whole.segments[i].reshape(n, size), y_vector.segments[i].reshape(-1, size)
        y_mean, g_mean = np.empty(size), np.empty(size)
        for at in range(0, size, width):
            columns = slice(at, at + width)
            b = widened(G[:, columns], g.whole.dtypes[i])
            a = widened(Y[:, columns], y_vector.dtypes[i])
            a_sum, b_sum = a.sum(axis=0), b.sum(axis=0)
            y_mean[columns], g_mean[columns] = a_sum / len(a), b_sum / n
            rows[2] += b @ a_sum
            rows[3] += b @ b_sum
            diagonals[2] += np.einsum("ij,ij->i", b, b)
            if isinstance(y, Samples):
                rows[0] += a @ a_sum
                rows[1] += a @ b_sum
                diagonals[0] += np.einsum("ij,ij->i", a, a)
                diagonals[1] += np.einsum("ij,ij->i", a, b)
            else:
                full += float(a_sum @ a_sum)
        means[0].append(y_mean.reshape(g.layout.shapes[i]))
        means[1].append(g_mean.reshape(g.layout.shapes[i]))
    gg, g_noise = u_statistic(rows[3], rows[3], diagonals[2]), noise_of_mean(rows[3], diagonals[2])
    if not isinstance(y, Samples):
        left = (rows[2].sum() - rows[2]) / (n - 1)
        yy = Statistic(full, np.zeros(n), np.full(n, full))
        yg = Statistic(float(rows[2].mean()), rows[2], left)
        return Sums(n, yy, yg, gg, 0.0, g_noise, math.nan, *means, rows[2])
    products = diagonals.sum(axis=1)
    sine_squared = math.nan
    if products[0] > 0.0 and products[2] > 0.0:
        sine_squared = 1.0 - float((products[1] / products[0]) * (products[1] / products[2]))
    return Sums(
        n,
        u_statistic(rows[0], rows[0], diagonals[0]),
        u_statistic(rows[1], rows[2], diagonals[1]),
        gg,
        noise_of_mean(rows[0], diagonals[0]),
        g_noise,
        sine_squared,
        *means,
        diagonals[1],
    )


def u_statistic(ab: Array, ba: Array, diagonal: Array) -> Statistic:
    """Unbiased estimate of E[a].E[b].

    Parameters
    ----------
    ab, ba, diagonal : ndarray, shape (N,)
        a_i.sum(b), b_i.sum(a) and a_i.b_i.

    Returns
    -------
    Statistic
        The U statistic.
    """
    n = len(diagonal)
    total = float(ab.sum() - diagonal.sum())
    left = (total - ab - ba + 2.0 * diagonal) / ((n - 1) * (n - 2)) if n > 2 else np.full(n, math.nan)
    return Statistic(total / (n * (n - 1)), (ab + ba) / n, left)


def noise_of_mean(rows: Array, diagonal: Array) -> float:
    """Unbiased estimate of tr Cov/N.

    Parameters
    ----------
    rows, diagonal : ndarray, shape (N,)
        a_i.sum(a) and a_i.a_i.

    Returns
    -------
    float
        At least 0.
    """
    n = len(diagonal)
    return max(0.0, float(diagonal.sum() - rows.sum() / n) / (n * (n - 1)))


def standard_error(x: Array) -> float:
    """Standard error of the mean.

    Parameters
    ----------
    x : ndarray, shape (N,)
        Independent numbers.

    Returns
    -------
    float
        std/sqrt(N).
    """
    return float(np.std(x, ddof=1)) / math.sqrt(len(x))
