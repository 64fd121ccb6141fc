"""Learning rules derived as optimal navigation of a loss landscape.

A `Navigator` states the problem; `Navigator.policy` solves it in closed form on quadratics, `Navigator.solve` finds
optimal paths on any smooth loss.
"""

from steepest.navigation.collocation import Navigation, Path, solve_paths
from steepest.navigation.heavy_ball import HeavyBall
from steepest.navigation.limits import (
    ballistic_step,
    geometric_mean,
    gradient_step,
    newton_step,
    rotation,
    rotation_feedback,
    short_horizon_velocity,
    weight_decay,
    weight_decay_feedback,
)
from steepest.navigation.losses import Drift, Loss, Quadratic
from steepest.navigation.navigator import Navigator
from steepest.navigation.policy import Policy

__all__ = [
    "Drift",
    "HeavyBall",
    "Loss",
    "Navigation",
    "Navigator",
    "Path",
    "Policy",
    "Quadratic",
    "ballistic_step",
    "geometric_mean",
    "gradient_step",
    "newton_step",
    "rotation",
    "rotation_feedback",
    "short_horizon_velocity",
    "solve_paths",
    "weight_decay",
    "weight_decay_feedback",
]
