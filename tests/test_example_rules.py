"""The example rules: each against what is known of the rule itself, by an independent route."""

import math

import numpy as np
import pytest
from scipy.sparse.linalg import aslinearoperator

import steepest
from steepest.experiments import evolution, in_context, oja
from steepest.experiments.digits import load_digits


def numerical_gradient(f, x, h=1e-5):
    return np.array([(f(x + h * e) - f(x - h * e)) / (2 * h) for e in np.eye(len(x))])


# Oja's rule


@pytest.fixture(scope="module")
def digits():
    return load_digits(rng=0)


def covariance(inputs):
    return np.cov(inputs.astype(np.float64).T, bias=True)


@pytest.mark.parametrize("candidate", oja.CANDIDATES)
def test_gradients_of_ojas_objectives(candidate):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 5)) @ rng.standard_normal((5, 5))
    C, w = covariance(X), rng.standard_normal(5)
    numerical = numerical_gradient(lambda w: oja.objectives(w, C)[0][candidate], w)
    np.testing.assert_allclose(oja.objectives(w, C)[1][candidate], numerical, rtol=1e-6, atol=1e-8)


def test_reconstruction_error_is_what_it_says():
    rng = np.random.default_rng(1)
    X = rng.standard_normal((50, 4))
    X -= X.mean(axis=0)
    w = rng.standard_normal(4)
    errors = X - np.outer(X @ w, w)
    found = oja.objectives(w, covariance(X))[0]["reconstruction error"]
    assert found == pytest.approx(0.25 * np.mean((errors**2).sum(axis=1)), rel=1e-12)


def test_the_mean_rule_finds_the_principal_component_of_the_digits(digits):
    result = oja.run(digits.train_images, n_steps=1500, rate=0.1, rng=0)
    eigenvalues = np.linalg.eigvalsh(covariance(digits.train_images))
    assert result.overlap[0] < 0.9
    assert result.overlap[-1] > 1 - 1e-6
    assert np.linalg.norm(result.weights[-1]) == pytest.approx(1, abs=1e-6)
    loss = result.recording.candidate("Rayleigh quotient").loss[-1]
    assert loss == pytest.approx(-0.5 * eigenvalues[-1], rel=1e-6)


def test_of_which_objective_the_mean_rule_is_steepest_descent(digits):
    """On the sphere of the last two; from a short w only the angles to them shrink, never that to the variance."""
    result = oja.run(digits.train_images, n_steps=600, rate=0.1, rng=1)
    rec = result.recording
    assert rec.gradient_source == "evaluation"
    angle = {name: np.degrees(rec.candidate(name).angle[:, 0]) for name in oja.CANDIDATES}
    on_sphere = np.abs(np.linalg.norm(result.weights[:-1], axis=1) - 1) < 1e-4
    assert 20 < np.count_nonzero(on_sphere) < 600
    assert angle["variance"][on_sphere].min() > 45
    for name in ("Rayleigh quotient", "reconstruction error"):
        assert rec.candidate(name).counts() == {"ok": 600}
        assert angle[name][0] > 1  # |w| = 1/2
    started_on_it = oja.run(digits.train_images, n_steps=1, start_norm=1.0, rng=2).recording
    for name in ("Rayleigh quotient", "reconstruction error"):
        assert started_on_it.candidate(name).angle[0, 0] < 1e-12
    assert started_on_it.candidate("variance").angle[0, 0] > 0.1


def test_a_single_input_is_a_noisy_step(digits):
    result = oja.run(digits.train_images, n_steps=4000, batch=1, rate=0.01, rng=3)
    angle = np.degrees(result.recording.candidate("reconstruction error").angle[:, 0])
    assert 45 < np.median(angle) < 135
    assert "ascent" in result.recording.candidate("reconstruction error").counts()
    assert result.overlap[-1] > 0.8  # and yet it learns
    with pytest.raises(ValueError, match="diverged"), np.errstate(all="ignore"):
        oja.run(digits.train_images, rate=50.0, n_steps=50, rng=0)


# Evolution strategy


@pytest.fixture(scope="module")
def regression(digits):
    return evolution.SoftmaxRegression(digits.train_images, digits.train_labels)


def test_softmax_regression(digits):
    small = evolution.SoftmaxRegression(digits.train_images[:60, :6], digits.train_labels[:60], decay=0.1)
    assert small.size == 70
    theta = np.random.default_rng(0).standard_normal(70)
    assert small(np.zeros(70)) == pytest.approx(math.log(10), rel=1e-12)
    np.testing.assert_allclose(small.gradient(theta), numerical_gradient(small, theta), atol=1e-8)


def test_the_estimate_is_unbiased_and_its_standard_error_is_right():
    rng = np.random.default_rng(0)
    H = np.diag(np.arange(1.0, 21.0))
    theta = rng.standard_normal(20)
    grad = H @ theta  # of a quadratic function, which smoothing shifts by a constant
    deviations = []
    for _ in range(200):
        found = evolution.estimate_gradient(lambda x: 0.5 * x @ H @ x, theta, pairs=60, sigma=0.3, rng=rng)
        deviations.append((found.gradient - grad) / found.standard_error)
    z = np.array(deviations)
    assert np.abs(z.mean()) < 4 / math.sqrt(z.size)
    assert z.std() == pytest.approx(1.0, abs=0.05)
    with pytest.raises(ValueError, match="standard error"):
        evolution.estimate_gradient(lambda x: 0.0, theta, pairs=1, sigma=0.3, rng=rng)


@pytest.mark.parametrize(("pairs", "steps"), [(50, 4), (650, 1)])
def test_what_sampling_makes_of_psi(regression, pairs, steps):
    result = evolution.run(regression, pairs=pairs, n_steps=steps, rate=0.3, rng=1)
    assert result.estimated.gradient_source == "estimate"
    assert result.true.gradient_source == "evaluation"
    assert result.true.blocks == ("(all)", "weights", "bias")
    np.testing.assert_allclose(result.estimated.angle, 0.0, atol=1e-12)  # by construction
    # The gradient of the softmax has few directions, but the population has all n of them.
    law = math.atan(math.sqrt((regression.size - 1) / pairs))
    np.testing.assert_allclose(result.true.angle[:, 0], law, atol=0.09)
    np.testing.assert_allclose(result.expected_angle, result.true.angle[:, 0], atol=0.15)


def test_the_strategy_learns_the_digits(regression, digits):
    result = evolution.run(regression, pairs=60, n_steps=40, rate=0.3, rng=2)
    assert result.true.counts() == {"ok": 40}
    assert result.true.loss[-1] < 0.8 * result.true.loss[0]
    p = regression.split(result.theta)
    guessed = (digits.test_images @ p["weights"] + p["bias"]).argmax(axis=1)
    assert np.mean(guessed == digits.test_labels) > 0.6


# Learning in context


@pytest.fixture(scope="module")
def prompt():
    return in_context.draw_prompt(6, 60, rng=0)


def softmax_free_attention(tokens, n, layer):
    """The layer of the paper token by token."""
    out = tokens.copy()
    for j in range(len(tokens)):
        for i in range(n):
            out[j] += layer.P @ (layer.V @ tokens[i]) * ((layer.K @ tokens[i]) @ (layer.Q @ tokens[j]))
    return out


def test_a_layer_is_linear_attention(prompt):
    rng = np.random.default_rng(1)
    layer = in_context.Layer(*rng.standard_normal((4, 7, 7)))
    tokens = rng.standard_normal((9, 7))
    np.testing.assert_allclose(layer(tokens, 5), softmax_free_attention(tokens, 5, layer), rtol=1e-10)


def test_the_queries_are_answered_by_the_predictor_of_each_layer(prompt):
    layers = [in_context.descent_layer(6, 60, 0.4, 0.1)] * 5
    theta = in_context.forward(prompt, layers)
    queries = np.random.default_rng(2).standard_normal((4, 6))
    tokens = np.vstack([np.column_stack([prompt.x, prompt.y]), np.column_stack([queries, np.zeros(4)])])
    for t, layer in enumerate(layers):
        tokens = softmax_free_attention(tokens, 60, layer)
        np.testing.assert_allclose(-tokens[60:, 6], queries @ theta[t + 1], rtol=1e-10)
        np.testing.assert_allclose(tokens[:60, 6], prompt.y - prompt.x @ theta[t + 1], rtol=1e-9, atol=1e-12)


def test_layers_without_curvature_are_gradient_descent(prompt):
    result = in_context.run(prompt, 12, rate=0.5)
    theta = np.zeros(6)
    for t in range(12):
        np.testing.assert_allclose(result.theta[t], theta, rtol=1e-10, atol=1e-14)
        numerical = numerical_gradient(prompt.loss, theta)
        np.testing.assert_allclose(prompt.gradient(theta), numerical, atol=1e-8)
        theta = theta - 0.5 * prompt.gradient(theta)
    assert result.recording.angle[:-1, 0].max() < 1e-10
    assert result.recording.objective == "fixed"
    assert result.recording.status[-1, 0] == "no_update"


def test_layers_with_curvature_have_the_metric_of_their_preconditioner(prompt):
    """With B_{l+1} = (I - c B S B) B, (rate B^2)^-1 is a metric of the pair; none has less than cond_min."""
    rate, c = 0.6, 0.3
    result = in_context.run(prompt, 10, rate=rate, curvature=c)
    S, B = prompt.x.T @ prompt.x / 60, np.eye(6)
    for t in range(10):
        grad, update = prompt.gradient(result.theta[t]), result.theta[t + 1] - result.theta[t]
        M = np.linalg.inv(rate * B @ B)
        np.testing.assert_allclose(M @ update, -grad, rtol=1e-7, atol=1e-12)
        found = steepest.metric(grad, update)
        assert found.cond() <= np.linalg.cond(M) * (1 + 1e-9)
        if t:
            assert result.recording.angle[t, 0] > 1e-3
            assert np.linalg.cond(M) > 1.01
        else:
            assert result.recording.angle[t, 0] < 1e-10  # the first layer sees x as it is
        # The metric of the pair that is nearest to a metric of the pair is that metric itself.
        nearest = steepest.metric(grad, update, base=aslinearoperator(M))
        np.testing.assert_allclose(nearest @ np.eye(6), M, rtol=1e-6, atol=1e-6 * np.linalg.norm(M))
        B = (np.eye(6) - c * B @ S @ B) @ B
    assert set(result.recording.status[:-1, 0]) == {"ok"}


def test_training_finds_that_curvature_helps():
    prompts = [in_context.draw_prompt(5, 40, rng=k) for k in range(6)]
    rate, none = in_context.fit(prompts, 6, preconditioned=False)
    trained = in_context.fit(prompts, 6)
    assert none == 0.0
    assert trained[1] > 0
    held_out = [in_context.draw_prompt(5, 40, rng=k) for k in range(100, 110)]

    def last_loss(rate, curvature):
        return np.mean([in_context.run(p, 6, rate=rate, curvature=curvature).recording.loss[-1] for p in held_out])

    assert last_loss(*trained) < last_loss(rate, 0.0)


# optax


def test_optax_on_digits(digits):
    pytest.importorskip("jax")
    pytest.importorskip("optax")
    from steepest.experiments import optax_digits

    result = optax_digits.run(digits)
    rec = result.recording
    assert len(rec) == 200
    assert rec.objective == "fixed"
    assert rec.blocks == ("(all)", "W1", "W2", "b1", "b2")
    assert rec.loss[0] == pytest.approx(math.log(10), abs=0.6)
    assert rec.loss[-1] < 0.1
    assert result.accuracy > 0.9
    # Adam's first update is -rate * sign(grad): cos psi = |grad|_1 / (sqrt(n) |grad|), with no metric of its own.
    assert 0.3 < rec.angle[0, 0] < 1.5
    untracked = optax_digits.run(digits, tracked=False)
    assert all(np.array_equal(untracked[name], result.params[name]) for name in untracked)
    noisy = optax_digits.run(digits, n_steps=20, batch=64).recording
    assert noisy.objective == "unknown"
    assert len(noisy) == 20
