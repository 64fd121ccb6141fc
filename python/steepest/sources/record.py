"""A stored training run as a recording, streamed through the recorder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from steepest.parameter_difference import Difference
from steepest.progress import shown
from steepest.recorder import Recorder
from steepest.recording import Recording
from steepest.row_format import GradientSource, Keep, Objective
from steepest.sources.opening import open_source
from steepest.sources.source import Source, SourceStep
from steepest.step_rows import ordered
from steepest.vector_store import StoredStep, as_arrays

__all__ = ["record_source"]


def record_source(
    source: Any,
    *,
    objective: Objective = "unknown",
    gradient_source: GradientSource = "rule",
    rate: bool = False,
    lag: int = 1,
    keep: Keep = "scalars",
    params: str | Sequence[str] | None = None,
    files: str | None = None,
    number: str | None = None,
    progress: bool = False,
) -> Recording:
    """A recording from a stored run: what `recording` makes of whole arrays, without loading more than a few steps.

    Parameters
    ----------
    source : path-like, Source, xarray.Dataset or xarray.DataTree
        See `open_source`. Without update, update is the difference of consecutive params.
    objective : {'unknown', 'fixed'}
        ``fixed``: all losses and gradients belong to one function.
    gradient_source : {'rule', 'evaluation', 'estimate'}
        The gradient that the rule consumed, one computed for the purpose, or an estimate.
    rate : bool
        The stored update is d theta/dt. A stored time alone does not say so.
    lag : int
        With how many of the steps before it each step has inner products.
    keep : {'scalars', 'vectors'}
        Whether `Recording.save` copies the vectors into its folder. They are read from the source otherwise.
    params, files, number
        See `open_source`.
    progress : bool
        Show a progress bar on a terminal (needs tqdm).

    Returns
    -------
    Recording
        In memory; `Recording.save` writes it. `Recording.vectors` reads the source, which stays open (a `Source` that
        was handed in must not be closed before). Steps are numbered 0, 1, ... as by `recording`; `Source.numbers` has
        those of checkpoints.

    Raises
    ------
    FileNotFoundError, ValueError, TypeError, ImportError
        As `open_source` and `recording`.

    Notes
    -----
    Each step is read once. In memory: the steps t and t + 1, one difference, and `lag` copies of grad and update.

    Examples
    --------
    >>> import numpy as np, pathlib, steepest, tempfile
    >>> from steepest.sources.record import record_source
    >>> theta = np.array([[4.0, 2.0], [2.0, 1.0], [1.0, 0.5]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(pathlib.Path(folder) / "run.npz", params=theta, grad=theta)
    ...     rec = record_source(pathlib.Path(folder) / "run.npz")
    >>> rec.status[:, 0].tolist(), rec.alignment(1) == steepest.recording(params=theta, grad=theta).alignment(1)
    (['ok', 'ok', 'no_update'], True)
    """
    opened = open_source(source, params=params, files=files, number=number)
    try:
        return _recorded(opened, objective, gradient_source, rate, lag, keep, progress)
    except BaseException:
        if opened is not source:
            opened.close()
        raise


class _Vectors:
    """Reads the vectors of a step from the source; in ascending order each step once."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._next: tuple[int, SourceStep] | None = None  # params of the step after the last one

    def __call__(self, t: int) -> StoredStep:
        step = self._next[1] if self._next is not None and self._next[0] == t else self._source.step(t)
        update = step.update
        if "update" not in self._source.fields and t + 1 < len(self._source):
            after = self._source.step(t + 1)
            self._next = t + 1, after
            before = ordered(step.params, "params", None)
            update = as_arrays(Difference.of(ordered(after.params, "params", before.layout), before).formed())
        return StoredStep(step.params, step.grad, update)


def _recorded(
    source: Source,
    objective: Objective,
    gradient_source: GradientSource,
    rate: bool,
    lag: int,
    keep: Keep,
    progress: bool,
) -> Recording:
    differences = "update" not in source.fields
    if rate and differences:
        raise ValueError(
            f"expected update in {source.where}, which with rate=True is d theta/dt and is not formed from params, got "
            f"{', '.join(source.fields)}"
        )
    times: list[float] = []
    recorder = Recorder(lag=lag, objective=objective, gradient_source=gradient_source)
    following = source.step(0) if len(source) else None
    for t in shown(range(len(source)), progress, source.where):
        step, following = following, source.step(t + 1) if t + 1 < len(source) else None
        assert step is not None  # one for each t
        after = following.params if differences and following is not None else None
        if after is None and step.update is None and step.grad is None and math.isnan(step.loss):
            continue  # nothing to say about the state after the last update
        recorder.step(
            params=None if rate and (step.grad is not None or step.update is not None) else step.params,
            loss=None if math.isnan(step.loss) else step.loss,
            grad=step.grad,
            update=step.update,
            params_next=after,
        )
        times.append(step.time)
    if not times:
        raise ValueError(f"expected at least one update or gradient in {source.where}, got {len(source)} states")
    found = recorder.recording()
    rows = np.array(found.rows)
    rows["time"] = np.array(times)[:, None]  # of the run, not of reading it
    return Recording(replace(found.info, rate=bool(rate), keep=keep), rows, _Vectors(source))
