"""Every argument of the core with what does not belong there: a clear TypeError or ValueError, never a crash."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steepest import _core

N = 6
Call = Callable[[Any], Any]


def good(n: int = N) -> Any:
    return np.linspace(1.0, 2.0, n)


def operator(columns: Any = None, **options: Any) -> Any:
    columns = [good(), np.arange(float(N))] if columns is None else columns
    k = len(columns)
    defaults = {"exponents": [0] * k, "through_base": [False] * k, "core": np.eye(k)}
    return _core.Operator(columns, **{**defaults, **options})


# Every place of a long vector that is read.
READ: dict[str, Call] = {
    "gram": lambda v: _core.gram([good(), v]),
    "gram-first": lambda v: _core.gram([v, good()], "exact"),
    "angle_gram-y": lambda v: _core.angle_gram(v, good()),
    "angle_gram-g": lambda v: _core.angle_gram(good(), v),
    "angle_gram-base": lambda v: _core.angle_gram(good(), good(), v),
    "first_not_positive": _core.first_not_positive,
    "spacing_squares": _core.spacing_squares,
    "segment_angle_grams-y": lambda v: _core.segment_angle_grams(v, good(), [0.1] * 2, [0.0] * 2),
    "segment_angle_grams-g": lambda v: _core.segment_angle_grams(good(), v, [0.1] * 2, [0.0] * 2),
    "Operator-columns": lambda v: operator([good(), v]),
    "Operator-diagonal": lambda v: operator(diagonal=v),
    "apply-x": lambda v: operator().apply(v, good()),
    "apply-source": lambda v: operator().apply(good(), good(), source=v),
    "apply-x-no-columns": lambda v: operator([]).apply(v, good()),
    "project-vectors": lambda v: _core.project([v], good(), good()),
    "project-x": lambda v: _core.project([good()], v, good()),
    "Complement-g": _core.Complement,
    "Complement-z": lambda v: _core.Complement(good()).apply(v, good()),
    "Complement-x": lambda v: _core.Complement(good()).apply(v, good(N - 1), transpose=True),
}
WRITTEN: dict[str, Call] = {
    "apply-out": lambda v: operator().apply(good(), v),
    "apply-out-no-columns": lambda v: operator([]).apply(good(), v),
    "apply-out-source": lambda v: operator().apply(good(), v, source=good()),
    "project-out": lambda v: _core.project([good()], good(), v),
    "Complement-out": lambda v: _core.Complement(good()).apply(good(N - 1), v),
    "Complement-out-transpose": lambda v: _core.Complement(good(N + 1)).apply(good(N + 1), v, transpose=True),
    "assemble-out": lambda v: operator().assemble(v),
}
ALONE = {"first_not_positive", "spacing_squares", "Complement-g"}  # there is nothing to match
OPTIONAL = {"angle_gram-base", "Operator-diagonal", "apply-source"}  # None means: there is none

WRONG_TYPE: dict[str, Any] = {
    "list of numbers": [1.0] * N,
    "list of lists": [[1.0] * 3, [1.0] * 3],
    "number": 1.0,
    "string": "vector",
    "bytes": b"12345678" * N,
    "mapping": {"a": good()},
    "generator": (good() for _ in range(1)),
    "set": {1.0},
    "object with a buffer": memoryview(good()),
    "class": np.ndarray,
}
WRONG_DTYPE = [
    "i8",
    "i4",
    "u8",
    "i2",
    "u4",
    "?",
    "c16",
    "c8",
    "O",
    "S8",
    "U4",
    ">f8",
    ">f4",
    ">f2",
    ">u2",
    "M8[s]",
    "V8",
]


@pytest.mark.parametrize("where", [*READ, *WRITTEN])
@pytest.mark.parametrize("what", WRONG_TYPE)
def test_wrong_type(where: str, what: str) -> None:
    with pytest.raises(TypeError, match=r"(?i)expected a NumPy array or a list|incompatible"):
        (READ | WRITTEN)[where](WRONG_TYPE[what])


@pytest.mark.parametrize("where", [w for w in [*READ, *WRITTEN] if w not in OPTIONAL])
def test_none(where: str) -> None:
    with pytest.raises(TypeError, match=r"(?i)expected a NumPy array or a list.*NoneType|incompatible"):
        (READ | WRITTEN)[where](None)


@pytest.mark.parametrize("where", [*READ, *WRITTEN])
@pytest.mark.parametrize("dtype", WRONG_DTYPE)
def test_wrong_dtype(where: str, dtype: str) -> None:
    size = N * N if where == "assemble-out" else N
    with pytest.raises(TypeError, match=r"expected float64, float32, float16 or uint16 .* native byte order, got"):
        (READ | WRITTEN)[where](np.zeros(size, dtype))


@pytest.mark.skipif(np.dtype(np.longdouble) == np.dtype(np.float64), reason="long double is double here")
@pytest.mark.parametrize("where", [*READ, *WRITTEN])
def test_long_double(where: str) -> None:
    with pytest.raises(TypeError, match="expected float64"):
        (READ | WRITTEN)[where](np.ones(N, np.longdouble))


@pytest.mark.parametrize("where", [w for w in READ if w not in ALONE])
@pytest.mark.parametrize("size", [0, 1, N - 2, N + 2, 100000])
def test_wrong_size(where: str, size: int) -> None:
    with pytest.raises(ValueError, match=r"expected .*elements.*got"):
        READ[where](np.ones(size))


@pytest.mark.parametrize("where", [w for w in WRITTEN if w != "assemble-out"])
@pytest.mark.parametrize("size", [0, 1, N - 2, N + 2, 100000])
def test_wrong_size_of_out(where: str, size: int) -> None:
    out = np.full(size, 7.0)
    with pytest.raises(ValueError, match=r"expected .*elements.*got"):
        WRITTEN[where](out)
    assert (out == 7.0).all()


@pytest.mark.parametrize("where", [w for w in READ if w not in ALONE])
def test_wrong_segments(where: str) -> None:
    for parts in ([], [good()[:3], good()[3:]], [good(), good()], (good(0), good())):
        with pytest.raises((ValueError, TypeError), match=r"segments.*got|expected vectors of|one axis|incompatible"):
            READ[where](parts)


@pytest.mark.parametrize("where", [w for w in WRITTEN if w != "assemble-out"])
def test_wrong_segments_of_out(where: str) -> None:
    for parts in ([], [good()[:3], good()[3:]], [good(), good()]):
        with pytest.raises(ValueError, match=r"segments.*got|expected vectors of|with one axis"):
            WRITTEN[where](parts)


@pytest.mark.parametrize("where", WRITTEN)
def test_out_that_cannot_be_written(where: str) -> None:
    shape = (2, 2) if where == "assemble-out" else (N,)
    frozen = np.zeros(shape)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="expected a writable out, got a read-only array"):
        WRITTEN[where](frozen)
    with pytest.raises(ValueError, match="read-only"):
        WRITTEN[where](np.broadcast_to(0.0, shape))
    once = np.lib.stride_tricks.as_strided(np.zeros(1), shape, [0] * len(shape), writeable=True)
    with pytest.raises(ValueError, match=r"elements are apart, got a broadcast array"):
        WRITTEN[where](once)


def test_gram() -> None:
    with pytest.raises(ValueError, match="at least one vector"):
        _core.gram([])
    for vectors in (good(), (good(), good()), None, "ab"):
        with pytest.raises(TypeError, match="incompatible"):
            _core.gram(vectors)
    with pytest.raises(ValueError, match="'fast', 'compensated' or 'exact', got 'quick'"):
        _core.gram([good()], "quick")
    with pytest.raises(TypeError, match="incompatible"):
        _core.gram([good()], 1)
    with pytest.raises(TypeError, match="incompatible"):
        _core.angle_gram(good(), good(), tolerance="small")
    for k in (1, 3):
        gram = _core.gram([good()] * k)
        with pytest.raises(ValueError, match="of two vectors"):
            _ = gram.pair


@pytest.mark.parametrize("name", ["exponents", "through_base"])
def test_settings_of_columns(name: str) -> None:
    for values in ([], [0], [0, 0, 0]):
        with pytest.raises(ValueError, match=r"one exponent and one flag for each of the 2 columns"):
            operator(**{name: values})
    for wrong in (None, 0, "ab", ["a", "b"], [None, object()]):
        with pytest.raises(TypeError, match="incompatible"):
            operator(**{name: wrong})


@pytest.mark.parametrize("exponent", [4097, -4097, 2**31 - 1, -(2**31)])
def test_exponents_out_of_range(exponent: int) -> None:
    for bad in (operator(exponents=[0, exponent]), operator(exponent=exponent)):
        with pytest.raises(ValueError, match=r"at most 4096 in size, got"):
            bad.apply(good(), good())
        with pytest.raises(ValueError, match=r"at most 4096 in size, got"):
            bad.assemble(np.empty((N, N)))
    with pytest.raises(TypeError, match="incompatible"):
        operator(exponent=2**40)
    with pytest.raises(TypeError, match="incompatible"):
        operator(exponents=[0, 2**40])


@pytest.mark.parametrize("core", [np.eye(1), np.eye(3), np.zeros((2, 3)), np.zeros((0, 0))])
def test_core_of_wrong_shape(core: Any) -> None:
    with pytest.raises(ValueError, match=r"expected a core of 2 x 2, got"):
        operator(core=core).apply(good(), good())
    with pytest.raises(ValueError, match=r"expected a core of 2 x 2, got"):
        operator(core=core).assemble(np.empty((N, N)))


@pytest.mark.parametrize("core", [np.zeros(2), np.zeros((2, 2, 1)), 1.0])
def test_core_that_is_no_matrix(core: Any) -> None:
    with pytest.raises(ValueError, match="expected a matrix, got an array with"):
        operator(core=core)


def test_core_of_wrong_type() -> None:
    for core in (None, "core", [[1.0, "x"], [0.0, 1.0]], object()):
        with pytest.raises((TypeError, ValueError)):
            operator(core=core)


def test_base_with_an_exponent() -> None:
    bad = operator(diagonal=good(), exponent=1)
    with pytest.raises(ValueError, match="diagonal base takes no exponent"):
        bad.apply(good(), good())


@pytest.mark.parametrize("k", [0, 1, 2, 3])
@pytest.mark.parametrize("counts", [(1, 3, 3), (3, 1, 3), (3, 3, 1), (3, 1, 1), (0, 3, 3), (3, 0, 0), (1, 50, 50)])
def test_numbers_of_right_hand_sides(counts: tuple[int, int, int], k: int) -> None:
    op = operator([good(2000)] * k)
    x, source, out = (np.ones((2000, m)) for m in counts)
    with pytest.raises(ValueError, match="right-hand sides, got"):
        op.apply(x, out, source=source, columns=True)


def test_columns_need_a_last_axis() -> None:
    for x, out in ((np.array(1.0), np.ones((N, 1))), (np.ones((N, 1)), np.array(1.0))):
        with pytest.raises(ValueError, match=r"last axis of right-hand sides|read-only"):
            operator().apply(x, out, columns=True)
    with pytest.raises(ValueError, match=r"expected 2 right-hand sides, got 3"):
        operator([[good(2), good(4)]]).apply([np.ones((2, 2)), np.ones((4, 3))], np.ones((6, 2)), columns=True)


def test_no_right_hand_sides() -> None:
    out = np.empty((N, 0))
    operator().apply(np.empty((N, 0)), out, columns=True)
    _core.project([good()], np.empty((N, 0)), out, columns=True)
    _core.Complement(good()).apply(np.empty((N - 1, 0)), out, columns=True)


def test_empty_vectors() -> None:
    nothing = np.zeros(0)
    for op in (operator([nothing, nothing]), operator([]), operator([nothing], diagonal=nothing)):
        op.apply(nothing, np.zeros(0))
    operator([nothing]).assemble(np.zeros((0, 0)))
    _core.project([nothing], nothing, np.zeros(0))
    assert _core.gram([nothing]).hi[0, 0] == 0.0
    assert _core.gram([[], []]).hi.shape == (2, 2)
    operator([]).apply([], [])
    with pytest.raises(ValueError, match="finite vector other than zero"):
        _core.Complement(nothing)


@pytest.mark.parametrize("out", [np.empty((N, N + 1)), np.empty(N), np.empty((N, N), order="F"), np.empty((0, 0))])
def test_assembly_into_a_wrong_out(out: Any) -> None:
    with pytest.raises(ValueError, match="expected a contiguous out of 6 x 6"):
        operator().assemble(out)


def test_assembly() -> None:
    with pytest.raises(ValueError, match="at least one column"):
        operator([]).assemble(np.empty((1, 1)))
    for out in ([], [np.empty((N, N))], [np.empty((N, N)), good()]):
        with pytest.raises(TypeError, match="incompatible"):
            operator().assemble(out)
    # n * n is beyond 64 bits; the columns take one double of memory.
    huge = np.broadcast_to(1.0, (1 << 33,))
    with pytest.raises(ValueError, match="contiguous out"):
        operator([huge]).assemble(np.empty((0, 0)))


def test_projection() -> None:
    with pytest.raises(ValueError, match="at least one vector to project on"):
        _core.project([], good(), good())
    with pytest.raises(TypeError, match="incompatible"):
        _core.project(good(), good(), good())
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="holds NaN or Inf"):
            _core.project([good() * bad], good(), good())


@pytest.mark.parametrize("g", [np.zeros(3), np.array([1.0, np.nan]), np.array([np.inf]), np.zeros(0)])
def test_vectors_without_complement(g: Any) -> None:
    with pytest.raises(ValueError, match="finite vector other than zero"):
        _core.Complement(g)


def test_complement_takes_one_axis() -> None:
    with pytest.raises(ValueError, match="with one axis"):
        _core.Complement(np.ones((4, 4))[:, :2])
    with pytest.raises(ValueError, match="with one axis"):
        _core.Complement(np.ones(8)).apply(np.ones(7), np.ones((4, 4))[:, :2])
    g = np.ones(4)
    with pytest.raises(ValueError, match="shares no memory"):
        _core.Complement(g).apply(np.ones(3), g)


@pytest.mark.parametrize("n", [0, -1, -(2**31)])
def test_threads(n: int) -> None:
    before = _core.get_num_threads()
    with pytest.raises(ValueError, match=f"at least 1 thread, got {n}"):
        _core.set_num_threads(n)
    for wrong in (1.0, "2", None, 2**40):
        with pytest.raises(TypeError, match="incompatible"):
            _core.set_num_threads(wrong)
    assert _core.get_num_threads() == before


@pytest.mark.parametrize("name", ["low_rank_spectrum", "low_rank_pencil"])
def test_small_matrices(name: str) -> None:
    one, two, flat = np.eye(1), np.eye(2), np.ones(2)

    def call(core: Any, gram: Any, low: Any) -> Any:
        if name == "low_rank_spectrum":
            return _core.low_rank_spectrum(core, 0 * core, gram, low)
        return _core.low_rank_pencil(1.0, core, 0 * core, 1.0, core, 0 * core, gram, low)

    for core, gram, low in (
        (one, two, two),
        (two, one, one),
        (two, np.ones((2, 3)), np.ones((2, 3))),
        (two, two, one),
    ):
        with pytest.raises(ValueError, match=r"expected a .* of|of one shape"):
            call(core, gram, low)
    with pytest.raises(ValueError, match="expected a matrix"):
        call(flat, two, two)
    with pytest.raises(ValueError, match="expected a matrix"):
        call(two, None, two)
    call(np.zeros((0, 0)), np.zeros((0, 0)), np.zeros((0, 0)))


def test_an_operator_keeps_its_arrays() -> None:
    n = 400000  # large enough that freed memory is gone
    columns = [[np.ones(n), np.full(n, 2.0)]]
    diagonal = [np.full(n, 3.0), np.full(n, 4.0)]
    op = _core.Operator(columns, [0], [False], np.eye(1), diagonal=diagonal)
    columns[0].clear()
    columns.clear()
    diagonal.clear()
    gc.collect()
    x, out = [np.ones(n), np.ones(n)], [np.empty(n), np.empty(n)]
    op.apply(x, out)
    assert (out[0] == 3.0 + 3 * n).all()
    assert (out[1] == 4.0 + 6 * n).all()
    g = np.ones(n)
    basis = _core.Complement(g)
    del g
    gc.collect()
    short = np.empty(n - 1)
    basis.apply(np.ones(n), short, transpose=True)
    assert np.abs(short).max() < 1e-12


anything = st.sampled_from(
    [
        None, 0, -1, 2.5, "x", [], [[]], [None], (), {}, good(), good(3), good().astype("f4"), good().astype("f2"),
        np.zeros(0), np.zeros(N, np.uint16), np.zeros((N, 1)), np.zeros((1, N)), np.zeros((N, 3)), np.array(1.0),
        [good(), good(2)], [good()[:2], good()[2:]], good()[::-1], np.broadcast_to(1.0, N), np.eye(2), np.arange(N),
        True, [True, False], [0, 0], float("nan"), np.full(N, np.nan), good() * 1e300, [np.zeros((2, 3)), good(0)],
    ]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_mix_of_arguments_crashes(data: st.DataObject) -> None:
    def draw() -> Any:
        value = data.draw(anything)
        return value.copy() if isinstance(value, np.ndarray) and value.flags.writeable else value

    calls: list[Call] = [
        lambda _: _core.gram([draw(), draw()], data.draw(st.sampled_from(["fast", "compensated", "exact"]))),
        lambda _: _core.gram(draw()),
        lambda _: _core.angle_gram(draw(), draw(), draw()),
        lambda _: _core.first_not_positive(draw()),
        lambda _: operator([draw()]).apply(draw(), draw(), draw(), data.draw(st.booleans())),
        lambda _: operator([]).apply(draw(), draw(), draw(), data.draw(st.booleans())),
        lambda _: operator(diagonal=draw(), core=draw(), exponents=draw(), through_base=draw()).assemble(draw()),
        lambda _: _core.project([draw(), draw()], draw(), draw(), True, data.draw(st.booleans())),
        lambda _: _core.Complement(draw()).apply(draw(), draw(), data.draw(st.booleans()), data.draw(st.booleans())),
    ]
    with contextlib.suppress(TypeError, ValueError):
        data.draw(st.sampled_from(calls))(None)


def test_an_operator_has_one_base() -> None:
    with pytest.raises(ValueError, match="expected a diagonal base or a scalar one, got both"):
        operator(diagonal=good(), scalar=2.0)


def test_log_ratios_need_gram_matrices() -> None:
    core, gram = np.eye(2), np.zeros((3, 2, 2))
    for high, low in ((gram[0], gram[0]), (gram, gram[:2]), (gram[:, :1], gram[:, :1])):
        with pytest.raises(ValueError, match="expected high and low parts of m Gram matrices"):
            _core.low_rank_log_ratios(1.0, core, 1.0, core, high, low)
    with pytest.raises(ValueError, match="expected a core of 2 x 2, got 3 x 3"):
        _core.low_rank_log_ratios(1.0, np.eye(3), 1.0, core, gram, gram)
    assert _core.low_rank_log_ratios(1.0, core, 1.0, core, gram[:0], gram[:0]).shape == (0, 2)
    assert np.isnan(_core.low_rank_log_ratios(1.0, core, 1.0, core, np.full_like(gram, np.nan), gram)).all()
