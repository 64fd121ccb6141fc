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
    "NOTE_BYTES",
    "STATUSES",
    "STATUS_CODE",
    "GradientSource",
    "Objective",
    "RecordingInfo",
    "check_choice",
    "check_names",
    "row_dtype",
]

Objective = Literal["unknown", "fixed"]
GradientSource = Literal["rule", "evaluation", "estimate"]

ALL = "(all)"
# The position of a status is its code on disk: Status may only ever be appended to.
STATUSES: tuple[Status, ...] = get_args(Status)
STATUS_CODE = {status: code for code, status in enumerate(STATUSES)}
DTYPE_CODE = {name: code for code, name in enumerate(FLOAT_NAMES)}  # -1: neither gradient nor update
NOTE_BYTES = 24
PRODUCTS = ("yy", "yg", "gg", "yy_bound", "yg_bound", "gg_bound")
_ROW = [
    ("step", "<i8"),
    ("status", "i1"),
    ("resumed", "i1"),
    ("dtype", "<i2"),
    ("block", "<i4"),
    ("time", "<f8"),
    ("loss", "<f8"),
    *((name, "<f8") for name in PRODUCTS),
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
NAN = math.nan
NO_LAG = (NAN, NAN, NAN, NAN, 0, 0)
SCHEMA = 1


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
