"""Pairs of finite steps from the recorded inner products: discrete gradients, and displacements over a window.

With d = the displacement, y0 = the mean of a few gradients (+dL/dtheta), dL = the change of the loss, the discrete
gradient is DG = y0 + tau d with tau = (dL - y0.d)/(d.d), so that DG.d = dL (sections 1B and 7). Of DG only its products
are needed. For a block, whose part of DG is y0_b + tau d_b with the tau of the whole vector,

    z = DG_b.d_b = y0_b.d_b + tau d_b.d_b        dL itself for the whole vector
    S = (d_b.d_b)(y0_b.y0_b) - (y0_b.d_b)^2      the Gram determinant, which tau does not change
    |DG_b| |d_b| = sqrt(S + z^2),   cos psi = -z / sqrt(S + z^2),   sin psi = sqrt(S) / sqrt(S + z^2)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from steepest.analysis.columns import PAIR_STATUS_CODE, Pair
from steepest.analysis.pair_rows import epsilon_of, norm_of
from steepest.row_format import STATUS_CODE
from steepest.twofold import RELATIVE_ERROR, Twofold

__all__ = ["StepPair", "step_pair_rows"]

Array = NDArray[np.float64]
# Of what a few operations on numbers that are right to RELATIVE_ERROR add up to.
_ROUNDING = 32.0 * RELATIVE_ERROR
_ROOM = 400  # powers of two between gradient and correction, beyond which the gradient is nothing beside it
_TINY = -(1 << 20)  # exponent of a vector that is zero or missing


class _Number(NamedTuple):
    """Products as double-double numbers, with bounds on their errors and the sums of the sizes of their terms."""

    value: Twofold
    bound: Array
    size: Array


@dataclass(frozen=True)
class StepPair:
    """Which gradients are averaged, over which window.

    Attributes
    ----------
    gradients : tuple of int
        Steps after t.
    window : int
        The displacement is that of so many steps.
    """

    gradients: tuple[int, ...]
    window: int

    @classmethod
    def of(cls, pair: Pair, window: int) -> Self:
        """The weights of a pair.

        Parameters
        ----------
        pair : {'trapezoid', 'left', 'displacement'}
            See `steepest.analyze`.
        window : int
            Of 'displacement'.

        Returns
        -------
        StepPair
            'trapezoid' is 'displacement' with window 1.
        """
        if pair == "left":
            return cls((0,), 1)
        return cls(tuple(range(window + 1)), window)


class _Rows:
    """Products of gradients and updates of the steps from t on, in units of each row of step t."""

    def __init__(self, rows: NDArray[np.void], pair: StepPair, dloss: Array) -> None:
        self.rows, self.pair = rows, pair
        self.count = len(rows)
        self.cache: dict[tuple[str, int], Array] = {}
        # Units: the largest vectors, so that nothing overflows.
        ys = [np.where(self.field("yy", i) > 0.0, self.field("y_exponent", i), _TINY) for i in pair.gradients]
        gs = [np.where(self.field("gg", i) > 0.0, self.field("g_exponent", i), _TINY) for i in range(pair.window)]
        self.y_exponent, self.g_exponent = (np.maximum.reduce(e) for e in (ys, gs))
        self.y_exponent[self.y_exponent == _TINY] = 0
        self.g_exponent[self.g_exponent == _TINY] = 0
        # What the correction brings in must stay in range too: the loss, and tau in the units of a block.
        y, g = self.y_exponent, self.g_exponent
        size = np.where(np.isfinite(dloss) & (dloss != 0.0), np.frexp(dloss)[1], _TINY)
        y[:, 0] = np.maximum(y[:, 0], size - g[:, 0] - _ROOM)
        y[:, 1:] = np.maximum(y[:, 1:], y[:, :1] - g[:, :1] + g[:, 1:] - _ROOM)

    def field(self, name: str, i: int) -> Any:
        """A field at step t + i; of the last step behind the end."""
        values = self.rows[name]
        return values if i == 0 else values[np.minimum(np.arange(self.count) + i, self.count - 1)]

    def product(self, a: tuple[str, int], b: tuple[str, int]) -> _Number:
        """Inner product of ('y', i) or ('g', i), gradient or update of step t + i, with another."""
        (kind_a, i), (kind_b, j) = a, b
        if i < j:
            kind_a, i, kind_b, j = kind_b, j, kind_a, i
        unit = self._exponent(kind_a) + self._exponent(kind_b)
        if i == j:
            name = "yg" if kind_a != kind_b else 2 * kind_a
            own = [self.field(f"{kind}_exponent", i) for kind in (kind_a, kind_b)]
            exponent = own[0] + own[1] - unit
            parts = [self.field(name + part, i) for part in ("", "_lo", "_bound")]
        else:
            name, at = f"lag_{kind_a}{kind_b}", (..., i - j - 1)
            exponent = self.field(name + "_exponent", i)[at] - unit
            parts = [self.field(name + part, i)[at] for part in ("", "_lo", "_bound")]
        high, low, bound = (np.ldexp(part, exponent) for part in parts)
        return _Number(Twofold(high, low), bound, np.abs(high))

    def _exponent(self, kind: str) -> Any:
        return self.y_exponent if kind == "y" else self.g_exponent

    def total(self, first: list[tuple[str, int]], second: list[tuple[str, int]]) -> _Number:
        """Inner product of two sums of vectors."""
        same = first == second
        terms = []
        for m, a in enumerate(first):
            for n, b in enumerate(second):
                if same and n < m:
                    continue
                p = self.product(a, b)
                terms.append(p if not same or m == n else _Number(p.value + p.value, 2 * p.bound, 2 * p.size))
        value, bound, size = terms[0]
        for p in terms[1:]:
            value, bound, size = value + p.value, bound + p.bound, size + p.size
        return _Number(value, bound + _ROUNDING * size, size)


def step_pair_rows(
    rows: NDArray[np.void], step: NDArray[np.int64], loss: Array, pair: StepPair, single: NDArray[np.bool_]
) -> dict[str, NDArray[Any]]:
    """The pair of a finite step for each row.

    Parameters
    ----------
    rows : ndarray, shape (steps, blocks)
        Of a recording, consecutive ones; the whole vector first.
    step, loss : ndarray, shape (steps,)
        Of these rows.
    pair : StepPair
        Which.
    single : ndarray of bool, shape (blocks,)
        Blocks of one parameter.

    Returns
    -------
    dict
        The arrays of `PAIR_COLUMNS`. The last `pair.window` rows have no loss after them.

    Notes
    -----
    In double-double arithmetic, with a bound for each number: y.g = -dL of the whole vector is exact, of a block it is
    ``ok`` only where z + bound < 0. An angle that the products do not resolve is below `psi_floor`.
    """
    w = pair.window
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        n, ahead = len(rows), np.minimum(np.arange(len(rows)) + w, len(rows) - 1)
        after = np.where(step[ahead] - step == w, loss[ahead], np.nan)
        dloss = after - loss
        known = _Rows(rows, pair, dloss)
        gradients, updates = [("y", i) for i in pair.gradients], [("g", i) for i in range(w)]
        count = float(len(gradients))
        dd = known.total(updates, updates)
        yd, yy = known.total(gradients, updates), known.total(gradients, gradients)  # of sums: `count` times the mean
        descent, slope = _descent(known, dd, yd, dloss, count)
        # The Gram determinant, `count`^2 times.
        area = dd.value * yy.value - yd.value * yd.value
        area_bound = (
            dd.value.hi * yy.bound
            + yy.value.hi * dd.bound
            + (2.0 * np.abs(yd.value.hi) + yd.bound) * yd.bound
            + dd.bound * yy.bound
            + _ROUNDING * (dd.size * yy.size + yd.size * yd.size)
        ) / count**2
        across = np.sqrt(np.maximum(area.hi, 0.0)) / count
        if pair.gradients == (0,):  # the sine of the row is right to more digits
            across = np.where(rows["yy"] == 0.0, 0.0, rows["sine"]) * np.sqrt(rows["yy"]) * np.sqrt(rows["gg"])
            area_bound = np.zeros_like(across)
        across[:, single], area_bound[:, single] = 0.0 * across[:, single], 0.0
        z = descent.value.hi
        product = np.hypot(across, z)
        code = _status(known, dd, yd, yy, descent, loss, after, rows)
        paired = code <= STATUS_CODE["undecided"]
        move = np.sqrt(dd.value.hi)
        nothing = np.full(paired.shape, np.nan)
        floor = np.arctan2(np.sqrt(area_bound), product)
        return {
            "status_code": code,
            "cos": np.where(paired, -z / product, np.nan),
            "sin": np.where(paired, across / product, np.nan),
            "psi_floor": np.fmax(floor, _input_floor(known, move, n)),
            "null_sign_flip": nothing,
            "grad_norm": np.ldexp(product / move, known.y_exponent),
            "update_norm": np.ldexp(move, known.g_exponent),
            "rho": np.where(paired, np.ldexp(product / dd.value.hi, known.y_exponent - known.g_exponent), np.nan),
            "correction_share": np.where(paired, np.abs(slope) * dd.value.hi / product, np.nan),
            "decay_share": rows["decay_share"] if w == 1 else nothing,
        }


def _descent(known: _Rows, dd: _Number, yd: _Number, dloss: Array, count: float) -> tuple[_Number, Array]:
    """DG.d of each block, dL of the whole vector; and tau."""
    y_exponent, g_exponent = known.y_exponent, known.g_exponent
    change = np.ldexp(dloss, -(y_exponent[:, 0] + g_exponent[:, 0]))
    mean = yd.value / Twofold(np.full_like(yd.bound, count))
    mean_bound = yd.bound / count + _ROUNDING * np.abs(mean.hi)
    whole_mean, whole_dd = (Twofold(x.hi[:, 0], np.asarray(x.lo)[:, 0]) for x in (mean, dd.value))
    slope = (Twofold(change, np.zeros_like(change)) - whole_mean) / whole_dd
    sizes = np.abs(change) + np.abs(whole_mean.hi)
    error = (mean_bound[:, 0] + np.abs(slope.hi) * dd.bound[:, 0] + _ROUNDING * sizes) / (
        whole_dd.hi - dd.bound[:, 0]
    ) + _ROUNDING * np.abs(slope.hi)
    # In the units of each block.
    shift = (y_exponent[:, :1] - g_exponent[:, :1]) - (y_exponent - g_exponent)
    tau = Twofold(np.ldexp(slope.hi[:, None], shift), np.ldexp(np.asarray(slope.lo)[:, None], shift))
    tau_bound = np.ldexp(np.where(error >= 0.0, error, np.inf)[:, None], shift)
    value = mean + tau * dd.value
    size = np.abs(mean.hi) + np.abs(tau.hi) * dd.value.hi
    bound = mean_bound + np.abs(tau.hi) * dd.bound + (dd.value.hi + dd.bound) * tau_bound + _ROUNDING * size
    value.hi[:, 0], np.asarray(value.lo)[:, 0], bound[:, 0] = change, 0.0, 0.0
    return _Number(value, bound, size), tau.hi


def _status(
    known: _Rows,
    dd: _Number,
    yd: _Number,
    yy: _Number,
    descent: _Number,
    loss: Array,
    after: Array,
    rows: NDArray[np.void],
) -> NDArray[np.int8]:
    """ok only where it is certain."""
    code, names = PAIR_STATUS_CODE, rows["status"]
    dloss = after - loss
    z, d = descent.value.hi, dd.value.hi
    # The sign of the whole vector's is that of dL, also where its scaled number has left the range.
    sign = np.sign(z)
    sign[:, 0] = np.sign(dloss)
    certain = np.abs(z) > descent.bound
    certain[:, 0] = True
    found = np.where(sign < 0.0, code["ok"], code["ascent"])
    found = np.where(~certain & ~((z == 0.0) & (descent.bound == 0.0)), code["undecided"], found)
    found = np.where((sign == 0.0) & (yy.value.hi == 0.0) & (yy.bound == 0.0), code["zero_grad"], found)
    found = np.where(d <= dd.bound, code["undecided"], found)
    found = np.where((d == 0.0) & (dd.bound == 0.0), code["zero_update"], found)
    # What is missing
    missing = np.isnan(d) | np.isnan(yy.value.hi) | np.isnan(yd.value.hi)
    found = np.where(missing, code["no_gradient"], found)
    found = np.where(np.isnan(d), code["no_update"], found)
    for i in range(1, known.pair.window + 1):
        found = np.where(missing & (known.field("status", i) == code["nonfinite"]), code["nonfinite"], found)
    no_loss = np.isnan(loss) | np.isnan(after)
    found[no_loss] = code["no_loss"]
    found[~no_loss & ~np.isfinite(dloss)] = code["nonfinite"]
    own = [code[name] for name in ("nonfinite", "no_gradient", "no_update", "skipped")]
    return np.where(np.isin(names, own), names, found).astype(np.int8)


def _input_floor(known: _Rows, move: Array, n: int) -> Array:
    """What rounding of parameters and gradients does to the angle."""
    rounding = np.maximum.reduce([epsilon_of(known.rows), *(epsilon_of(known.rows[np.minimum(np.arange(n) + i, n - 1)])
                                                           for i in known.pair.gradients if i)])  # fmt: skip
    recorded = known.rows["psi_floor"]
    if known.pair.window > 1:
        squared = np.zeros_like(move)
        for i in range(known.pair.window):
            norm = norm_of(known.field("gg", i), known.field("g_exponent", i) - known.g_exponent)
            squared += (np.tan(known.field("psi_floor", i)) * norm) ** 2
        recorded = np.arctan2(np.sqrt(squared), move)
    found: Array = np.fmax(rounding, recorded)
    return found
