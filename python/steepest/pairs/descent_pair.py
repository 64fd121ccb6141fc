"""A gradient-like and an update-like vector as two rows of coefficients over a few long vectors."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steepest import _core
from steepest.alignment import Alignment, PairProducts, align_vectors, from_products, scaled
from steepest.arrays import EPSILON, LongVector, long_vector, to_user, widened
from steepest.metric import align, metric

__all__ = ["DescentPair", "RationalGram", "coarsest", "rational_gram"]

#: Where on a short step Taylor's formula (16) holds, if the third derivative along it is not zero.
LIMIT = 1.0 / 3.0

Row = tuple[Fraction, ...]
Rows = tuple[Row, ...]


class RationalGram(NamedTuple):
    """Inner products of a few long vectors, as exact sums of the high and low parts that the core gives.

    Attributes
    ----------
    values : tuple of tuple of Fraction
        The Gram matrix; empty if a vector holds NaN or Inf.
    bounds : tuple of tuple of Fraction
        Bounds on the errors of `values`.
    finite : bool
        False if a vector holds NaN or Inf.
    """

    values: Rows
    bounds: Rows
    finite: bool

    def product(self, a: Row, b: Row) -> Fraction:
        """Inner product of two combinations of the vectors.

        Parameters
        ----------
        a, b : tuple of Fraction
            Coefficients.

        Returns
        -------
        Fraction
            Without rounding.
        """
        return _form(self.values, a, b)

    def product_bound(self, a: Row, b: Row) -> Fraction:
        """Bound on the error of `product`.

        Parameters
        ----------
        a, b : tuple of Fraction
            Coefficients.

        Returns
        -------
        Fraction
            At least 0.
        """
        return _form(self.bounds, tuple(map(abs, a)), tuple(map(abs, b)))


def _form(matrix: Rows, a: Row, b: Row) -> Fraction:
    terms = (x * y * matrix[i][j] for i, x in enumerate(a) if x for j, y in enumerate(b) if y)
    return sum(terms, Fraction(0))


def rational_gram(vectors: tuple[LongVector, ...], precision: str = "compensated") -> RationalGram:
    """All inner products of long vectors, in one pass.

    Parameters
    ----------
    vectors : tuple of LongVector
        Of one layout.
    precision : {'compensated', 'exact'}
        Of the sums: some 32 digits, or rounded once to as many.

    Returns
    -------
    RationalGram
        With error bounds.
    """
    gram = _core.gram([v.segments for v in vectors], precision)
    if not gram.finite:
        return RationalGram((), (), False)
    r, e = range(len(vectors)), gram.exponents
    high, low, bound = gram.hi.tolist(), gram.lo.tolist(), gram.bound.tolist()
    units = [[Fraction(2) ** (e[i] + e[j]) for j in r] for i in r]
    values = tuple(tuple((Fraction(high[i][j]) + Fraction(low[i][j])) * units[i][j] for j in r) for i in r)
    return RationalGram(values, tuple(tuple(Fraction(bound[i][j]) * units[i][j] for j in r) for i in r), True)


def coarsest(*vectors: LongVector) -> str:
    """The element type with the largest rounding unit.

    Parameters
    ----------
    *vectors : LongVector
        At least one.

    Returns
    -------
    str
        Name of the dtype.
    """
    return max((v.coarsest for v in vectors), key=EPSILON.__getitem__)


@dataclass(frozen=True, repr=False, eq=False)
class DescentPair:
    """A pair (gradient, update) that stands for a step of a rule: two rows of coefficients over a few long vectors.

    Made by `steepest.pairs.continuous` and `steepest.pairs.discrete`. Everything scalar follows from the inner products
    of the long vectors (section 0 of the theory, "Pairs as coefficients", derived): for ``[grad, update] = V C^T`` they
    are ``C (V^T V) C^T``, formed here in exact rational arithmetic. Holds views of the vectors, which must not change
    as long as it is used.

    Attributes
    ----------
    method : str
        How the pair was made.
    names : tuple of str
        What the k long vectors are.
    rows : tuple of two tuples of Fraction
        Coefficients of gradient and update, exact; `coefficients` has them as floats.
    vectors : tuple of LongVector
        Views of the long vectors, all of one layout.
    templates : tuple of two arrays or mappings
        What `gradient` and `update` are made after: structure, library, dtype.
    dtype : str
        The coarsest element type of the input.
    psi_floor : float
        Angle in rad that rounding of the input produces by itself (section 0, derived): for a difference of
        parameters ``atan(|spacing| / sqrt(12) / |params_next - params|)``, spacing the larger one of the two for each
        element, and at least eps of the coarsest gradient; for a direct pair eps of `dtype`.
    correction_share : float
        ``q = |y - y0| / |y|``: the share of the gradient that is a correction along the update (sections 1 and 7). q <<
        1: it is the averaged gradient in essence. q near 1: the correction dominates, and the angle is near 0 whatever
        the rule does.
    loss_change : float
        dL of the step; NaN if there is none.
    defect : float
        ``DG.d - dL``, what the discrete gradient leaves of eq (12); NaN if there is no loss change.
    error : float
        Estimate of |DG - exact DG| where the discrete gradient is a quadrature, else 0.
    taylor_points : tuple of float
        Of the method 'taylor': every s that was found, of which the first is used; empty for 1/3, where any s does.
    gram : RationalGram or None
        Inner products of the vectors; None if they are still to be computed.
    exact_descent : bool
        Whether grad.update is known by construction, as dL/lr, so that its sign is certain.
    start : LongVector or None
        Of the method 'taylor': views of the parameters before the step, for `taylor_point`.
    """

    method: str
    names: tuple[str, ...]
    rows: tuple[Row, Row]
    vectors: tuple[LongVector, ...]
    templates: tuple[Any, Any]
    dtype: str
    psi_floor: float
    correction_share: float = 0.0
    loss_change: float = math.nan
    defect: float = math.nan
    error: float = 0.0
    gram: RationalGram | None = field(default=None)
    exact_descent: bool = False
    taylor_points: tuple[float, ...] = ()
    start: LongVector | None = None

    @property
    def size(self) -> int:
        """Number of parameters n."""
        return self.vectors[0].size

    @property
    def coefficients(self) -> NDArray[np.float64]:
        """C, float64 of shape (2, k): coefficients of gradient and update over the vectors of `names`."""
        return np.array([[_float(c) for c in row] for row in self.rows])

    def align(self, *, base: Any = None) -> Alignment:
        """Angle between -gradient and update, and what follows from it.

        Parameters
        ----------
        base : array, mapping, Metric or LinearOperator, optional
            As for `steepest.align`; then the two vectors are formed, which costs one or two extra ones.

        Returns
        -------
        Alignment
            From the inner products of the long vectors alone: neither vector is formed. `null_sign_flip` is NaN where
            the pair is a combination, since inner products do not give it. With `psi_floor` of the pair.

        Notes
        -----
        Cost: one compensated pass over the k vectors, unless it has been made already. Relative error of the sine about
        1e-32/psi^2, times the square of the cancellation in the combination.
        """
        if base is not None:
            found: Alignment = align(self._operand(0), self._operand(1), base=base)
        elif None not in (plain := [_single(row) for row in self.rows]):
            found = align_vectors(self.vectors[plain[0] or 0], self.vectors[plain[1] or 0])
        else:
            gram = self.gram or rational_gram(self.vectors)
            found = self._alignment(gram)
            if found.status == "undecided":
                found = self._alignment(rational_gram(self.vectors, "exact"))
        return dataclasses.replace(found, dtype=self.dtype, psi_floor=self.psi_floor)

    def _alignment(self, gram: RationalGram) -> Alignment:
        return from_products(pair_products(self.rows, gram, self.exact_descent), self.size, self.dtype, False)

    def metric(self, **options: Any) -> Any:
        """The metric that makes the update natural gradient descent for the gradient of the pair.

        For a finite step, eq (14): ``params_next = params + lr M^{-1} y`` with y = -gradient, eq (15).

        Parameters
        ----------
        **options
            alpha, base, complement, kind, blocks, base_solve as for `steepest.metric`.

        Returns
        -------
        Metric or dict
            As `steepest.metric`.

        Raises
        ------
        NotDescentError
            gradient.update >= 0: the loss does not fall.

        Notes
        -----
        A gradient that is a combination is formed once, in float64: one extra long vector (two with lr other than 1).
        A product then reads two vectors, where the combination would read k; rounding in the vector turns the
        angle by about eps; of angles near 0 or 90 degrees `align` keeps more digits.
        """
        return metric(self._operand(0), self._operand(1), **options)

    def gradient(self) -> Any:
        """The gradient-like vector (DG of eq (12), not negated).

        Returns
        -------
        array or mapping
            A copy, in the structure, library, shape and dtype of the input.
        """
        return to_user(_segments(self._formed(0)), self.templates[0])

    def update(self) -> Any:
        """The update-like vector, ``(params_next - params)/lr`` for a step.

        Returns
        -------
        array or mapping
            A copy, in the structure, library, shape and dtype of the input.
        """
        return to_user(_segments(self._formed(1)), self.templates[1])

    def taylor_point(self) -> Any:
        """The parameters ``params + s d`` at which the pair of method 'taylor' holds the Hessian, eq (16).

        Returns
        -------
        array or mapping
            A copy, in the structure, library, shape and dtype of params; s is the first of `taylor_points`, or 1/3.

        Raises
        ------
        ValueError
            The pair was made in another way.
        """
        if self.start is None:
            raise ValueError(f"expected a pair of method 'taylor', got {self.method!r}, which knows no Taylor point")
        s = self.taylor_points[0] if self.taylor_points else LIMIT
        moves = self.vectors[-1].segments
        return to_user([x + s * d for x, d in zip(_segments(self.start), moves, strict=True)], self.templates[1])

    def _formed(self, which: int) -> LongVector:
        """Gradient (0) or update (1): a long vector itself, or a combination of them in float64."""
        row = self.rows[which]
        single = _single(row)
        if single is not None:
            return self.vectors[single]
        terms = [(*_parts(c), v) for c, v in zip(row, self.vectors, strict=True) if c]
        layout = self.vectors[0].layout
        segments = []
        for i, shape in enumerate(layout.shapes):
            total = np.zeros(shape)
            for c, exponent, v in terms:
                x = widened(v.segments[i], v.dtypes[i])
                total += c * (np.ldexp(x, exponent) if exponent else x)
            segments.append(total)
        return LongVector(segments, layout, ("float64",) * len(segments))

    def _operand(self, which: int) -> Any:
        """Gradient (0) or update (1) for `align` and `metric`: the user's own arrays, or float64 arrays."""
        formed = self._formed(which)
        template = self.templates[which]
        own = long_vector(template, "template")
        if all(np.may_share_memory(a, b) for a, b in zip(formed.segments, own.segments, strict=True)):
            return template
        names = formed.layout.names
        segments = _segments(formed)
        return segments[0] if names is None else dict(zip(names, segments, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """All scalars and the coefficients, as plain Python values.

        Returns
        -------
        dict
            Field name -> value.
        """
        scalars = {
            name: getattr(self, name)
            for name in ("method", "size", "dtype", "psi_floor", "correction_share", "loss_change", "defect", "error")
        }
        return (
            scalars
            | {"names": list(self.names), "coefficients": self.coefficients.tolist()}
            | ({"taylor_points": list(self.taylor_points)} if self.method == "taylor" else {})
        )

    def __repr__(self) -> str:
        combinations = []
        for row in self.coefficients:
            terms = [f"{c:.6g} {name}" for c, name in zip(row, self.names, strict=True) if c]
            combinations.append(" + ".join(terms) or "0")
        return (
            f"DescentPair({self.method!r}, n={self.size}, gradient = {combinations[0]}, update = {combinations[1]}, "
            f"correction_share={self.correction_share:.3g}, psi_floor={math.degrees(self.psi_floor):.3g} deg)"
        )


def _parts(c: Fraction) -> tuple[float, int]:
    """Mantissa and exponent of a coefficient; the exponent is 0 unless the coefficient is near the end of the range."""
    # A correction over a tiny displacement may overflow where its product with the displacement does not.
    exponent = c.numerator.bit_length() - c.denominator.bit_length()
    if abs(exponent) < 900:
        return float(c), 0
    return float(c / Fraction(2) ** exponent), exponent


def _float(c: Fraction) -> float:
    mantissa, exponent = _parts(c)
    return scaled(mantissa, exponent)


def _single(row: Row) -> int | None:
    """Which vector a row of coefficients picks out, if it does only that."""
    found = [i for i, c in enumerate(row) if c]
    return found[0] if len(found) == 1 and row[found[0]] == 1 else None


def _segments(vector: LongVector) -> list[NDArray[np.float64]]:
    return [widened(s, d) for s, d in zip(vector.segments, vector.dtypes, strict=True)]


def pair_products(rows: tuple[Row, Row], gram: RationalGram, exact_descent: bool = False) -> PairProducts:
    """Inner products ``C G C^T`` of a pair, without rounding but the last.

    Parameters
    ----------
    rows : tuple of two tuples of Fraction
        Coefficients of gradient and update.
    gram : RationalGram
        Of the long vectors.
    exact_descent : bool
        Whether grad.update is exact as it comes out.

    Returns
    -------
    PairProducts
        For `from_products`.
    """
    nan = math.nan
    if not gram.finite:
        return PairProducts(nan, nan, nan, nan, nan, nan, 0, 0, nan, nan, nan, False)
    y, g = rows
    yy, yg, gg = max(gram.product(y, y), Fraction(0)), gram.product(y, g), max(gram.product(g, g), Fraction(0))
    ey, eg = _half_exponent(yy), _half_exponent(gg)
    scales = [Fraction(2) ** -e for e in (2 * ey, ey + eg, 2 * eg)]
    bounds = [gram.product_bound(*p) for p in ((y, y), (y, g), (g, g))]
    if exact_descent:
        bounds[1] = Fraction(0)
    # The rounding of each number to a float is part of its bound.
    values = [float(x * s) for x, s in zip((yy, yg, gg), scales, strict=True)]
    errors = [
        (float(b * s) + 2.0**-53 * abs(v)) * (1 + 2.0**-50) for b, s, v in zip(bounds, scales, values, strict=True)
    ]
    cosine = sine = nan
    if yy > 0 and gg > 0:
        squared = yg * yg / (yy * gg)
        cosine = math.copysign(math.sqrt(min(1.0, float(squared))), yg)
        sine = math.sqrt(max(0.0, float(1 - squared)))
    return PairProducts(
        values[0], values[1], values[2], errors[0], errors[1], errors[2], ey, eg, cosine, sine, nan, True
    )


def _half_exponent(x: Fraction) -> int:
    """An e with x / 4**e near 1; 0 for 0."""
    return (x.numerator.bit_length() - x.denominator.bit_length()) // 2 if x else 0
