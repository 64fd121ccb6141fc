"""Feedback alignment in a two-layer linear network on handwritten digits, seen as natural gradient descent.

The network is ``f(x) = W2 W1 x``. Backpropagation sends the output error back through ``W2^T``; feedback
alignment through a fixed random matrix B. With ``E = mean(e x^T)``, e the output error and every mean over
the whole training set, the update is ``-rate * (W2^T E, E W1^T)`` for backpropagation and ``-rate * (B E, E
W1^T)`` for feedback alignment. Training descends on the full training set, so the gradient is the one that
the rule consumed (``gradient_source`` is ``rule``) and no angle is sampling noise: backpropagation is at 0
degrees, and the angle of feedback alignment is the geometry of the rule alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

import steepest
from steepest.experiments.digits import Digits
from steepest.experiments.output import name_panel, new_figure, write_csv, write_npz

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from steepest.analysis import Analysis, RunAnalysis

__all__ = ["LOSSES", "RULES", "FeedbackAlignment", "Training", "figure", "run", "train", "write"]

Array = NDArray[np.float64]
Loss = Literal["squared", "cross-entropy"]
Rule = Literal["feedback alignment", "backpropagation"]
Progress = Callable[[str, int, int], None]  # what is running, steps done, steps in all

LOSSES: tuple[Loss, ...] = ("squared", "cross-entropy")
RULES: tuple[Rule, ...] = ("feedback alignment", "backpropagation")
N_STEPS: dict[Loss, int] = {"squared": 3000, "cross-entropy": 600}
RATE: dict[Loss, float] = {"squared": 0.05, "cross-entropy": 0.2}

_CLASSES = 10
_ROWS = 4000  # images at a time: the block stays in cache between its two products
_ACCURACY_POINTS = 120
_POINTS = 10_000  # in a curve: a logarithmic axis shows the first steps one by one


@dataclass(frozen=True)
class Training:
    """One training run; entry t of an array belongs to step t, before its update.

    Attributes
    ----------
    rule, loss_name : str
    rate : float
        Learning rate.
    analysis : Analysis
        Of the recording of the run, with the blocks W1 and W2; the loss is the mean over the training set: half the
        squared error, or the cross-entropy in nats.
    feedback_angle : ndarray, shape (t,), float64
        Angle between W2^T and B in radians: the alignment of forward with feedback weights.
    accuracy_step : ndarray, shape (k,), int64
        Steps before which `accuracy` was measured; the last is one past the last step.
    accuracy : ndarray, shape (k,), float64
        Fraction of the test set classified correctly.
    final_loss, final_accuracy : float
        After the last update.
    """

    rule: str
    loss_name: str
    rate: float
    analysis: Analysis
    feedback_angle: Array
    accuracy_step: NDArray[np.int64]
    accuracy: Array
    final_loss: float
    final_accuracy: float

    @property
    def course(self) -> RunAnalysis:
        """The analysis of the one run."""
        return self.analysis["run"]

    @property
    def gradient_source(self) -> str:
        """``rule``: angles are against the full-batch gradient that the rule consumed."""
        return self.course.gradient_source

    @property
    def step(self) -> NDArray[np.int64]:
        """0, 1, ...: shape (t,)."""
        return self.course.step

    @property
    def loss(self) -> Array:
        """Mean loss before each step: shape (t,)."""
        return self.course["loss"]

    @property
    def angle(self) -> Array:
        """Angle psi between -gradient and update in radians, of all parameters as one vector: shape (t,)."""
        return self.course["psi"][:, 0]

    @property
    def angle_w1(self) -> Array:
        """The same of W1 alone: shape (t,)."""
        return self.course["psi"][:, 1]

    @property
    def angle_w2(self) -> Array:
        """The same of W2 alone: shape (t,)."""
        return self.course["psi"][:, 2]

    @property
    def status(self) -> NDArray[np.str_]:
        """``ok`` where a metric exists for all parameters: shape (t,)."""
        return self.course["status"][:, 0]

    @property
    def status_w1(self) -> NDArray[np.str_]:
        """The same for W1 alone: shape (t,)."""
        return self.course["status"][:, 1]

    @property
    def cond(self) -> Array:
        """Least condition number of a metric for all parameters; NaN where none exists: shape (t,)."""
        return self.course["cond_min"][:, 0]

    @property
    def n_without_metric(self) -> int:
        """Steps at which no metric exists for all parameters together."""
        return int(np.count_nonzero(self.status != "ok"))

    @property
    def n_without_metric_w1(self) -> int:
        """Steps at which no metric exists for the hidden layer by itself."""
        return int(np.count_nonzero(self.status_w1 != "ok"))

    def to_dict(self) -> dict[str, Any]:
        """Numbers and arrays by name."""
        names = "rule loss_name rate gradient_source step loss angle angle_w1 angle_w2 status status_w1 cond"
        names += " feedback_angle accuracy_step accuracy final_loss final_accuracy"
        return {name: getattr(self, name) for name in names.split()}


@dataclass(frozen=True)
class FeedbackAlignment:
    """Both rules under each loss, from the same initial weights.

    Attributes
    ----------
    dataset : str
    n_train, n_test, n_inputs, n_hidden : int
        Images, inputs (pixels and one constant) and hidden units.
    init_scale : float
    least_squares_accuracy : float
        Test accuracy of the closed-form minimiser of the squared loss.
    trainings : tuple of Training
    """

    dataset: str
    n_train: int
    n_test: int
    n_inputs: int
    n_hidden: int
    init_scale: float
    least_squares_accuracy: float
    trainings: tuple[Training, ...]

    def to_dict(self) -> dict[str, Any]:
        """Fields as a dictionary, trainings as a list of dictionaries, arrays as they are."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return own | {"trainings": [training.to_dict() for training in self.trainings]}


class _Objective(Protocol):
    """A loss of the linear map F, shape (classes, inputs), on the whole training set."""

    def __call__(self, F: Array) -> tuple[float, Array]:
        """The mean loss, and ``E = dL/dF = mean(e x^T)``."""
        ...


def _row_blocks(n_rows: int) -> Iterator[slice]:
    return (slice(first, first + _ROWS) for first in range(0, n_rows, _ROWS))


class _SquaredLoss:
    """Half the squared error to one-hot targets d: a function of second moments, so a step needs no pass."""

    def __init__(self, inputs: NDArray[np.float32], labels: NDArray[np.uint8]) -> None:
        n, n_inputs = inputs.shape
        self.xx = np.zeros((n_inputs, n_inputs))
        self.dx = np.zeros((_CLASSES, n_inputs))
        for rows in _row_blocks(n):
            x = inputs[rows].astype(np.float64)
            self.xx += x.T @ x
            self.dx += np.eye(_CLASSES)[labels[rows]].T @ x
        self.xx, self.dx = self.xx / n, self.dx / n

    def __call__(self, F: Array) -> tuple[float, Array]:
        F_xx = F @ self.xx
        # mean |F x - d|^2 = tr(F xx F^T) - 2 tr(F dx^T) + 1, since |d| = 1
        return 0.5 * (float(np.vdot(F_xx, F)) - 2.0 * float(np.vdot(self.dx, F)) + 1.0), F_xx - self.dx

    def minimiser(self) -> Array:
        """The least-squares map of minimum norm."""
        return np.asarray(np.linalg.lstsq(self.xx, self.dx.T, rcond=None)[0].T, dtype=np.float64)


class _CrossEntropy:
    """Softmax cross-entropy in nats: one pass over the training set."""

    def __init__(self, inputs: NDArray[np.float32], labels: NDArray[np.uint8]) -> None:
        self.inputs, self.labels = inputs, labels.astype(np.intp)

    def __call__(self, F: Array) -> tuple[float, Array]:
        n = len(self.inputs)
        weights = F.T.astype(np.float32)
        total, E = 0.0, np.zeros_like(F)
        for rows in _row_blocks(n):
            x, labels = self.inputs[rows], self.labels[rows]
            logits = x @ weights
            logits -= logits.max(axis=1, keepdims=True)
            own = np.arange(len(x)), labels
            error = np.exp(logits)
            normaliser = error.sum(axis=1, keepdims=True)
            total += float(np.log(normaliser).sum(dtype=np.float64) - logits[own].sum(dtype=np.float64))
            error /= normaliser
            error[own] -= 1.0
            E += error.T @ x
        return total / n, E / n


_OBJECTIVES: dict[Loss, type[_SquaredLoss | _CrossEntropy]] = {
    "squared": _SquaredLoss,
    "cross-entropy": _CrossEntropy,
}


def _inputs(digits: Digits) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Training and test pixels less the mean TRAINING image, and a constant 1 (the bias) behind them."""
    mean = digits.train_images.mean(axis=0, dtype=np.float64).astype(np.float32)
    train, test = (
        np.column_stack([images - mean, np.ones(len(images), dtype=np.float32)])
        for images in (digits.train_images, digits.test_images)
    )
    return train, test


def _accuracy(F: Array, inputs: NDArray[np.float32], labels: NDArray[np.uint8]) -> float:
    return float(np.mean(np.argmax(inputs @ F.T.astype(np.float32), axis=1) == labels))


def _angle(a: Array, b: Array) -> float:
    """Angle between two arrays as vectors, in radians, accurate near 0 and pi (Kahan)."""
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    return 2.0 * math.atan2(float(np.linalg.norm(a - b)), float(np.linalg.norm(a + b)))


def train(
    objective: _Objective,
    weights: tuple[Array, Array],
    feedback: Array,
    *,
    rule: Rule,
    loss_name: str,
    rate: float,
    n_steps: int,
    accuracy: Callable[[Array], float],
    progress: Progress | None = None,
) -> Training:
    """Train ``W2 W1 x`` by full-batch descent, record every step, and analyse the recording.

    Parameters
    ----------
    objective : callable
        ``objective(F) -> (loss, dL/dF)`` for ``F = W2 W1``, shape (classes, inputs).
    weights : (W1, W2)
        Initial weights, shapes (hidden, inputs) and (classes, hidden); not changed.
    feedback : ndarray, shape (hidden, classes)
        B, in the place of ``W2^T`` under feedback alignment.
    rule : {"feedback alignment", "backpropagation"}
        Where the error of the hidden layer comes from.
    loss_name : str
        Kept with the result.
    rate : float
        Learning rate.
    n_steps : int
        Number of updates.
    accuracy : callable
        ``accuracy(F) -> float`` on held-out data.
    progress : callable, optional
        Called as ``progress(text, done, total)``.

    Returns
    -------
    Training

    Raises
    ------
    ValueError
        Unknown rule; `rate` or `n_steps` not positive; the loss diverged.
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {RULES}, got {rule!r}")
    if not rate > 0.0 or n_steps < 1:
        raise ValueError(f"rate and n_steps must be positive, got rate = {rate}, n_steps = {n_steps}")
    W1, W2 = (array.copy() for array in weights)
    # Equally spaced in the logarithm of the step: most of the change is early.
    measured = np.unique(np.geomspace(1, n_steps, _ACCURACY_POINTS).round().astype(np.int64))
    feedback_angle = np.empty(n_steps)
    recorder = steepest.Recorder(objective="fixed")
    accuracies = []
    due = set(measured.tolist())
    for t in range(n_steps):
        F = W2 @ W1
        loss, E = objective(F)
        if not math.isfinite(loss):
            raise ValueError(f"{rule} diverged at step {t + 1} ({loss_name} loss): lower the rate, now {rate}")
        if t + 1 in due:
            accuracies.append(accuracy(F))
        grad = {"W1": W2.T @ E, "W2": E @ W1.T}
        backward = feedback if rule == "feedback alignment" else W2.T
        update = {"W1": -rate * (backward @ E), "W2": -rate * grad["W2"]}

        recorder.step(params={"W1": W1, "W2": W2}, loss=loss, grad=grad, update=update)
        feedback_angle[t] = _angle(W2.T, feedback)

        W1 += update["W1"]
        W2 += update["W2"]
        if progress is not None:
            progress(f"{rule}, {loss_name} loss", t + 1, n_steps)
    F = W2 @ W1
    final_loss, final_accuracy = objective(F)[0], accuracy(F)
    return Training(
        rule=rule,
        loss_name=loss_name,
        rate=rate,
        analysis=steepest.analyze(recorder),
        feedback_angle=feedback_angle,
        accuracy_step=np.append(measured - 1, n_steps),
        accuracy=np.append(accuracies, final_accuracy),
        final_loss=final_loss,
        final_accuracy=final_accuracy,
    )


def run(
    digits: Digits,
    *,
    losses: Sequence[Loss] = LOSSES,
    n_hidden: int = 64,
    step_fraction: float = 1.0,
    init_scale: float = 0.1,
    rng: np.random.Generator | int | None = None,
    progress: Progress | None = None,
) -> FeedbackAlignment:
    """Train by feedback alignment and by backpropagation, from the same weights, under each loss.

    Parameters
    ----------
    digits : Digits
        Pixels are centred by the mean training image, and a constant input is added.
    losses : sequence of {"squared", "cross-entropy"}
        Half the squared error to one-hot targets; softmax cross-entropy.
    n_hidden : int
        Hidden units.
    step_fraction : float
        Fraction of the full-batch steps to take: of 3000 at rate 0.05 for the squared loss, of 600 at rate
        0.2 for cross-entropy.
    init_scale : float
        The weights start as Gaussian with standard deviation ``init_scale/sqrt(fan-in)``; B has
        ``1/sqrt(hidden)``. Small weights leave the forward path free to align with the feedback.
    rng : Generator or int, optional
        Draws the initial weights and B.
    progress : callable, optional
        Called as ``progress(text, done, total)``.

    Returns
    -------
    FeedbackAlignment

    Raises
    ------
    ValueError
        Unknown loss, a number that is not positive, or a loss that diverges.

    Notes
    -----
    A step costs O(classes * inputs^2) under the squared loss, whose full batch enters through its second moments, and
    O(classes * inputs * images) under cross-entropy.

    Examples
    --------
    >>> from steepest.experiments.digits import load_digits
    >>> result = run(load_digits(rng=0), losses=["squared"], step_fraction=0.1, rng=0)
    >>> aligned = result.trainings[0]
    >>> aligned.rule, bool(aligned.angle[-1] < 0.5 * aligned.angle[0])
    ('feedback alignment', True)
    """
    unknown = [name for name in losses if name not in _OBJECTIVES]
    if unknown:
        raise ValueError(f"losses must be among {LOSSES}, got {unknown}")
    for number_name, number in (
        ("n_hidden", n_hidden),
        ("step_fraction", step_fraction),
        ("init_scale", init_scale),
    ):
        if not number > 0:
            raise ValueError(f"{number_name} must be positive, got {number}")
    train_inputs, test_inputs = _inputs(digits)
    n_inputs = train_inputs.shape[1]
    generator = np.random.default_rng(rng)
    W1 = generator.standard_normal((n_hidden, n_inputs)) * init_scale / math.sqrt(n_inputs)
    W2 = generator.standard_normal((_CLASSES, n_hidden)) * init_scale / math.sqrt(n_hidden)
    feedback = generator.standard_normal((n_hidden, _CLASSES)) / math.sqrt(n_hidden)

    def accuracy(F: Array) -> float:
        return _accuracy(F, test_inputs, digits.test_labels)

    squared = _SquaredLoss(train_inputs, digits.train_labels)
    trainings = []
    for name in losses:
        objective: _Objective = squared if name == "squared" else _OBJECTIVES[name](train_inputs, digits.train_labels)
        trainings += [
            train(
                objective,
                (W1, W2),
                feedback,
                rule=rule,
                loss_name=name,
                rate=RATE[name],
                n_steps=max(round(step_fraction * N_STEPS[name]), 1),
                accuracy=accuracy,
                progress=progress,
            )
            for rule in RULES
        ]
    return FeedbackAlignment(
        dataset=digits.name,
        n_train=len(train_inputs),
        n_test=len(test_inputs),
        n_inputs=n_inputs,
        n_hidden=n_hidden,
        init_scale=init_scale,
        least_squares_accuracy=accuracy(squared.minimiser()),
        trainings=tuple(trainings),
    )


def write(result: FeedbackAlignment, folder: Path) -> list[Path]:
    """Write ``feedback_alignment.npz`` and ``feedback_alignment.csv`` (rows: run, step) to `folder`."""
    fields = result.to_dict()
    arrays = {name: value for name, value in fields.items() if name != "trainings"}
    columns: dict[str, list[Any]] = {}
    for training in result.trainings:
        prefix = f"{training.rule}_{training.loss_name}".replace(" ", "_").replace("-", "_")
        arrays |= {f"{prefix}_{name}": value for name, value in training.to_dict().items()}
        accuracy = np.full(len(training.step), math.nan)
        accuracy[training.accuracy_step[:-1]] = training.accuracy[:-1]
        n_rows = len(training.step)
        rows: dict[str, Any] = {
            "loss_name": [training.loss_name] * n_rows,
            "rule": [training.rule] * n_rows,
            "gradient_source": [training.gradient_source] * n_rows,
            "step": training.step,
            "loss": training.loss,
            "test_accuracy": accuracy,
            "psi_deg": np.degrees(training.angle),
            "psi_w1_deg": np.degrees(training.angle_w1),
            "psi_w2_deg": np.degrees(training.angle_w2),
            "cond": training.cond,
            "status": training.status,
            "status_w1": training.status_w1,
            "feedback_angle_deg": np.degrees(training.feedback_angle),
        }
        for name, values in rows.items():
            columns.setdefault(name, []).extend(np.asarray(values).tolist())
    return [
        write_npz(folder / "feedback_alignment.npz", arrays),
        write_csv(folder / "feedback_alignment.csv", columns),
    ]


def figure(result: FeedbackAlignment) -> Figure:
    """One row of panels per loss: training loss, test accuracy, angles, least condition number.

    Returns
    -------
    Figure

    Raises
    ------
    ImportError
        matplotlib is not installed: ``pip install "steepest[experiments]"``.
    """
    from steepest import plot
    from steepest.plot.style import GREEN, GREY, STYLE, import_matplotlib, line_style

    names = list(dict.fromkeys(training.loss_name for training in result.trainings))
    with import_matplotlib().rc_context(STYLE):
        fig = new_figure(10.0, 2.6 * len(names))
        grid = fig.subplots(len(names), 4, squeeze=False)
        for (loss, accuracy, angle, cond), name in zip(grid, names, strict=True):
            trainings = {training.rule: training for training in result.trainings if training.loss_name == name}
            runs = steepest.Analysis({rule: training.course for rule, training in trainings.items()})
            aligned = trainings["feedback alignment"]

            plot.loss(runs, loss, max_points=_POINTS)
            unit = "nats" if name == "cross-entropy" else "half squared error"
            loss.set(ylabel=f"training loss ({unit})", title=f"{name} loss, {result.dataset}", yscale="linear")
            loss.set_ylim(bottom=0)

            for position, training in enumerate(trainings.values()):
                accuracy.plot(training.accuracy_step, 100 * training.accuracy, **line_style(position))
            if name == "squared":
                accuracy.axhline(100 * result.least_squares_accuracy, color=GREY, linewidth=0.8, linestyle=":")
                accuracy.annotate(
                    "least squares", (1.0, 100 * result.least_squares_accuracy), xytext=(2, 2),
                    textcoords="offset points", color=GREY, fontsize=7,
                )  # fmt: skip
            accuracy.set(ylabel="correct (%)", ylim=(0, 100), title="test accuracy")

            plot.angle(runs, angle, runs=("feedback alignment",), blocks=None, max_points=_POINTS)
            angle.plot(
                aligned.step, np.degrees(aligned.feedback_angle), color=GREEN, linestyle=(0, (6, 1.5, 1, 1.5)),
                label=r"$W_2^{\mathsf{T}}$ from $B$",
            )  # fmt: skip
            handles, labels = angle.get_legend_handles_labels()  # the first is the band of chance, of the caption
            angle.legend(
                handles[1:],
                labels[1:],
                loc="center left",
                bbox_to_anchor=(0.0, 0.2),
                labelspacing=0.2,
                handlelength=2.2,
            )
            angle.set_title("", loc="left")
            angle.set(ylabel="angle (degrees)", ylim=(-3, 100), title=r"feedback alignment: $\psi$ to −gradient")

            plot.cond(runs, cond, max_points=_POINTS)
            top = float(np.nanmax(aligned.cond, initial=10.0))
            cond.set(ylabel="least condition number", ylim=(0.7, 4 * top), yscale="log", title="condition number")
            if cond.get_legend() is not None:
                cond.get_legend().remove()
            cond.annotate(
                f"steps without a metric:\n{aligned.n_without_metric} of {len(aligned.step)} (all weights)\n"
                f"{aligned.n_without_metric_w1} of {len(aligned.step)} ($W_1$ alone)", (1.0, 0.93),
                xycoords="axes fraction", ha="right", va="top", fontsize=7,
            )  # fmt: skip
            for panel in (loss, accuracy, angle, cond):
                panel.set(xlabel="step", xscale="log", xlim=(1, max(len(aligned.step) - 1, 2)))
        for letter, panel in zip("abcdefgh", grid.ravel(), strict=False):
            name_panel(panel, letter)
    return fig
