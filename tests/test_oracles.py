"""The oracles agree with each other by independent routes, and `pair` gives what it promises."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import scipy.linalg

import oracles
from oracles import mp

DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]


def largest(values: Any) -> float:
    return float(max(abs(x) for x in values))


@pytest.fixture(scope="module")
def member() -> oracles.Member:
    return oracles.Member(*oracles.pair(6, 1.1, rho=3.0, rng=1), alpha=0.7)


def test_member_is_a_metric_of_the_pair(member: oracles.Member) -> None:
    image = member.dense() * mp.matrix(member.g)
    assert largest(image - mp.matrix(member.y)) < 1e-90


def test_eigenvalues_of_the_plane_and_of_the_dense_matrix(member: oracles.Member) -> None:
    dense = mp.eigsy(member.dense(), eigvals_only=True)
    assert largest(a - b for a, b in zip(dense, member.eigenvalues(), strict=True)) < 1e-90


def test_function_through_the_span_and_of_the_dense_matrix(member: oracles.Member) -> None:
    x = np.arange(6.0) - 2.0
    for f in (mp.log, mp.sqrt, lambda t: 1 / t):
        dense = member.function(f) * mp.matrix(oracles.exact(x))
        assert largest(a - b for a, b in zip(dense, member.apply(f, x), strict=True)) < 1e-90


def test_dense_numpy_matrix(member: oracles.Member) -> None:
    grad, update = oracles.pair(6, 1.1, rho=3.0, rng=1)
    dense = oracles.dense_metric(grad, update, 0.7)
    np.testing.assert_allclose(dense, np.array(member.dense().tolist(), float), rtol=0, atol=1e-14)
    log = oracles.dense_function(dense, np.log)
    np.testing.assert_allclose(log, np.array(member.function(mp.log).tolist(), float), rtol=0, atol=1e-13)
    base = np.arange(1.0, 7.0)
    np.testing.assert_allclose(oracles.dense_metric(grad, update, base=base) @ update, -grad, atol=1e-14)


@pytest.mark.parametrize("kind", ["affine-invariant", "kl", "stein", "bures"])
def test_distance_through_the_span_and_of_the_dense_matrices(kind: str) -> None:
    first = oracles.Member(*oracles.pair(6, 1.1, rho=3.0, rng=1), alpha=0.7)
    second = oracles.Member(*oracles.pair(6, 0.4, rho=1.5, rng=2))
    plane, bulk = oracles.distance_parts(first, second, kind)
    dense = oracles.matrix_distance(first.dense(), second.dense(), kind)
    assert abs(plane + bulk - dense) < 1e-85
    # SciPy's own routes, in double.
    a, b = (np.array(m.dense().tolist(), float) for m in (first, second))
    if kind == "affine-invariant":
        expected = np.linalg.norm(np.log(scipy.linalg.eigh(b, a, eigvals_only=True)))
    elif kind == "kl":
        expected = (np.trace(np.linalg.solve(b, a)) - 6 + np.linalg.slogdet(b)[1] - np.linalg.slogdet(a)[1]) / 2
    elif kind == "stein":
        expected = np.linalg.slogdet((a + b) / 2)[1] - (np.linalg.slogdet(a)[1] + np.linalg.slogdet(b)[1]) / 2
    else:
        root = scipy.linalg.sqrtm(a)
        expected = math.sqrt(np.trace(a + b - 2 * scipy.linalg.sqrtm(root @ b @ root).real))
    assert float(oracles.distance(first, second, kind)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["affine-invariant", "kl", "stein", "bures"])
def test_distance_of_a_member_to_itself_is_zero(kind: str) -> None:
    member = oracles.Member(*oracles.pair(40, 1.1, rng=1))
    assert abs(oracles.distance(member, member, kind)) < 1e-45


def test_distance_of_a_multiple_grows_with_the_root_of_the_dimension() -> None:
    grad, update = oracles.pair(100, 1.0, rng=3)
    got = oracles.distance(oracles.Member(grad, update), oracles.Member(2 * grad, update))
    assert float(got) == pytest.approx(10 * math.log(2), rel=1e-14)


@pytest.mark.parametrize("psi", [1e-12, 1e-9, 1e-3, 0.3, 1.2, math.pi / 2 - 1e-3, math.pi / 2 - 1e-9])
@pytest.mark.parametrize("n", [2, 3, 100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_pair_meets_the_angle(psi: float, n: int, dtype: Any) -> None:
    eps = float(ml_dtypes.finfo(dtype).eps)
    distance = min(mp.mpf(psi), mp.pi / 2 - mp.mpf(psi))
    if dtype is np.float16 and distance < 1e-4:
        with pytest.raises(ValueError, match="do not fit float16"):
            oracles.pair(n, psi, rng=0, dtype=dtype)
        return
    for disjoint in (None, True):
        grad, update = oracles.pair(n, psi, rho=0.3, rng=0, dtype=dtype, disjoint=disjoint)
        assert grad.dtype == update.dtype == np.dtype(dtype)
        member = oracles.Member(grad, update)
        tolerance = 4 * eps if disjoint else max(4 * eps, 1e-3)
        assert abs(member.angle - mp.mpf(psi)) < tolerance * distance
        assert float(member.rho) == pytest.approx(0.3, rel=2 * math.sqrt(eps))


@pytest.mark.parametrize("dtype", DTYPES)
def test_pair_at_angle_zero_is_parallel(dtype: Any) -> None:
    for n in (1, 2, 50):
        assert oracles.Member(*oracles.pair(n, 0.0, rho=0.3, rng=0, dtype=dtype)).angle < 1e-45


@pytest.mark.parametrize(("rho", "scale"), [(1e150, 1.0), (1e-150, 1.0), (1.0, 1e250), (1.0, 1e-250)])
def test_pair_at_extreme_scales(rho: float, scale: float) -> None:
    member = oracles.Member(*oracles.pair(33, 1e-9, rho, scale, rng=0))
    assert float(member.angle) == pytest.approx(1e-9, rel=1e-6)
    assert float(member.rho / mp.mpf(rho)) == pytest.approx(1.0, rel=1e-12)
    joint = mp.sqrt(mp.sqrt(member.yy * member.gg)) / mp.mpf(scale)
    assert float(joint) == pytest.approx(1.0, rel=1e-12)


def test_pair_is_reproducible_and_refuses_what_it_cannot_give() -> None:
    np.testing.assert_array_equal(oracles.pair(5, 0.3, rng=7), oracles.pair(5, 0.3, rng=7))
    with pytest.raises(ValueError, match="expected an angle"):
        oracles.pair(5, math.pi / 2)
    with pytest.raises(ValueError, match="expected n >= 2"):
        oracles.pair(1, 0.3)
    with pytest.raises(ValueError, match="do not fit float32"):
        oracles.pair(5, 0.3, joint_scale=1e60, dtype=np.float32)
    with pytest.raises(ValueError, match="no metric"):
        oracles.Member([1.0, 0.0], [0.0, 1.0])
