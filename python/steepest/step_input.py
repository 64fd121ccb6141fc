"""What a user hands to `Recorder.step`: views of one layout, and the numbers of each candidate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from steepest.arrays import Layout, LongVector, is_torch
from steepest.candidates import by_candidate
from steepest.parameter_difference import Difference, StepPass
from steepest.rounding_floor import norms_of_squares, spacing_norms
from steepest.row_format import check_names
from steepest.step_rows import StepData, coarsest_of_blocks, ordered
from steepest.units import Units

__all__ = ["StepInput", "number_of", "read_step"]


@dataclass(frozen=True)
class StepInput:
    """Views of what is known of one step.

    Attributes
    ----------
    layout : Layout
        Of all vectors.
    params, update : LongVector or None
        Before the step, and the step.
    grads : list of LongVector or None
        One for each candidate.
    losses : list of float
        One for each candidate, NaN if unknown.
    difference : bool
        Whether `update` is a difference of parameters, and has their rounding.
    unformed : Difference, optional
        In place of `update`, for one gradient, which is there, and a recording without lag, units and vectors. Its
        spacing is that of `params`.
    """

    layout: Layout
    params: LongVector | None
    update: LongVector | None
    grads: list[LongVector | None]
    losses: list[float]
    difference: bool = True
    unformed: Difference | None = None

    def data(self, time: float, units: Units | None, lag: int) -> list[StepData]:
        """What the rows are computed from.

        Parameters
        ----------
        time : float
            Of the step.
        units : Units or None
            Of the parameters.
        lag : int
            Of the recording. With units and lag the vectors are copied to float64 in these units.

        Returns
        -------
        list of StepData
            One for each candidate.
        """
        if self.unformed is not None:
            return [self._in_one_pass(self.unformed, time)]
        spacings = None
        if self.difference and self.params is not None and self.update is not None:
            spacings = spacing_norms(self.params, None if units is None else units.scale)
        update, base = self.update, None
        if units is not None and lag:
            update = units.of_update(update)
        elif units is not None:
            base = units.base
        found = []
        for grad, loss in zip(self.grads, self.losses, strict=True):
            y = units.of_grad(grad) if units is not None and lag else grad
            dtypes = coarsest_of_blocks(grad, self.update)
            found.append(StepData(y, update, spacings, loss, time, self.layout, dtypes, base))
        return found

    def _in_one_pass(self, unformed: Difference, time: float) -> StepData:
        grad = self.grads[0]
        assert grad is not None  # so it is made
        assert self.params is not None
        sums = StepPass(grad, unformed)
        spacings = norms_of_squares(sums.spacing_squares, self.params)
        dtypes = coarsest_of_blocks(grad, unformed)
        return StepData(grad, None, spacings, self.losses[0], time, self.layout, dtypes, sums=sums)


def read_step(
    known: Layout | None,
    candidates: tuple[str, ...] | None,
    params: Any,
    loss: Any,
    grad: Any,
    update: Any,
    params_next: Any,
    products_only: bool = False,
) -> StepInput:
    """Check and match the arguments of `Recorder.step`.

    Parameters
    ----------
    known : Layout or None
        Of the steps before.
    candidates : tuple of str or None
        Of the recording.
    params, loss, grad, update, params_next : object
        See `Recorder.step`.
    products_only : bool
        Whether only the products of the update are asked for.

    Returns
    -------
    StepInput
        Views; only the update of `params_next` is a new vector, if it is needed.

    Raises
    ------
    ValueError
        Names or shapes that do not fit, or missing arguments.
    """
    if params_next is not None and (update is not None or params is None):
        raise ValueError("expected params_next beside params and without update")
    layout, origin = known, "in the first step"

    def matched(x: Any, name: str) -> LongVector | None:
        nonlocal layout, origin
        if x is None:
            return None
        vector = ordered(x, name, layout)
        if layout is None:
            layout, origin = vector.layout, name
            check_names(layout)
        elif vector.layout != layout:
            raise ValueError(f"expected {name} to be {layout} as {origin}, got {vector.layout}")
        return vector

    start = matched(params, "params")
    labels = ["grad"] if candidates is None else [f"grad[{name!r}]" for name in candidates]
    each = by_candidate(grad, "grad", candidates)
    grads = [matched(x, label) for x, label in zip(each, labels, strict=True)]
    step, end = matched(update, "update"), matched(params_next, "params_next")
    if layout is None:
        raise ValueError("expected params, grad or update in the first step, which names the blocks, got none")
    unformed = None
    if start is not None and end is not None:
        unformed = Difference.of(end, start)
        if not products_only or len(grads) > 1 or grads[0] is None:
            step, unformed = unformed.formed(), None
    losses = [number_of(x) for x in by_candidate(loss, "loss", candidates)]
    return StepInput(layout, start, step, grads, losses, unformed=unformed)


def number_of(x: Any) -> float:
    """One real number.

    Parameters
    ----------
    x : object
        A number, an array of one element, or None.

    Returns
    -------
    float
        NaN for None.

    Raises
    ------
    TypeError
        Anything else.
    """
    if x is None:
        return math.nan
    if is_torch(x):
        x = x.detach()
    if hasattr(x, "shape") and math.prod(x.shape) == 1:
        x = x.reshape(())
    try:
        if isinstance(x, str | bytes):
            raise TypeError("it is text")
        return float(x)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"expected loss to be a real number, got {type(x).__name__}: {error}") from error
