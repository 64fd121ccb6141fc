"""A diagonal metric, or a multiple of the identity, that belongs to many steps rather than to one pair."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest import _core
from steepest.arrays import Layout, Segment
from steepest.metrics.dense import flat_segments
from steepest.metrics.interface import FLOAT64, Metric, Spectrum, merged_spectrum

__all__ = ["DiagonalMetric"]


class DiagonalMetric(Metric):
    """``M = diag(d)``, or ``factor * I`` without d; every function of it is taken element by element.

    Parameters
    ----------
    layout : Layout
        Names and shapes of the parameters.
    d : list of ndarray, optional
        Float64, one array for each of the layout, positive and finite; kept, not copied.
    factor : float
        Positive and finite; 1 beside `d`.
    positive_definite : bool
        False for a logarithm, whose elements may have any sign.

    Raises
    ------
    ValueError
        An element is not positive and finite.
    """

    def __init__(
        self,
        layout: Layout,
        d: list[NDArray[np.float64]] | None = None,
        factor: float = 1.0,
        *,
        positive_definite: bool = True,
    ) -> None:
        shapes = [np.broadcast_to(0.0, shape) for shape in layout.shapes]  # what results look like; no memory
        super().__init__(
            layout, "float64", None, shapes[0] if layout.names is None else dict(zip(layout.names, shapes, strict=True))
        )
        self.positive_definite = positive_definite
        if positive_definite:
            if not 0.0 < factor < math.inf:
                raise ValueError(f"expected a positive finite factor, got {factor}: a metric is positive definite")
            wrong = -1 if d is None else _core.first_not_positive(list(d))
            if wrong >= 0:
                raise ValueError(f"expected a positive, finite diagonal, got another value at flat index {wrong}")
        self._d = d if d is None else [x.reshape(shape) for x, shape in zip(d, layout.shapes, strict=True)]
        self._factor = factor

    @property
    def alpha(self) -> float:
        return self._factor if self._d is None else math.nan

    def _elements(self) -> list[NDArray[np.float64]]:
        return [np.full(shape, self._factor) for shape in self._layout.shapes] if self._d is None else self._d

    def _apply(self, x: list[Segment], out: list[Segment], columns: bool) -> None:
        _core.Operator([], [], [], np.zeros((0, 0)), 0, self._factor, self._d).apply(x, out, columns=columns)

    def power(self, p: float) -> DiagonalMetric:
        self._require_definite("power")
        if not math.isfinite(p):
            raise ValueError(f"expected a finite power, got {p}")
        return self._mapped(lambda x: x**p)

    def log(self) -> DiagonalMetric:
        self._require_definite("log")
        return self._mapped(np.log, definite=False)

    def _scaled(self, factor: float) -> DiagonalMetric:
        return self._mapped(lambda x: factor * x, definite=self.positive_definite)

    def _mapped(self, f: Callable[[Any], Any], definite: bool = True) -> DiagonalMetric:
        """Another long vector, of f of each element."""
        if self._d is None:
            return DiagonalMetric(self._layout, None, float(f(self._factor)), positive_definite=definite)
        return DiagonalMetric(self._layout, [f(x) for x in self._d], positive_definite=definite)

    def _extremes(self) -> tuple[float, float]:
        if self._d is None:
            return self._factor, self._factor
        ends = [f(x) for x in self._d for f in (np.min, np.max)]
        return float(min(ends)), float(max(ends))

    def spectrum(self) -> Spectrum:
        if self._d is None:
            return merged_spectrum([(self._factor, self.size)])
        values, counts = np.unique(np.concatenate([x.ravel() for x in self._elements()]), return_counts=True)
        return Spectrum(tuple(values.tolist()), tuple(counts.tolist()))

    def cond(self) -> float:
        self._require_definite("cond")
        smallest, largest = self._extremes()
        return largest / smallest

    def logdet(self) -> float:
        self._require_definite("logdet")
        if self._d is None:
            return self.size * math.log(self._factor)
        return math.fsum(float(np.log(x).sum()) for x in self._d)

    def trace(self) -> float:
        if self._d is None:
            return self._factor * self.size
        return math.fsum(float(x.sum()) for x in self._d)

    def _diagonal(self) -> list[NDArray[np.float64]]:
        return [x.copy() for x in self._elements()]

    def _quadratic_form(self, x: list[Segment], z: list[Segment]) -> float:
        total = 0.0
        for i, (a, b) in enumerate(zip(x, z, strict=True)):
            products = flat_segments([a]) * flat_segments([b])
            total += float(products.sum()) if self._d is None else float(products @ self._d[i].ravel())
        return self._factor * total

    def _dense(self, dtype: np.dtype[Any] = FLOAT64) -> NDArray[Any]:
        return np.diag(flat_segments(list(self._elements()))).astype(dtype, copy=False)

    def _describe(self) -> list[str]:
        kind = [f"{self._factor:.6g} I" if self._d is None else "diagonal"]
        return kind + ([f"cond={self.cond():.6g}"] if self.positive_definite and self._d is not None else [])
