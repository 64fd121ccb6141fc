"""Where on a step the Taylor formula with a remainder of second order holds exactly: the points of eq (16)."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from steepest.arrays import EPSILON, LongVector, to_user, widened
from steepest.pairs.descent_pair import LIMIT, DescentPair, rational_gram
from steepest.pairs.finite_step import FiniteStep, norm

__all__ = ["taylor", "taylor_points"]


def taylor_points(
    curvature: Callable[[float], tuple[float, float]], target: float, rounding: tuple[float, float], n_scan: int
) -> tuple[float, ...]:
    """All s in (0, 1) at which the curvature along a step takes the value that Taylor's formula asks for.

    Parameters
    ----------
    curvature : callable
        ``curvature(s)`` = ``d^T H(params + s d) d`` and a bound on what rounding does to it.
    target : float
        ``2 (dL - grad.d)``.
    rounding : tuple of two floats
        What rounding does to `target` as a rule, and at worst, where the terms of the losses cancel.
    n_scan : int
        Equal intervals in which a change of sign is looked for.

    Returns
    -------
    tuple of float
        Ascending. Empty if the curvature differs from `target` by rounding alone: throughout, or at its nearest where
        it does not pass it. Then no s is better than another.

    Raises
    ------
    ValueError
        No change of sign on the scan, or a curvature that is not finite.

    Notes
    -----
    Eq (16) (reconstructed). A root exists (derived): ``target`` is the mean of the curvature with weight 2 (1 - s), so
    the difference of the two has mean zero, and if it is continuous and not zero throughout, it changes sign inside
    (0, 1). So a scan that is fine enough finds it. Roots closer than 1/n_scan may be missed in pairs. Cost: n_scan + 1
    curvatures, and about 8 for each root.
    """
    from scipy.optimize import brentq  # 40 ms that the import of the package need not take

    nodes = np.linspace(0.0, 1.0, n_scan + 1).tolist()
    scanned = [curvature(s) for s in nodes]
    residuals = np.array([value - target for value, _ in scanned])
    if not np.isfinite(residuals).all():
        s = nodes[int(np.argmin(np.isfinite(residuals)))]
        raise ValueError(f"expected hvp to be finite on the segment, got d.Hd = {curvature(s)[0]} at s = {s:.6g}")
    if np.abs(residuals).max() <= rounding[0] + max(r for _, r in scanned):
        return ()
    points = [s for s, r in zip(nodes[1:-1], residuals[1:-1].tolist(), strict=True) if r == 0.0]
    signs = np.sign(residuals)
    points += [
        brentq(lambda s: curvature(s)[0] - target, nodes[i], nodes[i + 1], xtol=2.0**-52)
        for i in np.flatnonzero(signs[:-1] * signs[1:] < 0.0)
    ]
    if not points:
        least = int(np.argmin(np.abs(residuals)))
        if abs(residuals[least]) <= rounding[1] + scanned[least][1]:
            return ()
        low, high = residuals.min() + target, residuals.max() + target
        raise ValueError(
            f"expected d.H(params + s d)d to pass 2 (loss_next - loss - grad.d) = {target:.6g} for an s in (0, 1), as "
            f"for every loss with continuous second derivatives; got values in [{low:.6g}, {high:.6g}] at {n_scan + 1} "
            f"points, with the least residual {residuals[least]:.3g} at s = {nodes[least]:.6g}, of which rounding "
            f"explains {rounding[1]:.2g}: raise n_scan, or check that loss, grad and hvp belong to one function"
        )
    return tuple(sorted(points))


def taylor(step: FiniteStep, grad: Any, hvp: Callable[[Any, Any], Any], n_scan: int) -> DescentPair:
    """``grad + H(params + s d) d / 2``, with an s for which it is a discrete gradient.

    Parameters
    ----------
    step : FiniteStep
        The step.
    grad : array or mapping
        At params.
    hvp : callable
        ``hvp(params, vector)``.
    n_scan : int
        Intervals of the scan.

    Returns
    -------
    DescentPair
        With what it takes to evaluate H at that point again: `DescentPair.taylor_point`.

    Raises
    ------
    ValueError
        No such point on the scan; numbers out of range.
    """
    if n_scan != int(n_scan) or n_scan < 1:
        raise ValueError(f"expected n_scan to be an integer of at least 1, got {n_scan!r}")
    start, moves = step.matched(grad, "grad"), step.displacement.segments
    vector = to_user(moves, step.template)
    one, length = Fraction(1), math.hypot(*map(norm, moves))
    gram = rational_gram((start, step.displacement))
    points: tuple[float, ...] = ()

    def product(s: float) -> LongVector:
        return step.copied(hvp(step.point(s), vector), "the result of hvp")

    if gram.finite and length > 0.0:
        middle = product(LIMIT)  # now the coarsest type is known
        # Of losses too, which are sums over at least as many terms in the same arithmetic, as a rule.
        unit = 8.0 * math.sqrt(step.start.size) * EPSILON[step.coarsest]

        def curvature(s: float) -> tuple[float, float]:
            segments = middle.segments if s == LIMIT else product(s).segments
            value = sum(float(np.sum(a * b)) for a, b in zip(segments, moves, strict=True))
            return value, unit * length * math.hypot(*map(norm, segments))

        first = gram.product((one, one * 0), (one * 0, one))
        slope = math.hypot(*[norm(widened(x, t)) for x, t in zip(start.segments, start.dtypes, strict=True)])
        # Terms of the loss may be larger than the loss: about as large as what the gradient says for params itself.
        size = math.hypot(*map(norm, step.starts()))
        usual = 2.0 * unit * (step.loss_scale + slope * length)
        rounding = usual, usual + 2.0 * unit * slope * size
        try:
            target = float(2 * (step.loss_change - first))
        except OverflowError as error:
            raise ValueError(
                f"|grad| = {slope:.6g} times |params_next - params| = {length:.6g} is out of the range of float64: "
                "rescale the loss or the parameters"
            ) from error
        points = taylor_points(curvature, target, rounding, int(n_scan))
    gradients = {"grad": start, "hessian @ displacement": product(points[0] if points else LIMIT)}
    return step.corrected("taylor", gradients, grad, (one, one / 2), taylor_points=points, start=step.start)
