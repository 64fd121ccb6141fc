"""Times steepest beside its peers and prints one table.

    python benchmarks/compare.py --targets  # the table of targets: what is met, what is not
    python benchmarks/compare.py            # every operation, type and size
    python benchmarks/compare.py --quick    # about one minute
    python benchmarks/compare.py --only apply,solve --sizes 1e6 --dtypes float32 --threads 2

Every row: medians of shuffled rounds in one process. `ratio` is ours over plain NumPy, below 1 is faster; `best` is
the same of the fastest samples. `of ceiling` is the time of a bare loop with the same reads and writes, on as many
threads and in the same rounds, over ours; `of prefetched` the same of one with software prefetch.

In the table of targets `time` is that of the kernel with `out` given (of trajectories, of `steepest.recording`),
`ratio` that over the fastest peer, and `limits` has our time over each peer's with what it should be at most.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from typing import Any

import numpy as np

import steepest
from benchmarks import ours, peers, problems
from benchmarks.ceiling import PLAIN, PREFETCHED, ceilings, source
from benchmarks.checking import check
from benchmarks.problems import NotApplicable, Problem, Trajectory
from benchmarks.targets import OWN_FLOAT32, Target, targets
from benchmarks.timing import Call, interleaved

PEERS = peers.available()
NAMES = [peer.name for peer in PEERS]
HEAD = ["operation", "columns", "n", "dtype", "threads", "steepest", "kernel", *NAMES]
HEAD += ["ratio", "best", "kernel ratio", "of ceiling", "of prefetched"]
TARGET_HEAD = ["operation", "columns", "n", "dtype", "time", "best peer", "ratio", "limits", "of ceiling", "target"]
TARGET_HEAD += ["of prefetched", "met"]


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


def competitors(operation: str, problem: Problem | Trajectory) -> dict[str, Call]:
    """Everyone who can do it; the threads have been set."""
    calls: dict[str, Call] = {}
    for one in (ours.Public(), ours.Kernel(), *PEERS):
        make: Any = getattr(one, operation, None)
        try:
            if make is not None:
                calls[one.name] = make(problem)
        except NotApplicable:
            continue
    return calls


def medians(
    operation: str, problem: Problem | Trajectory, threads: int, seconds: float, only_main: bool = False
) -> Any:
    """Median and least seconds of every competitor and bare loop, checked and then timed in turn."""
    ours.set_threads(threads)
    with peers.threads_of_peers(threads):
        calls = competitors(operation, problem)
        check(operation, problem, calls)
        if only_main and "kernel" in calls:
            calls.pop("steepest", None)
        if only_main and isinstance(problem, Problem) and problems.itemsize(problem.dtype) == 2:
            calls[OWN_FLOAT32] = getattr(ours.Kernel(), operation)(Problem(problem.n, "float32"))
        calls.update(ceilings(operation, problem, threads))
        times = interleaved(calls, seconds=seconds)
    median = {name: float(np.median(found)) for name, found in times.items()}
    return median, {name: float(found.min()) for name, found in times.items()}


def written(seconds: float) -> str:
    """Three digits with a unit."""
    for factor, unit in ((1e6, "us"), (1e3, "ms")):
        if seconds * factor < 1000:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def share(kind: str, times: dict[str, float], main: str) -> float | None:
    """Time of the fastest bare loop of a kind over ours, None where there is none."""
    found = [seconds for name, seconds in times.items() if name.split()[0] == kind]
    return min(found) / times[main] if found else None


def percent(value: float | None) -> str:
    """A share, or nothing."""
    return "" if value is None else f"{value:.0%}"


def point(operation: str, problem: Problem | Trajectory) -> list[str]:
    """The first cells of a row."""
    columns = "1" if problem.columns == 1 else f"{problem.columns} {problem.order}"
    if isinstance(problem, Trajectory):
        operation, columns = f"{operation[:-1]} {operation[-1]}", f"{problem.steps} steps"
    return [operation, columns, f"{problem.n:.0e}" if operation != "assemble" else str(problem.n), problem.dtype]


def cells(operation: str, problem: Problem, threads: int, seconds: float) -> list[str]:
    """One row of the table."""
    median, least = medians(operation, problem, threads, seconds)
    row = [*point(operation, problem), str(threads)]
    row += [written(median[name]) if name in median else "" for name in ("steepest", "kernel", *NAMES)]
    main = "steepest" if "steepest" in median else "kernel"
    if "numpy" in median:
        row += [f"{median[main] / median['numpy']:.2f}", f"{least[main] / least['numpy']:.2f}"]
        row += [f"{median['kernel'] / median['numpy']:.2f}" if "kernel" in median else ""]
    else:
        row += ["", "", ""]
    fastest = "kernel" if "kernel" in median else "steepest"
    return row + [percent(share(kind, median, fastest)) for kind in (PLAIN, PREFETCHED)]


def target_cells(target: Target, threads: int, seconds: float) -> list[str]:
    """One row of the table of targets."""
    operation, problem = target.operation, target.problem
    median, _ = medians(operation, problem, threads, seconds, only_main=True)
    main = "kernel" if "kernel" in median else "steepest"
    time = median[main]
    rivals = {name: median[name] for name in NAMES if name in median}
    best = min(rivals, key=lambda name: rivals[name], default=None)
    missed, unknown, limits = [], [], []
    for name, limit in target.limits.items():
        if name not in median:
            unknown.append(name)
            limits.append(f"{name} ? <= {limit:.2f}")
            continue
        ratio = time / median[name]
        limits.append(f"{name} {ratio:.2f} <= {limit:.2f}")
        if not ratio <= limit:
            missed.append(name)
    fraction = share(PLAIN, median, main)
    if target.fraction is not None and fraction is None:
        unknown.append("ceiling")
    elif target.fraction is not None and fraction is not None and not fraction >= target.fraction:
        missed.append("ceiling")
    if not target.limits and target.fraction is None:
        met = "no target"
    else:
        met = "no: " + ", ".join(missed) if missed else "? without " + ", ".join(unknown) if unknown else "yes"
    row = [*point(operation, problem), written(time)]
    row += ["", ""] if best is None else [f"{written(rivals[best])} ({best})", f"{time / rivals[best]:.2f}"]
    row += [", ".join(limits), percent(fraction), percent(target.fraction), percent(share(PREFETCHED, median, main))]
    return [*row, met]


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", action="store_true", help="the table of targets")
    parser.add_argument("--quick", action="store_true", help="sizes up to 1e5, few rounds")
    parser.add_argument("--only", help="operations, separated by commas; of targets: groups or operations")
    parser.add_argument("--sizes", help="sizes, separated by commas")
    parser.add_argument("--dtypes", default=",".join(problems.DTYPES))
    parser.add_argument("--threads", help="default 1,2; of targets one number, the CPUs up to 2")
    parser.add_argument("--seconds", type=float, help="per row")
    args = parser.parse_args()
    cpus = min(2, steepest._core.available_cpus())
    args.only = args.only.split(",") if args.only else None if args.targets else list(ours.OPERATIONS)
    args.dtypes = args.dtypes.split(",")
    args.threads = [int(t) for t in args.threads.split(",")] if args.threads else [cpus] if args.targets else [1, 2]
    if args.sizes:
        args.sizes = [int(float(n)) for n in args.sizes.split(",")]
    else:
        sizes = problems.TARGET_SIZES if args.targets else problems.TABLE_SIZES
        args.sizes = [n for n in sizes if n <= 100_000 or not args.quick]
    args.seconds = args.seconds or (0.1 if args.quick else 1.0)
    return args


def show(row: list[str]) -> None:
    """A row in Markdown."""
    print("| " + " | ".join(row) + " |", flush=True)


def main() -> None:
    """Print the table."""
    args = parsed()
    config = steepest.build_config()
    print(f"# steepest {config['version']}, {config['instruction_set']}, {config['compiler']}; {platform.machine()}")
    print(f"# {source()}")
    for peer in peers.PEERS:
        if peer.missing:
            print(f"# without {peer.name}: {peer.missing}")
    if "jax" in NAMES and any(t < peers.Jax.threads() for t in args.threads):
        print(f"# jax only with {peers.Jax.threads()} threads, which it always uses")
    head = TARGET_HEAD if args.targets else HEAD
    if args.targets:
        print(f"# {args.threads[0]} threads")
    show(head)
    print("|" + "---|" * len(head))
    if not args.targets:
        for operation, problem in rows(args):
            for threads in args.threads:
                show(cells(operation, problem, threads, args.seconds))
        return
    small = {"dense": 512, "trajectory": Trajectory(50_000, steps=20)} if args.quick else {}
    for target in targets(args.sizes, **small):
        if args.only is None or target.group in args.only or target.operation in args.only:
            show(target_cells(target, args.threads[0], args.seconds))


if __name__ == "__main__":
    main()
