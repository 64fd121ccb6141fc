"""Condition number, speed of the metric, and loss over the course of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from steepest.plot.draw import draw_curves, draw_marks, finish
from steepest.plot.series import (
    ALL,
    MAX_POINTS,
    Axis,
    Band,
    Curve,
    Marks,
    curves,
    logarithmic,
    marks_of,
    select,
)
from steepest.plot.style import GREY, STYLE, VERMILION, import_matplotlib, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from steepest.plot.series import Source

__all__ = ["CondData", "LossData", "SpeedData", "cond", "cond_data", "loss", "loss_data", "speed", "speed_data"]

What = Literal["parts", "distance", "path_length"]
_SPEED_LABEL = {
    "parts": "distance to the previous metric",
    "distance": "distance to the previous metric",
    "path_length": "path length of the metric",
}


@dataclass(frozen=True)
class CondData:
    """The curves of :func:`cond`.

    Attributes
    ----------
    x : str
        The axis: step, loss or time.
    cond : tuple of Curve
        Least condition number of each run and block, eq (9).
    """

    x: Axis
    cond: tuple[Curve, ...]

    def to_dict(self) -> dict[str, Any]:
        """Fields as a dictionary, arrays as they are."""
        return asdict(self)


def cond_data(
    source: Source,
    *,
    x: Axis = "step",
    runs: Sequence[str] | None = None,
    blocks: Sequence[str] | str | None = (ALL,),
    max_points: int = MAX_POINTS,
    band: Band = "range",
) -> CondData:
    """What :func:`cond` draws.

    Parameters
    ----------
    source : Analysis or RunAnalysis
        What `steepest.analyze` returned.
    x : {'step', 'loss', 'time'}
        Over what.
    runs, blocks : sequence of str, optional
        By name; all runs, and the whole vector, by default. ``blocks=None`` takes every block.
    max_points : int
        Longer runs are drawn as medians of consecutive rows.
    band : {'range', 'quartiles'}
        What is shaded of such a run: all of its values, or the middle half of them.

    Returns
    -------
    CondData
        Steps without a metric are NaN.

    Raises
    ------
    ValueError
        No such run, block, axis or band.
    """
    return CondData(x, curves(select(source, runs, blocks), "cond_min", x, max_points, band))


def cond(
    source: Source,
    ax: Axes | None = None,
    *,
    x: Axis = "step",
    runs: Sequence[str] | None = None,
    blocks: Sequence[str] | str | None = (ALL,),
    max_points: int = MAX_POINTS,
    band: Band = "range",
) -> Axes:
    """Draw the least condition number that a metric of each step can have; 1 is gradient descent.

    It is a function of the angle, ``(1 + sin psi)/(1 - sin psi)`` (paper, eq 9): another scale for the same evidence.

    Parameters
    ----------
    source : Analysis or RunAnalysis
        What `steepest.analyze` returned.
    ax : Axes, optional
        Where; a new pyplot figure by default.
    x : {'step', 'loss', 'time'}
        Over what.
    runs, blocks : sequence of str, optional
        By name; all runs, and the whole vector, by default. ``blocks=None`` takes every block.
    max_points : int
        Longer runs are drawn as medians of consecutive rows, shaded by their spread.
    band : {'range', 'quartiles'}
        What is shaded of such a run: all of its values, or the middle half of them.

    Returns
    -------
    Axes
        `ax`.

    Raises
    ------
    ImportError
        matplotlib is not installed: ``pip install "steepest[plot]"``.
    ValueError
        As :func:`cond_data`.
    """
    matplotlib = import_matplotlib()
    data = cond_data(source, x=x, runs=runs, blocks=blocks, max_points=max_points, band=band)
    with matplotlib.rc_context(STYLE):
        if ax is None:
            ax = new_axes(1, 4.6)[0]
        ax.axhline(1.0, color=GREY, linewidth=0.6)
        draw_curves(ax, data.cond)
        if any(np.nanmax(curve.high) > 1.0 for curve in data.cond if np.isfinite(curve.high).any()):
            ax.set_yscale("log")
        ax.set_ylabel("condition number (least)")
        finish(ax, select(source, runs, blocks), x)
    return ax


@dataclass(frozen=True)
class SpeedData:
    """The curves of :func:`speed`, in natural-logarithm units: a metric doubled everywhere is ``log(2) sqrt(n)`` away.

    Attributes
    ----------
    x : str
        The axis: step, loss or time.
    what : str
        Which curves: parts, distance or path_length.
    bulk, plane : tuple of Curve
        Affine-invariant distance to the metric of the step before, outside and inside the span of the two gradients
        and updates; empty unless `what` is ``parts``.
    total : tuple of Curve
        The distance, or its sum so far.
    """

    x: Axis
    what: What
    bulk: tuple[Curve, ...]
    plane: tuple[Curve, ...]
    total: tuple[Curve, ...]

    def to_dict(self) -> dict[str, Any]:
        """Fields as a dictionary, arrays as they are."""
        return asdict(self)


def speed_data(
    source: Source,
    *,
    what: What | None = None,
    x: Axis = "step",
    runs: Sequence[str] | None = None,
    blocks: Sequence[str] | str | None = (ALL,),
    max_points: int = MAX_POINTS,
    band: Band = "range",
) -> SpeedData:
    """What :func:`speed` draws.

    Parameters
    ----------
    source : Analysis or RunAnalysis
        What `steepest.analyze` returned.
    what : {'parts', 'distance', 'path_length'}, optional
        Bulk and plane apart (the default for a single curve), the whole distance (the default for several), or its sum
        so far.
    x : {'step', 'loss', 'time'}
        Over what.
    runs, blocks : sequence of str, optional
        By name; all runs, and the whole vector, by default. ``blocks=None`` takes every block.
    max_points : int
        Longer runs are drawn as medians of consecutive rows.
    band : {'range', 'quartiles'}
        What is shaded of such a run: all of its values, or the middle half of them.

    Returns
    -------
    SpeedData
        NaN where the recording has no inner products with the step before (``lag=0``).

    Raises
    ------
    ValueError
        No such run, block, axis, band or `what`.
    """
    selected = select(source, runs, blocks)
    if what is None:
        what = "parts" if len(selected) == 1 else "distance"
    if what not in get_args(What):
        raise ValueError(f"expected what to be one of {', '.join(get_args(What))}, got {what!r}")
    if what == "parts":
        parts = [
            tuple(
                replace(curve, label=f"{curve.label} · {part}" if len(selected) > 1 else part)
                for curve in curves(selected, f"distance_{part}", x, max_points, band)
            )
            for part in ("bulk", "plane")
        ]
        return SpeedData(x, what, parts[0], parts[1], ())
    return SpeedData(x, what, (), (), curves(selected, what, x, max_points, band))


def speed(
    source: Source,
    ax: Axes | None = None,
    *,
    what: What | None = None,
    x: Axis = "step",
    runs: Sequence[str] | None = None,
    blocks: Sequence[str] | str | None = (ALL,),
    max_points: int = MAX_POINTS,
    band: Band = "range",
) -> Axes:
    """Draw how far the metric moves from each step to the next.

    A rule that descends in one constant geometry does not move; what moves in the bulk is the scale of the metric (a
    learning rate, say), what moves in the plane is its shape along gradient and update.

    Parameters
    ----------
    source : Analysis or RunAnalysis
        What `steepest.analyze` returned, of recordings with ``lag=1`` or more.
    ax : Axes, optional
        Where; a new pyplot figure by default.
    what : {'parts', 'distance', 'path_length'}, optional
        See :func:`speed_data`.
    x : {'step', 'loss', 'time'}
        Over what.
    runs, blocks : sequence of str, optional
        By name; all runs, and the whole vector, by default. ``blocks=None`` takes every block.
    max_points : int
        Longer runs are drawn as medians of consecutive rows, shaded by their spread.
    band : {'range', 'quartiles'}
        What is shaded of such a run: all of its values, or the middle half of them.

    Returns
    -------
    Axes
        `ax`; it says so where no distance is known.

    Raises
    ------
    ImportError
        matplotlib is not installed: ``pip install "steepest[plot]"``.
    ValueError
        As :func:`speed_data`.
    """
    matplotlib = import_matplotlib()
    data = speed_data(source, what=what, x=x, runs=runs, blocks=blocks, max_points=max_points, band=band)
    with matplotlib.rc_context(STYLE):
        if ax is None:
            ax = new_axes(1, 4.6)[0]
        drawn = [curve for pair in zip(data.bulk, data.plane, strict=True) for curve in pair] + list(data.total)
        draw_curves(ax, drawn)
        known = [curve.high[np.isfinite(curve.high)] for curve in drawn]
        positive = np.concatenate([*known, np.empty(0)])
        if not len(positive):
            ax.text(
                0.5, 0.5, "not known: record with lag=1", transform=ax.transAxes, ha="center", va="center", color=GREY
            )
        elif data.what != "path_length" and positive.max() > 100.0 * max(np.median(positive), 1e-300):
            ax.set_yscale("symlog", linthresh=max(float(np.median(positive)), 1e-12))
        ax.set_ylabel(_SPEED_LABEL[data.what])
        finish(ax, select(source, runs, blocks), x, legend=len(positive) > 0)
    return ax


@dataclass(frozen=True)
class LossData:
    """The curves of :func:`loss`.

    Attributes
    ----------
    x : str
        The axis: step or time.
    loss : tuple of Curve
        One for each run.
    marks : tuple of Marks
        Steps whose status is not ok, of the block that was asked for.
    logarithmic : bool
        Whether the losses are drawn on a logarithmic axis.
    """

    x: Axis
    loss: tuple[Curve, ...]
    marks: tuple[Marks, ...]
    logarithmic: bool

    def to_dict(self) -> dict[str, Any]:
        """Fields as a dictionary, arrays as they are."""
        return asdict(self)


def loss_data(
    source: Source,
    *,
    x: Axis = "step",
    runs: Sequence[str] | None = None,
    block: str = ALL,
    max_points: int = MAX_POINTS,
    band: Band = "range",
) -> LossData:
    """What :func:`loss` draws.

    Parameters
    ----------
    source : Analysis or RunAnalysis
        What `steepest.analyze` returned.
    x : {'step', 'time'}
        Over what.
    runs : sequence of str, optional
        By name; all by default.
    block : str
        Whose statuses are marked.
    max_points : int
        Longer runs are drawn as medians of consecutive rows.
    band : {'range', 'quartiles'}
        What is shaded of such a run: all of its values, or the middle half of them.

    Returns
    -------
    LossData
        Of runs without losses all values are NaN.

    Raises
    ------
    ValueError
        No such run, block, axis or band.
    """
    if x == "loss":
        raise ValueError("expected x to be 'step' or 'time': the loss is what is drawn")
    selected = select(source, runs, block)
    drawn = curves(selected, "loss", x, max_points, band)
    marks = tuple(mark for item in selected for mark in marks_of(item, x, item.analysis["loss"]))
    values = [np.asarray(item.analysis["loss"], dtype=np.float64) for item in selected]
    return LossData(x, drawn, marks, logarithmic(np.concatenate([*values, np.empty(0)])))


def loss(
    source: Source,
    ax: Axes | None = None,
    *,
    x: Axis = "step",
    runs: Sequence[str] | None = None,
    block: str = ALL,
    max_points: int = MAX_POINTS,
    band: Band = "range",
) -> Axes:
    """Draw the loss, with a mark wherever the status of a step is not ok.

    Parameters
    ----------
    source : Analysis or RunAnalysis
        What `steepest.analyze` returned.
    ax : Axes, optional
        Where; a new pyplot figure by default.
    x : {'step', 'time'}
        Over what.
    runs : sequence of str, optional
        By name; all by default.
    block : str
        Whose statuses are marked.
    max_points : int
        Longer runs are drawn as medians of consecutive rows, shaded by their spread; marks stand for parts of the
        axis, and the legend counts the steps.
    band : {'range', 'quartiles'}
        What is shaded of such a run: all of its values, or the middle half of them.

    Returns
    -------
    Axes
        `ax`.

    Raises
    ------
    ImportError
        matplotlib is not installed: ``pip install "steepest[plot]"``.
    ValueError
        As :func:`loss_data`.
    """
    matplotlib = import_matplotlib()
    data = loss_data(source, x=x, runs=runs, block=block, max_points=max_points, band=band)
    with matplotlib.rc_context(STYLE):
        if ax is None:
            ax = new_axes(1, 4.6)[0]
        draw_curves(ax, data.loss)
        if data.logarithmic:
            ax.set_yscale("log")
        if not any(np.isfinite(curve.value).any() for curve in data.loss):
            ax.text(0.5, 0.5, "no loss recorded", transform=ax.transAxes, ha="center", va="center", color=VERMILION)
        draw_marks(ax, data.marks, [curve.run for curve in data.loss])
        ax.set_ylabel("loss")
        finish(ax, select(source, runs, block), x)
    return ax
