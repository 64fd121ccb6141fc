"""Vectors in the four element types of the core and in awkward layouts, and inner products in exact integers."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
U = Fraction(1, 2**53)

# Element type -> NumPy type that rounds as it does; the core takes bfloat16 as the bits of uint16.
DTYPES: dict[str, Any] = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}


def stored(values: Any, dtype: str) -> Array:
    """Values rounded to a type, as the core takes them (bits, for bfloat16)."""
    with np.errstate(over="ignore", under="ignore"):
        rounded = np.asarray(values, np.float64).astype(DTYPES[dtype])
    return rounded.view(np.uint16) if dtype == "bfloat16" else rounded


def doubles(vector: Array | list[Array]) -> NDArray[np.float64]:
    """The numbers of a stored vector, in float64, flat."""
    if isinstance(vector, list):
        return np.concatenate([doubles(part) for part in vector])
    values = vector.view(ml_dtypes.bfloat16) if vector.dtype == np.uint16 else vector
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return np.asarray(values.astype(np.float64)).ravel()


def name_of(vector: Array) -> str:
    return "bfloat16" if vector.dtype == np.uint16 else vector.dtype.name


def integers(vector: Array | list[Array]) -> tuple[list[int], int]:
    """Integers m and an exponent e with vector = m * 2^e exactly."""
    mantissas, exponents = np.frexp(doubles(vector))
    used = exponents[mantissas != 0.0]
    least = int(used.min()) if used.size else 0
    digits = (mantissas * 2.0**53).astype(np.int64).tolist()
    shifts = np.where(mantissas != 0.0, exponents - least, 0).tolist()
    return [m << s for m, s in zip(digits, shifts, strict=True)], least - 53


def power(exponent: int) -> Fraction:
    """2^exponent."""
    return Fraction(2) ** exponent


def exact_dot(x: Array | list[Array], y: Array | list[Array]) -> Fraction:
    """The inner product of the numbers in memory, without any rounding."""
    (mx, ex), (my, ey) = integers(x), integers(y)
    return sum(a * b for a, b in zip(mx, my, strict=True)) * power(ex + ey)


def unaligned(vector: Array) -> Array:
    """A copy that begins one byte off its natural alignment."""
    raw = np.zeros(vector.nbytes + 1, np.uint8)
    view = raw[1:].view(vector.dtype) if vector.itemsize == 1 else np.frombuffer(raw.data, vector.dtype, -1, 1)
    view[...] = vector
    return view


def spaced(vector: Array) -> Array:
    wide = np.zeros(3 * vector.size, vector.dtype)
    wide[1::3] = vector
    return wide[1::3]


def reversed_in_memory(vector: Array) -> Array:
    return vector[::-1].copy()[::-1]


def read_only(vector: Array) -> Array:
    copy = vector.copy()
    copy.flags.writeable = False
    return copy


def transposed(vector: Array) -> Array:
    """The same elements in C order, from memory in Fortran order where the size allows two axes."""
    rows = next((r for r in (7, 5, 3, 2) if vector.size % r == 0), 1)
    return np.asfortranarray(vector.reshape(rows, -1))


def in_a_box(vector: Array) -> Array:
    """Two or three axes, none of which merges with another."""
    shape = (2, vector.size // 4, 2) if vector.size % 4 == 0 else (1, vector.size)
    box = np.zeros([2 * extent + 1 for extent in shape], vector.dtype)
    inner = box[tuple(slice(1, None, 2) for _ in shape)]
    inner[...] = vector.reshape(shape)
    return inner


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "contiguous": lambda v: v.copy(),
    "unaligned": unaligned,
    "spaced": spaced,
    "reversed": reversed_in_memory,
    "read-only": read_only,
    "transposed": transposed,
    "box": in_a_box,
}
