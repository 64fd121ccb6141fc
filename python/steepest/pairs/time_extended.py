"""The pair of a rule on a loss that depends on time: the vector of parameters and time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from steepest.alignment import Alignment, matched_pair
from steepest.arrays import EPSILON, Layout, LongVector, template_of
from steepest.pairs.descent_pair import DescentPair, Row, coarsest, rational_gram

__all__ = ["PARAMS", "TIME", "ChangeSplit", "TimeExtended", "split_change", "time_extended"]

#: Names of the parts of the extended vector; a mapping keeps its own names for the parameters.
PARAMS, TIME = "(params)", "(time)"


@dataclass(frozen=True, eq=False)
class TimeExtended:
    """The pair of a rule in (theta, unit * t), for a loss L(theta, t).

    Attributes
    ----------
    pair : DescentPair
        Gradient (dL/dtheta, L_t/unit) and update (theta', unit), as mappings with the entry ``"(time)"``; an array of
        parameters is their entry ``"(params)"``. ``grad.update`` is `rate`, whatever the unit.
    unit : float
        w, how long a unit of time is in units of the parameters. 0 where L_t = 0 and the best unit was asked for (the
        limit: then time has no part in the pair); NaN if the vectors are not finite and no unit was given.
    learning : float
        grad.update: how fast the rule lowers the loss of the moment.
    drift : float
        L_t: how fast the loss changes by itself.
    rate : float
        dL/dt = learning + drift, rounded once. A metric exists if and only if it is negative.
    cos_max : float
        ``-rate / (|grad| |update| + |L_t|)``: cos psi for the best unit. Where the loss falls no other unit gives a
        smaller angle; where it rises, no other a larger one. NaN where it is 0/0.
    """

    pair: DescentPair
    unit: float
    learning: float
    drift: float
    rate: float
    cos_max: float

    @property
    def psi(self) -> float:
        """Angle between -gradient and update in rad, of the extended vectors, for `unit`."""
        return self.align().angle

    def align(self, **options: Any) -> Alignment:
        """As `DescentPair.align`.

        Parameters
        ----------
        **options
            As there.

        Returns
        -------
        Alignment
            Of the extended vectors.
        """
        return self.pair.align(**options)

    def metric(self, **options: Any) -> Any:
        """As `DescentPair.metric`.

        Parameters
        ----------
        **options
            As there.

        Returns
        -------
        Metric
            Of n + 1 dimensions: it takes -gradient to (theta', unit).
        """
        return self.pair.metric(**options)


def time_extended(grad: Any, update: Any, loss_rate: float, *, unit: float | None = None) -> TimeExtended:
    """The pair of a rule on a loss that changes by itself: effective means dL/dt = grad.update + L_t < 0.

    Parameters
    ----------
    grad : array or mapping name -> array
        dL/dtheta at fixed t, float64, float32, float16 or bfloat16. A mapping is ONE vector.
    update : array or mapping name -> array
        theta' = d theta/dt (not a multiple of it: `loss_rate` is per unit of the same time).
    loss_rate : float
        L_t = dL/dt at fixed theta; finite.
    unit : float, optional
        w > 0, the length of a unit of time: the angle depends on it. By default the one that maximises cos psi,
        ``w^2 = |L_t| |theta'| / |grad|``. To compare steps with each other, fix it.

    Returns
    -------
    TimeExtended
        With a `DescentPair` that holds views of both vectors.

    Raises
    ------
    ValueError
        Shapes or names differ; loss_rate is not finite, or unit not positive and finite; a parameter is called
        ``"(time)"``; no unit was given and there is no best one, since grad or update is zero and L_t is not.
    TypeError
        An unsupported dtype or type.

    See Also
    --------
    split_change : Learning and drift of a recorded change.

    Notes
    -----
    Section 6: x = (theta, w t), y = (-grad, -L_t/w), g = (theta', w) (reconstructed), y.g = -(grad.theta' + L_t) for
    every w, and ``cos psi_max = y.g / (|grad| |theta'| + |L_t|)`` (derived). The coefficients L_t/w and w are exact
    rational numbers, so that the unit costs no rounding. Sections 2-4 hold in n + 1 dimensions as they are. Cost: one
    compensated pass over both vectors.

    A finite step: with a discrete gradient DG of L(., t) for the step d, and the drift of `split_change` for
    `loss_rate`, ``time_extended(DG, d, drift)`` has grad.update = the whole change of the loss.

    Examples
    --------
    The rule goes downhill at rate 2 while the loss rises by itself at rate 1:

    >>> from steepest import pairs
    >>> found = pairs.time_extended([2.0, 0.0], [-1.0, 1.0], 1.0)
    >>> found.rate, round(found.cos_max, 6), round(found.psi, 6)
    (-1.0, 0.261204, 1.306527)
    >>> found.metric().solve({k: -x for k, x in found.pair.gradient().items()})["(params)"].round(6).tolist()
    [-1.0, 1.0]
    """
    y, g = matched_pair(grad, update)
    drift = _finite(loss_rate, "loss_rate")
    if y.layout.names is not None and TIME in y.layout.names:
        raise ValueError(f"expected no parameter of the name {TIME!r}, which is that of the time")
    # Vectors over parameters and time, and a unit vector along time, of which nothing but one zero is stored.
    names, shapes = y.layout.names or (PARAMS,), y.layout.shapes
    layout = Layout((*names, TIME), (*shapes, ()))
    long = [LongVector([*v.segments, np.array(0.0)], layout, (*v.dtypes, "float64")) for v in (y, g)]
    nothing = [np.broadcast_to(np.float64(0.0), shape) for shape in shapes]
    clock = LongVector([*nothing, np.array(1.0)], layout, ("float64",) * len(layout.shapes))
    vectors = (*long, clock)
    gram = rational_gram(vectors)

    zero, one, lt = Fraction(0), Fraction(1), Fraction(drift)
    w = one if unit is None else _given(unit)
    learning = rate = cos_max = math.nan
    if gram.finite:
        yy, yg, gg = gram.values[0][0], gram.values[0][1], gram.values[1][1]
        learning, rate = float(yg), float(yg + lt)
        size = _root(yy * gg) + abs(lt)
        cos_max = float(-(yg + lt) / size) if size else math.nan
        if unit is None:
            w = _best_unit(yy, gg, lt)
    rows: tuple[Row, Row] = ((one, zero, lt / w if w else zero), (zero, one, w))
    dtype = coarsest(y, g)
    pair = DescentPair(
        method="time-extended",
        names=("grad", "update", "time"),
        rows=rows,
        vectors=vectors,
        templates=(_extended(grad, y.layout.names), _extended(update, y.layout.names)),
        dtype=dtype,
        psi_floor=EPSILON[dtype],
        gram=gram,
    )
    return TimeExtended(pair, float(w) if gram.finite or unit is not None else math.nan, learning, drift, rate, cos_max)


def _finite(x: Any, name: str) -> float:
    try:
        value = float(x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"expected {name} to be a number, got {x!r}") from error
    if not math.isfinite(value):
        raise ValueError(f"expected a finite {name}, got {value}")
    return value


def _given(unit: float) -> Fraction:
    value = _finite(unit, "unit")
    if not value > 0.0:
        raise ValueError(f"expected a positive unit, got {value}")
    return Fraction(value)


def _best_unit(yy: Fraction, gg: Fraction, lt: Fraction) -> Fraction:
    """sqrt(|L_t| |theta'| / |grad|), to double precision."""
    if not lt:
        return Fraction(0)
    if not yy or not gg:
        what = "gradient" if not yy else "update"
        raise ValueError(
            f"no unit of time is the best one: the {what} is zero, and the angle falls to 0 as the unit goes to "
            f"{'infinity' if not yy else '0'}; fix one with unit="
        )
    return _root(abs(lt) * _root(gg / yy))


def _root(x: Fraction) -> Fraction:
    """sqrt to double precision, also of numbers beyond the range of double."""
    if not x:
        return x
    e = (x.numerator.bit_length() - x.denominator.bit_length()) // 2
    return Fraction(math.sqrt(x / Fraction(4) ** e)) * Fraction(2) ** e


def _extended(x: Any, names: tuple[Any, ...] | None) -> dict[Any, Any]:
    """What results are made after: the parameters as they were given, and a time."""
    params = {PARAMS: x} if names is None else {name: x[name] for name in names}
    return {**template_of(params), TIME: np.array(0.0)}


class ChangeSplit(NamedTuple):
    """A recorded change of the loss, in two parts.

    Attributes
    ----------
    learning : float or ndarray
        L_t(theta_{t+1}) - L_t(theta_t): what the step does to the loss as it was.
    drift : float or ndarray
        L_{t+1}(theta_{t+1}) - L_t(theta_{t+1}): what the loss does by itself.
    """

    learning: Any
    drift: Any

    @property
    def total(self) -> Any:
        """L_{t+1}(theta_{t+1}) - L_t(theta_t)."""
        return self.learning + self.drift


def split_change(loss: Any, loss_moved: Any, loss_next: Any) -> ChangeSplit:
    """Split the change of a loss that depends on time into learning and drift.

    Parameters
    ----------
    loss : float or array
        L_t(theta_t); arrays for many steps at once.
    loss_moved : float or array
        L_t(theta_{t+1}): the loss of before the step (its batch, its task, its time) at the parameters after it.
    loss_next : float or array
        L_{t+1}(theta_{t+1}).

    Returns
    -------
    ChangeSplit
        Floats, or float64 arrays; NaN where a loss is.

    Raises
    ------
    ValueError
        Shapes differ.
    TypeError
        Not real numbers.

    Notes
    -----
    Section 6. It costs one loss for each step, at the parameters after it.

    Examples
    --------
    >>> from steepest import pairs
    >>> split = pairs.split_change([4.0, 3.5], [3.0, 2.5], [3.5, 2.25])
    >>> split.learning.tolist(), split.drift.tolist(), split.total.tolist()
    ([-1.0, -1.0], [0.5, -0.25], [-0.5, -1.25])
    """
    arrays = [_numbers(x, name) for x, name in ((loss, "loss"), (loss_moved, "loss_moved"), (loss_next, "loss_next"))]
    if len({a.shape for a in arrays}) > 1:
        raise ValueError(f"expected three losses of one shape, got {', '.join(str(a.shape) for a in arrays)}")
    before, moved, after = arrays
    with np.errstate(invalid="ignore", over="ignore"):
        parts = moved - before, after - moved
    return ChangeSplit(*(part if before.ndim else float(part) for part in parts))


def _numbers(x: Any, name: str) -> Any:
    array = np.asarray(x)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"expected {name} to hold real numbers, got {array.dtype}")
    return array.astype(np.float64)
