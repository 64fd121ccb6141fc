"""The loss landscape: quadratics, dense or diagonal, and any smooth loss by its value and gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Drift", "Loss", "Quadratic", "finite_array", "product", "symmetric"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Quadratic:
    """``L(theta) = (theta - mu)^T H (theta - mu) / 2``.

    Parameters
    ----------
    H : array_like, shape (n, n) or (n,)
        Curvature, symmetric; of shape (n,) it is the diagonal, and everything costs O(n).
    mu : array_like, shape (n,) or scalar
        The stationary point.

    Raises
    ------
    ValueError
        H is not symmetric, shapes differ, or a value is not finite.

    Examples
    --------
    >>> bowl = Quadratic([1.0, 4.0], mu=[1.0, 0.0])
    >>> bowl.value([0.0, 1.0]), bowl.gradient([0.0, 1.0]).tolist()
    (2.5, [-1.0, 4.0])
    """

    H: Array
    mu: Array

    def __init__(self, H: ArrayLike, mu: ArrayLike = 0.0) -> None:
        curvature = symmetric(H, "H")
        place = finite_array(mu, "mu")
        if place.ndim == 0:
            place = np.full(len(curvature), float(place))
        if place.shape != (len(curvature),):
            raise ValueError(f"expected mu to be a scalar or of shape ({len(curvature)},), got shape {place.shape}")
        curvature.flags.writeable = place.flags.writeable = False
        object.__setattr__(self, "H", curvature)
        object.__setattr__(self, "mu", place)

    @property
    def size(self) -> int:
        """Number of parameters n."""
        return len(self.mu)

    @property
    def diagonal(self) -> bool:
        """Whether H is held as its diagonal."""
        return self.H.ndim == 1

    def value(self, theta: ArrayLike) -> Any:
        """L at `theta` of shape (..., n): a float, or an array of shape (...)."""
        offset = np.asarray(theta, dtype=np.float64) - self.mu
        values = 0.5 * np.einsum("...i,...i->...", offset, product(self.H, offset))
        return float(values) if values.ndim == 0 else values

    def gradient(self, theta: ArrayLike) -> Array:
        """``H (theta - mu)``, of the shape of `theta`, (..., n)."""
        return product(self.H, np.asarray(theta, dtype=np.float64) - self.mu)

    def hvp(self, theta: ArrayLike, v: ArrayLike) -> Array:  # noqa: ARG002 (the curvature is the same everywhere)
        """``H v``, of the shape of `v`, (..., n)."""
        return product(self.H, np.asarray(v, dtype=np.float64))

    def absolute(self) -> Quadratic:
        """The quadratic with |H|: negative curvatures count as positive ones, so that a rule exists at any discount.

        The metric of its rule, applied to the gradient of L itself, leaves saddle points:
        ``theta' = -policy.metric().solve(L.gradient(theta))`` (section 13).

        Returns
        -------
        Quadratic
            Of the same mu.
        """
        if self.diagonal:
            return Quadratic(np.abs(self.H), self.mu)
        values, vectors = np.linalg.eigh(self.H)
        return Quadratic((vectors * np.abs(values)) @ vectors.T, self.mu)

    def dense(self) -> Array:
        """H of shape (n, n)."""
        return np.diag(self.H) if self.diagonal else self.H


@dataclass(frozen=True, eq=False)
class Loss:
    """A smooth loss by callables.

    Parameters
    ----------
    value : callable theta -> float
        For theta of shape (n,).
    gradient : callable theta -> array of shape (n,)
        +dL/dtheta.
    hvp : callable (theta, v) -> array of shape (n,), optional
        Hessian times v: lets the path solver finish with Newton's method, and tell minima from saddle points.
    vectorized : bool
        The callables also take theta (and v) of shape (m, n), and return (m,) and (m, n).

    Examples
    --------
    >>> import numpy as np
    >>> quartic = Loss(lambda x: float(np.sum(x**4)) / 4, lambda x: x**3)
    >>> quartic.gradient(np.array([2.0])).tolist()
    [8.0]
    """

    value: Callable[[Any], Any]
    gradient: Callable[[Any], Any]
    hvp: Callable[[Any, Any], Any] | None = None
    vectorized: bool = False

    def __post_init__(self) -> None:
        for name in ("value", "gradient", "hvp"):
            given = getattr(self, name)
            if not callable(given) and not (name == "hvp" and given is None):
                raise TypeError(f"expected {name} to be callable, got {type(given).__name__}")


@dataclass(frozen=True, eq=False)
class Drift:
    """A default motion ``f(theta)``, not linear, for the path solver.

    Parameters
    ----------
    value : callable theta -> array of shape (n,)
        f.
    vjp : callable (theta, w) -> array of shape (n,)
        ``(df/dtheta)^T w``.
    """

    value: Callable[[Any], Any]
    vjp: Callable[[Any, Any], Any]

    def __post_init__(self) -> None:
        for name in ("value", "vjp"):
            if not callable(getattr(self, name)):
                raise TypeError(f"expected {name} to be callable, got {type(getattr(self, name)).__name__}")


def product(A: Array, x: Array) -> Array:
    """``A x`` for A given in full, (n, n), or as its diagonal, (n,); x has shape (..., n).

    Parameters
    ----------
    A, x : ndarray
        Matrix and vectors.

    Returns
    -------
    ndarray
        Of the shape of x.
    """
    result: Array = A * x if A.ndim == 1 else x @ A.T
    return result


def finite_array(values: ArrayLike, name: str) -> Array:
    """A float64 copy, all finite.

    Parameters
    ----------
    values : array_like
        Real numbers.
    name : str
        For messages.

    Returns
    -------
    ndarray
        Float64.

    Raises
    ------
    TypeError
        Not real numbers.
    ValueError
        A value is NaN or infinite.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"expected {name} to hold real numbers, got dtype {array.dtype}")
    array = np.array(array, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"expected {name} to be finite, got NaN or Inf at index {np.argwhere(~np.isfinite(array))[0]}")
    return array


def symmetric(values: ArrayLike, name: str) -> Array:
    """A symmetric matrix, (n, n), or a diagonal, (n,), as float64.

    Parameters
    ----------
    values : array_like
        The matrix; asymmetry of rounding is averaged away.
    name : str
        For messages.

    Returns
    -------
    ndarray
        Exactly symmetric.

    Raises
    ------
    ValueError
        Not square, empty, or not symmetric.
    """
    A = finite_array(values, name)
    if A.ndim not in (1, 2) or A.shape[0] != A.shape[-1] or A.size == 0:
        raise ValueError(f"expected {name} to be of shape (n, n), or (n,) for a diagonal, n >= 1, got {A.shape}")
    if A.ndim == 1:
        return A
    gap, size = float(np.abs(A - A.T).max()), float(np.abs(A).max())
    if gap > 1e-10 * size:
        raise ValueError(
            f"expected {name} to be symmetric, got a difference of up to {gap:.3g} from its transpose beside "
            f"elements up to {size:.3g}; pass ({name} + {name}^T)/2 if that is what is meant"
        )
    return 0.5 * (A + A.T)
