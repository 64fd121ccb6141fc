"""How often the 95% interval of `steepest.pairs.stochastic` covers: feedback alignment on real digits.

    python benchmarks/interval_coverage.py [--repeats 2000] [--samples 20 50 200] [--steps 30 300 1500]

A linear network of two layers, 64-16-10, is trained on the 1797 digits of scikit-learn by feedback alignment with full
batches. At each point of training the rule is sampled: N batches of 32 examples, drawn independently WITH replacement.
The expectation of the gradient of such a batch, and of its update, is the mean over all examples, so the target, the
cosine of E[grad] and E[update], is exact. Prints a table in Markdown; an undefined interval counts as a miss.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import steepest
from steepest import pairs

Array = NDArray[np.float64]
LR = 0.05


class Point:
    """Feedback alignment after a number of steps."""

    def __init__(self, steps: int) -> None:
        from sklearn.datasets import load_digits

        x, labels = load_digits(return_X_y=True)
        self.x, target = (x - x.mean(axis=0)) / 16.0, np.eye(10)[labels]
        rng = np.random.default_rng(0)
        W1, W2 = 0.0125 * rng.standard_normal((16, 64)), 0.025 * rng.standard_normal((10, 16))
        self.B = rng.standard_normal((16, 10)) / 4.0
        for _ in range(steps):
            E = (self.x @ W1.T @ W2.T - target).T @ self.x / len(self.x)
            W1, W2 = W1 - LR * self.B @ E, W2 - LR * E @ W1.T
        self.W1, self.W2 = W1, W2
        self.error = self.x @ W1.T @ W2.T - target

    def of_batches(self, examples: NDArray[np.int64]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Gradient and update of each batch, one row of `examples` for each."""
        E = np.swapaxes(self.error[examples], 1, 2) @ self.x[examples] / examples.shape[1]
        outer = E @ self.W1.T
        return {"W1": self.W2.T @ E, "W2": outer}, {"W1": -LR * self.B @ E, "W2": -LR * outer}

    def expected(self) -> steepest.Alignment:
        """Of E[grad] and E[update]: every example once."""
        found: steepest.Alignment = steepest.align(*self.of_batches(np.arange(len(self.x))[None]))
        return found


class Coverage(NamedTuple):
    """Counts of intervals, and of those that hold the target."""

    reliable: int
    covered: int
    unreliable: int
    covered_else: int


def coverage(point: Point, n_samples: int, repeats: int, batch: int = 32) -> Coverage:
    """Repeat the estimate with independent batches."""
    target, rng = point.expected().cosine, np.random.default_rng([n_samples, repeats])
    counts = np.zeros((2, 2), dtype=int)
    for _ in range(repeats):
        found = pairs.stochastic(*point.of_batches(rng.integers(len(point.x), size=(n_samples, batch))))
        low, high = found.interval
        counts[int(found.reliable), int(low <= target <= high)] += 1  # NaN covers nothing
    return Coverage(int(counts[1].sum()), int(counts[1, 1]), int(counts[0].sum()), int(counts[0, 1]))


def share(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--samples", type=int, nargs="+", default=[20, 50, 200])
    parser.add_argument("--steps", type=int, nargs="+", default=[30, 300, 1500])
    options = parser.parse_args()
    print("| step | angle | N | `reliable` | coverage there | `unreliable` | coverage there |")
    print("| ---: | ----: | --: | ---: | ---: | ---: | ---: |")
    for steps in options.steps:
        point = Point(steps)
        angle = point.expected().angle_degrees
        for n in options.samples:
            c = coverage(point, n, options.repeats)
            print(
                f"| {steps} | {angle:.1f} | {n} | {c.reliable} | {share(c.covered, c.reliable)} "
                f"| {c.unreliable} | {share(c.covered_else, c.unreliable)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
