"""The report in words: what the numbers of a run mean, and what nobody may conclude from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from steepest.report.facts import Facts, affordable

if TYPE_CHECKING:
    from steepest.analysis import RunAnalysis
    from steepest.identify import Identification

__all__ = ["GRADIENT", "PAIR", "STATUS", "cannot_say", "degrees", "headline", "number", "prediction", "share", "story"]

GRADIENT = {
    "rule": "the gradient that the learning rule itself used at that step",
    "evaluation": "a gradient computed separately, on data chosen for the purpose",
    "estimate": "an estimate of the gradient, which has an error of its own",
}
_SHORT = {
    "rule": "the gradient that it used",
    "evaluation": "a separately computed gradient",
    "estimate": "an estimated gradient",
}
_EUCLIDEAN = 1.05  # a condition number below this one is not worth a sentence
PAIR = {
    "continuous": "the gradient at the beginning of each step",
    "trapezoid": "the mean of the gradients before and after each step, corrected along the step so that it accounts "
    "exactly for the measured change of the loss",
    "left": "the gradient at the beginning of each step, corrected along the step so that it accounts exactly for the "
    "measured change of the loss",
    "displacement": "the mean gradient over a window of steps, corrected along the way travelled so that it accounts "
    "exactly for the measured change of the loss",
}
STATUS = {
    "ok": "the update points downhill; a metric exists",
    "ascent": "the update points uphill or along the level line; no metric exists",
    "undecided": "the numbers recorded are not exact enough to tell downhill from uphill",
    "zero_update": "the parameters did not move",
    "zero_grad": "the gradient was zero",
    "nonfinite": "gradient or update held NaN or infinity",
    "no_gradient": "no gradient was recorded",
    "no_update": "no update was recorded (as at the last point of a trajectory)",
    "no_loss": "no loss was recorded",
    "skipped": "the training loop skipped the step",
}


def degrees(value: float) -> str:
    """An angle with as many digits as tell it from 0 and 90.

    Parameters
    ----------
    value : float
        In degrees.

    Returns
    -------
    str
        A dash for NaN.
    """
    if math.isnan(value):
        return "–"
    if value and (value < 0.1 or 0.0 < abs(90.0 - value) < 0.1):
        return f"{value:.2g}°" if value < 1.0 else f"{value:.5f}°"
    return f"{value:.1f}°"


def share(value: float) -> str:
    """A share in percent, never rounded to none or all.

    Parameters
    ----------
    value : float
        Between 0 and 1.

    Returns
    -------
    str
        A dash for NaN.
    """
    if math.isnan(value):
        return "–"
    if 0.0 < value < 0.001:
        return "<0.1%"
    if 0.999 < value < 1.0:
        return ">99.9%"
    return f"{100.0 * value:.1f}%" if value not in (0.0, 1.0) else f"{value:.0%}"


def number(value: float) -> str:
    """Three digits; whole numbers in full with thin spaces.

    Parameters
    ----------
    value : float
        Any.

    Returns
    -------
    str
        A dash for NaN.
    """
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u2009")
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:.3g}"


def headline(run: RunAnalysis, whole: Facts) -> str:
    """A run in one sentence.

    Parameters
    ----------
    run : RunAnalysis
        Of the run.
    whole : Facts
        Of the whole vector.

    Returns
    -------
    str
        Plain text.
    """
    if not whole.with_angle:
        text = "The angle to steepest descent is not known"
    else:
        against = _SHORT.get(run.gradient_source, run.gradient_source)
        text = (
            f"Downhill at {share(whole.with_metric / whole.steps)} of {number(whole.steps)} steps, typically "
            f"{degrees(whole.angle)} from steepest descent of {against}"
        )
    if whole.windows:
        text += f"; the loss fell over {share(whole.effective)} of the windows"
    return f"{text}."


def story(run: RunAnalysis, whole: Facts, blocks: Mapping[str, Facts]) -> list[str]:
    """A run in sentences.

    Parameters
    ----------
    run : RunAnalysis
        Of the run.
    whole : Facts
        Of the whole vector.
    blocks : mapping
        Name -> facts, without the whole vector.

    Returns
    -------
    list of str
        Paragraphs, plain text.
    """
    said = [_extent(run, whole, blocks)]
    if not whole.with_angle:
        said.append("No step has an angle: " + _reasons(whole.counts) + ".")
    else:
        said += [_existence(whole), _typical(run, whole)]
    said.append(_improvement(run, whole))
    with_angle = {name: f for name, f in blocks.items() if not math.isnan(f.angle)}
    if len(with_angle) > 1:
        nearest = min(with_angle.values(), key=lambda f: f.angle)
        farthest = max(with_angle.values(), key=lambda f: f.angle)
        said.append(
            f"Block by block, {nearest.block} is closest to gradient descent ({degrees(nearest.angle)}) and "
            f"{farthest.block} farthest from it ({degrees(farthest.angle)})."
        )
    return said


def _extent(run: RunAnalysis, whole: Facts, blocks: Mapping[str, Facts]) -> str:
    steps = f"{number(whole.steps)} step{'s' * (whole.steps != 1)}"
    held = f"{number(whole.size)} parameter{'s' * (whole.size != 1)}"
    if blocks:
        held += f" in {number(len(blocks))} block{'s' * (len(blocks) != 1)}"
    against = GRADIENT.get(run.gradient_source, run.gradient_source)
    text = f"{steps} of {held}. The angle lies between the update and the direction of steepest descent of {against}."
    if run.gradient_source == "rule":
        text += (
            " Plain gradient descent is at 0° by construction here, however noisy its gradient is; what the angle "
            "shows is what the rule does to the gradient that it gets."
        )
    if run.pair != "continuous":
        text += f" What stands for the gradient is {PAIR.get(run.pair, run.pair)}."
    return text


def _existence(whole: Facts) -> str:
    ok = whole.with_metric
    text = (
        f"At {number(ok)} of {number(whole.steps)} steps ({share(ok / whole.steps)}) the update points downhill: there "
        f"a geometry exists in which the rule is exactly steepest descent."
    )
    if whole.counts.get("ascent"):
        text += f" At {number(whole.counts['ascent'])} it points uphill, and no geometry can make it a descent."
    without = {name: count for name, count in whole.counts.items() if name not in ("ok", "ascent")}
    if without:
        text += f" At {number(sum(without.values()))} there is no answer: {_reasons(without)}."
    return text


def _typical(run: RunAnalysis, whole: Facts) -> str:
    text = (
        f"The angle is typically {degrees(whole.angle)} (the middle half of the steps lies between "
        f"{degrees(whole.angle_low)} and {degrees(whole.angle_high)}). 0° is gradient descent"
    )
    if not math.isnan(whole.null_low):
        text += f"; 95% of random updates would lie between {degrees(whole.null_low)} and {degrees(whole.null_high)}"
    text += "."
    if whole.null_low < whole.angle < whole.null_high:
        text += " So the typical angle is not distinguishable from chance."
    elif whole.angle <= whole.null_low and whole.angle > 60.0:
        text += " So the typical angle is far from gradient descent, and yet not a matter of chance."
    if whole.cond < _EUCLIDEAN:
        text += " The ordinary Euclidean geometry explains such a step almost as it is."
    elif not math.isnan(whole.cond):
        text += (
            f" A geometry that explains such a step must stretch some directions at least {number(whole.cond)} times "
            f"more than others (its condition number; 1 would be the ordinary Euclidean geometry)."
        )
    if whole.within_rounding > 0.01:
        text += f" In {share(whole.within_rounding)} of the steps the angle is within rounding of the parameters."
    if whole.decay_share > 0.01:
        text += f" Weight decay, typically {share(whole.decay_share)} of the update, is part of the rule here."
    if run.pair != "continuous" and whole.correction_share > 0.5:
        text += (
            " Most of the gradient used is the correction by the measured loss, which pulls the angle towards 0°: it "
            "says little here."
        )
    return text


def _improvement(run: RunAnalysis, whole: Facts) -> str:
    if not whole.windows:
        return "Whether the rule lowered the loss is not known: the losses that this needs were not recorded."
    over = "one step" if run.window == 1 else f"{run.window} steps"
    text = f"The loss fell over {share(whole.effective)} of the {number(whole.windows)} windows of {over}."
    if run.info.objective != "fixed":
        text += (
            " Nothing says that these losses belong to one and the same function (mini-batches do not), so part of "
            "this is the noise of the data, not the work of the rule."
        )
    return text


def _reasons(counts: Mapping[str, int]) -> str:
    return "; ".join(f"{STATUS.get(name, name)} ({number(count)})" for name, count in counts.items())


def prediction(found: Identification) -> str:
    """What one constant geometry predicts, in one sentence.

    Parameters
    ----------
    found : Identification
        Of a run.

    Returns
    -------
    str
        Plain text.
    """
    fit = found.fits[0]
    of = "a multiple of the Euclidean metric" if found.family == "scalar" else f"a {found.family} metric"
    text = f"One constant geometry ({of}), fitted to the first {number(found.fitted_steps)} steps,"
    if math.isnan(fit.r2):
        return f"{text} has no later steps to be judged by."
    later = f"the gradient at the {number(len(found.held_out))} steps after them"
    score = f"(R² = {fit.r2:.3f}"
    score += ")" if math.isnan(fit.r2_low) else f", 95% interval {fit.r2_low:.3f} to {fit.r2_high:.3f})"
    if fit.r2_low <= 0.0:
        return f"{text} does not predict {later} {score}: nothing here says that there is one such geometry."
    return f"{text} accounts for {share(round(fit.r2, 6))} of {later} {score}."


def cannot_say(runs: Mapping[str, RunAnalysis], *, identified: bool) -> list[str]:
    """What may not be concluded from these runs.

    Parameters
    ----------
    runs : mapping
        Name -> analysis.
    identified : bool
        Whether constant geometries were looked for.

    Returns
    -------
    list of str
        Sentences, plain text.
    """
    analyses = list(runs.values())
    said = [
        "That a metric exists at a single step only says that the update points downhill; it proves no theory.",
        "The condition number is a function of the angle, so it adds no evidence of its own.",
        "The size of the metric's eigenvalues follows the learning rate; only ratios of them mean something.",
    ]
    if not identified:
        said.append(
            "Whether one constant geometry explains many steps, and predicts later ones, is not answered by angles. "
            "That needs recordings that keep the vectors, and steepest.identify."
        )
    if any(run.gradient_source == "rule" for run in analyses):
        said.append(
            "Where the gradient is the one that the rule used, nothing is said about descent on the loss over all data."
        )
    if len({run.gradient_source for run in analyses}) > 1:
        said.append("Angles against different gradients are not comparable; compare runs with the same source only.")
    if any(run.info.lag == 0 for run in analyses):
        said.append("How fast the geometry moves is known only for recordings made with lag=1 or more.")
    if any(run.info.lag > 0 and not affordable(run) for run in analyses):
        said.append("How fast the geometry moves was not computed for this page, since the runs are long.")
    if any(run.info.objective != "fixed" for run in analyses):
        said.append(
            "Where losses may belong to different mini-batches, how they change from step to step is partly noise."
        )
    said.append("Angles depend on the units of the parameters: rescaled parameters have other angles.")
    return said
