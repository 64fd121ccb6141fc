"""Descent pairs: identities of discrete gradients, their order, and coefficients against 100-digit arithmetic."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
import steepest
from cases import ANGLES, DTYPES, EPSILON, LAYOUTS, SIZE, flat
from oracles import mp
from steepest import pairs
from steepest.arrays import long_vector
from steepest.pairs import itoh_abe

ORDERS = {"trapezoid": 2, "gonzalez": 2, "mean-value": 2, "left": 1, "itoh-abe": 1}
METHODS = list(ORDERS)
SECANT = ["trapezoid", "left", "gonzalez"]  # corrected so that DG.d = dL


@dataclass(frozen=True)
class Problem:
    """A loss with its gradient, and whether the loss takes rows."""

    loss: Callable[[np.ndarray], Any]
    grad: Callable[[np.ndarray], np.ndarray]


def matrix(n: int) -> np.ndarray:
    """A symmetric matrix, indefinite, with a norm near 1."""
    a = np.random.default_rng(n).standard_normal((n, n))
    return (a + a.T) / (2 * math.sqrt(n))


def smooth(n: int) -> Problem:
    """Neither convex nor even: a quadratic form, a quartic and an exponential that couples all elements."""
    a, b = matrix(n), np.random.default_rng(n + 1).standard_normal(n) / math.sqrt(n)

    def loss(x: np.ndarray) -> Any:
        return 0.5 * np.einsum("...i,ij,...j", x, a, x) + 0.25 * np.sum(x**4, axis=-1) / n + np.exp(x @ b)

    return Problem(loss, lambda x: a @ x + x**3 / n + b * np.exp(x @ b))


def rosenbrock(n: int) -> Problem:
    def grad(x: np.ndarray) -> np.ndarray:
        g = np.zeros_like(x)
        rest = x[1:] - x[:-1] ** 2
        g[:-1] = -40 * x[:-1] * rest - 2 * (1 - x[:-1])
        g[1:] += 20 * rest
        return g

    return Problem(lambda x: np.sum(10 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (1 - x[..., :-1]) ** 2, axis=-1), grad)


def double_well(n: int) -> Problem:
    return Problem(lambda x: np.sum((x**2 - 1) ** 2, axis=-1), lambda x: 4 * x * (x**2 - 1))


def quadratic(n: int) -> Problem:
    a = matrix(n)
    return Problem(lambda x: 0.5 * np.einsum("...i,ij,...j", x, a, x), lambda x: a @ x)


PROBLEMS = {"smooth": smooth, "rosenbrock": rosenbrock, "double well": double_well, "quadratic": quadratic}


def step(problem: Problem, x: np.ndarray, x_next: np.ndarray, method: Any, **options: Any) -> pairs.DescentPair:
    """A pair of a step, with everything that the method needs."""
    needed: dict[str, dict[str, Any]] = {
        "trapezoid": {"grad": problem.grad(x), "grad_next": problem.grad(x_next)},
        "left": {"grad": problem.grad(x)},
        "gonzalez": {"grad_midpoint": problem.grad((x + x_next) / 2)},
        "mean-value": {"grad_fn": problem.grad},
        "itoh-abe": {"loss_fn": problem.loss},
    }
    losses = {"loss": problem.loss(x), "loss_next": problem.loss(x_next)}
    return pairs.discrete(x, x_next, **losses, **needed[method], method=method, **options)


def descending(problem: Problem, n: int, seed: int = 0, length: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """A step that lowers the loss, not along the gradient."""
    rng = np.random.default_rng(seed)
    for _ in range(1000):
        x = rng.standard_normal(n)
        d = rng.standard_normal(n) / math.sqrt(n)
        g = problem.grad(x)
        x_next = x + length * (d - g / np.linalg.norm(g))
        if problem.loss(x_next) < problem.loss(x) - 1e-3:
            return x, x_next
    raise AssertionError("no step found")


# Identities (12)-(15) -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 10, 300])
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("method", METHODS)
def test_the_discrete_gradient_gives_the_loss_change(method: str, name: str, n: int) -> None:
    problem = PROBLEMS[name](n)
    for seed in range(3):
        x, x_next = np.random.default_rng(seed).standard_normal((2, n))
        pair = step(problem, x, x_next, method)
        d, dg = x_next - x, pair.gradient()
        losses = problem.loss(x), problem.loss(x_next)
        # The loss itself is a sum of n terms, whose rounding no discrete gradient can undo.
        scale = np.linalg.norm(dg) * np.linalg.norm(d) + abs(losses[0]) + abs(losses[1])
        allowed = 1e-12 * scale * (math.sqrt(n) if method == "itoh-abe" else 1)
        allowed += pair.error * np.linalg.norm(d)
        change = Fraction(float(losses[1])) - Fraction(float(losses[0]))
        missed = float(oracles.inner(dg, d) - mp.mpf(change.numerator) / change.denominator)
        assert abs(missed) <= allowed
        assert pair.defect == (0.0 if method in SECANT else pytest.approx(missed, abs=1e-14 * scale))
        assert pair.loss_change == float(change)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    method=st.sampled_from(METHODS),
    name=st.sampled_from(list(PROBLEMS)),
    length=st.floats(1e-4, 2.0),
    lr=st.floats(1e-8, 1e8),
)
def test_a_pair_descends_exactly_if_the_loss_does(seed: int, method: str, name: str, length: float, lr: float) -> None:
    problem, rng = PROBLEMS[name](5), np.random.default_rng(seed)
    x = rng.standard_normal(5)
    x_next = x + length * rng.standard_normal(5)
    pair = step(problem, x, x_next, method, lr=lr)
    a, change = pair.align(), problem.loss(x_next) - problem.loss(x)
    if abs(change) > 1e-9 + abs(pair.defect):
        assert a.status == ("ok" if change < 0 else "ascent")
    if method in SECANT:
        assert a.inner_product == pytest.approx(change / lr, rel=1e-14)


@pytest.mark.parametrize("lr", [1e-6, 0.1, 1.0, 37.0, 1e6])
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("method", METHODS)
def test_the_step_is_natural_gradient_descent_for_any_lr(method: str, name: str, lr: float) -> None:
    problem = PROBLEMS[name](7)
    x, x_next = descending(problem, 7)
    pair = step(problem, x, x_next, method, lr=lr)
    y, g = -pair.gradient(), pair.update()
    np.testing.assert_allclose(g, (x_next - x) / lr, rtol=1e-15)
    diagonal = lr * np.linspace(0.5, 2.0, 7)  # every metric scales with lr
    for options in ({}, {"alpha": 3.0 * lr}, {"base": diagonal}, {"kind": "dfp", "alpha": 0.2 * lr}):
        M = pair.metric(**options)
        np.testing.assert_allclose(x + lr * M.solve(y), x_next, rtol=0, atol=1e-11)
        np.testing.assert_allclose(M @ g, y, rtol=0, atol=1e-11 * np.linalg.norm(y))  # (14)
        assert np.linalg.eigvalsh(M.to_dense())[0] > 0
    M, expected = pair.metric(alpha=0.7 * lr), oracles.dense_metric(-y, g, 0.7 * lr)
    np.testing.assert_allclose(M.to_dense(), expected, rtol=0, atol=1e-12 * np.linalg.norm(expected, 2))
    # (13), and lr only rescales the metric
    assert y @ g == pytest.approx((problem.loss(x) - problem.loss(x_next)) / lr, rel=1e-10, abs=pair.error)
    one = step(problem, x, x_next, method)
    assert pair.align().angle == pytest.approx(one.align().angle, rel=1e-12)
    assert pair.metric().trace() == pytest.approx(lr * one.metric().trace(), rel=1e-12)
    np.testing.assert_allclose(pair.coefficients, one.coefficients / [[1], [lr]], rtol=1e-15)


# Consistency ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_order_of_consistency(method: str) -> None:
    problem, rng = smooth(4), np.random.default_rng(3)
    x, direction = rng.standard_normal((2, 4))
    steps = np.geomspace(1e-3, 1e-1, 7)
    at_midpoint, at_start = [], []
    for h in steps:
        dg = step(problem, x, x + h * direction, method).gradient()
        at_midpoint.append(np.linalg.norm(dg - problem.grad(x + 0.5 * h * direction)))
        at_start.append(np.linalg.norm(dg - problem.grad(x)))
    assert np.polyfit(np.log(steps), np.log(at_midpoint), 1)[0] == pytest.approx(ORDERS[method], abs=0.1)
    assert np.polyfit(np.log(steps), np.log(at_start), 1)[0] == pytest.approx(1, abs=0.1)


def test_the_pair_tends_to_the_continuous_one() -> None:
    problem = smooth(5)
    x, _ = descending(problem, 5)
    g = -problem.grad(x) + 0.5 * np.random.default_rng(1).standard_normal(5)
    limit = pairs.continuous(problem.grad(x), g).align()
    for method in METHODS:
        errors = [
            abs(step(problem, x, x + lr * g, method, lr=lr).align().angle - limit.angle) for lr in (1e-2, 1e-3, 1e-4)
        ]
        assert errors[2] < 3e-4
        assert errors[0] / errors[1] == pytest.approx(10, rel=0.3)


def test_methods_on_quadratics() -> None:
    n = 6
    problem, a = quadratic(n), matrix(n)
    x, x_next = np.random.default_rng(2).standard_normal((2, n))
    d, middle = x_next - x, a @ (x + x_next) / 2
    for method in ("trapezoid", "gonzalez", "mean-value"):
        pair = step(problem, x, x_next, method)
        np.testing.assert_allclose(pair.gradient(), middle, rtol=0, atol=1e-14 * n)
        assert pair.correction_share < 1e-14
        assert pair.error < 1e-14
    left = step(problem, x, x_next, "left")
    np.testing.assert_allclose(left.gradient(), a @ x + (d @ a @ d) / (2 * d @ d) * d, atol=1e-13)
    itoh_abe = step(problem, x, x_next, "itoh-abe")
    path = np.tril(a, -1) @ x_next + np.diag(a) * (x + x_next) / 2 + np.triu(a, 1) @ x
    np.testing.assert_allclose(itoh_abe.gradient(), path, atol=1e-12)


def test_mean_value_is_the_integral_and_knows_its_error() -> None:
    problem = smooth(4)
    x, x_next = np.random.default_rng(6).standard_normal((2, 4))
    nodes, weights = np.polynomial.legendre.leggauss(30)
    exact = sum(0.5 * w * problem.grad(x + 0.5 * (1 + s) * (x_next - x)) for s, w in zip(nodes, weights, strict=True))
    calls = []

    def counted(z: np.ndarray) -> np.ndarray:
        calls.append(z.copy())
        return problem.grad(z)

    errors = []
    for n_nodes, evaluations in ((3, 3), (5, 7), (6, 10)):
        calls.clear()
        pair = pairs.discrete(
            x,
            x_next,
            loss=problem.loss(x),
            loss_next=problem.loss(x_next),
            grad_fn=counted,
            method="mean-value",
            n_nodes=n_nodes,
        )
        assert len(calls) == evaluations
        actual = np.linalg.norm(pair.gradient() - exact)
        assert actual <= pair.error + 1e-14
        assert abs(pair.defect) <= pair.error * np.linalg.norm(x_next - x) + 1e-13
        errors.append(pair.error)
    assert errors[0] > 100 * errors[1] > 0


def test_gonzalez_with_a_function_copies_what_it_returns() -> None:
    problem, buffer = smooth(5), np.empty(5)
    x, x_next = descending(problem, 5)

    def reused(z: np.ndarray) -> np.ndarray:
        buffer[:] = problem.grad(z)
        return buffer

    losses = {"loss": problem.loss(x), "loss_next": problem.loss(x_next)}
    pair = pairs.discrete(x, x_next, **losses, grad_fn=reused, method="gonzalez")
    expected = step(problem, x, x_next, "gonzalez").gradient()
    buffer[:] = 0
    np.testing.assert_allclose(pair.gradient(), expected, rtol=1e-13)


def test_itoh_abe_evaluates_once_per_element_and_takes_rows() -> None:
    problem = smooth(9)
    x, x_next = np.random.default_rng(4).standard_normal((2, 9))
    x_next[[0, 5]] = x[[0, 5]]
    losses = {"loss": problem.loss(x), "loss_next": problem.loss(x_next), "method": "itoh-abe"}
    calls = []

    def counted(z: np.ndarray) -> Any:
        calls.append(z.shape)
        return problem.loss(z)

    given_grad = pairs.discrete(x, x_next, loss_fn=counted, grad=problem.grad(x), **losses)
    assert calls == [(9,)] * 10
    rows = pairs.discrete(x, x_next, loss_fn=counted, grad=problem.grad(x), vectorized=True, **losses)
    assert calls[10:] == [(10, 9)]
    np.testing.assert_allclose(rows.gradient(), given_grad.gradient(), atol=1e-12)
    np.testing.assert_array_equal(given_grad.gradient()[[0, 5]], problem.grad(x)[[0, 5]])

    # Without a gradient, partial derivatives at the points of the path
    calls.clear()
    differences = pairs.discrete(x, x_next, loss_fn=counted, **losses)
    assert len(calls) == 10 + 4
    for i in (0, 5):
        point = np.concatenate([x_next[:i], x[i:]])
        assert differences.gradient()[i] == pytest.approx(problem.grad(point)[i], rel=1e-8)
    np.testing.assert_allclose(
        differences.gradient() @ (x_next - x), problem.loss(x_next) - problem.loss(x), rtol=1e-11
    )


def test_vectorized_blocks_and_mappings(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = smooth(SIZE)
    x, x_next = np.random.default_rng(4).standard_normal((2, SIZE))
    losses = {"loss": problem.loss(x), "loss_next": problem.loss(x_next), "method": "itoh-abe"}
    expected = pairs.discrete(x, x_next, loss_fn=problem.loss, **losses).gradient()
    monkeypatch.setattr(itoh_abe, "_BLOCK", 2 * SIZE)
    shape, rows = LAYOUTS["mapping"], []

    def loss(z: dict[str, np.ndarray]) -> Any:
        m = len(z["weight"])
        rows.append(m)
        return problem.loss(np.concatenate([z["weight"].reshape(m, 4), z["bias"]], axis=1))

    found = pairs.discrete(shape(x), shape(x_next), loss_fn=loss, vectorized=True, **losses)
    assert rows == [2, 2, 2, 1]
    np.testing.assert_allclose(flat(found.gradient()), expected, atol=1e-13)


# Coefficients against vectors ---------------------------------------------------------------------------------------


def formed(method: str, gradients: list[np.ndarray], d: np.ndarray, change: float, lr: float) -> oracles.Member:
    """The pair from vectors of 100-digit numbers."""
    columns = [oracles.exact(g) for g in gradients]
    mean = [mp.fsum(c) / len(columns) for c in zip(*columns, strict=True)]
    dd = oracles.exact(d)
    t = (mp.mpf(change) - oracles.inner(mean, dd)) / oracles.inner(dd, dd)
    return oracles.Member([m + t * x for m, x in zip(mean, dd, strict=True)], [x / mp.mpf(lr) for x in dd])


@pytest.mark.parametrize("method", SECANT)
@pytest.mark.parametrize("psi", ANGLES)
@pytest.mark.parametrize("n", [2, 3, 1001])
def test_products_of_the_coefficients_at_every_angle(method: str, psi: float, n: int) -> None:
    grad, d = oracles.pair(n, psi, 3.0, rng=n)
    change = 1.0009765625 * float(oracles.inner(grad, d))  # a correction of its own
    x = np.zeros(n)
    lr = 0.3
    losses = {"loss": -change, "loss_next": 0.0, "lr": lr, "method": method}
    if method == "trapezoid":
        other = np.random.default_rng(n).standard_normal(n) * 0.25
        # The two ends differ, their mean does not, up to the rounding that the oracle sees too.
        ends = [grad + other, grad - other]
        if psi < 1e-3 or np.pi / 2 - psi < 1e-3:  # that rounding would hide the angle
            ends = [2 * grad, 0.0 * grad]
        pair = pairs.discrete(x, d, grad=ends[0], grad_next=ends[1], **losses)
    else:
        ends = [grad]
        pair = pairs.discrete(x, d, **{"left": {"grad": grad}, "gonzalez": {"grad_midpoint": grad}}[method], **losses)
    exact, a = formed(method, ends, d, change, lr), pair.align()
    assert a.status == "ok"
    for found, expected in (
        (a.angle, exact.angle),
        (a.sine, exact.sine),
        (a.cosine, exact.cosine),
        (a.rho, exact.rho),
        (a.alpha_opt, exact.optimal_alpha),
        (a.grad_norm, mp.sqrt(exact.yy)),
        (a.update_norm, mp.sqrt(exact.gg)),
        (a.inner_product, -exact.yg),
    ):
        assert abs(found - expected) <= 1e-12 * abs(expected)
    assert abs(a.cond_min - least_condition(exact)) <= 1e-11 * a.cond_min
    assert abs(a.angle - float(exact.angle)) <= a.angle_bound
    np.testing.assert_allclose(pair.metric().alignment.cosine, a.cosine, atol=1e-14)


def least_condition(exact: oracles.Member) -> Any:
    """Least condition number of a pair."""
    return ((1 + exact.sine) / exact.cosine) ** 2


@pytest.mark.parametrize("seed", range(6))
def test_any_combination_of_any_vectors(seed: int) -> None:
    """Four vectors of different types and sizes, coefficients that cancel."""
    rng = np.random.default_rng(seed)
    kinds = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]
    vectors = [(s * rng.standard_normal(40)).astype(k) for s, k in zip((1e8, 1e-3, 1.0, 10.0), kinds, strict=True)]
    rows = [tuple(Fraction(int(p), int(q)) for p, q in rng.integers(1, 9, (4, 2))) for _ in range(2)]
    rows[1] = tuple(-x - Fraction(y, 1000) for x, y in zip(rows[0], rng.integers(0, 9, 4).tolist(), strict=True))
    pair = pairs.DescentPair(
        method="test",
        names=("a", "b", "c", "d"),
        rows=(rows[0], rows[1]),
        vectors=tuple(long_vector(v, "v") for v in vectors),
        templates=(vectors[0], vectors[0]),
        dtype="bfloat16",
        psi_floor=1e-3,
    )
    columns = list(zip(*[oracles.exact(v) for v in vectors], strict=True))
    ratios = [[mp.mpf(c.numerator) / c.denominator for c in row] for row in rows]
    grad, update = ([mp.fdot(zip(row, column, strict=True)) for column in columns] for row in ratios)
    exact, a = oracles.Member(grad, update), pair.align()
    for found, expected in ((a.angle, exact.angle), (a.rho, exact.rho), (a.inner_product, -exact.yg)):
        assert abs(found - expected) <= 1e-12 * abs(expected)
    assert abs(a.angle - float(exact.angle)) <= a.angle_bound
    assert a.psi_floor == 1e-3
    assert math.isnan(a.null_sign_flip)
    np.testing.assert_allclose(pair.gradient(), [float(x) for x in grad], rtol=1e-9)
    np.testing.assert_allclose(pair.update(), [float(x) for x in update], rtol=1e-9)


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e140])
def test_norms_at_the_ends_of_the_range(scale: float) -> None:
    grad, update = oracles.pair(20, 0.7, 1.0, rng=1)
    d, change = update * scale, float(oracles.inner(grad, update)) * scale
    pair = pairs.discrete(0 * d, d, loss=0.0, loss_next=1.01 * change, grad=grad, method="left")
    exact = formed("left", [grad], d, 1.01 * change, 1.0)
    assert pair.align().angle == pytest.approx(float(exact.angle), rel=1e-12)
    np.testing.assert_allclose(pair.metric().solve(-pair.gradient()), d, rtol=0, atol=1e-13 * scale)


def test_a_correction_over_a_tiny_step_does_not_overflow() -> None:
    d, grad = 1e-200 * np.array([1.0, 2.0]), np.array([1.0, 0.0])
    pair = pairs.discrete(0 * d, d, loss=1e-30, loss_next=0.0, grad=grad, method="left")
    assert np.isinf(pair.coefficients[0, 1])
    np.testing.assert_allclose(pair.gradient() / 1e170, [-0.2, -0.4], rtol=1e-12)
    assert pair.align().status == "ok"


def test_zero_loss_change_is_ascent_and_never_rounds_to_descent() -> None:
    rng = np.random.default_rng(8)
    for n in (2, 3, 50):
        x, x_next, g, h = rng.standard_normal((4, n))
        for method, given_grads in (("left", {"grad": g}), ("trapezoid", {"grad": g, "grad_next": h})):
            pair = pairs.discrete(x, x_next, loss=0.1, loss_next=0.1, method=method, **given_grads)
            assert pair.align().status == "ascent"
            up = pairs.discrete(x, x_next, loss=0.1, loss_next=math.nextafter(0.1, 1), method=method, **given_grads)
            assert up.align().status == "ascent"
            down = pairs.discrete(x, x_next, loss=0.1, loss_next=math.nextafter(0.1, 0), method=method, **given_grads)
            assert down.align().status == "ok"


def test_correction_share() -> None:
    problem = smooth(8)
    x, x_next = descending(problem, 8, length=2.0)
    bases = {
        "trapezoid": (problem.grad(x) + problem.grad(x_next)) / 2,
        "left": problem.grad(x),
        "gonzalez": problem.grad((x + x_next) / 2),
    }
    for method, base in bases.items():
        pair = step(problem, x, x_next, method)
        dg = pair.gradient()
        share = np.linalg.norm(dg - base) / np.linalg.norm(dg)
        assert share > 1e-3
        assert pair.correction_share == pytest.approx(share, rel=1e-11)
    for method in ("mean-value", "itoh-abe"):
        assert step(problem, x, x_next, method).correction_share == 0.0


def test_gonzalez_is_nearest_to_its_gradient() -> None:
    """Of all vectors with DG.d = dL it is the one nearest to gm: the correction lies along d."""
    problem = smooth(8)
    x, x_next = descending(problem, 8)
    d = x_next - x
    correction = step(problem, x, x_next, "gonzalez").gradient() - problem.grad((x + x_next) / 2)
    off = correction - d * (correction @ d) / (d @ d)
    assert np.linalg.norm(off) < 1e-15


# Continuous pairs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_continuous_is_the_pair_itself(layout: str, dtype: str) -> None:
    grad, update = oracles.pair(SIZE, 0.6, 2.0, rng=4, dtype=DTYPES[dtype])
    g, u = LAYOUTS[layout](grad), LAYOUTS[layout](update)
    pair = pairs.continuous(g, u)
    assert pair.align() == steepest.align(g, u)
    base = LAYOUTS[layout](np.arange(1.0, 7))
    assert pair.align(base=base).angle == steepest.align(g, u, base=base).angle
    M, x = pair.metric(alpha=2.0), np.arange(6.0)
    np.testing.assert_array_equal(M @ x, steepest.metric(g, u, alpha=2.0) @ x)
    assert pair.psi_floor == EPSILON[dtype]
    assert pair.coefficients.tolist() == [[1, 0], [0, 1]]
    assert pair.correction_share == 0
    assert math.isnan(pair.loss_change)
    for found, expected in ((pair.gradient(), g), (pair.update(), u)):
        assert type(found) is type(expected)
        np.testing.assert_array_equal(flat(found), flat(expected))
        assert all(a.dtype == b.dtype for a, b in zip(arrays(found), arrays(expected), strict=True))


def arrays(x: Any) -> list[Any]:
    return list(x.values()) if isinstance(x, dict) else [x]


# What users hand in -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
def test_layouts(method: str, layout: str) -> None:
    problem = smooth(SIZE)
    x, x_next = descending(problem, SIZE)
    reference = step(problem, x, x_next, method, lr=0.5)
    shape = LAYOUTS[layout]
    shaped = Problem(lambda z: problem.loss(flat(z)), lambda z: backwards(shape(problem.grad(flat(z)))))
    options = {
        "loss": problem.loss(x),
        "loss_next": problem.loss(x_next),
        "grad": shaped.grad(shape(x)),
        "grad_next": shaped.grad(shape(x_next)),
        "grad_midpoint": shaped.grad(shape((x + x_next) / 2)) if method == "gonzalez" else None,
        "grad_fn": shaped.grad,
        "loss_fn": shaped.loss,
        "lr": 0.5,
    }
    before = x_next.copy()
    pair = pairs.discrete(shape(x), backwards(shape(x_next)), method=method, **options)
    np.testing.assert_array_equal(x_next, before)
    a, b = pair.align(), reference.align()
    assert a.angle == pytest.approx(b.angle, rel=1e-13)
    for found, expected in ((pair.gradient(), reference.gradient()), (pair.update(), reference.update())):
        assert [v.shape for v in arrays(found)] == [v.shape for v in arrays(shape(x))]
        np.testing.assert_allclose(flat(found), expected, rtol=1e-12)
    image = pair.metric().solve(pair.gradient())
    np.testing.assert_allclose(flat(image), -reference.update(), rtol=1e-10)
    if layout == "mapping" and all(a.status == "ok" for a in blockwise(pair).values()):
        separate = pair.metric(blocks="separate")
        np.testing.assert_allclose(separate["bias"].solve(pair.gradient()["bias"]), -pair.update()["bias"], rtol=1e-9)


def blockwise(pair: pairs.DescentPair) -> Any:
    """Alignment of each array."""
    return steepest.align(pair.gradient(), pair.update(), blocks="separate")


def backwards(x: Any) -> Any:
    """A mapping in another order, which names put right."""
    return dict(reversed(x.items())) if isinstance(x, dict) else x


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: str) -> None:
    kind = DTYPES[dtype]
    rng = np.random.default_rng(5)
    x, g = (rng.standard_normal((2, 30))).astype(kind)
    x_next = (x.astype(float) - 0.1 * g.astype(float) + 0.05 * rng.standard_normal(30)).astype(kind)
    d = x_next.astype(float) - x.astype(float)
    change = float(g.astype(float) @ d) * 0.9
    pair = pairs.discrete(x, x_next, loss=1.0, loss_next=1.0 + change, grad=g, method="left")
    a, exact = pair.align(), formed("left", [g], d, float((1.0 + change) - 1.0), 1.0)
    assert a.dtype == pair.dtype == dtype
    assert a.angle == pytest.approx(float(exact.angle), rel=1e-12)
    assert pair.gradient().dtype == pair.update().dtype == kind
    spacing = np.spacing(np.maximum(np.abs(x), np.abs(x_next))).astype(float)
    floor = math.atan(np.linalg.norm(spacing) / math.sqrt(12) / np.linalg.norm(d))
    assert pair.psi_floor == pytest.approx(max(floor, EPSILON[dtype]), rel=1e-12)
    assert a.psi_floor == pair.psi_floor


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rounding_floor_is_what_rounding_does(dtype: str) -> None:
    """Gradient descent whose parameters are rounded reads the floor instead of 0."""
    rng = np.random.default_rng(6)
    x = (0.05 * rng.standard_normal(20_000)).astype(DTYPES[dtype])
    g = rng.standard_normal(x.size)
    x_next = (x.astype(float) - 3 * EPSILON[dtype] * g).astype(x.dtype)
    change = float(g @ (x_next.astype(float) - x.astype(float)))
    pair = pairs.discrete(x, x_next, loss=0.0, loss_next=change, grad=g, method="left")
    assert pair.align().angle == pytest.approx(pair.psi_floor, rel=0.2)


def test_spacing_of_zero_and_of_denormals() -> None:
    x = np.array([0.0, 1e-6, 2e-5, 0.0], np.float16)
    x_next = np.array([0.0, 2e-6, -1e-5, 3e-5], np.float16)
    pair = pairs.discrete(x, x_next, loss=1.0, loss_next=0.0, grad=-np.ones(4), method="left")
    d = x_next.astype(float) - x
    assert np.spacing(np.float16(0)) == 2.0**-24
    expected = math.atan(2 * 2.0**-24 / math.sqrt(12) / np.linalg.norm(d))
    assert pair.psi_floor == pytest.approx(expected, rel=1e-6)


def test_single_numbers() -> None:
    pair = pairs.discrete(np.array(1.0), np.array(0.5), loss=1.0, loss_next=0.25, grad=np.array(2.0), method="left")
    assert pair.gradient() == 1.5
    assert pair.align().angle == 0.0
    assert pair.metric().solve(np.array(-1.5)) == pytest.approx(-0.5)


def test_status_without_an_angle() -> None:
    x, g = np.ones(3), np.array([1.0, 2.0, 3.0])
    still = pairs.discrete(x, x, loss=1.0, loss_next=1.0, grad=g, method="left")
    assert still.align().status == "zero_update"
    assert still.psi_floor == pytest.approx(math.pi / 2)
    nothing = pairs.discrete(x, g, loss=1.0, loss_next=1.0, grad=0 * g, method="left")
    assert nothing.align().status == "zero_grad"
    for bad in (np.nan, np.inf):
        for arguments in (
            (x, np.array([bad, 0, 0]), g),
            (np.array([bad, bad, 0]), np.array([bad, 0, 0]), g),
            (x, 0 * x, g * bad),
        ):
            broken = pairs.discrete(*arguments[:2], loss=1.0, loss_next=0.5, grad=arguments[2], method="left")
            assert broken.align().status == "nonfinite"
            assert math.isnan(broken.correction_share)
            with pytest.raises(steepest.NotDescentError):
                broken.metric()
    up = step(double_well(3), x, 3 * x, "gonzalez")
    assert up.align().status == "ascent"
    with pytest.raises(steepest.NotDescentError, match="not negative"):
        up.metric()


def test_results_are_frozen_readable_and_travel() -> None:
    problem = smooth(4)
    x, x_next = descending(problem, 4)
    pair = step(problem, x, x_next, "trapezoid", lr=0.5)
    with pytest.raises(FrozenInstanceError):
        pair.method = "left"  # type: ignore[misc]
    assert "trapezoid" in repr(pair)
    assert "0.5 grad + 0.5 grad_next" in repr(pair)
    assert "2 displacement" in repr(pair)
    values = pair.to_dict()
    assert values["names"] == ["grad", "grad_next", "displacement"]
    assert values["coefficients"][1] == [0.0, 0.0, 2.0]
    assert values["correction_share"] == pair.correction_share
    again = pickle.loads(pickle.dumps(pair))
    assert again.rows == pair.rows
    np.testing.assert_array_equal(again.gradient(), pair.gradient())


def test_alignment_relative_to_a_base() -> None:
    problem = smooth(4)
    x, x_next = descending(problem, 4)
    pair, base = step(problem, x, x_next, "trapezoid"), np.array([1.0, 2.0, 3.0, 4.0])
    a = pair.align(base=base)
    whitened = steepest.align(pair.gradient() / np.sqrt(base), pair.update() * np.sqrt(base))
    assert a.relative
    assert a.angle == pytest.approx(whitened.angle, rel=1e-12)


# Bad input ------------------------------------------------------------------------------------------------------------

X, Y = np.ones(3), np.zeros(3)
GOOD: dict[str, Any] = {"params": X, "params_next": Y, "loss": 1.0, "loss_next": 0.5, "grad": X, "grad_next": Y}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"method": "right"}, ValueError, "'gonzalez'.*got 'right'"),
        ({"grad_next": None}, ValueError, "expected grad_next for method 'trapezoid': the gradient at params_next"),
        ({"grad": None}, ValueError, "expected grad for method 'trapezoid'"),
        ({"grad": None, "method": "left"}, ValueError, "expected grad for method 'left'"),
        ({"method": "gonzalez"}, ValueError, "the gradient at the midpoint, or grad_fn"),
        ({"method": "mean-value"}, ValueError, "expected grad_fn for method 'mean-value'"),
        ({"method": "itoh-abe"}, ValueError, "expected loss_fn for method 'itoh-abe'"),
        ({"lr": 0.0}, ValueError, "positive lr, got 0.0"),
        ({"lr": -1.0}, ValueError, "positive lr"),
        ({"lr": np.inf}, ValueError, "finite lr"),
        ({"lr": "fast"}, TypeError, "expected lr to be a number, got 'fast'"),
        ({"loss": np.nan}, ValueError, "finite loss, got nan"),
        ({"loss_next": None}, TypeError, "expected loss_next to be a number, got None"),
        ({"params_next": np.zeros(4)}, ValueError, r"expected params_next of the same shape as params.*\(3,\).*\(4,\)"),
        ({"grad": np.zeros((3, 1))}, ValueError, r"expected grad of the same shape as params.*\(3,\).*\(3, 1\)"),
        ({"grad_next": {"a": X}}, ValueError, "expected grad_next of the same shape as params"),
        ({"params": np.ones(3, int)}, TypeError, "expected params in float64"),
        ({"params_next": np.ones(3, complex)}, TypeError, "expected params_next in float64"),
        ({"grad": np.ones(3, int)}, TypeError, "expected grad in float64"),
        ({"params_next": X}, ValueError, "the loss changes by -0.5 but params_next equals params: no metric exists"),
        (
            {"method": "mean-value", "grad_fn": lambda z: z[:2]},
            ValueError,
            "expected the result of grad_fn of the same",
        ),
        ({"method": "mean-value", "grad_fn": lambda z: z, "n_nodes": 2}, ValueError, "at least 3, got 2"),
        (
            {"method": "mean-value", "grad_fn": lambda z: z, "n_nodes": 3.5},
            ValueError,
            "integer of at least 3, got 3.5",
        ),
        ({"method": "itoh-abe", "loss_fn": lambda z: np.nan}, ValueError, "finite result of loss_fn"),
        ({"method": "itoh-abe", "loss_fn": lambda z: "low"}, TypeError, "result of loss_fn to be a number"),
        (
            {"method": "itoh-abe", "loss_fn": lambda z: z[:, 0] * np.nan, "vectorized": True},
            ValueError,
            "finite losses",
        ),
        ({"method": "itoh-abe", "loss_fn": lambda z: z, "vectorized": True}, ValueError, r"to return shape \(4,\)"),
    ],
    ids=lambda x: "-".join(map(str, x)) if isinstance(x, dict) else "",
)
def test_bad_input(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pairs.discrete(**{**GOOD, **changes})


def test_bad_input_of_continuous() -> None:
    with pytest.raises(ValueError, match="expected update of the same shape"):
        pairs.continuous(X, np.ones(2))


# Other libraries ------------------------------------------------------------------------------------------------------


def test_torch() -> None:
    torch = pytest.importorskip("torch")
    problem = smooth(SIZE)
    x, x_next = (torch.from_numpy(v.reshape(2, 3)) for v in descending(problem, SIZE))

    def grad(z: Any) -> Any:
        return torch.from_numpy(problem.grad(z.numpy().ravel()).reshape(2, 3))

    losses = {"loss": problem.loss(x.numpy().ravel()), "loss_next": problem.loss(x_next.numpy().ravel())}
    for method, options in (
        ("trapezoid", {"grad": grad(x), "grad_next": grad(x_next)}),
        ("mean-value", {"grad_fn": grad}),
        ("itoh-abe", {"loss_fn": lambda z: torch.tensor(problem.loss(z.numpy().ravel()))}),
    ):
        pair = pairs.discrete(x, x_next, method=method, **losses, **options)
        y = -pair.gradient()
        assert isinstance(y, torch.Tensor)
        assert y.dtype == torch.float64
        assert torch.allclose(x + pair.metric().solve(y), x_next)
    half = pairs.continuous(grad(x).bfloat16(), (x_next - x).bfloat16())
    assert half.update().dtype == torch.bfloat16
    assert half.align() == steepest.align(grad(x).bfloat16(), (x_next - x).bfloat16())


def test_jax() -> None:
    jax = pytest.importorskip("jax")
    x = jax.numpy.array([[1.0, 2.0], [0.5, -1.0]], dtype="float32")

    def loss(z: Any) -> Any:
        return 0.5 * jax.numpy.sum(z**2) + 0.25 * jax.numpy.sum(z**4)

    x_next = x - 0.125 * jax.grad(loss)(x) * jax.numpy.array([1.0, 0.5])
    losses = {"loss": float(loss(x)), "loss_next": float(loss(x_next))}
    for method, options in (
        ("trapezoid", {"grad": jax.grad(loss)(x), "grad_next": jax.grad(loss)(x_next)}),
        ("gonzalez", {"grad_fn": jax.grad(loss)}),
        ("itoh-abe", {"loss_fn": loss}),
    ):
        pair = pairs.discrete(x, x_next, method=method, **losses, **options)
        y = -pair.gradient()
        assert isinstance(y, jax.Array)
        assert y.dtype == x.dtype
        np.testing.assert_allclose(np.asarray(x + pair.metric().solve(y)), np.asarray(x_next), rtol=0, atol=2e-6)


def test_bfloat16_without_a_combination() -> None:
    """The metric of bfloat16 vectors reads them as numbers, not as bits."""
    grad, update = oracles.pair(8, 0.5, rng=1, dtype=ml_dtypes.bfloat16)
    pair = pairs.continuous(grad, update)
    assert pair.metric().alpha == steepest.metric(grad, update).alpha
