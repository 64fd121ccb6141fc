"""SciPy's solvers take a Metric as it is, and SciPy's quasi-Newton operator is the same matrix."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import LbfgsInvHessProduct
from scipy.sparse.linalg import LinearOperator, aslinearoperator, cg, eigsh, lobpcg, minres

import oracles
import steepest
from cases import pair


@pytest.mark.parametrize("psi", [0.0, 0.8, 1.5])
@pytest.mark.parametrize("alpha", [0.01, 1.0, 30.0])
def test_lbfgs(psi: float, alpha: float) -> None:
    """M(alpha)^-1 = LbfgsInvHessProduct(sqrt(alpha) g, y / sqrt(alpha)) / alpha."""
    grad, update = pair(psi, n=50)
    y, g = -grad, update
    theirs = LbfgsInvHessProduct(math.sqrt(alpha) * g[None], y[None] / math.sqrt(alpha)).todense() / alpha
    ours = steepest.metric(grad, update, alpha=alpha).inv().to_dense()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * np.abs(theirs).max())


def test_lbfgs_of_several_pairs() -> None:
    """Repeated bases are the L-BFGS recursion."""
    rng = np.random.default_rng(0)
    steps = rng.standard_normal((4, 20))
    hessian = np.diag(np.linspace(1, 3, 20))
    theirs = LbfgsInvHessProduct(steps, steps @ hessian)
    metric = steepest.metric(-(hessian @ steps[0]), steps[0], alpha=1.0)
    for s in steps[1:]:
        metric = steepest.metric(-(hessian @ s), s, base=metric)
    x = rng.standard_normal(20)
    np.testing.assert_allclose(metric.solve(x), theirs @ x, rtol=0, atol=1e-12)


@pytest.fixture(scope="module", params=["float64", "float32"])
def large(request: pytest.FixtureRequest) -> tuple[Any, float, np.ndarray]:
    """A metric of 1e5 parameters, the accuracy to ask for, and its three eigenvalues by the mpmath oracle."""
    rng = np.random.default_rng(1)
    n = 100_000
    update = rng.standard_normal(n)
    grad = (-(0.6 * update + 0.8 * rng.standard_normal(n))).astype(request.param)
    update = update.astype(request.param)
    metric = steepest.metric(grad, update, alpha=2.0)
    y, g = -grad.astype(float), update.astype(float)
    # The 2 x 2 matrix of M on span{y, g}, exact up to sums of doubles
    yy, yg, gg = math.fsum(y * y), math.fsum(y * g), math.fsum(g * g)
    plane = np.linalg.eigvals(np.array([[yy / yg + 2.0, 1.0], [-2.0 * yg / gg, 0.0]]))
    exact = np.sort([plane.min(), 2.0, plane.max()])
    return metric, 1e-10 if request.param == "float64" else 2e-5, exact


@pytest.mark.parametrize("as_operator", [False, True], ids=["Metric", "LinearOperator"])
def test_eigsh(large: tuple[Any, float, np.ndarray], as_operator: bool) -> None:
    metric, rtol, exact = large
    operator = metric.to_scipy() if as_operator else metric
    v0 = np.ones(metric.size, metric.dtype)
    top = eigsh(operator, k=1, which="LA", v0=v0, tol=rtol / 10, return_eigenvectors=False)
    bottom = eigsh(operator, k=1, which="SA", v0=v0, tol=rtol / 10, return_eigenvectors=False)
    np.testing.assert_allclose([bottom[0], top[0]], exact[[0, 2]], rtol=rtol)
    np.testing.assert_allclose(metric.spectrum().values, exact, rtol=1e-9)
    assert top.dtype == metric.dtype


@pytest.mark.parametrize("as_operator", [False, True], ids=["Metric", "LinearOperator"])
def test_cg(large: tuple[Any, float, np.ndarray], as_operator: bool) -> None:
    metric, rtol, _ = large
    operator = metric.to_scipy() if as_operator else metric
    b = np.random.default_rng(0).standard_normal(metric.size).astype(metric.dtype)
    x, failed = cg(operator, b, rtol=rtol)
    assert failed == 0
    # Three distinct eigenvalues: three iterations in exact arithmetic
    np.testing.assert_allclose(x, metric.solve(b), rtol=0, atol=20 * rtol * np.abs(b).max())


def test_preconditioner() -> None:
    """The inverse preconditions cg on the metric itself to convergence in one step."""
    metric = steepest.metric(*pair(1.5, n=200))
    b = np.random.default_rng(0).standard_normal(200)
    steps: list[np.ndarray] = []
    x, failed = cg(metric, b, M=metric.preconditioner, rtol=1e-10, callback=steps.append)
    assert failed == 0
    assert len(steps) <= 2
    np.testing.assert_allclose(x, metric.solve(b), rtol=0, atol=1e-8)


def test_other_solvers_and_operator_algebra() -> None:
    metric = steepest.metric(*pair(0.9, n=60))
    b = np.random.default_rng(0).standard_normal((60, 3))
    x, failed = minres(metric, b[:, 0], rtol=1e-12)
    assert failed == 0
    np.testing.assert_allclose(x, metric.solve(b[:, 0]), atol=1e-9)
    values = lobpcg(metric.to_scipy(), b[:, :2], largest=True, tol=1e-10, maxiter=100)[0]
    assert values.max() == pytest.approx(metric.spectrum().values[-1], rel=1e-8)
    operator = metric.to_scipy()
    assert isinstance(operator, LinearOperator)
    assert operator.dtype == np.float64
    combined = 2 * operator + operator.H @ operator
    dense = metric.to_dense()
    np.testing.assert_allclose(combined @ b, (2 * dense + dense @ dense) @ b, atol=1e-12)
    np.testing.assert_allclose(aslinearoperator(metric) @ b, dense @ b, atol=1e-13)
    np.testing.assert_allclose(aslinearoperator(metric).rmatvec(b[:, 0]), dense @ b[:, 0], atol=1e-13)


def test_parameters_of_any_shape() -> None:
    """SciPy hands in flat vectors, whatever the parameters' shape."""
    grad, update = oracles.pair(12, 0.9, rng=0)
    dense = oracles.dense_metric(grad, update)
    matrix = steepest.metric(grad.reshape(3, 4), update.reshape(3, 4))
    mapping = steepest.metric({"a": grad[:5], "b": grad[5:]}, {"a": update[:5], "b": update[5:]})
    for metric in (matrix, mapping):
        top = eigsh(metric, k=1, return_eigenvectors=False)[0]
        assert top == pytest.approx(np.linalg.eigvalsh(dense)[-1], rel=1e-12)
        x, failed = cg(metric, grad, rtol=1e-12)
        assert failed == 0
        np.testing.assert_allclose(x, np.linalg.solve(dense, grad), atol=1e-9)


@pytest.mark.parametrize("n", [1, 2])
def test_column_vectors(n: int) -> None:
    """SciPy's LinearOperator passes (n, 1) for (n, 1)."""
    metric = steepest.metric(np.arange(1.0, n + 1), -np.ones(n))
    x = np.arange(1.0, n + 1)
    assert (metric.to_scipy() @ x[:, None]).shape == (n, 1)
    np.testing.assert_allclose((metric.to_scipy() @ x[:, None])[:, 0], metric @ x)
