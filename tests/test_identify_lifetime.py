"""How long a geometry predicts: against simulations of geometries that change at a known pace."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest

import steepest
from steepest import plot
from steepest.identify import identify, lifetime
from steepest.recorder import Recorder


@pytest.fixture(autouse=True)
def no_display():
    """Draw without a display, and close what pyplot opened."""
    pytest.importorskip("matplotlib").use("Agg")
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def changing(rng, tau, T, n=20, noise=0.0):
    """Elements exp(z) of the diagonal, z of variance 1 with correlation exp(-lag/tau)."""
    rho = np.exp(-1.0 / tau)
    z = np.empty((T, n))
    z[0] = rng.normal(size=n)
    for t in range(1, T):
        z[t] = rho * z[t - 1] + np.sqrt(1.0 - rho**2) * rng.normal(size=n)
    g = rng.normal(size=(T, n))
    return -(np.exp(z) * g + noise * rng.normal(size=g.shape)), g


def expected_curve(rng, tau, window, lags, fraction, noise=0.0):
    """R2 at each lag and the lifetime from many independent windows, in plain NumPy."""
    many = 20000
    rho = np.exp(-1.0 / tau)
    T = window + max(lags)
    z, left, whole = rng.normal(size=many), np.zeros(len(lags)), np.zeros(len(lags))
    yg, gg = np.zeros(many), np.zeros(many)
    for t in range(T):
        g = rng.normal(size=many)
        y = np.exp(z) * g + noise * rng.normal(size=many)
        if t < window:
            yg, gg = yg + y * g, gg + g * g
        elif t - window + 1 in lags:
            k = lags.index(t - window + 1)
            left[k], whole[k] = ((y - np.maximum(yg / gg, 0.0) * g) ** 2).sum(), (y * y).sum()
        z = rho * z + np.sqrt(1.0 - rho**2) * rng.normal(size=many)
    r2 = 1.0 - left / whole
    below = np.flatnonzero(r2 <= fraction * r2[0])
    if not below.size:
        return r2, math.inf
    k = below[0]
    x = np.log(np.array(lags[k - 1 : k + 1]))
    return r2, float(np.exp(np.interp(-fraction * r2[0], -r2[k - 1 : k + 1], x)))


@pytest.mark.parametrize(("tau", "noise"), [(5, 0.0), (20, 0.0), (20, 1.0)])
def test_the_lifetime_of_a_geometry_that_changes_at_a_known_pace(tau, noise):
    lags = [1, 2, 4, 8, 16, 32, 64]
    curve, steps = expected_curve(np.random.default_rng(0), tau, 8, lags, 0.5, noise)
    assert math.isfinite(steps)
    rng = np.random.default_rng(1)
    inside = curve_inside = 0
    for _ in range(40):
        grad, update = changing(rng, tau, 1000, noise=noise)
        found = lifetime(grad=grad, update=update, family="diagonal", window=8, lags=lags, every=8, rng=0)["(all)"]
        assert found.status in ("ok", "none")
        if found.status == "ok":
            inside += found.low <= steps <= found.high
            assert found.low <= found.steps <= found.high
            assert f"after {found.steps:.3g} steps" in found.sentence
        curve_inside += found.r2_low[0] <= curve[0] <= found.r2_high[0]
    # Few windows are independent here, and exp(z) has heavy tails: less than 95% of 40, never far less.
    assert inside >= 32
    assert curve_inside >= 30


def test_lifetimes_follow_the_pace():
    rng = np.random.default_rng(2)
    found = [
        lifetime(grad=g, update=u, window=8, rng=0)["(all)"]
        for g, u in (changing(rng, tau, 1500) for tau in (3, 12, 48))
    ]
    assert [one.status for one in found] == ["ok"] * 3
    assert found[0].steps < found[1].steps < found[2].steps


def test_each_window_is_scored_by_the_steps_after_it():
    rng = np.random.default_rng(3)
    grad, update = changing(rng, 10, 60, n=5)
    found = lifetime(grad=grad, update=update, family="diagonal", window=6, lags=[1, 3, 10], every=5, rng=0)
    left, whole = np.zeros(3), np.zeros(3)
    begins = range(0, 60 - 6 - 10 + 1, 5)
    for begin in begins:
        fit = slice(begin, begin + 6)
        d = np.maximum(0.0, (-grad[fit] * update[fit]).sum(axis=0) / (update[fit] ** 2).sum(axis=0))
        for k, lag in enumerate((1, 3, 10)):
            at = begin + 5 + lag
            left[k] += ((-grad[at] - d * update[at]) ** 2).sum()
            whole[k] += (grad[at] ** 2).sum()
    assert found.windows == len(begins)
    np.testing.assert_allclose(found["(all)"].r2, 1.0 - left / whole, rtol=1e-12)
    # One window and lag 1: what identify itself says of one step held out.
    one = identify(grad=grad[:7], update=update[:7], holdout=1 / 7, rng=0)["(all)"]
    d = np.maximum(0.0, (-grad[:6] * update[:6]).sum(axis=0) / (update[:6] ** 2).sum(axis=0))
    assert one.r2 == pytest.approx(1.0 - ((-grad[6] - d * update[6]) ** 2).sum() / (grad[6] ** 2).sum())


def test_a_constant_geometry_lives_longer_than_observed():
    rng = np.random.default_rng(4)
    grad = rng.normal(size=(300, 4))
    update = -grad * [0.1, 0.2, 0.3, 0.4] + 0.05 * rng.normal(size=grad.shape)
    found = lifetime(grad=grad, update=update, window=20, rng=0)
    one = found["(all)"]
    assert (one.status, one.steps, one.high) == ("longer than observed", math.inf, math.inf)
    assert one.low == found.lags[-1] == 128
    assert "longer than observed, more than 128 steps" in one.sentence
    assert "longer than observed" in repr(found)
    np.testing.assert_allclose(one.r2, one.r2[0], atol=0.05)


def test_without_a_geometry_there_is_nothing_to_lose():
    rng = np.random.default_rng(5)
    called = [
        lifetime(grad=rng.normal(size=(200, 4)), update=rng.normal(size=(200, 4)), window=10, rng=0)["(all)"].status
        for _ in range(20)
    ]
    assert called.count("none") >= 18
    found = lifetime(grad=rng.normal(size=(200, 4)), update=rng.normal(size=(200, 4)), window=10, rng=0)["(all)"]
    assert np.isnan([found.steps, found.low, found.high]).all()
    assert "no geometry to lose" in found.sentence


def test_too_few_windows_and_steps_that_are_missing():
    rng = np.random.default_rng(6)
    grad = rng.normal(size=(40, 3))
    few = lifetime(grad=grad[:12], update=-grad[:12], window=8, rng=0)["(all)"]
    assert few.status == "too_few_windows"
    assert np.isnan(few.r2).all()
    grad[20, 1] = np.nan
    found = lifetime(grad=grad, update=-grad, window=4, lags=[1, 2], rng=0)
    assert found.windows == 35 - 6  # six windows would have fitted or been scored by step 20
    np.testing.assert_allclose(found["(all)"].r2, 1.0)
    nothing = lifetime(grad=np.zeros((40, 3)), update=np.ones((40, 3)), window=4, rng=0)["(all)"]
    assert nothing.status == "too_few_windows"


def test_every_form_of_data_gives_the_same():
    rng = np.random.default_rng(7)
    grad, update = changing(rng, 10, 80, n=6)
    named = [{"w": x[:, :4].reshape(-1, 2, 2), "b": x[:, 4:]} for x in (grad, update)]
    pairs = [tuple({k: x[t] for k, x in v.items()} for v in named) for t in range(80)]
    scalars = Recorder()
    for y, g in pairs:
        scalars.step(grad=y, update=g)
    rec = steepest.recording(grad=named[0], update=named[1])
    for family in ("scalar", "diagonal"):
        first = lifetime(grad=named[0], update=named[1], family=family, window=8, rng=0)
        assert [one.block for one in first.blocks] == ["(all)", "w", "b"]
        for x in [pairs, rec] + [scalars] * (family == "scalar"):
            other = lifetime(x, family, window=8, rng=0)
            for a, b in zip(first.blocks, other.blocks, strict=True):
                np.testing.assert_allclose(a.r2, b.r2, rtol=1e-10)
                np.testing.assert_allclose(a.r2_low, b.r2_low, rtol=1e-10)
        alone = lifetime(grad=named[0]["b"], update=named[1]["b"], family=family, window=8, rng=0)
        np.testing.assert_allclose(alone["(all)"].r2, first["b"].r2, rtol=1e-12)
    with pytest.raises(ValueError, match="keep='vectors'"):
        lifetime(scalars, "diagonal", window=8)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_units_out_of_the_range_of_squares(scale):
    grad, update = changing(np.random.default_rng(8), 10, 80, n=4)
    for family in ("scalar", "diagonal"):
        near = lifetime(grad=grad, update=update, family=family, window=8, rng=0)["(all)"]
        far = lifetime(grad=scale * grad, update=update, family=family, window=8, rng=0)["(all)"]
        np.testing.assert_allclose(far.r2, near.r2, rtol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 0}, "window"),
        ({"window": 40}, "window"),
        ({"lags": []}, "ascending lags"),
        ({"lags": [2, 1]}, "ascending lags"),
        ({"lags": [0, 1]}, "ascending lags"),
        ({"lags": [1, 33]}, "ascending lags"),
        ({"every": 0}, "expected every"),
        ({"fraction": 1.0}, "fraction"),
        ({"family": "round"}, "expected family"),
    ],
)
def test_bad_input(arguments, message):
    grad = np.random.default_rng(0).normal(size=(40, 3))
    with pytest.raises(ValueError, match=message):
        lifetime(**({"grad": grad, "update": -grad, "window": 8} | arguments))


def test_a_stream_is_refused():
    with pytest.raises(ValueError, match="expected steps="):
        lifetime(iter([(np.ones(2), -np.ones(2))]), window=1)
    found = lifetime(grad=np.ones((20, 2)), update=-np.ones((20, 2)), window=2, rng=0)
    with pytest.raises(ValueError, match="expected block"):
        found["w"]


def test_the_figure():
    rng = np.random.default_rng(9)
    grad, update = changing(rng, 10, 400)
    found = {
        "changing": lifetime(grad=grad, update=update, window=8, rng=0),
        "constant": lifetime(grad=grad, update=-0.1 * grad, window=8, rng=0),
        "none": lifetime(grad=grad, update=rng.normal(size=grad.shape), window=8, rng=0),
    }
    curves = plot.lifetime_data(found)
    for curve, one in zip(curves, found.values(), strict=True):
        np.testing.assert_array_equal(curve.r2, one["(all)"].r2)
        np.testing.assert_array_equal(curve.lag, one.lags)
        assert curve.status == one["(all)"].status
    assert [curve.status for curve in curves] == ["ok", "longer than observed", "none"]
    ax = plot.lifetime(found)
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names[0].startswith(f"changing: {curves[0].steps:.3g} steps (")
    assert names[1].startswith("constant: longer than")
    assert names[2] == "none: no geometry"
    drawn = ax.get_lines()[0].get_ydata()
    seen = curves[0].r2 >= -0.2
    np.testing.assert_array_equal(drawn[seen], curves[0].r2[seen])
    import matplotlib.pyplot as plt

    _, given = plt.subplots()
    assert found["constant"].plot(ax=given) is given
    assert plot.lifetime_data(found["constant"])[0].label == "diagonal"


def test_to_dict_and_pickle():
    grad, update = changing(np.random.default_rng(10), 5, 100, n=4)
    found = lifetime(grad=grad, update=update, window=8, rng=0)
    again = json.loads(json.dumps(found.to_dict()))
    assert again["blocks"][0]["r2"] == found["(all)"].r2.tolist()
    assert repr(pickle.loads(pickle.dumps(found))) == repr(found)
