"""A rule that acts on a filtered gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from steepest.arrays import ArrayOrMapping
from steepest.metrics.interface import Metric
from steepest.rules.filters import Belief, Drifting, FlatPrior
from steepest.rules.rule import Rule

__all__ = ["Filtered", "FilteredState"]


@dataclass(frozen=True)
class FilteredState:
    """State of `Filtered`.

    Attributes
    ----------
    belief : Belief
        Of the filter.
    inner : object
        Of the rule.
    """

    belief: Belief
    inner: Any

    @property
    def step(self) -> int:
        """Updates made so far."""
        return int(self.inner.step)


class Filtered(Rule):
    """A rule that is given what a filter believes the gradient to be, in place of the gradient: momentum.

    Parameters
    ----------
    belief : Drifting or FlatPrior
        The filter.
    rule : Rule
        Any that looks at the gradient.

    Notes
    -----
    Section 13 (certainty equivalence). `Drifting` before gradient descent is gradient descent with an exponential
    average of decay ``beta1 = (1 - K) phi``: heavy ball, up to its rate.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest import rules
    >>> rule = rules.Filtered(rules.Drifting(phi=1.0, q=0.01, r=1.0), rules.NaturalGradient(rate=0.1))
    >>> state = rule.init(np.zeros(1))
    >>> for _ in range(3):
    ...     update, state = rule.update(np.ones(1), state)
    ...     print(update.round(4))
    [-0.0095]
    [-0.0181]
    [-0.0259]
    """

    def __init__(self, belief: Drifting | FlatPrior, rule: Rule) -> None:
        self.filter, self.rule = belief, rule

    def init(self, params: ArrayOrMapping) -> FilteredState:
        """See `Rule.init`."""
        return FilteredState(self.filter.init(params), self.rule.init(params))

    def update(
        self, grad: ArrayOrMapping, state: FilteredState, params: ArrayOrMapping | None = None, **data: Any
    ) -> tuple[Any, FilteredState]:
        """See `Rule.update`."""
        belief = self.filter.update(grad, state.belief)
        found, inner = self.rule.update(belief.mean, state.inner, params, **data)
        return found, FilteredState(belief, inner)

    def believed(
        self, grad: ArrayOrMapping, state: FilteredState, params: ArrayOrMapping | None = None, **data: Any
    ) -> Any:
        """What the rule makes of the mean after this gradient; see `Rule.believed`."""
        return self.rule.believed(self.filter.update(grad, state.belief).mean, state.inner, params, **data)

    def metric(
        self, grad: ArrayOrMapping, state: FilteredState, params: ArrayOrMapping | None = None, **data: Any
    ) -> Metric:
        """That of the rule, relative to `believed`; see `Rule.metric`."""
        return self.rule.metric(self.filter.update(grad, state.belief).mean, state.inner, params, **data)
