"""What the commands write: data on standard output, messages on standard error."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import numpy as np

__all__ = ["CommandError", "Table", "coloured", "message", "plain", "print_json", "print_table", "show_progress"]


class CommandError(Exception):
    """Something that the user can put right; the message says how."""


@dataclass(frozen=True)
class Table:
    """Rows of text under a title, with an explanation below."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    below: str = ""

    def to_dicts(self) -> list[dict[str, str]]:
        """One dictionary for each row."""
        return [dict(zip(self.head, row, strict=True)) for row in self.rows]


def print_table(table: Table) -> None:
    """Write a table to standard output, its head in bold on a terminal.

    Parameters
    ----------
    table : Table
        What to write.
    """
    widths = [max(len(row[column]) for row in (table.head, *table.rows)) for column in range(len(table.head))]
    bold, normal = ("\033[1m", "\033[0m") if coloured(sys.stdout) else ("", "")
    if table.title:
        print(table.title)
    for position, row in enumerate((table.head, ["-" * width for width in widths], *table.rows)):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        print(f"{bold}{line}{normal}" if position == 0 else line)
    print()
    if table.below:
        print(table.below)


def print_json(document: Any) -> None:
    """Write one JSON document to standard output; NaN becomes null, and infinities "inf" and "-inf".

    Parameters
    ----------
    document : mapping, sequence, number, text or None
        May hold NumPy arrays and numbers.
    """
    json.dump(plain(document), sys.stdout, indent=2, allow_nan=False, ensure_ascii=False)
    print()


def plain(value: Any) -> Any:
    """What JSON has a word for.

    Parameters
    ----------
    value : object
        Of a document.

    Returns
    -------
    object
        Of dict, list, str, int, float, bool, None.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    if value is None or isinstance(value, str | int | float):
        return value
    return str(value)


def message(text: str) -> None:
    """Write a message to standard error.

    Parameters
    ----------
    text : str
        One line.
    """
    print(text, file=sys.stderr)


def coloured(stream: TextIO) -> bool:
    """Whether colour and bold may be written: to a terminal, and not against NO_COLOR.

    Parameters
    ----------
    stream : file
        Standard output or error.

    Returns
    -------
    bool
        See https://no-color.org.
    """
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def show_progress() -> bool:
    """Whether a progress bar can be shown: standard error is a terminal, and tqdm is installed.

    Returns
    -------
    bool
        Never True in a pipeline.
    """
    return sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None
