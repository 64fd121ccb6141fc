"""The angle of every block over the course of a run, as a heat map."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from steepest.plot.draw import axis_label
from steepest.plot.series import GRADIENT, Axis, Selected, bins_of, literal, logarithmic, one_run, shortened
from steepest.plot.style import STYLE, VERMILION, import_matplotlib, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from steepest.plot.series import Source

__all__ = ["BlocksData", "blocks", "blocks_data"]

_COLUMNS = 120
_NO_ANGLE = "#BFBFBF"
_NAMED_ROWS = 40


@dataclass(frozen=True)
class BlocksData:
    """The cells of :func:`blocks`.

    Attributes
    ----------
    x : str
        The axis: step, loss or time.
    run : str
        Name of the run.
    blocks : tuple of str
        Rows of the map, the whole vector first.
    place : ndarray, shape (k,), float64
        Place of each column on the axis.
    psi : ndarray, shape (number of blocks, k), float64
        Median angle of the rows of a cell, in degrees; NaN where none has one.
    not_ok : ndarray, shape (number of blocks, k), float64
        Share of the rows of a cell whose status is not ok.
    gradient : str
        What the angle is measured against.
    """

    x: Axis
    run: str
    blocks: tuple[str, ...]
    place: NDArray[np.float64]
    psi: NDArray[np.float64]
    not_ok: NDArray[np.float64]
    gradient: str

    def to_dict(self) -> dict[str, Any]:
        """Fields as a dictionary, arrays as they are."""
        return asdict(self)


def blocks_data(source: Source, *, run: str | None = None, x: Axis = "step", max_columns: int = _COLUMNS) -> BlocksData:
    """What :func:`blocks` draws.

    Parameters
    ----------
    source : Analysis or RunAnalysis
        What `steepest.analyze` returned.
    run : str, optional
        Which run; needed if there are several.
    x : {'step', 'loss', 'time'}
        Over what.
    max_columns : int
        Longer runs are drawn as medians of consecutive rows.

    Returns
    -------
    BlocksData
        Degrees.

    Raises
    ------
    ValueError
        No such run or axis, or several runs and none named.
    """
    chosen = one_run(source, run)
    bins = bins_of(chosen, x, max_columns)
    psi, bad = np.degrees(np.asarray(chosen["psi"], dtype=np.float64)), chosen["status"] != "ok"
    each = range(len(chosen.blocks))
    share = [np.add.reduceat(bad[bins.order, b].astype(np.float64), bins.starts) / bins.rows for b in each]
    return BlocksData(
        x=x,
        run=chosen.name,
        blocks=tuple(chosen.blocks),
        place=bins.x,
        psi=np.array([bins.medians(psi[:, b]) for b in each]),
        not_ok=np.array(share),
        gradient=GRADIENT[chosen.gradient_source],
    )


def blocks(
    source: Source,
    ax: Axes | None = None,
    *,
    run: str | None = None,
    x: Axis = "step",
    max_columns: int = _COLUMNS,
) -> Axes:
    """Draw the angle between -grad and update of every block: one row a block, one column a step or part of the run.

    Dark is gradient descent, bright is far from it, red is an ascent of that block (90 degrees and more), grey has no
    angle. A dot marks cells in which some steps are not ok, the darker
    the more of them.

    Parameters
    ----------
    source : Analysis or RunAnalysis
        What `steepest.analyze` returned.
    ax : Axes, optional
        Where; a new pyplot figure by default.
    run : str, optional
        Which run; needed if there are several.
    x : {'step', 'loss', 'time'}
        Over what.
    max_columns : int
        Longer runs are drawn as medians of consecutive rows.

    Returns
    -------
    Axes
        `ax`; its colour bar is beside it.

    Raises
    ------
    ImportError
        matplotlib is not installed: ``pip install "steepest[plot]"``.
    ValueError
        As :func:`blocks_data`.
    """
    matplotlib = import_matplotlib()
    data = blocks_data(source, run=run, x=x, max_columns=max_columns)
    with matplotlib.rc_context(STYLE):
        if ax is None:
            ax = new_axes(1, 5.2, 1.2 + 0.16 * min(len(data.blocks), _NAMED_ROWS))[0]
        colours = matplotlib.colormaps["cividis"].with_extremes(over=VERMILION, bad=_NO_ANGLE)
        # Just below 90 degrees, so that an angle of 90 is drawn as an ascent.
        below = np.nextafter(90.0, 0.0)
        mesh = ax.pcolormesh(
            _edges(data.place), np.arange(len(data.blocks) + 1.0), np.ma.masked_invalid(data.psi),
            cmap=colours, vmin=0.0, vmax=below, rasterized=True, linewidth=0,
        )  # fmt: skip
        rows, columns = np.nonzero((data.not_ok > 0.0) & (data.psi < 90.0))
        if len(rows):
            inks = np.where(data.psi[rows, columns] < 45.0, "white", "black")
            colours_of = matplotlib.colors.to_rgba_array(inks, data.not_ok[rows, columns])
            ax.scatter(data.place[columns], rows + 0.5, s=2.0, linewidths=0, c=colours_of, rasterized=True)
        ax.invert_yaxis()
        every = -(-len(data.blocks) // _NAMED_ROWS)
        ax.set_yticks(
            np.arange(0, len(data.blocks), every) + 0.5, [literal(shortened(b)) for b in data.blocks[::every]]
        )
        ax.tick_params(axis="y", length=0)
        for side in ax.spines.values():
            side.set_visible(False)
        ax.set_xlabel(axis_label([Selected(data.run, "", "", 0, one_run(source, run))], x))
        if x == "loss":
            if logarithmic(data.place):
                ax.set_xscale("log")
            ax.invert_xaxis()
        ax.set_title("against " + data.gradient, loc="left")
        bar = ax.figure.colorbar(mesh, ax=ax, extend="max", ticks=[0, 30, 60, 90], aspect=12, pad=0.02)
        bar.set_label("psi (degrees)")
        bar.outline.set_linewidth(0.4)
        if bar.solids is not None:
            bar.solids.set_rasterized(True)
    return ax


def _edges(place: NDArray[np.float64]) -> NDArray[np.float64]:
    """Borders half way between the columns."""
    if len(place) < 2:
        centre = place[0] if len(place) else 0.0
        return np.array([centre - 0.5, centre + 0.5])[: len(place) + 1]
    middle = (place[1:] + place[:-1]) / 2.0
    first, last = 2.0 * place[0] - middle[0], 2.0 * place[-1] - middle[-1]
    if np.all(place > 0.0):  # a logarithmic axis has no place for the others
        first, last = max(first, place[0] / 2.0), max(last, place[-1] / 2.0)
    return np.concatenate([[first], middle, [last]])
