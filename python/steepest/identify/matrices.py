"""The families `full`, one symmetric positive definite matrix, and `block-diagonal`, one for each part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import Layout
from steepest.identify.fitted import BlockFacts, FitStatus, Fitted
from steepest.identify.passes import ScaledStep, fit_and_score, require_vectors
from steepest.identify.row_factor import RowFactor
from steepest.identify.steps import Steps
from steepest.identify.symmetric_fit import MatrixFit, determined_numbers, fit_matrix
from steepest.metrics.block_dense import BlockDenseMetric

__all__ = ["fit_block_diagonal", "fit_full"]

Array = NDArray[np.float64]
_LARGEST = 4096  # rows of one matrix
_MOST = 4 * _LARGEST**2  # elements of all matrices together: half a GiB for each of M, P and S
_BATCH = 16  # steps that are handed on together


@dataclass(frozen=True)
class Part:
    """Consecutive parameters with a matrix of their own."""

    begin: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.begin

    @property
    def at(self) -> slice:
        return slice(self.begin, self.end)


@dataclass(frozen=True, eq=False)
class MatrixEstimate:
    """A matrix for each part, in units of a power of two."""

    layout: Layout
    parts: list[Part]
    fits: list[MatrixFit]
    exponent: int
    whole: bool  # one matrix over all arrays

    def metric(self, block: int, floor: float | None, symmetric: bool) -> BlockDenseMetric:
        begin, end = _range(self.layout, block)
        unit = math.ldexp(1.0, self.exponent)
        matrices, eigen = [], []
        for part, fit in self._in(block):
            matrix, found = fit.metric(floor, symmetric, unit)
            cut = slice(max(begin - part.begin, 0), end - part.begin)
            whole = matrix[cut, cut].shape == matrix.shape
            matrices.append(matrix if whole else matrix[cut, cut].copy())
            eigen.append(found if whole else _eigen(matrices[-1]))
        layout = self.layout if block == 0 else Layout(None, (self.layout.shapes[block - 1],))
        return BlockDenseMetric(layout, matrices, eigen)

    def elements(self, block: int, symmetric: bool) -> Any:
        if block > 0 or self.layout.names is None or self.whole:
            return self._matrices(block, symmetric)
        return {name: self._matrices(i + 1, symmetric) for i, name in enumerate(self.layout.names)}

    def _matrices(self, block: int, symmetric: bool) -> Any:
        begin, end = _range(self.layout, block)
        found = []
        for part, fit in self._in(block):
            cut = slice(max(begin - part.begin, 0), end - part.begin)
            found.append(np.ldexp((fit.s if symmetric else fit.of_y.A)[cut, cut], self.exponent))
        return found[0] if len(found) == 1 else found

    def _in(self, block: int) -> list[tuple[Part, MatrixFit]]:
        begin, end = _range(self.layout, block)
        pairs = zip(self.parts, self.fits, strict=True)
        return [(part, fit) for part, fit in pairs if part.begin < end and part.end > begin]


class _Matrices:
    """The R factor of each part, then its fit."""

    def __init__(self, layout: Layout, parts: list[Part]) -> None:
        self.parts = parts
        self.ends = np.cumsum([0, *layout.sizes])
        self.factors = [RowFactor(part.size) for part in parts]
        self.fits: list[MatrixFit] = []
        self._batch: list[tuple[Array, Array]] = []

    def add(self, step: ScaledStep) -> None:
        self._batch.append(step.vectors())
        if len(self._batch) == _BATCH:
            self._hand_on()

    def fit(self) -> Array:
        self._hand_on()
        for i, factor in enumerate(self.factors):
            self.fits.append(fit_matrix(factor))
            self.factors[i] = RowFactor(1)  # its memory is not needed any more
        return self._of_arrays(np.concatenate([fit.in_sample for fit in self.fits]))

    def residuals(self, step: ScaledStep) -> Array:
        y, g = step.vectors()
        rows = np.empty((len(y), 5))
        for part, fit in zip(self.parts, self.fits, strict=True):
            a, b = y[part.at], g[part.at]
            left = a - fit.of_y.A @ b, b - fit.p @ a, a - fit.s @ b, a, b
            rows[part.at] = np.stack(left, axis=1) ** 2
        return self._of_arrays(rows)

    def _hand_on(self) -> None:
        if self._batch:
            y, g = (np.stack(columns, axis=1) for columns in zip(*self._batch, strict=True))
            for part, factor in zip(self.parts, self.factors, strict=True):
                factor.add(g[part.at], y[part.at])
            self._batch = []

    def _of_arrays(self, rows: Array) -> Array:
        sums = [rows[begin:end].sum(axis=0) for begin, end in pairwise(self.ends)]
        return np.array(sums).reshape(-1, 5)


def fit_full(steps: Steps, split: int, progress: bool) -> Fitted:
    """Fit one symmetric positive semidefinite M over all parameters.

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
        A named array is scored by its rows of M g; as a metric of its own it is that diagonal block of M.

    Raises
    ------
    ValueError
        There are no vectors, or more than 4096 parameters.

    Notes
    -----
    Section 11(a). Cost: 8 n^2 operations a step and some 100 n^3 for the fits; memory: up to about 20 n^2 numbers.
    """
    n = steps.layout.size
    if n > _LARGEST:
        raise ValueError(
            f"expected at most {_LARGEST} parameters for family='full', an n x n matrix, got n = {n}: take "
            "family='block-diagonal' with smaller blocks, or 'kronecker-output', 'kronecker-input' or 'kronecker'"
        )
    return _fit(steps, split, progress, "full", [Part(0, n)])


def fit_block_diagonal(
    steps: Steps, split: int, progress: bool, partition: Literal["arrays", "units"] | int = "arrays"
) -> Fitted:
    """Fit a symmetric positive semidefinite matrix to each part of the parameters.

    Parameters
    ----------
    steps : Steps
        The run, with vectors.
    split : int
        How many steps are fitted.
    progress : bool
        Show a bar.
    partition : {'arrays', 'units'} or int
        Parts: each array; each index of the first axis of arrays with two or more (the output units), and the other
        arrays as they are; or runs of that many parameters of an array.

    Returns
    -------
    Fitted
        Of all parts.

    Raises
    ------
    ValueError
        There are no vectors, a part has more than 4096 parameters, or all matrices together are too large.

    Notes
    -----
    Section 11(a) for each part of size m. Cost: 8 m^2 operations a part and step, some 100 m^3 for the fits; memory: up
    to about 20 m^2 numbers a part.
    """
    parts = _parts(steps.layout, partition)
    largest = max(part.size for part in parts)
    if largest > _LARGEST or sum(part.size**2 for part in parts) > _MOST:
        raise ValueError(
            f"expected parts of at most {_LARGEST} parameters, and at most {_MOST} elements of all matrices together, "
            f"got {len(parts)} parts of up to {largest}: take partition='units' or a number of parameters, or "
            "family='kronecker-output', 'kronecker-input' or 'kronecker'"
        )
    return _fit(steps, split, progress, "block-diagonal", parts)


def _parts(layout: Layout, partition: Any) -> list[Part]:
    number = isinstance(partition, int | np.integer) and not isinstance(partition, bool)
    if partition not in ("arrays", "units") and not (number and partition > 0):
        raise ValueError(f"expected partition to be 'arrays', 'units' or a positive int, got {partition!r}")
    parts, begin = [], 0
    for shape, size in zip(layout.shapes, layout.sizes, strict=True):
        run = size
        if number:
            run = int(partition)
        elif partition == "units" and len(shape) > 1:
            run = size // max(shape[0], 1)
        end = begin + size
        parts += [Part(at, min(at + run, end)) for at in range(begin, end, max(run, 1))]
        begin = end
    return parts


def _fit(steps: Steps, split: int, progress: bool, family: str, parts: list[Part]) -> Fitted:
    require_vectors(steps, family)
    model = _Matrices(steps.layout, parts)
    found = fit_and_score(steps, split, progress, family, model)
    exponent = found.exponents[0] - found.exponents[1]
    estimate = MatrixEstimate(steps.layout, parts, model.fits, exponent, family == "full")
    facts = [
        _facts(estimate._in(block), size, found.fitted_steps, math.ldexp(1.0, exponent), steps.layout.size)
        for block, size in enumerate(steps.sizes)
    ]
    return Fitted(
        estimate=estimate,
        in_sample=found.in_sample,
        held_out=found.held_out,
        numbers=found.numbers,
        fitted_steps=found.fitted_steps,
        dropped=found.dropped,
        facts=tuple(facts),
    )


def _facts(inside: Sequence[tuple[Part, MatrixFit]], size: int, fitted_steps: int, unit: float, n: int) -> BlockFacts:
    fits = [fit.of_y for _, fit in inside]
    sizes = [part.size for part, _ in inside]
    dimension, rank = sum(sizes), sum(fit.rank for fit in fits)
    zeros = sum(int(np.count_nonzero(fit.eigenvalues == 0.0)) for fit in fits)
    positive = np.concatenate([fit.eigenvalues for fit in fits]) * unit
    positive = positive[positive > 0.0]
    numbers = sum(math.comb(m + 1, 2) for m in sizes)
    known = sum(determined_numbers(m, fit.rank) for m, fit in zip(sizes, fits, strict=True))
    stopped = sum(not fit.converged for fit in fits)
    status: FitStatus = "ok"
    if fitted_steps < 2:
        status = "too_few_steps"
    elif rank == 0:
        status = "not_identified"
    elif stopped:
        status = "not_converged"
    elif rank < dimension:
        status = "underdetermined"
    elif zeros:
        status = "not_positive_definite"
    notes = []
    largest = max(sizes)
    if rank == 0:
        notes.append("no parameter moved in the fitted steps: the data say nothing about the metric")
    elif rank < dimension:
        few = f"{fitted_steps} steps are fewer than the {largest} parameters of a block; " * (fitted_steps < largest)
        notes.append(
            f"{few}the updates have rank {rank} of {dimension}: they determine {known} of the {numbers} numbers of the "
            f"metric ({100 * known / numbers:.1f}%); the rest is a guess, the mean eigenvalue of what is determined"
        )
    elif fitted_steps < 2 * largest:
        notes.append(
            f"{fitted_steps} steps are few for a matrix with {largest} rows: noise in the updates is amplified"
        )
    if zeros:
        notes.append(
            f"{zeros} of {rank} determined directions get the eigenvalue 0: the best symmetric matrix is not positive "
            "there; a metric needs a floor"
        )
    if any(fit.epsilon for fit in fits):
        share = max(fit.epsilon for fit in fits)
        notes.append(
            f"no matrix attains the best fit of the determined directions: {share:.0e} of the largest eigenvalue is "
            "added there"
        )
    if stopped:
        notes.append(f"the solver stopped before it could certify {stopped} of {len(fits)} matrices")
    return BlockFacts(
        parameters=numbers if size == dimension else (size * (n + 1) + 1) // 2,
        status=status,
        dimension=dimension,
        determined=rank,
        not_positive=zeros,
        smallest=float(positive.min()) if positive.size else math.nan,
        largest=float(positive.max()) if positive.size else math.nan,
        notes=tuple(notes),
    )


def _range(layout: Layout, block: int) -> tuple[int, int]:
    """First parameter of a block, and the one behind its last."""
    ends = np.cumsum([0, *layout.sizes])
    return (0, layout.size) if block == 0 else (int(ends[block - 1]), int(ends[block]))


def _eigen(matrix: Array) -> tuple[Array, Array]:
    values, vectors = np.linalg.eigh(matrix)
    return values, vectors
