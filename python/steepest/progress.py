"""Progress bars, where they are asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import TypeVar

__all__ = ["shown"]

T = TypeVar("T")


def shown(items: Iterable[T], progress: bool, what: str, total: int | None = None) -> Iterable[T]:
    """The items, with a progress bar on a terminal if wanted.

    Parameters
    ----------
    items : iterable
        What is gone through.
    progress : bool
        Whether to show a bar; it appears on a terminal only.
    what : str
        Stands before the bar.
    total : int, optional
        How many items, where they do not say.

    Returns
    -------
    iterable
        The same items.

    Raises
    ------
    ImportError
        tqdm is missing.
    """
    if not progress:
        return items
    try:
        tqdm = importlib.import_module("tqdm.auto").tqdm
    except ImportError as error:
        raise ImportError('progress=True needs tqdm: pip install "steepest[progress]"') from error
    bar: Iterable[T] = tqdm(items, desc=what, total=total, disable=None, leave=False)
    return bar
