"""Learning rules: ``init(params) -> state``, ``update(grad, state, params) -> (update, state)``, and their own metrics.

Ours are those that follow from assumptions (docs/rules.md) and those of neuroscience; any optax transformation or
PyTorch optimiser becomes one by `from_optax` and `from_torch`. `Rule.run` learns and records, for `steepest.analyze`.
"""

from __future__ import annotations

from steepest.rules.adaptive import Adaptive, Ballistic
from steepest.rules.evolution import EvolutionStrategy
from steepest.rules.feedback import FeedbackAlignment, LayeredNetwork, random_feedback
from steepest.rules.filtered import Filtered
from steepest.rules.filters import Belief, Drifting, FlatPrior, steady_state_gain
from steepest.rules.finite_step import FiniteStep
from steepest.rules.hebbian import Hebbian
from steepest.rules.natural_gradient import NaturalGradient
from steepest.rules.optax_rule import from_optax
from steepest.rules.optimal import Optimal
from steepest.rules.reset import Reset
from steepest.rules.rule import Rule, Run
from steepest.rules.torch_rule import from_torch
from steepest.rules.weight_uncertainty import WeightUncertainty

__all__ = [
    "Adaptive",
    "Ballistic",
    "Belief",
    "Drifting",
    "EvolutionStrategy",
    "FeedbackAlignment",
    "Filtered",
    "FiniteStep",
    "FlatPrior",
    "Hebbian",
    "LayeredNetwork",
    "NaturalGradient",
    "Optimal",
    "Reset",
    "Rule",
    "Run",
    "WeightUncertainty",
    "from_optax",
    "from_torch",
    "random_feedback",
    "steady_state_gain",
]
