"""The table of geometries of rules."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from steepest.cli.output import Table
from steepest.cli.reproduced.experiment import Options

if TYPE_CHECKING:
    from steepest.experiments.geometry import RuleGeometry

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
    from steepest.experiments import geometry, geometry_figures
    from steepest.experiments.digits import load_digits, load_mnist
    from steepest.experiments.output import write_figure

    digits = load_digits(rng=np.random.default_rng(seed)) if data is None else load_mnist(data)
    result = geometry.run(digits, seed=seed, n_seeds=1 if quick else 6, progress=progress)
    written = geometry.write(result, out)
    written += write_figure(geometry_figures.figure(result), out / "geometry_rules")
    written += write_figure(geometry_figures.checks_figure(result), out / "geometry_checks")

    return written, Table(
        f"Which geometry is the rule using? Held-out R2 of one constant metric, {result.n_inputs}-{result.n_hidden}-10 "
        f"linear network on {result.dataset}, median (lowest to highest) of {len(result.seeds)} seeds",
        ("rule", "batch", "gradient", *geometry.FAMILIES, "ceiling"),
        _geometry_rows(result),
        f"{geometry_figures.caption(result)}\n{geometry_figures.checks_caption(result)}",
    )


def _geometry_rows(result: RuleGeometry) -> list[tuple[str, ...]]:
    from steepest.experiments.geometry_figures import SHOWN, maps, scores

    rows = []
    for batch, against, _ in maps(result):
        median, lowest, highest, ceiling = scores(result, batch, against)
        for i, rule in enumerate(SHOWN):
            # + 0.0: no minus before a zero
            rounded = (np.round(x[i], 2) + 0.0 for x in (median, lowest, highest))
            cells = [f"{m:.2f} ({a:.2f} to {b:.2f})" for m, a, b in zip(*rounded, strict=True)]
            limit = "" if math.isnan(ceiling[i]) else f"{ceiling[i]:.2f}"
            rows.append((rule, "all" if batch is None else str(batch), against, *cells, limit))
    return rows
