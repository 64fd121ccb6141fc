"""Hessian-vector products of PyTorch and JAX losses, against dense Hessians, differences, and eqs (17), (18)."""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any

import numpy as np
import pytest

from steepest import pairs
from steepest.stability import curvature_along, finite_difference_hvp, natural_form, smallest_eigenvalue

# PyTorch --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def torch() -> Any:
    found = pytest.importorskip("torch")
    threads = found.get_num_threads()
    found.set_num_threads(1)
    yield found
    found.set_num_threads(threads)


def network(torch: Any, width: int, dtype: Any) -> tuple[Any, Any]:
    """A small network on made-up data, and a closure of its loss."""
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, width), torch.nn.Tanh(), torch.nn.Linear(width, 3)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator))
    x = torch.randn(40, 8, generator=generator).to(dtype)
    y = torch.randint(3, (40,), generator=generator)
    return model, lambda: torch.nn.functional.cross_entropy(model(x), y)


def functional(torch: Any, closure: Any, model: Any) -> Any:
    """The same loss as a function of a flat vector, for `torch.autograd.functional`."""
    shapes = [p.shape for p in model.parameters()]
    names = [name.rpartition(".") for name, _ in model.named_parameters()]

    def loss(flat: Any) -> Any:
        pieces = flat.split([s.numel() for s in shapes])
        modules = dict(model.named_modules())
        saved = {}
        for (owner, _, name), piece, shape in zip(names, pieces, shapes, strict=True):
            saved[owner, name] = modules[owner]._parameters.pop(name)
            setattr(modules[owner], name, piece.reshape(shape))
        try:
            return closure()
        finally:
            for (owner, name), p in saved.items():
                delattr(modules[owner], name)
                modules[owner].register_parameter(name, p)

    return loss


def test_torch_against_a_dense_hessian(torch: Any) -> None:
    from steepest.torch import hessian_vector_product

    model, closure = network(torch, 4, torch.float64)
    flat = torch.cat([p.detach().ravel() for p in model.parameters()])
    dense = torch.autograd.functional.hessian(functional(torch, closure, model), flat).numpy()
    params = {k: v.detach().clone() for k, v in model.named_parameters()}
    hvp = hessian_vector_product(closure, model=model)
    fixed = hessian_vector_product(closure, params, model=model)
    columns = [fixed(e) for e in np.eye(len(flat))]
    assert all(isinstance(c, np.ndarray) for c in columns)
    np.testing.assert_allclose(np.array(columns), dense, rtol=0, atol=1e-13)
    v = {k: torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(1)) for k, p in params.items()}
    product = hvp(params, dict(reversed(v.items())))
    assert list(product) == list(reversed(v))
    expected = dense @ np.concatenate([v[k].numpy().ravel() for k in params])
    np.testing.assert_allclose(np.concatenate([product[k].numpy().ravel() for k in params]), expected, atol=1e-13)
    # elsewhere than where the model is, which stays there
    moved = {k: p + 0.1 for k, p in params.items()}
    there = torch.autograd.functional.hessian(functional(torch, closure, model), flat + 0.1).numpy()
    product = hvp(moved, torch.as_tensor(np.ones(len(flat))))
    np.testing.assert_allclose(product.numpy(), there.sum(axis=1), atol=1e-13)
    for (k, p), own in zip(model.named_parameters(), params.values(), strict=True):
        assert isinstance(p, torch.nn.Parameter), k
        assert torch.equal(p.detach(), own)
        assert p.grad is None

    # some of the parameters: the others stay
    some = hvp({"2.weight": params["2.weight"]}, {"2.weight": v["2.weight"]})
    at = [list(params).index("2.weight")]
    sizes = np.cumsum([0, *(p.numel() for p in params.values())])
    block = slice(sizes[at[0]], sizes[at[0] + 1])
    np.testing.assert_allclose(some["2.weight"].numpy().ravel(), dense[block, block] @ v["2.weight"].numpy().ravel())


def test_torch_functions_of_params(torch: Any) -> None:
    from steepest.torch import hessian_vector_product

    hvp = hessian_vector_product(lambda p: (p["a"] ** 2).sum() * p["b"] + p["c"].sum())
    point = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3.0), "c": torch.tensor([4.0])}
    vector = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor(1.0), "c": torch.tensor([5.0])}
    found = hvp(point, vector)
    # d2/da2 = 2b I, d2/dadb = 2a; linear in b and c by themselves
    assert {k: v.tolist() for k, v in found.items()} == {"a": [8.0, 4.0], "b": 2.0, "c": [0.0]}
    linear = hessian_vector_product(lambda x: (3 * x).sum())
    assert linear(torch.ones(2), torch.ones(2)).tolist() == [0.0, 0.0]
    with torch.no_grad():  # as in an evaluation loop
        assert hessian_vector_product(lambda x: (x**3).sum(), torch.ones(2))(torch.ones(2)).tolist() == [6.0, 6.0]
    leaf = torch.ones(2, requires_grad=True)
    assert not hessian_vector_product(lambda x: (x**3).sum())(leaf, torch.ones(2)).requires_grad
    assert leaf.grad is None
    numpy = hessian_vector_product(lambda x: (x**4).sum())(np.array([[1.0, 2.0]]), np.array([[1.0, 1.0]]))
    assert numpy.tolist() == [[12.0, 48.0]]


def test_torch_by_differences(torch: Any) -> None:
    from steepest.torch import hessian_vector_product

    model, closure = network(torch, 6, torch.float64)
    params = {k: v.detach() for k, v in model.named_parameters()}

    def grad(p: dict[str, Any]) -> dict[str, Any]:
        with torch.no_grad():
            for k, own in model.named_parameters():
                own.copy_(p[k])
        return dict(zip(p, torch.autograd.grad(closure(), list(model.parameters())), strict=True))

    here = {k: v.clone() for k, v in params.items()}
    v = np.random.default_rng(0).standard_normal(sum(p.numel() for p in params.values()))
    expected = finite_difference_hvp(grad, here)(v)
    grad(here)
    found = hessian_vector_product(closure, here, model=model)(v)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7 * np.linalg.norm(expected))


def test_torch_steps_of_a_network(torch: Any) -> None:
    """n = 1023: long steps of gradient descent as natural gradient descent with the ordinary gradient, exactly."""
    from steepest.torch import hessian_vector_product

    model, closure = network(torch, 85, torch.float64)
    hvp = hessian_vector_product(closure, model=model)
    lr, optimizer = 1.0, torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5)
    natural = 0
    for _ in range(4):
        before = {k: p.detach().clone() for k, p in model.named_parameters()}
        optimizer.zero_grad()
        loss = closure()
        loss.backward()
        grad = {k: p.grad.clone() for k, p in model.named_parameters()}
        optimizer.step()
        after = {k: p.detach().clone() for k, p in model.named_parameters()}
        ends = {"loss": loss.item(), "loss_next": closure().item()}
        pair = pairs.discrete(before, after, **ends, grad=grad, hvp=hvp, method="taylor", lr=lr)
        assert pair.size == 1023
        assert pair.taylor_points
        assert pair.correction_share < 1e-8
        if pair.align().status != "ok":
            continue
        form = natural_form(pair, hvp, lr, alpha="sufficient", rng=0)
        g = {k: (after[k] - before[k]) / lr for k in before}
        product, step = form @ g, form.solve({k: -x for k, x in grad.items()})
        size = max(float(x.abs().max()) for x in grad.values())
        for k, x in before.items():
            np.testing.assert_allclose(product[k].numpy(), -grad[k].numpy(), rtol=0, atol=1e-9 * size)  # (17)
            np.testing.assert_allclose((x + lr * step[k]).numpy(), after[k].numpy(), rtol=0, atol=1e-7)  # (18)
        natural += 1
        d = {k: after[k] - before[k] for k in before}
        at_point = hessian_vector_product(closure, pair.taylor_point(), model=model)
        along = curvature_along(d, **ends, grad=grad)
        assert along.value == pytest.approx(curvature_along(d, hvp=at_point).value, rel=1e-6)
        assert smallest_eigenvalue(at_point, before, rng=0).value < along.value
    assert natural >= 2


def test_torch_float32(torch: Any) -> None:
    from steepest.torch import hessian_vector_product

    model, closure = network(torch, 4, torch.float32)
    hvp = hessian_vector_product(closure, model=model)
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    loss = closure()
    grad = dict(zip(before, torch.autograd.grad(loss, list(model.parameters())), strict=True))
    after = {k: p - 0.5 * grad[k] for k, p in before.items()}
    with torch.no_grad():
        for k, p in model.named_parameters():
            p.copy_(after[k])
    pair = pairs.discrete(
        before, after, loss=loss.item(), loss_next=closure().item(), grad=grad, hvp=hvp, method="taylor", lr=0.5
    )
    assert pair.dtype == "float32"
    form = natural_form(pair, hvp, 0.5, alpha="sufficient")
    difference = form.grad - np.concatenate([x.numpy().ravel() for x in grad.values()])
    assert np.linalg.norm(difference) <= 1e-3 * np.linalg.norm(form.grad)


def test_torch_bad_input(torch: Any) -> None:
    from steepest.torch import hessian_vector_product

    x = torch.ones(3)
    with pytest.raises(TypeError, match="callable loss"):
        hessian_vector_product(x)
    with pytest.raises(ValueError, match="one element, got shape"):
        hessian_vector_product(lambda p: p**2)(x, x)
    with pytest.raises(TypeError, match="to be a tensor, got float"):
        hessian_vector_product(lambda p: 3.0)(x, x)
    with pytest.raises(ValueError, match="no graph"):
        hessian_vector_product(lambda p: p.detach().sum())(x, x)
    square = hessian_vector_product(lambda p: (p**2).sum())
    with pytest.raises(ValueError, match=r"or of shape \(3,\), got shape \(2,\)"):
        square(x, x[:2])
    with pytest.raises(ValueError, match="names of params"):
        square(x, {"a": x})
    named = hessian_vector_product(lambda p: (p["a"] ** 2).sum())
    with pytest.raises(ValueError, match="names of params"):
        named({"a": x}, {"b": x})
    with pytest.raises(ValueError, match="the shapes of params"):
        named({"a": x}, {"a": x[:2]})
    model, closure = network(torch, 2, torch.float32)
    with pytest.raises(ValueError, match=r"names of the model's parameters.*got \['weight'\]"):
        hessian_vector_product(closure, model=model)({"weight": x}, {"weight": x})


# JAX ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def jax() -> Any:
    found = pytest.importorskip("jax")
    before = found.config.jax_enable_x64
    found.config.update("jax_enable_x64", True)
    yield found
    found.config.update("jax_enable_x64", before)


def regression(jax: Any) -> tuple[Any, dict[str, Any]]:
    """A network on made-up data with unsorted names."""
    rng, jnp = np.random.default_rng(0), jax.numpy
    x, y = rng.standard_normal((30, 4)), rng.standard_normal(30)

    def loss(p: dict[str, Any]) -> Any:
        return jnp.mean((jnp.tanh(x @ p["w"] + p["b"]) @ p["a"] - y) ** 2)

    shapes = {"w": (4, 5), "b": (5,), "a": (5,)}
    return loss, {k: jnp.asarray(0.7 * rng.standard_normal(s)) for k, s in shapes.items()}


@pytest.mark.parametrize("jit", [True, False])
def test_jax_against_a_dense_hessian(jax: Any, jit: bool) -> None:
    from steepest.jax import hessian_vector_product

    loss, params = regression(jax)
    sizes = {k: v.size for k, v in params.items()}

    def flat_loss(flat: Any) -> Any:
        pieces = jax.numpy.split(flat, np.cumsum(list(sizes.values()))[:-1])
        return loss({k: p.reshape(params[k].shape) for k, p in zip(sizes, pieces, strict=True)})

    flat = jax.numpy.concatenate([v.ravel() for v in params.values()])
    dense = np.asarray(jax.hessian(flat_loss)(flat))
    fixed = hessian_vector_product(loss, params, jit=jit)
    columns = np.array([np.asarray(fixed(e)) for e in np.eye(flat.size)])
    np.testing.assert_allclose(columns, dense, rtol=0, atol=1e-13)
    v = {k: np.random.default_rng(1).standard_normal(x.shape) for k, x in params.items()}
    product = hessian_vector_product(loss, jit=jit)(params, dict(reversed(v.items())))
    assert list(product) == ["a", "b", "w"]
    expected = dense @ np.concatenate([x.ravel() for x in v.values()])
    np.testing.assert_allclose(np.concatenate([np.ravel(product[k]) for k in params]), expected, atol=1e-13)
    differences = finite_difference_hvp(jax.grad(loss), params)(v)
    for k, x in differences.items():
        np.testing.assert_allclose(x, product[k], rtol=0, atol=1e-7)


def test_jax_pytrees_and_shapes(jax: Any) -> None:
    from steepest.jax import hessian_vector_product

    hvp = hessian_vector_product(lambda p: (p[0] ** 2).sum() * p[1]["b"])
    found = hvp((np.array([1.0, 2.0]), {"b": 3.0}), (np.array([1.0, 0.0]), {"b": 1.0}))
    assert found[0].tolist() == [8.0, 4.0]
    assert float(found[1]["b"]) == 2.0
    quartic = hessian_vector_product(lambda x: (x**4).sum())
    assert quartic(np.array([[1.0, 2.0]]), np.ones((1, 2))).tolist() == [[12.0, 48.0]]
    assert quartic(np.array([[1.0, 2.0]]), np.ones(2)).tolist() == [12.0, 48.0]
    low = quartic(np.array([1.0, 2.0], np.float32), np.ones(2))
    assert low.dtype == np.float32


def test_jax_step_and_natural_form(jax: Any) -> None:
    from steepest.jax import hessian_vector_product

    loss, params = regression(jax)
    hvp, lr = hessian_vector_product(loss), 0.5
    natural = 0
    for _ in range(5):
        grad = jax.grad(loss)(params)
        after = {k: x - lr * grad[k] * (1.2 if k == "w" else 1.0) for k, x in params.items()}
        ends = {"loss": float(loss(params)), "loss_next": float(loss(after))}
        pair = pairs.discrete(params, after, **ends, grad=grad, hvp=hvp, method="taylor", lr=lr)
        if ends["loss_next"] < ends["loss"]:
            form = natural_form(pair, hvp, lr, alpha="sufficient")
            product, step = form @ pair.update(), form.solve({k: -grad[k] for k in params})
            for k, x in params.items():
                np.testing.assert_allclose(product[k], -grad[k], rtol=0, atol=1e-9)
                np.testing.assert_allclose(x + lr * step[k], after[k], rtol=0, atol=1e-8)
            natural += 1
        params = after
    assert natural >= 2
    fixed = functools.partial(hvp, params)
    assert np.isfinite(smallest_eigenvalue(fixed, params).value)


def test_jax_bad_input(jax: Any) -> None:
    from steepest.jax import hessian_vector_product

    with pytest.raises(TypeError, match="callable loss"):
        hessian_vector_product(np.ones(2))
    hvp, x = hessian_vector_product(lambda p: (p["a"] ** 2).sum()), np.ones(3)
    with pytest.raises(ValueError, match="structure of params"):
        hvp({"a": x}, {"b": x})
    with pytest.raises(ValueError, match="shapes of params"):
        hvp({"a": x}, {"a": x[:2]})
    with pytest.raises(ValueError, match=r"or of shape \(3,\)"):
        hvp({"a": x}, x[:2])
    with pytest.raises(ValueError, match="shapes of params"):
        hessian_vector_product(lambda p: (p**2).sum())(x, x[:2])


def test_jax_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.delitem(sys.modules, "steepest.jax", raising=False)
    with pytest.raises(ImportError, match=r"pip install .steepest\[jax\]"):
        importlib.import_module("steepest.jax")
