"""Arrays of a safetensors file, memory-mapped: a header in JSON, then the bytes of the tensors."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["SafetensorsFile", "bfloat16"]

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_HEADER_LIMIT = 100_000_000  # as the format prescribes


@dataclass(frozen=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """One file.

    Parameters
    ----------
    path : Path
        Of the file.

    Attributes
    ----------
    entries : dict
        Name -> place of a tensor.
    metadata : dict
        Text -> text.

    Raises
    ------
    ValueError
        Not a safetensors file, or a damaged one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
                raise ValueError(f"expected {self.path} to be a safetensors file, got a header of {length} bytes")
            text = file.read(length)
        try:
            header = json.loads(text)
            metadata = dict(header.pop("__metadata__", {}))
            entries = {}
            for name, entry in header.items():
                begin, end = (int(x) for x in entry["data_offsets"])
                entries[name] = _Entry(str(entry["dtype"]), tuple(int(k) for k in entry["shape"]), begin, end)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"expected {self.path} to be a safetensors file, got another header: {error}") from error
        for name, e in entries.items():
            if not 0 <= e.begin <= e.end <= size - 8 - length:
                raise ValueError(f"expected tensor {name!r} to lie in {self.path}: the file is cut off or damaged")
        self._start = 8 + length
        self.entries: dict[str, _Entry] = entries
        self.metadata: dict[str, str] = metadata

    def is_float(self, name: str) -> bool:
        """Whether a tensor is floating-point.

        Parameters
        ----------
        name : str
            Of the tensor.

        Returns
        -------
        bool
            True for F64, F32, F16, BF16 and the 8-bit types, which `read` refuses.
        """
        return self.entries[name].dtype.startswith(("F", "BF"))

    def read(self, name: str) -> NDArray[Any]:
        """A tensor, mapped into memory.

        Parameters
        ----------
        name : str
            Of the tensor.

        Returns
        -------
        ndarray
            Read-only; a copy only where the file does not align it. bfloat16 needs the package ml_dtypes.

        Raises
        ------
        TypeError
            An element type that NumPy does not have.
        ValueError
            The size does not fit the shape.
        """
        e = self.entries[name]
        if e.dtype == "BF16":
            dtype = bfloat16()
        elif e.dtype in _DTYPES:
            dtype = np.dtype(_DTYPES[e.dtype])
        else:
            raise TypeError(
                f"expected {name!r} of {self.path} in float64, float32, float16 or bfloat16, got {e.dtype}: leave it "
                "out with params=, or convert it"
            )
        count = math.prod(e.shape)
        if count * dtype.itemsize != e.end - e.begin:
            raise ValueError(
                f"expected {count * dtype.itemsize} bytes for {name!r} of {self.path}, got {e.end - e.begin}"
            )
        if count == 0:
            return np.zeros(e.shape, dtype)
        offset = self._start + e.begin
        raw = np.memmap(self.path, np.uint8, "r", offset, (e.end - e.begin,))
        array = np.asarray(raw).view(dtype).reshape(e.shape)
        return array if array.flags.aligned else array.copy()


def bfloat16() -> np.dtype[Any]:
    """NumPy's bfloat16, which another package brings.

    Returns
    -------
    numpy.dtype
        Of two bytes.

    Raises
    ------
    ImportError
        The package is not there.
    """
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError('bfloat16 files need ml_dtypes: pip install "steepest[vectors]"') from error
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype
