"""Stored training runs as sources of a recording: checkpoints, .npz, and what xarray opens; one step at a time."""

from steepest.sources.opening import open_source
from steepest.sources.record import record_source
from steepest.sources.source import Source, SourceStep

__all__ = ["Source", "SourceStep", "open_source", "record_source"]
