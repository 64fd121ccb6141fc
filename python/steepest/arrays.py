"""Arrays as users hand them in, and results as they expect them back.

A *long vector* is one array of any shape, or a mapping name -> array taken as one vector in insertion order, each
array in C order. The compiled core reads it through NumPy views: no element is copied. NumPy arrays, PyTorch tensors
and JAX arrays on the CPU, and anything with ``__dlpack__`` or ``__array__`` are accepted, in float64, float32,
float16 and bfloat16; results come back in the caller's library, dtype and shape.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: An array of any supported library.
Array = Any
#: One long vector: an array, or a mapping name -> array.
ArrayOrMapping = Any
Segment = NDArray[Any]

FLOAT_NAMES = ("float64", "float32", "float16", "bfloat16")
# Looking a dtype up takes a tenth of the time that NumPy needs to spell its name.
NATIVE_NAMES = {np.dtype(name): name for name in FLOAT_NAMES[:3]}
EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the arrays of a long vector.

    Attributes
    ----------
    names : tuple of str or None
        Keys of the mapping; None for a single array.
    shapes : tuple of tuple of int
        Shape of each array.
    """

    names: tuple[Any, ...] | None
    shapes: tuple[tuple[int, ...], ...]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of elements of each array."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def size(self) -> int:
        """Number of elements of the long vector."""
        return sum(self.sizes)

    def __str__(self) -> str:
        if self.names is None:
            return f"an array of shape {self.shapes[0]}"
        listed = [f"{n!r}: {s}" for n, s in zip(self.names[:4], self.shapes[:4], strict=True)]
        return "a mapping {" + ", ".join(listed + ["..."] * (len(self.names) > 4)) + "}"


@dataclass(frozen=True)
class LongVector:
    """Views of a long vector, as the compiled core reads them.

    Attributes
    ----------
    segments : list of ndarray
        One view for each array; bfloat16 as uint16.
    layout : Layout
        Names and shapes.
    dtypes : tuple of str
        Element type of each array, one of `FLOAT_NAMES`.
    """

    segments: list[Segment]
    layout: Layout
    dtypes: tuple[str, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.layout.size

    def flat(self) -> NDArray[np.float64]:
        """One flat float64 array (a copy).

        Returns
        -------
        ndarray, shape (n,)
            All elements in order.
        """
        return np.concatenate([widened(s, d).ravel() for s, d in zip(self.segments, self.dtypes, strict=True)])

    @property
    def coarsest(self) -> str:
        """The element type with the largest rounding unit."""
        return max(self.dtypes, key=EPSILON.__getitem__)


def long_vector(x: ArrayOrMapping, name: str) -> LongVector:
    """Views of a long vector, without copying it.

    Parameters
    ----------
    x : array or mapping name -> array
        Of floating dtype, any shape and strides.
    name : str
        What error messages call it.

    Returns
    -------
    LongVector
        Views of `x`, which must stay unchanged as long as they are used.

    Raises
    ------
    TypeError
        Not an array, not a supported dtype, or not in the host's memory.
    ValueError
        No elements at all.
    """
    if isinstance(x, Mapping):
        views = [view(array, f"{name}[{key!r}]") for key, array in x.items()]
        layout = Layout(tuple(x), tuple(v.shape for v, _ in views))
    else:
        views = [view(x, name)]
        layout = Layout(None, (views[0][0].shape,))
    if layout.size == 0:
        raise ValueError(f"expected {name} to have at least one element, got {layout}")
    return LongVector([v for v, _ in views], layout, tuple(d for _, d in views))


def view(x: Array, name: str) -> tuple[Segment, str]:
    """A NumPy view of one array, and the name of its dtype.

    Parameters
    ----------
    x : array
        Of any supported library; lists and tuples of floats are converted.
    name : str
        What error messages call it.

    Returns
    -------
    array : ndarray
        Shares memory with `x` (bfloat16 as uint16), unless `x` is a list.
    dtype : str
        One of `FLOAT_NAMES`.

    Raises
    ------
    TypeError
        Not an array, not a supported dtype, or not in the host's memory.
    """
    if type(x) is np.ndarray and (known := NATIVE_NAMES.get(x.dtype)):
        return (x.view(np.uint16) if known == "bfloat16" else x), known
    array, dtype = _to_numpy(x, name)
    if dtype not in FLOAT_NAMES or not array.dtype.isnative:
        raise TypeError(
            f"expected {name} in float64, float32, float16 or bfloat16 (native byte order), got {array.dtype}; "
            f"{_way_out(array.dtype)}"
        )
    if dtype == "bfloat16" and type(x) is np.ndarray:
        NATIVE_NAMES[x.dtype] = dtype  # known from now on; the package that defines it is optional
    return (array.view(np.uint16) if dtype == "bfloat16" else array), dtype


def _way_out(dtype: np.dtype[Any]) -> str:
    if dtype.kind == "c":
        return "pass real and imaginary parts as a mapping {'real': x.real, 'imag': x.imag}"
    if dtype.kind == "O":
        return "an array of objects is often a list of arrays of different shapes: pass a mapping name -> array"
    return "convert it to float64 first"


def _to_numpy(x: Array, name: str) -> tuple[Segment, str]:
    """An ndarray that shares memory with `x`, and its dtype's name (torch's bfloat16 comes as its bits)."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"expected {name} without a mask, got a masked array; fill or compress it first")
    if isinstance(x, np.ndarray):
        return np.asarray(x), x.dtype.name
    if is_torch(x):
        return _torch_to_numpy(x, name)
    if is_jax(x) and any(device.platform != "cpu" for device in x.devices()):
        raise TypeError(
            f"expected {name} in the host's memory, got a JAX array on {sorted(map(str, x.devices()))}; "
            "copy it with jax.device_get(x)"
        )
    if isinstance(x, str | bytes):
        raise TypeError(f"expected {name} to be an array or a mapping name -> array, got {type(x).__name__}")
    if type(x).__module__.startswith("scipy.sparse"):
        raise TypeError(f"expected {name} to be a dense array, got a sparse one; convert it with x.toarray()")
    if hasattr(x, "__array__") or isinstance(x, Sequence | float | int):
        try:
            array = np.asarray(x)
        except ValueError as error:  # a ragged list
            raise TypeError(f"expected {name} to be an array, got {type(x).__name__}: {error}") from error
    elif hasattr(x, "__dlpack__"):
        try:
            array = np.from_dlpack(x)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise TypeError(
                f"expected {name} in the host's memory and in a NumPy dtype, got {type(x).__name__}: {error}"
            ) from error
    else:
        raise TypeError(f"expected {name} to be an array or a mapping name -> array, got {type(x).__name__}")
    return array, array.dtype.name


def is_torch(x: Any) -> bool:
    """Whether `x` is a PyTorch tensor; does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def is_jax(x: Any) -> bool:
    """Whether `x` is a JAX array; does not import jax."""
    jax = sys.modules.get("jax")
    return jax is not None and hasattr(jax, "Array") and isinstance(x, jax.Array)


def _torch_to_numpy(x: Any, name: str) -> tuple[Segment, str]:
    torch = sys.modules["torch"]
    if x.layout is not torch.strided:
        raise TypeError(f"expected {name} to be a dense tensor, got {x.layout}; convert it with x.to_dense()")
    if x.device.type != "cpu":
        raise TypeError(f"expected {name} on the CPU, got a tensor on {x.device}; copy it with x.cpu()")
    x = x.detach()
    if x.is_conj() or x.is_neg():
        raise TypeError(f"expected {name} to be a plain tensor, got a lazy view; resolve it with x.resolve_neg()")
    if x.dtype is torch.bfloat16:  # NumPy has no such dtype: the same memory as 16-bit integers
        return x.view(torch.int16).numpy().view(np.uint16), "bfloat16"
    try:
        array = np.asarray(x.numpy())
    except TypeError as error:  # float8 and other types that NumPy does not know
        raise TypeError(f"expected {name} in float64, float32, float16 or bfloat16, got {x.dtype}") from error
    return array, array.dtype.name


@dataclass(frozen=True)
class RightHandSide:
    """The x of a product M @ x, cut to the arrays of a layout.

    Attributes
    ----------
    segments : list of ndarray
        One view for each array of the layout; with `columns`, the last axis runs over right-hand sides.
    columns : bool
        Whether there are several right-hand sides, shape (n, m).
    given : array or mapping
        What the user handed in: results take its library, dtype and shape.
    """

    segments: list[Segment]
    columns: bool
    given: ArrayOrMapping


def right_hand_side(x: ArrayOrMapping, layout: Layout, name: str = "x") -> RightHandSide:
    """Match `x` with a layout of size n.

    Parameters
    ----------
    x : array or mapping
        A mapping with the layout's names and shapes, an array of the layout's shape, or an array of shape (n,) or
        (n, m).
    layout : Layout
        Of the metric.
    name : str
        What error messages call it.

    Returns
    -------
    RightHandSide
        Views of `x`.

    Raises
    ------
    ValueError
        Another shape, or other names.
    TypeError
        As `long_vector`.
    """
    n = layout.size
    if isinstance(x, Mapping):
        if layout.names is None or set(x) != set(layout.names):
            raise ValueError(f"expected {name} to be {layout}, got a mapping with the names {list(x)[:8]}")
        vector = long_vector({key: x[key] for key in layout.names}, name)
        if vector.layout.shapes != layout.shapes:
            raise ValueError(f"expected {name} to be {layout}, got {vector.layout}")
        return RightHandSide(vector.segments, False, x)
    array, _ = view(x, name)
    if layout.names is None and array.shape == layout.shapes[0]:
        return RightHandSide([array], False, x)
    if len(layout.shapes) == 1 and array.ndim == 2 and array.shape[0] == n:
        return RightHandSide([array], True, x)
    if array.shape == (n,) or (array.ndim == 2 and array.shape[0] == n):
        ends = np.cumsum(layout.sizes).tolist()
        cuts = [array[end - size : end] for size, end in zip(layout.sizes, ends, strict=True)]
        return RightHandSide(cuts, array.ndim == 2, x)
    accepted = str(layout) if layout.names is not None or layout.shapes[0] != (n,) else f"shape ({n},)"
    also = "" if layout.names is None and layout.shapes[0] == (n,) else f", shape ({n},)"
    raise ValueError(f"expected {name} to be {accepted}{also} or shape ({n}, m), got shape {array.shape}")


class Output:
    """A fresh or given result with the library, dtype and shape of a template.

    Parameters
    ----------
    template : array or mapping
        What the user handed in.
    layout : Layout
        How the result is cut into segments.
    out : array or mapping, optional
        Where to write; must have the template's shape.
    """

    def __init__(self, template: ArrayOrMapping, layout: Layout, out: ArrayOrMapping | None = None) -> None:
        if out is None:
            if isinstance(template, Mapping):
                self._given: Any = {key: _empty_like(x) for key, x in template.items()}
            else:
                self._given = _empty_like(template)
            self._finish = True
        else:
            for x in out.values() if isinstance(out, Mapping) else [out]:
                # A list would be written to in a copy.
                if is_jax(x) or isinstance(x, Sequence | float | int):
                    raise TypeError(f"expected an out that can be written in place, got {type(x).__name__}")
            self._given, self._finish = out, False
        found = right_hand_side(self._given, layout, "out")
        if out is not None and _shapes(out) != _shapes(template):
            raise ValueError(f"expected out of shape {_shapes(template)} as x, got {_shapes(out)}")
        self.segments = found.segments
        self._template = template

    def finished(self) -> Any:
        """The result in the caller's library."""
        if not self._finish:
            return self._given
        if isinstance(self._given, dict):
            return {key: _in_library_of(self._template[key], x) for key, x in self._given.items()}
        return _in_library_of(self._template, self._given)


def template_of(x: ArrayOrMapping) -> ArrayOrMapping:
    """What results in the form of `x` are made after: `x` itself, without a graph that recorded it.

    Parameters
    ----------
    x : array or mapping
        What the user handed in.

    Returns
    -------
    array or mapping
        Shares memory with `x`; can be copied and pickled where `x` itself could not.
    """
    if isinstance(x, Mapping):
        return {key: template_of(value) for key, value in x.items()}
    return x.detach() if is_torch(x) else x


def _shapes(x: ArrayOrMapping) -> Any:
    if isinstance(x, Mapping):
        return {key: tuple(np.shape(value)) for key, value in x.items()}
    return tuple(np.shape(x))


def _empty_like(x: Array) -> Array:
    if is_torch(x):
        return sys.modules["torch"].empty_like(x, requires_grad=False)
    if isinstance(x, np.ndarray):
        return np.empty_like(x, subok=False)
    array, _ = _to_numpy(x, "x")
    return np.empty_like(array, subok=False)


def _in_library_of(template: Array, result: Array) -> Array:
    """Hand a NumPy result back in the template's library (JAX may copy it)."""
    if isinstance(template, np.ndarray) or is_torch(template):
        return result
    if is_jax(template):
        return sys.modules["jax"].numpy.asarray(result)
    namespace = getattr(template, "__array_namespace__", None)
    if namespace is not None and not isinstance(result, type(template)):
        return namespace().from_dlpack(result)
    return result


def to_user(values: Sequence[Segment], like: ArrayOrMapping) -> Any:
    """Hand float arrays back in the structure, library and dtype of `like` (copies)."""

    def one(value: Segment, template: Array) -> Array:
        result = _empty_like(template)
        if is_torch(result):
            return result.copy_(sys.modules["torch"].from_numpy(np.ascontiguousarray(value).reshape(result.shape)))
        result[...] = value.reshape(result.shape)
        return _in_library_of(template, result)

    if isinstance(like, Mapping):
        return {key: one(value, like[key]) for key, value in zip(like, values, strict=True)}
    return one(values[0], like)


def widened(segment: Segment, dtype: str) -> NDArray[np.float64]:
    """One view in float64, for the rare methods that are not compiled; a copy unless it is float64 already."""
    if dtype != "bfloat16":
        return np.asarray(segment, dtype=np.float64)
    bits = np.asarray(segment, dtype=np.uint32) << np.uint32(16)
    return bits.view(np.float32).astype(np.float64)
