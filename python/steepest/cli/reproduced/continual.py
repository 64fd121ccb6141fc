"""The table of tasks that switch."""

from __future__ import annotations

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
    out, seed, quick, progress = options.out, options.seed, options.quick, options.progress
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
