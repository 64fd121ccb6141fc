"""Figures (matplotlib): the geometry of one step, and the course of a run or of several.

Every figure takes ``ax=`` and returns the axes, and has a twin ``<name>_data`` that returns the arrays it draws.
matplotlib is imported by the functions that draw; ``pip install "steepest[plot]"`` brings it.
"""

from steepest.plot.angle import AngleData, angle, angle_data
from steepest.plot.blocks import BlocksData, blocks, blocks_data
from steepest.plot.course import CondData, LossData, SpeedData, cond, cond_data, loss, loss_data, speed, speed_data
from steepest.plot.ellipses import GeometryOverStepsData, geometry_over_steps, geometry_over_steps_data
from steepest.plot.geometries import GeometriesData, geometries, geometries_data
from steepest.plot.geometry import GeometryData, geometry, geometry_data
from steepest.plot.lifetime import LifetimeCurve, lifetime, lifetime_data
from steepest.plot.series import Curve, Marks

__all__ = [
    "AngleData",
    "BlocksData",
    "CondData",
    "Curve",
    "GeometriesData",
    "GeometryData",
    "GeometryOverStepsData",
    "LifetimeCurve",
    "LossData",
    "Marks",
    "SpeedData",
    "angle",
    "angle_data",
    "blocks",
    "blocks_data",
    "cond",
    "cond_data",
    "geometries",
    "geometries_data",
    "geometry",
    "geometry_data",
    "geometry_over_steps",
    "geometry_over_steps_data",
    "lifetime",
    "lifetime_data",
    "loss",
    "loss_data",
    "speed",
    "speed_data",
]
