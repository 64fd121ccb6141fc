"""Where on a step the Taylor formula with a remainder of second order holds exactly: the points of eq (16)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq

__all__ = ["LIMIT", "taylor_points"]

#: The point towards which s tends as the step becomes short, where the third derivative along it is not zero.
LIMIT = 1.0 / 3.0


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
