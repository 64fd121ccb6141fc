"""Energies that fall along rules with momentum, on the state of parameters, velocity and time (section 6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from steepest.pairs.descent_pair import DescentPair
from steepest.pairs.state_extended import State, state_extended

__all__ = ["Energy", "HeavyBall", "HeavyBallFlow", "NesterovFlow"]

LossFunction = Callable[[Any], Any]


@dataclass(frozen=True)
class Energy:
    """An energy of your own.

    Attributes
    ----------
    value : callable
        ``value(state)``, a number.
    gradient : callable
        ``gradient(state)``, a mapping with the names and shapes of the state.
    hessian_product : callable or None
        ``hessian_product(state, vector)``, the Hessian times a vector, all such mappings; for the method 'taylor'.
    """

    value: Callable[[Any], float]
    gradient: Callable[[Any], State]
    hessian_product: Callable[[Any, Any], State] | None = None


@dataclass(frozen=True)
class HeavyBallFlow:
    """The heavy-ball flow ``th'' + c th' = -grad L`` on the state (params, velocity), with an energy that falls.

    ``E = L + |v|^2/2 + e v.grad L`` with e = `mix`. For e = 0 it is only weakly effective: its fall c |v|^2 is zero
    where v is, though the gradient is not.

    Attributes
    ----------
    loss, grad : callable
        L and its gradient at parameters: an array, or a mapping name -> array.
    damping : float
        c, positive.
    mix : float
        e, at least 0.
    hvp : callable or None
        ``hvp(params, vector)``, the Hessian of L times a vector; needed for e > 0.

    Raises
    ------
    ValueError
        A number out of its range, or `mix` without `hvp`.

    Notes
    -----
    Section 6 (reconstructed). With every eigenvalue of the Hessian in [-l, l], E falls if 0 < e < 4c/(4l + c^2); see
    `mix_limit`, `descent_bound`.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest.pairs.energies import HeavyBallFlow
    >>> loss, grad, hvp = lambda x: 0.5 * float(x @ x), lambda x: x, lambda x, v: v
    >>> flow = HeavyBallFlow(loss, grad, damping=1.0, mix=0.4, hvp=hvp)
    >>> flow.mix_limit(smoothness=1.0)
    0.8
    >>> at_rest = {"params": np.array([3.0, 4.0]), "velocity": np.zeros(2)}
    >>> flow.pair(at_rest).align().status, HeavyBallFlow(loss, grad, damping=1.0).pair(at_rest).align().status
    ('ok', 'ascent')
    """

    loss: LossFunction
    grad: LossFunction
    damping: float
    mix: float = 0.0
    hvp: Callable[[Any, Any], Any] | None = None

    def __post_init__(self) -> None:
        _check(0.0 < self.damping < math.inf, "a positive damping", self.damping)
        _check(0.0 <= self.mix < math.inf, "a mix of at least 0", self.mix)
        if self.mix and self.hvp is None:
            raise ValueError(f"expected hvp for mix = {self.mix}: the gradient of v.grad L is the Hessian times v")

    def value(self, state: State) -> float:
        """E of a state."""
        params, v = _parts(state, "params", "velocity")
        found = float(self.loss(params)) + 0.5 * _dot(v, v)
        return found + self.mix * _dot(v, self.grad(params)) if self.mix else found

    def gradient(self, state: State) -> dict[str, Any]:
        """``(grad L + e H v, v + e grad L)``."""
        params, v = _parts(state, "params", "velocity")
        g = self.grad(params)
        if self.hvp is None or not self.mix:
            return {"params": g, "velocity": v}
        return {"params": _sum((1.0, g), (self.mix, self.hvp(params, v))), "velocity": _sum((1.0, v), (self.mix, g))}

    def rate(self, state: State) -> dict[str, Any]:
        """``dx/dt = (v, -c v - grad L)``."""
        params, v = _parts(state, "params", "velocity")
        return {"params": v, "velocity": _sum((-self.damping, v), (-1.0, self.grad(params)))}

    def pair(self, state: State) -> DescentPair:
        """The pair of `gradient` and `rate`."""
        return state_extended(self.gradient(state), self.rate(state))

    def descent(self, state: State) -> float:
        """``-dE/dt = c |v|^2 - e v.Hv + e c v.grad L + e |grad L|^2``."""
        params, v = _parts(state, "params", "velocity")
        found = self.damping * _dot(v, v)
        if self.hvp is None or not self.mix:
            return found
        g = self.grad(params)
        return found + self.mix * (_dot(g, g) + self.damping * _dot(v, g) - _dot(v, self.hvp(params, v)))

    def mix_limit(self, smoothness: float) -> float:
        """``4c/(4l + c^2)``: for 0 < e below it E falls, for every loss whose Hessian has a norm of at most l.

        Parameters
        ----------
        smoothness : float
            l, at least 0.

        Returns
        -------
        float
            Positive.
        """
        _check(0.0 <= smoothness < math.inf, "a smoothness of at least 0", smoothness)
        return 4.0 * self.damping / (4.0 * smoothness + self.damping**2)

    def descent_bound(self, state: State, smoothness: float) -> float:
        """A lower bound of `descent` that knows only the norm of the Hessian.

        Parameters
        ----------
        state : mapping
            Parameters and velocity.
        smoothness : float
            l, the largest norm of the Hessian.

        Returns
        -------
        float
            ``(c - e l) |v|^2 - e c |v| |grad L| + e |grad L|^2`` (derived); positive for 0 < e < `mix_limit` unless
            both v and grad L are zero.
        """
        params, v = _parts(state, "params", "velocity")
        g = self.grad(params)
        c, e, vv, gg = self.damping, self.mix, _dot(v, v), _dot(g, g)
        return (c - e * smoothness) * vv - e * c * math.sqrt(vv) * math.sqrt(gg) + e * gg


@dataclass(frozen=True)
class HeavyBall:
    """Gradient descent with momentum: ``v+ = mu v - h grad L(th), th+ = th + v+``, with an energy that falls.

    ``E = L + (mu / 2h) |v|^2``, with v the last displacement of the parameters (not the momentum buffer of some
    libraries, which is -v/h).

    Attributes
    ----------
    loss, grad : callable
        L and its gradient at parameters: an array, or a mapping name -> array.
    lr : float
        h, positive.
    momentum : float
        mu in [0, 1).
    hvp : callable or None
        ``hvp(params, vector)``, the Hessian of L times a vector; for `hessian_product` alone.

    Raises
    ------
    ValueError
        A number out of its range.

    Notes
    -----
    Section 6 (reconstructed): if grad L is Lipschitz with constant l, E falls by at least ``[(1-mu)/h - l/2] |v+|^2``
    over a step, so it falls for h < 2 (1-mu)/l. The limit is sharp (derived): with curvature l along v and v+ = v, that
    is th - th* = -(1-mu)/(h l) v, the fall is exactly the bound.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest.pairs.energies import HeavyBall
    >>> rule = HeavyBall(lambda x: 0.5 * float(x @ x), lambda x: x, lr=0.1, momentum=0.9)
    >>> round(rule.lr_limit(smoothness=1.0), 12)
    0.2
    """

    loss: LossFunction
    grad: LossFunction
    lr: float
    momentum: float
    hvp: Callable[[Any, Any], Any] | None = None

    def __post_init__(self) -> None:
        _check(0.0 < self.lr < math.inf, "a positive lr", self.lr)
        _check(0.0 <= self.momentum < 1.0, "a momentum in [0, 1)", self.momentum)

    def value(self, state: State) -> float:
        """E of a state."""
        params, v = _parts(state, "params", "velocity")
        return float(self.loss(params)) + 0.5 * self.momentum / self.lr * _dot(v, v)

    def gradient(self, state: State) -> dict[str, Any]:
        """``(grad L, (mu/h) v)``."""
        params, v = _parts(state, "params", "velocity")
        return {"params": self.grad(params), "velocity": _sum((self.momentum / self.lr, v))}

    def hessian_product(self, state: State, vector: State) -> dict[str, Any]:
        """``(H a, (mu/h) b)`` for a vector (a, b) over parameters and velocity.

        Parameters
        ----------
        state, vector : mapping
            Parameters and velocity.

        Returns
        -------
        dict
            Of the same names.

        Raises
        ------
        ValueError
            The rule was made without `hvp`.
        """
        if self.hvp is None:
            raise ValueError("expected a HeavyBall with hvp for products with the Hessian of its energy")
        params, _ = _parts(state, "params", "velocity")
        a, b = _parts(vector, "params", "velocity")
        return {"params": self.hvp(params, a), "velocity": _sum((self.momentum / self.lr, b))}

    def step(self, state: State) -> dict[str, Any]:
        """The state after one step."""
        params, v = _parts(state, "params", "velocity")
        v_next = _sum((self.momentum, v), (-self.lr, self.grad(params)))
        return {"params": _sum((1.0, params), (1.0, v_next)), "velocity": v_next}

    def lr_limit(self, smoothness: float) -> float:
        """``2 (1-mu)/l``: for h below it E falls at every step, for every loss with an l-Lipschitz gradient.

        Parameters
        ----------
        smoothness : float
            l, positive.

        Returns
        -------
        float
            Positive.
        """
        _check(0.0 < smoothness < math.inf, "a positive smoothness", smoothness)
        return 2.0 * (1.0 - self.momentum) / smoothness

    def descent_bound(self, state: State, smoothness: float) -> float:
        """``[(1-mu)/h - l/2] |v+|^2``: by how much E falls at least over the step from a state.

        Parameters
        ----------
        state : mapping
            Parameters and velocity before the step.
        smoothness : float
            l, the Lipschitz constant of grad L.

        Returns
        -------
        float
            Negative for h above `lr_limit`: then it promises nothing.
        """
        v_next = self.step(state)["velocity"]
        return ((1.0 - self.momentum) / self.lr - 0.5 * smoothness) * _dot(v_next, v_next)


@dataclass(frozen=True)
class NesterovFlow:
    """Nesterov's flow ``th'' + (3/t) th' + grad L = 0`` on the state (params, velocity, time), t > 0.

    ``E = t^2 (L - L*) + 2 |th - th* + (t/2) v|^2``, which falls for convex L; it depends on time, so time is a part of
    the state.

    Attributes
    ----------
    loss, grad : callable
        L, convex, and its gradient at parameters: an array, or a mapping name -> array.
    minimizer : array or mapping
        th*.

    Notes
    -----
    Section 6 (reconstructed). ``-dE/dt = 2t [grad L.(th - th*) - (L - L*)]`` (derived), at least 0 for convex L, and
    positive for strictly convex L away from th*. From E it follows that ``L - L* <= E(t0)/t^2``.

    References
    ----------
    Su, Boyd and Candes, J. Mach. Learn. Res. 17 (2016) 1.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest.pairs.energies import NesterovFlow
    >>> flow = NesterovFlow(lambda x: 0.5 * float(x @ x), lambda x: x, minimizer=np.zeros(2))
    >>> state = {"params": np.array([3.0, 4.0]), "velocity": np.zeros(2), "time": 1.0}
    >>> flow.descent(state), flow.pair(state).align().inner_product
    (25.0, -25.0)
    """

    loss: LossFunction
    grad: LossFunction
    minimizer: Any

    def _state(self, state: State) -> tuple[Any, Any, float, Any]:
        """Parameters, velocity, time, and th - th* + (t/2) v."""
        params, v, time = _parts(state, "params", "velocity", "time")
        t = float(time)
        _check(0.0 < t < math.inf, "a positive time in the state", t)
        return params, v, t, _sum((1.0, params), (-1.0, self.minimizer), (0.5 * t, v))

    def _excess(self, params: Any) -> float:
        return float(self.loss(params)) - float(self.loss(self.minimizer))

    def value(self, state: State) -> float:
        """E of a state."""
        params, _, t, w = self._state(state)
        return t * t * self._excess(params) + 2.0 * _dot(w, w)

    def gradient(self, state: State) -> dict[str, Any]:
        """``(t^2 grad L + 4 w, 2 t w, 2 t (L - L*) + 2 w.v)`` with w = th - th* + (t/2) v."""
        params, v, t, w = self._state(state)
        return {
            "params": _sum((t * t, self.grad(params)), (4.0, w)),
            "velocity": _sum((2.0 * t, w)),
            "time": np.asarray(2.0 * t * self._excess(params) + 2.0 * _dot(w, v)),
        }

    def rate(self, state: State) -> dict[str, Any]:
        """``dx/dt = (v, -(3/t) v - grad L, 1)``."""
        params, v, t, _ = self._state(state)
        return {"params": v, "velocity": _sum((-3.0 / t, v), (-1.0, self.grad(params))), "time": np.asarray(1.0)}

    def pair(self, state: State) -> DescentPair:
        """The pair of `gradient` and `rate`."""
        return state_extended(self.gradient(state), self.rate(state))

    def descent(self, state: State) -> float:
        """``-dE/dt = 2t [grad L.(th - th*) - (L - L*)]``."""
        params, _, t, _ = self._state(state)
        away = _sum((1.0, params), (-1.0, self.minimizer))
        return 2.0 * t * (_dot(self.grad(params), away) - self._excess(params))


def _check(valid: bool, expected: str, got: float) -> None:
    if not valid:
        raise ValueError(f"expected {expected}, got {got}")


def _parts(state: State, *names: str) -> tuple[Any, ...]:
    if not isinstance(state, Mapping):
        raise TypeError(f"expected a state with the names {', '.join(names)}, got {type(state).__name__}")
    if set(state) != set(names):
        raise ValueError(f"expected a state with the names {', '.join(names)}, got {', '.join(map(str, state))}")
    return tuple(state[name] for name in names)


def _sum(*terms: tuple[float, Any]) -> Any:
    """Linear combination of arrays, or of mappings of arrays, in their own library."""
    first = terms[0][1]
    if isinstance(first, Mapping):
        return {key: _sum(*[(c, x[key]) for c, x in terms]) for key in first}
    total = terms[0][0] * first
    for c, x in terms[1:]:
        total = total + c * x
    return total


def _dot(a: Any, b: Any) -> float:
    if isinstance(a, Mapping):
        return sum(_dot(a[key], b[key]) for key in a)
    return float((a * b).sum())
