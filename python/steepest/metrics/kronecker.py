"""Metrics that are Kronecker products: one matrix for the rows and one for the columns of each weight matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import Layout, Segment
from steepest.metrics.dense import flat_segments, write_segments
from steepest.metrics.interface import (
    FLOAT64,
    MAX_SIZE,
    Metric,
    Spectrum,
    check_dense_size,
    largest_entry_positive,
)

__all__ = ["KroneckerMetric", "matrix_shape"]

Array = NDArray[np.float64]


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Shape (m, r) of an array taken as a matrix: its first axis, and all others together.

    Parameters
    ----------
    shape : tuple of int
        Of the array; one axis gives (m, 1), none gives (1, 1).

    Returns
    -------
    m, r : int
        Their product is the number of elements.
    """
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


class _Factor:
    """A symmetric matrix on one side; its eigenvalues are found when they are needed, and kept."""

    def __init__(self, matrix: Array, eigen: tuple[Array, Array] | None = None) -> None:
        self.matrix: Array = 0.5 * (matrix + matrix.T)
        self.matrix.flags.writeable = False
        if eigen is not None:
            self.eigen = eigen

    @cached_property
    def eigen(self) -> tuple[Array, Array]:
        values, vectors = np.linalg.eigh(self.matrix)
        return values, vectors

    def scaled(self, factor: float) -> _Factor:
        found = self.__dict__.get("eigen")  # only if it is there
        return _Factor(factor * self.matrix, None if found is None else (factor * found[0], found[1]))

    def mapped(self, f: Callable[[Array], Array]) -> _Factor:
        """The function of the matrix."""
        values, vectors = f(self.eigen[0]), self.eigen[1]
        order = np.argsort(values, kind="stable")
        return _Factor((vectors * values) @ vectors.T, (values[order], vectors[:, order]))


class _Block:
    """``W -> A W B`` on one (m, r) matrix, or ``W -> A W + W B`` for a logarithm; None is left out."""

    def __init__(self, shape: tuple[int, ...], a: _Factor | None, b: _Factor | None, added: bool) -> None:
        self.shape = shape
        self.m, self.r = matrix_shape(shape)
        self.a, self.b, self.added = a, b, added

    def product(self, w: Array) -> Array:
        """Of an (m, r) matrix, or of several, (m, r, k)."""
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and Inf pass on
            left = w if self.a is None else (self.a.matrix @ w.reshape(self.m, math.prod(w.shape[1:]))).reshape(w.shape)
            if self.b is None:
                return left
            x = w if self.added else left
            # Of several, a stack of (r, k)
            right: Array = x @ self.b.matrix if w.ndim == 2 else self.b.matrix @ x
            return left + right if self.added and self.a is not None else right

    def mapped(self, f: Callable[[Array], Array], added: bool) -> _Block:
        a, b = (None if side is None else side.mapped(f) for side in (self.a, self.b))
        return _Block(self.shape, a, b, added)

    def scaled(self, factor: float) -> _Block:
        left, right = self.a, self.b
        if left is not None:
            left = left.scaled(factor)
        if right is not None and (self.added or left is None):
            right = right.scaled(factor)
        return _Block(self.shape, left, right, self.added)

    def grid(self) -> tuple[Array, int]:
        """Eigenvalues, flat, and how often each occurs; with both factors entry i r + j belongs to a_i and b_j."""
        if self.a is None or self.b is None:
            side, other = (self.b, self.m) if self.a is None else (self.a, self.r)
            assert side is not None
            return side.eigen[0], other
        combine = np.add if self.added else np.multiply
        return combine.outer(self.a.eigen[0], self.b.eigen[0]).ravel(), 1

    def extremes(self) -> tuple[float, float]:
        """Smallest and largest eigenvalue, both factors positive definite."""
        if self.m * self.r == 0:
            return math.inf, 0.0
        ends = [side.eigen[0][[0, -1]] for side in (self.a, self.b) if side is not None]
        smallest, largest = np.prod(ends, axis=0)
        return float(smallest), float(largest)

    def eigenvector(self, place: int) -> Array:
        """Of the eigenvalue at a place of ``np.repeat(*grid())``; flat, of length m r."""
        if self.a is None:
            place = (place % self.m) * self.r + place // self.m  # grid() repeats each value of B m times
        i, j = divmod(place, self.r)
        left = np.eye(1, self.m, i)[0] if self.a is None else self.a.eigen[1][:, i]
        right = np.eye(1, self.r, j)[0] if self.b is None else self.b.eigen[1][:, j]
        return np.multiply.outer(left, right).ravel()

    def diagonal(self) -> Array:
        neutral = 0.0 if self.added else 1.0
        left = np.full(self.m, neutral) if self.a is None else np.diag(self.a.matrix)
        right = np.full(self.r, neutral) if self.b is None else np.diag(self.b.matrix)
        found = (np.add if self.added else np.multiply).outer(left, right)
        return np.asarray(found.reshape(self.shape), dtype=np.float64)

    def trace(self) -> float:
        neutral = 0.0 if self.added else 1.0
        left = self.m * neutral if self.a is None else float(np.trace(self.a.matrix))
        right = self.r * neutral if self.b is None else float(np.trace(self.b.matrix))
        return self.r * left + self.m * right if self.added else left * right

    def dense(self) -> Array:
        rows, columns = np.eye(self.m), np.eye(self.r)
        if not self.added:
            left = rows if self.a is None else self.a.matrix
            return np.asarray(np.kron(left, columns if self.b is None else self.b.matrix), dtype=np.float64)
        found = np.zeros((self.m * self.r, self.m * self.r))
        if self.a is not None:
            found += np.kron(self.a.matrix, columns)
        if self.b is not None:
            found += np.kron(rows, self.b.matrix)
        return found


class KroneckerMetric(Metric):
    """``M(W) = A W B`` for each array W, its first axis as rows and all its other axes as columns.

    Parameters
    ----------
    layout : Layout
        Names and shapes of the parameters.
    factors : sequence of (A, B)
        One for each array of the layout, seen as an m x r matrix: A (m, m), B (r, r), symmetric positive definite; one
        of the two may be None for the identity. An array with one axis has r = 1: B is 1 x 1.

    Raises
    ------
    ValueError
        Shapes that do not fit, both factors None, or a factor that is not symmetric positive definite.

    Notes
    -----
    On the elements in C order it is ``kron(A, B)`` for each array and block diagonal over the arrays. Scaling A up and
    B down alike changes nothing. A product costs 2 m r (m + r) operations, everything else the eigenvalues of the
    factors, which are computed once when they are first needed. Section 11(b) (derived): there, with the elements in
    column-major order, M = B kron A.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest.arrays import Layout
    >>> A, B = np.diag([1.0, 2.0]), np.diag([1.0, 10.0, 100.0])
    >>> M = KroneckerMetric(Layout(None, ((2, 3),)), [(A, B)])
    >>> M @ np.ones((2, 3))
    array([[  1.,  10., 100.],
           [  2.,  20., 200.]])
    >>> round(M.cond(), 6), round(M.logdet(), 6)  # log(8e6)
    (200.0, 15.894952)
    """

    def __init__(self, layout: Layout, factors: Sequence[tuple[Array | None, Array | None]]) -> None:
        if len(factors) != len(layout.shapes):
            raise ValueError(f"expected one pair (A, B) for each of {len(layout.shapes)} arrays, got {len(factors)}")
        blocks = []
        for shape, (a, b) in zip(layout.shapes, factors, strict=True):
            m, r = matrix_shape(shape)
            if a is None and b is None:
                raise ValueError("expected at least one matrix of (A, B) for each array, got (None, None)")
            blocks.append(_Block(shape, _checked(a, m, "A", shape), _checked(b, r, "B", shape), False))
        self._set_up(layout, blocks, True)

    def _set_up(self, layout: Layout, blocks: list[_Block], positive_definite: bool) -> None:
        shapes = [np.broadcast_to(0.0, shape) for shape in layout.shapes]  # what results look like; no memory
        like = shapes[0] if layout.names is None else dict(zip(layout.names, shapes, strict=True))
        super().__init__(layout, "float64", None, like)
        self.positive_definite = positive_definite
        self._blocks = blocks

    def _with(self, blocks: list[_Block], positive_definite: bool = True) -> KroneckerMetric:
        found = KroneckerMetric.__new__(KroneckerMetric)
        found._set_up(self._layout, blocks, positive_definite)
        return found

    @property
    def alpha(self) -> float:
        return math.nan

    @property
    def factors(self) -> Any:
        """The matrices (A, B), None for an identity; for a logarithm those of ``W -> A W + W B``, None for zero.

        Returns
        -------
        tuple, or mapping name -> tuple
            Of read-only float64 arrays.
        """
        found = [tuple(side if side is None else side.matrix for side in (b.a, b.b)) for b in self._blocks]
        return found[0] if self._layout.names is None else dict(zip(self._layout.names, found, strict=True))

    def _apply(self, x: list[Segment], out: list[Segment], columns: bool) -> None:
        for block, segment, target in zip(self._blocks, x, out, strict=True):
            w = flat_segments([segment], columns)
            product = block.product(w.reshape(block.m, block.r, *w.shape[1:]))
            write_segments(product.reshape(w.shape), [target], columns)

    def power(self, p: float) -> KroneckerMetric:
        self._require_definite("power")
        if not math.isfinite(p):
            raise ValueError(f"expected a finite power, got {p}")
        return self if p == 1.0 else self._with([block.mapped(lambda x: x**p, False) for block in self._blocks])

    def log(self) -> KroneckerMetric:
        """Matrix logarithm, the Kronecker sum ``W -> log(A) W + W log(B)``.

        Returns
        -------
        KroneckerMetric
            Symmetric, not positive definite.
        """
        self._require_definite("log")
        return self._with([block.mapped(np.log, True) for block in self._blocks], False)

    def _scaled(self, factor: float) -> KroneckerMetric:
        return self._with([block.scaled(factor) for block in self._blocks], self.positive_definite)

    def spectrum(self) -> Spectrum:
        found = [block.grid() for block in self._blocks]
        values, where = np.unique(np.concatenate([v for v, _ in found]), return_inverse=True)
        times = np.concatenate([np.full(len(v), count) for v, count in found])
        counts = np.bincount(where, weights=times).astype(np.int64)
        return Spectrum(tuple(values[counts > 0].tolist()), tuple(counts[counts > 0].tolist()))

    def cond(self) -> float:
        self._require_definite("cond")
        ends = [block.extremes() for block in self._blocks]
        return max(high for _, high in ends) / min(low for low, _ in ends)

    def eigh(self, k: int | None = None, max_size: int = MAX_SIZE) -> tuple[Array, Array]:
        """Eigenvalues with orthonormal eigenvectors, products of those of the factors; no n x n matrix is decomposed.

        Parameters
        ----------
        k : int, optional
            How many of the smallest, for any n; None for all n (n <= max_size).
        max_size : int
            Largest n accepted without `k`.

        Returns
        -------
        values : ndarray, shape (k,)
            Ascending.
        vectors : ndarray, shape (n, k)
            Columns; the entry of largest magnitude is positive.

        Raises
        ------
        ValueError
            No `k` and n > max_size, or a `k` out of range.
        """
        if k is None:
            check_dense_size(self.size, max_size, "eigh")
            k = self.size
        elif not 1 <= k <= self.size:
            raise ValueError(f"expected 1 <= k <= n = {self.size}, got k = {k}")
        values = np.concatenate([np.repeat(*block.grid()) for block in self._blocks])
        order = np.argsort(values, kind="stable")[:k]
        starts = np.cumsum([0, *self._layout.sizes])
        vectors = np.zeros((self.size, k))
        for column, place in enumerate(order):
            i = int(np.searchsorted(starts, place, side="right")) - 1
            vectors[starts[i] : starts[i + 1], column] = self._blocks[i].eigenvector(int(place - starts[i]))
        return values[order], largest_entry_positive(vectors)

    def logdet(self) -> float:
        self._require_definite("logdet")
        total = []
        for block in self._blocks:
            if block.a is not None:
                total.append(block.r * math.fsum(np.log(block.a.eigen[0])))
            if block.b is not None:
                total.append(block.m * math.fsum(np.log(block.b.eigen[0])))
        return math.fsum(total)

    def trace(self) -> float:
        return math.fsum(block.trace() for block in self._blocks)

    def _diagonal(self) -> list[Array]:
        return [block.diagonal() for block in self._blocks]

    def _quadratic_form(self, x: list[Segment], z: list[Segment]) -> float:
        total = []
        for block, a, b in zip(self._blocks, x, z, strict=True):
            product = block.product(flat_segments([b]).reshape(block.m, block.r))
            total.append(float(flat_segments([a]) @ product.ravel()))
        return math.fsum(total)

    def _dense(self, dtype: np.dtype[Any] = FLOAT64) -> NDArray[Any]:
        found = np.zeros(self.shape, dtype)
        start = 0
        for block in self._blocks:
            end = start + block.m * block.r
            found[start:end, start:end] = block.dense()
            start = end
        return found

    def _describe(self) -> list[str]:
        def one(block: _Block) -> str:
            sides = [(block.a, f"A {block.m} x {block.m}"), (block.b, f"B {block.r} x {block.r}")]
            return (" + " if block.added else " kron ").join("I" if f is None else text for f, text in sides)

        shown = [one(block) for block in self._blocks]
        kind = shown if len(shown) <= 3 else [*shown[:2], f"... {len(shown) - 2} more"]
        return kind + ([f"cond={self.cond():.6g}"] if self.positive_definite else [])


def _checked(matrix: Array | None, size: int, name: str, shape: tuple[int, ...]) -> _Factor | None:
    if matrix is None:
        return None
    given = np.asarray(matrix, dtype=np.float64)
    if given.shape != (size, size):
        raise ValueError(f"expected {name} of an array of shape {shape} to be {size} x {size}, got shape {given.shape}")
    factor = _Factor(given)
    if size == 0:
        return factor
    largest = float(np.abs(given).max())
    if not (math.isfinite(largest) and float(np.abs(given - given.T).max()) <= 1e-6 * largest):
        raise ValueError(
            f"expected {name} to be finite and symmetric, got another matrix; pass 0.5 * ({name} + {name}.T)"
        )
    try:  # leaves the eigenvalues, which cost ten times as much, for when they are needed
        np.linalg.cholesky(factor.matrix - 4.0 * size * np.finfo(float).eps * largest * np.eye(size))
    except np.linalg.LinAlgError:  # too close to call without them
        smallest, greatest = factor.eigen[0][[0, -1]].tolist()
        if not smallest > 0.0:
            raise ValueError(
                f"expected {name} to be positive definite, got eigenvalues from {smallest:.3g} to {greatest:.3g}"
            ) from None
    return factor
