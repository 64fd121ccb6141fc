"""The arrays of an .npz file, one step at a time: mapped where they are stored plainly, streamed where compressed."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from steepest.sources.series import numbers_of

__all__ = ["open_npz"]

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")


class _Mapped:
    """A memory map whose slices come aligned and in native byte order."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array
        self.shape, self.dtype = array.shape, array.dtype.newbyteorder("=")

    def at(self, t: int) -> NDArray[Any]:
        part = self._array[t, ...]
        if part.flags.aligned and part.dtype.isnative:
            return part
        return np.array(part, self.dtype)  # members of a zip file begin anywhere


class _Streamed:
    """A compressed member: steps are decompressed as they are asked for, again from the start to go back."""

    def __init__(self, archive: zipfile.ZipFile, member: str) -> None:
        self._archive, self._member = archive, member
        self._file: IO[bytes] | None = None
        self._next = 0
        with archive.open(member) as file:
            self.shape, self._fortran, self._stored = _npy_header(file, member)
        self.dtype = self._stored.newbyteorder("=")
        self._whole: NDArray[Any] | None = None

    def at(self, t: int) -> NDArray[Any]:
        if self._fortran:  # a step is not one piece of the file: the array is read as a whole, once
            if self._whole is None:
                with self._archive.open(self._member) as file:
                    self._whole = np.lib.format.read_array(file, allow_pickle=False)
            return np.asarray(self._whole[t, ...], self.dtype)
        if self._file is None or t < self._next:
            self.close()
            self._file = self._archive.open(self._member)
            _npy_header(self._file, self._member)
            self._next = 0
        shape = self.shape[1:]
        size = int(np.prod(shape, dtype=np.int64)) * self._stored.itemsize
        for _ in range(t - self._next):
            self._read(size)
        part = np.frombuffer(self._read(size), self._stored).reshape(shape)
        self._next = t + 1
        return part.astype(self.dtype, copy=False)

    def _read(self, size: int) -> bytes:
        assert self._file is not None  # opened by `at`
        data = self._file.read(size)
        if len(data) != size:
            raise ValueError(f"expected {size} more bytes in {self._member} of {self._archive.filename}: it is cut off")
        return data

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def open_npz(path: Path) -> tuple[dict[str, Any], Any]:
    """The members of an .npz file.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    arrays : dict
        Key -> lazy array; ``loss`` and ``time`` are read.
    close : callable
        Closes the file.

    Raises
    ------
    ValueError
        Not an .npz file, or an array of objects, which would have to be unpickled.
    """
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"expected {path} to be an .npz file, got something else: {error}") from error
    arrays: dict[str, Any] = {}
    try:
        for entry in archive.infolist():
            if not entry.filename.endswith(".npy"):
                raise ValueError(f"expected {path} to hold .npy members only, got {entry.filename!r}")
            key = entry.filename.removesuffix(".npy")
            if key in ("loss", "time"):
                with archive.open(entry) as file:
                    arrays[key] = numbers_of(np.lib.format.read_array(file, allow_pickle=False), f"{key} of {path}")
            elif entry.compress_type == zipfile.ZIP_STORED:
                arrays[key] = _mapped(path, entry)
            else:
                arrays[key] = _Streamed(archive, entry.filename)
    except BaseException:
        archive.close()
        raise

    def close() -> None:
        for x in arrays.values():
            if isinstance(x, _Streamed):
                x.close()
        archive.close()

    return arrays, close


def _mapped(path: Path, entry: zipfile.ZipInfo) -> _Mapped:
    """A member that is stored as it is, where it lies."""
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        header = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        file.seek(header[-2] + header[-1], 1)  # its name and extra field, which the directory may have otherwise
        shape, fortran, dtype = _npy_header(file, entry.filename)
        offset = file.tell()
    if 0 in shape:
        return _Mapped(np.zeros(shape, dtype))
    return _Mapped(np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C"))


def _npy_header(file: IO[bytes], member: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError(f"expected numbers in {member}, got objects, which would have to be unpickled: not done here")
    return shape, fortran, dtype
