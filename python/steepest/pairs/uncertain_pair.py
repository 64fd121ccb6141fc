"""A pair whose vectors are known up to noise: what is the same however the noise was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from steepest.alignment import Alignment
from steepest.pairs import cosine_interval
from steepest.pairs.descent_pair import DescentPair
from steepest.pairs.sample_sums import Estimate

__all__ = ["UncertainPair", "plain_values"]


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class UncertainPair:
    """The angle between two vectors that are known up to noise, and the pair of their estimates.

    Attributes
    ----------
    status : str
        ``ok``; ``undefined``: the estimate of a squared norm is not positive, so there is no cosine and more samples
        are needed; ``nonfinite``: the data hold NaN or Inf, or their squares overflow.
    size : int
        Number of parameters n.
    grad_update, grad_grad : Estimate
        E[grad].E[update], |E grad|^2: unbiased, of any sign.
    grad_noise : float
        By how much the squared norm of the estimate exceeds that of the expectation, on average.
    cosine : Estimate
        Of the angle between -E[grad] and E[update], debiased: may exceed 1.
    interval : tuple of two floats
        95% interval of the cosine by Student's t, not clipped to [-1, 1].
    reliable : bool
        Whether the interval can be trusted; see `reasons`.
    reasons : tuple of str
        Why it cannot.
    z, p_value : float
        ``-grad_update`` in units of its standard error, and the one-sided p-value of E[grad].E[update] < 0.
    pair : DescentPair
        The estimates, as they are: their angle is biased by noise.
    """

    status: str
    size: int
    grad_update: Estimate
    grad_grad: Estimate
    grad_noise: float
    cosine: Estimate
    interval: tuple[float, float]
    reliable: bool
    reasons: tuple[str, ...]
    z: float
    p_value: float
    pair: DescentPair

    @property
    def angle(self) -> float:
        """Angle between -E[grad] and E[update] in rad, of the debiased cosine clipped to [-1, 1]."""
        return cosine_interval.angle(self.cosine.value)

    @property
    def flag(self) -> str:
        """``reliable`` or ``unreliable``: whether to trust `interval`."""
        return "reliable" if self.reliable else "unreliable"

    def align(self, **options: Any) -> Alignment:
        """Alignment of the estimates, not debiased.

        Parameters
        ----------
        **options
            As for `DescentPair.align`.

        Returns
        -------
        Alignment
            Of `pair`.
        """
        return self.pair.align(**options)

    def metric(self, **options: Any) -> Any:
        """The metric for which the estimated update is natural gradient descent of the estimated gradient.

        Parameters
        ----------
        **options
            As for `steepest.metric`.

        Returns
        -------
        Metric or dict
            Of `pair`.

        Raises
        ------
        NotDescentError
            The estimates do not descend.
        """
        return self.pair.metric(**options)

    def to_dict(self) -> dict[str, Any]:
        """All numbers, as plain Python values.

        Returns
        -------
        dict
            Field name -> value; an `Estimate` becomes two entries, the second with ``_se`` behind the name.
        """
        return plain_values(self) | {"angle": self.angle}

    def __repr__(self) -> str:
        low, high = self.interval
        return (
            f"{type(self).__name__}({self.status!r}, {self._source()}, n={self.size}, cosine={self.cosine.value:.6g} "
            f"[{low:.6g}, {high:.6g}] {self.flag}, z={self.z:.3g}, p_value={self.p_value:.3g})"
        )

    def _source(self) -> str:
        return self.pair.method


def plain_values(x: Any) -> dict[str, Any]:
    """The numbers and texts of a dataclass; what it holds of other classes is left out.

    Parameters
    ----------
    x : dataclass
        Of numbers, texts, tuples and estimates.

    Returns
    -------
    dict
        Field name -> value; an `Estimate` becomes two entries.
    """
    found: dict[str, Any] = {}
    for name in x.__dataclass_fields__:
        value = getattr(x, name)
        if isinstance(value, Estimate):
            found |= {name: value.value, f"{name}_se": value.standard_error}
        elif isinstance(value, tuple):
            found[name] = list(value)
        elif isinstance(value, str | int | float | bool):
            found[name] = value
    return found
