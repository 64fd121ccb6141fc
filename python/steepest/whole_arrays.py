"""Rows of a recording from whole arrays, whose first axis is the step."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest import _core
from steepest.arrays import ArrayOrMapping, Layout, LongVector, Segment, is_torch
from steepest.candidates import by_candidate
from steepest.parameter_difference import Difference, difference_dtypes
from steepest.rounding_floor import spacing_norms
from steepest.row_format import NAN, RecordingInfo, check_names, row_dtype
from steepest.step_batches import StepBatch, fill_batch, is_direct, steps_at_once
from steepest.step_input import StepInput
from steepest.step_rows import StepData, fill_step, ordered
from steepest.units import Units
from steepest.vector_store import StoredStep, as_arrays

__all__ = ["rows_of_arrays"]


def rows_of_arrays(
    info: RecordingInfo, params: Any, loss: Any, grad: Any, update: Any, time: Any, scale: Any
) -> tuple[RecordingInfo, NDArray[np.void], WholeArrays]:
    """Match the arrays with each other and compute the rows of every step.

    Parameters
    ----------
    info : RecordingInfo
        The options, without layout.
    params, loss, grad, update, time, scale : object
        See `steepest.recording.recording`.

    Returns
    -------
    info : RecordingInfo
        With the layout.
    rows : ndarray, shape (steps, candidates * blocks)
        Structured.
    vectors : WholeArrays
        The vectors of each step.

    Raises
    ------
    ValueError
        Names, shapes or lengths that do not fit.
    """
    layout: Layout | None = None
    whole: dict[str, _Steps] = {}
    labels = ["grad"] if info.candidates is None else [f"grad[{name!r}]" for name in info.candidates]
    grads = by_candidate(grad, "grad", info.candidates)
    for name, x in (("params", params), *zip(labels, grads, strict=True), ("update", update)):
        if x is None:
            continue
        vector = ordered(x, name, layout)
        found = _step_layout(vector, name)
        if layout is not None and found != layout:
            raise ValueError(f"expected {name} at each step to be {layout} as {next(iter(whole))}, got {found}")
        layout = found
        whole[name] = _Steps(vector, layout, vector.layout.shapes[0][0], x)
    assert layout is not None  # params or update is there
    check_names(layout)
    lengths = {name: x.length for name, x in whole.items()}
    updates, source = (lengths["update"], "update") if update is not None else (lengths["params"] - 1, "params")
    losses = [_numbers(x, "loss") for x in by_candidate(loss, "loss", info.candidates)]
    times = _numbers(time, "time")
    named = [*lengths.items(), *(("loss", len(x)) for x in losses if x is not None)]
    for name, length in [*named, *([] if times is None else [("time", len(times))])]:
        if length not in (updates, updates + 1):
            raise ValueError(
                f"expected {name} to have {updates} or {updates + 1} entries, since {source} has "
                f"{lengths[source]}, got {length}"
            )
    units = None if scale is None else Units(scale, layout)
    crc = None if units is None else units.crc
    info = replace(info, names=layout.names, shapes=layout.shapes, scale_crc=crc)
    steps = max(updates, *(length for name, length in named if name == "loss" or name in labels), 0)
    rows = np.zeros((steps, info.width), row_dtype(info.lag))
    run = _Run(info, layout, whole, labels, update is None, updates, losses, times, units)
    begin = 0 if units is not None else run.fill_batches(rows)
    run.fill_each(rows, begin)
    return info, rows, WholeArrays(whole, info.candidates, updates)


@dataclass(frozen=True)
class _Run:
    """Whole arrays that fit each other."""

    info: RecordingInfo
    layout: Layout
    whole: Mapping[str, _Steps]
    grads: Sequence[str]  # their places in `whole`, one for each candidate
    differences: bool  # updates are formed of params
    updates: int
    losses: Sequence[NDArray[np.float64] | None]
    times: NDArray[np.float64] | None
    units: Units | None

    @property
    def _blocks(self) -> int:
        return 1 + len(self.layout.names or ())

    def fill_batches(self, rows: NDArray[np.void]) -> int:
        """Rows of the steps that have gradients and update, many at once; how many steps these are."""
        names = (*self.grads, "params" if self.differences else "update")
        if any(name not in self.whole for name in names):
            return 0
        count = min(self.updates, *(self.whole[name].length for name in self.grads))
        grads, moves = [self.whole[name] for name in self.grads], self.whole[names[-1]]
        lag = self.info.lag
        at_once = steps_at_once(self.layout.size, self._blocks)
        updates = moves.whole.segments
        if self.differences:
            at_once = max(at_once, lag)
            shapes, dtypes = self.layout.shapes, difference_dtypes(moves.whole, moves.whole)
            updates = [np.empty((min(at_once + lag, count), *s), d) for s, d in zip(shapes, dtypes, strict=True)]
        if count == 0 or not all(is_direct(x.whole.segments, updates) for x in grads):
            return 0
        for begin in range(0, count, at_once):
            end, history = min(begin + at_once, count), min(begin, lag)
            steps = slice(begin - history, end)
            update = self._differences(moves, steps, updates) if self.differences else moves.segments(steps)
            spacings = self._spacings(begin, end)
            for c, grad in enumerate(grads):
                loss, time = (_between(x, begin, end) for x in (self.losses[c], self.times))
                batch = StepBatch(grad.segments(steps), update, history, [*grad.whole.dtypes], spacings, loss, time)
                fill_batch(rows[begin:end, c * self._blocks : (c + 1) * self._blocks], begin, batch)
        return count

    def fill_each(self, rows: NDArray[np.void], begin: int) -> None:
        """Rows of the steps from `begin` on, one by one."""
        lag = self.info.lag
        previous: deque[list[StepData]] = deque(maxlen=lag)
        for t in range(max(0, begin - lag), len(rows)):
            here = {name: x.at(t) for name, x in self.whole.items()}
            g = here.get("update")
            if self.differences and t < self.updates:
                g = self.whole["params"].step(t)
            numbers = [_at(one, t) for one in self.losses]
            grads = [here.get(name) for name in self.grads]
            given = StepInput(self.layout, here.get("params"), g, grads, numbers, not self.info.rate)
            data = given.data(_at(self.times, t), self.units, lag)
            if t >= begin:
                for c, one in enumerate(data):
                    own = rows[t, c * self._blocks : (c + 1) * self._blocks]
                    fill_step(own, t, one, [before[c] for before in previous])
            previous.appendleft(data)

    @staticmethod
    def _differences(params: _Steps, steps: slice, out: list[Segment]) -> list[Segment]:
        into = [x[: steps.stop - steps.start] for x in out]
        _core.difference(params.segments(slice(steps.start + 1, steps.stop + 1)), params.segments(steps), into)
        return into

    def _spacings(self, begin: int, end: int) -> NDArray[np.float64]:
        params = None if self.info.rate else self.whole.get("params")
        if params is None:
            return np.full((end - begin, len(self.layout.shapes)), NAN)
        # All steps in one call: as if they were arrays of one step
        segments = [s[t, ...] for t in range(begin, end) for s in params.whole.segments]
        together = LongVector(segments, self.layout, params.whole.dtypes * (end - begin))
        return np.array(spacing_norms(together)).reshape(end - begin, -1)


@dataclass(frozen=True)
class _Steps:
    """A long vector with a first axis of steps, and the arrays of the user."""

    whole: LongVector
    layout: Layout
    length: int
    given: ArrayOrMapping

    def at(self, t: int) -> LongVector | None:
        """Views of one step, None behind the end."""
        if t >= self.length:
            return None
        return LongVector([s[t, ...] for s in self.whole.segments], self.layout, self.whole.dtypes)

    def segments(self, steps: slice) -> list[Segment]:
        """Views of some steps, which stay the first axis."""
        return [s[steps] for s in self.whole.segments]

    def step(self, t: int) -> LongVector | None:
        """The difference of parameters."""
        before, after = self.at(t), self.at(t + 1)
        return None if before is None or after is None else Difference.of(after, before).formed()

    def of_user(self, t: int) -> ArrayOrMapping | None:
        """Step t of the arrays as they were given."""
        if t >= self.length:
            return None
        if not isinstance(self.given, Mapping):
            return _row(self.given, t)
        return {name: _row(self.given[name], t) for name in self.layout.names or ()}


@dataclass(frozen=True)
class WholeArrays:
    """The vectors of each step as views of the arrays of the user.

    Attributes
    ----------
    arrays : dict
        params, grad (of each candidate), update.
    candidates : tuple of str or None
        Of the recording.
    updates : int
        Number of updates.
    """

    arrays: Mapping[str, _Steps]
    candidates: tuple[str, ...] | None
    updates: int

    def __call__(self, t: int) -> StoredStep:
        """The vectors of one step.

        Parameters
        ----------
        t : int
            The step.

        Returns
        -------
        StoredStep
            Views; an update that was formed of params is formed again.
        """
        found = {name: x.of_user(t) for name, x in self.arrays.items()}
        update = found.get("update")
        if "update" not in self.arrays and t < self.updates:
            update = as_arrays(self.arrays["params"].step(t))
        if self.candidates is None:
            return StoredStep(found.get("params"), found.get("grad"), update)
        each = {name: found.get(f"grad[{name!r}]") for name in self.candidates}
        return StoredStep(found.get("params"), {k: x for k, x in each.items() if x is not None}, update)


def _row(x: Any, t: int) -> Any:
    x = np.asarray(x) if isinstance(x, list | tuple) else x
    return x[t, ...]


def _step_layout(x: LongVector, name: str) -> Layout:
    """Names and shapes at one step."""
    if not all(x.layout.shapes):
        raise ValueError(f"expected the first axis of {name} to be the step, got {x.layout}")
    if len({shape[0] for shape in x.layout.shapes}) > 1:
        raise ValueError(f"expected the arrays of {name} to have the same number of steps, got {x.layout}")
    return Layout(x.layout.names, tuple(shape[1:] for shape in x.layout.shapes))


def _numbers(x: Any, name: str) -> NDArray[np.float64] | None:
    """One number for each step."""
    if x is None:
        return None
    array = np.asarray(x.detach().double().cpu() if is_torch(x) else x)
    if array.dtype.kind not in "iuf" and array.dtype.name != "bfloat16":
        raise TypeError(f"expected {name} to hold real numbers, got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"expected {name} to have shape (steps,), got {array.shape}")
    return array.astype(np.float64)


def _between(x: NDArray[np.float64] | None, begin: int, end: int) -> NDArray[np.float64]:
    found = np.full(end - begin, NAN)
    if x is not None:
        found[: max(0, min(end, len(x)) - begin)] = x[begin:end]
    return found


def _at(x: NDArray[np.float64] | None, t: int) -> float:
    return float(x[t]) if x is not None and t < len(x) else NAN
