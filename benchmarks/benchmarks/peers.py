"""What users would write instead: NumPy as it comes to mind, NumPy and BLAS with care, SciPy's inverse of L-BFGS.

The others, each optional, are in `compiled_peers.py`; `PEERS` lists them all.

A peer is a class with one method per operation; it takes a `Problem` and returns a call without arguments, or raises
`NotApplicable`. Vectors are grad and update; y = -grad, but every formula is even in y or uses y.g > 0. bfloat16 and
float16 are widened to float32 by the peers that have no arithmetic in them, or whose sums would leave their range.
Trajectories give, for each step, the inner products of every block: y.y, y.g, g.g, and with lag 1 the four with the
step before; shape (blocks, steps, 3 or 7), the four of the first step 0.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
from scipy.linalg import blas
from scipy.optimize import LbfgsInvHessProduct

from .compiled_peers import Jax, Numba, Torch
from .problems import Array, NotApplicable, Problem, Trajectory, inverse_coefficients
from .timing import Call


def _on(arrays: tuple[Array, ...], formula: Callable[..., Any]) -> Call:
    """The formula on the arrays; narrow types are widened before and rounded after, at every call."""
    like = arrays[0].dtype
    if like.name not in ("bfloat16", "float16"):
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

    def trajectory3(self, p: Trajectory) -> Call:
        return lambda: self._trajectory(p, 0)

    def trajectory7(self, p: Trajectory) -> Call:
        return lambda: self._trajectory(p, 1)

    def _trajectory(self, p: Trajectory, lag: int) -> Array:
        found = np.zeros((p.blocks, p.steps, 3 + 4 * lag))
        for b, (grad, update) in enumerate(zip(p.grad.values(), p.update.values(), strict=True)):
            for t in range(p.steps):
                y, g = grad[t], update[t]
                found[b, t, :3] = y @ y, y @ g, g @ g
                if lag and t:
                    z, h = grad[t - 1], update[t - 1]
                    found[b, t, 3:] = y @ z, y @ h, g @ z, g @ h
        return found

    def apply(self, p: Problem) -> Call:
        yg, gg, alpha = p.scalars

        def one(y: Array, g: Array, x: Array) -> Array:
            return y * (y @ x / yg) + alpha * (x - g * (g @ x / gg))

        def several(y: Array, g: Array, x: Array) -> Array:
            return np.outer(y, y @ x / yg) + alpha * (x - np.outer(g, g @ x / gg))

        return _on((p.grad, p.update, p.x), one if p.columns == 1 else several)

    def solve(self, p: Problem) -> Call:
        alpha = p.scalars[2]

        def formula(grad: Array, g: Array, x: Array) -> Array:
            along_grad, along_g = inverse_coefficients(p, grad @ x, g @ x)
            return x / alpha + g * along_g + grad * along_grad

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

    def solve(self, p: Problem) -> Call:
        dot, axpy, _ = self._routines(p)
        if p.columns > 1:
            raise NotApplicable
        y, g, x, out = p.grad, p.update, p.x, p.out

        def call() -> Array:
            along_grad, along_g = inverse_coefficients(p, dot(y, x), dot(g, x))
            np.multiply(x, 1.0 / p.scalars[2], out=out)
            axpy(y, out, a=along_grad)
            return axpy(g, out, a=along_g)

        return call

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


class NumPyLoop:
    """The obvious lines, one right-hand side after the other."""

    name = "numpy loop"
    missing: str | None = None

    def apply(self, p: Problem) -> Call:
        if p.columns == 1:
            raise NotApplicable
        yg, gg, alpha = p.scalars
        y, g, x, out = p.grad, p.update, p.x, p.out

        def call() -> Array:
            for j in range(p.columns):
                one = x[:, j]
                out[:, j] = y * (y @ one / yg) + alpha * (one - g * (g @ one / gg))
            return out

        if p.dtype in ("bfloat16", "float16"):
            raise NotApplicable
        return call


class SciPy:
    """scipy.optimize.LbfgsInvHessProduct with one pair, which is an inverse: M(alpha)^-1 for alpha = 1, so scaled."""

    name = "scipy"
    missing: str | None = None

    def solve(self, p: Problem) -> Call:
        if p.columns > 1 or p.dtype not in ("float64", "float32"):
            raise NotApplicable
        alpha = p.scalars[2]
        root = p.update.dtype.type(math.sqrt(alpha))
        inverse, x = LbfgsInvHessProduct((root * p.update)[None], (-p.grad / root)[None]), p.x
        return lambda: inverse.matvec(x) / alpha


#: In the order of their columns.
PEERS = [NumPy(), NumPyLoop(), Blas(), SciPy(), Numba(), Torch(), Jax()]


def available() -> list[Any]:
    """The peers that are installed."""
    return [peer for peer in PEERS if peer.missing is None]


def threads_of_peers(threads: int) -> Any:
    """A context in which every peer uses so many threads (JAX always uses all, and is left out where that is more)."""
    Jax.allowed = threads >= Jax.threads()
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
