"""What a learning rule did, step by step and block by block: the few numbers from which every analysis starts."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from steepest import candidates as candidate_names
from steepest.alignment import Alignment, PairProducts, from_products, scaled
from steepest.arrays import EPSILON, FLOAT_NAMES, ArrayOrMapping
from steepest.row_format import (
    ALL,
    NAN,
    SCHEMA,
    STATUS_CODE,
    STATUSES,
    GradientSource,
    Objective,
    RecordingInfo,
    row_dtype,
)
from steepest.storage import RecordReader, RecordWriter
from steepest.vector_store import StoredStep, VectorFolder
from steepest.whole_arrays import rows_of_arrays

__all__ = ["Recording", "recording"]


class Recording:
    """Per step and block the inner products of gradient and update, and what belongs to them; read-only.

    Made by `steepest.recording` from whole arrays, by `steepest.Recorder` during training, by `Recording.open` from a
    folder. Blocks are ``"(all)"``, the whole vector, and then each named array; a single array has only ``"(all)"``.

    A step that has no angle keeps its row and says why: see `status`.

    Attributes
    ----------
    info : RecordingInfo
        Names, shapes, objective, gradient_source, rate, lag, every, candidates, keep, scaled.
    rows : ndarray, shape (len(self), number of blocks)
        The structured array behind everything else, not writeable; its fields are the names that ``recording[name]``
        accepts (see Notes). With candidates of shape (len(self), number of candidates, number of blocks); what differs
        between candidates (everything but `step`, `time`, `resumed`, `notes`) is then asked of `candidate`, and raises
        ValueError here.

    Notes
    -----
    ``recording[name]`` is a read-only view of shape (steps, blocks). With y = +dL/dtheta and g = update:

    - ``yy, yg, gg`` and ``yy_bound, yg_bound, gg_bound``: inner products and rigorous bounds on their errors (before
      the last rounding to float64, which adds half an ulp), of the vectors divided by ``2**y_exponent`` and
      ``2**g_exponent``; ``cosine, sine``: of the angle between grad and update; ``sign_flip_variance``:
      sum (y_i g_i)^2 / (yy gg). NaN where a vector is missing.
    - ``psi_floor`` (rad): what rounding of the parameters does to the angle of a difference of parameters,
      ``atan(|spacing(params)| / sqrt(12) / |update|)`` (theory, section 0, derived); NaN without params or with `rate`.
    - ``yy_lo, yg_lo, gg_lo``: low parts; hi + lo is what the bounds hold for.
    - ``decay_share``: |part of the update that is decoupled weight decay| / |update|, NaN if unknown.
    - With ``info.lag = w >= 1`` in the row of step t, with shape (w,), index j - 1 for step t - j:
      ``lag_yy`` = grad_t . grad_{t-j}, ``lag_yg`` = grad_t . update_{t-j}, ``lag_gy`` = update_t . grad_{t-j},
      ``lag_gg`` = update_t . update_{t-j}; each with ``_lo``, ``_bound``, and ``_exponent``: the product is
      (hi + lo) 2^exponent. NaN where a vector or the step is missing. All of these, and those of the step itself, are
      then from compensated passes, since Gram matrices of sums and differences of steps cancel.

    - Of the row itself: ``step``; ``block``, its place in `blocks`; ``time``, ``loss``; ``resumed``, 1 in the first
      step after a resume; ``note``, bytes; ``dtype``, the coarser element type as the place in (float64, float32,
      float16, bfloat16), -1 if there is none; ``status``, the place in (ok, ascent, undecided, zero_update, zero_grad,
      nonfinite, no_gradient, no_update, skipped).

    On disk a row is a record as docs/recording-format.md describes it, with these fields, in the order of
    ``rows.dtype``, and with `info` as its `user`; the blocks of a step follow each other in one append.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest.recording import recording
    >>> theta = np.array([[4.0, 2.0], [2.0, 1.0], [1.0, 0.5]])
    >>> rec = recording(params=theta, grad=theta, loss=[10.0, 2.5, 0.625], objective="fixed")
    >>> rec
    Recording(3 steps, blocks ['(all)'], n=2, status: ok 2, no_update 1; objective 'fixed', gradient from the rule)
    >>> rec.alignment(step=1).status, rec.status[:, 0].tolist()
    ('ok', ['ok', 'ok', 'no_update'])
    """

    def __init__(
        self,
        info: RecordingInfo,
        rows: NDArray[np.void],
        vectors: Callable[[int], StoredStep] | None = None,
    ) -> None:
        self.info = info
        blocks = 1 + len(info.names or ())
        shape = (blocks,) if info.candidates is None else (len(info.candidates), blocks)
        self.rows = rows.reshape(len(rows), *shape)
        self.rows.flags.writeable = False
        self._vectors = vectors
        layout = info.layout
        self._blocks: tuple[str, ...] = (ALL, *(layout.names or ()))
        self._sizes = (layout.size, *(layout.sizes if layout.names is not None else ()))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Map a folder into memory, also while another process writes; instant for any length.

        Parameters
        ----------
        path : path-like
            What a `Recorder` or `save` wrote.

        Returns
        -------
        Recording
            All steps that are complete now. The folder must stay where it is as long as the recording is used.

        Raises
        ------
        FileNotFoundError
            No recording at `path`.
        ValueError
            Not a recording of steps, or of a version that is not known here.
        """
        reader = RecordReader(path)
        info = RecordingInfo.from_json(reader.user, str(reader.path))
        count = info.width
        if reader.dtype != row_dtype(info.lag) or len(reader) % count:
            raise ValueError(
                f"expected {reader.path} to hold whole steps of {count} rows in the fields of schema {SCHEMA}, got "
                f"{len(reader)} records of {reader.dtype}"
            )
        vectors = VectorFolder(reader.path, info.names, info.candidates) if info.keep == "vectors" else None
        return cls(info, reader.records.reshape(-1, count), vectors)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """As `open`, but read into memory, without vectors: the folder is not needed any more.

        Parameters
        ----------
        path : path-like
            What a `Recorder` or `save` wrote.

        Returns
        -------
        Recording
            All steps that are complete now.
        """
        opened = cls.open(path)
        return cls(replace(opened.info, keep="scalars"), opened.rows.copy())

    def save(self, path: str | os.PathLike[str], *, sync: bool = False) -> None:
        """Write a folder that `open` and `load` read, with vectors if ``info.keep == "vectors"``; nothing is pickled.

        Parameters
        ----------
        path : path-like
            Must not exist.
        sync : bool
            Flush to the disk.

        Raises
        ------
        FileExistsError
            Something is at `path`.
        """
        with RecordWriter.create(path, self.rows.dtype, user=self.info.to_json(), sync=sync) as writer:
            if self.info.keep == "vectors":
                folder = VectorFolder(writer.path, self.info.names, self.info.candidates)
                skipped = self.rows["status"].reshape(len(self), -1)[:, :1] == STATUS_CODE["skipped"]
                for step in self.step[~skipped[:, 0]].tolist():
                    folder.write_stored(step, self.vectors(step), sync=sync)
            writer.append(self.rows.ravel())

    @property
    def blocks(self) -> tuple[str, ...]:
        """``"(all)"``, then the names of the arrays."""
        return self._blocks

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of parameters of each block."""
        return self._sizes

    @property
    def objective(self) -> Objective:
        """Whether the losses and gradients of all steps belong to one function: 'fixed' or 'unknown'."""
        return self.info.objective

    @property
    def gradient_source(self) -> GradientSource:
        """Where the gradient comes from: 'rule', 'evaluation' or 'estimate'."""
        return self.info.gradient_source

    @property
    def rate(self) -> bool:
        """Whether `update` is d theta/dt."""
        return self.info.rate

    @property
    def step(self) -> NDArray[np.int64]:
        """Number of each step, ascending: shape (steps,)."""
        return cast("NDArray[np.int64]", self._of_step("step"))

    @property
    def time(self) -> NDArray[np.float64]:
        """Time as given; of a `Recorder` seconds since 1970; NaN if unknown: shape (steps,)."""
        return cast("NDArray[np.float64]", self._of_step("time"))

    @property
    def loss(self) -> NDArray[np.float64]:
        """Loss at the beginning of the step, NaN if unknown: shape (steps,)."""
        return cast("NDArray[np.float64]", self._single["loss"][:, 0])

    @property
    def resumed(self) -> NDArray[np.bool_]:
        """Whether a step is the first after a resume: shape (steps,)."""
        return cast("NDArray[np.bool_]", self._of_step("resumed") != 0)

    @property
    def notes(self) -> tuple[str, ...]:
        """Why a step was skipped, else an empty text; one for each step."""
        return tuple(note.decode(errors="replace") for note in self._of_step("note").tolist())

    @property
    def status(self) -> NDArray[np.str_]:
        """Status of each row, shape (steps, blocks).

        As `Alignment.status`, or ``no_gradient``, ``no_update`` (also where both are missing), ``skipped``.
        """
        return cast("NDArray[np.str_]", np.array(STATUSES)[self._single["status"]])

    @property
    def psi_floor(self) -> NDArray[np.float64]:
        """Rounding floor of the angle in rad from the spacing of params, NaN if unknown: shape (steps, blocks)."""
        return self["psi_floor"]

    @property
    def angle(self) -> NDArray[np.float64]:
        """Angle psi between -grad and update in rad, NaN where there is none: shape (steps, blocks)."""
        cosine = -self["cosine"]
        sine = np.array(self["sine"])
        single = np.array(self._sizes) == 1  # one dimension has two directions only
        cosine[:, single], sine[:, single] = np.copysign(1.0, cosine[:, single]), 0.0
        return np.where(self._single["status"] <= STATUS_CODE["undecided"], np.arctan2(sine, cosine), NAN)

    @property
    def grad_norm(self) -> NDArray[np.float64]:
        """|grad|, NaN where it is missing: shape (steps, blocks)."""
        return _norm(self["yy"], self["y_exponent"])

    @property
    def update_norm(self) -> NDArray[np.float64]:
        """|update|, NaN where it is missing: shape (steps, blocks)."""
        return _norm(self["gg"], self["g_exponent"])

    @property
    def candidates(self) -> tuple[str, ...] | None:
        """Names of the losses that were recorded side by side, None for a single one."""
        return self.info.candidates

    def candidate(self, name: str) -> Self:
        """The recording of one of several losses, without a copy.

        Parameters
        ----------
        name : str
            One of `candidates`.

        Returns
        -------
        Recording
            Without candidates.

        Raises
        ------
        ValueError
            No such candidate.
        """
        names = self.info.candidates or ()
        if name not in names:
            raise ValueError(f"expected one of the candidates {names}, got {name!r}")
        vectors, info = self._vectors, replace(self.info, candidates=None)
        rows = self.rows[:, names.index(name)]
        return type(self)(info, rows, None if vectors is None else lambda step: _of_candidate(vectors(step), name))

    @property
    def has_vectors(self) -> bool:
        """Whether `vectors` has the vectors of the steps."""
        return self._vectors is not None

    def vectors(self, step: int) -> StoredStep:
        """Parameters, gradient and update of one step.

        Parameters
        ----------
        step : int
            Number of the step.

        Returns
        -------
        StoredStep
            In the element types of the recording: of a folder memory-mapped and read-only; of `steepest.recording`
            views of the arrays that it was given (an update that it formed is formed again).

        Raises
        ------
        ValueError
            The vectors were not kept, or the step was not recorded, or was skipped, or not by `Recorder.step`.

        Notes
        -----
        Pickling, `load`, and `save` of whole arrays leave them out.
        """
        if self._vectors is None:
            raise ValueError(
                "this recording has no vectors: record with keep='vectors', or call steepest.recording on whole arrays"
            )
        index = self._index(step)
        if self.rows["status"].reshape(len(self), -1)[index, 0] == STATUS_CODE["skipped"]:
            raise ValueError(f"step {step} was skipped and has no vectors")
        return self._vectors(step)

    @property
    def _single(self) -> NDArray[np.void]:
        if self.info.candidates is not None:
            raise ValueError(f"this recording has the candidates {self.info.candidates}: choose with .candidate(name)")
        return self.rows

    def _of_step(self, name: str) -> NDArray[Any]:
        """A column that is the same in all rows of a step."""
        return self.rows[name].reshape(len(self), self.info.width)[:, 0]

    def _index(self, step: int) -> int:
        index = int(np.searchsorted(self.step, step))
        if index == len(self) or self.step[index] != step:
            known = f"{len(self)} steps from {self.step[0]} to {self.step[-1]}" if len(self) else "no step"
            raise ValueError(f"step {step} was not recorded; there are {known}, every={self.info.every}")
        return index

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy also of a mapped folder; read-only again, and without vectors.
        return type(self), (replace(self.info, keep="scalars"), np.array(self.rows))

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in (self.rows.dtype.names or ()):
            raise KeyError(f"no column {name!r}; there are {', '.join(self.rows.dtype.names or ())}")
        return self._single[name]

    def __len__(self) -> int:
        return len(self.rows)

    def alignment(self, step: int, block: str = ALL) -> Alignment:
        """Everything that follows from the inner products of one step and block.

        The same path as `steepest.align`. The numbers are the same, to the last bit for one array without lag, and
        within the bounds where they come from other passes (with lag, and ``"(all)"`` of several arrays, which is the
        sum over these); but `Alignment.psi_floor` is the larger one of the dtype's and the recorded one.

        Parameters
        ----------
        step : int
            Number of the step.
        block : str
            ``"(all)"`` or the name of an array.

        Returns
        -------
        Alignment
            Never raises for the values of the data: where the gradient or the update is missing, or the step was
            skipped, its `status` says so (see `status`) and what is unknown is NaN.

        Raises
        ------
        ValueError
            The step was not recorded, or there is no such block.
        """
        if block not in self._blocks:
            raise ValueError(f"expected block to be one of {list(self._blocks)[:8]}, got {block!r}")
        index = self._index(step)
        column = self._blocks.index(block)
        row = self._single[index, column]
        status = STATUSES[row["status"]]
        dtype = FLOAT_NAMES[row["dtype"]] if row["dtype"] >= 0 else "float64"
        p = PairProducts._make([*(row[name].item() for name in PairProducts._fields[:-1]), status != "nonfinite"])
        if row["status"] > STATUS_CODE["nonfinite"]:
            return _without_pair(status, p, self._sizes[column], dtype)
        found = from_products(p, self._sizes[column], dtype, False)
        floor = float(row["psi_floor"])
        return found if math.isnan(floor) else replace(found, psi_floor=max(found.psi_floor, floor))

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
            No such block.
        """
        if block not in self._blocks:
            raise ValueError(f"expected block to be one of {list(self._blocks)[:8]}, got {block!r}")
        number = np.bincount(self._single["status"][:, self._blocks.index(block)], minlength=len(STATUSES))
        return {status: int(k) for status, k in zip(STATUSES, number, strict=True) if k}

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain Python values.

        Returns
        -------
        dict
            The fields of `info`, `blocks`, `sizes`; `step`, `time`, `loss`, `resumed`, `notes` as lists with one
            element for each step; `status`, `angle`, `grad_norm`, `update_norm` and the other columns as lists of
            lists. With candidates the fields of `info`, and `runs` as a mapping candidate -> this.
        """
        if self.info.candidates is not None:
            return {
                **asdict(self.info),
                "runs": {name: self.candidate(name).to_dict() for name in self.info.candidates},
            }
        per_step = {name: getattr(self, name).tolist() for name in ("step", "time", "loss", "resumed")}
        derived = {name: getattr(self, name).tolist() for name in ("status", "angle", "grad_norm", "update_norm")}
        left = set(self.rows.dtype.names or ()) - {*per_step, "note", "block", "status", "dtype"}
        columns = {name: self.rows[name].tolist() for name in self.rows.dtype.names or () if name in left}
        dtypes = np.array([*FLOAT_NAMES, ""])[self.rows["dtype"]].tolist()
        head = {**asdict(self.info), "blocks": self._blocks, "sizes": self._sizes}
        return {**head, **per_step, "notes": list(self.notes), **derived, "dtype": dtypes, **columns}

    def __repr__(self) -> str:
        listed = [repr(name) for name in self._blocks[:6]] + ["..."] * (len(self._blocks) > 6)
        names = self.info.candidates
        shown = self if names is None else self.candidate(names[0])
        counts = ", ".join(f"{status} {k}" for status, k in shown.counts().items())
        counts += "" if names is None else f" for {names[0]!r} of the candidates {names}"
        resumed = int(self.resumed.sum())
        return (
            f"Recording({len(self)} steps, blocks [{', '.join(listed)}], n={self._sizes[0]}, status: {counts or '-'}; "
            f"objective {self.objective!r}, gradient from the {self.gradient_source}"
            + ", update is a rate" * self.rate
            + ", in units of the parameters" * self.info.scaled
            + ", with vectors" * (self.info.keep == "vectors")
            + f", resumed {resumed} times" * (resumed > 0)
            + ")"
        )


def _of_candidate(step: StoredStep, name: str) -> StoredStep:
    return replace(step, grad=(step.grad or {}).get(name))


def _norm(squared: NDArray[np.float64], exponent: NDArray[np.int32]) -> NDArray[np.float64]:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return cast("NDArray[np.float64]", np.ldexp(np.sqrt(squared), exponent))


def _without_pair(status: str, p: PairProducts, size: int, dtype: str) -> Alignment:
    """The Alignment of a step whose gradient or update is missing."""
    return Alignment(
        status=cast("Any", status),
        size=size,
        dtype=dtype,
        inner_product=NAN,
        inner_product_bound=NAN,
        grad_norm=scaled(math.sqrt(p.yy), p.y_exponent),
        update_norm=scaled(math.sqrt(p.gg), p.g_exponent),
        rho=NAN,
        cosine=NAN,
        sine=NAN,
        angle=NAN,
        angle_bound=NAN,
        psi_floor=EPSILON[dtype],
        null_isotropic=1.0 / math.sqrt(size),
        null_sign_flip=NAN,
    )


def recording(
    source: Any = None,
    /,
    *,
    params: ArrayOrMapping | str | Sequence[str] | None = None,
    loss: Any = None,
    grad: ArrayOrMapping | None = None,
    update: ArrayOrMapping | None = None,
    time: Any = None,
    rate: bool = False,
    lag: int = 1,
    scale: ArrayOrMapping | None = None,
    candidates: Sequence[str] | None = None,
    objective: Objective = "unknown",
    gradient_source: GradientSource = "rule",
) -> Recording:
    """A recording from whole arrays, whose first axis is the step, or from a stored run.

    With U updates (of `update`, or one less than `params`) everything else has U or U + 1 entries: the last one, if it
    is there, belongs to the state after the last update. If `loss` or `grad` has it, it becomes a row of its own, with
    status ``no_update``.

    Parameters
    ----------
    source : path-like, xarray.Dataset or xarray.DataTree, optional
        Instead of arrays: a folder of safetensors or PyTorch checkpoints, an .npz file, zarr or netCDF by xarray;
        read one step at a time, and nothing in it is executed. Then `params` is a shell pattern, or several, of the
        names to take, and params, loss, grad, update and time are what the source holds
        (`steepest.sources.record_source` has more options).
    params : array or mapping name -> array, optional
        Parameters before each step, shape (steps, ...), float64, float32, float16 or bfloat16, of NumPy, PyTorch (CPU),
        JAX (CPU). Each array of a mapping becomes a block.
    loss : array, shape (U,) or (U + 1,), optional
        Loss at `params`; missing is NaN.
    grad : array or mapping name -> array, optional
        +dL/dtheta at `params`. Missing is status ``no_gradient``.
    update : array or mapping name -> array, optional
        ``params[t + 1] - params[t]``, which is the default.
    time : array, optional
        Of each step, in your unit. Implies `rate`.
    rate : bool
        `update` is d theta/dt, must be given, and nothing is differenced.
    lag : int
        With how many of the steps before it each step has inner products, which decides what pairs can be formed of
        them; see `Recorder`.
    scale : array or mapping name -> array, optional
        Units of the parameters, of the names and shapes of one step; see `Recorder`.
    candidates : sequence of str, optional
        Names of several losses side by side: `loss` and `grad` are then mappings candidate -> value. Default: the keys
        of `loss` if it is a mapping, or of `grad` if all its VALUES are mappings.
    objective : {'unknown', 'fixed'}
        ``fixed``: all losses and gradients belong to one function (full batch, a dynamical system), so that differences
        of losses mean something.
    gradient_source : {'rule', 'evaluation', 'estimate'}
        The gradient that the rule consumed, one computed for the purpose, or an estimate.

    Returns
    -------
    Recording
        Of U or U + 1 steps.

    Raises
    ------
    ValueError
        Names, shapes or lengths do not fit; neither update nor params.
    TypeError
        An unsupported dtype or type.

    Notes
    -----
    The arrays are read where they lie, and stay referenced for `Recording.vectors`. Updates are formed of `params` one
    step at a time, and stay in memory for `lag` steps.
    An `update` given beside `params` is taken to be a difference of parameters too, so that `Recording.psi_floor`
    holds; leave `params` out where it is not.

    Examples
    --------
    >>> import numpy as np
    >>> import steepest
    >>> from steepest.recording import recording
    >>> w = np.array([[4.0, 2.0], [2.0, 1.5], [1.0, 1.0]])
    >>> b = np.array([[1.0], [0.5], [0.0]])
    >>> rec = recording(params={"w": w, "b": b}, grad={"w": w, "b": b}, lag=0)
    >>> rec.blocks, rec.alignment(0, "w") == steepest.align(w[0], w[1] - w[0])
    (('(all)', 'w', 'b'), True)
    """
    if lag < 0 or lag != int(lag):
        raise ValueError(f"expected lag to be an integer of at least 0, got {lag!r}")
    if source is not None:
        held = {"loss": loss, "grad": grad, "update": update, "time": time, "scale": scale, "candidates": candidates}
        given = [name for name, value in held.items() if value is not None]
        if given:
            raise ValueError(f"expected a stored run to hold its arrays itself, got {', '.join(given)} beside it")
        from steepest.sources.record import record_source  # which imports this module

        return record_source(
            source, objective=objective, gradient_source=gradient_source, rate=rate, lag=lag, params=cast("Any", params)
        )
    if isinstance(params, str):
        raise TypeError(f"expected params to be arrays, got the text {params!r}: a path goes in as recording(path)")
    rate = bool(rate) or time is not None
    if rate and update is None:
        raise ValueError(
            "expected update, which with rate=True or time= is d theta/dt and is not formed from params, got none"
        )
    if update is None and params is None:
        raise ValueError("expected update, or params to take differences of, got neither")
    named = candidate_names.checked(candidates)
    named = candidate_names.inferred(loss, grad) if named is None else named
    info = RecordingInfo(None, (), objective, gradient_source, rate, lag, candidates=named, scaled=scale is not None)
    return Recording(*rows_of_arrays(info, params, loss, grad, update, time, scale))
