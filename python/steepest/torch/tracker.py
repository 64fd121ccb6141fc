"""Hooks of an optimiser: the gradient that a step consumes, the update that it makes."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import torch

from steepest.recording import Recording
from steepest.row_format import NOTE_BYTES, Keep, Objective
from steepest.torch.evaluation import Evaluation
from steepest.torch.parameter_copy import ParameterCopy
from steepest.torch.parameters import decay_norms, held_by, tracked_parameters
from steepest.torch.rows import Log, StepWriter
from steepest.torch.step import StepTensors

__all__ = ["Tracker"]

logger = logging.getLogger("steepest")
Loss = TypeVar("Loss")


class Tracker:
    """A recording of the steps of an optimiser while it trains; made by `track`.

    Attributes
    ----------
    names : tuple of str
        The blocks.
    path : Path or None
        Where it is recorded.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: torch.nn.Module | None,
        path: str | os.PathLike[str] | None,
        evaluate: Callable[[], Any] | None,
        every: int,
        evaluate_every: int | None,
        lag: int,
        keep: Keep,
        objective: Objective | None,
        log: Log | None,
        log_blocks: bool,
        resume: bool,
        sync: bool,
        working: torch.dtype | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._tracked = tracked_parameters(optimizer, model)
        self.names = self._tracked.names
        self._evaluation = None if evaluate is None else Evaluation(evaluate, model, self._tracked)
        if evaluate_every is not None and (evaluate is None or evaluate_every < 1 or evaluate_every % max(every, 1)):
            raise ValueError(
                f"expected evaluate_every, with evaluate, to be a multiple of every={every}, got {evaluate_every!r}"
            )
        if objective is None:
            objective = "unknown" if evaluate is None else "fixed"
        self._writer = StepWriter(
            self._tracked,
            log,
            log_blocks,
            working,
            path=path,
            every=every,
            lag=lag,
            keep=keep,
            objective=objective,
            gradient_source="rule" if evaluate is None else "evaluation",
            resume=resume,
            sync=sync,
        )
        self.path = self._writer.recorder.path
        self._every, self._lag, self._keep = every, lag, keep
        self._evaluate_every = every if evaluate_every is None else evaluate_every
        self._number = self._writer.recorder.next_step
        # The one resident copy: on the host for recordings of scalars, which need no update in memory; else as tensors.
        in_one_pass = lag == 0 and keep == "scalars" and working is None
        self._copy = ParameterCopy(self._tracked.tensors, self._tracked.layout) if in_one_pass else None
        self._before: list[torch.Tensor] = []
        self._update: list[torch.Tensor] = []  # a second one if the parameters themselves are kept
        self._given: Any = None  # loss
        self._step: _OpenStep | None = None
        self._copies_gradients = False
        self._closed = False
        self._hooks = [
            # Where step() is compiled, the hooks run between its graphs.
            optimizer.register_step_pre_hook(torch.compiler.disable(self._pre_step)),
            optimizer.register_step_post_hook(torch.compiler.disable(self._post_step)),
        ]

    def loss(self, value: Loss) -> Loss:
        """Hand in the loss of the coming step.

        Parameters
        ----------
        value : float or Tensor of one element
            Detached, and fetched only when a row is written. The last one before a step counts; with gradient
            accumulation that is the total. Ignored if the tracker evaluates a loss of its own.

        Returns
        -------
        float or Tensor
            `value`, so that ``rec.loss(loss).backward()`` works.

        Raises
        ------
        ValueError
            A tensor of several elements.
        """
        held = value.detach() if isinstance(value, torch.Tensor) else value
        if isinstance(held, torch.Tensor) and held.numel() != 1:
            raise ValueError(f"expected one loss, got a tensor of shape {tuple(held.shape)}")
        if self._step is None or not self._step.closed:  # later evaluations of a closure belong to other parameters
            self._given = held
        return value

    def skip(self, reason: str = "") -> None:
        """Record that the loop made no step here: status ``skipped``.

        A ``torch.amp.GradScaler`` that finds infinities does not call the optimiser, so only the loop can tell:
        ``if scaler.get_scale() < scale: rec.skip("gradient scaler")``. Fused optimisers report it by themselves.

        Parameters
        ----------
        reason : str
            At most 24 bytes in UTF-8.

        Raises
        ------
        ValueError
            `reason` is too long, or the tracker is closed.
        """
        if self._closed:
            raise ValueError("the tracker is closed")
        if len(reason.encode()) > NOTE_BYTES:
            raise ValueError(f"expected a reason of at most {NOTE_BYTES} bytes, got {reason!r}")
        self._writer.skip(self._number, reason)
        self._number, self._given = self._number + 1, None

    def recording(self) -> Recording:
        """What has been recorded so far; numbers that wait on a device are fetched.

        Returns
        -------
        Recording
            As `Recorder.recording`.

        Raises
        ------
        ValueError
            There is no step yet.
        """
        if not self._closed:
            self._writer.flush()
        return self._writer.recorder.recording()

    def close(self) -> None:
        """Remove the hooks, write what is open, close the folder; a second time does nothing. `recording` still works.

        With `evaluate` the loss and gradient after the last step are evaluated too, if they are due: they close that
        step (its dL, its trapezoid pair) in a row without update.
        """
        self._close(last=True)

    def _close(self, last: bool) -> None:
        if self._closed:
            return
        for hook in self._hooks:
            hook.remove()
        self._closed = True
        try:
            if last and len(self) and self._evaluates(self._number):
                assert self._evaluation is not None  # otherwise nothing is ever due
                loss, grads = self._evaluation()
                self._writer.write(StepTensors(self._number, self._tracked.tensors, grads, None, loss))
            self._writer.flush()
            if not len(self._writer.recorder):
                logger.warning("the tracked optimizer made no step that was due: nothing was recorded")
        finally:
            self._writer.recorder.close()
            self._before, self._update, self._copy, self._step = [], [], None, None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close(last=kind is None)

    def __len__(self) -> int:
        return len(self._writer.recorder) + self._writer.waiting

    def __repr__(self) -> str:
        return (
            f"<Tracker of {type(self._optimizer).__name__}, {len(self.names)} blocks: {len(self)} steps recorded, "
            f"{'closed' if self._closed else 'open'}>"
        )

    def _evaluates(self, number: int) -> bool:
        return self._evaluation is not None and number % self._evaluate_every <= self._lag

    def _pre_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before the optimiser: look, copy, and listen to the closure."""
        if self._step is not None and _steps_already(optimizer):
            self._step.inner += 1
            return None
        self._check()
        self._step = step = _OpenStep(self._number % self._every <= self._lag)
        if not step.due:
            return None
        if self._evaluates(self._number):
            assert self._evaluation is not None
            step.loss, step.grads = self._evaluation()
            step.evaluated = True
        if self._copy is not None and all(p.is_cpu for p in self._tracked.tensors):
            step.decay = decay_norms(optimizer, self._tracked, self._copy.take)
            step.copy_on_host = self._copy
        else:
            step.decay = decay_norms(optimizer, self._tracked)
            self._remember()
        if self._evaluation is not None:
            return None
        found = _closure_of(optimizer, args, kwargs)
        if found is None:
            self._look(step)
            return None
        closure, place = found
        listening = self._listening(closure, step)
        if isinstance(place, str):
            return args, {**kwargs, place: listening}
        return (*args[:place], listening, *args[place + 1 :]), kwargs

    def _listening(self, closure: Callable[..., Any], step: _OpenStep) -> Callable[..., Any]:
        """The closure; what it leaves at its first evaluation is the gradient and the loss before the step."""

        def listening(*args: Any, **kwargs: Any) -> Any:
            if step.closed and not step.copied:
                step.copy()  # the next evaluation may write into the same memory
            value = closure(*args, **kwargs)
            if not step.closed:
                self._look(step)
                step.loss = self._given if self._given is not None else _detached(value)
                step.closed = True
            return value

        return listening

    def _look(self, step: _OpenStep) -> None:
        """The gradients as they are now; the memory is read after the step, if the optimiser leaves it alone."""
        tracked = self._tracked
        for name, p in zip(tracked.names, tracked.tensors, strict=True):
            if p.grad is not None and p.grad.layout is not torch.strided:
                raise TypeError(
                    f"expected a dense gradient, got {p.grad.layout} for {name!r}: use sparse=False in its layer"
                )
        step.grads = [p.grad for p in tracked.tensors]
        step.versions = [None if g is None else g._version for g in step.grads]
        if self._copies_gradients:
            step.copy()

    def _post_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """After the optimiser: the update, and the row."""
        if self._step is not None and self._step.inner:
            self._step.inner -= 1
            return
        step, self._step = self._step, None
        given, self._given = self._given, None
        number, self._number = self._number, self._number + 1
        for hook in self._hooks[:1]:  # after the hooks that were registered later, which may change the gradient
            registered = hook.hooks_dict_ref()
            if registered is not None and hook.id in registered:
                registered.move_to_end(hook.id)
        if step is None:  # registered in the middle of this step
            self._number = number
            return
        found_inf = getattr(optimizer, "found_inf", None)
        if not step.due:
            if found_inf is not None:
                self._writer.not_due(number, found_inf)
            return
        note = ""
        if not step.evaluated and not step.copied and not _fused(optimizer) and step.changed():
            logger.warning(
                "%s changes .grad during its step: the gradient of this step is lost, and copied from now on",
                type(optimizer).__name__,
            )
            self._copies_gradients, note = True, "optimizer changed .grad"
            step.grads = [None] * len(step.grads)
        loss = step.loss if step.evaluated or step.closed else given
        if self._evaluation is not None and not step.evaluated:
            loss = None
        step.grads = step.grads or [None] * len(self.names)  # not evaluated, or a closure that was not called
        if step.copy_on_host is not None:
            self._writer.write_difference(
                StepTensors(number, self._tracked.tensors, step.grads, None, loss, step.decay, note),
                step.copy_on_host,
                found_inf,
            )
            return
        params, update = self._difference()
        self._writer.write(StepTensors(number, params, step.grads, update, loss, step.decay, note), found_inf=found_inf)

    def _check(self) -> None:
        tracked = self._tracked
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "the tracked optimizer steps inside the backward pass, where gradients are freed one by one: call "
                "optimizer.step() after backward(), or close the tracker"
            )
        if tracked.tensors[0].is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a step inside a CUDA graph cannot be tracked: its hooks do not run when it is replayed")
        if held_by(self._optimizer) != tracked.held or any(p.requires_grad for p in tracked.frozen):
            raise ValueError(
                "the optimizer trains parameters that it did not when tracking began (a new group, or a layer that was "
                "frozen): close the tracker, and track again"
            )

        if getattr(self._optimizer, "grad_scale", None) is not None and not _fused(self._optimizer):
            raise ValueError(
                "the gradients are scaled, and the optimizer unscales them where the tracker cannot see it: call "
                "scaler.unscale_(optimizer) before scaler.step(optimizer)"
            )

    def _remember(self) -> None:
        """Copy the parameters, into the memory of the last copy."""
        params = [p.detach() for p in self._tracked.tensors]
        # float32 holds the difference of two half-precision numbers with all its digits.
        kinds = [(p.device, torch.promote_types(p.dtype, torch.float32)) for p in params]
        if [(b.device, b.dtype) for b in self._before] != kinds:
            self._before = [torch.empty_like(p, dtype=dtype) for p, (_, dtype) in zip(params, kinds, strict=True)]
            self._update = []
        torch._foreach_copy_(self._before, params)

    def _difference(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """(params, update): the update takes the place of the copy, unless the parameters are to be kept too."""
        params = [p.detach() for p in self._tracked.tensors]
        if self._keep == "vectors":
            if len(self._update) != len(params):
                self._update = [torch.empty_like(b) for b in self._before]
            for p, b, u in zip(params, self._before, self._update, strict=True):
                torch.sub(p, b, out=u)
            return [b.to(p.dtype) for p, b in zip(params, self._before, strict=True)], self._update
        if params[0].device.type == "cpu":
            for p, b in zip(params, self._before, strict=True):
                torch.sub(p, b, out=b)
        else:  # two launches for all
            torch._foreach_sub_(self._before, params)
            torch._foreach_neg_(self._before)
        return params, self._before


class _OpenStep:
    """Between the hooks."""

    def __init__(self, due: bool) -> None:
        self.due = due
        self.inner = 0  # hooked steps of base classes that are running inside of this one
        self.evaluated = self.closed = self.copied = False
        self.loss: Any = None
        self.grads: list[torch.Tensor | None] = []
        self.versions: list[int | None] = []
        self.decay: Any = None
        self.copy_on_host: ParameterCopy | None = None

    def copy(self) -> None:
        self.grads = [None if g is None else g.detach().clone() for g in self.grads]
        self.copied = True

    def changed(self) -> bool:
        return any(g is not None and g._version != v for g, v in zip(self.grads, self.versions, strict=True))


def _steps_already(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step calls that of its base class, which has hooks too; otherwise the last step ended in an error."""
    frame, found = sys._getframe(), 0
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name == "wrapper" and frame.f_globals.get("__name__") == torch.optim.Optimizer.__module__:
            found += frame.f_locals.get("self") is optimizer
    return found > 1


def _closure_of(
    optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Callable[..., Any], int | str] | None:
    """The closure among the arguments of step(), and its place; the optimiser itself comes first among them."""
    if callable(kwargs.get("closure")):
        return kwargs["closure"], "closure"
    at = 1 if args and args[0] is optimizer else 0
    return (args[at], at) if len(args) > at and callable(args[at]) else None


def _fused(optimizer: torch.optim.Optimizer) -> bool:
    """Fused kernels leave the gradient that they used in .grad: unscaled, if a scaler had scaled it."""
    return any(group.get("fused") for group in optimizer.param_groups)


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value
