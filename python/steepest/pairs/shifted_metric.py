"""A metric of the family (8) plus a multiple of the identity, eq (19')."""

from __future__ import annotations

from dataclasses import dataclass

from steepest.pairs.low_rank_operator import DefiniteOperator

__all__ = ["ShiftedMetric"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ShiftedMetric(DefiniteOperator):
    """``M(alpha) + shift I``, eq (19'): the operator that turns the mean update into minus the mean gradient.

    Attributes
    ----------
    alpha : float
        Bulk eigenvalue of M(alpha), eq (8).
    smallest_eigenvalue : float
        Positive.
    shift : float
        ``lr q / (2 |E g|^2)``, of any sign.
    """

    shift: float
