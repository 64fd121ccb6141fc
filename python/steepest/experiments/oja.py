"""Oja's rule, and of which objective it is steepest descent: variance, Rayleigh quotient, or reconstruction error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steepest.recorder import Recorder
from steepest.recording import Recording

__all__ = ["CANDIDATES", "Oja", "objectives", "run"]

Array = NDArray[np.float64]

#: Objectives to be made small, with C the covariance of the inputs: what Oja's rule is said to maximise, the same
#: on the unit sphere, and the error of reconstructing x as w (w.x).
CANDIDATES = ("variance", "Rayleigh quotient", "reconstruction error")


@dataclass(frozen=True)
class Oja:
    """A run of Oja's rule.

    Attributes
    ----------
    recording : Recording
        With `CANDIDATES`; losses and gradients are those of the whole data set (``gradient_source`` 'evaluation').
    weights : ndarray, shape (n_steps + 1, n_inputs)
        Before each step, and at the end.
    principal : ndarray, shape (n_inputs,)
        Unit eigenvector of the largest eigenvalue of C, by numpy.linalg.eigh, in the direction of the final weights.
    overlap : ndarray, shape (n_steps + 1,)
        |cosine| of the angle between weights and `principal`.
    """

    recording: Recording
    weights: Array
    principal: Array
    overlap: Array


def objectives(w: Array, C: Array) -> tuple[dict[str, float], dict[str, Array]]:
    """The candidates and their gradients.

    Parameters
    ----------
    w : ndarray, shape (n,)
        Weights, not zero.
    C : ndarray, shape (n, n)
        Covariance of the inputs.

    Returns
    -------
    loss : dict
        ``-w.C w / 2``; ``-(w.C w)/(w.w) / 2``; ``E|x - w (w.x)|^2 / 4``.
    grad : dict
        ``-C w``; ``-(C w - R w)/(w.w)`` with R the Rayleigh quotient; ``(-2 C w + (w.C w) w + (w.w) C w)/2``.

    Notes
    -----
    Oja's mean update is proportional to ``C w - (w.C w) w``. Where |w| = 1 that is minus the gradient of the last two
    (psi = 0): they differ off the sphere. The first is unbounded below, and nothing in it keeps w on the sphere; still
    it decreases to first order as long as |w| <= 1, since (w.C w)^2 <= |w|^2 |C w|^2 (derived).
    """
    C_w, square = C @ w, float(w @ w)
    power = float(w @ C_w)
    loss = {
        "variance": -0.5 * power,
        "Rayleigh quotient": -0.5 * power / square,
        "reconstruction error": 0.25 * (float(np.trace(C)) - 2.0 * power + square * power),
    }
    grad = {
        "variance": -C_w,
        "Rayleigh quotient": -(C_w - power / square * w) / square,
        "reconstruction error": 0.5 * (-2.0 * C_w + power * w + square * C_w),
    }
    return loss, grad


def run(
    inputs: Array,
    *,
    rate: float = 0.02,
    n_steps: int = 300,
    batch: int | None = None,
    start_norm: float = 0.5,
    rng: np.random.Generator | int | None = None,
) -> Oja:
    """Oja's rule ``w += rate * mean(s (x - s w))`` with s = w.x, recorded step by step.

    Parameters
    ----------
    inputs : ndarray, shape (n_samples, n_inputs)
        Their mean is subtracted.
    rate : float
        Learning rate, in units of one over the largest eigenvalue of C.
    n_steps : int
        Number of updates.
    batch : int, optional
        Inputs to a step, drawn at random; 1 is the rule as a synapse sees it. None: all of them, the mean rule.
    start_norm : float
        Length of the initial weights, whose direction is random.
    rng : Generator or int, optional
        Draws weights and batches.

    Returns
    -------
    Oja
        The recording, and what it learned.

    Raises
    ------
    ValueError
        The rule diverged.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest.experiments import oja
    >>> x = np.random.default_rng(0).standard_normal((500, 3)) * [3.0, 1.0, 0.5]
    >>> result = oja.run(x, n_steps=500, rng=0)
    >>> result.recording.candidates, bool(result.overlap[-1] > 0.999)
    (('variance', 'Rayleigh quotient', 'reconstruction error'), True)
    """
    rng = np.random.default_rng(rng)
    X = np.asarray(inputs, dtype=np.float64)
    X = X - X.mean(axis=0)
    C = X.T @ X / len(X)
    eigenvalues, vectors = np.linalg.eigh(C)
    w = rng.standard_normal(X.shape[1])
    w *= start_norm / np.linalg.norm(w)
    eta = rate / eigenvalues[-1]
    weights = [w]
    with Recorder(objective="fixed", gradient_source="evaluation", candidates=CANDIDATES) as recorder:
        for t in range(n_steps):
            x = X if batch is None else X[rng.integers(len(X), size=batch)]
            s = x @ w
            update = eta * ((s @ x) / len(x) - float(s @ s) / len(x) * w)
            loss, grad = objectives(w, C)
            recorder.step(loss=loss, grad=grad, update=update)
            w = w + update
            if not np.isfinite(w).all():
                raise ValueError(f"the weights diverged at step {t}: lower the rate, now {rate}")
            weights.append(w)
        rec = recorder.recording()
    path = np.array(weights)
    principal = vectors[:, -1] * (1.0 if vectors[:, -1] @ w >= 0.0 else -1.0)
    return Oja(rec, path, principal, np.abs(path @ principal) / np.linalg.norm(path, axis=1))
