"""What the steps determine of Kronecker metrics, in numbers and in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from steepest.arrays import Layout
from steepest.identify.fitted import BlockFacts, FitStatus, Fitted
from steepest.identify.kronecker_estimate import ArrayFit, Factor, KroneckerEstimate
from steepest.identify.passes import Pass
from steepest.identify.steps import Steps
from steepest.metrics.kronecker import matrix_shape

__all__ = ["assembled", "check_sides"]

_LARGEST = 4096  # rows of a side: a fit needs some twenty float64 matrices of that size


def check_sides(layout: Layout, family: str, sides: tuple[bool, bool]) -> None:
    """Refuse matrices that would not fit.

    Parameters
    ----------
    layout : Layout
        Of the run.
    family : str
        For the message.
    sides : tuple of bool
        Whether the family has a matrix for the rows, and one for the columns.

    Raises
    ------
    ValueError
        A side is too long.
    """
    for i, shape in enumerate(layout.shapes):
        for size, wanted, axis in zip(matrix_shape(shape), sides, ("rows", "columns"), strict=True):
            if wanted and size > _LARGEST:
                name = "" if layout.names is None else f" {layout.names[i]!r}"
                raise ValueError(
                    f"expected at most {_LARGEST} {axis} for family={family!r}, got {size} in the array{name} of shape "
                    f"{shape}: the metric would be a matrix of {size} x {size}; use the other side, or leave the array "
                    "out of the run"
                )


def assembled(steps: Steps, fits: Sequence[ArrayFit], found: Pass) -> Fitted:
    """The outcome of a Kronecker family, with what the data determine of each block.

    Parameters
    ----------
    steps : Steps
        The run.
    fits : sequence of ArrayFit
        One for each array.
    found : Pass
        Scores.

    Returns
    -------
    Fitted
        For `identify`.
    """
    exponent = found.exponents[0] - found.exponents[1]
    facts = [_facts(fit, found.fitted_steps, math.ldexp(1.0, exponent)) for fit in fits]
    names = steps.layout.names
    return Fitted(
        estimate=KroneckerEstimate(steps.layout, [f.fit for f in fits], [f.symmetric for f in fits], exponent),
        in_sample=found.in_sample,
        held_out=found.held_out,
        numbers=found.numbers,
        fitted_steps=found.fitted_steps,
        dropped=found.dropped,
        facts=tuple(facts) if names is None else (_together(names, facts), *facts),
    )


def _facts(fit: ArrayFit, steps: int, unit: float) -> BlockFacts:
    """What the steps determine of one array."""
    factors, both = fit.factors, len(fit.factors) == 2
    parameters = sum(f.size * (f.size + 1) // 2 for f in factors) - both
    zeros = sum(f.zeros for f in factors)
    positive = [f.eigenvalues[f.zeros :] for f in factors]
    known = all(values.size for values in positive)
    notes = []
    short = False
    for factor, rows, others in zip(fit.fit, (fit.m, fit.r), (fit.r, fit.m), strict=True):
        if factor is not None:
            few, said = _conditions(factor, both, "A" if factor is fit.fit[0] else "B", rows, others, steps)
            short = short or few
            notes += said
    if both:
        needed = (fit.m * (fit.m + 1) + fit.r * (fit.r + 1) - 2) / (2 * fit.m * fit.r)
        if steps < needed:
            short = True
            notes.append(
                f"{steps} steps are fewer than the {needed:.3g} that can determine A and B together, "
                "(m(m+1) + r(r+1) - 2)/(2 m r)"
            )
        notes.append("A and B are known up to a factor, (c A, B/c); here |A| = |B| on what the steps span")
    status: FitStatus = "ok"
    if not any(f.rank for f in factors):
        status = "not_identified"
        notes = ["nothing moved in the fitted steps: the data say nothing about the metric"]
    elif short or steps < 1:
        status = "too_few_steps"
    elif any(f.rank < f.size for f in factors):
        status = "underdetermined"
    elif zeros:
        status = "not_positive_definite"
    elif fit.iterations or not all(f.converged for f in factors):
        status = "not_converged"
    if not all(f.converged for f in factors):
        notes.append("the solver stopped before its residual was certified")
    if fit.iterations:
        notes.append(fit.iterations)
    return BlockFacts(
        parameters=parameters,
        status=status,
        dimension=sum(f.size for f in factors),
        determined=sum(f.rank for f in factors),
        not_positive=zeros,
        smallest=math.prod(float(values[0]) for values in positive) * unit if known else math.nan,
        largest=math.prod(float(values[-1]) for values in positive) * unit if known else math.nan,
        notes=tuple(notes),
    )


def _conditions(factor: Factor, both: bool, name: str, rows: int, others: int, steps: int) -> tuple[bool, list[str]]:
    """Whether there are too few steps for a matrix, and what it rests on, in words."""
    side, total = ("output", "sum_t G_t G_t^T") if name == "A" else ("input", "sum_t G_t^T G_t")
    if rows == 1:
        return False, [f"the {side} side has one element only: {name} is one number"]
    notes = []
    short = steps * others < rows
    if factor.rank == rows:
        given = f", with {'B' if name == 'A' else 'A'} given," * both
        notes.append(f"{name} ({rows} x {rows}) is unique{given} since {total} has full rank")
    elif factor.rank:
        notes.append(
            f"{total} has rank {factor.rank} of {rows}: the updates determine {name} times the {factor.rank} "
            f"directions that they span, enough to score steps within them; {name} between the other "
            f"{rows - factor.rank} directions is free, and 0 in elements()"
        )
    if short:
        notes.append(f"{steps} steps with {others} columns each cannot span {rows} directions")
    if factor.zeros:
        notes.append(
            f"{name} is singular: the best semidefinite fit maps {factor.zeros} of the {factor.rank} directions that "
            "moved to 0"
        )
    return short, notes


_WORST: tuple[FitStatus, ...] = (
    "too_few_steps",
    "not_identified",
    "underdetermined",
    "not_positive_definite",
    "not_converged",
    "ok",
)


def _together(names: Sequence[str], facts: Sequence[BlockFacts]) -> BlockFacts:
    """Of all arrays."""
    ends = [[x for x in column if x > 0.0] for column in ([f.smallest for f in facts], [f.largest for f in facts])]
    said = [f"{name!r}: {note}" for name, f in zip(names, facts, strict=True) if f.status != "ok" for note in f.notes]
    return BlockFacts(
        parameters=sum(f.parameters for f in facts),
        status=min((f.status for f in facts), key=_WORST.index),
        dimension=sum(f.dimension for f in facts),
        determined=sum(f.determined for f in facts),
        not_positive=sum(f.not_positive for f in facts),
        smallest=min(ends[0], default=math.nan),
        largest=max(ends[1], default=math.nan),
        notes=tuple(said[:8]) + (f"and {len(said) - 8} more notes of the arrays",) * (len(said) > 8),
    )
