"""Learning rules that no training framework knows, side by side in one report.

    python docs/gallery/rules_of_many_kinds.py

Adam of optax on handwritten digits, compiled by JAX and run by ``lax.scan``; Oja's rule, asked for three objectives of
which it might be the descent; an evolution strategy, whose gradient is an estimate with an error; and learning in
context: the hidden state of a linear-attention transformer, whose steps are its layers. Each leaves a recording; the
rest is one path. Needs ``pip install "steepest[experiments,report,jax]"``.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np

import steepest
from steepest.experiments import evolution, in_context, oja, optax_digits
from steepest.experiments.digits import load_digits


def recordings(seed: int) -> dict[str, steepest.Recording]:
    """One for each rule; what its numbers mean is printed."""
    digits = load_digits(rng=seed)
    found: dict[str, steepest.Recording] = {}

    adam = optax_digits.run(digits, n_steps=200, seed=seed)
    assert isinstance(adam, optax_digits.OptaxDigits)
    found["Adam (optax, lax.scan)"] = adam.recording
    print(f"Adam: {100 * adam.accuracy:.1f}% of the test digits after 200 full-batch steps")

    centred = digits.train_images.astype(np.float64) - digits.train_images.mean(axis=0, dtype=np.float64)
    hebbian = oja.run(centred, rng=seed)
    found["Oja"] = hebbian.recording
    print(f"Oja: overlap with the first principal component {hebbian.overlap[0]:.3f} to {hebbian.overlap[-1]:.3f}")

    problem = evolution.SoftmaxRegression(digits.train_images, digits.train_labels)
    strategy = evolution.run(problem, rng=seed)
    found["evolution strategy, its estimate"] = strategy.estimated
    found["evolution strategy, exact gradient"] = strategy.true
    angle = np.degrees(np.nanmedian(strategy.true.angle[:, 0]))
    print(
        f"Evolution strategy: {angle:.1f} degrees from the exact gradient; the population's own standard error of "
        f"{100 * float(np.median(strategy.relative_error)):.0f}% says "
        f"{math.degrees(np.median(strategy.expected_angle)):.1f}"
    )

    rng = np.random.default_rng(seed)
    prompts = [in_context.draw_prompt(10, 80, rng=rng) for _ in range(20)]
    x = prompts[0].x
    largest = float(np.linalg.eigvalsh(x.T @ x / len(x))[-1])
    for name, rate, curvature in (("descent", 1.0, 0.0), ("preconditioned", 1.5, 0.3)):
        learned = in_context.run(prompts[0], 8, rate=rate / largest, curvature=curvature / largest)
        found[f"in context, {name}"] = learned.recording
        angles, loss = np.degrees(learned.recording.angle[:-1, 0]), learned.recording.loss
        psi = f"{angles.min():.1f} to {angles.max():.1f} degrees"
        print(f"In context, {name}: 8 layers, loss {loss[0]:.3f} to {loss[-1]:.3f}, psi {psi}")
    trained = in_context.run(prompts[0], 8, **dict(zip(("rate", "curvature"), in_context.fit(prompts, 8), strict=True)))
    window = steepest.analyze(trained.recording)["run"].effectiveness(longest=8).least_window
    print(
        f"In context, trained for the last layer alone: loss {trained.recording.loss.max():.3g} on the way to "
        f"{trained.recording.loss[-1]:.4f}: effective over windows of {window} layers, not from layer to layer"
    )
    return found


def main() -> None:
    """Run the rules, analyse, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    begin = time.perf_counter()
    analysis = steepest.analyze(recordings(args.seed))
    args.out.mkdir(parents=True, exist_ok=True)
    analysis.report(args.out / "rules.html", title="Learning rules of many kinds")
    print(analysis)
    print(f"Written: {args.out / 'rules.html'}, {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
