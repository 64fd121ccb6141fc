"""The metric nearest to any symmetric positive definite operator B, through products and solves with it."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, aslinearoperator, cg

from steepest import _core
from steepest.alignment import Alignment, PairProducts, from_products, scaled
from steepest.arrays import ArrayOrMapping, Layout, LongVector, Segment
from steepest.metrics.dense import flat_segments, write_segments
from steepest.metrics.family import swapped_alignment
from steepest.metrics.interface import FLOAT64, Metric
from steepest.metrics.relative import RelativeMetric

__all__ = ["BaseOperator", "OperatorBaseMetric", "OperatorPair", "operator_pair"]

Vector = NDArray[np.float64]


class BaseOperator:
    """A reference metric B on flat float64 vectors: a `Metric` or anything SciPy takes for a LinearOperator.

    Parameters
    ----------
    base : Metric or LinearOperator
        Symmetric positive definite, n x n.
    size : int
        n.
    solve : callable, optional
        ``solve(b)`` = B^-1 b; by default ``base.solve``, else conjugate gradients to relative residual 1e-12.
    """

    def __init__(self, base: Any, size: int, solve: Callable[[Vector], Vector] | None = None) -> None:
        if not (hasattr(base, "matvec") or hasattr(base, "__matmul__")):
            raise TypeError(
                "expected base to be a positive diagonal (array or mapping), a Metric or a SciPy LinearOperator, got "
                f"{type(base).__name__}"
            )
        if getattr(base, "shape", None) != (size, size):
            raise ValueError(f"expected a base of shape ({size}, {size}), got {getattr(base, 'shape', None)}")
        self.given = base
        self._operator: LinearOperator = base.to_scipy() if isinstance(base, Metric) else aslinearoperator(base)
        self._solve = solve if solve is not None else getattr(base, "solve", None)
        self._inverted = False

    def inverted(self) -> BaseOperator:
        """The operator B^-1: product and solution exchanged.

        Returns
        -------
        BaseOperator
            Shares everything with this one.
        """
        other = copy.copy(self)
        other._inverted = not self._inverted
        return other

    def logdet(self) -> float | None:
        """Logarithm of the determinant where the given operator has such a method.

        Returns
        -------
        float or None
            None if it has none.
        """
        method = getattr(self.given, "logdet", None)
        if method is None:
            return None
        return -float(method()) if self._inverted else float(method())

    def trace(self) -> float | None:
        """Trace where the given operator has such a method.

        Returns
        -------
        float or None
            None if it has none.
        """
        method = getattr(self.given, "trace", None)
        return None if method is None or self._inverted else float(method())

    def product(self, x: Vector) -> Vector:
        """B x.

        Parameters
        ----------
        x : ndarray, shape (n,) or (n, m)
            Float64.

        Returns
        -------
        ndarray
            Of the shape of `x`.
        """
        return self._given_solution(x) if self._inverted else self._given_product(x)

    def solution(self, b: Vector) -> Vector:
        """B^-1 b.

        Parameters
        ----------
        b : ndarray, shape (n,) or (n, m)
            Float64.

        Returns
        -------
        ndarray
            Of the shape of `b`.

        Raises
        ------
        ValueError
            Conjugate gradients did not converge: the base is ill-conditioned or not positive definite.
        """
        return self._given_product(b) if self._inverted else self._given_solution(b)

    def _given_product(self, x: Vector) -> Vector:
        return np.asarray(self._operator @ x, dtype=np.float64)

    def _given_solution(self, b: Vector) -> Vector:
        if self._solve is not None:
            return np.asarray(self._solve(b), dtype=np.float64)
        if b.ndim == 2:
            return np.stack([self._given_solution(column) for column in b.T], axis=1)
        largest = float(np.abs(b).max())
        if not math.isfinite(largest):
            return np.full(b.shape, math.nan)
        exponent = math.frexp(largest)[1]  # squares must stay in range
        with np.errstate(all="ignore"):  # an indefinite base may divide by zero
            x, failed = cg(self._operator, np.ldexp(b, -exponent), rtol=1e-12, maxiter=10 * self._operator.shape[0])
        if failed or not np.isfinite(x).all():
            raise ValueError(
                "conjugate gradients on the base did not reach a relative residual of 1e-12: expected a symmetric "
                "positive definite base of moderate condition number; pass base_solve="
            )
        return np.ldexp(np.asarray(x, dtype=np.float64), exponent)


@dataclass(frozen=True)
class OperatorPair:
    """A pair (y, g) with its images under an operator base B, scaled by powers of two to moderate size.

    Attributes
    ----------
    base : BaseOperator
        B.
    y, g : ndarray, shape (n,)
        The vectors of the pair times 2**-exponents.
    image, preimage : ndarray, shape (n,)
        B g and B^-1 y of these; their own error is that of the operator and not covered by any bound.
    exponents : tuple of int
        Of y and g.
    relative : Alignment
        Of the pair relative to B.
    """

    base: BaseOperator
    y: Vector
    g: Vector
    image: Vector
    preimage: Vector
    exponents: tuple[int, int]
    relative: Alignment

    def swapped(self) -> OperatorPair:
        """The pair (g, y) over the base B^-1.

        Returns
        -------
        OperatorPair
            Shares all vectors.
        """
        return OperatorPair(
            self.base.inverted(),
            self.g,
            self.y,
            self.preimage,
            self.image,
            (self.exponents[1], self.exponents[0]),
            swapped_alignment(self.relative),
        )


def operator_pair(grad: LongVector, update: LongVector, plain: Alignment, base: BaseOperator) -> OperatorPair:
    """One product and one solve with the base, and the alignment relative to it.

    Parameters
    ----------
    grad, update : LongVector
        The pair, finite and not zero.
    plain : Alignment
        Of the pair without base.
    base : BaseOperator
        B.

    Returns
    -------
    OperatorPair
        Four vectors of length n.

    Raises
    ------
    ValueError
        The base is seen not to be symmetric positive definite.
    """
    y, g = -grad.flat(), update.flat()
    ey, eg = (int(np.frexp(np.abs(v).max())[1]) for v in (y, g))
    y, g = np.ldexp(y, -ey), np.ldexp(g, -eg)
    image, preimage = base.product(g), base.solution(y)
    yy, gg = float(y @ preimage), float(g @ image)
    if not (yy > 0.0 and gg > 0.0 and math.isfinite(yy) and math.isfinite(gg)):
        raise ValueError(
            "expected a symmetric positive definite base, got one with "
            f"x^T B^-1 x = {yy:.6g} for a multiple of grad and x^T B x = {gg:.6g} for a multiple of update"
        )
    norms = math.sqrt(yy) * math.sqrt(gg)
    euclidean = math.ldexp(plain.grad_norm, -ey) * math.ldexp(plain.update_norm, -eg)
    descent = plain.cosine * euclidean  # y.g
    if abs(float(preimage @ image) - descent) > 1e-6 * float(np.linalg.norm(preimage) * np.linalg.norm(image)):
        raise ValueError(
            "expected a symmetric base with an accurate solve, got one with (B^-1 grad).(B update) = "
            f"{-float(preimage @ image):.6g} where grad.update = {-descent:.6g} (scaled vectors)"
        )
    # sin^2 = r^T B r / (y^T B^-1 y) with the residual r = B^-1 y - t g, so that small angles keep their digits.
    t = descent / gg
    sine = math.sqrt(min(1.0, max(0.0, float((preimage - t * g) @ (y - t * image)) / yy)))
    products = PairProducts(
        yy=yy,
        yg=-descent,
        gg=gg,
        yy_bound=2.0**-48 * yy,
        yg_bound=plain.angle_bound * euclidean,
        gg_bound=2.0**-48 * gg,
        y_exponent=ey,
        g_exponent=eg,
        cosine=max(-1.0, min(1.0, -descent / norms)),
        sine=sine,
        sign_flip_variance=(plain.null_sign_flip * euclidean / norms) ** 2,
        finite=True,
    )
    relative = from_products(products, plain.size, plain.dtype, relative=True)
    # grad.update does not depend on the base, and neither does its certified sign.
    relative = dataclasses.replace(
        relative,
        status=plain.status,
        inner_product=plain.inner_product,
        inner_product_bound=plain.inner_product_bound,
    )
    return OperatorPair(base, y, g, image, preimage, (ey, eg), relative)


class OperatorBaseMetric(RelativeMetric):
    """BFGS update of an operator B for (y, g), or its inverse; keeps B g and B^-1 y, two more long vectors.

    `cond` and `spectrum` are RELATIVE to the base. Diagonal, powers and logarithm are dense, n <= 4096; so are logdet
    and trace where the base has no methods of these names.
    """

    def __init__(
        self,
        pair: OperatorPair,
        layout: Layout,
        alignment: Alignment | None,
        dtype: str,
        like: ArrayOrMapping,
        *,
        inverse: bool = False,
    ) -> None:
        super().__init__(pair.relative, layout, dtype, alignment, like, inverse=inverse)
        self._pair = pair

    @cached_property
    def _operator(self) -> _core.Operator:
        """The low-rank change of B x (or B^-1 x)."""
        p, r = self._pair, self._relative
        ey, eg = p.exponents
        # Norms of the scaled vectors in the geometry of the base, and y.g
        y_norm, g_norm = scaled(r.grad_norm, -ey), scaled(r.update_norm, -eg)
        descent = y_norm * g_norm * r.cosine
        if self._inverse:
            last = (scaled(1.0, eg - ey) + y_norm / (g_norm * r.cosine)) / descent
            columns, core = [p.g, p.preimage], [[last, -1.0 / descent], [-1.0 / descent, 0.0]]
        else:
            columns, core = [p.y, p.image], [[scaled(1.0, ey - eg) / descent, 0.0], [0.0, -1.0 / g_norm**2]]
        return _core.Operator([*columns], [0, 0], [False, False], np.array(core))

    def _apply(self, x: list[Segment], out: list[Segment], columns: bool) -> None:
        operand = flat_segments(x, columns)
        base = self._pair.base
        source = base.solution(operand) if self._inverse else base.product(operand)
        result = np.empty_like(operand)
        self._operator.apply(operand, result, np.ascontiguousarray(source), columns)
        write_segments(self._factor * result, out, columns)

    def logdet(self) -> float:
        base = self._pair.base.logdet()
        if base is None:
            return self._as_dense("the determinant").logdet()
        # log det M = log det B + log[(y.g)/(g.B g)]
        r = self._relative
        own = base + math.log(r.rho) + math.log(r.cosine)
        return (-own if self._inverse else own) + self.size * math.log(self._factor)

    def trace(self) -> float:
        p, r = self._pair, self._relative
        base = p.base.trace()
        if base is None or self._inverse:
            return self._as_dense("the trace").trace()
        # y.y/(y.g) - |B g|^2/(g.B g)
        y_norm, g_norm = (scaled(v, -e) for v, e in zip((r.grad_norm, r.update_norm), p.exponents, strict=True))
        change = scaled(float(p.y @ p.y) / (y_norm * g_norm * r.cosine), p.exponents[0] - p.exponents[1])
        return self._factor * (base + change - float(p.image @ p.image) / g_norm**2)

    def _diagonal(self) -> list[NDArray[np.float64]]:
        return self._as_dense("the diagonal")._diagonal()

    def _quadratic_form(self, x: list[Segment], z: list[Segment]) -> float:
        image = [np.empty(s.shape) for s in z]
        self._apply(z, image, False)
        gram = _core.gram([x, image], "compensated")
        return scaled(gram.pair[1], sum(gram.exponents))

    def _dense(self, dtype: np.dtype[Any] = FLOAT64) -> NDArray[Any]:
        out = np.empty(self.shape)
        identity = np.eye(self.size)
        base = self._pair.base
        source = base.solution(identity) if self._inverse else base.product(identity)
        self._operator.apply(identity, out, np.ascontiguousarray(source), True)
        symmetric = 0.5 * self._factor * (out + out.T)
        return symmetric.astype(dtype, copy=False)
