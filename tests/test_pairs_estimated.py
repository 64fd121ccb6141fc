"""Pairs of estimated gradients: coverage of the interval by simulation, with known gradients, and the formulas."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

import steepest
from steepest.gradient_estimate import GradientEstimate, estimate_gradient
from steepest.pairs.estimated import EstimatedPair, estimated

Array = np.ndarray


def at_angle(degrees: float, size: int, seed: int = 0) -> tuple[Array, Array]:
    """A gradient and an update at a given angle to minus the gradient."""
    rng = np.random.default_rng(seed)
    grad, across = np.linalg.qr(rng.standard_normal((size, 2)))[0].T
    psi = math.radians(degrees)
    return 3.0 * grad, 0.1 * (-math.cos(psi) * grad + math.sin(psi) * across)


def covered(
    make: Callable[[int], EstimatedPair], cosine: float, repeats: int
) -> tuple[float, float, list[EstimatedPair]]:
    """Share of the intervals flagged reliable, share of these that cover, and all pairs."""
    found = [make(seed) for seed in range(repeats)]
    hits = [f.interval[0] <= cosine <= f.interval[1] for f in found if f.reliable]
    return len(hits) / repeats, float(np.mean(hits)), found


@pytest.mark.parametrize(("size", "directions", "degrees"), [(5, 60, 60), (10, 60, 45), (20, 100, 70)])
def test_spsa_interval_covers_and_its_error_is_the_spread(size: int, directions: int, degrees: float) -> None:
    grad, update = at_angle(degrees, size)

    def make(seed: int) -> EstimatedPair:
        # A curved loss too: symmetric differences of a quadratic are exact.
        found = estimate_gradient(
            lambda x: float(grad @ x + x @ x), np.zeros(size), "spsa", rng=seed, step=0.5, n_directions=directions
        )
        return estimated(found, update)

    share, coverage, found = covered(make, math.cos(math.radians(degrees)), 300)
    assert share > 0.9
    assert 0.91 <= coverage <= 0.98
    spread = np.std([f.cosine.value for f in found])
    error = np.mean([f.cosine.standard_error for f in found])
    assert error == pytest.approx(spread, rel=0.15)
    assert np.mean([f.cosine.value for f in found]) == pytest.approx(math.cos(math.radians(degrees)), abs=0.03)
    assert np.mean([f.grad_grad.value for f in found]) == pytest.approx(9.0, rel=0.1)  # not 9 (1 + (n - 1)/K)


def test_spsa_of_a_noisy_loss() -> None:
    grad, update = at_angle(50, 6)

    def make(seed: int) -> EstimatedPair:
        noise = np.random.default_rng([1, seed])
        found = estimate_gradient(
            lambda x: float(grad @ x) + 0.5 * noise.standard_normal(),
            np.zeros(6),
            "spsa",
            rng=seed,
            step=0.5,
            n_directions=80,
        )
        return estimated(found, update)

    share, coverage, _ = covered(make, math.cos(math.radians(50)), 300)
    assert share > 0.9
    assert 0.91 <= coverage <= 0.98


@pytest.mark.parametrize(("size", "steps", "degrees"), [(3, 8, 60), (5, 12, 45), (20, 40, 70)])
def test_regression_interval_covers_with_correlated_displacements(size: int, steps: int, degrees: float) -> None:
    grad, update = at_angle(degrees, size)

    def make(seed: int) -> EstimatedPair:
        rng = np.random.default_rng(seed)
        # Displacements with a common part: the covariance of the estimate is far from diagonal.
        moves = rng.standard_normal((steps, size)) + 2.0 * rng.standard_normal((steps, 1))
        losses = np.append(0.0, np.cumsum(moves @ grad + 0.8 * rng.standard_normal(steps)))
        x = np.concatenate([np.zeros((1, size)), np.cumsum(moves, axis=0)])
        return estimated(estimate_gradient(losses, x, "trajectory-regression"), update)

    share, coverage, found = covered(make, math.cos(math.radians(degrees)), 400)
    assert share > 0.8
    assert 0.91 <= coverage <= 0.98
    assert {f.degrees_of_freedom for f in found} == {steps - size}


def test_node_perturbation_interval_covers() -> None:
    rng = np.random.default_rng(0)
    x, W, target = rng.standard_normal((8, 4)), rng.standard_normal((3, 4)), rng.standard_normal((8, 3))
    exact = (x @ W.T - target).T @ x / 8
    update = -exact + 0.6 * np.linalg.norm(exact) / math.sqrt(12) * rng.standard_normal((3, 4))
    cosine = steepest.align(exact, update).cosine
    assert 25 < math.degrees(math.acos(cosine)) < 60

    def loss(W: Array, perturbation: Array) -> Array:
        return 0.5 * np.square(x @ W.T + perturbation - target).sum(axis=1)

    def make(seed: int) -> EstimatedPair:
        found = estimate_gradient(loss, W, "node-perturbation", inputs=x, step=1e-3, n_directions=60, rng=seed)
        return estimated(found, update)

    share, coverage, found = covered(make, cosine, 300)
    assert share > 0.5
    assert 0.91 <= coverage <= 0.98
    assert np.mean([f.cosine.standard_error for f in found]) == pytest.approx(
        np.std([f.cosine.value for f in found]), rel=0.15
    )


def test_against_u_statistics_and_a_jackknife_of_the_samples_themselves() -> None:
    grad, update = at_angle(60, 4)
    estimate = estimate_gradient(lambda x: float(grad @ x), np.zeros(4), "spsa", rng=1, step=1.0, n_directions=9)
    assert estimate.samples is not None
    samples = np.array(list(estimate.samples))
    np.testing.assert_allclose(samples.mean(axis=0), estimate.gradient, rtol=1e-12)
    found = estimated(estimate, update)

    def cosine(x: Array) -> float:
        n = len(x)
        yy = math.fsum(float(x[i] @ x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
        return -float(x.mean(axis=0) @ update) / math.sqrt(yy) / float(np.linalg.norm(update))

    assert found.cosine.value == pytest.approx(cosine(samples), rel=1e-10)
    left = [cosine(np.delete(samples, i, 0)) for i in range(9)]
    error = math.sqrt(8 / 9 * sum((x - np.mean(left)) ** 2 for x in left))
    assert found.cosine.standard_error == pytest.approx(error, rel=1e-9)
    half = stats.t.ppf(0.975, 8) * error
    assert found.interval == pytest.approx((found.cosine.value - half, found.cosine.value + half), rel=1e-9)
    products = samples @ update
    assert found.grad_update.standard_error == pytest.approx(np.std(products, ddof=1) / 3, rel=1e-9)
    assert found.p_value == pytest.approx(stats.t.sf(found.z, 8), rel=1e-8)
    assert found.grad_noise == pytest.approx(float(estimate.variance.sum()), rel=1e-10)
    assert not found.reliable  # 9 samples


def test_delta_method_of_a_regression_against_numerical_derivatives() -> None:
    grad, update = at_angle(60, 4)
    rng = np.random.default_rng(3)
    moves = rng.standard_normal((30, 4)) + rng.standard_normal((30, 1))
    losses = np.append(0.0, np.cumsum(moves @ grad + 0.1 * rng.standard_normal(30)))
    x = np.concatenate([np.zeros((1, 4)), np.cumsum(moves, axis=0)])
    estimate = estimate_gradient(losses, x, "trajectory-regression")
    residual = np.diff(losses) - moves @ estimate.gradient
    C = residual @ residual / 26 * np.linalg.inv(moves.T @ moves)
    np.testing.assert_allclose(estimate.covariance, C, rtol=1e-9)
    np.testing.assert_allclose(estimate.variance, np.diag(C), rtol=1e-9)
    found = estimated(estimate, update)
    y, trace = estimate.gradient, np.trace(C)

    def cosine(y: Array) -> float:
        return float(-y @ update / np.linalg.norm(y) / np.linalg.norm(update))

    slopes = np.array([(cosine(y + 1e-6 * e) - cosine(y - 1e-6 * e)) / 2e-6 for e in np.eye(4)])
    assert found.cosine.standard_error == pytest.approx(math.sqrt(slopes @ C @ slopes), rel=1e-2)
    assert found.cosine.value == pytest.approx(cosine(y) * math.sqrt(y @ y / (y @ y - trace)), rel=1e-10)
    assert found.grad_update.standard_error == pytest.approx(math.sqrt(update @ C @ update), rel=1e-9)
    assert found.grad_grad == pytest.approx((y @ y - trace, 2 * math.sqrt(y @ C @ y)), rel=1e-9)
    # The diagonal alone would say something else.
    assert abs(math.sqrt(slopes**2 @ np.diag(C)) / found.cosine.standard_error - 1) > 0.1


@pytest.mark.parametrize("method", ["spsa", "trajectory-regression"])
def test_discrete_pair_of_a_finite_step(method: str) -> None:
    # The loss change of a long step is not grad.update: the discrete gradient of the true gradient is the target.
    grad, update = at_angle(70, 8)
    change = -0.25
    exact = grad + (change - grad @ update) / (update @ update) * update
    target = steepest.align(exact, update).cosine
    assert 30 < math.degrees(math.acos(target)) < 60

    def make(seed: int) -> EstimatedPair:
        rng = np.random.default_rng(seed)
        if method == "spsa":
            found = estimate_gradient(
                lambda x: float(grad @ x), np.zeros(8), "spsa", rng=seed, step=1.0, n_directions=60
            )
        else:
            moves = rng.standard_normal((25, 8)) + rng.standard_normal((25, 1))
            losses = np.append(0.0, np.cumsum(moves @ grad + 1.0 * rng.standard_normal(25)))
            x = np.concatenate([np.zeros((1, 8)), np.cumsum(moves, axis=0)])
            found = estimate_gradient(losses, x, "trajectory-regression")
        return estimated(found, update, loss_change=change)

    share, coverage, found = covered(make, target, 400)
    assert share > 0.9
    assert 0.91 <= coverage <= 0.98
    assert np.mean([f.cosine.standard_error for f in found]) == pytest.approx(
        np.std([f.cosine.value for f in found]), rel=0.15
    )
    first = found[0]
    assert first.pair.align().inner_product == pytest.approx(change, rel=1e-12)
    plain = first.pair.align().cosine  # biased by noise, the other is not
    assert np.mean([f.pair.align().cosine for f in found]) < np.mean([f.cosine.value for f in found])
    assert plain != first.cosine.value
    # pairs.discrete makes the same pair of the estimate
    estimate = first.pair.vectors[0].flat()
    same = steepest.pairs.discrete(np.zeros(8), update, loss=0.0, loss_next=change, grad=estimate, method="left")
    np.testing.assert_allclose(first.pair.gradient(), same.gradient(), rtol=1e-10)
    assert first.pair.correction_share == pytest.approx(same.correction_share, rel=1e-9)
    # what is known of the gradient itself does not depend on the loss change
    assert first.grad_update.value == pytest.approx(float(estimate @ update), rel=1e-10)


def test_central_bound_holds() -> None:
    rng = np.random.default_rng(0)
    for step in (None, 1e-2, 0.1):
        for _ in range(50):
            x, update = rng.standard_normal((2, 5))
            exact = 3.0 * x**2 + np.cos(x)
            found = estimated(estimate_gradient(lambda x: float(np.sum(x**3 + np.sin(x))), x, step=step), update)
            truth = steepest.align(exact, update).cosine
            assert found.interval[0] <= truth <= found.interval[1]
            assert found.reliable
            assert found.interval[1] - found.interval[0] < (1e-6 if step is None else 0.1)


def test_an_estimate_made_by_hand() -> None:
    gradient, variance, update = np.array([3.0, 0.0]), np.array([0.01, 0.04]), np.array([-1.0, 1.0])
    found = estimated(GradientEstimate(gradient, variance, 0, "recorded", math.nan), update)
    squared = 9.0 - 0.05
    cosine = 3.0 / math.sqrt(2 * squared)
    assert found.cosine.value == pytest.approx(cosine, rel=1e-12)
    along = (update / math.sqrt(2) - cosine * np.array([-3.0, 0.0]) / math.sqrt(squared)) / math.sqrt(squared)
    assert found.cosine.standard_error == pytest.approx(math.sqrt(along**2 @ variance), rel=1e-10)
    half = stats.norm.ppf(0.975) * found.cosine.standard_error
    assert found.interval[1] == pytest.approx(cosine + half, rel=1e-9)
    assert found.z == pytest.approx(3.0 / math.sqrt(0.05), rel=1e-12)
    assert found.p_value == pytest.approx(stats.norm.sf(found.z), rel=1e-6)
    assert found.reliable
    assert found.metric().solve(-gradient) == pytest.approx(update)
    assert "'recorded'" in repr(found)
    assert pickle.loads(pickle.dumps(found)).interval == found.interval
    numbers = found.to_dict()
    assert numbers["cosine_se"] == found.cosine.standard_error
    assert numbers["angle"] == pytest.approx(math.acos(cosine))


def test_statuses() -> None:
    update = np.array([-1.0, 1.0])

    def by_hand(gradient: Array, variance: Array) -> EstimatedPair:
        return estimated(GradientEstimate(gradient, variance, 0, "recorded", math.nan), update)

    assert by_hand(np.ones(2), np.full(2, 2.0)).status == "undefined"
    assert by_hand(np.ones(2), np.full(2, math.nan)).status == "nonfinite"
    assert by_hand(np.array([1.0, math.inf]), np.ones(2)).status == "nonfinite"
    noisy = by_hand(np.array([2.0, 1.0]), np.full(2, 1.5))
    assert (noisy.status, noisy.flag) == ("ok", "unreliable")
    assert "twice its noise" in noisy.reasons[0]
    near = by_hand(np.array([1.0, -1.1]), np.full(2, 1e-3))
    assert "degrees" in near.reasons[0]
    still = estimated(GradientEstimate(np.ones(2), np.full(2, 0.1), 0, "recorded", math.nan), np.zeros(2))
    assert (still.status, still.align().status) == ("undefined", "zero_update")
    alone = estimate_gradient(lambda x: float(x @ x), np.ones(2), "spsa", rng=0, n_directions=1)
    assert estimated(alone, update).status == "nonfinite"
    exact = estimate_gradient(lambda x: float(x[0] ** 2), np.array([1.5]), "spsa", rng=0, n_directions=5)
    sure = estimated(exact, np.array([-1.0]))
    assert (sure.flag, sure.cosine.value) == ("reliable", pytest.approx(1.0, rel=1e-8))
    # As many steps as parameters: no residuals, no variance.
    rng = np.random.default_rng(0)
    few = estimate_gradient(rng.standard_normal(3), rng.standard_normal((3, 2)), "trajectory-regression")
    assert estimated(few, update).status == "nonfinite"


def test_mappings_and_dtypes() -> None:
    def loss(p: dict[str, Array]) -> float:
        return float(np.sum(p["w"].astype(np.float64) ** 2) + 3.0 * p["b"].astype(np.float64).sum())

    params = {"w": np.ones((2, 2), dtype=np.float32), "b": np.zeros(1, dtype=np.float32)}
    update = {"b": np.array([-1.0], dtype=np.float32), "w": np.array([[-1.0, 0.5], [-1.0, 0.0]], dtype=np.float32)}
    found = estimated(estimate_gradient(loss, params, "spsa", rng=0, n_directions=200), update)
    truth = steepest.align(np.array([2.0, 2.0, 2.0, 2.0, 3.0]), np.array([-1.0, 0.5, -1.0, 0.0, -1.0])).cosine
    assert found.interval[0] < truth < found.interval[1]
    assert set(found.pair.gradient()) == {"w", "b"}


def test_what_does_not_fit_is_refused() -> None:
    estimate = estimate_gradient(lambda x: float(x @ x), np.ones(2))
    with pytest.raises(TypeError, match=r"pairs\.continuous"):
        estimated(np.ones(2), np.ones(2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shape"):
        estimated(estimate, np.ones(3))
    with pytest.raises(ValueError, match="finite loss_change"):
        estimated(estimate, np.ones(2), loss_change=math.nan)
