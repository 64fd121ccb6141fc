"""The discrete gradient of Itoh and Abe for quadratic losses, from the Hessian instead of losses."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from steepest import pairs


def problem(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A symmetric, indefinite and partly empty Hessian, a linear term, both ends of a step."""
    rng = np.random.default_rng(seed)
    h = rng.standard_normal((n, n)) * (rng.random((n, n)) < 0.6)
    return h + h.T, *rng.standard_normal((3, n))


def of_hessian(h: np.ndarray, b: np.ndarray, x: Any, x_next: Any, hessian: Any, **options: Any) -> pairs.DescentPair:
    losses = {"loss": 0.5 * x @ h @ x - b @ x, "loss_next": 0.5 * x_next @ h @ x_next - b @ x_next}
    return pairs.discrete(x, x_next, **losses, grad=h @ x - b, hessian=hessian, method="itoh-abe", **options)


def quotients(h: np.ndarray, b: np.ndarray, x: np.ndarray, x_next: np.ndarray) -> np.ndarray:
    """By definition, differences of losses in exact arithmetic; for d_i = 0 the partial derivative."""
    matrix = [[Fraction(c) for c in row] for row in h.tolist()]
    linear, point, end = ([Fraction(c) for c in v.tolist()] for v in (b, x, x_next))

    def slope(i: int) -> Fraction:
        return sum((c * p for c, p in zip(matrix[i], point, strict=True)), Fraction(0)) - linear[i]

    def loss() -> Fraction:
        return sum(((slope(i) - linear[i]) * p for i, p in enumerate(point)), Fraction(0)) / 2

    found = []
    for i, target in enumerate(end):
        before, start = loss(), point[i]
        if target == start:
            found.append(float(slope(i)))
        else:
            point[i] = target
            found.append(float((loss() - before) / (target - start)))
    return np.array(found)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from([1.0, 1e-6, 1e-12]))
def test_by_definition(n: int, seed: int, still: bool, length: float) -> None:
    """Also for steps so short that differences of the losses would have lost all digits."""
    h, b, x, x_next = problem(n, seed)
    x_next = x + length * x_next
    if still and n > 1:
        x_next[seed % n] = x[seed % n]
    exact = quotients(h, b, x, x_next)
    scale = np.abs(h) @ (np.abs(x) + np.abs(x_next)) + np.abs(b)
    for hessian in (h, scipy.sparse.csr_array(h), scipy.sparse.coo_matrix(h), np.tril(h)):
        pair = of_hessian(h, b, x, x_next, hessian)
        assert (np.abs(pair.gradient() - exact) <= 1e-14 * scale).all()
        assert pair.method == "itoh-abe"
        assert abs(pair.defect) <= 1e-13 * n * (scale @ np.abs(x_next - x) + scale @ np.abs(x))


@pytest.mark.parametrize("n", [1, 2, 3, 40])
def test_as_the_evaluation_of_losses(n: int) -> None:
    h, b, x, x_next = problem(n, n)
    pair = of_hessian(h, b, x, x_next, h)
    evaluated = pairs.discrete(
        x,
        x_next,
        loss=0.5 * x @ h @ x - b @ x,
        loss_next=0.5 * x_next @ h @ x_next - b @ x_next,
        loss_fn=lambda z: 0.5 * np.einsum("...i,ij,...j", z, h, z) - z @ b,
        vectorized=True,
        method="itoh-abe",
    )
    d = np.abs(x_next - x)
    np.testing.assert_allclose(pair.gradient() * d, evaluated.gradient() * d, rtol=0, atol=1e-12 * n)
    if pair.loss_change < 0:
        np.testing.assert_allclose(x + pair.metric().solve(-pair.gradient()), x_next, rtol=0, atol=1e-10)


def test_diagonals_and_mappings() -> None:
    rng = np.random.default_rng(5)
    x, x_next, diagonal = rng.standard_normal((3, 6))
    h, b = np.diag(diagonal), np.zeros(6)
    whole = of_hessian(h, b, x, x_next, h).gradient()
    np.testing.assert_allclose(whole, diagonal * (x + x_next) / 2, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(of_hessian(h, b, x, x_next, diagonal).gradient(), whole, rtol=1e-15)

    def cut(z: np.ndarray) -> dict[str, np.ndarray]:
        return {"w": z[:4].reshape(2, 2), "b": z[4:]}

    losses = {"loss": 0.5 * x @ h @ x, "loss_next": 0.5 * x_next @ h @ x_next, "method": "itoh-abe"}
    for hessian in (dict(reversed(cut(diagonal).items())), diagonal, h, scipy.sparse.csr_array(h)):
        pair = pairs.discrete(cut(x), cut(x_next), grad=cut(diagonal * x), hessian=hessian, **losses)
        found = pair.gradient()
        assert list(found) == ["w", "b"]
        np.testing.assert_allclose(np.concatenate([v.ravel() for v in found.values()]), whole, rtol=1e-14)
    # a diagonal of the shape of the parameters is none of shape (n, n), unless n = 1
    square = pairs.discrete(
        x[:4].reshape(2, 2),
        x_next[:4].reshape(2, 2),
        loss=0.0,
        loss_next=1.0,
        grad=(diagonal * x)[:4].reshape(2, 2),
        hessian=diagonal[:4].reshape(2, 2),
        method="itoh-abe",
    )
    np.testing.assert_allclose(square.gradient().ravel(), whole[:4], rtol=1e-14)
    one = pairs.discrete([[1.0]], [[2.0]], loss=0.0, loss_next=6.0, grad=[[4.0]], hessian=[[4.0]], method="itoh-abe")
    assert np.asarray(one.gradient()).item() == 6.0


def test_types() -> None:
    h, b, x, x_next = problem(7, 2)
    single = of_hessian(*(z.astype(np.float32) for z in (h, b, x, x_next, h)))
    assert single.gradient().dtype == np.float32
    assert single.dtype == "float32"
    np.testing.assert_allclose(single.gradient(), of_hessian(h, b, x, x_next, h).gradient(), rtol=0, atol=1e-5)


def test_memory_of_many_parameters_is_linear() -> None:
    n = 200_000
    x, x_next = np.random.default_rng(0).standard_normal((2, n))
    h = scipy.sparse.diags_array([np.full(n, 3.0), -np.ones(n - 1), -np.ones(n - 1)], offsets=[0, 1, -1]).tocsr()
    losses = {"loss": 0.5 * x @ (h @ x), "loss_next": 0.5 * x_next @ (h @ x_next), "grad": h @ x, "method": "itoh-abe"}
    tracemalloc.start()
    pair = pairs.discrete(x, x_next, hessian=h, **losses)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * n
    moved = x.copy()
    moved[:1000] = x_next[:1000]
    # the difference quotient of element 1000, whose left neighbour has moved
    expected = 3.0 * (x[1000] + x_next[1000]) / 2 - moved[999] - moved[1001]
    assert pair.gradient()[1000] == pytest.approx(expected, rel=1e-12)
    assert abs(pair.defect) <= 1e-12 * (losses["loss"] + losses["loss_next"])


def test_a_loss_that_is_not_quadratic_shows_in_the_defect() -> None:
    x, x_next = np.array([1.0, 2.0]), np.array([0.5, 1.0])
    pair = pairs.discrete(x, x_next, loss=17.0, loss_next=1.0625, grad=4 * x**3, hessian=12 * x**2, method="itoh-abe")
    assert pair.defect == pytest.approx((4 * x**3 + 6 * x**2 * (x_next - x)) @ (x_next - x) + 15.9375)
    assert abs(pair.defect) > 1.0


def test_bad_input() -> None:
    h, b, x, x_next = problem(3, 0)
    with pytest.raises(ValueError, match=r"a matrix of shape \(3, 3\)"):
        of_hessian(h, b, x, x_next, h[:2])
    with pytest.raises(ValueError, match=r"a diagonal of shape \(3,\)"):
        of_hessian(h, b, x, x_next, h[0, :2])
    with pytest.raises(TypeError, match="hessian"):
        of_hessian(h, b, x, x_next, lambda v: v)
    with pytest.raises(ValueError, match="got both"):
        of_hessian(h, b, x, x_next, h, loss_fn=lambda z: 0.0)
    with pytest.raises(ValueError, match="expected grad"):
        pairs.discrete(x, x_next, loss=1.0, loss_next=0.0, hessian=h, method="itoh-abe")
    with pytest.raises(ValueError, match=r"loss_fn .* or hessian"):
        pairs.discrete(x, x_next, loss=1.0, loss_next=0.0, method="itoh-abe")
    bad = of_hessian(h, b, x, x_next, np.where(np.eye(3, dtype=bool), np.nan, h))
    assert bad.align().status == "nonfinite"
