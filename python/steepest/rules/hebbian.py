"""Hebbian learning: the plain rule, Oja's rule, and Sanger's generalisation to several components."""

# ruff: noqa: ARG002 (arguments of the protocol that this rule does not need)

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np

from steepest.arrays import ArrayOrMapping
from steepest.rules.feedback import float64_array
from steepest.rules.leaves import from_flat, plain
from steepest.rules.rule import Rule, Schedule, Stateless, rate_at

__all__ = ["Hebbian"]


class Hebbian(Rule):
    """``update = rate mean(s (x - decay))`` with outputs ``s = W x``.

    Parameters
    ----------
    kind : {'oja', 'sanger', 'plain'}
        ``oja``: the decay is ``W^T s`` (of one output: ``s w``; of several: the subspace rule); ``sanger``: output i
        sees the outputs up to i only, ``sum_{j <= i} s_j w_j``, so that the rows become the principal components in
        order; ``plain``: none, and the weights grow without bound.
    rate : float or callable
        Learning rate, or a function of the number of the step.

    Notes
    -----
    Parameters are one array, shape (inputs,) or (outputs, inputs). `update` needs `params` and, by name, ``inputs`` of
    shape (examples, inputs), of mean 0 for principal components; it does not look at `grad`, which may be None. Oja
    (1982, 1989), Sanger (1989). Of which objective Oja's rule is steepest descent: `steepest.experiments.oja`.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest import rules
    >>> x = np.random.default_rng(0).standard_normal((500, 3)) * [3.0, 1.0, 0.5]
    >>> rule, w = rules.Hebbian(rate=0.02), np.array([0.1, 0.2, 0.3])
    >>> state = rule.init(w)
    >>> for _ in range(300):
    ...     update, state = rule.update(None, state, w, inputs=x)
    ...     w = w + update
    >>> bool(abs(w[0]) > 0.99), bool(abs(w @ w - 1) < 1e-6)
    (True, True)
    """

    gradient_source = "evaluation"
    no_metric = "it has no loss; give steepest.align one that it might follow, as steepest.experiments.oja does"

    def __init__(self, kind: Literal["oja", "sanger", "plain"] = "oja", *, rate: Schedule) -> None:
        if kind not in ("oja", "sanger", "plain"):
            raise ValueError(f"expected kind 'oja', 'sanger' or 'plain', got {kind!r}")
        self.kind, self._rate = kind, rate

    def init(self, params: ArrayOrMapping) -> Stateless:
        """See `Rule.init`."""
        if np.ndim(plain(params)) not in (1, 2):
            raise ValueError(f"expected weights of shape (inputs,) or (outputs, inputs), got {np.shape(params)}")
        return Stateless()

    def update(
        self,
        grad: ArrayOrMapping | None,
        state: Stateless,
        params: ArrayOrMapping | None = None,
        *,
        inputs: Any = None,
        **data: Any,
    ) -> tuple[Any, Stateless]:
        """See `Rule.update`.

        Parameters
        ----------
        grad, state, params, **data
            As there; `params` are needed.
        inputs : array, shape (examples, inputs)
            One example a row.

        Returns
        -------
        update : array
            As `params`.
        state : Stateless
            For the next step.

        Raises
        ------
        ValueError
            `params` or `inputs` is missing, or they do not fit.
        """
        if params is None or inputs is None:
            raise ValueError("expected params and inputs=, of which one is missing")
        W, X = np.atleast_2d(float64_array(params)), np.atleast_2d(float64_array(inputs))
        if X.shape[1] != W.shape[1]:
            raise ValueError(f"expected inputs of shape (examples, {W.shape[1]}), got {X.shape}")
        S = X @ W.T
        found = S.T @ X / len(X)
        if self.kind != "plain":
            products = S.T @ S / len(X)
            found = found - (np.tril(products) if self.kind == "sanger" else products) @ W
        found *= rate_at(self._rate, state.step)
        return from_flat(found.ravel(), params), replace(state, step=state.step + 1)
