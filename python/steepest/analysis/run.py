"""The analysis of one run: a column for each quantity, computed when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from steepest.analysis.angles import angle, isotropic_half_width, spectrum
from steepest.analysis.columns import COLUMNS, PAIR_STATUS_CODE, PAIR_STATUSES, Pair
from steepest.analysis.curvature import curvature_and_bound
from steepest.analysis.distances import metric_distances
from steepest.analysis.export import run_to_dataframe, run_to_dict, run_to_xarray
from steepest.analysis.notes import notes_of
from steepest.analysis.pair_rows import PAIR_COLUMNS, chunks, continuous_rows
from steepest.analysis.step_pairs import StepPair, step_pair_rows
from steepest.analysis.summary import counts_of, summary_of
from steepest.analysis.windows import Effectiveness, change_over, effectiveness
from steepest.arrays import FLOAT_NAMES
from steepest.metric import metric
from steepest.recording import Recording
from steepest.row_format import ALL, GradientSource, RecordingInfo

__all__ = ["RunAnalysis"]

Array = NDArray[Any]


@dataclass(frozen=True, eq=False, repr=False)
class RunAnalysis:
    """What the recording of one run says, for each step and block; ``run[name]`` is a column.

    A column is computed when it is first asked for, and kept. Every block column has shape (steps, blocks), every other
    one shape (steps,); what the data cannot give is NaN, and `notes` say why.

    Attributes
    ----------
    name : str
        Of the run.
    candidate : str or None
        Which of the recorded losses this is about.
    info : RecordingInfo
        Of the recording: objective, gradient_source, rate, lag, every.
    pair : {'continuous', 'trapezoid', 'left', 'displacement'}
        What is taken for gradient and update of a step; see `steepest.analyze`.
    window : int
        Of `effective`, and of the pair 'displacement'.
    blocks : tuple of str
        ``"(all)"``, the whole vector, first.
    sizes : tuple of int
        Number of parameters of each block.

    Notes
    -----
    Columns of shape (steps,): ``loss``, ``time``, ``resumed``, ``dloss`` (L_{t+1} - L_t), ``effective`` (1 if
    L_{t+w} < L_t for the window w, 0 if not, NaN if unknown).

    Columns of shape (steps, blocks), with psi, rho, c, s of the pair:

    - ``status`` as `Recording.status`, or ``no_loss`` where the pair needs the loss after the step and it is unknown;
      ``psi``, ``cos``, ``sin``; ``psi_floor``, the angle that rounding makes by itself; ``within_rounding``;
      ``null_isotropic``, ``null_sign_flip``: half widths of the 95% bands about 90 degrees in which random directions
      and random signs lie (`Alignment.null_band`);
    - ``grad_norm``, ``update_norm``, ``rho``; of the condition-optimal metric, eq (9): ``cond_min``, ``log_cond``,
      ``alpha``, ``lam_min``, ``lam_max``;
    - ``curvature`` h = 2 (dL - grad.d)/(d.d), the second derivative of the loss along the step d = update, and
      ``step_bound``, by what factor the step could grow before eq (17) with this h ceases to be positive definite, 2
      lam_min/abs(h) of the left discrete gradient (section 7, derived): block ``"(all)"`` only, one step whatever the
      pair, and only for ``objective="fixed"``;
    - ``correction_share`` q of section 1 (0 for the continuous pair);
    - ``distance``, ``distance_bulk``, ``distance_plane``: affine-invariant distance between the condition-optimal
      metrics of the continuous pairs of the step before and this one (section 5); ``path_length``, its sum. They need
      ``lag >= 1``, and some 25 microseconds a row;
    - ``decay_share`` as recorded.

    Examples
    --------
    >>> import numpy as np
    >>> import steepest
    >>> x = np.array([[3.0, 4.0], [2.0, 3.0]])
    >>> run = steepest.analyze(steepest.recording(grad=x, update=-x * [1.0, 2.0]))["run"]
    >>> run
    RunAnalysis('run': 2 steps, 1 block, n=2, pair 'continuous', gradient from the rule; ok 2)
    >>> np.degrees(run["psi"]).round(2).tolist()
    [[16.31], [15.26]]
    """

    name: str
    candidate: str | None
    info: RecordingInfo
    pair: Pair
    window: int
    blocks: tuple[str, ...]
    sizes: tuple[int, ...]
    _source: Recording | None = field(default=None)
    _places: tuple[int, ...] = field(default=())  # of the blocks, in the recording
    _progress: bool = field(default=False)
    _cache: dict[str, Array] = field(default_factory=dict)

    @property
    def gradient_source(self) -> GradientSource:
        """Where the gradient comes from: 'rule', 'evaluation' or 'estimate'."""
        return self.info.gradient_source

    @property
    def has_recording(self) -> bool:
        """Whether the recording is at hand; it is not kept in files."""
        return self._source is not None

    @property
    def recording(self) -> Recording:
        """What was analysed; KeyError for an analysis from a file."""
        return self._recording("recording")

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Element types of gradient and update, the coarser of the two, over all steps; empty if not at hand."""
        if self._source is None:
            return ()
        codes = np.unique(self._rows(slice(None))["dtype"][:, 0])
        return tuple(FLOAT_NAMES[code] for code in codes if code >= 0)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names that ``run[name]`` accepts."""
        return tuple(COLUMNS)

    @property
    def step(self) -> NDArray[np.int64]:
        """Number of each step, ascending: shape (steps,)."""
        if "step" not in self._cache:
            self._keep({"step": np.array(self._recording("step").step)})
        return self._cache["step"]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the data can say and cannot, in plain words."""
        return notes_of(self)

    def __len__(self) -> int:
        return len(self.step)

    def __getitem__(self, name: str) -> Array:
        if name == "step":
            return self.step
        if name == "status":  # text takes ten times the memory of the codes: not kept
            return _frozen(np.array(PAIR_STATUSES)[self["status_code"]])
        if name not in self._cache:
            if name != "status_code" and name not in COLUMNS:
                raise KeyError(f"no column {name!r}; there are {', '.join(COLUMNS)}")
            group = "pair" if name == "status_code" else COLUMNS[name].group
            self._keep(_GROUPS[group](self))
        return self._cache[name]

    def metric(self, step: int, block: str = ALL, **options: Any) -> Any:
        """The metric of one step, from the vectors that were kept.

        Parameters
        ----------
        step : int
            Number of the step.
        block : str
            ``"(all)"`` or the name of an array.
        **options
            alpha, base, ... of `steepest.metric`.

        Returns
        -------
        Metric
            Of the gradient and the update recorded at the step: of the continuous pair, whatever `pair` is, and in the
            units of the vectors, also where the columns are in those of a scale (``info.scaled``).

        Raises
        ------
        ValueError
            The recording kept no vectors, or none of this step; there is no such block.
        NotDescentError
            grad.update >= 0.
        """
        source = self._source
        if source is None or not source.has_vectors:
            why = "was loaded without its recording" if source is None else "is of a recording without vectors"
            raise ValueError(
                f"expected vectors to form a metric, but this analysis {why}: record with keep='vectors', or pass "
                "whole arrays to steepest.recording"
            )
        stored = source.vectors(step)
        grad, update = stored.grad, stored.update
        if grad is None or update is None:
            missing = "gradient" if grad is None else "update"
            raise ValueError(f"expected a gradient and an update in step {step}, got no {missing}")
        if block != ALL:
            if block not in self.blocks:
                raise ValueError(f"expected block to be one of {list(self.blocks)[:8]}, got {block!r}")
            grad, update = grad[block], update[block]
        return metric(grad, update, **options)

    def effectiveness(self, windows: Iterable[int] = (1, 10, 100), longest: int | None = None) -> Effectiveness:
        """Over which windows the loss falls, eq (3); needs losses only.

        Parameters
        ----------
        windows : iterable of int
            In steps.
        longest : int, optional
            The longest window to try for the least one that always works; half of the recorded range by default.

        Returns
        -------
        Effectiveness
            Share of steps with L_{t+w} < L_t for each window, and the least window for which the loss falls at every
            step.

        Raises
        ------
        ValueError
            A window is below 1.
        """
        return effectiveness(self.step, self["loss"], windows, longest)

    def counts(self, block: str = ALL) -> dict[str, int]:
        """How many steps have which status.

        Parameters
        ----------
        block : str
            ``"(all)"`` or the name of an array.

        Returns
        -------
        dict
            Status -> count, without zeros.

        Raises
        ------
        ValueError
            There is no such block.
        """
        if block not in self.blocks:
            raise ValueError(f"expected block to be one of {list(self.blocks)[:8]}, got {block!r}")
        return {status: k for status, k in counts_of(self, self.blocks.index(block)).items() if k}

    def summary(self) -> list[dict[str, Any]]:
        """One row for each block, of plain numbers; see `Analysis.summary`.

        Returns
        -------
        list of dict
            In the order of `blocks`.
        """
        return summary_of(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python values.

        Returns
        -------
        dict
            name, candidate, info, pair, window, blocks, sizes, notes, step, and ``columns``: name -> list.
        """
        return run_to_dict(self)

    def to_dataframe(self, columns: Iterable[str] | None = None) -> Any:
        """Long format, one row for each step and block; see `Analysis.to_dataframe`.

        Parameters
        ----------
        columns : iterable of str, optional
            All by default.

        Returns
        -------
        pandas.DataFrame
            With ``run, candidate, step, block`` before the columns.
        """
        return run_to_dataframe(self, columns)

    def to_xarray(self, columns: Iterable[str] | None = None) -> Any:
        """Dimensions step and block.

        Parameters
        ----------
        columns : iterable of str, optional
            All by default.

        Returns
        -------
        xarray.Dataset
            With the units and meanings of the columns as attributes.
        """
        return run_to_xarray(self, columns)

    def __repr__(self) -> str:
        counts = ", ".join(f"{status} {k}" for status, k in self.counts().items())
        window = f", window {self.window}" * (self.window > 1)
        blocks = f"{len(self.blocks)} block" + "s" * (len(self.blocks) != 1)
        return (
            f"RunAnalysis({self.name!r}: {len(self)} steps, {blocks}, n={self.sizes[0]}, pair {self.pair!r}{window}, "
            f"gradient from the {self.gradient_source}; {counts or 'no steps'})"
        )

    def _recording(self, name: str) -> Recording:
        if self._source is None:
            raise KeyError(f"{name!r} was not saved with this analysis: analyse the recording again")
        return self._source

    def _rows(self, steps: slice) -> NDArray[np.void]:
        """Rows of a recording, of the blocks of this analysis."""
        rows = self._recording("rows").rows[steps]
        return rows if len(self._places) == rows.shape[1] else rows[:, list(self._places)]

    def _keep(self, found: dict[str, Array]) -> None:
        for name, array in found.items():
            self._cache.setdefault(name, _frozen(array))

    def _missing(self) -> Array:
        return np.broadcast_to(np.float64(np.nan), (len(self), len(self.blocks)))


def _frozen(array: Array) -> Array:
    view = array.view()
    view.flags.writeable = False
    return view


def _losses(run: RunAnalysis) -> dict[str, Array]:
    source = run._recording("loss")
    loss, step = np.array(source.loss), run.step
    change = change_over(step, loss, run.window)
    return {
        "loss": loss,
        "time": np.array(source.time),
        "resumed": np.array(source.resumed),
        "dloss": change_over(step, loss, 1),
        "effective": np.where(np.isnan(change), np.nan, change < 0.0),
    }


def _pair(run: RunAnalysis) -> dict[str, Array]:
    shape = (len(run), len(run.blocks))
    found = {name: np.empty(shape, dtype) for name, dtype in PAIR_COLUMNS.items()}
    single = np.array(run.sizes) == 1
    of_step = None if run.pair == "continuous" else StepPair.of(run.pair, run.window)
    for steps in chunks(*shape):
        if of_step is None:
            values = continuous_rows(run._rows(steps), single)
        else:
            after = slice(steps.start, min(steps.stop + of_step.window, len(run)))
            values = step_pair_rows(run._rows(after), run.step[after], run["loss"][after], of_step, single)
        for name, array in values.items():
            found[name][steps] = array[: steps.stop - steps.start]
    return cast("dict[str, Array]", found)


def _angle(run: RunAnalysis) -> dict[str, Array]:
    return angle(run["cos"], run["sin"], run["psi_floor"])


def _isotropic(run: RunAnalysis) -> dict[str, Array]:
    return {"null_isotropic": np.broadcast_to(isotropic_half_width(run.sizes), (len(run), len(run.blocks)))}


def _spectrum(run: RunAnalysis) -> dict[str, Array]:
    return dict(spectrum(run["cos"], run["sin"], run["rho"], run["status_code"] == PAIR_STATUS_CODE["ok"]))


def _curvature(run: RunAnalysis) -> dict[str, Array]:
    names = ("curvature", "step_bound")
    if run.info.objective != "fixed" or run.info.rate:
        return dict.fromkeys(names, run._missing())
    rows = run._recording("curvature").rows[:, 0]
    found = curvature_and_bound(rows, run["dloss"])
    columns = {}
    for name, values in zip(names, found, strict=True):
        columns[name] = np.full((len(run), len(run.blocks)), np.nan)
        columns[name][:, 0] = values
    return columns


def _distance(run: RunAnalysis) -> dict[str, Array]:
    names = ("distance", "distance_bulk", "distance_plane")
    if run.info.lag < 1:
        return dict.fromkeys(names, run._missing())
    run._recording("distance")
    found = metric_distances(run._rows, run.step, run.sizes, run.name if run._progress else None)
    return dict(zip(names, found, strict=True))


def _path(run: RunAnalysis) -> dict[str, Array]:
    distance = run["distance"]
    if not np.isfinite(distance).any():
        return {"path_length": run._missing()}
    return {"path_length": np.nancumsum(distance, axis=0)}


_GROUPS: dict[str, Callable[[RunAnalysis], dict[str, Array]]] = {
    "losses": _losses,
    "pair": _pair,
    "angle": _angle,
    "isotropic": _isotropic,
    "spectrum": _spectrum,
    "curvature": _curvature,
    "distance": _distance,
    "path": _path,
}
