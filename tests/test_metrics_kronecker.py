"""Kronecker metrics against the dense matrix that np.kron gives."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import scipy.linalg

from steepest.arrays import Layout
from steepest.metrics.dense import DenseMetric
from steepest.metrics.kronecker import KroneckerMetric, matrix_shape


def spd(size, rng, cond=50.0):
    q, _ = np.linalg.qr(rng.normal(size=(size, size)))
    return (q * np.geomspace(1.0, cond, size)) @ q.T


SHAPES = {"matrix": (4, 5), "kernel": (3, 2, 2, 2), "bias": (6,), "number": ()}


def made(sides, seed=0, names=SHAPES):
    """A metric and the dense matrix it must equal; `sides` says which factors are there."""
    rng = np.random.default_rng(seed)
    factors, dense = [], []
    for shape in names.values():
        m, r = matrix_shape(shape)
        a = spd(m, rng) if "A" in sides else None
        b = spd(r, rng) * 0.3 if "B" in sides else None
        factors.append((a, b))
        dense.append(np.kron(np.eye(m) if a is None else a, np.eye(r) if b is None else b))
    layout = Layout(tuple(names), tuple(names.values()))
    return KroneckerMetric(layout, factors), scipy.linalg.block_diag(*dense)


def logarithm(dense):
    values, vectors = np.linalg.eigh(dense)
    return (vectors * np.log(values)) @ vectors.T


def cut(flat):
    found, start = {}, 0
    for name, shape in SHAPES.items():
        size = math.prod(shape)
        found[name] = flat[start : start + size].reshape(shape)
        start += size
    return found


@pytest.mark.parametrize("sides", ["A", "B", "AB"])
class TestAgainstDense:
    def test_products_and_solves(self, sides):
        M, dense = made(sides)
        rng = np.random.default_rng(1)
        x = rng.normal(size=len(dense))
        many = rng.normal(size=(len(dense), 3))
        np.testing.assert_allclose(M @ x, dense @ x, rtol=1e-12)
        np.testing.assert_allclose(M @ many, dense @ many, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(many.T @ M, many.T @ dense, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(M.solve(many), np.linalg.solve(dense, many), rtol=1e-10, atol=1e-10)
        for name, part in (M @ cut(x)).items():
            np.testing.assert_allclose(part, cut(dense @ x)[name], rtol=1e-12)
            assert part.shape == SHAPES[name]
        assert (M @ many[:, :0]).shape == (len(dense), 0)
        out = x.copy()
        assert M.matvec(out, out=out) is out
        np.testing.assert_allclose(out, dense @ x, rtol=1e-12)
        np.testing.assert_allclose(M.to_scipy() @ x, dense @ x, rtol=1e-12)

    def test_functions(self, sides):
        M, dense = made(sides)
        np.testing.assert_allclose(M.to_dense(), dense, rtol=1e-13)
        np.testing.assert_array_equal(M.to_dense(), M.to_dense().T)
        for p in (-1.0, 0.5, -0.5, 2.0, 0.0):
            expected = scipy.linalg.fractional_matrix_power(dense, p).real
            np.testing.assert_allclose(M.power(p).to_dense(), expected, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(M.inv().to_dense() @ dense, np.eye(len(dense)), atol=1e-10)
        np.testing.assert_allclose(M.sqrt().to_dense() @ M.sqrt().to_dense(), dense, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose((3 * M).to_dense(), 3 * dense, rtol=1e-12)
        np.testing.assert_allclose((M / 4).inv().to_dense(), 4 * np.linalg.inv(dense), rtol=1e-9, atol=1e-10)

    def test_logarithm_is_a_kronecker_sum(self, sides):
        M, dense = made(sides)
        log, expected = M.log(), logarithm(dense)
        x = np.random.default_rng(2).normal(size=(len(dense), 2))
        assert not log.positive_definite
        np.testing.assert_allclose(scipy.linalg.expm(log.to_dense()), dense, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(log.to_dense(), expected, atol=1e-9)
        np.testing.assert_allclose(log @ x, expected @ x, atol=1e-8)
        np.testing.assert_allclose(log @ x[:, 0], expected @ x[:, 0], atol=1e-8)
        np.testing.assert_allclose((2.0 * log).to_dense(), 2 * expected, atol=1e-8)
        np.testing.assert_allclose(np.concatenate([np.ravel(d) for d in log.diagonal().values()]), np.diag(expected))
        assert log.trace() == pytest.approx(M.logdet(), rel=1e-12)
        np.testing.assert_allclose(log.eigvalsh(), np.linalg.eigvalsh(expected), atol=1e-9)
        np.testing.assert_allclose(log.eigh(5)[0], np.linalg.eigvalsh(expected)[:5], atol=1e-9)
        for what in ("logdet", "cond", "sqrt", "log", "inv"):
            with pytest.raises(TypeError, match="logarithm"):
                getattr(log, what)()

    def test_numbers(self, sides):
        M, dense = made(sides)
        rng = np.random.default_rng(3)
        x, z = rng.normal(size=(2, len(dense)))
        values = np.linalg.eigvalsh(dense)
        assert M.logdet() == pytest.approx(np.linalg.slogdet(dense)[1], rel=1e-12)
        assert M.trace() == pytest.approx(np.trace(dense), rel=1e-13)
        assert M.cond() == pytest.approx(values[-1] / values[0], rel=1e-10)
        np.testing.assert_allclose(M.eigvalsh(), values, rtol=1e-10)
        assert sum(M.spectrum().multiplicities) == len(dense)
        np.testing.assert_allclose(np.concatenate([np.ravel(d) for d in M.diagonal().values()]), np.diag(dense))
        assert M.inner(x, z) == pytest.approx(x @ dense @ z, rel=1e-11)
        assert M.norm(cut(x)) == pytest.approx(math.sqrt(x @ dense @ x), rel=1e-12)

    @pytest.mark.parametrize("k", [1, 7, None])
    def test_eigenvectors(self, sides, k):
        M, dense = made(sides)
        values, vectors = M.eigh(k)
        n = len(dense)
        assert vectors.shape == (n, n if k is None else k)
        np.testing.assert_allclose(values, np.linalg.eigvalsh(dense)[:k], rtol=1e-9)
        np.testing.assert_allclose(dense @ vectors, vectors * values, atol=1e-9)
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(vectors.shape[1]), atol=1e-12)

    def test_copies(self, sides):
        M, dense = made(sides)
        x = np.random.default_rng(4).normal(size=len(dense))
        for other in (pickle.loads(pickle.dumps(M)), copy.deepcopy(M), M.copy()):
            np.testing.assert_array_equal(other @ x, M @ x)
            assert repr(other) == repr(M)
        for name, (a, b) in M.factors.items():
            m, r = matrix_shape(SHAPES[name])
            assert (a is None) == ("A" not in sides)
            assert (b is None) == ("B" not in sides)
            assert a is None or (a.shape == (m, m) and not a.flags.writeable)
            assert b is None or b.shape == (r, r)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_results_take_the_operands_type(dtype):
    rng = np.random.default_rng(0)
    A, B = spd(3, rng), spd(4, rng)
    M = KroneckerMetric(Layout(None, ((3, 4),)), [(A, B)])
    x = rng.normal(size=(3, 4)).astype(dtype)
    found = M @ x
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, (A @ x.astype(float) @ B).astype(dtype))
    np.testing.assert_allclose(M @ x[:, ::-1], A @ x[:, ::-1].astype(float) @ B, rtol=float(np.finfo(dtype).eps) * 2)


def test_torch_operands():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    A = spd(3, rng)
    M = KroneckerMetric(Layout(None, ((3, 4),)), [(A, None)])
    x = torch.arange(12.0, dtype=torch.bfloat16).reshape(3, 4)
    expected = torch.from_numpy(A @ np.arange(12.0).reshape(3, 4)).to(torch.bfloat16)
    assert torch.equal(M @ x, expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (3, 1), (1,), (2,), ()])
def test_trivial_sides(shape):
    m, r = matrix_shape(shape)
    rng = np.random.default_rng(0)
    A, B = spd(m, rng), spd(r, rng) + 1.0
    M = KroneckerMetric(Layout(None, (shape,)), [(A, B)])
    dense = np.kron(A, B)
    np.testing.assert_allclose(M.to_dense(), dense)
    np.testing.assert_allclose(M.log().to_dense(), logarithm(dense), atol=1e-12)
    x = rng.normal(size=shape)
    assert np.shape(M @ x) == shape
    np.testing.assert_allclose(np.ravel(M.solve(x)), np.linalg.solve(dense, np.ravel(x)))
    assert M.factors[0].shape == (m, m)


def test_empty_arrays_take_no_part():
    rng = np.random.default_rng(0)
    layout = Layout(("w", "none"), ((2, 3), (0, 3)))
    A, B = spd(2, rng), spd(3, rng)
    M = KroneckerMetric(layout, [(A, B), (np.zeros((0, 0)), B)])
    dense = DenseMetric(np.kron(A, B), Layout(None, ((6,),)), "float64", None, np.zeros(6))
    for what in ("cond", "logdet", "trace"):
        assert getattr(M, what)() == pytest.approx(getattr(dense, what)())
    np.testing.assert_allclose(M.eigvalsh(), dense.eigvalsh())
    assert (M @ np.ones((6, 2))).shape == (6, 2)


def test_large_without_a_matrix_of_that_size():
    rng = np.random.default_rng(0)
    m, r = 200, 300
    A, B = spd(m, rng), spd(r, rng)
    M = KroneckerMetric(Layout(None, ((m, r),)), [(A, B)])
    x = rng.normal(size=(m, r))
    np.testing.assert_allclose(M.solve(M @ x), x, atol=1e-9)
    assert M.cond() == pytest.approx(2500.0)
    assert M.logdet() == pytest.approx(M.log().trace())
    values, vectors = M.eigh(3)
    np.testing.assert_allclose(M @ vectors, vectors * values, atol=1e-9)
    with pytest.raises(ValueError, match="n <= max_size"):
        M.to_dense()
    with pytest.raises(ValueError, match="n <= max_size"):
        M.eigh()
    assert repr(M) == "<Metric 60000 x 60000, dtype=float64, A 200 x 200 kron B 300 x 300, cond=2500>"


def test_nearly_singular_factors_are_judged_by_their_eigenvalues():
    values = np.array([1e-15, 1.0, 2.0])
    M = KroneckerMetric(Layout(None, ((3, 2),)), [(np.diag(values), None)])
    assert M.cond() == pytest.approx(2e15, rel=1e-12)
    with pytest.raises(ValueError, match="positive definite, got eigenvalues from -2 to -1e-15"):
        KroneckerMetric(Layout(None, ((3, 2),)), [(np.diag(-values), None)])


def test_not_finite_operands_give_nan():
    M = KroneckerMetric(Layout(None, ((2, 2),)), [(np.array([[2.0, 1.0], [1.0, 2.0]]), np.eye(2))])
    assert np.isnan(M @ np.array([[np.nan, 0.0], [0.0, 0.0]])).any()
    assert not np.isfinite(M.log() @ np.array([[np.inf, 0.0], [0.0, 0.0]])).all()


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ([], "one pair"),
        ([(None, None)], "at least one"),
        ([(np.eye(3), None)], "A of an array of shape .2, 3. to be 2 x 2"),
        ([(None, np.eye(2))], "B of an array of shape .2, 3. to be 3 x 3"),
        ([(np.array([[1.0, 0.5], [0.0, 1.0]]), None)], "finite and symmetric"),
        ([(np.array([[1.0, np.nan], [np.nan, 1.0]]), None)], "finite and symmetric"),
        ([(np.zeros((2, 2)), None)], "positive definite"),
        ([(np.array([[1.0, 2.0], [2.0, 1.0]]), None)], "positive definite, got eigenvalues from -1 to 3"),
    ],
)
def test_bad_factors(factors, message):
    with pytest.raises(ValueError, match=message):
        KroneckerMetric(Layout(None, ((2, 3),)), factors)


def test_bad_requests():
    M, _ = made("AB")
    with pytest.raises(ValueError, match="1 <= k"):
        M.eigh(0)
    with pytest.raises(ValueError, match="finite power"):
        M.power(math.nan)
    with pytest.raises(ValueError, match="positive finite factor"):
        M * -1.0
