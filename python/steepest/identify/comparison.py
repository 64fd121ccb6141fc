"""Families side by side: the simplest one that no larger one beats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from steepest.identify.identification import Identification
from steepest.identify.scores import interval

__all__ = ["compare"]


def compare(
    identifications: Sequence[Identification], *, margin: float = 1e-3, rng: Any = None
) -> list[dict[str, Any]]:
    """Rows block by block, in each the families from simple to rich, and which one the data call for.

    Parameters
    ----------
    identifications : sequence of Identification
        Of ONE run with the same held-out steps and blocks, each of another family.
    margin : float
        A gain in R2 below this one does not count.
    rng : int, numpy.random.Generator or None
        For the intervals.

    Returns
    -------
    list of dict
        block, family, parameters, status; predicts: the gradient, or the update where replicates say that it has more
        noise (see `Ceiling`); score, score_low, score_high: held-out R2 of that; r2, r2_low, r2_high, r2_in_sample,
        r2_reverse, r2_symmetric; ceiling, ceiling_low, ceiling_high, relative, relative_low, relative_high;
        `gain_low`, `gain_high`: 95%
        interval of how much the best richer family adds, resampling the same steps of both (NaN for the richest);
        `chosen`: whether this is the simplest family that no richer one beats by more than the margin, if its interval
        is above 0; verdict.

    Raises
    ------
    ValueError
        Other steps or blocks, or a family twice.
    """
    if not identifications:
        raise ValueError("expected at least one Identification, got none")
    first = identifications[0]
    for other in identifications[1:]:
        if other.held_out != first.held_out or other.blocks != first.blocks:
            raise ValueError(
                f"expected identifications of the same held-out steps and blocks, got {first!r} and {other!r}"
            )
    if len({one.family for one in identifications}) < len(identifications):
        raise ValueError(f"expected each family once, got {[one.family for one in identifications]}")
    generator = np.random.default_rng(rng)
    table = []
    for k, block in enumerate(first.blocks):
        predicts = first.fits[k].ceiling.predicts
        ordered = sorted(identifications, key=lambda one: one.fits[k].parameters)
        chosen = False
        for i, one in enumerate(ordered):
            fit = one.fits[k]
            gains = []
            for richer in ordered[i + 1 :]:
                # 1 - R2 of the difference of residuals is the difference of the scores.
                (residual, norm), (other_residual, _) = (x._residuals[predicts] for x in (one, richer))
                a, b, _ = interval(residual[:, k] - other_residual[:, k], norm[:, k], generator)
                if not math.isnan(a):  # else the richer family has no fit, or there are too few steps
                    gains.append((1.0 - b, 1.0 - a))
            low, high = max(gains, default=(math.nan, math.nan))
            chosen_here = not chosen and fit.score[1] > 0.0 and not low > margin
            chosen = chosen or chosen_here
            table.append(
                {
                    "block": block,
                    "family": one.family,
                    "parameters": fit.parameters,
                    "status": fit.status,
                    "predicts": predicts,
                    **dict(zip(("score", "score_low", "score_high"), fit.score, strict=True)),
                    "r2": fit.r2,
                    "r2_low": fit.r2_low,
                    "r2_high": fit.r2_high,
                    "r2_in_sample": fit.r2_in_sample,
                    "r2_reverse": fit.r2_reverse,
                    "r2_symmetric": fit.r2_symmetric,
                    "ceiling": fit.ceiling.value,
                    "ceiling_low": fit.ceiling.low,
                    "ceiling_high": fit.ceiling.high,
                    "relative": fit.ceiling.relative,
                    "relative_low": fit.ceiling.relative_low,
                    "relative_high": fit.ceiling.relative_high,
                    "gain_low": low,
                    "gain_high": high,
                    "chosen": chosen_here,
                    "verdict": fit.verdict,
                }
            )
    return table
