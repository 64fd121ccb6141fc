"""The metric that maps each fitted update to its -grad exactly, where there is one: a block BFGS update."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import Layout, LongVector
from steepest.identify.fitted import BlockFacts, FitStatus, Fitted
from steepest.identify.kept_rows import KeptRows, members
from steepest.identify.passes import ScaledStep, fit_and_score_together
from steepest.identify.steps import Steps
from steepest.metrics.form import LowRankForm
from steepest.metrics.low_rank import LowRankMetric

__all__ = ["fit_multi_secant"]

Array = NDArray[np.float64]
_ONE_ESTIMATE = "the multi-secant family has one estimate only: expected symmetric=False"
_AMPLIFIED = 10.0  # what the tolerance of the asymmetry allows in the residual: dependent updates amplify it
_TOGETHER = 16  # held-out steps at a time: the fitted ones are read again for each such batch
_Products = tuple[Array, Array, Array, Array]  # G^T g, Y^T g, G^T y, Y^T y
Bulk = Literal["least-squares", "omega"]
_Images = tuple[float, Array, Array, float, Array, Array]


@dataclass(frozen=True)
class _Secants:
    """The conditions of section 11(a) for one block, and the block BFGS update if they hold.

    With updates of unit length (`scale` times G, Y), ``Q = G T`` orthonormal and ``Z = Y T``, M must map Q to Z;
    ``H = Q^T Z``.

    Attributes
    ----------
    size, count, rank : int
        Parameters, steps, and how many of the updates are independent.
    asymmetry : float
        ``|G^T Y - Y^T G|_F / |G^T Y + Y^T G|_F``.
    left_over : float
        ``|Y V|_F / |Y|_F`` for the combinations V of steps whose updates cancel: M maps 0 to 0.
    misfit : float
        ``|Y - M G|_F / |Y|_F`` of the independent combinations, from the symmetric part; NaN if that is not definite.
    values : ndarray, shape (rank,)
        Generalised eigenvalues of (sym(G^T Y), G^T G), ascending: M restricted to the updates.
    bulk, reverse_bulk : float
        c of the base c I; and that of the metric whose inverse fits g from y.
    of_q, of_z : ndarray, shape (rank, count)
        Coefficients of the columns of Q and of ``Z sym(H)^-1/2`` over the rows of G and of Y.
    cross, own : ndarray, shape (rank, rank), or None
        Q^T W_z and W_z^T W_z with W_z the latter columns; None if there is no M.
    """

    size: int
    count: int
    rank: int
    asymmetry: float
    left_over: float
    misfit: float
    values: Array
    tolerance: float
    bulk: float = math.nan
    reverse_bulk: float = math.nan
    of_q: Array = field(default_factory=lambda: np.zeros((0, 0)))
    of_z: Array = field(default_factory=lambda: np.zeros((0, 0)))
    cross: Array | None = None
    own: Array | None = None

    @property
    def exists(self) -> bool:
        """Whether there is a metric."""
        return self.cross is not None

    @property
    def consistent(self) -> bool:
        """Whether some symmetric matrix fits all steps, to the tolerance."""
        symmetric = self.asymmetry <= self.tolerance and self.left_over <= self.tolerance
        return symmetric and not self.misfit > _AMPLIFIED * self.tolerance

    def core(self, c: float) -> Array:
        """Of ``M = c I + W core W^T``, W the columns of `of_q` and `of_z`."""
        return np.diag(np.repeat([-c, 1.0], self.rank))

    def inverse_core(self, c: float) -> Array:
        """Of ``M^-1 = I/c + W inverse_core W^T``."""
        assert self.cross is not None
        assert self.own is not None
        # Woodbury: -(core^-1 + W^T W/c)^-1/c^2, where the block of Q in the bracket is 0
        none, one = np.zeros_like(self.own), np.eye(self.rank)
        bracket = np.block([[none, self.cross / c], [self.cross.T / c, one + self.own / c]])
        core = -np.linalg.inv(bracket) / c**2
        symmetric: Array = 0.5 * (core + core.T)
        return symmetric

    def images(self, gg: Array, yg: Array, gy: Array, yy: Array) -> _Images | None:
        """M g and M^-1 y of some steps: multiples of g and of y, and coefficients over the rows of G and of Y."""
        if not self.exists:
            return None
        r = self.rank

        def change(core: Array, with_g: Array, with_y: Array) -> tuple[Array, Array]:
            x = core @ np.concatenate([self.of_q @ with_g, self.of_z @ with_y])
            return (self.of_q.T @ x[:r]).T, (self.of_z.T @ x[r:]).T

        forward, reverse = change(self.core(self.bulk), gg, yg), change(self.inverse_core(self.reverse_bulk), gy, yy)
        return self.bulk, *forward, 1.0 / self.reverse_bulk, *reverse


def _secants(
    gg: Array, gy: Array, yy: Array, size: int, tolerance: float, rank_tolerance: float, bulk: Bulk
) -> _Secants:
    """From G^T G, G^T Y and Y^T Y."""
    count = len(gg)
    moved, pulled = np.sqrt(np.diag(gg)), np.sqrt(np.diag(yy))
    if not moved.any():
        return _Secants(size, count, 0, math.nan, math.nan, math.nan, np.zeros(0), tolerance)
    ratio = float(np.median(pulled[moved > 0.0] / moved[moved > 0.0]))
    # A step that does not move cannot be of unit length: it enters with the typical length of the others' gradients
    scale = np.divide(1.0, moved, out=np.zeros_like(moved), where=moved > 0.0)
    still = (moved == 0.0) & (pulled > 0.0)
    scale[still] = ratio / pulled[still] if ratio > 0.0 else 1.0
    gg, gy, yy = (x * np.outer(scale, scale) for x in (gg, gy, yy))
    both = float(np.linalg.norm(gy + gy.T))
    asymmetry = float(np.linalg.norm(gy - gy.T)) / both if both > 0.0 else math.inf if gy.any() else 0.0
    squares, vectors = np.linalg.eigh(gg)
    kept = squares > rank_tolerance**2 * squares[-1]
    rank = int(kept.sum())
    null = vectors[:, ~kept]
    # Combinations of unit length whose updates all but cancel may keep what a bounded M makes of the rest
    rest = float(np.trace(null.T @ yy @ null)) - float(np.sum(np.maximum(squares[~kept], 0.0))) * ratio**2
    left_over = math.sqrt(max(0.0, rest) / float(np.trace(yy))) if yy.any() else 0.0
    transform = vectors[:, kept] / np.sqrt(squares[kept])
    h, zz = transform.T @ gy @ transform, transform.T @ yy @ transform
    values, basis = np.linalg.eigh(0.5 * (h + h.T))
    misfit = math.nan
    if values[0] > 0.0:
        # M Q - Z = -Z sym(H)^-1 skew(H)
        skew = 0.5 * (h - h.T) @ (np.sqrt(squares[kept])[:, None] * vectors[:, kept].T)
        off = (basis / values) @ (basis.T @ skew)
        misfit = math.sqrt(max(0.0, float(np.sum(off * (zz @ off)))) / float(np.trace(yy)))
    found = _Secants(size, count, rank, asymmetry, left_over, misfit, values, tolerance)
    if not (found.consistent and values[0] > 0.0):
        return found
    root = (basis / np.sqrt(values)) @ basis.T  # sym(H)^-1/2
    cross, own = h @ root, root @ zz @ root  # Q^T W_z and W_z^T W_z
    forward = reverse = float(np.trace(own)) / rank  # tr((G^T Y)^-1 Y^T Y)/rank
    if bulk == "least-squares":
        forward, reverse = float(np.trace(h)) / rank, rank / float(np.trace(np.linalg.solve(zz, h)))
    return _Secants(
        size,
        count,
        rank,
        asymmetry,
        left_over,
        misfit,
        values,
        tolerance,
        forward,
        reverse,
        (transform * scale[:, None]).T,
        (transform @ root * scale[:, None]).T,
        cross,
        own,
    )


@dataclass(frozen=True, eq=False)
class MultiSecantEstimate:
    """The secants of each block, over the rows of the fitted steps, which are kept."""

    rows: KeptRows
    blocks: tuple[_Secants, ...]

    def metric(self, block: int, floor: float | None, symmetric: bool) -> LowRankMetric:
        found = self.blocks[block]
        if symmetric:
            raise ValueError(_ONE_ESTIMATE)
        if not found.exists:
            raise ValueError(f"expected steps that one metric fits exactly: {'; '.join(_conditions(found))}")
        layout = self.rows.layout
        zero = np.zeros_like(found.of_q)
        q, z = (
            [self.rows.combined(i, *pair) for i in members(layout, block)]
            for pair in ((found.of_q, zero), (zero, found.of_z))
        )
        if block > 0:
            layout = Layout(None, (layout.shapes[block - 1],))
        columns = tuple(
            LongVector(
                [x[a].reshape(shape) for x, shape in zip(part, layout.shapes, strict=True)],
                layout,
                tuple(str(x.dtype) for x in part),
            )
            for part in (q, z)
            for a in range(found.rank)
        )
        exponent = self.rows.exponents[0] - self.rows.exponents[1]
        none = (0,) * len(columns)
        c = found.bulk if floor is None else math.ldexp(floor, -exponent)
        forms = (
            LowRankForm(c, columns, none, found.core(c), exponent),
            LowRankForm(1.0 / c, columns, none, found.inverse_core(c), -exponent),
        )
        shapes = [np.broadcast_to(0.0, shape) for shape in layout.shapes]
        like: Any = shapes[0] if layout.names is None else dict(zip(layout.names, shapes, strict=True))
        return LowRankMetric(*forms, None, self.rows.dtype(block), like)

    def elements(self, block: int, symmetric: bool) -> dict[str, Any]:
        found = self.blocks[block]
        unit = math.ldexp(1.0, self.rows.exponents[0] - self.rows.exponents[1])
        if symmetric:
            raise ValueError(_ONE_ESTIMATE)
        return {
            "rank": found.rank,
            "asymmetry": found.asymmetry,
            "left_over": found.left_over,
            "misfit": found.misfit,
            "values": found.values * unit,
            "bulk": found.bulk * unit,
        }


class _Model:
    """Keeps the rows, then solves for each block from their inner products."""

    def __init__(self, layout: Layout, split: int, tolerance: float, rank_tolerance: float | None, bulk: Bulk) -> None:
        self.rows = KeptRows(layout, split)
        self.blocks: tuple[_Secants, ...] = ()
        self._tolerance, self._rank_tolerance = tolerance, rank_tolerance
        self._bulk: Bulk = bulk

    @property
    def _places(self) -> range:
        return range(1 if self.rows.layout.names is None else len(self.rows.layout.sizes) + 1)

    def clear(self) -> None:
        self.rows.count = 0

    def add(self, steps: Sequence[ScaledStep]) -> bool:
        for step in steps:
            self.rows.add(step)
        return True

    def fit(self) -> Array:
        grams = self.rows.grams()
        found = []
        for block in self._places:
            own = members(self.rows.layout, block)
            gg, gy, yy = (np.sum([grams[i][part] for i in own], axis=0) for part in range(3))
            rank_tolerance = self._rank_tolerance
            if rank_tolerance is None:  # well above the rounding of the data, and of their inner products
                rank_tolerance = 1e-6 if self.rows.dtype(block) == "float64" else 1e-4
            size = sum(self.rows.layout.sizes[i] for i in own)
            found.append(_secants(gg, gy, yy, size, self._tolerance, rank_tolerance, self._bulk))
        self.blocks = tuple(found)
        parts = [(gg, gy.T, gy, yy) for gg, gy, yy in grams]
        scores = self._scores(parts, ((i, y, g, y, g) for i, y, g in self._rows()))
        in_sample: Array = scores.sum(axis=0)
        return in_sample

    def residuals(self, steps: Sequence[ScaledStep]) -> Array:
        empty = [np.zeros((self.rows.count, len(steps))) for _ in self.rows.layout.sizes]
        parts = [(x.copy(), x.copy(), x.copy(), x.copy()) for x in empty]
        for i, y, g, rows_y, rows_g in self._beside(steps):
            of_i = parts[i]
            for k, (rows, x) in enumerate(((rows_g, g), (rows_y, g), (rows_g, y), (rows_y, y))):
                of_i[k][:] += rows @ x.T
        return self._scores(parts, self._beside(steps))

    def _rows(self) -> Iterator[tuple[int, Array, Array]]:
        if self.rows.count:
            for i in range(len(self.rows.layout.sizes)):
                for _, y, g in self.rows.chunks(i):
                    yield i, y, g

    def _beside(self, steps: Sequence[ScaledStep]) -> Iterator[tuple[int, Array, Array, Array, Array]]:
        """Some steps with the same elements of all rows."""
        for (i, rows_y, rows_g), *chunks in zip(self._rows(), *(step.chunks() for step in steps), strict=False):
            y, g = (np.stack([chunk[k] for chunk in chunks]) for k in (2, 3))
            yield i, y, g, rows_y, rows_g

    def _scores(self, parts: list[_Products], chunks: Iterator[tuple[int, Array, Array, Array, Array]]) -> Array:
        """As `Fitted.held_out`, shape (m, blocks, 5), of m steps; `parts` by array, each of shape (count, m)."""
        if not self.rows.count:
            return np.full((max(1, parts[0][0].shape[1]), len(self.blocks), 5), math.nan)
        images = [
            block.images(*(np.sum([parts[i][k] for i in members(self.rows.layout, b)], axis=0) for k in range(4)))
            for b, block in enumerate(self.blocks)
        ]
        m = parts[0][0].shape[1]
        found = np.zeros((m, len(self.blocks), 5))
        for i, y, g, rows_y, rows_g in chunks:
            for b, image in enumerate(images):
                if i not in members(self.rows.layout, b):
                    continue
                if image is None:
                    found[:, b, :3] = math.nan
                else:
                    c, of_g, of_y, p, reverse_g, reverse_y = image
                    found[:, b, 0] += np.sum((y - c * g - of_g @ rows_g - of_y @ rows_y) ** 2, axis=1)
                    found[:, b, 1] += np.sum((g - p * y - reverse_g @ rows_g - reverse_y @ rows_y) ** 2, axis=1)
                    found[:, b, 2] = math.nan  # there is one estimate only
                found[:, b, 3] += np.sum(y * y, axis=1)
                found[:, b, 4] += np.sum(g * g, axis=1)
        return found


def fit_multi_secant(
    steps: Steps,
    split: int,
    progress: bool,
    *,
    tolerance: float = 1e-3,
    rank_tolerance: float | None = None,
    bulk: Bulk = "least-squares",
) -> Fitted:
    """Fit the metric with ``M g_t = y_t`` for every fitted step, the block BFGS update of a multiple of the identity.

    Parameters
    ----------
    steps : Steps
        The run, with vectors.
    split : int
        How many steps are fitted.
    progress : bool
        Show a bar.
    tolerance : float
        Asymmetry up to which G^T Y counts as symmetric, and its symmetric part is used: rounding of float32 updates
        gives about 1e-6, noise of 1% in them about 1e-2. The metric must fit all steps to a relative residual of ten
        times this, and what steps whose updates cancel leave may be this much.
    rank_tolerance : float, optional
        Updates count as dependent below this singular value of the updates of unit length, relative to the largest:
        by default 1e-6, and 1e-4 for float32 data. Consecutive updates are often nearly parallel.
    bulk : {'least-squares', 'omega'}
        What M is where no update has been, see the notes.

    Returns
    -------
    Fitted
        With the conditions and what came out of them in the notes.

    Raises
    ------
    ValueError
        There are no vectors, or an option out of range.

    Notes
    -----
    Section 11(a) (derived): an SPD matrix with M G = Y exists if and only if G^T Y is symmetric positive definite
    (rank-deficient G: Y z = 0 wherever G z = 0, too). Then section 4, with base c I,
    ``M = c (I - G (G^T G)^-1 G^T) + Y (G^T Y)^-1 Y^T``; with an orthonormal basis of the updates in place of G.
    In what no update has touched, M is c by choice, not by evidence (derived): ``tr((G^T G)^-1 G^T Y)/rank``, which
    predicts y from further updates like these best, is the least-squares fit of c G to Y with the updates made
    orthonormal; 'omega' is ``tr((G^T Y)^-1 Y^T Y)/rank``, which minimises the Dennis-Wolkowicz measure (tr M/n) /
    det(M)^(1/n) as y.y/(y.g) does for one step (section 3). The fit of g from y is M^-1, least squares with a c of its
    own, ``rank/tr((Y^T Y)^-1 Y^T G)``. Each block has a metric of its own; that of ``(all)`` couples the arrays.

    Cost: O(n k^2) for k fitted steps, plus O(n k) for each held-out one. Memory: all fitted vectors, 2 n k numbers in
    their own type (n = 1e6, k = 200, float32: 1.6 GB), and as much again for each metric that is made.
    """
    if not 0.0 <= tolerance < 1.0:
        raise ValueError(f"expected 0 <= tolerance < 1, got {tolerance!r}")
    if rank_tolerance is not None and not 0.0 < rank_tolerance < 1.0:
        raise ValueError(f"expected 0 < rank_tolerance < 1, got {rank_tolerance!r}")
    if bulk not in ("least-squares", "omega"):
        raise ValueError(f"expected bulk 'least-squares' or 'omega', got {bulk!r}")
    model = _Model(steps.layout, split, tolerance, rank_tolerance, bulk)
    found = fit_and_score_together(steps, split, progress, "multi-secant", model, together=_TOGETHER, look=True)
    estimate = MultiSecantEstimate(model.rows, model.blocks)
    unit = math.ldexp(1.0, found.exponents[0] - found.exponents[1])
    return Fitted(
        estimate=estimate,
        in_sample=found.in_sample,
        held_out=found.held_out,
        numbers=found.numbers,
        fitted_steps=found.fitted_steps,
        dropped=found.dropped,
        facts=tuple(_facts(block, unit) for block in model.blocks),
    )


def _conditions(found: _Secants) -> list[str]:
    """The conditions of section 11(a) and whether they hold."""
    if found.count == 0:
        return ["no step is fitted"]
    if found.rank == 0:
        return ["no parameter moved in the fitted steps: the data say nothing about the metric"]
    said = []
    if found.asymmetry > found.tolerance:
        said.append(
            f"G^T Y is not symmetric (asymmetry {found.asymmetry:.3g}, tolerance {found.tolerance:g}): no constant "
            f"metric fits these {found.count} steps exactly"
        )
    if found.left_over > found.tolerance:
        said.append(
            f"combinations of steps whose updates cancel leave {found.left_over:.3g} of the gradients (tolerance "
            f"{found.tolerance:g}): no constant matrix fits them exactly"
        )
    if said:
        pass
    elif not found.values[0] > 0.0:
        negative = int(np.count_nonzero(found.values <= 0.0))
        said.append(
            f"G^T Y is symmetric (asymmetry {found.asymmetry:.3g}) but not positive definite: {negative} of "
            f"{found.rank} generalised eigenvalues of (G^T Y, G^T G) are not positive, the smallest is "
            f"{found.values[0] / np.abs(found.values).max():.3g} of the largest"
        )
    elif not found.consistent:
        said.append(
            f"G^T Y is nearly symmetric (asymmetry {found.asymmetry:.3g}), but the metric of its symmetric part leaves "
            f"{found.misfit:.3g} of the fitted gradients (limit {_AMPLIFIED * found.tolerance:g}): the updates are so "
            "dependent that their small differences decide"
        )
    else:
        said.append(
            f"G^T Y is symmetric (asymmetry {found.asymmetry:.3g}, tolerance {found.tolerance:g}) and positive "
            f"definite: one metric fits all {found.count} steps, up to {found.misfit:.3g} of the gradients"
        )
    if found.rank < found.count:
        said.append(f"the {found.count} updates span {found.rank} dimensions only")
    return said


def _facts(found: _Secants, unit: float) -> BlockFacts:
    n, k = found.size, found.rank
    notes = _conditions(found)
    status: FitStatus = "ok"
    if found.count == 0:
        status = "too_few_steps"
    elif k == 0:
        status = "not_identified"
    elif not found.consistent:
        status = "inconsistent"
    elif not found.exists:
        status = "not_positive_definite"
    elif k < n:
        status = "underdetermined"
        notes.append(
            f"the steps fix {n * k - k * (k - 1) // 2} of {n * (n + 1) // 2} numbers; on the {n - k} dimensions that "
            f"no update touched M is completed by c = {found.bulk * unit:.4g}"
        )
    exact = found.exists
    positive = found.values[found.values > 0.0] * unit
    return BlockFacts(
        parameters=n * k - k * (k - 1) // 2 + (1 if k < n else 0),
        status=status,
        dimension=max(1, k),
        determined=k if exact or found.consistent else 0,
        not_positive=int(np.count_nonzero(found.values <= 0.0)),
        smallest=float(positive.min()) if exact else math.nan,
        largest=float(positive.max()) if exact else math.nan,
        notes=tuple(notes),
    )
