"""Reference metrics: what `base=` accepts, and the alignment relative to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from steepest import _core
from steepest.alignment import Alignment, align_vectors
from steepest.arrays import LongVector, long_vector
from steepest.metrics.interface import Metric
from steepest.metrics.operator_base import BaseOperator, operator_pair

__all__ = ["base_alignment", "diagonal_base", "is_diagonal"]


def is_diagonal(base: Any) -> bool:
    """Whether a base is given by its diagonal: an array or a mapping, rather than an operator.

    Parameters
    ----------
    base : Any
        What the user handed in.

    Returns
    -------
    bool
        True for arrays and mappings.
    """
    if isinstance(base, Metric) or hasattr(base, "matvec"):
        return False
    return (
        isinstance(base, Mapping)
        or hasattr(base, "__array__")
        or hasattr(base, "__dlpack__")
        or isinstance(base, list | tuple)
    )


def diagonal_base(base: Any, like: LongVector) -> LongVector:
    """A positive diagonal in the layout of the gradient.

    Parameters
    ----------
    base : array or mapping
        Of the shapes of the gradient; a flat array of shape (n,) for a single array of any shape.
    like : LongVector
        The gradient.

    Returns
    -------
    LongVector
        Views of the diagonal.

    Raises
    ------
    ValueError
        Another shape, or an element that is not positive and finite.
    """
    if isinstance(base, Mapping) and like.layout.names is not None and set(base) == set(like.layout.names):
        base = {name: base[name] for name in like.layout.names}
    d = long_vector(base, "base")
    if d.layout != like.layout:
        if d.layout.names is not None or d.layout.shapes[0] != (like.size,):
            what = f"a diagonal of the same shape as grad, which is {like.layout}, or ({like.size},)"
            raise ValueError(f"expected base to be {what}, got {d.layout}; pass a full matrix as a LinearOperator")
        ends = np.cumsum(like.layout.sizes).tolist()
        cuts = [d.segments[0][end - size : end] for size, end in zip(like.layout.sizes, ends, strict=True)]
        d = LongVector(cuts, like.layout, d.dtypes * len(cuts))
    wrong = _core.first_not_positive(d.segments)
    if wrong >= 0:
        raise ValueError(f"expected a base with positive, finite diagonal, got another value at flat index {wrong}")
    return d


def base_alignment(y: LongVector, g: LongVector, base: Any) -> Alignment:
    """Alignment relative to a diagonal, a Metric or a LinearOperator.

    Parameters
    ----------
    y, g : LongVector
        Gradient and update.
    base : array, mapping, Metric or LinearOperator
        The reference metric.

    Returns
    -------
    Alignment
        With ``relative=True``.
    """
    if is_diagonal(base):
        return align_vectors(y, g, diagonal_base(base, y))
    plain = align_vectors(y, g)
    if plain.status not in ("ok", "ascent", "undecided"):
        return plain
    return operator_pair(y, g, plain, BaseOperator(base, y.size)).relative
