"""Curvature, smallest eigenvalues, step-size bounds, and eqs (17), (18) as identities."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

import steepest
from steepest import pairs
from steepest.pairs import DescentPair
from steepest.stability import (
    curvature_along,
    finite_difference_hvp,
    natural_form,
    smallest_eigenvalue,
    step_size_bounds,
)


@dataclass(frozen=True)
class Loss:
    value: Callable[[np.ndarray], float]
    grad: Callable[[np.ndarray], np.ndarray]
    hessian: Callable[[np.ndarray], np.ndarray]


def quadratic(h: np.ndarray) -> Loss:
    return Loss(lambda x: float(0.5 * x @ h @ x), lambda x: h @ x, lambda x: h)


def rosenbrock_hessian(x: np.ndarray) -> np.ndarray:
    return np.array([[1200 * x[0] ** 2 - 400 * x[1] + 2, -400 * x[0]], [-400 * x[0], 200.0]])


ROSENBROCK = Loss(
    lambda x: float(100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2),
    lambda x: np.array([-400 * x[0] * (x[1] - x[0] ** 2) - 2 * (1 - x[0]), 200 * (x[1] - x[0] ** 2)]),
    rosenbrock_hessian,
)
DOUBLE_WELL = Loss(
    lambda x: float((x[0] ** 2 - 1) ** 2 + x[1] ** 2 - x[0] / 2),
    lambda x: np.array([4 * x[0] * (x[0] ** 2 - 1) - 0.5, 2 * x[1]]),
    lambda x: np.diag([12 * x[0] ** 2 - 4, 2.0]),
)


def taylor_pair(loss: Loss, x: np.ndarray, x_next: np.ndarray, lr: float) -> tuple[DescentPair, np.ndarray]:
    """Eq (16): the Taylor point by root finding, DG = grad + H d/2 there; the pair of it and H."""
    d = x_next - x
    change, slope = loss.value(x_next) - loss.value(x), loss.grad(x) @ d

    def excess(s: float) -> float:
        return float(d @ loss.hessian(x + s * d) @ d - 2 * (change - slope))

    grid = np.linspace(0.0, 1.0, 401)
    values = [excess(s) for s in grid]
    i = next(i for i in range(400) if values[i] * values[i + 1] <= 0)
    s = brentq(excess, grid[i], grid[i + 1], xtol=1e-15, rtol=1e-14)
    h = loss.hessian(x + s * d)
    return pairs.continuous(loss.grad(x) + 0.5 * h @ d, d / lr), h


def symmetric(n: int, seed: int, lowest: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    values = np.concatenate([[lowest], rng.uniform(0.5, 4.0, n - 1)])
    return (q * values) @ q.T


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 30), st.integers(0, 10**6), st.floats(-1.0, 1.0), st.floats(0.01, 2.0), st.floats(0.02, 0.8))
def test_equations_17_and_18_on_quadratics(n: int, seed: int, lowest: float, lr: float, size: float) -> None:
    """H constant: the trapezoid pair is the one of eq (16). Whatever the step, it is natural or refused rightly."""
    h = symmetric(n, seed, lowest)
    rng = np.random.default_rng(seed + 1)
    x, noise = rng.standard_normal((2, n))
    d = size * (noise - h @ x)
    x_next = x + (1.0 if x @ h @ d + 0.5 * d @ h @ d < 0 else -1.0) * d
    loss = quadratic(h)
    before, after = loss.value(x), loss.value(x_next)
    if before - after < 1e-3 or abs(loss.grad(x) @ (x_next - x)) < 1e-3:
        return
    pair = pairs.discrete(x, x_next, loss=before, loss_next=after, grad=h @ x, grad_next=h @ x_next, lr=lr)
    g = (x_next - x) / lr
    if loss.grad(x) @ g >= 0:
        with pytest.raises(steepest.NotDescentError, match="no metric exists"):
            natural_form(pair, h, lr, alpha="sufficient")
        return
    form = natural_form(pair, lambda v: h @ v, lr, alpha="sufficient")
    scale = np.linalg.norm(h @ x) + np.linalg.norm(form.metric @ g)
    assert np.linalg.norm(form @ g + h @ x) <= 1e-9 * scale  # (17)
    step = lr * form.solve(-(h @ x))
    assert np.linalg.norm(step - (x_next - x)) <= 1e-7 * np.linalg.norm(x_next - x)  # (18)
    dense = np.column_stack([form @ e for e in np.eye(n)])
    assert np.linalg.eigvalsh(dense)[0] > 0
    assert form.smallest.value == pytest.approx(np.linalg.eigvalsh(dense)[0], rel=1e-6, abs=1e-9 * scale)


@pytest.mark.parametrize(
    ("loss", "x", "x_next"),
    [
        (ROSENBROCK, [-1.2, 1.0], [-1.0, 1.05]),
        (ROSENBROCK, [-1.2, 1.0], [0.9, 0.8]),
        (ROSENBROCK, [0.5, 2.0], [1.2, 1.2]),
        (DOUBLE_WELL, [0.2, 0.5], [0.9, -0.1]),
        (DOUBLE_WELL, [-0.05, 0.5], [1.4, 0.1]),
    ],
)
@pytest.mark.parametrize("lr", [0.1, 1.0, 7.0])
def test_equations_17_and_18_at_the_taylor_point(loss: Loss, x: list[float], x_next: list[float], lr: float) -> None:
    start, end = np.array(x), np.array(x_next)
    pair, h = taylor_pair(loss, start, end, lr)
    assert loss.grad(start) @ (end - start) < 0
    assert loss.value(end) < loss.value(start)
    form = natural_form(pair, h, lr, alpha="sufficient")
    assert form @ pair.update() == pytest.approx(-loss.grad(start), rel=1e-9, abs=1e-10)
    assert start - lr * form.solve(loss.grad(start)) == pytest.approx(end, rel=1e-9)
    assert form.grad == pytest.approx(loss.grad(start), rel=1e-9, abs=1e-10)


def test_a_step_beyond_the_bound_that_still_is_natural() -> None:
    """H = diag(-4, 1): negative curvature across the step, which goes along the other axis."""
    h, x, lr = np.diag([-4.0, 1.0]), np.array([0.1, 1.0]), 1.0
    x_next = np.array([0.2, 0.1])
    loss = quadratic(h)
    pair = pairs.discrete(
        x, x_next, loss=loss.value(x), loss_next=loss.value(x_next), grad=h @ x, grad_next=h @ x_next, lr=lr
    )
    lowest = smallest_eigenvalue(h, 2)
    bounds = step_size_bounds(pair, lowest, curvature=curvature_along(x_next - x, hvp=h))
    assert bounds.optimal <= bounds.supremum < lr < bounds.existence
    with pytest.raises(ValueError, match="alpha='sufficient'") as refused:
        natural_form(pair, h, lr)
    form = natural_form(pair, h, lr, alpha="sufficient")
    assert x - lr * form.solve(h @ x) == pytest.approx(x_next, rel=1e-12)
    # the threshold that the message names is sharp
    needed = float(str(refused.value).split("it is for alpha > ")[1].split(":")[0])
    natural_form(pair, h, lr, alpha=needed * 1.001)
    with pytest.raises(ValueError, match="positive definite"):
        natural_form(pair, h, lr, alpha=needed * 0.999)


def test_a_jump_over_a_barrier_is_refused_with_the_reason() -> None:
    x, x_next = np.array([-0.9, 0.1]), np.array([1.05, 0.0])
    assert DOUBLE_WELL.value(x_next) < DOUBLE_WELL.value(x)
    assert DOUBLE_WELL.grad(x) @ (x_next - x) >= 0
    pair, h = taylor_pair(DOUBLE_WELL, x, x_next, 1.0)
    assert pair.align().status == "ok"  # the discrete gradient has a metric
    with pytest.raises(steepest.NotDescentError, match=r"grad\.update is not negative") as refused:
        natural_form(pair, h, 1.0, alpha="sufficient")
    assert "The loss falls over the step" in refused.value.__notes__[0]
    assert refused.value.alignments[None].inner_product == pytest.approx(DOUBLE_WELL.grad(x) @ (x_next - x))
    h_along = curvature_along(x_next - x, hvp=h)
    assert step_size_bounds(pair, -10.0, curvature=h_along).existence < 1.0


@pytest.mark.parametrize("seed", range(20))
def test_the_bounds_decide_and_existence_is_exact(seed: int) -> None:
    """Below `optimal` the bracket with M(a) is definite; `existence` splits the steps exactly, by -grad.g."""
    rng = np.random.default_rng(seed)
    h = symmetric(6, seed, -rng.uniform(0.1, 3.0))
    x, lr = rng.standard_normal(6), 1.0
    d = -0.3 * rng.uniform(0.2, 4.0) * (h @ x + 0.5 * rng.standard_normal(6))
    loss = quadratic(h)
    if loss.value(x + d) >= loss.value(x):
        d *= 0.05
    if loss.value(x + d) >= loss.value(x):
        return
    ends = {"loss": loss.value(x), "loss_next": loss.value(x + d), "grad": h @ x, "grad_next": h @ (x + d)}
    pair = pairs.discrete(x, x + d, **ends, lr=lr)
    bounds = step_size_bounds(pair, smallest_eigenvalue(h, 6), curvature=curvature_along(d, hvp=h))
    assert bounds.optimal <= bounds.supremum <= bounds.existence
    assert (lr < bounds.existence) == (-(h @ x) @ d > 0)
    if lr < bounds.optimal:
        natural_form(pair, h, lr)
    if lr < bounds.supremum:
        natural_form(pair, h, lr, alpha=1e6)


def test_recorded_data_version() -> None:
    """(Md + (lr/2) h I) g = -grad with the left discrete gradient and h from losses alone."""
    x, x_next, lr = np.array([-0.05, 0.5]), np.array([0.6, 0.2]), 0.5
    recorded = {"loss": DOUBLE_WELL.value(x), "loss_next": DOUBLE_WELL.value(x_next), "grad": DOUBLE_WELL.grad(x)}
    pair = pairs.discrete(x, x_next, **recorded, method="left", lr=lr)
    h = curvature_along(x_next - x, **recorded)
    form = natural_form(pair, lambda v: h.value * v, lr, alpha="sufficient")
    assert x - lr * form.solve(recorded["grad"]) == pytest.approx(x_next, rel=1e-12)


def test_curvature_against_the_hessian() -> None:
    h = symmetric(12, 0, -1.0)
    x, d = np.random.default_rng(1).standard_normal((2, 12))
    loss = quadratic(h)
    truth = d @ h @ d / (d @ d)
    found = curvature_along(d, loss=loss.value(x), loss_next=loss.value(x + d), grad=h @ x)
    assert abs(found.value - truth) <= 8 * found.error + 1e-14
    assert curvature_along(d, hvp=lambda v: h @ v).value == pytest.approx(truth, rel=1e-13)
    # losses in single precision say how uncertain they are
    single = curvature_along(
        1e-3 * d, loss=np.float32(loss.value(x)), loss_next=np.float32(loss.value(x + 1e-3 * d)), grad=h @ x
    )
    assert single.error > 1e-3
    assert abs(single.value - truth) <= single.error


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_finite_difference_products(dtype: str) -> None:
    x = {"a": np.array([[-1.2]], dtype), "b": np.array([0.7], dtype)}

    def grad(p: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        g = ROSENBROCK.grad(np.array([p["a"][0, 0], p["b"][0]], "f8"))
        return {"a": g[:1].reshape(1, 1), "b": g[1:]}

    hvp = finite_difference_hvp(grad, x)
    truth = rosenbrock_hessian(np.array([x["a"][0, 0], x["b"][0]], "f8"))
    tolerance = {"float64": 1e-8, "float32": 1e-3}[dtype] * 2000
    found = hvp({"b": np.array([2.0]), "a": np.array([[0.5]])})
    assert list(found) == ["b", "a"]
    assert [found["a"][0, 0], found["b"][0]] == pytest.approx(truth @ [0.5, 2.0], abs=tolerance)
    assert hvp(np.array([0.5, 2.0])) == pytest.approx(truth @ [0.5, 2.0], abs=tolerance)
    assert hvp(np.zeros(2)).tolist() == [0.0, 0.0]
    value = smallest_eigenvalue(hvp, {"a": np.empty((1, 1)), "b": np.empty(1)}).value
    assert value == pytest.approx(np.linalg.eigvalsh(truth)[0], abs=tolerance)


@pytest.mark.parametrize("n", [1, 2, 3, 32, 33, 300])
def test_smallest_eigenvalue(n: int) -> None:
    h = symmetric(n, n, -0.7) if n > 1 else np.array([[-0.7]])
    found = smallest_eigenvalue(lambda v: h @ v, n, rng=0)
    assert found.value == pytest.approx(-0.7, abs=1e-6)
    assert found.value >= -0.7 - 1e-12  # a Rayleigh quotient
    assert found.bound <= -0.7 + 1e-12
    assert found.residual == pytest.approx(np.linalg.norm(h @ found.vector - found.value * found.vector), abs=1e-12)


def test_lanczos_certificate_of_a_long_step() -> None:
    """n = 2000, H diagonal and indefinite: certified by Lanczos, and the step comes back."""
    n, lr = 2000, 0.5
    rng = np.random.default_rng(5)
    diagonal = np.linspace(-0.5, 2.0, n)
    x = rng.standard_normal(n)
    d = -0.2 * diagonal * x + 0.02 * rng.standard_normal(n)
    x_next = x + d
    ends = {"loss": 0.5 * x @ (diagonal * x), "loss_next": 0.5 * x_next @ (diagonal * x_next)}
    pair = pairs.discrete(x, x_next, **ends, grad=diagonal * x, grad_next=diagonal * x_next, lr=lr)
    form = natural_form(pair, lambda v: diagonal * v, lr, alpha="sufficient", rng=0)
    assert form.smallest.bound > 0
    assert x - lr * form.solve(diagonal * x) == pytest.approx(x_next, abs=1e-8)
    assert repr(form).startswith("NaturalForm(2000 x 2000")


def test_structures_of_parameters() -> None:
    rng = np.random.default_rng(2)
    x = {"w": rng.standard_normal((2, 3)), "b": rng.standard_normal(4)}
    x_next = {k: 0.6 * v for k, v in x.items()}

    def loss(p: dict[str, np.ndarray]) -> float:
        return float(0.5 * sum(np.sum(v**2) for v in p.values()))

    pair = pairs.discrete(x, x_next, loss=loss(x), loss_next=loss(x_next), grad=x, grad_next=x_next, lr=0.5)
    form = natural_form(pair, lambda v: {k: v[k] for k in ("b", "w")}, 0.5)
    step = form.solve({k: -v for k, v in x.items()})
    assert {k: v.shape for k, v in step.items()} == {"w": (2, 3), "b": (4,)}
    for k, v in x.items():
        assert v + 0.5 * step[k] == pytest.approx(x_next[k])


def test_bad_input() -> None:
    x = np.array([1.0, 2.0])
    pair = pairs.continuous(x, -x)
    with pytest.raises(ValueError, match="symmetric H"):
        natural_form(pair, np.array([[1.0, 2.0], [0.0, 1.0]]), 1.0)
    many = pairs.continuous(np.ones(600), -np.ones(600))
    with pytest.raises(ValueError, match="symmetric H"):  # np.roll is orthogonal, not symmetric
        natural_form(many, lambda v: 30 * np.roll(v, 1), 1.0, rng=1)
    with pytest.raises(ValueError, match="positive finite lr"):
        natural_form(pair, np.eye(2), 0.0)
    with pytest.raises(ValueError, match="alpha"):
        natural_form(pair, np.eye(2), 1.0, alpha="best")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="matrix of shape"):
        natural_form(pair, np.eye(3), 1.0)
    with pytest.raises(TypeError, match="callable"):
        natural_form(pair, 3.0, 1.0)
    with pytest.raises(steepest.NotDescentError):
        natural_form(pairs.continuous(x, x), np.eye(2), 1.0)
    with pytest.raises(steepest.NotDescentError):
        step_size_bounds(pairs.continuous(x, x), -1.0)
    assert step_size_bounds(pair, 0.5).optimal == math.inf
    for arguments in ({}, {"loss": 1.0}, {"loss": 1.0, "loss_next": 0.5, "grad": x, "hvp": np.eye(2)}):
        with pytest.raises(ValueError, match="expected either hvp"):
            curvature_along(x, **arguments)
    with pytest.raises(ValueError, match="other than zero"):
        curvature_along(0 * x, hvp=np.eye(2))
    with pytest.raises(ValueError, match="finite"):
        smallest_eigenvalue(lambda v: v * math.nan, 3)
    with pytest.raises(ValueError, match="positive finite eps"):
        finite_difference_hvp(lambda p: p, x, eps=-1.0)
    with pytest.raises(RuntimeError, match="did not converge"):
        smallest_eigenvalue(lambda v: np.linspace(0, 1, 500) * v, 500, rng=0, maxiter=1, tol=1e-14)
