"""Exceptions of the package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steepest.alignment import Alignment

__all__ = ["NotDescentError"]

_REASON = {
    "ascent": "grad.update is not negative, so no metric exists: the step does not descend to first order",
    "undecided": "the sign of grad.update is not settled by the data",
    "zero_update": "the update is zero",
    "zero_grad": "the gradient is zero",
    "nonfinite": "grad or update holds NaN or Inf",
    "no_gradient": "no gradient was recorded",
    "no_update": "no update was recorded",
    "skipped": "the step was skipped",
}


class NotDescentError(ValueError):
    """The pair (grad, update) admits no metric.

    A symmetric positive definite M with ``update = -M^{-1} grad`` exists if and only if grad.update < 0.

    Parameters
    ----------
    alignments : Mapping
        Block -> `Alignment` for each pair that fails; the key None stands for the whole vector.

    Attributes
    ----------
    alignments : dict
        The same: inner product, its bound, angle and status of each failing block.
    """

    def __init__(self, alignments: Mapping[Any, Alignment]) -> None:
        self.alignments = dict(alignments)
        lines = []
        for block, a in self.alignments.items():
            where = "" if block is None else f"block {block!r}: "
            lines.append(
                f"{where}{_REASON[a.status]} (status {a.status!r}, grad.update = {a.inner_product:.6g} "
                f"+- {a.inner_product_bound:.1g}, angle between -grad and update = {a.angle_degrees:.6g} deg)"
            )
        super().__init__(
            "; ".join(lines) + ". steepest.align returns the angle without raising; a window over several steps may "
            "still be effective."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.alignments,))
