"""The steps that an identification reads: inner products of each block, and the vectors where there are any."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest import _core
from steepest.arrays import ArrayOrMapping, Layout, LongVector
from steepest.recorder import Recorder
from steepest.recording import Recording
from steepest.row_format import ALL, STATUS_CODE, check_names
from steepest.step_rows import ordered

__all__ = ["PairStep", "Steps", "products_of", "steps_of"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PairStep:
    """One step with gradient and update.

    Attributes
    ----------
    number : int
        Of the step.
    products : ndarray, shape (blocks, 3)
        y.y, y.g, g.g with y = -grad, g = update, of the vectors divided by ``2**exponents``; NaN if one is not finite.
    exponents : ndarray of int, shape (blocks, 2)
        Of y and g.
    grad, update : LongVector or None
        None where only the products were read.
    """

    number: int
    products: Array
    exponents: NDArray[np.int64]
    grad: LongVector | None = None
    update: LongVector | None = None


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
    """

    layout: Layout
    total: int
    has_vectors: bool
    gradient_source: str | None
    pairs: Callable[[bool], Iterator[PairStep]]
    repeatable: bool = True
    scaled: bool = False

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
    x : Recording, Recorder, path-like, iterable of pairs, or None
        See `identify`.
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
        return _of_pairs(*_whole(grad, update))
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

    def pairs(vectors: bool) -> Iterator[PairStep]:
        for index in known:
            row, number = rec.rows[index], int(rec.step[index])
            products = np.stack([row["yy"], -row["yg"], row["gg"]], axis=1)
            products[row["status"] == STATUS_CODE["nonfinite"]] = np.nan
            exponents = np.stack([row["y_exponent"], row["g_exponent"]], axis=1).astype(np.int64)
            if not vectors or not np.isfinite(products[0]).all():
                yield PairStep(number, products, exponents)
                continue
            stored = rec.vectors(number)
            y = ordered(stored.grad, "grad", rec.info.layout)
            g = ordered(stored.update, "update", rec.info.layout)
            yield PairStep(number, products, exponents, y, g)

    return Steps(rec.info.layout, len(known), rec.has_vectors, rec.gradient_source, pairs, scaled=rec.info.scaled)


def _whole(grad: ArrayOrMapping, update: ArrayOrMapping) -> tuple[Iterable[Any], int]:
    """Pairs of views of whole arrays."""
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

    def at(x: Any, t: int) -> Any:
        return {name: a[t] for name, a in x.items()} if isinstance(x, Mapping) else x[t]

    return _Rows(lambda t: (at(grad, t), at(update, t)), updates), updates


@dataclass(frozen=True)
class _Rows:
    """Pairs of views, made when they are asked for."""

    pair: Callable[[int], tuple[Any, Any]]
    count: int

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return map(self.pair, range(self.count))


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

    first = iter(given)
    pending = [read(first, 0, None)]
    layout = pending[0][0].layout
    check_names(layout)

    def pairs(vectors: bool) -> Iterator[PairStep]:
        source = iter(given) if repeatable else first
        for t in range(total):
            y, g = pending.pop() if pending and not repeatable else read(source, t, layout)
            products, exponents = products_of(y, g)
            kept = (y, g) if vectors else (None, None)
            yield PairStep(t, products, exponents, *kept)

    return Steps(layout, total, True, None, pairs, repeatable)


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
    vectors = [([y], [g]) for y, g in zip(grad.segments, update.segments, strict=True)]
    if len(vectors) > 1:
        vectors.insert(0, (grad.segments, update.segments))
    products, exponents = np.empty((len(vectors), 3)), np.zeros((len(vectors), 2), np.int64)
    for i, (y, g) in enumerate(vectors):
        gram = _core.gram([y, g])
        finite = gram.finite
        products[i] = (gram.hi[0, 0], -gram.hi[0, 1], gram.hi[1, 1]) if finite else np.nan
        exponents[i] = gram.exponents
    if len(vectors) == 1 and grad.layout.names is not None:  # one named array is the whole vector
        products, exponents = np.repeat(products, 2, axis=0), np.repeat(exponents, 2, axis=0)
    return products, exponents
