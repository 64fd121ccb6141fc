"""Runs with a planted Kronecker metric: a quadratic loss, and logistic regression of real digits."""

from __future__ import annotations

import functools

import numpy as np
import pytest

OUTPUT, INPUT, BOTH = FAMILIES = ("kronecker-output", "kronecker-input", "kronecker")


def spd(size, rng, cond=20.0):
    q, _ = np.linalg.qr(rng.normal(size=(size, size)))
    return (q * np.geomspace(1.0, cond, size)) @ q.T


def planted(family, m, r, rng, cond=20.0):
    """A and B of a family, with identities."""
    A, B = spd(m, rng, cond), spd(r, rng, cond)
    return (np.eye(m) if family == INPUT else A), (np.eye(r) if family == OUTPUT else B)


def quadratic_run(A, B, T, rng, noise_y=0.0, noise_g=0.0, rate=0.1):
    """Natural gradient of a quadratic loss whose minimum moves at random, so that the gradients never die out."""
    m, r = len(A), len(B)
    curvature = rng.uniform(0.5, 2.0, (m, r))
    w, grads, updates = np.zeros((m, r)), [], []
    for _ in range(T):
        grad = curvature * (w - rng.normal(size=(m, r)))
        update = -rate * np.linalg.solve(A, np.linalg.solve(B, grad.T).T)
        w = w + update
        grads.append(grad)
        updates.append(update)
    grads, updates = np.array(grads), np.array(updates)
    size_y, size_g = np.sqrt(np.mean(grads**2)), np.sqrt(np.mean(updates**2))
    return grads + noise_y * size_y * rng.normal(size=grads.shape), updates + noise_g * size_g * rng.normal(
        size=updates.shape
    )


def dense(found, family, m, r, symmetric=False):
    """The fitted numbers as one matrix on W in C order."""
    e = found.elements(symmetric=symmetric)
    if family == BOTH:
        return np.kron(*e)
    return np.kron(e, np.eye(r)) if family == OUTPUT else np.kron(np.eye(m), e)


def relative(x, y):
    return np.linalg.norm(x - y) / np.linalg.norm(y)


@functools.cache
def digits():
    data = pytest.importorskip("sklearn.datasets").load_digits()
    return data.data / 16.0, np.eye(10)[data.target]


def softmax_run(A, B, T, decay, seed=0, batch=64, rate=0.5, dtype=float):
    """Logistic regression of the digits by the rule ``update = -rate A^-1 grad B^-1``; weights 10 x 64."""
    images, labels = digits()
    rng = np.random.default_rng(seed)
    w, run = 0.1 * rng.normal(size=(10, 64)), []
    for _ in range(T):
        pick = rng.integers(0, len(images), batch)
        scores = images[pick] @ w.T
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        grad = (p - labels[pick]).T @ images[pick] / batch + decay * w
        update = -rate * np.linalg.solve(A, grad) @ np.linalg.inv(B)
        w = w + update
        run.append((grad.astype(dtype), update.astype(dtype)))
    return run
