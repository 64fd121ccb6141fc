"""Filters: Adam's moments to the last digit, and the Kalman filter against a run of its covariance."""

from fractions import Fraction

import numpy as np
import pytest

from steepest import rules

GRADS = np.random.default_rng(0).standard_normal((40, 7)) * np.geomspace(1e-3, 1e3, 7)


def adam_moments(grads, beta1, beta2, one=1):
    """Kingma and Ba, algorithm 1: bias-corrected moments after all gradients."""
    m = v = 0 * grads[0]
    for g in grads:
        m, v = beta1 * m + (one - beta1) * g, beta2 * v + (one - beta2) * g * g
    t = len(grads)
    return m / (one - beta1**t), v / (one - beta2**t)


@pytest.mark.parametrize(("beta1", "beta2"), [("9/10", "999/1000"), ("0", "1/2"), ("99/100", "0")])
def test_flat_prior_is_adam_to_the_last_digit(beta1, beta2):
    """In exact arithmetic: equality of rational numbers after every one of 12 gradients."""
    b1, b2 = Fraction(beta1), Fraction(beta2)
    grads = [Fraction(int(x), 16) for x in np.random.default_rng(1).integers(-99, 99, 12)]
    f = rules.FlatPrior(b1, b2)
    belief = f.init(Fraction(0))
    for t, g in enumerate(grads, 1):
        belief = f.update(g, belief)
        m, v = adam_moments(grads[:t], b1, b2, Fraction(1))
        assert isinstance(belief.mean, Fraction)
        assert belief.mean == m
        assert belief.square == v
        assert belief.weight == sum(b1**i for i in range(t))  # precision of a flat prior after t gradients


def test_inverse_gamma_form_is_the_same_filter():
    """A_t, B_t as in the theory, v = B/A, in exact arithmetic."""
    b2 = Fraction(7, 8)
    f = rules.FlatPrior(Fraction(0), b2)
    belief, A, B = f.init(Fraction(0)), Fraction(0), Fraction(0)
    for g in (Fraction(3), Fraction(-1, 2), Fraction(5, 7)):
        A, B = b2 * A + Fraction(1, 2), b2 * B + g * g / 2
        belief = f.update(g, belief)
        assert belief.square == B / A
        assert belief.square_weight == 2 * A


def beliefs(f, grads):
    belief = f.init(grads[0])
    for g in grads:
        belief = f.update(g, belief)
        yield belief


def ulps(found, expected, scale):
    """Distance in units of the last place of `scale`: of what was summed, where the sum cancels."""
    return float((np.abs(found - expected) / np.spacing(scale)).max())


def test_flat_prior_in_floating_point_is_near_its_exact_value():
    """40 gradients, in binary and in rational arithmetic on the same numbers."""
    exact = rules.FlatPrior(Fraction(0.9), Fraction(0.999))
    known = [exact.init(Fraction(0)) for _ in range(7)]
    f = rules.FlatPrior(0.9, 0.999)
    for belief, summed, g in zip(beliefs(f, GRADS), beliefs(f, np.abs(GRADS)), GRADS, strict=True):
        known = [exact.update(Fraction(float(x)), one) for x, one in zip(g, known, strict=True)]
        mean, square = ([float(getattr(one, name)) for one in known] for name in ("mean", "square"))
        assert ulps(belief.mean, np.array(mean), summed.mean) <= 6
        assert ulps(belief.square, np.array(square), belief.square) <= 6


# Adam forms 1 - beta and 1 - beta^t, which round unless beta is a short binary number; the filter does not.
DISCOUNTS = [((0.875, 1 - 2.0**-10), 16), ((0.9, 0.999), 64)]


def torch_adam(betas):
    torch = pytest.importorskip("torch")
    theta = torch.zeros(7, dtype=torch.float64)
    optimizer = torch.optim.Adam([theta], lr=1.0, betas=betas, eps=1e-8)
    for g in GRADS:
        theta.zero_()  # so that the update is not rounded to the spacing of the parameters
        theta.grad = torch.tensor(g)
        optimizer.step()
        yield theta.numpy().copy()


def optax_adam(betas):
    optax = pytest.importorskip("optax")
    rule = rules.from_optax(optax.adam(1.0, *betas, eps=1e-8))
    state = rule.init(GRADS[0])
    for g in GRADS:
        update, state = rule.update(g, state)
        yield update


@pytest.mark.parametrize("library", [torch_adam, optax_adam])
@pytest.mark.parametrize(("betas", "most"), DISCOUNTS)
def test_flat_prior_gives_the_updates_of_adam_in_the_libraries(library, betas, most):
    f = rules.FlatPrior(*betas)
    for belief, summed, update in zip(beliefs(f, GRADS), beliefs(f, np.abs(GRADS)), library(betas), strict=True):
        deviation = np.sqrt(belief.square) + 1e-8
        assert ulps(-belief.mean / deviation, update, summed.mean / deviation) <= most


def test_adaptive_rule_without_discount_is_adam():
    torch = pytest.importorskip("torch")
    theta = torch.zeros(7, dtype=torch.float64)
    optimizer = torch.optim.Adam([theta], lr=0.06, eps=0.0)
    rule = rules.Adaptive(dt=0.03, eta=2.0, k=2.0)
    state = rule.init(np.zeros(7))
    for g in GRADS:
        theta.zero_()
        theta.grad = torch.tensor(g)
        optimizer.step()
        update, state = rule.update(g, state)
        np.testing.assert_allclose(update, theta.numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("phi", [1.0, 0.9, 0.3, 0.0, -0.5])
@pytest.mark.parametrize(("q", "r"), [(0.02, 1.0), (1.0, 1.0), (1e6, 1e-3), (1e-9, 1.0)])
def test_gain_is_where_the_kalman_recursion_settles(phi, q, r):
    f = rules.Drifting(phi, q, r)
    P = f.gain * r / (1 - f.gain)  # K = P/(P + r)
    assert pytest.approx(phi**2 * P * r / (P + r) + q, rel=1e-7) == P
    assert f.gain == pytest.approx(float(rules.steady_state_gain(phi, q, r)[0, 0]), rel=1e-6)
    assert f.beta1 == (1 - f.gain) * phi
    if q > 1e-6:
        P = 0.0
        for _ in range(3000):  # covariance from certainty
            P = phi**2 * P * r / (P + r) + q
        assert f.gain == pytest.approx(P / (P + r), rel=1e-9)


def test_gain_of_elements_that_drift_together_is_where_the_recursion_settles():
    rng = np.random.default_rng(2)
    phi = 0.4 * rng.standard_normal((3, 3))
    q, r = (A @ A.T + 0.1 * np.eye(3) for A in rng.standard_normal((2, 3, 3)))
    P = np.eye(3)
    for _ in range(500):
        P = phi @ (P - P @ np.linalg.solve(P + r, P)) @ phi.T + q
    np.testing.assert_allclose(rules.steady_state_gain(phi, q, r), P @ np.linalg.inv(P + r), rtol=1e-9, atol=1e-12)


def test_no_other_gain_has_a_smaller_error():
    """Simulation with known truth: mean squared error at the gain, and at others."""
    rng = np.random.default_rng(4)
    phi, q, r, n = 0.95, 0.05, 1.0, 60000
    f = rules.Drifting(phi, q, r)
    gains = np.array([0.5 * f.gain, f.gain, 2.0 * f.gain])
    x, m, error = 0.0, np.zeros(3), np.zeros(3)
    belief, own = f.init(np.zeros(1)), 0.0
    for drift, noise in rng.standard_normal((n, 2)):
        x = phi * x + np.sqrt(q) * drift
        g = x + np.sqrt(r) * noise
        m = (1 - gains) * phi * m + gains * g
        error += (m - x) ** 2 / n
        belief = f.update(np.array([g]), belief)
        own += float((belief.mean[0] - x) ** 2) / n
    assert own == pytest.approx(error[1], rel=1e-10)
    assert error[1] < 0.95 * min(error[0], error[2])
    assert error[1] == pytest.approx(f.gain * r, rel=0.05)  # filtered variance (1 - K) P = K r


@pytest.mark.parametrize("options", [{"beta1": 1.0}, {"beta2": -0.1}])
def test_discounts_are_below_one(options):
    with pytest.raises(ValueError, match="beta"):
        rules.FlatPrior(**options)


def test_filters_refuse_other_shapes_and_numbers():
    f = rules.FlatPrior()
    with pytest.raises(ValueError, match="shape"):
        f.update(np.zeros(2), f.init(np.zeros(3)))
    with pytest.raises(ValueError, match="positive finite"):
        rules.Drifting(0.9, 0.0, 1.0)
    with pytest.raises(ValueError, match="one size"):
        rules.steady_state_gain(np.eye(2), np.eye(2), np.eye(3))


def test_filtered_gradient_descent_is_heavy_ball_of_optax():
    """trace: m <- beta m + g, so that a rate of K rate makes the two the same."""
    optax = pytest.importorskip("optax")
    drifting = rules.Drifting(0.99, 0.02, 1.0)
    ours = rules.Filtered(drifting, rules.NaturalGradient(rate=0.1))
    theirs = rules.from_optax(optax.sgd(0.1 * drifting.gain, momentum=drifting.beta1))
    a, b = ours.init(GRADS[0]), theirs.init(GRADS[0])
    for g in GRADS:
        u, a = ours.update(g, a)
        v, b = theirs.update(g, b)
        np.testing.assert_allclose(u, v, rtol=1e-12, atol=1e-15)
    assert a.step == 40
