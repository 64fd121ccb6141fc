"""Stored training runs: whatever the format, the recording is the one of the whole arrays."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import steepest
from steepest.sources import open_source, record_source
from steepest.sources.checkpoints import numbered

STEPS = 6


def run(seed=0, dtype=np.float32):
    """Params, gradients and losses of a few steps of gradient descent with a diagonal preconditioner."""
    rng = np.random.default_rng(seed)
    shapes = {"layer.weight": (3, 4), "layer.bias": (4,)}
    params = {name: np.empty((STEPS, *shape), dtype) for name, shape in shapes.items()}
    grad = {name: np.empty((STEPS, *shape), dtype) for name, shape in shapes.items()}
    loss = np.empty(STEPS)
    theta = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    rates = {name: rng.uniform(0.05, 0.3, shape) for name, shape in shapes.items()}
    for t in range(STEPS):
        loss[t] = sum(0.5 * np.sum(x**2) for x in theta.values())
        for name, x in theta.items():
            params[name][t], grad[name][t] = x, x
            theta[name] = x - rates[name] * x
    return params, grad, loss


def updates(params):
    return {name: x[1:] - x[:-1] for name, x in params.items()}


def assert_same(found, expected):
    """Equal rows; time is of the clock in neither."""
    assert found.info == expected.info
    assert found.rows.dtype == expected.rows.dtype
    assert len(found) == len(expected)
    for name in found.rows.dtype.names:
        np.testing.assert_array_equal(found.rows[name], expected.rows[name], err_msg=name)


def at(x, t):
    return {name: a[t] for name, a in x.items()}


# Checkpoints ----------------------------------------------------------------------------------------------------------


def test_safetensors_checkpoints_of_params_alone(tmp_path):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    params, _, _ = run()
    for t in range(STEPS):
        save_file(at(params, t), tmp_path / f"model-{100 * t:06d}.safetensors")
    source = open_source(tmp_path)
    assert source.numbers.tolist() == [0, 100, 200, 300, 400, 500]
    assert source.fields == ("params",)
    assert dict(zip(source.names, source.shapes, strict=True)) == {"layer.bias": (4,), "layer.weight": (3, 4)}
    names = {name: params[name] for name in source.names}  # safetensors sorts them
    assert_same(record_source(tmp_path), steepest.recording(params=names))
    assert set(record_source(tmp_path).status[:, 0]) == {"no_gradient"}


def test_order_is_that_of_the_numbers_not_of_the_text(tmp_path):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    for k in (9, 10, 100, 1):
        save_file({"w": np.full(2, float(k))}, tmp_path / f"step_{k}.safetensors")
    source = open_source(tmp_path)
    assert [step.params["w"][0] for step in source] == [1.0, 9.0, 10.0, 100.0] == source.numbers.tolist()


def test_safetensors_groups_with_loss_in_the_metadata(tmp_path):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    params, grad, loss = run(1)
    order = ["layer.bias", "layer.weight"]
    for t in range(STEPS):
        arrays = {f"params/{name}": params[name][t] for name in order} | {f"grad/{k}": grad[k][t] for k in order}
        folder = tmp_path / f"step_{t}"
        folder.mkdir()
        save_file(arrays, folder / "model.safetensors", metadata={"loss": repr(float(loss[t]))})
    expected = steepest.recording(
        params={name: params[name] for name in order}, grad={name: grad[name] for name in order}, loss=loss,
        objective="fixed",
    )  # fmt: skip
    assert_same(record_source(tmp_path, objective="fixed"), expected)
    assert expected.status[:, 0].tolist() == ["ok"] * (STEPS - 1) + ["no_update"]


def test_given_updates_are_not_replaced_by_differences(tmp_path):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    rng = np.random.default_rng(2)
    params, grad, update = rng.normal(size=(3, 4, 5))
    for t in range(4):
        save_file({"params": params[t], "grad": grad[t], "update": update[t]}, tmp_path / f"{t}.safetensors")
    source = open_source(tmp_path)
    assert source.names is None
    assert source.shapes == ((5,),)
    assert_same(record_source(source), steepest.recording(params=params, grad=grad, update=update))


def test_a_checkpoint_in_parts(tmp_path):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    params, _, _ = run()
    for t in range(STEPS):
        folder = tmp_path / f"checkpoint-{t}"
        folder.mkdir()
        for i, name in enumerate(("layer.bias", "layer.weight")):
            save_file({name: params[name][t]}, folder / f"model-0000{i + 1}-of-00002.safetensors")
        (folder / "optimizer.pt").write_bytes(b"not read")
    expected = steepest.recording(params={name: params[name] for name in ("layer.bias", "layer.weight")})
    assert_same(record_source(tmp_path), expected)


@pytest.mark.parametrize("nested", ["plain", "model", "state_dict", "params", "grouped", "legacy"])
def test_torch_checkpoints(tmp_path, nested):
    torch = pytest.importorskip("torch")
    params, grad, loss = run(3)
    for t in range(STEPS):
        state = {name: torch.from_numpy(x[t].copy()) for name, x in params.items()}
        options = {}
        if nested in ("model", "state_dict"):
            content = {nested: state, "epoch": t, "loss": float(loss[t]), "optimizer": {"state": {}, "lr": 0.1}}
        elif nested in ("params", "grouped"):
            content = {"params": state, "loss": torch.tensor(loss[t])}
            if nested == "grouped":
                content["grad"] = {name: torch.from_numpy(x[t].copy()) for name, x in grad.items()}
        else:
            content = state
            if nested == "legacy":
                options = {"_use_new_zipfile_serialization": False}
        torch.save(content, tmp_path / f"net_epoch{t}.{'pth' if nested == 'model' else 'pt'}", **options)
    expected = {"params": params}
    if nested not in ("plain", "legacy"):
        expected["loss"] = loss
    if nested == "grouped":
        expected["grad"] = grad
    assert_same(record_source(tmp_path), steepest.recording(**expected))


def test_torch_parameters_of_a_module_and_its_counters(tmp_path, caplog):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).to(torch.bfloat16)
    for t in range(3):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.1 * (t + 1))
        torch.save(net.state_dict(), tmp_path / f"{t}.bin")
    with caplog.at_level(logging.INFO, logger="steepest"):
        source = open_source(tmp_path, params="!*running_*")
    assert source.names == ("0.weight", "0.bias", "1.weight", "1.bias")
    assert source.dtypes == ("bfloat16",) * 4
    assert [r.getMessage() for r in caplog.records] == [
        f"{tmp_path}: left out, since they are not floating-point: 1.num_batches_tracked"
    ]
    assert record_source(source).blocks == ("(all)", *source.names)
    assert "1.running_mean" in open_source(tmp_path).names
    assert open_source(tmp_path, params=["0.*"]).names == ("0.weight", "0.bias")


def test_safetensors_from_torch_in_bfloat16(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    save_file = pytest.importorskip("safetensors.torch").save_file
    steps = [torch.randn(5, generator=torch.Generator().manual_seed(t)).bfloat16() for t in range(3)]
    for t, x in enumerate(steps):
        save_file({"w": x, "counter": torch.tensor(t)}, tmp_path / f"{t}.safetensors")
    found = record_source(tmp_path)
    assert_same(found, steepest.recording(params={"w": torch.stack(steps)}))


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save({"w": torch.zeros(2), "x": Evil()}, folder / "step_0.pt")
    with pytest.raises(ValueError, match="weights_only=True"):
        open_source(folder)
    np.savez(tmp_path / "run.npz", params=np.array([Evil()], dtype=object))
    with pytest.raises(ValueError, match="unpickled"):
        open_source(tmp_path / "run.npz")
    assert not Path("executed").exists()
    np.load(tmp_path / "run.npz", allow_pickle=True)["params"]  # the trap works
    assert Path("executed").exists()


@pytest.mark.parametrize(
    ("names", "number", "expected"),
    [
        (["a1", "a02", "a10"], None, [1, 2, 10]),
        (["resnet50-7.pt", "resnet50-12.pt"], None, [7, 12]),
        (["step_3/model.pt", "step_20/model.pt"], None, [3, 20]),
        (["only_5.pt"], None, [5]),
        (["e=1-step=10", "e=2-step=20"], r"step=(\d+)", [10, 20]),
    ],
)
def test_numbers_in_names(names, number, expected):
    assert list(numbered(names, number, "here")) == expected


@pytest.mark.parametrize(
    ("names", "number", "message"),
    [
        (["step_1.pt", "best.pt"], None, "without one"),
        (["step_1.pt", "iter_2.pt"], None, "differ in a number only"),
        (["e=1-step=10", "e=2-step=20"], None, "say which with number="),
        (["step_1.pt", "step_01.pt"], None, "one checkpoint for each step"),
        (["step_1.pt"], r"iter=(\d+)", "to match"),
        (["step_1.pt"], r"step", "to have a group"),
    ],
)
def test_unclear_numbers_are_errors(names, number, message):
    with pytest.raises(ValueError, match=message):
        numbered(names, number, "here")


def test_files_and_number_choose(tmp_path):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    for t in range(3):
        save_file({"w": np.full(2, t + 1.0)}, tmp_path / f"epoch={t}-step={100 * t}.safetensors")
    save_file({"w": np.zeros(2)}, tmp_path / "last.safetensors")
    with pytest.raises(ValueError, match=r"last\.safetensors"):
        open_source(tmp_path)
    source = open_source(tmp_path, files="epoch*.safetensors", number=r"step=(\d+)")
    assert source.numbers.tolist() == [0, 100, 200]
    with pytest.raises(ValueError, match="got none"):
        open_source(tmp_path, files="nothing*")


def test_uneven_steps_are_said(tmp_path, caplog):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    for t in (0, 10, 30):
        save_file({"w": np.zeros(2)}, tmp_path / f"{t}.safetensors")
    open_source(tmp_path)
    assert "10 to 20 steps apart" in caplog.text


def test_checkpoints_that_do_not_fit(tmp_path):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    save_file({"w": np.zeros(2)}, tmp_path / "0.safetensors")
    save_file({"w": np.zeros(3)}, tmp_path / "1.safetensors")
    with pytest.raises(ValueError, match=r"to have shape \(2,\) as in the first checkpoint, got \(3,\)"):
        record_source(tmp_path)
    save_file({"v": np.zeros(2)}, tmp_path / "1.safetensors")
    with pytest.raises(ValueError, match="to have the arrays of the first checkpoint"):
        record_source(tmp_path)
    (tmp_path / "1.safetensors").write_bytes((tmp_path / "0.safetensors").read_bytes()[:-1])
    with pytest.raises(ValueError, match="cut off or damaged"):
        record_source(tmp_path)
    (tmp_path / "1.safetensors").write_bytes(b"garbage garbage garbage")
    with pytest.raises(ValueError, match="a header of"):
        record_source(tmp_path)
    (tmp_path / "1.safetensors").unlink()
    with pytest.raises(ValueError, match="at least one update or gradient"):
        record_source(tmp_path)


def test_only_integers(tmp_path):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    save_file({"steps": np.arange(3)}, tmp_path / "0.safetensors")
    with pytest.raises(ValueError, match="floating-point arrays"):
        open_source(tmp_path)


# Whole arrays ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz(tmp_path, save, order):
    params, grad, loss = run(4)
    arrays = {f"params/{name}": np.asarray(x, order=order) for name, x in params.items()}
    arrays |= {f"grad/{name}": np.asarray(x, order=order) for name, x in grad.items()}
    save(tmp_path / "run.npz", loss=loss, **arrays)
    with open_source(tmp_path / "run.npz") as source:
        assert len(source) == STEPS
        for t in (3, 1, 1, 5, 0):  # in any order
            np.testing.assert_array_equal(source.step(t).params["layer.weight"], params["layer.weight"][t])
        with pytest.raises(IndexError, match="from 0 to 5"):
            source.step(STEPS)
    assert_same(record_source(tmp_path / "run.npz"), steepest.recording(params=params, grad=grad, loss=loss))


def test_npz_of_rates_with_time(tmp_path):
    rng = np.random.default_rng(5)
    grad, time = rng.normal(size=(7, 3)), np.linspace(0.0, 3.0, 7)
    np.savez(tmp_path / "run.npz", grad=grad.astype(">f8"), update=-grad, time=time)
    found = record_source(tmp_path / "run.npz", rate=True)
    assert_same(found, steepest.recording(grad=grad, update=-grad, time=time))
    np.testing.assert_array_equal(found.time, time)
    np.savez(tmp_path / "run.npz", params=grad)
    with pytest.raises(ValueError, match="is not formed from params"):
        record_source(tmp_path / "run.npz", rate=True)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_not_loaded_as_a_whole(tmp_path, save):
    save(tmp_path / "run.npz", params=np.zeros((4, 1 << 20)), loss=np.zeros(4))
    tracemalloc.start()
    with open_source(tmp_path / "run.npz") as source:
        before = tracemalloc.get_traced_memory()[0]
        array = source.step(2).params
        assert tracemalloc.get_traced_memory()[0] - before < 9 << 20  # a copy of one step, where it is not aligned
        assert array.nbytes == 8 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_the_vectors_stay_in_the_source(tmp_path, save):
    params, grad, loss = run(4)
    path = tmp_path / "run.npz"
    save(path, loss=loss, **{f"params/{k}": x for k, x in params.items()}, **{f"grad/{k}": x for k, x in grad.items()})
    found, expected = record_source(path), steepest.recording(params=params, grad=grad, loss=loss)
    for t in (0, 1, 2, 4, 1, 5):  # ascending, back, and the state after the last update
        ours, theirs = found.vectors(t), expected.vectors(t)
        for field in ("params", "grad", "update"):
            a, b = getattr(ours, field), getattr(theirs, field)
            assert (a is None) == (b is None)
            for name in b or ():
                np.testing.assert_array_equal(a[name], b[name])
                assert a[name].dtype == b[name].dtype
    record_source(path, keep="vectors").save(tmp_path / "saved")
    with pytest.raises(ValueError, match="expected keep"):
        record_source(path, keep="everything")
    path.unlink()
    opened = steepest.Recording.open(tmp_path / "saved")
    for t in range(STEPS - 1):
        np.testing.assert_array_equal(opened.vectors(t).update["layer.bias"], updates(params)["layer.bias"][t])
    with pytest.raises(ValueError, match=r"is a recording: .*Recording\.open"):
        open_source(tmp_path / "saved")


def test_bfloat16_checkpoints_have_vectors(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    steps = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    for t, x in enumerate(steps):
        torch.save({"w": x}, tmp_path / f"{t}.pt")
    update = record_source(tmp_path).vectors(0).update["w"]
    np.testing.assert_array_equal(update, (steps[1].double() - steps[0].double()).numpy())


def test_npz_that_does_not_fit(tmp_path):
    path = tmp_path / "run.npz"
    np.savez(path, weights=np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"params, grad, update or params/<name>"):
        open_source(path)
    np.savez(path, grad=np.zeros((3, 2)))
    with pytest.raises(ValueError, match="or params to take differences of"):
        open_source(path)
    np.savez(path, params=np.zeros((3, 2)), grad=np.zeros((5, 2)))
    with pytest.raises(ValueError, match="to have 2 or 3 entries"):
        open_source(path)
    np.savez(path, params=np.zeros((3, 2)), grad=np.zeros((3, 4)))
    with pytest.raises(ValueError, match="to have the shapes of params"):
        open_source(path)
    np.savez(path, **{"params/a": np.zeros((3, 2)), "params": np.zeros((3, 2))})
    with pytest.raises(ValueError, match="got both"):
        open_source(path)
    np.savez(path, params=np.zeros((3, 2), dtype=int))
    with pytest.raises(TypeError, match="floating dtype"):
        open_source(path)
    np.savez(path, params=np.zeros((3, 2)), loss=np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"shape \(steps,\)"):
        open_source(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"to be an \.npz file"):
        open_source(path)


def dataset(xarray, params, grad, loss, time):
    return xarray.Dataset(
        {
            "params": (("step", "unit"), params),
            "grad": (("step", "unit"), grad),
            "loss": (("step",), loss),
            "remark": ((), 3.0),
        },
        coords={"time": ("step", time)},
    )


@pytest.mark.parametrize("form", ["Dataset", "zarr", "netCDF"])
def test_xarray(tmp_path, form):
    xarray = pytest.importorskip("xarray")
    rng = np.random.default_rng(6)
    params, grad = rng.normal(size=(2, 5, 3)).astype(np.float32)
    loss, time = rng.normal(size=5), np.arange(5) * 0.25
    source = dataset(xarray, params, grad, loss, time)
    if form == "zarr":
        pytest.importorskip("zarr")
        source.to_zarr(tmp_path / "run.zarr", zarr_format=2)
        source = tmp_path / "run.zarr"
    elif form == "netCDF":
        pytest.importorskip("netCDF4")
        source.to_netcdf(tmp_path / "run.nc")
        source = tmp_path / "run.nc"
    found = record_source(source)
    np.testing.assert_array_equal(found.time, time)
    expected = steepest.recording(params=params, grad=grad, loss=loss)
    rows = np.array(expected.rows)
    rows["time"] = time[:, None]
    assert_same(found, steepest.Recording(expected.info, rows))


@pytest.mark.parametrize("form", ["DataTree", "zarr", "netCDF"])
def test_xarray_groups(tmp_path, form):
    xarray = pytest.importorskip("xarray")
    params, grad, loss = run(7)

    def group(x):
        return xarray.Dataset(
            {name: (("step", *[f"{name}{i}" for i in range(a.ndim - 1)]), a) for name, a in x.items()}
        )

    tree = xarray.DataTree.from_dict(
        {"/": xarray.Dataset({"loss": ("step", loss)}), "/params": group(params), "/grad": group(grad)}
    )
    source = tree
    if form == "zarr":
        pytest.importorskip("zarr")
        tree.to_zarr(tmp_path / "run.zarr", zarr_format=2)
        source = tmp_path / "run.zarr"
    elif form == "netCDF":
        pytest.importorskip("netCDF4")
        tree.to_netcdf(tmp_path / "run.nc")
        source = tmp_path / "run.nc"
    names = open_source(source).names  # zarr sorts them
    expected = steepest.recording(params={name: params[name] for name in names}, grad=grad, loss=loss)
    assert_same(record_source(source), expected)


def test_xarray_names_with_a_slash_and_calendar_times(tmp_path):
    xarray = pytest.importorskip("xarray")
    params, _, _ = run(8)
    data = {f"params/{name}": (("step", *[f"{name}{i}" for i in range(a.ndim - 1)]), a) for name, a in params.items()}
    times = np.datetime64("2020-01-01", "ns") + np.arange(STEPS) * np.timedelta64(1500, "ms")
    found = record_source(xarray.Dataset(data, coords={"time": ("step", times)}))
    assert found.blocks == ("(all)", "layer.weight", "layer.bias")
    np.testing.assert_allclose(found.time, 1.5 * np.arange(STEPS - 1), rtol=1e-15)


def test_xarray_that_does_not_fit():
    xarray = pytest.importorskip("xarray")
    with pytest.raises(ValueError, match="expected variables params"):
        record_source(xarray.Dataset({"weights": (("step", "unit"), np.zeros((2, 2)))}))
    with pytest.raises(ValueError, match="one first dimension"):
        record_source(
            xarray.Dataset({"params": (("unit", "step"), np.zeros((3, 2))), "loss": (("step",), np.zeros(2))})
        )
    with pytest.raises(ValueError, match="folder of checkpoints only"):
        open_source(xarray.Dataset({"params": (("step", "unit"), np.zeros((2, 2)))}), files="*.pt")


def test_what_is_no_source(tmp_path):
    with pytest.raises(TypeError, match="whole arrays are passed as"):
        open_source(np.zeros((3, 2)))
    with pytest.raises(FileNotFoundError, match="got nothing"):
        open_source(tmp_path / "missing")
    with pytest.raises(ValueError, match="expected checkpoints"):
        open_source(tmp_path)
    (tmp_path / "run.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"run\.csv"):
        open_source(tmp_path / "run.csv")


def test_optional_packages_are_imported_where_they_are_needed():
    code = "import steepest.sources, sys; assert not {'torch', 'xarray', 'safetensors', 'tqdm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
