"""The discrete gradient of Itoh and Abe: one element moves after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import EPSILON, long_vector, to_user
from steepest.pairs.descent_pair import DescentPair
from steepest.pairs.finite_step import FiniteStep, Flat, finite_number

__all__ = ["of_hessian", "of_losses"]

# Rows of a vectorised loss: as many numbers in one call as this, at most.
_BLOCK = 2**22


def of_losses(step: FiniteStep, loss_fn: Callable[[Any], Any], grad: Any, vectorized: bool) -> DescentPair:
    """Differences of the loss along the path that moves one element after another.

    Parameters
    ----------
    step : FiniteStep
        The step.
    loss_fn : callable
        ``loss_fn(params)``.
    grad : array or mapping or None
        Gradient at the start, for elements that do not move.
    vectorized : bool
        Whether `loss_fn` takes stacked points.

    Returns
    -------
    DescentPair
        With a discrete gradient of its own.

    Raises
    ------
    ValueError
        A loss is not finite, or of another shape.

    Notes
    -----
    n + 1 losses, and two more for each element that does not move without `grad`; O(n) memory, `vectorized` at most
    32 MiB of points (or one point) besides.
    """
    start, d = step.start.flat(), step.displacement.flat()
    end = step.end.flat()
    n = start.size
    losses = np.empty(n + 1)
    for at, points in _path(start, end, vectorized):
        losses[at : at + len(points)] = _losses(step, loss_fn, points, vectorized)
    moved = d != 0.0
    found = np.diff(losses)
    found[moved] /= d[moved]
    if not moved.all():
        if grad is not None:
            found[~moved] = step.matched(grad, "grad").flat()[~moved]
        else:
            found[~moved] = _partials(step, loss_fn, start, end, np.flatnonzero(~moved), vectorized)
    return step.own(step.cut(found), "itoh-abe")


def of_hessian(step: FiniteStep, grad: Any, hessian: Any) -> DescentPair:
    """The same for a quadratic loss, without evaluating it.

    Parameters
    ----------
    step : FiniteStep
        The step.
    grad : array or mapping
        Gradient at the start.
    hessian : array, mapping or sparse array
        The constant Hessian H: its diagonal, of the structure of the parameters or of shape (n,); or the symmetric
        matrix of shape (n, n) over the flattened parameters, dense or of scipy.sparse. Of a matrix the lower triangle
        alone is read.

    Returns
    -------
    DescentPair
        With a discrete gradient of its own.

    Raises
    ------
    ValueError
        `hessian` has another shape.

    Notes
    -----
    When element i moves, the gradient in it is ``grad_i + sum_{j<i} H_ij d_j`` before, and H_ii d_i more after; their
    mean is the difference quotient: ``DG = grad + (D/2 + T) d`` with D the diagonal and T the strictly lower triangle
    (derived). It rounds like a product with H, where differences of losses lose L/|d_i|. Cost: O(n) with a diagonal, as
    many products as a sparse matrix has elements, n^2/2 with a dense one; no copy of a dense matrix.
    """
    n = step.start.size
    d, g = step.displacement.flat(), step.matched(grad, "grad").flat()
    shape = None if isinstance(hessian, Mapping) else getattr(hessian, "shape", ())
    if shape != (n, n):
        return step.own(step.cut(g + 0.5 * _diagonal(step, hessian) * d), "itoh-abe")
    if hasattr(hessian, "tocsr"):
        from scipy.sparse import tril

        change = tril(hessian, -1, format="csr") @ d
    else:
        hessian, change = np.asarray(hessian), np.zeros(n)
        for i in range(1, n):
            change[i] = hessian[i, :i] @ d[:i]
    change += 0.5 * np.asarray(hessian.diagonal(), dtype=np.float64) * d
    return step.own(step.cut(g + change), "itoh-abe")


def _diagonal(step: FiniteStep, hessian: Any) -> Flat:
    layout = step.start.layout
    if getattr(hessian, "shape", None) == (layout.size,):
        return long_vector(hessian, "hessian").flat()
    try:
        return step.matched(hessian, "hessian").flat()
    except ValueError as error:
        n = layout.size
        raise ValueError(f"{error}; or a diagonal of shape ({n},), or a matrix of shape ({n}, {n})") from error


def _path(start: Flat, end: Flat, vectorized: bool) -> Iterator[tuple[int, Flat]]:
    """Blocks of the n + 1 points whose first i elements have moved."""
    n = start.size
    rows = max(1, _BLOCK // n) if vectorized else 1
    for at in range(0, n + 1, rows):
        block = np.arange(at, min(at + rows, n + 1))
        yield at, np.where(np.arange(n) < block[:, None], end, start)


def _partials(
    step: FiniteStep,
    loss_fn: Callable[[Any], Any],
    start: Flat,
    end: Flat,
    where: NDArray[np.intp],
    vectorized: bool,
) -> Flat:
    """Central differences at the points of the path where elements do not move."""
    found = np.empty(where.size)
    relative = EPSILON[step.start.coarsest] ** (1 / 3)
    for j, i in enumerate(where):
        point = np.where(np.arange(start.size) < i, end, start)
        h = relative * max(1.0, abs(float(start[i])))
        points = np.stack([point, point])
        points[0, i] += h
        points[1, i] -= h
        ahead, behind = _losses(step, loss_fn, points, vectorized)
        found[j] = (ahead - behind) / (2.0 * h)
    return found


def _losses(step: FiniteStep, loss_fn: Callable[[Any], Any], points: Flat, vectorized: bool) -> Flat:
    if not vectorized:
        return np.array(
            [finite_number(loss_fn(to_user(step.cut(p), step.template)), "result of loss_fn") for p in points]
        )
    stacked = _stacked(step, points)
    found = long_vector(loss_fn(stacked), "the result of loss_fn")
    if found.layout.names is not None or found.layout.shapes[0] != (len(points),):
        raise ValueError(f"expected loss_fn to return shape ({len(points)},) with vectorized, got {found.layout}")
    values = found.flat()
    if not np.isfinite(values).all():
        raise ValueError(f"expected finite losses of loss_fn, got {values[~np.isfinite(values)][0]}")
    return values


def _stacked(step: FiniteStep, points: Flat) -> Any:
    """Points of shape (m, n) as arrays with a new first axis, in float64 NumPy arrays."""
    cut, names = step.cut(points), step.start.layout.names
    return cut[0] if names is None else dict(zip(names, cut, strict=True))
