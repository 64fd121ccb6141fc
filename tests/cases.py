"""The problems that the tests share: angles, norms and alphas of the contract, and one metric of every form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from scipy.sparse.linalg import LinearOperator, aslinearoperator

import oracles
import steepest

RIGHT_ANGLE = np.pi / 2
ANGLES = [1e-9, 1e-6, 1e-3, 0.3, np.pi / 4, 1.2, RIGHT_ANGLE - 1e-3, RIGHT_ANGLE - 1e-6, RIGHT_ANGLE - 1e-9]
ALPHA_RATIOS = [1e-8, 1e-4, 1.0, 1e4, 1e8]
DTYPES = {"float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


class Scale(NamedTuple):
    """|grad| / |update| and the geometric mean of the two norms."""

    rho: float
    joint: float


# All combinations of rho in 1e-150, 1, 1e150 and joint scale in 1e-250, 1, 1e250 in which both norms are between 1e-300
# and 1e300; rho at the largest joint scale that leaves room for it besides.
SCALES = [
    Scale(1.0, 1.0),
    Scale(1e-150, 1.0),
    Scale(1e150, 1.0),
    Scale(1.0, 1e-250),
    Scale(1.0, 1e250),
    Scale(1e-150, 1e-220),
    Scale(1e150, 1e220),
]


def pair(angle: float, scale: Scale = SCALES[0], n: int = 3, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Float64 (grad, update) at an angle."""
    return oracles.pair(n, angle, scale.rho, scale.joint, rng=seed)


# Layouts of the six parameters of the forms below.
LAYOUTS: dict[str, Callable[[np.ndarray], Any]] = {
    "flat": lambda v: v,
    "matrix": lambda v: v.reshape(2, 3),
    "mapping": lambda v: {"weight": v[:4].reshape(2, 2), "bias": v[4:]},
}
SIZE = 6


def flat(x: Any) -> np.ndarray:
    """A vector in any layout as a flat array."""
    return np.concatenate([np.ravel(v) for v in x.values()]) if isinstance(x, dict) else np.ravel(x)


@dataclass(frozen=True)
class Form:
    """A metric, the dense matrix that it should be, and its base if eigenvalues are relative to one."""

    metric: Any
    dense: np.ndarray
    base: np.ndarray | None = None


def _vectors(layout: str, psi: float = 0.9, rho: float = 2.0, n: int = SIZE, seed: int = 3) -> tuple[Any, ...]:
    grad, update = oracles.pair(n, psi, rho, rng=seed)
    shape = LAYOUTS[layout]
    return (grad, update, shape(grad), shape(update)) if n == SIZE else (grad, update, grad, update)


def dense_dfp(grad: np.ndarray, update: np.ndarray, base: np.ndarray) -> np.ndarray:
    """The DFP update of a dense base."""
    y, g = -grad, update
    side = np.eye(y.size) - np.outer(y, g) / (y @ g)
    return side @ base @ side.T + np.outer(y, y) / (y @ g)


def spd(n: int = SIZE, seed: int = 5) -> np.ndarray:
    """A random dense SPD matrix of moderate condition number."""
    a = np.random.default_rng(seed).standard_normal((n, n))
    return a @ a.T / n + np.eye(n)


class SolvingOperator(LinearOperator):
    """A LinearOperator with solve, logdet and trace."""

    def __init__(self, matrix: np.ndarray) -> None:
        super().__init__(np.float64, matrix.shape)
        self.matrix = matrix

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return self.matrix @ x

    def solve(self, b: np.ndarray) -> np.ndarray:
        return np.linalg.solve(self.matrix, b)

    def logdet(self) -> float:
        return float(np.linalg.slogdet(self.matrix)[1])

    def trace(self) -> float:
        return float(np.trace(self.matrix))


def _family(layout: str, f: Callable[[Any], Any], of: Callable[[np.ndarray], np.ndarray], **kw: Any) -> Form:
    options = {key: kw.pop(key) for key in ("psi", "rho", "n") if key in kw}
    grad, update, g, u = _vectors(layout, **options)
    dense = oracles.dense_metric(grad, update, kw.get("alpha"))
    return Form(f(steepest.metric(g, u, **kw)), oracles.dense_function(dense, of))


def _family_dfp(layout: str) -> Form:
    grad, update, g, u = _vectors(layout)
    return Form(steepest.metric(g, u, alpha=1.5, kind="dfp"), dense_dfp(grad, update, 1.5 * np.eye(SIZE)))


def _low_rank(
    layout: str,
    f: Callable[[Any], Any] = lambda m: m,
    of: Callable[[np.ndarray], np.ndarray] = lambda x: x,
    kinds: tuple[str, ...] = ("bfgs",),
    same: bool = False,
) -> Form:
    """Updates of the metric of one pair by further pairs."""
    grad, update, g, u = _vectors(layout, psi=0.5, rho=1.3, seed=8)
    metric, dense = steepest.metric(g, u, alpha=2.0), oracles.dense_metric(grad, update, 2.0)
    for i, kind in enumerate(kinds):
        grad, update, g, u = _vectors(layout, psi=0.8, seed=8 if same else 20 + i, rho=1.3 if same else 2.0 - 0.5 * i)
        metric = steepest.metric(g, u, base=metric, kind=kind)
        dense = oracles.dense_metric(grad, update, base=dense) if kind == "bfgs" else dense_dfp(grad, update, dense)
    return Form(f(metric), oracles.dense_function(dense, of))


def _diagonal(layout: str, f: Callable[[Any], Any], of: Callable[[np.ndarray], np.ndarray], kind: str = "bfgs") -> Form:
    grad, update, g, u = _vectors(layout)
    d = np.linspace(0.5, 3.0, SIZE)
    metric = f(steepest.metric(g, u, base=LAYOUTS[layout](d), kind=kind))
    dense = oracles.dense_metric(grad, update, base=d) if kind == "bfgs" else dense_dfp(grad, update, np.diag(d))
    relative = metric.spectrum().relative
    base = oracles.dense_function(np.diag(d), of) if relative else None
    return Form(metric, oracles.dense_function(dense, of), base)


def _operator(
    layout: str,
    f: Callable[[Any], Any] = lambda m: m,
    of: Callable[[np.ndarray], np.ndarray] = lambda x: x,
    kind: str = "bfgs",
    wrap: Callable[[np.ndarray], Any] = SolvingOperator,
    **kw: Any,
) -> Form:
    grad, update, g, u = _vectors(layout)
    b = spd()
    metric = f(steepest.metric(g, u, base=wrap(b), kind=kind, **kw))
    dense = oracles.dense_metric(grad, update, base=b) if kind == "bfgs" else dense_dfp(grad, update, b)
    base = oracles.dense_function(b, of) if metric.spectrum().relative else None
    return Form(metric, oracles.dense_function(dense, of), base)


def _metric_as_operator(layout: str) -> Form:
    """A base that is a Metric, but of no low-rank form."""
    grad, update, g, u = _vectors(layout)
    first_grad, first_update, fg, fu = _vectors(layout, seed=30)
    d = np.linspace(1.0, 2.0, SIZE)
    base = steepest.metric(fg, fu, base=LAYOUTS[layout](d))
    dense = oracles.dense_metric(first_grad, first_update, base=d)
    return Form(steepest.metric(g, u, base=base), oracles.dense_metric(grad, update, base=dense), dense)


def _complement(layout: str, f: Callable[[Any], Any], of: Callable[[np.ndarray], np.ndarray]) -> Form:
    grad, update, g, u = _vectors(layout)
    columns = np.random.default_rng(9).standard_normal((SIZE, SIZE + 1))
    columns -= np.outer(update, update @ columns) / (update @ update)
    dense = np.outer(grad, grad) / -(grad @ update) + columns @ columns.T
    return Form(f(steepest.metric(g, u, complement=columns)), oracles.dense_function(dense, of))


def _same(x: Any) -> Any:
    return x


FORMS: dict[str, Callable[[str], Form]] = {
    "optimal": lambda at: _family(at, _same, _same),
    "alpha": lambda at: _family(at, _same, _same, alpha=3.0),
    "alpha below": lambda at: _family(at, _same, _same, alpha=0.05),
    "parallel": lambda at: _family(at, _same, _same, psi=0.0, alpha=0.7),
    "parallel optimal": lambda at: _family(at, _same, _same, psi=0.0),
    "steep": lambda at: _family(at, _same, _same, psi=1.55),
    "inverse": lambda at: _family(at, lambda m: m.inv(), lambda x: 1 / x, alpha=3.0),
    "root": lambda at: _family(at, lambda m: m.sqrt(), np.sqrt),
    "power": lambda at: _family(at, lambda m: m.power(-0.3), lambda x: x**-0.3, alpha=0.4),
    "power of power": lambda at: _family(at, lambda m: (2 * m.sqrt()).power(3), lambda x: 8 * x**1.5),
    "power zero": lambda at: _family(at, lambda m: m.power(0), np.ones_like),
    "multiple": lambda at: _family(at, lambda m: 5 * m / 2, lambda x: 2.5 * x),
    "log": lambda at: _family(at, lambda m: m.log(), np.log, alpha=0.2),
    "multiple of log": lambda at: _family(at, lambda m: 3 * (2 * m).log(), lambda x: 3 * np.log(2 * x)),
    "log of root of multiple": lambda at: _family(at, lambda m: (2 * m.sqrt()).log(), lambda x: np.log(2 * x**0.5)),
    "dfp": _family_dfp,
    "updated": _low_rank,
    "updated inverse": lambda at: _low_rank(at, lambda m: m.inv(), lambda x: 1 / x),
    "updated root": lambda at: _low_rank(at, lambda m: m.sqrt(), np.sqrt),
    "updated root inverse": lambda at: _low_rank(at, lambda m: m.sqrt().inv(), lambda x: x**-0.5),
    "updated log": lambda at: _low_rank(at, lambda m: m.log(), np.log),
    "updated multiple": lambda at: _low_rank(at, lambda m: 3 * m, lambda x: 3 * x),
    "updated twice": lambda at: _low_rank(at, kinds=("bfgs", "dfp")),
    "updated dfp": lambda at: _low_rank(at, kinds=("dfp",)),
    "updated beyond n": lambda at: _low_rank(at, kinds=("bfgs",) * 4),
    "updated dependent": lambda at: _low_rank(at, same=True),
    "diagonal base": lambda at: _diagonal(at, _same, _same),
    "diagonal base dfp": lambda at: _diagonal(at, _same, _same, "dfp"),
    "diagonal base inverse": lambda at: _diagonal(at, lambda m: m.inv(), lambda x: 1 / x),
    "diagonal base dfp inverse": lambda at: _diagonal(at, lambda m: m.inv(), lambda x: 1 / x, "dfp"),
    "diagonal base root": lambda at: _diagonal(at, lambda m: m.sqrt(), np.sqrt),
    "diagonal base log": lambda at: _diagonal(at, lambda m: m.log(), np.log),
    "operator base": _operator,
    "operator base dfp": lambda at: _operator(at, kind="dfp"),
    "operator base inverse": lambda at: _operator(at, lambda m: m.inv(), lambda x: 1 / x),
    "operator base without solve": lambda at: _operator(at, wrap=aslinearoperator),
    "operator base without solve, dfp": lambda at: _operator(at, wrap=aslinearoperator, kind="dfp"),
    "operator base, solve given": lambda at: _operator(
        at, wrap=aslinearoperator, base_solve=lambda b: np.linalg.solve(spd(), b)
    ),
    "operator base root": lambda at: _operator(at, lambda m: m.sqrt(), np.sqrt),
    "metric as operator": _metric_as_operator,
    "complement": lambda at: _complement(at, _same, _same),
    "complement inverse": lambda at: _complement(at, lambda m: m.inv(), lambda x: 1 / x),
    "complement log": lambda at: _complement(at, lambda m: m.log(), np.log),
    "complement multiple": lambda at: _complement(at, lambda m: 2 * m.power(0.5), lambda x: 2 * np.sqrt(x)),
}

# Multiples of forms whose eigenvalues are relative to a base that is not multiplied with them.
SCALED_OVER_BASE: dict[str, Callable[[str], Form]] = {
    "diagonal base": FORMS["diagonal base"],
    "diagonal base dfp inverse": FORMS["diagonal base dfp inverse"],
    "operator base": FORMS["operator base"],
    "operator base inverse": FORMS["operator base inverse"],
}
