"""Where the time of whole analyses goes: identify, recording, and tracking of PyTorch.

    python benchmarks/profile_whole.py [--only diagonal,recording] [--size 1e6] [--steps 50] [--blocks 1] [--top 20]
                                       [--threads 2]

Each is run once without and once with the profiler, at --size parameters (--blocks square matrices, each with its bias)
and --steps steps in float32. Beside the time stands that of a bare loop that reads gradients and updates once, which
is what one pass costs; then the functions by cumulative and by own time. Tracking counts a step with the tracker and
without.
"""

from __future__ import annotations

import argparse
import cProfile
import importlib.util
import io
import math
import pstats
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np

import steepest
from benchmarks import stream
from steepest.identify import identification, identify, surrogates

Run = Callable[[], object]
# The others need all steps at once, or few parameters.
STREAMING = [name for name in get_args(identification.Family) if name in ("scalar", "diagonal") or "kronecker" in name]
OTHERS = ["surrogates shuffle", "surrogates flip", "recording", "recording lag 0", "analyze", "tracking"]


class Data:
    """A run under a diagonal rule with noise."""

    def __init__(self, n: int, steps: int, blocks: int) -> None:
        side = math.isqrt(n // blocks)
        layers = [f"layer {i}/" for i in range(blocks)] if blocks > 1 else [""]
        shapes = {k + part: s for k in layers for part, s in (("weight", (side, side - 1)), ("bias", (side,)))}
        rng = np.random.default_rng(0)
        self.grad = {k: rng.standard_normal((steps, *s), dtype=np.float32) for k, s in shapes.items()}
        self.update = {}
        for name, grad in self.grad.items():
            rates = np.exp(rng.standard_normal(grad.shape[1:], dtype=np.float32))
            self.update[name] = -1e-2 * rates * grad
            self.update[name] += np.float32(1e-3) * rng.standard_normal(grad.shape, dtype=np.float32)

    def bare_read(self, threads: int) -> float:
        """Seconds to read everything once, the best of three; NaN without a C compiler."""
        if stream.missing():
            return math.nan
        calls = [stream.read(threads, self.grad[k], self.update[k]) for k in self.grad]
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            for call in calls:
                call()
            times.append(time.perf_counter() - begin)
        return min(times)


def run_of(name: str, data: Data) -> Run:
    """What is profiled."""
    if name in STREAMING:
        family: Any = name
        return lambda: identify(grad=data.grad, update=data.update, family=family, rng=0)
    if name.startswith("surrogates"):
        kind: Any = name.split()[1]  # two surrogates, and the run itself
        return lambda: surrogates(grad=data.grad, update=data.update, family="diagonal", kind=kind, count=2, rng=0)
    if name == "analyze":
        rec = steepest.recording(grad=data.grad, update=data.update)
        return lambda: steepest.analyze(rec).to_dict()  # columns are made when they are asked for
    lag = 0 if name == "recording lag 0" else 1
    return lambda: steepest.recording(grad=data.grad, update=data.update, lag=lag)


class Training:
    """Steps of a perceptron of about n parameters in torch, SGD with momentum, batches of 128."""

    def __init__(self, n: int, steps: int, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        side, self.steps = math.isqrt(n // 2), steps
        layers = [torch.nn.Linear(side, side), torch.nn.ReLU(), torch.nn.Linear(side, side)]
        self.model = torch.nn.Sequential(*layers)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.x = torch.randn(128, side)

    def __call__(self, tracker: Any = None) -> None:
        """All steps."""
        for _ in range(self.steps):
            self.optimizer.zero_grad()
            loss = (self.model(self.x) - self.x).square().mean()
            (loss if tracker is None else tracker.loss(loss)).backward()
            self.optimizer.step()


def seconds(run: Run) -> float:
    """Of one run."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def show_profile(run: Run, top: int) -> None:
    """The functions that take longest, with the paths below the package."""
    profile = cProfile.Profile()
    profile.runcall(run)
    for order in ("cumulative", "tottime"):
        text = io.StringIO()
        pstats.Stats(profile, stream=text).sort_stats(order).print_stats(top)
        lines = text.getvalue().splitlines()
        start = next(i for i, line in enumerate(lines) if line.lstrip().startswith("ncalls"))
        places = (str(Path(steepest.__file__).parent) + "/", str(Path(np.__file__).parents[1]) + "/")
        for line in lines[start:]:
            for place in places:
                line = line.replace(place, "")  # noqa: PLW2901
            if line.strip():
                print("   " + line)
        print()


def profile_training(n: int, steps: int, threads: int, top: int) -> None:
    """Steps of torch, plain, tracked, and tracked under the profiler."""
    from steepest.torch import track

    training = Training(n, steps, threads)
    training()
    plain = seconds(training)
    for options in ({"lag": 0}, {"lag": 1}, {"lag": 1, "keep": "vectors"}):
        with track(training.optimizer, training.model, **options) as tracker:
            training(tracker)
            tracked = seconds(lambda: training(tracker))
            each = (1e3 * t / steps for t in (plain, tracked, tracked - plain))
            print(
                "## tracking {}: {:.2f} ms a step, {:.2f} ms tracked, {:.2f} ms more".format(options, *each), flush=True
            )
            if options == {"lag": 1}:
                show_profile(lambda: training(tracker), top)


def main() -> None:
    """Profile one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join([*STREAMING, *OTHERS]))
    parser.add_argument("--size", type=float, default=1e6)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--top", type=int, default=20)
    parser.add_argument("--threads", type=int, default=min(2, steepest._core.available_cpus()))
    args = parser.parse_args()
    steepest.set_num_threads(args.threads)
    n, chosen = int(args.size), args.only.split(",")
    unknown = set(chosen) - {*STREAMING, *OTHERS}
    if unknown:
        parser.error(f"expected some of {', '.join([*STREAMING, *OTHERS])}, got {', '.join(sorted(unknown))}")
    data = Data(n, args.steps, args.blocks)
    bare = data.bare_read(args.threads)
    told = f"{n:.0e} parameters in {len(data.grad)} arrays, {args.steps} steps, float32, {args.threads} threads"
    print(f"{told}; one bare read {1e3 * bare:.1f} ms")
    for name in chosen:
        if name == "tracking":
            if importlib.util.find_spec("torch") is None:
                print("## tracking: torch is not installed")
                continue
            profile_training(n, args.steps, args.threads, args.top)
            continue
        run = run_of(name, data)
        run()
        elapsed = seconds(run)
        step = 1e3 * elapsed / args.steps
        print(f"## {name}: {elapsed:.3f} s, {step:.2f} ms a step, {elapsed / bare:.1f} bare reads", flush=True)
        show_profile(run, args.top)


if __name__ == "__main__":
    main()
