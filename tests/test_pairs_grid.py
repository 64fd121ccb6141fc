"""What every pair of a finite step must hold, for four losses in 2, 10 and 10 000 dimensions: DG.d = dL."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import steepest
from losses import DIMENSIONS, LOSSES, Loss, loss_of, quadratic_hessian
from steepest import pairs
from steepest.pairs.energies import HeavyBall

METHODS = ("gonzalez", "trapezoid", "left", "mean-value", "itoh-abe", "taylor")
GRID = [pytest.param(name, n, id=f"{name}-{n}") for name in LOSSES for n in DIMENSIONS]


@dataclass(frozen=True)
class Step:
    """A step by hypothesis: its seed, its length over that of the parameters, the share of -grad, the learning rate."""

    seed: int
    length: float
    downhill: float
    lr: float

    def ends(self, loss: Loss, n: int) -> tuple[np.ndarray, np.ndarray]:
        x, noise = np.random.default_rng(self.seed).standard_normal((2, n))
        noise /= np.linalg.norm(noise)
        g = loss.grad(x)
        d = (1 - self.downhill) * noise - self.downhill * g / np.linalg.norm(g)
        return x, x + self.length * np.linalg.norm(x) * d


STEPS = st.builds(
    Step,
    seed=st.integers(0, 2**32 - 1),
    length=st.floats(1e-4, 1.0),
    downhill=st.floats(0.0, 0.9),
    lr=st.floats(1e-6, 1e6),
)


def exact_terms(a: np.ndarray, b: np.ndarray) -> list[float]:
    """Numbers whose exact sum is a.b without rounding: products and their errors (Veltkamp, Dekker)."""

    def halves(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        t = 134217729.0 * x  # 2**27 + 1
        high = t - (t - x)
        return high, x - high

    product, (ah, al), (bh, bl) = a * b, halves(a), halves(b)
    rest = al * bl - (((product - ah * bh) - al * bh) - ah * bl)
    return [*product.tolist(), *rest.tolist()]


def test_terms_are_exact() -> None:
    from fractions import Fraction

    a, b = np.random.default_rng(0).standard_normal((2, 50)) * 10.0 ** np.arange(-25, 25)
    exact = sum((Fraction(x) * Fraction(y) for x, y in zip(a.tolist(), b.tolist(), strict=True)), Fraction(0))
    assert sum(map(Fraction, exact_terms(a, b)), Fraction(0)) == exact


def ravel(x: Any) -> np.ndarray:
    if isinstance(x, dict):
        return np.concatenate([ravel(part) for part in x.values()])
    return np.asarray(x, np.float64).ravel()


def hold(pair: pairs.DescentPair, d: np.ndarray, loss: float, loss_next: float, factor: float = 1.0) -> None:
    """|DG.d - dL| <= 1e-12 (|DG||d| + |L| + |L'|), times a factor; plus the error estimate of a quadrature."""
    dg = ravel(pair.gradient())
    missed = math.fsum([*exact_terms(dg, d), float(loss), -float(loss_next)])
    scale = np.linalg.norm(dg) * np.linalg.norm(d) + abs(loss) + abs(loss_next)
    assert abs(missed) <= 1e-12 * factor * scale + pair.error * np.linalg.norm(d)


def needed(loss: Loss, x: np.ndarray, x_next: np.ndarray, method: str) -> dict[str, Any]:
    ends: dict[str, Any] = {"loss": loss.value(x), "loss_next": loss.value(x_next), "method": method}
    return (
        ends
        | {
            "gonzalez": lambda: {"grad_fn": loss.grad},
            "trapezoid": lambda: {"grad": loss.grad(x), "grad_next": loss.grad(x_next)},
            "left": lambda: {"grad": loss.grad(x)},
            "mean-value": lambda: {"grad_fn": loss.grad},
            "itoh-abe": lambda: {"loss_fn": loss.value, "vectorized": True},
            "taylor": lambda: {"grad": loss.grad(x), "hvp": loss.hvp},
        }[method]()
    )


def examples(n: int, check: Callable[[Step], None], most: int = 100, large: int = 15) -> None:
    """`check` of steps that hypothesis draws; of few where n is large."""
    run = settings(max_examples=most if n < 1000 else large, deadline=None)(given(STEPS)(check))
    run()


@pytest.mark.parametrize(("name", "n"), GRID)
def test_gradients_and_products(name: str, n: int) -> None:
    """By differences, so that the losses of this file can be trusted."""
    loss, rng = loss_of(name, n), np.random.default_rng(1)
    x, v = rng.standard_normal((2, n))
    v /= np.linalg.norm(v)
    h = 1e-5
    slope = (loss.value(x + h * v) - loss.value(x - h * v)) / (2 * h)
    assert loss.grad(x) @ v == pytest.approx(slope, rel=1e-5, abs=1e-9 * abs(loss.value(x)) + 1e-9)
    bend = (loss.grad(x + h * v) - loss.grad(x - h * v)) / (2 * h)
    product = loss.hvp(x, v)
    np.testing.assert_allclose(product, bend, rtol=0, atol=1e-7 * np.linalg.norm(product) + 1e-9)
    w = rng.standard_normal(n)
    assert w @ product == pytest.approx(v @ loss.hvp(x, w), rel=1e-9, abs=1e-11 * np.linalg.norm(product))
    stacked = np.stack([x, x + v])
    np.testing.assert_allclose(loss.value(stacked), [loss.value(x), loss.value(x + v)], rtol=1e-13)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("name", "n"), GRID)
def test_discrete(name: str, n: int, method: str) -> None:
    loss = loss_of(name, n)

    def check(step: Step) -> None:
        x, x_next = step.ends(loss, n)
        pair = pairs.discrete(x, x_next, **needed(loss, x, x_next, method), lr=step.lr)
        before, after = loss.value(x), loss.value(x_next)
        hold(pair, x_next - x, before, after, math.sqrt(n) if method == "itoh-abe" else 1.0)
        if after < before - 1e-9 * (abs(before) + abs(after)) - pair.error * np.linalg.norm(x_next - x):
            assert pair.align().status == "ok"

    # One evaluation for each of the elements, of a loss of that many terms
    examples(n, check, large=2 if method == "itoh-abe" else 15)


@pytest.mark.parametrize("n", DIMENSIONS)
def test_itoh_abe_of_a_quadratic_from_its_hessian(n: int) -> None:
    loss, hessian = loss_of("quadratic", n), quadratic_hessian(n)

    def check(step: Step) -> None:
        x, x_next = step.ends(loss, n)
        before, after = loss.value(x), loss.value(x_next)
        pair = pairs.discrete(
            x, x_next, loss=before, loss_next=after, grad=loss.grad(x), hessian=hessian, method="itoh-abe"
        )
        hold(pair, x_next - x, before, after)

    examples(n, check, large=30)


@pytest.mark.parametrize("kind", ["displacement", "one-step"])
@pytest.mark.parametrize(("name", "n"), GRID)
def test_windowed(name: str, n: int, kind: Any) -> None:
    """A random walk: over a window of 3, dL = L_{t+3} - L_t, for one step a third of it."""
    loss, w = loss_of(name, n), 3

    def check(step: Step) -> None:
        x, x_next = step.ends(loss, n)
        rng = np.random.default_rng(step.seed + 1)
        size = np.linalg.norm(x_next - x) / math.sqrt(n)
        points = [x, x_next]
        while len(points) <= w + 1:
            points.append(points[-1] + size * rng.standard_normal(n))
        values = [float(loss.value(p)) for p in points]
        rec = steepest.recording(
            params=np.array(points), grad=np.array([loss.grad(p) for p in points]), loss=values, objective="fixed"
        )
        pair = pairs.windowed(rec, 1, window=w, kind=kind, lr=step.lr)
        if kind == "displacement":
            hold(pair, points[1 + w] - points[1], values[1], values[1 + w])
        else:
            hold(pair, points[2] - points[1], values[1] / w, values[1 + w] / w)

    examples(n, check, most=60, large=8)


@pytest.mark.parametrize("method", ["gonzalez", "trapezoid", "left", "taylor"])
@pytest.mark.parametrize(("name", "n"), GRID)
def test_time_extended(name: str, n: int, method: str) -> None:
    """L_t = (1 + t/4) L, a step of time 1: the discrete gradient at fixed time, and the drift at the new parameters."""
    loss = loss_of(name, n)

    def check(step: Step) -> None:
        x, x_next = step.ends(loss, n)
        pair = pairs.discrete(x, x_next, **needed(loss, x, x_next, method))
        before, moved = float(loss.value(x)), float(loss.value(x_next))
        after = 1.25 * moved
        split = pairs.split_change(before, moved, after)
        unit = None if step.seed % 2 else step.length
        found = pairs.time_extended(pair.gradient(), x_next - x, split.drift, unit=unit).pair
        # The time passes by 1 in its own unit.
        d = ravel(found.update())
        assert d[-1] == pytest.approx(unit or d[-1])
        hold(found, d, before, after)

    examples(n, check, most=50, large=8)


# Twice as many evaluations as parameters: a minute for the digits in 1e4 dimensions, which `test_discrete` does once.
STATE_GRID = [
    pytest.param(name, n, method, id=f"{name}-{n}-{method}")
    for name, n, method in itertools.product(LOSSES, DIMENSIONS, METHODS)
    if (name, n, method) != ("logistic", 10_000, "itoh-abe")
]


@pytest.mark.parametrize(("name", "n", "method"), STATE_GRID)
def test_state_extended(name: str, n: int, method: Any) -> None:
    """A step of the heavy ball, and any other change of its state."""
    loss = loss_of(name, n)

    def check(step: Step) -> None:
        x, x_next = step.ends(loss, n)
        rule = HeavyBall(loss.value, loss.grad, lr=0.05 * step.length, momentum=0.9, hvp=loss.hvp)
        state = {"params": x, "velocity": 0.3 * (x_next - x)}
        state_next = rule.step(state) if step.seed % 2 else {"params": x_next, "velocity": x_next - x}
        if not np.linalg.norm(ravel(state_next)) < 1e3 * np.linalg.norm(ravel(state)):
            return  # the rule has left everything that the loss is known for
        pair = pairs.state_extended_step(rule, state, state_next, method=method, lr=step.lr)
        before, after = rule.value(state), rule.value(state_next)
        factor = math.sqrt(2 * n) if method == "itoh-abe" else 1.0
        hold(pair, ravel(state_next) - ravel(state), before, after, factor)

    if method == "itoh-abe" and n > 10:
        check(Step(seed=4, length=0.3, downhill=0.5, lr=0.7))  # 20 001 evaluations of an energy
    else:
        examples(n, check, most=50, large=8)
