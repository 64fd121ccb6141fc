"""How fast discrete pairs tend to continuous ones, by slopes over the learning rate, on four losses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from losses import LOSSES, Loss, loss_of
from steepest import pairs
from test_pairs_grid import METHODS, needed

#: Of the distance to the gradient at the midpoint.
ORDERS = {"gonzalez": 2, "trapezoid": 2, "left": 1, "mean-value": 2, "itoh-abe": 1, "taylor": 2}
#: These are the gradient at the midpoint where the gradient is linear.
EXACT = [("quadratic", method) for method in ORDERS if method not in ("left", "itoh-abe")]
RATES = np.geomspace(1e-3, 1e-1, 13)
# Not 2, which has next to no curvature along the step into the double well: the leading term all but vanishes.
SEEDS = (0, 1, 3)
GRID = [
    pytest.param(name, n, method, id=f"{name}-{n}-{method}") for name in LOSSES for n in (2, 10) for method in METHODS
]


def distances(loss: Loss, x: np.ndarray, update: np.ndarray, method: Any, at: float) -> tuple[np.ndarray, np.ndarray]:
    """Of the gradient to that of the continuous pair at x + at lr update, and what rounding makes of them."""
    found, floors = [], []
    for lr in RATES:
        x_next = x + lr * update
        pair = pairs.discrete(x, x_next, **needed(loss, x, x_next, method), lr=lr)
        limit = pairs.continuous(loss.grad(x + at * (x_next - x)), update)
        np.testing.assert_allclose(pair.update(), limit.update(), rtol=1e-9)  # the other vector is the same
        found.append(np.linalg.norm(pair.gradient() - limit.gradient()))
        moved = np.abs(x_next - x)
        # u |L|/|d|; the method that divides by one element of d after another has the least of them
        shortest = moved.min() if method == "itoh-abe" else np.linalg.norm(moved)
        floors.append(2.0**-52 * (abs(loss.value(x)) / shortest + np.linalg.norm(limit.gradient())))
    return np.array(found), np.array(floors)


def slope(found: np.ndarray, floors: np.ndarray) -> float:
    """Least squares in logarithms, of what is well above the rounding floor."""
    above = found > 200 * floors
    assert above.sum() >= 7
    return float(np.polyfit(np.log(RATES[above]), np.log(found[above]), 1)[0])


def problem(name: str, n: int, seed: int) -> tuple[Loss, np.ndarray, np.ndarray]:
    loss, (x, noise) = loss_of(name, n), np.random.default_rng(seed).standard_normal((2, n))
    g = loss.grad(x)
    update = noise / np.linalg.norm(noise) - g / np.linalg.norm(g)
    return loss, x, 0.5 * update / np.linalg.norm(update)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("name", "n", "method"), GRID)
def test_order_at_the_midpoint(name: str, n: int, method: str, seed: int) -> None:
    loss, x, update = problem(name, n, seed)
    found, floors = distances(loss, x, update, method, 0.5)
    if (name, method) in EXACT:
        assert (found <= 200 * floors).all()
    else:
        assert slope(found, floors) == pytest.approx(ORDERS[method], abs=0.15)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("name", "n", "method"), GRID)
def test_order_one_at_the_start(name: str, n: int, method: str, seed: int) -> None:
    loss, x, update = problem(name, n, seed)
    assert slope(*distances(loss, x, update, method, 0.0)) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", LOSSES)
def test_the_angle_tends_to_that_of_the_continuous_pair(name: str, method: str) -> None:
    loss, x, update = problem(name, 10, 4)
    limit = pairs.continuous(loss.grad(x), update).align().angle
    errors = []
    for lr in RATES:
        x_next = x + lr * update
        pair = pairs.discrete(x, x_next, **needed(loss, x, x_next, method), lr=lr)
        errors.append(abs(pair.align().angle - limit))
    assert slope(np.array(errors), np.full(len(RATES), 1e-12)) == pytest.approx(1, abs=0.2)
