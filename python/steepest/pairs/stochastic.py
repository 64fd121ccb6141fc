"""The pair of a stochastic rule, from independent samples of gradient and update at one point."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtr

from steepest.arrays import EPSILON, Layout, LongVector, long_vector, template_of
from steepest.pairs.cosine_interval import jackknife_cosine, margin, ratio, unreliable_because
from steepest.pairs.descent_pair import DescentPair, rational_gram
from steepest.pairs.low_rank_operator import orthonormal, small_metric
from steepest.pairs.sample_sums import Estimate, Samples, Sums, sample_sums, standard_error
from steepest.pairs.shifted_metric import ShiftedMetric
from steepest.pairs.stochastic_hessian import HessianPair, hessian_pair, hessian_samples
from steepest.pairs.uncertain_pair import UncertainPair
from steepest.step_rows import ordered

__all__ = ["Estimate", "HessianPair", "ShiftedMetric", "StochasticPair", "stochastic"]

Array = NDArray[np.float64]


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class StochasticPair(UncertainPair):
    """What independent samples of a stochastic rule at one point say about its mean; made by `stochastic`.

    Attributes
    ----------
    status : str
        ``ok``; ``undefined``: an estimate of |E grad|^2 or |E update|^2 is not positive, so there is no cosine and more
        samples are needed; ``nonfinite``: the samples hold NaN or Inf, or their squares overflow.
    size : int
        Number of parameters n.
    grad_update, grad_grad, update_update : Estimate
        E[grad].E[update], |E grad|^2, |E update|^2: unbiased, of any sign.
    grad_noise, update_noise : float
        ``tr Cov/N``: by how much the squared norm of the sample mean exceeds that of the expectation, on average.
    cosine : Estimate
        Of the angle between -E[grad] and E[update], debiased: may exceed 1. Standard error by jackknife.
    interval : tuple of two floats
        95% interval of the cosine, Student t with N - 1 degrees of freedom, not clipped to [-1, 1].
    reliable : bool
        Whether the interval can be trusted; see `reasons`.
    reasons : tuple of str
        Why it cannot.
    z, p_value : float
        ``-grad_update`` in units of its standard error, and the one-sided p-value of E[grad].E[update] < 0, that is
        of descent on average to first order. Conservative near zero signal: the standard error is up to sqrt(2) too
        large there.
    pair : DescentPair
        The means of grad and of update/lr, as they are: their angle is biased by noise, towards 90 degrees where the
        noise of gradient and update is independent.
    n_samples : int
        N.
    lr : float
        Learning rate, eta.
    loss_change : Estimate
        E[dL]; NaN if it was not given.
    loss_p_value : float
        One-sided t-test of E[dL] < 0: effective on average. NaN if dL was not given.
    curvature : Estimate
        ``q = (2/lr^2) (E[dL] - lr grad L.E[g])``, an average of g^T H g; NaN without dL.
    shift : float
        ``lr q / (2 |E g|^2)`` of eq (19'), debiased; NaN without dL.
    corrected : DescentPair or None
        Formulation (i): ``y = -grad L - shift E[g]``, for which y.E[g] = -E[dL]/lr. None without dL or if undefined.
        Its `defect` is what the noise of the sample means leaves of that.
    hessian : HessianPair or None
        Formulation (ii): ``y = -grad L - (lr/2) E[H g]``. None without `hessian_update`, or if its numbers are not
        finite.
    """

    n_samples: int
    lr: float
    update_update: Estimate
    update_noise: float
    loss_change: Estimate
    loss_p_value: float
    curvature: Estimate
    shift: float
    corrected: DescentPair | None
    hessian: HessianPair | None

    def natural_form(self, alpha: Any = "optimal") -> ShiftedMetric:
        """The operator of eq (19'), ``(M + shift I) E[g] = -grad L`` with M the metric of `corrected`.

        Then ``E[params_next] = params - lr (M + shift I)^{-1} grad L``, eq (20').

        Parameters
        ----------
        alpha : float, 'optimal' or callable
            Bulk eigenvalue of M, as for `steepest.metric`.

        Returns
        -------
        ShiftedMetric
            Symmetric positive definite.

        Raises
        ------
        ValueError
            Without loss changes; or M + shift I is not positive definite, which needs q >= 0 or
            lr < 2 lambda_min(M) |E g|^2/|q|.
        NotDescentError
            The loss does not fall on average.

        Notes
        -----
        Formulation (i) of section 8 (derived). Holds two vectors in float64.
        """
        if self.corrected is None:
            raise ValueError(
                "expected samples with loss_change and with a mean update that stands out from its noise, got "
                f"loss_change = {self.loss_change.value}, |E update|^2 = {self.update_update.value:.6g}"
            )
        M = self.corrected.metric(alpha=alpha)
        lowest = M.spectrum().values[0] + self.shift
        if not lowest > 0.0:
            raise ValueError(
                f"M + shift I is not positive definite: lambda_min(M) = {M.spectrum().values[0]:.6g}, shift = "
                f"{self.shift:.6g}; expected q >= 0 or lr < 2 lambda_min(M) |E g|^2/|q|: lower the learning rate"
            )
        a = self.corrected.align()
        y, g = (-self.corrected._formed(0).flat(), self.corrected._formed(1).flat())
        Q = orthonormal(g, y)
        core = small_metric(float(M.alpha), a.rho / a.cosine, Q.T @ y / a.grad_norm, Q.T @ g / a.update_norm)
        return ShiftedMetric(
            bulk=float(M.alpha) + self.shift,
            alpha=float(M.alpha),
            shift=self.shift,
            smallest_eigenvalue=lowest,
            _basis=Q,
            _core=core + self.shift * np.eye(len(core)),
            _layout=self.corrected.vectors[0].layout,
        )

    def to_dict(self) -> dict[str, Any]:
        """All numbers, as plain Python values.

        Returns
        -------
        dict
            Field name -> value; an `Estimate` becomes two entries, the second with ``_se`` behind the name. What
            `hessian` holds, under names that begin with ``hessian_``.
        """
        found = super().to_dict()
        if self.hessian is not None:
            found |= {f"hessian_{name}": value for name, value in self.hessian.to_dict().items()}
        return found

    def _source(self) -> str:
        return f"{self.n_samples} samples"


def stochastic(
    grad: Any,
    update: Any,
    *,
    loss_change: Any = None,
    lr: float = 1.0,
    full_gradient: Any = None,
    hessian_update: Any = None,
) -> StochasticPair:
    """Pair of the means of a stochastic rule, with the inner products freed from the bias of sampling noise.

    Parameters
    ----------
    grad : array or mapping name -> array, or None
        N independent samples of +dL/dtheta at ONE point, first axis = sample; float64, float32, float16 or bfloat16. A
        mapping is ONE vector. Not read if `full_gradient` is given.
    update : array or mapping name -> array
        params_next - params of the same samples, same shape.
    loss_change : array_like of shape (N,), optional
        dL of each sample, of the loss whose gradient is sought (not of its batch).
    lr : float
        Learning rate: g = update/lr.
    full_gradient : array or mapping, optional
        The gradient without noise, without the first axis: only the update is noisy then.
    hessian_update : array, mapping or callable, optional
        For formulation (ii): H_xi times the update of each sample, same shape as `update`; or ``hvp(update_i)``, which
        is called for each sample, in the structure of one update. H_xi is a symmetric matrix with update_i.H_xi
        update_i = 2 (dL_i - grad L.update_i): the Hessian at the Taylor point of the step, or its average 2 int_0^1
        (1 - t) H(params + t update_i) dt, for which the product is 2 (gradient averaged over the step - grad L). With
        the Hessian at `params`, as of `steepest.stability.finite_difference_hvp`, that holds to O(|update|^3), and
        exactly for quadratic losses; `StochasticPair.hessian.remainder` measures what is missing.

    Returns
    -------
    StochasticPair
        Estimates, tests, and the pairs of the means. With `loss_change`, `corrected` and `natural_form` are formulation
        (i); with `hessian_update`, `hessian` is formulation (ii).

    Raises
    ------
    ValueError
        Fewer than 2 samples, shapes or names that differ, a learning rate that is not positive.
    TypeError
        An unsupported dtype or type.

    See Also
    --------
    steepest.pairs.estimated : For a gradient estimated from losses, and an update without noise.

    Notes
    -----
    Section 8 (derived; formulation (ii) reconstructed). For samples a_i, b_i the U statistic ``(sum_i sum_j a_i.b_j -
    sum_i a_i.b_i)/(N (N-1))`` is an unbiased estimate of E[a].E[b]; the inner product of the means is biased by tr
    Cov(a, b)/N. Its standard error is std_i(a_i.bbar + b_i.abar)/sqrt(N). The cosine is U_yg/sqrt(U_yy U_gg), with a
    jackknife standard error that is undefined if one of its N values is. It is flagged `reliable` where |E y|^2 >= 2 tr
    Cov(y)/N, |E g|^2 >= 2 tr Cov(g)/N, N >= 50 and the angle is 30 to 85 degrees, and where there is no noise in the
    angle at all.

    All sums and the N leave-one-out values need only the row sums and the diagonals of the Gram matrix of the samples:
    one pass over the samples, O(N n), in float64.

    Examples
    --------
    >>> import numpy as np
    >>> from steepest.pairs.stochastic import stochastic
    >>> rng = np.random.default_rng(0)
    >>> grad = [3.0, 4.0] + rng.standard_normal((100, 2))
    >>> update = [-3.0, -1.0] + rng.standard_normal((100, 2))
    >>> found = stochastic(grad, update)
    >>> found.flag, bool(found.p_value < 1e-6), bool(abs(np.degrees(found.angle) - 34.695) < 5)
    ('reliable', True, True)

    Formulation (ii), for a quadratic loss with Hessian H:

    >>> H = np.diag([2.0, 0.5])
    >>> found = stochastic(grad, 0.1 * update, lr=0.1, hessian_update=lambda u: H @ u)
    >>> form = found.hessian.natural_form()
    >>> np.allclose(form @ update.mean(axis=0), -grad.mean(axis=0))
    True
    """
    if not 0.0 < lr < math.inf:
        raise ValueError(f"expected a positive, finite lr, got {lr!r}")
    g = Samples.of(update, "update", None)
    if full_gradient is None:
        if grad is None:
            raise ValueError("expected samples of grad, or full_gradient; got None for both")
        y: Samples | LongVector = Samples.of(grad, "grad", g)
    else:
        y = ordered(full_gradient, "full_gradient", g.layout)
        if y.layout != g.layout:
            raise ValueError(f"expected full_gradient to be {g.layout} as each update, got {y.layout}")
    changes = None if loss_change is None else _changes(loss_change, g.n)
    with np.errstate(over="ignore", invalid="ignore"):
        s = sample_sums(y, g)
    nan, none = math.nan, Estimate(math.nan, math.nan)
    finite = all(math.isfinite(x.value) for x in (s.yy, s.yg, s.gg)) and (
        changes is None or bool(np.isfinite(changes).all())
    )
    yy, yg, gg = (x.estimate if finite else none for x in (s.yy, s.yg, s.gg))
    defined = finite and yy.value > 0.0 and gg.value > 0.0
    cosine = jackknife_cosine(s) if defined else none
    half = margin(cosine.standard_error, g.n - 1)
    dtype = max(y.coarsest, g.coarsest, key=EPSILON.__getitem__)
    reasons = unreliable_because(s, cosine, EPSILON[dtype]) if defined else ("the cosine is undefined",)
    z = ratio(-yg.value, yg.standard_error)

    change, curvature, c = none, none, nan
    if changes is not None and finite:
        mean = math.fsum(changes) / g.n
        change = Estimate(mean, standard_error(changes))
        factor = 2.0 / lr**2
        curvature = Estimate(factor * (mean - yg.value), factor * standard_error(changes - s.yg.influence))
        c = (mean - yg.value) / gg.value if gg.value > 0.0 else nan
    if hessian_update is not None:
        products = hessian_samples(hessian_update, update, g)
    pair, corrected = _pairs(y, g, s, grad if full_gradient is None else full_gradient, update, lr, c, change.value)
    return StochasticPair(
        status="ok" if defined else "undefined" if finite else "nonfinite",
        n_samples=g.n,
        size=g.layout.size,
        lr=float(lr),
        grad_update=yg,
        grad_grad=yy,
        update_update=gg,
        grad_noise=s.y_noise if finite else nan,
        update_noise=s.g_noise if finite else nan,
        cosine=cosine,
        interval=(cosine.value - half, cosine.value + half),
        reliable=not reasons,
        reasons=reasons,
        z=z,
        p_value=float(ndtr(-z)),
        loss_change=change,
        loss_p_value=float(stdtr(g.n - 1, ratio(change.value, change.standard_error))),
        curvature=curvature,
        shift=lr * c,
        pair=pair,
        corrected=corrected,
        hessian=None if hessian_update is None or not finite else hessian_pair(products, g, s, pair, lr, changes),
    )


def _changes(x: Any, n: int) -> Array:
    vector = long_vector(x, "loss_change")
    if vector.layout.names is not None or vector.layout.shapes[0] != (n,):
        raise ValueError(f"expected loss_change of shape ({n},), one for each sample, got {vector.layout}")
    return vector.flat()


def _pairs(
    y: Samples | LongVector, g: Samples, s: Sums, grad: Any, update: Any, lr: float, c: float, change: float
) -> tuple[DescentPair, DescentPair | None]:
    """The pair of the means, and the one corrected by c times the mean update."""
    means = [LongVector(list(x), g.layout, ("float64",) * len(x)) for x in (s.y_mean, s.g_mean)]
    if not isinstance(y, Samples):
        means[0] = y
    vectors = (means[0], means[1])
    templates = (
        _first(grad, g.layout) if isinstance(y, Samples) else _named(grad, g.layout),
        _first(update, g.layout),
    )
    one, zero, scale = Fraction(1), Fraction(0), 1 / Fraction(lr)
    gram = rational_gram(vectors)
    dtype = max(y.coarsest, g.coarsest, key=EPSILON.__getitem__)
    common: dict[str, Any] = {
        "names": ("full_grad" if y is means[0] else "mean_grad", "mean_update"),
        "vectors": vectors,
        "templates": templates,
        "dtype": dtype,
        "psi_floor": EPSILON[dtype],
        "gram": gram,
    }
    pair = DescentPair(method="stochastic", rows=((one, zero), (zero, scale)), **common)
    if not (math.isfinite(c) and gram.finite):
        return pair, None
    row, unit = (one, Fraction(c)), (zero, one)
    squared = gram.product(row, row)
    share = math.sqrt(float(Fraction(c) ** 2 * gram.product(unit, unit) / squared)) if squared > 0 else 0.0
    return pair, DescentPair(
        method="stochastic-corrected",
        rows=(row, (zero, scale)),
        correction_share=share,
        loss_change=change,
        defect=float(gram.product(row, unit) - Fraction(change)),
        **common,
    )


def _named(x: Any, layout: Layout) -> Any:
    return template_of({name: x[name] for name in layout.names} if layout.names is not None else x)


def _first(x: Any, layout: Layout) -> Any:
    """The first sample, in the library of the user."""
    x = _named(x, layout)
    if isinstance(x, Mapping):
        return {name: _first_of(value) for name, value in x.items()}
    return _first_of(x)


def _first_of(x: Any) -> Any:
    x = np.asarray(x) if isinstance(x, list | tuple) else x
    return x[0, ...]
