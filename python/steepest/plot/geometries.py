"""Runs against families of metrics: held-out scores as a heat map."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from steepest.plot.series import literal, shortened
from steepest.plot.style import STYLE, import_matplotlib, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from steepest.identify.selection import Selection

__all__ = ["GeometriesData", "geometries", "geometries_data"]

_NOT_FITTED = "#E4E4E4"
_NAMES = {"kronecker-output": "output side", "kronecker-input": "input side", "kronecker": "both sides"}


@dataclass(frozen=True)
class GeometriesData:
    """The cells of :func:`geometries`; NaN where a family was not fitted.

    Attributes
    ----------
    block : str
        Of the parameters.
    runs, families : tuple of str
        Rows and columns.
    r2, low, high : ndarray, shape (runs, families), float64
        Held-out score and the ends of its 95% interval.
    ceiling, ceiling_low, ceiling_high : ndarray, shape (runs, families), float64
        Of noise; NaN without replicates.
    chosen : ndarray of bool, shape (runs, families)
        The simplest family that no richer one beats.
    """

    block: str
    runs: tuple[str, ...]
    families: tuple[str, ...]
    r2: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    ceiling: NDArray[np.float64]
    ceiling_low: NDArray[np.float64]
    ceiling_high: NDArray[np.float64]
    chosen: NDArray[np.bool_]

    def to_dict(self) -> dict[str, Any]:
        """Fields as a dictionary, arrays as they are."""
        return asdict(self)


def geometries_data(selection: Selection, *, block: str | None = None) -> GeometriesData:
    """What :func:`geometries` draws.

    Parameters
    ----------
    selection : Selection
        What `steepest.select` returned.
    block : str, optional
        Which; the first by default, ``"(all)"``.

    Returns
    -------
    GeometriesData
        Numbers of the cells.

    Raises
    ------
    ValueError
        No such block.
    """
    names = ("score", "score_low", "score_high", "ceiling", "ceiling_low", "ceiling_high", "chosen")
    values = np.moveaxis(selection.column(names, block), -1, 0)
    return GeometriesData(
        block=selection.blocks[0] if block is None else block,
        runs=selection.runs,
        families=selection.families,
        r2=values[0],
        low=values[1],
        high=values[2],
        ceiling=values[3],
        ceiling_low=values[4],
        ceiling_high=values[5],
        chosen=values[6] == 1.0,
    )


def geometries(selection: Selection, ax: Axes | None = None, *, block: str | None = None) -> Axes:
    """Draw held-out scores: one row a run, one column a family of metrics, the score and its interval in the cell.

    Dark is no better than M = 0, bright explains all of the later gradients. A frame marks the simplest family that no
    richer one beats; a row without one has no evidence for any. Below the interval stands the ceiling that the noise
    of the gradients sets, where replicates were given; what was not fitted is grey.

    Parameters
    ----------
    selection : Selection
        What `steepest.select` returned.
    ax : Axes, optional
        Where; a new pyplot figure by default.
    block : str, optional
        Which; the first by default, ``"(all)"``.

    Returns
    -------
    Axes
        `ax`; its colour bar is beside it.

    Raises
    ------
    ImportError
        matplotlib is not installed: ``pip install "steepest[plot]"``.
    ValueError
        As :func:`geometries_data`.
    """
    matplotlib = import_matplotlib()
    data = geometries_data(selection, block=block)
    rows, columns = data.r2.shape
    with matplotlib.rc_context(STYLE):
        if ax is None:
            noisy = bool(np.isfinite(data.ceiling).any())
            ax = new_axes(1, 1.9 + 0.95 * columns, 0.8 + (0.46 if noisy else 0.36) * rows)[0]
        colours = matplotlib.colormaps["cividis"].with_extremes(bad=_NOT_FITTED)
        mesh = ax.pcolormesh(
            np.arange(columns + 1.0), np.arange(rows + 1.0), np.ma.masked_invalid(np.clip(data.r2, 0.0, 1.0)),
            cmap=colours, vmin=0.0, vmax=1.0, edgecolors="white", linewidth=1.0,
        )  # fmt: skip
        for i, j in np.ndindex(rows, columns):
            _write(ax, data, i, j)
        for i, j in np.argwhere(data.chosen):
            frame = matplotlib.patches.Rectangle(
                (j + 0.035, i + 0.05), 0.93, 0.9, fill=False, edgecolor="#D55E00", linewidth=1.8
            )
            ax.add_patch(frame)
        ax.set_ylim(rows, 0)
        ax.set_yticks(np.arange(rows) + 0.5, [literal(shortened(run)) for run in data.runs])
        ax.set_xticks(np.arange(columns) + 0.5, [_NAMES.get(family, family) for family in data.families])
        ax.tick_params(length=0)
        ax.xaxis.tick_top()
        for side in ax.spines.values():
            side.set_visible(False)
        bar = ax.figure.colorbar(mesh, ax=ax, extend="min", ticks=[0.0, 0.5, 1.0], aspect=14, pad=0.02)
        bar.set_label("R2 of held-out steps")
        bar.outline.set_linewidth(0.4)
    return ax


def _write(ax: Axes, data: GeometriesData, i: int, j: int) -> None:
    """The numbers of one cell."""
    value = float(data.r2[i, j])
    if not math.isfinite(value):
        ax.text(j + 0.5, i + 0.5, "-", ha="center", va="center", color="#6E6E6E")
        return
    ink = "white" if value < 0.55 else "black"
    small = []
    if math.isfinite(data.low[i, j]):
        small.append(f"{_short(data.low[i, j])} to {_short(data.high[i, j])}")
    if math.isfinite(data.ceiling[i, j]):
        small.append(f"ceiling {_short(data.ceiling[i, j])}")
    top = 0.5 - 0.12 * len(small)
    ax.text(j + 0.5, i + top, _short(value), ha="center", va="center", color=ink, fontsize=8, fontweight="bold")
    if small:
        ax.text(j + 0.5, i + top + 0.17, "\n".join(small), ha="center", va="top", color=ink, fontsize=5.5)


def _short(value: float) -> str:
    """Two digits; a score below -1 has no more to say than that."""
    if value < -9.995:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.2f}".replace("-0.00", "0.00")
