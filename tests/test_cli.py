"""The command line, end to end."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

import steepest
from steepest import cli
from steepest.cli import reproduce
from test_experiments import write_mnist


def test_reproduce_end_to_end(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    out = tmp_path / "new" / "results"
    assert cli.main(["reproduce", "--out", str(out), "--quick", "--seed", "1"]) == 0
    names = {path.name for path in out.iterdir()}
    assert names == {
        "lti.npz", "lti.csv", "lti_curves.csv", "lti.png", "lti.pdf", "geometry.png", "geometry.pdf",
        "feedback_alignment.npz", "feedback_alignment.csv",
        "feedback_alignment.png", "feedback_alignment.pdf", "geometry_rules.npz", "geometry_rules.csv",
        "geometry_rules.png", "geometry_rules.pdf", "geometry_checks.png", "geometry_checks.pdf",
        "navigation.npz", "navigation.csv",
        *(f"navigation_{name}.{ending}" for ending in ("png", "pdf")
          for name in ("wells", "quadratics", "geometry_and_drift", "metrics")),
    }  # fmt: skip
    assert (out / "lti.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "feedback_alignment.pdf").read_bytes().startswith(b"%PDF")
    printed = capsys.readouterr()
    assert "Linear dynamics" in printed.out
    assert printed.out.count("backpropagation") == 2
    assert str(out / "lti.csv") in printed.err
    assert "\r" not in printed.err  # the progress line is for terminals

    # The table says what the files say.
    with np.load(out / "lti.npz", allow_pickle=False) as stored:
        assert stored["residual"].max() < 1e-10
        assert f"{stored['residual'].max():.1e}" in printed.out
    with np.load(out / "feedback_alignment.npz", allow_pickle=False) as stored:
        accuracy = float(stored["feedback_alignment_squared_final_accuracy"])
        angle = np.degrees(stored["feedback_alignment_squared_angle"])
        assert f"{100 * accuracy:.2f}%" in printed.out
        assert f"{angle[0]:.1f} to {angle[-1]:.1f}" in printed.out
        assert angle[-1] < 0.6 * angle[0]


def test_only_and_seed(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    tables = []
    for seed in (3, 3, 4):
        assert cli.main(["reproduce", "--only", "lti", "--quick", "--out", str(tmp_path), "--seed", str(seed)]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1] != tables[2]
    assert "Feedback" not in tables[0]
    assert not (tmp_path / "feedback_alignment.npz").exists()


def test_data_folder(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 10
    images = rng.integers(0, 100, (40, 5, 5)) + 15 * labels[:, None, None]
    write_mnist(tmp_path, train=(images, labels), test=(images[:20], labels[:20]))
    arguments = ["reproduce", "--only", "feedback-alignment", "--quick", "--out", str(tmp_path / "out")]
    assert cli.main([*arguments, "--data", str(tmp_path)]) == 0
    assert "MNIST (40 training, 20 test images)" in capsys.readouterr().out

    assert cli.main([*arguments, "--data", str(tmp_path / "nowhere")]) == 1
    message = capsys.readouterr().err
    assert message.startswith("steepest: no train-images-idx3-ubyte")
    assert "t10k-labels-idx1-ubyte" in message


def test_progress_on_a_terminal(monkeypatch, capsys):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar = reproduce._Bar()
    for done in range(1, 101):
        bar("training", done, 100)
    bar("testing", 1, 1)
    shown = capsys.readouterr().err
    assert "training" in shown
    assert "100" in shown
    assert "testing" in shown
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    reproduce._Bar()("training", 1, 2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["explain"],
        ["reproduce", "--only", "mnist"],
        ["reproduce", "--seed", "-1"],
        ["reproduce", "--seed", "x"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments, capsys):
    assert cli.main(arguments) == 2
    assert "usage: steepest" in capsys.readouterr().err


def test_data_without_its_experiment_is_refused(tmp_path, capsys):
    arguments = ["reproduce", "--only", "lti", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 2
    assert "--data is for feedback-alignment, geometry, navigation, ballistic" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_out_that_is_a_file(tmp_path, capsys):
    target = tmp_path / "taken"
    target.write_text("kept")
    assert cli.main(["reproduce", "--only", "lti", "--quick", "--out", str(target)]) == 1
    assert "taken" in capsys.readouterr().err
    assert target.read_text() == "kept"


@pytest.mark.parametrize("missing", ["matplotlib", "sklearn"])
def test_missing_dependency_names_the_extra(tmp_path, monkeypatch, capsys, missing):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find_spec(name))
    assert cli.main(["reproduce", "--out", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert missing in message
    assert 'pip install "steepest[experiments]"' in message
    assert not (tmp_path / "out").exists()


def test_help_and_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"steepest {steepest.__version__}\n"
    assert cli.main(["reproduce", "--help"]) == 0
    assert "--quick" in capsys.readouterr().out


def test_python_dash_m():
    done = subprocess.run([sys.executable, "-m", "steepest", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"steepest {steepest.__version__}\n")
