"""Matrices of a rule (metric, Hessian) in the forms that users have: number, diagonal, dense, eigenpairs, operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import ArrayOrMapping, Layout, long_vector
from steepest.metrics.dense import DenseMetric
from steepest.metrics.diagonal import DiagonalMetric
from steepest.metrics.interface import Metric
from steepest.rules.leaves import flat, from_flat, plain

__all__ = ["Eigen", "dense_metric", "diagonal_metric", "eigen", "layout_of"]

Vector = NDArray[np.float64]


def layout_of(x: ArrayOrMapping) -> Layout:
    """Names and shapes.

    Parameters
    ----------
    x : array or mapping
        A long vector.

    Returns
    -------
    Layout
        As of `long_vector`.
    """
    return long_vector(plain(x), "grad").layout


def diagonal_metric(d: Vector, like: ArrayOrMapping) -> Metric:
    """``diag(d)`` over the parameters.

    Parameters
    ----------
    d : ndarray, shape (n,)
        Positive and finite.
    like : array or mapping
        The parameters or their gradient.

    Returns
    -------
    Metric
        Elementwise in all of its functions.
    """
    layout = layout_of(like)
    return DiagonalMetric(layout, np.split(d, np.cumsum(layout.sizes)[:-1]))


def dense_metric(matrix: NDArray[np.float64], like: ArrayOrMapping) -> Metric:
    """A dense n x n matrix over the parameters.

    Parameters
    ----------
    matrix : ndarray, shape (n, n)
        Symmetric positive definite.
    like : array or mapping
        The parameters or their gradient.

    Returns
    -------
    Metric
        By eigenvalues and eigenvectors, O(n^3).
    """
    return DenseMetric(matrix, layout_of(like), "float64", None, plain(like))


@dataclass(frozen=True)
class Eigen:
    """A symmetric matrix by its eigenvalues; vectors None is the diagonal case.

    Attributes
    ----------
    values : ndarray, shape (n,)
        In any order; of the diagonal case in the order of the parameters.
    vectors : ndarray, shape (n, n), optional
        Orthonormal columns.
    """

    values: Vector
    vectors: NDArray[np.float64] | None = None

    def apply(self, function: Vector, x: Vector) -> Vector:
        """The matrix with the eigenvalues `function`, times x.

        Parameters
        ----------
        function : ndarray, shape (n,)
            A function of `values`.
        x : ndarray, shape (n,)
            Vector.

        Returns
        -------
        ndarray, shape (n,)
            O(n), with vectors O(n^2).
        """
        if self.vectors is None:
            return function * x
        return np.asarray(self.vectors @ (function * (self.vectors.T @ x)))

    def metric(self, function: Vector, like: ArrayOrMapping) -> Metric:
        """The matrix with the eigenvalues `function` as a Metric.

        Parameters
        ----------
        function : ndarray, shape (n,)
            Positive.
        like : array or mapping
            The parameters or their gradient.

        Returns
        -------
        Metric
            Diagonal or dense.
        """
        if self.vectors is None:
            return diagonal_metric(function, like)
        return dense_metric((self.vectors * function) @ self.vectors.T, like)

    def as_user(self, function: Vector, x: ArrayOrMapping) -> Any:
        """`apply` on a user's long vector, in its library.

        Parameters
        ----------
        function : ndarray, shape (n,)
            A function of `values`.
        x : array or mapping
            Of n elements.

        Returns
        -------
        array or dict
            As `x`.
        """
        return from_flat(self.apply(function, flat(x)), x)


def eigen(matrix: Any, like: ArrayOrMapping, name: str, params: ArrayOrMapping | None = None) -> Eigen:
    """A symmetric matrix over the parameters, by its eigenvalues.

    Parameters
    ----------
    matrix : float, array, mapping, (values, vectors), Eigen or callable
        A multiple of the identity; a diagonal of the parameters' shapes; a dense matrix, shape (n, n); eigenvalues and
        orthonormal eigenvectors; or a function params -> one of these.
    like : array or mapping
        The parameters or their gradient.
    name : str
        What error messages call it.
    params : array or mapping, optional
        For a callable.

    Returns
    -------
    Eigen
        O(n^3) for a dense matrix.

    Raises
    ------
    ValueError
        Another shape, not symmetric, not finite, or params are missing for a callable.
    """
    matrix = called(matrix, params, name)
    if isinstance(matrix, Eigen):
        return matrix
    layout = layout_of(like)
    n = layout.size
    if isinstance(matrix, tuple):
        values, vectors = (np.asarray(part, dtype=np.float64) for part in matrix)
        if values.shape != (n,) or vectors.shape != (n, n):
            raise ValueError(
                f"expected eigenvalues ({n},) and eigenvectors ({n}, {n}) of {name}, got {values.shape} and "
                f"{vectors.shape}"
            )
        return Eigen(values, vectors)
    if isinstance(matrix, float | int):
        found = Eigen(np.full(n, float(matrix)))
    elif isinstance(matrix, Mapping) or tuple(np.shape(matrix)) == layout.shapes[0] or np.shape(matrix) == (n,):
        given = long_vector(plain(matrix), name)
        if isinstance(matrix, Mapping) and (given.layout.names, given.layout.shapes) != (layout.names, layout.shapes):
            raise ValueError(f"expected {name} to be {layout}, got {given.layout}")
        if given.size != n:
            raise ValueError(f"expected a diagonal of {n} elements for {name}, got {given.size}")
        found = Eigen(given.flat())
    elif np.shape(matrix) == (n, n):
        dense = np.asarray(matrix, dtype=np.float64)
        if not np.isfinite(dense).all() or np.abs(dense - dense.T).max() > 1e-10 * np.abs(dense).max():
            raise ValueError(f"expected {name} to be symmetric and finite: symmetrise it with (A + A.T)/2")
        found = Eigen(*np.linalg.eigh(0.5 * (dense + dense.T)))
    else:
        raise ValueError(
            f"expected {name} as a number, a diagonal of the parameters' shape ({layout}) or shape ({n}, {n}), got "
            f"shape {np.shape(matrix)}"
        )
    if not np.isfinite(found.values).all():
        raise ValueError(f"expected {name} to be finite, got NaN or Inf")
    return found


def called(matrix: Any, params: ArrayOrMapping | None, name: str) -> Any:
    """The matrix at these parameters, if it is a function of them.

    Parameters
    ----------
    matrix : object or callable
        As of `eigen`.
    params : array or mapping, optional
        Where.
    name : str
        What error messages call it.

    Returns
    -------
    object
        Not callable.

    Raises
    ------
    ValueError
        A callable, and no params.
    """
    if isinstance(matrix, Metric) or not isinstance(matrix, Callable):  # type: ignore[arg-type]
        return matrix
    if hasattr(matrix, "matvec"):  # a LinearOperator can be called, and means a product
        return matrix
    if params is None:
        raise ValueError(f"expected params, since {name} is a function of them, got none")
    return matrix(params)
