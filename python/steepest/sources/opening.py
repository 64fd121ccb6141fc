"""From a path or object to a `Source`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steepest.sources.checkpoints import CheckpointFolder
from steepest.sources.npz import open_npz
from steepest.sources.series import SeriesSource
from steepest.sources.source import Source, by_field
from steepest.sources.xarray_data import is_xarray, is_zarr, xarray_source

__all__ = ["open_source"]

_NETCDF = (".nc", ".nc4", ".cdf", ".netcdf", ".h5", ".hdf5")


def open_source(
    source: Any,
    *,
    params: str | Sequence[str] | None = None,
    files: str | None = None,
    number: str | None = None,
) -> Source:
    r"""Open a stored training run to be read step by step; nothing in a file is ever executed.

    Parameters
    ----------
    source : path-like, Source, xarray.Dataset or xarray.DataTree
        - A folder of checkpoints, one file for each step (``model-000100.safetensors``, ``step_5.pt``) or one folder
          (``step_5/model.safetensors``, also in parts), ordered by the number in the name. A checkpoint is a state
          dict, of PyTorch also under ``state_dict``, ``model_state_dict``, ``model`` or ``module``; or it has groups
          ``params/<name>``, ``grad/<name>``, ``update/<name>`` (PyTorch: mappings ``params``, ``grad``, ``update``).
          ``loss`` and ``time`` may be a tensor of one number, or metadata of safetensors. PyTorch files are read with
          ``weights_only=True``.
        - An ``.npz`` file with arrays params, grad, update, loss, time or ``params/<name>``, ..., first axis the step.
        - A zarr folder, a netCDF file, a Dataset: variables of these names (or groups params, grad, update), first
          dimension the step; a coordinate ``time`` of that dimension is the time.
    params : str or sequence of str, optional
        Shell patterns of the names of arrays to use (``"encoder.*"``); with ``!`` in front, to leave out. Arrays that
        are not floating-point, such as counters in a state dict, are left out anyway; running means of a state dict
        look like parameters, and ``params="!*running_*"`` leaves them out.
    files : str, optional
        Shell pattern of the checkpoints in the folder, where it has other files too.
    number : str, optional
        Regular expression whose first group is the step, where names have several numbers (``r"step=(\d+)"``).

    Returns
    -------
    Source
        Close it, or use it in a ``with`` statement.

    Raises
    ------
    FileNotFoundError
        Nothing is there.
    ValueError
        Not of any of these forms, or the order of checkpoints is not clear; says what is missing.
    TypeError
        Not a path nor an object of xarray.
    ImportError
        The package that reads the format is missing; says which extra to install.

    Notes
    -----
    Memory: the vectors of the steps in use. safetensors, PyTorch and plain .npz files are memory-mapped; a compressed
    .npz is decompressed step by step, forwards, unless it is in Fortran order.

    Examples
    --------
    >>> import numpy as np, pathlib, tempfile
    >>> from steepest.sources import open_source
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "run.npz"
    ...     np.savez(path, params=np.ones((3, 2)), loss=np.array([2.0, 1.0, 0.5]))
    ...     with open_source(path) as source:
    ...         print(len(source), source.fields, source.step(1).loss)
    3 ('params', 'loss') 1.0
    """
    if isinstance(source, Source):
        return source
    if is_xarray(source):
        _refuse(files, number, "an object of xarray")
        return xarray_source(source, params)
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"expected a path, an xarray Dataset or DataTree, got {type(source).__name__}; whole arrays are passed as "
            "params=, grad=, update="
        )
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"expected a folder of checkpoints, an .npz, zarr or netCDF file, got nothing at {path}"
        )
    if (path / "meta.json").is_file() and (path / "records.bin").is_file():
        raise ValueError(f"{path} is a recording: open it with steepest.Recording.open")
    if path.is_dir() and not is_zarr(path):
        return CheckpointFolder(path, files, number, params)
    _refuse(files, number, str(path))
    if path.is_dir() or path.suffix in _NETCDF:
        return xarray_source(path, params)
    if path.suffix == ".npz":
        arrays, close = open_npz(path)
        try:
            found = by_field(arrays, str(path))
            if not found:
                raise ValueError(f"expected params, grad, update or params/<name>, ... in {path}, got {list(arrays)}")
            return SeriesSource(found, str(path), params, close)
        except BaseException:
            close()
            raise
    raise ValueError(
        f"expected a folder of checkpoints, an .npz, .zarr or netCDF ({', '.join(_NETCDF)}) file, got {path.name!r}"
    )


def _refuse(files: str | None, number: str | None, what: str) -> None:
    if files is not None or number is not None:
        raise ValueError(f"expected files= and number= with a folder of checkpoints only, got them for {what}")
