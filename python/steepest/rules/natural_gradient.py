"""Natural gradient descent in a given metric."""

# ruff: noqa: ARG002 (arguments of the protocol that this rule does not need)

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator, cg

from steepest.arrays import ArrayOrMapping
from steepest.metric import metric as metric_of_pair
from steepest.metrics.interface import Metric
from steepest.rules.geometry import called, eigen
from steepest.rules.leaves import exactly, flat, from_flat, plain
from steepest.rules.rule import Rule, Schedule, Stateless, rate_at

__all__ = ["NaturalGradient"]


class NaturalGradient(Rule):
    """``update = -rate M^{-1} grad`` with a metric M that is known.

    Parameters
    ----------
    metric : float, array, mapping, (values, vectors), Metric, LinearOperator or callable
        A multiple of the identity (1.0 is gradient descent), a diagonal of the parameters' shapes, a dense matrix of
        shape (n, n), eigenvalues and eigenvectors, any `Metric`, a symmetric positive definite SciPy LinearOperator
        (its ``solve`` is used if it has one, else conjugate gradients to 1e-12), or a function params -> one of these.
    rate : float or callable
        Learning rate, or a function of the number of the step.

    Notes
    -----
    Section 13 (paper: geometry): ``theta' = -(eta k/gamma) G^{-1} grad L`` for a short horizon: rate = eta k/gamma.
    Cost: a solve; O(n^3) at each step for a dense matrix from a callable.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest import rules
    >>> rule = rules.NaturalGradient(np.array([1.0, 4.0]), rate=0.5)
    >>> theta = np.array([1.0, 1.0])
    >>> update, state = rule.update(theta, rule.init(theta))
    >>> update
    array([-0.5  , -0.125])
    >>> rule.metric(theta, state).diagonal()
    array([2., 8.])
    """

    def __init__(self, metric: Any = 1.0, *, rate: Schedule) -> None:
        self._metric, self._rate = metric, rate
        self._known: tuple[Any, Any] | None = None  # the template, and the form of a constant metric for it

    def init(self, params: ArrayOrMapping) -> Stateless:
        """See `Rule.init`."""
        plain(params)
        return Stateless()

    def update(
        self, grad: ArrayOrMapping, state: Stateless, params: ArrayOrMapping | None = None, **data: Any
    ) -> tuple[Any, Stateless]:
        """See `Rule.update`."""
        grad = plain(grad) if params is None else exactly(grad, "grad", plain(params))
        rate = rate_at(self._rate, state.step)
        form = self._form(grad, params)
        x = -rate * flat(grad, "grad")
        if isinstance(form, Metric):
            found = np.asarray(form.solve(x))
        elif isinstance(form, LinearOperator):
            found = _operator_solution(form, x)
        else:
            found = form.apply(1.0 / form.values, x)
        return from_flat(found, grad), replace(state, step=state.step + 1)

    def metric(
        self, grad: ArrayOrMapping, state: Stateless, params: ArrayOrMapping | None = None, **data: Any
    ) -> Metric:
        """M/rate; see `Rule.metric`."""
        grad = plain(grad)
        rate = rate_at(self._rate, state.step)
        form = self._form(grad, params)
        if isinstance(form, Metric):
            divided: Metric = form / rate
            return divided
        if isinstance(form, LinearOperator):
            # The metric of a pair nearest to B/rate, where B/rate fits the pair already, is B/rate itself.
            update, _ = self.update(grad, state, params)
            solve = getattr(form, "solve", None)
            scaled = LinearOperator(form.shape, matvec=lambda v: form.matvec(v) / rate, dtype=np.float64)
            found: Metric = metric_of_pair(
                grad,
                update,
                base=scaled,
                base_solve=lambda b: rate * (solve or (lambda v: _operator_solution(form, v)))(b),
            )
            return found
        own: Metric = form.metric(form.values / rate, grad)
        return own

    def _form(self, grad: Any, params: Any) -> Any:
        given = called(self._metric, params, "the metric")
        if isinstance(given, Metric | LinearOperator):
            size = flat(grad).size
            if given.shape != (size, size):
                raise ValueError(f"expected a metric of shape ({size}, {size}) for this gradient, got {given.shape}")
            return given
        if given is self._metric and self._known is not None and self._known[0] == _form_of(grad):
            return self._known[1]
        found = eigen(given, grad, "the metric", params)
        if not (found.values > 0.0).all():
            raise ValueError(f"expected a positive definite metric, got an eigenvalue {found.values.min():.3g}")
        if given is self._metric:
            self._known = _form_of(grad), found
        return found


def _form_of(x: Any) -> Any:
    return {name: np.shape(a) for name, a in x.items()} if isinstance(x, dict) else np.shape(x)


def _operator_solution(operator: LinearOperator, b: Any) -> Any:
    solve = getattr(operator, "solve", None)
    if solve is not None:
        return np.asarray(solve(b))
    found, info = cg(operator, b, rtol=1e-12, atol=0.0, maxiter=10 * len(b))
    if info != 0:
        raise ValueError(
            "conjugate gradients did not converge: expected a symmetric positive definite operator of moderate "
            "condition number; give it a solve method"
        )
    return found
