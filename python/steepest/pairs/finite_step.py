"""A finite step of a rule: its displacement in float64, and the pair of it with a discrete gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.alignment import matched_pair
from steepest.arrays import EPSILON, LongVector, long_vector, template_of, to_user, widened
from steepest.pairs.descent_pair import DescentPair, RationalGram, Row, coarsest, rational_gram
from steepest.rounding_floor import angle_floor

__all__ = ["FiniteStep", "finite_number", "norm"]

Flat = NDArray[np.float64]

# Distance of the smallest numbers of each type.
_SMALLEST = {"float64": 2.0**-1074, "float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}


class FiniteStep:
    """One step: its displacement in float64, and what the discrete gradients of it share.

    Parameters
    ----------
    params, params_next : array or mapping name -> array
        Before and after the step.
    loss, loss_next : float
        At both; finite.
    lr : float
        Learning rate, positive.

    Attributes
    ----------
    start, end : LongVector
        Views of both.
    displacement : LongVector
        params_next - params.
    template : array or mapping
        What the callables of the user are given: structure, library, dtype.
    loss_change : Fraction
        dL, exact.
    loss_scale : float
        |L| + |L'|.
    gradient_dtype : str
        The coarsest of the gradients that `matched` has seen.

    Raises
    ------
    ValueError
        Shapes or names differ, or the loss falls although nothing moves.
    TypeError
        An unsupported dtype or type.
    """

    def __init__(self, params: Any, params_next: Any, loss: float, loss_next: float, lr: float) -> None:
        try:
            self.start, self.end = matched_pair(params, params_next)
        except (TypeError, ValueError) as error:
            # The messages speak of the arguments of `align`.
            message = str(error).replace("update", "params_next").replace("grad", "params")
            raise type(error)(message) from error
        names = self.start.layout.names
        self.template = template_of(params if names is None else {name: params[name] for name in names})
        ends = (widened(s, d) for s, d in zip(self.end.segments, self.end.dtypes, strict=True))
        with np.errstate(invalid="ignore", over="ignore"):  # NaN, Inf and their differences give status `nonfinite`
            moves = [np.asarray(b - a) for a, b in zip(self.starts(), ends, strict=True)]
        self.displacement = _float64(moves, self.start)
        self.gradient_dtype = "float64"
        self.lr = Fraction(lr)
        # Exact, though the pair's attribute is a float.
        self.loss_change = Fraction(loss_next) - Fraction(loss)
        self.loss_scale = abs(loss) + abs(loss_next)
        if self.loss_change < 0 and not any(move.any() for move in moves):
            raise ValueError(
                f"the loss changes by {float(self.loss_change):.6g} but params_next equals params: no metric exists "
                "for a step that lowers the loss without moving (it depends on something else, such as time or a batch)"
            )

    @property
    def coarsest(self) -> str:
        """The coarsest element type of parameters and gradients."""
        return max(coarsest(self.start, self.end), self.gradient_dtype, key=EPSILON.__getitem__)

    def starts(self) -> Iterator[Flat]:
        """The parameters before the step, one float64 array after another."""
        return (widened(x, t) for x, t in zip(self.start.segments, self.start.dtypes, strict=True))

    def point(self, s: float) -> Any:
        """``params + s d``, as the callables of the user take it."""
        moves = self.displacement.segments
        return to_user([x + s * d for x, d in zip(self.starts(), moves, strict=True)], self.template)

    def cut(self, flat: Flat) -> list[Flat]:
        """Flat vectors, shape (..., n), as arrays of the layout."""
        layout = self.start.layout
        ends = np.cumsum(layout.sizes).tolist()
        return [
            flat[..., end - size : end].reshape(*flat.shape[:-1], *shape)
            for size, end, shape in zip(layout.sizes, ends, layout.shapes, strict=True)
        ]

    def matched(self, value: Any, name: str) -> LongVector:
        """A gradient in the layout of the parameters, without copying it."""
        layout = self.start.layout
        if isinstance(value, Mapping) and layout.names is not None and set(value) == set(layout.names):
            value = {key: value[key] for key in layout.names}
        vector = long_vector(value, name)
        if vector.layout != layout:
            raise ValueError(f"expected {name} of the same shape as params, which is {layout}, got {vector.layout}")
        self.gradient_dtype = max(self.gradient_dtype, vector.coarsest, key=EPSILON.__getitem__)
        return vector

    def copied(self, value: Any, name: str) -> LongVector:
        """What a callable returned, as a float64 copy: it may use its buffers again."""
        found = self.matched(value, name)
        return _float64([np.array(widened(x, t)) for x, t in zip(found.segments, found.dtypes, strict=True)], found)

    def gradient_at(self, grad_fn: Callable[[Any], Any], s: float) -> LongVector:
        """The gradient at ``params + s d``."""
        return self.copied(grad_fn(self.point(s)), "the result of grad_fn")

    def corrected(
        self,
        method: str,
        gradients: dict[str, LongVector],
        like: Any,
        weights: tuple[Fraction, ...] | None = None,
        **fields: Any,
    ) -> DescentPair:
        """The pair with ``gm + [(dL - gm.d)/(d.d)] d``, gm the mean of the gradients or another combination of them."""
        k = len(gradients)
        vectors = (*gradients.values(), self.displacement)
        mean, d = (*(weights or [Fraction(1, k)] * k), Fraction(0)), _unit_row(k)
        gram = rational_gram(vectors)
        share, t = math.nan, Fraction(0)
        if gram.finite:
            squared = gram.product(d, d)
            if squared:
                t = (self.loss_change - gram.product(mean, d)) / squared
            row = (*mean[:k], t)
            length = gram.product(row, row)
            share = math.sqrt(float(t * t * squared / length)) if length > 0 else 0.0
        fields |= {"correction_share": share, "exact_descent": gram.finite}
        return self._pair(method, tuple(gradients), (*mean[:k], t), vectors, gram, like, **fields)

    def own(self, segments: list[Flat], method: str, error: float = 0.0) -> DescentPair:
        """The pair with a discrete gradient that is a vector of its own."""
        vector = _float64(segments, self.start)
        row = (Fraction(1), Fraction(0))
        vectors = (vector, self.displacement)
        return self._pair(method, ("discrete_grad",), row, vectors, rational_gram(vectors), None, error=error)

    def _pair(
        self,
        method: str,
        names: tuple[str, ...],
        row: Row,
        vectors: tuple[LongVector, ...],
        gram: RationalGram,
        like: Any,
        **fields: Any,
    ) -> DescentPair:
        unit = _unit_row(len(names))
        layout_names = self.start.layout.names
        if isinstance(like, Mapping) and layout_names is not None:
            like = {name: like[name] for name in layout_names}
        return DescentPair(
            method=method,
            names=(*names, "displacement"),
            rows=(row, tuple(c / self.lr for c in unit)),
            vectors=vectors,
            templates=(self.template if like is None else template_of(like), self.template),
            dtype=self.coarsest,
            psi_floor=max(EPSILON[self.gradient_dtype], self._psi_floor()),
            loss_change=float(self.loss_change),
            defect=float(gram.product(row, unit) - self.loss_change) if gram.finite else math.nan,
            gram=gram,
            **fields,
        )

    def _psi_floor(self) -> float:
        """Rounding of params_next - params (section 0): one ulp of each parameter, in the 2-norm."""
        ulps, moves = [], []
        for start, start_dtype, end, end_dtype, d in zip(
            self.start.segments,
            self.start.dtypes,
            self.end.segments,
            self.end.dtypes,
            self.displacement.segments,
            strict=True,
        ):
            # In blocks: no temporary array is long.
            flags: Any = ["external_loop", "buffered", "zerosize_ok"]
            for a, b, move in np.nditer([start, end, d], flags=flags, buffersize=2**15):
                # The larger ulp of the two: parameters that start at zero are rounded where they arrive.
                ulps.append(norm(np.maximum(_spacing(a, start_dtype), _spacing(b, end_dtype))))
                moves.append(norm(move))
        return angle_floor(math.hypot(*ulps), math.hypot(*moves))


def _unit_row(k: int) -> Row:
    """Coefficients of the displacement, after k gradients."""
    return (*[Fraction(0)] * k, Fraction(1))


def _spacing(segment: Any, dtype: str) -> Flat:
    """Distance to the next number of the type (as np.spacing, which has no bfloat16)."""
    x = widened(segment, dtype)
    ulps = np.ldexp(EPSILON[dtype], np.frexp(x)[1] - 1)
    return np.maximum(np.where(x == 0.0, 0.0, ulps), _SMALLEST[dtype])


def _float64(segments: list[Flat], like: LongVector) -> LongVector:
    return LongVector(list(segments), like.layout, ("float64",) * len(segments))


def finite_number(x: Any, name: str) -> float:
    """A finite float.

    Parameters
    ----------
    x : float
        What the user gave.
    name : str
        What error messages call it.

    Returns
    -------
    float
        The same.

    Raises
    ------
    TypeError
        Not a number.
    ValueError
        NaN or infinite.
    """
    try:
        value = float(x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"expected {name} to be a number, got {x!r}") from error
    if not math.isfinite(value):
        raise ValueError(f"expected a finite {name}, got {value}")
    return value


def norm(x: Flat) -> float:
    """2-norm that neither overflows nor underflows.

    Parameters
    ----------
    x : ndarray
        Any shape.

    Returns
    -------
    float
        NaN or Inf if an element is.
    """
    largest = float(np.max(np.abs(x), initial=0.0))
    if not 0.0 < largest < math.inf:  # zero or not finite
        return largest
    # No BLAS: waking its threads costs more than a block.
    return largest * math.sqrt(float(np.sum(np.square(x / largest))))
