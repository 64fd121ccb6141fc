"""What the data of a run can say and cannot, in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from steepest.analysis.summary import counts_of

if TYPE_CHECKING:
    from steepest.analysis.run import RunAnalysis

__all__ = ["notes_of"]

_SOURCE = {
    "rule": (
        "The gradient is the one that the rule itself used, so the angle says what the rule does with its gradient: "
        "plain gradient descent is at 0 degrees by construction, however noisy its gradient is (up to the length of "
        "the step, where steps are taken as finite)."
    ),
    "evaluation": (
        "The gradient was evaluated for this purpose, apart from the rule, so the angle contains the noise of the "
        "rule's own gradient as well as what the rule does with it."
    ),
    "estimate": (
        "The gradient is an estimate, so the angle contains the error of the estimate: noise turns every direction "
        "towards 90 degrees."
    ),
}
_PAIR = {
    "continuous": "Gradient and update of a step are compared as they were recorded (the continuous pair).",
    "trapezoid": (
        "Losses and gradients belong to one function, so each step is analysed as a finite step: the mean of the "
        "gradients before and after it, corrected so that it accounts for the whole change of the loss (the trapezoid "
        "pair). A step that lowers the loss then has a metric, however long it is."
    ),
    "left": (
        "Each step is analysed as a finite step: the gradient before it, corrected so that it accounts for the whole "
        "change of the loss (the left pair)."
    ),
    "displacement": (
        "{window} steps are taken as one: the displacement over the window, against the mean gradient in it, corrected "
        "so that it accounts for the whole change of the loss (the displacement pair)."
    ),
}
_MEANING = {
    "ascent": "do not lower the loss to first order, or at all, and have no metric",
    "undecided": "are too close to 90 degrees for the precision of the recorded numbers to decide",
    "zero_update": "did not change the parameters",
    "zero_grad": "have a gradient of zero",
    "nonfinite": "hold NaN or infinite numbers",
    "no_gradient": "have no gradient that can be used, or not its products with the steps around it",
    "no_update": "have no recorded update",
    "skipped": "were skipped by the training loop",
    "no_loss": "have no loss at the end of the step",
}


def notes_of(run: RunAnalysis) -> tuple[str, ...]:
    """What the data can say and cannot.

    Parameters
    ----------
    run : RunAnalysis
        Of one run.

    Returns
    -------
    tuple of str
        Whole sentences, the most important first.
    """
    steps = len(run)
    if not steps:
        return ("Nothing was recorded.",)
    counts = counts_of(run, 0)
    notes = []
    angles = ~np.isnan(run["psi"][:, 0])
    if counts["no_gradient"] == steps or not (run["grad_norm"] > 0.0).any():
        notes.append(
            "No gradient was recorded, so the angle between the rule and the gradient is not identifiable. Whether the "
            "loss falls over a window of steps is: see effectiveness."
        )
    else:
        notes += [_SOURCE[run.gradient_source], _PAIR[run.pair].format(window=run.window), *_why_continuous(run)]
    if angles.any():
        ok = counts["ok"]
        notes.append(f"{ok} of {steps} steps have a metric: the rule is steepest descent there in some geometry.")
    for status, meaning in _MEANING.items():
        if counts[status] and counts[status] < steps:
            notes.append(f"{counts[status]} of {steps} steps {meaning} ({status}).")
    notes += _limits(run)
    return tuple(notes)


def _why_continuous(run: RunAnalysis) -> list[str]:
    info = run.info
    if run.pair != "continuous":
        if info.objective != "fixed":
            note = (
                "The recording does not say that all losses belong to one function (objective='fixed'): with "
                "mini-batches the change of the loss is mostly the change of the batch, and this pair means little."
            )
            return [note]
        return []
    if info.rate:
        return ["The update is a rate of change in time, so losses are not differenced over it."]
    if info.objective != "fixed":
        note = (
            "The losses may belong to different mini-batches, so changes of the loss are not used for the angle; "
            "record with objective='fixed' if there is one function."
        )
        return [note]
    return []


def _limits(run: RunAnalysis) -> list[str]:
    notes = []
    rounded = int(run["within_rounding"][:, 0].sum())
    if rounded:
        notes.append(f"In {rounded} steps the angle is within rounding: it cannot be told from 0 degrees.")
    loss = run["loss"]
    if np.isnan(loss).all():
        notes.append("No loss was recorded, so nothing can be said about whether the loss falls.")
    elif not np.isnan(run["dloss"]).all():
        change, size = run["dloss"], np.abs(loss)
        small = int(np.sum((np.abs(change) < 4.0 * 2.0**-23 * size) & (change != 0.0)))
        if small and run.pair != "continuous":
            notes.append(
                f"In {small} steps the loss changes by no more than the rounding of a single-precision loss: if the "
                "loss was computed in single precision, their angle is noise."
            )
    if run.info.lag < 1:
        notes.append("Recorded with lag=0: how fast the geometry changes from step to step is not known (lag=1).")
    elif run.pair != "continuous" and not run.info.rate:
        notes.append("Distances between the metrics of consecutive steps are those of the continuous pairs.")
    resumed = int(np.sum(run["resumed"]))
    if resumed:
        notes.append(f"The run was resumed {resumed} times; products across a resume are missing.")
    if run.info.scaled:
        notes.append("All products are in units of the given scale, so angles refer to that geometry.")
    return notes
