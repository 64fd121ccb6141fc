"""The compiled libraries that users have: fused parallel loops of numba, PyTorch, JAX. Each is optional."""

from __future__ import annotations

import importlib.util
import os
from typing import Any, ClassVar

import numpy as np

from .problems import Array, NotApplicable, Problem, Trajectory, inverse_coefficients
from .timing import Call

# Waiting threads that spin would be charged to whoever is measured next.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class Numba:
    """Loops fused by hand, in parallel, sums in double (the order of summation depends on the threads)."""

    name = "numba"
    missing = None if importlib.util.find_spec("numba") else "numba is not installed"

    def _loops(self, p: Problem) -> Any:
        if p.dtype in ("bfloat16", "float16"):
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

    def solve(self, p: Problem) -> Call:
        loops = self._loops(p)
        if p.columns > 1:
            raise NotApplicable
        y, g, x, out = p.grad, p.update, p.x, p.out
        kind = y.dtype.type

        def call() -> Array:
            along_grad, along_g = inverse_coefficients(p, *loops.two_dots(y, g, x))
            loops.combine(kind(1.0 / p.scalars[2]), x, kind(along_grad), y, kind(along_g), g, out)
            return out

        return call

    def trajectory3(self, p: Trajectory) -> Call:
        return self._trajectory(p, 3)

    def trajectory7(self, p: Trajectory) -> Call:
        return self._trajectory(p, 7)

    def _trajectory(self, p: Trajectory, products: int) -> Call:
        from . import numba_loops as loops

        shape = p.blocks, p.steps, p.size
        grad, update = p.flat_grad.reshape(shape), p.flat_update.reshape(shape)
        found = np.zeros((p.blocks, p.steps, products))

        def call() -> Array:
            loops.trajectory(grad, update, found)
            return found

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
        if p.dtype == "float16":  # its sums are float16 too, which ends at 65504
            raise NotApplicable
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

    def solve(self, p: Problem) -> Call:
        import torch

        if p.columns > 1:
            raise NotApplicable
        y, g, x, out = (self._tensor(v) for v in (p.grad, p.update, p.x, p.out))

        def call() -> Any:
            along_grad, along_g = inverse_coefficients(p, float(y @ x), float(g @ x))
            torch.mul(x, 1.0 / p.scalars[2], out=out)
            out.add_(y, alpha=along_grad)
            return out.add_(g, alpha=along_g)

        return call

    def trajectory3(self, p: Trajectory) -> Call:
        return self._trajectory(p, 0)

    def trajectory7(self, p: Trajectory) -> Call:
        return self._trajectory(p, 1)

    def _trajectory(self, p: Trajectory, lag: int) -> Call:
        import torch

        grads, updates = ([torch.from_numpy(x) for x in v.values()] for v in (p.grad, p.update))
        found = torch.zeros((p.blocks, p.steps, 3 + 4 * lag), dtype=grads[0].dtype)
        dot = torch.linalg.vecdot  # of all steps: three times as fast as torch.dot of each

        def call() -> Any:
            for y, g, rows in zip(grads, updates, found, strict=True):
                rows[:, 0], rows[:, 1], rows[:, 2] = dot(y, y), dot(y, g), dot(g, g)
                if lag:
                    z, h, y, g, later = y[:-1], g[:-1], y[1:], g[1:], rows[1:]  # noqa: PLW2901
                    later[:, 3], later[:, 4], later[:, 5], later[:, 6] = dot(y, z), dot(y, h), dot(g, z), dot(g, h)
            return found

        return call

    def project(self, p: Problem) -> Call:
        import torch

        g, x, out = (self._tensor(v) for v in (p.update, p.x, p.out))
        return lambda: torch.add(x, g, alpha=-float(g @ x) / float(g @ g), out=out)


class Jax:
    """JAX on the CPU, jitted; it allocates its results. Its threads, one for each CPU, are fixed when it starts."""

    name = "jax"
    missing = None if importlib.util.find_spec("jax") else "jax is not installed"
    #: Whether the comparison is on as many threads as JAX uses.
    allowed: ClassVar[bool] = True

    @staticmethod
    def threads() -> int:
        """Of XLA's pool."""
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def _jitted(self, formula: Any, *arrays: Any) -> Call:
        import jax

        if not self.allowed:
            raise NotApplicable
        if jax.default_backend() != "cpu":
            raise NotApplicable
        jax.config.update("jax_enable_x64", True)
        jitted, own = jax.jit(formula), jax.tree.map(jax.numpy.asarray, arrays)
        return lambda: jax.block_until_ready(jitted(*own))

    @staticmethod
    def _dot(x: Any, y: Any) -> Any:
        import jax.numpy as jnp

        return jnp.vdot(x, y, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))

    def gram(self, p: Problem) -> Call:
        dot = self._dot
        return self._jitted(lambda y, g: (dot(y, y), dot(y, g), dot(g, g)), p.grad, p.update)

    def apply(self, p: Problem) -> Call:
        import jax.numpy as jnp

        yg, gg, alpha = p.scalars

        def one(y: Any, g: Any, x: Any) -> Any:
            yx, gx = self._dot(y, x) / yg, self._dot(g, x) * (alpha / gg)
            return alpha * x + yx.astype(x.dtype) * y - gx.astype(x.dtype) * g

        def several(y: Any, g: Any, x: Any) -> Any:
            return alpha * x + jnp.outer(y, y @ x / yg) - jnp.outer(g, g @ x * (alpha / gg))

        return self._jitted(one if p.columns == 1 else several, p.grad, p.update, p.x)

    def solve(self, p: Problem) -> Call:
        yg, _, alpha = p.scalars
        if p.columns > 1:
            raise NotApplicable

        def formula(y: Any, g: Any, x: Any) -> Any:
            yx, gx = self._dot(y, x), self._dot(g, x)
            along_g = 2.0 * gx / yg + yx / (alpha * yg)
            return x / alpha + (gx / (alpha * yg)).astype(x.dtype) * y + along_g.astype(x.dtype) * g

        return self._jitted(formula, p.grad, p.update, p.x)

    def project(self, p: Problem) -> Call:
        return self._jitted(
            lambda g, x: x - (self._dot(g, x) / self._dot(g, g)).astype(x.dtype) * g, p.update, p.x
        )  # fmt: skip

    def assemble(self, p: Problem) -> Call:
        import jax.numpy as jnp

        yg, gg, alpha = p.scalars

        def formula(y: Any, g: Any) -> Any:
            return jnp.outer(y, y / yg) - jnp.outer(g, g * (alpha / gg)) + alpha * jnp.eye(p.n, dtype=y.dtype)

        return self._jitted(formula, p.grad.astype(np.float64), p.update.astype(np.float64))

    def trajectory3(self, p: Trajectory) -> Call:
        return self._trajectory(p, 0)

    def trajectory7(self, p: Trajectory) -> Call:
        return self._trajectory(p, 1)

    def _trajectory(self, p: Trajectory, lag: int) -> Call:
        import jax.numpy as jnp

        def of_block(y: Any, g: Any) -> Any:
            found = [(y * y).sum(1), (y * g).sum(1), (g * g).sum(1)]
            if lag:
                z, h = (jnp.roll(x, 1, axis=0).at[0].set(0.0) for x in (y, g))
                found += [(y * z).sum(1), (y * h).sum(1), (g * z).sum(1), (g * h).sum(1)]
            return jnp.stack(found, axis=1)

        def formula(grad: Any, update: Any) -> Any:
            return jnp.stack([of_block(y, g) for y, g in zip(grad, update, strict=True)])

        return self._jitted(formula, list(p.grad.values()), list(p.update.values()))
