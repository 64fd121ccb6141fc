"""Rows of many steps in one call of the core: from whole arrays, whose first axis is the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steepest import _core
from steepest.alignment import angle_tolerance
from steepest.arrays import EPSILON, Segment
from steepest.rounding_floor import rounding_norm
from steepest.row_format import NAN
from steepest.step_rows import fill_lags, fill_pairs, lag_of_rows

__all__ = ["StepBatch", "fill_batch", "is_direct", "steps_at_once"]

_ELEMENTS = 1 << 24  # of a batch: many steps where they are short, one where they are long
_ROWS = 1 << 17


@dataclass(frozen=True)
class StepBatch:
    """Steps that follow each other, all with gradient and update.

    Attributes
    ----------
    grad, update : list of ndarray, shape (history + steps, ...)
        One for each array of the layout, contiguous at each step, in the same element type (bfloat16 as its bits).
    history : int
        How many steps there are only for the lags of the others.
    dtypes : list of str
        Element types of these arrays.
    spacings : ndarray, shape (steps, arrays)
        See `rounding_floor.spacing_norms`; NaN where the update is no difference of parameters.
    loss, time : ndarray, shape (steps,)
        NaN where unknown.
    """

    grad: list[Segment]
    update: list[Segment]
    history: int
    dtypes: list[str]
    spacings: NDArray[np.float64]
    loss: NDArray[np.float64]
    time: NDArray[np.float64]

    def before(self, t: int, j: int) -> tuple[list[Segment], list[Segment]] | None:
        """Gradient and update of a step.

        Parameters
        ----------
        t, j : int
            It is j steps before the t-th.

        Returns
        -------
        tuple of list of ndarray, or None
            None where there is no such step.
        """
        at = self.history + t - j
        return None if at < 0 else ([x[at, ...] for x in self.grad], [x[at, ...] for x in self.update])


def steps_at_once(size: int, blocks: int) -> int:
    """How many steps make a batch.

    Parameters
    ----------
    size : int
        Number of parameters.
    blocks : int
        Rows of a step.

    Returns
    -------
    int
        At least 1.
    """
    return max(1, min(_ELEMENTS // max(size, 1), _ROWS // blocks))


def is_direct(grad: list[Segment], update: list[Segment]) -> bool:
    """Whether arrays of steps can make a batch.

    Parameters
    ----------
    grad, update : list of ndarray, shape (steps, ...)
        With at least one step.

    Returns
    -------
    bool
        Each step contiguous in memory, and both of one element type.
    """
    contiguous = all(x[0, ...].flags.c_contiguous for x in (*grad, *update))
    return contiguous and all(y.dtype == g.dtype for y, g in zip(grad, update, strict=True))


def fill_batch(rows: NDArray[np.void], number: int, batch: StepBatch) -> None:
    """Compute the rows of many steps.

    Parameters
    ----------
    rows : ndarray, shape (steps, number of blocks)
        Structured, to be written.
    number : int
        Of the first step.
    batch : StepBatch
        The steps.

    Notes
    -----
    The rows are those of `steepest.step_rows.fill_step`, bit for bit. The vectors are read once, with the steps before
    while these are in the cache.
    """
    lag = lag_of_rows(rows)
    parts = rows.shape[1]
    # Part 0 is the whole vector, and the only one of an array without a name.
    dtypes = [max(batch.dtypes, key=EPSILON.__getitem__), *batch.dtypes]
    whole = [math.hypot(*row) for row in batch.spacings.tolist()]
    spacings = np.column_stack([whole, batch.spacings])
    tolerances = np.broadcast_to([0.0 if lag else angle_tolerance(dtype) for dtype in dtypes], spacings.shape)
    # Below the rounding floor an angle means nothing: no second pass over the vectors of plain gradient descent for it.
    roundings = np.where(np.isnan(spacings) | bool(lag), 0.0, rounding_norm(spacings))
    precision = "compensated" if lag else "fast"
    products, lags = _core.step_grams(
        batch.grad, batch.update, np.ascontiguousarray(tolerances), roundings**2, batch.history, lag, precision
    )
    numbers = np.arange(number, number + len(rows))
    rows["resumed"], rows["note"], rows["decay_share"] = 0, b"", NAN
    rows["step"], rows["time"], rows["loss"] = numbers[:, None], batch.time[:, None], batch.loss[:, None]
    fill_pairs(rows, products[:, :parts], dtypes[:parts], spacings[:, :parts])
    if lag:
        fill_lags(rows, lags, batch.before)
