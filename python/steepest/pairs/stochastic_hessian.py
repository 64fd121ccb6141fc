"""Formulation (ii) of a stochastic rule: the mean step as a natural gradient step with a curvature of rank two."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.alignment import Alignment, align_vectors
from steepest.arrays import EPSILON, LongVector, right_hand_side, template_of, widened
from steepest.errors import NotDescentError
from steepest.pairs.descent_pair import DescentPair, rational_gram
from steepest.pairs.low_rank_operator import DefiniteOperator, LowRankOperator, orthonormal, small_metric
from steepest.pairs.sample_sums import Estimate, Samples, Sums, sample_sums, standard_error
from steepest.pairs.uncertain_pair import plain_values

__all__ = ["HessianForm", "HessianPair", "hessian_pair", "hessian_samples"]

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class HessianForm(DefiniteOperator):
    """``M(alpha) + (lr/2) Gamma``, which turns the mean update into minus the mean gradient; made by `HessianPair`.

    Attributes
    ----------
    alpha : float
        Bulk eigenvalue of M(alpha), eq (8).
    smallest_eigenvalue : float
        Positive.
    lr : float
        Learning rate.
    """

    lr: float


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class HessianPair:
    """Formulation (ii): ``y = -grad L - (lr/2) h`` with h = E[H_xi g], and a Gamma of rank two with Gamma E[g] = h.

    Attributes
    ----------
    lr : float
        Learning rate, eta.
    curvature : Estimate
        E[g.H_xi g].
    along, across : float
        ``h.E[g]/|E g|^2`` and ``|h - along E[g]|/|E g|``, from debiased inner products; `across` is 0 where noise makes
        its square negative.
    smallest_eigenvalue : float
        Of Gamma, ``(along - sqrt(along^2 + 4 across^2))/2``: at most 0. For n = 1, `along`.
    descent : Estimate
        ``y.E[g]``, unbiased. M exists where it is positive.
    gap : Estimate
        ``(lr/2) E[(g - E g).(H_xi g - h)] = y.E[g] + E[dL]/lr``, unbiased: negative only where H is indefinite.
    expected_change : Estimate
        ``lr grad L.E[g] + (lr^2/2) E[g.H_xi g]``: E[dL] as far as H_xi is what it should be.
    remainder : Estimate
        ``E[dL] - expected_change``: near 0 within its error if the Hessians fit the losses. NaN without loss changes.
    caution : str
        Empty, or that y.E[g] <= 0 although the loss falls on average, with the figures; formulation (i) has no such
        gap.
    pair : DescentPair
        Of the sample means, ``gradient = grad L + (lr/2) h`` and ``update = E[g]``, as they are.
    """

    lr: float
    curvature: Estimate
    along: float
    across: float
    smallest_eigenvalue: float
    descent: Estimate
    gap: Estimate
    expected_change: Estimate
    remainder: Estimate
    caution: str
    pair: DescentPair

    def align(self, **options: Any) -> Alignment:
        """Alignment of the pair of the means.

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
        """The metric M with ``M E[g] = y``.

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
            ``y.E[g] <= 0``; with a note where the loss falls on average nevertheless.
        """
        try:
            return self.pair.metric(**options)
        except NotDescentError as error:
            if self.caution:
                error.add_note(self.caution)
            raise

    @property
    def gamma(self) -> LowRankOperator:
        """``(h E[g]^T + E[g] h^T)/|E g|^2 - (h.E[g]) E[g] E[g]^T/|E g|^4`` of the sample means."""
        g, h = self._mean_update(), self._mean_product()
        Q = orthonormal(g, h)
        return LowRankOperator(bulk=0.0, _basis=Q, _core=_gamma(Q, g, h), _layout=self.pair.vectors[0].layout)

    def learning_rate_bounds(self) -> Any:
        """Learning rates below which M + (lr/2) Gamma is positive definite, M as it is.

        Returns
        -------
        steepest.stability.StepSizeBounds
            `optimal`: ``2 lambda_min(M)/|lambda_min(Gamma)|`` for the condition-optimal M; `supremum` over all M with
            M E[g] = y; `existence`: below it some M serves. To be compared with `lr`.

        Raises
        ------
        NotDescentError
            ``y.E[g] <= 0``.

        Notes
        -----
        Section 8 (ii), reconstructed. The first two are sufficient. With the debiased `smallest_eigenvalue`.
        """
        from steepest.stability import step_size_bounds  # it is made of pairs

        return step_size_bounds(self.pair, self.smallest_eigenvalue, curvature=self.along)

    def natural_form(self, alpha: Any = "optimal") -> HessianForm:
        """The operator ``M + (lr/2) Gamma``, with which ``(M + (lr/2) Gamma) E[g] = -grad L``.

        Then ``E[params_next] = params - lr (M + (lr/2) Gamma)^{-1} grad L``.

        Parameters
        ----------
        alpha : float, 'optimal', 'sufficient' or callable
            Bulk eigenvalue of M, as for `steepest.metric`; 'sufficient' is as large as the step needs, if any will do.

        Returns
        -------
        HessianForm
            Certified positive definite: its distinct eigenvalues are those of a matrix of size 3, and alpha.

        Raises
        ------
        NotDescentError
            ``y.E[g] <= 0``, or ``-grad L.E[g] <= 0``: then no metric serves.
        ValueError
            Not positive definite for this alpha; the message says for which it is.

        Notes
        -----
        Section 8 (ii), reconstructed. An identity for the sample means, whatever their noise and whatever H: Gamma is
        formed of the means as they are, since debiasing |E g|^2 in it would break Gamma E[g] = h. What is estimated
        about the expectations (`along`, `across`, `descent`) is debiased. Holds 3 vectors in float64; O(n).
        """
        metric = self.metric() if isinstance(alpha, str) else self.metric(alpha=alpha)
        a = self.pair.align()
        g, h = self._mean_update(), self._mean_product()
        y = -self.pair._formed(0).flat()
        Q = orthonormal(g, y, h)
        gq, yq = Q.T @ g / a.update_norm, Q.T @ y / a.grad_norm
        gamma, along = 0.5 * self.lr * _gamma(Q, g, h), a.rho / a.cosine
        n, r = Q.shape
        towards = self._gradient_alignment()
        if towards.status != "ok":
            error = NotDescentError({None: towards})
            error.add_note("No metric turns -grad L into the mean update, with any curvature: -grad L.E[g] <= 0.")
            raise error
        needed = _threshold(along * np.outer(yq, yq) + gamma, gq)
        value = float(metric.alpha)
        if isinstance(alpha, str) and alpha == "sufficient":
            value = max(value, 2.0 * needed)
        core = small_metric(value, along, yq, gq) + gamma
        eigenvalues = np.append(np.linalg.eigvalsh(core), [value] * (n > r))
        lowest = float(eigenvalues.min())
        if not lowest > 8.0 * EPSILON["float64"] * float(np.abs(eigenvalues).max()):
            raise ValueError(
                f"expected M + (lr/2) Gamma to be positive definite, got a smallest eigenvalue of {lowest:.6g} for "
                f"alpha = {value:.6g} and lambda_min(Gamma) = {float(np.linalg.eigvalsh(gamma)[0]) * 2 / self.lr:.6g}; "
                f"it is for alpha > {needed:.6g}: pass alpha='sufficient'"
            )
        return HessianForm(
            bulk=value,
            alpha=value,
            lr=self.lr,
            smallest_eigenvalue=lowest,
            _basis=Q,
            _core=core,
            _layout=self.pair.vectors[0].layout,
        )

    def _mean_update(self) -> Array:
        return self.pair._formed(1).flat()

    def _mean_product(self) -> Array:
        """h."""
        return self.pair.vectors[2].flat() / self.lr

    def _gradient_alignment(self) -> Alignment:
        return align_vectors(self.pair.vectors[0], self.pair.vectors[1])

    def to_dict(self) -> dict[str, Any]:
        """All numbers, as plain Python values.

        Returns
        -------
        dict
            Field name -> value; an `Estimate` becomes two entries, the second with ``_se`` behind the name.
        """
        return plain_values(self)

    def __repr__(self) -> str:
        return (
            f"HessianPair(y.E[g] = {self.descent.value:.6g} +- {self.descent.standard_error:.2g}, lambda_min(Gamma) = "
            f"{self.smallest_eigenvalue:.6g}, lr={self.lr:.6g}{', caution' if self.caution else ''})"
        )


def _gamma(Q: Array, g: Array, h: Array) -> Array:
    """Gamma in an orthonormal basis."""
    norm = float(np.linalg.norm(g))
    unit, image = Q.T @ (g / norm), Q.T @ (h / norm)
    mixed = np.outer(image, unit)
    return np.asarray(mixed + mixed.T - float(image @ unit) * np.outer(unit, unit))


def _threshold(K: Array, g: Array) -> float:
    """The alpha above which ``K + alpha (I - g g^T)`` is positive definite, if g^T K g > 0 for the unit vector g."""
    # K - K g g^T K/(g^T K g) acts on the complement of g: what is left of K for the most favourable component along g.
    image = K @ g
    complement = K - np.outer(image, image) / float(g @ image)
    return max(0.0, -float(np.linalg.eigvalsh(0.5 * (complement + complement.T))[0]))


def hessian_samples(hessian_update: Any, update: Any, g: Samples) -> Samples:
    """Samples of H_xi update, from an array or a callable.

    Parameters
    ----------
    hessian_update : array, mapping or callable
        As for `stochastic`.
    update : array or mapping
        The samples of the update.
    g : Samples
        Views of them.

    Returns
    -------
    Samples
        Of the same layout; of a callable, in float64.
    """
    if not callable(hessian_update):
        return Samples.of(hessian_update, "hessian_update", g)
    given = template_of(update)
    arrays = [np.empty((g.n, *shape)) for shape in g.layout.shapes]
    for i in range(g.n):
        sample = {name: x[i, ...] for name, x in given.items()} if isinstance(given, Mapping) else given[i]
        product = right_hand_side(hessian_update(sample), g.layout, "the result of hessian_update")
        for array, segment in zip(arrays, product.segments, strict=True):
            array[i] = widened(segment, "bfloat16" if segment.dtype == np.uint16 else str(segment.dtype)).reshape(
                array.shape[1:]
            )
    names = g.layout.names
    return Samples.of(arrays[0] if names is None else dict(zip(names, arrays, strict=True)), "hessian_update", g)


def hessian_pair(
    h: Samples, g: Samples, s: Sums, pair: DescentPair, lr: float, changes: Array | None
) -> HessianPair | None:
    """Formulation (ii) from samples.

    Parameters
    ----------
    h, g : Samples
        H_xi times the updates, and the updates.
    s : Sums
        Of gradients and updates.
    pair : DescentPair
        Of the means of these.
    lr : float
        Learning rate.
    changes : ndarray, shape (N,), optional
        dL of each sample.

    Returns
    -------
    HessianPair or None
        None where there is no mean update, or where values are not finite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        t = sample_sums(h, g)
    mean = LongVector(list(t.y_mean), g.layout, ("float64",) * len(t.y_mean))
    gram = rational_gram((*pair.vectors, mean))
    if not gram.finite or not all(math.isfinite(x.value) for x in (t.yy, t.yg)) or not gram.values[1][1] > 0:
        return None
    along, across, smallest = _spectrum(t, g.layout.size)
    # E[dL] to second order, y.E[g] and their difference, each with the samples that its error follows from
    second = Estimate(float(t.products.mean()), standard_error(t.products))
    expected = s.yg.value + 0.5 * second.value
    expected_influence = s.yg.influence + 0.5 * t.products
    descent = Estimate(
        -(s.yg.value + 0.5 * t.yg.value) / lr, standard_error(s.yg.influence + 0.5 * t.yg.influence) / lr
    )
    gap = Estimate(0.5 * (second.value - t.yg.value) / lr, 0.5 * standard_error(t.products - t.yg.influence) / lr)
    change, remainder = math.nan, Estimate(math.nan, math.nan)
    if changes is not None:
        change = math.fsum(changes) / g.n
        remainder = Estimate(change - expected, standard_error(changes - expected_influence))
    one, zero = Fraction(1), Fraction(0)
    row, unit = (one, zero, Fraction(1, 2)), (zero, one, zero)
    squared = gram.product(row, row)
    made = DescentPair(
        method="stochastic-hessian",
        names=(*pair.names, "mean_hessian_update"),
        rows=(row, (zero, 1 / Fraction(lr), zero)),
        vectors=(*pair.vectors, mean),
        templates=pair.templates,
        dtype=max(pair.dtype, h.coarsest, key=EPSILON.__getitem__),
        psi_floor=pair.psi_floor,
        correction_share=math.sqrt(float(gram.values[2][2] / (4 * squared))) if squared > 0 else 0.0,
        loss_change=change,
        defect=float(gram.product(row, unit) - Fraction(change)) if changes is not None else math.nan,
        gram=gram,
    )
    falls = expected if changes is None else change
    caution = ""
    if falls < 0.0 and (descent.value <= 0.0 or gram.product(row, unit) >= 0):
        caution = (
            f"The rule is effective on average (E[dL] = {falls:.3g}), but y.E[g] = {descent.value:.3g} +- "
            f"{descent.standard_error:.2g} is not positive: (lr/2) E[(g - E g).(H g - E H g)] = {gap.value:.3g} "
            "outweighs it, where H is indefinite. Formulation (i), StochasticPair.natural_form, has no such gap."
        )
    return HessianPair(
        lr=float(lr),
        curvature=Estimate(second.value / lr**2, second.standard_error / lr**2),
        along=along,
        across=across,
        smallest_eigenvalue=smallest,
        descent=descent,
        gap=gap,
        expected_change=Estimate(expected, standard_error(expected_influence)),
        remainder=remainder,
        caution=caution,
        pair=made,
    )


def _spectrum(t: Sums, n: int) -> tuple[float, float, float]:
    """Curvature along and across the mean update, and the smallest eigenvalue of Gamma, debiased."""
    if not t.gg.value > 0.0:
        return math.nan, math.nan, math.nan
    along = t.yg.value / t.gg.value
    across = math.sqrt(max(0.0, t.yy.value / t.gg.value - along**2)) if n > 1 else 0.0
    if n == 1:
        return along, across, along
    # along - sqrt(...) cancels for along > 0
    root = math.hypot(along, 2.0 * across)
    smallest = 0.0 - 2.0 * across**2 / (along + root) if along > 0.0 else 0.5 * (along - root)
    return along, across, smallest
