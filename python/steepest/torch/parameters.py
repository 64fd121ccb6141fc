"""What an optimiser moves: tensors with stable names, what is refused, and its decoupled weight decay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from steepest.arrays import Layout

__all__ = ["DecayNorms", "TrackedParameters", "decay_norms", "held_by", "tracked_parameters"]

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Their weight decay shrinks the parameters by the factor 1 - lr * weight_decay, whatever the flags of the group.
_DECOUPLED = ("AdamW", "Muon", "Adafactor")


@dataclass(frozen=True)
class TrackedParameters:
    """The parameters that an optimiser trains.

    Attributes
    ----------
    names : tuple of str
        One for each block.
    tensors : list of Parameter
        In the order of the optimiser's groups.
    groups : list of int
        The group of each.
    frozen : list of Tensor
        Held by the optimiser too, but they do not require a gradient.
    held : int
        How many parameters the optimiser held.
    """

    names: tuple[str, ...]
    tensors: list[torch.Tensor]
    groups: list[int]
    frozen: list[torch.Tensor]
    held: int

    @property
    def layout(self) -> Layout:
        """Names and shapes."""
        return Layout(self.names, tuple(tuple(p.shape) for p in self.tensors))


def tracked_parameters(optimizer: torch.optim.Optimizer, model: torch.nn.Module | None) -> TrackedParameters:
    """Name the parameters of an optimiser, and refuse what cannot be tracked.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Any.
    model : torch.nn.Module, optional
        Gives the names; without it those that the optimiser got (``torch.optim.SGD(model.named_parameters())``), else
        ``param_0``, ``param_1``, ... counted over all groups.

    Returns
    -------
    TrackedParameters
        A tied weight once, under its first name; frozen and empty parameters are left out.

    Raises
    ------
    TypeError
        Not an optimiser; complex, sparse, sharded or other parameters that are not plain floats.
    ValueError
        No parameter to track, or one that an optimiser steps during the backward pass.
    """
    if not hasattr(optimizer, "register_step_pre_hook") or not hasattr(optimizer, "param_groups"):
        raise TypeError(f"expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
    known = {}
    if model is not None:
        for name, p in model.named_parameters():
            known[id(p)] = name
    names: list[str] = []
    tensors: list[torch.Tensor] = []
    groups: list[int] = []
    frozen: list[torch.Tensor] = []
    seen: set[int] = set()
    count = 0
    for g, group in enumerate(optimizer.param_groups):
        given = group.get("param_names", [None] * len(group["params"]))
        for p, own in zip(group["params"], given, strict=True):
            # torch.compile wraps modules under this name.
            name = (known.get(id(p)) or own or f"param_{count}").replace("_orig_mod.", "")
            count += 1
            if id(p) in seen:
                continue
            seen.add(id(p))
            if not p.requires_grad or p.numel() == 0:
                if p.numel():
                    frozen.append(p)
                continue
            _refuse(p, name)
            names.append(name)
            tensors.append(p)
            groups.append(g)
    if not tensors:
        raise ValueError(f"expected the optimiser to hold parameters that require a gradient, got {count} that do not")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"expected different names for the parameters, got {twice!r} twice: pass model=")
    return TrackedParameters(tuple(names), tensors, groups, frozen, held_by(optimizer))


def held_by(optimizer: torch.optim.Optimizer) -> int:
    """How many parameters an optimiser holds, frozen ones too.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Any.

    Returns
    -------
    int
        Over all groups.
    """
    return sum(len(group["params"]) for group in optimizer.param_groups)


def _refuse(p: torch.Tensor, name: str) -> None:
    if hasattr(p, "placements"):
        raise TypeError(
            f"expected whole parameters, got {name!r} as a shard ({type(p).__name__}): inner products over processes "
            "are not supported"
        )
    if p.layout is not torch.strided or p.is_meta:
        raise TypeError(f"expected a dense parameter with memory, got {name!r} with {p.layout} on {p.device}")
    if p.is_complex():
        raise TypeError(f"expected real parameters, got {name!r} in {p.dtype}: train torch.view_as_real(x) instead")
    if p.dtype not in _FLOATS:
        raise TypeError(f"expected parameters in float64, float32, float16 or bfloat16, got {name!r} in {p.dtype}")
    if getattr(p, "_post_accumulate_grad_hooks", None):
        raise ValueError(
            f"the parameter {name!r} has a post-accumulate-grad hook: an optimiser that steps inside the backward pass "
            "frees gradients before a step is over and cannot be tracked. Call optimizer.step() in the loop; if the "
            "hook does something else, register it after track()"
        )


@dataclass(frozen=True)
class DecayNorms:
    """|lr weight_decay param| of each block, as numbers and tensors that are still on their devices.

    Attributes
    ----------
    factors : list of float, Tensor or None
        lr * weight_decay; None if it is unknown how the optimiser decays.
    norms : list of float, Tensor or None
        |param| before the step, where the factor is neither 0 nor unknown.
    """

    factors: list[Any]
    norms: list[Any]

    @property
    def none(self) -> bool:
        """Whether there is none in any block."""
        return all(_is_zero(factor) for factor in self.factors)

    def fetch(self) -> list[float]:
        """Bring the numbers to the host.

        Returns
        -------
        list of float
            One for each block, NaN if unknown.
        """
        return [
            float("nan") if factor is None else 0.0 if norm is None else abs(float(factor)) * float(norm)
            for factor, norm in zip(self.factors, self.norms, strict=True)
        ]


def decay_norms(
    optimizer: torch.optim.Optimizer,
    tracked: TrackedParameters,
    norms_of: Callable[[bool], Sequence[float]] | None = None,
) -> DecayNorms:
    """The decoupled weight decay that the coming step will apply.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Any; that of optimisers outside of torch.optim is known if their groups say ``decoupled_weight_decay`` or
        ``decoupled``, or if ``weight_decay`` is 0.
    tracked : TrackedParameters
        Of the optimiser.
    norms_of : callable, optional
        Called once with whether norms are needed: where a pass over all parameters finds them besides.

    Returns
    -------
    DecayNorms
        One entry for each block. Coupled weight decay (SGD, Adam) is part of the gradient that the rule uses, not of
        `.grad`, and counts as none.
    """
    factors = [_decay_factor(optimizer, group) for group in optimizer.param_groups]
    own = [factors[g] for g in tracked.groups]
    needed = [f is not None and not _is_zero(f) for f in own]
    if norms_of is not None:
        found = norms_of(any(needed))
        return DecayNorms(own, [norm if need else None for norm, need in zip(found or needed, needed, strict=True)])
    norms = [
        torch.linalg.vector_norm(p.detach(), dtype=torch.promote_types(p.dtype, torch.float32)) if need else None
        for need, p in zip(needed, tracked.tensors, strict=True)
    ]
    return DecayNorms(own, norms)


def _is_zero(factor: Any) -> bool:
    return isinstance(factor, float) and factor == 0.0


def _decay_factor(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> Any:
    kind = next(c for c in type(optimizer).__mro__ if c.__module__.startswith("torch.optim"))
    ours = kind is not torch.optim.Optimizer  # or derived from one of PyTorch's rules
    decay = group.get("weight_decay", 0.0 if ours else None)
    flags = [bool(group[key]) for key in ("decoupled_weight_decay", "decoupled") if key in group]
    if isinstance(decay, float | int) and decay == 0:
        return 0.0
    if decay is None or not (flags or ours):
        return None
    if not (any(flags) or kind.__name__ in _DECOUPLED):
        return 0.0
    lr = group.get("lr")
    if lr is None:
        return None
    factor = lr * decay
    return factor.detach().clone() if isinstance(factor, torch.Tensor) else float(factor)
