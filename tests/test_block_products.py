"""Inner products of the whole vector as sums over blocks: against exact arithmetic, at any scale of the blocks."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import steepest
from oracles import inner, mp, pair
from steepest.block_products import Pair, Product, angle_of, lag_of, normalized, pair_of, sum_of_lags, sum_of_pairs
from steepest.recorder import Recorder


def exact_dot(x: list[np.ndarray], z: list[np.ndarray]) -> Fraction:
    pairs = zip(np.concatenate(x).tolist(), np.concatenate(z).tolist(), strict=True)
    return sum((Fraction(a) * Fraction(b) for a, b in pairs), Fraction())


def value(hi: float, lo: float, exponent: int) -> Fraction:
    return (Fraction(hi) + Fraction(lo)) * Fraction(2) ** exponent


BLOCKS = st.lists(
    st.tuples(
        st.integers(1, 5), st.integers(0, 2**32 - 1), st.integers(-300, 290), st.integers(-300, 290), st.integers(0, 9)
    ),
    min_size=2,
    max_size=5,
)


def vectors(blocks: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Blocks of any scale; some zero, some parallel."""
    ys, gs = [], []
    for n, seed, y_power, g_power, kind in blocks:
        rng = np.random.default_rng(seed)
        y, g = rng.standard_normal(n), rng.standard_normal(n)
        g = -0.1 * y if kind == 0 else g
        ys.append(y * 10.0**y_power * (kind != 1))
        gs.append(g * 10.0**g_power * (kind != 2))
    return ys, gs


@settings(max_examples=300, deadline=None)
@given(BLOCKS, st.sampled_from([0.0, 5e-13]))
def test_sum_is_within_its_bound(blocks: Any, tolerance: float) -> None:
    ys, gs = vectors(blocks)
    found = sum_of_pairs([pair_of(y, g, tolerance) for y, g in zip(ys, gs, strict=True)], tolerance)
    if found is None:
        return
    for name, x, z, exponent in (
        ("yy", ys, ys, 2 * found.y_exponent),
        ("yg", ys, gs, found.y_exponent + found.g_exponent),
        ("gg", gs, gs, 2 * found.g_exponent),
    ):
        hi, lo, bound = (getattr(found, name + part) for part in ("", "_lo", "_bound"))
        assert abs(value(hi, lo, exponent) - exact_dot(x, z)) <= value(bound, 0.0, exponent)
        assert abs(lo) <= math.ulp(hi) / 2


@settings(max_examples=300, deadline=None)
@given(BLOCKS)
def test_rows_have_the_certified_status_at_any_scale(blocks: Any) -> None:
    ys, gs = vectors(blocks)
    rec = Recorder()
    arrays = [{str(i): x for i, x in enumerate(v)} for v in (ys, gs)]
    rec.step(grad=arrays[0], update=arrays[1])
    a = rec.recording().alignment(0)
    exact = exact_dot(ys, gs)
    if a.status in ("ok", "ascent"):
        assert a.status == ("ok" if exact < 0 else "ascent")
        expected = steepest.align(*arrays)
        assert a.cosine == pytest.approx(expected.cosine, rel=1e-11)
        assert a.sine == pytest.approx(expected.sine, rel=1e-11, abs=2e-16)  # relative from an angle of 1e-9 on
    else:
        assert a.status in ("zero_grad", "zero_update")
        assert not any(x.any() for x in (ys if a.status == "zero_grad" else gs))


@settings(max_examples=200, deadline=None)
@given(BLOCKS, BLOCKS)
def test_sum_of_lags_is_within_its_bound(blocks: Any, others: Any) -> None:
    k = min(len(blocks), len(others))
    others = [(n, *other[1:]) for (n, *_), other in zip(blocks[:k], others[:k], strict=True)]
    now, before = vectors(blocks[:k]), vectors(others)
    found = sum_of_lags([lag_of(*four) for four in zip(*now, *before, strict=True)])
    for product, x, z in zip(found, (now[0], now[0], now[1], now[1]), (*before, *before), strict=True):
        error = abs(value(product.hi, product.lo, product.exponent) - exact_dot(x, z))
        assert error <= value(product.bound, 0.0, product.exponent)


def test_cancelling_blocks_are_looked_at_again() -> None:
    """Each block is certified by the fast pass, their sum is not: the sign of the whole is still right."""
    rng = np.random.default_rng(0)
    n = 1000
    y, g = rng.standard_normal(n), rng.standard_normal(n)
    tiny = 1e-17 * y
    for sign, status in ((1.0, "ascent"), (-1.0, "ok")):
        grad = {"a": y, "b": -y, "c": tiny}
        update = {"a": g, "b": g, "c": sign * tiny}
        rec = Recorder()
        rec.step(grad=grad, update=update)
        found = rec.recording().alignment(0)
        assert found.status == status
        assert found.inner_product == pytest.approx(sign * float(inner(tiny, tiny)), rel=1e-12)


@pytest.mark.parametrize("angle", [1e-9, 1e-6, 0.5, math.pi / 2 - 1e-9])
def test_angle_of_the_whole(angle: float) -> None:
    grad, update = pair(60, angle, rho=100.0, rng=3)
    parts = [{"a": x[:20], "b": x[20:21], "c": x[21:]} for x in (grad, update)]
    rec = Recorder(lag=1)
    rec.step(grad=parts[0], update=parts[1])
    products = [inner(*two) for two in ((grad, grad), (grad, update), (update, update))]
    cosine = -products[1] / mp.sqrt(products[0] * products[2])
    expected = mp.atan2(mp.sqrt(1 - cosine**2), cosine)
    assert rec.recording().angle[0, 0] == pytest.approx(float(expected), rel=1e-13)


def test_angle_of_impossible_and_far_products() -> None:
    one = Product(1.0)
    assert angle_of(one, Product(-1.0, -1e-17), one) == (-1.0, 0.0)  # beyond Cauchy's inequality, by rounding
    cosine, sine = angle_of(one, Product(1e-300), Product(1.0))
    assert (cosine, sine) == (pytest.approx(1e-300, rel=1e-15), 1.0)
    cosine, sine = angle_of(Product(1.0, 0.0, 0.0, 3000), Product(1e-300, 0.0, 0.0, 0), Product(1.0, 0.0, 0.0, -3000))
    assert (cosine, sine) == (pytest.approx(1e-300, rel=1e-15), 1.0)
    assert angle_of(one, Product(0.0), one) == (0.0, 1.0)
    cosine, sine = angle_of(Product(0.5, 0.0, 0.0, 2000), Product(0.25, 0.0, 0.0, 1000), Product(0.5))
    assert (cosine, sine) == (0.5, pytest.approx(math.sqrt(0.75), rel=1e-15))


def test_normalized() -> None:
    found = normalized(1.0, 3.0, 0.5)
    assert (found.hi, found.lo, found.bound) == (4.0, 0.0, 0.5)
    found = normalized(1.0, 2.0**-60 + 2.0**-52, 0.0)
    assert Fraction(found.hi) + Fraction(found.lo) == 1 + Fraction(2.0**-60 + 2.0**-52)
    assert found.hi == 1.0 + 2.0**-52


def test_nonfinite_block_makes_the_whole_nonfinite() -> None:
    good = pair_of(np.ones(2), np.ones(2), 5e-13)
    bad = pair_of(np.array([np.nan]), np.ones(1), 5e-13)
    whole = sum_of_pairs([good, bad], 5e-13)
    assert isinstance(whole, Pair)
    assert not whole.finite
    assert math.isnan(whole.yy)
