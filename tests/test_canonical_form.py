"""Every metric has the form of eq (6): the constructive proof, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
import steepest
from cases import pair


def random_spd(n: int, log_cond: float, rng: np.random.Generator) -> np.ndarray:
    q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    return (q * np.geomspace(10.0**-log_cond, 1.0, n)) @ q.T


@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.integers(1, 12), st.floats(0, 8), st.integers(0, 10**6), st.integers(-400, 400), st.integers(-400, 400))
def test_round_trip(n: int, log_cond: float, seed: int, matrix_power: int, update_power: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = random_spd(n, log_cond, rng)
    matrix = np.ldexp(matrix + matrix.T, matrix_power - 1)
    update = np.ldexp(rng.standard_normal(n), update_power)
    form = steepest.canonical_form(matrix, update)
    assert form.U.shape == (n, n - 1)
    assert form.residual == 0.0
    y = -np.ldexp(form.grad, -matrix_power - update_power)
    g, u = np.ldexp(update, -update_power), form.U * 2.0 ** (-matrix_power / 2)
    unscaled = np.ldexp(matrix, -matrix_power)
    np.testing.assert_allclose(y, unscaled @ g, rtol=0, atol=1e-14 * n)
    np.testing.assert_allclose(np.outer(y, y) / (y @ g) + u @ u.T, unscaled, rtol=0, atol=1e-13 * n)
    np.testing.assert_allclose(g @ u, 0.0, rtol=0, atol=1e-14 * n * max(1, np.linalg.norm(g)))
    gram = u.T @ u
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), rtol=0, atol=1e-13 * n)
    assert np.all(np.diff(np.diag(gram)) >= -1e-13)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_of_a_metric_and_back(n: int) -> None:
    grad, update = pair(0.9, n=n)
    metric = steepest.metric(grad, update, alpha=2.0)
    form = steepest.canonical_form(metric.to_dense(), update, grad)
    assert form.residual < 1e-14
    np.testing.assert_allclose(form.grad, grad, rtol=0, atol=1e-14)
    back = steepest.metric(grad, update, complement=form.U)
    np.testing.assert_allclose(back.to_dense(), metric.to_dense(), rtol=0, atol=1e-14)
    # det M = (y.g)/(g.g) det S, and U U^T has the nonzero eigenvalues of S
    s = np.linalg.eigvalsh(form.U.T @ form.U)
    determinant = -(grad @ update) / (update @ update) * np.prod(s)
    assert np.log(determinant) == pytest.approx(metric.logdet(), abs=1e-12)


def test_schur_complement_is_that_of_the_inverse() -> None:
    """S = (Q^T M^-1 Q)^-1, the other formula of section 2."""
    rng = np.random.default_rng(0)
    matrix, update = random_spd(6, 2.0, rng), rng.standard_normal(6)
    u = steepest.canonical_form(matrix, update).U
    q = np.linalg.svd(update[None])[2][1:].T
    np.testing.assert_allclose(q.T @ u @ u.T @ q, np.linalg.inv(q.T @ np.linalg.inv(matrix) @ q), rtol=0, atol=1e-13)


def test_integers_and_lists_are_numbers_here() -> None:
    form = steepest.canonical_form([[2, 0], [0, 3]], [1, 0])
    np.testing.assert_allclose(form.U @ form.U.T, [[0, 0], [0, 3]], atol=1e-15)
    one = steepest.canonical_form([[4.0]], [0.5], [-2.0])
    assert one.U.shape == (1, 0)
    assert one.grad == [-2.0]


IDENTITY = np.eye(3)
G = np.array([1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("matrix", "update", "grad", "error", "match"),
    [
        (IDENTITY[:2], G, None, ValueError, "square"),
        (IDENTITY[0], G, None, ValueError, "square"),
        (IDENTITY, G[:2], None, ValueError, r"update of shape \(3,\)"),
        (IDENTITY, G[None], None, ValueError, "update of shape"),
        (IDENTITY, G, G[:2], ValueError, "grad of shape"),
        (IDENTITY * np.nan, G, None, ValueError, "finite"),
        (IDENTITY, G * np.inf, None, ValueError, "finite"),
        (IDENTITY, 0 * G, None, ValueError, "other than zero"),
        (IDENTITY + np.triu(np.ones((3, 3)), 1), G, None, ValueError, "symmetric"),
        (np.diag([1.0, 1.0, -1.0]), G, None, ValueError, "positive definite"),
        (np.diag([1.0, -0.1, 1.0]), G, None, ValueError, "positive definite"),
        (np.diag([1.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0]), None, ValueError, "positive definite"),
        (np.zeros((3, 3)), G, None, ValueError, "positive definite"),
        (IDENTITY, G, -G * (1 + 1e-6), ValueError, "maps update to -grad"),
        (IDENTITY, G, G, ValueError, "maps update to -grad"),
        (IDENTITY, G, 0 * G, ValueError, "maps update to -grad"),
        (IDENTITY, G, G * np.nan, ValueError, "maps update to -grad"),
        (IDENTITY * 1j, G, None, TypeError, "real numbers"),
        (IDENTITY, G * 1j, None, TypeError, "real numbers"),
        (IDENTITY, G, G * 1j, TypeError, "real numbers"),
        ("abc", G, None, TypeError, "real numbers"),
        (None, G, None, TypeError, "real numbers"),
        (IDENTITY > 0, G, None, TypeError, "real numbers"),
    ],
)
def test_refusals(matrix: Any, update: Any, grad: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        steepest.canonical_form(matrix, update, grad)


@pytest.mark.parametrize("seed", range(20))
def test_singular_matrices_are_refused_whatever_rounding_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    half = rng.standard_normal((5, 3))
    with pytest.raises(ValueError, match="positive definite"):
        steepest.canonical_form(half @ half.T, rng.standard_normal(5))


def test_tolerance() -> None:
    grad = -G * (1 + 1e-6)
    form = steepest.canonical_form(IDENTITY, G, grad, rtol=1e-5)
    assert form.residual == pytest.approx(1e-6, rel=1e-5)


def test_against_the_family() -> None:
    """The complement of M(alpha) is alpha (I - gh gh^T): all its eigenvalues are alpha."""
    grad, update = pair(1.1, n=6)
    form = steepest.canonical_form(oracles.dense_metric(grad, update, 0.7), update)
    np.testing.assert_allclose(np.linalg.eigvalsh(form.U.T @ form.U), 0.7, rtol=1e-13)
