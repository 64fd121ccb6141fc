"""Arrays of double-double numbers: sums of two float64, about 32 digits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["RELATIVE_ERROR", "Twofold", "two_product", "two_sum"]

Array = NDArray[np.float64]

#: Bound on the relative error of a product, a quotient or a root; of a sum, relative to the sum of the sizes.
RELATIVE_ERROR = 2.0**-100
_SPLIT = 134217729.0  # 2**27 + 1


def two_sum(a: Any, b: Any) -> tuple[Array, Array]:
    """a + b without error (Knuth).

    Parameters
    ----------
    a, b : ndarray
        float64.

    Returns
    -------
    total, error : ndarray
        The rounded sum, and what rounding took.
    """
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def two_product(a: Any, b: Any) -> tuple[Array, Array]:
    """a b without error (Dekker), where neither overflows nor underflows.

    Parameters
    ----------
    a, b : ndarray
        float64, below 2**996 in size.

    Returns
    -------
    product, error : ndarray
        The rounded product, and what rounding took.
    """
    product = a * b
    a_high, a_low = _split(a)
    b_high, b_low = _split(b)
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def _split(a: Any) -> tuple[Any, Any]:
    """Two halves of the mantissa."""
    scaled = _SPLIT * a
    high = scaled - (scaled - a)
    return high, a - high


@dataclass(frozen=True, eq=False)
class Twofold:
    """An array of numbers hi + lo.

    Attributes
    ----------
    hi, lo : ndarray
        float64 of one shape; hi is the rounded sum. NaN in either is NaN.

    Notes
    -----
    Each operation is right to `RELATIVE_ERROR`, a sum relative to the sum of the sizes of its terms; sizes must stay
    within about 1e-290 and 1e290. NumPy has no fused multiply-add: a product takes 17 operations.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest.twofold import Twofold
    >>> third = Twofold(np.array([1.0])) / Twofold(np.array([3.0]))
    >>> one = third * Twofold(np.array([3.0])) - Twofold(np.array([1.0]))
    >>> bool(abs(one.hi[0]) < 1e-31)
    True
    """

    hi: Array
    lo: Array | float = 0.0

    def __add__(self, other: Self) -> Self:
        high, low = two_sum(self.hi, other.hi)
        high_2, low_2 = two_sum(self.lo, other.lo)
        high, low = _quick(high, low + high_2)
        return type(self)(*_quick(high, low + low_2))

    def __neg__(self) -> Self:
        return type(self)(-self.hi, -self.lo)

    def __sub__(self, other: Self) -> Self:
        return self + -other

    def __mul__(self, other: Self) -> Self:
        high, low = two_product(self.hi, other.hi)
        return type(self)(*_quick(high, low + (self.hi * other.lo + self.lo * other.hi)))

    def __truediv__(self, other: Self) -> Self:
        first = self.hi / other.hi
        rest = self - other * type(self)(first)
        second = rest.hi / other.hi
        rest = rest - other * type(self)(second)
        return type(self)(*_quick(first, second)) + type(self)(rest.hi / other.hi)

    def sqrt(self) -> Self:
        """Square root.

        Returns
        -------
        Twofold
            0 of 0, NaN of negative numbers.
        """
        root = np.sqrt(self.hi)
        rest = self - type(self)(*two_product(root, root))
        correction = np.divide(rest.hi, 2.0 * root, out=np.zeros_like(root), where=root != 0.0)
        return type(self)(*_quick(root, correction))

    def ldexp(self, exponent: Any) -> Self:
        """Times a power of two.

        Parameters
        ----------
        exponent : int or ndarray of int
            Of two.

        Returns
        -------
        Twofold
            Exact unless it leaves the range.
        """
        return type(self)(np.ldexp(self.hi, exponent), np.ldexp(self.lo, exponent))


def _quick(high: Any, low: Any) -> tuple[Array, Array]:
    """high + low, where high is the larger one in size, normalised."""
    total = high + low
    return total, low - (total - high)
