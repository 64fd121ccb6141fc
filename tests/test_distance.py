"""Distances against multiple-precision matrices, and the accuracy that they claim."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from scipy.sparse.linalg import aslinearoperator

import oracles
import steepest
from cases import FORMS, SIZE, pair, spd
from oracles import Member, mp

KINDS = ["affine-invariant", "kl", "stein", "bures"]


def check(d: Any, expected: Any, rtol: float = 1e-12) -> None:
    """The value to a relative accuracy or within its error estimate, which must not be idle either."""
    error = float(abs(mp.mpf(d.value) - expected))
    assert error <= d.error + 2.0**-50 * abs(d.value)
    assert error <= rtol * float(abs(expected)) or error <= 1e-14


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [2, 3, 4, 9])
@pytest.mark.parametrize("psi", [(0.0, 0.0), (0.7, 0.2), (1.2, 1.5), (0.0, 1.0)])
def test_against_dense_multiple_precision(psi: tuple[float, float], n: int, kind: str) -> None:
    for seed, (alpha, other) in enumerate([(None, None), (0.3, None), (2.0, 5.0)]):
        first, second = pair(psi[0], n=n, seed=seed), oracles.pair(n, psi[1], 3.0, rng=100 + seed)
        m1 = steepest.metric(*first, alpha="optimal" if alpha is None else alpha)
        m2 = steepest.metric(*second, alpha="optimal" if other is None else other)
        exact1, exact2 = Member(*first, m1.alpha), Member(*second, m2.alpha)
        square = kind in ("affine-invariant", "bures")
        expected = oracles.matrix_distance(exact1.dense(), exact2.dense(), kind)
        d = steepest.distance(m1, m2, kind)
        check(d, mp.sqrt(expected) if square else expected, 1e-10)
        assert float(d) == d.value
        total = math.hypot(d.plane, d.bulk) if square else d.plane + d.bulk
        assert d.value == pytest.approx(total, rel=1e-15)
        plane, bulk = oracles.distance_parts(exact1, exact2, kind)
        if square:
            plane, bulk = mp.sqrt(max(plane, 0)), mp.sqrt(bulk)
        assert d.plane == pytest.approx(float(plane), rel=1e-8, abs=1e-9)
        assert d.bulk == pytest.approx(float(bulk), rel=1e-8, abs=1e-9)


def embedded(*vectors: np.ndarray) -> list[list[Any]]:
    """The same inner products between vectors of as few dimensions as there are vectors, for integer-valued arrays."""
    whole = [np.array([int(x) for x in v], object) for v in vectors]
    lower = mp.cholesky(mp.matrix([[mp.mpf(int(x @ z)) for z in whole] for x in whole]))
    return [[lower[i, j] for j in range(len(whole))] for i in range(len(whole))]


def check_embedded(vectors: list[np.ndarray], rtol: float) -> None:
    """All distances between the optimal metrics of two pairs of integer-valued vectors, of any size."""
    n = vectors[0].size
    y1, g1, y2, g2 = embedded(*vectors)
    exact1, exact2 = Member(y1, g1), Member(y2, g2)
    m1, m2 = steepest.metric(*vectors[:2]), steepest.metric(*vectors[2:])
    for kind in KINDS:
        plane = oracles.matrix_distance(exact1.dense(), exact2.dense(), kind)
        bulk = (n - 4) * oracles.matrix_distance(mp.matrix([[exact1.alpha]]), mp.matrix([[exact2.alpha]]), kind)
        expected = mp.sqrt(plane + bulk) if kind in ("affine-invariant", "bures") else plane + bulk
        check(steepest.distance(m1, m2, kind), expected, rtol)


@pytest.mark.parametrize("n", [1000, 100_000])
def test_large_sizes(n: int) -> None:
    rng = np.random.default_rng(n)
    update, other, noise, more = np.rint(2.0**20 * rng.standard_normal((4, n)))
    check_embedded([other - 2 * update, update, noise - 3 * update, update + more], 1e-11)


@pytest.mark.parametrize("step", [1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("psi", [0.3, 1.0, 1.4])
def test_large_metrics_close_to_each_other(psi: float, step: float) -> None:
    rng = np.random.default_rng(0)
    update, other, change, more = rng.standard_normal((4, 50_000))
    grad = -math.cos(psi) * update + math.sin(psi) * other
    vectors = [grad, update, grad + step * more, update + step * change]
    check_embedded([np.rint(2.0**40 * v) for v in vectors], 1e-5)


@pytest.mark.parametrize("step", [1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("psi", [0.0, 0.3, 1.0, 1.4, math.pi / 2 - 0.02])
@pytest.mark.parametrize("n", [3, 50])
def test_metrics_close_to_each_other(n: int, psi: float, step: float) -> None:
    """Right to 1e-5 for metrics 1e-7 apart, up to condition numbers of 1e4."""
    grad, update = pair(psi, n=n, seed=4)
    moved = update + step * np.linalg.norm(update) / math.sqrt(n) * np.random.default_rng(n).standard_normal(n)
    for kind in ("affine-invariant", "kl", "stein"):
        d = steepest.distance(steepest.metric(grad, update), steepest.metric(grad, moved), kind)
        expected = oracles.distance(Member(grad, update), Member(grad, moved), kind)
        assert d.value == pytest.approx(float(expected), rel=1e-5)
        assert abs(mp.mpf(d.value) - expected) <= d.error + 2.0**-50 * d.value


@pytest.mark.parametrize("psi", [0.3, 1.0, 1.4])
def test_metrics_a_billionth_apart(psi: float) -> None:
    grad, update = pair(psi, n=50, seed=4)
    moved = update + 1e-9 * np.random.default_rng(0).standard_normal(50)
    d = steepest.distance(steepest.metric(grad, update), steepest.metric(grad, moved))
    expected = oracles.distance(Member(grad, update), Member(grad, moved))
    assert d.value == pytest.approx(float(expected), rel=1e-4)
    assert abs(mp.mpf(d.value) - expected) <= d.error


@pytest.mark.parametrize("n", [1, 2, 3, 1000, 100_000])
@pytest.mark.parametrize("factor", [1e-3, 2.0, 1e5])
def test_multiples(n: int, factor: float) -> None:
    """AIRM(M, c M) = sqrt(n) |log c|, and the sums of n equal terms for the others."""
    grad, update = pair(1.0 if n > 1 else 0.0, n=n) if n < 10_000 else (np.arange(1.0, n + 1), -np.arange(n, 0.0, -1))
    metric = steepest.metric(grad, update)
    multiple = factor * metric
    t = math.log(factor)
    expected = {
        "affine-invariant": math.sqrt(n) * abs(t),
        "kl": n * (math.expm1(-t) + t) / 2,
        "stein": n * math.log(math.cosh(t / 2)),
        "bures": abs(math.sqrt(factor) - 1) * math.sqrt(metric.trace()),
    }
    for kind, value in expected.items():
        d = steepest.distance(metric, multiple, kind)
        assert d.value == pytest.approx(value, rel=1e-9)
        assert abs(d.value - value) <= d.error + 1e-15 * value


@pytest.mark.parametrize("kind", KINDS)
def test_symmetry_and_identity(kind: str) -> None:
    m1, m2 = steepest.metric(*pair(0.9, n=9, seed=1)), steepest.metric(*pair(1.2, n=9, seed=2), alpha=2.0)
    forth, back = steepest.distance(m1, m2, kind).value, steepest.distance(m2, m1, kind).value
    if kind == "kl":
        assert abs(forth - back) > 0.1
        # Their sum is Jeffreys' divergence, tr(M1^-1 M2 + M2^-1 M1)/2 - n.
        a, b = m1.to_dense(), m2.to_dense()
        assert forth + back == pytest.approx(
            (np.trace(np.linalg.solve(a, b)) + np.trace(np.linalg.solve(b, a))) / 2 - 9
        )
    else:
        assert forth == pytest.approx(back, rel=1e-12)
    same = steepest.distance(m1, m1, kind)
    assert 0.0 <= same.value <= same.error
    assert same.value < 1e-7
    again = steepest.distance(m1, m1.copy(), kind)
    assert 0.0 <= again.value <= again.error
    other = steepest.distance(m1.inv(), m2.inv(), "affine-invariant").value
    assert other == pytest.approx(steepest.distance(m1, m2).value, rel=1e-11)


def dense_distance(a: np.ndarray, b: np.ndarray, kind: str) -> float:
    """By textbook formulas in double."""
    if kind == "affine-invariant":
        return float(np.linalg.norm(np.log(scipy.linalg.eigh(b, a, eigvals_only=True))))
    if kind == "kl":
        ratio = np.linalg.solve(b, a)
        return float(np.trace(ratio) - len(a) - np.linalg.slogdet(ratio)[1]) / 2
    if kind == "stein":
        return float(np.linalg.slogdet((a + b) / 2)[1] - np.linalg.slogdet(a)[1] / 2 - np.linalg.slogdet(b)[1] / 2)
    root = oracles.dense_function(a, np.sqrt)
    return math.sqrt(np.trace(a + b) - 2 * np.sqrt(np.linalg.eigvalsh(root @ b @ root)).sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name in FORMS if "log" not in name])
def test_between_all_forms(name: str, kind: str) -> None:
    form = FORMS[name]("matrix")
    reference = steepest.metric(*(v.reshape(2, 3) for v in oracles.pair(SIZE, 1.1, 0.7, rng=50)))
    dense = reference.to_dense()
    for first, second, a, b in (
        (form.metric, reference, form.dense, dense),
        (reference, form.metric, dense, form.dense),
    ):
        d = steepest.distance(first, second, kind)
        expected = dense_distance(a, b, kind)
        assert d.value == pytest.approx(expected, rel=1e-8)
        assert abs(d.value - expected) <= d.error + 1e-11 * (1 + expected)


def test_range() -> None:
    for scale in (1e-200, 1e200):
        for rho in (1e-100, 1e100):
            grad, update = oracles.pair(5, 0.8, rho, scale if rho == 1 else 1.0, rng=1)
            other = oracles.pair(5, 0.4, 2 * rho, scale if rho == 1 else 1.0, rng=2)
            d = steepest.distance(steepest.metric(grad, update), steepest.metric(*other))
            check(d, oracles.distance(Member(grad, update), Member(*other)), 1e-10)
    near, far = (
        steepest.metric(*oracles.pair(5, 0.8, 1e-140, rng=1)),
        steepest.metric(*oracles.pair(5, 0.8, 1e140, rng=2)),
    )
    assert steepest.distance(near, far).value == pytest.approx(math.sqrt(5) * 280 * math.log(10), rel=1e-3)


def test_refusals() -> None:
    m = steepest.metric(*pair(0.8, n=4))
    with pytest.raises(TypeError, match="two metrics"):
        steepest.distance(m, np.eye(4))
    with pytest.raises(TypeError, match="positive definite"):
        steepest.distance(m, m.log())
    with pytest.raises(ValueError, match="same parameters"):
        steepest.distance(m, steepest.metric(*pair(0.8, n=5)))
    with pytest.raises(ValueError, match="bures"):
        steepest.distance(m, m, "hellinger")
    n = 5000
    grad = np.ones(n)
    diagonal = steepest.metric(grad, -grad, base=np.arange(1.0, n + 1))
    with pytest.raises(TypeError, match="scalar base"):
        steepest.distance(diagonal, steepest.metric(grad, -grad))
    grad = np.array([1.0, 2.0])
    held = steepest.metric(grad, np.array([-1.0, 0.0]))
    grad[0] = np.nan
    with pytest.raises(ValueError, match="must not change"):
        steepest.distance(held, steepest.metric(*pair(0.5, n=2)))


def test_record() -> None:
    d = steepest.distance(steepest.metric(*pair(0.8, n=4)), steepest.metric(*pair(0.7, n=4)), "kl")
    assert pickle.loads(pickle.dumps(d)) == d
    assert d.to_dict() == {"value": d.value, "bulk": d.bulk, "plane": d.plane, "error": d.error, "kind": "kl"}


def test_operator_bases() -> None:
    b = spd(6)
    grad, update = pair(0.9, n=6)
    m = steepest.metric(grad, update, base=aslinearoperator(b))
    reference = steepest.metric(grad, update)
    # The BFGS update of B is the metric of the pair nearest to B; any other is further.
    near = dense_distance(m.to_dense(), b, "kl")
    assert near < dense_distance(reference.to_dense(), b, "kl")
    assert steepest.distance(m, reference, "kl").value == pytest.approx(
        dense_distance(m.to_dense(), reference.to_dense(), "kl"), rel=1e-9
    )
