"""The table of feedback alignment."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from steepest.cli.output import Table
from steepest.cli.reproduced.experiment import Options

if TYPE_CHECKING:
    from steepest.experiments.feedback_alignment import FeedbackAlignment

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
    from steepest.experiments import feedback_alignment
    from steepest.experiments.digits import load_digits, load_mnist
    from steepest.experiments.output import write_figure

    rng = np.random.default_rng(seed)
    digits = load_digits(rng=rng) if data is None else load_mnist(data)
    result = feedback_alignment.run(digits, step_fraction=0.1 if quick else 1.0, rng=rng, progress=progress)
    written = feedback_alignment.write(result, out)
    written += write_figure(feedback_alignment.figure(result), out / "feedback_alignment")

    return written, Table(
        f"Feedback alignment: linear network {result.n_inputs}-{result.n_hidden}-10 on {result.dataset} "
        f"({result.n_train} training, {result.n_test} test images), full-batch gradients; "
        f"least squares reaches {100 * result.least_squares_accuracy:.2f}%",
        (
            "loss",
            "rule",
            "training loss",
            "test",
            "psi",
            "psi W1",
            "psi W2",
            "cond",
            "no metric",
            "W2^T from B",
        ),
        _feedback_alignment_rows(result),
        "psi, psi W1, psi W2, W2^T from B: degrees, first and last step; no metric: steps, all weights",
    )


def _feedback_alignment_rows(result: FeedbackAlignment) -> list[tuple[str, ...]]:
    def ends(radians: np.ndarray[tuple[int], np.dtype[np.float64]]) -> str:
        return f"{math.degrees(radians[0]):.1f} to {math.degrees(radians[-1]):.1f}"

    return [
        (
            training.loss_name,
            training.rule,
            f"{training.loss[0]:.4f} to {training.final_loss:.4f}",
            f"{100 * training.final_accuracy:.2f}%",
            ends(training.angle),
            ends(training.angle_w1),
            ends(training.angle_w2),
            f"{training.cond[0]:.3g} to {training.cond[-1]:.3g}",
            f"{training.n_without_metric} of {len(training.step)}",
            ends(training.feedback_angle),
        )
        for training in result.trainings
    ]
