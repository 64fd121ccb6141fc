"""What an experiment of `steepest reproduce` is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Options", "Progress"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Options:
    """Of the command.

    Attributes
    ----------
    out : Path
        Folder for the results.
    data : Path or None
        Folder with the MNIST files; by default the small digits of scikit-learn.
    seed : int
        Of every random draw.
    quick : bool
        Fewer steps or seeds.
    progress : callable
        Called as ``progress(text, done, total)``.
    """

    out: Path
    data: Path | None
    seed: int
    quick: bool
    progress: Progress
