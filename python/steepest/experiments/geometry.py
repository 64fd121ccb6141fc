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
from steepest.experiments.geometry_checks import (
    FeedbackCourse,
    Momentum,
    PlantedCheck,
    RootCheck,
    against_root,
    factor_cosines,
    feedback_course,
    momentum_windows,
)
from steepest.experiments.geometry_runs import RULES, Rule, RuleRun, images, plant, train
from steepest.experiments.output import write_csv, write_npz
from steepest.identify import BlockFit, Identification, Selection, identify, select

__all__ = ["FAMILIES", "OWN", "Cell", "RuleGeometry", "run", "write"]

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
    score : ndarray, shape (seeds,)
        The one of both that shows the geometry: `r2_reverse` where the update carries the noise of a mini-batch that
        the gradient does not have, else `r2`. See `steepest.identify.Ceiling`.
    ceiling, ceiling_low, ceiling_high : ndarray, shape (seeds,)
        What the noise of the consumed gradient allows; NaN where there is none.
    status : ndarray of str, shape (seeds,)
        Of the fit.
    chosen : ndarray of bool, shape (seeds,)
        Whether `steepest.select` calls it the simplest of the four structures that no richer one beats.
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
    score: Array
    ceiling: Array
    ceiling_low: Array
    ceiling_high: Array
    status: NDArray[np.str_]
    chosen: NDArray[np.bool_]


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
    cells: dict[tuple[Any, ...], list[tuple[BlockFit, bool]]] = {}
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
                    identified, best = _scored(course, _families(rule, batch, against, large), against, share)
                    for family, found in identified.items():
                        fit = (found.fits[0], family == best)
                        cells.setdefault((rule, batch, against, family), []).append(fit)
                        if family == "diagonal" and course.root is not None and rule in _ADAPTIVE:
                            check = against_root(found, course.root[:fitted])
                            roots.setdefault((rule, batch, against), []).append(check)
                        if family == "kronecker":
                            cosines = factor_cosines(found.elements(), factors, course.update[:fitted])
                            planted[batch].append(cosines)
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
            RootCheck(
                rule=rule,
                batch=batch,
                against=against,
                log_correlation=np.array([check[0] for check in checks]),
                share=np.array([check[1] for check in checks]),
                recovered=checks[0][2],
                root=checks[0][3],
            )
            for (rule, batch, against), checks in roots.items()
        ),
        planted=tuple(
            PlantedCheck(batch, *(np.array(column) for column in zip(*checks, strict=True)))
            for batch, checks in planted.items()
        ),
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


def _scored(
    course: RuleRun, families: Sequence[Any], against: Against, share: float
) -> tuple[dict[Any, Identification], str | None]:
    """What `steepest.select` finds, given gradient and update alone; and which of the four structures it chooses."""
    if not families:
        return {}, None
    grad = {"consumed": course.consumed, "all images": course.grad, "independent": course.replicate}[against]
    recording = steepest.recording(
        grad=grad,
        update=course.update,
        lag=0,
        gradient_source="rule" if course.batch is None or against == "consumed" else "evaluation",
    )
    noisy = course.batch is not None and against != "consumed"
    options: dict[str, Any] = {"holdout": share, "replicate": course.consumed if noisy else None, "rng": 0}
    sides = [family for family in families if family != "kronecker"]
    found: Selection | None = select(recording, sides, **options) if sides else None
    identified: dict[Any, Identification] = {} if found is None else dict(found.identifications["run"])
    if "kronecker" in families:
        identified["kronecker"] = identify(recording, "kronecker", max_iterations=_ALTERNATIONS, **options)
    return identified, found.chosen() if found is not None and set(sides) == set(FAMILIES) else None


def _cell(key: tuple[Any, ...], found: Sequence[tuple[BlockFit, bool]]) -> Cell:
    rule, batch, against, family = key
    fits = [fit for fit, _ in found]

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
        score=column(lambda fit: fit.score[0]),
        ceiling=column(lambda fit: fit.ceiling.value),
        ceiling_low=column(lambda fit: fit.ceiling.low),
        ceiling_high=column(lambda fit: fit.ceiling.high),
        status=np.array([fit.status for fit in fits]),
        chosen=np.array([chosen for _, chosen in found]),
    )


def write(result: RuleGeometry, folder: Path) -> list[Path]:
    """Write ``geometry_rules.csv`` (rows: rule, batch, gradient, family, seed) and ``geometry_rules.npz``."""
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
            names = (
                "r2",
                "r2_low",
                "r2_high",
                "r2_reverse",
                "score",
                "ceiling",
                "ceiling_low",
                "ceiling_high",
                "status",
                "chosen",
            )
            row |= {name: getattr(cell, name)[i] for name in names}
            for name, value in row.items():
                columns.setdefault(name, []).append(value.item() if isinstance(value, np.generic) else value)
    arrays: dict[str, Any] = {
        name: getattr(result, name)
        for name in ["dataset", "n_images", "n_inputs", "n_hidden", "first", "fitted", "held_out", "seeds", "large"]
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
