"""Figures inside the page: SVG that follows the page's light and dark colours, with ids of its own."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from steepest.plot.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, STYLE, VERMILION, import_matplotlib, shade

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["SHADES", "draw_svg", "shades"]

# Text and axes are drawn in a colour that nothing else has, and then take the colour of the page's text.
_INK = "#010203"
# Shades in an order have a name each: numbers of the twelfths that up to five things take.
SHADES = (0, 3, 4, 6, 8, 9, 12)
_COLOURS = {
    _INK: "currentColor",
    "#000000": "currentColor",
    BLUE.lower(): "var(--blue)",
    VERMILION.lower(): "var(--vermilion)",
    GREEN.lower(): "var(--green)",
    ORANGE.lower(): "var(--orange)",
    PURPLE.lower(): "var(--purple)",
    SKY.lower(): "var(--sky)",
    GREY.lower(): "var(--grey)",
}
_ON_PAGE: dict[str, Any] = {
    **STYLE,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "savefig.dpi": 120,  # of the rasterised heat maps
    "path.simplify_threshold": 0.3,
}
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_HEX = re.compile(r"#[0-9a-f]{6}")


def draw_svg(draw: Callable[[Axes], object], prefix: str, width: float, height: float) -> str:
    """Draw one figure.

    Parameters
    ----------
    draw : callable
        Draws on the axes that it gets.
    prefix : str
        Of every id in the figure; must not occur twice on a page.
    width, height : float
        In inches.

    Returns
    -------
    str
        An ``<svg>`` element, the same for the same data: without date, without random ids.
    """
    matplotlib = import_matplotlib()
    from matplotlib.figure import Figure

    stream = io.StringIO()
    with matplotlib.rc_context({**_ON_PAGE, "svg.hashsalt": prefix}), warnings.catch_warnings():
        # The reader's browser has the letters that the font which measures the text lacks.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return _for_page(stream.getvalue(), prefix)


def shades(*, on_dark: bool) -> dict[str, str]:
    """Colours of things in an order.

    Parameters
    ----------
    on_dark : bool
        For a dark page.

    Returns
    -------
    dict
        Name of the CSS variable -> colour.
    """
    return {f"--shade{twelfth}": shade(twelfth / 12.0, on_dark=on_dark) for twelfth in SHADES}


def _for_page(svg: str, prefix: str) -> str:
    """The element alone, its ids prefixed, its colours those of the page, its numbers to a hundredth of a point."""
    colours = _COLOURS | {colour: f"var({name})" for name, colour in shades(on_dark=False).items()}
    root = ET.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {
            _local(name): _attribute(_local(name), value, prefix, colours) for name, value in element.items()
        }
        if element.text is not None and not element.text.strip() and element.tag != "text":
            element.text = None
        element.tail = None if element.tail is None or not element.tail.strip() else element.tail
    # Nothing is said of the size but the shape; the page decides the width.
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    return ET.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _attribute(name: str, value: str, prefix: str, colours: dict[str, str]) -> str:
    if name == "id":
        return f"{prefix}-{value}"
    if name == "href" and value.startswith("#"):
        return f"#{prefix}-{value[1:]}"
    if name in ("style", "clip-path"):
        value = value.replace("url(#", f"url(#{prefix}-")
        return _HEX.sub(lambda found: colours.get(found.group(), found.group()), value)
    if name in ("d", "x", "y", "width", "height"):
        return _LONG_NUMBER.sub(lambda found: f"{float(found.group()):.2f}", value)
    return value
