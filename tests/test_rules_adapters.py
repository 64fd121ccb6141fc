"""Transformations of optax and optimisers of PyTorch as rules, against the libraries run natively."""

import builtins
import pickle

import numpy as np
import pytest

from steepest import rules

START = {"W": np.random.default_rng(0).standard_normal((3, 2)), "b": np.array([0.3, -0.7])}


def gradient(p):
    return {name: np.arange(1, x.size + 1, dtype=x.dtype).reshape(x.shape) * np.asarray(x) for name, x in p.items()}


OPTAX = {
    "adam": lambda optax: optax.adam(1e-2),
    "adamw": lambda optax: optax.adamw(1e-2, weight_decay=0.1),
    "momentum": lambda optax: optax.sgd(1e-2, momentum=0.9, nesterov=True),
    "schedule": lambda optax: optax.rmsprop(optax.exponential_decay(1e-2, 5, 0.5)),
    "lion, clipped": lambda optax: optax.chain(optax.clip_by_global_norm(1.0), optax.lion(1e-3)),
}


@pytest.mark.parametrize("name", OPTAX)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_optax_bit_by_bit(name, dtype):
    optax = pytest.importorskip("optax")
    import jax

    with jax.enable_x64(dtype == "float64"):
        tx = OPTAX[name](optax)
        native = {key: jax.numpy.array(x, dtype) for key, x in START.items()}
        native_state = tx.init(native)
        ours = {key: x.astype(dtype) for key, x in START.items()}
    rule = rules.from_optax(tx)
    state = rule.init(ours)
    for _ in range(12):
        with jax.enable_x64(dtype == "float64"):
            grad = {key: jax.numpy.asarray(g) for key, g in gradient(native).items()}
            updates, native_state = tx.update(grad, native_state, native)
            native = optax.apply_updates(native, updates)
        update, state = rule.update(gradient(ours), state, ours)
        assert list(update) == ["W", "b"]
        assert all(x.dtype == dtype and isinstance(x, np.ndarray) for x in update.values())
        ours = {key: x + update[key] for key, x in ours.items()}
        for key in START:
            np.testing.assert_array_equal(ours[key], np.asarray(native[key]))


def test_optax_rule_on_jax_and_torch_arrays():
    optax = pytest.importorskip("optax")
    torch = pytest.importorskip("torch")
    import jax

    rule = rules.from_optax(optax.adam(1e-2))
    grad = np.array([1.0, -2.0], np.float32)
    expected, _ = rule.update(grad, rule.init(grad))
    for convert, kind in ((jax.numpy.array, jax.Array), (torch.tensor, torch.Tensor)):
        given = convert(grad)
        update, _ = rule.update(given, rule.init(given))
        assert isinstance(update, kind)
        np.testing.assert_array_equal(np.asarray(update), expected)


def test_optax_extra_arguments_are_passed_on():
    optax = pytest.importorskip("optax")
    rule = rules.from_optax(optax.polyak_sgd())
    theta = np.array([1.0, 2.0])
    update, _ = rule.update(2 * theta, rule.init(theta), theta, value=theta @ theta)
    np.testing.assert_allclose(update, -theta / 2, rtol=1e-6)


TORCH = {
    "SGD": {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.01},
    "Adam": {"lr": 0.01},
    "AdamW": {"lr": 0.01, "amsgrad": True},
    "RMSprop": {"lr": 0.01, "momentum": 0.5},
    "Adagrad": {"lr": 0.1},
}


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch_updates_bit_by_bit(name, dtype):
    """At the parameters of the native run every update is the difference of its parameters, every bit of it."""
    torch = pytest.importorskip("torch")
    native = {key: torch.tensor(x.astype(dtype)) for key, x in START.items()}
    optimizer = getattr(torch.optim, name)(list(native.values()), **TORCH[name])
    rule = rules.from_torch(getattr(torch.optim, name), **TORCH[name])
    state = rule.init({key: x.numpy() for key, x in native.items()})
    free, free_state = {key: x.astype(dtype) for key, x in START.items()}, state
    for _ in range(12):
        before = {key: x.numpy().copy() for key, x in native.items()}
        grad = gradient(before)
        for key, x in native.items():
            x.grad = torch.tensor(grad[key])
        optimizer.step()
        update, state = rule.update(grad, state, before)
        for key, x in native.items():
            np.testing.assert_array_equal(update[key], x.numpy() - before[key])
            assert update[key].dtype == dtype
        own, free_state = rule.update(gradient(free), free_state, free)
        free = {key: x + own[key] for key, x in free.items()}
    assert state.step == 12
    for key, x in native.items():  # on its own, params + update rounds once more at each step
        np.testing.assert_allclose(free[key], x.numpy(), rtol=0, atol=12 * 4 * np.finfo(dtype).eps)


def test_torch_state_is_a_value():
    torch = pytest.importorskip("torch")
    rule = rules.from_torch(torch.optim.Adam, lr=0.1)
    theta = np.array([1.0, 2.0])
    _, state = rule.update(theta, rule.init(theta), theta)
    kept = pickle.dumps(state)
    first, _ = rule.update(3 * theta, state, theta)
    again, _ = rule.update(3 * theta, state, theta)
    np.testing.assert_array_equal(first, again)
    assert pickle.dumps(state) == kept
    np.testing.assert_array_equal(theta, [1.0, 2.0])
    with pytest.raises(ValueError, match="params"):
        rule.update(theta, state)


def test_torch_schedule_and_single_array():
    torch = pytest.importorskip("torch")
    rule = rules.from_torch(torch.optim.SGD, lr=lambda t: 0.5**t)
    theta = torch.ones(3)
    state, found = rule.init(theta), []
    for _ in range(3):
        update, state = rule.update(torch.ones(3), state, theta)
        assert isinstance(update, torch.Tensor)
        found.append(float(update[0]))
    assert found == [-1.0, -0.5, -0.25]


def test_adapters_have_no_metric_and_refuse_other_things():
    torch = pytest.importorskip("torch")
    optax = pytest.importorskip("optax")
    for rule in (rules.from_torch(torch.optim.SGD, lr=0.1), rules.from_optax(optax.sgd(0.1))):
        with pytest.raises(NotImplementedError, match="not known from outside"):
            rule.metric(np.ones(2), rule.init(np.ones(2)), np.ones(2))
    with pytest.raises(TypeError, match="gradient transformation"):
        rules.from_optax(0.1)
    with pytest.raises(TypeError, match="class of optimisers"):
        rules.from_torch("Adam")


@pytest.mark.parametrize(("name", "missing"), [("from_torch", "torch"), ("from_optax", "optax")])
def test_a_missing_library_names_the_extra(name, missing, monkeypatch):
    real = builtins.__import__

    def refuse(module, *args, **kwargs):
        if module == missing:
            raise ImportError(module)
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install \"steepest\["):
        getattr(rules, name)(None)
