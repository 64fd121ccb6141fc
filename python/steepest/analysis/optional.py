"""Packages that are needed only for some results."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["optional"]


def optional(module: str, extra: str, purpose: str) -> Any:
    """Import a package, or say how to get it.

    Parameters
    ----------
    module : str
        Its name.
    extra : str
        Of this package's extras, the one that installs it.
    purpose : str
        What needs it.

    Returns
    -------
    module
        Imported.

    Raises
    ------
    ImportError
        It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise ImportError(f'{purpose} needs {name}, which is not installed: pip install "steepest[{extra}]"') from error
