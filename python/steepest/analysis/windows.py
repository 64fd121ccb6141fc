"""Over which windows the loss falls: eq (3), from the losses alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Effectiveness", "Falls", "change_over", "effectiveness", "falls_over", "least_window"]

Array = NDArray[np.float64]
# A window is searched on the grid of step numbers, if that is not much longer than the recording.
_GRID = 1 << 26


@dataclass(frozen=True)
class Effectiveness:
    """Over which windows the loss falls.

    Attributes
    ----------
    windows : tuple of int
        In steps.
    share : tuple of float
        Of the steps t with both losses: for how many L_{t+w} < L_t; NaN if there are none.
    steps : tuple of int
        How many steps have both losses.
    largest_rise : tuple of float
        max over t of L_{t+w} - L_t: negative where the rule is effective for the window, else by how much it fails.
    least_window : int or None
        The least window for which the loss falls at every step; None if there is none up to `longest`.
    longest : int
        The longest window tried.
    """

    windows: tuple[int, ...]
    share: tuple[float, ...]
    steps: tuple[int, ...]
    largest_rise: tuple[float, ...]
    least_window: int | None
    longest: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python values.

        Returns
        -------
        dict
            Field name -> value.
        """
        return {key: list(x) if isinstance(x, tuple) else x for key, x in asdict(self).items()}

    def __str__(self) -> str:
        parts = [f"{s:.1%} over {w} steps" for w, s in zip(self.windows, self.share, strict=True) if not math.isnan(s)]
        found = f"every step from {self.least_window} steps" if self.least_window else f"no window up to {self.longest}"
        return f"loss falls: {', '.join(parts) or 'unknown'}; at {found}"


def change_over(step: NDArray[np.int64], loss: Array, window: int) -> Array:
    """L_{t+w} - L_t, NaN where step t + w was not recorded or a loss is missing.

    Parameters
    ----------
    step : ndarray, shape (T,)
        Ascending.
    loss : ndarray, shape (T,)
        At these steps.
    window : int
        At least 1.

    Returns
    -------
    ndarray, shape (T,)
        Of each step.
    """
    if not len(step):
        return np.empty(0)
    at = np.minimum(np.searchsorted(step, step + window), len(step) - 1)
    with np.errstate(invalid="ignore", over="ignore"):
        found: Array = np.where(step[at] == step + window, loss[at] - loss, np.nan)
    return found


class Falls(NamedTuple):
    """How often the loss falls over one window.

    Attributes
    ----------
    share : float
        Of the steps t with both losses: for how many L_{t+w} < L_t; NaN if there are none.
    steps : int
        How many steps have both losses.
    largest_rise : float
        max over t of L_{t+w} - L_t; NaN if there are none.
    """

    share: float
    steps: int
    largest_rise: float


def falls_over(step: NDArray[np.int64], loss: Array, window: int) -> Falls:
    """How often the loss falls over one window.

    Parameters
    ----------
    step, loss : ndarray, shape (T,)
        As of `change_over`.
    window : int
        At least 1.

    Returns
    -------
    Falls
        See there.
    """
    change = change_over(step, loss, window)
    change = change[~np.isnan(change)]
    if not len(change):
        return Falls(math.nan, 0, math.nan)
    return Falls(float(np.mean(change < 0.0)), len(change), float(change.max()))


def least_window(step: NDArray[np.int64], loss: Array, longest: int) -> int | None:
    """The least w with L_{t+w} < L_t for every t with both losses.

    Parameters
    ----------
    step, loss : ndarray, shape (T,)
        As of `change_over`.
    longest : int
        The longest window to try.

    Returns
    -------
    int or None
        None if there is none.

    Notes
    -----
    Windows need not be nested (a loss with period 2 falls over 2 steps and not over 3), so each is tried. A step at
    which one window failed is likely to fail the next one too, and is tried first.
    """
    known = ~np.isnan(loss)
    step, loss = step[known], loss[known]
    if len(step) < 2 or step[-1] - step[0] >= _GRID:
        return None
    unit = int(np.gcd.reduce(np.diff(step)))
    place = (step - step[0]) // unit
    grid = np.full(int(place[-1]) + 1, np.nan)
    grid[place] = loss
    n = len(grid)
    # The least loss is not undercut later: a window that reaches from there into the recording fails.
    suspects = [int(np.nanargmin(grid))]
    for w in range(1, min(longest // unit, n - 1) + 1):
        if any(t + w < n and grid[t + w] >= grid[t] for t in suspects):
            continue
        fails = grid[w:] >= grid[:-w]  # False with NaN
        if fails.any():
            suspects = [int(np.argmax(fails)), int(n - w - 1 - np.argmax(fails[::-1])), *suspects[:14]]
        elif (~np.isnan(grid[w:]) & ~np.isnan(grid[:-w])).any():
            return w * unit
    return None


def effectiveness(
    step: NDArray[np.int64], loss: Array, windows: Iterable[int] = (1, 10, 100), longest: int | None = None
) -> Effectiveness:
    """Over which windows the loss falls.

    Parameters
    ----------
    step, loss : ndarray, shape (T,)
        As of `change_over`.
    windows : iterable of int
        In steps.
    longest : int, optional
        The longest window to try for `Effectiveness.least_window`; half of the recorded range by default.

    Returns
    -------
    Effectiveness
        See there.

    Raises
    ------
    ValueError
        A window is below 1.
    """
    chosen = tuple(int(w) for w in windows)
    if any(w < 1 for w in chosen):
        raise ValueError(f"expected windows of at least 1 step, got {chosen}")
    if longest is None:
        longest = int(step[-1] - step[0]) // 2 if len(step) else 0
    found = [falls_over(step, loss, w) for w in chosen]
    shares, counts, rises = (tuple(getattr(f, name) for f in found) for name in ("share", "steps", "largest_rise"))
    return Effectiveness(chosen, shares, counts, rises, least_window(step, loss, longest), longest)
