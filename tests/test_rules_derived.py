"""Derived rules against independent routes: Riccati, matrix functions, differential equations, simulated jumps."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg

from steepest import rules


def spd(n, rng):
    A = rng.standard_normal((n, n))
    return A @ A.T + 0.1 * np.eye(n)


def riccati_rate(H, gamma, eta, k):
    """Feedback R of theta' = -R theta: minimum of int e^{-gamma t} (|v|^2/(2 eta) + k theta.H theta/2)."""
    n = len(H)
    S = scipy.linalg.solve_continuous_are(-0.5 * gamma * np.eye(n), np.eye(n), k * H, np.eye(n) / eta)
    return eta * S


# Finite steps


@pytest.mark.parametrize("gamma", [0.0, 0.5, 8.0])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_finite_step_follows_the_optimal_flow(gamma, n):
    rng = np.random.default_rng(n)
    H, mu, theta = spd(n, rng), rng.standard_normal(n), rng.standard_normal(n)
    eta, k, dt = 0.7, 1.9, 0.3
    expected = -(np.eye(n) - scipy.linalg.expm(-riccati_rate(H, gamma, eta, k) * dt)) @ (theta - mu)
    grad = H @ (theta - mu)
    for hessian in (H, np.linalg.eigh(H), lambda _: H):
        rule = rules.FiniteStep(hessian, dt=dt, gamma=gamma, eta=eta, k=k)
        state = rule.init(theta)
        update, after = rule.update(grad, state, theta)
        np.testing.assert_allclose(update, expected, rtol=1e-8, atol=1e-12)
        M = rule.metric(grad, state, theta)
        np.testing.assert_allclose(M.solve(-grad), update, rtol=1e-9, atol=1e-12)
        assert (state.step, after.step) == (0, 1)


def test_limits_of_the_finite_step():
    rng = np.random.default_rng(0)
    H, grad = spd(4, rng), rng.standard_normal(4)

    def step(**options):
        rule = rules.FiniteStep(H, **options)
        return rule.update(grad, rule.init(grad))[0]

    newton = -np.linalg.solve(H, grad)
    np.testing.assert_allclose(step(dt=math.inf), newton, rtol=1e-10)
    np.testing.assert_allclose(step(dt=1e4), newton, rtol=1e-10)
    root = scipy.linalg.sqrtm(np.linalg.inv(H)).real
    np.testing.assert_allclose(step(dt=1e-8, eta=4.0) / 1e-8, -2.0 * root @ grad, rtol=1e-6)
    np.testing.assert_allclose(step(dt=1e-7, gamma=1e4, eta=3.0) / 1e-7, -3e-4 * grad, rtol=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 8.0])
def test_metric_of_a_short_step_is_that_of_the_flow(gamma):
    """(R + gamma I)/(eta k), section 13, per unit time; at gamma = 0 the root of H."""
    H, eta, k, dt = spd(4, np.random.default_rng(1)), 0.7, 1.9, 1e-7
    rule = rules.FiniteStep(H, dt=dt, gamma=gamma, eta=eta, k=k)
    M = rule.metric(np.ones(4), rule.init(np.ones(4))).to_dense() * dt
    R = riccati_rate(H, gamma, eta, k)
    np.testing.assert_allclose(M, (R + gamma * np.eye(4)) / (eta * k), rtol=1e-5, atol=1e-6)
    if gamma == 0.0:
        np.testing.assert_allclose(M, scipy.linalg.sqrtm(H).real / math.sqrt(eta * k), rtol=1e-5, atol=1e-6)


def test_flat_and_negative_curvature():
    h, grad = np.array([0.0, 1e-14, 2.0]), np.ones(3)
    rule = rules.FiniteStep(h, dt=0.5, gamma=2.0)
    update, _ = rule.update(grad, rule.init(grad))
    np.testing.assert_allclose(update[:2], -0.5 / 2.0, rtol=1e-12)  # dt eta k / gamma
    ballistic = rules.FiniteStep(h, dt=0.5)
    with pytest.raises(ValueError, match="curvature in every direction"):
        ballistic.update(grad, ballistic.init(grad))
    with pytest.raises(ValueError, match="absolute"):
        rules.FiniteStep(-h, dt=0.5).init(grad)
    mirrored = rules.FiniteStep(-h, dt=0.5, gamma=2.0, negative="absolute")
    np.testing.assert_array_equal(mirrored.update(grad, mirrored.init(grad))[0], update)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 5.0])
def test_adaptive_step_is_the_riccati_feedback_of_the_believed_loss(gamma):
    """Without memory V = g^2: the feedback for curvature V, in units of gradient."""
    grad = np.array([0.3, -2.0, 7.0])
    rule = rules.Adaptive(dt=0.01, gamma=gamma, eta=0.5, k=3.0, beta1=0.0, beta2=0.0)
    update, _ = rule.update(grad, rule.init(grad))
    R = np.diag(riccati_rate(np.diag(grad**2), gamma, 0.5, 3.0))
    np.testing.assert_allclose(update, -0.01 * R / grad**2 * grad, rtol=1e-8)


def test_adaptive_rule_without_any_gradient_stays():
    rule = rules.Adaptive(dt=0.1)
    update, state = rule.update(np.array([0.0, 1.0]), rule.init(np.zeros(2)))
    assert update.tolist() == [0.0, pytest.approx(-0.1)]
    assert np.isfinite(rule.update(np.zeros(2), state)[0]).all()


# Uncertain weights


def test_weight_uncertainty_is_fisher_natural_gradient_of_the_free_energy():
    """By finite differences of F(mu, v) = L(mu) + sum h v/2 - T sum log(2 pi e v)/2, metric diag(1/v, 1/(2v^2))."""
    h, mu, v, T = np.array([0.5, 3.0]), np.array([1.0, -2.0]), np.array([0.2, 0.7]), 0.3

    def F(x):
        return 0.5 * h @ (x[:2] ** 2 + x[2:]) - 0.5 * T * np.log(2 * np.pi * np.e * x[2:]).sum()

    x = np.concatenate([mu, v])
    slope = np.array([(F(x + 1e-6 * e) - F(x - 1e-6 * e)) / 2e-6 for e in np.eye(4)])
    expected = -slope * np.concatenate([v, 2 * v**2])
    rule = rules.WeightUncertainty(variance=v, temperature=T, rate=1e-7)
    state = rule.init(mu)
    update, after = rule.update(h * mu, state, curvature=h)
    np.testing.assert_allclose(update / 1e-7, expected[:2], rtol=1e-6)
    np.testing.assert_allclose((after.variance - v) / 1e-7, expected[2:], rtol=1e-5)
    np.testing.assert_allclose(rule.metric(h * mu, state).solve(-h * mu), update, rtol=1e-12)


@pytest.mark.parametrize("T", [0.0, 0.4])
def test_variance_follows_its_differential_equation(T):
    h, v = np.array([0.5, 3.0, 0.0]), np.array([0.2, 0.7, 1.0])
    solution = scipy.integrate.solve_ivp(
        lambda _, x: -(x**2 * h - T * x), (0.0, 1.7), v, rtol=1e-11, atol=1e-13, method="DOP853"
    )
    rule = rules.WeightUncertainty(variance=v, temperature=T, rate=0.17)
    state = rule.init(np.zeros(3))
    for _ in range(10):
        _, state = rule.update(np.zeros(3), state, curvature=h)
    np.testing.assert_allclose(state.variance, solution.y[:, -1], rtol=1e-8)


def test_variance_settles_at_temperature_over_curvature_and_refuses_to_diverge():
    rule = rules.WeightUncertainty(variance=5.0, temperature=0.2, rate=1.0)
    state = rule.init(np.zeros(2))
    for _ in range(300):
        _, state = rule.update(np.zeros(2), state, curvature=np.array([0.1, 4.0]))
    np.testing.assert_allclose(state.variance, [2.0, 0.05], rtol=1e-12)
    with pytest.raises(ValueError, match="diverged"):
        rule.update(np.zeros(2), state, curvature=np.array([-9.0, 1.0]))
    with pytest.raises(ValueError, match="curvature"):
        rule.update(np.zeros(2), state)


# Tasks that switch


def jump_costs(weights, R, *, h, gamma, eta, k, hazard, n, rng):
    """Discounted cost of each of n simulated streams of tasks, for each weight; columns are weights.

    Optima are drawn from N(0, 1) at each switch; between switches theta relaxes to w c with rate R, and the cost of the
    segment is an integral of exponentials. The same switches for every weight.
    """
    w = np.asarray(weights)
    theta = np.ones((n, len(w)))
    c = rng.standard_normal((n, 1))
    discount, total = np.ones((n, 1)), np.zeros((n, len(w)))
    for _ in range(200):
        T = rng.exponential(1.0 / hazard, (n, 1))

        def integral(rate, T=T):
            return -np.expm1(-rate * T) / rate

        a, b = theta - w * c, w * c - c
        square, cross, constant = integral(gamma + 2 * R), integral(gamma + R), integral(gamma)
        moving = R**2 * a**2 / (2 * eta) * square
        total += discount * (moving + 0.5 * k * h * (b**2 * constant + 2 * a * b * cross + a**2 * square))
        theta = w * c + a * np.exp(-R * T)
        discount = discount * np.exp(-gamma * T)
        c = rng.standard_normal((n, 1))
        if discount.max() < 1e-9:
            break
    return total


@pytest.mark.parametrize(("h", "gamma", "hazard"), [(1.0, 0.5, 1.0), (0.2, 1.0, 3.0), (4.0, 0.4, 0.3)])
def test_simulated_switches_confirm_the_weight(h, gamma, hazard):
    """The cost of a stream is a parabola in w: its vertex, and what perturbing w costs, from 20000 streams."""
    eta, k = 0.8, 1.5
    rule = rules.Reset(np.zeros(1), np.array([h]), hazard=hazard, dt=0.1, gamma=gamma, eta=eta, k=k)
    w = float(rule.weight(np.array([h]))[0])
    R = math.sqrt(gamma**2 / 4 + eta * k * h) - gamma / 2
    delta, n = 0.25, 20000
    options = {"h": h, "gamma": gamma, "eta": eta, "k": k, "hazard": hazard, "n": n, "rng": np.random.default_rng(1)}
    J = jump_costs([w - delta, w, w + delta], R, **options)
    slope, bend = (J[:, 2] - J[:, 0]) / (2 * delta), (J[:, 2] - 2 * J[:, 1] + J[:, 0]) / delta**2
    error = float(slope.std()) / math.sqrt(n) / float(bend.mean())
    assert abs(slope.mean() / bend.mean()) < 4 * error  # the vertex is at w
    assert error < 0.03
    for other in (J[:, 0], J[:, 2]):  # paired: the same switches
        change = other - J[:, 1]
        assert change.mean() > 3 * change.std() / math.sqrt(n)


@pytest.mark.parametrize(("h", "gamma", "hazard"), [(1.0, 0.5, 1.0), (0.2, 0.0, 3.0), (4.0, 7.0, 0.3), (1.0, 0.5, 0.0)])
def test_reset_rule_is_the_riccati_feedback_of_the_expected_tasks(h, gamma, hazard):
    """State (theta, optimum), relative to the prior: E d(optimum) = -hazard optimum dt, which control cannot change."""
    eta, k, prior = 0.8, 1.5, 0.4
    A = np.diag([0.0, -hazard]) - 0.5 * gamma * np.eye(2) - np.diag([0.0, 1e-9])
    B = np.array([[1.0], [0.0]])
    S = scipy.linalg.solve_continuous_are(A, B, k * h * np.array([[1.0, -1.0], [-1.0, 1.0]]), np.eye(1) / eta)
    feedback = eta * S[0]
    theta, mu, dt = 2.0, -1.0, 1e-7
    rule = rules.Reset(np.array([prior]), np.array([h]), hazard=hazard, dt=dt, gamma=gamma, eta=eta, k=k)
    at = np.array([theta])
    update, _ = rule.update(np.array([h * (theta - mu)]), rule.init(at), at)
    assert update[0] / dt == pytest.approx(-feedback @ [theta - prior, mu - prior], rel=1e-5)


@pytest.mark.parametrize(("h", "gamma", "hazard"), [(1.0, 0.5, 1.0), (0.2, 0.3, 3.0), (4.0, 7.0, 0.3)])
def test_reset_rule_solves_the_hjb_equation_of_the_jump_process(h, gamma, hazard):
    """By policy iteration, with collocation at random points and the expectation over the next task written out.

    gamma V = v^2/(2 eta) + k h (theta - c)^2/2 + V_theta v + hazard (E V(theta, c') - V(theta, c)), v = -eta V_theta.
    """
    eta, k, prior, spread = 0.8, 1.5, 0.4, 1.7
    theta, c = np.random.default_rng(0).uniform(-3, 3, (2, 40))
    one = np.ones(40)
    basis = np.stack([one, theta, c, theta**2, theta * c, c**2])
    slope = np.stack([0 * one, one, 0 * one, 2 * theta, c, 0 * one])
    after = np.stack([one, theta, prior * one, theta**2, theta * prior, (prior**2 + spread**2) * one])
    v = c - theta
    for _ in range(30):
        cost = v**2 / (2 * eta) + 0.5 * k * h * (theta - c) ** 2
        V, *_ = np.linalg.lstsq((gamma * basis - slope * v - hazard * (after - basis)).T, cost, rcond=None)
        v = -eta * V @ slope
    cost = v**2 / (2 * eta) + 0.5 * k * h * (theta - c) ** 2
    residual = cost + V @ (slope * v + hazard * (after - basis) - gamma * basis)
    assert np.abs(residual).max() < 1e-8 * np.abs(cost).max()
    rule = rules.Reset(np.full(40, prior), np.full(40, h), hazard=hazard, dt=1e-7, gamma=gamma, eta=eta, k=k)
    update, _ = rule.update(h * (theta - c), rule.init(theta), theta)
    np.testing.assert_allclose(update / 1e-7, v, rtol=1e-5, atol=1e-6)


def test_reset_rule_in_several_dimensions_and_its_metric():
    rng = np.random.default_rng(3)
    H, prior, mu, theta = spd(4, rng), *rng.standard_normal((3, 4))
    gamma, hazard, dt = 0.6, 0.9, 0.4
    R = riccati_rate(H, gamma, 1.0, 1.0)
    w = np.linalg.solve((gamma + hazard) * np.eye(4) + R, gamma * np.eye(4) + R)
    target = w @ mu + (np.eye(4) - w) @ prior
    expected = -(np.eye(4) - scipy.linalg.expm(-R * dt)) @ (theta - target)
    rule = rules.Reset(prior, H, hazard=hazard, dt=dt, gamma=gamma)
    state, grad = rule.init(theta), H @ (theta - mu)
    update, _ = rule.update(grad, state, theta)
    np.testing.assert_allclose(update, expected, rtol=1e-8)
    np.testing.assert_allclose(rule.believed(grad, state, theta), H @ (theta - target), rtol=1e-8)
    M = rule.metric(grad, state, theta)
    np.testing.assert_allclose(M.solve(-rule.believed(grad, state, theta)), update, rtol=1e-8)
    plain = rules.FiniteStep(H, dt=dt, gamma=gamma)
    np.testing.assert_allclose(M.to_dense(), plain.metric(grad, plain.init(theta)).to_dense(), rtol=1e-8, atol=1e-10)
    never = rules.Reset(prior, H, hazard=0.0, dt=dt, gamma=gamma)
    np.testing.assert_allclose(
        never.update(grad, never.init(theta), theta)[0], plain.update(grad, plain.init(theta))[0], rtol=1e-9
    )


def test_a_detected_switch_is_a_pure_reset_and_short_horizons_mix_gradients():
    h, prior, theta = np.array([0.5, 2.0]), np.array([1.0, -1.0]), np.array([3.0, 3.0])
    grad, dt = np.array([5.0, -4.0]), 1e-6
    rule = rules.Reset(prior, h, hazard=0.2, dt=0.3)
    update, _ = rule.update(grad, rule.init(theta), theta, switched=1.0)
    np.testing.assert_allclose(update, -(1 - np.exp(-np.sqrt(h) * 0.3)) * (theta - prior), rtol=1e-12)
    short = rules.Reset(prior, h, hazard=0.2, dt=dt, gamma=1e5)
    update, _ = short.update(grad, short.init(theta), theta, switched=0.3)
    mixed = 0.7 * grad + 0.3 * h * (theta - prior)
    np.testing.assert_allclose(update / dt * 1e5, -mixed, rtol=1e-4)
    flat = rules.Reset(prior, np.array([0.0, 1.0]), hazard=1.0, dt=0.1, gamma=1.0)
    assert flat.weight(np.array([0.0, 1e9])).round(3).tolist() == [0.5, 1.0]
    with pytest.raises(ValueError, match="probability"):
        rule.update(grad, rule.init(theta), theta, switched=1.5)
    with pytest.raises(ValueError, match="params"):
        rule.update(grad, rule.init(theta))
    with pytest.raises(ValueError, match="curvature"):
        rule.update(grad, rule.init(theta), theta, curvature=h)
