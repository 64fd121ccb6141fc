"""Piecewise polynomial paths: Lagrange basis at Gauss-Lobatto nodes, Gauss quadrature on every element."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray

__all__ = ["PathBasis"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PathBasis:
    """Continuous paths on [0, horizon], of one degree on each of equal elements.

    Attributes
    ----------
    horizon : float
        T.
    n_elements, degree : int
        Both at least 1; a path has ``n_elements * degree + 1`` nodes.
    """

    horizon: float
    n_elements: int
    degree: int

    @cached_property
    def _lobatto(self) -> Array:
        """Nodes on [-1, 1]: the ends, and the roots of P_degree'."""
        inner = legendre.Legendre.basis(self.degree).deriv().roots()
        return np.concatenate([[-1.0], np.sort(inner.real), [1.0]])

    @cached_property
    def _gauss(self) -> tuple[Array, Array]:
        points, weights = legendre.leggauss(self.degree + 2)
        return points, weights

    @cached_property
    def index(self) -> NDArray[np.intp]:
        """Nodes of each element: (n_elements, degree + 1)."""
        return self.degree * np.arange(self.n_elements)[:, None] + np.arange(self.degree + 1)

    @property
    def width(self) -> float:
        """Of an element."""
        return self.horizon / self.n_elements

    @cached_property
    def nodes(self) -> Array:
        """Times of the nodes: (n_elements * degree + 1,)."""
        left = self.width * np.arange(self.n_elements)[:, None]
        inner = (left + 0.5 * self.width * (1.0 + self._lobatto[:-1])).ravel()
        return np.concatenate([inner, [self.horizon]])

    @cached_property
    def points(self) -> Array:
        """Times of the quadrature points, element by element: (n_elements * (degree + 2),)."""
        left = self.width * np.arange(self.n_elements)[:, None]
        return (left + 0.5 * self.width * (1.0 + self._gauss[0])).ravel()

    @cached_property
    def weights(self) -> Array:
        """Quadrature weights; they sum to the horizon."""
        return np.tile(0.5 * self.width * self._gauss[1], self.n_elements)

    def _interpolation(self, at: Array) -> tuple[Array, Array]:
        """Values and slopes of the basis of one element at places in [-1, 1]: (len(at), degree + 1) each."""
        inverse = np.linalg.inv(legendre.legvander(self._lobatto, self.degree))
        slopes = np.column_stack(
            [legendre.Legendre.basis(j).deriv()(at) if j else np.zeros_like(at) for j in range(self.degree + 1)]
        )
        return legendre.legvander(at, self.degree) @ inverse, slopes @ inverse * (2.0 / self.width)

    @cached_property
    def _at_gauss(self) -> tuple[Array, Array]:
        return self._interpolation(self._gauss[0])

    @cached_property
    def gauss_slope(self) -> Array:
        """Derivative matrix on the quadrature points of one element: (degree + 2, degree + 2)."""
        points = self._gauss[0]
        order = len(points) - 1
        slopes = np.column_stack(
            [legendre.Legendre.basis(j).deriv()(points) if j else np.zeros_like(points) for j in range(order + 1)]
        )
        derivative: Array = slopes @ np.linalg.inv(legendre.legvander(points, order)) * (2.0 / self.width)
        return derivative

    def at_points(self, c: Array) -> tuple[Array, Array]:
        """States and velocities at the quadrature points of the path with nodal values c, (nodes, n)."""
        elements = c[self.index]
        value, slope = self._at_gauss
        n = c.shape[1]
        return (value @ elements).reshape(-1, n), (slope @ elements).reshape(-1, n)

    def adjoint(self, by_state: Array, by_velocity: Array) -> Array:
        """Gradient with respect to the nodal values from those by states and velocities at the points."""
        value, slope = self._at_gauss
        n = by_state.shape[1]
        shape = (self.n_elements, -1, n)
        elements = value.T @ by_state.reshape(shape) + slope.T @ by_velocity.reshape(shape)
        gradient = np.zeros((len(self.nodes), n))
        np.add.at(gradient, self.index, elements)
        return gradient

    def stiffness(self, density: Array) -> Array:
        """Matrix of ``int density |theta'|^2 dt`` in the nodal values, (nodes, nodes)."""
        _, slope = self._at_gauss
        mass = (self.weights * density).reshape(self.n_elements, -1)
        matrix = np.zeros((len(self.nodes), len(self.nodes)))
        for element, weight in zip(self.index, mass, strict=True):
            matrix[np.ix_(element, element)] += slope.T @ (weight[:, None] * slope)
        return matrix

    def at(self, c: Array, t: Array) -> tuple[Array, Array]:
        """States and velocities at any times in [0, horizon]: (T, n) each; at a joint, of the element to its right."""
        place = np.clip((t / self.width).astype(int), 0, self.n_elements - 1)
        values, slopes = self._interpolation(2.0 * (t / self.width - place) - 1.0)
        elements = c[self.index[place]]
        return np.einsum("tj,tjn->tn", values, elements), np.einsum("tj,tjn->tn", slopes, elements)

    def nodal_velocity(self, c: Array) -> Array:
        """Velocities at the nodes, the mean of both sides at joints: (nodes, n)."""
        _, slope = self._interpolation(self._lobatto)
        total = np.zeros_like(c)
        np.add.at(total, self.index, slope @ c[self.index])
        total[self.degree : -1 : self.degree] *= 0.5
        return total
