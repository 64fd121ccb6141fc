"""The pair of a finite step: discrete gradients, eqs (10)-(16)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steepest.alignment import matched_pair
from steepest.arrays import EPSILON, LongVector, long_vector, template_of, to_user, widened
from steepest.pairs.descent_pair import DescentPair, RationalGram, coarsest, rational_gram
from steepest.pairs.taylor import LIMIT, taylor_points
from steepest.rounding_floor import angle_floor

__all__ = ["discrete"]

Method = Literal["trapezoid", "left", "gonzalez", "mean-value", "itoh-abe", "taylor"]
METHODS = ("trapezoid", "left", "gonzalez", "mean-value", "itoh-abe", "taylor")
Flat = NDArray[np.float64]

# Distance of the smallest numbers of each type.
_SMALLEST = {"float64": 2.0**-1074, "float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}
# Rows of a vectorised loss: as many numbers in one call as this, at most.
_BLOCK = 2**22


def discrete(
    params: Any,
    params_next: Any,
    *,
    loss: float,
    loss_next: float,
    grad: Any = None,
    grad_next: Any = None,
    grad_midpoint: Any = None,
    grad_fn: Callable[[Any], Any] | None = None,
    loss_fn: Callable[[Any], Any] | None = None,
    hvp: Callable[[Any, Any], Any] | None = None,
    method: Method = "trapezoid",
    lr: float = 1.0,
    n_nodes: int = 5,
    n_scan: int = 16,
    vectorized: bool = False,
) -> DescentPair:
    """The pair of one step of a rule: a discrete gradient DG, for which the step descends exactly as the loss does.

    With d = params_next - params and dL = loss_next - loss, ``DG.d = dL``, and DG -> grad as d -> 0. So for y = -DG and
    g = d/lr a metric exists if and only if the loss falls, and the step is natural gradient descent without any limit
    of small steps: ``params_next = params + lr M^{-1} y``.

    Parameters
    ----------
    params, params_next : array or mapping name -> array
        Before and after the step, any shape, float64, float32, float16 or bfloat16. A mapping is ONE vector.
    loss, loss_next : float
        The loss at both; finite. 'mean-value' and 'itoh-abe' only report by how much they miss it, as `defect`.
    grad, grad_next : array or mapping, optional
        +dL/dtheta at both: 'trapezoid' needs both, 'left' and 'taylor' need `grad`. 'itoh-abe' takes partial
        derivatives from `grad` where an element does not move.
    grad_midpoint : array or mapping, optional
        +dL/dtheta at (params + params_next)/2, for 'gonzalez'.
    grad_fn : callable, optional
        ``grad_fn(params)`` = +dL/dtheta in the form of `params`: for 'mean-value', and for 'gonzalez' instead of
        `grad_midpoint`.
    loss_fn : callable, optional
        ``loss_fn(params)`` = loss, for 'itoh-abe'.
    hvp : callable, optional
        ``hvp(params, vector)`` = Hessian of the loss at `params`, times a vector, all in the form of `params`: for
        'taylor'.
    method : {'trapezoid', 'left', 'gonzalez', 'mean-value', 'itoh-abe', 'taylor'}
        Which discrete gradient; see Notes.
    lr : float
        Learning rate, positive: the update is d/lr. It only rescales the metric.
    n_nodes : int
        Gauss-Legendre nodes of 'mean-value', at least 3; the error is estimated by the rule with two nodes less.
    n_scan : int
        Intervals of the segment that 'taylor' scans for its point, at least 1.
    vectorized : bool
        Whether `loss_fn` takes points stacked along a new first axis and returns one loss for each ('itoh-abe').

    Returns
    -------
    DescentPair
        Coefficients over the gradients as given and d, which is formed once in float64 (one extra long vector);
        'mean-value' and 'itoh-abe', and 'gonzalez' with `grad_fn`, hold one of their own besides.

    Raises
    ------
    ValueError
        What `method` needs is missing; shapes or names differ; a loss is not finite; lr is not positive; the loss
        falls although the parameters do not move: no metric exists for such a step (section 1); 'taylor' finds no
        point on its scan (the message gives the residual).
    TypeError
        An unsupported dtype or type.

    See Also
    --------
    steepest.pairs.continuous : For a pair of vectors as they are.

    Notes
    -----
    Eqs (10)-(16) and section 7. Order: of |DG - grad at the midpoint| in |d|; against grad at `params` all are of order
    1. Corrected: ``DG = gm + [(dL - gm.d)/(d.d)] d``.

    ============  ==================================================  =====  ==========================
    method        gm, or DG itself                                    order  evaluations
    ============  ==================================================  =====  ==========================
    trapezoid     corrected, gm = (grad + grad_next)/2                2      none: recorded data only
    left          corrected, gm = grad                                1      none: recorded data only
    gonzalez      corrected, gm = grad at the midpoint                2      1 gradient
    mean-value    integral of grad over the segment                   2      at most 2 n_nodes - 2
    itoh-abe      differences of the loss, one element after another  1      n + 1 losses, no gradient
    taylor        grad + H(params + s d) d / 2, eq (16)               2      about n_scan + 10 hvp
    ============  ==================================================  =====  ==========================

    The coefficient of the correction is kept as an exact rational number, so that grad.update = dL/lr without rounding;
    for the float64 vectors that `gradient` and `update` form, ``|DG.d - dL|`` is a few eps (|gm| + |DG|) |d| at most. A
    step d = 0 with dL >= 0 gives a pair of status ``zero_update``.

    'itoh-abe' evaluates the loss where the first i elements have moved and the others have not; its rounding is that of
    the losses over |d_i|, so use it for few parameters and a loss in double precision. Where an element does not
    move and `grad` is missing, the partial derivative is a central difference (two more losses each). Cost O(n) losses.

    'taylor' (reconstructed) takes the smallest s in (0, 1) with ``d^T H(params + s d) d = 2 (dL - grad.d)`` that its
    scan finds; `taylor_points` of the pair has all of them. It tends to 1/3 for short steps, and is set to 1/3 where
    the curvature along the step does not vary beyond rounding, as of a quadratic loss, for which every s does, or
    misses the value by no more; then `taylor_points` is empty. What rounding leaves of ``DG.d = dL`` is put along d, as
    in the corrected methods; the share of it is `correction_share`.

    References
    ----------
    Gonzalez, J. Nonlinear Sci. 6 (1996) 449; Itoh and Abe, J. Comput. Phys. 76 (1988) 85; McLachlan, Quispel and
    Robidoux, Phil. Trans. R. Soc. A 357 (1999) 1021.

    Examples
    --------
    A step over the valley of L = |x|^2/2 that is too long for the gradient at its start, but lowers the loss:

    >>> import numpy as np
    >>> from steepest import pairs
    >>> x, x_next = np.array([1.0, 2.0]), np.array([-0.5, 0.5])
    >>> pair = pairs.discrete(x, x_next, loss=2.5, loss_next=0.25, grad=x, grad_next=x_next, lr=1.5)
    >>> pair.gradient().tolist()
    [0.25, 1.25]
    >>> M = pair.metric()
    >>> np.allclose(x + 1.5 * M.solve(-pair.gradient()), x_next)
    True
    """
    if method not in METHODS:
        raise ValueError(f"expected a method out of {', '.join(map(repr, METHODS))}, got {method!r}")
    rate = _number(lr, "lr")
    if not rate > 0.0:
        raise ValueError(f"expected a positive lr, got {rate}")
    step = _Step(params, params_next, _number(loss, "loss"), _number(loss_next, "loss_next"), rate)
    if method == "mean-value":
        return step.mean_value(_needed(grad_fn, "grad_fn", method, "a callable for gradients on the segment"), n_nodes)
    if method == "itoh-abe":
        return step.itoh_abe(_needed(loss_fn, "loss_fn", method, "a callable for the loss"), grad, vectorized)
    if method == "taylor":
        start = _needed(grad, "grad", method, "the gradient at params")
        return step.taylor(start, _needed(hvp, "hvp", method, "a callable for products with the Hessian"), n_scan)
    if method == "left":
        given = {"grad": _needed(grad, "grad", method, "the gradient at params")}
    elif method == "trapezoid":
        given = {
            "grad": _needed(grad, "grad", method, "the gradient at params"),
            "grad_next": _needed(grad_next, "grad_next", method, "the gradient at params_next"),
        }
    else:
        if grad_midpoint is None:
            what = "the gradient at the midpoint, or grad_fn"
            function = _needed(grad_fn, "grad_midpoint", method, what)
            return step.corrected(method, {"grad_midpoint": step.gradient_at(function, 0.5)}, None)
        given = {"grad_midpoint": grad_midpoint}
    vectors = {name: step.matched(value, name) for name, value in given.items()}
    return step.corrected(method, vectors, next(iter(given.values())))


def _number(x: Any, name: str) -> float:
    try:
        value = float(x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"expected {name} to be a number, got {x!r}") from error
    if not math.isfinite(value):
        raise ValueError(f"expected a finite {name}, got {value}")
    return value


def _needed(value: Any, name: str, method: str, what: str) -> Any:
    if value is None:
        raise ValueError(f"expected {name} for method {method!r}: {what}; got None")
    return value


class _Step:
    """One step: its displacement in float64, and the discrete gradients of it."""

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
        starts = (widened(s, d) for s, d in zip(self.start.segments, self.start.dtypes, strict=True))
        with np.errstate(invalid="ignore", over="ignore"):  # NaN, Inf and their differences give status `nonfinite`
            moves = [np.asarray(b - a) for a, b in zip(starts, ends, strict=True)]
        self.displacement = _float64(moves, self.start)
        self.gradient_dtype = "float64"  # the coarsest of the gradients given or evaluated
        self.lr = Fraction(lr)
        # Exact, though the pair's attribute is a float.
        self.loss_change = Fraction(loss_next) - Fraction(loss)
        self.loss_scale = abs(loss) + abs(loss_next)
        if self.loss_change < 0 and not any(move.any() for move in moves):
            raise ValueError(
                f"the loss changes by {float(self.loss_change):.6g} but params_next equals params: no metric exists "
                "for a step that lowers the loss without moving (it depends on something else, such as time or a batch)"
            )

    def matched(self, value: Any, name: str) -> LongVector:
        """A gradient in the layout of the parameters."""
        layout = self.start.layout
        if isinstance(value, Mapping) and layout.names is not None and set(value) == set(layout.names):
            value = {key: value[key] for key in layout.names}
        vector = long_vector(value, name)
        if vector.layout != layout:
            raise ValueError(f"expected {name} of the same shape as params, which is {layout}, got {vector.layout}")
        self.gradient_dtype = max(self.gradient_dtype, vector.coarsest, key=EPSILON.__getitem__)
        return vector

    def gradient_at(self, grad_fn: Callable[[Any], Any], s: float) -> LongVector:
        """The gradient at params + s d, copied: the callable may use its buffers again."""
        return self._copied(grad_fn(self._point(s)), "the result of grad_fn")

    def _point(self, s: float) -> Any:
        """params + s d, as the callables of the user take it."""
        moves = self.displacement.segments
        return to_user([x + s * d for x, d in zip(self._start(), moves, strict=True)], self.template)

    def _start(self) -> Iterator[Flat]:
        return (widened(x, t) for x, t in zip(self.start.segments, self.start.dtypes, strict=True))

    def _copied(self, value: Any, name: str) -> LongVector:
        found = self.matched(value, name)
        return _float64([np.array(widened(x, t)) for x, t in zip(found.segments, found.dtypes, strict=True)], found)

    def taylor(self, grad: Any, hvp: Callable[[Any, Any], Any], n_scan: int) -> DescentPair:
        """Grad + H(params + s d) d / 2, with an s for which it is a discrete gradient."""
        if n_scan != int(n_scan) or n_scan < 1:
            raise ValueError(f"expected n_scan to be an integer of at least 1, got {n_scan!r}")
        start, moves = self.matched(grad, "grad"), self.displacement.segments
        vector = to_user(moves, self.template)
        one, length = Fraction(1), math.hypot(*map(_norm, moves))
        gram = rational_gram((start, self.displacement))
        points: tuple[float, ...] = ()

        def product(s: float) -> LongVector:
            return self._copied(hvp(self._point(s), vector), "the result of hvp")

        if gram.finite and length > 0.0:
            middle = product(LIMIT)  # now the coarsest type is known
            # Of losses too, which are sums over at least as many terms in the same arithmetic, as a rule.
            unit = EPSILON[max(coarsest(self.start, self.end), self.gradient_dtype, key=EPSILON.__getitem__)]
            unit *= 8.0 * math.sqrt(self.start.size)

            def curvature(s: float) -> tuple[float, float]:
                segments = middle.segments if s == LIMIT else product(s).segments
                value = sum(float(np.sum(a * b)) for a, b in zip(segments, moves, strict=True))
                return value, unit * length * math.hypot(*map(_norm, segments))

            first = gram.product((one, one * 0), (one * 0, one))
            norm = math.hypot(*[_norm(widened(x, t)) for x, t in zip(start.segments, start.dtypes, strict=True)])
            # Terms of the loss may be larger than the loss: about as large as what the gradient says for params itself.
            size = math.hypot(*map(_norm, self._start()))
            usual = 2.0 * unit * (self.loss_scale + norm * length)
            rounding = usual, usual + 2.0 * unit * norm * size
            try:
                target = float(2 * (self.loss_change - first))
            except OverflowError as error:
                raise ValueError(
                    f"|grad| = {norm:.6g} times |params_next - params| = {length:.6g} is out of the range of float64: "
                    "rescale the loss or the parameters"
                ) from error
            points = taylor_points(curvature, target, rounding, int(n_scan))
        gradients = {"grad": start, "hessian @ displacement": product(points[0] if points else LIMIT)}
        pair = self.corrected("taylor", gradients, grad, (one, one / 2))
        return dataclasses.replace(pair, taylor_points=points)

    def corrected(
        self, method: str, gradients: dict[str, LongVector], like: Any, weights: tuple[Fraction, ...] | None = None
    ) -> DescentPair:
        """gm + [(dL - gm.d)/(d.d)] d with gm the mean of the gradients, or another combination."""
        k = len(gradients)
        vectors = (*gradients.values(), self.displacement)
        mean, d = (*(weights or [Fraction(1, k)] * k), Fraction(0)), self._unit(k)
        gram = rational_gram(vectors)
        share, t = math.nan, Fraction(0)
        if gram.finite:
            squared = gram.product(d, d)
            if squared:
                t = (self.loss_change - gram.product(mean, d)) / squared
            row = (*mean[:k], t)
            length = gram.product(row, row)
            share = math.sqrt(float(t * t * squared / length)) if length > 0 else 0.0
        row = (*mean[:k], t)
        return self._pair(
            method, tuple(gradients), row, vectors, gram, like, correction_share=share, exact_descent=gram.finite
        )

    def _unit(self, k: int) -> tuple[Fraction, ...]:
        return (*[Fraction(0)] * k, Fraction(1))

    def mean_value(self, grad_fn: Callable[[Any], Any], n_nodes: int) -> DescentPair:
        """Gauss-Legendre rules of n_nodes and n_nodes - 2 nodes for the integral of the gradient over the segment."""
        if n_nodes != int(n_nodes) or n_nodes < 3:
            raise ValueError(f"expected n_nodes to be an integer of at least 3, got {n_nodes!r}")
        weights: dict[float, list[float]] = {}
        for which, n in enumerate((int(n_nodes), int(n_nodes) - 2)):
            nodes, ws = np.polynomial.legendre.leggauss(n)
            for x, w in zip(nodes.tolist(), ws.tolist(), strict=True):
                # Odd rules share the midpoint.
                weights.setdefault(0.5 * (1.0 + x), [0.0, 0.0])[which] += 0.5 * w
        shapes = self.start.layout.shapes
        sums = [[np.zeros(shape) for shape in shapes] for _ in range(2)]
        for s, both in weights.items():
            found = self.gradient_at(grad_fn, s)
            for total, w in zip(sums, both, strict=True):
                for i, segment in enumerate(found.segments):
                    total[i] += w * segment
        error = math.hypot(*[_norm(a - b) for a, b in zip(*sums, strict=True)])
        return self._own(sums[0], "mean-value", error)

    def itoh_abe(self, loss_fn: Callable[[Any], Any], grad: Any, vectorized: bool) -> DescentPair:
        """Differences of the loss along the path that moves one element after another."""
        start, d = self.start.flat(), self.displacement.flat()
        end = self.end.flat()
        n = start.size
        losses = np.empty(n + 1)
        for at, points in self._path(start, end, vectorized):
            losses[at : at + len(points)] = self._losses(loss_fn, points, vectorized)
        moved = d != 0.0
        found = np.diff(losses)
        found[moved] /= d[moved]
        if not moved.all():
            if grad is not None:
                found[~moved] = self.matched(grad, "grad").flat()[~moved]
            else:
                found[~moved] = self._partials(loss_fn, start, end, np.flatnonzero(~moved), vectorized)
        return self._own(self._cut(found), "itoh-abe", 0.0)

    def _path(self, start: Flat, end: Flat, vectorized: bool) -> Iterator[tuple[int, Flat]]:
        """Blocks of the n + 1 points whose first i elements have moved."""
        n = start.size
        rows = max(1, _BLOCK // n) if vectorized else 1
        for at in range(0, n + 1, rows):
            block = np.arange(at, min(at + rows, n + 1))
            yield at, np.where(np.arange(n) < block[:, None], end, start)

    def _partials(
        self, loss_fn: Callable[[Any], Any], start: Flat, end: Flat, where: NDArray[np.intp], vectorized: bool
    ) -> Flat:
        """Central differences at the points of the path where elements do not move."""
        found = np.empty(where.size)
        relative = EPSILON[self.start.coarsest] ** (1 / 3)
        for j, i in enumerate(where):
            point = np.where(np.arange(start.size) < i, end, start)
            h = relative * max(1.0, abs(float(start[i])))
            points = np.stack([point, point])
            points[0, i] += h
            points[1, i] -= h
            ahead, behind = self._losses(loss_fn, points, vectorized)
            found[j] = (ahead - behind) / (2.0 * h)
        return found

    def _losses(self, loss_fn: Callable[[Any], Any], points: Flat, vectorized: bool) -> Flat:
        if not vectorized:
            return np.array(
                [_number(loss_fn(to_user(self._cut(p), self.template)), "result of loss_fn") for p in points]
            )
        stacked = self._stacked(points)
        found = long_vector(loss_fn(stacked), "the result of loss_fn")
        if found.layout.names is not None or found.layout.shapes[0] != (len(points),):
            raise ValueError(f"expected loss_fn to return shape ({len(points)},) with vectorized, got {found.layout}")
        values = found.flat()
        if not np.isfinite(values).all():
            raise ValueError(f"expected finite losses of loss_fn, got {values[~np.isfinite(values)][0]}")
        return values

    def _cut(self, flat: Flat) -> list[Flat]:
        layout = self.start.layout
        ends = np.cumsum(layout.sizes).tolist()
        return [
            flat[..., end - size : end].reshape(*flat.shape[:-1], *shape)
            for size, end, shape in zip(layout.sizes, ends, layout.shapes, strict=True)
        ]

    def _stacked(self, points: Flat) -> Any:
        """Points of shape (m, n) as arrays with a new first axis, in float64 NumPy arrays."""
        cut, names = self._cut(points), self.start.layout.names
        return cut[0] if names is None else dict(zip(names, cut, strict=True))

    def _own(self, segments: list[Flat], method: str, error: float) -> DescentPair:
        """A discrete gradient that is a vector of its own."""
        vector = _float64(segments, self.start)
        row = (Fraction(1), Fraction(0))
        vectors = (vector, self.displacement)
        return self._pair(method, ("discrete_grad",), row, vectors, rational_gram(vectors), None, error=error)

    def _pair(
        self,
        method: str,
        names: tuple[str, ...],
        row: tuple[Fraction, ...],
        vectors: tuple[LongVector, ...],
        gram: RationalGram,
        like: Any,
        **fields: Any,
    ) -> DescentPair:
        k = len(names)
        unit = self._unit(k)
        defect = float(gram.product(row, unit) - self.loss_change) if gram.finite else math.nan
        dtype = max(coarsest(self.start, self.end), self.gradient_dtype, key=EPSILON.__getitem__)
        layout_names = self.start.layout.names
        if isinstance(like, Mapping) and layout_names is not None:
            like = {name: like[name] for name in layout_names}
        return DescentPair(
            method=method,
            names=(*names, "displacement"),
            rows=(row, tuple(c / self.lr for c in unit)),
            vectors=vectors,
            templates=(self.template if like is None else template_of(like), self.template),
            dtype=dtype,
            psi_floor=max(EPSILON[self.gradient_dtype], self._psi_floor()),
            loss_change=float(self.loss_change),
            defect=defect,
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
                ulps.append(_norm(np.maximum(_spacing(a, start_dtype), _spacing(b, end_dtype))))
                moves.append(_norm(move))
        return angle_floor(math.hypot(*ulps), math.hypot(*moves))


def _spacing(segment: Any, dtype: str) -> Flat:
    """Distance to the next number of the type (as np.spacing, which has no bfloat16)."""
    x = widened(segment, dtype)
    ulps = np.ldexp(EPSILON[dtype], np.frexp(x)[1] - 1)
    return np.maximum(np.where(x == 0.0, 0.0, ulps), _SMALLEST[dtype])


def _float64(segments: list[Flat], like: LongVector) -> LongVector:
    return LongVector(list(segments), like.layout, ("float64",) * len(segments))


def _norm(x: Flat) -> float:
    """2-norm that neither overflows nor underflows."""
    largest = float(np.max(np.abs(x), initial=0.0))
    if not 0.0 < largest < math.inf:  # zero or not finite
        return largest
    # No BLAS: waking its threads costs more than a block.
    return largest * math.sqrt(float(np.sum(np.square(x / largest))))
