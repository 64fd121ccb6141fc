"""Node perturbation: against backpropagation, and its variance against that of repeated estimates."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from steepest.gradient_estimate import estimate_gradient

Params = dict[str, np.ndarray]


class TwoLayers:
    """``softmax(W2 tanh(W1 x))`` with cross entropy; a column of ones makes a bias of the last column of W1."""

    def __init__(self, seed: int = 0, batch: int = 12, inputs: int = 5, hidden: int = 4, outputs: int = 3) -> None:
        rng = np.random.default_rng(seed)
        self.x = np.column_stack([rng.standard_normal((batch, inputs)), np.ones(batch)])
        self.labels = rng.integers(outputs, size=batch)
        self.params = {
            "W1": rng.standard_normal((hidden, inputs + 1)) / np.sqrt(inputs),
            "W2": rng.standard_normal((outputs, hidden)) / np.sqrt(hidden),
        }
        self.inputs = {"W1": self.x, "W2": np.tanh(self.x @ self.params["W1"].T)}

    def loss(self, params: Params, perturbation: Params) -> np.ndarray:
        h = np.tanh(self.x @ params["W1"].T + perturbation["W1"])
        z = h @ params["W2"].T + perturbation["W2"]
        return np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), self.labels]

    def backpropagation(self) -> Params:
        h, W2 = self.inputs["W2"], self.params["W2"]
        p = np.exp(h @ W2.T)
        error = p / p.sum(axis=1, keepdims=True)
        error[np.arange(len(p)), self.labels] -= 1.0
        error /= len(p)
        return {"W1": (error @ W2 * (1.0 - h**2)).T @ self.x, "W2": error.T @ h}


def flat(x: Params) -> np.ndarray:
    return np.concatenate([x["W1"].ravel(), x["W2"].ravel()])


def test_mean_is_the_gradient_of_backpropagation() -> None:
    net = TwoLayers()
    found = estimate_gradient(
        net.loss, net.params, "node-perturbation", inputs=net.inputs, step=1e-4, n_directions=4000, rng=0
    )
    scores = (flat(found.gradient) - flat(net.backpropagation())) / np.sqrt(flat(found.variance))
    # 36 correlated scores of variance 1
    assert np.abs(scores).max() < 4.0
    assert 0.4 < np.mean(scores**2) < 1.8
    assert found.evaluations == 8000
    assert found.degrees_of_freedom == 3999
    # The check has teeth: the wrong layer's noise, or no division by the batch, would be seen.
    assert np.linalg.norm(flat(found.gradient)) > 10.0 * np.sqrt(flat(found.variance).sum())


def test_variance_is_that_of_repeated_estimates() -> None:
    net = TwoLayers(1, batch=3)
    found = [
        estimate_gradient(net.loss, net.params, "node-perturbation", inputs=net.inputs, n_directions=20, rng=seed)
        for seed in range(500)
    ]
    gradients, variances = (np.array([flat(getattr(f, name)) for f in found]) for name in ("gradient", "variance"))
    spread = gradients.var(axis=0, ddof=1)
    assert np.mean(variances.mean(axis=0) / spread) == pytest.approx(1.0, abs=0.05)
    np.testing.assert_allclose(variances.mean(axis=0), spread, rtol=0.35)  # 4 standard errors
    z = (gradients.mean(axis=0) - flat(net.backpropagation())) / np.sqrt(spread / 500)
    assert np.abs(z).max() < 4.0


def test_bias_is_of_second_order_in_the_noise() -> None:
    # One unit, one example: L = z^3, z = w x, so that E[estimate] = (3 z^2 + 3 sigma^2) x for Gaussian noise, exactly.
    x, w = np.array([[2.0]]), np.array([[0.5]])

    def loss(w: np.ndarray, perturbation: np.ndarray) -> np.ndarray:
        return ((x @ w.T + perturbation) ** 3)[:, 0]

    for sigma in (0.1, 0.5):
        found = estimate_gradient(loss, w, "node-perturbation", inputs=x, step=sigma, n_directions=40_000, rng=0)
        bias = float(found.gradient[0, 0]) - 3.0 * 2.0
        assert abs(bias - 3.0 * sigma**2 * 2.0) < 4.0 * np.sqrt(found.variance[0, 0])


def test_against_its_own_noise() -> None:
    net = TwoLayers(2, batch=4)
    seen: list[Params] = []

    def loss(params: Params, perturbation: Params) -> np.ndarray:
        seen.append({name: x.copy() for name, x in perturbation.items()})
        return net.loss(params, perturbation)

    found = estimate_gradient(
        loss, net.params, "node-perturbation", inputs=net.inputs, step=0.01, n_directions=3, rng=3
    )
    each = []
    for ahead, behind in zip(seen[::2], seen[1::2], strict=True):
        np.testing.assert_array_equal(ahead["W1"], -behind["W1"])
        change = (net.loss(net.params, ahead) - net.loss(net.params, behind)) / 2.0
        each.append(
            {
                name: sum(change[b] * np.outer(ahead[name][b], net.inputs[name][b]) for b in range(4)) / 4 / 0.01**2
                for name in net.params
            }
        )
    np.testing.assert_allclose(flat(found.gradient), np.mean([flat(x) for x in each], axis=0), rtol=1e-9, atol=1e-12)
    variance = np.var([flat(x) for x in each], axis=0, ddof=1) / 3
    np.testing.assert_allclose(flat(found.variance), variance, rtol=1e-9)
    assert found.samples is not None
    kept = pickle.loads(pickle.dumps(found)).samples
    for sample, expected in zip(kept, each, strict=True):
        np.testing.assert_allclose(sample, flat(expected), rtol=1e-9, atol=1e-12)


def test_torch_layers() -> None:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    net = TwoLayers()
    params = {name: torch.tensor(w, dtype=torch.float32, requires_grad=True) for name, w in net.params.items()}
    x, labels = torch.tensor(net.x, dtype=torch.float32), torch.tensor(net.labels)

    def loss(params: Any, perturbation: Any) -> Any:
        assert perturbation["W1"].dtype == torch.float32
        h = torch.tanh(x @ params["W1"].T + perturbation["W1"])
        z = h @ params["W2"].T + perturbation["W2"]
        return torch.nn.functional.cross_entropy(z, labels, reduction="none")

    inputs = {"W2": torch.tensor(net.inputs["W2"], dtype=torch.float32), "W1": x}
    found = estimate_gradient(loss, params, "node-perturbation", inputs=inputs, n_directions=200, rng=0, step=0.01)
    assert isinstance(found.gradient["W1"], torch.Tensor)
    z = (flat(found.gradient) - flat(net.backpropagation())) / np.sqrt(flat(found.variance))
    assert np.abs(z).max() < 4.5


def test_one_draw_has_no_variance() -> None:
    net = TwoLayers()
    found = estimate_gradient(net.loss, net.params, "node-perturbation", inputs=net.inputs, n_directions=1, rng=0)
    assert np.isnan(flat(found.variance)).all()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"loss": lambda params: 0.0}, TypeError, "does not take two arguments"),
        ({"loss": np.ones(3)}, TypeError, r"loss\(params, perturbation\)"),
        ({"loss": lambda params, perturbation: 0.5}, TypeError, r"losses of shape \(\)"),
        ({"loss": lambda params, perturbation: np.ones(5)}, TypeError, "batch of 12"),
        ({"loss": lambda params, perturbation: ["a"] * 12}, TypeError, "got list"),
        ({"loss": lambda params, perturbation: np.full(12, np.nan)}, ValueError, "finite losses"),
        ({"inputs": None}, TypeError, "presynaptic activity of each layer"),
        ({"inputs": {"W1": np.ones((12, 6))}}, ValueError, "names of params"),
        ({"inputs": np.ones((12, 6))}, ValueError, "names of params"),
        ({"inputs": {"W1": np.ones((12, 6)), "W2": np.ones((12, 5))}}, ValueError, r"\[6, 4\] inputs"),
        ({"inputs": {"W1": np.ones((12, 6)), "W2": np.ones((11, 4))}}, ValueError, r"\[6, 4\] inputs"),
        ({"inputs": {"W1": np.full((12, 6), np.inf), "W2": np.ones((12, 4))}}, ValueError, "finite inputs"),
        ({"params": {"W1": np.ones((4, 6)), "W2": np.ones(4)}}, ValueError, "one more column"),
        ({"params": {"W1": np.ones((4, 6)), "W2": np.full((3, 4), np.nan)}}, ValueError, "finite params"),
        ({"n_directions": 0}, ValueError, "positive integer"),
        ({"method": "spsa"}, TypeError, "'node-perturbation' only"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], error: type[Exception], match: str) -> None:
    net = TwoLayers()
    arguments = {"loss": net.loss, "params": net.params, "inputs": net.inputs, "method": "node-perturbation"} | change
    with pytest.raises(error, match=match):
        estimate_gradient(**arguments)
