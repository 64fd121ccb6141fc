"""Geometric means of positive definite matrices: the symmetric estimates where noise is in gradients and updates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["geometric_mean", "geometric_mean_of_factors"]

Array = NDArray[np.float64]


def geometric_mean(a: Array, c: Array) -> Array:
    """The matrix geometric mean ``A # C = A^1/2 (A^-1/2 C A^-1/2)^1/2 A^1/2``.

    Parameters
    ----------
    a, c : ndarray, shape (m, m)
        Symmetric positive definite.

    Returns
    -------
    ndarray, shape (m, m)
        The S with ``S A^-1 S = C``.
    """
    lower = np.linalg.cholesky(a)
    inner = np.linalg.solve(lower, np.linalg.solve(lower, c).T)
    values, vectors = np.linalg.eigh(0.5 * (inner + inner.T))
    half = (lower @ vectors) * np.maximum(values, 0.0) ** 0.25
    return np.asarray(half @ half.T)


def geometric_mean_of_factors(g: Array, y: Array) -> Array:
    """The SPD solution S of ``S (g g^T) S = y y^T``.

    Parameters
    ----------
    g, y : ndarray, shape (m, m)
        Lower triangular, of full rank.

    Returns
    -------
    ndarray, shape (m, m)
        ``g^-T (g^T y y^T g)^1/2 g^-1``, by the singular values of ``y^T g``: nothing is squared.
    """
    _, values, vt = np.linalg.svd(y.T @ g)
    half = np.linalg.solve(g.T, vt.T * np.sqrt(values))
    return np.asarray(half @ half.T)
