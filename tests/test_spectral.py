"""Closed forms of the one-parameter family against multiple-precision eigendecompositions."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
from oracles import mp
from steepest import spectral

EPS = 2.0**-52

ANGLES = {
    "0": mp.zero,
    "1e-12": mp.mpf("1e-12"),
    "1e-9": mp.mpf("1e-9"),
    "1e-6": mp.mpf("1e-6"),
    "1e-3": mp.mpf("1e-3"),
    "0.3": mp.mpf("0.3"),
    "pi/4": mp.pi / 4,
    "1.2": mp.mpf("1.2"),
    "pi/2-1e-3": mp.pi / 2 - mp.mpf("1e-3"),
    "pi/2-1e-6": mp.pi / 2 - mp.mpf("1e-6"),
    "pi/2-1e-9": mp.pi / 2 - mp.mpf("1e-9"),
    "pi/2-1e-12": mp.pi / 2 - mp.mpf("1e-12"),
}
RATIOS = [1e-8, 1e-4, 0.5, 1.0, 1.0 + 1e-9, 2.0, 1e4, 1e8]
POWERS = [1.0, -1.0, 0.5, -0.5, 0.0, 2.0, -2.0, 1.0 / 3.0, -0.25, 1.5, 1.0 + 1e-9, 1e-9, -1.0 - 1e-6, 7.3, -7.3]


class Case(NamedTuple):
    """What the function gets (doubles), and the truth: the angle of exactly these doubles."""

    alpha: float
    cosine: float
    sine: float
    member: oracles.Member

    @property
    def args(self) -> tuple[float, float, float]:
        return self.alpha, self.cosine, self.sine

    @property
    def triple(self) -> tuple[Any, Any, Any]:
        minus, plus = self.member.plane_eigenvalues
        return minus, self.member.alpha, plus


def case(angle: Any, ratio: float) -> Case:
    cosine, sine = float(mp.cos(angle)), float(mp.sin(angle))
    alpha = ratio / cosine
    return Case(alpha, cosine, sine, oracles.at_angle(mp.atan2(sine, cosine), alpha))


@pytest.fixture(scope="module", params=list(ANGLES))
def cases(request: pytest.FixtureRequest) -> list[Case]:
    return [case(ANGLES[request.param], ratio) for ratio in RATIOS]


def relative_error(got: float, truth: Any) -> float:
    return float(abs(mp.mpf(got) - truth) / abs(truth))


def in_plane(coefficients: spectral.Coefficients, member: oracles.Member) -> Any:
    """The assembled matrix in the basis (gh, rh), without any further rounding."""
    identity, yy, gg, yg = (mp.mpf(x) for x in coefficients)
    c, s = member.cosine, member.sine
    off = (yy * c + yg) * s
    return mp.matrix([[identity + yy * c**2 + gg + 2 * yg * c, off], [off, identity + yy * s**2]])


def largest(matrix: Any) -> float:
    return float(max(abs(x) for x in matrix))


def plane_truth(case: Case, f: Any) -> Any:
    # At angle 0 the second direction is any one orthogonal to gh: the second axis serves for all angles.
    axes = [[mp.one, mp.zero, mp.zero], [mp.zero, mp.one, mp.zero]]
    return oracles.symmetric_function(f, case.member.restricted(axes))


def power_scale(case: Case, p: float) -> float:
    """kappa * |M**p|: what the docstring of power_coefficients measures its error by."""
    return max(1.0, abs(p), abs(p * (p - 1)) / 2) * float(max(x ** mp.mpf(p) for x in case.triple))


def log_scale(case: Case) -> float:
    return float(max(1, *(abs(mp.log(x)) for x in case.triple)))


def coefficients_truth(case: Case, f: Any) -> tuple[Any, Any, Any, Any]:
    """From divided differences of distinct eigenvalues, as printed."""
    x, u, z = case.triple
    a = 1 / case.member.cosine
    first = (f(z) - f(x)) / (z - x)
    second = ((f(z) - f(u)) / (z - u) - (f(u) - f(x)) / (u - x)) / (z - x)
    return f(u), a * (first + u * second), u * (a * second - first), -u * second


# Spectrum


def test_plane_eigenvalues_and_condition_number(cases: list[Case]) -> None:
    for k in cases:
        minus, plus = spectral.plane_eigenvalues(*k.args)
        truth = k.member.plane_eigenvalues
        assert relative_error(minus, truth[0]) < 1e-15
        assert relative_error(plus, truth[1]) < 1e-15
        assert relative_error(spectral.condition_number(*k.args), k.member.cond) < 1e-15


def test_optimal_member(cases: list[Case]) -> None:
    cosine, sine = cases[0].cosine, cases[0].sine
    best = oracles.at_angle(cases[0].member.angle)
    assert relative_error(spectral.optimal_alpha(cosine), best.alpha) < 1e-15
    for got, truth in zip(
        spectral.optimal_eigenvalues(cosine, sine),
        (best.plane_eigenvalues[0], best.alpha, best.plane_eigenvalues[1]),
        strict=True,
    ):
        assert relative_error(got, truth) < 1e-15
    assert relative_error(spectral.optimal_condition_number(cosine, sine), best.cond) < 2e-15
    log_cond = spectral.optimal_log_condition_number(cosine, sine)
    if sine == 0.0:
        assert log_cond == 0.0
    else:
        # log(1 + x) of the oracle keeps 100 - 13 digits at the smallest angle.
        assert relative_error(log_cond, mp.log(best.cond)) < 1e-15
    assert relative_error(spectral.condition_number(1.0 / cosine, cosine, sine), best.cond) < 2e-15


def test_no_member_is_better_than_the_optimal_one(cases: list[Case]) -> None:
    for k in cases:
        bound = spectral.optimal_condition_number(k.cosine, k.sine)
        assert spectral.condition_number(*k.args) >= bound * (1 - 4 * EPS)


def test_sum_product_and_interlacing(cases: list[Case]) -> None:
    for k in cases:
        minus, plus = spectral.plane_eigenvalues(*k.args)
        assert minus + plus == pytest.approx(k.alpha + 1 / k.cosine, rel=1e-15)
        assert minus * plus == pytest.approx(k.alpha * k.cosine, rel=2e-15)
        upper, lower = spectral.eigenvalue_bounds(k.cosine)
        assert (upper, lower) == (k.cosine, 1 / k.cosine)
        # Exactly, not up to rounding.
        assert minus <= k.alpha <= plus
        assert minus <= upper <= lower <= plus


def test_bounds_of_the_extreme_eigenvalues_are_approached() -> None:
    cosine, sine = 0.8, 0.6
    assert spectral.plane_eigenvalues(1e9, cosine, sine)[0] == pytest.approx(cosine, rel=1e-9)
    assert spectral.plane_eigenvalues(1e-9, cosine, sine)[1] == pytest.approx(1 / cosine, rel=1e-9)


def test_plane_eigenvectors(cases: list[Case]) -> None:
    for k in cases:
        (p_minus, q_minus), (p_plus, q_plus) = spectral.plane_eigenvectors(*k.args)
        assert (p_minus, q_minus) == (-q_plus, p_plus)
        assert math.hypot(p_plus, q_plus) == pytest.approx(1.0, rel=4 * EPS)
        if k.sine == 0.0:
            assert (p_plus, q_plus) == ((1.0, 0.0) if k.alpha <= 1.0 else (0.0, 1.0))
            continue
        # v_plus = (off-diagonal, lam_plus - first diagonal entry), each entry relative to itself.
        block = k.member.restricted(k.member.basis)
        p, q = block[0, 1], k.member.plane_eigenvalues[1] - block[0, 0]
        norm = mp.sqrt(p**2 + q**2)
        assert relative_error(p_plus, p / norm) < 1e-15
        assert relative_error(q_plus, q / norm) < 1e-15
        # The printed form: the bisector turned by phi.
        a, c, s = 1 / k.member.cosine, k.member.cosine, k.member.sine
        phi = mp.atan2((a + k.alpha) * s, (a - k.alpha) * c) / 2
        assert abs(mp.atan2(q_plus, p_plus) - (k.member.angle / 2 + phi)) < 1e-15


def test_eigenvectors_of_the_optimal_member_are_the_bisectors_turned_by_45_degrees() -> None:
    for angle in (1e-3, 0.3, 1.2, math.pi / 2 - 1e-3):
        cosine, sine = math.cos(angle), math.sin(angle)
        p, q = spectral.plane_eigenvectors(1 / cosine, cosine, sine)[1]
        assert math.atan2(q, p) == pytest.approx(angle / 2 + math.pi / 4, rel=1e-12)


def test_logdet_and_trace() -> None:
    for n in (1, 2, 3, 7):
        for angle, ratio in ((0.3, 2.0), (1.2, 1e-4), (1.2, 1e8)) if n > 1 else ((0.0, 1.0),):
            k = case(mp.mpf(angle), ratio)
            truth = oracles.at_angle(k.member.angle, k.alpha, max(n, 2))
            if n == 1:
                truth = oracles.Member([-1.0], [1.0])
            assert spectral.logdet(n, k.alpha, k.cosine) == pytest.approx(float(truth.logdet()), rel=1e-14)
            assert spectral.trace(n, k.alpha, k.cosine) == pytest.approx(float(truth.trace()), rel=1e-15)


# Functions


@pytest.mark.parametrize("p", POWERS)
def test_power_against_eigendecomposition(cases: list[Case], p: float) -> None:
    for k in cases:
        got = spectral.power_coefficients(p, *k.args)
        truth = plane_truth(k, lambda x: x ** mp.mpf(p))
        tolerance = 10 * EPS * power_scale(k, p)
        assert largest(in_plane(got, k.member) - truth) < tolerance
        # Each eigenvalue of the complement relative to itself.
        assert relative_error(got.identity, mp.mpf(k.alpha) ** mp.mpf(p)) < 2 * EPS


def test_log_against_eigendecomposition(cases: list[Case]) -> None:
    for k in cases:
        got = spectral.log_coefficients(*k.args)
        truth = plane_truth(k, mp.log)
        assert largest(in_plane(got, k.member) - truth) < 10 * EPS * log_scale(k)
        assert abs(got.identity - mp.log(k.alpha)) <= 2 * EPS * abs(mp.log(k.alpha))


@pytest.mark.parametrize("p", POWERS)
def test_each_coefficient_of_a_power(cases: list[Case], p: float) -> None:
    # The matrix does not show an error of the second divided difference: it enters times sin(psi)^2.
    for k in cases:
        if k.sine == 0.0:
            continue
        got = spectral.power_coefficients(p, *k.args)
        truth = coefficients_truth(k, lambda x: x ** mp.mpf(p))
        tolerance = 10 * EPS * max(1, abs(p)) * power_scale(k, p)
        assert max(abs(mp.mpf(a) - b) for a, b in zip(got, truth, strict=True)) < tolerance


def test_each_coefficient_of_the_logarithm(cases: list[Case]) -> None:
    for k in cases:
        if k.sine == 0.0:
            continue
        got = spectral.log_coefficients(*k.args)
        truth = coefficients_truth(k, mp.log)
        assert max(abs(mp.mpf(a) - b) for a, b in zip(got, truth, strict=True)) < 10 * EPS * log_scale(k)


@pytest.mark.parametrize("p", [0.5, -0.5])
def test_closed_roots_equal_the_general_route(p: float) -> None:
    beside = math.nextafter(p, 0.0)
    for angle in ANGLES.values():
        for ratio in RATIOS:
            k = case(angle, ratio)
            closed, general = (np.array(spectral.power_coefficients(q, *k.args)) for q in (p, beside))
            assert np.abs(closed - general).max() < 50 * EPS * power_scale(k, p)


def test_first_power_is_the_definition_and_minus_one_its_inverse(cases: list[Case]) -> None:
    for k in cases:
        metric = spectral.power_coefficients(1.0, *k.args)
        assert metric == (k.alpha, 1 / k.cosine, -k.alpha, 0.0)
        inverse = spectral.power_coefficients(-1.0, *k.args)
        # Mt gh = yh and Mt^{-1} yh = gh, coordinates on (yh, gh), up to the rounding of the coefficients.
        c = k.member.cosine
        on_g = (metric.yy * c + metric.yg, metric.identity + metric.gg + metric.yg * c)
        assert float(max(abs(on_g[0] - 1), abs(on_g[1]))) < 4 * EPS
        on_y = (inverse.identity + inverse.yy + inverse.yg * c, inverse.gg * c + inverse.yg)
        size = max(abs(x) for x in inverse)
        assert float(max(abs(on_y[0]), abs(on_y[1] - 1))) < 4 * EPS * size


def test_square_of_the_square_root(cases: list[Case]) -> None:
    for k in cases:
        for sign in (1.0, -1.0):
            root = in_plane(spectral.power_coefficients(0.5 * sign, *k.args), k.member)
            whole = in_plane(spectral.power_coefficients(sign, *k.args), k.member)
            assert largest(root * root - whole) < 10 * EPS * power_scale(k, sign)


@pytest.mark.parametrize(("p", "q"), [(0.3, 0.7), (0.5, 1.5), (-0.5, -1.5), (1.0, 1.0), (-0.4, -0.6), (0.25, 0.5)])
def test_powers_add(cases: list[Case], p: float, q: float) -> None:
    for k in cases:
        left, right, total = (in_plane(spectral.power_coefficients(x, *k.args), k.member) for x in (p, q, p + q))
        assert largest(left * right - total) < 20 * EPS * power_scale(k, p + q)


@pytest.mark.parametrize("p", [-0.5, 0.3, 2.0])
@pytest.mark.parametrize("angle", [0.0, 1e-6, 0.3, 1.2])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0])
def test_logarithm_of_a_power(p: float, angle: float, ratio: float) -> None:
    k = case(mp.mpf(angle), ratio)
    power = in_plane(spectral.power_coefficients(p, *k.args), k.member)
    log = in_plane(spectral.log_coefficients(*k.args), k.member)
    condition = float(k.triple[2] / k.triple[0]) ** abs(p)
    assert largest(oracles.symmetric_function(mp.log, power) - p * log) < 20 * EPS * condition


def test_trace_of_the_logarithm_is_the_logdet(cases: list[Case]) -> None:
    for k in cases:
        got = spectral.log_coefficients(*k.args)
        block = in_plane(got, k.member)
        total = block[0, 0] + block[1, 1] + got.identity
        assert abs(float(total) - spectral.logdet(3, k.alpha, k.cosine)) < 20 * EPS * log_scale(k)


@pytest.mark.parametrize("p", [-2.0, -0.5, 0.3, 0.5, 2.0, 3.0, None])
def test_all_eigenvalues_equal(p: float | None) -> None:
    args = (1.0, 1.0, 0.0)
    assert spectral.plane_eigenvalues(*args) == (1.0, 1.0)
    got = spectral.log_coefficients(*args) if p is None else spectral.power_coefficients(p, *args)
    # f1 = f'(1), f2 = f''(1)/2
    first, second = (1.0, -0.5) if p is None else (p, p * (p - 1) / 2)
    expected = (0.0 if p is None else 1.0, first + second, second - first, -second)
    np.testing.assert_allclose(got, expected, rtol=0, atol=4 * EPS)


@pytest.mark.parametrize("p", [-2.0, -0.5, 0.3, 0.5, 3.0, None])
def test_smooth_through_the_confluent_points(p: float | None) -> None:
    # Coefficients at ever smaller distances from three equal eigenvalues, down to denormal ones, tend to the limit.
    def coefficients(alpha: float, cosine: float, sine: float) -> Any:
        if p is None:
            return np.array(spectral.log_coefficients(alpha, cosine, sine))
        return np.array(spectral.power_coefficients(p, alpha, cosine, sine))

    limit = coefficients(1.0, 1.0, 0.0)
    for sine in (1e-3, 1e-5, 1e-8, 1e-11, 1e-16, 1e-100, 1e-160, 1e-310, 5e-324):
        cosine = math.sqrt((1 - sine) * (1 + sine))
        for excess in (0.0, 1e-3, -1e-3, 1e-9, -1e-9, EPS, -EPS):
            near = coefficients(1.0 + excess, cosine, sine)
            assert np.abs(near - limit).max() < 40 * (sine + abs(excess)) + 20 * EPS


def test_two_equal_eigenvalues() -> None:
    # psi = 0: Mt = gh gh^T + alpha (I - gh gh^T), whatever the split between yy, gg and yg.
    for alpha in (1e-8, 0.5, 0.999999, 1.0, 1.000001, 2.0, 1e8):
        for p in (-3.0, -0.5, 0.3, 0.5, 2.0):
            identity, yy, gg, yg = spectral.power_coefficients(p, alpha, 1.0, 0.0)
            size = max(1.0, alpha**p) * max(1.0, abs(p * (p - 1)) / 2)
            assert identity == pytest.approx(alpha**p, rel=2 * EPS)
            assert abs(identity + yy + gg + 2 * yg - 1.0) < 10 * EPS * size


@pytest.mark.parametrize("alpha", [1e-150, 1e-100, 1.0, 1e100, 1e150])
@pytest.mark.parametrize("cosine", [1e-150, 1e-100, 0.8, 1.0])
def test_wide_range_neither_overflows_nor_underflows(alpha: float, cosine: float) -> None:
    sine = {0.8: 0.6, 1.0: 0.0}.get(cosine, 1.0)
    with mp.workdps(1000):  # condition numbers up to 1e600
        truth = oracles.at_angle(mp.atan2(sine, cosine), alpha).plane_eigenvalues
    for got, expected in zip(spectral.plane_eigenvalues(alpha, cosine, sine), truth, strict=True):
        if expected > 1e-300:
            assert relative_error(got, expected) < 2e-15


def test_power_beyond_double_precision_is_refused() -> None:
    with pytest.raises(OverflowError):
        spectral.power_coefficients(20.0, 1e20, 0.8, 0.6)


def test_dense_matrix_of_many_dimensions() -> None:
    # The coefficients on real vectors, in double, against a dense NumPy eigendecomposition.
    rng = np.random.default_rng(5)
    grad, update = oracles.pair(60, 1.1, rho=3.0, rng=rng)
    member = oracles.Member(grad, update, 2.0)
    rho = float(member.rho)
    dense = oracles.dense_metric(grad, update, 2.0)
    yh, gh = -grad / np.linalg.norm(grad), update / np.linalg.norm(update)
    args = (2.0 / rho, float(member.cosine), float(member.sine))
    for p in (-1.0, -0.5, 0.5, 1.0, 1.7, None):
        got = spectral.log_coefficients(*args) if p is None else spectral.power_coefficients(p, *args)
        identity, yy, gg, yg = got
        assembled = identity * np.eye(60) + yy * np.outer(yh, yh) + gg * np.outer(gh, gh)
        assembled += yg * (np.outer(yh, gh) + np.outer(gh, yh))
        if p is None:
            assembled += math.log(rho) * np.eye(60)
            expected = oracles.dense_function(dense, np.log)
        else:
            assembled *= rho**p
            expected = oracles.dense_function(dense, lambda x, p=p: x**p)
        np.testing.assert_allclose(assembled, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


# Properties of random members

members = st.builds(
    case,
    st.one_of(
        st.floats(-13, 0.19).map(lambda e: mp.mpf(10) ** e),
        st.floats(-12, 0.19).map(lambda e: mp.pi / 2 - mp.mpf(10) ** e),
    ),
    st.one_of(
        st.floats(-8, 8).map(lambda e: 10.0**e),
        st.floats(-16, -0.01).map(lambda e: 1.0 + 10.0**e),
        st.floats(-16, -0.01).map(lambda e: 1.0 - 10.0**e),
    ),
)


@settings(deadline=None, max_examples=300)
@given(members)
def test_random_spectrum(k: Case) -> None:
    minus, plus = spectral.plane_eigenvalues(*k.args)
    assert relative_error(minus, k.triple[0]) < 1e-15
    assert relative_error(plus, k.triple[2]) < 1e-15
    assert minus <= min(k.alpha, k.cosine)
    assert plus >= max(k.alpha, 1 / k.cosine)
    assert relative_error(spectral.condition_number(*k.args), k.member.cond) < 2e-15
    p, q = spectral.plane_eigenvectors(*k.args)[1]
    block = k.member.restricted(k.member.basis)
    assert relative_error(q / p, (k.triple[2] - block[0, 0]) / block[0, 1]) < 2e-15


@settings(deadline=None, max_examples=300)
@given(members, st.floats(-4, 4))
def test_random_power(k: Case, p: float) -> None:
    got = spectral.power_coefficients(p, *k.args)
    truth = plane_truth(k, lambda x: x ** mp.mpf(p))
    assert largest(in_plane(got, k.member) - truth) < 10 * EPS * power_scale(k, p)


@settings(deadline=None, max_examples=300)
@given(members)
def test_random_logarithm(k: Case) -> None:
    got = spectral.log_coefficients(*k.args)
    assert largest(in_plane(got, k.member) - plane_truth(k, mp.log)) < 10 * EPS * log_scale(k)
