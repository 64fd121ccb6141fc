"""The geometry of several steps of one run, one over the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from steepest.plot.geometry import GeometryData, plane_geometry
from steepest.plot.series import ALL, Axis, axis_values, literal, one_run
from steepest.plot.style import GREY, STYLE, import_matplotlib, new_axes, put_legend, shade

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from steepest.plot.series import Source

__all__ = ["GeometryOverStepsData", "geometry_over_steps", "geometry_over_steps_data"]


_REACH = 3.0


@dataclass(frozen=True)
class GeometryOverStepsData:
    """The pictures of :func:`geometry_over_steps`.

    Attributes
    ----------
    run, block : str
        Whose they are.
    x : str
        What the steps are chosen and labelled by: step, loss or time.
    step : tuple of int
        Numbers of the steps.
    place : tuple of float
        Their places on the axis `x`.
    geometry : tuple of GeometryData
        One for each step.
    """

    run: str
    block: str
    x: Axis
    step: tuple[int, ...]
    place: tuple[float, ...]
    geometry: tuple[GeometryData, ...]

    def to_dict(self) -> dict[str, Any]:
        """Fields as a dictionary, arrays as they are."""
        return asdict(self)


def geometry_over_steps_data(
    source: Source,
    *,
    run: str | None = None,
    block: str = ALL,
    x: Axis = "step",
    steps: int | Sequence[int] = 5,
    n_points: int = 181,
) -> GeometryOverStepsData:
    """What :func:`geometry_over_steps` draws.

    Parameters
    ----------
    source : Analysis or RunAnalysis
        What `steepest.analyze` returned.
    run : str, optional
        Which run; needed if there are several.
    block : str
        Which block.
    x : {'step', 'loss', 'time'}
        Along what the steps are evenly spread.
    steps : int or sequence of int
        How many steps, or their numbers.
    n_points : int
        Points on the boundary of each ball.

    Returns
    -------
    GeometryOverStepsData
        Of steps whose status is ok.

    Raises
    ------
    ValueError
        No such run, block or axis; no step has a metric, or one that was asked for has none.
    """
    chosen = one_run(source, run)
    if block not in chosen.blocks:
        raise ValueError(f"expected block among {list(chosen.blocks)[:8]}, got {block!r}")
    column = chosen.blocks.index(block)
    place = axis_values(chosen, x)
    has_metric = (chosen["status"][:, column] == "ok") & np.isfinite(place)
    rows = np.flatnonzero(has_metric)
    if isinstance(steps, Sequence):
        rows = np.searchsorted(chosen.step, steps)
        for wanted, row in zip(steps, rows, strict=True):
            if row == len(chosen.step) or chosen.step[row] != wanted or not has_metric[row]:
                raise ValueError(f"step {wanted} of run {chosen.name!r}, block {block!r}, has no metric to be drawn")
    elif not len(rows):
        raise ValueError(f"no step of run {chosen.name!r}, block {block!r}, has a metric")
    elif len(rows) > steps:
        wanted_places = np.linspace(place[rows[0]], place[rows[-1]], steps)
        nearest = np.abs(place[rows][:, None] - wanted_places).argmin(axis=0)
        rows = rows[np.unique(nearest)]
    cosine, psi = chosen["cos"][:, column], chosen["psi"][:, column]
    pictures = []
    for row in rows:
        c = float(cosine[row])
        pictures.append(plane_geometry(c, math.sin(psi[row]), float(psi[row]), 1.0 / c, 1.0, n_points=n_points))
    return GeometryOverStepsData(
        run=chosen.name,
        block=block,
        x=x,
        step=tuple(int(s) for s in chosen.step[rows]),
        place=tuple(float(p) for p in place[rows]),
        geometry=tuple(pictures),
    )


def geometry_over_steps(
    source: Source,
    ax: Axes | None = None,
    *,
    run: str | None = None,
    block: str = ALL,
    x: Axis = "step",
    steps: int | Sequence[int] = 5,
) -> Axes:
    """Draw the geometry of several steps, one over the other: see :func:`steepest.plot.geometry`.

    Every step has its own plane of gradient and update; they are laid over each other with -grad to the right and the
    update to the upper side. A circle is gradient descent, a needle is close to no descent at all.

    Parameters
    ----------
    source : Analysis or RunAnalysis
        What `steepest.analyze` returned.
    ax : Axes, optional
        Where; a new pyplot figure by default.
    run : str, optional
        Which run; needed if there are several.
    block : str
        Which block.
    x : {'step', 'loss', 'time'}
        Along what the steps are evenly spread, and what they are labelled by.
    steps : int or sequence of int
        How many steps, or their numbers.

    Returns
    -------
    Axes
        `ax`.

    Raises
    ------
    ImportError
        matplotlib is not installed: ``pip install "steepest[plot]"``.
    ValueError
        As :func:`geometry_over_steps_data`.
    """
    matplotlib = import_matplotlib()
    data = geometry_over_steps_data(source, run=run, block=block, x=x, steps=steps)
    with matplotlib.rc_context(STYLE):
        if ax is None:
            ax = new_axes(1)[0]
        arrow = {"arrowstyle": "-|>,head_width=0.15,head_length=0.3", "shrinkA": 0.0, "shrinkB": 0.0}
        count = len(data.geometry)
        for position, (place, picture) in enumerate(zip(data.place, data.geometry, strict=True)):
            order = position / max(count - 1, 1)
            look: dict[str, Any] = {"color": shade(order), "linewidth": 0.9 + 0.5 * order}
            where = f"{place:.0f}" if x == "step" else f"{place:.4g}"
            name = f"{x} {where}, {math.degrees(picture.angle):.3g}°"
            ax.plot(*picture.ball.T, label=name, **look)
            tip = (float(picture.touch[0]), float(picture.touch[1]))
            drawn = ax.annotate("", xy=tip, xytext=(0.0, 0.0), arrowprops={**arrow, **look}, annotation_clip=False)
            if drawn.arrow_patch is not None:
                drawn.arrow_patch.set_clip_path(ax.patch)
        along = {**arrow, "color": "black"}
        ax.annotate("", xy=(1.0, 0.0), xytext=(0.0, 0.0), arrowprops=along, annotation_clip=False)
        ax.annotate(r"$-$grad", (1.0, 0.0), xytext=(3.0, -3.0), textcoords="offset points", va="top")
        ax.plot(0.0, 0.0, "o", color=GREY, markersize=2.5)
        ax.set_aspect("equal")
        # A needle is cut off rather than allowed to shrink everything else.
        reach = min(1.08 * max(float(np.abs(picture.ball[:, 1]).max()) for picture in data.geometry), _REACH)
        ax.set_xlim(-1.15, 1.4)
        ax.set_ylim(-reach, reach)
        ax.set_axis_off()
        ax.set_title(literal(data.run if block == ALL else f"{data.run} · {block}"))
        put_legend(ax, below=True)
    return ax
