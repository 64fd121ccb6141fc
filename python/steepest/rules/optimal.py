"""The policy of a control problem as a learning rule: drift, actuation and geometry included."""

# ruff: noqa: ARG002 (arguments of the protocol that this rule does not need)

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from steepest.arrays import ArrayOrMapping
from steepest.metric import metric as metric_of_pair
from steepest.metrics.interface import Metric
from steepest.navigation import Policy
from steepest.rules.leaves import exactly, flat, from_flat, plain
from steepest.rules.rule import Rule, Stateless

__all__ = ["Optimal"]


class Optimal(Rule):
    """``update = theta(dt) - theta`` of the optimal policy of a control problem on a quadratic loss.

    Parameters
    ----------
    policy : Policy
        Of `steepest.navigation.Navigator.policy`.
    dt : float
        Duration of a step; the step is exact for any.

    Raises
    ------
    TypeError
        No policy.
    ValueError
        dt is not positive and finite.

    Notes
    -----
    Section 13. The policy knows its loss, so it follows from the parameters alone and the gradient that is handed in
    is not read: with a drift, or where not everything can be moved, it is no function of the gradient. Cost: O(n^2) a
    step, O(n) for a diagonal problem without drift.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest import rules
    >>> from steepest.navigation import Navigator, Quadratic, rotation
    >>> policy = Navigator(Quadratic(np.full(2, 4.0), [1.0, 0.0]), discount=0.5, drift=rotation(3.0)).policy()
    >>> rule = rules.Optimal(policy, dt=0.1)
    >>> theta, state = np.array([2.0, 2.0]), rule.init(np.zeros(2))
    >>> for _ in range(200):
    ...     step, state = rule.update(policy.loss.gradient(theta), state, theta)
    ...     theta = theta + step
    >>> bool(np.allclose(theta, policy.fixed_point))
    True
    """

    def __init__(self, policy: Policy, *, dt: float) -> None:
        if not isinstance(policy, Policy):
            raise TypeError(f"expected a policy of steepest.navigation.Navigator, got {type(policy).__name__}")
        if not 0.0 < dt < math.inf:
            raise ValueError(f"expected dt to be positive and finite, got {dt!r}")
        self.policy, self.dt = policy, float(dt)

    def init(self, params: ArrayOrMapping) -> Stateless:
        """See `Rule.init`."""
        size = flat(plain(params), "params").size
        if size != self.policy.size:
            raise ValueError(f"expected params with {self.policy.size} elements, as the policy has, got {size}")
        return Stateless()

    def update(
        self, grad: ArrayOrMapping, state: Stateless, params: ArrayOrMapping | None = None, **data: Any
    ) -> tuple[Any, Stateless]:
        """See `Rule.update`; needs params."""
        if params is None:
            raise ValueError("expected params: an optimal policy follows from the parameters")
        here = plain(params)
        exactly(grad, "grad", here)
        found = self.policy.update(flat(here, "params"), self.dt)
        return from_flat(found, here), replace(state, step=state.step + 1)

    def metric(
        self, grad: ArrayOrMapping, state: Stateless, params: ArrayOrMapping | None = None, **data: Any
    ) -> Metric:
        """The constant metric of the finite step where there is one, else the condition-optimal one of this step."""
        if self.policy.not_natural is None:
            return self.policy.metric(dt=self.dt)
        update, _ = self.update(grad, state, params)
        found: Metric = metric_of_pair(plain(grad), update)
        return found
