"""Checks of the experiment ``geometry``: what is recovered of real rules against what they hold inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steepest.experiments.geometry_runs import MOMENTUM, Images, Planted, RuleRun, train
from steepest.identify import Identification, identify

__all__ = [
    "FeedbackCourse",
    "Momentum",
    "PlantedCheck",
    "RootCheck",
    "against_root",
    "factor_cosines",
    "feedback_course",
    "momentum_windows",
    "white_noise_score",
]

Array = NDArray[np.float64]

_SMALL = 128  # images of a mini-batch
_WINDOWS = (1, 2, 4, 8, 16, 32, 64)
_STARTS = (0, 25, 50, 100, 200, 400, 800, 1600, 3200, 6400)  # of the windows over the course of feedback alignment


@dataclass(frozen=True)
class RootCheck:
    """Recovered diagonals against the ``sqrt(v) + eps`` of the optimiser.

    Attributes
    ----------
    rule, against : str
        As in `Cell`.
    batch : int or None
        As in `Cell`.
    log_correlation : ndarray, shape (seeds,)
        Of the logarithms, over the elements with a positive fit; of sqrt(v) their mean over the fitted steps.
    share : ndarray, shape (seeds,)
        Of the elements that have one.
    recovered, root : ndarray, shape (hidden * inputs,)
        Of the first seed; `recovered` times the learning rate would be `root`.
    """

    rule: str
    batch: int | None
    against: str
    log_correlation: Array
    share: Array
    recovered: Array
    root: Array


@dataclass(frozen=True)
class PlantedCheck:
    """Recovered Kronecker factors against the planted ones, on what the fitted updates span.

    Attributes
    ----------
    batch : int or None
        As in `Cell`; the gradient is the one consumed.
    output_cosine, input_cosine : ndarray, shape (seeds,)
        Between recovered and planted matrix as vectors, both restricted to the leading directions of the updates,
        which hold all but 1e-6 of their squared norm.
    output_rank, input_rank : ndarray of int, shape (seeds,)
        How many directions these are.
    """

    batch: int | None
    output_cosine: Array
    input_cosine: Array
    output_rank: NDArray[np.int64]
    input_rank: NDArray[np.int64]


@dataclass(frozen=True)
class Momentum:
    """Scalar score of momentum over windows of w steps: sum of the updates against the mean gradient.

    Attributes
    ----------
    window : ndarray of int, shape (k,)
        w.
    full, small : ndarray, shape (seeds, k)
        Held-out score at full batch, and with mini-batches against the gradients consumed.
    white_noise : ndarray, shape (k,)
        `white_noise_score`: what gradients without memory would give.
    """

    window: NDArray[np.int64]
    full: Array
    small: Array
    white_noise: Array


@dataclass(frozen=True)
class FeedbackCourse:
    """Output-side score of feedback alignment in windows over its training.

    Attributes
    ----------
    start : ndarray of int, shape (k,)
        First step of each window.
    r2 : ndarray, shape (seeds, k)
        Held-out score at the end of the window.
    smallest, asymmetry : ndarray, shape (seeds, k)
        Means over the window of what `RuleRun` says of ``W2 B``.
    """

    start: NDArray[np.int64]
    r2: Array
    smallest: Array
    asymmetry: Array


def against_root(found: Identification, root: Array) -> tuple[float, float, Array, Array]:
    """A recovered diagonal against the optimiser's own.

    Parameters
    ----------
    found : Identification
        Of the diagonal family.
    root : ndarray, shape (steps, hidden, inputs)
        ``sqrt(v) + eps`` of the fitted steps.

    Returns
    -------
    log_correlation, share : float
        As in `RootCheck`.
    recovered, root : ndarray, shape (hidden * inputs,)
        As in `RootCheck`.
    """
    d = np.asarray(found.elements()).reshape(-1)
    expected = np.exp(np.log(root).mean(axis=0)).reshape(-1)
    seen = d > 0.0
    correlation = float(np.corrcoef(np.log(d[seen]), np.log(expected[seen]))[0, 1])
    return correlation, float(seen.mean()), d, expected


def factor_cosines(found: tuple[Array, Array], planted: Planted, updates: Array) -> tuple[float, float, int, int]:
    """Recovered Kronecker factors against the planted ones.

    Parameters
    ----------
    found : (A, B)
        Output and input factor.
    planted : Planted
        What they should be, up to a factor.
    updates : ndarray, shape (steps, hidden, inputs)
        The fitted ones.

    Returns
    -------
    output_cosine, input_cosine : float
        As in `PlantedCheck`.
    output_rank, input_rank : int
        As in `PlantedCheck`.
    """
    left = _leading(np.einsum("tij,tkj->ik", updates, updates))
    right = _leading(np.einsum("tij,tik->jk", updates, updates))
    output, input_ = _cosine(found[0], planted.output, left), _cosine(found[1], planted.input, right)
    return output, input_, left.shape[1], right.shape[1]


def _leading(moments: Array) -> Array:
    values, vectors = np.linalg.eigh(moments)
    rest = np.cumsum(np.maximum(values, 0.0))  # of the smallest ones
    return np.asarray(vectors[:, rest > 1e-6 * rest[-1]])


def _cosine(found: Array, planted: Array, basis: Array) -> float:
    x, y = basis.T @ found @ basis, basis.T @ planted @ basis
    return float(np.vdot(x, y) / np.linalg.norm(x) / np.linalg.norm(y))


def white_noise_score(window: int, momentum: float = MOMENTUM) -> float:
    """Share of the mean gradient over a window that the sum of its updates explains, if gradients are white noise.

    Parameters
    ----------
    window : int
        w, at least 1.
    momentum : float
        Of ``m <- momentum m + grad``, from 0 to below 1.

    Returns
    -------
    float
        ``(sum_j c_j)^2/w / (sum_j c_j^2 + (1 - b^w)^2/(1 - b)^2 b^2/(1 - b^2))``, with ``c_j = (1 - b^j)/(1 - b)``,
        j = 1 ... w: squared correlation of the mean of the w gradients with the sum of the w updates, which also holds
        what is left of the gradients before them (derived).

    Examples
    --------
    >>> round(white_noise_score(1, 0.9), 6)
    0.19
    """
    b, w = momentum, window
    c = (1.0 - b ** np.arange(1, w + 1)) / (1.0 - b)
    before = ((1.0 - b**w) / (1.0 - b)) ** 2 * b**2 / (1.0 - b**2)
    return float(c.sum() ** 2 / w / (c @ c + before))


def momentum_windows(data: Images, seeds: Sequence[int], *, n_hidden: int, n_steps: int = 600) -> Momentum:
    """Score of the scalar geometry for momentum, over window length.

    Parameters
    ----------
    data : Images
        To train on.
    seeds : sequence of int
        Of the runs.
    n_hidden : int
        Hidden units.
    n_steps : int
        Of each run, from the first.

    Returns
    -------
    Momentum
        Windows overlap, but no fitted one shares a step with one held out.

    Notes
    -----
    ``m_t = b m_(t-1) + grad_t`` sums to ``sum m = (sum grad + b (m_before - m_last))/(1 - b)``: over a window the
    update is a multiple of the mean gradient but for what its two ends carry over, which does not grow with w
    (derived).
    """
    scores = []
    for batch in (None, _SMALL):
        for s in seeds:
            course = train(data, "momentum", batch=batch, n_hidden=n_hidden, first=0, n_steps=n_steps, seed=s)
            scores.append([_window_score(course, w) for w in _WINDOWS])
    full, small = np.array(scores).reshape(2, len(seeds), len(_WINDOWS))
    return Momentum(np.array(_WINDOWS), full, small, np.array([white_noise_score(w) for w in _WINDOWS]))


def _window_score(course: RuleRun, w: int) -> float:
    stride = max(1, w // 4)
    split = 7 * len(course.update) // 10

    def windows(x: Array) -> list[Array]:
        return [np.stack([x_[i : i + w].sum(axis=0) for i in range(0, len(x_) - w + 1, stride)]) for x_ in parts(x)]

    def parts(x: Array) -> tuple[Array, Array]:
        return x[:split], x[split:]

    grad, update = windows(course.consumed / w), windows(course.update)
    held = len(update[1])
    total = held + len(update[0])
    found = identify(
        grad=np.concatenate(grad), update=np.concatenate(update), family="scalar", holdout=(held - 0.5) / total, rng=0
    )
    return found.fits[0].r2


def feedback_course(
    data: Images, seeds: Sequence[int], *, n_hidden: int, fitted: int = 70, held_out: int = 30
) -> FeedbackCourse:
    """Output-side score of feedback alignment in windows over its training, beside the condition for that geometry.

    Parameters
    ----------
    data : Images
        To train on.
    seeds : sequence of int
        Of the runs.
    n_hidden : int
        Hidden units.
    fitted, held_out : int
        Steps of a window.

    Returns
    -------
    FeedbackCourse

    Notes
    -----
    Section 11 (derived): an SPD matrix A with ``A B = W2^T`` exists iff ``W2 B`` is symmetric positive definite.
    """
    width = fitted + held_out
    rows = []
    for s in seeds:
        course = train(
            data, "feedback alignment", n_hidden=n_hidden, first=0, n_steps=_STARTS[-1] + width, seed=s
        )  # fmt: skip
        assert course.smallest is not None  # feedback alignment has them
        assert course.asymmetry is not None
        for start in _STARTS:
            at = slice(start, start + width)
            found = identify(
                grad=course.grad[at], update=course.update[at], family="kronecker-output",
                holdout=(held_out - 0.5) / width, rng=0,
            )  # fmt: skip
            rows.append((found.fits[0].r2, course.smallest[at].mean(), course.asymmetry[at].mean()))
    r2, smallest, asymmetry = np.array(rows).reshape(len(seeds), len(_STARTS), 3).transpose(2, 0, 1)
    return FeedbackCourse(np.array(_STARTS), r2, smallest, asymmetry)
