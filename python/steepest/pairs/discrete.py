"""The pair of a finite step: discrete gradients, eqs (10)-(16)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from steepest.pairs import itoh_abe
from steepest.pairs.descent_pair import DescentPair
from steepest.pairs.finite_step import FiniteStep, finite_number
from steepest.pairs.mean_value import mean_value
from steepest.pairs.taylor import taylor

__all__ = ["Method", "discrete"]

Method = Literal["trapezoid", "left", "gonzalez", "mean-value", "itoh-abe", "taylor"]
METHODS = ("trapezoid", "left", "gonzalez", "mean-value", "itoh-abe", "taylor")


def discrete(
    params: Any,
    params_next: Any,
    *,
    loss: float,
    loss_next: float,
    grad: Any = None,
    grad_next: Any = None,
    grad_midpoint: Any = None,
    grad_fn: Callable[[Any], Any] | None = None,
    loss_fn: Callable[[Any], Any] | None = None,
    hvp: Callable[[Any, Any], Any] | None = None,
    hessian: Any = None,
    method: Method = "trapezoid",
    lr: float = 1.0,
    n_nodes: int = 5,
    n_scan: int = 16,
    vectorized: bool = False,
) -> DescentPair:
    """The pair of one step of a rule: a discrete gradient DG, for which the step descends exactly as the loss does.

    With d = params_next - params and dL = loss_next - loss, ``DG.d = dL``, and DG -> grad as d -> 0. So for y = -DG and
    g = d/lr a metric exists if and only if the loss falls, and the step is natural gradient descent without any limit
    of small steps: ``params_next = params + lr M^{-1} y``.

    Parameters
    ----------
    params, params_next : array or mapping name -> array
        Before and after the step, any shape, float64, float32, float16 or bfloat16. A mapping is ONE vector.
    loss, loss_next : float
        The loss at both; finite. 'mean-value' and 'itoh-abe' only report by how much they miss it, as `defect`.
    grad, grad_next : array or mapping, optional
        +dL/dtheta at both: 'trapezoid' needs both, 'left', 'taylor' and 'itoh-abe' with `hessian` need `grad`.
        'itoh-abe' with `loss_fn` takes partial derivatives from `grad` where an element does not move.
    grad_midpoint : array or mapping, optional
        +dL/dtheta at (params + params_next)/2, for 'gonzalez'.
    grad_fn : callable, optional
        ``grad_fn(params)`` = +dL/dtheta in the form of `params`: for 'mean-value', and for 'gonzalez' instead of
        `grad_midpoint`.
    loss_fn : callable, optional
        ``loss_fn(params)`` = loss, for 'itoh-abe'.
    hvp : callable, optional
        ``hvp(params, vector)`` = Hessian of the loss at `params`, times a vector, all in the form of `params`: for
        'taylor'. `steepest.torch.hessian_vector_product` and `steepest.jax.hessian_vector_product` make it of a loss;
        ``lambda p, v: stability.finite_difference_hvp(grad_fn, p)(v)`` of a gradient.
    hessian : array, mapping or sparse array, optional
        For 'itoh-abe' of a QUADRATIC loss, with `grad` instead of `loss_fn`: the constant Hessian, as its diagonal (of
        the structure of params, or of shape (n,)) or as the symmetric matrix of shape (n, n) over the flattened
        parameters, dense or of scipy.sparse, of which only the lower triangle is read.
    method : {'trapezoid', 'left', 'gonzalez', 'mean-value', 'itoh-abe', 'taylor'}
        Which discrete gradient; see Notes.
    lr : float
        Learning rate, positive: the update is d/lr. It only rescales the metric.
    n_nodes : int
        Gauss-Legendre nodes of 'mean-value', at least 3; the error is estimated by the rule with two nodes less.
    n_scan : int
        Intervals of the segment that 'taylor' scans for its point, at least 1.
    vectorized : bool
        Whether `loss_fn` takes points stacked along a new first axis and returns one loss for each ('itoh-abe').

    Returns
    -------
    DescentPair
        Coefficients over the gradients as given and d, which is formed once in float64 (one extra long vector);
        'mean-value' and 'itoh-abe', and 'gonzalez' with `grad_fn`, hold one of their own besides.

    Raises
    ------
    ValueError
        What `method` needs is missing; shapes or names differ; a loss is not finite; lr is not positive; the loss
        falls although the parameters do not move: no metric exists for such a step (section 1); 'taylor' finds no
        point on its scan (the message gives the residual).
    TypeError
        An unsupported dtype or type.

    See Also
    --------
    steepest.pairs.continuous : For a pair of vectors as they are.
    steepest.stability.natural_form : With 'taylor', the step with the ordinary gradient, eqs (17) and (18).

    Notes
    -----
    Eqs (10)-(16) and section 7. Order: of |DG - grad at the midpoint| in |d|; against grad at `params` all are of order
    1. Corrected: ``DG = gm + [(dL - gm.d)/(d.d)] d``.

    ============  ==================================================  =====  ===============================
    method        gm, or DG itself                                    order  evaluations
    ============  ==================================================  =====  ===============================
    trapezoid     corrected, gm = (grad + grad_next)/2                2      none: recorded data only
    left          corrected, gm = grad                                1      none: recorded data only
    gonzalez      corrected, gm = grad at the midpoint                2      1 gradient
    mean-value    integral of grad over the segment                   2      at most 2 n_nodes - 2
    itoh-abe      differences of the loss, one element after another  1      n + 1 losses, or none (`hessian`)
    taylor        grad + H(params + s d) d / 2, eq (16)               2      about n_scan + 10 hvp
    ============  ==================================================  =====  ===============================

    The coefficient of the correction is kept as an exact rational number, so that grad.update = dL/lr without rounding;
    for the float64 vectors that `gradient` and `update` form, ``|DG.d - dL|`` is a few eps (|gm| + |DG|) |d| at most. A
    step d = 0 with dL >= 0 gives a pair of status ``zero_update``.

    'itoh-abe' evaluates the loss where the first i elements have moved and the others have not; its rounding is that of
    the losses over |d_i|, so use it for few parameters and a loss in double precision. Where an element does not
    move and `grad` is missing, the partial derivative is a central difference (two more losses each). Cost: n + 1
    losses, so O(n^2) at least with a `loss_fn` that costs O(n); `vectorized` takes them in blocks of at most 32 MiB (or
    one point). For a quadratic loss with `hessian` nothing is evaluated: ``DG = grad + (D/2 + T) d``, D the diagonal
    and T the strictly lower triangle of H (derived); O(n) with a diagonal, O(n + nonzeros) with a sparse matrix, n^2/2
    with a dense one, and no differences of losses that would round. `defect` says by how much a loss is not that
    quadratic.

    'taylor' (reconstructed) takes the smallest s in (0, 1) with ``d^T H(params + s d) d = 2 (dL - grad.d)`` that its
    scan finds; `taylor_points` of the pair has all of them. It tends to 1/3 for short steps, and is set to 1/3 where
    the curvature along the step does not vary beyond rounding, as of a quadratic loss, for which every s does, or
    misses the value by no more; then `taylor_points` is empty. What rounding leaves of ``DG.d = dL`` is put along d, as
    in the corrected methods; the share of it is `correction_share`.

    References
    ----------
    Gonzalez, J. Nonlinear Sci. 6 (1996) 449; Itoh and Abe, J. Comput. Phys. 76 (1988) 85; McLachlan, Quispel and
    Robidoux, Phil. Trans. R. Soc. A 357 (1999) 1021.

    Examples
    --------
    A step over the valley of L = |x|^2/2 that is too long for the gradient at its start, but lowers the loss:

    >>> import numpy as np
    >>> from steepest import pairs
    >>> x, x_next = np.array([1.0, 2.0]), np.array([-0.5, 0.5])
    >>> pair = pairs.discrete(x, x_next, loss=2.5, loss_next=0.25, grad=x, grad_next=x_next, lr=1.5)
    >>> pair.gradient().tolist()
    [0.25, 1.25]
    >>> M = pair.metric()
    >>> np.allclose(x + 1.5 * M.solve(-pair.gradient()), x_next)
    True
    """
    if method not in METHODS:
        raise ValueError(f"expected a method out of {', '.join(map(repr, METHODS))}, got {method!r}")
    rate = finite_number(lr, "lr")
    if not rate > 0.0:
        raise ValueError(f"expected a positive lr, got {rate}")
    step = FiniteStep(params, params_next, finite_number(loss, "loss"), finite_number(loss_next, "loss_next"), rate)
    if method == "mean-value":
        function = _needed(grad_fn, "grad_fn", method, "a callable for gradients on the segment")
        return mean_value(step, function, n_nodes)
    if method == "itoh-abe" and hessian is not None:
        if loss_fn is not None:
            raise ValueError("expected loss_fn or hessian for method 'itoh-abe', got both")
        start = _needed(grad, "grad", "itoh-abe", "the gradient at params")
        return itoh_abe.of_hessian(step, start, hessian)
    if method == "itoh-abe":
        function = _needed(loss_fn, "loss_fn", method, "a callable for the loss, or hessian of a quadratic one")
        return itoh_abe.of_losses(step, function, grad, vectorized)
    if method == "taylor":
        start = _needed(grad, "grad", method, "the gradient at params")
        function = _needed(hvp, "hvp", method, "a callable for products with the Hessian")
        return taylor(step, start, function, n_scan)
    if method == "left":
        given = {"grad": _needed(grad, "grad", method, "the gradient at params")}
    elif method == "trapezoid":
        given = {
            "grad": _needed(grad, "grad", method, "the gradient at params"),
            "grad_next": _needed(grad_next, "grad_next", method, "the gradient at params_next"),
        }
    else:
        if grad_midpoint is None:
            what = "the gradient at the midpoint, or grad_fn"
            function = _needed(grad_fn, "grad_midpoint", method, what)
            return step.corrected(method, {"grad_midpoint": step.gradient_at(function, 0.5)}, None)
        given = {"grad_midpoint": grad_midpoint}
    vectors = {name: step.matched(value, name) for name, value in given.items()}
    return step.corrected(method, vectors, next(iter(given.values())))


def _needed(value: Any, name: str, method: str, what: str) -> Any:
    if value is None:
        raise ValueError(f"expected {name} for method {method!r}: {what}; got None")
    return value
