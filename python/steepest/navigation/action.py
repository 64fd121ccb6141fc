"""The action J of a path over a finite horizon, with its gradient, in coordinates that whiten its kinetic part."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from steepest.navigation.losses import Drift, Loss, Quadratic, product
from steepest.navigation.navigator import Navigator
from steepest.navigation.path_basis import PathBasis
from steepest.navigation.rates import velocity_metric

__all__ = ["Action", "loss_on_path"]

Array = NDArray[np.float64]


def loss_on_path(loss: Quadratic | Loss, theta: Array) -> tuple[Array, Array]:
    """Values and gradients at `theta` of shape (m, n).

    Parameters
    ----------
    loss : Quadratic or Loss
        The loss.
    theta : ndarray, shape (m, n)
        States.

    Returns
    -------
    values : ndarray, shape (m,)
        L.
    gradients : ndarray, shape (m, n)
        +dL/dtheta.

    Raises
    ------
    ValueError
        A callable returns another shape.
    """
    if isinstance(loss, Quadratic) or loss.vectorized:
        values, gradients = np.asarray(loss.value(theta)), np.asarray(loss.gradient(theta))
    else:
        values = np.array([loss.value(x) for x in theta])
        gradients = np.array([loss.gradient(x) for x in theta])
    if values.shape != theta.shape[:1] or gradients.shape != theta.shape:
        raise ValueError(
            f"expected values of shape {theta.shape[:1]} and gradients of shape {theta.shape} for states of shape "
            f"{theta.shape}, got {values.shape} and {gradients.shape}"
        )
    return values.astype(np.float64), gradients.astype(np.float64)


class Action:
    """``J = int_0^T { (theta' - f)^T G (theta' - f)/(2 eta) + k L } e^{-gamma t} dt`` on a `PathBasis`.

    The unknowns z are the free nodal values x seen through the Cholesky factors of the kinetic matrix K (over time)
    and of G: without drift the kinetic part is |z|^2/2, so that the Hessian is the identity plus a compact part, and
    the number of iterations of a descent does not grow with the number of nodes.

    Parameters
    ----------
    navigator : Navigator
        The problem.
    theta0 : ndarray, shape (n,)
        The beginning, fixed.
    end : ndarray, shape (n,), optional
        The end, if fixed.
    basis : PathBasis
        The paths.
    discount : float
        gamma, in place of the navigator's.
    """

    def __init__(
        self, navigator: Navigator, theta0: Array, end: Array | None, basis: PathBasis, discount: float
    ) -> None:
        self.navigator, self.theta0, self.end, self.basis, self.discount = navigator, theta0, end, basis, discount
        self.free = slice(1, None if end is None else -1)
        self.G = path_geometry(navigator, len(theta0))

    @cached_property
    def _fade(self) -> Array:
        return np.exp(-self.discount * self.basis.points)

    @cached_property
    def _factors(self) -> tuple[Array, Array]:
        kinetic = self.basis.stiffness(self._fade)[self.free, self.free] / self.navigator.step_cost
        over_time: Array = scipy.linalg.cholesky(kinetic, lower=True)
        over_space: Array = scipy.linalg.cholesky(self.G, lower=True)
        return over_time, over_space

    def to_path(self, z: Array) -> Array:
        """Nodal values, (nodes, n), of the unknowns z."""
        over_time, over_space = self._factors
        n = len(self.theta0)
        x = scipy.linalg.solve_triangular(over_time, z.reshape(-1, n), lower=True, trans="T", check_finite=False)
        c = self._lift()
        c[self.free] += scipy.linalg.solve_triangular(over_space, x.T, lower=True, trans="T", check_finite=False).T
        return c

    def from_path(self, c: Array) -> Array:
        """The unknowns of nodal values; their fixed ends are replaced."""
        over_time, over_space = self._factors
        x = (c - self._lift())[self.free]
        z: Array = (over_time.T @ x @ over_space).ravel()
        return z

    def _lift(self) -> Array:
        end = self.theta0 if self.end is None else self.end
        return self.theta0 + (self.basis.nodes / self.basis.horizon)[:, None] * (end - self.theta0)

    def parts(self, c: Array) -> tuple[float, float]:
        """Kinetic part and loss part of J."""
        theta, velocity = self.basis.at_points(c)
        control = velocity - self._drift(theta)
        weights = self.basis.weights * self._fade
        kinetic = 0.5 / self.navigator.step_cost * float(weights @ np.sum(control * (control @ self.G), axis=1))
        return kinetic, self.navigator.loss_weight * float(weights @ loss_on_path(self.navigator.loss, theta)[0])

    def __call__(self, z: Array) -> tuple[float, Array]:
        """J and its gradient by z."""
        action, by_node = self.with_gradient(self.to_path(z))
        over_time, over_space = self._factors
        by_x = scipy.linalg.solve_triangular(over_time, by_node[self.free], lower=True, check_finite=False)
        return action, scipy.linalg.solve_triangular(over_space, by_x.T, lower=True, check_finite=False).T.ravel()

    def end_velocities(self, c: Array) -> tuple[Array, Array]:
        """theta' at both ends of a minimum: dJ/dtheta(0) = -p(0), which converges faster than the polynomial's slope.

        Parameters
        ----------
        c : ndarray, shape (nodes, n)
            Nodal values.

        Returns
        -------
        first, last : ndarray, shape (n,)
            ``f + eta G^-1 p``.
        """
        by_node = self.with_gradient(c)[1][[0, -1]] * np.array([[-1.0], [math.exp(self.discount * self.basis.horizon)]])
        by_node[1] *= self.end is not None  # at a free end p vanishes
        first, last = self._drift(c[[0, -1]]) + self.navigator.step_cost * np.linalg.solve(self.G, by_node.T).T
        return first, last

    def with_gradient(self, c: Array) -> tuple[float, Array]:
        """J and its gradient by the nodal values, all of them: (nodes, n)."""
        theta, velocity = self.basis.at_points(c)
        control = velocity - self._drift(theta)
        momentum = control @ self.G / self.navigator.step_cost
        values, gradients = loss_on_path(self.navigator.loss, theta)
        weights = self.basis.weights * self._fade
        action = float(weights @ (0.5 * np.sum(control * momentum, axis=1) + self.navigator.loss_weight * values))
        by_state = self.navigator.loss_weight * gradients - self._drift_vjp(theta, momentum)
        return action, self.basis.adjoint(weights[:, None] * by_state, weights[:, None] * momentum)

    def residual(self, c: Array) -> float:
        """How far the path is from the Euler-Lagrange equation ``p' - gamma p + J_f^T p = k grad L``.

        Parameters
        ----------
        c : ndarray, shape (nodes, n)
            Nodal values.

        Returns
        -------
        float
            The root mean square over the path, relative to that of the terms; p = G (theta' - f)/eta, and p' is that
            of the polynomial.
        """
        theta, velocity = self.basis.at_points(c)
        momentum = (velocity - self._drift(theta)) @ self.G / self.navigator.step_cost
        n = len(self.theta0)
        rate = (self.basis.gauss_slope @ momentum.reshape(self.basis.n_elements, -1, n)).reshape(-1, n)
        pull = self.navigator.loss_weight * loss_on_path(self.navigator.loss, theta)[1]
        terms = (rate, -self.discount * momentum, self._drift_vjp(theta, momentum), -pull)
        weights = self.basis.weights * self._fade
        size = sum(float(weights @ np.sum(term**2, axis=1)) for term in terms)
        return float(np.sqrt(weights @ np.sum(sum(terms) ** 2, axis=1) / size)) if size > 0.0 else 0.0

    def _drift(self, theta: Array) -> Array:
        f = self.navigator.drift
        if f is None:
            return np.zeros_like(theta)
        return np.array([f.value(x) for x in theta]) if isinstance(f, Drift) else product(f, theta)

    def _drift_vjp(self, theta: Array, w: Array) -> Array:
        f = self.navigator.drift
        if f is None:
            return np.zeros_like(theta)
        if isinstance(f, Drift):
            return np.array([f.vjp(x, v) for x, v in zip(theta, w, strict=True)])
        return product(f.T, w)


def path_geometry(navigator: Navigator, n: int) -> Array:
    """G of a velocity, (n, n); an actuation that reaches every direction is taken into it.

    Parameters
    ----------
    navigator : Navigator
        The problem.
    n : int
        Number of parameters.

    Returns
    -------
    ndarray, shape (n, n)
        Symmetric positive definite.

    Raises
    ------
    ValueError
        The actuation leaves directions out; drift or metric are of another size.
    """
    G, B, F = navigator.metric, navigator.actuation, navigator.drift
    if isinstance(F, np.ndarray) and len(F) != n:
        raise ValueError(f"expected theta0 of shape ({len(F)},) as the drift has it, got ({n},)")
    m = n if B is None else B.shape[1]
    full = np.eye(m) if G is None else np.diag(G) if G.ndim == 1 else G
    if len(full) != m:
        raise ValueError(f"expected metric of shape ({m}, {m}) or ({m},) for {n} parameters, got {full.shape}")
    if B is None:
        return full
    if len(B) != n or np.linalg.matrix_rank(B) < n:
        raise ValueError(
            f"expected an actuation that reaches all {n} directions, got shape {B.shape}: the path solver varies the "
            "path, and policy() treats restricted actuation on quadratics"
        )
    return velocity_metric(full, B)
