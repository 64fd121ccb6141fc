"""From recordings to an analysis: which pair, which blocks, which runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from steepest.analysis.columns import PAIRS, Pair
from steepest.analysis.result import Analysis
from steepest.analysis.run import RunAnalysis
from steepest.recording import Recording
from steepest.row_format import ALL, STATUS_CODE

__all__ = ["analyze"]


def analyze(
    x: Any,
    *,
    pair: Literal["auto", "continuous", "trapezoid", "left", "displacement"] = "auto",
    window: int = 1,
    blocks: Iterable[str] | str | None = None,
    progress: bool = False,
) -> Analysis:
    """What a recording says, for each step and block: angle, status, condition number, and what follows.

    Parameters
    ----------
    x : Recording, Recorder, path, or mapping run name -> one of these
        A path is a folder that a `Recorder` wrote.
    pair : {'auto', 'continuous', 'trapezoid', 'left', 'displacement'}
        What is taken for gradient and update of step t; see Notes. ``auto``: 'displacement' for ``window > 1``;
        'trapezoid' where the recording says that all losses and gradients belong to one function
        (``objective="fixed"``), and its losses and products with the step before (``lag >= 1``) are there; else
        'continuous'.
    window : int
        In steps: of the pair 'displacement', and of the column ``effective``.
    blocks : str or iterable of str, optional
        Names of arrays; all by default. The whole vector, ``"(all)"``, is always there, and first.
    progress : bool
        Show a progress bar (tqdm) for columns that take long.

    Returns
    -------
    Analysis
        Columns are computed when they are asked for: opening is instant.

    Raises
    ------
    ValueError
        The recording does not have what `pair` or `window` needs; there is no such block; no run at all.
    TypeError
        `x` is nothing of the above.

    Notes
    -----
    ============  ==================================  ================================  ============================
    pair          gradient                            update                            needs
    ============  ==================================  ================================  ============================
    continuous    grad_t                              update_t                          nothing else
    left          grad_t, corrected                   update_t                          losses of t and t + 1
    trapezoid     (grad_t + grad_{t+1})/2, corrected  update_t                          these losses, lag >= 1
    displacement  mean of grad_t .. grad_{t+w},       update_t + ... + update_{t+w-1}   losses of t and t + w,
                  corrected                                                             lag >= w, every step
    ============  ==================================  ================================  ============================

    Corrected by a multiple of the update d such that ``gradient.d`` is the change of the loss (discrete gradients,
    sections 7 and 1B); a block has its part of the correction of the whole. With mini-batches L_t and L_{t+1} are
    different functions and their difference is noise, which is why ``auto`` does not use it. Where `update` is a rate
    (``recording.rate``) no loss is differenced over it: only 'continuous' is possible.

    Everything is vectorised over steps and blocks, in the forms of sections 3, 5, 7 and 15; rows are read in pieces
    from the file. Memory: 8 bytes for each step, block and column asked for.

    Examples
    --------
    >>> import numpy as np
    >>> import steepest
    >>> theta = np.array([1.0, 1.0]) * 0.8 ** np.arange(20)[:, None]
    >>> runs = {"slow": theta, "curved": theta ** [1.0, 2.0]}
    >>> recordings = {name: steepest.recording(params=x, grad=x) for name, x in runs.items()}
    >>> a = steepest.analyze(recordings)
    >>> [(row["run"], row["ok"]) for row in a.summary()]
    [('slow', 19), ('curved', 19)]
    """
    if pair != "auto" and pair not in PAIRS:
        raise ValueError(f"expected pair to be one of 'auto', {', '.join(map(repr, PAIRS))}, got {pair!r}")
    if window < 1 or window != int(window):
        raise ValueError(f"expected window to be an integer of at least 1, got {window!r}")
    named = dict(x) if isinstance(x, Mapping) else {"run": x}
    if not named:
        raise ValueError("expected at least one run, got an empty mapping")
    chosen = None if blocks is None else (blocks,) if isinstance(blocks, str) else tuple(blocks)
    recordings: dict[tuple[str, str | None], Recording] = {}
    for name, value in named.items():
        if not isinstance(name, str):
            raise TypeError(f"expected the names of runs to be text, got {name!r}")
        rec = _recording(value, name)
        for candidate in rec.candidates or (None,):
            recordings[name, candidate] = rec if candidate is None else rec.candidate(candidate)
    if chosen is not None:
        there = {block: None for rec in recordings.values() for block in rec.blocks}
        for block in chosen:
            if block not in there:
                raise ValueError(f"expected blocks among {list(there)[:8]}, got {block!r}")
    runs = {}
    for (name, candidate), rec in recordings.items():
        title = name if candidate is None else f"{name}/{candidate}"
        taken = [i for i, block in enumerate(rec.blocks) if chosen is None or block == ALL or block in chosen]
        if title in runs:
            raise ValueError(f"expected runs of different names, got {title!r} twice")
        runs[title] = RunAnalysis(
            title,
            candidate,
            rec.info,
            _pair(rec, pair, int(window), title),
            int(window),
            tuple(rec.blocks[i] for i in taken),
            tuple(rec.sizes[i] for i in taken),
            rec,
            tuple(taken),
            bool(progress),
        )
    return Analysis(runs)


def _recording(x: Any, name: str) -> Recording:
    """A Recording of what the user has."""
    if isinstance(x, Recording):
        return x
    if isinstance(x, str | os.PathLike):
        return Recording.open(x)
    made = getattr(x, "recording", None)
    if callable(made):
        found = made()
        if isinstance(found, Recording):
            return found
    raise TypeError(
        f"expected run {name!r} to be a Recording, a Recorder or the path of a recording, got {type(x).__name__}"
    )


def _pair(rec: Recording, pair: str, window: int, name: str) -> Pair:
    """The pair of a run, checked."""
    info = rec.info
    if pair == "auto":
        if window > 1 and not info.rate and _has_pairs(rec):
            return _pair(rec, "displacement", window, name)
        return "trapezoid" if window == 1 and _steps_of_one_function(rec) else "continuous"
    if pair == "continuous":
        return "continuous"
    if info.rate:
        raise ValueError(
            f"run {name!r}: the update is a rate, d theta/dt, over which no loss is differenced: pair {pair!r} is not "
            "possible; use pair='continuous'"
        )
    if np.isnan(rec.loss).all():
        raise ValueError(f"run {name!r}: pair {pair!r} needs the losses, and none was recorded; use pair='continuous'")
    if pair == "left":
        if window > 1:
            raise ValueError(f"pair 'left' is of one step, got window={window}; use pair='displacement'")
        return "left"
    if pair == "trapezoid" and window > 1:
        raise ValueError(f"pair 'trapezoid' is of one step, got window={window}; use pair='displacement'")
    if info.lag < window:
        raise ValueError(
            f"run {name!r}: pair {pair!r} with window={window} needs inner products with the {window} steps before, "
            f"but the recording has lag={info.lag}: record with lag={window} (Recorder or recording), or use "
            "pair='continuous', which still says whether the loss falls over the window"
        )
    if not (np.diff(rec.step) == 1).any():
        raise ValueError(
            f"run {name!r}: pair {pair!r} needs consecutive steps, and every={info.every} has none; record with every=1"
        )
    return "trapezoid" if pair == "trapezoid" else "displacement"


def _has_pairs(rec: Recording) -> bool:
    """Whether gradients and losses are there at all."""
    return bool((rec.rows["status"][:, 0] <= STATUS_CODE["nonfinite"]).any()) and not np.isnan(rec.loss).all()


def _steps_of_one_function(rec: Recording) -> bool:
    """Whether at least half of the steps with an angle can be taken as finite steps of one function."""
    info = rec.info
    if info.objective != "fixed" or info.rate or info.lag < 1 or len(rec) < 2:
        return False
    paired = rec.rows["status"][:-1, 0] <= STATUS_CODE["undecided"]
    possible = (
        (np.diff(rec.step) == 1)
        & np.isfinite(np.diff(rec.loss))
        & np.isfinite(rec.rows["lag_yy"][1:, 0, 0])
        & np.isfinite(rec.rows["lag_yg"][1:, 0, 0])
    )
    return bool(possible.any() and 2 * np.sum(possible & paired) >= np.sum(paired))
