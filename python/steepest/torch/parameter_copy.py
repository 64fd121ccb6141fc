"""Parameters in the host's memory, and their copy from before a step, as the compiled core reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steepest import _core
from steepest.arrays import Layout, LongVector, view
from steepest.parameter_difference import Difference

__all__ = ["ParameterCopy", "views_of"]

_NAMES = {torch.float64: "float64", torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
# float32 holds the difference of two half-precision numbers with all its digits.
_DIFFERENCE = {"float64": "float64", "float32": "float32", "float16": "float32", "bfloat16": "float32"}


class ParameterCopy:
    """The one resident copy of the parameters, in their own element types.

    Parameters
    ----------
    tensors : list of Tensor
        The parameters.
    layout : Layout
        Their names and shapes.

    Notes
    -----
    The copy is made anew before each step, although the parameters after a step are mostly those before the next:
    nothing tells when they are not, for `Tensor._version` does not count what is written through ``.data`` or a NumPy
    view. Views are kept from step to step, for as long as a tensor stays in its place in memory: with hundreds of
    arrays making them takes longer than reading them.
    """

    def __init__(self, tensors: list[torch.Tensor], layout: Layout) -> None:
        self._tensors, self._layout = tensors, layout
        self._places: list[tuple[Any, ...]] = []
        self._after = self._before = LongVector([], layout, ())

    def take(self, norms: bool = False) -> list[float]:
        """Copy the parameters, into the memory of the last copy.

        Parameters
        ----------
        norms : bool
            Whether norms are asked for.

        Returns
        -------
        list of float
            The norm of each array, or nothing.
        """
        self._look()
        segments, dtypes = self._after.segments, self._after.dtypes
        if dtypes != self._before.dtypes:
            self._before = LongVector([np.empty(x.shape, x.dtype) for x in segments], self._layout, dtypes)
        return [math.sqrt(square) for square in _core.copy(segments, self._before.segments, norms)]

    def difference(self) -> Difference:
        """The update, once the optimiser has made its step; it may take the memory of the copy.

        Returns
        -------
        Difference
            In float32 for narrower parameters.
        """
        self._look()
        dtypes = tuple(_DIFFERENCE[name] for name in self._after.dtypes)
        return Difference(self._after, self._before, dtypes, floor_after=True, in_place=True)

    def _look(self) -> None:
        """Views of the parameters, made anew if one of them has moved."""
        places = [(p.data_ptr(), p.shape, p.stride(), p.dtype) for p in self._tensors]
        if places != self._places:
            self._after = views_of(self._tensors, self._layout)
            self._places = places


def views_of(tensors: Sequence[torch.Tensor], layout: Layout) -> LongVector:
    """Views of tensors in the host's memory.

    Parameters
    ----------
    tensors : sequence of Tensor
        One for each array.
    layout : Layout
        Their names and shapes.

    Returns
    -------
    LongVector
        Without copies.

    Raises
    ------
    ValueError
        Other shapes.
    TypeError
        As `steepest.arrays.long_vector`.
    """
    found = [_view(x) for x in tensors]
    shapes = tuple(v.shape for v, _ in found)
    if shapes != layout.shapes:
        raise ValueError(f"expected tensors of {layout} as in the first step, got {Layout(layout.names, shapes)}")
    return LongVector([v for v, _ in found], layout, tuple(name for _, name in found))


def _view(x: torch.Tensor) -> tuple[NDArray[Any], str]:
    name = _NAMES.get(x.dtype, "")
    if type(x) not in (torch.Tensor, torch.nn.Parameter) or not name or not x.is_cpu or x.is_neg():
        return view(x.detach().cpu(), "a tensor")
    x = x.detach() if x.requires_grad else x
    return (x.view(torch.int16).numpy().view(np.uint16) if name == "bfloat16" else x.numpy()), name
