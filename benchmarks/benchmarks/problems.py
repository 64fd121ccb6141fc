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

#: STEEPEST_BENCH_LARGE=1 adds vectors of 1e8.
_LARGE = [100_000_000] * bool(os.environ.get("STEEPEST_BENCH_LARGE"))
#: Sizes of the vectors: of asv, of the table, and of the table of targets.
SIZES = [1_000, 100_000, 1_000_000, 10_000_000, *_LARGE]
TABLE_SIZES = [1_000, 100_000, 10_000_000, *_LARGE]
TARGET_SIZES = [100_000, 1_000_000, 10_000_000, *_LARGE]
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
    return {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}[dtype]


def fits(n: int, dtype: str, columns: int = 1) -> bool:
    """Whether an operand of n rows is small enough to be measured."""
    return n * columns * itemsize(dtype) <= MAX_OPERAND_BYTES


class NotApplicable(Exception):
    """A competitor has no way to do this."""


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
        narrow = {"bfloat16": bfloat16, "float16": np.float16}.get(self.dtype)
        return values if narrow is None else values.astype(narrow)

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
    def products(self) -> tuple[float, float, float]:
        """grad.grad, grad.update and update.update, summed in float64, in which NumPy's float32 ones are off."""
        return _dot(self.grad, self.grad), _dot(self.grad, self.update), _dot(self.update, self.update)

    @cached_property
    def scalars(self) -> tuple[float, float, float]:
        """y.g, g.g and alpha = y.y/(y.g), as Python numbers."""
        yy, yg, gg = self.products
        return -yg, gg, yy / -yg


@dataclass(frozen=True)
class Trajectory:
    """Gradients and updates of many steps, in named blocks of one size, each an array (steps, size)."""

    n: int
    dtype: str = "float32"
    steps: int = 200
    blocks: int = 50
    columns = 1
    order = "C"

    @property
    def size(self) -> int:
        """Parameters of a block; n is divisible by their number."""
        return self.n // self.blocks

    @cached_property
    def flat_grad(self) -> Array:
        """All of grad as one vector, block after block."""
        return np.random.default_rng(1).standard_normal(self.steps * self.n, dtype=np.dtype(self.dtype))

    @cached_property
    def flat_update(self) -> Array:
        """All of update, at an angle of 45 degrees."""
        noise = np.random.default_rng(2).standard_normal(self.steps * self.n, dtype=np.dtype(self.dtype))
        noise -= self.flat_grad
        noise *= 1e-2
        return noise

    def _blocks(self, flat: Array) -> dict[str, Array]:
        parts = flat.reshape(self.blocks, self.steps, self.size)
        return {f"block{i}": part for i, part in enumerate(parts)}

    @cached_property
    def grad(self) -> dict[str, Array]:
        """Views of `flat_grad`."""
        return self._blocks(self.flat_grad)

    @cached_property
    def update(self) -> dict[str, Array]:
        """Views of `flat_update`."""
        return self._blocks(self.flat_update)


def _dot(x: Array, y: Array, run: int = 1_000_000) -> float:
    starts = range(0, x.size, run)
    return sum(float(x[i : i + run].astype(np.float64) @ y[i : i + run].astype(np.float64)) for i in starts)


def inverse_coefficients(p: Problem, grad_x: float, g_x: float) -> tuple[float, float]:
    """Of M^-1 x = x/alpha + a grad + b g: (a, b), from grad.x and g.x; y = -grad."""
    yg, _, alpha = p.scalars
    scale = 1.0 / (alpha * yg)
    return float(g_x) * scale, 2.0 * float(g_x) / yg + float(grad_x) * scale
