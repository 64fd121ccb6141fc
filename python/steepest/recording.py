"""What a learning rule did, step by step and block by block: the few numbers from which every analysis starts."""

from __future__ import annotations

import math
import os
from collections import deque
from dataclasses import asdict, dataclass, replace
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from steepest.alignment import Alignment, PairProducts, from_products, scaled
from steepest.arrays import EPSILON, FLOAT_NAMES, ArrayOrMapping, Layout, LongVector, is_torch
from steepest.row_format import (
    ALL,
    NAN,
    SCHEMA,
    STATUS_CODE,
    STATUSES,
    GradientSource,
    Objective,
    RecordingInfo,
    check_names,
    row_dtype,
)
from steepest.step_rows import StepData, difference, fill_step, ordered
from steepest.storage import RecordReader, RecordWriter

__all__ = ["Recording", "recording"]


class Recording:
    """Per step and block the inner products of gradient and update, and what belongs to them; read-only.

    Made by `steepest.recording` from whole arrays, by `steepest.Recorder` during training, by `Recording.open` from a
    folder. Blocks are ``"(all)"``, the whole vector, and then each named array; a single array has only ``"(all)"``.

    A step that has no angle keeps its row and says why: see `status`.

    Attributes
    ----------
    info : RecordingInfo
        Names, shapes, objective, gradient_source, rate, lag, every.
    rows : ndarray, shape (len(self), number of blocks)
        The structured array behind everything else, not writeable; its fields are the names that ``recording[name]``
        accepts (see Notes).

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

    def __init__(self, info: RecordingInfo, rows: NDArray[np.void]) -> None:
        self.info = info
        self.rows = rows.view()
        self.rows.flags.writeable = False
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
        count = 1 + len(info.names or ())
        if reader.dtype != row_dtype(info.lag) or len(reader) % count:
            raise ValueError(
                f"expected {reader.path} to hold whole steps of {count} blocks in the fields of schema {SCHEMA}, got "
                f"{len(reader)} records of {reader.dtype}"
            )
        return cls(info, reader.records.reshape(-1, count))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """As `open`, but read into memory: the folder is not needed any more.

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
        return cls(opened.info, opened.rows.copy())

    def save(self, path: str | os.PathLike[str], *, sync: bool = False) -> None:
        """Write a folder that `open` and `load` read; nothing is pickled.

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
        return cast("NDArray[np.int64]", self.rows["step"][:, 0])

    @property
    def time(self) -> NDArray[np.float64]:
        """Time as given; of a `Recorder` seconds since 1970; NaN if unknown: shape (steps,)."""
        return cast("NDArray[np.float64]", self.rows["time"][:, 0])

    @property
    def loss(self) -> NDArray[np.float64]:
        """Loss at the beginning of the step, NaN if unknown: shape (steps,)."""
        return cast("NDArray[np.float64]", self.rows["loss"][:, 0])

    @property
    def resumed(self) -> NDArray[np.bool_]:
        """Whether a step is the first after a resume: shape (steps,)."""
        return cast("NDArray[np.bool_]", self.rows["resumed"][:, 0] != 0)

    @property
    def notes(self) -> tuple[str, ...]:
        """Why a step was skipped, else an empty text; one for each step."""
        return tuple(note.decode(errors="replace") for note in self.rows["note"][:, 0].tolist())

    @property
    def status(self) -> NDArray[np.str_]:
        """Status of each row, shape (steps, blocks).

        As `Alignment.status`, or ``no_gradient``, ``no_update`` (also where both are missing), ``skipped``.
        """
        return cast("NDArray[np.str_]", np.array(STATUSES)[self.rows["status"]])

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
        return np.where(self.rows["status"] <= STATUS_CODE["undecided"], np.arctan2(sine, cosine), NAN)

    @property
    def grad_norm(self) -> NDArray[np.float64]:
        """|grad|, NaN where it is missing: shape (steps, blocks)."""
        return _norm(self["yy"], self["y_exponent"])

    @property
    def update_norm(self) -> NDArray[np.float64]:
        """|update|, NaN where it is missing: shape (steps, blocks)."""
        return _norm(self["gg"], self["g_exponent"])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.info, np.array(self.rows))  # a copy also of a mapped folder; read-only again

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in (self.rows.dtype.names or ()):
            raise KeyError(f"no column {name!r}; there are {', '.join(self.rows.dtype.names or ())}")
        return self.rows[name]

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
        index = int(np.searchsorted(self.step, step))
        if index == len(self) or self.step[index] != step:
            known = f"{len(self)} steps from {self.step[0]} to {self.step[-1]}" if len(self) else "no step"
            raise ValueError(f"step {step} was not recorded; there are {known}, every={self.info.every}")
        column = self._blocks.index(block)
        row = self.rows[index, column]
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
        number = np.bincount(self.rows["status"][:, self._blocks.index(block)], minlength=len(STATUSES))
        return {status: int(k) for status, k in zip(STATUSES, number, strict=True) if k}

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain Python values.

        Returns
        -------
        dict
            The fields of `info`, `blocks`, `sizes`; `step`, `time`, `loss`, `resumed`, `notes` as lists with one
            element for each step; `status`, `angle`, `grad_norm`, `update_norm` and the other columns as lists of
            lists.
        """
        per_step = {name: getattr(self, name).tolist() for name in ("step", "time", "loss", "resumed")}
        derived = {name: getattr(self, name).tolist() for name in ("status", "angle", "grad_norm", "update_norm")}
        left = set(self.rows.dtype.names or ()) - {*per_step, "note", "block", "status", "dtype"}
        columns = {name: self.rows[name].tolist() for name in self.rows.dtype.names or () if name in left}
        dtypes = np.array([*FLOAT_NAMES, ""])[self.rows["dtype"]].tolist()
        head = {**asdict(self.info), "blocks": self._blocks, "sizes": self._sizes}
        return {**head, **per_step, "notes": list(self.notes), **derived, "dtype": dtypes, **columns}

    def __repr__(self) -> str:
        listed = [repr(name) for name in self._blocks[:6]] + ["..."] * (len(self._blocks) > 6)
        counts = ", ".join(f"{status} {k}" for status, k in self.counts().items())
        resumed = int(self.resumed.sum())
        return (
            f"Recording({len(self)} steps, blocks [{', '.join(listed)}], n={self._sizes[0]}, status: {counts or '-'}; "
            f"objective {self.objective!r}, gradient from the {self.gradient_source}"
            + ", update is a rate" * self.rate
            + f", resumed {resumed} times" * (resumed > 0)
            + ")"
        )


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
    *,
    params: ArrayOrMapping | None = None,
    loss: Any = None,
    grad: ArrayOrMapping | None = None,
    update: ArrayOrMapping | None = None,
    time: Any = None,
    rate: bool = False,
    lag: int = 1,
    objective: Objective = "unknown",
    gradient_source: GradientSource = "rule",
) -> Recording:
    """A recording from whole arrays, whose first axis is the step.

    With U updates (of `update`, or one less than `params`) everything else has U or U + 1 entries: the last one, if it
    is there, belongs to the state after the last update. If `loss` or `grad` has it, it becomes a row of its own, with
    status ``no_update``.

    Parameters
    ----------
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
    The arrays are read where they lie, a few passes; only the update of one step at a time is formed.
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
    rate = bool(rate) or time is not None
    if rate and update is None:
        raise ValueError(
            "expected update, which with rate=True or time= is d theta/dt and is not formed from params, got none"
        )
    if update is None and params is None:
        raise ValueError("expected update, or params to take differences of, got neither")
    layout: Layout | None = None
    whole: dict[str, LongVector] = {}
    for name, x in (("params", params), ("grad", grad), ("update", update)):
        if x is None:
            continue
        whole[name] = ordered(x, name, layout)
        found = _step_layout(whole[name], name)
        if layout is not None and found != layout:
            raise ValueError(f"expected {name} at each step to be {layout} as {next(iter(whole))}, got {found}")
        layout = found
    assert layout is not None  # params or update is there
    check_names(layout)
    lengths = {name: x.layout.shapes[0][0] for name, x in whole.items()}
    updates, source = (lengths["update"], "update") if update is not None else (lengths["params"] - 1, "params")
    losses, times = _numbers(loss, "loss"), _numbers(time, "time")
    lengths |= {name: len(x) for name, x in (("loss", losses), ("time", times)) if x is not None}
    for name, length in lengths.items():
        if length not in (updates, updates + 1):
            raise ValueError(
                f"expected {name} to have {updates} or {updates + 1} entries, since {source} has "
                f"{lengths[source]}, got {length}"
            )
    steps = max(updates, lengths.get("grad", 0), lengths.get("loss", 0))
    info = RecordingInfo(layout.names, layout.shapes, objective, gradient_source, rate, lag=lag)
    rows = np.zeros((steps, 1 + len(layout.names or ())), row_dtype(info.lag))
    views = {name: _Steps(x, layout, lengths[name]) for name, x in whole.items()}
    previous: deque[StepData] = deque(maxlen=lag)
    for t in range(steps):
        here = {name: x.at(t) for name, x in views.items()}
        known = here.get("params")
        g = here.get("update")
        if update is None and t < updates and known is not None:
            after = views["params"].at(t + 1)
            g = None if after is None else difference(after, known)
        data = StepData(
            here.get("grad"), g, None if rate or g is None else known, _at(losses, t), _at(times, t), layout
        )
        fill_step(rows[t], t, data, tuple(previous))
        previous.appendleft(data)
    return Recording(info, rows)


@dataclass(frozen=True)
class _Steps:
    """A long vector with a first axis of steps."""

    whole: LongVector
    layout: Layout
    length: int

    def at(self, t: int) -> LongVector | None:
        """Views of one step, None behind the end."""
        if t >= self.length:
            return None
        return LongVector([s[t, ...] for s in self.whole.segments], self.layout, self.whole.dtypes)


def _step_layout(x: LongVector, name: str) -> Layout:
    """Names and shapes at one step."""
    if not all(x.layout.shapes):
        raise ValueError(f"expected the first axis of {name} to be the step, got {x.layout}")
    if len({shape[0] for shape in x.layout.shapes}) > 1:
        raise ValueError(f"expected the arrays of {name} to have the same number of steps, got {x.layout}")
    return Layout(x.layout.names, tuple(shape[1:] for shape in x.layout.shapes))


def _numbers(x: Any, name: str) -> NDArray[np.float64] | None:
    """One number for each step."""
    if x is None:
        return None
    array = np.asarray(x.detach().double().cpu() if is_torch(x) else x)
    if array.dtype.kind not in "iuf" and array.dtype.name != "bfloat16":
        raise TypeError(f"expected {name} to hold real numbers, got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"expected {name} to have shape (steps,), got {array.shape}")
    return array.astype(np.float64)


def _at(x: NDArray[np.float64] | None, t: int) -> float:
    return float(x[t]) if x is not None and t < len(x) else NAN
