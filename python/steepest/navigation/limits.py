"""Limits of the optimal rule under their usual names: gradient descent, Newton's method, the ballistic rule."""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from steepest.navigation.losses import Quadratic, finite_array, symmetric
from steepest.navigation.navigator import Navigator

__all__ = [
    "ballistic_step",
    "geometric_mean",
    "gradient_step",
    "newton_step",
    "rotation",
    "rotation_feedback",
    "short_horizon_velocity",
    "weight_decay",
    "weight_decay_feedback",
]

Array = NDArray[np.float64]


def short_horizon_velocity(navigator: Navigator, theta: ArrayLike, *, order: int = 1) -> Array:
    """The rule for a short horizon, gamma large: gradient descent in the geometry G, on any smooth loss.

    Parameters
    ----------
    navigator : Navigator
        With discount > 0, without drift and with every direction actuated.
    theta : array_like, shape (n,)
        State.
    order : {1, 2}
        1: ``-(eta k/gamma) G^-1 grad L``. 2: with the next term, ``+(eta k)^2/gamma^3 G^-1 H G^-1 grad L``.

    Returns
    -------
    ndarray, shape (n,)
        theta'; the relative error falls as gamma^-2, or gamma^-4.

    Raises
    ------
    ValueError
        The problem has drift or actuation, discount 0, or no Hessian product for order 2.

    Notes
    -----
    Section 13 (paper for order 1; order 2 and its form in G are derived).

    Examples
    --------
    >>> from steepest.navigation import Navigator, Quadratic
    >>> short_horizon_velocity(Navigator(Quadratic([2.0]), discount=10.0), [1.0]).tolist()
    [-0.2]
    """
    _require_plain(navigator)
    gamma, loss = navigator.discount, navigator.loss
    if gamma == 0.0:
        raise ValueError("expected discount > 0: the horizon 1/discount is short where discount is large")
    if order not in (1, 2):
        raise ValueError(f"expected order 1 or 2, got {order!r}")
    x = finite_array(theta, "theta")
    scale = navigator.step_cost * navigator.loss_weight / gamma
    first = -scale * _raised(navigator, np.asarray(loss.gradient(x), dtype=np.float64))
    if order == 1:
        return first
    if loss.hvp is None:
        raise ValueError("expected a loss with hvp for order 2")
    return first - scale / gamma * _raised(navigator, np.asarray(loss.hvp(x, first), dtype=np.float64))


def gradient_step(navigator: Navigator, theta: ArrayLike, dt: float) -> Array:
    """Limit of the finite-step rule for dt small, gamma large: ``-dt (eta k/gamma) G^-1 grad L`` (paper).

    Parameters
    ----------
    navigator : Navigator
        With discount > 0, without drift and with every direction actuated.
    theta : array_like, shape (n,)
        State.
    dt : float
        Duration of the step.

    Returns
    -------
    ndarray, shape (n,)
        Displacement.
    """
    return dt * short_horizon_velocity(navigator, theta)


def newton_step(loss: Quadratic, theta: ArrayLike) -> Array:
    """Limit of the finite-step rule for dt large: ``-H^-1 grad L = mu - theta`` (paper).

    Parameters
    ----------
    loss : Quadratic
        With H positive definite.
    theta : array_like, shape (n,)
        State.

    Returns
    -------
    ndarray, shape (n,)
        Displacement.

    Raises
    ------
    ValueError
        H is not positive definite.
    """
    smallest = float(loss.H.min() if loss.diagonal else np.linalg.eigvalsh(loss.H)[0])
    if not smallest > 0.0:
        raise ValueError(f"expected H to be positive definite, got smallest eigenvalue {smallest:.3g}")
    gradient = loss.gradient(theta)
    return -gradient / loss.H if loss.diagonal else -scipy.linalg.solve(loss.H, gradient, assume_a="pos")


def ballistic_step(navigator: Navigator, theta: ArrayLike, dt: float) -> Array:
    """Limit of the finite-step rule for dt small, gamma = 0: ``-dt sqrt(eta k) H^-1/2 grad L`` (paper).

    In a geometry G it is ``-dt sqrt(eta k) (G # H)^-1 grad L`` with the geometric mean of G and H (derived).

    Parameters
    ----------
    navigator : Navigator
        On a quadratic with H positive definite, without drift and with every direction actuated.
    theta : array_like, shape (n,)
        State.
    dt : float
        Duration of the step.

    Returns
    -------
    ndarray, shape (n,)
        Displacement.

    Raises
    ------
    TypeError
        The loss is no `Quadratic`.
    """
    _require_plain(navigator)
    loss, G = navigator.loss, navigator.metric
    if not isinstance(loss, Quadratic):
        raise TypeError("expected a Quadratic, got a Loss")
    mean = geometric_mean(np.ones(loss.size) if G is None else G, loss.H)
    scale = -dt * math.sqrt(navigator.step_cost * navigator.loss_weight)
    gradient = loss.gradient(theta)
    return scale * (gradient / mean if mean.ndim == 1 else scipy.linalg.solve(mean, gradient, assume_a="pos"))


def geometric_mean(A: ArrayLike, B: ArrayLike) -> Array:
    """Geometric mean of two positive definite matrices, ``A # B = A^1/2 (A^-1/2 B A^-1/2)^1/2 A^1/2 = A (A^-1 B)^1/2``.

    At discount 0 the metric of the optimal rule is ``(G # H) / sqrt(eta k)`` (section 13, derived).

    Parameters
    ----------
    A, B : array_like, shape (n, n) or (n,)
        Symmetric positive definite; (n,) is a diagonal.

    Returns
    -------
    ndarray
        (n,) if both are diagonals, else (n, n).

    Raises
    ------
    ValueError
        Not symmetric positive definite, or of different sizes.

    Examples
    --------
    >>> geometric_mean([1.0, 4.0], [9.0, 1.0]).tolist()
    [3.0, 2.0]
    """
    first, second = symmetric(A, "A"), symmetric(B, "B")
    if len(first) != len(second):
        raise ValueError(f"expected matrices of one size, got {first.shape} and {second.shape}")
    for name, matrix in (("A", first), ("B", second)):
        smallest = float(matrix.min() if matrix.ndim == 1 else np.linalg.eigvalsh(matrix)[0])
        if not smallest > 0.0:
            raise ValueError(f"expected {name} to be positive definite, got smallest eigenvalue {smallest:.3g}")
    if first.ndim == second.ndim == 1:
        return np.sqrt(first) * np.sqrt(second)
    first, second = (np.diag(m) if m.ndim == 1 else m for m in (first, second))
    values, V = scipy.linalg.eigh(second, first)
    W = V.T @ first
    mean: Array = (W.T * np.sqrt(values)) @ W
    return mean


def rotation(frequency: float) -> Array:
    """The drift ``F = q [[0, -1], [1, 0]]`` of two parameters.

    Parameters
    ----------
    frequency : float
        q, in radians per unit of time.

    Returns
    -------
    ndarray, shape (2, 2)
        F.
    """
    return np.array([[0.0, -frequency], [frequency, 0.0]])


def weight_decay(rate: float, n: int) -> Array:
    """The drift ``f = -j theta`` as a diagonal of shape (n,).

    Parameters
    ----------
    rate : float
        j.
    n : int
        Number of parameters.

    Returns
    -------
    ndarray, shape (n,)
        All -j.
    """
    return np.full(n, -float(rate))


def weight_decay_feedback(
    h: float, mu: float, decay: float, *, step_cost: float = 1.0, loss_weight: float = 1.0, discount: float = 0.0
) -> tuple[float, float]:
    """Rate and fixed point of one parameter with weight decay.

    Parameters
    ----------
    h, mu : float
        Curvature, positive, and minimum of the loss.
    decay : float
        j.
    step_cost, loss_weight, discount : float
        eta, k, gamma.

    Returns
    -------
    rate : float
        ``sqrt(gamma^2/4 + eta k h + j (j + gamma)) - gamma/2``.
    fixed_point : float
        ``eta k h mu / (eta k h + j (j + gamma))``.

    Notes
    -----
    Section 13 (derived). P2's notebook has j (j - gamma), which is the same at its gamma = 0 only.

    Examples
    --------
    >>> weight_decay_feedback(4.0, -0.5, 10.0)
    (10.198039027185569, -0.019230769230769232)
    """
    X = step_cost * loss_weight * h
    pull = decay * (decay + discount)
    return math.sqrt(discount**2 / 4.0 + X + pull) - discount / 2.0, X * mu / (X + pull)


def rotation_feedback(
    h: float,
    mu: ArrayLike,
    frequency: float,
    *,
    step_cost: float = 1.0,
    loss_weight: float = 1.0,
    discount: float = 0.0,
) -> tuple[float, float, Array]:
    """Rate, frequency and fixed point of two parameters of one curvature under rotation.

    Parameters
    ----------
    h : float
        Curvature, positive.
    mu : array_like, shape (2,)
        Minimum of the loss.
    frequency : float
        q.
    step_cost, loss_weight, discount : float
        eta, k, gamma.

    Returns
    -------
    rate, frequency : float
        The spiral: ``sqrt(gamma^2/4 + eta k h) - gamma/2``, and q.
    fixed_point : ndarray, shape (2,)
        ``X / ((X + q^2)^2 + (q gamma)^2) ((X + q^2) mu1 - q gamma mu2, q gamma mu1 + (X + q^2) mu2)``, X = eta k h.

    Notes
    -----
    Section 13 (authors' code). The published figure puts the dot at another point near 0.
    """
    first, second = finite_array(mu, "mu").tolist()
    X = step_cost * loss_weight * h
    along, across = X + frequency**2, frequency * discount
    ratio = X / (along**2 + across**2)
    rate = math.sqrt(discount**2 / 4.0 + X) - discount / 2.0
    point = ratio * np.array([along * first - across * second, across * first + along * second])
    return rate, frequency, point


def _require_plain(navigator: Navigator) -> None:
    for name in ("drift", "actuation"):
        if getattr(navigator, name) is not None:
            raise ValueError(f"expected a problem without {name}: this limit is of the plain rule")


def _raised(navigator: Navigator, gradient: Array) -> Array:
    G = navigator.metric
    if G is None:
        return gradient
    raised: Array = gradient / G if G.ndim == 1 else scipy.linalg.solve(G, gradient, assume_a="pos")
    return raised
