"""Distances between the metrics of consecutive steps, from recorded products, against steepest.distance on vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.linalg import eigh

import oracles
import steepest
from steepest.recording import Recording, recording

SHAPES = {"w": (5, 4), "b": (3,), "pair": (2,), "one": ()}


def data(steps: int = 8, change: float = 1.0, seed: int = 5, dtype: Any = np.float64) -> dict[str, Any]:
    """Gradients and updates that move by `change` from step to step."""
    rng = np.random.default_rng(seed)
    grad, update = {}, {}
    for name, shape in SHAPES.items():
        g, u = rng.standard_normal((2, *shape))
        moves = change * rng.standard_normal((2, steps, *shape))
        grad[name] = np.asarray(g + moves[0]).astype(dtype)
        update[name] = np.asarray(-g + 0.7 * u + moves[1]).astype(dtype)
    return {"grad": grad, "update": update}


def vectors(x: dict[str, Any], name: str, t: int, block: str) -> Any:
    return x[name][block][t] if block in SHAPES else {key: v[t] for key, v in x[name].items()}


@pytest.mark.parametrize("change", [1.0, 1e-3, 1e-6, 1e-9, 0.0])
def test_against_the_vectors(change: float) -> None:
    x = data(change=change)
    rec = recording(**x)
    r = steepest.analyze(rec)["run"]
    compared = 0
    for t in range(len(rec)):
        for b, block in enumerate(rec.blocks):
            if t == 0 or not (r["status"][t - 1 : t + 1, b] == "ok").all():
                assert np.isnan(r["distance"][t, b])
                continue
            before, now = (
                steepest.metric(vectors(x, "grad", s, block), vectors(x, "update", s, block)) for s in (t - 1, t)
            )
            d = steepest.distance(before, now)
            tolerance = 2 * d.error + 1e-9 * d.value
            assert r["distance"][t, b] == pytest.approx(d.value, abs=tolerance)
            assert r["distance_bulk"][t, b] == pytest.approx(d.bulk, abs=tolerance)
            assert r["distance_plane"][t, b] == pytest.approx(d.plane, abs=tolerance)
            compared += 1
    assert compared > 12


@pytest.mark.parametrize("psi", [1e-7, 0.5, np.pi / 2 - 1e-6])
def test_small_and_large_angles(psi: float) -> None:
    pairs = [oracles.pair(7, psi, rho, 1.0, rng=seed) for seed, rho in ((0, 1.0), (1, 3.0))]
    grad, update = (np.stack([p[i] for p in pairs]) for i in (0, 1))
    r = steepest.analyze(recording(grad=grad, update=update))["run"]
    dense = [oracles.dense_metric(*p) for p in pairs]
    assert r["distance"][1, 0] > 0
    if psi == 0.5:  # within reach of a dense double computation
        expected = np.linalg.norm(np.log(eigh(dense[1], dense[0], eigvals_only=True)))
        assert r["distance"][1, 0] == pytest.approx(expected, rel=1e-9)
    metrics = [steepest.metric(*p) for p in pairs]
    assert r["distance"][1, 0] == pytest.approx(steepest.distance(*metrics).value, rel=1e-9)


@pytest.mark.parametrize(("grad", "update"), [(1e-140, 1e100), (1e120, 1e120), (1.0, 1e-280)])
def test_units_do_not_matter(grad: float, update: float) -> None:
    x = data()
    plain = steepest.analyze(recording(**x))["run"]
    scaled = steepest.analyze(
        recording(
            grad={k: v * grad for k, v in x["grad"].items()}, update={k: v * update for k, v in x["update"].items()}
        )
    )["run"]
    np.testing.assert_allclose(scaled["distance"], plain["distance"], rtol=1e-9, atol=1e-13)


def test_twice_the_metric() -> None:
    """AIRM(M, lambda M) = sqrt(n) |log lambda|."""
    rng = np.random.default_rng(0)
    g = rng.standard_normal(30)
    u = -g + 0.5 * rng.standard_normal(30)
    r = steepest.analyze(recording(grad=np.stack([g, g, g]), update=np.stack([u, 0.5 * u, 1e-3 * u])))["run"]
    np.testing.assert_allclose(r["distance"][1:, 0], np.sqrt(30) * np.log([2.0, 500.0]), rtol=1e-14)
    np.testing.assert_allclose(r["path_length"][:, 0], np.sqrt(30) * np.log([1.0, 2.0, 1000.0]), rtol=1e-14)


def test_gaps_have_no_distance() -> None:
    x = np.ones(3)
    writer = steepest.Recorder(lag=1)
    writer.step(grad=x, update=-x)
    writer.step(grad=x, update=x)  # ascent
    writer.step(grad=x, update=-x)
    writer.step(grad=2 * x, update=-x)
    writer.skip()
    writer.step(grad=x, update=-x)
    r = steepest.analyze(writer)["run"]
    np.testing.assert_array_equal(np.isfinite(r["distance"][:, 0]), [False, False, False, True, False, False])
    assert r["path_length"][-1, 0] == pytest.approx(np.sqrt(3) * np.log(2))
    every = steepest.Recorder(lag=1, every=3)
    for _ in range(7):
        every.step(grad=x, update=-x)
    r = steepest.analyze(every)["run"]
    assert r.step.tolist() == [0, 1, 3, 4, 6]
    np.testing.assert_array_equal(np.isfinite(r["distance"][:, 0]), [False, True, False, True, False])


def test_without_lag_there_is_none() -> None:
    r = steepest.analyze(recording(**data(), lag=0))["run"]
    for name in ("distance", "distance_bulk", "distance_plane", "path_length"):
        assert np.isnan(r[name]).all()
        assert r[name].shape == (8, 5)
    assert any("lag=0" in note for note in r.notes)


def test_blocks_and_progress(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    rec: Recording = recording(**data())
    whole = steepest.analyze(rec)["run"]["distance"]
    some = steepest.analyze(rec, blocks=["b"], progress=True)["run"]["distance"]
    np.testing.assert_array_equal(some, whole[:, [0, 2]])
    assert capsys.readouterr() == ("", "")  # a bar appears on a terminal only
