"""The family diag(d): one number for each parameter, the same at all steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import Layout
from steepest.identify.fitted import BlockFacts, FitStatus, Fitted
from steepest.identify.passes import CHUNK, ScaledStep, fit_and_score
from steepest.identify.steps import Steps
from steepest.metrics.diagonal import DiagonalMetric

__all__ = ["fit_diagonal"]

Array = NDArray[np.float64]
_TINY = float(np.finfo(np.float64).tiny)  # sums of squares below are no information, and their quotients may overflow


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


@dataclass
class _Counts:
    """Of one array."""

    moved: int = 0
    clipped: int = 0
    smallest: float = math.inf
    largest: float = 0.0

    def __add__(self, other: _Counts) -> _Counts:
        return _Counts(
            self.moved + other.moved,
            self.clipped + other.clipped,
            min(self.smallest, other.smallest),
            max(self.largest, other.largest),
        )


class _Sums:
    """y.y, y.g, g.g of each parameter over the fitted steps; then, in the same memory, the fits."""

    def __init__(self, layout: Layout) -> None:
        self.sizes = layout.sizes
        self.yy, self.yg, self.gg = ([np.zeros(size) for size in self.sizes] for _ in range(3))
        self.counts = [_Counts() for _ in self.sizes]

    def add(self, step: ScaledStep) -> None:
        for i, at, y, g in step.chunks():
            self.yy[i][at] += y * y
            self.gg[i][at] += g * g
            self.yg[i][at] += y * g

    def fit(self) -> Array:
        in_sample = np.zeros((len(self.sizes), 5))
        for i, size in enumerate(self.sizes):
            for begin in range(0, size, CHUNK):
                at = slice(begin, begin + CHUNK)
                yy, yg, gg = self.yy[i][at], self.yg[i][at], self.gg[i][at]
                seen = gg > _TINY
                descent = np.maximum(yg, 0.0)
                d, p = _ratio(descent, gg), _ratio(descent, yy)
                s = np.where(d > 0.0, np.sqrt(_ratio(yy, gg)), 0.0)
                sums = (yy - d * descent, gg - p * descent, yy + s * s * gg - 2.0 * s * descent, yy, gg)
                in_sample[i] += [max(0.0, float(x.sum())) for x in sums]
                positive = d[d > 0.0]
                self.counts[i] += _Counts(
                    int(np.count_nonzero(seen)),
                    int(np.count_nonzero(seen & (yg <= 0.0))),
                    float(positive.min(initial=math.inf)),
                    float(positive.max(initial=0.0)),
                )
                self.yg[i][at], self.yy[i][at], self.gg[i][at] = d, p, s
        return in_sample

    def residuals(self, step: ScaledStep) -> Array:
        found = np.zeros((len(self.sizes), 5))
        for i, at, y, g in step.chunks():
            d, p, s = self.yg[i][at], self.yy[i][at], self.gg[i][at]
            of_y, of_g, of_s = y - d * g, g - p * y, y - s * g
            found[i] += [float(x @ x) for x in (of_y, of_g, of_s, y, g)]
        return found


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
    sums = _Sums(steps.layout)
    found = fit_and_score(steps, split, progress, "diagonal", sums)
    exponent = found.exponents[0] - found.exponents[1]
    counts = sums.counts if steps.layout.names is None else [sum(sums.counts, _Counts()), *sums.counts]
    return Fitted(
        estimate=DiagonalEstimate(steps.layout, sums.yg, sums.gg, exponent),
        in_sample=found.in_sample,
        held_out=found.held_out,
        numbers=found.numbers,
        fitted_steps=found.fitted_steps,
        dropped=found.dropped,
        facts=tuple(
            _facts(size, count, found.fitted_steps, math.ldexp(1.0, exponent))
            for size, count in zip(steps.sizes, counts, strict=True)
        ),
    )


def _facts(size: int, count: _Counts, fitted_steps: int, unit: float) -> BlockFacts:
    moved, clipped = count.moved, count.clipped
    status: FitStatus = "ok"
    notes = []
    if fitted_steps < 2:
        status = "too_few_steps"
    elif moved == 0:
        status = "not_identified"
    elif moved < size or clipped:
        status = "not_positive_definite"
    if fitted_steps == 1:
        notes.append("fitted to one step, which any such metric with the right signs fits exactly")
    if moved == 0:
        notes.append("no parameter moved in the fitted steps: the data say nothing about the metric")
    elif moved < size:
        notes.append(
            f"{size - moved} of {size} parameters never moved in the fitted steps: the data say nothing about their "
            "elements"
        )
    if clipped:
        notes.append(
            f"{clipped} of {size} parameters move uphill on the whole: no positive element fits them, and theirs is 0"
        )
    return BlockFacts(
        parameters=size,
        status=status,
        dimension=size,
        determined=moved,
        not_positive=clipped,
        smallest=count.smallest * unit if count.smallest < math.inf else math.nan,
        largest=count.largest * unit if count.largest > 0.0 else math.nan,
        notes=tuple(notes),
    )


def _ratio(a: Array, b: Array) -> Array:
    return np.divide(a, b, out=np.zeros_like(a), where=b > _TINY)
