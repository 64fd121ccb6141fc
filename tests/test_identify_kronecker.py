"""Kronecker metrics behind many steps: planted ones recovered, scored, and refused where the data cannot tell."""

from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pytest
from scipy.optimize import least_squares

from kronecker_cases import BOTH, FAMILIES, INPUT, OUTPUT, dense, planted, quadratic_run, relative, spd
from steepest.identify import identify
from steepest.identify.geometric_mean import geometric_mean
from steepest.identify.kronecker_side import new_sums, rank_tolerance, solve_side, symmetric_side
from steepest.identify.row_factor import RowFactor
from steepest.recorder import Recorder

# Planted metrics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_planted_on_a_quadratic(family):
    rng = np.random.default_rng(0)
    m, r = 4, 6
    A, B = planted(family, m, r, rng)
    grad, update = quadratic_run(A, B, 60, rng)
    found = identify(grad=grad, update=update, family=family, rng=0)
    expected = 10.0 * np.kron(A, B)
    fit = found["(all)"]
    rtol = 1e-4 if family == BOTH else 1e-11  # an alternation stops; the others are closed forms
    assert relative(dense(found, family, m, r), expected) < rtol
    assert relative(found.metric.to_dense(), expected) < rtol
    assert relative(found.to_metric(symmetric=True).to_dense(), expected) < rtol
    assert fit.status == "ok"
    assert (fit.determined, fit.not_positive) == (1.0, 0)
    assert (fit.smallest, fit.largest) == pytest.approx(tuple(np.linalg.eigvalsh(expected)[[0, -1]]), rel=rtol)
    for score in (fit.r2, fit.r2_in_sample, fit.r2_reverse, fit.r2_symmetric):
        assert score == pytest.approx(1.0, abs=1e-8)
    assert fit.parameters == {OUTPUT: 10, INPUT: 21, BOTH: 30}[family]
    np.testing.assert_allclose(found.metric @ update[0], -grad[0], rtol=1e-3, atol=1e-4 * np.abs(grad[0]).max())
    copied = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(copied.metric @ update[0], found.metric @ update[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_recordings_are_read_as_often_as_needed(family, tmp_path):
    rng = np.random.default_rng(0)
    A, B = planted(family, 3, 4, rng, 5.0)
    grad, update = quadratic_run(A, B, 20, rng, noise_y=0.2)
    with Recorder(tmp_path / "run", keep="vectors") as recorder:
        for y, g in zip(grad, update, strict=True):
            recorder.step(params={"w": np.zeros((3, 4))}, grad={"w": y}, update={"w": g})
    expected = identify(grad=grad, update=update, family=family, rng=0)
    for source in (recorder, tmp_path / "run", list(zip(grad, update, strict=True))):
        found = identify(source, family, rng=0)
        assert found["(all)"].r2 == pytest.approx(expected["(all)"].r2, rel=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_error_falls_as_one_over_root_t(family):
    m, r, lengths, errors = 3, 5, (40, 160, 640), []
    for T in lengths:
        found = []
        for seed in range(8):
            rng = np.random.default_rng(seed)
            A, B = planted(family, m, r, rng, 5.0)
            grad, update = quadratic_run(A, B, T, rng, noise_y=0.5)
            fit = identify(grad=grad, update=update, family=family, rng=0, holdout=0.1)
            found.append(relative(dense(fit, family, m, r), 10.0 * np.kron(A, B)) ** 2)
        errors.append(np.sqrt(np.mean(found)))
    slope = np.polyfit(np.log(lengths), np.log(errors), 1)[0]
    assert -0.65 < slope < -0.35
    assert errors[-1] < 0.1


@pytest.mark.parametrize("family", [OUTPUT, INPUT])
def test_noise_in_updates_shrinks_the_fit_and_the_symmetric_one_by_half(family):
    rng = np.random.default_rng(0)
    m, r, T, noise = 3, 4, 4000, 0.7
    A, B = planted(family, m, r, rng, 5.0)
    g = rng.normal(size=(T, m, r))
    y = A @ g @ B
    found = identify(grad=-y, update=g + noise * rng.normal(size=g.shape), family=family, rng=0, holdout=0.1)
    # Regression on G + noise with isotropic G: A / (1 + noise^2); the geometric mean takes the root.
    expected = np.kron(A, B)
    assert relative(dense(found, family, m, r) * (1.0 + noise**2), expected) < 0.04
    assert relative(dense(found, family, m, r, symmetric=True) * np.sqrt(1.0 + noise**2), expected) < 0.04
    assert found["(all)"].r2_reverse == pytest.approx(1.0 / (1.0 + noise**2), abs=0.05)


def test_symmetric_estimate_of_both_sides():
    rng = np.random.default_rng(0)
    m, r, T, noise = 3, 4, 3000, 0.5
    A, B = planted(BOTH, m, r, rng, 3.0)
    g = rng.normal(size=(T, m, r))
    found = identify(grad=-A @ g @ B, update=g + noise * rng.normal(size=g.shape), family=BOTH, rng=0, holdout=0.1)
    expected = np.kron(A, B)
    assert relative(dense(found, BOTH, m, r) * (1.0 + noise**2), expected) < 0.05
    assert relative(dense(found, BOTH, m, r, symmetric=True) * np.sqrt(1.0 + noise**2), expected) < 0.05


# Independent oracles --------------------------------------------------------------------------------------------------


def cholesky_oracle(y, g, both, starts):
    """Smallest residual of |y - A g B|^2 over A = L L^T, B = K K^T, from given (L, K)."""
    m, r = y.shape[1:]
    low_a, low_b = np.tril_indices(m), np.tril_indices(r)

    def residual(z):
        left, right = np.zeros((m, m)), np.zeros((r, r)) if both else np.eye(r)
        left[low_a] = z[: len(low_a[0])]
        if both:
            right[low_b] = z[len(low_a[0]) :]
        return (y - left @ left.T @ g @ right @ right.T).ravel()

    points = [np.concatenate([left[low_a], right[low_b]]) if both else left[low_a] for left, right in starts]
    return 2.0 * min(least_squares(residual, z, xtol=1e-14, ftol=1e-14, gtol=1e-14, max_nfev=500).cost for z in points)


def residual_of(found, y, g, family):
    T, m, r = y.shape
    left = y.reshape(T, -1) - g.reshape(T, -1) @ dense(found, family, m, r)
    assert np.sum(left**2) == pytest.approx((1.0 - found["(all)"].r2_in_sample) * np.sum(y**2), rel=1e-6)
    return np.sum(left**2)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("family", [OUTPUT, INPUT])
def test_general_optimiser_agrees_on_one_side(family, seed):
    rng = np.random.default_rng(seed)
    y, g = rng.normal(size=(2, 6, 3, 3))
    found = identify(grad=-y, update=g, family=family, holdout=0.0)  # no metric at all: the constraint is active
    if family == INPUT:
        y, g = y.transpose(0, 2, 1), g.transpose(0, 2, 1)
    starts = [(rng.normal(size=(3, 3)), None) for _ in range(6)]
    if family == INPUT:
        ours = residual_of(found, y.transpose(0, 2, 1), g.transpose(0, 2, 1), family)
    else:
        ours = residual_of(found, y, g, family)
    assert found["(all)"].not_positive > 0
    assert ours == pytest.approx(cholesky_oracle(y, g, False, starts), rel=1e-5)
    assert np.linalg.eigvalsh(found.elements())[0] > -1e-12


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_general_optimiser_finds_nothing_better_on_both_sides(seed):
    rng = np.random.default_rng(seed)
    m, r, T = 3, 2, 8
    A, B = planted(BOTH, m, r, rng, 5.0)
    g = rng.normal(size=(T, m, r))
    y = A @ g @ B
    y = y + 0.3 * np.sqrt(np.mean(y**2)) * rng.normal(size=g.shape)
    found = identify(grad=-y, update=g, family=BOTH, holdout=0.0, tolerance=1e-14, max_iterations=2000)
    ours = residual_of(found, y, g, BOTH)
    starts = [(rng.normal(size=(m, m)), rng.normal(size=(r, r))) for _ in range(8)]
    assert ours == pytest.approx(cholesky_oracle(y, g, True, starts), rel=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_far_from_a_product_the_fit_is_a_local_minimum(seed):
    rng = np.random.default_rng(seed)
    y, g = rng.normal(size=(2, 6, 3, 2))
    y = y + 0.5 * g
    found = identify(grad=-y, update=g, family=BOTH, holdout=0.0, tolerance=1e-14, max_iterations=2000)
    ours = residual_of(found, y, g, BOTH)
    roots = [np.linalg.cholesky(x + 1e-9 * np.trace(x) * np.eye(len(x))) for x in found.elements()]
    assert cholesky_oracle(y, g, True, [roots]) == pytest.approx(ours, rel=1e-5)


def test_inactive_constraint_is_least_squares_over_symmetric_matrices():
    rng = np.random.default_rng(0)
    m, r, T = 4, 3, 10
    A = spd(m, rng)
    g = rng.normal(size=(T, m, r))
    y = A @ g + 0.1 * rng.normal(size=g.shape)
    found = identify(grad=-y, update=g, family=OUTPUT, holdout=0.0)
    basis = []
    for i in range(m):
        for j in range(i + 1):
            e = np.zeros((m, m))
            e[i, j] = e[j, i] = 1.0
            basis.append(e)
    columns = np.stack([(e @ g).ravel() for e in basis], axis=1)
    z = np.linalg.lstsq(columns, y.ravel(), rcond=None)[0]
    np.testing.assert_allclose(found.elements(), sum(c * e for c, e in zip(z, basis, strict=True)), rtol=1e-9)


def test_pieces():
    rng = np.random.default_rng(0)
    A, C = spd(5, rng), spd(5, rng)
    S = geometric_mean(A, C)
    np.testing.assert_allclose(S @ np.linalg.solve(A, S), C, rtol=1e-9)
    np.testing.assert_allclose(S, geometric_mean(C, A), rtol=1e-9)
    x, z = rng.normal(size=(2, 5, 9))
    S = symmetric_side(x, z)
    np.testing.assert_allclose(S @ x @ x.T @ S, z @ z.T, rtol=1e-8)
    assert np.linalg.eigvalsh(S)[0] > 0.0


def test_sums_of_products_give_what_orthogonal_factors_give():
    rng = np.random.default_rng(0)
    m = 300  # beyond the size up to which factors are kept
    A = spd(m, rng)
    gram, factor = new_sums(m), RowFactor(m)
    assert not isinstance(gram, RowFactor)
    for _ in range(4):
        g = rng.normal(size=(m, 100))
        y = A @ g + 0.1 * rng.normal(size=g.shape)
        gram.add(g, y)
        factor.add(g, y)
    for one, other in ((gram.pair(), factor.pair()), (gram.swapped(), factor.swapped())):
        a, residual = solve_side(*one, rank_tolerance(m, 2.0**-52))
        b, expected = solve_side(*other, rank_tolerance(m, 2.0**-52))
        assert residual == pytest.approx(expected, rel=1e-9)
        np.testing.assert_allclose(a.matrix, b.matrix, atol=1e-8 * np.abs(b.matrix).max())


# What the data cannot tell --------------------------------------------------------------------------------------------


def test_too_few_steps():
    rng = np.random.default_rng(0)
    fit = identify(grad=rng.normal(size=(3, 9, 2)), update=rng.normal(size=(3, 9, 2)), family=OUTPUT)["(all)"]
    assert fit.status == "too_few_steps"
    assert any("2 steps with 2 columns each cannot span 9 directions" in note for note in fit.notes)
    A, B = planted(BOTH, 5, 5, rng)
    grad, update = quadratic_run(A, B, 6, rng)
    one = identify(grad=grad[:2], update=update[:2], family=BOTH, holdout=0.5)["(all)"]
    assert one.status == "too_few_steps"
    assert any("1 steps are fewer than the 1.16" in note for note in one.notes)
    enough = identify(grad=grad, update=update, family=BOTH, holdout=0.5, max_iterations=2000, tolerance=1e-15)
    assert enough["(all)"].status == "ok"
    assert relative(dense(enough, BOTH, 5, 5), 10.0 * np.kron(A, B)) < 1e-3


def test_two_steps_determine_a_square_product():
    rng = np.random.default_rng(0)
    A, B = planted(BOTH, 5, 5, rng, 4.0)
    grad, update = quadratic_run(A, B, 3, rng)
    found = identify(grad=grad, update=update, family=BOTH, holdout=0.3, max_iterations=3000, tolerance=1e-15)
    assert found.fitted_steps == 2
    assert relative(dense(found, BOTH, 5, 5), 10.0 * np.kron(A, B)) < 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_moved_and_uphill(family):
    rng = np.random.default_rng(0)
    grad = rng.normal(size=(20, 3, 2))
    still = identify(grad=grad, update=np.zeros_like(grad), family=family)
    assert still["(all)"].status == "not_identified"
    assert still["(all)"].determined == 0.0
    assert still["(all)"].r2 == 0.0
    uphill = identify(grad=grad, update=grad, family=family)
    fit = uphill["(all)"]
    assert fit.status == "not_positive_definite"
    assert fit.r2 == pytest.approx(0.0, abs=1e-12)
    assert any("is singular" in note for note in fit.notes)
    with pytest.raises(ValueError, match="not positive definite everywhere"):
        uphill.to_metric()
    np.testing.assert_allclose(uphill.to_metric(floor=0.25).to_dense(), 0.25 * np.eye(6), atol=1e-14)
    with pytest.raises(ValueError, match="not positive definite everywhere"):
        uphill.to_metric(symmetric=True)


def test_stopping_early_is_said():
    rng = np.random.default_rng(0)
    A, B = planted(BOTH, 4, 5, rng, 1000.0)
    grad, update = quadratic_run(A, B, 8, rng)
    fit = identify(grad=grad, update=update, family=BOTH, max_iterations=1, tolerance=1e-14)["(all)"]
    assert fit.status == "not_converged"
    assert any("stopped after 1 iterations" in note and "raise max_iterations" in note for note in fit.notes)
    scores = [
        identify(grad=grad, update=update, family=BOTH, max_iterations=k, tolerance=0.0)["(all)"].r2_in_sample
        for k in (1, 2, 4, 8)
    ]
    assert scores == sorted(scores)  # the residual never grows


def test_arrays_of_one_axis_and_trivial_sides():
    rng = np.random.default_rng(0)
    T, m = 40, 4
    A = spd(m, rng)
    g = rng.normal(size=(T, m))
    y = g @ A
    found = identify(grad=-y, update=g, family=OUTPUT, rng=0)
    np.testing.assert_allclose(found.elements(), A, rtol=1e-10)
    single = identify(grad=-3.0 * g, update=g, family=INPUT, rng=0)
    np.testing.assert_allclose(single.elements(), [[3.0]])
    assert any("B is one number" in note for note in single["(all)"].notes)
    assert single.metric.factors[0] is None
    row = identify(grad=-y[:, None], update=g[:, None], family=BOTH, rng=0)  # 1 x n
    np.testing.assert_allclose(np.kron(*row.elements()), A, rtol=1e-8)
    assert row["(all)"].parameters == 10
    assert any("A is one number" in note for note in row["(all)"].notes)
    number = identify(grad=-2.0 * g[:, 0], update=g[:, 0], family=BOTH, rng=0)
    np.testing.assert_allclose(number.metric.to_dense(), [[2.0]])


@pytest.mark.parametrize("family", FAMILIES)
def test_arrays_are_fitted_each_on_its_own(family):
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 3, 2), "b": (5,)}
    grad = {k: rng.normal(size=(40, *s)) for k, s in shapes.items()}
    update = {k: -0.5 * x + 0.3 * rng.normal(size=x.shape) for k, x in grad.items()}
    found = identify(grad=grad, update=update, family=family, rng=0)
    assert found.blocks == ("(all)", "w", "b")
    parts = {k: identify(grad=grad[k], update=update[k], family=family, rng=0) for k in shapes}
    for name, part in parts.items():
        for a, b in zip(found.elements(name), part.elements(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
        assert found[name].r2 == pytest.approx(part["(all)"].r2, rel=1e-10)
    assert found["(all)"].parameters == sum(part["(all)"].parameters for part in parts.values())
    dense_parts = [part.metric.to_dense() for part in parts.values()]
    whole = found.metric.to_dense()
    np.testing.assert_allclose(whole[:24, :24], dense_parts[0], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(whole[24:, 24:], dense_parts[1], rtol=1e-9, atol=1e-10)
    assert set(found.elements()) == {"w", "b"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("exponent", [-480, 480])
def test_any_scale(family, exponent):
    rng = np.random.default_rng(0)
    A, B = planted(family, 3, 4, rng, 5.0)
    grad, update = quadratic_run(A, B, 30, rng, noise_y=0.1)
    expected = identify(grad=grad, update=update, family=family, rng=0)
    found = identify(grad=np.ldexp(grad, exponent), update=np.ldexp(update, -exponent), family=family, rng=0)
    assert found["(all)"].r2 == pytest.approx(expected["(all)"].r2, rel=1e-9)
    assert found["(all)"].largest == pytest.approx(np.ldexp(expected["(all)"].largest, 2 * exponent), rel=1e-8)
    x = np.ones((3, 4))
    np.testing.assert_allclose(
        np.ldexp(found.metric @ np.ldexp(x, -exponent), -exponent), expected.metric @ x, rtol=1e-8
    )


def test_rounding_of_float32_is_not_taken_for_movement():
    rng = np.random.default_rng(0)
    B = rng.normal(size=(12, 3))
    grad = [(spd(12, rng) @ B @ rng.normal(size=(3, 8))).astype(np.float32) for _ in range(30)]
    update = [(B @ rng.normal(size=(3, 8))).astype(np.float32) for _ in range(30)]
    fit = identify(list(zip(grad, update, strict=True)), OUTPUT)["(all)"]
    assert fit.determined == pytest.approx(3 / 12)


def test_memory_of_a_streamed_side():
    rng = np.random.default_rng(0)
    m, r, T = 40, 2000, 60

    def pairs():
        for _ in range(T):
            g = rng.normal(size=(m, r))
            yield -2.0 * g, g

    tracemalloc.start()
    fit = identify(pairs(), OUTPUT, steps=T, rng=0)["(all)"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert fit.r2 == pytest.approx(1.0)
    assert peak < 16 * m * r * 8  # a few steps of the 60


def test_what_cannot_be_done_is_refused():
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(size=(3, 2)), rng.normal(size=(3, 2))) for _ in range(8)]
    with pytest.raises(ValueError, match="an iterator can be read once"):
        identify(iter(pairs), BOTH, steps=8)
    assert identify(iter(pairs), OUTPUT, steps=8).fitted_steps == 6
    with pytest.raises(ValueError, match="max_iterations >= 1"):
        identify(pairs, BOTH, max_iterations=0)
    with pytest.raises(TypeError, match="options of family='kronecker-output'"):
        identify(pairs, OUTPUT, max_iterations=3)
    wide = [(np.ones((2, 5000)), -np.ones((2, 5000)))] * 3
    with pytest.raises(ValueError, match="at most 4096 columns for family='kronecker-input', got 5000"):
        identify(wide, INPUT)
    assert identify(wide, OUTPUT)["(all)"].status == "underdetermined"
