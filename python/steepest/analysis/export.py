"""An analysis as plain values, as a pandas frame, as an xarray dataset."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from steepest.analysis.columns import COLUMNS, PAIR_STATUSES
from steepest.analysis.optional import optional

if TYPE_CHECKING:
    from steepest.analysis.run import RunAnalysis

__all__ = ["chosen_columns", "run_to_dataframe", "run_to_dict", "run_to_xarray", "runs_to_xarray"]

Array = NDArray[Any]


def chosen_columns(columns: Iterable[str] | None) -> tuple[str, ...]:
    """Check names of columns.

    Parameters
    ----------
    columns : iterable of str, optional
        All by default.

    Returns
    -------
    tuple of str
        In the order given.

    Raises
    ------
    ValueError
        There is no such column.
    """
    if columns is None:
        return tuple(COLUMNS)
    chosen = (columns,) if isinstance(columns, str) else tuple(columns)
    for name in chosen:
        if name not in COLUMNS:
            raise ValueError(f"expected columns among {', '.join(COLUMNS)}, got {name!r}")
    return chosen


def run_to_dict(run: RunAnalysis) -> dict[str, Any]:
    """Everything as plain Python values.

    Parameters
    ----------
    run : RunAnalysis
        Of one run.

    Returns
    -------
    dict
        See `RunAnalysis.to_dict`.
    """
    head: dict[str, Any] = {name: getattr(run, name) for name in ("name", "candidate", "pair", "window")}
    names = {"blocks": list(run.blocks), "sizes": list(run.sizes), "notes": list(run.notes), "step": run.step.tolist()}
    return head | {"info": asdict(run.info)} | names | {"columns": {name: run[name].tolist() for name in COLUMNS}}


def run_to_dataframe(run: RunAnalysis, columns: Iterable[str] | None = None) -> Any:
    """Long format, one row for each step and block.

    Parameters
    ----------
    run : RunAnalysis
        Of one run.
    columns : iterable of str, optional
        All by default.

    Returns
    -------
    pandas.DataFrame
        See `Analysis.to_dataframe`.
    """
    pd = optional("pandas", "pandas", "a frame")
    steps, blocks = len(run), len(run.blocks)

    def repeated(value: str | None) -> Any:  # a code for each row, not a text
        return pd.Categorical.from_codes([0 if value is not None else -1] * (steps * blocks), [value or ""])

    data: dict[str, Any] = {
        "run": repeated(run.name),
        "candidate": repeated(run.candidate),
        "step": np.repeat(run.step, blocks),
        "block": pd.Categorical.from_codes(np.tile(np.arange(blocks), steps), list(run.blocks)),
    }
    for name in chosen_columns(columns):
        if name == "status":
            data[name] = pd.Categorical.from_codes(run["status_code"].ravel(), list(PAIR_STATUSES))
        else:
            values = run[name]
            data[name] = values.ravel() if COLUMNS[name].per_block else np.repeat(values, blocks)
    return pd.DataFrame(data)


def run_to_xarray(run: RunAnalysis, columns: Iterable[str] | None = None) -> Any:
    """Dimensions step and block.

    Parameters
    ----------
    run : RunAnalysis
        Of one run.
    columns : iterable of str, optional
        All by default.

    Returns
    -------
    xarray.Dataset
        See `RunAnalysis.to_xarray`.
    """
    xr = optional("xarray", "xarray", "a dataset")
    variables = {}
    for name in chosen_columns(columns):
        dimensions = ("step", "block") if COLUMNS[name].per_block else ("step",)
        variables[name] = (dimensions, *_values(run, name))
    coordinates = {"step": run.step, "block": list(run.blocks), "size": ("block", list(run.sizes))}
    return xr.Dataset(variables, coordinates, _attributes(run))


def runs_to_xarray(runs: dict[str, RunAnalysis], columns: Iterable[str] | None = None) -> Any:
    """Dimensions run, step and block: the union of the steps and of the blocks of all runs.

    Parameters
    ----------
    runs : dict
        Run name -> its analysis.
    columns : iterable of str, optional
        All by default.

    Returns
    -------
    xarray.Dataset
        See `Analysis.to_xarray`.
    """
    xr = optional("xarray", "xarray", "a dataset")
    steps = np.unique(np.concatenate([run.step for run in runs.values()]))
    blocks = list(dict.fromkeys(block for run in runs.values() for block in run.blocks))
    places = [
        (np.searchsorted(steps, run.step), np.array([blocks.index(block) for block in run.blocks]))
        for run in runs.values()
    ]
    variables = {}
    for name in chosen_columns(columns):
        per_block = COLUMNS[name].per_block
        shape = (len(runs), len(steps), len(blocks)) if per_block else (len(runs), len(steps))
        whole: Any = None
        attributes: dict[str, Any] = {}
        for i, (run, (at, own)) in enumerate(zip(runs.values(), places, strict=True)):
            values, attributes = _values(run, name)
            if whole is None:
                whole = _missing(shape, values.dtype)
            if per_block:
                whole[i, at[:, None], own[None, :]] = values
            else:
                whole[i, at] = values
        variables[name] = (("run", "step", "block")[: len(shape)], whole, attributes)
    of_runs = {
        name: ("run", [str(getattr(run, name) or "") for run in runs.values()])
        for name in ("candidate", "pair", "gradient_source")
    }
    sizes = np.full((len(runs), len(blocks)), -1)
    for i, (run, (_, own)) in enumerate(zip(runs.values(), places, strict=True)):
        sizes[i, own] = run.sizes
    coordinates = {"run": list(runs), "step": steps, "block": blocks, "size": (("run", "block"), sizes), **of_runs}
    return xr.Dataset(variables, coordinates, {"source": "steepest"})


def _missing(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """What stands where a run has no such step or block: NaN, -1 of a status, False."""
    if dtype == np.int8:
        return np.full(shape, -1, dtype)
    return np.zeros(shape, bool) if dtype == np.bool_ else np.full(shape, np.nan)


def _values(run: RunAnalysis, name: str) -> tuple[Array, dict[str, Any]]:
    """Values that a file can hold, and what they mean; a status is a code (CF flags)."""
    column = COLUMNS[name]
    attributes: dict[str, Any] = {"long_name": column.meaning}
    if name == "status":
        attributes["flag_values"] = np.arange(len(PAIR_STATUSES), dtype=np.int8)
        attributes["flag_meanings"] = " ".join(PAIR_STATUSES)
        return run["status_code"], attributes
    if column.unit:
        attributes["units"] = column.unit
    return run[name], attributes


def _attributes(run: RunAnalysis) -> dict[str, Any]:
    names = ("objective", "gradient_source", "lag", "every")
    own = {"run": run.name, "candidate": run.candidate or "", "pair": run.pair, "window": run.window}
    rate = {"rate": int(run.info.rate)}  # netCDF has no booleans among attributes
    return {"source": "steepest", **own, **{name: getattr(run.info, name) for name in names}, **rate}
