"""Inner products of gradient and update inside JAX programs, as unevaluated sums hi + lo of two floats.

XLA fuses multiplications into additions and flushes subnormal numbers to zero, as it sees fit, and JAX has no float64
unless it is asked for. So each element is cut into two halves of its significand, by integer operations, whose products
are exact whether fused or not, and these are added by error-free two-sums in short chains. Each vector is first divided
by a power of two, so that squares neither overflow nor underflow. What remains as an error has a rigorous bound that
grows as log(n)^2 u^2 (`error_bound`). Reassociation (``--xla_cpu_enable_fast_math=true``) would break it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import jax

__all__ = ["FLOATS", "INTEGERS", "LAG_FLOATS", "NONFINITE", "TOP", "error_bound", "lag_gram", "pair_gram", "spacing"]

#: Columns of the two results of `pair_gram`; `flip` is 2^(-4 TOP) sum (y_i g_i)^2.
FLOATS = ("yy", "yy_lo", "yg", "yg_lo", "gg", "gg_lo", "flip", "spacing")
INTEGERS = ("y_exponent", "g_exponent", "spacing_exponent", "dtype")
#: Columns of `lag_gram`: grad.grad0, grad.update0, update.grad0, update.update0.
LAG_FLOATS = ("lag_yy", "lag_yy_lo", "lag_yg", "lag_yg_lo", "lag_gy", "lag_gy_lo", "lag_gg", "lag_gg_lo")
#: In the place of an exponent: the vector holds NaN or Inf, or is missing.
NONFINITE = 1 << 20
#: The largest element of a scaled vector is in [2^TOP, 2^(TOP + 1)).
TOP = 40
_CHAIN = 32  # additions one after the other; then the next level


class _Format(NamedTuple):
    """A binary floating point format: bits of the fraction, bias of the exponent, bits in all, place in FLOAT_NAMES."""

    fraction: int
    bias: int
    bits: int
    code: int


_FORMATS = {
    "float64": _Format(52, 1023, 64, 0),
    "float32": _Format(23, 127, 32, 1),
    "float16": _Format(10, 15, 16, 2),
    "bfloat16": _Format(7, 127, 16, 3),
}


def pair_gram(
    grads: list[jax.Array], updates: list[jax.Array], params: list[jax.Array] | None, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """Inner products of one block, which may be traced.

    Parameters
    ----------
    grads, updates : list of jax.Array
        The arrays of the block, of corresponding sizes, float64, float32, float16 or bfloat16.
    params : list of jax.Array, optional
        Of which the spacing is wanted.
    dtype : float32 or float64
        To compute in; float64 needs ``jax_enable_x64``.

    Returns
    -------
    floats : jax.Array, shape (len(FLOATS),)
        In `dtype`; NaN for what holds NaN or Inf. Inner products are of the vectors divided by their powers of two.
    integers : jax.Array, shape (len(INTEGERS),), int32
        The powers of two, and the place of the coarser element type in `steepest.arrays.FLOAT_NAMES`.

    Notes
    -----
    Two passes over grads and updates, one over params; no long array is made. About 60 operations an element.
    """
    import jax.numpy as jnp

    y_top, g_top = (jnp.where(top == -NONFINITE, 0, top) for top in (_top_exponent(grads), _top_exponent(updates)))
    totals = None
    for y, g in zip(grads, updates, strict=True):
        columns = _products(y, g, y_top, g_top, jnp.dtype(dtype))
        totals = columns if totals is None else _add(totals, columns)
    assert totals is not None  # a block has arrays
    y_bad, g_bad = y_top == NONFINITE, g_top == NONFINITE
    bad = (y_bad, y_bad, y_bad | g_bad, y_bad | g_bad, g_bad, g_bad, y_bad | g_bad)
    floats = [jnp.where(b, jnp.nan, x) for b, x in zip(bad, totals, strict=True)]
    if params is None:
        spacings, spacing_top = jnp.full((), jnp.nan, dtype), jnp.int32(NONFINITE)
    else:
        spacings, spacing_top = spacing(params, dtype)
    exponents = [jnp.where(b, NONFINITE, top - TOP) for b, top in ((y_bad, y_top), (g_bad, g_top))]
    code = max(_FORMATS[x.dtype.name].code for x in (*grads, *updates))
    integers = jnp.stack([*exponents, spacing_top, jnp.int32(code)]).astype(jnp.int32)
    return jnp.stack([*floats, spacings]).astype(dtype), integers


def lag_gram(
    grads: list[jax.Array], updates: list[jax.Array], grads0: list[jax.Array], updates0: list[jax.Array], dtype: Any
) -> jax.Array:
    """Inner products of one block with the step before it, which may be traced.

    Parameters
    ----------
    grads, updates, grads0, updates0 : list of jax.Array
        The arrays of the block, of this step and of the one before.
    dtype : float32 or float64
        To compute in.

    Returns
    -------
    jax.Array, shape (len(LAG_FLOATS),)
        Of the vectors divided by their powers of two, which are those that `pair_gram` finds in either step.
    """
    import jax.numpy as jnp

    tops = [_top_exponent(arrays) for arrays in (grads, updates, grads0, updates0)]
    y_top, g_top, y0_top, g0_top = (jnp.where(top == -NONFINITE, 0, top) for top in tops)
    totals = None
    for arrays in zip(grads, updates, grads0, updates0, strict=True):
        y, g, y0, g0 = (
            _halves(_rows(x.ravel()), top, jnp.dtype(dtype))
            for x, top in zip(arrays, (y_top, g_top, y0_top, g0_top), strict=True)
        )
        products = [term for a in (y, g) for b in (y0, g0) for term in _product(a, b)]
        columns = _chain_sum(tuple(products))
        totals = columns if totals is None else _add(totals, columns)
    assert totals is not None  # a block has arrays
    bad = jnp.stack(tops) == NONFINITE
    missing = [bad[i] | bad[j] for i in (0, 1) for j in (2, 3) for _ in range(2)]
    return jnp.stack([jnp.where(b, jnp.nan, x) for b, x in zip(missing, totals, strict=True)]).astype(dtype)


def error_bound(size: int, segments: int, dtype: str) -> float:
    """Bound on the error of each inner product from `pair_gram`, in units of |y||g| (derived).

    Parameters
    ----------
    size : int
        Number of elements of the block.
    segments : int
        Number of its arrays.
    dtype : str
        Computed in: float32 or float64.

    Returns
    -------
    float
        With D the length of the longest way of a product through the additions: products leave 16 u of themselves
        behind, every two-sum at most u of its sum, so all that is left behind is at most u (D + 16) sum |y_i g_i|,
        and it is added up with a relative error of at most gamma_2D. Products lose 8 u^2, and what is flushed to zero
        n 2^(-58) u^2.
    """
    levels, left = 0, size
    while levels == 0 or left > 1:
        left, levels = -(-left // _CHAIN), levels + 1
    depth = _CHAIN * levels + segments
    u = 2.0 ** -(_FORMATS[dtype].fraction + 1)
    return (1.01 * (2 * depth * (depth + 16) + 8) + size * 2.0**-58) * u * u


def spacing(params: list[jax.Array], dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Sum of the squared distances of every element to the next number, which may be traced.

    Parameters
    ----------
    params : list of jax.Array
        The arrays of a block.
    dtype : float32 or float64
        To compute in.

    Returns
    -------
    total : jax.Array
        To be multiplied by ``2**(2 * exponent)``; NaN if an element is not finite.
    exponent : jax.Array
        int32.
    """
    import jax.numpy as jnp

    tops, exponents = [], []
    for x in params:
        kind = _FORMATS[x.dtype.name]
        tops.append(jnp.maximum(_top_exponent([x]), 1 - kind.bias) - kind.fraction)
        exponents.append(jnp.maximum(_exponent_field(_bits(x.ravel()), kind), 1) - kind.bias - kind.fraction)
    top = jnp.stack(tops).max()
    bad = top > NONFINITE // 2
    squares = [_chain_sum((_power_of_two(2 * (e - top), jnp.dtype(dtype)),))[0] for e in exponents]
    return jnp.where(bad, jnp.nan, sum(squares)), jnp.where(bad, NONFINITE, top)


def _bits(x: jax.Array) -> jax.Array:
    import jax

    return jax.lax.bitcast_convert_type(x, np.dtype(f"uint{_FORMATS[x.dtype.name].bits}"))


def _exponent_field(bits: jax.Array, kind: _Format) -> jax.Array:
    return ((bits >> kind.fraction) & ((1 << (kind.bits - 1 - kind.fraction)) - 1)).astype("int32")


def _top_exponent(arrays: list[jax.Array]) -> jax.Array:
    """floor(log2(max |x|)), also of subnormal numbers; -NONFINITE if all are zero; NONFINITE for NaN or Inf."""
    import jax
    import jax.numpy as jnp

    tops = []
    for x in arrays:
        kind = _FORMATS[x.dtype.name]
        bits = _bits(x.ravel())
        largest = (bits & bits.dtype.type((1 << (kind.bits - 1)) - 1)).max()
        field, fraction = _exponent_field(largest, kind), largest & bits.dtype.type((1 << kind.fraction) - 1)
        leading = kind.bits - 1 - jax.lax.clz(fraction).astype(jnp.int32)  # -1 for zero
        subnormal = jnp.where(fraction == 0, -NONFINITE, leading + 1 - kind.bias - kind.fraction)
        normal = jnp.where(field == 2 * kind.bias + 1, NONFINITE, field - kind.bias)
        tops.append(jnp.where(field == 0, subnormal, normal))
    return jnp.stack(tops).max()


def _power_of_two(k: jax.Array, dtype: np.dtype[Any]) -> jax.Array:
    """2^k; 0 where that is subnormal. k <= TOP."""
    import jax
    import jax.numpy as jnp

    kind = _FORMATS[dtype.name]
    field = jnp.maximum(k + kind.bias, 0).astype(f"uint{kind.bits}")
    return jax.lax.bitcast_convert_type(field << kind.fraction, dtype)


def _halves(x: jax.Array, top: jax.Array, dtype: np.dtype[Any]) -> tuple[jax.Array, ...]:
    """2^(TOP - top) x, exactly, as a sum of two numbers of half as many digits; of one if that is narrow enough."""
    import jax
    import jax.numpy as jnp

    kind, wide = _FORMATS[x.dtype.name], _FORMATS[dtype.name]
    bits = _bits(x)
    field = _exponent_field(bits, kind)
    fraction = bits & bits.dtype.type((1 << kind.fraction) - 1)
    integer = f"int{max(32, kind.bits)}"
    significand = jnp.where(field > 0, fraction | bits.dtype.type(1 << kind.fraction), fraction).astype(integer)
    exponent = jnp.maximum(field, 1) - (kind.bias + kind.fraction) + (TOP - top)
    narrow = 2 * (kind.fraction + 1) <= wide.fraction + 1
    if not narrow:  # subnormal numbers too get a leading one, for their first half to be the larger one
        shift = jax.lax.clz(significand) - (max(32, kind.bits) - 1 - kind.fraction)
        significand, exponent = significand << shift, exponent - shift.astype(jnp.int32)
    power = _power_of_two(exponent, dtype)
    power = jnp.where((bits >> (kind.bits - 1)) != 0, -power, power)
    if narrow:
        return (significand.astype(dtype) * power,)
    low = (1 << (kind.fraction + 2) // 2) - 1
    return (significand & ~low).astype(dtype) * power, (significand & low).astype(dtype) * power


def _product(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    """A product as p + e with |e| <= 16 u |p|, to 8 u^2; every multiplication is exact, so fusing is harmless."""
    import jax.numpy as jnp

    products = [i * j for i in a for j in b]
    if len(products) == 1:
        return products[0], jnp.zeros_like(products[0])
    p = products[0] + sum(products[1:-1]) if len(products) == 4 else products[0] + products[1]
    e = products[0] - p  # exact, since p is close
    for q in products[1:]:
        e = e + q
    return p, e


def _products(
    y: jax.Array, g: jax.Array, y_top: jax.Array, g_top: jax.Array, dtype: np.dtype[Any]
) -> tuple[jax.Array, ...]:
    a, b = _halves(_rows(y.ravel()), y_top, dtype), _halves(_rows(g.ravel()), g_top, dtype)
    yy, yg, gg = _product(a, a), _product(a, b), _product(b, b)
    flip = yg[0] * dtype.type(2.0 ** (-2 * TOP))
    return _chain_sum((*yy, *yg, *gg, flip * flip))


def _rows(x: jax.Array) -> jax.Array:
    """Of _CHAIN elements, the last one filled with zeros; XLA fuses it into what follows."""
    import jax.numpy as jnp

    count = -(-x.size // _CHAIN)
    return jnp.pad(x, (0, count * _CHAIN - x.size)).reshape(count, _CHAIN)


def _add(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Sums of hi + lo pairs, and of what is left over at the end as it is."""
    result: list[jax.Array] = []
    for i in range(0, len(a) - 1, 2):
        s = a[i] + b[i]
        t = s - a[i]
        result += [s, ((a[i] - (s - t)) + (b[i] - t)) + (a[i + 1] + b[i + 1])]
    return (*result, a[-1] + b[-1]) if len(a) % 2 else tuple(result)


def _chain_sum(columns: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Sums by `_add`, in chains of _CHAIN terms and then of the sums."""
    import jax

    zeros = tuple(column.dtype.type(0) for column in columns)
    while True:
        if columns[0].ndim == 1:
            columns = tuple(_rows(column) for column in columns)
        columns = jax.lax.reduce(columns, zeros, _add, (1,))
        if columns[0].size == 1:
            return tuple(column[0] for column in columns)
        columns = jax.lax.optimization_barrier(columns)  # or two levels could become one long chain
