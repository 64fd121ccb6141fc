"""Tasks that switch, for a linear learner: digits under the squared loss, where every assumption of the rule holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steepest.experiments.digits import Digits
from steepest.rules import Reset

__all__ = ["HAZARDS", "POLICIES", "LinearTasks", "Regression", "compare", "simulate"]

Array = NDArray[np.float64]
Progress = Callable[[str, int, int], None]

#: Derived: decay towards the prior by direction. Full reset: jump to the prior when the task has switched. Tuned decay:
#: one decay rate for all directions, the best of a grid on other streams.
POLICIES = ("derived reset", "no reset", "full reset", "tuned decay")
#: Hazards that the derived rule assumes, in units of the true one.
HAZARDS = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_CLASSES = 10

# The linear learner, in units of time.
HAZARD, GAMMA, DT = 0.2, 0.1, 0.1
_DECAYS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
SINCE = 120  # steps after a switch that are averaged


@dataclass(frozen=True)
class LinearTasks:
    """Results of the linear learner; the same streams of tasks for every policy.

    Attributes
    ----------
    decay : float
        Of the tuned decay, per unit time.
    cost, loss, accuracy : dict, ndarray, shape (streams,)
        Of each policy: discounted cost; mean excess loss; share of test images classified correctly.
    assumed : ndarray, shape (hazards, streams)
        Cost of the derived rule at each of `HAZARDS`.
    after_switch : dict, ndarray, shape (steps,)
        Of each policy: mean excess loss by number of steps since the last switch.
    """

    decay: float
    cost: dict[str, Array]
    loss: dict[str, Array]
    accuracy: dict[str, Array]
    assumed: Array
    after_switch: dict[str, Array]


class Regression:
    """Squared loss of F x to one-hot targets, in the eigenbasis of the inputs' second moments.

    Parameters
    ----------
    digits : Digits
        Pixels are centred by the mean training image, and a constant input is added.

    Attributes
    ----------
    curvature : ndarray, shape (inputs,)
        Of every row of F; exactly 0 for pixels that are always black.
    optimum, prior : ndarray, shape (classes, inputs)
        Of labels that are not permuted; mean over all permutations.
    test, labels : ndarray
        Test inputs in the eigenbasis, and their labels.
    """

    def __init__(self, digits: Digits) -> None:
        mean = digits.train_images.mean(axis=0, dtype=np.float64)
        train, test = (
            np.column_stack([images.astype(np.float64) - mean, np.ones(len(images))])
            for images in (digits.train_images, digits.test_images)
        )
        values, vectors = np.linalg.eigh(train.T @ train / len(train))
        flat = values < 1e-9 * values[-1]  # pixels that are always black
        self.curvature = np.where(flat, 0.0, values)
        inverse = np.where(flat, 0.0, 1.0 / np.where(flat, 1.0, values))
        targets = np.eye(_CLASSES)[digits.train_labels]
        self.optimum = targets.T @ train @ vectors / len(train) * inverse
        # Every permutation equally likely: the expected target is 1/10 whatever the image.
        self.prior = np.tile(train.mean(axis=0) @ vectors * inverse / _CLASSES, (_CLASSES, 1))
        self.test, self.labels = test @ vectors, digits.test_labels.astype(np.intp)

    def excess(self, F: Array, optimum: Array) -> Array:
        """Loss above that of the optimum: F of shape (n, classes, inputs) gives (n,)."""
        return np.asarray(0.5 * (self.curvature * (F - optimum) ** 2).sum(axis=(1, 2)))


@dataclass(frozen=True)
class Stream:
    """Of n streams: cost, mean excess loss, accuracy, shape (n,); mean excess loss by steps since a switch."""

    cost: Array
    loss: Array
    accuracy: Array
    after_switch: Array


def simulate(
    task: Regression, *, hazard: float, decay: float, jump: bool, n: int, n_steps: int, rng: np.random.Generator
) -> Stream:
    """Streams of tasks side by side, as one long vector: the Hessian is diagonal.

    Parameters
    ----------
    task : Regression
        The loss.
    hazard : float
        That the rule assumes; the true one is `HAZARD`.
    decay : float
        Towards the prior, per unit time, besides the rule.
    jump : bool
        Jump to the prior in the first step after a switch, in place of the rule.
    n, n_steps : int
        Streams, and updates in each.
    rng : Generator
        Draws tasks and switches, the same whatever the rule does.

    Returns
    -------
    Stream
        Costs are sums over steps of ``|move|^2/(2 dt)`` and dt times the mean of the losses at both ends, discounted.
    """
    shape = (n, *task.prior.shape)
    H, prior = np.broadcast_to(task.curvature, shape).copy(), np.broadcast_to(task.prior, shape).copy()
    rule = Reset(prior, H, hazard=hazard, dt=DT, gamma=GAMMA)
    F, state = prior, rule.init(prior)
    labels = np.array([rng.permutation(_CLASSES) for _ in range(n)])
    since, switched = np.zeros(n, dtype=int), np.zeros(n, dtype=bool)
    cost, loss, accuracy = np.zeros(n), np.zeros(n), []
    sums, counts = np.zeros(SINCE), np.zeros(SINCE)
    for t in range(n_steps):
        # Label c of a picture is now `labels[c]`: the row of F for it is the optimum's row of c.
        optimum = np.empty(shape)
        optimum[np.arange(n)[:, None], labels] = task.optimum
        before = task.excess(F, optimum)
        move, state = rule.update(H * (F - optimum), state, F)
        if decay:
            move = move + math.expm1(-decay * DT) * (F - prior)
        if jump:
            move = np.where(switched[:, None, None], prior - F, move)
        after = task.excess(F + move, optimum)
        here = 0.5 * (before + after)
        cost += math.exp(-GAMMA * t * DT) * ((move**2).sum(axis=(1, 2)) / (2.0 * DT) + here * DT)
        loss += here / n_steps
        seen = since < SINCE
        np.add.at(sums, since[seen], before[seen])
        np.add.at(counts, since[seen], 1)
        F = F + move
        if t % 20 == 19:
            guessed = np.argmax(F @ task.test.T, axis=1)
            accuracy.append(np.mean(guessed == labels[:, task.labels], axis=1))
        switched = rng.random(n) < -math.expm1(-HAZARD * DT)
        since = np.where(switched, 0, since + 1)
        for i in np.flatnonzero(switched):
            labels[i] = rng.permutation(_CLASSES)
    return Stream(cost, loss, np.mean(accuracy, axis=0), sums / np.maximum(counts, 1))


def compare(digits: Digits, n: int, n_steps: int, seed: int, progress: Progress | None) -> LinearTasks:
    """Simulate n streams under every policy, and tune the decay on n others.

    Parameters
    ----------
    digits : Digits
        The images.
    n, n_steps : int
        Streams, and updates in each.
    seed : int
        Of all streams.
    progress : callable or None
        Called as ``progress(text, done, total)``.

    Returns
    -------
    LinearTasks
    """
    task = Regression(digits)
    total, done = len(HAZARDS) + len(_DECAYS) + 2, 0

    def stream(hazard: float = 0.0, decay: float = 0.0, jump: bool = False, other: int = 0) -> Stream:
        nonlocal done
        found = simulate(
            task, hazard=hazard, decay=decay, jump=jump, n=n, n_steps=n_steps, rng=np.random.default_rng([seed, other])
        )
        done += 1
        if progress is not None:
            progress("linear learner", done, total)
        return found

    decay = min(_DECAYS, key=lambda decay: float(stream(decay=decay, other=1).cost.mean()))
    assumed = [stream(hazard=ratio * HAZARD) for ratio in HAZARDS]
    chosen = dict(
        zip(
            POLICIES,
            (assumed[HAZARDS.index(1.0)], assumed[HAZARDS.index(0.0)], stream(jump=True), stream(decay=decay)),
            strict=True,
        )
    )
    cost, loss, accuracy, after = (
        {policy: getattr(found, name) for policy, found in chosen.items()}
        for name in ("cost", "loss", "accuracy", "after_switch")
    )
    return LinearTasks(decay, cost, loss, accuracy, np.array([found.cost for found in assumed]), after)
