"""The family diag(d): one number for each parameter, the same at all steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest import _core
from steepest.arrays import Layout
from steepest.identify.fitted import BlockFacts, FitStatus, Fitted
from steepest.identify.passes import ScaledStep, fit_and_score_together
from steepest.identify.steps import Steps
from steepest.metrics.diagonal import DiagonalMetric

__all__ = ["fit_diagonal"]

Array = NDArray[np.float64]


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
    """y.y, y.g, g.g of each parameter over the fitted steps; then, in the same memory, the fits p, d, s."""

    def __init__(self, layout: Layout) -> None:
        self.numbers = [[np.zeros(size) for size in layout.sizes] for _ in range(3)]
        self.counts = [_Counts() for _ in layout.sizes]

    def clear(self) -> None:
        for arrays in self.numbers:
            for array in arrays:
                array.fill(0.0)

    def add(self, steps: Sequence[ScaledStep]) -> bool:
        return _core.add_element_products(*_vectors(steps), *self.numbers)

    def fit(self) -> Array:
        found = _core.fit_elements(*self.numbers)
        self.counts = [_Counts(int(row[5]), int(row[6]), float(row[7]), float(row[8])) for row in found]
        return found[:, :5]

    def residuals(self, steps: Sequence[ScaledStep]) -> Array:
        return _core.diagonal_residuals(*_vectors(steps), *self.numbers)


def _vectors(steps: Sequence[ScaledStep]) -> tuple[list[list[NDArray[Any]]], list[list[NDArray[Any]]], tuple[int, int]]:
    """As the core reads them; all in the same units."""
    return [step.grad.segments for step in steps], [step.update.segments for step in steps], steps[0].exponents


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
        Three float64 vectors are kept.

    Raises
    ------
    ValueError
        There are no vectors.

    Notes
    -----
    Section 11(b) (derived). Sums over steps and, of the residuals, over elements are plain ones in float64: the
    relative error of a sum of T squares is below ``T 2^-53``, that of ``y.g`` is so against ``sqrt(y.y g.g)``; a sum
    over elements is right to ``150 * 2^-53``, given its terms. The bits do not depend on the number of threads.

    Cost: the vectors are read once. Whole arrays, lists and recordings go through memory some steps at a time, so that
    the sums are read and written once for each such batch. Where a step turns out not to be finite, and this was not
    known before, the fitted steps are read again; an iterator is read twice step by step, first for its norms.
    """
    sums = _Sums(steps.layout)
    found = fit_and_score_together(steps, split, progress, "diagonal", sums)
    exponent = found.exponents[0] - found.exponents[1]
    _, d, s = sums.numbers
    counts = sums.counts if steps.layout.names is None else [sum(sums.counts, _Counts()), *sums.counts]
    return Fitted(
        estimate=DiagonalEstimate(steps.layout, d, s, exponent),
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
