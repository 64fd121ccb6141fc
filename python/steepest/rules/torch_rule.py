"""Any PyTorch optimiser as a rule."""

# ruff: noqa: ARG002 (arguments of the protocol that this rule does not need)

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from steepest.arrays import ArrayOrMapping, is_torch
from steepest.rules.leaves import each, exactly, flat, in_library_of, plain
from steepest.rules.rule import Rule, rate_at

__all__ = ["TorchState", "from_torch"]


@dataclass(frozen=True)
class TorchState:
    """State of a rule made by `from_torch`.

    Attributes
    ----------
    step : int
        Updates made so far.
    inner : dict
        The optimiser's ``state_dict``; never changed.
    template : array or dict
        Zeros of the parameters' shapes.
    """

    step: int
    inner: dict[str, Any]
    template: Any


class _Torch(Rule):
    no_metric = "what a PyTorch optimiser does is not known from outside; steepest.metric(grad, update) is one step's"

    def __init__(self, optimizer_class: Any, options: dict[str, Any]) -> None:
        self._optimizer_class, self._options = optimizer_class, options

    def _optimizer(self, tensors: list[Any], step: int) -> Any:
        options = dict(self._options)
        if callable(options.get("lr")):
            options["lr"] = rate_at(options["lr"], step)
        return self._optimizer_class(tensors, **options)

    def init(self, params: ArrayOrMapping) -> TorchState:
        params = plain(params)
        inner = self._optimizer(_tensors(params), 0).state_dict()
        return TorchState(0, inner, each(lambda a: np.broadcast_to(np.float64(0.0), np.shape(a)), params))

    def update(
        self, grad: ArrayOrMapping, state: TorchState, params: ArrayOrMapping | None = None, **data: Any
    ) -> tuple[Any, TorchState]:
        if params is None:
            raise ValueError("expected params, which a PyTorch optimiser changes in place (a copy of them), got none")
        grad, params = exactly(grad, "grad", state.template), exactly(params, "params", state.template)
        before, tensors = _tensors(params), _tensors(params)
        optimizer = self._optimizer(tensors, state.step)
        rates = [group.get("lr") for group in optimizer.param_groups]
        optimizer.load_state_dict(copy.deepcopy(state.inner))
        if callable(self._options.get("lr")):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        for tensor, g in zip(tensors, _tensors(grad), strict=True):
            tensor.grad = g.to(tensor.dtype)
        optimizer.step()
        changes = [(after.detach() - x) for after, x in zip(tensors, before, strict=True)]
        found = dict(zip(params, changes, strict=True)) if isinstance(params, Mapping) else changes[0]
        return in_library_of(found, grad), TorchState(state.step + 1, optimizer.state_dict(), state.template)


def from_torch(optimizer_class: Any, **options: Any) -> Rule:
    """A PyTorch optimiser as a rule on arrays of any library.

    Parameters
    ----------
    optimizer_class : type
        A subclass of `torch.optim.Optimizer` (or a function of parameters and options that makes one) whose step needs
        no closure.
    **options
        Of the optimiser; ``lr`` may also be a function of the number of the step.

    Returns
    -------
    Rule
        Needs `params`. One update is ``params_next - params`` of the optimiser, bit by bit; the sum ``params + update``
        rounds once more, so that parameters along a run agree with a native one to rounding.

    Raises
    ------
    ImportError
        PyTorch is not installed: ``pip install "steepest[torch]"``.
    TypeError
        Not callable.

    Notes
    -----
    Cost: that of the optimiser, making it, and a copy of its state at each step: to train large networks track the
    optimiser itself by `steepest.torch.track`.

    Examples
    --------
    >>> import torch  # doctest: +SKIP
    >>> rule = rules.from_torch(torch.optim.AdamW, lr=1e-3)  # doctest: +SKIP
    """
    _torch()
    if not callable(optimizer_class):
        raise TypeError(f"expected a class of optimisers such as torch.optim.Adam, got {optimizer_class!r}")
    return _Torch(optimizer_class, options)


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError('rules.from_torch needs PyTorch: pip install "steepest[torch]"') from error
    return torch


def _tensors(x: Any) -> list[Any]:
    """Copies of the arrays as tensors."""
    torch = _torch()

    def one(a: Any) -> Any:
        if is_torch(a):
            return a.detach().clone()
        if isinstance(a, np.ndarray) and a.dtype.name in ("float64", "float32", "float16"):
            return torch.tensor(a)
        return torch.tensor(flat(a).reshape(np.shape(a)), dtype=getattr(torch, str(a.dtype)))

    return [one(a) for a in (x.values() if isinstance(x, Mapping) else [x])]
