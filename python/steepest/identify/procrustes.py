"""The symmetric positive semidefinite matrix that best maps given columns to given columns: SPD Procrustes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steepest.identify.row_factor import triangle

__all__ = ["Procrustes", "spd_procrustes"]

Array = NDArray[np.float64]

_EPS = float(np.finfo(np.float64).eps)
_FORCING = 0.01  # relative residual of a Newton step, in the norm of its preconditioner
_MOST_PRODUCTS = 200  # conjugate gradient steps of one


@dataclass(frozen=True)
class Procrustes:
    """A solution of ``min |A X - B|_F`` over symmetric positive semidefinite A.

    Attributes
    ----------
    A : ndarray, shape (n, n)
        Symmetric, positive semidefinite up to rounding. With P the orthogonal projection onto the columns' span of X,
        the data determine P A P and (I - P) A P; the rest is free above the bound (I - P) A P (P A P)^+ P A (I - P),
        and is chosen as the bound plus `free` times I - P.
    rank : int
        Numerical rank of X; A is unique iff it is n.
    epsilon : float
        What was added to P A P, as a share of its largest eigenvalue, because no matrix attains the infimum: only where
        X has not full rank and P A P is singular. Otherwise 0.
    converged : bool
        Whether the duality gap certifies the residual, to `tolerance` relative.
    iterations : int
        Eigendecompositions used after the first; 0 where the closed form is the answer.
    residual : float
        ``|A X - B|_F^2``.
    eigenvalues : ndarray, shape (rank,)
        Of P A P on the columns' span of X, ascending; exactly 0 where the constraint is active.
    free : float
        See `A`: the geometric mean of the positive `eigenvalues`; 0 if there are none.
    complement : ndarray, shape (n, n - rank)
        Orthonormal basis of what is orthogonal to the columns of X: adding ``complement @ F @ complement.T`` to A with
        ``F >= -free`` gives another solution.
    """

    A: Array
    rank: int
    epsilon: float
    converged: bool
    iterations: int
    residual: float
    eigenvalues: Array
    free: float
    complement: Array


def spd_procrustes(
    X: ArrayLike,
    B: ArrayLike,
    *,
    tolerance: float = 1e-10,
    max_iterations: int = 10_000,
    epsilon: float = 1e-8,
) -> Procrustes:
    """Symmetric positive semidefinite A with the least ``|A X - B|_F``.

    Parameters
    ----------
    X, B : array_like, shape (n, k)
        Finite; any k, any rank.
    tolerance : float
        For the duality gap: stops when A is certified to `tolerance`, relative, in the norm ``|A X|_F``;
        `converged` if the residual is certified to `tolerance`, relative.
    max_iterations : int
        At most so many eigendecompositions.
    epsilon : float
        Added to the part of A that the data determine, as a share of its largest eigenvalue, where no matrix attains
        the infimum. The bound of the free part grows as 1/epsilon.

    Returns
    -------
    Procrustes
        A, and how far the data determine it.

    Raises
    ------
    ValueError
        X and B differ in shape, are not matrices, or are not finite; an option out of range.

    Notes
    -----
    Gillis and Sharma 2018 (paper), section 11(a) of the theory, with another iteration (derived). In the basis of the
    left singular vectors of X, with singular values s, ``|A X - B|^2 = sum h_ij (A_ij - C_ij)^2 + constant``, with
    ``h_ij = (s_i^2 + s_j^2)/2`` and C the least-squares solution over the symmetric matrices, in closed form. If C is
    not positive semidefinite, the weighted projection is computed for ``A' = S^1/2 A S^1/2``: a congruence keeps the
    cone, and the weights become ``(s_i/s_j + s_j/s_i)/2``, whose spread is the spread of s instead of its square.
    With ``A' = W_+`` and multiplier ``W_-``, both parts of one symmetric W, the optimality condition is
    ``F(W) = h o (W_+ - C') - W_- = 0``, and the duality gap is ``sum F_ij^2 / (2 h_ij)``. Semismooth Newton steps with
    conjugate gradients; where one does not lower the gap, Douglas-Rachford steps, which converge from anywhere.

    Cost: an SVD, and about 10 to 30 eigendecompositions of n x n with some 10 to 100 products n x n each. Memory: about
    15 matrices n x n.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest.identify.procrustes import spd_procrustes
    >>> X = np.random.default_rng(0).normal(size=(2, 9))
    >>> spd_procrustes(X, np.array([[2.0, 1.0], [1.0, 3.0]]) @ X).A.round(9)
    array([[2., 1.],
           [1., 3.]])
    """
    x, b = np.array(X, dtype=np.float64), np.array(B, dtype=np.float64)
    if x.ndim != 2 or x.shape != b.shape or x.shape[0] < 1:
        raise ValueError(f"expected X and B of one shape (n, k), n >= 1, got {x.shape} and {b.shape}")
    if not (np.isfinite(x).all() and np.isfinite(b).all()):
        raise ValueError("expected finite X and B, got NaN or infinite numbers: leave out the columns that have them")
    if not (0.0 < tolerance < 1.0 and 0.0 < epsilon < 1.0 and max_iterations >= 0):
        raise ValueError(
            "expected 0 < tolerance < 1, 0 < epsilon < 1 and max_iterations >= 0, "
            f"got {tolerance}, {epsilon} and {max_iterations}"
        )
    n, k = x.shape
    (x, ex), (b, eb) = _unit(x), _unit(b)
    outside = 0.0
    if k > 2 * n:
        r = triangle(np.concatenate([x, b]).T)
        x, b, outside = r[:n, :n].T, r[:n, n:].T, float(np.sum(r[n:, n:] ** 2))
    u, s, vt = np.linalg.svd(x, full_matrices=True)
    rank = int(np.count_nonzero(s > 8 * max(n, k) * _EPS * s[0])) if k and s[0] > 0.0 else 0
    if rank == 0:
        left = float(np.ldexp(float(np.sum(b**2)) + outside, 2 * eb))
        return Procrustes(np.zeros((n, n)), 0, 0.0, True, 0, left, np.zeros(0), 0.0, np.eye(n))
    s, v = s[:rank], vt[:rank].T
    z = u.T @ (b @ v)
    inside = b - (b @ v) @ v.T  # what no A reaches: the part of B outside of the rows of X
    floor = outside + float(np.sum(inside**2))
    a11, converged, iterations, zeros = _full_rank(z[:rank], s, floor, tolerance, max_iterations)
    eigen = np.linalg.eigh(a11)
    eigenvalues = np.maximum(eigen[0], 0.0)
    eigenvalues[:zeros] = 0.0
    positive = eigenvalues[eigenvalues > 0.0]
    free = math.exp(float(np.mean(np.log(positive)))) if positive.size else 0.0
    a, added = _completed(a11, z[rank:] / s, (eigenvalues, eigen[1]), free, epsilon) if rank < n else (a11, 0.0)
    a = u @ a @ u.T
    residual = float(np.sum((a @ x - b) ** 2)) + outside
    return Procrustes(
        A=np.ldexp(0.5 * (a + a.T), eb - ex),
        rank=rank,
        epsilon=added,
        converged=converged,
        iterations=iterations,
        residual=float(np.ldexp(residual, 2 * eb)),
        eigenvalues=np.ldexp(eigenvalues, eb - ex),
        free=float(np.ldexp(free, eb - ex)),
        complement=u[:, rank:],
    )


def _unit(x: Array) -> tuple[Array, int]:
    """X times a power of two that brings its largest element near 1, and the exponent taken out."""
    exponent = int(np.frexp(np.max(np.abs(x), initial=0.0))[1])
    return np.ldexp(x, -exponent), exponent


def _full_rank(z: Array, s: Array, floor: float, tolerance: float, limit: int) -> tuple[Array, bool, int, int]:
    """The A >= 0 with the least ``|A diag(s) - z|``; whether it is certified; iterations; eigenvalues that are 0."""
    c = (z * s + (z * s).T) / (s[:, None] ** 2 + s**2)
    root = np.sqrt(s)
    c_scaled = c * root * root[:, None]
    values = np.linalg.eigvalsh(c_scaled)
    if values[0] >= 0.0:
        return c, True, 0, int(np.count_nonzero(values <= len(s) * _EPS * values[-1]))
    weights = 0.5 * (s / s[:, None] + s[:, None] / s)
    point, iterations = _projection(c_scaled, weights, s, tolerance, limit)
    a = point.a / (root * root[:, None])
    # |A X - B|^2 is twice the objective of the projection, and a constant
    residual = float(np.sum((a * s - z) ** 2)) + floor
    size = float(np.sum(weights * c_scaled**2))
    converged = 2.0 * point.gap <= max(tolerance * residual, tolerance**2 * size)
    # A congruence keeps the number of zeros
    return (
        a,
        converged,
        iterations,
        int(np.count_nonzero(point.values <= len(s) * _EPS * max(float(point.values[-1]), 0.0))),
    )


class _Point:
    """A symmetric W, its positive part A and multiplier W_- = A - W, and the residual F of the optimality condition."""

    def __init__(self, w: Array, c: Array, weights: Array) -> None:
        self.w = 0.5 * (w + w.T)
        self.values, self.vectors = np.linalg.eigh(self.w)
        keep = self.values > 0.0
        q = self.vectors[:, keep]
        self.a = (q * self.values[keep]) @ q.T
        self.f = weights * (self.a - c) - (self.a - self.w)
        self.gap = 0.5 * float(np.sum(self.f**2 / weights))


def _projection(c: Array, weights: Array, s: Array, tolerance: float, limit: int) -> tuple[_Point, int]:
    """The A >= 0 with the least ``sum weights (A - c)^2``, with its duality gap, and the number of iterations."""
    target = 0.5 * tolerance**2 * float(np.sum(weights * c**2))
    point = _Point(c, c, weights)
    iterations, burst = 0, 8
    rho = math.sqrt(float(weights.max()))  # Douglas-Rachford: the geometric mean of the weights' range, from 1 up
    while point.gap > target and iterations < limit:
        step = _newton_step(point, s)
        for shrink in (1.0, 0.5, 0.25):
            trial = _Point(point.w + shrink * step, c, weights)
            iterations += 1
            if trial.gap < (1.0 - 0.5 * shrink) * point.gap:
                break
        else:
            multiplier = point.a - point.w
            trial = point
            w = point.a - multiplier / rho
            for _ in range(min(burst, limit - iterations)):
                values, q = np.linalg.eigh(w)
                q = q[:, values > 0.0]
                a = (q * values[values > 0.0]) @ q.T
                w = w + (weights * c + rho * (2.0 * a - w)) / (weights + rho) - a
                w = 0.5 * (w + w.T)
                iterations += 1
            values, q = np.linalg.eigh(w)
            a = (q * np.maximum(values, 0.0)) @ q.T
            trial = _Point(a - rho * (a - w), c, weights)
            iterations += 2
            burst = min(2 * burst, 64)
        point = trial
    return point, iterations


def _newton_step(point: _Point, s: Array) -> Array:
    """Semismooth Newton step of F at W, in its eigenvectors."""
    values, q = point.values, point.vectors
    s1, s2 = q.T @ (s[:, None] * q), q.T @ (q / s[:, None])
    f = q.T @ point.f @ q

    def weigh(x: Array) -> Array:
        t: Array = s1 @ x @ s2
        return 0.5 * (t + t.T)

    positive = values > 0.0
    up = np.where(positive, values, 1.0)
    down = np.where(positive, 0.0, -values)
    # derivative of the positive part: omega = 1 for two positive eigenvalues, l_i/(l_i - l_j) for one, 0 for none
    odds = np.where(positive[:, None], down / up[:, None], (down / up[:, None]).T)  # 1/omega - 1
    free = positive | positive[:, None]
    d1, d2 = np.diag(s1), np.diag(s2)
    mask = free.astype(np.float64)
    inverse = mask / (0.5 * (np.outer(d1, d2) + np.outer(d2, d1)) + odds)
    u, r = np.zeros_like(f), -mask * f
    z = r * inverse
    p, rz = z.copy(), float(np.vdot(r, z))
    stop = _FORCING**2 * rz
    for _ in range(_MOST_PRODUCTS):
        if rz <= stop or rz == 0.0:
            break
        ap = weigh(p)
        ap += odds * p
        ap *= mask
        alpha = rz / float(np.vdot(p, ap))
        u += alpha * p
        r -= alpha * ap
        z = r * inverse
        rz, old = float(np.vdot(r, z)), rz
        p *= rz / old
        p += z
    v = np.where(free, u * (1.0 + odds), -f - weigh(u))
    step: Array = q @ v @ q.T
    return step


def _completed(a11: Array, a21: Array, eigen: tuple[Array, Array], free: float, epsilon: float) -> tuple[Array, float]:
    """``[[A11, A21^T], [A21, bound + free I]]``, and the share of its largest eigenvalue that was added to A11."""
    values, q = eigen
    largest = float(values[-1]) or float(np.max(np.abs(a21)))
    null = values == 0.0
    rotated = a21 @ q
    added = 0.0
    if float(np.sum(rotated[:, null] ** 2)) > _EPS * float(np.sum(rotated**2)):
        added = epsilon
        a11 = a11 + epsilon * largest * np.eye(len(values))
        values, null = values + epsilon * largest, np.zeros_like(null)
    kept = rotated[:, ~null]
    a22 = (kept / values[~null]) @ kept.T + free * np.eye(len(a21))
    return np.block([[a11, a21.T], [a21, a22]]), added
