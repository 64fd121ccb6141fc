"""Vectors that are files: inner products and M @ x of 1e9 float32 parameters from memory maps.

    python benchmarks/out_of_core.py [--size 1e9] [--folder DIR] [--threads 2] [--keep]

Writes grad, update and x (4 GB each at 1e9) and room for the result into a new folder inside `--folder`, which it
removes at the end. Before each operation the files are dropped from the page cache (Linux), so that every byte comes
from the disk once for each time it is read, unless the cache still has it: `reads` is what the disk delivered over the
size of the operands. Of a product, whose second pass reads grad, update and x again, it is 1 where they fit into the
cache, and up to 1.75 where they do not. `anonymous` is how far the memory of the process rose that is not page cache.
Then the results are compared with NumPy's in float64, a piece at a time.
"""

from __future__ import annotations

import argparse
import mmap
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

import steepest
from steepest import _core

PIECE = 4_000_000
MIB, GB = 2**20, 1e9
FILES = ("grad", "update", "x", "out")
# Of float32 results: two roundings of numbers of the size of the largest element, times what three terms can add.
TOLERANCE = 1e-6
Map = Any


def number(file: str, field: str) -> int:
    """A line of a file of /proc/self."""
    for line in Path(f"/proc/self/{file}").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise LookupError(f"no {field} in /proc/self/{file}")


def anonymous() -> int:
    """Bytes of memory of this process that no file stands behind."""
    return 1024 * number("status", "RssAnon")


class PeakOfMemory:
    """Largest rise of `anonymous` within the context, looked at a hundred times a second."""

    def __enter__(self) -> Self:
        self.before = self.peak = anonymous()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.peak = max(self.peak, anonymous())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.peak = max(self.peak, anonymous())

    @property
    def rise(self) -> float:
        """In MiB."""
        return (self.peak - self.before) / MIB


def pieces(n: int) -> Iterator[slice]:
    """Slices of a vector."""
    return (slice(i, min(i + PIECE, n)) for i in range(0, n, PIECE))


def write(folder: Path, n: int) -> None:
    """The files: grad and update at an angle of about 45 degrees, x, room for the result."""
    maps = {name: np.memmap(folder / name, np.float32, "w+", shape=(n,)) for name in FILES}
    rng = np.random.default_rng(0)
    for at in pieces(n):
        size = at.stop - at.start
        maps["grad"][at] = rng.standard_normal(size, dtype=np.float32)
        noise = rng.standard_normal(size, dtype=np.float32)
        maps["update"][at] = (noise - maps["grad"][at]) * np.float32(1e-2)
        maps["x"][at] = rng.standard_normal(size, dtype=np.float32)
        maps["out"][at] = 0.0  # its blocks on the disk, so that they are no part of what is timed
    for one in maps.values():
        one.flush()


def mapped(folder: Path, n: int) -> dict[str, Map]:
    """Maps of the files."""
    return {name: np.memmap(folder / name, np.float32, "r+" if name == "out" else "r", shape=(n,)) for name in FILES}


def drop_cache(folder: Path, maps: dict[str, Map]) -> None:
    """Neither this process nor the page cache has anything of the files afterwards."""
    for name, one in maps.items():
        one._mmap.madvise(mmap.MADV_DONTNEED)  # pages that are mapped would stay
        handle = os.open(folder / name, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def timed(name: str, folder: Path, maps: dict[str, Map], operands: Sequence[str], operation: Callable[[], Any]) -> Any:
    """Run it and print time, traffic and memory."""
    drop_cache(folder, maps)
    delivered = number("io", "read_bytes")
    with PeakOfMemory() as memory:
        begin = time.perf_counter()
        result = operation()
        seconds = time.perf_counter() - begin
    delivered = number("io", "read_bytes") - delivered
    size = sum(maps[operand].nbytes for operand in operands)
    print(
        f"{name:24} {seconds:8.2f} s   {size / GB:6.2f} GB of {', '.join(operands)}; {size / seconds / GB:5.2f} GB/s   "
        f"reads {delivered / size:4.2f}   anonymous +{memory.rise:.1f} MiB",
        flush=True,
    )
    return result


def products(maps: dict[str, Map], n: int) -> dict[str, float]:
    """The inner products by NumPy in float64; y is grad."""
    found = dict.fromkeys(("yy", "yg", "gg", "yx", "gx"), 0.0)
    for at in pieces(n):
        y, g, x = (maps[name][at].astype(np.float64) for name in ("grad", "update", "x"))
        for name, value in zip(found, (y @ y, y @ g, g @ g, y @ x, g @ x), strict=True):
            found[name] += float(value)
    return found


def check(gram: _core.Gram, maps: dict[str, Map], n: int) -> None:
    """The Gram matrix and the file `out` against NumPy."""
    p = products(maps, n)
    hi = np.ldexp(gram.hi, np.add.outer(gram.exponents, gram.exponents))
    scales = (p["yy"], np.sqrt(p["yy"] * p["gg"]), p["gg"])
    pairs = zip((hi[0, 0], hi[0, 1], hi[1, 1]), (p["yy"], p["yg"], p["gg"]), scales, strict=True)
    error = max(abs(found - expected) / scale for found, expected, scale in pairs)
    # M x = (y.x/y.g) y + alpha (x - (g.x/g.g) g), alpha = y.y/y.g, y = -grad
    alpha = -p["yy"] / p["yg"]
    largest = worst = 0.0
    for at in pieces(n):
        y, g, x = (maps[name][at].astype(np.float64) for name in ("grad", "update", "x"))
        expected = -p["yx"] / p["yg"] * y + alpha * (x - p["gx"] / p["gg"] * g)
        worst = max(worst, float(np.abs(maps["out"][at] - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
    print(
        f"against NumPy in float64: inner products {error:.1e} of the norms, M @ x {worst / largest:.1e} of the largest"
    )
    if not (error < 1e-12 and worst < TOLERANCE * largest):
        raise SystemExit("the results differ")


def run(folder: Path, n: int) -> None:
    """Write, time, check."""
    begin = time.perf_counter()
    write(folder, n)
    print(f"wrote {4 * 4 * n / GB:.1f} GB in {time.perf_counter() - begin:.0f} s", flush=True)
    maps = mapped(folder, n)
    grad, update, x, out = (maps[name] for name in FILES)
    pair = ("grad", "update")
    gram = timed("inner products", folder, maps, pair, lambda: _core.gram([grad, update]))
    metric = timed("steepest.metric", folder, maps, pair, lambda: steepest.metric(grad, update))

    def product() -> None:
        metric.matvec(x, out=out)
        out.flush()

    # The kernel of Linux reads the pages of out before they are written.
    timed("M @ x, out= on the disk", folder, maps, FILES, product)
    check(gram, maps, n)


def main() -> None:
    """Look for space, run, clean up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=1e9, help="parameters")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on a disk, not in memory")
    parser.add_argument("--threads", type=int, help="default: all")
    parser.add_argument("--keep", action="store_true", help="leave the files there")
    args = parser.parse_args()
    n = int(args.size)
    if args.threads:
        steepest.set_num_threads(args.threads)
    needed, free = 4 * 4 * n, shutil.disk_usage(args.folder).free
    print(f"n = {n:.0e}, float32: {needed / GB:.1f} GB of files in {args.folder}, {free / GB:.1f} GB free")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    print(f"memory {memory / GB:.1f} GB, {steepest.get_num_threads()} threads")
    if needed > 0.95 * free:
        raise SystemExit(f"needs {needed / GB:.1f} GB of disk: give a smaller --size or another --folder")
    folder = Path(tempfile.mkdtemp(prefix="out-of-core-", dir=args.folder))
    try:
        run(folder, n)
    finally:
        if args.keep:
            print(f"files in {folder}")
        else:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
