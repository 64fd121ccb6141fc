"""The numbers of a report: what each run and block comes to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from steepest.analysis import RunAnalysis

__all__ = ["Facts", "affordable", "facts", "median_or_nan"]

_MOST_DISTANCES = 400_000


@dataclass(frozen=True)
class Facts:
    """One run and block over all its steps; angles in degrees, shares between 0 and 1, NaN for what is not known.

    Attributes
    ----------
    block : str
        Its name.
    size, steps : int
        Number of parameters, and of steps.
    counts : dict
        Status -> steps, without zeros.
    with_angle, with_metric : int
        Steps that have an angle, and those whose status is ok.
    angle, angle_low, angle_high : float
        Median and quartiles of psi.
    null_low, null_high : float
        Medians of the band of 95% of random updates.
    floor : float
        Median of the rounding floor.
    within_rounding : float
        Share of the angles below the floor.
    cond, rho : float
        Medians of the least condition number and of |grad|/|update|.
    effective, windows : float, int
        Share of the windows over which the loss fell, and how many have known losses.
    bulk, plane : float
        Medians of the distance to the metric of the step before.
    decay_share, correction_share : float
        Medians of the share of decoupled weight decay in the update, and of the part of the gradient that stands in
        for the measured change of the loss.
    """

    block: str
    size: int
    steps: int
    counts: dict[str, int]
    with_angle: int
    with_metric: int
    angle: float
    angle_low: float
    angle_high: float
    null_low: float
    null_high: float
    floor: float
    within_rounding: float
    cond: float
    rho: float
    effective: float
    windows: int
    bulk: float
    plane: float
    decay_share: float
    correction_share: float


def facts(run: RunAnalysis) -> dict[str, Facts]:
    """Sum up one run, block by block.

    Parameters
    ----------
    run : RunAnalysis
        Of the run.

    Returns
    -------
    dict
        Block -> medians over the steps that have a value, the whole vector first. Distances are left out of runs with
        so many rows that they would take minutes.
    """
    status, moves = run["status"], affordable(run)
    return {block: _facts(run, block, status[:, column], moves) for column, block in enumerate(run.blocks)}


def affordable(run: RunAnalysis) -> bool:
    """Whether the distances between the metrics of successive steps take seconds, not minutes.

    Parameters
    ----------
    run : RunAnalysis
        Of the run.

    Returns
    -------
    bool
        They take some 25 microseconds for each step and block.
    """
    return len(run.step) * len(run.blocks) <= _MOST_DISTANCES


def _facts(run: RunAnalysis, block: str, status: NDArray[Any], moves: bool) -> Facts:
    column = run.blocks.index(block)

    def of(name: str) -> NDArray[Any]:
        values: NDArray[Any] = run[name][:, column]
        return values

    names, numbers = np.unique(status, return_counts=True)
    counted = {str(name): int(count) for name, count in zip(names, numbers, strict=True)}
    psi = np.degrees(_known(of("psi")))
    low, middle, high = np.percentile(psi, [25.0, 50.0, 75.0]).tolist() if len(psi) else (math.nan,) * 3
    half = math.degrees(median_or_nan(of("null_sign_flip")))
    if math.isnan(half):
        half = math.degrees(median_or_nan(of("null_isotropic")))
    effective = _known(run["effective"])
    return Facts(
        block=block,
        size=int(run.sizes[column]),
        steps=len(status),
        counts={name: counted[name] for name in sorted(counted, key=lambda name: (name != "ok", -counted[name]))},
        with_angle=len(psi),
        with_metric=int(np.sum(status == "ok")),
        angle=middle,
        angle_low=low,
        angle_high=high,
        null_low=max(90.0 - half, 0.0) if math.isfinite(half) else math.nan,
        null_high=min(90.0 + half, 180.0) if math.isfinite(half) else math.nan,
        floor=math.degrees(median_or_nan(of("psi_floor"))),
        within_rounding=float(np.mean(of("within_rounding")[np.isfinite(of("psi"))])) if len(psi) else math.nan,
        cond=median_or_nan(of("cond_min")),
        rho=median_or_nan(of("rho")),
        effective=float(np.mean(effective)) if len(effective) else math.nan,
        windows=len(effective),
        bulk=median_or_nan(of("distance_bulk")) if moves else math.nan,
        plane=median_or_nan(of("distance_plane")) if moves else math.nan,
        decay_share=median_or_nan(of("decay_share")),
        correction_share=median_or_nan(of("correction_share")),
    )


def median_or_nan(values: NDArray[Any]) -> float:
    """Median of the values that are known.

    Parameters
    ----------
    values : ndarray
        With NaN for what is not known; infinities count as large.

    Returns
    -------
    float
        NaN if none is.
    """
    known = _known(values)
    return float(np.median(known)) if len(known) else math.nan


def _known(values: NDArray[Any]) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64)
    return numbers[~np.isnan(numbers)]
