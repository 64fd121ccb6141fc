"""Inner products of tensors where they lie, on any device: a few launches for all blocks, and a rigorous bound.

Products of float32, float16 and bfloat16 are exact in float64: eight neighbours are added plainly, and their sums in a
binary tree that keeps every rounding error (two-sum). float64, and devices without float64 (MPS), take an error-free
product too, of vectors scaled by powers of two.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from steepest.block_products import Product, sum_of_products

__all__ = ["BlockGram", "PendingGram", "block_gram", "combined"]

_ROW = 1024  # every array is padded with zeros to a multiple
_LEAF = 8  # products that are added plainly where they are exact
_FAN = 128  # sums that one later round brings down to one
_GROUP = 1 << 21  # elements that are widened at a time
_PIECE = 1 << 20  # elements that are looked at at a time: few parallel regions, and no second long vector

# Of the formats with an integer of their width: that integer, the bits of the exponent, those of the mantissa, eps.
_BITS = {
    torch.float64: (torch.int64, 0x7FF << 52, 52, 2.0**-52),
    torch.float32: (torch.int32, 0xFF << 23, 23, 2.0**-23),
    torch.float16: (torch.int16, 0x1F << 10, 10, 2.0**-10),
    torch.bfloat16: (torch.int16, 0xFF << 7, 7, 2.0**-7),
}


class BlockGram(NamedTuple):
    """Inner products of one block, on the host.

    Attributes
    ----------
    products : list of tuple (hi, lo, bound)
        In the order of the pairs: the exact product of the scaled vectors is within `bound` of hi + lo.
    exponents : list of int
        Powers of two by which each vector was divided.
    square : float
        sum_i (u_i v_i)^2 of the second pair, scaled alike.
    spacing : float
        2-norm of the distances from the numbers in the block to the next ones; NaN if unknown.
    """

    products: list[tuple[float, float, float]]
    exponents: list[int]
    square: float
    spacing: float


@dataclass(frozen=True)
class _Part:
    """Blocks of one device and precision."""

    blocks: list[int]
    hi: Any
    lo: Any
    exponents: Any  # None if nothing was scaled
    exact: bool
    levels: int


@dataclass(frozen=True)
class PendingGram:
    """Inner products that are still where they were computed."""

    parts: list[_Part]
    pairs: tuple[tuple[int, int], ...]
    vectors: int
    sizes: list[int]
    spacing: bool

    def fetch(self) -> list[BlockGram]:
        """Wait for the device and bring the numbers to the host.

        Returns
        -------
        list of BlockGram
            One for each block.
        """
        found: dict[int, BlockGram] = {}
        for part in self.parts:
            precision = 2.0**-53 if part.hi.dtype == torch.float64 else 2.0**-24
            tiny = 2.0**-1018 if part.hi.dtype == torch.float64 else 2.0**-122
            hi, lo = (x.cpu().double().tolist() for x in (part.hi, part.lo))
            exponents = None if part.exponents is None else part.exponents.tolist()
            for i, block in enumerate(part.blocks):
                h, low = [x[i] for x in hi], [x[i] for x in lo]
                relative = 1.01 * ((part.levels + 1) * precision) ** 2 + (7.01 * precision if part.exact else 0.0)
                absolute = 0.0 if part.exact else self.sizes[block] * tiny
                squares = {a: h[i] for i, (a, b) in enumerate(self.pairs) if a == b}
                products = []
                for (a, b), x, y in zip(self.pairs, h, low, strict=False):
                    # Cauchy; where a square is unknown the caller has left it out of the pairs.
                    magnitude = math.sqrt(max(squares[a], 0.0)) * math.sqrt(max(squares[b], 0.0)) * (1.0 + 1e-6)
                    products.append((x, y, relative * magnitude + absolute * (magnitude > 0.0)))
                spacing = math.sqrt(h[-1]) if self.spacing and math.isfinite(h[-1]) else math.nan
                powers = [0] * self.vectors if exponents is None else [e[i] for e in exponents]
                found[block] = BlockGram(products, powers, h[len(self.pairs)], spacing)
        return [found[block] for block in range(len(found))]


def combined(grams: Sequence[BlockGram], pairs: Sequence[tuple[int, int]]) -> BlockGram:
    """Inner products of the whole vectors as sums over their blocks.

    Parameters
    ----------
    grams : sequence of BlockGram
        Of the blocks.
    pairs : sequence of (int, int)
        Of `block_gram`.

    Returns
    -------
    BlockGram
        Each sum rounded once to hi + lo, which its bound covers. NaN where a block is not finite.
    """
    vectors = range(len(grams[0].exponents))
    square_of = {a: i for i, (a, b) in enumerate(pairs) if a == b}
    units = [max((g.exponents[v] for g in grams if g.products[square_of[v]][0] > 0.0), default=0) for v in vectors]
    products = []
    for i, (a, b) in enumerate(pairs):
        parts = [Product(*g.products[i], g.exponents[a] + g.exponents[b]) for g in grams]
        found = sum_of_products(parts, units[a] + units[b])
        products.append((found.hi, found.lo, found.bound))
    own = pairs[min(1, len(pairs) - 1)]
    square = [math.ldexp(g.square, 2 * sum(g.exponents[v] - units[v] for v in own)) if g.square else 0.0 for g in grams]
    return BlockGram(products, units, sum(square), math.hypot(*(g.spacing for g in grams)))


def block_gram(
    vectors: Sequence[Sequence[torch.Tensor]],
    pairs: Sequence[tuple[int, int]],
    params: Sequence[torch.Tensor] | None = None,
    working: torch.dtype | None = None,
) -> PendingGram:
    """Inner products of long vectors, block by block, without waiting for the device.

    Parameters
    ----------
    vectors : sequence of sequences of Tensor
        The long vectors, each a tensor for each block, in float64, float32, float16 or bfloat16.
    pairs : sequence of (int, int)
        Which products; with (a, b) also (a, a) and (b, b).
    params : sequence of Tensor, optional
        Tensors whose spacing is wanted.
    working : torch.dtype, optional
        float64, or float32 on devices that have no other; by default what the device has.

    Returns
    -------
    PendingGram
        `PendingGram.fetch` brings the numbers to the host.

    Notes
    -----
    With u the unit of the working precision (2^-53, on MPS 2^-24), L about log2 n levels of the tree:
    |error| <= (7 u [exact products only] + (L + 1)^2 u^2) |a| |b|, in place of n u |a| |b| (derived). Temporary memory
    is about 8 (vectors + 3 pairs) bytes for each of 2 million elements.
    """
    parts: dict[tuple[torch.device, bool], list[int]] = {}
    for block, one in enumerate(vectors[0]):
        wide = any(vector[block].dtype == torch.float64 for vector in vectors)
        parts.setdefault((one.device, wide), []).append(block)
    found = []
    for (device, wide), blocks in parts.items():
        work = working or (torch.float32 if device.type == "mps" else torch.float64)
        own = [[vector[block].detach() for block in blocks] for vector in vectors]
        known = None if params is None else [params[block].detach() for block in blocks]
        found.append(_part(blocks, own, pairs, known, work, not wide and work == torch.float64))
    sizes = [x.numel() for x in vectors[0]]
    return PendingGram(found, tuple(pairs), len(vectors), sizes, params is not None)


def _part(
    blocks: list[int],
    vectors: list[list[torch.Tensor]],
    pairs: Sequence[tuple[int, int]],
    params: list[torch.Tensor] | None,
    work: torch.dtype,
    exact: bool,
) -> _Part:
    sizes = tuple(x.numel() for x in vectors[0])
    device = vectors[0][0].device
    exponents = scales = None
    if not exact:
        exponents, scales = _scales(vectors, work)
    done: list[tuple[Any, Any]] = []
    for pieces in _groups(sizes):
        rows = sum(_rows_of(stop - start) for _, start, stop in pieces)
        count = len(pairs) + 1 + (params is not None)
        products = torch.zeros((count, rows * _ROW), dtype=work, device=device)
        wide = [_gathered(vector, pieces).to(work) for vector in vectors]
        if scales is not None:
            owner = torch.tensor([b for b, start, stop in pieces for _ in range(_rows_of(stop - start))], device=device)
            wide = [(x.view(rows, _ROW) * s[owner, None]).view(-1) for x, s in zip(wide, scales, strict=True)]
        low = None if exact else torch.zeros_like(products)
        for i, (a, b) in enumerate(pairs):
            torch.mul(wide[a], wide[b], out=products[i])
            if low is not None:
                _product_error(wide[a], wide[b], products[i], low[i])
        torch.square(products[min(1, len(pairs) - 1)], out=products[len(pairs)])
        if params is not None:
            torch.square(_powers([params[b] for b, _, _ in pieces], pieces, work), out=products[-1])
        if low is None:
            products = products.view(count, rows, _ROW // _LEAF, _LEAF).sum(-1)
            low = torch.zeros_like(products)
        done.append(_tree(products.view(count, rows, -1), low.view(count, rows, -1)))
    hi, lo = (torch.cat(x, -1) for x in zip(*done, strict=True))
    levels = _log2(_ROW // _LEAF if exact else _ROW)
    counts = tuple(_rows_of(size) for size in sizes)
    while any(k > 1 for k in counts):
        index, counts = _round(counts, device)
        hi, lo = (torch.nn.functional.pad(x, (0, 1))[:, index] for x in (hi, lo))
        hi, lo = _tree(hi, lo)
        levels += _log2(_FAN)
    return _Part(blocks, hi, lo, exponents, exact, levels)


def _tree(hi: torch.Tensor, lo: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over the last axis, whose length is a power of two; what each addition rounds off goes into the low part."""
    while hi.shape[-1] > 1:
        half = hi.shape[-1] // 2
        a, b = hi[..., :half], hi[..., half:]
        hi = a + b
        t = hi - a
        error = (a - (hi - t)) + (b - t)
        lo = (lo[..., :half] + lo[..., half:]) + error
    return hi[..., 0], lo[..., 0]


def _product_error(a: torch.Tensor, b: torch.Tensor, product: torch.Tensor, out: torch.Tensor) -> None:
    """a b - product without rounding (Dekker): halves of the mantissas have exact products."""
    a_hi, a_lo = _halves(a)
    b_hi, b_lo = _halves(b)
    torch.sub(a_lo * b_lo, ((product - a_hi * b_hi) - a_lo * b_hi) - a_hi * b_lo, out=out)


def _halves(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    c = x * (2.0**27 + 1.0 if x.dtype == torch.float64 else 2.0**12 + 1.0)
    hi = c - (c - x)
    return hi, x - hi


def _scales(vectors: list[list[torch.Tensor]], work: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Powers of two that bring the largest element of each block near 1: their exponents, and their reciprocals."""
    integer, _, mantissa, _ = _BITS[work]
    bias = 1023 if work == torch.float64 else 127
    largest = torch.stack([torch.stack([x.abs().amax().to(work) for x in vector]) for vector in vectors])
    exponents = ((largest.view(integer) >> mantissa) - bias + 1).clamp(2 - bias, bias - 1)
    return exponents, list(((bias - exponents) << mantissa).view(work))


def _powers(params: list[torch.Tensor], pieces: list[tuple[int, int, int]], work: torch.dtype) -> torch.Tensor:
    """Distance of each number to the next one: eps times the number without its mantissa."""
    flat = []
    for x, (_, start, stop) in zip(params, pieces, strict=True):
        integer, bits, _, eps = _BITS[x.dtype]
        piece = (x.contiguous().view(-1)[start:stop].view(integer) & bits).view(x.dtype).to(work) * eps
        flat.append(torch.nn.functional.pad(piece, (0, -(stop - start) % _ROW)))
    return torch.cat(flat)


def _gathered(vector: list[torch.Tensor], pieces: list[tuple[int, int, int]]) -> torch.Tensor:
    """Pieces of the blocks one after the other, each padded with zeros."""
    zeros = vector[0].new_zeros(_ROW)
    parts = []
    for b, start, stop in pieces:
        parts += [vector[b].reshape(-1)[start:stop], zeros[: -(stop - start) % _ROW]]
    return torch.cat(parts)


def _groups(sizes: tuple[int, ...]) -> Iterator[list[tuple[int, int, int]]]:
    """(block, start, stop) of pieces that together have at most `_GROUP` elements with their padding."""
    pieces: list[tuple[int, int, int]] = []
    room = _GROUP
    for block, size in enumerate(sizes):
        start = 0
        while start < size:
            stop = min(size, start + room)
            pieces.append((block, start, stop))
            room -= _rows_of(stop - start) * _ROW
            start = stop
            if room == 0:
                yield pieces
                pieces, room = [], _GROUP
    if pieces:
        yield pieces


@lru_cache(maxsize=64)
def _round(counts: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Where the sums of each block lie, in rows of `_FAN` whose rest points at a zero behind the end."""
    rows, start, total = [], 0, sum(counts)
    for count in counts:
        own = torch.full((-(-count // _FAN) * _FAN,), total)
        own[:count] = torch.arange(start, start + count)
        rows.append(own.view(-1, _FAN))
        start += count
    return torch.cat(rows).to(device), tuple(len(own) for own in rows)


def _rows_of(size: int) -> int:
    return -(-size // _ROW)


def _log2(x: int) -> int:
    return x.bit_length() - 1
