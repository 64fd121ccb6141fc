"""The angle between -grad and update over the course of a run, and what chance and rounding would give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from steepest.plot.draw import draw_curves, draw_marks, finish
from steepest.plot.series import (
    ALL,
    GRADIENT,
    MAX_POINTS,
    Axis,
    Band,
    Curve,
    Marks,
    binned,
    curves,
    marks_of,
    select,
)
from steepest.plot.style import GREY, STYLE, import_matplotlib, line_style, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from steepest.plot.series import Source

__all__ = ["AngleData", "angle", "angle_data"]

_IN_LEGEND = {"rule": "its own gradient", "evaluation": "evaluated gradient", "estimate": "estimated gradient"}
_VISIBLE = 0.2  # degrees: a rounding floor below this is not drawn


@dataclass(frozen=True)
class AngleData:
    """The curves of :func:`angle`, in degrees.

    Attributes
    ----------
    x : str
        The axis: step, loss or time.
    angle : tuple of Curve
        psi of each run and block.
    null_low, null_high : tuple of ndarray
        For each curve the band that holds 95% of the angles of random updates; NaN where it is not known.
    floor : tuple of ndarray
        For each curve the angle below which rounding of the parameters hides it; NaN where it is not known.
    marks : tuple of Marks
        Steps without an angle.
    gradient : tuple of str
        For each curve where the gradient comes from: rule, evaluation, estimate.
    pair : tuple of str
        For each curve what stands for the gradient: continuous (the gradient itself), trapezoid, displacement.
    """

    x: Axis
    angle: tuple[Curve, ...]
    null_low: tuple[NDArray[np.float64], ...]
    null_high: tuple[NDArray[np.float64], ...]
    floor: tuple[NDArray[np.float64], ...]
    marks: tuple[Marks, ...]
    gradient: tuple[str, ...]
    pair: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Fields as a dictionary, arrays as they are."""
        return asdict(self)


def angle_data(
    source: Source,
    *,
    x: Axis = "step",
    runs: Sequence[str] | None = None,
    blocks: Sequence[str] | str | None = (ALL,),
    null: str = "sign_flip",
    max_points: int = MAX_POINTS,
    band: Band = "range",
) -> AngleData:
    """What :func:`angle` draws.

    Parameters
    ----------
    source : Analysis or RunAnalysis
        What `steepest.analyze` returned.
    x : {'step', 'loss', 'time'}
        Over what.
    runs, blocks : sequence of str, optional
        By name; all runs, and the whole vector, by default. ``blocks=None`` takes every block.
    null : {'sign_flip', 'isotropic'}
        What is random about a random update: the signs of its products with the gradient (wider for sparse gradients),
        or its direction, which is also taken where the signs are not known (pairs of finite steps).
    max_points : int
        Longer runs are drawn as medians of consecutive rows.
    band : {'range', 'quartiles'}
        What is shaded of such a run: all of its values, or the middle half of them.

    Returns
    -------
    AngleData
        Degrees.

    Raises
    ------
    ValueError
        No such run, block, axis, null or band.
    """
    if null not in ("sign_flip", "isotropic"):
        raise ValueError(f"expected null to be 'sign_flip' or 'isotropic', got {null!r}")
    selected = select(source, runs, blocks)
    half_widths, floors = [], []
    for item, bins in binned(selected, x, max_points):
        half_width = bins.medians(item.values(f"null_{null}"))
        # The products of a finite-step pair do not give the sign-flip band.
        half_width = np.where(np.isfinite(half_width), half_width, bins.medians(item.values("null_isotropic")))
        half_widths.append(np.degrees(half_width))
        floors.append(np.degrees(bins.medians(item.values("psi_floor"))))
    # An ascent has an angle, which is drawn; marks are for steps without one.
    marks = [mark for item in selected if item.block == ALL for mark in marks_of(item, x, None)]
    return AngleData(
        x=x,
        angle=curves(selected, "psi", x, max_points, band, 180.0 / np.pi),
        null_low=tuple(90.0 - width for width in half_widths),
        null_high=tuple(90.0 + width for width in half_widths),
        floor=tuple(floors),
        marks=tuple(mark for mark in marks if mark.status not in ("ascent", "undecided")),
        gradient=tuple(item.analysis.gradient_source for item in selected),
        pair=tuple(item.analysis.pair for item in selected),
    )


def angle(
    source: Source,
    ax: Axes | None = None,
    *,
    x: Axis = "step",
    runs: Sequence[str] | None = None,
    blocks: Sequence[str] | str | None = (ALL,),
    null: str = "sign_flip",
    max_points: int = MAX_POINTS,
    band: Band = "range",
) -> Axes:
    """Draw the angle psi between -grad and update.

    0 degrees is gradient descent, at 90 degrees and beyond no metric makes the step a descent. The grey band around 90
    degrees is where 95% of random updates would lie; a dotted line is the floor that rounding of the parameters sets.
    What the gradient is stands above the picture, because it decides what the angle means.

    Parameters
    ----------
    source : Analysis or RunAnalysis
        What `steepest.analyze` returned.
    ax : Axes, optional
        Where; a new pyplot figure by default.
    x : {'step', 'loss', 'time'}
        Over what: with ``loss`` rules are compared at equal loss.
    runs, blocks : sequence of str, optional
        By name; all runs, and the whole vector, by default. ``blocks=None`` takes every block.
    null : {'sign_flip', 'isotropic'}
        See :func:`angle_data`.
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
        As :func:`angle_data`.

    Examples
    --------
    >>> import numpy as np
    >>> import steepest
    >>> from steepest import plot
    >>> theta = 0.9 ** np.arange(20)[:, None] * [1.0, 2.0, 3.0]
    >>> analysis = steepest.analyze(steepest.recording(params=theta, grad=theta * [1.0, 4.0, 9.0]))
    >>> plot.angle(analysis).get_ylabel()
    'angle psi (degrees)'
    """
    matplotlib = import_matplotlib()
    data = angle_data(source, x=x, runs=runs, blocks=blocks, null=null, max_points=max_points, band=band)
    with matplotlib.rc_context(STYLE):
        if ax is None:
            ax = new_axes(1, 4.6)[0]
        named = "95% of random updates"
        for curve, low, high in zip(data.angle, data.null_low, data.null_high, strict=True):
            if np.isfinite(low).any():
                shade = min(0.25, 0.5 / len(data.angle))
                ax.fill_between(curve.x, low, high, color=GREY, alpha=shade, linewidth=0, label=named)
                named = "_"
        ax.axhline(90.0, color=GREY, linewidth=0.6)
        same = len(set(data.gradient)) == 1
        labels = [
            curve.label if same else f"{curve.label}: {_IN_LEGEND[origin]}"
            for curve, origin in zip(data.angle, data.gradient, strict=True)
        ]
        draw_curves(ax, [replace(c, label=text) for c, text in zip(data.angle, labels, strict=True)])
        named = "rounding floor"
        for position, (curve, floor) in enumerate(zip(data.angle, data.floor, strict=True)):
            if np.isfinite(floor).any() and np.nanmax(floor) > _VISIBLE:
                colour = line_style(position)["color"]
                ax.plot(curve.x, floor, color=colour, linestyle=":", linewidth=0.9, label=named)
                ax.fill_between(curve.x, 0.0, floor, color=colour, alpha=0.08, linewidth=0)
                named = "_"
        draw_marks(ax, data.marks, list(dict.fromkeys(curve.run for curve in data.angle)))
        highest = max((float(np.nanmax(c.high)) for c in data.angle if np.isfinite(c.high).any()), default=90.0)
        ax.set_ylim(0.0, 180.0 if highest > 135.0 else 135.0 if highest > 97.0 else 100.0)
        ax.set_yticks(np.arange(0.0, ax.get_ylim()[1] + 1.0, 30.0 if highest <= 97.0 else 45.0))
        ax.set_ylabel("angle psi (degrees)")
        against = GRADIENT[data.gradient[0]] if same else "different gradients: see the legend"
        ax.set_title(f"against {against} ({', '.join(dict.fromkeys(data.pair))} pair)", loc="left")
        finish(ax, select(source, runs, blocks), x)
    return ax
