"""The pair of each step and block from the rows of a recording: status, angle, norms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.analysis.angles import sign_flip_half_width
from steepest.arrays import EPSILON, FLOAT_NAMES
from steepest.row_format import STATUS_CODE

__all__ = ["PAIR_COLUMNS", "chunks", "continuous_rows", "epsilon_of", "norm_of"]

Array = NDArray[np.float64]

#: Name -> dtype of what a pair gives.
PAIR_COLUMNS: dict[str, Any] = {
    "status_code": np.int8,
    "cos": np.float64,
    "sin": np.float64,
    "psi_floor": np.float64,
    "null_sign_flip": np.float64,
    "grad_norm": np.float64,
    "update_norm": np.float64,
    "rho": np.float64,
    "correction_share": np.float64,
    "decay_share": np.float64,
}
# Rows at a time: they and their results stay in the cache.
_CHUNK = 1 << 14
_EPSILONS = np.array([*(EPSILON[name] for name in FLOAT_NAMES), np.nan])  # -1, no vector, is the last


def chunks(steps: int, blocks: int, rows: int = _CHUNK) -> Iterator[slice]:
    """Ranges of steps of about `rows` rows.

    Parameters
    ----------
    steps, blocks : int
        Of the recording.
    rows : int
        Steps times blocks.

    Yields
    ------
    slice
        One after the other.
    """
    length = max(1, rows // max(1, blocks))
    for start in range(0, steps, length):
        yield slice(start, min(start + length, steps))


def epsilon_of(rows: NDArray[np.void]) -> Array:
    """Relative rounding of the coarser element type of each row; NaN where both vectors are missing.

    Parameters
    ----------
    rows : ndarray
        Of a recording.

    Returns
    -------
    ndarray
        In the shape of `rows`.
    """
    found: Array = _EPSILONS[rows["dtype"]]
    return found


def norm_of(squared: NDArray[Any], exponent: NDArray[Any]) -> Array:
    """``sqrt(squared) * 2**exponent``.

    Parameters
    ----------
    squared : ndarray
        Not negative, or NaN.
    exponent : ndarray of int
        Of two.

    Returns
    -------
    ndarray
        Infinite or zero where it leaves the range.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        found: Array = np.ldexp(np.sqrt(squared), exponent)
    return found


def continuous_rows(rows: NDArray[np.void], single: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """The pair (-grad, update) of each row, as `Recording.alignment` has it.

    Parameters
    ----------
    rows : ndarray, shape (steps, blocks)
        Of a recording.
    single : ndarray of bool, shape (blocks,)
        Blocks of one parameter.

    Returns
    -------
    dict
        The arrays of `PAIR_COLUMNS`.
    """
    code = rows["status"]
    paired = code <= STATUS_CODE["undecided"]
    cosine = np.where(paired, -rows["cosine"], np.nan)
    sine = np.where(paired, rows["sine"], np.nan)
    if single.any():  # one dimension has two directions only
        cosine[:, single] = np.where(paired[:, single], np.copysign(1.0, cosine[:, single]), np.nan)
        sine[:, single] = np.where(paired[:, single], 0.0, np.nan)
    yy, gg = np.sqrt(rows["yy"]), np.sqrt(rows["gg"])
    y_exponent, g_exponent = rows["y_exponent"], rows["g_exponent"]
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        return {
            "status_code": code,
            "cos": cosine,
            "sin": sine,
            "psi_floor": np.fmax(epsilon_of(rows), rows["psi_floor"]),
            "null_sign_flip": sign_flip_half_width(np.where(paired, rows["sign_flip_variance"], np.nan)),
            "grad_norm": np.ldexp(yy, y_exponent),
            "update_norm": np.ldexp(gg, g_exponent),
            "rho": np.where(gg > 0.0, np.ldexp(yy / gg, y_exponent - g_exponent), np.nan),
            "correction_share": np.where(paired, 0.0, np.nan),
            "decay_share": rows["decay_share"],
        }
