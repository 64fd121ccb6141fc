"""The one pass of the tracker on the host: the rows of the update as a tensor, bit for bit, whatever moved them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from steepest import _core
from steepest.recorder import Recorder

torch = pytest.importorskip("torch")

from steepest.torch import track  # noqa: E402 # needs torch

nn = torch.nn
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    before = _core.get_num_threads()
    _core.set_num_threads(request.param)
    yield
    _core.set_num_threads(before)


class Witness:
    """Hooks that note what a step is made of, with an update formed by torch, beside a tracker that forms none."""

    def __init__(self, optimizer: Any) -> None:
        self.rec, self.names, self.number = Recorder(), [], 0
        self._params = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    def _before(self, *_: Any) -> None:
        self._start = [p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True) for p in self._params]
        self._grads = [
            p.new_zeros(()).expand(p.shape) if p.grad is None else p.grad.detach().clone() for p in self._params
        ]

    def _after(self, *_: Any) -> None:
        params = [p.detach().clone() for p in self._params]
        arrays = zip(params, self._grads, [p - b for p, b in zip(params, self._start, strict=True)], strict=True)
        params, grad, update = ({f"param_{i}": x for i, x in enumerate(xs)} for xs in zip(*arrays, strict=True))
        self.rec.step(params=params, grad=grad, update=update)


def assert_rows_agree(found: Any, expected: Any, blocks: Any = slice(None)) -> None:
    a, b = found.rows, expected.rows
    for name in a.dtype.names:
        if name not in ("time", "decay_share", "note", "loss"):
            assert np.array_equal(a[name][:, blocks], b[name][:, blocks], equal_nan=a[name].dtype.kind == "f"), name


def parameters(dtype: Any, sizes: Any = ((3, 5), (8193,), (1,), (90, 100))) -> list[Any]:
    return [nn.Parameter(torch.randn(size).to(dtype)) for size in sizes]


def run(params: list[Any], rule: Any, steps: int = 4, between: Any = lambda step, params, optimizer: None) -> None:
    optimizer = rule(params)
    with track(optimizer) as rec:
        witness = Witness(optimizer)
        for step in range(steps):
            for p in params:
                p.grad = torch.randn(p.shape).to(p.dtype)
            between(step, params, optimizer)
            optimizer.step()
    assert_rows_agree(rec.recording(), witness.rec.recording())


SGD, ADAM = (lambda p: torch.optim.SGD(p, lr=0.01)), (lambda p: torch.optim.Adam(p, lr=0.01))


@pytest.mark.parametrize("rule", [SGD, ADAM])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_the_update_as_a_tensor(dtype: Any, rule: Any) -> None:
    run(parameters(dtype), rule)


@pytest.mark.parametrize("size", [1, 2, 3, 8191, 8192, 8193, 50001])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_array(dtype: Any, size: int) -> None:
    run(parameters(dtype, [(size,)]), ADAM)
    run(parameters(dtype, [(size,)]), SGD)


def through_data(p: Any) -> None:
    p.data.mul_(1.5)


def through_numpy(p: Any) -> None:
    p.detach().view(torch.uint8).numpy()[...] ^= 1


def in_place(p: Any) -> None:
    with torch.no_grad():
        p.clamp_(-0.5, 0.5)


def moved(p: Any) -> None:
    p.data = 2 * p.data


def transposed(p: Any) -> None:
    p.data = p.data.t().contiguous().t() if p.dim() == 2 else p.data.clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("edit", [through_data, through_numpy, in_place, moved, transposed])
def test_parameters_that_are_edited_between_steps(edit: Any, dtype: Any) -> None:
    """The edit belongs to no update, also where `Tensor._version` says nothing of it."""

    def between(step: int, params: list[Any], optimizer: Any) -> None:
        if step % 2:
            for p in params:
                edit(p)

    run(parameters(dtype), ADAM, between=between)


def test_load_state_dict_between_steps() -> None:
    saved: list[Any] = []

    def between(step: int, params: list[Any], optimizer: Any) -> None:
        model = nn.ParameterList(params)
        if step == 0:
            saved.append((copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())))
        if step == 2:
            model.load_state_dict(saved[0][0])
            optimizer.load_state_dict(saved[0][1])
        if step == 3:
            model.load_state_dict(saved[0][0], assign=True)  # other tensors, which the optimiser does not hold

    run(parameters(torch.float32), ADAM, steps=5, between=between)


class Swapping(torch.optim.Optimizer):
    """A rule that puts the parameters elsewhere in each step."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.data = p.data - 0.1 * p.grad


def test_optimizer_that_swaps_memory() -> None:
    run(parameters(torch.float32), Swapping)


def test_channels_last() -> None:
    params = [nn.Parameter(torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)), nn.Parameter(torch.randn(9))]
    run(params, ADAM)
    run([nn.Parameter(torch.randn(20, 30)[:, ::2])], ADAM)


def test_gradients_that_are_missing_or_hold_a_graph() -> None:
    params = parameters(torch.float32)

    def between(step: int, params: list[Any], optimizer: Any) -> None:
        params[1].grad = None
        params[0].grad = params[0].grad.requires_grad_() if step % 2 else params[0].grad

    optimizer = ADAM(params)
    with track(optimizer) as rec:
        witness = Witness(optimizer)
        for step in range(3):
            for p in params:
                p.grad = torch.randn(p.shape)
            between(step, params, optimizer)
            optimizer.step()
    found = rec.recording()
    assert_rows_agree(found, witness.rec.recording(), [0, 1, 3, 4])
    assert found.status[:, 2].tolist() == ["no_gradient"] * 3


def test_no_gradient_at_all() -> None:
    params = parameters(torch.float16)
    optimizer = torch.optim.AdamW(params, lr=0.1)
    with track(optimizer) as rec:
        optimizer.step()
    found = rec.recording()
    assert set(found.status.ravel().tolist()) == {"no_gradient"}
    assert (found.update_norm == 0.0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite(bad: float) -> None:
    def between(step: int, params: list[Any], optimizer: Any) -> None:
        if step == 2:
            params[3].grad[5, 5] = bad

    run(parameters(torch.float32), SGD, between=between)


def test_angles_of_rounding_and_parallel_ones() -> None:
    """Plain gradient descent in float64, which no fast pass settles, and powers of two: the angle is exactly 0."""
    run(parameters(torch.float64), SGD)
    params = [nn.Parameter(torch.zeros(9000, dtype=torch.float64)), nn.Parameter(torch.zeros(4))]
    optimizer = torch.optim.SGD(params, lr=0.5)
    with track(optimizer) as rec:
        witness = Witness(optimizer)
        for p in params:
            p.grad = torch.randn(p.shape).to(p.dtype)
        optimizer.step()
    found = rec.recording()
    assert_rows_agree(found, witness.rec.recording())
    assert (found.angle == 0.0).all()
