"""Closed-form spectrum and functions of the one-parameter family of metrics.

For a gradient and an update with y = -grad, g = update and y.g > 0, the family

    M(alpha) = y y^T / (y.g) + alpha (I - g g^T / (g.g)),      alpha > 0        [paper, eq (8)]

is the set of metrics with ``M g = y`` that act as the scalar ``alpha`` on the complement of
``span{y, g}``. Everything here is for the scaled matrix ``Mt = M / rho``, ``rho = |y| / |g|``, written in the
unit vectors ``yh = y / |y|`` and ``gh = g / |g|``:

    Mt = yh yh^T / c + alpha (I - gh gh^T),      c = yh.gh = cos(psi),   s = sin(psi)

so ``alpha`` means ``alpha / rho``, and no norm of a vector enters. Powers scale back by ``rho**p``, the
logarithm by adding ``log(rho) I``.

Domain of every function: ``alpha > 0``, ``0 < cosine <= 1``, ``0 <= sine < 1``, where cosine and sine belong to
one angle in [0, 90 deg) and BOTH are accurate to a few units in the last place: neither can be had from the
other at the two ends. Arguments are not checked, callers have done so. Accuracy is stated for
``1e-8 <= alpha * cosine <= 1e8`` and angles up to 90 deg - 1e-12; no intermediate quantity leaves the range of
double precision far beyond that. The cost of each function is a few microseconds at most: plain floats, no
arrays.
"""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = [
    "Coefficients",
    "condition_number",
    "eigenvalue_bounds",
    "log_coefficients",
    "logdet",
    "optimal_alpha",
    "optimal_condition_number",
    "optimal_eigenvalues",
    "optimal_log_condition_number",
    "plane_eigenvalues",
    "plane_eigenvectors",
    "power_coefficients",
    "trace",
]


class Coefficients(NamedTuple):
    """A function of the scaled metric as a multiple of the identity plus a matrix of rank two.

    ``f(Mt) = identity * I + yy * yh yh^T + gg * gh gh^T + yg * (yh gh^T + gh yh^T)``

    Attributes
    ----------
    identity : float
        Factor of the identity, ``f(alpha)``: the eigenvalue of f(Mt) on the complement of span{y, g}.
    yy, gg : float
        Factors of ``yh yh^T`` and ``gh gh^T``.
    yg : float
        Factor of the symmetric pair ``yh gh^T + gh yh^T``.
    """

    identity: float
    yy: float
    gg: float
    yg: float


class _Plane(NamedTuple):
    """The two eigenvalues in span{y, g}, and their distances, each with a small RELATIVE error.

    A difference of two of the eigenvalues would have a small error only relative to the eigenvalues.
    """

    minus: float
    plus: float
    below: float  # alpha - minus = plus - 1/c
    above: float  # plus - alpha
    gap: float  # plus - minus


def _plane(alpha: float, cosine: float, sine: float) -> _Plane:
    # (plus - alpha) (alpha - minus) = alpha s^2 / c and (plus - alpha) - (alpha - minus) = 1/c - alpha:
    # the larger of the two distances is a sum of positive numbers, the smaller one follows from the product.
    inverse = 1.0 / cosine
    difference = _one_minus_alpha_cosine(alpha, cosine, sine) / cosine
    coupling = sine * math.sqrt(alpha) * math.sqrt(inverse)
    gap = math.hypot(difference, 2.0 * coupling)
    larger = 0.5 * (gap + abs(difference))
    smaller = coupling * (coupling / larger) if larger > 0.0 else 0.0
    # Starting from the larger of alpha and 1/c keeps minus <= min(alpha, c) and plus >= max(alpha, 1/c)
    # (interlacing, Propositions 2 and 3) in floating point too.
    if difference >= 0.0:
        plus, below, above = inverse + smaller, smaller, larger
    else:
        plus, below, above = alpha + smaller, larger, smaller
    return _Plane((alpha / plus) * cosine, plus, below, above, gap)


def _one_minus_alpha_cosine(alpha: float, cosine: float, sine: float) -> float:
    # Its sign and size against (1 + alpha c) s turn the eigenvectors. Near psi = 0 the rounding of c alone
    # (half an ulp of 1) would swamp s, hence 1 - c = s^2 / (1 + c); 1 - alpha is exact for alpha in [1/2, 2].
    if sine < cosine:
        return (1.0 - alpha) + alpha * sine * (sine / (1.0 + cosine))
    return 1.0 - alpha * cosine


def plane_eigenvalues(alpha: float, cosine: float, sine: float) -> tuple[float, float]:
    """Eigenvalues of the scaled metric in span{y, g}.

    The third distinct eigenvalue is ``alpha`` itself, n - 2 times, between these two. Their sum is
    ``alpha + 1/c``, their product ``alpha c``. Derived form of the paper's Lemma 1, arranged so that nothing
    cancels: relative error below 1e-15. In floating point, too, ``lam_minus <= min(alpha, c)``
    and ``lam_plus >= max(alpha, 1/c)``.

    Parameters
    ----------
    alpha : float
        Eigenvalue on the complement of the plane, in units of rho.
    cosine, sine : float
        Of the angle between -grad and update.

    Returns
    -------
    lam_minus, lam_plus : float
        In units of rho.

    Examples
    --------
    >>> from steepest.spectral import plane_eigenvalues
    >>> plane_eigenvalues(1.25, 0.8, 0.6)
    (0.5, 2.0)
    """
    plane = _plane(alpha, cosine, sine)
    return plane.minus, plane.plus


def condition_number(alpha: float, cosine: float, sine: float) -> float:
    """Condition number of the metric, ``lam_plus / lam_minus`` (derived; relative error below 1e-15).

    For n = 1 the metric is a number and its condition number 1; that case is the caller's.

    Parameters
    ----------
    alpha, cosine, sine : float
        As in `plane_eigenvalues`.

    Returns
    -------
    float
        At least ``optimal_condition_number(cosine, sine)``, attained at ``alpha = 1 / cosine``.

    Examples
    --------
    >>> from steepest.spectral import condition_number
    >>> condition_number(1.25, 0.8, 0.6)
    4.0
    """
    plane = _plane(alpha, cosine, sine)
    return plane.plus / plane.minus


def optimal_alpha(cosine: float) -> float:
    """The alpha of least condition number, ``1 / c`` in units of rho: (y.y)/(y.g) (paper).

    Parameters
    ----------
    cosine : float
        Of the angle between -grad and update.

    Returns
    -------
    float
        In units of rho.

    Examples
    --------
    >>> from steepest.spectral import optimal_alpha
    >>> optimal_alpha(0.8)
    1.25
    """
    return 1.0 / cosine


def optimal_eigenvalues(cosine: float, sine: float) -> tuple[float, float, float]:
    """The three distinct eigenvalues of the condition-optimal metric, eq (9) (reconstructed).

    ``(c / (1 + s), 1 / c, (1 + s) / c)``; the middle one has multiplicity n - 2.

    Parameters
    ----------
    cosine, sine : float
        Of the angle between -grad and update.

    Returns
    -------
    smallest, middle, largest : float
        In units of rho.

    Examples
    --------
    >>> from steepest.spectral import optimal_eigenvalues
    >>> optimal_eigenvalues(0.8, 0.6)
    (0.5, 1.25, 2.0)
    """
    # (1 - s) / c, the printed form of the smallest, cancels near 90 degrees.
    return cosine / (1.0 + sine), 1.0 / cosine, (1.0 + sine) / cosine


def optimal_condition_number(cosine: float, sine: float) -> float:
    """Least condition number over ALL metrics of the pair, ``((1 + s) / c)**2`` (Proposition 1, paper).

    Equal to the printed ``(1 + s) / (1 - s)``, which cancels near 90 degrees.

    Parameters
    ----------
    cosine, sine : float
        Of the angle between -grad and update.

    Returns
    -------
    float
        At least 1.

    Examples
    --------
    >>> from steepest.spectral import optimal_condition_number
    >>> optimal_condition_number(0.8, 0.6)
    4.0
    """
    root = (1.0 + sine) / cosine
    return root * root


def optimal_log_condition_number(cosine: float, sine: float) -> float:
    """Logarithm of the least condition number, ``2 asinh(s / c)`` (derived).

    Accurate relative to itself down to angle 0, where it tends to twice the angle.

    Parameters
    ----------
    cosine, sine : float
        Of the angle between -grad and update.

    Returns
    -------
    float
        Natural logarithm, at least 0.

    Examples
    --------
    >>> import math
    >>> from steepest.spectral import optimal_log_condition_number
    >>> round(optimal_log_condition_number(0.8, 0.6), 12) == round(math.log(4.0), 12)
    True
    """
    return 2.0 * math.asinh(sine / cosine)


def eigenvalue_bounds(cosine: float) -> tuple[float, float]:
    """What the extreme eigenvalues of ANY metric of the pair must obey (Propositions 2 and 3, paper).

    Parameters
    ----------
    cosine : float
        Of the angle between -grad and update.

    Returns
    -------
    smallest_at_most, largest_at_least : float
        ``lam_min <= c`` and ``lam_max >= 1 / c`` in units of rho; strict unless the angle is 0.

    Examples
    --------
    >>> from steepest.spectral import eigenvalue_bounds
    >>> eigenvalue_bounds(0.8)
    (0.8, 1.25)
    """
    return cosine, 1.0 / cosine


def plane_eigenvectors(alpha: float, cosine: float, sine: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Unit eigenvectors of the metric in span{y, g}.

    They are given by their coefficients on the orthonormal basis ``gh``, ``rh = (yh - c gh) / s`` (the unit
    residual of -grad off the update): ``v = p * gh + q * rh``. ``v_plus`` makes the angle ``psi / 2 + phi``
    with gh, ``phi = atan2((1 + alpha c) s, (1 - alpha c) c) / 2`` (derived), which lies in [0, 90 deg].
    Computed without angles: every coefficient has a relative error below 1e-15, the tiny ones too.
    (The arctangent, evaluated as written with the rounded cosine, is off by up to 4e-9 near psi = 1e-8.)

    Parameters
    ----------
    alpha, cosine, sine : float
        As in `plane_eigenvalues`.

    Returns
    -------
    (p_minus, q_minus), (p_plus, q_plus) : tuple of tuples of float
        ``p_plus >= 0``, ``q_plus >= 0``, and ``(p_minus, q_minus) = (-q_plus, p_plus)``. At angle 0 the
        eigenvector of gh is ``(1, 0)`` up to sign, and ``(0, 1)`` stands for any direction orthogonal to gh.

    Examples
    --------
    >>> from steepest.spectral import plane_eigenvectors
    >>> (p_minus, q_minus), (p_plus, q_plus) = plane_eigenvectors(1.25, 0.8, 0.6)
    >>> round(q_plus / p_plus, 14)
    2.0
    """
    # In the basis (gh, rh) the plane block is [[c, s], [s, alpha + s^2/c]], so v_plus ~ (s, plus - c) with
    # plus - c = (plus - 1/c) + s^2/c, a sum of non-negative terms.
    plane = _plane(alpha, cosine, sine)
    if plane.below > plane.above:
        p, q = sine, plane.below + sine * (sine / cosine)
    elif plane.above > 0.0:
        # Divided by s, so that s -> 0 leaves v_plus = gh.
        p, q = 1.0, (sine / cosine) * (1.0 + alpha / plane.above)
    else:
        p, q = 1.0, 0.0
    norm = math.hypot(p, q)
    p, q = p / norm, q / norm
    return (-q, p), (p, q)


def power_coefficients(p: float, alpha: float, cosine: float, sine: float) -> Coefficients:
    """Coefficients of ``Mt**p`` for any real p (derived).

    ``p`` in {1, 0, -1, 1/2, -1/2} has closed coefficients without cancellation: 1 is the defining form, 0 the
    identity, -1 the inverse. Any other power takes first and second divided differences of x**p on the three
    eigenvalues: by expm1 and log1p, and by a series where the eigenvalues are close or equal.

    The matrix assembled from the coefficients, without further rounding, differs from the exact power by less
    than ``10 * eps * kappa * |Mt**p|_2``, ``kappa = max(1, |p|, |p (p - 1)| / 2)``: the largest of ``|f|``,
    ``|x f'|`` and ``|x^2 f''| / 2`` on the spectrum, f(x) = x**p. The second is the sensitivity to the roundings
    of alpha, cosine and sine; the third is the size of the coefficients, which cancel in the product with a
    vector when the angle is small. Each coefficient has an error below ``10 * eps * max(1, |p|) * kappa *
    |Mt**p|_2`` by itself.

    Parameters
    ----------
    p : float
        Finite exponent.
    alpha, cosine, sine : float
        As in `plane_eigenvalues`.

    Returns
    -------
    Coefficients
        Of ``Mt**p``; multiply by ``rho**p`` for ``M**p``.

    Raises
    ------
    OverflowError
        If an eigenvalue to the power p is beyond the range of double precision.

    Examples
    --------
    >>> from steepest.spectral import power_coefficients
    >>> power_coefficients(1.0, 1.25, 0.8, 0.6)
    Coefficients(identity=1.25, yy=1.25, gg=-1.25, yg=0.0)
    """
    inverse = 1.0 / cosine
    if p == 1.0:
        return Coefficients(alpha, inverse, -alpha, 0.0)
    if p == -1.0:
        product = 1.0 / (alpha * cosine)
        return Coefficients(1.0 / alpha, 0.0, inverse * (1.0 + product), -product)
    if p == 0.0:
        return Coefficients(1.0, 0.0, 0.0, 0.0)
    plane = _plane(alpha, cosine, sine)
    if p == 0.5 or p == -0.5:
        return _root_coefficients(p, alpha, inverse, plane)
    first = _first_difference_power(p, plane.minus, plane.gap)
    ratio = math.log1p(plane.gap / plane.minus)
    if _is_close(ratio, p):
        second = _second_difference_series(p, 0.5 * p * (p - 1.0), plane)
    else:
        second = (
            _first_difference_power(p, alpha, plane.above) - _first_difference_power(p, plane.minus, plane.below)
        ) / plane.gap
    return _coefficients(math.pow(alpha, p), first, second, alpha, inverse)


def log_coefficients(alpha: float, cosine: float, sine: float) -> Coefficients:
    """Coefficients of ``log(Mt)`` (derived).

    Symmetric, not positive definite. The matrix assembled from them differs from the exact logarithm by less
    than ``10 * eps * max(1, |log(Mt)|_2)``; the 1 is ``|x f'(x)|``, the sensitivity to the roundings of alpha,
    cosine and sine.

    Parameters
    ----------
    alpha, cosine, sine : float
        As in `plane_eigenvalues`.

    Returns
    -------
    Coefficients
        Of ``log(Mt)``; add ``log(rho)`` to `identity` for ``log(M)``.

    Examples
    --------
    >>> from steepest.spectral import log_coefficients
    >>> log_coefficients(1.0, 1.0, 0.0)
    Coefficients(identity=0.0, yy=0.5, gg=-1.5, yg=0.5)
    """
    plane = _plane(alpha, cosine, sine)
    first = _first_difference_log(plane.minus, plane.gap)
    ratio = math.log1p(plane.gap / plane.minus)
    if _is_close(ratio, 1.0):
        # log x is the limit of (x**p - 1) / p: its Taylor coefficients are those of p -> 0, divided by p.
        second = _second_difference_series(0.0, -0.5, plane)
    else:
        second = (
            _first_difference_log(alpha, plane.above) - _first_difference_log(plane.minus, plane.below)
        ) / plane.gap
    return _coefficients(math.log(alpha), first, second, alpha, 1.0 / cosine)


def logdet(n: int, alpha: float, cosine: float) -> float:
    """Logarithm of the determinant of the scaled metric, ``(n - 1) log(alpha) + log(c)`` (derived).

    Parameters
    ----------
    n : int
        Dimension, at least 1.
    alpha, cosine : float
        As in `plane_eigenvalues`.

    Returns
    -------
    float
        For ``Mt``; add ``n * log(rho)`` for M.

    Examples
    --------
    >>> from steepest.spectral import logdet
    >>> logdet(3, 1.0, 1.0)
    0.0
    """
    return (n - 1) * math.log(alpha) + math.log(cosine)


def trace(n: int, alpha: float, cosine: float) -> float:
    """Trace of the scaled metric, ``1 / c + (n - 1) alpha`` (derived).

    Parameters
    ----------
    n : int
        Dimension, at least 1.
    alpha, cosine : float
        As in `plane_eigenvalues`.

    Returns
    -------
    float
        In units of rho.

    Examples
    --------
    >>> from steepest.spectral import trace
    >>> trace(3, 1.25, 0.8)
    3.75
    """
    return 1.0 / cosine + (n - 1) * alpha


def _coefficients(bulk: float, first: float, second: float, alpha: float, inverse: float) -> Coefficients:
    """f(Mt) from f(alpha), f[lam_minus, lam_plus] and f[lam_minus, alpha, lam_plus]; a c = 1 in these units."""
    product = alpha * second
    return Coefficients(bulk, inverse * (first + product), inverse * product - alpha * first, -product)


def _root_coefficients(p: float, alpha: float, inverse: float, plane: _Plane) -> Coefficients:
    """Square root (p = 1/2) and inverse square root (p = -1/2): the sums that cancel are done on paper."""
    low, middle, high = math.sqrt(plane.minus), math.sqrt(alpha), math.sqrt(plane.plus)
    outer = low + high
    inner = (low + middle) * (middle + high)
    if p > 0.0:
        # f1 = 1/outer, f2 = -1/(outer inner), and inner - alpha is the sum of the products of two roots.
        pairs = low * middle + low * high + middle * high
        product = alpha / (outer * inner)
        return Coefficients(middle, inverse * (pairs / inner) / outer, -(alpha / outer + inverse * product), product)
    # f1 = -1/(low high outer), f2 = (low + middle + high)/(low middle high outer inner);
    # inner - middle (low + middle + high) = low high.
    scale = 1.0 / (low * high * outer)
    product = middle * scale * ((outer + middle) / inner)
    return Coefficients(1.0 / middle, -inverse / (outer * inner), alpha * scale + inverse * product, -product)


def _is_close(ratio: float, p: float) -> bool:
    # Beyond, the difference of two first differences loses less than a factor of two.
    return ratio * max(1.0, abs(p)) < 0.7


def _first_difference_power(p: float, low: float, gap: float) -> float:
    """(f(low + gap) - f(low)) / gap for f(x) = x**p."""
    high = low + gap
    if high == low:
        # Not low**(p - 1): the rounding of p - 1 costs log(low) ulps.
        return p * math.pow(low, p) / low
    ratio = p * math.log1p(gap / low)
    # From the larger of the two powers: expm1 of a negative number cannot overflow.
    if p > 0.0:
        return -math.pow(high, p) * math.expm1(-ratio) / gap
    return math.pow(low, p) * math.expm1(ratio) / gap


def _first_difference_log(low: float, gap: float) -> float:
    """(log(low + gap) - log(low)) / gap."""
    return 1.0 / low if low + gap == low else math.log1p(gap / low) / gap


def _second_difference_series(p: float, leading: float, plane: _Plane) -> float:
    """f[minus, alpha, plus] by Taylor expansion about the middle of the interval."""
    # The k-th Taylor coefficient of f is `leading` (k = 2) times a product of (p - k) / (k + 1), over m**k; a power of
    # p = 0 with another `leading` is the logarithm. With half-width w and the offset of alpha from the middle m in
    # units of w, the divided difference of (x - m)**k is w**(k-2) times a complete homogeneous polynomial S_{k-2} of
    # (-1, offset, 1), and S_j = offset S_{j-1} + (1 for even j).
    half = 0.5 * plane.gap
    middle = plane.minus + half
    width = half / middle
    offset = 0.5 * (plane.below - plane.above) / half if half > 0.0 else 0.0
    factor, polynomial, total, term, k = leading, 1.0, leading, leading, 2
    while abs(term) > 1e-17 * abs(total):
        factor *= width * (p - k) / (k + 1)
        polynomial *= offset
        total += factor * polynomial
        factor *= width * (p - k - 1) / (k + 2)
        polynomial = offset * polynomial + 1.0
        term = factor * polynomial
        total += term
        k += 2
    return total * math.pow(middle, p) / (middle * middle)
