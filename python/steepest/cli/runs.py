"""``steepest analyze`` and ``steepest report``: what recordings say."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import steepest
from steepest.cli.output import CommandError, Table, message, print_json, print_table, show_progress
from steepest.report.facts import Facts, facts
from steepest.report.words import degrees, number, share

if TYPE_CHECKING:
    from steepest.analysis import Analysis

__all__ = ["add", "named_paths"]

_PAIRS = ("auto", "continuous", "trapezoid", "left", "displacement")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands to the command line.

    Parameters
    ----------
    commands : subparsers
        Of the command line.
    """
    parser = commands.add_parser(
        "analyze",
        help="angles, condition numbers and statuses of recordings, as a table",
        description="Analyse recordings of a learning rule: one row for each run and block, notes on standard error.",
    )
    _add_options(parser)
    parser.add_argument("--out", type=Path, metavar="PATH", help="also save the analysis (steepest.Analysis.load)")
    parser.set_defaults(run=_analyze)
    parser = commands.add_parser(
        "report",
        help="one self-contained HTML page: words, tables, figures",
        description="Analyse recordings and write a report, one HTML file that needs nothing else.",
    )
    _add_options(parser)
    parser.add_argument("-o", "--out", type=Path, default=Path("report.html"), help="file (default: %(default)s)")
    parser.add_argument("--title", help="heading of the page")
    parser.add_argument(
        "--no-identify", dest="identify", action="store_false", help="do not look for constant geometries"
    )
    parser.set_defaults(run=_report)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a recording; name=path names it")
    parser.add_argument("--pair", choices=_PAIRS, default="auto", help="what stands for the gradient of a step")
    parser.add_argument(
        "--window", type=_window, default=1, metavar="W", help="steps over which the loss should fall (default: 1)"
    )
    parser.add_argument(
        "--blocks", nargs="+", action="extend", metavar="NAME", help="these blocks only, beside the whole vector"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")


def _window(text: str) -> int:
    window = int(text)
    if window < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number of steps, got {window}")
    return window


def named_paths(texts: Sequence[str]) -> dict[str, Path]:
    """Folders by the names of their runs.

    Parameters
    ----------
    texts : sequence of str
        ``path`` or ``name=path``; a folder whose own name has an equals sign is a path.

    Returns
    -------
    dict
        Name -> path; the name of the folder where none is given.

    Raises
    ------
    CommandError
        Two runs have one name, or nothing is at a path.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        path = Path(text) if not equals or Path(text).exists() else Path(rest)
        name = name if path != Path(text) and name else path.resolve().name
        if name in found:
            raise CommandError(
                f"expected a name of its own for each run, got {name!r} twice or none: write name={path}"
            )
        if not path.exists():
            raise CommandError(f"no recording at {path}")
        found[name] = path
    return found


def _analysis(arguments: argparse.Namespace) -> Analysis:
    return steepest.analyze(
        named_paths(arguments.runs),
        pair=arguments.pair,
        window=arguments.window,
        blocks=arguments.blocks,
        progress=show_progress(),
    )


def _analyze(arguments: argparse.Namespace) -> None:
    analysis = _analysis(arguments)
    if arguments.json:
        runs = [
            {
                "name": name, "candidate": run.candidate, "pair": run.pair, "window": run.window,
                "gradient_source": run.gradient_source, "objective": run.info.objective,
            }
            for name, run in analysis.runs.items()
        ]  # fmt: skip
        print_json({
            "steepest": steepest.__version__, "runs": runs, "summary": analysis.summary(), "notes": analysis.notes,
        })  # fmt: skip
    else:
        head = (
            "run",
            "block",
            "parameters",
            "steps",
            "status",
            "psi (quartiles)",
            "cond",
            "|grad|/|update|",
            "loss fell",
        )
        rows = [
            _row(name, found) for name, run in analysis.runs.items() for found in facts(run).values()
        ]  # fmt: skip
        print_table(Table("", head, rows))
        for note in analysis.notes:
            message(note)
    if arguments.out is not None:
        analysis.save(arguments.out)
        message(f"Saved: {arguments.out}")


def _row(run: str, found: Facts) -> tuple[str, ...]:
    quartiles = f" ({degrees(found.angle_low)} to {degrees(found.angle_high)})" if found.with_angle else ""
    return (
        run,
        found.block,
        str(found.size),
        str(found.steps),
        ", ".join(f"{status} {count}" for status, count in found.counts.items()),
        degrees(found.angle) + quartiles,
        number(found.cond),
        number(found.rho),
        share(found.effective),
    )


def _report(arguments: argparse.Namespace) -> None:
    # Before the analysis: what is missing should not show after a minute of work.
    missing = [name for name in ("jinja2", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandError(f'not installed here: {", ".join(missing)}; get them by pip install "steepest[report]"')
    from steepest.report import report

    analysis = _analysis(arguments)
    if arguments.identify:
        analysis = analysis.identify(progress=show_progress())
    written = report(analysis, arguments.out, title=arguments.title)
    if arguments.json:
        print_json({"report": str(written), "bytes": written.stat().st_size, "runs": list(analysis.runs)})
    message(f"Written: {written}")
