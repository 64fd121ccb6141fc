"""The metric nearest to a reference: minimality, range, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg

import oracles
import steepest
from cases import pair, spd


def perturbed(metric: np.ndarray, update: np.ndarray, rng: np.random.Generator, step: float) -> np.ndarray:
    """Another metric of the same pair: the complement block of the canonical form times a random SPD matrix."""
    form = steepest.canonical_form(metric, update)
    n = update.size
    a = rng.standard_normal((n - 1, n - 1))
    noise = scipy.linalg.expm(step * (a + a.T))
    y = -form.grad
    return np.outer(y, y) / (y @ update) + form.U @ noise @ form.U.T


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["bfgs", "dfp"])
def test_updates_are_nearest_to_their_base(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    n = 5
    grad, update = pair(1.0, n=n, seed=seed)
    base = spd(n, seed)
    found = steepest.metric(grad, update, base=scipy.sparse.linalg.aslinearoperator(base), kind=kind).to_dense()

    def divergence(m: np.ndarray) -> float:
        """KL( N(0,M) || N(0,B) ), or the other way round."""
        first, second = (m, base) if kind == "bfgs" else (base, m)
        ratio = np.linalg.solve(second, first)
        return 0.5 * (np.trace(ratio) - n - np.linalg.slogdet(ratio)[1])

    least = divergence(found)
    for step in (1e-3, 1e-2, 0.1, 0.5):
        for _ in range(20):
            other = perturbed(found, update, rng, step)
            np.testing.assert_allclose(other @ update, -grad, rtol=1e-9, atol=1e-12)
            assert divergence(other) > least - 1e-12
    # The divergence is stationary there: halving a small step divides the excess by four.
    direction = np.random.default_rng(seed).bit_generator.state
    excess = []
    for step in (1e-2, 5e-3):
        local = np.random.default_rng()
        local.bit_generator.state = direction
        excess.append(divergence(perturbed(found, update, local, step)) - least)
    assert excess[0] / excess[1] == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
@pytest.mark.parametrize("kind", ["bfgs", "dfp"])
def test_bases_with_vectors_of_any_norm(scale: float, kind: str) -> None:
    grad, update = oracles.pair(4, 0.8, 1.0, scale, rng=3)
    unit_grad, unit_update = grad / scale, update / scale
    d = np.linspace(0.5, 2.0, 4)
    b = spd(4)
    for base in (d, scipy.sparse.linalg.aslinearoperator(b), steepest.metric(grad, -grad, alpha=2.0)):
        metric = steepest.metric(grad, update, base=base, kind=kind)
        assert metric.alignment.status == "ok"
        reference = np.diag(d) if base is d else b if not isinstance(base, steepest.Metric) else base.to_dense()
        dense = (
            oracles.dense_metric(unit_grad, unit_update, base=reference)
            if kind == "bfgs"
            else dense_dfp_of(unit_grad, unit_update, reference)
        )
        np.testing.assert_allclose(metric.to_dense(), dense, rtol=0, atol=1e-12)
        np.testing.assert_allclose(metric @ update / scale, -unit_grad, rtol=0, atol=1e-12)
        np.testing.assert_allclose(metric.solve(-grad) / scale, unit_update, rtol=0, atol=1e-11)
        np.testing.assert_allclose(metric.logdet(), np.linalg.slogdet(dense)[1], rtol=0, atol=1e-12)
        np.testing.assert_allclose(metric.diagonal(), np.diag(dense), rtol=0, atol=1e-12)


def dense_dfp_of(grad: np.ndarray, update: np.ndarray, base: np.ndarray) -> np.ndarray:
    """DFP as the inverse of the BFGS update of the inverse for the swapped pair."""
    return np.linalg.inv(oracles.dense_metric(-update, -grad, base=np.linalg.inv(base)))
