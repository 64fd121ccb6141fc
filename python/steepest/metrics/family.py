"""Members of the one-parameter family (8), and their powers and logarithm, for any n."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest import _core, spectral
from steepest.alignment import Alignment, scaled
from steepest.arrays import ArrayOrMapping, LongVector, Segment, widened
from steepest.metrics.form import LowRankForm
from steepest.metrics.interface import (
    FLOAT64,
    MAX_SIZE,
    Metric,
    Spectrum,
    _check_count,
    check_dense_size,
    largest_entry_positive,
    merged_spectrum,
)
from steepest.spectral import Coefficients

__all__ = ["FamilyMetric", "Member", "column_scale", "low_rank_quadratic_form", "scaled_alignment", "swapped_alignment"]


def column_scale(norm: float) -> tuple[float, int]:
    """Mantissa and power of two by which a long vector enters the compiled core.

    Parameters
    ----------
    norm : float
        Positive and finite.

    Returns
    -------
    mantissa : float
        At least 1/2 and less than 1, but for denormal norms, where it is smaller.
    exponent : int
        Power of two whose inverse is in the range of float64, too.
    """
    exponent = max(math.frexp(norm)[1], -1021)
    return math.ldexp(norm, -exponent), exponent


def swapped_alignment(a: Alignment) -> Alignment:
    """The alignment of the pair (-update, -grad), whose metric is the inverse.

    Parameters
    ----------
    a : Alignment
        Of (grad, update).

    Returns
    -------
    Alignment
        Same angle; norms exchanged.
    """
    return dataclasses.replace(a, grad_norm=a.update_norm, update_norm=a.grad_norm, rho=1.0 / a.rho)


def scaled_alignment(a: Alignment | None, factor: float) -> Alignment | None:
    """The alignment of the pair (factor * grad, update), of which factor * M is a metric.

    Parameters
    ----------
    a : Alignment or None
        Of (grad, update).
    factor : float
        Positive.

    Returns
    -------
    Alignment or None
        Same angle; None for None.
    """
    if a is None:
        return None
    return dataclasses.replace(
        a,
        grad_norm=factor * a.grad_norm,
        rho=factor * a.rho,
        inner_product=factor * a.inner_product,
        inner_product_bound=factor * a.inner_product_bound,
    )


@dataclass(frozen=True)
class Member:
    """M(alpha) of a pair (y, g): the vectors with their signs and norms, the angle, and alpha in units of rho.

    Attributes
    ----------
    y, g : LongVector
        Vectors along (or against) -grad and update.
    y_sign, g_sign : float
        Their signs: the pair of the theory is (y_sign * y, g_sign * g).
    y_norm, g_norm : float
        Euclidean norms.
    cosine, sine : float
        Of the angle of the pair.
    alpha : float
        Bulk eigenvalue in units of rho = y_norm / g_norm.
    """

    y: LongVector
    g: LongVector
    y_sign: float
    g_sign: float
    y_norm: float
    g_norm: float
    cosine: float
    sine: float
    alpha: float

    @property
    def size(self) -> int:
        """Number of parameters n."""
        return self.y.size

    @property
    def rho(self) -> tuple[float, int]:
        """Mantissa and power of two of y_norm / g_norm, which may be out of the range of float64."""
        (my, ey), (mg, eg) = math.frexp(self.y_norm), math.frexp(self.g_norm)
        return my / mg, ey - eg

    def swapped(self) -> Member:
        """The member 1/alpha of the pair (g, y); its inverse is the DFP update of alpha*I for (y, g).

        Returns
        -------
        Member
            Of the swapped pair.
        """
        return Member(
            self.g, self.y, self.g_sign, self.y_sign, self.g_norm, self.y_norm, self.cosine, self.sine, 1.0 / self.alpha
        )

    def rho_power(self, p: float) -> tuple[float, int]:
        """Mantissa and power of two of rho**p.

        Parameters
        ----------
        p : float
            Exponent.

        Returns
        -------
        mantissa : float
            Positive.
        exponent : int
            Power of two.
        """
        mantissa, exponent = self.rho
        whole = math.floor(p * exponent)
        # 2**(p*exponent - whole) and mantissa**p are both of moderate size.
        return math.pow(mantissa, p) * math.exp2(p * exponent - whole), whole


class FamilyMetric(Metric):
    """``factor * M(alpha)**p``, or ``factor * (log M(alpha) + shift I)``, of one member of the family (8)."""

    def __init__(
        self,
        member: Member,
        alignment: Alignment | None,
        dtype: str,
        like: ArrayOrMapping,
        *,
        exponent: float | None = 1.0,
        factor: float = 1.0,
        shift: float = 0.0,
    ) -> None:
        super().__init__(member.y.layout, dtype, alignment, like)
        self._member = member
        self._p = exponent  # None: the logarithm
        self._factor = factor
        self._shift = shift
        self.positive_definite = exponent is not None

    @classmethod
    def deferred(cls, make: Callable[[], FamilyMetric]) -> FamilyMetric:
        """A metric that is known to exist and is made when something of it is first asked.

        Parameters
        ----------
        make : callable
            Returns the metric; must not fail.

        Returns
        -------
        FamilyMetric
            Takes over everything of what `make` returns.
        """
        metric = cls.__new__(cls)
        metric.__dict__["_make"] = make
        return metric

    def __getattr__(self, name: str) -> Any:
        # Called for attributes that are not there: all of them, before a deferred metric is made.
        state = self.__dict__
        if (make := state.get("_make")) is not None:
            state.update(make().__dict__)
            state["_make"] = None  # after the others: another thread may be asking
        if name not in state:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return state[name]

    def __getstate__(self) -> dict[str, Any]:
        _ = self._member  # makes a deferred metric
        return {key: value for key, value in super().__getstate__().items() if key != "_make"}

    # The function of the member ------------------------------------------------------------------------------

    def _unit(self) -> tuple[float, int]:
        """Mantissa and power of two of what the coefficients in units of rho are multiplied with."""
        if self._p is None:
            return self._factor, 0
        mantissa, exponent = self._member.rho_power(self._p)
        return mantissa * self._factor, exponent

    @cached_property
    def _coefficients(self) -> Coefficients:
        m = self._member
        if self._p is not None:
            return spectral.power_coefficients(self._p, m.alpha, m.cosine, m.sine)
        found = spectral.log_coefficients(m.alpha, m.cosine, m.sine)
        return found._replace(identity=found.identity + self._log_rho() + self._shift)

    def _log_rho(self) -> float:
        mantissa, exponent = self._member.rho
        return math.log(mantissa) + exponent * math.log(2.0)

    def _value(self, eigenvalue: float) -> float:
        """The function at an eigenvalue of the member, given in units of rho."""
        if self._p is None:
            return self._factor * (math.log(eigenvalue) + self._log_rho() + self._shift)
        mantissa, exponent = self._unit()
        return scaled(mantissa * math.pow(eigenvalue, self._p), exponent)

    def _plane_values(self) -> tuple[float, float]:
        m = self._member
        minus, plus = spectral.plane_eigenvalues(m.alpha, m.cosine, m.sine)
        return self._value(minus), self._value(plus)

    @cached_property
    def form(self) -> LowRankForm:
        """The same matrix as a low-rank change of a multiple of the identity."""
        m, k = self._member, self._coefficients
        (my, ey), (mg, eg) = column_scale(m.y_norm), column_scale(m.g_norm)
        if self.size == 1:  # a number: alpha does not occur in it
            return LowRankForm(self._plane_values()[1], (m.g,), (eg,), np.zeros((1, 1)))
        mantissa, exponent = self._unit()
        cross = k.yg * m.y_sign * m.g_sign / (my * mg)
        core = mantissa * np.array([[k.yy / (my * my), cross], [cross, k.gg / (mg * mg)]])
        return LowRankForm(mantissa * k.identity, (m.y, m.g), (ey, eg), core, exponent)

    @cached_property
    def _operator(self) -> _core.Operator:
        return self.form.operator()

    # The interface -------------------------------------------------------------------------------------------

    @property
    def alpha(self) -> float:
        return self._value(self._member.alpha)

    def _apply(self, x: list[Segment], out: list[Segment], columns: bool) -> None:
        self._operator.apply(x, out, columns=columns)

    def power(self, p: float) -> FamilyMetric:
        self._require_definite("power")
        if not math.isfinite(p):
            raise ValueError(f"expected a finite power, got {p}")
        assert self._p is not None
        total = self._p * p
        alignment = None
        if p == 1.0:
            alignment = self.alignment
        elif p == -1.0 and self.alignment is not None:
            alignment = swapped_alignment(self.alignment)
        try:
            factor = math.pow(self._factor, p)
        except OverflowError:
            factor = math.inf
        if not 0.0 < factor < math.inf:
            raise ValueError(f"expected a power in the range of float64, got {self._factor:.6g} to the power {p:.6g}")
        return FamilyMetric(self._member, alignment, self._dtype, self._like, exponent=total, factor=factor)

    def log(self) -> FamilyMetric:
        self._require_definite("log")
        assert self._p is not None
        # log(factor M^p) = p (log M + log(factor)/p)
        if self._p == 0.0:
            raise ValueError("expected a power other than 0: the logarithm of a multiple of the identity is a number")
        return FamilyMetric(
            self._member,
            None,
            self._dtype,
            self._like,
            exponent=None,
            factor=self._p,
            shift=math.log(self._factor) / self._p,
        )

    def _scaled(self, factor: float) -> FamilyMetric:
        return FamilyMetric(
            self._member,
            scaled_alignment(self.alignment, factor),
            self._dtype,
            self._like,
            exponent=self._p,
            factor=self._factor * factor,
            shift=self._shift,
        )

    def spectrum(self) -> Spectrum:
        minus, plus = self._plane_values()
        if self.size == 1:
            return Spectrum((plus,), (1,))
        return merged_spectrum([(minus, 1), (self.alpha, self.size - 2), (plus, 1)])

    def cond(self) -> float:
        self._require_definite("cond")
        assert self._p is not None
        if self.size == 1:
            return 1.0
        m = self._member
        return math.pow(spectral.condition_number(m.alpha, m.cosine, m.sine), abs(self._p))

    def logdet(self) -> float:
        self._require_definite("logdet")
        assert self._p is not None
        m, n = self._member, self.size
        own = spectral.logdet(n, m.alpha, m.cosine) + n * self._log_rho()
        return self._p * own + n * math.log(self._factor)

    def trace(self) -> float:
        minus, plus = self._plane_values()
        return plus if self.size == 1 else math.fsum((minus, plus, (self.size - 2) * self.alpha))

    def _diagonal(self) -> list[NDArray[np.float64]]:
        m, k = self._member, self._coefficients
        mantissa, exponent = self._unit()
        if self.size == 1:
            return [np.full(shape, self._plane_values()[1]) for shape in self._layout.shapes]
        diagonals = []
        for y, y_dtype, g, g_dtype in zip(m.y.segments, m.y.dtypes, m.g.segments, m.g.dtypes, strict=True):
            yh = m.y_sign * (widened(y, y_dtype) / m.y_norm)
            gh = m.g_sign * (widened(g, g_dtype) / m.g_norm)
            diagonal = k.identity + k.yy * yh * yh + k.gg * gh * gh + 2.0 * k.yg * yh * gh
            diagonals.append(np.ldexp(mantissa * diagonal, exponent))
        return diagonals

    def _quadratic_form(self, x: list[Segment], z: list[Segment]) -> float:
        m, k = self._member, self._coefficients
        mantissa, exponent = self._unit()
        if self.size == 1:
            return self._plane_values()[1] * _product(x, z)
        gram = _core.gram([m.y.segments, m.g.segments, x, z], "compensated")
        signs = np.array([m.y_sign, m.g_sign])
        core = np.array([[k.yy, k.yg], [k.yg, k.gg]]) * np.outer(signs, signs)
        norms = np.sqrt(np.diag(gram.hi)[:2])
        return mantissa * low_rank_quadratic_form(gram, k.identity, core / np.outer(norms, norms), exponent)

    def _dense(self, dtype: np.dtype[Any] = FLOAT64) -> NDArray[Any]:
        return self._assembled(self._operator, dtype)

    def eigh(self, k: int | None = None, max_size: int = MAX_SIZE) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        n = self.size
        if k is None:
            check_dense_size(n, max_size, "eigh without k")
            k = n
        _check_count(k, n)
        minus, plus = self._plane_values()
        if n == 1:
            return np.array([plus]), np.ones((1, 1))
        m = self._member
        basis = self._plane_basis()
        v_minus, v_plus = spectral.plane_eigenvectors(m.alpha, m.cosine, m.sine)
        vectors = basis @ np.array([v_minus, v_plus]).T
        values = np.array([minus, plus])
        if k > 2:
            values = np.append(values, np.full(k - 2, self.alpha))
            vectors = np.hstack([vectors, _complement(basis, k - 2)])
        order = np.argsort(values, kind="stable")[:k]
        return values[order], largest_entry_positive(vectors[:, order])

    def _plane_basis(self) -> NDArray[np.float64]:
        """Orthonormal basis (gh, rh) of span{y, g}, rh the direction of y off g, as an (n, 2) array."""
        m = self._member
        basis = np.empty((self.size, 2), order="F")
        basis[:, 0] = m.g_sign * (m.g.flat() / m.g_norm)
        if m.sine > 0.0:
            # A small remainder keeps its digits: the projection is right to rounding of the remainder itself.
            rest = [np.empty(shape) for shape in self._layout.shapes]
            _core.project([m.g.segments], m.y.segments, rest, onto=False)
            residual = np.concatenate([r.ravel() for r in rest])
            largest = float(np.abs(residual).max())
            if largest > 0.0:
                residual /= largest  # squares stay in range
                residual /= np.linalg.norm(residual)
                residual -= basis[:, 0] * (basis[:, 0] @ residual)
            norm = float(np.linalg.norm(residual))
            if norm > 0.5:  # else the remainder was rounding along g
                basis[:, 1] = residual * (m.y_sign / norm)
                return basis
        basis[:, 1] = _complement(basis[:, :1], 1)[:, 0]  # psi = 0: any direction orthogonal to g
        return basis


def low_rank_quadratic_form(gram: _core.Gram, scalar: float, core: NDArray[np.float64], exponent: int) -> float:
    """x^T (scalar I + W K W^T) z * 2**exponent from the Gram matrix of [W, x, z].

    Parameters
    ----------
    gram : Gram
        Of the columns of W, then x, then z.
    scalar : float
        Factor of the identity.
    core : ndarray, shape (k, k)
        K for the columns as the Gram matrix scales them.
    exponent : int
        Power of two of the result.

    Returns
    -------
    float
        The number.
    """
    k = core.shape[0]
    products, exponents = gram.hi, gram.exponents
    value = scalar * products[k, k + 1] + products[:k, k] @ core @ products[:k, k + 1]
    return scaled(float(value), exponent + exponents[k] + exponents[k + 1])


def _product(x: list[Segment], z: list[Segment]) -> float:
    gram = _core.gram([x, z], "compensated")
    return scaled(gram.pair[1], sum(gram.exponents))


def _complement(basis: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """`count` orthonormal columns orthogonal to an orthonormal basis, from coordinate vectors."""
    n, dimension = basis.shape
    # The coordinates where the basis is smallest are the furthest from its span.
    candidates = np.argsort(np.einsum("ij,ij->i", basis, basis), kind="stable")[: count + dimension]
    vectors = np.zeros((n, candidates.size))
    vectors[candidates, np.arange(candidates.size)] = 1.0
    for _ in range(2):
        vectors -= basis @ (basis.T @ vectors)
    q, r = np.linalg.qr(vectors)
    # At most `dimension` columns depend on the others: leave out those with the smallest pivots.
    keep = np.sort(np.argsort(-np.abs(np.diag(r)), kind="stable")[:count])
    chosen = q[:, keep]
    chosen -= basis @ (basis.T @ chosen)
    result: NDArray[np.float64] = np.linalg.qr(chosen)[0]
    # Where a BLAS adds up one after the other, the norms are off by many roundings; NumPy adds in pairs.
    result /= np.sqrt([np.sum(column * column) for column in result.T])
    return result


def make_family_metric(
    y: LongVector, g: LongVector, a: Alignment, alpha: float, kind: str, dtype: str, like: Any
) -> FamilyMetric:
    """M(alpha) of eq (8), or the DFP update of alpha*I.

    Parameters
    ----------
    y, g : LongVector
        Gradient and update.
    a : Alignment
        Of the pair, status ``ok``.
    alpha : float
        Bulk eigenvalue.
    kind : {'bfgs', 'dfp'}
        Which update of alpha*I.
    dtype : str
        The finer element type.
    like : array or mapping
        The gradient as the user handed it in.

    Returns
    -------
    FamilyMetric
        The metric.

    Raises
    ------
    ValueError
        The eigenvalues are out of the range of float64.
    """
    ratio = 1.0 if y.size == 1 else alpha / a.rho
    if not 0.0 < ratio < math.inf:
        raise ValueError(f"alpha = {alpha:.6g} and |grad|/|update| = {a.rho:.6g} are out of the range of float64")
    member = Member(y, g, -1.0, 1.0, a.grad_norm, a.update_norm, a.cosine, a.sine, ratio)
    if kind == "bfgs":
        return FamilyMetric(member, a, dtype, like)
    return FamilyMetric(member.swapped(), a, dtype, like, exponent=-1.0)
