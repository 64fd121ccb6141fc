"""Inner products of the core against exact integer arithmetic: every bound is checked, at every precision."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_cases import DTYPES, LAYOUTS, U, doubles, exact_dot, power, stored
from steepest import _core

PRECISIONS = ["fast", "compensated", "exact"]
SIZES = [1, 2, 3, 15, 16, 17, 511, 512, 513, 1023, 1024, 1025, 8191, 8192, 8193, 30000]


def entry(gram: Any, i: int, j: int) -> Fraction:
    scale = power(gram.exponents[i] + gram.exponents[j])
    return (Fraction(gram.hi[i, j]) + Fraction(gram.lo[i, j])) * scale


def bound(gram: Any, i: int, j: int) -> Fraction:
    return Fraction(gram.bound[i, j]) * power(gram.exponents[i] + gram.exponents[j])


def check(vectors: list[Any], precision: str) -> Any:
    """Gram matrix, after a check of every entry against the truth and against the promise of its precision."""
    gram = _core.gram(vectors, precision)
    assert gram.finite
    assert gram.precision == precision
    truth = {(i, j): exact_dot(vectors[i], vectors[j]) for i in range(len(vectors)) for j in range(i, len(vectors))}
    for (i, j), expected in truth.items():
        error = abs(entry(gram, i, j) - expected)
        assert error <= bound(gram, i, j), (i, j, float(error))
        assert gram.hi[i, j] == gram.hi[j, i]
        assert gram.lo[i, j] == gram.lo[j, i]
        squared_norms = truth[i, i] * truth[j, j]
        if precision == "compensated":
            assert error**2 <= (40 * U**2) ** 2 * squared_norms
        if precision == "exact":
            assert error <= 4 * U**2 * abs(expected)
        # A bound that is far from sharp would be rigorous and of no use.
        promised = {"fast": 64 * U, "compensated": 40 * U**2, "exact": 4 * U**2}[precision]
        assert bound(gram, i, j) ** 2 <= promised**2 * squared_norms * Fraction(101, 100)
    return gram


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", SIZES)
def test_bounds_hold_for_every_size(size: int, precision: str) -> None:
    rng = np.random.default_rng(size)
    x = rng.standard_normal(size)
    check([x, rng.standard_normal(size) + 0.1 * x], precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("pair", list(itertools.product(DTYPES, repeat=2)), ids="-".join)
def test_bounds_hold_for_every_mix_of_types(pair: tuple[str, str], precision: str) -> None:
    rng = np.random.default_rng(1)
    for size in (1, 17, 1025, 8200):
        check([stored(rng.standard_normal(size), dtype) for dtype in pair], precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("k", [1, 3, 5])
def test_more_or_fewer_vectors_than_two(k: int, precision: str) -> None:
    rng = np.random.default_rng(k)
    check([stored(rng.standard_normal(2100), list(DTYPES)[i % 4]) for i in range(k)], precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_sided_sums_stay_in_their_bounds(precision: str) -> None:
    # All rounding errors of one sign: the growth that the bound is about.
    x = np.full(30000, 1.0 + 2.0**-52)
    check([x, np.full(30000, 1.0 / 3.0)], precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_do_not_matter(layout: str, dtype: str, precision: str) -> None:
    rng = np.random.default_rng(2)
    for size in (1, 12, 1020, 9240):
        x, y = (stored(rng.standard_normal(size), dtype) for _ in range(2))
        there = LAYOUTS[layout](x)
        assert np.array_equal(there.ravel(), x)
        gram, plain = _core.gram([there, y], precision), _core.gram([x, y], precision)
        for i, j in ((0, 0), (0, 1), (1, 1)):
            expected = exact_dot(x, y) if (i, j) == (0, 1) else exact_dot([x, y][i], [x, y][i])
            assert abs(entry(gram, i, j) - expected) <= bound(gram, i, j)
        assert np.array_equal(gram.exponents, plain.exponents)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_zero_strides_are_read(precision: str) -> None:
    one = np.broadcast_to(np.float32(0.1), (37, 53))
    rows = np.broadcast_to(np.arange(53.0), (37, 53))
    gram = _core.gram([one, rows], precision)
    expected = exact_dot(one.ravel(), rows.ravel())
    assert abs(entry(gram, 0, 1) - expected) <= bound(gram, 0, 1)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_many_small_segments(precision: str) -> None:
    rng = np.random.default_rng(3)
    sizes = [0, 1, 2, 0, 3, 15, 16, 17, 40, 1024, 9000, 0, *([3] * 200)]
    names = list(DTYPES)
    x = [stored(rng.standard_normal(n), names[i % 4]) for i, n in enumerate(sizes)]
    y = [stored(rng.standard_normal(n), names[i // 2 % 4]) for i, n in enumerate(sizes)]
    check([x, y], precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("x_scale", [5e-324, 1e-310, 1e-300, 1e-160, 1.0, 1e150, 1e300])
@pytest.mark.parametrize("y_scale", [1e-320, 1e-200, 1.0, 1e300])
def test_scales_from_denormal_to_near_overflow(x_scale: float, y_scale: float, precision: str) -> None:
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((2, 700))
    x, y = x * x_scale, y * y_scale
    x[0] += x_scale
    y[0] += y_scale
    check([x, y], precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_range_within_one_vector(precision: str) -> None:
    x = np.array([1e300, 1e-300, 1.0, 1.7e308, 5e-324])
    y = np.array([1e-308, 1e300, 3.0, -1e-320, 1.7e308])
    gram = _core.gram([x, y], precision)
    if precision == "exact":
        # |x||y| is 1e308 times greater than 2^1022 x.y: the least double stands for it, with the right sign.
        assert gram.hi[0, 1] == math.copysign(5e-324, exact_dot(x, y))
    else:
        assert abs(entry(gram, 0, 1) - exact_dot(x, y)) <= bound(gram, 0, 1)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_zero_and_empty_vectors(precision: str) -> None:
    for x, y in ((np.zeros(5), np.arange(5.0)), (np.zeros(0), np.zeros(0)), (np.zeros(3), np.zeros(3))):
        gram = _core.gram([x, y], precision)
        assert gram.finite
        assert entry(gram, 0, 1) == bound(gram, 0, 1) == 0
        assert entry(gram, 0, 0) == 0


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("at", [0, 511, 2049])
def test_not_finite(dtype: str, bad: float, at: int, precision: str) -> None:
    values = np.ones(2050)
    values[at] = bad
    x, other = stored(values, dtype), np.zeros(2050)
    for vectors in ([x, other], [other, x], [x], [other, other, x], [x, stored(np.ones(2050), dtype)]):
        gram = _core.gram(vectors, precision)
        assert not gram.finite
        assert np.isnan(gram.hi).all()
        assert np.isnan(gram.bound).all()
    for y, g in ((x, other), (other, x)):
        assert not _core.angle_gram(y, g).finite


def gen_dot(rng: np.random.Generator, n: int, log2_condition: float) -> tuple[Any, Any]:
    """Vectors whose inner product has about the condition number asked for (Ogita, Rump, Oishi 2005, Algorithm 6.1)."""
    half = n // 2
    exponents = np.rint(rng.random(half) * log2_condition / 2)
    exponents[0], exponents[-1] = np.rint(log2_condition / 2) + 1, 0
    x, y = np.zeros(n), np.zeros(n)
    x[:half] = (2 * rng.random(half) - 1) * 2.0**exponents
    y[:half] = (2 * rng.random(half) - 1) * 2.0**exponents
    for i, e in zip(range(half, n), np.rint(np.linspace(log2_condition / 2, 0, n - half)), strict=True):
        x[i] = (2 * rng.random() - 1) * 2.0**e
        rest = Fraction((2 * rng.random() - 1) * 2.0**e) - exact_dot(x[:i], y[:i])
        y[i] = float(rest / Fraction(x[i]))
    order = rng.permutation(n)
    return x[order], y[order]


@pytest.mark.parametrize("log10_condition", [10, 20, 30, 40, 60, 100])
@pytest.mark.parametrize("seed", range(3))
def test_ill_conditioned_sums(log10_condition: int, seed: int) -> None:
    rng = np.random.default_rng([seed, log10_condition])
    x, y = gen_dot(rng, 120, log10_condition * math.log2(10))
    expected = exact_dot(x, y)
    condition = 2 * exact_dot(np.abs(x), np.abs(y)) / abs(expected)
    assert condition > Fraction(10) ** (log10_condition - 3)
    for precision in PRECISIONS:
        check([x, y], precision)
    gram = _core.angle_gram(x, y)
    assert (entry(gram, 0, 1) > 0) == (expected > 0)
    assert abs(entry(gram, 0, 1)) > bound(gram, 0, 1)


@pytest.mark.parametrize("sign", [-1, 0, 1])
@pytest.mark.parametrize("tiny", [2.0**-20, 2.0**-60, 2.0**-200, 2.0**-900, 2.0**-1060])
@pytest.mark.parametrize("size", [3, 1000, 20000])
def test_sign_of_a_nearly_vanishing_inner_product_is_certified(size: int, tiny: float, sign: int) -> None:
    rng = np.random.default_rng(size)
    half = rng.standard_normal(size // 2)
    y = np.concatenate([half, half, np.ones(size % 2 + 2)])
    g = np.concatenate([half[::-1], -half[::-1], np.zeros(size % 2 + 2)])
    y[: size // 2] = y[size // 2 : 2 * (size // 2)] = half[::-1]  # sums cancel exactly
    y[-1], g[-1] = math.sqrt(tiny) if sign else 0.0, sign * math.sqrt(tiny)
    expected = exact_dot(y, g)
    assert (expected > 0) - (expected < 0) == sign
    gram = _core.angle_gram(y, g)
    found = entry(gram, 0, 1)
    assert abs(found - expected) <= bound(gram, 0, 1)
    assert (found > 0) - (found < 0) == sign
    assert bound(gram, 0, 1) < abs(found) if sign else bound(gram, 0, 1) == 0
    if tiny > 2.0**-30 and sign:
        assert gram.precision == "compensated"
    else:
        assert gram.precision == "exact"


def test_an_inner_product_below_the_least_double_keeps_its_sign() -> None:
    for sign in (-1.0, 1.0):
        gram = _core.angle_gram(np.array([1.0, 0.0, 1e-300]), np.array([0.0, 1.0, sign * 1e-300]))
        assert gram.precision == "exact"
        assert gram.hi[0, 1] == sign * 5e-324


@pytest.mark.parametrize(
    ("angle", "precision"), [(0.7, "fast"), (1.2, "fast"), (1e-3, "compensated"), (1e-9, "compensated")]
)
def test_precision_follows_the_angle(angle: float, precision: str) -> None:
    rng = np.random.default_rng(5)
    y = rng.standard_normal(4000)
    z = rng.standard_normal(4000)
    z -= y * (y @ z) / (y @ y)
    g = math.cos(angle) * y / np.linalg.norm(y) + math.sin(angle) * z / np.linalg.norm(z)
    gram = _core.angle_gram(y, g)
    assert gram.precision == precision
    yy, yg, gg = exact_dot(y, y), exact_dot(y, g), exact_dot(g, g)
    with_digits = 10**80
    sine = Fraction(math.isqrt((yy * gg - yg**2) * with_digits**2 // (yy * gg)), with_digits)
    cosine = Fraction(math.isqrt(yg**2 * with_digits**2 // (yy * gg)), with_digits)
    found_cosine, found_sine = gram.pair[8:10]
    assert abs(Fraction(found_sine) - sine) <= Fraction(1e-12) * sine
    assert abs(Fraction(found_cosine) - cosine) <= Fraction(1e-12) * cosine


def test_a_looser_tolerance_is_met_sooner() -> None:
    rng = np.random.default_rng(6)
    y = rng.standard_normal(4000)
    g = y + 0.05 * rng.standard_normal(4000)
    assert _core.angle_gram(y, g, tolerance=1e-10).precision == "fast"
    assert _core.angle_gram(y, g, tolerance=1e-14).precision == "compensated"


def test_parallel_vectors() -> None:
    # hi + lo of the three numbers leave the determinant uncertain by 4 * 2^-105 of yy gg.
    y = np.random.default_rng(7).standard_normal(1000)
    for factor in (4.0, -0.5):
        cosine, sine = _core.angle_gram(y, factor * y).pair[8:10]
        assert cosine == math.copysign(1.0, factor)
        assert 0.0 <= sine <= 4 * 2.0**-53


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e250])
def test_weighted_inner_products(dtype: str, scale: float) -> None:
    rng = np.random.default_rng(8)
    factor = scale if dtype == "float64" else 1.0
    y, g = factor * rng.standard_normal(3000), rng.standard_normal(3000)
    d = 10.0 ** rng.uniform(-3, 3, 3000)
    y, g, d = stored(y, dtype), stored(g, dtype), stored(d, "float32" if dtype == "float16" else dtype)
    gram = _core.angle_gram(y, g, d)
    ys, gs, ds = ([Fraction(v) for v in doubles(v).tolist()] for v in (y, g, d))
    expected = {
        (0, 0): sum(a * a / w for a, w in zip(ys, ds, strict=True)),
        (0, 1): exact_dot(y, g),
        (1, 1): sum(b * b * w for b, w in zip(gs, ds, strict=True)),
    }
    for (i, j), value in expected.items():
        assert abs(entry(gram, i, j) - value) <= bound(gram, i, j)
        assert bound(gram, i, j) ** 2 <= (40 * U**2) ** 2 * expected[0, 0] * expected[1, 1] or i == j
        assert i != j or bound(gram, i, j) <= 20 * U**2 * value
    flips = sum((a * b) ** 2 for a, b in zip(ys, gs, strict=True)) / expected[0, 0] / expected[1, 1]
    assert gram.sign_flip_variance == pytest.approx(float(flips), rel=1e-12)


def test_weighted_sign_is_certified() -> None:
    y, g = np.array([1.0, 0.0, 1e-100]), np.array([0.0, 1.0, -1e-100])
    d = np.array([3.0, 1e-5, 7.0])
    gram = _core.angle_gram(y, g, d)
    assert gram.precision == "exact"
    assert entry(gram, 0, 1) < -bound(gram, 0, 1)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_diagonal_that_is_not_positive_is_refused(bad: float) -> None:
    d = np.ones(2000)
    d[1500] = bad
    with pytest.raises(ValueError, match=r"positive, finite diagonal base.*element 1500"):
        _core.angle_gram(np.ones(2000), np.ones(2000), d)


def test_weights_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="leave the range"):
        _core.angle_gram(np.array([1.0, 1e200]), np.array([1.0, 1.0]), np.array([1e308, 1e-300]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [3, 1000, 20000])
def test_sign_flip_variance(size: int, dtype: str) -> None:
    rng = np.random.default_rng(9)
    y, g = (stored(rng.standard_normal(size), dtype) for _ in range(2))
    a, b = doubles(y), doubles(g)
    expected = math.fsum((a * b) ** 2) / math.fsum(a * a) / math.fsum(b * b)
    assert _core.angle_gram(y, g).sign_flip_variance == pytest.approx(expected, rel=1e-13)
    assert _core.angle_gram(y, g[::-1].copy()[::-1]).sign_flip_variance == pytest.approx(expected, rel=1e-13)


def test_sign_flip_variance_survives_escalation() -> None:
    y, g = np.array([1e200, 0.0, 1.0, 1e199]), np.array([0.0, 1e-200, 1e-215, -1e-240])
    gram = _core.angle_gram(y, g)
    assert gram.precision != "fast"
    products = [Fraction(a) * Fraction(b) for a, b in zip(y.tolist(), g.tolist(), strict=True)]
    expected = sum(p * p for p in products) / exact_dot(y, y) / exact_dot(g, g)
    assert gram.sign_flip_variance == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [0.0, -0.0, -1.0, math.nan, math.inf, -math.inf])
def test_first_not_positive(bad: float, dtype: str) -> None:
    values = np.full(20000, 0.5)
    assert _core.first_not_positive(stored(values, dtype)) == -1
    for at in (0, 1023, 8192, 19999):
        d = stored(values, dtype)
        d[at] = stored(bad, dtype)[()]
        assert _core.first_not_positive(d) == at
        d[12:][at::5000] = stored(-1.0, dtype)[()]
        assert _core.first_not_positive([d[:5], d[5:5], d[5:]]) == at
        assert _core.first_not_positive(LAYOUTS["box"](d)) == at
    assert _core.first_not_positive(np.zeros(0)) == -1


def test_least_denormal_is_positive() -> None:
    assert _core.first_not_positive(np.array([5e-324, 1.7e308])) == -1


floats = st.floats(allow_nan=False, allow_infinity=False, width=64)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(floats, floats), min_size=1, max_size=40), st.sampled_from(PRECISIONS))
def test_any_finite_vectors(pairs: list[tuple[float, float]], precision: str) -> None:
    x, y = np.array(pairs).T
    gram = _core.gram([x, y], precision)
    assert gram.finite
    for (i, a), (j, b) in (((0, x), (0, x)), ((0, x), (1, y)), ((1, y), (1, y))):
        error, expected = abs(entry(gram, i, j) - exact_dot(a, b)), exact_dot(a, b)
        if precision == "exact" and abs(gram.hi[i, j]) == 5e-324:  # stands for less than a double can hold
            assert (expected > 0) == (gram.hi[i, j] > 0)
            continue
        assert error <= bound(gram, i, j)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(floats, floats), min_size=1, max_size=40))
def test_the_sign_is_never_wrong(pairs: list[tuple[float, float]]) -> None:
    y, g = np.array(pairs).T
    gram = _core.angle_gram(y, g)
    expected = exact_dot(y, g)
    assert (gram.hi[0, 1] > 0) == (expected > 0)
    assert (gram.hi[0, 1] < 0) == (expected < 0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_cutting_into_segments_changes_no_number(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 3000))
    dtype = data.draw(st.sampled_from(list(DTYPES)))
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=6)))
    rng = np.random.default_rng(n)
    x, y = (stored(rng.standard_normal(n), dtype) for _ in range(2))
    gram = _core.gram([np.split(x, cuts), np.split(y, cuts)], "exact")
    whole = _core.gram([x, y], "exact")
    assert np.array_equal(gram.hi, whole.hi)
    assert np.array_equal(gram.lo, whole.lo)


@pytest.mark.parametrize("sizes", [[1], [3, 5], [10_000, 1, 8192, 8193]])
@pytest.mark.parametrize("dtypes", ["float64", "float32", "mixed"])
@pytest.mark.parametrize("case", ["random", "parallel", "small", "zero", "nan"])
def test_all_segments_at_once_are_each_by_itself(sizes: list[int], dtypes: str, case: str) -> None:
    rng = np.random.default_rng(1)
    y = [rng.standard_normal(size).astype("f4" if dtypes == "float32" else "f8") for size in sizes]
    g = [rng.standard_normal(size).astype("f8" if dtypes == "float64" else "f4") for size in sizes]
    if case == "parallel":  # an angle that the first pass does not settle
        g = [(-0.25 * x).astype(z.dtype) for x, z in zip(y, g, strict=True)]
    if case == "small":
        y = [(x * 1e-30).astype(x.dtype) for x in y]
    if case == "zero":
        y[-1][:] = 0
    if case == "nan":
        g[0][0] = np.nan
    tolerances = [1e-13, *(10.0 ** -(12 - i) for i in range(len(sizes)))]
    rows = _core.segment_angle_grams(y, g, tolerances, [0.0] * len(tolerances))
    parts = [(y, g), *(([a], [b]) for a, b in zip(y, g, strict=True))]
    for row, (a, b), tolerance in zip(rows, parts, tolerances, strict=True):
        gram = _core.angle_gram(a, b, None, tolerance)
        products, exponents_and_angle, finite = gram.pair[:6], gram.pair[6:11], gram.pair[11]
        low = (gram.lo[0, 0], gram.lo[0, 1], gram.lo[1, 1])
        np.testing.assert_array_equal(row, [*products[:3], *low, *products[3:], *exponents_and_angle, finite])


def test_segments_need_a_tolerance_each() -> None:
    x = [np.ones(2), np.ones(3)]
    with pytest.raises(ValueError, match="expected 3 tolerances, one for the whole and one for each segment, got 2"):
        _core.segment_angle_grams(x, x, [1e-13] * 2, [0.0] * 2)
    with pytest.raises(ValueError, match="expected a rounding for each of the 3 tolerances, got 1"):
        _core.segment_angle_grams(x, x, [1e-13] * 3, [0.0])


@pytest.mark.parametrize("factor", [-0.1, -1e-30, 0.3])
def test_an_angle_below_the_rounding_floor_needs_no_second_pass(factor: float) -> None:
    rng = np.random.default_rng(3)
    y = rng.standard_normal(20_000).astype("f4")
    g = (factor * y).astype("f4")
    exact = _core.angle_gram(y, g)
    assert exact.precision == "compensated"
    norm = float(np.linalg.norm(g.astype("f8")))
    for floor in (2e-6, 1e-4):
        rounding = (floor * norm) ** 2
        gram = _core.angle_gram(y, g, None, 1e-10, rounding)
        assert gram.precision == "fast"
        assert abs(gram.pair[9] - exact.pair[9]) <= 0.1 * floor
        rows = _core.segment_angle_grams([y], [g], [1e-10, 1e-10], [rounding, 0.0])
        assert rows[0, 12] == gram.pair[9]
        assert rows[1, 12] == exact.pair[9]
    assert _core.angle_gram(y, g, None, 1e-10, (1e-9 * norm) ** 2).precision == "compensated"


def test_the_sign_is_certified_whatever_the_rounding() -> None:
    y, g = np.array([1.0, 1e-20]), np.array([0.0, -1.0])
    gram = _core.angle_gram(y, g, None, 1e-10, 1e30)
    assert gram.hi[0, 1] + gram.bound[0, 1] < 0


# A pair with another one, all segments in one pass -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("sizes", [(1,), (3, 1, 17), (40_000, 5, 8193), (1024, 100_000)])
def test_products_of_two_pairs_are_in_their_bounds(dtype: str, sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(sizes))
    four = [[stored(rng.standard_normal(n), dtype) for n in sizes] for _ in range(4)]
    four[2][0] = stored(doubles(four[0][0]) * (1 + 1e-9), dtype)  # nearly the same vectors
    found = _core.segment_cross_products(*four)
    parts = [four, *([[v[i]] for v in four] for i in range(len(sizes)))]
    for numbers, (y, g, y0, g0) in zip(found, parts, strict=True):
        for (hi, lo, limit), (a, b) in zip(numbers, ((y, y0), (y, g0), (g, y0), (g, g0)), strict=True):
            error = abs(Fraction(hi) + Fraction(lo) - exact_dot(a, b))
            assert error <= Fraction(limit)
            norms = math.sqrt(float(exact_dot(a, a))) * math.sqrt(float(exact_dot(b, b)))
            assert limit <= 40 * float(U) ** 2 * norms
            assert hi == hi + lo


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_products_of_two_pairs_for_any_threads_and_layout(threads: int) -> None:
    rng = np.random.default_rng(1)
    four = [[rng.standard_normal((500, 300)), rng.standard_normal(70_001)] for _ in range(4)]
    expected = _core.segment_cross_products(*four)
    before = _core.get_num_threads()
    try:
        _core.set_num_threads(threads)
        np.testing.assert_array_equal(_core.segment_cross_products(*four), expected)
    finally:
        _core.set_num_threads(before)
    mixed = [[v[0].T.copy().T, v[1].astype(np.float32)] if i % 2 else v for i, v in enumerate(four)]
    for numbers, (y, g, y0, g0) in zip(_core.segment_cross_products(*mixed)[1:], zip(*mixed, strict=True), strict=True):
        for (hi, lo, limit), (a, b) in zip(numbers, ((y, y0), (y, g0), (g, y0), (g, g0)), strict=True):
            assert abs(Fraction(hi) + Fraction(lo) - exact_dot(a, b)) <= Fraction(limit)


@pytest.mark.parametrize("odd", [0.0, np.nan, np.inf, 1e200, 1e-200])
def test_products_of_two_pairs_out_of_range_are_left_to_the_scaled_pass(odd: float) -> None:
    four = [[np.ones(4), np.ones(3)] for _ in range(4)]
    four[3][0] = np.full(4, odd)
    found = _core.segment_cross_products(*four)
    assert np.isnan(found[1]).all()
    assert not np.isnan(found[2]).any()
    assert np.isnan(found[0]).all() == (odd != 0.0 and not 1e-210 < odd < 1e-190)


def test_a_compensated_first_pass_over_segments() -> None:
    rng = np.random.default_rng(2)
    y = [rng.standard_normal(n) for n in (9, 30_000)]
    g = [-v + 1e-7 * rng.standard_normal(v.size) for v in y]
    rows = _core.segment_angle_grams(y, g, [0.0] * 3, [0.0] * 3, "compensated")
    for row, (a, b) in zip(rows, ((y, g), (y[0], g[0]), (y[1], g[1])), strict=True):
        gram = _core.gram([a, b], "compensated")
        np.testing.assert_array_equal(row[:3], gram.hi.ravel()[[0, 1, 3]])
        np.testing.assert_array_equal(row[3:6], gram.lo.ravel()[[0, 1, 3]])
        np.testing.assert_array_equal(row[6:9], gram.bound.ravel()[[0, 1, 3]])
        assert row[13] == pytest.approx(np.sum((doubles(a) * doubles(b)) ** 2) / row[0] / row[2], rel=1e-12)
    with pytest.raises(ValueError, match="fast or a compensated"):
        _core.segment_angle_grams(y, g, [0.0] * 3, [0.0] * 3, "exact")
