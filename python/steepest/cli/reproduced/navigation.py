"""The table of rules derived by optimal control."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from steepest.cli.output import Table
from steepest.cli.reproduced.experiment import Options

if TYPE_CHECKING:
    from steepest.experiments.navigation import Course

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
    out, data, seed, quick = options.out, options.data, options.seed, options.quick
    from steepest.experiments import navigation, navigation_figures
    from steepest.experiments.output import write_figure

    rng = np.random.default_rng(seed)
    result = navigation.run(50 if quick else 200, rng=rng)
    training, trained = None, ""
    if data is not None and importlib.util.find_spec("torch") is not None:  # panel e of the quadratics, from networks
        from steepest.experiments import ballistic
        from steepest.experiments.digits import load_mnist

        found = ballistic.run(load_mnist(data), epochs=1, rng=rng, progress=options.progress)
        training = {one.rule: (one.evaluated.step, one.evaluated["loss"]) for one in found.trainings}
        trained = (
            f"Panel e: {'-'.join(map(str, found.layers))} ReLU network on {found.dataset}, {found.epochs} epoch of "
            f"mini-batches of {found.batch}, loss of {found.n_evaluation} images; the paper trains for 10 epochs."
        )
    written = navigation.write(result, out)
    for name in ("wells", "geometry_and_drift", "metrics"):
        written += write_figure(getattr(navigation_figures, name)(result), out / f"navigation_{name}")
    quadratics = navigation_figures.quadratics(result, training, trained)
    written += write_figure(quadratics, out / "navigation_quadratics")
    return written, Table(
        f"Optimal navigation: learning rules that minimise effort and loss together. Double well: {result.status}",
        ("problem", "rule or path", "J", "psi (deg)", "least cond", "own cond M", "M to optimum"),
        [_navigation_row(group, course) for group, courses in result.groups.items() for course in courses],
        f"the path that has to end at (1.0625, 0) has J = {result.fixed_end_action:.6f}; own cond M: of the constant "
        "metric of the rule, where it has one; M to optimum: affine-invariant distance to the condition-optimal metric",
    )


def _navigation_row(group: str, course: Course) -> tuple[str, ...]:
    def span(values: np.ndarray[tuple[int], np.dtype[np.float64]], form: str) -> str:
        finite = values[np.isfinite(values)]
        return "" if finite.size == 0 else f"{finite.min():{form}} to {finite.max():{form}}"

    return (
        group,
        course.name,
        f"{course.action:.6f}" if math.isfinite(course.action) else "infinite",
        span(np.degrees(course.angle), ".1f"),
        span(course.cond, ".3g"),
        f"{course.own_cond:.3g}" if math.isfinite(course.own_cond) else "",
        span(course.distance, ".2f"),
    )
