"""Rules whose geometry is known, training a two-layer linear network: the runs of the experiment ``geometry``.

The network is ``f(x) = W2 W1 x`` under half the squared error to one-hot targets, so that the full-batch gradient is a
function of second moments, ``dL/dF = E = F mean(x x^T) - mean(d x^T)`` with ``F = W2 W1``: exact, and independent of
the number of images in cost. Each run keeps what the rule did to the hidden layer W1, beside the full-batch gradient
at the same weights and the gradient that the rule consumed (the same one at full batch, a mini-batch's otherwise).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from steepest.experiments.digits import Digits

__all__ = ["RATE", "RULES", "Images", "Planted", "Rule", "RuleRun", "images", "plant", "train"]

Array = NDArray[np.float64]
Rule = Literal[
    "gradient descent",
    "momentum",
    "RMSProp",
    "Adam",
    "K-FAC (input factor)",
    "planted Kronecker",
    "feedback alignment",
    "feedback redrawn",
]

# Rates at which the loss falls to about 0.25 of 0.67 within 200 full-batch steps; the fits do not depend on them but
# through how far the weights move.
RATE: dict[Rule, float] = {
    "gradient descent": 0.1,
    "momentum": 0.02,
    "RMSProp": 3e-4,
    "Adam": 3e-4,
    "K-FAC (input factor)": 0.01,
    "planted Kronecker": 0.005,
    "feedback alignment": 0.1,
    "feedback redrawn": 0.1,
}
RULES: tuple[Rule, ...] = tuple(RATE)
MOMENTUM = 0.9
RMSPROP_DECAY, ADAM_DECAYS = 0.99, (0.9, 0.999)  # what the usual libraries take by default
EPSILON = 1e-8
DAMPING = 0.1  # of the input factor, times its mean eigenvalue

_CLASSES = 10
# Number of pixels -> side of the squares over which they are averaged: a few dozen steps then span the inputs.
_POOLED = {28 * 28: 4, 8 * 8: 2}
_LEAST_VARIANCE = 0.01  # of the largest; pixels of the margin hardly vary, and then no run says how a rule treats them


@dataclass(frozen=True)
class Images:
    """Training images as inputs of the network.

    Attributes
    ----------
    dataset : str
        Its name.
    inputs : ndarray, shape (images, inputs), float32
        Pixels less the mean image, and a constant 1.
    labels : ndarray, shape (images,)
        From 0 to 9.
    xx, dx : ndarray, shape (inputs, inputs) and (classes, inputs)
        ``mean(x x^T)`` and ``mean(d x^T)``, d the one-hot target.
    """

    dataset: str
    inputs: NDArray[np.float32]
    labels: NDArray[np.intp]
    xx: Array
    dx: Array

    def full_error(self, F: Array) -> tuple[float, Array]:
        """Half the mean squared error of the linear map F on all images, and its derivative E by F."""
        F_xx = F @ self.xx
        return 0.5 * (float(np.vdot(F_xx, F)) - 2.0 * float(np.vdot(self.dx, F)) + 1.0), F_xx - self.dx

    def batch_error(self, F: Array, batch: int, rng: np.random.Generator) -> Array:
        """E on `batch` images drawn with replacement, hence without bias."""
        chosen = rng.integers(0, len(self.inputs), batch)
        x = self.inputs[chosen]
        error = x @ F.T.astype(np.float32)
        error[np.arange(batch), self.labels[chosen]] -= 1.0
        E: Array = (error.T @ x).astype(np.float64) / batch
        return E


def images(digits: Digits) -> Images:
    """The training images, 28 x 28 averaged over 4 x 4 pixels, 8 x 8 over 2 x 2, centred, with a constant input.

    Pixels of less than a hundredth of the largest variance are left out.

    Parameters
    ----------
    digits : Digits
        The test set is not used.

    Returns
    -------
    Images
    """
    pixels = digits.train_images
    if pixels.shape[1] in _POOLED:
        by = _POOLED[pixels.shape[1]]
        side = math.isqrt(pixels.shape[1]) // by
        pixels = pixels.reshape(-1, side, by, side, by).mean(axis=(2, 4)).reshape(-1, side * side)
    pixels = pixels - pixels.mean(axis=0, dtype=np.float64).astype(np.float32)
    variance = pixels.var(axis=0, dtype=np.float64)
    pixels = pixels[:, variance > _LEAST_VARIANCE * variance.max()]
    inputs = np.column_stack([pixels, np.ones(len(pixels), np.float32)]).astype(np.float32)
    labels = digits.train_labels.astype(np.intp)
    xx, dx = np.zeros((inputs.shape[1], inputs.shape[1])), np.zeros((_CLASSES, inputs.shape[1]))
    for first in range(0, len(inputs), 4000):
        x = inputs[first : first + 4000].astype(np.float64)
        xx += x.T @ x
        dx += np.eye(_CLASSES)[labels[first : first + 4000]].T @ x
    return Images(digits.name, inputs, labels, xx / len(inputs), dx / len(inputs))


@dataclass(frozen=True)
class Planted:
    """The metric ``G -> output G input`` of a rule that is a natural gradient by construction.

    Attributes
    ----------
    output, input : ndarray, shape (hidden, hidden) and (inputs, inputs)
        Symmetric positive definite.
    """

    output: Array
    input: Array


def plant(data: Images, n_hidden: int, rng: np.random.Generator) -> Planted:
    """A Kronecker metric: damped second moments of the inputs, and a random output factor of condition number 10.

    Parameters
    ----------
    data : Images
        For the input factor.
    n_hidden : int
        Size of the output factor.
    rng : numpy.random.Generator
        Draws its eigenvectors.

    Returns
    -------
    Planted
    """
    turn = np.linalg.qr(rng.standard_normal((n_hidden, n_hidden)))[0]
    return Planted((turn * np.geomspace(0.3, 3.0, n_hidden)) @ turn.T, _damped(data.xx))


def _damped(xx: Array) -> Array:
    return xx + DAMPING * float(np.trace(xx)) / len(xx) * np.eye(len(xx))


@dataclass(frozen=True)
class RuleRun:
    """One training run from step `first` on; entry t of an array belongs to a step, before its update.

    Attributes
    ----------
    rule : str
        Its name.
    batch : int or None
        Images of a mini-batch, None for all of them at every step.
    first : int
        Number of the first step that is kept.
    grad : ndarray, shape (t, hidden, inputs)
        Full-batch gradient by W1.
    update : ndarray, shape (t, hidden, inputs)
        What the rule added to W1.
    consumed, replicate : ndarray, shape (t, hidden, inputs)
        The gradient that the rule was given, and that of an independent mini-batch at the same weights; both are `grad`
        at full batch.
    root : ndarray, shape (t, hidden, inputs), or None
        ``sqrt(v) + eps`` by which RMSProp and Adam divide, bias corrected as theirs.
    loss : ndarray, shape (t,)
        On all images.
    smallest, asymmetry : ndarray, shape (t,), or None
        Of ``S = W2 B`` under feedback alignment, in which the step descends by a metric on the output side iff it is
        symmetric positive definite: smallest eigenvalue of ``(S + S^T)/2``, and ``|S - S^T|/|S + S^T|``.
    """

    rule: Rule
    batch: int | None
    first: int
    grad: Array
    update: Array
    consumed: Array
    replicate: Array
    root: Array | None
    loss: Array
    smallest: Array | None
    asymmetry: Array | None


class _Given(NamedTuple):
    """What a rule may use: E, the gradients by W1 and W2, and W1."""

    E: Array
    grad: tuple[Array, Array]
    W1: Array


class _Step(Protocol):
    """What a rule adds to W1 and W2."""

    def __call__(self, given: _Given) -> tuple[Array, Array]: ...


class _Descent:
    """Gradient descent, with momentum or without: ``m <- momentum m + grad``, ``update = -rate m``."""

    def __init__(self, rate: float, momentum: float = 0.0) -> None:
        self.rate, self.momentum = rate, momentum
        self.m: tuple[Array | float, Array | float] = (0.0, 0.0)

    def __call__(self, given: _Given) -> tuple[Array, Array]:
        m1, m2 = (self.momentum * m + g for m, g in zip(self.m, given.grad, strict=True))
        self.m = (m1, m2)
        return -self.rate * m1, -self.rate * m2


class _Adaptive:
    """Adam with bias correction; without a first moment it is RMSProp with bias correction."""

    def __init__(self, rate: float, decays: tuple[float, float]) -> None:
        self.rate, self.decays, self.t = rate, decays, 0
        self.m: list[Array | float] = [0.0, 0.0]
        self.v: list[Array | float] = [0.0, 0.0]
        self.root: Array | None = None  # of W1

    def __call__(self, given: _Given) -> tuple[Array, Array]:
        first, second = self.decays
        self.t += 1
        updates = []
        roots = []
        for i, g in enumerate(given.grad):
            self.m[i] = first * self.m[i] + (1.0 - first) * g
            self.v[i] = second * self.v[i] + (1.0 - second) * g * g
            roots.append(np.sqrt(self.v[i] / (1.0 - second**self.t)) + EPSILON)
            updates.append(-self.rate * self.m[i] / (1.0 - first**self.t) / roots[i])
        self.root = roots[0]
        return updates[0], updates[1]


class _Kronecker:
    """Natural gradient ``-rate A^-1 G1 X^-1`` for W1, and ``-rate G2 (W1 X W1^T)^-1`` for W2, X the input factor."""

    def __init__(self, rate: float, planted: Planted, *, both: bool) -> None:
        self.rate, self.input = rate, planted.input
        self.by_input = np.linalg.inv(planted.input)
        self.by_output = np.linalg.inv(planted.output) if both else np.eye(len(planted.output))

    def __call__(self, given: _Given) -> tuple[Array, Array]:
        first, second = given.grad
        hidden = _damped(given.W1 @ self.input @ given.W1.T)
        of_second = np.asarray(np.linalg.inv(hidden), dtype=np.float64)
        return -self.rate * (self.by_output @ first @ self.by_input), -self.rate * (second @ of_second)


class _Feedback:
    """The error of the hidden layer comes through B instead of W2^T; B may be drawn anew at every step."""

    def __init__(self, rate: float, draw: Callable[[], Array], *, redrawn: bool) -> None:
        self.rate, self.draw, self.redrawn = rate, draw, redrawn
        self.B = draw()

    def __call__(self, given: _Given) -> tuple[Array, Array]:
        if self.redrawn:
            self.B = self.draw()
        return -self.rate * (self.B @ given.E), -self.rate * given.grad[1]


def train(
    data: Images,
    rule: Rule,
    *,
    batch: int | None = None,
    n_hidden: int = 32,
    first: int = 100,
    n_steps: int = 200,
    seed: int = 0,
    planted: Planted | None = None,
) -> RuleRun:
    """Train ``W2 W1 x`` by one rule.

    Parameters
    ----------
    data : Images
        What to train on.
    rule : str
        One of `RULES`.
    batch : int, optional
        Images of a mini-batch; all of them by default.
    n_hidden : int
        Hidden units.
    first, n_steps : int
        Steps ``first`` to ``n_steps - 1`` are kept.
    seed : int
        Of the initial weights, which are the same for every rule and batch; of B; and of the mini-batches.
    planted : Planted, optional
        For the two Kronecker rules; drawn from the seed by default.

    Returns
    -------
    RuleRun

    Raises
    ------
    ValueError
        Unknown rule, steps out of range, or a loss that is not finite.
    """
    if rule not in RULES:
        raise ValueError(f"expected rule to be one of {RULES}, got {rule!r}")
    if not 0 <= first < n_steps:
        raise ValueError(f"expected 0 <= first < n_steps, got first = {first}, n_steps = {n_steps}")
    initial, feedback, sampling, factors = (np.random.default_rng([seed, stream]) for stream in range(4))
    n_inputs = data.inputs.shape[1]
    W1 = initial.standard_normal((n_hidden, n_inputs)) / math.sqrt(n_inputs)
    W2 = initial.standard_normal((_CLASSES, n_hidden)) / math.sqrt(n_hidden)

    def draw() -> Array:
        B: Array = feedback.standard_normal((n_hidden, _CLASSES)) / math.sqrt(n_hidden)
        return B

    step = _rule(rule, draw, planted or plant(data, n_hidden, factors))
    shape = (n_steps - first, n_hidden, n_inputs)
    grads, updates = np.empty(shape), np.empty(shape)
    consumed, replicates = (grads, grads) if batch is None else (np.empty(shape), np.empty(shape))
    roots = np.empty(shape) if isinstance(step, _Adaptive) else None
    losses, smallest, asymmetry = np.empty(shape[0]), np.empty(shape[0]), np.empty(shape[0])
    for t in range(n_steps):
        F = W2 @ W1
        loss, E = data.full_error(F)
        if not math.isfinite(loss):
            raise ValueError(f"{rule} diverged at step {t}: its rate {RATE[rule]} is too large for these images")
        E_given = E if batch is None else data.batch_error(F, batch, sampling)
        grad = W2.T @ E_given
        update = step(_Given(E_given, (grad, E_given @ W1.T), W1))
        i = t - first
        if i >= 0:
            grads[i], updates[i], losses[i] = W2.T @ E, update[0], loss
            if batch is not None:
                consumed[i], replicates[i] = grad, W2.T @ data.batch_error(F, batch, sampling)
            if roots is not None and isinstance(step, _Adaptive) and step.root is not None:
                roots[i] = step.root
            if isinstance(step, _Feedback):
                smallest[i], asymmetry[i] = alignment_condition(W2 @ step.B)
        W1, W2 = W1 + update[0], W2 + update[1]
    aligned = isinstance(step, _Feedback)
    return RuleRun(
        rule=rule,
        batch=batch,
        first=first,
        grad=grads,
        update=updates,
        consumed=consumed,
        replicate=replicates,
        root=roots,
        loss=losses,
        smallest=smallest if aligned else None,
        asymmetry=asymmetry if aligned else None,
    )


def alignment_condition(S: Array) -> tuple[float, float]:
    """How far S is from symmetric positive definite.

    Parameters
    ----------
    S : ndarray, square
        ``W2 B``.

    Returns
    -------
    smallest, asymmetry : float
        As in `RuleRun`.
    """
    symmetric = S + S.T
    return (
        float(np.linalg.eigvalsh(0.5 * symmetric)[0]),
        float(np.linalg.norm(S - S.T) / np.linalg.norm(symmetric)),
    )


def _rule(rule: Rule, draw: Callable[[], Array], planted: Planted) -> _Step:
    rate = RATE[rule]
    if rule == "gradient descent":
        return _Descent(rate)
    if rule == "momentum":
        return _Descent(rate, MOMENTUM)
    if rule == "RMSProp":
        return _Adaptive(rate, (0.0, RMSPROP_DECAY))
    if rule == "Adam":
        return _Adaptive(rate, ADAM_DECAYS)
    if rule in ("K-FAC (input factor)", "planted Kronecker"):
        return _Kronecker(rate, planted, both=rule == "planted Kronecker")
    return _Feedback(rate, draw, redrawn=rule == "feedback redrawn")
