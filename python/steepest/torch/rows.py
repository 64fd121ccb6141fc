"""Writes the steps of an optimiser into a recorder: on the CPU as views for the compiled core, else as scalars."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steepest.arrays import long_vector
from steepest.recorder import Recorder
from steepest.recording import Recording
from steepest.rounding_floor import angle_floor, spacing_norms
from steepest.row_format import NAN, NOTE_BYTES, STATUS_CODE, row_dtype
from steepest.step_input import StepInput
from steepest.torch.device_rows import DeviceRing, DeviceStep, fill_rows
from steepest.torch.parameter_copy import ParameterCopy, views_of
from steepest.torch.parameters import TrackedParameters
from steepest.torch.step import StepTensors, filled, share, value_of

__all__ = ["StepWriter"]

_FETCH = 16  # steps whose numbers may wait on a device
_SCALER = "gradient scaler"

Log = Callable[[dict[str, float]], object]


class StepWriter:
    """Writes steps into a recorder.

    Parameters
    ----------
    tracked : TrackedParameters
        Whose steps.
    log : callable, optional
        Called with the numbers of each row.
    log_blocks : bool
        Also with those of the single blocks.
    working : torch.dtype, optional
        Take the way of accelerators on any device, with this precision.
    **options
        Of the `Recorder`.
    """

    def __init__(
        self,
        tracked: TrackedParameters,
        log: Log | None,
        log_blocks: bool,
        working: torch.dtype | None,
        **options: Any,
    ) -> None:
        self._tracked, self._working, self._layout = tracked, working, tracked.layout
        self.recorder = _Rows(**options)
        self.recorder.log, self.recorder.log_blocks = log, log_blocks
        self._lag: int = options["lag"]
        self._vectors = options["keep"] == "vectors"
        self._on_host: bool | None = None
        self._ring = DeviceRing(self._lag, working)
        # Steps not yet written, with the flag that says whether the optimiser made them.
        self._waiting: list[tuple[int, torch.Tensor | None, DeviceStep | None]] = []
        self._absent: deque[tuple[int, frozenset[int]]] = deque(maxlen=self._lag + 1)

    def write(self, step: StepTensors, found_inf: torch.Tensor | None = None) -> None:
        """Record one step.

        Parameters
        ----------
        step : StepTensors
            Its tensors may change after the call.
        found_inf : Tensor, optional
            Not 0 if the optimiser made no step.

        Raises
        ------
        ValueError
            The parameters were moved to another device.
        """
        if self._stays_on_host() or self._vectors:
            self._write_views(step, found_inf)
        else:
            self._wait(step.number, found_inf, self._ring.reduce(step, self._tracked.tensors))

    def write_difference(self, step: StepTensors, copy: ParameterCopy, found_inf: torch.Tensor | None = None) -> None:
        """Record one step whose update is read as the difference of the parameters and their copy.

        Parameters
        ----------
        step : StepTensors
            Without update.
        copy : ParameterCopy
            Made before the step.
        found_inf : Tensor, optional
            Not 0 if the optimiser made no step.

        Raises
        ------
        ValueError
            The parameters were moved to another device.
        """
        if not self._stays_on_host():
            raise ValueError("the parameters were moved to another device within a step")
        if not self._begin(step, found_inf):
            return
        layout, difference = self._layout, copy.difference()
        grads = filled(step.grads, self._tracked.tensors)
        loss = [value_of(step.loss)]
        if grads is None:
            given = StepInput(layout, difference.after, difference.formed(), [None], loss)
        else:
            given = StepInput(layout, difference.after, None, [views_of(grads, layout)], loss, unformed=difference)
        with self._amending(step):
            self.recorder._record(given)

    def _stays_on_host(self) -> bool:
        on_host = self._working is None and all(p.is_cpu for p in self._tracked.tensors)
        if self._on_host is not None and on_host is not self._on_host:
            raise ValueError("the parameters were moved to another device: close the tracker, and track again")
        self._on_host = on_host
        return on_host

    def _begin(self, step: StepTensors, found_inf: torch.Tensor | None) -> bool:
        """Whether the optimiser made the step."""
        if found_inf is not None and float(found_inf) != 0.0:
            self._skip(step.number, _SCALER)
            return False
        self._advance(step.number)
        self._absent.append((step.number, step.absent))
        return True

    @contextmanager
    def _amending(self, step: StepTensors) -> Iterator[None]:
        self.recorder.amend = lambda rows: self._amend(rows, step)
        try:
            yield
        finally:
            self.recorder.amend = None

    def not_due(self, number: int, found_inf: torch.Tensor) -> None:
        """A step that is recorded only if the optimiser did not make it.

        Parameters
        ----------
        number : int
            Of the step.
        found_inf : Tensor
            Not 0 then.
        """
        self._wait(number, found_inf, None)

    def skip(self, number: int, reason: str) -> None:
        """Record a step that was not made.

        Parameters
        ----------
        number : int
            Of the step.
        reason : str
            For the row.
        """
        self.flush()
        self._skip(number, reason)

    @property
    def waiting(self) -> int:
        """How many steps are not written yet."""
        return sum(one is not None for _, _, one in self._waiting)

    def flush(self) -> None:
        """Fetch what waits on a device, and write it."""
        while self._waiting:
            number, found_inf, one = self._waiting.pop(0)
            if found_inf is not None and float(found_inf) != 0.0:
                self._skip(number, _SCALER)
            elif one is not None:
                self._advance(number)
                rows = np.zeros((1, 1 + len(one.dtypes)), row_dtype(self._lag))
                fill_rows(rows[0], one, self._lag)
                rows["note"][0] = one.step.note.encode()
                self.recorder._append_rows(self._tracked.layout, rows)

    def _wait(self, number: int, found_inf: torch.Tensor | None, one: DeviceStep | None) -> None:
        self._waiting.append((number, found_inf, one))
        if len(self._waiting) >= _FETCH or (found_inf is not None and found_inf.device.type == "cpu"):
            self.flush()

    def _skip(self, number: int, reason: str) -> None:
        self._advance(number)
        self.recorder.skip(reason)

    def _advance(self, number: int) -> None:
        """Steps that were not due count too."""
        while self.recorder.next_step < number:
            self.recorder.step()

    def _write_views(self, step: StepTensors, found_inf: torch.Tensor | None) -> None:
        if not self._begin(step, found_inf):
            return
        names = self._tracked.names

        def views(tensors: list[torch.Tensor] | None) -> dict[str, torch.Tensor] | None:
            return None if tensors is None else dict(zip(names, (x.detach().cpu() for x in tensors), strict=True))

        with self._amending(step):
            self.recorder.step(
                # What is stored are the parameters before the step; for scalars they serve the rounding floor alone.
                params=views(step.params if self._vectors else self._tracked.tensors),
                loss=value_of(step.loss),
                grad=views(filled(step.grads, self._tracked.tensors)),
                update=views(step.update),
            )

    def _amend(self, rows: NDArray[np.void], step: StepTensors) -> None:
        """What a recorder cannot know: blocks whose zeros stand for no gradient, the share of weight decay, a note.

        The rounding floor is that of the parameters after the step, to whose spacing the update was rounded.
        """
        for number, blocks in self._absent:
            back = step.number - number
            if len(blocks) == len(self._tracked.names):
                continue
            for row in (1 + block for block in blocks):
                if back == 0:
                    _without_gradient(rows[row])
                elif back <= self._lag:
                    for name in ("lag_yy", "lag_gy"):
                        _set_lag(rows[row], name, back - 1)
        rows["note"] = step.note.encode()[:NOTE_BYTES]
        without_decay = step.decay is not None and step.decay.none
        if without_decay:
            rows["decay_share"] = 0.0
        if (without_decay or step.decay is None) and not self._vectors:
            return
        norms = [
            math.ldexp(math.sqrt(x), e) for x, e in zip(rows["gg"].tolist(), rows["g_exponent"].tolist(), strict=True)
        ]
        if self._vectors and step.update is not None:
            params = dict(zip(self._tracked.names, (p.detach().cpu() for p in self._tracked.tensors), strict=True))
            spacings = spacing_norms(long_vector(params, "params"))
            for row, (spacing, norm) in enumerate(zip([math.hypot(*spacings), *spacings], norms, strict=True)):
                rows["psi_floor"][row] = angle_floor(spacing, norm)
        if step.decay is not None and not without_decay:
            parts = step.decay.fetch()
            for row, (part, norm) in enumerate(zip([math.hypot(*parts), *parts], norms, strict=True)):
                rows["decay_share"][row] = share(part, norm)


def _without_gradient(row: np.void) -> None:
    for name in row.dtype.names or ():
        if name.startswith(("yy", "yg", "lag_yy", "lag_yg")) or name in ("cosine", "sine", "sign_flip_variance"):
            row[name] = 0 if name.endswith("exponent") else NAN
    row["y_exponent"], row["status"] = 0, STATUS_CODE["no_gradient"]


def _set_lag(row: np.void, name: str, at: int) -> None:
    for part in ("", "_lo", "_bound"):
        row[name + part][at] = NAN
    row[name + "_exponent"][at] = 0


class _Rows(Recorder):
    """A recorder that knows what only the optimiser tells, and hands each new row to the caller's logger."""

    amend: Callable[[NDArray[np.void]], None] | None = None
    log: Log | None = None
    log_blocks = False

    def _append(self, rows: NDArray[np.void]) -> None:
        if self.amend is not None:
            self.amend(rows[-1])
        super()._append(rows)
        if self.log is not None:
            kept = Recording(self._info, np.array(rows))
            for number in kept.step.tolist():
                self.log(_numbers(kept, number, self.log_blocks))


def _numbers(kept: Recording, number: int, blocks: bool) -> dict[str, float]:
    """The numbers of a step that are known, for a logger."""
    at = int(np.searchsorted(kept.step, number))
    found = {"steepest/step": float(number), "steepest/loss": float(kept.loss[at])}
    for block in kept.blocks if blocks else kept.blocks[:1]:
        a = kept.alignment(number, block)
        place = "" if block == kept.blocks[0] else f"/{block}"
        found |= {
            f"steepest/psi{place}": a.angle_degrees,
            f"steepest/cos{place}": a.cosine,
            f"steepest/cond_min{place}": a.cond_min,
            f"steepest/grad_norm{place}": a.grad_norm,
            f"steepest/update_norm{place}": a.update_norm,
        }
    return {key: value for key, value in found.items() if not math.isnan(value)}
