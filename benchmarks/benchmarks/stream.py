"""The loops of `stream/stream.c`, compiled by the C compiler of the machine when they are first needed."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .problems import Array
from .timing import Call

SOURCE = Path(__file__).resolve().parent.parent / "stream" / "stream.c"
FLAGS = ["-O3", "-std=gnu11", "-march=native", "-pthread", "-shared", "-fPIC"]
#: How far ahead the loops with software prefetch look, in bytes.
AHEAD = 4096


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "".join(line for line in lines[:40] if line.startswith(("model name", "flags", "Features")))


def _built(compiler: str) -> Path:
    """The library, from beside the source if it is there: built for this source, compiler and processor."""
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout
    key = hashlib.sha256("\0".join([SOURCE.read_text(), version, _processor(), *FLAGS]).encode()).hexdigest()[:16]
    for folder in (SOURCE.parent, Path(tempfile.gettempdir()) / f"steepest-stream-{os.getuid()}"):
        library = folder / f"stream-{key}.so"
        try:
            if library.exists() and library.stat().st_uid == os.getuid():
                return library
            folder.mkdir(mode=0o700, exist_ok=True)
            handle, name = tempfile.mkstemp(suffix=".tmp", dir=folder)
            os.close(handle)
        except OSError:
            continue  # not writable
        try:
            subprocess.run(
                [compiler, *FLAGS, str(SOURCE), "-o", name], check=True, capture_output=True, text=True, timeout=120
            )
            Path(name).replace(library)  # whole or not at all, whoever else builds it
        finally:
            Path(name).unlink(missing_ok=True)
        return library
    raise OSError(f"neither {SOURCE.parent} nor {tempfile.gettempdir()} is writable")


@cache
def _library() -> tuple[Any, str]:
    """The library, or None and why."""
    compiler = _compiler()
    if compiler is None:
        return None, "no C compiler"
    try:
        library = ctypes.CDLL(str(_built(compiler)))
        library.stream_total.restype = ctypes.c_uint64
        return library, ""
    except subprocess.CalledProcessError as error:
        return None, f"{compiler} failed: {error.stderr.strip().splitlines()[0] if error.stderr else error}"
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        return None, str(error)


@cache
def missing() -> str | None:
    """Why there are no such loops, or None."""
    if _library()[0] is not None:
        _check()
    return _library()[1] or None


def _check() -> None:
    """That every loop touches every byte, since one that left some out would be a flattering ceiling."""
    rng = np.random.default_rng(0)
    x, y, z = (rng.integers(0, 40, 3 * 4096, dtype=np.uint8) for _ in range(3))
    for threads, prefetch in ((1, False), (2, False), (2, True)):
        before = _library()[0].stream_total()
        read(threads, x, y, z, prefetch=prefetch)()
        found = (_library()[0].stream_total() - before) % 2**64
        assert found == sum(int(a.view(np.uint64).sum()) for a in (x, y, z)) % 2**64
        for nt, start in ((False, 0), (True, 0), (True, 16), (True, 7)):
            out = np.full(x.size + 64, 255, np.uint8)
            n = x.size - 37  # no whole number of lines
            combine(threads, x[:n], y[:n], z[:n], out=out[start : start + n], nt=nt, prefetch=prefetch)()
            assert (out[start : start + n] == x[:n] + y[:n] + z[:n]).all()
            assert (out[start + n :] == 255).all()
            wide = rng.integers(0, 40, (n, 5), dtype=np.uint8)
            for order in (wide, np.asfortranarray(wide)):
                place = np.full(order.size + 64, 255, np.uint8)
                result = place[start : start + order.size].reshape(order.shape, order="C" if order is wide else "F")
                columns(threads, x[:n], y[:n], order, result, nt, prefetch)()
                assert (result == order).all()
                assert (place[start + order.size :] == 255).all()
                columns(threads, x[:n], y[:n], order, None, nt, prefetch)()


def _address(x: Array) -> ctypes.c_void_p:
    if not (x.flags.c_contiguous or x.flags.f_contiguous):
        raise ValueError(f"expected contiguous memory, got strides {x.strides} of shape {x.shape}")
    return ctypes.c_void_p(x.ctypes.data)


class _Bound:
    """A call with its arguments, made once; it keeps the arrays."""

    def __init__(self, function: Any, arguments: Sequence[Any], arrays: Sequence[Array]) -> None:
        self._function, self._arguments, self._arrays = function, tuple(arguments), tuple(arrays)

    def __call__(self) -> int:
        return int(self._function(*self._arguments))


def read(threads: int, *arrays: Array, prefetch: bool = False) -> Call:
    """Reads 1 to 4 arrays of one size."""
    pointers = (ctypes.c_void_p * len(arrays))(*(_address(x) for x in arrays))
    size = _one_size(arrays)
    ahead = ctypes.c_size_t(AHEAD * prefetch)
    return _Bound(_library()[0].stream_read, (threads, len(arrays), pointers, ctypes.c_size_t(size), ahead), arrays)


def combine(threads: int, *arrays: Array, out: Array, nt: bool, prefetch: bool = False) -> Call:
    """Reads 0 to 4 arrays and writes `out`, past the caches with `nt`."""
    pointers = (ctypes.c_void_p * max(1, len(arrays)))(*(_address(x) for x in arrays))
    size, ahead = _one_size([*arrays, out]), ctypes.c_size_t(AHEAD * prefetch)
    arguments = (threads, len(arrays), pointers, _address(out), ctypes.c_size_t(size), ahead, int(nt))
    return _Bound(_library()[0].stream_combine, arguments, [*arrays, out])


def columns(threads: int, y: Array, g: Array, x: Array, out: Array | None, nt: bool, prefetch: bool = False) -> Call:
    """Reads two vectors and all columns of x, (n, k) in either order, and writes `out` where it is given."""
    size, k = _one_size([y, g]), x.shape[1]
    if x.nbytes != k * size or (out is not None and (out.shape != x.shape or out.strides != x.strides)):
        raise ValueError(f"expected x and out of shape ({y.size}, k) in one order, got {x.shape}")
    target = ctypes.c_void_p(None) if out is None else _address(out)
    ahead = ctypes.c_size_t(AHEAD * prefetch)
    sizes = (ctypes.c_size_t(size), int(x.flags.c_contiguous), ahead, int(nt))
    arguments = (threads, k, _address(y), _address(g), _address(x), target, *sizes)
    return _Bound(_library()[0].stream_columns, arguments, [y, g, x] if out is None else [y, g, x, out])


def _one_size(arrays: Sequence[Array]) -> int:
    sizes = {x.nbytes for x in arrays}
    if len(sizes) != 1:
        raise ValueError(f"expected arrays of one size, got {sorted(sizes)} bytes")
    return int(sizes.pop())
