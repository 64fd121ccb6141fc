"""``steepest reproduce``: the experiments, their tables and figures."""

from __future__ import annotations

import argparse
import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from steepest.cli.output import CommandError, Table, message, print_json, print_table, show_progress
from steepest.cli.reproduce_rules import run_ballistic, run_continual

if TYPE_CHECKING:
    from steepest.experiments.feedback_alignment import FeedbackAlignment
    from steepest.experiments.lti import LTI

__all__ = ["add", "reproduce"]

_EXPERIMENTS = ("lti", "feedback-alignment")
_ON_REQUEST = ("continual", "ballistic")  # by --only: they take a minute, or need PyTorch
_WITH_DATA = ("feedback-alignment", "ballistic")
_LARGE_SYSTEM = 100  # states of the second linear system, which enters the table only


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line.

    Parameters
    ----------
    commands : subparsers
        Of the command line.
    """
    parser = commands.add_parser(
        "reproduce",
        help="run the experiments; write tables, numbers and figures",
        description="Run the linear dynamics and the feedback alignment experiment, or by --only another: tables on "
        "standard output, numbers (npz, csv) and figures (png, pdf) in a folder.",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results"), help="folder for the results (default: %(default)s)"
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder with the four MNIST IDX files, plain or .gz "
        "(default: the 8x8 digits that come with scikit-learn)",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a tenth of the training steps")
    parser.add_argument("--seed", type=_seed, default=0, help="of every random draw (default: %(default)s)")
    parser.add_argument("--only", choices=(*_EXPERIMENTS, *_ON_REQUEST), help="run one experiment")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of tables")
    parser.set_defaults(run=reproduce, usage_error=parser.error)


def _seed(text: str) -> int:
    seed = int(text)
    if seed < 0:
        raise argparse.ArgumentTypeError(f"expected an integer that is not negative, got {seed}")
    return seed


def reproduce(arguments: argparse.Namespace) -> None:
    """Run the experiments.

    Parameters
    ----------
    arguments : Namespace
        As parsed.

    Raises
    ------
    CommandError
        A dependency is missing.
    """
    out, data, quick, seed, only = (getattr(arguments, name) for name in ("out", "data", "quick", "seed", "only"))
    if data is not None and only is not None and only not in _WITH_DATA:
        arguments.usage_error(f"--data is for feedback alignment and ballistic, which --only {only} leaves out")
    chosen = _EXPERIMENTS if only is None else (only,)
    # Before anything runs: what is missing should not show after minutes of work.
    needed = ["matplotlib"]
    if data is None and set(chosen) & {"feedback-alignment", *_ON_REQUEST}:
        needed.append("sklearn")
    if "ballistic" in chosen:
        needed.append("torch")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        extra = "experiments,torch" if "torch" in missing else "experiments"
        raise CommandError(f'not installed here: {", ".join(missing)}; get them by pip install "steepest[{extra}]"')
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    tables: dict[str, Table] = {}
    if "lti" in chosen:
        paths, tables["lti"] = _run_lti(out, seed, quick)
        written += paths
    if "feedback-alignment" in chosen:
        paths, tables["feedback_alignment"] = _run_feedback_alignment(out, data, seed, quick)
        written += paths
    if "continual" in chosen:
        paths, tables["continual"] = run_continual(out, seed, quick, _Bar())
        written += paths
    if "ballistic" in chosen:
        paths, tables["ballistic"] = run_ballistic(out, data, seed, quick, _Bar())
        written += paths
    if arguments.json:
        found = {name: {"title": table.title, "rows": table.to_dicts()} for name, table in tables.items()}
        print_json({**found, "written": [str(path) for path in written]})
    else:
        for table in tables.values():
            print_table(table)
    message("Written: " + ", ".join(str(path) for path in written))


def _run_lti(out: Path, seed: int, quick: bool) -> tuple[list[Path], Table]:
    from steepest.experiments import lti
    from steepest.experiments.output import write_figure

    rng = np.random.default_rng(seed)
    n_steps = 100 if quick else 400
    result = lti.run(n_steps=n_steps)
    large = lti.run(lti.random_system(_LARGE_SYSTEM, rng=rng), n_steps=n_steps, rng=rng)
    curves = lti.eigenvalue_curves()
    written = lti.write(result, curves, out)
    written += write_figure(lti.figure(result, curves), out / "lti")
    written += write_figure(lti.geometry_figure(result), out / "geometry")

    return written, Table(
        "Linear dynamics: theta' = A theta as natural gradient descent on theta^T P theta / 2, eq (21)",
        (
            "states",
            "steps",
            "loss, first to last",
            "psi (deg)",
            "cond",
            "largest |M^-1 y - A theta|/|A theta|",
        ),
        [_lti_row(result), _lti_row(large)],
    )


def _lti_row(result: LTI) -> tuple[str, ...]:
    degrees = np.degrees(result.angle)
    return (
        str(len(result.A)),
        str(len(result.time)),
        f"{result.loss[0]:.3g} to {result.loss[-1]:.3g}",
        f"{degrees.min():.1f} to {degrees.max():.1f}",
        f"{result.cond.min():.3g} to {result.cond.max():.3g}",
        f"{result.residual.max():.1e}",
    )


def _run_feedback_alignment(out: Path, data: Path | None, seed: int, quick: bool) -> tuple[list[Path], Table]:
    from steepest.experiments import feedback_alignment
    from steepest.experiments.digits import load_digits, load_mnist
    from steepest.experiments.output import write_figure

    rng = np.random.default_rng(seed)
    digits = load_digits(rng=rng) if data is None else load_mnist(data)
    result = feedback_alignment.run(digits, step_fraction=0.1 if quick else 1.0, rng=rng, progress=_Bar())
    written = feedback_alignment.write(result, out)
    written += write_figure(feedback_alignment.figure(result), out / "feedback_alignment")

    return written, Table(
        f"Feedback alignment: linear network {result.n_inputs}-{result.n_hidden}-10 on {result.dataset} "
        f"({result.n_train} training, {result.n_test} test images), full-batch gradients; "
        f"least squares reaches {100 * result.least_squares_accuracy:.2f}%",
        (
            "loss",
            "rule",
            "training loss",
            "test",
            "psi",
            "psi W1",
            "psi W2",
            "cond",
            "no metric",
            "W2^T from B",
        ),
        _feedback_alignment_rows(result),
        "psi, psi W1, psi W2, W2^T from B: degrees, first and last step; no metric: steps, all weights",
    )


def _feedback_alignment_rows(result: FeedbackAlignment) -> list[tuple[str, ...]]:
    def ends(radians: np.ndarray[tuple[int], np.dtype[np.float64]]) -> str:
        return f"{math.degrees(radians[0]):.1f} to {math.degrees(radians[-1]):.1f}"

    return [
        (
            training.loss_name,
            training.rule,
            f"{training.loss[0]:.4f} to {training.final_loss:.4f}",
            f"{100 * training.final_accuracy:.2f}%",
            ends(training.angle),
            ends(training.angle_w1),
            ends(training.angle_w2),
            f"{training.cond[0]:.3g} to {training.cond[-1]:.3g}",
            f"{training.n_without_metric} of {len(training.step)}",
            ends(training.feedback_angle),
        )
        for training in result.trainings
    ]


class _Bar:
    """A progress bar for each text; nothing where standard error is no terminal, or tqdm is missing."""

    def __init__(self) -> None:
        self._text = ""
        self._bar: Any = None

    def __call__(self, text: str, done: int, total: int) -> None:
        if not show_progress():
            return
        if text != self._text:
            from tqdm.auto import tqdm

            self._text, self._bar = text, tqdm(desc=text, total=total, unit="step", leave=False)
        self._bar.update(done - self._bar.n)
        if done == total:
            self._bar.close()
