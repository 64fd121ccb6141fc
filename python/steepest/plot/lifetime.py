"""How long a geometry predicts: held-out R2 against the lag after the steps that it was fitted to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from steepest.plot.series import literal, shortened
from steepest.plot.style import GREY, STYLE, import_matplotlib, line_style, new_axes, put_legend, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from steepest.identify.lifetime import Lifetime

__all__ = ["LifetimeCurve", "lifetime", "lifetime_data"]


@dataclass(frozen=True)
class LifetimeCurve:
    """One curve of :func:`lifetime`.

    Attributes
    ----------
    label : str
        Name of the run; the family where there is one only.
    lag, r2, low, high : ndarray, shape (k,), float64
        The curve and its 95% interval.
    fraction : float
        Of the first R2, at which the lifetime ends.
    steps, steps_low, steps_high : float
        The lifetime and its interval; NaN or infinite where there is none.
    status : str
        See `steepest.identify.lifetime.BlockLifetime`.
    """

    label: str
    lag: NDArray[np.float64]
    r2: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    fraction: float
    steps: float
    steps_low: float
    steps_high: float
    status: str

    def to_dict(self) -> dict[str, Any]:
        """Fields as a dictionary, arrays as they are."""
        return asdict(self)


def lifetime_data(source: Lifetime | Mapping[str, Lifetime], *, block: str | None = None) -> tuple[LifetimeCurve, ...]:
    """What :func:`lifetime` draws.

    Parameters
    ----------
    source : Lifetime, or mapping name -> Lifetime
        What `steepest.identify.lifetime` returned.
    block : str, optional
        Which; the first by default, ``"(all)"``.

    Returns
    -------
    tuple of LifetimeCurve
        In the order of the mapping.

    Raises
    ------
    ValueError
        No such block.
    """
    named = source if isinstance(source, Mapping) else {source.family: source}
    curves = []
    for name, found in named.items():
        one = found.blocks[0] if block is None else found[block]
        curves.append(
            LifetimeCurve(
                label=name,
                lag=found.lags.astype(np.float64),
                r2=one.r2,
                low=one.r2_low,
                high=one.r2_high,
                fraction=found.fraction,
                steps=one.steps,
                steps_low=one.low,
                steps_high=one.high,
                status=one.status,
            )
        )
    return tuple(curves)


def lifetime(source: Lifetime | Mapping[str, Lifetime], ax: Axes | None = None, *, block: str | None = None) -> Axes:
    """Draw held-out R2 against lag with its interval; a bar at the height at which a lifetime ends spans its interval.

    What lies below -0.2, where M = 0 predicts better, is not drawn.

    Parameters
    ----------
    source : Lifetime, or mapping name -> Lifetime
        What `steepest.identify.lifetime` returned; of several runs or families each is a curve.
    ax : Axes, optional
        Where; a new pyplot figure by default.
    block : str, optional
        Which; the first by default, ``"(all)"``.

    Returns
    -------
    Axes
        `ax`.

    Raises
    ------
    ImportError
        matplotlib is not installed: ``pip install "steepest[plot]"``.
    ValueError
        As :func:`lifetime_data`.
    """
    matplotlib = import_matplotlib()
    curves = lifetime_data(source, block=block)
    with matplotlib.rc_context(STYLE):
        if ax is None:
            ax = new_axes(1, 3.6, 2.6)[0]
        last = max(float(curve.lag[-1]) for curve in curves)
        for position, curve in enumerate(curves):
            style = line_style(position)
            ax.fill_between(
                curve.lag, np.maximum(curve.low, -0.2), np.maximum(curve.high, -0.2), color=style["color"], alpha=0.18,
                linewidth=0,
            )  # fmt: skip
            ax.plot(
                curve.lag,
                np.where(curve.r2 < -0.2, np.nan, curve.r2),
                marker=".",
                markersize=4,
                label=_label(curve),
                **style,
            )
            if curve.status == "ok":
                height = curve.fraction * float(curve.r2[0])
                end = min(curve.steps_high, last)
                ax.plot([curve.steps_low, end], [height, height], color=style["color"], linewidth=3.0, alpha=0.55)
                ax.plot([curve.steps], [height], marker="|", markersize=9, color=style["color"], markeredgewidth=1.4)
        ax.axhline(0.0, color=GREY, linewidth=0.6)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
        ax.set_ylim(-0.2, 1.03)
        ax.set_xlabel("steps after the window")
        ax.set_ylabel("R2")
        tidy(ax)
        put_legend(ax, below=True)
    return ax


def _label(curve: LifetimeCurve) -> str:
    name = literal(shortened(curve.label))
    if curve.status == "ok":
        end = f"{curve.steps_high:.3g}" if math.isfinite(curve.steps_high) else "..."
        return f"{name}: {curve.steps:.3g} steps ({curve.steps_low:.3g} to {end})"
    if curve.status == "longer than observed":
        return f"{name}: longer than {curve.steps_low:.3g} steps"
    return f"{name}: {'no geometry' if curve.status == 'none' else 'too few windows'}"
