"""The columns of an analysis: names, units, what they mean."""

from __future__ import annotations

from typing import Literal, NamedTuple

from steepest.row_format import STATUSES

__all__ = ["COLUMNS", "PAIRS", "PAIR_STATUSES", "PAIR_STATUS_CODE", "Column", "Pair"]

Pair = Literal["continuous", "trapezoid", "left", "displacement"]
PAIRS: tuple[Pair, ...] = ("continuous", "trapezoid", "left", "displacement")

# Of the pair of a step; a pair of a finite step needs the loss after it.
PAIR_STATUSES: tuple[str, ...] = (*STATUSES, *(status for status in ("no_loss",) if status not in STATUSES))
PAIR_STATUS_CODE = {status: code for code, status in enumerate(PAIR_STATUSES)}


class Column(NamedTuple):
    """One column of `RunAnalysis`.

    Attributes
    ----------
    per_block : bool
        Whether there is a value for each block; else for each step.
    group : str
        What is computed together.
    unit : str
        Of the values; empty for pure numbers.
    meaning : str
        In a few words.
    """

    per_block: bool
    group: str
    unit: str
    meaning: str


COLUMNS: dict[str, Column] = {
    "loss": Column(False, "losses", "loss", "loss at the beginning of the step"),
    "time": Column(False, "losses", "time", "time of the step"),
    "resumed": Column(False, "losses", "", "whether the step is the first after a resume"),
    "dloss": Column(False, "losses", "loss", "loss of the next step less the loss of this one"),
    "effective": Column(False, "losses", "", "1 if the loss is lower after the window, 0 if not"),
    "status": Column(True, "pair", "", "whether the pair has a metric, and why not"),
    "psi": Column(True, "angle", "rad", "angle between -grad and update"),
    "cos": Column(True, "pair", "", "cosine of psi"),
    "sin": Column(True, "pair", "", "sine of psi"),
    "psi_floor": Column(True, "pair", "rad", "angle that rounding produces by itself"),
    "within_rounding": Column(True, "angle", "", "whether psi is below psi_floor"),
    "null_isotropic": Column(True, "isotropic", "rad", "half width about 90 deg of the 95% band, random directions"),
    "null_sign_flip": Column(True, "pair", "rad", "half width about 90 deg of the 95% band, random signs"),
    "grad_norm": Column(True, "pair", "loss/param", "norm of the gradient of the pair"),
    "update_norm": Column(True, "pair", "param", "norm of the update of the pair"),
    "rho": Column(True, "pair", "loss/param^2", "grad_norm / update_norm"),
    "cond_min": Column(True, "spectrum", "", "least condition number of a metric"),
    "log_cond": Column(True, "spectrum", "", "natural logarithm of cond_min"),
    "alpha": Column(True, "spectrum", "loss/param^2", "bulk eigenvalue of the condition-optimal metric"),
    "lam_min": Column(True, "spectrum", "loss/param^2", "least eigenvalue of the condition-optimal metric"),
    "lam_max": Column(True, "spectrum", "loss/param^2", "largest eigenvalue of the condition-optimal metric"),
    "curvature": Column(True, "curvature", "loss/param^2", "second derivative of the loss along the update"),
    "step_bound": Column(True, "curvature", "", "factor by which the step could grow"),
    "correction_share": Column(True, "pair", "", "share of the pair's gradient that is not an averaged gradient"),
    "distance": Column(True, "distance", "", "affine-invariant distance to the metric of the step before"),
    "distance_bulk": Column(True, "distance", "", "part of the distance outside of the span of the four vectors"),
    "distance_plane": Column(True, "distance", "", "part of the distance in the span of the four vectors"),
    "path_length": Column(True, "path", "", "sum of the distances up to the step"),
    "decay_share": Column(True, "pair", "", "share of decoupled weight decay in the update"),
}
