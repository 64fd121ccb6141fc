"""What the memory allows: bare loops with an operation's own reads and writes, on as many threads.

They are those of `stream/stream.c`, compiled on the fly; where there is no C compiler, loops of numba, which knows no
stores past the caches and no software prefetch. An operation has several: the ceiling is the fastest of the plain ones
(``ceiling ...``, of the two ways to write), and beside it stands the fastest with software prefetch (``prefetch ...``),
with which a plain loop is no ceiling.
"""

from __future__ import annotations

from typing import Any

from . import stream
from .peers import Numba
from .problems import Array, Problem, Trajectory, itemsize
from .timing import Call

PLAIN, PREFETCHED = "ceiling", "prefetch"


def source() -> str:
    """Which loops these are, and why."""
    why = stream.missing()
    if why is None:
        return f"bare loops: C, prefetch {stream.AHEAD} bytes ahead"
    if Numba.missing is None:
        return f"bare loops: numba, without stores past the caches and prefetch ({why})"
    return f"no bare loops: {why}, {Numba.missing}"


def traffic(operation: str, p: Problem | Trajectory) -> int:
    """Least bytes that an operation moves: products read their operands twice, since coefficients need all of them."""
    if isinstance(p, Trajectory):
        return 2 * p.steps * p.n * itemsize(p.dtype)
    item, n, m = itemsize(p.dtype), p.n, p.columns
    if operation in ("gram", "compensated", "align", "metric"):
        return 2 * n * item
    if operation in ("apply", "solve"):
        return (2 * (2 + m) + m) * n * item
    if operation == "project":
        return 5 * n * item
    if operation == "project2":
        return 7 * n * item
    return n * n * 8


def ceilings(operation: str, p: Problem | Trajectory, threads: int) -> dict[str, Call]:
    """The bare loops of an operation, by name; none for `solve` of several columns, or without C compiler and numba."""
    if stream.missing() is not None:
        return _by_numba(operation, p)
    if isinstance(p, Trajectory):
        flat = p.flat_grad, p.flat_update
        return {
            PLAIN: stream.read(threads, *flat),
            PREFETCHED: stream.read(threads, *flat, prefetch=True),
        }
    if operation == "assemble":
        return {
            f"{PLAIN} nt": stream.combine(threads, out=p.matrix, nt=True),
            PLAIN: stream.combine(threads, out=p.matrix, nt=False),
        }
    y, g = p.grad, p.update
    if operation in ("gram", "compensated", "align", "metric"):
        return {
            PLAIN: stream.read(threads, y, g),
            PREFETCHED: stream.read(threads, y, g, prefetch=True),
        }
    found: dict[str, Call] = {}
    for kind, prefetch in ((PLAIN, False), (PREFETCHED, True)):
        for suffix, nt in (("", False), (" nt", True)):
            found[kind + suffix] = _two_passes(operation, p, threads, nt, prefetch)
    return found


def _two_passes(operation: str, p: Problem, threads: int, nt: bool, prefetch: bool) -> Call:
    """One pass for the coefficients, one for the result."""
    y, g, x, out = p.grad, p.update, p.x, p.out
    if p.columns > 1:
        first = stream.columns(threads, y, g, x, None, nt, prefetch)
        second = stream.columns(threads, y, g, x, out, nt, prefetch)
    else:
        vectors = (g, x) if operation == "project" else (y, g, x)
        first = stream.read(threads, *vectors, prefetch=prefetch)
        second = stream.combine(threads, *vectors, out=out, nt=nt, prefetch=prefetch)

    def both() -> None:
        first()
        second()

    return both


def _by_numba(operation: str, p: Problem | Trajectory) -> dict[str, Call]:
    if Numba.missing is not None:
        return {}
    from . import numba_loops

    loops: Any = numba_loops
    if isinstance(p, Trajectory):
        flat = p.flat_grad, p.flat_update
        return {PLAIN: lambda: loops.total2(*flat)} if p.dtype in ("float64", "float32") else {}
    if p.dtype not in ("float64", "float32") or p.columns > 1:
        return {}
    y, g = p.grad, p.update
    if operation in ("gram", "compensated", "align", "metric"):
        return {PLAIN: lambda: loops.total2(y, g)}
    kind = y.dtype.type
    if operation == "assemble":
        matrix: Array = p.matrix
        return {PLAIN: lambda: loops.fill(matrix, 1.0)}
    x, out = p.x, p.out
    if operation == "project":

        def two_passes() -> None:
            loops.total2(g, x)
            loops.axpy(x, kind(0.5), g, out)

        return {PLAIN: two_passes}

    def three_reads_twice() -> None:
        loops.total3(y, g, x)
        loops.combine(kind(0.5), x, kind(0.5), y, kind(0.5), g, out)

    return {PLAIN: three_reads_twice}
