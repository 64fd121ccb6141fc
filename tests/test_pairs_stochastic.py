"""Stochastic pairs: exact expectations over all mini-batches, coverage, and the identities (19') and (20')."""

from __future__ import annotations

import importlib.util
import itertools
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from scipy import stats

import steepest
from steepest.pairs.stochastic import StochasticPair, stochastic

RATE = 0.1


class Aligned:
    """Feedback alignment of a linear network: per-example gradients and updates, so that expectations are exact."""

    def __init__(self, seed: int, n_examples: int, alignment: float = 0.6) -> None:
        rng = np.random.default_rng(seed)
        x, W1 = rng.standard_normal((n_examples, 5)), rng.standard_normal((4, 5))
        W2 = rng.standard_normal((3, 4))
        B = alignment * W2.T + (1.0 - alignment) * rng.standard_normal((4, 3))
        hidden = x @ W1.T
        target = x @ rng.standard_normal((3, 5)).T
        error = hidden @ W2.T - target
        outer = np.einsum("ni,nj->nij", error, hidden).reshape(n_examples, -1)
        forward = np.einsum("ni,nj->nij", error @ W2, x).reshape(n_examples, -1)
        feedback = np.einsum("ni,nj->nij", error @ B.T, x).reshape(n_examples, -1)
        self.grad = np.concatenate([forward, outer], axis=1)
        self.update = -RATE * np.concatenate([feedback, outer], axis=1)

    def cosine(self) -> float:
        y, g = -self.grad.mean(axis=0), self.update.mean(axis=0)
        return float(y @ g / np.linalg.norm(y) / np.linalg.norm(g))

    def batches(self, rng: np.random.Generator, n: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """n batches of examples drawn with replacement."""
        i = rng.integers(len(self.grad), size=(n, size))
        return self.grad[i].mean(axis=1), self.update[i].mean(axis=1)


def samples(seed: int = 0, n: int = 60, size: int = 12, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.standard_normal(size)
    g = y + 1.2 * rng.standard_normal(size)
    return -y + noise * rng.standard_normal((n, size)), g + noise * rng.standard_normal((n, size))


@pytest.mark.parametrize("n", [2, 3])
def test_estimates_average_to_the_exact_expectation_over_all_samples_of_all_batches(n: int) -> None:
    rule = Aligned(1, 3)
    pairs = list(itertools.product(range(3), repeat=2))  # all batches of two, with replacement
    grads = np.array([rule.grad[list(b)].mean(axis=0) for b in pairs])
    updates = np.array([rule.update[list(b)].mean(axis=0) for b in pairs])
    found = [stochastic(grads[list(i)], updates[list(i)]) for i in itertools.product(range(len(pairs)), repeat=n)]
    y, g = rule.grad.mean(axis=0), rule.update.mean(axis=0)
    for name, expected in (("grad_update", y @ g), ("grad_grad", y @ y), ("update_update", g @ g)):
        scale = math.sqrt((grads**2).sum() * (updates**2).sum()) if name == "grad_update" else expected
        assert math.fsum(getattr(f, name).value for f in found) / len(found) == pytest.approx(
            expected, abs=1e-13 * abs(scale) + 1e-13 * abs(expected)
        )
    covariance = np.mean(np.sum((grads - y) ** 2, axis=1)) / n
    assert np.mean([f.grad_noise for f in found]) == pytest.approx(covariance, rel=1e-12)
    # and the inner product of the means is biased by tr Cov(y, g)/N
    plain = np.mean([f.align().inner_product for f in found])
    assert plain - y @ g == pytest.approx(np.mean(np.sum((grads - y) * (updates - g), axis=1)) / n, rel=1e-9)


def test_against_sums_over_all_pairs_of_samples() -> None:
    grad, update = samples(n=7)
    found = stochastic(grad, update)

    def u(a: np.ndarray, b: np.ndarray) -> float:
        n = len(a)
        return math.fsum(float(a[i] @ b[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return -u(a, b) / math.sqrt(u(a, a) * u(b, b))

    assert found.grad_update.value == pytest.approx(u(grad, update), rel=1e-12)
    assert found.grad_grad.value == pytest.approx(u(grad, grad), rel=1e-12)
    assert found.update_update.value == pytest.approx(u(update, update), rel=1e-12)
    assert found.cosine.value == pytest.approx(cosine(grad, update), rel=1e-12)
    left = [cosine(np.delete(grad, i, 0), np.delete(update, i, 0)) for i in range(7)]
    error = math.sqrt(6 / 7 * sum((x - np.mean(left)) ** 2 for x in left))
    assert found.cosine.standard_error == pytest.approx(error, rel=1e-10)
    half = stats.t.ppf(0.975, 6) * error
    assert found.interval == pytest.approx((found.cosine.value - half, found.cosine.value + half), rel=1e-10)
    linear = grad @ update.mean(axis=0) + update @ grad.mean(axis=0)
    error = np.std(linear, ddof=1) / math.sqrt(7)
    assert found.grad_update.standard_error == pytest.approx(error, rel=1e-12)
    assert found.z == pytest.approx(-found.grad_update.value / error, rel=1e-12)
    assert found.p_value == pytest.approx(stats.norm.sf(found.z), rel=1e-9)
    assert "7 samples" in found.reasons[0]
    assert found.flag == "unreliable"


@pytest.mark.parametrize(("n", "size"), [(50, 16), (200, 8)])
def test_interval_covers_where_it_is_called_reliable(n: int, size: int) -> None:
    rule = Aligned(3, 40, alignment=0.3)
    target = rule.cosine()
    assert 30 < math.degrees(math.acos(target)) < 85
    rng = np.random.default_rng(0)
    found = [stochastic(*rule.batches(rng, n, size)) for _ in range(600)]
    covered = [f.interval[0] <= target <= f.interval[1] for f in found if f.reliable]
    assert len(covered) > 550
    assert 0.91 <= np.mean(covered) <= 0.98
    # and the debiased cosine is right where the cosine of the means is not, by more than its own error
    assert np.mean([f.cosine.value for f in found]) == pytest.approx(target, abs=0.01)


@pytest.fixture(scope="module")
def coverage_benchmark() -> Any:
    """benchmarks/interval_coverage.py, which does the same with 2000 repeats."""
    pytest.importorskip("sklearn.datasets")
    path = Path(__file__).parents[1] / "benchmarks" / "interval_coverage.py"
    if not path.exists():
        pytest.skip("the benchmarks are not beside the tests here")
    spec = importlib.util.spec_from_file_location("coverage_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("steps", "n_samples"), [(30, 50), (300, 50), (300, 200)])
def test_coverage_for_feedback_alignment_on_digits(coverage_benchmark: Any, steps: int, n_samples: int) -> None:
    point = coverage_benchmark.Point(steps)
    assert 30 < point.expected().angle_degrees < 85
    found = coverage_benchmark.coverage(point, n_samples, 400)
    assert found.reliable > 390
    # Where the true coverage is 0.91 to 0.98, 0.1% of such counts lie outside.
    low, high = stats.binom.ppf(0.0005, found.reliable, 0.91), stats.binom.ppf(0.9995, found.reliable, 0.98)
    assert low <= found.covered <= high


def test_coverage_is_not_claimed_where_it_fails(coverage_benchmark: Any) -> None:
    found = coverage_benchmark.coverage(coverage_benchmark.Point(1500), 50, 200)
    assert found.reliable == 0
    assert found.covered_else < 0.7 * found.unreliable


def test_expectation_over_batches_is_that_of_the_whole_data(coverage_benchmark: Any) -> None:
    point = coverage_benchmark.Point(30)
    whole, rng = point.of_batches(np.arange(len(point.x))[None]), np.random.default_rng(0)
    batches = point.of_batches(rng.integers(len(point.x), size=(20_000, 8)))
    for exact, sampled in zip(whole, batches, strict=True):
        for name, x in sampled.items():
            z = (x.mean(axis=0) - exact[name][0]) / (x.std(axis=0) / math.sqrt(len(x)) + 1e-300)
            assert np.abs(z[np.ptp(x, axis=0) > 0]).max() < 5.0


def test_standard_error_and_level_of_the_test() -> None:
    rng = np.random.default_rng(5)
    mean = np.eye(10)[0]
    found = [
        stochastic(mean + rng.standard_normal((40, 10)), -mean + rng.standard_normal((40, 10))) for _ in range(800)
    ]
    spread = np.std([f.grad_update.value for f in found])
    assert np.mean([f.grad_update.standard_error for f in found]) == pytest.approx(spread, rel=0.2)
    null = [stochastic(rng.standard_normal((40, 10)), rng.standard_normal((40, 10))) for _ in range(800)]
    assert np.mean([f.p_value < 0.05 for f in null]) < 0.07
    ratio = np.mean([f.grad_update.standard_error for f in null]) / np.std([f.grad_update.value for f in null])
    assert 1.2 < ratio < 1.6  # sqrt(2) too large: conservative


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_plain_gradient_descent_has_cosine_one_and_no_width(dtype: str) -> None:
    grad = samples(n=20)[0].astype(dtype)
    found = stochastic(grad, np.asarray(-0.1 * grad, dtype=dtype))
    tolerance = 1e-13 if dtype == "float64" else 1e-6
    assert found.cosine.value == pytest.approx(1.0, abs=tolerance)
    assert found.interval[1] - found.interval[0] < tolerance
    assert found.reliable
    # Against the full gradient the samples of the update are noisy, and the interval has a width.
    noisy = stochastic(None, -0.1 * grad, full_gradient=grad.mean(axis=0))
    assert noisy.interval[1] - noisy.interval[0] > 1e-4
    assert not noisy.reliable


def test_full_gradient() -> None:
    grad, update = samples()
    full = grad.mean(axis=0)
    found = stochastic(None, update, full_gradient=full)
    assert found.grad_grad == pytest.approx((full @ full, 0.0))
    assert found.grad_update.value == pytest.approx(full @ update.mean(axis=0), rel=1e-12)
    assert found.grad_update.standard_error == pytest.approx(np.std(update @ full, ddof=1) / math.sqrt(60), rel=1e-12)
    left = [stochastic(None, np.delete(update, i, 0), full_gradient=full).cosine.value for i in range(60)]
    error = math.sqrt(59 / 60 * sum((x - np.mean(left)) ** 2 for x in left))
    assert found.cosine.standard_error == pytest.approx(error, rel=1e-9)
    assert found.reliable
    M = found.metric()
    np.testing.assert_allclose(M @ update.mean(axis=0), -full, rtol=1e-12, atol=1e-12)


class Quadratic:
    """L = x^T H x/2 with noisy steps: E[dL] and q are known."""

    def __init__(self, curvatures: tuple[float, ...], lr: float, n: int = 80) -> None:
        rng = np.random.default_rng(8)
        size = len(curvatures)
        self.H, self.lr = np.diag(curvatures), lr
        self.params = rng.standard_normal(size) + np.sign(rng.standard_normal(size))
        self.grad = self.H @ self.params
        self.g = -self.grad * np.linspace(0.5, 2.0, size) + 0.3 * rng.standard_normal((n, size))
        self.update = lr * self.g
        after = self.params + self.update
        loss = 0.5 * self.params @ self.H @ self.params
        self.changes = 0.5 * np.einsum("ni,ij,nj->n", after, self.H, after) - loss

    def found(self) -> StochasticPair:
        return stochastic(None, self.update, loss_change=self.changes, lr=self.lr, full_gradient=self.grad)


@pytest.mark.parametrize("curvatures", [(2.0,), (1.0, 3.0), (1.0, 3.0, -0.4, 0.7, 2.0)])
@pytest.mark.parametrize("alpha", ["optimal", 0.8])
def test_natural_form_reproduces_the_expected_step(curvatures: tuple[float, ...], alpha: float | str) -> None:
    case = Quadratic(curvatures, 0.1)
    found, mean = case.found(), case.g.mean(axis=0)
    q = np.mean(np.einsum("ni,ij,nj->n", case.g, case.H, case.g))
    assert found.curvature.value == pytest.approx(q, rel=1e-10)
    quadratic_terms = np.einsum("ni,ij,nj->n", case.g, case.H, case.g)
    assert found.curvature.standard_error == pytest.approx(np.std(quadratic_terms, ddof=1) / math.sqrt(80), rel=1e-8)
    n = len(case.g)
    squared = (n**2 * mean @ mean - np.sum(case.g**2)) / (n * (n - 1))
    assert found.shift == pytest.approx(case.lr * q / (2 * squared), rel=1e-10)

    assert found.corrected is not None
    y = -found.corrected.gradient()
    np.testing.assert_allclose(y, -case.grad - found.shift * mean, rtol=1e-12, atol=1e-14)
    # y.E[g] = -E[dL]/lr, in unbiased inner products
    assert -case.grad @ mean - found.shift * squared == pytest.approx(-case.changes.mean() / case.lr, rel=1e-10)
    np.testing.assert_allclose(found.corrected.metric(alpha=alpha) @ mean, y, rtol=1e-10, atol=1e-12)

    form = found.natural_form(alpha)
    np.testing.assert_allclose(form @ mean, -case.grad, rtol=1e-10, atol=1e-12)  # (19')
    after = case.params - case.lr * form.solve(case.grad)  # (20')
    np.testing.assert_allclose(after, case.params + case.update.mean(axis=0), rtol=1e-10, atol=1e-12)

    size = len(mean)
    dense = np.asarray(found.corrected.metric(alpha=alpha).to_dense()) + found.shift * np.eye(size)
    np.testing.assert_allclose(np.column_stack([form @ e for e in np.eye(size)]), dense, rtol=1e-10, atol=1e-10)
    assert form.smallest_eigenvalue == pytest.approx(np.linalg.eigvalsh(dense)[0], rel=1e-8)


def test_corrected_pair_in_the_limit_of_no_noise_descends_exactly_as_the_loss() -> None:
    case = Quadratic((1.0, 3.0, -0.4), 0.2)
    case.g[:] = case.g[0]
    update = case.lr * case.g
    after = case.params + update[0]
    change = float(0.5 * after @ case.H @ after - 0.5 * case.params @ case.H @ case.params)
    found = stochastic(np.tile(case.grad, (80, 1)), update, loss_change=np.full(80, change), lr=case.lr)
    assert found.corrected is not None
    assert found.corrected.defect == pytest.approx(0.0, abs=1e-12)
    assert found.corrected.align().inner_product * case.lr == pytest.approx(change, rel=1e-10)
    assert found.reliable  # no noise at all


def test_natural_form_that_is_not_positive_definite_is_refused() -> None:
    # Down a hill of negative curvature: q < 0, and a small alpha makes lambda_min(M) smaller than |shift|.
    case = Quadratic((-1.0, -3.0), 0.5)
    found = case.found()
    assert found.curvature.value < 0
    assert found.corrected is not None
    lowest = found.corrected.metric(alpha=1e-3).spectrum().values[0]
    assert lowest < -found.shift
    with pytest.raises(ValueError, match="not positive definite"):
        found.natural_form(1e-3)
    with pytest.raises(ValueError, match="loss_change"):
        stochastic(*samples()).natural_form()


def test_effectiveness_by_the_loss() -> None:
    grad, update = samples()
    changes = np.random.default_rng(2).standard_normal(60) - 0.3
    found = stochastic(grad, update, loss_change=changes)
    expected = stats.ttest_1samp(changes, 0.0, alternative="less")
    assert found.loss_p_value == pytest.approx(expected.pvalue, rel=1e-10)
    assert found.loss_change == pytest.approx((changes.mean(), np.std(changes, ddof=1) / math.sqrt(60)))
    assert math.isnan(stochastic(grad, update).loss_p_value)


def test_noise_alone_is_undefined_or_unreliable() -> None:
    rng = np.random.default_rng(0)
    found = [stochastic(rng.standard_normal((60, 50)), rng.standard_normal((60, 50))) for _ in range(50)]
    assert {f.status for f in found} == {"ok", "undefined"}
    assert not any(f.reliable for f in found)
    for f in found:
        assert (f.status == "undefined") == (min(f.grad_grad.value, f.update_update.value) <= 0)
        assert math.isnan(f.cosine.value) == (f.status == "undefined")
        assert f.reasons


def test_zero_update_and_values_that_are_not_finite() -> None:
    grad, update = samples()
    zero = stochastic(grad, 0.0 * update, loss_change=np.zeros(60))
    assert (zero.status, zero.align().status, zero.corrected) == ("undefined", "zero_update", None)
    with pytest.raises(steepest.NotDescentError):
        zero.metric()
    grad[3, 4] = np.nan
    found = stochastic(grad, update)
    assert (found.status, found.flag, found.align().status) == ("nonfinite", "unreliable", "nonfinite")
    assert math.isnan(found.p_value)
    huge = stochastic(1e200 * update, update)
    assert huge.status == "nonfinite"
    lost = stochastic(-update, update, loss_change=np.full(60, np.inf))
    assert lost.status == "nonfinite"


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_mappings_shapes_and_dtypes(dtype: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype)) if dtype == "bfloat16" else np.dtype(dtype)
    grad, update = (x.astype(kind) for x in samples())
    whole = stochastic(*(x.astype(np.float64) for x in (grad, update)), loss_change=np.full(60, -1.0), lr=0.5)
    cut = {"w": grad[:, :10].reshape(60, 2, 5), "b": grad[:, 10], "c": grad[:, 11:]}
    other = {"c": update[:, 11:], "b": update[:, 10], "w": update[:, :10].reshape(60, 2, 5)}
    found = stochastic(cut, other, loss_change=np.full(60, -1.0), lr=0.5)
    for name in ("grad_update", "grad_grad", "update_update", "cosine", "interval", "curvature"):
        assert getattr(found, name) == pytest.approx(getattr(whole, name), rel=1e-11), name
    assert found.size == 12
    mean = found.pair.update()
    assert {k: (v.shape, v.dtype) for k, v in mean.items()} == {
        "w": ((2, 5), kind), "b": ((), kind), "c": ((1,), kind)
    }  # fmt: skip
    expected = update.astype(np.float64).mean(axis=0) / 0.5
    np.testing.assert_allclose(mean["c"].astype(np.float64), expected[11:], rtol=2.0**-7)
    M = found.metric()
    y = {k: -v.astype(np.float64).mean(axis=0) for k, v in cut.items()}
    solved = M.solve(y)
    np.testing.assert_allclose(np.asarray(solved["b"], dtype=np.float64), expected[10], rtol=1e-2)
    form = found.natural_form()
    np.testing.assert_allclose(form.solve(form @ y)["w"], y["w"], rtol=1e-9)


def test_blocks_of_columns_sum_to_the_same() -> None:
    rng = np.random.default_rng(4)
    grad = 1.0 + rng.standard_normal((30, 80_000))  # three blocks
    update = -grad + rng.standard_normal((30, 80_000))
    found = stochastic(grad, update)
    total = grad.sum(axis=0) @ update.sum(axis=0) - np.vdot(grad, update)
    assert found.grad_update.value == pytest.approx(total / (30 * 29), rel=1e-11)


def test_two_samples_have_no_interval() -> None:
    grad, update = samples(n=2, noise=0.01)
    found = stochastic(grad, update)
    assert found.status == "ok"
    assert math.isnan(found.interval[0])
    assert any("jackknife" in reason for reason in found.reasons)


def test_torch_samples() -> None:
    torch = pytest.importorskip("torch")
    grad, update = samples()
    found = stochastic(torch.tensor(grad), torch.tensor(update))
    assert found.cosine == stochastic(grad, update).cosine
    assert isinstance(found.pair.gradient(), torch.Tensor)


def test_to_dict_holds_numbers_only() -> None:
    found = stochastic(*samples()).to_dict()
    assert found["cosine_se"] > 0
    assert found["angle"] == pytest.approx(math.acos(found["cosine"]))
    assert "pair" not in found
    assert "60 samples, n=12, cosine=" in repr(stochastic(*samples()))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"lr": 0.0}, ValueError, "positive, finite lr"),
        ({"update": np.ones((59, 12))}, ValueError, "same shape as update"),
        ({"grad": np.ones((1, 12)), "update": np.ones((1, 12))}, ValueError, "at least 2 samples"),
        ({"grad": None}, ValueError, "full_gradient"),
        ({"full_gradient": np.ones(11)}, ValueError, "expected full_gradient"),
        ({"loss_change": np.ones(59)}, ValueError, "loss_change of shape"),
        ({"update": {"a": np.ones((60, 3)), "b": np.ones((59, 3))}}, ValueError, "first axis"),
        ({"grad": np.ones((60, 12), dtype=int)}, TypeError, "float64"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], error: type[Exception], match: str) -> None:
    grad, update = samples()
    arguments: dict[str, object] = {"grad": grad, "update": update} | change
    with pytest.raises(error, match=match):
        stochastic(**arguments)  # type: ignore[arg-type]
