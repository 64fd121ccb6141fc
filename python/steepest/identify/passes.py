"""One pass over the steps: the first ones are fitted, the later ones scored."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import LongVector, widened
from steepest.identify.steps import PairStep, Steps
from steepest.progress import shown

__all__ = [
    "Model",
    "Pass",
    "ScaledStep",
    "TogetherModel",
    "fit_and_score",
    "fit_and_score_together",
    "require_vectors",
    "scaled_steps",
    "with_all",
]

Array = NDArray[np.float64]
CHUNK = 1 << 14  # elements at a time: all temporaries stay in the cache
_TOGETHER = 64  # steps at a time, where they take no memory
_ARRAYS = 4096  # of all these steps: each may be a mapping of its own, of which a process has some ten thousands
_MODERATE = 200  # powers of two within which squares neither overflow nor vanish


@dataclass(frozen=True)
class ScaledStep:
    """y = -grad and g = update of one step in float64, in units of powers of two."""

    grad: LongVector
    update: LongVector
    exponents: tuple[int, int]

    def arrays(self) -> list[tuple[Array, Array]]:
        """y and g of each array of the layout, in its shape.

        Returns
        -------
        list of (ndarray, ndarray)
            New arrays.
        """
        return [(y.reshape(shape), g.reshape(shape)) for (y, g), shape in zip(self._flat(), self._shapes, strict=True)]

    def vectors(self) -> tuple[Array, Array]:
        """y and g as one vector each.

        Returns
        -------
        y, g : ndarray, shape (n,)
            New arrays.
        """
        y, g = zip(*self._flat(), strict=True)
        return np.concatenate(y), np.concatenate(g)

    def chunks(self) -> Iterator[tuple[int, slice, Array, Array]]:
        """Runs of elements.

        Yields
        ------
        array : int
            Place of the array in the layout.
        at : slice
            Elements of it, flat.
        y, g : ndarray
            Their values.
        """
        ey, eg = self.exponents
        for i, size in enumerate(self.grad.layout.sizes):
            flat = [(v.segments[i].reshape(-1), v.dtypes[i]) for v in (self.grad, self.update)]
            for begin in range(0, size, CHUNK):
                at = slice(begin, begin + CHUNK)
                y, g = (widened(s[at], t) for s, t in flat)
                yield i, at, np.ldexp(-y, -ey) if ey else -y, np.ldexp(g, -eg) if eg else g

    @property
    def _shapes(self) -> tuple[tuple[int, ...], ...]:
        return self.grad.layout.shapes

    def _flat(self) -> Iterator[tuple[Array, Array]]:
        sizes = self.grad.layout.sizes
        found = [(np.empty(size), np.empty(size)) for size in sizes]
        for i, at, y, g in self.chunks():
            found[i][0][at], found[i][1][at] = y, g
        return iter(found)


class Model(Protocol):
    """A family while it is fitted."""

    def add(self, step: ScaledStep) -> None:
        """Take one more of the fitted steps.

        Parameters
        ----------
        step : ScaledStep
            Of the first steps.
        """

    def fit(self) -> Array:
        """Fit, after the last of them.

        Returns
        -------
        ndarray, shape (arrays, 5) or (blocks, 5)
            As `Fitted.in_sample`, for each array of the layout, which then add up to ``(all)``; or for each block, if
            the metric of ``(all)`` is not made of theirs.
        """

    def residuals(self, step: ScaledStep) -> Array:
        """Score a later step.

        Parameters
        ----------
        step : ScaledStep
            One that is held out.

        Returns
        -------
        ndarray, shape (arrays, 5) or (blocks, 5)
            As `Fitted.held_out`, for the same.
        """


class _Batches(Protocol):
    """A family that takes several steps at a time while it is fitted; otherwise as `Model`."""

    def add(self, steps: Sequence[ScaledStep]) -> bool:
        """Take more of the fitted steps.

        Parameters
        ----------
        steps : sequence of ScaledStep
            All in the same units.

        Returns
        -------
        bool
            Whether they are seen to be finite.
        """

    def fit(self) -> Array:
        """As `Model.fit`."""

    def residuals(self, steps: Sequence[ScaledStep]) -> Array:
        """Score later steps.

        Parameters
        ----------
        steps : sequence of ScaledStep
            Held out.

        Returns
        -------
        ndarray, shape (steps, arrays, 5)
            Not finite for a step that is not.
        """


class TogetherModel(_Batches, Protocol):
    """One that may see the steps twice."""

    def clear(self) -> None:
        """Forget all steps."""


@dataclass(frozen=True)
class Pass:
    """Outcome of `fit_and_score`: fields as in `Fitted`, with ``(all)`` and the arrays as blocks.

    Attributes
    ----------
    in_sample, held_out, numbers, fitted_steps, dropped
        See `Fitted`.
    exponents : tuple of int
        Units of y and g: a fitted M is in units of ``2**(exponents[0] - exponents[1])``.
    """

    in_sample: Array
    held_out: Array
    numbers: list[int]
    fitted_steps: int
    dropped: int
    exponents: tuple[int, int]


def require_vectors(steps: Steps, family: str) -> None:
    """Refuse a recording of scalars.

    Parameters
    ----------
    steps : Steps
        The run.
    family : str
        For the message.

    Raises
    ------
    ValueError
        There are no vectors.
    """
    if not steps.has_vectors:
        raise ValueError(
            f"family={family!r} needs the vectors of every step, which this recording does not have: record with "
            "keep='vectors', or pass grad= and update=; family='scalar' needs inner products only"
        )


def fit_and_score(steps: Steps, split: int, progress: bool, family: str, model: Model) -> Pass:
    """Read the vectors once: fit the first steps, score the others.

    Parameters
    ----------
    steps : Steps
        The run, with vectors.
    split : int
        How many steps are fitted.
    progress : bool
        Show a bar.
    family : str
        For the bar and messages.
    model : Model
        Its `fit` is called once; it may read the fitted steps again by `scaled_steps`.

    Returns
    -------
    Pass
        Scores, and the units of the fit.

    Raises
    ------
    ValueError
        There are no vectors.
    """
    found = _pass(steps, split, progress, family, _OneByOne(model), 1, True)
    assert found is not None  # every step was looked at first
    return found


def fit_and_score_together(
    steps: Steps,
    split: int,
    progress: bool,
    family: str,
    model: TogetherModel,
    *,
    together: int = _TOGETHER,
    look: bool = False,
) -> Pass:
    """The same for a model that takes several steps at a time.

    Parameters
    ----------
    steps, split, progress, family
        As for `fit_and_score`.
    model : TogetherModel
        Its `clear` is called, and the steps are read again, where it met one that is not finite.
    together : int
        How many steps at most.
    look : bool
        Whether the norms of every step are formed first, so that there are no others.

    Returns
    -------
    Pass
        Scores, and the units of the fit.

    Raises
    ------
    ValueError
        There are no vectors.
    """
    some = max(1, min(together, _ARRAYS // len(steps.layout.shapes))) if steps.lasting else 1
    look = look or not steps.lasting  # what lasts can be read again, too
    found = _pass(steps, split, progress, family, model, some, look)
    if found is None:
        model.clear()
        found = _pass(steps, split, progress, family, model, some, True)
    assert found is not None  # every step was looked at first
    return found


class _OneByOne:
    def __init__(self, model: Model) -> None:
        self._model = model
        self.fit = model.fit

    def add(self, steps: Sequence[ScaledStep]) -> bool:
        for step in steps:
            self._model.add(step)
        return True

    def residuals(self, steps: Sequence[ScaledStep]) -> Array:
        return np.array([self._model.residuals(step) for step in steps])


def _pass(
    steps: Steps, split: int, progress: bool, family: str, model: _Batches, together: int, look: bool
) -> Pass | None:
    """With `look` the norms of every step come first; without, None if a step turns out not to be finite."""
    require_vectors(steps, family)
    held_out: list[Array] = []
    numbers: list[int] = []
    fitted = dropped = 0
    exponents: tuple[int, int] | None = None
    in_sample: Array | None = None
    waiting: list[PairStep] = []

    def take() -> bool:
        nonlocal fitted, dropped
        if not waiting:
            return True
        scaled = [_scaled(step, exponents or (0, 0)) for step in waiting]
        if in_sample is None:
            fitted += len(waiting)
            good = model.add(scaled) or look or all(step.known for step in waiting)
        else:
            good = True
            for step, found in zip(waiting, model.residuals(scaled), strict=True):
                if step.known or np.isfinite(found).all() or step.finite:
                    held_out.append(found)
                    numbers.append(step.number)
                else:
                    dropped += 1
        waiting.clear()
        return good

    for position, step in enumerate(shown(steps.pairs(True), progress, f"identify {family}", steps.total)):
        if position >= split and in_sample is None:
            if not take():
                return None
            in_sample = model.fit()
        if (look or step.known or exponents is None) and not step.finite:
            dropped += 1
            continue
        exponents = _units(step) if exponents is None else exponents
        waiting.append(step)
        if len(waiting) == together and not take():
            return None
    if not take():
        return None
    in_sample = model.fit() if in_sample is None else in_sample
    named = steps.layout.names is not None and len(in_sample) < len(steps.blocks)
    scores = np.array(held_out).reshape(-1, len(in_sample), 5)
    return Pass(
        with_all(in_sample, named),
        with_all(scores, named),
        numbers,
        fitted,
        dropped,
        exponents or (0, 0),
    )


def scaled_steps(steps: Steps, split: int) -> Iterator[ScaledStep]:
    """The fitted steps once more, in the units of `fit_and_score`.

    Parameters
    ----------
    steps : Steps
        A run that can be read again.
    split : int
        How many steps are fitted.

    Yields
    ------
    ScaledStep
        Those that are finite.

    Raises
    ------
    ValueError
        The run cannot be read again.
    """
    if not steps.repeatable:
        raise ValueError(
            "expected steps that can be read more than once, got an iterator: pass a list, whole arrays or a recording"
        )
    exponents: tuple[int, int] | None = None
    for step in islice(steps.pairs(True), split):
        if step.finite:
            exponents = _units(step) if exponents is None else exponents
            yield _scaled(step, exponents)


def with_all(x: Any, named: bool) -> Array:
    """The sum over the arrays before the arrays, where they are named blocks.

    Parameters
    ----------
    x : ndarray, shape (..., arrays, k)
        Sums of squares.
    named : bool
        Whether the layout has names; else it is one array and the only block.

    Returns
    -------
    ndarray, shape (..., blocks, k)
        With ``(all)`` first.
    """
    return np.concatenate([x.sum(axis=-2, keepdims=True), x], axis=-2) if named else np.asarray(x)


def _scaled(step: PairStep, exponents: tuple[int, int]) -> ScaledStep:
    assert step.grad is not None  # asked for
    assert step.update is not None
    return ScaledStep(step.grad, step.update, exponents)


def _units(step: PairStep) -> tuple[int, int]:
    """Powers of two of the norms where these are not moderate."""
    exponents = []
    for square, exponent in zip(step.products[0, [0, 2]], step.exponents[0], strict=True):
        power = int(exponent) + math.frexp(math.sqrt(square))[1] if square > 0.0 else 0
        exponents.append(power if abs(power) > _MODERATE else 0)
    return exponents[0], exponents[1]
