"""Eight learning rules on MNIST, each tracked with one added line, side by side in one report.

    python docs/gallery/optimisers_on_mnist.py --data DIR       # DIR holds the four IDX files of MNIST, plain or .gz
    python docs/gallery/optimisers_on_mnist.py                  # scikit-learn's small digits instead

A network 784-128-10 with ReLU learns for one epoch in batches of 128 with SGD, momentum, Adam, AdamW, RMSprop and
LBFGS, and with feedback alignment, which is a PyTorch module with its own backward. Every rule is compared with the
gradient on ONE fixed batch of training images (``evaluate=``), so that the angles of different rules mean the same
thing. SGD is tracked a second time against the gradient that it consumed: 0 degrees by construction, where the fixed
batch shows how far a mini-batch of 128 is from the whole. Needs ``pip install "steepest[torch,experiments,report]"``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

import steepest
import steepest.torch
from steepest.experiments.digits import Digits, load_digits, load_mnist

HIDDEN = 128
BATCH = 128
FIXED_BATCH = 10_000  # images of the batch on which every rule is evaluated
EVERY = 5  # steps


class FeedbackLinear(torch.autograd.Function):
    """A linear map whose backward pass sends the error through a fixed matrix instead of the transposed weights."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, feedback: torch.Tensor) -> Any:
        ctx.save_for_backward(x, feedback)
        return torch.nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *errors: torch.Tensor) -> Any:
        (error,) = errors
        x, feedback = ctx.saved_tensors
        return error @ feedback, error.T @ x, error.sum(0), None


class Network(torch.nn.Module):
    """784-128-10 with ReLU; with `feedback`, the output error reaches the hidden layer through a random matrix."""

    def __init__(self, n_inputs: int, feedback: bool = False) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(n_inputs, HIDDEN)
        self.output = torch.nn.Linear(HIDDEN, 10)
        self.register_buffer("B", torch.randn(10, HIDDEN) / HIDDEN**0.5)
        self.feedback = feedback

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.hidden(x))
        if not self.feedback:
            return self.output(h)
        return FeedbackLinear.apply(h, self.output.weight, self.output.bias, self.B)


Optimiser = Callable[[Any], torch.optim.Optimizer]
RULES: dict[str, Optimiser] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=5e-4),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.2, max_iter=4, history_size=10),
    "feedback alignment": lambda p: torch.optim.SGD(p, lr=0.1),
}


def batches(images: torch.Tensor, labels: torch.Tensor, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One epoch in random order."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    for rows in order.split(BATCH):
        yield images[rows], labels[rows]


def train(name: str, digits: Digits) -> tuple[dict[str, steepest.Recording], float]:
    """One epoch of one rule; its recordings, and its accuracy on the test images."""
    torch.manual_seed(0)
    images, test_images = (torch.from_numpy(x.astype(np.float32)) for x in (digits.train_images, digits.test_images))
    labels, test_labels = (torch.from_numpy(x.astype(np.int64)) for x in (digits.train_labels, digits.test_labels))
    model = Network(images.shape[1], feedback=name == "feedback alignment")
    reference = Network(images.shape[1])  # the same weights with the true backward pass
    reference.hidden, reference.output = model.hidden, model.output
    optimiser = RULES[name](model.parameters())
    loss_of = torch.nn.functional.cross_entropy

    def on_fixed_batch() -> torch.Tensor:
        return loss_of(reference(images[:FIXED_BATCH]), labels[:FIXED_BATCH])

    with ExitStack() as stack:
        trackers = {
            name: stack.enter_context(
                steepest.torch.track(optimiser, model, evaluate=on_fixed_batch, every=EVERY, lag=0)
            )
        }
        if name == "SGD":
            trackers["SGD, own gradient"] = stack.enter_context(steepest.torch.track(optimiser, model, every=EVERY))
        for x, y in batches(images, labels, seed=1):

            def closure(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
                optimiser.zero_grad()
                loss = loss_of(model(x), y)
                loss.backward()  # type: ignore[no-untyped-call]
                return loss

            optimiser.step(closure)
    with torch.no_grad():
        accuracy = float((model(test_images).argmax(1) == test_labels).float().mean())
    return {label: tracker.recording() for label, tracker in trackers.items()}, accuracy


def draw(analysis: steepest.Analysis, path: Path) -> None:
    """The angle of every rule to the fixed batch at equal loss, and SGD against both gradients."""
    import matplotlib
    from matplotlib.figure import Figure

    from steepest.plot.style import STYLE

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        at_equal_loss, both_ways = figure.subplots(1, 2)
        rules = [name for name in analysis.runs if name != "SGD, own gradient"]
        analysis.plot.angle(at_equal_loss, x="loss", runs=rules, max_points=10, band="quartiles")
        at_equal_loss.legend(
            loc="lower left", ncols=3, fontsize=6, columnspacing=1.0, handlelength=2.4, labelspacing=0.3
        )
        analysis.plot.angle(both_ways, runs=("SGD", "SGD, own gradient"))
        at_equal_loss.set_title("against the gradient of a fixed batch", loc="left")
        both_ways.set_title("SGD, against both gradients", loc="left")
        figure.savefig(path, dpi=200)


def main() -> None:
    """Train, analyse, draw, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the four IDX files of MNIST")
    parser.add_argument("--out", type=Path, default=Path("results"))
    args = parser.parse_args()
    digits = load_digits(rng=0) if args.data is None else load_mnist(args.data)
    runs: dict[str, steepest.Recording] = {}
    for name in RULES:
        begin = time.perf_counter()
        recordings, accuracy = train(name, digits)
        runs |= recordings
        print(f"{name:20s} test accuracy {100 * accuracy:.2f}%, {time.perf_counter() - begin:.1f} s")
    analysis = steepest.analyze(runs)
    args.out.mkdir(parents=True, exist_ok=True)
    analysis.report(args.out / "optimisers.html", title=f"Learning rules on {digits.name}")
    draw(analysis, args.out / "optimisers.png")
    print(analysis)
    print(f"Written: {args.out / 'optimisers.html'}, {args.out / 'optimisers.png'}")


if __name__ == "__main__":
    main()
