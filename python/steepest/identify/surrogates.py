"""What chance would score: the same fits on updates that were shuffled over the steps, or given random signs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import ArrayOrMapping, LongVector
from steepest.identify.displacements import over_windows
from steepest.identify.fit import _FAMILIES, _fitted
from steepest.identify.identification import Family
from steepest.identify.scores import block_length
from steepest.identify.steps import PairStep, Steps, steps_of
from steepest.progress import shown

__all__ = ["Kind", "SurrogateScores", "surrogates"]

Array = NDArray[np.float64]
Kind = Literal["shuffle", "flip"]


@dataclass(frozen=True, eq=False)
class SurrogateScores:
    """Held-out R2 of a family on surrogates of a run; made by `steepest.identify.surrogates`.

    Attributes
    ----------
    family, kind : str
        Of the metric, and of the surrogates.
    blocks : tuple of str
        Names along the last axis of what follows.
    r2 : tuple of float
        Of the run itself.
    scores : ndarray, shape (count, blocks)
        Of each surrogate.
    length : int
        Steps that stayed together.
    """

    family: str
    kind: Kind
    blocks: tuple[str, ...]
    r2: tuple[float, ...]
    scores: Array = field(repr=False)
    length: int = 1

    def p(self, block: str | None = None) -> float:
        """Share of surrogates that score at least as much as the run, the run itself counted among them.

        Parameters
        ----------
        block : str, optional
            The first by default.

        Returns
        -------
        float
            At least 1/(count + 1); NaN where the run has no score.
        """
        place = self._place(block)
        scores, found = self.scores[:, place], self.r2[place]
        if not math.isfinite(found):
            return math.nan
        return float(1 + np.count_nonzero(~(scores < found))) / (1 + len(scores))

    def quantile(self, q: float = 0.95, block: str | None = None) -> float:
        """Of the null distribution.

        Parameters
        ----------
        q : float
            Between 0 and 1.
        block : str, optional
            The first by default.

        Returns
        -------
        float
            A score that this share of the surrogates does not exceed.
        """
        scores = self.scores[:, self._place(block)]
        scores = scores[np.isfinite(scores)]
        return float(np.quantile(scores, q)) if scores.size else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Fields as plain Python values, and p of each block.

        Returns
        -------
        dict
            With `scores` as lists.
        """
        values = asdict(self) | {"scores": self.scores.tolist(), "p": [self.p(block) for block in self.blocks]}
        return values | {"blocks": list(self.blocks), "r2": list(self.r2)}

    def _place(self, block: str | None) -> int:
        if block is None:
            return 0
        if block not in self.blocks:
            raise ValueError(f"expected block to be one of {list(self.blocks)[:8]}, got {block!r}")
        return self.blocks.index(block)


def surrogates(
    x: Any = None,
    family: Family = "diagonal",
    *,
    grad: ArrayOrMapping | None = None,
    update: ArrayOrMapping | None = None,
    kind: Kind = "shuffle",
    count: int = 99,
    length: int | None = None,
    holdout: float = 0.25,
    window: int = 1,
    rng: Any = None,
    progress: bool = False,
    **options: Any,
) -> SurrogateScores:
    """Null distribution of the held-out score: the whole analysis again on updates that have lost their gradients.

    Parameters
    ----------
    x, family, grad, update, holdout, window, **options
        As for `steepest.identify`. The run must be one that can be read more than once.
    kind : {'shuffle', 'flip'}
        ``'shuffle'``: the updates in another order of the steps, whole vectors, so that each block keeps its own. What
        gradients and updates have in common at all steps, such as one direction of drift, survives: a run beats it if
        its updates follow the gradients step by step. Needs vectors in any order (whole arrays, a list, a recording).
        ``'flip'``: a random sign for each step. No common direction survives either: a run beats it if its steps go
        downhill in this geometry more often than up. The scalar family needs inner products only.
    count : int
        How many surrogates; the smallest p is 1/(count + 1).
    length : int, optional
        Steps that stay together, or share a sign; by default the length of the correlation of cos psi over the steps
        (`steepest.identify.scores.block_length`). Steps that are not independent taken one by one would make chance
        look too poor.
    rng : int, numpy.random.Generator or None
        For the surrogates (SPEC 7).
    progress : bool
        Show a progress bar on a terminal (needs tqdm).

    Returns
    -------
    SurrogateScores
        Scores of all blocks, p-values, quantiles.

    Raises
    ------
    ValueError
        A run that cannot be read in the order that is needed, an option out of range.

    Notes
    -----
    Derived. Exact (Monte Carlo permutation test) if the steps, in runs of `length`, are exchangeable or symmetric
    under the null hypothesis. Signs for each element are not offered: they would take the elements of one step for
    independent, which gradients are not, so that chance looks too poor.

    Cost: `count` fits and their passes over the vectors.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest.identify import surrogates
    >>> grad = np.random.default_rng(0).normal(size=(60, 3))
    >>> surrogates(grad=grad, update=-0.1 * grad, family="scalar", count=99, rng=0).p()
    0.01
    """
    if family not in _FAMILIES:
        raise ValueError(f"expected family to be one of {', '.join(map(repr, get_args(Family)))}, got {family!r}")
    if kind not in get_args(Kind):
        raise ValueError(f"expected kind 'shuffle' or 'flip', got {kind!r}")
    if count < 1 or not 0.0 < holdout < 1.0 or (length is not None and length < 1):
        raise ValueError(
            f"expected count >= 1, 0 < holdout < 1, length >= 1, got count={count}, holdout={holdout}, length={length}"
        )
    run = over_windows(steps_of(x, grad, update, None), window)
    if not run.repeatable or (kind == "shuffle" and (run.at is None or not run.has_vectors)):
        raise ValueError(
            "expected a run whose vectors can be read in any order for kind='shuffle' (whole arrays, a list of pairs, "
            "a recording with vectors), or one that can be read again for kind='flip'; pass a list instead of an "
            "iterator, or kind='flip' where there are inner products only"
        )
    generator = np.random.default_rng(rng)
    known = [PairStep(s.number, s.products, s.exponents) for s in run.pairs(False)]
    finite = np.flatnonzero([bool(np.isfinite(step.products).all()) for step in known])
    split = int(np.searchsorted(finite, run.total - math.ceil(holdout * run.total)))
    kept = [known[i] for i in finite]
    together = _correlation(kept) if length is None else int(length)

    def score(order: Sequence[int], signs: Sequence[int]) -> Array:
        found = _fitted(family, _rearranged(run, kept, finite, order, signs), split, False, options).held_out
        residual, norm = found[..., 0].sum(axis=0), found[..., 3].sum(axis=0)
        left: Array = np.divide(residual, norm, out=np.full_like(norm, np.nan), where=norm > 0.0)
        return 1.0 - left

    T = len(kept)
    still, upright = range(T), [1] * T
    scores = []
    for _ in shown(range(count), progress, f"surrogates {family}", count):
        if kind == "shuffle":
            scores.append(score(_shuffled(T, together, generator), upright))
        else:
            scores.append(score(still, _signs(T, together, generator)))
    return SurrogateScores(family, kind, run.blocks, tuple(score(still, upright).tolist()), np.array(scores), together)


def _correlation(steps: Sequence[PairStep]) -> int:
    products = np.array([step.products[0] for step in steps]).reshape(-1, 3)
    norms = np.sqrt(products[:, 0] * products[:, 2])
    return block_length(np.divide(products[:, 1], norms, out=np.zeros(len(norms)), where=norms > 0.0)).steps


def _runs(T: int, length: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Consecutive steps, the first run cut at random so that no border is always one."""
    first = int(rng.integers(1, length + 1))
    return [run for run in np.split(np.arange(T), np.arange(first, T, length)) if run.size]


def _shuffled(T: int, length: int, rng: np.random.Generator) -> list[int]:
    runs = _runs(T, length, rng)
    return [int(t) for k in rng.permutation(len(runs)) for t in runs[k]]


def _signs(T: int, length: int, rng: np.random.Generator) -> list[int]:
    return [sign for run in _runs(T, length, rng) for sign in [int(rng.integers(2)) * 2 - 1] * len(run)]


def _rearranged(
    run: Steps, kept: Sequence[PairStep], places: NDArray[np.int64], order: Sequence[int], signs: Sequence[int]
) -> Steps:
    """The gradient of each step with the update of another, or with a sign; steps that are not finite left out."""
    still = all(t == s for t, s in enumerate(order))

    def products(step: PairStep, sign: int) -> Array:
        return step.products * [1.0, sign, 1.0]

    def moved(t: int, vectors: bool) -> PairStep:
        assert run.at is not None  # checked where surrogates are made
        own, other = run.at(int(places[t]), True), run.at(int(places[order[t]]), True)
        assert own.grad is not None  # a run with vectors
        assert other.update is not None
        step = PairStep(own.number, None, None, own.grad, other.update)
        return step if vectors else PairStep(own.number, step.products, step.exponents)

    def pairs(vectors: bool) -> Iterator[PairStep]:
        if not still:
            yield from (moved(t, vectors) for t in range(len(kept)))
            return
        if not vectors:
            yield from (PairStep(s.number, products(s, sign), s.exponents) for s, sign in zip(kept, signs, strict=True))
            return
        wanted = {int(place): sign for place, sign in zip(places, signs, strict=True)}
        for place, step in enumerate(run.pairs(True)):
            if place in wanted:
                sign = wanted[place]
                update = step.update if sign > 0 or step.update is None else _negative(step.update)
                yield PairStep(step.number, products(step, sign), step.exponents, step.grad, update)

    lasting = run.lasting and all(sign > 0 for sign in signs)  # others are copies
    return Steps(run.layout, len(kept), run.has_vectors, run.gradient_source, pairs, True, run.scaled, lasting=lasting)


def _negative(x: LongVector) -> LongVector:
    segments = [
        segment ^ np.uint16(0x8000) if dtype == "bfloat16" else -segment
        for segment, dtype in zip(x.segments, x.dtypes, strict=True)
    ]
    return LongVector(segments, x.layout, x.dtypes)
