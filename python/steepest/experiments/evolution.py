"""An evolution strategy: a gradient estimated from a population, and what its error does to psi."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steepest.recorder import Recorder
from steepest.recording import Recording

__all__ = ["Estimate", "Evolution", "SoftmaxRegression", "estimate_gradient", "run"]

Array = NDArray[np.float64]


class SoftmaxRegression:
    """Mean cross-entropy in nats of ``softmax(x W + b)``, of flat parameters (W in C order, then b).

    Parameters
    ----------
    inputs : ndarray, shape (n_samples, n_inputs)
        The data.
    labels : ndarray, shape (n_samples,), integers
        From 0.
    decay : float
        Coefficient of |W|^2 / 2.
    """

    def __init__(self, inputs: NDArray[np.floating], labels: NDArray[np.integer], decay: float = 1e-3) -> None:
        self.inputs = np.asarray(inputs, dtype=np.float64)
        self.labels = np.asarray(labels, dtype=np.intp)
        self.decay = decay
        self.shape = self.inputs.shape[1], int(self.labels.max()) + 1
        self.size = (self.shape[0] + 1) * self.shape[1]

    def split(self, theta: Array) -> dict[str, Array]:
        """Views of weights and bias."""
        return {"weights": theta[: -self.shape[1]].reshape(self.shape), "bias": theta[-self.shape[1] :]}

    def __call__(self, theta: Array) -> float:
        """The loss."""
        return self._loss(theta)[0]

    def gradient(self, theta: Array) -> Array:
        """Its exact gradient, flat."""
        probability = self._loss(theta)[1]
        probability[np.arange(len(self.labels)), self.labels] -= 1.0
        probability /= len(self.labels)
        of_weights = self.inputs.T @ probability + self.decay * self.split(theta)["weights"]
        return np.concatenate([of_weights.ravel(), probability.sum(axis=0)])

    def _loss(self, theta: Array) -> tuple[float, Array]:
        p = self.split(theta)
        logits = self.inputs @ p["weights"] + p["bias"]
        logits -= logits.max(axis=1, keepdims=True)
        own = logits[np.arange(len(self.labels)), self.labels]
        e = np.exp(logits)
        total = e.sum(axis=1, keepdims=True)
        loss = float(np.mean(np.log(total[:, 0]) - own)) + 0.5 * self.decay * float((p["weights"] ** 2).sum())
        return loss, np.asarray(e / total)


@dataclass(frozen=True)
class Estimate:
    """A gradient from a population.

    Attributes
    ----------
    gradient : ndarray, shape (n,)
        Mean over the pairs.
    standard_error : ndarray, shape (n,)
        Of each element: standard deviation over the pairs / sqrt(number of pairs).
    error : float
        sqrt(sum standard_error^2): expected distance from the gradient of the smoothed loss.
    angle : float
        Expected angle to that gradient in rad, asin(error / |gradient|), pi/2 where the error is larger: noise in many
        dimensions is orthogonal to the gradient and makes the estimate longer, |estimate|^2 = |gradient|^2 + error^2
        (derived).
    """

    gradient: Array
    standard_error: Array
    error: float
    angle: float


@dataclass(frozen=True)
class Evolution:
    """A run of the evolution strategy.

    Attributes
    ----------
    estimated : Recording
        Update against the estimate that the rule consumed (``gradient_source`` 'estimate').
    true : Recording
        The same updates against the exact gradient (``gradient_source`` 'evaluation').
    expected_angle : ndarray, shape (n_steps,)
        `Estimate.angle` of each step: what the error of the estimate alone does to psi.
    relative_error : ndarray, shape (n_steps,)
        `Estimate.error` / |estimate|.
    theta : ndarray, shape (n,)
        Final parameters.
    """

    estimated: Recording
    true: Recording
    expected_angle: Array
    relative_error: Array
    theta: Array


def estimate_gradient(
    loss: Callable[[Array], float], theta: Array, *, pairs: int, sigma: float, rng: np.random.Generator
) -> Estimate:
    """The gradient of the loss smoothed by a Gaussian of width sigma, from antithetic pairs.

    Parameters
    ----------
    loss : callable
        Of flat parameters.
    theta : ndarray, shape (n,)
        Where.
    pairs : int
        At least 2; the loss is evaluated at theta + sigma e and theta - sigma e for each standard normal e.
    sigma : float
        Width.
    rng : Generator
        Draws e.

    Returns
    -------
    Estimate
        ``mean of (loss(theta + sigma e) - loss(theta - sigma e)) / (2 sigma) e``, unbiased for the smoothed loss.

    Raises
    ------
    ValueError
        Fewer than 2 pairs, which have no standard error.
    """
    if pairs < 2:
        raise ValueError(f"expected at least 2 pairs for a standard error, got {pairs}")
    E = rng.standard_normal((pairs, theta.size))
    slope = np.array([(loss(theta + sigma * e) - loss(theta - sigma * e)) / (2.0 * sigma) for e in E])
    gradient = slope @ E / pairs
    variance = np.maximum(slope**2 @ E**2 / pairs - gradient**2, 0.0) / (pairs - 1)
    error, norm = math.sqrt(float(variance.sum())), float(np.linalg.norm(gradient))
    return Estimate(gradient, np.sqrt(variance), error, math.asin(error / norm) if error < norm else 0.5 * math.pi)


def run(
    objective: SoftmaxRegression,
    *,
    pairs: int = 200,
    sigma: float = 0.02,
    rate: float = 0.3,
    n_steps: int = 60,
    rng: np.random.Generator | int | None = None,
) -> Evolution:
    """Descend along the estimate, ``theta -= rate * estimate``, with an isotropic population of constant width.

    Parameters
    ----------
    objective : SoftmaxRegression
        The problem; its exact gradient is for comparison only.
    pairs : int
        Antithetic pairs to a step.
    sigma : float
        Width of the population.
    rate : float
        Learning rate.
    n_steps : int
        Number of updates.
    rng : Generator or int, optional
        Draws the populations.

    Returns
    -------
    Evolution
        Both recordings, of one loss.

    Notes
    -----
    Against the estimate psi is 0 by construction, which says nothing about the rule. Against the exact gradient it is
    what sampling makes of it: the estimate of a linear function has noise (n - 1)/pairs |grad|^2 orthogonal to the
    gradient, so tan psi is about sqrt((n - 1)/pairs) (derived). `expected_angle` is known without the exact gradient. A
    metric fitted to one step would explain this noise as geometry; over many steps it averages out.
    """
    rng = np.random.default_rng(rng)
    theta = np.zeros(objective.size)
    angles, errors = [], []
    estimated = Recorder(objective="fixed", gradient_source="estimate")
    true = Recorder(objective="fixed", gradient_source="evaluation")
    for _ in range(n_steps):
        found = estimate_gradient(objective, theta, pairs=pairs, sigma=sigma, rng=rng)
        update = -rate * found.gradient
        loss = objective(theta)
        estimated.step(loss=loss, grad=objective.split(found.gradient), update=objective.split(update))
        true.step(loss=loss, grad=objective.split(objective.gradient(theta)), update=objective.split(update))
        angles.append(found.angle)
        errors.append(found.error / float(np.linalg.norm(found.gradient)))
        theta = theta + update
    return Evolution(estimated.recording(), true.recording(), np.array(angles), np.array(errors), theta)
