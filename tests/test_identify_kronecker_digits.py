"""Kronecker metrics behind rules that learn real digits: planted ones recovered, and feedback alignment."""

from __future__ import annotations

import numpy as np
import pytest

from kronecker_cases import BOTH, FAMILIES, INPUT, OUTPUT, dense, digits, planted, relative, softmax_run, spd
from steepest.identify import identify

# Planted metrics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_planted_in_logistic_regression_of_digits(family):
    rng = np.random.default_rng(1)
    A, B = planted(family, 10, 64, rng, 5.0)
    run = softmax_run(A, B, 60, decay=0.01)
    found = identify(run, family, rng=0)
    fit = found["(all)"]
    assert fit.status == "ok"
    assert fit.r2 > 1.0 - 1e-8
    assert relative(dense(found, family, 10, 64), 2.0 * np.kron(A, B)) < (1e-3 if family == BOTH else 1e-10)
    for other in set(FAMILIES) - {family, BOTH}:
        assert identify(run, other, rng=0)["(all)"].r2 < 0.999
    if family != BOTH:  # a special case of the product
        assert identify(run, BOTH, rng=0)["(all)"].r2 > 1.0 - 1e-6


def test_digits_without_decay_leave_directions_open():
    rng = np.random.default_rng(1)
    # Gradients of a softmax sum to 0 over the classes; pixels that are always 0 never move.
    dead = int(np.count_nonzero(digits()[0].max(axis=0) == 0.0))
    A, B = planted(OUTPUT, 10, 64, rng, 5.0)
    run = softmax_run(A, B, 60, decay=0.0, batch=256)
    found = identify(run, OUTPUT, rng=0)
    fit = found["(all)"]
    assert (fit.status, fit.determined, fit.r2) == ("underdetermined", 0.9, pytest.approx(1.0, abs=1e-10))
    assert any("rank 9 of 10" in note and "is free" in note for note in fit.notes)
    span = np.linalg.svd(np.concatenate([u for _, u in run[:45]], axis=1))[0][:, :9]
    np.testing.assert_allclose(found.elements() @ span, 2.0 * A @ span, atol=1e-10)
    with pytest.raises(ValueError, match="rank 9 of 10"):
        found.to_metric()
    M = found.to_metric(floor=0.5)
    np.testing.assert_allclose(M @ run[-1][1], -run[-1][0], atol=1e-10)  # on the span it is the fit
    assert M.cond() > 1.0

    A, B = planted(INPUT, 10, 64, rng, 5.0)
    found = identify(softmax_run(A, B, 60, decay=0.0, batch=256), INPUT, rng=0)
    rank = round(64 * found["(all)"].determined)
    assert 40 < rank <= 64 - dead
    assert found["(all)"].r2 > 1.0 - 1e-8


def test_floor_of_both_sides_keeps_what_is_determined():
    rng = np.random.default_rng(1)
    A, B = planted(BOTH, 10, 64, rng, 5.0)
    run = softmax_run(A, B, 60, decay=0.0, batch=64)
    found = identify(run, BOTH, rng=0)
    assert found["(all)"].status == "underdetermined"
    assert found["(all)"].r2 > 1.0 - 1e-8
    M = found.to_metric(floor=0.01)
    assert min(np.linalg.eigvalsh(x)[0] for x in M.factors) > 0.0
    for grad, update in run[-3:]:
        a, b = found.elements()
        np.testing.assert_allclose(M @ update, a @ update @ b, atol=1e-8 * np.abs(grad).max())
        np.testing.assert_allclose(M @ update, -grad, atol=1e-3 * np.abs(grad).max())


# Feedback alignment ---------------------------------------------------------------------------------------------------


def feedback_steps(W2, B, T, rng):
    """Hidden-layer gradients and updates with random errors on real digits: y = -W2^T E x^T, g = -B E x^T."""
    images, _ = digits()
    run = []
    for _ in range(T):
        pick = rng.integers(0, len(images), 40)
        error = rng.normal(size=(len(W2), 40))
        run.append((W2.T @ error @ images[pick], -B @ error @ images[pick]))
    return run


@pytest.mark.parametrize(("kind", "exists"), [("spd", True), ("indefinite", False), ("asymmetric", False)])
def test_feedback_alignment_is_natural_iff_the_product_of_weights_is_spd(kind, exists):
    rng = np.random.default_rng(0)
    hidden, outputs = 32, 10
    B = rng.normal(size=(hidden, outputs))
    product = spd(outputs, rng)
    if kind == "indefinite":
        values, vectors = np.linalg.eigh(product)
        values[0] = -5.0
        product = (vectors * values) @ vectors.T
    elif kind == "asymmetric":
        product = product + 3.0 * np.triu(rng.normal(size=product.shape), 1)
    # W2 B = product; the part of W2 outside of the range of B is free
    inverse = np.linalg.pinv(B)
    W2 = product @ inverse + 0.1 * rng.normal(size=(outputs, hidden)) @ (np.eye(hidden) - B @ inverse)
    np.testing.assert_allclose(W2 @ B, product, atol=1e-10)
    run = feedback_steps(W2, B, 40, rng)
    found = identify(run, OUTPUT, rng=0)
    fit = found["(all)"]
    assert fit.status == "underdetermined"
    assert fit.determined == pytest.approx(outputs / hidden)
    assert any("rank 10 of 32" in note for note in fit.notes)
    if exists:
        assert fit.r2 > 1.0 - 1e-10
        np.testing.assert_allclose(found.elements() @ B, W2.T, atol=1e-8)  # A B = W2^T
        M = found.to_metric(floor=0.1)
        np.testing.assert_allclose(M.factors[0] @ B, W2.T, atol=1e-8)
        np.testing.assert_allclose(M @ run[-1][1], -run[-1][0], atol=1e-6)
    else:
        assert 0.0 < fit.r2 < 0.999
        assert fit.r2 == pytest.approx(fit.r2_in_sample, abs=0.15)  # predicts as well as it fits: nothing explodes


def feedback_training(T, seed, redrawn, hidden=32, rate=0.1):
    """A two-layer linear network on the digits, the hidden layer trained by feedback alignment."""
    images, labels = digits()
    images = images - 0.3
    rng = np.random.default_rng(seed)
    W1, W2 = 0.1 * rng.normal(size=(hidden, 64)), 0.1 * rng.normal(size=(10, hidden))
    run = []
    for t in range(T):
        if t == 0 or redrawn:
            B = rng.normal(size=(hidden, 10)) / np.sqrt(10)
        h = images @ W1.T
        error = labels - h @ W2.T
        grad, update = -W2.T @ (error.T @ images) / len(images), rate * B @ (error.T @ images) / len(images)
        run.append((grad, update))
        W1, W2 = W1 + update, W2 + rate * (error.T @ h) / len(images)
    return run


def test_feedback_alignment_approaches_a_metric_of_the_hidden_side():
    run = feedback_training(300, 0, redrawn=False)
    early, late = (identify(run[at], OUTPUT, rng=0)["(all)"] for at in (slice(0, 80), slice(220, 300)))
    assert early.r2 < late.r2
    assert late.r2 > 0.9
    assert late.status == "underdetermined"
    assert identify(run[220:], "scalar", rng=0)["(all)"].r2 < 0.5
    control = identify(feedback_training(80, 0, redrawn=True), OUTPUT, rng=0)["(all)"]
    assert control.r2 < 0.1
