"""The protocol: what every rule keeps to, in every form that parameters have; rules against straight loops."""

import math
import pickle

import numpy as np
import pytest
import scipy.sparse.linalg

import steepest
from steepest import rules

RNG = np.random.default_rng(5)
H = np.diag([0.5, 2.0, 7.0]) + 0.1
PRIOR = np.zeros(3)

WITH_METRIC = {
    "gradient descent": rules.NaturalGradient(rate=0.1),
    "diagonal": rules.NaturalGradient(np.array([1.0, 2.0, 3.0]), rate=lambda t: 0.1 / (1 + t)),
    "dense": rules.NaturalGradient(H, rate=0.3),
    "metric": rules.NaturalGradient(steepest.metric(np.array([1.0, 2.0, 3.0]), -np.ones(3)), rate=0.2),
    "operator": rules.NaturalGradient(scipy.sparse.linalg.aslinearoperator(H), rate=0.3),
    "callable": rules.NaturalGradient(lambda x: 1.0 + x**2, rate=0.1),
    "ballistic": rules.Ballistic(0.01),
    "adaptive": rules.Adaptive(0.02, gamma=0.7),
    "finite step": rules.FiniteStep(H, dt=0.5),
    "filtered": rules.Filtered(rules.Drifting(0.9, 0.1, 1.0), rules.NaturalGradient(H, rate=0.3)),
    "reset": rules.Reset(PRIOR, H, hazard=0.4, dt=0.5, gamma=0.1),
}


@pytest.mark.parametrize("name", WITH_METRIC)
def test_update_is_minus_inverse_metric_times_what_the_rule_believes(name):
    rule = WITH_METRIC[name]
    theta = RNG.standard_normal(3)
    state = rule.init(theta)
    for step in range(4):
        grad = H @ theta
        kept, grad_kept, theta_kept = pickle.dumps(state), grad.copy(), theta.copy()
        M = rule.metric(grad, state, theta)
        believed = rule.believed(grad, state, theta)
        update, after = rule.update(grad, state, theta)
        np.testing.assert_allclose(M.solve(-believed), update, rtol=1e-9, atol=1e-14)
        np.testing.assert_allclose(M @ update, -believed, rtol=1e-8, atol=1e-12)
        assert np.linalg.eigvalsh(M.to_dense()).min() > 0
        again, _ = rule.update(grad, state, theta)
        np.testing.assert_array_equal(update, again)  # the state is a value
        assert pickle.dumps(state) == kept
        np.testing.assert_array_equal(grad, grad_kept)
        np.testing.assert_array_equal(theta, theta_kept)
        assert after.step == step + 1
        theta, state = theta + update, after


ELEMENTWISE = {
    "ballistic": rules.Ballistic(0.01),
    "adaptive": rules.Adaptive(0.02, gamma=0.7, epsilon=1e-6),
    "gradient descent": rules.NaturalGradient(rate=0.1),
    "finite step": rules.FiniteStep(2.0, dt=0.3),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_arrays_of_other_libraries_and_mappings(name, library):
    """Float32 arrays in, arrays of the same library out; values as of float64 NumPy."""
    if library == "torch":
        convert = pytest.importorskip("torch").tensor
    elif library == "jax":
        convert = pytest.importorskip("jax").numpy.array
    else:
        convert = np.array
    rule = ELEMENTWISE[name]
    grads = [{"W": RNG.standard_normal((2, 3)), "b": RNG.standard_normal(3)} for _ in range(3)]
    wide, narrow = rule.init(grads[0]), None
    for grad in grads:
        given = {key: convert(x.astype(np.float32)) for key, x in grad.items()}
        narrow = rule.init(given) if narrow is None else narrow
        expected, wide = rule.update(grad, wide)
        found, narrow = rule.update(given, narrow)
        for key, x in found.items():
            assert type(x) is type(given[key])
            assert x.dtype == given[key].dtype
            np.testing.assert_allclose(np.asarray(x), expected[key], rtol=2e-6)
        M = rule.metric(given, rule.init(given))
        assert M.shape == (9, 9)


def test_a_graph_of_torch_is_left_alone():
    torch = pytest.importorskip("torch")
    theta = torch.ones(3, requires_grad=True)
    (grad,) = torch.autograd.grad((theta**2).sum(), theta, create_graph=True)
    rule = rules.Ballistic()
    update, state = rule.update(grad, rule.init(theta))
    assert not update.requires_grad
    assert not state.square.requires_grad


def test_gradient_in_another_form_is_refused():
    rule = rules.Ballistic()
    state = rule.init({"a": np.zeros(2)})
    for grad, message in [
        (np.zeros(2), "mapping"),
        ({"b": np.zeros(2)}, "names"),
        ({"a": np.zeros(3)}, r"shape \(2,\), got \(3,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            rule.update(grad, state)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rules.Ballistic(decay=1.0), "decay"),
        (lambda: rules.Ballistic(epsilon=0.0), "epsilon"),
        (lambda: rules.Adaptive(0.1, gamma=-1.0), "gamma"),
        (lambda: rules.FiniteStep(1.0, dt=1.0, eta=0.0), "eta"),
        (lambda: rules.FiniteStep(1.0, dt=1.0, negative="clip"), "absolute"),
        (lambda: rules.Reset(PRIOR, H, hazard=-1.0, dt=1.0), "hazard"),
        (lambda: rules.Reset(PRIOR, -H, hazard=1.0, dt=1.0).update(PRIOR, None, PRIOR), "negative"),
        (
            lambda: rules.NaturalGradient(-np.ones(3), rate=1.0).update(PRIOR, rules.rule.Stateless()),
            "positive definite",
        ),
        (lambda: rules.NaturalGradient(np.ones(4), rate=1.0).update(PRIOR, rules.rule.Stateless()), "shape"),
        (
            lambda: rules.NaturalGradient(H + np.eye(3, k=1), rate=1.0).update(PRIOR, rules.rule.Stateless()),
            "symmetric",
        ),
        (lambda: rules.NaturalGradient(lambda x: x, rate=1.0).update(PRIOR, rules.rule.Stateless()), "params"),
        (lambda: rules.NaturalGradient(rate=math.nan).update(PRIOR, rules.rule.Stateless()), "finite rate"),
        (lambda: rules.FiniteStep(1.0, dt=-1.0).update(PRIOR, rules.rule.Stateless()), "positive dt"),
        (lambda: rules.WeightUncertainty(variance=-1.0, temperature=0.1, rate=1.0).init(PRIOR), "positive variances"),
        (lambda: rules.WeightUncertainty(variance=1.0, temperature=-0.1, rate=1.0), "temperature"),
    ],
)
def test_values_that_make_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_ballistic_is_the_loop_of_its_authors():
    rule, s2, theta = rules.Ballistic(5e-4, 0.9), np.zeros(3), np.ones(3)
    state, x = rule.init(theta), theta
    for t in range(20):
        grad = H @ x
        s2 = 0.9 * s2 + (1.0 - 0.9) * grad**2
        expected = -5e-4 * grad / np.sqrt(s2 + 1e-8)
        update, state = rule.update(grad, state)
        np.testing.assert_array_max_ulp(update, expected, maxulp=2)
        if t == 0:
            np.testing.assert_allclose(np.abs(update), 5e-4 / math.sqrt(0.1), rtol=1e-6)
        x = x + update


def test_ballistic_is_rmsprop_with_epsilon_inside_in_optax():
    optax = pytest.importorskip("optax")
    tx = optax.chain(optax.scale_by_rms(0.99, 1e-8, eps_in_sqrt=True), optax.scale(-1e-3))
    ours, theirs = rules.Ballistic(1e-3, 0.99), rules.from_optax(tx)
    a, b = ours.init(PRIOR), theirs.init(PRIOR)
    for grad in RNG.standard_normal((10, 3)):
        u, a = ours.update(grad, a)
        v, b = theirs.update(grad, b)
        np.testing.assert_array_max_ulp(u, v, maxulp=4)


def test_schedules_see_the_number_of_the_step():
    rule = rules.NaturalGradient(rate=lambda t: 2.0**-t)
    state, found = rule.init(PRIOR), []
    for _ in range(4):
        update, state = rule.update(np.ones(3), state)
        found.append(-update[0])
    assert found == [1.0, 0.5, 0.25, 0.125]


def test_a_run_is_recorded_and_its_metric_is_found_again():
    """Newton's geometry at a finite step: psi from the recording is the angle of H^-1 grad to grad."""
    theta = np.array([1.0, -1.0, 0.5])
    rule = rules.FiniteStep(H, dt=0.1, gamma=0.3)
    run = rule.run(lambda x: (0.5 * x @ H @ x, H @ x), theta, 30, objective="fixed", lag=1, keep="vectors")
    assert run.recording.counts() == {"ok": 30, "no_update": 1}
    np.testing.assert_array_equal(theta, [1.0, -1.0, 0.5])
    course = steepest.analyze(run.recording, pair="continuous")["run"]
    M = rule.metric(H @ theta, rule.init(theta)).to_dense()
    x = theta
    for t in range(30):
        update = -np.linalg.solve(M, H @ x)
        cosine = -update @ H @ x / np.linalg.norm(update) / np.linalg.norm(H @ x)
        assert course["psi"][t, 0] == pytest.approx(math.acos(cosine), rel=1e-6)
        x = x + update
    np.testing.assert_allclose(run.params, x, rtol=1e-9)
    fitted = steepest.identify(run.recording, family="full").metric
    np.testing.assert_allclose(fitted.to_dense(), M, rtol=1e-4)


def test_a_run_can_go_on():
    def grad(x):
        return H @ x

    rule = rules.Adaptive(0.05)
    whole = rule.run(grad, np.ones(3), 10)
    first = rule.run(grad, np.ones(3), 4)
    rest = rule.run(grad, first.params, 6, state=first.state)
    np.testing.assert_array_equal(rest.params, whole.params)
    assert rest.state.step == 10
    with steepest.Recorder() as rec:
        rule.run(grad, np.ones(3), 3, recorder=rec)
        rule.run(grad, np.ones(3), 2, recorder=rec)
        assert len(rec.recording()) == 5
    with pytest.raises(ValueError, match="at least 1"):
        rule.run(grad, np.ones(3), 0)
    with pytest.raises(ValueError, match="4 values"):
        rule.run(lambda x: (0.0, x, {}, 1), np.ones(3), 1)


@pytest.mark.parametrize(
    "rule",
    [
        rules.Hebbian(rate=0.1),
        rules.EvolutionStrategy(lambda x: float(x @ x), rate=0.1, sigma=0.1, pairs=2, rng=0),
        rules.FeedbackAlignment(rules.LayeredNetwork(), {}, rate=0.1),
    ],
)
def test_rules_without_a_metric_say_why(rule):
    with pytest.raises(NotImplementedError, match=f"{type(rule).__name__} has no metric of its own: .{{20,}}"):
        rule.metric(PRIOR, None)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_nan_zero_and_a_single_number(name):
    rule = ELEMENTWISE[name]
    assert np.isnan(rule.update(np.array([np.nan]), rule.init(np.zeros(1)))[0]).all()  # seen, not hidden
    assert (rule.update(np.zeros(3), rule.init(np.zeros(3)))[0] == 0.0).all()
    update, _ = rule.update(np.array(2.0), rule.init(np.array(0.0)))
    assert np.shape(update) == ()
    assert update < 0


def test_a_hessian_with_nan_is_refused():
    with pytest.raises(ValueError, match="finite"):
        rules.FiniteStep(np.array([1.0, np.nan]), dt=0.1).init(np.zeros(2))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_bfloat16(name):
    torch = pytest.importorskip("torch")
    rule = ELEMENTWISE[name]
    grad = torch.tensor([1.0, -2.0], dtype=torch.bfloat16)
    update, _ = rule.update(grad, rule.init(grad))
    expected, _ = rule.update(np.array([1.0, -2.0]), rule.init(np.zeros(2)))
    assert update.dtype == torch.bfloat16
    np.testing.assert_allclose(update.float().numpy(), expected, rtol=0.02)
    assert rule.metric(grad, rule.init(grad)).shape == (2, 2)
