"""The fitted matrices of the Kronecker families, as metrics and as they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import Layout
from steepest.metrics.kronecker import KroneckerMetric, matrix_shape

__all__ = ["ArrayFit", "Factor", "KroneckerEstimate", "squared"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Factor:
    """A fitted matrix on one side.

    Attributes
    ----------
    matrix : ndarray, shape (m, m)
        Symmetric A; positive semidefinite on the span up to rounding, 0 where it is free.
    span : ndarray, shape (m, k)
        Orthonormal basis Q of what the steps span: they determine A Q, nothing else.
    eigenvalues : ndarray, shape (k,)
        Of Q^T A Q, ascending; exactly 0 where no positive number fits.
    converged : bool
        Whether its solver did.
    """

    matrix: Array
    span: Array
    eigenvalues: Array
    converged: bool = True

    @property
    def size(self) -> int:
        """Rows m."""
        return len(self.matrix)

    @property
    def rank(self) -> int:
        """Dimension of what the steps span."""
        return int(self.span.shape[1])

    @property
    def zeros(self) -> int:
        """Directions that moved and that A maps to 0."""
        return int(np.count_nonzero(self.eigenvalues == 0.0))

    def scaled(self, factor: float) -> Factor:
        """The matrix times a number.

        Parameters
        ----------
        factor : float
            At least 0.

        Returns
        -------
        Factor
            Of the same span.
        """
        return Factor(factor * self.matrix, self.span, factor * self.eigenvalues, self.converged)

    def with_floor(self, floor: float) -> Array:
        """Positive definite, the same on the span if it is positive there.

        Parameters
        ----------
        floor : float
            Positive; stands for what is 0 on the span, and is the Schur complement outside of it.

        Returns
        -------
        ndarray, shape (m, m)
            Of which the smallest eigenvalue may be below the floor, where the span and the rest are coupled.
        """
        k = self.rank
        q = np.linalg.qr(np.concatenate([self.span, np.eye(self.size)], axis=1))[0] if k < self.size else self.span
        a = q.T @ self.matrix @ q
        values, vectors = np.linalg.eigh(a[:k, :k])
        values[: self.zeros] = floor
        inside = (vectors * values) @ vectors.T
        if k == self.size:
            return np.asarray(q @ inside @ q.T)
        coupling = a[k:, :k]
        outside = floor * np.eye(self.size - k)
        if k:
            outside = outside + coupling @ np.linalg.solve(inside, coupling.T)
        return np.asarray(q @ np.block([[inside, coupling.T], [coupling, outside]]) @ q.T)


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


@dataclass(frozen=True, eq=False)
class KroneckerEstimate:
    """A and B of each array, None for a side that the family leaves out; symmetric ones None where there are none."""

    layout: Layout
    fits: list[tuple[Factor | None, Factor | None]]
    symmetric: list[tuple[Array | None, Array | None] | None]
    exponent: int

    def metric(self, block: int, floor: float | None, symmetric: bool) -> KroneckerMetric:
        """As `Estimate.metric`.

        Parameters
        ----------
        block : int
            Place in the blocks.
        floor : float, optional
            For an eigenvalue of M that is 0 or open; of two factors, each takes the root.
        symmetric : bool
            The symmetric estimate.

        Returns
        -------
        KroneckerMetric
            Of the block.
        """
        places, layout = self._of(block)
        factors = []
        for i in places:
            if symmetric:
                factors.append(self._symmetric(i))
                continue
            sides = [None if f is None else self._unscaled(f, i) for f in self.fits[i]]
            own = floor if None in sides or floor is None else floor**0.5  # of two factors, each takes its share
            a, b = (None if f is None else f.matrix if own is None else f.with_floor(own) for f in sides)
            factors.append((a, b))
        return KroneckerMetric(layout, factors)

    def elements(self, block: int, symmetric: bool) -> Any:
        """As `Estimate.elements`.

        Parameters
        ----------
        block : int
            Place in the blocks.
        symmetric : bool
            The symmetric estimate.

        Returns
        -------
        ndarray, tuple or mapping
            The matrix of the side; (A, B) of both; by name where the block is all arrays.
        """
        places, layout = self._of(block)
        found: list[Any] = []
        for i in places:
            if symmetric:
                a, b = self._symmetric(i)
            else:
                a, b = (None if f is None else self._unscaled(f, i).matrix for f in self.fits[i])
            found.append(b if a is None else a if b is None else (a, b))
        return found[0] if layout.names is None else dict(zip(layout.names, found, strict=True))

    def _of(self, block: int) -> tuple[range, Layout]:
        if block > 0:
            return range(block - 1, block), Layout(None, (self.layout.shapes[block - 1],))
        return range(len(self.fits)), self.layout

    def _symmetric(self, i: int) -> tuple[Array | None, Array | None]:
        pair = self.symmetric[i]
        if pair is None:
            where = "" if self.layout.names is None else f" of {self.layout.names[i]!r}"
            raise ValueError(
                f"expected gradients and updates{where} of full rank on each side of the family, for the symmetric "
                "estimate; here they are not, and there is only the fit of y from g: symmetric=False"
            )
        a, b = (None if x is None else np.ldexp(x, e) for x, e in zip(pair, self._exponents(i), strict=True))
        return a, b

    def _unscaled(self, factor: Factor, i: int) -> Factor:
        exponent = self._exponents(i)[self.fits[i].index(factor)]
        return Factor(np.ldexp(factor.matrix, exponent), factor.span, np.ldexp(factor.eigenvalues, exponent))

    def _exponents(self, i: int) -> tuple[int, int]:
        a, b = self.fits[i]
        first = 0 if a is None else self.exponent if b is None else self.exponent // 2
        return first, self.exponent - first
