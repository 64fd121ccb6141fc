"""One symmetric positive semidefinite matrix for some parameters, fitted to all steps: M, P and the geometric mean."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steepest.identify.geometric_mean import geometric_mean_of_factors
from steepest.identify.procrustes import Procrustes, spd_procrustes
from steepest.identify.row_factor import RowFactor

__all__ = ["MatrixFit", "determined_numbers", "fit_matrix"]

Array = NDArray[np.float64]
_EPSILON = 1e-3  # where no matrix attains the infimum: a smaller one fits little better, and predicts much worse


@dataclass(frozen=True)
class MatrixFit:
    """Of one block.

    Attributes
    ----------
    of_y : Procrustes
        M, which maps g to y.
    p : ndarray, shape (m, m)
        P, which maps y to g.
    s : ndarray, shape (m, m)
        The symmetric estimate; NaN where g or y do not have full rank.
    in_sample : ndarray, shape (m, 5)
        As `Fitted.in_sample`, for each row.
    """

    of_y: Procrustes
    p: Array
    s: Array
    in_sample: Array

    def metric(self, floor: float | None, symmetric: bool, unit: float) -> tuple[Array, tuple[Array, Array]]:
        """The matrix, and its eigenvalues and eigenvectors.

        Parameters
        ----------
        floor : float, optional
            What stands for eigenvalues that are 0 or free.
        symmetric : bool
            Of s instead of M.
        unit : float
            Of the result.

        Returns
        -------
        matrix : ndarray, shape (m, m)
            In the units of the parameters.
        eigen : (ndarray, ndarray)
            Ascending.

        Raises
        ------
        ValueError
            The symmetric estimate does not exist.
        """
        if symmetric:
            if np.isnan(self.s).any():
                raise ValueError(
                    "expected gradients and updates of full rank for the symmetric estimate, got fewer directions: "
                    "fit more steps, or take symmetric=False"
                )
            matrix = self.s * unit
        else:
            matrix = self.of_y.A * unit
            if floor is not None:
                null = self.of_y.complement
                matrix = matrix + (floor - self.of_y.free * unit) * (null @ null.T)
        matrix = 0.5 * (matrix + matrix.T)
        values, vectors = np.linalg.eigh(matrix)
        if floor is not None:
            zero = values <= 16 * len(values) * np.finfo(float).eps * max(values[-1], 0.0)
            if zero.any():
                values = np.where(zero, floor, values)
                order = np.argsort(values, kind="stable")
                values, vectors = values[order], vectors[:, order]
                matrix = (vectors * values) @ vectors.T
                matrix = 0.5 * (matrix + matrix.T)
        return matrix, (values, vectors)


def fit_matrix(factor: RowFactor, precision: tuple[float, float] = (0.0, 0.0)) -> MatrixFit:
    """Fit M, P and S to all pairs of columns.

    Parameters
    ----------
    factor : RowFactor
        Of g (as G) and y (as Y).
    precision : (float, float)
        Relative, of the numbers in g and in y: directions below this share of the largest one are rounding, and count
        as not moved.

    Returns
    -------
    MatrixFit
        With the sums of squares that are left.

    Notes
    -----
    Section 11(a) (paper, reconstructed): SPD Procrustes for M and for P; S is the geometric mean of
    ``(sum g g^T)^-1`` and ``sum y y^T`` (derived), as the scalar ``sqrt(sum y^2 / sum g^2)``.
    """
    x, b, _ = factor.pair()
    x_reverse, b_reverse, _ = factor.swapped()
    smallest = [max(share, 8 * factor.m * float(np.finfo(np.float64).eps)) for share in precision]
    of_y = spd_procrustes(x, b, epsilon=_EPSILON, rank_tolerance=smallest[0])
    of_g = spd_procrustes(x_reverse, b_reverse, epsilon=_EPSILON, rank_tolerance=smallest[1])
    full = of_y.rank == of_g.rank == factor.m
    s = geometric_mean_of_factors(x, x_reverse) if full else np.full_like(x, np.nan)
    gg, yy = np.sum(x**2, axis=1), np.sum(x_reverse**2, axis=1)
    # What is left of each row of Y beside the rows of X, and of each row of G beside those of Y
    rest, rest_reverse = np.maximum(yy - np.sum(b**2, axis=1), 0.0), np.maximum(gg - np.sum(b_reverse**2, axis=1), 0.0)
    left = [np.sum((matrix @ x - b) ** 2, axis=1) + rest for matrix in (of_y.A, s)]
    left_reverse = np.sum((of_g.A @ x_reverse - b_reverse) ** 2, axis=1) + rest_reverse
    return MatrixFit(of_y, of_g.A, s, np.stack([left[0], left_reverse, left[1], yy, gg], axis=1))


def determined_numbers(m: int, rank: int) -> int:
    """How many of the m (m + 1)/2 numbers of a symmetric matrix its products with `rank` directions determine.

    Parameters
    ----------
    m, rank : int
        Size and number of independent directions.

    Returns
    -------
    int
        ``m rank - rank (rank - 1)/2``.
    """
    return m * rank - math.comb(rank, 2)
