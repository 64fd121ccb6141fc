"""The smallest eigenvalue of a Hessian, and the bounds on the learning rate that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

from steepest.alignment import Alignment
from steepest.arrays import long_vector
from steepest.errors import NotDescentError
from steepest.stability.curvature import DirectionalCurvature, flat_operator

__all__ = ["RitzValue", "StepSizeBounds", "smallest_eigenvalue", "step_size_bounds"]

# eigsh wants a subspace of 20 or more; below, all n products cost no more.
_DENSE = 32


@dataclass(frozen=True)
class RitzValue:
    """An approximate smallest eigenvalue of a symmetric operator.

    Attributes
    ----------
    value : float
        The Ritz value: an upper bound on the smallest eigenvalue, up to rounding.
    residual : float
        ``|H v - value v|`` for the unit vector v: some eigenvalue lies as near as this.
    products : int
        Hessian-vector products spent.
    vector : ndarray, shape (n,)
        v.
    """

    value: float
    residual: float
    products: int
    vector: NDArray[np.float64] = field(repr=False, compare=False)

    @property
    def bound(self) -> float:
        """``value - residual``: below the smallest eigenvalue if v has found the lowest one."""
        return self.value - self.residual


def smallest_eigenvalue(
    hvp: Any, n: Any, *, rng: Any = None, tol: float = 1e-8, maxiter: int | None = None
) -> RitzValue:
    """The smallest eigenvalue of a Hessian from products with it.

    Parameters
    ----------
    hvp : callable, array or LinearOperator
        ``hvp(v)`` = H v, symmetric.
    n : int, array or mapping
        Number of parameters, for an `hvp` of flat vectors; else a template of what it takes (its values do not matter).
    rng : int or numpy.random.Generator, optional
        Of the start vector.
    tol : float
        Relative accuracy asked of the Lanczos iteration.
    maxiter : int, optional
        Limit of its restarts, by default 10 n.

    Returns
    -------
    RitzValue
        Value, residual and the conservative `RitzValue.bound`.

    Raises
    ------
    RuntimeError
        The iteration did not converge.
    ValueError
        H holds NaN or Inf.

    Notes
    -----
    scipy.sparse.linalg.eigsh (ARPACK) from a random vector, ``which='SA'`` (section 7). The bound is rigorous only if
    the Ritz vector belongs to the lowest eigenvalue; a random start misses it with probability zero in exact
    arithmetic. For n <= 32 all n columns are formed and the eigenvalues are LAPACK's.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest import stability
    >>> stability.smallest_eigenvalue(lambda v: np.array([3.0, -1.0]) * v, 2, rng=0).value
    -1.0
    """
    like = np.empty(n) if isinstance(n, int | np.integer) else n
    size = long_vector(like, "n").size
    product = flat_operator(hvp, like)
    count = 0

    def counted(x: Any) -> Any:
        nonlocal count
        count += 1
        found = product(np.asarray(x, dtype=np.float64).ravel())
        if not np.isfinite(found).all():
            raise ValueError("expected finite Hessian-vector products, got NaN or Inf")
        return found

    if size <= _DENSE:
        matrix = np.column_stack([counted(row) for row in np.eye(size)])
        vector = np.linalg.eigh(0.5 * (matrix + matrix.T))[1][:, 0]
    else:
        operator = LinearOperator((size, size), matvec=counted, dtype=np.float64)
        start = np.random.default_rng(rng).standard_normal(size)
        try:
            vector = eigsh(operator, k=1, which="SA", v0=start, tol=tol, maxiter=maxiter)[1][:, 0]
        except ArpackError as error:
            raise RuntimeError(
                f"the smallest eigenvalue did not converge after {count} products: raise maxiter or tol "
                f"(here {maxiter} and {tol:g}), or check that hvp is symmetric ({error})"
            ) from error
    vector /= np.linalg.norm(vector)
    image = counted(vector)
    value = float(vector @ image)
    return RitzValue(value, float(np.linalg.norm(image - value * vector)), count, vector)


@dataclass(frozen=True)
class StepSizeBounds:
    """Learning rates below which the bracket of eq (17) is positive definite; Inf if the Hessian is.

    Attributes
    ----------
    optimal : float
        With the condition-optimal metric M(a).
    supremum : float
        Over all metrics, approached as alpha -> inf.
    existence : float
        Below it, and only there, SOME metric turns -grad into the update: it needs the curvature along the update
        alone. NaN if that was not given.
    """

    optimal: float
    supremum: float
    existence: float


def step_size_bounds(
    pair: Any, lam_min: float | RitzValue, *, curvature: float | DirectionalCurvature | None = None
) -> StepSizeBounds:
    """Bounds on the learning rate of a step, from the angle of its pair and the smallest eigenvalue of the Hessian.

    Parameters
    ----------
    pair : DescentPair or Alignment
        Of the step, made with its learning rate.
    lam_min : float or RitzValue
        Smallest eigenvalue of the Hessian at the Taylor point; of a RitzValue the conservative bound.
    curvature : float or DirectionalCurvature, optional
        Rayleigh quotient of the Hessian along the update.

    Returns
    -------
    StepSizeBounds
        To be compared with the learning rate of the pair.

    Raises
    ------
    NotDescentError
        The loss does not fall over the step.

    Notes
    -----
    Section 7: ``(2 rho/|lam_min|) cos/(1 + sin)`` and ``(2 rho/|lam_min|) cos`` (reconstructed) with rho and the
    angle of the pair (-DG, g); they are sufficient. Necessary and sufficient for some metric (derived):
    ``-dL/lr + (lr/2) g^T H g > 0``, that is ``lr < 2 rho cos/|h|`` for a curvature h < 0 along g.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest import pairs, stability
    >>> stability.step_size_bounds(pairs.continuous(np.array([1.0, 0.0]), np.array([-2.0, 0.0])), -0.5).supremum
    2.0
    """
    a: Alignment = pair if isinstance(pair, Alignment) else pair.align()
    if a.status != "ok":
        raise NotDescentError({None: a})
    lowest = lam_min.bound if isinstance(lam_min, RitzValue) else float(lam_min)
    along = curvature.value if isinstance(curvature, DirectionalCurvature) else curvature

    def below(smallest: float, h: float) -> float:
        return math.inf if h >= 0.0 else 2.0 * smallest / -h

    supremum = a.rho * a.cosine
    return StepSizeBounds(
        optimal=below(supremum / (1.0 + a.sine), lowest),
        supremum=below(supremum, lowest),
        existence=math.nan if along is None else below(supremum, float(along)),
    )
