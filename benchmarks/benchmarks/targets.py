"""The targets: what each operation should cost beside its peers, and beside a bare loop over the same memory.

Times are of reproducible results, sums in double or better, as many threads as there are, `out` given. A limit on a
peer is a limit on our time over its. A fraction is the time of the bare loop over ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .problems import COLUMNS, ORDERS, TARGET_SIZES, Problem, Trajectory, bfloat16, fits

OWN_FLOAT32 = "own float32"  # the peer of the narrow types: our kernel on as many float32 elements


@dataclass(frozen=True)
class Target:
    """One row of the table."""

    operation: str
    problem: Problem | Trajectory
    limits: Mapping[str, float] = field(default_factory=dict)  # name of a peer: ours over its time
    fraction: float | None = None  # of the ceiling
    group: str = ""


def targets(
    sizes: list[int] | None = None, dense: int = 4096, trajectory: Trajectory | None = None
) -> Iterator[Target]:
    """All rows; smaller sizes try the code out."""
    sizes = sizes or TARGET_SIZES
    wide = ("float32", "float64")
    for n in sizes:
        for dtype in wide:
            large = {"numba": 0.85, "numpy": 0.35} if dtype == "float32" else {"numba": 0.90}
            limits = large if n >= 10**7 else {"numba": 1.0}
            fraction = 0.95 if n >= 10**7 else 0.90 if n >= 10**6 else None
            yield Target("gram", Problem(n, dtype), limits, fraction, "gram")
        for dtype, fraction in (("bfloat16", 0.85), ("float16", 0.95)):
            if dtype == "float16" or bfloat16 is not None:
                at_size = n >= 10**7
                limits = {OWN_FLOAT32: 1 / 1.5} if at_size else {}
                yield Target("gram", Problem(n, dtype), limits, fraction if at_size else None, "gram")
    for n in sizes:
        for dtype, fraction in (("float32", 0.8), ("float64", 0.7)):
            yield Target("compensated", Problem(n, dtype), {}, fraction if n >= 10**7 else None, "gram")
    for n in sizes:
        for dtype in wide:
            limits = {"numba": 0.87, "torch": 0.5, "numpy": 0.2} if n >= 10**7 else {"numba": 1.0}
            yield Target("apply", Problem(n, dtype), limits, 0.95 if n >= 10**6 else 0.65, "apply")
    for n in sizes:
        for order in reversed(ORDERS):
            if fits(n, "float32", COLUMNS):
                several = Problem(n, "float32", COLUMNS, order)
                yield Target("apply", several, {"torch": 0.55, "numpy loop": 0.25}, 0.80, "apply")
    yield Target("assemble", Problem(dense, "float64"), {"numba": 0.45}, 0.75, "assemble")
    for n in sizes:
        for dtype in wide:
            limits = {"numba": 1.0, "blas": 0.6} if n >= 10**6 else {}
            yield Target("project", Problem(n, dtype), limits, 0.95 if n >= 10**6 else None, "project")
    run = trajectory or Trajectory(1_000_000)
    # Of whole arrays as users take them step by step; a loop of numba that is fused over all steps is at the ceiling.
    yield Target("trajectory7", run, {"numpy": 0.36, "torch": 0.36}, 0.70, "trajectory")
    yield Target("trajectory3", run, {"numpy": 0.38, "torch": 0.38}, 0.80, "trajectory")
    for operation, limit in (("apply", 0.6), ("gram", 1.5)):
        yield Target(operation, Problem(1_000, "float32"), {"blas": limit}, None, "small")
