"""What follows from cosine, sine and the ratio of the norms: angle, null band, spectrum; all steps and blocks at once.

The vectorised twins of `steepest.spectral` and `steepest.alignment.from_products`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtri

__all__ = ["LEVEL", "angle", "isotropic_half_width", "sign_flip_half_width", "spectrum"]

Array = NDArray[np.float64]

LEVEL = 0.95


def angle(cosine: Array, sine: Array, floor: Array) -> dict[str, NDArray[Any]]:
    """Angle between -grad and update, and whether it is within rounding.

    Parameters
    ----------
    cosine, sine, floor : ndarray
        NaN where there is none.

    Returns
    -------
    dict
        ``psi`` in rad and ``within_rounding``, False where there is no angle.
    """
    psi = np.arctan2(sine, cosine)
    return {"psi": psi, "within_rounding": psi < floor}


def isotropic_half_width(sizes: tuple[int, ...]) -> Array:
    """Half width, about 90 degrees, of the band of angles of random directions, at level 0.95.

    Parameters
    ----------
    sizes : tuple of int
        Number of parameters of each block.

    Returns
    -------
    ndarray, shape (number of blocks,)
        In rad; exact: the squared cosine has a Beta(1/2, (n-1)/2) distribution.
    """
    n = np.array(sizes, dtype=np.float64)
    squared = betaincinv(0.5, 0.5 * np.maximum(n - 1.0, 1.0), LEVEL)
    found: Array = np.arcsin(np.where(n == 1.0, 1.0, np.sqrt(squared)))  # one dimension has two directions only
    return found


def sign_flip_half_width(variance: Array) -> Array:
    """Half width of the band of angles of random signs of the elementwise products, at level 0.95.

    Parameters
    ----------
    variance : ndarray
        sum (y_i g_i)^2 / (yy gg).

    Returns
    -------
    ndarray
        In rad; normal approximation.
    """
    deviations = float(ndtri(0.5 + 0.5 * LEVEL))
    found: Array = np.arcsin(np.minimum(np.sqrt(variance) * deviations, 1.0))
    return found


def spectrum(cosine: Array, sine: Array, rho: Array, ok: NDArray[np.bool_]) -> dict[str, Array]:
    """Eigenvalues and condition number of the condition-optimal metric: eq (9), the forms that do not cancel.

    Parameters
    ----------
    cosine, sine : ndarray
        Of the angle between -grad and update.
    rho : ndarray
        |grad| / |update|.
    ok : ndarray of bool
        Where there is a metric.

    Returns
    -------
    dict
        ``cond_min``, ``log_cond``, ``alpha``, ``lam_min``, ``lam_max``; NaN where there is no metric.
    """
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        c = np.where(ok, cosine, np.nan)
        alpha = rho / c
        larger = 1.0 + sine
        root = larger / c
        return {
            "cond_min": root * root,
            "log_cond": 2.0 * np.arcsinh(sine / c),
            "alpha": alpha,
            "lam_min": rho * (c / larger),
            "lam_max": rho * root,
        }
