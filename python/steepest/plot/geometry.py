"""The geometry of one step: the unit ball of the metric in the plane of gradient and update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from steepest.plot.style import BLUE, GREY, VERMILION, import_matplotlib, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from steepest import Alignment, Metric

__all__ = ["GeometryData", "geometry", "geometry_data", "plane_geometry"]


@dataclass(frozen=True)
class GeometryData:
    """The curves of :func:`geometry`, in span{grad, update}.

    Coordinates are those of the orthonormal basis (-grad/|grad|, the unit vector across it on the side of the
    update), and lengths are in units of ``rho**-0.5`` with ``rho = |grad|/|update|``: the metric divided by
    rho maps the unit vector along the update to the unit vector along -grad, so the picture does not depend
    on a learning rate.

    Attributes
    ----------
    angle : float
        psi between -grad and update, in radians.
    alpha : float
        Eigenvalue of the metric across the plane, in units of rho.
    eigenvalues : ndarray, shape (2,), float64
        Of the metric within the plane, ascending, in units of rho. The semi-axes of the ball are their
        ``-1/2`` powers.
    eigenvectors : ndarray, shape (2, 2), float64
        Columns, in the order of `eigenvalues`.
    ball : ndarray, shape (m, 2), float64
        Boundary of the unit ball ``x^T M x = 1``, a closed curve.
    neg_grad : ndarray, shape (2,), float64
        -grad at unit length, ``(1, 0)``.
    touch : ndarray, shape (2,), float64
        The point of the ball where the linearised loss is lowest: the update, scaled to reach the boundary.
    level_line : ndarray, shape (2, 2), float64
        End points (rows) of the level line of the linearised loss through `touch`; it is tangent to the ball.
    """

    angle: float
    alpha: float
    eigenvalues: NDArray[np.float64]
    eigenvectors: NDArray[np.float64]
    ball: NDArray[np.float64]
    neg_grad: NDArray[np.float64]
    touch: NDArray[np.float64]
    level_line: NDArray[np.float64]

    def to_dict(self) -> dict[str, Any]:
        """Fields as a dictionary, arrays as they are."""
        return asdict(self)


def geometry_data(alignment_or_metric: Alignment | Metric, *, n_points: int = 361) -> GeometryData:
    """Curves of the picture that :func:`geometry` draws, from scalars only.

    The loss falls, to first order, by ``(-grad).x`` along x. Over the unit ball of M it falls most at
    ``M^{-1}(-grad)/sqrt(grad^T M^{-1} grad)``, along the update, because ``update = M^{-1}(-grad)``.

    Parameters
    ----------
    alignment_or_metric : Alignment or Metric
        An Alignment stands for its condition-optimal metric, eq (9). A Metric must be a multiple of the
        identity across span{grad, update}, as the family of eq (8) is, or its inverse.
    n_points : int
        Points on the boundary of the ball, at least 5; the last repeats the first.

    Returns
    -------
    GeometryData

    Raises
    ------
    ValueError
        The pair has no metric (its status is not ``ok``), or `n_points` is too small.
    TypeError
        Neither an Alignment nor a Metric; or a Metric without an alignment, or with another base.

    Notes
    -----
    Cost is O(n_points), whatever the number of parameters. In the basis of :class:`GeometryData`, with
    ``c = cos psi``, ``s = sin psi``, and d the determinant of M/rho within the plane (``alpha c/rho`` in
    eq (8), 1 in eq (9)), ``M update = -grad`` leaves one matrix (derived)::

        M/rho = [[1/c + d s^2/c, -d s], [-d s, d c]]

    Examples
    --------
    >>> import numpy as np
    >>> import steepest
    >>> from steepest import plot
    >>> data = plot.geometry_data(steepest.align(np.array([-1.0, 0.0]), np.array([3.0, 4.0])))
    >>> bool(np.allclose(data.touch / np.linalg.norm(data.touch), [0.6, 0.8]))
    True
    """
    if n_points < 5:
        raise ValueError(f"n_points must be at least 5, got {n_points}")
    alignment = _alignment(alignment_or_metric)
    if alignment.status != "ok":
        raise ValueError(
            "geometry needs a pair that has a metric (status 'ok', the update lowers the linearised loss); "
            f"got status {alignment.status!r} at psi = {math.degrees(alignment.angle):.6g} degrees"
        )
    alpha, determinant = _bulk_and_determinant(alignment_or_metric, alignment)
    c, s, psi = float(alignment.cosine), float(alignment.sine), float(alignment.angle)
    return plane_geometry(c, s, psi, alpha, determinant, n_points=n_points)


def plane_geometry(
    c: float, s: float, angle: float, alpha: float, determinant: float, *, n_points: int = 361
) -> GeometryData:
    """The curves from the angle and two numbers of the metric; see :func:`geometry_data`.

    Parameters
    ----------
    c, s, angle : float
        Cosine and sine of psi, and psi in rad; c > 0.
    alpha, determinant : float
        Eigenvalue of the metric across the plane, and its determinant within it, in units of rho; 1/c and 1 for the
        condition-optimal metric, eq (9).
    n_points : int
        Points on the boundary of the ball.

    Returns
    -------
    GeometryData
    """
    # The one plane matrix of this determinant that maps the unit update (c, s) to the unit -grad (1, 0).
    across = determinant * s
    plane = np.array([[1.0 / c + across * s / c, -across], [-across, determinant * c]])
    # Largest eigenvalue from the trace, smallest from the determinant: neither cancels.
    half_gap = math.hypot((plane[0, 0] - plane[1, 1]) / 2.0, plane[0, 1])
    largest = (plane[0, 0] + plane[1, 1]) / 2.0 + half_gap
    eigenvalues = np.array([determinant / largest, largest])
    tilt = 0.5 * math.atan2(2.0 * plane[0, 1], plane[0, 0] - plane[1, 1])  # of the eigenvector of `largest`
    eigenvectors = np.array([[-math.sin(tilt), math.cos(tilt)], [math.cos(tilt), math.sin(tilt)]])
    turn = np.linspace(0.0, 2.0 * np.pi, n_points)
    turn[-1] = 0.0
    ball = (np.column_stack([np.cos(turn), np.sin(turn)]) / np.sqrt(eigenvalues)) @ eigenvectors.T
    touch = np.array([math.sqrt(c), s / math.sqrt(c)])
    reach = 1.15 * max(float(np.abs(ball[:, 1]).max()), 1.0)
    level_line = np.array([[touch[0], -reach], [touch[0], reach]])
    return GeometryData(
        angle=angle,
        alpha=alpha,
        eigenvalues=eigenvalues,
        eigenvectors=eigenvectors,
        ball=ball,
        neg_grad=np.array([1.0, 0.0]),
        touch=touch,
        level_line=level_line,
    )


def _alignment(source: Alignment | Metric) -> Alignment:
    from steepest import Alignment, Metric

    if isinstance(source, Alignment):
        return source
    if not isinstance(source, Metric):
        raise TypeError(f"geometry takes an Alignment, a Metric or a sequence of them, got {type(source).__name__}")
    if source.alignment is None:
        raise TypeError("geometry needs a Metric of a grad and an update, got one without (a power, say)")
    return source.alignment


def _bulk_and_determinant(source: Alignment | Metric, alignment: Alignment) -> tuple[float, float]:
    """Eigenvalue across the plane, and determinant within it, in units of rho."""
    from steepest import Alignment

    if isinstance(source, Alignment) or source.shape[0] == 1:
        return 1.0 / float(alignment.cosine), 1.0  # eq (9)
    spectrum = source.spectrum()
    n = source.shape[0]
    values, counts = list(spectrum.values), list(spectrum.multiplicities)
    if math.isfinite(source.alpha):
        bulk = min(range(len(values)), key=lambda i: abs(values[i] - source.alpha))
        counts[bulk] -= n - 2
    if not math.isfinite(source.alpha) or min(counts) < 0 or sum(counts) != 2:
        raise TypeError(
            "geometry needs a Metric that is a multiple of the identity across span{grad, update} (its base "
            "a number); for any other draw its alignment: geometry(M.alignment)"
        )
    rho = float(alignment.rho)
    smallest, largest = (value for value, count in zip(values, counts, strict=True) for _ in range(count))
    return float(source.alpha) / rho, (smallest / rho) * (largest / rho)


@overload
def geometry(alignment_or_metric: Alignment | Metric, ax: Axes | None = None) -> Axes: ...
@overload
def geometry(
    alignment_or_metric: Sequence[Alignment | Metric], ax: Sequence[Axes] | NDArray[Any] | None = None
) -> NDArray[Any]: ...
def geometry(alignment_or_metric: Any, ax: Any = None) -> Any:
    """Draw in which geometry the update is steepest descent (the picture of the paper's Figure 1).

    Shown in span{grad, update}: the unit ball of the metric; -grad at unit length; and the update, scaled to
    where the ball touches the lowest level line of the loss. Of all steps of the same length as measured by
    M, the update is the one that lowers the loss most. At psi = 0 the ball is a circle; towards 90 degrees it
    degenerates to a needle.

    Parameters
    ----------
    alignment_or_metric : Alignment or Metric, or a sequence of them
        See :func:`geometry_data`. A sequence gives a row of pictures, one for each.
    ax : matplotlib Axes, or a sequence of them for a sequence
        Where to draw; a new pyplot figure by default.

    Returns
    -------
    Axes, or ndarray of Axes for a sequence

    Raises
    ------
    ImportError
        matplotlib is not installed: ``pip install "steepest[plot]"``.
    ValueError
        A pair has no metric, the sequence is empty, or the number of axes is not the number of pictures.
    TypeError
        As :func:`geometry_data`.

    Examples
    --------
    >>> import numpy as np
    >>> import steepest
    >>> from steepest import plot
    >>> rng = np.random.default_rng(0)
    >>> grad = rng.standard_normal(50)
    >>> ax = plot.geometry(steepest.align(grad, -np.abs(rng.standard_normal(50)) * grad))
    >>> ax.get_aspect()
    1.0
    """
    import_matplotlib()
    if not isinstance(alignment_or_metric, (Sequence, np.ndarray)):
        data = geometry_data(alignment_or_metric)
        if ax is None:
            ax = new_axes(1)[0]
        _draw_geometry(data, ax)
        return ax

    # Every picture is computed before the first is drawn: a pair without a metric leaves no half-drawn row.
    pictures = [geometry_data(item) for item in alignment_or_metric]
    if not pictures:
        raise ValueError("geometry needs at least one Alignment or Metric, got an empty sequence")
    axes = new_axes(len(pictures)) if ax is None else np.asarray(ax, dtype=object).ravel()
    if len(axes) != len(pictures):
        raise ValueError(f"expected {len(pictures)} axes, one for each picture, got {len(axes)}")
    for position, (panel, data) in enumerate(zip(axes, pictures, strict=True)):
        _draw_geometry(data, panel, name_curves=position == 0)
    return axes


def _draw_geometry(data: GeometryData, ax: Axes, *, name_curves: bool = True) -> None:
    ax.fill(*data.ball.T, facecolor=BLUE, alpha=0.12, linewidth=0)
    ax.plot(*data.ball.T, color=BLUE, linewidth=1.2)
    ax.plot(*data.level_line.T, color=GREY, linewidth=1.0, linestyle=(0, (4, 2)))
    arrow = {
        "arrowstyle": "-|>,head_width=0.22,head_length=0.45",
        "shrinkA": 0.0,
        "shrinkB": 0.0,
        "linewidth": 1.6,
    }
    labels = (
        (data.neg_grad, "black", r"$-$grad", (3.0, -3.0), "top"),
        (data.touch, VERMILION, "update", (5.0, 3.0), "bottom"),
    )
    for tip, colour, text, offset, below_or_above in labels:
        end = (float(tip[0]), float(tip[1]))
        ax.annotate("", xy=end, xytext=(0.0, 0.0), arrowprops={**arrow, "color": colour}, annotation_clip=False)
        ax.annotate(
            text,
            end,
            xytext=offset,
            textcoords="offset points",
            color=colour,
            va=below_or_above,
            annotation_clip=False,
        )
    ax.plot(*data.touch, "o", color=VERMILION, markersize=3.5, zorder=5)
    ax.plot(0.0, 0.0, "o", color="black", markersize=2.5, zorder=5)
    if name_curves:
        lowest = data.ball[np.argmin(data.ball[:, 1])]
        ax.annotate(
            r"$x^{\mathsf{T}} M x = 1$", (float(lowest[0]), float(lowest[1])), xytext=(0.0, -3.0),
            textcoords="offset points", color=BLUE, ha="center", va="top", annotation_clip=False,
        )  # fmt: skip
        ax.annotate(
            "level line\nof the loss", (float(data.level_line[0, 0]), float(data.level_line[0, 1])),
            xytext=(3.0, 0.0), textcoords="offset points", color=GREY, va="bottom", annotation_clip=False,
        )  # fmt: skip
    degrees, cond = math.degrees(data.angle), data.eigenvalues[1] / data.eigenvalues[0]
    # As many digits as tell the angle from 90 degrees.
    ax.set_title(rf"$\psi$ = {degrees:{'.3g' if degrees < 89.0 else '.8g'}}°,  cond = {cond:.3g}")
    ax.set_aspect("equal")
    ax.margins(0.08)
    ax.set_axis_off()
