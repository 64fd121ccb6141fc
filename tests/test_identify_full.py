"""Families full and block-diagonal: planted metrics, independent least squares, and what the data leave open."""

from functools import partial

import numpy as np
import pytest
import scipy.linalg

from steepest.identify import identify, symmetric_fit
from steepest.identify.geometric_mean import geometric_mean_of_factors
from steepest.identify.symmetric_fit import determined_numbers


def spd(rng, n, condition=10.0):
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return (q * np.logspace(0, -np.log10(condition), n)) @ q.T


def on_a_quadratic(M, steps, rng):
    """Natural gradient descent with metric M on noisy gradients of a quadratic: gradients consumed, updates."""
    n = len(M)
    H, inverse = spd(rng, n), 0.2 * np.linalg.inv(M) * np.linalg.eigvalsh(M)[0]
    theta, grads, updates = rng.normal(size=n), [], []
    for _ in range(steps):
        grad = H @ theta + rng.normal(size=n)
        update = -inverse @ grad
        theta = theta + update
        grads.append(grad)
        updates.append(update)
    return np.array(grads), np.array(updates), np.linalg.inv(inverse)


def digits(features):
    data = pytest.importorskip("sklearn.datasets").load_digits()
    x = data.data[:, np.argsort(data.data.var(axis=0))[-features:]]
    return (x - x.mean(axis=0)) / x.std(axis=0), data.target


def logistic_on_digits(M, steps, rng, features=6):
    """Even or odd, by mini-batches of 64, with metric M on weights and bias."""
    x, target = digits(features)
    x, t = np.column_stack([x, np.ones(len(x))]), target % 2
    inverse, theta = np.linalg.inv(M), np.zeros(features + 1)
    grads, updates = [], []
    for _ in range(steps):
        at = rng.integers(0, len(x), 64)
        grad = x[at].T @ (1.0 / (1.0 + np.exp(-x[at] @ theta)) - t[at]) / 64
        theta = theta - inverse @ grad
        grads.append(grad)
        updates.append(-inverse @ grad)
    return np.array(grads), np.array(updates)


def error(found, planted):
    return np.linalg.norm(found - planted) / np.linalg.norm(planted)


@pytest.mark.parametrize("n", [1, 2, 3, 12])
def test_full_metric_of_a_quadratic_is_recovered(n):
    rng = np.random.default_rng(n)
    grads, updates, M = on_a_quadratic(spd(rng, n), 80, rng)
    found = identify(grad=grads, update=updates, family="full", rng=0)
    fit = found["(all)"]
    assert (fit.status, fit.parameters, fit.determined, fit.notes) == ("ok", n * (n + 1) // 2, 1.0, ())
    assert error(found.elements(), M) < 1e-10
    assert error(found.elements(symmetric=True), M) < 1e-10
    assert min(fit.r2, fit.r2_reverse, fit.r2_symmetric, fit.r2_in_sample) == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose([fit.smallest, fit.largest], np.linalg.eigvalsh(M)[[0, -1]], rtol=1e-8)
    np.testing.assert_allclose(found.metric.solve(-grads[0]), updates[0], rtol=1e-9)


def test_full_metric_of_logistic_regression_on_digits_is_recovered():
    rng = np.random.default_rng(0)
    M = 2.0 * spd(rng, 7, 30.0)
    grads, updates = logistic_on_digits(M, 120, rng)
    found = identify(grad=grads, update=updates, family="full", rng=0)
    assert found["(all)"].status == "ok"
    assert error(found.elements(), M) < 1e-9
    assert found["(all)"].r2 == pytest.approx(1.0, abs=1e-12)


def _quadratic(M, steps, rng):
    grads, updates, planted = on_a_quadratic(M, steps, rng)
    return grads, updates, planted


def _logistic(M, steps, rng):
    return *logistic_on_digits(M, steps, rng, len(M) - 1), M


@pytest.mark.parametrize("simulate", [_quadratic, _logistic])
def test_error_falls_as_the_root_of_the_steps_with_noise_in_the_gradients(simulate):
    lengths = np.array([150, 600, 2400])
    errors = []
    for steps in lengths:
        of_seeds = []
        for seed in range(12):
            rng = np.random.default_rng([seed, int(steps)])
            grads, updates, M = simulate(spd(rng, 5, 4.0), int(steps), rng)
            noisy = grads + 0.3 * np.sqrt(np.mean(grads**2)) * rng.normal(size=grads.shape)
            found = identify(grad=noisy, update=updates, family="full", rng=0)
            of_seeds.append(error(found.elements(), M))
        errors.append(np.median(of_seeds))
    slope = np.polyfit(np.log(lengths), np.log(errors), 1)[0]
    assert -0.62 < slope < -0.38
    assert errors[-1] < 0.03


def test_noise_in_both_biases_the_fit_and_not_the_symmetric_estimate():
    rng = np.random.default_rng(0)
    M, T = spd(rng, 4), 20_000
    updates = rng.normal(size=(T, 4))
    grads = -(updates + 0.5 * rng.normal(size=(T, 4))) @ M
    noisy = updates + 0.5 * rng.normal(size=(T, 4))
    found = identify(grad=grads, update=noisy, family="full", rng=0)
    assert error(found.elements(symmetric=True), M) < 0.02
    assert error(found.elements(), M / 1.25) < 0.03  # shrunk by |g|^2/(|g|^2 + |noise|^2)


def test_fits_in_both_directions_against_the_sylvester_equation():
    rng = np.random.default_rng(2)
    M = spd(rng, 5, 3.0)
    updates = rng.normal(size=(200, 5))
    grads = -updates @ M + 0.1 * rng.normal(size=(200, 5))
    found = identify(grad=grads, update=updates, family="full", rng=0, holdout=0.2)
    y, g, y_later, g_later = -grads[:160].T, updates[:160].T, -grads[160:].T, updates[160:].T
    cross = y @ g.T
    A = scipy.linalg.solve_sylvester(g @ g.T, g @ g.T, cross + cross.T)
    P = scipy.linalg.solve_sylvester(y @ y.T, y @ y.T, cross + cross.T)
    S = found.elements(symmetric=True)
    assert min(np.linalg.eigvalsh(A)[0], np.linalg.eigvalsh(P)[0]) > 0.0  # no constraint is active: plain least squares
    np.testing.assert_allclose(found.elements(), A, atol=1e-12)
    np.testing.assert_allclose(S @ (g @ g.T) @ S, y @ y.T, rtol=1e-10)
    fit = found["(all)"]

    def score(matrix, source, target):
        return 1.0 - np.sum((target - matrix @ source) ** 2) / np.sum(target**2)

    assert fit.r2 == pytest.approx(score(A, g_later, y_later), abs=1e-12)
    assert fit.r2_in_sample == pytest.approx(score(A, g, y), abs=1e-12)
    assert fit.r2_reverse == pytest.approx(score(P, y_later, g_later), abs=1e-12)
    assert fit.r2_reverse_in_sample == pytest.approx(score(P, y, g), abs=1e-12)
    assert fit.r2_symmetric == pytest.approx(score(S, g_later, y_later), abs=1e-12)


def test_arrays_of_the_full_family_are_scored_by_their_rows():
    rng = np.random.default_rng(3)
    M = spd(rng, 6)
    updates = rng.normal(size=(100, 6))
    grads = -updates @ M + 0.1 * rng.normal(size=(100, 6))
    named = [{"w": x[:, :4].reshape(-1, 2, 2), "b": x[:, 4:]} for x in (grads, updates)]
    found = identify(grad=named[0], update=named[1], family="full", rng=0)
    flat = identify(grad=grads, update=updates, family="full", rng=0)
    A = flat.elements()
    np.testing.assert_array_equal(found.elements(), A)
    assert found["(all)"].r2 == pytest.approx(flat["(all)"].r2, abs=1e-14)
    assert [fit.parameters for fit in found.fits] == [21, 14, 7]
    left = (-grads[75:] - updates[75:] @ A) ** 2
    for name, rows in (("w", slice(0, 4)), ("b", slice(4, 6))):
        expected = 1.0 - left[:, rows].sum() / (grads[75:, rows] ** 2).sum()
        assert found[name].r2 == pytest.approx(expected, abs=1e-12)
        np.testing.assert_array_equal(found.elements(name), A[rows, rows])
        np.testing.assert_allclose(found.to_metric(name).to_dense(), A[rows, rows], rtol=1e-14)


def softmax_on_digits(matrices, steps, rng):
    """Digits 0, 1, 2 from four pixels; each class has a metric for its weights."""
    x, target = digits(4)
    x, target = x[target < 3], target[target < 3]
    inverses = [np.linalg.inv(matrix) for matrix in matrices]
    W, grads, updates = np.zeros((3, 4)), [], []
    for _ in range(steps):
        at = rng.integers(0, len(x), 64)
        p = np.exp(x[at] @ W.T)
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(64), target[at]] -= 1.0
        grad = p.T @ x[at] / 64
        update = -np.stack([inverse @ row for inverse, row in zip(inverses, grad, strict=True)])
        W = W + update
        grads.append(grad)
        updates.append(update)
    return np.array(grads), np.array(updates)


def test_a_metric_for_each_output_unit_on_digits():
    rng = np.random.default_rng(0)
    planted = [2.0 * spd(rng, 4) for _ in range(3)]
    grads, updates = softmax_on_digits(planted, 100, rng)
    units = identify(grad=grads, update=updates, family="block-diagonal", partition="units", rng=0)
    assert (units["(all)"].status, units["(all)"].parameters) == ("ok", 30)
    for found, matrix in zip(units.elements(), planted, strict=True):
        assert error(found, matrix) < 1e-9
    np.testing.assert_allclose(units.metric.to_dense(), scipy.linalg.block_diag(*planted), atol=1e-9)
    # The gradients of the classes sum to 0: over all weights they leave directions open, and this is said.
    whole = identify(grad=grads, update=updates, family="full", rng=0)["(all)"]
    assert (whole.status, whole.determined) == ("underdetermined", 8 / 12)
    assert "rank 8 of 12" in whole.notes[0]
    assert f"{determined_numbers(12, 8)} of the 78" in whole.notes[0]
    assert whole.r2 == pytest.approx(1.0, abs=1e-10)  # later steps stay in the same directions


def test_partitions():
    rng = np.random.default_rng(4)
    grads = {"w": rng.normal(size=(90, 2, 3)), "b": rng.normal(size=(90, 2))}
    updates = {"w": -0.5 * grads["w"] + 0.1 * rng.normal(size=(90, 2, 3)), "b": -grads["b"] * [1.0, 3.0]}

    def of(partition, **options):
        options = {"family": "block-diagonal", "partition": partition, **options}
        return identify(grad=grads, update=updates, rng=0, **options)

    arrays, units, pairs, ones = (of(partition) for partition in ("arrays", "units", 2, 1))
    assert [fit.parameters for fit in arrays.fits] == [24, 21, 3]
    assert [fit.parameters for fit in units.fits] == [15, 12, 3]
    assert [fit.parameters for fit in pairs.fits] == [12, 9, 3]
    assert [x.shape for x in pairs.elements("w")] == [(2, 2)] * 3
    alone = identify(grad=grads["w"], update=updates["w"], family="full", rng=0)
    np.testing.assert_array_equal(arrays.elements()["w"], alone.elements())
    assert arrays["w"].r2 == alone["(all)"].r2
    row = identify(grad=grads["w"][:, 1], update=updates["w"][:, 1], family="full", rng=0)
    np.testing.assert_array_equal(units.elements("w")[1], row.elements())
    # Blocks of one parameter are the diagonal family
    diagonal = identify(grad=grads, update=updates, family="diagonal", rng=0)
    np.testing.assert_allclose(np.ravel(ones.elements()["w"]), diagonal.elements()["w"].ravel(), rtol=1e-12)
    for name in ones.blocks:
        assert ones[name].r2 == pytest.approx(diagonal[name].r2, abs=1e-12)
        assert ones[name].r2_reverse == pytest.approx(diagonal[name].r2_reverse, abs=1e-12)
        assert ones[name].r2_symmetric == pytest.approx(diagonal[name].r2_symmetric, abs=1e-12)
    for wrong in ("rows", 0, 2.0, True):
        with pytest.raises(ValueError, match="partition"):
            of(wrong)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (4, 1), (5, 3), (5, 5)])
def test_numbers_that_secants_determine(n, k):
    G = np.random.default_rng(0).normal(size=(n, k))
    basis = []
    for i in range(n):
        for j in range(i + 1):
            unit = np.zeros((n, n))
            unit[i, j] = unit[j, i] = 1.0
            basis.append((unit @ G).ravel())
    assert determined_numbers(n, k) == np.linalg.matrix_rank(np.array(basis))


def test_geometric_mean_solves_its_equation():
    rng = np.random.default_rng(0)
    g, y = np.tril(rng.normal(size=(2, 5, 5))) + 3.0 * np.eye(5)
    S = geometric_mean_of_factors(g, y)
    np.testing.assert_allclose(S @ g @ g.T @ S, y @ y.T, rtol=1e-9, atol=1e-9)
    assert np.linalg.eigvalsh(S)[0] > 0.0


def test_too_few_steps_are_said_and_filled_with_a_floor():
    rng = np.random.default_rng(5)
    M = spd(rng, 10)
    updates = rng.normal(size=(8, 10))
    found = identify(grad=-updates @ M, update=updates, family="full", rng=0)
    fit = found["(all)"]
    assert (fit.status, fit.determined) == ("underdetermined", 0.6)
    assert "6 steps are fewer than the 10 parameters" in fit.notes[0]
    assert "45 of the 55 numbers of the metric (81.8%)" in fit.notes[0]
    assert fit.r2_in_sample == pytest.approx(1.0, abs=1e-12)
    with pytest.raises(ValueError, match="floor"):
        found.metric  # noqa: B018
    with pytest.raises(ValueError, match="full rank"):
        found.to_metric(floor=1.0, symmetric=True)
    for floor in (1e-3, 10.0):
        metric = found.to_metric(floor=floor)
        np.testing.assert_allclose(metric @ updates[:6].T, M @ updates[:6].T, atol=1e-10)
        # The inverse, on what no step has moved, is that of the floor
        null = scipy.linalg.null_space(updates[:6])
        np.testing.assert_allclose(
            np.linalg.inv(null.T @ metric.inv().to_dense() @ null), floor * np.eye(4), atol=1e-10
        )
    one = identify(grad=-updates[:2] @ M, update=updates[:2], family="full", holdout=0.5, rng=0)
    assert one["(all)"].status == "too_few_steps"


def test_directions_that_no_positive_number_fits():
    rng = np.random.default_rng(6)
    q, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    planted = (q * [1.0, 2.0, 3.0, 4.0, -2.0]) @ q.T
    updates = rng.normal(size=(200, 5))
    updates -= np.linalg.qr(updates)[0] @ (np.linalg.qr(updates)[0].T @ updates) - np.linalg.qr(updates)[0]
    found = identify(grad=-updates @ planted, update=updates, family="full", holdout=0, rng=0)
    fit = found["(all)"]
    assert fit.not_positive == 1
    assert any("1 of 5 determined directions get the eigenvalue 0" in note for note in fit.notes)
    # With white updates the weighted projection is the plain one
    expected = (q * [1.0, 2.0, 3.0, 4.0, 0.0]) @ q.T
    np.testing.assert_allclose(found.elements(), expected, atol=1e-9)
    assert (fit.smallest, fit.largest) == (pytest.approx(1.0), pytest.approx(4.0))
    with pytest.raises(ValueError, match="floor"):
        found.to_metric()
    np.testing.assert_allclose(found.to_metric(floor=0.5).eigvalsh(), [0.5, 1.0, 2.0, 3.0, 4.0], rtol=1e-8)
    scored = identify(grad=-updates @ planted, update=updates, family="full", rng=0)
    assert scored["(all)"].status == "not_positive_definite"


def test_nothing_moved():
    found = identify(grad=np.ones((20, 3)), update=np.zeros((20, 3)), family="full", rng=0)
    assert (found["(all)"].status, found["(all)"].r2) == ("not_identified", 0.0)


def test_a_geometry_that_changes_is_said():
    rng = np.random.default_rng(7)
    updates = rng.normal(size=(200, 4))
    grads = np.concatenate([-updates[:150] @ spd(rng, 4), -updates[150:] @ spd(rng, 4)])
    assert identify(grad=grads, update=updates, family="full", rng=0)["(all)"].status == "not_constant"


def test_a_solver_that_stops_early_is_said(monkeypatch):
    rng = np.random.default_rng(0)
    grads, updates = rng.normal(size=(2, 40, 5)) * np.logspace(0, -3, 5)
    early = partial(symmetric_fit.spd_procrustes, max_iterations=0)
    assert identify(grad=grads, update=updates, family="full", rng=0)["(all)"].status == "not_positive_definite"
    monkeypatch.setattr(symmetric_fit, "spd_procrustes", early)
    fit = identify(grad=grads, update=updates, family="full", rng=0)["(all)"]
    assert fit.status == "not_converged"
    assert any("could certify 1 of 1 matrices" in note for note in fit.notes)


@pytest.mark.parametrize("scale", [1e-160, 1e-5, 1e150])
def test_units(scale):
    rng = np.random.default_rng(8)
    updates = rng.normal(size=(40, 3))
    grads = -updates @ spd(rng, 3) + 0.1 * rng.normal(size=(40, 3))
    one = identify(grad=grads, update=updates, family="full", rng=0)
    two = identify(grad=grads * scale, update=updates, family="full", rng=0)
    np.testing.assert_allclose(two.elements() / scale, one.elements(), rtol=1e-9)
    assert two["(all)"].r2 == pytest.approx(one["(all)"].r2, abs=1e-12)
    assert two["(all)"].largest / scale == pytest.approx(one["(all)"].largest, rel=1e-9)


def test_steps_that_are_not_finite_are_left_out():
    rng = np.random.default_rng(9)
    updates = rng.normal(size=(40, 3))
    grads = -updates @ spd(rng, 3)
    kept = np.delete(np.arange(40), 7)
    with_nan = grads.copy()
    with_nan[7, 1] = np.nan
    found = identify(grad=with_nan, update=updates, family="full", rng=0)
    assert found.fitted_steps == 29
    other = identify(grad=grads[kept], update=updates[kept], family="full", rng=0, holdout=0.25)
    np.testing.assert_allclose(found.elements(), other.elements(), rtol=1e-9)


def test_sizes_that_are_too_large_are_refused():
    zeros = np.zeros((3, 5000))
    with pytest.raises(ValueError, match=r"at most 4096 .* got n = 5000: take family='block-diagonal'"):
        identify(grad=zeros, update=zeros, family="full")
    with pytest.raises(ValueError, match="partition='units'"):
        identify(grad=zeros, update=zeros, family="block-diagonal")
    with pytest.raises(TypeError, match="partition"):
        identify(grad=zeros, update=zeros, family="full", partition="units")


def test_rounding_of_stored_vectors_is_not_taken_for_motion():
    rng = np.random.default_rng(10)
    M = spd(rng, 5)
    updates = rng.normal(size=(60, 3)) @ rng.normal(size=(3, 5))  # three directions of five
    grads = -updates @ M
    for dtype in (np.float64, np.float32, np.float16):
        found = identify(grad=grads.astype(dtype), update=updates.astype(dtype), family="full", rng=0)
        assert found["(all)"].determined == 3 / 5
        assert found["(all)"].r2 == pytest.approx(1.0, abs=1e-4)
