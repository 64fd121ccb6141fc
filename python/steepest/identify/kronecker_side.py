"""The families A kron I and I kron B: one matrix on the output or on the input side of each weight matrix."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import EPSILON, Layout
from steepest.identify.fitted import Fitted
from steepest.identify.kronecker_estimate import ArrayFit, Factor, squared
from steepest.identify.kronecker_facts import assembled, check_sides
from steepest.identify.passes import ScaledStep, fit_and_score, require_vectors
from steepest.identify.procrustes import spd_procrustes
from steepest.identify.row_factor import RowFactor
from steepest.identify.steps import Steps
from steepest.metrics.kronecker import matrix_shape

__all__ = [
    "Sums",
    "data_epsilon",
    "fit_kronecker_input",
    "fit_kronecker_output",
    "matrices",
    "new_sums",
    "rank_tolerance",
    "solve_side",
]

Array = NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)
_CERTIFIED = 1e-8  # of the residual
_ITERATIONS = 200
_QR = 256  # rows up to which an orthogonal factor is kept, exact to rounding; above, sums of products


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


class _GramFactor:
    """`Sums` as ``sum G G^T``, ``sum Y G^T``, ``sum Y Y^T``, for many rows.

    Parameters
    ----------
    m : int
        Rows.

    both : bool
        Whether `swapped` will be asked for.

    Notes
    -----
    6 m^2 r operations for a pair, all in matrix products. Directions in which G is below ``sqrt(m eps)`` of its largest
    singular value (5e-7 for m = 1000; the rounding of float32 data is of that size already) are taken as not moved.
    """

    def __init__(self, m: int, both: bool) -> None:
        self.gg, self.yg = np.zeros((m, m)), np.zeros((m, m))
        self.yy = np.zeros((m, m)) if both else None
        self.total = 0.0

    def add(self, G: Array, Y: Array) -> None:
        self.gg += G @ G.T
        self.yg += Y @ G.T
        self.total += squared(Y)
        if self.yy is not None:
            self.yy += Y @ Y.T

    def pair(self) -> tuple[Array, Array, float]:
        return _root(self.gg, self.yg, self.total)

    def swapped(self) -> tuple[Array, Array, float]:
        assert self.yy is not None  # both
        return _root(self.yy, self.yg.T, float(np.trace(self.gg)))


def _root(gg: Array, yg: Array, yy: float) -> tuple[Array, Array, float]:
    values, u = np.linalg.eigh(gg)
    keep = values > len(values) * _EPS * max(float(values[-1]), 0.0)
    u, s = u[:, keep], np.sqrt(values[keep])
    b = (yg @ u) / s
    return u * s, b, max(0.0, yy - squared(b))


def new_sums(m: int, both: bool = True) -> Sums:
    """For a side with m rows.

    Parameters
    ----------
    m : int
        Rows.
    both : bool
        Whether `Sums.swapped` will be asked for.

    Returns
    -------
    Sums
        Exact to rounding where m allows.
    """
    return RowFactor(m) if m <= _QR else _GramFactor(m, both)


def rank_tolerance(m: int, epsilon: float) -> float:
    """Singular values of the updates below this share of the largest count as 0.

    Parameters
    ----------
    m : int
        Rows.
    epsilon : float
        Rounding unit of the data.

    Returns
    -------
    float
        At least 1e-7, a share of 1e-14 of the squares: directions that the updates have left that much sooner than the
        others, as they do in full batches, are neither determined in practice nor within the solver's reach.
    """
    return max(1e-7, 4.0 * math.sqrt(m) * epsilon)


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
        With the span of X; zero outside of it.
    residual : float
        The sum.

    Notes
    -----
    Section 11(a) (Gillis and Sharma 2018, paper): with X = U S V^T and Q = U on the span, Q^T A Q is an SPD Procrustes
    problem of the size of the rank, and the coupling (I - Q Q^T) A Q follows. What is free is left 0: a positive
    semidefinite completion can be as large as one likes where Q^T A Q is nearly singular, and would only spoil the
    prediction of steps that leave the span a little.
    """
    u, s, vt = np.linalg.svd(X, full_matrices=False)
    keep = s > tolerance * float(np.max(s, initial=0.0))
    q, s = u[:, keep], s[keep]
    if not s.size:
        return Factor(np.zeros((len(X), len(X))), q, np.zeros(0)), squared(B) + rest
    z = B @ vt[keep].T
    inside = q.T @ z
    found = spd_procrustes(np.diag(s), inside, tolerance=_CERTIFIED, max_iterations=_ITERATIONS)
    a = np.zeros((len(X), len(X)))
    if found.eigenvalues.any():
        a += q @ found.A @ q.T
    coupling = (z - q @ inside) / s
    if squared(coupling) > _CERTIFIED**2 * squared(z) / squared(s):  # else rounding, as always at full rank
        a += coupling @ q.T + q @ coupling.T
    return Factor(a, q, found.eigenvalues, found.converged), squared(a @ X - B) + rest


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


class _OneSided:
    """One side of each array while it is fitted."""

    def __init__(self, layout: Layout, output: bool) -> None:
        self.shapes, self.output = layout.shapes, output
        self.sums = [new_sums(matrix_shape(shape)[0 if output else 1]) for shape in layout.shapes]
        self.epsilon = _EPS
        self.fits: list[ArrayFit] = []

    def add(self, step: ScaledStep) -> None:
        self.epsilon = max(self.epsilon, data_epsilon(step))
        for sums, (y, g) in zip(self.sums, matrices(step), strict=True):
            sums.add(*((g, y) if self.output else (g.T, y.T)))

    def fit(self) -> Array:
        self.fits = [self._array_fit(shape, sums) for shape, sums in zip(self.shapes, self.sums, strict=True)]
        return np.array([fit.in_sample for fit in self.fits])

    def _array_fit(self, shape: tuple[int, ...], sums: Sums) -> ArrayFit:
        tolerance = rank_tolerance(matrix_shape(shape)[0 if self.output else 1], self.epsilon)
        x, of_x, rest = sums.pair()
        z, of_z, rest_of_z = sums.swapped()
        a, residual = solve_side(x, of_x, rest, tolerance)
        p, reverse = solve_side(z, of_z, rest_of_z, tolerance)
        s, of_s = None, math.nan
        if a.rank == p.rank == a.size and a.matrix.any():
            s = symmetric_side(x, z)
            of_s = squared(s @ x - of_x) + rest
        in_sample = np.array([residual, reverse, of_s, squared(z), squared(x)])
        if self.output:
            return ArrayFit(shape, (a, None), (p, None), None if s is None else (s, None), in_sample)
        return ArrayFit(shape, (None, a), (None, p), None if s is None else (None, s), in_sample)

    def residuals(self, step: ScaledStep) -> Array:
        return np.array([fit.residuals(y, g) for fit, (y, g) in zip(self.fits, matrices(step), strict=True)])


def matrices(step: ScaledStep) -> list[tuple[Array, Array]]:
    """Y and G of each array, first axis as rows.

    Parameters
    ----------
    step : ScaledStep
        Any.

    Returns
    -------
    list of (ndarray, ndarray)
        Shapes (m, r).
    """
    pairs = step.arrays()
    return [(y.reshape(shape), g.reshape(shape)) for y, g in pairs for shape in [matrix_shape(y.shape)]]


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
    found = fit_and_score(steps, split, progress, family, model)
    return assembled(steps, model.fits, found)
