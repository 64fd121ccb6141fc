"""From a pair (grad, update) to its alignment and its metric, and from a metric back to its canonical form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steepest import _core
from steepest.alignment import (
    Alignment,
    PairProducts,
    align_vectors,
    angle_tolerance,
    from_products,
    matched_pair,
    separate_blocks,
)
from steepest.arrays import EPSILON, NATIVE_NAMES, ArrayOrMapping, LongVector
from steepest.base import base_alignment, diagonal_base, is_diagonal
from steepest.errors import NotDescentError
from steepest.metrics.dense import DenseMetric
from steepest.metrics.diagonal_base import DiagonalBaseMetric
from steepest.metrics.family import FamilyMetric, make_family_metric, swapped_alignment
from steepest.metrics.interface import MAX_SIZE, Metric, Spectrum, check_dense_size
from steepest.metrics.low_rank import low_rank_form, updated_low_rank
from steepest.metrics.operator_base import BaseOperator, OperatorBaseMetric, operator_pair

__all__ = ["CanonicalForm", "Metric", "Spectrum", "align", "canonical_form", "metric"]

Alpha = float | Literal["optimal"] | Callable[[Alignment], float]


def align(
    grad: ArrayOrMapping,
    update: ArrayOrMapping,
    *,
    base: Any = None,
    blocks: Literal["joint", "separate"] = "joint",
) -> Any:
    """Angle between -grad and update, with certified status and what it implies for every metric.

    Reads the two vectors once, as a rule; a second, compensated pass settles signs and small angles, and an exact one
    is the last resort, so for arrays `status` is never ``undecided``. Copies nothing.

    Parameters
    ----------
    grad : array or mapping name -> array
        +dL/dtheta, any shape, float64, float32, float16 or bfloat16. A mapping is ONE vector.
    update : array or mapping name -> array
        theta_next - theta (or d theta/dt); shape or names and shapes of `grad`, dtype may differ.
    base : array, mapping, Metric or LinearOperator, optional
        A reference metric B: a positive diagonal of the same shape, a `Metric`, or a SciPy LinearOperator that is
        symmetric positive definite (with a method ``solve``, else conjugate gradients are used). The angle is then
        the one in that geometry, which does not depend on the units of the parameters if B transforms along.
    blocks : {'joint', 'separate'}
        ``separate`` (mappings only) returns a dict name -> Alignment, one for each array.

    Returns
    -------
    Alignment or dict
        Never raises for the values of the data: see `Alignment.status`.

    Raises
    ------
    ValueError
        Shapes or names differ, or a diagonal base is not positive.
    TypeError
        An unsupported dtype or type.

    See Also
    --------
    steepest.metric : The metric itself.

    Notes
    -----
    Sections 0 and 15 of the theory (derived). The norm bounds hold for the numbers in memory; an angle below
    `Alignment.psi_floor` cannot be told from rounding of the input.

    Examples
    --------
    >>> import steepest
    >>> a = steepest.align([3.0, 4.0], [-3.0, -1.0])
    >>> a.status, round(a.angle_degrees, 4), round(a.cond_min, 4)
    ('ok', 34.6952, 3.6426)
    """
    if blocks == "separate":
        return {name: _align_one(g, u, b) for name, g, u, b in separate_blocks(grad, update, base)}
    if blocks != "joint":
        raise ValueError(f"expected blocks 'joint' or 'separate', got {blocks!r}")
    return _align_one(grad, update, base)


def _align_one(grad: Any, update: Any, base: Any) -> Alignment:
    y, g = matched_pair(grad, update)
    return align_vectors(y, g) if base is None else base_alignment(y, g, base)


def metric(
    grad: ArrayOrMapping,
    update: ArrayOrMapping,
    *,
    alpha: Alpha = "optimal",
    base: Any = None,
    complement: ArrayLike | None = None,
    kind: Literal["bfgs", "dfp"] = "bfgs",
    blocks: Literal["joint", "separate"] = "joint",
    base_solve: Callable[[Any], Any] | None = None,
) -> Any:
    """The metric that makes an update natural gradient descent: SPD M with ``update = -M^{-1} grad``.

    It exists if and only if grad.update < 0. Without further arguments it is the member of the family (8) with the
    least condition number over ALL metrics of the pair. Reads the two vectors once or twice; holds views of them.

    Parameters
    ----------
    grad : array or mapping name -> array
        +dL/dtheta, any shape, float64, float32, float16 or bfloat16. A mapping is ONE vector.
    update : array or mapping name -> array
        theta_next - theta (or d theta/dt); shape or names and shapes of `grad`, dtype may differ.
    alpha : float, 'optimal' or callable, optional
        Bulk eigenvalue: M multiplies with it on the complement of span{grad, update}. A callable takes the
        `Alignment`. The default is |grad|^2 / (-grad.update). Not with `base` or `complement`.
    base : array, mapping, Metric or LinearOperator, optional
        A reference metric B: the result is the metric of the pair nearest to it (see `kind`). A positive diagonal of
        the shape of `grad`, a Metric, or a symmetric positive definite SciPy LinearOperator (its ``solve`` is used if
        it has one, else conjugate gradients).
    complement : array_like, shape (n, m), optional
        Columns u_i orthogonal to the update that span its complement: ``M = y y^T/(y.g) + U U^T``, eq (6). Dense,
        n <= 4096.
    kind : {'bfgs', 'dfp'}
        Nearest in which sense: 'bfgs' minimises KL( N(0,M) || N(0,B) ), 'dfp' minimises KL( N(0,B) || N(0,M) ).
    blocks : {'joint', 'separate'}
        ``separate`` (mappings only) returns a dict name -> Metric, one for each array.
    base_solve : callable, optional
        ``base_solve(b)`` = B^-1 b for a LinearOperator base.

    Returns
    -------
    Metric or dict
        Matrix-free; products, solves, powers, spectrum, distances.

    Raises
    ------
    NotDescentError
        grad.update >= 0, or a vector is zero or not finite; with ``blocks='separate'`` names all failing blocks.
    ValueError
        Shapes or names differ; alpha, base or complement is no valid value.
    TypeError
        An unsupported dtype or type.

    See Also
    --------
    steepest.align : The angle and what follows from it, without raising.

    Notes
    -----
    Eq (8) (paper, reconstructed): ``M(alpha) = y y^T/(y.g) + alpha (I - g g^T/(g.g))`` with y = -grad, g = update;
    the least condition number ((1+sin psi)/cos psi)^2 is attained at alpha = y.y/(y.g) (Proposition 1, eq (9)).
    M(alpha) is the BFGS update of alpha*I; quasi-Newton references: Nocedal and Wright, Numerical Optimization, ch. 6;
    Fletcher (1991). Residual |M @ update + grad| <= 8 eps max(1, alpha/alpha_opt)/cos(psi) |grad|.

    Examples
    --------
    >>> import numpy as np, steepest
    >>> grad, update = np.array([3.0, 4.0, 0.0]), np.array([-3.0, -1.0, 0.5])
    >>> M = steepest.metric(grad, update)
    >>> np.allclose(M @ update, -grad), np.allclose(M.solve(-grad), update)
    (True, True)
    >>> [round(x, 4) for x in M.spectrum().values]
    [0.8009, 1.9231, 3.0452]
    """
    plain = type(grad) is np.ndarray and type(update) is np.ndarray and isinstance(alpha, str)
    if plain and alpha == "optimal" and base is None and complement is None and (kind, blocks) == ("bfgs", "joint"):
        found = _deferred_metric(grad, update)
        if found is not None:
            return found
    if kind not in ("bfgs", "dfp"):
        raise ValueError(f"expected kind 'bfgs' or 'dfp', got {kind!r}")
    if blocks == "separate":
        return _separate(grad, update, alpha=alpha, base=base, complement=complement, kind=kind, base_solve=base_solve)
    if blocks != "joint":
        raise ValueError(f"expected blocks 'joint' or 'separate', got {blocks!r}")
    y, g = matched_pair(grad, update)
    a = align_vectors(y, g)
    if a.status != "ok":
        raise NotDescentError({None: a})
    if not (0.0 < a.rho < math.inf and max(a.grad_norm, a.update_norm) < math.inf):
        raise ValueError(
            f"|grad| = {a.grad_norm:.6g}, |update| = {a.update_norm:.6g} or their ratio {a.rho:.6g} is out of "
            "the range of float64: rescale one of them, which multiplies every metric by the same factor"
        )
    dtype = min((*y.dtypes, *g.dtypes), key=EPSILON.__getitem__)
    if complement is not None:
        if base is not None or alpha != "optimal":
            raise ValueError("expected complement alone, got it together with base or alpha")
        return _from_complement(y, g, a, np.asarray(complement), dtype, grad)
    if base is not None:
        if alpha != "optimal":
            raise ValueError("expected base or alpha, got both; multiply the base instead")
        return _from_base(y, g, a, base, kind, dtype, grad, base_solve)
    return make_family_metric(y, g, a, _alpha_value(alpha, a), kind, dtype, grad)


def _deferred_metric(grad: NDArray[Any], update: NDArray[Any]) -> FamilyMetric | None:
    """The optimal metric of two plain arrays: inner products and sign now, the rest on demand; None if in doubt."""
    y_dtype, g_dtype = NATIVE_NAMES.get(grad.dtype), NATIVE_NAMES.get(update.dtype)
    if y_dtype is None or g_dtype is None or grad.shape != update.shape:
        return None
    tolerance = angle_tolerance("float64" if y_dtype == g_dtype == "float64" else "float32")
    y_bits = grad.view(np.uint16) if y_dtype == "bfloat16" else grad
    g_bits = update.view(np.uint16) if g_dtype == "bfloat16" else update
    products = _core.angle_gram(y_bits, g_bits, None, tolerance).pair
    # y.g > 0 for certain, and both norms between 2^-125 and 2^125: nothing can fail from here on.
    if not -products[1] > products[4] or products[6] != 0 or products[7] != 0:
        return None

    def make() -> FamilyMetric:
        y, g = matched_pair(grad, update)
        coarser, finer = sorted((y_dtype, g_dtype), key=EPSILON.__getitem__, reverse=True)
        a = from_products(PairProducts(*products), y.size, coarser, relative=False)
        return make_family_metric(y, g, a, a.alpha_opt, "bfgs", finer, grad)

    return FamilyMetric.deferred(make)


def _separate(grad: Any, update: Any, *, base: Any, **options: Any) -> dict[Any, Metric]:
    found: dict[Any, Metric] = {}
    failed: dict[Any, Alignment] = {}
    for name, g, u, b in separate_blocks(grad, update, base):
        try:
            found[name] = metric(g, u, base=b, **options)
        except NotDescentError as error:
            failed[name] = error.alignments[None]
    if failed:
        raise NotDescentError(failed)
    return found


def _alpha_value(alpha: Alpha, a: Alignment) -> float:
    if isinstance(alpha, str):
        if alpha != "optimal":
            raise ValueError(f"expected alpha 'optimal', a positive number or a callable, got {alpha!r}")
        value = a.alpha_opt
    else:
        given = alpha(a) if callable(alpha) else alpha
        try:
            value = float(given)
        except (TypeError, ValueError) as error:
            raise TypeError(f"expected alpha to be a number, 'optimal' or a callable, got {given!r}") from error
    if not (value > 0.0 and math.isfinite(value)):
        raise ValueError(f"expected a positive finite alpha, got {value}: M(alpha) is positive definite only then")
    return value


def _from_base(
    y: LongVector,
    g: LongVector,
    a: Alignment,
    base: Any,
    kind: str,
    dtype: str,
    like: Any,
    base_solve: Callable[[Any], Any] | None,
) -> Metric:
    if is_diagonal(base):
        d = diagonal_base(base, y)
        relative = align_vectors(y, g, d)
        if kind == "bfgs":
            return DiagonalBaseMetric(d, 1, y, g, -1.0, 1.0, relative, a, dtype, like)
        # DFP is BFGS of the inverse base for the swapped pair, inverted.
        swapped = swapped_alignment(relative)
        return DiagonalBaseMetric(d, -1, g, y, 1.0, -1.0, swapped, a, dtype, like, inverse=True)
    if isinstance(base, Metric):
        base._require_definite("a base")
        if base._layout.sizes == y.layout.sizes and low_rank_form(base) is not None:
            return updated_low_rank(base, y, g, a, kind, dtype, like)
    pair = operator_pair(y, g, a, BaseOperator(base, y.size, base_solve))
    if kind == "bfgs":
        return OperatorBaseMetric(pair, y.layout, a, dtype, like)
    # DFP is BFGS of the inverse base for the swapped pair, inverted.
    return OperatorBaseMetric(pair.swapped(), y.layout, a, dtype, like, inverse=True)


def _from_complement(y: LongVector, g: LongVector, a: Alignment, u: NDArray[Any], dtype: str, like: Any) -> Metric:
    n = y.size
    check_dense_size(n, MAX_SIZE, "a metric with an explicit complement")
    if u.dtype.kind != "f":
        raise TypeError(f"expected complement of floating dtype, got {u.dtype}")
    if u.ndim != 2 or u.shape[0] != n:
        raise ValueError(f"expected complement of shape ({n}, m), columns u_i, got {u.shape}")
    u = u.astype(np.float64)
    if not np.all(np.isfinite(u)):
        raise ValueError("expected a finite complement, got NaN or Inf")
    minus_grad, update = -y.flat() / a.grad_norm, g.flat() / a.update_norm  # unit vectors: y.g may be out of range
    slack = np.abs(update @ u)
    allowed = 64 * n * EPSILON[a.dtype] * np.linalg.norm(u, axis=0)
    if np.any(slack > allowed):
        worst = int(np.argmax(slack - allowed))
        raise ValueError(
            f"expected columns orthogonal to the update, got column {worst} with |u.update|/|update| = "
            f"{slack[worst]:.3g}; project it: u - update (update.u)/(update.update)"
        )
    matrix = (a.rho / a.cosine) * np.outer(minus_grad, minus_grad) + u @ u.T
    values = np.linalg.eigvalsh(matrix)
    if not values[0] > n * 2.0**-52 * values[-1]:
        raise ValueError(
            f"expected n - 1 = {n - 1} independent columns that span the complement of the update, got a matrix with "
            f"eigenvalues from {values[0]:.3g} to {values[-1]:.3g}"
        )
    return DenseMetric(matrix, y.layout, dtype, a, like)


@dataclass(frozen=True)
class CanonicalForm:
    """A metric taken apart: ``M = y y^T/(y.g) + U U^T`` with every column of U orthogonal to g, eq (6).

    Attributes
    ----------
    U : ndarray, shape (n, n-1)
        The u_i; unique up to an orthogonal matrix from the right. Here U^T U is diagonal, ascending.
    grad : ndarray, shape (n,)
        The gradient that M makes out of the update, -M @ update.
    residual : float
        |M @ update + grad| / |grad| for the gradient that was given; 0 if none was.
    """

    U: NDArray[np.float64]
    grad: NDArray[np.float64]
    residual: float


def canonical_form(
    matrix: ArrayLike, update: ArrayLike, grad: ArrayLike | None = None, *, rtol: float = 1e-8
) -> CanonicalForm:
    """The constructive proof that every metric has the form of eq (6): recovers the vectors u_i.

    Parameters
    ----------
    matrix : array_like, shape (n, n)
        A symmetric positive definite matrix M.
    update : array_like, shape (n,)
        g.
    grad : array_like, shape (n,), optional
        -y; if given, M must map update to -grad to relative accuracy `rtol`.
    rtol : float
        Accepted asymmetry and residual, relative.

    Returns
    -------
    CanonicalForm
        U with ``M = y y^T/(y.g) + U U^T``.

    Raises
    ------
    ValueError
        M is not square, not symmetric, not positive definite to working precision, or does not map update to -grad;
        says which.
    TypeError
        An argument is not an array of real numbers.

    Notes
    -----
    Section 2 (paper; algorithm derived): with Q an orthonormal basis of g-perp (Householder), S = Q^T M Q -
    (Q^T y)(Q^T y)^T/(y.g) is the Schur complement of M in the basis [g, Q], SPD iff M is; S = V diag(w) V^T,
    U = Q V diag(sqrt w). Dense, O(n^3).

    Examples
    --------
    >>> import numpy as np, steepest
    >>> M = np.array([[2.0, 0.5], [0.5, 1.0]])
    >>> form = steepest.canonical_form(M, [1.0, 0.0])
    >>> form.U.round(6).T
    array([[0.      , 0.935414]])
    """
    m, g = _real_array(matrix, "matrix"), _real_array(update, "update")
    if m.ndim != 2 or m.shape[0] != m.shape[1]:
        raise ValueError(f"expected a square matrix, got shape {m.shape}")
    n = m.shape[0]
    if g.shape != (n,):
        raise ValueError(f"expected update of shape ({n},), got {g.shape}")
    if not (np.all(np.isfinite(m)) and np.all(np.isfinite(g)) and np.any(g)):
        raise ValueError("expected a finite matrix and a finite update other than zero")
    size = float(np.abs(m).max())
    asymmetry = float(np.abs(m - m.T).max())
    if asymmetry > rtol * size:
        raise ValueError(f"expected a symmetric matrix, got entries that differ by {asymmetry:.3g} from the transpose")
    # Powers of two keep all products in range; the one of the matrix is even, U takes its root.
    matrix_exponent, update_exponent = 2 * (math.frexp(size)[1] // 2), math.frexp(float(np.abs(g).max()))[1]
    m, g = np.ldexp(m, -matrix_exponent), np.ldexp(g, -update_exponent)
    size = math.ldexp(size, -matrix_exponent)
    m = 0.5 * (m + m.T)
    y = m @ g
    found = np.ldexp(-y, matrix_exponent + update_exponent)
    residual = 0.0
    if grad is not None:
        wanted = -_real_array(grad, "grad")
        if wanted.shape != (n,):
            raise ValueError(f"expected grad of shape ({n},), got {wanted.shape}")
        wanted = np.ldexp(wanted, -matrix_exponent - update_exponent)
        residual = float(np.linalg.norm(y - wanted) / np.linalg.norm(wanted)) if np.any(wanted) else math.inf
        if not residual <= rtol:
            raise ValueError(
                f"expected a matrix that maps update to -grad, got |M update + grad| / |grad| = {residual:.3g}"
            )
    descent = float(y @ g)
    if not descent > 0.0:
        raise ValueError(
            f"expected a positive definite matrix, got update^T M update = {descent:.6g} (matrix and update scaled)"
        )
    if n == 1:
        return CanonicalForm(np.zeros((1, 0)), found, residual)
    basis = np.empty((n, n - 1), order="F")
    _core.Complement(g).apply(np.eye(n - 1), basis, columns=True)
    projected = basis.T @ y
    schur = basis.T @ m @ basis - np.outer(projected, projected) / descent
    values, vectors = np.linalg.eigh(0.5 * (schur + schur.T))
    if not values[0] > n * 2.0**-52 * size:
        raise ValueError(
            "expected a matrix that is positive definite to working precision, got one whose Schur complement has an "
            f"eigenvalue of {values[0] / size:.3g} times the largest entry"
        )
    u = np.ldexp(basis @ (vectors * np.sqrt(values)), matrix_exponent // 2)
    return CanonicalForm(u, found, residual)


def _real_array(x: ArrayLike, name: str) -> NDArray[np.float64]:
    array = np.asarray(x)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"expected {name} to be an array of real numbers, got {array.dtype} from {type(x).__name__}")
    return array.astype(np.float64)
