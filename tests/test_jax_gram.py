"""Inner products inside JAX programs: against exact rational arithmetic, within the bound that is promised."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402
import ml_dtypes  # noqa: E402

from steepest import jax_gram  # noqa: E402

NARROW = [np.float32, np.float16, ml_dtypes.bfloat16]


def gram(y, g, working="float32", params=None):
    """The columns by name, from a compiled program; y and g are arrays or lists of arrays."""
    ys, gs = ([x] if isinstance(x, np.ndarray) else x for x in (y, g))
    compiled = jax.jit(lambda *x: jax_gram.pair_gram(*x, np.dtype(working)))
    floats, integers = compiled(
        [jnp.asarray(x) for x in ys], [jnp.asarray(x) for x in gs], None if params is None else [jnp.asarray(params)]
    )
    return {
        **dict(zip(jax_gram.FLOATS, map(float, floats), strict=True)),
        **dict(zip(jax_gram.INTEGERS, map(int, integers), strict=True)),
    }


def exact(a, b):
    return sum((Fraction(float(i)) * Fraction(float(j)) for i, j in zip(a, b, strict=True)), Fraction(0))


def check(y, g, working="float32"):
    found = gram(y, g, working)
    e, f = Fraction(2) ** found["y_exponent"], Fraction(2) ** found["g_exponent"]
    yy, yg, gg = exact(y, y) / e**2, exact(y, g) / (e * f), exact(g, g) / f**2
    bound = jax_gram.error_bound(len(y), 1, working)
    # |yg - found| <= bound |y||g|, squared, so that all of it is rational
    for name, value, square in (("yy", yy, yy * yy), ("yg", yg, yy * gg), ("gg", gg, gg * gg)):
        error = Fraction(found[name]) + Fraction(found[name + "_lo"]) - value
        assert error**2 <= Fraction(bound) ** 2 * square, (name, float(error), bound, math.sqrt(square))
    return found, (yy, yg, gg)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("n", [1, 2, 3, 31, 32, 33, 1023, 1024, 1025, 40_000])
def test_products_are_within_the_bound(dtype, n):
    rng = np.random.default_rng(n)
    check(rng.standard_normal(n).astype(dtype), rng.standard_normal(n).astype(dtype))


@pytest.mark.parametrize("dtype", [np.float64, *NARROW])
@pytest.mark.parametrize("n", [1, 3, 33, 3000])
def test_products_in_float64(x64, dtype, n):
    rng = np.random.default_rng(n)
    check(rng.standard_normal(n).astype(dtype), rng.standard_normal(n).astype(dtype), "float64")


@pytest.mark.parametrize("n", [4, 100, 10_000])
def test_cancelling_products(n):
    """The halves of y.g cancel: exactly, and but for one element."""
    rng = np.random.default_rng(n)
    a, b = rng.standard_normal((2, n)).astype(np.float32)
    y, g = np.concatenate([a, b]), np.concatenate([b, -a])
    _, (_, yg, _) = check(y, g)
    assert yg == 0
    y[0], g[0] = 1.0, np.nextafter(g[0], np.float32(9), dtype=np.float32)
    check(y, g)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.floats(width=32, allow_nan=False, allow_infinity=False)] * 2),
        min_size=3,
        max_size=3,  # one shape is compiled once
    )
)
@example([(1e-45, 3e38), (1e-45, -3e38), (0.0, 1e-45)])
@example([(1.0, 1.0), (2.0**-12 + 2.0**-23, 1 - 2.0**-24), (1 + 2.0**-12, -1.0)])
def test_any_numbers(pairs):
    y, g = np.array(pairs, np.float32).T
    check(y.copy(), g.copy())


def test_the_ends_of_the_range():
    tiny, huge = np.float32(1e-45), np.finfo(np.float32).max
    for y, g in (
        ([tiny] * 5, [huge] * 5),
        ([tiny, 3 * tiny, -2 * tiny], [1.0, 1.0, 2.0]),
        ([huge, -huge], [huge, huge]),
    ):
        found, (yy, _, _) = check(np.array(y, np.float32), np.array(g, np.float32))
        assert found["yy"] == pytest.approx(float(yy), rel=1e-6)
    assert gram(np.array([tiny]), np.array([huge]))["y_exponent"] == -149 - jax_gram.TOP


def test_zero_and_nonfinite():
    zero, one = np.zeros(40, np.float32), np.ones(40, np.float32)
    found = gram(zero, one)
    assert (found["yy"], found["yg"], found["flip"]) == (0.0, 0.0, 0.0)
    assert found["gg"] == 40 * 2.0 ** (2 * jax_gram.TOP)
    for bad in (np.nan, np.inf, -np.inf):
        y = one.copy()
        y[39] = bad
        found = gram(y, one)
        assert found["y_exponent"] == jax_gram.NONFINITE
        assert math.isnan(found["yy"])
        assert math.isnan(found["yg"])
        assert found["gg"] > 0


def test_several_arrays_of_mixed_types_are_one_vector():
    rng = np.random.default_rng(5)
    ys = [rng.standard_normal(70).astype(np.float32), (100 * rng.standard_normal(9)).astype(np.float16)]
    gs = [rng.standard_normal(70).astype(ml_dtypes.bfloat16), rng.standard_normal(9).astype(np.float32)]
    found = gram(ys, gs)
    y, g = (np.concatenate([x.astype(np.float64) for x in xs]) for xs in (ys, gs))
    unit = 2.0 ** (found["y_exponent"] + found["g_exponent"])
    assert (found["yg"] + found["yg_lo"]) * unit == pytest.approx(y @ g, rel=1e-12)
    assert found["dtype"] == 3
    assert found["flip"] * 2.0 ** (4 * jax_gram.TOP) * unit**2 == pytest.approx(((y * g) ** 2).sum(), rel=1e-5)


@pytest.mark.parametrize("dtype", NARROW)
def test_spacing(dtype):
    rng = np.random.default_rng(6)
    x = (rng.standard_normal(500) * 2.0 ** rng.integers(-12, 12, 500)).astype(dtype)
    x[:3] = 0
    if dtype is ml_dtypes.bfloat16:
        spacing = np.spacing(np.abs(x).astype(np.float32)).astype(np.float64) * 2.0**16
    else:
        spacing = np.spacing(np.abs(x)).astype(np.float64)
    found = gram(x, x, params=x)
    total = found["spacing"] * 2.0 ** (2 * found["spacing_exponent"])
    assert total == pytest.approx((spacing**2).sum(), rel=1e-5)


def test_the_bound_grows_as_the_square_of_log_n():
    bounds = [jax_gram.error_bound(10**k, 1, "float32") for k in range(10)]
    assert bounds == sorted(bounds)
    assert bounds[9] < 1e-9
    assert bounds[9] < 40 * bounds[1]  # (9 / 1)^2 = 81
