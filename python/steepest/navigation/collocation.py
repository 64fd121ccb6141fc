"""Optimal paths on any smooth loss: the action on piecewise polynomials, minimised from many starts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.sparse.linalg
from numpy.typing import ArrayLike, NDArray

from steepest.navigation.action import Action, loss_on_path
from steepest.navigation.losses import Drift, Quadratic, finite_array
from steepest.navigation.navigator import Navigator
from steepest.navigation.path_basis import PathBasis
from steepest.recording import Recording, recording

__all__ = ["Navigation", "Path", "solve_paths"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class Path:
    """A local solution.

    Attributes
    ----------
    time : ndarray, shape (T,)
        Nodes.
    params, velocity, grad : ndarray, shape (T, n)
        theta, theta' and +dL/dtheta at the nodes; ``path(t)`` gives states at any time.
    loss : ndarray, shape (T,)
        L at the nodes.
    action, kinetic, potential : float
        J = kinetic + potential over the horizon: cost of motion, and k times the loss.
    converged : bool
        Whether the gradient of J, in the norm of the kinetic energy, is below the tolerance.
    gradient_norm : float
        That norm, relative to the root of 2|J|.
    residual : float
        Of the Euler-Lagrange equation, root mean square relative to its terms: the error of the discretisation.
    curvature : float
        Least eigenvalue of the Hessian of J relative to the kinetic energy, by 40 steps of Lanczos: positive at a
        minimum, 1 where the loss is flat.
    start : str
        The start that led here.
    """

    time: Array
    params: Array
    velocity: Array
    grad: Array
    loss: Array
    action: float
    kinetic: float
    potential: float
    converged: bool
    gradient_norm: float
    residual: float
    curvature: float
    start: str
    _basis: PathBasis

    def __call__(self, t: ArrayLike) -> Array:
        """States at times in [0, T]: (n,) or (m, n)."""
        times = np.asarray(t, dtype=np.float64)
        if not ((times >= 0.0) & (times <= self._basis.horizon)).all():
            raise ValueError(f"expected times in [0, {self._basis.horizon:g}]")
        states = self._basis.at(self.params, np.atleast_1d(times).ravel())[0]
        return states.reshape((*times.shape, self.params.shape[1]))

    def recording(self) -> Recording:
        """The path for `steepest.analyze`: gradient, velocity (``rate=True``), loss, time.

        Returns
        -------
        Recording
            Of the nodes.
        """
        return recording(
            loss=self.loss, grad=self.grad, update=self.velocity, time=self.time, rate=True, objective="fixed"
        )

    def to_dict(self) -> dict[str, Any]:
        """Fields as a dictionary, arrays as they are."""
        return {field.name: getattr(self, field.name) for field in fields(self) if not field.name.startswith("_")}

    def __repr__(self) -> str:
        end = np.array2string(self.params[-1], precision=4, threshold=6)
        return f"Path(J={self.action:.6g}, to {end}, {'' if self.converged else 'not '}converged, start {self.start!r})"


@dataclass(frozen=True, eq=False, repr=False)
class Navigation:
    """All local solutions found.

    Attributes
    ----------
    solutions : tuple of Path
        Distinct minima of J, the least first; where none converged, the best path reached.
    status : {'global', 'local', 'failed'}
        ``global``: J is convex, so that there is one minimum. ``local``: nothing certifies that no lower one exists.
        ``failed``: no start converged.
    message : str
        The status in a sentence.
    n_starts : int
        How many starts were tried.
    """

    solutions: tuple[Path, ...]
    status: Literal["global", "local", "failed"]
    message: str
    n_starts: int

    @property
    def best(self) -> Path:
        """The path of least action found."""
        return self.solutions[0]

    def to_dict(self) -> dict[str, Any]:
        """Fields as a dictionary."""
        return {
            "solutions": [path.to_dict() for path in self.solutions],
            "status": self.status,
            "message": self.message,
            "n_starts": self.n_starts,
        }

    def __repr__(self) -> str:
        return f"Navigation({self.status}: {', '.join(map(repr, self.solutions))})"


def solve_paths(
    navigator: Navigator,
    theta0: ArrayLike,
    horizon: float,
    *,
    end: ArrayLike | None = None,
    guesses: ArrayLike | None = None,
    n_starts: int = 8,
    spread: float = 1.0,
    n_elements: int = 16,
    degree: int = 5,
    refinements: int = 3,
    tolerance: float = 1e-9,
    rng: np.random.Generator | int | None = None,
) -> Navigation:
    """Minimise the action over paths from `theta0`, by direct collocation from many starts.

    Parameters
    ----------
    navigator : Navigator
        The problem. The horizon is finite, so any curvature is allowed.
    theta0 : array_like, shape (n,)
        Where the path begins.
    horizon : float
        T > 0. Where gamma T is large, the far end of the path weighs nothing and is not determined.
    end : array_like, shape (n,), optional
        Where the path ends. Default: free, so that the momentum vanishes there.
    guesses : array_like, shape (m, n), optional
        States to which starting paths lead, such as known minima.
    n_starts : int
        Random starts beside those, drawn about `theta0`; with a free end each leads to the minimum of L below its
        random point.
    spread : float
        Standard deviation of the random points.
    n_elements, degree : int
        The path is a polynomial of `degree` on each of `n_elements` equal pieces; more if gamma T > 8 n_elements.
    refinements : int
        How often the pieces are halved as long as the Euler-Lagrange residual exceeds 1e-5.
    tolerance : float
        On the relative norm of the gradient of J.
    rng : Generator or int, optional
        For the random starts. Default: seed 0, so that a call repeats.

    Returns
    -------
    Navigation
        Solutions and status.

    Raises
    ------
    ValueError
        A shape or number does not fit; the actuation leaves directions out.

    Notes
    -----
    Section 12 (the functional, paper); method: a Ritz discretisation, whose J is an upper bound up to quadrature,
    minimised by L-BFGS, finished by Newton with conjugate gradients. The first starts are resting at
    `theta0` and a continuation from a large discount, where the path is gradient descent. A point
    with negative curvature is left to both sides. The Euler-Lagrange equation is never integrated forward: it has
    growing modes.

    Examples
    --------
    >>> from steepest.navigation import Navigator, Quadratic
    >>> found = solve_paths(Navigator(Quadratic([4.0])), [1.0], 3.0)
    >>> found.status, round(found.best.action, 6)
    ('global', 0.999988)
    """
    x0 = finite_array(theta0, "theta0")
    last = None if end is None else finite_array(end, "end")
    n = navigator.loss.size if isinstance(navigator.loss, Quadratic) else x0.size
    for name, value in (("theta0", x0), ("end", last)):
        if value is not None and (value.shape != (n,) or n == 0):
            raise ValueError(f"expected {name} of shape ({n or 'n'},), got {value.shape}")
    if not 0.0 < horizon < math.inf:
        raise ValueError(f"expected horizon to be positive and finite, got {horizon!r}")
    if n_elements < 1 or degree < 2 or n_starts < 0 or refinements < 0 or not tolerance > 0.0:
        raise ValueError("expected n_elements >= 1, degree >= 2, n_starts >= 0, refinements >= 0 and tolerance > 0")
    if navigator.discount * horizon > 600.0:
        raise ValueError(
            f"expected discount * horizon <= 600, got {navigator.discount * horizon:.4g}: the end weighs nothing; take "
            f"a horizon of some 30/discount"
        )
    targets = np.zeros((0, n)) if guesses is None else np.atleast_2d(finite_array(guesses, "guesses"))
    if targets.shape[1] != n:
        raise ValueError(f"expected guesses of shape (m, {n}), got {targets.shape}")
    generator = np.random.default_rng(0 if rng is None else rng)
    # The weight e^{-gamma t} must not vanish within a piece.
    n_elements = max(n_elements, math.ceil(navigator.discount * horizon / 8.0))
    basis = PathBasis(float(horizon), n_elements, degree)
    action = Action(navigator, x0, last, basis, navigator.discount)

    convex = _is_convex(navigator)
    with np.errstate(over="ignore", invalid="ignore"):
        starts = list(_starts(action, targets, 0 if convex else n_starts, spread, generator, tolerance))
    found: list[Path] = []
    with np.errstate(over="ignore", invalid="ignore"):  # where J has no lower bound, a descent leaves the range
        for name, c in starts:
            for path in _descend(action, c, name, tolerance):
                _insert(found, path)
        found = [_refined(navigator, x0, last, path, refinements, tolerance) for path in found]
    solutions: list[Path] = []
    for path in found:
        _insert(solutions, path)
    minima = tuple(sorted((p for p in solutions if p.converged and p.curvature > -1e-6), key=lambda p: p.action))
    if not minima:
        best = min(solutions, key=lambda p: p.action)
        text = (
            f"none of {len(starts)} starts converged; the best path has J = {best.action:.4g} and a relative gradient "
            f"of {best.gradient_norm:.1e}: J may be unbounded below over this horizon"
        )
        return Navigation((best,), "failed", text, len(starts))
    worst = max(path.residual for path in minima)
    coarse = f"; too coarse for the problem (residual {worst:.1e}): raise n_elements" if worst > 1e-3 else ""
    if convex:
        text = f"the action is convex, and this is its minimum{coarse}"
        return Navigation(minima[:1], "global", text, len(starts))
    count = f"{len(minima)} local {'minimum' if len(minima) == 1 else 'minima'} of the action from {len(starts)} starts"
    text = f"{count}, a local optimum: nothing certifies that no path is better; more guesses or n_starts may find one"
    return Navigation(minima, "local", text + coarse, len(starts))


def _is_convex(navigator: Navigator) -> bool:
    loss = navigator.loss
    if not isinstance(loss, Quadratic) or isinstance(navigator.drift, Drift):
        return False
    smallest = float(loss.H.min() if loss.diagonal else np.linalg.eigvalsh(loss.H)[0])
    return smallest >= -1e-12 * float(np.abs(loss.H).max())


def _starts(
    action: Action, targets: Array, n_random: int, spread: float, rng: np.random.Generator, tolerance: float
) -> Iterator[tuple[str, Array]]:
    """Named starting paths, as nodal values."""
    x0, basis, navigator = action.theta0, action.basis, action.navigator
    fraction = (basis.nodes / basis.horizon)[:, None]
    straight = action.to_path(np.zeros(action.from_path(np.zeros((len(basis.nodes), len(x0)))).size))
    yield ("rest" if action.end is None else "straight line"), straight
    c = straight
    # In units of the natural rate, from gradient descent to the problem itself.
    unit = math.sqrt(navigator.step_cost * navigator.loss_weight * _curvature_scale(navigator, x0, spread))
    for multiple in (8.0, 4.0, 2.0, 1.0, 0.5, 0.25):
        discount = min(navigator.discount + multiple * unit, 30.0 / basis.horizon + navigator.discount)
        stage = Action(navigator, x0, action.end, basis, discount)
        c = stage.to_path(_minimise(stage, stage.from_path(c), 1e3 * tolerance, 200)[0])
    yield "continuation in the discount", c
    if action.end is not None:
        bumps = [*(targets - x0), *(spread * rng.standard_normal((n_random, len(x0))))]
        for i, bump in enumerate(bumps):
            name = f"through guess {i}" if i < len(targets) else f"random {i - len(targets)}"
            yield name, straight + np.sin(np.pi * fraction) * bump
        return
    for i, target in enumerate(targets):
        yield f"to guess {i}", x0 + fraction * (target - x0)
    wells: list[Array] = []
    for point in x0 + spread * rng.standard_normal((n_random, len(x0))):
        well = _well(navigator, point)
        if all(np.linalg.norm(well - other) > 1e-3 * (1.0 + np.linalg.norm(well)) for other in wells):
            wells.append(well)
            yield f"to minimum {len(wells) - 1}", x0 + fraction * (well - x0)


def _curvature_scale(navigator: Navigator, x0: Array, spread: float) -> float:
    _, gradients = loss_on_path(navigator.loss, np.vstack([x0, x0 + 1e-3 * spread / math.sqrt(len(x0))]))
    slope = float(np.linalg.norm(gradients[1] - gradients[0])) / (1e-3 * spread)
    return slope if slope > 0.0 else 1.0


def _well(navigator: Navigator, point: Array) -> Array:
    """The minimum of L below a point, or where 50 iterations lead if L has none."""

    def both(x: Array) -> tuple[float, Array]:
        values, gradients = loss_on_path(navigator.loss, x[None])
        return float(values[0]), gradients[0]

    found = scipy.optimize.minimize(both, point, jac=True, method="L-BFGS-B", options={"maxiter": 50})
    return np.asarray(found.x) if np.isfinite(found.x).all() else point


def _minimise(action: Action, z: Array, tolerance: float, max_iterations: int = 3000) -> tuple[Array, float]:
    """L-BFGS, then Newton steps on the gradient alone, which has digits left where differences of J have none."""
    options = {"maxiter": max_iterations, "maxfun": 2 * max_iterations, "maxcor": 30, "ftol": 0.0, "gtol": 1e-12}
    z = np.asarray(scipy.optimize.minimize(action, z, jac=True, method="L-BFGS-B", options=options).x)
    value, gradient = action(z)
    unit = math.sqrt(2.0 * abs(value)) or 1.0
    size = float(np.linalg.norm(gradient)) / unit
    for _ in range(8):
        if not 1e-3 * tolerance < size < 1e-2:
            break
        step, failed = scipy.sparse.linalg.cg(_hessian(action, z), -gradient, rtol=1e-3, maxiter=100)
        trial = z + step
        new = action(trial)[1]
        new_size = float(np.linalg.norm(new)) / unit
        if failed or not new_size < 0.5 * size:
            break
        z, gradient, size = trial, new, new_size
    return z, size


def _hessian(action: Action, z: Array) -> scipy.sparse.linalg.LinearOperator:
    reach = 1e-5 * (1.0 + float(np.linalg.norm(z)))

    def times(v: Array) -> Array:
        v = v.ravel()
        norm = float(np.linalg.norm(v))
        if norm == 0.0:
            return np.zeros_like(v)
        h = reach / norm
        return (action(z + h * v)[1] - action(z - h * v)[1]) / (2.0 * h)

    return scipy.sparse.linalg.LinearOperator((z.size, z.size), matvec=times, dtype=np.float64)


def _least_curvature(action: Action, z: Array, n_steps: int = 40) -> tuple[float, Array]:
    """Least eigenvalue of the Hessian and its vector, by Lanczos: below 1 it stands apart, and is found first."""
    hessian = _hessian(action, z)
    basis = np.zeros((min(n_steps, z.size), z.size))
    begin = np.random.default_rng(0).standard_normal(z.size)
    basis[0] = begin / np.linalg.norm(begin)
    diagonal, beside = np.zeros(len(basis)), np.zeros(len(basis))
    values, vectors = diagonal[:1], np.ones((1, 1))
    for i in range(len(basis)):
        v = hessian @ basis[i]
        diagonal[i] = basis[i] @ v
        for _ in range(2):
            v = v - basis[: i + 1].T @ (basis[: i + 1] @ v)
        beside[i] = np.linalg.norm(v)
        values, vectors = scipy.linalg.eigh_tridiagonal(diagonal[: i + 1], beside[:i])
        if i + 1 == len(basis) or abs(beside[i] * vectors[-1, 0]) < 1e-3 * abs(values[0]):
            break
        basis[i + 1] = v / beside[i]
    return float(values[0]), basis[: len(vectors)].T @ vectors[:, 0]


def _descend(action: Action, c: Array, start: str, tolerance: float) -> list[Path]:
    z, size = _minimise(action, action.from_path(c), tolerance)
    if not size <= 1e-2:
        return [_path(action, z, size, math.nan, start, tolerance)]
    curvature, direction = _least_curvature(action, z)
    if curvature > -1e-6:
        return [_path(action, z, size, curvature, start, tolerance)]
    paths = []
    for sign, name in ((1.0, "one side"), (-1.0, "the other side")):
        push = 0.05 * sign * max(1.0, float(np.linalg.norm(z))) * direction
        left, size = _minimise(action, z + push, tolerance)
        paths.append(_path(action, left, size, _least_curvature(action, left)[0], f"{start}, to {name}", tolerance))
    return paths


def _path(action: Action, z: Array, size: float, curvature: float, start: str, tolerance: float) -> Path:
    c, basis = action.to_path(z), action.basis
    kinetic, potential = action.parts(c)
    loss, grad = loss_on_path(action.navigator.loss, c)
    velocity = basis.nodal_velocity(c)
    velocity[0], velocity[-1] = action.end_velocities(c)
    return Path(
        basis.nodes, c, velocity, grad, loss, kinetic + potential, kinetic, potential,
        bool(size <= tolerance), size, action.residual(c), curvature, start, basis,
    )  # fmt: skip


def _refined(
    navigator: Navigator, x0: Array, end: Array | None, path: Path, refinements: int, tolerance: float
) -> Path:
    for _ in range(refinements):
        if path.residual < 1e-5:
            break
        old = path._basis
        basis = PathBasis(old.horizon, 2 * old.n_elements, old.degree)
        action = Action(navigator, x0, end, basis, navigator.discount)
        z, size = _minimise(action, action.from_path(old.at(path.params, basis.nodes)[0]), tolerance)
        path = _path(action, z, size, path.curvature, path.start, tolerance)
    return path


def _insert(found: list[Path], path: Path) -> None:
    """Add a path unless it is there already; of two equal ones the better converged stays."""
    times = np.linspace(0.0, path._basis.horizon, 50)
    reach = 1e-4 * (1.0 + float(np.abs(path.params).max()))
    for i, other in enumerate(found):
        if float(np.abs(other(times) - path(times)).max()) < reach:
            if path.converged and not other.converged:
                found[i] = path
            return
    found.append(path)
