"""How a rule's update lies to the gradient: everything that follows from the inner products of one pair."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from scipy.special import betaincinv, ndtri

from steepest import _core, spectral
from steepest.arrays import EPSILON, LongVector, long_vector

__all__ = [
    "Alignment",
    "PairProducts",
    "align_vectors",
    "angle_tolerance",
    "from_products",
    "matched_pair",
    "pair_products",
    "separate_blocks",
    "status_of",
]

# The order is part of the format of recordings (row_format.py): append only.
Status = Literal[
    "ok",
    "ascent",
    "undecided",
    "zero_update",
    "zero_grad",
    "nonfinite",
    # Rows of a recording that have no pair
    "no_gradient",
    "no_update",
    "skipped",
]


@dataclass(frozen=True, repr=False)
class Alignment:
    """Angle between -grad and update, and what it implies for every metric of the pair.

    All numbers are float64. With a `base` (see `align`) norms, angle and everything derived from them are relative
    to that geometry: |grad| is sqrt(grad^T B^-1 grad), |update| is sqrt(update^T B update).

    Attributes
    ----------
    status : str
        ``ok``: grad.update < 0, certified, so a metric exists. ``ascent``: grad.update >= 0, certified. ``undecided``:
        the sign is within the error bound (cannot happen for arrays). ``zero_update``, ``zero_grad``, ``nonfinite``:
        there is no angle. The certificate is about the numbers given; sampling noise in them is not covered. Rows of a
        recording may also be ``no_gradient``, ``no_update`` or ``skipped``.
    size : int
        Number of parameters n.
    dtype : str
        The coarser of the two element types.
    inner_product, inner_product_bound : float
        grad.update and a rigorous bound on its error.
    grad_norm, update_norm : float
        Euclidean norms.
    rho : float
        ``grad_norm / update_norm``, the unit of all eigenvalues.
    cosine, sine : float
        Of the angle between -grad and update; NaN where there is none.
    angle : float
        psi in rad, in [0, pi].
    angle_bound : float
        Bound on the error of `angle` from the inner products, in rad.
    psi_floor : float
        Angle in rad that rounding of the input to `dtype` produces by itself.
    null_isotropic : float
        Standard deviation of the cosine for a random direction, ``1/sqrt(n)``.
    null_sign_flip : float
        Standard deviation of the cosine when the signs of the products grad_i update_i are drawn at random,
        ``sqrt(sum grad_i^2 update_i^2) / (|grad| |update|)``; wider than the isotropic one for sparse gradients.
    relative : bool
        Whether a base geometry was given.
    """

    status: Status
    size: int
    dtype: str
    inner_product: float
    inner_product_bound: float
    grad_norm: float
    update_norm: float
    rho: float
    cosine: float
    sine: float
    angle: float
    angle_bound: float
    psi_floor: float
    null_isotropic: float
    null_sign_flip: float
    relative: bool = False

    @property
    def angle_degrees(self) -> float:
        """The angle psi in degrees."""
        return math.degrees(self.angle)

    @property
    def within_rounding(self) -> bool:
        """Whether the angle is below what rounding of the input produces by itself."""
        return self.angle < self.psi_floor

    @property
    def cond_min(self) -> float:
        """Least condition number over all metrics, ``((1 + sin psi) / cos psi)^2`` (Proposition 1); NaN if none."""
        if self.status != "ok":
            return math.nan
        return 1.0 if self.size == 1 else spectral.optimal_condition_number(self.cosine, self.sine)

    @property
    def alpha_opt(self) -> float:
        """Bulk eigenvalue of the condition-optimal metric, |grad|^2 / (-grad.update); NaN if none."""
        return self.rho * spectral.optimal_alpha(self.cosine) if self.status == "ok" else math.nan

    @property
    def eig_bounds(self) -> tuple[float, float]:
        """(upper bound of lam_min, lower bound of lam_max) over all metrics (Propositions 2, 3); NaN if none."""
        if self.status != "ok":
            return math.nan, math.nan
        smallest, largest = spectral.eigenvalue_bounds(self.cosine)
        return self.rho * smallest, self.rho * largest

    @property
    def rate_bound(self) -> float:
        """Bound on dL/dt by eq (5), -|grad|^2 / lam_max, for the condition-optimal metric; NaN if none."""
        if self.status != "ok":
            return math.nan
        largest = spectral.optimal_eigenvalues(self.cosine, self.sine)[2]
        return -self.grad_norm * (self.update_norm / largest)

    def null_band(
        self, kind: Literal["isotropic", "sign-flip"] = "isotropic", level: float = 0.95
    ) -> tuple[float, float]:
        """Interval of angles that chance alone would give.

        Parameters
        ----------
        kind : {'isotropic', 'sign-flip'}
            Random directions (exact: the squared cosine has a Beta(1/2, (n-1)/2) distribution), or random signs of
            the elementwise products (normal approximation).
        level : float
            Probability of the interval, in (0, 1).

        Returns
        -------
        low, high : float
            Angles in rad, symmetric about 90 degrees.

        Raises
        ------
        ValueError
            `kind` or `level` is no valid value.

        Examples
        --------
        >>> import numpy as np, steepest
        >>> a = steepest.align(np.ones(100), -np.ones(100))
        >>> [round(float(np.degrees(x)), 1) for x in a.null_band()]
        [78.7, 101.3]
        """
        if not 0.0 < level < 1.0:
            raise ValueError(f"expected a level in (0, 1), got {level}")
        if kind == "isotropic":
            # One dimension has two directions only.
            cosine = 1.0 if self.size == 1 else math.sqrt(betaincinv(0.5, 0.5 * (self.size - 1), level))
        elif kind == "sign-flip":
            cosine = self.null_sign_flip * float(ndtri(0.5 + 0.5 * level))
            cosine = min(cosine, 1.0)  # NaN, where there is no such band, stays NaN
        else:
            raise ValueError(f"expected kind 'isotropic' or 'sign-flip', got {kind!r}")
        low = math.acos(cosine)
        return low, math.pi - low

    def to_dict(self) -> dict[str, Any]:
        """All fields and derived numbers, as plain Python values.

        Returns
        -------
        dict
            Field name -> value.
        """
        derived = ("angle_degrees", "within_rounding", "cond_min", "alpha_opt", "eig_bounds", "rate_bound")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}

    def __repr__(self) -> str:
        head = f"Alignment(status={self.status!r}, n={self.size}"
        if math.isnan(self.angle):
            return head + ")"
        parts = [head, f"angle={self.angle_degrees:.6g} deg" + " (within rounding)" * self.within_rounding]
        if self.status == "ok":
            parts.append(f"cond_min={self.cond_min:.6g}")
        parts.append(f"rho={self.rho:.6g}")
        low, high = (math.degrees(x) for x in self.null_band())
        parts.append(f"chance: {low:.4g} to {high:.4g} deg")
        return ", ".join(parts) + (", relative to a base" if self.relative else "") + ")"


def separate_blocks(grad: Any, update: Any, base: Any) -> list[tuple[Any, Any, Any, Any]]:
    """(name, grad, update, base) of each array of two mappings.

    Parameters
    ----------
    grad, update : mapping name -> array
        Of the same names.
    base : mapping name -> base, or None
        A base for each.

    Returns
    -------
    list of tuple
        In the order of `grad`.

    Raises
    ------
    TypeError
        An argument is not a mapping.
    ValueError
        The names differ.
    """
    for name, value in (("grad", grad), ("update", update)):
        if not isinstance(value, Mapping):
            raise TypeError(f"expected {name} to be a mapping for blocks='separate', got {type(value).__name__}")
    if base is not None and not isinstance(base, Mapping):
        raise TypeError(f"expected base to be a mapping for blocks='separate', got {type(base).__name__}")
    for other in (update, base):
        if other is not None and set(other) != set(grad):
            raise ValueError(f"expected the names {list(grad)[:8]}, got {list(other)[:8]}")
    return [(name, grad[name], update[name], None if base is None else base[name]) for name in grad]


def matched_pair(grad: Any, update: Any) -> tuple[LongVector, LongVector]:
    """Views of gradient and update, which must agree in names and shapes.

    Parameters
    ----------
    grad, update : array or mapping
        As for `align`.

    Returns
    -------
    grad, update : LongVector
        The update in the order of the gradient's names.

    Raises
    ------
    ValueError
        Names or shapes differ.
    """
    y = long_vector(grad, "grad")
    if isinstance(update, Mapping) and y.layout.names is not None and set(update) == set(y.layout.names):
        update = {name: update[name] for name in y.layout.names}
    g = long_vector(update, "update")
    if y.layout != g.layout:
        raise ValueError(f"expected update of the same shape as grad, which is {y.layout}, got {g.layout}")
    return y, g


def align_vectors(y: LongVector, g: LongVector, diagonal: LongVector | None = None) -> Alignment:
    """`align` on views, relative to a diagonal base if there is one.

    Parameters
    ----------
    y, g : LongVector
        Gradient and update of one layout.
    diagonal : LongVector, optional
        Positive diagonal of the base.

    Returns
    -------
    Alignment
        Of the pair.
    """
    dtype, products = pair_products(y, g, diagonal)
    return from_products(products, y.size, dtype, diagonal is not None)


class PairProducts(NamedTuple):
    """Inner products of (grad, update), each vector divided by a power of two, with bounds and the angle between them.

    Attributes
    ----------
    yy, yg, gg : float
        grad.grad, grad.update, update.update of the scaled vectors.
    yy_bound, yg_bound, gg_bound : float
        Bounds on their errors.
    y_exponent, g_exponent : int
        The powers of two.
    cosine, sine : float
        Of the angle between grad and update (not -grad).
    sign_flip_variance : float
        sum_i (grad_i update_i)^2 / (|grad|^2 |update|^2).
    finite : bool
        False if a vector holds NaN or Inf.
    """

    yy: float
    yg: float
    gg: float
    yy_bound: float
    yg_bound: float
    gg_bound: float
    y_exponent: int
    g_exponent: int
    cosine: float
    sine: float
    sign_flip_variance: float
    finite: bool


def pair_products(y: LongVector, g: LongVector, diagonal: LongVector | None = None) -> tuple[str, PairProducts]:
    """The coarser element type, and the inner products at the precision that `Alignment` needs.

    Parameters
    ----------
    y, g : LongVector
        Gradient and update of one layout.
    diagonal : LongVector, optional
        Positive diagonal of a base.

    Returns
    -------
    dtype : str
        One of `steepest.arrays.FLOAT_NAMES`.
    products : PairProducts
        Relative to the base if there is one.
    """
    dtype = max((y.coarsest, g.coarsest), key=EPSILON.__getitem__)
    tolerance = angle_tolerance(dtype)
    gram = _core.angle_gram(y.segments, g.segments, None if diagonal is None else diagonal.segments, tolerance)
    return dtype, PairProducts(*gram.pair)


def angle_tolerance(dtype: str) -> float:
    """Relative accuracy asked of sine and cosine.

    Parameters
    ----------
    dtype : str
        The coarser element type.

    Returns
    -------
    float
        Coarse input carries no twelve digits of its angle; its sign is certified all the same.
    """
    return 5e-13 if dtype == "float64" else 1e-10


def scaled(mantissa: float, exponent: int) -> float:
    """``mantissa * 2**exponent``, infinite where that overflows.

    Parameters
    ----------
    mantissa : float
        Any number.
    exponent : int
        Power of two.

    Returns
    -------
    float
        The product.
    """
    try:
        return math.ldexp(mantissa, exponent)
    except OverflowError:
        return math.copysign(math.inf, mantissa)


def from_products(p: PairProducts, size: int, dtype: str, relative: bool) -> Alignment:
    """Status, angle and norms from inner products.

    Parameters
    ----------
    p : PairProducts
        Of the pair.
    size : int
        Number of parameters.
    dtype : str
        The coarser element type.
    relative : bool
        Whether the products are relative to a base.

    Returns
    -------
    Alignment
        Of the pair.
    """
    y_norm, g_norm = math.sqrt(p.yy), math.sqrt(p.gg)
    status = status_of(p)
    cosine = sine = psi = psi_bound = sign_flip = rho = math.nan
    if status in ("ok", "ascent", "undecided"):
        cosine, sine = -p.cosine, p.sine  # psi is the angle between -grad and update
        if size == 1:
            cosine, sine = math.copysign(1.0, cosine), 0.0
        psi = math.atan2(sine, cosine)
        # For x, psi in [0, pi], |cos x - cos psi| = 2 sin((x + psi)/2) |sin((x - psi)/2)| is at least
        # sin(psi) |x - psi|/pi and at least 2 (|x - psi|/pi)^2.
        relative_bound = 0.5 * (p.yy_bound / p.yy + p.gg_bound / p.gg)
        cosine_bound = abs(cosine) * relative_bound + p.yg_bound / (y_norm * g_norm)
        linear = cosine_bound / sine if sine > 0.0 else math.inf
        psi_bound = math.pi * min(linear, math.sqrt(0.5 * cosine_bound)) + 4.0 * 2.0**-53 * psi
        sign_flip = math.sqrt(p.sign_flip_variance)
    if g_norm > 0.0:
        rho = scaled(y_norm / g_norm, p.y_exponent - p.g_exponent)
    exponent = p.y_exponent + p.g_exponent
    return Alignment(
        status=status,
        size=size,
        dtype=dtype,
        inner_product=scaled(p.yg, exponent),
        # The bound is for the sum in high and low parts; what is kept is the high part.
        inner_product_bound=scaled(p.yg_bound + 2.0**-53 * abs(p.yg), exponent),
        grad_norm=scaled(y_norm, p.y_exponent),
        update_norm=scaled(g_norm, p.g_exponent),
        rho=rho,
        cosine=cosine,
        sine=sine,
        angle=psi,
        angle_bound=psi_bound,
        psi_floor=EPSILON[dtype],
        null_isotropic=1.0 / math.sqrt(size),
        null_sign_flip=sign_flip,
        relative=relative,
    )


def status_of(p: PairProducts) -> Status:
    """Section 15: ok if y.g > bound, ascent if y.g <= 0 is certified, undecided otherwise; y = -grad.

    Parameters
    ----------
    p : PairProducts
        Of (grad, update).

    Returns
    -------
    str
        See `Alignment.status`.
    """
    return status_of_products(p.finite, p.yy, p.gg, p.yg, p.yg_bound)


def status_of_products(finite: bool, yy: float, gg: float, yg: float, yg_bound: float, yg_lo: float = 0.0) -> Status:
    """`status_of` from the numbers themselves.

    Parameters
    ----------
    finite : bool
        False if a vector holds NaN or Inf.
    yy, gg : float
        grad.grad, update.update.
    yg, yg_bound, yg_lo : float
        grad.update is within `yg_bound` of ``yg + yg_lo``.

    Returns
    -------
    str
        See `Alignment.status`.
    """
    if not finite:
        return "nonfinite"
    if yy == 0.0:
        return "zero_grad"
    if gg == 0.0:
        return "zero_update"
    if abs(yg) - yg_bound + math.copysign(1.0, yg) * yg_lo > 0.0:
        return "ok" if yg < 0.0 else "ascent"
    return "ascent" if yg == yg_bound == 0.0 else "undecided"
