"""The cosine of two expectations with an interval, and whether the interval is to be trusted."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import stdtrit

from steepest.pairs.sample_sums import Estimate, Sums

__all__ = ["angle", "extreme", "jackknife_cosine", "margin", "noisy", "ratio", "unreliable_because"]

LEVEL = 0.95
# Where the interval of the cosine was found to cover (section 8).
MIN_SAMPLES, MIN_ANGLE, MAX_ANGLE = 50, 30.0, 85.0


def jackknife_cosine(s: Sums) -> Estimate:
    """Debiased cosine of the angle between -E[y] and E[g], with its jackknife standard error.

    Parameters
    ----------
    s : Sums
        With positive estimates of both squared norms.

    Returns
    -------
    Estimate
        The standard error is NaN if one of the N values without a sample is undefined.
    """
    value = -s.yg.value / math.sqrt(s.yy.value) / math.sqrt(s.gg.value)
    error = math.nan
    if (s.yy.left_out > 0.0).all() and (s.gg.left_out > 0.0).all():  # else, or with N = 2, NaN
        left = -s.yg.left_out / np.sqrt(s.yy.left_out) / np.sqrt(s.gg.left_out)
        error = math.sqrt((s.n - 1) / s.n * float(np.square(left - left.mean()).sum()))
    return Estimate(value, error)


def margin(standard_error: float, degrees_of_freedom: float) -> float:
    """Half the width of the 95% interval, by Student's t.

    Parameters
    ----------
    standard_error : float
        Of the middle.
    degrees_of_freedom : float
        Inf for the normal distribution.

    Returns
    -------
    float
        Half the width.
    """
    if not degrees_of_freedom > 0.0:
        return math.nan
    return float(stdtrit(min(degrees_of_freedom, 1e12), 0.5 + LEVEL / 2)) * standard_error


def unreliable_because(s: Sums, cosine: Estimate, eps: float) -> tuple[str, ...]:
    """Why the interval from samples is not to be trusted.

    Parameters
    ----------
    s : Sums
        Of the samples.
    cosine : Estimate
        As of `jackknife_cosine`.
    eps : float
        Rounding unit of the samples.

    Returns
    -------
    tuple of str
        Empty if it is to be trusted, or if there is no noise in the angle at all.
    """
    # Rounding of the samples to their type is no noise; nor are the sums of squares better than 1e-14.
    rounding = eps**2 + 1e-14
    quiet = s.y_noise <= rounding * s.yy.value and s.g_noise <= rounding * s.gg.value
    if quiet or s.sine_squared <= rounding:
        return ()
    found = []
    if not math.isfinite(cosine.standard_error):
        found.append("the jackknife is undefined: without one of the samples a squared norm is not positive")
    if s.n < MIN_SAMPLES:
        found.append(f"{s.n} samples, fewer than {MIN_SAMPLES}")
    for name, squared, noise in (("grad", s.yy.value, s.y_noise), ("update", s.gg.value, s.g_noise)):
        found += noisy(name, squared, noise)
    return (*found, *extreme(cosine.value))


def noisy(name: str, squared: float, noise: float) -> tuple[str, ...]:
    """Whether a mean does not stand out from its noise.

    Parameters
    ----------
    name : str
        Of the vector.
    squared, noise : float
        |E x|^2 and tr Cov of the mean.

    Returns
    -------
    tuple of str
        The reason, or nothing.
    """
    if squared >= 2.0 * noise:
        return ()
    return (f"|E {name}|^2 = {squared:.3g} is less than twice its noise tr Cov/N = {noise:.3g}",)


def extreme(cosine: float) -> tuple[str, ...]:
    """Whether the angle is outside the range in which the interval was found to cover.

    Parameters
    ----------
    cosine : float
        Of the angle.

    Returns
    -------
    tuple of str
        The reason, or nothing.
    """
    degrees = math.degrees(angle(cosine))
    if MIN_ANGLE <= degrees <= MAX_ANGLE:
        return ()
    return (f"the angle of {degrees:.3g} degrees is not between {MIN_ANGLE:g} and {MAX_ANGLE:g}",)


def angle(cosine: float) -> float:
    """Angle of a debiased cosine.

    Parameters
    ----------
    cosine : float
        May exceed 1.

    Returns
    -------
    float
        In rad; NaN for NaN.
    """
    return math.acos(min(1.0, max(-1.0, cosine))) if math.isfinite(cosine) else math.nan


def ratio(value: float, error: float) -> float:
    """A number in units of its standard error.

    Parameters
    ----------
    value, error : float
        The two.

    Returns
    -------
    float
        Inf with the sign of the number if there is no error, NaN for 0/0.
    """
    if error == 0.0 and value != 0.0:
        return math.copysign(math.inf, value)
    return value / error if error else math.nan
