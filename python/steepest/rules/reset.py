"""Continual learning: the optimal rule for tasks that switch at random decays towards the mean of the tasks."""

# ruff: noqa: ARG002 (arguments of the protocol that this rule does not need)

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import ArrayOrMapping
from steepest.metrics.interface import Metric
from steepest.rules.finite_step import LinearQuadratic
from steepest.rules.geometry import Eigen, eigen
from steepest.rules.leaves import exactly, flat, from_flat, plain
from steepest.rules.rule import Rule, Stateless

__all__ = ["Reset"]

Vector = NDArray[np.float64]


class Reset(Rule):
    """``update = -(I - e^{-R dt})(w H^{-1} grad + (1 - w)(params - prior))``, ``w = (gamma + R)/(gamma + R + hazard)``.

    Parameters
    ----------
    prior : array or mapping
        Mean of the optima of the tasks to come: often the initial parameters.
    hessian : float, array, mapping, (values, vectors) or callable, optional
        Curvature that the tasks have in common, as of `FiniteStep`; None where it comes with each step, as
        ``curvature=`` of `update`. Not negative.
    hazard : float
        Switches of the task per unit time.
    dt : float
        Duration of a step.
    gamma, eta, k : float
        Discount rate, and the cost ``|theta'|^2/(2 eta) + k loss``.

    Notes
    -----
    Section 13 (paper states it; formula derived). The effective target is ``w mu_current + (1 - w) prior``: a decay
    towards the prior at rate ``hazard R/(gamma + R + hazard)``, so that flat directions (small R) and long horizons
    (small gamma) are reset most. hazard = 0 is `FiniteStep`. The jump-process control problem that plans again after
    each observed switch has the same w. With probability p that the task has switched since `grad` was measured
    (``switched=`` of `update`: 1 for a switch that was detected before there are data of the new task) w becomes
    ``(1 - p) w``; the gradient of the new task is then not yet known, and the step is a pure reset at p = 1.

    With a callable or `curvature` the tasks are not quadratic with common H, and the rule is an approximation.
    Cost: as of `FiniteStep`.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest import rules
    >>> rule = rules.Reset(prior=np.zeros(2), hessian=np.array([0.01, 100.0]), hazard=1.0, dt=0.1)
    >>> rule.weight(np.array([0.01, 100.0])).round(3)
    array([0.091, 0.909])
    >>> theta = np.array([2.0, 2.0])
    >>> rule.update(np.zeros(2), rule.init(theta), theta)[0].round(3)  # at the optimum of the current task
    array([-0.018, -0.115])
    """

    def __init__(
        self,
        prior: ArrayOrMapping,
        hessian: Any = None,
        *,
        hazard: float,
        dt: float,
        gamma: float = 0.0,
        eta: float = 1.0,
        k: float = 1.0,
    ) -> None:
        if not 0.0 <= hazard < math.inf or not 0.0 < dt < math.inf:
            raise ValueError(f"expected hazard >= 0 and dt > 0, both finite, got {hazard}, {dt}")
        self.prior, self._hessian = plain(prior), hessian
        self.hazard, self.dt = float(hazard), float(dt)
        self.problem = LinearQuadratic(gamma, eta, k)
        self._constant: Eigen | None = None

    def init(self, params: ArrayOrMapping) -> Stateless:
        """See `Rule.init`."""
        exactly(params, "params", self.prior)
        return Stateless()

    def weight(self, h: Vector, switched: float = 0.0) -> Vector:
        """How much the current task counts, ``(1 - switched) (gamma + R)/(gamma + R + hazard)``.

        Parameters
        ----------
        h : ndarray
            Curvatures.
        switched : float
            Probability that the task has switched since the gradient was measured.

        Returns
        -------
        ndarray
            As `h`, in [0, 1].

        Raises
        ------
        ValueError
            `switched` is no probability.
        """
        if not 0.0 <= switched <= 1.0:
            raise ValueError(f"expected a probability, got switched={switched}")
        stiffness = self.problem.stiffness(np.asarray(h, dtype=np.float64))
        total = stiffness + self.hazard
        return np.asarray((1.0 - switched) * np.where(total > 0.0, stiffness / np.where(total > 0.0, total, 1.0), 1.0))

    def update(
        self,
        grad: ArrayOrMapping,
        state: Stateless,
        params: ArrayOrMapping | None = None,
        *,
        switched: float = 0.0,
        curvature: ArrayOrMapping | None = None,
        **data: Any,
    ) -> tuple[Any, Stateless]:
        """See `Rule.update`.

        Parameters
        ----------
        grad, state, params, **data
            As there; `params` is needed.
        switched : float
            Probability that the task has switched since `grad` was measured.
        curvature : array or mapping, optional
            Diagonal of H at this step, where the rule was made without a Hessian.

        Returns
        -------
        update : array or dict
            As there.
        state : Stateless
            For the next step.
        """
        grad, params = self._checked(grad, params)
        H = self._eigen(params, curvature)
        w = self.weight(H.values, switched)
        towards_prior = -np.expm1(-self.problem.rate(H.values) * self.dt) * (1.0 - w)
        # Without any weight on the current task its gradient does not enter, and a flat direction needs no limit.
        of_task = np.zeros_like(w) if switched == 1.0 else w * self.problem.step(H.values, self.dt)
        found = -H.apply(of_task, flat(grad)) - H.apply(towards_prior, flat(params) - flat(self.prior))
        return from_flat(found, grad), replace(state, step=state.step + 1)

    def believed(
        self,
        grad: ArrayOrMapping,
        state: Stateless,
        params: ArrayOrMapping | None = None,
        *,
        switched: float = 0.0,
        curvature: ArrayOrMapping | None = None,
        **data: Any,
    ) -> Any:
        """Gradient of the expected loss of the tasks to come, ``w grad + (1 - w) H (params - prior)``.

        Parameters
        ----------
        grad, state, params, switched, curvature, **data
            As of `update`.

        Returns
        -------
        array or dict
            As `grad`.
        """
        grad, params = self._checked(grad, params)
        H = self._eigen(params, curvature)
        w = self.weight(H.values, switched)
        away = flat(params) - flat(self.prior)
        return from_flat(H.apply(w, flat(grad)) + H.apply((1.0 - w) * H.values, away), grad)

    def metric(
        self,
        grad: ArrayOrMapping,
        state: Stateless,
        params: ArrayOrMapping | None = None,
        *,
        curvature: ArrayOrMapping | None = None,
        **data: Any,
    ) -> Metric:
        """``H (I - e^{-R dt})^{-1}``, relative to `believed`; see `Rule.metric`.

        Parameters
        ----------
        grad, state, params, curvature, **data
            As of `update`.

        Returns
        -------
        Metric
            The same for every hazard: hazard and prior change the gradient that is believed, not the geometry.
        """
        grad, params = self._checked(grad, params)
        H = self._eigen(params, curvature)
        return H.metric(1.0 / self.problem.step(H.values, self.dt), grad)

    def _checked(self, grad: Any, params: Any) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("expected params, since the rule decays towards a prior, got none")
        return exactly(grad, "grad", self.prior), exactly(params, "params", self.prior)

    def _eigen(self, params: Any, curvature: Any) -> Eigen:
        if (self._hessian is None) == (curvature is None):
            raise ValueError("expected a Hessian when the rule is made, or curvature= at each step, and not both")
        if self._constant is not None:
            return self._constant
        H = eigen(self._hessian if curvature is None else curvature, params, "the Hessian", params)
        rounding = 1e-12 * float(np.abs(H.values).max()) if H.vectors is not None else 0.0
        if (H.values < -rounding).any():
            raise ValueError(f"expected curvature that is not negative, got {H.values.min():.3g}")
        H = Eigen(np.maximum(H.values, 0.0), H.vectors)
        if curvature is None and not callable(self._hessian):
            self._constant = H
        return H
