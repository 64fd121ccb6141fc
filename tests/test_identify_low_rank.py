"""Multi-secant metrics and diagonals plus low rank: planted ones recovered, against dense formulas and searches."""

from __future__ import annotations

import json
import math
import pickle
import tracemalloc

import numpy as np
import pytest
from scipy.linalg import eigh, logm, sqrtm
from scipy.optimize import minimize_scalar

import steepest
from steepest.arrays import Layout
from steepest.identify import identify
from steepest.metrics.diagonal_low_rank import DiagonalLowRankMetric


def spd(n, rng, spread=0.7):
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return (q * np.exp(spread * rng.normal(size=n))) @ q.T


def diagonal_plus(n, rank, rng):
    """A planted diag(d) + U U^T whose directions stand out."""
    d = np.exp(0.4 * rng.normal(size=n))
    u = rng.normal(size=(n, rank)) * np.sqrt(2.0 * np.arange(1, rank + 1) / n)
    return np.diag(d) + u @ u.T


def descent_on_a_quadratic(preconditioner, T, rng, momentum=0.0, noise=0.0):
    """Gradients and updates of a rule on a quadratic loss with a random Hessian; restarted every five steps."""
    n = len(preconditioner)
    hessian = spd(n, rng)
    rate = 0.5 / np.abs(np.linalg.eigvals(preconditioner @ hessian)).max()
    grads, updates, velocity, position = [], [], np.zeros(n), rng.normal(size=n)
    for t in range(T):
        if t % 5 == 0:
            position = rng.normal(size=n)
        grad = hessian @ position
        velocity = momentum * velocity - rate * preconditioner @ grad
        update = velocity * (1.0 + noise * rng.normal(size=n))
        grads.append(grad)
        updates.append(update)
        position = position + update
    return np.array(grads), np.array(updates), rate


def descent_on_digits(preconditioner, T, rng, batch=60, rate=0.05):
    """Logistic regression of real digits, 4 or less against 5 or more, by mini-batches; the gradients that it used."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    x, label = digits.data / 16.0, (digits.target > 4).astype(float)
    x = x[:, x.std(axis=0) > 0.05]
    weights = np.zeros(x.shape[1])
    grads, updates = [], []
    for _ in range(T):
        chosen = rng.integers(0, len(x), batch)
        p = 1.0 / (1.0 + np.exp(-x[chosen] @ weights))
        grad = x[chosen].T @ (p - label[chosen]) / batch
        update = -rate * preconditioner(x.shape[1]) @ grad
        grads.append(grad)
        updates.append(update)
        weights = weights + update
    return np.array(grads), np.array(updates)


def block_bfgs(grad, update, c):
    """Section 4 with base c I, dense."""
    G, Y = update.T, -grad.T
    n = len(G)
    return c * np.eye(n) - c * G @ np.linalg.solve(G.T @ G, G.T) + Y @ np.linalg.solve(G.T @ Y, Y.T)


def r2(y, prediction):
    return 1.0 - np.sum((y - prediction) ** 2) / np.sum(y**2)


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


# Multi-secant --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bulk", ["least-squares", "omega"])
def test_block_bfgs(bulk):
    rng = np.random.default_rng(0)
    metric = spd(20, rng)
    grad = rng.normal(size=(16, 20))
    update = -grad @ np.linalg.inv(metric)
    found = identify(grad=grad, update=update, family="multi-secant", rng=0, bulk=bulk)
    k = found.fitted_steps
    dense = block_bfgs(grad[:k], update[:k], found.elements()["bulk"])
    M = found.metric
    np.testing.assert_allclose(M.to_dense(), dense, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(M.inv().to_dense(), np.linalg.inv(dense), rtol=1e-9, atol=1e-10)
    for t in range(k):
        np.testing.assert_allclose(M @ update[t], -grad[t], atol=1e-12 * np.linalg.norm(grad[t]) + 1e-13)
        np.testing.assert_allclose(M.solve(-grad[t]), update[t], atol=1e-11)
    fit = found["(all)"]
    assert fit.status == "underdetermined"
    assert (fit.determined, fit.not_positive) == (1.0, 0)
    assert fit.r2_in_sample == pytest.approx(1.0, abs=1e-12)
    assert fit.r2 == pytest.approx(r2(-grad[k:], update[k:] @ dense), abs=1e-10)
    of_reverse = found.elements()["bulk"]
    if bulk == "least-squares":
        y, g = -grad[:k].T, update[:k].T
        of_reverse = k / np.trace(np.linalg.solve(y.T @ y, y.T @ g))
    reverse = np.linalg.inv(block_bfgs(grad[:k], update[:k], of_reverse))
    assert fit.r2_reverse == pytest.approx(r2(update[k:], -grad[k:] @ reverse), abs=1e-10)
    assert fit.r2_reverse_in_sample == pytest.approx(1.0, abs=1e-12)
    assert math.isnan(fit.r2_symmetric)
    values = eigh(update[:k] @ -grad[:k].T, update[:k] @ update[:k].T, eigvals_only=True)
    np.testing.assert_allclose(found.elements()["values"], values, rtol=1e-9)
    assert (fit.smallest, fit.largest) == pytest.approx((values[0], values[-1]))
    # The numbers that M has: those that the steps fix, and c
    assert fit.parameters == 20 * k - k * (k - 1) // 2 + 1
    assert M.logdet() == pytest.approx(np.linalg.slogdet(dense)[1])
    np.testing.assert_allclose((M.sqrt() @ np.eye(20)) @ (M.sqrt() @ np.eye(20)), dense, atol=1e-8)


def test_the_bulk_is_what_it_is_said_to_be():
    rng = np.random.default_rng(1)
    grad = rng.normal(size=(6, 15))
    update = -grad @ spd(15, rng)
    of = {
        bulk: identify(grad=grad, update=update, family="multi-secant", holdout=0.0, bulk=bulk).elements()["bulk"]
        for bulk in ("least-squares", "omega")
    }

    def omega(log_c):
        values = np.linalg.eigvalsh(block_bfgs(grad, update, math.exp(log_c)))
        return math.log(values.mean()) - np.log(values).mean()

    found = minimize_scalar(omega, bounds=(-5, 5), method="bounded", options={"xatol": 1e-9})
    assert of["omega"] == pytest.approx(math.exp(found.x), rel=1e-5)
    # Least squares of c Q to Z, the updates made orthonormal
    q, triangle = np.linalg.qr(update.T)
    z = -grad.T @ np.linalg.inv(triangle)
    assert of["least-squares"] == pytest.approx(np.sum(q * z) / np.sum(q * q), rel=1e-9)
    one = identify(grad=grad[:1], update=update[:1], family="multi-secant", holdout=0.0, bulk="omega")
    assert one.elements()["bulk"] == pytest.approx(steepest.align(grad[0], update[0]).alpha_opt)
    np.testing.assert_allclose(
        one.metric.to_dense(), steepest.metric(grad[0], update[0]).to_dense(), rtol=1e-9, atol=1e-10
    )


def test_as_many_steps_as_parameters_recover_the_planted_metric():
    rng = np.random.default_rng(2)
    metric = spd(9, rng)
    grad, update, rate = descent_on_a_quadratic(np.linalg.inv(metric), 40, rng)
    found = identify(grad=grad, update=update, family="multi-secant", rng=0)
    assert found["(all)"].status == "ok"
    assert found["(all)"].r2 == pytest.approx(1.0, abs=1e-9)
    assert relative_error(found.metric.to_dense(), metric / rate) < 1e-6
    # Noise of 1e-5 is within the tolerance, and seen in the residual
    noisy = update + 1e-5 * np.abs(update).mean() * rng.normal(size=update.shape)
    found = identify(grad=grad, update=noisy, family="multi-secant", rng=0)
    fit = found["(all)"]
    assert 1e-7 < found.elements()["asymmetry"] < 1e-3
    assert 0.0 < 1.0 - fit.r2_in_sample < 1e-3
    assert 1.0 - fit.r2_in_sample == pytest.approx(
        found.elements()["misfit"] ** 2 + found.elements()["left_over"] ** 2, rel=0.5
    )
    dense = found.metric.to_dense()
    assert np.linalg.eigvalsh(dense)[0] > 0.0
    assert fit.r2 == pytest.approx(r2(-grad[30:], noisy[30:] @ dense), abs=1e-8)
    # Noise of 10% is not
    wild = update + 0.1 * np.abs(update).mean() * rng.normal(size=update.shape)
    found = identify(grad=grad, update=wild, family="multi-secant", rng=0)
    assert found["(all)"].status == "inconsistent"


def test_which_rules_have_a_constant_metric():
    """A symmetric preconditioner gives G^T Y = Y^T P Y, symmetric whatever the loss; momentum and feedback do not."""
    rng = np.random.default_rng(3)
    P = spd(10, rng)
    grad, update, _ = descent_on_a_quadratic(P, 12, rng)
    product = update @ -grad.T
    assert np.abs(product - product.T).max() < 1e-13 * np.abs(product).max()
    assert identify(grad=grad, update=update, family="multi-secant", rng=0).elements()["asymmetry"] < 1e-14
    for rule in ("momentum", "feedback"):
        feedback = P + 0.5 * rng.normal(size=P.shape)  # drives the parameters, but not along any symmetric matrix
        grad, update, _ = (
            descent_on_a_quadratic(P, 12, rng, momentum=0.8)
            if rule == "momentum"
            else descent_on_a_quadratic(feedback, 12, rng)
        )
        found = identify(grad=grad, update=update, family="multi-secant", rng=0)
        fit = found["(all)"]
        lengths = np.linalg.norm(update[:9], axis=1)
        product = (update[:9] @ -grad[:9].T) / np.outer(lengths, lengths)
        asymmetry = np.linalg.norm(product - product.T) / np.linalg.norm(product + product.T)
        assert found.elements()["asymmetry"] == pytest.approx(asymmetry)
        assert asymmetry > 0.01
        assert fit.status == "inconsistent"
        assert f"asymmetry {asymmetry:.3g}" in " ".join(fit.notes)
        assert math.isnan(fit.r2)
        assert math.isnan(fit.r2_in_sample)
        for floor in (None, 1.0):
            with pytest.raises(ValueError, match="not symmetric"):
                found.to_metric(floor=floor)


def test_symmetric_but_not_positive():
    rng = np.random.default_rng(4)
    values, vectors = np.linalg.eigh(spd(8, rng))
    values[3] = -values[3]
    grad = rng.normal(size=(16, 8))
    found = identify(grad=grad, update=-grad @ (vectors * values) @ vectors.T, family="multi-secant", rng=0)
    fit = found["(all)"]
    assert fit.status == "not_positive_definite"
    assert fit.not_positive == 1
    assert "1 of 8 generalised eigenvalues" in " ".join(fit.notes)
    with pytest.raises(ValueError, match="positive definite"):
        found.to_metric(floor=1.0)


def test_dependent_updates():
    rng = np.random.default_rng(5)
    metric = spd(12, rng)
    directions = rng.normal(size=(4, 12))
    mix = rng.normal(size=(10, 4))
    update = mix @ directions
    grad = -update @ metric
    found = identify(grad=grad, update=update, family="multi-secant", rng=0)
    assert found.elements()["rank"] == 4
    assert found["(all)"].status == "underdetermined"
    assert "span 4 dimensions only" in " ".join(found["(all)"].notes)
    assert found["(all)"].r2 == pytest.approx(1.0, abs=1e-10)  # the later steps lie in the span, too
    np.testing.assert_allclose(update @ found.metric.to_dense(), -grad, atol=1e-10)
    # Nearly parallel steps, as those of a slow rule
    slow = rng.normal(size=12) + 1e-9 * rng.normal(size=(10, 12))
    found = identify(grad=-slow @ metric, update=slow, family="multi-secant", rng=0)
    assert found.elements()["rank"] == 1
    assert found["(all)"].status == "underdetermined"
    assert found["(all)"].r2 == pytest.approx(1.0, abs=1e-8)
    # The same update with another gradient: no matrix does that
    grad[1], update[1] = 2.0 * grad[0] + rng.normal(size=12), update[0]
    found = identify(grad=grad, update=update, family="multi-secant", rng=0, tolerance=0.9)
    assert found["(all)"].r2_in_sample < 1.0 - 1e-3 or found["(all)"].status == "inconsistent"
    found = identify(grad=grad, update=update, family="multi-secant", rng=0)
    assert found["(all)"].status == "inconsistent"
    # A step that stands still at a gradient
    still = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    found = identify(grad=-np.eye(3)[[0, 2, 1, 2]], update=still, family="multi-secant", rng=0)
    assert found["(all)"].status == "inconsistent"
    assert found.elements()["left_over"] > 0.1
    assert "updates cancel" in " ".join(found["(all)"].notes)


def test_noise_that_only_nearly_parallel_updates_see():
    rng = np.random.default_rng(11)
    metric = spd(12, rng)
    slow = rng.normal(size=12) + 1e-3 * rng.normal(size=(8, 12))
    grad = -slow @ metric
    exact = identify(grad=grad, update=slow, family="multi-secant", holdout=0.0)
    assert exact.elements()["misfit"] < 1e-6
    noisy = identify(grad=grad + 1e-3 * rng.normal(size=grad.shape), update=slow, family="multi-secant", holdout=0.0)
    found = noisy.elements()
    assert found["asymmetry"] < 1e-3  # of the common direction, and nothing but that
    assert found["values"][0] <= 0.0 or found["misfit"] > 1e-2
    with pytest.raises(ValueError, match=r"positive definite|nearly symmetric"):
        noisy.to_metric(floor=1.0)


def test_multi_secant_block_by_block():
    rng = np.random.default_rng(6)
    metric = spd(11, rng)
    flat = rng.normal(size=(12, 11))
    moves = -flat @ np.linalg.inv(metric)
    grad = {"w": flat[:, :6].reshape(12, 2, 3), "b": flat[:, 6:]}
    update = {"w": moves[:, :6].reshape(12, 2, 3), "b": moves[:, 6:]}
    found = identify(grad=grad, update=update, family="multi-secant", rng=0)
    assert found.blocks == ("(all)", "w", "b")
    joint = identify(grad=flat, update=moves, family="multi-secant", rng=0)
    # The whole is coupled: its metric is not made of those of the arrays, which see no constant one
    np.testing.assert_allclose(found.metric.to_dense(), joint.metric.to_dense(), rtol=1e-9, atol=1e-10)
    assert found["(all)"].r2 == pytest.approx(joint["(all)"].r2, abs=1e-10)
    assert [fit.status for fit in found.fits] == ["underdetermined", "inconsistent", "inconsistent"]
    M = found.metric
    image = M @ {name: x[0] for name, x in update.items()}
    np.testing.assert_allclose(image["w"], -grad["w"][0], atol=1e-11)
    # Where the preconditioner does not couple them, each has its own
    update = {"w": -0.1 * grad["w"], "b": -0.3 * grad["b"]}
    found = identify(grad=grad, update=update, family="multi-secant", rng=0)
    np.testing.assert_allclose(found.to_metric("w").to_dense(), 10.0 * np.eye(6), atol=1e-9)
    assert found["b"].r2 == pytest.approx(1.0, abs=1e-10)
    json.dumps(found.to_dict())
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.to_metric("b").to_dense(), found.to_metric("b").to_dense())


@pytest.mark.parametrize("scale", [1e-250, 1e-3, 1e250])
def test_multi_secant_in_any_units(scale):
    rng = np.random.default_rng(7)
    grad = rng.normal(size=(12, 6))
    update = -grad @ spd(6, rng)
    plain = identify(grad=grad, update=update, family="multi-secant", rng=0)
    scaled = identify(grad=grad, update=scale * update, family="multi-secant", rng=0)
    assert scaled["(all)"].r2 == pytest.approx(plain["(all)"].r2, abs=1e-9)
    np.testing.assert_allclose(scaled.metric @ (scale * update[0]), plain.metric @ update[0], rtol=1e-9, atol=1e-11)
    assert scaled.elements()["bulk"] * scale == pytest.approx(plain.elements()["bulk"], rel=1e-9)


def test_multi_secant_in_float32_keeps_float32():
    rng = np.random.default_rng(8)
    n, T = 60_000, 40
    d = rng.uniform(0.5, 2.0, n).astype(np.float32)
    grad = rng.standard_normal((T, n), dtype=np.float32)
    update = -grad / d
    tracemalloc.start()
    found = identify(grad=grad, update=update, family="multi-secant", rng=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    rows = 2 * 30 * n * 4
    assert peak < 1.2 * rows + 40e6  # chunks of 2^14 elements of all rows in float64
    assert found.elements()["asymmetry"] < 1e-6
    assert found["(all)"].status == "underdetermined"
    M = found.metric
    assert np.abs(M @ update[3] + grad[3]).max() < 1e-4


def test_later_steps_may_be_finer_than_the_first():
    rng = np.random.default_rng(12)
    metric = spd(10, rng)
    grad = rng.normal(size=(8, 10))
    update = -grad @ np.linalg.inv(metric)
    pairs = [
        (g.astype(np.float32), u.astype(np.float32)) if t < 2 else (g, u)
        for t, (g, u) in enumerate(zip(grad, update, strict=True))
    ]
    M = identify(pairs, family="multi-secant", rng=0).metric
    np.testing.assert_allclose(M @ update[5], -grad[5], atol=1e-6)
    assert M.dtype == np.float64
    coarse = [(g.astype(np.float16), u.astype(np.float16)) for g, u in zip(grad, update, strict=True)]
    found = identify(coarse, family="multi-secant", rng=0, tolerance=0.1)
    assert found.metric.dtype == np.float32
    np.testing.assert_allclose(found.metric @ coarse[3][1], -coarse[3][0], atol=0.05)


def test_a_floor_is_the_bulk():
    rng = np.random.default_rng(9)
    grad = rng.normal(size=(8, 10))
    update = -grad @ spd(10, rng)
    found = identify(grad=grad, update=update, family="multi-secant", rng=0)
    M = found.to_metric(floor=3.0)
    np.testing.assert_allclose(M.to_dense(), block_bfgs(grad[:6], update[:6], 3.0), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(M.solve(M @ update[7]), update[7], rtol=1e-9)
    for wrong in ({"tolerance": 1.0}, {"tolerance": -1.0}, {"rank_tolerance": 0.0}, {"bulk": "mean"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            identify(grad=grad, update=update, family="multi-secant", **wrong)
    with pytest.raises(TypeError, match="rank"):
        identify(grad=grad, update=update, family="multi-secant", rank=2)
    for call in (found.to_metric, found.elements):
        with pytest.raises(ValueError, match="one estimate"):
            call(symmetric=True)
    still = identify(grad=grad, update=0.0 * update, family="multi-secant", rng=0)
    assert still["(all)"].status == "not_identified"
    one = identify(grad=np.ones((4, 1)), update=-0.5 * np.ones((4, 1)), family="multi-secant", rng=0)
    assert one["(all)"].status == "ok"
    np.testing.assert_allclose(one.metric.to_dense(), [[2.0]])


def test_multi_secant_on_digits():
    rng = np.random.default_rng(10)
    planted = {}

    def preconditioner(n):
        return planted.setdefault(n, spd(n, np.random.default_rng(0), spread=0.4))

    grad, update = descent_on_digits(preconditioner, 160, rng)
    (n, P), *_ = planted.items()
    early = identify(grad=grad[:40], update=update[:40], family="multi-secant", rng=0)
    late = identify(grad=grad, update=update, family="multi-secant", rng=0)
    assert early["(all)"].status == "underdetermined"
    assert late["(all)"].status == "ok"
    assert late["(all)"].r2 == pytest.approx(1.0, abs=1e-6)
    truth = np.linalg.inv(P) / 0.05
    errors = [relative_error(found.metric.to_dense(), truth) for found in (early, late)]
    assert errors[1] < 1e-4 < errors[0]
    assert late.elements()["rank"] == n


# Diagonal plus low rank ----------------------------------------------------------------------------------------------


def test_the_metric_against_dense():
    rng = np.random.default_rng(20)
    layout = Layout(("w", "b"), ((2, 3), (4,)))
    d, u = rng.uniform(0.5, 2.0, 10), rng.normal(size=(2, 10))
    M = DiagonalLowRankMetric(layout, [d[:6], d[6:]], [u[:, :6].copy(), u[:, 6:].copy()])
    dense = np.diag(d) + u.T @ u
    for found, expected in (
        (M, dense),
        (M.inv(), np.linalg.inv(dense)),
        (3.0 * M, 3.0 * dense),
        ((3.0 * M).inv(), np.linalg.inv(3.0 * dense)),
        (M.inv().inv(), dense),
    ):
        np.testing.assert_allclose(found.to_dense(), expected, rtol=1e-12, atol=1e-13)
        x = rng.normal(size=10)
        np.testing.assert_allclose(found @ x, expected @ x, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(found.solve(x), np.linalg.solve(expected, x), rtol=1e-11, atol=1e-12)
        columns = rng.normal(size=(10, 3))
        np.testing.assert_allclose(found @ columns, expected @ columns, rtol=1e-12, atol=1e-13)
        assert found.logdet() == pytest.approx(np.linalg.slogdet(expected)[1], rel=1e-12)
        assert found.trace() == pytest.approx(np.trace(expected), rel=1e-12)
        diagonal = found.diagonal()
        np.testing.assert_allclose(np.concatenate([diagonal["w"].ravel(), diagonal["b"]]), np.diag(expected))
        assert found.inner(x, columns[:, 0]) == pytest.approx(x @ expected @ columns[:, 0])
        assert found.norm(x) == pytest.approx(math.sqrt(x @ expected @ x))
        np.testing.assert_allclose(found.eigvalsh(), np.linalg.eigvalsh(expected), rtol=1e-10)
        assert "relative to its base" in repr(found)
    np.testing.assert_allclose(M.sqrt().to_dense(), sqrtm(dense), atol=1e-10)
    np.testing.assert_allclose(M.log().to_dense(), logm(dense), atol=1e-10)
    spectrum = M.spectrum()
    assert spectrum.relative
    expected = eigh(dense, np.diag(d), eigvals_only=True)
    np.testing.assert_allclose(np.repeat(spectrum.values, spectrum.multiplicities), expected, rtol=1e-10)
    np.testing.assert_allclose(M.inv().spectrum().values[0], 1.0 / expected[-1])
    assert M.rank == 2
    wide = DiagonalLowRankMetric(Layout(None, ((2,),)), [np.ones(2)], [rng.normal(size=(5, 2))])
    assert sum(wide.spectrum().multiplicities) == 2
    long = DiagonalLowRankMetric(Layout(None, ((5000,),)), [np.ones(5000)], [np.ones((1, 5000))])
    with pytest.raises(TypeError, match="dense"):
        long.sqrt()
    assert long.logdet() == pytest.approx(math.log(5001.0))
    with pytest.raises(ValueError, match="positive"):
        DiagonalLowRankMetric(Layout(None, ((2,),)), [np.array([1.0, 0.0])], [np.ones((1, 2))])
    grad, update = -(M @ np.ones(10)), np.ones(10)
    assert steepest.align(grad, update, base=M).angle < 1e-7
    assert pickle.loads(pickle.dumps(M)).trace() == M.trace()


@pytest.mark.parametrize(("n", "rank", "T"), [(12, 1, 40), (40, 2, 60)])
def test_planted_diagonal_plus_low_rank(n, rank, T):
    rng = np.random.default_rng(n)
    metric = diagonal_plus(n, rank, rng)
    grad, update, rate = descent_on_a_quadratic(np.linalg.inv(metric), T, rng)
    errors = []
    for noise in (0.0, 1e-3, 1e-2):
        noisy = update * (1.0 + noise * rng.normal(size=update.shape))
        found = identify(grad=grad, update=noisy, family="diagonal+low-rank", rank=rank, rng=0)
        errors.append(relative_error(found.metric.to_dense(), metric / rate))
        if not noise:
            assert found["(all)"].status == "ok"
            assert found["(all)"].r2 == pytest.approx(1.0, abs=1e-5)
    assert errors[0] < 1e-2
    assert errors[0] < errors[1] < errors[2] < 0.5
    plain = identify(grad=grad, update=update, family="diagonal", rng=0)
    assert plain["(all)"].r2 < 0.99
    assert found["(all)"].r2_in_sample > plain["(all)"].r2_in_sample


def test_the_solution_is_stationary_and_scored_as_dense():
    """The gradients of section 11(b), in d = e^z and U together, vanish where the solver stopped."""
    rng = np.random.default_rng(21)
    n, rank = 15, 2
    metric = diagonal_plus(n, rank, rng)
    y = rng.normal(size=(50, n))
    g = np.linalg.solve(metric, y.T).T + 0.02 * rng.normal(size=y.shape)
    found = identify(grad=-y, update=g, family="diagonal+low-rank", rank=rank, rng=0, solver_tolerance=1e-10)
    fit, k = found["(all)"], found.fitted_steps
    d, u = found.elements()["diagonal"], found.elements()["columns"].T
    assert fit.not_positive == 0
    residual = g[:k] * d + (g[:k] @ u) @ u.T - y[:k]
    dz = d * np.sum(residual * g[:k], axis=0)
    du = residual.T @ (g[:k] @ u) + g[:k].T @ (residual @ u)
    scale = np.sum(y[:k] ** 2)
    assert np.abs(dz).max() < 1e-7 * scale
    assert np.abs(du).max() < 1e-6 * scale
    np.testing.assert_allclose(u.T @ u - np.diag(np.diag(u.T @ u)), 0.0, atol=1e-10)
    dense = found.metric.to_dense()
    np.testing.assert_allclose(dense, np.diag(d) + u @ u.T, rtol=1e-12)
    assert fit.r2 == pytest.approx(r2(y[k:], g[k:] @ dense), abs=1e-12)
    assert fit.r2_in_sample == pytest.approx(r2(y[:k], g[:k] @ dense), abs=1e-10)
    assert math.isnan(fit.r2_reverse)
    assert "minus a matrix of low rank" in " ".join(fit.notes)
    assert fit.parameters == n * (rank + 1) - 1
    values = np.linalg.eigvalsh(dense)
    assert fit.smallest <= values[0] * (1.0 + 1e-9)
    assert fit.largest >= values[-1] * (1.0 - 1e-9)


def test_reading_again_gives_the_same():
    rng = np.random.default_rng(22)
    grad = {"w": rng.normal(size=(20, 3, 2)), "b": rng.normal(size=(20, 4))}
    update = {name: -x * rng.uniform(0.2, 1.0, x.shape[1:]) for name, x in grad.items()}
    update["b"] = -grad["b"] @ np.linalg.inv(diagonal_plus(4, 1, rng))
    kept, read = (
        identify(grad=grad, update=update, family="diagonal+low-rank", rng=0, keep=keep) for keep in (True, False)
    )
    assert kept.blocks == ("(all)", "w", "b")
    for name in kept.blocks:
        assert read[name].r2 == pytest.approx(kept[name].r2, abs=1e-5)
    assert kept["b"].r2 > 0.95
    image = kept.metric @ {name: x[0] for name, x in update.items()}
    assert set(image) == {"w", "b"}
    elements = kept.elements()
    assert elements["columns"]["w"].shape == (1, 3, 2)
    pairs = [({k: x[t] for k, x in grad.items()}, {k: x[t] for k, x in update.items()}) for t in range(20)]
    with pytest.raises(ValueError, match="more than once"):
        identify(iter(pairs), steps=20, family="diagonal+low-rank", keep=False)
    once = identify(iter(pairs), steps=20, family="diagonal+low-rank", rng=0)
    assert once["(all)"].r2 == pytest.approx(kept["(all)"].r2, abs=1e-9)


def test_failure_is_said():
    rng = np.random.default_rng(23)
    n = 10
    y = rng.normal(size=(30, n))
    g = np.linalg.solve(diagonal_plus(n, 2, rng), y.T).T
    few = identify(grad=-y[:4], update=g[:4], family="diagonal+low-rank", rank=3, rng=0)
    assert few["(all)"].status == "too_few_steps"
    assert "at least 4" in " ".join(few["(all)"].notes)
    early = identify(grad=-y, update=g, family="diagonal+low-rank", rank=2, rng=0, max_evaluations=2)
    assert early["(all)"].status == "not_converged"
    assert "stopped after 2 evaluations" in " ".join(early["(all)"].notes)
    open_ = identify(grad=-y[:4], update=g[:4], family="diagonal+low-rank", rank=2, rng=0)
    assert open_["(all)"].status in ("underdetermined", "not_positive_definite")
    assert "the split into" not in " ".join(open_["(all)"].notes)
    many = identify(grad=-y, update=g, family="diagonal+low-rank", rank=8, rng=0)
    assert "the split into diagonal and low rank is not unique" in " ".join(many["(all)"].notes)
    still = g.copy()
    still[:, 4] = 0.0
    unmoved = identify(grad=-y, update=still, family="diagonal+low-rank", rng=0)
    assert unmoved["(all)"].status in ("not_positive_definite", "not_converged")
    assert unmoved["(all)"].determined == pytest.approx(0.9)
    with pytest.raises(ValueError, match="floor"):
        _ = unmoved.metric
    assert np.linalg.eigvalsh(unmoved.to_metric(floor=1.0).to_dense())[0] > 0.0
    nothing = identify(grad=-y, update=0.0 * g, family="diagonal+low-rank", rng=0)
    assert nothing["(all)"].status == "not_identified"
    for wrong in ({"rank": 0}, {"rank": 1.5}, {"max_evaluations": 0}, {"solver_tolerance": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            identify(grad=-y, update=g, family="diagonal+low-rank", **wrong)
    with pytest.raises(ValueError, match="one estimate"):
        many.elements(symmetric=True)
    one = identify(grad=-2.0 * np.ones((6, 1)), update=np.ones((6, 1)), family="diagonal+low-rank", rng=0)
    np.testing.assert_allclose(one.to_metric(floor=1e-12).to_dense(), [[2.0]], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-250, 1e-3, 1e250])
def test_diagonal_plus_low_rank_in_any_units(scale):
    rng = np.random.default_rng(24)
    y = rng.normal(size=(30, 8))
    g = np.linalg.solve(diagonal_plus(8, 1, rng), y.T).T
    plain, scaled = (identify(grad=-y, update=factor * g, family="diagonal+low-rank", rng=0) for factor in (1.0, scale))
    np.testing.assert_allclose(scaled.metric @ (scale * g[0]), plain.metric @ g[0], rtol=1e-4, atol=1e-5)


def test_diagonal_plus_low_rank_on_digits():
    rng = np.random.default_rng(25)
    planted = {}

    def preconditioner(n):
        if n not in planted:
            planted[n] = np.linalg.inv(diagonal_plus(n, 2, np.random.default_rng(1)))
        return planted[n]

    grad, update = descent_on_digits(preconditioner, 120, rng)
    (_, P), *_ = planted.items()
    truth = np.linalg.inv(P) / 0.05
    found = {
        family: identify(grad=grad, update=update, family=family, rng=0, **options)
        for family, options in (("scalar", {}), ("diagonal", {}), ("diagonal+low-rank", {"rank": 2}))
    }
    scores = [found[family]["(all)"].r2 for family in ("scalar", "diagonal", "diagonal+low-rank")]
    assert scores[0] < scores[1] < scores[2]
    assert scores[2] > 0.999
    M = found["diagonal+low-rank"].to_metric(floor=1.0).to_dense()
    assert relative_error(M, truth) < 0.5 * relative_error(found["diagonal"].to_metric(floor=1.0).to_dense(), truth)
    # Noise in the updates
    noisy = update * (1.0 + 0.05 * rng.normal(size=update.shape))
    again = identify(grad=grad, update=noisy, family="diagonal+low-rank", rank=2, rng=0)
    assert again["(all)"].r2 > 0.95
