"""How the figures look: colours, line styles, and axes to draw on. matplotlib is imported by what draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "BLUE",
    "CYCLE",
    "GREEN",
    "GREY",
    "MARKS",
    "ORANGE",
    "PURPLE",
    "SKY",
    "STYLE",
    "VERMILION",
    "import_matplotlib",
    "line_style",
    "new_axes",
    "put_legend",
    "shade",
    "tidy",
]

# Okabe-Ito: distinct for colour-blind readers, and in grey.
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, GREY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#E69F00",
    "#CC79A7",
    "#56B4E9",
    "#6E6E6E",
)
STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.3,
    "pdf.fonttype": 42,  # TrueType: text stays text in the PDF
    "svg.fonttype": "none",
}
# The dash pattern tells curves apart where the print has no colour.
CYCLE: tuple[tuple[str, Any], ...] = (
    (BLUE, "-"),
    (VERMILION, (0, (5, 1.5))),
    (GREEN, (0, (1.2, 1.2))),
    (PURPLE, (0, (5, 1.5, 1.2, 1.5))),
    (ORANGE, (0, (8, 2))),
    (SKY, (0, (3, 1, 1, 1, 1, 1))),
    (GREY, "-"),
)
# One mark for each status that is not ok.
MARKS: dict[str, tuple[str, str]] = {
    "ascent": ("^", VERMILION),
    "undecided": ("D", ORANGE),
    "zero_update": ("o", SKY),
    "zero_grad": ("s", GREEN),
    "nonfinite": ("X", PURPLE),
    "no_gradient": ("|", GREY),
    "no_update": ("_", GREY),
    "no_loss": ("1", GREY),
    "skipped": ("P", GREY),
}


def import_matplotlib() -> Any:
    """matplotlib, or an ImportError that names the extra.

    Returns
    -------
    module
        matplotlib.

    Raises
    ------
    ImportError
        It is not installed.
    """
    try:
        import matplotlib.colors
    except ImportError as error:
        raise ImportError('drawing needs matplotlib, which is not installed: pip install "steepest[plot]"') from error
    return matplotlib


def new_axes(count: int, width: float = 2.9, height: float = 2.9) -> NDArray[Any]:
    """A row of axes in a new pyplot figure.

    Parameters
    ----------
    count : int
        How many.
    width, height : float
        Of each, in inches.

    Returns
    -------
    ndarray of Axes
        Shape (count,).
    """
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(1, count, figsize=(width * count, height), squeeze=False, layout="constrained")
    row: NDArray[Any] = axes[0]
    return row


def line_style(position: int) -> dict[str, Any]:
    """Colour and dash pattern of one of several curves.

    Parameters
    ----------
    position : int
        Of the curve; the colours repeat after seven with the dash pattern of the next.

    Returns
    -------
    dict
        Keyword arguments of ``Axes.plot``.
    """
    turn, place = divmod(position, len(CYCLE))
    return {"color": CYCLE[place][0], "linestyle": CYCLE[(place + turn) % len(CYCLE)][1]}


def shade(position: float, *, on_dark: bool = False) -> str:
    """Colour of one of several things in an order, from dark to bright in print.

    Parameters
    ----------
    position : float
        From 0, first, to 1, last.
    on_dark : bool
        For a dark page.

    Returns
    -------
    str
        Of viridis, without the end that is lost against the page.
    """
    matplotlib = import_matplotlib()
    place = 0.32 + 0.66 * position if on_dark else 0.85 * position
    return str(matplotlib.colors.to_hex(matplotlib.colormaps["viridis"](place)))


def put_legend(ax: Axes, *, below: bool = False) -> None:
    """Put the legend where it hides nothing: inside where it is small, else below the axes.

    Parameters
    ----------
    ax : Axes
        Where.
    below : bool
        Below in any case.
    """
    names = [label for label in ax.get_legend_handles_labels()[1] if not label.startswith("_")]
    if not names:
        return
    if len(names) <= 3 and not below:
        ax.legend(loc="best")
        return
    from matplotlib.transforms import ScaledTranslation

    points = 6.0 if ax.get_xlabel() == "" else 27.0  # the height of tick labels and axis label
    figure = cast("Any", ax.get_figure())
    lower = ax.transAxes + ScaledTranslation(0.0, -points / 72.0, figure.dpi_scale_trans)
    ax.legend(
        loc="upper left", bbox_to_anchor=(0.0, 0.0), bbox_transform=lower, borderaxespad=0.0, handlelength=2.6,
        ncols=1 if max(map(len, names)) > 30 else 2,
    )  # fmt: skip


def tidy(ax: Axes) -> None:
    """No frame at the top and the right, as STYLE has it, also on axes that came from elsewhere."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
