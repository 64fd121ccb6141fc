"""Which constant metric explains many steps, and predicts later ones: `identify`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np

from steepest.arrays import ArrayOrMapping
from steepest.identify.diagonal import fit_diagonal
from steepest.identify.fitted import Fitted
from steepest.identify.identification import BlockFit, Family, FitStatus, Identification
from steepest.identify.scalar import fit_scalar
from steepest.identify.scores import LEVEL, interval, r2
from steepest.identify.steps import Steps, steps_of

__all__ = ["identify"]

_FAMILIES: dict[Family, Callable[[Steps, int, bool], Fitted]] = {"scalar": fit_scalar, "diagonal": fit_diagonal}
_FEW_BLOCKS = 20


def identify(
    x: Any = None,
    family: Family = "diagonal",
    *,
    grad: ArrayOrMapping | None = None,
    update: ArrayOrMapping | None = None,
    holdout: float = 0.25,
    blocks: Sequence[str] | None = None,
    steps: int | None = None,
    rng: Any = None,
    progress: bool = False,
) -> Identification:
    """Fit ONE metric of a given structure to many steps, and score it on later steps that it has not seen.

    Some metric fits any single step with grad.update < 0, so a fit means nothing by itself; a constant metric that
    predicts later steps is evidence.

    Parameters
    ----------
    x : Recording, Recorder, path-like, or iterable of pairs (grad, update), optional
        The run. ``"diagonal"`` needs a recording with vectors (``keep="vectors"``, or made from whole arrays);
        ``"scalar"`` works with any. Pairs are read one at a time.
    family : {'scalar', 'diagonal'}
        ``M = m I`` or ``M = diag(d)``.
    grad, update : array or mapping name -> array, optional
        Instead of `x`: whole arrays, first axis the step.
    holdout : float
        Share of the steps, the last ones, that are held out, at least one; 0 holds out none, and then nothing is
        scored.
    blocks : sequence of str, optional
        Which blocks to report; by default ``"(all)"`` and every named array. The scalar family has one number for each
        block, and one for all.
    steps : int, optional
        Number of pairs, where `x` has no length.
    rng : int, numpy.random.Generator or None
        For the intervals (SPEC 7).
    progress : bool
        Show a progress bar on a terminal (needs tqdm).

    Returns
    -------
    Identification
        Scores of each block, held out and in sample, y from g and g from y, with intervals; notes; the metric.

    Raises
    ------
    ValueError
        No vectors for the diagonal family, no step with gradient and update, no such block, an option out of range.
    TypeError
        An unsupported type or dtype.

    Notes
    -----
    Section 11(b) (derived), with y = -grad, g = update, sums over the fitted steps:

    - scalar ``m = sum y.g / sum g.g``; diagonal ``d_i = sum_t y_ti g_ti / sum_t g_ti^2``; 0 instead of what is
      negative. Identifiable where sum_t g_ti^2 > 0. ``R2 = 1 - sum |y - M g|^2 / sum |y|^2`` over held-out steps.
    - Noise in the updates shrinks M (errors in variables), noise in the gradients shrinks the fit of g from y: both
      scores are given, and the symmetric estimate sqrt(sum y^2 / sum g^2).
    - Intervals: circular block bootstrap over held-out steps (steps are autocorrelated), conditional on the fit.

    Cost: one pass over the vectors; diagonal keeps three float64 vectors during the pass (24 bytes a parameter) and
    two afterwards, besides the vectors of the current step. All sums are in float64.

    Where the gradient is the one that the rule consumed, rules that rescale it element by element are diagonal by
    construction, and plain gradient descent is scalar: then the score says only that the scales stay constant.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest.identify import identify
    >>> grad = np.random.default_rng(0).normal(size=(40, 3))
    >>> found = identify(grad=grad, update=-0.1 * grad, family="scalar", rng=0)
    >>> round(found.elements(), 9), round(found["(all)"].r2, 9)
    (10.0, 1.0)
    """
    if family not in _FAMILIES:
        raise ValueError(f"expected family to be one of {', '.join(map(repr, get_args(Family)))}, got {family!r}")
    if not 0.0 <= holdout < 1.0:
        raise ValueError(f"expected holdout to be a share of the steps, 0 <= holdout < 1, got {holdout!r}")
    run = steps_of(x, grad, update, steps)
    wanted = run.blocks if blocks is None else tuple(blocks)
    unknown = [name for name in wanted if name not in run.blocks]
    if unknown or not wanted or isinstance(blocks, str):
        raise ValueError(f"expected blocks to be some of {list(run.blocks)[:8]}, got {blocks!r}")
    if run.total < 1:
        raise ValueError("expected steps with gradient and update, got none: there is nothing to identify")
    later = math.ceil(holdout * run.total)
    fitted = _FAMILIES[family](run, run.total - later, progress)
    generator = np.random.default_rng(rng)
    places = tuple(run.blocks.index(name) for name in wanted)
    fits = tuple(_block_fit(family, run, fitted, place, generator) for place in places)
    residual, norm = fitted.held_out[:, places, 0], fitted.held_out[:, places, 3]
    total = np.maximum(norm.sum(axis=0), np.finfo(float).tiny)
    return Identification(
        family=family,
        fits=fits,
        fitted_steps=fitted.fitted_steps,
        held_out=tuple(fitted.numbers),
        gradient_source=run.gradient_source,
        _estimate=fitted.estimate,
        _places=places,
        _residual=residual / total,
        _norm=norm / total,
    )


def _block_fit(family: Family, run: Steps, fitted: Fitted, place: int, rng: np.random.Generator) -> BlockFit:
    of_y, of_g, of_s, yy, gg = fitted.held_out[:, place].T
    sample = fitted.in_sample[place]
    low, high, length = interval(of_y, yy, rng)
    reverse_low, reverse_high, _ = interval(of_g, gg, rng)
    size, moved = run.sizes[place], fitted.moved[place]
    score, in_sample = r2(of_y, yy), r2(sample[0], sample[3])
    held_out = len(fitted.numbers)
    status: FitStatus = "ok"
    if held_out == 0 or fitted.fitted_steps < (2 if family == "diagonal" else 1):
        status = "too_few_steps"
    elif moved == 0:
        status = "not_identified"
    elif moved < size or fitted.clipped[place]:
        status = "not_positive_definite"
    notes = list(_notes(family, run, fitted, place))
    if held_out and not math.isnan(low):
        if low <= 0.0:
            notes.append("held-out steps are not predicted better than by M = 0: no evidence for this geometry")
        elif high < in_sample - 1e-6:
            notes.append(
                f"held-out steps are predicted worse ({score:.3f}) than the fitted ones ({in_sample:.3f}): the "
                "geometry changes over the run, or there are too few steps for so many elements"
            )
        if held_out < _FEW_BLOCKS * length:
            notes.append(
                f"the {100 * LEVEL:.0f}% interval rests on {math.ceil(held_out / length)} blocks of {length} steps; "
                f"below {_FEW_BLOCKS} it is too narrow as a rule"
            )
    elif held_out:
        notes.append(f"{held_out} held-out steps are too few for an interval")
    return BlockFit(
        block=run.blocks[place],
        size=size,
        parameters=fitted.parameters[place],
        status=status,
        r2=score,
        r2_low=low,
        r2_high=high,
        r2_in_sample=in_sample,
        r2_reverse=r2(of_g, gg),
        r2_reverse_low=reverse_low,
        r2_reverse_high=reverse_high,
        r2_reverse_in_sample=r2(sample[1], sample[4]),
        r2_symmetric=r2(of_s, yy),
        smallest=fitted.smallest[place],
        largest=fitted.largest[place],
        moved=moved / size,
        not_positive=fitted.clipped[place],
        notes=tuple(notes),
    )


def _notes(family: Family, run: Steps, fitted: Fitted, place: int) -> list[str]:
    notes = []
    size, moved, clipped = run.sizes[place], fitted.moved[place], fitted.clipped[place]
    if not fitted.numbers:
        notes.append("no step is held out, so nothing tests the fit: one step alone is always fitted where y.g > 0")
    if fitted.fitted_steps == 1 and family == "diagonal":
        notes.append("fitted to one step, which any such metric with the right signs fits exactly")
    if fitted.dropped:
        notes.append(f"{fitted.dropped} steps are left out, since they are not finite")
    if moved == 0:
        notes.append("no parameter moved in the fitted steps: the data say nothing about the metric")
    elif moved < size:
        notes.append(
            f"{size - moved} of {size} parameters never moved in the fitted steps: the data say nothing about their "
            "elements"
        )
    if clipped and family == "scalar":
        notes.append("the steps go uphill on the whole (sum y.g <= 0): no positive multiple of the identity fits them")
    elif clipped:
        notes.append(
            f"{clipped} of {size} parameters move uphill on the whole: no positive element fits them, and theirs is 0"
        )
    if run.scaled and family == "scalar":
        notes.append("in the units of the recording's scale: M is m/scale^2, element by element")
    elif run.scaled:
        notes.append("in the units of the parameters as they are, not in those of the recording's scale")
    if run.gradient_source == "rule":
        notes.append(
            "the gradient is the one that the rule consumed: a rule that rescales it element by element is diagonal by "
            "construction, and the score says how constant its scales are"
        )
    return notes
