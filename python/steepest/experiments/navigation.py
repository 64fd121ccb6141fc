"""Learning rules as optimal navigation: a double well, quadratics, geometries and drifts, and the metric of each rule.

The three figures show what the horizon, the geometry and the drift make of one objective, with the parameters of the
paper; the fourth puts the rules through the metric analysis: on a quadratic the optimal rule is natural gradient
descent with ``M = (R + gamma I)/(eta k)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import scipy.integrate
from numpy.typing import NDArray

import steepest
from steepest.experiments.output import write_csv, write_npz
from steepest.navigation import Loss, Navigator, Policy, Quadratic, rotation, weight_decay
from steepest.recording import Recording, recording

__all__ = ["Course", "Navigation", "double_well", "run", "write"]

Array = NDArray[np.float64]

START = np.array([-0.6, 0.55])
HORIZON = 4.0
NOTEBOOK_END = np.array([1.0625, 0.0])
DISCOUNTS = (0.0, 1.0, 10.0)
VALLEY = np.array([1.0 / 9.0, 1.0])
VALLEY_START = np.array([-3.0, -3.0])
BOWL, BOWL_MINIMUM, BOWL_START = np.array([4.0, 4.0]), np.array([0.0, -0.5]), np.array([1.5, 1.5])
GEOMETRY = np.array([1.0 / 50.0, 1.0])
DRIFT_RATE = 10.0


@dataclass(frozen=True)
class Course:
    """One rule or path.

    Attributes
    ----------
    name : str
        Of the rule.
    time : ndarray, shape (T,)
    state : ndarray, shape (T, n)
    loss, angle, cond : ndarray, shape (T,)
        L; psi in radians; least condition number of a metric, NaN where the course does not descend.
    distance : ndarray, shape (T,)
        Affine-invariant distance from the rule's own metric to the condition-optimal one; NaN where either is missing.
    spent : ndarray, shape (T,)
        J up to each time; NaN for paths, except at their end.
    action : float
        J over the whole time, or from the start to infinity.
    own_cond : float
        Condition number of the rule's own metric, NaN where it has no constant one.
    fixed_point : ndarray, shape (n,)
        Where the rule rests; for paths their end.
    """

    name: str
    time: Array
    state: Array
    loss: Array
    angle: Array
    cond: Array
    distance: Array
    spent: Array
    action: float
    own_cond: float
    fixed_point: Array

    def to_dict(self) -> dict[str, Any]:
        """Fields as a dictionary, arrays as they are."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Navigation:
    """Courses of all figures.

    Attributes
    ----------
    wells : tuple of Course
        Double well: gradient descent, then the local minima of the action, the best first.
    fixed_end_action : float
        J of the path that has to end where the authors' notebook ends it.
    status : str
        What the path solver says about its result.
    line, valley : tuple of Course
        One parameter, and two of unequal curvature, one course for each discount.
    bowl : tuple of Course
        Geometry and drift: plain, ambient geometry, rotation, weight decay.
    discounts, rates, own_cond : ndarray, shape (m,), (m, 2), (m,)
        Over the discount, for the valley: rates of the rule and condition number of its metric.
    """

    wells: tuple[Course, ...]
    fixed_end_action: float
    status: str
    line: tuple[Course, ...]
    valley: tuple[Course, ...]
    bowl: tuple[Course, ...]
    discounts: Array
    rates: Array
    own_cond: Array

    @property
    def groups(self) -> dict[str, tuple[Course, ...]]:
        """Courses by figure."""
        return {"wells": self.wells, "line": self.line, "valley": self.valley, "bowl": self.bowl}

    def to_dict(self) -> dict[str, Any]:
        """Everything by name: ``group_course_field``."""
        found: dict[str, Any] = {
            f"{group}_{index}_{name}": value
            for group, courses in self.groups.items()
            for index, course in enumerate(courses)
            for name, value in course.to_dict().items()
        }
        names = ("fixed_end_action", "status", "discounts", "rates", "own_cond")
        return found | {name: getattr(self, name) for name in names}


def double_well() -> Loss:
    """``L = (x^2 - 1)^2 + y^2 - x/2``, of the paper's first figure."""

    def value(theta: Any) -> Any:
        x, y = theta[..., 0], theta[..., 1]
        return (x**2 - 1.0) ** 2 + y**2 - 0.5 * x

    def gradient(theta: Any) -> Any:
        x, y = theta[..., 0], theta[..., 1]
        return np.stack([4.0 * x * (x**2 - 1.0) - 0.5, 2.0 * y], axis=-1)

    return Loss(value, gradient, vectorized=True)


def run(n_steps: int = 200, *, rng: np.random.Generator | int | None = None) -> Navigation:
    """Solve the problems of all figures.

    Parameters
    ----------
    n_steps : int
        Number of times of each course, at least 2.
    rng : Generator or int, optional
        For the random starts of the path solver.

    Returns
    -------
    Navigation

    Raises
    ------
    ValueError
        `n_steps` < 2.

    Notes
    -----
    Parameters of section 14; paths by direct collocation, everything else in closed form. A second or two.

    Examples
    --------
    >>> result = run(20)
    >>> [course.name for course in result.wells]
    ['gradient descent', 'to the far well', 'to the near well']
    """
    if n_steps < 2:
        raise ValueError(f"expected n_steps of at least 2, got {n_steps}")
    wells, fixed_end_action, status = _wells(n_steps, np.random.default_rng(rng))
    line = tuple(
        _policy_course(
            f"gamma = {gamma:g}", Navigator(Quadratic([1.0], 1.0), discount=gamma).policy(), np.zeros(1), 12.0, n_steps
        )
        for gamma in DISCOUNTS
    )
    valley = tuple(
        _policy_course(
            f"gamma = {gamma:g}", Navigator(Quadratic(VALLEY), discount=gamma).policy(), VALLEY_START, 12.0, n_steps
        )
        for gamma in DISCOUNTS
    )
    problems: dict[str, dict[str, Any]] = {
        "plain": {},
        "geometry": {"metric": GEOMETRY},
        "rotation": {"drift": rotation(DRIFT_RATE)},
        "weight decay": {"drift": weight_decay(DRIFT_RATE, 2)},
    }
    bowl = tuple(
        _policy_course(
            name, Navigator(Quadratic(BOWL, BOWL_MINIMUM), **problem).policy(), BOWL_START, 2.0, n_steps
        )
        for name, problem in problems.items()
    )  # fmt: skip
    discounts = np.geomspace(1e-2, 1e2, 81)
    policies = [Navigator(Quadratic(VALLEY), discount=float(gamma)).policy() for gamma in discounts]
    return Navigation(
        wells,
        fixed_end_action,
        status,
        line,
        valley,
        bowl,
        discounts,
        np.array([policy.rates for policy in policies]),
        np.array([policy.metric().cond() for policy in policies]),
    )


def _wells(n_steps: int, rng: np.random.Generator) -> tuple[tuple[Course, ...], float, str]:
    loss = double_well()
    navigator = Navigator(loss, discount=0.1)
    found = navigator.solve(START, HORIZON, n_starts=40, spread=1.5, rng=rng)
    fixed = navigator.solve(START, HORIZON, end=NOTEBOOK_END, n_starts=4, rng=rng)
    time = np.linspace(0.0, HORIZON, n_steps)

    def flow(t: float, state: Any) -> Any:
        grad = loss.gradient(state[:2])
        running = 0.5 * grad @ grad + loss.value(state[:2])
        return np.append(-grad, running * math.exp(-0.1 * t))

    solution = scipy.integrate.solve_ivp(
        flow, (0.0, HORIZON), np.append(START, 0.0), t_eval=time, method="DOP853", rtol=1e-10, atol=1e-12
    ).y
    state, spent = solution[:2].T, solution[2]
    grad = loss.gradient(state)
    descent = recording(loss=loss.value(state), grad=grad, update=-grad, time=time, rate=True, objective="fixed")
    courses = [_course("gradient descent", descent, state, spent, None)]
    for path in found.solutions:
        spent = np.full(len(path.time), np.nan)
        spent[-1] = path.action
        name = "to the far well" if path.params[-1, 0] > 0.0 else "to the near well"
        courses.append(_course(name, path.recording(), path.params, spent, None))
    return tuple(courses), fixed.best.action, found.message


def _policy_course(name: str, policy: Policy, theta0: Array, duration: float, n_steps: int) -> Course:
    time = np.linspace(0.0, duration, n_steps)
    state = policy.trajectory(theta0, time)
    spent = np.array([policy.cost(theta0, t) for t in time])
    return _course(name, policy.recording(theta0, time), state, spent, policy)


def _course(name: str, rec: Recording, state: Array, spent: Array, policy: Policy | None) -> Course:
    analysis = steepest.analyze(rec)["run"]
    distance = np.full(len(state), np.nan)
    own_cond, action, rest = math.nan, float(spent[-1]), state[-1]
    if policy is not None:
        action, rest = float(policy.value(state[0])), policy.fixed_point
        if policy.not_natural is None:
            M = policy.metric()
            own_cond = M.cond()
            for t in np.flatnonzero(analysis["psi"][:, 0] < math.pi / 2.0):
                distance[t] = float(steepest.distance(M, analysis.metric(int(t))))
    return Course(
        name, rec.time, state, rec.loss, analysis["psi"][:, 0], analysis["cond_min"][:, 0], distance, spent, action,
        own_cond, rest,
    )  # fmt: skip


def write(result: Navigation, folder: Path) -> list[Path]:
    """Write ``navigation.npz`` and ``navigation.csv``, one row for each time of each course, to `folder`."""
    columns: dict[str, list[Any]] = {
        name: []
        for name in ("figure", "course", "time", "theta_0", "theta_1", "loss", "psi_deg", "cond", "distance", "spent")
    }  # fmt: skip
    for group, courses in result.groups.items():
        for course in courses:
            length = len(course.time)
            second = course.state[:, 1] if course.state.shape[1] > 1 else np.full(length, np.nan)
            values = (
                [group] * length, [course.name] * length, course.time, course.state[:, 0], second, course.loss,
                np.degrees(course.angle), course.cond, course.distance, course.spent,
            )  # fmt: skip
            for column, part in zip(columns.values(), values, strict=True):
                column.extend(np.asarray(part).tolist())
    return [write_npz(folder / "navigation.npz", result.to_dict()), write_csv(folder / "navigation.csv", columns)]
