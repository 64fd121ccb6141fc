"""The steps that an identification reads: inner products of each block, and the vectors where there are any."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest import _core
from steepest.arrays import ArrayOrMapping, Layout, LongVector, is_jax, is_torch, long_vector
from steepest.recorder import Recorder
from steepest.recording import Recording
from steepest.row_format import ALL, STATUS_CODE, check_names
from steepest.step_batches import is_direct, steps_at_once
from steepest.step_rows import ordered
from steepest.vector_store import VectorFolder, VectorMemory
from steepest.whole_arrays import WholeArrays

__all__ = ["PairStep", "Steps", "products_of", "steps_of"]

Array = NDArray[np.float64]


class PairStep:
    """One step with gradient and update.

    Parameters
    ----------
    number : int
        Of the step.
    products, exponents : ndarray, optional
        See below; formed from the vectors when they are asked for, if they are not given.
    grad, update : LongVector, optional
        None where only the products were read.

    Attributes
    ----------
    number, grad, update
        As above.
    products : ndarray, shape (blocks, 3)
        y.y, y.g, g.g with y = -grad, g = update, of the vectors divided by ``2**exponents``; NaN if one is not finite.
    exponents : ndarray of int, shape (blocks, 2)
        Of y and g.
    """

    def __init__(
        self,
        number: int,
        products: Array | None = None,
        exponents: NDArray[np.int64] | None = None,
        grad: LongVector | None = None,
        update: LongVector | None = None,
    ) -> None:
        self.number, self.grad, self.update = number, grad, update
        if products is not None and exponents is not None:
            self._formed = products, exponents

    @cached_property
    def _formed(self) -> tuple[Array, NDArray[np.int64]]:
        assert self.grad is not None  # else the products are given
        assert self.update is not None
        return products_of(self.grad, self.update)

    @property
    def products(self) -> Array:
        """Inner products of each block."""
        return self._formed[0]

    @property
    def exponents(self) -> NDArray[np.int64]:
        """Powers of two of each block."""
        return self._formed[1]

    @property
    def finite(self) -> bool:
        """Whether no element is NaN or infinite."""
        return bool(np.isfinite(self.products).all())

    @property
    def known(self) -> bool:
        """Whether the products cost nothing any more."""
        return "_formed" in self.__dict__

    def numbered(self, number: int) -> PairStep:
        """The same under another number.

        Parameters
        ----------
        number : int
            Its number.

        Returns
        -------
        PairStep
            Of the same vectors and products.
        """
        products, exponents = self._formed if self.known else (None, None)
        return PairStep(number, products, exponents, self.grad, self.update)


@dataclass(frozen=True)
class Steps:
    """A run as a sequence of pairs.

    Attributes
    ----------
    layout : Layout
        Names and shapes.
    total : int
        How many steps have a gradient and an update.
    has_vectors : bool
        Whether `pairs` can give the vectors.
    gradient_source : str or None
        Where the gradients come from, None if it was not said.
    pairs : callable
        ``pairs(vectors)`` iterates over the steps, with their vectors or without.
    repeatable : bool
        Whether `pairs` may be called more than once.
    scaled : bool
        Whether the products, unlike the vectors, are in the units of a recording's `scale`.
    at : callable or None
        ``at(position, vectors)`` is one step of them, where they can be read in any order.
    lasting : bool
        Whether the vectors of a step stay as they are while later ones are read, in memory that they have anyway.
    """

    layout: Layout
    total: int
    has_vectors: bool
    gradient_source: str | None
    pairs: Callable[[bool], Iterator[PairStep]]
    repeatable: bool = True
    scaled: bool = False
    at: Callable[[int, bool], PairStep] | None = None
    lasting: bool = False

    @property
    def blocks(self) -> tuple[str, ...]:
        """``(all)`` and the names."""
        return (ALL, *(self.layout.names or ()))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of parameters of each block."""
        return (self.layout.size, *(self.layout.sizes if self.layout.names is not None else ()))


def steps_of(x: Any, grad: Any, update: Any, count: int | None) -> Steps:
    """Whatever `identify` accepts, as steps.

    Parameters
    ----------
    x : Recording, Recorder, path-like, iterable of pairs, Steps, or None
        See `identify`; `Steps` come back as they are.
    grad, update : array, mapping or None
        Whole arrays, first axis the step.
    count : int, optional
        Number of pairs of an iterable without length.

    Returns
    -------
    Steps
        Nothing is read yet but the first pair of an iterable.

    Raises
    ------
    ValueError
        Not exactly one form of data, or shapes that do not fit.
    TypeError
        Another type.
    """
    if (x is None) != (grad is not None and update is not None) or (x is not None and (grad, update) != (None, None)):
        raise ValueError("expected a recording or pairs, or else both grad= and update=, got another combination")
    if x is None:
        return _of_whole(grad, update)
    if isinstance(x, Steps):
        return x
    if isinstance(x, Recorder):
        x = x.recording()
    elif isinstance(x, str) or hasattr(x, "__fspath__"):
        x = Recording.open(x)
    if isinstance(x, Recording):
        return _of_recording(x)
    if isinstance(x, Mapping) or not isinstance(x, Iterable):
        raise TypeError(f"expected a Recording, a Recorder, a path or pairs (grad, update), got {type(x).__name__}")
    if isinstance(x, Sized):
        if count not in (None, len(x)):
            raise ValueError(f"expected steps={len(x)}, the number of pairs, or none, got {count}")
        return _of_pairs(x, len(x))
    if count is None:
        raise ValueError("expected steps=, since held-out steps are the last ones of an iterable without length")
    return _of_pairs(x, int(count))


def _of_recording(rec: Recording) -> Steps:
    if rec.candidates is not None:
        raise ValueError(
            f"expected a recording of one loss, got the candidates {list(rec.candidates)}: pass "
            "recording.candidate(name)"
        )
    known = np.flatnonzero(rec.rows["status"][:, 0] <= STATUS_CODE["nonfinite"])

    def at(position: int, vectors: bool) -> PairStep:
        index = known[position]
        row, number = rec.rows[index], int(rec.step[index])
        products = np.stack([row["yy"], -row["yg"], row["gg"]], axis=1)
        products[row["status"] == STATUS_CODE["nonfinite"]] = np.nan
        exponents = np.stack([row["y_exponent"], row["g_exponent"]], axis=1).astype(np.int64)
        if not vectors or not np.isfinite(products[0]).all():
            return PairStep(number, products, exponents)
        stored = rec.vectors(number)
        y = ordered(stored.grad, "grad", rec.info.layout)
        g = ordered(stored.update, "update", rec.info.layout)
        return PairStep(number, products, exponents, y, g)

    def pairs(vectors: bool) -> Iterator[PairStep]:
        return (at(position, vectors) for position in range(len(known)))

    vectors = rec._vectors
    views = isinstance(vectors, WholeArrays) and "update" in vectors.arrays
    return Steps(
        rec.info.layout,
        len(known),
        rec.has_vectors,
        rec.gradient_source,
        pairs,
        scaled=rec.info.scaled,
        at=at,
        lasting=views or isinstance(vectors, VectorFolder | VectorMemory),
    )


def _of_whole(grad: ArrayOrMapping, update: ArrayOrMapping) -> Steps:
    """Views of whole arrays, step by step."""
    if isinstance(grad, Mapping) != isinstance(update, Mapping):
        raise TypeError(f"expected grad and update of one kind, got {type(grad).__name__} and {type(update).__name__}")

    def length(x: Any, name: str) -> int:
        arrays = list(x.values()) if isinstance(x, Mapping) else [x]
        found = {a.shape[0] if getattr(a, "ndim", 0) else -1 for a in arrays}
        if len(found) != 1 or -1 in found:
            shapes = [getattr(a, "shape", ()) for a in arrays[:4]]
            raise ValueError(f"expected arrays of {name} with the step as first axis, got shapes {shapes}")
        return int(next(iter(found)))

    grads, updates = length(grad, "grad"), length(update, "update")
    if grads not in (updates, updates + 1):
        raise ValueError(f"expected as many gradients as updates, or one more, got {grads} and {updates}")

    if updates > 0 and all(map(_in_memory, (grad, update))):
        y = long_vector(grad, "grad")
        return _of_views(y, ordered(update, "update", y.layout), updates)

    # Sources that read a step when they are asked for it
    def at(x: Any, t: int) -> Any:
        return {name: a[t] for name, a in x.items()} if isinstance(x, Mapping) else x[t]

    return _of_pairs(_Rows(lambda t: (at(grad, t), at(update, t)), updates), updates)


def _in_memory(x: ArrayOrMapping) -> bool:
    arrays = x.values() if isinstance(x, Mapping) else [x]
    return all(isinstance(a, np.ndarray) or is_torch(a) or is_jax(a) for a in arrays)


def _of_views(grad: LongVector, update: LongVector, total: int) -> Steps:
    y_layout, g_layout = (Layout(x.layout.names, tuple(s[1:] for s in x.layout.shapes)) for x in (grad, update))
    if g_layout != y_layout:
        raise ValueError(f"expected update at step 0 to be {y_layout}, got {g_layout}")
    check_names(y_layout)

    def at(position: int, vectors: bool) -> PairStep:
        y, g = (LongVector([s[position, ...] for s in x.segments], y_layout, x.dtypes) for x in (grad, update))
        return PairStep(position, None, None, y, g) if vectors else PairStep(position, *products_of(y, g))

    def products() -> Iterator[PairStep]:
        blocks = 1 + len(y_layout.names or ())
        at_once = steps_at_once(y_layout.size, blocks)
        for begin in range(0, total, at_once):
            some = slice(begin, min(begin + at_once, total))
            # Any accuracy will do: one fast pass over memory
            anything = np.full((some.stop - begin, 1 + len(grad.segments)), math.inf)
            y, g = ([s[some] for s in x.segments] for x in (grad, update))
            rows, _ = _core.step_grams(y, g, anything, anything)
            for t, row in enumerate(rows[:, :blocks]):
                yield PairStep(begin + t, *_products_of_rows(row))

    def pairs(vectors: bool) -> Iterator[PairStep]:
        if not vectors and is_direct(grad.segments, update.segments):
            return products()
        return (at(position, vectors) for position in range(total))

    return Steps(y_layout, total, True, None, pairs, at=at, lasting=True)


@dataclass(frozen=True)
class _Rows:
    """Pairs, read when they are asked for."""

    pair: Callable[[int], tuple[Any, Any]]
    count: int

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return map(self.pair, range(self.count))

    def __getitem__(self, position: int) -> tuple[Any, Any]:
        return self.pair(position)


def _of_pairs(given: Iterable[Any], total: int) -> Steps:
    if total < 1:
        raise ValueError(f"expected at least one pair (grad, update), got {total}")
    repeatable = not isinstance(given, Iterator)

    def read(source: Iterator[Any], number: int, layout: Layout | None) -> tuple[LongVector, LongVector]:
        try:
            pair = next(source)
        except StopIteration:
            raise ValueError(f"expected {total} pairs (grad, update), got {number}") from None
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"expected pairs (grad, update), got {type(pair).__name__} at step {number}")
        y = ordered(pair[0], "grad", layout)
        g = ordered(pair[1], "update", y.layout)
        wanted = y.layout if layout is None else layout
        for name, x in (("grad", y), ("update", g)):
            if x.layout != wanted:
                raise ValueError(f"expected {name} at step {number} to be {wanted}, got {x.layout}")
        return y, g

    def step(number: int, y: LongVector, g: LongVector, vectors: bool) -> PairStep:
        return PairStep(number, None, None, y, g) if vectors else PairStep(number, *products_of(y, g))

    first = iter(given)
    pending = [read(first, 0, None)]
    layout = pending[0][0].layout
    check_names(layout)

    def pairs(vectors: bool) -> Iterator[PairStep]:
        source = iter(given) if repeatable else first
        for t in range(total):
            y, g = pending.pop() if pending and not repeatable else read(source, t, layout)
            yield step(t, y, g, vectors)

    def at(position: int, vectors: bool) -> PairStep:
        return step(position, *read(iter([given[position]]), position, layout), vectors)  # type: ignore[index]

    indexed = isinstance(given, _Rows | Sequence)
    lasting = isinstance(given, list | tuple)
    return Steps(layout, total, True, None, pairs, repeatable, at=at if indexed else None, lasting=lasting)


def products_of(grad: LongVector, update: LongVector) -> tuple[Array, NDArray[np.int64]]:
    """Inner products of one pair, of the whole and of each array.

    Parameters
    ----------
    grad, update : LongVector
        Of one layout.

    Returns
    -------
    products : ndarray, shape (blocks, 3)
        As `PairStep.products`.
    exponents : ndarray, shape (blocks, 2)
        As `PairStep.exponents`.
    """
    blocks = 1 if grad.layout.names is None else 1 + len(grad.segments)
    # Any accuracy will do: one fast pass over memory
    anything = [math.inf] * (1 + len(grad.segments))
    return _products_of_rows(_core.segment_angle_grams(grad.segments, update.segments, anything, anything)[:blocks])


def _products_of_rows(rows: Array) -> tuple[Array, NDArray[np.int64]]:
    """From rows of the core; y = -grad."""
    return rows[:, :3] * [1.0, -1.0, 1.0], rows[:, 9:11].astype(np.int64)
