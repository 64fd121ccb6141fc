"""Several losses of one run side by side, such as error, reward and energy: which of them does the rule descend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["by_candidate", "checked", "inferred"]


def checked(candidates: Sequence[str] | None) -> tuple[str, ...] | None:
    """The names of candidates as an option of a recording.

    Parameters
    ----------
    candidates : sequence of str or None
        What the user handed in.

    Returns
    -------
    tuple of str or None
        The same.

    Raises
    ------
    TypeError
        Text instead of several texts, or a name that is not text.
    ValueError
        No name, a name twice, an empty one, or one with a slash.
    """
    if candidates is None:
        return None
    if isinstance(candidates, str) or not all(isinstance(name, str) for name in candidates):
        raise TypeError(
            f"expected candidates to be a sequence of names, such as ('error', 'energy'), got {candidates!r}"
        )
    names = tuple(candidates)
    if not names or len(set(names)) < len(names) or not all(name and "/" not in name for name in names):
        raise ValueError(f"expected at least one candidate, each named once, without a slash, got {names}")
    return names


def inferred(loss: Any, grad: Any) -> tuple[str, ...] | None:
    """The candidates that the arguments name, where the option was not given.

    A mapping `loss` has a loss for each candidate; so has a `grad` whose values are mappings. A `grad` whose values are
    arrays is ONE gradient, by names of arrays.

    Parameters
    ----------
    loss, grad : object
        As handed to `Recorder.step` or `recording`.

    Returns
    -------
    tuple of str or None
        None for a single loss.
    """
    if isinstance(loss, Mapping):
        return checked(tuple(loss))
    if isinstance(grad, Mapping) and grad and all(isinstance(value, Mapping) for value in grad.values()):
        return checked(tuple(grad))
    return None


def by_candidate(x: Any, what: str, candidates: tuple[str, ...] | None) -> list[Any]:
    """The values of an argument, one for each candidate, None where it has none.

    Parameters
    ----------
    x : object
        None, a mapping candidate -> value, or, without candidates, the value itself.
    what : str
        Name of the argument.
    candidates : tuple of str or None
        Of the recording.

    Returns
    -------
    list
        As long as `candidates`, or 1.

    Raises
    ------
    TypeError
        With candidates: not a mapping.
    ValueError
        With candidates: a key that is none.
    """
    if candidates is None:
        return [x]
    if x is None:
        return [None] * len(candidates)
    if not isinstance(x, Mapping):
        raise TypeError(
            f"expected {what} to be a mapping from the candidates {candidates} to their values, got {type(x).__name__}"
        )
    if not set(x) <= set(candidates):
        raise ValueError(f"expected the keys of {what} to be among the candidates {candidates}, got {list(x)[:8]}")
    return [x.get(name) for name in candidates]
