"""Learning with uncertain weights: uncertain weights learn faster, and curvature makes them certain."""

# ruff: noqa: ARG002 (arguments of the protocol that this rule does not need)

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from steepest.arrays import ArrayOrMapping
from steepest.metrics.interface import Metric
from steepest.rules.geometry import diagonal_metric
from steepest.rules.leaves import each, exactly, flat, plain
from steepest.rules.rule import Rule, Schedule, rate_at

__all__ = ["WeightUncertainty", "WeightUncertaintyState"]


@dataclass(frozen=True)
class WeightUncertaintyState:
    """State of `WeightUncertainty`.

    Attributes
    ----------
    step : int
        Updates made so far.
    variance : array or dict
        v of each weight.
    """

    step: int
    variance: Any


class WeightUncertainty(Rule):
    """Weights ``N(mu, v)``: ``mu' = -c v dE[L]/dmu``, ``v' = -c (v^2 H_ii - T v)``.

    Parameters
    ----------
    variance : float, array or mapping
        Initial v, positive.
    temperature : float
        T of the entropy, not negative.
    rate : float or callable
        c dt, with ``c = eta k/gamma``; a number or a function of the number of the step.

    Notes
    -----
    Section 13 (paper states it; formula derived): natural gradient in the Fisher metric ``diag(1/v, 1/(2 v^2))`` of
    ``E[L] - T entropy``, short horizon, with ``dE[L]/dv = H_ii/2``. The fixed point is ``v = T/H_ii``. `update` takes
    ``curvature=``, the diagonal E[H_ii]. The precision obeys a linear equation, ``(1/v)' = c (H_ii - T/v)``, and is
    advanced by its exact solution for constant curvature, so v stays positive wherever H_ii >= 0; the mean takes the v
    from before the step. `params` are the means. Cost: elementwise.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest import rules
    >>> rule = rules.WeightUncertainty(variance=1.0, temperature=0.1, rate=0.5)
    >>> mu, h = np.array([1.0, 1.0]), np.array([1.0, 10.0])
    >>> state = rule.init(mu)
    >>> for _ in range(400):
    ...     update, state = rule.update(h * mu, state, curvature=h)
    ...     mu = mu + update
    >>> state.variance.round(6)
    array([0.1 , 0.01])
    """

    def __init__(self, *, variance: Any, temperature: float, rate: Schedule) -> None:
        if not 0.0 <= temperature < math.inf:
            raise ValueError(f"expected a temperature that is not negative, got {temperature}")
        self._variance, self.temperature, self._rate = variance, float(temperature), rate

    def init(self, params: ArrayOrMapping) -> WeightUncertaintyState:
        """See `Rule.init`."""
        params = plain(params)
        given = self._variance
        if isinstance(given, float | int):
            variance = each(lambda a: 0.0 * a + float(given), params)
        else:
            variance = each(lambda a: 1.0 * a, exactly(given, "variance", params))  # a copy
        if not (flat(variance) > 0.0).all():
            raise ValueError("expected positive variances")
        return WeightUncertaintyState(0, variance)

    def update(
        self,
        grad: ArrayOrMapping,
        state: WeightUncertaintyState,
        params: ArrayOrMapping | None = None,
        *,
        curvature: ArrayOrMapping | None = None,
        **data: Any,
    ) -> tuple[Any, WeightUncertaintyState]:
        """See `Rule.update`.

        Parameters
        ----------
        grad, state, params, **data
            As there; `grad` is that of E[L] in the means.
        curvature : array or mapping
            Diagonal of E[H].

        Returns
        -------
        update : array or dict
            Of the means.
        state : WeightUncertaintyState
            With the new variances.

        Raises
        ------
        ValueError
            No curvature, or so much negative curvature that v has no finite value after the step.
        """
        if curvature is None:
            raise ValueError("expected curvature=, the diagonal of the Hessian, got none")
        grad = exactly(grad, "grad", state.variance)
        curvature = exactly(curvature, "curvature", state.variance)
        rate, T = rate_at(self._rate, state.step), self.temperature
        kept = math.exp(-rate * T)
        gained = -math.expm1(-rate * T) / T if T > 0.0 else rate
        variance = each(lambda v, h: v / (kept + gained * h * v), state.variance, curvature)
        found = flat(variance)
        if not ((found > 0.0) & np.isfinite(found)).all():
            raise ValueError(
                "the variance diverged under negative curvature: expected E[H_ii] >= 0, or a smaller rate; clip the "
                "curvature at 0"
            )
        update = each(lambda g, v: -rate * v * g, grad, state.variance)
        return update, WeightUncertaintyState(state.step + 1, variance)

    def metric(
        self, grad: ArrayOrMapping, state: WeightUncertaintyState, params: ArrayOrMapping | None = None, **data: Any
    ) -> Metric:
        """``diag(1/(rate v))`` over the means; see `Rule.metric`."""
        return diagonal_metric(1.0 / (rate_at(self._rate, state.step) * flat(state.variance)), plain(grad))
