"""The noise ceiling, and intervals and verdicts on runs where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from steepest.identify import compare, identify
from steepest.identify.ceiling import ceiling_of
from steepest.identify.scores import block_length


def slow(rng, rho, T, n):
    """Independent series of variance 1 with correlation rho from step to step."""
    x = np.empty((T, n))
    x[0] = rng.normal(size=n)
    for t in range(1, T):
        x[t] = rho * x[t - 1] + np.sqrt(1.0 - rho**2) * rng.normal(size=n)
    return x


def products(y, r):
    return np.stack([(y * y).sum(axis=1), (y * r).sum(axis=1), (r * r).sum(axis=1)], axis=1)


def both(residual, norm):
    return {"gradient": (residual, norm), "update": (residual, norm)}


# Its value ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("of_y", "of_r"), [(0.0, 0.7), (0.7, 0.0), (1.0, 0.5), (0.3, 3.0)])
def test_the_ceiling_is_the_share_of_the_signal(of_y, of_r):
    """|s|^2/(|s|^2 + |e|^2), of the noise in y times of that in r."""
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(4000, 8))
    grad = -(signal + of_y * rng.normal(size=signal.shape))
    consumed = signal + of_r * rng.normal(size=signal.shape)
    replicate = -(signal + of_r * rng.normal(size=signal.shape))  # as noisy as what the rule consumed
    fit = identify(grad=grad, update=0.1 * consumed, family="scalar", replicate=replicate, rng=0)["(all)"]
    expected = 1.0 / (1.0 + of_y**2) / (1.0 + of_r**2)
    error = (fit.ceiling.high - fit.ceiling.low) / 3.92
    assert error < 0.02
    assert fit.ceiling.value == pytest.approx(expected, abs=4.0 * error)
    assert fit.ceiling.any_rule == pytest.approx(1.0 / (1.0 + of_y**2), abs=0.03)
    assert fit.r2 <= fit.ceiling.any_rule + 0.02
    # The rule is of this family: its score is the ceiling.
    share = (fit.ceiling.relative_high - fit.ceiling.relative_low) / 3.92
    assert fit.ceiling.relative == pytest.approx(1.0, abs=4.0 * share)
    assert share < 0.02 or of_r == 3.0
    assert "of what their noise allows" in fit.verdict


def test_a_rule_that_averages_noise_beats_the_ceiling_but_not_the_bound_of_any_rule():
    """Momentum on a signal that changes slowly: what it consumed is less noisy than one gradient."""
    rng = np.random.default_rng(1)
    signal = np.repeat(rng.normal(size=(200, 6)), 40, axis=0)
    gradient = -signal + 1.5 * rng.normal(size=signal.shape)
    velocity = np.zeros(6)
    updates = []
    for g in gradient:
        velocity = 0.9 * velocity - 0.01 * g
        updates.append(velocity)
    evaluated = -signal + 0.5 * rng.normal(size=signal.shape)
    replicate = -signal + 1.5 * rng.normal(size=signal.shape)
    fit = identify(grad=evaluated, update=np.array(updates), family="scalar", replicate=replicate, rng=0)["(all)"]
    assert fit.ceiling.value == pytest.approx(1.0 / 1.25 / 3.25, abs=0.03)
    assert fit.r2 > fit.ceiling.high
    assert fit.ceiling.any_rule == pytest.approx(0.8, abs=0.03)
    assert fit.r2 < fit.ceiling.any_rule
    assert fit.ceiling.relative > 1.0


def test_a_wrong_family_stays_below_the_ceiling():
    rng = np.random.default_rng(2)
    rates = np.array([0.02, 0.1, 0.5, 2.0])
    signal = rng.normal(size=(2000, 4))
    consumed, replicate = (-signal + 0.5 * rng.normal(size=signal.shape) for _ in range(2))
    options = {"grad": -signal, "update": -rates * consumed, "replicate": replicate, "rng": 0}
    scalar, diagonal = (identify(family=family, **options)["(all)"] for family in ("scalar", "diagonal"))
    assert diagonal.ceiling.relative == pytest.approx(1.0, abs=0.05)
    assert scalar.ceiling.relative_high < 0.6
    assert scalar.ceiling.value == diagonal.ceiling.value


def test_a_family_that_filters_noise_does_not_pass_for_the_geometry():
    """Gradient descent by noisy gradients: shrinking the noisy inputs predicts the clean gradient better."""
    rng = np.random.default_rng(8)
    inputs = np.array([3.0, 1.0, 0.3, 0.3, 0.3])
    clean = rng.normal(size=(2000, 4, 5)) * inputs
    consumed, replicate = (-clean + 1.5 * rng.normal(size=clean.shape) for _ in range(2))
    options = {"grad": -clean, "update": 0.1 * -consumed, "replicate": replicate, "rng": 0}
    scalar, side = (identify(family=family, **options) for family in ("scalar", "kronecker-input"))
    a, b = scalar["(all)"], side["(all)"]
    assert b.r2_low > a.r2_high
    assert a.ceiling.predicts == b.ceiling.predicts == "update"
    assert a.score == (a.r2_reverse, a.r2_reverse_low, a.r2_reverse_high)
    for fit in (a, b):
        assert fit.ceiling.relative == pytest.approx(1.0, abs=0.06)
    assert [row["family"] for row in compare([scalar, side], rng=0) if row["chosen"]] == ["scalar"]


@pytest.mark.parametrize("noise", [30.0, 100.0])
def test_no_verdict_where_the_noise_swamps_the_signal(noise):
    rng = np.random.default_rng(3)
    signal = rng.normal(size=(100, 5))
    grad, replicate = (-signal + noise * rng.normal(size=signal.shape) for _ in range(2))
    fit = identify(grad=grad, update=0.1 * signal, family="diagonal", replicate=replicate, rng=0)["(all)"]
    assert fit.ceiling.low <= 0.0 <= fit.ceiling.high
    assert fit.verdict.startswith("no verdict: the noise ceiling is")
    assert np.isnan(fit.ceiling.relative)


def test_noise_is_seldom_taken_for_a_ceiling():
    rng = np.random.default_rng(4)
    above = 0
    for _ in range(200):
        y, r = rng.normal(size=(2, 60, 5))
        above += ceiling_of(products(y, r), both(np.ones(60), (y * y).sum(axis=1)), rng).low > 0.0
    assert above <= 12  # 2.5% of 200, Binomial: more than 12 with a probability of .2%


# Coverage -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rho", "T", "of_y", "of_r"), [(0.0, 100, 0.7, 0.0), (0.0, 60, 0.7, 0.9), (0.5, 300, 0.7, 0.9)]
)
def test_the_interval_of_the_ceiling_covers(rho, T, of_y, of_r):
    rng = np.random.default_rng(5)
    truth = 1.0 / (1.0 + of_y**2) / (1.0 + of_r**2)
    covered, blocks = 0, []
    for _ in range(400):
        signal = slow(rng, rho, T, 6)
        y, r = (signal + size * rng.normal(size=signal.shape) for size in (of_y, of_r))
        found = products(y, r)
        ceiling = ceiling_of(found, both(np.ones(T), found[:, 0]), rng)
        covered += ceiling.low <= truth <= ceiling.high
        blocks.append(T / block_length(found[:, 1]).steps)
    assert np.median(blocks) >= 20
    assert 0.91 <= covered / 400 <= 0.98


@pytest.mark.parametrize(
    ("family", "rho", "T", "noise"),
    [("scalar", 0.5, 400, 0.7), ("scalar", 0.0, 80, 1.0), ("diagonal", 0.5, 400, 0.7), ("diagonal", 0.0, 80, 1.0)],
)
def test_the_interval_of_r2_covers_what_the_fitted_metric_scores(family, rho, T, noise):
    """Planted metric, noise in y; g of variance 1 and y = d g + e let the score of any fit be written down."""
    rng = np.random.default_rng(6)
    covered, blocks = 0, []
    for _ in range(400):
        d = np.full(5, 2.0) if family == "scalar" else rng.uniform(0.5, 4.0, 5)
        g = slow(rng, rho, T, 5)
        y = d * g + noise * rng.normal(size=g.shape)
        found = identify(grad=-y, update=g, family=family, holdout=0.5, rng=rng)
        fit = found["(all)"]
        left, all_of = ((d - found.elements()) ** 2).sum() + 5 * noise**2, (d**2).sum() + 5 * noise**2
        covered += fit.r2_low <= 1.0 - left / all_of <= fit.r2_high
        few = [note for note in fit.notes if "interval rests on" in note]
        blocks.append(int(few[0].split("rests on ")[1].split()[0]) if few else 20)
    assert np.median(blocks) >= 20
    assert 0.91 <= covered / 400 <= 0.98


def planted(family, rng):
    """A random SPD metric of a family on 2 x 3 parameters, as a matrix on the flat vector."""

    def spd(n):
        a = rng.normal(size=(n, n))
        return a @ a.T / n + 0.5 * np.eye(n)

    if family == "block-diagonal":  # units: one block for each row
        return np.block([[spd(3), np.zeros((3, 3))], [np.zeros((3, 3)), spd(3)]])
    if family == "full":
        return spd(6)
    if family == "diagonal+low-rank":
        u = rng.normal(size=(6, 1))
        return np.diag(rng.uniform(0.5, 2.0, 6)) + u @ u.T
    A = np.eye(2) if family == "kronecker-input" else spd(2)
    B = np.eye(3) if family == "kronecker-output" else spd(3)
    return np.kron(A, B)


@pytest.mark.parametrize(
    "family", ["kronecker-output", "kronecker-input", "kronecker", "block-diagonal", "full", "diagonal+low-rank"]
)
def test_the_interval_of_r2_covers_for_matrices(family):
    """The same with steps that are correlated; products of the fitted metric with unit vectors are its columns."""
    rng = np.random.default_rng(10)
    options = {"block-diagonal": {"partition": "units"}, "diagonal+low-rank": {"rank": 1}}.get(family, {})
    covered = used = 0
    repeats = 100  # of 400 the intervals covered in 91.5 to 94%
    for _ in range(repeats):
        M = planted(family, rng)
        g = slow(rng, 0.4, 400, 6)
        y = g @ M + 0.7 * rng.normal(size=g.shape)
        found = identify(
            grad=-y.reshape(-1, 2, 3), update=g.reshape(-1, 2, 3), family=family, holdout=0.5, rng=rng, **options
        )
        fit = found["(all)"]
        if fit.determined < 1.0 or fit.not_positive:
            continue
        used += 1
        error = found.metric.to_dense() - M
        noise = 6 * 0.7**2
        truth = 1.0 - ((error**2).sum() + noise) / ((M**2).sum() + noise)
        covered += fit.r2_low <= truth <= fit.r2_high
    assert used >= 0.95 * repeats
    # Where the true coverage is 0.91 to 0.98, one in a thousand such counts lies outside.
    low, high = stats.binom.ppf(0.0005, used, 0.91), stats.binom.ppf(0.9995, used, 0.98)
    assert low <= covered <= high


# Failure is said ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "rho", "T", "n"),
    [("scalar", 0.0, 40, 3), ("diagonal", 0.0, 40, 30), ("diagonal", 0.8, 100, 5), ("diagonal", 0.9, 200, 3)],
)
def test_a_stationary_run_is_not_called_changing(family, rho, T, n):
    rng = np.random.default_rng(7)
    called = 0
    for k in range(200):
        d = np.full(n, 2.0) if family == "scalar" else rng.uniform(0.5, 4.0, n)
        g = slow(rng, rho, T, n)
        noise = slow(rng, rho if k % 2 else 0.0, T, n)
        called += identify(grad=-(d * g + noise), update=g, family=family, rng=rng)["(all)"].status == "not_constant"
    assert called <= 4  # 2%


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("family", ["scalar", "diagonal"])
def test_a_geometry_that_changes_is_called_so(family, noise):
    rng = np.random.default_rng(8)
    called = 0
    for _ in range(50):
        d = np.full(6, 1.0) if family == "scalar" else rng.uniform(0.5, 4.0, 6)
        later = 3.0 * d if family == "scalar" else rng.permutation(d) * np.array([0.2, 4.0, 1.0, 1.0, 4.0, 0.2])
        g = rng.normal(size=(200, 6))
        y = np.where(np.arange(200)[:, None] < 140, d, later) * g + noise * rng.normal(size=g.shape)
        fit = identify(grad=-y, update=g, family=family, rng=rng)["(all)"]
        called += fit.status == "not_constant"
        if fit.status == "not_constant":
            assert any("the geometry is not constant over the run" in note for note in fit.notes)
    assert called >= 48


def test_too_few_steps_are_said():
    rng = np.random.default_rng(9)
    grad = rng.normal(size=(3, 4))
    for holdout, status in ((0.0, "too_few_steps"), (0.9, "too_few_steps")):
        fit = identify(grad=grad, update=-grad, family="diagonal", holdout=holdout, rng=0)["(all)"]
        assert fit.status == status
        assert fit.verdict == "no verdict: too few held-out steps"
        assert fit.notes
    fit = identify(grad=np.tile(grad, (3, 1)), update=-np.tile(grad, (3, 1)), family="diagonal", rng=0)["(all)"]
    assert np.isnan(fit.r2_low)
    assert any("too few for an interval" in note for note in fit.notes)
    fit = identify(grad=rng.normal(size=(40, 4)), update=rng.normal(size=(40, 4)), rng=0)["(all)"]
    assert any("below 20 it is too narrow" in note for note in fit.notes)


def test_elements_that_never_moved_are_said():
    rng = np.random.default_rng(10)
    grad = rng.normal(size=(60, 5))
    update = -0.1 * grad
    update[:, [1, 4]] = 0.0
    found = identify(grad=grad, update=update, family="diagonal", rng=0)
    fit = found["(all)"]
    assert (fit.status, fit.determined) == ("not_positive_definite", 0.6)
    assert any("2 of 5 parameters never moved" in note for note in fit.notes)
    with pytest.raises(ValueError, match="2 of 5 parameters never moved"):
        found.to_metric()


# Replicates in every form ---------------------------------------------------------------------------------------------


def test_replicates_of_windows_are_averaged():
    rng = np.random.default_rng(11)
    signal = np.repeat(rng.normal(size=(400, 3)), 4, axis=0)
    grad, replicate = (-signal + rng.normal(size=signal.shape) for _ in range(2))
    options = {"grad": grad, "update": signal, "family": "scalar", "replicate": replicate, "rng": 0}
    one, four = (identify(window=w, **options)["(all)"].ceiling for w in (1, 4))
    assert one.low <= 1.0 / 2.0**2 <= one.high
    assert four.low <= 1.0 / 1.25**2 <= four.high
    with pytest.raises(ValueError, match="a replicate for each of 1600 steps"):
        identify(window=4, **(options | {"replicate": replicate[:1500]}))
    with pytest.raises(ValueError, match="expected replicate to be"):
        identify(window=4, **(options | {"replicate": replicate[:, :2]}))


def test_missing_and_zero_replicates():
    rng = np.random.default_rng(12)
    grad = rng.normal(size=(40, 3))
    for replicate in (np.full_like(grad, np.nan), np.zeros_like(grad)):
        fit = identify(grad=grad, update=-grad, family="scalar", replicate=replicate, rng=0)["(all)"]
        assert np.isnan(fit.ceiling.value)
        assert "explains 1.000" in fit.verdict
    assert np.isnan(ceiling_of(np.zeros((0, 3)), both(np.zeros(0), np.zeros(0)), rng).value)
