"""Optimal paths: against boundary value problems, the HJB equation, other discretisations, closed forms."""

import math
import pickle

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.optimize

import steepest
from steepest.navigation import Drift, HeavyBall, Loss, Navigator, Quadratic
from steepest.navigation.action import Action
from steepest.navigation.path_basis import PathBasis


def well_value(x):
    return (x[..., 0] ** 2 - 1) ** 2 + x[..., 1] ** 2 - x[..., 0] / 2


def well_gradient(x):
    return np.stack([4 * x[..., 0] * (x[..., 0] ** 2 - 1) - 0.5, 2 * x[..., 1]], axis=-1)


START = np.array([-0.6, 0.55])


@pytest.fixture(scope="module")
def double_well():
    return Navigator(Loss(well_value, well_gradient, vectorized=True), discount=0.1).solve(START, 4.0)


def bvp(gradient, theta0, T, guess, gamma, end=None):
    """theta'' - gamma theta' = grad L with p(T) = 0, or a fixed end."""
    n = len(theta0)

    def rate(_, s):
        return np.vstack([s[n:], gamma * s[n:] + gradient(s[:n].T).T])

    def ends(a, b):
        return np.concatenate([a[:n] - theta0, b[n:] if end is None else b[:n] - end])

    t = np.linspace(0.0, T, 200)
    velocity = np.gradient(guess(t), t, axis=0)
    found = scipy.integrate.solve_bvp(rate, ends, t, np.vstack([guess(t).T, velocity.T]), tol=1e-8, max_nodes=100_000)
    assert found.success
    return found


# Section 14, test 2


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_one_dimension_against_hjb_and_boundary_value_problem(gamma):
    loss = Loss(lambda x: float(x[0] ** 2 / 2 + x[0] ** 4 / 4), lambda x: x + x**3)
    path = Navigator(loss, discount=gamma).solve([1.5], 18.0, n_starts=0, n_elements=40).best
    assert path.converged
    # V' = sqrt(2 (L - gamma V)), from the quadratic near 0: errors die out in this direction.
    S = math.sqrt(gamma**2 / 4 + 1) - gamma / 2
    value = scipy.integrate.solve_ivp(
        lambda x, V: np.sqrt(2 * (x**2 / 2 + x**4 / 4 - gamma * V)), (1e-4, 1.5), [S * 1e-8 / 2], rtol=1e-11, atol=1e-16
    ).y[0, -1]
    slope = -math.sqrt(2 * (1.5**2 / 2 + 1.5**4 / 4 - gamma * value))
    assert path.velocity[0, 0] == pytest.approx(slope, rel=1e-6)
    assert path.action == pytest.approx(value, rel=1e-6)
    found = bvp(lambda x: x + x**3, np.array([1.5]), 18.0, path, gamma)
    assert path.velocity[0, 0] == pytest.approx(found.sol(0.0)[1], rel=1e-6)
    t = np.linspace(0.0, 8.0, 50)
    np.testing.assert_allclose(path(t)[:, 0], found.sol(t)[0], atol=2e-6)


def test_two_dimensions_against_a_finer_discretisation_and_the_boundary_value_problem(double_well):
    assert len(double_well.solutions) == 2
    T, gamma = 4.0, 0.1
    for path in double_well.solutions:
        slopes, actions = [], []
        for N in (300, 600):  # midpoint rule; its error falls as 1/N^2
            h = T / N
            t = np.linspace(0.0, T, N + 1)
            fade = h * np.exp(-gamma * (t[:-1] + h / 2))

            def action(flat, h=h, fade=fade):
                x = np.vstack([START, flat.reshape(-1, 2)])
                mid, v = (x[1:] + x[:-1]) / 2, np.diff(x, axis=0) / h
                pull = fade[:, None] * well_gradient(mid) / 2
                push = fade[:, None] * v / h
                gradient = np.zeros_like(x)
                gradient[1:] += pull + push
                gradient[:-1] += pull - push
                return float(fade @ (np.sum(v**2, axis=1) / 2 + well_value(mid))), gradient[1:].ravel()

            options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 0.0, "gtol": 1e-10, "maxcor": 50}
            guess = (path(t) + 0.05 * np.sin(2 * t)[:, None])[1:].ravel()
            found = scipy.optimize.minimize(action, guess, jac=True, method="L-BFGS-B", options=options)
            x = np.vstack([START, found.x.reshape(-1, 2)])
            slopes.append((-3 * x[0] + 4 * x[1] - x[2]) / (2 * h))
            actions.append(found.fun)
        np.testing.assert_allclose((4 * slopes[1] - slopes[0]) / 3, path.velocity[0], atol=3e-4)
        assert (4 * actions[1] - actions[0]) / 3 == pytest.approx(path.action, abs=1e-6)
        exact = bvp(well_gradient, START, T, path, gamma)
        np.testing.assert_allclose(exact.sol(0.0)[2:], path.velocity[0], atol=1e-6)
        np.testing.assert_allclose(exact.sol(path.time)[:2].T, path.params, atol=1e-6)


# Section 14, test 3


def test_the_far_well_is_better(double_well):
    far, near = double_well.solutions
    assert far.params[-1, 0] > 0.9
    assert near.params[-1, 0] < -0.9
    assert far.action < near.action
    assert far.action == pytest.approx(0.6194, abs=1e-4)
    assert near.action == pytest.approx(1.9169, abs=1e-4)
    assert double_well.status == "local"
    assert "nothing certifies" in double_well.message
    for path in double_well.solutions:
        assert path.converged
        assert path.curvature > 0.1
        assert path.residual < 1e-5
        assert np.abs(path.velocity[-1]).max() < 1e-8  # free end: no momentum
        assert path.kinetic + path.potential == pytest.approx(path.action)


def test_a_fixed_end_is_reached_and_costs_more(double_well):
    nav = Navigator(Loss(well_value, well_gradient, vectorized=True), discount=0.1)
    path = nav.solve(START, 4.0, end=[1.0625, 0.0], n_starts=2).best
    np.testing.assert_allclose(path.params[-1], [1.0625, 0.0], atol=1e-14)
    assert path.action > double_well.best.action
    exact = bvp(well_gradient, START, 4.0, path, 0.1, end=np.array([1.0625, 0.0]))
    np.testing.assert_allclose(exact.sol(0.0)[2:], path.velocity[0], atol=1e-6)
    np.testing.assert_allclose(exact.sol(4.0)[2:], path.velocity[-1], atol=1e-6)
    faded = Navigator(Quadratic([1.0]), discount=10.0).solve([1.0], 4.0).best
    assert faded.velocity[-1, 0] == 0.0  # a free end, however little it weighs


def test_perturbing_a_path_never_lowers_the_action(double_well):
    rng = np.random.default_rng(0)
    for path in double_well.solutions:
        t = np.linspace(0.0, 4.0, 4001)
        theta = path(t)
        modes = (np.arange(4) + 0.5) * np.pi / 4  # any end

        def action(x, t=t):
            v = np.gradient(x, t, axis=0, edge_order=2)
            return scipy.integrate.simpson((np.sum(v**2, axis=1) / 2 + well_value(x)) * np.exp(-0.1 * t), x=t)

        best = action(theta)
        assert best == pytest.approx(path.action, rel=1e-5)
        for _ in range(10):
            bump = np.sin(np.outer(t, modes)) @ rng.standard_normal((4, 2))
            for size in (1e-2, 0.05):
                assert action(theta + size * bump) > best - 1e-9


def test_a_quadratic_over_a_long_horizon_is_the_policy():
    rng = np.random.default_rng(1)
    X = rng.standard_normal((3, 3))
    nav = Navigator(
        Quadratic(X @ X.T, [1.0, 2.0, 3.0]), step_cost=0.5, loss_weight=2.0, discount=0.5, metric=[1.0, 2.0, 0.5],
        drift=rng.standard_normal((3, 3)),
    )  # fmt: skip
    policy, theta = nav.policy(), np.array([0.0, 1.0, -1.0])
    found = nav.solve(theta, 25.0, n_elements=80)
    assert found.status == "global"
    np.testing.assert_allclose(found.best.velocity[0], policy.velocity(theta), rtol=1e-5)
    np.testing.assert_allclose(found.best(3.0), policy.trajectory(theta, 3.0), rtol=1e-5)
    B = rng.standard_normal((3, 3))
    turned = Navigator(Quadratic(X @ X.T), discount=1.0, actuation=B)
    path = turned.solve(theta, 25.0, n_elements=80).best
    np.testing.assert_allclose(path.velocity[0], turned.policy().velocity(theta), rtol=1e-5)


def test_negative_curvature_over_a_finite_horizon():
    # L = -x^2/2, eta = k = 1, gamma = 0: theta'' = -theta, theta'(T) = 0.
    found = Navigator(Quadratic([-1.0])).solve([1.0], 1.0)
    assert found.best.params[-1, 0] == pytest.approx(1 / math.cos(1.0), rel=1e-9)
    assert found.best.velocity[0, 0] == pytest.approx(math.tan(1.0), rel=1e-7)
    assert Navigator(Quadratic([-1.0])).solve([1.0], 2.0, n_starts=0).status == "failed"  # past the conjugate point


def test_a_discretisation_that_is_too_coarse_says_so():
    nav = Navigator(Quadratic([400.0, 1.0]), discount=3.0)
    coarse = nav.solve([1.0, 1.0], 5.0, n_elements=2, degree=2, refinements=0)
    assert "too coarse" in coarse.message
    fine = nav.solve([1.0, 1.0], 5.0)
    assert "too coarse" not in fine.message
    steep = Navigator(Quadratic([30.0, 1.0]), discount=30.0)
    far = steep.solve([1.0, 1.0], 20.0, n_elements=2)
    np.testing.assert_allclose(far.best.velocity[0], steep.policy().velocity([1.0, 1.0]), rtol=1e-6)
    np.testing.assert_allclose(fine.best.velocity[0], nav.policy().velocity([1.0, 1.0]), rtol=1e-6)


def test_a_ridge_is_left_to_both_sides():
    loss = Loss(lambda x: float((x[0] ** 2 - 1) ** 2), lambda x: 4 * x * (x**2 - 1))
    found = Navigator(loss).solve([0.0], 5.0, n_starts=0)
    assert len(found.solutions) == 2
    ends = sorted(path.params[-1, 0] for path in found.solutions)
    assert ends[0] == pytest.approx(-ends[1], rel=1e-6)
    assert ends[1] > 0.9
    assert found.solutions[0].action == pytest.approx(found.solutions[1].action, rel=1e-9)


def test_a_nonlinear_drift():
    nav = Navigator(
        Loss(lambda x: float((x[0] - 1) ** 2), lambda x: 2 * (x - 1)), step_cost=0.5, discount=0.2,
        drift=Drift(np.sin, lambda x, w: np.cos(x) * w),
    )  # fmt: skip
    path = nav.solve([2.0], 3.0, n_starts=1).best
    # u' = gamma u - f' u + eta k L', theta' = f + u, u(T) = 0

    def rate(_, s):
        return np.vstack([np.sin(s[0]) + s[1], 0.2 * s[1] - np.cos(s[0]) * s[1] + 0.5 * 2 * (s[0] - 1)])

    t = np.linspace(0.0, 3.0, 50)
    exact = scipy.integrate.solve_bvp(
        rate, lambda a, b: np.array([a[0] - 2.0, b[1]]), t, np.vstack([path(t)[:, 0], 0 * t]), tol=1e-9
    )
    np.testing.assert_allclose(path(t)[:, 0], exact.sol(t)[0], atol=1e-7)
    assert path.velocity[0, 0] == pytest.approx(exact.sol(0.0)[1] + math.sin(2.0), abs=1e-6)
    assert path.residual < 1e-5


@pytest.mark.parametrize("end", [None, [0.5, 0.5]])
def test_the_gradient_of_the_action_is_exact(end):
    rng = np.random.default_rng(2)
    nav = Navigator(
        Loss(well_value, well_gradient, vectorized=True), step_cost=0.7, loss_weight=1.4,
        metric=[[2.0, 0.3], [0.3, 1.0]], drift=rng.standard_normal((2, 2)),
    )  # fmt: skip
    action = Action(nav, START, None if end is None else np.array(end), PathBasis(2.0, 3, 3), 0.3)
    z = rng.standard_normal(2 * (9 if end is None else 8))
    value, gradient = action(z)
    numeric = [(action(z + 1e-5 * e)[0] - action(z - 1e-5 * e)[0]) / 2e-5 for e in np.eye(z.size)]
    np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(action.from_path(action.to_path(z)), z, atol=1e-12)
    assert sum(action.parts(action.to_path(z))) == pytest.approx(value)


def test_the_basis_holds_polynomials_exactly():
    basis = PathBasis(3.0, 4, 3)
    cubic = np.polynomial.Polynomial([1.0, -2.0, 0.5, 0.25])
    c = np.column_stack([cubic(basis.nodes), basis.nodes])
    state, velocity = basis.at_points(c)
    np.testing.assert_allclose(state[:, 0], cubic(basis.points))
    np.testing.assert_allclose(velocity[:, 0], cubic.deriv()(basis.points), atol=1e-12)
    np.testing.assert_allclose(basis.nodal_velocity(c)[:, 0], cubic.deriv()(basis.nodes), atol=1e-12)
    square = np.polynomial.Polynomial(cubic.deriv().coef) ** 2
    assert c[:, 0] @ basis.stiffness(np.ones(len(basis.points))) @ c[:, 0] == pytest.approx(square.integ()(3.0))
    assert basis.weights.sum() == pytest.approx(3.0)
    t = np.array([0.0, 0.75, 1.1, 3.0])
    np.testing.assert_allclose(basis.at(c, t)[0][:, 0], cubic(t))


def test_paths_go_into_the_analysis(double_well):
    near = double_well.solutions[1]
    run = steepest.analyze(near.recording())["run"]
    slope = np.sum(near.grad * near.velocity, axis=1)
    assert np.array_equal(run["psi"][:-1, 0] < math.pi / 2, slope[:-1] < 0)
    far = double_well.best
    assert (np.sum(far.grad * far.velocity, axis=1)[:20] > 0).any()  # uphill first: no metric there
    assert set(far.to_dict()) >= {"time", "params", "action", "residual"}
    again = pickle.loads(pickle.dumps(double_well))
    np.testing.assert_array_equal(again.best(1.3), far(1.3))
    assert len(again.to_dict()["solutions"]) == 2


def test_what_is_refused():
    nav = Navigator(Loss(well_value, well_gradient))
    for kwargs in ({"horizon": 0.0}, {"horizon": math.inf}, {"horizon": 1.0, "degree": 1}):
        with pytest.raises(ValueError, match=r"horizon|degree"):
            nav.solve(START, **kwargs)
    with pytest.raises(ValueError, match="end of shape"):
        nav.solve(START, 1.0, end=[0.0])
    with pytest.raises(ValueError, match="guesses of shape"):
        nav.solve(START, 1.0, guesses=[[0.0]])
    with pytest.raises(ValueError, match="discount"):
        Navigator(Loss(well_value, well_gradient), discount=700.0).solve(START, 1.0)
    with pytest.raises(ValueError, match="reaches all 2"):
        Navigator(Loss(well_value, well_gradient), actuation=[[1.0], [0.0]]).solve(START, 1.0)
    with pytest.raises(ValueError, match="gradients of shape"):
        Navigator(Loss(lambda x: 0.0, lambda x: 0.0)).solve(START, 1.0)
    with pytest.raises(ValueError, match="metric of shape"):
        Navigator(Loss(well_value, well_gradient), metric=[1.0]).solve(START, 1.0)
    with pytest.raises(ValueError, match="times in"):
        Navigator(Quadratic([1.0])).solve([1.0], 1.0).best(2.0)
    with pytest.raises(TypeError, match="callable"):
        Loss(1.0, well_gradient)


# Heavy ball


BALL = HeavyBall(acceleration_cost=0.3, step_cost=0.8, loss_weight=1.5, discount=0.6)


def test_heavy_ball_coefficients():
    mu, lam = BALL.friction, BALL.gain
    assert mu == pytest.approx(0.5 * (-0.6 + math.sqrt(0.36 + 4 / (0.3 * 0.8))), rel=1e-13)
    assert lam == pytest.approx(1.5 / (0.3 * 0.6 * (0.6 + mu)), rel=1e-13)
    assert lam / mu == pytest.approx(0.8 * 1.5 / 0.6, rel=1e-13)
    stiff = HeavyBall(acceleration_cost=1.0, discount=1e9)
    assert stiff.friction == pytest.approx(1e-9, rel=1e-12)


def test_heavy_ball_solves_its_hjb_equation():
    rng = np.random.default_rng(0)
    eps, eta, k, gamma = 0.3, 0.8, 1.5, 0.6
    c = rng.standard_normal(3)

    def V(theta, v):
        return BALL.value(theta, v, c)

    for theta, v in rng.standard_normal((5, 2, 3)):
        by_theta = np.array([(V(theta + 1e-4 * e, v) - V(theta - 1e-4 * e, v)) / 2e-4 for e in np.eye(3)])
        by_v = np.array([(V(theta, v + 1e-4 * e) - V(theta, v - 1e-4 * e)) / 2e-4 for e in np.eye(3)])
        a = -by_v / eps
        right = v @ v / (2 * eta) + eps / 2 * a @ a + k * c @ theta + by_theta @ v + by_v @ a
        assert gamma * V(theta, v) == pytest.approx(right, rel=1e-7)
        np.testing.assert_allclose(BALL.acceleration(c, v), a, rtol=1e-7)


def test_heavy_ball_against_a_discretised_problem():
    # Piecewise constant acceleration on [0, T], trapezoid rule: a quadratic program in the accelerations.
    eps, eta, k, gamma, c, v0, T, N = 0.3, 0.8, 1.5, 0.6, 0.7, -0.4, 30.0, 3000
    h = T / N
    t = np.linspace(0.0, T, N + 1)
    w = h * np.exp(-gamma * t)
    w[[0, -1]] /= 2
    L = h * np.tri(N + 1, N, -1)  # v = v0 + L a
    X = h * (np.tri(N + 1) - 0.5 * np.eye(N + 1))
    X[:, 0] -= h / 2
    X[0] = 0.0  # theta = theta0 + X v by the trapezoid rule
    fade = h * np.exp(-gamma * (t[:-1] + h / 2))
    hessian = L.T @ (w[:, None] / eta * L) + np.diag(eps * fade)
    gradient = L.T @ (w * v0 / eta) + L.T @ (X.T @ (w * k * c))
    a = np.linalg.solve(hessian, -gradient)
    first = 1.5 * a[0] - 0.5 * a[1]  # at time 0, from midpoints
    assert first == pytest.approx(BALL.acceleration(c, v0), rel=2e-4)


def test_heavy_ball_rolls():
    loss = Quadratic([1.0, 4.0], [1.0, -1.0])
    t = np.linspace(0.0, 5.0, 40)
    theta, v = BALL.simulate(loss, [2.0, 1.0], t)
    np.testing.assert_allclose(v[0], -BALL.gain / BALL.friction * loss.gradient([2.0, 1.0]))
    A = np.block([[np.zeros((2, 2)), np.eye(2)], [-BALL.gain * loss.dense(), -BALL.friction * np.eye(2)]])
    state = np.array([scipy.linalg.expm(A * s) @ np.concatenate([theta[0] - loss.mu, v[0]]) for s in t])
    np.testing.assert_allclose(np.column_stack([theta - loss.mu, v]), state, atol=1e-8)
    run = steepest.analyze(BALL.recording(loss, [2.0, 1.0], t))["run"]
    assert (run["psi"][:, 0] > math.pi / 2).any()  # momentum overshoots
    slope = Loss(lambda x: float(x.sum()), np.ones_like)
    beta, rate = BALL.coefficients(0.5)
    _, speed = BALL.simulate(slope, [0.0], [0.0, 0.5, 1.0], velocity=[0.3])
    assert speed[1, 0] == pytest.approx(beta * 0.3 - rate, rel=1e-9)
    assert speed[2, 0] == pytest.approx(beta * speed[1, 0] - rate, rel=1e-9)
    with pytest.raises(ValueError, match="acceleration_cost"):
        HeavyBall(acceleration_cost=0.0)
    with pytest.raises(ValueError, match="ascending"):
        BALL.simulate(loss, [2.0, 1.0], [0.0])
    with pytest.raises(ValueError, match="dt"):
        BALL.coefficients(0.0)
