"""Any optax transformation as a rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from steepest.arrays import ArrayOrMapping, is_jax
from steepest.rules.leaves import each, exactly, flat, in_library_of, plain
from steepest.rules.rule import Rule

__all__ = ["OptaxState", "from_optax"]


@dataclass(frozen=True)
class OptaxState:
    """State of a rule made by `from_optax`.

    Attributes
    ----------
    step : int
        Updates made so far.
    inner : object
        The transformation's own.
    template : array or dict
        Zeros of the parameters' shapes.
    """

    step: int
    inner: Any
    template: Any


class _Optax(Rule):
    no_metric = (
        "what an optax transformation does is not known from outside; steepest.metric(grad, update) is one step's"
    )

    def __init__(self, transformation: Any) -> None:
        self.transformation = transformation

    def init(self, params: ArrayOrMapping) -> OptaxState:
        params = plain(params)
        with _precision(params):
            inner = self.transformation.init(_to_jax(params))
        return OptaxState(0, inner, each(lambda a: np.broadcast_to(np.float64(0.0), np.shape(a)), params))

    def update(
        self, grad: ArrayOrMapping, state: OptaxState, params: ArrayOrMapping | None = None, **data: Any
    ) -> tuple[Any, OptaxState]:
        grad = exactly(grad, "grad", state.template)
        with _precision(grad):
            given = None if params is None else _to_jax(exactly(params, "params", state.template))
            found, inner = self.transformation.update(_to_jax(grad), state.inner, given, **data)
        return in_library_of(found, grad), OptaxState(state.step + 1, inner, state.template)


def from_optax(transformation: Any) -> Rule:
    """An optax transformation as a rule on arrays of any library.

    Parameters
    ----------
    transformation : optax.GradientTransformation
        Any; one with extra arguments takes them by name in `Rule.update`.

    Returns
    -------
    Rule
        With the transformation's updates, in the element type of the gradient. Float64 is computed in float64 whether
        or not JAX's default is; float32 is what optax gives natively, bit by bit.

    Raises
    ------
    ImportError
        optax is not installed: ``pip install "steepest[jax]"``.
    TypeError
        Not a gradient transformation.

    Notes
    -----
    Cost: that of the transformation, and two copies.

    Examples
    --------
    >>> import optax  # doctest: +SKIP
    >>> rule = rules.from_optax(optax.adam(1e-3))  # doctest: +SKIP
    """
    _jax()
    if not (callable(getattr(transformation, "init", None)) and callable(getattr(transformation, "update", None))):
        raise TypeError(f"expected an optax gradient transformation, got {type(transformation).__name__}")
    return _Optax(transformation)


def _jax() -> Any:
    try:
        import jax
        import optax  # noqa: F401
    except ImportError as error:
        raise ImportError('rules.from_optax needs jax and optax: pip install "steepest[jax]"') from error
    return jax


def _precision(x: Any) -> Any:
    """A context in which JAX computes in float64 if an array of `x` has it."""
    jax = _jax()
    arrays = x.values() if isinstance(x, dict) else [x]
    wide = jax.config.jax_enable_x64 or any("float64" in str(a.dtype) for a in arrays)
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(wide)
    from jax.experimental import enable_x64

    return enable_x64(wide)


def _to_jax(x: Any) -> Any:
    import jax.numpy as jnp

    def one(a: Any) -> Any:
        if is_jax(a):
            return a
        if isinstance(a, np.ndarray):
            return jnp.array(a)  # a copy: the state must not see what the user does to the array
        return jnp.array(flat(a).reshape(np.shape(a)), dtype=str(a.dtype).removeprefix("torch."))

    return each(one, x)
