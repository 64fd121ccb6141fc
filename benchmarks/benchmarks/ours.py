"""Each operation by steepest: through the public interface, and through the kernel with a given result."""

from __future__ import annotations

import numpy as np

import steepest
from steepest import _core

from .problems import Array, Problem, Trajectory
from .timing import Call

OPERATIONS = ("gram", "align", "metric", "apply", "solve", "project", "project2", "assemble")


def set_threads(threads: int) -> None:
    """Threads of the kernels."""
    steepest.set_num_threads(threads)


def _bits(x: Array) -> Array:
    return x.view(np.uint16) if x.dtype.name == "bfloat16" else x


def _operator(p: Problem) -> _core.Operator:
    yg, gg, alpha = p.scalars
    core = np.diag([1.0 / yg, -alpha / gg])
    return _core.Operator([_bits(p.grad), _bits(p.update)], [0, 0], [False, False], core, 0, alpha)


class Public:
    """What users call; results are allocated."""

    name = "steepest"

    def align(self, p: Problem) -> Call:
        grad, update = p.grad, p.update
        return lambda: steepest.align(grad, update)

    def metric(self, p: Problem) -> Call:
        grad, update = p.grad, p.update
        return lambda: steepest.metric(grad, update)

    def apply(self, p: Problem) -> Call:
        m = steepest.metric(p.grad, p.update)
        x = p.x
        return lambda: m @ x

    def solve(self, p: Problem) -> Call:
        m = steepest.metric(p.grad, p.update)
        x = p.x
        return lambda: m.solve(x)

    def trajectory3(self, p: Trajectory) -> Call:
        grad, update = p.grad, p.update
        return lambda: steepest.recording(grad=grad, update=update, lag=0)

    def trajectory7(self, p: Trajectory) -> Call:
        grad, update = p.grad, p.update
        return lambda: steepest.recording(grad=grad, update=update, lag=1)

    def assemble(self, p: Problem) -> Call:
        m = steepest.metric(p.grad, p.update)
        return m.to_dense  # type: ignore[no-any-return]


class Kernel:
    """The compiled function alone, with `out` given."""

    name = "kernel"

    def gram(self, p: Problem) -> Call:
        vectors = [_bits(p.grad), _bits(p.update)]
        return lambda: _core.gram(vectors)

    def compensated(self, p: Problem) -> Call:
        vectors = [_bits(p.grad), _bits(p.update)]
        return lambda: _core.gram(vectors, "compensated")

    def apply(self, p: Problem) -> Call:
        operator, x, out = _operator(p), _bits(p.x), _bits(p.out)
        return lambda: operator.apply(x, out, columns=p.columns > 1)

    def project(self, p: Problem) -> Call:
        vectors, x, out = [_bits(p.update)], _bits(p.x), _bits(p.out)
        return lambda: _core.project(vectors, x, out, onto=False, columns=p.columns > 1)

    def project2(self, p: Problem) -> Call:
        vectors, x, out = [_bits(p.grad), _bits(p.update)], _bits(p.x), _bits(p.out)
        return lambda: _core.project(vectors, x, out, onto=False, columns=p.columns > 1)

    def assemble(self, p: Problem) -> Call:
        operator, out = _operator(p), p.matrix
        return lambda: operator.assemble(out)
