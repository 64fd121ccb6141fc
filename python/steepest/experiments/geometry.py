"""Which geometry is a learning rule using? Constant metrics of four structures, fitted to some steps and scored later.

Eight rules train the hidden layer of a two-layer linear network (`steepest.experiments.geometry_runs`).
`steepest.identify` sees what a recording holds, the gradient and the update of each step, never the rule. At full
batch the gradient is the one that the rule consumed. With mini-batches three gradients are at hand: the one consumed,
that of all images at the same weights, and that of an independent mini-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

import steepest
from steepest.experiments.digits import Digits
from steepest.experiments.geometry_runs import MOMENTUM, RULES, Images, Rule, RuleRun, images, plant, train
from steepest.experiments.output import write_csv, write_npz
from steepest.identify import BlockFit, Identification, identify

__all__ = [
    "FAMILIES",
    "OWN",
    "Cell",
    "FeedbackCourse",
    "Momentum",
    "PlantedCheck",
    "RootCheck",
    "RuleGeometry",
    "feedback_course",
    "momentum_windows",
    "run",
    "white_noise_score",
    "write",
]

Array = NDArray[np.float64]
Against = Literal["consumed", "all images", "independent"]
Progress = Callable[[str, int, int], None]  # what is running, steps done, steps in all

FAMILIES = ("scalar", "diagonal", "kronecker-output", "kronecker-input")
# The structure that the rule has by construction.
OWN: dict[Rule, str] = {
    "gradient descent": "scalar",
    "momentum": "scalar",
    "RMSProp": "diagonal",
    "Adam": "diagonal",
    "K-FAC (input factor)": "kronecker-input",
    "planted Kronecker": "kronecker",
    "feedback alignment": "kronecker-output",
    "feedback redrawn": "kronecker-output",
}
_ADAPTIVE: tuple[Rule, ...] = ("RMSProp", "Adam")
_SMALL, _LARGE = 128, 4096
_PLANTED_SEEDS, _ALTERNATIONS = 2, 20  # fitting both factors takes seconds
_WINDOWS = (1, 2, 4, 8, 16, 32, 64)
_STARTS = (0, 25, 50, 100, 200, 400, 800, 1600, 3200, 6400)  # of the windows over the course of feedback alignment


@dataclass(frozen=True)
class Cell:
    """One rule scored in one geometry; entry s of an array belongs to seed s.

    Attributes
    ----------
    rule, family, against : str
        `against`: which gradient is to be predicted from the updates.
    batch : int or None
        Images of a mini-batch, None for all.
    parameters : int
        Of the family.
    r2, r2_low, r2_high : ndarray, shape (seeds,), of the planted rule (2,)
        Held-out score of the gradient from the update, with the 95% bootstrap interval of that run.
    r2_reverse : ndarray, shape (seeds,)
        Of the update from the gradient.
    ceiling, ceiling_low, ceiling_high : ndarray, shape (seeds,)
        What the noise of the consumed gradient allows; NaN where there is none.
    status : ndarray of str, shape (seeds,)
        Of the fit.
    """

    rule: str
    batch: int | None
    against: str
    family: str
    parameters: int
    r2: Array
    r2_low: Array
    r2_high: Array
    r2_reverse: Array
    ceiling: Array
    ceiling_low: Array
    ceiling_high: Array
    status: NDArray[np.str_]


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


@dataclass(frozen=True)
class RuleGeometry:
    """The experiment.

    Attributes
    ----------
    dataset : str
        Name of the images.
    n_images, n_inputs, n_hidden : int
        Sizes.
    first, fitted, held_out : int
        Steps before the first fitted one, and how many are fitted and held out.
    seeds : tuple of int
        Of the runs.
    large : int
        Images of a large batch.
    cells : tuple of Cell
        Scores.
    roots : tuple of RootCheck
        RMSProp and Adam.
    planted : tuple of PlantedCheck
        The planted natural gradient.
    momentum : Momentum
        Over window length.
    feedback : FeedbackCourse
        Over training.
    steps : mapping rule -> (grad, update)
        The first held-out step of the first seed at full batch.
    """

    dataset: str
    n_images: int
    n_inputs: int
    n_hidden: int
    first: int
    fitted: int
    held_out: int
    seeds: tuple[int, ...]
    large: int
    cells: tuple[Cell, ...]
    roots: tuple[RootCheck, ...]
    planted: tuple[PlantedCheck, ...]
    momentum: Momentum
    feedback: FeedbackCourse
    steps: dict[Rule, tuple[Array, Array]]

    def cell(self, rule: str, family: str, batch: int | None = None, against: str = "all images") -> Cell:
        """The scores of one rule in one geometry.

        Parameters
        ----------
        rule, family : str
            As in `RULES` and `FAMILIES`.
        batch : int, optional
            Images of a mini-batch.
        against : {'consumed', 'all images', 'independent'}
            Which gradient; at full batch there is one.

        Returns
        -------
        Cell

        Raises
        ------
        KeyError
            There is none.
        """
        wanted = (rule, family, batch, against)
        for cell in self.cells:
            if (cell.rule, cell.family, cell.batch, cell.against) == wanted:
                return cell
        raise KeyError(f"expected a scored rule, family, batch and gradient, got {wanted}")

    def to_dict(self) -> dict[str, Any]:
        """Fields as a dictionary, cells and checks as lists of dictionaries."""

        def plain(x: Any) -> dict[str, Any]:
            return {field.name: getattr(x, field.name) for field in fields(x)}

        found = plain(self)
        for name in ("cells", "roots", "planted"):
            found[name] = [plain(x) for x in found[name]]
        return found | {"momentum": plain(self.momentum), "feedback": plain(self.feedback)}


def run(
    digits: Digits,
    *,
    n_hidden: int = 32,
    first: int = 100,
    fitted: int = 70,
    held_out: int = 30,
    n_seeds: int = 6,
    large: int = _LARGE,
    seed: int = 0,
    progress: Progress | None = None,
) -> RuleGeometry:
    """Train by every rule at full batch, large batch and batch 128, and score the geometries.

    Parameters
    ----------
    digits : Digits
        Its training images.
    n_hidden : int
        Hidden units.
    first : int
        Steps before the fitted ones: running averages of gradients fill.
    fitted, held_out : int
        Steps to which a metric is fitted, and later ones by which it is scored.
    n_seeds : int
        Runs of each rule, with other initial weights, feedback and mini-batches.
    large : int
        Images of a large batch.
    seed : int
        Of the first run.
    progress : callable, optional
        Called as ``progress(text, done, total)``.

    Returns
    -------
    RuleGeometry

    Raises
    ------
    ValueError
        A number that is not positive, or a rule that diverges.

    Notes
    -----
    Section 11(b) (derived). Every gradient and update of W1 in the window is kept for one run at a time:
    5 (fitted + held_out) hidden inputs numbers.

    Examples
    --------
    >>> from steepest.experiments.digits import load_digits
    >>> found = run(load_digits(rng=0), n_hidden=6, first=10, fitted=20, held_out=10, n_seeds=1)
    >>> round(float(found.cell("gradient descent", "scalar").r2[0]), 6)
    1.0
    """
    for name, number in (("fitted", fitted), ("held_out", held_out), ("n_seeds", n_seeds), ("n_hidden", n_hidden)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    data = images(digits)
    seeds = tuple(range(seed, seed + n_seeds))
    batches: tuple[int | None, ...] = (None, large, _SMALL)
    cells: dict[tuple[Any, ...], list[BlockFit]] = {}
    roots: dict[tuple[Any, ...], list[tuple[float, float, Array, Array]]] = {}
    planted: dict[int | None, list[tuple[float, float, int, int]]] = {batch: [] for batch in batches}
    steps: dict[Rule, tuple[Array, Array]] = {}
    total, done = len(seeds) * len(batches) * len(RULES), 0
    share = (held_out - 0.5) / (fitted + held_out)  # rounded up to held_out steps
    for s in seeds:
        factors = plant(data, n_hidden, np.random.default_rng([s, 3]))
        for batch in batches:
            for rule in RULES:
                done += 1
                if rule == "planted Kronecker" and s not in seeds[:_PLANTED_SEEDS]:
                    continue
                course = train(
                    data, rule, batch=batch, n_hidden=n_hidden, first=first, n_steps=first + fitted + held_out,
                    seed=s, planted=factors,
                )  # fmt: skip
                if batch is None and s == seeds[0]:
                    steps[rule] = (course.grad[fitted].copy(), course.update[fitted].copy())
                for against in _gradients(batch):
                    for family in _families(rule, batch, against, large):
                        found = _identified(course, family, against, share)
                        cells.setdefault((rule, batch, against, family), []).append(found.fits[0])
                        if family == "diagonal" and course.root is not None and rule in _ADAPTIVE:
                            check = _against_root(found, course.root[:fitted])
                            roots.setdefault((rule, batch, against), []).append(check)
                        if family == "kronecker":
                            a, b = found.elements()
                            planted[batch].append(_factor_cosines(a, b, factors.output, factors.input, course, fitted))
                if progress is not None:
                    progress("geometry of rules", done, total)
    return RuleGeometry(
        dataset=data.dataset,
        n_images=len(data.inputs),
        n_inputs=data.inputs.shape[1],
        n_hidden=n_hidden,
        first=first,
        fitted=fitted,
        held_out=held_out,
        seeds=seeds,
        large=large,
        cells=tuple(_cell(key, fits) for key, fits in cells.items()),
        roots=tuple(
            RootCheck(*key, np.array([c[0] for c in checks]), np.array([c[1] for c in checks]), *checks[0][2:])
            for key, checks in roots.items()
        ),
        planted=tuple(_planted_check(batch, found) for batch, found in planted.items()),
        momentum=momentum_windows(data, seeds[:3], n_hidden=n_hidden),
        feedback=feedback_course(data, seeds[:3], n_hidden=n_hidden, fitted=fitted, held_out=held_out),
        steps=steps,
    )


def _gradients(batch: int | None) -> tuple[Against, ...]:
    return ("all images",) if batch is None else get_args(Against)


def _families(rule: Rule, batch: int | None, against: Against, large: int) -> tuple[str, ...]:
    """All where the heat maps show them, else the rule's own."""
    own = OWN[rule]
    if own == "kronecker" and batch is not None and against != "consumed":
        return ()
    if batch == large or against == "independent":
        return (own,)
    return FAMILIES if own in FAMILIES else (*FAMILIES, own)


def _identified(course: RuleRun, family: Any, against: Against, share: float) -> Identification:
    """What `identify` finds, given gradient and update alone."""
    grad = {"consumed": course.consumed, "all images": course.grad, "independent": course.replicate}[against]
    recording = steepest.recording(
        grad=grad,
        update=course.update,
        lag=0,
        gradient_source="rule" if course.batch is None or against == "consumed" else "evaluation",
    )
    noisy = course.batch is not None and against != "consumed"
    options = {"max_iterations": _ALTERNATIONS} if family == "kronecker" else {}
    return identify(recording, family, holdout=share, replicate=course.consumed if noisy else None, rng=0, **options)


def _cell(key: tuple[Any, ...], fits: Sequence[BlockFit]) -> Cell:
    rule, batch, against, family = key

    def column(get: Callable[[BlockFit], float]) -> Array:
        return np.array([get(fit) for fit in fits], dtype=np.float64)

    return Cell(
        rule=rule,
        batch=batch,
        against=against,
        family=family,
        parameters=fits[0].parameters,
        r2=column(lambda fit: fit.r2),
        r2_low=column(lambda fit: fit.r2_low),
        r2_high=column(lambda fit: fit.r2_high),
        r2_reverse=column(lambda fit: fit.r2_reverse),
        ceiling=column(lambda fit: fit.ceiling.value),
        ceiling_low=column(lambda fit: fit.ceiling.low),
        ceiling_high=column(lambda fit: fit.ceiling.high),
        status=np.array([fit.status for fit in fits]),
    )


def _against_root(found: Identification, root: Array) -> tuple[float, float, Array, Array]:
    d = np.asarray(found.elements()).reshape(-1)
    expected = np.exp(np.log(root).mean(axis=0)).reshape(-1)
    seen = d > 0.0
    correlation = float(np.corrcoef(np.log(d[seen]), np.log(expected[seen]))[0, 1])
    return correlation, float(seen.mean()), d, expected


def _factor_cosines(
    a: Array, b: Array, output: Array, input_: Array, course: RuleRun, fitted: int
) -> tuple[float, float, int, int]:
    g = course.update[:fitted]
    left, right = _leading(np.einsum("tij,tkj->ik", g, g)), _leading(np.einsum("tij,tik->jk", g, g))
    return _cosine(a, output, left), _cosine(b, input_, right), left.shape[1], right.shape[1]


def _leading(moments: Array) -> Array:
    values, vectors = np.linalg.eigh(moments)
    rest = np.cumsum(np.maximum(values, 0.0))  # of the smallest ones
    return np.asarray(vectors[:, rest > 1e-6 * rest[-1]])


def _cosine(found: Array, planted: Array, basis: Array) -> float:
    x, y = basis.T @ found @ basis, basis.T @ planted @ basis
    return float(np.vdot(x, y) / np.linalg.norm(x) / np.linalg.norm(y))


def _planted_check(batch: int | None, found: Sequence[tuple[float, float, int, int]]) -> PlantedCheck:
    output, input_, left, right = (np.array(column) for column in zip(*found, strict=True))
    return PlantedCheck(batch, output, input_, left, right)


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


def write(result: RuleGeometry, folder: Path) -> list[Path]:
    """Write ``geometry_rules.csv`` (rows: rule, batch, gradient, family, seed) and ``geometry_rules.npz`` to `folder`."""
    columns: dict[str, list[Any]] = {}
    for cell in result.cells:
        for i, seed in enumerate(result.seeds[: len(cell.r2)]):
            row: dict[str, Any] = {
                "rule": cell.rule,
                "batch": "all" if cell.batch is None else cell.batch,
                "against": cell.against,
                "family": cell.family,
                "parameters": cell.parameters,
                "seed": seed,
            }
            names = ("r2", "r2_low", "r2_high", "r2_reverse", "ceiling", "ceiling_low", "ceiling_high", "status")
            row |= {name: getattr(cell, name)[i] for name in names}
            for name, value in row.items():
                columns.setdefault(name, []).append(value.item() if isinstance(value, np.generic) else value)
    arrays: dict[str, Any] = {
        name: getattr(result, name)
        for name in "dataset n_images n_inputs n_hidden first fitted held_out seeds large".split()
    }
    for part in ("momentum", "feedback"):
        arrays |= {f"{part}_{name}": value for name, value in result.to_dict()[part].items()}
    for kind, checks in (("root", result.roots), ("planted", result.planted)):
        for check in checks:
            where = [getattr(check, name, "") for name in ("rule", "against")]
            prefix = "_".join([kind, *where, "all" if check.batch is None else str(check.batch)])
            arrays |= {
                f"{prefix}_{field.name}".replace(" ", "_"): getattr(check, field.name)
                for field in fields(check)
                if field.name not in ("rule", "batch", "against")
            }
    return [
        write_npz(folder / "geometry_rules.npz", arrays),
        write_csv(folder / "geometry_rules.csv", columns),
    ]
