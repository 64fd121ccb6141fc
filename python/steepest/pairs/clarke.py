"""The pair of a step on a loss that is not differentiable: an element of the Clarke subdifferential."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steepest.alignment import Alignment, scaled
from steepest.arrays import EPSILON, LongVector, long_vector, template_of
from steepest.errors import NotDescentError
from steepest.pairs.descent_pair import DescentPair, RationalGram, Row, _float, _half_exponent, coarsest, rational_gram

__all__ = ["ClarkePair", "clarke"]

Element = Literal["auto", "min-norm", "best-conditioned"]
Integers = NDArray[np.object_]

# Fixed-point numbers of the quadratic programme: Python integers times 2^-BITS. The Gram matrix is known to some 100
# bits, and a vertex solution on nearly equal pieces needs twice as many.
BITS = 256
# Below this, relative to the longest piece squared, a multiplier is a rounding of the Gram matrix.
_TOLERANCE = 2 ** (BITS - 90)


@dataclass(frozen=True, repr=False, eq=False)
class ClarkePair:
    """A descent pair whose gradient is an element ``v = sum_i weights_i pieces_i`` of the Clarke subdifferential.

    Made by `steepest.pairs.clarke`. Angles are in rad; slopes are directional derivatives of the loss along the update.

    Attributes
    ----------
    pair : DescentPair
        The element and the update, as rows of exact coefficients over the pieces and the update.
    element : str
        ``min-norm`` or ``best-conditioned``: which element was taken. ``min-norm`` too where no element descends.
    weights : tuple of float
        Of the element over the pieces: nonnegative, with sum 1.
    min_norm_weights : tuple of float
        Of the least element v0.
    min_norm : float
        |v0|, the distance of the subdifferential from zero; -v0 is the direction of steepest descent, with slope -|v0|.
    min_norm_error : float
        Bound on |v0 - exact v0| / max |pieces_i|, from the duality gap of the inner products.
    slopes : tuple of float
        pieces_i . update.
    strong : bool
        Whether every piece has a negative slope, so that the loss falls along the update: L0(th; update) < 0.
    weak : bool
        Whether some piece has one, so that some element admits a metric (not the one taken, perhaps).
    stationary : bool
        Whether v0 is zero, or no longer than rounding of the pieces makes it.
    """

    pair: DescentPair
    element: str
    weights: tuple[float, ...]
    min_norm_weights: tuple[float, ...]
    min_norm: float
    min_norm_error: float
    slopes: tuple[float, ...]
    strong: bool
    weak: bool
    stationary: bool

    @property
    def directional_derivative(self) -> float:
        """Clarke's L0(th; update), the largest slope of a piece."""
        return max(self.slopes)

    def align(self, *, base: Any = None) -> Alignment:
        """Angle between the negative element and the update.

        Parameters
        ----------
        base : array, mapping, Metric or LinearOperator, optional
            As for `steepest.align`.

        Returns
        -------
        Alignment
            Status ``ok`` only if the element taken descends along the update.
        """
        return self.pair.align(base=base)

    def metric(self, **options: Any) -> Any:
        """The metric that makes the update natural gradient descent for the element.

        Parameters
        ----------
        **options
            As for `DescentPair.metric`.

        Returns
        -------
        Metric or dict
            As `steepest.metric`.

        Raises
        ------
        NotDescentError
            No element of the subdifferential, or not the one asked for, has a negative slope along the update.
        """
        found = self.align()
        if found.status != "ok":  # the element, once formed, may descend by a rounding
            raise NotDescentError({None: found})
        return self.pair.metric(**options)

    def gradient(self) -> Any:
        """The element v, as `DescentPair.gradient`.

        Returns
        -------
        array or mapping
            A copy.
        """
        return self.pair.gradient()

    def update(self) -> Any:
        """The update, as `DescentPair.update`.

        Returns
        -------
        array or mapping
            A copy.
        """
        return self.pair.update()

    def to_dict(self) -> dict[str, Any]:
        """All figures, as plain Python values.

        Returns
        -------
        dict
            Field name -> value; `pair` as its own dict.
        """
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        lists = {name: list(x) for name, x in fields.items() if isinstance(x, tuple)}
        return fields | lists | {"pair": self.pair.to_dict()}

    def __repr__(self) -> str:
        kind = "strong" if self.strong else "weak" if self.weak else "not effective"
        stationary = ", stationary" * self.stationary
        return (
            f"ClarkePair({self.element!r}, n={self.pair.size}, pieces={len(self.weights)}, {kind}{stationary}, "
            f"min_norm={self.min_norm:.6g}, directional_derivative={self.directional_derivative:.6g})"
        )


def clarke(pieces: Any, update: Any, *, element: Element = "auto") -> ClarkePair:
    """The pair of a step from a kink: an element of the convex hull of the gradients that meet there.

    Parameters
    ----------
    pieces : sequence of arrays or mappings, or one array or mapping whose first axis runs over the pieces
        Gradients +dL_i/dtheta of the k smooth pieces that are active at the point, or gradients sampled in a small
        ball about it (gradient sampling). Intended for k <= 50.
    update : array or mapping name -> array
        theta_next - theta, of the shape of one piece.
    element : {'auto', 'min-norm', 'best-conditioned'}
        Which element stands for the gradient. 'min-norm': v0, the shortest. 'best-conditioned': the one with the least
        angle to the update, hence the least condition number. 'auto': v0 if ``v0.update < 0``, else the
        best-conditioned one.

    Returns
    -------
    ClarkePair
        With a `DescentPair`. If no element descends along the update, v0 stands for the gradient, `align` has a status
        other than ``ok`` and `metric` raises.

    Raises
    ------
    ValueError
        No pieces, another shape, or an unknown `element`.
    TypeError
        An unsupported dtype or type.

    Notes
    -----
    Section 10 of the theory (derived). v0 is the projection of 0 on the hull: ``v.v0 >= |v0|^2`` for all its elements
    v, so that -v0 descends for every piece. The best-conditioned element is the least combination with ``-v.update =
    1`` and nonnegative coefficients, divided by their sum. Along a path on which the loss is path-differentiable all
    elements give the same v.update: the choice changes the angle alone.

    The long vectors are read once, for their k + 1 inner products in compensated arithmetic; both quadratic programmes
    are solved from these alone by an active-set method (Wolfe) in 256-bit fixed-point arithmetic, O(k^3) per change of
    the active set. The pieces must be the active ones: gradients of pieces that are not active give elements that are
    not in the subdifferential.

    References
    ----------
    Clarke, Optimization and Nonsmooth Analysis (1983); Wolfe, Math. Programming 11 (1976) 128; Burke, Lewis and
    Overton, SIAM J. Optim. 15 (2005) 751 (gradient sampling).

    Examples
    --------
    L = |x| + 2 |y| at (0, 1), where the pieces with x > 0 and x < 0 meet; the shortest element points down the y axis:

    >>> import numpy as np
    >>> from steepest import pairs
    >>> pair = pairs.clarke(np.array([[1.0, 2.0], [-1.0, 2.0]]), np.array([0.1, -1.0]))
    >>> pair.element, pair.weights, pair.gradient().tolist()
    ('min-norm', (0.5, 0.5), [0.0, 2.0])
    """
    if element not in ("auto", "min-norm", "best-conditioned"):
        raise ValueError(f"expected element 'auto', 'min-norm' or 'best-conditioned', got {element!r}")
    given, vectors, update = _matched(_cut(pieces), update)
    k = len(given)
    gram = rational_gram(vectors)
    if not gram.finite:
        nan, first = math.nan, (Fraction(1), *[Fraction(0)] * (k - 1))
        pair = _pair(first, vectors, given, update, gram, math.nan)
        unknown = (nan,) * k
        return ClarkePair(pair, "min-norm", unknown, unknown, nan, nan, unknown, False, False, False)
    if any(abs(row[-1]) <= bound[-1] for row, bound in zip(gram.values[:k], gram.bounds[:k], strict=True)):
        gram = rational_gram(vectors, "exact")
    e = _half_exponent(max(gram.values[i][i] for i in range(k)))
    unit = Fraction(4) ** e  # about the longest piece squared
    square = [[x / unit for x in row[:k]] for row in gram.values[:k]]
    slopes = [row[k] for row in gram.values[:k]]
    descends = [row[k] < -bound[k] for row, bound in zip(gram.values[:k], gram.bounds[:k], strict=True)]
    lengths = [math.sqrt(max(0.0, float(square[i][i]))) for i in range(k)]

    least = _least_norm(square, [Fraction(1)] * k)
    products = [_dot(least, column) for column in square]  # pieces_i . v0
    squared = _dot(least, products)
    norm = _root(squared)
    # Rounding of the pieces, as long as they are added up
    rounding = EPSILON[coarsest(*vectors[:k])] * _dot([float(w) for w in least], lengths)
    stationary = norm <= rounding
    weights, name = least, "min-norm"
    accepted = _dot(least, slopes) < 0 and not stationary
    if any(descends) and (element == "best-conditioned" or (element == "auto" and not accepted)):
        # In units of the steepest slope
        steepest = -min(slopes)
        ray = _least_norm(square, [-s / steepest for s in slopes])
        total = sum(ray, Fraction(0))
        weights, name = tuple(w / total for w in ray), "best-conditioned"
    return ClarkePair(
        pair=_pair(weights, vectors, given, update, gram, _floor(weights, square, vectors)),
        element=name,
        weights=tuple(map(float, weights)),
        min_norm_weights=tuple(map(float, least)),
        min_norm=scaled(norm, e),
        min_norm_error=_root(squared - min(products)) / (max(lengths) or 1.0),
        slopes=tuple(map(_float, slopes)),
        strong=all(descends),
        weak=any(descends),
        stationary=stationary,
    )


def _cut(pieces: Any) -> list[Any]:
    """The pieces one by one."""
    if isinstance(pieces, Mapping):
        counts = {name: np.shape(x)[:1] for name, x in pieces.items()}
        if len(set(counts.values())) != 1 or () in counts.values():
            raise ValueError(f"expected arrays with one first axis over the pieces, got first axes {counts}")
        (count,) = next(iter(counts.values()))
        found: list[Any] = [{name: x[i] for name, x in pieces.items()} for i in range(count)]
    elif isinstance(pieces, Sequence):
        found = list(pieces)
    else:
        shape = getattr(pieces, "shape", None)
        if not shape:
            raise ValueError(f"expected a sequence of pieces or an array with an axis over them, got {pieces!r}")
        found = [pieces[i] for i in range(shape[0])]
    if not found:
        raise ValueError("expected at least one piece, got none")
    return found


def _matched(pieces: list[Any], update: Any) -> tuple[list[Any], tuple[LongVector, ...], Any]:
    """The pieces in the order of the update's names, views of them and of the update, and the update."""
    g = long_vector(update, "update")
    names = g.layout.names
    views = []
    for i, piece in enumerate(pieces):
        if isinstance(piece, Mapping) and names is not None and set(piece) == set(names):
            pieces[i] = {name: piece[name] for name in names}
        elif isinstance(piece, np.floating):  # a row of a vector: one parameter
            pieces[i] = np.asarray(piece)
        view = long_vector(pieces[i], f"pieces[{i}]")
        if view.layout != g.layout:
            raise ValueError(
                f"expected pieces[{i}] of the same shape as update, which is {g.layout}, got {view.layout}"
            )
        views.append(view)
    return pieces, (*views, g), update


def _pair(
    weights: Row, vectors: tuple[LongVector, ...], pieces: list[Any], update: Any, gram: RationalGram, floor: float
) -> DescentPair:
    k = len(pieces)
    zero = Fraction(0)
    single = weights.index(1) if 1 in weights else 0
    return DescentPair(
        method="clarke",
        names=(*(f"pieces[{i}]" for i in range(k)), "update"),
        rows=((*weights, zero), (*[zero] * k, Fraction(1))),
        vectors=vectors,
        templates=(template_of(pieces[single]), template_of(update)),
        dtype=coarsest(*vectors),
        psi_floor=floor,
        gram=gram,
    )


def _floor(weights: Row, square: list[list[Fraction]], vectors: tuple[LongVector, ...]) -> float:
    """Angle that rounding of the pieces produces: more than eps where they nearly cancel."""
    k = len(weights)
    products = [_dot(weights, row) for row in square]
    norm = _root(_dot(weights, products))
    terms = sum(float(w) * _root(square[i][i]) for i, w in enumerate(weights))
    rounding = EPSILON[coarsest(*vectors[:k])] * terms
    return max(EPSILON[coarsest(*vectors)], math.atan2(rounding, norm))


def _dot(a: Sequence[Any], b: Sequence[Any]) -> Any:
    return sum((x * y for x, y in zip(a, b, strict=True) if x), type(b[0])(0))


def _root(x: Fraction) -> float:
    return math.sqrt(max(0.0, float(x)))


def _least_norm(square: list[list[Fraction]], c: list[Fraction]) -> Row:
    """The w >= 0 with c.w = 1 that minimises w^T G w, some c_i > 0; exactly on the constraint."""
    # Optimal if and only if G w - (w^T G w) c is 0 where w_i > 0, and at least 0 elsewhere.
    k = len(c)
    one = 1 << BITS
    gram = np.array([[int(x * one) for x in row] for row in square], dtype=object)
    rhs = np.array([int(x * one) for x in c], dtype=object)
    w = np.array([0] * k, dtype=object)
    start = min((i for i in range(k) if c[i] > 0), key=lambda i: square[i][i] / c[i] ** 2)
    w[start] = int(one / c[start])
    active = [start]
    for _ in range(20 * k):
        target = _stationary_point(gram, rhs, active)
        while target is not None and len(active) > 1 and min(target[active]) <= 0:
            # As far as the weights stay nonnegative; the pieces that stop the way leave.
            change = target - w
            step = min(Fraction(w[i], -change[i]) for i in active if target[i] <= 0 and change[i] < 0)
            for i in active:
                w[i] += int(step * change[i])
            gone = min(active, key=lambda i: (w[i], change[i]))
            active = [i for i in active if i != gone and w[i] > 0]
            w[[i for i in range(k) if i not in active]] = 0
            target = _stationary_point(gram, rhs, active)
        if target is None:  # dependent pieces: w is as good as their inner products can tell
            break
        w = target
        product = (gram @ w) >> BITS
        multipliers = product - ((rhs * ((w @ product) >> BITS)) >> BITS)
        entering = min((i for i in range(k) if i not in active), key=lambda i: multipliers[i], default=None)
        if entering is None or multipliers[entering] >= -_TOLERANCE:
            break
        active.append(entering)
    found = [Fraction(max(0, x)) for x in w]
    total = sum((x * y for x, y in zip(found, c, strict=True)), Fraction(0))
    return tuple(x / total for x in found)


def _stationary_point(gram: Integers, rhs: Integers, active: list[int]) -> Integers | None:
    """The w with support in `active` and c.w = 1 at which w^T G w is stationary; None if it is not unique."""
    m = len(active)
    one = 1 << BITS
    # [G -c; c^T 0] [w; lam] = [0; 1] by Gaussian elimination in fixed point
    a = np.array([[0] * (m + 2)] * (m + 1), dtype=object)
    a[:m, :m] = gram[np.ix_(active, active)]
    a[:m, m] = -rhs[active]
    a[m, :m] = rhs[active]
    a[m, m + 1] = one
    for j in range(m + 1):
        pivot = max(range(j, m + 1), key=lambda i: abs(a[i, j]))
        if abs(a[pivot, j]) < 1 << (BITS // 4):
            return None
        a[[j, pivot]] = a[[pivot, j]]
        factors = (a[j + 1 :, j] << BITS) // a[j, j]
        a[j + 1 :, j:] -= (factors[:, None] * a[j, j:]) >> BITS
    x = np.array([0] * (m + 1), dtype=object)
    for j in range(m, -1, -1):
        x[j] = ((a[j, m + 1] - ((a[j, j + 1 : m + 1] @ x[j + 1 :]) >> BITS if j < m else 0)) << BITS) // a[j, j]
    w = np.array([0] * len(rhs), dtype=object)
    w[active] = x[:m]
    return w
