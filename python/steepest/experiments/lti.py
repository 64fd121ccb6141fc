"""Linear dynamics as natural gradient descent: eq (21) and the curves of eq (9).

``theta' = A theta`` with a Hurwitz, asymmetric A is no gradient flow, yet it lowers the Lyapunov function ``L
= theta^T P theta / 2``, with ``A^T P + P A = -I``. So at every state there is a metric M with ``A theta =
-M^{-1} grad L``. With complex eigenvalues in A no single M serves all states (derived): it has to change
along the trajectory, and this experiment shows how.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

import steepest
from steepest.experiments.output import name_panel, new_figure, write_csv, write_npz
from steepest.spectral import optimal_condition_number, optimal_eigenvalues

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from steepest.analysis import Analysis, RunAnalysis

__all__ = [
    "LTI",
    "EigenvalueCurves",
    "eigenvalue_curves",
    "figure",
    "geometry_figure",
    "random_system",
    "run",
    "write",
]

Array = NDArray[np.float64]

# Asymmetric, with eigenvalues -0.73 and -0.54 +- 1.66i.
_SYSTEM = ((-0.4, 3.0, 0.5), (-1.0, -0.4, 1.0), (0.3, 0.0, -1.0))
_START = (1.0, -1.0, 1.5)


@dataclass(frozen=True)
class LTI:
    """A trajectory of ``theta' = A theta`` with its analysis.

    Attributes
    ----------
    A, P : ndarray, shape (n, n), float64
        System matrix, and the matrix of the Lyapunov function.
    state : ndarray, shape (t, n), float64
    analysis : Analysis
        Of the recording of states, Lyapunov function, its gradient and the rate theta'.
    residual : ndarray, shape (t,), float64
        ``|M^{-1} (-grad) - A theta| / |A theta|``, with M^{-1} applied matrix-free.
    """

    A: Array
    P: Array
    state: Array
    analysis: Analysis
    residual: Array

    @property
    def course(self) -> RunAnalysis:
        """The analysis of the one run."""
        return self.analysis["run"]

    @property
    def time(self) -> Array:
        """In the unit of time of A: shape (t,)."""
        return self.course["time"]

    @property
    def loss(self) -> Array:
        """``theta^T P theta / 2``: shape (t,)."""
        return self.course["loss"]

    @property
    def angle(self) -> Array:
        """Angle psi between -grad and the rate theta', in radians: shape (t,)."""
        return self.course["psi"][:, 0]

    @property
    def eigenvalues(self) -> Array:
        """Smallest, middle (n - 2 times) and largest eigenvalue of the condition-optimal metric: shape (t, 3)."""
        return np.column_stack([self.course[name][:, 0] for name in ("lam_min", "alpha", "lam_max")])

    @property
    def cond(self) -> Array:
        """Condition number of that metric: shape (t,)."""
        return self.course["cond_min"][:, 0]

    def to_dict(self) -> dict[str, Any]:
        """All arrays by name."""
        names = ("A", "P", "time", "state", "loss", "angle", "eigenvalues", "cond", "residual")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class EigenvalueCurves:
    """Eq (9) over the angle, in units of ``rho = |grad|/|update|``.

    Attributes
    ----------
    angle : ndarray, shape (m,), float64
        psi in radians, within (-pi/2, pi/2). The curves are even in psi: in the plane of grad and update the
        sign only says on which side the update lies.
    smallest, middle, largest, cond : ndarray, shape (m,), float64
    """

    angle: Array
    smallest: Array
    middle: Array
    largest: Array
    cond: Array

    def to_dict(self) -> dict[str, Any]:
        """Fields as a dictionary, arrays as they are."""
        return asdict(self)


def eigenvalue_curves(n_points: int = 359, *, limit: float = math.radians(89.5)) -> EigenvalueCurves:
    """Eigenvalues and condition number of the condition-optimal metric over psi, eq (9) (reconstructed).

    Parameters
    ----------
    n_points : int
        Number of angles.
    limit : float
        The angles run from -limit to limit, in radians, 0 < limit < pi/2 (the curves diverge at pi/2).

    Returns
    -------
    EigenvalueCurves

    Raises
    ------
    ValueError
        `limit` outside (0, pi/2).

    Examples
    --------
    >>> curves = eigenvalue_curves(3, limit=math.radians(60))
    >>> [round(value, 3) for value in curves.cond.tolist()]
    [13.928, 1.0, 13.928]
    """
    if not 0.0 < limit < math.pi / 2:
        raise ValueError(f"limit must lie between 0 and pi/2 radians, got {limit}")
    angle = np.linspace(-limit, limit, n_points)
    scalars = [(math.cos(psi), abs(math.sin(psi))) for psi in angle]
    smallest, middle, largest = np.array([optimal_eigenvalues(c, s) for c, s in scalars]).T
    cond = np.array([optimal_condition_number(c, s) for c, s in scalars])
    return EigenvalueCurves(angle, smallest, middle, largest, cond)


def random_system(n: int, *, rng: np.random.Generator | int | None = None) -> Array:
    """Random asymmetric Hurwitz matrix: Gaussian, variance 1/n, shifted: the slowest mode decays at 0.1.

    Parameters
    ----------
    n : int
        Number of states.
    rng : Generator or int, optional
        Anything that ``numpy.random.default_rng`` takes.

    Returns
    -------
    ndarray, shape (n, n), float64
    """
    gaussian = np.random.default_rng(rng).standard_normal((n, n)) / math.sqrt(n)
    shifted: Array = gaussian - (np.linalg.eigvals(gaussian).real.max() + 0.1) * np.eye(n)
    return shifted


def run(
    A: ArrayLike | None = None,
    start: ArrayLike | None = None,
    *,
    duration: float = 10.0,
    n_steps: int = 400,
    rng: np.random.Generator | int | None = None,
) -> LTI:
    """Follow ``theta' = A theta`` and find its metric at every time, eq (21).

    Parameters
    ----------
    A : array_like, shape (n, n), n >= 3, optional
        Hurwitz: every eigenvalue has a negative real part. Default: an asymmetric 3 x 3 matrix with a complex
        pair.
    start : array_like, shape (n,), optional
        theta at time 0. Default: a fixed vector for the default A, else drawn from N(0, I).
    duration : float
        Length of the trajectory.
    n_steps : int
        Number of times, at least 2, equally spaced from 0 to `duration`.
    rng : Generator or int, optional
        For the start, where none is given.

    Returns
    -------
    LTI

    Raises
    ------
    ValueError
        A is not square or has n < 3; A is not Hurwitz; `start` is of the wrong shape or zero; `duration` is
        not positive; `n_steps` < 2.

    Notes
    -----
    The states come from the exponential of one step, exact up to rounding. P solves the Lyapunov equation with Q = I
    (``scipy.linalg.solve_continuous_lyapunov``). The rate A theta stands for the update: a step size only rescales M.
    Cost is O(n^3), and O(n^2) per time.

    Examples
    --------
    >>> result = run(n_steps=50)
    >>> bool(result.residual.max() < 1e-10), bool((np.diff(result.loss) < 0).all())
    (True, True)
    """
    if A is None:
        A = _SYSTEM
        start = _START if start is None else start
    A = np.asarray(A, dtype=np.float64)
    if A.ndim != 2 or A.shape[0] != A.shape[1] or A.shape[0] < 3:
        raise ValueError(f"A must be a square matrix with at least 3 rows, got shape {A.shape}")
    n = A.shape[0]
    slowest = float(np.linalg.eigvals(A).real.max())
    if not slowest < 0.0:
        raise ValueError(f"A must be Hurwitz (eigenvalues with negative real part), got a real part of {slowest:.6g}")
    if start is None:
        theta0: Array = np.asarray(np.random.default_rng(rng).standard_normal(n))
    else:
        theta0 = np.asarray(start, dtype=np.float64)
    if theta0.shape != (n,) or not theta0.any():
        raise ValueError(f"start must be a nonzero vector of shape ({n},), got {theta0!r}")
    if not duration > 0.0 or n_steps < 2:
        raise ValueError(f"duration must be positive and n_steps at least 2, got {duration} and {n_steps}")

    P = scipy.linalg.solve_continuous_lyapunov(A.T, -np.eye(n))
    P = (P + P.T) / 2.0
    time = np.linspace(0.0, duration, n_steps)
    state = np.empty((n_steps, n))
    state[0] = theta0
    propagator = scipy.linalg.expm(A * (time[1] - time[0]))
    for t in range(1, n_steps):
        state[t] = propagator @ state[t - 1]
    grad, rate = state @ P, state @ A.T
    loss = 0.5 * np.einsum("ti,ti->t", state, grad)
    recording = steepest.recording(
        params=state, loss=loss, grad=grad, update=rate, time=time, rate=True, objective="fixed"
    )
    analysis = steepest.analyze(recording)
    residual = np.empty(n_steps)
    for t in range(n_steps):
        M = analysis["run"].metric(t)
        residual[t] = np.linalg.norm(M.solve(-grad[t]) - rate[t]) / np.linalg.norm(rate[t])
    return LTI(A, P, state, analysis, residual)


def write(result: LTI, curves: EigenvalueCurves, folder: Path) -> list[Path]:
    """Write ``lti.npz``, ``lti.csv`` (one row per time) and ``lti_curves.csv`` (eq (9)) to `folder`."""
    arrays = result.to_dict() | {f"curves_{name}": value for name, value in curves.to_dict().items()}
    columns = {
        "time": result.time,
        **{f"theta_{i}": result.state[:, i] for i in range(result.state.shape[1])},
        "loss": result.loss,
        "psi_deg": np.degrees(result.angle),
        "eigenvalue_smallest": result.eigenvalues[:, 0],
        "eigenvalue_middle": result.eigenvalues[:, 1],
        "eigenvalue_largest": result.eigenvalues[:, 2],
        "cond": result.cond,
        "residual": result.residual,
    }
    curve_columns = {"psi_deg": np.degrees(curves.angle), **curves.to_dict()}
    del curve_columns["angle"]
    return [
        write_npz(folder / "lti.npz", arrays),
        write_csv(folder / "lti.csv", columns),
        write_csv(folder / "lti_curves.csv", curve_columns),
    ]


def figure(result: LTI, curves: EigenvalueCurves) -> Figure:
    """Six panels: eq (9) and the condition number over psi; loss, psi, eigenvalues and residual over time.

    Returns
    -------
    Figure

    Raises
    ------
    ImportError
        matplotlib is not installed: ``pip install "steepest[experiments]"``.
    """
    from steepest import plot
    from steepest.plot.style import BLUE, GREEN, STYLE, VERMILION, import_matplotlib

    with import_matplotlib().rc_context(STYLE):
        fig = new_figure(7.2, 4.3)
        panels = fig.subplots(2, 3).ravel()
        spectrum, condition, loss, angle, eigenvalues, residual = panels

        degrees = np.degrees(curves.angle)
        names = (r"$\lambda_{\max}$", r"$\lambda_{\mathrm{mid}}$", r"$\lambda_{\min}$")
        colours = (VERMILION, GREEN, BLUE)
        styles = ("-", (0, (4, 1.5)), "-")
        branches = (curves.largest, curves.middle, curves.smallest)
        for values, name, colour, style in zip(branches, names, colours, styles, strict=True):
            spectrum.semilogy(degrees, values, linestyle=style, color=colour, label=name)
        spectrum.set(ylabel=r"eigenvalue / $\rho$", title="eigenvalues, eq (9)")
        spectrum.legend(loc="upper center", ncols=3, columnspacing=1.0, handlelength=1.3)
        spectrum.set_ylim(top=3e3)
        condition.semilogy(degrees, curves.cond, color="black")
        condition.set(ylabel="condition number", title="least condition number")
        for panel in (spectrum, condition):
            panel.set(xlabel=r"angle $\psi$ (degrees)", xlim=(-90, 90), xticks=(-90, -45, 0, 45, 90))

        plot.loss(result.analysis, loss, x="time")
        loss.set(ylabel=r"loss $\frac{1}{2}\theta^{\mathsf{T}}P\theta$", yscale="log")
        plot.angle(result.analysis, angle, x="time", null="isotropic")
        angle.set(ylabel=r"angle $\psi$ (degrees)", ylim=(0, 90), yticks=(0, 30, 60, 90))
        for panel, title in ((loss, "Lyapunov function"), (angle, r"angle of $A\theta$ to −gradient")):
            panel.set_title("", loc="left")
            panel.set_title(title)
        for index, (name, colour, style) in enumerate(zip(names, colours, styles, strict=True)):
            eigenvalues.semilogy(
                result.time, result.eigenvalues[:, 2 - index], linestyle=style, color=colour, label=name
            )
        eigenvalues.set(ylabel="eigenvalue", title="metric along the trajectory")
        # An exact zero has no logarithm: it is drawn at the lower edge.
        residual.semilogy(result.time, np.maximum(result.residual, 1e-18), ".", color="black", markersize=2)
        residual.set(
            ylabel=r"$|M^{-1}y - A\theta|\,/\,|A\theta|$",
            ylim=(1e-18, 1e-12),
            title=r"error of $A\theta = M^{-1}y$",
        )
        for panel in (loss, angle, eigenvalues, residual):
            panel.set(xlabel="time", xlim=(0, result.time[-1]))
        for letter, panel in zip("abcdef", panels, strict=True):
            name_panel(panel, letter)
    return fig


def geometry_figure(result: LTI) -> Figure:
    """The unit ball of the metric at four states, from the smallest angle of the trajectory to the largest.

    Angles above 80 degrees are left out: the ball is a needle there.

    Returns
    -------
    Figure

    Raises
    ------
    ImportError
        matplotlib is not installed: ``pip install "steepest[experiments]"``.
    """
    from steepest.plot import geometry
    from steepest.plot.style import STYLE, import_matplotlib

    with import_matplotlib().rc_context(STYLE):
        fig = new_figure(7.2, 2.1)
        panels = fig.subplots(1, 4)
        wanted = np.linspace(result.angle.min(), min(result.angle.max(), math.radians(80.0)), len(panels))
        steps = [int(np.abs(result.angle - angle).argmin()) for angle in wanted]
        geometry([result.course.metric(step) for step in steps], ax=panels)
        for panel, step in zip(panels, steps, strict=True):
            panel.set_title(f"time {result.time[step]:.2f}\n{panel.get_title()}")
    return fig
