"""What a recording says: one number for each step and block, with its status, and what the data cannot say."""

from __future__ import annotations

from steepest.analysis.analyze import analyze
from steepest.analysis.result import Analysis
from steepest.analysis.run import RunAnalysis
from steepest.analysis.windows import Effectiveness

__all__ = ["Analysis", "Effectiveness", "RunAnalysis", "analyze"]
