"""What metrics over a base other than a multiple of the identity have in common."""

from __future__ import annotations

import copy
import math
from typing import Self

from steepest.alignment import Alignment
from steepest.arrays import ArrayOrMapping, Layout
from steepest.metrics.dense import DenseMetric
from steepest.metrics.family import scaled_alignment, swapped_alignment
from steepest.metrics.interface import MAX_SIZE, Metric, Spectrum, relative_spectrum

__all__ = ["RelativeMetric"]


class RelativeMetric(Metric):
    """A multiple of the BFGS update of a base B, or of its inverse.

    `cond` and `spectrum` are RELATIVE to the base: closed forms of section 3 in the whitened pair with alpha = 1.
    Powers and the logarithm have no closed form and are dense, n <= 4096.
    """

    def __init__(
        self,
        relative: Alignment,
        layout: Layout,
        dtype: str,
        alignment: Alignment | None,
        like: ArrayOrMapping,
        *,
        inverse: bool = False,
    ) -> None:
        super().__init__(layout, dtype, alignment, like)
        # Of the pair relative to the base: y^T B^-1 y = relative.grad_norm^2, g^T B g = relative.update_norm^2.
        self._relative = relative
        self._inverse = inverse
        self._factor = 1.0

    @property
    def alpha(self) -> float:
        return math.nan

    def _derived(self, alignment: Alignment | None, inverse: bool, factor: float) -> Self:
        other = copy.copy(self)  # shares the vectors, leaves out what is cached
        other.alignment, other._inverse, other._factor = alignment, inverse, factor
        return other

    def inv(self) -> Metric:
        a = None if self.alignment is None else swapped_alignment(self.alignment)
        return self._derived(a, not self._inverse, 1.0 / self._factor)

    def _scaled(self, factor: float) -> Metric:
        return self._derived(scaled_alignment(self.alignment, factor), self._inverse, self._factor * factor)

    def _as_dense(self, what: str) -> DenseMetric:
        if self.size > MAX_SIZE:
            raise TypeError(
                f"{what} of a metric with a diagonal or operator base has no closed form: expected n <= {MAX_SIZE} for "
                f"a dense one, got n = {self.size}; for a diagonal d use base=None on grad/sqrt(d), update*sqrt(d)"
            )
        return DenseMetric(self._dense(), self._layout, self._dtype, self.alignment, self._like)

    def power(self, p: float) -> Metric:
        if p == 1.0:
            return self
        return self.inv() if p == -1.0 else self._as_dense("a power").power(p)

    def log(self) -> Metric:
        return self._as_dense("the logarithm").log()

    def spectrum(self) -> Spectrum:
        return relative_spectrum(self._relative, self._inverse, self._factor)
