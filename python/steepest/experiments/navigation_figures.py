"""The figures of `steepest.experiments.navigation`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from steepest.experiments import navigation
from steepest.experiments.output import name_panel, new_figure
from steepest.navigation import Quadratic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["CAPTIONS", "geometry_and_drift", "metrics", "quadratics", "wells"]

Array = NDArray[np.float64]

#: Under each figure; they say where the computation departs from the published code.
CAPTIONS = {
    "wells": (
        "Optimal paths over T = 4 (η = k = 1, γ = 0.1) with a free end, minima of the action found by direct "
        "collocation from many starts, beside gradient descent θ' = −∇L. Against the authors' notebook: the end "
        "is free, not fixed at (1.0625, 0), and gradient descent uses the true derivative 4x(x² − 1) − 1/2 (the "
        "notebook has 2x(x² − 1) − 1/2)."
    ),
    "quadratics": (
        "Optimal rule θ' = −R(θ − μ), R = √(γ²/4 + ηkH) − γ/2, for three discounts (η = k = 1). a, b: h = 1, μ = "
        "1, θ(0) = 0. c, d: h = (1/9, 1), μ = 0, θ(0) = (−3, −3). J includes the "
        "discount of each rule."
    ),
    "geometry_and_drift": (
        "h = (4, 4), μ = (0, −1/2) (cross), γ = 0, η = k = 1, from (1.5, 1.5); G = diag(1/50, 1), rotation and "
        "decay at 10. Dots: fixed points, where the trajectories lead; with drift rest has a cost, and the rule "
        "is the limit γ → 0. The notebook's dot of the rotation is another point near 0, and its weight decay has "
        "j(j − γ) where j(j + γ) is right, the same at γ = 0. Shaded: ∇L·θ' ≥ 0, so that no metric exists at that "
        "time."
    ),
    "metrics": (
        "The rules of the valley, h = (1/9, 1), as natural gradient descent with M = (R + γI)/(ηk). a: condition "
        "number of M over the discount, from √9 (ballistic) to 1 (gradient descent). b: angle between −∇L and θ'. "
        "c: least condition number of any metric at each time (lines) and that of M (dotted). d: distance from M "
        "to the condition-optimal metric."
    ),
}


def wells(result: navigation.Navigation) -> Figure:
    """The double well: paths over the landscape, loss and angle over time.

    Parameters
    ----------
    result : Navigation
        Of `steepest.experiments.navigation.run`.

    Returns
    -------
    Figure
        Three panels.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    with _style():
        fig = new_figure(7.2, 2.9)
        landscape, loss, angle = fig.subplots(1, 3, width_ratios=(1.35, 1.0, 1.0))
        _contours(
            landscape, navigation.double_well().value, (-1.55, 1.6), (-0.8, 1.35), np.geomspace(0.05, 5.0, 15) - 0.55
        )
        for index, course in enumerate(result.wells):
            style = _line(index)
            label = f"{course.name}: J = {course.action:.2f}"
            landscape.plot(*course.state.T, **style, label=label)
            loss.plot(course.time, course.loss, **style)
            angle.plot(course.time, np.degrees(course.angle), **style)
        landscape.plot(*navigation.START, "o", color="black", markersize=3.5)
        landscape.set(xlabel="$x$", ylabel="$y$", title="double well", ylim=(-0.8, 1.9), yticks=(-0.5, 0.0, 0.5, 1.0))
        landscape.legend(loc="upper left", handlelength=2.4, borderaxespad=0.1)
        loss.set(xlabel="time", ylabel="loss $L$", title="loss along the paths")
        _right_angle(angle)
        angle.set(xlabel="time", ylabel=r"angle $\psi$ (degrees)", title=r"$\theta'$ to −gradient", ylim=(-4, 184))
        angle.set_yticks((0, 45, 90, 135, 180))
        _finish(fig, (landscape, loss, angle), "wells")
    return fig


def quadratics(
    result: navigation.Navigation, training: Mapping[str, tuple[Any, Any]] | None = None, trained: str = ""
) -> Figure:
    """Three horizons on quadratics.

    Parameters
    ----------
    result : Navigation
        Of `steepest.experiments.navigation.run`.
    training : mapping name -> (step, loss), optional
        Measured training courses for panel e; without them the figure has no panel e.
    trained : str
        What they are, for the caption.

    Returns
    -------
    Figure
        Four panels, or five.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    with _style():
        count = 4 if training is None else 5
        fig = new_figure(1.85 * count, 2.5)
        panels = fig.subplots(1, count)
        state, spent, plane, loss = panels[:4]
        for index, (on_line, in_valley) in enumerate(zip(result.line, result.valley, strict=True)):
            style = _line(index)
            state.plot(on_line.time, on_line.state[:, 0], **style, label=_symbol(on_line.name))
            spent.plot(on_line.time, on_line.spent, **style)
            plane.plot(*in_valley.state.T, **style)
            loss.plot(in_valley.time, in_valley.loss, **style)
        state.axhline(1.0, color="black", linewidth=0.5, linestyle=":")
        state.set(xlabel="time", ylabel=r"$\theta$", title="one parameter")
        state.legend(loc="lower right", handlelength=2.2)
        spent.set(xlabel="time", ylabel="$J$ spent so far", title="its cost")
        _contours(plane, Quadratic(navigation.VALLEY).value, (-3.4, 1.2), (-3.4, 1.2), np.geomspace(0.05, 5.0, 7))
        plane.plot(*navigation.VALLEY_START, "o", color="black", markersize=3.5)
        plane.plot(0.0, 0.0, "x", color="black", markersize=4)
        plane.set(
            xlabel=r"$\theta_1$",
            ylabel=r"$\theta_2$",
            title="a valley",
            aspect="equal",
            xticks=(-3, -1, 1),
            yticks=(-3, -1, 1),
        )
        loss.set(xlabel="time", ylabel="loss $L$", title="loss in the valley", yscale="log", ylim=(1e-4, 8.0))
        if training is not None:
            for index, (name, (step, values)) in enumerate(training.items()):
                panels[4].plot(step, values, **_line(index), label=name)
            panels[4].set(xlabel="step", ylabel="training loss", title="training", yscale="log")
            panels[4].legend(loc="best", handlelength=2.2)
        left_out = (
            "s e and f, networks trained on MNIST and CIFAR-10, need data and are"
            if training is None
            else " f, a network trained on CIFAR-10, needs data and is"
        )
        _finish(fig, panels, "quadratics", f" {trained} The paper's panel{left_out} not shown here.".replace("  ", " "))
    return fig


def geometry_and_drift(result: navigation.Navigation) -> Figure:
    """What geometry and drift make of the rule: trajectories above, angle to the gradient below.

    Parameters
    ----------
    result : Navigation
        Of `steepest.experiments.navigation.run`.

    Returns
    -------
    Figure
        Two rows of four panels.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    with _style():
        fig = new_figure(7.2, 4.5)
        panels = fig.subplots(2, 4, height_ratios=(1.25, 1.0))
        titles = ("plain", "ambient geometry $G$", "rotation", "weight decay")
        value = Quadratic(navigation.BOWL, navigation.BOWL_MINIMUM).value
        for index, (course, title) in enumerate(zip(result.bowl, titles, strict=True)):
            above, below = panels[:, index]
            style = _line(index)
            _contours(above, value, (-1.6, 2.0), (-1.6, 2.0), np.geomspace(0.1, 22.0, 8))
            above.plot(*course.state.T, **style)
            above.plot(*navigation.BOWL_START, "o", color="black", markersize=3.5)
            above.plot(*navigation.BOWL_MINIMUM, "x", color="black", markersize=5)
            above.plot(*course.fixed_point, "o", color=style["color"], markersize=4, markeredgecolor="black")
            above.set(xlabel=r"$\theta_1$", title=title, aspect="equal", xticks=(-1, 0, 1, 2), yticks=(-1, 0, 1, 2))
            below.plot(course.time, np.degrees(course.angle), **style)
            _right_angle(below)
            below.set(xlabel="time", ylim=(-4, 184), yticks=(0, 45, 90, 135, 180), title=_geometry_of(course))
        panels[0, 0].set_ylabel(r"$\theta_2$")
        panels[1, 0].set_ylabel(r"angle $\psi$ (degrees)")
        _finish(fig, panels.ravel(), "geometry_and_drift")
    return fig


def metrics(result: navigation.Navigation) -> Figure:
    """The metric of the rules in the valley, and the condition-optimal metric beside it.

    Parameters
    ----------
    result : Navigation
        Of `steepest.experiments.navigation.run`.

    Returns
    -------
    Figure
        Four panels.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    with _style():
        fig = new_figure(7.2, 2.6)
        panels = fig.subplots(1, 4)
        own, angle, cond, distance = panels
        own.semilogx(result.discounts, result.own_cond, color="black")
        own.set(xlabel=r"discount $\gamma$", ylabel="condition number", title="own metric $M$", ylim=(0.9, 3.2))
        for index, course in enumerate(result.valley):
            style = _line(index)
            angle.plot(course.time, np.degrees(course.angle), **style, label=_symbol(course.name))
            cond.plot(course.time, course.cond, **style)
            cond.axhline(course.own_cond, color=style["color"], linestyle=":", linewidth=0.9)
            distance.plot(course.time, course.distance, **style)
        angle.set(xlabel="time", ylabel=r"$\psi$ (degrees)", title="angle to −gradient", ylim=(0, 40))
        angle.legend(loc="best", handlelength=2.2)
        cond.set(xlabel="time", ylabel="condition number", title="least possible")
        distance.set(xlabel="time", ylabel="affine-invariant distance", title="$M$ to optimum", ylim=(0, None))
        _finish(fig, panels, "metrics")
    return fig


def _symbol(name: str) -> str:
    return name.replace("gamma", "γ")


def _geometry_of(course: navigation.Course) -> str:
    if np.isfinite(course.own_cond):
        return f"cond $M$ = {course.own_cond:.3g}"
    share = float(np.mean(course.angle < np.pi / 2.0))
    return f"downhill: {100.0 * share:.0f}%"


def _style() -> Any:
    from steepest.plot.style import STYLE, import_matplotlib

    return import_matplotlib().rc_context(STYLE)


def _line(index: int) -> dict[str, Any]:
    from steepest.plot.style import line_style

    return line_style(index)


def _contours(ax: Axes, value: Any, x: tuple[float, float], y: tuple[float, float], levels: Array) -> None:
    grid = np.meshgrid(np.linspace(*x, 121), np.linspace(*y, 121))
    ax.contour(
        *grid, value(np.stack(grid, axis=-1)), levels=levels, colors="0.75", linewidths=0.6, linestyles="-", zorder=0
    )


def _right_angle(ax: Axes) -> None:
    ax.axhspan(90.0, 184.0, color="0.93", zorder=0)


def _finish(fig: Figure, panels: Sequence[Axes] | NDArray[Any], name: str, more: str = "") -> None:
    for letter, panel in zip("abcdefgh", panels, strict=False):
        name_panel(panel, letter)
    columns = int(19.5 * fig.get_figwidth())
    fig.supxlabel(textwrap.fill(CAPTIONS[name] + more, columns), fontsize=6.5, x=0.01, ha="left", color="0.25")
