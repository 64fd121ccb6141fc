"""Put the page together: numbers, words, figures, template."""

from __future__ import annotations

import datetime as dt
import logging
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from steepest.plot.series import ALL
from steepest.report.facts import Facts, facts
from steepest.report.figures import Picture, block_picture, overview, run_pictures
from steepest.report.svg import shades
from steepest.report.words import (
    GRADIENT,
    PAIR,
    STATUS,
    cannot_say,
    degrees,
    headline,
    number,
    prediction,
    share,
    story,
)

if TYPE_CHECKING:
    from steepest.analysis import Analysis, RunAnalysis
    from steepest.identify import Identification

__all__ = ["MAX_BYTES", "report"]

MAX_BYTES = 1_500_000
# How many points a curve has and how many blocks have a figure of their own: until the page is small enough.
_ATTEMPTS = ((400, 24), (200, 8), (100, 0), (40, 0))
_MOST_BLOCKS = 400
_MOST_RUNS_WITH_FIGURES = 12
_log = logging.getLogger("steepest")


@dataclass(frozen=True)
class BlockSection:
    """Drill-down of one block."""

    name: str
    facts: Facts
    picture: Picture | None


@dataclass(frozen=True)
class RunSection:
    """All of one run."""

    name: str
    candidate: str | None
    headline: str
    story: list[str]
    notes: tuple[str, ...]
    whole: Facts
    blocks: list[BlockSection]
    left_out: int
    pictures: list[Picture]
    identified: list[Identification]
    made: dict[str, str]


def report(analysis: Analysis, path: str | os.PathLike[str], *, title: str | None = None) -> Path:
    """Write a report of an analysis: one HTML file that needs nothing else.

    It says in words what was found and what cannot be concluded, shows tables and figures (SVG, at most 1.5 MB in
    all), goes down to every block, and ends with how it was computed. It loads nothing from anywhere, follows the
    reader's light or dark setting, and is readable on a phone and in print.

    Parameters
    ----------
    analysis : Analysis
        What `steepest.analyze` returned. `Analysis.identified` is shown if there is any.
    path : path-like
        File to write; it is overwritten.
    title : str, optional
        Heading; the names of the runs by default.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    ImportError
        Jinja2 or matplotlib is not installed: ``pip install "steepest[report]"``.
    TypeError
        `analysis` is not an Analysis.
    OSError
        The file cannot be written.

    Notes
    -----
    The same analysis gives the same page but for the date in its text, which the environment variable
    ``SOURCE_DATE_EPOCH`` fixes. Long runs are drawn as the median and the range of consecutive steps.

    Examples
    --------
    >>> import numpy as np, steepest
    >>> theta = 0.9 ** np.arange(20)[:, None] * [1.0, 2.0, 3.0]
    >>> analysis = steepest.analyze(steepest.recording(params=theta, grad=theta * [1.0, 4.0, 9.0]))
    >>> analysis.report("report.html")  # doctest: +SKIP
    PosixPath('report.html')
    """
    try:
        import jinja2
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'a report needs Jinja2 and matplotlib, which are not both installed: pip install "steepest[report]"'
        ) from error
    runs: Mapping[str, RunAnalysis] | None = getattr(analysis, "runs", None)
    if runs is None:
        raise TypeError(f"expected an Analysis, got {type(analysis).__name__}: steepest.analyze(...) makes one")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("steepest.report", "templates"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(degrees=degrees, share=share, number=number, prediction=prediction)
    template = environment.get_template("report.html")
    identified: Mapping[str, Iterable[Identification]] = analysis.identified
    known = {name: facts(run) for name, run in runs.items()}
    page = ""
    for max_points, block_figures in _ATTEMPTS:
        page = template.render(
            title=title or _title(runs),
            cannot_say=cannot_say(runs, identified=any(identified.values())),
            overview=overview(runs, max_points),
            runs=_runs(runs, known, identified, max_points, block_figures),
            statuses=_statuses(known),
            gradients=GRADIENT,
            pairs=PAIR,
            versions=_versions(),
            created=_created(),
            light_shades=shades(on_dark=False),
            dark_shades=shades(on_dark=True),
        )
        if len(page.encode()) <= MAX_BYTES:
            break
    else:
        _log.warning("the report is larger than %d bytes: fewer runs would make it smaller", MAX_BYTES)
    target = Path(path)
    target.write_text(page, encoding="utf-8")
    return target


def _title(runs: Mapping[str, RunAnalysis]) -> str:
    names = ", ".join(list(runs)[:4]) + ", …" * (len(runs) > 4)
    return "In which geometry is it steepest descent?" if list(runs) == ["run"] else f"Learning rules: {names}"


def _created() -> str:
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    now = dt.datetime.now(dt.UTC)
    when = now if epoch is None else dt.datetime.fromtimestamp(int(epoch), dt.UTC)
    return f"{when:%Y-%m-%d %H:%M} UTC"


def _statuses(known: Mapping[str, Mapping[str, Facts]]) -> dict[str, str]:
    """What the statuses that occur mean."""
    there = {status for blocks in known.values() for found in blocks.values() for status in found.counts}
    return {status: STATUS.get(status, "") for status in (*STATUS, *sorted(there - set(STATUS))) if status in there}


def _versions() -> dict[str, str]:
    import jinja2
    import matplotlib
    import scipy

    import steepest

    build = steepest.build_config()
    return {
        "steepest": str(build["version"]),
        "NumPy": np.__version__,
        "SciPy": str(scipy.__version__),
        "matplotlib": matplotlib.__version__,
        "Jinja2": str(jinja2.__version__),
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "compiler": str(build["compiler"]),
        "Eigen": str(build["eigen"]),
        "instruction set": str(build["instruction_set"]),
        "threads": str(build["num_threads"]),
    }


def _runs(
    runs: Mapping[str, RunAnalysis],
    known: Mapping[str, Mapping[str, Facts]],
    identified: Mapping[str, Iterable[Identification]],
    max_points: int,
    block_figures: int,
) -> list[RunSection]:
    sections = []
    for position, (name, run) in enumerate(runs.items()):
        whole, with_figures = known[name][ALL], position < _MOST_RUNS_WITH_FIGURES
        named = [block for block in run.blocks if block != ALL]
        blocks = []
        for place, block in enumerate(named[:_MOST_BLOCKS]):
            picture = None
            if block_figures > 0 and with_figures and known[name][block].with_angle and len(named) > 1:
                picture = block_picture(run, block, f"run{position}-block{place}", min(max_points, 120))
                block_figures -= 1
            blocks.append(BlockSection(block, known[name][block], picture))
        sections.append(
            RunSection(
                name=name,
                candidate=run.candidate,
                headline=headline(run, whole),
                story=story(run, whole, {block: known[name][block] for block in named}),
                notes=run.notes,
                whole=whole,
                blocks=blocks,
                left_out=max(len(named) - _MOST_BLOCKS, 0),
                pictures=run_pictures(run, f"run{position}") if with_figures else [],
                identified=list(identified.get(name, ())),
                made=_made(run),
            )
        )
    return sections


def _made(run: RunAnalysis) -> dict[str, str]:
    """How the numbers of a run came about."""
    info = run.info
    window = "one step" if run.window == 1 else f"{run.window} steps"
    made = {
        "gradient": GRADIENT.get(run.gradient_source, run.gradient_source),
        "pair": f"{run.pair}: {PAIR.get(run.pair, '')}",
        "window": window,
        "objective": "one function throughout" if info.objective == "fixed" else "not known to be one function",
        "update": "rate of change of the parameters" if info.rate else "difference of the parameters",
        "recorded": "every step" if info.every == 1 else f"every {info.every}th step",
        "earlier steps kept for products": str(info.lag),
    }
    if info.scaled:
        made["units"] = "scaled, as given to the recorder"
    if run.dtypes:
        made["numbers"] = ", ".join(run.dtypes)
    resumed = int(np.nansum(np.asarray(run["resumed"], dtype=np.float64)))
    if resumed:
        made["resumed"] = f"{resumed} time{'s' * (resumed != 1)}"
    return made
