"""What a rule believes about a gradient that it sees with noise: filters, and Adam's moments as one of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_discrete_are

from steepest.arrays import ArrayOrMapping
from steepest.rules.leaves import each, exactly, plain, zeros_like

__all__ = ["Belief", "Drifting", "FlatPrior", "steady_state_gain"]


@dataclass(frozen=True)
class Belief:
    """State of a filter after some gradients.

    Attributes
    ----------
    mean : array or dict
        Of the gradient.
    square : array or dict
        Of its square, E[g g^T] on the diagonal; None where the filter has none.
    weight, square_weight : number
        How many gradients the means are worth (0 at the start).
    """

    mean: Any
    square: Any
    weight: Any = 0
    square_weight: Any = 0


class FlatPrior:
    """Discounted conjugate filters of mean and mean square with a flat prior: exactly Adam's bias-corrected moments.

    Parameters
    ----------
    beta1, beta2 : number
        Discount of the precision of what was known, for mean and mean square: 0 believes the last gradient only.

    Notes
    -----
    Section 13 (derived): precision ``l_t = b1 l_{t-1} + 1``, mean ``m_t = (b1 l_{t-1} m_{t-1} + g_t)/l_t``; inverse
    gamma ``A_t = b2 A_{t-1} + 1/2``, ``B_t = b2 B_{t-1} + g_t^2/2``, ``v_t = B_t/A_t``. With l_0 = A_0 = 0 these are
    Adam's ``m/(1 - b1^t)`` and ``v/(1 - b2^t)``: bias correction is the flat prior. `square_weight` is 2 A_t. Any
    numbers will do, `fractions.Fraction` too. Cost: elementwise.

    Examples
    --------
    >>> from fractions import Fraction
    >>> from steepest.rules import FlatPrior
    >>> f = FlatPrior(Fraction(9, 10), Fraction(999, 1000))
    >>> belief = f.init(Fraction(0))
    >>> for g in (Fraction(1), Fraction(3)):
    ...     belief = f.update(g, belief)
    >>> belief.mean == (Fraction(9, 100) * 1 + Fraction(1, 10) * 3) / (1 - Fraction(81, 100))
    True
    """

    def __init__(self, beta1: Any = 0.9, beta2: Any = 0.999) -> None:
        for name, beta in (("beta1", beta1), ("beta2", beta2)):
            if not 0 <= beta < 1:
                raise ValueError(f"expected {name} in [0, 1), got {beta}")
        self.beta1, self.beta2 = beta1, beta2

    def init(self, params: ArrayOrMapping) -> Belief:
        """Nothing is known.

        Parameters
        ----------
        params : array or mapping
            Gives shapes, dtypes, library.

        Returns
        -------
        Belief
            Of weight 0.
        """
        params = plain(params)
        return Belief(zeros_like(params), zeros_like(params))

    def update(self, grad: ArrayOrMapping, belief: Belief) -> Belief:
        """After one more gradient.

        Parameters
        ----------
        grad : array or mapping
            As `params` in `init`.
        belief : Belief
            Before.

        Returns
        -------
        Belief
            A new one.
        """
        grad = exactly(grad, "grad", belief.mean)
        weight = self.beta1 * belief.weight + 1
        square_weight = self.beta2 * belief.square_weight + 1
        kept, square_kept = self.beta1 * belief.weight, self.beta2 * belief.square_weight
        mean = each(lambda m, g: (kept * m + g) / weight, belief.mean, grad)
        square = each(lambda v, g: (square_kept * v + g * g) / square_weight, belief.square, grad)
        return Belief(mean, square, weight, square_weight)


class Drifting:
    """Steady-state Kalman filter of a gradient that drifts as an Ornstein-Uhlenbeck process.

    Parameters
    ----------
    phi : float
        ``x_{t+1} = phi x_t + N(0, q)`` for each element, |phi| <= 1.
    q, r : float
        Variances of the drift and of the noise in the observed gradient, ``g_t = x_t + N(0, r)``; positive.

    Attributes
    ----------
    gain : float
        K of the observation.
    beta1 : float
        ``(1 - K) phi``: what is kept of the mean, as in momentum.

    Notes
    -----
    Section 13 (paper's idea, details derived): ``m_t = (1 - K) phi m_{t-1} + K g_t``. The mean starts at 0, the mean of
    the process. Cost: elementwise.

    Examples
    --------
    >>> from steepest.rules import Drifting
    >>> f = Drifting(phi=0.99, q=0.02, r=1.0)
    >>> round(f.gain, 4), round(f.beta1, 4)
    (0.1239, 0.8673)
    """

    def __init__(self, phi: float, q: float, r: float) -> None:
        if not (abs(phi) <= 1.0 and 0.0 < q < math.inf and 0.0 < r < math.inf):
            raise ValueError(f"expected |phi| <= 1 and positive finite q, r, got phi={phi}, q={q}, r={r}")
        self.phi, self.q, self.r = float(phi), float(q), float(r)
        # Positive root of P^2 + b P - q r = 0, the scalar DARE, without cancellation.
        b = r * (1.0 - phi * phi) - q
        root = math.hypot(b, 2.0 * math.sqrt(q * r))
        P = 2.0 * q * r / (b + root) if b > 0.0 else 0.5 * (root - b)
        self.gain = P / (P + r)
        self.beta1 = (1.0 - self.gain) * self.phi

    def init(self, params: ArrayOrMapping) -> Belief:
        """The mean of the process, zero.

        Parameters
        ----------
        params : array or mapping
            Gives shapes, dtypes, library.

        Returns
        -------
        Belief
            Without `square`.
        """
        return Belief(zeros_like(plain(params)), None)

    def update(self, grad: ArrayOrMapping, belief: Belief) -> Belief:
        """After one more gradient.

        Parameters
        ----------
        grad : array or mapping
            As `params` in `init`.
        belief : Belief
            Before.

        Returns
        -------
        Belief
            A new one.
        """
        grad = exactly(grad, "grad", belief.mean)
        mean = each(lambda m, g: self.beta1 * m + self.gain * g, belief.mean, grad)
        return Belief(mean, None, belief.weight + 1)


def steady_state_gain(phi: Any, q: Any, r: Any) -> NDArray[np.float64]:
    """Kalman gain of a gradient whose elements drift together.

    Parameters
    ----------
    phi, q, r : array_like, shape (n, n)
        ``x_{t+1} = phi x_t + N(0, q)``, ``g_t = x_t + N(0, r)``; q and r symmetric positive definite.

    Returns
    -------
    ndarray, shape (n, n)
        ``K = P (P + r)^{-1}``, P the steady predicted covariance; the mean is ``m_t = (I - K) phi m_{t-1} + K g_t``.

    Raises
    ------
    ValueError
        Not three square matrices of one size.

    Notes
    -----
    P by `scipy.linalg.solve_discrete_are`, O(n^3).

    Examples
    --------
    >>> from steepest.rules import steady_state_gain
    >>> steady_state_gain([[0.99]], [[0.02]], [[1.0]]).round(4)
    array([[0.1239]])
    """
    phi, q, r = (np.atleast_2d(np.asarray(x, dtype=np.float64)) for x in (phi, q, r))
    if not phi.shape == q.shape == r.shape or phi.shape[0] != phi.shape[1]:
        raise ValueError(f"expected three square matrices of one size, got {phi.shape}, {q.shape}, {r.shape}")
    P = solve_discrete_are(phi.T, np.eye(len(phi)), q, r)
    return np.asarray(np.linalg.solve(P + r, P).T)
