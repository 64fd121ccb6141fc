"""Bad input ends in an error that names what was expected, what came and what to do, or in a right answer."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from scipy.sparse.linalg import LinearOperator, aslinearoperator

import steepest
from cases import FORMS, LAYOUTS, SIZE, spd

GRAD = np.array([3.0, 4.0, 0.0])
UPDATE = np.array([-3.0, -1.0, 0.5])
NAN, INF = math.nan, math.inf


def metric(**kw: Any) -> Any:
    return steepest.metric(GRAD, UPDATE, **kw)


# No metric exists -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grad", "update", "status"),
    [
        (GRAD, -UPDATE, "ascent"),
        (GRAD, np.array([4.0, -3.0, 1.0]), "ascent"),
        (GRAD, 0 * UPDATE, "zero_update"),
        (0 * GRAD, UPDATE, "zero_grad"),
        (0 * GRAD, 0 * UPDATE, "zero_grad"),
        (GRAD, np.array([NAN, 1.0, 1.0]), "nonfinite"),
        (np.array([1.0, INF, 1.0]), UPDATE, "nonfinite"),
        (np.array([1.0, -INF, 1.0]), UPDATE, "nonfinite"),
        (np.array([2.0]), np.array([2.0]), "ascent"),
        (np.array([0.0]), np.array([2.0]), "zero_grad"),
        (np.array([5e-324, 0.0]), np.array([5e-324, 0.0]), "ascent"),
    ],
)
def test_not_descent(grad: np.ndarray, update: np.ndarray, status: str) -> None:
    for options in ({}, {"alpha": 1.0}, {"base": np.ones(grad.size)}, {"base": aslinearoperator(np.eye(grad.size))}):
        with pytest.raises(steepest.NotDescentError) as caught:
            steepest.metric(grad, update, **options)
        error = caught.value
        assert isinstance(error, ValueError)
        assert error.alignments[None].status == status
        for word in (status, "grad.update =", "angle", "deg"):
            assert word in str(error)
        restored = pickle.loads(pickle.dumps(error))
        assert str(restored) == str(error)
        assert restored.alignments[None].status == status
    assert steepest.align(grad, update).status == status


def test_not_descent_names_all_blocks() -> None:
    grad = {"hidden": GRAD, "output": GRAD, "bias": GRAD, "idle": 0 * GRAD}
    update = {"hidden": UPDATE, "output": -UPDATE, "bias": NAN * UPDATE, "idle": UPDATE}
    with pytest.raises(steepest.NotDescentError) as caught:
        steepest.metric(grad, update, blocks="separate")
    error = caught.value
    assert list(error.alignments) == ["output", "bias", "idle"]
    assert {name: a.status for name, a in error.alignments.items()} == {
        "output": "ascent", "bias": "nonfinite", "idle": "zero_grad",
    }  # fmt: skip
    assert "'output'" in str(error)
    assert "'bias'" in str(error)
    assert "hidden" not in str(error)
    assert f"{-(GRAD @ UPDATE):.6g}" in str(error)
    assert pickle.loads(pickle.dumps(error)).alignments["output"] == error.alignments["output"]


# Shapes and names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [steepest.align, steepest.metric])
@pytest.mark.parametrize(
    ("grad", "update", "match"),
    [
        (GRAD, UPDATE[:2], r"shape \(3,\).*shape \(2,\)"),
        (GRAD, UPDATE[None], "same shape"),
        (np.ones((2, 3)), np.ones((3, 2)), "same shape"),
        (GRAD, 1.0, "same shape"),
        ({"a": GRAD}, UPDATE, "same shape"),
        (GRAD, {"a": UPDATE}, "same shape"),
        ({"a": GRAD}, {"b": UPDATE}, "'a'.*'b'"),
        ({"a": GRAD, "b": GRAD}, {"a": UPDATE}, "same shape"),
        ({"a": GRAD, "b": GRAD}, {"a": UPDATE, "b": UPDATE[:2]}, "same shape"),
        (np.empty(0), np.empty(0), "at least one element"),
        (np.empty((3, 0)), np.empty((3, 0)), "at least one element"),
        ([], [], "at least one element"),
        ({}, {}, "at least one element"),
        ({"a": np.empty(0)}, {"a": np.empty(0)}, "at least one element"),
    ],
)
def test_shapes_of_the_pair(function: Any, grad: Any, update: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        function(grad, update)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["alpha", "updated", "diagonal base", "operator base", "complement"])
def test_shapes_of_operands(name: str, layout: str) -> None:
    m = FORMS[name](layout).metric
    for bad in (np.ones(5), np.ones((5, 6)), np.ones((3, 2)), np.ones((6, 2, 2)), 1.0, {"weight": np.ones(6)}, {}):
        for call in (m.matvec, m.solve, m.norm, lambda x: m.inner(x, np.ones(SIZE)), lambda x: m @ x):
            with pytest.raises(ValueError, match=r"expected .*(6|weight|\(2, 3\))"):
                call(bad)
    for several in (np.ones((6, 2)), np.ones((6, 1))):
        with pytest.raises(ValueError, match="one vector"):
            m.norm(several)


def test_separate_blocks_need_mappings() -> None:
    for function in (steepest.align, steepest.metric):
        with pytest.raises(TypeError, match="mapping"):
            function(GRAD, UPDATE, blocks="separate")
        with pytest.raises(TypeError, match="mapping"):
            function({"a": GRAD}, UPDATE, blocks="separate")
        with pytest.raises(TypeError, match="base to be a mapping"):
            function({"a": GRAD}, {"a": UPDATE}, base=np.ones(3), blocks="separate")
        with pytest.raises(ValueError, match="names"):
            function({"a": GRAD}, {"b": UPDATE}, blocks="separate")
        with pytest.raises(ValueError, match="names"):
            function({"a": GRAD}, {"a": UPDATE}, base={"b": np.ones(3)}, blocks="separate")
        with pytest.raises(ValueError, match="joint"):
            function(GRAD, UPDATE, blocks="each")


# Types ----------------------------------------------------------------------------------------------------------

WRONG_TYPES = {
    "integers": (np.array([1, 2, 3]), "float64"),
    "unsigned": (np.array([1, 2, 3], np.uint16), "float64"),
    "booleans": (np.array([True, False, True]), "float64"),
    "complex": (np.array([1j, 2, 3]), "real"),
    "objects": (np.array([1.0, None, "x"], object), "mapping"),
    "strings": (np.array(["a", "b", "c"]), "float64"),
    "dates": (np.array(["2020-01-01"] * 3, "M8[D]"), "float64"),
    "long double": (np.ones(3, np.longdouble), "float64"),
    "foreign bytes": (np.ones(3, ">f8" if np.little_endian else "<f8"), "byte order"),
    "structured": (np.zeros(3, [("a", float)]), "float64"),
    "masked": (np.ma.masked_array(np.ones(3), [0, 1, 0]), "mask"),
    "sparse array": (scipy.sparse.csr_array(np.eye(3)), "toarray"),
    "sparse matrix": (scipy.sparse.coo_matrix(np.eye(3)), "toarray"),
    "list of integers": ([1, 2, 3], "float64"),
    "ragged list": ([[1.0], [1.0, 2.0]], "array"),
    "list of strings": (["a", "b", "c"], "float64"),
    "string": ("abc", "array or a mapping"),
    "bytes": (b"abc", "array or a mapping"),
    "None": (None, "array or a mapping"),
    "set": ({1.0, 2.0}, "array or a mapping"),
    "generator": ((x for x in (1.0, 2.0)), "array or a mapping"),
    "mapping of integers": ({"layer": np.array([1, 2, 3])}, "layer"),
    "mapping of mappings": ({"layer": {"w": np.ones(3)}}, "layer"),
}


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_types(name: str) -> None:
    bad, match = WRONG_TYPES[name]
    for function in (steepest.align, steepest.metric):
        with pytest.raises(TypeError, match=match):
            function(bad, UPDATE)
        if "mapping" not in name:
            with pytest.raises(TypeError, match=match):
                function(GRAD, bad)
    if "mapping" not in name:
        for call in (metric().matvec, metric().solve, metric().norm, metric(base=np.ones(3)).matvec):
            with pytest.raises(TypeError, match=match):
                call(bad)


# alpha, base, complement ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, -1.0, NAN, INF, -INF, "best", "3.0", lambda a: -1.0, lambda a: NAN, 5e-324])
def test_alpha_out_of_range(alpha: Any) -> None:
    grad = GRAD * (1e300 if alpha == 5e-324 else 1.0)
    with pytest.raises(ValueError, match="alpha"):
        steepest.metric(grad, UPDATE, alpha=alpha)


@pytest.mark.parametrize("alpha", [None, [1.0, 2.0], 1j, {}, lambda a: None, lambda a: "many"])
def test_alpha_of_the_wrong_type(alpha: Any) -> None:
    with pytest.raises(TypeError, match="alpha"):
        metric(alpha=alpha)


def test_contradicting_arguments() -> None:
    with pytest.raises(ValueError, match="base or alpha"):
        metric(alpha=1.0, base=np.ones(3))
    with pytest.raises(ValueError, match="complement alone"):
        metric(alpha=1.0, complement=np.eye(3))
    with pytest.raises(ValueError, match="complement alone"):
        metric(base=np.ones(3), complement=np.eye(3))
    with pytest.raises(ValueError, match="bfgs"):
        metric(kind="sr1")


@pytest.mark.parametrize("value", [0.0, -1.0, NAN, INF, -0.0])
def test_diagonal_base_not_positive(value: float) -> None:
    base = np.array([1.0, 2.0, value])
    for function in (steepest.align, steepest.metric):
        with pytest.raises(ValueError, match="positive, finite diagonal.*index 2"):
            function(GRAD, UPDATE, base=base)


@pytest.mark.parametrize("base", [np.ones(2), np.ones(4), np.eye(3), np.ones((3, 1)), {"a": np.ones(3)}, [1.0]])
def test_diagonal_base_of_the_wrong_shape(base: Any) -> None:
    for function in (steepest.align, steepest.metric):
        with pytest.raises(ValueError, match="expected base"):
            function(GRAD, UPDATE, base=base)


@pytest.mark.parametrize("base", [np.array([1, 2, 3]), np.ones(3, complex), [1, 2, 3]])
def test_diagonal_base_of_the_wrong_type(base: Any) -> None:
    for function in (steepest.align, steepest.metric):
        with pytest.raises(TypeError, match="base"):
            function(GRAD, UPDATE, base=base)


@pytest.mark.parametrize("base", ["fisher", 2.0, object(), {1.0, 2.0}])
def test_base_of_the_wrong_type(base: Any) -> None:
    for function in (steepest.align, steepest.metric):
        with pytest.raises(TypeError, match="base"):
            function(GRAD, UPDATE, base=base)


def test_operator_base() -> None:
    cases = (
        (aslinearoperator(np.eye(4)), r"shape \(3, 3\)"),
        (aslinearoperator(np.ones((3, 2))), r"shape \(3, 3\)"),
        (steepest.metric(np.ones(4), -np.ones(4)), r"shape \(3, 3\)"),
        (aslinearoperator(-np.eye(3)), "positive definite"),
        (aslinearoperator(np.diag([1.0, -100.0, 1.0])), "positive definite"),
        (aslinearoperator(np.zeros((3, 3))), "positive definite"),
        (aslinearoperator(np.eye(3) + np.triu(np.ones((3, 3)), 1)), "symmetric"),
        (aslinearoperator(np.full((3, 3), NAN)), "positive definite"),
    )
    for base, match in cases:
        for function in (steepest.align, steepest.metric):
            with pytest.raises(ValueError, match=match):
                function(GRAD, UPDATE, base=base)
    with pytest.raises(TypeError, match="positive definite"):
        metric(base=metric().log())
    # A solve that is none
    with pytest.raises(ValueError, match="accurate solve"):
        metric(base=aslinearoperator(spd(3)), base_solve=lambda b: b)


def test_base_solve_that_does_not_converge() -> None:
    n = 300
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    matrix = (q * np.geomspace(1e-14, 1, n)) @ q.T
    grad = rng.standard_normal(n)
    with pytest.raises(ValueError, match="conjugate gradients.*base_solve"):
        steepest.metric(grad, -grad, base=aslinearoperator(0.5 * (matrix + matrix.T)))


@pytest.mark.parametrize(
    ("complement", "error", "match"),
    [
        (np.eye(3), ValueError, "orthogonal to the update.*project"),
        (np.ones(3), ValueError, r"shape \(3, m\)"),
        (np.ones((2, 2)), ValueError, r"shape \(3, m\)"),
        (np.ones((3, 2)) * NAN, ValueError, "finite"),
        (np.zeros((3, 2)), ValueError, "2 independent columns"),
        (np.zeros((3, 0)), ValueError, "2 independent columns"),
        (np.array([[1.0], [-3.0], [0.0]]), ValueError, "2 independent columns"),
        (np.eye(3, dtype=int), TypeError, "floating"),
        (np.eye(3) * 1j, TypeError, "floating"),
        (None if False else "abc", TypeError, "floating"),
    ],
)
def test_complement(complement: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        metric(complement=complement)


def test_complement_of_many_parameters() -> None:
    n = 5000
    with pytest.raises(ValueError, match="4096"):
        steepest.metric(np.ones(n), -np.ones(n), complement=np.zeros((n, 1)))


# Methods --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["alpha", "updated", "diagonal base", "operator base", "complement"])
def test_arguments_of_methods(name: str) -> None:
    m = FORMS[name]("flat").metric
    for p in (NAN, INF, -INF):
        with pytest.raises(ValueError, match="finite power"):
            m.power(p)
    for k in (0, -1, SIZE + 1):
        with pytest.raises(ValueError, match="1 <= k <= n"):
            m.eigh(k=k)
    for factor in (0.0, -1.0, NAN, INF):
        with pytest.raises(ValueError, match="positive finite factor"):
            _ = factor * m
    for divisor in (0.0, -1.0, NAN, INF):
        with pytest.raises(ValueError, match="positive"):
            _ = m / divisor
    for wrong in (lambda: m * m, lambda: m * "2", lambda: m / m, lambda: m * np.ones(SIZE), lambda: m + m, lambda: -m):
        with pytest.raises(TypeError):
            wrong()
    for method in (m.to_dense, m.eigvalsh, m.eigh):
        with pytest.raises(ValueError, match="max_size = 3"):
            method(max_size=3)


def test_power_out_of_range() -> None:
    with pytest.raises(ValueError, match="range of float64"):
        (1e300 * metric()).power(3)


def test_large_metrics_without_closed_forms() -> None:
    n = 5000
    grad = np.linspace(1.0, 2.0, n)
    diagonal = steepest.metric(grad, -grad, base=np.ones(n))
    for method in (diagonal.sqrt, diagonal.log, lambda: diagonal.power(0.3)):
        with pytest.raises(TypeError, match="4096"):
            method()
    for method in (diagonal.to_dense, diagonal.eigvalsh, diagonal.eigh):
        with pytest.raises(ValueError, match="max_size"):
            method()
    assert diagonal.cond() == pytest.approx(1.0)
    assert diagonal.logdet() == pytest.approx(0.0, abs=1e-9)
    operator = steepest.metric(grad, -grad, base=LinearOperator((n, n), matvec=lambda x: 2 * x, dtype=float))
    for method in (operator.sqrt, operator.logdet, operator.trace, operator.diagonal):
        with pytest.raises(TypeError, match="4096"):
            method()
    np.testing.assert_allclose(operator @ -grad, -grad, rtol=1e-13)
    assert operator.cond() == pytest.approx(2.0)


# out ------------------------------------------------------------------------------------------------------------


def test_out() -> None:
    grad, update = np.tile(GRAD, 4), np.tile(UPDATE, 4)
    memory = np.arange(40.0)
    x = memory[:12]
    for m in (steepest.metric(grad, update), steepest.metric(grad, update, base=np.ones(12))):
        expected = m @ x
        read_only = np.empty(12)
        read_only.flags.writeable = False
        for out, error, match in (
            (np.empty(11), ValueError, "12"),
            (np.empty((12, 1)), ValueError, "shape"),
            (np.empty((3, 4)), ValueError, "shape"),
            (read_only, ValueError, "read-only"),
            (np.broadcast_to(np.float64(0), (12,)), ValueError, "read-only|stride 0"),
            (np.lib.stride_tricks.as_strided(np.zeros(1), (12,), (0,)), ValueError, "stride 0"),
            (memory[1:13], ValueError, "overlap"),
            (memory[11::-1], ValueError, "overlap"),
            (grad, ValueError, "overlap"),
            (update, ValueError, "overlap"),
            (np.empty(12, int), TypeError, "float64"),
            (np.empty(12, complex), TypeError, "real"),
            ([0.0] * 12, TypeError, "in place"),
            ("out", TypeError, "in place"),
            (3.0, TypeError, "in place"),
            ({"a": np.empty(12)}, ValueError, "out"),
        ):
            for method in (m.matvec, m.solve):
                with pytest.raises(error, match=match):
                    method(x, out=out)
        np.testing.assert_array_equal(x, np.arange(12.0))
        np.testing.assert_array_equal(m.matvec(x, out=np.empty(12, np.float32)), expected.astype(np.float32))
        spaced = np.zeros(24)[::2]
        np.testing.assert_array_equal(m.matvec(x, out=spaced), expected)
        backwards = np.zeros(12)[::-1]
        np.testing.assert_array_equal(m.matvec(x, out=backwards), expected)


# Numbers at the edge --------------------------------------------------------------------------------------------


def test_denormals() -> None:
    """The smallest numbers there are still have a sign and a metric."""
    tiny = 5e-324
    m = steepest.metric(np.array([tiny, 0.0]), np.array([-tiny, 0.0]))
    np.testing.assert_allclose(m.eigvalsh(), [1.0, 1.0], rtol=1e-15)
    np.testing.assert_allclose(m.to_dense(), np.eye(2), atol=1e-15)
    grad, update = 1e-310 * GRAD, 1e-310 * UPDATE
    m = steepest.metric(grad, update)
    scaled = steepest.metric(np.ldexp(grad, 1030), np.ldexp(update, 1030))
    np.testing.assert_allclose(m.eigvalsh(), scaled.eigvalsh(), rtol=1e-13)
    np.testing.assert_allclose(np.ldexp(m @ update, 1030), -np.ldexp(grad, 1030), rtol=0, atol=2.0**-40)
    np.testing.assert_allclose(m.to_dense(), scaled.to_dense(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(m.diagonal(), scaled.diagonal(), rtol=0, atol=1e-12)


def test_largest_numbers() -> None:
    big = np.finfo(float).max
    m = steepest.metric(np.array([big / 2, big / 4]), np.array([-big / 2, -big / 2]))
    small = steepest.metric(np.array([1.0, 0.5]), np.array([-1.0, -1.0]))
    np.testing.assert_allclose(m.eigvalsh(), small.eigvalsh(), rtol=1e-14)
    np.testing.assert_allclose(m.to_dense(), small.to_dense(), rtol=1e-14)
    assert m.cond() == pytest.approx(small.cond(), rel=1e-14)
    # A norm that float64 does not hold
    a = steepest.align(np.array([big, big]), np.array([-1.0, -2.0]))
    assert a.status == "ok"
    assert a.grad_norm == INF
    assert a.angle == pytest.approx(math.atan(2) - math.pi / 4, rel=1e-14)
    with pytest.raises(ValueError, match="range of float64"):
        steepest.metric(np.array([big, big]), np.array([-1.0, -2.0]))


def test_ratio_out_of_range() -> None:
    """Eigenvalues around 1e600 do not exist in float64, and that is said."""
    with pytest.raises(ValueError, match="range of float64"):
        steepest.metric(1e300 * GRAD, 1e-300 * UPDATE)
    with pytest.raises(ValueError, match="range of float64"):
        steepest.metric(1e300 * GRAD, 1e-300 * UPDATE, base=np.ones(3))
    with pytest.raises(ValueError, match="range of float64"):
        steepest.metric(1e300 * GRAD, 1e-300 * UPDATE, base=aslinearoperator(np.eye(3)))
    with pytest.raises(ValueError, match="range of float64"):
        steepest.metric(1e300 * GRAD, 1e-300 * UPDATE, complement=np.eye(3))
    assert steepest.align(1e300 * GRAD, 1e-300 * UPDATE).status == "ok"


def test_nonfinite_operands_give_nan() -> None:
    for name in ("alpha", "updated", "diagonal base", "operator base without solve", "complement"):
        m = FORMS[name]("flat").metric
        for value in (NAN, INF):
            x = np.ones(SIZE)
            x[2] = value
            with np.errstate(invalid="ignore"):
                assert not np.isfinite(m @ x).any()
                assert not np.isfinite(m.solve(x)).any()


def test_vectors_that_change_under_a_metric() -> None:
    grad, update = GRAD.copy(), UPDATE.copy()
    first = steepest.metric(grad, update)
    grad[0] = NAN
    with pytest.raises(ValueError, match="must not change"):
        steepest.metric(GRAD, UPDATE, base=first)
