"""A block-diagonal metric of dense blocks, or one dense block, that belongs to many steps rather than to one pair."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import block_diag

from steepest.arrays import Layout, Segment
from steepest.metrics.dense import flat_segments, write_segments
from steepest.metrics.interface import FLOAT64, Metric, Spectrum, merged_spectrum

__all__ = ["BlockDenseMetric"]

Array = NDArray[np.float64]


class BlockDenseMetric(Metric):
    """``M = diag(M_1, ..., M_k)`` with dense blocks over consecutive parameters; functions are taken block by block.

    Parameters
    ----------
    layout : Layout
        Names and shapes of the parameters; a block may lie across arrays.
    matrices : list of ndarray
        Symmetric; their sizes sum to that of the layout. Kept, not copied.
    eigen : list of (ndarray, ndarray), optional
        Eigenvalues, ascending, and eigenvectors of each.
    positive_definite : bool
        False for a logarithm.

    Raises
    ------
    ValueError
        The sizes do not fit, or a block is not positive definite.
    """

    def __init__(
        self,
        layout: Layout,
        matrices: list[Array],
        eigen: list[tuple[Array, Array]] | None = None,
        *,
        positive_definite: bool = True,
    ) -> None:
        shapes = [np.broadcast_to(0.0, shape) for shape in layout.shapes]  # what results look like; no memory
        super().__init__(
            layout, "float64", None, shapes[0] if layout.names is None else dict(zip(layout.names, shapes, strict=True))
        )
        if sum(len(x) for x in matrices) != layout.size or any(x.shape != (len(x), len(x)) for x in matrices):
            raise ValueError(
                f"expected square blocks with {layout.size} rows together, got {[x.shape for x in matrices[:8]]}"
            )
        self._matrices = matrices
        self._eigen = [_eigen(x) for x in matrices] if eigen is None else eigen
        self.positive_definite = positive_definite
        for i, (values, _) in enumerate(self._eigen):
            if positive_definite and not (values[0] > 0.0 and values[-1] < math.inf):
                raise ValueError(
                    f"expected positive definite blocks, got one with eigenvalues from {values[0]:.3g} to "
                    f"{values[-1]:.3g}, at place {i}"
                )

    @property
    def alpha(self) -> float:
        return math.nan

    def _parts(self) -> Iterator[tuple[slice, Array]]:
        begin = 0
        for matrix in self._matrices:
            yield slice(begin, begin + len(matrix)), matrix
            begin += len(matrix)

    def _apply(self, x: list[Segment], out: list[Segment], columns: bool) -> None:
        flat = flat_segments(x, columns)
        write_segments(np.concatenate([matrix @ flat[at] for at, matrix in self._parts()]), out, columns)

    def _mapped(self, f: Callable[[Array], Array], definite: bool = True) -> BlockDenseMetric:
        eigen, matrices = [], []
        for values, vectors in self._eigen:
            mapped = f(values)
            order = np.argsort(mapped, kind="stable")
            matrix = (vectors * mapped) @ vectors.T
            matrices.append(0.5 * (matrix + matrix.T))
            eigen.append((mapped[order], vectors[:, order]))
        return BlockDenseMetric(self._layout, matrices, eigen, positive_definite=definite)

    def power(self, p: float) -> BlockDenseMetric:
        self._require_definite("power")
        if not math.isfinite(p):
            raise ValueError(f"expected a finite power, got {p}")
        return self if p == 1.0 else self._mapped(lambda x: x**p)

    def log(self) -> BlockDenseMetric:
        self._require_definite("log")
        return self._mapped(np.log, definite=False)

    def _scaled(self, factor: float) -> BlockDenseMetric:
        eigen = [(factor * values, vectors) for values, vectors in self._eigen]
        matrices = [factor * matrix for matrix in self._matrices]
        return BlockDenseMetric(self._layout, matrices, eigen, positive_definite=self.positive_definite)

    def spectrum(self) -> Spectrum:
        return merged_spectrum([(float(value), 1) for values, _ in self._eigen for value in values])

    def cond(self) -> float:
        self._require_definite("cond")
        return max(float(v[-1]) for v, _ in self._eigen) / min(float(v[0]) for v, _ in self._eigen)

    def logdet(self) -> float:
        self._require_definite("logdet")
        return math.fsum(math.fsum(np.log(values)) for values, _ in self._eigen)

    def trace(self) -> float:
        return math.fsum(float(np.trace(matrix)) for matrix in self._matrices)

    def _diagonal(self) -> list[Array]:
        diagonal = np.concatenate([np.diag(matrix) for matrix in self._matrices])
        parts = np.split(diagonal, np.cumsum(self._layout.sizes)[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, self._layout.shapes, strict=True)]

    def _quadratic_form(self, x: list[Segment], z: list[Segment]) -> float:
        a, b = flat_segments(x), flat_segments(z)
        return math.fsum(float(a[at] @ matrix @ b[at]) for at, matrix in self._parts())

    def _dense(self, dtype: np.dtype[Any] = FLOAT64) -> NDArray[Any]:
        return np.asarray(block_diag(*self._matrices), dtype=dtype)

    def _describe(self) -> list[str]:
        largest = max(len(matrix) for matrix in self._matrices)
        kind = ["dense"] if len(self._matrices) == 1 else [f"{len(self._matrices)} dense blocks up to {largest}"]
        return kind + ([f"cond={self.cond():.6g}"] if self.positive_definite else [])


def _eigen(matrix: Array) -> tuple[Array, Array]:
    values, vectors = np.linalg.eigh(matrix)
    return values, vectors
