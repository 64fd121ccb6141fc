"""The products of a step from gradient and parameters in one pass: the bits of a pass over the update itself."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from core_cases import DTYPES, doubles, stored
from steepest import _core
from steepest.arrays import Layout, LongVector
from steepest.parameter_difference import Difference, StepPass
from steepest.recorder import Recorder
from steepest.rounding_floor import spacing_norms

SIZES = [1, 2, 3, 15, 16, 17, 513, 1023, 1025, 8191, 8192, 8193, 5 * 8192 + 7]
# Types of the parameters and of the update: what NumPy and what PyTorch make of them.
KINDS = [
    ("float64", "float64"),
    ("float32", "float32"),
    ("float16", "float16"),
    ("float16", "float32"),
    ("bfloat16", "float64"),
    ("bfloat16", "float32"),
    ("float32", "float64"),
]

Arrays = list[NDArray[Any]]


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request: pytest.FixtureRequest) -> Any:
    before = _core.get_num_threads()
    _core.set_num_threads(request.param)
    yield
    _core.set_num_threads(before)


def rounded_difference(after: NDArray[Any], before: NDArray[Any], update: str) -> NDArray[Any]:
    """In NumPy: narrow types widen exactly to the type of the update, except float64 for bfloat16."""
    with np.errstate(over="ignore", invalid="ignore"):
        if after.dtype == np.uint16:
            return (doubles(after) - doubles(before)).reshape(after.shape).astype(update)
        return np.asarray(np.subtract(after, before, dtype=update))


def vector(arrays: Arrays, dtype: str) -> LongVector:
    layout = Layout(tuple(map(str, range(len(arrays)))), tuple(a.shape for a in arrays))
    return LongVector(arrays, layout, (dtype,) * len(arrays))


def same(a: Any, b: Any) -> bool:
    return np.asarray(a).tobytes() == np.asarray(b).tobytes() or bool(np.array_equal(a, b, equal_nan=True))


def check(ys: Arrays, after: Arrays, before: Arrays, dtype: str, update: str, rounding: float = 0.0) -> list[int]:
    """Rows and spacings against those of the present way; returns what the pass left open."""
    updates = [rounded_difference(a, b, update) for a, b in zip(after, before, strict=True)]
    tolerances, roundings = [1e-10] * (1 + len(ys)), [rounding] * (1 + len(ys))
    expected = _core.segment_angle_grams(ys, updates, tolerances, roundings)
    for floor_after in (False, True):
        sums = _core.StepSums(ys, after, before, [update] * len(ys), floor_after)
        assert same(sums.spacing_squares, _core.spacing_squares(after if floor_after else before))
        rows, unsettled = sums.rows(tolerances, roundings)
        settled = [i for i in range(len(rows)) if i not in unsettled]
        assert same(rows[settled], expected[settled])
        assert np.isnan(rows[unsettled][:, 0]).all()
        rows, rest = sums.rows(tolerances, roundings, updates)
        assert not rest
        assert same(rows, expected)
    own = [b.copy() for b in before]
    for in_place in (False, True):
        unformed = Difference(
            vector(after, dtype), vector(own, dtype), (update,) * len(ys), floor_after=True, in_place=in_place
        )
        whole = StepPass(vector(ys, dtype), unformed)
        assert same(whole.products(tolerances, roundings), expected)
        assert in_place or all(map(same, own, before))  # nobody else's memory is written
    return unsettled


def step_of(rng: np.random.Generator, shapes: list[Any], dtype: str) -> tuple[Arrays, Arrays, Arrays]:
    before = [stored(rng.standard_normal(shape), dtype) for shape in shapes]
    after = [stored(doubles(b).reshape(b.shape) + 0.05 * rng.standard_normal(b.shape), dtype) for b in before]
    return [stored(rng.standard_normal(shape) + 0.3, dtype) for shape in shapes], after, before


@pytest.mark.parametrize(("dtype", "update"), KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_the_bits_of_a_pass_over_the_update(dtype: str, update: str, size: int) -> None:
    ys, after, before = step_of(np.random.default_rng(size), [(size,)], dtype)
    check(ys, after, before, dtype, update)


@pytest.mark.parametrize(("dtype", "update"), KINDS)
def test_many_arrays(dtype: str, update: str) -> None:
    shapes = [(1,), (0,), (3, 5), (8192,), (90, 100), (), (2,), (4, 0), (8193,)]
    ys, after, before = step_of(np.random.default_rng(1), shapes, dtype)
    check(ys, after, before, dtype, update)


@pytest.mark.parametrize(("dtype", "update"), KINDS)
def test_strides_and_broadcasts(dtype: str, update: str) -> None:
    ys, after, before = step_of(np.random.default_rng(2), [(300, 40), (300, 40), (7,)], dtype)
    ys[0], after[1] = np.asfortranarray(ys[0]), np.asfortranarray(after[1])
    ys[2] = np.broadcast_to(ys[2][:1], (7,))  # as the gradient of a parameter without one
    check(ys, after, before, dtype, update)
    with_gaps = [np.repeat(x, 2, axis=-1)[..., ::2] for x in before]
    check(ys, after, with_gaps, dtype, update)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(("dtype", "update"), KINDS)
def test_numbers_that_are_not_finite(dtype: str, update: str, place: int, bad: float) -> None:
    arrays = step_of(np.random.default_rng(3), [(9000,), (5,)], dtype)
    arrays[place][0][8500] = stored(bad, dtype)
    assert check(*arrays, dtype, update) == [0, 1]


@pytest.mark.parametrize(("dtype", "update"), KINDS)
def test_vectors_of_zeros(dtype: str, update: str) -> None:
    ys, after, before = step_of(np.random.default_rng(4), [(20,), (20,), (9000,)], dtype)
    ys[0][:] = 0
    after[1][:] = before[1]
    assert check(ys, after, before, dtype, update) == [1, 2]  # the whole is settled


@pytest.mark.parametrize("scale", [1e-200, 1e-160, 1e150, 1e200])
def test_squares_beyond_the_range(scale: float) -> None:
    rng = np.random.default_rng(5)
    ys, after, before = ([scale * rng.standard_normal(9000)] for _ in range(3))
    assert check(ys, after, before, "float64", "float64") == [0, 1]
    tiny = [np.full(9000, 3e-40, np.float32)]
    assert check(tiny, [x * 3 for x in tiny], tiny, "float32", "float32") == [0, 1]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_plain_gradient_descent(dtype: str) -> None:
    """At an angle of rounding alone: not settled by this pass, unless the rounding itself says that nothing is lost."""
    rng = np.random.default_rng(6)
    before = [rng.standard_normal(9000).astype(dtype), rng.standard_normal((3, 4)).astype(dtype)]
    ys = [rng.standard_normal(b.shape).astype(dtype) for b in before]
    after = [b - np.array(1e-3, dtype) * y for b, y in zip(before, ys, strict=True)]
    check(ys, after, before, dtype, dtype)
    floor = np.hypot(*spacing_norms(vector(after, dtype))) ** 2 / 12
    assert check(ys, after, before, dtype, dtype, rounding=floor) == ([0, 1, 2] if dtype == "float64" else [])


def test_exactly_parallel() -> None:
    y = np.arange(1.0, 9001.0)
    assert check([y], [-2 * y], [-y], "float64", "float64") == [0, 1]


def test_one_unsettled_array_forms_no_other_update() -> None:
    ys, after, before = step_of(np.random.default_rng(7), [(100,), (100,), (100,)], "float32")
    before[1] = after[1] + np.float32(0.125) * ys[1]  # parallel but for rounding
    unformed = Difference(vector(after, "float32"), vector(before, "float32"), ("float32",) * 3)
    formed = unformed.segments([1])
    assert formed[0] is before[0]
    assert formed[2] is before[2]
    assert same(formed[1], after[1] - before[1])
    assert check(ys, after, before, "float32", "float32") == [2]


def test_layouts_that_differ() -> None:
    x = np.ones(3)
    with pytest.raises(ValueError, match="expected 3 elements in segment 0, got 4"):
        _core.StepSums([x], [x], [np.ones(4)], ["float64"])
    with pytest.raises(ValueError, match="type of the update"):
        _core.StepSums([x], [x], [x], [])
    with pytest.raises(ValueError, match="float16"):
        _core.StepSums([x], [x], [x], ["int8"])
    sums = _core.StepSums([x], [x], [x], ["float64"])
    with pytest.raises(ValueError, match="2 tolerances"):
        sums.rows([0.0], [0.0])
    with pytest.raises(ValueError, match="rounding"):
        sums.rows([0.0, 0.0], [0.0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 7, 8191, 8193, 30001])
def test_copies(dtype: str, size: int) -> None:
    rng = np.random.default_rng(8)
    x = stored(rng.standard_normal(2 * size + 1), dtype)
    for source in (x[:size], x[1:], x[::2]):
        room = np.zeros(source.size + 3, x.dtype)
        _core.copy([source], [room[1:-2]])
        assert same(room[1:-2], source)
        assert not room[[0, -1, -2]].any()
        (square,) = _core.copy([source], [room[1:-2]], True)
        assert square == pytest.approx(math.fsum(doubles(source) ** 2), rel=1e-14)
    with pytest.raises(ValueError, match="contiguous"):
        _core.copy([np.ones(3)], [np.ones(6)[::2]])
    with pytest.raises(ValueError, match="contiguous"):
        _core.copy([np.ones(3)], [np.ones(3, np.float32)])


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_copies_past_the_caches(offset: int) -> None:
    x = np.random.default_rng(9).integers(0, 2**16, 17_000_000).astype(np.uint16)  # 65 MiB are moved
    room = np.zeros(x.size + 8, np.uint16)
    _core.copy([x], [room[offset : offset + x.size]])
    assert np.array_equal(room[offset : offset + x.size], x)
    assert not room[:offset].any()
    assert not room[offset + x.size :].any()


PROGRAM = """
import sys
import test_step_pass as t
from steepest import _core
for n in (1, 2):
    _core.set_num_threads(n)
    for dtype, update in t.KINDS:
        for size in (3, 17, 8193, 30000):
            t.test_the_bits_of_a_pass_over_the_update(dtype, update, size)
print(_core.build_config()["instruction_set"])
"""


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "neon"])
def test_every_instruction_set(isa: str) -> None:
    if isa not in _core.build_config()["instruction_sets"]:
        pytest.skip("not in this build")
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "STEEPEST_ISA": isa, "PYTHONPATH": path}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=False, env=environment, capture_output=True, text=True, timeout=120
    )
    if "is not available here" in ran.stderr:
        pytest.skip("this CPU lacks it")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == [isa]


def rows_of(rec: Recorder) -> dict[str, list[Any]]:
    found = rec.recording().to_dict()
    return {name: value for name, value in found.items() if name != "time"}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("names", [None, ("w",), ("w", "b")])
def test_recorder_of_params_next(dtype: str, names: tuple[str, ...] | None) -> None:
    """Rows of params_next are those of the update that NumPy forms, whatever the recorder makes of it."""
    rng = np.random.default_rng(10)
    first, second = Recorder(), Recorder()
    shapes = {"w": (90, 100), "b": (7,)}

    def given(arrays: Arrays) -> Any:
        arrays = [a.view(DTYPES[dtype]) for a in arrays]
        return arrays[0] if names is None else dict(zip(names, arrays, strict=True))

    for scale in (1.0, 0.0, np.nan, 1e-12):
        ys, after, before = step_of(rng, [shapes[name] for name in names or ("w",)], dtype)
        if scale == 1e-12:  # parallel
            after = [stored(doubles(b).reshape(b.shape) - 0.5 * doubles(y).reshape(b.shape), dtype)
                     for b, y in zip(before, ys, strict=True)]  # fmt: skip
        else:
            ys[0].flat[0] = stored(scale, dtype)
        params = given(before)
        first.step(params=params, grad=given(ys), params_next=given(after))
        kind = "float64" if dtype == "bfloat16" else dtype
        update = [rounded_difference(a, b, kind) for a, b in zip(after, before, strict=True)]
        formed = update[0] if names is None else dict(zip(names, update, strict=True))
        second.step(params=params, grad=given(ys), update=formed)
    found, expected = rows_of(first), rows_of(second)
    assert found.keys() == expected.keys()
    for name in found:
        assert str(found[name]) == str(expected[name]), name  # NaN is NaN
