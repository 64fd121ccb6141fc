"""Steps over windows: the displacement of w updates, against the mean of their gradients."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import Layout, LongVector, widened
from steepest.identify.steps import PairStep, Steps, products_of

__all__ = ["add_to", "over_windows"]

Array = NDArray[np.float64]


def over_windows(steps: Steps, window: int) -> Steps:
    """One step for every `window` of them, one window after the other.

    Parameters
    ----------
    steps : Steps
        A run, with vectors.
    window : int
        w, at least 1; with 1 the run as it is.

    Returns
    -------
    Steps
        Gradient: mean of the w gradients; update: sum of the w updates, both in float64; the number is that of the
        first of them. What is left at the end is not used. A window in which a step is missing or not finite counts as
        not finite.

    Raises
    ------
    ValueError
        No vectors, or fewer steps than a window.

    Notes
    -----
    Derived. Heavy ball, ``v_t = mu v_{t-1} - lr grad_t``, has over a window, exactly,

        sum_t v_t = -lr/(1 - mu) sum_t grad_t + mu/(1 - mu) (v_before - v_last)

    The first term is gradient descent along the mean gradient with M = (1 - mu)/(lr w) I; the second does not grow
    with w. So over windows much longer than 1/(1 - mu) heavy ball is scalar, whatever it looks like step by step:
    ``1 - R2 <= (mu/(lr w))^2 sum |v_before - v_last|^2 / sum |mean gradient|^2``. For gradients that are independent
    from step to step the scalar R2 is

        (1 - mu^2) S_1^2 / (w S_2),   S_1 = sum_{k<w} (w - k) mu^k,   S_2 = 2 S_1 - w

    which is 1 - mu^2 for w = 1 and tends to 1.

    Cost: one pass over the vectors, two float64 vectors besides.
    """
    if window < 1 or window != int(window):
        raise ValueError(f"expected window to be a number of steps, at least 1, got {window!r}")
    w = int(window)
    if w == 1:
        return steps
    if not steps.has_vectors:
        raise ValueError(
            f"window={w} needs the vectors of every step, which this recording does not have: record with "
            "keep='vectors', or pass grad= and update="
        )
    if steps.total < w:
        raise ValueError(f"expected at least window={w} steps, got {steps.total}")

    def joined(part: Iterator[PairStep], vectors: bool) -> PairStep:
        sums, first, good = _Sums(steps.layout), 0, True
        for k, step in enumerate(part):
            first = step.number if k == 0 else first
            good = good and step.number == first + k and step.grad is not None and step.update is not None
            if good:
                sums.add(step, 1.0 / w)
        if not good:
            blocks = len(steps.blocks)
            return PairStep(first, np.full((blocks, 3), np.nan), np.zeros((blocks, 2), np.int64))
        grad, update = sums.vectors()
        products, exponents = products_of(grad, update)
        return PairStep(first, products, exponents, *((grad, update) if vectors else (None, None)))

    total = steps.total // w
    read = steps.at

    def pairs(vectors: bool) -> Iterator[PairStep]:
        source = steps.pairs(True)
        return (joined(islice(source, w), vectors) for _ in range(total))

    def at(position: int, vectors: bool) -> PairStep:
        assert read is not None  # else `at` is not offered
        return joined((read(position * w + k, True) for k in range(w)), vectors)

    return Steps(
        steps.layout,
        total,
        True,
        steps.gradient_source,
        pairs,
        steps.repeatable,
        at=None if read is None else at,
    )


class _Sums:
    """Sum of the updates and mean of the gradients of one window."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.grad, self.update = ([np.zeros(shape) for shape in layout.shapes] for _ in range(2))

    def add(self, step: PairStep, share: float) -> None:
        assert step.grad is not None  # steps without vectors are not added
        assert step.update is not None
        add_to(self.grad, step.grad, share)
        add_to(self.update, step.update, 1.0)

    def vectors(self) -> tuple[LongVector, LongVector]:
        dtypes = ("float64",) * len(self.grad)
        return LongVector(list(self.grad), self.layout, dtypes), LongVector(list(self.update), self.layout, dtypes)


def add_to(sums: list[Array], x: LongVector, factor: float) -> None:
    """Add a multiple of a long vector, array by array, in place.

    Parameters
    ----------
    sums : list of ndarray
        Of the shapes of `x`, in float64.
    x : LongVector
        What is added.
    factor : float
        It is multiplied by this.
    """
    for array, segment, dtype in zip(sums, x.segments, x.dtypes, strict=True):
        np.add(array, widened(segment, dtype) * factor, out=array)
