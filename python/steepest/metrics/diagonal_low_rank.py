"""A positive diagonal plus a positive matrix of small rank, and its inverse."""

from __future__ import annotations

import copy
import math
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from steepest import _core
from steepest.alignment import scaled
from steepest.arrays import Layout, Segment
from steepest.metrics.dense import DenseMetric
from steepest.metrics.interface import FLOAT64, MAX_SIZE, Metric, Spectrum, merged_spectrum

__all__ = ["DiagonalLowRankMetric"]

Array = NDArray[np.float64]


class DiagonalLowRankMetric(Metric):
    """``M = factor (diag(d) + U U^T)``, or ``factor (diag(d) + U U^T)^-1``.

    Solves by the Woodbury identity. `cond` and `spectrum` are RELATIVE to the diagonal (to its inverse): 1 and
    1 + eig(U^T diag(d)^-1 U). Powers and the logarithm have no closed form and are dense, n <= 4096.

    Parameters
    ----------
    layout : Layout
        Names and shapes of the parameters.
    d : list of ndarray
        Float64, one array for each of the layout, positive and finite; kept, not copied.
    columns : list of ndarray
        U^T, of shape (k, size) for each array of the layout, float64; kept, not copied.

    Raises
    ------
    ValueError
        An element of d is not positive and finite.
    """

    def __init__(self, layout: Layout, d: list[Array], columns: list[Array]) -> None:
        shapes = [np.broadcast_to(0.0, shape) for shape in layout.shapes]  # what results look like; no memory
        super().__init__(
            layout, "float64", None, shapes[0] if layout.names is None else dict(zip(layout.names, shapes, strict=True))
        )
        wrong = _core.first_not_positive(list(d))
        if wrong >= 0:
            raise ValueError(f"expected a positive, finite diagonal, got another value at flat index {wrong}")
        self._d = [x.reshape(shape) for x, shape in zip(d, layout.shapes, strict=True)]
        self._columns = columns
        self._inverse, self._factor = False, 1.0

    @property
    def alpha(self) -> float:
        return math.nan

    @property
    def rank(self) -> int:
        """Number of columns of U."""
        return len(self._columns[0])

    @cached_property
    def _capacitance(self) -> Array:
        """I + U^T diag(d)^-1 U."""
        return np.eye(self.rank) + sum((u / d.ravel()) @ u.T for u, d in zip(self._columns, self._d, strict=True))

    @cached_property
    def _operator(self) -> _core.Operator:
        k = self.rank
        columns = [[u[a].reshape(d.shape) for u, d in zip(self._columns, self._d, strict=True)] for a in range(k)]
        core = -np.linalg.inv(self._capacitance) if self._inverse else np.eye(k)
        core = 0.5 * (core + core.T)
        return _core.Operator(columns, [0] * k, [self._inverse] * k, core, 0, 1.0, self._d, self._inverse)

    def _apply(self, x: list[Segment], out: list[Segment], columns: bool) -> None:
        self._operator.apply(x, out, columns=columns)
        if self._factor != 1.0:
            _core.Operator([], [], [], np.zeros((0, 0)), 0, self._factor).apply(out, out, columns=columns)

    def _derived(self, inverse: bool, factor: float) -> Self:
        other = copy.copy(self)  # shares the vectors, leaves out what is cached
        other._inverse, other._factor = inverse, factor
        return other

    def inv(self) -> Metric:
        return self._derived(not self._inverse, 1.0 / self._factor)

    def _scaled(self, factor: float) -> Metric:
        return self._derived(self._inverse, self._factor * factor)

    def _as_dense(self, what: str) -> DenseMetric:
        if self.size > MAX_SIZE:
            raise TypeError(
                f"{what} of a diagonal plus a matrix of small rank has no closed form: expected n <= {MAX_SIZE} for a "
                f"dense one, got n = {self.size}"
            )
        return DenseMetric(self._dense(), self._layout, self._dtype, None, self._like)

    def power(self, p: float) -> Metric:
        if p == 1.0:
            return self
        return self.inv() if p == -1.0 else self._as_dense("a power").power(p)

    def log(self) -> Metric:
        return self._as_dense("the logarithm").log()

    def spectrum(self) -> Spectrum:
        changed = [float(v) for v in np.linalg.eigvalsh(self._capacitance)[::-1][: self.size]]
        values = [*((v, 1) for v in changed), (1.0, self.size - len(changed))]
        return merged_spectrum(
            [(self._factor * (1.0 / v if self._inverse else v), m) for v, m in values], relative=True
        )

    def logdet(self) -> float:
        own = math.fsum(float(np.log(d).sum()) for d in self._d) + float(np.linalg.slogdet(self._capacitance)[1])
        return (-own if self._inverse else own) + self.size * math.log(self._factor)

    def trace(self) -> float:
        return math.fsum(float(x.sum()) for x in self._diagonal())

    def _diagonal(self) -> list[Array]:
        core = np.linalg.inv(self._capacitance) if self._inverse else None
        found = []
        for d, u in zip(self._d, self._columns, strict=True):
            if core is None:
                own = d + np.einsum("ai,ai->i", u, u).reshape(d.shape)
            else:
                own = 1.0 / d - np.einsum("ai,ai->i", core @ u, u).reshape(d.shape) / d**2
            found.append(self._factor * own)
        return found

    def _quadratic_form(self, x: list[Segment], z: list[Segment]) -> float:
        image = [np.empty(s.shape) for s in z]
        self._apply(z, image, False)
        gram = _core.gram([x, image], "compensated")
        return scaled(gram.pair[1], sum(gram.exponents))

    def _dense(self, dtype: np.dtype[Any] = FLOAT64) -> NDArray[Any]:
        dense = self._assembled(self._operator, dtype)
        dense *= dtype.type(self._factor)
        return dense
