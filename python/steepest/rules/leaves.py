"""Arithmetic element by element over an array or a mapping name -> array, in the library that the arrays come from."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import ArrayOrMapping, is_jax, is_torch, long_vector, template_of, to_user

__all__ = ["add", "each", "exactly", "flat", "from_flat", "in_library_of", "plain", "zeros_like"]


def each(f: Callable[..., Any], first: ArrayOrMapping, *others: ArrayOrMapping) -> Any:
    """Apply a function to each array of one or several long vectors.

    Parameters
    ----------
    f : callable
        Of one array from each argument.
    first, *others : array or mapping
        With the same names; the order is that of `first`.

    Returns
    -------
    array or dict
        Of what `f` returns.

    Raises
    ------
    ValueError
        The names differ.
    """
    if not isinstance(first, Mapping):
        return f(first, *others)
    for other in others:
        if not isinstance(other, Mapping) or set(other) != set(first):
            came = list(other)[:8] if isinstance(other, Mapping) else type(other).__name__
            raise ValueError(f"expected a mapping with the names {list(first)[:8]}, got {came}")
    return {name: f(array, *(other[name] for other in others)) for name, array in first.items()}


def plain(x: ArrayOrMapping) -> Any:
    """The same values as arrays, without a graph that recorded them; numbers and lists become NumPy arrays.

    Parameters
    ----------
    x : array or mapping
        As a user hands it in.

    Returns
    -------
    array or dict
        Shares memory with `x` where it is an array already.
    """
    return each(lambda a: np.asarray(a) if isinstance(a, float | int | list | tuple) else template_of(a), x)


def zeros_like(x: ArrayOrMapping) -> Any:
    """Zeros of the same shapes, dtypes and library.

    Parameters
    ----------
    x : array or mapping
        The template.

    Returns
    -------
    array or dict
        New arrays.
    """

    def zeros(a: Any) -> Any:
        if isinstance(a, np.ndarray):
            return np.zeros_like(a)
        if is_torch(a):
            return sys.modules["torch"].zeros_like(a, requires_grad=False)
        if is_jax(a):
            return sys.modules["jax"].numpy.zeros_like(a)
        return 0 * a  # exact numbers (fractions.Fraction), and libraries that are not known here

    return each(zeros, x)


def add(x: ArrayOrMapping, update: ArrayOrMapping) -> Any:
    """``x + update``, array by array.

    Parameters
    ----------
    x, update : array or mapping
        Of the same names and shapes.

    Returns
    -------
    array or dict
        New arrays.
    """
    return each(lambda a, b: a + b, x, update)


def exactly(x: ArrayOrMapping, name: str, template: ArrayOrMapping) -> Any:
    """`x` without a graph, after a check that it has the names and shapes of a template.

    Parameters
    ----------
    x : array or mapping
        What came.
    name : str
        What error messages call it.
    template : array or mapping
        What is expected.

    Returns
    -------
    array or dict
        `plain` of `x`.

    Raises
    ------
    ValueError
        Other names or shapes.
    """
    x = plain(x)

    def check(expected: Any, came: Any) -> Any:
        if np.shape(came) != np.shape(expected):
            raise ValueError(f"expected {name} of shape {np.shape(expected)}, got {np.shape(came)}")
        return came

    if isinstance(x, Mapping) != isinstance(template, Mapping):
        wanted = f"a mapping with the names {list(template)[:8]}" if isinstance(template, Mapping) else "an array"
        raise ValueError(f"expected {name} to be {wanted}, as the rule was initialised, got {type(x).__name__}")
    return each(check, template, x)


def flat(x: ArrayOrMapping, name: str = "x") -> NDArray[np.float64]:
    """All elements as one float64 vector, for linear algebra.

    Parameters
    ----------
    x : array or mapping
        Long vector.
    name : str
        What error messages call it.

    Returns
    -------
    ndarray, shape (n,)
        A copy.
    """
    return long_vector(plain(x), name).flat()


def from_flat(values: NDArray[np.float64], like: ArrayOrMapping) -> Any:
    """Cut a flat vector into arrays of the shapes, dtypes and library of `like`.

    Parameters
    ----------
    values : ndarray, shape (n,)
        All elements in order.
    like : array or mapping
        The template.

    Returns
    -------
    array or dict
        New arrays.
    """
    like = plain(like)
    sizes = long_vector(like, "like").layout.sizes
    return to_user(np.split(values, np.cumsum(sizes)[:-1]), like)


def in_library_of(values: ArrayOrMapping, like: ArrayOrMapping) -> Any:
    """Arrays of any library in the library and dtype of others, name by name.

    Parameters
    ----------
    values : array or mapping
        What is converted (copied).
    like : array or mapping
        The template.

    Returns
    -------
    array or dict
        In the order of `like`.
    """
    return each(lambda template, value: from_flat(flat(value), template), like, values)
