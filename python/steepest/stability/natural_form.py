"""A finite step as natural gradient descent with the ordinary gradient: eqs (17) and (18)."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy.sparse.linalg import LinearOperator, cg

from steepest.alignment import align_vectors
from steepest.arrays import Layout, LongVector, right_hand_side
from steepest.errors import NotDescentError
from steepest.metrics.interface import Metric
from steepest.pairs.descent_pair import DescentPair
from steepest.stability.curvature import Flat, _flat, flat_operator, structured
from steepest.stability.eigenvalue import RitzValue, smallest_eigenvalue

__all__ = ["NaturalForm", "natural_form"]

# Up to here all n products are made, and LAPACK certifies.
_DENSE = 500


@dataclass(frozen=True, repr=False, eq=False)
class NaturalForm:
    """The operator ``B = M + (lr/2) H`` of eq (17): symmetric positive definite, and ``B @ update = -grad``.

    Made by `steepest.stability.natural_form`, which has certified it.

    Attributes
    ----------
    metric : Metric
        M(alpha) of the discrete pair.
    lr : float
        Learning rate.
    alpha : float
        Bulk eigenvalue of `metric`.
    smallest : RitzValue
        Smallest eigenvalue of B with its residual; `RitzValue.bound` is positive.
    grad : ndarray, shape (n,)
        The gradient that B makes out of the update, ``-B @ update``, flat: +dL/dtheta at the start of the step if H is
        the Hessian at the Taylor point.
    """

    metric: Metric
    lr: float
    alpha: float
    smallest: RitzValue
    grad: Flat
    _layout: Layout = field()
    _product: Any = field()

    @property
    def size(self) -> int:
        """Number of parameters n."""
        return self._layout.size

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        return (self.size, self.size)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Float64."""
        return np.dtype(np.float64)

    def matvec(self, x: Any) -> Any:
        """Product B @ x.

        Parameters
        ----------
        x : array or mapping
            Of the parameters' shape or (n,).

        Returns
        -------
        array or mapping
            As `x`.

        Raises
        ------
        ValueError
            Another shape.
        """
        return structured(self._product(self._flat(x)), self._layout, x)

    def __matmul__(self, x: Any) -> Any:
        return self.matvec(x)

    def solve(self, b: Any, *, rtol: float = 1e-12, maxiter: int | None = None) -> Any:
        """Solution x of B x = b by conjugate gradients, preconditioned with M.

        Parameters
        ----------
        b : array or mapping
            Of the parameters' shape or (n,).
        rtol : float
            Residual over |b| at which the iteration ends.
        maxiter : int, optional
            Limit of iterations, by default 10 n.

        Returns
        -------
        array or mapping
            As `b`. ``params + lr * solve(-grad)`` is `params_next`, eq (18).

        Raises
        ------
        RuntimeError
            No convergence.
        ValueError
            Another shape.
        """
        right = self._flat(b)
        inverse = LinearOperator(self.shape, matvec=self.metric.solve, dtype=np.float64)
        x, failed = cg(self.to_scipy(), right, rtol=rtol, atol=0.0, maxiter=maxiter or 10 * self.size + 10, M=inverse)
        if failed:
            left = np.linalg.norm(self._product(x) - right) / np.linalg.norm(right)
            raise RuntimeError(
                f"conjugate gradients stopped at a relative residual of {left:.3g}, expected {rtol:g}: raise rtol or "
                "maxiter, or use Hessian-vector products of higher accuracy"
            )
        return structured(x, self._layout, b)

    def to_scipy(self) -> LinearOperator:
        """The same as a SciPy LinearOperator on flat vectors.

        Returns
        -------
        LinearOperator, shape (n, n)
            Symmetric.
        """
        return LinearOperator(self.shape, matvec=self._product, rmatvec=self._product, dtype=np.float64)

    def _flat(self, x: Any) -> Flat:
        operand = right_hand_side(x, self._layout)
        if operand.columns:
            raise ValueError(f"expected one vector of {self.size} elements, got several, shape (n, m)")
        return _flat(operand.segments)

    def __repr__(self) -> str:
        return (
            f"NaturalForm({self.size} x {self.size}, lr={self.lr:.6g}, alpha={self.alpha:.6g}, "
            f"smallest eigenvalue={self.smallest.value:.6g})"
        )


def natural_form(
    pair: DescentPair,
    hvp: Any,
    lr: float,
    *,
    alpha: float | Literal["optimal", "sufficient"] = "optimal",
    rng: Any = None,
) -> NaturalForm:
    """A finite step as natural gradient descent with the gradient at its start, for any learning rate that allows it.

    Parameters
    ----------
    pair : DescentPair
        Of the step, by `steepest.pairs.discrete` with the same learning rate: gradient DG, update g = d/lr.
    hvp : callable, array or LinearOperator
        For a pair of method 'taylor' the ``hvp(params, vector)`` that it was made with: it is evaluated at the Taylor
        point that the pair has found. For other pairs products ``hvp(vector)`` with a symmetric H for which
        ``DG = grad + (lr/2) H g``, as ``lambda v: h * v`` with `curvature_along` for the 'left' pair of recorded data,
        or the Hessian anywhere for the 'trapezoid' pair of a quadratic loss; a callable of one argument, a matrix and
        an operator mean that for pairs of method 'taylor' too, with `DescentPair.taylor_point`. A callable takes and
        returns vectors of the structure of the update.
    lr : float
        Learning rate.
    alpha : float or {'optimal', 'sufficient'}
        Bulk eigenvalue of M. 'optimal' is the condition-optimal one; 'sufficient' is as large as the step needs, if any
        metric exists: the larger of the optimal one and twice the threshold of section 7.
    rng : int or numpy.random.Generator, optional
        Of the start vectors of Lanczos iterations, for n > 500.

    Returns
    -------
    NaturalForm
        ``M + (lr/2) H``, certified positive definite.

    Raises
    ------
    NotDescentError
        The loss does not fall; or it does, but grad.update >= 0, so that the step jumps over a barrier and no metric at
        all turns -grad into the update.
    ValueError
        The operator is not positive definite for this alpha (the message says which would do), or H is not symmetric.

    Notes
    -----
    Eqs (17), (18) (paper): ``params_next = params - lr (M + (lr/2) H)^-1 grad``. Such an M exists if and only if
    ``-dL/lr + (lr/2) g^T H g > 0``, and then M(alpha) serves for every
    ``alpha > lam_max(Q^T [y0 y0^T/(y0.g) - y y^T/(y.g) - (lr/2) H] Q)``, y0 = -grad, y = -DG, Q a basis of the
    complement of g (derived). Certificate: all eigenvalues for n <= 500, at n products; else Lanczos, Ritz value less
    residual.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest import pairs, stability
    >>> H, x = np.diag([1.0, 3.0]), np.array([1.0, 1.0])
    >>> x_next = x - 0.5 * (H @ x)
    >>> pair = pairs.discrete(x, x_next, loss=2.0, loss_next=0.5, grad=H @ x, grad_next=H @ x_next, lr=0.5)
    >>> form = stability.natural_form(pair, H, 0.5)
    >>> np.allclose(x - 0.5 * form.solve(H @ x), x_next)
    True

    A loss that is not quadratic, L = sum(x^4)/4, with its Hessian at the Taylor point:

    >>> hvp, x_next = lambda x, v: 3.0 * x**2 * v, np.array([-0.2, 0.5])
    >>> losses = {"loss": 0.5, "loss_next": float(np.sum(x_next**4)) / 4}
    >>> pair = pairs.discrete(x, x_next, **losses, grad=x**3, hvp=hvp, method="taylor", lr=0.5)
    >>> form = stability.natural_form(pair, hvp, 0.5)
    >>> np.allclose(x - 0.5 * form.solve(x**3), x_next)
    True
    """
    if not (float(lr) > 0.0 and math.isfinite(lr)):
        raise ValueError(f"expected a positive finite lr, got {lr}")
    if isinstance(alpha, str) and alpha not in ("optimal", "sufficient"):
        raise ValueError(f"expected alpha 'optimal', 'sufficient' or a positive number, got {alpha!r}")
    layout = pair.vectors[0].layout
    g, y = pair._formed(1).flat(), -pair._formed(0).flat()
    n = g.size
    metric = pair.metric() if isinstance(alpha, str) else pair.metric(alpha=alpha)
    hessian = flat_operator(_at_taylor_point(hvp, pair), pair.templates[1])
    dense = np.column_stack([hessian(e) for e in np.eye(n)]) if n <= _DENSE else None
    if dense is not None:
        asymmetry = float(np.abs(dense - dense.T).max())
        # Single precision and finite differences pass, a Jacobian that is not symmetric does not.
        if not asymmetry <= 1e-3 * float(np.abs(dense).max()):
            raise ValueError(f"expected a symmetric H, got entries that differ by {asymmetry:.3g} from the transpose")
        dense = 0.5 * (dense + dense.T)
        matrix = dense
        hessian = lambda x: matrix @ x  # noqa: E731
    else:
        u, v = np.random.default_rng(rng).standard_normal((2, n))
        hu, hv = hessian(u), hessian(v)
        asymmetry = abs(float(u @ hv - v @ hu))
        # |H - H^T| against |H|, both in the Frobenius norm, in expectation
        if not asymmetry <= 1e-2 * float(np.linalg.norm(hu)):
            raise ValueError(
                f"expected a symmetric H, got u.Hv and v.Hu that differ by {asymmetry:.3g} for random u, v"
            )
    y0 = y + 0.5 * lr * hessian(g)  # -grad, eq (17)
    found = align_vectors(*(LongVector([x], Layout(None, ((n,),)), ("float64",)) for x in (-y0, g)))
    if found.status != "ok":
        error = NotDescentError({None: found})
        error.add_note(
            "The loss falls over the step, but the gradient at its start does not point against it: -dL/lr + (lr/2) "
            "g^T H g <= 0. No metric gives the step with this gradient; the discrete gradient has one (eq (15))."
        )
        raise error
    if alpha == "sufficient":
        value = max(metric.alpha, 2.0 * _threshold(hessian, y0, y, g, lr, rng)) if n > 1 else metric.alpha
        metric = pair.metric(alpha=value)

    def product(x: Any) -> Flat:
        x = np.asarray(x, dtype=np.float64).ravel()
        return np.asarray(metric.matvec(x) + 0.5 * lr * hessian(x), dtype=np.float64)

    smallest = _certified(product, metric, dense, lr, rng)
    if not smallest.bound > 0.0:
        needed = _threshold(hessian, y0, y, g, lr, rng) if n > 1 else 0.0
        raise ValueError(
            f"expected M + (lr/2) H to be positive definite, got a smallest eigenvalue of {smallest.value:.6g} "
            f"+- {smallest.residual:.2g} for alpha = {metric.alpha:.6g}; it is for alpha > {needed:.6g}: "
            "pass alpha='sufficient'"
        )
    return NaturalForm(metric, float(lr), metric.alpha, smallest, -y0, layout, product)


def _at_taylor_point(hvp: Any, pair: DescentPair) -> Any:
    """``hvp(params, vector)`` as ``hvp(vector)`` where the pair of a Taylor formula has its point."""
    if pair.start is None or not callable(hvp) or hasattr(hvp, "matvec"):
        return hvp
    try:
        inspect.signature(hvp).bind(None, None)
    except TypeError:
        return hvp  # of one argument
    except ValueError:  # compiled, without a signature
        pass
    point = pair.taylor_point()
    return lambda v: hvp(point, v)


def _certified(product: Any, metric: Metric, dense: Any, lr: float, rng: Any) -> RitzValue:
    n = metric.size
    if dense is None:
        return smallest_eigenvalue(product, n, rng=rng)
    matrix = np.column_stack([metric.matvec(e) for e in np.eye(n)]) + 0.5 * lr * dense
    values, vectors = np.linalg.eigh(0.5 * (matrix + matrix.T))
    # Backward error of LAPACK
    return RitzValue(float(values[0]), n * 2.0**-52 * float(np.abs(values).max()), n, vectors[:, 0])


def _threshold(hessian: Any, y0: Flat, y: Flat, g: Flat, lr: float, rng: Any) -> float:
    """The least alpha of section 7: largest eigenvalue on the complement of g, at least 0."""
    direction = g / np.linalg.norm(g)
    a, b = y0 / math.sqrt(y0 @ g), y / math.sqrt(y @ g)

    def negative(x: Flat) -> Flat:
        x = x - direction * (direction @ x)
        z = b * (b @ x) + 0.5 * lr * hessian(x) - a * (a @ x)
        projected: Flat = z - direction * (direction @ z)
        return projected

    found = smallest_eigenvalue(negative, g.size, rng=rng)
    return max(0.0, -found.bound)
