"""Pairs over a window of steps, and the least window over which the loss falls."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
import steepest
from oracles import mp
from steepest import pairs
from steepest.errors import NotDescentError
from steepest.pairs.windowed import EffectiveWindow, smallest_effective_window, windowed

KINDS = ("displacement", "one-step")


def walk(steps: int = 8, n: int = 7, seed: int = 0, length: float = 1.0) -> dict[str, np.ndarray]:
    """Losses, gradients and parameters that have nothing to do with each other."""
    rng = np.random.default_rng(seed)
    params = np.cumsum(length * rng.standard_normal((steps + 1, n)), axis=0)
    return {"params": params, "grad": rng.standard_normal((steps + 1, n)), "loss": rng.standard_normal(steps + 1)}


def heavy_ball(curvatures: np.ndarray, steps: int, mu: float, lr: float) -> dict[str, np.ndarray]:
    """L = theta.H theta/2 with H diagonal, from theta = (1, ..., 1)."""
    theta, velocity = np.ones(len(curvatures)), np.zeros(len(curvatures))
    params, grads, losses = [], [], []
    for _ in range(steps + 1):
        grad = curvatures * theta
        params.append(theta)
        grads.append(grad)
        losses.append(0.5 * float(theta @ grad))
        velocity = mu * velocity - lr * grad
        theta = theta + velocity
    return {"params": np.array(params), "grad": np.array(grads), "loss": np.array(losses)}


def by_definition(x: dict[str, Any], t: int, w: int, kind: str) -> tuple[list[Any], list[Any], Any, Any]:
    """Gradient, displacement, dL and q of section 1 in 100 digits; displacements from params or updates."""
    length = w if kind == "displacement" else 1
    if "params" in x:
        d = [b - a for a, b in zip(*(oracles.exact(x["params"][s]) for s in (t, t + length)), strict=True)]
    else:
        d = [mp.fsum(c) for c in zip(*(oracles.exact(x["update"][s]) for s in range(t, t + length)), strict=True)]
    change = mp.mpf(float(x["loss"][t + w])) - mp.mpf(float(x["loss"][t]))
    grads = [oracles.exact(x["grad"][s]) for s in range(t, t + w + (kind == "displacement"))]
    mean = [mp.fsum(c) / len(grads) for c in zip(*grads, strict=True)]
    if kind == "one-step":
        change /= w
    tau = (change - oracles.inner(mean, d)) / oracles.inner(d, d)
    y = [a + tau * b for a, b in zip(mean, d, strict=True)]
    share = abs(tau) * mp.sqrt(oracles.inner(d, d) / oracles.inner(y, y))
    return y, d, change, share


def cosine(y: list[Any], d: list[Any]) -> Any:
    return -oracles.inner(y, d) / mp.sqrt(oracles.inner(y, y) * oracles.inner(d, d))


# The pair -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("w", [1, 2, 5])
@pytest.mark.parametrize("vectors", ["params", "update"])
def test_against_100_digits(kind: Any, w: int, vectors: str) -> None:
    x = walk()
    if vectors == "update":
        x["update"] = np.diff(x.pop("params"), axis=0)
    rec = steepest.recording(**x)
    for t in range(3):
        pair = windowed(rec, t, window=w, kind=kind, lr=0.25)
        y, d, change, share = by_definition(x, t, w, kind)
        a = pair.align()
        assert a.status == ("ok" if change < 0 else "ascent")
        assert a.cosine == pytest.approx(float(cosine(y, d)), rel=1e-14)
        assert a.inner_product == pytest.approx(float(change) / 0.25, rel=1e-15)
        assert pair.correction_share == pytest.approx(float(share), rel=1e-13)
        assert pair.loss_change == pytest.approx(float(change), rel=1e-15)
        assert pair.defect == 0.0
        np.testing.assert_allclose(pair.gradient(), [float(v) for v in y], rtol=0, atol=1e-14)
        np.testing.assert_allclose(pair.update(), [4.0 * float(v) for v in d], rtol=0, atol=1e-14)


@settings(max_examples=40, deadline=None)
@given(
    n=st.sampled_from([1, 2, 3, 10]),
    w=st.integers(1, 6),
    kind=st.sampled_from(KINDS),
    size=st.sampled_from([1e-9, 1.0, 1e9]),
    seed=st.integers(0, 2**32 - 1),
    keep=st.sampled_from(["params", "update"]),
)
def test_secant_and_metric(n: int, w: int, kind: Any, size: float, seed: int, keep: str) -> None:
    x = walk(w, n, seed, size)
    params = x["params"]
    if keep == "update":
        x["update"] = np.diff(x.pop("params"), axis=0)
    pair = windowed(steepest.recording(**x), 0, window=w, kind=kind)
    d = pair.update()
    expected = params[w if kind == "displacement" else 1] - params[0]
    np.testing.assert_allclose(d, expected, rtol=0, atol=1e-15 * np.abs(params).max() * w)
    change = (x["loss"][w] - x["loss"][0]) / (1 if kind == "displacement" else w)
    g = pair.gradient()
    # The correction may cancel most of the averaged gradient.
    scale = (np.linalg.norm(g) + np.linalg.norm(x["grad"])) * np.linalg.norm(d) + np.abs(x["loss"]).max()
    assert abs(g @ d - change) <= 1e-12 * scale
    if change < 0:
        solved = pair.metric().solve(-g)
        np.testing.assert_allclose(solved, d, rtol=0, atol=1e-10 * np.linalg.norm(d))
        if n == 1 or pair.align().cond_min < 1e12:  # else the least eigenvalue is below rounding
            assert np.linalg.eigvalsh(pair.metric().to_dense()).min() > 0
    else:
        with pytest.raises(NotDescentError):
            pair.metric()


def test_window_one_is_the_discrete_gradient() -> None:
    x = walk()
    rec = steepest.recording(**x, objective="fixed")
    for kind, method in (("displacement", "trapezoid"), ("one-step", "left")):
        own = windowed(rec, 2, window=1, kind=kind, lr=0.5)  # type: ignore[arg-type]
        other = pairs.discrete(
            x["params"][2],
            x["params"][3],
            loss=x["loss"][2],
            loss_next=x["loss"][3],
            grad=x["grad"][2],
            grad_next=x["grad"][3],
            method=method,  # type: ignore[arg-type]
            lr=0.5,
        )
        assert own.rows == other.rows
        assert (own.psi_floor, own.correction_share) == (other.psi_floor, other.correction_share)
        np.testing.assert_array_equal(own.gradient(), other.gradient())


@pytest.mark.parametrize("w", [1, 2, 4])
@pytest.mark.parametrize("keep", ["params", "update"])
def test_as_the_analysis_of_recorded_products(w: int, keep: str) -> None:
    """`steepest.analyze` has the inner products of steps only; here are the vectors."""
    x = walk(steps=9)
    if keep == "update":
        x["update"] = np.diff(x.pop("params"), axis=0)
    rec = steepest.recording(**x, lag=w, objective="fixed")
    r = steepest.analyze(rec, pair="displacement", window=w)["run"]
    for t in range(10 - w):
        pair = windowed(rec, t, window=w)
        a = pair.align()
        assert r["status"][t, 0] == a.status
        for name, value in {
            "psi": a.angle,
            "rho": a.rho,
            "grad_norm": a.grad_norm,
            "update_norm": a.update_norm,
            "correction_share": pair.correction_share,
            "alpha": a.alpha_opt,
        }.items():
            assert r[name][t, 0] == pytest.approx(value, rel=1e-12, nan_ok=True), (t, name)


def test_mapping_of_arrays_from_a_folder(tmp_path: Path) -> None:
    """Also where parameters and gradients have other element types, in a recording that is mapped into memory."""
    rng = np.random.default_rng(1)
    params = [{"w": rng.standard_normal((3, 2)).astype("f4"), "b": rng.standard_normal(2)} for _ in range(4)]
    grads = [{"b": rng.standard_normal(2), "w": rng.standard_normal((3, 2)).astype("f4")} for _ in range(4)]
    with steepest.Recorder(tmp_path / "run", keep="vectors", objective="fixed") as recorder:
        for t in range(4):
            recorder.step(params=params[t], grad=grads[t], loss=3.0 - t)
    pair = windowed(steepest.Recording.open(tmp_path / "run"), 0, window=3)
    assert pair.names == ("grad[0]", "grad[1]", "grad[2]", "grad[3]", "displacement")
    d = {k: params[3][k].astype("f8") - params[0][k] for k in ("w", "b")}
    mean = {k: sum(g[k].astype("f8") for g in grads) / 4 for k in ("w", "b")}
    dd = sum((v**2).sum() for v in d.values())
    tau = (-3.0 - sum((mean[k] * d[k]).sum() for k in d)) / dd
    found, update = pair.gradient(), pair.update()
    for k, move in d.items():
        np.testing.assert_allclose(found[k], mean[k] + tau * move, atol=1e-6 if k == "w" else 1e-13)
        np.testing.assert_allclose(update[k], move, atol=1e-6 if k == "w" else 1e-15)
    assert pair.dtype == "float32"
    assert pair.align().status == "ok"


def test_psi_floor_of_float32_updates() -> None:
    """Rounding the updates to float32 turns the pair by an angle of the size of the floor."""
    x = walk(4, 2000)
    exact = np.diff(x.pop("params"), axis=0)
    rec, rounded = (steepest.recording(**x, update=u) for u in (exact, exact.astype("f4")))
    a, b = windowed(rec, 0, window=4), windowed(rounded, 0, window=4)
    u, v = a.update(), b.update().astype("f8")
    turned = np.linalg.norm(u / np.linalg.norm(u) - v / np.linalg.norm(v))
    assert b.dtype == "float32"
    assert 0.1 * b.psi_floor < turned < b.psi_floor
    assert a.psi_floor < 1e-15


def test_float32_parameters_have_the_floor_of_their_spacing() -> None:
    x = walk(3, 50, length=1e-3)
    x["params"] = (x["params"] + 1.0).astype("f4")
    pair = windowed(steepest.recording(**x), 0, window=3)
    d = (x["params"][3].astype("f8") - x["params"][0]).ravel()
    spacing = np.maximum(np.spacing(x["params"][3]), np.spacing(x["params"][0])).astype("f8")
    expected = math.atan(np.linalg.norm(spacing) / math.sqrt(12) / np.linalg.norm(d))
    assert pair.psi_floor == pytest.approx(expected, rel=1e-12)


# What is missing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", ["params", "update"])
def test_no_metric_without_a_displacement(kind: Any, keep: str) -> None:
    theta = np.array([[1.0, 0.1], [2.0, 0.3] if kind == "displacement" else [1.0, 0.1], [1.0, 0.1]])
    moves = {"params": theta} if keep == "params" else {"update": np.diff(theta, axis=0)}
    if keep == "update" and kind == "displacement":
        moves["update"][1] = -moves["update"][0]
    rec = steepest.recording(**moves, grad=np.ones((3, 2)), loss=[2.0, 3.0, 1.0])
    with pytest.raises(ValueError, match="no metric exists"):
        windowed(rec, 0, window=2, kind=kind)
    higher = steepest.recording(**moves, grad=np.ones((3, 2)), loss=[2.0, 3.0, 2.5])
    assert windowed(higher, 0, window=2, kind=kind).align().status == "zero_update"


def test_missing_pieces() -> None:
    x = walk(4)
    rec = steepest.recording(**x)
    with pytest.raises(ValueError, match=r"every step from 2 to 5 .* 1 were not recorded, the first 5"):
        windowed(rec, 2, window=3)
    with pytest.raises(ValueError, match="the first -1"):
        windowed(rec, -1, window=2)
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        windowed(rec, 0, window=0)
    with pytest.raises(ValueError, match="'one-step', got 'midpoint'"):
        windowed(rec, 0, window=1, kind="midpoint")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="window to be an integer"):
        windowed(rec, 0, window=1.5)  # type: ignore[arg-type]
    for lr in (0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="positive and finite lr"):
            windowed(rec, 0, window=1, lr=lr)
    with pytest.raises(TypeError, match="expected a Recording, got dict"):
        windowed(x, 0, window=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no loss was recorded"):
        windowed(steepest.recording(params=x["params"], grad=x["grad"]), 0, window=1)
    infinite = {**x, "loss": np.array([1.0, 2.0, np.inf, 0.0, 0.0])}
    with pytest.raises(ValueError, match=r"finite loss at step 2, .* inf"):
        windowed(steepest.recording(**infinite), 0, window=2)
    rate = steepest.recording(update=np.ones((3, 2)), grad=np.ones((3, 2)), loss=[3.0, 2.0, 1.0], rate=True)
    with pytest.raises(ValueError, match="rates"):
        windowed(rate, 0, window=1)
    steps = {"grad": x["grad"][:3], "update": x["grad"][:2], "loss": x["loss"][:3]}
    assert windowed(steepest.recording(**steps), 0, window=2).size == 7
    with pytest.raises(ValueError, match="no vectors"):
        windowed(steepest.Recording(rec.info, rec.rows), 0, window=1)


def test_a_step_without_a_gradient() -> None:
    recorder = steepest.Recorder(keep="vectors", objective="fixed")
    for t in range(4):
        grad = {} if t == 1 else {"grad": np.ones(2)}
        recorder.step(params=np.full(2, -float(t)), loss=4.0 - t, **grad)
    rec = recorder.recording()
    with pytest.raises(ValueError, match="step 1 of the window has no recorded gradient"):
        windowed(rec, 0, window=2)
    assert windowed(rec, 2, window=1).align().status == "ok"


def test_every_second_step() -> None:
    recorder = steepest.Recorder(keep="vectors", every=2, objective="fixed")
    for t in range(6):
        recorder.step(params=np.full(2, -float(t)), grad=np.ones(2), loss=6.0 - t)
    with pytest.raises(ValueError, match=r"the first 1; 3 steps were, with every=2"):
        windowed(recorder.recording(), 0, window=2)


def test_nan_in_a_gradient() -> None:
    x = walk(3)
    x["grad"][1, 2] = np.nan
    rec = steepest.recording(**x)
    assert windowed(rec, 0, window=2).align().status == "nonfinite"
    assert windowed(rec, 2, window=1).align().status in {"ok", "ascent"}
    x["update"] = np.diff(x.pop("params"), axis=0)
    assert windowed(steepest.recording(**x), 0, window=2).align().status == "nonfinite"


# The least window -----------------------------------------------------------------------------------------------------


def test_heavy_ball_on_an_ill_conditioned_quadratic() -> None:
    """The loss rises at a sixth of the steps; over 9 steps it never does, and each of them is natural gradient descent
    exactly.
    """
    x = heavy_ball(np.geomspace(1.0, 1e3, 20), 300, mu=0.9, lr=1e-3)
    loss = x["loss"]
    rising = np.flatnonzero(loss[1:] >= loss[:-1])
    assert 30 < len(rising) < 100
    # by definition
    w = next(w for w in range(1, 151) if (loss[w:] < loss[:-w]).all())
    found = smallest_effective_window(loss)
    assert found.window == w == 9
    assert found.steps == len(loss) - w
    assert found.largest_rise == (loss[w:] - loss[:-w]).max() < 0
    assert found.shares[found.windows.index(1)] == pytest.approx(1 - len(rising) / 300)

    rec = steepest.recording(**x, objective="fixed")
    for t in range(0, 300 - w, 7):
        pair = windowed(rec, t, window=w)
        d = x["params"][t + w] - x["params"][t]
        M, y = pair.metric(), -pair.gradient()
        np.testing.assert_allclose(M.solve(y), d, rtol=0, atol=1e-12 * np.linalg.norm(d))
        dense = M.to_dense()
        assert np.linalg.eigvalsh(dense).min() > 0
        np.testing.assert_allclose(dense @ d, y, rtol=0, atol=1e-11 * np.linalg.norm(dense, 2) * np.linalg.norm(d))
        assert 0 < pair.correction_share < 1
        one = windowed(rec, t, window=w, kind="one-step")
        move = x["params"][t + 1] - x["params"][t]
        np.testing.assert_allclose(one.metric().solve(-one.gradient()), move, rtol=0, atol=1e-12 * np.linalg.norm(move))
    # A single step at which the loss rises has no metric.
    with pytest.raises(NotDescentError):
        windowed(rec, int(rising[0]), window=1).metric()


def test_adam_on_digits() -> None:
    """Softmax regression on all digits with a long step: the loss rises at times, and over a window it falls."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    images, one_hot = images / 16.0, np.eye(10)[labels]
    theta = np.zeros((64, 10))
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    params, grads, losses = [], [], []
    for t in range(1, 122):
        z = images @ theta
        z -= z.max(axis=1, keepdims=True)
        logs = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        grad = images.T @ (np.exp(logs) - one_hot) / len(images)
        params.append(theta)
        grads.append(grad)
        losses.append(-(logs * one_hot).sum() / len(images))
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        theta = theta - 0.3 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    loss = np.array(losses)
    found = smallest_effective_window(loss)
    assert (loss[1:] >= loss[:-1]).any()
    assert found.window is not None
    assert found.window > 1
    assert (loss[found.window :] < loss[: -found.window]).all()
    rec = steepest.recording(params=np.array(params), grad=np.array(grads), loss=loss, objective="fixed")
    for t in (0, 5, 20, 100):
        pair = windowed(rec, t, window=found.window)
        d = params[t + found.window] - params[t]
        np.testing.assert_allclose(pair.metric().solve(-pair.gradient()), d, rtol=0, atol=1e-11 * np.linalg.norm(d))


Losses = st.lists(st.one_of(st.integers(-3, 12).map(float), st.just(np.nan)), max_size=20)


@settings(max_examples=200, deadline=None)
@given(Losses, st.one_of(st.none(), st.integers(1, 30)))
def test_least_window_by_definition(losses: list[float], longest: int | None) -> None:
    loss = np.array(losses) - 1.5 * np.arange(len(losses))
    found = smallest_effective_window(loss, longest=longest)
    numbers = np.flatnonzero(~np.isnan(loss))
    assert found.longest <= (longest or len(loss))

    def changes(w: int) -> list[float]:
        return [loss[t + w] - loss[t] for t in numbers if t + w in numbers]

    effective = [w for w in range(1, found.longest + 1) if changes(w) and max(changes(w)) < 0]
    assert found.window == (effective[0] if effective else None)
    if found.longest:
        tested = changes(found.window or found.longest)
        assert found.steps == len(tested)
        assert found.largest_rise == pytest.approx(max(tested, default=np.nan), nan_ok=True)
        assert found.windows == tuple(sorted(found.windows))
        for w, share, rise in zip(found.windows, found.shares, found.rises, strict=True):
            own = changes(w)
            assert rise == pytest.approx(max(own, default=np.nan), nan_ok=True)
            assert share == pytest.approx(np.mean(np.array(own) < 0) if own else np.nan, nan_ok=True)


def test_no_window_says_by_how_much() -> None:
    found = smallest_effective_window([5.0, 1.0, 4.0, 2.0, 3.0, 2.5])
    assert found.window is None
    assert found.longest == 2
    assert (found.steps, found.largest_rise) == (4, 1.0)  # 1 -> 2
    assert "no window up to 2 steps" in str(found)
    assert "rises by 1 at most" in str(found)
    assert "falls over 1 steps" in str(smallest_effective_window([3.0, 2.0, 1.0]))


def test_least_window_of_few_losses() -> None:
    assert smallest_effective_window([]) == smallest_effective_window([1.0])
    assert smallest_effective_window([np.nan, 1.0, np.nan]).longest == 0
    assert "no window" in str(smallest_effective_window([1.0]))
    assert smallest_effective_window([2.0, 1.0]).window == 1
    assert smallest_effective_window([2, 1]).window == 1
    assert smallest_effective_window([1.0, 1.0]) == EffectiveWindow(None, 1, 0.0, 1, (1,), (0.0,), (0.0,))
    with pytest.raises(ValueError, match="longest to be at least 1"):
        smallest_effective_window([2.0, 1.0], longest=0)
    with pytest.raises(ValueError, match=r"shape \(T,\), got \(2, 1\)"):
        smallest_effective_window([[2.0], [1.0]])
    with pytest.raises(TypeError, match="real numbers"):
        smallest_effective_window(["a"])


def test_least_window_of_a_recording_of_every_third_step() -> None:
    recorder = steepest.Recorder(every=3, objective="fixed")
    for t in range(40):
        recorder.step(params=np.full(2, -float(t)), grad=np.ones(2), loss=40.0 - t + 9.0 * (t // 3 % 2))
    found = smallest_effective_window(recorder.recording())
    assert found.window == 6
    assert found.windows == (3, 6, 12, 18)
    assert found.shares[0] == pytest.approx(6 / 13)
    assert Fraction(found.largest_rise) == -6
