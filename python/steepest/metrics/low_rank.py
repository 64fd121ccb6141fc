"""Multiples of the identity plus a matrix of small rank: the update of a member of the family, or of another such."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest import _core
from steepest.alignment import Alignment, scaled
from steepest.arrays import ArrayOrMapping, LongVector, Segment, widened
from steepest.metrics.family import (
    FamilyMetric,
    column_scale,
    low_rank_quadratic_form,
    scaled_alignment,
    swapped_alignment,
)
from steepest.metrics.form import LowRankForm
from steepest.metrics.interface import FLOAT64, Metric, Spectrum, merged_spectrum

__all__ = ["LowRankForm", "LowRankMetric", "low_rank_form", "updated_low_rank"]

Matrix = NDArray[np.float64]


def low_rank_form(metric: Metric) -> LowRankForm | None:
    """The metric as a low-rank change of a multiple of the identity, or None if it is none.

    Parameters
    ----------
    metric : Metric
        Of any form.

    Returns
    -------
    LowRankForm or None
        The same matrix.
    """
    return metric.form if isinstance(metric, FamilyMetric | LowRankMetric) else None


class LowRankMetric(Metric):
    """A `LowRankForm` with the form of its inverse; other functions through a small double-double eigenproblem.

    Section 4 of the theory, "General k columns" (derived). Relative error of functions other than the two stored
    forms: about eps times the condition number.
    """

    def __init__(
        self,
        form: LowRankForm,
        inverse: LowRankForm | None,
        alignment: Alignment | None,
        dtype: str,
        like: ArrayOrMapping,
        *,
        positive_definite: bool = True,
    ) -> None:
        super().__init__(form.vectors[0].layout, dtype, alignment, like)
        self.form = form
        self._inverse = inverse
        self.positive_definite = positive_definite

    @cached_property
    def _operator(self) -> _core.Operator:
        return self.form.operator()

    @cached_property
    def _gram(self) -> tuple[Matrix, Matrix]:
        """Gram matrix of the scaled columns, high and low parts."""
        return form_gram(self.form)

    @cached_property
    def _plane(self) -> tuple[NDArray[np.float64], Matrix]:
        """Eigenvalues of W K W^T on span(W) and Z^T R K, without the power of two."""
        zero = np.zeros_like(self.form.core)
        return _core.low_rank_spectrum(self.form.core, zero, *self._gram)

    @property
    def alpha(self) -> float:
        return scaled(self.form.scalar, self.form.exponent)

    def _apply(self, x: list[Segment], out: list[Segment], columns: bool) -> None:
        self._operator.apply(x, out, columns=columns)

    def spectrum(self) -> Spectrum:
        values = self._plane[0]
        found = [(scaled(self.form.scalar + float(v), self.form.exponent), 1) for v in values]
        return merged_spectrum([*found, (self.alpha, self.size - len(found))])

    def inv(self) -> Metric:
        self._require_definite("inv")
        if self._inverse is None:
            return self._function(lambda x: 1.0 / x, lambda x: -1.0 / x**2, lambda x: 1.0 / x**3)
        a = None if self.alignment is None else swapped_alignment(self.alignment)
        return LowRankMetric(self._inverse, self.form, a, self._dtype, self._like)

    def power(self, p: float) -> Metric:
        self._require_definite("power")
        if not math.isfinite(p):
            raise ValueError(f"expected a finite power, got {p}")
        if p == 1.0:
            return self
        if p == -1.0:
            return self.inv()
        return self._function(
            lambda x: x**p, lambda x: p * x ** (p - 1.0), lambda x: 0.5 * p * (p - 1.0) * x ** (p - 2.0)
        )

    def log(self) -> Metric:
        self._require_definite("log")
        return self._function(math.log, lambda x: 1.0 / x, lambda x: -0.5 / x**2, positive_definite=False)

    def _function(
        self,
        f: Callable[[float], float],
        derivative: Callable[[float], float],
        half_second: Callable[[float], float],
        positive_definite: bool = True,
    ) -> LowRankMetric:
        """f(M): f(c) I + f'(c) K + (Z^T R K)^T diag(h) (Z^T R K), h(l) = [f(c+l) - f(c) - l f'(c)] / l^2."""
        unit = math.ldexp(1.0, self.form.exponent)
        c = self.form.scalar * unit
        values, rotated = self._plane
        h = np.empty_like(values)
        for i, value in enumerate(values * unit):
            if abs(value) < 1e-5 * c:
                h[i] = half_second(c + value / 3.0)  # exact to second order in value/c
            else:
                h[i] = (f(c + value) - f(c) - value * derivative(c)) / value**2
        core = derivative(c) * unit * self.form.core + unit**2 * (rotated.T * h) @ rotated
        form = LowRankForm(f(c), self.form.vectors, self.form.exponents, 0.5 * (core + core.T))
        return LowRankMetric(form, None, None, self._dtype, self._like, positive_definite=positive_definite)

    def _scaled(self, factor: float) -> LowRankMetric:
        def times(form: LowRankForm, by: float) -> LowRankForm:
            return LowRankForm(by * form.scalar, form.vectors, form.exponents, by * form.core, form.exponent)

        inverse = None if self._inverse is None else times(self._inverse, 1.0 / factor)
        return LowRankMetric(
            times(self.form, factor),
            inverse,
            scaled_alignment(self.alignment, factor),
            self._dtype,
            self._like,
            positive_definite=self.positive_definite,
        )

    def logdet(self) -> float:
        self._require_definite("logdet")
        spectrum = self.spectrum()
        return math.fsum(m * math.log(v) for v, m in zip(spectrum.values, spectrum.multiplicities, strict=True))

    def trace(self) -> float:
        spectrum = self.spectrum()
        return math.fsum(m * v for v, m in zip(spectrum.values, spectrum.multiplicities, strict=True))

    def _diagonal(self) -> list[NDArray[np.float64]]:
        diagonals = []
        for i, shape in enumerate(self._layout.shapes):
            columns = [
                np.ldexp(widened(v.segments[i], v.dtypes[i]), -e)
                for v, e in zip(self.form.vectors, self.form.exponents, strict=True)
            ]
            diagonal = np.full(shape, self.form.scalar)
            for a, wa in enumerate(columns):
                for b, wb in enumerate(columns):
                    diagonal += self.form.core[a, b] * wa * wb
            diagonals.append(np.ldexp(diagonal, self.form.exponent))
        return diagonals

    def _quadratic_form(self, x: list[Segment], z: list[Segment]) -> float:
        gram = _core.gram([*[v.segments for v in self.form.vectors], x, z], "compensated")
        shift = np.array(gram.exponents[:-2]) - np.array(self.form.exponents)
        core = self.form.core * np.exp2(shift[:, None] + shift[None, :])
        return low_rank_quadratic_form(gram, self.form.scalar, core, self.form.exponent)

    def _dense(self, dtype: np.dtype[Any] = FLOAT64) -> NDArray[Any]:
        return self._assembled(self._operator, dtype)


def form_gram(form: LowRankForm) -> tuple[Matrix, Matrix]:
    """Gram matrix of the scaled columns of a form, high and low parts.

    Parameters
    ----------
    form : LowRankForm
        Of k columns.

    Returns
    -------
    high, low : ndarray, shape (k, k)
        Their unevaluated sum is right to about 32 digits of the norms.

    Raises
    ------
    ValueError
        A vector holds NaN or Inf.
    """
    gram = _core.gram([v.segments for v in form.vectors], "compensated")
    if not gram.finite:
        raise ValueError("a vector of the metric holds NaN or Inf; it must not change while the metric is used")
    shift = np.array(gram.exponents) - np.array(form.exponents)
    factor = np.exp2((shift[:, None] + shift[None, :]).astype(float))
    return gram.hi * factor, gram.lo * factor


def updated_low_rank(
    base: Metric, grad: LongVector, update: LongVector, a: Alignment, kind: str, dtype: str, like: Any
) -> Metric:
    """BFGS or DFP update of a low-rank metric.

    With y = -grad, g = update: ``M = B - B g g^T B / (g.B g) + y y^T / (y.g)`` is the SPD matrix with ``M g = y`` that
    minimises KL( N(0,M) || N(0,B) ) (section 4; Fletcher 1991). The DFP update of B is the inverse of the BFGS update
    of B^-1 for the swapped pair (g, y).

    Parameters
    ----------
    base : Metric
        B, of the form of `low_rank_form`.
    grad, update : LongVector
        The pair.
    a : Alignment
        Of the pair, status ``ok``.
    kind : {'bfgs', 'dfp'}
        Which update.
    dtype : str
        The finer element type.
    like : array or mapping
        The gradient as the user handed it in.

    Returns
    -------
    Metric
        With the closed form of its inverse.
    """
    direct, inverse = low_rank_form(base), low_rank_form(base.inv())
    assert direct is not None
    assert inverse is not None
    first, second = (grad, a.grad_norm), (update, a.update_norm)
    signs = (-1.0, 1.0)
    if kind == "dfp":
        direct, inverse, first, second, signs = inverse, direct, second, first, (1.0, -1.0)
    k = len(direct.vectors)
    vectors = (*direct.vectors, first[0], second[0])
    exponents = (*direct.exponents, column_scale(first[1])[1], column_scale(second[1])[1])
    gram = np.add(*form_gram(LowRankForm(0.0, vectors, exponents, np.zeros((k + 2, k + 2)))))
    # y and g (or g and y) in coordinates on the scaled columns
    y, g = np.zeros(k + 2), np.zeros(k + 2)
    y[k], g[k + 1] = signs
    descent = y @ gram @ g
    unit = math.ldexp(1.0, exponents[k] - exponents[k + 1])  # of y y^T / (y.g), for the scaled columns

    def padded(form: LowRankForm) -> tuple[float, Matrix]:
        factor = math.ldexp(1.0, form.exponent)
        return factor * form.scalar, np.pad(factor * form.core, (0, 2))

    scalar, core = padded(direct)
    image = scalar * g + core @ (gram @ g)  # B g
    core = core - np.outer(image, image) / (g @ gram @ image) + unit * np.outer(y, y) / descent

    inverse_scalar, inverse_core = padded(inverse)
    image = inverse_scalar * y + inverse_core @ (gram @ y)  # B^-1 y
    cross = np.outer(g, image)
    inverse_core = (
        inverse_core
        - (cross + cross.T) / descent
        + (1.0 / unit + (y @ gram @ image) / descent) * np.outer(g, g) / descent
    )
    updated = LowRankForm(scalar, vectors, exponents, core)
    updated_inverse = LowRankForm(inverse_scalar, vectors, exponents, inverse_core)
    if kind == "dfp":
        updated, updated_inverse = updated_inverse, updated
    return LowRankMetric(updated, updated_inverse, a, dtype, like)
