"""The table of the linear dynamics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from steepest.cli.output import Table
from steepest.cli.reproduced.experiment import Options

if TYPE_CHECKING:
    from steepest.experiments.lti import LTI

__all__ = ["run"]

_LARGE_SYSTEM = 100  # states of the second linear system, which enters the table only


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
    out, seed, quick = options.out, options.seed, options.quick
    from steepest.experiments import lti
    from steepest.experiments.output import write_figure

    rng = np.random.default_rng(seed)
    n_steps = 100 if quick else 400
    result = lti.run(n_steps=n_steps)
    large = lti.run(lti.random_system(_LARGE_SYSTEM, rng=rng), n_steps=n_steps, rng=rng)
    curves = lti.eigenvalue_curves()
    written = lti.write(result, curves, out)
    written += write_figure(lti.figure(result, curves), out / "lti")
    written += write_figure(lti.geometry_figure(result), out / "geometry")

    return written, Table(
        "Linear dynamics: theta' = A theta as natural gradient descent on theta^T P theta / 2, eq (21)",
        (
            "states",
            "steps",
            "loss, first to last",
            "psi (deg)",
            "cond",
            "largest |M^-1 y - A theta|/|A theta|",
        ),
        [_lti_row(result), _lti_row(large)],
    )


def _lti_row(result: LTI) -> tuple[str, ...]:
    degrees = np.degrees(result.angle)
    return (
        str(len(result.A)),
        str(len(result.time)),
        f"{result.loss[0]:.3g} to {result.loss[-1]:.3g}",
        f"{degrees.min():.1f} to {degrees.max():.1f}",
        f"{result.cond.min():.3g} to {result.cond.max():.3g}",
        f"{result.residual.max():.1e}",
    )
