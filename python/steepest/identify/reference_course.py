"""How far the metrics of each step of a run are from a reference geometry."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import ArrayOrMapping
from steepest.identify.reference import (
    Kind,
    ReferenceDistance,
    Scale,
    arrays,
    check_options,
    parts,
    whole,
)
from steepest.identify.steps import steps_of
from steepest.progress import shown

__all__ = ["ReferenceCourse", "reference_course"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ReferenceCourse:
    """Smallest distance from a reference metric to any metric of each step, by block.

    Attributes
    ----------
    kind, scale : str
        Which distance, see `reference_distance`.
    blocks : tuple of str
        ``"(all)"``, and the names of the arrays where the reference is block diagonal along them.
    steps : tuple of int
        Numbers of the steps.
    value, error, multiple, angle, residual : ndarray, shape (steps, blocks)
        As in `ReferenceDistance`; NaN where a step has no metric.
    status : ndarray of str, shape (steps, blocks)
        As `Alignment.status`.
    """

    kind: str
    scale: str
    blocks: tuple[str, ...]
    steps: tuple[int, ...]
    value: Array
    error: Array
    multiple: Array
    angle: Array
    residual: Array
    status: NDArray[np.str_]

    def __getitem__(self, block: str) -> Array:
        """Values of one block, shape (steps,)."""
        if block not in self.blocks:
            raise ValueError(f"expected block to be one of {list(self.blocks)[:8]}, got {block!r}")
        return self.value[:, self.blocks.index(block)]

    def summary(self) -> list[dict[str, Any]]:
        """One row for each block, over the steps that have a metric.

        Returns
        -------
        list of dict
            block, steps, ok (how many have a metric), median, low and high (quartiles) of the value, `angle` (median,
            in rad), `multiple` (median), `error` and `residual` (largest).
        """
        rows = []
        for k, block in enumerate(self.blocks):
            good = self.status[:, k] == "ok"

            def quantile(x: Array, q: float, k: int = k, good: Any = good) -> float:
                return float(np.quantile(x[good, k], q)) if good.any() else math.nan

            rows.append(
                {
                    "block": block,
                    "steps": len(self.steps),
                    "ok": int(good.sum()),
                    "median": quantile(self.value, 0.5),
                    "low": quantile(self.value, 0.25),
                    "high": quantile(self.value, 0.75),
                    "angle": quantile(self.angle, 0.5),
                    "multiple": quantile(self.multiple, 0.5),
                    "error": quantile(self.error, 1.0),
                    "residual": quantile(self.residual, 1.0),
                }
            )
        return rows

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python values.

        Returns
        -------
        dict
            Arrays as nested lists.
        """
        names = ("value", "error", "multiple", "angle", "residual", "status")
        head = {"kind": self.kind, "scale": self.scale, "blocks": list(self.blocks), "steps": list(self.steps)}
        return {**head, **{name: getattr(self, name).tolist() for name in names}}

    def __repr__(self) -> str:
        row = self.summary()[0]
        return (
            f"ReferenceCourse({self.kind}, scale {self.scale}, {len(self.steps)} steps, {row['ok']} with a metric: "
            f"{row['block']} median {row['median']:.4g}, angle {math.degrees(row['angle']):.4g} deg"
            + f"; {len(self.blocks) - 1} more blocks" * (len(self.blocks) > 1)
            + ")"
        )


def reference_course(
    x: Any = None,
    reference: Any = None,
    *,
    grad: ArrayOrMapping | None = None,
    update: ArrayOrMapping | None = None,
    kind: Kind = "kl",
    scale: Scale = "free",
    reference_solve: Callable[[Any], Any] | None = None,
    rtol: float = 1e-12,
    steps: int | None = None,
    progress: bool = False,
) -> ReferenceCourse:
    """How far a rule is from natural gradient in a given geometry, step by step and block by block.

    Parameters
    ----------
    x : Recording, Recorder, path-like, or iterable of pairs (grad, update), optional
        The run, as for `steepest.identify`, with vectors; they are read once, one step at a time.
    reference : array, mapping, Metric, LinearOperator, or callable
        As for `reference_distance`; or a function of the number of the step that returns one, for a geometry that
        changes. Along the named arrays there are values for each where it is block diagonal (a diagonal, or a mapping
        name -> operator); an operator on the whole vector gives ``"(all)"`` only.
    grad, update : array or mapping name -> array, optional
        Instead of `x`: whole arrays, first axis the step.
    kind, scale, reference_solve, rtol : object
        As for `reference_distance`.
    steps : int, optional
        Number of pairs, where `x` has no length.
    progress : bool
        Show a progress bar on a terminal (needs tqdm).

    Returns
    -------
    ReferenceCourse
        Arrays of (steps, blocks).

    Raises
    ------
    ValueError
        No vectors, shapes that do not fit, a reference that is not symmetric positive definite, or a function that
        changes between block diagonal and not.
    TypeError
        An unsupported type or dtype.

    Notes
    -----
    Vectors are in the units of the parameters as they are, also where a recording has a `scale`. Cost per step as for
    `reference_distance`.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest.identify.reference_course import reference_course
    >>> rng = np.random.default_rng(0)
    >>> grad, v = {"w": rng.normal(size=(20, 5)), "b": rng.normal(size=(20, 2))}, {"w": np.arange(1.0, 6.0)}
    >>> v["b"] = np.array([2.0, 3.0])
    >>> course = reference_course(grad=grad, update={k: -0.1 * x / v[k] for k, x in grad.items()}, reference=v)
    >>> course.blocks, course.value.shape, bool(course.value.max() < 1e-15)
    (('(all)', 'w', 'b'), (20, 3), True)
    >>> course.multiple[:2].round(6).tolist()
    [[10.0, 10.0, 10.0], [10.0, 10.0, 10.0]]
    """
    check_options(kind, scale, rtol)
    if reference is None:
        raise TypeError("expected a reference metric, got None")
    run = steps_of(x, grad, update, steps)
    if not run.has_vectors:
        raise ValueError(
            "a reference geometry needs the vectors of every step, which this recording does not have: record with "
            "keep='vectors', or pass grad= and update="
        )
    changing = callable(reference) and not hasattr(reference, "matvec") and not hasattr(reference, "to_scipy")
    numbers: list[int] = []
    rows: list[list[ReferenceDistance] | None] = []
    named = run.layout.names is not None
    width = 0
    for step in shown(run.pairs(True), progress, "reference geometry", run.total):
        numbers.append(step.number)
        if step.grad is None or step.update is None:
            rows.append(None)
            continue
        b = reference(step.number) if changing else reference
        found = parts(step.grad, step.update, b, reference_solve, rtol)
        everything = whole(step.grad, step.update, found)
        separate = named and len(found) == len(arrays(step.grad)) and not _is_whole(b)
        row = [p.distance(kind, scale) for p in ([everything, *found] if separate else [everything])]
        if width not in (0, len(row)):
            raise ValueError(
                f"expected a reference with the same blocks at every step, got one with {len(row)} after {width} at "
                f"step {step.number}"
            )
        width = len(row)
        rows.append(row)
    width = width or 1
    none = ReferenceDistance(math.nan, math.nan, kind, scale, math.nan, math.nan, math.nan, "nonfinite")
    table = [[none] * width if row is None else row for row in rows]

    def column(name: str) -> Array:
        return np.array([[getattr(d, name) for d in row] for row in table], float).reshape(-1, width)

    return ReferenceCourse(
        kind,
        scale,
        run.blocks[:width],
        tuple(numbers),
        column("value"),
        column("error"),
        column("multiple"),
        column("angle"),
        column("residual"),
        np.array([[d.status for d in row] for row in table], dtype=np.str_).reshape(-1, width),
    )


def _is_whole(b: Any) -> bool:
    """Whether a reference is one operator on the whole vector."""
    return hasattr(b, "matvec") or hasattr(b, "to_scipy")
