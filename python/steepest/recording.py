"""What a learning rule did, step by step and block by block: the few numbers from which every analysis starts."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self, cast

import numpy as np
from numpy.typing import NDArray

from steepest import _core
from steepest.alignment import Alignment, PairProducts, from_products, pair_products, scaled, status_of
from steepest.arrays import EPSILON, FLOAT_NAMES, ArrayOrMapping, Layout, LongVector, is_torch, long_vector, widened
from steepest.storage import RecordReader, RecordWriter

__all__ = ["Recording", "recording"]

Objective = Literal["unknown", "fixed"]
GradientSource = Literal["rule", "evaluation", "estimate"]

ALL = "(all)"
# The position of a status is its code on disk: only ever append.
STATUSES = (
    "ok",
    "ascent",
    "undecided",
    "zero_update",
    "zero_grad",
    "nonfinite",
    "no_gradient",
    "no_update",
    "skipped",
)
_CODE = {status: code for code, status in enumerate(STATUSES)}
_DTYPE_CODE = {name: code for code, name in enumerate(FLOAT_NAMES)}  # -1: neither gradient nor update
NOTE_BYTES = 24
_PRODUCTS = ("yy", "yg", "gg", "yy_bound", "yg_bound", "gg_bound")
_ROW = [
    ("step", "<i8"),
    ("status", "i1"),
    ("resumed", "i1"),
    ("dtype", "<i2"),
    ("block", "<i4"),
    ("time", "<f8"),
    ("loss", "<f8"),
    *((name, "<f8") for name in _PRODUCTS),
    ("y_exponent", "<i4"),
    ("g_exponent", "<i4"),
    ("cosine", "<f8"),
    ("sine", "<f8"),
    ("sign_flip_variance", "<f8"),
    ("psi_floor", "<f8"),
    ("note", f"S{NOTE_BYTES}"),
]
_LAG = [
    ("lag_yy", "<f8"),
    ("lag_yy_bound", "<f8"),
    ("lag_yg", "<f8"),
    ("lag_yg_bound", "<f8"),
    ("lag_yy_exponent", "<i4"),
    ("lag_yg_exponent", "<i4"),
]
_NAN = math.nan
_NO_LAG = (_NAN, _NAN, _NAN, _NAN, 0, 0)
_SCHEMA = 1


def row_dtype(lag: int) -> np.dtype[np.void]:
    """Fields of one row: one step and block.

    Parameters
    ----------
    lag : int
        0, or 1 for the inner products with the step before.

    Returns
    -------
    numpy.dtype
        Packed, every number aligned.
    """
    return np.dtype(_ROW + _LAG * lag)


@dataclass(frozen=True)
class RecordingInfo:
    """What holds for all steps of a recording.

    Attributes
    ----------
    names : tuple of str or None
        Of the arrays; None for a single array.
    shapes : tuple of tuple of int
        Of the arrays, at one step.
    objective : {'unknown', 'fixed'}
        Whether the losses and gradients of all steps belong to one function.
    gradient_source : {'rule', 'evaluation', 'estimate'}
        Where the gradient comes from.
    rate : bool
        Whether `update` is d theta/dt.
    lag : int
        How many earlier steps a row holds inner products with.
    every : int
        Which steps were recorded.
    """

    names: tuple[str, ...] | None
    shapes: tuple[tuple[int, ...], ...]
    objective: Objective = "unknown"
    gradient_source: GradientSource = "rule"
    rate: bool = False
    lag: int = 0
    every: int = 1

    def __post_init__(self) -> None:
        check_choice("objective", self.objective, ("unknown", "fixed"))
        check_choice("gradient_source", self.gradient_source, ("rule", "evaluation", "estimate"))

    @property
    def layout(self) -> Layout:
        """Names and shapes."""
        return Layout(self.names, self.shapes)

    def to_json(self) -> dict[str, Any]:
        """The `user` part of the folder's meta.json.

        Returns
        -------
        dict
            Plain values.
        """
        return {"content": "steps", "schema": _SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, user: Mapping[str, Any], where: str) -> Self:
        """The inverse of `to_json`.

        Parameters
        ----------
        user : mapping
            From meta.json.
        where : str
            The folder, for messages.

        Returns
        -------
        RecordingInfo
            As written.

        Raises
        ------
        ValueError
            Records of another kind or schema.
        """
        if user.get("content") != "steps" or user.get("schema") != _SCHEMA:
            raise ValueError(
                f"expected {where} to hold steps in schema {_SCHEMA}, got content {user.get('content')!r} in schema "
                f"{user.get('schema')!r}: read it with the version that wrote it"
            )
        try:
            known = {key: user[key] for key in ("objective", "gradient_source", "rate", "lag", "every")}
            names = None if user["names"] is None else tuple(user["names"])
            return cls(names, tuple(tuple(shape) for shape in user["shapes"]), **known)
        except (KeyError, TypeError) as error:
            raise ValueError(f"expected {where} to describe its steps in full, got {dict(user)}") from error


def check_choice(name: str, value: object, accepted: tuple[object, ...]) -> None:
    """Refuse a value that is not among a few.

    Parameters
    ----------
    name : str
        Of the argument.
    value : object
        What came.
    accepted : tuple
        What may come.

    Raises
    ------
    ValueError
        Another value.
    """
    if value not in accepted:
        raise ValueError(f"expected {name} to be one of {', '.join(map(repr, accepted))}, got {value!r}")


def check_names(layout: Layout) -> None:
    """Refuse arrays that cannot be blocks of a recording.

    Parameters
    ----------
    layout : Layout
        Of a step.

    Raises
    ------
    TypeError
        A name is not text.
    ValueError
        A name is taken, or an array has no elements.
    """
    for name, size in zip(layout.names or (ALL,), layout.sizes, strict=True):
        if not isinstance(name, str):
            raise TypeError(f"expected the names of arrays to be text, got {name!r}; use str(name)")
        if name == ALL and layout.names is not None:
            raise ValueError(f"the name {ALL!r} stands for the whole vector: rename that array")
        if size == 0:
            raise ValueError(f"expected every array to have at least one element, got none in {name!r}: leave it out")


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
    - With ``info.lag == 1`` in the row of step t: ``lag_yy`` = grad_t . grad_{t-1}, ``lag_yg`` = grad_t . update_{t-1},
      each to be multiplied by ``2**lag_yy_exponent`` and ``2**lag_yg_exponent``, with bounds ``lag_yy_bound``,
      ``lag_yg_bound`` before that; NaN where a vector or the step before is missing. With rows t-1 and t they give
      the Gram matrix of (grad_{t-1}, grad_t, update_{t-1}), all that the trapezoid pair of step t-1 needs.

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
                f"expected {reader.path} to hold whole steps of {count} blocks in the fields of schema {_SCHEMA}, got "
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
        return np.where(self.rows["status"] <= _CODE["undecided"], np.arctan2(sine, cosine), _NAN)

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

        The same path as `steepest.align`, and the same numbers, but for `Alignment.psi_floor`, which is the larger one
        of the dtype's and the recorded one.

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
        if row["status"] > _CODE["nonfinite"]:
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
        inner_product=_NAN,
        inner_product_bound=_NAN,
        grad_norm=scaled(math.sqrt(p.yy), p.y_exponent),
        update_norm=scaled(math.sqrt(p.gg), p.g_exponent),
        rho=_NAN,
        cosine=_NAN,
        sine=_NAN,
        angle=_NAN,
        angle_bound=_NAN,
        psi_floor=EPSILON[dtype],
        null_isotropic=1.0 / math.sqrt(size),
        null_sign_flip=_NAN,
    )


@dataclass(frozen=True)
class StepData:
    """Views of what is known of one step, all of one layout.

    Attributes
    ----------
    grad, update, params : LongVector or None
        At this step; `params` only if `update` is a difference of parameters.
    loss, time : float
        NaN if unknown.
    """

    grad: LongVector | None
    update: LongVector | None
    params: LongVector | None
    loss: float
    time: float


def fill_step(
    rows: NDArray[np.void], number: int, data: StepData, previous: StepData | None = None, resumed: bool = False
) -> None:
    """Compute the rows of one step.

    Parameters
    ----------
    rows : ndarray, shape (number of blocks,)
        Structured, to be written.
    number : int
        Of the step.
    data : StepData
        Of the step.
    previous : StepData, optional
        Of step ``number - 1``, for rows with lag.
    resumed : bool
        Whether the step is the first after a resume.
    """
    spacings = None if data.params is None else _spacings(data.params)
    lagged = "lag_yy" in (rows.dtype.names or ())
    for block in range(len(rows)):
        if block == 1 and len(rows) == 2:  # one named array is the whole vector
            rows[1] = rows[0]
            rows[1]["block"] = 1
            break
        y, g = (None if v is None else v if block == 0 else part(v, block - 1) for v in (data.grad, data.update))
        status, dtype, p = _pair(y, g)
        floor = _NAN
        if spacings is not None:
            spacing = math.hypot(*spacings) if block == 0 else spacings[block - 1]
            floor = math.atan2(spacing / math.sqrt(12.0), scaled(math.sqrt(p.gg), p.g_exponent))
        row: tuple[Any, ...] = (
            number, _CODE[status], resumed, _DTYPE_CODE.get(dtype, -1), block, data.time, data.loss,
            *p[:-1], floor, b"",
        )  # fmt: skip
        rows[block] = row + _lag_products(y, previous, block) if lagged else row


def fill_skipped(rows: NDArray[np.void], number: int, time: float, note: bytes, resumed: bool = False) -> None:
    """Write the rows of a step that the training loop skipped.

    Parameters
    ----------
    rows : ndarray, shape (number of blocks,)
        Structured, to be written.
    number : int
        Of the step.
    time : float
        When.
    note : bytes
        Why, at most `NOTE_BYTES` long.
    resumed : bool
        Whether the step is the first after a resume.
    """
    for name in rows.dtype.names or ():
        rows[name] = _NAN if rows.dtype[name].kind == "f" else 0
    rows["step"], rows["time"], rows["note"], rows["resumed"] = number, time, note, resumed
    rows["status"], rows["dtype"], rows["block"] = _CODE["skipped"], -1, np.arange(len(rows))


def part(x: LongVector, i: int) -> LongVector:
    """One array of a long vector.

    Parameters
    ----------
    x : LongVector
        All arrays.
    i : int
        Which one.

    Returns
    -------
    LongVector
        The same memory.
    """
    return LongVector([x.segments[i]], Layout(None, (x.layout.shapes[i],)), (x.dtypes[i],))


def _pair(y: LongVector | None, g: LongVector | None) -> tuple[str, str, PairProducts]:
    """Status, coarser dtype and inner products; NaN for what is missing."""
    if y is not None and g is not None:
        dtype, p = pair_products(y, g)
        return status_of(p), dtype, p
    yy = gg = (_NAN, _NAN, 0)
    if y is not None:
        yy = _square(y)
    if g is not None:
        gg = _square(g)
    p = PairProducts(yy[0], _NAN, gg[0], yy[1], _NAN, gg[1], yy[2], gg[2], _NAN, _NAN, _NAN, True)
    present = y or g
    return "no_update" if g is None else "no_gradient", "" if present is None else present.coarsest, p


def _square(x: LongVector) -> tuple[float, float, int]:
    gram = _core.gram([x.segments])
    return float(gram.hi[0, 0]), float(gram.bound[0, 0]), gram.exponents[0]


def _lag_products(y: LongVector | None, previous: StepData | None, block: int) -> tuple[float | int, ...]:
    if y is None or previous is None or previous.grad is None or previous.update is None:
        return _NO_LAG
    y0, g0 = (v if block == 0 else part(v, block - 1) for v in (previous.grad, previous.update))
    gram = _core.gram([y.segments, y0.segments, g0.segments])
    hi, bound, (e, e_y, e_g) = gram.hi, gram.bound, gram.exponents
    return float(hi[0, 1]), float(bound[0, 1]), float(hi[0, 2]), float(bound[0, 2]), e + e_y, e + e_g


def _spacings(params: LongVector) -> list[float]:
    """2-norm of the distances to the next number, for each array."""
    return [_spacing_norm(s, dtype) for s, dtype in zip(params.segments, params.dtypes, strict=True)]


# Of float64 and float32: integers of their width, the bits of the exponent, eps, and what a sum of squares must exceed
# for numbers without an exponent (zero, subnormal) not to matter.
_EXPONENT_BITS = {
    "float64": (np.uint64, np.uint64(0x7FF << 52), 2.0**-52, 1e-270),
    "float32": (np.uint32, np.uint32(0xFF << 23), 2.0**-23, 1e-55),
}


def _spacing_norm(segment: NDArray[Any], dtype: str) -> float:
    total = 0.0
    # In pieces: no second long vector.
    pieces = np.nditer(segment, flags=["external_loop", "buffered"], order="K", buffersize=1 << 14)
    for piece in pieces:
        total = math.hypot(total, _spacing_norm_of_piece(cast("Any", piece), dtype))
    return total


def _spacing_norm_of_piece(x: NDArray[Any], dtype: str) -> float:
    """2-norm of the spacings; NaN if one is not finite."""
    if dtype in _EXPONENT_BITS:  # the spacing is eps times the power of two that is left without the mantissa
        integer, bits, eps, negligible = _EXPONENT_BITS[dtype]
        power = (x.view(integer) & bits).view(dtype).astype(np.float64, copy=False)
        with np.errstate(over="ignore", invalid="ignore"):
            square = float(power @ power)
        if negligible < square < math.inf:
            return eps * math.sqrt(square)
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype == "bfloat16":  # the exponents of float32 and 16 bits less: the numbers lie 2^16 times wider
            spacing = np.spacing(np.abs(widened(x, dtype)).astype(np.float32)) * np.float64(65536)
        else:
            spacing = np.spacing(np.abs(x)).astype(np.float64)
    largest = float(spacing.max())
    if not math.isfinite(largest):
        return _NAN
    spacing /= largest  # squares of subnormal numbers would vanish
    return largest * math.sqrt(float(spacing @ spacing))


def difference(after: LongVector, before: LongVector) -> LongVector:
    """params_next - params; bfloat16 in float64, where it is exact.

    Parameters
    ----------
    after, before : LongVector
        Of one layout.

    Returns
    -------
    LongVector
        In the wider dtype of the two.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        segments = [
            np.asarray(np.subtract(_computable(a, i), _computable(b, j)))
            for a, i, b, j in zip(after.segments, after.dtypes, before.segments, before.dtypes, strict=True)
        ]
    return LongVector(segments, after.layout, tuple(s.dtype.name for s in segments))


def _computable(segment: NDArray[Any], dtype: str) -> NDArray[Any]:
    return widened(segment, dtype) if dtype == "bfloat16" else segment


def ordered(x: ArrayOrMapping, name: str, layout: Layout | None) -> LongVector:
    """Views of a long vector, in the order of the names of another one.

    Parameters
    ----------
    x : array or mapping
        What the user handed in.
    name : str
        Of the argument.
    layout : Layout, optional
        With the same names; whether the shapes agree is not checked here.

    Returns
    -------
    LongVector
        Views.
    """
    if isinstance(x, Mapping) and layout is not None and layout.names is not None and set(x) == set(layout.names):
        x = {key: x[key] for key in layout.names}
    return long_vector(x, name)


def recording(
    *,
    params: ArrayOrMapping | None = None,
    loss: Any = None,
    grad: ArrayOrMapping | None = None,
    update: ArrayOrMapping | None = None,
    time: Any = None,
    rate: bool = False,
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
    objective : {'unknown', 'fixed'}
        ``fixed``: all losses and gradients belong to one function (full batch, a dynamical system), so that differences
        of losses mean something.
    gradient_source : {'rule', 'evaluation', 'estimate'}
        The gradient that the rule consumed, one computed for the purpose, or an estimate.

    Returns
    -------
    Recording
        With ``info.lag == 1``, since all steps are at hand.

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
    >>> rec = recording(params={"w": w, "b": b}, grad={"w": w, "b": b})
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
    info = RecordingInfo(layout.names, layout.shapes, objective, gradient_source, rate, lag=1)
    rows = np.zeros((steps, 1 + len(layout.names or ())), row_dtype(info.lag))
    views = {name: _Steps(x, layout, lengths[name]) for name, x in whole.items()}
    previous = None
    for t in range(steps):
        here = {name: x.at(t) for name, x in views.items()}
        known = here.get("params")
        g = here.get("update")
        if update is None and t < updates and known is not None:
            after = views["params"].at(t + 1)
            g = None if after is None else difference(after, known)
        data = StepData(here.get("grad"), g, None if rate or g is None else known, _at(losses, t), _at(times, t))
        fill_step(rows[t], t, data, previous)
        previous = data
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
    return float(x[t]) if x is not None and t < len(x) else _NAN
