"""A source of whole arrays whose first axis is the step, read slice by slice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from steepest.sources.source import VECTORS, NameFilter, Source, SourceStep

__all__ = ["Series", "SeriesSource", "numbers_of"]


class Series(Protocol):
    """An array of which one step at a time is read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """With the step as first axis."""

    @property
    def dtype(self) -> Any:
        """Of the elements."""

    def at(self, t: int) -> NDArray[Any]:
        """One step, in native byte order.

        Parameters
        ----------
        t : int
            Which one.

        Returns
        -------
        ndarray
            Of shape ``shape[1:]``.
        """


class SeriesSource(Source):
    """Arrays with the step as first axis.

    Parameters
    ----------
    found : mapping
        Field -> `Series`, or mapping name -> Series; loss and time as arrays of numbers.
    where : str
        For messages.
    params : str or sequence of str, optional
        See `NameFilter`.
    close : callable, optional
        Closes the file.

    Raises
    ------
    ValueError
        Names, shapes or numbers of steps do not fit; neither params nor update.
    """

    def __init__(
        self,
        found: Mapping[str, Any],
        where: str,
        params: str | Sequence[str] | None = None,
        close: Callable[[], None] | None = None,
    ) -> None:
        self.where, self._close = where, close
        chosen = NameFilter(params, where)
        self._vectors: dict[str, dict[str | None, Series]] = {}
        for field in VECTORS:
            if field not in found:
                continue
            value = found[field]
            named = isinstance(value, Mapping)
            if named:
                value = chosen(value, lambda x: is_float(x.dtype))
            elif not is_float(value.dtype):
                raise TypeError(f"expected {field} of {where} to be of floating dtype, got {value.dtype}")
            self._vectors[field] = dict(value) if named else {None: value}
        self._match()
        self._numbers = {
            field: numbers_of(found[field], f"{field} of {where}") for field in ("loss", "time") if field in found
        }
        self.fields = (*self._vectors, *self._numbers)
        self.numbers = np.arange(self._count())

    def _match(self) -> None:
        """Names and shapes, which all fields must share."""
        if "params" not in self._vectors and "update" not in self._vectors:
            raise ValueError(
                f"expected update in {self.where}, or params to take differences of, got {list(self._vectors)}"
            )
        first, arrays = next(iter(self._vectors.items()))
        for field, others in self._vectors.items():
            for name, x in others.items():
                if not x.shape:
                    raise ValueError(f"expected the first axis of {field} in {self.where} to be the step, got a number")
                if name in arrays and x.shape[1:] != arrays[name].shape[1:]:
                    raise ValueError(
                        f"expected {field} of {self.where} to have the shapes of {first}, {arrays[name].shape[1:]} "
                        f"after the step, got {x.shape[1:]}" + f" in {name!r}" * (name is not None)
                    )
            if set(others) != set(arrays):
                raise ValueError(
                    f"expected {field} of {self.where} to have the arrays {list(arrays)[:8]} of {first}, got "
                    f"{list(others)[:8]}"
                )
            if len({x.shape[0] for x in others.values()}) > 1:
                lengths = {name: x.shape[0] for name, x in others.items()}
                raise ValueError(f"expected the arrays of {field} to have one number of steps, got {lengths}")
        self.names = None if None in arrays else tuple(str(name) for name in arrays)
        self.shapes = tuple(x.shape[1:] for x in arrays.values())
        self.dtypes = tuple(str(x.dtype) for x in arrays.values())

    def _count(self) -> int:
        """As `recording` counts: U updates, and the state after the last one where it is known."""
        lengths = {field: next(iter(x.values())).shape[0] for field, x in self._vectors.items()}
        updates, origin = (
            (lengths["update"], "update") if "update" in lengths else (lengths["params"] - 1, "params by differences")
        )
        lengths |= {field: len(x) for field, x in self._numbers.items()}
        for field, length in lengths.items():
            if length not in (updates, updates + 1):
                raise ValueError(
                    f"expected {field} of {self.where} to have {updates} or {updates + 1} entries, since {origin} "
                    f"has {updates}, got {length}"
                )
        return max(lengths.values())

    @property
    def times(self) -> NDArray[np.float64] | None:
        """Of each step, None if unknown."""
        return self._numbers.get("time")

    def step(self, t: int) -> SourceStep:
        """Read one step; see `Source.step`.

        Parameters
        ----------
        t : int
            Place of the step.

        Returns
        -------
        SourceStep
            Vectors of this step alone.
        """
        self._check(t)
        found: dict[str, Any] = {}
        for field, arrays in self._vectors.items():
            if t < next(iter(arrays.values())).shape[0]:
                found[field] = arrays[None].at(t) if None in arrays else {k: x.at(t) for k, x in arrays.items()}
        for field, numbers in self._numbers.items():
            found[field] = float(numbers[t]) if t < len(numbers) else math.nan
        return SourceStep(**found)

    def close(self) -> None:
        """Close the file."""
        if self._close is not None:
            self._close()


def is_float(dtype: Any) -> bool:
    """Whether a dtype holds floating-point numbers; bfloat16 counts.

    Parameters
    ----------
    dtype : numpy.dtype
        Of an array.

    Returns
    -------
    bool
        False for integers, complex numbers, text, objects.
    """
    return bool(dtype.kind == "f" or dtype.name == "bfloat16")


def numbers_of(x: Any, what: str) -> NDArray[np.float64]:
    """One real number for each step.

    Parameters
    ----------
    x : array
        Numbers, or times of a calendar (then seconds since the first).
    what : str
        For messages.

    Returns
    -------
    ndarray, shape (steps,)
        Float64.

    Raises
    ------
    TypeError
        Not numbers.
    ValueError
        Another shape.
    """
    array = np.asarray(x)
    if array.dtype.kind == "M" and array.ndim == 1:
        array = (array - array[:1]) / np.timedelta64(1, "s")
    elif array.dtype.kind == "m":
        array = array / np.timedelta64(1, "s")
    if array.dtype.kind not in "iuf" and array.dtype.name != "bfloat16":
        raise TypeError(f"expected {what} to hold real numbers, got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"expected {what} to have shape (steps,), got {array.shape}")
    return array.astype(np.float64)
