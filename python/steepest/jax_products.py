"""From the scalars that a JAX program has left to the rows of a recording: bounds, exponents, the whole vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steepest import jax_gram
from steepest.arrays import EPSILON, FLOAT_NAMES
from steepest.block_products import MISSING, LagProducts, Product, normalized, sum_of_products
from steepest.rounding_floor import angle_floor
from steepest.step_rows import Triple, scalar_row

__all__ = ["Products", "lag_products", "whole"]


class Products(NamedTuple):
    """Inner products of a block as (hi, lo, bound), and what else its row needs."""

    yy: Triple
    yg: Triple
    gg: Triple
    y_exponent: int
    g_exponent: int
    flip: float  # sum (y_i g_i)^2 in units of yg^2
    spacing: float
    dtype: str

    @classmethod
    def of(cls, floats: NDArray[Any], integers: NDArray[np.int32], bound: float) -> Products:
        """From the columns `jax_gram.FLOATS` and `INTEGERS`; bound as `jax_gram.error_bound`."""
        value = {name: float(floats[i]) for i, name in enumerate(jax_gram.FLOATS)}
        y_exponent, g_exponent, spacing_exponent, code = integers.tolist()
        # Of the bounds themselves: 1e-6 more than all their rounding.
        norms = {"y": math.sqrt(value["yy"]) * (1.0 + 1e-6), "g": math.sqrt(value["gg"]) * (1.0 + 1e-6)}
        yy, yg, gg = ((value[k], value[k + "_lo"], bound * norms[k[0]] * norms[k[1]]) for k in ("yy", "yg", "gg"))
        spacing = math.nan
        if not math.isnan(value["spacing"]):
            spacing = math.ldexp(math.sqrt(value["spacing"]), spacing_exponent)
        flip = math.ldexp(value["flip"], 4 * jax_gram.TOP)
        return cls(yy, yg, gg, y_exponent, g_exponent, flip, spacing, FLOAT_NAMES[code])

    def fill(self, row: NDArray[np.void], step: int, block: int, loss: float, lag: LagProducts | None) -> None:
        """Write ``row[block]``."""
        yy, gg = self.yy[0], self.gg[0]
        update_norm = math.nan
        if gg >= 0.0:
            update_norm = math.ldexp(math.sqrt(gg), self.g_exponent)
        scalar_row(
            row, step, block, self.dtype, self.yy, self.yg, self.gg,
            y_exponent=self.y_exponent, g_exponent=self.g_exponent, loss=loss,
            psi_floor=angle_floor(self.spacing, update_norm),
            sign_flip_variance=self.flip / yy / gg if yy > 0.0 and gg > 0.0 else math.nan,
            lags=(lag,),
        )  # fmt: skip


def lag_products(now: Products, before: Products, floats: NDArray[Any], bound: float) -> LagProducts:
    """Inner products with the step before, whose exponents are those of the vectors in their own steps."""
    found = []
    pairs = [
        (square, square0, exponent + exponent0)
        for square, exponent in ((now.yy, now.y_exponent), (now.gg, now.g_exponent))
        for square0, exponent0 in ((before.yy, before.y_exponent), (before.gg, before.g_exponent))
    ]
    for (square, square0, exponent), (hi, lo) in zip(pairs, floats.reshape(4, 2).tolist(), strict=True):
        if math.isnan(hi):
            found.append(MISSING)
        else:
            error = bound * math.sqrt(square[0]) * math.sqrt(square0[0]) * (1.0 + 1e-6)
            found.append(normalized(hi, lo, error, exponent))
    return found[0], found[1], found[2], found[3]


def whole(parts: Sequence[Products]) -> Products:
    """The sum over all blocks."""
    y = max((p.y_exponent for p in parts if p.yy[0] > 0.0), default=0)  # NaN is not
    g = max((p.g_exponent for p in parts if p.gg[0] > 0.0), default=0)
    shift = [(p.y_exponent - y, p.g_exponent - g) for p in parts]
    return Products(
        _sum([p.yy for p in parts], [2 * a for a, _ in shift]),
        _sum([p.yg for p in parts], [a + b for a, b in shift]),
        _sum([p.gg for p in parts], [2 * b for _, b in shift]),
        y,
        g,
        math.fsum(_scaled(p.flip, 2 * (a + b)) for p, (a, b) in zip(parts, shift, strict=True)),
        math.hypot(*(p.spacing for p in parts)),
        max((p.dtype for p in parts), key=EPSILON.__getitem__),
    )


def _sum(terms: Sequence[Triple], shifts: Sequence[int]) -> Triple:
    """Sum of (hi, lo, bound), each times a power of two."""
    found = sum_of_products([Product(*term, shift) for term, shift in zip(terms, shifts, strict=True)], 0)
    return found.hi, found.lo, found.bound


def _scaled(x: float, k: int) -> float:
    return math.ldexp(x, k) if x else x  # of an exponent that belongs to a zero vector, k is arbitrary
