"""Central differences of each parameter, and along random directions (SPSA)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from steepest.arrays import EPSILON, long_vector, template_of, to_user
from steepest.gradient_estimate.estimate import Flat, GradientEstimate, GradientSamples, cut

__all__ = ["Point", "SignSamples", "central", "positive_integer", "spsa"]


class Point:
    """Parameters and the loss of others near by.

    Parameters
    ----------
    loss : callable
        ``loss(params) -> float``.
    params : array or mapping
        Where the gradient is sought.

    Raises
    ------
    ValueError
        Parameters that are not finite.
    """

    def __init__(self, loss: Callable[[Any], Any], params: Any) -> None:
        vector = long_vector(params, "params")
        self._loss, self._template, self._layout = loss, template_of(params), vector.layout
        self.flat = vector.flat()
        if not np.isfinite(self.flat).all():
            raise ValueError("expected finite params, got NaN or Inf")
        self.eps = EPSILON[vector.coarsest]
        self.evaluations = 0

    def at(self, flat: Flat) -> tuple[float, Flat]:
        """The loss at another point.

        Parameters
        ----------
        flat : ndarray, shape (n,)
            The point.

        Returns
        -------
        loss : float
            Finite.
        rounded : ndarray, shape (n,)
            The point as it is after rounding to the type of the parameters.
        """
        given = self.shaped(flat)
        # Before the loss sees it: a loss may write to its argument.
        rounded = long_vector(given, "params").flat()
        self.evaluations += 1
        return _number(self._loss(given)), rounded

    def shaped(self, flat: Flat) -> Any:
        """A vector in the form of the parameters.

        Parameters
        ----------
        flat : ndarray, shape (n,)
            The vector.

        Returns
        -------
        array or mapping
            A copy.
        """
        return to_user(cut(flat, self._layout), self._template)


def central(point: Point, step: float | None) -> GradientEstimate:
    """Central differences, with the truncation error from a second difference at twice the step.

    Parameters
    ----------
    point : Point
        Where.
    step : float, optional
        Of each parameter.

    Returns
    -------
    GradientEstimate
        From 4 n losses.

    Raises
    ------
    ValueError
        A step that is lost in rounding.
    """
    x = point.flat
    h = np.full(x.size, step) if step is not None else np.cbrt(point.eps) * np.maximum(1.0, np.abs(x))
    gradient, variance = np.empty(x.size), np.empty(x.size)
    moved = x.copy()
    for i in range(x.size):
        slopes, largest, width = [], 0.0, math.inf
        for factor in (1.0, 2.0):
            moved[i] = x[i] + factor * h[i]
            ahead, there = point.at(moved)
            moved[i] = x[i] - factor * h[i]
            behind, here = point.at(moved)
            distance = float(there[i] - here[i])
            if not distance > 0.0:
                raise ValueError(f"step {h[i]:.3g} is lost in the rounding of params, element {i} = {x[i]:.6g}")
            slopes.append((ahead - behind) / distance)
            largest, width = max(largest, abs(ahead), abs(behind)), min(width, distance)
        moved[i] = x[i]
        gradient[i] = slopes[0]
        variance[i] = ((slopes[1] - slopes[0]) / 3.0) ** 2 + (2.0 * point.eps * largest / width) ** 2
    return GradientEstimate(
        point.shaped(gradient), point.shaped(variance), point.evaluations, "central", float(h.max())
    )


def spsa(point: Point, step: float | None, n_directions: int, rng: np.random.Generator) -> GradientEstimate:
    """The mean of the slopes along random directions, times these.

    Parameters
    ----------
    point : Point
        Where.
    step : float, optional
        Of every parameter.
    n_directions : int
        Number of directions.
    rng : Generator
        Seeds them.

    Returns
    -------
    GradientEstimate
        From 2 losses for each direction.

    Raises
    ------
    ValueError
        A step that is lost in rounding.
    """
    x, k = point.flat, positive_integer(n_directions, "n_directions")
    c = step if step is not None else float(np.cbrt(point.eps)) * max(1.0, float(np.sqrt(np.mean(np.square(x)))))
    samples = SignSamples(np.empty(k), int(rng.integers(2**63)), x.size)
    for i, d in enumerate(samples.directions()):
        (ahead, there), (behind, here) = point.at(x + c * d), point.at(x - c * d)
        if not (there != here).any():
            raise ValueError(f"step {c:.3g} is lost in the rounding of params; give a larger one")
        samples.slopes[i] = (ahead - behind) / (2.0 * c)
    mean, variance = samples.moments()
    return GradientEstimate(
        point.shaped(mean), point.shaped(variance), point.evaluations, "spsa", c, samples, None, k - 1
    )


@dataclass(frozen=True, eq=False)
class SignSamples(GradientSamples):
    """Slopes along directions of random signs, times these.

    Attributes
    ----------
    slopes : ndarray, shape (N,)
        Of the loss.
    seed : int
        Of the directions.
    size : int
        Number of parameters.
    """

    slopes: Flat
    seed: int
    size: int

    def directions(self) -> Iterator[Flat]:
        """Run over the directions.

        Yields
        ------
        ndarray, shape (n,)
            Signs.
        """
        rng = np.random.default_rng(self.seed)
        for _ in range(len(self)):
            yield np.where(rng.integers(2, size=self.size) > 0, 1.0, -1.0)

    def __len__(self) -> int:
        return len(self.slopes)

    def __iter__(self) -> Iterator[Flat]:
        return (slope * d for slope, d in zip(self.slopes, self.directions(), strict=True))


def positive_integer(value: int, name: str) -> int:
    """A number of things.

    Parameters
    ----------
    value : int
        What came.
    name : str
        Of the argument.

    Returns
    -------
    int
        At least 1.

    Raises
    ------
    ValueError
        It is none.
    """
    if value != int(value) or value < 1:
        raise ValueError(f"expected {name} to be a positive integer, got {value!r}")
    return int(value)


def _number(x: Any) -> float:
    try:
        value = float(x.detach() if hasattr(x, "detach") else x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"expected loss(params) to be a number, got {x!r}") from error
    if not math.isfinite(value):
        raise ValueError(f"expected a finite loss, got {value}")
    return value
