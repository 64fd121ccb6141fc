"""Products, dense assembly, projections and complement bases of the core against 100-digit arithmetic."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_cases import DTYPES, LAYOUTS, doubles, name_of, stored
from oracles import exact, mp
from steepest import _core

U = 2.0**-53
# Half the spacing of numbers near 1, and the least positive number.
ROUNDING = {"float64": (2.0**-53, 5e-324), "float32": (2.0**-24, 2.0**-149)}
ROUNDING |= {"float16": (2.0**-11, 2.0**-24), "bfloat16": (2.0**-8, 2.0**-133)}


def no_columns(scalar: float = 1.0, exponent: int = 0) -> Any:
    return _core.Operator([], [], [], np.zeros((0, 0)), exponent, scalar)


class Case:
    """An operator 2^exponent (base + W K W^T) with its oracle."""

    def __init__(
        self,
        columns: Sequence[Any],
        core: Any,
        exponents: Sequence[int] | None = None,
        through: Sequence[bool] | None = None,
        scalar: float = 1.0,
        diagonal: Any = None,
        inverse: bool = False,
        exponent: int = 0,
    ) -> None:
        k = len(columns)
        exponents = [0] * k if exponents is None else exponents
        through = [False] * k if through is None else through
        self.core, self.exponent = np.asarray(core, float).reshape(k, k), exponent
        self.operator = _core.Operator(
            list(columns), exponents, through, self.core, exponent, scalar, diagonal, inverse
        )
        if diagonal is not None:
            d = exact(doubles(diagonal))
            self.base = [1 / v for v in d] if inverse else d
        else:
            self.base = [mp.mpf(scalar)] * (doubles(columns[0]).size if k else 0)
        self.w = []
        for column, e, goes in zip(columns, exponents, through, strict=True):
            w = [mp.ldexp(v, -e) for v in exact(doubles(column))]
            self.w.append([b * v for b, v in zip(self.base, w, strict=True)] if goes else w)
        narrow = any(name_of(p) != "float64" for c in columns for p in (c if isinstance(c, list) else [c]))
        # Errors of the inner products with a column, in roundings of their terms. Typed loops for narrow types sum in
        # double, 512 terms at most one after the other; a column times the base is rounded once, before twofold sums.
        self.roundings = [600 if narrow else int(goes) for goes in through]

    def check(self, x: Any, out: Any, source: Any = None) -> None:
        """out against the operator applied to x: rounding of the result, and of each of its terms."""
        xs, found = exact(doubles(x)), doubles(out)
        sources = xs if source is None else exact(doubles(source))
        dots = [mp.fdot(zip(w, xs, strict=True)) for w in self.w]
        sizes = [mp.fsum(abs(a * b) for a, b in zip(w, xs, strict=True)) for w in self.w]
        k = len(self.w)
        c = [mp.fsum(mp.mpf(float(self.core[i, j])) * dots[j] for j in range(k)) for i in range(k)]
        errors = [U * roundings * size for roundings, size in zip(self.roundings, sizes, strict=True)]
        slack = [mp.fsum(abs(float(self.core[i, j])) * errors[j] for j in range(k)) for i in range(k)]
        relative, least = ROUNDING[name_of(out)]
        scale = mp.mpf(2) ** self.exponent
        for i, value in enumerate(found.tolist()):
            terms = [self.base[i] * sources[i], *(w[i] * a for w, a in zip(self.w, c, strict=True))]
            expected = scale * mp.fsum(terms)
            size = mp.fsum(abs(t) for t in terms)
            allowed = relative * abs(expected) + least + 16 * U * scale * size
            allowed += scale * mp.fsum(abs(w[i]) * s for w, s in zip(self.w, slack, strict=True))
            assert abs(mp.mpf(value) - expected) <= allowed, (i, value, expected)


def symmetric(rng: np.random.Generator, k: int) -> Any:
    core = rng.standard_normal((k, k))
    return core + core.T


@pytest.mark.parametrize("base", ["scalar", "diagonal", "inverse"])
@pytest.mark.parametrize("k", range(6))
@pytest.mark.parametrize("size", [1, 2, 3, 15, 17, 200, 1025])
def test_product(size: int, k: int, base: str) -> None:
    rng = np.random.default_rng([size, k])
    columns = list(rng.standard_normal((k, size)))
    d = None if base == "scalar" else 10.0 ** rng.uniform(-2, 2, size)
    if k == 0 and d is None:
        x = rng.standard_normal(size)
        out = np.empty(size)
        no_columns(2.5).apply(x, out)
        assert np.array_equal(out, 2.5 * x)
        return
    through = [bool(j % 2) for j in range(k)]
    case = Case(columns, symmetric(rng, k), None, through, 1.0 if d is not None else -1.7, d, base == "inverse")
    x, out = rng.standard_normal(size), np.full(size, np.nan)
    case.operator.apply(x, out)
    case.check(x, out)


@pytest.mark.parametrize("types", list(itertools.product(DTYPES, repeat=2)), ids="-".join)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_every_type_in_and_out(types: tuple[str, str], k: int) -> None:
    rng = np.random.default_rng(k)
    columns = [stored(rng.standard_normal(150), types[0]) for _ in range(k)]
    case = Case(columns, symmetric(rng, k) / 10)
    for x_type in types:
        x, out = stored(rng.standard_normal(150), x_type), stored(np.zeros(150), types[1])
        case.operator.apply(x, out)
        case.check(x, out)


def test_every_type_at_once() -> None:
    rng = np.random.default_rng(0)
    a, b, c, d = DTYPES
    parts = [17, 1, 0, 600, 40]

    def mixed(*names: str) -> Any:
        return [stored(rng.uniform(0.5, 1, n), names[i % len(names)]) for i, n in enumerate(parts)]

    case = Case(
        [mixed(a, b), mixed(c), mixed(d, a, b)],
        symmetric(rng, 3),
        None,
        [False, True, True],
        1.0,
        mixed(b, d),
    )
    x, out = mixed(d, c, b, a), mixed(b)
    case.operator.apply(x, out)
    joined = np.concatenate(out)
    case.check(x, joined)


@pytest.mark.parametrize("m", [1, 2, 3, 16, 17])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_several_right_hand_sides(dtype: str, order: Any, m: int) -> None:
    rng = np.random.default_rng(m)
    case = Case([stored(rng.standard_normal(70), dtype) for _ in range(2)], symmetric(rng, 2) / 10)
    x = np.array(stored(rng.standard_normal((70, m)), dtype), order=order)
    out = np.zeros_like(x)
    case.operator.apply(x, out, columns=True)
    for r in range(0, m, 5):
        case.check(x[:, r], np.ascontiguousarray(out[:, r]))
    one = np.zeros_like(x[:, 0].copy())
    for r in range(m):
        case.operator.apply(x[:, r].copy(), one)
        assert np.array_equal(doubles(one), doubles(np.ascontiguousarray(out[:, r])))
    # Other axes before the last, and the operator's vectors with axes of their own.
    three = np.zeros_like(x).reshape(7, 10, m)
    case.operator.apply(x.reshape(7, 10, m), three, columns=True)
    assert np.array_equal(three.reshape(70, m), out)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_of_every_argument(dtype: str, layout: str) -> None:
    rng = np.random.default_rng(1)
    w, v, x = (stored(rng.standard_normal(2060), dtype) for _ in range(3))
    core = symmetric(rng, 2) / 100
    expected, tiled = np.zeros_like(x), np.zeros_like(x)
    case = Case([w, v], core)
    case.operator.apply(x, expected)
    case.check(x, expected)
    place = LAYOUTS[layout]
    _core.Operator([place(w), v], [0, 0], [False] * 2, core).apply(x, tiled)
    case.check(x, tiled)
    case.operator.apply(place(x), tiled)
    case.check(x, tiled)
    if layout != "read-only":
        out = place(np.zeros_like(x))
        case.operator.apply(x, out)
        case.check(x, out.ravel())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_in_place(dtype: str, k: int) -> None:
    rng = np.random.default_rng(2)
    columns = [stored(rng.standard_normal(9000), dtype) for _ in range(k)]
    operator = _core.Operator(columns, [0] * k, [False] * k, symmetric(rng, k) / 1000, 0, 0.5)
    x = stored(rng.standard_normal(9000), dtype)
    out = np.zeros_like(x)
    operator.apply(x, out)
    inside = x.copy()
    operator.apply(inside, inside)
    assert np.array_equal(inside, out)
    parts = [x[:100].copy(), x[100:].copy()]
    cut = [[c[:100], c[100:]] for c in columns]
    pieces = _core.Operator(cut, [0] * k, [False] * k, symmetric(rng, k) * 0, 0, 0.5)
    pieces.apply(parts, parts)
    whole = np.zeros_like(x)
    no_columns(0.5).apply(x, whole)
    assert np.array_equal(doubles(parts), doubles(whole))


def test_overlap_is_refused() -> None:
    memory = np.ones(40)
    w = memory[:10]
    operator = _core.Operator([w, np.ones(10)], [0, 0], [False] * 2, np.eye(2))
    x = np.ones(12)
    for out in (memory[:10], memory[9:19], memory[::2][:10], memory[:10][::-1]):
        with pytest.raises(ValueError, match="shares no memory with the inputs"):
            operator.apply(x[:10].copy(), out)
    for out, inside in ((x[1:11], x[:10]), (x[:10][::-1], x[:10])):
        with pytest.raises(ValueError, match="shares no memory with the inputs"):
            operator.apply(inside, out)
        with pytest.raises(ValueError, match="shares no memory with the inputs"):
            operator.apply(np.ones(10), out, source=inside)
    diagonal = _core.Operator([], [], [], np.zeros((0, 0)), diagonal=w)
    with pytest.raises(ValueError, match="shares no memory with the inputs"):
        diagonal.apply(np.ones(10), w)
    with pytest.raises(ValueError, match="shares no memory with the inputs"):
        operator.assemble(np.lib.stride_tricks.as_strided(memory, (10, 10), (8, 8), writeable=True))


def test_in_place_takes_the_same_arrays_in_the_same_order() -> None:
    a, b = np.ones(5), np.full(5, 2.0)
    with pytest.raises(ValueError, match="shares no memory with the inputs"):
        no_columns().apply([a, b], [b, a])
    with pytest.raises(ValueError, match="arrays of out to be apart"):
        no_columns().apply([a.copy(), b], [a, a])
    with pytest.raises(ValueError, match="arrays of out to be apart"):
        no_columns().apply([a.copy(), b], [a, a[::-1]])
    no_columns(2.0).apply([a, b], [a, b])
    assert np.array_equal(np.concatenate([a, b]), [2.0] * 5 + [4.0] * 5)


def test_interleaved_views_are_apart() -> None:
    memory = np.arange(30.0)
    x, w, out = memory[0::3], memory[1::3], memory[2::3]
    expected = x + w * (w @ x)
    _core.Operator([w], [0], [False], np.eye(1)).apply(x, out)
    np.testing.assert_allclose(out, expected, rtol=1e-15)
    both = np.ones((6, 4))
    no_columns(3.0).apply(both[:, :2], both[:, 2:], columns=True)
    assert np.array_equal(both, [[1, 1, 3, 3]] * 6)


def test_source_stands_in_for_the_base_term() -> None:
    rng = np.random.default_rng(3)
    columns = list(rng.standard_normal((2, 50)))
    case = Case(columns, symmetric(rng, 2))
    x, source, out = rng.standard_normal(50), rng.standard_normal(50), np.empty(50)
    case.operator.apply(x, out, source=source)
    case.check(x, out, source)
    for inside in (x.copy(), source.copy()):
        changed = inside.copy()
        pair = (changed, source) if np.array_equal(inside, x) else (x, changed)
        case.operator.apply(pair[0], changed, source=pair[1])
        assert np.array_equal(changed, out)


@pytest.mark.parametrize("x_scale", [1e-310, 1e-300, 1.0, 1e300])
@pytest.mark.parametrize("source_scale", [1e-300, 1.0, 1e300])
def test_source_and_x_of_other_magnitudes(x_scale: float, source_scale: float) -> None:
    rng = np.random.default_rng(4)
    columns = list(rng.standard_normal((2, 50)) / 10)
    case = Case(columns, symmetric(rng, 2))
    x, source, out = x_scale * rng.standard_normal(50), source_scale * rng.standard_normal(50), np.empty(50)
    case.operator.apply(x, out, source=source)
    case.check(x, out, source)


@pytest.mark.parametrize("w_log", [-300, -250, -100, 0, 100, 250, 300])
@pytest.mark.parametrize("x_log", [-300, -250, 0, 250, 300])
@pytest.mark.parametrize("spaced", [False, True])
def test_extreme_scales(w_log: int, x_log: int, spaced: bool) -> None:
    rng = np.random.default_rng(5)
    raw = [10.0**w_log * rng.standard_normal(40) for _ in range(2)]
    exponents = [math.frexp(float(np.abs(w).max()))[1] for w in raw]
    columns = [LAYOUTS["spaced"](w) for w in raw] if spaced else raw
    case = Case(columns, symmetric(rng, 2), exponents, scalar=0.3)
    x, out = 10.0**x_log * rng.standard_normal((40, 3)), np.empty((40, 3))
    x[:, 1] *= 10.0 ** (-x_log / 2)
    case.operator.apply(x, out, columns=True)
    for r in range(3):
        case.check(np.ascontiguousarray(x[:, r]), np.ascontiguousarray(out[:, r]))


@pytest.mark.parametrize("exponent", [-2000, -700, -301, -300, -5, 0, 5, 300, 301, 700, 2000])
def test_exponent_of_the_operator(exponent: int) -> None:
    rng = np.random.default_rng(6)
    case = Case(list(rng.standard_normal((2, 30))), symmetric(rng, 2), exponent=exponent, scalar=1.4)
    shift = max(-1020, min(1020, -exponent))
    x, out = rng.standard_normal(30) * 2.0**shift, np.empty(30)
    if abs(exponent + shift) < 1000:
        case.operator.apply(x, out)
        case.check(x, out)
    np.testing.assert_array_equal(np.zeros(30), _apply(case.operator, np.zeros(30)))


def _apply(operator: Any, x: Any) -> Any:
    out = np.empty_like(x)
    operator.apply(x, out)
    return out


@pytest.mark.parametrize("columns", [1, 2])
def test_large_scalar_with_a_small_exponent(columns: int) -> None:
    # Both ways of the same product: scalar * x alone would overflow.
    rng = np.random.default_rng(7)
    w = list(rng.standard_normal((columns, 20)) * 1e-30)
    case = Case(w, 1e180 * np.eye(columns), exponent=-300, scalar=1e200)
    x = 1e150 * rng.uniform(1, 2, 20)
    case.check(x, _apply(case.operator, x))


def test_results_out_of_range_are_infinite_or_zero() -> None:
    w = np.array([1.0, 2.0])
    operator = _core.Operator([w], [0], [False], np.eye(1), 4000)
    assert np.isinf(_apply(operator, np.array([3.0, 1.0]))).all()
    assert np.array_equal(_apply(_core.Operator([w], [0], [False], np.eye(1), -4000), np.array([3.0, 1.0])), [0, 0])


def test_not_finite_numbers_stay_in_their_column() -> None:
    rng = np.random.default_rng(8)
    operator = _core.Operator(list(rng.standard_normal((2, 30))), [0, 0], [False] * 2, np.eye(2))
    x = rng.standard_normal((30, 3))
    clean = np.empty((30, 3))
    operator.apply(x, clean, columns=True)
    for bad in (math.nan, math.inf):
        x[4, 1] = bad
        out = np.empty((30, 3))
        operator.apply(x, out, columns=True)
        assert not np.isfinite(out[:, 1]).any()
        assert np.array_equal(out[:, ::2], clean[:, ::2])


def midpoints(dtype: str) -> tuple[Any, Any, Any]:
    """Every finite non-negative number of a type, the middle to the next, and the next (infinity after the last)."""
    bits = np.arange(0x7C00 if dtype == "float16" else 0x7F80, dtype=np.uint16)
    kind = np.float16 if dtype == "float16" else ml_dtypes.bfloat16
    values = bits.view(kind).astype(np.float64)
    after = np.append(values[1:], 2.0 * values[-1] - values[-2])  # where infinity would lie on the same grid
    return bits, (values + after) / 2, bits + 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_narrow_results_round_to_nearest_even(dtype: str, sign: float) -> None:
    bits, middle, after = midpoints(dtype)
    sign_bit = 0x8000 if sign < 0 else 0
    for x, expected in (
        (np.nextafter(middle, 0), bits),
        (middle, np.where(bits % 2 == 0, bits, after)),
        (np.nextafter(middle, np.inf), after),
        (np.append(middle[-1:] * 2, [np.inf, 1e300]), np.full(3, after[-1])),
        (np.array([5e-324, 1e-300, 0.0]), np.zeros(3, np.uint16)),
    ):
        out = np.zeros(x.size, np.float16 if dtype == "float16" else np.uint16)
        no_columns().apply(sign * x, out)
        np.testing.assert_array_equal(out.view(np.uint16), expected.astype(np.uint16) | sign_bit)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_narrow_nan_is_nan(dtype: str) -> None:
    nans = np.array([0x7FF8000000000000, 0xFFF8000000000000, 0x7FF0000000000001, 0x7FFFFFFFFFFFFFFF], np.uint64)
    out = stored(np.zeros(4), dtype)
    no_columns().apply(nans.view(np.float64), out)
    assert np.isnan(doubles(out)).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_narrow_number_is_read_exactly(dtype: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    x = bits.view(np.float16) if dtype == "float16" else bits
    out = np.empty(x.size)
    no_columns().apply(x, out)
    np.testing.assert_array_equal(out, doubles(x))
    assert np.array_equal(np.signbit(out), bits >> 15)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(width=64), min_size=1, max_size=20))
def test_float32_rounds_as_numpy_does(values: list[float]) -> None:
    x, out = np.array(values), np.empty(len(values), np.float32)
    no_columns().apply(x, out)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(out, x.astype(np.float32))


@pytest.mark.parametrize("base", ["scalar", "diagonal", "inverse"])
@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("n", [1, 7, 130, 1100])
def test_assembly(n: int, k: int, base: str) -> None:
    rng = np.random.default_rng([n, k])
    columns = [stored(rng.standard_normal(n), list(DTYPES)[j]) for j in range(k)]
    d = None if base == "scalar" else rng.uniform(0.5, 2, n)
    core, through = symmetric(rng, k), [j % 2 == 1 for j in range(k)]
    exponent, scalar = (3, 0.7) if d is None else (0, 1.0)
    operator = _core.Operator(columns, [1] * k, through, core, exponent, scalar, d, base == "inverse")
    out = np.full((n, n), np.nan)
    operator.assemble(out)
    assert np.array_equal(out, out.T)
    diagonal = np.full(n, scalar) if d is None else 1 / d if base == "inverse" else d
    w = np.array([doubles(c) / 2 * (diagonal if t else 1) for c, t in zip(columns, through, strict=True)]).T
    size = np.abs(w) @ np.abs(core) @ np.abs(w.T) + np.diag(diagonal)
    assert (np.abs(out - 2.0**exponent * (np.diag(diagonal) + w @ core @ w.T)) <= 40 * U * 2.0**exponent * size).all()
    if n < 200:
        x = np.eye(n)
        product = np.empty((n, n))
        operator.apply(x, product, columns=True)
        assert (np.abs(out - product) <= 40 * U * 2.0**exponent * size).all()
    single = np.empty((n, n), np.float32)
    operator.assemble(single)
    assert np.array_equal(single, out.astype(np.float32))
    assert np.array_equal(single, single.T)


def span_oracle(vectors: list[Any], x: Any) -> tuple[list[Any], list[Any]]:
    """Projection onto the span and the remainder, by orthogonalisation in multiple precision."""
    basis: list[list[Any]] = []
    for vector in vectors:
        v = exact(doubles(vector))
        size = mp.fdot(zip(v, v, strict=True))
        for q in basis:
            c = mp.fdot(zip(q, v, strict=True)) / mp.fdot(zip(q, q, strict=True))
            v = [a - c * b for a, b in zip(v, q, strict=True)]
        if mp.fdot(zip(v, v, strict=True)) > size * mp.mpf(10) ** -60:
            basis.append(v)
    xs = exact(doubles(x))
    rest = list(xs)
    for q in basis:
        c = mp.fdot(zip(q, rest, strict=True)) / mp.fdot(zip(q, q, strict=True))
        rest = [a - c * b for a, b in zip(rest, q, strict=True)]
    return [a - b for a, b in zip(xs, rest, strict=True)], rest


def norm(values: Sequence[Any]) -> Any:
    return mp.sqrt(mp.fsum(mp.mpf(v) ** 2 for v in values))


def check_projection(vectors: list[Any], x: Any, tolerance: float) -> None:
    on_span, rest = span_oracle(vectors, x)
    for onto, expected in ((True, on_span), (False, rest)):
        out = np.zeros_like(x)
        _core.project(vectors, x, out, onto=onto)
        error = norm([a - b for a, b in zip(exact(doubles(out)), expected, strict=True)])
        relative, least = ROUNDING[name_of(x)]
        assert error <= (tolerance + relative) * norm(expected) + least * math.sqrt(x.size), (onto, error)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [5, 64, 1300])
def test_projection(size: int, k: int, dtype: str) -> None:
    rng = np.random.default_rng([size, k])
    vectors = [stored(rng.standard_normal(size), dtype) for _ in range(k)]
    if size == 5 == k:
        vectors = vectors[:4]
    check_projection(vectors, stored(rng.standard_normal(size), dtype), 4 * U)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("angle", [1e-3, 1e-9, 1e-14])
def test_small_remainders_keep_their_digits(angle: float, dtype: str, k: int) -> None:
    rng = np.random.default_rng(k)
    vectors = [stored(rng.standard_normal(300), dtype) for _ in range(k)]
    x = sum(doubles(v) for v in vectors) + angle * rng.standard_normal(300)
    check_projection(vectors, stored(x, dtype), 8 * U)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("angle", [1e-3, 1e-6, 1e-9])
def test_projection_on_nearly_dependent_vectors(angle: float, k: int) -> None:
    rng = np.random.default_rng(k)
    first = rng.standard_normal(100)
    vectors = [first, *(first * (j + 1) + angle * rng.standard_normal(100) for j in range(1, k))]
    check_projection(vectors, rng.standard_normal(100), 1e-11)


def test_projection_on_dependent_vectors() -> None:
    rng = np.random.default_rng(9)
    a, b, x = rng.standard_normal((3, 100))
    for vectors in ([a, 2.0 * a], [a, b, a], [a, np.zeros(100), b, -4.0 * b], [a, b, 0.5 * a, 2.0 * b, a]):
        check_projection(vectors, x, 1e-14)
    for onto, expected in ((True, np.zeros(100)), (False, x)):
        out = np.full(100, np.nan)
        _core.project([np.zeros(100)], x, out, onto=onto)
        assert np.array_equal(out, expected)


@pytest.mark.parametrize("log", [-300, -20, -13, 13, 20, 300])
def test_projection_does_not_depend_on_the_length_of_the_vectors(log: int) -> None:
    rng = np.random.default_rng(10)
    a, b, x = rng.standard_normal((3, 60))
    check_projection([a, b * 10.0**log], x, 8 * U)
    check_projection([a * 10.0**log, b], x * 10.0**log, 8 * U)


@pytest.mark.parametrize("k", [1, 2])
def test_projection_is_idempotent_and_in_place(k: int) -> None:
    rng = np.random.default_rng(11)
    vectors = list(rng.standard_normal((k, 9000)))
    x = rng.standard_normal((9000, 3))
    for onto in (True, False):
        once, twice = np.empty_like(x), np.empty_like(x)
        _core.project(vectors, x, once, onto=onto, columns=True)
        _core.project(vectors, once, twice, onto=onto, columns=True)
        np.testing.assert_allclose(twice, once, rtol=0, atol=1e-15)
        inside = x.copy()
        _core.project(vectors, inside, inside, onto=onto, columns=True)
        assert np.array_equal(inside, once)
        if not onto:
            assert np.abs(np.array(vectors) @ once).max() < 1e-11


@pytest.mark.parametrize("n", [1, 2, 3, 40, 1100])
@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_complement_basis(n: int, sign: float, scale: float) -> None:
    rng = np.random.default_rng(n)
    g = rng.standard_normal(n)
    g[0] = sign * abs(g[0]) if n > 1 else 1.0
    g = g * scale
    basis = _core.Complement(g)
    columns = np.eye(n - 1)[:, : min(n - 1, 50)]
    q = np.empty((n, columns.shape[1]))
    basis.apply(columns, q, columns=True)
    np.testing.assert_allclose(q.T @ q, np.eye(columns.shape[1]), rtol=0, atol=1e-14)
    assert np.abs((g / np.linalg.norm(g / scale) / scale) @ q).max(initial=0.0) < 1e-14
    # Adjointness, and Q^T Q z = z.
    z, x, image, back = rng.standard_normal(n - 1), rng.standard_normal(n), np.empty(n), np.empty(n - 1)
    basis.apply(z, image)
    basis.apply(x, back, transpose=True)
    assert x @ image == pytest.approx(back @ z, rel=1e-12, abs=1e-12)
    basis.apply(image, back, transpose=True)
    np.testing.assert_allclose(back, z, rtol=0, atol=1e-14 * math.sqrt(n))
    basis.apply(g, back, transpose=True)
    assert np.abs(back).max(initial=0.0) <= 1e-15 * scale * n


@pytest.mark.parametrize("first", [1e300, 1e-300, 1.0])
@pytest.mark.parametrize("others", [1e300, 1e-300, 1.0])
def test_complement_transposed_over_the_whole_range(first: float, others: float) -> None:
    g = np.array([1.0, 2.0, 3.0, -1.0])
    basis = _core.Complement(g)
    q, out = np.empty((4, 3)), np.empty(3)
    basis.apply(np.eye(3), q, columns=True)
    x = np.array([first, others, -others, 2 * others])
    basis.apply(x, out, transpose=True)
    top = max(first, others)
    np.testing.assert_allclose(out / top, q.T @ (x / top), rtol=0, atol=1e-15)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_products_are_linear_and_symmetric(data: st.DataObject) -> None:
    n, k = data.draw(st.integers(1, 3000)), data.draw(st.integers(0, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    d = rng.uniform(0.5, 2, n) if data.draw(st.booleans()) else None
    through = [data.draw(st.booleans()) for _ in range(k)]
    columns = list(rng.standard_normal((k, n)) / math.sqrt(n))
    operator = _core.Operator(columns, [0] * k, through, symmetric(rng, k), 0, 1.0, d, data.draw(st.booleans()))
    x, z = rng.standard_normal((2, n))
    ax, az, sum_ = _apply(operator, x), _apply(operator, z), _apply(operator, x - 3 * z)
    size = 100 * U * (np.linalg.norm(x) + np.linalg.norm(z)) ** 2 * (1 + 50 * k)
    assert abs(z @ ax - x @ az) <= size
    assert np.linalg.norm(sum_ - (ax - 3 * az)) <= 10 * size


# Results too large for the caches are written past them --------------------------------------------------------------


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_large_results_at_any_alignment(dtype: str) -> None:
    n = (64 << 20) // (4 * np.dtype(DTYPES[dtype]).itemsize) + 12_345  # two columns, x and out: beyond 64 MiB
    rng = np.random.default_rng(0)
    y, g, x = (stored(rng.standard_normal(n), dtype) for _ in range(3))
    core = np.array([[0.5, 0.1], [0.1, 0.7]])
    operator = _core.Operator([y, g], [0, 0], [False, False], core, 0, 2.0)
    expected = np.empty_like(x)
    operator.apply(x, expected)
    W = np.stack([doubles(y), doubles(g)])
    # BLAS adds up one after the other where it has no better loop, which costs digits at this size; fsum does not.
    coefficients = core @ [math.fsum(w * doubles(x)) for w in W]
    exactly = 2.0 * doubles(x) + coefficients @ W
    relative, least = ROUNDING[dtype]
    size = 2.0 * np.abs(doubles(x)) + np.abs(coefficients) @ np.abs(W)
    assert np.all(np.abs(doubles(expected) - exactly) <= 2 * relative * np.abs(exactly) + 1e-12 * size + least)
    memory = np.zeros(n + 40, x.dtype)
    for offset in (1, 2, 3, 7, 16, 31):
        out = memory[offset : offset + n]
        operator.apply(x, out)
        np.testing.assert_array_equal(out, expected)
        assert not memory[:offset].any()
        assert not memory[offset + n :].any()
        memory[:] = 0
    odd = np.zeros(memory.nbytes + 1, np.uint8)[1:].view(x.dtype)[:n]  # never aligned
    operator.apply(x, odd)
    np.testing.assert_array_equal(odd, expected)


@pytest.mark.parametrize(("dtype", "n"), [("float64", 2901), ("float32", 4100)])
def test_large_dense_matrices_at_any_alignment(dtype: str, n: int) -> None:
    rng = np.random.default_rng(1)
    y, g = (stored(rng.standard_normal(n), dtype) for _ in range(2))
    operator = _core.Operator([y, g], [0, 0], [False, False], np.array([[0.5, 0.1], [0.1, 0.7]]), 0, 2.0)
    W = np.stack([doubles(y), doubles(g)])
    exactly = 2.0 * np.eye(n) + W.T @ np.array([[0.5, 0.1], [0.1, 0.7]]) @ W
    memory = np.empty(n * n + 3, DTYPES[dtype])
    for offset in (0, 3):
        out = memory[offset : offset + n * n].reshape(n, n)
        operator.assemble(out)
        np.testing.assert_allclose(out, exactly, rtol=ROUNDING[dtype][0] * 2, atol=1e-13)
        np.testing.assert_array_equal(out, out.T)
