"""Pairs of finite steps from recorded products, against the vectors themselves in exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import steepest
from steepest.analysis.columns import PAIR_STATUSES
from steepest.analysis.step_pairs import StepPair, step_pair_rows
from steepest.recording import Recording, recording
from steepest.row_format import RecordingInfo, row_dtype
from steepest.step_rows import scalar_row

SHAPES = {"w": (4, 2), "b": (3,), "scale": ()}
OFFSETS = {"left": lambda w: [0], "trapezoid": lambda w: [0, 1], "displacement": lambda w: list(range(w + 1))}

Vector = list[Fraction]


def exact(x: Any) -> Vector:
    return [Fraction(float(v)) for v in np.ravel(x)]


def dot(a: Vector, b: Vector) -> Fraction:
    return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))


def combined(vectors: list[Vector]) -> Vector:
    return [sum(column, Fraction(0)) for column in zip(*vectors, strict=True)]


def root(x: Fraction) -> float:
    """sqrt to double precision, also of numbers beyond its range."""
    shift = (x.numerator.bit_length() - x.denominator.bit_length()) // 2
    return math.ldexp(math.sqrt(x / Fraction(4) ** shift), shift)


def data(steps: int = 9, seed: int = 0, **scales: float) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    grad = {name: rng.standard_normal((steps, *shape)) * scales.get("grad", 1.0) for name, shape in SHAPES.items()}
    update = {name: rng.standard_normal((steps, *shape)) * scales.get("update", 1.0) for name, shape in SHAPES.items()}
    loss = rng.standard_normal(steps) * scales.get("grad", 1.0) * scales.get("update", 1.0)
    return {"grad": grad, "update": update, "loss": loss}


def expected(x: dict[str, Any], pair: str, window: int, t: int, angles_only: bool = False) -> dict[str, dict[str, Any]]:
    """The columns of step t, block by block, from the vectors."""
    names = list(x["grad"])
    y0, d = {}, {}
    offsets = OFFSETS[pair](window)
    for name in names:
        mean = combined([exact(x["grad"][name][t + i]) for i in offsets])
        y0[name] = [v / len(offsets) for v in mean]
        d[name] = combined([exact(x["update"][name][t + i]) for i in range(window)])
    change = Fraction(float(x["loss"][t + window] - x["loss"][t]))
    whole_y, whole_d = ([e for name in names for e in v[name]] for v in (y0, d))
    tau = (change - dot(whole_y, whole_d)) / dot(whole_d, whole_d)
    found = {}
    for block in ["(all)", *names]:
        base, move = (whole_y, whole_d) if block == "(all)" else (y0[block], d[block])
        dg = [a + tau * b for a, b in zip(base, move, strict=True)]
        yy, yg, gg = dot(dg, dg), dot(dg, move), dot(move, move)
        status = "ok" if yg < 0 else "ascent"
        total = yy * gg
        sine, cosine = (root(v / total) for v in (max(Fraction(0), total - yg * yg), yg * yg))
        angle = math.atan2(sine, cosine if status == "ok" else -cosine)
        found[block] = {"status": status, "psi": angle}
        if angles_only:
            continue
        found[block] |= {
            "grad_norm": root(yy),
            "update_norm": root(gg),
            "rho": root(yy / gg),
            "correction_share": root(tau * tau * gg / yy),
        }
        if status == "ok":
            found[block]["alpha"] = float(yy / -yg)
    return found


def check(rec: Recording, x: dict[str, Any], pair: Any, window: int, rtol: float = 1e-11) -> None:
    r = steepest.analyze(rec, pair=pair, window=window).runs["run"]
    assert r.pair == pair
    for t in range(len(rec) - window):
        for b, (block, columns) in enumerate(expected(x, pair, window, t).items()):
            for name, value in columns.items():
                if isinstance(value, str):
                    assert r[name][t, b] == value, (t, block, name)
                else:
                    assert r[name][t, b] == pytest.approx(value, rel=rtol, abs=1e-14), (t, block, name)
    assert (r["status"][len(rec) - window :, 0] == "no_loss").all()


@pytest.mark.parametrize(("pair", "window"), [("left", 1), ("trapezoid", 1), ("displacement", 2), ("displacement", 5)])
@pytest.mark.parametrize(("grad", "update"), [(1.0, 1.0), (1e-120, 1.0), (1.0, 1e-150), (1e100, 1e-40)])
def test_against_the_vectors(pair: str, window: int, grad: float, update: float) -> None:
    x = data(grad=grad, update=update)
    check(recording(**x, lag=window, objective="fixed"), x, pair, window)


def test_displacement_of_one_step_is_the_trapezoid() -> None:
    rec = recording(**data(), objective="fixed")
    a, b = (steepest.analyze(rec, pair=pair).runs["run"] for pair in ("trapezoid", "displacement"))
    for name in ("status", "psi", "alpha", "correction_share"):
        np.testing.assert_array_equal(a[name], b[name])


def test_auto_takes_the_trapezoid_of_one_function_only() -> None:
    x = data()
    assert steepest.analyze(recording(**x, objective="fixed"))["run"].pair == "trapezoid"
    assert steepest.analyze(recording(**x))["run"].pair == "continuous"
    assert steepest.analyze(recording(**x, objective="fixed", lag=0))["run"].pair == "continuous"
    assert (
        steepest.analyze(recording(grad=x["grad"], update=x["update"], objective="fixed"))["run"].pair == "continuous"
    )
    assert steepest.analyze(recording(**x, lag=3), window=3)["run"].pair == "displacement"
    writer = steepest.Recorder(every=2, objective="fixed", lag=0)
    for t in range(6):
        writer.step(grad=np.ones(2), update=-np.ones(2), loss=6.0 - t)
    assert steepest.analyze(writer)["run"].pair == "continuous"


def test_trapezoid_is_that_of_the_descent_pair() -> None:
    """On a quadratic, where params, gradients and losses belong together: steepest.pairs.discrete is the oracle."""
    rng = np.random.default_rng(3)
    root_of = rng.standard_normal((6, 6))
    hessian = root_of @ root_of.T
    theta = np.cumsum(rng.standard_normal((7, 6)), axis=0)
    grad, loss = theta @ hessian, 0.5 * np.einsum("ti,ij,tj->t", theta, hessian, theta)
    rec = recording(params=theta, grad=grad, loss=loss, objective="fixed")
    r = steepest.analyze(rec)["run"]
    assert r.pair == "trapezoid"
    for t in range(6):
        pair = steepest.pairs.discrete(
            theta[t], theta[t + 1], loss=loss[t], loss_next=loss[t + 1], grad=grad[t], grad_next=grad[t + 1]
        )
        a = pair.align()
        assert r["status"][t, 0] == a.status
        assert r["psi"][t, 0] == pytest.approx(a.angle, rel=1e-12)
        assert r["rho"][t, 0] == pytest.approx(a.rho, rel=1e-12)
        assert r["correction_share"][t, 0] == pytest.approx(pair.correction_share, rel=1e-9, abs=1e-14)
        # of a quadratic the trapezoid needs no correction
        assert r["correction_share"][t, 0] < 1e-12


@pytest.mark.parametrize("angle", [1e-3, 1e-6, 1e-9])
def test_small_angles_of_sums_of_gradients(angle: float) -> None:
    """Gradients of 1 that add up to a vector at a tiny angle with the step: the Gram determinant cancels."""
    d = np.array([1.0, 0.0, 0.0])
    off = np.array([0.0, 1.0, 0.0])
    # grad_0 + grad_1 = -2 d + 2 angle off, exactly
    grad = np.stack([-d + 0.5 * off, -d - 0.5 * off + 2 * angle * off])
    rec = recording(grad=grad, update=np.stack([d, d]), loss=np.array([1.0, 0.0]), objective="fixed")
    r = steepest.analyze(rec)["run"]
    mean = [(a + b) / 2 for a, b in zip(exact(grad[0]), exact(grad[1]), strict=True)]
    assert r["psi"][0, 0] == pytest.approx(math.atan(float(mean[1])), rel=1e-12)
    assert not r["within_rounding"][0, 0]


def test_sign_of_a_block_is_never_guessed() -> None:
    """Inexact sources: a block whose z is within its bound is undecided, whatever its computed sign."""
    rng = np.random.default_rng(1)
    decided = undecided = 0
    for _ in range(200):
        g0, g1, d = rng.standard_normal((3, 2, 4))  # block, element
        loss = rng.standard_normal(2)
        rows = np.zeros((2, 3), row_dtype(1))
        error = 10.0 ** rng.uniform(-9, 0)

        def measured(a: Any, b: Any, error: float = error) -> tuple[float, float, float]:
            value, bound = float(np.sum(a * b)), error * float(np.linalg.norm(a) * np.linalg.norm(b))
            return value + bound * rng.uniform(-1, 1), 0.0, bound * (1 + 1e-12) + 1e-15

        from steepest.block_products import MISSING, normalized

        for b in range(3):
            y0, y1, u = (v if b == 0 else v[b - 1] for v in (g0, g1, d))
            shared = {"loss": loss[0], "time": 0.0}
            scalar_row(rows[0], 0, b, "float32", measured(y0, y0), measured(y0, u), measured(u, u), **shared)
            lag = tuple(normalized(*measured(y1, v)) for v in (y0, u))
            scalar_row(
                rows[1], 1, b, "float32", measured(y1, y1), None, None, loss=loss[1], lags=[(*lag, MISSING, MISSING)]
            )
        rec = Recording(RecordingInfo(("a", "b"), ((4,), (4,)), "fixed", lag=1), rows)
        r = steepest.analyze(rec, pair="trapezoid")["run"]
        mean = 0.5 * (g0 + g1)
        change = loss[1] - loss[0]
        tau = (change - np.sum(mean * d)) / np.sum(d * d)
        z = [change, *(np.sum((mean[b] + tau * d[b]) * d[b]) for b in range(2))]
        for b in range(3):
            status = r["status"][0, b]
            if status == "undecided":
                undecided += 1
                continue
            decided += 1
            assert status == ("ok" if z[b] < 0 else "ascent")
    assert decided > 100
    assert undecided > 20


def test_missing_parts_are_named() -> None:
    x = np.ones(3)
    writer = steepest.Recorder(lag=1, objective="fixed")
    writer.step(grad=x, update=-x, loss=9.0)  # 0: next gradient is missing
    writer.step(update=-x, loss=8.0)  # 1: no gradient
    writer.step(grad=x, update=-x, loss=7.0)  # 2: next step is skipped
    writer.skip("why")  # 3
    writer.step(grad=x, update=-x)  # 4: no loss
    writer.step(grad=x, update=-x, loss=5.0)  # 5: next gradient is not finite
    writer.step(grad=x * np.nan, update=-x, loss=4.0)  # 6
    writer.step(grad=x, update=0 * x, loss=3.0)  # 7: does not move
    writer.step(grad=x, update=x, loss=2.0)  # 8: loss rises
    writer.step(grad=x, update=-x, loss=2.5)  # 9: fine
    writer.step(grad=x, loss=2.0)  # 10: the end
    found = steepest.analyze(writer, pair="trapezoid")["run"]["status"][:, 0].tolist()
    assert found == [
        "no_gradient", "no_gradient", "no_loss", "skipped", "no_loss", "nonfinite", "nonfinite", "zero_update",
        "ascent", "ok", "no_update",
    ]  # fmt: skip


def test_loss_that_stays_is_an_ascent_and_infinite_losses_are_not_finite() -> None:
    x = np.ones((4, 3))
    rec = recording(grad=x, update=-x, loss=[1.0, 1.0, np.inf, np.inf], objective="fixed")
    r = steepest.analyze(rec, pair="left")["run"]
    assert r["status"][:, 0].tolist() == ["ascent", "nonfinite", "nonfinite", "no_loss"]
    zero = recording(grad=0 * x, update=-x, loss=[1.0, 1.0, 0.5, 0.25], objective="fixed")
    r = steepest.analyze(zero, pair="trapezoid")["run"]
    assert r["status"][:, 0].tolist() == ["zero_grad", "ok", "ok", "no_loss"]
    np.testing.assert_allclose(r["psi"][1:3, 0], 0.0)
    np.testing.assert_allclose(r["correction_share"][1:3, 0], 1.0)


def test_one_parameter() -> None:
    theta = np.array([[2.0], [1.0], [-0.5]])
    rec = recording(params=theta, grad=theta, loss=0.5 * theta[:, 0] ** 2, objective="fixed")
    r = steepest.analyze(rec)["run"]
    assert r["psi"][:2, 0].tolist() == [0.0, 0.0]
    # DG = mean of the gradients = 1.5 and 0.25; M = -DG/d
    np.testing.assert_allclose(r["alpha"][:2, 0], [1.5, 0.25 / 1.5], rtol=1e-15)
    np.testing.assert_allclose(r["cond_min"][:2, 0], 1.0)


def test_window_that_cancels_does_not_claim_a_metric() -> None:
    d = np.array([0.1, 0.3, 0.7])
    x = {"grad": np.ones((3, 3)), "update": np.stack([d, -d, d]), "loss": np.array([1.0, 0.9, 0.8])}
    r = steepest.analyze(recording(**x, lag=2), window=2)["run"]
    assert r["status"][0, 0] in ("undecided", "zero_update")
    assert np.isnan(r["cond_min"][0, 0])


def test_no_floating_point_warnings_at_the_ends_of_the_range() -> None:
    x = data(grad=1e150, update=1e-200)
    x["loss"] *= 1e300
    rec = recording(**x, objective="fixed")
    with np.errstate(all="raise"):
        r = steepest.analyze(rec)["run"]
        r["psi"], r["alpha"], r["distance"], r["curvature"]
    assert set(r["status"].ravel()) <= set(PAIR_STATUSES)


def test_rounding_floor_of_a_window() -> None:
    """One ulp of each parameter for each step: what the steps' floors say, together."""
    theta = (1.0 + np.cumsum(np.full((4, 5), 1e-5), axis=0)).astype(np.float32)
    rec = recording(params=theta, grad=np.ones((4, 5), np.float32), loss=np.arange(4.0)[::-1], lag=2)
    r = steepest.analyze(rec, window=2)["run"]
    moves = np.diff(theta.astype(float), axis=0)
    spacing = np.linalg.norm(np.spacing(theta[:2]).astype(float)) / math.sqrt(12.0)
    assert r["psi_floor"][0, 0] == pytest.approx(math.atan(spacing / np.linalg.norm(moves[:2].sum(axis=0))), rel=1e-9)


def test_rows_directly() -> None:
    rec = recording(**data(), objective="fixed")
    single = np.array(rec.sizes) == 1
    found = step_pair_rows(rec.rows, rec.step, rec.loss, StepPair.of("trapezoid", 1), single)
    assert found["status_code"].dtype == np.int8
    assert np.isnan(found["null_sign_flip"]).all()
    assert set(found["psi_floor"].shape) == {len(rec), len(rec.blocks)}


@pytest.mark.parametrize("loss", [1e-300, 1.0, 1e300])
def test_blocks_and_losses_of_very_different_sizes(loss: float) -> None:
    rng = np.random.default_rng(4)
    sizes = {"large": (1e-250, 1e150), "small": (1e150, 1e-250), "plain": (1.0, 1.0)}
    names = ["large", "plain", "small"]
    x: dict[str, Any] = {
        which: {name: rng.standard_normal((5, 3)) * sizes[name][i] for name in names}
        for i, which in enumerate(("grad", "update"))
    }
    x["loss"] = np.array([4.0, 3.0, 5.0, 2.0, 1.0]) * loss
    rec = recording(**x, objective="fixed")
    r = steepest.analyze(rec, pair="trapezoid")["run"]
    decided = 0
    for t in range(4):
        for b, (block, columns) in enumerate(expected_angles(x, t).items()):
            if r["status"][t, b] == "undecided":
                assert block != "(all)"
                continue
            decided += 1
            for name, value in columns.items():
                found = r[name][t, b]
                assert found == value if isinstance(value, str) else found == pytest.approx(value, rel=1e-9, abs=1e-14)
    assert decided > 12


def expected_angles(x: dict[str, Any], t: int) -> dict[str, dict[str, Any]]:
    """Status and angle alone: norms leave the range."""
    return {
        block: {name: columns[name] for name in ("status", "psi")}
        for block, columns in expected(x, "trapezoid", 1, t, angles_only=True).items()
    }


@pytest.mark.parametrize("update", [1e-280, 1.0, 1e150])
def test_a_loss_that_stays_leaves_a_right_angle(update: float) -> None:
    """DG.d = 0: whatever the sizes, psi is 90 degrees and there is no metric."""
    x = data(update=update)
    x["loss"] = np.ones(9)
    r = steepest.analyze(recording(**x, objective="fixed"))["run"]
    assert (r["status"][:-1, 0] == "ascent").all()
    np.testing.assert_allclose(r["psi"][:-1, 0], np.pi / 2, rtol=1e-15)
    assert (r["grad_norm"][:-1, 0] > 0.1).all()
