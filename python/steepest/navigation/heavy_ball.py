"""Classical momentum, derived: a cost on the acceleration, on a loss that is locally linear."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.integrate
from numpy.typing import ArrayLike, NDArray

from steepest.navigation.action import loss_on_path
from steepest.navigation.losses import Loss, Quadratic, finite_array
from steepest.recording import Recording, recording

__all__ = ["HeavyBall"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class HeavyBall:
    """The optimal acceleration ``v' = -mu v - lam grad L``, ``theta' = v``.

    It minimises ``int { |v|^2/(2 eta) + (eps/2) |v'|^2 + k c.theta } e^{-gamma t} dt`` for a loss ``c.theta``, linear
    as far as the rule looks.

    Parameters
    ----------
    acceleration_cost : float
        eps > 0.
    step_cost, loss_weight : float
        eta, k > 0.
    discount : float
        gamma > 0: on a slope that never ends, only a discount makes J finite.

    Raises
    ------
    ValueError
        A number is not positive and finite.

    Notes
    -----
    Section 13 (derived). ``mu = (-gamma + sqrt(gamma^2 + 4/(eps eta)))/2``, ``lam = k/(eps gamma (gamma + mu))``;
    lam/mu = eta k/gamma is the rate of gradient descent for a short horizon, which the ball approaches at constant
    slope. The Euler-Lagrange equation of the plain problem looks alike, but its friction has the other sign: it is a
    two-point problem and no rule.

    Examples
    --------
    >>> ball = HeavyBall(acceleration_cost=0.5, discount=1.0)
    >>> ball.friction, ball.gain
    (1.0, 1.0)
    """

    acceleration_cost: float
    step_cost: float = 1.0
    loss_weight: float = 1.0
    discount: float = 1.0

    def __post_init__(self) -> None:
        for name in ("acceleration_cost", "step_cost", "loss_weight", "discount"):
            value = getattr(self, name)
            if not 0.0 < value < math.inf:
                raise ValueError(f"expected {name} to be positive and finite, got {value!r}")

    @property
    def friction(self) -> float:
        """mu."""
        stiffness = 4.0 / (self.acceleration_cost * self.step_cost)
        # The plain difference of root and gamma would cancel for a large gamma.
        return 0.5 * stiffness / (self.discount + math.sqrt(self.discount**2 + stiffness))

    @property
    def gain(self) -> float:
        """lam."""
        return self.loss_weight / (self.acceleration_cost * self.discount * (self.discount + self.friction))

    def acceleration(self, grad: ArrayLike, velocity: ArrayLike) -> Array:
        """v' at a gradient and a velocity of one shape."""
        return -self.friction * finite_array(velocity, "velocity") - self.gain * finite_array(grad, "grad")

    def coefficients(self, dt: float) -> tuple[float, float]:
        """Momentum beta and learning rate h of ``v+ = beta v - h grad L``, ``theta+ = theta + v+ dt``.

        Parameters
        ----------
        dt : float
            Duration of a step, positive; the velocity is exact for a gradient that is constant over it.

        Returns
        -------
        beta, h : float
            ``e^{-mu dt}`` and ``(1 - e^{-mu dt}) lam/mu``.

        Raises
        ------
        ValueError
            `dt` is not positive and finite.
        """
        if not 0.0 < dt < math.inf:
            raise ValueError(f"expected dt to be positive and finite, got {dt!r}")
        return math.exp(-self.friction * dt), -math.expm1(-self.friction * dt) * self.gain / self.friction

    def value(self, theta: ArrayLike, velocity: ArrayLike, slope: ArrayLike) -> float:
        """V on the linear loss ``c.theta``.

        Parameters
        ----------
        theta, velocity, slope : array_like, shape (n,)
            State, and c.

        Returns
        -------
        float
            ``eps mu |v|^2/2 + eps lam c.v + k c.theta/gamma - eps lam^2 |c|^2/(2 gamma)``.
        """
        x, v, c = (finite_array(a, name) for a, name in ((theta, "theta"), (velocity, "velocity"), (slope, "slope")))
        eps, gamma = self.acceleration_cost, self.discount
        return float(
            0.5 * eps * self.friction * (v @ v)
            + eps * self.gain * (c @ v)
            + self.loss_weight * (c @ x) / gamma
            - 0.5 * eps * self.gain**2 * (c @ c) / gamma
        )

    def simulate(
        self, loss: Quadratic | Loss, theta0: ArrayLike, t: ArrayLike, velocity: ArrayLike | None = None
    ) -> tuple[Array, Array]:
        """Roll on a loss.

        Parameters
        ----------
        loss : Quadratic or Loss
            Any smooth loss: the rule uses its gradient where it is.
        theta0 : array_like, shape (n,)
            State at time 0.
        t : array_like, shape (T,)
            Times, ascending from 0.
        velocity : array_like, shape (n,), optional
            At time 0. Default: ``-(lam/mu) grad L``, which a constant slope leads to.

        Returns
        -------
        theta, velocity : ndarray, shape (T, n)
            At the times.

        Raises
        ------
        ValueError
            Times not ascending from 0.

        Notes
        -----
        ``scipy.integrate.solve_ivp`` (DOP853) to a relative error of 1e-10.
        """
        x0 = np.atleast_1d(finite_array(theta0, "theta0"))
        times = finite_array(t, "t")
        if times.ndim != 1 or times.size < 2 or times[0] < 0.0 or not (np.diff(times) > 0.0).all():
            raise ValueError("expected t to hold at least two times, ascending, none negative")
        v0 = -self.gain / self.friction * loss_on_path(loss, x0[None])[1][0]
        v0 = v0 if velocity is None else finite_array(velocity, "velocity")
        n = x0.size

        def rate(_: float, state: Any) -> Any:
            slope = loss_on_path(loss, state[None, :n])[1][0]
            return np.concatenate([state[n:], -self.friction * state[n:] - self.gain * slope])

        state = scipy.integrate.solve_ivp(
            rate, (0.0, times[-1]), np.concatenate([x0, v0]), t_eval=times, method="DOP853", rtol=1e-10, atol=1e-12
        ).y.T
        return state[:, :n], state[:, n:]

    def recording(
        self, loss: Quadratic | Loss, theta0: ArrayLike, t: ArrayLike, velocity: ArrayLike | None = None
    ) -> Recording:
        """`simulate` for `steepest.analyze`: grad L, v, L, time (``rate=True``).

        Parameters
        ----------
        loss, theta0, t, velocity
            As for `simulate`.

        Returns
        -------
        Recording
            Of the parameters alone: momentum may carry them uphill, which shows as status ``ascent``.
        """
        theta, speed = self.simulate(loss, theta0, t, velocity)
        values, gradients = loss_on_path(loss, theta)
        return recording(loss=values, grad=gradients, update=speed, time=t, rate=True, objective="fixed")
