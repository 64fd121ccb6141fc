"""Feedback alignment in layered linear and ReLU networks of any depth, with backpropagation as the reference."""

# ruff: noqa: ARG002 (arguments of the protocol that this rule does not need)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import ArrayOrMapping
from steepest.rules.leaves import each, flat, from_flat, plain
from steepest.rules.rule import Rule, Schedule, Stateless, rate_at

__all__ = ["FeedbackAlignment", "LayeredNetwork", "random_feedback"]

Array = NDArray[np.float64]
Activation = Literal["linear", "relu"]
Loss = Literal["squared", "cross-entropy"]


@dataclass(frozen=True)
class _Layer:
    weight: str
    bias: str | None


@dataclass(frozen=True)
class LayeredNetwork:
    """A network ``x -> W_n f(... f(W_1 x + b_1) ...) + b_n`` and its loss; the last layer is linear.

    Parameters are a mapping in the order of the layers: weights of shape (outputs, inputs), each followed by its bias
    of shape (outputs,) if it has one.

    Attributes
    ----------
    activation : {'relu', 'linear'}
        f of the hidden layers. The derivative of ReLU at 0 is taken as 0.
    loss : {'squared', 'cross-entropy'}
        Mean over the examples of |f(x) - target|^2 / 2, or of softmax cross-entropy in nats to targets that are
        probabilities.

    Notes
    -----
    Everything is computed in float64 NumPy. Cost: three products with each weight matrix.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest.rules import LayeredNetwork
    >>> net = LayeredNetwork("linear")
    >>> params = {"W1": np.array([[1.0, 2.0]]), "W2": np.array([[3.0]])}
    >>> loss, grad = net.backpropagation(params, [[1.0, 0.0]], [[2.0]])
    >>> loss, grad["W1"].tolist(), grad["W2"].tolist()
    (0.5, [[3.0, 0.0]], [[1.0]])
    """

    activation: Activation = "relu"
    loss: Loss = "squared"

    def __post_init__(self) -> None:
        if self.activation not in ("relu", "linear"):
            raise ValueError(f"expected activation 'relu' or 'linear', got {self.activation!r}")
        if self.loss not in ("squared", "cross-entropy"):
            raise ValueError(f"expected loss 'squared' or 'cross-entropy', got {self.loss!r}")

    def outputs(self, params: Mapping[str, Any], inputs: Any) -> Array:
        """What the network says.

        Parameters
        ----------
        params : mapping name -> array
            Of the layers.
        inputs : array, shape (examples, inputs)
            One example a row.

        Returns
        -------
        ndarray, shape (examples, outputs)
            Logits under cross-entropy.
        """
        return self._forward(params, inputs)[-1]

    def backpropagation(self, params: Mapping[str, Any], inputs: Any, targets: Any) -> tuple[float, dict[str, Any]]:
        """Loss and gradient.

        Parameters
        ----------
        params : mapping name -> array
            Of the layers.
        inputs : array, shape (examples, inputs)
            One example a row.
        targets : array, shape (examples, outputs)
            Outputs, or probabilities.

        Returns
        -------
        loss : float
            Mean over the examples.
        grad : dict
            As `params`.
        """
        layers, values = _layers(params), self._forward(params, inputs)
        weights = [float64_array(params[layer.weight]) for layer in layers]
        loss, error = self._error(values[-1], targets)
        return loss, self._gradients(params, values, self._sent_back(error, values, [W.T for W in weights[1:]], False))

    def feedback_gradient(
        self, params: Mapping[str, Any], inputs: Any, targets: Any, feedback: Mapping[str, Any], *, direct: bool = False
    ) -> dict[str, Any]:
        """What takes the place of the gradient when the error comes back through other matrices.

        Parameters
        ----------
        params, inputs, targets
            As of `backpropagation`.
        feedback : mapping name -> array
            For each weight matrix but the first, under its name: in place of ``W^T``, shape (inputs of W, outputs of
            W); with `direct`, shape (inputs of W, outputs of the network).
        direct : bool
            Send the output error to each hidden layer directly (direct feedback alignment), not layer by layer.

        Returns
        -------
        dict
            As `params`; of the last layer it is the gradient.

        Raises
        ------
        ValueError
            Feedback matrices are missing or of another shape.
        """
        layers, values = _layers(params), self._forward(params, inputs)
        back = []
        for layer in layers[1:]:
            shape = np.shape(params[layer.weight])
            expected = (shape[1], values[-1].shape[1] if direct else shape[0])
            given = feedback.get(layer.weight)
            if given is None or np.shape(given) != expected:
                came = "none" if given is None else f"shape {np.shape(given)}"
                raise ValueError(f"expected feedback[{layer.weight!r}] of shape {expected}, got {came}")
            back.append(float64_array(given))
        _, error = self._error(values[-1], targets)
        return self._gradients(params, values, self._sent_back(error, values, back, direct))

    def _forward(self, params: Mapping[str, Any], inputs: Any) -> list[Array]:
        """Inputs of each layer, and the outputs."""
        layers = _layers(params)
        values = [np.atleast_2d(float64_array(inputs))]
        for number, layer in enumerate(layers):
            W = float64_array(params[layer.weight])
            if values[-1].shape[1] != W.shape[1]:
                raise ValueError(f"expected {W.shape[1]} inputs to {layer.weight!r}, got {values[-1].shape[1]}")
            z = values[-1] @ W.T
            if layer.bias is not None:
                z = z + float64_array(params[layer.bias])
            hidden = number < len(layers) - 1 and self.activation == "relu"
            values.append(np.maximum(z, 0.0) if hidden else z)
        return values

    def _error(self, outputs: Array, targets: Any) -> tuple[float, Array]:
        """Mean loss, and its derivative by the outputs times the number of examples."""
        targets = np.atleast_2d(float64_array(targets))
        if targets.shape != outputs.shape:
            raise ValueError(f"expected targets of shape {outputs.shape}, got {targets.shape}")
        if self.loss == "squared":
            error = outputs - targets
            return 0.5 * float((error * error).sum()) / len(error), error
        shifted = outputs - outputs.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        mass = targets.sum(axis=1, keepdims=True)
        return -float((targets * log_p).sum()) / len(outputs), mass * np.exp(log_p) - targets

    def _sent_back(self, error: Array, values: list[Array], back: list[Array], direct: bool) -> list[Array]:
        """The error at the outputs of each layer."""
        errors = [error]
        for B, value in zip(reversed(back), reversed(values[1:-1]), strict=True):
            sent = (error if direct else errors[0]) @ B.T
            errors.insert(0, sent * (value > 0.0) if self.activation == "relu" else sent)
        return errors

    def _gradients(self, params: Mapping[str, Any], values: list[Array], errors: list[Array]) -> dict[str, Any]:
        found = {}
        for layer, value, error in zip(_layers(params), values[:-1], errors, strict=True):
            found[layer.weight] = error.T @ value / len(value)
            if layer.bias is not None:
                found[layer.bias] = error.mean(axis=0)
        return {name: from_flat(found[name].ravel(), like) for name, like in params.items()}


class FeedbackAlignment(Rule):
    """(Direct) feedback alignment: backpropagation with fixed matrices in place of the transposed weights.

    Parameters
    ----------
    network : LayeredNetwork
        Activation and loss.
    feedback : mapping name -> array
        As of `LayeredNetwork.feedback_gradient`; see `random_feedback`.
    rate : float or callable
        Learning rate, or a function of the number of the step.
    direct : bool
        Direct feedback alignment.

    Notes
    -----
    Section 9 (Lillicrap et al. 2016; Nokland 2016 for the direct form). `update` needs `params` and, by name,
    ``inputs`` and ``targets``; it does not look at `grad`, which may be None. `evaluate` makes what `run` needs of a
    batch: the gradient in the recording is then that of backpropagation. Section 11 (derived): in the hidden layer
    of a linear two-layer network a hidden-side metric A with ``A B = W2^T`` exists iff ``W2 B`` is symmetric positive
    definite.

    Examples
    --------
    >>> import numpy as np
    >>> import steepest
    >>> from steepest import rules
    >>> rng = np.random.default_rng(0)
    >>> x, t = rng.standard_normal((50, 4)), rng.standard_normal((50, 2))
    >>> params = {"W1": 0.1 * rng.standard_normal((8, 4)), "W2": 0.1 * rng.standard_normal((2, 8))}
    >>> net = rules.LayeredNetwork("linear")
    >>> rule = rules.FeedbackAlignment(net, rules.random_feedback(params, rng=1), rate=0.1)
    >>> run = rule.run(lambda p: rule.evaluate(p, x, t), params, 500, objective="fixed")
    >>> psi = steepest.analyze(run.recording)["run"]["psi"][:, 0]
    >>> bool(psi[0] > 1.0), bool(psi[499] < 0.8)
    (True, True)
    """

    no_metric = (
        "its hidden layers follow other vectors than the gradient, along which the loss may rise; "
        "steepest.metric(grad, update) is the metric of one step, steepest.identify one of many"
    )

    def __init__(
        self, network: LayeredNetwork, feedback: Mapping[str, Any], *, rate: Schedule, direct: bool = False
    ) -> None:
        self.network, self.feedback, self.direct = network, dict(feedback), direct
        self._rate = rate

    def init(self, params: ArrayOrMapping) -> Stateless:
        """See `Rule.init`."""
        _layers(params)
        return Stateless()

    def evaluate(self, params: Mapping[str, Any], inputs: Any, targets: Any) -> tuple[float, Any, dict[str, Any]]:
        """Loss, true gradient and data of a step, for `Rule.run`.

        Parameters
        ----------
        params, inputs, targets
            As of `LayeredNetwork.backpropagation`.

        Returns
        -------
        tuple
            ``(loss, grad, {"inputs": inputs, "targets": targets})``.
        """
        loss, grad = self.network.backpropagation(params, inputs, targets)
        return loss, grad, {"inputs": inputs, "targets": targets}

    def update(
        self,
        grad: ArrayOrMapping | None,
        state: Stateless,
        params: ArrayOrMapping | None = None,
        *,
        inputs: Any = None,
        targets: Any = None,
        **data: Any,
    ) -> tuple[Any, Stateless]:
        """See `Rule.update`.

        Parameters
        ----------
        grad, state, params, **data
            As there; `params` are needed.
        inputs : array, shape (examples, inputs)
            One example a row.
        targets : array, shape (examples, outputs)
            Outputs, or probabilities.

        Returns
        -------
        update : dict
            As `params`.
        state : Stateless
            For the next step.

        Raises
        ------
        ValueError
            `params`, `inputs` or `targets` is missing, or they do not fit.
        """
        if not isinstance(params, Mapping) or inputs is None or targets is None:
            raise ValueError("expected params (a mapping), inputs= and targets=, of which one is missing")
        found = self.network.feedback_gradient(params, inputs, targets, self.feedback, direct=self.direct)
        rate = rate_at(self._rate, state.step)
        return each(lambda g: -rate * g, found), replace(state, step=state.step + 1)


def random_feedback(
    params: Mapping[str, Any], *, scale: float = 1.0, direct: bool = False, rng: np.random.Generator | int | None = None
) -> dict[str, Array]:
    """Gaussian feedback matrices for `FeedbackAlignment`.

    Parameters
    ----------
    params : mapping name -> array
        Of the layers.
    scale : float
        The standard deviation is ``scale/sqrt(rows)``.
    direct : bool
        For direct feedback alignment.
    rng : Generator or int, optional
        Draws them.

    Returns
    -------
    dict
        One for each weight matrix but the first, under its name.
    """
    rng = np.random.default_rng(rng)
    shapes = {layer.weight: np.shape(params[layer.weight]) for layer in _layers(params)}
    n_outputs = list(shapes.values())[-1][0]
    return {
        name: scale / np.sqrt(shape[1]) * rng.standard_normal((shape[1], n_outputs if direct else shape[0]))
        for name, shape in list(shapes.items())[1:]
    }


def _layers(params: ArrayOrMapping) -> list[_Layer]:
    if not isinstance(params, Mapping) or not params:
        raise TypeError(f"expected a mapping name -> weights in the order of the layers, got {type(params).__name__}")
    layers: list[_Layer] = []
    for name, array in params.items():
        shape = np.shape(array)
        if len(shape) == 2:
            layers.append(_Layer(name, None))
        elif len(shape) == 1 and layers and layers[-1].bias is None and shape[0] == len(params[layers[-1].weight]):
            layers[-1] = _Layer(layers[-1].weight, name)
        else:
            raise ValueError(
                f"expected weights of shape (outputs, inputs), each followed by its bias (outputs,), got {shape} at "
                f"{name!r}"
            )
    return layers


def float64_array(x: Any) -> Array:
    """Data of any library as a float64 NumPy array of the same shape.

    Parameters
    ----------
    x : array_like
        In the host's memory.

    Returns
    -------
    ndarray
        A copy, unless it is one already.
    """
    if isinstance(x, np.ndarray | list | tuple):
        return np.asarray(x, dtype=np.float64)
    x = plain(x)
    return flat(x, "data").reshape(np.shape(x))
