"""The discrete gradient that is the mean of the gradient over the segment, by quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from steepest.pairs.descent_pair import DescentPair
from steepest.pairs.finite_step import FiniteStep, norm

__all__ = ["mean_value"]


def mean_value(step: FiniteStep, grad_fn: Callable[[Any], Any], n_nodes: int) -> DescentPair:
    """Gauss-Legendre rules of n_nodes and n_nodes - 2 nodes for the integral of the gradient over the segment.

    Parameters
    ----------
    step : FiniteStep
        The step.
    grad_fn : callable
        ``grad_fn(params)``.
    n_nodes : int
        At least 3.

    Returns
    -------
    DescentPair
        By the longer rule; `error` is the norm of the difference to the shorter one.

    Raises
    ------
    ValueError
        Fewer nodes, or gradients of another shape.
    """
    if n_nodes != int(n_nodes) or n_nodes < 3:
        raise ValueError(f"expected n_nodes to be an integer of at least 3, got {n_nodes!r}")
    weights: dict[float, list[float]] = {}
    for which, n in enumerate((int(n_nodes), int(n_nodes) - 2)):
        nodes, ws = np.polynomial.legendre.leggauss(n)
        for x, w in zip(nodes.tolist(), ws.tolist(), strict=True):
            # Odd rules share the midpoint.
            weights.setdefault(0.5 * (1.0 + x), [0.0, 0.0])[which] += 0.5 * w
    shapes = step.start.layout.shapes
    sums = [[np.zeros(shape) for shape in shapes] for _ in range(2)]
    for s, both in weights.items():
        found = step.gradient_at(grad_fn, s)
        for total, w in zip(sums, both, strict=True):
            for i, segment in enumerate(found.segments):
                total[i] += w * segment
    error = math.hypot(*[norm(a - b) for a, b in zip(*sums, strict=True)])
    return step.own(sums[0], "mean-value", error)
