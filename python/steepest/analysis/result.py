"""The analysis of one or several runs."""

from __future__ import annotations

import html
import importlib
import logging
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from steepest.analysis.archive import load_runs, save_runs
from steepest.analysis.export import run_to_dict, runs_to_xarray
from steepest.analysis.optional import optional
from steepest.analysis.run import RunAnalysis
from steepest.analysis.windows import Effectiveness
from steepest.row_format import ALL

if TYPE_CHECKING:
    from steepest.identify import Identification
    from steepest.identify.identification import Family

__all__ = ["Analysis"]

_LOGGER = logging.getLogger("steepest")


class _Plot:
    """The figures of `steepest.plot`, with an analysis as first argument."""

    def __init__(self, analysis: Analysis) -> None:
        self._analysis = analysis

    def __getattr__(self, name: str) -> Any:
        module = importlib.import_module("steepest.plot")
        if name.startswith("_") or name not in module.__all__ or not callable(getattr(module, name)):
            raise AttributeError(f"no figure {name!r}; there are {', '.join(self.__dir__())}")
        return partial(getattr(module, name), self._analysis)

    def __dir__(self) -> list[str]:
        module = importlib.import_module("steepest.plot")
        return [name for name in module.__all__ if name.islower()]


@dataclass(frozen=True, eq=False, repr=False)
class Analysis:
    """What recordings say about their learning rules; made by `steepest.analyze`.

    Attributes
    ----------
    runs : dict
        Run name -> `RunAnalysis`, which has the columns. A single recording is the run ``"run"``; of a recording with
        several candidate losses each is a run of its own, ``"run/candidate"``.
    identified : dict
        Run name -> constant metrics that were fitted to the run, if any were (`steepest.identify`).

    Examples
    --------
    >>> import numpy as np
    >>> import steepest
    >>> theta = np.array([1.0, 1.0]) * 0.8 ** np.arange(20)[:, None]
    >>> a = steepest.analyze(steepest.recording(params=theta, grad=theta * [1.0, 3.0], loss=theta @ [1.0, 2.0]))
    >>> a.runs["run"]["psi"].shape, a.counts()["run"]["(all)"]
    ((20, 1), {'ok': 19, 'no_update': 1})
    >>> round(float(np.degrees(a.summary()[0]["psi_median"])), 3)
    26.565
    """

    runs: dict[str, RunAnalysis]
    identified: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the data can say and cannot, in plain words; with the name of the run if there are several."""
        if len(self.runs) == 1:
            return next(iter(self.runs.values())).notes
        return tuple(f"{name}: {note}" for name, run in self.runs.items() for note in run.notes)

    @property
    def plot(self) -> Any:
        """Figures: ``a.plot.angle(x="loss")`` is ``steepest.plot.angle(a, x="loss")``."""
        return _Plot(self)

    def __getitem__(self, run: str) -> RunAnalysis:
        if run not in self.runs:
            raise KeyError(f"no run {run!r}; there are {', '.join(list(self.runs)[:8])}")
        return self.runs[run]

    def __len__(self) -> int:
        return len(self.runs)

    def summary(self) -> list[dict[str, Any]]:
        """One row of plain numbers for each run and block.

        Returns
        -------
        list of dict
            ``run, candidate, block, size, steps``; the count of every status; ``<column>_median`` over the steps with
            status ok; quartiles ``psi_low, psi_high``, ``psi_first, psi_last``; ``null_isotropic``; the number of
            steps ``within_rounding``; ``below_chance_share``: of the steps with an angle, how many lie below both 95%
            bands of chance; ``path_length``; ``gradient_source``, ``pair``, ``window``, ``loss_first``, ``loss_last``,
            ``effective_share``. NaN where unknown; angles in rad.
        """
        return [row for run in self.runs.values() for row in run.summary()]

    def counts(self) -> dict[str, dict[str, dict[str, int]]]:
        """How many steps have which status.

        Returns
        -------
        dict
            Run name -> block -> status -> count, without zeros.
        """
        return {name: {block: run.counts(block) for block in run.blocks} for name, run in self.runs.items()}

    def effectiveness(
        self, windows: Iterable[int] = (1, 10, 100), longest: int | None = None
    ) -> dict[str, Effectiveness]:
        """Over which windows the loss of each run falls, eq (3); needs losses only.

        Parameters
        ----------
        windows : iterable of int
            In steps.
        longest : int, optional
            The longest window to try for the least one that always works; half of the recorded range by default.

        Returns
        -------
        dict
            Run name -> `Effectiveness`.
        """
        chosen = tuple(windows)
        return {name: run.effectiveness(chosen, longest) for name, run in self.runs.items()}

    def metric(self, step: int, run: str | None = None, block: str = ALL, **options: Any) -> Any:
        """The metric of one step, from the vectors that were kept; see `RunAnalysis.metric`.

        Parameters
        ----------
        step : int
            Number of the step.
        run : str, optional
            Name of the run; not needed if there is one only.
        block : str
            ``"(all)"`` or the name of an array.
        **options
            alpha, base, ... of `steepest.metric`.

        Returns
        -------
        Metric
            Of the gradient and the update recorded at the step.

        Raises
        ------
        ValueError
            The recording kept no vectors; there are several runs and none is named.
        """
        if run is None:
            if len(self.runs) != 1:
                raise ValueError(f"expected the name of a run, one of {list(self.runs)[:8]}, got none")
            run = next(iter(self.runs))
        return self[run].metric(step, block, **options)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python values.

        Returns
        -------
        dict
            ``runs``: name -> `RunAnalysis.to_dict`; ``notes``; ``identified``: name -> list of dict.
        """
        fitted = {name: [one.to_dict() for one in found] for name, found in self.identified.items()}
        runs = {name: run_to_dict(run) for name, run in self.runs.items()}
        return {"runs": runs, "notes": list(self.notes), "identified": fitted}

    def to_dataframe(self, columns: Iterable[str] | None = None) -> Any:
        """Long format: one row for each run, step and block.

        Parameters
        ----------
        columns : iterable of str, optional
            All by default.

        Returns
        -------
        pandas.DataFrame
            ``run, candidate, step, block``, then the columns; those of a step are repeated for each block.

        Raises
        ------
        ImportError
            pandas is not installed.
        """
        frames = [run.to_dataframe(columns) for run in self.runs.values()]
        if len(frames) == 1:
            return frames[0]
        pd = optional("pandas", "pandas", "a frame")

        names = ("run", "candidate", "block")
        union = {name: list(dict.fromkeys(x for f in frames for x in f[name].cat.categories)) for name in names}
        for frame in frames:  # of one dtype, so that concatenation keeps it
            for name in names:
                frame[name] = frame[name].cat.set_categories(union[name])
        return pd.concat(frames, ignore_index=True)

    def to_xarray(self, columns: Iterable[str] | None = None) -> Any:
        """Dimensions run, step and block; ``a.runs[name].to_xarray()`` has step and block only.

        Parameters
        ----------
        columns : iterable of str, optional
            All by default.

        Returns
        -------
        xarray.Dataset
            Steps and blocks are those that occur in any run; where a run has none, values are NaN, status is -1. The
            status is a code, explained by the attributes ``flag_values`` and ``flag_meanings``, so that any file format
            holds it.

        Raises
        ------
        ImportError
            xarray is not installed.
        """
        return runs_to_xarray(self.runs, columns)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one file, which `load` reads: an npz archive of arrays and JSON; nothing is pickled.

        Parameters
        ----------
        path : path-like
            Replaced if there is one, when all is written.

        Notes
        -----
        All columns are computed first. The recordings themselves and `identified` are not part of it.
        """
        save_runs(self.runs, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote, into memory.

        Parameters
        ----------
        path : path-like
            The file.

        Returns
        -------
        Analysis
            Without the recordings: `metric` needs them.

        Raises
        ------
        FileNotFoundError
            Nothing is there.
        ValueError
            Not an analysis, or of a version that is not known here.
        """
        return cls(load_runs(path))

    def identify(self, *, rng: Any = 0, progress: bool = False) -> Self:
        """The same with `identified`: the constant metrics that fit each run best, scored on later steps.

        One step's metric tells only its angle and the ratio of norms; whether one geometry explains many steps is the
        question that could be answered with no.

        Parameters
        ----------
        rng : Generator or int
            Of the bootstrap intervals.
        progress : bool
            Show a progress bar (tqdm).

        Returns
        -------
        Analysis
            With the scalar metric of every run, and the diagonal one where the recording kept the vectors. A run to
            which none can be fitted (too few steps, no gradient) has none, and a log record says why.

        Raises
        ------
        KeyError
            The analysis was loaded from a file, and its recordings are not at hand.
        """
        from steepest.identify import identify

        found: dict[str, list[Identification]] = {}
        for name, run in self.runs.items():
            recording = run.recording
            families: tuple[Family, ...] = ("scalar", "diagonal") if recording.has_vectors else ("scalar",)
            for family in families:
                try:
                    fitted = identify(recording, family, blocks=run.blocks, rng=rng, progress=progress)
                except ValueError as error:
                    _LOGGER.warning("No constant %s metric of %s: %s", family, name, error)
                else:
                    found.setdefault(name, []).append(fitted)
        return replace(self, identified=found)

    def report(self, path: str | os.PathLike[str], *, identify: bool = True, **options: Any) -> Any:
        """Write a report, one self-contained HTML file: `steepest.report.report`.

        Parameters
        ----------
        path : path-like
            The file.
        identify : bool
            With constant metrics (`identify`), unless there are some already, or the recordings are not at hand.
        **options
            Of `steepest.report.report`.

        Returns
        -------
        Path
            The file.
        """
        found = self
        if identify and not self.identified and all(run.has_recording for run in self.runs.values()):
            found = self.identify()
        return importlib.import_module("steepest.report").report(found, path, **options)

    def _repr_html_(self) -> str:
        head = ("run", "steps", "with a metric", "median angle (deg)", "median condition number", "gradient", "pair")
        rows = [
            (
                row["run"],
                row["steps"],
                row["ok"],
                f"{math.degrees(row['psi_median']):.4g}",
                f"{row['cond_min_median']:.4g}",
                row["gradient_source"],
                row["pair"],
            )
            for row in self.summary()
            if row["block"] == ALL
        ]
        cells = ["".join(f"<td>{html.escape(str(x))}</td>" for x in row) for row in rows]
        titles = "".join(f"<th>{title}</th>" for title in head)
        return f"<table><tr>{titles}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"

    def __repr__(self) -> str:
        listed = [f"  {run!r}" for run in list(self.runs.values())[:12]]
        more = [f"  ... and {len(self.runs) - 12} more"] * (len(self.runs) > 12)
        return "\n".join([f"Analysis of {len(self.runs)} run{'s' * (len(self.runs) != 1)}", *listed, *more])
