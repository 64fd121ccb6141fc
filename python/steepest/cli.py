"""The command line: ``steepest reproduce`` (also ``python -m steepest reproduce``)."""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import steepest

if TYPE_CHECKING:
    from steepest.experiments.feedback_alignment import FeedbackAlignment
    from steepest.experiments.lti import LTI

__all__ = ["main"]

_EXPERIMENTS = ("lti", "feedback-alignment")
_LARGE_SYSTEM = 100  # states of the second linear system, which enters the table only


class _CommandError(Exception):
    """Something that the user can put right; the message says how."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process by default.

    Returns
    -------
    int
        Exit code: 0 done; 1 could not be done (a message on stderr says why); 2 wrong usage.

    Examples
    --------
    >>> main(["reproduce", "--only", "lti", "--out", "results"])  # doctest: +SKIP
    0
    """
    parser = _parser()
    try:
        arguments = parser.parse_args(argv)
        if arguments.data is not None and arguments.only == "lti":
            parser.error("--data is for feedback alignment, which --only lti leaves out")
    except SystemExit as stop:  # argparse: 0 after --help and --version, 2 after wrong usage
        return int(stop.code or 0)
    try:
        _reproduce(arguments.out, arguments.data, arguments.quick, arguments.seed, arguments.only)
    except (_CommandError, OSError, ValueError, ImportError) as error:
        print(f"steepest: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="steepest", description="In which geometry is a learning rule steepest descent?"
    )
    parser.add_argument("--version", action="version", version=f"steepest {steepest.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    reproduce = commands.add_parser(
        "reproduce",
        help="run the experiments; write tables, numbers and figures",
        description="Run the linear dynamics and the feedback alignment experiment: tables on standard "
        "output, numbers (npz, csv) and figures (png, pdf) in a folder.",
    )
    reproduce.add_argument(
        "--out", type=Path, default=Path("results"), help="folder for the results (default: %(default)s)"
    )
    reproduce.add_argument(
        "--data", type=Path, metavar="DIR", help="folder with the four MNIST IDX files, plain or .gz "
        "(default: the 8x8 digits that come with scikit-learn)",
    )  # fmt: skip
    reproduce.add_argument("--quick", action="store_true", help="a tenth of the training steps")
    reproduce.add_argument("--seed", type=_seed, default=0, help="of every random draw (default: %(default)s)")
    reproduce.add_argument("--only", choices=_EXPERIMENTS, help="run one experiment")
    return parser


def _seed(text: str) -> int:
    seed = int(text)
    if seed < 0:
        raise argparse.ArgumentTypeError(f"expected an integer that is not negative, got {seed}")
    return seed


def _reproduce(out: Path, data: Path | None, quick: bool, seed: int, only: str | None) -> None:
    chosen = _EXPERIMENTS if only is None else (only,)
    # Before anything runs: what is missing should not show after minutes of work.
    needed = ["matplotlib"]
    if "feedback-alignment" in chosen and data is None:
        needed.append("sklearn")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise _CommandError(
            f'not installed here: {", ".join(missing)}; get them by pip install "steepest[experiments]"'
        )
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    if "lti" in chosen:
        written += _run_lti(out, seed, quick)
    if "feedback-alignment" in chosen:
        written += _run_feedback_alignment(out, data, seed, quick)
    print("Written: " + ", ".join(str(path) for path in written), file=sys.stderr)


def _run_lti(out: Path, seed: int, quick: bool) -> list[Path]:
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

    print("Linear dynamics: theta' = A theta as natural gradient descent on theta^T P theta / 2, eq (21)")
    _print_table(
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
    return written


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


def _run_feedback_alignment(out: Path, data: Path | None, seed: int, quick: bool) -> list[Path]:
    from steepest.experiments import feedback_alignment
    from steepest.experiments.digits import load_digits, load_mnist
    from steepest.experiments.output import write_figure

    rng = np.random.default_rng(seed)
    digits = load_digits(rng=rng) if data is None else load_mnist(data)
    result = feedback_alignment.run(digits, step_fraction=0.1 if quick else 1.0, rng=rng, progress=_progress)
    written = feedback_alignment.write(result, out)
    written += write_figure(feedback_alignment.figure(result), out / "feedback_alignment")

    print(
        f"Feedback alignment: linear network {result.n_inputs}-{result.n_hidden}-10 on {result.dataset} "
        f"({result.n_train} training, {result.n_test} test images), full-batch gradients; "
        f"least squares reaches {100 * result.least_squares_accuracy:.2f}%"
    )
    _print_table(
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
    )
    print("psi, psi W1, psi W2, W2^T from B: degrees, first and last step; no metric: steps, all weights")
    return written


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


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, ["-" * width for width in widths], *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print()


def _progress(text: str, done: int, total: int) -> None:
    """One line that rewrites itself; nothing where stderr is not a terminal."""
    if not sys.stderr.isatty() or (done % max(total // 100, 1) and done != total):
        return
    end = "\n" if done == total else ""
    print(f"\r{text}: step {done} of {total}", end=end, file=sys.stderr, flush=True)
