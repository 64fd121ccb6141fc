"""Slow, independent oracles for the tests, and vectors at a prescribed angle.

Inputs are converted to multiple precision exactly; 100 digits are carried so that at least 60 are left after
the cancellations of any angle down to 1e-15 and of condition numbers up to 1e40. Nothing here uses a closed form of
`steepest.spectral`: inner
products are summed exactly, spectra and functions come from an eigendecomposition of the matrix itself, whole
or restricted to an orthonormal basis of the span of the vectors (so the dimension may be large).

``mp`` is a private context: the precision of the global ``mpmath.mp`` is neither used nor changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import mpmath
import numpy as np

mp = mpmath.MPContext()
mp.dps = 100

# A vector whose part outside the span of the earlier ones is smaller than this (relative) belongs to that span.
# Vectors of doubles are either dependent to 100 digits or independent to some 33 (products of two roundings).
_DEPENDENT = mp.mpf(10) ** -60


def exact(vector: Any) -> list[Any]:
    """Elements as multiple-precision numbers, without rounding: arrays of any float type, or such numbers."""
    if isinstance(vector, np.ndarray):
        return [mp.mpf(float(x)) for x in vector.ravel()]
    return [mp.mpf(x) for x in vector]


def inner(x: Any, z: Any) -> Any:
    """Inner product, summed exactly and rounded once."""
    return mp.fdot(zip(exact(x), exact(z), strict=True))


class Member:
    """The member of the one-parameter family, eq (8), for given vectors, to at least 60 digits.

    ``M = y y^T/(y.g) + alpha (I - g g^T/(g.g))`` with y = -grad and g = update. alpha None: (y.y)/(y.g).
    """

    def __init__(self, grad: Any, update: Any, alpha: Any = None) -> None:
        self.y = [-x for x in exact(grad)]
        self.g = exact(update)
        self.n = len(self.g)
        self.yy, self.gg, self.yg = (inner(*p) for p in ((self.y, self.y), (self.g, self.g), (self.y, self.g)))
        if not self.yg > 0:
            raise ValueError(f"no metric: -grad . update = {mp.nstr(self.yg, 8)}, expected > 0")
        self.optimal_alpha = self.yy / self.yg
        self.alpha = self.optimal_alpha if alpha is None else mp.mpf(alpha)

    @cached_property
    def rho(self) -> Any:
        """|y| / |g|."""
        return mp.sqrt(self.yy / self.gg)

    @cached_property
    def cosine(self) -> Any:
        """Of the angle between -grad and update."""
        return self.yg / mp.sqrt(self.yy * self.gg)

    @cached_property
    def sine(self) -> Any:
        """Of the angle between -grad and update."""
        # The Gram determinant of exactly dependent vectors is 0 up to rounding of either sign.
        return mp.sqrt(max(self.yy * self.gg - self.yg**2, mp.zero) / (self.yy * self.gg))

    @cached_property
    def angle(self) -> Any:
        """Between -grad and update, in radians."""
        return mp.atan2(self.sine, self.cosine)

    @cached_property
    def plane_eigenvalues(self) -> tuple[Any, Any]:
        """Eigenvalues in span{y, g}: of T in M [y g] = [y g] T, where T is written out column by column."""
        t = mp.matrix([[self.yy / self.yg + self.alpha, 1], [-self.alpha * self.yg / self.gg, 0]])
        half = (t[0, 0] + t[1, 1]) / 2
        root = mp.sqrt(max(half**2 - (t[0, 0] * t[1, 1] - t[0, 1] * t[1, 0]), mp.zero))
        return half - root, half + root

    @property
    def cond(self) -> Any:
        """Condition number, for n >= 2."""
        minus, plus = self.plane_eigenvalues
        return plus / minus

    def eigenvalues(self) -> list[Any]:
        """All n eigenvalues, ascending."""
        if self.n == 1:
            return [self.yy / self.yg]
        minus, plus = self.plane_eigenvalues
        return [minus] + [self.alpha] * (self.n - 2) + [plus]

    @cached_property
    def basis(self) -> list[list[Any]]:
        """Orthonormal basis of span{g, y}: gh first, then the unit residual of y, if there is one."""
        return orthonormal_basis([self.g, self.y])

    def restricted(self, basis: Sequence[Sequence[Any]]) -> Any:
        """Q^T M Q for orthonormal vectors Q."""
        qy = [inner(q, self.y) for q in basis]
        qg = [inner(q, self.g) for q in basis]
        r = len(basis)
        return mp.matrix(
            [
                [qy[i] * qy[j] / self.yg + self.alpha * ((i == j) - qg[i] * qg[j] / self.gg) for j in range(r)]
                for i in range(r)
            ]
        )

    def dense(self) -> Any:
        """The n x n matrix."""
        return mp.matrix(
            [
                [
                    self.y[i] * self.y[j] / self.yg + self.alpha * ((i == j) - self.g[i] * self.g[j] / self.gg)
                    for j in range(self.n)
                ]
                for i in range(self.n)
            ]
        )

    def plane_function(self, f: Callable[[Any], Any]) -> Any:
        """f(M) restricted to span{g, y}, in the basis of `basis`."""
        return symmetric_function(f, self.restricted(self.basis))

    def apply(self, f: Callable[[Any], Any], x: Any) -> list[Any]:
        """f(M) x for a vector x; the cost is linear in n."""
        x = exact(x)
        block, bulk = self.plane_function(f), f(self.alpha)
        coordinates = [inner(q, x) for q in self.basis]
        r = range(len(self.basis))
        # f(M) x = f(alpha) x + Q (f(Q^T M Q) - f(alpha) I) Q^T x
        change = [mp.fsum(block[i, j] * coordinates[j] for j in r) - bulk * coordinates[i] for i in r]
        return [bulk * x[k] + mp.fsum(self.basis[i][k] * change[i] for i in r) for k in range(self.n)]

    def function(self, f: Callable[[Any], Any]) -> Any:
        """The n x n matrix f(M), from the eigendecomposition of the dense matrix."""
        return symmetric_function(f, self.dense())

    def logdet(self) -> Any:
        """Sum of the logarithms of the eigenvalues."""
        return mp.fsum(mp.log(x) for x in self.eigenvalues())

    def trace(self) -> Any:
        """Sum of the eigenvalues."""
        return mp.fsum(self.eigenvalues())


def at_angle(angle: Any, alpha: Any = None, n: int = 3) -> Member:
    """The member of unit vectors at an exact angle in dimension n: rho = 1, g the first axis, y in the plane of
    the first two. alpha None: optimal.
    """
    rest = [mp.zero] * (n - 2)
    return Member([-mp.cos(angle), -mp.sin(angle), *rest], [mp.one, mp.zero, *rest], alpha)


def symmetric_function(f: Callable[[Any], Any], matrix: Any) -> Any:
    """f of a symmetric multiple-precision matrix, by its eigendecomposition."""
    values, vectors = mp.eigsy(matrix)
    return vectors * mp.diag([f(x) for x in values]) * vectors.T


def orthonormal_basis(vectors: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Gram-Schmidt in the given order; vectors that depend on the earlier ones are left out."""
    basis: list[list[Any]] = []
    for vector in vectors:
        length = mp.sqrt(inner(vector, vector))
        rest = list(vector)
        for _ in range(2):
            for q in basis:
                t = inner(q, rest)
                rest = [a - t * b for a, b in zip(rest, q, strict=True)]
        norm = mp.sqrt(inner(rest, rest))
        if norm > _DEPENDENT * length:
            basis.append([a / norm for a in rest])
    return basis


def distance_parts(first: Member, second: Member, kind: str = "affine-invariant") -> tuple[Any, Any]:
    """What the span of the vectors and its complement ADD to a distance of two members: (plane, bulk).

    kind: "affine-invariant" and "bures" (contributions to the SQUARE of the distance), "kl" (to
    KL(N(0, M1) || N(0, M2))), "stein" (to log det((M1 + M2)/2) - (log det M1 + log det M2)/2).
    """
    basis = orthonormal_basis([first.y, first.g, second.y, second.g])
    rest = first.n - len(basis)
    c1, c2 = first.alpha, second.alpha
    return (
        matrix_distance(first.restricted(basis), second.restricted(basis), kind),
        rest * matrix_distance(mp.matrix([[c1]]), mp.matrix([[c2]]), kind),
    )


def distance(first: Member, second: Member, kind: str = "affine-invariant") -> Any:
    """The distance or divergence itself: the root of the sum for "affine-invariant" and "bures"."""
    total = mp.fsum(distance_parts(first, second, kind))
    return mp.sqrt(total) if kind in ("affine-invariant", "bures") else total


def matrix_distance(a: Any, b: Any, kind: str) -> Any:
    """Of two dense SPD matrices; the square for "affine-invariant" and "bures"."""
    n = a.rows
    if kind == "bures":
        root = symmetric_function(mp.sqrt, a)
        cross = symmetrized(root * b * root)
        return mp.fsum(a[i, i] + b[i, i] for i in range(n)) - 2 * mp.fsum(
            mp.sqrt(x) for x in mp.eigsy(cross, eigvals_only=True)
        )
    # Eigenvalues t of A^{-1} B, as those of L^{-1} B L^{-T}, A = L L^T.
    lower = mp.inverse(mp.cholesky(a))
    ratios = list(mp.eigsy(symmetrized(lower * b * lower.T), eigvals_only=True))
    if kind == "affine-invariant":
        return mp.fsum(mp.log(t) ** 2 for t in ratios)
    if kind == "kl":
        return mp.fsum(1 / t - 1 + mp.log(t) for t in ratios) / 2
    if kind == "stein":
        return mp.fsum(mp.log((1 + t) / 2) - mp.log(t) / 2 for t in ratios)
    raise ValueError(f"unknown kind {kind!r}: expected 'affine-invariant', 'kl', 'stein' or 'bures'")


def symmetrized(matrix: Any) -> Any:
    """(A + A^T) / 2."""
    return (matrix + matrix.T) / 2


def dense_metric(grad: np.ndarray, update: np.ndarray, alpha: float | None = None, base: Any = None) -> np.ndarray:
    """M as a NumPy array, for n <= 200: eq (8), or the BFGS update of a base (a diagonal (n,) or an (n, n)).

    Plain double arithmetic: its error is eps times the condition number.
    """
    y, g = -np.asarray(grad, np.float64).ravel(), np.asarray(update, np.float64).ravel()
    if g.size > 200:
        raise ValueError(f"expected at most 200 elements for a dense oracle, got {g.size}")
    yg = y @ g
    if base is None:
        base = np.full(g.size, y @ y / yg if alpha is None else alpha)
    base = np.asarray(base, np.float64)
    base = np.diag(base) if base.ndim == 1 else base
    image = base @ g
    return base - np.outer(image, image) / (g @ image) + np.outer(y, y) / yg


def dense_function(matrix: np.ndarray, f: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """f of a symmetric NumPy matrix, by its eigendecomposition."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * f(values)) @ vectors.T


def pair(
    n: int,
    psi: float,
    rho: float = 1.0,
    joint_scale: float = 1.0,
    *,
    rng: np.random.Generator | int | None = None,
    dtype: Any = np.float64,
    disjoint: bool | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Random (grad, update) of length n with the angle psi between -grad and update.

    |grad| / |update| = rho and |grad| |update| = joint_scale**2. The vectors are rounded to dtype, so ask `Member`
    for the angle that they really have.

    disjoint: whether the part of grad orthogonal to update lives on elements where update is zero, and grad is
    an exact multiple of update elsewhere. This meets any angle (0 exactly) to a few eps of the dtype relatively,
    and rho to the root of eps; dense vectors meet rho to eps and the angle to eps absolutely, and their inner
    product cancels. None: dense if that costs at most a thousandth of the angle and of its complement.
    """
    if not 0 <= psi < np.pi / 2:
        raise ValueError(f"expected an angle in [0, pi/2), got {psi}")
    if n < 1 or (n == 1 and psi > 0):
        raise ValueError(f"expected n >= 2 (n = 1 only for an angle of 0), got n = {n}, psi = {psi}")
    rng = np.random.default_rng(rng)
    bits = _significand_bits(dtype)
    if disjoint is None:
        disjoint = 2.0**-bits > 1e-3 * min(psi, np.pi / 2 - psi)
    norm_y, exponent_y = np.frexp(joint_scale * np.sqrt(rho))
    norm_g, exponent_g = np.frexp(joint_scale / np.sqrt(rho))

    # Everything at norms in [1/2, 1); the exponents come last and exactly.
    support = rng.permutation(n) < (n + 1) // 2 if disjoint and psi > 0 else np.ones(n, bool)
    g = rng.standard_normal(n) * support
    g *= norm_g / np.linalg.norm(g)
    residual = rng.standard_normal(n)
    if disjoint:
        # Few enough bits that a multiple of g is exact: y is then parallel to g on the support.
        g = _rounded(g, bits - bits // 2)
        factor = _rounded(norm_y * np.cos(psi) / np.linalg.norm(g), bits // 2)
        residual[support] = 0.0
    else:
        g = _rounded(g, bits)
        factor = norm_y * np.cos(psi) / np.linalg.norm(g)
        unit = g / np.linalg.norm(g)
        for _ in range(2 if psi > 0 else 0):
            residual -= float(inner(unit, residual)) * unit
    y = factor * g
    if psi > 0:
        residual *= np.linalg.norm(y) * np.tan(psi) / np.linalg.norm(residual)
        y += residual

    with np.errstate(over="ignore", under="ignore"):
        grad = np.ldexp(-y, exponent_y).astype(dtype)
        update = np.ldexp(g, exponent_g).astype(dtype)
    parts = (update, grad[support], grad[~support] if not support.all() else grad)
    if not (np.isfinite(grad).all() and np.isfinite(update).all() and all(part.any() for part in parts)):
        raise ValueError(f"psi = {psi}, rho = {rho}, joint_scale = {joint_scale} do not fit {np.dtype(dtype)}")
    return grad, update


def _significand_bits(dtype: Any) -> int:
    """Of a float type, the leading bit included."""
    # ml_dtypes adds bfloat16 to what NumPy knows.
    import ml_dtypes

    return int(ml_dtypes.finfo(dtype).nmant) + 1


def _rounded(x: Any, bits: int) -> Any:
    """Numbers or arrays to the nearest numbers with a significand of so many bits."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits)
