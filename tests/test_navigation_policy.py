"""Closed-form policies: against the Riccati equation by other routes, quadrature of the cost, and each other."""

import math
import pickle

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg

import steepest
from steepest import navigation
from steepest.navigation import Loss, Navigator, Quadratic


def spd(n, rng, shift=0.3):
    X = rng.standard_normal((n, n))
    return X @ X.T + shift * np.eye(n)


def value_by_backward_integration(H, mu, G, F, B, eta, k, gamma, duration=130.0):
    """Coefficients S, s of V, as the limit of the finite-horizon problem: an ODE in the time to go."""
    n = len(H)
    W = B @ np.linalg.inv(G) @ B.T

    def rate(_, flat):
        S, s = flat[: n * n].reshape(n, n), flat[n * n :]
        dS = k * H + S @ F + F.T @ S - gamma * S - eta * S @ W @ S
        ds = -k * H @ mu + F.T @ s - gamma * s - eta * S @ W @ s
        return np.concatenate([dS.ravel(), ds])

    end = scipy.integrate.solve_ivp(
        rate, (0.0, duration), np.zeros(n * n + n), method="LSODA", rtol=1e-11, atol=1e-12
    ).y[:, -1]
    return end[: n * n].reshape(n, n), end[n * n :]


def cost_by_quadrature(policy, theta0, duration):
    """J of following the policy's velocity, integrated by an ODE solver; controls by least squares."""
    nav = policy.navigator
    n = policy.size
    B = np.eye(n) if nav.actuation is None else nav.actuation
    F = np.zeros((n, n)) if nav.drift is None else np.diag(nav.drift) if nav.drift.ndim == 1 else nav.drift
    G = np.eye(B.shape[1]) if nav.metric is None else np.diag(nav.metric) if nav.metric.ndim == 1 else nav.metric

    def rate(t, state):
        theta = state[:n]
        velocity = policy.velocity(theta)
        u = np.linalg.lstsq(B, velocity - F @ theta, rcond=None)[0]
        running = u @ G @ u / (2 * nav.step_cost) + nav.loss_weight * policy.loss.value(theta)
        return np.concatenate([velocity, [running * math.exp(-nav.discount * t)]])

    state = scipy.integrate.solve_ivp(
        rate, (0.0, duration), np.concatenate([theta0, [0.0]]), method="DOP853", rtol=1e-11, atol=1e-13
    ).y[:, -1]
    return state[:n], state[n]


# The feedback (section 14, test 1)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 8.0])
@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_feedback_in_a_geometry_solves_the_riccati_equation(n, gamma):
    rng = np.random.default_rng(n)
    H, G, mu, theta = spd(n, rng), spd(n, rng), rng.standard_normal(n), rng.standard_normal(n)
    eta, k = 0.7, 1.3
    policy = Navigator(Quadratic(H, mu), step_cost=eta, loss_weight=k, discount=gamma, metric=G).policy()
    S = scipy.linalg.solve_continuous_are(-gamma / 2 * np.eye(n), np.eye(n), k * H, G / eta)
    np.testing.assert_allclose(policy.S, S, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(policy.velocity(theta), -eta * np.linalg.solve(G, S @ (theta - mu)), rtol=1e-9)
    R = -policy.jacobian
    np.testing.assert_allclose(R @ R + gamma * R, eta * k * np.linalg.solve(G, H), rtol=1e-9, atol=1e-10)
    M_dense = G @ (R + gamma * np.eye(n)) / (eta * k)
    np.testing.assert_allclose(policy.metric().to_dense(), M_dense, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(policy.fixed_point, mu)
    assert policy.not_natural is None
    root = scipy.linalg.sqrtm(gamma**2 / 4 * np.eye(n) + eta * k * np.linalg.solve(G, H))
    np.testing.assert_allclose(R, root - gamma / 2 * np.eye(n), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 8.0])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 2), (3, 2), (4, 1)])
def test_drift_and_actuation_against_backward_integration(n, m, gamma):
    rng = np.random.default_rng(10 * n + m)
    H, G, F, mu = spd(n, rng), spd(m, rng), rng.standard_normal((n, n)), rng.standard_normal(n)
    B = np.eye(n) if n == m else rng.standard_normal((n, m))
    actuation = None if n == m else B
    nav = Navigator(
        Quadratic(H, mu), step_cost=0.8, loss_weight=1.5, discount=gamma, metric=G, drift=F, actuation=actuation
    )
    policy = nav.policy()
    S, s = value_by_backward_integration(H, mu, G, F, B, 0.8, 1.5, gamma)
    theta = rng.standard_normal((5, n))
    np.testing.assert_allclose(policy.S, S, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(policy.value_gradient(theta), theta @ S + s, rtol=1e-6, atol=1e-6)
    expected = theta @ F.T - 0.8 * (theta @ S + s) @ (B @ np.linalg.solve(G, B.T))
    np.testing.assert_allclose(policy.velocity(theta), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(policy.velocity(policy.fixed_point), 0.0, atol=1e-9)
    np.testing.assert_allclose(policy.velocity(theta), theta @ F.T + policy.control(theta) @ B.T, rtol=1e-9, atol=1e-9)
    assert policy.rates.real.min() > -gamma / 2


def test_restricted_actuation_without_drift_projects_the_gradient():
    B = np.array([[1.0], [2.0], [0.0]])
    policy = Navigator(Quadratic(np.diag([1.0, 2.0, 3.0]), [1.0, 0.0, 2.0]), discount=0.7, actuation=B).policy()
    theta = np.array([0.3, -1.0, 4.0])
    velocity = policy.velocity(theta)
    np.testing.assert_allclose(np.cross(velocity, B[:, 0]), 0.0, atol=1e-12)
    S, _ = value_by_backward_integration(
        np.diag([1.0, 2.0, 3.0]), np.zeros(3), np.eye(1), np.zeros((3, 3)), B, 1.0, 1.0, 0.7
    )
    np.testing.assert_allclose(policy.S, S, rtol=1e-7, atol=1e-8)
    end, cost = cost_by_quadrature(policy, theta, 3.0)
    np.testing.assert_allclose(policy.trajectory(theta, 3.0), end, rtol=1e-8)
    assert policy.cost(theta, 3.0) == pytest.approx(cost, rel=1e-8)
    with pytest.raises(ValueError, match="range of the actuation"):
        policy.metric()


def test_an_invertible_actuation_is_a_geometry():
    rng = np.random.default_rng(4)
    H, G, B = spd(3, rng), spd(3, rng), rng.standard_normal((3, 3))
    inverse = np.linalg.inv(B)
    one = Navigator(Quadratic(H), discount=0.4, metric=G, actuation=B).policy()
    other = Navigator(Quadratic(H), discount=0.4, metric=inverse.T @ G @ inverse).policy()
    np.testing.assert_allclose(one.jacobian, other.jacobian, rtol=1e-8)
    assert steepest.distance(one.metric(), other.metric()).value < 1e-7


@pytest.mark.parametrize("drift", [None, [-1.0, 0.2, -3.0]])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_the_diagonal_path_is_the_dense_one(drift, gamma):
    h, g, mu = np.array([1.0, 3.0, 0.2]), np.array([0.5, 1.0, 2.0]), np.array([1.0, -1.0, 3.0])
    kwargs = {"step_cost": 0.4, "loss_weight": 2.0, "discount": gamma}
    flat = Navigator(Quadratic(h, mu), metric=g, drift=drift, **kwargs).policy()
    full = Navigator(
        Quadratic(np.diag(h), mu), metric=np.diag(g), drift=None if drift is None else np.diag(drift), **kwargs
    ).policy()
    theta = np.array([[0.5, 2.0, -1.0], [1.0, 0.0, 0.0]])
    assert flat.jacobian.ndim == 1
    np.testing.assert_allclose(flat.velocity(theta), full.velocity(theta), rtol=1e-9)
    np.testing.assert_allclose(flat.value(theta, relative=True), full.value(theta, relative=True), rtol=1e-8)
    np.testing.assert_allclose(flat.fixed_point, full.fixed_point, rtol=1e-9)
    np.testing.assert_allclose(flat.update(theta, 0.7), full.update(theta, 0.7), rtol=1e-8)
    np.testing.assert_allclose(flat.rates, np.sort(full.rates), rtol=1e-9)
    assert flat.cost(theta[0], 2.0) == pytest.approx(full.cost(theta[0], 2.0), rel=1e-8)
    if drift is None:
        np.testing.assert_allclose(flat.metric().to_dense(), full.metric().to_dense(), rtol=1e-10, atol=1e-14)


def test_a_diagonal_problem_costs_no_matrix():
    n = 200_000
    policy = Navigator(Quadratic(np.linspace(0.1, 2.0, n), np.ones(n)), discount=0.5).policy()
    theta = np.zeros(n)
    M = policy.metric()
    np.testing.assert_allclose(M.solve(-policy.loss.gradient(theta)), policy.velocity(theta), rtol=1e-13)


# Value and cost


@pytest.mark.parametrize("gamma", [0.0, 0.6])
@pytest.mark.parametrize("drift", ["none", "rotation", "decay"])
def test_cost_is_what_a_simulation_spends(drift, gamma):
    F = {"none": None, "rotation": navigation.rotation(3.0), "decay": navigation.weight_decay(2.0, 2)}[drift]
    policy = Navigator(
        Quadratic([4.0, 1.0], [0.5, -0.5]), step_cost=1.4, loss_weight=0.7, discount=gamma, metric=[0.5, 2.0], drift=F
    ).policy()
    theta0 = np.array([1.5, 1.0])
    end, cost = cost_by_quadrature(policy, theta0, 2.5)
    np.testing.assert_allclose(policy.trajectory(theta0, 2.5), end, rtol=1e-8, atol=1e-10)
    assert policy.cost(theta0, 2.5) == pytest.approx(cost, rel=1e-8)
    if gamma == 0.0:
        assert (policy.value(theta0) == math.inf) == (F is not None)
    else:
        assert policy.value(theta0) == pytest.approx(cost_by_quadrature(policy, theta0, 45.0)[1], rel=1e-7)


def test_cost_of_the_authors_expression():
    h, mu, theta0 = np.array([1 / 9, 1.0]), np.zeros(2), np.array([-3.0, -3.0])
    for gamma in (0.0, 1.0, 10.0):
        policy = Navigator(Quadratic(h, mu), step_cost=2.0, loss_weight=0.5, discount=gamma).policy()
        r = np.sqrt(gamma**2 / 4 + h) - gamma / 2
        rate = 2 * r + gamma
        expected = np.sum((r**2 + h) * theta0**2 / rate * (1 - np.exp(-rate * 1.7))) / 4.0
        assert policy.cost(theta0, 1.7) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("gamma", [0.3, 4.0])
def test_value_solves_the_hjb_equation(gamma):
    rng = np.random.default_rng(7)
    n = 4
    H, G, F, mu = spd(n, rng), spd(n, rng), rng.standard_normal((n, n)), rng.standard_normal(n)
    policy = Navigator(Quadratic(H, mu), step_cost=0.5, loss_weight=2.0, discount=gamma, metric=G, drift=F).policy()
    for theta in rng.standard_normal((4, n)):
        grad = np.array([
            (policy.value(theta + 1e-4 * e) - policy.value(theta - 1e-4 * e)) / 2e-4 for e in np.eye(n)
        ])  # fmt: skip
        right = 2.0 * policy.loss.value(theta) + grad @ F @ theta - 0.25 * grad @ np.linalg.solve(G, grad)
        assert gamma * policy.value(theta) == pytest.approx(right, rel=1e-7)


# Named rules and limits


@pytest.mark.parametrize("gamma", [0.0, 1.5])
def test_weight_decay_and_rotation(gamma):
    h, mu = 4.0, np.array([0.3, -0.5])
    kwargs = {"step_cost": 0.9, "loss_weight": 1.2, "discount": gamma}
    decay = Navigator(Quadratic([h, h], mu), drift=navigation.weight_decay(2.0, 2), **kwargs).policy()
    S, s = value_by_backward_integration(h * np.eye(2), mu, np.eye(2), -2 * np.eye(2), np.eye(2), 0.9, 1.2, gamma)
    for i in range(2):
        rate, rest = navigation.weight_decay_feedback(h, mu[i], 2.0, **kwargs)
        assert decay.rates[i] == pytest.approx(rate, rel=1e-12)
        assert rate == pytest.approx(0.9 * S[i, i] + 2.0, rel=1e-8)
        assert decay.fixed_point[i] == pytest.approx(rest, rel=1e-12)
        assert rest == pytest.approx(-0.9 * s[i] / rate, rel=1e-8)
    turned = Navigator(Quadratic([h, h], mu), drift=navigation.rotation(3.0), **kwargs).policy()
    rate, frequency, rest = navigation.rotation_feedback(h, mu, 3.0, **kwargs)
    np.testing.assert_allclose(turned.rates, [rate - 1j * frequency, rate + 1j * frequency], rtol=1e-9)
    np.testing.assert_allclose(turned.fixed_point, rest, rtol=1e-9)
    np.testing.assert_allclose(turned.trajectory([1.5, 1.5], 60.0), rest, rtol=1e-8)


def test_the_finite_step_and_its_limits():
    rng = np.random.default_rng(3)
    H, G, mu, theta = spd(3, rng), spd(3, rng), rng.standard_normal(3), rng.standard_normal(3)
    loss = Quadratic(H, mu)
    policy = Navigator(loss, discount=0.6, metric=G).policy()
    R, grad = -policy.jacobian, loss.gradient(theta)
    for dt in (1e-3, 0.4, 7.0):
        expected = -(np.eye(3) - scipy.linalg.expm(-R * dt)) @ np.linalg.solve(H, grad)
        np.testing.assert_allclose(policy.update(theta, dt), expected, rtol=1e-9)
        np.testing.assert_allclose(policy.metric(dt=dt).solve(-grad), expected, rtol=1e-9)
    np.testing.assert_allclose(policy.update(theta, 1e3), navigation.newton_step(loss, theta), rtol=1e-10)
    for gamma, limit in ((1e4, navigation.gradient_step), (0.0, navigation.ballistic_step)):
        nav = Navigator(loss, discount=gamma, metric=G)
        step = limit(nav, theta, 1e-6)
        np.testing.assert_allclose(nav.policy().update(theta, 1e-6), step, rtol=2e-5)
    assert not policy.update(theta, 0.0).any()


def test_curvature_times_four_is_twice_the_rate_or_four_times():
    ballistic = Navigator(Quadratic([1.0, 4.0])).policy().rates
    short = Navigator(Quadratic([1.0, 4.0]), discount=1e3).policy().rates
    assert ballistic[1] / ballistic[0] == pytest.approx(2.0)
    assert short[1] / short[0] == pytest.approx(4.0, rel=1e-5)


@pytest.mark.parametrize(("order", "power"), [(1, 2), (2, 4)])
def test_the_short_horizon_error_falls_with_its_power(order, power):
    rng = np.random.default_rng(5)
    H, G, theta = spd(4, rng), spd(4, rng), rng.standard_normal(4)
    errors = []
    for gamma in (40.0, 80.0):
        nav = Navigator(Quadratic(H), discount=gamma, metric=G)
        exact = nav.policy().velocity(theta)
        errors.append(
            np.linalg.norm(navigation.short_horizon_velocity(nav, theta, order=order) - exact) / np.linalg.norm(exact)
        )
    assert math.log2(errors[0] / errors[1]) == pytest.approx(power, abs=0.15)


def test_rates_far_below_the_discount_keep_their_digits():
    policy = Navigator(Quadratic([1e-12, 1.0]), discount=1e6).policy()
    np.testing.assert_allclose(policy.rates, [1e-18, 1e-6 - 1e-18], rtol=1e-14)
    huge = Navigator(Quadratic([1.0]), discount=1e200).policy()
    assert huge.rates[0] == pytest.approx(1e-200)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_without_discount_the_metric_is_the_geometric_mean(n):
    rng = np.random.default_rng(n)
    G, H = spd(n, rng), spd(n, rng)
    root = scipy.linalg.sqrtm(G)
    inverse = np.linalg.inv(root)
    expected = root @ scipy.linalg.sqrtm(inverse @ H @ inverse) @ root
    mean = navigation.geometric_mean(G, H)
    np.testing.assert_allclose(mean, expected, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(mean @ np.linalg.solve(G, mean), H, rtol=1e-9, atol=1e-10)  # X G^-1 X = H
    np.testing.assert_allclose(mean, navigation.geometric_mean(H, G), rtol=1e-9)
    M = Navigator(Quadratic(H), step_cost=0.5, loss_weight=8.0, metric=G).policy().metric()
    np.testing.assert_allclose(M.to_dense(), expected / 2.0, rtol=1e-9)


def test_negative_curvature_is_a_rule_as_long_as_the_discount_outweighs_it():
    policy = Navigator(Quadratic([-1.0, 2.0]), discount=2.5).policy()
    assert policy.rates[0] == pytest.approx(-0.5)  # away from the maximum, slower than gamma/2
    theta = np.array([1.0, 1.0])
    grad = policy.loss.gradient(theta)
    np.testing.assert_allclose(policy.metric().solve(-grad), policy.velocity(theta))
    _, cost = cost_by_quadrature(policy, theta, 40.0)
    assert policy.value(theta) == pytest.approx(cost, rel=1e-7)
    with pytest.raises(ValueError, match="unbounded below"):
        Navigator(Quadratic([-1.0, 2.0]), discount=1.9).policy()
    with pytest.raises(ValueError, match="negative eigenvalue"):
        Navigator(Quadratic(np.diag([-1.0, 2.0])), discount=0.5, drift=np.array([[1.0, 1.0], [0.0, 0.1]])).policy()


def test_the_absolute_curvature_leaves_saddle_points():
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((2, 2)))[0]
    for loss in (Quadratic([-4.0, 9.0], [1.0, 1.0]), Quadratic(turn @ np.diag([-4.0, 9.0]) @ turn.T, [1.0, 1.0])):
        M = Navigator(loss.absolute()).policy().metric()
        V = np.eye(2) if loss.diagonal else turn
        theta = loss.mu + V @ np.array([0.1, 0.2])
        np.testing.assert_allclose(-M.solve(loss.gradient(theta)), V @ np.array([0.2, -0.6]), atol=1e-12)


def test_more_controls_than_parameters():
    rng = np.random.default_rng(8)
    H, B, G = spd(2, rng), rng.standard_normal((2, 4)), spd(4, rng)
    policy = Navigator(Quadratic(H, [1.0, 2.0]), discount=0.5, metric=G, actuation=B).policy()
    S, _ = value_by_backward_integration(H, np.zeros(2), G, np.zeros((2, 2)), B, 1.0, 1.0, 0.5)
    np.testing.assert_allclose(policy.S, S, rtol=1e-8)
    theta = np.array([0.3, -0.4])
    np.testing.assert_allclose(B @ policy.control(theta), policy.velocity(theta), rtol=1e-10)
    np.testing.assert_allclose(policy.metric().solve(-policy.loss.gradient(theta)), policy.velocity(theta), rtol=1e-10)
    path = policy.navigator.solve(theta, 20.0, n_elements=64).best
    np.testing.assert_allclose(path.velocity[0], policy.velocity(theta), rtol=1e-6)


def test_a_drift_of_zero_is_none():
    policy = Navigator(Quadratic(np.diag([1.0, 2.0])), drift=np.zeros((2, 2))).policy()
    assert policy.not_natural is None
    assert policy.metric().cond() == pytest.approx(math.sqrt(2.0))


def test_flat_directions():
    still = Navigator(Quadratic([0.0, 1.0], [2.0, 0.0])).policy()
    assert still.velocity([5.0, 1.0]).tolist() == [0.0, -1.0]
    with pytest.raises(ValueError, match="flat direction"):
        still.metric()
    assert Navigator(Quadratic([0.0, 1.0]), discount=1.0).policy().metric().diagonal()[0] == 1.0
    dense = Navigator(Quadratic([[1.0, 1.0], [1.0, 1.0]])).policy()
    assert np.abs(dense.velocity([1.0, -1.0])).max() < 1e-12
    carried = Navigator(Quadratic([0.0, 1.0], [1.0, 1.0]), discount=1.0, drift=[2.0, -1.0]).policy()
    assert carried.velocity([1.0, 0.0])[0] == pytest.approx(2.0)  # nothing at stake, nothing spent
    assert carried.value([3.0, 0.0]) == carried.value([1.0, 0.0])


# Edges


def test_what_is_refused():
    with pytest.raises(ValueError, match="symmetric"):
        Quadratic([[1.0, 2.0], [0.0, 1.0]])
    with pytest.raises(ValueError, match=r"scalar or of shape \(2,\)"):
        Quadratic([1.0, 1.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="finite"):
        Quadratic([1.0, math.nan])
    with pytest.raises(TypeError, match="real numbers"):
        Quadratic([1.0 + 1j])
    loss = Quadratic([1.0, 1.0])
    with pytest.raises(ValueError, match="discount"):
        Navigator(loss, discount=-1.0)
    with pytest.raises(ValueError, match="step_cost"):
        Navigator(loss, step_cost=0.0)
    with pytest.raises(ValueError, match="positive definite"):
        Navigator(loss, metric=[[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(ValueError, match="metric of shape"):
        Navigator(loss, metric=[1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="drift of shape"):
        Navigator(loss, drift=np.eye(3))
    with pytest.raises(TypeError, match="Drift"):
        Navigator(loss, drift=np.sin)
    with pytest.raises(TypeError, match="Quadratic"):
        Navigator("loss")
    with pytest.raises(TypeError, match="closed form"):
        Navigator(Loss(np.sum, np.sign)).policy()
    with pytest.raises(ValueError, match="actuation does not reach"):
        Navigator(Quadratic(np.eye(2)), actuation=[[1.0], [0.0]]).policy()
    with pytest.raises(ValueError, match="the loss does not see"):
        Navigator(Quadratic(np.diag([1.0, 0.0])), drift=np.array([[0.0, 0.0], [0.0, 1.0]])).policy()
    policy = Navigator(loss).policy()
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 2\)"):
        policy.velocity([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="finite"):
        policy.velocity([1.0, math.nan])
    with pytest.raises(ValueError, match="dt"):
        policy.update([1.0, 2.0], -1.0)
    with pytest.raises(ValueError, match="objective"):
        policy.recording([1.0, 2.0], [0.0, 1.0], objective="x")
    with pytest.raises(ValueError, match="both"):
        policy.metric([1.0, 2.0], dt=1.0)
    with pytest.raises(ValueError, match="discount > 0"):
        navigation.short_horizon_velocity(Navigator(loss), [1.0, 2.0])


def test_the_problem_is_frozen_and_holds_copies():
    H = np.array([1.0, 4.0])
    nav = Navigator(Quadratic(H), metric=steepest.metric(np.array([1.0, 2.0]), np.array([-1.0, -1.0])))
    H[:] = 0.0
    assert nav.loss.H.tolist() == [1.0, 4.0]
    assert nav.metric.shape == (2, 2)
    with pytest.raises(AttributeError):
        nav.discount = 1.0
    with pytest.raises(ValueError, match="read-only"):
        nav.loss.H[0] = 2.0
    policy = nav.policy()
    assert "natural gradient descent" in repr(policy)
    again = pickle.loads(pickle.dumps(policy))
    np.testing.assert_array_equal(again.velocity([1.0, 2.0]), policy.velocity([1.0, 2.0]))
    np.testing.assert_array_equal(policy.to_dict()["S"], policy.S)
