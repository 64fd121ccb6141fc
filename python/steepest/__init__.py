"""Write any learning rule as natural gradient descent: the metric M with ``update = -M^{-1} grad``, matrix-free.

``steepest.align(grad, update)`` says how the update lies to the gradient; ``steepest.metric(grad, update)`` is the
symmetric positive definite metric behind it.
"""

from __future__ import annotations

import importlib
from typing import Any

try:
    from steepest import _core
except ModuleNotFoundError as error:
    if error.name == "steepest._core":
        error.add_note(
            "The compiled module steepest._core is missing. Install the package (pip install .), or build it in place "
            "as CONTRIBUTING.md says, and run Python outside of the source tree's python/ folder."
        )
    raise

from steepest import pairs, plot, spectral, stability
from steepest.alignment import Alignment
from steepest.analysis import Analysis, RunAnalysis, analyze
from steepest.distance import Distance, distance
from steepest.errors import NotDescentError
from steepest.gradient_estimate import GradientEstimate, estimate_gradient
from steepest.identify import Identification, Selection, identify, select
from steepest.metric import CanonicalForm, Metric, Spectrum, align, canonical_form, metric
from steepest.recorder import Recorder
from steepest.recording import Recording, recording

__all__ = [
    "Alignment",
    "Analysis",
    "CanonicalForm",
    "Distance",
    "GradientEstimate",
    "Identification",
    "Metric",
    "NotDescentError",
    "Recorder",
    "Recording",
    "RunAnalysis",
    "Selection",
    "Spectrum",
    "__version__",
    "align",
    "analyze",
    "build_config",
    "canonical_form",
    "distance",
    "estimate_gradient",
    "get_num_threads",
    "identify",
    "metric",
    "pairs",
    "plot",
    "recording",
    "select",
    "set_num_threads",
    "spectral",
    "stability",
]

__version__: str = _core.build_config()["version"]


# Modules that need optional packages, or much of them: imported when they are first named.
_ON_DEMAND = ("jax", "navigation", "optax", "report", "rules", "sources", "torch")


def __getattr__(name: str) -> Any:
    if name in _ON_DEMAND:
        return importlib.import_module(f"steepest.{name}")
    raise AttributeError(f"module 'steepest' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ON_DEMAND])


def build_config() -> dict[str, Any]:
    """How the compiled core was built, and what it uses here.

    Returns
    -------
    dict
        version, compiler, cplusplus, eigen, pybind11, assertions; instruction_sets (compiled in), instruction_set (in
        use; the environment variable STEEPEST_ISA forces one), num_threads.

    Examples
    --------
    >>> import steepest
    >>> steepest.build_config()["instruction_set"] in steepest.build_config()["instruction_sets"]
    True
    """
    return _core.build_config()


def set_num_threads(n: int) -> None:
    """Set how many threads the kernels use.

    The default is the environment variable STEEPEST_NUM_THREADS, else the number of CPUs that the process may run on.
    Results are the same, bit for bit, for any number.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    ValueError
        n < 1.

    Examples
    --------
    >>> import steepest
    >>> steepest.set_num_threads(2)
    >>> steepest.get_num_threads()
    2
    """
    _core.set_num_threads(n)


def get_num_threads() -> int:
    """How many threads the kernels use.

    Returns
    -------
    int
        At least 1.
    """
    return _core.get_num_threads()
