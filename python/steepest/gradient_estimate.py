"""A gradient for those who have losses only: finite differences, random directions, or a recorded trajectory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import EPSILON, Layout, LongVector, long_vector, template_of, to_user

__all__ = ["GradientEstimate", "estimate_gradient"]

Method = Literal["central", "spsa", "trajectory-regression"]
METHODS = ("central", "spsa", "trajectory-regression")
Flat = NDArray[np.float64]


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
        Number of losses used.
    method : str
        How it was made.
    step : float
        Size of the perturbation, the largest one of all elements; NaN for a trajectory.
    """

    gradient: Any
    variance: Any
    evaluations: int
    method: str
    step: float


def estimate_gradient(
    loss: Any,
    params: Any,
    method: Method = "central",
    *,
    rng: np.random.Generator | int | None = None,
    step: float | None = None,
    n_directions: int = 100,
) -> GradientEstimate:
    """Estimate dL/dtheta from losses, with the variance of each element.

    Parameters
    ----------
    loss : callable or array_like
        ``loss(params) -> float``; for 'trajectory-regression' the T + 1 recorded losses.
    params : array or mapping name -> array
        Where the gradient is sought; float64, float32, float16 or bfloat16. For 'trajectory-regression' the T + 1
        recorded parameters, first axis = step.
    method : {'central', 'spsa', 'trajectory-regression'}
        'central': central differences of each element, 4 n losses. 'spsa': two losses for each of `n_directions` random
        directions. 'trajectory-regression': least squares of the loss changes of recorded steps on the displacements.
    rng : Generator, int or None
        Draws the directions of 'spsa'.
    step : float, optional
        Perturbation of each element. Default: eps^(1/3) of the coarsest type of the parameters, times max(1, |element|)
        ('central') or max(1, root mean square of all) ('spsa').
    n_directions : int
        For 'spsa'; at least 2 for a variance.

    Returns
    -------
    GradientEstimate
        Gradient and variance in the form of the parameters.

    Raises
    ------
    ValueError
        Unknown method; losses that are not finite; a trajectory with fewer steps than parameters, or whose
        displacements do not span all directions; a step that is lost in the rounding of the parameters.
    TypeError
        Unsupported types.

    Notes
    -----
    All derived. 'central': the error is the truncation error (D(2h) - D(h))/3 from a second difference at twice the
    step, and the rounding error eps |L|/h, added in squares; the loss is taken to be as accurate as the type of the
    parameters. Noise of the loss shows in it too.

    'spsa' (Spall 1992): the mean over directions d of random signs of [L(th + c d) - L(th - c d)]/(2c) d; up to O(c^2)
    unbiased, variance of element i (|grad L|^2 - grad_i^2)/K for K directions, estimated from the K samples.

    'trajectory-regression': one gradient for the whole trajectory, so it is an average, and its variance (residual
    variance times the diagonal of (D^T D)^{-1}) holds as far as the loss is linear along it and the residuals are
    independent; NaN when there are as many steps as parameters. O(T n^2).

    Perturbing nodes (activities in place of parameters) needs access to the layers of a model, which a loss function
    does not give, and is not offered.

    Examples
    --------
    >>> from steepest.gradient_estimate import estimate_gradient
    >>> import numpy as np
    >>> found = estimate_gradient(lambda x: float(x @ x), np.array([1.0, -2.0]))
    >>> found.gradient.round(6).tolist(), found.evaluations
    ([2.0, -4.0], 8)
    """
    if method == "trajectory-regression":
        return _regression(loss, params)
    if method not in METHODS:
        why = (
            "; perturbing nodes needs the activities of a model, which a loss function of the parameters does not give"
        )
        raise ValueError(f"expected method one of {METHODS}, got {method!r}{why if 'node' in str(method) else ''}")
    if not callable(loss):
        raise TypeError(f"expected loss to be callable for method {method!r}, got {type(loss).__name__}")
    if step is not None and not 0.0 < step < math.inf:
        raise ValueError(f"expected a positive, finite step, got {step!r}")
    point = _Point(loss, params)
    if method == "central":
        return _central(point, step)
    return _spsa(point, step, n_directions, np.random.default_rng(rng))


class _Point:
    """Parameters and the loss of others near by."""

    def __init__(self, loss: Callable[[Any], Any], params: Any) -> None:
        vector = long_vector(params, "params")
        self._loss, self._template, self._layout = loss, template_of(params), vector.layout
        self.flat = vector.flat()
        if not np.isfinite(self.flat).all():
            raise ValueError("expected finite params, got NaN or Inf")
        self.eps = EPSILON[vector.coarsest]
        self.evaluations = 0

    def at(self, flat: Flat) -> tuple[float, Flat]:
        """The loss, and the point as it is after rounding to the type of the parameters."""
        given = self.shaped(flat)
        # Before the loss sees it: a loss may write to its argument.
        rounded = long_vector(given, "params").flat()
        self.evaluations += 1
        return _number(self._loss(given)), rounded

    def shaped(self, flat: Flat) -> Any:
        return to_user(_cut(flat, self._layout), self._template)


def _central(point: _Point, step: float | None) -> GradientEstimate:
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


def _spsa(point: _Point, step: float | None, n_directions: int, rng: np.random.Generator) -> GradientEstimate:
    if n_directions != int(n_directions) or n_directions < 1:
        raise ValueError(f"expected n_directions to be a positive integer, got {n_directions!r}")
    x, k = point.flat, int(n_directions)
    c = step if step is not None else float(np.cbrt(point.eps)) * max(1.0, float(np.sqrt(np.mean(np.square(x)))))
    total, squares = np.zeros(x.size), 0.0
    for _ in range(k):
        signs = rng.integers(2, size=x.size) * 2.0 - 1.0
        (ahead, there), (behind, here) = point.at(x + c * signs), point.at(x - c * signs)
        if not (there != here).any():
            raise ValueError(f"step {c:.3g} is lost in the rounding of params; give a larger one")
        slope = (ahead - behind) / (2.0 * c)
        total += slope * signs
        squares += slope * slope  # of every element alike
    mean = total / k
    variance = np.maximum(squares / k - np.square(mean), 0.0) / (k - 1) if k > 1 else np.full(x.size, math.nan)
    return GradientEstimate(point.shaped(mean), point.shaped(variance), point.evaluations, "spsa", c)


def _regression(losses: Any, params: Any) -> GradientEstimate:
    whole = long_vector(params, "params")
    lengths = {shape[0] if shape else None for shape in whole.layout.shapes}
    count = next(iter(lengths))
    if len(lengths) > 1 or count is None:
        raise ValueError(f"expected the first axis of params to run over the steps, got {whole.layout}")
    layout = Layout(whole.layout.names, tuple(shape[1:] for shape in whole.layout.shapes))
    if callable(losses):
        raise TypeError("expected loss to be the recorded losses for method 'trajectory-regression', got a callable")
    recorded = long_vector(losses, "loss")
    if recorded.layout.names is not None or recorded.layout.shapes[0] != (count,):
        raise ValueError(f"expected loss of shape ({count},), one for each row of params, got {recorded.layout}")
    n, steps = layout.size, count - 1
    if steps < n:
        raise ValueError(
            f"expected at least as many steps as parameters, got {steps} steps of {n} parameters: the losses leave "
            f"{n - steps} directions of the gradient open; record more steps, or use method 'spsa'"
        )
    changes = np.diff(recorded.flat())
    moves = np.diff(_rows(whole, count), axis=0)
    if not (np.isfinite(changes).all() and np.isfinite(moves).all()):
        raise ValueError("expected finite params and losses, got NaN or Inf")
    # Columns of one length: parameters may differ in scale.
    scale = np.linalg.norm(moves, axis=0)
    scale[scale == 0.0] = 1.0
    U, values, Vt = np.linalg.svd(moves / scale, full_matrices=False)
    rank = int(np.sum(values > values[0] * max(moves.shape) * EPSILON["float64"])) if values[0] > 0.0 else 0
    if rank < n:
        raise ValueError(
            f"expected displacements that span all {n} directions, got rank {rank}: the losses leave {n - rank} "
            "directions of the gradient open"
        )
    gradient = Vt.T @ (U.T @ changes / values) / scale
    residual = changes - moves @ gradient
    noise = float(residual @ residual) / (steps - n) if steps > n else math.nan
    variance = noise * np.square(Vt / values[:, None]).sum(axis=0) / np.square(scale)
    template = _first(params)
    found = (to_user(_cut(x, layout), template) for x in (gradient, variance))
    return GradientEstimate(next(found), next(found), count, "trajectory-regression", math.nan)


def _rows(whole: LongVector, count: int) -> Flat:
    """One row for each step."""
    sizes = [size // count for size in whole.layout.sizes]
    flat = np.split(whole.flat(), np.cumsum(whole.layout.sizes)[:-1])
    return np.concatenate([x.reshape(count, size) for x, size in zip(flat, sizes, strict=True)], axis=1)


def _first(params: Any) -> Any:
    params = template_of(params)
    if hasattr(params, "items"):
        return {name: _first(x) for name, x in params.items()}
    return (np.asarray(params) if isinstance(params, list | tuple) else params)[0, ...]


def _number(x: Any) -> float:
    try:
        value = float(x.detach() if hasattr(x, "detach") else x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"expected loss(params) to be a number, got {x!r}") from error
    if not math.isfinite(value):
        raise ValueError(f"expected a finite loss, got {value}")
    return value


def _cut(flat: Flat, layout: Layout) -> list[Flat]:
    ends = np.cumsum(layout.sizes).tolist()
    return [
        flat[end - size : end].reshape(shape)
        for size, end, shape in zip(layout.sizes, ends, layout.shapes, strict=True)
    ]
