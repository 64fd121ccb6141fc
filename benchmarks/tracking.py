"""What tracking costs: step time and memory of a multilayer perceptron of 1e7 parameters, with and without a tracker.

    python benchmarks/tracking.py [--batch 128 512] [--steps 20] [--threads 2] [--optimizer sgd adam]

Steps with and without the tracker alternate in random order in one process, on the same model; the table gives medians,
and the quartiles of the differences between neighbours. Memory is what stays resident after the first tracked steps.
On a busy machine ``--cpu --threads 1`` counts the time of the processor instead of the wall's.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

import steepest
from steepest.torch import track

WIDTHS = (784, 2048, 2048, 2048, 10)
RULES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-3),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-4),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-4),
}


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 # not a file on a disk
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def perceptron() -> torch.nn.Module:
    layers: list[torch.nn.Module] = []
    for width, following in pairwise(WIDTHS):
        layers += [torch.nn.Linear(width, following), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def measure(
    rule: str, batch: int, steps: int, device: str, clock: Callable[[], float], **options: Any
) -> dict[str, float]:
    torch.manual_seed(0)
    model = perceptron().to(device)
    optimizer = RULES[rule](model.parameters())
    x, y = torch.randn(batch, WIDTHS[0], device=device), torch.randint(WIDTHS[-1], (batch,), device=device)

    def step(rec: Any = None) -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        begin = clock()
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        (loss if rec is None else rec.loss(loss)).backward()
        optimizer.step()
        if device != "cpu":
            torch.cuda.synchronize()
        return clock() - begin

    for _ in range(3):
        step()
    before = resident()
    rec = track(optimizer, model, **options)
    hooks = dict(optimizer._optimizer_step_pre_hooks), dict(optimizer._optimizer_step_post_hooks)
    for _ in range(3):
        step(rec)
    memory = resident() - before
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(steps):
        for tracked in random.sample((False, True), 2):
            for registered, own in zip(
                (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks), hooks, strict=True
            ):
                registered.clear()
                registered.update(own if tracked else {})
            times[tracked].append(step(rec if tracked else None))
    rec.close()
    extra = [a - b for a, b in zip(times[True], times[False], strict=True)]
    plain = statistics.median(times[False])
    low, middle, high = statistics.quantiles(extra, n=4)
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    return {
        "plain": 1e3 * plain, "low": 1e2 * low / plain, "middle": 1e2 * middle / plain, "high": 1e2 * high / plain,
        "extra": 1e3 * middle, "memory": memory / parameters,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--optimizer", nargs="+", default=["sgd", "adam"], choices=RULES)
    parser.add_argument("--lag", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cpu", action="store_true", help="time of all CPUs together, for a busy machine")
    options = parser.parse_args()
    clock = time.process_time if options.cpu else time.perf_counter
    torch.set_num_threads(options.threads)
    steepest.set_num_threads(options.threads)
    n = sum(p.numel() for p in perceptron().parameters())
    kind = "CPU" if options.cpu else "wall"
    print(
        f"{n} parameters, float32, {options.device}, {options.threads} threads, {kind} time, torch {torch.__version__}"
    )
    print(
        f"every step, lag={options.lag}, keep='scalars'; overhead: median (quartiles) of {options.steps} pairs of steps"
    )
    print("optimizer  batch  step [ms]  tracking [ms]  overhead [%]           memory [copies of the parameters]")
    for rule in options.optimizer:
        for batch in options.batch:
            r = measure(rule, batch, options.steps, options.device, clock, lag=options.lag)
            spread = f"{r['middle']:.1f} ({r['low']:.1f} to {r['high']:.1f})"
            print(f"{rule:9}  {batch:5}  {r['plain']:9.1f}  {r['extra']:13.1f}  {spread:21}  {r['memory']:.2f}")


if __name__ == "__main__":
    main()
