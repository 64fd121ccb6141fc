"""A metric of the family (8) plus a multiple of the identity, eq (19')."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import Layout, long_vector, to_user

__all__ = ["ShiftedMetric"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ShiftedMetric:
    """``M(alpha) + shift I``, eq (19'): the operator that turns the mean update into minus the mean gradient.

    Attributes
    ----------
    alpha : float
        Bulk eigenvalue of M(alpha), eq (8).
    shift : float
        ``lr q / (2 |E g|^2)``, of any sign.
    smallest_eigenvalue : float
        Positive.
    """

    alpha: float
    shift: float
    smallest_eigenvalue: float
    _directions: Array = field(repr=False)  # unit vectors along y and g, shape (2, n)
    _values: Array = field(repr=False)  # their coefficients in M(alpha) - alpha I

    def matvec(self, x: Any) -> Any:
        """Product with a vector.

        Parameters
        ----------
        x : array or mapping
            Of n elements.

        Returns
        -------
        array or mapping
            In the form of `x`.
        """
        return self._mapped(x, lambda v: self._bulk * v + (self._values * (self._directions @ v)) @ self._directions)

    __matmul__ = matvec

    def solve(self, b: Any) -> Any:
        """Solution x of ``(M + shift I) x = b``, from a system of size 2 (Woodbury).

        Parameters
        ----------
        b : array or mapping
            Of n elements.

        Returns
        -------
        array or mapping
            In the form of `b`.
        """
        core = np.diag(self._bulk / self._values) + self._directions @ self._directions.T

        def solved(v: Array) -> Array:
            return (v - np.linalg.solve(core, self._directions @ v) @ self._directions) / self._bulk

        return self._mapped(b, solved)

    @property
    def _bulk(self) -> float:
        return self.alpha + self.shift

    def _mapped(self, x: Any, function: Any) -> Any:
        vector = long_vector(x, "x")
        if vector.size != self._directions.shape[1]:
            raise ValueError(f"expected x with {self._directions.shape[1]} elements, got {vector.layout}")
        return to_user(_cut(function(vector.flat()), vector.layout), x)


def _cut(flat: Array, layout: Layout) -> list[Array]:
    ends = np.cumsum(layout.sizes).tolist()
    return [
        flat[end - size : end].reshape(shape)
        for size, end, shape in zip(layout.sizes, ends, layout.shapes, strict=True)
    ]
