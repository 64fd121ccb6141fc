"""The forms that a metric can take, one file each, behind one interface."""

from steepest.metrics.interface import Metric, Spectrum

__all__ = ["Metric", "Spectrum"]
