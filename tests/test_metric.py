"""Every method of `Metric`, for every form, against dense matrices."""

from __future__ import annotations

import copy
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import scipy.linalg

import oracles
import steepest
from cases import (
    ALPHA_RATIOS,
    ANGLES,
    DTYPES,
    EPSILON,
    FORMS,
    LAYOUTS,
    SCALED_OVER_BASE,
    SCALES,
    SIZE,
    Form,
    Scale,
    flat,
    pair,
)
from oracles import mp

RTOL = 1e-9


def close(actual: Any, expected: Any, size: float) -> None:
    """Largest difference relative to a size."""
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=0, atol=RTOL * size)


def compare_products(metric: Any, dense: np.ndarray, layout: str) -> None:
    """`@`, `matvec` with out, and x @ M with operands of every shape."""
    rng = np.random.default_rng(0)
    n, size = dense.shape[0], np.linalg.norm(dense, 2) * 3 * SIZE
    x, many = rng.standard_normal(n), rng.standard_normal((n, 3))
    close(metric @ x, dense @ x, size)
    close(metric @ np.ascontiguousarray(x[::-1])[::-1], dense @ x, size)
    for operand in (many, np.asfortranarray(many), np.repeat(many, 2, axis=1)[:, ::2]):
        image = metric @ operand
        assert image.shape == (n, 3)
        close(image, dense @ many, size)
    close(metric @ np.empty((n, 0)), np.empty((n, 0)), size)
    close(x @ metric, dense @ x, size)
    close(many.T @ metric, many.T @ dense, size)

    shaped = LAYOUTS[layout](x) if n == SIZE else x
    image = metric @ shaped
    assert type(image) is type(shaped)
    close(flat(image), dense @ x, size)
    if isinstance(shaped, dict):
        assert list(image) == list(shaped)
        assert all(image[key].shape == shaped[key].shape for key in shaped)
        backwards = dict(reversed(shaped.items()))
        assert list(metric @ backwards) == list(backwards)
        close(flat({key: (metric @ backwards)[key] for key in shaped}), dense @ x, size)
    else:
        assert image.shape == shaped.shape
        close(flat(shaped @ metric), dense @ x, size)

    out = np.full(n, np.nan)
    assert metric.matvec(x, out=out) is out
    close(out, dense @ x, size)
    assert metric.matvec(out, out=out) is out
    close(out, dense @ (dense @ x), size * np.linalg.norm(dense, 2))
    spaced = np.zeros((n, 6))[:, ::2]
    metric.matvec(many, out=spaced)
    close(spaced, dense @ many, size)
    assert np.isnan(metric @ np.full(n, np.nan)).all()


def compare_symmetric(metric: Any, dense: np.ndarray, layout: str) -> None:
    """What metrics and logarithms share."""
    n, size = dense.shape[0], np.linalg.norm(dense, 2) * SIZE
    rng = np.random.default_rng(1)
    compare_products(metric, dense, layout)
    matrix = metric.to_dense()
    assert matrix.dtype == metric.dtype == np.float64
    np.testing.assert_array_equal(matrix, matrix.T)
    close(matrix, dense, size)
    close(flat(metric.diagonal()), np.diag(dense), size)
    close(metric.trace(), np.trace(dense), size)
    x, z = rng.standard_normal((2, n))
    close(metric.inner(x, z), x @ dense @ z, size * SIZE)
    if n == SIZE:
        close(metric.inner(LAYOUTS[layout](x), z), x @ dense @ z, size * SIZE)
    operator = metric.to_scipy()
    assert operator.shape == metric.shape == (n, n)
    close(operator @ x, dense @ x, size * SIZE)
    close(operator.T @ x, dense @ x, size * SIZE)
    values = np.linalg.eigvalsh(dense)
    close(metric.eigvalsh(), values, size)
    for k in {1, 2, min(3, n), n} & set(range(1, n + 1)):
        w, v = metric.eigh(k=k)
        assert w.shape == (k,)
        assert v.shape == (n, k)
        assert np.all(np.diff(w) >= 0)
        close(v.T @ v, np.eye(k), 1.0)
        close(dense @ v, v * w, size)
        assert np.all(v[np.abs(v).argmax(axis=0), np.arange(k)] > 0)
    close(metric.eigh()[0], values, size)
    text = repr(metric)
    assert f"{n} x {n}" in text
    assert metric.ndim == 2
    assert metric.size == n


def compare_with_dense(metric: Any, dense: np.ndarray, layout: str, base: np.ndarray | None = None) -> None:
    """Every method of a positive definite metric."""
    n = dense.shape[0]
    compare_symmetric(metric, dense, layout)
    assert metric.positive_definite
    values = np.linalg.eigvalsh(dense)
    inverse = np.linalg.inv(dense)
    rng = np.random.default_rng(2)
    x, many = rng.standard_normal(n), rng.standard_normal((n, 2))

    close(metric.solve(dense @ x), x, np.linalg.cond(dense) * SIZE)
    close(metric.solve(dense @ many), many, np.linalg.cond(dense) * SIZE)
    shaped = LAYOUTS[layout](x) if n == SIZE else x
    close(flat(metric.solve(shaped)), inverse @ x, np.linalg.norm(inverse, 2) * SIZE)
    assert metric.solve(x, out=x) is x

    for derived, exact in (
        (metric.inv(), inverse),
        (metric.preconditioner, inverse),
        (metric.sqrt(), oracles.dense_function(dense, np.sqrt)),
        (metric.power(-1.7), oracles.dense_function(dense, lambda t: t**-1.7)),
        (metric.power(1.0), dense),
    ):
        assert isinstance(derived, steepest.Metric)
        close(derived.to_dense(), exact, np.linalg.norm(exact, 2) * SIZE)
        close(derived.inv().to_dense(), np.linalg.inv(exact), np.linalg.norm(np.linalg.inv(exact), 2) * SIZE)
    if not (metric.power(0).alpha == metric.alpha == 1.0):
        logarithm = oracles.dense_function(dense, np.log)
        assert not metric.log().positive_definite
        close(metric.log().to_dense(), logarithm, (1 + np.linalg.norm(logarithm, 2)) * SIZE)
    for factor in (2.0, np.float32(2.0), 2):
        close((factor * metric).to_dense(), 2 * dense, np.linalg.norm(dense, 2) * SIZE)
    close((metric / 2).to_dense(), dense / 2, np.linalg.norm(dense, 2) * SIZE)
    close((3 * metric).solve(x), inverse @ x / 3, np.linalg.norm(inverse, 2) * SIZE)
    close((3 * metric).logdet(), metric.logdet() + n * np.log(3), SIZE)

    close(metric.logdet(), np.linalg.slogdet(dense)[1], SIZE)
    close(metric.norm(x), np.sqrt(x @ dense @ x), np.sqrt(values[-1]) * SIZE)
    spectrum = metric.spectrum()
    assert sum(spectrum.multiplicities) == n
    assert spectrum.relative == (base is not None)
    relative = values if base is None else scipy.linalg.eigh(dense, base, eigvals_only=True)
    close(np.repeat(spectrum.values, spectrum.multiplicities), relative, relative[-1])
    np.testing.assert_allclose(metric.cond(), relative[-1] / relative[0], rtol=1e-7)
    assert spectrum.to_dict()["values"] == spectrum.values


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FORMS)
def test_methods(name: str, layout: str) -> None:
    form = FORMS[name](layout)
    if form.metric.positive_definite:
        compare_with_dense(form.metric, form.dense, layout, form.base)
    else:
        compare_symmetric(form.metric, form.dense, layout)
        assert form.base is None
        for refused in ("cond", "logdet", "sqrt", "inv", "log"):
            with pytest.raises(TypeError, match="positive definite"):
                getattr(form.metric, refused)()
        for refused in ("solve", "norm"):
            with pytest.raises(TypeError, match="positive definite"):
                getattr(form.metric, refused)(np.ones(SIZE))


@pytest.mark.parametrize("name", SCALED_OVER_BASE)
def test_multiples_relative_to_a_base(name: str) -> None:
    form = SCALED_OVER_BASE[name]("matrix")
    compare_with_dense(4 * form.metric, 4 * form.dense, "matrix", form.base)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("psi", [0.0, 0.7, 1.5])
@pytest.mark.parametrize("alpha", ["optimal", 0.3])
def test_small_sizes(n: int, psi: float, alpha: Any) -> None:
    grad, update = oracles.pair(n, psi if n > 1 else 0.0, 3.0, rng=n)
    metric = steepest.metric(grad, update, alpha=alpha)
    dense = (
        np.array([[-grad[0] / update[0]]])
        if n == 1
        else oracles.dense_metric(grad, update, None if alpha == "optimal" else alpha)
    )
    compare_with_dense(metric, dense, "flat")
    compare_symmetric(metric.log(), oracles.dense_function(dense, np.log), "flat")
    base = np.linspace(1.0, 2.0, n)
    compare_with_dense(
        steepest.metric(grad, update, base=base), oracles.dense_metric(grad, update, base=base), "flat", np.diag(base)
    )
    other = steepest.metric(*oracles.pair(n, psi / 2 if n > 1 else 0.0, rng=9 + n))
    dense_other = other.to_dense()
    updated = steepest.metric(grad, update, base=other)
    compare_with_dense(updated, oracles.dense_metric(grad, update, base=dense_other), "flat")


@pytest.mark.parametrize("name", FORMS)
def test_copies(name: str) -> None:
    form = FORMS[name]("mapping")
    _ = form.metric @ np.ones(SIZE)  # a compiled operator must not be in the way
    copied = form.metric.copy()
    close(copied.to_dense(), form.dense, np.linalg.norm(form.dense, 2) * SIZE)
    if "solve given" not in name:
        restored = pickle.loads(pickle.dumps(form.metric))
        np.testing.assert_array_equal(restored.to_dense(), form.metric.to_dense())
        np.testing.assert_array_equal(restored @ np.ones(SIZE), form.metric @ np.ones(SIZE))
        assert repr(restored) == repr(form.metric)


def test_copy_is_independent() -> None:
    grad, update = pair(0.8, n=5)
    kept = grad.copy(), update.copy()
    for metric in (steepest.metric(grad, update), steepest.metric(grad, update, base=np.ones(5))):
        copied = metric.copy()
        expected = metric.to_dense()
        grad *= 3.0
        update *= -2.0
        np.testing.assert_array_equal(copied.to_dense(), expected)
        grad[:], update[:] = kept


def test_every_metric_maps_the_update_to_minus_the_gradient() -> None:
    for name, build in FORMS.items():
        if any(word in name for word in ("root", "power", "log", "multiple")):
            continue
        form: Form = build("flat")
        a = form.metric.alignment
        inverse = "inverse" in name
        assert a is not None
        assert a.status == "ok"
        eigen = np.linalg.eigvalsh(form.dense)
        if not a.relative:
            smallest, largest = a.eig_bounds
            assert eigen[0] <= smallest * (1 + 1e-12)
            assert eigen[-1] >= largest * (1 - 1e-12)
            assert eigen[-1] / eigen[0] >= a.cond_min * (1 - 1e-10)
        assert inverse or a.grad_norm == pytest.approx(a.rho * a.update_norm)


@pytest.mark.parametrize("name", ["alpha", "updated", "diagonal base", "operator base", "complement"])
def test_alignment_of_inverse_and_multiples(name: str) -> None:
    metric = FORMS[name]("flat").metric
    a, b, c = metric.alignment, metric.inv().alignment, (2 * metric).alignment
    assert b.angle == a.angle
    assert (b.grad_norm, b.update_norm) == (a.update_norm, a.grad_norm)
    assert metric.inv().inv().alignment.rho == pytest.approx(a.rho)
    assert c.rho == 2 * a.rho
    assert c.update_norm == a.update_norm
    assert c.inner_product == 2 * a.inner_product
    assert metric.sqrt().alignment is None
    assert metric.log().alignment is None


def test_alpha_of_powers() -> None:
    grad, update = pair(0.8, n=5)
    metric = steepest.metric(grad, update, alpha=4.0)
    assert metric.alpha == pytest.approx(4.0, rel=1e-15)
    assert metric.sqrt().alpha == pytest.approx(2.0, rel=1e-15)
    assert metric.inv().alpha == pytest.approx(0.25, rel=1e-15)
    assert metric.power(-1.5).alpha == pytest.approx(1 / 8, rel=1e-15)
    assert metric.log().alpha == pytest.approx(np.log(4.0), rel=1e-15)
    assert (3 * metric).alpha == pytest.approx(12.0, rel=1e-15)
    assert steepest.metric(grad, update, alpha=lambda a: 2 * a.alpha_opt).alpha == pytest.approx(
        2 * steepest.metric(grad, update).alpha, rel=1e-15
    )


def test_eigenpairs_of_any_size() -> None:
    n = 50_000
    grad, update = oracles.pair(n, 1.2, 5.0, rng=0)
    metric = steepest.metric(grad, update, alpha=2.0)
    values, vectors = metric.eigh(k=4)
    np.testing.assert_allclose(metric @ vectors, vectors * values, rtol=0, atol=1e-13 * values[-1])
    # not vectors.T @ vectors: BLAS may add up one after the other, which costs digits at this size
    inner = [[math.fsum(v * w) for w in vectors.T] for v in vectors.T]
    np.testing.assert_allclose(inner, np.eye(4), rtol=0, atol=1e-14)
    np.testing.assert_allclose(values[1:3], 2.0, rtol=1e-15)
    with pytest.raises(ValueError, match="max_size"):
        metric.eigh()


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e200, 1e300])
@pytest.mark.parametrize("psi", [0.0, 1e-8, 1.0])
def test_eigenvectors_of_vectors_of_any_norm(scale: float, psi: float) -> None:
    grad, update = oracles.pair(4, psi, 1.0, scale, rng=3)
    values, vectors = steepest.metric(grad, update).eigh()
    dense = oracles.dense_metric(grad / scale, update / scale)
    np.testing.assert_allclose(dense @ vectors, vectors * values, rtol=0, atol=1e-13)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(4), rtol=0, atol=1e-14)


def relative(actual: float, exact: Any) -> float:
    """Relative error against a multiple-precision number."""
    return float(abs(mp.mpf(float(actual)) - exact) / abs(exact))


@pytest.mark.parametrize("n", [2, 3, 1000])
@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("psi", ANGLES)
def test_closed_forms_from_vectors(psi: float, scale: Scale, n: int) -> None:
    """Eigenvalues, alpha and cond to 1e-12 relative against 60-digit arithmetic, on the numbers in memory."""
    grad, update = pair(psi, scale, n)
    exact = oracles.Member(grad, update)
    optimal = steepest.metric(grad, update)
    assert relative(optimal.alpha, exact.optimal_alpha) < 1e-12
    assert relative(optimal.cond(), exact.cond) < 1e-12
    for ratio in ALPHA_RATIOS:
        exact.alpha = mp.mpf(ratio) * exact.optimal_alpha
        exact.__dict__.pop("plane_eigenvalues", None)
        metric = steepest.metric(grad, update, alpha=ratio * optimal.alpha)
        expected = exact.eigenvalues()
        wanted = [expected[0], expected[-1]] if n == 2 else [expected[0], exact.alpha, expected[-1]]
        spectrum = metric.spectrum()
        found = np.repeat(spectrum.values, np.minimum(spectrum.multiplicities, 2))
        # Eigenvalues that agree to rounding may have been merged.
        assert min(found) == metric.spectrum().values[0]
        assert max(relative(found[i], wanted[i]) for i in (0, -1)) < 1e-12
        assert relative(metric.alpha, exact.alpha) < 1e-12
        assert min(relative(v, exact.alpha) for v in found) < 1e-12 or n == 2
        assert relative(metric.cond(), expected[-1] / expected[0]) < 1e-12
        assert relative(metric.inv().spectrum().values[-1], 1 / expected[0]) < 1e-12
        assert float(abs(metric.logdet() - exact.logdet())) < 1e-12 * max(1.0, float(abs(exact.logdet()))) + 1e-13 * n


def norm(x: np.ndarray) -> float:
    """2-norm of any float array without overflow, as mantissa times largest."""
    x = np.asarray(x, np.float64).ravel()
    largest = np.abs(x).max()
    return float(largest * np.linalg.norm(x / largest)) if largest > 0 else 0.0


def assert_residuals(grad: np.ndarray, update: np.ndarray, eps: float, ratio: float = 1.0) -> None:
    """|M update + grad| and |M^-1 (-grad) - update| within the contract."""
    optimal = steepest.metric(grad, update)
    metric = optimal if ratio == 1.0 else steepest.metric(grad, update, alpha=ratio * optimal.alpha)
    cosine = optimal.alignment.cosine
    wide = np.float64
    forward = norm((metric @ update).astype(wide) + grad.astype(wide)) / norm(grad)
    backward = norm(metric.solve(-grad).astype(wide) - update.astype(wide)) / norm(update)
    assert forward <= 8 * eps * max(1.0, ratio) / cosine
    assert backward <= 8 * eps * max(1.0, 1 / ratio) / cosine


@pytest.mark.parametrize("n", [2, 3, 1000])
@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("psi", ANGLES)
def test_residuals(psi: float, scale: Scale, n: int) -> None:
    grad, update = pair(psi, scale, n)
    for ratio in ALPHA_RATIOS:
        assert_residuals(grad, update, 2.0**-52, ratio)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [2, 3, 1000, 10_007])
@pytest.mark.parametrize("psi", [0.0, 0.3, 0.8, 1.2, 1.5])
def test_residuals_of_every_dtype(psi: float, n: int, dtype: str) -> None:
    # Norms that keep elements of float16 normal: what is below 6e-5 has fewer digits.
    grad, update = oracles.pair(n, psi, 1.0, float(np.sqrt(n)), rng=n, dtype=DTYPES[dtype])
    for ratio in (1e-2, 1.0, 1e2):
        assert_residuals(grad, update, EPSILON[dtype], ratio)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("psi", [0.0, 1e-3, 1.0, np.pi / 2 - 1e-2])
def test_residuals_of_a_million(psi: float, dtype: str) -> None:
    rng = np.random.default_rng(0)
    update, other = rng.standard_normal((2, 1_000_000))
    grad = (-1e3 * (np.cos(psi) * update + np.sin(psi) * other)).astype(dtype)
    update = update.astype(dtype)
    assert abs(steepest.align(grad, update).angle - psi) < 0.01
    for ratio in (1e-4, 1.0, 1e4):
        assert_residuals(grad, update, EPSILON[dtype], ratio)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 7, 1_000_001])
def test_residuals_of_constant_vectors(n: int, dtype: str) -> None:
    """Sums of equal numbers are where naive summation drifts."""
    grad, update = np.full(n, 0.3).astype(DTYPES[dtype]), np.full(n, -0.7).astype(DTYPES[dtype])
    for ratio in (1e-4, 1.0, 1e4):
        assert_residuals(grad, update, EPSILON[dtype], ratio)
    metric = steepest.metric(grad, update)
    exact = float(grad[0]) / -float(update[0])
    np.testing.assert_allclose(metric.spectrum().values, exact, rtol=1e-12)
    assert metric.cond() < 1 + 1e-12


def test_functions_against_multiple_precision() -> None:
    """f(M) x where eigenvalues are far apart, to 1e-12 of the norm of f(M)."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(20)
    for psi in (1e-6, 0.7, np.pi / 2 - 1e-4):
        for ratio in (1e-4, 1.0, 1e4):
            grad, update = pair(psi, n=20)
            alpha = ratio * steepest.metric(grad, update).alpha
            metric = steepest.metric(grad, update, alpha=alpha)
            member = oracles.Member(grad, update, alpha)
            eigen = [float(v) for v in member.plane_eigenvalues]
            for found, f in (
                (metric.inv(), lambda t: 1 / t),
                (metric.sqrt(), mp.sqrt),
                (metric.log(), mp.log),
                (metric.power(-1.7), lambda t: t ** mp.mpf(-1.7)),
            ):
                expected = np.array([float(v) for v in member.apply(f, x)])
                size = max(abs(float(f(mp.mpf(v)))) for v in eigen) * np.linalg.norm(x)
                if f == mp.log:  # the logarithm of an eigenvalue near 1 has the absolute error of that eigenvalue
                    size = max(size, np.linalg.norm(x))
                np.testing.assert_allclose(found @ x, expected, rtol=0, atol=1e-12 * size)


def test_a_metric_of_plain_arrays_is_made_on_demand() -> None:
    rng = np.random.default_rng(5)
    grad = rng.standard_normal(50)
    update = -grad + 0.1 * rng.standard_normal(50)
    # A mapping takes the general way: everything is made at once.
    expected = steepest.metric({"a": grad}, {"a": update})
    for ask in (
        lambda m: m.alpha,
        lambda m: m.shape,
        lambda m: m.positive_definite,
        lambda m: pickle.loads(pickle.dumps(m)).spectrum(),
        lambda m: copy.copy(m).alignment,
        lambda m: m.copy().cond(),
        lambda m: m.inv().logdet(),
        repr,
    ):
        assert ask(steepest.metric(grad, update)) == ask(expected)
    metric = steepest.metric(grad, update)
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = metric.absent
    assert not hasattr(metric, "absent")
    fresh = steepest.metric(grad, update)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: fresh.alpha, range(64))) == {expected.alpha}
