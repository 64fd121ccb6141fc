"""SGD, Adam and the ballistic rule on a ReLU network for digits, tracked: loss, angle to the gradient, conditioning.

Figure 2e of Vastola, Gershman and Rajan (2025): a 784-512-256-10 network, mini-batches of 128, cross-entropy; SGD at
rate 0.1, AdamW at 0.001, ballistic at 0.0005 with decay 0.999. There it is trained for ten epochs; here for two by
default. Not in the source, and so ours: pixels are in [0, 1]; AdamW has weight decay 0 (it is Adam then); weights start
as PyTorch's layers do, the same for all rules, and all see the same mini-batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import steepest
from steepest.experiments.digits import Digits
from steepest.experiments.output import name_panel, new_figure, write_csv, write_npz

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from steepest.analysis import Analysis, RunAnalysis

__all__ = ["RULES", "Comparison", "Training", "ballistic_optimizer", "figure", "run", "write"]

Array = NDArray[np.float64]
Progress = Callable[[str, int, int], None]

#: Rules and their learning rates.
RULES = {"SGD": 0.1, "Adam": 1e-3, "ballistic": 5e-4}
_DECAY, _EPSILON = 0.999, 1e-8
_CLASSES = 10


@dataclass(frozen=True)
class Training:
    """One rule; entry t of an array belongs to the t-th recorded step, before its update.

    Attributes
    ----------
    rule : str
    rate : float
        Learning rate.
    analysis : Analysis
        Runs ``mini-batch``, against the gradient that the rule consumed, and ``evaluation``, against the gradient on a
        fixed part of the training set; blocks are the arrays of the network.
    accuracy : ndarray, shape (t,)
        Share of test images classified correctly.
    own_cond : ndarray, shape (t,)
        Condition number of the rule's own diagonal metric at the step; 1 for SGD, NaN for Adam, whose metric maps its
        mean of gradients to the update, and not the gradient.
    final_accuracy : float
        After the last update.
    """

    rule: str
    rate: float
    analysis: Analysis
    accuracy: Array
    own_cond: Array
    final_accuracy: float

    @property
    def consumed(self) -> RunAnalysis:
        """Against the gradient of the mini-batch."""
        return self.analysis["mini-batch"]

    @property
    def evaluated(self) -> RunAnalysis:
        """Against the gradient on fixed images."""
        return self.analysis["evaluation"]

    def to_dict(self) -> dict[str, Any]:
        """Numbers and arrays by name."""
        found: dict[str, Any] = {"rule": self.rule, "rate": self.rate, "step": self.evaluated.step}
        for name, course in (("consumed", self.consumed), ("evaluated", self.evaluated)):
            found |= {
                f"{name}_loss": course["loss"],
                f"{name}_psi": course["psi"][:, 0],
                f"{name}_cond": course["cond_min"][:, 0],
                f"{name}_status": course["status"][:, 0],
            }
        return found | {name: getattr(self, name) for name in ("accuracy", "own_cond", "final_accuracy")}


@dataclass(frozen=True)
class Comparison:
    """All rules, from the same weights.

    Attributes
    ----------
    dataset : str
    layers : tuple of int
        Inputs, hidden units, outputs.
    epochs, batch, n_steps, n_evaluation : int
        Passes over the training set, images in a mini-batch, updates, images in the fixed part.
    trainings : tuple of Training
    """

    dataset: str
    layers: tuple[int, ...]
    epochs: int
    batch: int
    n_steps: int
    n_evaluation: int
    trainings: tuple[Training, ...]

    def to_dict(self) -> dict[str, Any]:
        """Fields as a dictionary, trainings as a list of dictionaries."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return own | {"trainings": [training.to_dict() for training in self.trainings]}


def ballistic_optimizer(params: Any, lr: float = 5e-4, decay: float = 0.999, epsilon: float = 1e-8) -> Any:
    """The ballistic rule as a `torch.optim.Optimizer`; the same updates as `steepest.rules.Ballistic`.

    Parameters
    ----------
    params : iterable of Tensor
        As of any optimiser.
    lr, decay, epsilon : float
        As of `steepest.rules.Ballistic`.

    Returns
    -------
    torch.optim.Optimizer
        Whose state of a parameter is ``square``.

    Raises
    ------
    ImportError
        PyTorch is not installed: ``pip install "steepest[torch]"``.
    """
    torch = _torch()

    class _Ballistic(torch.optim.Optimizer):  # type: ignore[misc, name-defined] # torch may be missing
        def __init__(self, params: Any, **defaults: float) -> None:
            super().__init__(params, defaults)

        @torch.no_grad()  # type: ignore[untyped-decorator]
        def step(self, closure: Any = None) -> Any:
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is None:
                        continue
                    square = self.state[p].setdefault("square", torch.zeros_like(p))
                    square.mul_(group["decay"]).add_((1.0 - group["decay"]) * (p.grad * p.grad))
                    p.sub_(group["lr"] * p.grad / (square + group["epsilon"]).sqrt())
            return loss

    return _Ballistic(params, lr=lr, decay=decay, epsilon=epsilon)


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError('this experiment needs PyTorch: pip install "steepest[torch]"') from error
    return torch


def _optimizer(rule: str, params: Any) -> Any:
    torch = _torch()
    if rule == "SGD":
        return torch.optim.SGD(params, lr=RULES[rule])
    if rule == "Adam":
        return torch.optim.AdamW(params, lr=RULES[rule], weight_decay=0.0)
    return ballistic_optimizer(params, RULES[rule], _DECAY, _EPSILON)


def _own_cond(rule: str, optimizer: Any) -> float:
    if rule != "ballistic":
        return 1.0 if rule == "SGD" else math.nan
    ends = [(float(state["square"].min()), float(state["square"].max())) for state in optimizer.state.values()]
    return math.sqrt((max(high for _, high in ends) + _EPSILON) / (min(low for low, _ in ends) + _EPSILON))


def _train(
    digits: Digits,
    rule: str,
    hidden: Sequence[int],
    *,
    epochs: int,
    batch: int,
    every: int,
    n_evaluation: int,
    seed: int,
    progress: Progress | None,
) -> Training:
    torch = _torch()
    from steepest.torch import track

    sizes = (digits.train_images.shape[1], *hidden, _CLASSES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = []
        for n, m in pairwise(sizes):
            layers += [torch.nn.Linear(n, m), torch.nn.ReLU()]
        model = torch.nn.Sequential(*layers[:-1])
    images, test = torch.from_numpy(digits.train_images), torch.from_numpy(digits.test_images)
    labels, test_labels = (torch.from_numpy(x.astype(np.int64)) for x in (digits.train_labels, digits.test_labels))
    cross_entropy = torch.nn.functional.cross_entropy
    order = np.random.default_rng([seed, 1])
    fixed = torch.from_numpy(np.random.default_rng([seed, 2]).permutation(len(images))[:n_evaluation])

    def accuracy() -> float:
        with torch.no_grad():
            return float((model(test).argmax(dim=1) == test_labels).double().mean())

    optimizer = _optimizer(rule, model.parameters())
    per_epoch = len(images) // batch
    accuracies, own, done = [], [], 0
    with (
        track(optimizer, model, every=every) as consumed,
        track(
            optimizer, model, every=every, evaluate=lambda: cross_entropy(model(images[fixed]), labels[fixed])
        ) as fix,
    ):
        for _ in range(epochs):
            shuffled = torch.from_numpy(order.permutation(len(images)))
            for chosen in shuffled[: per_epoch * batch].split(batch):
                if done % every == 0:
                    accuracies.append(accuracy())
                optimizer.zero_grad()
                consumed.loss(cross_entropy(model(images[chosen]), labels[chosen])).backward()
                optimizer.step()
                if done % every == 0:
                    own.append(_own_cond(rule, optimizer))
                done += 1
                if progress is not None:
                    progress(rule, done, epochs * per_epoch)
        found = {"mini-batch": consumed.recording(), "evaluation": fix.recording()}
    return Training(rule, RULES[rule], steepest.analyze(found), np.array(accuracies), np.array(own), accuracy())


def run(
    digits: Digits,
    *,
    hidden: Sequence[int] = (512, 256),
    epochs: int = 2,
    batch: int = 128,
    every: int = 10,
    n_evaluation: int = 2000,
    rng: np.random.Generator | int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Train by each rule, record every so many steps against two gradients, and analyse the recordings.

    Parameters
    ----------
    digits : Digits
        MNIST, or smaller images.
    hidden : sequence of int
        Hidden units of each layer.
    epochs, batch : int
        Passes over the training set; images in a mini-batch.
    every : int
        Steps from one recorded step to the next.
    n_evaluation : int
        Images of the training set, at most all, whose gradient the second recording is against.
    rng : Generator or int, optional
        Seeds the weights, the mini-batches and the choice of the fixed images.
    progress : callable, optional
        Called as ``progress(text, done, total)``.

    Returns
    -------
    Comparison

    Raises
    ------
    ImportError
        PyTorch is not installed: ``pip install "steepest[torch]"``.
    ValueError
        A number is not positive, or there are fewer images than a mini-batch has.
    """
    if min(epochs, batch, every, n_evaluation, *hidden) < 1 or len(digits.train_images) < batch:
        raise ValueError(
            f"expected positive numbers and at least batch = {batch} training images, got epochs={epochs}, "
            f"every={every}, n_evaluation={n_evaluation}, {len(digits.train_images)} images"
        )
    _torch()
    seed = int(np.random.default_rng(rng).integers(2**31))
    n_evaluation = min(n_evaluation, len(digits.train_images))
    trainings = tuple(
        _train(
            digits, rule, hidden, epochs=epochs, batch=batch, every=every, n_evaluation=n_evaluation, seed=seed,
            progress=progress,
        )
        for rule in RULES
    )  # fmt: skip
    layers = (digits.train_images.shape[1], *hidden, _CLASSES)
    n_steps = epochs * (len(digits.train_images) // batch)
    return Comparison(digits.name, layers, epochs, batch, n_steps, n_evaluation, trainings)


def write(result: Comparison, folder: Path) -> list[Path]:
    """Write ``ballistic.npz`` and ``ballistic.csv`` (a row for each rule and recorded step) to `folder`."""
    arrays = {name: value for name, value in result.to_dict().items() if name != "trainings"}
    columns: dict[str, list[Any]] = {}
    for training in result.trainings:
        values = training.to_dict()
        arrays |= {f"{training.rule}_{name}": value for name, value in values.items()}
        for name, value in values.items():
            if name != "final_accuracy":
                whole = value if isinstance(value, np.ndarray) else [value] * len(values["step"])
                columns.setdefault(name, []).extend(np.asarray(whole).tolist())
    return [write_npz(folder / "ballistic.npz", arrays), write_csv(folder / "ballistic.csv", columns)]


def figure(result: Comparison) -> Figure:
    """Loss and accuracy; angle and least condition number against mini-batch and fixed gradients.

    Parameters
    ----------
    result : Comparison
        Of `run`.

    Returns
    -------
    Figure
        Triangles mark steps along which the loss rises; the band is where 95% of random updates would lie. The axis of
        condition numbers ends at 1e5.

    Raises
    ------
    ImportError
        matplotlib is not installed: ``pip install "steepest[experiments]"``.
    """
    from steepest import plot
    from steepest.plot.style import STYLE, import_matplotlib, line_style

    def runs(name: str) -> Analysis:
        return steepest.Analysis({training.rule: training.analysis[name] for training in result.trainings})

    with import_matplotlib().rc_context(STYLE):
        fig = new_figure(10.0, 5.2)
        grid = fig.subplots(2, 3)
        (loss, angle_consumed, cond_consumed), (accuracy, angle, cond) = grid
        plot.loss(runs("evaluation"), loss)
        loss.set(ylabel="loss (nats)", title=f"{result.n_evaluation} fixed images of {result.dataset}", yscale="log")
        for position, training in enumerate(result.trainings):
            style = line_style(position)
            accuracy.plot(training.evaluated.step, 100 * training.accuracy, **style)
            if training.rule == "ballistic":
                course = training.consumed.step, training.own_cond
                cond_consumed.plot(*course, color=style["color"], linewidth=0.8, label="ballistic, its own metric")
        highest = max(float(training.accuracy.max()) for training in result.trainings)
        accuracy.set(ylabel="correct (%)", ylim=(100 * highest - 20, 100), title="test accuracy")
        for name, psi, least, of in (
            ("mini-batch", angle_consumed, cond_consumed, "its mini-batch"),
            ("evaluation", angle, cond, "the fixed images"),
        ):
            plot.angle(runs(name), psi)
            psi.set_title("", loc="left")
            psi.set(ylabel=r"$\psi$ (degrees)", ylim=(-3, 100), title=f"angle to the gradient of {of}")
            plot.cond(runs(name), least)
            least.set(ylabel="condition number", yscale="log", ylim=(0.7, 1e5), title=f"least, for {of}")
        for panel in grid.ravel():
            panel.set(xlabel="step", xlim=(0, result.n_steps))
            if panel.get_legend() is not None:
                panel.get_legend().remove()
        loss.set_ylim(bottom=0.2 * loss.get_ylim()[0])  # room for the legend
        loss.legend(fontsize=7, loc="lower left")
        handles, labels = cond_consumed.get_legend_handles_labels()
        own = [(handle, label) for handle, label in zip(handles, labels, strict=True) if "own" in label]
        cond_consumed.legend(*zip(*own, strict=True), fontsize=7, loc="upper right")
        for letter, panel in zip("abcdef", grid.ravel(), strict=True):
            name_panel(panel, letter)
    return fig
