"""Eqs (17), (18) as identities for pairs of Taylor's formula, whose point `natural_form` finds by itself."""

from __future__ import annotations

import functools
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import steepest
from losses import LOSSES, loss_of
from steepest import pairs
from steepest.pairs.energies import Energy, HeavyBall
from steepest.stability import finite_difference_hvp, natural_form, smallest_eigenvalue


def taylor(loss: Any, x: np.ndarray, x_next: np.ndarray, **options: Any) -> pairs.DescentPair:
    ends = {"loss": loss.value(x), "loss_next": loss.value(x_next), "grad": loss.grad(x), "hvp": loss.hvp}
    return pairs.discrete(x, x_next, **ends, method="taylor", **options)


def holds(form: Any, pair: pairs.DescentPair, x: np.ndarray, x_next: np.ndarray, grad: np.ndarray, lr: float) -> None:
    g = (x_next - x) / lr
    scale = np.linalg.norm(grad) + np.linalg.norm(form.metric @ g)
    assert np.linalg.norm(form @ g + grad) <= 1e-9 * scale  # (17)
    moved = -lr * form.solve(grad)
    np.testing.assert_allclose(moved, x_next - x, rtol=0, atol=1e-6 * np.linalg.norm(x_next - x))  # (18)
    assert form.smallest.bound > 0


@pytest.mark.parametrize("n", [2, 10])
@pytest.mark.parametrize("name", LOSSES)
def test_equations_17_and_18(name: str, n: int) -> None:
    """Every step that lowers the loss is such a step, or it goes against the gradient and is refused."""
    loss, counts = loss_of(name, n), {"natural": 0, "refused": 0}

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(st.integers(0, 2**32 - 1), st.floats(0.02, 3.0), st.floats(0.0, 0.9), st.floats(0.01, 10.0))
    def check(seed: int, length: float, downhill: float, lr: float) -> None:
        x, noise = np.random.default_rng(seed).standard_normal((2, n))
        g = loss.grad(x)
        x_next = x + length * ((1 - downhill) * noise / np.linalg.norm(noise) - downhill * g / np.linalg.norm(g))
        d = x_next - x
        before, slope = loss.value(x), g @ d
        margin = 1e-2 * np.linalg.norm(g) * np.linalg.norm(d)
        if loss.value(x_next) - before > -margin or abs(slope) < margin:
            return
        pair = taylor(loss, x, x_next, lr=lr)
        if slope > 0:
            with pytest.raises(steepest.NotDescentError, match="no metric exists") as refused:
                natural_form(pair, loss.hvp, lr, alpha="sufficient")
            assert "The loss falls over the step" in refused.value.__notes__[0]
            counts["refused"] += 1
            return
        form = natural_form(pair, loss.hvp, lr, alpha="sufficient")
        holds(form, pair, x, x_next, g, lr)
        counts["natural"] += 1

    check()
    assert counts["natural"] >= 5
    if name in ("quadratic", "logistic"):
        assert counts["refused"] == 0  # a convex loss does not fall along its gradient


def test_a_jump_over_a_barrier_is_refused() -> None:
    loss = loss_of("double well", 2)
    x, x_next = np.array([-0.9, -0.9]), np.array([0.99, 0.99])
    assert loss.value(x_next) < loss.value(x)
    assert loss.grad(x) @ (x_next - x) > 0
    pair = taylor(loss, x, x_next)
    assert pair.align().status == "ok"  # the discrete gradient has a metric
    np.testing.assert_allclose(x + pair.metric().solve(-pair.gradient()), x_next, rtol=0, atol=1e-12)
    with pytest.raises(steepest.NotDescentError, match=r"grad\.update is not negative") as refused:
        natural_form(pair, loss.hvp, 1.0, alpha="sufficient")
    assert "does not point against it" in refused.value.__notes__[0]


def test_the_point_is_that_of_the_pair() -> None:
    loss = loss_of("double well", 10)
    x, noise = np.random.default_rng(3).standard_normal((2, 10))
    x_next = x - 0.05 * loss.grad(x) + 0.05 * noise
    pair = taylor(loss, x, x_next, lr=0.1)
    (s, *_), point = pair.taylor_points, pair.taylor_point()
    np.testing.assert_array_equal(point, x + s * (x_next - x))
    # one argument, a matrix, finite differences: the Hessian there, as the user gives it
    hessian = np.column_stack([loss.hvp(point, e) for e in np.eye(10)])
    for given_hvp in (hessian, functools.partial(loss.hvp, point), lambda v: hessian @ v):
        holds(natural_form(pair, given_hvp, 0.1, alpha="sufficient"), pair, x, x_next, loss.grad(x), 0.1)
    by_differences = natural_form(pair, finite_difference_hvp(loss.grad, point), 0.1, alpha="sufficient")
    np.testing.assert_allclose(by_differences.grad, loss.grad(x), rtol=1e-6, atol=1e-6)
    # and another point is another operator, for which the identity fails
    elsewhere = natural_form(pair, functools.partial(loss.hvp, x_next), 0.1, alpha="sufficient")
    assert np.linalg.norm(elsewhere.grad - loss.grad(x)) > 1e-3
    again = pickle.loads(pickle.dumps(pair))
    np.testing.assert_array_equal(again.taylor_point(), point)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_alone(name: str) -> None:
    """Products by differences of gradients find the point, too; of a quadratic loss, where none is better, as well."""
    loss, lr = loss_of(name, 10), 0.1
    x, noise = np.random.default_rng(2).standard_normal((2, 10))
    x_next = x - 0.2 * (loss.grad(x) / np.linalg.norm(loss.grad(x)) - 0.2 * noise / np.linalg.norm(noise))

    def hvp(p: np.ndarray, v: np.ndarray) -> np.ndarray:
        found: np.ndarray = finite_difference_hvp(loss.grad, p)(v)
        return found

    ends = {"loss": loss.value(x), "loss_next": loss.value(x_next), "grad": loss.grad(x)}
    pair = pairs.discrete(x, x_next, **ends, hvp=hvp, method="taylor", lr=lr)
    assert pair.correction_share < 1e-8
    form = natural_form(pair, hvp, lr, alpha="sufficient")
    np.testing.assert_allclose(-lr * form.solve(loss.grad(x)), x_next - x, rtol=0, atol=1e-5)


def test_float32_mapping() -> None:
    x = {"w": np.array([[0.2, 0.9]], np.float32), "b": np.array([-1.3], np.float32)}
    x_next = {"w": np.array([[0.5, 0.95]], np.float32), "b": np.array([-1.2], np.float32)}

    def loss(p: dict[str, np.ndarray]) -> float:
        return sum(float(np.sum((v.astype("f8") ** 2 - 1) ** 2)) for v in p.values())

    def hvp(p: dict[str, np.ndarray], v: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert p["w"].dtype == v["w"].dtype == np.float32
        return {k: (12 * p[k] ** 2 - 4) * v[k] for k in p}

    grad = {k: 4 * v * (v**2 - 1) for k, v in x.items()}
    pair = pairs.discrete(x, x_next, loss=loss(x), loss_next=loss(x_next), grad=grad, hvp=hvp, method="taylor", lr=0.5)
    assert {k: (v.shape, v.dtype) for k, v in pair.taylor_point().items()} == {
        k: (v.shape, np.dtype("f4")) for k, v in x.items()
    }
    form = natural_form(pair, hvp, 0.5, alpha="sufficient")
    step = form.solve({k: -v for k, v in grad.items()}, rtol=1e-8)
    for k, v in x.items():
        np.testing.assert_allclose(v + 0.5 * step[k], x_next[k], rtol=0, atol=1e-5)


def test_rules_with_state() -> None:
    """A step of the heavy ball over which the loss rises, as natural gradient descent with the energy at its start."""
    loss = loss_of("double well", 10)
    rule = HeavyBall(loss.value, loss.grad, lr=0.01, momentum=0.9, hvp=loss.hvp)
    state: Any = {"params": np.random.default_rng(0).standard_normal(10), "velocity": np.zeros(10)}
    rose = 0
    for _ in range(60):
        state_next = rule.step(state)
        pair = pairs.state_extended_step(rule, state, state_next, method="taylor", lr=0.01)
        assert pair.method == "state-extended taylor"
        assert pair.correction_share < 1e-10
        d = {k: state_next[k] - state[k] for k in state}
        slope = sum(rule.gradient(state)[k] @ d[k] for k in d)
        if pair.align().status == "ok" and slope < 0:
            form = natural_form(pair, rule.hessian_product, 0.01, alpha="sufficient")
            step = form.solve({k: -v for k, v in rule.gradient(state).items()})
            size = np.linalg.norm([np.linalg.norm(v) for v in d.values()])
            for k, v in d.items():
                np.testing.assert_allclose(0.01 * step[k], v, rtol=0, atol=1e-6 * size)
            rose += loss.value(state_next["params"]) > loss.value(state["params"])
        state = state_next
    assert rose > 0
    own = Energy(rule.value, rule.gradient)
    with pytest.raises(ValueError, match="hessian_product"):
        pairs.state_extended_step(own, state, rule.step(state), method="taylor")
    plain = HeavyBall(loss.value, loss.grad, lr=0.01, momentum=0.9)
    with pytest.raises(ValueError, match="with hvp"):
        pairs.state_extended_step(plain, state, rule.step(state), method="taylor")


def test_an_energy_of_ones_own_on_nested_states() -> None:
    loss = loss_of("rosenbrock", 2)
    rule = HeavyBall(loss.value, loss.grad, lr=1e-3, momentum=0.5, hvp=loss.hvp)

    def nested(flat: Any) -> Any:
        return {"params": {"a": flat["params"][:1], "b": flat["params"][1:]}, "velocity": flat["velocity"]}

    def flat(state: Any) -> Any:
        return {"params": np.concatenate([*state["params"].values()]), "velocity": state["velocity"]}

    own = Energy(
        lambda s: rule.value(flat(s)),
        lambda s: nested(rule.gradient(flat(s))),
        lambda s, v: nested(rule.hessian_product(flat(s), flat(v))),
    )
    state = {"params": np.array([-1.2, 1.0]), "velocity": np.array([0.1, 0.2])}
    expected = pairs.state_extended_step(rule, state, rule.step(state), method="taylor")
    found = pairs.state_extended_step(own, nested(state), nested(rule.step(state)), method="taylor")
    assert found.taylor_points == pytest.approx(expected.taylor_points, rel=1e-9)
    assert found.align().angle == pytest.approx(expected.align().angle, rel=1e-9)


def test_many_parameters_and_the_smallest_eigenvalue() -> None:
    loss, n, lr = loss_of("double well", 2000), 2000, 0.05
    x, noise = np.random.default_rng(1).standard_normal((2, n))
    x_next = x - lr * (loss.grad(x) + 0.3 * noise)
    pair = taylor(loss, x, x_next, lr=lr)
    form = natural_form(pair, loss.hvp, lr, alpha="sufficient", rng=0)
    holds(form, pair, x, x_next, loss.grad(x), lr)
    found = smallest_eigenvalue(functools.partial(loss.hvp, pair.taylor_point()), n, rng=0)
    assert found.bound < 0  # not convex there


def test_other_pairs_have_no_taylor_point() -> None:
    x = np.array([1.0, 2.0])
    with pytest.raises(ValueError, match="expected a pair of method 'taylor', got 'continuous'"):
        pairs.continuous(x, -x).taylor_point()
