"""The pair of a rule that lowers the loss over a window of steps, though not at each one: eq (3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from steepest.analysis.windows import falls_over, least_window
from steepest.arrays import EPSILON, LongVector, long_vector, template_of
from steepest.pairs.descent_pair import DescentPair, RationalGram, Row, coarsest, rational_gram
from steepest.pairs.finite_step import FiniteStep
from steepest.recording import Recording

__all__ = ["EffectiveWindow", "smallest_effective_window", "windowed"]

KINDS = ("displacement", "one-step")


def windowed(
    recording: Recording,
    step: int,
    *,
    window: int,
    kind: Literal["displacement", "one-step"] = "displacement",
    lr: float = 1.0,
) -> DescentPair:
    """The pair of one step of a rule that lowers the loss over `window` steps: it need not fall at the step itself.

    Parameters
    ----------
    recording : Recording
        With vectors (``keep="vectors"``, or made by `steepest.recording` from whole arrays), losses, and every step of
        the window. With candidates choose one: ``recording.candidate(name)``.
    step : int
        Number t of the step.
    window : int
        w in steps, at least 1; see `smallest_effective_window`.
    kind : {'displacement', 'one-step'}
        See Notes. 'one-step' is ill conditioned where a single step is short; prefer 'displacement'.
    lr : float
        Learning rate, positive: the update is d/lr. It only rescales the metric.

    Returns
    -------
    DescentPair
        Exact coefficients over the recorded gradients and the displacement: the difference of the parameters, formed
        once in float64, or the recorded updates where the parameters were not recorded. ``loss_change`` is dL below.

    Raises
    ------
    ValueError
        A step of the window, its gradient, loss or update is missing; a loss is not finite; window, kind or lr is not
        possible; the updates are rates; or the loss falls although the parameters do not move: no metric exists for
        such a step (section 1).
    TypeError
        Not a `Recording`.

    See Also
    --------
    steepest.pairs.discrete : The same for one step from its two ends.
    steepest.analyze : With ``window=``, 'displacement' for all steps and blocks, from recorded products.

    Notes
    -----
    Section 1 (derived). Both are exact in the secant sense: gradient.d = dL without rounding, and only the component
    of the gradient along d is determined by the data.

    ============  =============================  =========================  ===================================
    kind          d                              dL                         gradient before the correction
    ============  =============================  =========================  ===================================
    displacement  params_{t+w} - params_t        L_{t+w} - L_t              mean of grad_t, ..., grad_{t+w}
    one-step      params_{t+1} - params_t        (L_{t+w} - L_t)/w          mean of grad_t, ..., grad_{t+w-1}
    ============  =============================  =========================  ===================================

    Corrected by a multiple of d, as in `steepest.pairs.discrete`; read `DescentPair.correction_share` with the angle:
    near 1 the correction dominates, and the angle is near 0 whatever the rule does. Of window 1 they are its
    'trapezoid' and 'left'. With mini-batches the losses belong to different functions, and their difference is noise.

    Cost: O(w^2 n), one compensated pass over w + 2 vectors (2w + 1 without parameters).

    Examples
    --------
    >>> import numpy as np
    >>> import steepest
    >>> from steepest import pairs
    >>> x = np.array([[2.0, 1.0], [2.0, -1.5], [1.0, 0.5]])  # L = |x|^2/2 rises at the first step
    >>> rec = steepest.recording(params=x, grad=x, loss=(x**2).sum(1) / 2, objective="fixed")
    >>> pair = pairs.windowed(rec, 0, window=2)
    >>> pair.loss_change, bool(np.allclose(pair.metric().solve(-pair.gradient()), x[2] - x[0]))
    (-1.875, True)
    """
    if not isinstance(recording, Recording):
        raise TypeError(
            f"expected a Recording, got {type(recording).__name__}; make one of arrays with steepest.recording, of a "
            "folder with steepest.Recording.open"
        )
    if kind not in KINDS:
        raise ValueError(f"expected a kind out of {', '.join(map(repr, KINDS))}, got {kind!r}")
    start, w = _integer(step, "step"), _integer(window, "window")
    if w < 1:
        raise ValueError(f"expected a window of at least 1 step, got {window}")
    if not 0.0 < float(lr) < math.inf:
        raise ValueError(f"expected a positive and finite lr, got {lr}")
    numbers = range(start, start + w + 1)
    loss, loss_after = _losses(recording, numbers)
    length, gradients = (w, numbers) if kind == "displacement" else (1, numbers[:-1])
    grads = {f"grad[{t}]": _needed(recording, t, "grad") for t in gradients}
    method = f"windowed {kind}"
    change = Fraction(loss_after) - Fraction(loss)
    if kind == "one-step":
        change /= w

    ends = [recording.vectors(t).params for t in (start, start + length)]
    if ends[0] is not None and ends[1] is not None:
        made = FiniteStep(ends[0], ends[1], loss, loss_after, float(lr))
        made.loss_change = change
        matched = {name: made.matched(grad, name) for name, grad in grads.items()}
        return made.corrected(method, matched, next(iter(grads.values())))
    if recording.rate:
        raise ValueError(
            "expected parameters or displacements, but the updates of this recording are rates (rate=True): record "
            "params too"
        )
    updates = {f"update[{t}]": _needed(recording, t, "update") for t in numbers[:length]}
    return _of_updates(method, grads, updates, change, Fraction(float(lr)))


def _integer(x: Any, name: str) -> int:
    if int(x) != x:
        raise ValueError(f"expected {name} to be an integer, got {x!r}")
    return int(x)


def _losses(recording: Recording, numbers: range) -> tuple[float, float]:
    """The losses at both ends of a window all of whose steps were recorded."""
    step = recording.step
    missing = sorted(set(numbers) - set(step[np.searchsorted(step, numbers[0]) :][: len(numbers)].tolist()))
    if missing:
        raise ValueError(
            f"expected every step from {numbers[0]} to {numbers[-1]} for a window of {len(numbers) - 1}, but "
            f"{len(missing)} were not recorded, the first {missing[0]}; {len(step)} steps were, with "
            f"every={recording.info.every}"
        )
    found = []
    for t in (numbers[0], numbers[-1]):
        loss = float(recording.loss[np.searchsorted(step, t)])
        if not math.isfinite(loss):
            what = "no loss was recorded" if math.isnan(loss) else f"it is {loss}"
            raise ValueError(f"expected a finite loss at step {t}, the end of a window; {what}")
        found.append(loss)
    return found[0], found[1]


def _needed(recording: Recording, step: int, name: Literal["grad", "update"]) -> Any:
    found = getattr(recording.vectors(step), name)
    if found is None:
        what = "gradient" if name == "grad" else "update, nor the parameters at both ends of the displacement"
        raise ValueError(f"step {step} of the window has no recorded {what}")
    return found


def _of_updates(
    method: str, grads: Mapping[str, Any], updates: Mapping[str, Any], change: Fraction, lr: Fraction
) -> DescentPair:
    """The corrected mean of gradients, over a displacement that is a sum of updates."""
    gs = [long_vector(x, name) for name, x in grads.items()]
    us = [long_vector(x, name) for name, x in updates.items()]
    vectors = (*gs, *us)
    mean: Row = (*[Fraction(1, len(gs))] * len(gs), *[Fraction(0)] * len(us))
    d: Row = (*[Fraction(0)] * len(gs), *[Fraction(1)] * len(us))
    gram = rational_gram(vectors)
    if gram.finite and gram.product(d, d) <= gram.product_bound(d, d):  # updates that cancel
        gram = rational_gram(vectors, "exact")
    share, floor, defect, row = math.nan, math.nan, math.nan, mean
    if gram.finite:
        squared = gram.product(d, d)
        if squared <= gram.product_bound(d, d):
            squared = Fraction(0)
        if not squared and change < 0:
            raise ValueError(
                f"the loss changes by {float(change):.6g} over the window but the updates add up to zero: no metric "
                "exists for a step that lowers the loss without moving (it depends on something else, such as a batch)"
            )
        t = (change - gram.product(mean, d)) / squared if squared else Fraction(0)
        row = tuple(a + t * b for a, b in zip(mean, d, strict=True))
        length = gram.product(row, row)
        share = math.sqrt(t * t * squared / length) if length > 0 else 0.0
        defect = float(gram.product(row, d) - change)
        floor = _psi_floor(gram, gs, us, squared)
    first = next(iter(updates.values()))
    return DescentPair(
        method=method,
        names=(*grads, *updates),
        rows=(row, tuple(c / lr for c in d)),
        vectors=vectors,
        templates=(template_of(next(iter(grads.values()))), template_of(first)),
        dtype=coarsest(*vectors),
        psi_floor=floor,
        correction_share=share,
        loss_change=float(change),
        defect=defect,
        gram=gram,
        exact_descent=gram.finite,
    )


def _psi_floor(gram: RationalGram, grads: list[LongVector], updates: list[LongVector], squared: Fraction) -> float:
    """Rounding of gradients and of each update to their element types."""
    rounding = sum(
        gram.values[i][i] * Fraction(EPSILON[u.coarsest]) ** 2 for i, u in enumerate(updates, start=len(grads))
    )
    own = math.atan(math.sqrt(rounding / squared)) if squared else math.pi / 2
    return max(EPSILON[coarsest(*grads)], own)


@dataclass(frozen=True)
class EffectiveWindow:
    """The least window over which the loss falls at every step, or by how much the longest one fails.

    Attributes
    ----------
    window : int or None
        The least w with L_{t+w} < L_t for every t with both losses; None if there is none up to `longest`.
    steps : int
        For how many steps t that is so: those with both losses; of the longest window if there is none.
    largest_rise : float
        max over t of L_{t+w} - L_t: of `window` negative; if there is none, of the longest window tried, by how much it
        fails. NaN if no two losses are known.
    longest : int
        The longest window tried; 0 if there was none to try.
    windows : tuple of int
        Powers of two times the distance of the recorded steps, `window` and `longest`.
    shares : tuple of float
        For which share of the steps the loss falls over each of `windows`; NaN where no step has both losses.
    rises : tuple of float
        max over t of L_{t+w} - L_t of each of `windows`.
    """

    window: int | None
    steps: int
    largest_rise: float
    longest: int
    windows: tuple[int, ...]
    shares: tuple[float, ...]
    rises: tuple[float, ...]

    def __str__(self) -> str:
        if self.window is not None:
            return (
                f"the loss falls over {self.window} steps, by {-self.largest_rise:.3g} at least, for all {self.steps}"
            )
        share = self.shares[-1] if self.shares else math.nan
        return (
            f"no window up to {self.longest} steps lowers the loss at every step: over {self.longest} it falls at "
            f"{share:.1%} of {self.steps} steps, and rises by {self.largest_rise:.3g} at most"
        )


def smallest_effective_window(losses: Any, *, longest: int | None = None) -> EffectiveWindow:
    """The least window for which the averaged loss falls at every step, eq (3).

    Parameters
    ----------
    losses : Recording, or array of shape (T,)
        Of consecutive steps; NaN where one is missing.
    longest : int, optional
        The longest window to try, at least 1; half of the recorded range by default, since a longer one says nothing of
        most steps.

    Returns
    -------
    EffectiveWindow
        If there is none, by how much the longest one fails.

    Raises
    ------
    ValueError
        Not one axis; longest below 1.
    TypeError
        Not real numbers.

    See Also
    --------
    windowed : The pair of a step for such a window.
    steepest.RunAnalysis.effectiveness : For windows that you choose.

    Notes
    -----
    Eq (3) (reconstructed): the average of L over w steps falls at every step if and only if L_{t+w} < L_t for all t.
    Windows are not nested (a loss of period 2 falls over 2 steps and not over 3), so each is tried. Cost O(T) for each,
    mostly much less.

    Examples
    --------
    >>> from steepest import pairs
    >>> found = pairs.smallest_effective_window([4.0, 5.0, 3.0, 4.0, 2.0, 3.0, 1.0, 2.0])
    >>> found.window, found.steps, found.largest_rise
    (2, 6, -1.0)
    """
    if isinstance(losses, Recording):
        step, loss = losses.step, np.array(losses.loss)
    else:
        given = np.asarray(losses)
        if given.dtype.kind not in "iuf":
            raise TypeError(f"expected losses to be real numbers or a Recording, got {given.dtype}")
        if given.ndim != 1:
            raise ValueError(f"expected losses of shape (T,), got {given.shape}")
        step, loss = np.arange(len(given)), given.astype(np.float64)
    known = step[~np.isnan(loss)]
    span = int(known[-1] - known[0]) if len(known) else 0
    if longest is not None and longest < 1:
        raise ValueError(f"expected longest to be at least 1 step, got {longest}")
    unit = int(np.gcd.reduce(np.diff(known))) if span else 1  # only its multiples have steps with both losses
    limit = max(span // 2, unit) if longest is None else int(longest)
    limit = min(limit, span) // unit * unit
    if not limit:
        return EffectiveWindow(None, 0, math.nan, 0, (), (), ())
    window = least_window(step, loss, limit)
    windows = {unit << k for k in range((limit // unit).bit_length())} | {limit, window or limit}
    found = {w: falls_over(step, loss, w) for w in sorted(windows)}
    at = found[window or limit]
    shares, rises = (tuple(getattr(f, name) for f in found.values()) for name in ("share", "largest_rise"))
    return EffectiveWindow(window, at.steps, at.largest_rise, limit, tuple(found), shares, rises)
