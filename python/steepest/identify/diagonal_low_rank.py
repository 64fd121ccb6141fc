"""The family diag(d) + U U^T with few columns U: a diagonal, and directions that stand out of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, eigsh

from steepest.arrays import Layout
from steepest.identify.fitted import BlockFacts, FitStatus, Fitted
from steepest.identify.kept_rows import KeptRows, members
from steepest.identify.passes import ScaledStep, fit_and_score, scaled_steps
from steepest.identify.steps import Steps
from steepest.metrics.diagonal_low_rank import DiagonalLowRankMetric

__all__ = ["fit_diagonal_low_rank"]

Array = NDArray[np.float64]
Batches = Callable[[], Iterator[tuple[Array, Array]]]
_TINY = float(np.finfo(np.float64).tiny)
_MEMORY = 1 << 24  # numbers in each of the two sets of corrections: more of them cut the iterations by up to ten
_FIRST = 300  # evaluations by L-BFGS, before Gauss-Newton products are worth their cost


@dataclass(frozen=True, eq=False)
class _BlockSolution:
    """The fit of one block, flat.

    Attributes
    ----------
    d, moved : ndarray, shape (n,)
        Diagonal, zeros where no positive number fits; whether the parameter moved at all.
    U : ndarray, shape (n, k)
        Orthogonal columns, longest first.
    evaluations, converged
        Of the solver.
    steps : int
        That were fitted.
    """

    d: Array
    moved: NDArray[np.bool_]
    U: Array
    evaluations: int
    converged: bool
    steps: int


class _OutOfBudgetError(Exception):
    """All evaluations are spent."""


class _Objective:
    """Half the share of |y|^2 that U leaves with the best diagonal, in units ``U = sqrt(unit) x``; of one block."""

    def __init__(self, batches: Batches, n: int, rank: int, budget: int) -> None:
        self.batches, self.shape, self.budget = batches, (n, rank), budget
        yy, self.yg, self.gg, self.count = np.zeros(n), np.zeros(n), np.zeros(n), 0
        for y, g in batches():
            yy += np.einsum("ti,ti->i", y, y)
            self.yg += np.einsum("ti,ti->i", y, g)
            self.gg += np.einsum("ti,ti->i", g, g)
            self.count += len(y)
        self.total = float(yy.sum())
        self.moved = self.gg > _TINY
        self.unit = math.sqrt(self.total / float(self.gg.sum())) if self.moved.any() else 1.0
        self.used = 0
        self.best: tuple[float, Array] = (math.inf, np.zeros(n * rank))

    def columns(self, x: Array) -> Array:
        u: Array = math.sqrt(self.unit) * x.reshape(self.shape)
        return u

    def diagonal(self, image: Array) -> Array:
        """d_i = max(0, sum_t (y - U U^T g)_ti g_ti / sum_t g_ti^2), `image` the part of U."""
        return np.divide(np.maximum(self.yg - image, 0.0), self.gg, out=np.zeros_like(image), where=self.moved)

    def image(self, u: Array, v: Array) -> Array:
        """sum_t (U V^T g)_ti g_ti."""
        found = np.zeros(self.shape)
        for _, g in self.batches():
            found += g.T @ (g @ v)
        image: Array = np.einsum("ia,ia->i", u, found)
        return image

    def __call__(self, x: Array) -> tuple[float, Array]:
        self._spend()
        u = self.columns(x)
        d = self.diagonal(self.image(u, u))
        left, slope = 0.0, np.zeros(self.shape)
        for y, g in self.batches():
            along = g @ u
            residual = d * g + along @ u.T - y
            left += float(np.einsum("ti,ti->", residual, residual))
            slope += residual.T @ along + g.T @ (residual @ u)
        value = 0.5 * left / self.total
        if value < self.best[0]:
            self.best = (value, x.copy())
        return value, (math.sqrt(self.unit) / self.total) * slope.ravel()

    def gauss_newton(self, x: Array, direction: Array) -> Array:
        """Product with J^T J, J the derivative of the residual with d following U (Kaufman 1975)."""
        self._spend()
        u, v = self.columns(x), self.columns(direction)
        free = self.yg > self.image(u, u)
        follow = self.image(u, v) + self.image(v, u)
        d = -np.divide(follow, self.gg, out=np.zeros_like(follow), where=self.moved & free)
        product = np.zeros(self.shape)
        for _, g in self.batches():
            along = g @ u
            change = (g @ v) @ u.T + along @ v.T + d * g
            product += change.T @ along + g.T @ (change @ u)
        flat: Array = (math.sqrt(self.unit) / self.total) * product.ravel()
        return flat

    def _spend(self) -> None:
        self.used += 1
        if self.used > self.budget:
            raise _OutOfBudgetError


def _solve(batches: Batches, n: int, rank: int, budget: int, tolerance: float) -> tuple[_BlockSolution, float]:
    """Least squares over U, with the best diagonal for each; and the sum of squares that is left."""
    from scipy.optimize import minimize  # 40 ms that the import of the package need not take

    k = min(rank, n)
    f = _Objective(batches, n, k, budget)
    if not f.moved.any() or not f.total > 0.0:
        return _BlockSolution(np.zeros(n), f.moved, np.zeros((n, k)), 0, True, f.count), f.total
    start = _start(batches, f.diagonal(np.zeros(n)), f.gg, n, k, f.unit)
    x = start.ravel() / math.sqrt(f.unit)
    try:
        memory = int(min(50, max(10, _MEMORY // (n * k))))
        options = {"maxfun": _FIRST, "maxiter": _FIRST, "maxcor": memory, "ftol": 1e-14, "gtol": tolerance}
        found = minimize(f, x, jac=True, method="L-BFGS-B", options=options)
        if not found.success:
            options = {"gtol": tolerance, "maxiter": budget}
            found = minimize(f, found.x, jac=True, hessp=f.gauss_newton, method="trust-ncg", options=options)
        converged = bool(found.success)
    except _OutOfBudgetError:
        converged = False
    value, x = f.best
    u = f.columns(x)
    d = f.diagonal(f.image(u, u))
    # U is unique up to a rotation: its orthogonal columns
    left_vectors, lengths, _ = np.linalg.svd(u, full_matrices=False)
    solution = _BlockSolution(d, f.moved, left_vectors * lengths, min(f.used, budget), converged, f.count)
    return solution, 2.0 * value * f.total


def _start(batches: Batches, d: Array, gg: Array, n: int, k: int, unit: float) -> Array:
    """Leading eigenvectors of the residual of the diagonal fit, each as long as its residual calls for."""

    def residual_product(x: Array) -> Array:  # sym(R^T G) x
        x = x.reshape(n, -1)
        out = np.zeros_like(x)
        for y, g in batches():
            r = y - d * g
            out += 0.5 * (r.T @ (g @ x) + g.T @ (r @ x))
        return out

    if n <= max(64, 3 * k):
        values, vectors = np.linalg.eigh(residual_product(np.eye(n)))
        values, vectors = values[::-1][:k], vectors[:, ::-1][:, :k]
    else:
        operator = LinearOperator((n, n), matvec=residual_product, matmat=residual_product, dtype=np.float64)
        values, vectors = eigsh(operator, k, which="LA", v0=np.sqrt(gg), tol=1e-2, maxiter=50 * n)
    spread = np.zeros(k)
    for _, g in batches():
        spread += np.sum((g @ vectors) ** 2, axis=0)
    size = np.divide(values, spread, out=np.zeros(k), where=spread > _TINY)
    # Where the residual shows no such direction a short column is left for the solver: zero would be stationary
    started: Array = vectors * np.sqrt(np.maximum(size, 1e-2 * unit))
    return started


@dataclass(frozen=True, eq=False)
class DiagonalLowRankEstimate:
    """d and U of each block, in units of 2**exponent."""

    layout: Layout
    blocks: tuple[_BlockSolution, ...]
    exponent: int

    def metric(self, block: int, floor: float | None, symmetric: bool) -> DiagonalLowRankMetric:
        d, columns, layout = self._of(block, symmetric)
        if floor is not None:
            d = [np.where(x > 0.0, x, floor) for x in d]
        return DiagonalLowRankMetric(layout, d, columns)

    def elements(self, block: int, symmetric: bool) -> dict[str, Any]:
        d, columns, layout = self._of(block, symmetric)
        shaped = [x.reshape(shape) for x, shape in zip(d, layout.shapes, strict=True)]
        vectors = [u.reshape(-1, *shape) for u, shape in zip(columns, layout.shapes, strict=True)]
        if layout.names is None:
            return {"diagonal": shaped[0], "columns": vectors[0]}
        return {
            "diagonal": dict(zip(layout.names, shaped, strict=True)),
            "columns": dict(zip(layout.names, vectors, strict=True)),
        }

    def _of(self, block: int, symmetric: bool) -> tuple[list[Array], list[Array], Layout]:
        if symmetric:
            raise ValueError("the diagonal+low-rank family has one estimate only: expected symmetric=False")
        found = self.blocks[block]
        layout = self.layout if block == 0 else Layout(None, (self.layout.shapes[block - 1],))
        ends = np.cumsum(layout.sizes)[:-1]
        unit = math.ldexp(1.0, self.exponent)
        columns = [np.ascontiguousarray(u.T) for u in np.split(math.sqrt(unit) * found.U, ends)]
        return np.split(unit * found.d, ends), columns, layout


class _Model:
    """Keeps the rows, or reads the run again at every evaluation; then solves block by block."""

    def __init__(self, steps: Steps, split: int, rank: int, keep: bool, budget: int, tolerance: float) -> None:
        self._layout = steps.layout
        self._steps, self._split = steps, split
        self._rank, self._budget, self._tolerance = rank, budget, tolerance
        self.rows = KeptRows(steps.layout, split) if keep else None
        self.blocks: tuple[_BlockSolution, ...] = ()
        self._norms = np.zeros((len(steps.layout.sizes), 2))
        self.places = range(len(steps.blocks))

    def add(self, step: ScaledStep) -> None:
        if self.rows is not None:
            self.rows.add(step)
        for i, _, y, g in step.chunks():
            self._norms[i] += float(y @ y), float(g @ g)

    def fit(self) -> Array:
        found, in_sample = [], np.full((len(self.places), 5), math.nan)
        for block in self.places:
            own = list(members(self._layout, block))
            size = sum(self._layout.sizes[i] for i in own)
            solution, left = _solve(self._batches(block), size, self._rank, self._budget, self._tolerance)
            found.append(solution)
            in_sample[block, 0] = left
            in_sample[block, 3:] = self._norms[own].sum(axis=0)
        self.blocks = tuple(found)
        return in_sample

    def _batches(self, block: int) -> Batches:
        own = members(self._layout, block)
        rows = self.rows
        if rows is not None:
            return lambda: rows.batches(block)

        def read() -> Iterator[tuple[Array, Array]]:
            for step in scaled_steps(self._steps, self._split):
                y, g = zip(*(step.arrays()[i] for i in own), strict=True)
                yield np.concatenate([x.ravel() for x in y])[None], np.concatenate([x.ravel() for x in g])[None]

        return read

    def residuals(self, step: ScaledStep) -> Array:
        arrays = [(y.ravel(), g.ravel()) for y, g in step.arrays()]
        found = np.full((len(self.places), 5), math.nan)
        for block, fit in enumerate(self.blocks):
            y, g = (np.concatenate([arrays[i][part] for i in members(self._layout, block)]) for part in range(2))
            left = y - fit.d * g - fit.U @ (fit.U.T @ g)
            found[block, [0, 3, 4]] = float(left @ left), float(y @ y), float(g @ g)
        return found


def fit_diagonal_low_rank(
    steps: Steps,
    split: int,
    progress: bool,
    *,
    rank: int = 1,
    keep: bool = True,
    max_evaluations: int = 10_000,
    solver_tolerance: float = 1e-8,
) -> Fitted:
    """Fit ``M = diag(d) + U U^T`` with few columns, by least squares over y - M g.

    Parameters
    ----------
    steps : Steps
        The run, with vectors.
    split : int
        How many steps are fitted.
    progress : bool
        Show a bar.
    rank : int
        Number of columns of U.
    keep : bool
        Keep the fitted vectors in memory (2 n T numbers in their own type). False reads the run again, twice for every
        evaluation of the solver, and needs a run that can be read more than once.
    max_evaluations : int
        Of the sum of squares, its gradient, or a product with its Gauss-Newton matrix; in each block.
    solver_tolerance : float
        Norm of the gradient of half the share of |y|^2 that is left, with U in units of the root of the
        typical element of M.

    Returns
    -------
    Fitted
        With the conditions and the convergence in the notes.

    Raises
    ------
    ValueError
        There are no vectors, an option out of range, or a run that cannot be read again with ``keep=False``.

    Notes
    -----
    Section 11(b) (derived). For given U the best diagonal is closed, ``d_i = max(0, sum_t (y - U U^T g)_ti g_ti /
    sum_t g_ti^2)``, and is eliminated (variable projection; Golub and Pereyra 1973): with d = e^z the gradient dz of
    the theory is then zero, and ``dU = R^T (g U) + g^T (R U)``, R = M g - y, is the gradient of what is left. L-BFGS
    goes first; where it has not converged after 300 evaluations, a trust region with Gauss-Newton products follows,
    since directions that M makes long are short in g, and the problem is as ill-conditioned as their ratio. U starts
    from the leading eigenvectors of sym(R^T G), R the residual of the diagonal fit. The problem is not convex: what is
    found is a local minimum. U is unique up to a rotation, and given with orthogonal columns. The steps must number at
    least rank + 1; the split into diagonal and low rank is unique in general only if (n - rank)^2 >= n + rank.

    There is no fit of g from y: the inverse of such a metric is a diagonal MINUS a low-rank matrix. Each block has a
    fit of its own, and that of ``(all)`` couples the arrays.

    Cost: about 6 n T rank multiplications and two readings of the fitted vectors for each evaluation, mostly some
    hundred of these; 20 n rank numbers for L-BFGS, up to 100 n rank where that is less than 2^25.
    """
    if rank != int(rank) or rank < 1:
        raise ValueError(f"expected rank to be a positive integer, got {rank!r}")
    if not max_evaluations >= 1 or not solver_tolerance > 0.0:
        raise ValueError(
            f"expected max_evaluations >= 1 and solver_tolerance > 0, got {max_evaluations!r} and {solver_tolerance!r}"
        )
    if not keep and not steps.repeatable:
        raise ValueError("keep=False needs steps that can be read more than once, got an iterator: leave keep=True")
    model = _Model(steps, split, int(rank), keep, int(max_evaluations), solver_tolerance)
    found = fit_and_score(steps, split, progress, "diagonal+low-rank", model)
    exponent = found.exponents[0] - found.exponents[1]
    estimate = DiagonalLowRankEstimate(steps.layout, model.blocks, exponent)
    return Fitted(
        estimate=estimate,
        in_sample=found.in_sample,
        held_out=found.held_out,
        numbers=found.numbers,
        fitted_steps=found.fitted_steps,
        dropped=found.dropped,
        facts=tuple(_facts(block, int(rank), math.ldexp(1.0, exponent)) for block in model.blocks),
    )


def _facts(found: _BlockSolution, rank: int, unit: float) -> BlockFacts:
    n, k, steps = len(found.d), min(rank, len(found.d)), found.steps
    moved = int(np.count_nonzero(found.moved))
    clipped = int(np.count_nonzero(found.moved & ~(found.d > 0.0)))
    parameters = n * (k + 1) - k * (k - 1) // 2
    equations = n * steps - steps * (steps - 1) // 2 if n >= steps else n * (n + 1) // 2
    status: FitStatus = "ok"
    notes = ["g is not fitted from y: the inverse of such a metric is a diagonal minus a matrix of low rank"]
    if steps < k + 1:
        status = "too_few_steps"
        notes.append(f"{steps} steps are fitted: a diagonal and {k} columns need at least {k + 1}")
    elif moved == 0:
        status = "not_identified"
        notes.append("no parameter moved in the fitted steps: the data say nothing about the metric")
    elif not found.converged:
        status = "not_converged"
        notes.append(f"the solver was stopped after {found.evaluations} evaluations: raise max_evaluations=")
    elif moved < n or clipped:
        status = "not_positive_definite"
    elif equations < min(parameters, n * (n + 1) // 2):
        status = "underdetermined"
        notes.append(
            f"{steps} steps fix {equations} numbers of a symmetric matrix, and the family has {parameters}: other "
            "metrics of the family fit as well"
        )
    if 0 < moved < n:
        notes.append(
            f"{n - moved} of {n} parameters never moved in the fitted steps: the data say nothing about their elements"
        )
    if clipped:
        notes.append(f"the diagonal part is 0 at {clipped} of {n} parameters, since no positive number fits")
    if (n - k) ** 2 < n + k:
        notes.append(
            f"the split into diagonal and low rank is not unique: (n - rank)^2 = {(n - k) ** 2} < n + rank = {n + k}"
        )
    if found.converged and found.evaluations:
        notes.append(f"the solver converged in {found.evaluations} evaluations, to a local minimum")
    positive = found.d[found.d > 0.0] * unit
    smallest, largest = math.nan, math.nan
    if positive.size:
        # Bounds of the eigenvalues of diag(d) + U U^T
        smallest, largest = float(positive.min()), float(positive.max()) + unit * float(np.sum(found.U[:, 0] ** 2))
    return BlockFacts(parameters, status, n, moved, clipped, smallest, largest, tuple(notes))
