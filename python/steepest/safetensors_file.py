"""Safetensors files, read by memory map and written whole: a header in JSON, then the bytes of the tensors."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.storage import sync_folder

__all__ = ["SafetensorsFile", "Tensor", "bfloat16", "write_safetensors"]

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_HEADER_LIMIT = 100_000_000  # as the format prescribes

#: An array as the core sees it (bfloat16 as its bits), and the name of its element type.
Tensor = tuple[NDArray[Any], str]


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
                (begin, end), shape = entry["data_offsets"], tuple(entry["shape"])
                if not all(isinstance(x, int) for x in (begin, end, *shape)):
                    raise TypeError(f"places and sizes of {name!r} that are no integers")
                entries[name] = _Entry(str(entry["dtype"]), shape, begin, end)
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
        raise ImportError('arrays of bfloat16 need ml_dtypes: pip install "steepest[vectors]"') from error
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], *, sync: bool = False) -> None:
    """Write a safetensors file, which is at `path` complete or not at all.

    Parameters
    ----------
    path : Path
        What is there is replaced.
    tensors : mapping name -> (array, dtype name)
        Arrays that are not contiguous are copied one by one.
    sync : bool
        Flush the file and its folder to the disk.

    Raises
    ------
    OSError
        The disk is full or failing: nothing has changed at `path`.
    """
    # The wider types first, which aligns every array in the file.
    ordered = sorted(tensors.items(), key=lambda item: -item[1][0].itemsize)
    header: dict[str, Any] = {}
    end = 0
    for name, (array, dtype) in ordered:
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _CODES[dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _, (array, _) in ordered:
                little = array.astype(array.dtype.newbyteorder("<"), copy=False)
                file.write(np.ascontiguousarray(little).reshape(-1).view(np.uint8).data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    if sync:
        sync_folder(path.parent)
