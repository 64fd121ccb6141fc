"""Rules of neuroscience: against automatic differentiation, principal components, and smoothed gradients."""

import itertools

import numpy as np
import pytest
import scipy.stats

from steepest import rules
from steepest.experiments.evolution import SoftmaxRegression


def network(sizes, rng, bias=True):
    params = {}
    for i, (n, m) in enumerate(itertools.pairwise(sizes)):
        params[f"W{i}"] = rng.standard_normal((m, n)) / np.sqrt(n)
        if bias:
            params[f"b{i}"] = 0.1 * rng.standard_normal(m)
    return params


def data(sizes, rng, n=9):
    return rng.standard_normal((n, sizes[0])), np.eye(sizes[-1])[rng.integers(sizes[-1], size=n)]


@pytest.mark.parametrize("loss", ["squared", "cross-entropy"])
@pytest.mark.parametrize("activation", ["linear", "relu"])
@pytest.mark.parametrize("sizes", [(4, 3), (4, 6, 3), (5, 7, 6, 4, 2), (1, 1, 1)])
def test_backpropagation_is_the_gradient_of_torch(sizes, activation, loss):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(len(sizes))
    params, (x, t) = network(sizes, rng), data(sizes, rng)
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in params.items()}
    value, weights = torch.tensor(x), list(tensors.values())
    for i in range(0, len(weights), 2):
        value = value @ weights[i].T + weights[i + 1]
        if activation == "relu" and i < len(weights) - 2:
            value = torch.relu(value)
    if loss == "squared":
        expected = 0.5 * ((value - torch.tensor(t)) ** 2).sum() / len(x)
    else:
        expected = torch.nn.functional.cross_entropy(value, torch.tensor(t))
    expected.backward()
    net = rules.LayeredNetwork(activation, loss)
    found, grad = net.backpropagation(params, x, t)
    assert found == pytest.approx(expected.item(), rel=1e-12)
    np.testing.assert_allclose(net.outputs(params, x), value.detach().numpy(), rtol=1e-12)
    assert list(grad) == list(params)
    for name in params:
        np.testing.assert_allclose(grad[name], tensors[name].grad.numpy(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_feedback_through_the_transposed_weights_is_backpropagation(activation):
    rng = np.random.default_rng(0)
    sizes = (5, 7, 6, 3)
    params, (x, t) = network(sizes, rng), data(sizes, rng)
    net = rules.LayeredNetwork(activation, "cross-entropy")
    _, grad = net.backpropagation(params, x, t)
    feedback = {f"W{i}": params[f"W{i}"].T for i in (1, 2)}
    rule = rules.FeedbackAlignment(net, feedback, rate=0.5)
    update, state = rule.update(None, rule.init(params), params, inputs=x, targets=t)
    assert state.step == 1
    for name in params:
        np.testing.assert_allclose(update[name], -0.5 * grad[name], rtol=1e-12, atol=1e-16)


def test_direct_feedback_through_the_product_is_backpropagation_in_a_linear_network():
    rng = np.random.default_rng(1)
    sizes = (5, 7, 6, 3)
    params, (x, t) = network(sizes, rng, bias=False), data(sizes, rng)
    net = rules.LayeredNetwork("linear")
    _, grad = net.backpropagation(params, x, t)
    feedback = {"W1": params["W1"].T @ params["W2"].T, "W2": params["W2"].T}
    found = net.feedback_gradient(params, x, t, feedback, direct=True)
    for name in params:
        np.testing.assert_allclose(found[name], grad[name], rtol=1e-11)


def test_feedback_alignment_of_two_linear_layers_is_the_formula_of_the_theory():
    """E = mean(e x^T): updates -rate (B E, mean(e (W1 x)^T)), section 9."""
    rng = np.random.default_rng(2)
    params, (x, t) = network((6, 5, 4), rng, bias=False), data((6, 5, 4), rng)
    W1, W2 = params.values()
    B = rules.random_feedback(params, rng=3)["W1"]
    E = ((x @ W1.T @ W2.T - t).T @ x) / len(x)
    for direct in (False, True):  # the same thing with one hidden layer
        rule = rules.FeedbackAlignment(rules.LayeredNetwork("linear"), {"W1": B}, rate=0.1, direct=direct)
        update, _ = rule.update(None, rule.init(params), params, inputs=x, targets=t)
        np.testing.assert_allclose(update["W0"], -0.1 * B @ E, rtol=1e-11)
        np.testing.assert_allclose(update["W1"], -0.1 * E @ W1.T, rtol=1e-11)


@pytest.mark.parametrize("direct", [False, True])
def test_deep_feedback_alignment_learns_and_aligns(direct):
    rng = np.random.default_rng(4)
    sizes = (8, 20, 16, 3)
    x = rng.standard_normal((200, 8))
    t = np.eye(3)[np.argmax(x @ rng.standard_normal((8, 3)), axis=1)]
    params = {name: 0.5 * value for name, value in network(sizes, rng).items()}
    net = rules.LayeredNetwork("relu", "cross-entropy")
    feedback = rules.random_feedback(params, direct=direct, rng=5)
    assert feedback["W1"].shape == ((20, 3) if direct else (20, 16))
    rule = rules.FeedbackAlignment(net, feedback, rate=0.3, direct=direct)
    run = rule.run(lambda p: rule.evaluate(p, x, t), params, 400, objective="fixed")
    loss = run.recording.loss
    assert loss[-1] < 0.3 * loss[0]
    assert run.recording.counts()["ok"] > 350
    B = feedback["W2"].ravel()

    def cosine(p):
        return p["W2"].T.ravel() @ B / np.linalg.norm(p["W2"]) / np.linalg.norm(B)

    assert cosine(run.params) > cosine(params) + 0.3  # the forward weights have turned towards the feedback
    assert net.backpropagation(run.params, x, t)[0] == pytest.approx(loss[-1], rel=1e-12)


def test_feedback_is_checked():
    params = network((3, 4, 2), np.random.default_rng(0))
    net = rules.LayeredNetwork()
    with pytest.raises(ValueError, match=r"feedback\['W1'\] of shape \(4, 2\), got none"):
        net.feedback_gradient(params, np.zeros((1, 3)), np.zeros((1, 2)), {})
    with pytest.raises(ValueError, match="inputs to 'W0'"):
        net.outputs(params, np.zeros((1, 5)))
    with pytest.raises(ValueError, match="targets of shape"):
        net.backpropagation(params, np.zeros((1, 3)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="followed by its bias"):
        net.outputs({"b": np.zeros(3)}, np.zeros((1, 3)))
    with pytest.raises(TypeError, match="mapping"):
        net.outputs(np.zeros((2, 3)), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="activation"):
        rules.LayeredNetwork("tanh")
    with pytest.raises(ValueError, match="loss"):
        rules.LayeredNetwork(loss="hinge")
    rule = rules.FeedbackAlignment(net, {}, rate=1.0)
    with pytest.raises(ValueError, match="missing"):
        rule.update(None, rule.init(params), params)


# Hebbian learning


def learned(rule, W, x, n):
    state = rule.init(W)
    for _ in range(n):
        update, state = rule.update(None, state, W, inputs=x)
        W = W + update
    return W


@pytest.fixture(scope="module")
def centred():
    rng = np.random.default_rng(6)
    x = (
        rng.standard_normal((400, 5))
        @ np.diag([3.0, 2.0, 1.3, 0.8, 0.4])
        @ np.linalg.qr(rng.standard_normal((5, 5)))[0]
    )
    return x - x.mean(axis=0)


def test_sanger_finds_the_principal_components_in_order_and_oja_their_span(centred):
    vectors = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :3]
    W = 0.1 * np.random.default_rng(7).standard_normal((3, 5))
    found = learned(rules.Hebbian("sanger", rate=0.04), W, centred, 3000)
    np.testing.assert_allclose(np.abs(found @ vectors), np.eye(3), atol=1e-6)
    span = learned(rules.Hebbian("oja", rate=0.04), W, centred, 3000)
    np.testing.assert_allclose(span.T @ span, vectors @ vectors.T, atol=1e-6)
    assert np.abs(span @ vectors).round(1).tolist() != np.eye(3).tolist()  # not the components themselves


def test_one_output_is_ojas_rule_and_a_plain_hebb_grows(centred):
    w = np.array([0.3, -0.1, 0.2, 0.5, 0.1])
    s = centred @ w
    oja = 0.1 * np.mean(s[:, None] * (centred - s[:, None] * w), axis=0)
    for kind in ("oja", "sanger"):
        rule = rules.Hebbian(kind, rate=0.1)
        np.testing.assert_allclose(rule.update(None, rule.init(w), w, inputs=centred)[0], oja, rtol=1e-11)
    plain = rules.Hebbian("plain", rate=0.1)
    update, _ = plain.update(None, plain.init(w), w, inputs=centred)
    np.testing.assert_allclose(update, 0.1 * np.cov(centred.T, bias=True) @ w, rtol=1e-10)
    with pytest.raises(ValueError, match="shape"):
        plain.update(None, plain.init(w), w, inputs=np.zeros((2, 4)))
    with pytest.raises(ValueError, match="missing"):
        plain.update(None, plain.init(w), w)
    with pytest.raises(ValueError, match="kind"):
        rules.Hebbian("bcm", rate=0.1)
    with pytest.raises(ValueError, match="weights of shape"):
        plain.init(np.zeros((1, 2, 3)))


# Evolution strategy


def test_evolution_strategy_estimates_the_gradient_without_bias():
    """On a quadratic the smoothed gradient is the gradient; 2000 steps at one point, z-scores of every element."""
    H = np.diag([1.0, 3.0, 0.2]) + 0.3
    theta = {"a": np.array([[1.0, -2.0]]), "b": np.array([0.5])}
    x = np.array([1.0, -2.0, 0.5])

    def loss(p):
        v = np.concatenate([p["a"].ravel(), p["b"]])
        return 0.5 * v @ H @ v

    rule = rules.EvolutionStrategy(loss, rate=1.0, sigma=0.1, pairs=4, rng=0)
    state, found = rule.init(theta), []
    for _ in range(2000):
        update, state = rule.update(None, state, theta)
        found.append(np.concatenate([update["a"].ravel(), update["b"]]))
    z = (np.mean(found, axis=0) + H @ x) / (np.std(found, axis=0) / np.sqrt(2000))
    assert np.abs(z).max() < 4
    again, _ = rule.update(None, rule.init(theta), theta)
    np.testing.assert_array_equal(again["b"], found[0][2:])


def test_rank_shaping_sees_only_the_order_of_losses():
    def run(transform):
        rule = rules.EvolutionStrategy(
            lambda x: transform(x @ x), rate=0.1, sigma=0.3, pairs=6, shaping="centred rank", rng=3
        )
        return rule.update(None, rule.init(np.ones(4)), np.ones(4))[0]

    np.testing.assert_array_equal(run(lambda s: s), run(np.exp))
    losses = np.array([3.0, 1.0, 1.0, 9.0, -2.0, 3.0])
    ranks = rules.evolution.centred_ranks(losses)
    np.testing.assert_allclose(ranks, (scipy.stats.rankdata(losses) - 1) / 5 - 0.5, atol=1e-15)


def test_evolution_strategy_learns_digits():
    pytest.importorskip("sklearn")
    from steepest.experiments.digits import load_digits

    digits = load_digits(rng=0)
    objective = SoftmaxRegression(digits.train_images[:300], digits.train_labels[:300])
    rule = rules.EvolutionStrategy(objective, rate=0.3, sigma=0.02, pairs=60, rng=1)
    run = rule.run(lambda x: (objective(x), objective.gradient(x)), np.zeros(objective.size), 25, objective="fixed")
    assert run.recording.loss[-1] < 0.8 * run.recording.loss[0]
    assert run.recording.counts()["ok"] == 25
    assert run.recording.gradient_source == "evaluation"  # the rule never sees it


@pytest.mark.parametrize(
    ("options", "message"),
    [({"sigma": 0.0}, "sigma"), ({"pairs": 0}, "pair"), ({"shaping": "ranks"}, "shaping")],
)
def test_evolution_strategy_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        rules.EvolutionStrategy(lambda x: 0.0, **({"rate": 0.1, "sigma": 0.1, "pairs": 2, "rng": 0} | options))


def test_evolution_strategy_needs_params_and_finite_losses():
    rule = rules.EvolutionStrategy(lambda x: np.inf, rate=0.1, sigma=0.1, pairs=2, rng=0)
    state = rule.init(np.ones(2))
    with pytest.raises(ValueError, match="finite losses"):
        rule.update(None, state, np.ones(2))
    with pytest.raises(ValueError, match="params"):
        rule.update(None, state)


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_networks_of_other_libraries(library):
    convert = pytest.importorskip("torch").tensor if library == "torch" else pytest.importorskip("jax").numpy.array
    rng = np.random.default_rng(8)
    params = {name: value.astype(np.float32) for name, value in network((4, 5, 2), rng).items()}
    x, t = (a.astype(np.float32) for a in data((4, 5, 2), rng))
    rule = rules.FeedbackAlignment(rules.LayeredNetwork(), rules.random_feedback(params, rng=0), rate=0.1)
    expected, _ = rule.update(None, rule.init(params), params, inputs=x, targets=t)
    given = {name: convert(value) for name, value in params.items()}
    found, _ = rule.update(None, rule.init(given), given, inputs=convert(x), targets=convert(t))
    for name, value in found.items():
        assert type(value) is type(given[name])
        np.testing.assert_array_equal(np.asarray(value), expected[name])
