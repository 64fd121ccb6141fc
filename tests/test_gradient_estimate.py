"""Gradients from losses: against exact gradients, and variances against those that are known."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from steepest.arrays import EPSILON
from steepest.gradient_estimate import estimate_gradient


def rosenbrock(x: np.ndarray) -> float:
    return float(np.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2))


def rosenbrock_gradient(x: np.ndarray) -> np.ndarray:
    found = np.zeros_like(x)
    found[:-1] = -400.0 * x[:-1] * (x[1:] - x[:-1] ** 2) - 2.0 * (1.0 - x[:-1])
    found[1:] += 200.0 * (x[1:] - x[:-1] ** 2)
    return found


@pytest.mark.parametrize("n", [2, 3, 10])
def test_central_against_the_gradient_of_rosenbrock(n: int) -> None:
    x = np.random.default_rng(n).standard_normal(n)
    found = estimate_gradient(rosenbrock, x)
    exact = rosenbrock_gradient(x)
    np.testing.assert_allclose(found.gradient, exact, rtol=1e-6, atol=1e-6)
    error = np.sqrt(found.variance)
    assert (np.abs(found.gradient - exact) <= 3.0 * error).all()
    assert (error < 1e-5).all()
    assert found.evaluations == 4 * n


def test_central_error_is_the_truncation_error_of_a_large_step() -> None:
    # d/dx exp = exp; the central difference is sinh(h)/h times it.
    found = estimate_gradient(lambda x: math.exp(x[0]), np.array([0.0]), step=0.1)
    assert found.gradient[0] == pytest.approx(math.sinh(0.1) / 0.1, rel=1e-12)
    assert math.sqrt(found.variance[0]) == pytest.approx(math.sinh(0.1) / 0.1 - 1.0, rel=0.02)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_central_in_low_precision(dtype: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype)) if dtype == "bfloat16" else np.dtype(dtype)
    params = {"w": np.array([[0.5, -0.3], [1.7, 3.0]], dtype=kind), "b": np.array(0.25, dtype=kind)}

    def loss(p: dict[str, Any]) -> float:
        assert p["w"].dtype == kind
        return float(np.sum(np.sin(p["w"].astype(np.float64)))) + float(p["b"]) ** 2

    found = estimate_gradient(loss, params)
    eps = EPSILON[dtype]
    exact = np.cos(params["w"].astype(np.float64))
    np.testing.assert_allclose(found.gradient["w"].astype(np.float64), exact, atol=3.0 * eps ** (2 / 3))
    assert found.gradient["w"].dtype == kind
    assert found.gradient["b"].shape == ()
    assert found.evaluations == 20


def test_spsa_average_and_variance_are_those_of_a_linear_loss() -> None:
    g = np.array([3.0, -1.0, 0.5, 2.0])
    k = 50
    known = (g @ g - g**2) / k
    found = [
        estimate_gradient(lambda x: float(g @ x), np.zeros(4), "spsa", rng=seed, step=0.5, n_directions=k)
        for seed in range(400)
    ]
    gradients, variances = (np.array([getattr(f, name) for f in found]) for name in ("gradient", "variance"))
    assert (np.abs(gradients.mean(axis=0) - g) < 4.0 * np.sqrt(known / 400)).all()
    np.testing.assert_allclose(gradients.var(axis=0, ddof=1), known, rtol=0.3)  # 4 standard errors of a variance
    np.testing.assert_allclose(variances.mean(axis=0), known, rtol=0.05)  # unbiased
    assert found[0].evaluations == 2 * k


def test_spsa_against_its_own_directions() -> None:
    points: list[np.ndarray] = []

    def loss(x: np.ndarray) -> float:
        points.append(x.copy())
        return rosenbrock(x)

    found = estimate_gradient(loss, np.array([0.3, 0.7, 0.2]), "spsa", rng=4, step=0.01, n_directions=3)
    assert len(points) == found.evaluations == 6
    each = []
    for ahead, behind in zip(points[::2], points[1::2], strict=True):
        d = (ahead - behind) / 0.02
        np.testing.assert_allclose(np.abs(d), 1.0, rtol=1e-12)
        each.append((rosenbrock(ahead) - rosenbrock(behind)) / 0.02 * d)
    np.testing.assert_allclose(found.gradient, np.mean(each, axis=0), rtol=1e-9)
    np.testing.assert_allclose(found.variance, np.var(each, axis=0, ddof=1) / 3, rtol=1e-9)


def test_spsa_is_exact_with_one_parameter_and_reproducible() -> None:
    found = estimate_gradient(lambda x: float(x[0] ** 2), np.array([1.5]), "spsa", rng=0, n_directions=5)
    assert found.gradient[0] == pytest.approx(3.0, rel=1e-9)
    assert found.variance[0] == pytest.approx(0.0, abs=1e-15)
    one = [
        estimate_gradient(rosenbrock, np.array([0.3, 0.7, 0.2]), "spsa", rng=np.random.default_rng(3)).gradient
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*one)
    single = estimate_gradient(rosenbrock, np.ones(3), "spsa", rng=0, n_directions=1)
    assert np.isnan(single.variance).all()


def test_regression_is_exact_for_a_linear_loss() -> None:
    rng = np.random.default_rng(0)
    g = rng.standard_normal(5)
    x = np.cumsum(rng.standard_normal((6, 5)), axis=0) * np.array([1.0, 1e3, 1e-3, 1.0, 1e5])
    found = estimate_gradient(x @ g, x, "trajectory-regression")
    np.testing.assert_allclose(found.gradient, g, rtol=1e-6)
    assert np.isnan(found.variance).all()
    assert found.evaluations == 6


def test_regression_variance_is_that_of_its_noise() -> None:
    rng = np.random.default_rng(1)
    g, sigma = rng.standard_normal(3), 0.1
    moves = rng.standard_normal((30, 3))
    x = np.concatenate([np.zeros((1, 3)), np.cumsum(moves, axis=0)])
    known = sigma**2 * np.diag(np.linalg.inv(moves.T @ moves))
    gradients, variances = [], []
    for _ in range(600):
        changes = moves @ g + sigma * rng.standard_normal(30)  # independent from step to step
        found = estimate_gradient(np.append(0.0, np.cumsum(changes)), x, "trajectory-regression")
        gradients.append(found.gradient)
        variances.append(found.variance)
    np.testing.assert_allclose(np.var(gradients, axis=0, ddof=1), known, rtol=0.25)
    np.testing.assert_allclose(np.mean(variances, axis=0), known, rtol=0.05)
    assert (np.abs(np.mean(gradients, axis=0) - g) < 4.0 * np.sqrt(known / 600)).all()


def test_regression_of_a_mapping_has_the_form_of_one_step() -> None:
    rng = np.random.default_rng(2)
    x = {"w": rng.standard_normal((9, 2, 2)).astype(np.float32), "b": rng.standard_normal(9).astype(np.float32)}
    g: dict[str, Any] = {"w": np.array([[1.0, 2.0], [3.0, -1.0]]), "b": -0.5}
    losses = np.einsum("tij,ij->t", x["w"].astype(np.float64), g["w"]) + g["b"] * x["b"].astype(np.float64)
    found = estimate_gradient(losses, x, "trajectory-regression")
    np.testing.assert_allclose(found.gradient["w"], g["w"], rtol=1e-5)
    assert (found.gradient["b"].shape, found.gradient["b"].dtype) == ((), np.float32)


def test_regression_refuses_too_few_steps_and_too_few_directions() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 5))
    with pytest.raises(ValueError, match="4 steps of 5 parameters"):
        estimate_gradient(np.zeros(5), x, "trajectory-regression")
    plane = rng.standard_normal((20, 2)) @ rng.standard_normal((2, 5))
    with pytest.raises(ValueError, match="rank 2"):
        estimate_gradient(np.zeros(20), plane, "trajectory-regression")
    with pytest.raises(ValueError, match="rank 0"):
        estimate_gradient(np.zeros(3), np.ones((3, 1)), "trajectory-regression")


def test_a_loss_that_writes_to_its_argument_does_no_harm() -> None:
    def loss(x: np.ndarray) -> float:
        value = rosenbrock(x)
        x[:] = np.nan
        return value

    x = np.array([0.5, -0.2, 0.9])
    np.testing.assert_allclose(estimate_gradient(loss, x).gradient, rosenbrock_gradient(x), rtol=1e-6, atol=1e-6)
    assert np.isfinite(x).all()


def test_torch_parameters() -> None:
    torch = pytest.importorskip("torch")
    x = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)
    for method in ("central", "spsa"):
        found = estimate_gradient(lambda p: (p**2).sum(), x, method, rng=0, n_directions=4000)
        assert isinstance(found.gradient, torch.Tensor)
        np.testing.assert_allclose(
            found.gradient.numpy(), 2.0 * x.detach().numpy(), atol=1e-8 if method == "central" else 0.4
        )


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((rosenbrock, np.ones(3), "forward"), ValueError, "expected method"),
        ((rosenbrock, np.ones(3), "node-perturbation"), TypeError, r"loss\(params, perturbation\)"),
        ((np.ones(3), np.ones(3)), TypeError, "callable"),
        ((rosenbrock, np.ones((4, 3)), "trajectory-regression"), TypeError, "recorded losses"),
        ((np.ones(3), np.ones((4, 3)), "trajectory-regression"), ValueError, r"shape \(4,\)"),
        ((np.array([0.0, np.nan]), np.arange(2.0), "trajectory-regression"), ValueError, "finite"),
        ((lambda x: math.nan, np.ones(3)), ValueError, "finite loss"),
        ((lambda x: x, np.ones(3)), TypeError, "a number"),
        ((rosenbrock, np.array([1.0, np.nan])), ValueError, "finite params"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple[Any, ...], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        estimate_gradient(*arguments)


@pytest.mark.parametrize("method", ["central", "spsa"])
def test_a_step_that_rounding_swallows_is_refused(method: Any) -> None:
    with pytest.raises(ValueError, match="lost in the rounding"):
        estimate_gradient(rosenbrock, np.full(2, 1e6, dtype=np.float32), method, step=1e-3)
    with pytest.raises(ValueError, match="positive, finite step"):
        estimate_gradient(rosenbrock, np.ones(2), method, step=-1.0)
