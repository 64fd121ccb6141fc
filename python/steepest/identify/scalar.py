"""The family m I: one number for all steps and parameters of a block."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import Layout
from steepest.identify.fitted import BlockFacts, FitStatus, Fitted
from steepest.identify.steps import Steps
from steepest.metrics.diagonal import DiagonalMetric
from steepest.progress import shown

__all__ = ["fit_scalar"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ScalarEstimate:
    """m of each block, for y from g and symmetric."""

    layout: Layout
    m: tuple[float, ...]
    s: tuple[float, ...]

    def metric(self, block: int, floor: float | None, symmetric: bool) -> DiagonalMetric:
        value = self.elements(block, symmetric)
        if not value > 0.0 and floor is not None:
            value = floor
        layout = self.layout if block == 0 else Layout(None, (self.layout.shapes[block - 1],))
        return DiagonalMetric(layout, None, value)

    def elements(self, block: int, symmetric: bool) -> float:
        return (self.s if symmetric else self.m)[block]


def fit_scalar(steps: Steps, split: int, progress: bool) -> Fitted:
    """Fit ``M = m I`` in each block: ``m = max(0, sum y.g / sum g.g)``.

    Parameters
    ----------
    steps : Steps
        The run; its vectors are not needed.
    split : int
        How many steps are fitted.
    progress : bool
        Show a bar.

    Returns
    -------
    Fitted
        All residuals follow from y.y, y.g, g.g of each step.
    """
    found = list(shown(steps.pairs(False), progress, "identify scalar", steps.total))
    finite = [step.finite for step in found]
    kept = [step for step, good in zip(found, finite, strict=True) if good]
    fitted = sum(finite[:split])
    blocks = len(steps.blocks)
    products = np.array([step.products for step in kept]).reshape(-1, blocks, 3)
    exponents = np.array([step.exponents for step in kept], np.int64).reshape(-1, blocks, 2)
    unit = exponents.max(axis=0, initial=-(1 << 20))  # of each block: nothing overflows, what underflows is negligible
    shift = exponents - unit
    with np.errstate(under="ignore"):
        products = np.ldexp(products, np.stack([2 * shift[..., 0], shift.sum(axis=-1), 2 * shift[..., 1]], axis=-1))
    yy, yg, gg = np.moveaxis(products[:fitted].sum(axis=0), -1, 0)
    descent = np.maximum(yg, 0.0)
    m, p = _ratio(descent, gg), _ratio(descent, yy)
    s = np.where(yg > 0.0, np.sqrt(_ratio(yy, gg)), 0.0)
    scale = np.ldexp(1.0, np.clip(unit[:, 0] - unit[:, 1], -2000, 2000))
    values = m * scale
    return Fitted(
        estimate=ScalarEstimate(steps.layout, tuple(values.tolist()), tuple((s * scale).tolist())),
        in_sample=_residuals(products[:fitted], m, p, s).sum(axis=0),
        held_out=_residuals(products[fitted:], m, p, s),
        numbers=[step.number for step in kept[fitted:]],
        fitted_steps=fitted,
        dropped=len(found) - len(kept),
        facts=tuple(
            _facts(size, bool(g > 0.0), float(value), fitted, steps.scaled)
            for size, g, value in zip(steps.sizes, gg, values, strict=True)
        ),
    )


def _facts(size: int, moved: bool, value: float, fitted_steps: int, scaled: bool) -> BlockFacts:
    uphill = moved and not value > 0.0
    status: FitStatus = "ok"
    if fitted_steps < 1:
        status = "too_few_steps"
    elif not moved:
        status = "not_identified"
    elif uphill:
        status = "not_positive_definite"
    notes = []
    if not moved:
        notes.append("no parameter moved in the fitted steps: the data say nothing about the metric")
    if uphill:
        notes.append("the steps go uphill on the whole (sum y.g <= 0): no positive multiple of the identity fits them")
    if scaled:
        notes.append("in the units of the recording's scale: M is m/scale^2, element by element")
    positive = value if value > 0.0 else math.nan
    return BlockFacts(1, status, size, size * moved, int(uphill), positive, positive, tuple(notes))


def _ratio(a: Array, b: Array) -> Array:
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0.0)


def _residuals(products: Array, m: Array, p: Array, s: Array) -> Array:
    """The numbers of `Fitted.held_out` for each step."""
    yy, yg, gg = np.moveaxis(products, -1, 0)
    of_y, of_g, of_s = yy - 2 * m * yg + m * m * gg, gg - 2 * p * yg + p * p * yy, yy - 2 * s * yg + s * s * gg
    # A sum of squares, whatever rounding says
    found: Array = np.maximum(np.stack([of_y, of_g, of_s, yy, gg], axis=-1), 0.0)
    return found
