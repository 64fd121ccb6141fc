"""Tracked optax training: the training itself is untouched, and the recording agrees with that of a NumPy loop."""

import doctest
import logging
import math
from typing import NamedTuple

import numpy as np
import pytest

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
import jax.numpy as jnp  # noqa: E402

import steepest  # noqa: E402
import steepest.optax  # noqa: E402

RULES = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "adam": lambda: optax.adam(1e-2),
    "adamw": lambda: optax.adamw(1e-2, weight_decay=0.1),
    "clipped adam": lambda: optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2)),
}


class Readout(NamedTuple):
    kernel: object
    bias: object


def parameters(dtype=jnp.float32):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    return {"hidden": [draw(20, 15), draw(15)], "readout": Readout(draw(15, 3), jnp.zeros(3, dtype))}


NAMES = ("hidden/0", "hidden/1", "readout/kernel", "readout/bias")
INPUTS = np.random.default_rng(1).standard_normal((30, 20)).astype(np.float32)


def loss_fn(p):
    h = jnp.tanh(INPUTS @ p["hidden"][0] + p["hidden"][1])
    return jnp.mean((h @ p["readout"].kernel + p["readout"].bias - 1) ** 2)


def step_of(tx, known=True):
    def step(carry, _):
        params, state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params)
        extra = {"value": loss} if known else {}
        updates, state = optax.with_extra_args_support(tx).update(grads, state, params, **extra)
        return (optax.apply_updates(params, updates), state), (params, loss, grads, updates)

    return step


def train(tx, steps, how, params=None, known=True):
    params = parameters() if params is None else params
    step = step_of(tx, known)
    carry = params, tx.init(params)
    if how == "scan":
        carry, history = jax.jit(lambda c: jax.lax.scan(step, c, None, length=steps))(carry)
        return *carry, [jax.tree.map(lambda x, t=t: x[t], history) for t in range(steps)]
    history = []
    step = {"jit": jax.jit(step), "donate": jax.jit(step, donate_argnums=0), "eager": step}[how]
    if how == "donate":
        carry = jax.tree.map(jnp.copy, carry)
    for _ in range(steps):
        carry, seen = step(carry, None)
        history.append(jax.tree.map(np.asarray, seen))
    return *carry, history


def named(tree):
    return dict(zip(NAMES, map(np.asarray, jax.tree.leaves(tree)), strict=True))


def numpy_recording(history, **options):
    recorder = steepest.Recorder(**options)
    for params, loss, grads, updates in history:
        recorder.step(params=named(params), loss=loss, grad=named(grads), update=named(updates))
    return recorder.recording()


def same_bits(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("how", ["eager", "jit", "donate", "scan"])
@pytest.mark.parametrize("rule", RULES)
def test_training_is_untouched_and_the_recording_agrees_with_numpy(rule, how):
    steps = 3 if how == "eager" else 12
    tracked = steepest.optax.track(RULES[rule]())
    params, state, history = train(tracked, steps, how)
    plain, plain_state, _ = train(RULES[rule](), steps, how)
    assert same_bits(params, plain)
    assert same_bits(state.inner, plain_state)

    rec, oracle = steepest.optax.read(state), numpy_recording(history)
    assert rec.info == oracle.info
    assert rec.blocks == ("(all)", *NAMES)
    assert rec.step.tolist() == list(range(steps))
    np.testing.assert_array_equal(rec.loss, oracle.loss)
    np.testing.assert_array_equal(rec.status, oracle.status)
    # The update that is measured under jit is computed a second time, and may be rounded differently: 1e-7 an element.
    tight = how == "eager"
    np.testing.assert_allclose(rec["cosine"], oracle["cosine"], rtol=0, atol=1e-13 if tight else 1e-6)
    np.testing.assert_allclose(rec.angle, oracle.angle, rtol=0, atol=3e-7 if tight else 1e-6)  # sqrt of 1e-13
    np.testing.assert_allclose(rec.grad_norm, oracle.grad_norm, rtol=1e-13)
    np.testing.assert_allclose(rec.update_norm, oracle.update_norm, rtol=1e-13 if tight else 1e-6)
    np.testing.assert_allclose(rec.psi_floor, oracle.psi_floor, rtol=1e-5)
    np.testing.assert_allclose(rec["sign_flip_variance"], oracle["sign_flip_variance"], rtol=1e-5)
    assert (rec["dtype"] == oracle["dtype"]).all()
    for name in ("yy", "gg"):
        relative = rec[name + "_bound"] / rec[name]
        assert (relative > 0).all()
        assert relative.max() < 1e-10


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(dtype):
    tx = steepest.optax.track(optax.adam(1e-2))
    params = parameters(dtype)
    state = tx.init(params)
    grads = jax.grad(loss_fn)(params)
    updates, state = tx.update(grads, state, params)
    rec, oracle = steepest.optax.read(state), numpy_recording([(params, math.nan, grads, updates)])
    np.testing.assert_allclose(rec.angle, oracle.angle, atol=1e-9)
    np.testing.assert_allclose(rec.psi_floor, oracle.psi_floor, rtol=1e-5)
    assert (rec["dtype"] == oracle["dtype"]).all()


def test_float64():
    with jax.enable_x64(True):
        _, state, history = train(steepest.optax.track(optax.adam(1e-2)), 5, "jit", parameters(jnp.float64))
        rec, oracle = steepest.optax.read(state), numpy_recording(history)
    assert state.floats.dtype == np.float64
    np.testing.assert_allclose(rec.angle, oracle.angle, rtol=1e-12)
    np.testing.assert_allclose(rec["cosine"], oracle["cosine"], rtol=1e-12)
    assert (rec["yg_bound"] < 1e-26 * np.sqrt(rec["yy"] * rec["gg"])).all()


def test_float32_under_x64_is_measured_in_float64():
    with jax.enable_x64(True):
        tx = steepest.optax.track(optax.sgd(0.1))
        _, state, history = train(tx, 2, "jit")
        assert state.floats.dtype == np.float64
    np.testing.assert_allclose(steepest.optax.read(state).angle, numpy_recording(history).angle, atol=1e-6)


@pytest.mark.parametrize("bit_identical", [True, False])
@pytest.mark.parametrize("how", ["jit", "scan"])
def test_every(how, bit_identical):
    tx = steepest.optax.track(optax.adam(1e-2), every=3, bit_identical=bit_identical)
    params, state, history = train(tx, 11, how)
    rec, oracle = steepest.optax.read(state), numpy_recording(history, every=3)
    assert rec.step.tolist() == [0, 3, 6, 9]
    assert rec.info == oracle.info
    np.testing.assert_array_equal(rec.loss, oracle.loss)
    np.testing.assert_allclose(rec.angle, oracle.angle, atol=1e-6)
    if bit_identical:
        assert same_bits(params, train(optax.adam(1e-2), 11, how)[0])


def test_the_ring_buffer_keeps_the_last_steps_and_says_so(caplog):
    tx = steepest.optax.track(optax.sgd(0.1), capacity=4)
    _, state, history = train(tx, 10, "scan")
    with caplog.at_level(logging.WARNING, "steepest"):
        rec = steepest.optax.read(state)
    assert rec.step.tolist() == [6, 7, 8, 9]
    np.testing.assert_array_equal(rec.loss, numpy_recording(history).loss[6:])
    assert "first 6 of 10" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "steepest"):
        steepest.optax.read(train(tx, 4, "scan")[1])
    assert not caplog.text


def test_capacity_and_every_together():
    tx = steepest.optax.track(optax.sgd(0.1), capacity=3, every=2)
    assert steepest.optax.read(train(tx, 11, "jit")[1]).step.tolist() == [6, 8, 10]
    assert steepest.optax.read(train(tx, 3, "jit")[1]).step.tolist() == [0, 2]


@pytest.mark.parametrize("how", ["eager", "jit", "scan"])
@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_lag(rule, how):
    tx = steepest.optax.track(RULES[rule](), lag=1, capacity=4)
    params, state, history = train(tx, 7, how)
    assert same_bits(params, train(RULES[rule](), 7, how)[0])
    rec, oracle = steepest.optax.read(state), numpy_recording(history, lag=1)
    assert rec.info == oracle.info
    assert np.isnan(rec["lag_yy"][0]).all()  # the step before was overwritten
    length = {"yy": oracle.grad_norm, "gg": oracle.update_norm}
    for product, (one, other) in {
        "lag_yy": ("yy", "yy"), "lag_yg": ("yy", "gg"), "lag_gy": ("gg", "yy"), "lag_gg": ("gg", "gg"),
    }.items():  # fmt: skip
        found = np.ldexp(rec[product][1:, :, 0], rec[product + "_exponent"][1:, :, 0])
        wanted = np.ldexp(oracle[product][4:, :, 0], oracle[product + "_exponent"][4:, :, 0])
        norms = length[one][4:] * length[other][3:-1]
        assert (np.abs(found - wanted) <= (1e-12 if how == "eager" else 2e-6) * norms).all()
        bound = np.ldexp(rec[product + "_bound"][1:, :, 0], rec[product + "_exponent"][1:, :, 0])
        assert (bound > 0).all()
        assert (bound < 1e-10 * norms).all()
        if how == "eager":
            assert (np.abs(found - wanted) <= bound).all()


def test_lag_beside_what_is_not_finite():
    params = {"a": jnp.ones(5), "b": jnp.ones(2)}
    tx = steepest.optax.track(optax.sgd(0.1), lag=1)
    state = tx.init(params)
    for a in (1.0, np.nan, 2.0, 0.0):
        grads = {"a": jnp.full(5, a), "b": jnp.ones(2)}
        _, state = tx.update(grads, state, params)
    rec = steepest.optax.read(state)
    found = np.ldexp(rec["lag_yy"][:, :, 0], rec["lag_yy_exponent"][:, :, 0])
    np.testing.assert_array_equal(found[:, 2], [np.nan, 2, 2, 2])
    np.testing.assert_array_equal(found[:, 1], [np.nan, np.nan, np.nan, 0])
    with pytest.raises(TypeError, match="dtype"):
        tx.update(jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), state, params)


def test_blocks_false_is_one_vector():
    whole = steepest.optax.read(train(steepest.optax.track(optax.adam(1e-2), blocks=False), 3, "jit")[1])
    rec = steepest.optax.read(train(steepest.optax.track(optax.adam(1e-2)), 3, "jit")[1])
    assert whole.blocks == ("(all)",)
    assert whole.sizes == rec.sizes[:1]
    np.testing.assert_allclose(whole.angle[:, 0], rec.angle[:, 0], rtol=1e-9)
    np.testing.assert_allclose(whole.psi_floor[:, 0], rec.psi_floor[:, 0], rtol=1e-6)


def test_single_array_and_single_named_array():
    tx = steepest.optax.track(optax.sgd(0.5))
    for params in (jnp.ones(3), {"w": jnp.ones(3)}, {"w": jnp.ones(1)}):
        state = tx.init(params)
        _, state = tx.update(params, state, params, value=1.5)
        rec = steepest.optax.read(state)
        assert rec.blocks == (("(all)", "w") if isinstance(params, dict) else ("(all)",))
        np.testing.assert_array_equal(rec.angle, 0.0)
        np.testing.assert_array_equal(rec["gg"][:, 0], rec["gg"][:, -1])


def test_without_value_and_without_params():
    tx = steepest.optax.track(optax.sgd(0.1))
    _, state, _ = train(tx, 2, "jit", known=False)
    assert np.isnan(steepest.optax.read(state).loss).all()
    grads = parameters()
    _, state = tx.update(grads, tx.init(grads))
    rec = steepest.optax.read(state)
    assert np.isnan(rec.psi_floor).all()
    assert (rec["status"] <= 1).all() or rec.status[0, 0] == "ok"


def test_statuses_of_zero_and_nonfinite_vectors():
    params = {"a": jnp.ones(5), "b": jnp.ones(2)}
    tx = steepest.optax.track(optax.sgd(0.1))
    state = tx.init(params)
    gradients = [
        {"a": jnp.zeros(5), "b": jnp.zeros(2)},
        {"a": jnp.zeros(5), "b": jnp.ones(2)},
        {"a": jnp.ones(5), "b": jnp.ones(2).at[1].set(jnp.nan)},
        {"a": jnp.ones(5), "b": jnp.ones(2).at[0].set(jnp.inf)},
        {"a": jnp.ones(5), "b": 2 * jnp.ones(2)},
    ]
    recorder = steepest.Recorder()
    for grads in gradients:
        updates, state = jax.jit(tx.update)(grads, state, params)
        recorder.step(params=params, grad=grads, update=updates)
    rec = steepest.optax.read(state)
    np.testing.assert_array_equal(rec.status, recorder.recording().status)
    assert rec.status.tolist()[:3] == [
        ["zero_grad"] * 3,
        ["ok", "zero_grad", "ok"],
        ["nonfinite", "ok", "nonfinite"],
    ]
    ascent = steepest.optax.track(optax.sgd(-0.1))
    _, state = ascent.update(gradients[4], ascent.init(params))
    assert set(steepest.optax.read(state).status[0]) == {"ascent"}
    frozen = steepest.optax.track(optax.set_to_zero())
    _, state = frozen.update(gradients[4], frozen.init(params))
    assert set(steepest.optax.read(state).status[0]) == {"zero_update"}


def test_arrays_of_very_different_scales_are_summed():
    params = {"a": jnp.full(3, 1e-36), "b": jnp.full(3, 1e30), "c": jnp.full(2, 1e-20)}
    tx = steepest.optax.track(optax.sgd(0.5))
    _, state = tx.update(params, tx.init(params))
    rec = steepest.optax.read(state)
    assert set(rec.status[0]) == {"ok"}
    assert rec.grad_norm[0, 0] == pytest.approx(float(np.float32(1e30)) * math.sqrt(3), rel=1e-12)
    assert rec.grad_norm[0, 1] == pytest.approx(float(np.float32(1e-36)) * math.sqrt(3), rel=1e-12)


def test_a_block_that_is_not_finite_beside_very_different_scales():
    with jax.enable_x64(True):
        grads = {"a": jnp.array([1e-300, np.nan]), "b": jnp.array([1e-300, 1e-300]), "c": jnp.array([1e300])}
        scales = {"a": 1e300, "b": 1.0, "c": 1e-300}
        tx = steepest.optax.track(optax.stateless(lambda u, p: {k: -scales[k] * x for k, x in u.items()}))
        _, state = tx.update(grads, tx.init(grads))
    rec = steepest.optax.read(state)
    assert rec.status.tolist() == [["nonfinite", "nonfinite", "ok", "ok"]]


def test_inside_a_chain_a_mask_and_accumulation():
    params = parameters()
    mask = {"hidden": [True, False], "readout": Readout(True, False)}
    tx = optax.chain(optax.clip_by_global_norm(1e-3), optax.masked(steepest.optax.track(optax.adam(1e-2)), mask))
    _, state, _ = train(tx, 3, "jit", params)
    rec = steepest.optax.read(state)
    assert rec.blocks == ("(all)", "hidden/0", "readout/kernel")
    assert (rec.grad_norm[:, 0] < 1.001e-3).all()  # inside of the chain the clipped gradient is the gradient
    tx = optax.MultiSteps(steepest.optax.track(optax.adam(1e-2)), every_k_schedule=2)
    assert steepest.optax.read(train(tx, 6, "jit")[1]).step.tolist() == [0, 1, 2]


def test_extra_arguments_reach_the_transformation():
    seen = []

    def update(updates, state, params=None, *, value, scale, **extra):
        seen.append((value, scale))
        return jax.tree.map(lambda x: scale * x, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    tx = steepest.optax.track(inner)
    params = {"w": jnp.ones(3)}
    updates, state = tx.update(params, tx.init(params), params, value=2.0, scale=-0.25)
    assert seen == [(2.0, -0.25)]  # once, outside of jit
    np.testing.assert_array_equal(updates["w"], -0.25)
    assert steepest.optax.read(state).loss.tolist() == [2.0]


def test_random_and_line_search_rules():
    params = {"w": jnp.arange(1.0, 6.0)}
    tx = steepest.optax.track(optax.chain(optax.add_noise(0.1, 0.5, 3), optax.sgd(0.1)))
    plain = optax.chain(optax.add_noise(0.1, 0.5, 3), optax.sgd(0.1))
    u, s = jax.jit(tx.update)(params, tx.init(params), params)
    assert same_bits(u, jax.jit(plain.update)(params, plain.init(params), params)[0])
    assert 0 < steepest.optax.read(s).angle[0, 0] < 1

    def value_fn(p):
        return 0.5 * jnp.sum(p["w"] ** 2)

    search = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=5))
    tx = steepest.optax.track(search, bit_identical=False)
    _, state = jax.jit(lambda g, s, p: tx.update(g, s, p, value=value_fn(p), grad=g, value_fn=value_fn))(
        params, tx.init(params), params
    )
    rec = steepest.optax.read(state)
    assert rec.loss[0] == 27.5
    assert rec.angle[0, 0] == 0.0


def test_vmap_over_runs():
    tx = steepest.optax.track(optax.adam(1e-2))
    rng = np.random.default_rng(3)
    params = {"w": jnp.asarray(rng.standard_normal((4, 6)), jnp.float32)}
    scale = jnp.arange(1.0, 7.0)

    def run(p):
        def step(carry, _):
            p, state = carry
            loss, grads = jax.value_and_grad(lambda p: jnp.sum(scale * p["w"] ** 2))(p)
            updates, state = tx.update(grads, state, p, value=loss)
            return (optax.apply_updates(p, updates), state), None

        return jax.lax.scan(step, (p, tx.init(p)), None, length=3)[0][1]

    states = jax.jit(jax.vmap(run))(params)
    with pytest.raises(ValueError, match="vmap"):
        steepest.optax.read(states)
    for i in range(4):
        rec = steepest.optax.read(jax.tree.map(lambda x, i=i: x[i], states))
        alone = steepest.optax.read(jax.jit(run)(jax.tree.map(lambda x, i=i: x[i], params)))
        np.testing.assert_allclose(rec.angle, alone.angle, atol=1e-6)
        np.testing.assert_allclose(rec.loss, alone.loss, rtol=1e-6)


def test_the_state_is_arrays_only_and_survives_a_checkpoint():
    tx = steepest.optax.track(optax.adam(1e-2), every=2, objective="fixed", gradient_source="estimate")
    _, state, _ = train(tx, 5, "jit")
    leaves, structure = jax.tree.flatten(state)
    assert all(isinstance(x, jax.Array) for x in leaves)
    saved = [np.asarray(x) for x in leaves]
    fresh = jax.tree.structure(tx.init(parameters()))
    assert fresh == structure
    rec = steepest.optax.read(jax.tree.unflatten(fresh, saved))
    assert rec.info == steepest.optax.read(state).info
    assert (rec.objective, rec.gradient_source, rec.info.every) == ("fixed", "estimate", 2)
    assert rec.info.shapes == ((20, 15), (15,), (15, 3), (3,))
    assert rec.rows.tobytes() == steepest.optax.read(state).rows.tobytes()


def test_ambiguous_names_are_spelt_out():
    params = {"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}}
    tx = steepest.optax.track(optax.sgd(0.1))
    _, state = tx.update(params, tx.init(params))
    assert steepest.optax.read(state).blocks == ("(all)", "['a']['b']", "['a/b']")


def test_what_is_not_floating_point_or_empty_is_left_out():
    params = {"w": jnp.ones(2), "empty": jnp.ones((0, 3)), "none": None}
    tx = steepest.optax.track(optax.sgd(0.1))
    _, state = tx.update(params, tx.init(params))
    assert steepest.optax.read(state).blocks == ("(all)", "w")


def test_errors():
    adam = optax.adam(1e-3)
    params = {"w": jnp.ones(2)}
    for options, message in (
        ({"capacity": 0}, "capacity"),
        ({"every": 0}, "every"),
        ({"every": 1.5}, "every"),
        ({"lag": 2}, "lag"),
        ({"lag": 1, "every": 2}, "lag"),
        ({"objective": "batch"}, "objective"),
        ({"gradient_source": "me"}, "gradient_source"),
    ):
        with pytest.raises(ValueError, match=message):
            steepest.optax.track(adam, **options)
    tx = steepest.optax.track(adam)
    with pytest.raises(ValueError, match="floating-point"):
        tx.init({})
    with pytest.raises(ValueError, match="whole vector"):
        tx.init({"(all)": jnp.ones(2)})
    with pytest.raises(TypeError, match="complex"):
        tx.init({"w": jnp.ones(2, jnp.complex64)})
    state = tx.init(params)
    with pytest.raises(ValueError, match="at least one update"):
        steepest.optax.read(state)
    with pytest.raises(ValueError, match="got none"):
        steepest.optax.read(adam.init(params))
    with pytest.raises(ValueError, match="got 2 at"):
        steepest.optax.read({"a": state, "b": (state,)})
    twice = steepest.optax.track(optax.stateless(lambda u, p: {"v": u["w"]}))
    with pytest.raises(ValueError, match="expected grads and updates"):
        twice.update(params, twice.init(params))


def test_missing_libraries_name_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optax", None)
    with pytest.raises(ImportError, match=r"steepest\[jax\]"):
        steepest.optax.track(None)


def test_the_example_of_the_documentation():
    assert doctest.testmod(steepest.optax).attempted > 5
    assert doctest.testmod(steepest.optax).failed == 0
