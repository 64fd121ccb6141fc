"""optax Adam on handwritten digits: a two-layer network, trained by ``lax.scan`` inside of jit, and tracked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import steepest.optax
from steepest.experiments.digits import Digits
from steepest.recording import Recording

__all__ = ["OptaxDigits", "run"]


@dataclass(frozen=True)
class OptaxDigits:
    """A tracked training run.

    Attributes
    ----------
    recording : Recording
        Against the gradient that the rule consumed.
    params : dict name -> ndarray
        Final.
    accuracy : float
        Fraction of the test set classified correctly.
    """

    recording: Recording
    params: dict[str, NDArray[np.float32]]
    accuracy: float


def run(
    digits: Digits,
    optimizer: Any = None,
    *,
    n_hidden: int = 32,
    n_steps: int = 200,
    batch: int | None = None,
    tracked: bool = True,
    seed: int = 0,
) -> OptaxDigits | dict[str, NDArray[np.float32]]:
    """Train ``softmax(tanh(x W1 + b1) W2 + b2)`` with cross-entropy.

    Parameters
    ----------
    digits : Digits
        Images and labels.
    optimizer : optax.GradientTransformation, optional
        Default ``optax.adam(1e-2)``.
    n_hidden, n_steps : int
        Hidden units, and updates.
    batch : int, optional
        Images to a step, drawn at random. None: all of them, and ``objective`` is 'fixed'.
    tracked : bool
        False trains without `steepest.optax.track`.
    seed : int
        Of weights and batches.

    Returns
    -------
    OptaxDigits or dict
        The final parameters alone if not `tracked`.

    Raises
    ------
    ImportError
        jax or optax is not installed.
    """
    try:
        import jax
        import optax
    except ImportError as error:
        raise ImportError('this experiment needs jax and optax: pip install "steepest[jax]"') from error
    jnp = jax.numpy
    images, labels = jnp.asarray(digits.train_images), jnp.asarray(digits.train_labels.astype(np.int32))
    rng = np.random.default_rng(seed)

    def weights(*shape: int) -> Any:
        return jnp.asarray(rng.standard_normal(shape) / np.sqrt(shape[0]), jnp.float32)

    params = {
        "W1": weights(images.shape[1], n_hidden), "b1": jnp.zeros(n_hidden),
        "W2": weights(n_hidden, 10), "b2": jnp.zeros(10),
    }  # fmt: skip
    tx = optax.adam(1e-2) if optimizer is None else optimizer
    if tracked:
        tx = steepest.optax.track(tx, capacity=n_steps, objective="fixed" if batch is None else "unknown")
    tx = optax.with_extra_args_support(tx)

    def logits(p: Any, x: Any) -> Any:
        return jnp.tanh(x @ p["W1"] + p["b1"]) @ p["W2"] + p["b2"]

    def loss_of(p: Any, x: Any, label: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(logits(p, x), label).mean()

    def step(carry: Any, key: Any) -> Any:
        p, state = carry
        x, label = images, labels
        if batch is not None:
            chosen = jax.random.randint(key, (batch,), 0, len(images))
            x, label = images[chosen], labels[chosen]
        loss, grads = jax.value_and_grad(loss_of)(p, x, label)
        updates, state = tx.update(grads, state, p, value=loss)
        return (optax.apply_updates(p, updates), state), None

    def train(p: Any, keys: Any) -> Any:
        return jax.lax.scan(step, (p, tx.init(p)), keys)[0]

    params, state = jax.jit(train)(params, jax.random.split(jax.random.key(seed), n_steps))
    final = {name: np.asarray(x) for name, x in params.items()}
    if not tracked:
        return final
    guessed = np.asarray(logits(params, jnp.asarray(digits.test_images))).argmax(axis=1)
    return OptaxDigits(steepest.optax.read(state), final, float(np.mean(guessed == digits.test_labels)))
