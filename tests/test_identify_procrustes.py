"""SPD Procrustes against a conic solver, its optimality conditions, planted matrices; the streaming R factor."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steepest.identify.procrustes import spd_procrustes
from steepest.identify.row_factor import RowFactor


def spd(rng, n, condition=10.0):
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return (q * np.logspace(0, -np.log10(condition), n)) @ q.T


def spread(rng, n, k, ratio):
    """X of full rank with singular values over a range of `ratio`."""
    u, _ = np.linalg.qr(rng.normal(size=(n, n)))
    v, _ = np.linalg.qr(rng.normal(size=(k, n)))
    return (u * np.logspace(0, -np.log10(ratio), n)) @ v.T


def conic(X, B):
    """The least |A X - B|^2 over A >= 0 by a general solver."""
    cvxpy = pytest.importorskip("cvxpy")
    A = cvxpy.Variable((len(X), len(X)), PSD=True)
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(A @ X - B)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problem.solve(solver="CLARABEL", tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    assert problem.status in ("optimal", "optimal_inaccurate")
    return problem.value


def infimum(X, B):
    """The same where X has not full rank: only the square block of A in the space of X is constrained."""
    u, s, vt = np.linalg.svd(X, full_matrices=True)
    rank = int(np.sum(s > 1e-10 * s[0]))
    z = u.T @ B @ vt.T
    return conic(np.diag(s[:rank]), z[:rank, :rank]) + np.sum(z[:, rank:] ** 2)


def assert_optimal(X, B, found, tolerance=1e-7):
    """KKT: A >= 0, the gradient >= 0 and complementary to A. The problem is convex, so this is sufficient."""
    scale = np.linalg.norm(X, 2) * np.linalg.norm(B)
    gradient = (found.A @ X - B) @ X.T
    gradient = 0.5 * (gradient + gradient.T)
    largest = np.abs(found.A).max()
    assert np.array_equal(found.A, found.A.T)
    assert np.linalg.eigvalsh(found.A)[0] >= -1e-12 * largest
    assert np.linalg.eigvalsh(gradient)[0] >= -tolerance * scale
    assert abs(np.sum(gradient * found.A)) <= tolerance * scale * np.linalg.norm(found.A)


@pytest.mark.parametrize("n", range(2, 9))
@pytest.mark.parametrize("kind", ["noisy", "active", "unrelated", "opposite", "spread"])
def test_objective_agrees_with_a_conic_solver(n, kind):
    rng = np.random.default_rng([n, len(kind)])
    X = spread(rng, n, 3 * n, 300.0) if kind == "spread" else rng.normal(size=(n, n + 2))
    M = spd(rng, n)
    if kind == "active":
        M = M - 0.3 * np.eye(n)
    noise = {"noisy": 0.05, "active": 0.1, "spread": 0.1}.get(kind, 3.0)
    sign = -1.0 if kind == "opposite" else float(kind != "unrelated")
    B = sign * M @ X + noise * rng.normal(size=X.shape)
    found = spd_procrustes(X, B)
    assert found.converged
    assert found.rank == n
    assert found.residual == pytest.approx(np.sum((found.A @ X - B) ** 2), rel=1e-10)
    assert found.residual == pytest.approx(conic(X, B), rel=1e-6)
    assert_optimal(X, B, found)


@pytest.mark.parametrize("n", range(2, 9))
def test_rank_deficient_objective_agrees_with_a_conic_solver(n):
    rng = np.random.default_rng(n)
    rank = 1 + n // 3
    X = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, n))
    for B in (spd(rng, n) @ X + 0.1 * rng.normal(size=X.shape), rng.normal(size=X.shape)):
        found = spd_procrustes(X, B)
        assert found.converged
        assert found.rank == rank
        assert found.residual == pytest.approx(infimum(X, B), rel=1e-6)
        assert np.linalg.eigvalsh(found.A)[0] >= -1e-11 * np.linalg.eigvalsh(found.A)[-1]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(0, 30),
    st.floats(0.0, 3.0),
    st.floats(-1.0, 1.0),
    st.integers(0, 2**32 - 1),
)
def test_optimality_conditions_hold(n, more, decades, mean, seed):
    rng = np.random.default_rng(seed)
    X = spread(rng, n, n + more, 10.0**decades)
    B = mean * X + rng.normal(size=(n, n)) @ X / n
    # The gradient times A is of the order of the square root of the gap.
    found = spd_procrustes(X, B, tolerance=1e-14)
    assert found.converged
    assert found.rank == n
    assert_optimal(X, B, found)


@pytest.mark.parametrize("n", [1, 2, 3, 20, 60])
@pytest.mark.parametrize("condition", [1.0, 1e3])
def test_consistent_data_give_the_planted_matrix(n, condition):
    rng = np.random.default_rng(n)
    M, X = spd(rng, n, condition), rng.normal(size=(n, 3 * n))
    found = spd_procrustes(X, M @ X)
    assert (found.rank, found.epsilon, found.converged, found.iterations) == (n, 0.0, True, 0)
    np.testing.assert_allclose(found.A, M, rtol=0, atol=1e-10 / condition)
    assert found.eigenvalues[0] == pytest.approx(np.linalg.eigvalsh(M)[0], rel=1e-7)
    assert found.residual < 1e-24 * n * condition


def test_semidefinite_planted_matrix_is_found_with_its_zeros():
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(9, 4))
    M, X = factor @ factor.T, rng.normal(size=(9, 40))
    found = spd_procrustes(X, M @ X)
    np.testing.assert_allclose(found.A, M, rtol=0, atol=1e-10)
    assert np.count_nonzero(found.eigenvalues < 1e-10) == 5


@pytest.mark.parametrize("seed", range(4))
def test_singular_values_over_four_decades(seed):
    rng = np.random.default_rng(seed)
    X = spread(rng, 30, 100, 1e4)
    B = spd(rng, 30) @ X + rng.normal(size=X.shape) / 100
    found = spd_procrustes(X, B)
    assert found.converged
    assert found.iterations < 200
    assert 0 < np.count_nonzero(found.eigenvalues == 0.0) < 30
    assert_optimal(X, B, found, 1e-7)
    assert found.gap <= 1e-12 * found.residual


def test_converged_is_not_said_of_an_unfinished_solution():
    rng = np.random.default_rng(3)
    X, B = spread(rng, 20, 50, 1e4), rng.normal(size=(20, 50))
    early, full = spd_procrustes(X, B, max_iterations=1), spd_procrustes(X, B)
    assert full.converged
    assert not early.converged
    assert early.residual > full.residual * (1 + 1e-10)
    assert early.residual - early.gap <= full.residual  # the gap is a bound, converged or not
    assert full.gap <= 1e-10 * full.residual


def test_a_start_saves_iterations_and_changes_nothing():
    rng = np.random.default_rng(3)
    X, B = spread(rng, 20, 50, 1e4), rng.normal(size=(20, 50))
    cold = spd_procrustes(X, B)
    later = B + 1e-4 * rng.normal(size=B.shape)
    for start, most in ((cold.A, cold.iterations // 2), (1e6 * np.eye(20), 500), (np.zeros((20, 20)), 500)):
        warm = spd_procrustes(X, later, start=start)
        assert warm.converged
        assert warm.iterations <= most
        assert warm.residual == pytest.approx(spd_procrustes(X, later).residual, rel=1e-10)
    with pytest.raises(ValueError, match="start"):
        spd_procrustes(X, B, start=np.eye(3))


def test_directions_below_the_rank_tolerance_are_left_open():
    rng = np.random.default_rng(4)
    X, B = spread(rng, 6, 20, 1e5), rng.normal(size=(6, 20))
    u, s, vt = np.linalg.svd(X, full_matrices=False)
    found = spd_procrustes(X, B, rank_tolerance=3e-3)
    assert found.rank == 3
    kept = spd_procrustes((u[:, :3] * s[:3]) @ vt[:3], B)
    np.testing.assert_allclose(found.A @ u[:, :3], kept.A @ u[:, :3], atol=1e-6 * np.abs(kept.A).max())
    np.testing.assert_allclose(found.complement.T @ u[:, :3], 0.0, atol=1e-9)


def test_what_is_unique_and_what_is_free_without_full_rank():
    rng = np.random.default_rng(5)
    M, X = spd(rng, 6), rng.normal(size=(6, 2))
    found = spd_procrustes(X, M @ X)
    assert (found.rank, found.epsilon) == (2, 0.0)
    np.testing.assert_allclose(found.A @ X, M @ X, atol=1e-12)
    assert np.linalg.eigvalsh(found.A)[0] > 0.0
    np.testing.assert_allclose(found.complement.T @ X, 0.0, atol=1e-12)
    assert found.free == pytest.approx(np.sqrt(np.prod(found.eigenvalues)))
    at_bound = found.A - found.free * found.complement @ found.complement.T
    assert np.sum(np.linalg.eigvalsh(at_bound) > 1e-12) == 2  # the free part at its bound: rank 2, and no less


def test_infimum_that_is_not_attained():
    # A x = b with x.b = 0: A = [[e, 1], [1, 1/e]] fits to e
    found = spd_procrustes([[1.0], [0.0]], [[0.0], [1.0]])
    assert found.epsilon == 1e-8
    assert found.residual <= 1e-15
    np.testing.assert_allclose(found.A[0], [1e-8, 1.0], rtol=1e-12)
    assert found.A[1, 1] >= 1e8
    assert spd_procrustes([[1.0], [0.0]], [[0.0], [1.0]], epsilon=1e-3).residual == pytest.approx(1e-6)


def test_one_parameter():
    x, b = np.array([[1.0, 2.0, 3.0]]), np.array([[2.0, 1.0, 5.0]])
    assert spd_procrustes(x, b).A.item() == pytest.approx(19.0 / 14.0)
    uphill = spd_procrustes(x, -b)
    assert uphill.A == 0.0
    assert uphill.converged
    assert uphill.residual == pytest.approx(30.0)
    assert list(uphill.eigenvalues) == [0.0]


def test_nothing_moved():
    found = spd_procrustes(np.zeros((3, 4)), np.ones((3, 4)))
    assert (found.rank, found.residual, found.converged) == (0, 12.0, True)
    assert spd_procrustes(np.zeros((3, 0)), np.zeros((3, 0))).rank == 0


@pytest.mark.parametrize("power", [-480, 480])
def test_units_change_nothing_but_the_unit(power):
    rng = np.random.default_rng(0)
    X, B = rng.normal(size=(2, 5, 8))
    one = spd_procrustes(X, B)
    two = spd_procrustes(np.ldexp(X, power), np.ldexp(B, power))
    three = spd_procrustes(np.ldexp(X, power), B)
    assert np.array_equal(one.A, two.A)
    assert np.array_equal(np.ldexp(one.A, -power), three.A)
    assert three.residual == one.residual
    assert three.free == np.ldexp(one.free, -power)


def test_many_columns_are_reduced_first():
    rng = np.random.default_rng(0)
    X, B = rng.normal(size=(2, 4, 8))
    few = spd_procrustes(X, B)  # k = 2 n: as they are
    rotation, _ = np.linalg.qr(rng.normal(size=(300, 8)))
    many = spd_procrustes(X @ rotation.T, B @ rotation.T)
    np.testing.assert_allclose(many.A, few.A, atol=1e-9)
    assert many.residual == pytest.approx(few.residual, rel=1e-12)


@pytest.mark.parametrize(
    ("X", "B", "options", "message"),
    [
        (np.ones((2, 3)), np.ones((3, 2)), {}, "one shape"),
        (np.ones(3), np.ones(3), {}, "one shape"),
        (np.full((2, 2), np.nan), np.ones((2, 2)), {}, "finite"),
        (np.ones((2, 2)), np.ones((2, 2)), {"tolerance": 0.0}, "tolerance"),
        (np.ones((2, 2)), np.ones((2, 2)), {"rank_tolerance": 1.0}, "rank_tolerance"),
    ],
)
def test_wrong_arguments(X, B, options, message):
    with pytest.raises(ValueError, match=message):
        spd_procrustes(X, B, **options)


@pytest.mark.parametrize("m", [1, 3, 6])
@pytest.mark.parametrize("k", [0, 1, 5, 12, 200])
def test_row_factor_keeps_every_residual(m, k):
    rng = np.random.default_rng([m, k])
    G, Y = rng.normal(size=(2, m, k))
    factor = RowFactor(m)
    cuts = [0, *sorted(rng.integers(0, k + 1, 4)), k]
    for begin, end in pairwise(cuts):
        factor.add(G[:, begin:end], Y[:, begin:end])
    assert factor.columns == k
    for (X, B, rest), (g, y) in ((factor.pair(), (G, Y)), (factor.swapped(), (Y, G)), (factor.pair(), (G, Y))):
        assert X.shape == B.shape == (m, m)
        for A in (np.zeros((m, m)), rng.normal(size=(m, m))):
            expected = np.sum((A @ g - y) ** 2)
            assert np.sum((A @ X - B) ** 2) + rest == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_row_factor_does_not_square_the_condition():
    rng = np.random.default_rng(0)
    G = spread(rng, 5, 400, 1e12)
    factor = RowFactor(5)
    for begin in range(0, 400, 7):
        factor.add(G[:, begin : begin + 7], G[:, begin : begin + 7])
    values = np.linalg.svd(factor.pair()[0], compute_uv=False)
    np.testing.assert_allclose(values, np.logspace(0, -12, 5), rtol=1e-3)


def test_row_factor_refuses_other_shapes():
    with pytest.raises(ValueError, match="shape"):
        RowFactor(3).add(np.ones((3, 2)), np.ones((3, 1)))
    with pytest.raises(ValueError, match="m >= 1"):
        RowFactor(0)
