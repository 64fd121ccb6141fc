"""``steepest info``: what is installed here, and what a recording holds."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import scipy

import steepest
from steepest.cli.output import Table, print_json, print_table
from steepest.cli.runs import named_paths

__all__ = ["add", "info"]

# Extra -> modules and distributions that it brings.
_EXTRAS = {
    "torch": {"torch": "torch"},
    "jax": {"jax": "jax", "ml_dtypes": "ml_dtypes"},
    "plot": {"matplotlib": "matplotlib"},
    "report": {"jinja2": "Jinja2", "matplotlib": "matplotlib"},
    "pandas": {"pandas": "pandas"},
    "xarray": {"xarray": "xarray"},
    "dask": {"dask": "dask"},
    "progress": {"tqdm": "tqdm"},
    "experiments": {"matplotlib": "matplotlib", "sklearn": "scikit-learn"},
}


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line.

    Parameters
    ----------
    commands : subparsers
        Of the command line.
    """
    parser = commands.add_parser(
        "info",
        help="what is installed here, or what a recording holds",
        description="Versions, compiler, instruction sets, threads and extras; with a recording, what it holds.",
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folder of a recording; name=path names it")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    parser.set_defaults(run=info)


def info(arguments: argparse.Namespace) -> None:
    """Write what is known.

    Parameters
    ----------
    arguments : Namespace
        As parsed.
    """
    if not arguments.runs:
        found = installation()
        if arguments.json:
            print_json(found)
        else:
            extras = found.pop("extras")
            print_table(Table("", ("installed", ""), [(key, _text(value)) for key, value in found.items()]))
            rows = [(name, "yes" if all(have.values()) else "no", _packages(have)) for name, have in extras.items()]
            print_table(Table("", ("extra", "present", "packages"), rows))
        return
    recordings = {name: recorded(path) for name, path in named_paths(arguments.runs).items()}
    if arguments.json:
        print_json(recordings)
        return
    for name, found in recordings.items():
        blocks = found.pop("blocks")
        print_table(Table(name, ("recording", ""), [(key, _text(value)) for key, value in found.items()]))
        held = [(b["name"], "x".join(map(str, b["shape"])), str(b["size"]), _text(b["status"])) for b in blocks]
        print_table(Table("", ("block", "shape", "parameters", "status"), held))


def installation() -> dict[str, Any]:
    """Versions, how the core was built and what it uses, and which extras are there.

    Returns
    -------
    dict
        Of `build_config`, with the Python packages and ``extras``: extra -> package -> version or None.
    """
    extras = {
        extra: {name: _version(module, name) for module, name in packages.items()}
        for extra, packages in _EXTRAS.items()
    }
    return {
        **steepest.build_config(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": str(scipy.__version__),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "extras": extras,
    }


def _version(module: str, distribution: str) -> str | None:
    if importlib.util.find_spec(module) is None:
        return None
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def recorded(path: Path) -> dict[str, Any]:
    """What a recording holds.

    Parameters
    ----------
    path : Path
        Its folder.

    Returns
    -------
    dict
        Plain values; ``blocks`` is a list, the whole vector first.
    """
    rec = steepest.Recording.open(path)
    fields = asdict(rec.info)
    names, shapes = fields.pop("names"), fields.pop("shapes")
    shapes = shapes if names is None else ((rec.sizes[0],), *shapes)
    blocks = [
        {"name": name, "shape": list(shape), "size": size, "status": rec.counts(name)}
        for name, shape, size in zip(rec.blocks, shapes, rec.sizes, strict=True)
    ]
    numbers = rec.step
    return {
        "path": str(path),
        "steps": len(rec),
        "first_step": int(numbers[0]) if len(rec) else None,
        "last_step": int(numbers[-1]) if len(rec) else None,
        "with_loss": int(np.isfinite(rec.loss).sum()),
        "resumed": int(rec.resumed.sum()),
        "bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        **fields,
        "blocks": blocks,
    }


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "-" if value is None else str(value)


def _packages(have: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {version or 'missing'}" for name, version in have.items())
