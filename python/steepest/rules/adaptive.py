"""Rules that adapt to what they believe of gradient and curvature: ballistic, and general discount."""

# ruff: noqa: ARG002 (arguments of the protocol that this rule does not need)

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from steepest.arrays import ArrayOrMapping
from steepest.metrics.interface import Metric
from steepest.rules.filters import Belief, FlatPrior
from steepest.rules.geometry import diagonal_metric
from steepest.rules.leaves import each, exactly, flat, plain, zeros_like
from steepest.rules.rule import Rule, Schedule, rate_at

__all__ = ["Adaptive", "AdaptiveState", "Ballistic", "BallisticState"]


@dataclass(frozen=True)
class BallisticState:
    """State of `Ballistic`.

    Attributes
    ----------
    step : int
        Updates made so far.
    square : array or dict
        Running mean square of the gradient.
    """

    step: int
    square: Any


class Ballistic(Rule):
    """``s2 <- decay s2 + (1 - decay) grad^2;  update = -rate grad / sqrt(s2 + epsilon)``.

    Parameters
    ----------
    rate : float or callable
        Learning rate, or a function of the number of the step.
    decay : float
        Of the running mean square, in [0, 1).
    epsilon : float
        Inside of the root, positive.

    Notes
    -----
    Section 13 (code of Vastola et al. 2025): RMSProp with epsilon inside of the root; no first moment, no bias
    correction, so the first step is ``rate/sqrt(1 - decay)`` per coordinate. Cost: elementwise, one long vector of
    state.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest import rules
    >>> rule = rules.Ballistic(rate=0.01, decay=0.99, epsilon=1e-12)
    >>> grad = np.array([4.0, -0.5])
    >>> update, state = rule.update(grad, rule.init(grad))
    >>> update.round(6)
    array([-0.1,  0.1])
    """

    def __init__(self, rate: Schedule = 5e-4, decay: float = 0.999, epsilon: float = 1e-8) -> None:
        if not 0.0 <= decay < 1.0 or not 0.0 < epsilon < math.inf:
            raise ValueError(f"expected decay in [0, 1) and a positive epsilon, got {decay}, {epsilon}")
        self._rate, self.decay, self.epsilon = rate, decay, epsilon

    def init(self, params: ArrayOrMapping) -> BallisticState:
        """See `Rule.init`."""
        return BallisticState(0, zeros_like(plain(params)))

    def _square(self, grad: Any, state: BallisticState) -> Any:
        decay = self.decay
        return each(lambda s, g: decay * s + (1.0 - decay) * (g * g), state.square, grad)

    def update(
        self, grad: ArrayOrMapping, state: BallisticState, params: ArrayOrMapping | None = None, **data: Any
    ) -> tuple[Any, BallisticState]:
        """See `Rule.update`."""
        grad = exactly(grad, "grad", state.square)
        rate = rate_at(self._rate, state.step)
        square = self._square(grad, state)
        found = each(lambda g, s: -rate * g / (s + self.epsilon) ** 0.5, grad, square)
        return found, BallisticState(state.step + 1, square)

    def metric(
        self, grad: ArrayOrMapping, state: BallisticState, params: ArrayOrMapping | None = None, **data: Any
    ) -> Metric:
        """``diag(sqrt(s2 + epsilon))/rate``, s2 after this gradient; see `Rule.metric`."""
        grad = exactly(grad, "grad", state.square)
        square = flat(self._square(grad, state))
        return diagonal_metric((square + self.epsilon) ** 0.5 / rate_at(self._rate, state.step), grad)


@dataclass(frozen=True)
class AdaptiveState:
    """State of `Adaptive`.

    Attributes
    ----------
    step : int
        Updates made so far.
    belief : Belief
        About gradient and curvature.
    """

    step: int
    belief: Belief


class Adaptive(Rule):
    """``d = -dt eta k m / (gamma/2 + sqrt(gamma^2/4 + eta k V))``: the optimal rule for the believed local loss.

    Parameters
    ----------
    dt : float or callable
        Duration of a step, or a function of its number.
    gamma : float
        Discount rate, not negative: 0 is ballistic, of Adam's form; large is gradient descent.
    eta, k : float
        Step cost ``|theta'|^2/(2 eta)`` and weight of the loss; positive.
    beta1, beta2 : float
        Of the filter `FlatPrior`: discounts of the mean and of the mean square of the gradient.
    epsilon : float
        Added to V, as a curvature that is always expected. At gamma = 0 and 0 an element that never had a gradient
        stays.

    Notes
    -----
    Section 13 (derived from the paper): m and V are the bias-corrected moments of `FlatPrior`, V = E[g^2] standing for
    the curvature (Fisher identification, valid for log-likelihood losses near the model). With gamma = epsilon = 0 and
    rate = dt sqrt(eta k) it is Adam with eps = 0. Cost: elementwise, two long vectors of state.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest import rules
    >>> rule = rules.Adaptive(dt=0.1, gamma=0.0)
    >>> grad = np.array([4.0, -0.5])
    >>> rule.update(grad, rule.init(grad))[0]
    array([-0.1,  0.1])
    """

    def __init__(
        self,
        dt: Schedule,
        *,
        gamma: float = 0.0,
        eta: float = 1.0,
        k: float = 1.0,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 0.0,
    ) -> None:
        if not (0.0 <= gamma < math.inf and 0.0 < eta * k < math.inf and 0.0 <= epsilon < math.inf):
            raise ValueError(
                f"expected gamma >= 0, eta, k > 0, epsilon >= 0, got gamma={gamma}, eta={eta}, k={k}, epsilon={epsilon}"
            )
        self._dt, self.gamma, self.gain, self.epsilon = dt, gamma, eta * k, epsilon
        self._filter = FlatPrior(beta1, beta2)

    def init(self, params: ArrayOrMapping) -> AdaptiveState:
        """See `Rule.init`."""
        return AdaptiveState(0, self._filter.init(params))

    def _stiffness(self, square: Any) -> Any:
        return 0.5 * self.gamma + (0.25 * self.gamma**2 + self.gain * (square + self.epsilon)) ** 0.5

    def update(
        self, grad: ArrayOrMapping, state: AdaptiveState, params: ArrayOrMapping | None = None, **data: Any
    ) -> tuple[Any, AdaptiveState]:
        """See `Rule.update`."""
        belief = self._filter.update(grad, state.belief)
        scale = -rate_at(self._dt, state.step) * self.gain

        def one(m: Any, v: Any) -> Any:
            stiffness = self._stiffness(v)
            return scale * m / (stiffness + (stiffness == 0.0))  # 0/0 where there never was a gradient

        return each(one, belief.mean, belief.square), replace(state, step=state.step + 1, belief=belief)

    def believed(
        self, grad: ArrayOrMapping, state: AdaptiveState, params: ArrayOrMapping | None = None, **data: Any
    ) -> Any:
        """The mean m after this gradient; see `Rule.believed`."""
        return self._filter.update(grad, state.belief).mean

    def metric(
        self, grad: ArrayOrMapping, state: AdaptiveState, params: ArrayOrMapping | None = None, **data: Any
    ) -> Metric:
        """``diag(gamma/2 + sqrt(gamma^2/4 + eta k V))/(dt eta k)``, relative to `believed`; see `Rule.metric`."""
        belief = self._filter.update(grad, state.belief)
        stiffness = self._stiffness(flat(belief.square))
        return diagonal_metric(stiffness / (rate_at(self._dt, state.step) * self.gain), belief.mean)
