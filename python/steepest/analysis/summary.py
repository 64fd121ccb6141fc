"""One row of plain numbers for each run and block."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from steepest.analysis.columns import PAIR_STATUS_CODE, PAIR_STATUSES

if TYPE_CHECKING:
    from steepest.analysis.run import RunAnalysis

__all__ = ["counts_of", "summary_of"]

_MEDIANS = (
    "psi", "psi_floor", "null_sign_flip", "grad_norm", "update_norm", "rho", "cond_min", "log_cond", "alpha", "lam_min",
    "lam_max", "curvature", "step_bound", "correction_share", "decay_share", "distance",
)  # fmt: skip


def counts_of(run: RunAnalysis, place: int) -> dict[str, int]:
    """How many steps of a block have which status.

    Parameters
    ----------
    run : RunAnalysis
        Of one run.
    place : int
        Of the block.

    Returns
    -------
    dict
        Every status -> count, with zeros.
    """
    number = np.bincount(run["status_code"][:, place], minlength=len(PAIR_STATUSES))
    return {status: int(k) for status, k in zip(PAIR_STATUSES, number, strict=True)}


def summary_of(run: RunAnalysis) -> list[dict[str, Any]]:
    """One row for each block; see `Analysis.summary`.

    Parameters
    ----------
    run : RunAnalysis
        Of one run.

    Returns
    -------
    list of dict
        In the order of the blocks.
    """
    loss, effective = run["loss"], run["effective"]
    known = loss[~np.isnan(loss)]
    per_run: dict[str, Any] = {
        "gradient_source": run.gradient_source,
        "pair": run.pair,
        "loss_first": float(known[0]) if len(known) else math.nan,
        "loss_last": float(known[-1]) if len(known) else math.nan,
        "window": run.window,
        "effective_share": _mean(effective[~np.isnan(effective)]),
    }
    rows = []
    for place, (block, size) in enumerate(zip(run.blocks, run.sizes, strict=True)):
        ok = run["status_code"][:, place] == PAIR_STATUS_CODE["ok"]
        psi = run["psi"][:, place]
        angles = psi[~np.isnan(psi)]
        half = _half_widths(run, place)
        compared = ~np.isnan(psi) & ~np.isnan(half)
        path = run["path_length"][-1:, place]
        rows.append(
            {"run": run.name, "candidate": run.candidate, "block": block, "size": size, "steps": len(run)}
            | counts_of(run, place)
            | {f"{name}_median": _median(run[name][ok, place]) for name in _MEDIANS}
            | {
                "psi_low": float(np.quantile(angles, 0.25)) if len(angles) else math.nan,
                "psi_high": float(np.quantile(angles, 0.75)) if len(angles) else math.nan,
                "psi_first": float(angles[0]) if len(angles) else math.nan,
                "psi_last": float(angles[-1]) if len(angles) else math.nan,
                "null_isotropic": float(run["null_isotropic"][0, place]) if len(run) else math.nan,
                "within_rounding": int(run["within_rounding"][:, place].sum()),
                "below_chance_share": _mean(psi[compared] < 0.5 * np.pi - half[compared]),
                "path_length": float(path[0]) if len(path) else math.nan,
            }
            | per_run
        )
    return rows


def _half_widths(run: RunAnalysis, place: int) -> NDArray[np.float64]:
    """Of the wider one of the two bands of chance."""
    found: NDArray[np.float64] = np.fmax(run["null_sign_flip"][:, place], run["null_isotropic"][:, place])
    return found


def _median(values: NDArray[Any]) -> float:
    values = values[~np.isnan(values)]
    return float(np.median(values)) if len(values) else math.nan


def _mean(values: NDArray[Any]) -> float:
    return float(np.mean(values)) if len(values) else math.nan
