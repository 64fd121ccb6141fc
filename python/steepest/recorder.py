"""Recording a training loop while it runs: a few numbers a step, in memory or in an append-only folder."""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from steepest import candidates as candidate_names
from steepest.arrays import ArrayOrMapping, Layout, LongVector
from steepest.recording import Recording
from steepest.row_format import NOTE_BYTES, GradientSource, Keep, Objective, RecordingInfo, check_names, row_dtype
from steepest.step_input import StepInput, read_step
from steepest.step_rows import StepData, fill_skipped, fill_step
from steepest.storage import RecordReader, RecordWriter
from steepest.units import Units
from steepest.vector_store import VectorFolder, VectorMemory

__all__ = ["Recorder"]


# Of one step: params, the gradient of each candidate, update.
StepVectors = tuple[LongVector | None, Sequence[LongVector | None], LongVector | None]


class Recorder:
    """Records steps of a learning rule as they happen; `recording()` and `Recording.open` read them.

    A step costs one or two reads of its vectors; no long vector is written or kept but with ``lag``, ``keep="vectors"``
    or ``scale``, or where `params_next` stands for an update whose angle one read does not settle. With a path a step
    is one append, of all its blocks or of none: when `step` has returned it survives the death of the process, with
    ``sync=True`` also a power cut (see docs/recording-format.md).

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
    keep : {'scalars', 'vectors'}
        ``vectors`` also keeps params, grad and update of each recorded step in their element types, for
        `Recording.vectors`: with a path in one safetensors file a step, which is there before the step is acknowledged;
        without one as copies in memory.
    scale : array or mapping name -> array, optional
        Units of the parameters, positive, of their names and shapes: yy = sum (scale grad)^2,
        gg = sum (update/scale)^2, which angles, norms and `psi_floor` then refer to. Two long vectors in float64 stay
        in memory. With ``lag`` the scaled vectors are rounded to float64, and the ring holds those.
    candidates : sequence of str, optional
        Names of several losses that are recorded side by side: `step` then takes mappings candidate -> value for `loss`
        and `grad`. Default: the keys of `loss` in the first step if it is a mapping, or of `grad` if all its VALUES are
        mappings; a `grad` whose values are arrays is one gradient, by names of arrays. So it must be given where there
        is no loss and the parameters are a single array.
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
        keep: Keep = "scalars",
        scale: ArrayOrMapping | None = None,
        candidates: Sequence[str] | None = None,
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
        named = candidate_names.checked(candidates)
        self._info = RecordingInfo(
            None, (), objective, gradient_source, False, int(lag), int(every), named, keep, scale is not None
        )
        self._layout: Layout | None = None
        self._sync, self._closed, self._resumed = sync, False, False
        self._writer: RecordWriter | None = None
        self._memory: NDArray[np.void] | None = None
        self._count = self._next = 0
        self._skipped: list[tuple[int, float, bytes]] = []  # before the blocks are known
        self._scale = scale
        self._units: Units | None = None  # of the scale, once the layout is known
        self._vectors: VectorFolder | VectorMemory | None = None
        # The last `lag` steps, newest first, one StepData for each candidate.
        self._ring: deque[tuple[int, list[StepData]]] = deque()
        if self.path is not None and os.path.lexists(self.path):
            if not resume:
                raise FileExistsError(
                    errno.EEXIST, "a recording is never overwritten: pass resume=True, or another path", str(self.path)
                )
            self._resume(self.path)

    def _resume(self, path: Path) -> None:
        info = RecordingInfo.from_json(RecordReader(path).user, str(path))
        if self._scale is not None:
            self._units = Units(self._scale, info.layout)
        wanted = replace(
            self._info,
            names=info.names,
            shapes=info.shapes,
            candidates=self._info.candidates or info.candidates,
            scale_crc=None if self._units is None else self._units.crc,
        )
        if info != wanted:
            raise ValueError(f"expected the options with which {path} was begun, {info}, got {wanted}")
        self._writer = RecordWriter.resume(path, row_dtype(info.lag), sync=self._sync)
        self._info, self._layout, self._resumed = info, info.layout, True
        self._vectors = VectorFolder(path, info.names, info.candidates) if info.keep == "vectors" else None
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
            At `params`: a number, or an array of one. With candidates a mapping candidate -> number.
        grad : array or mapping name -> array, optional
            +dL/dtheta at `params`; missing is status ``no_gradient``. With candidates a mapping candidate -> gradient;
            some may be left out.
        update : array or mapping name -> array, optional
            ``params_next - params``; missing is status ``no_update``.
        params_next : array or mapping name -> array, optional
            Instead of `update`, which is then formed while the vectors are read; with ``lag``, ``keep="vectors"``,
            ``scale`` or several candidates as a long vector for the time of the call. If the optimiser works in place,
            `params` must be a copy made before it ran.

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
        candidates = self._info.candidates
        if self._layout is None and candidates is None:
            candidates = candidate_names.inferred(loss, grad)
        elif candidates is None and isinstance(loss, Mapping):
            raise TypeError("expected loss to be a number as in the first step, got a mapping")
        products_only = not lag and self._info.keep == "scalars" and self._scale is None
        step = read_step(self._layout, candidates, params, loss, grad, update, params_next, products_only)
        self._record(step, candidates)

    def _record(self, step: StepInput, candidates: tuple[str, ...] | None = None) -> None:
        """Record one step whose arguments are checked and matched."""
        number, every, lag = self._next, self._info.every, self._info.lag
        units = self._units
        if self._layout is None and self._scale is not None:
            units = Units(self._scale, step.layout)
        data = step.data(time.time(), units, lag)
        if self._layout is None:
            self._start(step.layout, candidates, units)
        rows = self._rows(1)
        known, blocks = dict(self._ring), 1 + len(step.layout.names or ())
        for c, one in enumerate(data):
            previous = [known[number - j][c] if number - j in known else None for j in range(1, lag + 1)]
            fill_step(rows[-1, c * blocks : (c + 1) * blocks], number, one, previous, self._resumed)
        if self._vectors is not None:
            self._vectors.write(number, step.params, step.grads, step.update, sync=self._sync)
        self._append(rows)
        self._next += 1
        if any((number + j) % every <= lag for j in range(1, lag + 1)):
            self._remember(number, data)

    def _remember(self, number: int, data: list[StepData]) -> None:
        """Keep gradients and update in the ring; copies are made in the memory of the oldest step if it is full."""
        oldest = self._ring.pop()[1] if len(self._ring) == self._info.lag else None
        if self._units is None:  # with units they are copies already
            update = _copied(data[0].update, None if oldest is None else oldest[0].update)
            data = [
                replace(one, grad=_copied(one.grad, None if oldest is None else oldest[c].grad), update=update)
                for c, one in enumerate(data)
            ]
        self._ring.appendleft((number, data))

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
            fill_skipped(rows[0], len(self._layout.names or ()) + 1, self._next, when, note, self._resumed)
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
        return Recording(self._info, self._memory[: self._count], self._vectors)

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

    def _start(self, layout: Layout, candidates: tuple[str, ...] | None, units: Units | None) -> None:
        """The blocks are known: make the folder or the rows in memory."""
        crc = None if units is None else units.crc
        info = replace(self._info, names=layout.names, shapes=layout.shapes, candidates=candidates, scale_crc=crc)
        dtype = row_dtype(info.lag)
        vectors: VectorFolder | VectorMemory
        if self.path is None:
            self._memory = np.zeros((64, info.width), dtype)
            vectors = VectorMemory(candidates)
        else:
            self._writer = RecordWriter.create(self.path, dtype, user=info.to_json(), sync=self._sync)
            vectors = VectorFolder(self.path, info.names, candidates)
        self._vectors = vectors if info.keep == "vectors" else None
        self._info, self._layout, self._units = info, layout, units

    def _rows(self, steps: int) -> NDArray[np.void]:
        """Room for the rows of some steps after those that were skipped before the first: in memory, or to append."""
        skipped = self._skipped
        width, total = self._info.width, len(skipped) + steps
        if self._memory is None:
            rows = np.zeros((total, width), row_dtype(self._info.lag))
        else:
            needed, room = self._count + total, len(self._memory)
            if needed > room:  # recordings that were handed out keep the old rows
                grown = np.zeros((max(2 * room, needed), width), self._memory.dtype)
                grown[: self._count] = self._memory[: self._count]
                self._memory = grown
            rows = self._memory[self._count : needed]
        for row, (number, when, note) in zip(rows, skipped, strict=False):
            fill_skipped(row, 1 + len(self._info.names or ()), number, when, note)
        return rows

    @property
    def next_step(self) -> int:
        """Number of the step that `step` or `skip` records next."""
        return self._next

    def _append_rows(
        self, layout: Layout, rows: NDArray[np.void], vectors: Sequence[StepVectors] | None = None
    ) -> None:
        """Record rows that were filled elsewhere (`step_rows.scalar_row`), instead of a call of `step`.

        Parameters
        ----------
        layout : Layout
            Of the step.
        rows : ndarray, shape (steps, candidates * blocks)
            Of `row_dtype` with this recorder's lag; step numbers ascend, from `next_step` on. `resumed` is set here.
            With `scale` the products must be in these units already.
        vectors : sequence of (params, gradient of each candidate, update), optional
            With ``keep="vectors"`` those of each step.

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
        width = replace(self._info, names=layout.names).width
        if rows.dtype != row_dtype(self._info.lag) or rows.ndim != 2 or rows.shape[1] != width:
            raise ValueError(f"expected rows of shape (steps, {width}) with lag {self._info.lag}, got {rows.shape}")
        if (vectors is None) == (self._info.keep == "vectors") or (vectors is not None and len(vectors) != len(rows)):
            raise ValueError("expected the vectors of each step with keep='vectors', and only then")
        numbers = rows["step"][:, 0].tolist()
        if any(b <= a for a, b in pairwise([self._next - 1, *numbers])):
            raise ValueError(f"expected ascending step numbers from {self._next} on, got {numbers[:8]}")
        if self._layout is None:
            self._start(layout, self._info.candidates, None if self._scale is None else Units(self._scale, layout))
        for number, (params, grads, update) in zip(numbers, vectors or (), strict=False):
            assert self._vectors is not None  # checked above
            self._vectors.write(number, params, grads, update, sync=self._sync)
        room = self._rows(len(rows))
        room[len(room) - len(rows) :] = rows
        room["resumed"] = 0
        room["resumed"][:1] = self._resumed
        self._append(room)
        self._next = numbers[-1] + 1 if numbers else self._next

    def _append(self, rows: NDArray[np.void]) -> None:
        if self._writer is not None:
            self._writer.append(rows.ravel())
        self._count += len(rows)
        self._resumed = False
        self._skipped = []


def _copied(x: LongVector | None, kept: LongVector | None) -> LongVector | None:
    """A copy, in the memory of the last one if it fits."""
    if x is None:
        return None
    if kept is None or kept.dtypes != x.dtypes:
        return replace(x, segments=[np.array(segment) for segment in x.segments])
    for target, segment in zip(kept.segments, x.segments, strict=True):
        np.copyto(target, segment)
    return kept
