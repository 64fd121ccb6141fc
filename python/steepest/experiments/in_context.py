"""Learning in context: the layers of a linear transformer as steps of descent on the regression in its prompt.

The parameters are the hidden state, the steps are the layers. A layer of linear self-attention with suitable weights
makes one step of gradient descent on the least-squares loss of the examples in the prompt (von Oswald et al. 2023,
"Transformers learn in-context by gradient descent"), and with one more weight a preconditioned one, their GD++.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy.optimize
from numpy.typing import NDArray

from steepest.recorder import Recorder
from steepest.recording import Recording

__all__ = ["InContext", "Layer", "Prompt", "descent_layer", "draw_prompt", "fit", "forward", "run"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Prompt:
    """Examples of one linear function.

    Attributes
    ----------
    x : ndarray, shape (n_examples, d)
    y : ndarray, shape (n_examples,)
    """

    x: Array
    y: Array

    def loss(self, theta: Array) -> float:
        """Half the mean squared error of ``theta.x``."""
        return 0.5 * float(np.mean((self.y - self.x @ theta) ** 2))

    def gradient(self, theta: Array) -> Array:
        """Of `loss`."""
        return np.asarray(self.x.T @ (self.x @ theta - self.y) / len(self.y))


@dataclass(frozen=True)
class Layer:
    """One head of linear self-attention: ``e_j += P sum_i (V e_i) (K e_i).(Q e_j)``, i over the examples.

    Attributes
    ----------
    Q, K, V, P : ndarray, shape (d + 1, d + 1)
        Of tokens e = (x, y).
    """

    Q: Array
    K: Array
    V: Array
    P: Array

    def __call__(self, tokens: Array, n_examples: int) -> Array:
        """Tokens after the layer; those behind the examples are queries, which nobody attends to."""
        examples = tokens[:n_examples]
        scores = (tokens @ self.Q.T) @ (examples @ self.K.T).T
        return np.asarray(tokens + scores @ (examples @ self.V.T) @ self.P.T)


@dataclass(frozen=True)
class InContext:
    """A forward pass, read as learning.

    Attributes
    ----------
    recording : Recording
        theta, loss and gradient of the prompt; one step for each layer, and a last row without update.
    theta : ndarray, shape (n_layers + 1, d)
        The linear predictor that the transformer implements after so many layers.
    rate, curvature : float
        Of the layers, see `descent_layer`.
    """

    recording: Recording
    theta: Array
    rate: float
    curvature: float


def draw_prompt(
    d: int, n_examples: int, *, cond: float = 10.0, noise: float = 0.1, rng: np.random.Generator | int | None = None
) -> Prompt:
    """Inputs from a normal distribution with covariance of condition number `cond`, outputs of a random linear map.

    Parameters
    ----------
    d, n_examples : int
        Inputs of an example, and examples.
    cond : float
        Eigenvalues are log-spaced from 1/cond to 1 (in a random basis).
    noise : float
        Standard deviation of the noise in y.
    rng : Generator or int, optional
        Draws all.

    Returns
    -------
    Prompt
        The examples.
    """
    rng = np.random.default_rng(rng)
    basis = np.linalg.qr(rng.standard_normal((d, d)))[0]
    x = rng.standard_normal((n_examples, d)) * np.sqrt(np.geomspace(1.0 / cond, 1.0, d)) @ basis.T
    return Prompt(x, x @ rng.standard_normal(d) + noise * rng.standard_normal(n_examples))


def descent_layer(d: int, n_examples: int, rate: float, curvature: float = 0.0) -> Layer:
    """Weights with which a layer makes one step of descent.

    Parameters
    ----------
    d, n_examples : int
        As in the prompt.
    rate : float
        Learning rate.
    curvature : float
        GD++'s second weight: the layer also turns x into ``x - curvature * S x``, S the second moment of the x that
        come in. 0 is gradient descent.

    Returns
    -------
    Layer
        K = Q project on x, and ``P V`` = -diag(curvature, ..., rate)/n_examples.

    Notes
    -----
    The y of a token is its residual, ``y - theta.x``, and of a query ``-theta.x``. With x_l = B_l x the x after l
    layers, theta_{l+1} = theta_l - rate B_l^2 grad L(theta_l): a preconditioner that is a polynomial in the second
    moment of the prompt (derived).
    """
    on_x = np.diag([1.0] * d + [0.0])
    V = np.diag([curvature] * d + [rate])
    return Layer(on_x, on_x, V, -np.eye(d + 1) / n_examples)


def forward(prompt: Prompt, layers: list[Layer]) -> Array:
    """Predictors of all layers, read off the transformer: its queries are the unit vectors.

    Parameters
    ----------
    prompt : Prompt
        The examples.
    layers : list of Layer
        In order.

    Returns
    -------
    ndarray, shape (len(layers) + 1, d)
        theta_l; ``theta_l.x`` is what the transformer answers for a query x, which is linear in it.
    """
    n, d = prompt.x.shape
    tokens = np.vstack([np.column_stack([prompt.x, prompt.y]), np.eye(d, d + 1)])
    theta = [-tokens[n:, d]]
    for layer in layers:
        tokens = layer(tokens, n)
        theta.append(-tokens[n:, d])
    return np.array(theta)


def fit(prompts: list[Prompt], n_layers: int, *, preconditioned: bool = True) -> tuple[float, float]:
    """Train the weights of a transformer with equal layers, so that its last layer predicts best.

    Parameters
    ----------
    prompts : list of Prompt
        Of one shape.
    n_layers : int
        How often the layer is applied.
    preconditioned : bool
        Whether `curvature` is trained too (GD++); otherwise it is 0 (GD).

    Returns
    -------
    rate, curvature : float
        With the least mean loss that the Nelder-Mead method finds.
    """
    n, d = prompts[0].x.shape
    largest = float(np.mean([np.linalg.eigvalsh(p.x.T @ p.x / n)[-1] for p in prompts]))

    def mean_loss(weights: Array) -> float:
        rate, curvature = weights[0] / largest, (weights[1] / largest if preconditioned else 0.0)
        layers = [descent_layer(d, n, rate, curvature)] * n_layers
        with np.errstate(over="ignore", invalid="ignore"):
            loss = np.mean([p.loss(forward(p, layers)[-1]) for p in prompts])
        return float(np.log(loss)) if np.isfinite(loss) else 1e3

    start = np.array([0.5, 0.1] if preconditioned else [0.5])
    found = scipy.optimize.minimize(mean_loss, start, method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-8})
    return float(found.x[0] / largest), float(found.x[1] / largest) if preconditioned else 0.0


def run(prompt: Prompt, n_layers: int, *, rate: float, curvature: float = 0.0) -> InContext:
    """Pass a prompt through the layers, and record the predictor as it learns.

    Parameters
    ----------
    prompt : Prompt
        The examples, and the loss.
    n_layers : int
        All with the same weights.
    rate, curvature : float
        See `descent_layer`; of `fit`, or by hand.

    Returns
    -------
    InContext
        With ``objective`` 'fixed': it is one prompt.

    Examples
    --------
    >>> from steepest.experiments import in_context
    >>> result = in_context.run(in_context.draw_prompt(5, 40, rng=0), 10, rate=0.5)
    >>> bool(result.recording.angle[:-1].max() < 1e-7)  # the layers make plain gradient descent
    True
    """
    n, d = prompt.x.shape
    theta = forward(prompt, [descent_layer(d, n, rate, curvature)] * n_layers)
    with Recorder(objective="fixed", gradient_source="evaluation", lag=1) as recorder:
        for now, after in pairwise(theta):
            recorder.step(params=now, loss=prompt.loss(now), grad=prompt.gradient(now), update=after - now)
        recorder.step(params=theta[-1], loss=prompt.loss(theta[-1]), grad=prompt.gradient(theta[-1]))
        return InContext(recorder.recording(), theta, rate, curvature)
