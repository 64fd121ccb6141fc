"""The fitted steps as rows in memory, for families that need all of them at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import Layout
from steepest.identify.passes import CHUNK, ScaledStep

__all__ = ["KeptRows", "members"]

Array = NDArray[np.float64]
_BATCH = 1 << 20  # numbers at a time


def members(layout: Layout, block: int) -> range:
    """Which arrays of a layout belong to a block.

    Parameters
    ----------
    layout : Layout
        Of the run.
    block : int
        Place in the blocks, ``(all)`` first.

    Returns
    -------
    range
        Places in the layout.
    """
    return range(len(layout.sizes)) if block == 0 else range(block - 1, block)


class KeptRows:
    """y = -grad and g = update of up to `capacity` steps, one row each, for every array of the layout.

    Float64 where an array has it, else float32, into which narrower types go exactly: 2 n steps numbers in all.

    Parameters
    ----------
    layout : Layout
        Of the run.
    capacity : int
        Number of steps.

    Attributes
    ----------
    count : int
        Steps that are kept.
    exponents : tuple of int
        Units of y and g.
    """

    def __init__(self, layout: Layout, capacity: int) -> None:
        self.layout = layout
        self.count = 0
        self.exponents = (0, 0)
        self._capacity = capacity
        self._y: list[NDArray[np.floating]] = []
        self._g: list[NDArray[np.floating]] = []

    def add(self, step: ScaledStep) -> None:
        """Keep one more step.

        Parameters
        ----------
        step : ScaledStep
            Copied.
        """
        finest = [
            "float64" if "float64" in pair else "float32"
            for pair in zip(step.grad.dtypes, step.update.dtypes, strict=True)
        ]
        if not self._y:
            for into in (self._y, self._g):
                sizes = zip(self.layout.sizes, finest, strict=True)
                into.extend(np.empty((self._capacity, size), dtype) for size, dtype in sizes)
            self.exponents = step.exponents
        for rows in (self._y, self._g):
            for i, dtype in enumerate(finest):
                if dtype == "float64" and rows[i].dtype != np.float64:  # a later step may be finer than the first
                    rows[i] = rows[i].astype(np.float64)
        for i, at, y, g in step.chunks():
            self._y[i][self.count, at], self._g[i][self.count, at] = y, g
        self.count += 1

    def dtype(self, block: int) -> str:
        """The finest type of a block, 'float64' or 'float32'.

        Parameters
        ----------
        block : int
            Place in the blocks.

        Returns
        -------
        str
            Float64 if nothing is kept.
        """
        found = {str(self._y[i].dtype) for i in members(self.layout, block)} if self._y else {"float64"}
        return "float64" if "float64" in found else "float32"

    def chunks(self, array: int) -> Iterator[tuple[slice, Array, Array]]:
        """Runs of elements of all rows.

        Parameters
        ----------
        array : int
            Place in the layout.

        Yields
        ------
        at : slice
            Of the array, flat.
        y, g : ndarray, shape (count, elements)
            Float64, to read only.
        """
        for begin in range(0, self.layout.sizes[array], CHUNK):
            at = slice(begin, begin + CHUNK)
            y, g = (np.asarray(x[array][: self.count, at], np.float64) for x in (self._y, self._g))
            yield at, y, g

    def batches(self, block: int) -> Iterator[tuple[Array, Array]]:
        """A few whole rows at a time.

        Parameters
        ----------
        block : int
            Place in the blocks.

        Yields
        ------
        y, g : ndarray, shape (rows, size of the block)
            Float64, to read only.
        """
        own = members(self.layout, block)
        size = sum(self.layout.sizes[i] for i in own)
        step = max(1, _BATCH // size)
        for begin in range(0, self.count, step):
            at = slice(begin, min(begin + step, self.count))
            y, g = (
                np.asarray(x[own[0]][at], np.float64)
                if len(own) == 1
                else np.concatenate([x[i][at] for i in own], axis=1, dtype=np.float64)
                for x in (self._y, self._g)
            )
            yield y, g

    def grams(self) -> list[tuple[Array, Array, Array]]:
        """Inner products of all rows.

        Returns
        -------
        list of (ndarray, ndarray, ndarray)
            G^T G, G^T Y, Y^T Y, shape (count, count), for each array.
        """
        found = []
        for i in range(len(self.layout.sizes)):
            gg, gy, yy = (np.zeros((self.count, self.count)) for _ in range(3))
            for _, y, g in self.chunks(i) if self.count else ():
                gg += g @ g.T
                gy += g @ y.T
                yy += y @ y.T
            found.append((gg, gy, yy))
        return found

    def combined(self, array: int, of_g: Array, of_y: Array) -> NDArray[np.floating]:
        """Linear combinations of the rows.

        Parameters
        ----------
        array : int
            Place in the layout.
        of_g, of_y : ndarray, shape (m, count)
            Coefficients.

        Returns
        -------
        ndarray, shape (m, size)
            ``of_g @ G + of_y @ Y``, in the type of the rows.
        """
        out = np.empty((len(of_g), self.layout.sizes[array]), self._y[array].dtype)
        for at, y, g in self.chunks(array):
            out[:, at] = of_g @ g + of_y @ y
        return out
