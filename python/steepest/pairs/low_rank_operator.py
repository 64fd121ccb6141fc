"""Symmetric operators that are a multiple of the identity outside a space of few dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import Layout, right_hand_side, to_user, widened

__all__ = ["DefiniteOperator", "LowRankOperator", "orthonormal", "small_metric"]

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRankOperator:
    """``bulk I + Q (S - bulk I) Q^T`` with orthonormal Q of few columns and a small symmetric S.

    Attributes
    ----------
    bulk : float
        Eigenvalue on the complement of the columns of Q.
    """

    bulk: float
    _basis: Array = field(repr=False)  # Q, shape (n, r)
    _core: Array = field(repr=False)  # S, shape (r, r)
    _layout: Layout = field(repr=False)

    def eigenvalues(self) -> Array:
        """All distinct eigenvalues, with those in span Q repeated as they are.

        Returns
        -------
        ndarray
            Ascending; `bulk` is among them if Q does not span everything.
        """
        n, r = self._basis.shape
        return np.sort(np.append(np.linalg.eigvalsh(self._core), [self.bulk] * (n > r)))

    def matvec(self, x: Any) -> Any:
        """Product with a vector.

        Parameters
        ----------
        x : array or mapping
            Of the structure of the update, or flat.

        Returns
        -------
        array or mapping
            In the form of `x`.
        """
        return self._mapped(x, self._core - self.bulk * np.eye(len(self._core)), self.bulk)

    __matmul__ = matvec

    def _mapped(self, x: Any, core: Array, bulk: float) -> Any:
        """Product of x with ``bulk I + Q core Q^T``."""
        given = right_hand_side(x, self._layout, "x")
        n = self._layout.size
        pieces = [widened(s, "bfloat16" if s.dtype == np.uint16 else str(s.dtype)) for s in given.segments]
        X = np.concatenate([p.reshape(size, -1) for p, size in zip(pieces, self._layout.sizes, strict=True)])
        found = bulk * X + self._basis @ (core @ (self._basis.T @ X))
        names = self._layout.names
        if not isinstance(x, Mapping) or names is None:
            return to_user([found.reshape(n) if not given.columns else found], x)
        cuts = np.split(found[:, 0], np.cumsum(self._layout.sizes)[:-1])
        by_name = dict(zip(names, cuts, strict=True))
        return to_user([by_name[name] for name in x], x)


@dataclass(frozen=True, kw_only=True, eq=False)
class DefiniteOperator(LowRankOperator):
    """A `LowRankOperator` that is positive definite.

    Attributes
    ----------
    alpha : float
        Bulk eigenvalue of M(alpha), eq (8).
    smallest_eigenvalue : float
        Positive.
    """

    alpha: float
    smallest_eigenvalue: float

    def solve(self, b: Any) -> Any:
        """Solution x of ``A x = b`` for this operator A, from a system of the size of S (Woodbury).

        Parameters
        ----------
        b : array or mapping
            Of the structure of the update, or flat.

        Returns
        -------
        array or mapping
            In the form of `b`.
        """
        # Without a complement any multiple of the identity will do outside.
        n, r = self._basis.shape
        bulk = self.bulk if n > r else self.smallest_eigenvalue
        return self._mapped(b, np.linalg.inv(self._core) - np.eye(r) / bulk, 1.0 / bulk)


def orthonormal(*vectors: Array) -> Array:
    """Orthonormal columns whose span holds some vectors.

    Parameters
    ----------
    *vectors : ndarray, shape (n,)
        Not all zero; the first column of the result is along the first of them.

    Returns
    -------
    ndarray, shape (n, r)
        With at most as many columns as vectors.
    """
    norms = [float(np.linalg.norm(v)) for v in vectors]
    # Householder: orthonormal whatever the angles between the vectors
    return np.asarray(
        np.linalg.qr(np.stack([v / s for v, s in zip(vectors, norms, strict=True) if s > 0.0], axis=1))[0]
    )


def small_metric(alpha: float, along: float, y: Array, g: Array) -> Array:
    """M(alpha) of eq (8) in an orthonormal basis.

    Parameters
    ----------
    alpha : float
        Bulk eigenvalue.
    along : float
        ``|y|^2/(y.g)``.
    y, g : ndarray, shape (r,)
        Coordinates of the unit vectors.

    Returns
    -------
    ndarray, shape (r, r)
        ``alpha I + along y y^T - alpha g g^T``.
    """
    return alpha * (np.eye(len(y)) - np.outer(g, g)) + along * np.outer(y, y)
