"""An analysis as one file: arrays and JSON, nothing pickled."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from steepest.analysis.columns import COLUMNS, PAIR_STATUSES, PAIRS
from steepest.analysis.pair_rows import PAIR_COLUMNS
from steepest.row_format import RecordingInfo

if TYPE_CHECKING:
    from steepest.analysis.run import RunAnalysis

__all__ = ["load_runs", "save_runs"]

_FORMAT, _VERSION = "steepest-analysis", 1
# What follows from other columns is not stored.
_DERIVED = ("angle", "isotropic", "spectrum", "path")
_STORED = (
    "step",
    *(name for name, column in COLUMNS.items() if column.group not in (*_DERIVED, "pair")),
    *PAIR_COLUMNS,
)


def save_runs(runs: dict[str, RunAnalysis], path: str | os.PathLike[str]) -> None:
    """Write a file that `load_runs` reads; see `Analysis.save`.

    Parameters
    ----------
    runs : dict
        Run name -> its analysis.
    path : path-like
        Replaced if there is one, when all is written.
    """
    target = Path(path)
    arrays: dict[str, NDArray[Any]] = {}
    described = []
    for i, run in enumerate(runs.values()):
        missing = []
        for name in _STORED:
            values = run[name]
            if values.ndim == 2 and values.strides == (0, 0) and values.size:  # one NaN for all
                missing.append(name)
            else:
                arrays[f"{i}/{name}"] = values
        plain = {name: getattr(run, name) for name in ("name", "candidate", "pair", "window", "blocks", "sizes")}
        described.append(plain | {"info": asdict(run.info), "missing": missing})
    head = {"format": _FORMAT, "version": _VERSION, "statuses": PAIR_STATUSES, "runs": described}
    arrays["analysis.json"] = np.frombuffer(json.dumps(head).encode(), np.uint8)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load_runs(path: str | os.PathLike[str]) -> dict[str, RunAnalysis]:
    """Read what `save_runs` wrote, into memory.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    dict
        Run name -> its analysis, without its recording.

    Raises
    ------
    ValueError
        Not such a file, or of a version that is not known here.
    """
    from steepest.analysis.run import RunAnalysis

    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            head = json.loads(archive["analysis.json"].tobytes())
            if head["format"] != _FORMAT or head["version"] != _VERSION:
                raise ValueError(f"its format is {head['format']!r}, version {head['version']!r}")
            if head["statuses"] != list(PAIR_STATUSES[: len(head["statuses"])]):
                raise ValueError(f"its statuses are {head['statuses']}")
            runs = {}
            for i, run in enumerate(head["runs"]):
                if run["pair"] not in PAIRS:
                    raise ValueError(f"its pair is {run['pair']!r}")
                cache = {name: archive[f"{i}/{name}"] for name in _STORED if name not in run["missing"]}
                shape = cache["step"].shape[0], len(run["blocks"])
                cache |= {name: np.broadcast_to(np.float64(np.nan), shape) for name in run["missing"]}
                for values in cache.values():
                    values.flags.writeable = False
                info = RecordingInfo(**{key: _tuples(value) for key, value in run["info"].items()})
                loaded = RunAnalysis(
                    run["name"], run["candidate"], info, run["pair"], run["window"], tuple(run["blocks"]),
                    tuple(run["sizes"]), _cache=cache,
                )  # fmt: skip
                runs[loaded.name] = loaded
            return runs
    except (KeyError, TypeError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"expected {os.fspath(path)} to be an analysis that Analysis.save of format version {_VERSION} wrote, "
            f"got {error}"
        ) from error


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
