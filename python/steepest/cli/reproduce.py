"""``steepest reproduce``: run the experiments; write tables, numbers and figures."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steepest.cli.output import CommandError, Table, message, print_json, print_table, show_progress
from steepest.cli.reproduced.experiment import Options

__all__ = ["add", "reproduce"]


@dataclass(frozen=True)
class _Experiment:
    """Where an experiment is, and what it needs; its module is that of the name in `steepest.cli.reproduced`."""

    name: str
    by_default: bool = True
    digits: bool = True  # reads handwritten digits, of scikit-learn if there is no --data
    mnist: bool = True  # --data can take their place
    needs: tuple[str, ...] = ("matplotlib",)

    @property
    def key(self) -> str:
        return self.name.replace("-", "_")


_EXPERIMENTS = {
    one.name: one
    for one in (
        _Experiment("lti", digits=False, mnist=False),
        _Experiment("feedback-alignment"),
        _Experiment("geometry"),
        _Experiment("navigation", digits=False),  # --data adds networks trained by PyTorch
        _Experiment("continual", by_default=False, mnist=False),
        _Experiment("ballistic", by_default=False, needs=("matplotlib", "torch")),
    )
}


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
        description="Run linear dynamics, feedback alignment, which constant metric explains each of eight rules "
        "(geometry), and rules derived by optimal control (navigation); or the one that is named, among them tasks "
        "that switch (continual) and SGD, Adam and a derived rule, tracked (ballistic; needs PyTorch). Tables on "
        "standard output, numbers (npz, csv) and figures (png, pdf) in a folder.",
    )
    parser.add_argument("experiment", nargs="?", choices=tuple(_EXPERIMENTS), help="run one experiment")
    parser.add_argument(
        "--out", type=Path, default=Path("results"), help="folder for the results (default: %(default)s)"
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder with the four MNIST IDX files, plain or .gz "
        "(default: the 8x8 digits that come with scikit-learn)",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="fewer steps or seeds: a tenth of the time or less")
    parser.add_argument("--seed", type=_seed, default=0, help="of every random draw (default: %(default)s)")
    parser.add_argument("--only", choices=tuple(_EXPERIMENTS), help="the same as naming it")
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
    data, only = arguments.data, arguments.only
    if arguments.experiment is not None:
        if only not in (None, arguments.experiment):
            arguments.usage_error(f"expected one experiment, got {arguments.experiment} and --only {only}")
        only = arguments.experiment
    chosen = [one for one in _EXPERIMENTS.values() if (one.by_default if only is None else one.name == only)]
    if data is not None and not any(one.mnist for one in chosen):
        names = ", ".join(one.name for one in _EXPERIMENTS.values() if one.mnist)
        arguments.usage_error(f"--data is for {names}; {only} has no use for it")
    _require(chosen, data is not None)
    options = Options(arguments.out, data, arguments.seed, arguments.quick, _Bar())
    options.out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    tables: dict[str, Table] = {}
    for one in chosen:
        paths, tables[one.key] = importlib.import_module(f"steepest.cli.reproduced.{one.key}").run(options)
        written += paths
    if arguments.json:
        found = {name: {"title": table.title, "rows": table.to_dicts()} for name, table in tables.items()}
        print_json({**found, "written": [str(path) for path in written]})
    else:
        for table in tables.values():
            print_table(table)
    message("Written: " + ", ".join(str(path) for path in written))


def _require(chosen: list[_Experiment], has_data: bool) -> None:
    """Before anything runs: what is missing should not show after minutes of work."""
    needed = {name for one in chosen for name in one.needs}
    if has_data and [one.name for one in chosen] == ["navigation"]:  # among others it does without
        needed.add("torch")
    if any(one.digits and not (one.mnist and has_data) for one in chosen):
        needed.add("sklearn")
    missing = sorted(name for name in needed if importlib.util.find_spec(name) is None)
    if missing:
        extra = "experiments,torch" if "torch" in missing else "experiments"
        raise CommandError(f'not installed here: {", ".join(missing)}; get them by pip install "steepest[{extra}]"')


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
