"""How long a geometry stays the same: the score of a fit against the time since the steps it was fitted to."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import ArrayOrMapping
from steepest.identify.fit import _FAMILIES, _fitted
from steepest.identify.identification import Family
from steepest.identify.scores import block_length, resampled
from steepest.identify.steps import PairStep, Steps, steps_of
from steepest.progress import shown

__all__ = ["BlockLifetime", "Lifetime", "lifetime"]

Array = NDArray[np.float64]
LifetimeStatus = Literal["ok", "longer than observed", "none", "too_few_windows"]
_WINDOWS = 200  # fits made by default


@dataclass(frozen=True, eq=False)
class BlockLifetime:
    """The decay of one block's score.

    Attributes
    ----------
    block : str
        ``"(all)"`` or the name of an array.
    r2, r2_low, r2_high : ndarray, shape (lags,)
        Over all windows, of the step at each lag, and its 95% interval.
    steps, low, high : float
        The lag at which R2 has fallen to `fraction` of its value at lag 1, between the lags on a logarithmic axis, and
        its 95% interval; infinite where it does not fall so far within the lags.
    status : str
        ``ok``. ``longer than observed``: R2 never falls so far; `low` is still a bound. ``none``: the interval of R2
        at lag 1 includes 0, there is no geometry to lose. ``too_few_windows``: fewer than 4.
    sentence : str
        The same in words.
    """

    block: str
    r2: Array
    r2_low: Array
    r2_high: Array
    steps: float
    low: float
    high: float
    status: LifetimeStatus
    sentence: str


@dataclass(frozen=True, eq=False, repr=False)
class Lifetime:
    """Held-out R2 against lag; made by `steepest.identify.lifetime`.

    Attributes
    ----------
    family : str
        Of the metric.
    window : int
        Steps in each fit.
    lags : ndarray of int
        A fit is scored by the step at this distance after its last one.
    windows : int
        How many fits; the same ones at all lags.
    fraction : float
        Of the R2 at lag 1 that ends the lifetime.
    blocks : tuple of BlockLifetime
        ``lifetime[name]`` is one of them.
    """

    family: str
    window: int
    lags: NDArray[np.int64]
    windows: int
    fraction: float
    blocks: tuple[BlockLifetime, ...]

    def __getitem__(self, block: str) -> BlockLifetime:
        names = [one.block for one in self.blocks]
        if block not in names:
            raise ValueError(f"expected block to be one of {names[:8]}, got {block!r}")
        return self.blocks[names.index(block)]

    def to_dict(self) -> dict[str, Any]:
        """Fields as plain Python values.

        Returns
        -------
        dict
            With `blocks` as a list of dicts.
        """
        values = asdict(self) | {"lags": self.lags.tolist()}
        values["blocks"] = [
            {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(one).items()} for one in self.blocks
        ]
        return values

    @property
    def plot(self) -> Any:
        """The figure: ``found.plot(ax=ax)`` is ``steepest.plot.lifetime(found, ax=ax)``."""
        module = importlib.import_module("steepest.plot.lifetime")

        def draw(ax: Any = None, **options: Any) -> Any:
            return module.lifetime(self, ax=ax, **options)

        return draw

    def __repr__(self) -> str:
        first = self.blocks[0]
        return (
            f"Lifetime({self.family}, {self.windows} windows of {self.window} steps, {first.block}: {first.sentence})"
        )


def lifetime(
    x: Any = None,
    family: Family = "diagonal",
    *,
    window: int,
    grad: ArrayOrMapping | None = None,
    update: ArrayOrMapping | None = None,
    lags: Sequence[int] | None = None,
    every: int | None = None,
    fraction: float = 0.5,
    rng: Any = None,
    progress: bool = False,
    **options: Any,
) -> Lifetime:
    """For how many steps a fitted geometry predicts: its R2 against the lag after the steps that it was fitted to.

    Parameters
    ----------
    x, family, grad, update, **options
        As for `steepest.identify`; a run whose steps can be read in any order (whole arrays, a list, a recording).
    window : int
        Steps in each fit. A family needs a few at least; a window as long as the lifetime blurs what it measures.
    lags : sequence of int, optional
        Ascending, the first one is the reference; by default 1, 2, 4, ... up to half of what the run leaves beside the
        window.
    every : int, optional
        Steps from one window to the next; by default so many that there are about 200 windows at most.
    fraction : float
        Of the R2 at the first lag, at which the lifetime ends: 0.5, or 1/e.
    rng : int, numpy.random.Generator or None
        For the intervals (SPEC 7).
    progress : bool
        Show a progress bar on a terminal (needs tqdm).

    Returns
    -------
    Lifetime
        R2 at each lag and the lifetime, with intervals and a status, of every block.

    Raises
    ------
    ValueError
        Steps that cannot be read in any order, a window or lags that do not fit the run.

    Notes
    -----
    Section 11(b) (derived). ``R2(lag) = 1 - sum |y - M g|^2 / sum |y|^2``, sums over the windows, of the single step
    at that lag after each window; the same windows at every lag, so that a curve that falls is not one of other
    windows. Intervals: block bootstrap over the windows, which overlap, with blocks as long as their correlation at
    the lag where it is longest. Noise lowers R2 at all lags by one factor, and the lifetime, a ratio, stays; what the
    windows' own noise costs, too. A window with a step that is not finite is left out.

    Cost: a fit for each window: windows (window + number of lags) steps are read.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest.identify import lifetime
    >>> grad = np.random.default_rng(0).normal(size=(300, 3))
    >>> lifetime(grad=grad, update=-0.1 * grad, family="scalar", window=10, rng=0)["(all)"].status
    'longer than observed'
    """
    if family not in _FAMILIES:
        raise ValueError(f"expected family to be one of {', '.join(map(repr, get_args(Family)))}, got {family!r}")
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"expected 0 < fraction < 1, got {fraction!r}")
    run = steps_of(x, grad, update, None)
    if run.at is None:
        raise ValueError("expected steps that can be read in any order: whole arrays, a list of pairs or a recording")
    if not 1 <= window < run.total:
        raise ValueError(f"expected 1 <= window < {run.total}, the number of steps, got {window!r}")
    chosen = _lags(lags, run.total, window)
    starts = run.total - window - int(chosen[-1]) + 1
    stride = max(1, -(-starts // _WINDOWS)) if every is None else int(every)
    if stride < 1:
        raise ValueError(f"expected every to be at least 1, got {every!r}")
    begins = range(0, starts, stride)
    norms = _norms(run)
    residual, norm = [], []
    for begin in shown(begins, progress, f"lifetime {family}", len(begins)):
        at = [*range(begin, begin + window), *(begin + window - 1 + chosen).tolist()]
        part = _part(run, at)
        found = _fitted(family, part, window, False, options)
        if found.dropped:  # a step that is not finite: not a window
            continue
        own = norms[at[window:]]
        share = np.divide(
            found.held_out[..., 0], found.held_out[..., 3], out=np.ones_like(own), where=found.held_out[..., 3] > 0.0
        )
        residual.append(share * own)
        norm.append(own)
    shape = (len(residual), len(chosen), len(run.blocks))
    left, whole = np.reshape(residual, shape), np.reshape(norm, shape)
    generator = np.random.default_rng(rng)
    blocks = tuple(
        _block(name, left[:, :, k], whole[:, :, k], chosen, fraction, generator) for k, name in enumerate(run.blocks)
    )
    return Lifetime(family, int(window), chosen, len(residual), fraction, blocks)


def _lags(lags: Sequence[int] | None, total: int, window: int) -> NDArray[np.int64]:
    most = total - window
    if lags is None:
        return 1 << np.arange(int(math.log2(max(most // 2, 1))) + 1, dtype=np.int64)
    chosen = np.asarray(lags, dtype=np.int64)
    if chosen.ndim != 1 or not chosen.size or chosen[0] < 1 or np.any(np.diff(chosen) <= 0) or chosen[-1] > most:
        raise ValueError(f"expected ascending lags from 1 to at most {most}, steps less window, got {lags!r}")
    return chosen


def _norms(run: Steps) -> Array:
    """|y|^2 of every step and block over powers of two that do not depend on the step."""
    found = list(run.pairs(False))
    powers = 2 * np.array([step.exponents[:, 0] for step in found])
    values = np.array([step.products[:, 0] for step in found])
    with np.errstate(under="ignore"):
        return np.asarray(np.ldexp(values, powers - powers.max(axis=0)))


def _part(run: Steps, at: Sequence[int]) -> Steps:
    read = run.at
    assert read is not None  # checked by the caller

    def pairs(vectors: bool) -> Any:
        return (read(position, vectors).numbered(k) for k, position in enumerate(at))

    def one(k: int, vectors: bool) -> PairStep:
        return read(at[k], vectors).numbered(k)

    return Steps(
        run.layout, len(at), run.has_vectors, run.gradient_source, pairs, True, run.scaled, one, lasting=run.lasting
    )


def _block(
    name: str, residual: Array, norm: Array, lags: NDArray[np.int64], fraction: float, rng: np.random.Generator
) -> BlockLifetime:
    count = len(lags)
    nothing = np.full(count, np.nan)
    if len(residual) < 4 or not (norm.sum(axis=0) > 0.0).all():
        said = f"{len(residual)} windows are too few to say how R2 falls"
        return BlockLifetime(name, nothing, nothing, nothing, math.nan, math.nan, math.nan, "too_few_windows", said)
    r2 = 1.0 - residual.sum(axis=0) / norm.sum(axis=0)
    influence = residual - (1.0 - r2) * norm
    slowest = int(np.argmax([block_length(influence[:, k]).steps for k in range(count)]))

    def curve(sums: Array) -> Array:
        total = sums[..., count:]
        left: Array = np.divide(sums[..., :count], total, out=np.ones_like(total), where=total > 0.0)
        return 1.0 - left

    columns = np.concatenate([residual, norm], axis=1)
    state = rng.bit_generator.state
    ends = []
    for k in range(count):
        rng.bit_generator.state = state  # the same windows for all lags and for the lifetime
        ends.append(resampled(columns, lambda sums, k=k: curve(sums)[..., k], influence[:, slowest], rng)[:2])  # type: ignore[misc]
    low, high = np.array(ends).T
    beyond = math.log(4.0 * float(lags[-1]))
    rng.bit_generator.state = state
    short, long, _ = resampled(
        columns, lambda sums: _crossing(curve(sums), lags, fraction, beyond), influence[:, slowest], rng
    )
    steps = float(_crossing(r2, lags, fraction, beyond))
    last = math.log(float(lags[-1]))
    value, shortest, longest = (math.exp(v) if v <= last else math.inf for v in (steps, short, long))
    shortest = max(shortest, float(lags[0])) if shortest < math.inf else float(lags[-1])
    status, said = _said(r2, low, value, shortest, longest, lags, fraction)
    if status == "none":
        value = shortest = longest = math.nan
    return BlockLifetime(name, r2, low, high, value, shortest, longest, status, said)


def _crossing(r2: Array, lags: NDArray[np.int64], fraction: float, beyond: float) -> Array:
    """Logarithm of the lag at which each curve first is at `fraction` of its first value; `beyond` if at none."""
    r2 = np.atleast_2d(r2)
    first = np.broadcast_to(r2[:, :1], r2.shape)
    share = np.divide(r2, first, out=np.zeros_like(r2), where=first > 0.0)
    below = share <= fraction
    k = np.where(below.any(axis=1), below.argmax(axis=1), 0)
    log = np.log(lags.astype(float))
    rows = np.arange(len(r2))
    before = np.maximum(k - 1, 0)
    a, b = share[rows, before], share[rows, k]
    part = np.divide(a - fraction, a - b, out=np.ones_like(a), where=a > b)
    found = np.where(k > 0, log[before] + np.clip(part, 0.0, 1.0) * (log[k] - log[before]), log[0])
    # One curve, or the curves of many resamples
    return np.squeeze(np.where(below.any(axis=1), found, beyond))


def _said(
    r2: Array, low: Array, value: float, shortest: float, longest: float, lags: NDArray[np.int64], fraction: float
) -> tuple[LifetimeStatus, str]:
    if not low[0] > 0.0:
        return "none", f"R2 at lag {lags[0]} is {r2[0]:.3f} and its interval includes 0: there is no geometry to lose"
    start = f"R2 falls from {r2[0]:.3f} at lag {lags[0]} to {fraction:.2g} of it"
    if math.isinf(value):
        return "longer than observed", (
            f"R2 is {r2[0]:.3f} at lag {lags[0]} and {r2[-1]:.3f} at lag {lags[-1]}, never below {fraction:.2g} of the "
            f"first: the geometry lives longer than observed, more than {shortest:.3g} steps"
        )
    end = f"{longest:.3g}" if longest < math.inf else f"more than {lags[-1]}"
    return "ok", f"{start} after {value:.3g} steps [{shortest:.3g}, {end}]"
