"""Whatever xarray opens: a Dataset, a DataTree, a zarr or netCDF file; read step by step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.sources.series import SeriesSource
from steepest.sources.source import FIELDS, VECTORS, by_field

__all__ = ["is_xarray", "is_zarr", "xarray_source"]


class _Lazy:
    """A DataArray, sliced where it lies."""

    def __init__(self, array: Any) -> None:
        self._variable = array.variable
        self.shape, self.dtype = tuple(array.shape), array.dtype.newbyteorder("=")

    def at(self, t: int) -> NDArray[Any]:
        return np.asarray(self._variable[t].values, self.dtype)


def is_xarray(x: Any) -> bool:
    """Whether `x` is a Dataset or DataTree; does not import xarray.

    Parameters
    ----------
    x : object
        Anything.

    Returns
    -------
    bool
        True for these two.
    """
    return type(x).__module__.partition(".")[0] == "xarray" and type(x).__name__ in ("Dataset", "DataTree")


def is_zarr(path: Path) -> bool:
    """Whether a folder is a zarr store.

    Parameters
    ----------
    path : Path
        A folder.

    Returns
    -------
    bool
        By its name or its metadata.
    """
    return path.suffix == ".zarr" or any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zmetadata"))


def xarray_source(source: Any, params: str | Sequence[str] | None = None) -> SeriesSource:
    """Variables params, grad, update, loss (or groups params/, grad/, update/ of variables), first dimension the step.

    Parameters
    ----------
    source : Dataset, DataTree or Path
        What to read.
    params : str or sequence of str, optional
        See `NameFilter`.

    Returns
    -------
    SeriesSource
        Lazy; a coordinate ``time`` of the step's dimension is the time.

    Raises
    ------
    ImportError
        xarray, or what it needs for the format, is missing.
    ValueError
        None of these variables.
    """
    close = None
    where = "the Dataset"
    if isinstance(source, Path):
        try:
            import xarray
        except ImportError as error:
            raise ImportError(f'{source.name} needs xarray: pip install "steepest[xarray]"') from error
        where = str(source)
        engine = "zarr" if source.is_dir() else None
        opened = xarray.open_datatree(source, engine=engine, chunks=None)
        source, close = opened, opened.close
    try:
        found = _fields(source, where)
        return SeriesSource(found, where, params, close)
    except BaseException:
        if close is not None:
            close()
        raise


def _fields(source: Any, where: str) -> dict[str, Any]:
    root = source if type(source).__name__ == "Dataset" else source.to_dataset()
    flat = {str(name): array for name, array in root.data_vars.items()}
    if root is not source:
        for field in VECTORS:
            if field in source.children:
                flat |= {f"{field}/{name}": x for name, x in source.children[field].to_dataset().data_vars.items()}
    flat = {name: x for name, x in flat.items() if name.partition("/")[0] in FIELDS}
    if "time" in root.coords:
        flat.setdefault("time", root.coords["time"])
    found = by_field(flat, where)
    if not found:
        raise ValueError(
            f"expected variables params, grad, update or params/<name>, ... in {where}, got {list(root.data_vars)}"
        )
    steps = {
        str(x.dims[0]) for value in found.values() for x in (value.values() if isinstance(value, dict) else [value])
        if x.dims
    }  # fmt: skip
    if source is root and len(steps) > 1:
        raise ValueError(f"expected one first dimension, the step, of all variables of {where}, got {sorted(steps)}")
    numbers = {key: found[key].values for key in ("loss", "time") if key in found}
    vectors = {key: value for key, value in found.items() if key in VECTORS}
    return {
        key: {name: _Lazy(x) for name, x in value.items()} if isinstance(value, dict) else _Lazy(value)
        for key, value in vectors.items()
    } | numbers
