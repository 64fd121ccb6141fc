"""Formulation (ii) of stochastic rules: identities on a loss that is not quadratic, against dense matrices."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest

import steepest
from steepest import stability
from steepest.pairs.stochastic import StochasticPair, stochastic

Array = np.ndarray
NODES, WEIGHTS = np.polynomial.legendre.leggauss(8)  # exact for the polynomials below


class Quartic:
    """``L = x^T A x/2 + sum x^4/4 + (b.x)^3/6`` with noisy steps along a distorted gradient."""

    def __init__(self, size: int, lr: float, seed: int = 0, n: int = 60, lowest: float = -1.0) -> None:
        rng = np.random.default_rng(seed)
        Q = np.linalg.qr(rng.standard_normal((size, size)))[0]
        self.A = Q @ np.diag(np.linspace(lowest, 2.0, size)) @ Q.T
        self.b = 0.3 * rng.standard_normal(size)
        self.x, self.lr = 1.0 + 0.5 * rng.standard_normal(size), lr
        self.grad = self.gradient(self.x)
        scale = np.linalg.norm(self.grad) / math.sqrt(size)
        self.g = -self.grad * np.linspace(0.5, 1.5, size) + 0.3 * scale * rng.standard_normal((n, size))
        self.update = lr * self.g
        self.changes = np.array([self.loss(self.x + u) - self.loss(self.x) for u in self.update])

    def loss(self, x: Array) -> float:
        return float(0.5 * x @ self.A @ x + np.sum(x**4) / 4.0 + (self.b @ x) ** 3 / 6.0)

    def gradient(self, x: Array) -> Array:
        return self.A @ x + x**3 + 0.5 * (self.b @ x) ** 2 * self.b

    def hessian(self, x: Array) -> Array:
        return self.A + np.diag(3.0 * x**2) + (self.b @ x) * np.outer(self.b, self.b)

    def averaged(self, u: Array) -> Array:
        """2 int_0^1 (1 - t) H(x + t u) dt u, from the Hessian."""
        t = 0.5 * (NODES + 1.0)
        return sum(w * (1.0 - s) * self.hessian(self.x + s * u) @ u for s, w in zip(t, WEIGHTS, strict=True))

    def found(self, hessian_update: Any = "averaged", **options: Any) -> StochasticPair:
        if isinstance(hessian_update, str):
            hessian_update = np.array([self.averaged(u) for u in self.update])
        return stochastic(
            None,
            self.update,
            full_gradient=self.grad,
            loss_change=self.changes,
            lr=self.lr,
            hessian_update=hessian_update,
            **options,
        )


def dense_form(y: Array, g: Array, h: Array, alpha: float, lr: float) -> tuple[Array, Array]:
    """Mb and Gamma of section 8, entry by entry."""
    n = len(g)
    M, G = np.empty((n, n)), np.empty((n, n))
    for i in range(n):
        for j in range(n):
            M[i, j] = y[i] * y[j] / (y @ g) + alpha * ((i == j) - g[i] * g[j] / (g @ g))
            G[i, j] = (h[i] * g[j] + g[i] * h[j]) / (g @ g) - (h @ g) * g[i] * g[j] / (g @ g) ** 2
    return M, G


@pytest.mark.parametrize("size", [1, 2, 3, 10])
@pytest.mark.parametrize("alpha", ["optimal", "sufficient", 5.0])
def test_the_mean_step_is_a_natural_gradient_step(size: int, alpha: float | str) -> None:
    case = Quartic(size, 0.1, seed=size)
    found = case.found()
    assert found.hessian is not None
    form = found.hessian.natural_form(alpha)
    mean = case.g.mean(axis=0)
    h = np.mean([case.averaged(u) for u in case.update], axis=0) / case.lr
    y = -case.grad - 0.5 * case.lr * h
    M, G = dense_form(y, mean, h, form.alpha, case.lr)
    np.testing.assert_allclose(M @ mean, y, rtol=1e-12, atol=1e-12)  # the oracle itself
    np.testing.assert_allclose(G @ mean, h, rtol=1e-12, atol=1e-12)
    expected = M + 0.5 * case.lr * G
    scale = np.abs(expected).max()

    np.testing.assert_allclose(np.column_stack([form @ e for e in np.eye(size)]), expected, atol=1e-12 * scale)
    np.testing.assert_allclose(form @ np.eye(size), expected, atol=1e-12 * scale)  # columns at once
    np.testing.assert_allclose(form @ mean, -case.grad, rtol=1e-11, atol=1e-12)
    after = case.x - case.lr * form.solve(case.grad)
    np.testing.assert_allclose(after, np.mean(case.x + case.update, axis=0), rtol=1e-11)
    assert form.smallest_eigenvalue == pytest.approx(np.linalg.eigvalsh(expected)[0], rel=1e-9)
    assert form.smallest_eigenvalue > 0
    gamma = found.hessian.gamma
    np.testing.assert_allclose(gamma @ mean, h, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(gamma @ np.eye(size), G, atol=1e-12 * np.abs(G).max())
    np.testing.assert_allclose(gamma.eigenvalues()[0], np.linalg.eigvalsh(G)[0], rtol=1e-9)
    np.testing.assert_allclose(-found.hessian.pair.gradient(), y, rtol=1e-12)


def test_estimates_are_free_of_the_bias_of_noise() -> None:
    case = Quartic(5, 0.2, n=9)
    found = case.found().hessian
    assert found is not None
    h = np.array([case.averaged(u) for u in case.update]) / case.lr

    def u(a: Array, b: Array) -> float:
        n = len(a)
        return math.fsum(float(a[i] @ b[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))

    along = u(h, case.g) / u(case.g, case.g)
    across = math.sqrt(u(h, h) / u(case.g, case.g) - along**2)
    assert found.along == pytest.approx(along, rel=1e-10)
    assert found.across == pytest.approx(across, rel=1e-9)
    assert found.smallest_eigenvalue == pytest.approx(0.5 * (along - math.hypot(along, 2 * across)), rel=1e-9)
    each = np.einsum("ij,ij->i", case.g, h)
    assert found.curvature == pytest.approx((each.mean(), np.std(each, ddof=1) / 3.0), rel=1e-10)
    descent = -case.grad @ case.g.mean(axis=0) - 0.5 * case.lr * u(h, case.g)
    assert found.descent.value == pytest.approx(descent, rel=1e-10)
    assert found.gap.value == pytest.approx(0.5 * case.lr * (each.mean() - u(h, case.g)), rel=1e-8)
    # y.E[g] = -E[dL]/lr + gap
    assert found.descent.value == pytest.approx(-case.changes.mean() / case.lr + found.gap.value, rel=1e-9)
    assert found.expected_change.value == pytest.approx(case.changes.mean(), rel=1e-10)


def test_debiased_numbers_average_to_those_of_the_distribution() -> None:
    # g = gb + noise, H fixed: along and descent are known; those of the sample means are biased by tr Cov/N.
    H, gb, grad, lr = np.diag([1.0, 3.0, -2.0]), np.array([-1.0, -0.5, 0.2]), np.array([1.0, 1.0, 0.0]), 0.5
    rng = np.random.default_rng(0)
    found = []
    for _ in range(3000):
        g = gb + 1.5 * rng.standard_normal((10, 3))
        pair = stochastic(None, lr * g, full_gradient=grad, lr=lr, hessian_update=lr * g @ H).hessian
        assert pair is not None
        found.append((pair.descent.value, pair.gap.value, pair.curvature.value, pair.align().inner_product))
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / math.sqrt(3000)
    descent = -grad @ gb - 0.5 * lr * gb @ H @ gb
    noise = 1.5**2 * np.trace(H)
    assert abs(mean[0] - descent) < 4 * error[0]
    assert abs(mean[1] - 0.5 * lr * noise) < 4 * error[1]
    assert abs(mean[2] - (gb @ H @ gb + noise)) < 4 * error[2]
    biased = -descent + 0.5 * lr * noise / 10
    assert abs(mean[3] - biased) < 4 * error[3]
    assert abs(mean[3] + descent) > 4 * error[3]  # the bias is there to be seen


def test_remainder_says_whether_the_hessians_fit_the_losses() -> None:
    sizes = []
    for lr in (0.1, 0.01):
        case = Quartic(6, lr)
        exact = case.found().hessian
        fixed = case.found(lambda u, case=case: case.hessian(case.x) @ u).hessian
        assert exact is not None
        assert fixed is not None
        assert abs(exact.remainder.value) < 1e-13
        sizes.append(abs(fixed.remainder.value))
        # The identity needs no remainder of zero.
        form = fixed.natural_form("sufficient")
        np.testing.assert_allclose(form @ case.g.mean(axis=0), -case.grad, rtol=1e-11)
    assert math.log10(sizes[0] / sizes[1]) == pytest.approx(3.0, abs=0.2)  # third order
    missing = stochastic(None, case.update, full_gradient=case.grad, hessian_update=case.update).hessian
    assert missing is not None
    assert math.isnan(missing.remainder.value)


def test_the_taylor_point_gives_the_same_curvature_and_a_valid_step() -> None:
    from scipy.optimize import brentq

    case = Quartic(4, 0.1)
    products = []
    for u, change in zip(case.update, case.changes, strict=True):

        def excess(s: float, u: Array = u, change: float = change) -> float:
            return float(u @ case.hessian(case.x + s * u) @ u - 2.0 * (change - case.grad @ u))

        products.append(case.hessian(case.x + brentq(excess, 0.0, 1.0) * u) @ u)
    found, averaged = case.found(np.array(products)).hessian, case.found().hessian
    assert found is not None
    assert averaged is not None
    assert abs(found.remainder.value) < 1e-11
    assert found.curvature.value == pytest.approx(averaged.curvature.value, rel=1e-9)
    np.testing.assert_allclose(found.natural_form() @ case.g.mean(axis=0), -case.grad, rtol=1e-11)


def test_learning_rate_bounds_against_dense_eigenvalues() -> None:
    checked = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        grad, h = rng.standard_normal((2, 5))
        g = -0.2 * grad + rng.standard_normal(5)
        lr = float(rng.uniform(0.05, 1.5))
        exact = np.tile(lr * g, (4, 1))  # no noise: nothing to debias
        found = stochastic(None, exact, full_gradient=grad, lr=lr, hessian_update=np.tile(lr * h, (4, 1))).hessian
        assert found is not None
        y = -grad - 0.5 * lr * h
        if y @ g <= 0:
            with pytest.raises(steepest.NotDescentError):
                found.learning_rate_bounds()
            continue
        bounds = found.learning_rate_bounds()
        M, G = dense_form(y, g, h, float(found.metric().alpha), lr)
        assert found.smallest_eigenvalue == pytest.approx(np.linalg.eigvalsh(G)[0], rel=1e-7)
        assert bounds.optimal == pytest.approx(-2 * np.linalg.eigvalsh(M)[0] / np.linalg.eigvalsh(G)[0], rel=1e-7)
        definite = np.linalg.eigvalsh(M + 0.5 * lr * G)[0] > 0
        assert definite or lr >= bounds.optimal
        assert (-grad @ g > 0) == (lr < bounds.existence)
        if definite:
            assert found.natural_form().smallest_eigenvalue > 0
        elif grad @ g < 0:
            checked += 1
            with pytest.raises(ValueError, match="pass alpha='sufficient'") as refusal:
                found.natural_form()
            needed = float(str(refusal.value).split("alpha > ")[1].split(":")[0])
            assert found.natural_form("sufficient").smallest_eigenvalue > 0
            # the threshold is one
            for factor, sign in ((0.99, -1), (1.01, 1)):
                M, G = dense_form(y, g, h, factor * needed, lr)
                assert np.sign(np.linalg.eigvalsh(M + 0.5 * lr * G)[0]) == sign
        else:
            with pytest.raises(steepest.NotDescentError):
                found.natural_form("sufficient")
    assert checked >= 3


def test_effective_on_average_is_not_enough() -> None:
    # Positive curvature along the mean update, negative curvature where the noise is: the loss falls on average, by
    # the noise alone.
    rng = np.random.default_rng(0)
    H, grad = np.diag([3.0, -2.5]), np.array([1.0, 0.0])
    g = np.array([-1.0, 0.0]) + np.array([0.05, 1.0]) * rng.standard_normal((400, 2))
    changes = g @ grad + 0.5 * np.einsum("ni,ij,nj->n", g, H, g)
    found = stochastic(None, g, full_gradient=grad, loss_change=changes, hessian_update=lambda u: H @ u)
    assert found.loss_p_value < 1e-6
    pair = found.hessian
    assert pair is not None
    assert pair.gap.value < 0
    assert pair.descent.value < -10 * pair.descent.standard_error
    assert "effective on average" in pair.caution
    assert "formulation (i)" in pair.caution.lower()
    assert "caution" in repr(pair)
    with pytest.raises(steepest.NotDescentError) as error:
        pair.natural_form()
    assert pair.caution in error.value.__notes__
    # (i) has no such gap.
    np.testing.assert_allclose(found.natural_form() @ g.mean(axis=0), -grad, atol=1e-12)
    # With the same samples and H positive definite there is nothing to be cautious about.
    convex = stochastic(None, 0.1 * g, full_gradient=grad, lr=0.1, hessian_update=lambda u: np.diag([3.0, 4.0]) @ u)
    assert convex.hessian is not None
    assert convex.hessian.caution == ""
    assert convex.hessian.gap.value > 0


def test_noisy_gradients_too() -> None:
    case = Quartic(4, 0.1)
    grads = case.grad + 0.2 * np.random.default_rng(1).standard_normal(case.update.shape)
    found = stochastic(grads, case.update, lr=0.1, hessian_update=case.averaged)
    assert found.hessian is not None
    form = found.hessian.natural_form("sufficient")
    np.testing.assert_allclose(form @ case.g.mean(axis=0), -grads.mean(axis=0), rtol=1e-11, atol=1e-12)


def test_callables_mappings_and_a_finite_difference_hessian() -> None:
    case = Quartic(6, 0.1)
    array = case.found(np.array([case.hessian(case.x) @ u for u in case.update]))

    def cut(x: Array) -> dict[str, Array]:
        return {"w": x[..., :4].reshape(*x.shape[:-1], 2, 2), "b": x[..., 4:]}

    hvp = stability.finite_difference_hvp(lambda p: cut(case.gradient(np.append(p["w"].ravel(), p["b"]))), cut(case.x))
    swapped = dict(reversed(cut(case.update).items()))
    found = stochastic(
        None, swapped, full_gradient=cut(case.grad), loss_change=case.changes, lr=0.1, hessian_update=hvp
    )
    assert found.hessian is not None
    assert array.hessian is not None
    assert found.hessian.along == pytest.approx(array.hessian.along, rel=1e-6)
    assert found.hessian.smallest_eigenvalue == pytest.approx(array.hessian.smallest_eigenvalue, rel=1e-5)
    form = found.hessian.natural_form()
    mean = case.g.mean(axis=0)
    for x in (cut(mean), dict(reversed(cut(mean).items()))):  # the order of names does not matter
        image = form @ x
        assert list(image) == list(x)
        np.testing.assert_allclose(image["w"].ravel(), -case.grad[:4], rtol=1e-9)
        np.testing.assert_allclose(form.solve(image)["b"], x["b"], rtol=1e-9)
    kept = pickle.loads(pickle.dumps(found))
    assert kept.hessian.natural_form().smallest_eigenvalue == form.smallest_eigenvalue
    numbers = found.to_dict()
    assert numbers["hessian_along"] == found.hessian.along
    assert numbers["hessian_descent_se"] == found.hessian.descent.standard_error
    assert not any("pair" in name for name in numbers)


def test_torch_callable() -> None:
    torch = pytest.importorskip("torch")
    case = Quartic(3, 0.1)
    H = torch.tensor(case.hessian(case.x))
    found = stochastic(
        None,
        torch.tensor(case.update),
        full_gradient=torch.tensor(case.grad),
        lr=0.1,
        hessian_update=lambda u: H @ u,
    )
    expected = case.found(case.update @ H.numpy())
    assert found.hessian is not None
    assert expected.hessian is not None
    assert found.hessian.along == pytest.approx(expected.hessian.along, rel=1e-12)


def test_zero_curvature_and_what_is_not_finite() -> None:
    case = Quartic(3, 0.1)
    flat = case.found(np.zeros_like(case.update)).hessian
    assert flat is not None
    assert (flat.along, flat.across, flat.smallest_eigenvalue) == (0.0, 0.0, 0.0)
    assert math.isinf(flat.learning_rate_bounds().optimal)
    np.testing.assert_allclose(flat.natural_form() @ case.g.mean(axis=0), -case.grad, rtol=1e-11)
    assert case.found(np.full_like(case.update, np.nan)).hessian is None
    still = stochastic(None, 0.0 * case.update, full_gradient=case.grad, hessian_update=case.update)
    assert still.hessian is None
    with pytest.raises(ValueError, match="hessian_update of the same shape"):
        case.found(case.update[:-1])
    with pytest.raises(ValueError, match="result of hessian_update"):
        case.found(lambda u: u[:2])
