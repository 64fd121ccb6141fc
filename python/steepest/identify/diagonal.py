"""The family diag(d): one number for each parameter, the same at all steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import Layout, widened
from steepest.identify.fitted import Fitted
from steepest.identify.steps import PairStep, Steps
from steepest.metrics.diagonal import DiagonalMetric
from steepest.progress import shown

__all__ = ["fit_diagonal"]

Array = NDArray[np.float64]
_CHUNK = 1 << 14  # elements at a time: all temporaries stay in the cache
_TINY = float(np.finfo(np.float64).tiny)  # sums of squares below are no information, and their quotients may overflow
_MODERATE = 200  # powers of two within which squares neither overflow nor vanish


@dataclass(frozen=True, eq=False)
class DiagonalEstimate:
    """d of each array, for y from g and symmetric; flat, zeros where no positive number fits or nothing moved."""

    layout: Layout
    d: list[Array]
    s: list[Array]
    exponent: int

    def metric(self, block: int, floor: float | None, symmetric: bool) -> DiagonalMetric:
        arrays, layout = self._of(block, symmetric)
        if floor is None:
            return DiagonalMetric(layout, arrays)
        return DiagonalMetric(layout, [np.where(x > 0.0, x, floor) for x in arrays])

    def elements(self, block: int, symmetric: bool) -> Any:
        arrays, layout = self._of(block, symmetric)
        shaped = [x.reshape(shape) for x, shape in zip(arrays, layout.shapes, strict=True)]
        return shaped[0] if layout.names is None else dict(zip(layout.names, shaped, strict=True))

    def _of(self, block: int, symmetric: bool) -> tuple[list[Array], Layout]:
        arrays = self.s if symmetric else self.d
        chosen, layout = (arrays, self.layout)
        if block > 0:
            chosen, layout = [arrays[block - 1]], Layout(None, (self.layout.shapes[block - 1],))
        return [np.ldexp(x, self.exponent) if self.exponent else x.copy() for x in chosen], layout


class _Sums:
    """y.y, y.g, g.g of each parameter over the fitted steps; then, in the same memory, the fits."""

    def __init__(self, layout: Layout) -> None:
        self.sizes = layout.sizes
        self.yy, self.yg, self.gg = ([np.zeros(size) for size in self.sizes] for _ in range(3))
        self.exponents: tuple[int, int] | None = None

    def add(self, step: PairStep) -> None:
        for i, at, y, g in self._chunks(step):
            self.yy[i][at] += y * y
            self.gg[i][at] += g * g
            self.yg[i][at] += y * g

    def fit(self) -> tuple[Array, Array]:
        """Turn the sums into d, p, s.

        Returns
        -------
        in_sample : ndarray, shape (arrays, 5)
            As `Fitted.in_sample`.
        facts : ndarray, shape (arrays, 4)
            Parameters that moved, elements that were clipped, smallest and largest positive d.
        """
        in_sample, facts = np.zeros((len(self.sizes), 5)), np.zeros((len(self.sizes), 4))
        for i, size in enumerate(self.sizes):
            moved = clipped = 0
            smallest, largest = math.inf, 0.0
            for begin in range(0, size, _CHUNK):
                at = slice(begin, begin + _CHUNK)
                yy, yg, gg = self.yy[i][at], self.yg[i][at], self.gg[i][at]
                seen = gg > _TINY
                moved += int(np.count_nonzero(seen))
                clipped += int(np.count_nonzero(seen & (yg <= 0.0)))
                descent = np.maximum(yg, 0.0)
                d, p = _ratio(descent, gg), _ratio(descent, yy)
                s = np.where(d > 0.0, np.sqrt(_ratio(yy, gg)), 0.0)
                sums = (yy - d * descent, gg - p * descent, yy + s * s * gg - 2.0 * s * descent, yy, gg)
                in_sample[i] += [max(0.0, float(x.sum())) for x in sums]
                positive = d[d > 0.0]
                if positive.size:
                    smallest, largest = min(smallest, float(positive.min())), max(largest, float(positive.max()))
                self.yg[i][at], self.yy[i][at], self.gg[i][at] = d, p, s
            facts[i] = moved, clipped, smallest, largest
        return in_sample, facts

    def residuals(self, step: PairStep) -> Array:
        """As `Fitted.held_out` of one step, for each array."""
        found = np.zeros((len(self.sizes), 5))
        for i, at, y, g in self._chunks(step):
            d, p, s = self.yg[i][at], self.yy[i][at], self.gg[i][at]
            of_y, of_g, of_s = y - d * g, g - p * y, y - s * g
            found[i] += [float(x @ x) for x in (of_y, of_g, of_s, y, g)]
        return found

    def _chunks(self, step: PairStep) -> Iterator[tuple[int, slice, Array, Array]]:
        """Runs of y = -grad and g = update in float64, in units of powers of two."""
        assert step.grad is not None  # asked for
        assert step.update is not None
        if self.exponents is None:
            self.exponents = _units(step)
        ey, eg = self.exponents
        for i, size in enumerate(self.sizes):
            flat = [(v.segments[i].reshape(-1), v.dtypes[i]) for v in (step.grad, step.update)]
            for begin in range(0, size, _CHUNK):
                at = slice(begin, begin + _CHUNK)
                y, g = (widened(s[at], t) for s, t in flat)
                yield i, at, np.ldexp(-y, -ey) if ey else -y, np.ldexp(g, -eg) if eg else g


def fit_diagonal(steps: Steps, split: int, progress: bool) -> Fitted:
    """Fit ``M = diag(d)``: ``d_i = max(0, sum_t y_ti g_ti / sum_t g_ti^2)``.

    Parameters
    ----------
    steps : Steps
        The run, with vectors.
    split : int
        How many steps are fitted.
    progress : bool
        Show a bar.

    Returns
    -------
    Fitted
        The vectors are read once (whole arrays and pairs twice, for their norms); three float64 vectors are kept.

    Raises
    ------
    ValueError
        There are no vectors.
    """
    if not steps.has_vectors:
        raise ValueError(
            "family='diagonal' needs the vectors of every step, which this recording does not have: record with "
            "keep='vectors', or pass grad= and update=; family='scalar' needs inner products only"
        )
    sums = _Sums(steps.layout)
    held_out: list[Array] = []
    numbers: list[int] = []
    fitted = dropped = 0
    found: tuple[Array, Array] | None = None
    for position, step in enumerate(shown(steps.pairs(True), progress, "identify diagonal", steps.total)):
        if position >= split and found is None:
            found = sums.fit()
        if not np.isfinite(step.products).all():
            dropped += 1
        elif found is None:
            sums.add(step)
            fitted += 1
        else:
            held_out.append(sums.residuals(step))
            numbers.append(step.number)
    in_sample, facts = found if found is not None else sums.fit()
    ey, eg = sums.exponents or (0, 0)
    named = steps.layout.names is not None
    moved, clipped = (tuple(int(x) for x in _blocks(column, named, sum)) for column in facts[:, :2].T)
    smallest, largest = _blocks(facts[:, 2], named, min), _blocks(facts[:, 3], named, max)
    unit = math.ldexp(1.0, ey - eg)
    scores = np.array(held_out).reshape(-1, len(steps.layout.sizes), 5)
    return Fitted(
        estimate=DiagonalEstimate(steps.layout, sums.yg, sums.gg, ey - eg),
        in_sample=_with_all(in_sample, named),
        held_out=_with_all(scores, named),
        numbers=numbers,
        fitted_steps=fitted,
        dropped=dropped,
        parameters=steps.sizes,
        moved=moved,
        clipped=clipped,
        smallest=tuple(float(x) * unit if x < math.inf else math.nan for x in smallest),
        largest=tuple(float(x) * unit if x > 0.0 else math.nan for x in largest),
    )


def _units(step: PairStep) -> tuple[int, int]:
    """Powers of two of the norms where these are not moderate."""
    exponents = []
    for square, exponent in zip(step.products[0, [0, 2]], step.exponents[0], strict=True):
        power = int(exponent) + math.frexp(math.sqrt(square))[1] if square > 0.0 else 0
        exponents.append(power if abs(power) > _MODERATE else 0)
    return exponents[0], exponents[1]


def _ratio(a: Array, b: Array) -> Array:
    return np.divide(a, b, out=np.zeros_like(a), where=b > _TINY)


def _with_all(x: Array, named: bool) -> Array:
    """The sum over the arrays before the arrays, which are the axis before the last."""
    return np.concatenate([x.sum(axis=-2, keepdims=True), x], axis=-2) if named else x


def _blocks(column: Array, named: bool, combine: Any) -> tuple[float, ...]:
    values = tuple(float(x) for x in column)
    return (combine(values), *values) if named else values
