"""Tracking of optimisers: the training stays the same bit by bit, and the rows say what the optimiser did."""

from __future__ import annotations

import copy
import math
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import steepest
from steepest.recording import Recording, recording

torch = pytest.importorskip("torch")

from steepest.torch import track  # noqa: E402 # needs torch

nn, functional = torch.nn, torch.nn.functional
RULES: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "adam foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=5),
    "lbfgs search": lambda p: torch.optim.LBFGS(p, max_iter=4, line_search_fn="strong_wolfe"),
}


@pytest.fixture(autouse=True)
def seeds() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def network() -> Any:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))


def data(n: int = 64) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(n, 6, generator=generator), torch.randint(3, (n,), generator=generator)


def train(
    model: Any, optimizer: Any, steps: int = 6, loss_of: Any = lambda loss: loss, set_to_none: bool = True
) -> None:
    """The loop that a user has, with mini-batches drawn from the global generator."""
    x, y = data()
    for _ in range(steps):
        batch = torch.randint(len(x), (16,))

        def closure(batch: Any = batch) -> Any:
            optimizer.zero_grad(set_to_none=set_to_none)
            loss = functional.cross_entropy(model(x[batch]), y[batch])
            loss_of(loss).backward()
            return loss

        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


def fixed_batch(model: Any) -> Callable[[], Any]:
    x, y = data()
    return lambda: functional.cross_entropy(model(x), y)


def bits(model: Any) -> bytes:
    state = {**model.state_dict(), **{f"{name}.grad": p.grad for name, p in model.named_parameters()}}
    generators = torch.get_rng_state().numpy().tobytes() + repr(random.getstate()).encode()
    numpy = repr(np.random.get_state()).encode()  # noqa: NPY002 # only looked at
    return b"".join(x.numpy().tobytes() for x in state.values()) + generators + numpy


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lag": {"lag": 2},
    "vectors": {"keep": "vectors", "every": 2},
    "evaluate": {"evaluate": True, "lag": 1, "every": 2, "evaluate_every": 4},
    "device": {"_working": torch.float64, "lag": 1, "evaluate": True},
    "device32": {"_working": torch.float32},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("rule", RULES)
def test_training_is_the_same_bit_by_bit(rule: str, option: str) -> None:
    start, found = network(), []
    for tracked in (False, True):
        model = copy.deepcopy(start)
        optimizer = RULES[rule](model.parameters())
        torch.manual_seed(1)
        if tracked:
            options = dict(OPTIONS[option])
            if options.get("evaluate"):
                options["evaluate"] = fixed_batch(model)  # in training mode, with dropout and batch statistics
            with track(optimizer, model, **options) as rec:
                train(model, optimizer, 6, rec.loss)
            assert len(rec.recording()) >= 3
        else:
            train(model, optimizer)
        found.append((bits(model), [module.training for module in model.modules()]))
    assert found[0] == found[1]


def reference(rule: str, start: Any, steps: int) -> tuple[dict[str, Any], list[float]]:
    """Parameters and gradients of an untracked run, copied by hand."""
    model = copy.deepcopy(start)
    optimizer = RULES[rule](model.parameters())
    params, grads, losses = [], [], []
    x, y = data()
    torch.manual_seed(1)
    for _ in range(steps):
        batch = torch.randint(len(x), (16,))
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x[batch]), y[batch])
        loss.backward()
        losses.append(loss.item())
        params.append([p.detach().clone() for p in model.parameters()])
        grads.append([p.grad.clone() for p in model.parameters()])
        optimizer.step()
    params.append([p.detach().clone() for p in model.parameters()])
    names = [name for name, _ in model.named_parameters()]
    whole = {
        key: {name: torch.stack([one[i] for one in each]).numpy() for i, name in enumerate(names)}
        for key, each in (("params", params), ("grad", grads))
    }
    return whole, losses


@pytest.mark.parametrize("rule", ["sgd", "momentum", "adam", "adam fused", "adamw", "rmsprop"])
def test_rows_are_those_of_the_arrays(rule: str) -> None:
    start = network()
    whole, losses = reference(rule, start, 6)
    optimizer = RULES[rule](start.parameters())
    torch.manual_seed(1)
    with track(optimizer, start, lag=1) as rec:
        train(start, optimizer, 6, rec.loss)
    found, expected = rec.recording(), recording(**whole, loss=losses)
    assert found.blocks == ("(all)", *whole["params"])
    for name in set(found.rows.dtype.names) - {"time", "psi_floor", "decay_share"}:
        assert found[name].tobytes() == expected[name].tobytes(), name
    after = np.concatenate([x[1:].reshape(6, -1) for x in whole["params"].values()], axis=1)
    spacing = np.linalg.norm(np.spacing(np.abs(after)).astype(float), axis=1)
    floor = np.arctan(spacing / math.sqrt(12.0) / found.update_norm[:, 0])
    assert found.psi_floor[:, 0] == pytest.approx(floor, rel=1e-6)
    assert found.gradient_source == "rule"
    assert found.objective == "unknown"


@pytest.mark.parametrize("working", [torch.float64, torch.float32])
@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_the_way_of_accelerators_gives_the_same_rows(rule: str, working: Any) -> None:
    model, rows = network(), []
    start = copy.deepcopy(model.state_dict())
    for way in (None, working):
        model.load_state_dict(start)
        optimizer = RULES[rule](model.parameters())
        torch.manual_seed(1)
        with track(optimizer, model, lag=2, every=4, _working=way) as rec:
            train(model, optimizer, 40, rec.loss)
            rec.skip("by hand")
            train(model, optimizer, 5, rec.loss)
        rows.append(rec.recording())
    host, device = rows
    assert device.blocks == host.blocks
    assert device.step.tolist() == host.step.tolist()
    assert device.notes == host.notes
    assert device.loss.tolist() == host.loss.tolist() or np.isnan(host.loss).any()
    ok = host.status == "ok"
    # A tiny bias before batch normalisation has a gradient of pure rounding, whose sign may stay undecided.
    assert (device.status == host.status)[ok].mean() > 0.9
    assert np.nan_to_num(device.loss).tolist() == np.nan_to_num(host.loss).tolist()
    exponents = {"yy": ("y_exponent",) * 2, "yg": ("y_exponent", "g_exponent"), "gg": ("g_exponent",) * 2}
    for name, (a, b) in exponents.items():
        values = [np.ldexp(r[name] + r[name + "_lo"], r[a] + r[b]) for r in rows]
        bounds = [np.ldexp(r[name + "_bound"], r[a] + r[b]) for r in rows]
        assert (np.abs(values[0] - values[1]) <= sum(bounds) + 4e-16 * np.abs(values[0]))[ok].all(), name
    for name in ("lag_yy", "lag_yg", "lag_gy", "lag_gg"):
        values = [np.ldexp(r[name] + r[name + "_lo"], r[name + "_exponent"]) for r in rows]
        bounds = [np.ldexp(r[name + "_bound"], r[name + "_exponent"]) for r in rows]
        assert (np.isnan(values[0]) == np.isnan(values[1])).all(), name
        assert np.isfinite(values[0]).sum() > 20
        known = np.isfinite(values[0])
        assert (np.abs(values[0] - values[1]) <= sum(bounds) + 4e-16 * np.abs(values[0]))[known].all(), name
    for name in ("psi_floor", "decay_share", "sign_flip_variance"):
        assert device[name][ok] == pytest.approx(host[name][ok], rel=1e-5, nan_ok=True), name
    assert device["cosine"][ok] == pytest.approx(host["cosine"][ok], abs=1e-9)


def test_gradient_is_what_the_optimiser_consumes() -> None:
    """Accumulated and clipped: plain SGD stays at 0 degrees within rounding, and |grad| is the clipped norm."""
    model, (x, y) = network(), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with track(optimizer, model) as rec:
        for _ in range(3):
            optimizer.zero_grad()
            for part in range(4):
                functional.cross_entropy(model(x[part::4]), y[part::4]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            optimizer.step()
    found = rec.recording()
    assert found.grad_norm[:, 0] == pytest.approx([0.05] * 3, rel=1e-4)
    assert (found.angle[:, 0] < 3 * found.psi_floor[:, 0]).all()
    assert found.alignment(1).within_rounding or found.angle[1, 0] < 1e-4
    assert np.isnan(found.loss).all()


def test_hooks_that_come_later_are_seen() -> None:
    p = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD([p], lr=0.5)
    with track(optimizer) as rec:

        def double(*_: Any) -> None:
            p.grad.mul_(2.0)

        optimizer.register_step_pre_hook(double)
        for _ in range(3):
            p.grad = torch.tensor([1.0, 0.0])
            optimizer.step()
    # The first step is where the later hook is noticed.
    assert rec.recording().grad_norm[1:, 0].tolist() == [2.0, 2.0]
    assert rec.recording().status[:, 0].tolist() == ["no_gradient", "ok", "ok"]


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("rule", ["lbfgs", "lbfgs search"])
def test_closures_count_where_the_step_begins(rule: str, set_to_none: bool) -> None:
    x, y = data()
    expected, found = [], []
    for inside in (True, False):
        model, calls = nn.Linear(6, 3), 0
        optimizer = RULES[rule](model.parameters())
        with track(optimizer, model) as rec:
            for _ in range(3):
                loss = functional.cross_entropy(model(x), y)
                grads = torch.autograd.grad(loss, list(model.parameters()))
                before = [p.detach().clone() for p in model.parameters()]

                def closure(
                    inside: bool = inside, rec: Any = rec, model: Any = model, optimizer: Any = optimizer
                ) -> Any:
                    nonlocal calls
                    calls += 1
                    optimizer.zero_grad(set_to_none=set_to_none)
                    loss = functional.cross_entropy(model(x), y)
                    (rec.loss(loss) if inside else loss).backward()
                    return loss

                if inside:
                    optimizer.step(closure)
                else:
                    optimizer.step(closure=closure)
                update = [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]
                expected.append((loss.item(), steepest.align(*(dict(enumerate(v)) for v in (grads, update)))))
        assert calls > 3
        found.append(rec.recording())
    for i, (loss, a) in enumerate(expected):
        rec_, step = found[i // 3], i % 3
        assert rec_.loss[step] == loss
        assert rec_.status[step, 0] == a.status
        assert rec_.alignment(step).angle == pytest.approx(a.angle, rel=1e-12, nan_ok=True)
        assert rec_.alignment(step).grad_norm == pytest.approx(a.grad_norm, rel=1e-12)


def test_closure_of_one_evaluation() -> None:
    p = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD([p], lr=0.5)

    def closure() -> float:
        p.grad = p.detach().clone()
        return 12.5

    with track(optimizer) as rec:
        assert optimizer.step(closure) == 12.5
    assert rec.recording().loss.tolist() == [12.5]
    assert rec.recording().grad_norm[0].tolist() == [5.0, 5.0]


def test_evaluation_gives_loss_and_gradient() -> None:
    model, (x, y) = nn.Linear(6, 3), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    full: list[tuple[float, float]] = []
    with (
        track(optimizer, model) as rule,
        track(optimizer, model, evaluate=fixed_batch(model), lag=1) as evaluation,
    ):
        for step in range(4):
            batch = torch.randint(len(x), (4,))
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), y)
            grads = torch.autograd.grad(loss, list(model.parameters()))
            full.append((loss.item(), math.sqrt(sum(float((g.double() ** 2).sum()) for g in grads))))
            loss = functional.cross_entropy(model(x[batch]), y[batch])
            rule.loss(evaluation.loss(loss)).backward()
            optimizer.step()
            assert len(rule) == step + 1
    final = functional.cross_entropy(model(x), y).item()
    own, found = rule.recording(), evaluation.recording()
    assert (own.gradient_source, own.objective) == ("rule", "unknown")
    assert (found.gradient_source, found.objective) == ("evaluation", "fixed")
    assert (own.angle[:, 0] < 1e-4).all()  # by construction
    assert (found.angle[:4, 0] > 0.1).all()  # four examples of 64
    assert found.update_norm[:4, 0].tolist() == own.update_norm[:, 0].tolist()
    assert found.loss.tolist() == [*(loss for loss, _ in full), final]  # the last row closes the last step
    assert found.grad_norm[:4, 0] == pytest.approx([norm for _, norm in full], rel=1e-6)
    assert found.status[:, 0].tolist()[4] == "no_update"
    assert np.isfinite(found["lag_yg"][4, 0])


def test_evaluation_is_one_function_and_leaves_no_trace() -> None:
    """Dropout draws the same masks, batch statistics and modes are put back, whatever the callable does."""
    model, (x, y) = network(), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    losses = []

    def evaluate() -> tuple[Any, dict[str, Any]]:
        model.train()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()  # into .grad, as naive code would
        grads = {name: p.grad for name, p in model.named_parameters()}
        model.eval()
        torch.rand(3), random.random(), np.random.random()  # noqa: NPY002 # generators are put back
        losses.append(loss.item())
        return loss.detach(), grads

    with track(optimizer, model, evaluate=evaluate, evaluate_every=2) as rec:
        train(model, optimizer, 5)
        before = bits(model)
        model.eval()
    assert bits(model) == before
    assert len(losses) == 3
    assert len(set(losses)) == 1
    found = rec.recording()
    # lr = 0: no update, also where nothing was evaluated; and step 5 is not due, so that nothing closes the recording.
    assert found.status[:, 0].tolist() == ["zero_update", "no_gradient"] * 2 + ["zero_update"]
    assert np.isnan(found.loss).tolist() == [False, True, False, True, False]


def test_evaluate_refuses() -> None:
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = data()

    def run(evaluate: Any) -> None:
        with track(optimizer, model, evaluate=evaluate):
            train(model, optimizer, 1)

    with pytest.raises(ValueError, match="requires_grad=False"):
        run(lambda: functional.cross_entropy(model(x), y).detach())
    with pytest.raises(TypeError, match="got float"):
        run(lambda: 1.0)
    with pytest.raises(ValueError, match="one gradient for each of 2 parameters, got 1"):
        run(lambda: (1.0, [model.weight]))
    with pytest.raises(ValueError, match="gradient of 'bias'"):
        run(lambda: (1.0, {"weight": model.weight, "bias": model.weight}))
    with pytest.raises(ValueError, match="by the names"):
        run(lambda: (1.0, {"wait": model.weight}))
    with pytest.raises(TypeError, match="callable"):
        track(optimizer, model, evaluate=3)
    for wrong in ({"evaluate_every": 2}, {"evaluate": fixed_batch(model), "every": 2, "evaluate_every": 3}):
        with pytest.raises(ValueError, match="evaluate_every"):
            track(optimizer, model, **wrong)
    assert not optimizer._optimizer_step_pre_hooks


def test_names_frozen_tied_and_compiled() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4)
            self.head = nn.Linear(4, 5, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Any) -> Any:
            return self.head(self.norm(self.embed(x)))

    model = Tied()
    model.norm.bias.requires_grad_(False)
    compiled = torch.compile(model, backend="eager")
    groups = [{"params": [model.norm.weight, model.norm.bias], "lr": 0.1}, {"params": [model.head.weight]}]
    optimizer = torch.optim.SGD(groups, lr=0.01)
    for named, expected in ((compiled, ("norm.weight", "embed.weight")), (None, ("param_0", "param_2"))):
        rec = track(optimizer, named)
        assert rec.names == expected
        rec.close()
    inner = nn.Sequential(nn.Linear(2, 2), torch.compile(nn.Linear(2, 1), backend="eager"))
    with track(torch.optim.SGD(inner.parameters(), lr=0.1), inner) as rec:
        assert rec.names == ("0.weight", "0.bias", "1.weight", "1.bias")
    optimizer = torch.optim.SGD(compiled.named_parameters(), lr=0.1)
    if "param_names" in optimizer.param_groups[0]:  # torch >= 2.6
        assert track(optimizer).names == ("embed.weight", "norm.weight")


def test_missing_gradients() -> None:
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([used, unused], lr=0.1)
    for working in (None, torch.float64):
        with track(optimizer, lag=1, _working=working) as rec:
            for step in range(4):
                optimizer.zero_grad()
                loss = (used**2).sum()
                if step != 1:
                    loss = loss + (unused**2).sum()
                if step < 3:
                    loss.backward()
                optimizer.step()
        found = rec.recording()
        assert found.status[1].tolist() == ["ok", "ok", "no_gradient"]
        assert found.status[3].tolist() == ["no_gradient"] * 3
        assert found.grad_norm[1, 0] == found.grad_norm[1, 1]  # as zeros in the whole
        assert math.isnan(found.grad_norm[1, 2])
        assert found.update_norm[1, 2] == 0.0
        lags = {name: np.isnan(found[name][:, 2, 0]).tolist() for name in ("lag_yy", "lag_yg", "lag_gy", "lag_gg")}
        assert lags == {
            "lag_yy": [True, True, True, True],
            "lag_yg": [True, True, False, True],
            "lag_gy": [True, False, True, False],
            "lag_gg": [True, False, False, False],
        }
        assert np.isfinite(found["lag_yy"][1:3, 0]).all()
        with torch.no_grad():
            used.fill_(1.0), unused.fill_(1.0)


def test_decoupled_weight_decay_is_a_share_of_the_update() -> None:
    for working in (None, torch.float64):
        p, q = nn.Parameter(torch.tensor([3.0, 4.0])), nn.Parameter(torch.tensor([1.0]))
        groups = [{"params": [p], "weight_decay": 0.1}, {"params": [q], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=torch.tensor(0.01))
        with track(optimizer, _working=working) as rec:
            p.grad, q.grad = torch.tensor([1.0, -1.0]), torch.tensor([1.0])
            optimizer.step()
        found = rec.recording()
        update = [-0.01 - 0.003, 0.01 - 0.004]  # the first step of Adam has length lr in each direction
        share = 0.01 * 0.1 * 5.0 / math.hypot(*update)
        assert found["decay_share"][0, 1] == pytest.approx(share, rel=1e-4)
        assert found["decay_share"][0, 2] == 0.0
        assert found["decay_share"][0, 0] == pytest.approx(0.005 / math.hypot(*update, 0.01), rel=1e-4)
        assert found.grad_norm[0, 1] == math.sqrt(2)  # never added to the gradient


def test_coupled_and_unknown_weight_decay() -> None:
    class Own(torch.optim.Optimizer):
        def __init__(self, params: Any, **defaults: Any) -> None:
            super().__init__(params, {"lr": 0.1, **defaults})

        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.add_(p.grad + group.get("weight_decay", 0.0) * p.data, alpha=-group["lr"])

    def share(optimizer: Any) -> float:
        p = optimizer.param_groups[0]["params"][0]
        with track(optimizer) as rec:
            p.grad = torch.tensor([1.0, -1.0])
            optimizer.step()
        return float(rec.recording()["decay_share"][0, 1])

    def fresh() -> list[Any]:
        return [nn.Parameter(torch.tensor([3.0, 4.0]))]

    assert share(torch.optim.SGD(fresh(), lr=0.1, weight_decay=0.1)) == 0.0
    assert share(torch.optim.Adam(fresh(), lr=0.1, weight_decay=0.1)) == 0.0
    assert share(torch.optim.Rprop(fresh())) == 0.0
    assert math.isnan(share(Own(fresh(), weight_decay=0.1)))
    assert math.isnan(share(Own(fresh())))
    assert share(Own(fresh(), weight_decay=0.0)) == 0.0
    part = 0.1 * 0.5 * 5.0
    assert share(Own(fresh(), weight_decay=0.5, decoupled=True)) == pytest.approx(
        part / math.hypot(0.1 + 0.15, -0.1 + 0.2), rel=1e-5
    )


def test_scaler_that_skips() -> None:
    """Gradients are seen unscaled; fused optimisers report their skipped steps, for others the loop does."""
    for options in ({}, {"fused": True}):
        p = nn.Parameter(torch.tensor([3.0, 4.0]))
        optimizer = torch.optim.SGD([p], lr=0.1, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        with track(optimizer, every=3) as rec:
            for step in range(7):
                optimizer.zero_grad()
                loss = 0.5 * (p**2).sum() * (math.inf if step in (1, 3) else 1.0)
                scaler.scale(rec.loss(loss)).backward()
                before = scaler.get_scale()
                scaler.step(optimizer)
                scaler.update()
                if not options and scaler.get_scale() < before:
                    rec.skip("gradient scaler")
        found = rec.recording()
        assert found.step.tolist() == [0, 1, 3, 6]
        assert found.status[:, 0].tolist() == ["ok", "skipped", "skipped", "ok"]
        assert found.notes == ("", "gradient scaler", "gradient scaler", "")
        assert found.grad_norm[[0, 3], 0] == pytest.approx([5.0, 5.0 * 0.9**4], rel=1e-6)
        assert found.angle[[0, 3], 0] == pytest.approx([0.0, 0.0], abs=1e-5)


def test_scaled_gradients_that_only_the_optimiser_unscales() -> None:
    class Own(torch.optim.Optimizer):
        _step_supports_amp_scaling = True

        def step(self, closure: Any = None) -> None:
            self.param_groups[0]["params"][0].data.sub_(0.1)

    p = nn.Parameter(torch.tensor([3.0]))
    optimizer, scaler = Own([p], {}), torch.amp.GradScaler("cpu")
    with track(optimizer) as rec:
        scaler.scale((p**2).sum()).backward()
        with pytest.raises(ValueError, match="unscale_"):
            scaler.step(optimizer)
        del optimizer.grad_scale, optimizer.found_inf
        scaler.update()
        optimizer.zero_grad()
        scaler.scale((p**2).sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
    assert rec.recording().grad_norm[:, 0].tolist() == [6.0]


def test_optimiser_that_changes_gradients(caplog: pytest.LogCaptureFixture) -> None:
    class Own(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            for p in self.param_groups[0]["params"]:
                p.grad.mul_(7.0)
            super().step(closure)

    p = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = Own([p], lr=0.1)
    with track(optimizer) as rec:
        for _ in range(3):
            p.grad = torch.tensor([0.6, 0.8])
            optimizer.step()
    found = rec.recording()
    assert found.status[:, 0].tolist() == ["no_gradient", "ok", "ok"]
    assert found.notes[0] == "optimizer changed .grad"
    assert "copied from now on" in caplog.text
    assert found.grad_norm[1:, 0] == pytest.approx([1.0, 1.0])
    assert found.update_norm[:, 0] == pytest.approx([0.7] * 3)


def test_refusals() -> None:
    with pytest.raises(TypeError, match="complex64"):
        track(torch.optim.SGD([nn.Parameter(torch.ones(2, dtype=torch.complex64))], lr=0.1))
    with pytest.raises(TypeError, match="meta"):
        track(torch.optim.SGD([nn.Parameter(torch.ones(2, device="meta"))], lr=0.1))
    with pytest.raises(TypeError, match="got Linear"):
        track(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="require a gradient"):
        track(torch.optim.SGD([nn.Parameter(torch.ones(2), requires_grad=False)], lr=0.1))
    embedding = nn.Embedding(4, 3, sparse=True)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.1)
    with track(optimizer, embedding):
        embedding(torch.tensor([1, 2])).sum().backward()
        before = embedding.weight.detach().clone()
        with pytest.raises(TypeError, match=r"'weight'.*sparse=False"):
            optimizer.step()
        assert torch.equal(before, embedding.weight)  # refused before the step


def test_optimiser_in_backward_is_refused() -> None:
    model, (x, y) = nn.Linear(6, 3), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rec = track(optimizer, model)
    handle = model.bias.register_post_accumulate_grad_hook(lambda p: optimizer.step())
    with pytest.raises(RuntimeError, match="inside the backward pass"):
        functional.cross_entropy(model(x), y).backward()
    rec.close()
    with pytest.raises(ValueError, match="'bias' has a post-accumulate-grad hook"):
        track(optimizer, model)
    handle.remove()
    track(optimizer, model).close()


def test_parameters_that_appear_later(caplog: pytest.LogCaptureFixture) -> None:
    p, q, frozen = (nn.Parameter(torch.ones(2)) for _ in range(3))
    frozen.requires_grad_(False)
    optimizer = torch.optim.SGD([p, frozen], lr=0.1)
    rec = track(optimizer)
    frozen.requires_grad_(True)
    with pytest.raises(ValueError, match="frozen"):
        optimizer.step()
    frozen.requires_grad_(False)
    optimizer.add_param_group({"params": [q]})
    with pytest.raises(ValueError, match="track again"):
        optimizer.step()
    rec.close()
    assert "nothing was recorded" in caplog.text
    with track(optimizer) as rec:
        assert rec.names == ("param_0", "param_2")
        optimizer.step()
    assert rec.recording().status.tolist() == [["no_gradient"] * 3]
    with pytest.raises(ValueError, match="closed"):
        rec.skip()


def test_path_resume_every_and_skip(tmp_path: Path) -> None:
    for working in (None, torch.float64):
        model, path = nn.Linear(6, 3), tmp_path / str(working)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with track(optimizer, model, path, every=3, _working=working) as rec:
            rec.skip("first")
            train(model, optimizer, 5, rec.loss)
            rec.skip("second")
        with pytest.raises(FileExistsError):
            track(optimizer, model, path)
        with track(optimizer, model, path, every=3, resume=True, sync=True, _working=working) as rec:
            train(model, optimizer, 6, rec.loss)
            assert len(rec.recording()) == len(rec) == 5
        found = Recording.open(path)
        assert found.step.tolist() == [0, 3, 6, 9, 12]
        assert found.notes[0] == "first"


def test_kept_vectors(tmp_path: Path) -> None:
    for working, dtype in ((None, torch.float32), (None, torch.bfloat16), (torch.float64, torch.float32)):
        model = nn.Linear(6, 3).to(dtype)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        path = tmp_path / f"{working}{dtype}"
        with track(optimizer, model, path, keep="vectors", _working=working) as rec:
            for t in range(3):
                before = {name: p.detach().clone() for name, p in model.named_parameters()}
                x = torch.randn(8, 6).to(dtype)
                optimizer.zero_grad()
                rec.loss((model(x) ** 2).mean()).backward()
                optimizer.step()
                stored = rec.recording().vectors(t)
                for name, p in model.named_parameters():
                    values = [torch.as_tensor(np.array(v[name], dtype=np.float64)) for v in
                              (stored.params, stored.grad, stored.update)]  # fmt: skip
                    assert torch.equal(values[0], before[name].double())
                    assert torch.equal(values[1], p.grad.double())
                    assert torch.equal(values[2], (p.detach().float() - before[name].float()).double())


def test_updates_of_half_precision_keep_their_digits() -> None:
    """The difference of two bfloat16 numbers needs more than 8 bits."""
    for working in (None, torch.float64):
        p = nn.Parameter(torch.tensor([1.0, -3.0, 100.0], dtype=torch.bfloat16))
        before = p.detach().double().clone()
        optimizer = torch.optim.SGD([p], lr=1.0)
        with track(optimizer, _working=working) as rec:
            p.grad = torch.tensor([200.0, 5.0, 0.015], dtype=torch.bfloat16)
            optimizer.step()
        norm = float(torch.linalg.vector_norm(p.detach().double() - before))
        assert rec.recording().update_norm[0, 0] == pytest.approx(norm, rel=1e-15)


def test_log() -> None:
    for working in (None, torch.float64):
        model, rows = nn.Linear(6, 3), []
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        with track(optimizer, model, log=rows.append, log_blocks=True, every=2, _working=working) as rec:
            train(model, optimizer, 3, rec.loss)
            rec.skip("why")
        found = rec.recording()
        assert [row["steepest/step"] for row in rows] == [0.0, 2.0, 3.0]
        for row, step in zip(rows[:2], (0, 2), strict=True):
            assert row["steepest/psi"] == found.alignment(step).angle_degrees
            assert row["steepest/cond_min"] == found.alignment(step).cond_min
            assert row["steepest/grad_norm/bias"] == found.alignment(step, "bias").grad_norm
            assert {type(x) for x in row.values()} == {float}
        assert rows[0]["steepest/loss"] == found.loss[0]
        assert rows[2] == {"steepest/step": 3.0}  # what is unknown is left out


def test_two_optimisers() -> None:
    model, (x, y) = network(), data()
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    second = torch.optim.Adam(model[4].parameters(), lr=0.1)
    with track(first, model) as one, track(second, model) as two:
        functional.cross_entropy(model(x), y).backward()
        first.step()
        second.step()
    assert one.names == ("0.weight", "0.bias")
    assert two.names == ("4.weight", "4.bias")
    assert len(one.recording()) == len(two.recording()) == 1


def test_loss_and_handle() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=0.1)
    rec = track(optimizer)
    loss = (p**2).sum()
    assert rec.loss(loss) is loss
    assert rec.loss(2.5) == 2.5
    loss.backward()
    optimizer.step()
    optimizer.step()
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        rec.loss(p)
    with pytest.raises(ValueError, match="24 bytes"):
        rec.skip("x" * 25)
    rec.close()
    rec.close()
    optimizer.step()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    found = rec.recording()
    assert found.loss.tolist()[:1] == [2.5]
    assert math.isnan(found.loss[1])
    assert "2 steps recorded, closed" in repr(rec)


def test_scheduler_and_state_are_left_alone() -> None:
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    with track(optimizer, model) as rec:
        for _ in range(4):
            train(model, optimizer, 1)
            scheduler.step()
        other = copy.deepcopy(optimizer)
        assert other.state_dict().keys() == optimizer.state_dict().keys()
    assert len(rec.recording()) == 4


def test_failed_step_leaves_no_row() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=0.1)

    def closure() -> Any:
        raise KeyError("from the user's code")

    with track(optimizer) as rec:
        with pytest.raises(KeyError):
            optimizer.step(closure)
        p.grad = torch.ones(2)
        optimizer.step()
    assert rec.recording().step.tolist() == [0]


@pytest.mark.parametrize("working", [None, torch.float64, torch.float32])
def test_scalars_empty_parameters_and_strides(working: Any) -> None:
    scalar, empty = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.ones(0, 3))
    image = nn.Parameter(torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last))
    slanted = nn.Parameter(torch.randn(6, 4).T)
    optimizer = torch.optim.Adam([scalar, empty, image, slanted], lr=0.1)
    with track(optimizer, _working=working) as rec:
        assert rec.names == ("param_0", "param_2", "param_3")
        params = [scalar, image, slanted]
        before = [p.detach().clone() for p in params]
        (scalar * 3 + (image * torch.randn(4, 3, 5, 5)).sum() + (slanted**2).sum() + empty.sum()).backward()
        grads = [p.grad.contiguous() for p in params]
        optimizer.step()
    updates = [(p.detach() - b).contiguous() for p, b in zip(params, before, strict=True)]
    for i, name in enumerate(rec.names):
        expected = steepest.align(grads[i], updates[i])
        found = rec.recording().alignment(0, name)
        assert found.status == expected.status == "ok"
        assert found.angle == pytest.approx(expected.angle, abs=1e-7 if working else 0.0)
        assert found.null_sign_flip == pytest.approx(expected.null_sign_flip, rel=1e-6)


@pytest.mark.parametrize("working", [None, torch.float64, torch.float32])
def test_not_finite(working: Any) -> None:
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p, q], lr=0.1)
    with track(optimizer, lag=1, _working=working) as rec:
        for bad in (1.0, math.inf, math.nan):
            p.grad, q.grad = torch.tensor([1.0, bad, 1.0]), torch.ones(2)
            optimizer.step()
    assert rec.recording().status.tolist() == [["ok"] * 3] + [["nonfinite", "nonfinite", "ok"]] * 2


def test_moved_and_widened_parameters() -> None:
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = data()
    with track(optimizer, model) as rec:
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            model.to(dtype)
            optimizer.zero_grad()
            functional.cross_entropy(model(x.to(dtype)), y).backward()
            optimizer.step()
    assert rec.recording().to_dict()["dtype"] == [[name] * 3 for name in ("float32", "float64", "bfloat16")]
    assert (rec.recording().angle[:2, 0] < 1e-5).all()


def test_cost_in_memory() -> None:
    """One resident copy, in the dtype of the parameters; nothing else that grows with them."""
    for dtype in (torch.float32, torch.bfloat16):
        p = nn.Parameter(torch.ones(1000, 1000, dtype=dtype))
        optimizer = torch.optim.SGD([p], lr=0.1)
        with track(optimizer) as rec:
            p.grad = torch.ones_like(p)
            optimizer.step()
            (copy_,) = rec._copy._before.segments
            address = copy_.ctypes.data
            assert copy_.nbytes == p.nbytes
            tracemalloc.start()
            for _ in range(3):
                p.grad = torch.ones_like(p)
                optimizer.step()
            assert tracemalloc.get_traced_memory()[1] < 1e5  # NumPy's arrays are among it
            tracemalloc.stop()
            assert rec._copy._before.segments[0].ctypes.data == address
            assert not rec._before
            assert not rec._update
        assert rec._copy is None


@pytest.mark.filterwarnings("ignore")
def test_compiled_step() -> None:
    """The hooks of a compiled step run between its graphs."""
    rows = []
    start = nn.Linear(6, 3)
    for compiled in (False, True):
        model = copy.deepcopy(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        x, y = data()
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        with track(optimizer, model) as rec:
            for _ in range(3):
                optimizer.zero_grad()
                rec.loss(functional.cross_entropy(model(x), y)).backward()
                step()
        rows.append(rec.recording())
    for name in ("yy", "yg", "gg", "loss", "cosine"):
        assert rows[0][name].tolist() == rows[1][name].tolist()
