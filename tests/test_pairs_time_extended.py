"""Pairs of losses that depend on time, against direct formulas and multiple precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
from oracles import mp
from steepest import pairs
from steepest.errors import NotDescentError
from steepest.pairs.time_extended import ChangeSplit, split_change, time_extended


def vectors(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    grad = rng.standard_normal(n)
    return grad, -rng.uniform(0.2, 2.0, n) * grad + 0.3 * rng.standard_normal(n)


def extended(grad: Any, update: Any, rate: float, unit: float) -> tuple[list[Any], list[Any]]:
    """The two vectors of section 6, with y = -grad."""
    w = mp.mpf(unit)
    y = [-x for x in oracles.exact(grad)] + [-mp.mpf(rate) / w]
    return y, [*oracles.exact(update), w]


def cosine(y: list[Any], g: list[Any]) -> Any:
    return oracles.inner(y, g) / mp.sqrt(oracles.inner(y, y) * oracles.inner(g, g))


@settings(max_examples=80, deadline=None)
@given(
    n=st.sampled_from([1, 2, 3, 10, 500]),
    seed=st.integers(0, 2**32 - 1),
    rate=st.floats(-5, 5).filter(lambda x: abs(x) > 1e-6),
    scale=st.sampled_from([1e-120, 1e-8, 1.0, 1e8, 1e120]),
)
def test_best_unit(n: int, seed: int, rate: float, scale: float) -> None:
    grad, update = vectors(n, seed)
    grad, rate = grad * scale, rate * scale
    found = time_extended(grad, update, rate)
    gy, gu = (mp.sqrt(oracles.inner(x, x)) for x in (grad, update))
    descent = -(oracles.inner(grad, update) + mp.mpf(rate))
    assert found.unit == pytest.approx(float(mp.sqrt(abs(mp.mpf(rate)) * gu / gy)), rel=1e-14)
    assert found.cos_max == pytest.approx(float(descent / (gy * gu + abs(mp.mpf(rate)))), rel=1e-14)
    assert found.align().cosine == pytest.approx(found.cos_max, rel=1e-13)
    assert found.rate == pytest.approx(-float(descent), rel=1e-15)
    assert found.learning == pytest.approx(float(oracles.inner(grad, update)), rel=1e-15)
    assert found.drift == rate
    y, g = extended(grad, update, rate, found.unit)
    assert found.psi == pytest.approx(float(mp.acos(cosine(y, g))), rel=1e-9)
    # No other unit gives a larger |cos psi|.
    for factor in (1e-3, 0.5, 0.9, 1.1, 2.0, 1e3):
        other = time_extended(grad, update, rate, unit=found.unit * factor)
        assert abs(other.align().cosine) <= abs(found.align().cosine) * (1 + 1e-14)
        assert other.cos_max == found.cos_max


@pytest.mark.parametrize("unit", [1e-200, 1e-3, 1.0, 0.1, 7.0, 1e200])
def test_the_unit_leaves_descent_as_it_is(unit: float) -> None:
    """Also where learning and drift cancel but for the last bit: 3 + 2^-51 downhill, 3 uphill."""
    grad, update = np.array([3.0 + 2.0**-51, 0.0]), np.array([-1.0, 0.5])
    a = time_extended(grad, update, 3.0, unit=unit).align()
    assert (a.status, a.inner_product) == ("ok", -(2.0**-51))
    up = time_extended(grad, -update, -3.0, unit=unit).align()
    assert (up.status, up.inner_product) == ("ascent", 2.0**-51)
    level = time_extended([3.0, 0.0], update, 3.0, unit=unit)
    assert level.rate == 0.0
    assert level.align().status in {"ascent", "undecided"}


@pytest.mark.parametrize("unit", [None, 0.01, 1.0, 30.0])
@pytest.mark.parametrize("n", [1, 2, 3, 8])
@pytest.mark.parametrize("rate", [-2.0, -1e-5, 0.1])
def test_metric_gives_the_extended_flow(n: int, rate: float, unit: float | None) -> None:
    grad, update = vectors(n, 3)
    assert grad @ update + rate < 0
    found = time_extended(grad, update, rate, unit=unit)
    y, g = (np.array([float(x) for x in v]) for v in extended(grad, update, rate, found.unit))
    gradient, move = found.pair.gradient(), found.pair.update()
    np.testing.assert_allclose(np.r_[gradient["(params)"], gradient["(time)"]], -y, rtol=1e-15)
    np.testing.assert_allclose(np.r_[move["(params)"], move["(time)"]], g, rtol=1e-15)
    M = found.metric()
    dense = M.to_dense()
    assert dense.shape == (n + 1, n + 1)
    assert np.linalg.eigvalsh(dense).min() > 0
    np.testing.assert_allclose(dense @ g, y, rtol=0, atol=1e-13 * np.linalg.norm(dense, 2) * np.linalg.norm(g))
    solved = M.solve({name: -x for name, x in gradient.items()})
    np.testing.assert_allclose(solved["(params)"], update, rtol=0, atol=1e-12 * np.linalg.norm(g))
    assert float(solved["(time)"]) == pytest.approx(found.unit, rel=1e-11)


def test_against_the_continuous_pair_of_whole_vectors() -> None:
    grad, update = vectors(40)
    found = time_extended(grad, update, -0.7, unit=0.5).align()
    other = pairs.continuous(np.r_[grad, -0.7 / 0.5], np.r_[update, 0.5]).align()
    for name in ("angle", "inner_product", "grad_norm", "update_norm", "cond_min", "alpha_opt"):
        assert getattr(found, name) == pytest.approx(getattr(other, name), rel=1e-13)
    assert found.size == 41


def test_a_moving_quadratic() -> None:
    """L = |theta - c(t)|^2/2 by the flow of its gradient: the rate of the loss along the path, by differences."""
    c, velocity = np.array([1.0, -1.0]), np.array([0.4, 0.3])

    def loss(theta: np.ndarray, t: float) -> float:
        return 0.5 * float(np.sum((theta - c - velocity * t) ** 2))

    theta, t, h = np.array([3.0, 2.0]), 0.5, 1e-5
    grad = theta - c - velocity * t
    flow = -grad
    found = time_extended(grad, flow, -float(grad @ velocity))
    ahead, behind = (loss(theta + s * flow, t + s) for s in (h, -h))
    assert found.rate == pytest.approx((ahead - behind) / (2 * h), rel=1e-8)
    # The loss of the moment falls always; where the target runs away faster than the rule follows, the loss rises.
    left_behind = time_extended(0.1 * grad, -0.1 * grad, 5.0)
    assert left_behind.learning < 0 < left_behind.rate
    assert left_behind.cos_max < 0
    with pytest.raises(NotDescentError):
        left_behind.metric()


def test_finite_step_on_a_moving_loss() -> None:
    """A discrete gradient in theta, the drift in time: the whole change of the loss."""
    rng = np.random.default_rng(4)
    a = rng.standard_normal((5, 5))
    a = a @ a.T
    centres = rng.standard_normal((2, 5))

    def loss(k: int, x: np.ndarray) -> float:
        return 0.5 * float((x - centres[k]) @ a @ (x - centres[k]))

    x = centres[0] + 3.0
    x_next = x - 0.02 * a @ (x - centres[0])
    split = split_change(loss(0, x), loss(0, x_next), loss(1, x_next))
    step = pairs.discrete(
        x,
        x_next,
        loss=loss(0, x),
        loss_next=loss(0, x_next),
        grad=a @ (x - centres[0]),
        grad_next=a @ (x_next - centres[0]),
    )
    found = time_extended(step.gradient(), step.update(), split.drift)
    assert split.learning < 0
    assert found.rate == pytest.approx(loss(1, x_next) - loss(0, x), rel=1e-12)
    assert split.total == pytest.approx(found.rate, rel=1e-12)


def test_mapping_of_float32() -> None:
    grad = {"w": np.array([[1.0, 2.0], [0.5, 1.0]], "f4"), "b": np.array(3.0, "f4")}
    update = {"b": np.array(-1.0, "f4"), "w": -grad["w"]}
    found = time_extended(grad, update, 0.5)
    assert found.learning == -9.25
    assert found.rate == -8.75
    assert found.pair.dtype == "float32"
    assert found.pair.psi_floor == 2.0**-23
    move = found.pair.update()
    assert list(move) == ["w", "b", "(time)"]
    assert (move["w"].dtype, move["(time)"].dtype) == (np.dtype("f4"), np.dtype("f8"))
    np.testing.assert_array_equal(move["w"], update["w"])
    solved = found.metric().solve({name: -np.asarray(x, "f8") for name, x in found.pair.gradient().items()})
    np.testing.assert_allclose(solved["w"], update["w"], rtol=1e-6)


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    grad = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    found = time_extended(grad, torch.tensor([-1.0, 0.0], dtype=torch.float64), -1.0)
    assert found.rate == -2.0
    assert torch.equal(found.pair.gradient()["(params)"], grad.detach())


def test_a_loss_that_does_not_drift() -> None:
    """Time has no part: the pair of the parameters alone, and any fixed unit a larger angle."""
    grad, update = vectors(6)
    found = time_extended(grad, update, 0.0)
    plain = pairs.continuous(grad, update).align()
    assert found.unit == 0.0
    assert found.cos_max == pytest.approx(plain.cosine, rel=1e-15)
    assert found.psi == pytest.approx(plain.angle, rel=1e-13)
    assert time_extended(grad, update, 0.0, unit=0.1).psi > found.psi
    zero = {"(params)": np.zeros(6), "(time)": np.array(0.0)}
    y = {"(params)": -grad, "(time)": np.array(0.0)}
    assert found.pair.update().keys() == zero.keys()
    np.testing.assert_allclose(found.metric().solve(y)["(params)"], update, atol=1e-13)


def test_nothing_moves() -> None:
    grad, update = vectors(3)
    zero = np.zeros(3)
    with pytest.raises(ValueError, match=r"the gradient is zero.* infinity; fix one with unit="):
        time_extended(zero, update, -1.0)
    with pytest.raises(ValueError, match=r"the update is zero.* to 0; fix one"):
        time_extended(grad, zero, -1.0)
    still = time_extended(grad, zero, -1.0, unit=2.0)
    assert (still.rate, still.cos_max, still.align().status) == (-1.0, 1.0, "ok")
    y, g = extended(grad, zero, -1.0, 2.0)
    assert still.psi == pytest.approx(float(mp.acos(cosine(y, g))), rel=1e-13)
    nothing = time_extended(zero, zero, 0.0)
    assert math.isnan(nothing.cos_max)
    assert nothing.align().status == "zero_grad"


def test_nonfinite_vectors() -> None:
    found = time_extended([1.0, np.nan], [1.0, 1.0], -1.0)
    assert math.isnan(found.unit)
    assert math.isnan(found.rate)
    assert math.isnan(found.cos_max)
    assert math.isnan(found.psi)
    assert found.align().status == "nonfinite"
    assert time_extended([1.0, np.inf], [1.0, 1.0], -1.0, unit=2.0).unit == 2.0


def test_bad_input() -> None:
    grad, update = vectors(3)
    for rate in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite loss_rate"):
            time_extended(grad, update, rate)
    with pytest.raises(TypeError, match="loss_rate to be a number"):
        time_extended(grad, update, "fast")  # type: ignore[arg-type]
    for unit in (0.0, -1.0):
        with pytest.raises(ValueError, match="positive unit"):
            time_extended(grad, update, 1.0, unit=unit)
    with pytest.raises(ValueError, match="same shape"):
        time_extended(grad, update[:2], 1.0)
    with pytest.raises(ValueError, match="no parameter of the name"):
        time_extended({"(time)": grad}, {"(time)": update}, 1.0)


# Learning and drift ---------------------------------------------------------------------------------------------------


def test_split_of_mini_batches() -> None:
    """Least squares by SGD: each batch is a loss of its own, and the parts add up to what the loss curve shows."""
    rng = np.random.default_rng(0)
    inputs, targets = rng.standard_normal((20, 8, 3)), rng.standard_normal((20, 8))

    def loss(t: int, theta: np.ndarray) -> float:
        return 0.5 * float(np.mean((inputs[t] @ theta - targets[t]) ** 2))

    theta, recorded, moved, after = np.zeros(3), [], [], []
    for t in range(19):
        recorded.append(loss(t, theta))
        theta = theta - 0.1 * inputs[t].T @ (inputs[t] @ theta - targets[t]) / 8
        moved.append(loss(t, theta))
        after.append(loss(t + 1, theta))
    split = split_change(recorded, moved, after)
    curve = np.array([*recorded, after[-1]])
    np.testing.assert_allclose(split.total, np.diff(curve), atol=1e-15)
    assert (split.learning < 0).all()  # a short step lowers its own batch's loss
    assert (split.drift > 0).any()
    assert split_change(recorded[0], moved[0], after[0]) == ChangeSplit(split.learning[0], split.drift[0])


def test_split_of_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"one shape, got \(2,\), \(3,\), \(2,\)"):
        split_change(np.ones(2), np.ones(3), np.ones(2))
    with pytest.raises(TypeError, match="loss_next to hold real numbers"):
        split_change(1.0, 2.0, "a")
    assert math.isnan(split_change(1.0, math.nan, 2.0).total)
    assert isinstance(split_change(2, 1, 3).learning, float)
