"""Every method of `Metric`, for every form, against dense matrices."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import oracles
import pytest
import scipy.linalg
from cases import FORMS, LAYOUTS, SCALED_OVER_BASE, SIZE, Form, flat, pair, spd

import steepest

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
    dense = np.array([[-grad[0] / update[0]]]) if n == 1 else oracles.dense_metric(
        grad, update, None if alpha == "optimal" else alpha
    )
    compare_with_dense(metric, dense, "flat")
    compare_symmetric(metric.log(), oracles.dense_function(dense, np.log), "flat")
    base = np.linspace(1.0, 2.0, n)
    compare_with_dense(steepest.metric(grad, update, base=base), oracles.dense_metric(grad, update, base=base), "flat",
                       np.diag(base))
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


def test_eigenpairs_of_any_size() -> None:
    n = 50_000
    grad, update = oracles.pair(n, 1.2, 5.0, rng=0)
    metric = steepest.metric(grad, update, alpha=2.0)
    values, vectors = metric.eigh(k=4)
    np.testing.assert_allclose(metric @ vectors, vectors * values, rtol=0, atol=1e-13 * values[-1])
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(4), rtol=0, atol=1e-14)
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
