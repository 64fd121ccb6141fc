"""An analysis as frame, dataset, dictionary and file: every number arrives, and nothing is pickled."""

from __future__ import annotations

import builtins
import importlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import steepest
from steepest.analysis import Analysis
from steepest.analysis.columns import COLUMNS, PAIR_STATUSES
from steepest.recording import recording


def made(steps: int, names: tuple[str, ...], seed: int, **options: Any) -> Any:
    rng = np.random.default_rng(seed)
    grad = {name: rng.standard_normal((steps, 3)) for name in names}
    update = {name: -x + rng.standard_normal(x.shape) for name, x in grad.items()}
    return recording(grad=grad, update=update, loss=np.linspace(1, 0, steps), **options)


@pytest.fixture
def two() -> Analysis:
    return steepest.analyze({"first": made(5, ("a", "b"), 0, objective="fixed"), "second": made(7, ("b", "c"), 1)})


def test_to_dict_is_json(two: Analysis) -> None:
    found = json.loads(json.dumps(two.to_dict()))
    for name, run in two.runs.items():
        part = found["runs"][name]
        assert part["blocks"] == list(run.blocks)
        assert part["info"]["lag"] == 1
        for column in COLUMNS:
            np.testing.assert_array_equal(np.array(part["columns"][column]), run[column])


def test_frame(two: Analysis) -> None:
    pytest.importorskip("pandas")
    frame = two.to_dataframe()
    assert len(frame) == 5 * 3 + 7 * 3
    assert list(frame.columns[:4]) == ["run", "candidate", "step", "block"]
    assert (frame.dtypes[["run", "candidate", "block", "status"]] == "category").all()
    for name, run in two.runs.items():
        for b, block in enumerate(run.blocks):
            part = frame[(frame["run"] == name) & (frame["block"] == block)]
            np.testing.assert_array_equal(part["step"], run.step)
            for column in COLUMNS:
                values = run[column] if run[column].ndim == 1 else run[column][:, b]
                np.testing.assert_array_equal(part[column].to_numpy(), values, err_msg=column)
    assert frame["candidate"].isna().all()
    some = two.to_dataframe(["psi", "loss"])
    assert list(some.columns) == ["run", "candidate", "step", "block", "psi", "loss"]
    with pytest.raises(ValueError, match="expected columns"):
        two.to_dataframe(["angle"])


def test_dataset(two: Analysis, tmp_path: Path) -> None:
    xr = pytest.importorskip("xarray")
    pytest.importorskip("netCDF4")
    whole = two.to_xarray()
    assert dict(whole.sizes) == {"run": 2, "step": 7, "block": 4}
    for name, run in two.runs.items():
        own = run.to_xarray()
        assert dict(own.sizes) == {"step": len(run), "block": 3}
        part = whole.sel(run=name, step=run.step, block=list(run.blocks))
        for column in COLUMNS:
            expected = run["status_code"] if column == "status" else run[column]
            np.testing.assert_array_equal(own[column], expected)
            np.testing.assert_array_equal(part[column], expected)
            assert own[column].attrs["long_name"]
    assert np.isnan(whole["psi"].sel(run="first", step=6)).all()
    assert (whole["status"].sel(run="first", block="c") == -1).all()
    assert whole["status"].attrs["flag_meanings"].split() == list(PAIR_STATUSES)
    for data, name in ((whole, "whole"), (two["first"].to_xarray(), "one")):
        data.to_netcdf(tmp_path / f"{name}.nc")
        with xr.open_dataset(tmp_path / f"{name}.nc") as again:
            np.testing.assert_array_equal(again["psi"], data["psi"])


@pytest.mark.parametrize("pair", ["auto", "displacement"])
def test_file(two: Analysis, pair: str, tmp_path: Path) -> None:
    if pair != "auto":
        two = steepest.analyze(made(6, ("a",), 3, lag=2), window=2)
    path = tmp_path / "analysis.npz"
    two.save(path)
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                assert version in ((1, 0), (2, 0))
                assert not np.lib.format.read_array_header_1_0(file)[2].hasobject
    again = Analysis.load(path)
    assert list(again.runs) == list(two.runs)
    for name, run in two.runs.items():
        loaded = again.runs[name]
        for attribute in ("name", "candidate", "info", "pair", "window", "blocks", "sizes"):
            assert getattr(loaded, attribute) == getattr(run, attribute)
        np.testing.assert_array_equal(loaded.step, run.step)
        for column in COLUMNS:
            np.testing.assert_array_equal(loaded[column], run[column], err_msg=column)
            assert not loaded[column].flags.writeable
        assert loaded.notes == run.notes
    np.testing.assert_equal(again.summary(), two.summary())
    with pytest.raises(ValueError, match="without its recording"):
        again.runs[next(iter(again.runs))].metric(0)
    again.save(path)  # a loaded one saves too, over the old file
    np.testing.assert_equal(Analysis.load(path).summary(), two.summary())
    assert [p.name for p in tmp_path.iterdir()] == ["analysis.npz"]


def test_file_of_something_else(tmp_path: Path, two: Analysis) -> None:
    with pytest.raises(FileNotFoundError):
        Analysis.load(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    (tmp_path / "text.npz").write_text("no archive")
    np.save(tmp_path / "array.npy", np.ones(3))
    np.savez(tmp_path / "objects.npz", **{"analysis.json": np.array([{}], dtype=object)})
    for name in ("other.npz", "text.npz", "array.npy", "objects.npz"):
        with pytest.raises(ValueError, match=r"Analysis\.save"):
            Analysis.load(tmp_path / name)
    two.save(tmp_path / "good.npz")
    cut = (tmp_path / "good.npz").read_bytes()[:-400]
    (tmp_path / "cut.npz").write_bytes(cut)
    with pytest.raises(ValueError, match=r"Analysis\.save"):
        Analysis.load(tmp_path / "cut.npz")


def test_missing_package_names_the_extra(two: Analysis, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without(name: str, package: str | None = None) -> Any:
        if name.partition(".")[0] in ("pandas", "xarray", "tqdm"):
            raise ImportError(name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    for call, extra in ((two.to_dataframe, "pandas"), (two.to_xarray, "xarray")):
        with pytest.raises(ImportError, match=rf"steepest\[{extra}\]"):
            call()
    slow = steepest.analyze(made(3, ("a",), 0), progress=True)
    with pytest.raises(ImportError, match=r"steepest\[progress\]"):
        slow["run"]["distance"]


def test_nothing_optional_is_imported(two: Analysis, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def strict(name: str, *args: Any) -> Any:
        assert name.partition(".")[0] not in ("pandas", "xarray", "matplotlib", "tqdm", "torch", "jax")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", strict)
    two.summary()
    two.to_dict()
    assert two.notes
    repr(two)


def test_plot_binds_the_analysis(two: Analysis, monkeypatch: pytest.MonkeyPatch) -> None:
    import steepest.plot

    monkeypatch.setattr(steepest.plot, "__all__", [*steepest.plot.__all__, "probe"])
    monkeypatch.setattr(steepest.plot, "probe", lambda a, x="step": (a, x), raising=False)
    assert two.plot.probe(x="loss") == (two, "loss")
    assert "probe" in dir(two.plot)
    with pytest.raises(AttributeError, match="no figure"):
        two.plot.nothing()


def test_names_of_several_runs(two: Analysis) -> None:
    assert all(note.startswith(("first: ", "second: ")) for note in two.notes)
    assert len(two) == 2
    assert "2 runs" in repr(two)
    assert "trapezoid" in repr(two)


def test_table_of_a_notebook() -> None:
    a = steepest.analyze({"<b>": made(4, ("a",), 0)})
    table = a._repr_html_()
    assert "&lt;b&gt;" in table
    assert "<b>" not in table
    assert f"{np.degrees(a.summary()[0]['psi_median']):.4g}" in table
