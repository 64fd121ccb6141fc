"""The interface of every metric: checks and conversions here, arithmetic in the forms."""

from __future__ import annotations

import copy
import math
import numbers
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator

from steepest import _core, spectral
from steepest.alignment import Alignment
from steepest.arrays import (
    ArrayOrMapping,
    Layout,
    Output,
    RightHandSide,
    Segment,
    right_hand_side,
    template_of,
    to_user,
)

__all__ = ["Metric", "Spectrum", "check_dense_size"]

MAX_SIZE = 4096  # default limit for anything that needs an n x n matrix


@dataclass(frozen=True, repr=False)
class Spectrum:
    """Distinct eigenvalues of a metric.

    Attributes
    ----------
    values : tuple of float
        Ascending.
    multiplicities : tuple of int
        How often each occurs; they sum to n.
    relative : bool
        Whether they are eigenvalues relative to the base (of B^-1 M) rather than of M.
    """

    values: tuple[float, ...]
    multiplicities: tuple[int, ...]
    relative: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python values.

        Returns
        -------
        dict
            Field name -> value.
        """
        return asdict(self)

    def __repr__(self) -> str:
        listed = [f"{v:.6g} (x {m})" for v, m in zip(self.values, self.multiplicities, strict=True)]
        shown = listed if len(listed) <= 6 else [*listed[:3], "...", *listed[-3:]]
        return f"Spectrum({', '.join(shown)}{', relative to a base' * self.relative})"


def merged_spectrum(values: list[tuple[float, int]], relative: bool = False) -> Spectrum:
    """A `Spectrum` from (value, multiplicity) pairs in any order; equal values are merged, multiplicity 0 dropped.

    Parameters
    ----------
    values : list of (float, int)
        Eigenvalues with multiplicities.
    relative : bool
        See `Spectrum`.

    Returns
    -------
    Spectrum
        Ascending.
    """
    merged: dict[float, int] = {}
    for value, multiplicity in sorted(values):
        if multiplicity > 0:
            merged[value] = merged.get(value, 0) + multiplicity
    return Spectrum(tuple(merged), tuple(merged.values()), relative)


def relative_spectrum(relative: Alignment, inverse: bool, factor: float) -> Spectrum:
    """Spectrum of the BFGS update of a base B relative to B: section 3 in whitened vectors, where B is the identity.

    Parameters
    ----------
    relative : Alignment
        Of the pair relative to B.
    inverse : bool
        Whether the metric is the inverse of that update, and its base B^-1.
    factor : float
        What the metric is multiplied with.

    Returns
    -------
    Spectrum
        Eigenvalues of ``B^-1 M``.
    """
    rho, n = relative.rho, relative.size
    if n == 1:
        values = [(rho, 1)]
    else:
        minus, plus = spectral.plane_eigenvalues(1.0 / rho, relative.cosine, relative.sine)
        values = [(rho * minus, 1), (1.0, n - 2), (rho * plus, 1)]
    return merged_spectrum([(factor * (1.0 / v if inverse else v), m) for v, m in values], relative=True)


def check_dense_size(n: int, max_size: int, what: str) -> None:
    """Refuse what would need an n x n matrix for a large n.

    Parameters
    ----------
    n, max_size : int
        Size and limit.
    what : str
        The method, for the message.

    Raises
    ------
    ValueError
        n > max_size.
    """
    if n > max_size:
        raise ValueError(
            f"{what} needs an n x n matrix: expected n <= max_size = {max_size}, got n = {n}; "
            f"raise max_size if {8 * n * n / 2**30:.1f} GiB are there"
        )


class Metric(ABC):
    """A symmetric positive definite matrix M with ``update = -M^{-1} grad``, never formed.

    Made by `steepest.metric`. It holds VIEWS of the arrays it was made from: they must not change as long as it is
    used (pass copies of a training loop's buffers). Products cost two reads of the long vectors and one write, and
    allocate nothing of their length but the result.

    Operands may be arrays of the parameters' shape, mappings with their names, flat arrays of shape (n,), or
    several right-hand sides of shape (n, m). Results take the operand's library, dtype and shape; arithmetic is done
    in float64. A NaN or Inf in an operand gives NaN, as in any matrix product.

    Attributes
    ----------
    alignment : Alignment or None
        Of the pair that this is a metric of; None for powers other than the inverse.
    """

    #: NumPy must leave ``array @ M`` and ``scalar * M`` to this class.
    __array_ufunc__ = None
    #: False for a matrix logarithm, which is symmetric only.
    positive_definite = True

    def __init__(self, layout: Layout, dtype: str, alignment: Alignment | None, like: ArrayOrMapping) -> None:
        self._layout = layout
        self._dtype = dtype
        self._like = template_of(like)
        self.alignment = alignment

    # What a form provides -------------------------------------------------------------------------------------

    @abstractmethod
    def _apply(self, x: list[Segment], out: list[Segment], columns: bool) -> None:
        """out = M x."""

    @abstractmethod
    def power(self, p: float) -> Metric:
        """M to the power p, a Metric.

        Parameters
        ----------
        p : float
            Any finite real number.

        Returns
        -------
        Metric
            Same shape; ``power(-1)`` is `inv`, ``power(0.5)`` is `sqrt`.

        Raises
        ------
        TypeError
            The form has no closed power and n is too large for a dense one.
        """

    @abstractmethod
    def log(self) -> Metric:
        """Matrix logarithm: symmetric, NOT positive definite (`positive_definite` is False).

        Returns
        -------
        Metric
            With products, trace, spectrum and diagonal; without solve, powers and logdet.
        """

    @abstractmethod
    def spectrum(self) -> Spectrum:
        """Distinct eigenvalues, ascending, with multiplicities (eq (9) for the condition-optimal metric).

        Returns
        -------
        Spectrum
            Relative to the base where the base is not a multiple of the identity.
        """

    @abstractmethod
    def logdet(self) -> float:
        """Logarithm of the determinant.

        Returns
        -------
        float
            Natural logarithm.
        """

    @abstractmethod
    def trace(self) -> float:
        """Sum of the eigenvalues.

        Returns
        -------
        float
            The trace.
        """

    @abstractmethod
    def _diagonal(self) -> list[NDArray[np.float64]]:
        """Diagonal, one array for each array of the layout."""

    @abstractmethod
    def _scaled(self, factor: float) -> Metric:
        """factor * M, factor > 0."""

    @abstractmethod
    def _quadratic_form(self, x: list[Segment], z: list[Segment]) -> float:
        """x^T M z."""

    @abstractmethod
    def _dense(self) -> NDArray[np.float64]:
        """The matrix itself."""

    @property
    @abstractmethod
    def alpha(self) -> float:
        """Bulk eigenvalue: what M multiplies with on the complement of span{grad, update}; NaN if there is none."""

    # What users call ------------------------------------------------------------------------------------------

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
        """Of dense results and for SciPy: float64 if grad or update has it, else float32."""
        return np.dtype("float64" if self._dtype == "float64" else "float32")

    @property
    def ndim(self) -> int:
        """2."""
        return 2

    @property
    def preconditioner(self) -> Metric:
        """The inverse: what turns -grad into the update."""
        return self.inv()

    def matvec(self, x: ArrayOrMapping, out: ArrayOrMapping | None = None) -> Any:
        """Product M @ x.

        Parameters
        ----------
        x : array or mapping
            Of the parameters' shape, or (n,), or (n, m).
        out : array or mapping, optional
            Where to write, of the shape of `x`; may be `x` itself, may not overlap it otherwise, nor grad or update.

        Returns
        -------
        array or mapping
            As `x`; `out` if given.

        Raises
        ------
        ValueError
            Another shape, or an `out` that overlaps or cannot be written.
        TypeError
            An unsupported dtype or type.

        Notes
        -----
        Section 4 of the theory (derived). Two reads of grad, update and x, one write.
        """
        operand = right_hand_side(x, self._layout)
        output = Output(x, self._layout, out)
        if operand.segments[-1].size or not operand.columns:  # no right-hand sides: nothing to do
            self._apply(operand.segments, output.segments, operand.columns)
        return output.finished()

    matmat = matvec
    rmatvec = matvec
    rmatmat = matvec

    def __matmul__(self, x: ArrayOrMapping) -> Any:
        return self.matvec(x)

    def __rmatmul__(self, x: ArrayOrMapping) -> Any:
        one_vector = self._layout.names is None and getattr(x, "shape", None) == self._layout.shapes[0]
        if one_vector or getattr(x, "ndim", 1) != 2:
            return self.matvec(x)
        return self.matvec(x.T).T

    def __mul__(self, factor: Any) -> Metric:
        if not isinstance(factor, numbers.Real):
            return NotImplemented
        value = float(factor)
        if not (value > 0.0 and math.isfinite(value)):
            raise ValueError(f"expected a positive finite factor, got {value}: a metric is positive definite")
        return self._scaled(value)

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> Metric:
        if not isinstance(divisor, numbers.Real):
            return NotImplemented
        if not float(divisor) > 0.0:
            raise ValueError(f"expected a positive divisor, got {divisor}: a metric is positive definite")
        return self * (1.0 / float(divisor))

    def solve(self, b: ArrayOrMapping, out: ArrayOrMapping | None = None) -> Any:
        """Solution x of M x = b, at the cost of a product.

        Parameters
        ----------
        b : array or mapping
            As for `matvec`.
        out : array or mapping, optional
            As for `matvec`.

        Returns
        -------
        array or mapping
            As `b`.
        """
        return self._solver.matvec(b, out)

    @cached_property
    def _solver(self) -> Metric:
        return self.inv()

    def inv(self) -> Metric:
        """The inverse, a Metric of the swapped pair: it maps -grad to update.

        Returns
        -------
        Metric
            With `alignment` of the pair (-update, -grad).
        """
        return self.power(-1.0)

    def sqrt(self) -> Metric:
        """Symmetric positive definite square root.

        Returns
        -------
        Metric
            ``M.sqrt() @ M.sqrt() @ x == M @ x``.
        """
        return self.power(0.5)

    def cond(self) -> float:
        """Condition number in the 2-norm (relative to the base where `spectrum` is).

        Returns
        -------
        float
            Largest over smallest eigenvalue, at least 1.
        """
        self._require_definite("cond")
        values = self.spectrum().values
        return values[-1] / values[0]

    def eigvalsh(self, max_size: int = MAX_SIZE) -> NDArray[np.float64]:
        """All n eigenvalues, ascending.

        Parameters
        ----------
        max_size : int
            Largest n accepted.

        Returns
        -------
        ndarray, shape (n,)
            Float64; `spectrum` gives the distinct ones for any n.
        """
        check_dense_size(self.size, max_size, "eigvalsh")
        spectrum = self.spectrum()
        if spectrum.relative:
            return np.asarray(np.linalg.eigvalsh(self._dense()), dtype=np.float64)
        return np.repeat(np.array(spectrum.values), spectrum.multiplicities)

    def eigh(self, k: int | None = None, max_size: int = MAX_SIZE) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Eigenvalues with orthonormal eigenvectors.

        Parameters
        ----------
        k : int, optional
            None for all n (n <= max_size). A member of the family (8), its powers and its logarithm give k >= 2 for any
            n: the two eigenpairs in span{grad, update}, then k - 2 of the bulk. The other forms give the k smallest,
            from the dense matrix.
        max_size : int
            Largest n accepted where a dense matrix is needed.

        Returns
        -------
        values : ndarray, shape (k,)
            Ascending.
        vectors : ndarray, shape (n, k)
            Columns; the entry of largest magnitude is positive.
        """
        check_dense_size(self.size, max_size, "eigh")
        values, vectors = np.linalg.eigh(self._dense())
        if k is not None:
            _check_count(k, self.size)
            values, vectors = values[:k], vectors[:, :k]
        return values, largest_entry_positive(vectors)

    def diagonal(self) -> Any:
        """Diagonal of M.

        Returns
        -------
        array or mapping
            In the shape, library and dtype of grad.
        """
        return to_user(self._diagonal(), self._like)

    def inner(self, x: ArrayOrMapping, z: ArrayOrMapping) -> float:
        """Inner product x^T M z.

        Parameters
        ----------
        x, z : array or mapping
            Of the parameters' shape or (n,).

        Returns
        -------
        float
            In float64; nothing of length n is formed.
        """
        a, b = self._one_vector(x, "x"), self._one_vector(z, "z")
        return self._quadratic_form(a.segments, b.segments)

    def norm(self, x: ArrayOrMapping) -> float:
        """Length of x in this geometry, sqrt(x^T M x).

        Parameters
        ----------
        x : array or mapping
            Of the parameters' shape or (n,).

        Returns
        -------
        float
            At least 0.
        """
        self._require_definite("norm")
        return math.sqrt(max(0.0, self.inner(x, x)))

    def to_dense(self, max_size: int = MAX_SIZE) -> NDArray[Any]:
        """The n x n matrix, symmetric to the last bit.

        Parameters
        ----------
        max_size : int
            Largest n accepted.

        Returns
        -------
        ndarray, shape (n, n)
            Float64, or float32 if grad and update have no finer type.
        """
        check_dense_size(self.size, max_size, "to_dense")
        return self._dense().astype(self.dtype, copy=False)

    def to_scipy(self) -> LinearOperator:
        """The same as a SciPy LinearOperator.

        Returns
        -------
        LinearOperator, shape (n, n)
            Of `dtype`.
        """
        product = self.matvec
        return LinearOperator(
            self.shape, matvec=product, rmatvec=product, matmat=product, rmatmat=product, dtype=self.dtype
        )

    def __repr__(self) -> str:
        kind = "Metric" if self.positive_definite else "Symmetric (not definite)"
        parts = [f"{kind} {self.size} x {self.size}", f"dtype={self._dtype}"]
        parts += self._describe()
        return "<" + ", ".join(parts) + ">"

    def _describe(self) -> list[str]:
        spectrum = self.spectrum()
        parts = [f"alpha={self.alpha:.6g}"] if math.isfinite(self.alpha) else []
        if self.positive_definite:
            parts.append(f"cond={spectrum.values[-1] / spectrum.values[0]:.6g}")
        return parts + ["relative to its base"] * spectrum.relative

    def _one_vector(self, x: ArrayOrMapping, name: str) -> RightHandSide:
        operand = right_hand_side(x, self._layout, name)
        if operand.columns:
            raise ValueError(f"expected {name} to be one vector of {self.size} elements, got several, shape (n, m)")
        return operand

    def _require_definite(self, what: str) -> None:
        if not self.positive_definite:
            raise TypeError(f"{what} needs a positive definite matrix; a matrix logarithm is symmetric only")

    def _assembled(self, operator: _core.Operator) -> NDArray[np.float64]:
        out = np.empty(self.shape)
        operator.assemble(out)
        return out

    def __getstate__(self) -> dict[str, Any]:
        # Views for the compiled core are made anew where a copy or an unpickled metric needs them.
        return {key: value for key, value in self.__dict__.items() if key not in ("_operator", "_solver")}

    def copy(self) -> Self:
        """The same metric on copies of its arrays, which later changes of the originals do not touch.

        Returns
        -------
        Metric
            Of the same form.
        """
        return copy.deepcopy(self)


def _check_count(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"expected 1 <= k <= n = {n}, got k = {k}")


def largest_entry_positive(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Flip the columns whose entry of largest magnitude is negative.

    Parameters
    ----------
    vectors : ndarray, shape (n, k)
        Columns.

    Returns
    -------
    ndarray, shape (n, k)
        With a unique sign.
    """
    largest = np.abs(vectors).argmax(axis=0)
    signs = np.where(vectors[largest, np.arange(vectors.shape[1])] < 0.0, -1.0, 1.0)
    flipped: NDArray[np.float64] = vectors * signs
    return flipped
