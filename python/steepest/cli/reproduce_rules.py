"""``steepest reproduce --only continual`` and ``--only ballistic``: learning rules on handwritten digits."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from steepest.cli.output import Table

__all__ = ["run_ballistic", "run_continual"]

Progress = Callable[[str, int, int], None]


def run_continual(out: Path, seed: int, quick: bool, progress: Progress) -> tuple[list[Path], Table]:
    """The reset rule on tasks that switch.

    Parameters
    ----------
    out : Path
        Folder for the results.
    seed : int
        Of every random draw.
    quick : bool
        Fewer streams, and fewer steps.
    progress : callable
        Called as ``progress(text, done, total)``.

    Returns
    -------
    paths : list of Path
        What was written.
    table : Table
        A row for each policy.
    """
    from steepest.experiments import continual
    from steepest.experiments.digits import load_digits
    from steepest.experiments.output import write_figure

    rng = np.random.default_rng(seed)
    digits = load_digits(rng=rng)
    if quick:
        result = continual.run(digits, n_streams=12, n_network_streams=3, step_fraction=0.2, rng=rng, progress=progress)
    else:
        result = continual.run(digits, rng=rng, progress=progress)
    written = continual.write(result, out)
    written += write_figure(continual.figure(result), out / "continual")

    def cell(samples: dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]], policy: str) -> str:
        found = continual.Interval.of(samples[policy])
        return f"{found.mean:.3f} ± {found.high - found.mean:.3f}"

    linear, network = result.linear, result.network
    return written, Table(
        f"Tasks that switch: {result.dataset} with labels permuted anew at each switch",
        ("policy", "linear: cost", "excess loss", "correct", "ReLU network: loss", "correct", "rate"),
        [
            (
                policy,
                cell(linear.cost, policy),
                cell(linear.loss, policy),
                cell(linear.accuracy, policy),
                cell(network.loss, policy),
                cell(network.accuracy, policy),
                f"{network.rate[policy]:g}",
            )
            for policy in continual.POLICIES
        ],
        f"mean ± half a 95% interval over {len(linear.cost['no reset'])} and {len(network.loss['no reset'])} streams, "
        "the same for every policy; cost: of moving and of loss, discounted, which the derived rule is derived for",
    )


def run_ballistic(out: Path, data: Path | None, seed: int, quick: bool, progress: Progress) -> tuple[list[Path], Table]:
    """SGD, Adam and ballistic, tracked.

    Parameters
    ----------
    out : Path
        Folder for the results.
    data : Path, optional
        Folder with the MNIST files; default the 8x8 digits, for as many steps as they give in 40 epochs.
    seed : int
        Of every random draw.
    quick : bool
        Fewer images and epochs.
    progress : callable
        Called as ``progress(text, done, total)``.

    Returns
    -------
    paths : list of Path
        What was written.
    table : Table
        A row for each rule.
    """
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
