"""Node perturbation: the gradient of weights from noise on the pre-activations and the losses of single examples."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from steepest.arrays import EPSILON, LongVector, is_jax, is_torch, long_vector, template_of, to_user, widened
from steepest.gradient_estimate.differences import positive_integer
from steepest.gradient_estimate.estimate import Flat, GradientEstimate, GradientSamples, cut

__all__ = ["NodeSamples", "node_perturbation"]

SIGNATURE = (
    "loss(params, perturbation) -> losses of shape (batch,), one for each example, with perturbation added to the "
    "pre-activations: arrays of shape (batch, units) under the names of the layers"
)


@dataclass(frozen=True, eq=False)
class NodeSamples(GradientSamples):
    """One estimate for each draw of noise, from all examples of the batch.

    Attributes
    ----------
    slopes : ndarray, shape (N, batch)
        Of the loss of each example along its noise.
    seed : int
        Of the noise.
    units : tuple of int
        Number of units of each layer.
    inputs : tuple of ndarray
        Presynaptic activity of each layer, (batch, inputs).
    """

    slopes: Flat
    seed: int
    units: tuple[int, ...]
    inputs: tuple[Flat, ...]

    def noise(self) -> Iterator[list[Flat]]:
        """Run over the draws.

        Yields
        ------
        list of ndarray
            Standard normal, (batch, units) for each layer.
        """
        rng = np.random.default_rng(self.seed)
        for _ in range(len(self)):
            yield [rng.standard_normal((self.slopes.shape[1], units)) for units in self.units]

    def __len__(self) -> int:
        return len(self.slopes)

    def __iter__(self) -> Iterator[Flat]:
        batch = self.slopes.shape[1]
        for slope, noise in zip(self.slopes, self.noise(), strict=True):
            layers = [(slope[:, None] * xi).T @ x / batch for xi, x in zip(noise, self.inputs, strict=True)]
            yield np.concatenate([layer.ravel() for layer in layers])


def node_perturbation(
    loss: Callable[[Any, Any], Any],
    params: Any,
    inputs: Any,
    step: float | None,
    n_directions: int,
    rng: np.random.Generator,
) -> GradientEstimate:
    """Correlation of the losses of single examples with noise on the pre-activations, times presynaptic activity.

    Parameters
    ----------
    loss : callable
        ``loss(params, perturbation) -> losses``.
    params : array or mapping
        Weights, (units, inputs) of each layer.
    inputs : array or mapping
        Presynaptic activities, (batch, inputs) of each layer.
    step : float, optional
        Standard deviation of the noise.
    n_directions : int
        Number of draws.
    rng : Generator
        Seeds them.

    Returns
    -------
    GradientEstimate
        Of the mean loss of the batch, from 2 calls for each draw.

    Raises
    ------
    ValueError
        Shapes that do not fit; values that are not finite.
    TypeError
        A loss of another signature.
    """
    _check_signature(loss)
    weights = long_vector(params, "params")
    presynaptic = _inputs(inputs, weights)
    if not np.isfinite(weights.flat()).all():
        raise ValueError("expected finite params, got NaN or Inf")
    batch = len(presynaptic[0])
    units = tuple(shape[0] for shape in weights.layout.shapes)
    sigma = step if step is not None else float(np.cbrt(EPSILON[weights.coarsest]))
    draws = positive_integer(n_directions, "n_directions")
    samples = NodeSamples(np.empty((draws, batch)), int(rng.integers(2**63)), units, presynaptic)
    template = template_of(params)
    names = weights.layout.names

    def perturbation(noise: list[Flat]) -> Any:
        found = [_like(x, template if names is None else template[name]) for x, name in _named(noise, names)]
        return found[0] if names is None else dict(zip(names, found, strict=True))

    for i, noise in enumerate(samples.noise()):
        ahead = _losses(loss(params, perturbation([sigma * x for x in noise])), batch)
        behind = _losses(loss(params, perturbation([-sigma * x for x in noise])), batch)
        samples.slopes[i] = (ahead - behind) / (2.0 * sigma)
    mean, variance = samples.moments()
    shaped = (to_user(cut(x, weights.layout), template) for x in (mean, variance))
    return GradientEstimate(next(shaped), next(shaped), 2 * draws, "node-perturbation", sigma, samples, None, draws - 1)


def _named(noise: list[Flat], names: tuple[Any, ...] | None) -> Iterator[tuple[Flat, Any]]:
    return zip(noise, names or (None,), strict=True)


def _check_signature(loss: Any) -> None:
    if not callable(loss):
        raise TypeError(f"expected {SIGNATURE}, got {type(loss).__name__}")
    try:
        inspect.signature(loss).bind(None, None)
    except TypeError:
        raise TypeError(f"expected {SIGNATURE}; got a callable that does not take two arguments") from None
    except ValueError:  # no signature to be had, as of some compiled functions
        pass


def _inputs(inputs: Any, weights: LongVector) -> tuple[Flat, ...]:
    """Presynaptic activities in the order of the layers, (batch, inputs) each."""
    if inputs is None:
        raise TypeError(
            "expected inputs for method 'node-perturbation': the presynaptic activity of each layer, of shape (batch, "
            f"inputs), under the names of params, since dL/dW = E[(dL/dnoise) input^T]; and {SIGNATURE}"
        )
    layout = weights.layout
    if any(len(shape) != 2 for shape in layout.shapes):
        raise ValueError(
            f"expected params to be weights of shape (units, inputs) for each layer, got {layout}; a bias is the "
            "weight of an input that is always 1: one more column of the weights"
        )
    if isinstance(inputs, Mapping) != (layout.names is not None) or (
        isinstance(inputs, Mapping) and set(inputs) != set(layout.names or ())
    ):
        raise ValueError(f"expected inputs under the names of params, {layout}")
    if isinstance(inputs, Mapping):
        inputs = {name: inputs[name] for name in layout.names or ()}
    found = long_vector(inputs, "inputs")
    lengths = {shape[0] for shape in found.layout.shapes if shape}
    expected = [shape[1] for shape in layout.shapes]
    if [shape[1:] for shape in found.layout.shapes] != [(m,) for m in expected] or len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"expected inputs of shape (batch, inputs) with {expected} inputs, got {found.layout}")
    arrays = tuple(widened(x, dtype) for x, dtype in zip(found.segments, found.dtypes, strict=True))
    if not all(np.isfinite(x).all() for x in arrays):
        raise ValueError("expected finite inputs, got NaN or Inf")
    return arrays


def _like(noise: Flat, template: Any) -> Any:
    """Noise in the library and type of the weights."""
    if is_torch(template):
        return template.new_tensor(noise)
    if is_jax(template):
        return sys.modules["jax"].numpy.asarray(noise, dtype=template.dtype)
    return noise.astype(template.dtype) if isinstance(template, np.ndarray) else noise


def _losses(x: Any, batch: int) -> Flat:
    try:
        losses = np.asarray(x.detach().cpu().double() if is_torch(x) else x, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"expected {SIGNATURE}; got {type(x).__name__}") from error
    if losses.shape != (batch,):
        raise TypeError(f"expected {SIGNATURE}; got losses of shape {losses.shape} for a batch of {batch}")
    if not np.isfinite(losses).all():
        raise ValueError(f"expected finite losses, got {losses[~np.isfinite(losses)][0]}")
    return losses
