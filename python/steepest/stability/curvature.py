"""Curvature of the loss along an update, and Hessian-vector products."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.alignment import matched_pair
from steepest.arrays import EPSILON, Layout, LongVector, long_vector, right_hand_side, template_of, to_user, widened
from steepest.pairs.descent_pair import rational_gram

__all__ = ["DirectionalCurvature", "curvature_along", "finite_difference_hvp", "flat_operator", "structured"]

Flat = NDArray[np.float64]


@dataclass(frozen=True)
class DirectionalCurvature:
    """Rayleigh quotient ``d^T H d / (d.d)`` of the Hessian along a displacement.

    Attributes
    ----------
    value : float
        h.
    error : float
        What rounding of the input makes of it: of the two losses, or of the Hessian-vector product.
    """

    value: float
    error: float


def curvature_along(
    update: Any, *, loss: float | None = None, loss_next: float | None = None, grad: Any = None, hvp: Any = None
) -> DirectionalCurvature:
    """Curvature of the loss along an update, from recorded numbers or from a Hessian-vector product.

    Parameters
    ----------
    update : array or mapping name -> array
        The displacement d = params_next - params, with the learning rate in it.
    loss, loss_next : float, optional
        Before and after the step; with `grad`. The types of the numbers say how they were rounded (float64 if Python's
        own).
    grad : array or mapping, optional
        +dL/dtheta before the step.
    hvp : callable, array or LinearOperator, optional
        Instead: ``hvp(v)`` = H v, of the structure of `update`; or the symmetric matrix.

    Returns
    -------
    DirectionalCurvature
        From losses ``2 (dL - grad.d)/(d.d)``, the Rayleigh quotient of H at the Taylor point of eq (16), a point of the
        segment; from `hvp` the one of that H.

    Raises
    ------
    ValueError
        Neither or both kinds of input, a zero update, or a number that is not finite.
    TypeError
        An unsupported dtype or type.

    Notes
    -----
    Section 7, "Recorded-data version of (17)" (derived). grad.d and d.d in compensated arithmetic; the rounding of the
    losses, which grows as 1/(d.d), is the error that is left.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest import stability
    >>> stability.curvature_along(np.array([-0.5]), loss=1.0, loss_next=0.25, grad=np.array([2.0])).value
    2.0
    """
    recorded = (loss is not None, loss_next is not None, grad is not None)
    if hvp is not None and not any(recorded):
        d = long_vector(update, "update").flat()
        length = _positive_norm(d)
        direction = d / length
        product = flat_operator(hvp, update)(direction)
        norm = float(np.linalg.norm(product))
        dtype = long_vector(update, "update").coarsest
        value = float(direction @ product)
        if not math.isfinite(value):
            raise ValueError("expected a finite Hessian-vector product, got NaN or Inf")
        return DirectionalCurvature(value, EPSILON[dtype] * norm)
    if hvp is not None or not all(recorded):
        raise ValueError("expected either hvp, or loss, loss_next and grad together")
    y, g = matched_pair(grad, update)
    _positive_norm(g.flat())
    before, after = _finite(loss, "loss"), _finite(loss_next, "loss_next")
    gram = rational_gram((y, g))
    if not gram.finite:
        raise ValueError("expected a finite grad and update, got NaN or Inf")
    squared = gram.values[1][1]
    descent = gram.values[0][1]
    exact = 2 * (Fraction(after) - Fraction(before) - descent) / squared
    rounding = 0.5 * (_loss_epsilon(loss) * abs(before) + _loss_epsilon(loss_next) * abs(after))
    error = 2 * (Fraction(rounding) + gram.bounds[0][1]) / squared
    return DirectionalCurvature(float(exact), float(error))


def finite_difference_hvp(grad_fn: Callable[[Any], Any], params: Any, eps: float | None = None) -> Callable[[Any], Any]:
    """Hessian-vector products by central differences of a gradient.

    Parameters
    ----------
    grad_fn : callable
        ``grad_fn(params)`` = +dL/dtheta, of the structure of `params`; deterministic.
    params : array or mapping name -> array
        Where. Not copied.
    eps : float, optional
        Length of the displacement to either side; by default the cube root of the rounding unit of the parameters'
        dtype times 1 + the root mean square of the parameters, times sqrt(n).

    Returns
    -------
    callable
        ``hvp(v)`` for v of the structure of `params` or flat, of shape (n,); returns the same structure.

    Raises
    ------
    ValueError
        `eps` is not positive, or `grad_fn` returns another shape.
    TypeError
        An unsupported dtype or type.

    Notes
    -----
    ``[grad(th + e v) - grad(th - e v)]/(2 e)`` (section 7), two gradients for each product. Error e^2 |D^3 grad|/6 plus
    rounding of the gradients over e; the products are symmetric to that accuracy only.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest import stability
    >>> hvp = stability.finite_difference_hvp(lambda x: x**3, np.array([1.0, 2.0]))
    >>> hvp(np.array([1.0, 1.0])).round(6).tolist()
    [3.0, 12.0]
    """
    vector = long_vector(params, "params")
    start, layout, template = vector.flat(), vector.layout, template_of(params)
    if eps is None:
        n = start.size
        unit = EPSILON[vector.coarsest] ** (1 / 3)
        eps = unit * (math.sqrt(n) + float(np.linalg.norm(start)))
    if not (eps > 0.0 and math.isfinite(eps)):
        raise ValueError(f"expected a positive finite eps, got {eps}")

    def grad_at(point: Flat) -> tuple[Flat, Flat]:
        """The gradient, and the point as it was rounded to the parameters' dtype."""
        rounded = structured(point, layout, template)
        found = right_hand_side(grad_fn(rounded), layout, "the result of grad_fn")
        return _flat(found.segments), long_vector(rounded, "params").flat()

    def hvp(v: Any) -> Any:
        x = _flat(right_hand_side(v, layout, "v").segments)
        norm = float(np.linalg.norm(x))
        if norm == 0.0:
            return structured(np.zeros_like(x), layout, v)
        ahead, end = grad_at(start + (eps / norm) * x)
        behind, begin = grad_at(start - (eps / norm) * x)
        # The length that is left after rounding of the points
        moved = float((end - begin) @ x) / norm
        return structured((ahead - behind) * (norm / moved), layout, v)

    return hvp


def _flat(segments: list[Any]) -> Flat:
    parts = [widened(x, "bfloat16" if x.dtype == np.uint16 else str(x.dtype)).ravel() for x in segments]
    return np.concatenate(parts)


def structured(flat: Flat, layout: Layout, like: Any) -> Any:
    """A flat vector in the structure, library and dtype of `like`, a long vector of the layout or a flat one.

    Parameters
    ----------
    flat : ndarray, shape (n,)
        Elements in the order of the layout.
    layout : Layout
        Names and shapes.
    like : array or mapping
        The template.

    Returns
    -------
    array or mapping
        A copy.
    """
    if not isinstance(like, Mapping) or layout.names is None:
        return to_user([flat], like)
    ends = np.cumsum(layout.sizes).tolist()
    pieces = {name: flat[end - size : end] for name, size, end in zip(layout.names, layout.sizes, ends, strict=True)}
    return to_user([pieces[name] for name in like], like)


def flat_operator(hvp: Any, like: Any) -> Callable[[Flat], Flat]:
    """A product with H on flat float64 vectors.

    Parameters
    ----------
    hvp : callable, array or LinearOperator
        ``hvp(v)`` for v of the structure of `like`; a matrix and an operator take flat vectors.
    like : array, mapping or LongVector
        Structure and dtype of the vectors; a LongVector stands for float64 ones of its layout.

    Returns
    -------
    callable
        Flat vector to flat vector.

    Raises
    ------
    TypeError
        `hvp` is nothing of that kind.
    """
    if isinstance(like, LongVector):
        layout = like.layout
        arrays = [np.empty(shape) for shape in layout.shapes]
        like = arrays[0] if layout.names is None else dict(zip(layout.names, arrays, strict=True))
    else:
        layout = long_vector(like, "update").layout
    if isinstance(hvp, np.ndarray):
        if hvp.shape != (layout.size, layout.size):
            raise TypeError(f"expected a matrix of shape ({layout.size}, {layout.size}), got {hvp.shape}")
        return lambda x: np.asarray(hvp @ x, dtype=np.float64)
    if hasattr(hvp, "matvec"):
        return lambda x: np.asarray(hvp.matvec(x), dtype=np.float64)
    if not callable(hvp):
        raise TypeError(f"expected hvp to be a callable, a matrix or a LinearOperator, got {type(hvp).__name__}")

    def product(x: Flat) -> Flat:
        found = right_hand_side(hvp(structured(x, layout, like)), layout, "the result of hvp")
        return _flat(found.segments)

    return product


def _positive_norm(d: Flat) -> float:
    norm = float(np.linalg.norm(d))
    if not (norm > 0.0 and math.isfinite(norm)):
        raise ValueError(f"expected a finite update other than zero, got one of norm {norm}")
    return norm


def _finite(x: Any, name: str) -> float:
    value = float(x)
    if not math.isfinite(value):
        raise ValueError(f"expected a finite {name}, got {value}")
    return value


def _loss_epsilon(x: Any) -> float:
    dtype = str(getattr(x, "dtype", "float64")).removeprefix("torch.")
    return EPSILON.get(dtype, EPSILON["float64"])
