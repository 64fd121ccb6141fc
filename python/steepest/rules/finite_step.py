"""The optimal step of finite duration on a quadratic loss: from gradient descent to Newton's method."""

# ruff: noqa: ARG002 (arguments of the protocol that this rule does not need)

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import ArrayOrMapping
from steepest.metrics.interface import Metric
from steepest.rules.geometry import Eigen, eigen, layout_of
from steepest.rules.leaves import exactly, plain
from steepest.rules.rule import Rule, Schedule, Stateless, rate_at

__all__ = ["FiniteStep", "LinearQuadratic"]

Vector = NDArray[np.float64]


class LinearQuadratic:
    """Step cost, loss weight and discount of the control problem, and what follows for one curvature h.

    Parameters
    ----------
    gamma : float
        Discount rate, not negative.
    eta, k : float
        Of the cost ``e^{-gamma t} (|theta'|^2/(2 eta) + k loss)``; positive.
    """

    def __init__(self, gamma: float, eta: float, k: float) -> None:
        if not (0.0 <= gamma < math.inf and 0.0 < eta < math.inf and 0.0 < k < math.inf):
            raise ValueError(f"expected gamma >= 0 and eta, k > 0, got gamma={gamma}, eta={eta}, k={k}")
        self.gamma, self.eta, self.k = float(gamma), float(eta), float(k)

    def stiffness(self, h: Vector) -> Vector:
        """``gamma/2 + sqrt(gamma^2/4 + eta k h)`` = gamma + rate.

        Parameters
        ----------
        h : ndarray
            Curvatures, not negative.

        Returns
        -------
        ndarray
            As `h`.
        """
        return np.asarray(0.5 * self.gamma + np.sqrt(0.25 * self.gamma**2 + self.eta * self.k * h))

    def rate(self, h: Vector) -> Vector:
        """``r = sqrt(gamma^2/4 + eta k h) - gamma/2``, without cancellation.

        Parameters
        ----------
        h : ndarray
            Curvatures, not negative.

        Returns
        -------
        ndarray
            As `h`; 0 where h is 0.
        """
        stiffness = self.stiffness(h)
        return np.asarray(self.eta * self.k * h / np.where(stiffness > 0.0, stiffness, 1.0))

    def step(self, h: Vector, dt: float) -> Vector:
        """``(1 - e^{-r dt})/h``: how far a step of duration dt goes for each unit of gradient.

        Parameters
        ----------
        h : ndarray
            Curvatures, not negative.
        dt : float
            Duration; inf is Newton's method.

        Returns
        -------
        ndarray
            As `h`; ``dt eta k/gamma`` where h is 0.

        Raises
        ------
        ValueError
            h is 0 where that has no limit: gamma is 0 or dt infinite.
        """
        if bool((h == 0.0).any()) and (self.gamma == 0.0 or dt == math.inf):
            raise ValueError(
                "expected curvature in every direction where gamma = 0 or dt is infinite, got an eigenvalue 0: add a "
                "small multiple of the identity, or take gamma > 0 and a finite dt"
            )
        if dt == math.inf:
            return np.asarray(1.0 / h)
        # With x = r dt: dt (eta k/stiffness) (1 - e^-x)/x, which has a limit at h = 0.
        x = self.rate(h) * dt
        share = np.where(x > 0.0, -np.expm1(-x) / np.where(x > 0.0, x, 1.0), 1.0)
        return np.asarray(dt * self.eta * self.k / self.stiffness(h) * share)


class FiniteStep(Rule):
    """``update = -(I - e^{-R dt}) H^{-1} grad`` with ``R = sqrt(gamma^2/4 + eta k H) - gamma/2``.

    Parameters
    ----------
    hessian : float, array, mapping, (values, vectors) or callable
        H as a multiple of the identity, a diagonal of the parameters' shapes, a dense matrix, eigenvalues and
        eigenvectors, or a function params -> one of these.
    dt : float or callable
        Duration of a step; ``math.inf`` is Newton's method.
    gamma, eta, k : float
        Discount rate, and the cost ``|theta'|^2/(2 eta) + k loss``.
    negative : {'raise', 'absolute'}
        What to do with negative curvature, where the infinite-horizon cost can be unbounded below: an error, or |H|.

    Notes
    -----
    Section 13 (paper). Long dt: Newton, ``-H^{-1} grad``; short dt and large gamma: ``-dt (eta k/gamma) grad``; short
    dt and gamma = 0: "ballistic", ``-dt sqrt(eta k) H^{-1/2} grad``. Cost: O(n) for a diagonal, O(n^2) a step and
    O(n^3) once (a callable: each time) for a matrix.

    Examples
    --------
    >>> import math
    >>> import numpy as np
    >>> from steepest import rules
    >>> h, theta = np.array([1.0, 4.0]), np.array([1.0, 1.0])
    >>> newton = rules.FiniteStep(h, dt=math.inf)
    >>> newton.update(h * theta, newton.init(theta))[0]
    array([-1., -1.])
    >>> ballistic = rules.FiniteStep(h, dt=1e-6)
    >>> (ballistic.update(h * theta, ballistic.init(theta))[0] / 1e-6).round(4)
    array([-1., -2.])
    """

    def __init__(
        self,
        hessian: Any,
        *,
        dt: Schedule,
        gamma: float = 0.0,
        eta: float = 1.0,
        k: float = 1.0,
        negative: Literal["raise", "absolute"] = "raise",
    ) -> None:
        if negative not in ("raise", "absolute"):
            raise ValueError(f"expected negative to be 'raise' or 'absolute', got {negative!r}")
        self._hessian, self._dt, self._negative = hessian, dt, negative
        self.problem = LinearQuadratic(gamma, eta, k)
        self._constant: Eigen | None = None

    def init(self, params: ArrayOrMapping) -> Stateless:
        """See `Rule.init`."""
        if not callable(self._hessian):
            self._eigen(plain(params), None)
        return Stateless()

    def update(
        self, grad: ArrayOrMapping, state: Stateless, params: ArrayOrMapping | None = None, **data: Any
    ) -> tuple[Any, Stateless]:
        """See `Rule.update`."""
        grad = plain(grad) if params is None else exactly(grad, "grad", plain(params))
        H = self._eigen(grad, params)
        found = H.as_user(-self.problem.step(H.values, self._duration(state)), grad)
        return found, replace(state, step=state.step + 1)

    def metric(
        self, grad: ArrayOrMapping, state: Stateless, params: ArrayOrMapping | None = None, **data: Any
    ) -> Metric:
        """``H (I - e^{-R dt})^{-1}``; see `Rule.metric`."""
        grad = plain(grad)
        H = self._eigen(grad, params)
        return H.metric(1.0 / self.problem.step(H.values, self._duration(state)), grad)

    def _duration(self, state: Stateless) -> float:
        if self._dt == math.inf:
            return math.inf
        dt = rate_at(self._dt, state.step)
        if not dt > 0.0:
            raise ValueError(f"expected a positive dt, got {dt}")
        return dt

    def _eigen(self, like: Any, params: Any) -> Eigen:
        if self._constant is not None and self._constant.values.size == layout_of(like).size:
            return self._constant
        H = eigen(self._hessian, like, "the Hessian", params)
        rounding = 1e-12 * float(np.abs(H.values).max()) if H.vectors is not None else 0.0
        if self._negative == "absolute":
            H = Eigen(np.abs(H.values), H.vectors)
        elif (H.values < -rounding).any():
            raise ValueError(
                f"expected curvature that is not negative, got {H.values.min():.3g}: take negative='absolute' for |H|"
            )
        H = Eigen(np.maximum(H.values, 0.0), H.vectors)
        if not callable(self._hessian):
            self._constant = H
        return H
