"""What the memory allows: bare loops with an operation's own reads and writes."""

from __future__ import annotations

from .peers import Numba
from .problems import Array, Problem, itemsize
from .timing import Call


def traffic(operation: str, p: Problem) -> int:
    """Least bytes that an operation moves: products read their operands twice, since coefficients need all of them."""
    item, n, m = itemsize(p.dtype), p.n, p.columns
    if operation in ("gram", "align", "metric"):
        return 2 * n * item
    if operation in ("apply", "solve"):
        return (2 * (2 + m) + m) * n * item
    if operation == "project":
        return 5 * n * item
    if operation == "project2":
        return 7 * n * item
    return n * n * 8


def ceiling(operation: str, p: Problem) -> Call | None:
    """The bare loop, or None where there is none (bfloat16, several right-hand sides, no numba)."""
    if Numba.missing is not None or p.dtype == "bfloat16" or p.columns > 1:
        return None
    from . import numba_loops as loops

    y, g = p.grad, p.update
    if operation in ("gram", "align", "metric"):
        return lambda: loops.total2(y, g)
    kind = y.dtype.type
    if operation == "assemble":
        matrix: Array = p.matrix
        return lambda: loops.fill(matrix, 1.0)
    x, out = p.x, p.out
    if operation == "project":

        def two_passes() -> None:
            loops.total2(g, x)
            loops.axpy(x, kind(0.5), g, out)

        return two_passes

    def three_reads_twice() -> None:
        loops.total3(y, g, x)
        loops.combine(kind(0.5), x, kind(0.5), y, kind(0.5), g, out)

    return three_reads_twice
