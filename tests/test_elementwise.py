"""A diagonal fitted to many pairs in the core: against sums in extended precision, in every layout and element type."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import steepest
from core_cases import DTYPES, LAYOUTS, doubles, stored
from steepest import _core
from steepest.identify import identify, surrogates
from steepest.identify.steps import steps_of

Array = NDArray[Any]
U = 2.0**-53
TINY = np.finfo(np.float64).tiny
SIZES = [(1,), (2,), (3,), (17,), (1023,), (1025, 0, 7), (0, 3), (2049,), (8192, 1), (20_011,)]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = _core.get_num_threads()
    yield
    _core.set_num_threads(before)


def pairs(sizes: tuple[int, ...], count: int, grad: str, update: str, seed: int = 0) -> tuple[list[Any], list[Any]]:
    rng = np.random.default_rng(seed)
    return tuple(  # type: ignore[return-value]
        [[stored(rng.standard_normal(size), dtype) for size in sizes] for _ in range(count)] for dtype in (grad, update)
    )


def zeros(sizes: tuple[int, ...]) -> list[list[NDArray[np.float64]]]:
    return [[np.zeros(size) for size in sizes] for _ in range(3)]


def columns(steps: list[list[Array]], array: int) -> Array:
    """Steps by elements, in extended precision."""
    return np.array([doubles(step[array]) for step in steps]).astype(np.longdouble).reshape(len(steps), -1)


def check_sums(grads: list[Any], updates: list[Any], sums: list[list[Array]], units: tuple[int, int] = (0, 0)) -> None:
    for i in range(len(grads[0])):
        y, g = -np.ldexp(columns(grads, i), -units[0]), np.ldexp(columns(updates, i), -units[1])
        yy, yg, gg = ((a * b).sum(axis=0) for a, b in ((y, y), (y, g), (g, g)))
        size = np.abs(y * g).sum(axis=0)
        for found, exact, limit in zip(sums, (yy, yg, gg), (yy, size, gg), strict=True):
            assert np.all(np.abs(found[i] - exact) <= (len(grads) + 1) * U * limit)


def check_residuals(grads: list[Any], updates: list[Any], fit: list[list[Array]], found: Array) -> None:
    assert found.shape == (len(grads), len(fit[0]), 5)
    for i in range(len(fit[0])):
        p, d, s = (x[i] for x in fit)
        for t in range(len(grads)):
            y, g = -doubles(grads[t][i]), doubles(updates[t][i])
            # Each difference is rounded as the core rounds it at worst: once in the product, once in the difference
            rounding = [2 * U * (np.abs(y) + np.abs(d * g)), 2 * U * (np.abs(g) + np.abs(p * y))]
            rounding += [2 * U * (np.abs(y) + np.abs(s * g)), 0.0 * y, 0.0 * y]
            wide = [x.astype(np.longdouble) for x in (y, g, d, p, s)]
            y, g, d, p, s = wide
            for k, x in enumerate((y - d * g, g - p * y, y - s * g, y, g)):
                exact = np.sum(x * x)
                limit = 150 * U * exact + np.sum(2 * np.abs(x) * rounding[k] + rounding[k] ** 2)
                assert abs(found[t, i, k] - exact) <= limit, (t, i, k)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_and_residuals(sizes: tuple[int, ...], dtype: str) -> None:
    grads, updates = pairs(sizes, 15, dtype, dtype)  # 8 + 4 + 2 + 1
    sums = zeros(sizes)
    assert _core.add_element_products(grads, updates, (0, 0), *sums)
    check_sums(grads, updates, sums)
    _core.fit_elements(*sums)
    check_residuals(grads, updates, sums, _core.diagonal_residuals(grads, updates, (0, 0), *sums))


@pytest.mark.parametrize("grad", DTYPES)
@pytest.mark.parametrize("update", DTYPES)
def test_mixed_types(grad: str, update: str) -> None:
    grads, updates = pairs((1500, 3), 5, grad, update)
    sums = zeros((1500, 3))
    assert _core.add_element_products(grads, updates, (0, 0), *sums)
    check_sums(grads, updates, sums)
    _core.fit_elements(*sums)
    check_residuals(grads, updates, sums, _core.diagonal_residuals(grads, updates, (0, 0), *sums))


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_have_the_bits_of_contiguous_memory(dtype: str) -> None:
    size, count = 5003, 11
    grads, updates = pairs((size,), count, dtype, dtype)
    expected = zeros((size,))
    _core.add_element_products(grads, updates, (0, 0), *expected)

    layouts = [[[[of(step[0])] for step in steps] for steps in (grads, updates)] for of in LAYOUTS.values()]
    by_element = [np.asfortranarray(np.stack([step[0] for step in steps])) for steps in (grads, updates)]
    layouts.append([[[row] for row in x] for x in by_element])
    for layout in layouts:
        found = zeros((size,))
        _core.add_element_products(*layout, (0, 0), *found)
        np.testing.assert_array_equal(found, expected)
    mixed = [[grads[0], *layouts[-1][0][1:]], updates]  # the first pair contiguous, the others not
    found = zeros((size,))
    _core.add_element_products(*mixed, (0, 0), *found)
    np.testing.assert_array_equal(found, expected)
    _core.fit_elements(*expected)
    residuals = _core.diagonal_residuals(grads, updates, (0, 0), *expected)
    for layout in [*layouts, mixed]:
        np.testing.assert_array_equal(_core.diagonal_residuals(*layout, (0, 0), *expected), residuals)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_any_number_of_pairs_and_of_threads_has_the_same_bits(dtype: str) -> None:
    sizes = (150_001, 9)
    grads, updates = pairs(sizes, 13, dtype, dtype)
    expected = None
    for threads in (1, 2, 3):
        _core.set_num_threads(threads)
        for batch in (1, 2, 5, 8, 13):
            sums = zeros(sizes)
            for i in range(0, 13, batch):
                _core.add_element_products(grads[i : i + batch], updates[i : i + batch], (0, 0), *sums)
            facts = _core.fit_elements(*sums)
            batches = [(grads[i : i + batch], updates[i : i + batch]) for i in range(0, 13, batch)]
            found = [_core.diagonal_residuals(*some, (0, 0), *sums) for some in batches]
            outcome = [*sums[0], *sums[1], *sums[2], facts, np.concatenate(found)]
            expected = outcome if expected is None else expected
            for a, b in zip(outcome, expected, strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("size_y", "size_g", "units"),
    [
        (1e-300, 1e290, (-996, 964)),
        (1e300, 1e-160, (997, -530)),
        (5e-324, 1.0, (-1073, 0)),
        (1.0, 1e308, (0, 1030)),
        (4.0, 8.0, (1, -1)),
    ],
)
@pytest.mark.parametrize("size", [3, 1500])
def test_powers_of_two(size_y: float, size_g: float, units: tuple[int, int], size: int) -> None:
    rng = np.random.default_rng(0)
    grads = [[rng.integers(-9, 9, size) / 9.0 * size_y] for _ in range(6)]
    updates = [[rng.integers(-9, 9, size) / 9.0 * size_g] for _ in range(6)]
    sums = zeros((size,))
    assert _core.add_element_products(grads, updates, units, *sums)
    check_sums(grads, updates, sums, units)
    _core.fit_elements(*sums)
    scaled = [[[np.ldexp(x[0], -unit)] for x in steps] for steps, unit in ((grads, units[0]), (updates, units[1]))]
    found = _core.diagonal_residuals(grads, updates, units, *sums)
    np.testing.assert_array_equal(found, _core.diagonal_residuals(*scaled, (0, 0), *sums))
    check_residuals(*scaled, sums, found)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 5000, 20_000])
@pytest.mark.parametrize("of_grad", [True, False])
def test_not_finite_is_seen(bad: float, place: int, of_grad: bool) -> None:
    grads, updates = pairs((20_001,), 5, "float32", "float32")
    (grads if of_grad else updates)[3][0][place] = bad
    sums = zeros((20_001,))
    assert not _core.add_element_products(grads, updates, (0, 0), *sums)
    fit = zeros((20_001,))
    found = _core.diagonal_residuals(grads, updates, (0, 0), *fit)
    assert np.isfinite(found).all(axis=(1, 2)).tolist() == [True, True, True, False, True]


def test_fit_elements() -> None:
    yy = np.array([4.0, 4.0, 0.0, 9.0, TINY, 1.0, 1e300])
    yg = np.array([2.0, -2.0, 0.0, 0.0, TINY, 1e-200, 1e-5])
    gg = np.array([1.0, 4.0, 0.0, 1.0, TINY, 1e-300, 1e-310])
    d = np.array([2.0, 0.0, 0.0, 0.0, 0.0, 1e100, 0.0])
    p = np.array([0.5, 0.0, 0.0, 0.0, 0.0, 1e-200, 1e-305])
    s = np.array([2.0, 0.0, 0.0, 0.0, 0.0, 1e150, 0.0])
    descent, gg_before, yy_before = np.maximum(yg, 0.0), gg.copy(), yy.copy()
    found = _core.fit_elements([yy], [yg], [gg])
    np.testing.assert_allclose([yg, yy, gg], [d, p, s], rtol=4e-16)
    assert found.shape == (1, 9)
    left = yy_before - d * descent, gg_before - p * descent, yy_before + s * s * gg_before - 2 * s * descent
    np.testing.assert_allclose(found[0, :5], [max(0.0, x.sum()) for x in (*left, yy_before, gg_before)], rtol=1e-14)
    assert found[0, 5:].tolist() == [4.0, 2.0, 2.0, 1e100]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 1030, 20_011])
def test_fit_elements_against_numpy(size: int) -> None:
    rng = np.random.default_rng(size)
    yy, gg = rng.random(size), rng.random(size) * (rng.random(size) > 0.2)
    yg = rng.uniform(-1.0, 1.0, size) * np.sqrt(yy * gg)
    yy[::5] = yg[::5] = 0.0
    given = [x.copy() for x in (yy, yg, gg)]
    row = _core.fit_elements([yy], [yg], [gg])[0]
    a, b, c = given
    moved, b = c > TINY, np.maximum(b, 0.0)
    d, p, s = np.zeros((3, size))
    d[moved] = b[moved] / c[moved]
    p[a > TINY] = b[a > TINY] / a[a > TINY]
    s[d > 0.0] = np.sqrt(a[d > 0.0] / c[d > 0.0])
    np.testing.assert_array_equal([yg, yy, gg], [d, p, s])
    sums = [x.sum() for x in (a - d * b, c - p * b, a + s * s * c - 2.0 * s * b, a, c)]
    np.testing.assert_allclose(row[:5], sums, rtol=1e-13)
    assert row[5] == moved.sum()
    assert row[6] == np.sum(moved & (given[1] <= 0.0))
    assert row[7] == d[d > 0.0].min(initial=np.inf)
    assert row[8] == d.max()


def test_what_does_not_fit_is_refused() -> None:
    one, sums = [[np.ones(3)]], zeros((3,))
    with pytest.raises(ValueError, match="as many gradients as updates, got 1 and 2"):
        _core.add_element_products(one, one * 2, (0, 0), *sums)
    with pytest.raises(ValueError, match="expected 3 elements in segment 0, got 4"):
        _core.add_element_products(one, [[np.ones(4)]], (0, 0), *sums)
    with pytest.raises(ValueError, match="contiguous float64"):
        _core.add_element_products(one, one, (0, 0), *[[np.ones(3, np.float32)]] * 3)
    with pytest.raises(ValueError, match="contiguous float64"):
        _core.fit_elements(*[[np.ones(6)[::2]]] * 3)
    with pytest.raises(TypeError, match="expected float64"):
        _core.add_element_products([[np.ones(3, int)]], one, (0, 0), *sums)
    assert _core.add_element_products([], [], (0, 0), *sums)
    assert _core.diagonal_residuals([], [], (0, 0), *sums).shape == (0, 1, 5)


PROGRAM = """
import numpy as np
from steepest import _core
rng = np.random.default_rng(0)
grads, updates = ([[rng.standard_normal(n).astype("{dtype}") for n in (5003, 3)] for _ in range(7)] for _ in range(2))
sums = [[np.zeros(5003), np.zeros(3)] for _ in range(3)]
_core.add_element_products(grads, updates, (0, 0), *sums)
first = np.concatenate([np.concatenate(x) for x in sums])
facts = _core.fit_elements(*sums)
found = _core.diagonal_residuals(grads, updates, (0, 0), *sums)
print([x.hex() for x in np.concatenate([first, facts.ravel(), *map(np.concatenate, sums), found.ravel()]).tolist()])
"""


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_instruction_sets(dtype: str) -> None:
    """To the bit where they are sums of exact products, else within rounding."""
    outcomes = []
    for isa in steepest.build_config()["instruction_sets"]:
        environment = {**os.environ, "STEEPEST_ISA": isa}
        program = [sys.executable, "-c", PROGRAM.format(dtype=dtype)]
        ran = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
        outcomes.append(np.array([float.fromhex(x.strip("' ")) for x in ran.stdout.strip("[]\n").split(",")]))
    sums = 3 * 5006
    for other in outcomes[1:]:
        np.testing.assert_allclose(other, outcomes[0], rtol=2e-12, atol=1e-12)
        if dtype != "float64":
            np.testing.assert_array_equal(other[:sums], outcomes[0][:sums])


# The family -----------------------------------------------------------------------------------------------------------


def run(T: int, sizes: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> tuple[dict[str, Array], ...]:
    rng = np.random.default_rng(seed)
    grad = {f"w{i}": rng.standard_normal((T, n)).astype(dtype) for i, n in enumerate(sizes)}
    rates = {k: np.exp(rng.standard_normal(x.shape[1])) for k, x in grad.items()}
    noise = {k: 0.1 * rng.standard_normal(x.shape) for k, x in grad.items()}
    return grad, {k: (-0.1 * rates[k] * x + noise[k]).astype(dtype) for k, x in grad.items()}


def dense(grad: dict[str, Array], update: dict[str, Array], split: int, keep: Any = slice(None)) -> dict[str, Array]:
    """d, held-out R2 and R2 in sample of all arrays, in float64."""
    y, g = (np.concatenate(list(x.values()), axis=1).astype(float)[keep] for x in (grad, update))
    y = -y
    split = len(y[:split]) if keep == slice(None) else int(np.sum(np.arange(len(grad["w0"]))[keep] < split))
    a, b, c = ((u[:split] * v[:split]).sum(axis=0) for u, v in ((y, y), (y, g), (g, g)))
    d, p = np.maximum(b, 0.0) / c, np.maximum(b, 0.0) / a
    s = np.where(d > 0.0, np.sqrt(a / c), 0.0)

    def left(m: Array, x: Array, z: Array) -> Any:
        return 1.0 - np.sum((x - m * z) ** 2) / np.sum(x**2)

    held, used = slice(split, None), slice(0, split)
    scores = left(d, y[held], g[held]), left(p, g[held], y[held]), left(s, y[held], g[held]), left(d, y[used], g[used])
    return {"d": d, "scores": np.array(scores)}


def check_run(found: Any, expected: dict[str, Array]) -> None:
    fit = found["(all)"]
    values = np.concatenate(list(found.elements().values()))
    np.testing.assert_allclose(values, expected["d"], rtol=1e-12, atol=1e-15)
    scores = fit.r2, fit.r2_reverse, fit.r2_symmetric, fit.r2_in_sample
    np.testing.assert_allclose(scores, expected["scores"], rtol=1e-11)


@pytest.mark.parametrize("T", [4, 65, 133])  # one batch of at most 64 steps, and several
@pytest.mark.parametrize("threads", [1, 2])
def test_family(T: int, threads: int) -> None:
    _core.set_num_threads(threads)
    grad, update = run(T, (3, 1100, 2))
    found = identify(grad=grad, update=update, family="diagonal", rng=0)
    check_run(found, dense(grad, update, T - -(-T // 4)))
    assert found.fitted_steps == T - -(-T // 4)
    assert len(found.held_out) == -(-T // 4)


def numbers(fit: Any) -> tuple[Any, ...]:
    return fit.status, fit.r2, fit.r2_low, fit.r2_reverse, fit.r2_symmetric, fit.r2_in_sample, fit.smallest, fit.largest


def sources(grad: dict[str, Array], update: dict[str, Array], folder: Any) -> dict[str, Any]:
    T = len(grad["w0"])
    steps = [({k: x[t] for k, x in grad.items()}, {k: x[t] for k, x in update.items()}) for t in range(T)]
    recorder = steepest.Recorder(keep="vectors")
    on_disk = steepest.Recorder(folder, keep="vectors")
    for g, u in steps:
        recorder.step(grad=g, update=u)
        on_disk.step(grad=g, update=u)
    on_disk.close()
    return {
        "list": (steps,),
        "iterator": (iter(steps), T),
        "recorder": (recorder,),
        "folder": (folder,),
        "recording": (steepest.recording(grad=grad, update=update),),
    }


@pytest.mark.parametrize("bad", [(), (3,), (0, 1, 70), (5, 95, 99)])
def test_sources_agree_and_steps_that_are_not_finite_are_left_out(bad: tuple[int, ...], tmp_path: Any) -> None:
    T, split = 100, 75
    grad, update = run(T, (40, 3))
    for t in bad:
        (grad if t % 2 else update)["w1"][t, 1] = np.nan if t < 50 else np.inf
    good = [t for t in range(T) if t not in bad]
    expected = dense(grad, update, split, good)
    whole = identify(grad=grad, update=update, family="diagonal", rng=0)
    check_run(whole, expected)
    assert whole.fitted_steps == sum(t < split for t in good)
    assert whole.held_out == tuple(t for t in good if t >= split)
    for name, given in sources(grad, update, tmp_path / "run").items():
        found = identify(given[0], "diagonal", steps=given[1] if len(given) > 1 else None, rng=0)
        assert list(map(numbers, found.fits)) == list(map(numbers, whole.fits)), name
        assert (found.fitted_steps, found.held_out) == (whole.fitted_steps, whole.held_out), name
        for a, b in zip(found.elements().values(), whole.elements().values(), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)


def test_an_iterator_may_use_one_buffer_again() -> None:
    grad, update = run(40, (20,))
    buffer = np.empty((2, 20), np.float32)

    def steps() -> Iterator[tuple[Array, Array]]:
        for g, u in zip(grad["w0"], update["w0"], strict=True):
            buffer[:] = g, u
            yield buffer[0], buffer[1]

    found = identify(steps(), "diagonal", steps=40, rng=0)
    whole = identify(grad=grad["w0"], update=update["w0"], family="diagonal", rng=0)
    np.testing.assert_array_equal(found.elements(), whole.elements())
    assert numbers(found["(all)"]) == numbers(whole["(all)"])


def test_far_from_one() -> None:
    grad, update = run(30, (20,), "float64")
    plain = identify(grad=grad, update=update, family="diagonal", rng=0)
    scaled = [{k: np.ldexp(x, power) for k, x in v.items()} for v, power in ((grad, -700), (update, 300))]
    found = identify(grad=scaled[0], update=scaled[1], family="diagonal", rng=0)
    np.testing.assert_array_equal(np.ldexp(found.elements()["w0"], 1000), plain.elements()["w0"])
    assert found["(all)"].r2 == plain["(all)"].r2


def test_nothing_is_read_as_a_whole() -> None:
    """A source that reads a step when it is asked for it stays one."""

    class Lazy:
        def __init__(self, array: Array) -> None:
            self.array, self.shape, self.ndim = array, array.shape, array.ndim

        def __getitem__(self, t: int) -> Any:
            return self.array[t]

    grad, update = run(20, (5,))
    found = identify(grad=Lazy(grad["w0"]), update=Lazy(update["w0"]), family="diagonal", rng=0)
    whole = identify(grad=grad["w0"], update=update["w0"], family="diagonal", rng=0)
    np.testing.assert_array_equal(found.elements(), whole.elements())
    assert not steps_of(None, Lazy(grad["w0"]), Lazy(update["w0"]), None).lasting


def test_products_of_whole_arrays_wait_until_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []

    def counting(name: str) -> Any:
        of_core = getattr(_core, name)

        def call(*arguments: Any) -> Any:
            counted.append(name)
            return of_core(*arguments)

        return call

    for name in ("segment_angle_grams", "step_grams"):
        monkeypatch.setattr(_core, name, counting(name))
    grad, update = run(20, (5, 3))
    identify(grad=grad, update=update, family="diagonal", rng=0)
    assert counted == ["segment_angle_grams"]  # of the first step, for the units
    identify(grad=grad, update=update, family="scalar", rng=0)
    assert counted[1:] == ["step_grams"]  # of all steps at once


def test_products_of_a_step() -> None:
    rng = np.random.default_rng(0)
    shapes = {"a": (7, 3), "b": (), "c": (5,)}
    grad, update = ({k: rng.standard_normal((2, *s)) for k, s in shapes.items()} for _ in range(2))
    update["c"][1] = 0.0
    grad["b"][1] = 1e200
    for step in steps_of(None, grad, update, None).pairs(False):
        t = step.number
        for i, names in enumerate([list(shapes), *[[k] for k in shapes]]):
            y, g = (np.concatenate([x[k][t].ravel() for k in names]) for x in (grad, update))
            y, g = -np.ldexp(y, -int(step.exponents[i, 0])), np.ldexp(g, -int(step.exponents[i, 1]))
            np.testing.assert_allclose(step.products[i], [y @ y, y @ g, g @ g], rtol=1e-14)


def test_other_types_of_whole_arrays() -> None:
    torch = pytest.importorskip("torch")
    grad, update = run(20, (6,))
    expected = identify(grad=grad["w0"], update=update["w0"], family="diagonal", rng=0).elements()
    given = [torch.from_numpy(x["w0"]) for x in (grad, update)]
    np.testing.assert_array_equal(
        identify(grad=given[0], update=given[1], family="diagonal", rng=0).elements(), expected
    )
    narrow = [x.to(torch.bfloat16) for x in given]
    wide = [x.float().numpy() for x in narrow]
    found = identify(grad=narrow[0], update=narrow[1], family="diagonal", rng=0).elements()
    np.testing.assert_array_equal(found, identify(grad=wide[0], update=wide[1], family="diagonal", rng=0).elements())


def test_multi_secant_scores_steps_together_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    root = rng.standard_normal((30, 30))
    grad = {"a": rng.standard_normal((40, 4, 5)), "b": rng.standard_normal((40, 10))}
    rule = -np.linalg.inv(root @ root.T + np.eye(30))
    moved = np.concatenate([x.reshape(40, -1) for x in grad.values()], axis=1) @ rule
    update = {"a": moved[:, :20].reshape(40, 4, 5), "b": moved[:, 20:]}
    steps = [({k: x[t] for k, x in grad.items()}, {k: x[t] for k, x in update.items()}) for t in range(40)]
    options: dict[str, Any] = {"holdout": 0.55, "rng": 0, "tolerance": 0.5}
    together = identify(steps, "multi-secant", **options)
    alone = identify(iter(steps), "multi-secant", steps=40, **options)
    assert len(together.held_out) == 22
    for a, b in zip(together.fits, alone.fits, strict=True):
        found, expected = ([x.r2, x.r2_in_sample, x.r2_reverse, x.r2_low] for x in (a, b))
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("kind", ["shuffle", "flip"])
def test_surrogates_in_the_type_of_the_run(kind: Any) -> None:
    grad, update = run(40, (30, 3))
    narrow = [{k: x.astype(DTYPES["bfloat16"]) for k, x in v.items()} for v in (grad, update)]
    wide = [{k: x.astype(np.float64) for k, x in v.items()} for v in narrow]
    found, expected = (
        surrogates(grad=g, update=u, family="diagonal", kind=kind, count=5, rng=0) for g, u in (narrow, wide)
    )
    assert found.p() == expected.p()
    np.testing.assert_allclose(found.quantile(0.95), expected.quantile(0.95), rtol=1e-12)
