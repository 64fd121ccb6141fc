"""Arrays of every library: read without a copy, results in the caller's library, dtype, shape or mapping."""

from __future__ import annotations

import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import oracles
import steepest
from cases import DTYPES, EPSILON
from steepest.arrays import long_vector

GRAD, UPDATE = oracles.pair(12, 0.9, 2.0, rng=4)
X = np.random.default_rng(0).standard_normal(12)


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """Float64 numbers as the narrower type holds them."""
    return x.astype(DTYPES[dtype]).astype(np.float64)


def expected(dtype: str) -> np.ndarray:
    """The dense metric of the rounded vectors."""
    return oracles.dense_metric(rounded(GRAD, dtype), rounded(UPDATE, dtype))


def tolerance(dtype: str) -> float:
    return 20 * max(EPSILON[dtype], 2.0**-48)


# NumPy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(12,), (3, 4), (2, 3, 2), (12, 1), (1, 12)])
def test_numpy(shape: tuple[int, ...], dtype: str) -> None:
    grad, update, x = (v.astype(DTYPES[dtype]).reshape(shape) for v in (GRAD, UPDATE, X))
    metric = steepest.metric(grad, update)
    dense = expected(dtype)
    image = metric @ x
    assert type(image) is np.ndarray
    assert (image.shape, image.dtype) == (shape, x.dtype)
    np.testing.assert_allclose(
        image.astype(float).ravel(), dense @ rounded(X, dtype), rtol=0, atol=tolerance(dtype) * np.linalg.norm(dense, 2)
    )
    diagonal = metric.diagonal()
    assert (diagonal.shape, diagonal.dtype) == (shape, x.dtype)
    np.testing.assert_allclose(diagonal.astype(float).ravel(), np.diag(dense), rtol=tolerance(dtype))
    assert metric.dtype == (np.float64 if dtype == "float64" else np.float32)
    np.testing.assert_allclose(metric.to_dense(), dense, rtol=0, atol=1e-6 * np.abs(dense).max())
    # Flat operands and several right-hand sides are taken for parameters of any shape, in any float type.
    np.testing.assert_allclose(metric @ X, dense @ X, rtol=0, atol=1e-13)
    np.testing.assert_allclose(metric @ np.stack([X, 2 * X], 1), dense @ np.stack([X, 2 * X], 1), rtol=0, atol=1e-13)


@pytest.mark.parametrize("first", DTYPES)
@pytest.mark.parametrize("second", DTYPES)
def test_mixed_dtypes(first: str, second: str) -> None:
    grad, update = GRAD.astype(DTYPES[first]), UPDATE.astype(DTYPES[second])
    dense = oracles.dense_metric(grad.astype(float), update.astype(float))
    metric = steepest.metric(grad, update)
    np.testing.assert_allclose(metric @ X, dense @ X, rtol=0, atol=1e-12)
    np.testing.assert_allclose(metric.eigvalsh(), np.linalg.eigvalsh(dense), rtol=1e-10)
    assert (metric @ update).dtype == update.dtype
    assert metric.solve(grad).dtype == grad.dtype
    base = steepest.metric(grad, update, base=np.linspace(1, 2, 12).astype(DTYPES[second]))
    d = np.linspace(1, 2, 12).astype(DTYPES[second]).astype(float)
    np.testing.assert_allclose(
        base @ X, oracles.dense_metric(grad.astype(float), update.astype(float), base=d) @ X, rtol=0, atol=1e-10
    )


def strided(x: np.ndarray) -> dict[str, np.ndarray]:
    """The same 3 x 4 numbers with other strides."""
    matrix = x.reshape(3, 4)
    wide, padded = np.zeros((6, 12)), np.zeros(36)
    wide[::2, ::3] = matrix
    padded[1::3] = x
    read_only = matrix.copy()
    read_only.flags.writeable = False
    return {
        "C": matrix,
        "Fortran": np.asfortranarray(matrix),
        "spaced": wide[::2, ::3],
        "reversed": np.ascontiguousarray(matrix[::-1, ::-1])[::-1, ::-1],
        "transposed": np.ascontiguousarray(matrix.T).T,
        "flat spaced": padded[1::3].reshape(3, 4),
        "unaligned": np.frombuffer(b"\0" + matrix.tobytes(), np.float64, offset=1).reshape(3, 4),
        "read-only": read_only,
        "subclass": matrix.view(type("Sub", (np.ndarray,), {})),
    }


@pytest.mark.parametrize("name", strided(X))
def test_strides(name: str) -> None:
    grad, update, x = (strided(v)[name] for v in (GRAD, UPDATE, X))
    dense = expected("float64")
    for metric, matrix in (
        (steepest.metric(grad, update), dense),
        (
            steepest.metric(grad, strided(UPDATE)["C"], base=strided(np.linspace(1, 2, 12))[name]),
            oracles.dense_metric(GRAD, UPDATE, base=np.linspace(1, 2, 12)),
        ),
    ):
        image = metric @ x
        assert type(image) is np.ndarray
        np.testing.assert_allclose(image.ravel(), matrix @ X, rtol=0, atol=1e-13)
        np.testing.assert_allclose(metric @ X[::-1][::-1], matrix @ X, rtol=0, atol=1e-13)
        np.testing.assert_allclose(metric.diagonal().ravel(), np.diag(matrix), rtol=1e-13)
        np.testing.assert_allclose(metric.to_dense(), matrix, rtol=0, atol=1e-13)
        np.testing.assert_allclose(metric.logdet(), np.linalg.slogdet(matrix)[1], rtol=1e-12)
    assert steepest.align(grad, update).angle == pytest.approx(steepest.align(GRAD, UPDATE).angle, rel=1e-14)


def test_stride_zero_input() -> None:
    """A broadcast array may be read."""
    ones = np.broadcast_to(np.float64(1.0), (4, 3))
    metric = steepest.metric(ones, -2.0 * ones)
    np.testing.assert_allclose(metric @ ones, 0.5 * np.ones((4, 3)), rtol=1e-15)


def test_lists_and_numbers() -> None:
    metric = steepest.metric([3.0, 4.0], (-3.0, -1.0))
    image = metric @ [1.0, 0.0]
    assert type(image) is np.ndarray
    np.testing.assert_allclose(image, metric.to_dense()[:, 0], rtol=1e-15)
    assert steepest.metric(2.0, -4.0).eigvalsh() == [0.5]
    zero_dimensional = steepest.metric(np.array(2.0), np.array(-4.0))
    assert (zero_dimensional @ np.array(3.0)).shape == ()
    assert zero_dimensional @ np.array(3.0) == 1.5


def test_mappings() -> None:
    grad = {"w": GRAD[:6].reshape(2, 3).astype(np.float32), "b": GRAD[6:].reshape(3, 2)}
    update = {"b": UPDATE[6:].reshape(3, 2), "w": UPDATE[:6].reshape(2, 3)}
    metric = steepest.metric(grad, update)
    flat_grad = np.concatenate([rounded(GRAD[:6], "float32"), GRAD[6:]])
    dense = oracles.dense_metric(flat_grad, UPDATE)
    image = metric @ {"b": X[6:].reshape(3, 2), "w": X[:6].reshape(2, 3).astype(ml_dtypes.bfloat16)}
    assert list(image) == ["b", "w"]
    assert image["w"].dtype == ml_dtypes.bfloat16
    assert image["b"].dtype == np.float64
    x = np.concatenate([rounded(X[:6], "bfloat16"), X[6:]])
    np.testing.assert_allclose(image["b"].ravel(), (dense @ x)[6:], rtol=0, atol=1e-13)
    np.testing.assert_allclose(image["w"].astype(float).ravel(), (dense @ x)[:6], rtol=0, atol=0.1)
    diagonal = metric.diagonal()
    assert list(diagonal) == ["w", "b"]
    assert diagonal["w"].shape == (2, 3)
    assert diagonal["w"].dtype == np.float32
    np.testing.assert_allclose(metric @ X, dense @ X, rtol=0, atol=1e-13)
    assert (metric @ np.stack([X, X], 1)).shape == (12, 2)
    out = {"w": np.empty((2, 3)), "b": np.empty((3, 2))}
    given = {"w": X[:6].reshape(2, 3), "b": X[6:].reshape(3, 2)}
    assert metric.matvec(given, out=out) is out
    np.testing.assert_allclose(np.concatenate([out["w"].ravel(), out["b"].ravel()]), dense @ X, rtol=0, atol=1e-13)

    separate = steepest.metric(grad, update, blocks="separate")
    assert list(separate) == ["w", "b"]
    np.testing.assert_allclose(separate["b"] @ update["b"], -grad["b"], rtol=0, atol=1e-13)
    assert (separate["w"] @ update["w"]).shape == (2, 3)


def test_empty_members_of_a_mapping() -> None:
    metric = steepest.metric({"a": GRAD, "none": np.empty((0, 3))}, {"a": UPDATE, "none": np.empty((0, 3))})
    image = metric @ {"a": X, "none": np.empty((0, 3))}
    np.testing.assert_allclose(image["a"], expected("float64") @ X, rtol=0, atol=1e-13)
    assert image["none"].shape == (0, 3)


def test_nothing_of_length_n_is_copied() -> None:
    n = 400_000
    rng = np.random.default_rng(0)
    grad, noise = rng.standard_normal((2, n))
    update, x, out = noise - grad, np.ones(n), np.empty(n)
    for base in (None, np.ones(n)):
        tracemalloc.start()
        metric = steepest.metric(grad, update, base=base)
        metric.matvec(x, out=out)
        metric.solve(x, out=out)
        metric.cond(), metric.logdet(), metric.alignment.cond_min
        if base is None:
            metric.sqrt().matvec(x, out=out)
            metric.norm(x), metric.trace()
            steepest.distance(metric, metric.inv())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # Far below one vector of 3.2 MB; the logarithm of a diagonal base goes by pieces of 65,536.
        assert peak < (200_000 if base is None else 2_500_000)
        tracemalloc.start()
        _ = metric @ x
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 * n + 100_000


# PyTorch --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    grad, update, x = (
        torch.tensor(v.reshape(3, 4), dtype=getattr(torch, dtype))
        for v in (rounded(GRAD, dtype), rounded(UPDATE, dtype), X)
    )
    metric = steepest.metric(grad, update)
    dense = expected(dtype)
    image = metric @ x
    assert isinstance(image, torch.Tensor)
    assert (image.shape, image.dtype, image.requires_grad) == (x.shape, x.dtype, False)
    np.testing.assert_allclose(
        image.double().numpy().ravel(),
        dense @ rounded(X, dtype),
        rtol=0,
        atol=tolerance(dtype) * np.linalg.norm(dense, 2),
    )
    assert metric.diagonal().dtype is x.dtype
    np.testing.assert_allclose(metric.diagonal().double().numpy().ravel(), np.diag(dense), rtol=tolerance(dtype))
    many = torch.tensor(np.stack([X, -X], 1), dtype=getattr(torch, dtype))
    assert (metric @ many).shape == (12, 2)
    assert (many.T @ metric).shape == (2, 12)
    np.testing.assert_allclose((x @ metric).double().numpy(), image.double().numpy())
    out = torch.empty_like(x)
    assert metric.matvec(x, out=out) is out
    assert torch.equal(out, image)


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_is_not_copied(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    x = torch.ones(6, dtype=getattr(torch, dtype))
    (segment,) = long_vector(x, "x").segments
    assert segment.ctypes.data == x.data_ptr()
    leaf = torch.ones(6, dtype=getattr(torch, dtype), requires_grad=True)
    (segment,) = long_vector(leaf, "x").segments
    assert segment.ctypes.data == leaf.data_ptr()
    (segment,) = long_vector(torch.ones(4, 6, dtype=getattr(torch, dtype)).T[::2], "x").segments
    assert segment.shape == (3, 4)


def test_torch_strides_and_graphs() -> None:
    torch = pytest.importorskip("torch")
    dense = expected("float64")
    grad, update, x = (torch.tensor(v.reshape(3, 4)) for v in (GRAD, UPDATE, X))
    columns = [v.T.contiguous().T for v in (grad, update, x)]
    spaced = [torch.stack([v, v], -1)[..., 0] for v in (grad, update, x)]
    for g, u, z in (columns, spaced):
        assert not g.is_contiguous()
        np.testing.assert_allclose((steepest.metric(g, u) @ z).numpy().ravel(), dense @ X, rtol=0, atol=1e-13)
    parameter = torch.nn.Parameter(grad.clone())
    recorded = parameter * 1.0  # not a leaf: torch refuses to copy it deeply
    metric = steepest.metric(recorded, update)
    image = metric @ torch.nn.Parameter(x)
    assert not image.requires_grad
    np.testing.assert_allclose(image.numpy().ravel(), dense @ X, rtol=0, atol=1e-13)
    copied = metric.copy()
    np.testing.assert_allclose(copied.to_dense(), dense, rtol=0, atol=1e-13)
    assert not copied.diagonal().requires_grad
    mixed = steepest.metric(GRAD.reshape(3, 4), update)
    assert isinstance(mixed @ x, torch.Tensor)
    assert isinstance(mixed @ X, np.ndarray)
    assert isinstance(mixed.diagonal(), np.ndarray)
    state = {"w": grad, "b": GRAD[:2]}
    both = steepest.metric(state, {"w": update, "b": -GRAD[:2]})
    assert isinstance((both @ state)["w"], torch.Tensor)
    assert isinstance((both @ state)["b"], np.ndarray)


def test_torch_refusals() -> None:
    torch = pytest.importorskip("torch")
    x = torch.ones(3)
    for bad, match in (
        (torch.ones(3, dtype=torch.int64), "float64"),
        (torch.ones(3, dtype=torch.complex64), "real"),
        (torch.ones(3, dtype=torch.bool), "float64"),
        (torch.ones(3).to_sparse(), "to_dense"),
        (torch.ones(3, device="meta"), "CPU"),
        (torch.ones(3).to(torch.float8_e4m3fn), "float8"),
    ):
        with pytest.raises(TypeError, match=match):
            steepest.align(bad, x)
        with pytest.raises(TypeError, match=match):
            steepest.metric(-x, x) @ bad


# JAX ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_jax(dtype: str) -> None:
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        grad, update, x = (jax.numpy.asarray(v.reshape(3, 4).astype(DTYPES[dtype])) for v in (GRAD, UPDATE, X))
        assert grad.dtype.name == dtype
        metric = steepest.metric(grad, update)
        dense = expected(dtype)
        image = metric @ x
        assert isinstance(image, jax.Array)
        assert (image.shape, image.dtype) == (x.shape, x.dtype)
        np.testing.assert_allclose(
            np.asarray(image, float).ravel(),
            dense @ rounded(X, dtype),
            rtol=0,
            atol=tolerance(dtype) * np.linalg.norm(dense, 2),
        )
        assert isinstance(metric.diagonal(), jax.Array)
        assert metric.diagonal().dtype == x.dtype
        assert isinstance(x @ metric, jax.Array)
        tree = {"w": grad, "b": update[0]}
        result = steepest.metric(tree, {"w": -grad, "b": -update[0]}) @ tree
        assert isinstance(result["w"], jax.Array)
        with pytest.raises(TypeError, match="in place"):
            metric.matvec(x, out=x)
        with pytest.raises(TypeError, match="float64"):
            steepest.align(jax.numpy.arange(3), jax.numpy.arange(3))


def test_jax_is_not_copied() -> None:
    jax = pytest.importorskip("jax")
    x = jax.numpy.ones(1000, jax.numpy.float32)
    (segment,) = long_vector(x, "x").segments
    assert segment.ctypes.data == x.unsafe_buffer_pointer()


# The array API --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_array_api(dtype: str) -> None:
    strict = pytest.importorskip("array_api_strict")
    grad, update, x = (strict.asarray(v.reshape(3, 4).astype(dtype)) for v in (GRAD, UPDATE, X))
    metric = steepest.metric(grad, update)
    image = metric @ x
    assert type(image) is type(x)
    assert (image.shape, image.dtype) == (x.shape, x.dtype)
    np.testing.assert_allclose(
        np.from_dlpack(image).ravel(), expected(dtype) @ rounded(X, dtype), rtol=0, atol=tolerance(dtype) * 10
    )
    assert type(metric.diagonal()) is type(x)
    assert steepest.align(grad, update).status == "ok"
    with pytest.raises(TypeError, match="float64"):
        steepest.align(strict.asarray([1, 2]), strict.asarray([1, 2]))


class OnlyDLPack:
    """An array of a library that knows the exchange protocol and nothing else."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.array.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


def test_dlpack() -> None:
    metric = steepest.metric(OnlyDLPack(GRAD), OnlyDLPack(UPDATE))
    (segment,) = long_vector(OnlyDLPack(X), "x").segments
    assert segment.ctypes.data == X.ctypes.data
    np.testing.assert_allclose(metric @ OnlyDLPack(X), expected("float64") @ X, rtol=0, atol=1e-13)
    with pytest.raises(TypeError, match="float64"):
        steepest.align(OnlyDLPack(np.arange(3)), OnlyDLPack(np.arange(3)))


class OnTheDevice(OnlyDLPack):
    """An array that is not in the host's memory."""

    def __dlpack__(self, **kwargs: Any) -> Any:
        raise BufferError("the array is on a device")


def test_dlpack_of_a_device() -> None:
    with pytest.raises(TypeError, match="host's memory"):
        steepest.align(OnTheDevice(GRAD), GRAD)
