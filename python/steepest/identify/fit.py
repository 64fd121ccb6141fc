"""Which constant metric explains many steps, and predicts later ones: `identify`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import ArrayOrMapping
from steepest.identify.ceiling import Ceiling, ceiling_of, replicate_products
from steepest.identify.diagonal import fit_diagonal
from steepest.identify.diagonal_low_rank import fit_diagonal_low_rank
from steepest.identify.displacements import over_windows
from steepest.identify.fitted import FitStatus, Fitted
from steepest.identify.identification import BlockFit, Family, Identification
from steepest.identify.kronecker import fit_kronecker
from steepest.identify.kronecker_side import fit_kronecker_input, fit_kronecker_output
from steepest.identify.matrices import fit_block_diagonal, fit_full
from steepest.identify.multi_secant import fit_multi_secant
from steepest.identify.scalar import fit_scalar
from steepest.identify.scores import LEVEL, beyond_chance, interval, r2
from steepest.identify.steps import Steps, steps_of

__all__ = ["identify"]

# From simple to rich. Each takes (steps, split, progress) and its own options by keyword.
_FAMILIES: dict[Family, Callable[..., Fitted]] = {
    "scalar": fit_scalar,
    "diagonal": fit_diagonal,
    "kronecker-output": fit_kronecker_output,
    "kronecker-input": fit_kronecker_input,
    "kronecker": fit_kronecker,
    "diagonal+low-rank": fit_diagonal_low_rank,
    "block-diagonal": fit_block_diagonal,
    "full": fit_full,
    "multi-secant": fit_multi_secant,
}
_FEW_BLOCKS = 20  # held-out stretches longer than the correlation, for an interval that covers
_CHANGE = 0.02  # of R2, beyond the interval: a smaller loss is not called a change of the geometry


def identify(
    x: Any = None,
    family: Family = "diagonal",
    *,
    grad: ArrayOrMapping | None = None,
    update: ArrayOrMapping | None = None,
    holdout: float = 0.25,
    blocks: Sequence[str] | None = None,
    steps: int | None = None,
    window: int = 1,
    replicate: Any = None,
    rng: Any = None,
    progress: bool = False,
    **options: Any,
) -> Identification:
    """Fit ONE metric of a given structure to many steps, and score it on later steps that it has not seen.

    Some metric fits any single step with grad.update < 0, so a fit means nothing by itself; a constant metric that
    predicts later steps is evidence.

    Parameters
    ----------
    x : Recording, Recorder, path-like, or iterable of pairs (grad, update), optional
        The run. All families but ``"scalar"`` need a recording with vectors (``keep="vectors"``, or made from whole
        arrays). Pairs are read one at a time.
    family : str
        Structure of M, from simple to rich; W is an array of shape (m, ...) seen as a matrix m x r:

        ==================== ================================= ======================== ================================
        family               M                                 options                  unique if
        ==================== ================================= ======================== ================================
        scalar               m I                                                        anything moved
        diagonal             diag(d)                                                    every parameter moved
        kronecker-output     A W                                                        sum G G^T has full rank m
        kronecker-input      W B                                                        sum G^T G has full rank r
        kronecker            A W B                             tolerance,               about
                                                               max_iterations           (m^2+m+r^2+r-2)/(2mr) steps
        diagonal+low-rank    diag(d) + U U^T                   rank                     (n-k)^2 >= n+k, T > k steps
        block-diagonal       one matrix for each part          partition: 'arrays',     T >= size of a part
                                                               'units' or a number
        full                 any, n <= 4096                                             T >= n
        multi-secant         block BFGS update of c I, exact   tolerance, bulk          never below n steps; exists iff
                                                                                        G^T Y is symmetric, definite
        ==================== ================================= ======================== ================================
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
    window : int
        Fit displacements over so many steps instead of single ones: the sum of the updates against the mean of the
        gradients, one window after the other. A rule with memory, such as momentum, is not of a family step by step
        but over windows longer than its memory (`steepest.identify.displacements.over_windows` says why).
    replicate : array, mapping, Recording, path-like or iterable of vectors, optional
        For the noise ceiling: gradients at the same parameters from data independent of `grad`, such as another
        mini-batch, or the one that the rule consumed where `grad` is the gradient of all data. First axis the step.
    rng : int, numpy.random.Generator or None
        For the intervals (SPEC 7).
    progress : bool
        Show a progress bar on a terminal (needs tqdm).
    **options
        Of the family, as in the table; see the modules of `steepest.identify`.

    Returns
    -------
    Identification
        Scores of each block, held out and in sample, y from g and g from y, with intervals; notes; the metric.

    Raises
    ------
    ValueError
        No vectors for a family that needs them, no step with gradient and update, no such block, an option out of
        range, a matrix that is too large for its family.
    TypeError
        An unsupported type or dtype, or an option that the family does not have.

    Notes
    -----
    Section 11(b) (derived), with y = -grad, g = update, sums over the fitted steps:

    - scalar ``m = sum y.g / sum g.g``; diagonal ``d_i = sum_t y_ti g_ti / sum_t g_ti^2``; 0 instead of what is
      negative. Identifiable where sum_t g_ti^2 > 0. ``R2 = 1 - sum |y - M g|^2 / sum |y|^2`` over held-out steps.
    - Kronecker, block-diagonal and full: SPD Procrustes problems (Gillis and Sharma 2018, `spd_procrustes`), the
      two-sided one by alternation. diagonal+low-rank: least squares. multi-secant: section 11(a).
    - Noise in the updates shrinks M (errors in variables), noise in the gradients shrinks the fit of g from y: both
      scores are given, and the symmetric estimate, sqrt(sum y^2 / sum g^2) or the geometric mean of matrices
      (sum g g^T)^-1 # (sum y y^T).
    - Intervals: circular block bootstrap over held-out steps (steps are autocorrelated), conditional on the fit.

    Cost: one pass over the vectors; diagonal keeps three float64 vectors during the pass (24 bytes a parameter) and
    two afterwards, besides the vectors of the current step; the one-sided Kronecker families O(m^2) or O(r^2) numbers.
    `kronecker` and `diagonal+low-rank` read the fitted steps several times, `multi-secant` keeps them. All sums are in
    float64.

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
    run = over_windows(steps_of(x, grad, update, steps), window)
    wanted = run.blocks if blocks is None else tuple(blocks)
    unknown = [name for name in wanted if name not in run.blocks]
    if unknown or not wanted or isinstance(blocks, str):
        raise ValueError(f"expected blocks to be some of {list(run.blocks)[:8]}, got {blocks!r}")
    if run.total < 1:
        raise ValueError("expected steps with gradient and update, got none: there is nothing to identify")
    later = math.ceil(holdout * run.total)
    fitted = _fitted(family, run, run.total - later, progress, options)
    replicates = None if replicate is None else replicate_products(run, replicate, fitted.numbers, window)
    generator = np.random.default_rng(rng)
    places = tuple(run.blocks.index(name) for name in wanted)
    fits = tuple(_block_fit(run, fitted, place, replicates, generator) for place in places)

    def shares(residual: int, norm: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        of_all = np.maximum(fitted.held_out[:, places, norm].sum(axis=0), np.finfo(float).tiny)
        return fitted.held_out[:, places, residual] / of_all, fitted.held_out[:, places, norm] / of_all

    return Identification(
        family=family,
        fits=fits,
        fitted_steps=fitted.fitted_steps,
        held_out=tuple(fitted.numbers),
        gradient_source=run.gradient_source,
        _estimate=fitted.estimate,
        _places=places,
        _residuals={"gradient": shares(0, 3), "update": shares(1, 4)},
    )


def _fitted(family: Family, run: Steps, split: int, progress: bool, options: dict[str, Any]) -> Fitted:
    function = _FAMILIES[family]
    known = [name for name in signature(function).parameters if name not in ("steps", "split", "progress")]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(f"expected options of family={family!r} out of {known}, got {unknown}")
    return function(run, split, progress, **options)


def _block_fit(run: Steps, fitted: Fitted, place: int, replicates: Any, rng: np.random.Generator) -> BlockFit:
    of_y, of_g, of_s, yy, gg = fitted.held_out[:, place].T
    sample, facts, size = fitted.in_sample[place], fitted.facts[place], run.sizes[place]
    low, high, length = interval(of_y, yy, rng)
    reverse_low, reverse_high, _ = interval(of_g, gg, rng)
    score, reverse, in_sample = r2(of_y, yy), r2(of_g, gg), r2(sample[0], sample[3])
    ceiling = (
        Ceiling()
        if replicates is None
        else ceiling_of(replicates[:, place], {"gradient": (of_y, yy), "update": (of_g, gg)}, rng)
    )
    held_out = len(fitted.numbers)
    status: FitStatus = facts.status if held_out else "too_few_steps"
    # Steps that depend on each other are fewer than they look: as many as there are blocks of correlated ones.
    expected = _expected(in_sample, facts.parameters, fitted.fitted_steps * size / length)
    # The fitted steps have a sampling error, too.
    spread = max(high - score, beyond_chance(of_y, yy)) * math.sqrt(1.0 + held_out / max(fitted.fitted_steps, 1))
    if status == "ok" and score + spread < expected - _CHANGE:
        status = "not_constant"
    notes = list(facts.notes)
    if not held_out:
        notes.append("no step is held out, so nothing tests the fit: one step alone is always fitted where y.g > 0")
    if fitted.dropped:
        notes.append(f"{fitted.dropped} steps are left out, since they are not finite or not complete")
    if run.scaled and facts.parameters > 1:
        notes.append("in the units of the parameters as they are, not in those of the recording's scale")
    if run.gradient_source == "rule":
        notes.append(
            "the gradient is the one that the rule consumed: a rule that only rescales it is of this family by "
            "construction, and the score says how constant its scales are"
        )
    if status == "not_constant":
        notes.append(
            f"the fitted steps would let one expect R2 = {expected:.3f} for later ones, the number of parameters "
            f"allowed for, and it is {score:.3f}: the geometry is not constant over the run"
        )
    elif high < in_sample - _CHANGE:
        notes.append(
            f"held-out steps are predicted worse ({score:.3f}) than the fitted ones ({in_sample:.3f}): the "
            "geometry changes over the run, or there are too few steps for so many elements"
        )
    if held_out and math.isnan(low):
        notes.append(f"{held_out} held-out steps are too few for an interval")
    elif held_out and held_out < _FEW_BLOCKS * length:
        notes.append(
            f"the {100 * LEVEL:.0f}% interval rests on {math.ceil(held_out / length)} blocks of {length} steps; "
            f"below {_FEW_BLOCKS} it is too narrow as a rule"
        )
    return BlockFit(
        block=run.blocks[place],
        size=size,
        parameters=facts.parameters,
        status=status,
        r2=score,
        r2_low=low,
        r2_high=high,
        r2_in_sample=in_sample,
        r2_reverse=reverse,
        r2_reverse_low=reverse_low,
        r2_reverse_high=reverse_high,
        r2_reverse_in_sample=r2(sample[1], sample[4]),
        r2_symmetric=r2(of_s, yy),
        smallest=facts.smallest,
        largest=facts.largest,
        determined=facts.determined / facts.dimension,
        not_positive=facts.not_positive,
        ceiling=ceiling,
        verdict=_verdict((reverse, reverse_low) if ceiling.predicts == "update" else (score, low), ceiling, held_out),
        notes=tuple(notes),
    )


def _expected(in_sample: float, parameters: int, numbers: float) -> float:
    """R2 of later steps that the fitted ones promise: final prediction error of Akaike (1970)."""
    if parameters >= numbers:
        return -math.inf
    return 1.0 - (1.0 - in_sample) * (numbers + parameters) / (numbers - parameters)


def _verdict(score_and_low: tuple[float, float], ceiling: Ceiling, held_out: int) -> str:
    (score, low), predicted = score_and_low, ceiling.predicts
    if ceiling.low <= 0.0:
        return (
            f"no verdict: the noise ceiling is {ceiling.value:.3f} [{ceiling.low:.3f}, {ceiling.high:.3f}], so the "
            "gradients are too noisy for any metric to show"
        )
    if math.isnan(score) and held_out:
        return f"no verdict: this family has no fit of the {predicted}, which has more noise than what it follows from"
    if math.isnan(low):
        return "no verdict: too few held-out steps"
    if low <= 0.0:
        return "held-out steps are not predicted better than by M = 0: no evidence for this geometry"
    explained = f"explains {score:.3f} of later {predicted}s"
    if ceiling.low > 0.0:
        return (
            f"{explained}, {ceiling.relative:.3f} [{ceiling.relative_low:.3f}, {ceiling.relative_high:.3f}] of what "
            "their noise allows"
        )
    return explained
