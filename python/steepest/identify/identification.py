"""What identification found: scores of every block, what they rest on, and the metric."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steepest.identify.ceiling import Ceiling, Predicted
from steepest.identify.fitted import Estimate, FitStatus
from steepest.metrics.interface import Metric

__all__ = ["BlockFit", "Identification"]

Family = Literal[
    "scalar",
    "diagonal",
    "kronecker-output",
    "kronecker-input",
    "kronecker",
    "diagonal+low-rank",
    "block-diagonal",
    "full",
    "multi-secant",
]


@dataclass(frozen=True)
class BlockFit:
    """A family of metrics fitted to one block of parameters, with y = -grad and g = update.

    Attributes
    ----------
    block : str
        ``"(all)"`` or the name of an array.
    size, parameters : int
        Number of parameters of the block, and of the family in it.
    status : str
        ``ok``. ``not_positive_definite``: the fit is 0 in some directions, since no positive number fits them or they
        never moved; the scores hold, but there is no metric without a floor. ``underdetermined``: the steps do not
        span the space that the family needs; scores hold in what they span. ``not_identified``: nothing moved in the
        fitted steps. ``too_few_steps``: nothing is held out, or a family as large as the data was fitted.
        ``not_converged``: the solver stopped early. ``inconsistent``: no metric of the family fits the steps exactly,
        where it is meant to. ``not_constant``: later steps are predicted much worse than the number of parameters
        explains, so the geometry changes over the run.
    r2, r2_low, r2_high : float
        Of the held-out steps, ``1 - sum |y - M g|^2 / sum |y|^2``, with its 95% interval.
    r2_in_sample : float
        Of the fitted steps: no evidence, since one step is always fitted where y.g > 0.
    r2_reverse, r2_reverse_low, r2_reverse_high, r2_reverse_in_sample : float
        Of g from y, ``1 - sum |g - P y|^2 / sum |g|^2``, P fitted in the same way. Noise in g shrinks M, noise in y
        shrinks P: of the scalar family M P and both in-sample scores equal cos^2 of the angle between the stacked
        vectors; of the diagonal one the in-sample scores are means of cos_i^2 with weights y_i.y_i and g_i.g_i.
    r2_symmetric : float
        Held out, y from g by the estimate that noise in y and noise in g shift in opposite senses,
        ``sqrt(sum y^2 / sum g^2)``.
    smallest, largest : float
        Positive eigenvalues of M where it is determined; NaN if there are none.
    determined : float
        Share of the directions of the family that the fitted steps determine: of the parameters that moved, of the
        rank of the updates.
    not_positive : int
        Directions (elements of a diagonal) that the fit maps to 0 although they moved, since no positive number fits.
    ceiling : Ceiling
        What the noise of the gradients lets any metric reach; NaN without replicates.
    verdict : str
        One sentence on the score.
    notes : tuple of str
        What the numbers can and cannot say.
    """

    block: str
    size: int
    parameters: int
    status: FitStatus
    r2: float
    r2_low: float
    r2_high: float
    r2_in_sample: float
    r2_reverse: float
    r2_reverse_low: float
    r2_reverse_high: float
    r2_reverse_in_sample: float
    r2_symmetric: float
    smallest: float
    largest: float
    determined: float
    not_positive: int
    ceiling: Ceiling
    verdict: str
    notes: tuple[str, ...]

    @property
    def score(self) -> tuple[float, float, float]:
        """Held-out R2 with its interval in the direction of `ceiling.predicts`, for comparisons between families."""
        if self.ceiling.predicts == "update":
            return self.r2_reverse, self.r2_reverse_low, self.r2_reverse_high
        return self.r2, self.r2_low, self.r2_high


@dataclass(frozen=True, eq=False)
class Identification:
    """One constant metric for a whole run, of a given structure; made by `steepest.identify`.

    Attributes
    ----------
    family : str
        Structure of the metric.
    fits : tuple of BlockFit
        One for each block that was asked for, ``"(all)"`` first; ``identification[block]`` is one of them.
    fitted_steps : int
        Number of steps to which it was fitted.
    held_out : tuple of int
        Numbers of the later steps by which it was scored.
    gradient_source : str or None
        Where the gradients come from: 'rule', 'evaluation', 'estimate'; None if it was not said.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest.identify import identify
    >>> rng = np.random.default_rng(0)
    >>> grad = rng.normal(size=(40, 3))
    >>> found = identify(grad=grad, update=-grad * [0.1, 0.2, 0.4], family="diagonal", rng=0)
    >>> found  # doctest: +ELLIPSIS
    Identification(diagonal, fitted to 30 steps, scored on the 10 after them: (all) R2 = 1.000 [1.000, 1.000], ...)
    >>> found.metric.diagonal().round(6).tolist()
    [10.0, 5.0, 2.5]
    """

    family: Family
    fits: tuple[BlockFit, ...]
    fitted_steps: int
    held_out: tuple[int, ...]
    gradient_source: str | None
    _estimate: Estimate = field(repr=False)
    _places: tuple[int, ...] = field(repr=False)  # of the fits among all blocks
    # What is predicted -> squared residuals and norms of the steps held out, shape (steps, fits), over the sum of the
    # latter; for comparisons step by step.
    _residuals: dict[Predicted, tuple[NDArray[np.float64], NDArray[np.float64]]] = field(repr=False)

    def __getitem__(self, block: str) -> BlockFit:
        return self.fits[self._index(block)]

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the fits."""
        return tuple(fit.block for fit in self.fits)

    @property
    def metric(self) -> Metric:
        """The fitted metric of the first block, ``"(all)"`` by default: `to_metric` without options."""
        return self.to_metric()

    def to_metric(self, block: str | None = None, *, floor: float | None = None, symmetric: bool = False) -> Metric:
        """The fitted metric, with products, solves, functions; also a ``base=`` for `steepest.metric`.

        Parameters
        ----------
        block : str, optional
            Which; by default the first.
        floor : float, optional
            Positive; the eigenvalue of M where the fit is 0 or the data leave it open (see `BlockFit.status`). What it
            should be the data cannot say; the smallest positive one is `BlockFit.smallest`.
        symmetric : bool
            The symmetric estimate ``sqrt(sum y^2 / sum g^2)`` instead of the fit of y from g.

        Returns
        -------
        Metric
            Of a copy of the fitted numbers; ``to_metric().diagonal()`` is the fastest form of a ``base=``.

        Raises
        ------
        ValueError
            The fit is 0 or open in some directions and there is no floor, or one that is not positive.
        """
        fit = self.fits[0] if block is None else self[block]
        if floor is not None and not 0.0 < floor < math.inf:
            raise ValueError(f"expected a positive finite floor, got {floor!r}")
        if floor is None and (fit.determined < 1.0 or fit.not_positive):
            raise ValueError(
                f"the {self.family} fit of block {fit.block!r} is not positive definite everywhere: "
                f"{'; '.join(fit.notes)}; to_metric(floor=...) puts a number in place of what is 0 or open (the "
                f"smallest positive one is {fit.smallest:.6g}), and elements() has the numbers as they are"
            )
        return self._estimate.metric(self._place(fit), floor, symmetric)

    def elements(self, block: str | None = None, *, symmetric: bool = False) -> Any:
        """The fitted numbers as they are, with zeros where none is positive.

        Parameters
        ----------
        block : str, optional
            Which; by default the first.
        symmetric : bool
            As in `to_metric`.

        Returns
        -------
        float, ndarray, or mapping name -> ndarray
            m of the scalar family, the diagonal of that family, the matrices of the others (a copy).
        """
        return self._estimate.elements(self._place(self.fits[0] if block is None else self[block]), symmetric)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the fitted vectors, as plain Python values.

        Returns
        -------
        dict
            The fields, with `fits` as a list of dicts.
        """
        return {
            "family": self.family,
            "fits": [asdict(fit) for fit in self.fits],
            "fitted_steps": self.fitted_steps,
            "held_out": list(self.held_out),
            "gradient_source": self.gradient_source,
        }

    def __repr__(self) -> str:
        fit = self.fits[0]
        said = f", {fit.status}" * (fit.status != "ok")
        return (
            f"Identification({self.family}, fitted to {self.fitted_steps} steps, scored on the {len(self.held_out)} "
            f"after them: {fit.block} R2 = {fit.r2:.3f} [{fit.r2_low:.3f}, {fit.r2_high:.3f}], g from y "
            f"{fit.r2_reverse:.3f}{said}" + f"; {len(self.fits) - 1} more blocks" * (len(self.fits) > 1) + ")"
        )

    def _index(self, block: str) -> int:
        if block not in self.blocks:
            raise ValueError(f"expected block to be one of {list(self.blocks)[:8]}, got {block!r}")
        return self.blocks.index(block)

    def _place(self, fit: BlockFit) -> int:
        return self._places[self.fits.index(fit)]
