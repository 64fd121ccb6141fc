"""Derived rules in the metric analysis, and their optimality: no perturbation of rule or path is better."""

import math

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

import steepest
from steepest import navigation
from steepest.navigation import Navigator, Quadratic


def spd(n, rng, shift=0.3):
    X = rng.standard_normal((n, n))
    return X @ X.T + shift * np.eye(n)


# Into the metric analysis (section 14, test 5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 8.0])
def test_the_analysis_finds_the_rules_own_geometry(gamma):
    rng = np.random.default_rng(11)
    policy = Navigator(Quadratic(spd(4, rng), rng.standard_normal(4)), discount=gamma, metric=spd(4, rng)).policy()
    rec = policy.recording(rng.standard_normal(4), np.linspace(0.0, 2.0, 15))
    run = steepest.analyze(rec)["run"]
    assert (run["psi"][:, 0] < math.pi / 2).all()
    M = policy.metric()
    own = M.to_dense()
    assert (run["cond_min"][:, 0] <= np.linalg.cond(own) * (1 + 1e-9)).all()  # the optimum over all metrics
    theta = policy.trajectory(policy.loss.mu + 1.0, np.array([0.0, 1.0]))
    for state in theta:
        grad, velocity = policy.loss.gradient(state), policy.velocity(state)
        y = -grad
        M_opt = np.outer(y, y) / (y @ velocity) + (y @ y) / (y @ velocity) * (
            np.eye(4) - np.outer(velocity, velocity) / (velocity @ velocity)
        )
        logs = np.log(scipy.linalg.eigh(M_opt, own, eigvals_only=True))
        found = steepest.distance(M, policy.metric(state))
        assert found.value == pytest.approx(np.linalg.norm(logs), rel=1e-6)


def test_a_rule_with_drift_descends_on_its_value_function_if_not_on_the_loss():
    policy = Navigator(Quadratic([4.0, 4.0], [0.0, -0.5]), drift=navigation.rotation(10.0)).policy()
    times = np.linspace(0.0, 1.5, 60)
    on_loss = policy.recording([1.5, 1.5], times)
    run = steepest.analyze(on_loss)["run"]
    theta = policy.trajectory([1.5, 1.5], times)
    slope = np.sum(policy.loss.gradient(theta) * policy.velocity(theta), axis=1)
    statuses = np.array([policy.alignment(x).status for x in theta])
    np.testing.assert_array_equal(statuses == "ok", slope < 0)
    assert 0 < (slope >= 0).sum() < len(slope)
    assert np.isnan(run["cond_min"][:, 0]).sum() == (slope >= 0).sum()
    # V falls by what is spent beyond the cost of rest: always at gamma = 0, where rest costs nothing.
    assert policy.center_cost > 0.0
    centred = Navigator(Quadratic([4.0, 4.0]), drift=navigation.rotation(10.0)).policy()
    for rule in (policy, centred):
        run = steepest.analyze(rule.recording([1.5, 1.5], times, objective="value"))["run"]
        theta_v = rule.trajectory([1.5, 1.5], times)
        spent = 2.0 * np.sum((theta_v - rule.loss.mu) ** 2, axis=1) + np.sum(rule.control(theta_v) ** 2, axis=1) / 2
        np.testing.assert_array_equal(run["psi"][:, 0] < math.pi / 2, spent > rule.center_cost)
    assert np.isfinite(centred.value([1.5, 1.5]))
    assert (run["psi"][:, 0] < math.pi / 2).all()
    with pytest.raises(ValueError, match="fixed point off the minimum"):
        policy.metric()
    descending = theta[np.flatnonzero(slope < 0)[0]]
    M = policy.metric(descending)
    np.testing.assert_allclose(M.solve(-policy.loss.gradient(descending)), policy.velocity(descending), rtol=1e-9)
    with pytest.raises(steepest.NotDescentError):
        policy.metric(theta[np.flatnonzero(slope >= 0)[0]])


# Optimality: no perturbation lowers J


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000), n=st.integers(1, 4), gamma=st.sampled_from([0.0, 0.5, 8.0]),
    size=st.floats(1e-3, 0.5), drift=st.booleans(),
)  # fmt: skip
def test_no_perturbed_feedback_is_better(seed, n, gamma, size, drift):
    rng = np.random.default_rng(seed)
    H, G, eta, k = spd(n, rng), spd(n, rng), 0.7, 1.2
    F = 0.5 * rng.standard_normal((n, n)) if drift else np.zeros((n, n))
    policy = Navigator(
        Quadratic(H), step_cost=eta, loss_weight=k, discount=gamma, metric=G, drift=F if drift else None
    ).policy()
    A = policy.jacobian + size * rng.standard_normal((n, n))
    shifted = A - gamma / 2 * np.eye(n)
    theta = rng.standard_normal(n)
    if np.linalg.eigvals(shifted).real.max() > -1e-3:
        return  # J diverges, or nearly
    K = A - F
    # J of a linear feedback: the Lyapunov equation of its running cost.
    P = scipy.linalg.solve_continuous_lyapunov(shifted.T, -(k * H + K.T @ G @ K / eta))
    cost = 0.5 * theta @ P @ theta
    best = policy.value(theta)
    assert cost >= best * (1 - 1e-8)
    assert np.linalg.eigvalsh(P - policy.S)[0] >= -1e-8 * np.abs(P).max()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), gamma=st.sampled_from([0.0, 0.5, 8.0]), drift=st.sampled_from([None, 2.0]))
def test_no_perturbed_path_is_better(seed, gamma, drift):
    rng = np.random.default_rng(seed)
    n, T, eta, k = 2, 3.0, 1.3, 0.8
    F = np.zeros((n, n)) if drift is None else navigation.rotation(drift)
    H, G = spd(n, rng), spd(n, rng)
    policy = Navigator(
        Quadratic(H, rng.standard_normal(n)), step_cost=eta, loss_weight=k, discount=gamma, metric=G,
        drift=None if drift is None else F,
    ).policy()  # fmt: skip
    theta0 = rng.standard_normal(n)
    points, weights = np.polynomial.legendre.leggauss(80)
    t, w = T / 2 * (points + 1), T / 2 * weights
    theta = policy.trajectory(theta0, t)
    velocity = policy.velocity(theta)
    c, modes = rng.standard_normal((3, n)), np.arange(1, 4) * np.pi / T
    bump, rate = np.sin(np.outer(t, modes)) @ c, (np.cos(np.outer(t, modes)) * modes) @ c

    def cost(x, v):
        u = v - x @ F.T
        running = np.sum(u * (u @ G), axis=1) / (2 * eta) + k * policy.loss.value(x)
        return float(w @ (running * np.exp(-gamma * t)))

    best = cost(theta, velocity)
    assert best == pytest.approx(policy.cost(theta0, T), rel=1e-9)
    for size in (1e-3, 0.1, 1.0):
        change = cost(theta + size * bump, velocity + size * rate) - best
        assert change > -1e-12 * (1 + abs(best))
