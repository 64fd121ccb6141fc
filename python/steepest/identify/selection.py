"""Families side by side on one run or on many: `select`."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from steepest.identify.comparison import compare
from steepest.identify.fit import _FAMILIES, identify
from steepest.identify.identification import Family, Identification
from steepest.identify.steps import Steps, steps_of
from steepest.identify.surrogates import Kind
from steepest.identify.surrogates import surrogates as surrogate_scores

__all__ = ["Selection", "select"]

_DEFAULT = ("scalar", "diagonal", "kronecker-output", "kronecker-input")
_PLAIN = ("scalar", "diagonal")  # they fit whatever has vectors; what they refuse is an error in the data


@dataclass(frozen=True, eq=False, repr=False)
class Selection:
    """Held-out scores of several families on several runs; made by `steepest.select`.

    Attributes
    ----------
    rows : list of dict
        One for each run, block and family, from simple to rich: `run`, and what `steepest.identify.compare` says.
    runs : tuple of str
        Names of the runs.
    families : tuple of str
        Those that were fitted to one of them at least, in the order of the table.
    skipped : tuple of dict
        `run`, `family`, `reason`.
    identifications : dict
        Run -> family -> `Identification`, with the fitted numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest.identify import select
    >>> grad = np.random.default_rng(0).normal(size=(80, 3))
    >>> chosen = select({"descent": (grad, -0.1 * grad), "scaled": (grad, -grad * [0.1, 0.2, 0.4])}, rng=0)
    >>> chosen.chosen("descent"), chosen.chosen("scaled")
    ('scalar', 'diagonal')
    """

    rows: list[dict[str, Any]]
    runs: tuple[str, ...]
    families: tuple[str, ...]
    skipped: tuple[dict[str, str], ...]
    identifications: dict[str, dict[Family, Identification]] = field(default_factory=dict)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the blocks of all runs."""
        return tuple(dict.fromkeys(row["block"] for row in self.rows))

    @property
    def plot(self) -> Any:
        """Figures: ``s.plot.heatmap(ax=ax)`` is ``steepest.plot.geometries(s, ax=ax)``."""
        return _Plot(self)

    def chosen(self, run: str | None = None, block: str | None = None) -> str | None:
        """The simplest family that no richer one beats.

        Parameters
        ----------
        run : str, optional
            Which; needed if there are several.
        block : str, optional
            The first one by default, which is ``"(all)"``.

        Returns
        -------
        str or None
            None where no family predicts held-out steps better than M = 0 does.

        Raises
        ------
        ValueError
            No such run or block.
        """
        run = self._run(run)
        blocks = tuple(dict.fromkeys(row["block"] for row in self.rows if row["run"] == run))
        block = blocks[0] if block is None else block
        if block not in blocks:
            raise ValueError(f"expected block to be one of {list(blocks)[:8]}, got {block!r}")
        found = (row for row in self.rows if (row["run"], row["block"]) == (run, block) and row["chosen"])
        return next((row["family"] for row in found), None)

    def __getitem__(self, run_and_family: tuple[str, Family]) -> Identification:
        run, family = run_and_family
        known = self.identifications[self._run(run)]
        if family not in known:
            raise ValueError(f"expected a family that was fitted to run {run!r}, {list(known)}, got {family!r}")
        return known[family]

    def scores(self, block: str | None = None) -> tuple[tuple[str, ...], tuple[str, ...], NDArray[np.float64]]:
        """The scores as an array.

        Parameters
        ----------
        block : str, optional
            The first one by default, which is ``"(all)"``.

        Returns
        -------
        runs, families : tuple of str
            Names along the first two axes.
        values : ndarray, shape (runs, families, 3)
            R2 and the ends of its interval; NaN where the family was not fitted.
        """
        table = self.column(("score", "score_low", "score_high"), block)
        return self.runs, self.families, table

    def column(self, names: Sequence[str], block: str | None = None) -> NDArray[np.float64]:
        """Numbers of the rows as an array.

        Parameters
        ----------
        names : sequence of str
            Keys of `rows`.
        block : str, optional
            The first one by default, which is ``"(all)"``.

        Returns
        -------
        ndarray, shape (runs, families, names)
            NaN where the family was not fitted.

        Raises
        ------
        ValueError
            No such block or key.
        """
        block = self.blocks[0] if block is None else block
        if block not in self.blocks:
            raise ValueError(f"expected block to be one of {list(self.blocks)[:8]}, got {block!r}")
        unknown = [name for name in names if name not in self.rows[0]]
        if unknown:
            raise ValueError(f"expected names out of {list(self.rows[0])}, got {unknown}")
        values = np.full((len(self.runs), len(self.families), len(names)), np.nan)
        for row in self.rows:
            if row["block"] == block:
                values[self.runs.index(row["run"]), self.families.index(row["family"])] = [row[name] for name in names]
        return values

    def table(self, block: str | None = None) -> str:
        """Aligned text, one line for each run and family; ``*`` marks the family that is chosen.

        Parameters
        ----------
        block : str, optional
            The first one by default, which is ``"(all)"``; ``"*"`` for all.

        Returns
        -------
        str
            What ``print(selection)`` shows.

        Raises
        ------
        ValueError
            No such block.
        """
        shown = None if block == "*" else self.blocks[0] if block is None else block
        if shown is not None and shown not in self.blocks:
            raise ValueError(f"expected block to be one of {list(self.blocks)[:8]} or '*', got {block!r}")
        rows = [row for row in self.rows if shown in (None, row["block"])]
        ceilings = any(math.isfinite(row["ceiling"]) for row in rows)
        nulls = sorted({key for row in rows for key in row if key.startswith("p_")})
        head = ["run", *(["block"] if shown is None else []), "family", "parameters", "held-out R2", "95% interval"]
        head += ["ceiling", "R2/ceiling"] * ceilings + nulls + ["status", ""]
        lines, last = [head], None
        for row in rows:
            at = (row["run"], row["block"])
            line = [row["run"] if last is None or last[0] != row["run"] else ""]
            line += ([row["block"] if last != at else ""] if shown is None else []) + [row["family"]]
            line += [f"{row['parameters']}", _number(row["score"]), _range(row["score_low"], row["score_high"])]
            line += [_number(row["ceiling"]), _number(row["relative"])] * ceilings
            line += [_number(row[name]) for name in nulls] + [row["status"], "*" * row["chosen"]]
            lines.append(line)
            last = at
        return "\n".join(_aligned(lines))

    def to_dataframe(self) -> Any:
        """The rows as a frame.

        Returns
        -------
        pandas.DataFrame
            Needs pandas: ``pip install "steepest[pandas]"``.

        Raises
        ------
        ImportError
            pandas is not installed.
        """
        try:
            pd = importlib.import_module("pandas")
        except ImportError as error:
            raise ImportError('a frame needs pandas, which is not installed: pip install "steepest[pandas]"') from error
        return pd.DataFrame(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the fitted numbers, as plain Python values.

        Returns
        -------
        dict
            rows, runs, families, skipped.
        """
        return {
            "rows": [dict(row) for row in self.rows],
            "runs": list(self.runs),
            "families": list(self.families),
            "skipped": [dict(one) for one in self.skipped],
        }

    def __repr__(self) -> str:
        lines = [self.table()]
        if len(self.blocks) > 1:
            lines.append(f"block {self.blocks[0]!r}; {len(self.blocks) - 1} more: table('*')")
        lines.append("*: the simplest family that no richer one beats; without one, no evidence for any")
        lines += [f"skipped: {one['family']} of {one['run']}: {one['reason']}" for one in self.skipped]
        return "\n".join(lines)

    def _run(self, run: str | None) -> str:
        if run is None and len(self.runs) == 1:
            return self.runs[0]
        if run not in self.runs:
            raise ValueError(f"expected run to be one of {list(self.runs)[:8]}, got {run!r}")
        return run


class _Plot:
    """The figures of a selection."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection

    def heatmap(self, ax: Any = None, **options: Any) -> Any:
        """`steepest.plot.geometries` of the selection."""
        return importlib.import_module("steepest.plot.geometries").geometries(self._selection, ax=ax, **options)


def select(
    x: Any,
    families: Sequence[str] | None = None,
    *,
    holdout: float = 0.25,
    blocks: Sequence[str] | None = None,
    window: int = 1,
    replicate: Any = None,
    margin: float = 1e-3,
    surrogates: int = 0,
    rng: Any = None,
    progress: bool = False,
) -> Selection:
    """All families of metrics side by side: which structure explains many steps and predicts later ones.

    Parameters
    ----------
    x : run, or mapping name -> run
        A run is a Recording, a Recorder, a path, a list of pairs (grad, update), or a tuple ``(grad, update)`` of
        whole arrays or mappings of them, first axis the step. A single one is the run ``"run"``.
    families : sequence of str, optional
        Of `steepest.identify`. By default ``"scalar"``; ``"diagonal"`` where there are vectors; ``"kronecker-output"``
        and ``"kronecker-input"`` where an array has two axes or more. What does not apply to a run is skipped, with
        the reason in `Selection.skipped`.
    holdout, blocks, window : float, sequence of str, int
        As for `steepest.identify`. Every score of a run rests on the same held-out steps.
    replicate : as for `steepest.identify`, or mapping name of the run -> that
        For the noise ceilings.
    margin : float
        A gain in R2 below this one does not count.
    surrogates : int
        How many shuffled and how many sign-flipped runs to score as well (`steepest.identify.surrogates`); the rows
        then have `p_shuffle`, `p_flip` and the 95% quantiles of the null distributions, `null_shuffle`, `null_flip`;
        NaN where the run has no vectors to shuffle.
    rng : int, numpy.random.Generator or None
        For the intervals (SPEC 7); the same steps are resampled for all families.
    progress : bool
        Show a progress bar on a terminal (needs tqdm).

    Returns
    -------
    Selection
        Held-out R2 with interval and ceiling, the number of parameters, the simplest family that is not beaten.

    Raises
    ------
    ValueError
        No run, an unknown family, a run that can be read only once, or what `steepest.identify` raises.
    TypeError
        As `steepest.identify`.

    Notes
    -----
    Section 11(b) (derived). Families are ordered by their number of parameters. A family is beaten if the interval of
    the gain of a richer one, from the same resampled held-out steps, lies above `margin`; held-out steps punish what
    the additional parameters only memorise. Where no interval of R2 lies above 0, none is chosen.

    Cost: that of `steepest.identify` for each family and run, and that many fits more for `surrogates` of both kinds;
    the fitted numbers are kept.
    """
    runs = x if isinstance(x, Mapping) else {"run": x}
    if not runs:
        raise ValueError("expected at least one run, got an empty mapping")
    asked: Any = _DEFAULT if families is None else families  # names, which are checked here
    wanted: tuple[Family, ...] = tuple(name for name in asked if families is not None or name in _FAMILIES)
    unknown = [name for name in wanted if name not in _FAMILIES]
    if unknown or not wanted or isinstance(families, str) or len(set(wanted)) < len(wanted):
        raise ValueError(f"expected families out of {list(get_args(Family))}, each once, got {families!r}")
    replicates = _replicates(replicate, x, runs)
    seeds = np.random.default_rng(rng)
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    found: dict[str, dict[Family, Identification]] = {}
    for name, run in runs.items():
        try:
            steps = _steps(name, run)
            seed = int(seeds.integers(1 << 62))
            options = {
                "holdout": holdout, "blocks": blocks, "window": window, "replicate": replicates.get(name),
                "progress": progress,
            }  # fmt: skip
            fits = list(_fits(steps, wanted, families is not None, seed, options))
            found[name] = {family: fit for family, fit, _ in fits if fit is not None}
            skipped += [{"run": name, "family": family, "reason": why} for family, fit, why in fits if fit is None]
            if not found[name]:
                reasons = "; ".join(f"{family}: {why}" for family, _, why in fits)
                raise ValueError(f"expected a family that applies, got {reasons}")
            table = compare(list(found[name].values()), margin=margin, rng=seed)
            nulls = _nulls(steps, tuple(found[name]), surrogates, window, holdout, seed, progress)
        except (TypeError, ValueError) as error:
            error.add_note(f"in run {name!r}")
            raise
        rows += [{"run": name, **row, **nulls.get((row["family"], row["block"]), {})} for row in table]
    order = tuple(family for family in wanted if any(family in fits for fits in found.values()))
    return Selection(rows, tuple(runs), order, tuple(skipped), found)


def _fits(
    steps: Steps, wanted: Sequence[Family], asked: bool, seed: int, options: Mapping[str, Any]
) -> Iterator[tuple[Family, Identification | None, str]]:
    for family in wanted:
        reason = _why_not(family, steps)
        if reason:
            yield family, None, reason
            continue
        try:
            fit = identify(steps, family, rng=seed, **options)
        except ValueError as error:
            if asked or family in _PLAIN:
                raise
            yield family, None, str(error)
            continue
        yield family, fit, ""


def _nulls(
    steps: Steps, families: Sequence[Family], count: int, window: int, holdout: float, seed: int, progress: bool
) -> dict[tuple[str, str], dict[str, float]]:
    """What chance scores, for each family and block."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for family in families if count else ():
        for kind in get_args(Kind):
            possible = kind == "flip" or (steps.has_vectors and steps.at is not None)
            options: dict[str, Any] = {"count": count, "window": window, "holdout": holdout, "progress": progress}
            null = surrogate_scores(steps, family, kind=kind, rng=seed, **options) if possible else None
            for block in steps.blocks:
                row = found.setdefault((family, block), {})
                row[f"p_{kind}"] = math.nan if null is None else null.p(block)
                row[f"null_{kind}"] = math.nan if null is None else null.quantile(0.95, block)
    return found


def _why_not(family: str, steps: Steps) -> str:
    if family != "scalar" and not steps.has_vectors:
        return "it needs the vectors of every step, and there are inner products only"
    if family.startswith("kronecker") and all(len(shape) < 2 for shape in steps.layout.shapes):
        return "no array has two axes or more"
    return ""


def _steps(name: str, run: Any) -> Steps:
    whole = isinstance(run, tuple) and len(run) == 2 and not any(isinstance(part, tuple | list) for part in run)
    steps = steps_of(None, run[0], run[1], None) if whole else steps_of(run, None, None, None)
    if not steps.repeatable:
        raise ValueError(f"expected runs that can be read more than once, got an iterator for {name!r}: pass a list")
    return steps


def _replicates(replicate: Any, x: Any, runs: Mapping[str, Any]) -> Mapping[str, Any]:
    if replicate is None:
        return {}
    if not isinstance(x, Mapping):
        return {"run": replicate}
    if not isinstance(replicate, Mapping) or not set(replicate) <= set(runs):
        given = list(replicate)[:8] if isinstance(replicate, Mapping) else type(replicate).__name__
        raise ValueError(f"expected replicate to be a mapping with keys out of {list(runs)[:8]}, got {given}")
    return replicate


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _range(low: float, high: float) -> str:
    return f"[{_number(low)}, {_number(high)}]" if math.isfinite(low) else "-"


def _aligned(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numbers = {"parameters", "held-out R2", "ceiling", "R2/ceiling"} | {x for x in lines[0] if x.startswith("p_")}
    for line in lines:
        cells = [
            cell.rjust(width) if title in numbers else cell.ljust(width)
            for cell, width, title in zip(line, widths, lines[0], strict=True)
        ]
        yield "  ".join(cells).rstrip()
