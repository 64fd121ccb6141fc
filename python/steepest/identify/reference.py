"""How far the metrics of one step are from a given one: natural gradient in that geometry, or how far from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, cg

from steepest.alignment import Alignment, align_vectors, matched_pair
from steepest.arrays import Layout, LongVector
from steepest.base import diagonal_base
from steepest.metrics.interface import Metric
from steepest.metrics.operator_base import BaseOperator, operator_pair
from steepest.spectral import plane_eigenvalues

__all__ = ["ReferenceDistance", "reference_distance"]

Kind = Literal["kl", "kl-reverse", "affine-invariant"]
Scale = Literal["free", "fixed"]
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class ReferenceDistance:
    """Smallest distance between a reference metric B and any metric of a step; ``float(d)`` is its value.

    Attributes
    ----------
    value : float
        The distance; 0 if and only if the step is natural gradient descent in the reference geometry (with
        ``scale="fixed"``: with learning rate 1). NaN where the step has no metric.
    error : float
        Estimate of the absolute error of `value`: from rounding of the inner products and, to first order, from the
        residual of the solve.
    kind : {'kl', 'kl-reverse', 'affine-invariant'}
        Which distance.
    scale : {'free', 'fixed'}
        Whether the smallest over all multiples of the reference was taken.
    multiple : float
        The multiple of the reference that comes nearest, 1 if the scale is fixed: natural gradient descent in the
        reference geometry with learning rate 1/multiple is the nearest to this step.
    angle : float
        psi_B in rad: the angle between -grad and update in the reference geometry, ``cos^2 psi_B = (grad.update)^2 /
        ((grad^T B^-1 grad) (update^T B update))``.
    residual : float
        ``|B x - grad| / |grad|`` of the solution x of B x = grad; 0 for a diagonal.
    status : str
        As `Alignment.status`: ``ok`` where the step has a metric.
    """

    value: float
    error: float
    kind: str
    scale: str
    multiple: float
    angle: float
    residual: float
    status: str

    def __float__(self) -> float:
        return self.value

    @property
    def angle_degrees(self) -> float:
        """The angle psi_B in degrees."""
        return math.degrees(self.angle)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python values.

        Returns
        -------
        dict
            Field name -> value.
        """
        return {**asdict(self), "angle_degrees": self.angle_degrees}


def reference_distance(
    grad: Any,
    update: Any,
    reference: Any,
    *,
    kind: Kind = "kl",
    scale: Scale = "free",
    reference_solve: Callable[[Any], Any] | None = None,
    rtol: float = 1e-12,
) -> ReferenceDistance:
    """Smallest distance from a reference metric to any metric M of one step, ``M @ update = -grad``.

    The reference may be any geometry that somebody holds to be the right one: a Fisher or Gauss-Newton matrix, K-FAC,
    a Hessian, the sqrt(v) of Adam. 0 says that the step is natural gradient descent in it.

    Parameters
    ----------
    grad, update : array or mapping name -> array
        As for `steepest.align`; a mapping is ONE vector.
    reference : array, mapping, Metric or LinearOperator
        B, symmetric positive definite. A positive diagonal of the shape of `grad` (or flat, or a mapping with its
        names), a `steepest.Metric`, a SciPy LinearOperator, anything with ``to_scipy()``; or a mapping name -> any of
        these, block diagonal.
    kind : {'kl', 'kl-reverse', 'affine-invariant'}
        KL( N(0,M) || N(0,B) ), attained by the BFGS update of B; KL( N(0,B) || N(0,M) ), attained by the DFP update;
        or ``|log(B^-1/2 M B^-1/2)|_F``.
    scale : {'free', 'fixed'}
        ``free``: smallest over all multiples c B as well, since a learning rate only rescales M.
    reference_solve : callable, optional
        ``reference_solve(b)`` = B^-1 b. By default the ``solve`` of the reference if it has one, else conjugate
        gradients.
    rtol : float
        Relative residual at which conjugate gradients stop. Larger than 1e-12 for an operator in float32; what was
        reached is the `residual` of the result.

    Returns
    -------
    ReferenceDistance
        Value, error, best multiple, angle.

    Raises
    ------
    ValueError
        Shapes differ, the reference is seen not to be symmetric positive definite, or the solve is too inaccurate.
    TypeError
        An unsupported type or dtype.

    Notes
    -----
    Derived; section 3 in whitened vectors B^-1/2 y, B^1/2 g (y = -grad, g = update), where B is the identity. With
    ``a = y^T B^-1 y/(y.g)``, ``b = (y.g)/(g^T B g)``, ``cos^2 psi_B = b/a``, ``rho_B = sqrt(a b)``:

    - 'kl': ``(a - 1 - log b)/2``. The BFGS update has generalised eigenvalues with sum a + 1 and product b in the plane
      and 1 elsewhere (section 4: it minimises this divergence). Over c B at c = a: ``-log cos psi_B``.
    - 'kl-reverse': ``(1/b - 1 + log a)/2``; over c B at c = b: ``-log cos psi_B`` too.
    - 'affine-invariant': the metrics of a step are a totally geodesic submanifold, so the nearest one is unique and
      differs from B in the plane only, ``z z^T/(z.w) + tau v v^T`` with one number tau, found numerically (the distance
      is convex in log tau); over c B at c = rho_B in closed form: ``sqrt(2) asinh(tan psi_B)``, which is log cond_min
      over sqrt 2.

    With a free scale all three are functions of psi_B alone, whatever the number of parameters.

    Cost: one product and one solve with B, and one product more for the residual; a diagonal costs one pass.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest.identify.reference import reference_distance
    >>> grad, v = np.array([1.0, 2.0, -1.0]), np.array([1.0, 4.0, 9.0])
    >>> float(reference_distance(grad, -0.1 * grad / np.sqrt(v), np.sqrt(v))) < 1e-15
    True
    >>> round(float(reference_distance(grad, -0.1 * grad, np.sqrt(v))), 4)  # -log(0.9)/2
    0.0527
    """
    check_options(kind, scale, rtol)
    y, g = matched_pair(grad, update)
    return whole(y, g, parts(y, g, reference, reference_solve, rtol)).distance(kind, scale)


def check_options(kind: str, scale: str, rtol: float) -> None:
    """Refuse options out of range.

    Parameters
    ----------
    kind, scale : str
        As in `reference_distance`.
    rtol : float
        As there.

    Raises
    ------
    ValueError
        For the first one.
    """
    if kind not in ("kl", "kl-reverse", "affine-invariant"):
        raise ValueError(f"expected kind 'kl', 'kl-reverse' or 'affine-invariant', got {kind!r}")
    if scale not in ("free", "fixed"):
        raise ValueError(f"expected scale 'free' or 'fixed', got {scale!r}")
    if not 0.0 < rtol < 1.0:
        raise ValueError(f"expected 0 < rtol < 1, got {rtol!r}")


@dataclass(frozen=True)
class Part:
    """A pair in the geometry of B, or one block of it.

    Attributes
    ----------
    status : str
        Of the pair.
    size : int
        Number of parameters.
    y_norm, g_norm : float
        sqrt(y^T B^-1 y), sqrt(g^T B g).
    cosine, sine : float
        Of psi_B; NaN if there is no angle.
    angle_bound : float
        In rad, from rounding.
    solve_error : float
        Relative error of y^T B^-1 y from the residual r of the solution x, to first order ``|x.r|/(x.y)``.
    residual : float
        ``|r|/|y|``.
    """

    status: str
    size: int
    y_norm: float
    g_norm: float
    cosine: float
    sine: float
    angle_bound: float
    solve_error: float = 0.0
    residual: float = 0.0

    def distance(self, kind: Kind, scale: Scale) -> ReferenceDistance:
        """The closed forms of `reference_distance`.

        Parameters
        ----------
        kind, scale : str
            As there.

        Returns
        -------
        ReferenceDistance
            NaN but for the status (and the angle, if there is one) where the pair has no metric.
        """
        angle = math.atan2(self.sine, self.cosine)
        value = error = multiple = math.nan
        if self.status == "ok":
            ratio = self.y_norm / self.g_norm
            value, slope = _smallest(kind, scale, ratio, self.cosine, self.sine, self.size)
            tangent = self.sine / self.cosine
            # (cos psi)^2 is off by the relative error of y^T B^-1 y, and psi by half of it over tan psi, or by its root
            from_solve = math.sqrt(self.solve_error)
            if tangent > 0.0:
                from_solve = min(0.5 * self.solve_error / tangent, from_solve)
            error = slope * (self.angle_bound + from_solve + 2.0**-50 * tangent) + 2.0**-51 * value + 2.0**-98
            if scale == "fixed":
                shift = self.solve_error + 2.0**-48
                log_cosine = _log_cosine(self.cosine, self.sine)
                steep = math.expm1(math.log(ratio) - log_cosine) if kind == "kl" else math.sqrt(self.size)
                if kind == "kl-reverse":
                    steep = math.expm1(-math.log(ratio) - log_cosine)
                error += 0.5 * abs(steep) * shift + shift**2
            best = {"kl": ratio / self.cosine, "kl-reverse": ratio * self.cosine, "affine-invariant": ratio}[kind]
            multiple = best if scale == "free" else 1.0
        return ReferenceDistance(value, error, kind, scale, multiple, angle, self.residual, self.status)


def parts(y: LongVector, g: LongVector, reference: Any, solve: Callable[[Any], Any] | None, rtol: float) -> list[Part]:
    """The pair in the geometry of the reference: one part for each array if that is block diagonal, else one in all.

    Parameters
    ----------
    y, g : LongVector
        Gradient and update, of one layout.
    reference, solve, rtol : object
        As in `reference_distance`.

    Returns
    -------
    list of Part
        In the order of the layout, or one.

    Raises
    ------
    ValueError
        As there.
    TypeError
        As there.
    """
    reference = _as_known(reference)
    if isinstance(reference, Mapping) and any(_is_operator(b) for b in reference.values()):
        names = y.layout.names
        if names is None or set(reference) != set(names):
            got = "one array" if names is None else f"the names {list(names)[:8]}"
            raise ValueError(f"expected a reference for each array of grad, which is {got}; got {list(reference)[:8]}")
        if solve is not None:
            raise ValueError("expected no reference_solve= for a mapping: give each operator a method solve")
        each = [_as_known(reference[name]) for name in names]
        return [
            _part(*pair, b, None, rtol) for pair, b in zip(zip(arrays(y), arrays(g), strict=True), each, strict=True)
        ]
    if _is_operator(reference):
        return [_part(y, g, reference, solve, rtol)]
    if callable(reference):
        raise TypeError("expected a reference metric, got a callable: only a run takes a function of the step")
    d = diagonal_base(reference, y)
    return [_part(*pair, None, rtol) for pair in zip(arrays(y), arrays(g), arrays(d), strict=True)]


def whole(y: LongVector, g: LongVector, found: list[Part]) -> Part:
    """The pair as one vector.

    Parameters
    ----------
    y, g : LongVector
        Gradient and update.
    found : list of Part
        Its blocks.

    Returns
    -------
    Part
        Inner products add up over the blocks of a block-diagonal reference.
    """
    if len(found) == 1:
        return found[0]
    status = align_vectors(y, g).status  # y.g does not depend on the reference, and neither does its certified sign
    residual = max(p.residual for p in found)
    top_y, top_g = max(p.y_norm for p in found), max(p.g_norm for p in found)
    if status not in ("ok", "ascent", "undecided"):
        return Part(status, y.size, top_y, top_g, math.nan, math.nan, math.nan, 0.0, residual)
    yy = np.array([(p.y_norm / top_y) ** 2 for p in found])
    gg = np.array([(p.g_norm / top_g) ** 2 for p in found])
    cosine = np.nan_to_num(np.array([p.cosine for p in found]))  # where one of the two is zero
    sine = np.array([1.0 if math.isnan(p.sine) else p.sine for p in found])
    yg = cosine * np.sqrt(yy * gg)
    t = yg.sum() / gg.sum()
    own = np.divide(yg, gg, out=np.zeros_like(yg), where=gg > 0.0)
    # |z - t w|^2 without cancellation: within each block, and between their multiples
    rest = float(np.sum(yy * sine**2 + (own - t) ** 2 * gg))
    norms = math.sqrt(yy.sum()) * math.sqrt(gg.sum())
    c, s = float(yg.sum()) / norms, math.sqrt(min(1.0, rest / float(yy.sum())))
    return Part(
        status,
        y.size,
        top_y * math.sqrt(yy.sum()),
        top_g * math.sqrt(gg.sum()),
        max(-1.0, min(1.0, c)),
        s,
        max(0.0 if math.isnan(p.angle_bound) else p.angle_bound for p in found),
        float(np.sum(yy * [p.solve_error for p in found]) / yy.sum()),
        residual,
    )


def arrays(x: LongVector) -> list[LongVector]:
    """Each array of a long vector by itself.

    Parameters
    ----------
    x : LongVector
        Of any layout.

    Returns
    -------
    list of LongVector
        Views.
    """
    if x.layout.names is None:
        return [x]
    zipped = zip(x.segments, x.layout.shapes, x.dtypes, strict=True)
    return [LongVector([s], Layout(None, (shape,)), (dtype,)) for s, shape, dtype in zipped]


def _is_operator(b: Any) -> bool:
    return isinstance(b, Metric) or hasattr(b, "matvec") or hasattr(b, "to_scipy")


def _as_known(b: Any) -> Any:
    """Operators of other packages as SciPy's."""
    return b.to_scipy() if not (isinstance(b, Metric) or hasattr(b, "matvec")) and hasattr(b, "to_scipy") else b


def _part(y: LongVector, g: LongVector, b: Any, solve: Callable[[Any], Any] | None, rtol: float) -> Part:
    if not _is_operator(b):
        return _of_alignment(align_vectors(y, g, b if isinstance(b, LongVector) else diagonal_base(b, y)))
    if solve is None and not hasattr(b, "solve"):
        solve = _conjugate_gradients(b, rtol)
    base = BaseOperator(b, y.size, solve)
    plain = align_vectors(y, g)
    if plain.status in ("ok", "ascent", "undecided"):
        pair = operator_pair(y, g, plain, base)
        r = pair.y - base.product(pair.preimage)
        error = abs(float(pair.preimage @ r)) / float(pair.preimage @ pair.y)
        return _of_alignment(pair.relative, error, float(np.linalg.norm(r) / np.linalg.norm(pair.y)))
    # No angle; but a block of a pair that has one may be zero, and the norm of the other vector counts
    y_norm = g_norm = math.nan if plain.status == "nonfinite" else 0.0
    if plain.status == "zero_update" and plain.grad_norm > 0.0:
        y_norm = _norm(y.flat(), base.solution)
    elif plain.status == "zero_grad" and plain.update_norm > 0.0:
        g_norm = _norm(g.flat(), base.product)
    return Part(plain.status, y.size, y_norm, g_norm, math.nan, math.nan, math.nan)


def _norm(x: Vector, product: Callable[[Vector], Vector]) -> float:
    unit = float(np.abs(x).max())
    return unit * math.sqrt(max(0.0, float(x / unit @ product(x / unit))))


def _of_alignment(a: Alignment, solve_error: float = 0.0, residual: float = 0.0) -> Part:
    return Part(a.status, a.size, a.grad_norm, a.update_norm, a.cosine, a.sine, a.angle_bound, solve_error, residual)


def _conjugate_gradients(b: Any, rtol: float) -> Callable[[Vector], Vector]:
    operator = b if isinstance(b, LinearOperator) else LinearOperator(b.shape, matvec=b.matvec, dtype=np.float64)

    def solve(rhs: Vector) -> Vector:
        with np.errstate(all="ignore"):  # an indefinite reference may divide by zero
            x, failed = cg(operator, rhs, rtol=rtol, maxiter=10 * rhs.size)
        if failed or not np.isfinite(x).all():
            raise ValueError(
                f"conjugate gradients on the reference did not reach a relative residual of {rtol:g}: expected a "
                "symmetric positive definite reference of moderate condition number; add damping, raise rtol=, or pass "
                "reference_solve="
            )
        return np.asarray(x, dtype=np.float64)

    return solve


def _log_cosine(cosine: float, sine: float) -> float:
    return 0.5 * math.log1p(-sine * sine) if sine < 0.7 else math.log(cosine)


def _smallest(kind: Kind, scale: Scale, rho: float, cosine: float, sine: float, size: int) -> tuple[float, float]:
    """The distance and its derivative with respect to psi."""
    log_cosine, tangent = _log_cosine(cosine, sine), sine / cosine
    if kind == "affine-invariant":
        if scale == "free":
            return math.sqrt(2.0) * math.asinh(tangent), math.sqrt(2.0) / cosine
        return _fixed_affine_invariant(rho, cosine, sine, size), math.sqrt(2.0) / cosine
    if scale == "free":
        return abs(log_cosine), tangent
    excess = math.log(rho) - log_cosine if kind == "kl" else -math.log(rho) - log_cosine  # log a or -log b
    return _kl_of_log(excess) - log_cosine, tangent


def _kl_of_log(x: float) -> float:
    """(e^x - 1 - x)/2."""
    if abs(x) < 1e-2:  # expm1(x) - x cancels
        return 0.5 * x * x * (0.5 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x * (1 / 720 + x / 5040)))))
    return 0.5 * (math.expm1(x) - x) if x < 700.0 else math.inf


def _fixed_affine_invariant(rho: float, cosine: float, sine: float, size: int) -> float:
    """Smallest hypot of the two logarithms over tau, which is a convex problem in log tau."""
    if size == 1 or sine == 0.0:
        return abs(math.log(rho))

    def logs(s: float) -> tuple[float, float, float]:
        # Plane of section 3 with alpha = tau, in units of rho; the derivatives of the logarithms are w and 1 - w
        minus, plus = plane_eigenvalues(math.exp(s) / rho, cosine, sine)
        w = minus * (plus - cosine) / (cosine * (plus - minus))
        return math.log(rho * minus), math.log(rho * plus), w

    def slope(s: float) -> float:
        q, p, w = logs(s)
        return p * w + q * (1.0 - w)

    from scipy.optimize import brentq  # 40 ms that the import of the package need not take

    # log tau is the arc length along a geodesic, so the slope rises at least as fast as s
    first = slope(0.0)
    reach = 1.01 * abs(first) + 1e-12
    q, p, _ = logs(float(brentq(slope, -reach, reach, xtol=1e-15)) if first else 0.0)
    return math.hypot(p, q)
