"""The metric of dense blocks against NumPy and SciPy on the dense matrix."""

import numpy as np
import pytest
import scipy.linalg

from steepest.arrays import Layout
from steepest.metrics.block_dense import BlockDenseMetric


def spd(rng, n):
    a = rng.normal(size=(n, n))
    return a @ a.T + 0.1 * np.eye(n)


def made(sizes, layout):
    rng = np.random.default_rng(sum(sizes))
    matrices = [spd(rng, size) for size in sizes]
    return BlockDenseMetric(layout, matrices), scipy.linalg.block_diag(*matrices)


CASES = [
    ([1], Layout(None, ((1,),))),
    ([6], Layout(None, ((2, 3),))),
    ([2, 1, 3], Layout(None, ((6,),))),
    ([4, 5], Layout(("w", "b"), ((2, 3), (3,)))),  # the first block ends within w
]


@pytest.mark.parametrize(("sizes", "layout"), CASES)
def test_everything_agrees_with_the_dense_matrix(sizes, layout):
    metric, dense = made(sizes, layout)
    n = len(dense)
    rng = np.random.default_rng(1)
    values = np.linalg.eigvalsh(dense)
    np.testing.assert_array_equal(metric.to_dense(), dense)
    for x in (rng.normal(size=n), rng.normal(size=(n, 3))):
        np.testing.assert_allclose(metric @ x, dense @ x, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(metric.solve(x), np.linalg.solve(dense, x), rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(metric.sqrt() @ x, scipy.linalg.sqrtm(dense) @ x, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(metric.log() @ x, scipy.linalg.logm(dense) @ x, rtol=1e-8, atol=1e-9)
    power = scipy.linalg.fractional_matrix_power(dense, -0.7)
    np.testing.assert_allclose(metric.power(-0.7).to_dense(), power, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(metric.inv().to_dense(), np.linalg.inv(dense), rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(metric.eigvalsh(), values, rtol=1e-10)
    np.testing.assert_allclose(metric.inv().eigvalsh(), np.sort(1.0 / values), rtol=1e-10)
    assert metric.logdet() == pytest.approx(np.linalg.slogdet(dense)[1], rel=1e-10)
    assert metric.trace() == pytest.approx(np.trace(dense), rel=1e-13)
    assert metric.cond() == pytest.approx(values[-1] / values[0], rel=1e-9)
    assert metric.log().trace() == pytest.approx(np.log(values).sum(), rel=1e-9)
    assert (3.0 * metric).trace() == pytest.approx(3.0 * np.trace(dense), rel=1e-13)
    np.testing.assert_allclose((metric / 4.0).to_dense(), dense / 4.0, rtol=1e-14)
    x, z = rng.normal(size=(2, n))
    assert metric.inner(x, z) == pytest.approx(x @ dense @ z, rel=1e-10, abs=1e-12)
    found, vectors = metric.eigh()
    np.testing.assert_allclose(dense @ vectors, vectors * found, atol=1e-10)
    np.testing.assert_array_equal(metric.to_scipy() @ x, metric @ x)
    np.testing.assert_array_equal(metric.copy().to_dense(), dense)
    assert repr(metric).startswith(f"<Metric {n} x {n}")


def test_mappings_keep_names_and_shapes():
    metric, dense = made(*CASES[3])
    x = np.arange(9.0)
    found = metric @ {"w": x[:6].reshape(2, 3), "b": x[6:]}
    expected = dense @ x
    np.testing.assert_allclose(found["w"], expected[:6].reshape(2, 3), rtol=1e-13)
    np.testing.assert_allclose(found["b"], expected[6:], rtol=1e-13)
    np.testing.assert_array_equal(metric.diagonal()["w"], np.diag(dense)[:6].reshape(2, 3))


def test_a_logarithm_has_no_solve():
    metric, _ = made(*CASES[1])
    with pytest.raises(TypeError, match="positive definite"):
        metric.log().power(2.0)


@pytest.mark.parametrize(
    ("matrices", "message"),
    [
        ([np.eye(2), np.diag([1.0, 0.0])], "place 1"),
        ([np.eye(2)], "4 rows"),
        ([np.ones((4, 3))], "4 rows"),
    ],
)
def test_blocks_that_are_no_metric(matrices, message):
    with pytest.raises(ValueError, match=message):
        BlockDenseMetric(Layout(None, ((4,),)), matrices)
