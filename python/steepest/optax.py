"""Tracking of optax training, also inside jit and ``lax.scan``: what a transformation makes of the gradients."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from steepest import jax_gram
from steepest.arrays import FLOAT_NAMES, Layout
from steepest.block_products import sum_of_lags
from steepest.jax_products import Products, lag_products, whole
from steepest.recording import Recording
from steepest.row_format import GradientSource, Objective, RecordingInfo, check_names, row_dtype

if TYPE_CHECKING:
    import optax

__all__ = ["TrackState", "read", "track"]

_LOGGER = logging.getLogger("steepest")


class TrackState(NamedTuple):
    """State of a tracked transformation: arrays only, so that any checkpoint holds it; `read` makes a recording of it.

    Attributes
    ----------
    inner : pytree
        State of the transformation itself.
    count : jax.Array, int32
        Updates so far.
    step, loss : jax.Array, shape (capacity,)
        Ring buffers: number of each recorded step, -1 where there is none yet, and its loss.
    floats, integers : jax.Array, shape (capacity, blocks, columns)
        Ring buffers of `steepest.jax_gram.FLOATS`, with lag also `LAG_FLOATS`, and `INTEGERS`.
    previous : tuple
        Gradients and updates of the last step with lag, else empty.
    about : jax.Array, uint8
        Names and shapes of the blocks, and the options of `track`, as JSON.
    """

    inner: Any
    count: Any
    step: Any
    loss: Any
    floats: Any
    integers: Any
    previous: Any
    about: Any


def track(
    optimizer: optax.GradientTransformation,
    *,
    capacity: int = 1024,
    every: int = 1,
    lag: int = 0,
    blocks: bool = True,
    objective: Objective = "unknown",
    gradient_source: GradientSource = "rule",
    bit_identical: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """The same transformation, which also records: gradients go in, updates come out, `read` gives the recording.

    Parameters
    ----------
    optimizer : optax.GradientTransformation
        Any, also a chain. What it is given is the gradient: ``chain(clip, track(adam))`` is measured against the
        clipped gradient, ``track(chain(clip, adam))`` against the one from the loss.
    capacity : int
        How many recorded steps the state has room for; later ones overwrite the oldest. A step takes 48 bytes for each
        block, 80 with x64; with lag 80 and 144.
    every : int
        Record each step whose number is a multiple.
    lag : {0, 1}
        1 also records the inner products with the step before, as `Recorder` does, which the pairs of a discrete
        gradient need. For this ONE copy of the gradients and ONE of the updates stay in the state. Only with
        ``every=1``.
    blocks : bool
        Whether every array is a block of its own, beside the whole. Its name is its path in the tree, as
        ``layer/kernel``.
    objective : {'unknown', 'fixed'}
        ``fixed``: all losses and gradients belong to one function (full batch).
    gradient_source : {'rule', 'evaluation', 'estimate'}
        What the gradients that go in are.
    bit_identical : bool
        Under jit, compute the update a second time for the recording alone, and its inner products in every step, so
        that `every` saves room but no time. Otherwise the compiler, which rounds differently where a value has one
        more use, may change the last bits of the training itself (seen with Adam). Set it to False where an update is
        expensive (a line search, a matrix root) or has side effects.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        With a `TrackState` as its state. ``update(grads, state, params, value=loss)`` records the loss; without
        ``value`` it is NaN. All extra arguments are passed on to an `optimizer` that takes them.

    Raises
    ------
    ImportError
        optax is not installed.
    ValueError
        `capacity` or `every` is less than 1, `lag` is not 0 or 1, or another option has no valid value. From
        ``init``: no floating-point arrays, or an array called "(all)".
    TypeError
        From ``init`` and ``update``: complex or 8-bit arrays.

    Notes
    -----
    Inner products are formed on the device, as pairs of float32 (of float64 if ``jax_enable_x64`` is set or a parameter
    is float64), with a rigorous bound of about (log n)^2 u^2 |grad||update|; see `steepest.jax_gram`. In float32
    angles below some 2e-7 rad, its own rounding, are not resolved. Nothing crosses to the host.

    The inner products cost about 60 operations an element: on a CPU about as long as a few steps of Adam, some 5 to 10
    ns an element on two cores. The state works under jit, ``lax.scan``, ``lax.cond``, with
    donated buffers (without donation jit copies the buffers in each call) and under vmap, where `read` takes one
    member at a time. Sharded arrays may be gathered.

    With ``params`` the rounding floor of the angle is recorded: the update is exact, but what ``apply_updates`` then
    makes of the parameters carries their rounding.

    Arrays that are not of floating point, or that are masked, None, or empty, are left out.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import steepest.optax
    >>> tx = steepest.optax.track(optax.adam(1e-3))
    >>> params = {"w": jnp.array([3.0, 4.0]), "b": jnp.array([1.0])}
    >>> state = tx.init(params)
    >>> grads = params  # of half the sum of squares
    >>> updates, state = tx.update(grads, state, params, value=13.0)
    >>> params = optax.apply_updates(params, updates)
    >>> rec = steepest.optax.read(state)
    >>> rec.blocks, rec.loss.tolist()
    (('(all)', 'b', 'w'), [13.0])
    >>> round(rec.alignment(step=0, block="w").angle_degrees, 3)  # Adam's first step is of equal size in every element
    8.13
    """
    jax, optax = _libraries()
    for name, number in (("capacity", capacity), ("every", every)):
        if number != int(number) or number < 1:
            raise ValueError(f"expected {name} to be an integer of at least 1, got {number!r}")
    if lag not in (0, 1) or (lag and every != 1):
        raise ValueError(f"expected lag to be 0, or 1 with every=1, got lag={lag!r} with every={every!r}")
    RecordingInfo(None, (), objective, gradient_source, every=int(every))  # checks them
    jnp = jax.numpy
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> TrackState:
        arrays = _floating(params)
        names, shapes = _names(list(arrays)), [list(x.shape) for x in arrays.values()]
        if not arrays:
            raise ValueError("expected params with at least one floating-point array to track, got none")
        sizes = [math.prod(shape) for shape in shapes]
        if names is not None:
            check_names(Layout(tuple(names), tuple(map(tuple, shapes))))
        if not blocks:
            names, shapes = None, [[sum(sizes)]]
        about = {
            "names": names, "shapes": shapes, "segments": len(sizes) if not blocks else 1, "every": int(every),
            "objective": objective, "gradient_source": gradient_source,
            "lag": int(lag),
        }  # fmt: skip
        wide = jnp.zeros(()).dtype == np.float64 or any(x.dtype == np.float64 for x in arrays.values())
        dtype = np.dtype(np.float64 if wide else np.float32)
        shape, columns = (int(capacity), len(shapes)), len(jax_gram.FLOATS) + len(jax_gram.LAG_FLOATS) * int(lag)
        return TrackState(
            inner=inner.init(params),
            count=jnp.zeros((), jnp.int32),
            step=jnp.full(shape[:1], -1, jnp.int32),
            loss=jnp.full(shape[:1], jnp.nan, dtype),
            floats=jnp.full((*shape, columns), jnp.nan, dtype),
            integers=jnp.zeros((*shape, len(jax_gram.INTEGERS)), jnp.int32),
            previous=tuple([jnp.zeros(x.shape, x.dtype) for x in arrays.values()] for _ in range(2 * int(lag))),
            about=jnp.asarray(np.frombuffer(json.dumps(about).encode(), np.uint8)),
        )

    def update(grads: Any, state: TrackState, params: Any = None, **extra: Any) -> tuple[Any, TrackState]:
        updates, inner_state = inner.update(grads, state.inner, params, **extra)
        y, g, p = grads, updates, params
        traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree_util.tree_leaves((grads, state.inner, params)))
        if bit_identical and traced:
            y, before, p = jax.lax.optimization_barrier((grads, state.inner, params))
            g = inner.update(y, before, p, **extra)[0]

        def measure() -> tuple[Any, Any]:
            return _measure(y, g, p, state, blocks)

        due = state.count % every == 0
        if every == 1 or (bit_identical and traced):
            floats, integers = measure()
        else:
            floats, integers = jax.lax.cond(due, measure, lambda: (state.floats[0], state.integers[0]))
        loss = jnp.asarray(jnp.nan if extra.get("value") is None else extra["value"])
        # An index behind the end is dropped.
        at = jnp.where(due, (state.count // every) % state.step.shape[0], state.step.shape[0])
        return updates, TrackState(
            inner=inner_state,
            count=state.count + 1,
            step=state.step.at[at].set(state.count, mode="drop"),
            loss=state.loss.at[at].set(loss.reshape(()).astype(state.loss.dtype), mode="drop"),
            floats=state.floats.at[at].set(floats, mode="drop"),
            integers=state.integers.at[at].set(integers, mode="drop"),
            previous=_kept(y, g, state.previous) if lag else (),
            about=state.about,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def read(opt_state: Any) -> Recording:
    """The recording in an optimiser state.

    Parameters
    ----------
    opt_state : pytree
        With the state of one tracked transformation somewhere in it: the state itself, that of a chain, of a mask, a
        training state.

    Returns
    -------
    Recording
        The last steps, as many as there is room for. If the number of the first one is not 0, the earlier ones have
        been overwritten; their number is also logged. Times are NaN.

    Raises
    ------
    ImportError
        jax is not installed.
    ValueError
        No tracked transformation, or several; a state made by vmap; no step yet.

    Notes
    -----
    One transfer of the buffers, and some 20 us a row: an update must have finished, and nothing is changed.
    """
    jax, _ = _libraries()
    state = jax.device_get(_find(jax, opt_state))
    if np.ndim(state.count):
        raise ValueError(
            f"expected the state of one training run, got {np.shape(state.count)} of them, as vmap makes: read one at "
            "a time, as in read(jax.tree.map(lambda x: x[0], opt_state))"
        )
    about = json.loads(np.asarray(state.about).tobytes())
    shapes, names, every = [tuple(s) for s in about["shapes"]], about["names"], about["every"]
    info = RecordingInfo(
        None if names is None else tuple(names), tuple(shapes), about["objective"], about["gradient_source"],
        every=every, lag=about["lag"],
    )  # fmt: skip
    if not int(state.count):
        raise ValueError("expected at least one update to have been made, got none")
    order = np.argsort(state.step, kind="stable")
    order = order[state.step[order] >= 0]
    lost = -(-int(state.count) // every) - len(order)
    if lost:
        _LOGGER.warning(
            "the state has room for %d steps: the first %d of %d recorded steps were overwritten; track(..., "
            "capacity=) gives more",
            len(state.step), lost, lost + len(order),
        )  # fmt: skip
    bounds = [jax_gram.error_bound(math.prod(s), about["segments"], state.floats.dtype.name) for s in shapes]
    rows = np.zeros((len(order), 1 + len(names or ())), row_dtype(info.lag))
    before: list[Products] | None = None
    for row, at in zip(rows, order, strict=True):
        parts = [
            Products.of(floats, integers, bound)
            for floats, integers, bound in zip(state.floats[at], state.integers[at], bounds, strict=True)
        ]
        lags: list[Any] = [None] * len(parts)
        if info.lag and before is not None:
            lags = [
                lag_products(p, p0, floats[len(jax_gram.FLOATS) :], bound)
                for p, p0, floats, bound in zip(parts, before, state.floats[at], bounds, strict=True)
            ]
        before, products = parts, parts
        if names is not None:
            products = [parts[0] if len(names) == 1 else whole(parts), *parts]
            lags = [lags[0] if len(names) == 1 or lags[0] is None else sum_of_lags(lags), *lags]
        for block, (p, with_previous) in enumerate(zip(products, lags, strict=True)):
            p.fill(row, int(state.step[at]), block, float(state.loss[at]), with_previous)
    return Recording(info, rows)


def _libraries() -> tuple[Any, Any]:
    try:
        import jax
        import optax
    except ImportError as error:
        raise ImportError('steepest.optax needs jax and optax: pip install "steepest[jax]"') from error
    return jax, optax


def _find(jax: Any, opt_state: Any) -> TrackState:
    found = [
        (path, leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(opt_state, lambda x: isinstance(x, TrackState))[0]
        if isinstance(leaf, TrackState)
    ]
    if not found:
        raise ValueError(
            "expected a state of steepest.optax.track(...) in opt_state, got none: wrap the transformation before "
            "init, and restore checkpoints into the structure that init gives"
        )
    if len(found) > 1:
        where = ", ".join(jax.tree_util.keystr(path) for path, _ in found)
        raise ValueError(
            f"expected one tracked transformation in opt_state, got {len(found)} at {where}: pass one part"
        )
    return found[0][1]


def _floating(tree: Any) -> dict[Any, Any]:
    """Path -> array of the leaves that can be tracked."""
    import jax

    arrays = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        x = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        if jax.dtypes.issubdtype(x.dtype, np.complexfloating) or (
            jax.dtypes.issubdtype(x.dtype, np.floating) and x.dtype.name not in FLOAT_NAMES
        ):
            raise TypeError(
                f"expected arrays of {', '.join(FLOAT_NAMES)}, got {x.dtype} at {jax.tree_util.keystr(path)}: track "
                "the others by optax.masked, or split real and imaginary parts"
            )
        if x.dtype.name in FLOAT_NAMES and math.prod(x.shape):
            arrays[path] = x
    return arrays


def _names(paths: Sequence[Any]) -> list[str] | None:
    """A name for each path, None for a single array that is the whole tree."""
    import jax

    if len(paths) == 1 and not paths[0]:
        return None
    names = ["/".join(str(_key(entry)) for entry in path) for path in paths]
    return names if len(set(names)) == len(names) else [jax.tree_util.keystr(path) for path in paths]


def _key(entry: Any) -> Any:
    """What an entry of a path is called: a key, an attribute or an index."""
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return entry


def _measure(grads: Any, updates: Any, params: Any, state: TrackState, blocks: bool) -> tuple[Any, Any]:
    """A row of the buffers for each block."""
    import jax.numpy as jnp

    y, g, p = (None if tree is None else _floating(tree) for tree in (grads, updates, params))
    assert y is not None  # mypy: a transformation is given gradients and gives updates
    assert g is not None
    shapes = [x.shape for x in y.values()]
    count = state.floats.shape[1]
    if list(y) != list(g) or shapes != [x.shape for x in g.values()] or (len(y) != count if blocks else not y):
        raise ValueError(
            f"expected grads and updates to have the {count} arrays of params in init, got {_names(list(y))} and "
            f"{_names(list(g))}"
        )
    known = None if p is None or [x.shape for x in p.values()] != shapes else list(p.values())
    each = [slice(i, i + 1) for i in range(count)] if blocks else [slice(None)]
    ys, gs = list(y.values()), list(g.values())
    wide = any(x.dtype == np.float64 for x in (*ys, *gs, *(known or ())))
    if wide and state.floats.dtype != np.float64:
        raise TypeError("expected no float64 where params in init had none: set jax_enable_x64 before init")
    dtype = state.floats.dtype
    parts = [jax_gram.pair_gram(ys[s], gs[s], None if known is None else known[s], dtype) for s in each]
    floats, integers = (jnp.stack(column) for column in zip(*parts, strict=True))
    if state.previous:
        ys0, gs0 = state.previous
        lags = [jax_gram.lag_gram(ys[s], gs[s], ys0[s], gs0[s], dtype) for s in each]
        floats = jnp.concatenate([floats, jnp.stack(lags)], axis=1)
    return floats, integers


def _kept(grads: Any, updates: Any, previous: Any) -> Any:
    """Gradients and updates for the next step, in the element types of the last one."""
    kept = tuple(list(_floating(tree).values()) for tree in (grads, updates))
    for now, before in zip(kept, previous, strict=True):
        for x, x0 in zip(now, before, strict=True):
            if x.dtype != x0.dtype:
                raise TypeError(
                    f"expected gradients and updates of the parameters' dtype {x0.dtype} with lag, got {x.dtype}"
                )
    return kept
