"""The rows of a recording as they lie in memory and on disk: fields, codes, and what describes the whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

import numpy as np

from steepest.alignment import Status
from steepest.arrays import FLOAT_NAMES, Layout

__all__ = [
    "ALL",
    "DTYPE_CODE",
    "LAG_PRODUCTS",
    "NOTE_BYTES",
    "STATUSES",
    "STATUS_CODE",
    "GradientSource",
    "Keep",
    "Objective",
    "RecordingInfo",
    "check_choice",
    "check_names",
    "row_dtype",
]

Objective = Literal["unknown", "fixed"]
GradientSource = Literal["rule", "evaluation", "estimate"]
Keep = Literal["scalars", "vectors"]

ALL = "(all)"
# The position of a status is its code on disk: Status may only ever be appended to.
STATUSES: tuple[Status, ...] = get_args(Status)
STATUS_CODE = {status: code for code, status in enumerate(STATUSES)}
DTYPE_CODE = {name: code for code, name in enumerate(FLOAT_NAMES)}  # -1: neither gradient nor update
NOTE_BYTES = 24
PRODUCTS = ("yy", "yg", "gg")
_ROW = [
    ("step", "<i8"),
    ("status", "i1"),
    ("resumed", "i1"),
    ("dtype", "<i2"),
    ("block", "<i4"),
    ("time", "<f8"),
    ("loss", "<f8"),
    *((name + part, "<f8") for part in ("", "_lo", "_bound") for name in PRODUCTS),
    ("y_exponent", "<i4"),
    ("g_exponent", "<i4"),
    ("cosine", "<f8"),
    ("sine", "<f8"),
    ("sign_flip_variance", "<f8"),
    ("psi_floor", "<f8"),
    ("decay_share", "<f8"),
    ("note", f"S{NOTE_BYTES}"),
]
LAG_PRODUCTS = ("lag_yy", "lag_yg", "lag_gy", "lag_gg")
NAN = math.nan
SCHEMA = 2


def row_dtype(lag: int) -> np.dtype[np.void]:
    """Fields of one row: one step and block.

    Parameters
    ----------
    lag : int
        With how many of the steps before it a step has inner products.

    Returns
    -------
    numpy.dtype
        Packed, every number aligned. With lag the fields of `LAG_PRODUCTS` have shape (lag,).
    """
    if not lag:
        return np.dtype(_ROW)
    products = [(name + part, "<f8", (lag,)) for name in LAG_PRODUCTS for part in ("", "_lo", "_bound")]
    return np.dtype([*_ROW, *products, *((name + "_exponent", "<i4", (lag,)) for name in LAG_PRODUCTS)])


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
    candidates : tuple of str or None
        Names of the losses whose gradients were recorded side by side; None for a single one.
    keep : {'scalars', 'vectors'}
        Whether the vectors of the steps are kept beside the rows.
    scaled : bool
        Whether the inner products are in units of the parameters: yy = sum (scale grad)^2, gg = sum (update/scale)^2.
    scale_crc : int or None
        Check sum of these units.
    """

    names: tuple[str, ...] | None
    shapes: tuple[tuple[int, ...], ...]
    objective: Objective = "unknown"
    gradient_source: GradientSource = "rule"
    rate: bool = False
    lag: int = 0
    every: int = 1
    candidates: tuple[str, ...] | None = None
    keep: Keep = "scalars"
    scaled: bool = False
    scale_crc: int | None = None

    def __post_init__(self) -> None:
        check_choice("objective", self.objective, ("unknown", "fixed"))
        check_choice("gradient_source", self.gradient_source, ("rule", "evaluation", "estimate"))
        check_choice("keep", self.keep, ("scalars", "vectors"))

    @property
    def width(self) -> int:
        """Number of rows of a step: one for each block, for each candidate."""
        return len(self.candidates or ("",)) * (1 + len(self.names or ()))

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
        return {"content": "steps", "schema": SCHEMA, **asdict(self)}

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
        if user.get("content") != "steps" or user.get("schema") != SCHEMA:
            raise ValueError(
                f"expected {where} to hold steps in schema {SCHEMA}, got content {user.get('content')!r} in schema "
                f"{user.get('schema')!r}: read it with the version that wrote it"
            )
        try:
            plain = ("objective", "gradient_source", "rate", "lag", "every", "keep", "scaled", "scale_crc")
            names, candidates = (None if user[key] is None else tuple(user[key]) for key in ("names", "candidates"))
            shapes = tuple(tuple(shape) for shape in user["shapes"])
            return cls(names, shapes, **{key: user[key] for key in plain}, candidates=candidates)
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
