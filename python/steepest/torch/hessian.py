"""Products with the Hessian of a PyTorch loss, by differentiating twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

__all__ = ["hessian_vector_product"]


def hessian_vector_product(
    loss: Callable[..., Any], params: Any = None, *, model: torch.nn.Module | None = None
) -> Callable[..., Any]:
    """Products of the Hessian of a loss with vectors, for `steepest.pairs.discrete` and `steepest.stability`.

    Parameters
    ----------
    loss : callable
        ``loss(params)``, a tensor of one element, for params that are a tensor or a mapping name -> tensor. With
        `model` without arguments: it evaluates the model, whose parameters are exchanged meanwhile. Deterministic: the
        same batch, no dropout.
    params : tensor, array or mapping, optional
        Where, if it is always the same point; not copied.
    model : torch.nn.Module, optional
        What `loss` evaluates. Params are then mappings with names of ``model.named_parameters()``; those that are
        missing stay as they are.

    Returns
    -------
    callable
        ``hvp(params, vector)``, or ``hvp(vector)`` if `params` was given. A vector has the structure of params, or is
        flat, of shape (n,), in the order of the mapping; the product has the structure of the vector, tensors of the
        dtype of params on the vector's device, and NumPy arrays in float64 for NumPy arrays.

    Raises
    ------
    TypeError
        Not callable; later if the loss is no tensor.
    ValueError
        Later: the loss has several elements or does not depend on params; names or shapes differ.

    See Also
    --------
    steepest.stability.finite_difference_hvp : From a gradient alone, of any library.
    torch.func.functional_call : For a loss of params that evaluates a module.

    Notes
    -----
    Reverse mode twice, exact to rounding in the dtype of params: about three gradients for each product, O(n) memory
    besides the graph. Operations without a second derivative raise PyTorch's own error. Arrays and tensors are detached
    first, on the device of the model if there is one. A model in training mode changes its buffers in each evaluation,
    so use ``model.eval()`` where it has batch normalisation.

    Examples
    --------
    >>> import torch
    >>> from steepest.torch import hessian_vector_product
    >>> hvp = hessian_vector_product(lambda x: (x**4).sum())
    >>> hvp(torch.tensor([1.0, 2.0]), torch.tensor([1.0, -1.0]))
    tensor([ 12., -48.])

    Of a model, whose parameters a closure finds by itself:

    >>> model, x = torch.nn.Linear(2, 1, bias=False), torch.eye(2)
    >>> hvp = hessian_vector_product(lambda: (model(x) ** 2).sum(), model=model)
    >>> hvp({"weight": torch.zeros(1, 2)}, {"weight": torch.tensor([[1.0, 3.0]])})
    {'weight': tensor([[2., 6.]])}
    """
    if not callable(loss):
        raise TypeError(f"expected a callable loss, got {type(loss).__name__}")
    function = loss if model is None else _exchanging(loss, model)
    device = next((p.device for p in model.parameters()), None) if model is not None else None

    def hvp(point: Any, vector: Any) -> Any:
        names = list(point) if isinstance(point, Mapping) else None
        arrays = [point] if names is None else [point[name] for name in names]
        leaves = [_tensor(x).detach().to(device).requires_grad_() for x in arrays]
        directions = _directions(vector, names, leaves)
        with torch.enable_grad():
            value = function(leaves[0] if names is None else dict(zip(names, leaves, strict=True)))
            _check(value)
            slopes = torch.autograd.grad(value.reshape(()), leaves, create_graph=True, allow_unused=True)
        # A loss that is linear in a parameter has a gradient without a graph.
        curved = [(g, v) for g, v in zip(slopes, directions, strict=True) if g is not None and g.requires_grad]
        products: Any = [None] * len(leaves)
        if curved:
            gradient, along = zip(*curved, strict=True)
            products = torch.autograd.grad(gradient, leaves, along, allow_unused=True)
        found = [torch.zeros_like(x) if p is None else p for x, p in zip(leaves, products, strict=True)]
        return _as_given([p.detach() for p in found], names, vector)

    return hvp if params is None else lambda vector: hvp(params, vector)


def _exchanging(loss: Callable[[], Any], model: torch.nn.Module) -> Callable[[Mapping[str, Any]], Any]:
    """A closure over a model as a function of its parameters."""

    class Closure(torch.nn.Module):  # type: ignore[misc]  # torch is not analysed
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> Any:
            return loss()

    closure, known = Closure(), dict(model.named_parameters())

    def function(params: Any) -> Any:
        unknown = [name for name in params if name not in known] if isinstance(params, Mapping) else ["(an array)"]
        if unknown:
            raise ValueError(
                f"expected params with names of the model's parameters, {list(known)[:8]}, got {unknown[:8]}"
            )
        return torch.func.functional_call(closure, {f"model.{name}": x for name, x in params.items()}, ())

    return function


def _tensor(x: Any) -> torch.Tensor:
    return x if isinstance(x, torch.Tensor) else torch.as_tensor(x)


def _check(value: Any) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"expected the loss to be a tensor, got {type(value).__name__}")
    if value.numel() != 1:
        raise ValueError(f"expected a loss of one element, got shape {tuple(value.shape)}")
    if not value.requires_grad:
        raise ValueError("expected a loss that depends on params through differentiable operations: it has no graph")


def _directions(vector: Any, names: list[Any] | None, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    """The vector as one tensor for each leaf."""
    if isinstance(vector, Mapping):
        if names is None or set(vector) != set(names):
            raise ValueError(f"expected a vector with the names of params, {names}, got {list(vector)}")
        parts = [_tensor(vector[name]) for name in names]
    else:
        whole, sizes = _tensor(vector), [x.numel() for x in leaves]
        if names is None and whole.shape == leaves[0].shape:
            parts = [whole]
        elif whole.shape == (sum(sizes),):
            parts = [p.reshape(x.shape) for p, x in zip(whole.split(sizes), leaves, strict=True)]
        else:
            raise ValueError(
                f"expected a vector of the structure of params or of shape ({sum(sizes)},), got shape "
                f"{tuple(whole.shape)}"
            )
    for p, x in zip(parts, leaves, strict=True):
        if p.shape != x.shape:
            raise ValueError(f"expected a vector with the shapes of params, {tuple(x.shape)}, got {tuple(p.shape)}")
    return [p.detach().to(x) for p, x in zip(parts, leaves, strict=True)]


def _as_given(products: list[torch.Tensor], names: list[Any] | None, vector: Any) -> Any:
    """The product in the structure and library of the vector."""

    def one(product: torch.Tensor, like: Any) -> Any:
        return product.to(like.device) if isinstance(like, torch.Tensor) else product.double().cpu().numpy()

    if isinstance(vector, Mapping) and names is not None:
        found = dict(zip(names, products, strict=True))
        return {name: one(found[name], like) for name, like in vector.items()}
    shape = vector.shape if isinstance(vector, torch.Tensor) else torch.as_tensor(vector).shape
    return one(torch.cat([p.reshape(-1) for p in products]).reshape(shape), vector)
