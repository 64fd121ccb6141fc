"""What every course over steps shares: choosing runs and blocks, the axis, and honest thinning of long runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from steepest.analysis import Analysis, RunAnalysis

    Source: TypeAlias = Analysis | RunAnalysis

__all__ = [
    "GRADIENT",
    "Axis",
    "Band",
    "Curve",
    "Marks",
    "Selected",
    "curves",
    "marks_of",
    "one_run",
    "select",
]

Axis = Literal["step", "loss", "time"]
Band = Literal["range", "quartiles"]
FloatArray = NDArray[np.float64]
ALL = "(all)"
MAX_POINTS = 400
MAX_MARKS = 80
# What the angle is measured against: printed beside every angle.
GRADIENT = {
    "rule": "the gradient that the rule used",
    "evaluation": "a separately evaluated gradient",
    "estimate": "an estimated gradient",
}


@dataclass(frozen=True)
class Curve:
    """One quantity of one run and block, as drawn.

    Attributes
    ----------
    run, block, label : str
        Whose it is, and its name in the legend.
    x : ndarray, shape (k,), float64
        Place on the axis.
    value, low, high : ndarray, shape (k,), float64
        Median of the rows that a point stands for, and their least and largest value or, with ``band="quartiles"``,
        their quartiles; NaN where none has a value.
    rows : ndarray, shape (k,), int64
        How many rows a point stands for: 1 everywhere unless the run is longer than `max_points`.
    connected : bool
        Whether the points follow each other in x as they do in time, so that a line may join them.
    """

    run: str
    block: str
    label: str
    x: FloatArray
    value: FloatArray
    low: FloatArray
    high: FloatArray
    rows: NDArray[np.int64]
    connected: bool


@dataclass(frozen=True)
class Marks:
    """Rows whose status is not ok, as drawn.

    Attributes
    ----------
    run, status : str
        Whose they are, and what they are.
    steps : int
        How many steps have this status.
    x, y : ndarray, shape (k,), float64
        At most one mark for each part of the axis; y is NaN (drawn at the lower edge) where the curve has no value.
    share : ndarray, shape (k,), float64
        Of the steps in that part of the axis how many have the status; the fewer, the paler the mark.
    """

    run: str
    status: str
    steps: int
    x: FloatArray
    y: FloatArray
    share: FloatArray


@dataclass(frozen=True)
class Selected:
    """One run and block to be drawn."""

    run: str
    block: str
    label: str
    column: int
    analysis: RunAnalysis

    def values(self, name: str) -> NDArray[Any]:
        """The column of this block, or of the run."""
        array = self.analysis[name]
        return array if array.ndim == 1 else array[:, self.column]


def runs_of(source: Source) -> dict[str, RunAnalysis]:
    """Run name -> its analysis, of either kind of source."""
    runs = getattr(source, "runs", None)
    if runs is not None:
        return dict(runs)
    if not hasattr(source, "blocks"):
        raise TypeError(f"expected an Analysis or a RunAnalysis, got {type(source).__name__}")
    run = cast("RunAnalysis", source)
    return {run.name: run}


def select(
    source: Source, runs: Sequence[str] | None = None, blocks: Sequence[str] | str | None = (ALL,)
) -> list[Selected]:
    """Runs and blocks by name.

    Parameters
    ----------
    source : Analysis or RunAnalysis
        Where they are.
    runs : sequence of str, optional
        Names of runs; all of them by default.
    blocks : str or sequence of str, optional
        Names of blocks; None for all. A run without one of them is left out of that block.

    Returns
    -------
    list of Selected
        Run by run, labelled by whatever differs.

    Raises
    ------
    ValueError
        There is no such run, or no run has such a block.
    """
    known = runs_of(source)
    if isinstance(runs, str):
        runs = (runs,)
    chosen = list(known) if runs is None else list(runs)
    for name in chosen:
        if name not in known:
            raise ValueError(f"expected runs among {list(known)[:8]}, got {name!r}")
    if isinstance(blocks, str):
        blocks = (blocks,)
    if blocks is not None:
        there = {block for name in chosen for block in known[name].blocks}
        for block in blocks:
            if block not in there:
                raise ValueError(f"expected blocks among {sorted(there)[:8]}, got {block!r}")
    pairs = [
        (name, block)
        for name in chosen
        for block in (known[name].blocks if blocks is None else blocks)
        if block in known[name].blocks
    ]
    many_runs, many_blocks = len({name for name, _ in pairs}) > 1, len({block for _, block in pairs}) > 1
    found = []
    for name, block in pairs:
        label = " · ".join([shortened(name)] * (many_runs or not many_blocks) + [shortened(block)] * many_blocks)
        found.append(Selected(name, block, literal(label), known[name].blocks.index(block), known[name]))
    return found


def shortened(name: str, length: int = 28) -> str:
    """A name that fits beside an axis or in a legend, with its end, which tells blocks apart.

    Parameters
    ----------
    name : str
        Of a run or block.
    length : int
        Most characters.

    Returns
    -------
    str
        With an ellipsis in the middle if it is longer.
    """
    return name if len(name) <= length else f"{name[: length // 3]}…{name[-(length - length // 3 - 1) :]}"


def literal(name: str) -> str:
    """A user's name as a label: no formula, and not hidden for its underscore.

    Parameters
    ----------
    name : str
        Of a run or block.

    Returns
    -------
    str
        What matplotlib draws as `name`.
    """
    text = name.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def one_run(source: Source, run: str | None) -> RunAnalysis:
    """The run of a figure that shows one.

    Parameters
    ----------
    source : Analysis or RunAnalysis
        Where it is.
    run : str, optional
        Its name; not needed if there is one only.

    Returns
    -------
    RunAnalysis
        The run.

    Raises
    ------
    ValueError
        There is no such run, or there are several and none is named.
    """
    known = runs_of(source)
    if run is None and len(known) != 1:
        raise ValueError(f"this figure shows one run: pass run=, one of {list(known)[:8]}")
    if run is not None and run not in known:
        raise ValueError(f"expected run among {list(known)[:8]}, got {run!r}")
    return next(iter(known.values())) if run is None else known[run]


def axis_values(analysis: RunAnalysis, x: Axis) -> FloatArray:
    """Place of each step on the axis.

    Parameters
    ----------
    analysis : RunAnalysis
        Of the run.
    x : {'step', 'loss', 'time'}
        Which axis.

    Returns
    -------
    ndarray, shape (T,)
        NaN where it is not known.

    Raises
    ------
    ValueError
        Another axis, or the run has no value on this one.
    """
    if x not in get_args(Axis):
        raise ValueError(f"expected x to be 'step', 'loss' or 'time', got {x!r}")
    values = np.asarray(analysis.step if x == "step" else analysis[x], dtype=np.float64)
    known = values[np.isfinite(values)]
    if len(values) and not len(known):
        raise ValueError(f"run {analysis.name!r} has no {x}: draw it over another x")
    return values - known[0] if x == "time" and len(known) else values


@dataclass(frozen=True)
class Bins:
    """Rows in the order of an axis, and where each point's rows begin."""

    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    x: FloatArray
    connected: bool

    @property
    def rows(self) -> NDArray[np.int64]:
        """How many rows each point stands for."""
        return np.diff(np.append(self.starts, len(self.order)))

    def parts(self, values: NDArray[Any]) -> list[FloatArray]:
        """The known values of each bin."""
        ordered = np.asarray(values, dtype=np.float64)[self.order]
        return [part[~np.isnan(part)] for part in np.split(ordered, self.starts[1:])]

    def medians(self, values: NDArray[Any]) -> FloatArray:
        """Median of each bin, NaN where there is no value."""
        if len(self.starts) == len(self.order):
            return np.asarray(values, dtype=np.float64)[self.order]
        return np.array([np.median(part) if len(part) else np.nan for part in self.parts(values)])

    def band(self, values: NDArray[Any], band: Band) -> tuple[FloatArray, FloatArray]:
        """Least and largest value of each bin, or its quartiles."""
        if len(self.starts) == len(self.order):
            each = np.asarray(values, dtype=np.float64)[self.order]
            return each, each
        ends = [0.0, 1.0] if band == "range" else [0.25, 0.75]
        found = [np.quantile(part, ends) if len(part) else (np.nan, np.nan) for part in self.parts(values)]
        low, high = np.array(found).T
        return low, high

    def where(self, chosen: NDArray[np.bool_]) -> tuple[NDArray[np.int64], FloatArray]:
        """Of each bin with chosen rows the first such row, and the share of the bin's rows that are chosen."""
        rows = np.flatnonzero(chosen[self.order])
        bins = np.searchsorted(self.starts, rows, side="right") - 1
        there, first, count = np.unique(bins, return_index=True, return_counts=True)
        return self.order[rows[first]], count / self.rows[there]


def bins_of(analysis: RunAnalysis, x: Axis, max_points: int) -> Bins:
    """Put the rows in the order of the axis, in at most `max_points` bins.

    Steps and times are cut into bins of equally many rows; losses, falling, into bins of equal width (on a logarithmic
    scale where one is drawn), since a run spends most of its steps near its last loss.

    Parameters
    ----------
    analysis : RunAnalysis
        Of the run.
    x : {'step', 'loss', 'time'}
        Which axis.
    max_points : int
        At least 2.

    Returns
    -------
    Bins
        Without the rows that have no place on the axis.

    Raises
    ------
    ValueError
        `max_points` is too small, or as `axis_values`.
    """
    if max_points < 2:
        raise ValueError(f"max_points must be at least 2, got {max_points}")
    values = axis_values(analysis, x)
    order = np.flatnonzero(np.isfinite(values))
    connected = True
    if x == "loss":
        connected = bool(np.all(np.diff(values[order]) <= 0.0))
        order = order[np.argsort(-values[order], kind="stable")]
    count = len(order)
    if count <= max_points:
        starts = np.arange(count)
    elif x == "loss":
        key = -np.log(values[order]) if logarithmic(values[order]) else -values[order]
        edges = np.linspace(key[0], key[-1], max_points + 1)
        starts = np.unique(np.searchsorted(key, edges[:-1]))
        connected = True  # medians, in the order of the loss
    else:
        starts = np.arange(max_points) * count // max_points
    found = Bins(order, starts, values, connected)
    return Bins(order, starts, found.medians(values), connected)


def logarithmic(values: FloatArray) -> bool:
    """Whether positive values span so much that only a logarithmic axis shows them."""
    known = values[np.isfinite(values)]
    return bool(len(known) and known.min() > 0.0 and known.max() > 20.0 * known.min())


def curves(
    selected: Sequence[Selected], name: str, x: Axis, max_points: int, band: Band, factor: float = 1.0
) -> tuple[Curve, ...]:
    """One column of each run and block as curves.

    Parameters
    ----------
    selected : sequence of Selected
        What to draw.
    name : str
        Of the column.
    x : {'step', 'loss', 'time'}
        The axis.
    max_points : int
        Longer runs are thinned: see `Curve`.
    band : {'range', 'quartiles'}
        What is shaded of a thinned run.
    factor : float
        Unit of the figure.

    Returns
    -------
    tuple of Curve
        One for each of `selected`.

    Raises
    ------
    ValueError
        Another band.
    """
    if band not in get_args(Band):
        raise ValueError(f"expected band to be 'range' or 'quartiles', got {band!r}")
    found = []
    for item, bins in binned(selected, x, max_points):
        values = np.asarray(item.values(name), dtype=np.float64) * factor
        value, (low, high) = bins.medians(values), bins.band(values, band)
        found.append(Curve(item.run, item.block, item.label, bins.x, value, low, high, bins.rows, bins.connected))
    return tuple(found)


def binned(selected: Sequence[Selected], x: Axis, max_points: int) -> Iterator[tuple[Selected, Bins]]:
    """Each of `selected` with its bins, which the blocks of a run share."""
    known: dict[str, Bins] = {}
    for item in selected:
        if item.run not in known:
            known[item.run] = bins_of(item.analysis, x, max_points)
        yield item, known[item.run]


def marks_of(item: Selected, x: Axis, y: NDArray[Any] | None) -> tuple[Marks, ...]:
    """Where a run and block has a status that is not ok.

    Parameters
    ----------
    item : Selected
        Run and block.
    x : {'step', 'loss', 'time'}
        The axis.
    y : ndarray, shape (T,), optional
        Height of the marks; the lower edge by default.

    Returns
    -------
    tuple of Marks
        One for each status, without those that do not occur.
    """
    bins, place = bins_of(item.analysis, x, MAX_MARKS), axis_values(item.analysis, x)
    status = item.values("status")
    found = []
    for kind in np.unique(status):
        if kind == "ok":
            continue
        rows, share = bins.where(status == kind)
        height = np.full(len(rows), np.nan) if y is None else np.asarray(y, dtype=np.float64)[rows]
        found.append(Marks(item.run, str(kind), int(np.sum(status == kind)), place[rows], height, share))
    return tuple(found)
