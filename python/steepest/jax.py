"""Products with the Hessian of a JAX loss, forward over reverse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

try:
    import jax
except ModuleNotFoundError as error:
    if error.name == "jax":
        raise ImportError('steepest.jax needs JAX: pip install "steepest[jax]"') from error
    raise

__all__ = ["hessian_vector_product"]


def hessian_vector_product(loss: Callable[[Any], Any], params: Any = None, *, jit: bool = True) -> Callable[..., Any]:
    """Products of the Hessian of a loss with vectors, for `steepest.pairs.discrete` and `steepest.stability`.

    Parameters
    ----------
    loss : callable
        ``loss(params)``, a scalar, for params that are an array or a pytree of arrays; deterministic.
    params : array or pytree, optional
        Where, if it is always the same point; not copied.
    jit : bool
        Whether to compile, once for each structure and shape; False for a loss that looks at values.

    Returns
    -------
    callable
        ``hvp(params, vector)``, or ``hvp(vector)`` if `params` was given. A vector has the structure of params; of an
        array or a mapping name -> array it may be flat, of shape (n,), in the order of the mapping. The product has the
        structure of the vector: JAX arrays of the dtype of params, which is float32 unless JAX has 64 bits enabled.

    Raises
    ------
    TypeError
        Not callable.
    ValueError
        Later: structures or shapes differ.

    See Also
    --------
    steepest.stability.finite_difference_hvp : From a gradient alone, of any library.

    Notes
    -----
    ``jvp(grad(loss))``, exact to rounding: about three gradients for each product, O(n) memory besides.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from steepest.jax import hessian_vector_product
    >>> hvp = hessian_vector_product(lambda x: (x**4).sum())
    >>> hvp(jnp.array([1.0, 2.0]), jnp.array([1.0, -1.0])).tolist()
    [12.0, -48.0]
    """
    if not callable(loss):
        raise TypeError(f"expected a callable loss, got {type(loss).__name__}")

    def product(point: Any, vector: Any) -> Any:
        return jax.jvp(jax.grad(loss), (point,), (vector,))[1]

    compiled = jax.jit(product) if jit else product

    def hvp(point: Any, vector: Any) -> Any:
        names = list(point) if isinstance(point, Mapping) else None
        point = jax.tree.map(jax.numpy.asarray, point if names is None else dict(point))
        if isinstance(vector, Mapping):
            found = compiled(point, _like(dict(vector), point))
            return {name: found[name] for name in vector}
        if names is not None:
            found = compiled(point, _like(_cut(vector, names, point), point))
            return jax.numpy.concatenate([found[name].ravel() for name in names])
        if hasattr(point, "shape") and point.shape != (point.size,) == np.shape(vector):
            return compiled(point, _like(jax.numpy.reshape(vector, point.shape), point)).ravel()
        return compiled(point, _like(vector, point))

    return hvp if params is None else lambda vector: hvp(params, vector)


def _cut(vector: Any, names: list[Any], point: Mapping[Any, Any]) -> dict[Any, Any]:
    """A flat vector as a mapping; the order of names is the user's, since that of a pytree is sorted."""
    n = sum(x.size for x in jax.tree.leaves(point))
    if any(isinstance(x, Mapping) for x in point.values()) or np.shape(vector) != (n,):
        raise ValueError(
            f"expected a vector of the structure of params, or of shape ({n},) for a mapping name -> array, got an "
            f"array of shape {np.shape(vector)}"
        )
    parts = np.split(np.asarray(vector), np.cumsum([point[name].size for name in names])[:-1])
    return {name: part.reshape(point[name].shape) for name, part in zip(names, parts, strict=True)}


def _like(vector: Any, point: Any) -> Any:
    """The vector in the dtypes of params, as tangents have to be."""
    given, wanted = jax.tree.structure(vector), jax.tree.structure(point)
    if given != wanted:
        raise ValueError(f"expected a vector of the structure of params, {wanted}, got {given}")

    def one(p: Any, v: Any) -> Any:
        if np.shape(v) != p.shape:
            raise ValueError(f"expected a vector with the shapes of params, {p.shape}, got {np.shape(v)}")
        return jax.numpy.asarray(v, p.dtype)

    return jax.tree.map(one, point, vector)
