"""The control problem: what a step costs, what the loss is worth, how far ahead the rule looks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steepest.metrics.interface import Metric
from steepest.navigation.losses import Drift, Loss, Quadratic, finite_array, symmetric

if TYPE_CHECKING:
    from steepest.navigation.collocation import Navigation
    from steepest.navigation.policy import Policy

__all__ = ["Navigator"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Navigator:
    """Navigation of a loss landscape as optimal control.

    Minimise over the controls u, with ``theta' = f(theta) + B u``,

        J = int_0^inf { u^T G u / (2 eta) + k L(theta) } e^{-gamma t} dt.

    The optimal feedback ``theta' = u*(theta)`` is a learning rule.

    Parameters
    ----------
    loss : Quadratic or Loss
        L.
    step_cost : float
        eta: a velocity costs |u|^2/(2 eta), so a LARGE eta makes motion cheap. Positive.
    loss_weight : float
        k: what the loss is worth per unit of time. Positive.
    discount : float
        gamma >= 0: 1/gamma is the horizon. 0 is no discount.
    metric : array_like or steepest.Metric, optional
        G, the ambient geometry: symmetric positive definite, (n, n), or (n,) for a diagonal; with `actuation` it
        measures the controls, (m, m) or (m,). Default: identity.
    drift : array_like or Drift, optional
        f, what the parameters do by themselves: a matrix F, (n, n), for ``f = F theta``, (n,) for a diagonal one
        (weight decay is -j), or a `Drift` for the path solver. Default: none.
    actuation : array_like, shape (n, m), optional
        B, the directions that the rule can push. Default: all.

    Raises
    ------
    ValueError
        A number out of range, a shape that does not fit, H not symmetric, G not symmetric positive definite.
    TypeError
        `loss` or `drift` of another type.

    Notes
    -----
    Section 12 (paper; drift, metric and actuation with any discount are derived). The terms are added, not
    subtracted: optimal paths are minima of J.

    Examples
    --------
    >>> rule = Navigator(Quadratic([1.0, 4.0]), discount=0.0).policy()
    >>> rule.velocity([1.0, 1.0]).tolist()
    [-1.0, -2.0]
    """

    loss: Quadratic | Loss
    step_cost: float = 1.0
    loss_weight: float = 1.0
    discount: float = 0.0
    metric: Array | None = None
    drift: Array | Drift | None = None
    actuation: Array | None = None

    def __init__(
        self,
        loss: Quadratic | Loss,
        *,
        step_cost: float = 1.0,
        loss_weight: float = 1.0,
        discount: float = 0.0,
        metric: ArrayLike | Metric | None = None,
        drift: ArrayLike | Drift | None = None,
        actuation: ArrayLike | None = None,
    ) -> None:
        if not isinstance(loss, Quadratic | Loss):
            raise TypeError(f"expected loss to be a Quadratic or a Loss(value, gradient), got {type(loss).__name__}")
        for name, value in (("step_cost", step_cost), ("loss_weight", loss_weight)):
            if not 0.0 < value < math.inf:
                raise ValueError(f"expected {name} to be positive and finite, got {value!r}")
        if not 0.0 <= discount < math.inf:
            raise ValueError(f"expected discount (gamma) to be at least 0 and finite, got {discount!r}")
        n = loss.size if isinstance(loss, Quadratic) else None
        B = None if actuation is None else finite_array(actuation, "actuation")
        if B is not None and (B.ndim != 2 or B.size == 0 or (n is not None and len(B) != n)):
            raise ValueError(f"expected actuation of shape ({'n' if n is None else n}, m), got {B.shape}")
        values: dict[str, Any] = {
            "loss": loss,
            "step_cost": float(step_cost),
            "loss_weight": float(loss_weight),
            "discount": float(discount),
            "metric": _metric(metric, n if B is None else B.shape[1]),
            "drift": _drift(drift, n),
            "actuation": B,
        }
        for name, entry in values.items():
            if isinstance(entry, np.ndarray):
                entry.flags.writeable = False
            object.__setattr__(self, name, entry)

    def policy(self) -> Policy:
        """The optimal rule on a quadratic, in closed form.

        Returns
        -------
        Policy
            Feedback law, value, trajectories, metric.

        Raises
        ------
        TypeError
            The loss is no `Quadratic`, or the drift is not linear: `solve` finds paths there.
        ValueError
            No finite optimum: curvature too negative for the discount, or a direction that is not actuated.

        Notes
        -----
        O(n) if H, metric and drift are diagonals, else O(n^3).
        """
        from steepest.navigation.feedback import make_policy

        return make_policy(self)

    def solve(self, theta0: ArrayLike, horizon: float, **options: Any) -> Navigation:
        """Optimal paths from `theta0` over a finite horizon, on any smooth loss.

        Parameters
        ----------
        theta0 : array_like, shape (n,)
            Where the path begins.
        horizon : float
            T > 0.
        **options
            Of `steepest.navigation.solve_paths`.

        Returns
        -------
        Navigation
            All local solutions found, the one of least action first.
        """
        from steepest.navigation.collocation import solve_paths

        return solve_paths(self, theta0, horizon, **options)


def _metric(given: ArrayLike | Metric | None, n: int | None) -> Array | None:
    if given is None:
        return None
    G = symmetric(given.to_dense() if isinstance(given, Metric) else given, "metric")
    if n is not None and len(G) != n:
        raise ValueError(f"expected metric of shape ({n}, {n}) or ({n},), got {G.shape}")
    smallest = float(G.min() if G.ndim == 1 else np.linalg.eigvalsh(G)[0])
    if not smallest > 0.0:
        raise ValueError(f"expected metric to be positive definite, got smallest eigenvalue {smallest:.3g}")
    return G


def _drift(given: ArrayLike | Drift | None, n: int | None) -> Array | Drift | None:
    if given is None or isinstance(given, Drift):
        return given
    if callable(given):
        raise TypeError("expected drift to be a matrix or a Drift(value, vjp): the solver needs (df/dtheta)^T w too")
    F = finite_array(given, "drift")
    if F.ndim not in (1, 2) or F.shape[0] != F.shape[-1] or F.size == 0 or (n is not None and len(F) != n):
        size = "n" if n is None else str(n)
        raise ValueError(f"expected drift of shape ({size}, {size}), or ({size},) for a diagonal, got {F.shape}")
    return F
