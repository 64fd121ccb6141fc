"""One step of an optimiser, as tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from steepest.torch.parameters import DecayNorms

__all__ = ["StepTensors", "filled", "share", "value_of"]


@dataclass(frozen=True)
class StepTensors:
    """What is known of one step.

    Attributes
    ----------
    number : int
        Of the step.
    params : list of Tensor
        Whose spacing limits the update, or which are stored.
    grads : list of Tensor or None
        One for each block.
    update : list of Tensor or None
        None in the row that closes a recording.
    loss : object
        A number, a tensor of one element, or None.
    decay : DecayNorms or None
        Of the step.
    note : str
        For the row.
    """

    number: int
    params: list[torch.Tensor]
    grads: list[torch.Tensor | None]
    update: list[torch.Tensor] | None
    loss: Any = None
    decay: DecayNorms | None = None
    note: str = ""

    @property
    def absent(self) -> frozenset[int]:
        """Blocks without gradient."""
        return frozenset(i for i, grad in enumerate(self.grads) if grad is None)


def filled(grads: Sequence[torch.Tensor | None], like: Sequence[torch.Tensor]) -> list[torch.Tensor] | None:
    """Gradients with zeros, of one element in memory, for the parameters that did not enter the loss.

    Parameters
    ----------
    grads : sequence of Tensor or None
        One for each block.
    like : sequence of Tensor
        The parameters.

    Returns
    -------
    list of Tensor or None
        None if there is no gradient at all.
    """
    if all(grad is None for grad in grads):
        return None
    return [
        p.new_zeros(()).expand(p.shape) if grad is None else grad.detach() if grad.requires_grad else grad
        for grad, p in zip(grads, like, strict=True)
    ]


def value_of(loss: Any) -> float:
    """A loss on the host.

    Parameters
    ----------
    loss : object
        A number, a tensor of one element, or None.

    Returns
    -------
    float
        NaN for None.
    """
    return math.nan if loss is None else float(loss)


def share(part: float, whole: float) -> float:
    """|part| / |whole|.

    Parameters
    ----------
    part, whole : float
        Norms.

    Returns
    -------
    float
        0 for a part of 0, NaN for any other part of nothing.
    """
    if part == 0.0:
        return 0.0
    return part / whole if whole > 0.0 else math.nan
