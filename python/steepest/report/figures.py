"""The figures of a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from steepest import plot
from steepest.plot.series import ALL, shortened
from steepest.report.facts import affordable
from steepest.report.svg import draw_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from steepest.analysis import RunAnalysis

__all__ = ["Picture", "block_picture", "overview", "run_pictures"]

_CAPTION = {
    "loss": "Loss. A sign stands where steps are not ok, paler where they are few: the legend says what it is, and how "
    "many steps it was. Of several runs the signs stand at the top, in the colour of the run.",
    "angle": "Angle between the update and steepest descent. At 0° the rule is gradient descent; above 90° the step "
    "goes uphill. Lines of long runs are medians of consecutive steps, shaded by their spread. The grey band is where "
    "95% of random updates would lie. A dotted line, where there is one, is the angle below which rounding of the "
    "parameters hides it.",
    "angle-loss": "The same angles at equal loss, which falls to the right: rules that learn at different speeds are "
    "compared at the same stage of learning.",
    "cond": "Least condition number of a metric that explains the step: how unequally it must weigh the directions. It "
    "is the angle on another scale.",
    "speed": "How far the metric moves from one step to the next. A rule that descends in one constant geometry would "
    "stay at 0.",
    "geometry": "The geometry at a few steps, in the plane of gradient and update: the unit ball of the metric. The "
    "arrow at −grad is steepest descent, the coloured ones are the updates. A circle is gradient descent, a needle is "
    "far from it.",
    "blocks": "The angle of every block. Dark is gradient descent, bright is far from it, red goes uphill, grey has no "
    "angle; a dot marks parts of the run in which some steps are not ok.",
}


@dataclass(frozen=True)
class Picture:
    """A figure of the page."""

    svg: str
    alt: str
    caption: str


@dataclass(frozen=True)
class _Source:
    """What the figures need of an Analysis."""

    runs: dict[str, RunAnalysis]


def overview(runs: Mapping[str, RunAnalysis], max_points: int) -> list[Picture]:
    """The figures in which the runs lie side by side.

    Parameters
    ----------
    runs : mapping
        Name -> analysis.
    max_points : int
        Of the curve of a single run.

    Returns
    -------
    list of Picture
        Those that the data can give.
    """
    source: Any = _Source(dict(runs))
    # Several curves in one picture: medians of more steps, and the middle half of them, or nothing can be seen.
    look: dict[str, Any] = {"max_points": max_points}
    if len(runs) > 1:
        look = {"max_points": min(max_points, 60), "band": "quartiles"}
    names = ", ".join(list(runs)[:12])
    drawn: list[tuple[str, Callable[[Axes], object], str]] = []
    if _known(runs, "loss"):
        drawn.append(("loss", partial(plot.loss, source, **look), "Loss over steps"))
    if _known(runs, "psi"):
        drawn.append(("angle", partial(plot.angle, source, **look), "Angle over steps"))
        if len(runs) > 1 and all(np.isfinite(run["loss"]).any() for run in runs.values()):
            draw = partial(plot.angle, source, x="loss", **look)
            drawn.append(("angle-loss", draw, "Angle at equal loss"))
        drawn.append(("cond", partial(plot.cond, source, **look), "Condition number over steps"))
    if all(affordable(run) for run in runs.values()) and _known(runs, "distance"):
        drawn.append(("speed", partial(plot.speed, source, **look), "Speed of the metric over steps"))
    height = 3.1 + 0.14 * (len(runs) if len(runs) > 3 else 1)
    return [
        Picture(draw_svg(draw, f"all-{key}", 4.4, height), f"{alt} of {names}", _CAPTION[key])
        for key, draw, alt in drawn
    ]


def _known(runs: Mapping[str, RunAnalysis], name: str) -> bool:
    return any(bool(np.isfinite(run[name]).any()) for run in runs.values())


def run_pictures(run: RunAnalysis, prefix: str) -> list[Picture]:
    """The figures of one run.

    Parameters
    ----------
    run : RunAnalysis
        Of the run.
    prefix : str
        Of the ids in them.

    Returns
    -------
    list of Picture
        Those that the data can give.
    """
    pictures = []
    if np.any(run["status"][:, run.blocks.index(ALL)] == "ok"):
        svg = draw_svg(partial(plot.geometry_over_steps, run), f"{prefix}-geometry", 3.8, 3.4)
        pictures.append(Picture(svg, f"Geometry of {run.name} at several steps", _CAPTION["geometry"]))
    if len(run.blocks) > 2 and np.isfinite(run["psi"]).any():
        svg = draw_svg(partial(plot.blocks, run), f"{prefix}-blocks", 4.4, 1.3 + 0.16 * min(len(run.blocks), 40))
        pictures.append(Picture(svg, f"Angle of every block of {run.name}", _CAPTION["blocks"]))
    return pictures


def block_picture(run: RunAnalysis, block: str, prefix: str, max_points: int) -> Picture:
    """The figure of one block.

    Parameters
    ----------
    run : RunAnalysis
        Of the run.
    block : str
        Its name.
    prefix : str
        Of the ids in it.
    max_points : int
        Of the curve.

    Returns
    -------
    Picture
        Without caption.
    """
    draw = partial(plot.angle, run, blocks=block, max_points=max_points)
    return Picture(draw_svg(draw, prefix, 4.4, 2.8), f"Angle of block {shortened(block)} over steps", "")
