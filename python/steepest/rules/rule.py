"""The protocol of a learning rule: ``init(params) -> state``, ``update(grad, state, params) -> (update, state)``."""

# ruff: noqa: ARG002 (arguments of the protocol that this rule does not need)

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from steepest.arrays import ArrayOrMapping
from steepest.metrics.interface import Metric
from steepest.recorder import Recorder
from steepest.recording import Recording
from steepest.row_format import GradientSource, Keep, Objective
from steepest.rules.leaves import add, plain

__all__ = ["Rule", "Run", "Schedule", "Stateless", "rate_at"]

#: A number, or a function of the number of the step, from 0.
Schedule = float | Callable[[int], float]
#: ``params -> grad``, ``(loss, grad)`` or ``(loss, grad, data)``; data are passed on to `Rule.update` by name.
Evaluate = Callable[[Any], Any]


def rate_at(schedule: Schedule, step: int) -> float:
    """The value of a schedule.

    Parameters
    ----------
    schedule : float or callable
        A number, or a function of the number of the step.
    step : int
        From 0.

    Returns
    -------
    float
        Finite.

    Raises
    ------
    ValueError
        Not finite.
    """
    value = float(schedule(step) if callable(schedule) else schedule)
    if not np.isfinite(value):
        raise ValueError(f"expected a finite rate, got {value} at step {step}")
    return value


@dataclass(frozen=True)
class Stateless:
    """State of a rule that remembers nothing but the number of steps.

    Attributes
    ----------
    step : int
        Updates made so far.
    """

    step: int = 0


@dataclass(frozen=True)
class Run:
    """What `Rule.run` leaves.

    Attributes
    ----------
    recording : Recording
        For `steepest.analyze`; one step for each update.
    params : array or dict
        After the last update.
    state : object
        Of the rule, after the last update: another run can go on from here.
    """

    recording: Recording
    params: Any
    state: Any


class Rule(ABC):
    """A learning rule.

    States are values: `update` leaves the state that it is given as it is, so that every step can be repeated, branched
    and stored.
    """

    #: Why there is no `metric`, for rules that have none of their own.
    no_metric = "it is not minus a matrix times the gradient; steepest.metric(grad, update) is the metric of one step"

    #: Of recordings by `run`: the gradient that the rule consumed, or one that it never sees.
    gradient_source: GradientSource = "rule"

    @abstractmethod
    def init(self, params: ArrayOrMapping) -> Any:
        """The state before the first step.

        Parameters
        ----------
        params : array or mapping name -> array
            Of any supported library; its shapes, dtypes and library are those of the updates.

        Returns
        -------
        object
            For `update`.
        """

    @abstractmethod
    def update(
        self, grad: ArrayOrMapping, state: Any, params: ArrayOrMapping | None = None, **data: Any
    ) -> tuple[Any, Any]:
        """One step.

        Parameters
        ----------
        grad : array or mapping
            +dL/dtheta.
        state : object
            From `init` or the update before.
        params : array or mapping, optional
            Parameters before the step, where the rule needs them.
        **data
            What else the rule learns from; named in its docstring. Names that it does not know are ignored, so that
            rules can be compared on the same data.

        Returns
        -------
        update : array or dict
            ``params_next - params``, in the library and dtype of `grad`.
        state : object
            For the next step.

        Raises
        ------
        ValueError
            Names or shapes differ from those in `init`, or the rule needs params or data that did not come.
        """

    def believed(self, grad: ArrayOrMapping, state: Any, params: ArrayOrMapping | None = None, **data: Any) -> Any:
        """The gradient that the rule acts on: `grad` itself, or what it believes of it after having seen `grad`.

        Parameters
        ----------
        grad, state, params, **data
            As of `update`.

        Returns
        -------
        array or dict
            As `grad`.
        """
        return plain(grad)

    def metric(self, grad: ArrayOrMapping, state: Any, params: ArrayOrMapping | None = None, **data: Any) -> Metric:
        """The rule's own metric M at this step: ``update = -M^{-1} believed``.

        Parameters
        ----------
        grad, state, params, **data
            As of `update`.

        Returns
        -------
        Metric
            Symmetric positive definite.

        Raises
        ------
        NotImplementedError
            The rule has no metric of its own; the message says why.
        """
        raise NotImplementedError(f"{type(self).__name__} has no metric of its own: {self.no_metric}")

    def run(
        self,
        evaluate: Evaluate,
        params: ArrayOrMapping,
        n_steps: int,
        *,
        state: Any = None,
        recorder: Recorder | None = None,
        objective: Objective = "unknown",
        lag: int = 0,
        keep: Keep = "scalars",
    ) -> Run:
        """Learn for some steps, and record them.

        Parameters
        ----------
        evaluate : callable
            ``evaluate(params)`` returns grad, ``(loss, grad)``, or ``(loss, grad, data)`` with a mapping of keyword
            arguments for `update`. Called once a step; with ``objective="fixed"`` once more at the end.
        params : array or mapping
            Where to start; not changed.
        n_steps : int
            Number of updates, at least 1.
        state : object, optional
            To go on from; default `init`.
        recorder : Recorder, optional
            Where to record (a folder, say); it stays open, and `objective`, `lag`, `keep` are its own.
        objective : {'unknown', 'fixed'}
            ``fixed`` where all losses and gradients belong to one function; loss and gradient at the end are recorded
            too, as the last step, which has no update.
        lag, keep
            As of `Recorder`.

        Returns
        -------
        Run
            Recording, last params, last state.

        Raises
        ------
        ValueError
            ``n_steps < 1``, or what `update` raises.

        Notes
        -----
        The recorded update is what the rule gave, params_next its rounded sum with params.
        """
        if n_steps < 1:
            raise ValueError(f"expected n_steps of at least 1, got {n_steps}")
        rec = recorder
        if rec is None:
            rec = Recorder(objective=objective, gradient_source=self.gradient_source, lag=lag, keep=keep)
        params = plain(params)
        state = self.init(params) if state is None else state
        for _ in range(n_steps):
            loss, grad, data = _evaluated(evaluate(params))
            update, state = self.update(grad, state, params, **data)
            rec.step(params=params, loss=loss, grad=grad, update=update)
            params = add(params, update)
        if objective == "fixed" and recorder is None:
            loss, grad, _ = _evaluated(evaluate(params))
            rec.step(params=params, loss=loss, grad=grad)
        return Run(rec.recording(), params, state)


def _evaluated(found: Any) -> tuple[Any, Any, Mapping[str, Any]]:
    if not isinstance(found, tuple):
        return None, found, {}
    if len(found) == 2:
        return found[0], found[1], {}
    if len(found) == 3:
        return found[0], found[1], found[2]
    raise ValueError(f"expected evaluate to return grad, (loss, grad) or (loss, grad, data), got {len(found)} values")
