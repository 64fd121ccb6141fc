"""The command line: ``steepest analyze``, ``report``, ``info``, ``reproduce`` (also ``python -m steepest``)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import steepest
from steepest.cli import info, reproduce, runs
from steepest.cli.output import CommandError, message

__all__ = ["main"]


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
    try:
        arguments = _parser().parse_args(argv)
        arguments.run(arguments)
        sys.stdout.flush()
    except SystemExit as stop:  # argparse: 0 after --help and --version, 2 after wrong usage
        return int(stop.code or 0)
    except BrokenPipeError:  # the reader has seen enough: `steepest analyze RUN | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (CommandError, OSError, ValueError, TypeError, ImportError) as error:
        message(f"steepest: {error}")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="steepest",
        description="In which geometry is a learning rule steepest descent?",
        epilog="Data go to standard output, messages to standard error. Exit codes: 0 done, 1 could not be done, "
        "2 wrong usage.",
    )
    parser.add_argument("--version", action="version", version=f"steepest {steepest.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    runs.add(commands)
    info.add(commands)
    reproduce.add(commands)
    return parser
