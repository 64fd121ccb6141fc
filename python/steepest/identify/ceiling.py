"""How well any constant metric could do: the noise of the gradients, from replicates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import Layout, LongVector
from steepest.identify.displacements import add_to
from steepest.identify.scores import ratio, resampled
from steepest.identify.steps import PairStep, Steps, products_of
from steepest.recorder import Recorder
from steepest.recording import Recording
from steepest.step_rows import ordered

__all__ = ["Ceiling", "Predicted", "ceiling_of", "replicate_products"]

Array = NDArray[np.float64]
Predicted = Literal["gradient", "update"]


@dataclass(frozen=True)
class Ceiling:
    """Best score of a rule that consumed one gradient like the replicate.

    Attributes
    ----------
    value, low, high : float
        ``(sum y.r)^2 / (sum y.y sum r.r)`` with the sign of sum y.r, and its 95% interval.
    any_rule : float
        ``sum y.r / sum y.y``: no rule at all, however little noise it has itself, can predict more of y.
    predicts : {'gradient', 'update'}
        Which of the two to predict from the other: the one with more noise. Noise in what is predicted lowers the
        scores of all families alike, to the ceiling at most; noise in the predictor is filtered by a structured
        metric, which then scores better than the rule's own.
    relative, relative_low, relative_high : float
        Score in that direction over `value`.
    """

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    any_rule: float = math.nan
    predicts: Predicted = "gradient"
    relative: float = math.nan
    relative_low: float = math.nan
    relative_high: float = math.nan


def replicate_products(steps: Steps, replicate: Any, numbers: list[int], window: int = 1) -> Array:
    """Inner products of the gradients with their replicates.

    Parameters
    ----------
    steps : Steps
        The run; it is read once more.
    replicate : array, mapping, Recording, Recorder, path-like or iterable of vectors
        A gradient for each step of the run, first axis the step.
    numbers : list of int
        Numbers of the steps held out.
    window : int
        How many replicates are averaged for each step of the run.

    Returns
    -------
    ndarray, shape (steps held out, blocks, 3)
        y.y, y.r, r.r of each step over powers of two that do not depend on the step; NaN where a replicate is not
        finite.

    Raises
    ------
    ValueError
        Another layout, or fewer replicates than steps; steps that cannot be read again.
    """
    if not steps.repeatable:
        raise ValueError(
            "expected steps that can be read again where replicate= is given, got an iterator: pass a list"
        )
    wanted = set(numbers)
    rows, exponents = [], []
    given = _gradients(replicate)
    for step in steps.pairs(True):
        try:
            r = _mean(given, steps.layout, window)
        except StopIteration:
            raise ValueError(f"expected a replicate for each of {steps.total * window} steps, got fewer") from None
        if step.number in wanted:
            found, powers = products_of(_gradient(step), r)
            rows.append(found * [1.0, -1.0, 1.0])
            exponents.append(powers)
    if not rows:
        return np.zeros((0, len(steps.blocks), 3))
    products, powers = np.array(rows), np.array(exponents)
    shift = powers - powers.max(axis=0)
    with np.errstate(under="ignore"):
        powers = np.stack([2 * shift[..., 0], shift.sum(axis=-1), 2 * shift[..., 1]], axis=-1)
        return np.asarray(np.ldexp(products, powers))


def ceiling_of(
    products: Array, residuals: Mapping[Predicted, tuple[Array, Array]], rng: np.random.Generator
) -> Ceiling:
    """The noise ceiling of one block, and the score in units of it.

    Parameters
    ----------
    products : ndarray, shape (steps held out, 3)
        As from `replicate_products`.
    residuals : mapping
        ``gradient``: |y - M g|^2 and |y|^2, ``update``: |g - P y|^2 and |g|^2 of the same steps, shape (steps held
        out,) each.
    rng : numpy.random.Generator
        For the intervals.

    Returns
    -------
    Ceiling
        NaN where a replicate is missing or zero.

    Notes
    -----
    Section 11(b) (derived). Let y = s + e and r = s + f with independent noise. What predicts y best from r, and what
    scores best from the signal alone, have R2 = |s|^2/(|s|^2 + |noise|^2): once for the noise of y, once for that of
    r; together the squared cosine of the stacked vectors. If y has no noise (all data) it is the noise of what the
    rule consumed alone. A rule that averages over steps (momentum) may score more than `value`.

    Gradient descent by mini-batches of 128 images, against the gradient of all: y from g the input side scores .36
    where the scalar metric, which is the rule's, reaches its ceiling of .15, since it can shrink the noisy directions
    of g; g from y both reach the ceiling (`steepest reproduce geometry`). Hence `predicts`, from |e|^2 = y.y - y.r and
    |f|^2 = r.r - y.r.
    """
    yy, yr, rr = products.sum(axis=0)
    if not (math.isfinite(yy) and yy > 0.0 and rr > 0.0):
        return Ceiling()

    def value(sums: Array) -> Array:
        yy, yr, rr = sums[..., 0], sums[..., 1], sums[..., 2]
        return np.where(yy * rr > 0.0, yr * np.abs(yr) / np.where(yy * rr > 0.0, yy * rr, 1.0), 0.0)

    def relative(sums: Array) -> Array:
        ceiling = value(sums)
        score = 1.0 - ratio(sums[..., 3], sums[..., 4])
        return np.divide(score, ceiling, out=np.full_like(score, np.nan), where=ceiling > 0.0)

    influence = 2.0 * products[:, 1] / yr - products[:, 0] / yy - products[:, 2] / rr if yr else products[:, 1]
    low, high, _ = resampled(products, value, influence, rng)
    found = float(value(products.sum(axis=0)))
    predicts: Predicted = "update" if rr > yy else "gradient"
    residual, norm = residuals[predicts]
    share = low_share = high_share = math.nan
    if low > 0.0 and math.isfinite(float(residual.sum())) and norm.sum() > 0.0:
        columns = np.concatenate([products, residual[:, None], norm[:, None]], axis=1)
        share = float(relative(columns.sum(axis=0)))
        of_score = residual - residual.sum() / norm.sum() * norm
        low_share, high_share, _ = resampled(columns, relative, of_score, rng)
    return Ceiling(found, low, high, float(yr / yy), predicts, share, low_share, high_share)


def _mean(given: Iterator[Any], layout: Layout, count: int) -> LongVector:
    if count == 1:
        return ordered(next(given), "replicate", layout)
    sums: list[Array] = [np.zeros(shape) for shape in layout.shapes]
    for _ in range(count):
        replicate = ordered(next(given), "replicate", layout)
        if replicate.layout != layout:
            raise ValueError(f"expected replicate to be {layout}, got {replicate.layout}")
        add_to(sums, replicate, 1.0 / count)
    return LongVector(list(sums), layout, ("float64",) * len(sums))


def _gradient(step: PairStep) -> LongVector:
    if step.grad is None:
        raise ValueError("expected a recording with vectors where replicate= is given, got inner products only")
    return step.grad


def _gradients(replicate: Any) -> Iterator[Any]:
    if isinstance(replicate, Recorder):
        replicate = replicate.recording()
    elif isinstance(replicate, str) or hasattr(replicate, "__fspath__"):
        replicate = Recording.open(replicate)
    if isinstance(replicate, Recording):
        recording = replicate
        return (recording.vectors(int(number)).grad for number in recording.step)
    if isinstance(replicate, Mapping):
        lengths = {np.shape(x)[0] for x in replicate.values()}
        return ({name: x[t] for name, x in replicate.items()} for t in range(min(lengths)))
    if not isinstance(replicate, Iterable):
        raise TypeError(
            f"expected replicate to be gradients with the step as first axis, got {type(replicate).__name__}"
        )
    return iter(replicate)
