"""Many steps in one call: the rows are those of a recorder that sees one step at a time, bit for bit."""

import math
from fractions import Fraction

import numpy as np
import pytest

import steepest
from steepest import Recorder, _core, recording, step_batches

T = 23
SHAPES = {"w": (40, 7), "b": (7,), "s": (), "long": (8192 * 4 + 5,)}


@pytest.fixture(params=[5, 10**9], ids=["many batches", "one batch"])
def at_once(request, monkeypatch):
    """Batches of a few steps, or one of all."""
    monkeypatch.setattr(step_batches, "_ELEMENTS", 1 << 62)
    monkeypatch.setattr(step_batches, "_ROWS", request.param * (1 + len(SHAPES)))
    return request.param


def arrays(seed, shapes=SHAPES, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((T, *shape)).astype(dtype) for name, shape in shapes.items()}


def step(x, t):
    """Step t of an array or of each array of a mapping."""
    return {name: a[t, ...] for name, a in x.items()} if isinstance(x, dict) else x[t, ...]


def one_by_one(lag, **given):
    rec = Recorder(lag=lag)
    for t in range(T):
        rec.step(**{name: step(x, t) for name, x in given.items()})
    return rec.recording()


def assert_same(found, wanted):
    assert found.rows.shape == wanted.rows.shape
    for name in set(found.rows.dtype.names) - {"time"}:
        assert found.rows[name].tobytes() == wanted.rows[name].tobytes(), name


@pytest.mark.parametrize("lag", [0, 1, 3])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_rows_are_those_of_single_steps(at_once, lag, dtype):
    given = {"params": arrays(0, dtype=dtype), "grad": arrays(1, dtype=dtype), "update": arrays(2, dtype=dtype)}
    assert_same(recording(**given, lag=lag), one_by_one(lag, **given))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("isa_lag", [0, 2])
def test_threads_do_not_change_bits(at_once, threads, isa_lag):
    before = steepest.get_num_threads()
    given = {"grad": arrays(1), "update": arrays(2)}
    wanted = recording(**given, lag=isa_lag).rows.tobytes()
    try:
        steepest.set_num_threads(threads)
        assert recording(**given, lag=isa_lag).rows.tobytes() == wanted
    finally:
        steepest.set_num_threads(before)


@pytest.mark.parametrize("lag", [0, 2])
def test_bfloat16(at_once, lag):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    given = {"grad": arrays(1, dtype=ml_dtypes.bfloat16), "update": arrays(2, dtype=ml_dtypes.bfloat16)}
    assert_same(recording(**given, lag=lag), one_by_one(lag, **given))
    params = arrays(3, dtype=ml_dtypes.bfloat16)  # their differences are float64
    found = recording(params=params, grad=given["grad"], lag=lag)
    rec = Recorder(lag=lag)
    for t in range(T - 1):
        rec.step(params=step(params, t), params_next=step(params, t + 1), grad=step(given["grad"], t))
    assert found.rows[: T - 1].tobytes() != b""
    for name in set(found.rows.dtype.names) - {"time"}:
        assert found.rows[name][: T - 1].tobytes() == rec.recording().rows[name].tobytes(), name


@pytest.mark.parametrize("lag", [0, 1, 4])
@pytest.mark.parametrize("shapes", [SHAPES, {"w": (3, 5)}], ids=["several", "one"])
def test_differences_of_params(at_once, lag, shapes):
    params, grad = arrays(3, shapes), arrays(4, shapes)
    found = recording(params=params, grad=grad, loss=np.arange(T), lag=lag)
    rec = Recorder(lag=lag)
    for t in range(T - 1):
        rec.step(params=step(params, t), params_next=step(params, t + 1), grad=step(grad, t), loss=float(t))
    rec.step(params=step(params, T - 1), grad=step(grad, T - 1), loss=float(T - 1))
    assert_same(found, rec.recording())
    assert found.status[-1, 0] == "no_update"


@pytest.mark.parametrize("lag", [0, 2])
@pytest.mark.parametrize("n", [1, 2, 3, 8191, 8193])
def test_one_array_without_a_name(at_once, lag, n):
    rng = np.random.default_rng(n)
    given = {"grad": rng.standard_normal((T, n)), "update": rng.standard_normal((T, n))}
    assert_same(recording(**given, lag=lag), one_by_one(lag, **given))


@pytest.mark.parametrize("lag", [0, 2])
def test_steps_that_need_more_than_one_pass(at_once, lag):
    grad, update = arrays(5, dtype=np.float64), arrays(6, dtype=np.float64)
    for name in SHAPES:
        update[name][1] = -2.0 * grad[name][1]  # parallel
        update[name][2] = 0.0
        grad[name][3] = 0.0
        grad[name][4] *= 1e-300
        update[name][5] *= 1e250
        update[name][6] = -grad[name][6] * (1 + 1e-9 * update[name][6])  # an angle of 1e-9
    grad["w"][8, 0, 0] = np.nan
    update["long"][9, -1] = np.inf
    grad["b"][10:13] = 0.0
    update["s"][...] = 0.0
    given = {"grad": grad, "update": update}
    found = recording(**given, lag=lag)
    assert_same(found, one_by_one(lag, **given))
    assert [*found.status[[1, 2, 3, 8], 0]] == ["ok", "zero_update", "zero_grad", "nonfinite"]


@pytest.mark.parametrize("lag", [0, 1])
def test_arrays_whose_steps_are_not_contiguous(at_once, lag):
    grad, update = arrays(7), arrays(8)
    fortran = {name: np.asfortranarray(x) for name, x in grad.items()}
    every_second = {name: np.repeat(x, 2, axis=0)[::2] for name, x in update.items()}
    backwards = {name: x[::-1].copy()[::-1] for name, x in grad.items()}
    read_only = {name: x.copy() for name, x in update.items()}
    for x in read_only.values():
        x.flags.writeable = False
    for y, g in [(fortran, update), (grad, every_second), (backwards, read_only)]:
        assert_same(recording(grad=y, update=g, lag=lag), one_by_one(lag, grad=y, update=g))


def test_types_that_differ(at_once):
    grad, update = arrays(7), arrays(8)
    update["b"] = update["b"].astype(np.float64)
    assert_same(recording(grad=grad, update=update, lag=1), one_by_one(1, grad=grad, update=update))


def test_candidates(at_once):
    grad, update = {"one": arrays(1), "two": arrays(2)}, arrays(3)
    found = recording(grad=grad, update=update, lag=1, loss={"one": np.arange(T), "two": -np.arange(T)})
    for name, each in grad.items():
        single = recording(grad=each, update=update, lag=1, loss=found.candidate(name).loss)
        assert_same(found.candidate(name), single)


def test_products_are_within_their_bounds():
    """Against rational arithmetic."""
    rng = np.random.default_rng(0)
    y, g = (rng.standard_normal((4, 37)) * 10.0 ** rng.integers(-6, 6, (4, 37)) for _ in range(2))

    def exact(a, b):
        return sum((Fraction(p) * Fraction(q) for p, q in zip(a.tolist(), b.tolist(), strict=True)), Fraction(0))

    ones = np.full((3, 2), 1e-9)
    pairs, lags = _core.step_grams([y], [g], ones, np.zeros((3, 2)), 1, 2, "compensated")
    assert pairs.shape == (3, 2, 15)
    assert lags.shape == (3, 2, 2, 4, 3)
    for t in range(3):
        at = t + 1
        for i, (a, b) in enumerate([(y, y), (y, g), (g, g)]):
            hi, lo, bound = pairs[t, 0, [i, i + 3, i + 6]]
            assert abs(Fraction(hi) + Fraction(lo) - exact(a[at], b[at])) <= Fraction(bound)
            assert bound <= 1e-27 * math.sqrt(exact(a[at], a[at]) * exact(b[at], b[at]))
        for j in range(2):
            if at - j - 1 < 0:
                assert np.isnan(lags[t, j]).all()
                continue
            for k, (a, b) in enumerate([(y, y), (y, g), (g, y), (g, g)]):
                hi, lo, bound = lags[t, j, 0, k]
                assert abs(Fraction(hi) + Fraction(lo) - exact(a[at], b[at - j - 1])) <= Fraction(bound)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tolerances": np.ones((2, 2))}, "a rounding for each"),
        ({"tolerances": np.ones((4, 2)), "rounding_squared": np.ones((4, 2))}, "one accuracy for each of 3 steps"),
        ({"skip": 4}, "0 <= skip <= 3"),
        ({"g": [np.ones((2, 5))]}, "as many steps of y as of g"),
        ({"g": [np.ones((3, 4))]}, "expected 5 elements"),
        ({"g": [np.ones((3, 5), np.float32)]}, "contiguous arrays of one type"),
        ({"g": [np.ones((5, 3)).T]}, "contiguous arrays of one type"),
        ({"g": [np.array(1.0)]}, "whose first axis is the step"),
        ({"precision": "exact"}, "a fast or a compensated"),
        ({"lag": 1}, "with lag a compensated one"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    good = {"y": [np.ones((3, 5))], "g": [np.ones((3, 5))], "tolerances": np.ones((3, 2))}
    good = {"rounding_squared": np.zeros((3, 2)), **good}
    _core.step_grams(**good)
    with pytest.raises(ValueError, match=message):
        _core.step_grams(**{**good, **change})
