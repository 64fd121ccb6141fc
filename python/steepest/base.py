"""Reference metrics: what `base=` accepts, and the alignment relative to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest import _core
from steepest.alignment import Alignment, align_vectors
from steepest.arrays import LongVector, long_vector
from steepest.metrics.interface import Metric
from steepest.metrics.operator_base import BaseOperator, relative_alignment

__all__ = ["OperatorPair", "base_alignment", "diagonal_base", "is_diagonal", "operator_pair"]


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
    return isinstance(base, Mapping) or hasattr(base, "__array__") or hasattr(base, "__dlpack__") or isinstance(
        base, list | tuple
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


@dataclass(frozen=True)
class OperatorPair:
    """A pair with its images under an operator base.

    Attributes
    ----------
    base : BaseOperator
        B.
    y, g : ndarray, shape (n,)
        -grad and update, float64.
    image, preimage : ndarray, shape (n,)
        B g and B^-1 y.
    """

    base: BaseOperator
    y: NDArray[np.float64]
    g: NDArray[np.float64]
    image: NDArray[np.float64]
    preimage: NDArray[np.float64]


def operator_pair(y: LongVector, g: LongVector, base: Any, solve: Callable[[Any], Any] | None = None) -> OperatorPair:
    """One product and one solve with the base.

    Parameters
    ----------
    y, g : LongVector
        Gradient and update.
    base : Metric or LinearOperator
        B.
    solve : callable, optional
        See `BaseOperator`.

    Returns
    -------
    OperatorPair
        Four vectors of length n.
    """
    operator = BaseOperator(base, y.size, solve)
    minus_grad, update = -y.flat(), g.flat()
    return OperatorPair(operator, minus_grad, update, operator.product(update), operator.solution(minus_grad))


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
    p = operator_pair(y, g, base)
    return relative_alignment(plain, p.y, p.g, p.image, p.preimage)
