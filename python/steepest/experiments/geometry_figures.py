"""Figures of the experiment ``geometry``: the heat map of rules by geometries, and the checks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import steepest
from steepest.experiments.geometry import FAMILIES, OWN, RuleGeometry
from steepest.experiments.output import name_panel, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["SHOWN", "caption", "checks_caption", "checks_figure", "figure", "maps", "scores"]

Array = NDArray[np.float64]

SHOWN = (
    "gradient descent",
    "RMSProp",
    "Adam",
    "K-FAC (input factor)",
    "feedback alignment",
    "feedback redrawn",
)  # fmt: skip
_ROW_NAMES = (
    "gradient\ndescent",
    "RMSProp",
    "Adam",
    "K-FAC\n(input factor)",
    "feedback\nalignment",
    "feedback\nredrawn\neach step",
)
_COLUMN_NAMES = ("scalar", "diagonal", "output\nside", "input\nside")
_CHECKED = ("gradient descent", "momentum", "RMSProp", "Adam", "K-FAC (input factor)", "planted Kronecker",
            "feedback alignment", "feedback redrawn")  # fmt: skip


def scores(result: RuleGeometry, batch: int | None, against: str) -> tuple[Array, Array, Array, Array]:
    """Numbers of one heat map: the rules of `SHOWN` by the four geometries.

    Parameters
    ----------
    result : RuleGeometry
        What `run` returned.
    batch : int or None
        As in `Cell`.
    against : str
        As in `Cell`.

    Returns
    -------
    median, lowest, highest : ndarray, shape (6, 4)
        Of the held-out score over seeds.
    ceiling : ndarray, shape (6,)
        Median over seeds, NaN where there is none.
    """
    table = [[result.cell(rule, family, batch, against) for family in FAMILIES] for rule in SHOWN]
    median, lowest, highest = (
        np.array([[float(of(cell.score)) for cell in row] for row in table]) for of in (np.median, np.min, np.max)
    )
    return median, lowest, highest, np.array([float(np.median(row[0].ceiling)) for row in table])


def maps(result: RuleGeometry) -> tuple[tuple[int | None, str, str], ...]:
    """The heat maps: batch, gradient, title.

    Parameters
    ----------
    result : RuleGeometry
        What `run` returned.

    Returns
    -------
    tuple of (int or None, str, str)
        Full batch, and mini-batches against the gradient consumed and that of all images.
    """
    small = _small(result)
    return (
        (None, "all images", "full batch"),
        (small, "consumed", f"batch {small},\nagainst the gradient it consumed"),
        (small, "all images", f"batch {small},\nagainst the gradient of all images"),
    )


def _small(result: RuleGeometry) -> int:
    return min(cell.batch for cell in result.cells if cell.batch is not None)


def caption(result: RuleGeometry) -> str:
    """What was done, for the figure of `figure`.

    Parameters
    ----------
    result : RuleGeometry
        What `run` returned.

    Returns
    -------
    str
        Some sentences.
    """
    n, small = len(result.seeds), _small(result)
    return (
        f"Hidden layer ({result.n_inputs} x {result.n_hidden} weights) of a linear network {result.n_inputs}-"
        f"{result.n_hidden}-10 under squared loss on {result.n_images} images of {result.dataset}, averaged over "
        f"squares of pixels. One metric of each structure is fitted to the {result.fitted} steps after the first "
        f"{result.first}, and predicts the gradients of the next {result.held_out} steps from the updates. In the "
        f"cells: held-out R2, median of {n} seeds, and below it the lowest and highest seed, a "
        f"{100 * (1 - 2.0 ** (1 - n)):.0f}% interval for the median. The fit sees gradient and update only, never the "
        "rule; a frame marks the structure that the rule has by construction (the scalar is a special case of all), a "
        "dot the simplest one that no richer one beats, in most seeds. "
        f"At batch {small} the gradient is the one that the rule consumed, or that of all images. Against the latter "
        "the update carries the noise of the mini-batch, so it is the update that is predicted, from the gradient, and "
        "the ceiling is the score of a rule whose only fault is that noise. A rule that averages over steps (Adam) may "
        "score more. "
        "Ellipses: the unit ball of the condition-optimal metric of the first held-out step at full batch, in the "
        "plane of -gradient (black) and update (red)."
    )


def figure(result: RuleGeometry) -> Figure:
    """Heat maps of rules by geometries: full batch, mini-batches against two gradients; beside them one step each.

    Parameters
    ----------
    result : RuleGeometry
        What `run` returned.

    Returns
    -------
    Figure

    Raises
    ------
    ImportError
        matplotlib is not installed: ``pip install "steepest[experiments]"``.
    """
    from steepest.plot.style import STYLE, VERMILION, import_matplotlib

    with import_matplotlib().rc_context(STYLE | {"axes.titlesize": 9}):
        fig = new_figure(10.4, 5.4)
        grid = fig.add_gridspec(len(SHOWN), 4, width_ratios=(1.75, 4.0, 4.0, 4.75))
        for row, (rule, name) in enumerate(zip(SHOWN, _ROW_NAMES, strict=True)):
            panel = fig.add_subplot(grid[row, 0])
            _draw_step(result, rule, panel)
            panel.annotate(name, (-0.12, 0.5), xycoords="axes fraction", ha="right", va="center", fontsize=8.5)
            if row == 0:
                panel.set_title("one step,\nfull batch")
            if row == len(SHOWN) - 1:
                for height, text, colour in ((-0.24, "−gradient", "black"), (-0.42, "update", VERMILION)):
                    panel.annotate(text, (0.5, height), xycoords="axes fraction", ha="center", va="top",
                                   fontsize=7.5, color=colour, annotation_clip=False)  # fmt: skip
        panels = [fig.add_subplot(grid[:, column]) for column in (1, 2, 3)]
        image: Any = None
        for panel, (batch, against, title) in zip(panels, maps(result), strict=True):
            image = _heat_map(panel, *scores(result, batch, against), _chosen(result, batch, against))
            panel.set_title(title)
            panel.set_yticks([])
        bar = fig.colorbar(image, ax=panels, shrink=0.5, aspect=24, pad=0.012, extend="min")
        bar.set_label(r"held-out $R^2$")
        fig.supxlabel(
            "Frame: the structure of the rule by construction.   Dot: the simplest structure that no richer one beats, "
            "from gradients and updates alone.", fontsize=8,
        )  # fmt: skip
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
    return fig


def _chosen(result: RuleGeometry, batch: int | None, against: str) -> Array:
    """Whether most seeds call for the structure: shape (6, 4)."""
    return np.array(
        [[result.cell(rule, family, batch, against).chosen.mean() > 0.5 for family in FAMILIES] for rule in SHOWN],
        dtype=np.float64,
    )


def _draw_step(result: RuleGeometry, rule: Any, ax: Axes) -> None:
    """The geometry of one step, without the words of `plot.geometry`."""
    from steepest import plot
    from steepest.plot.style import BLUE, GREY, VERMILION

    ax.set_axis_off()
    ax.set_aspect("equal")
    step = steepest.align(*result.steps[rule])
    limit = 1.3
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit))
    degrees = math.degrees(step.angle)
    if step.status != "ok":
        ax.annotate(f"no metric:\nuphill\n($\\psi$ = {degrees:.0f}°)", (0, 0), ha="center", va="center", fontsize=7,
                    color=GREY)  # fmt: skip
        return
    data = plot.geometry_data(step)
    # All balls at one height: a needle would leave the picture.
    scale = 1.15 / max(1.0, float(np.abs(data.ball).max()))
    ax.fill(*(scale * data.ball.T), facecolor=BLUE, alpha=0.14, linewidth=0)
    ax.plot(*(scale * data.ball.T), color=BLUE, linewidth=1.0)
    for tip, colour in ((data.neg_grad, "black"), (data.touch, VERMILION)):
        end = (float(scale * tip[0]), float(scale * tip[1]))
        ax.annotate("", xy=end, xytext=(0.0, 0.0), annotation_clip=False, arrowprops={
            "arrowstyle": "-|>,head_width=0.14,head_length=0.28", "shrinkA": 0.0, "shrinkB": 0.0, "linewidth": 1.3,
            "color": colour})  # fmt: skip
    ax.annotate(f"$\\psi$ = {degrees:.0f}°", (0.5, 0.03), xycoords="axes fraction", ha="center", va="top",
                fontsize=7, annotation_clip=False)  # fmt: skip


def _text(x: float) -> str:
    """Two decimals, with a minus sign as it should be."""
    if x < -9.5:
        return f"−{abs(x):.0f}" if x > -999.5 else "< −999"
    return f"{round(x, 2) + 0.0:.2f}".replace("-", "−")  # no minus before a zero


def _heat_map(ax: Axes, median: Array, lowest: Array, highest: Array, ceiling: Array, chosen: Array) -> Any:
    from matplotlib.patches import Rectangle

    from steepest.plot.style import VERMILION

    rows, columns = median.shape
    image = ax.imshow(median, vmin=0.0, vmax=1.0, cmap="cividis", aspect="auto")
    names = list(_COLUMN_NAMES)
    for i in range(rows):
        for j in range(columns):
            dark = median[i, j] < 0.55
            colour = "white" if dark else "black"
            ax.text(j, i - 0.1, _text(median[i, j]), ha="center", va="center", color=colour, fontsize=10,
                    fontweight="bold")  # fmt: skip
            ends = [_text(x[i, j]).replace("0.", ".") for x in (lowest, highest)]
            text = _text(lowest[i, j]) if ends[0] == ends[1] else " to ".join(ends)
            ax.text(j, i + 0.24, text, ha="center", va="center", color=colour, fontsize=6.2)
            if chosen[i, j]:
                ax.plot(j + 0.34, i - 0.36, "o", color=colour, markersize=4.5)
            if OWN[SHOWN[i]] == FAMILIES[j] and SHOWN[i] != "feedback redrawn":  # type: ignore[index]
                ax.add_patch(
                    Rectangle((j - 0.47, i - 0.47), 0.94, 0.94, fill=False, edgecolor=VERMILION, linewidth=2.0)
                )
    if np.isfinite(ceiling).any():
        names.append("noise\nceiling")
        for i, value in enumerate(ceiling):
            ax.text(columns + 0.02, i, _text(value), ha="center", va="center", fontsize=9, style="italic")
        ax.set_xlim(-0.5, columns + 0.45)
    ax.set_xticks(range(len(names)), names)
    ax.tick_params(length=0, labelsize=8)
    for side in ax.spines.values():
        side.set_visible(False)
    for edge in np.arange(0.5, rows - 0.5):
        ax.plot((-0.5, columns - 0.5), (edge, edge), color="white", linewidth=1.5)
    for edge in np.arange(0.5, columns - 0.5):
        ax.plot((edge, edge), (-0.5, rows - 0.5), color="white", linewidth=1.5)
    ax.set_ylim(rows - 0.5, -0.5)
    return image


def checks_caption(result: RuleGeometry) -> str:
    """What was done, for the figure of `checks_figure`.

    Parameters
    ----------
    result : RuleGeometry
        What `run` returned.

    Returns
    -------
    str
        Some sentences.
    """
    small, large = _small(result), result.large
    planted = {check.batch: check for check in result.planted}
    cosines = "; ".join(
        f"{'full batch' if batch is None else f'batch {batch}'} {check.output_cosine.min():.3f} and "
        f"{check.input_cosine.min():.3f}"
        for batch, check in planted.items()
    )
    return (
        f"Checks on the same runs ({result.dataset}, {len(result.seeds)} seeds). a: each rule in the structure that it "
        f"has by construction, at full batch, batch {large} and batch {small}, against the gradient consumed, that of "
        "all images, and that of an independent mini-batch; a bar is the noise ceiling of the latter two; scores below "
        "-0.1 are written. b: momentum 0.9, sum of w updates against the mean of the w gradients consumed, of which it "
        "is a multiple but for what the two ends of the window carry over; the line is what gradients without memory "
        "would give. c, d: diagonals recovered from gradients and updates at full batch against the optimiser's own "
        "sqrt(v) + eps, both over their geometric mean. e: feedback alignment in "
        f"windows of {result.fitted} + {result.held_out} steps: an output-side metric exists iff W2 B is symmetric "
        "positive definite. Planted Kronecker factors: cosine of recovered and planted output and input factor, least "
        f"of {len(result.planted[0].output_cosine)} seeds, {cosines}."
    )


def checks_figure(result: RuleGeometry) -> Figure:
    """Four panels: own geometry by batch, recovered diagonals, momentum over windows, feedback over training.

    Parameters
    ----------
    result : RuleGeometry
        What `run` returned.

    Returns
    -------
    Figure

    Raises
    ------
    ImportError
        matplotlib is not installed: ``pip install "steepest[experiments]"``.
    """
    from steepest.plot.style import STYLE, import_matplotlib

    with import_matplotlib().rc_context(STYLE):
        fig = new_figure(10.4, 6.6)
        grid = fig.add_gridspec(2, 6)
        own = fig.add_subplot(grid[0, :4])
        momentum = fig.add_subplot(grid[0, 4:])
        roots = [fig.add_subplot(grid[1, :2]), fig.add_subplot(grid[1, 2:4])]
        feedback = fig.add_subplot(grid[1, 4:])
        _draw_own(result, own)
        for rule, panel in zip(("RMSProp", "Adam"), roots, strict=True):
            _draw_roots(result, rule, panel)
        _draw_momentum(result, momentum)
        _draw_feedback(result, feedback)
        for letter, panel in zip("abcde", (own, momentum, *roots, feedback), strict=True):
            name_panel(panel, letter)
    return fig


def _draw_own(result: RuleGeometry, ax: Axes) -> None:
    from steepest.plot.style import BLUE, GREY, ORANGE, VERMILION

    batches = (None, result.large, _small(result))
    looks = {
        "consumed": ("o", BLUE, "against the gradient consumed"),
        "all images": ("s", VERMILION, "of all images"),
        "independent": ("^", ORANGE, "of an independent mini-batch"),
    }
    known = {(cell.rule, cell.batch, cell.against): cell for cell in result.cells if cell.family == OWN[cell.rule]}  # type: ignore[index]
    ticks, labels = [], []
    for i, rule in enumerate(_CHECKED):
        for j, batch in enumerate(batches):
            x0 = i + (j - 1) * 0.28
            ticks.append(x0)
            labels.append("all" if batch is None else str(batch))
            for against, (mark, colour, _) in looks.items():
                cell = known.get((rule, batch, "all images" if batch is None and against == "consumed" else against))
                if cell is None or (batch is None and against != "consumed"):
                    continue
                x = x0 + {"consumed": -0.06, "all images": 0.0, "independent": 0.06}[against]
                centre = max(float(np.median(cell.score)), -0.12)
                ends = np.clip([cell.score.min(), cell.score.max()], -0.12, None)
                ax.plot((x, x), ends, color=colour, linewidth=0.8)
                ax.plot(x, centre, mark, color=colour, markersize=4.5, zorder=4)
                if np.median(cell.score) < -0.12:
                    ax.annotate(_text(float(np.median(cell.score))), (x, centre), xytext=(-4, -1), ha="right",
                                textcoords="offset points", fontsize=6, color=colour)  # fmt: skip
                ceiling = float(np.median(cell.ceiling))
                if math.isfinite(ceiling):
                    ax.plot((x - 0.05, x + 0.05), (ceiling, ceiling), color=GREY, linewidth=1.6, zorder=3)
        if i:
            ax.axvline(i - 0.5, color="0.88", linewidth=0.6)
        family = OWN[rule].replace("kronecker-", "").replace("kronecker", "Kronecker")  # type: ignore[index]
        ax.text(i, 1.06, rule.replace(" ", "\n", 1) + f"\n[{family}]", ha="center", va="bottom", fontsize=7)
    for mark, colour, label in looks.values():
        ax.plot([], [], mark, color=colour, markersize=4.5, label=label)
    ax.plot([], [], "-", color=GREY, linewidth=1.6, label="noise ceiling")
    ax.axhline(0.0, color="0.7", linewidth=0.6)
    ax.set_xticks(ticks, labels, rotation=90, fontsize=6)
    ax.set(ylim=(-0.15, 1.04), xlim=(-0.5, len(_CHECKED) - 0.5), ylabel=r"held-out $R^2$", xlabel="images of a batch")
    ax.set_title("each rule in the geometry that it has by construction\n\n\n\n")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.27), ncols=4, handletextpad=0.3, columnspacing=1.2)


def _draw_roots(result: RuleGeometry, rule: str, ax: Axes) -> None:
    from steepest.plot.style import BLUE, GREY

    check = next(check for check in result.roots if check.rule == rule and check.batch is None)
    seen = check.recovered > 0.0
    x, y = (v[seen] / np.exp(np.log(v[seen]).mean()) for v in (check.root, check.recovered))
    ends = (0.8 * min(x.min(), y.min()), 1.25 * max(x.max(), y.max()))
    ax.plot(ends, ends, color=GREY, linewidth=0.8, zorder=1)
    ax.plot(x, y, ".", color=BLUE, markersize=2.5, alpha=0.5, rasterized=True)
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel=r"the optimiser's $\sqrt{v} + \epsilon$",
           ylabel="recovered diagonal", title=f"{rule}: recovered, full batch")  # fmt: skip
    rows = ["log-correlation", "batch    consumed   all images"]
    for batch in (None, result.large, _small(result)):
        values = [
            float(np.median(c.log_correlation))
            for against in ("consumed", "all images")
            for c in result.roots
            if (c.rule, c.batch, c.against) == (rule, batch, against)
        ]
        name = "all" if batch is None else str(batch)
        rows.append(f"{name:>5s}    " + "      ".join(f"{value:.3f}" for value in values))
    ax.text(0.03, 0.97, "\n".join(rows), transform=ax.transAxes, va="top", fontsize=6.5, family="monospace")


def _draw_momentum(result: RuleGeometry, ax: Axes) -> None:
    from steepest.plot.style import BLUE, GREY, VERMILION

    found = result.momentum
    for values, colour, mark, label in (
        (found.full, BLUE, "o", "full batch"),
        (found.small, VERMILION, "s", f"batch {_small(result)}"),
    ):
        ax.fill_between(found.window, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)
        ax.plot(found.window, np.median(values, axis=0), mark + "-", color=colour, markersize=3.5, label=label)
    ax.plot(found.window, found.white_noise, color=GREY, linestyle=(0, (4, 2)), label="white noise (theory)")
    ax.set_xscale("log", base=2)
    ax.set_xticks(found.window, [str(w) for w in found.window])
    ax.set(xlabel="window w (steps)", ylabel=r"held-out $R^2$, scalar", ylim=(0, 1.04),
           title="momentum over a window")  # fmt: skip
    ax.legend(loc="lower right")


def _draw_feedback(result: RuleGeometry, ax: Axes) -> None:
    from steepest.plot.style import BLUE, GREEN, VERMILION

    found = result.feedback
    middle = found.start + (result.fitted + result.held_out) / 2
    for values, colour, mark, label in (
        (found.r2, BLUE, "o", r"output-side $R^2$, held out"),
        (found.asymmetry, VERMILION, "s", r"asymmetry of $W_2B$"),
        (found.smallest, GREEN, "^", r"$\lambda_{\min}$ of its symmetric part"),
    ):
        ax.fill_between(middle, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)
        ax.plot(middle, np.median(values, axis=0), mark + "-", color=colour, markersize=3.5, label=label)
    ax.axhline(0.0, color="0.6", linewidth=0.6)
    ax.set(xscale="log", xlabel="step (middle of the window)", title="feedback alignment over training")
    ax.minorticks_off()
    ax.set_ylim(top=1.04)
    ax.legend(loc="center left", bbox_to_anchor=(0.0, 0.5), handlelength=1.6)
