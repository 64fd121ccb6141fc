"""Four losses in 2, 10 and 10 000 dimensions, with gradients and Hessian-vector products in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import scipy.sparse

DIMENSIONS = (2, 10, 10_000)


@dataclass(frozen=True)
class Loss:
    """Attributes: value (of points stacked along first axes, too), gradient, Hessian times a vector."""

    value: Callable[[np.ndarray], Any]
    grad: Callable[[np.ndarray], np.ndarray]
    hvp: Callable[[np.ndarray, np.ndarray], np.ndarray]


def quadratic_hessian(n: int) -> scipy.sparse.csr_array:
    """Tridiagonal and positive definite, with a condition number of about 100."""
    h = np.geomspace(0.1, 10.0, n)
    # of sum (z_{i+1} - z_i)^2 / 2
    chain = np.full(n, 2.0)
    chain[[0, -1]] = 1.0
    return scipy.sparse.diags_array([h + chain, -np.ones(n - 1), -np.ones(n - 1)], offsets=[0, 1, -1]).tocsr()


def quadratic(n: int) -> Loss:
    h, center, matrix = np.geomspace(0.1, 10.0, n), np.linspace(-1.0, 1.0, n), quadratic_hessian(n)

    def value(x: np.ndarray) -> Any:
        z = x - center
        return 0.5 * (np.sum(h * z**2, axis=-1) + np.sum((z[..., 1:] - z[..., :-1]) ** 2, axis=-1))

    return Loss(value, lambda x: matrix @ (x - center), lambda x, v: matrix @ v)


def rosenbrock(n: int) -> Loss:
    def value(x: np.ndarray) -> Any:
        return np.sum(100 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (1 - x[..., :-1]) ** 2, axis=-1)

    def grad(x: np.ndarray) -> np.ndarray:
        g, rest = np.zeros(n), x[1:] - x[:-1] ** 2
        g[:-1] = -400 * x[:-1] * rest - 2 * (1 - x[:-1])
        g[1:] += 200 * rest
        return g

    def hvp(x: np.ndarray, v: np.ndarray) -> np.ndarray:
        h = np.zeros(n)
        h[:-1] = (1200 * x[:-1] ** 2 - 400 * x[1:] + 2) * v[:-1] - 400 * x[:-1] * v[1:]
        h[1:] += 200 * v[1:] - 400 * x[:-1] * v[:-1]
        return h

    return Loss(value, grad, hvp)


def double_well(n: int) -> Loss:
    """Wells at +-1 for each element, and springs between neighbours."""

    def value(x: np.ndarray) -> Any:
        return np.sum((x**2 - 1) ** 2, axis=-1) + 0.5 * np.sum((x[..., 1:] - x[..., :-1]) ** 2, axis=-1)

    def springs(x: np.ndarray) -> np.ndarray:
        pull = np.zeros(n)
        pull[1:] += x[1:] - x[:-1]
        pull[:-1] -= x[1:] - x[:-1]
        return pull

    return Loss(value, lambda x: 4 * x * (x**2 - 1) + springs(x), lambda x, v: (12 * x**2 - 4) * v + springs(v))


def _features(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of digits, and whether they show 5 or more: the first n principal components, each of variance 1, of all
    1797; beyond 64, where there are no more, n random cosines of the pixels of the first 200.
    """
    import pytest

    images, digits = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    pixels, signs = images / 16.0, np.where(digits >= 5, 1.0, -1.0)
    if n <= 64:
        centered = pixels - pixels.mean(axis=0)
        u = np.linalg.svd(centered, full_matrices=False)[0]
        return u[:, :n] * np.sqrt(len(u)), signs
    rng = np.random.default_rng(n)
    weights, phases = rng.standard_normal((64, n)), rng.uniform(0.0, 2 * np.pi, n)
    return np.cos(pixels[:200] @ weights + phases) * np.sqrt(2.0 / n), signs[:200]


def logistic(n: int) -> Loss:
    """Logistic regression on real digits."""
    features, signs = _features(n)
    signed = features * signs[:, None]
    m = len(signs)

    def falling(margin: np.ndarray) -> np.ndarray:
        """1/(1 + exp(margin)), without overflow."""
        return np.exp(-np.logaddexp(0.0, margin))

    def hvp(x: np.ndarray, v: np.ndarray) -> np.ndarray:
        p = falling(signed @ x)
        return (p * (1 - p) * (signed @ v)) @ signed / m

    return Loss(
        lambda x: np.mean(np.logaddexp(0.0, -(x @ signed.T)), axis=-1),
        lambda x: -(falling(signed @ x) @ signed) / m,
        hvp,
    )


LOSSES = {"quadratic": quadratic, "rosenbrock": rosenbrock, "logistic": logistic, "double well": double_well}


@cache
def loss_of(name: str, n: int) -> Loss:
    return LOSSES[name](n)
