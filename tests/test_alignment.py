"""The angle, its certified sign, and what follows from it for every metric."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import scipy.linalg
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.sparse.linalg import aslinearoperator

import oracles
import steepest
from cases import ANGLES, DTYPES, EPSILON, SCALES, Scale, pair, spd
from oracles import mp


@pytest.mark.parametrize("n", [2, 3, 1000])
@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("psi", ANGLES)
def test_against_multiple_precision(psi: float, scale: Scale, n: int) -> None:
    grad, update = pair(psi, scale, n)
    exact = oracles.Member(grad, update)
    a = steepest.align(grad, update)
    assert a.status == "ok"
    assert a.size == n
    for found, expected in (
        (a.cosine, exact.cosine),
        (a.sine, exact.sine),
        (a.angle, exact.angle),
        (a.grad_norm, mp.sqrt(exact.yy)),
        (a.update_norm, mp.sqrt(exact.gg)),
        (a.rho, exact.rho),
        (a.cond_min, ((1 + exact.sine) / exact.cosine) ** 2),
        (a.alpha_opt, exact.optimal_alpha),
        (a.eig_bounds[0], exact.rho * exact.cosine),
        (a.eig_bounds[1], exact.rho / exact.cosine),
    ):
        assert float(abs(found - expected) / expected) < 1e-12
    smallest_largest = exact.rho * (1 + exact.sine) / exact.cosine
    rate = -exact.yy / smallest_largest
    if abs(rate) > 1e-300 and abs(rate) < 1e300:
        assert float(abs(a.rate_bound - rate) / abs(rate)) < 1e-12
    assert float(abs(a.angle - exact.angle)) <= a.angle_bound
    if scale.joint == 1.0:
        assert float(abs(mp.mpf(a.inner_product) + exact.yg)) <= a.inner_product_bound + 2.0**-53 * float(exact.yg)


@pytest.mark.parametrize("n", [1000, 10_007])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bounds_hold_for_every_dtype(dtype: str, n: int) -> None:
    for seed, psi in enumerate((0.0, 1e-2, 1.0, 1.5)):
        grad, update = oracles.pair(n, psi, rng=seed, joint_scale=math.sqrt(n), dtype=DTYPES[dtype])
        exact, a = oracles.Member(grad, update), steepest.align(grad, update)
        assert a.dtype == dtype
        assert float(abs(a.angle - exact.angle)) <= a.angle_bound
        assert float(abs(mp.mpf(a.inner_product) + exact.yg)) <= a.inner_product_bound + 2.0**-53 * float(exact.yg)
        assert abs(a.cosine - float(exact.cosine)) < 1e-10
        assert abs(a.sine - float(exact.sine)) < 1e-10


def nearly_orthogonal(n: int, tiny: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Vectors whose exact inner product is tiny (zero, or that small number): pairs of terms cancel."""
    x, z = rng.standard_normal((2, n // 2))
    grad = np.concatenate([x, -z, [1.0]])
    update = np.concatenate([z, x, [tiny]])
    order = rng.permutation(grad.size)
    return grad[order], update[order]


@pytest.mark.parametrize("n", [3, 101, 20_001])
@pytest.mark.parametrize("tiny", [1e-30, 1e-25, 1e-18, 1e-300])
def test_sign_is_certified(n: int, tiny: float) -> None:
    """y.g within 1e-30 |y||g| of zero, in both signs, and exactly zero."""
    rng = np.random.default_rng(n)
    for _ in range(5):
        for value, status in ((-tiny, "ok"), (tiny, "ascent"), (0.0, "ascent")):
            grad, update = nearly_orthogonal(n, value, rng)
            a = steepest.align(grad, update)
            assert a.status == status
            assert a.inner_product == value
            assert abs(a.angle - math.pi / 2) < 1e-15
            if status == "ok":
                metric = steepest.metric(grad, update)
                assert math.isfinite(metric.alpha)
            else:
                with pytest.raises(steepest.NotDescentError, match="ascent"):
                    steepest.metric(grad, update)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_sign_is_certified_for_narrow_types(dtype: str) -> None:
    rng = np.random.default_rng(0)
    tiny = {"float32": 1e-40, "float16": 6e-8, "bfloat16": 1e-38}[dtype]
    x, z = rng.standard_normal((2, 5000))
    for value, status in ((-tiny, "ok"), (tiny, "ascent"), (0.0, "ascent")):
        grad = np.concatenate([x, -z, [1.0]]).astype(DTYPES[dtype])
        update = np.concatenate([z, x, [value]]).astype(DTYPES[dtype])
        assert steepest.align(grad, update).status == status


finite = st.floats(-1e100, 1e100, allow_subnormal=True)


@settings(deadline=None, max_examples=300, derandomize=True)
@given(st.integers(1, 6).flatmap(lambda n: st.tuples(*[hnp.arrays(np.float64, n, elements=finite)] * 2)))
@example((np.array([1.0, 2.0**-60]), np.array([2.0**-60, -1.0])))
@example((np.array([5e-324, 5e-324]), np.array([5e-324, -5e-324])))
@example((np.array([5e-324]), np.array([-5e-324])))
def test_status_is_right_for_any_numbers(vectors: tuple[np.ndarray, np.ndarray]) -> None:
    grad, update = vectors
    a = steepest.align(grad, update)
    exact = oracles.inner(grad, update)
    if not grad.any():
        assert a.status == "zero_grad"
    elif not update.any():
        assert a.status == "zero_update"
    else:
        assert a.status == ("ok" if exact < 0 else "ascent")
        assert 0.0 <= a.angle <= math.pi
        cosine = -exact / mp.sqrt(oracles.inner(grad, grad) * oracles.inner(update, update))
        assert abs(a.angle - float(mp.acos(cosine))) <= a.angle_bound + 1e-15
    assert steepest.align(-grad, -update) == a
    assert repr(a)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.integers(0, 10**6), st.integers(-900, 900), st.integers(-900, 900))
def test_powers_of_two_scale_exactly(seed: int, p: int, q: int) -> None:
    grad, update = pair(0.7, n=5, seed=seed)
    if max(abs(p), abs(q)) > 700 and p * q > 0:
        p //= 2
    a = steepest.align(grad, update)
    b = steepest.align(np.ldexp(grad, p), np.ldexp(update, q))
    assert (b.angle, b.cosine, b.sine) == (a.angle, a.cosine, a.sine)
    assert b.grad_norm == math.ldexp(a.grad_norm, p)
    assert b.cond_min == a.cond_min


def test_statuses_without_an_angle() -> None:
    x = np.array([1.0, 2.0])
    for grad, update, status in (
        (x, 0 * x, "zero_update"),
        (0 * x, x, "zero_grad"),
        (0 * x, 0 * x, "zero_grad"),
        (x, x * np.nan, "nonfinite"),
        (np.array([1.0, np.inf]), x, "nonfinite"),
        (np.array([-np.inf, np.nan]), x, "nonfinite"),
        (0 * x, np.array([1.0, np.nan]), "nonfinite"),
    ):
        a = steepest.align(grad, update)
        assert a.status == status
        for value in (a.angle, a.cosine, a.sine, a.cond_min, a.alpha_opt, a.rate_bound, *a.eig_bounds):
            assert math.isnan(value)
        assert not a.within_rounding
        assert status in repr(a)
        assert a.to_dict()["status"] == status


def test_ascent_has_an_angle() -> None:
    a = steepest.align([1.0, 0.0], [1.0, 1.0])
    assert a.status == "ascent"
    assert a.angle_degrees == pytest.approx(135.0, rel=1e-15)
    assert math.isnan(a.cond_min)
    assert a.inner_product == 1.0


def test_single_parameter() -> None:
    a = steepest.align([2.0], [-0.1])
    assert (a.status, a.angle, a.cosine, a.sine, a.cond_min) == ("ok", 0.0, 1.0, 0.0, 1.0)
    assert a.eig_bounds == pytest.approx((20.0, 20.0))
    assert steepest.align([2.0], [0.1]).angle == math.pi


def test_blocks() -> None:
    rng = np.random.default_rng(0)
    grad = {"a": rng.standard_normal((3, 2)), "b": rng.standard_normal(4)}
    update = {"b": -grad["b"] + 0.1, "a": -0.5 * grad["a"]}
    joint = steepest.align(grad, update)
    flat = steepest.align(
        np.concatenate([grad["a"].ravel(), grad["b"]]), np.concatenate([update["a"].ravel(), update["b"]])
    )
    # The same numbers, summed in another order.
    assert (joint.status, joint.size, joint.dtype) == (flat.status, flat.size, flat.dtype)
    for field in ("inner_product", "grad_norm", "update_norm", "rho", "cosine", "sine", "angle", "null_sign_flip"):
        assert getattr(joint, field) == pytest.approx(getattr(flat, field), rel=1e-13)
    separate = steepest.align(grad, update, blocks="separate")
    assert list(separate) == ["a", "b"]
    for name, block in grad.items():
        assert separate[name] == steepest.align(block, update[name])
    base = {"a": np.full((3, 2), 2.0), "b": aslinearoperator(np.diag([1.0, 2, 3, 4]))}
    with_base = steepest.align(grad, update, base=base, blocks="separate")
    assert with_base["b"].angle == pytest.approx(steepest.align(grad["b"], update["b"], base=np.arange(1.0, 5)).angle)
    assert with_base["a"].angle == pytest.approx(separate["a"].angle)


def bases(n: int) -> dict[str, tuple[Any, np.ndarray]]:
    d = np.geomspace(0.01, 50.0, n)
    b = spd(n)
    metric = steepest.metric(*pair(0.6, n=n, seed=70))
    return {
        "diagonal": (d, np.diag(d)),
        "metric": (metric, metric.to_dense()),
        "operator": (aslinearoperator(b), b),
        "diagonal metric": (
            steepest.metric(*pair(0.9, n=n, seed=71), base=d),
            oracles.dense_metric(*pair(0.9, n=n, seed=71), base=d),
        ),
    }


@pytest.mark.parametrize("psi", [1e-6, 0.5, 1.3, 2.5])
@pytest.mark.parametrize("name", bases(3))
def test_base_against_whitened_vectors(name: str, psi: float) -> None:
    n = 5
    base, dense = bases(n)[name]
    root = oracles.dense_function(dense, np.sqrt)
    # Whitened vectors at the angle psi, and what they are before whitening
    white_grad, white_update = pair(psi if psi < 1.5 else math.pi - psi, n=n, seed=5)
    if psi > 1.5:
        white_grad = -white_grad
    grad, update = root @ white_grad, np.linalg.solve(root, white_update)
    a = steepest.align(grad, update, base=base)
    assert a.relative
    assert a.status == ("ok" if psi < 1.5 else "ascent")
    assert a.angle == pytest.approx(psi, abs=1e-10)
    assert a.grad_norm == pytest.approx(np.linalg.norm(white_grad), rel=1e-10)
    assert a.update_norm == pytest.approx(np.linalg.norm(white_update), rel=1e-10)
    assert a.rho == pytest.approx(a.grad_norm / a.update_norm, rel=1e-14)
    assert "relative" in repr(a)


@pytest.mark.parametrize("name", ["diagonal", "operator", "metric"])
def test_invariance_when_the_base_transforms_along(name: str) -> None:
    """theta -> T theta: grad -> T^-T grad, update -> T update, B -> T^-T B T^-1."""
    n = 4
    grad, update = pair(1.0, n=n, seed=2)
    base, dense = bases(n)[name]
    t = np.diag(np.geomspace(1e-3, 1e2, n))
    inverse = np.linalg.inv(t)
    moved = inverse.T @ dense @ inverse
    new = np.diag(moved).copy() if name == "diagonal" else aslinearoperator(moved)
    before = steepest.align(grad, update, base=base)
    after = steepest.align(inverse.T @ grad, t @ update, base=new)
    assert after.angle == pytest.approx(before.angle, rel=1e-8)
    assert after.grad_norm == pytest.approx(before.grad_norm, rel=1e-8)
    plain = steepest.align(grad, update).angle
    assert abs(steepest.align(inverse.T @ grad, t @ update).angle - plain) > 0.05


def test_diagonal_base_is_as_accurate_as_none() -> None:
    """A base of powers of four whitens exactly, so the angle must be the same to the last digits."""
    rng = np.random.default_rng(0)
    for psi in (1e-9, 0.5, math.pi / 2 - 1e-9):
        grad, update = pair(psi, n=50)
        powers = rng.integers(-20, 20, 50)
        a = steepest.align(np.ldexp(grad, powers), np.ldexp(update, -powers), base=np.ldexp(1.0, 2 * powers))
        b = steepest.align(grad, update)
        assert a.angle == pytest.approx(b.angle, rel=1e-12)
        assert a.cosine == pytest.approx(b.cosine, rel=1e-12)
        assert a.sine == pytest.approx(b.sine, rel=1e-12)
        assert a.null_sign_flip == pytest.approx(b.null_sign_flip, rel=1e-12)


@pytest.mark.parametrize("n", [2, 3, 10, 100])
def test_isotropic_band_against_random_directions(n: int) -> None:
    rng = np.random.default_rng(n)
    grad = rng.standard_normal(n)
    directions = rng.standard_normal((20_000, n))
    cosines = directions @ grad / np.linalg.norm(directions, axis=1) / np.linalg.norm(grad)
    a = steepest.align(grad, -grad)
    assert a.null_isotropic == pytest.approx(cosines.std(), rel=0.03)
    for level in (0.5, 0.95):
        low, high = a.null_band(level=level)
        inside = np.mean((np.arccos(cosines) > low) & (np.arccos(cosines) < high))
        assert inside == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 20_000))
        assert low + high == pytest.approx(math.pi)


def test_sign_flip_band_against_random_signs() -> None:
    rng = np.random.default_rng(0)
    n = 400
    sparse = rng.standard_normal(n) * (rng.random(n) < 0.1)
    update = rng.standard_normal(n) * np.geomspace(1, 100, n)
    a = steepest.align(sparse, update)
    assert a.null_sign_flip > 1.5 * a.null_isotropic
    signs = rng.choice([-1.0, 1.0], (20_000, n))
    cosines = signs @ (sparse * update) / np.linalg.norm(sparse) / np.linalg.norm(update)
    assert a.null_sign_flip == pytest.approx(cosines.std(), rel=0.03)
    low, high = a.null_band("sign-flip")
    assert np.mean((np.arccos(cosines) > low) & (np.arccos(cosines) < high)) == pytest.approx(0.95, abs=0.02)
    base = steepest.align(sparse, update, base=np.full(n, 3.0))
    assert base.null_sign_flip == pytest.approx(a.null_sign_flip)
    operator = steepest.align(sparse, update, base=aslinearoperator(3.0 * np.eye(n)))
    assert operator.null_sign_flip == pytest.approx(a.null_sign_flip)


def test_null_band_arguments() -> None:
    a = steepest.align([1.0, 2.0], [-1.0, 0.0])
    for level in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="level"):
            a.null_band(level=level)
    with pytest.raises(ValueError, match="isotropic"):
        a.null_band("gauss")
    assert steepest.align([1.0], [-1.0]).null_band() == (0.0, math.pi)


@pytest.mark.parametrize("psi", [0.0, 0.4, 1.4])
@pytest.mark.parametrize("n", [2, 5])
def test_bounds_hold_for_random_metrics(psi: float, n: int) -> None:
    """Propositions 1 to 3 and eq (5), for many metrics M = y y^T/(y.g) + U U^T."""
    rng = np.random.default_rng(n)
    grad, update = pair(psi, n=n)
    a = steepest.align(grad, update)
    q = scipy.linalg.null_space(update[None])
    for _ in range(300):
        u = q @ rng.standard_normal((n - 1, n - 1)) * 10.0 ** rng.uniform(-2, 2)
        m = np.outer(grad, grad) / -(grad @ update) + u @ u.T
        values = np.linalg.eigvalsh(m)
        tolerance = 1e-10 * values[-1]
        assert values[0] <= a.eig_bounds[0] + tolerance
        assert values[-1] >= a.eig_bounds[1] - tolerance
        if values[0] > 1e-10 * values[-1]:
            assert values[-1] / values[0] >= a.cond_min * (1 - 1e-5)
        # eq (5) for this metric: dL/dt = -grad M^-1 grad = grad.update <= -|grad|^2/lam_max
        assert grad @ update <= -(grad @ grad) / values[-1] * (1 - 1e-10)
    assert a.inner_product <= a.rate_bound * (1 - 1e-12)
    optimal = np.linalg.eigvalsh(oracles.dense_metric(grad, update))
    assert a.rate_bound == pytest.approx(-(grad @ grad) / optimal[-1], rel=1e-12)
    assert optimal[-1] / optimal[0] == pytest.approx(a.cond_min, rel=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_psi_floor(dtype: str) -> None:
    grad = np.array([1.0, 2.0, 4.0], DTYPES[dtype])
    parallel = steepest.align(grad, -grad)
    assert parallel.psi_floor == EPSILON[dtype]
    assert parallel.within_rounding
    assert "within rounding" in repr(parallel)
    apart = steepest.align(grad, -grad[::-1])
    assert not apart.within_rounding
    # The coarser type sets it.
    assert steepest.align(grad, -grad.astype(np.float64)).psi_floor == EPSILON[dtype]


def test_mixed_types() -> None:
    rng = np.random.default_rng(0)
    grad, update = rng.standard_normal((2, 100))
    g16, u32 = grad.astype(ml_dtypes.bfloat16), update.astype(np.float32)
    a = steepest.align(g16, u32)
    b = steepest.align(g16.astype(np.float64), u32.astype(np.float64))
    assert a.dtype == "bfloat16"
    assert a.cosine == pytest.approx(b.cosine, abs=1e-10)
    assert a.inner_product == pytest.approx(b.inner_product, abs=a.inner_product_bound)


def test_plain_values_and_copies() -> None:
    a = steepest.align([3.0, 4.0], [-3.0, -1.0])
    plain = a.to_dict()
    assert json.loads(json.dumps(plain))["cond_min"] == a.cond_min
    assert {f.name for f in dataclasses.fields(a)} < set(plain)
    assert plain["eig_bounds"] == a.eig_bounds
    assert pickle.loads(pickle.dumps(a)) == a
    with pytest.raises(dataclasses.FrozenInstanceError):
        a.angle = 0.0
    assert repr(a).startswith("Alignment(status='ok', n=2, angle=34.6952 deg, cond_min=3.64263")


def test_no_sign_flip_band_without_its_variance() -> None:
    a = dataclasses.replace(steepest.align([3.0, 4.0], [-3.0, -1.0]), null_sign_flip=math.nan)
    assert all(math.isnan(x) for x in a.null_band("sign-flip"))
    assert not any(math.isnan(x) for x in a.null_band("isotropic"))
