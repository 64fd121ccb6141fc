"""Distances between two metrics, from the Gram matrix of their few vectors: section 5 of the theory (derived)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from steepest import _core
from steepest.alignment import scaled
from steepest.arrays import LongVector
from steepest.metrics.family import FamilyMetric
from steepest.metrics.interface import MAX_SIZE, Metric
from steepest.metrics.low_rank import low_rank_form

__all__ = ["Distance", "distance"]

Matrix = NDArray[np.float64]
Kind = Literal["affine-invariant", "kl", "stein", "bures"]

_EPS = 2.0**-52


@dataclass(frozen=True)
class Distance:
    """A distance with its two parts; ``float(d)`` is its value.

    Attributes
    ----------
    value : float
        The distance. 'affine-invariant' and 'bures': sqrt(plane^2 + bulk^2); 'kl' and 'stein': plane + bulk.
    bulk : float
        The part of the complement of all vectors involved, where each metric is a number: it grows with n.
    plane : float
        The part of the span of the vectors.
    error : float
        Estimate of the absolute error of `value`: eps times the condition numbers, and rounding.
    kind : str
        Which distance.
    """

    value: float
    bulk: float
    plane: float
    error: float
    kind: str

    def __float__(self) -> float:
        return self.value

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python values.

        Returns
        -------
        dict
            Field name -> value.
        """
        return asdict(self)


def distance(first: Metric, second: Metric, kind: Kind = "affine-invariant") -> Distance:
    """Distance of two metrics on the same parameters.

    Parameters
    ----------
    first, second : Metric
        Of one size. Metrics with a scalar base (the family (8), its powers, updates of such) are compared without
        forming anything of size n x n; others need n <= 4096.
    kind : {'affine-invariant', 'kl', 'stein', 'bures'}
        ``|log(M1^-1/2 M2 M1^-1/2)|_F``, invariant under a change of coordinates; KL( N(0,M1) || N(0,M2) ), not
        symmetric; ``log det((M1+M2)/2) - log det(M1 M2)/2``; ``tr M1 + tr M2 - 2 tr (M1^1/2 M2 M1^1/2)^1/2``, of
        which the root is returned (Bures-Wasserstein).

    Returns
    -------
    Distance
        Value, parts, and an error estimate.

    Raises
    ------
    ValueError
        Different sizes.
    TypeError
        Not metrics, or not positive definite.

    Notes
    -----
    The Gram matrix of the at most four vectors and all that follows are in double-double, so that metrics of steps
    that differ by 1e-9 still compare to 5 digits. One pass over the vectors in compensated precision.

    Examples
    --------
    >>> import numpy as np, steepest
    >>> M = steepest.metric(np.array([3.0, 4.0, 0.0]), np.array([-3.0, -1.0, 0.5]))
    >>> d = steepest.distance(M, 2 * M)
    >>> round(d.value / float(np.sqrt(3) * np.log(2)), 12)
    1.0
    """
    for metric in (first, second):
        if not isinstance(metric, Metric):
            raise TypeError(f"expected two metrics, got {type(metric).__name__}")
        metric._require_definite("a distance")
    if first._layout.sizes != second._layout.sizes:
        raise ValueError(f"expected metrics on the same parameters, got {first._layout} and {second._layout}")
    if kind not in ("affine-invariant", "kl", "stein", "bures"):
        raise ValueError(f"expected kind 'affine-invariant', 'kl', 'stein' or 'bures', got {kind!r}")
    if low_rank_form(first) is None or low_rank_form(second) is None:
        return _dense_distance(first, second, kind)
    return _low_rank_distance(first, second, kind)


def _low_rank_distance(first: Metric, second: Metric, kind: Kind) -> Distance:
    vectors: list[LongVector] = []
    slots: list[list[int]] = []
    for metric in (first, second):
        form = low_rank_form(metric)
        assert form is not None
        slots.append([_slot(vectors, v) for v in form.vectors])
    gram = _core.gram([v.segments for v in vectors], "compensated")
    if not gram.finite:
        raise ValueError("a vector of a metric holds NaN or Inf; it must not change while the metric is used")
    (c1, k1), (c2, k2) = (
        _on_unit_columns(metric, own, gram) for metric, own in zip((first, second), slots, strict=True)
    )
    high, low = _unit_gram(gram)
    # One scale for both, so that neither leaves the range; only the Bures distance depends on it.
    unit = math.frexp(c1)[1]
    c1, c2 = math.ldexp(c1, -unit), math.ldexp(c2, -unit)
    core1, core2 = ([np.ldexp(part, -unit) for part in k] for k in (k1, k2))
    logs, bures, condition = _core.low_rank_pencil(c1, core1[0], core1[1], c2, core2[0], core2[1], high, low)
    rest = first.size - logs.size
    exact = all(isinstance(m, FamilyMetric) and m._p == 1.0 and m._factor == 1.0 for m in (first, second))
    relative = condition * (_EPS**2 * 64 if exact else _EPS * 4) + 4 * _EPS
    result = _from_log_ratios(kind, logs, bures, math.log1p((c2 - c1) / c1), c1, c2, rest, relative)
    if kind != "bures":
        return result
    root = math.sqrt(math.ldexp(1.0, unit % 2)) * math.ldexp(1.0, unit // 2)
    return Distance(root * result.value, root * result.bulk, root * result.plane, root * result.error, kind)


def _slot(vectors: list[LongVector], vector: LongVector) -> int:
    for i, known in enumerate(vectors):
        if all(a is b for a, b in zip(known.segments, vector.segments, strict=True)):
            return i
    vectors.append(vector)
    return len(vectors) - 1


def _unit_gram(gram: _core.Gram) -> tuple[Matrix, Matrix]:
    """Gram matrix of the columns scaled to unit norm, high and low parts, from that of the scaled columns."""
    exponents = np.frexp(np.sqrt(np.diag(gram.hi)))[1]
    # Powers of two only: the metrics' cores are for these columns, and no rounding enters.
    factor = np.ldexp(np.ones_like(gram.hi), -(exponents[:, None] + exponents[None, :]))
    return gram.hi * factor, gram.lo * factor


def _column_exponents(gram: _core.Gram) -> list[int]:
    """Power of two between a vector and its column in `_unit_gram`."""
    return [e + math.frexp(math.sqrt(h))[1] for e, h in zip(gram.exponents, np.diag(gram.hi), strict=True)]


def _on_unit_columns(metric: Metric, own: list[int], gram: _core.Gram) -> tuple[float, tuple[Matrix, Matrix]]:
    """Scalar and core (high and low parts) for the columns of `_unit_gram`."""
    count = gram.hi.shape[0]
    exponents = _column_exponents(gram)
    high, low = np.zeros((count, count)), np.zeros((count, count))
    exact = isinstance(metric, FamilyMetric) and metric._p == 1.0 and metric._factor == 1.0 and metric.size > 1
    if exact:
        # y y^T/(y.g) - alpha g g^T/(g.g) with the inner products in double-double: two digits more than a double core
        # would leave for metrics that differ by 1e-7.
        assert isinstance(metric, FamilyMetric)
        member = metric._member
        i, j = own
        sign = member.y_sign * member.g_sign
        descent = Fraction(sign) * _entry(gram, i, j)
        move = Fraction(2) ** (exponents[i] - gram.exponents[i]), Fraction(2) ** (exponents[j] - gram.exponents[j])
        # y_col = y 2^-e: y y^T/(y.g) = y_col y_col^T 2^(2 e_i) / (y.g)
        scale = Fraction(2) ** (gram.exponents[i] - gram.exponents[j])
        _set(high, low, i, i, scale * move[0] ** 2 / descent)
        _set(high, low, j, j, -Fraction(metric.alpha) * move[1] ** 2 / _entry(gram, j, j))
        return metric.alpha, (high, low)
    form = low_rank_form(metric)
    assert form is not None
    shift = np.array([exponents[o] - e for o, e in zip(own, form.exponents, strict=True)])
    core = np.ldexp(form.core, shift[:, None] + shift[None, :] + form.exponent)
    for a, i in enumerate(own):
        for b, j in enumerate(own):
            high[i, j] += core[a, b]
    return scaled(form.scalar, form.exponent), (high, low)


def _entry(gram: _core.Gram, i: int, j: int) -> Fraction:
    return Fraction(float(gram.hi[i, j])) + Fraction(float(gram.lo[i, j]))


def _set(high: Matrix, low: Matrix, i: int, j: int, value: Fraction) -> None:
    high[i, j] += float(value)
    low[i, j] += float(value - Fraction(float(value)))


def _from_log_ratios(
    kind: Kind,
    logs: NDArray[np.float64],
    bures: float,
    bulk_log: float,
    c1: float,
    c2: float,
    rest: int,
    relative: float,
) -> Distance:
    """The formulas of section 5, from l = log eig(A_1^-1 A_2) and log(c_2/c_1), which is `rest` times in the bulk."""
    relative += 4 * _EPS * math.sqrt(rest)  # c_1 and c_2 are rounded, and what that does adds up over the bulk
    if kind == "affine-invariant":
        plane, bulk = float(np.linalg.norm(logs)), math.sqrt(rest) * abs(bulk_log)
        value = math.hypot(plane, bulk)
        return Distance(value, bulk, plane, relative * (1.0 + value), kind)
    if kind == "bures":
        roots = math.sqrt(c1) + math.sqrt(c2)
        plane, bulk = math.sqrt(max(0.0, bures)), math.sqrt(rest) * abs(c1 - c2) / roots
        value = math.hypot(plane, bulk)
        return Distance(value, bulk, plane, relative * (value + roots) + math.sqrt(relative * _EPS) * roots, kind)
    terms = _kl_term if kind == "kl" else _stein_term
    plane, bulk = math.fsum(terms(float(x)) for x in logs), rest * terms(bulk_log)
    value = plane + bulk
    # Both are quadratic in small logarithms.
    error = relative * (value + math.sqrt(value)) + relative**2
    return Distance(value, bulk, plane, error, kind)


def _kl_term(log_ratio: float) -> float:
    """[mu - 1 - log mu]/2 for mu = exp(-log_ratio), the eigenvalue of A_2^-1 A_1."""
    x = -log_ratio
    if abs(x) < 1e-2:  # expm1(x) - x cancels
        return 0.5 * x * x * (0.5 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x * (1 / 720 + x / 5040)))))
    return 0.5 * (math.expm1(x) - x)


def _stein_term(log_ratio: float) -> float:
    """log((1 + mu)/2) - log(mu)/2 = log cosh(x/2) for mu = exp(x)."""
    half = abs(0.5 * log_ratio)
    if half < 20.0:
        return math.log1p(2.0 * math.sinh(0.5 * half) ** 2)
    return half - math.log(2.0) + math.log1p(math.exp(-2.0 * half))


def _dense_distance(first: Metric, second: Metric, kind: Kind) -> Distance:
    if first.size > MAX_SIZE:
        raise TypeError(
            f"expected metrics with a scalar base for n > {MAX_SIZE}, got n = {first.size} and another form of metric"
        )
    a1, a2 = first._dense(), second._dense()
    ratios = eigh(a2, a1, eigvals_only=True)
    if not ratios[0] > 0.0:
        raise ValueError("expected two positive definite matrices to working precision")
    root = np.linalg.cholesky(a1)
    products = np.linalg.eigvalsh(root.T @ a2 @ root)
    bures = float(np.trace(a1) + np.trace(a2) - 2.0 * np.sqrt(np.maximum(products, 0.0)).sum())
    condition = max(np.linalg.cond(a1), np.linalg.cond(a2))
    return _from_log_ratios(kind, np.log(ratios), bures, 0.0, 1.0, 1.0, 0, float(condition) * _EPS * 4)
