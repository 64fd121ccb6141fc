"""Pairs of rules with internal state: the loss is an energy of parameters, velocities, moments, time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from steepest.pairs.continuous import continuous
from steepest.pairs.descent_pair import DescentPair
from steepest.pairs.discrete import Method, discrete

__all__ = ["StateEnergy", "state_extended", "state_extended_step"]

State = Mapping[str, Any]


class StateEnergy(Protocol):
    """What `state_extended_step` asks of an energy; `steepest.pairs.energies` has some, and one of your own callables.

    Methods
    -------
    value(state)
        The energy, a number.
    gradient(state)
        Its gradient, a mapping with the names and shapes of the state.

    Notes
    -----
    For the method 'taylor' also ``hessian_product(state, vector)``, the Hessian of the energy at a state times a
    vector, both mappings as the state.
    """

    @property
    def value(self) -> Callable[[Any], float]:
        """The energy of a state."""

    @property
    def gradient(self) -> Callable[[Any], State]:
        """The gradient of the energy at a state."""


def state_extended(state_grad: State, state_update: State) -> DescentPair:
    """The pair of a rule with internal state, in continuous time: ``dx/dt = state_update``, x all of the state.

    Parameters
    ----------
    state_grad : mapping name -> array, or name -> mapping name -> array
        Gradient of an energy E(x) of the whole state: parameters, velocity, moments, time. Arrays of any shape.
    state_update : mapping
        The rate of change of the state, of the same names and shapes.

    Returns
    -------
    DescentPair
        Of the two mappings, each as ONE vector; names of nested mappings are joined by "/".

    Raises
    ------
    ValueError
        Names or shapes differ.
    TypeError
        Not mappings, or an unsupported dtype or type.

    See Also
    --------
    state_extended_step : For one step of a rule in discrete time.
    steepest.pairs.energies : Energies of the heavy ball and of Nesterov's flow.

    Notes
    -----
    Section 6, "Higher order" (reconstructed): y = -grad E and g = dx/dt, so a metric of the whole state exists if and
    only if E falls to first order. The angle compares units: a velocity in other units of time turns it; give `align`
    and `metric` a `base` to fix them. Copies nothing.

    Examples
    --------
    The heavy ball x'' + x' = -x with E = (x^2 + v^2 + x v)/2, at x = 1 and v = 0, where x^2/2 + v^2/2 would not fall:

    >>> from steepest import pairs
    >>> from steepest.pairs.state_extended import state_extended
    >>> pair = state_extended({"params": [1.0], "velocity": [0.5]}, {"params": [0.0], "velocity": [-1.0]})
    >>> pair.align().status, pair.method
    ('ok', 'state-extended')
    """
    grad, update = _flat(state_grad, "state_grad"), _flat(state_update, "state_update")
    if set(grad) != set(update):
        raise ValueError(
            f"expected state_update to have the names of state_grad, {list(grad)}, got {list(update)}; a part of the "
            "state that does not change has an update of zeros"
        )
    try:
        pair = continuous(grad, update)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("update", "state_update").replace("grad", "state_grad")) from error
    return dataclasses.replace(pair, method="state-extended")


def state_extended_step(
    energy: StateEnergy, state: State, state_next: State, *, method: Method = "trapezoid", lr: float = 1.0
) -> DescentPair:
    """The pair of one step of a rule with internal state: a discrete gradient of an energy of the whole state.

    Parameters
    ----------
    energy : StateEnergy
        With ``value(state)`` and ``gradient(state)``, for example `steepest.pairs.energies.Energy`.
    state, state_next : mapping name -> array, or name -> mapping name -> array
        Before and after the step. The energy is given such mappings, with copies at other points.
    method : {'trapezoid', 'left', 'gonzalez', 'mean-value', 'itoh-abe', 'taylor'}
        As for `steepest.pairs.discrete`; 'taylor' needs an energy with `hessian_product`.
    lr : float
        The update is the change of the state over lr; it only rescales the metric.

    Returns
    -------
    DescentPair
        As of `steepest.pairs.discrete`: it has a metric if and only if the energy falls over the step.

    Raises
    ------
    ValueError
        As `steepest.pairs.discrete`; or 'taylor' with an energy that has no Hessian products.
    TypeError
        As `steepest.pairs.discrete`; or not mappings.

    See Also
    --------
    state_extended : In continuous time.

    Notes
    -----
    Sections 6 and 7 (reconstructed). Cost: two values of the energy and 2 gradients ('trapezoid'), 1 ('left',
    'gonzalez'), or as `steepest.pairs.discrete` says. With 'taylor', `steepest.stability.natural_form` writes the step
    with the gradient of the energy at its start.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest.pairs.energies import HeavyBall
    >>> from steepest.pairs.state_extended import state_extended_step
    >>> rule = HeavyBall(lambda x: 0.5 * float(x @ x), lambda x: x, lr=0.1, momentum=0.9)
    >>> state = {"params": np.array([1.0, 2.0]), "velocity": np.zeros(2)}
    >>> pair = state_extended_step(rule, state, rule.step(state))
    >>> pair.align().status, rule.value(rule.step(state)) < rule.value(state)
    ('ok', True)
    """
    before, after = _flat(state, "state"), _flat(state_next, "state_next")
    if set(before) != set(after):
        raise ValueError(f"expected state_next to have the names of state, {list(before)}, got {list(after)}")
    needed: dict[str, Any] = {"loss": energy.value(state), "loss_next": energy.value(state_next)}

    def gradient(flat: State) -> State:
        return _flat(energy.gradient(_nested(flat, state)), "the gradient of energy")

    if method in ("trapezoid", "left", "taylor"):
        needed["grad"] = _flat(energy.gradient(state), "the gradient of energy")
    if method == "trapezoid":
        needed["grad_next"] = _flat(energy.gradient(state_next), "the gradient of energy")
    if method in ("gonzalez", "mean-value"):
        needed["grad_fn"] = gradient
    if method == "itoh-abe":
        needed["loss_fn"] = lambda flat: energy.value(_nested(flat, state))
    if method == "taylor":
        product = getattr(energy, "hessian_product", None)
        if product is None:
            raise ValueError(
                "expected an energy with hessian_product(state, vector) for method 'taylor', got "
                f"{type(energy).__name__}"
            )
        needed["hvp"] = lambda flat, vector: _flat(
            product(_nested(flat, state), _nested(vector, state)), "the product with the Hessian of energy"
        )
    pair = discrete(before, after, **needed, method=method, lr=lr)
    return dataclasses.replace(pair, method=f"state-extended {method}")


def _flat(state: Any, name: str) -> dict[str, Any]:
    """Mappings in the state taken apart: "velocity/weights"."""
    if not isinstance(state, Mapping):
        raise TypeError(
            f"expected {name} to be a mapping such as {{'params': ..., 'velocity': ...}}, got {type(state).__name__}"
        )
    flat: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}/{inner}": x for inner, x in _flat(value, f"{name}[{key!r}]").items()}
        else:
            flat[str(key)] = value
    return flat


def _nested(flat: State, like: State, prefix: str = "") -> dict[str, Any]:
    """The inverse of `_flat`."""
    return {
        key: _nested(flat, value, f"{prefix}{key}/") if isinstance(value, Mapping) else flat[f"{prefix}{key}"]
        for key, value in like.items()
    }
