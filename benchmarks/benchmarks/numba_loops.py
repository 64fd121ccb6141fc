"""Fused parallel loops as a numba user would write them; also the loops that measure the memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

Array = np.ndarray[Any, Any]


@njit(parallel=True, fastmath=True)
def gram(y: Array, g: Array) -> tuple[float, float, float]:
    """The three inner products of a pair."""
    yy = yg = gg = 0.0
    for i in prange(y.size):
        a, b = np.float64(y[i]), np.float64(g[i])
        yy += a * a
        yg += a * b
        gg += b * b
    return yy, yg, gg


@njit(parallel=True, fastmath=True)
def two_dots(y: Array, g: Array, x: Array) -> tuple[float, float]:
    """y.x and g.x."""
    yx = gx = 0.0
    for i in prange(y.size):
        c = np.float64(x[i])
        yx += np.float64(y[i]) * c
        gx += np.float64(g[i]) * c
    return yx, gx


@njit(parallel=True, fastmath=True)
def combine(a: float, x: Array, b: float, y: Array, c: float, g: Array, out: Array) -> None:
    """out = a x + b y + c g; also the ceiling of three reads and a write."""
    for i in prange(x.size):
        out[i] = a * x[i] + b * y[i] + c * g[i]


@njit(parallel=True, fastmath=True)
def axpy(x: Array, a: float, g: Array, out: Array) -> None:
    """out = x + a g."""
    for i in prange(x.size):
        out[i] = x[i] + a * g[i]


@njit(parallel=True, fastmath=True)
def dense(alpha: float, a: float, y: Array, b: float, g: Array, out: Array) -> None:
    """out = alpha I + a y y^T + b g g^T."""
    for i in prange(y.size):
        ay, bg = a * y[i], b * g[i]
        for j in range(y.size):
            out[i, j] = ay * y[j] + bg * g[j]
        out[i, i] += alpha


@njit(parallel=True, fastmath=True)
def trajectory(grad: Array, update: Array, found: Array) -> None:
    """Inner products of every step of every block: (blocks, steps, size) to (blocks, steps, 3 or 7)."""
    blocks, steps, size = grad.shape
    lag = found.shape[2] == 7
    for b in prange(blocks):
        for t in range(steps):
            yy = yg = gg = yz = yh = gz = gh = 0.0
            if lag and t > 0:
                for i in range(size):
                    y, g = np.float64(grad[b, t, i]), np.float64(update[b, t, i])
                    z, h = np.float64(grad[b, t - 1, i]), np.float64(update[b, t - 1, i])
                    yy += y * y
                    yg += y * g
                    gg += g * g
                    yz += y * z
                    yh += y * h
                    gz += g * z
                    gh += g * h
                found[b, t, 3], found[b, t, 4], found[b, t, 5], found[b, t, 6] = yz, yh, gz, gh
            else:
                for i in range(size):
                    y, g = np.float64(grad[b, t, i]), np.float64(update[b, t, i])
                    yy += y * y
                    yg += y * g
                    gg += g * g
            found[b, t, 0], found[b, t, 1], found[b, t, 2] = yy, yg, gg


@njit(parallel=True, fastmath=True)
def total2(x: Array, y: Array) -> float:
    """Reads two arrays."""
    s = x[0] - x[0]
    for i in prange(x.size):
        s += x[i] + y[i]
    return s


@njit(parallel=True, fastmath=True)
def total3(x: Array, y: Array, z: Array) -> float:
    """Reads three arrays."""
    s = x[0] - x[0]
    for i in prange(x.size):
        s += x[i] + y[i] + z[i]
    return s


@njit(parallel=True)
def fill(out: Array, value: float) -> None:
    """Writes one array."""
    for i in prange(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = value
