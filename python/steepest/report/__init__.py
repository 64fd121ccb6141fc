"""One self-contained HTML page from an analysis: words, tables, figures, and how all of it was computed.

Jinja2 and matplotlib are imported by `report`; ``pip install "steepest[report]"`` brings them.
"""

from steepest.report.page import report

__all__ = ["report"]
