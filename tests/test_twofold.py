"""Double-double arrays against exact rational arithmetic."""

from __future__ import annotations

import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from steepest.twofold import RELATIVE_ERROR, Twofold, two_product, two_sum

RNG = np.random.default_rng(11)


def exact(x: Twofold) -> list[Fraction]:
    low = np.broadcast_to(x.lo, x.hi.shape)
    return [Fraction(h) + Fraction(v) for h, v in zip(x.hi.tolist(), low.tolist(), strict=True)]


def numbers(count: int = 400) -> Twofold:
    """Of 1e-40 to 1e40, of both signs, low parts of all sizes up to half an ulp."""
    hi = RNG.standard_normal(count) * 10.0 ** RNG.integers(-40, 40, count)
    return Twofold(hi, hi * 2.0**-53 * RNG.uniform(-0.99, 0.99, count) * 2.0 ** -RNG.integers(1, 30, count))


def test_sum_and_product_lose_nothing() -> None:
    a, b = numbers().hi, numbers().hi
    for f, of in ((two_sum, operator.add), (two_product, operator.mul)):
        total, error = f(a, b)
        for t, e, x, y in zip(total.tolist(), error.tolist(), a.tolist(), b.tolist(), strict=True):
            assert Fraction(t) + Fraction(e) == of(Fraction(x), Fraction(y))


@pytest.mark.parametrize("of", [operator.add, operator.sub, operator.mul, operator.truediv])
def test_operations_are_right_to_thirty_digits(of: Callable[[Any, Any], Any]) -> None:
    a, b = numbers(), numbers()
    b.hi[:100] = -a.hi[:100]  # cancels in the high part
    b.hi[100:200] = a.hi[100:200]
    np.asarray(b.lo)[:200] = np.asarray(a.lo)[:200] * RNG.uniform(-0.9, 0.9, 200)
    for found, x, y in zip(exact(of(a, b)), exact(a), exact(b), strict=True):
        scale = abs(x) + abs(y) if of in (operator.add, operator.sub) else abs(of(x, y))
        assert abs(found - of(x, y)) <= Fraction(RELATIVE_ERROR) * scale


def test_result_is_normalised() -> None:
    a, b = numbers(), numbers()
    for x in (a + b, a * b, a / b):
        assert np.all(x.hi + x.lo == x.hi)


def test_root() -> None:
    a = numbers()
    a = Twofold(np.abs(a.hi), np.abs(np.asarray(a.lo)))
    a.hi[0], np.asarray(a.lo)[0] = 0.0, 0.0
    root = a.sqrt()
    assert root.hi[0] == 0.0
    for found, x in zip(exact(root), exact(a), strict=True):
        assert abs(found * found - x) <= 2 * Fraction(RELATIVE_ERROR) * x


def test_power_of_two_is_exact() -> None:
    a = numbers()
    assert exact(a.ldexp(np.full(400, 37))) == [x * 2**37 for x in exact(a)]


def test_nan_stays() -> None:
    with np.errstate(invalid="ignore"):
        x = Twofold(np.array([np.nan]), np.array([0.0])) * Twofold(np.array([1.0]), np.array([0.0]))
    assert np.isnan(x.hi[0])
