"""The experiment ``geometry`` on scikit-learn's digits: rules of known geometry, by identities and dense oracles."""

import csv
import math

import numpy as np
import pytest

from steepest import cli
from steepest.experiments import geometry, geometry_checks, geometry_figures
from steepest.experiments.digits import Digits, load_digits
from steepest.experiments.geometry_runs import (
    MOMENTUM,
    RATE,
    RULES,
    alignment_condition,
    images,
    plant,
    train,
)
from test_experiments import write_mnist

FITTED, HELD_OUT = 50, 20


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    return load_digits(rng=0)


@pytest.fixture(scope="module")
def data(digits):
    return images(digits)


@pytest.fixture(scope="module")
def result(digits):
    return geometry.run(digits, n_hidden=20, first=100, fitted=FITTED, held_out=HELD_OUT, n_seeds=2, large=1000, seed=1)


def score(result, rule, family, batch=None, against="all images"):
    return result.cell(rule, family, batch, against).r2


# Training


def test_full_batch_gradient_is_that_of_the_mean_loss(data):
    rng = np.random.default_rng(0)
    F = rng.standard_normal((10, data.inputs.shape[1]))
    x, target = data.inputs.astype(float), np.eye(10)[data.labels]
    error = x @ F.T - target
    loss, E = data.full_error(F)
    assert loss == pytest.approx(0.5 * np.mean(np.sum(error**2, axis=1)), rel=1e-12)
    np.testing.assert_allclose(E, error.T @ x / len(x), atol=1e-12)
    direction = rng.standard_normal(F.shape)
    difference = (data.full_error(F + 1e-4 * direction)[0] - data.full_error(F - 1e-4 * direction)[0]) / 2e-4
    assert np.vdot(E, direction) == pytest.approx(difference, rel=1e-7)


def test_mini_batch_gradient_is_that_of_the_drawn_images(data):
    F = np.random.default_rng(0).standard_normal((10, data.inputs.shape[1]))
    chosen = np.random.default_rng(5).integers(0, len(data.inputs), 64)
    x = data.inputs[chosen].astype(float)
    expected = (x @ F.T - np.eye(10)[data.labels[chosen]]).T @ x / 64
    np.testing.assert_allclose(data.batch_error(F, 64, np.random.default_rng(5)), expected, atol=1e-5)


def test_pixels_are_averaged_and_those_that_hardly_vary_left_out():
    rng = np.random.default_rng(0)
    pixels = rng.random((50, 28, 28)).astype(np.float32)
    pixels[:, :4] = 0.5  # the first row of squares
    labels = (np.arange(50) % 10).astype(np.uint8)
    found = images(Digits("x", pixels.reshape(50, -1), labels, pixels.reshape(50, -1), labels))
    assert found.inputs.shape == (50, 42 + 1)
    squares = np.array(
        [[p[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].mean() for i in range(7) for j in range(7)] for p in pixels]
    )
    np.testing.assert_allclose(found.inputs[:, :-1], (squares - squares.mean(axis=0))[:, 7:], atol=1e-6)
    assert (found.inputs[:, -1] == 1.0).all()


@pytest.mark.parametrize("batch", [None, 32])
@pytest.mark.parametrize("rule", RULES)
def test_each_rule_does_what_it_says(data, rule, batch):
    planted = plant(data, 8, np.random.default_rng(3))
    course = train(data, rule, batch=batch, n_hidden=8, first=0, n_steps=6, seed=2, planted=planted)
    rate, consumed, update = RATE[rule], course.consumed, course.update
    assert (course.grad is consumed) == (batch is None)
    if rule == "gradient descent":
        np.testing.assert_allclose(update, -rate * consumed, rtol=1e-12)
    elif rule == "momentum":
        weights = MOMENTUM ** np.arange(5, -1, -1)
        np.testing.assert_allclose(update[5], -rate * np.tensordot(weights, consumed, 1), rtol=1e-10, atol=1e-15)
    elif rule == "RMSProp":
        np.testing.assert_allclose(update * course.root, -rate * consumed, rtol=1e-10)
        np.testing.assert_allclose(course.root[0], np.abs(consumed[0]) + 1e-8, rtol=1e-10)
    elif rule == "Adam":
        np.testing.assert_allclose(update[0] * course.root[0], -rate * consumed[0], rtol=1e-10)
    elif rule == "K-FAC (input factor)":
        np.testing.assert_allclose(update @ planted.input, -rate * consumed, rtol=1e-8, atol=1e-15)
    elif rule == "planted Kronecker":
        np.testing.assert_allclose(planted.output @ update @ planted.input, -rate * consumed, rtol=1e-8, atol=1e-15)
    else:
        rank = np.linalg.matrix_rank(np.concatenate(list(update), axis=1), tol=1e-9)
        assert rank == 8  # 10 columns of B span the 8 hidden units
        assert course.smallest.shape == course.asymmetry.shape == (6,)
    assert np.isfinite(course.loss).all()
    assert (course.root is not None) == (rule in ("RMSProp", "Adam"))


def test_first_step_of_a_run_does_not_depend_on_what_is_kept(data):
    late, whole = (train(data, "Adam", n_hidden=4, first=first, n_steps=9, seed=0) for first in (8, 0))
    assert late.grad.shape == (1, 4, data.inputs.shape[1])
    np.testing.assert_array_equal(late.update[0], whole.update[8])


def test_condition_of_feedback_alignment():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((4, 4))
    spd = root @ root.T + np.eye(4)
    smallest, asymmetry = alignment_condition(spd)
    assert smallest == pytest.approx(np.linalg.eigvalsh(spd)[0])
    assert asymmetry < 1e-15
    skew = root - root.T
    assert alignment_condition(np.eye(4) + skew) == pytest.approx((1.0, np.linalg.norm(skew) / 2.0))


def test_bad_runs_are_refused(data, digits):
    with pytest.raises(ValueError, match="one of"):
        train(data, "SGD")
    with pytest.raises(ValueError, match="first < n_steps"):
        train(data, "Adam", first=5, n_steps=5)
    with pytest.raises(ValueError, match="n_seeds must be at least 1"):
        geometry.run(digits, n_seeds=0)


# Scores


def test_rules_are_found_in_their_own_geometry(result):
    assert score(result, "gradient descent", "scalar") == pytest.approx(1.0, abs=1e-9)
    assert (score(result, "K-FAC (input factor)", "kronecker-input") > 0.999).all()
    for rule in ("RMSProp", "Adam"):
        assert (score(result, rule, "diagonal") > score(result, rule, "scalar") + 0.2).all()
        assert (score(result, rule, "diagonal") > score(result, rule, "kronecker-input")).all()
    aligned = score(result, "feedback alignment", "kronecker-output")
    for family in ("scalar", "diagonal", "kronecker-input"):
        assert (aligned > score(result, "feedback alignment", family) + 0.2).all()
        assert (np.abs(score(result, "feedback redrawn", family)) < 0.1).all()
    assert (score(result, "feedback redrawn", "kronecker-output") < 0.1).all()
    assert (score(result, "planted Kronecker", "kronecker") > 0.98).all()


def test_the_simplest_structure_that_is_not_beaten(result):
    expected = {
        "gradient descent": "scalar",
        "RMSProp": "diagonal",
        "Adam": "diagonal",
        "K-FAC (input factor)": "kronecker-input",
        "feedback alignment": "kronecker-output",
    }
    for rule, own in expected.items():
        for family in geometry.FAMILIES:
            assert (result.cell(rule, family).chosen == (family == own)).all(), (rule, family)


def test_mini_batches_hide_the_geometry_but_from_the_gradient_consumed(result):
    assert score(result, "gradient descent", "scalar", 128, "consumed") == pytest.approx(1.0, abs=1e-9)
    assert (score(result, "K-FAC (input factor)", "kronecker-input", 128, "consumed") > 0.999).all()
    assert (score(result, "gradient descent", "scalar", 128) < 0.5).all()
    of_all, ceiling = (
        result.cell("gradient descent", "scalar", 128),
        result.cell("gradient descent", "scalar", 128).ceiling,
    )
    # The update is the consumed gradient: regressing it on that of all images attains the ceiling.
    np.testing.assert_allclose(of_all.r2_reverse, ceiling, atol=0.03)
    assert (score(result, "gradient descent", "scalar", 1000) > of_all.r2).all()


def test_scores_agree_with_least_squares(result, data):
    course = train(
        data, "RMSProp", n_hidden=20, first=100, n_steps=100 + FITTED + HELD_OUT, seed=1,
        planted=plant(data, 20, np.random.default_rng([1, 3])),
    )  # fmt: skip
    y, g = -course.grad, course.update
    d = np.maximum((y * g)[:FITTED].sum(axis=0), 0.0) / (g * g)[:FITTED].sum(axis=0)
    m = np.vdot(y[:FITTED], g[:FITTED]) / np.vdot(g[:FITTED], g[:FITTED])
    for family, of in (("scalar", m), ("diagonal", d)):
        expected = 1.0 - np.sum((y - of * g)[FITTED:] ** 2) / np.sum(y[FITTED:] ** 2)
        assert score(result, "RMSProp", family)[0] == pytest.approx(expected, abs=1e-10)
    check = next(c for c in result.roots if (c.rule, c.batch) == ("RMSProp", None))
    np.testing.assert_allclose(check.recovered, d.ravel(), rtol=1e-9)
    np.testing.assert_allclose(check.root, np.exp(np.log(course.root[:FITTED]).mean(axis=0)).ravel(), rtol=1e-12)


def test_recovered_diagonals_are_the_optimisers_own(result):
    for check in result.roots:
        if check.batch is None:
            assert (check.log_correlation > 0.99).all()
            # RMSProp: rate * d is a weighted mean of the roots of the fitted steps.
            if check.rule == "RMSProp":
                assert abs(np.log(RATE["RMSProp"] * check.recovered / check.root)).max() < 1.0


def test_planted_factors_are_recovered_where_noise_spreads_the_updates(result):
    small = next(check for check in result.planted if check.batch == 128)
    assert (small.output_cosine > 0.999).all()
    assert (small.input_cosine > 0.999).all()


def test_momentum_over_a_window(result):
    found = result.momentum
    assert (found.full > 0.9).all()
    assert (np.diff(found.small, axis=1) > 0.0).all()
    np.testing.assert_allclose(found.small[:, 0], found.white_noise[0], atol=0.1)


def test_updates_of_momentum_sum_to_the_gradients_but_for_the_ends(data):
    course = train(data, "momentum", batch=32, n_hidden=4, first=0, n_steps=40, seed=0)
    m, b = -course.update / RATE["momentum"], MOMENTUM
    expected = (course.consumed[10:30].sum(axis=0) + b * (m[9] - m[29])) / (1.0 - b)
    np.testing.assert_allclose(m[10:30].sum(axis=0), expected, rtol=1e-9, atol=1e-12)


def test_white_noise_score_by_simulation():
    rng = np.random.default_rng(0)
    noise, b, w = rng.standard_normal(400_000), 0.8, 6
    m = np.zeros_like(noise)
    for t in range(1, len(noise)):
        m[t] = b * m[t - 1] + noise[t]
    mean, moved = (np.convolve(x[200:], np.ones(w), "valid") for x in (noise, m))
    assert geometry_checks.white_noise_score(w, b) == pytest.approx(np.corrcoef(mean, moved)[0, 1] ** 2, abs=0.01)
    assert geometry_checks.white_noise_score(9, 0.0) == pytest.approx(1.0)
    assert geometry_checks.white_noise_score(1, 0.9) == pytest.approx(0.19)


def test_feedback_alignment_gains_its_geometry(result):
    found = result.feedback
    assert (found.r2[:, -1] > found.r2[:, 0]).all()
    assert (found.smallest[:, -1] > found.smallest[:, 0]).all()
    assert (found.asymmetry[:, -1] < found.asymmetry[:, 0]).all()


# Files and figures


def test_files_say_what_the_result_says(result, tmp_path):
    paths = geometry.write(result, tmp_path)
    assert [path.name for path in paths] == ["geometry_rules.npz", "geometry_rules.csv"]
    with paths[1].open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == sum(len(cell.r2) for cell in result.cells)
    row = next(r for r in rows if (r["rule"], r["batch"], r["family"], r["seed"]) == ("Adam", "all", "diagonal", "2"))
    assert float(row["r2"]) == score(result, "Adam", "diagonal")[1]
    with np.load(paths[0], allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["momentum_small"], result.momentum.small)
        np.testing.assert_array_equal(stored["root_RMSProp_all_images_all_root"], result.roots[0].root)


def test_figures_show_the_numbers(result):
    pytest.importorskip("matplotlib")
    fig = geometry_figures.figure(result)
    fig.canvas.draw()
    shown = [text.get_text() for axes in fig.axes for text in axes.texts]
    for batch, against, _ in geometry_figures.maps(result):
        median = geometry_figures.scores(result, batch, against)[0]
        assert f"{median[1, 1]:.2f}" in shown
    assert not math.isnan(geometry_figures.scores(result, 128, "all images")[3][0])
    checks = geometry_figures.checks_figure(result)
    checks.canvas.draw()
    assert len(checks.axes) == 5
    caption = geometry_figures.caption(result)
    assert f"{len(result.seeds)} seeds" in caption
    assert "digits 8x8" in caption
    assert "1438 images" in caption
    with pytest.raises(KeyError, match="scored"):
        result.cell("Adam", "full")


def test_command_line_on_digits(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    _smaller(monkeypatch)
    assert cli.main(["reproduce", "geometry", "--quick", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "linear network on digits 8x8" in printed
    assert "of digits 8x8" in printed
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"geometry_rules.{end}" for end in ("npz", "csv", "png", "pdf")} | {
        "geometry_checks.png",
        "geometry_checks.pdf",
    }


def test_command_line_on_a_folder(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    _smaller(monkeypatch)
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 10
    pixels = np.zeros((60, 28, 28), dtype=np.int64)
    pixels[:, 8:20, 8:20] = rng.integers(0, 100, (60, 12, 12)) + 15 * labels[:, None, None]
    write_mnist(tmp_path, train=(pixels, labels), test=(pixels[:20], labels[:20]))
    out = tmp_path / "out"
    assert cli.main(["reproduce", "geometry", "--quick", "--data", str(tmp_path), "--out", str(out)]) == 0
    assert "linear network on MNIST" in capsys.readouterr().out
    assert cli.main(["reproduce", "geometry", "--only", "lti", "--out", str(out)]) == 2
    assert "expected one experiment" in capsys.readouterr().err


def _smaller(monkeypatch):
    """The command with fewer steps and hidden units."""
    whole = geometry.run

    def run(digits, **options):
        return whole(digits, n_hidden=8, first=10, fitted=30, held_out=10, large=256, **options)

    monkeypatch.setattr(geometry, "run", run)
    monkeypatch.setattr(geometry_checks, "_STARTS", (0, 100))
