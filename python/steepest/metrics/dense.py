"""Metrics kept as an n x n matrix: eq (6) with explicit complement, and functions without a low-rank form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest import _core
from steepest.alignment import Alignment
from steepest.arrays import ArrayOrMapping, Layout, Segment, widened
from steepest.metrics.family import scaled_alignment, swapped_alignment
from steepest.metrics.interface import Metric, Spectrum, merged_spectrum

__all__ = ["DenseMetric", "flat_segments", "write_segments"]

Matrix = NDArray[np.float64]


class DenseMetric(Metric):
    """A symmetric matrix, by its eigenvalues and eigenvectors."""

    def __init__(
        self,
        matrix: Matrix,
        layout: Layout,
        dtype: str,
        alignment: Alignment | None,
        like: ArrayOrMapping,
        *,
        positive_definite: bool = True,
        eigen: tuple[Matrix, Matrix] | None = None,
    ) -> None:
        super().__init__(layout, dtype, alignment, like)
        self._matrix = 0.5 * (matrix + matrix.T)
        self._eigen = np.linalg.eigh(self._matrix) if eigen is None else eigen
        self.positive_definite = positive_definite
        smallest, largest = float(self._eigen[0][0]), float(self._eigen[0][-1])
        if positive_definite and not smallest > 0.0:
            raise ValueError(
                f"expected a positive definite matrix, got eigenvalues from {smallest:.3g} to {largest:.3g}"
            )

    @property
    def alpha(self) -> float:
        return math.nan

    def _apply(self, x: list[Segment], out: list[Segment], columns: bool) -> None:
        write_segments(self._matrix @ flat_segments(x, columns), out, columns)

    def _with(self, values: NDArray[np.float64], alignment: Alignment | None, definite: bool = True) -> DenseMetric:
        vectors = self._eigen[1]
        order = np.argsort(values, kind="stable")
        return DenseMetric(
            (vectors * values) @ vectors.T,
            self._layout,
            self._dtype,
            alignment,
            self._like,
            positive_definite=definite,
            eigen=(values[order], vectors[:, order]),
        )

    def power(self, p: float) -> DenseMetric:
        self._require_definite("power")
        if not math.isfinite(p):
            raise ValueError(f"expected a finite power, got {p}")
        if p == 1.0:
            return self
        swap = p == -1.0 and self.alignment is not None
        return self._with(self._eigen[0] ** p, swapped_alignment(self.alignment) if swap and self.alignment else None)

    def log(self) -> DenseMetric:
        self._require_definite("log")
        return self._with(np.log(self._eigen[0]), None, definite=False)

    def _scaled(self, factor: float) -> DenseMetric:
        a = scaled_alignment(self.alignment, factor)
        return self._with(factor * self._eigen[0], a, self.positive_definite)

    def spectrum(self) -> Spectrum:
        return merged_spectrum([(float(value), 1) for value in self._eigen[0]])

    def logdet(self) -> float:
        self._require_definite("logdet")
        return math.fsum(np.log(self._eigen[0]))

    def trace(self) -> float:
        return float(np.trace(self._matrix))

    def _diagonal(self) -> list[NDArray[np.float64]]:
        diagonal = np.diag(self._matrix)
        parts = np.split(diagonal, np.cumsum(self._layout.sizes)[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, self._layout.shapes, strict=True)]

    def _quadratic_form(self, x: list[Segment], z: list[Segment]) -> float:
        return float(flat_segments(x) @ self._matrix @ flat_segments(z))

    def _dense(self) -> NDArray[np.float64]:
        return self._matrix.copy()


def flat_segments(segments: list[Segment], columns: bool = False) -> NDArray[Any]:
    """Segments as one flat float64 array, (n,) or (n, m).

    Parameters
    ----------
    segments : list of ndarray
        Of one long vector; with `columns`, the last axis runs over right-hand sides.
    columns : bool
        See `segments`.

    Returns
    -------
    ndarray
        A copy.
    """
    names = ["bfloat16" if s.dtype == np.uint16 else str(s.dtype) for s in segments]
    parts = [widened(s, name) for s, name in zip(segments, names, strict=True)]
    return np.concatenate([p.reshape(-1, p.shape[-1]) if columns else p.ravel() for p in parts])


def write_segments(values: NDArray[Any], out: list[Segment], columns: bool) -> None:
    """Cut a flat array into segments, each number rounded once to the segment's type.

    Parameters
    ----------
    values : ndarray, shape (n,) or (n, m)
        Float64.
    out : list of ndarray
        As for `flat_segments`.
    columns : bool
        See `flat_segments`.
    """
    values = np.ascontiguousarray(values)
    identity = _core.Operator([], [], [], np.zeros((0, 0)))  # copies, and converts to any of the four types
    ends = np.cumsum([math.prod(s.shape[:-1] if columns else s.shape) for s in out]).tolist()
    for begin, end, segment in zip([0, *ends], ends, out, strict=False):
        identity.apply(values[begin:end].reshape(segment.shape), segment, columns=columns)
