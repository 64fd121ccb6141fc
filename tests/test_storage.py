"""Recordings on disk: the bytes against an encoder written from the documentation, every kind of damage, real kills.

Run as a script, this file is the process that is killed, starved of disk, or read while it writes.
"""

from __future__ import annotations

import errno
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from steepest.storage import RecordReader, RecordWriter, read_records

DTYPE = np.dtype([("step", "<i8"), ("gram", "<f8", (2, 3)), ("status", "u1")])
SIZE = DTYPE.itemsize + 8


def table(first: int, last: int, dtype: np.dtype = DTYPE) -> np.ndarray:
    """Records first..last-1, every byte of which depends on the index."""
    out = np.zeros(last - first, dtype)
    out["step"] = np.arange(first, last)
    if "gram" in dtype.names:
        out["gram"] = np.sin(out["step"][:, None, None] + np.arange(6).reshape(2, 3))
        out["status"] = out["step"] % 251
    else:
        out["filling"] = out["step"][:, None] * 2654435761 + np.arange(dtype["filling"].shape[0])
    return out


def write(path: Path, n: int, *, at_once: int = 1) -> Path:
    with RecordWriter.create(path, DTYPE) as writer:
        for first in range(0, n, at_once):
            writer.append(table(first, min(n, first + at_once)))
    return path


def crc32(data: bytes) -> int:
    """Bit by bit, as docs/recording-format.md defines it."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0xEDB88320 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def test_bytes_are_those_of_the_documentation(tmp_path: Path) -> None:
    # two appends, of 1 and 2 records; a resume; one more
    words = [0 | 1 << 30, 1, 2 | 1 << 30, 3 | 1 << 31 | 1 << 30]
    expected = b""
    for (step, gram, status), word in zip(table(0, 4).tolist(), words, strict=True):
        body = struct.pack("<q6dBI", step, *gram[0], *gram[1], status, word)
        expected += body + struct.pack("<I", crc32(body))
    with RecordWriter.create(tmp_path / "run", DTYPE, user={"a": [1, None]}) as writer:
        writer.append(table(0, 1))
        writer.append(table(1, 3))
    with RecordWriter.resume(tmp_path / "run", DTYPE) as writer:
        writer.append(table(3, 4)[0])
    assert (tmp_path / "run" / "records.bin").read_bytes() == expected

    meta = json.loads((tmp_path / "run" / "meta.json").read_text())
    assert set(meta) == {"format", "format_version", "package_version", "created", "dtype", "user"}
    assert (meta["format"], meta["format_version"]) == ("steepest-recording", 1)
    assert meta["dtype"] == [["step", "<i8", []], ["gram", "<f8", [2, 3]], ["status", "|u1", []]]
    assert meta["user"] == {"a": [1, None]}
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["meta.json", "records.bin"]
    assert [p.name for p in tmp_path.iterdir()] == ["run"]  # no temporary folder left


DTYPES = hnp.array_dtypes(hnp.scalar_dtypes(), min_size=1, max_size=5, allow_subarrays=True)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_round_trip(data: st.DataObject) -> None:
    dtype = data.draw(DTYPES)
    if data.draw(st.booleans()):
        dtype = np.dtype([(name, dtype[name]) for name in dtype.names], align=True)
    records = data.draw(hnp.arrays(dtype, st.integers(0, 6)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(records)), max_size=3)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        with RecordWriter.create(path, dtype) as writer:
            for first, last in zip([0, *cuts], [*cuts, len(records)], strict=True):
                writer.append(records[first:last])
            assert writer.count == len(records)
        reader = RecordReader(path)
        assert reader.records.shape == records.shape
        assert reader.records.dtype == reader.dtype
        assert reader.dtype.names == dtype.names
        for name in dtype.names:  # bytes, so that NaNs count too
            assert reader.dtype[name] == dtype[name].newbyteorder("<")
            little = records[name].astype(records[name].dtype.newbyteorder("<"))
            assert reader.records[name].tobytes() == little.tobytes()
        assert reader.verify().size == 0
        assert not reader.resumed.any()
        assert reader.dropped == 0


def test_records_are_a_view_of_the_file(tmp_path: Path) -> None:
    records = read_records(write(tmp_path / "run", 5))
    assert not records.flags.owndata
    assert not records.flags.writeable
    assert records.strides == (SIZE,)
    np.testing.assert_array_equal(records, table(0, 5))
    with pytest.raises(ValueError, match="read-only"):
        records["step"][0] = 1


def test_empty(tmp_path: Path) -> None:
    with RecordWriter.create(tmp_path / "run", DTYPE) as writer:
        writer.append(table(0, 0))
    reader = RecordReader(tmp_path / "run")
    assert (len(reader), reader.dropped, reader.verify().size, reader.resumed.size) == (0, 0, 0, 0)
    assert reader.records.dtype == DTYPE
    assert not reader.records.flags.writeable
    with RecordWriter.resume(tmp_path / "run", DTYPE) as writer:
        writer.append(table(0, 1))
    assert reader.refresh() == 1
    assert reader.resumed.tolist() == [True]


@pytest.mark.parametrize("at_once", [1, 3])
def test_every_torn_tail(tmp_path: Path, at_once: int) -> None:
    file = write(tmp_path / "run", 6, at_once=at_once) / "records.bin"
    content = file.read_bytes()
    for length in range(len(content) + 1):
        file.write_bytes(content[:length])
        n = length // (SIZE * at_once) * at_once  # an append is whole or it is not there
        reader = RecordReader(tmp_path / "run")
        assert (len(reader), reader.dropped) == (n, length - n * SIZE)
        if length % 7 == 0:
            with RecordWriter.resume(tmp_path / "run", DTYPE) as writer:
                assert (writer.count, writer.dropped) == (n, length - n * SIZE)
                assert file.stat().st_size == n * SIZE
                writer.append(table(n, n + 2))
            assert reader.refresh() == 2
            np.testing.assert_array_equal(reader.records, table(0, n + 2))
            assert reader.resumed.tolist() == [False] * n + [True, False]
            assert reader.verify().size == 0


def test_tail_that_is_not_ours(tmp_path: Path) -> None:
    # what a power cut leaves: the file has grown, its blocks were not written; also a tail of several read blocks
    file = write(tmp_path / "run", 3) / "records.bin"
    content = file.read_bytes()
    for tail in (bytes(200_000), b"\xff" * 4096, content[:SIZE], content[-SIZE:]):
        file.write_bytes(content + tail)
        reader = RecordReader(tmp_path / "run")
        assert (len(reader), reader.dropped) == (3, len(tail))


def test_every_bit_flip(tmp_path: Path) -> None:
    file = write(tmp_path / "run", 5) / "records.bin"
    content = file.read_bytes()
    for bit in range(8 * SIZE):
        for record, n, bad in ((4, 4, []), (bit % 4, 5, [bit % 4])):
            damaged = bytearray(content)
            damaged[record * SIZE + bit // 8] ^= 1 << bit % 8
            file.write_bytes(damaged)
            reader = RecordReader(tmp_path / "run")
            assert len(reader) == n
            assert reader.verify().tolist() == bad


def test_verify_finds_each_of_many_bad_records(tmp_path: Path) -> None:
    n = 3 * (1 << 20) // SIZE + 11  # several blocks, the last one short
    file = write(tmp_path / "run", n, at_once=1000) / "records.bin"
    content = np.fromfile(file, np.uint8).reshape(n, SIZE)
    rng = np.random.default_rng(0)
    bad = np.sort(rng.choice(n - 1, 40, replace=False))
    content[bad, rng.integers(0, SIZE, 40)] ^= 64
    content[5], content[6] = content[6].copy(), content[5].copy()  # valid records in the wrong places
    content.tofile(file)
    assert RecordReader(tmp_path / "run").verify().tolist() == sorted({*bad.tolist(), 5, 6})
    file.write_bytes(content.tobytes()[: -SIZE * 2])  # gone since the reader was opened
    reader = RecordReader(tmp_path / "run")
    length = len(reader)
    os.truncate(file, (length - 3) * SIZE)
    assert reader.verify()[-3:].tolist() == [length - 3, length - 2, length - 1]


def test_index_wraps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steepest.storage._INDEX", 7)
    reader = RecordReader(write(tmp_path / "run", 20))
    assert len(reader) == 20
    assert reader.verify().size == 0


def test_never_overwrites(tmp_path: Path) -> None:
    write(tmp_path / "run", 2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("run", "empty", "file", "dangling"):
        with pytest.raises(FileExistsError, match="never overwritten"):
            RecordWriter.create(tmp_path / name, DTYPE)
    assert len(RecordReader(tmp_path / "run")) == 2
    write(tmp_path / "new" / "parents" / "run", 1)


def test_two_processes_create_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        write(tmp_path / "run", 3)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    with pytest.raises(FileExistsError):
        RecordWriter.create(tmp_path / "run", DTYPE)
    assert len(RecordReader(tmp_path / "run")) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_one_writer_in_a_process(tmp_path: Path) -> None:
    path = write(tmp_path / "run", 2)
    (tmp_path / "link").symlink_to(path)
    with RecordWriter.resume(path, DTYPE) as writer:
        for name in ("run", "link"):
            with pytest.raises(RuntimeError, match="already writes"):
                RecordWriter.resume(tmp_path / name, DTYPE)
        writer.append(table(2, 3))  # the first one goes on
    with pytest.raises(ValueError, match="closed"):
        writer.append(table(3, 4))
    writer.close()
    with RecordWriter.resume(path, DTYPE) as writer:
        assert writer.count == 3


def test_another_process_writes(tmp_path: Path) -> None:
    path = write(tmp_path / "run", 2)
    with RecordWriter.resume(path, DTYPE) as writer:
        with (path / "records.bin").open("ab") as other:
            other.write(bytes(SIZE))
        with pytest.raises(RuntimeError, match="one writer"):
            writer.append(table(2, 3))
        assert (path / "records.bin").stat().st_size == 3 * SIZE  # it does not touch what is not its own
        os.truncate(path / "records.bin", SIZE)
        with pytest.raises(RuntimeError, match="one writer"):
            writer.append(table(2, 3))


def test_dtype_must_agree(tmp_path: Path) -> None:
    other = np.dtype([("step", "<i8"), ("gram", "<f4", (2, 3)), ("status", "u1")])
    swapped = DTYPE.newbyteorder(">")
    with RecordWriter.create(tmp_path / "run", swapped) as writer:
        assert writer.dtype == DTYPE
        for wrong in (np.zeros(1, other), np.zeros(3), [(1, 2, 3)], table(0, 1)[["status", "step", "gram"]]):
            with pytest.raises(TypeError, match="must be of"):
                writer.append(wrong)
        with pytest.raises(ValueError, match=r"shape \(\) or \(k,\)"):
            writer.append(table(0, 4).reshape(2, 2))
        writer.append(table(0, 2).astype(swapped))
        writer.append(np.repeat(table(2, 4), 3)[::3])  # not contiguous
        assert writer.count == 4
    np.testing.assert_array_equal(read_records(tmp_path / "run"), table(0, 4))
    with pytest.raises(TypeError, match="resume with its dtype"):
        RecordWriter.resume(tmp_path / "run", other)


@pytest.mark.parametrize("dtype", [float, [("a", object)], [("a", "g")], [("a", [("b", "f8")])], [("a", "T")]])
def test_dtypes_without_a_fixed_form(tmp_path: Path, dtype: object) -> None:
    with pytest.raises(TypeError, match=r"structured|fixed form"):
        RecordWriter.create(tmp_path / "run", dtype)
    assert not list(tmp_path.iterdir())


def test_bfloat16_is_refused_and_not_misread(tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    with pytest.raises(TypeError, match="bfloat16 as V2"):
        RecordWriter.create(tmp_path / "run", [("a", ml_dtypes.bfloat16)])


def test_user_must_be_json(tmp_path: Path) -> None:
    for user, kind in (({"a": object()}, TypeError), ({1: 2}, TypeError), ({"a": float("nan")}, ValueError)):
        with pytest.raises(kind):
            RecordWriter.create(tmp_path / "run", DTYPE, user=user)
    with pytest.raises(ValueError, match="at least one byte"):
        RecordWriter.create(tmp_path / "run", [("a", "f8", (0,))])
    assert not list(tmp_path.iterdir())


def edit(path: Path, **changes: object) -> None:
    meta = json.loads((path / "meta.json").read_text()) | changes
    (path / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2, "package_version": "9.1"}, r"format version is 2.*reads versions 1:.*9\.1"),
        ({"format": "other"}, "format is 'other'"),
        ({"dtype": [["a", ">f8", []]]}, "little-endian"),
        ({"dtype": [["a", "|O", []]]}, "fixed form"),
        ({"dtype": [["a", "f8,f8", []]]}, "fixed form"),
        ({"dtype": [["a", None, []]]}, "little-endian"),
        ({"dtype": [["a", "<f8", [10**30]]]}, "invalid shape"),
        ({"dtype": 3}, "not iterable"),
    ],
)
def test_meta_that_cannot_be_read(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = write(tmp_path / "run", 2)
    edit(path, **changes)
    for attempt in (RecordReader, lambda path: RecordWriter.resume(path, DTYPE)):
        with pytest.raises(ValueError, match=message):
            attempt(path)
    assert (path / "records.bin").stat().st_size == 2 * SIZE


def test_not_a_recording(tmp_path: Path) -> None:
    for attempt in (RecordReader, read_records, lambda path: RecordWriter.resume(path, DTYPE)):
        with pytest.raises(FileNotFoundError):
            attempt(tmp_path)
    for content in (b"", b"{", b"[1]", b"{}", b"\xff"):
        (tmp_path / "meta.json").write_bytes(content)
        with pytest.raises(ValueError, match="does not describe a recording"):
            RecordReader(tmp_path)


def test_relative_path_outlives_a_change_of_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with RecordWriter.create("run", DTYPE) as writer:
        reader = RecordReader("run")
        monkeypatch.chdir("/")
        writer.append(table(0, 2))
        assert reader.refresh() == 2


def test_another_recording_in_its_place(tmp_path: Path) -> None:
    reader = RecordReader(write(tmp_path / "run", 2))
    (tmp_path / "run").rename(tmp_path / "old")
    write(tmp_path / "run", 3)
    with pytest.raises(ValueError, match="another recording"):
        reader.refresh()
    np.testing.assert_array_equal(reader.records, table(0, 2))  # what was mapped stays


class Faulty(io.FileIO):
    """A file that fails as told: each item is (bytes to take at most, error raised after that or None)."""

    def __init__(self, path: Path, faults: list[tuple[int, BaseException | None]]) -> None:
        super().__init__(path, "ab")
        self.faults = faults
        self.calls = 0

    def write(self, data: memoryview) -> int:
        self.calls += 1
        most, error = self.faults.pop(0) if self.faults else (len(data), None)
        written = super().write(data[:most]) if most else 0
        if error is not None:
            raise error
        return written


def faulty(writer: RecordWriter, faults: list[tuple[int, BaseException | None]]) -> Faulty:
    writer._file.close()
    writer._file = Faulty(writer.path / "records.bin", faults)
    return writer._file


def test_short_writes_are_completed(tmp_path: Path) -> None:
    with RecordWriter.create(tmp_path / "run", DTYPE) as writer:
        file = faulty(writer, [(1, None), (SIZE, None), (7, None)])
        writer.append(table(0, 3))
        assert file.calls == 4
        writer.append(table(3, 7))
        assert file.calls == 5  # one call for an append
    reader = RecordReader(tmp_path / "run")
    np.testing.assert_array_equal(reader.records, table(0, 7))
    assert reader.verify().size == 0


@pytest.mark.parametrize("most", [0, 1, SIZE, SIZE + 1, 3 * SIZE])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_failed_append_is_rolled_back(tmp_path: Path, most: int, error: BaseException) -> None:
    with RecordWriter.create(tmp_path / "run", DTYPE) as writer:
        writer.append(table(0, 2))
        faulty(writer, [(most, error)])
        with pytest.raises(type(error)):
            writer.append(table(2, 5))
        assert writer.count == 2
        assert (tmp_path / "run" / "records.bin").stat().st_size == 2 * SIZE
        writer.append(table(2, 5))
    reader = RecordReader(tmp_path / "run")
    np.testing.assert_array_equal(reader.records, table(0, 5))
    assert reader.verify().size == 0


def test_roll_back_that_fails_is_done_by_the_next_append(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RecordWriter.create(tmp_path / "run", DTYPE) as writer:
        writer.append(table(0, 2))
        faulty(writer, [(SIZE + 5, OSError(errno.EIO, "disk"))])

        def refuse(self: Faulty, size: int) -> int:
            raise OSError(errno.EIO, "disk again")

        with monkeypatch.context() as patch:
            patch.setattr(Faulty, "truncate", refuse, raising=False)
            with pytest.raises(OSError, match=r"disk$"):
                writer.append(table(2, 5))
            assert len(RecordReader(tmp_path / "run")) == 2
            with pytest.raises(OSError, match="disk again"):
                writer.append(table(2, 5))
        writer.append(table(2, 5))
    np.testing.assert_array_equal(read_records(tmp_path / "run"), table(0, 5))
    assert RecordReader(tmp_path / "run").verify().size == 0


def test_threads_share_a_writer(tmp_path: Path) -> None:
    with RecordWriter.create(tmp_path / "run", DTYPE) as writer:

        def work(first: int) -> None:
            for start in range(first, first + 300, 3):
                writer.append(table(start, start + 3))

        threads = [threading.Thread(target=work, args=(300 * i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    reader = RecordReader(tmp_path / "run")
    assert reader.verify().size == 0
    steps = reader.records["step"].reshape(-1, 3)
    assert (np.diff(steps, axis=1) == 1).all()  # appends are not interleaved
    np.testing.assert_array_equal(np.sort(steps.ravel()), np.arange(1200))


def test_sync_flushes_files_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def spy(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    path = tmp_path / "run"
    with RecordWriter.create(path, DTYPE, sync=True) as writer:
        records = (path / "records.bin").stat().st_ino
        assert {*synced} == {p.stat().st_ino for p in (path / "meta.json", path / "records.bin", path, tmp_path)}
        synced.clear()
        writer.append(table(0, 1))
        writer.append(table(1, 3))
        assert synced == [records] * 2

        def fail(descriptor: int) -> None:
            raise OSError(errno.EIO, "lost")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="lost"):
            writer.append(table(3, 4))
        assert RecordReader(path).refresh() == 0
        assert writer.count == len(RecordReader(path)) == 3
    synced.clear()
    monkeypatch.setattr(os, "fsync", spy)
    with RecordWriter.resume(path, DTYPE) as writer:
        writer.append(table(3, 4))
    assert not synced


def test_read_only_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "run", 3)
    for file in (path / "meta.json", path / "records.bin"):
        file.chmod(0o444)
    path.chmod(0o555)
    try:
        reader = RecordReader(path)
        np.testing.assert_array_equal(reader.records, table(0, 3))
        assert reader.verify().size == 0
        if os.access(path / "records.bin", os.W_OK):
            pytest.skip("permissions do not bind this user: only reading was tested")
        with pytest.raises(PermissionError):
            RecordWriter.resume(path, DTYPE)
        with pytest.raises(PermissionError):
            RecordWriter.create(path / "inner", DTYPE)
    finally:
        path.chmod(0o755)


def script(*arguments: object, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def test_disk_full(tmp_path: Path) -> None:
    with script("full", tmp_path / "run") as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert output == "EFBIG 151 151 EFBIG 151 155\n"
    reader = RecordReader(tmp_path / "run")
    np.testing.assert_array_equal(reader.records, table(0, 155))
    assert reader.verify().size == 0
    assert reader.dropped == 0


def full(path: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    out = []
    with RecordWriter.create(path, DTYPE) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (151 * SIZE + SIZE // 2, hard))
        for k in (1, 4):
            try:
                while True:
                    writer.append(table(writer.count, writer.count + k))
            except OSError as error:
                out += [errno.errorcode[error.errno or 0], writer.count]
            if len(out) == 2:
                out.append(len(RecordReader(path)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        writer.append(table(151, 155))
        out.append(writer.count)
    print(*out)


def test_reading_while_another_process_writes(tmp_path: Path) -> None:
    n, at_once = 150_000, 5
    with script("write", tmp_path / "run", n, at_once) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "created\n"
        reader = RecordReader(tmp_path / "run")
        sizes, end = {0}, time.monotonic() + 60
        while len(reader) < n and time.monotonic() < end:
            before = reader.records
            new = reader.refresh()
            assert new >= 0
            assert len(reader) == len(before) + new
            assert len(reader) % at_once == 0  # appends are seen whole
            np.testing.assert_array_equal(reader.records[-new or len(reader) :], table(len(reader) - new, len(reader)))
            sizes.add(len(reader))
        process.communicate(timeout=60)
    assert len(sizes) > 3  # the writer was seen at work
    np.testing.assert_array_equal(reader.records, table(0, n))
    assert reader.verify().size == 0


WIDE = np.dtype([("step", "<i8"), ("filling", "<u8", (60,))])
KILLS = 300


def test_kill_at_random_moments(tmp_path: Path) -> None:
    with script("kill", tmp_path, KILLS) as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    result = json.loads(output)
    print(result)  # pytest -s: how many were caught creating, appending, or with a torn tail
    assert result["kills"] == KILLS
    assert result["acknowledged"] > KILLS
    assert result["while_appending"] >= KILLS // 2


def kill(folder: Path, kills: int) -> None:
    """Fork writers, kill each at a random moment, look at what is there; a recording lives for up to 8 writers."""
    rng = random.Random()
    sums = dict.fromkeys(("kills", "acknowledged", "unacknowledged", "while_appending", "torn", "before_creation"), 0)
    path, starts = folder / "0", set()
    for number in range(kills):
        if number % 8 == 0:
            shutil.rmtree(path, ignore_errors=True)
            path, starts = folder / str(number), set()
        known = len(RecordReader(path)) if path.exists() else 0
        receive, send = os.pipe()
        process = os.fork()
        if process == 0:
            try:
                append_for_ever(path, send)
            finally:
                os._exit(1)
        os.close(send)
        # a quarter at any time from its start, the others once it is known to append, however slow the machine
        said = b"" if number % 4 == 0 else os.read(receive, 8)
        time.sleep(rng.uniform(0, 0.01))
        os.kill(process, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(process, 0)[1]), "the writer ended by itself"
        with os.fdopen(receive, "rb") as pipe:
            said += pipe.read()
        acknowledged = struct.unpack_from("<q", said, len(said) - 8)[0] if said else 0
        sums["kills"] += 1
        if not path.exists():
            assert not said
            sums["before_creation"] += 1
            continue
        reader = RecordReader(path)
        assert len(reader) >= max(acknowledged, known), f"{acknowledged} acknowledged, {len(reader)} there"
        np.testing.assert_array_equal(reader.records, table(0, len(reader), WIDE))
        assert reader.verify().size == 0
        if len(reader) > known and known:
            starts.add(known)
        # a writer killed before its first append leaves no mark; one that resumed an empty recording marks record 0
        assert set(np.flatnonzero(reader.resumed)) - {0} == starts
        sums["acknowledged"] += max(0, acknowledged - known)
        sums["unacknowledged"] += len(reader) - max(acknowledged, known)
        sums["while_appending"] += len(reader) > known
        sums["torn"] += reader.dropped > 0
    print(json.dumps(sums))


def append_for_ever(path: Path, send: int) -> None:
    writer = RecordWriter.resume(path, WIDE) if path.exists() else RecordWriter.create(path, WIDE)
    rng = random.Random()
    while True:
        writer.append(table(writer.count, writer.count + rng.choice([1, 1, 1, 3, 50, 400]), WIDE))
        os.write(send, struct.pack("<q", writer.count))


if __name__ == "__main__":
    task, place, *numbers = sys.argv[1:]
    if task == "full":
        full(Path(place))
    elif task == "kill":
        kill(Path(place), int(numbers[0]))
    elif task == "write":
        with RecordWriter.create(place, DTYPE) as the_writer:
            print("created", flush=True)
            for start in range(0, int(numbers[0]), int(numbers[1])):
                the_writer.append(table(start, start + int(numbers[1])))
