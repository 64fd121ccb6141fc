"""Times steepest beside its peers and prints one table.

    python benchmarks/compare.py            # about ten minutes
    python benchmarks/compare.py --quick    # about one minute
    python benchmarks/compare.py --only apply,solve --sizes 1e6 --dtypes float32 --threads 2

Every row: medians of shuffled rounds in one process. `ratio` is ours over plain NumPy, below 1 is faster; `best` is
the same of the fastest samples. `of ceiling` is the time of a bare loop with the same reads and writes over ours.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks import ours, peers, problems
from benchmarks.ceiling import ceiling
from benchmarks.peers import NotApplicable
from benchmarks.problems import Problem
from benchmarks.timing import Call, interleaved

PEERS = peers.available()
HEAD = ["operation", "columns", "n", "dtype", "threads", "steepest", "kernel"]
HEAD += [peer.name for peer in PEERS] + ["ratio", "best", "kernel ratio", "of ceiling"]


def rows(args: argparse.Namespace) -> Iterator[tuple[str, Problem]]:
    """Points of the table: operation and problem."""
    for operation in args.only:
        sizes = [256, 1024] if args.quick else problems.DENSE_SIZES
        for n in sizes if operation == "assemble" else args.sizes:
            for dtype in args.dtypes:
                shapes = [(1, "C")]
                if operation == "apply" and dtype != "bfloat16":
                    shapes += [(problems.COLUMNS, order) for order in problems.ORDERS]
                for columns, order in shapes:
                    if problems.fits(n, dtype, columns):
                        yield operation, Problem(n, dtype, columns, order)


def competitors(operation: str, problem: Problem) -> dict[str, Call]:
    """Every competitor that can do it."""
    calls: dict[str, Call] = {}
    for one in (ours.Public(), ours.Kernel(), *PEERS):
        make: Any = getattr(one, operation, None)
        try:
            if make is not None:
                calls[one.name] = make(problem)
        except NotApplicable:
            continue
    bare = ceiling(operation, problem)
    if bare is not None:
        calls["ceiling"] = bare
    return calls


def check(operation: str, problem: Problem, calls: dict[str, Call]) -> None:
    """Competitors that return an array must return the same one."""
    if operation in ("gram", "align", "metric"):
        return
    tolerance = {"float64": 1e-10, "float32": 1e-3, "bfloat16": 0.2}[problem.dtype]
    expected = np.asarray(calls["numpy"](), dtype=np.float64)
    for name, call in calls.items():
        if name == "ceiling":
            continue
        found = call()
        if found is None:
            found = problem.matrix if operation == "assemble" else problem.out
        if type(found).__module__.startswith("torch"):
            found = found.float().numpy() if problem.dtype == "bfloat16" else found.numpy()
        error = np.abs(np.asarray(found, dtype=np.float64) - expected).max() / np.abs(expected).max()
        if not error < tolerance:
            raise AssertionError(f"{name} differs from numpy by {error:.2g} in {operation}, {problem}")


def written(seconds: float) -> str:
    """Three digits with a unit."""
    for factor, unit in ((1e6, "us"), (1e3, "ms")):
        if seconds * factor < 1000:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def cells(operation: str, problem: Problem, threads: int, times: dict[str, np.ndarray]) -> list[str]:
    """One row of the table."""
    median = {name: float(np.median(found)) for name, found in times.items()}
    least = {name: float(found.min()) for name, found in times.items()}
    columns = "1" if problem.columns == 1 else f"{problem.columns} {problem.order}"
    row = [operation, columns, f"{problem.n:.0e}" if operation != "assemble" else str(problem.n)]
    row += [problem.dtype, str(threads)]
    row += [written(median[name]) if name in median else "" for name in ("steepest", "kernel")]
    row += [written(median[peer.name]) if peer.name in median else "" for peer in PEERS]
    main = "steepest" if "steepest" in median else "kernel"
    if "numpy" in median:
        row += [f"{median[main] / median['numpy']:.2f}", f"{least[main] / least['numpy']:.2f}"]
        row += [f"{median['kernel'] / median['numpy']:.2f}" if "kernel" in median else ""]
    else:
        row += ["", "", ""]
    fastest = "kernel" if "kernel" in median else "steepest"
    row += [f"{median['ceiling'] / median[fastest]:.0%}" if "ceiling" in median else ""]
    return row


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="sizes up to 1e5, few rounds")
    parser.add_argument("--only", default=",".join(ours.OPERATIONS), help="operations, separated by commas")
    parser.add_argument("--sizes", help="sizes, separated by commas")
    parser.add_argument("--dtypes", default=",".join(problems.DTYPES))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--seconds", type=float, help="per row")
    args = parser.parse_args()
    args.only = args.only.split(",")
    args.dtypes = args.dtypes.split(",")
    args.threads = [int(t) for t in args.threads.split(",")]
    if args.sizes:
        args.sizes = [int(float(n)) for n in args.sizes.split(",")]
    else:
        args.sizes = [n for n in problems.SIZES if n <= 100_000 or not args.quick]
    args.seconds = args.seconds or (0.1 if args.quick else 1.0)
    return args


def main() -> None:
    """Print the table."""
    args = parsed()
    for peer in peers.PEERS:
        if peer.missing:
            print(f"# without {peer.name}: {peer.missing}")
    print("| " + " | ".join(HEAD) + " |")
    print("|" + "---|" * len(HEAD))
    for operation, problem in rows(args):
        calls = competitors(operation, problem)
        if "numpy" in calls:
            check(operation, problem, calls)
        for threads in args.threads:
            ours.set_threads(threads)
            with peers.threads_of_peers(threads):
                times = interleaved(calls, seconds=args.seconds)
            print("| " + " | ".join(cells(operation, problem, threads, times)) + " |", flush=True)


if __name__ == "__main__":
    main()
