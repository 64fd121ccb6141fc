"""The optimal rule on a quadratic: feedback law, value, trajectories, and its metric."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from steepest.arrays import Layout
from steepest.metric import align
from steepest.metric import metric as metric_at_a_point
from steepest.metrics.dense import DenseMetric
from steepest.metrics.diagonal import DiagonalMetric
from steepest.metrics.interface import Metric
from steepest.navigation.losses import Quadratic, finite_array, product
from steepest.navigation.navigator import Navigator
from steepest.navigation.rates import decay_factor, integrated_decay
from steepest.recording import Recording, recording

if TYPE_CHECKING:
    from steepest.alignment import Alignment

__all__ = ["Modes", "Policy", "control_metric", "optimal_control"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Modes:
    """Jacobian ``-V diag(rates) W``, ``W = V^-1``, with real rates.

    Attributes
    ----------
    rates : ndarray, shape (n,)
        Of approach.
    V, W : ndarray of shape (n, n), or None
        None for the identity.
    """

    rates: Array
    V: Array | None = None
    W: Array | None = None

    def apply(self, factors: Array, x: Array) -> Array:
        """``V diag(factors) W x``, vectors along the last axis."""
        if self.V is None or self.W is None:
            return factors * x
        result: Array = (factors * (x @ self.W.T)) @ self.V.T
        return result


@dataclass(frozen=True, eq=False, repr=False)
class Policy:
    """The optimal feedback ``theta' = A (theta - c) + v_c`` of a quadratic problem. Made by `Navigator.policy`.

    Attributes
    ----------
    navigator : Navigator
        The problem.
    S : ndarray, shape (n, n) or (n,)
        Curvature of the value function.
    jacobian : ndarray, shape (n, n) or (n,)
        A of the closed loop; (n,) is a diagonal.
    center, center_velocity, center_gradient : ndarray, shape (n,)
        A state c with its velocity and its grad V: the fixed point, with velocity zero, wherever there is one.
    center_cost : float
        gamma V(c); at a fixed point the cost per unit of time of staying there.
    modes : Modes or None
        Real eigenmodes of A, without drift or with diagonal drift.
    not_natural : str or None
        Why the rule is no natural gradient descent on L with one constant metric; None where it is.
    """

    navigator: Navigator
    S: Array
    jacobian: Array
    center: Array
    center_velocity: Array
    center_gradient: Array
    center_cost: float
    modes: Modes | None
    not_natural: str | None

    @property
    def loss(self) -> Quadratic:
        """The quadratic."""
        assert isinstance(self.navigator.loss, Quadratic)
        return self.navigator.loss

    @property
    def size(self) -> int:
        """Number of parameters n."""
        return self.loss.size

    @property
    def rates(self) -> NDArray[Any]:
        """Eigenvalues of -A, (n,), ascending by real part: rates of approach; with a drift they may be complex."""
        if self.modes is not None:
            return np.sort(self.modes.rates)
        values = -np.linalg.eigvals(self.jacobian)
        values = values[np.lexsort((values.imag, values.real))]
        return values.real if not np.iscomplex(values).any() else values

    @property
    def fixed_point(self) -> Array:
        """Where the rule comes to rest: mu without drift (section 13).

        Raises
        ------
        ValueError
            There is none.
        """
        if self.center_velocity.any():
            raise ValueError("the rule has no fixed point: its Jacobian is singular, and the drift carries it on")
        return self.center

    def velocity(self, theta: ArrayLike) -> Array:
        """``theta' = A theta + b`` at `theta` of shape (..., n)."""
        return product(self.jacobian, self._offset(theta)) + self.center_velocity

    def control(self, theta: ArrayLike) -> Array:
        """u at `theta` of shape (..., n): ``-eta G^-1 B^T grad V``, of shape (..., m)."""
        return optimal_control(self.navigator, self.value_gradient(theta))

    def value_gradient(self, theta: ArrayLike) -> Array:
        """grad V at `theta` of shape (..., n)."""
        return product(self.S, self._offset(theta)) + self.center_gradient

    def value(self, theta: ArrayLike, *, relative: bool = False) -> Any:
        """V: the least J from `theta`.

        Parameters
        ----------
        theta : array_like, shape (..., n)
            State.
        relative : bool
            V(theta) - V(c) instead, which is finite also where V is not.

        Returns
        -------
        float or ndarray
            Of shape (...). Infinite at gamma = 0 where the drift makes rest cost something: the rule then is the
            limit gamma -> 0.
        """
        offset = self._offset(theta)
        values = 0.5 * np.einsum("...i,...i->...", offset, product(self.S, offset)) + offset @ self.center_gradient
        if not relative and self.center_cost != 0.0:
            values = values + (self.center_cost / self.navigator.discount if self.navigator.discount > 0 else math.inf)
        return float(values) if np.ndim(values) == 0 else values

    def update(self, theta: ArrayLike, dt: float) -> Array:
        """The displacement over a time `dt`: ``-(I - e^{-R dt}) H^-1 grad L`` without drift (section 13, paper).

        Parameters
        ----------
        theta : array_like, shape (..., n)
            State.
        dt : float
            At least 0.

        Returns
        -------
        ndarray, shape (..., n)
            theta(dt) - theta, exact for any dt.

        Raises
        ------
        ValueError
            `dt` is negative or not finite.
        """
        if not 0.0 <= dt < math.inf:
            raise ValueError(f"expected dt to be at least 0 and finite, got {dt!r}")
        velocity = self.velocity(theta)
        if self.modes is not None:
            return self.modes.apply(integrated_decay(self.modes.rates, dt), velocity)
        return product(decay_factor(self.jacobian, dt), velocity)

    def trajectory(self, theta0: ArrayLike, t: ArrayLike) -> Array:
        """theta(t) from `theta0`: ``mu + e^{-R t} (theta0 - mu)`` without drift.

        Parameters
        ----------
        theta0 : array_like, shape (n,)
            State at time 0.
        t : array_like, shape (T,) or scalar
            Times, at least 0.

        Returns
        -------
        ndarray, shape (T, n) or (n,)
            States.

        Raises
        ------
        ValueError
            `theta0` is no single state; a time is negative or not finite.
        """
        offset = self._offset(theta0)
        times = np.asarray(t, dtype=np.float64)
        if offset.shape != (self.size,):
            raise ValueError(f"expected theta0 of shape ({self.size},), got {offset.shape}")
        if times.ndim > 1 or not (np.isfinite(times) & (times >= 0.0)).all():
            raise ValueError("expected t to be a time, or a list of times, finite and at least 0")
        if self.center_velocity.any():
            return np.array(
                [offset + self.center + self.update(theta0, float(s)) for s in np.atleast_1d(times)]
            ).reshape((*times.shape, self.size))
        if self.modes is not None:
            return self.center + self.modes.apply(np.exp(-times[..., None] * self.modes.rates), offset)
        powers = scipy.linalg.expm(self.jacobian * times[..., None, None])
        result: Array = self.center + powers @ offset
        return result

    def cost(self, theta0: ArrayLike, duration: float) -> float:
        """J spent by the rule until `duration`.

        Parameters
        ----------
        theta0 : array_like, shape (n,)
            State at time 0.
        duration : float
            T.

        Returns
        -------
        float
            The integral of the running cost from 0 to T.

        Notes
        -----
        Along the rule e^{-gamma t} V falls by exactly what is spent, so J(T) = V(theta0) - e^{-gamma T} V(theta(T))
        (derived; on a diagonal H it is the expression of the authors' code, section 12).
        """
        gamma = self.navigator.discount
        spent = self.value(theta0, relative=True) - math.exp(-gamma * duration) * self.value(
            self.trajectory(theta0, duration), relative=True
        )
        return float(spent + self.center_cost * integrated_decay(np.array(gamma), duration))

    def metric(self, theta: ArrayLike | None = None, *, dt: float | None = None) -> Metric:
        """The metric M with ``theta' = -M^-1 grad L``: ``M = G (R_G + gamma I)/(eta k)``.

        Parameters
        ----------
        theta : array_like, shape (n,), optional
            Instead of the constant metric of the rule: the condition-optimal metric at this state, which exists
            also with drift, wherever the rule descends.
        dt : float, optional
            Instead of the flow: of the finite step, ``update(theta, dt) = -M^-1 grad L``.

        Returns
        -------
        Metric
            Diagonal where the problem is.

        Raises
        ------
        ValueError
            The rule is no natural gradient descent with a constant metric (`not_natural` says why); it does not
            move along a flat direction; with `theta`, it does not descend there (`NotDescentError`).

        Notes
        -----
        Sections 12 and 13 (derived); the finite-step form is ``H (I - e^{-R dt})^-1`` (derived from the paper's rule).
        """
        if theta is not None:
            if dt is not None:
                raise ValueError("expected theta or dt, got both: at a state, take steepest.metric(grad, update)")
            at_state: Metric = metric_at_a_point(self.loss.gradient(theta), self.velocity(theta))
            return at_state
        if self.not_natural is not None or self.modes is None:
            raise ValueError(
                f"no constant metric: {self.not_natural}. metric(theta) and alignment(theta) give what holds at a state"
            )
        n = self.navigator
        eigenvalues = (self.modes.rates + n.discount) / (n.step_cost * n.loss_weight)
        if self.modes.V is None:
            eigenvalues = eigenvalues * (1.0 if n.metric is None else n.metric)
        if dt is not None:
            if not 0.0 < dt < math.inf:
                raise ValueError(f"expected dt to be positive and finite, got {dt!r}")
            eigenvalues = eigenvalues / integrated_decay(self.modes.rates, dt)
        if not eigenvalues.min() > 0.0:
            raise ValueError(
                "no positive definite metric: the rule does not move along a flat direction of L at discount = 0"
            )
        layout = Layout(None, ((self.size,),))
        if self.modes.W is None:
            return DiagonalMetric(layout, [eigenvalues])
        matrix = (self.modes.W.T * eigenvalues) @ self.modes.W
        return DenseMetric(matrix, layout, "float64", None, np.broadcast_to(0.0, (self.size,)))

    def alignment(self, theta: ArrayLike) -> Alignment:
        """`steepest.align` of grad L and the rule's velocity at `theta` of shape (n,)."""
        alignment: Alignment = align(self.loss.gradient(theta), self.velocity(theta))
        return alignment

    def recording(self, theta0: ArrayLike, t: ArrayLike, *, objective: Literal["loss", "value"] = "loss") -> Recording:
        """The rule's trajectory for `steepest.analyze`.

        Parameters
        ----------
        theta0 : array_like, shape (n,)
            State at time 0.
        t : array_like, shape (T,)
            Times.
        objective : {'loss', 'value'}
            What the rule is measured on: L, or the value function V, up to a constant. A rule with drift need not
            descend on L; at gamma = 0 every rule descends on V, where V is finite (section 14, 5).

        Returns
        -------
        Recording
            Gradient, velocity (``rate=True``), loss, time.

        Raises
        ------
        ValueError
            `objective` has another value.
        """
        if objective not in ("loss", "value"):
            raise ValueError(f"expected objective 'loss' or 'value', got {objective!r}")
        times = np.atleast_1d(np.asarray(t, dtype=np.float64))
        theta = self.trajectory(theta0, times)
        on_loss = objective == "loss"
        return recording(
            loss=self.loss.value(theta) if on_loss else self.value(theta, relative=True),
            grad=self.loss.gradient(theta) if on_loss else self.value_gradient(theta),
            update=self.velocity(theta),
            time=times,
            rate=True,
            objective="fixed",
        )

    def _offset(self, theta: ArrayLike) -> Array:
        x = finite_array(theta, "theta")
        if x.ndim == 0 or x.shape[-1] != self.size:
            raise ValueError(f"expected theta of shape (..., {self.size}), got {x.shape}")
        return x - self.center

    def to_dict(self) -> dict[str, Any]:
        """Arrays and numbers by name."""
        names = ("S", "jacobian", "center", "center_velocity", "center_gradient", "center_cost", "rates", "not_natural")
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        n = self.navigator
        rates = self.rates
        shown = ", ".join(
            f"{rate:.4g}" if rate.imag else f"{rate.real:.4g}"
            for rate in (rates if len(rates) <= 4 else rates[[0, -1]])
        )
        kind = "natural gradient descent" if self.not_natural is None else "no natural gradient descent on L"
        return (
            f"Policy(n={self.size}, eta={n.step_cost:g}, k={n.loss_weight:g}, gamma={n.discount:g}, "
            f"rates={'' if len(rates) <= 4 else 'between '}{shown}; {kind})"
        )


def control_metric(navigator: Navigator) -> Array:
    """G of the controls of a quadratic problem, the identity by default.

    Parameters
    ----------
    navigator : Navigator
        The problem.

    Returns
    -------
    ndarray, shape (m,) or (m, m)
        Symmetric positive definite.
    """
    if navigator.metric is not None:
        return navigator.metric
    assert isinstance(navigator.loss, Quadratic)
    return np.ones(navigator.loss.size if navigator.actuation is None else navigator.actuation.shape[1])


def optimal_control(navigator: Navigator, gradient: Array) -> Array:
    """``u = -eta G^-1 B^T grad V``.

    Parameters
    ----------
    navigator : Navigator
        The problem.
    gradient : ndarray, shape (..., n)
        grad V.

    Returns
    -------
    ndarray, shape (..., m)
        Controls.
    """
    pulled = gradient if navigator.actuation is None else gradient @ navigator.actuation
    G = control_metric(navigator)
    raised: Array = pulled / G if G.ndim == 1 else np.asarray(np.linalg.solve(G, pulled[..., None])[..., 0], np.float64)
    return -navigator.step_cost * raised
