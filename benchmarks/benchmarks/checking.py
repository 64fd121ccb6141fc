"""That competitors agree with plain NumPy, before they are timed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import steepest
from steepest import _core

from .problems import Array, Problem, Trajectory
from .timing import Call

TOLERANCE = {"float64": 1e-10, "float32": 1e-3, "float16": 2e-2, "bfloat16": 0.2}
#: They return results of other kinds than NumPy's few lines, and have tests of their own.
UNCHECKED = ("align", "metric")
PRODUCTS = ("yy", "yg", "gg")
LAGGED = ("lag_yy", "lag_yg", "lag_gy", "lag_gg")


def check(operation: str, problem: Problem | Trajectory, calls: Mapping[str, Call]) -> None:
    """Raises an AssertionError that names the first call with another result than NumPy's."""
    if operation in UNCHECKED:
        return
    if isinstance(problem, Trajectory):
        expected = np.asarray(calls["numpy"](), dtype=np.float64)
    elif operation in ("gram", "compensated"):
        expected = np.array(problem.products)
    elif "numpy" in calls:
        expected = np.asarray(calls["numpy"](), dtype=np.float64)
    else:
        return
    for name, call in calls.items():
        found = call()
        if found is None:
            assert isinstance(problem, Problem)
            found = problem.matrix if operation == "assemble" else problem.out
        error = _error(_numbers(found), expected, operation)
        if not error < TOLERANCE[problem.dtype]:
            raise AssertionError(f"{name} differs from numpy by {error:.2g} in {operation}, {problem}")


def _error(found: Array, expected: Array, operation: str) -> float:
    """Largest difference: of inner products, in units of the norms; of vectors, of the largest element."""
    if operation in ("gram", "compensated") or operation.startswith("trajectory"):
        y, g = np.sqrt(expected[..., 0]), np.sqrt(expected[..., 2])
        norms = np.stack([y * y, y * g, g * g, y * y, y * g, y * g, g * g], axis=-1)[..., : expected.shape[-1]]
        return float((np.abs(found - expected) / norms).max())
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _numbers(found: Any) -> Array:
    if isinstance(found, _core.Gram):
        hi = np.ldexp(found.hi, np.add.outer(found.exponents, found.exponents))
        return np.array([hi[0, 0], hi[0, 1], hi[1, 1]])
    if isinstance(found, steepest.Recording):
        return _of_recording(found)
    if isinstance(found, tuple):
        return np.array([float(x) for x in found])
    if type(found).__module__.startswith("torch"):
        found = found.double().numpy()
    return np.asarray(found, dtype=np.float64)


def _of_recording(found: steepest.Recording) -> Array:
    """As the peers give them, (blocks, steps, products): without the row of all blocks."""
    rows = found.rows[:, 1:]
    columns = []
    for name in PRODUCTS:
        exponent = sum(rows[f"{letter}_exponent"] for letter in name)
        columns.append(np.ldexp(rows[name], exponent))
    if found.info.lag:
        for name in LAGGED:
            value = np.ldexp(rows[name][..., 0], rows[f"{name}_exponent"][..., 0])
            columns.append(np.where(np.isnan(value), 0.0, value))
    return np.stack(columns, axis=-1).swapaxes(0, 1)
