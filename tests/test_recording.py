"""Recording from whole arrays: against `steepest.align` row by row, exact inner products, and what must be refused."""

from __future__ import annotations

import dataclasses
import math
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import steepest
from steepest.alignment import Alignment
from steepest.arrays import EPSILON, long_vector
from steepest.recording import Recording, recording
from steepest.rounding_floor import spacing_norms
from steepest.row_format import STATUSES, RecordingInfo, row_dtype
from steepest.storage import RecordWriter

RNG = np.random.default_rng(3)
SHAPES = {"w": (4, 3), "b": (5,), "scale": ()}


def run(steps: int, dtype: Any = np.float64, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, np.ndarray]:
    return {name: RNG.standard_normal((steps, *shape)).astype(dtype) for name, shape in shapes.items()}


def at(x: dict[str, Any], t: int) -> dict[str, Any]:
    return {name: np.asarray(array[t]) for name, array in x.items()}


def assert_same(found: Alignment, expected: Alignment, floor: float | None = None) -> None:
    """Equal to the last bit, NaN to NaN; with `floor` but for psi_floor."""
    if floor is not None:
        expected = dataclasses.replace(expected, psi_floor=max(EPSILON[expected.dtype], floor))
    for field in dataclasses.fields(Alignment):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        assert a == b or (math.isnan(a) and math.isnan(b)), field.name


def assert_agree(found: Alignment, expected: Alignment, floor: float | None = None) -> None:
    """Equal within the bounds, where the products come from other passes: with lag, and of several arrays."""
    assert (found.status, found.size, found.dtype) == (expected.status, expected.size, expected.dtype)
    bound = found.inner_product_bound + expected.inner_product_bound
    if not math.isnan(bound):
        assert abs(found.inner_product - expected.inner_product) <= bound
        assert found.inner_product_bound <= expected.inner_product_bound * (1 + 1e-12)
    tolerance = 2e-12 if expected.dtype == "float64" else 4e-10
    for name in ("cosine", "sine", "angle", "grad_norm", "update_norm", "rho", "null_sign_flip", "null_isotropic"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=tolerance, abs=0.0, nan_ok=True), name
    assert found.psi_floor == (expected.psi_floor if floor is None else max(EPSILON[expected.dtype], floor))


def assert_rows_are_align(rec: Recording, grad: dict[str, Any], update: list[dict[str, Any]]) -> None:
    """Each block to the last bit without lag; the sum over blocks, and whatever has a lag, within the bounds."""
    check = assert_agree if rec.info.lag else assert_same
    for t, u in enumerate(update):
        g = at(grad, t)
        assert_agree(rec.alignment(t), steepest.align(g, u))
        for name, expected in steepest.align(g, u, blocks="separate").items():
            check(rec.alignment(t, name), expected)


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("grad_dtype", [np.float64, np.float32])
def test_rows_are_align(dtype: Any, grad_dtype: Any, lag: int) -> None:
    grad, update = run(6, grad_dtype), run(6, dtype)
    rec = recording(grad=grad, update=update, lag=lag)
    assert rec.blocks == ("(all)", "w", "b", "scale")
    assert rec.sizes == (18, 12, 5, 1)
    assert len(rec) == 6
    assert_rows_are_align(rec, grad, [at(update, t) for t in range(6)])


def test_columns_are_those_of_the_alignments() -> None:
    grad, update = run(40), run(40)
    rec = recording(grad=grad, update=update)
    for t in range(40):
        for b, block in enumerate(rec.blocks):
            a = rec.alignment(t, block)
            assert rec.status[t, b] == a.status
            assert rec.angle[t, b] == pytest.approx(a.angle, rel=4e-16)
            assert rec.grad_norm[t, b] == a.grad_norm
            assert rec.update_norm[t, b] == a.update_norm


def test_update_is_the_difference_of_params_bit_by_bit() -> None:
    for dtype in (np.float64, np.float32, np.float16):
        params, grad = run(5, dtype), run(5, dtype)
        rec = recording(params=params, grad=grad)
        assert len(rec) == 5
        assert rec.counts()["no_update"] == 1
        for t in range(4):
            update = {name: np.asarray(x[t + 1] - x[t]) for name, x in params.items()}
            expected = steepest.align(at(grad, t), update)
            spacing = np.concatenate([np.spacing(np.abs(x[t])).ravel().astype(np.float64) for x in params.values()])
            floor = math.atan(np.linalg.norm(spacing) / math.sqrt(12) / expected.update_norm)
            assert rec.psi_floor[t, 0] == pytest.approx(floor, rel=1e-14)
            assert_agree(rec.alignment(t), expected, rec.psi_floor[t, 0])


def test_floor_of_the_theory() -> None:
    """Section 0: float32 SGD with |params| about 0.05 and lr 1e-5 reads psi = 0.72 deg instead of 0."""
    rng = np.random.default_rng(0)
    theta = (0.05 * rng.standard_normal(20000)).astype(np.float32)
    grad = (rng.standard_normal(20000) * 2e-2).astype(np.float32)
    params = np.stack([theta, theta - np.float32(1e-5) * grad])
    a = recording(params=params, grad=grad[None]).alignment(0)
    assert a.angle > 1e-3
    assert a.angle == pytest.approx(a.psi_floor, rel=0.1)  # it is a standard deviation


def test_floor_of_numbers_without_a_square() -> None:
    tiny = np.array([[3e-310, -4e-300], [1e-310, -3e-300]])
    rec = recording(params=tiny)
    update = np.abs(tiny[1] - tiny[0])
    spacing = [Fraction(float(np.spacing(abs(x)))) for x in tiny[0]]
    ratio = math.sqrt(sum(s * s for s in spacing) / 12 / sum(Fraction(float(u)) ** 2 for u in update))
    assert rec.psi_floor[0, 0] == pytest.approx(math.atan(ratio), rel=1e-14)


def test_floor_of_bfloat16() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    params = np.array([[1.0, -3.0, 100.0], [1.5, -2.0, 96.0]], dtype=ml_dtypes.bfloat16)
    rec = recording(params=params, grad=params)
    ulp = np.array([2.0**-7, 2.0**-6, 2.0**-1])
    norm = np.linalg.norm([0.5, 1.0, 4.0])
    assert rec.update_norm[0, 0] == pytest.approx(norm, rel=1e-15)
    assert rec.psi_floor[0, 0] == pytest.approx(math.atan(np.linalg.norm(ulp) / math.sqrt(12) / norm), rel=1e-14)
    assert rec.alignment(0).dtype == "bfloat16"
    assert rec.alignment(1).dtype == "bfloat16"


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_spacing_norm_against_exact_arithmetic(dtype: Any) -> None:
    info = np.finfo(dtype)
    rng = np.random.default_rng(5)
    ordinary = rng.standard_normal(1000).astype(dtype)
    tiny = np.array([0.0, -info.smallest_subnormal, 3 * info.smallest_normal], dtype)
    cases = [
        ordinary,
        ordinary[::-3],
        tiny,
        np.concatenate([tiny, ordinary]),
        np.array([info.max / 2, -1.0], dtype),
        np.zeros(3, dtype),
        rng.standard_normal((40, 3000)).astype(dtype).T,  # more than one piece
    ]
    for x in cases:
        exact = sum(Fraction(float(s)) ** 2 for s in np.spacing(np.abs(x)).ravel())
        exponent = round(math.log2(float(np.spacing(np.abs(x)).max())))
        expected = math.ldexp(math.sqrt(exact / Fraction(4) ** exponent), exponent)
        (found,) = spacing_norms(long_vector(x, "x"))
        assert found == pytest.approx(expected, rel=1e-13)
    for wrong in (np.inf, np.nan):
        assert math.isnan(spacing_norms(long_vector(np.array([1.0, wrong], dtype), "x"))[0])


@pytest.mark.parametrize("size", [1, 15, 16, 17, 8193])
def test_spacing_norm_of_bfloat16(size: int) -> None:
    x = np.random.default_rng(size).standard_normal(size).astype(ml_dtypes.bfloat16)
    exponents = np.frexp(x.astype(np.float64))[1] - 1
    expected = float(np.linalg.norm(np.exp2(exponents - 7.0)))
    assert spacing_norms(long_vector(x, "x")) == [pytest.approx(expected, rel=1e-13)]


def exact_dot(x: np.ndarray, z: np.ndarray) -> Fraction:
    return sum((Fraction(float(a)) * Fraction(float(b)) for a, b in zip(x.ravel(), z.ravel(), strict=True)), Fraction())


@pytest.mark.parametrize("lag", [1, 3])
def test_inner_products_and_lags_against_exact_arithmetic(lag: int) -> None:
    grad, update = run(4), run(4)
    rec = recording(grad=grad, update=update, lag=lag)
    flat = [[np.concatenate([x[t].ravel() for x in v.values()]) for t in range(4)] for v in (grad, update)]
    for b, name in enumerate(rec.blocks):
        y, g = flat if b == 0 else ([grad[name][t] for t in range(4)], [update[name][t] for t in range(4)])
        for t in range(4):
            pairs = {
                "yy": (y[t], y[t], 2 * rec["y_exponent"][t, b]),
                "yg": (y[t], g[t], rec["y_exponent"][t, b] + rec["g_exponent"][t, b]),
                "gg": (g[t], g[t], 2 * rec["g_exponent"][t, b]),
            }
            for column, (left, right, exponent) in pairs.items():
                size = Fraction(float(np.linalg.norm(left) * np.linalg.norm(right)))  # yg itself may cancel
                assert_product(rec, (t, b), column, exact_dot(left, right), exponent, size)
            for j in range(1, lag + 1):
                lagged = {"lag_yy": (y, y), "lag_yg": (y, g), "lag_gy": (g, y), "lag_gg": (g, g)}
                for column, (left, right) in lagged.items():
                    place = (t, b, j - 1)
                    if t < j:
                        assert math.isnan(rec[column][place])
                        continue
                    exponent = rec[column + "_exponent"][place]
                    size = Fraction(float(np.linalg.norm(left[t]) * np.linalg.norm(right[t - j])))
                    assert_product(rec, place, column, exact_dot(left[t], right[t - j]), exponent, size)


def assert_product(rec: Recording, place: Any, column: str, exact: Fraction, exponent: int, size: Fraction) -> None:
    """hi + lo is within its bound of the exact product, and the bound is small."""
    hi, lo, bound = (Fraction(float(rec[column + part][place])) for part in ("", "_lo", "_bound"))
    unit = Fraction(2) ** int(exponent)
    assert abs((hi + lo) * unit - exact) <= bound * unit
    assert abs(lo) <= Fraction(math.ulp(float(hi))) / 2
    assert bound * unit <= size / 2**100


def test_lag_of_extreme_numbers() -> None:
    y, g = np.array([[3.0, 4.0], [1.0, 2.0]]), np.array([[-1.0, 1.0], [-1.0, -1.0]])
    rec = recording(grad=y * 1e-200, update=g * 1e250)
    lag = [math.ldexp(rec[name][1, 0, 0], int(rec[name + "_exponent"][1, 0, 0])) for name in ("lag_yy", "lag_yg")]
    assert lag[0] == 0.0  # 11e-400
    assert rec["lag_yy"][1, 0, 0] > 0.0
    assert lag[1] == pytest.approx(1e50, rel=1e-14)


def test_trapezoid_from_the_recorded_numbers() -> None:
    """The Gram matrix of (mean gradient, update) of step t-1 follows from rows t-1 and t."""
    params, grad = run(5), run(5)
    rec = recording(params=params, grad=grad)
    flat = [np.concatenate([x[t].ravel() for x in grad.values()]) for t in range(5)]
    theta = [np.concatenate([x[t].ravel() for x in params.values()]) for t in range(5)]
    for t in range(1, 5):
        mean, d = (flat[t - 1] + flat[t]) / 2, theta[t] - theta[t - 1]
        yy = rec.grad_norm[:, 0] ** 2
        lag_yy, lag_yg = (np.ldexp(rec[n][t, 0, 0], rec[n + "_exponent"][t, 0, 0]) for n in ("lag_yy", "lag_yg"))
        assert (yy[t - 1] + 2 * lag_yy + yy[t]) / 4 == pytest.approx(mean @ mean, rel=1e-13)
        assert (rec.alignment(t - 1).inner_product + lag_yg) / 2 == pytest.approx(mean @ d, rel=1e-12)


def nested(grad: np.ndarray, update: np.ndarray) -> dict[str, Any]:
    return {"grad": {"x": grad}, "update": {"x": update}}


def test_single_array_and_mapping_of_one() -> None:
    grad, update = RNG.standard_normal((2, 3, 4)), RNG.standard_normal((2, 3, 4))
    one, named = (recording(**given, lag=0) for given in ({"grad": grad, "update": update}, nested(grad, update)))
    assert one.blocks == ("(all)",)
    assert named.blocks == ("(all)", "x")
    assert named["block"].tolist() == [[0, 1], [0, 1]]
    for t in range(2):
        expected = steepest.align(grad[t], update[t])
        for found in (one.alignment(t), named.alignment(t), named.alignment(t, "x")):
            assert_same(found, expected)


def test_one_parameter_and_no_axis_but_steps() -> None:
    rec = recording(grad=np.array([2.0, -1.0, 1.0]), update=np.array([-1.0, -1.0, 0.0]))
    assert rec.sizes == (1,)
    assert rec.status[:, 0].tolist() == ["ok", "ascent", "zero_update"]
    assert rec.angle[:2, 0].tolist() == [0.0, math.pi]


def test_strided_arrays_are_read_where_they_lie() -> None:
    base = RNG.standard_normal((3, 8, 10))
    grad, update = base[:, ::2, ::-1], base.transpose(0, 2, 1)[:, :, :4].transpose(0, 2, 1)
    rec = recording(grad=grad, update=update, lag=0)
    for t in range(3):
        assert_agree(rec.alignment(t), steepest.align(grad[t].copy(), update[t].copy()))
    params = np.asfortranarray(base)
    spacing = np.linalg.norm(np.spacing(np.abs(base[0])).ravel())
    rec = recording(params=params)
    assert rec.psi_floor[0, 0] == pytest.approx(math.atan(spacing / math.sqrt(12) / rec.update_norm[0, 0]), rel=1e-13)


def test_every_status_keeps_its_row() -> None:
    nan, huge = math.nan, 1e300
    grad = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [nan, 1.0], [1.0, 0.0], [huge, huge]])
    update = np.array([[-1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 5.0], [-huge, -huge]])
    rec = recording(grad=grad, update=update, loss=np.arange(7), lag=0)
    expected = ["ok", "ascent", "zero_grad", "zero_update", "nonfinite", "ascent", "ok"]
    assert rec.status[:, 0].tolist() == expected
    assert rec.counts() == {"ok": 2, "ascent": 2, "zero_update": 1, "zero_grad": 1, "nonfinite": 1}
    for t in range(7):
        assert_same(rec.alignment(t), steepest.align(grad[t], update[t]))
        assert rec.alignment(t).to_dict()["status"] == expected[t]
    assert "ok 2" in repr(rec)


def test_without_gradient_and_without_loss() -> None:
    params = run(3)
    rec = recording(params=params)
    assert rec.status[:, 0].tolist() == ["no_gradient", "no_gradient"]
    assert np.isnan(rec.loss).all()
    a = rec.alignment(0, "w")
    assert (a.status, a.dtype, a.size) == ("no_gradient", "float64", 12)
    assert a.update_norm == pytest.approx(np.linalg.norm(params["w"][1] - params["w"][0]), rel=1e-14)
    assert all(math.isnan(x) for x in (a.angle, a.grad_norm, a.inner_product, a.cond_min, a.alpha_opt, a.rate_bound))
    assert "no_gradient" in repr(a)


def test_last_state_is_a_row_if_it_has_a_loss_or_a_gradient() -> None:
    params, loss = np.array([[3.0], [2.0], [1.0]]), [9.0, 4.0, 1.0]
    rec = recording(params=params, grad=params, loss=loss)
    assert rec.status[:, 0].tolist() == ["ok", "ok", "no_update"]
    assert rec.loss.tolist() == loss
    assert rec.grad_norm[2, 0] == 1.0
    assert math.isnan(rec.update_norm[2, 0])
    assert math.isnan(rec.psi_floor[2, 0])
    assert len(recording(params=params, grad=params[:2], loss=loss[:2])) == 2
    assert len(recording(params=params, grad=params[:2], loss=loss)) == 3
    assert len(recording(update=params, grad=params, loss=[*loss, 0.0])) == 4


def test_rate_differences_nothing() -> None:
    theta = np.array([[2.0, 1.0], [1.0, 0.5]])
    for given in ({"rate": True}, {"time": np.array([0, 3])}):
        rec = recording(params=theta, grad=theta, update=-theta, **given, lag=0)
        assert rec.rate
        assert np.isnan(rec.psi_floor).all()
        assert_same(rec.alignment(1), steepest.align(theta[1], -theta[1]))
        with pytest.raises(ValueError, match="d theta/dt"):
            recording(params=theta, grad=theta, **given)
    assert recording(grad=theta, update=-theta, time=[0.5, 2.0]).time.tolist() == [0.5, 2.0]


def test_names_in_another_order() -> None:
    grad, update = run(2), run(2)
    rec = recording(grad=grad, update=dict(reversed(update.items())))
    assert_rows_are_align(rec, grad, [at(update, t) for t in range(2)])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "update, or params"),
        ({"grad": np.ones((2, 3))}, ValueError, "update, or params"),
        ({"params": np.ones((3, 2)), "grad": np.ones((3, 4))}, ValueError, r"shape \(2,\).*shape \(4,\)"),
        ({"params": {"a": np.ones((3, 2))}, "grad": {"b": np.ones((3, 2))}}, ValueError, r"'a'.*'b'"),
        ({"params": {"a": np.ones((3, 2))}, "grad": np.ones((3, 2))}, ValueError, r"mapping.*an array"),
        ({"params": np.ones((3, 2)), "grad": np.ones((5, 2))}, ValueError, "grad to have 2 or 3.*params has 3.*got 5"),
        ({"update": np.ones((3, 2)), "loss": np.ones(2)}, ValueError, "loss to have 3 or 4.*got 2"),
        ({"update": np.ones((3, 2)), "params": np.ones((5, 2))}, ValueError, "params to have 3 or 4.*got 5"),
        ({"update": np.ones((3, 2)), "time": np.ones(7)}, ValueError, "time to have 3 or 4.*got 7"),
        ({"update": np.ones((3, 2)), "loss": np.ones((3, 1))}, ValueError, r"\(steps,\), got \(3, 1\)"),
        ({"update": np.ones((3, 2)), "loss": np.ones(3, complex)}, TypeError, "complex128"),
        ({"update": np.ones((3, 2)), "loss": ["a", "b", "c"]}, TypeError, "real numbers"),
        ({"update": np.float64(3.0)}, ValueError, "first axis"),
        ({"update": {"a": np.ones((3, 2)), "b": np.ones((4, 2))}}, ValueError, "same number of steps"),
        ({"update": {"(all)": np.ones((3, 2))}}, ValueError, "rename"),
        ({"update": {0: np.ones((3, 2))}}, TypeError, "text"),
        ({"update": {"a": np.ones((3, 2)), "b": np.ones((3, 0))}}, ValueError, "'b'"),
        ({"update": np.ones((3, 2), int)}, TypeError, "int64"),
        ({"update": np.ones((3, 2)), "objective": "constant"}, ValueError, "'fixed', got 'constant'"),
        ({"update": np.ones((3, 2)), "gradient_source": "me"}, ValueError, "'estimate', got 'me'"),
    ],
)
def test_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        recording(**arguments)


def test_unknown_step_block_and_column() -> None:
    rec = recording(update=np.ones((3, 2)))
    for step in (3, -1):
        with pytest.raises(ValueError, match="3 steps from 0 to 2"):
            rec.alignment(step)
    with pytest.raises(ValueError, match="'w'"):
        rec.alignment(0, "w")
    with pytest.raises(ValueError, match="'w'"):
        rec.counts("w")
    with pytest.raises(KeyError, match="psi_floor"):
        rec["psi"]


def test_read_only() -> None:
    rec = recording(update=np.ones((3, 2)), loss=[3.0, 2.0, 1.0])
    for column in (rec["yy"], rec.loss, rec.step, rec.time, rec.psi_floor, rec.rows):
        assert not column.flags.writeable


def test_save_load_pickle_and_dict(tmp_path: Path) -> None:
    params, grad = run(4, np.float32), run(4, np.float32)
    rec = recording(params=params, grad=grad, loss=np.arange(4.0), objective="fixed", gradient_source="evaluation")
    rec.save(tmp_path / "run")
    with pytest.raises(FileExistsError):
        rec.save(tmp_path / "run")
    for again in (
        Recording.open(tmp_path / "run"),
        Recording.load(tmp_path / "run"),
        pickle.loads(pickle.dumps(rec)),
        pickle.loads(pickle.dumps(Recording.open(tmp_path / "run"))),
    ):
        assert not again.rows.flags.writeable
        assert again.info == rec.info
        assert again.rows.tobytes() == rec.rows.tobytes()
        assert (again.blocks, again.sizes, again.objective) == (rec.blocks, rec.sizes, "fixed")
        for block in rec.blocks:
            assert_same(again.alignment(2, block), rec.alignment(2, block))
    plain = rec.to_dict()
    assert plain["loss"] == [0.0, 1.0, 2.0, 3.0]
    assert plain["status"] == rec.status.tolist()
    assert plain["yg"][1] == rec["yg"][1].tolist()
    assert plain["dtype"][0] == ["float32"] * 4
    assert "fixed" in repr(rec)


def test_no_step_at_all(tmp_path: Path) -> None:
    rec = recording(params={"a": np.ones((1, 3))})
    rec.save(tmp_path / "run")
    for one in (rec, Recording.open(tmp_path / "run")):
        assert len(one) == 0
        assert one.rows.shape == one.angle.shape == one.status.shape == (0, 2)
        assert one.counts() == {}
        assert "0 steps" in repr(one)
        with pytest.raises(ValueError, match="no step"):
            one.alignment(0)


def test_load_outlives_the_folder(tmp_path: Path) -> None:
    recording(update=np.ones((3, 2))).save(tmp_path / "run")
    loaded = Recording.load(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "gone")
    assert loaded.update_norm[0, 0] == pytest.approx(math.sqrt(2))


def test_foreign_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Recording.open(tmp_path / "nothing")
    RecordWriter.create(tmp_path / "other", [("loss", "f8")], user={}).close()
    with pytest.raises(ValueError, match="hold steps"):
        Recording.open(tmp_path / "other")
    info = RecordingInfo(None, ((2,),))
    RecordWriter.create(tmp_path / "fields", [("loss", "f8")], user=info.to_json()).close()
    with pytest.raises(ValueError, match="fields of schema"):
        Recording.open(tmp_path / "fields")
    user = {key: value for key, value in info.to_json().items() if key != "shapes"}
    RecordWriter.create(tmp_path / "half", [("loss", "f8")], user=user).close()
    with pytest.raises(ValueError, match="in full"):
        Recording.open(tmp_path / "half")


def test_status_codes_on_disk_do_not_change() -> None:
    """They are part of the format: a new status goes to the end."""
    assert STATUSES[:9] == (
        "ok", "ascent", "undecided", "zero_update", "zero_grad", "nonfinite", "no_gradient", "no_update", "skipped",
    )  # fmt: skip
    assert row_dtype(0).itemsize == 8 + (1 + 1 + 2 + 4) + 2 * 8 + 9 * 8 + 2 * 4 + 5 * 8 + 24
    for lag in (1, 2, 5):
        assert row_dtype(lag).itemsize == row_dtype(0).itemsize + 4 * (3 * 8 + 4) * lag
        assert row_dtype(lag)["lag_gy_bound"].shape == (lag,)
        fields = row_dtype(lag).fields.values()
        assert all(offset % min(field.base.itemsize, 8) == 0 for field, offset in fields)
        assert row_dtype(lag).itemsize % 8 == 0


def test_torch() -> None:
    torch = pytest.importorskip("torch")
    params = {name: torch.tensor(x, requires_grad=True) for name, x in run(3, np.float32).items()}
    grad = {name: torch.tensor(x) for name, x in run(3, np.float32).items()}
    rec = recording(params=params, grad=grad, loss=torch.tensor([3.0, 2.0, 1.0], requires_grad=True))
    arrays = {name: x.detach().numpy() for name, x in params.items()}
    same = recording(params=arrays, grad={name: x.numpy() for name, x in grad.items()}, loss=[3.0, 2.0, 1.0])
    assert rec.rows.tobytes() == same.rows.tobytes()
    half = {name: x.to(torch.bfloat16) for name, x in grad.items()}
    found = recording(grad=half, update=half)
    assert_agree(found.alignment(0), steepest.align(*[{name: x[0] for name, x in half.items()}] * 2))


def test_jax() -> None:
    jnp = pytest.importorskip("jax.numpy")
    grad, update = run(3, np.float32), run(3, np.float32)
    rec = recording(
        grad={name: jnp.asarray(x) for name, x in grad.items()},
        update={name: jnp.asarray(x) for name, x in update.items()},
        loss=jnp.asarray([3.0, 2.0, 1.0]),
    )
    assert rec.rows.tobytes() == recording(grad=grad, update=update, loss=[3.0, 2.0, 1.0]).rows.tobytes()
