"""The gradient on a fixed batch, without a trace in the training: generators, buffers, modes and .grad stay."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from steepest.torch.parameters import TrackedParameters

__all__ = ["Evaluation"]


class Evaluation:
    """Loss and gradient of a callable at the present parameters.

    Parameters
    ----------
    evaluate : callable
        Without arguments; returns the loss, a tensor with a graph, or (loss, gradients), the latter a mapping by the
        names of the blocks or a sequence in their order, None where there is none.
    model : torch.nn.Module, optional
        Whose buffers, modes and `.grad` are put back.
    tracked : TrackedParameters
        With respect to which the gradient is taken.
    """

    def __init__(self, evaluate: Callable[[], Any], model: torch.nn.Module | None, tracked: TrackedParameters) -> None:
        if not callable(evaluate):
            raise TypeError(f"expected evaluate to be callable without arguments, got {type(evaluate).__name__}")
        self._evaluate, self._model, self._tracked = evaluate, model, tracked

    def __call__(self) -> tuple[Any, list[torch.Tensor | None]]:
        """Evaluate.

        Returns
        -------
        loss : Tensor or float
            Detached.
        grads : list of Tensor or None
            One for each block.

        Raises
        ------
        TypeError
            The callable returned something else.
        ValueError
            A loss without a graph, or gradients of another number or shape.
        """
        tracked = self._tracked
        with _generators(), _state(self._model, tracked), torch.inference_mode(False), torch.enable_grad():
            found = self._evaluate()
            if isinstance(found, tuple) and len(found) == 2:
                loss, grads = found[0], self._ordered(found[1])
            else:
                loss, grads = found, self._differentiated(found)
        if isinstance(loss, torch.Tensor):
            loss = loss.detach()
            if loss.numel() != 1:
                raise ValueError(f"expected evaluate to return one loss, got shape {tuple(loss.shape)}")
        return loss, grads

    def _differentiated(self, loss: Any) -> list[torch.Tensor | None]:
        if not isinstance(loss, torch.Tensor):
            raise TypeError(f"expected evaluate to return a tensor or (loss, gradients), got {type(loss).__name__}")
        if loss.numel() != 1 or not loss.requires_grad:
            raise ValueError(
                "expected evaluate to return one loss that depends on the parameters, got a tensor of shape "
                f"{tuple(loss.shape)} with requires_grad={loss.requires_grad}: leave out no_grad() and detach()"
            )
        return list(torch.autograd.grad(loss.reshape(()), self._tracked.tensors, allow_unused=True))

    def _ordered(self, grads: Any) -> list[torch.Tensor | None]:
        names, tensors = self._tracked.names, self._tracked.tensors
        if isinstance(grads, Mapping):
            unknown = [name for name in grads if name not in names]
            if unknown:
                raise ValueError(f"expected gradients by the names {list(names)[:8]}, got {unknown[:8]}")
            grads = [grads.get(name) for name in names]
        if not isinstance(grads, Sequence) or len(grads) != len(tensors):
            raise ValueError(
                f"expected evaluate to return one gradient for each of {len(tensors)} parameters, got "
                f"{len(grads) if isinstance(grads, Sequence) else type(grads).__name__}"
            )
        for name, p, grad in zip(names, tensors, grads, strict=True):
            if grad is not None and (not isinstance(grad, torch.Tensor) or grad.shape != p.shape):
                raise ValueError(
                    f"expected the gradient of {name!r} to be a tensor of shape {tuple(p.shape)}, got "
                    f"{tuple(grad.shape) if isinstance(grad, torch.Tensor) else type(grad).__name__}"
                )
        return [None if grad is None else grad.detach() for grad in grads]


@contextlib.contextmanager
def _generators() -> Iterator[None]:
    """PyTorch's generators start from one seed, so that dropout is the same each time; all global ones are put back."""
    devices = [
        module
        for name in ("cuda", "xpu", "mps")
        if (module := getattr(torch, name, None)) is not None and module.is_available() and _initialized(module)
    ]
    host, numpy, python = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002 # saved only
    states = [_device_state(module) for module in devices]
    try:
        torch.default_generator.manual_seed(0)
        for module in devices:
            getattr(module, "manual_seed_all", module.manual_seed)(0)
        yield
    finally:
        torch.set_rng_state(host)
        np.random.set_state(numpy)  # noqa: NPY002
        random.setstate(python)
        for module, state in zip(devices, states, strict=True):
            getattr(module, "set_rng_state_all", module.set_rng_state)(state)


def _initialized(module: Any) -> bool:
    """Seeding a device that is not in use yet would only be remembered, for the training."""
    return bool(getattr(module, "is_initialized", lambda: True)())


def _device_state(module: Any) -> Any:
    return getattr(module, "get_rng_state_all", module.get_rng_state)()


@contextlib.contextmanager
def _state(model: torch.nn.Module | None, tracked: TrackedParameters) -> Iterator[None]:
    """`.grad` is taken away for the time, so that a backward pass in between leaves it alone; modes and buffers too."""
    modules = [] if model is None else list(model.modules())
    modes = [module.training for module in modules]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    params = {id(p): p for p in [*tracked.tensors, *([] if model is None else model.parameters())]}
    grads = [(p, p.grad) for p in params.values()]
    try:
        for p, _ in grads:
            p.grad = None
        yield
    finally:
        for p, grad in grads:
            p.grad = grad
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        with torch.no_grad():
            for module, name, buffer, copy in buffers:
                module._buffers[name] = buffer
                if not _same_bits(buffer, copy):
                    buffer.copy_(copy)


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether nothing needs to be put back; a buffer that is part of a graph must not be touched without need."""
    return a.shape == b.shape and bool(torch.equal(a, b))
