"""The optimal feedback on quadratics, case by case: diagonal, in a geometry, with drift or restricted actuation."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from steepest.navigation.losses import Drift, Quadratic, product
from steepest.navigation.navigator import Navigator
from steepest.navigation.policy import Modes, Policy, control_metric, optimal_control
from steepest.navigation.rates import feedback_gain, riccati, velocity_metric

__all__ = ["make_policy"]

Array = NDArray[np.float64]


def make_policy(navigator: Navigator) -> Policy:
    """The optimal rule; see `Navigator.policy`.

    Parameters
    ----------
    navigator : Navigator
        With a quadratic loss and a linear drift.

    Returns
    -------
    Policy
        Feedback law.

    Raises
    ------
    TypeError
        The loss is no `Quadratic`, or the drift is not linear.
    """
    loss, G, F, B = navigator.loss, navigator.metric, navigator.drift, navigator.actuation
    if not isinstance(loss, Quadratic):
        raise TypeError("expected a Quadratic for a closed form, got a Loss: solve(theta0, horizon) finds its paths")
    if isinstance(F, Drift):
        raise TypeError(
            "expected a linear drift for a closed form, got a Drift: solve(theta0, horizon) finds its paths"
        )
    drift_is_diagonal = F is None or F.ndim == 1
    F = F if F is not None and F.any() else None
    if loss.diagonal and (G is None or G.ndim == 1) and drift_is_diagonal and B is None:
        return _diagonal_policy(navigator, loss)
    n = loss.size
    full_G = np.eye(n if B is None else B.shape[1]) if G is None else np.diag(G) if G.ndim == 1 else G
    if F is None:
        if B is None:
            return _gradient_policy(navigator, loss, full_G)
        if np.linalg.matrix_rank(B) == n:
            return _gradient_policy(navigator, loss, velocity_metric(full_G, B))
    return _riccati_policy(navigator, loss, full_G)


def _diagonal_policy(navigator: Navigator, loss: Quadratic) -> Policy:
    gamma, eta = navigator.discount, navigator.step_cost
    g = np.ones(loss.size) if navigator.metric is None else navigator.metric
    f = np.zeros(loss.size) if navigator.drift is None else navigator.drift
    assert isinstance(f, np.ndarray)
    X = eta * navigator.loss_weight * loss.H / g
    gain = feedback_gain(X, gamma, f)
    rates = gain - f
    S = g * gain / eta
    if not f.any():
        return _assemble(navigator, loss, S, -rates, loss.mu, Modes(rates), None)
    rest, below = X + f * (f - gamma), gamma + rates  # rest = rates (rates + gamma)
    at_rest = rest != 0.0
    center = np.where(at_rest, X * loss.mu / np.where(at_rest, rest, 1.0), loss.mu)
    constant = np.where(X == 0.0, 0.0, X * loss.mu / np.where(X == 0.0, 1.0, below))
    velocity = np.where(at_rest, 0.0, constant - rates * center)
    gradient = S * center - g * constant / eta
    return _assemble(
        navigator, loss, S, -rates, center, Modes(rates), _DRIFT_REASON, velocity=velocity, gradient=gradient
    )


_DRIFT_REASON = "the drift moves the fixed point off the minimum of L, and may turn the Jacobian"


def _gradient_policy(navigator: Navigator, loss: Quadratic, G: Array) -> Policy:
    """No drift, every direction actuated: section 13, natural gradient."""
    curvature, V = scipy.linalg.eigh(loss.dense(), G)  # V^T G V = I
    # Rounding must not make a flat direction a descending one.
    floor = 4.0 * np.finfo(np.float64).eps * len(curvature) * np.abs(curvature).max()
    curvature = np.where(np.abs(curvature) <= floor, 0.0, curvature)
    rates = feedback_gain(navigator.step_cost * navigator.loss_weight * curvature, navigator.discount)
    W = V.T @ G
    S = (W.T * (rates / navigator.step_cost)) @ W
    return _assemble(navigator, loss, S, -(V * rates) @ W, loss.mu, Modes(rates, V, W), None)


def _riccati_policy(navigator: Navigator, loss: Quadratic, G: Array) -> Policy:
    n, eta, gamma = loss.size, navigator.step_cost, navigator.discount
    B = np.eye(n) if navigator.actuation is None else navigator.actuation
    F = np.zeros((n, n)) if navigator.drift is None else navigator.drift
    assert isinstance(F, np.ndarray)
    F = np.diag(F) if F.ndim == 1 else F
    H = loss.dense()
    S = riccati(H, G, F, B, step_cost=eta, loss_weight=navigator.loss_weight, discount=gamma)
    push = eta * B @ np.linalg.solve(G, B.T)  # eta W
    A = F - push @ S
    if not F.any():
        reason = "the rule moves in the range of the actuation only, where a metric would have to be singular"
        return _assemble(navigator, loss, S, A, loss.mu, None, reason)
    s = -np.linalg.solve(gamma * np.eye(n) - F.T + S @ push, navigator.loss_weight * H @ loss.mu)
    constant = -push @ s
    center, velocity = loss.mu, A @ loss.mu + constant
    if np.linalg.cond(A) < 1e12:
        center, velocity = -np.linalg.solve(A, constant), np.zeros(n)
    return _assemble(navigator, loss, S, A, center, None, _DRIFT_REASON, velocity=velocity, gradient=S @ center + s)


def _assemble(
    navigator: Navigator,
    loss: Quadratic,
    S: Array,
    A: Array,
    center: Array,
    modes: Modes | None,
    reason: str | None,
    velocity: Array | None = None,
    gradient: Array | None = None,
) -> Policy:
    velocity = np.zeros(loss.size) if velocity is None else velocity
    gradient = np.zeros(loss.size) if gradient is None else gradient
    drift = np.zeros(loss.size) if navigator.drift is None else product(np.asarray(navigator.drift), center)
    # HJB at the center: gamma V = k L + grad V . f - (eta/2) |B^T grad V|^2
    pushed = optimal_control(navigator, gradient)
    effort = 0.5 * float(pushed @ product(control_metric(navigator), pushed)) / navigator.step_cost
    rest = navigator.loss_weight * float(loss.value(center)) + float(gradient @ drift) - effort
    for array in (S, A):
        array.flags.writeable = False
    return Policy(navigator, S, A, center, velocity, gradient, rest, modes, reason)
