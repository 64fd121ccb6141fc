"""Constant metrics behind many steps: recovered, scored on later steps, and refused where the data cannot tell."""

from __future__ import annotations

import json
import pickle
import sys
import tracemalloc

import numpy as np
import pytest
from scipy.optimize import nnls

import steepest
from steepest.identify import compare, identify
from steepest.identify.scores import block_length, interval, r2
from steepest.recorder import Recorder
from steepest.sources import record_source


def noisy_run(T=40, n=7, seed=0, noise=0.5, dtype=float):
    """Updates of a diagonal rule with noise; some elements come out negative."""
    rng = np.random.default_rng(seed)
    grad = rng.normal(size=(T, n)) * rng.uniform(0.1, 3.0, n)
    rates = rng.uniform(0.1, 0.5, n)
    rates[1] = -0.3  # goes uphill
    update = -rates * grad + noise * rng.normal(size=(T, n)) * 0.1
    return grad.astype(dtype), update.astype(dtype)


def brute_force(grad, update, split, family):
    """d from non-negative least squares coordinate by coordinate (scalar: all at once), and its scores."""
    y, g = -np.asarray(grad, float), np.asarray(update, float)
    fit, test = slice(None, split), slice(split, None)
    if family == "scalar":
        d = np.full(y.shape[1], nnls(g[fit].reshape(-1, 1), y[fit].ravel())[0][0])
        p = np.full(y.shape[1], nnls(y[fit].reshape(-1, 1), g[fit].ravel())[0][0])
    else:
        d = np.array([nnls(g[fit, [i]], y[fit, i])[0][0] for i in range(y.shape[1])])
        p = np.array([nnls(y[fit, [i]], g[fit, i])[0][0] for i in range(y.shape[1])])

    def score(a, b, m, part):
        return 1.0 - np.sum((a[part] - m * b[part]) ** 2) / np.sum(a[part] ** 2)

    return d, {
        "r2": score(y, g, d, test),
        "r2_in_sample": score(y, g, d, fit),
        "r2_reverse": score(g, y, p, test),
        "r2_reverse_in_sample": score(g, y, p, fit),
    }


# Against brute force --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["scalar", "diagonal"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_brute_force_least_squares(family, dtype):
    grad, update = noisy_run(dtype=dtype)
    found = identify(grad=grad, update=update, family=family, holdout=0.25, rng=0)
    d, scores = brute_force(grad, update, 30, family)
    assert (found.fitted_steps, found.held_out) == (30, tuple(range(30, 40)))
    fit = found["(all)"]
    for name, expected in scores.items():
        assert getattr(fit, name) == pytest.approx(expected, rel=1e-10), name
    np.testing.assert_allclose(found.elements(), d if family == "diagonal" else d[0], rtol=1e-10, atol=1e-14)
    assert fit.not_positive == (np.count_nonzero(d == 0.0) if family == "diagonal" else 0)
    assert fit.r2_low <= fit.r2 <= fit.r2_high
    if family == "diagonal":
        assert fit.not_positive > 0
        assert (fit.smallest, fit.largest) == pytest.approx((d[d > 0].min(), d.max()))


@pytest.mark.parametrize("family", ["scalar", "diagonal"])
def test_every_form_of_data_gives_the_same(family, tmp_path):
    rng = np.random.default_rng(1)
    params = {"w": rng.normal(size=(21, 3, 2)), "b": rng.normal(size=(21, 2))}
    grad = {name: rng.normal(size=x.shape) for name, x in params.items()}
    update = {name: x[1:] - x[:-1] for name, x in params.items()}
    expected = identify(grad=grad, update=update, family=family, rng=3)
    assert expected.blocks == ("(all)", "w", "b")

    def at(x, t):
        return {name: a[t] for name, a in x.items()}

    pairs = [(at(grad, t), at(update, t)) for t in range(20)]
    with Recorder(tmp_path / "run", keep="vectors") as recorder:
        for t in range(20):
            recorder.step(params=at(params, t), grad=at(grad, t), update=at(update, t))
    np.savez(
        tmp_path / "run.npz",
        **{f"params/{k}": x for k, x in params.items()},
        **{f"grad/{k}": x for k, x in grad.items()},
    )
    forms = [
        identify(steepest.recording(params=params, grad=grad), family, rng=3),
        identify(pairs, family, rng=3),
        identify(iter(pairs), family, steps=20, rng=3),
        identify(recorder, family, rng=3),
        identify(tmp_path / "run", family, rng=3),
        identify(record_source(tmp_path / "run.npz"), family, rng=3),
    ]
    for found in forms:
        assert found.held_out == expected.held_out
        for fit, other in zip(found.fits, expected.fits, strict=True):
            assert fit.block == other.block
            for name in ("r2", "r2_low", "r2_high", "r2_reverse", "r2_in_sample", "r2_symmetric", "largest"):
                assert getattr(fit, name) == pytest.approx(getattr(other, name), rel=1e-12, abs=1e-14), name


def test_blocks_are_fits_of_their_own():
    grad, update = noisy_run(n=10)
    parts = {"a": slice(0, 4), "b": slice(4, 10)}
    named = [{k: x[:, at] for k, at in parts.items()} for x in (grad, update)]
    for family in ("scalar", "diagonal"):
        found = identify(grad=named[0], update=named[1], family=family, rng=0)
        for name, at in parts.items():
            alone = identify(grad=grad[:, at], update=update[:, at], family=family, rng=0)["(all)"]
            assert found[name].r2 == pytest.approx(alone.r2, rel=1e-12)
            assert found[name].r2_reverse == pytest.approx(alone.r2_reverse, rel=1e-12)
            assert found[name].not_positive == alone.not_positive
        whole = identify(grad=grad, update=update, family=family, rng=0)
        assert found["(all)"].r2 == pytest.approx(whole["(all)"].r2, rel=1e-12)
        only = identify(grad=named[0], update=named[1], family=family, blocks=["b"], rng=0)
        assert only.blocks == ("b",)
        assert only["b"].r2 == found["b"].r2
        np.testing.assert_array_equal(only.elements(), found.elements("b"))


def test_scalar_from_recorded_inner_products_alone():
    grad, update = noisy_run(T=30)
    rec = Recorder()
    for y, g in zip(grad, update, strict=True):
        rec.step(grad=y, update=g)
    assert not rec.recording().has_vectors
    found = identify(rec, "scalar", rng=0)
    d, scores = brute_force(grad, update, 22, "scalar")
    assert found["(all)"].r2 == pytest.approx(scores["r2"], rel=1e-12)
    assert found.elements() == pytest.approx(d[0], rel=1e-12)
    np.testing.assert_allclose(found.metric @ np.ones(7), d, rtol=1e-12)
    with pytest.raises(ValueError, match="keep='vectors'"):
        identify(rec, "diagonal")


# Errors in variables --------------------------------------------------------------------------------------------------


def test_both_directions_are_cos_squared_in_the_scalar_family():
    grad, update = noisy_run()
    fit = identify(grad=grad, update=update, family="scalar", rng=0)["(all)"]
    y, g = -grad[:30].ravel(), update[:30].ravel()
    cos2 = (y @ g) ** 2 / (y @ y) / (g @ g)
    assert fit.r2_in_sample == pytest.approx(cos2, rel=1e-12)
    assert fit.r2_reverse_in_sample == pytest.approx(cos2, rel=1e-12)


def test_in_sample_scores_are_weighted_means_of_cos_squared_in_the_diagonal_family():
    grad, update = noisy_run()
    fit = identify(grad=grad, update=update, family="diagonal", rng=0)["(all)"]
    y, g = -grad[:30], update[:30]
    yy, gg, yg = (y * y).sum(0), (g * g).sum(0), np.maximum((y * g).sum(0), 0.0)
    cos2 = yg**2 / yy / gg
    assert fit.r2_in_sample == pytest.approx(np.average(cos2, weights=yy), rel=1e-12)
    assert fit.r2_reverse_in_sample == pytest.approx(np.average(cos2, weights=gg), rel=1e-12)


@pytest.mark.parametrize("family", ["scalar", "diagonal"])
def test_the_symmetric_estimate_survives_equal_relative_noise(family):
    rng = np.random.default_rng(2)
    d = np.full(4, 3.0) if family == "scalar" else np.array([0.5, 1.0, 3.0, 8.0])
    true = rng.normal(size=(20000, 4))
    grad = -(d * true + 0.5 * d * rng.normal(size=true.shape))
    update = true + 0.5 * rng.normal(size=true.shape)
    found = identify(grad=grad, update=update, family=family, rng=0)
    shrunk = 1.0 / 1.25  # sum true^2 / sum (true + noise)^2
    np.testing.assert_allclose(found.elements(), (d * shrunk) if family == "diagonal" else d[0] * shrunk, rtol=0.05)
    np.testing.assert_allclose(found.elements(symmetric=True), d if family == "diagonal" else d[0], rtol=0.05)
    np.testing.assert_allclose(found.to_metric(symmetric=True).to_dense(), np.diag(d), rtol=0.05, atol=1e-12)
    fit = found["(all)"]
    s = (
        np.sqrt((grad[:15000] ** 2).sum(0) / (update[:15000] ** 2).sum(0))
        if family == "diagonal"
        else np.sqrt(np.sum(grad[:15000] ** 2) / np.sum(update[:15000] ** 2))
    )
    expected = 1.0 - np.sum((grad[15000:] + s * update[15000:]) ** 2) / np.sum(grad[15000:] ** 2)
    assert fit.r2_symmetric == pytest.approx(expected, rel=1e-9)


# Learning rules with a known metric -----------------------------------------------------------------------------------


def least_squares(seed=0, n=12, samples=40):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(samples, n)) * rng.uniform(0.3, 3.0, n)
    target = rng.normal(size=samples)
    return lambda theta: A.T @ (A @ theta - target) / samples


def follow(rule, gradient, n=12, T=60):
    theta, grads, updates = np.zeros(n), [], []
    for t in range(T):
        grads.append(gradient(theta))
        updates.append(rule(grads[-1], t))
        theta = theta + updates[-1]
    return np.array(grads), np.array(updates)


def test_gradient_descent_is_scalar():
    grad, update = follow(lambda g, t: -0.05 * g, least_squares())
    scalar, diagonal = (identify(grad=grad, update=update, family=f, rng=0) for f in ("scalar", "diagonal"))
    assert scalar.elements() == pytest.approx(20.0, rel=1e-14)
    assert scalar["(all)"].r2 == pytest.approx(1.0, abs=1e-14)
    assert diagonal["(all)"].r2 == pytest.approx(1.0, abs=1e-14)
    assert [(row["family"], row["chosen"]) for row in compare([diagonal, scalar], rng=0)] == [
        ("scalar", True), ("diagonal", False),
    ]  # fmt: skip
    assert scalar["(all)"].status == diagonal["(all)"].status == "ok"


def test_a_frozen_preconditioner_is_recovered_to_rounding():
    v = np.random.default_rng(3).permutation(np.geomspace(1e-3, 10.0, 12))  # RMSProp whose second moments have settled
    grad, update = follow(lambda g, t: -0.002 * g / (np.sqrt(v) + 1e-8), least_squares())
    scalar, diagonal = (identify(grad=grad, update=update, family=f, rng=0) for f in ("scalar", "diagonal"))
    np.testing.assert_allclose(diagonal.elements(), (np.sqrt(v) + 1e-8) / 0.002, rtol=1e-13)
    assert diagonal["(all)"].r2 == pytest.approx(1.0, abs=1e-14)
    assert diagonal["(all)"].r2_reverse == pytest.approx(1.0, abs=1e-14)
    assert scalar["(all)"].r2 < 0.9
    table = compare([scalar, diagonal], rng=0)
    assert [row["chosen"] for row in table] == [False, True]
    assert table[0]["gain_low"] > 0.1
    metric = diagonal.metric
    np.testing.assert_allclose(metric @ update[-1], -grad[-1], rtol=1e-12)
    np.testing.assert_allclose(metric.solve(-grad[-1]), update[-1], rtol=1e-12)
    assert metric.cond() == pytest.approx(np.sqrt(v.max() / v.min()), rel=1e-6)


@pytest.mark.parametrize("family", ["scalar", "diagonal"])
def test_updates_with_random_signs_have_no_geometry(family):
    rng = np.random.default_rng(4)
    grad, update = follow(lambda g, t: -0.05 * g, least_squares())
    shuffled = update * rng.choice([-1.0, 1.0], update.shape)
    fit = identify(grad=grad, update=shuffled, family=family, rng=0)["(all)"]
    assert fit.r2 < 0.1
    assert fit.r2_low <= 0.0
    assert "no evidence" in fit.verdict
    assert compare([identify(grad=grad, update=shuffled, family=family, rng=0)], rng=0)[0]["chosen"] is False


def test_adam_on_digits_is_nearer_to_diagonal_than_to_scalar():
    torch = pytest.importorskip("torch")
    datasets = pytest.importorskip("sklearn.datasets")
    X, labels = datasets.load_digits(return_X_y=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    X, labels = torch.tensor(X / 16.0, dtype=torch.float32), torch.tensor(labels)
    net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    rec = []
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(X), labels).backward()
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        grad = {name: p.grad.clone() for name, p in net.named_parameters()}
        optimizer.step()
        rec.append((grad, {name: p.detach() - before[name] for name, p in net.named_parameters()}))
    rec = rec[50:]  # the second moments have begun to settle
    scalar, diagonal = (identify(rec, f, rng=0) for f in ("scalar", "diagonal"))
    assert diagonal["(all)"].r2 > 0.9
    assert diagonal["(all)"].r2 > scalar["(all)"].r2 + 0.1
    # The diagonal that was found is the optimiser's own, up to its change over the run.
    own = torch.cat([(optimizer.state[p]["exp_avg_sq"] ** 0.5).ravel() for p in net.parameters()]).numpy()
    found = np.concatenate([x.ravel() for x in diagonal.elements().values()])
    seen = found > 0.0
    assert np.corrcoef(np.log(found[seen]), np.log(own[seen]))[0, 1] > 0.98
    assert diagonal["(all)"].determined < 1.0  # pixels that are always blank
    assert diagonal["(all)"].status == "not_positive_definite"


# What the data cannot tell --------------------------------------------------------------------------------------------


def test_parameters_that_never_moved():
    grad, update = noisy_run(noise=0.0)
    update = -0.5 * grad
    update[:, 2] = 0.0
    update[35:, 2] = -0.5 * grad[35:, 2]  # later, which the fit does not see
    found = identify(grad=grad, update=update, rng=0)
    fit = found["(all)"]
    assert (fit.status, fit.determined, fit.not_positive) == ("not_positive_definite", 6 / 7, 0)
    assert found.elements()[2] == 0.0
    assert "1 of 7 parameters never moved" in fit.notes[0]
    with pytest.raises(ValueError, match=r"1 of 7 parameters never moved.*floor"):
        _ = found.metric
    with pytest.raises(ValueError, match="positive finite floor"):
        found.to_metric(floor=0.0)
    M = found.to_metric(floor=0.25)
    np.testing.assert_allclose(M.diagonal(), [2.0, 2.0, 0.25, 2.0, 2.0, 2.0, 2.0], rtol=1e-14)
    share = np.sum(grad[30:, 2] ** 2) / np.sum(grad[30:] ** 2)  # what is not explained
    assert fit.r2 == pytest.approx(1.0 - share, rel=1e-12)


def test_uphill_on_the_whole():
    grad, _ = noisy_run()
    scalar = identify(grad=grad, update=0.1 * grad, family="scalar", rng=0)
    assert (scalar["(all)"].status, scalar["(all)"].not_positive) == ("not_positive_definite", 1)
    assert (scalar.elements(), scalar["(all)"].r2) == (0.0, 0.0)
    assert any("uphill" in note for note in scalar["(all)"].notes)
    with pytest.raises(ValueError, match="no positive multiple of the identity fits"):
        _ = scalar.metric
    assert scalar.to_metric(floor=2.0).alpha == 2.0
    diagonal = identify(grad=grad, update=0.1 * grad, family="diagonal", rng=0)
    assert diagonal["(all)"].not_positive == 7
    assert np.isnan(diagonal["(all)"].smallest)


@pytest.mark.parametrize("family", ["scalar", "diagonal"])
def test_no_movement_at_all(family):
    grad, _ = noisy_run()
    fit = identify(grad=grad, update=np.zeros_like(grad), family=family, rng=0)["(all)"]
    assert (fit.status, fit.r2) == ("not_identified", 0.0)
    assert np.isnan(fit.r2_reverse)


@pytest.mark.parametrize("family", ["scalar", "diagonal"])
def test_one_step_is_no_evidence(family):
    grad, update = noisy_run(T=1)
    fit = identify(grad=grad, update=update, family=family, holdout=0.0)["(all)"]
    assert fit.status == "too_few_steps"
    assert np.isnan(fit.r2)
    assert any("one step" in note for note in fit.notes)
    both = identify(grad=grad, update=update, family=family)  # the only step is held out
    assert (both.fitted_steps, both.held_out, both["(all)"].status) == (0, (0,), "too_few_steps")


def test_steps_that_are_not_finite_are_left_out():
    grad, update = noisy_run()
    grad[[3, 35], [1, 2]] = np.nan
    keep = np.delete(np.arange(40), [3, 35])
    for family in ("scalar", "diagonal"):
        found = identify(grad=grad, update=update, family=family, rng=0)
        assert (found.fitted_steps, len(found.held_out)) == (29, 9)
        _, scores = brute_force(grad[keep], update[keep], 29, family)
        assert found["(all)"].r2 == pytest.approx(scores["r2"], rel=1e-10)
        assert "2 steps are left out" in " ".join(found["(all)"].notes)


def test_a_geometry_that_changes_is_said():
    rng = np.random.default_rng(5)
    grad = rng.normal(size=(200, 5))
    rates = np.where(np.arange(200)[:, None] < 140, [0.1, 0.2, 0.3, 0.4, 0.5], [0.2, 0.3, 0.4, 0.5, 0.3])
    fit = identify(grad=grad, update=-rates * grad, rng=0)["(all)"]
    assert fit.r2 < 0.8
    assert fit.r2_in_sample > 0.95
    assert fit.status == "not_constant"
    assert any("the geometry is not constant over the run" in note for note in fit.notes)


def test_a_run_of_rows_without_gradient():
    rec = steepest.recording(params=np.zeros((4, 2)))
    with pytest.raises(ValueError, match="nothing to identify"):
        identify(rec, "scalar")


@pytest.mark.parametrize("scale", [1e-200, 1e200])
@pytest.mark.parametrize("family", ["scalar", "diagonal"])
def test_units_out_of_the_range_of_squares(family, scale):
    grad, update = noisy_run()
    near = identify(grad=grad, update=update, family=family, rng=0)
    far = identify(grad=grad, update=scale * update, family=family, rng=0)
    assert far["(all)"].r2 == pytest.approx(near["(all)"].r2, rel=1e-12)
    np.testing.assert_allclose(np.asarray(far.elements()) * scale, near.elements(), rtol=1e-12)
    assert far["(all)"].largest * scale == pytest.approx(near["(all)"].largest, rel=1e-12)


# The interval ---------------------------------------------------------------------------------------------------------


def test_interval_of_independent_steps_covers():
    rng = np.random.default_rng(6)
    expected = 1.0 - 0.25  # noise of variance 1/4 in y of variance 1
    covered = 0
    for _ in range(200):
        y = rng.normal(size=150)
        residual = (0.5 * rng.normal(size=150)) ** 2
        low, high, _ = interval(residual, y**2, rng)
        covered += low <= expected <= high
    assert 0.88 <= covered / 200 <= 0.98


def autocorrelated(rng, rho, T, n=5):
    x = np.empty((T, n))
    x[0] = rng.normal(size=n)
    for t in range(1, T):
        x[t] = rho * x[t - 1] + np.sqrt(1.0 - rho**2) * rng.normal(size=n)
    return x


@pytest.mark.parametrize(("rho", "T"), [(0.0, 100), (0.3, 200), (0.7, 400), (0.9, 1500)])
def test_interval_of_autocorrelated_steps_covers(rho, T):
    rng = np.random.default_rng(7)
    expected = 1.0 - 0.49 / 1.49
    covered = naive = 0
    blocks = []
    for _ in range(400):
        error = 0.7 * autocorrelated(rng, rho, T)
        y = autocorrelated(rng, rho, T) + error
        residual, norm = (error**2).sum(axis=1), (y**2).sum(axis=1)
        low, high, length = interval(residual, norm, rng)
        covered += low <= expected <= high
        blocks.append(T / length)
        score = 1.0 - residual.sum() / norm.sum()
        spread = 1.96 * np.std(residual - (1.0 - score) * norm) / norm.mean() / np.sqrt(T)
        naive += abs(score - expected) <= spread
    assert np.median(blocks) >= 20
    assert 0.91 <= covered / 400 <= 0.98
    assert rho < 0.5 or naive / 400 < 0.85  # steps taken to be independent


def test_block_length_follows_the_correlation():
    rng = np.random.default_rng(8)
    white = rng.normal(size=2000)
    slow = np.convolve(white, np.ones(30), "valid")
    assert block_length(white).steps <= 4
    assert block_length(slow).steps > 15
    for x in (np.ones(50), np.array([]), white[:3]):
        assert block_length(x).steps == 1


def test_interval_of_few_steps_and_nothing():
    rng = np.random.default_rng(9)
    assert np.isnan(interval(np.ones(3), np.ones(3), rng)[:2]).all()
    assert np.isnan(interval(np.zeros(9), np.zeros(9), rng)[:2]).all()
    assert np.isnan(r2([], []))
    assert interval(np.full(10, 0.25), np.ones(10), rng)[:2] == (0.75, 0.75)


def test_intervals_are_reproducible():
    grad, update = noisy_run()
    first, second = (identify(grad=grad, update=update, rng=11)["(all)"] for _ in range(2))
    assert first == second


# The result -----------------------------------------------------------------------------------------------------------


def test_the_metric_is_a_base():
    rng = np.random.default_rng(10)
    shapes = {"w": (3, 2), "b": (2,)}
    rates = {name: rng.uniform(0.1, 1.0, shape) for name, shape in shapes.items()}
    grad = {name: rng.normal(size=(20, *shape)) for name, shape in shapes.items()}
    update = {name: -rates[name] * x for name, x in grad.items()}
    found = identify(grad=grad, update=update, rng=0)
    M = found.metric
    last = [{name: x[-1] for name, x in v.items()} for v in (grad, update)]
    flat = [np.concatenate([x.ravel() for x in v.values()]) for v in last]
    np.testing.assert_allclose(M @ flat[1], -flat[0], rtol=1e-12)
    for name, x in M.diagonal().items():
        np.testing.assert_allclose(x, 1.0 / rates[name], rtol=1e-13)
        np.testing.assert_allclose(found.to_metric(name).diagonal(), 1.0 / rates[name], rtol=1e-13)
    # In this geometry the rule is steepest descent; the nearest metric to it is itself.
    assert steepest.align(*last, base=M).angle == pytest.approx(0.0, abs=1e-7)
    np.testing.assert_allclose(steepest.metric(*last, base=M).to_dense(), M.to_dense(), atol=1e-10)
    a, b = (steepest.align(last[0], {k: -x for k, x in last[0].items()}, base=base) for base in (M, M.diagonal()))
    assert a.angle == pytest.approx(b.angle, rel=1e-10)
    assert steepest.distance(M, 2.0 * M).value == pytest.approx(np.sqrt(8) * np.log(2))


def test_the_diagonal_metric_against_a_dense_one():
    grad, _ = noisy_run(noise=0.0)
    for family, update in (("diagonal", -np.linspace(0.1, 1.0, 7) * grad), ("scalar", -0.3 * grad)):
        M = 1.5 * identify(grad=grad, update=update, family=family, rng=0).metric
        D = 1.5 * np.diag(1.0 / np.linspace(0.1, 1.0, 7)) if family == "diagonal" else np.eye(7) * 5.0
        x = np.random.default_rng(0).normal(size=(7, 3))
        np.testing.assert_allclose(M.to_dense(), D, rtol=1e-12)
        np.testing.assert_allclose(M @ x, D @ x, rtol=1e-12)
        np.testing.assert_allclose(M.solve(x), np.linalg.solve(D, x), rtol=1e-12)
        np.testing.assert_allclose(M.sqrt() @ (M.sqrt() @ x), D @ x, rtol=1e-12)
        np.testing.assert_allclose(M.log() @ x, np.log(np.diag(D))[:, None] * x, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(M.power(-2.5).diagonal(), np.diag(D) ** -2.5, rtol=1e-12)
        assert M.logdet() == pytest.approx(np.linalg.slogdet(D)[1])
        assert M.trace() == pytest.approx(np.trace(D))
        assert M.cond() == pytest.approx(np.linalg.cond(D))
        assert M.inner(x[:, 0], x[:, 1]) == pytest.approx(x[:, 0] @ D @ x[:, 1])
        np.testing.assert_allclose(M.eigvalsh(), np.sort(np.diag(D)), rtol=1e-12)
        assert not M.log().positive_definite
        with pytest.raises(TypeError, match="positive definite"):
            M.log().logdet()
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(M)) @ x, M @ x)
    with pytest.raises(ValueError, match="positive"):
        M * -1.0


def test_to_dict_and_repr_and_pickle():
    grad, update = noisy_run()
    found = identify(grad={"w": grad}, update={"w": update}, rng=0)
    assert json.loads(json.dumps(found.to_dict()))["fits"][0]["r2"] == found["(all)"].r2
    assert repr(found).startswith(
        "Identification(diagonal, fitted to 30 steps, scored on the 10 after them: (all) R2 = 0."
    )
    assert "1 more blocks" in repr(found)
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.elements()["w"], found.elements()["w"])
    with pytest.raises(ValueError, match="expected block to be one of"):
        found["v"]


def test_the_source_of_the_gradient_is_said():
    grad, update = noisy_run()
    for source in ("rule", "evaluation"):
        found = identify(steepest.recording(grad=grad, update=update, gradient_source=source), rng=0)
        assert found.gradient_source == source
        assert any("by construction" in note for note in found["(all)"].notes) == (source == "rule")


def test_compare_needs_the_same_steps():
    grad, update = noisy_run()
    a, b = identify(grad=grad, update=update, rng=0), identify(grad=grad, update=update, family="scalar", holdout=0.5)
    with pytest.raises(ValueError, match="same held-out steps"):
        compare([a, b])
    with pytest.raises(ValueError, match="each family once"):
        compare([a, a])
    with pytest.raises(ValueError, match="at least one"):
        compare([])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"family": "round"}, ValueError, "expected family"),
        ({"holdout": 1.0}, ValueError, "expected holdout"),
        ({"holdout": -0.1}, ValueError, "expected holdout"),
        ({"blocks": ["v"]}, ValueError, "expected blocks"),
        ({"blocks": "(all)"}, ValueError, "expected blocks"),
        ({"blocks": []}, ValueError, "expected blocks"),
        ({"update": None}, ValueError, "both grad= and update="),
        ({"x": [1, 2]}, ValueError, "another combination"),
        ({"update": np.zeros((3, 7))}, ValueError, "as many gradients as updates"),
        ({"update": np.zeros((40, 6))}, ValueError, "expected update at step 0"),
        ({"update": {"w": np.zeros((40, 7))}}, TypeError, "of one kind"),
        ({"update": np.zeros(())}, ValueError, "step as first axis"),
        ({"grad": None, "update": None, "x": iter([])}, ValueError, "expected steps="),
        ({"grad": None, "update": None, "x": []}, ValueError, "at least one pair"),
        ({"grad": None, "update": None, "x": [3.0]}, TypeError, "expected pairs"),
        ({"grad": None, "update": None, "x": 3.0}, TypeError, "expected a Recording"),
        ({"grad": None, "update": None, "x": iter([(np.ones(2), np.ones(2))]), "steps": 2}, ValueError, "got 1"),
    ],
)
def test_bad_input(arguments, error, message):
    grad, update = noisy_run()
    with pytest.raises(error, match=message):
        identify(**({"grad": grad, "update": update} | arguments))


def test_candidates_are_named_one_by_one():
    grad, update = noisy_run()
    rec = steepest.recording(grad={"error": {"w": grad}, "energy": {"w": -grad}}, update={"w": update})
    with pytest.raises(ValueError, match=r"recording\.candidate\(name\)"):
        identify(rec)
    error = identify(rec.candidate("error"), rng=0)
    assert error["(all)"].r2 == pytest.approx(identify(grad=grad, update=update, rng=0)["(all)"].r2)


def test_a_progress_bar_needs_tqdm(monkeypatch):
    grad, update = noisy_run()
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match=r"steepest\[progress\]"):
        identify(grad=grad, update=update, progress=True)
    monkeypatch.undo()
    pytest.importorskip("tqdm")
    shown, silent = (identify(grad=grad, update=update, progress=p, rng=0)["(all)"] for p in (True, False))
    assert shown == silent


def test_a_million_parameters():
    n, T = 1_000_000, 50
    rng = np.random.default_rng(12)
    d = rng.uniform(0.5, 2.0, n)

    def pairs():
        for _ in range(T):
            grad = rng.standard_normal(n, np.float32)
            yield grad, (-grad / d).astype(np.float32)

    tracemalloc.start()
    found = identify(pairs(), steps=T, rng=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["(all)"].r2 == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(found.elements(), d, rtol=1e-6)
    assert peak < 50 * n  # bytes: three float64 vectors, and those of the pairs themselves
