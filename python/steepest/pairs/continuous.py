"""The pair of a rule in continuous time, or of a direct pair of vectors."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from steepest.alignment import matched_pair
from steepest.arrays import EPSILON, template_of
from steepest.pairs.descent_pair import DescentPair, coarsest

__all__ = ["continuous"]


def continuous(grad: Any, update: Any) -> DescentPair:
    """The gradient and the update as they are: ``d theta/dt = update``.

    Parameters
    ----------
    grad : array or mapping name -> array
        +dL/dtheta, any shape, float64, float32, float16 or bfloat16. A mapping is ONE vector.
    update : array or mapping name -> array
        d theta/dt, or any positive multiple; shape or names and shapes of `grad`, dtype may differ.

    Returns
    -------
    DescentPair
        With views of both vectors and trivial coefficients; `align` and `metric` are those of the two vectors.

    Raises
    ------
    ValueError
        Shapes or names differ.
    TypeError
        An unsupported dtype or type.

    See Also
    --------
    steepest.pairs.discrete : For a finite step.

    Notes
    -----
    Eqs (1)-(9) (paper): M exists if and only if grad.update < 0. Copies nothing.

    Examples
    --------
    >>> from steepest import pairs
    >>> pair = pairs.continuous([3.0, 4.0], [-3.0, -1.0])
    >>> pair.align().status, pair.metric().solve([-3.0, -4.0]).round(6).tolist()
    ('ok', [-3.0, -1.0])
    """
    y, g = matched_pair(grad, update)
    one, zero = Fraction(1), Fraction(0)
    dtype = coarsest(y, g)
    names = y.layout.names
    if names is not None:
        update = {name: update[name] for name in names}
    return DescentPair(
        method="continuous",
        names=("grad", "update"),
        rows=((one, zero), (zero, one)),
        vectors=(y, g),
        templates=(template_of(grad), template_of(update)),
        dtype=dtype,
        psi_floor=EPSILON[dtype],
    )
