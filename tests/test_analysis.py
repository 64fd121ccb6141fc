"""Analysis: each column against the Alignment of the row, and what data cannot give."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import steepest
from steepest.analysis.columns import COLUMNS
from steepest.recording import Recording, recording
from steepest.row_format import RecordingInfo, row_dtype
from steepest.step_rows import scalar_row

SHAPES = {"w": (4, 3), "b": (5,), "scale": ()}


def run(steps: int = 12, seed: int = 1, dtype: Any = np.float64) -> dict[str, Any]:
    """A run with steps of every kind: grad, update and loss as arguments of `recording`."""
    rng = np.random.default_rng(seed)
    grad = {name: rng.standard_normal((steps, *shape)).astype(dtype) for name, shape in SHAPES.items()}
    update = {
        name: (-0.3 * x + 0.2 * rng.standard_normal(x.shape)).astype(dtype) * 2.0 ** -rng.integers(0, 40)
        for name, x in grad.items()
    }
    for name in SHAPES:
        update[name][1] = -0.5 * grad[name][1]  # psi = 0
        update[name][2] = 0.5 * grad[name][2]  # ascent
        update[name][3] = 0.0
        grad[name][4] = 0.0
    grad["w"][5, 0, 0] = np.nan
    return {"grad": grad, "update": update, "loss": np.linspace(2.0, 1.0, steps)}


@pytest.fixture(scope="module")
def rec() -> Recording:
    return recording(**run(), params={name: np.ones((12, *shape)) for name, shape in SHAPES.items()})


def same(a: float, b: float, rtol: float = 1e-15) -> bool:
    return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=rtol)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_columns_are_those_of_the_alignments(dtype: Any) -> None:
    rec = recording(**run(dtype=dtype))
    r = steepest.analyze(rec, pair="continuous").runs["run"]
    for t in range(len(rec)):
        for b, block in enumerate(rec.blocks):
            a = rec.alignment(t, block)
            assert r["status"][t, b] == a.status
            assert same(r["psi"][t, b], a.angle)
            assert same(r["cos"][t, b], a.cosine, 0.0)
            assert same(r["sin"][t, b], a.sine, 0.0)
            assert same(r["grad_norm"][t, b], a.grad_norm)
            assert same(r["update_norm"][t, b], a.update_norm)
            assert same(r["rho"][t, b], a.rho)
            assert same(r["cond_min"][t, b], a.cond_min, 4e-16 if a.size > 1 else 0.0)
            assert same(r["alpha"][t, b], a.alpha_opt, 4e-16)
            if not math.isnan(a.angle):
                assert bool(r["within_rounding"][t, b]) == a.within_rounding
                assert same(r["psi_floor"][t, b], a.psi_floor)
                assert same(r["null_isotropic"][t, b], np.pi / 2 - a.null_band()[0], 1e-12)
                assert same(r["null_sign_flip"][t, b], np.pi / 2 - a.null_band("sign-flip")[0], 1e-12)
            if a.status == "ok":
                spectrum = steepest.spectral.optimal_eigenvalues(a.cosine, a.sine)
                assert same(r["lam_min"][t, b], a.rho * spectrum[0], 1e-15)
                assert same(r["lam_max"][t, b], a.rho * spectrum[2], 1e-15)
                assert same(r["log_cond"][t, b], steepest.spectral.optimal_log_condition_number(a.cosine, a.sine))
            else:
                assert np.isnan(
                    [r[name][t, b] for name in ("cond_min", "log_cond", "alpha", "lam_min", "lam_max")]
                ).all()


def test_eigenvalues_are_those_of_the_metric(rec: Recording) -> None:
    r = steepest.analyze(rec).runs["run"]
    for t in np.flatnonzero(r["status"][:, 0] == "ok"):
        spectrum = r.metric(int(t)).spectrum().values
        assert r["lam_min"][t, 0] == pytest.approx(spectrum[0], rel=1e-13)
        assert r["lam_max"][t, 0] == pytest.approx(spectrum[-1], rel=1e-13)


@pytest.mark.parametrize("psi", [1e-9, 1e-4, 1.0, np.pi / 2 - 1e-9])
@pytest.mark.parametrize("rho", [1e-150, 1.0, 1e150])
def test_extreme_angles_and_norms(psi: float, rho: float) -> None:
    from mpmath import mp, mpf

    import oracles

    grad, update = oracles.pair(5, psi, rho, 1.0, rng=2)
    r = steepest.analyze(recording(grad=grad[None], update=update[None])).runs["run"]
    with mp.workdps(60):
        g, u = [[mpf(float(x)) for x in v] for v in (grad, update)]
        yy, yg, gg = (mp.fdot(a, b) for a, b in ((g, g), (g, u), (u, u)))
        c, ratio = -yg / mp.sqrt(yy * gg), mp.sqrt(yy / gg)
        s = mp.sqrt(1 - c * c)
        for name, expected in {
            "psi": mp.atan2(s, c),
            "alpha": ratio / c,
            "lam_min": ratio * (1 - s) / c,
            "lam_max": ratio * (1 + s) / c,
            "cond_min": ((1 + s) / c) ** 2,
            "log_cond": 2 * mp.log((1 + s) / c),
        }.items():
            assert abs(mpf(float(r[name][0, 0])) / expected - 1) < 1e-12, name


def test_no_gradient_still_says_where_the_loss_falls() -> None:
    loss = np.array([3.0, 4.0, 2.0, 3.0, 1.0, 2.0, 0.0])
    rec = recording(params=np.cumsum(np.ones((7, 2)), axis=0), loss=loss)
    a = steepest.analyze(rec)
    r = a.runs["run"]
    assert a.counts()["run"]["(all)"] == {"no_gradient": 6, "no_update": 1}
    assert np.isnan(r["psi"]).all()
    assert not r["within_rounding"].any()
    assert any("not identifiable" in note for note in a.notes)
    found = r.effectiveness((1, 2))
    assert found.share == (0.5, 1.0)
    assert found.least_window == 2
    assert found.largest_rise == (1.0, -1.0)
    assert np.isfinite(r["update_norm"][:-1]).all()


def test_scalar_rows_of_an_accelerator() -> None:
    rows = np.zeros((2, 1), row_dtype(0))
    scalar_row(rows[0], 0, 0, "float32", (4.0, 0.0, 1e-6), (-2.0, 0.0, 1e-6), (4.0, 0.0, 1e-6), loss=1.0)
    scalar_row(rows[1], 1, 0, "float32", (4.0, 0.0, 1e-6), (-1e-9, 0.0, 1e-6), (4.0, 0.0, 1e-6), loss=0.5)
    r = steepest.analyze(Recording(RecordingInfo(None, ((9,),)), rows)).runs["run"]
    assert r["status"].ravel().tolist() == ["ok", "undecided"]
    assert r["psi"][0, 0] == pytest.approx(np.pi / 3)
    assert np.isnan(r["cond_min"][1, 0])


def test_skipped_and_resumed_steps(tmp_path: Path) -> None:
    x = np.arange(1.0, 4.0)
    with steepest.Recorder(tmp_path / "run") as writer:
        writer.step(grad=x, update=-x, loss=1.0)
        writer.skip("overflow")
    with steepest.Recorder(tmp_path / "run", resume=True) as writer:
        writer.step(grad=x, update=-x, loss=0.5)
        a = steepest.analyze(writer)
    r = a.runs["run"]
    assert r["status"][:, 0].tolist() == ["ok", "skipped", "ok"]
    assert r["resumed"].tolist() == [False, False, True]
    assert any("resumed 1" in note for note in a.notes)
    assert steepest.analyze(tmp_path / "run").counts() == a.counts()


def test_curvature_and_bound_of_a_quadratic() -> None:
    rng = np.random.default_rng(0)
    hessian = np.diag([1.0, -0.5, 3.0])
    theta = rng.standard_normal((8, 3))
    grad, update = theta @ hessian, np.diff(theta, axis=0)
    loss = 0.5 * np.einsum("ti,ij,tj->t", theta, hessian, theta)
    rec = recording(params=theta, grad=grad, loss=loss, objective="fixed")
    r = steepest.analyze(rec).runs["run"]
    expected = np.einsum("ti,ij,tj->t", update, hessian, update) / np.sum(update**2, axis=1)
    np.testing.assert_allclose(r["curvature"][:-1, 0], expected, rtol=1e-11)
    falls = 0
    for t in range(7):
        if loss[t + 1] >= loss[t]:
            assert np.isnan(r["step_bound"][t, 0])
            continue
        falls += 1
        d, h = update[t], expected[t]
        left = grad[t] + (loss[t + 1] - loss[t] - grad[t] @ d) / (d @ d) * d
        least = steepest.metric(left, d).eigvalsh()[0]
        assert r["step_bound"][t, 0] == pytest.approx(np.inf if h >= 0 else 2 * least / abs(h), rel=1e-10)
        # eq (17) with this h and learning rate k times the present one is positive definite up to the bound
    assert falls >= 2
    assert np.isnan(steepest.analyze(recording(params=theta, grad=grad, loss=loss)).runs["run"]["curvature"]).all()


def test_effective_over_the_window() -> None:
    loss = np.array([3.0, 4.0, 2.0, np.nan, 1.0])
    rec = recording(grad=np.ones((5, 1)), update=-np.ones((5, 1)), loss=loss)
    np.testing.assert_array_equal(steepest.analyze(rec).runs["run"]["effective"], [0, 1, np.nan, np.nan, np.nan])
    r = steepest.analyze(rec, pair="continuous", window=2).runs["run"]
    np.testing.assert_array_equal(r["effective"], [1, np.nan, 1, np.nan, np.nan])
    np.testing.assert_array_equal(r["dloss"], [1, -2, np.nan, np.nan, np.nan])


def test_steps_that_are_not_recorded_are_not_jumped_over() -> None:
    writer = steepest.Recorder(every=3)
    for t in range(10):
        writer.step(grad=np.ones(2), update=-np.ones(2), loss=10.0 - t)
    r = steepest.analyze(writer, pair="continuous", window=3).runs["run"]
    assert r.step.tolist() == [0, 3, 6, 9]
    assert np.isnan(r["dloss"]).all()
    np.testing.assert_array_equal(r["effective"], [1, 1, 1, np.nan])
    assert r.effectiveness((1, 3)).share[1] == 1.0
    assert math.isnan(r.effectiveness((1, 3)).share[0])
    assert r.effectiveness().least_window == 3


def test_blocks_are_chosen(rec: Recording) -> None:
    whole = steepest.analyze(rec).runs["run"]
    r = steepest.analyze(rec, blocks="b").runs["run"]
    assert r.blocks == ("(all)", "b")
    assert r.sizes == (18, 5)
    for name in COLUMNS:
        if COLUMNS[name].per_block:
            np.testing.assert_array_equal(r[name], whole[name][:, [0, 2]])


def test_chunks_do_not_show(rec: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    from steepest.analysis import pair_rows

    expected = steepest.analyze(rec, pair="displacement").runs["run"]
    monkeypatch.setattr(pair_rows.chunks, "__defaults__", (4,))  # one step at a time
    for pair in ("continuous", "displacement"):
        r = steepest.analyze(rec, pair=pair).runs["run"]
        expected = recording_rows(rec, pair)
        for name, values in expected.items():
            np.testing.assert_array_equal(r[name], values, err_msg=name)


def recording_rows(rec: Recording, pair: str) -> dict[str, Any]:
    from steepest.analysis.pair_rows import continuous_rows
    from steepest.analysis.step_pairs import StepPair, step_pair_rows

    single = np.array(rec.sizes) == 1
    if pair == "continuous":
        return continuous_rows(rec.rows, single)
    return step_pair_rows(rec.rows, rec.step, rec.loss, StepPair.of("displacement", 1), single)


def test_candidates_are_runs_of_their_own() -> None:
    writer = steepest.Recorder()
    rng = np.random.default_rng(0)
    for _ in range(4):
        g, h = rng.standard_normal((2, 5))
        writer.step(loss={"error": 1.0, "energy": 2.0}, grad={"error": g, "energy": h}, update=-g)
    a = steepest.analyze({"rule": writer})
    assert list(a.runs) == ["rule/error", "rule/energy"]
    assert a["rule/error"].candidate == "error"
    np.testing.assert_allclose(a["rule/error"]["psi"], 0.0, atol=1e-15)
    assert (a["rule/energy"]["psi"] > 0.1).all()
    assert [row["candidate"] for row in a.summary()] == ["error", "energy"]


def test_summary(rec: Recording) -> None:
    a = steepest.analyze(rec)
    rows = a.summary()
    assert [row["block"] for row in rows] == list(rec.blocks)
    for row, block in zip(rows, rec.blocks, strict=True):
        assert {k: row[k] for k in rec.counts(block)} == rec.counts(block)
        ok = [x for x in (rec.alignment(t, block) for t in range(len(rec))) if x.status == "ok"]
        assert row["psi_median"] == pytest.approx(np.median([x.angle for x in ok]))
        assert row["cond_min_median"] == pytest.approx(np.median([x.cond_min for x in ok]))
        assert type(row["psi_median"]) is float
        assert type(row["ok"]) is int
    assert rows[0]["loss_first"], rows[0]["loss_last"] == (2.0, 1.0)


def test_everything_is_read_only(rec: Recording) -> None:
    a = steepest.analyze(rec)
    for name in COLUMNS:
        with pytest.raises(ValueError, match="read-only"):
            a["run"][name][...] = 0
    with pytest.raises(AttributeError):
        a.runs["run"].window = 2  # type: ignore[misc]


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_short_recordings(steps: int) -> None:
    rec = Recording(RecordingInfo(("w", "b"), ((2,), (1,)), "fixed", lag=1), np.zeros((0, 3), row_dtype(1)))
    if steps:
        x = {"w": np.ones((steps, 2)), "b": np.ones((steps, 1))}
        rec = recording(grad=x, update={k: -v for k, v in x.items()}, loss=np.arange(steps), objective="fixed")
    a = steepest.analyze(rec)
    for name in COLUMNS:
        assert len(a["run"][name]) == steps
    assert len(a.summary()) == 3
    assert a.notes
    assert repr(a)
    assert a["run"].effectiveness().least_window is None


def test_metric_needs_vectors(rec: Recording) -> None:
    a = steepest.analyze(rec)
    grad, update = ({k: v[0] for k, v in run()[name].items()} for name in ("grad", "update"))
    expected = steepest.metric(grad, update)
    assert a.metric(0).cond() == expected.cond()
    assert a.metric(0, block="w").cond() == steepest.metric(grad["w"], update["w"]).cond()
    assert a.metric(0, alpha=2.0).alpha == 2.0
    with pytest.raises(ValueError, match="keep='vectors'"):
        steepest.analyze(Recording(rec.info, rec.rows)).metric(0)
    with pytest.raises(ValueError, match="name of a run"):
        steepest.analyze({"a": rec, "b": rec}).metric(0)
    with pytest.raises(steepest.NotDescentError):
        a.metric(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pair": "midpoint"}, "expected pair"),
        ({"window": 0}, "expected window"),
        ({"window": 2}, "record with lag=2"),
        ({"pair": "trapezoid", "window": 3}, "displacement"),
        ({"blocks": ["nothing"]}, "nothing"),
    ],
)
def test_what_is_refused(rec: Recording, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        steepest.analyze(rec, **options)


def test_wrong_input(rec: Recording, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Recording"):
        steepest.analyze(np.ones(3))
    with pytest.raises(ValueError, match="at least one run"):
        steepest.analyze({})
    with pytest.raises(TypeError, match="names of runs"):
        steepest.analyze({1: rec})
    with pytest.raises(FileNotFoundError):
        steepest.analyze(tmp_path / "none")
    with pytest.raises(KeyError, match="no column 'angle'"):
        steepest.analyze(rec)["run"]["angle"]
    with pytest.raises(KeyError, match="no run"):
        steepest.analyze(rec)["other"]


def test_rate_is_never_differenced() -> None:
    x = np.exp(-np.arange(5.0))[:, None] * [1.0, 2.0]
    rec = recording(params=x, grad=x, update=-x, time=np.arange(5.0), loss=np.sum(x * x, axis=1), objective="fixed")
    a = steepest.analyze(rec)
    assert a["run"].pair == "continuous"
    assert np.isnan(a["run"]["curvature"]).all()
    assert any("rate" in note for note in a.notes)
    for pair in ("trapezoid", "left", "displacement"):
        with pytest.raises(ValueError, match="rate"):
            steepest.analyze(rec, pair=pair)
    assert steepest.analyze(rec, window=2)["run"].pair == "continuous"


def test_gradient_source_is_explained() -> None:
    x = np.ones((3, 2))
    sentences = set()
    for source in ("rule", "evaluation", "estimate"):
        a = steepest.analyze(recording(grad=x, update=-x, gradient_source=source))
        assert a["run"].gradient_source == source
        sentences.add(a.notes[0])
    assert len(sentences) == 3


def test_pickles(rec: Recording) -> None:
    a = steepest.analyze(rec)
    expected = a["run"]["psi"].copy()
    again = pickle.loads(pickle.dumps(a))
    np.testing.assert_array_equal(again["run"]["psi"], expected)
    np.testing.assert_array_equal(again["run"]["distance"], a["run"]["distance"])


def test_metric_of_vectors_in_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    rng = np.random.default_rng(2)
    steps = [{key: {"w": rng.standard_normal((3, 2)), "b": rng.standard_normal(2)} for key in "gh"} for _ in range(3)]
    with steepest.Recorder(tmp_path / "run", keep="vectors") as writer:
        for x in steps:
            update = {name: -(x["g"][name] + x["h"][name]) for name in x["g"]}
            writer.step(grad={"g": x["g"], "h": x["h"]}, loss={"g": 1.0, "h": 2.0}, update=update)
    a = steepest.analyze(tmp_path / "run")
    for t, x in enumerate(steps):
        update = {name: -(x["g"][name] + x["h"][name]) for name in x["g"]}
        for key in "gh":
            r = a[f"run/{key}"]
            if r["status"][t, 0] != "ok":
                continue
            assert r.metric(t).cond() == steepest.metric(x[key], update).cond()
            assert r.metric(t).cond() == pytest.approx(r["cond_min"][t, 0], rel=1e-13)
    with pytest.raises(ValueError, match="step 9"):
        a.metric(9, run="run/g")
