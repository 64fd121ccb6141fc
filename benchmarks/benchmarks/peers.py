"""What users would write instead: NumPy as it comes to mind, NumPy and BLAS with care, numba, torch.

A peer is a class with one method per operation; it takes a `Problem` and returns a call without arguments, or raises
`NotApplicable`. Vectors are grad and update; y = -grad, but every formula is even in y or uses y.g > 0. bfloat16 is
widened to float32 by the peers that have no arithmetic in it.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
from scipy.linalg import blas

from .problems import Array, Problem
from .timing import Call

# Waiting threads that spin would be charged to whoever is measured next.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class NotApplicable(Exception):
    """The peer has no way to do this."""


def _on(arrays: tuple[Array, ...], formula: Callable[..., Any]) -> Call:
    """The formula on the arrays; bfloat16 is widened before and rounded after, at every call."""
    like = arrays[0].dtype
    if like.name != "bfloat16":
        return lambda: formula(*arrays)

    def call() -> Any:
        result = formula(*(x.astype(np.float32) for x in arrays))
        return result.astype(like) if isinstance(result, np.ndarray) else result

    return call


class NumPy:
    """The obvious lines."""

    name = "numpy"
    missing: str | None = None

    def gram(self, p: Problem) -> Call:
        return _on((p.grad, p.update), lambda y, g: (y @ y, y @ g, g @ g))

    def metric(self, p: Problem) -> Call:
        def formula(grad: Array, g: Array) -> tuple[float, float]:
            y = -grad
            yy, yg, gg = y @ y, y @ g, g @ g
            cosine = yg / np.sqrt(yy * gg)
            return yy / yg, ((1.0 + np.sqrt(1.0 - cosine**2)) / cosine) ** 2

        return _on((p.grad, p.update), formula)

    align = metric

    def apply(self, p: Problem) -> Call:
        yg, gg, alpha = p.scalars

        def one(y: Array, g: Array, x: Array) -> Array:
            return y * (y @ x / yg) + alpha * (x - g * (g @ x / gg))

        def several(y: Array, g: Array, x: Array) -> Array:
            return np.outer(y, y @ x / yg) + alpha * (x - np.outer(g, g @ x / gg))

        return _on((p.grad, p.update, p.x), one if p.columns == 1 else several)

    def solve(self, p: Problem) -> Call:
        yg, _, alpha = p.scalars
        yy = alpha * yg

        # The inverse of the condition-optimal member: 1/alpha off y, and the secant part along g. `grad` is -y.
        def formula(grad: Array, g: Array, x: Array) -> Array:
            gx, yx = g @ x, -(grad @ x)
            along = (1.0 + yy / (alpha * yg)) * gx / yg - yx / (alpha * yg)
            return x / alpha + g * along + grad * (gx / (alpha * yg))

        if p.columns > 1:
            raise NotApplicable
        return _on((p.grad, p.update, p.x), formula)

    def project(self, p: Problem) -> Call:
        return _on((p.update, p.x), lambda g, x: x - g * (g @ x / (g @ g)))

    def project2(self, p: Problem) -> Call:
        def formula(y: Array, g: Array, x: Array) -> Array:
            yg = y @ g
            a, b = np.linalg.solve([[y @ y, yg], [yg, g @ g]], [y @ x, g @ x])
            return x - float(a) * y - float(b) * g

        return _on((p.grad, p.update, p.x), formula)

    def assemble(self, p: Problem) -> Call:
        yg, gg, alpha = p.scalars

        def formula(y: Array, g: Array) -> Array:
            return np.outer(y, y) / yg + alpha * (np.eye(p.n, dtype=y.dtype) - np.outer(g, g) / gg)

        return _on((p.grad, p.update), formula)


class Blas:
    """NumPy and scipy.linalg.blas with care: results given, no temporaries that can be avoided."""

    name = "blas"
    missing: str | None = None

    def _routines(self, p: Problem) -> tuple[Any, Any, Any]:
        if p.dtype == "float64":
            return blas.ddot, blas.daxpy, blas.dgemm
        if p.dtype == "float32":
            return blas.sdot, blas.saxpy, blas.sgemm
        raise NotApplicable

    def gram(self, p: Problem) -> Call:
        dot, y, g = self._routines(p)[0], p.grad, p.update
        return lambda: (dot(y, y), dot(y, g), dot(g, g))

    def metric(self, p: Problem) -> Call:
        gram = self.gram(p)

        def call() -> tuple[float, float]:
            yy, yg, gg = gram()  # type: ignore[misc]
            cosine = -yg / math.sqrt(yy * gg)
            return -yy / yg, ((1.0 + math.sqrt(1.0 - cosine**2)) / cosine) ** 2

        return call

    align = metric

    def apply(self, p: Problem) -> Call:
        dot, axpy, gemm = self._routines(p)
        yg, gg, alpha = p.scalars
        y, g, x, out = p.grad, p.update, p.x, p.out

        def one() -> Array:
            yx, gx = dot(y, x), dot(g, x)
            np.multiply(x, alpha, out=out)
            axpy(y, out, a=yx / yg)
            axpy(g, out, a=-alpha * gx / gg)
            return out

        w = np.asfortranarray(np.column_stack([y, g]))
        core = np.diag([1.0 / yg, -alpha / gg]).astype(x.dtype)

        def several() -> Array:
            coefficients = core @ (w.T @ x)
            np.multiply(x, alpha, out=out)
            if p.order == "F":  # out is overwritten in place: out += W C
                gemm(1.0, w, coefficients, beta=1.0, c=out, overwrite_c=True)
            else:
                gemm(1.0, coefficients.T, w.T, beta=1.0, c=out.T, overwrite_c=True)
            return out

        return one if p.columns == 1 else several

    def project(self, p: Problem) -> Call:
        dot, axpy, _ = self._routines(p)
        g, x, out = p.update, p.x, p.out

        def call() -> Array:
            factor = -dot(g, x) / dot(g, g)
            np.copyto(out, x)
            return axpy(g, out, a=factor)

        return call

    def project2(self, p: Problem) -> Call:
        dot, axpy, _ = self._routines(p)
        y, g, x, out = p.grad, p.update, p.x, p.out

        def call() -> Array:
            yy, yg, gg, yx, gx = dot(y, y), dot(y, g), dot(g, g), dot(y, x), dot(g, x)
            determinant = yy * gg - yg * yg
            np.copyto(out, x)
            axpy(y, out, a=-(yx * gg - gx * yg) / determinant)
            return axpy(g, out, a=-(gx * yy - yx * yg) / determinant)

        return call

    def assemble(self, p: Problem) -> Call:
        if p.dtype != "float64":
            raise NotApplicable
        yg, gg, alpha = p.scalars
        y, g, out, row = p.grad, p.update, p.matrix, np.empty(p.n)

        def call() -> Array:
            yn, gn = y / yg, g * (-alpha / gg)
            for i in range(p.n):  # row by row, so that nothing leaves the cache but the result
                np.multiply(y, yn[i], out=out[i])
                np.multiply(g, gn[i], out=row)
                out[i] += row
            out[np.diag_indices(p.n)] += alpha
            return out

        return call


class Numba:
    """Loops fused by hand, in parallel, sums in double (the order of summation depends on the threads)."""

    name = "numba"
    missing = None if importlib.util.find_spec("numba") else "numba is not installed"

    def _loops(self, p: Problem) -> Any:
        if p.dtype == "bfloat16":
            raise NotApplicable
        from . import numba_loops

        return numba_loops

    def gram(self, p: Problem) -> Call:
        loops, y, g = self._loops(p), p.grad, p.update
        return lambda: loops.gram(y, g)

    def metric(self, p: Problem) -> Call:
        return self.gram(p)

    align = metric

    def apply(self, p: Problem) -> Call:
        loops = self._loops(p)
        if p.columns > 1:
            raise NotApplicable
        yg, gg, alpha = p.scalars
        y, g, x, out = p.grad, p.update, p.x, p.out
        kind = y.dtype.type

        def call() -> Array:
            yx, gx = loops.two_dots(y, g, x)
            loops.combine(kind(alpha), x, kind(yx / yg), y, kind(-alpha * gx / gg), g, out)
            return out

        return call

    def project(self, p: Problem) -> Call:
        loops, g, x, out = self._loops(p), p.update, p.x, p.out
        kind = g.dtype.type

        def call() -> Array:
            gx, gg = loops.two_dots(x, g, g)
            loops.axpy(x, kind(-gx / gg), g, out)
            return out

        return call

    def assemble(self, p: Problem) -> Call:
        loops = self._loops(p)
        yg, gg, alpha = p.scalars
        y, g, out = p.grad.astype(np.float64), p.update.astype(np.float64), p.matrix
        return lambda: loops.dense(alpha, 1.0 / yg, y, -alpha / gg, g, out)


class Torch:
    """PyTorch on the CPU, results given where it takes them."""

    name = "torch"
    missing = None if importlib.util.find_spec("torch") else "torch is not installed"

    def _tensor(self, x: Array) -> Any:
        import torch

        if x.dtype.name == "bfloat16":
            return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(x)

    def gram(self, p: Problem) -> Call:
        y, g = self._tensor(p.grad), self._tensor(p.update)
        return lambda: (y @ y, y @ g, g @ g)

    def apply(self, p: Problem) -> Call:
        import torch

        yg, gg, alpha = p.scalars
        y, g, x, out = (self._tensor(v) for v in (p.grad, p.update, p.x, p.out))

        def one() -> Any:
            yx, gx = float(y @ x), float(g @ x)
            torch.mul(x, alpha, out=out)
            out.add_(y, alpha=yx / yg)
            return out.add_(g, alpha=-alpha * gx / gg)

        w = torch.stack([y, g], dim=1)
        core = torch.tensor(np.diag([1.0 / yg, -alpha / gg]), dtype=x.dtype)

        def several() -> Any:
            return torch.addmm(x, w, core @ (w.T @ x), beta=alpha, out=out)

        return one if p.columns == 1 else several

    def project(self, p: Problem) -> Call:
        import torch

        g, x, out = (self._tensor(v) for v in (p.update, p.x, p.out))
        return lambda: torch.add(x, g, alpha=-float(g @ x) / float(g @ g), out=out)


PEERS = [NumPy(), Blas(), Numba(), Torch()]


def available() -> list[Any]:
    """The peers that are installed."""
    return [peer for peer in PEERS if peer.missing is None]


def threads_of_peers(threads: int) -> Any:
    """A context in which every peer uses so many threads."""
    if Numba.missing is None:
        import numba

        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    if Torch.missing is None:
        import torch

        torch.set_num_threads(threads)
    if importlib.util.find_spec("threadpoolctl") is None:
        return nullcontext()
    import threadpoolctl

    return threadpoolctl.threadpool_limits(threads, user_api="blas")
