"""Drawing what every course over steps shares: curves with their spread, marks, the axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from steepest.plot.series import Axis, Curve, Marks, Selected, axis_values, logarithmic
from steepest.plot.style import MARKS, import_matplotlib, line_style, put_legend, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["axis_label", "draw_curves", "draw_marks", "finish"]

_SECONDS_SINCE_1970 = 1e8  # a time larger than this is a clock's


def draw_curves(ax: Axes, drawn: Sequence[Curve], *, named: bool | None = None) -> None:
    """Draw curves, with the range of the rows that a point stands for shaded.

    Parameters
    ----------
    ax : Axes
        Where.
    drawn : sequence of Curve
        What.
    named : bool, optional
        Whether they enter the legend; by default if there are several.
    """
    named = len(drawn) > 1 if named is None else named
    for position, curve in enumerate(drawn):
        style = line_style(position)
        if np.any(curve.rows > 1):
            ax.fill_between(curve.x, curve.low, curve.high, color=style["color"], alpha=0.2, linewidth=0)
        if curve.connected:
            marker = {"marker": "."} if np.isfinite(curve.value).sum() == 1 else {}
        else:
            sign = "osD^vP"[position % 6]
            marker, style = {"marker": sign, "markersize": "1.6"}, {"color": style["color"], "linestyle": "none"}
        ax.plot(curve.x, curve.value, label=curve.label if named else "_", **style, **cast("Any", marker))


def draw_marks(ax: Axes, marks: Sequence[Marks], runs: Sequence[str]) -> None:
    """Draw the marks, each status with its sign, and count its steps (of all runs together) in the legend.

    Of one run they lie on its curve, or at the lower edge; of several runs each has its own line at the upper edge,
    in the colour of its curve.

    Parameters
    ----------
    ax : Axes
        Where.
    marks : sequence of Marks
        What.
    runs : sequence of str
        Names of the runs, in the order of their curves.
    """
    lanes = list(dict.fromkeys(mark.run for mark in marks)) if len(runs) > 1 else []
    edge = ax.get_xaxis_transform()  # x as drawn, y from 0 at the lower edge of the axes to 1
    counted: dict[str, int] = {}
    for mark in marks:
        counted[mark.status] = counted.get(mark.status, 0) + mark.steps
        sign, colour = MARKS.get(mark.status, MARKS["skipped"])
        if lanes:
            colour, height = line_style(runs.index(mark.run))["color"], 0.98 - 0.045 * lanes.index(mark.run)
            _scatter(ax, mark.x, np.full(len(mark.x), height), mark.share, sign, colour, transform=edge)
            continue
        known = np.isfinite(mark.y)
        _scatter(ax, mark.x[known], mark.y[known], mark.share[known], sign, colour)
        _scatter(ax, mark.x[~known], np.full(np.sum(~known), 0.02), mark.share[~known], sign, colour, transform=edge)
    for status, steps in counted.items():
        sign, colour = MARKS.get(status, MARKS["skipped"])
        label = f"{status.replace('_', ' ')} ({steps} step{'s' * (steps != 1)})"
        colour = MARKS["skipped"][1] if lanes else colour
        ax.plot([], [], label=label, linestyle="none", marker=sign, markersize=4, color=colour)


def _scatter(ax: Axes, x: Any, y: Any, share: Any, sign: str, colour: str, **options: Any) -> None:
    if len(x):
        colours = import_matplotlib().colors.to_rgba_array([colour] * len(x), np.clip(share, 0.3, 1.0))
        width = 0.7 if sign in "|_1" else 0.0
        ax.scatter(x, y, s=12.0, marker=cast("Any", sign), c=colours, linewidths=width, zorder=4, **options)


def finish(ax: Axes, selected: Sequence[Selected], x: Axis, *, legend: bool = True) -> None:
    """Name the axis, let the loss fall from left to right, and put the legend.

    Parameters
    ----------
    ax : Axes
        Where.
    selected : sequence of Selected
        What is drawn.
    x : {'step', 'loss', 'time'}
        The axis.
    legend : bool
        Whether a legend is drawn if anything has a name.
    """
    tidy(ax)
    ax.set_xlabel(axis_label(selected, x))
    if x == "loss":
        if any(logarithmic(axis_values(item.analysis, x)) for item in selected):
            ax.set_xscale("log")
        if not ax.xaxis_inverted():
            ax.invert_xaxis()
    if legend:
        put_legend(ax)


def axis_label(selected: Sequence[Selected], x: Axis) -> str:
    """Name of an axis.

    Parameters
    ----------
    selected : sequence of Selected
        What is drawn.
    x : {'step', 'loss', 'time'}
        The axis.

    Returns
    -------
    str
        With the unit where it is known.
    """
    if x == "step":
        return "step"
    if x == "loss":
        return "loss (falls to the right)"
    clock = all(np.any(item.analysis["time"] > _SECONDS_SINCE_1970) for item in selected)
    return "time since the first step (s)" if clock else "time"
