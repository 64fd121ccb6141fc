"""Curvature, and how large a step may be: eqs (16)-(18) and the bounds on the learning rate that go with them."""

from __future__ import annotations

from steepest.stability.curvature import DirectionalCurvature, curvature_along, finite_difference_hvp
from steepest.stability.eigenvalue import RitzValue, StepSizeBounds, smallest_eigenvalue, step_size_bounds
from steepest.stability.natural_form import NaturalForm, natural_form

__all__ = [
    "DirectionalCurvature",
    "NaturalForm",
    "RitzValue",
    "StepSizeBounds",
    "curvature_along",
    "finite_difference_hvp",
    "natural_form",
    "smallest_eigenvalue",
    "step_size_bounds",
]
