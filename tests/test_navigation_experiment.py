"""The navigation experiment: its numbers by identities, its files and figures."""

import csv
import math

import numpy as np
import pytest

from steepest import cli
from steepest.experiments import navigation, navigation_figures


@pytest.fixture(scope="module")
def result():
    return navigation.run(60, rng=0)


def test_the_double_well(result):
    descent, far, near = result.wells
    loss = navigation.double_well()
    for i, e in enumerate(np.eye(2)):
        slope = (loss.value(navigation.START + 1e-6 * e) - loss.value(navigation.START - 1e-6 * e)) / 2e-6
        assert loss.gradient(navigation.START)[i] == pytest.approx(slope, rel=1e-7)  # the true derivative
    assert far.action < result.fixed_end_action < near.action < descent.action
    assert descent.angle.max() < 1e-6
    assert far.angle[0] > math.pi / 2  # first over the ridge
    assert np.isnan(far.cond[0])
    assert near.angle[:-1].max() < math.pi / 2
    assert "nothing certifies" in result.status
    np.testing.assert_allclose(loss.gradient(descent.state[-1]), 0.0, atol=1e-2)


@pytest.mark.parametrize("seed", [51, 112])
def test_both_wells_are_found_from_other_starts(seed):
    assert [course.name for course in navigation.run(5, rng=seed).wells][1:] == ["to the far well", "to the near well"]


def test_quadratics(result):
    for gamma, line, valley in zip(navigation.DISCOUNTS, result.line, result.valley, strict=True):
        r = math.sqrt(gamma**2 / 4 + 1) - gamma / 2
        np.testing.assert_allclose(line.state[:, 0], 1 - np.exp(-r * line.time), atol=1e-12)
        assert line.action == pytest.approx(r / 2, rel=1e-12)
        rates = np.sqrt(gamma**2 / 4 + navigation.VALLEY) - gamma / 2
        np.testing.assert_allclose(
            valley.state, navigation.VALLEY_START * np.exp(-np.outer(valley.time, rates)), atol=1e-12
        )
        assert valley.own_cond == pytest.approx((rates[1] + gamma) / (rates[0] + gamma))
        assert (valley.cond <= valley.own_cond * (1 + 1e-9)).all()
        assert (np.diff(valley.spent) >= 0).all()
    assert result.own_cond[0] == pytest.approx(3.0, abs=0.05)
    assert result.own_cond[-1] == pytest.approx(1.0, abs=1e-3)


def test_geometry_and_drift(result):
    plain, geometry, turned, decay = result.bowl
    assert plain.angle.max() < 1e-6
    assert geometry.own_cond == pytest.approx(math.sqrt(50))
    np.testing.assert_allclose(plain.state[-1], navigation.BOWL_MINIMUM, atol=0.05)
    rotated = np.array([[0.0, -10.0], [10.0, 0.0]])
    # At gamma = 0 the feedback is 2 (theta - .): theta' = (F - 2) theta + 2 c, and rest is 4/104 of the minimum.
    np.testing.assert_allclose(turned.fixed_point, navigation.BOWL_MINIMUM * 4 / 104, atol=1e-12)
    assert np.linalg.eigvals(rotated - 2 * np.eye(2)).real.max() == pytest.approx(-2.0)
    np.testing.assert_allclose(turned.state[-1], turned.fixed_point, atol=0.1)
    np.testing.assert_allclose(decay.fixed_point, navigation.BOWL_MINIMUM * 4 / 104, atol=1e-12)
    assert np.isnan(turned.distance).all()
    assert math.isinf(turned.action)


def test_files(result, tmp_path):
    written = navigation.write(result, tmp_path)
    assert [path.name for path in written] == ["navigation.npz", "navigation.csv"]
    with np.load(written[0], allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["valley_0_state"], result.valley[0].state)
    with written[1].open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == sum(len(course.time) for courses in result.groups.values() for course in courses)
    assert {row["figure"] for row in rows} == {"wells", "line", "valley", "bowl"}
    with pytest.raises(ValueError, match="n_steps"):
        navigation.run(1)


def test_figures(result):
    pytest.importorskip("matplotlib")
    panels = {"wells": 3, "quadratics": 4, "geometry_and_drift": 8, "metrics": 4}
    for name, count in panels.items():
        figure = getattr(navigation_figures, name)(result)
        assert len(figure.axes) == count
        figure.draw_without_rendering()
        width = figure.bbox.width
        assert figure._supxlabel.get_window_extent().x1 <= width  # the caption fits
        for panel in figure.axes:
            assert panel.title.get_text() == ""
            assert panel.get_title(loc="left")
    steps = np.arange(1, 5)
    more = navigation_figures.quadratics(result, {"SGD": (steps, 1.0 / steps)})
    assert len(more.axes) == 5
    np.testing.assert_array_equal(more.axes[4].lines[0].get_ydata(), 1.0 / steps)
    assert "4x(x² − 1)" in navigation_figures.CAPTIONS["wells"]
    assert "j(j + γ)" in navigation_figures.CAPTIONS["geometry_and_drift"]


def test_command_line(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert cli.main(["reproduce", "--only", "navigation", "--quick", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "to the far well" in printed
    assert "0.619" in printed
    assert (tmp_path / "navigation_wells.png").read_bytes().startswith(b"\x89PNG")
    # With data: networks for panel e, where PyTorch is there.
    assert cli.main(["reproduce", "--only", "navigation", "--data", str(tmp_path), "--out", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert "no train-images-idx3-ubyte" in message or "torch" in message
