"""Figures over the course of runs: what they draw, against the recordings themselves."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest

import steepest
from steepest import plot
from steepest.plot.series import MAX_MARKS

H = {"w": np.linspace(0.2, 3.0, 12).reshape(4, 3), "_b$1": np.array([1.0, 2.0])}


@pytest.fixture(autouse=True)
def no_display():
    """Draw without a display, and close what pyplot opened."""
    pytest.importorskip("matplotlib").use("Agg")
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def momentum_run(steps=60, *, beta=0.9, skip_at=(), lag=1, seed=0, **options):
    """Heavy-ball descent on a quadratic loss; goes uphill now and then."""
    rng = np.random.default_rng(seed)
    theta = {name: rng.standard_normal(h.shape) for name, h in H.items()}
    velocity = {name: np.zeros(h.shape) for name, h in H.items()}
    with steepest.Recorder(lag=lag, objective="fixed", **options) as rec:
        for step in range(steps):
            if step in skip_at:
                rec.skip("test")
                continue
            grad = {name: h * theta[name] for name, h in H.items()}
            loss = 0.5 * sum(float((theta[name] * grad[name]).sum()) for name in H)
            velocity = {name: beta * velocity[name] - 0.05 * grad[name] for name in H}
            rec.step(params=theta, loss=loss, grad=grad, update=velocity)
            theta = {name: theta[name] + velocity[name] for name in H}
        return rec.recording()


def repeated(recording, times):
    """The same steps over and over, numbered on."""
    rows = np.concatenate([recording.rows] * times)
    rows["step"] = np.arange(len(rows))[:, None]
    rows["time"] = rows["step"] * 0.5
    return steepest.Recording(recording.info, rows)


def test_angle_is_that_of_the_recording_with_its_bands():
    recording = momentum_run(skip_at=(7,))
    analysis = steepest.analyze(recording, pair="continuous")
    data = plot.angle_data(analysis, blocks=None)
    assert [curve.block for curve in data.angle] == list(recording.blocks)
    for column, curve in enumerate(data.angle):
        np.testing.assert_array_equal(curve.x, recording.step)
        np.testing.assert_allclose(curve.value, np.degrees(recording.angle[:, column]), rtol=1e-12)
        np.testing.assert_array_equal(curve.low, curve.value)
        np.testing.assert_array_equal(curve.rows, 1)
        middle = (data.null_low[column] + data.null_high[column]) / 2.0
        np.testing.assert_allclose(middle[np.isfinite(curve.value)], 90.0)
        np.testing.assert_allclose(data.floor[column], np.degrees(analysis.runs["run"]["psi_floor"][:, column]))
    assert np.isnan(data.angle[0].value[7])
    assert set(data.gradient) == {"rule"}
    # A random sign for each product: the band of the sign-flip null, from the vectors' products alone.
    half = np.degrees(np.arccos(1.96 * np.sqrt(recording["sign_flip_variance"][0, 0])))
    assert data.null_low[0][0] == pytest.approx(half, abs=0.5)
    # One mark, of the step without an angle; an ascent has one, and none.
    (mark,) = data.marks
    assert (mark.status, mark.steps, mark.x.tolist()) == ("skipped", 1, [7.0])


def test_long_runs_are_thinned_to_medians_and_ranges():
    recording = repeated(momentum_run(50), 100)
    psi = np.degrees(recording.angle[:, 0])
    (curve,) = plot.angle_data(steepest.analyze(recording, pair="continuous"), max_points=130).angle
    assert len(curve.x) == 130
    assert curve.rows.sum() == len(recording) == 5000
    ends = np.cumsum(curve.rows)
    for begin, end, x, value, low, high in zip(
        ends - curve.rows, ends, curve.x, curve.value, curve.low, curve.high, strict=True
    ):
        part = psi[begin:end]
        assert x == np.median(recording.step[begin:end])
        np.testing.assert_allclose([value, low, high], [np.median(part), part.min(), part.max()], rtol=1e-12)


def test_quartiles_instead_of_the_range():
    recording = repeated(momentum_run(50), 20)
    psi = np.degrees(recording.angle[:, 0])
    analysis = steepest.analyze(recording, pair="continuous")
    (curve,) = plot.angle_data(analysis, max_points=10, band="quartiles").angle
    for part, low, high in zip(np.split(psi, 10), curve.low, curve.high, strict=True):
        np.testing.assert_allclose([low, high], np.percentile(part, [25, 75]), rtol=1e-12)
    with pytest.raises(ValueError, match="expected band to be 'range' or 'quartiles', got 'sd'"):
        plot.cond(analysis, band="sd")


def test_no_value_is_lost_by_thinning():
    recording = repeated(momentum_run(50), 40)
    rows = recording.rows.copy()
    rows["loss"][1234] = 1e9
    (curve,) = plot.loss_data(steepest.analyze(steepest.Recording(recording.info, rows)), max_points=10).loss
    assert curve.high.max() == 1e9
    assert np.sum(curve.high == 1e9) == 1
    assert curve.value.max() < 1e3


def test_equal_loss():
    falling = steepest.analyze(momentum_run(40, beta=0.0), pair="continuous")
    (curve,) = plot.angle_data(falling, x="loss").angle
    assert curve.connected
    assert np.all(np.diff(curve.x) <= 0.0)
    np.testing.assert_allclose(curve.x, falling.runs["run"]["loss"])

    recording = momentum_run(60)
    up_and_down = steepest.analyze(recording, pair="continuous")
    (curve,) = plot.angle_data(up_and_down, x="loss").angle
    assert not curve.connected  # points, no line back and forth
    order = np.argsort(-recording.loss, kind="stable")
    np.testing.assert_allclose(curve.value, np.degrees(recording.angle[order, 0]))
    ax = plot.angle(up_and_down, x="loss")
    assert ax.xaxis_inverted()
    assert ax.get_xscale() == "log"
    assert "loss" in ax.get_xlabel()


def test_equal_loss_of_a_long_run_has_bins_of_equal_width():
    recording = repeated(momentum_run(60, beta=0.0), 50)
    (curve,) = plot.angle_data(steepest.analyze(recording, pair="continuous"), x="loss", max_points=20).angle
    assert curve.rows.sum() == len(recording)
    assert len(curve.x) <= 20
    # On the logarithmic axis no two neighbours are farther apart than two bins.
    spread = np.log(recording.loss.max() / recording.loss.min()) / 20
    gaps = -np.diff(np.log(curve.x))
    assert gaps.min() > 0.0
    assert gaps.max() < 2.5 * spread


def test_time_begins_with_the_run():
    theta = 0.9 ** np.arange(10.0)[:, None] * [1.0, 2.0]
    analysis = steepest.analyze(steepest.recording(update=-theta, grad=theta, time=5.0 + np.arange(10.0)))
    (curve,) = plot.angle_data(analysis, x="time").angle
    np.testing.assert_array_equal(curve.x, np.arange(10.0))
    assert plot.angle(analysis, x="time").get_xlabel() == "time"
    clock = plot.angle(steepest.analyze(momentum_run(5)), x="time")  # a Recorder's clock
    assert clock.get_xlabel() == "time since the first step (s)"


def test_marks_say_which_steps_are_not_ok_and_how_many():
    recording = momentum_run(60, skip_at=(3, 4))
    status = recording.status[:, 0]
    assert np.sum(status == "ascent") > 3
    data = plot.loss_data(steepest.analyze(recording, pair="continuous"))
    found = {mark.status: mark for mark in data.marks}
    assert set(found) == {"ascent", "skipped"}
    assert found["ascent"].steps == np.sum(status == "ascent")
    ascents = recording.step[status == "ascent"]
    np.testing.assert_array_equal(found["ascent"].x, ascents)
    np.testing.assert_array_equal(found["ascent"].y, recording.loss[status == "ascent"])
    assert np.isnan(found["skipped"].y).all()  # no loss there: at the lower edge
    ax = plot.loss(steepest.analyze(recording, pair="continuous"))
    assert f"ascent ({len(ascents)} steps)" in [text.get_text() for text in ax.get_legend().get_texts()]

    long = steepest.analyze(repeated(recording, 100), pair="continuous")
    (mark,) = [mark for mark in plot.loss_data(long).marks if mark.status == "ascent"]
    assert mark.steps == 100 * len(ascents)
    assert len(mark.x) <= MAX_MARKS
    # A mark is as dark as the status is frequent in its part of the run.
    parts = np.array_split(long.runs["run"]["status"][:, 0] == "ascent", MAX_MARKS)
    np.testing.assert_allclose(mark.share, [part.mean() for part in parts if part.any()])


def test_marks_of_several_runs_have_a_line_each():
    runs = {"a": momentum_run(60, skip_at=(3,)), "b": momentum_run(60, seed=2), "c": momentum_run(60, beta=0.0)}
    ax = plot.loss(steepest.analyze(runs, pair="continuous"))
    heights = {tuple(row[:3]): set() for row in (c.get_facecolor()[0] for c in ax.collections)}
    for collection in ax.collections:
        heights[tuple(collection.get_facecolor()[0][:3])] |= set(collection.get_offsets()[:, 1])
    assert sorted(len(found) for found in heights.values()) == [1, 1]  # c goes downhill throughout
    assert len(set.union(*heights.values())) == 2


def test_cond_is_the_function_of_the_angle():
    recording = momentum_run()
    (curve,) = plot.cond_data(steepest.analyze(recording, pair="continuous")).cond
    psi, ok = recording.angle[:, 0], recording.status[:, 0] == "ok"
    np.testing.assert_allclose(curve.value[ok], (1 + np.sin(psi[ok])) / (1 - np.sin(psi[ok])), rtol=1e-9)
    assert np.isnan(curve.value[~ok]).all()
    assert plot.cond(steepest.analyze(recording)).get_yscale() == "log"


def test_speed_in_parts_and_in_all():
    analysis = steepest.analyze(momentum_run(), pair="continuous")
    parts = plot.speed_data(analysis)
    whole = plot.speed_data(analysis, what="distance").total[0].value
    assert np.isfinite(whole).sum() > 20
    np.testing.assert_allclose(np.hypot(parts.bulk[0].value, parts.plane[0].value), whole, rtol=1e-7)
    path = plot.speed_data(analysis, what="path_length").total[0].value
    np.testing.assert_allclose(np.nanmax(path), np.nansum(whole), rtol=1e-9)
    several = plot.speed_data(steepest.analyze({"a": momentum_run(), "b": momentum_run(seed=1)}))
    assert several.what == "distance"
    assert [curve.label for curve in several.total] == ["a", "b"]
    with pytest.raises(ValueError, match="expected what to be one of parts, distance, path_length, got 'path'"):
        plot.speed_data(analysis, what="path")


def test_speed_without_lag_says_what_is_missing():
    ax = plot.speed(steepest.analyze(momentum_run(lag=0), pair="continuous"))
    assert [text.get_text() for text in ax.texts] == ["not known: record with lag=1"]


def test_blocks_are_rows():
    recording = momentum_run(skip_at=(5,))
    analysis = steepest.analyze(recording, pair="continuous")
    data = plot.blocks_data(analysis)
    assert data.blocks == recording.blocks
    np.testing.assert_allclose(data.psi, np.degrees(recording.angle.T))
    np.testing.assert_array_equal(data.not_ok, (recording.status != "ok").T)
    ax = plot.blocks(analysis)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["(all)", "w", r" _b\$1"]
    ax.figure.canvas.draw()
    thinned = plot.blocks_data(analysis, max_columns=7)
    assert thinned.psi.shape == (3, 7)
    with pytest.raises(ValueError, match="shows one run: pass run="):
        plot.blocks(steepest.analyze({"a": recording, "b": recording}))
    with pytest.raises(ValueError, match="expected run among"):
        plot.blocks(analysis, run="c")


def test_geometry_over_steps_touches_along_the_update():
    recording = momentum_run()
    analysis = steepest.analyze(recording, pair="continuous")
    ok = recording.step[recording.status[:, 0] == "ok"]
    data = plot.geometry_over_steps_data(analysis, steps=4)
    assert len(data.geometry) == 4
    assert (data.step[0], data.step[-1]) == (ok[0], ok[-1])
    for step, picture in zip(data.step, data.geometry, strict=True):
        same = plot.geometry_data(recording.alignment(step), n_points=181)
        np.testing.assert_allclose(picture.ball, same.ball, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(math.atan2(*picture.touch[::-1]), recording.angle[step, 0], rtol=1e-9)
    chosen = plot.geometry_over_steps_data(analysis, steps=[int(ok[3]), int(ok[1])], block="w")
    assert chosen.step == (ok[3], ok[1])
    by_loss = plot.geometry_over_steps_data(analysis, x="loss", steps=3)
    assert by_loss.place == tuple(recording.loss[list(by_loss.step)])
    ascent = int(recording.step[recording.status[:, 0] == "ascent"][0])
    with pytest.raises(ValueError, match=f"step {ascent} of run 'run'"):
        plot.geometry_over_steps(analysis, steps=[ascent])
    ax = plot.geometry_over_steps(analysis)
    assert len(ax.get_legend().get_texts()) == 5


@pytest.mark.parametrize("name", ["angle", "cond", "speed", "loss", "blocks", "geometry_over_steps"])
def test_every_figure_draws_on_given_axes_and_leaves_the_settings_alone(name):
    import matplotlib
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    analysis = steepest.analyze(momentum_run())
    draw = getattr(plot, name)
    _, ax = plt.subplots()
    assert draw(analysis, ax=ax) is ax
    assert draw(analysis.runs["run"]) is not ax  # a RunAnalysis will do, on new axes
    assert dict(matplotlib.rcParams) == before
    ax.figure.canvas.draw()


@pytest.mark.parametrize("name", ["angle", "cond", "speed", "loss", "blocks"])
def test_runs_without_an_angle_or_with_one_step_are_drawn(name):
    theta = np.ones((1, 3))
    for recording in (
        steepest.recording(params=theta, grad=theta, update=-theta),
        steepest.recording(params=np.ones((3, 2))),
        steepest.Recording(momentum_run(3).info, momentum_run(3).rows[:0]),
    ):
        ax = getattr(plot, name)(steepest.analyze(recording))
        ax.figure.canvas.draw()


def test_no_metric_no_ellipse():
    with pytest.raises(ValueError, match="no step of run 'run'"):
        plot.geometry_over_steps(steepest.analyze(steepest.recording(params=np.ones((3, 2)))))


def test_the_gradient_source_is_printed():
    one = steepest.analyze(momentum_run(gradient_source="evaluation"))
    assert "a separately evaluated gradient" in plot.angle(one).get_title(loc="left")
    both = steepest.analyze({"a": momentum_run(gradient_source="evaluation"), "b": momentum_run()})
    ax = plot.angle(both)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert {"a: evaluated gradient", "b: its own gradient"} <= set(texts)
    assert "different gradients" in ax.get_title(loc="left")


def test_names_are_drawn_as_they_are():
    runs = {"_private": momentum_run(5), "$x$ <b>": momentum_run(5, seed=1)}
    ax = plot.cond(steepest.analyze(runs))
    stream = io.StringIO()
    with steepest_style():
        ax.figure.savefig(stream, format="svg")
    assert "_private" in stream.getvalue()
    assert "$x$ &lt;b&gt;" in stream.getvalue()


def steepest_style():
    import matplotlib

    return matplotlib.rc_context({"svg.fonttype": "none"})


def test_curves_differ_by_dashes_as_well_as_by_colour():
    runs = {f"run {seed}": momentum_run(5, seed=seed) for seed in range(9)}
    lines = [line for line in plot.cond(steepest.analyze(runs)).lines if not line.get_label().startswith("_")]
    assert len({(line.get_color(), str(line._unscaled_dash_pattern)) for line in lines}) == 9
    assert len({str(line._unscaled_dash_pattern) for line in lines}) >= 6


def test_a_hundred_thousand_steps_make_a_small_picture():
    from matplotlib.figure import Figure

    recording = repeated(momentum_run(100), 1000)
    assert len(recording) == 100_000
    analysis = steepest.analyze(recording, pair="continuous")
    for draw in (plot.angle, plot.loss, plot.blocks):
        figure, stream = Figure(layout="constrained"), io.BytesIO()
        draw(analysis, ax=figure.add_subplot())
        figure.savefig(stream, format="svg")
        assert len(stream.getvalue()) < 200_000


def test_refusals():
    analysis = steepest.analyze(momentum_run(5))
    with pytest.raises(ValueError, match="expected x to be 'step', 'loss' or 'time', got 'epoch'"):
        plot.angle(analysis, x="epoch")
    with pytest.raises(ValueError, match="expected blocks among"):
        plot.angle(analysis, blocks=["v"])
    with pytest.raises(ValueError, match="expected runs among"):
        plot.cond(analysis, runs=["v"])
    with pytest.raises(ValueError, match="expected null to be"):
        plot.angle(analysis, null="uniform")
    with pytest.raises(ValueError, match="max_points must be at least 2"):
        plot.angle(analysis, max_points=1)
    with pytest.raises(ValueError, match="the loss is what is drawn"):
        plot.loss(analysis, x="loss")
    with pytest.raises(TypeError, match="expected an Analysis or a RunAnalysis, got dict"):
        plot.angle({})
    silent = steepest.analyze(steepest.recording(params=np.ones((3, 2)), grad=np.ones((3, 2))))
    with pytest.raises(ValueError, match="run 'run' has no loss"):
        plot.angle(silent, x="loss")
