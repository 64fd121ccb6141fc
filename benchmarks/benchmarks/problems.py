"""The axes of the benchmarks, and the data at each point of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    from ml_dtypes import bfloat16
except ModuleNotFoundError:  # bfloat16 is then left out
    bfloat16 = None

Array = NDArray[Any]

#: Sizes of the vectors; STEEPEST_BENCH_LARGE=1 adds 1e8.
SIZES = [1_000, 100_000, 10_000_000] + [100_000_000] * bool(os.environ.get("STEEPEST_BENCH_LARGE"))
DTYPES = ["float64", "float32"] + ["bfloat16"] * (bfloat16 is not None)
THREADS = [1, 2]
#: Several right-hand sides: how many, and in which memory order.
COLUMNS = 16
ORDERS = ["C", "F"]
#: Sides of dense matrices.
DENSE_SIZES = [256, 1024, 4096]
#: Operands above this are left out: with its temporaries plain NumPy needs four times as much.
MAX_OPERAND_BYTES = int(os.environ.get("STEEPEST_BENCH_MAX_BYTES", str(2**30)))


def itemsize(dtype: str) -> int:
    """Bytes of one element."""
    return {"float64": 8, "float32": 4, "bfloat16": 2}[dtype]


def fits(n: int, dtype: str, columns: int = 1) -> bool:
    """Whether an operand of n rows is small enough to be measured."""
    return n * columns * itemsize(dtype) <= MAX_OPERAND_BYTES


@dataclass(frozen=True)
class Problem:
    """A pair (grad, update) at an angle of about 45 degrees, and right-hand sides."""

    n: int
    dtype: str
    columns: int = 1
    order: str = "C"

    def _normal(self, seed: int, shape: tuple[int, ...]) -> Array:
        kind = np.float64 if self.dtype == "float64" else np.float32
        return np.random.default_rng(seed).standard_normal(shape, dtype=kind)

    def _rounded(self, values: Array) -> Array:
        return values if self.dtype != "bfloat16" else values.astype(bfloat16)

    @cached_property
    def grad(self) -> Array:
        """(n,), +dL/dtheta."""
        return self._rounded(self._normal(1, (self.n,)))

    @cached_property
    def update(self) -> Array:
        """(n,), params_next - params."""
        noise = self._normal(2, (self.n,))
        noise -= self._normal(1, (self.n,))
        noise *= 1e-2
        return self._rounded(noise)

    @cached_property
    def x(self) -> Array:
        """Right-hand side, (n,), or (n, columns) in the memory order asked for."""
        if self.columns == 1:
            return self._rounded(self._normal(3, (self.n,)))
        if self.order == "C":
            return self._rounded(self._normal(3, (self.n, self.columns)))
        return self._rounded(self._normal(3, (self.columns, self.n))).T

    @cached_property
    def out(self) -> Array:
        """Room for a result like x, its pages touched."""
        out = np.empty_like(self.x)
        out[...] = 0
        return out

    @cached_property
    def matrix(self) -> Array:
        """Room for an n x n float64 matrix, its pages touched."""
        return np.full((self.n, self.n), 0.0)

    @cached_property
    def scalars(self) -> tuple[float, float, float]:
        """y.g, g.g and alpha = y.y/(y.g), as Python numbers; sums in float64, in which NumPy's float32 ones are off."""
        return -_dot(self.grad, self.update), _dot(self.update, self.update), _alpha(self.grad, self.update)


def _dot(x: Array, y: Array, run: int = 1_000_000) -> float:
    starts = range(0, x.size, run)
    return sum(float(x[i : i + run].astype(np.float64) @ y[i : i + run].astype(np.float64)) for i in starts)


def _alpha(grad: Array, update: Array) -> float:
    return _dot(grad, grad) / -_dot(grad, update)
