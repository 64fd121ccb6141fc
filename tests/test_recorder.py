"""Recording while a loop runs: equal to the recording of whole arrays, and what survives kills, resumes and bad input.

Run as a script, this file is the process that is killed.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import pickle
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import steepest
from oracles import inner, mp, pair
from steepest.arrays import Layout
from steepest.block_products import Product
from steepest.recorder import Recorder
from steepest.recording import Recording, recording
from steepest.row_format import STATUSES, RecordingInfo, row_dtype
from steepest.step_rows import scalar_row
from steepest.storage import RecordWriter

SHAPES = {"w": (4, 3), "b": (5,)}


def step_of(t: int, dtype: Any = np.float64) -> dict[str, Any]:
    """Arguments of step t, the same in every process."""
    rng = np.random.default_rng(t)
    draw = [{name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()} for _ in range(3)]
    return {"params": draw[0], "grad": draw[1], "update": draw[2], "loss": float(rng.standard_normal())}


def whole(steps: range, lag: int = 0) -> Recording:
    """The same steps through `recording`."""
    each = [step_of(t) for t in steps]
    stacked = {
        name: {key: np.stack([one[name][key] for one in each]) for key in SHAPES}
        for name in ("params", "grad", "update")
    }
    return recording(**stacked, loss=[one["loss"] for one in each], lag=lag)


def assert_equal_but(left: Recording, right: Recording, *without: str) -> None:
    """Every column, bit by bit."""
    assert left.blocks == right.blocks
    assert len(left) == len(right)
    for name in set(left.rows.dtype.names) & set(right.rows.dtype.names) - {"time", *without}:
        assert left[name].tobytes() == right[name].tobytes(), name


@pytest.mark.parametrize("lag", [0, 1, 3])
@pytest.mark.parametrize("on_disk", [False, True])
def test_equal_to_the_recording_of_whole_arrays(tmp_path: Path, lag: int, on_disk: bool) -> None:
    before = time.time()
    with Recorder(tmp_path / "run" if on_disk else None, lag=lag) as rec:
        for t in range(200):
            rec.step(**step_of(t))
    found = rec.recording()
    assert_equal_but(found, whole(range(200), lag))
    assert found.info.lag == lag
    assert before - 1 <= found.time[0] <= found.time[-1] <= time.time() + 1
    assert len(rec) == 200
    if on_disk:
        assert_equal_but(Recording.open(tmp_path / "run"), found)


def test_memory_and_disk_are_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1.5)
    both = [Recorder(None, lag=1, every=3), Recorder(tmp_path / "run", lag=1, every=3)]
    for rec in both:
        rec.skip("first")
        for t in range(10):
            rec.step(**step_of(t))
        rec.skip("überlauf")
        rec.close()
    assert both[0].recording().rows.tobytes() == both[1].recording().rows.tobytes()
    assert both[0].recording().notes == ("first", *[""] * 7, "überlauf")


def test_params_next() -> None:
    theta = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    rec = Recorder(lag=1)
    for t in range(4):
        rec.step(params=theta[t], grad=theta[t], loss=t, params_next=theta[t + 1])
    rec.step(params=theta[4], grad=theta[4], loss=4)
    assert_equal_but(rec.recording(), recording(params=theta, grad=theta, loss=np.arange(5)))
    assert rec.recording().status[-1, 0] == "no_update"


def test_arrays_may_change_after_the_step() -> None:
    rec, grad, update = Recorder(lag=1), np.empty((3, 3), np.float32), np.empty((3, 3), np.float32)
    for t in range(6):
        rng = np.random.default_rng(t)
        grad[:], update[:] = rng.standard_normal((2, 3, 3))
        rec.step(grad=grad, update=update)
    draws = np.stack([np.random.default_rng(t).standard_normal((2, 3, 3)) for t in range(6)]).astype(np.float32)
    assert_equal_but(rec.recording(), recording(grad=draws[:, 0], update=draws[:, 1]))


def test_every_and_lag() -> None:
    for lag, expected in ((0, [0, 5, 10]), (1, [0, 1, 5, 6, 10, 11]), (2, [0, 1, 2, 5, 6, 7, 10, 11])):
        rec = Recorder(every=5, lag=lag)
        for t in range(12):
            rec.step(**step_of(t))
        found, all_steps = rec.recording(), whole(range(12), lag)
        assert found.step.tolist() == expected
        assert found["yg"].tolist() == all_steps["yg"][expected].tolist()
        one = steepest.align(step_of(5)["grad"]["b"], step_of(5)["update"]["b"])
        assert found.alignment(5, "b").angle == pytest.approx(one.angle, rel=1e-13)
        with pytest.raises(ValueError, match="every=5"):
            found.alignment(3)
        for j in range(1, lag + 1):  # what was recorded j steps before is 0, 5 or 10, or one of their successors
            known = [t for t in expected if t - j in expected]
            for name in ("lag_yy", "lag_yg", "lag_gy", "lag_gg"):
                column = found[name][..., j - 1]
                assert found.step[~np.isnan(column[:, 0])].tolist() == known
                assert column[np.isin(expected, known)].tolist() == all_steps[name][known, :, j - 1].tolist()


def test_lag_bridges_neither_skips_nor_gaps() -> None:
    rec = Recorder(lag=1)
    rec.step(**step_of(0))
    rec.step(**step_of(1))
    rec.skip("overflow")
    rec.step(**step_of(2))
    rec.step(grad=step_of(3)["grad"])
    rec.step(**step_of(4))
    found = rec.recording()
    assert np.isnan(found["lag_yy"][:, 0, 0]).tolist() == [True, False, True, True, False, False]
    assert np.isnan(found["lag_yg"][:, 0, 0]).tolist() == [True, False, True, True, False, True]
    assert np.isnan(found["lag_gy"][:, 0, 0]).tolist() == [True, False, True, True, True, False]
    assert found.status[:, 0].tolist()[2] == "skipped"
    assert found.status[:, 0].tolist()[4] == "no_update"


def candidate_step(t: int) -> dict[str, Any]:
    one = step_of(t)
    other = step_of(t + 1000)
    grad = {"error": one["grad"], "energy": other["grad"]}
    return {**one, "loss": {"error": one["loss"], "energy": other["loss"]}, "grad": grad}


@pytest.mark.parametrize("lag", [0, 2])
@pytest.mark.parametrize("on_disk", [False, True])
def test_each_candidate_is_the_recording_with_its_loss_and_gradient(tmp_path: Path, lag: int, on_disk: bool) -> None:
    rec = Recorder(tmp_path / "run" if on_disk else None, lag=lag)
    alone = {"error": Recorder(lag=lag), "energy": Recorder(lag=lag)}
    for one in (rec, *alone.values()):
        one.skip("before")
    for t in range(80):
        arguments = candidate_step(t)
        rec.step(**arguments)
        for name, one in alone.items():
            one.step(**arguments | {"loss": arguments["loss"][name], "grad": arguments["grad"][name]})
    for one in (rec, *alone.values()):
        one.skip("overflow")
        one.close()
    found = rec.recording()
    assert found.candidates == ("error", "energy")
    assert found.rows.shape == (82, 2, 3)
    for name, one in alone.items():
        view = found.candidate(name)
        assert view.candidates is None
        assert np.shares_memory(view.rows, found.rows)
        assert_equal_but(view, one.recording())
        assert view.alignment(3, "b").angle == one.recording().alignment(3, "b").angle
        assert found.to_dict()["runs"][name]["loss"][1:-1] == one.recording().loss[1:-1].tolist()
    assert found.step.tolist() == list(range(82))
    assert found.notes[-1] == "overflow"
    assert found.blocks == ("(all)", "w", "b")
    assert "'error'" in repr(found)
    for ask in (
        lambda: found.loss, lambda: found.status, lambda: found.angle, lambda: found["yy"], lambda: found.psi_floor,
        lambda: found.alignment(1), found.counts, lambda: found.grad_norm,
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"\.candidate\(name\)"):
            ask()
    with pytest.raises(ValueError, match="'reward'"):
        found.candidate("reward")
    found.save(tmp_path / "saved")
    for again in (Recording.open(tmp_path / "saved"), pickle.loads(pickle.dumps(found))):
        assert again.rows.tobytes() == found.rows.tobytes()
        assert again.info == found.info


def test_candidates_of_whole_arrays() -> None:
    each = [candidate_step(t) for t in range(5)]
    stacked = {
        "update": {key: np.stack([one["update"][key] for one in each]) for key in SHAPES},
        "loss": {name: [one["loss"][name] for one in each] for name in ("error", "energy")},
        "grad": {
            name: {key: np.stack([one["grad"][name][key] for one in each]) for key in SHAPES}
            for name in ("error", "energy")
        },
    }
    found = recording(**stacked)
    assert found.candidates == ("error", "energy")
    for name in ("error", "energy"):
        alone = recording(update=stacked["update"], loss=stacked["loss"][name], grad=stacked["grad"][name])
        assert_equal_but(found.candidate(name), alone)
    assert recording(update=stacked["update"], grad=stacked["grad"]).candidates == ("error", "energy")
    # one gradient by names of arrays, whatever the names are
    assert recording(update=stacked["update"], grad=stacked["grad"]["error"]).candidates is None


def test_candidates_of_a_single_array_and_missing_ones() -> None:
    rec = Recorder(candidates=["reward", "error"])
    rec.step(grad={"reward": np.ones(3)}, update=np.ones(3), loss={"error": 2.0})
    rec.step(update=np.ones(3))
    found = rec.recording()
    assert found.candidate("reward").status[:, 0].tolist() == ["ascent", "no_gradient"]
    assert found.candidate("error").status[:, 0].tolist() == ["no_gradient", "no_gradient"]
    assert found.candidate("error").loss[0] == 2.0
    assert math.isnan(found.candidate("reward").loss[0])


def test_candidates_survive_a_resume(tmp_path: Path) -> None:
    for first in (0, 3):
        with Recorder(tmp_path / "run", resume=True) as rec:
            for t in range(first, first + 3):
                rec.step(**candidate_step(t))
    found = Recording.open(tmp_path / "run")
    assert found.candidates == ("error", "energy")
    assert found.resumed.tolist() == [False, False, False, True, False, False]
    assert found.candidate("energy").loss.tolist() == [candidate_step(t)["loss"]["energy"] for t in range(6)]
    with pytest.raises(ValueError, match="options with which"):
        Recorder(tmp_path / "run", resume=True, candidates=("energy", "error"))


@pytest.mark.parametrize(
    ("candidates", "arguments", "error", "message"),
    [
        ("error", {}, TypeError, "sequence of names"),
        ((), {}, ValueError, "at least one"),
        (("a", "a"), {}, ValueError, "once"),
        (("a/b",), {}, ValueError, "slash"),
        ((3,), {}, TypeError, "sequence of names"),
        (("a",), {"grad": np.ones(3)}, TypeError, "grad to be a mapping from the candidates"),
        (("a",), {"grad": {"b": np.ones(3)}}, ValueError, "grad to be among the candidates"),
        (("a",), {"update": np.ones(3), "loss": 3.0}, TypeError, "loss to be a mapping from the candidates"),
        (("a",), {"update": np.ones(3), "loss": {"a": "x"}}, TypeError, "got str"),
        (("a", "b"), {"grad": {"a": np.ones(3), "b": np.ones(4)}}, ValueError, r"grad\['b'\] to be .*\(4,\)"),
        (None, {"update": np.ones(3), "loss": {3: 1.0}}, TypeError, "sequence of names"),
    ],
)
def test_refused_candidates(candidates: Any, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Recorder(candidates=candidates).step(**arguments)


def test_a_mapping_of_losses_must_come_first() -> None:
    rec = Recorder()
    rec.step(grad=np.ones(3), loss=1.0)
    with pytest.raises(TypeError, match="as in the first step"):
        rec.step(grad=np.ones(3), loss={"a": 1.0})


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("lag", [0, 2])
def test_units(tmp_path: Path, lag: int, dtype: Any) -> None:
    """theta = scale x: the recording is that of x, whose gradient is scale grad and whose update is update / scale."""
    rng = np.random.default_rng(4)
    scale = {name: np.exp(3 * rng.standard_normal(shape)) for name, shape in SHAPES.items()}
    rec, plain = Recorder(tmp_path / "run", lag=lag, scale=scale), Recorder(lag=lag)
    whole = {"grad": {name: [] for name in SHAPES}, "update": {name: [] for name in SHAPES}}
    for t in range(5):
        one = step_of(t, dtype)
        rec.step(**one)
        y = {name: one["grad"][name].astype(float) * s for name, s in scale.items()}
        g = {name: one["update"][name].astype(float) / s for name, s in scale.items()}
        plain.step(grad=y, update=g)
        for name in SHAPES:
            whole["grad"][name].append(one["grad"][name])
            whole["update"][name].append(one["update"][name])
        spacing = np.concatenate([(np.spacing(np.abs(one["params"][n])) / scale[n]).ravel() for n in SHAPES])
        norm = np.linalg.norm(np.concatenate([g[name].ravel() for name in SHAPES]))
        floor = math.atan(np.linalg.norm(spacing) / math.sqrt(12) / norm)
        assert rec.recording().psi_floor[t, 0] == pytest.approx(floor, rel=1e-13)
    rec.close()
    found, expected = rec.recording(), plain.recording()
    assert found.info.scaled
    assert "in units" in repr(found)
    assert found.alignment(1).dtype == np.dtype(dtype).name
    np.testing.assert_array_equal(found.status, expected.status)
    np.testing.assert_allclose(found.angle, expected.angle, rtol=1e-13)
    np.testing.assert_allclose(found.grad_norm, expected.grad_norm, rtol=1e-14)
    np.testing.assert_allclose(found.update_norm, expected.update_norm, rtol=1e-14)
    np.testing.assert_allclose(found["sign_flip_variance"], expected["sign_flip_variance"], rtol=1e-13)
    for name in ("lag_yy", "lag_yg", "lag_gy", "lag_gg") * (lag > 0):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-13)
    arrays = {kind: {name: np.stack(x) for name, x in by_name.items()} for kind, by_name in whole.items()}
    assert_equal_but(recording(**arrays, scale=scale, lag=lag), found, "loss", "psi_floor")
    with pytest.raises(ValueError, match="options with which"):
        Recorder(tmp_path / "run", lag=lag, resume=True)
    with pytest.raises(ValueError, match="options with which"):
        Recorder(tmp_path / "run", lag=lag, resume=True, scale={name: 2 * s for name, s in scale.items()})
    with Recorder(tmp_path / "run", lag=lag, resume=True, scale=scale) as rec:
        rec.step(**step_of(5, dtype))


def test_sign_in_units_is_that_of_the_vectors() -> None:
    """grad.update has no units: where it is 2^-60 of the norms its sign is still right."""
    y, g = np.array([1.0, 1.0, 2.0**-60]), np.array([1.0, -1.0, -1.0])
    rec = Recorder(scale=np.array([3.0, 7.0, 11.0]))
    rec.step(grad=y, update=g)
    rec.step(grad=y, update=-g)
    assert rec.recording().status[:, 0].tolist() == ["ok", "ascent"]


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (np.array([1.0, 0.0]), "another scale at flat index 1"),
        (np.array([1.0, -2.0]), "another scale"),
        (np.array([1.0, np.nan]), "another scale"),
        (np.array([1.0, 1e-200]), "1/scale"),
        (np.ones(3), r"scale to be an array of shape \(2,\)"),
        ({"a": np.ones(2)}, "scale to be an array"),
    ],
)
def test_refused_units(scale: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recorder(scale=scale).step(grad=np.ones(2), update=np.ones(2))


def test_units_without_a_vector() -> None:
    rec = Recorder(scale=np.array([2.0, 0.5]))
    rec.step(grad=np.array([3.0, 8.0]))
    rec.step(update=np.array([3.0, 2.0]))
    rec.step(grad=np.array([1e300, 1.0]), update=np.ones(2))
    rec.step(grad=np.zeros(2), update=np.ones(2))
    found = rec.recording()
    assert found.status[:, 0].tolist() == ["no_update", "no_gradient", "ascent", "zero_grad"]
    assert found.grad_norm[0, 0] == pytest.approx(math.hypot(6, 4))
    assert found.update_norm[1, 0] == pytest.approx(math.hypot(1.5, 4))
    assert found.grad_norm[2, 0] == pytest.approx(2e300)


def test_skip() -> None:
    rec = Recorder()
    rec.skip()
    rec.skip("non-finite gradients")
    with pytest.raises(ValueError, match="at least one step"):
        rec.recording()
    rec.step(**step_of(0))
    rec.skip("scaler")
    found = rec.recording()
    assert found.step.tolist() == [0, 1, 2, 3]
    assert (found.status == "skipped").all(axis=1).tolist() == [True, True, False, True]
    assert found.notes == ("", "non-finite gradients", "", "scaler")
    a = found.alignment(3, "w")
    assert (a.status, a.size) == ("skipped", 12)
    assert math.isnan(a.angle)
    assert math.isnan(found.loss[3])
    assert np.isnan(found.angle[3]).all()
    with pytest.raises(ValueError, match="24 bytes, got 25"):
        rec.skip("x" * 25)


def test_recording_so_far_does_not_change() -> None:
    rec = Recorder()
    found = []
    for t in range(150):  # beyond the first room
        rec.step(**step_of(t))
        if t in (0, 63, 64, 100):
            found.append((t, rec.recording(), rec.recording().rows.tobytes()))
    for t, one, content in found:
        assert len(one) == t + 1
        assert one.rows.tobytes() == content
        assert not one.rows.flags.writeable


def test_without_gradient_and_loss() -> None:
    rec = Recorder()
    rec.step(update=np.ones(3))
    rec.step(loss=2.0)
    rec.step(grad=np.ones(3))
    found = rec.recording()
    assert found.status[:, 0].tolist() == ["no_gradient", "no_update", "no_update"]
    assert np.isnan(found.loss).tolist() == [True, False, True]
    assert found.grad_norm[2, 0] == pytest.approx(math.sqrt(3))


def test_existing_path_and_resume(tmp_path: Path) -> None:
    path = tmp_path / "a" / "run"
    with Recorder(path, lag=1, objective="fixed", resume=True) as rec:  # nothing there yet
        assert not path.exists()
        for t in range(3):
            rec.step(**step_of(t))
    with pytest.raises(FileExistsError, match="resume=True"):
        Recorder(path)
    for other in ({"objective": "unknown"}, {"every": 2}, {"lag": 0}, {"gradient_source": "estimate"}):
        with pytest.raises(ValueError, match="options with which"):
            Recorder(path, **{"lag": 1, "objective": "fixed", "resume": True, **other})
    with Recorder(path, lag=1, objective="fixed", resume=True, sync=True) as rec:
        assert len(rec) == 3
        with pytest.raises(ValueError, match="in the first step"):
            rec.step(grad=np.ones(3))
        for t in range(3, 5):
            rec.step(**step_of(t))
    found = Recording.open(path)
    assert found.resumed.tolist() == [False, False, False, True, False]
    assert "resumed 1 times" in repr(found)
    assert_equal_but(found, whole(range(5), 1), "resumed", *[n for n in found.rows.dtype.names if n.startswith("lag")])
    assert np.isnan(found["lag_yy"][:, 0, 0]).tolist() == [True, False, False, True, False]
    # The process died between making the folder and the first append.
    RecordWriter.create(tmp_path / "empty", row_dtype(0), user=RecordingInfo(None, ((2,),)).to_json()).close()
    with Recorder(tmp_path / "empty", resume=True) as rec:
        rec.step(grad=np.ones(2), update=-np.ones(2))
        assert rec.recording().status.tolist() == [["ok"]]


def test_resume_goes_on_after_the_last_recorded_step(tmp_path: Path) -> None:
    with Recorder(tmp_path / "run", every=5) as rec:
        for t in range(8):
            rec.step(**step_of(t))
    with Recorder(tmp_path / "run", every=5, resume=True) as rec:
        for t in range(6, 12):  # from step 6 on: the loop restarted at a checkpoint
            rec.step(**step_of(t))
    found = Recording.open(tmp_path / "run")
    assert found.step.tolist() == [0, 5, 10]
    assert found["yg"].tolist() == whole(range(11))["yg"][[0, 5, 10]].tolist()


def test_read_while_it_is_written(tmp_path: Path) -> None:
    with Recorder(tmp_path / "run") as rec:
        for t in range(20):
            rec.step(**step_of(t))
            assert len(Recording.open(tmp_path / "run")) == t + 1


def test_torn_step_is_dropped_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with Recorder(path) as rec:
        for t in range(3):
            rec.step(**step_of(t))
    file = path / "records.bin"
    size = row_dtype(0).itemsize + 8
    for cut in range(1, 3 * size, 37):
        file.write_bytes(file.read_bytes()[: 9 * size])
        os.truncate(file, 9 * size - cut)
        assert len(Recording.open(path)) == 2
        with Recorder(path, resume=True) as rec:
            rec.step(**step_of(2))
        assert_equal_but(Recording.open(path), whole(range(3)), "resumed")


def test_disk_full_leaves_the_step_to_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rec = Recorder(tmp_path / "run", lag=1)
    rec.step(**step_of(0))
    with monkeypatch.context() as patch:

        def full(self: RecordWriter, records: Any) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(RecordWriter, "append", full)
        with pytest.raises(OSError, match="No space"):
            rec.step(**step_of(1))
    rec.step(**step_of(1))
    rec.close()
    assert_equal_but(Recording.open(tmp_path / "run"), whole(range(2), 1))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "in the first step"),
        ({"loss": 1.0}, ValueError, "in the first step"),
        ({"grad": np.ones(3), "update": np.ones(4)}, ValueError, r"update to be .*\(3,\) as grad, got .*\(4,\)"),
        ({"grad": {"a": np.ones(3)}, "update": np.ones(3)}, ValueError, "'a'"),
        ({"params_next": np.ones(3)}, ValueError, "params_next beside params"),
        ({"params": np.ones(3), "params_next": np.ones(3), "update": np.ones(3)}, ValueError, "without update"),
        ({"grad": np.ones(3, int)}, TypeError, "int64"),
        ({"grad": {1: np.ones(3)}}, TypeError, "text"),
        ({"grad": {"(all)": np.ones(3)}}, ValueError, "rename"),
        ({"grad": np.ones(3), "loss": np.ones(2)}, TypeError, "loss to be a real number"),
        ({"grad": np.ones(3), "loss": "1.0"}, TypeError, "got str"),
        ({"grad": np.ones(3), "loss": 10**400}, TypeError, "got int"),
        ({"grad": np.ones(3), "loss": 1j}, TypeError, "got complex"),
    ],
)
def test_refused_steps_leave_no_trace(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    rec = Recorder(tmp_path / "run")
    with pytest.raises(error, match=message):
        rec.step(**arguments)
    assert not (tmp_path / "run").exists()
    rec.step(**step_of(0))
    assert rec.recording().step.tolist() == [0]
    rec.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every.*got 0"),
        ({"every": 1.5}, "every.*got 1.5"),
        ({"lag": -1}, "lag.*got -1"),
        ({"lag": 0.5}, "lag.*got 0.5"),
        ({"objective": "x"}, "objective.*got 'x'"),
        ({"gradient_source": "x"}, "gradient_source.*got 'x'"),
        ({"resume": True}, "path"),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recorder(**options)


def test_closed(tmp_path: Path) -> None:
    for path in (None, tmp_path / "run"):
        rec = Recorder(path)
        rec.step(**step_of(0))
        rec.close()
        rec.close()
        for call in (lambda: rec.step(**step_of(1)), rec.skip):  # noqa: B023
            with pytest.raises(ValueError, match="closed"):
                call()
        assert len(rec.recording()) == 1
        assert "1 steps recorded, closed" in repr(rec)


def test_losses_of_many_kinds() -> None:
    rec = Recorder()
    for loss in (1, 1.0, True, np.float32(1), np.array(1.0), np.ones((1, 1)), np.int64(1)):
        rec.step(loss=loss, grad=np.ones(2))
    assert rec.recording().loss.tolist() == [1.0] * 7


def gram_from_rows(rec: Recording, t: int, y_weights: list[float], g_weights: list[float], block: int) -> list[Any]:
    """(y.y, y.d, d.d) of y = sum_i y_weights[i] grad_{t+i} and d = sum_i g_weights[i] update_{t+i}, of rows alone."""

    def product(name: str, i: int, j: int) -> Any:
        """x_i . z_j: name 'yy', 'yg' or 'gg'."""
        if i == j:
            exponent = int(rec[f"{name[0]}_exponent"][t + i, block]) + int(rec[f"{name[1]}_exponent"][t + i, block])
            hi, lo = rec[name][t + i, block], rec[name + "_lo"][t + i, block]
        else:
            later, lag = max(i, j), abs(i - j)
            name = "lag_" + (name if i > j else name[::-1])
            place = (t + later, block, lag - 1)
            exponent, hi, lo = int(rec[name + "_exponent"][place]), rec[name][place], rec[name + "_lo"][place]
        return mp.ldexp(mp.mpf(float(hi)) + mp.mpf(float(lo)), exponent)

    def form(name: str, left: list[float], right: list[float]) -> Any:
        terms = [mp.mpf(a) * b * product(name, i, j) for i, a in enumerate(left) if a for j, b in enumerate(right) if b]
        return mp.fsum(terms)

    return [form("yy", y_weights, y_weights), form("yg", y_weights, g_weights), form("gg", g_weights, g_weights)]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("lag", [1, 2, 4])
def test_pairs_that_a_lag_supports(lag: int, dtype: Any) -> None:
    """Left, trapezoid and both windows of section 1: their Gram from rows alone and from the vectors."""
    rng = np.random.default_rng(lag)
    grads = {name: rng.standard_normal((8, *shape)).astype(dtype) for name, shape in SHAPES.items()}
    for x in grads.values():  # gradients that nearly cancel in the mean, as on a valley floor
        x[1::2] = -x[::2] * dtype(1 + 1e-6)
    updates = {name: (-0.1 * x + 0.01 * rng.standard_normal(x.shape)).astype(dtype) for name, x in grads.items()}
    rec = Recorder(lag=lag, objective="fixed")
    for t in range(8):
        update = None if t == 7 else {name: x[t] for name, x in updates.items()}
        rec.step(grad={name: x[t] for name, x in grads.items()}, update=update, loss=float(t))
    found = rec.recording()
    pairs = {"left": ([1.0], [1.0]), "trapezoid": ([0.5, 0.5], [1.0])}
    for w in range(1, lag + 1):
        pairs[f"A{w}"] = ([1 / w] * w, [1.0])
        pairs[f"B{w}"] = ([1 / (w + 1)] * (w + 1), [1.0] * w)
    pairs[f"A{lag + 1}"] = ([1 / (lag + 1)] * (lag + 1), [1.0])
    for y_weights, g_weights in pairs.values():
        for t in range(8 - max(len(y_weights) - 1, len(g_weights))):
            for block, names in enumerate((list(SHAPES), ["w"], ["b"])):
                vectors = [
                    [
                        mp.fsum(a * mp.mpf(float(e)) for a, e in zip(weights, elements, strict=False))
                        for name in names
                        for elements in source[name][t:].reshape(8 - t, -1).T
                    ]
                    for weights, source in ((y_weights, grads), (g_weights, updates))
                ]
                y, d = vectors
                expected = [inner(y, y), inner(y, d), inner(d, d)]
                got = gram_from_rows(found, t, y_weights, g_weights, block)
                assert all(abs(a - b) <= 1e-28 for a, b in zip(got, expected, strict=True))  # of vectors of order 1
                sine = [mp.sqrt(abs(1 - p[1] ** 2 / (p[0] * p[2]))) for p in (got, expected)]
                assert float(sine[0]) == pytest.approx(float(sine[1]), rel=1e-13, abs=1e-13)


def test_whole_from_blocks_has_the_bits_of_any_number_of_threads() -> None:
    rng = np.random.default_rng(0)
    one = {name: {f"b{i}": rng.standard_normal(100_000 + i) for i in range(5)} for name in ("grad", "update")}
    rows, threads = [], steepest.get_num_threads()
    try:
        for n in (1, 2):
            steepest.set_num_threads(n)
            rec = Recorder(lag=1)
            for _ in range(2):
                rec.step(**one)
            rows.append(rec.recording())
    finally:
        steepest.set_num_threads(threads)
    assert_equal_but(*rows)


def scalar_rows(number: int, lag: int = 0, **changes: Any) -> np.ndarray:
    """The rows of step_of(number) from inner products in multiple precision, rounded to hi + lo."""
    rows = np.zeros((1, 3), row_dtype(lag))
    one = step_of(number)
    for block, names in enumerate((["w", "b"], ["w"], ["b"])):
        y, g = (np.concatenate([one[kind][name].ravel() for name in names]) for kind in ("grad", "update"))
        triples = []
        for left, right in ((y, y), (y, g), (g, g)):
            exact = inner(left, right)
            hi = float(exact)
            triples.append((hi, float(exact - hi), 2.0**-100))
        given = {"loss": one["loss"], "time": 1.5, "decay_share": 0.25, "psi_floor": 1e-9, **changes}
        scalar_row(rows[0], number, block, "float64", *triples, **given)
    return rows


def test_rows_from_scalars(tmp_path: Path) -> None:
    """As an accelerator or a jitted loop makes them."""
    layout = Layout(("w", "b"), ((4, 3), (5,)))
    for path in (None, tmp_path / "run"):
        rec = Recorder(path)
        rec.skip()
        rec._append_rows(layout, np.concatenate([scalar_rows(1), scalar_rows(2)]))
        assert rec.next_step == 3
        rec.step(**{key: value for key, value in step_of(3).items() if key != "params"})
        rec.close()
        found = rec.recording()
        for t in (1, 2):
            expected = steepest.align(step_of(t)["grad"], step_of(t)["update"], blocks="separate")
            for name, one in expected.items():
                a = found.alignment(t, name)
                assert a.status == one.status
                assert a.angle == pytest.approx(one.angle, rel=1e-14)
                assert a.inner_product == pytest.approx(one.inner_product, rel=1e-13)
        assert found["decay_share"][:3, 0].tolist()[1:] == [0.25, 0.25]
        assert found.psi_floor[1, 2] == 1e-9
        assert math.isnan(found["decay_share"][3, 0])
    with Recorder(tmp_path / "run", resume=True) as rec:
        with pytest.raises(ValueError, match="from 4 on"):
            rec._append_rows(layout, scalar_rows(3))
        with pytest.raises(ValueError, match="as in the first step"):
            rec._append_rows(Layout(None, ((2,),)), scalar_rows(4))
        with pytest.raises(ValueError, match="with lag 0"):
            rec._append_rows(layout, scalar_rows(4, lag=1))
        rec._append_rows(layout, scalar_rows(6))
        assert rec.recording().resumed.tolist() == [False] * 4 + [True]
        assert rec.recording().step.tolist() == [0, 1, 2, 3, 6]


@pytest.mark.parametrize("angle", [1e-9, 1e-3, 1.0, math.pi / 2 - 1e-9, 3.0])
def test_angle_of_scalars_against_multiple_precision(angle: float) -> None:
    grad, update = pair(50, min(angle, math.pi - angle), rho=3.0, rng=1)
    update = -update if angle > math.pi / 2 else update
    products = [inner(*two) for two in ((grad, grad), (grad, update), (update, update))]
    rows = np.zeros(1, row_dtype(2))
    triples = [(float(p), float(p - float(p)), 1e-30) for p in products]
    lag = (Product(1.0, 2.0, 3.0, 4), Product(5.0), Product(math.nan), Product(8.0))
    scalar_row(rows, 7, 0, "float32", *triples, lags=[None, lag])
    cosine = products[1] / mp.sqrt(products[0] * products[2])
    sine = mp.sqrt(1 - cosine**2)
    assert rows["cosine"][0] == pytest.approx(float(cosine), rel=3e-16)
    assert rows["sine"][0] == pytest.approx(float(sine), rel=1e-30 / angle**2 + 3e-16)
    assert STATUSES[rows["status"][0]] == ("ok" if angle < math.pi / 2 else "ascent")
    assert [rows[name][0, 1] for name in ("lag_yy", "lag_yy_lo", "lag_yy_bound", "lag_yy_exponent")] == [1, 2, 3, 4]
    assert np.isnan(rows["lag_gy"]).all()
    assert np.isnan(rows["lag_gg"]).tolist() == [[True, False]]


def test_status_of_scalars() -> None:
    one, none = (1.0, 0.0, 0.0), None
    cases = [
        ((one, (-0.5, 0.0, 0.1), one), "ok"),
        ((one, (-0.5, 0.0, 0.5), one), "undecided"),
        ((one, (0.5, 0.0, 0.6), one), "undecided"),
        ((one, (0.0, 0.0, 0.6), one), "undecided"),
        ((one, (0.5, 0.0, 0.1), one), "ascent"),
        ((one, (0.0, 0.0, 0.0), one), "ascent"),
        (((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), one), "zero_grad"),
        ((one, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)), "zero_update"),
        ((one, (math.inf, 0.0, 0.1), one), "nonfinite"),
        ((one, (0.5, 0.0, math.nan), one), "nonfinite"),
        ((one, none, none), "no_update"),
        ((none, none, one), "no_gradient"),
        ((none, none, none), "no_update"),
    ]
    rows = np.zeros(len(cases), row_dtype(0))
    for i, (triples, expected) in enumerate(cases):
        scalar_row(rows[i : i + 1], i, 0, "float32", *triples)
        assert STATUSES[rows["status"][i]] == expected
    found = Recording(RecordingInfo(None, ((3,),)), rows[:, None])
    assert found.alignment(1).status == "undecided"
    assert found.grad_norm[10, 0] == 1.0
    with pytest.raises(ValueError, match="only there"):
        scalar_row(rows, 0, 0, "float32", one, None, one)


def test_torch_loop_is_untouched() -> None:
    torch = pytest.importorskip("torch")
    theta = torch.nn.Parameter(torch.linspace(-1, 1, 6).reshape(2, 3))
    rec, expected = Recorder(lag=1), []
    for _ in range(4):
        loss = (theta**4).sum()
        theta.grad = None
        loss.backward()
        before = theta.detach().clone()
        with torch.no_grad():
            theta -= 0.01 * theta.grad
        rec.step(params={"theta": before}, loss=loss, grad={"theta": theta.grad}, params_next={"theta": theta})
        expected.append(steepest.align(theta.grad, theta.detach() - before))
    found = rec.recording()
    assert found.alignment(2, "theta").angle == expected[2].angle
    assert found.loss[3] == float(loss.detach())


def test_torch_bfloat16_and_mixed_dtypes() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theta, grad = torch.randn(2, 50).to(torch.bfloat16), torch.randn(2, 50)
    plain, lagged = Recorder(), Recorder(lag=1)
    for t in range(2):
        for rec in (plain, lagged):
            rec.step(grad={"w": grad[t]}, update={"w": theta[t]})
        assert plain.recording().alignment(t, "w") == steepest.align(grad[t], theta[t])
    lag = lagged.recording()
    exact = float(grad[1].double() @ theta[0].double())
    assert np.ldexp(lag["lag_yg"][1, 0, 0], lag["lag_yg_exponent"][1, 0, 0]) == pytest.approx(exact, rel=1e-13)


def test_jax_arrays() -> None:
    jnp = pytest.importorskip("jax.numpy")
    rec = Recorder()
    for t in range(2):
        one = step_of(t, np.float32)
        arrays = {name: {key: jnp.asarray(x) for key, x in one[name].items()} for name in ("grad", "update")}
        rec.step(**arrays, loss=jnp.asarray(2.0))
        for name, expected in steepest.align(one["grad"], one["update"], blocks="separate").items():
            assert rec.recording().alignment(t, name) == expected
    assert rec.recording().loss.tolist() == [2.0, 2.0]


KILLS = 120


@pytest.mark.parametrize("keep", ["scalars", "vectors"])
def test_kills(tmp_path: Path, keep: str) -> None:
    """SIGKILL at random moments, resumed each time: every acknowledged step is there, whole, with its vectors."""
    command = [sys.executable, __file__, str(tmp_path), keep, str(KILLS)]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    result = json.loads(process.stdout)
    print(result)  # pytest -s: how many were caught at what
    assert result["kills"] == KILLS
    assert result["acknowledged"] > KILLS
    assert result["resumed"] > KILLS // 4


def kill(folder: Path, keep: Any, kills: int) -> None:
    """Fork recorders, kill each at a random moment, look at what is there; a recording lives for up to 10 of them."""
    rng = random.Random()
    sums = dict.fromkeys(("kills", "acknowledged", "resumed", "half_written_vectors"), 0)
    for number in range(kills):
        if number % 10 == 0:
            path, acknowledged = folder / str(number), -1
        receive, send = os.pipe()
        process = os.fork()
        if process == 0:
            try:
                record_for_ever(path, keep, send)
            finally:
                os._exit(1)
        os.close(send)
        # a quarter at any time from its start, the others once it is known to record
        said = b"" if number % 4 == 0 else os.read(receive, 8)
        time.sleep(rng.uniform(0, 0.01))
        os.kill(process, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(process, 0)[1]), "the recorder ended by itself"
        with os.fdopen(receive, "rb") as pipe:
            said += pipe.read()
        sums["kills"] += 1
        if said:
            acknowledged = struct.unpack_from("<q", said, len(said) - 8)[0]
        if not path.exists():
            assert acknowledged < 0
            continue
        found = Recording.open(path)
        assert len(found) > acknowledged, f"{acknowledged} acknowledged, {len(found)} there"
        assert found.step.tolist() == list(range(len(found)))
        last = number % 10 == 9
        if keep == "vectors":
            for t in range(0 if last else max(0, len(found) - 50), len(found)):
                vectors, expected = found.vectors(t), step_of(t)
                for name in ("params", "grad", "update"):
                    for key, x in expected[name].items():
                        assert getattr(vectors, name)[key].tobytes() == x.tobytes()
            sums["half_written_vectors"] += any((path / "vectors").glob("*.tmp"))
        if last:
            assert_equal_but(found, whole(range(len(found))), "resumed")
            sums["acknowledged"] += acknowledged + 1
            sums["resumed"] += int(found.resumed.sum())
    print(json.dumps(sums))


def record_for_ever(path: Path, keep: Any, send: int) -> None:
    with Recorder(path, keep=keep, resume=True) as rec:
        for t in itertools.count(len(rec)):
            rec.step(**step_of(t))
            os.write(send, struct.pack("<q", t))


def test_many_steps_open_instantly(tmp_path: Path) -> None:
    steps, blocks = 10_000, 10
    info = RecordingInfo(tuple(f"b{i}" for i in range(blocks)), ((3,),) * blocks)
    rows = np.zeros((steps, blocks + 1), row_dtype(0))
    rows["step"], rows["block"] = np.arange(steps)[:, None], np.arange(blocks + 1)
    rows["loss"] = np.arange(steps, 0, -1)[:, None]
    Recording(info, rows).save(tmp_path / "run")
    durations = []
    for _ in range(3):
        start = time.perf_counter()
        found = Recording.open(tmp_path / "run")
        durations.append(time.perf_counter() - start)
    assert len(found) == steps
    assert found.loss[-1] == 1.0
    assert min(durations) < 0.05


def test_a_step_is_cheap() -> None:
    """Aim: 50 us per step and block. The test allows for a slow and busy machine."""
    rec = Recorder(lag=1)
    steps = [
        {name: {f"b{i}": np.full(10, 1.0 + i) for i in range(20)} for name in ("params", "grad", "update")}
        for _ in range(20)
    ]
    durations = []
    for one in steps:
        start = time.perf_counter()
        rec.step(**one)
        durations.append(time.perf_counter() - start)
    assert min(durations) / 21 < 200e-6


if __name__ == "__main__":
    kill(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
