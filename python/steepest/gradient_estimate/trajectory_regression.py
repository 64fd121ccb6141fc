"""Least squares of the loss changes of recorded steps on the displacements."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from steepest.arrays import EPSILON, Layout, LongVector, long_vector, template_of, to_user
from steepest.gradient_estimate.estimate import Flat, GradientEstimate, cut

__all__ = ["trajectory_regression"]


def trajectory_regression(losses: Any, params: Any) -> GradientEstimate:
    """One gradient for a whole trajectory.

    Parameters
    ----------
    losses : array_like of shape (T + 1,)
        Recorded losses.
    params : array or mapping
        Recorded parameters, first axis = step.

    Returns
    -------
    GradientEstimate
        With its whole covariance.

    Raises
    ------
    ValueError
        Fewer steps than parameters, or displacements that do not span all directions; values that are not finite.
    TypeError
        Losses that are a callable.
    """
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
    root = Vt.T / values / scale[:, None]  # covariance = noise root root^T
    covariance = noise * (root @ root.T)
    template = _first(params)
    found, variance = (to_user(cut(x, layout), template) for x in (gradient, np.diag(covariance).copy()))
    return GradientEstimate(
        found, variance, count, "trajectory-regression", math.nan, None, covariance, float(steps - n)
    )


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
