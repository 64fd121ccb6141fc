"""An append-only folder of fixed-size records that survives SIGKILL; docs/recording-format.md describes its bytes.

What the records mean is not known here.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading
import uuid
import weakref
import zlib
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from steepest import _core

__all__ = ["RecordReader", "RecordWriter", "read_records", "sync_folder"]

_META, _RECORDS = "meta.json", "records.bin"
_FORMAT, _VERSIONS = "steepest-recording", (1,)
_RESUMED, _END, _INDEX = 1 << 31, 1 << 30, (1 << 30) - 1  # the word of a record: two flags, its index modulo 2^30
_RESIDUE = 0x2144DF1C  # crc32 of anything followed by its own little-endian crc32
_BLOCK = 1 << 20  # bytes read at once

_logger = logging.getLogger("steepest")
_writers: weakref.WeakValueDictionary[tuple[int, int], RecordWriter] = weakref.WeakValueDictionary()
_writers_lock = threading.Lock()


class RecordWriter:
    """The one writer of a recording folder; made by `create` or `resume`.

    When `append` has returned, its records are in the hands of the operating system and survive the death of the
    process; with ``sync=True`` they are on the disk. An append is all or nothing, also for a reader and after a kill.
    Threads may share a writer; processes may not: one that finds that another has written raises.

    Attributes
    ----------
    path : Path
        The folder.
    dtype : numpy.dtype
        Of a record as stored: packed, little-endian.
    user : dict
        What `create` was given.
    count : int
        Records in the file.
    dropped : int
        Bytes of torn or corrupt tail that `resume` removed.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from steepest.storage import RecordReader, RecordWriter
    >>> path = tempfile.mkdtemp() + "/run"
    >>> with RecordWriter.create(path, [("step", "i8"), ("loss", "f8")], user={"rule": "Oja"}) as writer:
    ...     writer.append(np.array([(0, 2.5), (1, 2.0)], dtype=writer.dtype))
    >>> with RecordWriter.resume(path, writer.dtype) as writer:
    ...     writer.append(np.array((2, 1.75), dtype=writer.dtype))
    >>> reader = RecordReader(path)
    >>> reader.records["loss"].tolist(), reader.resumed.tolist()
    ([2.5, 2.0, 1.75], [False, False, True])
    """

    def __init__(self, path: Path, count: int, resumed_at: int | None, dropped: int, sync: bool) -> None:
        meta = _read_meta(path)
        self.path, self.count, self.dropped, self.user = path, count, dropped, meta["user"]
        self.dtype: np.dtype[np.void] = meta["dtype"]
        self._sync, self._resumed_at, self._torn = sync, resumed_at, dropped > 0
        self._size = self.dtype.itemsize + 8
        self._lock = threading.RLock()  # re-entrant: a signal handler may close
        self._file = (path / _RECORDS).open("ab", buffering=0)  # append mode is O_APPEND
        status = os.fstat(self._file.fileno())
        self._key = (status.st_dev, status.st_ino)
        with _writers_lock:
            if _writers.setdefault(self._key, self) is not self:
                self._file.close()
                raise RuntimeError(f"this process already writes to {path}: close that writer first")
        try:
            self._check_end()
            if sync:
                os.fsync(self._file.fileno())
                for folder in (path, path.parent):
                    sync_folder(folder)
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        dtype: DTypeLike,
        *,
        user: Mapping[str, Any] | None = None,
        sync: bool = False,
    ) -> Self:
        """Make a new, empty recording.

        The folder appears at `path` complete or not at all, whatever kills the process.

        Parameters
        ----------
        path : path-like
            Must not exist; missing parents are made.
        dtype : dtype-like
            Structured, flat: fields of booleans, integers, floats and complex numbers up to 64 bits a part, dates,
            byte strings, text or raw bytes, each with a shape. Stored packed and little-endian.
        user : Mapping, optional
            Anything that JSON can hold, under keys of text.
        sync : bool
            Flush the folder and each append to the disk (fsync), against power loss.

        Returns
        -------
        RecordWriter
            With no record.

        Raises
        ------
        FileExistsError
            Something is at `path`.
        OSError
            The folder cannot be made.
        TypeError
            `dtype` cannot be stored, or `user` holds what JSON has not.
        ValueError
            Records of no bytes; NaN or infinity in `user`.
        """
        path, dtype = Path(path).absolute(), _packed(dtype)
        user = {} if user is None else dict(user)
        if not all(isinstance(key, str) for key in user):
            raise TypeError(f"the keys of user must be text, but are {list(user)}")
        meta = {
            "format": _FORMAT,
            "format_version": _VERSIONS[-1],
            "package_version": _core.build_config()["version"],
            "created": datetime.now(UTC).isoformat(),
            "dtype": _fields(dtype),
            "user": user,
        }
        text = json.dumps(meta, indent=1, allow_nan=False)
        exists = FileExistsError(
            errno.EEXIST, "a recording is never overwritten: resume it, or choose another path", str(path)
        )
        if os.path.lexists(path):
            raise exists
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        temporary.mkdir()
        try:
            with (temporary / _META).open("w", encoding="utf-8") as file:
                file.write(text)
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            (temporary / _RECORDS).touch()
            temporary.rename(path)  # refused where another process has made a recording meanwhile
        except OSError as error:
            if os.path.lexists(path) and temporary.exists():
                raise exists from error
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return cls(path, 0, None, 0, sync)

    @classmethod
    def resume(cls, path: str | os.PathLike[str], dtype: DTypeLike, *, sync: bool = False) -> Self:
        """Go on with a recording whose writer is gone; the next record is marked as resumed.

        What follows the last append that is whole and valid is cut off; `dropped` says how many bytes.

        Parameters
        ----------
        path : path-like
            The folder.
        dtype : dtype-like
            The one that the recording was created with (up to byte order and padding).
        sync : bool
            As in `create`; need not be the same.

        Returns
        -------
        RecordWriter
            After the last valid append.

        Raises
        ------
        FileNotFoundError
            No recording at `path`.
        TypeError
            Another dtype.
        ValueError
            No recording of ours, or of a version that is not known here.
        RuntimeError
            This process already writes to it.
        """
        reader, dtype = RecordReader(path), _packed(dtype)
        if dtype != reader.dtype:
            raise TypeError(
                f"{reader.path} holds records of {_fields(reader.dtype)}, not {_fields(dtype)}: resume with its dtype"
            )
        if reader.dropped:
            _logger.info("%s: %d bytes of torn tail dropped on resuming", reader.path, reader.dropped)
        return cls(reader.path, len(reader), len(reader), reader.dropped, sync)

    def append(self, records: NDArray[np.void] | np.void) -> None:
        """Write one or several records with one system call.

        Parameters
        ----------
        records : ndarray or numpy.void
            Structured, of shape () or (k,), of `dtype` (up to byte order and padding).

        Raises
        ------
        OSError
            Disk full, quota, or an input-output error: none of `records` is in the file, and append may be tried again.
        TypeError
            Another dtype.
        ValueError
            More than one axis, or the writer is closed.
        RuntimeError
            Another process has written to the file.

        Notes
        -----
        About 4 us for a call and 0.7 us more for each further record; ``sync=True`` adds a flush, milliseconds.
        """
        array = np.asarray(records)
        if array.dtype != self.dtype:
            if _packed(array.dtype) != self.dtype:
                raise TypeError(f"records must be of {_fields(self.dtype)}, not {_fields(_packed(array.dtype))}")
            array = array.astype(self.dtype)
        if array.ndim > 1:
            raise ValueError(f"records must have shape () or (k,), but have {array.shape}: append(records.ravel())")
        with self._lock:
            if self._file.closed:
                raise ValueError(f"the writer of {self.path} is closed: RecordWriter.resume continues the recording")
            self._check_end()
            view = memoryview(self._encode(array.tobytes(), array.size))
            if not view:
                return
            try:
                while view:  # once, but for a short write
                    view = view[self._file.write(view) :]
                if self._sync:
                    os.fsync(self._file.fileno())
                self.count += array.size
            except BaseException:  # KeyboardInterrupt too: the file must hold count records, neither fewer nor more
                self._torn = True
                with suppress(OSError, ValueError):  # the next append tries again
                    self._check_end()
                raise

    def _check_end(self) -> None:
        """Have the file end where this writer stopped: cut off what failed; another process's records are an error."""
        end, size = self.count * self._size, os.fstat(self._file.fileno()).st_size
        if self._torn and size > end:
            size = self._file.truncate(end)
        self._torn = False
        if size != end:
            raise RuntimeError(
                f"{self.path / _RECORDS} has {size} bytes where this writer left {end}: another process has written to "
                "it. A recording has one writer; stop the other, then resume"
            )

    def _encode(self, payload: bytes, k: int) -> bytes:
        size, pieces = self.dtype.itemsize, []
        for i in range(k):
            index = self.count + i
            word = (index & _INDEX) | (_RESUMED if index == self._resumed_at else 0) | (_END if i == k - 1 else 0)
            body = payload[i * size : (i + 1) * size] + word.to_bytes(4, "little")
            pieces += [body, zlib.crc32(body).to_bytes(4, "little")]
        return b"".join(pieces)

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        with self._lock:
            if not self._file.closed:
                with _writers_lock:
                    _writers.pop(self._key, None)
                self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._file.closed else "open"
        return f"<RecordWriter {str(self.path)!r}: {self.count} records of {self.dtype.itemsize} bytes, {state}>"


class RecordReader:
    """The records of a folder, mapped into memory and read-only, also while another process appends.

    Opening reads `meta.json` and the end of the file, under a millisecond for any length: what follows the last whole,
    valid append is left out. Damage before it is what `verify` finds.

    Parameters
    ----------
    path : path-like
        The folder.

    Attributes
    ----------
    path : Path
        The folder.
    dtype : numpy.dtype
        Of a record: packed, little-endian.
    user : dict
        What the writer was given.
    created : str
        ISO 8601, UTC.
    package_version : str
        Of the package that created the recording.
    records : ndarray
        Structured, of shape (n,), not writeable: a strided view of the mapped file.
    dropped : int
        Bytes at the end of the file that are left out.

    Raises
    ------
    FileNotFoundError
        No recording at `path`.
    ValueError
        No recording of ours, or of a version that is not known here.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from steepest.storage import RecordReader, RecordWriter
    >>> path = tempfile.mkdtemp() + "/run"
    >>> with RecordWriter.create(path, [("loss", "f4")]) as writer:
    ...     reader = RecordReader(path)
    ...     writer.append(np.array([(0.5,), (0.25,)], dtype=writer.dtype))
    >>> len(reader), reader.refresh(), reader.records["loss"].tolist(), reader.verify().tolist()
    (0, 2, [0.5, 0.25], [])
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()  # refresh must find it from anywhere
        self._meta = _read_meta(self.path)
        self.dtype: np.dtype[np.void] = self._meta["dtype"]
        self.user, self.created = self._meta["user"], self._meta["created"]
        self.package_version = self._meta["package_version"]
        self._stored = np.dtype([("payload", self.dtype), ("word", "<u4"), ("crc", "<u4")])
        self._map: NDArray[np.void] = np.empty(0, self._stored)
        self.refresh()

    def refresh(self) -> int:
        """Take in what was appended since; arrays handed out before stay as they are.

        Returns
        -------
        int
            How many records are new.

        Raises
        ------
        ValueError
            Another recording is at `path` now.
        """
        if _read_meta(self.path) != self._meta:
            raise ValueError(f"{self.path} now holds another recording: open it anew")
        before, size = len(self), self._stored.itemsize
        with (self.path / _RECORDS).open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            count = _whole(file, length // size, size)
            # mapped is only what no writer ever cuts off, since access behind the end of a file is a SIGBUS
            self._map = np.asarray(np.memmap(file, self._stored, "r", shape=(count,))) if count else self._map[:0]
        self._map.flags.writeable = False
        self.records: NDArray[np.void] = self._map["payload"]
        self.dropped = length - count * size
        return count - before

    @property
    def resumed(self) -> NDArray[np.bool_]:
        """Whether a record is the first after a resume: shape (n,), computed on each access."""
        return (self._map["word"] & _RESUMED).astype(bool)

    def verify(self) -> NDArray[np.int64]:
        """Check the CRC and the position of every record.

        Returns
        -------
        ndarray
            Indices of the bad records, ascending; empty where all is well.

        Notes
        -----
        A valid record takes the CRC register from one state to the next in a way that depends on the state alone,
        and injectively. So the CRC of a block of valid records is known beforehand and is compared at the full speed of
        `zlib.crc32`; one bad record in a block always shows, several cancel with probability 2^-32. Only blocks that
        differ are taken apart. About 3 GB/s from the page cache.
        """
        size, n = self._stored.itemsize, len(self)
        step = max(1, _BLOCK // size)
        zero = bytes(size - 4) + zlib.crc32(bytes(size - 4)).to_bytes(4, "little")
        valid = {k: zlib.crc32(zero * k) for k in (min(step, n), n % step)}
        bad = [np.empty(0, np.int64)]
        with (self.path / _RECORDS).open("rb") as file:  # read, not mapped: a failing disk is then an OSError
            for first in range(0, n, step):
                block = file.read(min(step, n - first) * size).ljust(min(step, n - first) * size, b"\0")
                index = np.arange(first, first + len(block) // size)
                wrong = (np.frombuffer(block, self._stored)["word"] & _INDEX) != (index & _INDEX)
                if zlib.crc32(block) != valid[len(index)]:
                    wrong |= [zlib.crc32(block[i : i + size]) != _RESIDUE for i in range(0, len(block), size)]
                bad.append(index[wrong])
        return np.concatenate(bad)

    def __len__(self) -> int:
        return len(self._map)

    def __repr__(self) -> str:
        return f"<RecordReader {str(self.path)!r}: {len(self)} records of {self.dtype.itemsize} bytes>"


def read_records(path: str | os.PathLike[str]) -> NDArray[np.void]:
    """Map the records of a recording.

    Parameters
    ----------
    path : path-like
        The folder.

    Returns
    -------
    ndarray
        Structured, of shape (n,), not writeable: `RecordReader.records`.

    Examples
    --------
    >>> import tempfile
    >>> from steepest.storage import RecordWriter, read_records
    >>> path = tempfile.mkdtemp() + "/run"
    >>> RecordWriter.create(path, [("loss", "f8")]).close()
    >>> read_records(path).shape
    (0,)
    """
    return RecordReader(path).records


def _packed(dtype: DTypeLike) -> np.dtype[np.void]:
    """The dtype as it is stored: the same fields, little-endian, without gaps."""
    dtype = np.dtype(dtype)
    if dtype.names is None or dtype.fields is None:
        raise TypeError(f"records must be of a structured dtype with named fields, not {dtype}")
    fields = []
    for name in dtype.names:
        base, shape = dtype.fields[name][0].base, dtype.fields[name][0].shape
        if base.kind not in "biufcmMSUV" or base.char in "gG" or base.names or np.dtype(base.str) != base:
            raise TypeError(
                f"field {name!r} is of {base}, which has no fixed form on disk: use booleans, integers, float16 to "
                "float64, complex64, complex128, dates, S, U or V (no objects, long doubles, fields; bfloat16 as V2)"
            )
        fields.append((name, base.newbyteorder("<").str, shape))
    stored = np.dtype(fields)
    if not stored.itemsize:
        raise ValueError(f"a record must have at least one byte, but {dtype} has none")
    return stored


def _fields(dtype: np.dtype[np.void]) -> list[list[Any]]:
    """The dtype as `meta.json` holds it: name, dtype and shape of each field."""
    fields: Mapping[str, Any] = dtype.fields or {}
    return [[name, fields[name][0].base.str, list(fields[name][0].shape)] for name in dtype.names or ()]


def _read_meta(path: Path) -> dict[str, Any]:
    """What `meta.json` says, checked, with the dtype as a NumPy dtype."""
    file = path / _META
    try:
        meta = json.loads(file.read_bytes())
        if meta["format"] != _FORMAT:
            raise ValueError(f"its format is {meta['format']!r}, not {_FORMAT!r}")
        if meta["format_version"] not in _VERSIONS:
            raise ValueError(
                f"its format version is {meta['format_version']!r}; steepest {_core.build_config()['version']} reads "
                f"versions {', '.join(map(str, _VERSIONS))}: use the one that wrote it ({meta.get('package_version')}) "
                "or a newer one"
            )
        dtype = _packed([(name, base, tuple(shape)) for name, base, shape in meta["dtype"]])
        if _fields(dtype) != meta["dtype"]:
            raise ValueError(f"its dtype is {meta['dtype']}, which little-endian is {_fields(dtype)}")
        return {key: meta[key] for key in ("user", "created", "package_version")} | {"dtype": dtype}
    except (KeyError, TypeError, ValueError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f"{file} does not describe a recording that can be read: {error}") from error


def _whole(file: IO[bytes], count: int, size: int) -> int:
    """Number of records up to the last valid one that ends an append, searched from the end."""
    while count:
        first = max(0, count - max(1, _BLOCK // 16 // size))
        file.seek(first * size)
        block = file.read((count - first) * size)
        for i in range(count - 1, first - 1, -1):
            record = block[(i - first) * size : (i - first + 1) * size]
            word = int.from_bytes(record[-8:-4], "little")
            if zlib.crc32(record) == _RESIDUE and word & _END and word & _INDEX == i & _INDEX:
                return i + 1
        count = first
    return 0


def sync_folder(path: Path) -> None:
    """Flush the entries of a folder to the disk, where the file system can.

    Parameters
    ----------
    path : Path
        The folder.

    Raises
    ------
    OSError
        The disk is failing.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems that cannot sync a folder say so
            raise
    finally:
        os.close(descriptor)
