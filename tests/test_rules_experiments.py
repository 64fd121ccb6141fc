"""Continual learning and ballistic learning on digits: by identities, and by independent computations."""

import importlib.util
import math

import numpy as np
import pytest

from steepest import cli, rules
from steepest.experiments import ballistic, continual, switching_regression
from steepest.experiments.digits import Digits, load_digits


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    return load_digits(rng=0)


@pytest.fixture(scope="module")
def streams(digits):
    return continual.run(digits, n_streams=40, n_network_streams=2, step_fraction=0.3, rng=3)


def test_tasks_have_a_common_hessian_and_the_prior_is_the_mean_of_their_optima(digits):
    """Against least squares on the images themselves, task by task."""
    task = switching_regression.Regression(digits)
    images = digits.train_images.astype(float)
    x = np.column_stack([images - images.mean(axis=0), np.ones(len(images))])
    labels = np.random.default_rng(0).permutation(10)
    targets = np.eye(10)[labels[digits.train_labels]]
    F = np.linalg.lstsq(x, targets, rcond=1e-9)[0].T
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    optimum = np.empty((10, 65))
    optimum[labels] = task.optimum
    np.testing.assert_allclose(optimum @ vectors.T, F, atol=1e-6)
    np.testing.assert_allclose(task.curvature, values, atol=1e-9 * values[-1])
    # The mean over all cyclic shifts of the labels is that over all permutations.
    shifts = [np.roll(task.optimum, i, axis=0) for i in range(10)]
    np.testing.assert_allclose(task.prior, np.mean(shifts, axis=0), atol=1e-10)
    other = np.random.default_rng(1).standard_normal((1, 10, 65))
    loss = 0.5 * np.mean(((x @ (other[0] @ vectors.T).T - targets) ** 2).sum(axis=1))
    least = 0.5 * np.mean(((x @ F.T - targets) ** 2).sum(axis=1))
    assert task.excess(other, optimum)[0] == pytest.approx(loss - least, rel=1e-9)


def test_the_derived_rule_has_the_least_cost_and_the_true_hazard_is_best(streams):
    """Where its assumptions hold; paired over streams."""
    own = streams.linear.cost["derived reset"]
    for policy in ("no reset", "full reset", "tuned decay"):
        assert continual.Interval.of(streams.linear.cost[policy] - own).low > 0
    for ratio, cost in zip(continual.HAZARDS, streams.linear.assumed, strict=True):
        if ratio in (0.0, 0.125, 0.25, 4.0, 8.0):
            assert continual.Interval.of(cost - own).low > 0
        elif ratio == 1.0:
            np.testing.assert_array_equal(cost, own)
    np.testing.assert_array_equal(streams.linear.assumed[0], streams.linear.cost["no reset"])


def test_the_cost_of_a_stream_is_the_integral_of_its_path(digits):
    """Without switches for a long time: the closed form of the quadratic problem, V = theta.S theta/2, gamma S = ..."""
    task = switching_regression.Regression(digits)
    n_steps = 2000

    class Never:
        def permutation(self, n):
            return np.arange(n)

        def random(self, n):
            return np.ones(n)

    found = switching_regression.simulate(task, hazard=0.0, decay=0.0, jump=False, n=1, n_steps=n_steps, rng=Never())
    gamma = switching_regression.GAMMA
    r = np.sqrt(gamma**2 / 4 + task.curvature) - gamma / 2  # eta = k = 1: S = r
    expected = 0.5 * (r * (task.prior - task.optimum) ** 2).sum()
    assert found.cost[0] == pytest.approx(expected, rel=0.02)  # steps of 0.1
    assert found.after_switch[0] == pytest.approx(task.excess(task.prior[None], task.optimum)[0])


def test_interval_is_students():
    found = continual.Interval.of(np.array([1.0, 2.0, 3.0]))
    assert (found.mean, found.high - 2) == (2.0, pytest.approx(4.302653 / math.sqrt(3), rel=1e-6))


def test_network_streams_are_paired_and_learn(streams):
    network = streams.network
    assert set(network.rate) == set(continual.POLICIES)
    for policy in continual.POLICIES:
        assert network.rate[policy] in (0.05, 0.1, 0.2, 0.4)
        assert network.after_switch[policy][-1] > network.after_switch[policy][0] + 0.2
    assert network.loss["full reset"].mean() < network.loss["no reset"].mean()


def test_continual_refuses(digits):
    with pytest.raises(ValueError, match="at least 2 streams"):
        continual.run(digits, n_streams=1)


def test_reproduce_continual(tmp_path, capsys, monkeypatch, streams):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(continual, "run", lambda *args, **kwargs: streams)
    assert cli.main(["reproduce", "--only", "continual", "--quick", "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {f"continual.{end}" for end in ("npz", "csv", "png", "pdf")}
    with np.load(tmp_path / "continual.npz", allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["linear_cost_no_reset"], streams.linear.cost["no reset"])
        assert float(stored["linear_decay"]) == streams.linear.decay
    assert len((tmp_path / "continual.csv").read_text().splitlines()) == 1 + 4 * (40 + 2)
    shown = capsys.readouterr().out
    assert f"{streams.linear.cost['tuned decay'].mean():.3f}" in shown
    assert cli.main(["reproduce", "--only", "continual", "--data", str(tmp_path)]) == 2


# Ballistic


def test_torch_ballistic_is_the_rule():
    torch = pytest.importorskip("torch")
    start = np.random.default_rng(0).standard_normal(5).astype(np.float32)
    theta = torch.tensor(start)
    optimizer = ballistic.ballistic_optimizer([theta], lr=0.01, decay=0.99)
    rule = rules.Ballistic(0.01, 0.99)
    state = rule.init(start)
    for _ in range(20):
        before = theta.numpy().copy()
        grad = (before**3).astype(np.float32)
        theta.grad = torch.tensor(grad)
        optimizer.step()
        update, state = rule.update(grad, state)
        np.testing.assert_allclose(theta.numpy(), before + update, rtol=3e-7)


@pytest.fixture(scope="module")
def small():
    rng = np.random.default_rng(0)
    labels = (np.arange(400) % 10).astype(np.uint8)
    centres = rng.random((10, 12))
    images = (centres[labels] + 0.1 * rng.standard_normal((400, 12))).astype(np.float32)
    return Digits("blobs", images[:320], labels[:320], images[320:], labels[320:])


@pytest.fixture(scope="module")
def comparison(small):
    pytest.importorskip("torch")
    return ballistic.run(small, hidden=(16, 8), epochs=12, batch=32, every=5, n_evaluation=320, rng=0)


def test_rules_are_tracked_against_both_gradients(comparison):
    assert comparison.n_steps == 120
    trainings = {training.rule: training for training in comparison.trainings}
    assert list(trainings) == ["SGD", "Adam", "ballistic"]
    starts = {float(training.evaluated["loss"][0]) for training in trainings.values()}
    assert len(starts) == 1  # the same weights
    for training in trainings.values():
        assert len(training.accuracy) == len(training.own_cond) == len(training.consumed.step) == 24
        assert training.consumed.gradient_source == "rule"
        assert training.evaluated.gradient_source == "evaluation"
        assert training.evaluated["loss"][-1] < training.evaluated["loss"][0]
    assert np.degrees(trainings["SGD"].consumed["psi"][:, 0]).max() < 0.1
    assert np.degrees(trainings["SGD"].evaluated["psi"][:, 0]).min() > 1
    # No metric of a step can be better conditioned than the least; the rule's own maps its gradient to its update.
    one = trainings["ballistic"]
    assert (one.consumed["status"][:, 0] == "ok").all()
    assert (one.consumed["cond_min"][:, 0] <= (1 + 1e-3) * one.own_cond).all()


def test_reproduce_ballistic(tmp_path, capsys, monkeypatch, comparison):
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    monkeypatch.setattr(ballistic, "run", lambda *args, **kwargs: comparison)
    assert cli.main(["reproduce", "--only", "ballistic", "--quick", "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {f"ballistic.{end}" for end in ("npz", "csv", "png", "pdf")}
    with np.load(tmp_path / "ballistic.npz", allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["SGD_accuracy"], comparison.trainings[0].accuracy)
    assert len((tmp_path / "ballistic.csv").read_text().splitlines()) == 1 + 3 * 24
    assert "blobs: 12-16-8-10 ReLU network" in capsys.readouterr().out


def test_ballistic_experiment_refuses(small):
    with pytest.raises(ValueError, match="positive numbers"):
        ballistic.run(small, epochs=0)


def test_ballistic_without_torch_names_the_extras(tmp_path, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find_spec(name))
    assert cli.main(["reproduce", "--only", "ballistic", "--out", str(tmp_path / "out")]) == 1
    assert 'pip install "steepest[experiments,torch]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
