"""Kept vectors: the files against the safetensors library, damaged ones, and every way from a step to its vectors."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steepest.arrays import long_vector
from steepest.recorder import Recorder
from steepest.recording import Recording, recording
from steepest.safetensors_file import SafetensorsFile, write_safetensors
from steepest.storage import RecordWriter
from steepest.vector_store import StoredStep

RNG = np.random.default_rng(7)
SHAPES = {"w": (4, 3), "b": (5,), "a/b": ()}


def tensors() -> dict[str, tuple[np.ndarray, str]]:
    base = RNG.standard_normal((6, 8))
    return {
        "half": (base[0].astype(np.float16), "float16"),
        "double": (base, "float64"),
        "bits": (np.arange(3, dtype=np.uint16), "bfloat16"),
        "strided": (base[::2, ::-1].astype(np.float32).T, "float32"),
        "scalar": (np.array(2.5), "float64"),
        "empty": (np.empty((0, 3)), "float64"),
        "größe": (base[:, 1], "float64"),
    }


def read_all(path: Path) -> dict[str, np.ndarray]:
    file = SafetensorsFile(path)
    return {name: file.read(name) for name in file.entries}


def test_files_are_read_by_the_safetensors_library(tmp_path: Path) -> None:
    numpy, torch = pytest.importorskip("safetensors.numpy"), pytest.importorskip("torch")
    from_torch = pytest.importorskip("safetensors.torch")
    given = tensors()
    write_safetensors(tmp_path / "a", given, sync=True)
    found = from_torch.load_file(tmp_path / "a")
    assert set(found) == set(given)
    for name, (array, dtype) in given.items():
        assert str(found[name].dtype) == f"torch.{dtype}"
        if dtype == "bfloat16":
            assert found[name].view(torch.int16).tolist() == array.tolist()
        else:
            np.testing.assert_array_equal(found[name].numpy(), array)
    del given["bits"]
    write_safetensors(tmp_path / "b", given)
    assert all((numpy.load_file(tmp_path / "b")[name] == array).all() for name, (array, _) in given.items())


def test_files_of_the_safetensors_library_are_read(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    given = {name: np.ascontiguousarray(array) for name, (array, dtype) in tensors().items() if dtype != "bfloat16"}
    numpy.save_file(given, tmp_path / "a", metadata={"made": "elsewhere"})
    found = read_all(tmp_path / "a")
    assert set(found) == set(given)
    for name, array in given.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_arrays_are_mapped_aligned_and_read_only(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a", tensors())
    for name, array in read_all(tmp_path / "a").items():
        assert type(array) is np.ndarray
        assert array.flags.aligned
        if array.size:
            assert not array.flags.writeable
            assert not array.flags.owndata
        assert array.nbytes == tensors()[name][0].nbytes
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    write_safetensors(tmp_path / "none", {})
    assert read_all(tmp_path / "none") == {}


def test_a_failed_write_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_safetensors(tmp_path / "a", tensors())
    before = (tmp_path / "a").read_bytes()

    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_safetensors(tmp_path / "a", {"x": (np.zeros(3), "float64")})
    assert (tmp_path / "a").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def file_of(header: Any, content: bytes = bytes(16)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content


def entry(dtype: str = "F64", shape: Any = (2,), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        b"\xff" * 8 + b"{}",
        (10**9).to_bytes(8, "little") + b"{}",
        file_of(b"{"),
        file_of(b"\xff\xfe"),
        file_of([]),
        file_of({"x": 3}),
        file_of({"x": {"dtype": "F64", "shape": [2]}}),
        file_of(entry("I64", (3,))),
        file_of(entry(shape=(3,))),
        file_of(entry(shape=(-2,))),
        file_of(entry(shape="ab")),
        file_of(entry(offsets=(8, 24))),
        file_of(entry(offsets=(-16, 0))),
        file_of(entry(offsets=(16, 0))),
        file_of(entry(offsets=(0, 16)), bytes(15)),
        file_of(entry(offsets=(0.0, 16.0))),
        b"\x80\x04\x95 a pickle",
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=r"safetensors file|expected -?\d+ bytes for|expected tensor 'x' to lie"):
        read_all(tmp_path / "a")


def step_of(t: int, dtype: Any = np.float32) -> dict[str, Any]:
    rng = np.random.default_rng(t)
    draw = [{name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()} for _ in range(3)]
    return {"params": draw[0], "grad": draw[1], "update": draw[2], "loss": float(t)}


def assert_equal(found: Any, expected: Any) -> None:
    """Values, element types and names."""
    if expected is None:
        assert found is None
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for name, x in expected.items():
            assert_equal(found[name], x)
    else:
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def assert_step(found: StoredStep, expected: dict[str, Any]) -> None:
    for name in ("params", "grad", "update"):
        assert_equal(getattr(found, name), expected.get(name))


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_vectors_of_each_step(tmp_path: Path, on_disk: bool, dtype: Any) -> None:
    path = tmp_path / "run" if on_disk else None
    with Recorder(path, keep="vectors", every=2) as rec:
        for t in range(5):
            one = step_of(t, dtype)
            rec.step(**one)
            for arrays in (one["params"], one["grad"], one["update"]):
                for x in arrays.values():
                    x[...] = 0.0  # the loop goes on in place
        rec.skip("overflow")
        rec.step(grad=step_of(6, dtype)["grad"])
    runs = [rec.recording()]
    if path is not None:
        assert sorted(p.name for p in (path / "vectors").iterdir()) == [f"{t:012d}.safetensors" for t in (0, 2, 4, 6)]
        runs.append(Recording.open(path))
    runs[0].save(tmp_path / "saved")
    runs.append(Recording.open(tmp_path / "saved"))
    for found in runs:
        assert found.has_vectors
        assert found.info.keep == "vectors"
        assert "with vectors" in repr(found)
        for t in (0, 2, 4):
            assert_step(found.vectors(t), step_of(t, dtype))
        assert_step(found.vectors(6), {"grad": step_of(6, dtype)["grad"]})
        for t, message in ((5, "skipped"), (1, "not recorded"), (7, "not recorded")):
            with pytest.raises(ValueError, match=message):
                found.vectors(t)
        for without in (pickle.loads(pickle.dumps(found)), Recording.load(tmp_path / "saved")):
            assert not without.has_vectors
            assert without.info.keep == "scalars"
            with pytest.raises(ValueError, match="keep='vectors'"):
                without.vectors(0)
            assert without.rows.tobytes() == found.rows.tobytes()


def test_a_recording_so_far_has_its_own_steps(tmp_path: Path) -> None:
    rec = Recorder(keep="vectors")
    rec.step(**step_of(0))
    so_far = rec.recording()
    rec.step(**step_of(1))
    with pytest.raises(ValueError, match="not recorded"):
        so_far.vectors(1)


def test_single_array_and_formed_update(tmp_path: Path) -> None:
    theta = RNG.standard_normal((3, 2, 5)).astype(np.float32)
    for path in (None, tmp_path / "run"):
        rec = Recorder(path, keep="vectors")
        rec.step(params=theta[0], grad=theta[0], params_next=theta[1])
        assert_step(rec.recording().vectors(0), {"params": theta[0], "grad": theta[0], "update": theta[1] - theta[0]})
        rec.close()


def test_without_params_and_without_anything(tmp_path: Path) -> None:
    with Recorder(tmp_path / "run", keep="vectors") as rec:
        rec.step(grad=np.ones(3), update=-np.ones(3))
        rec.step(loss=2.0)
    found = Recording.open(tmp_path / "run")
    assert_step(found.vectors(0), {"grad": np.ones(3), "update": -np.ones(3)})
    assert_step(found.vectors(1), {})


def test_bfloat16_is_written_without_ml_dtypes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    torch.manual_seed(0)
    grad = {"w": torch.randn(3, 4).to(torch.bfloat16), "b": torch.randn(2)}
    recs = [Recorder(keep="vectors"), Recorder(tmp_path / "run", keep="vectors")]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ml_dtypes", None)
        for rec in recs:
            rec.step(grad=grad, update=grad)
            with pytest.raises(ImportError, match=r"steepest\[vectors\]"):
                rec.recording().vectors(0)
            rec.close()
    for rec in recs:
        found = rec.recording().vectors(0).grad
        assert found["w"].dtype == ml_dtypes.bfloat16
        assert found["w"].astype(np.float32).tolist() == grad["w"].float().tolist()
        assert found["b"].dtype == np.float32
    rec.recording().save(tmp_path / "again")
    again = Recording.open(tmp_path / "again").vectors(0).grad
    assert again["w"].tobytes() == found["w"].tobytes()


def test_vectors_are_there_before_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rec = Recorder(tmp_path / "run", keep="vectors", sync=True)
    rec.step(**step_of(0))

    def full(self: RecordWriter, records: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(RecordWriter, "append", full)
        with pytest.raises(OSError, match="No space"):
            rec.step(**step_of(7))
    assert (tmp_path / "run" / "vectors" / f"{1:012d}.safetensors").exists()
    assert len(Recording.open(tmp_path / "run")) == 1
    rec.step(**step_of(1))
    rec.close()
    assert_step(Recording.open(tmp_path / "run").vectors(1), step_of(1))


def test_sync_flushes_vectors_before_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Recorder(tmp_path / "run", keep="vectors", sync=True) as rec:
        rec.step(**step_of(0))
        folder, synced, fsync = tmp_path / "run" / "vectors", [], os.fsync

        def spy(descriptor: int) -> None:
            synced.append(os.fstat(descriptor).st_ino)
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", spy)
        rec.step(**step_of(1))
    file = folder / f"{1:012d}.safetensors"
    assert synced == [p.stat().st_ino for p in (file, folder, tmp_path / "run" / "records.bin")]


def test_rows_from_elsewhere_bring_their_vectors(tmp_path: Path) -> None:
    """As a tracker of an accelerator does it."""
    plain = Recorder()
    plain.step(**step_of(0))
    vectors = [long_vector(step_of(0)[name], name) for name in ("params", "grad", "update")]
    rows = plain.recording().rows
    for path in (None, tmp_path / "run"):
        with Recorder(path, keep="vectors") as rec:
            rec._append_rows(vectors[0].layout, rows, [(vectors[0], [vectors[1]], vectors[2])])
            with pytest.raises(ValueError, match="vectors of each step"):
                rec._append_rows(vectors[0].layout, rows)
        assert_step(rec.recording().vectors(0), step_of(0))
    with pytest.raises(ValueError, match="vectors of each step"):
        Recorder()._append_rows(vectors[0].layout, rows, [(None, [None], None)])


def test_resume(tmp_path: Path) -> None:
    with Recorder(tmp_path / "run", keep="vectors") as rec:
        rec.step(**step_of(0))
    with pytest.raises(ValueError, match="options with which"):
        Recorder(tmp_path / "run", resume=True)
    with Recorder(tmp_path / "run", keep="vectors", resume=True) as rec:
        rec.step(**step_of(1))
    for t in range(2):
        assert_step(Recording.open(tmp_path / "run").vectors(t), step_of(t))
    (tmp_path / "run" / "vectors" / f"{1:012d}.safetensors").unlink()
    with pytest.raises(ValueError, match="has no vectors"):
        Recording.open(tmp_path / "run").vectors(1)


def test_vectors_of_candidates(tmp_path: Path) -> None:
    for path in (None, tmp_path / "run"):
        rec = Recorder(path, keep="vectors", candidates=("error", "energy"))
        one = step_of(0)
        rec.step(grad={"error": one["grad"], "energy": one["params"]}, update=one["update"])
        rec.step(grad={"energy": one["grad"]})
        rec.close()
        found = rec.recording()
        assert_equal(found.vectors(0).grad, {"error": one["grad"], "energy": one["params"]})
        assert_step(found.candidate("energy").vectors(0), {"grad": one["params"], "update": one["update"]})
        found.candidate("energy").save(tmp_path / f"energy of {path is None}")
        saved = Recording.open(tmp_path / f"energy of {path is None}")
        assert_step(saved.vectors(0), {"grad": one["params"], "update": one["update"]})
        assert list(found.vectors(1).grad) == ["energy"]
        assert found.candidate("error").vectors(1).grad is None


def test_whole_arrays_are_viewed() -> None:
    params, grad = ({name: RNG.standard_normal((4, *shape)) for name, shape in SHAPES.items()} for _ in range(2))
    rec = recording(params=params, grad=dict(reversed(grad.items())))
    assert rec.has_vectors
    assert rec.info.keep == "scalars"
    for t in range(4):
        found = rec.vectors(t)
        assert list(found.grad) == list(SHAPES)
        for name in SHAPES:
            assert np.shares_memory(found.params[name], params[name])
            assert np.shares_memory(found.grad[name], grad[name])
            assert found.grad[name].tolist() == grad[name][t].tolist()
            if t < 3:
                assert found.update[name].tolist() == (params[name][t + 1] - params[name][t]).tolist()
    assert found.update is None
    listed = recording(grad=[[1.0, 2.0]], update=[[3.0, 4.0]]).vectors(0)
    assert (listed.grad.tolist(), listed.update.tolist(), listed.params) == ([1.0, 2.0], [3.0, 4.0], None)


def test_whole_arrays_of_torch_and_jax() -> None:
    torch = pytest.importorskip("torch")
    grad = torch.randn(3, 4).to(torch.bfloat16)
    found = recording(grad=grad, update=grad).vectors(1)
    assert found.grad.dtype == torch.bfloat16
    assert found.grad.data_ptr() == grad[1].data_ptr()
    jnp = pytest.importorskip("jax.numpy")
    assert recording(grad=jnp.ones((3, 2)), update=jnp.ones((3, 2))).vectors(2).grad.tolist() == [1.0, 1.0]


def test_whole_arrays_of_candidates() -> None:
    x = RNG.standard_normal((2, 3, 4))
    rec = recording(grad={"a": x[0], "b": x[1]}, update=x[0], candidates=("a", "b"))
    assert rec.vectors(2).grad["b"].tolist() == x[1, 2].tolist()
    assert rec.candidate("a").vectors(2).grad.tolist() == x[0, 2].tolist()


def test_refused() -> None:
    with pytest.raises(ValueError, match="'vectors', got 'all'"):
        Recorder(keep="all")
