"""The metric nearest to any symmetric positive definite operator B, through products and solves with it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, aslinearoperator, cg

from steepest import _core
from steepest.alignment import Alignment, from_inner_products, scaled
from steepest.arrays import ArrayOrMapping, LongVector, Segment
from steepest.metrics.dense import DenseMetric, flat_segments, write_segments
from steepest.metrics.family import swapped_alignment
from steepest.metrics.interface import MAX_SIZE, Metric, Spectrum

__all__ = ["BaseOperator", "OperatorBaseMetric", "relative_alignment"]

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
        x, failed = cg(self._operator, b, rtol=1e-12, maxiter=10 * self._operator.shape[0])
        if failed:
            raise ValueError(
                "conjugate gradients on the base did not reach a relative residual of 1e-12: expected a symmetric "
                "positive definite base of moderate condition number; pass base_solve="
            )
        return np.asarray(x, dtype=np.float64)


def relative_alignment(plain: Alignment, y: Vector, g: Vector, image: Vector, preimage: Vector) -> Alignment:
    """The alignment of (y, g) relative to B.

    Parameters
    ----------
    plain : Alignment
        Of the pair without base.
    y, g : ndarray, shape (n,)
        -grad and update.
    image, preimage : ndarray, shape (n,)
        B g and B^-1 y; their own error is that of the operator and not covered by the bounds.

    Returns
    -------
    Alignment
        With ``relative=True``.
    """
    if plain.status not in ("ok", "ascent", "undecided"):
        return plain
    yy, gg = float(y @ preimage), float(g @ image)
    if not (yy > 0.0 and gg > 0.0 and math.isfinite(yy) and math.isfinite(gg)):
        raise ValueError(
            "expected a symmetric positive definite base, got one with "
            f"grad^T B^-1 grad = {yy:.6g} and update^T B update = {gg:.6g}"
        )
    norms = math.sqrt(yy) * math.sqrt(gg)
    cosine = max(-1.0, min(1.0, plain.inner_product / norms))
    # sin^2 = r^T B r / (y^T B^-1 y) with the residual r = B^-1 y - t g, so that small angles keep their digits.
    t = -plain.inner_product / gg
    sine = math.sqrt(min(1.0, max(0.0, float((preimage - t * g) @ (y - t * image)) / yy)))
    return from_inner_products(
        size=plain.size,
        dtype=plain.dtype,
        finite=True,
        zero=(False, False),
        negative_inner=(-plain.inner_product, plain.inner_product_bound),
        angle=(cosine, sine),
        angle_relative_bound=2.0**-48,
        scaled_norms=(math.sqrt(yy), math.sqrt(gg)),
        norms=(math.sqrt(yy), math.sqrt(gg)),
        inner=(plain.inner_product, plain.inner_product_bound),
        rho=math.sqrt(yy) / math.sqrt(gg),
        sign_flip=plain.null_sign_flip * (plain.grad_norm * plain.update_norm / norms),
        relative=True,
    )


class OperatorBaseMetric(Metric):
    """BFGS update of an operator B for (y, g), or its inverse; keeps B g and B^-1 y, two more long vectors."""

    def __init__(
        self,
        base: BaseOperator,
        y: Vector,
        g: Vector,
        image: Vector,
        preimage: Vector,
        template: LongVector,
        alignment: Alignment | None,
        dtype: str,
        like: ArrayOrMapping,
        *,
        inverse: bool = False,
        factor: float = 1.0,
    ) -> None:
        super().__init__(template.layout, dtype, alignment, like)
        self._base, self._y, self._g, self._image, self._preimage = base, y, g, image, preimage
        self._template = template
        self._inverse = inverse
        self._factor = factor

    @cached_property
    def _operator(self) -> _core.Operator:
        """The low-rank change of B x (or B^-1 x)."""
        descent = float(self._y @ self._g)
        if self._inverse:
            ratio = (1.0 + float(self._y @ self._preimage) / descent) / descent
            columns, core = [self._g, self._preimage], [[ratio, -1.0 / descent], [-1.0 / descent, 0.0]]
        else:
            columns = [self._y, self._image]
            core = [[1.0 / descent, 0.0], [0.0, -1.0 / float(self._g @ self._image)]]
        return _core.Operator([*columns], [0, 0], [False, False], np.array(core))

    @property
    def alpha(self) -> float:
        return math.nan

    def _apply(self, x: list[Segment], out: list[Segment], columns: bool) -> None:
        operand = flat_segments(x, columns)
        source = self._base.solution(operand) if self._inverse else self._base.product(operand)
        result = np.empty_like(operand)
        self._operator.apply(operand, result, np.ascontiguousarray(source), columns)
        write_segments(self._factor * result, out, columns)

    def _derived(self, alignment: Alignment | None, inverse: bool, factor: float) -> OperatorBaseMetric:
        return OperatorBaseMetric(
            self._base,
            self._y,
            self._g,
            self._image,
            self._preimage,
            self._template,
            alignment,
            self._dtype,
            self._like,
            inverse=inverse,
            factor=factor,
        )

    def inv(self) -> Metric:
        a = None if self.alignment is None else swapped_alignment(self.alignment)
        return self._derived(a, not self._inverse, 1.0 / self._factor)

    def _scaled(self, factor: float) -> Metric:
        return self._derived(None, self._inverse, self._factor * factor)

    def _as_dense(self, what: str) -> DenseMetric:
        if self.size > MAX_SIZE:
            raise TypeError(
                f"{what} of a metric with an operator as base needs the dense matrix: expected n <= {MAX_SIZE}, "
                f"got n = {self.size}"
            )
        return DenseMetric(self._dense(), self._layout, self._dtype, self.alignment, self._like)

    def power(self, p: float) -> Metric:
        if p == 1.0:
            return self
        return self.inv() if p == -1.0 else self._as_dense("a power").power(p)

    def log(self) -> Metric:
        return self._as_dense("the logarithm").log()

    def spectrum(self) -> Spectrum:
        return self._as_dense("the spectrum").spectrum()

    def logdet(self) -> float:
        base = self._base.logdet()
        if base is None:
            return self._as_dense("the determinant").logdet()
        # log det M = log det B + log[(y.g)/(g.B g)]
        own = base + math.log(float(self._y @ self._g)) - math.log(float(self._g @ self._image))
        return (-own if self._inverse else own) + self.size * math.log(self._factor)

    def trace(self) -> float:
        base = self._base.trace()
        if base is None or self._inverse:
            return self._as_dense("the trace").trace()
        change = float(self._y @ self._y) / float(self._y @ self._g)
        change -= float(self._image @ self._image) / float(self._g @ self._image)
        return self._factor * (base + change)

    def _diagonal(self) -> list[NDArray[np.float64]]:
        return self._as_dense("the diagonal")._diagonal()

    def _quadratic_form(self, x: list[Segment], z: list[Segment]) -> float:
        image = [np.empty(s.shape) for s in z]
        self._apply(z, image, False)
        gram = _core.gram([x, image], "compensated")
        return scaled(gram.pair[1], sum(gram.exponents))

    def _dense(self) -> NDArray[np.float64]:
        out = np.empty(self.shape)
        identity = np.eye(self.size)
        source = self._base.solution(identity) if self._inverse else self._base.product(identity)
        self._operator.apply(identity, out, np.ascontiguousarray(source), True)
        return 0.5 * self._factor * (out + out.T)

    def _describe(self) -> list[str]:
        return ["relative to an operator"]
