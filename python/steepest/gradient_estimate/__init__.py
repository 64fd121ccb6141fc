"""A gradient for those who have losses only: differences, random directions, noise on nodes, a recorded trajectory."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from steepest.gradient_estimate.differences import Point, central, spsa
from steepest.gradient_estimate.estimate import GradientEstimate, GradientSamples
from steepest.gradient_estimate.node_perturbation import node_perturbation
from steepest.gradient_estimate.trajectory_regression import trajectory_regression

__all__ = ["GradientEstimate", "GradientSamples", "estimate_gradient"]

Method = Literal["central", "spsa", "node-perturbation", "trajectory-regression"]
METHODS = ("central", "spsa", "node-perturbation", "trajectory-regression")


def estimate_gradient(
    loss: Any,
    params: Any,
    method: Method = "central",
    *,
    rng: np.random.Generator | int | None = None,
    step: float | None = None,
    n_directions: int = 100,
    inputs: Any = None,
) -> GradientEstimate:
    """Estimate dL/dtheta from losses, with the variance of each element.

    Parameters
    ----------
    loss : callable or array_like
        ``loss(params) -> float``; for 'trajectory-regression' the T + 1 recorded losses. For 'node-perturbation'
        ``loss(params, perturbation) -> losses`` of shape (batch,), one for each example, with `perturbation` added to
        the pre-activations: arrays of shape (batch, units) under the names of the layers.
    params : array or mapping name -> array
        Where the gradient is sought; float64, float32, float16 or bfloat16. For 'trajectory-regression' the T + 1
        recorded parameters, first axis = step. For
        'node-perturbation' the weights of each layer, of shape (units, inputs); one array for a single layer.
    method : {'central', 'spsa', 'node-perturbation', 'trajectory-regression'}
        'central': central differences of each element, 4 n losses. 'spsa': two losses for each of `n_directions` random
        directions. 'node-perturbation': two calls for each of `n_directions` draws of noise on all nodes.
        'trajectory-regression': least squares of the loss changes of recorded steps on the displacements.
    rng : Generator, int or None
        Seeds the directions of 'spsa' and the noise of 'node-perturbation'.
    step : float, optional
        Perturbation of each element. Default: eps^(1/3) of the coarsest type of the parameters, times max(1, |element|)
        ('central') or max(1, root mean square of all) ('spsa').
        For 'node-perturbation' the standard deviation sigma of the noise, by default eps^(1/3).
    n_directions : int
        For 'spsa' and 'node-perturbation'; at least 2 for a variance.
    inputs : array or mapping name -> array
        For 'node-perturbation': the presynaptic activity of each layer without noise, of shape (batch, inputs), under
        the names of `params`.

    Returns
    -------
    GradientEstimate
        Gradient and variance in the form of the parameters.

    Raises
    ------
    ValueError
        Unknown method; losses that are not finite; a trajectory with fewer steps than parameters, or whose
        displacements do not span all directions; a step that is lost in the rounding of the parameters; inputs that do
        not fit the weights.
    TypeError
        Unsupported types; a loss of another signature, or none of the inputs that the method needs.

    See Also
    --------
    steepest.pairs.estimated : The pair of an estimated gradient: what its noise leaves of the angle.

    Notes
    -----
    All derived. 'central': the error is the truncation error (D(2h) - D(h))/3 from a second difference at twice the
    step, and the rounding error eps |L|/h, added in squares; the loss is taken to be as accurate as the type of the
    parameters. Noise of the loss shows in it too.

    'spsa' (Spall 1992): the mean over directions d of random signs of [L(th + c d) - L(th - c d)]/(2c) d; up to O(c^2)
    unbiased, variance of element i (|grad L|^2 - grad_i^2)/K for K directions, estimated from the K samples.

    'node-perturbation' (Williams 1992; Fiete and Seung 2006): with losses L_b of the examples and noise sigma xi on the
    pre-activations of all layers at once, the mean over draws and examples of [L_b(sigma xi) - L_b(-sigma xi)]/(2
    sigma) xi_b x_b^T: the gradient of the mean loss of the batch, up to O(sigma^2) unbiased, since dL/dW = (dL/dnoise)
    x^T. Its variance is estimated from the draws. A bias is the weight of an input that is always 1.

    'trajectory-regression': one gradient for the whole trajectory, so it is an average, and its covariance (residual
    variance times (D^T D)^{-1}) holds as far as the loss is linear along it and the residuals are independent; NaN when
    there are as many steps as parameters. O(T n^2).

    The elements of the last three are correlated. `samples` (made again from a seed, which costs no memory) and
    `covariance` of the result hold what the diagonal leaves out.

    Examples
    --------
    >>> from steepest.gradient_estimate import estimate_gradient
    >>> import numpy as np
    >>> found = estimate_gradient(lambda x: float(x @ x), np.array([1.0, -2.0]))
    >>> found.gradient.round(6).tolist(), found.evaluations
    ([2.0, -4.0], 8)

    A layer of two units that see three inputs, of a batch of 40 examples:

    >>> rng = np.random.default_rng(0)
    >>> x, W = rng.standard_normal((40, 3)), rng.standard_normal((2, 3))
    >>> def loss(W, perturbation):
    ...     return 0.5 * np.square(x @ W.T + perturbation).sum(axis=1)
    >>> found = estimate_gradient(loss, W, "node-perturbation", inputs=x, n_directions=200, rng=1)
    >>> exact = (x @ W.T).T @ x / 40
    >>> bool((abs(found.gradient - exact) < 4 * np.sqrt(found.variance)).all())
    True
    """
    if method not in METHODS:
        raise ValueError(f"expected method one of {METHODS}, got {method!r}")
    if inputs is not None and method != "node-perturbation":
        raise TypeError(f"expected inputs for method 'node-perturbation' only, got them for {method!r}")
    if method == "trajectory-regression":
        return trajectory_regression(loss, params)
    if step is not None and not 0.0 < step < math.inf:
        raise ValueError(f"expected a positive, finite step, got {step!r}")
    if method == "node-perturbation":
        return node_perturbation(loss, params, inputs, step, n_directions, np.random.default_rng(rng))
    if not callable(loss):
        raise TypeError(f"expected loss to be callable for method {method!r}, got {type(loss).__name__}")
    point = Point(loss, params)
    if method == "central":
        return central(point, step)
    return spsa(point, step, n_directions, np.random.default_rng(rng))
