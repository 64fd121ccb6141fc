"""Windows over which the loss falls, against the definition (3) tried one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import steepest
from steepest.analysis.windows import change_over, effectiveness, least_window

Losses = st.lists(st.one_of(st.integers(-3, 12).map(float), st.just(np.nan), st.just(np.inf)), max_size=24)


def least_by_definition(step: np.ndarray, loss: np.ndarray, longest: int) -> int | None:
    known = {int(s): x for s, x in zip(step, loss, strict=True) if not np.isnan(x)}
    for w in range(1, longest + 1):
        pairs = [(x, known[s + w]) for s, x in known.items() if s + w in known]
        if pairs and all(after < x for x, after in pairs):
            return w
    return None


@settings(max_examples=300, deadline=None)
@given(Losses, st.integers(1, 4), st.integers(0, 30), st.randoms(use_true_random=False))
def test_least_window(losses: list[float], every: int, longest: int, random: object) -> None:
    # A falling trend, so that some windows work.
    loss = np.array(losses) - 1.5 * np.arange(len(losses))
    step = 7 + every * np.arange(len(losses))
    keep = np.array([random.random() < 0.8 for _ in losses], bool)  # type: ignore[attr-defined]
    step, loss = step[keep], loss[keep]
    assert least_window(step, loss, longest) == least_by_definition(step, loss, longest)


def test_period_two() -> None:
    loss = np.repeat(np.arange(20.0)[::-1], 2) + np.tile([0.0, 30.0], 20)
    found = effectiveness(np.arange(40), loss, (1, 2, 3, 4))
    assert found.least_window == 2
    np.testing.assert_allclose(found.share, [19 / 39, 1.0, 18 / 37, 1.0])
    assert found.steps == (39, 38, 37, 36)
    np.testing.assert_allclose(found.largest_rise, [30.0, -1.0, 29.0, -2.0])
    assert found.to_dict()["windows"] == [1, 2, 3, 4]
    assert "every step from 2" in str(found)


def test_none_and_by_how_much() -> None:
    found = effectiveness(np.arange(6), np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), (1, 2, 100))
    assert found.least_window is None
    assert found.largest_rise[:2] == (1.0, 2.0)
    assert found.steps[2] == 0
    assert np.isnan(found.share[2])
    assert "no window up to 2" in str(found)


def test_a_window_longer_than_half_the_run_is_not_searched() -> None:
    loss = np.array([5.0, 6.0, 7.0, 8.0, 1.0])
    assert effectiveness(np.arange(5), loss).least_window is None
    assert effectiveness(np.arange(5), loss, longest=4).least_window == 4


def test_change_over_gaps() -> None:
    step, loss = np.array([0, 1, 3, 4]), np.array([4.0, 3.0, 2.0, np.nan])
    np.testing.assert_array_equal(change_over(step, loss, 1), [-1.0, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(change_over(step, loss, 2), [np.nan, -1.0, np.nan, np.nan])


def test_nothing_recorded() -> None:
    found = effectiveness(np.empty(0, np.int64), np.empty(0))
    assert found.least_window is None
    assert found.steps == (0, 0, 0)


def test_long_noisy_run_is_fast() -> None:
    rng = np.random.default_rng(0)
    loss = np.exp(-np.arange(200_000) / 5e4) + 0.01 * rng.standard_normal(200_000)
    found = least_window(np.arange(200_000), loss, 100_000)
    assert found is not None
    assert (loss[found:] < loss[:-found]).all()


def test_windows_below_one() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        effectiveness(np.arange(3), np.ones(3), (0,))


def test_each_run() -> None:
    x = np.ones((4, 1))
    recordings = {
        name: steepest.recording(grad=x, update=-x, loss=loss)
        for name, loss in {"falls": [3.0, 2.0, 1.0, 0.0], "rises": [0.0, 1.0, 2.0, 3.0]}.items()
    }
    found = steepest.analyze(recordings).effectiveness((1,))
    assert {name: (f.share, f.least_window) for name, f in found.items()} == {
        "falls": ((1.0,), 1),
        "rises": ((0.0,), None),
    }
