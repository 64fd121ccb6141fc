"""The family A kron B: one matrix on the output and one on the input side of each weight matrix."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from steepest.identify.fitted import Fitted
from steepest.identify.geometric_mean import geometric_mean
from steepest.identify.kronecker_estimate import ArrayFit, Factor, squared
from steepest.identify.kronecker_facts import assembled, check_sides
from steepest.identify.kronecker_side import (
    Sums,
    data_epsilon,
    matrices,
    new_sums,
    rank_tolerance,
    solve_side,
)
from steepest.identify.passes import ScaledStep, fit_and_score, require_vectors, scaled_steps
from steepest.identify.steps import Steps
from steepest.metrics.kronecker import matrix_shape

__all__ = ["fit_kronecker"]

Array = NDArray[np.float64]
_NOTHING = 1e-13  # of sum |Y|^2: a residual is not known better


class _Alternation:
    """``min sum_t |Z_t - A X_t B|^2`` of one array, one side at a time with the other one fixed.

    Parameters
    ----------
    shape : tuple of int
        (m, r).
    sums : tuple of Sums
        Of the rows and of the columns, both of (X_t, Z_t) as they are.
    swapped : bool
        Whether X and Z are to be exchanged.
    epsilon : float
        Rounding unit of the data.
    """

    def __init__(self, shape: tuple[int, int], sums: tuple[Sums, Sums], swapped: bool, epsilon: float) -> None:
        self.swapped = swapped
        self.tolerances = [rank_tolerance(size, epsilon) for size in shape]
        starts = [
            solve_side(*(side.swapped() if swapped else side.pair()), tolerance)
            for side, tolerance in zip(sums, self.tolerances, strict=True)
        ]
        other = sums[0].pair() if swapped else sums[0].swapped()
        self.total = squared(other[0])  # sum |Z_t|^2
        better = int(starts[1][1] < starts[0][1])
        self.sides = [
            Factor(np.eye(size), start[0].span, np.ones(start[0].rank))
            for size, start in zip(shape, starts, strict=True)
        ]
        self.sides[better] = starts[better][0]
        self.side = 1 - better  # to be fitted next
        self.objectives = [starts[better][1]]
        self.converged = not (starts[better][0].matrix.any() and self.total > 0.0)  # M = 0 stays so
        self.sums: Sums | None = None

    @property
    def iterations(self) -> int:
        """Pairs of fits, begun or done."""
        return len(self.objectives) // 2

    def add(self, y: Array, g: Array) -> None:
        x, z = (y, g) if self.swapped else (g, y)
        fixed = self.sides[1 - self.side].matrix
        if self.sums is None:
            self.sums = new_sums(x.shape[self.side], both=False)
        if self.side == 0:
            self.sums.add(x @ fixed, z)
        else:
            self.sums.add((fixed @ x).T, z.T)

    def update(self, tolerance: float) -> None:
        assert self.sums is not None  # steps were added
        found, objective = solve_side(*self.sums.pair(), self.tolerances[self.side])
        self.sides[self.side] = found
        self.objectives.append(objective)
        self.side = 1 - self.side
        self.sums = None
        small = tolerance * objective + _NOTHING * self.total
        both = len(self.objectives) > 2 and self.objectives[-3] - objective <= small
        self.converged = both or not found.matrix.any()

    def balanced(self) -> tuple[Factor, Factor]:
        """A and B with |A| = |B|, each on what the steps span."""
        a, b = self.sides
        norms = [math.sqrt(squared(f.matrix @ f.span)) for f in (a, b)]
        if not min(norms) > 0.0:  # M = 0, whatever the other factor
            return a.scaled(0.0), b.scaled(0.0)
        scale = math.sqrt(norms[1] / norms[0])
        return a.scaled(scale), b.scaled(1.0 / scale)


def inverse(a: Array) -> Array:
    """Of a positive definite matrix.

    Parameters
    ----------
    a : ndarray, shape (m, m)
        Symmetric.

    Returns
    -------
    ndarray, shape (m, m)
        Positive definite.
    """
    root = np.linalg.inv(np.linalg.cholesky(a))
    return np.asarray(root.T @ root, dtype=np.float64)


class _TwoSided:
    """Both sides of each array while they are fitted."""

    def __init__(self, steps: Steps, split: int, tolerance: float, max_iterations: int) -> None:
        self.steps, self.split, self.tolerance, self.limit = steps, split, tolerance, max_iterations
        self.shapes = [matrix_shape(shape) for shape in steps.layout.shapes]
        self.sums = [(new_sums(m), new_sums(r)) for m, r in self.shapes]
        self.epsilon = 0.0
        self.fits: list[ArrayFit] = []

    def add(self, step: ScaledStep) -> None:
        self.epsilon = max(self.epsilon, data_epsilon(step))
        for (rows, columns), (y, g) in zip(self.sums, matrices(step), strict=True):
            rows.add(g, y)
            columns.add(g.T, y.T)

    def fit(self) -> Array:
        # The fits of y from g and of g from y, of all arrays, share the passes.
        fits = [
            [_Alternation(shape, sums, swapped, self.epsilon) for swapped in (False, True)]
            for shape, sums in zip(self.shapes, self.sums, strict=True)
        ]
        self.sums = []
        running = [(i, one) for i, pair in enumerate(fits) for one in pair]
        for _ in range(2 * self.limit):
            running = [(i, one) for i, one in running if not one.converged]
            if not running:
                break
            for step in scaled_steps(self.steps, self.split):
                pairs = matrices(step)
                for i, one in running:
                    one.add(*pairs[i])
            for _, one in running:
                one.update(self.tolerance)
        self.fits = [self._array_fit(shape, *pair) for shape, pair in zip(self.steps.layout.shapes, fits, strict=True)]
        return np.array([fit.in_sample for fit in self.fits])

    def residuals(self, step: ScaledStep) -> Array:
        return np.array([fit.residuals(y, g) for fit, (y, g) in zip(self.fits, matrices(step), strict=True)])

    def _array_fit(self, shape: tuple[int, ...], forward: _Alternation, reverse: _Alternation) -> ArrayFit:
        fit, back = forward.balanced(), reverse.balanced()
        symmetric = None
        if all(f.rank == f.size and f.zeros == 0 for f in (*fit, *back)):
            # (A kron B) # (P kron Q)^-1 is the product of the means
            a, b = (geometric_mean(f.matrix, inverse(p.matrix)) for f, p in zip(fit, back, strict=True))
            symmetric = (a, b)
        in_sample = [forward.objectives[-1], reverse.objectives[-1], math.nan, forward.total, reverse.total]
        said = ""
        if not forward.converged:
            change = 1.0 - forward.objectives[-1] / forward.objectives[-3]
            said = (
                f"stopped after {forward.iterations} iterations, the last of which lowered the residual by a share of "
                f"{change:.1e}, more than tolerance={self.tolerance:g}: raise max_iterations"
            )
        return ArrayFit(shape, fit, back, symmetric, np.array(in_sample), said)


def fit_kronecker(
    steps: Steps, split: int, progress: bool, *, tolerance: float = 1e-6, max_iterations: int = 100
) -> Fitted:
    """Fit ``M(W) = A W B`` to each array: ``min over A, B >= 0 of sum_t |Y_t - A G_t B|^2``.

    Parameters
    ----------
    steps : Steps
        The run, with vectors, and one that can be read again.
    split : int
        How many steps are fitted.
    progress : bool
        Show a bar.
    tolerance : float
        Stop when an iteration lowers the residual by less than this share of it, or than 1e-13 of sum_t |Y_t|^2.
    max_iterations : int
        Each reads the fitted steps twice.

    Returns
    -------
    Fitted
        A and B with |A| = |B|; matrices of m x m and r x r elements are kept. The symmetric estimate is the matrix
        geometric mean of the fit of y from g and the inverse of that of g from y.

    Raises
    ------
    ValueError
        There are no vectors, they can be read only once, a side is too long, or an option out of range.

    Notes
    -----
    Section 11(b) (derived): two SPD Procrustes problems in turn, started from the better of the two one-sided fits;
    the residual never grows. (c A, B/c) is the same metric. Where a Kronecker product explains the steps, the start
    leads to it; far from any, there can be other local minima, and the one found need not be the lowest.
    """
    if not (tolerance >= 0.0 and max_iterations >= 1):
        raise ValueError(f"expected tolerance >= 0 and max_iterations >= 1, got {tolerance} and {max_iterations}")
    require_vectors(steps, "kronecker")
    if not steps.repeatable:
        raise ValueError(
            "family='kronecker' reads the steps several times, and an iterator can be read once: pass a list of pairs, "
            "whole arrays or a recording"
        )
    check_sides(steps.layout, "kronecker", (True, True))
    model = _TwoSided(steps, split, tolerance, max_iterations)
    found = fit_and_score(steps, split, progress, "kronecker", model)
    return assembled(steps, model.fits, found)
