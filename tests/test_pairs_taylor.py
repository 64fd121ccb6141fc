"""The discrete gradient of Taylor's formula, eq (16): its point, its identity, its order."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
from oracles import mp
from steepest import pairs
from steepest.pairs.taylor import taylor_points


@dataclass(frozen=True)
class Problem:
    """A loss, its gradient, and products with its Hessian."""

    loss: Callable[[Any], Any]
    grad: Callable[[Any], Any]
    hvp: Callable[[Any, Any], Any]


def quadratic(n: int) -> Problem:
    a = np.random.default_rng(n).standard_normal((n, n))
    a = (a + a.T) / (2 * math.sqrt(n))
    return Problem(lambda x: 0.5 * x @ a @ x, lambda x: a @ x, lambda x, v: a @ v)


def rosenbrock(n: int) -> Problem:
    def grad(x: np.ndarray) -> np.ndarray:
        g, rest = np.zeros(n), x[1:] - x[:-1] ** 2
        g[:-1] = -40 * x[:-1] * rest - 2 * (1 - x[:-1])
        g[1:] += 20 * rest
        return g

    def hvp(x: np.ndarray, v: np.ndarray) -> np.ndarray:
        h = np.zeros(n)
        h[:-1] = (120 * x[:-1] ** 2 - 40 * x[1:] + 2) * v[:-1] - 40 * x[:-1] * v[1:]
        h[1:] += 20 * v[1:] - 40 * x[:-1] * v[:-1]
        return h

    return Problem(lambda x: np.sum(10 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2), grad, hvp)


def double_well(_: int) -> Problem:
    return Problem(lambda x: np.sum((x**2 - 1) ** 2), lambda x: 4 * x * (x**2 - 1), lambda x, v: (12 * x**2 - 4) * v)


PROBLEMS = {"quadratic": quadratic, "rosenbrock": rosenbrock, "double well": double_well}


def step(problem: Problem, x: np.ndarray, x_next: np.ndarray, **options: Any) -> pairs.DescentPair:
    losses = {"loss": problem.loss(x), "loss_next": problem.loss(x_next)}
    arguments: dict[str, Any] = {"grad": problem.grad(x), "hvp": problem.hvp, **losses, **options}
    return pairs.discrete(x, x_next, method="taylor", **arguments)


@pytest.mark.parametrize("name", PROBLEMS)
def test_hessians_of_the_problems(name: str) -> None:
    problem, x = PROBLEMS[name](5), np.random.default_rng(1).standard_normal(5)
    eye = 1e-5 * np.eye(5)
    differences = [(problem.grad(x + e) - problem.grad(x - e)) / 2e-5 for e in eye]
    np.testing.assert_allclose([problem.hvp(x, v) for v in np.eye(5)], differences, atol=1e-7)
    slopes = [(problem.loss(x + e) - problem.loss(x - e)) / 2e-5 for e in eye]
    np.testing.assert_allclose(problem.grad(x), slopes, atol=1e-7)


def logistic() -> Problem:
    """Softmax regression on digits, with 650 parameters."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, digits = datasets.load_digits(return_X_y=True)
    inputs = np.hstack([images / 16, np.ones((len(images), 1))])
    wanted = np.eye(10)[digits]

    def predicted(x: np.ndarray) -> np.ndarray:
        z = inputs @ x.reshape(65, 10)
        z = np.exp(z - z.max(axis=1, keepdims=True))
        return z / z.sum(axis=1, keepdims=True)

    def loss(x: np.ndarray) -> float:
        return float(-np.mean(np.log(predicted(x)[wanted == 1])))

    def hvp(x: np.ndarray, v: np.ndarray) -> np.ndarray:
        p, moved = predicted(x), inputs @ v.reshape(65, 10)
        change = p * (moved - np.sum(p * moved, axis=1, keepdims=True))
        return (inputs.T @ change / len(inputs)).ravel()

    return Problem(loss, lambda x: (inputs.T @ (predicted(x) - wanted) / len(inputs)).ravel(), hvp)


@pytest.mark.parametrize("name", ["double well", "rosenbrock", "digits"])
def test_many_parameters(name: str) -> None:
    n = 650 if name == "digits" else 10_000
    problem = logistic() if name == "digits" else PROBLEMS[name](n)
    rng = np.random.default_rng(0)
    x, v = 0.3 * rng.standard_normal((2, n))
    h = 1e-5
    slope = (problem.grad(x + h * v) - problem.grad(x - h * v)) / (2 * h)
    np.testing.assert_allclose(problem.hvp(x, v), slope, atol=1e-6 * np.linalg.norm(slope))
    for length in (1e-2, 1.0):
        d = length * (0.1 * v - problem.grad(x) / np.linalg.norm(problem.grad(x)))
        pair = step(problem, x, x + d, lr=0.1)
        moved = (x + d) - x
        change, dg = problem.loss(x + d) - problem.loss(x), pair.gradient()
        scale = np.linalg.norm(dg) * np.linalg.norm(moved) + abs(problem.loss(x)) + abs(problem.loss(x + d))
        assert abs(float(oracles.inner(dg, moved) - mp.mpf(change))) <= 1e-12 * scale
        assert pair.correction_share < 1e-9
        assert len(pair.taylor_points) >= 1
        if change < 0:
            np.testing.assert_allclose(x + 0.1 * pair.metric().solve(-dg), x + d, rtol=0, atol=1e-9)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    name=st.sampled_from(list(PROBLEMS)),
    n=st.sampled_from([2, 10, 60]),
    length=st.floats(1e-3, 2.0),
    lr=st.floats(1e-6, 1e6),
)
def test_the_discrete_gradient_gives_the_loss_change(seed: int, name: str, n: int, length: float, lr: float) -> None:
    problem, rng = PROBLEMS[name](n), np.random.default_rng(seed)
    x = rng.standard_normal(n)
    x_next = x + length * rng.standard_normal(n) / math.sqrt(n)
    pair, d = step(problem, x, x_next, lr=lr), x_next - x
    dg, change = pair.gradient(), problem.loss(x_next) - problem.loss(x)
    scale = np.linalg.norm(dg) * np.linalg.norm(d) + abs(problem.loss(x)) + abs(problem.loss(x_next))
    assert abs(float(oracles.inner(dg, d) - mp.mpf(change))) <= 1e-12 * scale
    assert pair.defect == 0.0
    s = pair.taylor_points[0] if pair.taylor_points else 1 / 3
    # It is eq (16): what rounding leaves is all that is put along d.
    pure = problem.grad(x) + 0.5 * problem.hvp(x + s * d, d)
    product = np.linalg.norm(problem.hvp(x + s * d, d)) + np.linalg.norm(problem.grad(x))
    floor = 1e-13 * math.sqrt(n) * (scale / np.linalg.norm(d) + product)
    assert np.linalg.norm(dg - pure) <= floor
    assert all(0 < t < 1 for t in pair.taylor_points)
    target = 2 * (change - problem.grad(x) @ d)
    for t in pair.taylor_points:
        assert abs(d @ problem.hvp(x + t * d, d) - target) <= 4 * floor * np.linalg.norm(d)
    if abs(change) > 1e-12 * scale:
        assert pair.align().status == ("ok" if change < 0 else "ascent")
        assert pair.align().inner_product == pytest.approx(change / lr, rel=1e-12)
    if change < -1e-6 * scale:
        np.testing.assert_allclose(x + lr * pair.metric().solve(-dg), x_next, rtol=0, atol=1e-8)  # (15)


@pytest.mark.parametrize("n", [1, 2, 10, 200])
def test_every_point_will_do_for_a_quadratic(n: int) -> None:
    problem = quadratic(n)
    x, x_next = np.random.default_rng(n).standard_normal((2, n))
    pair = step(problem, x, x_next)
    assert pair.taylor_points == ()
    assert pair.correction_share < 1e-14
    np.testing.assert_allclose(pair.gradient(), problem.grad((x + x_next) / 2), rtol=0, atol=1e-13)


def test_the_point_of_a_cubic_is_one_third() -> None:
    """L = x^3: 2 (dL - grad d) = 6 x d^2 + 2 d^3 = 6 (x + s d) d^2 for s = 1/3, whatever x and d."""
    for x, d in ((1.0, -0.3), (-2.0, 5.0), (0.0, 1e-3)):
        cubic = Problem(lambda x: np.sum(x**3), lambda x: 3 * x**2, lambda x, v: 6 * x * v)
        (s,) = step(cubic, np.array([x]), np.array([x + d])).taylor_points
        assert s == pytest.approx(1 / 3, rel=1e-12)


def test_all_points_of_a_double_well() -> None:
    """From the left to the right of the hill the curvature has the asked value twice; the roots are those of a square.

    L = (x^2 - 1)^2 from -1.2 to 0.9: d^2 (12 p^2 - 4) = 2 (dL - grad d) with p = -1.2 + s d.
    """
    x, x_next = np.array([-1.2]), np.array([0.9])
    problem = double_well(1)
    d = float((x_next - x)[0])
    target = 2 * (problem.loss(x_next) - problem.loss(x) - float(problem.grad(x)[0]) * d)
    p = math.sqrt((target / d**2 + 4) / 12)
    pair = step(problem, x, x_next)
    assert pair.taylor_points == pytest.approx([(1.2 - p) / d, (1.2 + p) / d], rel=1e-13)
    expected = problem.grad(x) + 0.5 * (12 * p**2 - 4) * d
    np.testing.assert_allclose(pair.gradient(), expected, rtol=1e-13)
    # Over a barrier: the loss falls though grad.update > 0, and the discrete pair has a metric.
    assert problem.grad(np.array([-0.9])) @ np.array([1.8 + 1e-3]) > 0
    assert step(problem, np.array([-0.9]), np.array([0.9 + 1e-3])).align().status == "ok"


@pytest.mark.parametrize("name", ["rosenbrock", "double well"])
def test_order_of_consistency(name: str) -> None:
    problem = PROBLEMS[name](4)
    x, direction = np.random.default_rng(3).standard_normal((2, 4))
    steps = np.geomspace(1e-3, 1e-1, 7)
    at_midpoint, at_start, points = [], [], []
    for h in steps:
        pair = step(problem, x, x + h * direction)
        at_midpoint.append(np.linalg.norm(pair.gradient() - problem.grad(x + 0.5 * h * direction)))
        at_start.append(np.linalg.norm(pair.gradient() - problem.grad(x)))
        points.append(pair.taylor_points[0])
    assert np.polyfit(np.log(steps), np.log(at_midpoint), 1)[0] == pytest.approx(2, abs=0.1)
    assert np.polyfit(np.log(steps), np.log(at_start), 1)[0] == pytest.approx(1, abs=0.1)
    assert points[0] == pytest.approx(1 / 3, abs=1e-3)


def test_short_steps_below_rounding_have_no_point() -> None:
    """Where the curvature varies by less than rounding of the losses, 1/3 stands for all points."""
    problem = rosenbrock(3)
    x, direction = np.random.default_rng(3).standard_normal((2, 3))
    pair = step(problem, x, x + 1e-7 * direction)
    assert pair.taylor_points == ()
    assert pair.defect == 0.0
    np.testing.assert_allclose(pair.gradient(), problem.grad(x), rtol=1e-5)


def test_layouts_and_types() -> None:
    problem = rosenbrock(6)
    x, x_next = np.random.default_rng(8).standard_normal((2, 6)) / 2
    whole = step(problem, x, x_next)

    def cut(z: np.ndarray) -> dict[str, np.ndarray]:
        return {"w": z[:4].reshape(2, 2), "b": z[4:]}

    def join(z: dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([z["w"].ravel(), z["b"]])

    losses = {"loss": problem.loss(x), "loss_next": problem.loss(x_next)}
    parts = pairs.discrete(
        cut(x),
        cut(x_next),
        **losses,
        grad=dict(reversed(cut(problem.grad(x)).items())),
        hvp=lambda p, v: cut(problem.hvp(join(p), join(v))),
        method="taylor",
    )
    assert parts.taylor_points == pytest.approx(whole.taylor_points, rel=1e-12)
    np.testing.assert_allclose(join(parts.gradient()), whole.gradient(), rtol=1e-12, atol=1e-12)
    single = [z.astype(np.float32) for z in (x, x_next, problem.grad(x))]
    low = pairs.discrete(
        *single[:2], **losses, grad=single[2], hvp=lambda p, v: problem.hvp(p, v).astype(np.float32), method="taylor"
    )
    assert low.gradient().dtype == np.float32
    assert low.dtype == "float32"
    np.testing.assert_allclose(low.gradient(), whole.gradient(), rtol=0, atol=1e-4)
    again = pickle.loads(pickle.dumps(whole))
    assert again.taylor_points == whole.taylor_points == tuple(whole.to_dict()["taylor_points"])
    assert "taylor_points" not in pairs.continuous(x, x_next).to_dict()


def test_a_buffer_that_hvp_uses_again_is_copied() -> None:
    problem, buffer = rosenbrock(3), np.zeros(3)
    x, x_next = np.array([0.1, 0.5, -0.3]), np.array([0.4, 0.2, 0.1])

    def hvp(p: np.ndarray, v: np.ndarray) -> np.ndarray:
        buffer[:] = problem.hvp(p, v)
        return buffer

    assert np.array_equal(step(problem, x, x_next, hvp=hvp).gradient(), step(problem, x, x_next).gradient())


def test_zero_steps_and_nan() -> None:
    problem, x = rosenbrock(3), np.array([0.1, 0.5, -0.3])
    assert step(problem, x, x).align().status == "zero_update"
    assert step(problem, x, x, loss=0.0, loss_next=1.0).align().status == "zero_update"
    pair = step(problem, x, x + 0.1, grad=np.array([1.0, np.nan, 0.0]))
    assert pair.align().status == "nonfinite"
    assert pair.taylor_points == ()


def test_bad_input() -> None:
    problem = rosenbrock(3)
    x, x_next = np.array([0.1, 0.5, -0.3]), np.array([0.4, 0.2, 0.1])
    with pytest.raises(ValueError, match=r"to pass 2 \(loss_next - loss - grad.d\) = .*least residual .* raise n_scan"):
        step(problem, x, x_next, loss_next=100.0)
    with pytest.raises(ValueError, match="expected hvp to be finite"):
        step(problem, x, x_next, hvp=lambda p, v: np.full(3, np.nan) if p[0] > 0.3 else problem.hvp(p, v))
    with pytest.raises(ValueError, match="expected grad for method 'taylor'"):
        step(problem, x, x_next, grad=None)
    with pytest.raises(ValueError, match="expected hvp for method 'taylor'"):
        step(problem, x, x_next, hvp=None)
    with pytest.raises(ValueError, match="the result of hvp of the same shape as params"):
        step(problem, x, x_next, hvp=lambda p, v: v[:2])
    with pytest.raises(ValueError, match="out of the range of float64"):
        step(problem, x, x + 1e10, grad=np.full(3, 1e300), loss_next=0.0, hvp=lambda p, v: 0 * v)
    for n_scan in (0, 2.5):
        with pytest.raises(ValueError, match="n_scan to be an integer of at least 1"):
            step(problem, x, x_next, n_scan=n_scan)


def test_points_on_the_nodes_and_a_scan_that_is_too_coarse() -> None:
    assert taylor_points(lambda s: (s - 0.25, 0.0), 0.0, (0.0, 0.0), 4) == (0.25,)
    assert taylor_points(lambda s: (s * (1 - s), 1.0), 0.0, (0.0, 0.0), 4) == ()
    two = taylor_points(lambda s: ((s - 0.3) * (s - 0.6), 0.0), 0.0, (0.0, 0.0), 4)
    assert two == pytest.approx((0.3, 0.6), rel=1e-14)
    with pytest.raises(ValueError, match="raise n_scan"):
        taylor_points(lambda s: ((s - 0.3) * (s - 0.6), 0.0), 0.0, (0.0, 0.0), 1)
    # A miss that rounding explains is none; a miss does not stand in the way of a point that is there.
    assert taylor_points(lambda s: (s + 0.5, 0.0), 0.0, (0.0, 1.0), 4) == ()
    assert taylor_points(lambda s: (s - 0.25, 0.0), 0.0, (0.0, 1.0), 4) == (0.25,)


def test_losses_that_cancel() -> None:
    """Rounding of an indefinite quadratic form is that of its terms, not of its value."""
    problem = quadratic(60)
    for seed in range(65530, 65560):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal(60)
        pair = step(problem, x, x + 0.0078125 * rng.standard_normal(60) / math.sqrt(60))
        assert pair.correction_share < 1e-10
