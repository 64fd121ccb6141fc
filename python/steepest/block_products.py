"""Inner products of the blocks of one step, and of the whole vector as their sum, each with a rigorous bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steepest import _core
from steepest.alignment import Status, status_of_products
from steepest.row_format import STATUS_CODE

__all__ = [
    "LagProducts",
    "Pair",
    "Product",
    "angle_of",
    "lag_of",
    "normalized",
    "pair_of",
    "status_of",
    "statuses_of",
    "sum_of_lags",
    "sum_of_pairs",
    "sum_of_products",
]

NAN = math.nan
# Rounding a sum to hi + lo, as in the compensated pass of the core.
_ROUNDING = 2.0**-105
# Of a product whose exponent is changed: what underflow may cost.
_UNDERFLOW = 2.0**-1073


class Product(NamedTuple):
    """One inner product: ``(hi + lo) * 2**exponent``, the sum in brackets within `bound` of the exact value.

    Attributes
    ----------
    hi, lo, bound : float
        NaN if a vector is missing.
    exponent : int
        Of two.
    """

    hi: float
    lo: float = 0.0
    bound: float = 0.0
    exponent: int = 0


class Pair(NamedTuple):
    """Inner products of grad (y) and update (g), NaN where one is missing, in the order of a recording's row.

    Attributes
    ----------
    yy, yg, gg, yy_lo, yg_lo, gg_lo, yy_bound, yg_bound, gg_bound : float
        hi + lo and bounds, of the vectors divided by powers of two.
    y_exponent, g_exponent : int
        Of these powers.
    cosine, sine : float
        Of the angle between grad and update.
    sign_flip_variance : float
        sum_i (y_i g_i)^2 / (yy gg).
    finite : bool
        False if a vector holds NaN or Inf.
    careful : bool
        Whether a compensated or exact pass was made, so that hi + lo is right to about 2^-105.
    """

    yy: float = NAN
    yg: float = NAN
    gg: float = NAN
    yy_lo: float = NAN
    yg_lo: float = NAN
    gg_lo: float = NAN
    yy_bound: float = NAN
    yg_bound: float = NAN
    gg_bound: float = NAN
    y_exponent: int = 0
    g_exponent: int = 0
    cosine: float = NAN
    sine: float = NAN
    sign_flip_variance: float = NAN
    finite: bool = True
    careful: bool = True


#: One or several arrays, read as one vector; bfloat16 as its bits.
Vector = NDArray[Any] | list[NDArray[Any]]
#: grad_t.grad_{t-j}, grad_t.update_{t-j}, update_t.grad_{t-j}, update_t.update_{t-j}
LagProducts = tuple[Product, Product, Product, Product]
MISSING = Product(NAN, NAN, NAN)


def normalized(hi: float, lo: float, bound: float, exponent: int = 0) -> Product:
    """A product whose hi is the rounded sum of both parts.

    Parameters
    ----------
    hi, lo, bound : float
        As of `Product`, but for the sizes of hi and lo.
    exponent : int
        Of two.

    Returns
    -------
    Product
        The same number.
    """
    hi, lo = float(hi), float(lo)
    total = hi + lo
    added = total - hi
    return Product(total, (hi - (total - added)) + (lo - added), float(bound), exponent)


def pair_of(
    y: Vector | None,
    g: Vector | None,
    tolerance: float,
    base: Vector | None = None,
    rounding: float = 0.0,
) -> Pair:
    """Inner products of one block.

    Parameters
    ----------
    y, g : ndarray, list of ndarray, or None
        Gradient and update, as the core reads them.
    tolerance : float
        Relative accuracy that sine and cosine need (`angle_tolerance`). With 0 all products are from a compensated or
        exact pass, as for Gram matrices of sums and differences of vectors.
    base : ndarray or list of ndarray, optional
        Positive diagonal: yy = y^T D^-1 y, gg = g^T D g.
    rounding : float
        Norm of the rounding that the update carries: a sine that is right to a tenth of what it does is good enough.

    Returns
    -------
    Pair
        Of the block.
    """
    if y is None or g is None:
        return _one_square(y, g, tolerance == 0.0, base)
    try:
        gram = _core.angle_gram(y, g, base, tolerance, rounding * rounding)
    except ValueError:  # the weighted products leave the range of float64
        return Pair(finite=False)
    fast = gram.precision == "fast"
    variance = gram.sign_flip_variance
    if fast and tolerance == 0.0 and gram.finite:  # one is zero, which needs no better pass for the angle
        gram, fast = _core.gram([y, g], "compensated"), False
    yy, yg, gg, yy_bound, yg_bound, gg_bound, y_exponent, g_exponent, cosine, sine, _, finite = gram.pair
    (yy_lo, yg_lo), (_, gg_lo) = gram.lo.tolist()
    return Pair(
        yy, yg, gg, yy_lo, yg_lo, gg_lo, yy_bound, yg_bound, gg_bound, y_exponent, g_exponent, cosine, sine,
        variance, finite, not fast,
    )  # fmt: skip


def _one_square(y: Vector | None, g: Vector | None, careful: bool, base: Vector | None) -> Pair:
    x = g if y is None else y
    if x is None:
        return Pair()
    at = 0
    try:
        if base is None:
            gram = _core.gram([x], "compensated" if careful else "fast")
        else:
            gram, at = _core.angle_gram(x, x, base), int(y is None)
    except ValueError:
        return Pair(finite=False)
    hi, lo, bound = (float(part[at, at]) for part in (gram.hi, gram.lo, gram.bound))
    careful, exponent = gram.precision != "fast", gram.exponents[at]
    # A single vector that is not finite keeps its NaN norm; status says which vector is missing.
    if y is not None:
        return Pair(yy=hi, yy_lo=lo, yy_bound=bound, y_exponent=exponent, careful=careful)
    return Pair(gg=hi, gg_lo=lo, gg_bound=bound, g_exponent=exponent, careful=careful)


def lag_of(y: Vector | None, g: Vector | None, y0: Vector | None, g0: Vector | None) -> LagProducts:
    """Compensated inner products of a step with an earlier one.

    Parameters
    ----------
    y, g : ndarray, list of ndarray, or None
        Gradient and update of the step.
    y0, g0 : ndarray, list of ndarray, or None
        Of the earlier one.

    Returns
    -------
    LagProducts
        NaN where a vector is missing.
    """
    if y is not None and g is not None and y0 is not None and g0 is not None:
        whole = _core.segment_cross_products(y, g, y0, g0)[0]
        if not np.isnan(whole[0, 0]):
            yy, yg, gy, gg = (Product(*numbers) for numbers in whole.tolist())
            return yy, yg, gy, gg
    # Vectors that are missing, zero, not finite, or have to be scaled
    there = [(i, x) for i, x in enumerate((y, g, y0, g0)) if x is not None]
    if not there:
        return MISSING, MISSING, MISSING, MISSING
    gram = _core.gram([x for _, x in there], "compensated")
    at = {i: k for k, (i, _) in enumerate(there)}
    hi, lo, bound, exponents = gram.hi.tolist(), gram.lo.tolist(), gram.bound.tolist(), gram.exponents

    def product(i: int, j: int) -> Product:
        if i not in at or j not in at:
            return MISSING
        i, j = at[i], at[j]
        return Product(hi[i][j], lo[i][j], bound[i][j], exponents[i] + exponents[j])

    return product(0, 2), product(0, 3), product(1, 2), product(1, 3)


def sum_of_pairs(pairs: Sequence[Pair], tolerance: float) -> Pair | None:
    """The products of the whole vector from those of its blocks: no memory is read again.

    Parameters
    ----------
    pairs : sequence of Pair
        Of the blocks.
    tolerance : float
        Relative accuracy that sine and cosine need; see `pair_of`.

    Returns
    -------
    Pair or None
        None if the bounds of the blocks do not settle sign and angle of the whole.

    Notes
    -----
    Sums of hi and lo are rounded once each, whatever their order, so the bits depend on the blocks alone. By Cauchy's
    inequality the bound is as good as that of one pass over everything.
    """
    finite = all(p.finite for p in pairs)
    if not finite:
        return Pair(finite=False)
    y_exponent = max((p.y_exponent for p in pairs if p.yy > 0.0), default=0)
    g_exponent = max((p.g_exponent for p in pairs if p.gg > 0.0), default=0)
    exponent = y_exponent + g_exponent
    yy = sum_of_products([Product(p.yy, p.yy_lo, p.yy_bound, 2 * p.y_exponent) for p in pairs], 2 * y_exponent)
    yg = sum_of_products([Product(p.yg, p.yg_lo, p.yg_bound, p.y_exponent + p.g_exponent) for p in pairs], exponent)
    gg = sum_of_products([Product(p.gg, p.gg_lo, p.gg_bound, 2 * p.g_exponent) for p in pairs], 2 * g_exponent)
    careful = all(p.careful for p in pairs)
    cosine = sine = variance = NAN
    if yy.hi > 0.0 and gg.hi > 0.0:
        cosine, sine = angle_of(yy, yg, gg)
        norms = math.sqrt(yy.hi) * math.sqrt(gg.hi)
        error = abs(cosine) * 0.5 * (yy.bound / yy.hi + gg.bound / gg.hi) + yg.bound / norms
        good = error <= tolerance * abs(cosine) and abs(cosine) * error <= tolerance * sine * sine
        if not abs(yg.hi) > yg.bound or not (careful or good):
            return None
        squares = [
            math.ldexp(p.sign_flip_variance * p.yy * p.gg, 2 * (p.y_exponent + p.g_exponent - exponent))
            for p in pairs
            if p.yy > 0.0 and p.gg > 0.0
        ]
        variance = math.fsum(squares) / yy.hi / gg.hi
    return Pair(
        yy.hi, yg.hi, gg.hi, yy.lo, yg.lo, gg.lo, yy.bound, yg.bound, gg.bound, y_exponent, g_exponent, cosine, sine,
        variance, True, careful,
    )  # fmt: skip


def sum_of_lags(lags: Sequence[LagProducts]) -> LagProducts:
    """The products of the whole vectors from those of their blocks.

    Parameters
    ----------
    lags : sequence of LagProducts
        Of the blocks.

    Returns
    -------
    LagProducts
        Of all.
    """
    yy, yg, gy, gg = (
        sum_of_products(products, max((p.exponent for p in products if p.hi or p.bound), default=0))
        for products in zip(*lags, strict=True)
    )
    return yy, yg, gy, gg


def sum_of_products(products: Sequence[Product], exponent: int) -> Product:
    """The inner product of whole vectors from those of their blocks.

    Parameters
    ----------
    products : sequence of Product
        Of the blocks.
    exponent : int
        Of the sum.

    Returns
    -------
    Product
        In units of ``2**exponent``: hi and lo rounded once each, whatever the order, and a bound that covers it. NaN
        where a block is missing or not finite.
    """
    if not all(math.isfinite(x) for p in products for x in p[:3]):
        return Product(NAN, NAN, NAN, exponent)
    shifted = any(p.exponent != exponent for p in products if p.hi or p.bound)
    if shifted:
        products = [_shifted(p, p.exponent - exponent) for p in products]
    terms = [part for p in products for part in (p.hi, p.lo)]
    hi = math.fsum(terms)
    terms.append(-hi)
    bound = (
        math.fsum([p.bound for p in products]) * (1.0 + 2.0**-50)
        + abs(hi) * _ROUNDING
        + len(products) * _UNDERFLOW * shifted
    )
    return Product(hi, math.fsum(terms), bound, exponent)


def _shifted(p: Product, shift: int) -> Product:
    if not (p.hi or p.bound):
        return p
    return Product(math.ldexp(p.hi, shift), math.ldexp(p.lo, shift), math.ldexp(p.bound, shift))


def angle_of(yy: Product, yg: Product, gg: Product) -> tuple[float, float]:
    """Cosine and sine of the angle between two vectors, in integer arithmetic from hi + lo, each rounded once.

    Parameters
    ----------
    yy, yg, gg : Product
        Positive squares and the inner product, with ``2 * yg.exponent == yy.exponent + gg.exponent``.

    Returns
    -------
    cosine, sine : float
        The sine is right to about ``(bound/yy)/psi^2`` relatively; 0 where the products contradict Cauchy's inequality.
    """
    (a, i), (b, j), (c, k) = _integer(yy), _integer(gg), _integer(yg)
    product, square = a * b, c * c
    shift = 2 * k - i - j
    if shift < 0:
        product <<= -shift
    else:
        square <<= shift
    cosine, sine = _root_of_ratio(square, product), _root_of_ratio(max(product - square, 0), product)
    return math.copysign(min(cosine, 1.0), yg.hi), min(sine, 1.0)


def _root_of_ratio(a: int, b: int) -> float:
    """sqrt(a/b) from 65 bits of it at least."""
    bits = max(0, 132 + b.bit_length() - a.bit_length()) if a else 0
    bits += bits & 1
    return math.ldexp(math.isqrt((a << bits) // b), -bits // 2)


def _integer(x: Product) -> tuple[int, int]:
    """(m, e) with hi + lo = m 2^e; bits of lo more than 160 below hi are cut off."""
    mantissa, e = math.frexp(x.hi)
    return (int(math.ldexp(mantissa, 53)) << 107) + int(math.ldexp(x.lo, 160 - e)), e - 160


def status_of(y: bool, g: bool, p: Pair) -> Status:
    """Section 15: ok if y.g > bound, ascent if y.g <= 0 is certified, undecided otherwise; y = -grad.

    Parameters
    ----------
    y, g : bool
        Whether there is a gradient, an update.
    p : Pair
        Their products.

    Returns
    -------
    str
        See `Recording.status`.
    """
    if not g:
        return "no_update"
    if not y:
        return "no_gradient"
    return status_of_products(p.finite, p.yy, p.gg, p.yg, p.yg_bound, p.yg_lo)


def statuses_of(products: NDArray[np.float64]) -> NDArray[np.int8]:
    """`status_of` of many pairs whose vectors are there.

    Parameters
    ----------
    products : ndarray, shape (m, 15)
        Numbers of a pair in the order of `Pair`, as the core's ``segment_angle_grams`` gives them.

    Returns
    -------
    ndarray, shape (m,)
        Codes, see `steepest.row_format.STATUS_CODE`.
    """
    yy, yg, gg, _, yg_lo, _, _, yg_bound = products[:, :8].T
    certain = np.abs(yg) - yg_bound + np.sign(yg) * yg_lo > 0.0
    zero = (yg == 0.0) & (yg_bound == 0.0)
    chosen = [products[:, 14] == 0.0, yy == 0.0, gg == 0.0, zero | (certain & (yg > 0.0)), certain]
    codes = [STATUS_CODE[name] for name in ("nonfinite", "zero_grad", "zero_update", "ascent", "ok")]
    return np.select(chosen, codes, STATUS_CODE["undecided"]).astype(np.int8)
