"""The families A kron I and I kron B: one matrix on the output or on the input side of each weight matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import EPSILON, Layout
from steepest.identify.fitted import BlockFacts, Fitted, FitStatus
from steepest.identify.kronecker_estimate import Factor, KroneckerEstimate
from steepest.identify.passes import Pass, ScaledStep, fit_and_score, require_vectors
from steepest.identify.procrustes import spd_procrustes
from steepest.identify.row_factor import RowFactor
from steepest.identify.steps import Steps
from steepest.metrics.kronecker import matrix_shape

__all__ = [
    "ArrayFit",
    "GramFactor",
    "Sums",
    "assembled",
    "check_sides",
    "fit_kronecker_input",
    "fit_kronecker_output",
    "solve_side",
    "squared",
]

Array = NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)
_QR = 256  # rows up to which an orthogonal factor is kept, exact to rounding; above, sums of products
_LARGEST = 4096  # rows of a side: three float64 matrices of that size


class Sums(Protocol):
    """What a pass keeps of the pairs (G_t, Y_t), so that ``sum_t |A G_t - Y_t|^2 = |A X - B|^2 + rest``."""

    def add(self, G: Array, Y: Array) -> None:
        """One more pair.

        Parameters
        ----------
        G, Y : ndarray, shape (m, r)
            Any r.
        """

    def pair(self) -> tuple[Array, Array, float]:
        """For Y from G.

        Returns
        -------
        X, B : ndarray, shape (m, k)
            As above.
        rest : float
            What no A reaches.
        """

    def swapped(self) -> tuple[Array, Array, float]:
        """For G from Y.

        Returns
        -------
        X, B, rest
            As of `pair`.
        """


class GramFactor:
    """`Sums` as ``sum G G^T``, ``sum Y G^T``, ``sum Y Y^T``, for many rows.

    Parameters
    ----------
    m : int
        Rows.

    Notes
    -----
    6 m^2 r operations for a pair, all in matrix products. Directions in which G is below ``sqrt(m eps)`` of its largest
    singular value (5e-7 for m = 1000; the rounding of float32 data is of that size already) are taken as not moved.
    """

    def __init__(self, m: int) -> None:
        self.gg, self.yg, self.yy = np.zeros((m, m)), np.zeros((m, m)), np.zeros((m, m))

    def add(self, G: Array, Y: Array) -> None:
        self.gg += G @ G.T
        self.yg += Y @ G.T
        self.yy += Y @ Y.T

    def pair(self) -> tuple[Array, Array, float]:
        return _root(self.gg, self.yg, float(np.trace(self.yy)))

    def swapped(self) -> tuple[Array, Array, float]:
        return _root(self.yy, self.yg.T, float(np.trace(self.gg)))


def _root(gg: Array, yg: Array, yy: float) -> tuple[Array, Array, float]:
    values, u = np.linalg.eigh(gg)
    keep = values > len(values) * _EPS * max(float(values[-1]), 0.0)
    u, s = u[:, keep], np.sqrt(values[keep])
    b = (yg @ u) / s
    return u * s, b, max(0.0, yy - squared(b))


def squared(x: Array) -> float:
    """Sum of squares.

    Parameters
    ----------
    x : ndarray
        Any shape.

    Returns
    -------
    float
        At least 0.
    """
    flat = x.ravel()
    return float(flat @ flat)


def new_sums(m: int) -> Sums:
    """For a side with m rows.

    Parameters
    ----------
    m : int
        Rows.

    Returns
    -------
    Sums
        Exact to rounding where m allows.
    """
    return RowFactor(m) if m <= _QR else GramFactor(m)


def rank_tolerance(m: int, epsilon: float) -> float:
    """Singular values of the updates below this share of the largest are rounding.

    Parameters
    ----------
    m : int
        Rows.
    epsilon : float
        Rounding unit of the data.

    Returns
    -------
    float
        Relative.
    """
    return 4.0 * math.sqrt(m) * epsilon


def solve_side(X: Array, B: Array, rest: float, tolerance: float) -> tuple[Factor, float]:
    """The A >= 0 with the least ``|A X - B|^2 + rest``.

    Parameters
    ----------
    X, B, rest
        Of `Sums.pair`.
    tolerance : float
        Of `rank_tolerance`: smaller singular values of X are taken as 0.

    Returns
    -------
    factor : Factor
        Zero where nothing moved.
    residual : float
        The sum.
    """
    u, s, vt = np.linalg.svd(X, full_matrices=False)
    keep = s > tolerance * float(np.max(s, initial=0.0))
    u, s = u[:, keep], s[keep]
    if not s.size:
        return Factor(np.zeros((len(X), len(X))), u), squared(B) + rest
    found = spd_procrustes(u * s, B @ vt[keep].T)
    return Factor(found.A, u, found.epsilon, found.converged), squared(found.A @ X - B) + rest


def symmetric_side(X: Array, Z: Array) -> Array:
    """The S > 0 with ``S X X^T S = Z Z^T``, the geometric mean of (X X^T)^-1 and Z Z^T.

    Parameters
    ----------
    X, Z : ndarray, shape (m, k)
        Of rank m.

    Returns
    -------
    ndarray, shape (m, m)
        Noise in G and noise in Y shift it in opposite senses.
    """
    r = np.linalg.qr(X.T, mode="r")
    w, s, _ = np.linalg.svd(r @ Z, full_matrices=False)
    half = np.linalg.solve(r, w * np.sqrt(s))
    return np.asarray(half @ half.T)


class ArrayFit:
    """Fits of one array: M = (a, b) of y from g, P of g from y, S the symmetric one or None; None for an identity."""

    def __init__(
        self,
        shape: tuple[int, ...],
        fit: tuple[Factor | None, Factor | None],
        reverse: tuple[Factor | None, Factor | None],
        symmetric: tuple[Array | None, Array | None] | None,
        in_sample: Array,
        iterations: str = "",
    ) -> None:
        self.m, self.r = matrix_shape(shape)
        self.fit, self.reverse, self.symmetric, self.in_sample = fit, reverse, symmetric, in_sample
        #: What is to be said of the iterations, empty if they converged or there are none.
        self.iterations = iterations

    @property
    def factors(self) -> list[Factor]:
        """Of the family's sides."""
        return [f for f in self.fit if f is not None]

    def residuals(self, y: Array, g: Array) -> list[float]:
        """As `Fitted.held_out` of one step.

        Parameters
        ----------
        y, g : ndarray, shape (m, r)
            Of the step.

        Returns
        -------
        list of float
            Five.
        """
        a, b = (None if f is None else f.matrix for f in self.fit)
        p, q = (None if f is None else f.matrix for f in self.reverse)
        found = [squared(y - _times(a, g, b)), squared(g - _times(p, y, q)), math.nan, squared(y), squared(g)]
        if self.symmetric is not None:
            found[2] = squared(y - _times(self.symmetric[0], g, self.symmetric[1]))
        return found


def _times(a: Array | None, x: Array, b: Array | None) -> Array:
    x = x if a is None else a @ x
    return x if b is None else x @ b


class _OneSided:
    """One side of each array while it is fitted."""

    def __init__(self, layout: Layout, output: bool) -> None:
        self.shapes, self.output = layout.shapes, output
        self.sums = [new_sums(matrix_shape(shape)[0 if output else 1]) for shape in layout.shapes]
        self.epsilon = _EPS
        self.fits: list[ArrayFit] = []

    def add(self, step: ScaledStep) -> None:
        self.epsilon = max(self.epsilon, data_epsilon(step))
        for sums, shape, (y, g) in zip(self.sums, self.shapes, step.arrays(), strict=True):
            y, g = y.reshape(matrix_shape(shape)), g.reshape(matrix_shape(shape))
            if y.size:
                sums.add(*((g, y) if self.output else (g.T, y.T)))

    def fit(self) -> Array:
        for sums, shape in zip(self.sums, self.shapes, strict=True):
            m, r = matrix_shape(shape)
            tolerance = rank_tolerance(m if self.output else r, self.epsilon)
            x, of_x, rest = sums.pair()
            z, _, _ = swapped = sums.swapped()
            a, residual = solve_side(x, of_x, rest, tolerance)
            p, reverse = solve_side(*swapped, tolerance)
            s, of_s = None, math.nan
            if a.rank == p.rank == a.size:
                s = symmetric_side(x, z) if a.matrix.any() else np.zeros_like(a.matrix)
                of_s = squared(s @ x - of_x) + rest
            sides = [(a, None), (p, None), None if s is None else (s, None)]
            if not self.output:
                sides = [None if pair is None else pair[::-1] for pair in sides]
            in_sample = np.array([residual, reverse, of_s, squared(z), squared(x)])
            self.fits.append(ArrayFit(shape, *sides, in_sample))
        return np.array([fit.in_sample for fit in self.fits])

    def residuals(self, step: ScaledStep) -> Array:
        pairs = zip(self.fits, step.arrays(), strict=True)
        return np.array([fit.residuals(y.reshape(fit.m, fit.r), g.reshape(fit.m, fit.r)) for fit, (y, g) in pairs])


def data_epsilon(step: ScaledStep) -> float:
    """Rounding unit of the coarser of y and g.

    Parameters
    ----------
    step : ScaledStep
        Any.

    Returns
    -------
    float
        2^-52 for float64.
    """
    return max(EPSILON[step.grad.coarsest], EPSILON[step.update.coarsest])


def fit_kronecker_output(steps: Steps, split: int, progress: bool) -> Fitted:
    """Fit ``M(W) = A W`` to each array, its first axis as rows: ``min over A >= 0 of sum_t |Y_t - A G_t|^2``.

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
        One pass over the vectors; matrices of m x m elements are kept, m the length of the first axis.

    Raises
    ------
    ValueError
        There are no vectors, or a first axis is too long for such matrices.

    Notes
    -----
    Section 11(b) (derived): one SPD Procrustes problem, unique iff sum_t G_t G_t^T has full rank.
    """
    return _fit_side(steps, split, progress, True)


def fit_kronecker_input(steps: Steps, split: int, progress: bool) -> Fitted:
    """Fit ``M(W) = W B`` to each array, its axes after the first as columns; of one axis, B is one number.

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
        As `fit_kronecker_output`, with the number of columns for m.

    Raises
    ------
    ValueError
        There are no vectors, or the columns are too many for such matrices.

    Notes
    -----
    Section 11(b) (derived): one SPD Procrustes problem, unique iff sum_t G_t^T G_t has full rank.
    """
    return _fit_side(steps, split, progress, False)


def _fit_side(steps: Steps, split: int, progress: bool, output: bool) -> Fitted:
    family = "kronecker-output" if output else "kronecker-input"
    require_vectors(steps, family)
    check_sides(steps.layout, family, (output, not output))
    model = _OneSided(steps.layout, output)
    return assembled(steps, model.fits, fit_and_score(steps, split, progress, family, model))


def check_sides(layout: Layout, family: str, sides: tuple[bool, bool]) -> None:
    """Refuse matrices that would not fit.

    Parameters
    ----------
    layout : Layout
        Of the run.
    family : str
        For the message.
    sides : tuple of bool
        Whether the family has a matrix for the rows, and one for the columns.

    Raises
    ------
    ValueError
        A side is too long.
    """
    for i, shape in enumerate(layout.shapes):
        for size, wanted, axis in zip(matrix_shape(shape), sides, ("rows", "columns"), strict=True):
            if wanted and size > _LARGEST:
                name = "" if layout.names is None else f" {layout.names[i]!r}"
                raise ValueError(
                    f"expected at most {_LARGEST} {axis} for family={family!r}, got {size} in the array{name} of shape "
                    f"{shape}: the metric would be a matrix of {size} x {size}; use the other side, or leave the array "
                    "out of the run"
                )


def assembled(steps: Steps, fits: Sequence[ArrayFit], found: Pass) -> Fitted:
    """The outcome of a Kronecker family, with what the data determine of each block.

    Parameters
    ----------
    steps : Steps
        The run.
    fits : sequence of ArrayFit
        One for each array.
    found : Pass
        Scores.

    Returns
    -------
    Fitted
        For `identify`.
    """
    exponent = found.exponents[0] - found.exponents[1]
    facts = [_facts(fit, found.fitted_steps, math.ldexp(1.0, exponent)) for fit in fits]
    names = steps.layout.names
    return Fitted(
        estimate=KroneckerEstimate(steps.layout, [f.fit for f in fits], [f.symmetric for f in fits], exponent),
        in_sample=found.in_sample,
        held_out=found.held_out,
        numbers=found.numbers,
        fitted_steps=found.fitted_steps,
        dropped=found.dropped,
        facts=tuple(facts) if names is None else (_together(names, facts), *facts),
    )


def _facts(fit: ArrayFit, steps: int, unit: float) -> BlockFacts:
    """What the steps determine of one array."""
    factors, both = fit.factors, len(fit.factors) == 2
    parameters = sum(f.size * (f.size + 1) // 2 for f in factors) - both
    eigenvalues = [f.eigenvalues() for f in factors]
    zeros = sum(int(np.count_nonzero(values == 0.0)) for values in eigenvalues)
    positive = [values[values > 0.0] for values in eigenvalues]
    known = all(values.size for values in positive)
    notes = []
    short = False
    for factor, rows, others in zip(fit.fit, (fit.m, fit.r), (fit.r, fit.m), strict=True):
        if factor is not None:
            few, said = _conditions(factor, "A" if factor is fit.fit[0] else "B", rows, others, steps)
            short = short or few
            notes += said
    if both and fit.m * fit.r:
        needed = (fit.m * (fit.m + 1) + fit.r * (fit.r + 1) - 2) / (2 * fit.m * fit.r)
        if steps < needed:
            short = True
            notes.append(
                f"{steps} steps are fewer than the {needed:.3g} that can determine A and B together, "
                "(m(m+1) + r(r+1) - 2)/(2 m r)"
            )
        notes.append("A and B are known up to a factor, (c A, B/c); here |A| = |B| on what the steps span")
    status: FitStatus = "ok"
    if not any(f.rank for f in factors):
        status = "not_identified"
        notes = ["nothing moved in the fitted steps: the data say nothing about the metric"]
    elif short or steps < 1:
        status = "too_few_steps"
    elif any(f.rank < f.size for f in factors):
        status = "underdetermined"
    elif zeros:
        status = "not_positive_definite"
    elif fit.iterations or not all(f.converged for f in factors):
        status = "not_converged"
    if not all(f.converged for f in factors):
        notes.append("the solver stopped before its residual was certified")
    if fit.iterations:
        notes.append(fit.iterations)
    return BlockFacts(
        parameters=parameters,
        status=status,
        dimension=sum(f.size for f in factors),
        determined=sum(f.rank for f in factors),
        not_positive=zeros,
        smallest=math.prod(float(values[0]) for values in positive) * unit if known else math.nan,
        largest=math.prod(float(values[-1]) for values in positive) * unit if known else math.nan,
        notes=tuple(notes),
    )


def _conditions(factor: Factor, name: str, rows: int, others: int, steps: int) -> tuple[bool, list[str]]:
    """Whether there are too few steps for a matrix, and what it rests on, in words."""
    side, total = ("output", "sum_t G_t G_t^T") if name == "A" else ("input", "sum_t G_t^T G_t")
    if rows == 1:
        return False, [f"the {side} side has one element only: {name} is one number"]
    notes = []
    short = steps * others < rows
    if factor.rank == rows:
        notes.append(f"{name} ({rows} x {rows}) is unique: {total} has full rank")
    elif factor.rank:
        notes.append(
            f"{total} has rank {factor.rank} of {rows}: the updates determine {name} times the {factor.rank} directions "
            f"that they span, enough to score steps within them; {name} between the other {rows - factor.rank} "
            "directions is free"
        )
    if short:
        notes.append(f"{steps} steps with {others} columns each cannot span {rows} directions")
    zeros = int(np.count_nonzero(factor.eigenvalues() == 0.0))
    if zeros:
        notes.append(
            f"{name} is singular: the best semidefinite fit maps {zeros} of the {factor.rank} directions that moved to 0"
        )
    if factor.epsilon:
        notes.append(
            f"no matrix attains the best fit: {factor.epsilon:.0e} of its largest eigenvalue was added to {name} on the "
            "span of the updates"
        )
    return short, notes


_WORST: tuple[FitStatus, ...] = (
    "too_few_steps",
    "not_identified",
    "underdetermined",
    "not_positive_definite",
    "not_converged",
    "ok",
)


def _together(names: Sequence[str], facts: Sequence[BlockFacts]) -> BlockFacts:
    """Of all arrays."""
    smallest, largest = ([x for x in column if x > 0.0] for column in zip(*((f.smallest, f.largest) for f in facts)))
    said = [f"{name!r}: {note}" for name, f in zip(names, facts, strict=True) if f.status != "ok" for note in f.notes]
    return BlockFacts(
        parameters=sum(f.parameters for f in facts),
        status=min((f.status for f in facts), key=_WORST.index),
        dimension=sum(f.dimension for f in facts),
        determined=sum(f.determined for f in facts),
        not_positive=sum(f.not_positive for f in facts),
        smallest=min(smallest, default=math.nan),
        largest=max(largest, default=math.nan),
        notes=tuple(said[:8]) + (f"and {len(said) - 8} more notes of the arrays",) * (len(said) > 8),
    )
