"""The table of SGD, Adam and ballistic, tracked."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from steepest.cli.output import Table
from steepest.cli.reproduced.experiment import Options

__all__ = ["run"]


def run(options: Options) -> tuple[list[Path], Table]:
    """Run it; write numbers and figures.

    Parameters
    ----------
    options : Options
        Of the command.

    Returns
    -------
    written : list of Path
        Files.
    table : Table
        For standard output.
    """
    out, data, seed, quick, progress = options.out, options.data, options.seed, options.quick, options.progress
    from steepest.experiments import ballistic
    from steepest.experiments.digits import load_digits, load_mnist
    from steepest.experiments.output import write_figure

    rng = np.random.default_rng(seed)
    digits = load_digits(rng=rng) if data is None else load_mnist(data)
    epochs = (5 if quick else 40) if data is None else (1 if quick else 2)
    result = ballistic.run(digits, epochs=epochs, rng=rng, progress=progress)
    written = ballistic.write(result, out)
    written += write_figure(ballistic.figure(result), out / "ballistic")

    def degrees(course: object) -> str:
        psi = course["psi"][:, 0]  # type: ignore[index] # a RunAnalysis
        return f"{math.degrees(float(np.nanmedian(psi))):.1f}" if np.isfinite(psi).any() else "-"

    def cond(course: object) -> str:
        values = course["cond_min"][:, 0]  # type: ignore[index] # a RunAnalysis
        return f"{float(np.nanmedian(values)):.3g}" if np.isfinite(values).any() else "-"

    return written, Table(
        f"Learning rules on {result.dataset}: {'-'.join(map(str, result.layers))} ReLU network, {result.epochs} epochs "
        f"of mini-batches of {result.batch}",
        ("rule", "rate", "loss", "test", "psi, mini-batch", "cond", "psi, fixed", "cond", "no metric, fixed"),
        [
            (
                training.rule,
                f"{training.rate:g}",
                f"{training.evaluated['loss'][0]:.3f} to {training.evaluated['loss'][-1]:.3f}",
                f"{100 * training.final_accuracy:.2f}%",
                degrees(training.consumed),
                cond(training.consumed),
                degrees(training.evaluated),
                cond(training.evaluated),
                f"{int(np.sum(training.evaluated['status'][:, 0] != 'ok'))} of {len(training.evaluated.step)}",
            )
            for training in result.trainings
        ],
        f"medians over recorded steps; psi in degrees, against the gradient of the step's mini-batch and of "
        f"{result.n_evaluation} fixed images; Vastola et al. (2025) train for 10 epochs",
    )
