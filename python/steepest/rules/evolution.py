"""An evolution strategy: descent along a gradient that is estimated from losses of perturbed parameters."""

# ruff: noqa: ARG002 (arguments of the protocol that this rule does not need)

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import ArrayOrMapping
from steepest.rules.leaves import flat, from_flat, plain
from steepest.rules.rule import Rule, Schedule, rate_at

__all__ = ["EvolutionState", "EvolutionStrategy"]


@dataclass(frozen=True)
class EvolutionState:
    """State of `EvolutionStrategy`: what the perturbations of the next step follow from.

    Attributes
    ----------
    step : int
        Updates made so far.
    seed : int
        Of this run.
    """

    step: int
    seed: int


class EvolutionStrategy(Rule):
    """Antithetic evolution strategy: ``update = -rate mean of (L(params + s e) - L(params - s e))/(2 s) e``.

    Parameters
    ----------
    loss : callable
        ``loss(params) -> float``, params in the form and library of those given to `update`.
    rate : float or callable
        Learning rate, or a function of the number of the step.
    sigma : float
        Width s of the perturbations.
    pairs : int
        Antithetic pairs e, -e to a step.
    shaping : {'none', 'centred rank'}
        ``centred rank`` puts ranks of the 2 `pairs` losses in their place, equally spaced from -1/2 to 1/2: the update
        does not change under any increasing function of the loss.
    rng : Generator or int, optional
        Seeds `init`; perturbations are a function of the state, so a step can be repeated.

    Notes
    -----
    Its mean, without shaping, is minus `rate` times the gradient of the loss smoothed by a Gaussian of width sigma; its
    noise is what `steepest.experiments.evolution` is about. `update` does not look at `grad`, which may be None, and
    needs `params`. Cost: 2 pairs losses a step, and pairs long vectors.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest import rules
    >>> rule = rules.EvolutionStrategy(lambda x: float(x @ x), rate=0.05, sigma=0.1, pairs=50, rng=0)
    >>> run = rule.run(lambda x: (x @ x, 2 * x), np.ones(3), 100, objective="fixed")
    >>> bool(np.abs(run.params).max() < 1e-3)
    True
    """

    gradient_source = "evaluation"
    no_metric = (
        "its update is random, on average minus a multiple of the gradient of the smoothed loss; pairs.stochastic "
        "compares averages"
    )

    def __init__(
        self,
        loss: Callable[[Any], Any],
        *,
        rate: Schedule,
        sigma: float,
        pairs: int,
        shaping: Literal["none", "centred rank"] = "none",
        rng: np.random.Generator | int | None = None,
    ) -> None:
        if not 0.0 < sigma < math.inf or pairs < 1:
            raise ValueError(f"expected a positive sigma and at least one pair, got {sigma}, {pairs}")
        if shaping not in ("none", "centred rank"):
            raise ValueError(f"expected shaping to be 'none' or 'centred rank', got {shaping!r}")
        self._loss, self._rate = loss, rate
        self.sigma, self.pairs, self.shaping = float(sigma), int(pairs), shaping
        self._seed = int(np.random.default_rng(rng).integers(2**63))

    def init(self, params: ArrayOrMapping) -> EvolutionState:
        """See `Rule.init`."""
        plain(params)
        return EvolutionState(0, self._seed)

    def update(
        self, grad: ArrayOrMapping | None, state: EvolutionState, params: ArrayOrMapping | None = None, **data: Any
    ) -> tuple[Any, EvolutionState]:
        """See `Rule.update`."""
        if params is None:
            raise ValueError("expected params, around which the loss is evaluated, got none")
        params = plain(params)
        theta = flat(params, "params")
        E = np.random.default_rng([state.seed, state.step]).standard_normal((self.pairs, theta.size))
        losses = np.array([[self._at(theta + s * e, params) for s in (self.sigma, -self.sigma)] for e in E])
        if not np.isfinite(losses).all():
            raise ValueError("expected finite losses of the perturbed parameters: lower sigma or the rate")
        if self.shaping == "centred rank":
            losses = centred_ranks(losses.ravel()).reshape(losses.shape)
        slope = (losses[:, 0] - losses[:, 1]) / (2.0 * self.sigma)
        found = -rate_at(self._rate, state.step) * (slope @ E) / self.pairs
        return from_flat(found, params), replace(state, step=state.step + 1)

    def _at(self, theta: NDArray[np.float64], params: Any) -> float:
        return float(self._loss(from_flat(theta, params)))


def centred_ranks(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks, equally spaced from -1/2 (the least) to 1/2; equal losses share the mean of theirs.

    Parameters
    ----------
    losses : ndarray, shape (m,)
        At least two.

    Returns
    -------
    ndarray, shape (m,)
        Sum 0.
    """
    _, inverse, counts = np.unique(losses, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - 0.5 * (counts + 1)
    return np.asarray(mean_rank[inverse] / (len(losses) - 1) - 0.5)
