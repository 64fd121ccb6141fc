"""Rates of the optimal feedback on quadratics: the matrix square root of section 12, and the Riccati equation."""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

__all__ = ["decay_factor", "feedback_gain", "integrated_decay", "riccati", "velocity_metric"]

Array = NDArray[np.float64]


def feedback_gain(curvature: ArrayLike, discount: float, drift: ArrayLike = 0.0) -> Array:
    """``sqrt((gamma/2 - f)^2 + X) - (gamma/2 - f)``: the feedback in ``theta' = f theta - gain (theta - ...)``.

    Parameters
    ----------
    curvature : array_like
        X = eta k h / g, element by element.
    discount : float
        gamma.
    drift : array_like
        f of ``theta' = f theta + u``; weight decay is f = -j.

    Returns
    -------
    ndarray
        Gains; without drift they are the rates r at which the rule approaches mu (negative: it moves away).

    Raises
    ------
    ValueError
        ``(gamma/2 - f)^2 + X < 0``, or X < 0 and f > gamma/2: J is unbounded below.

    Notes
    -----
    Sections 12 and 13 (paper for f = 0; the form with drift is derived). Evaluated as ``X / (root + gamma/2 - f)``,
    which keeps all digits where X is far below gamma^2.

    Examples
    --------
    >>> [f"{gain:.6g}" for gain in feedback_gain([4.0, 3e-20], discount=3.0)]
    ['1', '1e-20']
    """
    X, f = np.broadcast_arrays(np.asarray(curvature, dtype=np.float64), np.asarray(drift, dtype=np.float64))
    lag = 0.5 * discount - f
    gap, side = np.abs(lag), np.sqrt(np.abs(X))
    unbounded = (X < 0.0) & (side > lag)
    if unbounded.any():
        raise ValueError(
            f"J is unbounded below: the curvature eta k h = {float(X[unbounded].min()):.6g} is below -(gamma/2 - f)^2, "
            f"or f above gamma/2, with gamma = {discount:.6g}; raise discount, take |H|, or solve() a finite horizon"
        )
    # As hypot, and as a difference of squares: neither squares gamma.
    root = np.where(X >= 0.0, np.hypot(gap, side), np.sqrt(np.maximum(gap - side, 0.0)) * np.sqrt(gap + side))
    total = root + gap
    ratio = np.divide(X, total, out=np.zeros_like(total), where=total > 0.0)
    # Where L is flat nothing is spent, however fast the drift.
    gain: Array = np.where((lag >= 0.0) | (X == 0.0), ratio, total)
    return gain


def integrated_decay(rates: Array, time: ArrayLike) -> Array:
    """``(1 - e^{-r t})/r``, which is t where r = 0.

    Parameters
    ----------
    rates : ndarray
        r.
    time : array_like
        t, broadcast against the rates.

    Returns
    -------
    ndarray
        The integral of e^{-r s} over s from 0 to t.
    """
    r, t = np.broadcast_arrays(rates, np.asarray(time, dtype=np.float64))
    safe = np.where(r == 0.0, 1.0, r)
    return np.where(r == 0.0, t, -np.expm1(-safe * t) / safe)


def decay_factor(A: Array, time: float) -> Array:
    """``int_0^t e^{A s} ds`` of a general matrix, by one exponential of twice the size.

    Parameters
    ----------
    A : ndarray, shape (n, n)
        Any matrix, singular or not.
    time : float
        t.

    Returns
    -------
    ndarray, shape (n, n)
        The integral.
    """
    n = len(A)
    block = np.zeros((2 * n, 2 * n))
    block[:n, :n], block[:n, n:] = A * time, np.eye(n) * time
    integral: Array = scipy.linalg.expm(block)[:n, n:]
    return integral


def velocity_metric(G: Array, B: Array) -> Array:
    """The metric ``(B G^-1 B^T)^-1`` of velocities, for controls that reach every direction.

    Parameters
    ----------
    G : ndarray, shape (m, m)
        Metric of the controls.
    B : ndarray, shape (n, m)
        Actuation of rank n: the cheapest control for a velocity is meant where there are several.

    Returns
    -------
    ndarray, shape (n, n)
        Symmetric positive definite.
    """
    inverse: Array = np.linalg.inv(B @ np.linalg.solve(G, B.T))
    return 0.5 * (inverse + inverse.T)


def riccati(H: Array, G: Array, F: Array, B: Array, *, step_cost: float, loss_weight: float, discount: float) -> Array:
    """S of ``gamma S = k H + S F + F^T S - eta S B G^-1 B^T S``, the solution that stabilises.

    Parameters
    ----------
    H, F : ndarray, shape (n, n)
        Curvature and linear drift.
    G : ndarray, shape (m, m)
        Metric of the controls.
    B : ndarray, shape (n, m)
        Actuation.
    step_cost, loss_weight, discount : float
        eta, k, gamma.

    Returns
    -------
    ndarray, shape (n, n)
        Symmetric.

    Raises
    ------
    ValueError
        No finite optimum: a direction that does not die out is not actuated, or not seen by the loss.

    Notes
    -----
    Section 13 (derived); ``scipy.linalg.solve_continuous_are``, O(n^3).
    """
    n = len(H)
    shifted = F - 0.5 * discount * np.eye(n)
    for value in np.linalg.eigvals(shifted):
        if value.real < -1e-12 * max(1.0, float(np.abs(shifted).max())):
            continue
        pencil = shifted - value * np.eye(n)
        what = None
        if np.linalg.eigvalsh(H)[0] < -1e-12 * np.abs(H).max():
            what = "H has a negative eigenvalue, and the discount does not outweigh"
        elif np.linalg.matrix_rank(np.hstack([pencil, B])) < n:
            what = "the actuation does not reach"
        elif np.linalg.matrix_rank(np.vstack([pencil, H])) < n:
            what = "the loss does not see"
        if what is not None:
            raise ValueError(
                f"no finite optimum: {what} a direction that the drift leaves at rate "
                f"{value.real + 0.5 * discount:.3g} >= discount/2 = {0.5 * discount:.3g}; raise "
                f"discount, or change actuation, drift or H"
            )
    try:
        solution = scipy.linalg.solve_continuous_are(shifted, B, loss_weight * H, G / step_cost)
    except (np.linalg.LinAlgError, ValueError) as error:
        raise ValueError(f"no finite optimum: the Riccati equation has no stabilising solution ({error})") from error
    S: Array = 0.5 * (solution + solution.T)
    pull = S @ B
    terms = (
        loss_weight * H, S @ shifted, shifted.T @ S, -step_cost * pull @ np.linalg.solve(G, pull.T)
    )  # fmt: skip
    gap = float(np.abs(sum(terms)).max())
    scale = max(float(np.abs(term).max()) for term in terms)
    if not gap <= 1e-8 * scale or not math.isfinite(gap):
        raise ValueError(f"the Riccati equation could not be solved: residual {gap:.3g} beside terms of {scale:.3g}")
    return S
