"""The policy of a control problem as a rule: against the matrix exponential, and its geometry found again."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import expm

import steepest
from steepest import rules
from steepest.navigation import Navigator, Quadratic, rotation, weight_decay


def quadratic(n=4, seed=0):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((n, n))
    return Quadratic(A @ A.T / n + 0.2 * np.eye(n), rng.standard_normal(n))


@pytest.mark.parametrize("drift", [None, "decay"])
@pytest.mark.parametrize("discount", [0.0, 0.5, 8.0])
def test_steps_are_those_of_the_closed_loop(drift, discount):
    loss = quadratic()
    G = np.diag([0.5, 1.0, 2.0, 3.0])
    given = None if drift is None else weight_decay(0.3, 4)
    policy = Navigator(loss, discount=discount, metric=G, drift=given).policy()
    rule = rules.Optimal(policy, dt=0.2)
    theta, state = np.ones(4), rule.init(np.ones(4))
    for _ in range(3):
        update, state = rule.update(loss.gradient(theta), state, theta)
        expected = policy.fixed_point + expm(0.2 * np.atleast_2d(policy.jacobian)) @ (theta - policy.fixed_point)
        np.testing.assert_allclose(theta + update, expected, rtol=1e-10, atol=1e-12)
        theta = theta + update
    assert state.step == 3


def test_its_metric_is_found_again_and_fits_every_step():
    loss = quadratic(n=3)
    rule = rules.Optimal(Navigator(loss, discount=0.5).policy(), dt=0.3)
    run = rule.run(lambda x: (loss.value(x), loss.gradient(x)), np.array([3.0, -2.0, 1.0]), 30, keep="vectors")
    own = rule.metric(loss.gradient(np.ones(3)), rule.init(np.ones(3)))
    found = steepest.identify(run.recording, family="full").metric
    np.testing.assert_allclose(found.to_dense(), own.to_dense(), rtol=1e-5)
    step = run.recording.vectors(4)
    np.testing.assert_allclose(own.solve(-step.grad), step.update, rtol=1e-10)


def test_a_drift_leaves_a_metric_where_the_step_descends_and_only_there():
    loss = Quadratic(np.full(2, 4.0), [1.0, 0.0])
    rule = rules.Optimal(Navigator(loss, drift=rotation(3.0)).policy(), dt=0.05)
    there = np.array([4.0, 0.5])
    grad, state = loss.gradient(there), rule.init(there)
    update, _ = rule.update(grad, state, there)
    np.testing.assert_allclose(rule.metric(grad, state, there).solve(-grad), update, rtol=1e-10)
    near = loss.mu if hasattr(loss, "mu") else np.array([1.0, 0.0])
    with pytest.raises(steepest.NotDescentError):  # at the minimum of the loss the rotation leads uphill
        rule.metric(loss.gradient(near + 1e-3), state, near + 1e-3)


def test_mappings_shapes_and_wrong_calls():
    loss = quadratic()
    policy = Navigator(loss, discount=1.0).policy()
    rule = rules.Optimal(policy, dt=0.1)
    theta = {"a": np.ones((2, 1), np.float32), "b": np.ones(2, np.float32)}
    grad = {"a": np.zeros((2, 1), np.float32), "b": np.zeros(2, np.float32)}
    update, _ = rule.update(grad, rule.init(theta), theta)
    flat = np.concatenate([update["a"].ravel(), update["b"]])
    np.testing.assert_allclose(flat, policy.update(np.ones(4), 0.1), rtol=1e-6)
    assert update["a"].dtype == np.float32
    with pytest.raises(ValueError, match="expected params"):
        rule.update(grad, rule.init(theta))
    with pytest.raises(ValueError, match="4 elements"):
        rule.init(np.ones(3))
    with pytest.raises(ValueError, match="grad of shape"):
        rule.update(np.ones(3), rule.init(np.ones(4)), np.ones(4))
    with pytest.raises(TypeError, match="expected a policy"):
        rules.Optimal(loss, dt=0.1)
    for dt in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="dt to be positive"):
            rules.Optimal(policy, dt=dt)
