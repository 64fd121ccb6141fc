"""Writing results: CSV columns, NPZ arrays, figures as PNG and PDF."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["name_panel", "new_figure", "write_csv", "write_figure", "write_npz"]


def write_csv(path: Path, columns: Mapping[str, Sequence[Any] | np.ndarray[Any, Any]]) -> Path:
    """Write columns as CSV; a NaN becomes an empty field, and floats read back to the same float64.

    Parameters
    ----------
    path : Path
        The file to write.
    columns : mapping name -> sequence
        All of one length.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    ValueError
        The lengths differ.
    """
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"expected columns of one length, got {lengths}")
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        for row in zip(*(np.asarray(values).tolist() for values in columns.values()), strict=True):
            writer.writerow("" if isinstance(value, float) and math.isnan(value) else value for value in row)
    return path


def write_npz(path: Path, arrays: Mapping[str, Any]) -> Path:
    """Write `arrays` as a compressed NPZ file that loads with ``allow_pickle=False``."""
    plain = {name: np.asarray(value) for name, value in arrays.items()}
    objects = [name for name, value in plain.items() if value.dtype == object]
    if objects:
        raise TypeError(f"expected numbers and strings, got Python objects in {objects}")
    np.savez_compressed(path, allow_pickle=False, **plain)
    return path


def new_figure(width: float, height: float) -> Figure:
    """A figure of `width` by `height` inches outside pyplot: no display, no global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'drawing needs matplotlib, which is not installed: pip install "steepest[experiments]"'
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def name_panel(panel: Axes, letter: str) -> None:
    """Move the title of `panel` to the left, behind a bold `letter`."""
    title = panel.get_title()
    panel.set_title("")
    panel.set_title(rf"$\bf{{{letter}}}$  {title}", loc="left")


def write_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write `figure` as ``stem.png`` (150 dots per inch) and ``stem.pdf``."""
    paths = [stem.with_suffix(".png"), stem.with_suffix(".pdf")]
    for path in paths:
        figure.savefig(path, dpi=150)
    return paths
