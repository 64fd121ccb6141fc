"""Clarke subdifferentials: the least element and the best-conditioned one, against optimality and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import steepest
from steepest.pairs.clarke import clarke


def simplex_grid(k: int, m: int) -> np.ndarray:
    """All weights of k pieces in steps of 1/m."""
    cuts = itertools.combinations(range(m + k - 1), k - 1)
    return np.array([np.diff([-1, *c, m + k - 1]) - 1 for c in cuts]) / m


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(1, 30), st.integers(0, 10**6), st.floats(0.0, 2.0))
def test_the_least_element_is_the_projection_of_zero(k: int, n: int, seed: int, shift: float) -> None:
    v = np.random.default_rng(seed).standard_normal((k, n)) + shift
    pair = clarke(v, -v.mean(axis=0), element="min-norm")
    w = np.array(pair.weights)
    v0 = w @ v
    longest = np.linalg.norm(v, axis=1).max()
    assert w.min() >= 0
    assert abs(w.sum() - 1) <= 1e-14
    assert (v @ v0).min() >= v0 @ v0 - 1e-14 * longest**2  # v.v0 >= |v0|^2: the projection, by its definition
    assert abs(pair.min_norm - np.linalg.norm(v0)) <= 1e-13 * longest
    assert pair.min_norm_error <= 1e-14
    if pair.strong:
        assert not pair.stationary


@pytest.mark.parametrize("seed", range(8))
def test_both_elements_against_a_grid_on_the_simplex(seed: int) -> None:
    rng = np.random.default_rng(seed)
    v, g = rng.standard_normal((4, 3)) + 0.4, rng.standard_normal(3)
    grid = simplex_grid(4, 40)
    elements = grid @ v
    least = clarke(v, g, element="min-norm")
    shortest = np.linalg.norm(elements, axis=1).min()
    spacing = np.linalg.norm(v, axis=1).max() * 4 / 40
    assert shortest - spacing <= least.min_norm <= shortest + 1e-14
    cosines = -(elements @ g) / (np.linalg.norm(elements, axis=1) * np.linalg.norm(g))
    best = clarke(v, g, element="best-conditioned")
    assert best.weak == ((v @ g).min() < 0)
    if best.weak:
        found = best.align().cosine
        assert found >= cosines.max() - 1e-12
        # and it is the cosine of that element, not a bound on it
        u = np.array(best.weights) @ v
        assert found == pytest.approx(-(u @ g) / (np.linalg.norm(u) * np.linalg.norm(g)), abs=1e-12)


def test_nearly_opposite_and_nearly_equal_pieces() -> None:
    pair = clarke(np.array([[1.0, 1e-9], [-1.0, 1e-9]]), np.array([0.0, -1.0]))
    assert pair.min_norm == pytest.approx(1e-9, rel=1e-12)
    assert pair.strong
    assert not pair.stationary
    assert pair.align().psi_floor == pytest.approx(2.0**-52 / 1e-9, rel=1e-6)  # the pieces cancel to 1e-9
    v = np.array([[1.0, 1e-9, 1.0], [1.0, -1e-9, 1.0 + 2e-9], [1.0, 0.0, 1.0 + 1e-9]])
    pair = clarke(v, np.array([-1.0, 0.0, -1.0]))
    v0 = np.array(pair.weights) @ v
    assert ((v - v0) @ v0).min() >= -1e-16
    assert pair.min_norm_error < 1e-14


def test_a_hull_that_passes_zero_at_a_distance_of_1e_minus_9() -> None:
    """The third piece lowers the distance by multipliers of 1e-18: beyond what double precision sees."""
    v = np.array([[1.0, 1e-9], [-1.0, 1e-9], [3.0, 5e-10]])
    pair = clarke(v, np.array([0.0, -1.0]))
    height = 0.75 * 1e-9 + 0.25 * 5e-10  # of the segment from the second piece to the third, above zero
    assert pair.min_norm == pytest.approx(height, rel=1e-12)
    assert pair.weights == pytest.approx([0.0, 0.75, 0.25], rel=1e-9)


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
def test_scale_of_the_pieces_does_not_matter(scale: float) -> None:
    v, g = np.array([[2.0, 1.0], [-1.0, 1.0], [0.5, 3.0]]), np.array([0.3, -1.0])
    plain, far = clarke(v, g), clarke(scale * v, g)
    assert far.weights == pytest.approx(plain.weights, abs=1e-13)
    assert far.min_norm == pytest.approx(scale * plain.min_norm, rel=1e-13)
    assert far.align().angle == pytest.approx(plain.align().angle, rel=1e-12)


def test_hinge_at_the_kink() -> None:
    """max(0, 1 - w.x) at w.x = 1: the subdifferential is [-x, 0], so that zero belongs to it."""
    x = np.array([3.0, 4.0])
    pair = clarke([-x, np.zeros(2)], np.array([1.0, 0.5]))
    assert pair.stationary
    assert pair.min_norm == 0.0
    assert not pair.strong
    assert pair.weak
    assert pair.element == "best-conditioned"
    assert pair.weights == (1.0, 0.0)
    assert pair.metric() @ np.array([1.0, 0.5]) == pytest.approx(x)


def test_sum_of_absolute_values_at_kinks() -> None:
    """sum |x_i| with two elements at zero: all signs there; the least element is zero there."""
    signs = [np.array([a, b, 1.0, -1.0]) for a in (-1.0, 1.0) for b in (-1.0, 1.0)]
    pair = clarke(np.array(signs), np.array([0.0, 0.0, -1.0, 2.0]))
    assert pair.element == "min-norm"
    assert pair.strong
    assert pair.gradient() == pytest.approx([0.0, 0.0, 1.0, -1.0], abs=1e-15)
    assert pair.min_norm == pytest.approx(math.sqrt(2.0))
    assert pair.metric().solve(-pair.gradient()) == pytest.approx(pair.update())


def test_steepest_descent_lowers_a_maximum_of_affine_functions() -> None:
    rng = np.random.default_rng(3)
    slopes = rng.standard_normal((6, 10)) + 0.3
    x = np.zeros(10)  # all six meet here

    def loss(z: np.ndarray) -> float:
        return float((slopes @ z).max())

    least = clarke(slopes, -np.ones(10), element="min-norm")
    v0 = least.gradient()
    pair = clarke(slopes, -v0)
    assert pair.strong
    assert pair.align().angle_degrees == pytest.approx(0.0, abs=1e-6)
    # the slope of the loss along -v0, from losses: exact for a piecewise linear one
    assert loss(x - v0) - loss(x) == pytest.approx(pair.directional_derivative, rel=1e-12)
    assert pair.directional_derivative == pytest.approx(-(least.min_norm**2), rel=1e-12)


def test_relu_kink_where_the_least_element_fails_and_another_does_not() -> None:
    """relu(x) + 0.1 x^2-like pieces: v0 = 0.1 e2 has no part along the update, another element has."""
    v = np.array([[1.0, 0.1], [0.0, 0.1]])
    g = np.array([-1.0, 1.0])
    pair = clarke(v, g)
    assert np.array(clarke(v, g, element="min-norm").weights) @ v @ g > 0
    assert pair.element == "best-conditioned"
    assert pair.weak
    assert not pair.strong
    assert pair.align().status == "ok"
    assert pair.metric() @ g == pytest.approx(-pair.gradient())
    with pytest.raises(steepest.NotDescentError):
        clarke(v, g, element="min-norm").metric()


def test_a_step_that_no_element_descends_along() -> None:
    v = np.array([[1.0, 2.0], [2.0, 1.0]])
    for element in ("auto", "min-norm", "best-conditioned"):
        pair = clarke(v, np.array([1.0, 1.0]), element=element)
        assert not pair.weak
        assert not pair.strong
        assert pair.align().status == "ascent"
        with pytest.raises(steepest.NotDescentError, match="no metric exists"):
            pair.metric()
    flat = clarke(v, np.array([0.0, 0.0]))
    assert flat.align().status == "zero_update"
    assert not flat.weak
    orthogonal = clarke(np.array([[1.0, 0.0], [2.0, 0.0]]), np.array([0.0, 1.0]))
    assert not orthogonal.weak
    with pytest.raises(steepest.NotDescentError):
        orthogonal.metric()


def test_one_piece_is_the_continuous_pair() -> None:
    v, g = np.array([1.0, 2.0, 3.0]), np.array([-1.0, 0.0, -2.0])
    assert clarke([v], g).align() == steepest.pairs.continuous(v, g).align()
    assert clarke([1.0], -1.0).strong  # one parameter
    empty = clarke([np.zeros(2)], np.ones(2))
    assert empty.stationary
    assert empty.align().status == "zero_grad"


def test_mappings_stacks_and_float32() -> None:
    rng = np.random.default_rng(0)
    stacked = {"a": rng.standard_normal((5, 2, 3)).astype("f4") + 1, "b": rng.standard_normal((5, 4)).astype("f4") + 1}
    listed = [{"b": stacked["b"][i], "a": stacked["a"][i]} for i in range(5)]
    update = {"a": -stacked["a"].mean(0), "b": -stacked["b"].mean(0)}
    one, two = clarke(stacked, update), clarke(listed, update)
    assert one.weights == two.weights
    assert repr(one.align()) == repr(two.align())
    assert one.pair.dtype == "float32"
    assert one.gradient()["a"].dtype == np.float32
    assert set(one.metric() @ update) == {"a", "b"}
    array = np.hstack([stacked["a"].reshape(5, 6), stacked["b"]])
    assert clarke(array, np.hstack([update["a"].ravel(), update["b"]])).weights == one.weights


def test_not_finite_and_bad_input() -> None:
    bad = clarke([np.array([1.0, math.nan]), np.ones(2)], np.ones(2))
    assert bad.align().status == "nonfinite"
    assert math.isnan(bad.min_norm)
    assert not bad.weak
    with pytest.raises(steepest.NotDescentError):
        bad.metric()
    with pytest.raises(ValueError, match="at least one piece"):
        clarke([], np.ones(2))
    with pytest.raises(ValueError, match=r"pieces\[1\] of the same shape"):
        clarke([np.ones(2), np.ones(3)], np.ones(2))
    with pytest.raises(ValueError, match="element"):
        clarke([np.ones(2)], np.ones(2), element="least")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="first axis"):
        clarke({"a": np.ones((2, 3)), "b": np.ones((3, 3))}, {"a": np.ones(3), "b": np.ones(3)})
    assert clarke([np.ones(2)], -np.ones(2)).to_dict()["weights"] == [1.0]
