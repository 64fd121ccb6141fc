"""An estimated gradient, and what its sampling error follows from."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import Layout

__all__ = ["GradientEstimate", "GradientSamples", "cut"]

Flat = NDArray[np.float64]


class GradientSamples(ABC):
    """N independent estimates of one gradient, of which nothing is kept that can be made again from a seed."""

    @abstractmethod
    def __len__(self) -> int:
        """N."""

    @abstractmethod
    def __iter__(self) -> Iterator[Flat]:
        """Run over the estimates, float64 of shape (n,): the same ones every time."""

    def moments(self) -> tuple[Flat, Flat]:
        """Mean of the estimates, and variance of each element of it.

        Returns
        -------
        mean, variance : ndarray, shape (n,)
            The variance is NaN for a single estimate.
        """
        mean: Flat = np.zeros(1)
        about: Flat = np.zeros(1)
        for count, sample in enumerate(self, start=1):
            off = sample - mean
            mean = mean + off / count
            about = about + off * (sample - mean)  # Welford: no cancellation where the noise is small
        n = len(self)
        return mean, about / (n * (n - 1)) if n > 1 else np.full(mean.size, math.nan)


@dataclass(frozen=True, eq=False)
class GradientEstimate:
    """A gradient that was estimated from losses.

    Attributes
    ----------
    gradient : array or mapping
        In the form of the parameters.
    variance : array or mapping
        Variance of each element, the diagonal of the covariance; NaN where the data do not give it. For 'central' the
        square of an estimate of the error, which is no noise.
    evaluations : int
        Number of losses used; for 'node-perturbation' of calls, each of which gives one loss for every example.
    method : str
        How it was made.
    step : float
        Size of the perturbation, the largest one of all elements; NaN for a trajectory.
    samples : GradientSamples or None
        'spsa', 'node-perturbation': the independent estimates that `gradient` is the mean of.
    covariance : ndarray, shape (n, n), or None
        'trajectory-regression': the whole of it, since the elements are correlated.
    degrees_of_freedom : float
        Of the variance.
    """

    gradient: Any
    variance: Any
    evaluations: int
    method: str
    step: float
    samples: GradientSamples | None = field(default=None, repr=False)
    covariance: Flat | None = field(default=None, repr=False)
    degrees_of_freedom: float = math.inf


def cut(flat: Flat, layout: Layout) -> list[Flat]:
    """Views of the arrays of a long vector.

    Parameters
    ----------
    flat : ndarray, shape (n,)
        All elements in order.
    layout : Layout
        Their shapes.

    Returns
    -------
    list of ndarray
        One for each array.
    """
    ends = np.cumsum(layout.sizes).tolist()
    return [
        flat[end - size : end].reshape(shape)
        for size, end, shape in zip(layout.sizes, ends, layout.shapes, strict=True)
    ]
