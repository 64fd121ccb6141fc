"""Continual learning: the derived reset rule on tasks that switch, digits whose labels are permuted anew each time.

Two learners. A *linear* one, ``F x`` under the squared loss with full-batch gradients, keeps every assumption of the
derivation: all tasks have the same Hessian, and the mean of their optima is known (every label equally likely). There
the rule is compared in the cost that it is derived for, ``int e^{-gamma t} (|theta'|^2/(2 eta) + k loss) dt``, in which
moving is not free. A *ReLU network* with cross-entropy and mini-batches keeps none of them: the curvature is an
estimate, the initial weights stand for the mean of the optima, and what counts is the loss alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from steepest.experiments.digits import Digits
from steepest.experiments.output import name_panel, new_figure, write_csv, write_npz
from steepest.experiments.switching_regression import DT, HAZARDS, POLICIES, SINCE, LinearTasks, compare
from steepest.rules import FlatPrior, LayeredNetwork, Reset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["HAZARDS", "POLICIES", "Continual", "Interval", "NetworkTasks", "figure", "run", "write"]

Array = NDArray[np.float64]
Progress = Callable[[str, int, int], None]

_CLASSES = 10

# The network, in steps.
_PERIOD, _BATCH, _HIDDEN, _BLOCK = 150, 16, 32, 10
_RATES = (0.05, 0.1, 0.2, 0.4)
_NETWORK_DECAYS = (0.003, 0.01, 0.03)
_FLOOR = 1e-6  # least curvature


@dataclass(frozen=True)
class Interval:
    """A mean over independent streams with its 95% interval (Student's t).

    Attributes
    ----------
    mean, low, high : float
    """

    mean: float
    low: float
    high: float

    @staticmethod
    def of(samples: Array) -> Interval:
        """Of independent numbers.

        Parameters
        ----------
        samples : ndarray, shape (n,)
            At least two.

        Returns
        -------
        Interval
            Symmetric about the mean.
        """
        n, mean = len(samples), float(np.mean(samples))
        half = float(scipy.stats.t.ppf(0.975, n - 1) * np.std(samples, ddof=1)) / math.sqrt(n)
        return Interval(mean, mean - half, mean + half)


@dataclass(frozen=True)
class NetworkTasks:
    """Results of the ReLU network; the same streams for every policy, each at its own best rate on other streams.

    Attributes
    ----------
    rate : dict, float
        Of each policy, chosen by the loss.
    decay : float
        Of the tuned decay, per step.
    loss, accuracy : dict, ndarray, shape (streams,)
        Of each policy: mean over the stream, each mini-batch before it is learned.
    after_switch : dict, ndarray, shape (blocks,)
        Of each policy: mean accuracy by number of steps since the last switch, in blocks of 10.
    """

    rate: dict[str, float]
    decay: float
    loss: dict[str, Array]
    accuracy: dict[str, Array]
    after_switch: dict[str, Array]


@dataclass(frozen=True)
class Continual:
    """Both learners.

    Attributes
    ----------
    dataset : str
    linear : LinearTasks
    network : NetworkTasks
    """

    dataset: str
    linear: LinearTasks
    network: NetworkTasks

    def to_dict(self) -> dict[str, Any]:
        """Arrays and numbers by name; those of policies as ``linear_cost_derived_reset``."""
        found: dict[str, Any] = {"dataset": self.dataset, "hazards": np.array(HAZARDS)}
        for part in ("linear", "network"):
            result = getattr(self, part)
            for field in fields(result):
                value = getattr(result, field.name)
                named = value.items() if isinstance(value, dict) else [("", value)]
                for policy, x in named:
                    found["_".join(filter(None, (part, field.name, policy.replace(" ", "_"))))] = x
        return found


def _network_stream(
    digits: Digits, policy: str, rate: float, decay: float, n_steps: int, rng: np.random.Generator
) -> tuple[Array, Array, Array]:
    """Loss and accuracy of each mini-batch before it is learned, and the number of steps since the last switch."""
    net = LayeredNetwork("relu", "cross-entropy")
    inputs = digits.train_images - digits.train_images.mean(axis=0)
    n_inputs = inputs.shape[1]
    start = {
        "W1": rng.standard_normal((_HIDDEN, n_inputs)) * math.sqrt(2.0 / n_inputs),
        "b1": np.zeros(_HIDDEN),
        "W2": rng.standard_normal((_CLASSES, _HIDDEN)) / math.sqrt(_HIDDEN),
        "b2": np.zeros(_CLASSES),
    }
    # Time in steps, eta k = rate^2: at gamma = 0 the ballistic step is rate m/sqrt(curvature).
    rule = Reset(start, hazard=1.0 / _PERIOD if policy == "derived reset" else 0.0, dt=1.0, eta=rate**2)
    moments = FlatPrior(0.9, 0.99)
    state, belief, params = rule.init(start), moments.init(start), start
    labels, since = rng.permutation(_CLASSES), 0
    found = np.empty((3, n_steps))
    for t in range(n_steps):
        batch = rng.integers(len(inputs), size=_BATCH)
        wanted = labels[digits.train_labels[batch]]
        guessed = net.outputs(params, inputs[batch]).argmax(axis=1)
        loss, grad = net.backpropagation(params, inputs[batch], np.eye(_CLASSES)[wanted])
        found[:, t] = loss, np.mean(guessed == wanted), since
        belief = moments.update(grad, belief)
        # Fisher of one example: its gradients are _BATCH times as variable as their mean over a batch.
        curvature = {name: _BATCH * square + _FLOOR for name, square in belief.square.items()}
        update, state = rule.update(belief.mean, state, params, curvature=curvature)
        shrink = decay if policy == "tuned decay" else 0.0
        params = {name: x + update[name] - shrink * (x - start[name]) for name, x in params.items()}
        since += 1
        if rng.random() < 1.0 / _PERIOD:
            labels, since = rng.permutation(_CLASSES), 0
            if policy == "full reset":
                params, belief = start, moments.init(start)
    return found[0], found[1], found[2]


def _network(digits: Digits, n: int, n_steps: int, seed: int, progress: Progress | None) -> NetworkTasks:
    settings = {policy: [(rate, 0.0) for rate in _RATES] for policy in POLICIES}
    settings["tuned decay"] = [(rate, decay) for rate in _RATES for decay in _NETWORK_DECAYS]
    total, done = 2 * sum(map(len, settings.values())) + len(POLICIES) * n, 0

    def stream(policy: str, rate: float, decay: float, number: int, steps: int) -> tuple[Array, Array, Array]:
        nonlocal done
        found = _network_stream(digits, policy, rate, decay, steps, np.random.default_rng([seed, number]))
        done += 1
        if progress is not None:
            progress("ReLU network", done, total)
        return found

    chosen, loss, accuracy, after = {}, {}, {}, {}
    for policy in POLICIES:
        tried = {
            setting: np.mean([stream(policy, *setting, 1000 + i, n_steps // 2)[0].mean() for i in range(2)])
            for setting in settings[policy]
        }
        chosen[policy] = min(tried, key=lambda setting: float(tried[setting]))
        runs = [stream(policy, *chosen[policy], i, n_steps) for i in range(n)]
        loss[policy] = np.array([run[0].mean() for run in runs])
        accuracy[policy] = np.array([run[1].mean() for run in runs])
        correct, since = (np.concatenate([run[i] for run in runs]) for i in (1, 2))
        blocks = [correct[(since >= b) & (since < b + _BLOCK)] for b in range(0, _PERIOD, _BLOCK)]
        after[policy] = np.array([block.mean() if len(block) else math.nan for block in blocks])
    rates = {policy: setting[0] for policy, setting in chosen.items()}
    return NetworkTasks(rates, chosen["tuned decay"][1], loss, accuracy, after)


def run(
    digits: Digits,
    *,
    n_streams: int = 60,
    n_network_streams: int = 10,
    step_fraction: float = 1.0,
    rng: np.random.Generator | int | None = None,
    progress: Progress | None = None,
) -> Continual:
    """Compare the policies on streams of tasks with permuted labels.

    Parameters
    ----------
    digits : Digits
        The images; the linear learner sees all training images at each step, the network 16.
    n_streams, n_network_streams : int
        Independent streams of tasks for the two learners, at least 2.
    step_fraction : float
        Fraction of the steps to take: of 600 (60 units of time, 12 switches on average; the discount then is e^-6) and
        of 1500 (10 switches).
    rng : Generator or int, optional
        Seeds all streams.
    progress : callable, optional
        Called as ``progress(text, done, total)``.

    Returns
    -------
    Continual

    Raises
    ------
    ValueError
        Fewer than two streams, or a fraction that is not positive.

    Notes
    -----
    The derived rule is told the true hazard, and nothing of it is tuned for its sake; the decay of "tuned decay" is, by
    the cost (linear) or the loss (network) on other streams. "Full reset" is told when a task has switched. In the
    network each policy has its own best learning rate of four.

    Examples
    --------
    >>> from steepest.experiments import continual
    >>> from steepest.experiments.digits import load_digits
    >>> result = continual.run(load_digits(rng=0), n_streams=8, n_network_streams=2, step_fraction=0.1, rng=0)
    >>> sorted(result.linear.cost) == sorted(continual.POLICIES)
    True
    """
    if n_streams < 2 or n_network_streams < 2 or not step_fraction > 0.0:
        came = f"{n_streams}, {n_network_streams}, {step_fraction}"
        raise ValueError(f"expected at least 2 streams of each and a positive fraction, got {came}")
    seed = int(np.random.default_rng(rng).integers(2**31))
    linear = compare(digits, n_streams, max(round(600 * step_fraction), 40), seed, progress)
    network = _network(digits, n_network_streams, max(round(1500 * step_fraction), 40), seed, progress)
    return Continual(digits.name, linear, network)


def write(result: Continual, folder: Path) -> list[Path]:
    """Write ``continual.npz`` and ``continual.csv`` (a row for each learner, policy and stream) to `folder`."""
    columns: dict[str, list[Any]] = {name: [] for name in ("learner", "policy", "stream", "cost", "loss", "accuracy")}
    for learner, tasks in (("linear", result.linear), ("network", result.network)):
        for policy in POLICIES:
            for i, loss in enumerate(tasks.loss[policy]):
                cost = tasks.cost[policy][i] if isinstance(tasks, LinearTasks) else math.nan
                row = (learner, policy, i, float(cost), float(loss), float(tasks.accuracy[policy][i]))
                for column, value in zip(columns.values(), row, strict=True):
                    column.append(value)
    return [write_npz(folder / "continual.npz", result.to_dict()), write_csv(folder / "continual.csv", columns)]


def figure(result: Continual) -> Figure:
    """Two rows, linear learner and network: the quantities that are compared, and their course after a switch.

    Parameters
    ----------
    result : Continual
        Of `run`.

    Returns
    -------
    Figure
        Bars are 95% intervals of paired differences over streams; beside the names stand the means.

    Raises
    ------
    ImportError
        matplotlib is not installed: ``pip install "steepest[experiments]"``.
    """
    from steepest.plot.style import GREY, STYLE, import_matplotlib, line_style

    linear, network = result.linear, result.network
    styles = {policy: line_style(i) for i, policy in enumerate(POLICIES)}

    def draw(panel: Any, samples: dict[str, Array], unit: float | None, form: str) -> None:
        """Paired differences from the derived rule, in percent of its mean or in `unit`; means beside the names."""
        own = samples[POLICIES[0]]
        scale = 100.0 / float(own.mean()) if unit is None else unit
        change = {policy: Interval.of(scale * (samples[policy] - own)) for policy in POLICIES}
        reach = 3.0 * abs(change["no reset"].mean)
        for place, (policy, found) in enumerate(change.items()):
            colour = styles[policy]["color"]
            if found.low > reach:  # would leave no room for the others
                text, at = f"{found.mean:.0f} ± {found.high - found.mean:.0f} \u2192", (0.98, place)
                where = ("axes fraction", "data")
                panel.annotate(text, at, xycoords=where, ha="right", va="center", fontsize=8, color=colour)
            else:
                half = found.high - found.mean
                panel.errorbar(found.mean, place, xerr=half, fmt="o", markersize=4, capsize=2, color=colour)
        panel.axvline(0.0, color=GREY, linewidth=0.8, linestyle=":")
        names = [f"{policy}\n{format(float(x.mean()), form)}" for policy, x in samples.items()]
        panel.set(yticks=range(len(POLICIES)), yticklabels=names, ylim=(len(POLICIES) - 0.5, -0.5))

    with import_matplotlib().rc_context(STYLE):
        fig = new_figure(10.0, 5.2)
        grid = fig.subplots(2, 3)
        (assumed, cost, after), (loss, accuracy, after_network) = grid

        reference = linear.assumed[HAZARDS.index(1.0)]
        change = [Interval.of(100 * (costs - reference) / reference.mean()) for costs in linear.assumed]
        places, means, halves = np.arange(len(HAZARDS)), [c.mean for c in change], [c.high - c.mean for c in change]
        blue = styles["derived reset"]["color"]
        assumed.errorbar(places, means, yerr=halves, fmt="o-", markersize=4, capsize=2, color=blue)
        assumed.axhline(0.0, color=GREY, linewidth=0.8, linestyle=":")
        names = ["0", "1/8", "1/4", "1/2", "1", "2", "4", "8"]
        assumed.set(
            xticks=places, xticklabels=names, xlabel="assumed / true hazard", ylabel="cost above derived rule (%)",
            title="linear: derived rule, other hazards",
        )  # fmt: skip

        draw(cost, linear.cost, None, ".2f")
        cost.set(xlabel="cost above derived rule (%)", title="linear: cost of moving and of loss")
        for policy in POLICIES:
            after.plot(np.arange(SINCE) * DT, linear.after_switch[policy], label=policy, **styles[policy])
        after.set(
            xlabel="time since switch", ylabel="excess loss", ylim=(0, None), xlim=(0, SINCE * DT),
            title="linear: loss alone",
        )  # fmt: skip
        after.legend(fontsize=7)

        draw(loss, network.loss, None, ".2f")
        loss.set(xlabel="loss above derived rule (%)", title="ReLU network: loss alone (nats)")
        draw(accuracy, network.accuracy, 100.0, ".1%")
        accuracy.set(xlabel="correct, less derived rule (points)", title="ReLU network: accuracy")
        middle = np.arange(0, _PERIOD, _BLOCK) + 0.5 * _BLOCK
        for policy in POLICIES:
            after_network.plot(middle, 100 * network.after_switch[policy], **styles[policy])
        after_network.set(
            xlabel="steps since switch", ylabel="correct (%)", ylim=(0, 100), xlim=(0, _PERIOD),
            title="ReLU network: relearning",
        )  # fmt: skip
        for letter, panel in zip("abcdef", grid.ravel(), strict=True):
            name_panel(panel, letter)
    return fig
