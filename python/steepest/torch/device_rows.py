"""Rows of steps whose tensors lie on an accelerator: a handful of scalars cross, some steps later."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from steepest.arrays import EPSILON, FLOAT_NAMES
from steepest.block_products import MISSING, LagProducts, Product, normalized
from steepest.rounding_floor import angle_floor
from steepest.row_format import NAN
from steepest.step_rows import scalar_row
from steepest.torch.gram import BlockGram, PendingGram, block_gram, combined
from steepest.torch.step import StepTensors, filled, share, value_of

__all__ = ["DeviceRing", "DeviceStep", "fill_rows"]

_NAMES = {getattr(torch, name): name for name in FLOAT_NAMES}
# Which vector: how many steps back, and whether it is the gradient (y) or the update (g).
_Key = tuple[int, str]
Y: _Key = (0, "y")
G: _Key = (0, "g")


@dataclass(frozen=True)
class DeviceStep:
    """A step of which only scalars are left, still on the device.

    Attributes
    ----------
    step : StepTensors
        Without its long vectors.
    time : float
        When.
    absent : mapping (steps back, 'y' or 'g') -> blocks
        The vectors that there are, and their blocks without gradient.
    dtypes : list of str
        The coarser element type of each block.
    pairs : dict
        Two vectors -> place among the products.
    gram : PendingGram or None
        None if there is neither gradient nor update.
    """

    step: StepTensors
    time: float
    absent: dict[_Key, frozenset[int]]
    dtypes: list[str]
    pairs: dict[tuple[_Key, _Key], int]
    gram: PendingGram | None


class DeviceRing:
    """Forms the inner products of steps, with those before them.

    Parameters
    ----------
    lag : int
        With how many: so many copies of gradient and update stay on the device.
    working : torch.dtype or None
        Precision, by default what the device has.
    """

    def __init__(self, lag: int, working: torch.dtype | None) -> None:
        self._lag, self._working = lag, working
        self._ring: deque[StepTensors] = deque()

    def reduce(self, step: StepTensors, like: Sequence[torch.Tensor]) -> DeviceStep:
        """Start the computation; nothing waits for it.

        Parameters
        ----------
        step : StepTensors
            Its tensors may change after the call.
        like : sequence of Tensor
            The parameters.

        Returns
        -------
        DeviceStep
            The scalars.
        """
        vectors: dict[_Key, list[torch.Tensor]] = {}
        absent: dict[_Key, frozenset[int]] = {}
        steps = [
            (step.number - one.number, one) for one in (step, *self._ring) if step.number - one.number <= self._lag
        ]
        for back, one in steps:
            grads = filled(one.grads, like)
            if grads is not None:
                vectors[back, "y"], absent[back, "y"] = grads, one.absent
            if one.update is not None:
                vectors[back, "g"], absent[back, "g"] = one.update, frozenset()
        keys = list(vectors)
        own = [key for key in keys if key[0] == 0]
        pairs = [(a, b) for i, a in enumerate(own) for b in own[i:]]
        pairs += [pair for b in keys[len(own) :] for pair in [*((a, b) for a in own), (b, b)]]
        gram = None
        if own:
            at = {key: i for i, key in enumerate(keys)}
            params = step.params if step.update is not None else None
            indices = [(at[a], at[b]) for a, b in pairs]
            gram = block_gram(list(vectors.values()), indices, params, self._working)
        dtypes = [max((_NAMES[vectors[key][b].dtype] for key in own), key=EPSILON.__getitem__, default="float64")
                  for b in range(len(like))]  # fmt: skip
        if self._lag:
            self._remember(step)
        light = StepTensors(step.number, [], [], None, step.loss, step.decay, step.note)
        return DeviceStep(light, time.time(), absent, dtypes, {pair: i for i, pair in enumerate(pairs)}, gram)

    def _remember(self, step: StepTensors) -> None:
        """Copy gradient and update, into the memory of the oldest step if the ring is full."""
        oldest = self._ring.pop() if len(self._ring) == self._lag else None
        grads = [
            None if grad is None else _copy(grad, None if oldest is None else oldest.grads[i])
            for i, grad in enumerate(step.grads)
        ]
        update = step.update
        if update is not None:
            kept = None if oldest is None else oldest.update
            update = [_copy(x, None if kept is None else kept[i]) for i, x in enumerate(update)]
        self._ring.appendleft(StepTensors(step.number, [], grads, update))


def _copy(x: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    if kept is None or kept.dtype != x.dtype or kept.device != x.device:
        return x.detach().clone()
    return kept.copy_(x.detach())


def fill_rows(rows: NDArray[np.void], one: DeviceStep, lag: int) -> None:
    """Fetch the scalars of a step, and write its rows.

    Parameters
    ----------
    rows : ndarray, shape (number of blocks,)
        Structured, to be written; the whole vector comes first.
    one : DeviceStep
        The step.
    lag : int
        Of the recording.
    """
    blocks = len(one.dtypes)
    fetched = [] if one.gram is None else one.gram.fetch()
    grams: list[BlockGram | None] = [None] * (1 + blocks)
    if one.gram is not None:
        grams = [combined(fetched, one.gram.pairs), *fetched]
    decays = [NAN] * blocks if one.step.decay is None else one.step.decay.fetch()
    decays.insert(0, math.hypot(*decays))
    dtypes = [max(one.dtypes, key=EPSILON.__getitem__), *one.dtypes]
    loss = value_of(one.step.loss)
    for row, (gram, dtype, decay) in enumerate(zip(grams, dtypes, decays, strict=True)):
        product = _Products(one, gram, row - 1)
        yy, yg, gg = (product(*pair) for pair in ((Y, Y), (Y, G), (G, G)))
        variance = update_norm = floor = NAN
        units = [0, 0] if gram is None else [product.exponent(key) for key in (Y, G)]
        if gram is not None and gg is not None and gg.hi >= 0.0:
            update_norm = math.ldexp(math.sqrt(gg.hi), units[1])
            floor = angle_floor(gram.spacing, update_norm)
            if yy is not None and yy.hi > 0.0 and gg.hi > 0.0:
                variance = gram.square / yy.hi / gg.hi
        lags: list[LagProducts | None] = [
            (product.lagged(Y, (back, "y")), product.lagged(Y, (back, "g")),
             product.lagged(G, (back, "y")), product.lagged(G, (back, "g")))
            for back in range(1, lag + 1)
        ]  # fmt: skip
        triples = [None if p is None else (p.hi, p.lo, p.bound) for p in (yy, yg, gg)]
        scalar_row(
            rows, one.step.number, row, dtype, *triples, y_exponent=units[0], g_exponent=units[1], psi_floor=floor,
            loss=loss, time=one.time, decay_share=share(decay, update_norm), sign_flip_variance=variance, lags=lags,
        )  # fmt: skip


class _Products:
    """The inner products of one row by their vectors."""

    def __init__(self, one: DeviceStep, gram: BlockGram | None, block: int) -> None:
        self._one, self._gram, self._block = one, gram, block
        self._at = {key: i for i, key in enumerate(one.absent)}

    def exponent(self, key: _Key) -> int:
        return self._gram.exponents[self._at[key]] if self._gram is not None and key in self._at else 0

    def __call__(self, a: _Key, b: _Key) -> Product | None:
        place = self._one.pairs.get((a, b))
        if self._gram is None or place is None:
            return None
        if self._block in self._one.absent[a] or self._block in self._one.absent[b]:
            return None
        return Product(*self._gram.products[place], self.exponent(a) + self.exponent(b))

    def lagged(self, a: _Key, b: _Key) -> Product:
        found = self(a, b)
        return MISSING if found is None else normalized(*found)
