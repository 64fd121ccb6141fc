"""analyze, report and info on real recordings, and the shape of what they write."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

import steepest
from steepest import cli
from steepest.cli.output import coloured, plain
from test_plot_course import momentum_run


@pytest.fixture
def folders(tmp_path):
    """Two recordings on disk."""
    momentum_run(30, path=tmp_path / "slow", beta=0.0)
    momentum_run(50, path=tmp_path / "fast", skip_at=(4,))
    return tmp_path / "slow", tmp_path / "fast"


def run(capsys, *arguments):
    """Exit code, standard output, standard error."""
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_analyze_json_is_the_analysis(folders, capsys):
    slow, fast = folders
    code, out, _ = run(capsys, "analyze", slow, f"quick={fast}", "--pair", "continuous", "--window", 3, "--json")
    assert code == 0
    document = json.loads(out)
    analysis = steepest.analyze({"slow": slow, "quick": fast}, pair="continuous", window=3)
    assert document["summary"] == json.loads(json.dumps(plain(analysis.summary())))
    assert document["notes"] == list(analysis.notes)
    assert [item["name"] for item in document["runs"]] == ["slow", "quick"]
    assert {item["pair"] for item in document["runs"]} == {"continuous"}
    assert {item["window"] for item in document["runs"]} == {3}


def test_analyze_prints_a_table(folders, capsys):
    slow, fast = folders
    code, out, err = run(capsys, "analyze", slow, fast, "--pair", "continuous", "--blocks", "w")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split()[:4] == ["run", "block", "parameters", "steps"]
    rows = [line.split()[:4] for line in lines[2:6]]
    assert rows == [
        ["slow", "(all)", "14", "30"], ["slow", "w", "12", "30"],
        ["fast", "(all)", "14", "50"], ["fast", "w", "12", "50"],
    ]  # fmt: skip
    recording = steepest.Recording.open(slow)
    assert f"{np.degrees(np.median(recording.angle[:, 0])):.1f}°" in lines[2] or "e-" in lines[2]
    assert "skipped 1" in lines[4]
    assert "\033" not in out + err


def test_analyze_saves(folders, tmp_path, capsys):
    saved = tmp_path / "analysis"
    code, _, err = run(capsys, "analyze", folders[0], "--out", saved)
    assert code == 0
    assert f"Saved: {saved}" in err
    assert saved.exists()
    loaded = steepest.Analysis.load(saved)
    np.testing.assert_array_equal(
        loaded.runs["slow"]["psi"], steepest.analyze({"slow": folders[0]}).runs["slow"]["psi"]
    )


def test_report(folders, tmp_path, capsys):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    page = tmp_path / "page.html"
    code, out, err = run(capsys, "report", *folders, "-o", page, "--title", "Two rules")
    assert (code, out) == (0, "")
    assert f"Written: {page}" in err
    assert "<h1>Two rules</h1>" in page.read_text(encoding="utf-8")
    code, out, _ = run(capsys, "report", folders[0], "-o", page, "--json")
    assert json.loads(out) == {"report": str(page), "bytes": page.stat().st_size, "runs": ["slow"]}


def test_report_looks_for_constant_geometries(tmp_path, capsys):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    momentum_run(40, path=tmp_path / "scalars", beta=0.0)
    momentum_run(40, path=tmp_path / "vectors", beta=0.0, keep="vectors")
    momentum_run(1, path=tmp_path / "short")
    page = tmp_path / "page.html"
    runs = [tmp_path / name for name in ("scalars", "vectors", "short")]
    assert run(capsys, "report", *runs, "-o", page)[0] == 0
    text = page.read_text(encoding="utf-8")
    # Gradient descent: a multiple of the identity predicts all of it. The diagonal family needs vectors.
    assert text.count("(a multiple of the Euclidean metric), fitted to the first 30 steps, accounts for 100%") == 2
    assert text.count("(a diagonal metric), fitted to the first 30 steps, accounts for 100%") == 1
    assert run(capsys, "report", tmp_path / "vectors", "-o", page, "--no-identify")[0] == 0
    assert "a diagonal metric" not in page.read_text(encoding="utf-8")


def test_info_of_the_installation(capsys):
    code, out, _ = run(capsys, "info", "--json")
    assert code == 0
    document = json.loads(out)
    assert {key: document[key] for key in steepest.build_config()} == json.loads(
        json.dumps(plain(steepest.build_config()))
    )
    assert document["numpy"] == np.__version__
    assert document["extras"]["plot"].keys() == {"matplotlib"}
    _, table, _ = run(capsys, "info")
    assert f"numpy             {np.__version__}" in table
    assert "avx2" in table or "baseline" in table


def test_info_says_which_extras_are_missing(capsys, monkeypatch):
    import importlib.util

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tqdm" else find_spec(name))
    document = json.loads(run(capsys, "info", "--json")[1])
    assert document["extras"]["progress"] == {"tqdm": None}
    assert "tqdm missing" in run(capsys, "info")[1]


def test_info_of_a_recording(folders, capsys):
    code, out, _ = run(capsys, "info", f"mine={folders[1]}", "--json")
    assert code == 0
    held = json.loads(out)["mine"]
    recording = steepest.Recording.open(folders[1])
    assert (held["steps"], held["first_step"], held["last_step"]) == (50, 0, 49)
    assert held["with_loss"] == 49
    assert held["objective"] == "fixed"
    assert [block["name"] for block in held["blocks"]] == list(recording.blocks)
    assert [block["shape"] for block in held["blocks"]] == [[14], [4, 3], [2]]
    assert [block["status"] for block in held["blocks"]] == [recording.counts(name) for name in recording.blocks]
    assert held["bytes"] == sum(file.stat().st_size for file in folders[1].iterdir())
    _, table, _ = run(capsys, "info", folders[1])
    assert "4x3" in table
    assert "skipped 1" in table


def test_what_cannot_be_done_is_exit_code_1(folders, tmp_path, capsys):
    for arguments in (
        ["analyze", tmp_path / "nowhere"],
        ["analyze", tmp_path],  # a folder, but no recording
        ["analyze", folders[0], folders[0]],  # one name twice
        ["analyze", folders[0], "--blocks", "nothing"],
        ["info", "x=nowhere"],
        ["report", folders[0], "-o", tmp_path / "no" / "folder.html"],
    ):
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (1, ""), arguments
        assert err.startswith("steepest: "), arguments


@pytest.mark.parametrize(
    "arguments",
    [
        ["analyze"],
        ["report"],
        ["analyze", "x", "--window", "0"],
        ["analyze", "x", "--pair", "wrong"],
        ["info", "--wrong"],
    ],
    ids=str,
)
def test_wrong_usage_is_exit_code_2(arguments, capsys):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert "usage: steepest" in err


def test_a_path_may_have_an_equals_sign(tmp_path, capsys):
    momentum_run(5, path=tmp_path / "lr=0.1")
    code, out, _ = run(capsys, "info", tmp_path / "lr=0.1", "--json")
    assert code == 0
    assert list(json.loads(out)) == ["lr=0.1"]


def test_missing_extras_are_named_before_the_work(folders, capsys, monkeypatch):
    import importlib.util

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jinja2" else find_spec(name))
    code, _, err = run(capsys, "report", folders[0])
    assert code == 1
    assert 'jinja2; get them by pip install "steepest[report]"' in err


@pytest.mark.parametrize(
    ("terminal", "variables", "bold"),
    [(True, {}, True), (True, {"NO_COLOR": "1"}, False), (True, {"TERM": "dumb"}, False), (False, {}, False)],
)
def test_colour_only_on_a_terminal_that_wants_it(terminal, variables, bold, capsys, monkeypatch):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert coloured(sys.stdout) is bold
    _, out, _ = run(capsys, "info")
    assert ("\033[1m" in out) is bold


def test_json_has_no_nan():
    document = plain({"a": np.array([1.0, np.nan, np.inf]), "b": np.float32(0.5), "c": (True, None), 1: np.int8(3)})
    assert document == {"a": [1.0, None, "inf"], "b": 0.5, "c": [True, None], "1": 3}
    json.dumps(document, allow_nan=False)


def test_reproduce_json(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    arguments = ["reproduce", "--only", "lti", "--quick", "--out", tmp_path]
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0
    document = json.loads(out)
    assert str(tmp_path / "lti.csv") in document["written"]
    assert "Written" in err
    _, table, _ = run(capsys, *arguments)
    for row in document["lti"]["rows"]:
        assert all(cell in table for cell in row.values())
