"""Families side by side, what chance would score, and steps over windows."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import sys

import numpy as np
import pytest

import steepest
from steepest import plot
from steepest.identify import compare, identify, select, surrogates
from steepest.identify.displacements import over_windows
from steepest.identify.selection import Selection
from steepest.identify.steps import steps_of
from steepest.recorder import Recorder


@pytest.fixture(autouse=True)
def no_display():
    """Draw without a display, and close what pyplot opened."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def runs_of_known_geometry(T=120, seed=0):
    """Gradient descent, a diagonal rule, one without any geometry, and one uphill."""
    rng = np.random.default_rng(seed)
    grad = rng.normal(size=(T, 4, 3))
    noise = 0.05 * rng.normal(size=grad.shape)
    return {
        "descent": (grad, -0.1 * grad + 0.1 * noise),
        "scaled": (grad, -grad * rng.uniform(0.1, 1.0, (4, 3)) + 0.1 * noise),
        "none": (grad, rng.normal(size=grad.shape)),
        "uphill": (grad, 0.1 * grad),
    }


@pytest.fixture(scope="module")
def selection():
    return select(runs_of_known_geometry(), ("scalar", "diagonal"), rng=0)


# The choice -----------------------------------------------------------------------------------------------------------


def test_the_simplest_family_that_is_not_beaten(selection):
    assert selection.chosen("descent") == "scalar"
    assert selection.chosen("scaled") == "diagonal"
    assert selection.chosen("none") is None
    assert selection.chosen("uphill") is None
    assert (selection.runs, selection.families) == (("descent", "scaled", "none", "uphill"), ("scalar", "diagonal"))


def test_scores_are_those_of_identify_on_the_same_steps(selection):
    runs, families, values = selection.scores("(all)")
    assert values.shape == (4, 2, 3)
    for i, run in enumerate(runs):
        grad, update = (x.reshape(120, -1) for x in runs_of_known_geometry()[run])
        y, g = -grad, update
        fit, test = slice(0, 90), slice(90, 120)
        for j, family in enumerate(families):
            axis = None if family == "scalar" else 0
            m = np.maximum(0.0, (y[fit] * g[fit]).sum(axis) / (g[fit] ** 2).sum(axis))
            expected = 1.0 - ((y[test] - m * g[test]) ** 2).sum() / (y[test] ** 2).sum()
            assert values[i, j, 0] == pytest.approx(expected, abs=1e-12)
            assert values[i, j, 1] <= values[i, j, 0] <= values[i, j, 2]
            assert selection[run, family].held_out == tuple(range(90, 120))
    assert [row["parameters"] for row in selection.rows if row["run"] == "scaled"] == [1, 12]


def test_select_is_compare_on_each_run(selection):
    for run in selection.runs:
        fits = [selection[run, family] for family in selection.families]
        for row, other in zip([row for row in selection.rows if row["run"] == run], compare(fits, rng=1), strict=True):
            assert (row["family"], row["chosen"], row["r2"]) == (other["family"], other["chosen"], other["r2"])


def test_a_family_without_a_fit_neither_beats_nor_hides_another():
    grad, update = (x.reshape(120, -1) for x in runs_of_known_geometry()["scaled"])
    scalar, diagonal = (identify(grad=grad, update=update, family=family, rng=0) for family in ("scalar", "diagonal"))
    missing = {name: (np.full_like(a, np.nan), b) for name, (a, b) in diagonal._residuals.items()}
    nothing = dataclasses.replace(diagonal, family="full", _residuals=missing)
    fits = tuple(dataclasses.replace(fit, r2=math.nan, r2_low=math.nan, parameters=2) for fit in nothing.fits)
    nothing = dataclasses.replace(nothing, fits=fits)
    table = compare([scalar, nothing, diagonal], rng=0)
    assert [(row["family"], row["chosen"]) for row in table] == [("scalar", False), ("full", False), ("diagonal", True)]
    assert [row["chosen"] for row in compare([scalar, nothing], rng=0)] == [True, False]


def test_pure_noise_is_seldom_given_a_geometry():
    # The 95% interval of R2 lies above 0 by chance in 2.5% of the runs, for either family.
    rng = np.random.default_rng(1)
    runs = {str(k): (rng.normal(size=(80, 4)), rng.normal(size=(80, 4))) for k in range(100)}
    found = select(runs, ("scalar", "diagonal"), rng=0)
    assert sum(found.chosen(run) is not None for run in runs) <= 9


def test_forms_of_runs(tmp_path):
    grad, update = runs_of_known_geometry(T=40)["scaled"]
    named = {"w": grad}, {"w": update}
    pairs = [({"w": y}, {"w": g}) for y, g in zip(grad, update, strict=True)]
    with Recorder(tmp_path / "run", keep="vectors") as recorder:
        for y, g in pairs:
            recorder.step(grad=y, update=g)
    runs = {
        "arrays": named,
        "pairs": pairs,
        "recorder": recorder,
        "path": tmp_path / "run",
        "recording": steepest.recording(grad=named[0], update=named[1]),
    }
    found = select(runs, ("scalar", "diagonal"), rng=0)
    first = found.scores()[2][0, :, 0]
    np.testing.assert_allclose(found.scores()[2][:, :, 0], np.tile(first, (5, 1)), rtol=1e-12)
    alone = select(pairs, ("scalar", "diagonal"), rng=0)
    assert alone.runs == ("run",)
    assert alone.chosen() == "diagonal"
    assert alone["run", "diagonal"]["w"].r2 == pytest.approx(first[1])
    two = select([tuple(pair) for pair in pairs[:2]], ("scalar",), holdout=0.5, rng=0)  # a list is never whole arrays
    assert two["run", "scalar"].held_out == (1,)


def test_families_that_do_not_apply_are_skipped_with_the_reason():
    grad, update = runs_of_known_geometry(T=40)["descent"]
    scalars = Recorder()
    for y, g in zip(grad, update, strict=True):
        scalars.step(grad=y, update=g)
    vectors = grad.reshape(40, -1), update.reshape(40, -1)
    found = select({"scalars": scalars, "vectors": vectors}, rng=0)
    assert set(found.identifications["scalars"]) == {"scalar"}
    assert set(found.identifications["vectors"]) == {"scalar", "diagonal"}
    reasons = {(one["run"], one["family"]): one["reason"] for one in found.skipped}
    assert "inner products only" in reasons["scalars", "diagonal"]
    assert np.isnan(found.scores()[2][0, 1]).all()
    assert "skipped: diagonal of scalars: it needs the vectors" in repr(found)
    for (run, family), reason in reasons.items():
        if run == "vectors":
            assert family.startswith("kronecker")
            assert "two axes" in reason
    with pytest.raises(ValueError, match="expected a family that applies, got diagonal: it needs") as caught:
        select({"third": scalars}, ["diagonal"])
    assert caught.value.__notes__ == ["in run 'third'"]


def test_blocks_window_and_replicates_go_to_every_family():
    rng = np.random.default_rng(2)
    grad = {"w": rng.normal(size=(81, 3, 2)), "b": rng.normal(size=(81, 2))}
    update = {name: -0.2 * x for name, x in grad.items()}
    replicate = {name: x + 0.5 * rng.normal(size=x.shape) for name, x in grad.items()}
    found = select(
        {"a": (grad, update), "b": (grad, update)}, ("scalar", "diagonal"), blocks=["b", "(all)"], window=2,
        replicate={"a": replicate}, holdout=0.5, rng=0,
    )  # fmt: skip
    assert found.blocks == ("b", "(all)")
    assert found["a", "scalar"].held_out == tuple(range(40, 80, 2))
    ceilings = found.column(["ceiling"], "(all)")[:, :, 0]
    r, y = (np.concatenate([x[k][:80].reshape(80, -1) for k in grad], axis=1) for x in (replicate, grad))
    r, y = (x.reshape(40, 2, -1).mean(axis=1)[20:] for x in (r, y))
    assert ceilings[0] == pytest.approx((y * r).sum() ** 2 / (y * y).sum() / (r * r).sum(), rel=1e-12)
    assert np.isnan(ceilings[1]).all()


# The result -----------------------------------------------------------------------------------------------------------


def test_the_table(selection):
    lines = repr(selection).splitlines()
    assert lines[0].split() == ["run", "family", "parameters", "held-out", "R2", "95%", "interval", "status"]
    assert lines[1].startswith("descent  scalar")
    assert lines[1].endswith("*")
    assert not lines[2].endswith("*")
    assert len({line.index("[") for line in lines[1:9]}) == 1  # aligned
    frame = pytest.importorskip("pandas") and selection.to_dataframe()
    assert list(frame["run"].unique()) == list(selection.runs)
    assert frame["r2"].tolist() == [row["r2"] for row in selection.rows]
    named = select(({"a": np.ones((9, 2)), "b": np.ones((9, 2))}, {k: -np.ones((9, 2)) for k in "ab"}), ["scalar"])
    assert len(named.table("*").splitlines()) == 4
    assert len(named.table("b").splitlines()) == 2
    assert "2 more: table('*')" in repr(named)
    for bad in (named.table, named.scores, lambda block: named.chosen(block=block)):
        with pytest.raises(ValueError, match="expected block to be one of"):
            bad("c")


def test_to_dict_pickle_and_errors(selection):
    again = json.loads(json.dumps(selection.to_dict()))
    assert again["rows"][0]["r2"] == selection.rows[0]["r2"]
    copy = pickle.loads(pickle.dumps(selection))
    assert repr(copy) == repr(selection)
    with pytest.raises(ValueError, match="expected run to be one of"):
        selection.chosen()
    with pytest.raises(ValueError, match="expected a family that was fitted"):
        selection["none", "full"]
    with pytest.raises(ValueError, match="expected names out of"):
        selection.column(["nothing"])


def test_reproducible_and_the_order_of_runs_does_not_matter_for_scores(selection):
    again = select(runs_of_known_geometry(), ("scalar", "diagonal"), rng=0)
    np.testing.assert_array_equal(again.scores()[2], selection.scores()[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": {}}, "at least one run"),
        ({"families": ["nonsense"]}, "expected families"),
        ({"families": []}, "expected families"),
        ({"families": "scalar"}, "expected families"),
        ({"families": ["scalar", "scalar"]}, "expected families"),
        ({"x": iter([(np.ones(2), -np.ones(2))])}, "expected steps="),
        ({"x": {"a": (np.ones((4, 2)), -np.ones((4, 2)))}, "replicate": np.ones((4, 2))}, "keys out of"),
        ({"x": {"a": (np.ones((4, 2)), -np.ones((4, 2)))}, "replicate": {"b": np.ones((4, 2))}}, "keys out of"),
        ({"holdout": 1.5}, "expected holdout"),
    ],
)
def test_bad_input(arguments, message):
    grad = np.random.default_rng(0).normal(size=(20, 3))
    with pytest.raises(ValueError, match=message):
        select(**({"x": (grad, -grad)} | arguments))


def test_a_frame_needs_pandas(selection, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"steepest\[pandas\]"):
        selection.to_dataframe()


# The heat map ---------------------------------------------------------------------------------------------------------


def test_heat_map(selection):
    data = plot.geometries_data(selection)
    runs, families, values = selection.scores()
    assert (data.runs, data.families, data.block) == (runs, families, "(all)")
    np.testing.assert_array_equal(np.stack([data.r2, data.low, data.high], axis=-1), values)
    assert data.chosen.tolist() == [[True, False], [False, True], [False, False], [False, False]]
    ax = selection.plot.heatmap()
    np.testing.assert_array_equal(ax.collections[0].get_array().reshape(4, 2), np.clip(values[..., 0], 0.0, 1.0))
    texts = [text.get_text() for text in ax.texts]
    assert f"{values[1, 0, 0]:.2f}" in texts
    assert any(f"{values[1, 0, 1]:.2f} to {values[1, 0, 2]:.2f}" in text for text in texts)
    assert len(ax.patches) == 2  # a frame for each choice
    assert [label.get_text() for label in ax.get_yticklabels()] == list(runs)
    import matplotlib.pyplot as plt

    _, given = plt.subplots()
    assert plot.geometries(selection, ax=given) is given
    assert set(data.to_dict()) == set(type(data).__dataclass_fields__)


def test_heat_map_of_what_is_missing():
    row = {
        "run": "a",
        "block": "(all)",
        "family": "scalar",
        "score": -123.0,
        "score_low": math.nan,
        "score_high": math.nan,
    }
    row |= {"ceiling": 0.3, "ceiling_low": 0.2, "ceiling_high": 0.4, "chosen": False}
    ax = plot.geometries(Selection([row], ("a", "b"), ("scalar",), ()))
    assert [text.get_text() for text in ax.texts] == ["-1e2", "ceiling 0.30", "-"]
    ax.figure.canvas.draw()


# Surrogates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["shuffle", "flip"])
@pytest.mark.parametrize("family", ["scalar", "diagonal"])
def test_surrogates_are_the_analysis_of_rearranged_updates(family, kind):
    grad, update = runs_of_known_geometry(T=30)["scaled"]
    found = surrogates(grad=grad, update=update, family=family, kind=kind, count=6, length=1, rng=5)
    assert found.r2[0] == pytest.approx(identify(grad=grad, update=update, family=family)["(all)"].r2, rel=1e-12)
    # The same order and signs, from the same numbers, by identify itself.
    rng = np.random.default_rng(5)
    for k in range(6):
        assert rng.integers(1, 2) == 1  # where the first run of steps ends
        if kind == "shuffle":
            other = update[rng.permutation(30)]
        else:
            other = update * (2 * np.array([rng.integers(2) for _ in range(30)]) - 1)[:, None, None]
        expected = identify(grad=grad, update=other, family=family)["(all)"].r2
        assert found.scores[k, 0] == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_every_form_of_surrogate_data_gives_the_same():
    grad, update = runs_of_known_geometry(T=30)["descent"]
    grad[4, 0, 0] = np.nan  # a step that is left out
    pairs = list(zip(grad, update, strict=True))
    rec = steepest.recording(grad=grad, update=update)
    scalars = Recorder()
    for y, g in pairs:
        scalars.step(grad=y, update=g)
    for kind in ("shuffle", "flip"):
        a, b, c = (
            surrogates(*x, family="scalar", kind=kind, count=5, rng=0, **named)
            for x, named in (((pairs,), {}), ((rec,), {}), ((), {"grad": grad, "update": update}))
        )
        np.testing.assert_allclose(a.scores, b.scores, rtol=1e-10)
        np.testing.assert_allclose(a.scores, c.scores, rtol=1e-10)
    np.testing.assert_allclose(surrogates(scalars, "scalar", kind="flip", count=5, rng=0).scores, a.scores, rtol=1e-10)
    with pytest.raises(ValueError, match="in any order"):
        surrogates(scalars, "scalar", kind="shuffle")


def test_a_common_direction_survives_shuffling_but_not_signs():
    rng = np.random.default_rng(6)
    drift = rng.normal(size=5)
    grad = drift + 0.2 * rng.normal(size=(80, 5))
    update = -0.1 * drift + 0.02 * rng.normal(size=(80, 5))  # follows the mean, not the gradient of the step
    options = {"grad": grad, "update": update, "family": "scalar", "count": 99, "length": 1, "rng": 0}
    shuffled, flipped = (surrogates(kind=kind, **options) for kind in ("shuffle", "flip"))
    assert shuffled.r2[0] > 0.8
    assert shuffled.p() > 0.05
    assert shuffled.quantile(0.5) > 0.8
    assert flipped.p() == 0.01
    assert flipped.quantile() < 0.3


def slow(rng, rho, T, n):
    x = np.empty((T, n))
    x[0] = rng.normal(size=n)
    for t in range(1, T):
        x[t] = rho * x[t - 1] + np.sqrt(1.0 - rho**2) * rng.normal(size=n)
    return x


def test_p_values_of_unrelated_runs_are_uniform_though_steps_are_correlated():
    # 19 surrogates: p <= 0.05 means that the run beats all. Binomial(200, .05): at most 18 with 99.5%.
    rng = np.random.default_rng(7)
    independent = together = alone = 0
    for k in range(200):
        grad, update = rng.normal(size=(60, 3)), rng.normal(size=(60, 3))
        independent += surrogates(grad=grad, update=update, family="scalar", kind="flip", count=19, rng=k).p() <= 0.05
        grad, update = slow(rng, 0.9, 160, 1), slow(rng, 0.9, 160, 1)
        options = {"grad": grad, "update": update, "family": "scalar", "kind": "flip", "count": 19, "rng": k}
        together += surrogates(length=16, **options).p() <= 0.05
        alone += surrogates(length=1, **options).p() <= 0.05
    assert independent <= 18
    assert together <= 18
    assert alone > 25  # steps taken to be independent: chance looks too poor


def test_surrogates_in_a_selection():
    runs = runs_of_known_geometry(T=60)
    scalars = Recorder()
    for y, g in zip(*runs["descent"], strict=True):
        scalars.step(grad=y, update=g)
    found = select(
        {"scaled": runs["scaled"], "none": runs["none"], "scalars": scalars}, ("scalar",), surrogates=19, rng=0
    )
    p = found.column(["p_shuffle", "p_flip", "null_shuffle", "null_flip"])[:, 0]
    assert p[0, :2].tolist() == [0.05, 0.05]
    assert p[1, 0] > 0.05
    assert p[1, 1] > 0.05
    assert np.isnan(p[2, [0, 2]]).all()
    assert p[2, 1] == 0.05
    assert np.nanmax(p[:, 2:]) < 0.3
    assert "p_shuffle" in found.table()


@pytest.mark.parametrize(
    "arguments", [{"count": 0}, {"holdout": 0.0}, {"length": 0}, {"kind": "reverse"}, {"family": "round"}]
)
def test_bad_surrogates(arguments):
    grad = np.random.default_rng(0).normal(size=(20, 3))
    with pytest.raises(ValueError, match="expected"):
        surrogates(**({"grad": grad, "update": -grad} | arguments))
    found = surrogates(grad=grad, update=-grad, family="scalar", count=3, rng=0)
    with pytest.raises(ValueError, match="expected block"):
        found.p("w")
    assert json.loads(json.dumps(found.to_dict()))["p"] == [0.25]


def test_no_score_has_no_p():
    grad = np.zeros((20, 3))
    grad[:10] = 1.0  # nothing to explain later
    found = surrogates(grad=grad, update=-np.ones((20, 3)), family="scalar", count=3, rng=0)
    assert np.isnan(found.p())
    assert np.isnan(found.quantile())


# Windows --------------------------------------------------------------------------------------------------------------


def test_windows_are_sums_of_updates_and_means_of_gradients():
    rng = np.random.default_rng(8)
    grad, update = rng.normal(size=(2, 23, 4)).astype(np.float32)
    steps = over_windows(steps_of(None, grad, update, None), 5)
    assert steps.total == 4
    for k, (step, other) in enumerate(zip(steps.pairs(True), map(steps.at, range(4), [True] * 4), strict=True)):
        at = slice(5 * k, 5 * k + 5)
        for found in (step, other):
            assert found.number == 5 * k
            np.testing.assert_allclose(found.grad.flat(), grad[at].astype(float).mean(axis=0), rtol=1e-14)
            np.testing.assert_allclose(found.update.flat(), update[at].astype(float).sum(axis=0), rtol=1e-14)
    whole = identify(grad=grad[:20], update=update[:20], window=5, family="scalar", holdout=0.5, rng=0)["(all)"]
    by_hand = identify(
        grad=grad[:20].astype(float).reshape(4, 5, 4).mean(axis=1),
        update=update[:20].astype(float).reshape(4, 5, 4).sum(axis=1), family="scalar", holdout=0.5, rng=0,
    )["(all)"]  # fmt: skip
    assert whole.r2 == pytest.approx(by_hand.r2, rel=1e-12)
    stream = identify(zip(grad, update, strict=True), "diagonal", steps=23, window=5, holdout=0.5, rng=0)
    assert stream["(all)"].r2 == identify(grad=grad, update=update, window=5, holdout=0.5, rng=0)["(all)"].r2


def test_windows_with_a_missing_or_bad_step_are_left_out():
    rng = np.random.default_rng(9)
    grad = rng.normal(size=(24, 3))
    bad = grad.copy()
    bad[5, 0] = np.nan
    found = identify(grad=bad, update=-grad, window=4, family="scalar", rng=0)
    assert (found.fitted_steps, found.held_out) == (3, (16, 20))
    assert "1 steps are left out" in " ".join(found["(all)"].notes)
    with Recorder(keep="vectors") as recorder:
        for t in range(24):
            if t == 9:
                recorder.skip("no gradient")
            else:
                recorder.step(grad=grad[t], update=-grad[t])
    found = identify(recorder, "scalar", window=4, rng=0)
    assert found.fitted_steps + len(found.held_out) == 4  # of five windows one has the gap
    scalars = Recorder()
    scalars.step(grad=grad[0], update=-grad[0])
    with pytest.raises(ValueError, match="window=2 needs the vectors"):
        identify(scalars, "scalar", window=2)
    for window in (0, -1, 1.5):
        with pytest.raises(ValueError, match="expected window"):
            identify(grad=grad, update=-grad, window=window)
    with pytest.raises(ValueError, match="at least window=30"):
        identify(grad=grad, update=-grad, window=30)


def heavy_ball(gradient, theta, mu, lr, T):
    velocity, grads, velocities = np.zeros_like(theta), [], [np.zeros_like(theta)]
    for t in range(T):
        grads.append(gradient(theta, t))
        velocity = mu * velocity - lr * grads[-1]
        velocities.append(velocity)
        theta = theta + velocity
    return np.array(grads), np.array(velocities)


@pytest.mark.parametrize("mu", [0.5, 0.9])
def test_momentum_is_scalar_over_windows_longer_than_its_memory(mu):
    """On a quadratic with noisy gradients; the bound is that of `over_windows`, an identity of heavy ball."""
    rng = np.random.default_rng(10)
    h = np.geomspace(1e-3, 0.3, 10)
    noise = rng.normal(size=(4000, 10)) * 0.5
    lr = 0.05
    grad, velocity = heavy_ball(lambda x, t: h * x + noise[t], rng.normal(size=10), mu, lr, 4000)
    scores = []
    for w in (1, 2, 5, 20, 100):
        fit = identify(grad=grad, update=velocity[1:], family="scalar", window=w, holdout=0.0)["(all)"]
        mean = grad.reshape(-1, w, 10).mean(axis=1)
        left = mu / (lr * w) * (velocity[:-1][::w] - velocity[1:][w - 1 :: w])
        bound = 1.0 - (left**2).sum() / (mean**2).sum()
        # The identity itself, then the least-squares m, which cannot do worse than (1 - mu)/(lr w).
        total = velocity[1:].reshape(-1, w, 10).sum(axis=1)
        np.testing.assert_allclose((1.0 - mu) / (lr * w) * total, -mean + left, rtol=1e-9, atol=1e-12)
        assert fit.r2_in_sample >= bound - 1e-12
        held = identify(grad=grad, update=velocity[1:], family="scalar", window=w, rng=0)["(all)"]
        scores.append(held.r2)
    assert np.all(np.diff(scores) > 0.0)
    assert scores[0] < 1.0 - mu**2 + 0.15
    # Independent gradients would give 1 - 2 mu/(1 + mu) mu/(w (1 - mu)) + O(1/w^2).
    assert scores[-1] > 1.0 - 2.0 * mu / (100 * (1.0 - mu))


@pytest.mark.parametrize("mu", [0.5, 0.9])
def test_momentum_on_independent_gradients_scores_as_derived(mu):
    rng = np.random.default_rng(11)
    noise = rng.normal(size=(20000, 4))
    grad, velocity = heavy_ball(lambda x, t: noise[t], np.zeros(4), mu, 0.1, 20000)
    for w in (1, 4, 16, 64):
        k = np.arange(w)
        s1 = float(((w - k) * mu**k).sum())
        expected = (1.0 - mu**2) * s1**2 / (w * (2.0 * s1 - w))
        fit = identify(grad=grad, update=velocity[1:], family="scalar", window=w, holdout=0.5, rng=0)["(all)"]
        # Four standard errors: the interval is +- 1.96 of them.
        error = (fit.r2_high - fit.r2_low) / 3.92
        assert fit.r2 == pytest.approx(expected, abs=4.0 * error)
        assert error < 0.03
    assert expected > (0.95 if mu == 0.5 else 0.7)
