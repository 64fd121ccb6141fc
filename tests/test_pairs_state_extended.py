"""Energies of rules with momentum: gradients by differences, every inequality of section 6, the flows themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

import steepest
from steepest import pairs
from steepest.errors import NotDescentError
from steepest.pairs.energies import Energy, HeavyBall, HeavyBallFlow, NesterovFlow
from steepest.pairs.state_extended import state_extended, state_extended_step

N = 3


@dataclass(frozen=True)
class Problem:
    """A loss with derivatives, a bound on the norm of its Hessian, and a minimiser if it is convex."""

    loss: Callable[[Any], Any]
    grad: Callable[[Any], Any]
    hvp: Callable[[Any, Any], Any]
    smoothness: float
    minimizer: np.ndarray | None = None


def rotation() -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(0).standard_normal((N, N)))[0]


def quadratic(values: tuple[float, ...]) -> Problem:
    q = rotation()
    a, at = (q * values) @ q.T, np.array([0.5, -1.0, 2.0])
    minimizer = at if min(values) > 0 else None
    return Problem(
        lambda x: 0.5 * (x - at) @ a @ (x - at),
        lambda x: a @ (x - at),
        lambda x, v: a @ v,
        max(map(abs, values)),
        minimizer,
    )


def waves() -> Problem:
    """sum cos(b_i.x): neither convex nor bounded curvature of one sign; Hessian -B^T diag(cos) B."""
    b = np.random.default_rng(1).standard_normal((4, N))
    return Problem(
        lambda x: np.cos(b @ x).sum(),
        lambda x: -b.T @ np.sin(b @ x),
        lambda x, v: -b.T @ (np.cos(b @ x) * (b @ v)),
        float(np.linalg.norm(b, 2) ** 2),
    )


def soft(n: int = N) -> Problem:
    """Convex, not a quadratic: log cosh of each coordinate, with curvatures in (0, k]."""
    k = np.array([4.0, 1.0, 0.25])[:n]
    return Problem(
        lambda x: float(k @ np.log(np.cosh(x))),
        lambda x: k * np.tanh(x),
        lambda x, v: k * v / np.cosh(x) ** 2,
        4.0,
        np.zeros(n),
    )


PROBLEMS = {
    "convex": quadratic((3.0, 1.0, 0.2)),
    "saddle": quadratic((2.0, 0.3, -2.5)),
    "waves": waves(),
    "soft": soft(),
}
CONVEX = [name for name, problem in PROBLEMS.items() if problem.minimizer is not None]


def flow(problem: Problem, damping: float = 0.7, share: float = 0.9) -> HeavyBallFlow:
    """`share` of the largest e for which the energy falls."""
    plain = HeavyBallFlow(problem.loss, problem.grad, damping)
    mix = share * plain.mix_limit(problem.smoothness)
    return HeavyBallFlow(problem.loss, problem.grad, damping, mix, problem.hvp)


def nesterov(problem: Problem) -> NesterovFlow:
    return NesterovFlow(problem.loss, problem.grad, problem.minimizer)


def state(rng: np.random.Generator, time: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {"params": 2 * rng.standard_normal(N), "velocity": rng.standard_normal(N)}
    return found | ({"time": rng.uniform(0.1, 5.0)} if time else {})


def ravel(mapping: Any) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in mapping.values()])


def unravel(x: np.ndarray) -> dict[str, Any]:
    found: dict[str, Any] = {"params": x[:N], "velocity": x[N : 2 * N]}
    return found | ({"time": float(x[-1])} if x.size > 2 * N else {})


def energies(name: str) -> list[Any]:
    problem = PROBLEMS[name]
    found = [flow(problem, share=0.0), flow(problem), HeavyBall(problem.loss, problem.grad, 0.05, 0.9)]
    return found + ([nesterov(problem)] if problem.minimizer is not None else [])


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradients_by_differences(name: str) -> None:
    for seed, energy in enumerate(energies(name)):
        x = state(np.random.default_rng(seed), isinstance(energy, NesterovFlow))
        assert list(energy.gradient(x)) == list(x)
        flat, h = ravel(x), 1e-5
        differences = [
            (energy.value(unravel(flat + h * e)) - energy.value(unravel(flat - h * e))) / (2 * h)
            for e in np.eye(flat.size)
        ]
        found = ravel(energy.gradient(x))
        np.testing.assert_allclose(found, differences, rtol=0, atol=1e-8 * (1 + np.linalg.norm(found)))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(list(PROBLEMS)), st.floats(0.01, 30.0), st.floats(0.0, 0.999))
def test_formulas_of_the_flows(seed: int, name: str, damping: float, share: float) -> None:
    """y.g of section 6 against the inner product of the two vectors; the bound; the pair of the whole state."""
    problem = PROBLEMS[name]
    energy, x = flow(problem, damping, share), state(np.random.default_rng(seed))
    grad, rate = ravel(energy.gradient(x)), ravel(energy.rate(x))
    scale = np.linalg.norm(grad) * np.linalg.norm(rate)
    assert energy.descent(x) == pytest.approx(-grad @ rate, abs=1e-12 * scale)
    bound = energy.descent_bound(x, problem.smoothness)
    assert energy.descent(x) >= bound - 1e-12 * scale
    assert bound > 0
    assert energy.descent(x) > 0
    a = energy.pair(x).align()
    assert a.angle == pytest.approx(steepest.align(grad, rate).angle, rel=1e-12)
    assert a.status == "ok"
    assert a.inner_product == pytest.approx(-energy.descent(x), abs=1e-12 * scale)
    np.testing.assert_allclose(ravel(energy.pair(x).metric().solve(energy.gradient(x))), -rate, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(CONVEX))
def test_formula_of_the_nesterov_flow(seed: int, name: str) -> None:
    energy, x = nesterov(PROBLEMS[name]), state(np.random.default_rng(seed), time=True)
    grad, rate = ravel(energy.gradient(x)), ravel(energy.rate(x))
    scale = np.linalg.norm(grad) * np.linalg.norm(rate)
    assert energy.descent(x) == pytest.approx(-grad @ rate, abs=1e-12 * scale)
    assert energy.descent(x) > 0
    assert energy.pair(x).align().status == "ok"
    assert energy.pair(x).size == 2 * N + 1


def test_the_mix_limit_is_that_of_the_quadratic_form() -> None:
    """Of [[c - e l, -e c/2], [-e c/2, e]], the worst case in (|v|, |grad L|): positive up to the limit only."""
    for c in (0.1, 1.0, 7.0):
        for smoothness in (0.0, 0.5, 20.0):
            limit = HeavyBallFlow(abs, abs, c).mix_limit(smoothness)
            least = [
                np.linalg.eigvalsh([[c - e * smoothness, -e * c / 2], [-e * c / 2, e]])[0]
                for e in (limit * (1 - 1e-6), limit * (1 + 1e-6))
            ]
            assert least[0] > 0 > least[1]


def test_beyond_the_mix_limit_the_energy_can_rise() -> None:
    """One parameter, L = l x^2/2: the worst case is met, v along grad L with the sign and ratio of the null vector."""
    c, smoothness = 1.0, 2.0
    loss, grad, hvp = (lambda x: smoothness * float(x @ x) / 2), (lambda x: smoothness * x), lambda x, v: smoothness * v
    limit = HeavyBallFlow(loss, grad, c).mix_limit(smoothness)
    at = {"velocity": np.array([1.0]), "params": np.array([-c / 2 / smoothness])}  # grad L = -(c/2) v
    inside, outside = (HeavyBallFlow(loss, grad, c, e, hvp) for e in (0.99 * limit, 1.01 * limit))
    assert inside.descent(at) > 0 > outside.descent(at)
    assert outside.pair(at).align().status == "ascent"
    with pytest.raises(NotDescentError):
        outside.pair(at).metric()


def test_the_plain_energy_is_only_weakly_effective() -> None:
    problem = PROBLEMS["convex"]
    at_rest = {"params": np.ones(N), "velocity": np.zeros(N)}
    plain, mixed = flow(problem, share=0.0), flow(problem)
    assert plain.descent(at_rest) == plain.pair(at_rest).align().inner_product == 0.0
    assert plain.pair(at_rest).align().status == "ascent"
    assert mixed.descent(at_rest) == pytest.approx(mixed.mix * np.sum(problem.grad(np.ones(N)) ** 2))
    assert mixed.pair(at_rest).align().status == "ok"


@pytest.mark.parametrize("name", PROBLEMS)
def test_energies_fall_along_the_flows(name: str) -> None:
    """Along an accurate solution E falls, and by the integral of `descent`."""
    problem = PROBLEMS[name]
    found = [flow(problem, share=0.0), flow(problem)] + ([nesterov(problem)] if problem.minimizer is not None else [])
    for energy in found:
        x0 = ravel(state(np.random.default_rng(5)) | ({"time": 0.5} if isinstance(energy, NesterovFlow) else {}))

        def right(_: float, x: np.ndarray, energy: Any = energy) -> np.ndarray:
            here = unravel(x[:-1])
            return np.append(ravel(energy.rate(here)), energy.descent(here))

        solution = solve_ivp(
            right, (0, 4), np.append(x0, 0.0), rtol=1e-10, atol=1e-12, t_eval=np.linspace(0, 4, 60), method="DOP853"
        )
        values = np.array([energy.value(unravel(x)) for x in solution.y[:-1].T])
        assert (np.diff(values) < 0).all()
        np.testing.assert_allclose(values[0] - values, solution.y[-1], atol=1e-7 * (1 + abs(values[0])))
        if isinstance(energy, NesterovFlow):
            excess = [problem.loss(x) - problem.loss(problem.minimizer) for x in solution.y[:N].T]
            assert (np.array(excess) <= values[0] / solution.y[2 * N] ** 2 + 1e-9).all()


def test_the_loss_alone_does_not_fall_along_the_flow() -> None:
    """The state is what makes the rule effective."""
    problem = PROBLEMS["convex"]
    energy = flow(problem, damping=0.1)
    x0 = ravel(state(np.random.default_rng(5)))
    times = np.linspace(0, 10, 100)
    solution = solve_ivp(lambda _, x: ravel(energy.rate(unravel(x))), (0, 10), x0, rtol=1e-9, atol=1e-9, t_eval=times)
    assert (np.diff([problem.loss(x[:N]) for x in solution.y.T]) > 0).sum() > 20
    assert (np.diff([energy.value(unravel(x)) for x in solution.y.T]) < 0).all()


# Discrete heavy ball --------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(list(PROBLEMS)),
    st.floats(0.0, 0.99),
    st.floats(0.01, 0.999),
    st.sampled_from(["trapezoid", "left", "gonzalez"]),
)
def test_heavy_ball_falls_at_every_step(seed: int, name: str, momentum: float, share: float, method: Any) -> None:
    problem = PROBLEMS[name]
    lr = share * HeavyBall(problem.loss, problem.grad, 1.0, momentum).lr_limit(problem.smoothness)
    rule = HeavyBall(problem.loss, problem.grad, lr, momentum)
    x = state(np.random.default_rng(seed))
    for _ in range(20):
        x_next = rule.step(x)
        fall = rule.value(x) - rule.value(x_next)
        scale = 1e-13 * (abs(problem.loss(x["params"])) + abs(rule.value(x)) + 1)
        assert fall >= rule.descent_bound(x, problem.smoothness) - scale
        assert rule.descent_bound(x, problem.smoothness) >= 0
        # The identity behind the bound: only the remainder of L is estimated.
        v, v_next, g = x["velocity"], x_next["velocity"], problem.grad(x["params"])
        remainder = problem.loss(x_next["params"]) - problem.loss(x["params"]) - g @ v_next
        exact = (1 - momentum) / lr * v_next @ v_next + momentum / (2 * lr) * np.sum((v_next - v) ** 2) - remainder
        assert fall == pytest.approx(exact, abs=scale + 1e-12 * (exact + momentum / lr * v @ v + abs(remainder)))
        if fall > 10 * scale:
            pair = state_extended_step(rule, x, x_next, method=method)
            assert pair.align().status == "ok"
            assert pair.align().inner_product == pytest.approx(-fall, rel=1e-12)
        x = x_next
    assert pairs.DescentPair is type(state_extended_step(rule, x, rule.step(x)))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_the_lr_limit_is_sharp(momentum: float) -> None:
    """With curvature l along v and v+ = v the fall is the bound: a rise as soon as h is beyond the limit."""
    values = (3.0, 1.0, 0.2)
    problem, q = quadratic(values), rotation()
    limit = HeavyBall(problem.loss, problem.grad, 1.0, momentum).lr_limit(3.0)
    assert limit == pytest.approx(2 * (1 - momentum) / 3)
    falls = {}
    for share in (0.999, 1.0, 1.001, 1.5):
        rule = HeavyBall(problem.loss, problem.grad, share * limit, momentum)
        v = q[:, 0]
        x = {"params": problem.minimizer - (1 - momentum) / (rule.lr * 3.0) * v, "velocity": v}
        x_next = rule.step(x)
        np.testing.assert_allclose(x_next["velocity"], v, atol=1e-14)
        falls[share] = rule.value(x) - rule.value(x_next)
        assert falls[share] == pytest.approx(rule.descent_bound(x, 3.0), abs=1e-13)
        pair = state_extended_step(rule, x, x_next)
        assert share == 1.0 or pair.align().status == ("ok" if share < 1 else "ascent")
    assert falls[0.999] > 1e-4
    assert falls[1.0] == pytest.approx(0, abs=1e-13)
    assert falls[1.001] < -1e-4
    assert falls[1.5] < -0.1


@pytest.mark.parametrize("method", ["trapezoid", "left", "gonzalez", "mean-value", "itoh-abe"])
def test_a_step_is_natural_gradient_descent_on_the_state(method: Any) -> None:
    problem = PROBLEMS["soft"]
    rule, x = HeavyBall(problem.loss, problem.grad, 0.04, 0.9), state(np.random.default_rng(2))
    for _ in range(5):
        x_next = rule.step(x)
        pair = state_extended_step(rule, x, x_next, method=method, lr=0.04)
        assert pair.method == f"state-extended {method}"
        moved = pair.metric().solve({k: -v for k, v in pair.gradient().items()})
        np.testing.assert_allclose(ravel(x) + 0.04 * ravel(moved), ravel(x_next), atol=1e-10)
        direct = pairs.discrete(
            ravel(x),
            ravel(x_next),
            loss=rule.value(x),
            loss_next=rule.value(x_next),
            grad=ravel(rule.gradient(x)),
            grad_next=ravel(rule.gradient(x_next)),
            grad_fn=lambda z: ravel(rule.gradient(unravel(z))),
            loss_fn=lambda z: rule.value(unravel(z)),
            method=method,
            lr=0.04,
        )
        assert pair.align().angle == pytest.approx(direct.align().angle, rel=1e-12)
        x = x_next


def test_steps_over_which_the_loss_rises_but_the_energy_falls() -> None:
    problem = PROBLEMS["convex"]
    rule = HeavyBall(problem.loss, problem.grad, 0.05, 0.9)
    x, rises = {"params": np.array([4.0, -3.0, 1.0]), "velocity": np.zeros(N)}, 0
    for _ in range(100):
        x_next = rule.step(x)
        rises += problem.loss(x_next["params"]) > problem.loss(x["params"])
        assert state_extended_step(rule, x, x_next).align().status == "ok"
        x = x_next
    assert rises > 10


# Users' own -----------------------------------------------------------------------------------------------------------


def nested(x: np.ndarray, v: np.ndarray) -> dict[str, Any]:
    return {"params": {"w": x[:2], "b": x[2:]}, "velocity": {"w": v[:2], "b": v[2:]}}


def test_an_energy_of_ones_own_and_parameters_in_several_arrays() -> None:
    """The heavy ball written out by hand on nested mappings is the ready-made one, on flat arrays and nested ones."""
    problem, momentum, lr = PROBLEMS["soft"], 0.8, 0.05

    def join(part: Any) -> np.ndarray:
        return np.concatenate([part["w"], part["b"]])

    own = Energy(
        lambda s: problem.loss(join(s["params"])) + momentum / (2 * lr) * join(s["velocity"]) @ join(s["velocity"]),
        lambda s: nested(problem.grad(join(s["params"])), momentum / lr * join(s["velocity"])),
    )
    rule = HeavyBall(problem.loss, problem.grad, lr, momentum)
    parts = HeavyBall(
        lambda p: problem.loss(join(p)), lambda p: nested(problem.grad(join(p)), np.zeros(N))["params"], lr, momentum
    )
    x = state(np.random.default_rng(9))
    x_next, here = rule.step(x), nested(x["params"], x["velocity"])
    there = nested(x_next["params"], x_next["velocity"])
    np.testing.assert_array_equal(join(parts.step(here)["params"]), x_next["params"])
    for method in ("trapezoid", "left", "gonzalez", "mean-value", "itoh-abe"):
        expected = state_extended_step(rule, x, x_next, method=method)
        for energy in (own, parts):
            pair = state_extended_step(energy, here, there, method=method)
            assert list(pair.gradient()) == ["params/w", "params/b", "velocity/w", "velocity/b"]
            assert pair.align().angle == pytest.approx(expected.align().angle, rel=1e-12)
    mixed = HeavyBallFlow(
        parts.loss,
        parts.grad,
        1.0,
        0.1,
        lambda p, v: nested(problem.hvp(join(p), join(v)), np.zeros(N))["params"],
    )
    whole = HeavyBallFlow(problem.loss, problem.grad, 1.0, 0.1, problem.hvp)
    assert mixed.descent(here) == pytest.approx(whole.descent(x), rel=1e-13)
    assert mixed.pair(here).align().angle == pytest.approx(whole.pair(x).align().angle, rel=1e-12)


def test_torch() -> None:
    torch = pytest.importorskip("torch")
    rule = HeavyBall(lambda x: (x**4).sum() / 4, lambda x: x**3, 0.05, 0.5)
    x = {"params": torch.tensor([[1.0, -0.5]], dtype=torch.float64), "velocity": torch.zeros(1, 2, dtype=torch.float64)}
    pair = state_extended_step(rule, x, rule.step(x))
    assert isinstance(pair.gradient()["velocity"], torch.Tensor)
    as_numpy = {key: value.numpy() for key, value in x.items()}
    assert pair.align().angle == state_extended_step(rule, as_numpy, rule.step(as_numpy)).align().angle


def test_the_pair_of_two_mappings() -> None:
    """Adam's moments and a scalar clock beside the parameters; the order of the second mapping does not matter."""
    rng = np.random.default_rng(4)
    grad = {"params": rng.standard_normal((2, 3)), "m": rng.standard_normal(2), "t": np.array(0.5)}
    update = {"t": np.array(-1.0), "m": -grad["m"], "params": rng.standard_normal((2, 3)) - grad["params"]}
    pair = state_extended(grad, update)
    flat = [np.concatenate([np.ravel(z[key]) for key in grad]) for z in (grad, update)]
    assert pair.align().angle == pytest.approx(steepest.align(*flat).angle, rel=1e-12)
    assert pair.size == 9
    np.testing.assert_allclose(pair.metric().to_dense(), steepest.metric(*flat).to_dense(), atol=1e-13)


def zero(x: Any) -> Any:
    return 0 * x


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: state_extended(np.ones(2), np.ones(2)), TypeError, "state_grad to be a mapping such as"),
        (lambda: state_extended({"a": [1.0]}, [1.0]), TypeError, "state_update to be a mapping"),
        (lambda: state_extended({"a": [1.0], "b": [1.0]}, {"a": [1.0]}), ValueError, r"\['a', 'b'\], got \['a'\]"),
        (lambda: state_extended({"a": np.ones(2)}, {"a": np.ones(3)}), ValueError, "expected state_update of the same"),
        (lambda: state_extended({"a": np.ones(2, int)}, {"a": np.ones(2)}), TypeError, r"expected state_grad\["),
        (lambda: HeavyBallFlow(zero, zero, 0.0), ValueError, "a positive damping, got 0.0"),
        (lambda: HeavyBallFlow(zero, zero, 1.0, -0.1), ValueError, "a mix of at least 0"),
        (lambda: HeavyBallFlow(zero, zero, 1.0, 0.1), ValueError, "expected hvp for mix = 0.1"),
        (lambda: HeavyBallFlow(zero, zero, 1.0).mix_limit(math.nan), ValueError, "a smoothness of at least 0"),
        (lambda: HeavyBall(zero, zero, 0.0, 0.5), ValueError, "a positive lr"),
        (lambda: HeavyBall(zero, zero, 0.1, 1.0), ValueError, r"a momentum in \[0, 1\), got 1.0"),
        (lambda: HeavyBall(zero, zero, 0.1, 0.5).lr_limit(0.0), ValueError, "a positive smoothness"),
        (lambda: HeavyBall(zero, zero, 0.1, 0.5).value([1.0]), TypeError, "a state with the names params, velocity"),
        (lambda: HeavyBall(zero, zero, 0.1, 0.5).step({"params": 1}), ValueError, "names params, velocity, got params"),
        (
            lambda: NesterovFlow(zero, zero, 0.0).rate({"params": 1.0, "velocity": 1.0, "time": 0.0}),
            ValueError,
            "a positive time",
        ),
        (
            lambda: state_extended_step(Energy(lambda s: 0.0, zero), {"a": np.ones(1)}, {"b": np.ones(1)}),
            ValueError,
            "state_next to have the names of state",
        ),
    ],
)
def test_bad_input(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
