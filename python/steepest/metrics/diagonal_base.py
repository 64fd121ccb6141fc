"""The metric nearest to a positive diagonal: section 4 of the theory, "Diagonal base" (derived)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest import _core
from steepest.alignment import Alignment, scaled
from steepest.arrays import ArrayOrMapping, LongVector, Segment, widened
from steepest.metrics.family import column_scale
from steepest.metrics.interface import FLOAT64
from steepest.metrics.relative import RelativeMetric

__all__ = ["DiagonalBaseMetric"]

_CHUNK = 1 << 16  # elements per step of the sums that are not compiled


class DiagonalBaseMetric(RelativeMetric):
    """BFGS update of a diagonal base B = diag(d)**base_power for the pair (y, g), times a factor; or its inverse.

    ``M = B - (B g)(B g)^T / (g.B g) + y y^T / (y.g)`` and
    ``M^-1 = B^-1 - (g v^T + v g^T)/(y.g) + [1 + y.v/(y.g)] g g^T/(y.g)``, ``v = B^-1 y``. B g and v are formed on the
    fly. The DFP update of B for (grad, update) is the inverse of the BFGS update of B^-1 for the swapped pair.
    `cond` and `spectrum` are RELATIVE to the base; powers, logarithm and absolute eigenvalues are dense, n <= 4096.
    """

    def __init__(
        self,
        d: LongVector,
        base_power: int,
        y: LongVector,
        g: LongVector,
        y_sign: float,
        g_sign: float,
        relative: Alignment,
        alignment: Alignment | None,
        dtype: str,
        like: ArrayOrMapping,
        *,
        inverse: bool = False,
    ) -> None:
        super().__init__(relative, y.layout, dtype, alignment, like, inverse=inverse)
        self._d, self._base_power = d, base_power
        self._y, self._g, self._y_sign, self._g_sign = y, g, y_sign, g_sign
        norms = relative.grad_norm, relative.update_norm
        if not (0.0 < relative.rho < math.inf and min(norms) > 0.0 and max(norms) < math.inf):
            raise ValueError(
                "inner products with the diagonal base are out of the range of float64: expected vectors and base of "
                f"moderate size, got |grad| = {norms[0]:.3g} and |update| = {norms[1]:.3g} there; rescale them"
            )

    @cached_property
    def _operator(self) -> _core.Operator:
        r = self._relative
        # The columns are scaled to norms near 1 in the geometry of the base: y.g and squares may be out of range.
        (my, ey), (mg, eg) = column_scale(r.grad_norm), column_scale(r.update_norm)
        # Which vector passes through the operator's own base, B or B^-1: g for M, y for its inverse.
        vectors, through = [self._y.segments, self._g.segments], [self._inverse, not self._inverse]
        if self._inverse:
            cross = -self._y_sign * self._g_sign / (my * mg * r.cosine)
            last = scaled(1.0 / (my * mg * r.cosine), eg - ey) + 1.0 / (mg * r.cosine) ** 2
            core = np.array([[0.0, cross], [cross, last]])
        else:
            core = np.array([[scaled(1.0 / (my * mg * r.cosine), ey - eg), 0.0], [0.0, -1.0 / mg**2]])
        divides = (self._base_power < 0) != self._inverse
        return _core.Operator(vectors, [ey, eg], through, core, 0, 1.0, self._d.segments, divides)

    def _apply(self, x: list[Segment], out: list[Segment], columns: bool) -> None:
        self._operator.apply(x, out, columns=columns)
        if self._factor != 1.0:
            _core.Operator([], [], [], np.zeros((0, 0)), 0, self._factor).apply(out, out, columns=columns)

    def logdet(self) -> float:
        r = self._relative
        base = self._base_power * math.fsum(float(np.log(d).sum()) for d, _, _ in self._chunks())
        # log det M = log det B + log[(y.g)/(g.B g)]
        own = base + math.log(r.rho) + math.log(r.cosine)
        return (-own if self._inverse else own) + self.size * math.log(self._factor)

    def trace(self) -> float:
        return math.fsum(float(x.sum()) for x in self._diagonal())

    def _chunks(self) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]:
        """Runs of (d, y, g) in float64, so that no temporary has the length of the parameters."""
        vectors = (self._d, self._y, self._g)
        for i, size in enumerate(self._layout.sizes):
            flat = [(v.segments[i], v.dtypes[i]) for v in vectors]
            if all(s.flags.c_contiguous for s, _ in flat):
                for begin in range(0, size, _CHUNK):
                    d, y, g = (widened(s.reshape(-1)[begin : begin + _CHUNK], t) for s, t in flat)
                    yield d, y, g
            else:
                d, y, g = (widened(s, t).ravel() for s, t in flat)
                yield d, y, g

    def _diagonal(self) -> list[NDArray[np.float64]]:
        r = self._relative
        diagonals = []
        for i, shape in enumerate(self._layout.shapes):
            d, y, g = (widened(v.segments[i], v.dtypes[i]) for v in (self._d, self._y, self._g))
            base = d if self._base_power > 0 else 1.0 / d
            y, g = self._y_sign * (y / r.grad_norm), self._g_sign * (g / r.update_norm)
            if self._inverse:
                last = 1.0 / (r.rho * r.cosine) + 1.0 / r.cosine**2
                diagonal = 1.0 / base - 2.0 / r.cosine * g * y / base + last * g * g
            else:
                diagonal = base - (base * g) ** 2 + r.rho / r.cosine * y * y
            diagonals.append(self._factor * diagonal.reshape(shape))
        return diagonals

    def _quadratic_form(self, x: list[Segment], z: list[Segment]) -> float:
        image = [np.empty(s.shape) for s in z]
        self._apply(z, image, False)
        gram = _core.gram([x, image], "compensated")
        return scaled(gram.pair[1], sum(gram.exponents))

    def _dense(self, dtype: np.dtype[Any] = FLOAT64) -> NDArray[Any]:
        dense = self._assembled(self._operator, dtype)
        dense *= dtype.type(self._factor)
        return dense
