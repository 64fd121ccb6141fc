"""The pair of a gradient that was estimated from losses, with what its error leaves of the angle."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from steepest.alignment import matched_pair
from steepest.arrays import EPSILON
from steepest.gradient_estimate import GradientEstimate, GradientSamples
from steepest.pairs.continuous import continuous
from steepest.pairs.cosine_interval import extreme, jackknife_cosine, margin, noisy, ratio, unreliable_because
from steepest.pairs.descent_pair import DescentPair, coarsest, rational_gram
from steepest.pairs.sample_sums import Estimate, Statistic, Sums, noise_of_mean, u_statistic
from steepest.pairs.uncertain_pair import UncertainPair

__all__ = ["EstimatedPair", "estimated"]

Array = NDArray[np.float64]
# Fewer degrees of freedom than this leave the noise of a regression itself too uncertain.
MIN_DEGREES = 5.0


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class EstimatedPair(UncertainPair):
    """An estimated gradient and a known update; made by `estimated`.

    Attributes
    ----------
    status : str
        ``ok``; ``undefined``: the estimate of |grad|^2 is not positive, or the update is zero; ``nonfinite``: NaN, Inf,
        or an estimate without a variance.
    size : int
        Number of parameters n.
    grad_update, grad_grad : Estimate
        grad.update and |grad|^2, the latter freed from the bias of noise.
    grad_noise : float
        Trace of the covariance of the estimate.
    cosine : Estimate
        Of the angle between -grad and update, debiased: may exceed 1. With a loss change, of -DG, as `pair`.
    interval : tuple of two floats
        95% interval of the cosine by Student's t, not clipped to [-1, 1].
    reliable : bool
        Whether the interval can be trusted; see `reasons`.
    reasons : tuple of str
        Why it cannot.
    z, p_value : float
        ``-grad_update`` in units of its standard error, and the one-sided p-value of grad.update < 0.
    pair : DescentPair
        `steepest.pairs.continuous` of the estimate and the update as they are, or the discrete one, method 'left'.
    method : str
        Of the estimate.
    degrees_of_freedom : float
        Of the standard errors.
    """

    method: str
    degrees_of_freedom: float

    def _source(self) -> str:
        return f"{self.method!r}"


class _Found(NamedTuple):
    """What all methods give."""

    squared: Estimate
    product: Estimate
    noise: float
    cosine: Estimate
    reasons: tuple[str, ...]


def estimated(estimate: GradientEstimate, update: Any, *, loss_change: float | None = None) -> EstimatedPair:
    """Pair of an estimated gradient, with the uncertainty of the angle that its covariance leaves.

    Parameters
    ----------
    estimate : GradientEstimate
        As of `steepest.estimate_gradient`, for the point and the structure of the update.
    update : array or mapping name -> array
        params_next - params, without noise.
    loss_change : float, optional
        dL of the step, without noise: then the pair is the discrete one of a finite step, method 'left' of
        `steepest.pairs.discrete`, with the gradient along the update known as dL/|update|.

    Returns
    -------
    EstimatedPair
        Debiased cosine with standard error, interval and flag, and the pair.

    Raises
    ------
    ValueError
        Shapes or names differ; a loss change that is not finite.
    TypeError
        No estimate; an unsupported dtype or type.

    See Also
    --------
    steepest.pairs.stochastic : For samples of gradient and update.

    Notes
    -----
    Derived. With y = -grad, c = cos psi and unit vectors yh, gh, the error of y changes the cosine by
    ``(gh - c yh).dy/|y|`` (delta method), so its variance is that of the estimate along one direction, for which the
    diagonal of the covariance is not enough where elements are correlated. It is debiased by ``|y|^2 - tr Cov``.

    'spsa', 'node-perturbation': from all their samples, which are made again from the seed: U statistics and a
    jackknife, as for `steepest.pairs.stochastic`; O(K n) time for K directions. Reliable where
    |grad|^2 >= 2 tr Cov, for 'spsa' from about K = 2 n on, with K >= 50 and an angle of 30 to 85 degrees.
    'trajectory-regression': from its whole covariance; Student's t with T - n degrees of freedom. Reliable where
    |grad|^2 >= 2 tr Cov, 30 to 85 degrees, T - n >= 5; as far as the noise of the losses is independent and of one
    size. 'central': its variance is the square of an error that is no noise and may have one sign everywhere, so the
    errors of the elements are added up, not their squares: a bound rather than a standard error, at any angle. An
    estimate made by hand with gradient and variance alone: independent elements, normal distribution.

    With `loss_change` only the part of the gradient across the update is uncertain, and the same holds for |DG|^2.

    What the methods leave out is no part of the interval: the bias of finite perturbations, of order step^2, and the
    change of the gradient along a trajectory.

    Examples
    --------
    >>> import numpy as np
    >>> import steepest
    >>> from steepest.pairs.estimated import estimated
    >>> found = steepest.estimate_gradient(lambda x: float(x @ x), np.array([1.0, 2.0]), "spsa", rng=0)
    >>> pair = estimated(found, np.array([-1.0, 0.0]))
    >>> low, high = pair.interval
    >>> bool(low < 1 / np.sqrt(5) < high), pair.flag
    (True, 'reliable')
    """
    if not isinstance(estimate, GradientEstimate):
        raise TypeError(
            f"expected an estimate made by steepest.estimate_gradient, got {type(estimate).__name__}; for a gradient "
            "that is known use steepest.pairs.continuous"
        )
    grad, g = matched_pair(estimate.gradient, update)
    variance = matched_pair(estimate.variance, update)[0].flat()
    if loss_change is not None and not math.isfinite(loss_change):
        raise ValueError(f"expected a finite loss_change, got {loss_change!r}")
    eps = EPSILON[coarsest(grad, g)]
    # Values that overflow come out as not finite.
    with np.errstate(over="ignore", invalid="ignore"):
        if estimate.samples is not None:
            found = _from_samples(estimate.samples, g.flat(), loss_change, eps)
        else:
            found = _from_covariance(estimate, grad.flat(), variance, g.flat(), loss_change)
    pair = continuous(estimate.gradient, update)
    nan = math.nan
    finite = all(map(math.isfinite, (found.squared.value, found.product.value, found.noise)))
    defined = finite and math.isfinite(found.cosine.value)
    degrees = float(estimate.degrees_of_freedom)
    half = margin(found.cosine.standard_error, degrees) if defined else nan
    z = ratio(-found.product.value, found.product.standard_error)
    middle = found.cosine.value
    return EstimatedPair(
        status="ok" if defined else "undefined" if finite else "nonfinite",
        size=g.size,
        grad_update=found.product,
        grad_grad=found.squared,
        grad_noise=found.noise,
        cosine=found.cosine if defined else Estimate(nan, nan),
        interval=(middle - half, middle + half) if defined else (nan, nan),
        reliable=defined and not found.reasons,
        reasons=found.reasons if defined else ("the cosine is undefined",),
        z=z,
        p_value=float(stdtr(min(degrees, 1e12), -z)) if degrees > 0.0 else nan,
        pair=pair if loss_change is None else _left(pair, float(loss_change)),
        method=estimate.method,
        degrees_of_freedom=degrees,
    )


def _left(pair: DescentPair, change: float) -> DescentPair:
    """The discrete gradient of a finite step."""
    gram = rational_gram(pair.vectors)
    if not gram.finite or not gram.values[1][1] > 0:
        return pair
    one, (_, (product, length)) = Fraction(1), gram.values
    row = (one, (Fraction(change) - product) / length)
    squared = gram.product(row, row)
    return replace(
        pair,
        method="left",
        rows=(row, pair.rows[1]),
        gram=gram,
        correction_share=math.sqrt(float(row[1] ** 2 * length / squared)) if squared > 0 else 0.0,
        loss_change=change,
        defect=0.0,
        exact_descent=True,
    )


def _from_covariance(estimate: GradientEstimate, y: Array, variance: Array, g: Array, change: float | None) -> _Found:
    covariance, systematic = estimate.covariance, estimate.method == "central"

    def error_along(v: Array) -> float:
        """Standard error of v.y, or a bound."""
        if covariance is not None:
            return math.sqrt(max(0.0, float(v @ covariance @ v)))
        if systematic:
            return float(np.abs(v) @ np.sqrt(variance))
        return math.sqrt(float(np.square(v) @ variance))

    # An error that is no noise has no known mean square to be taken off.
    total = float(variance.sum())
    length, noise = float(np.linalg.norm(g)), 0.0 if systematic else total
    squared, product = Estimate(float(y @ y) - noise, 2.0 * error_along(y)), Estimate(float(y @ g), error_along(g))
    cosine = Estimate(math.nan, math.nan)
    reasons: list[str] = []
    if length > 0.0:
        unit = g / length
        # The part of the gradient that is uncertain, what is known of its square, and what it moves along the update
        free, known, moved, along = y, 0.0, unit, product.value / length
        if change is not None:
            free, known, moved, along = y - (y @ unit) * unit, (change / length) ** 2, 0.0 * unit, change / length
            total = max(0.0, total - error_along(unit) ** 2) if not systematic else total
        whole = float(free @ free) + known - (0.0 if systematic else total)
        if whole > 0.0:
            value = -along / math.sqrt(whole)
            cosine = Estimate(value, error_along(moved / math.sqrt(whole) + value * free / whole))
            if total > 1e-14 * whole:
                reasons += noisy("grad", whole, total)
                if not systematic:
                    reasons += extreme(value)
        if estimate.degrees_of_freedom < MIN_DEGREES:
            reasons.append(f"{estimate.degrees_of_freedom:g} degrees of freedom, fewer than {MIN_DEGREES:g}")
    return _Found(squared, product, noise, cosine, tuple(reasons))


def _from_samples(samples: GradientSamples, g: Array, change: float | None, eps: float) -> _Found:
    n = len(samples)
    none = Estimate(math.nan, math.nan)
    if n < 2:
        return _Found(none, none, math.nan, none, ())
    mean = samples.moments()[0]  # not rounded to the type of the parameters
    # y_i.sum(y), y_i.g and y_i.y_i in one pass
    total, along, squares = np.array([(n * float(x @ mean), float(x @ g), float(x @ x)) for x in samples]).T
    length = float(g @ g)
    yy, noise = u_statistic(total, total, squares), noise_of_mean(total, squares)
    yg = Statistic(float(along.mean()), along, (along.sum() - along) / (n - 1))
    cosine: Estimate = none
    reasons: tuple[str, ...] = ()
    if length > 0.0:
        whole, product, uncertain = yy, yg, noise
        if change is not None:
            across = total - along * along.sum() / length, squares - along * along / length
            free, uncertain = u_statistic(across[0], *across), noise_of_mean(*across)
            known = change**2 / length
            whole = Statistic(free.value + known, free.influence, free.left_out + known)
            product = _constant(change, n)
        if whole.value > 0.0:
            gg = _constant(length, n)
            sums = Sums(n, whole, product, gg, uncertain, 0.0, math.nan, [], [], along)
            cosine = jackknife_cosine(sums)
            reasons = unreliable_because(sums, cosine, eps)
    return _Found(yy.estimate, yg.estimate, noise, cosine, reasons)


def _constant(value: float, n: int) -> Statistic:
    return Statistic(value, np.zeros(n), np.full(n, value))
