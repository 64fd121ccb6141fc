"""Recording a training loop while it runs: a few numbers a step, in memory or in an append-only folder."""

from __future__ import annotations

import errno
import math
import os
import time
from collections import deque
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import ArrayOrMapping, Layout, LongVector, is_torch
from steepest.recording import Recording
from steepest.row_format import NOTE_BYTES, GradientSource, Objective, RecordingInfo, check_names, row_dtype
from steepest.step_rows import StepData, difference, fill_skipped, fill_step, ordered
from steepest.storage import RecordReader, RecordWriter

__all__ = ["Recorder"]


class Recorder:
    """Records steps of a learning rule as they happen; `recording()` and `Recording.open` read them.

    A step costs one or two reads of its vectors; no long vector is written, and none is kept but with ``lag``. With a
    path a step is one append, of all its blocks or of none: when `step` has returned it survives the death of the
    process, with ``sync=True`` also a power cut (see docs/recording-format.md).

    Parameters
    ----------
    path : path-like, optional
        Folder to be made, when the first step is recorded. None records in memory.
    every : int
        Record each step whose number is a multiple. Steps are numbered from 0 by the calls of `step` and `skip`.
    lag : int
        w >= 1 also records the inner products of grad and update of each step with those of the w steps before it. For
        this w copies of grad and w of update stay in memory, in their dtypes, and a step costs 1 + w compensated passes
        instead of a fast one. With ``every > 1`` the w steps after each multiple are recorded too.
    objective : {'unknown', 'fixed'}
        ``fixed``: all losses and gradients belong to one function (full batch, a dynamical system).
    gradient_source : {'rule', 'evaluation', 'estimate'}
        The gradient that the rule consumed, one computed for the purpose, or an estimate.
    resume : bool
        Go on with the folder at `path`, marking the first row (`Recording.resumed`), or make it if there is none. Steps
        go on after the last recorded number.
    sync : bool
        Flush each append to the disk, which takes milliseconds.

    Attributes
    ----------
    path : Path or None
        Where.

    Raises
    ------
    FileExistsError
        Something is at `path`, and not `resume`.
    ValueError
        An option has no valid value, or differs from the one of the recording that is resumed.

    See Also
    --------
    steepest.recording : From whole arrays.

    Notes
    -----
    What the rows of step t and t + 1 hold decides which pairs (theory, sections 1 and 7) can be formed of them later:

    - any recording: the continuous pair (-grad_t, update_t);
    - with the losses L_t and L_{t+1}, hence ``every=1`` or ``lag >= 1``: the left discrete gradient;
    - with ``lag >= 1``: the trapezoid one too, of the mean gradient (grad_t + grad_{t+1})/2; grad_t . grad_{t+1} and
      grad_{t+1} . update_t are in the row of step t + 1 as ``lag_yy``, ``lag_yg``;
    - with ``lag >= w``: the pairs of a window of w steps, (A) with the mean of grad_t ... grad_{t+w-1} and the
      displacement update_t, and (B) with the mean of grad_t ... grad_{t+w} and the displacement of the whole window,
      update_t + ... + update_{t+w-1}, as long as nothing but these updates moved the parameters.

    Their Gram matrices are sums of recorded products with coefficients. They cancel, so with lag all products come from
    compensated passes (relative error about 2^-104 of the norms).

    To close the last step or window, call `step` once more with the last loss and gradient and without update.

    One thread at a time.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest.recorder import Recorder
    >>> theta, eta = np.array([1.0, 1.0]), np.array([0.1, 0.3])
    >>> with Recorder(objective="fixed") as rec:
    ...     for _ in range(3):
    ...         loss, grad = 0.5 * theta @ theta, theta
    ...         update = -eta * grad
    ...         rec.step(params=theta, loss=loss, grad=grad, update=update)
    ...         theta = theta + update
    >>> rec.recording().alignment(0)  # doctest: +ELLIPSIS
    Alignment(status='ok', n=2, angle=26.5651 deg, cond_min=2.61803, ...)
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        every: int = 1,
        lag: int = 0,
        objective: Objective = "unknown",
        gradient_source: GradientSource = "rule",
        resume: bool = False,
        sync: bool = False,
    ) -> None:
        if every < 1 or every != int(every):
            raise ValueError(f"expected every to be an integer of at least 1, got {every!r}")
        if lag < 0 or lag != int(lag):
            raise ValueError(f"expected lag to be an integer of at least 0, got {lag!r}")
        if resume and path is None:
            raise ValueError("expected a path to resume, got none")
        self.path = None if path is None else Path(path).absolute()
        # Without arrays yet, but it checks the options.
        self._info = RecordingInfo(None, (), objective, gradient_source, lag=int(lag), every=int(every))
        self._layout: Layout | None = None
        self._sync, self._closed, self._resumed = sync, False, False
        self._writer: RecordWriter | None = None
        self._memory: NDArray[np.void] | None = None
        self._count = self._next = 0
        self._skipped: list[tuple[int, float, bytes]] = []  # before the blocks are known
        self._ring: deque[tuple[int, StepData]] = deque()  # the last `lag` steps, newest first
        if self.path is not None and os.path.lexists(self.path):
            if not resume:
                raise FileExistsError(
                    errno.EEXIST, "a recording is never overwritten: pass resume=True, or another path", str(self.path)
                )
            self._resume(self.path)

    def _resume(self, path: Path) -> None:
        info = RecordingInfo.from_json(RecordReader(path).user, str(path))
        wanted = replace(self._info, names=info.names, shapes=info.shapes)
        if info != wanted:
            raise ValueError(f"expected the options with which {path} was begun, {info}, got {wanted}")
        self._writer = RecordWriter.resume(path, row_dtype(info.lag), sync=self._sync)
        self._info, self._layout, self._resumed = info, info.layout, True
        known = Recording.open(path)
        self._count = len(known)
        self._next = int(known.step[-1]) + 1 if len(known) else 0

    def step(
        self,
        *,
        params: ArrayOrMapping | None = None,
        loss: Any = None,
        grad: ArrayOrMapping | None = None,
        update: ArrayOrMapping | None = None,
        params_next: ArrayOrMapping | None = None,
    ) -> None:
        """Record one step. What is not known is left out.

        Parameters
        ----------
        params : array or mapping name -> array, optional
            Parameters before the step; they give the rounding floor of the angle. Leave them out where `update` is not
            a difference of parameters but what the rule added to them.
        loss : float, optional
            At `params`: a number, or an array of one.
        grad : array or mapping name -> array, optional
            +dL/dtheta at `params`; missing is status ``no_gradient``.
        update : array or mapping name -> array, optional
            ``params_next - params``; missing is status ``no_update``.
        params_next : array or mapping name -> array, optional
            Instead of `update`, which is then formed (a long vector for the time of the call). If the optimiser works
            in place, `params` must be a copy made before it ran.

        Raises
        ------
        ValueError
            Names or shapes differ from each other or from those of the first step; both `update` and `params_next`, or
            the latter without `params`; the recorder is closed; no array in the first step.
        TypeError
            An unsupported dtype or type.
        OSError
            The disk is full or failing: the step is not recorded, and may be tried again.
        """
        self._require_open()
        number = self._next
        every, lag = self._info.every, self._info.lag
        if number % every > lag:
            self._next += 1
            return
        layout, data = self._read(params, loss, grad, update, params_next)
        if self._layout is None:
            self._start(layout)
        known = dict(self._ring)
        previous = [known.get(number - j) for j in range(1, lag + 1)]
        rows = self._rows(len(self._skipped) + 1)
        for row, (skipped, when, note) in zip(rows, self._skipped, strict=False):
            fill_skipped(row, skipped, when, note)
        fill_step(rows[-1], number, data, previous, self._resumed)
        self._append(rows)
        self._skipped = []
        self._next += 1
        if any((number + j) % every <= lag for j in range(1, lag + 1)):
            self._keep(number, data)

    def _keep(self, number: int, data: StepData) -> None:
        """Copy gradient and update into the ring, in the memory of the oldest step if it is full."""
        oldest = self._ring.pop()[1] if len(self._ring) == self._info.lag else None
        grad = _copied(data.grad, None if oldest is None else oldest.grad)
        update = _copied(data.update, None if oldest is None else oldest.update)
        self._ring.appendleft((number, replace(data, grad=grad, update=update, params=None)))

    def skip(self, reason: str = "") -> None:
        """Record that the loop made no step here (a gradient scaler found infinities, say): status ``skipped``.

        It counts as a step, and is recorded whatever `every` is. Before the first step, whose arrays are the blocks, it
        waits for that one.

        Parameters
        ----------
        reason : str
            At most 24 bytes in UTF-8; see `Recording.notes`.

        Raises
        ------
        ValueError
            `reason` is too long, or the recorder is closed.
        OSError
            As `step`.
        """
        self._require_open()
        note = reason.encode()
        if len(note) > NOTE_BYTES:
            raise ValueError(f"expected a reason of at most {NOTE_BYTES} bytes, got {len(note)}: {reason!r}")
        when = time.time()
        if self._layout is None:
            self._skipped.append((self._next, when, note))
        else:
            rows = self._rows(1)
            fill_skipped(rows[0], self._next, when, note, self._resumed)
            self._append(rows)
        self._next += 1

    def recording(self) -> Recording:
        """What has been recorded so far; does not change when more is.

        Returns
        -------
        Recording
            Of the folder, with the steps before a resume, or of the rows in memory, without a copy.

        Raises
        ------
        ValueError
            There is no step yet, so that the blocks are not known.
        """
        if self._layout is None:
            raise ValueError("expected at least one step to be recorded, got none")
        if self.path is not None:
            return Recording.open(self.path)
        assert self._memory is not None  # made with the layout
        return Recording(self._info, self._memory[: self._count])

    def close(self) -> None:
        """Close the folder; a second time does nothing. `recording` still works."""
        self._closed = True
        self._ring.clear()
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        where = "in memory" if self.path is None else repr(str(self.path))
        return f"<Recorder {where}: {self._count} steps recorded, {'closed' if self._closed else 'open'}>"

    def _require_open(self) -> None:
        if self._closed:
            raise ValueError("the recorder is closed; Recorder(path, resume=True) goes on with a folder")

    def _read(self, params: Any, loss: Any, grad: Any, update: Any, params_next: Any) -> tuple[Layout, StepData]:
        """Views of the arguments, and the layout that they share."""
        if params_next is not None and (update is not None or params is None):
            raise ValueError("expected params_next beside params and without update")
        layout, origin = self._layout, "in the first step"
        views: dict[str, LongVector] = {}
        arguments = (("params", params), ("grad", grad), ("update", update), ("params_next", params_next))
        for name, x in arguments:
            if x is None:
                continue
            views[name] = ordered(x, name, layout)
            if layout is None:
                layout, origin = views[name].layout, name
                check_names(layout)
            elif views[name].layout != layout:
                raise ValueError(f"expected {name} to be {layout} as {origin}, got {views[name].layout}")
        if layout is None:
            raise ValueError("expected params, grad or update in the first step, which names the blocks, got none")
        g = difference(views["params_next"], views["params"]) if params_next is not None else views.get("update")
        known = None if g is None else views.get("params")
        return layout, StepData(views.get("grad"), g, known, _number(loss), time.time(), layout)

    def _start(self, layout: Layout) -> None:
        """The blocks are known: make the folder or the rows in memory."""
        info = replace(self._info, names=layout.names, shapes=layout.shapes)
        if self.path is None:
            self._memory = np.zeros((64, 1 + len(layout.names or ())), row_dtype(info.lag))
        else:
            self._writer = RecordWriter.create(self.path, row_dtype(info.lag), user=info.to_json(), sync=self._sync)
        self._info, self._layout = info, layout

    def _rows(self, steps: int) -> NDArray[np.void]:
        """Room for the rows of some steps: of the memory, or of an append."""
        if self._memory is None:
            return np.zeros((steps, 1 + len(self._info.names or ())), row_dtype(self._info.lag))
        needed, (room, blocks) = self._count + steps, self._memory.shape
        if needed > room:  # recordings that were handed out keep the old rows
            grown = np.zeros((max(2 * room, needed), blocks), self._memory.dtype)
            grown[: self._count] = self._memory[: self._count]
            self._memory = grown
        return self._memory[self._count : needed]

    @property
    def next_step(self) -> int:
        """Number of the step that `step` or `skip` records next."""
        return self._next

    def _append_rows(self, layout: Layout, rows: NDArray[np.void]) -> None:
        """Record rows that were filled elsewhere (`step_rows.scalar_row`), instead of a call of `step`.

        Parameters
        ----------
        layout : Layout
            Of the step.
        rows : ndarray, shape (steps, blocks)
            Of `row_dtype` with this recorder's lag; step numbers ascend, from `next_step` on. `resumed` is set here.

        Raises
        ------
        ValueError
            Another layout or shape, step numbers that were used, or the recorder is closed.
        """
        self._require_open()
        if self._layout is None:
            check_names(layout)
        elif layout != self._layout:
            raise ValueError(f"expected rows of {self._layout} as in the first step, got {layout}")
        width = 1 + len(layout.names or ())
        if rows.dtype != row_dtype(self._info.lag) or rows.ndim != 2 or rows.shape[1] != width:
            raise ValueError(f"expected rows of shape (steps, {width}) with lag {self._info.lag}, got {rows.shape}")
        numbers = rows["step"][:, 0].tolist()
        if any(b <= a for a, b in pairwise([self._next - 1, *numbers])):
            raise ValueError(f"expected ascending step numbers from {self._next} on, got {numbers[:8]}")
        if self._layout is None:
            self._start(layout)
        skipped = len(self._skipped)
        room = self._rows(skipped + len(rows))
        for row, (number, when, note) in zip(room, self._skipped, strict=False):
            fill_skipped(row, number, when, note)
        room[skipped:] = rows
        room["resumed"][:1] = self._resumed
        self._append(room)
        self._skipped = []
        self._next = numbers[-1] + 1 if numbers else self._next

    def _append(self, rows: NDArray[np.void]) -> None:
        if self._writer is not None:
            self._writer.append(rows.ravel())
        self._count += len(rows)
        self._resumed = False


def _copied(x: LongVector | None, kept: LongVector | None) -> LongVector | None:
    """A copy, in the memory of the last one if it fits."""
    if x is None:
        return None
    if kept is None or kept.dtypes != x.dtypes:
        return replace(x, segments=[np.array(segment) for segment in x.segments])
    for target, segment in zip(kept.segments, x.segments, strict=True):
        np.copyto(target, segment)
    return kept


def _number(x: Any) -> float:
    """One real number, NaN for None."""
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
