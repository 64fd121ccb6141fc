"""Curvature of the loss along the update, and by how much the step could grow: section 7, from recorded data."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["curvature_and_bound"]

Array = NDArray[np.float64]


def curvature_and_bound(rows: NDArray[np.void], dloss: NDArray[Any]) -> tuple[Array, Array]:
    """Second derivative of the loss along the step, and the factor by which the step could grow.

    Parameters
    ----------
    rows : ndarray, shape (steps,)
        Of the whole vector.
    dloss : ndarray, shape (steps,)
        L_{t+1} - L_t of ONE function; NaN if unknown.

    Returns
    -------
    curvature : ndarray, shape (steps,)
        h = 2 (dL - grad.d)/(d.d).
    step_bound : ndarray, shape (steps,)
        2 lam_min(Md)/|h| of the left discrete gradient, infinite for h >= 0; NaN where the loss does not fall.

    Notes
    -----
    Section 7, "Recorded-data version of (17)" (derived). dL and grad.d cancel: h carries the error of the losses over
    d.d.
    """
    exponent = rows["y_exponent"] + rows["g_exponent"]
    yy, yg, gg = rows["yy"], rows["yg"], rows["gg"]
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        change = np.ldexp(dloss, -exponent)
        h = 2.0 * (((change - yg) - rows["yg_lo"]) / gg)
        # Of the left discrete gradient: |DG|^2 |d|^2 = sin^2 |grad|^2 |d|^2 + dL^2, DG.d = dL.
        across = np.where(yy == 0.0, 0.0, rows["sine"]) * np.sqrt(yy) * np.sqrt(gg)
        sine = across / np.hypot(across, change)
        least = -change / gg / (1.0 + sine)
        bound = np.where(h >= 0.0, np.inf, 2.0 * least / np.abs(h))
        known = np.isfinite(h)
        curvature = np.where(known, np.ldexp(h, rows["y_exponent"] - rows["g_exponent"]), np.nan)
    return curvature, np.where(known & (dloss < 0.0), bound, np.nan)
