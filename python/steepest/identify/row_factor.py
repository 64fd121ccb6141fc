"""Any number of pairs of columns, kept as one triangular factor: all that a least-squares fit of A needs of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["RowFactor", "triangle"]

Array = NDArray[np.float64]


class RowFactor:
    """The R factor of stacked rows ``[G^T, Y^T]``, updated as columns of G and Y come.

    ``sum |A G - Y|_F^2 = |A X - B|_F^2 + rest`` for every A, with ``[X^T, B^T]`` the first m rows of R. Nothing is
    squared, so nothing is lost of the condition of G.

    Parameters
    ----------
    m : int
        Rows of G and of Y.

    Notes
    -----
    Sequential TSQR (Demmel, Grigori, Hoemmen and Langou 2012). Cost: 8 m^2 operations for each column, in blocks of
    about 4 m columns; memory: some 6 m x 2 m numbers, and what one call brings.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest.identify.row_factor import RowFactor
    >>> G, Y = np.random.default_rng(0).normal(size=(2, 3, 50))
    >>> factor = RowFactor(3)
    >>> for begin in range(0, 50, 10):
    ...     factor.add(G[:, begin : begin + 10], Y[:, begin : begin + 10])
    >>> X, B, rest = factor.pair()
    >>> A = np.diag([1.0, 2.0, 3.0])
    >>> bool(np.isclose(np.sum((A @ G - Y) ** 2), np.sum((A @ X - B) ** 2) + rest))
    True
    """

    def __init__(self, m: int) -> None:
        if m < 1:
            raise ValueError(f"expected m >= 1 rows, got {m}")
        self.m = m
        self.columns = 0
        self._rows: list[Array] = []
        self._waiting = 0

    def add(self, G: ArrayLike, Y: ArrayLike) -> None:
        """More columns.

        Parameters
        ----------
        G, Y : array_like, shape (m, k)
            Copied.

        Raises
        ------
        ValueError
            Another shape.
        """
        g, y = np.asarray(G, dtype=np.float64), np.asarray(Y, dtype=np.float64)
        if g.ndim != 2 or g.shape[0] != self.m or g.shape != y.shape:
            raise ValueError(f"expected G and Y of shape ({self.m}, k), got {g.shape} and {y.shape}")
        self._rows.append(np.concatenate([g.T, y.T], axis=1))
        self.columns += g.shape[1]
        self._waiting += g.shape[1]
        if self._waiting >= 4 * self.m:
            self._reduce()

    def pair(self) -> tuple[Array, Array, float]:
        """What is left of the fit of Y from G.

        Returns
        -------
        X, B : ndarray, shape (m, m)
            In place of G and Y.
        rest : float
            The part of ``|A G - Y|_F^2`` that no A changes.
        """
        return self._split(self._reduce())

    def swapped(self) -> tuple[Array, Array, float]:
        """The same for the fit of G from Y.

        Returns
        -------
        X, B : ndarray, shape (m, m)
            In place of Y and G.
        rest : float
            The part of ``|P Y - G|_F^2`` that no P changes.
        """
        r = self._reduce()
        return self._split(triangle(np.concatenate([r[:, self.m :], r[:, : self.m]], axis=1)))

    def _reduce(self) -> Array:
        """All rows as one triangle of at most 2 m rows."""
        if self._waiting or not self._rows:
            self._rows = [triangle(np.concatenate([np.zeros((0, 2 * self.m)), *self._rows]))]
            self._waiting = 0
        return self._rows[0]

    def _split(self, r: Array) -> tuple[Array, Array, float]:
        m = self.m
        full = np.zeros((2 * m, 2 * m))
        full[: len(r)] = r
        return full[:m, :m].T.copy(), full[:m, m:].T.copy(), float(np.sum(full[m:, m:] ** 2))


def triangle(rows: Array) -> Array:
    """R factor of the QR decomposition.

    Parameters
    ----------
    rows : ndarray, shape (k, n)
        Any k.

    Returns
    -------
    ndarray, shape (min(k, n), n)
        Upper triangular; ``R^T R = rows^T rows``.
    """
    return np.asarray(np.linalg.qr(rows, mode="r"), dtype=np.float64)
