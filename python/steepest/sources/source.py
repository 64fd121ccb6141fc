"""What a stored training run offers: its steps, one at a time."""

from __future__ import annotations

import fnmatch
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["FIELDS", "VECTORS", "NameFilter", "Source", "SourceStep", "by_field"]

VECTORS = ("params", "grad", "update")
FIELDS = (*VECTORS, "loss", "time")

_log = logging.getLogger("steepest")


@dataclass(frozen=True)
class SourceStep:
    """What a source knows of one step.

    Attributes
    ----------
    params, grad, update : array, mapping name -> array, or None
        None where the source has none; memory-mapped where the file allows it.
    loss, time : float
        NaN if unknown.
    """

    params: Any = None
    grad: Any = None
    update: Any = None
    loss: float = math.nan
    time: float = math.nan


class Source(ABC):
    """A stored training run, read step by step; made by `open_source`.

    Attributes
    ----------
    where : str
        What it was opened from, for messages.
    names : tuple of str or None
        Of the arrays; None for a single array without a name.
    shapes : tuple of tuple of int
        Of the arrays, at one step.
    dtypes : tuple of str
        Of the arrays, in the first of params, grad, update that is there.
    fields : tuple of str
        Which of params, grad, update, loss, time it has.
    numbers : ndarray of int64, shape (len(self),)
        Of the states, ascending: from the names of checkpoints, else 0, 1, ...
    """

    where: str
    names: tuple[str, ...] | None
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    fields: tuple[str, ...]
    numbers: NDArray[np.int64]

    @abstractmethod
    def step(self, t: int) -> SourceStep:
        """Read one step.

        Parameters
        ----------
        t : int
            Place of the step, from 0; cheapest in ascending order.

        Returns
        -------
        SourceStep
            Vectors of this step alone.

        Raises
        ------
        IndexError
            There is no such step.
        ValueError
            What is stored there does not fit the other steps.
        """

    @property
    def times(self) -> NDArray[np.float64] | None:
        """Time of each step where it is known without reading the vectors, else None."""
        return None

    def close(self) -> None:  # noqa: B027 (nothing to close by default)
        """Close the files; arrays of a `SourceStep` may not be used afterwards."""

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[SourceStep]:
        return (self.step(t) for t in range(len(self)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        arrays = "a single array" if self.names is None else f"{len(self.names)} arrays"
        n = sum(math.prod(shape) for shape in self.shapes)
        return f"<Source {self.where!r}: {len(self)} steps of {', '.join(self.fields)}; {arrays}, n={n}>"

    def _check(self, t: int) -> None:
        if not 0 <= t < len(self):
            raise IndexError(f"expected a step from 0 to {len(self) - 1}, got {t}")


class NameFilter:
    """Which arrays are parameters.

    Parameters
    ----------
    patterns : str or sequence of str, optional
        Shell patterns of names (``"encoder.*"``); one with ``!`` in front leaves out (``"!*.running_*"``). None is all.
    where : str
        For messages.

    Raises
    ------
    TypeError
        Not text.
    """

    def __init__(self, patterns: str | Sequence[str] | None, where: str) -> None:
        given = [patterns] if isinstance(patterns, str) else list(patterns or ())
        if not all(isinstance(pattern, str) for pattern in given):
            raise TypeError(f"expected params to be a pattern of names or several, got {patterns!r}")
        self._out = [pattern[1:] for pattern in given if pattern.startswith("!")]
        self._in = [pattern for pattern in given if not pattern.startswith("!")] or ["*"]
        self._given, self._where = given, where
        self._told = False

    def __call__(self, arrays: Mapping[str, Any], is_float: Any) -> dict[str, Any]:
        """The floating-point arrays whose names fit; what is left out for its type is said once, in the log.

        Parameters
        ----------
        arrays : mapping
            Name -> array.
        is_float : callable
            Whether an array is of floating dtype.

        Returns
        -------
        dict
            A part of `arrays`, in its order.

        Raises
        ------
        ValueError
            Nothing is left.
        """
        fits = [name for name in arrays if self._fits(name)]
        found = {name: arrays[name] for name in fits if is_float(arrays[name])}
        left_out = [name for name in fits if name not in found]
        if left_out and not self._told:
            _log.info("%s: left out, since they are not floating-point: %s", self._where, ", ".join(left_out))
            self._told = True
        if not found:
            raise ValueError(
                f"expected floating-point arrays in {self._where}"
                + f" whose names fit params={self._given!r}" * bool(self._given)
                + f", got {sorted(arrays)[:8] or 'no array'}"
            )
        return found

    def _fits(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, p) for p in self._in) and not any(
            fnmatch.fnmatchcase(name, p) for p in self._out
        )


def by_field(arrays: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Sort flat keys (``params/w``, ``grad``, ``loss``) by the field that they belong to.

    Parameters
    ----------
    arrays : mapping
        Key -> anything.
    where : str
        For messages.

    Returns
    -------
    dict
        Field -> value for a key that is the field, field -> dict name -> value for ``field/name``; empty if no key is
        of that form.

    Raises
    ------
    ValueError
        Both ``params`` and ``params/w``, or keys of another form beside these.
    """
    found: dict[str, Any] = {}
    other = []
    for key, value in arrays.items():
        head, slash, name = key.partition("/")
        if head not in (VECTORS if slash else FIELDS):
            other.append(key)
        elif head in found and isinstance(found[head], dict) != bool(slash):
            raise ValueError(f"expected {where} to have {head!r} or {head + '/...'!r}, got both")
        elif slash:
            found.setdefault(head, {})[name] = value
        else:
            found[head] = value
    if not any(field in found for field in VECTORS):
        return {}
    if other:
        raise ValueError(
            f"expected the keys of {where} to be params, grad, update, loss, time or params/<name>, grad/<name>, "
            f"update/<name>, got also {other[:8]}"
        )
    return found
