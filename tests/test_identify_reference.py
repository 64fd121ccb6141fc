"""Distance of a rule from natural gradient in a given geometry: closed forms against general optimisers and mpmath."""

from __future__ import annotations

import json
import math
import pickle
import warnings

import numpy as np
import pytest
from scipy.linalg import eigh, expm, logm
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, aslinearoperator

import steepest
from oracles import mp
from steepest.identify.reference import reference_distance
from steepest.identify.reference_course import reference_course

KINDS = ["kl", "kl-reverse", "affine-invariant"]


def spd(n, rng, spread=1.0):
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return (q * np.exp(spread * rng.normal(size=n))) @ q.T


def descent_pair(n, rng):
    grad, update = rng.normal(size=n), rng.normal(size=n)
    return grad, (update if grad @ update < 0 else -update)


def distance_of(kind, m, b):
    """Between two dense matrices, from generalised eigenvalues."""
    mu = eigh(m, b, eigvals_only=True)
    if kind == "affine-invariant":
        return math.sqrt(np.sum(np.log(mu) ** 2))
    if kind == "kl-reverse":
        mu = 1.0 / mu
    return 0.5 * float(np.sum(mu - 1.0 - np.log(mu)))


def smallest_by_search(kind, scale, grad, update, b, rng):
    """Over all M = y y^T/(y.g) + Q S Q^T with Q an orthonormal basis of g-perp and S = expm of anything symmetric."""
    y, g, n = -grad, update, len(grad)
    basis = np.linalg.svd(g[None])[2][1:].T
    rows, columns = np.tril_indices(n - 1)

    def objective(x):
        x = 8.0 * np.tanh(x / 8.0)  # keeps the first steps of the search where a matrix has digits
        s = np.zeros((n - 1, n - 1))
        s[rows, columns] = x[: len(rows)]
        s = s + np.tril(s, -1).T
        m = np.outer(y, y) / (y @ g) + basis @ expm(s) @ basis.T
        factor = math.exp(x[-1]) if scale == "free" else 1.0
        return distance_of(kind, m, factor * b) ** (2 if kind == "affine-invariant" else 1)

    start = np.zeros(len(rows) + 1)
    found = minimize(objective, start, method="BFGS", options={"gtol": 1e-7, "maxiter": 2000})
    return math.sqrt(found.fun) if kind == "affine-invariant" else found.fun


@pytest.mark.parametrize("scale", ["free", "fixed"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [2, 3, 4])
def test_no_metric_of_the_step_is_nearer(n, kind, scale):
    rng = np.random.default_rng(n)
    grad, update = descent_pair(n, rng)
    b = spd(n, rng)
    found = reference_distance(grad, update, aslinearoperator(b), kind=kind, scale=scale)
    expected = smallest_by_search(kind, scale, grad, update, b, rng)
    assert found.value == pytest.approx(expected, rel=2e-5)
    assert found.value <= expected * (1.0 + 1e-9)
    assert found.status == "ok"


@pytest.mark.parametrize(("kind", "attained"), [("kl", "bfgs"), ("kl-reverse", "dfp")])
@pytest.mark.parametrize("scale", ["free", "fixed"])
def test_the_quasi_newton_update_attains_it(kind, attained, scale):
    rng = np.random.default_rng(5)
    grad, update = descent_pair(30, rng)
    b = spd(30, rng)
    found = reference_distance(grad, update, aslinearoperator(b), kind=kind, scale=scale)
    nearest = steepest.metric(grad, update, base=aslinearoperator(found.multiple * b), kind=attained).to_dense()
    np.testing.assert_allclose(nearest @ update, -grad, rtol=1e-9, atol=1e-10)
    assert distance_of(kind, nearest, found.multiple * b) == pytest.approx(found.value, rel=1e-9)
    # No other multiple is nearer
    if scale == "free":
        for factor in (0.9, 1.1):
            other = reference_distance(
                grad, update, aslinearoperator(factor * found.multiple * b), kind=kind, scale="fixed"
            )
            assert other.value > found.value


def test_affine_invariant_is_attained_in_the_plane():
    rng = np.random.default_rng(6)
    grad, update = descent_pair(6, rng)
    b = spd(6, rng)
    found = reference_distance(grad, update, aslinearoperator(b), kind="affine-invariant")
    half = np.real(expm(0.5 * logm(found.multiple * b)))
    z, w = np.linalg.solve(half, -grad), half @ update
    # tau = rho/cos psi and c = rho: the in-plane part of the condition-optimal metric, the identity elsewhere
    v = z - (z @ w) / (w @ w) * w
    v /= np.linalg.norm(v)
    u = np.linalg.svd(np.stack([z, w]))[2][2:]
    m = np.outer(z, z) / (z @ w) + (z @ z) / (z @ w) * np.outer(v, v) + u.T @ u
    assert distance_of("affine-invariant", m, np.eye(6)) == pytest.approx(found.value, rel=1e-9)
    assert found.value == pytest.approx(
        math.log(steepest.align(grad, update, base=aslinearoperator(b)).cond_min) / math.sqrt(2.0), rel=1e-9
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", ["free", "fixed"])
@pytest.mark.parametrize("tilt", [0.0, 1e-12, 1e-9, 1e-6, 1e-3, 1.0])
def test_small_distances_keep_their_digits(kind, scale, tilt):
    rng = np.random.default_rng(7)
    d = np.exp(rng.normal(size=20))
    y = rng.normal(size=20)
    g = 2.0**-3 * y / d
    g = g + tilt * rng.normal(size=20) * np.linalg.norm(g) / math.sqrt(20)
    exact_y, exact_g, exact_d = ([mp.mpf(float(v)) for v in x] for x in (y, g, d))
    yy = mp.fsum(a * a / c for a, c in zip(exact_y, exact_d, strict=True))
    gg = mp.fsum(a * a * c for a, c in zip(exact_g, exact_d, strict=True))
    yg = mp.fdot(exact_y, exact_g)
    a, b = yy / yg, yg / gg
    if kind == "affine-invariant" and scale == "free":
        expected = mp.sqrt(2) * mp.asinh(mp.sqrt(max(mp.mpf(0), a / b - 1)))
    elif kind == "affine-invariant":

        def squared(s):
            trace, det = a + mp.exp(s), mp.exp(s) * b
            root = mp.sqrt(max(mp.mpf(0), trace**2 - 4 * det))
            return mp.log((trace + root) / 2) ** 2 + mp.log(2 * det / (trace + root)) ** 2

        low, high = mp.mpf(-20), mp.mpf(20)
        for _ in range(250):  # golden section on a convex function
            p, q = high - (high - low) * mp.phi**-1, low + (high - low) * mp.phi**-1
            low, high = (low, q) if squared(p) < squared(q) else (p, high)
        expected = mp.sqrt(squared(low))
    elif scale == "free":
        expected = mp.log(a / b) / 2
    else:
        expected = (a - 1 - mp.log(b)) / 2 if kind == "kl" else (1 / b - 1 + mp.log(a)) / 2
    found = reference_distance(-y, g, d, kind=kind, scale=scale)
    assert found.value == pytest.approx(float(expected), rel=1e-9, abs=3e-16)
    assert abs(found.value - float(expected)) <= found.error + 1e-300
    assert found.error < 1e-9 * max(1.0, found.value)


def test_natural_gradient_in_the_geometry_is_at_distance_zero():
    rng = np.random.default_rng(8)
    b = spd(40, rng)
    grad = rng.normal(size=40)
    update = -0.3 * np.linalg.solve(b, grad)
    for kind in KINDS:
        found = reference_distance(grad, update, aslinearoperator(b), kind=kind)
        assert 0.0 <= found.value < (1e-13 if kind == "affine-invariant" else 1e-20)
        assert found.multiple == pytest.approx(1 / 0.3)
        fixed = reference_distance(grad, update / 0.3, aslinearoperator(b), kind=kind, scale="fixed")
        assert 0.0 <= fixed.value < (1e-12 if kind == "affine-invariant" else 1e-20)
    assert float(reference_distance(grad, -0.3 * grad, aslinearoperator(b))) > 0.1


def test_every_form_of_a_reference_gives_the_same():
    rng = np.random.default_rng(9)
    d = rng.uniform(0.5, 2.0, 12)
    grad, update = descent_pair(12, rng)
    expected = reference_distance(grad, update, d, scale="fixed")

    class Exported:
        def to_scipy(self):
            return aslinearoperator(np.diag(d))

    class Solver(LinearOperator):
        def __init__(self):
            super().__init__(np.dtype(float), (12, 12))
            self.solved = 0

        def _matvec(self, x):
            return d * x.ravel()

        def solve(self, b):
            self.solved += 1
            return b / d

    solver = Solver()
    metric = steepest.identify(
        grad=np.ones((8, 12)), update=-np.ones((8, 12)) / d, family="diagonal"
    ).metric  # a steepest Metric that is diagonal
    for reference in (aslinearoperator(np.diag(d)), Exported(), solver, metric):
        found = reference_distance(grad, update, reference, scale="fixed")
        assert found.value == pytest.approx(expected.value, rel=1e-11)
        assert found.multiple == 1.0
        assert found.residual < 1e-11
    assert solver.solved == 1
    named = {"w": grad[:8].reshape(2, 4), "b": grad[8:]}, {"w": update[:8].reshape(2, 4), "b": update[8:]}
    for reference in (
        {"b": d[8:], "w": d[:8].reshape(2, 4)},
        {"w": aslinearoperator(np.diag(d[:8])), "b": d[8:]},
        d,
    ):
        assert reference_distance(*named, reference, scale="fixed").value == pytest.approx(expected.value, rel=1e-11)


def test_a_loose_solve_is_told_by_the_error():
    rng = np.random.default_rng(10)
    b = spd(60, rng, spread=1.0)
    grad, update = descent_pair(60, rng)
    exact = reference_distance(grad, update, aslinearoperator(b), reference_solve=lambda x: np.linalg.solve(b, x))
    # A solution that is off as that of an early stopped iteration is
    off = rng.normal(size=60)
    for size in (1e-8, 1e-7):
        loose = reference_distance(
            grad,
            update,
            aslinearoperator(b),
            reference_solve=lambda x, size=size: (
                (s := np.linalg.solve(b, x)) + size * np.linalg.norm(s) * off / np.linalg.norm(off)
            ),
        )
        assert loose.residual > 0.1 * size
        assert abs(loose.value - exact.value) <= 1.5 * loose.error
    assert exact.residual < 1e-13


def test_status_is_said():
    rng = np.random.default_rng(11)
    grad, d = rng.normal(size=5), np.ones(5)
    for update, status in ((grad, "ascent"), (np.zeros(5), "zero_update"), (grad * np.nan, "nonfinite")):
        for reference in (d, aslinearoperator(np.diag(d))):
            found = reference_distance(grad, update, reference)
            assert found.status == status
            assert math.isnan(found.value)
            assert math.isnan(found.multiple)
    assert reference_distance(grad, grad, d).angle == pytest.approx(math.pi)
    one = reference_distance(np.array([2.0]), np.array([-1.0]), np.array([1.0]), scale="fixed", kind="affine-invariant")
    assert one.value == pytest.approx(math.log(2.0))
    assert reference_distance(np.array([2.0]), np.array([-1.0]), np.array([1.0])).value == 0.0


def test_what_is_refused():
    rng = np.random.default_rng(12)
    grad, update = descent_pair(5, rng)
    indefinite = np.diag([1.0, 1.0, -1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="kind"):
        reference_distance(grad, update, np.ones(5), kind="bures")
    with pytest.raises(ValueError, match="scale"):
        reference_distance(grad, update, np.ones(5), scale="best")
    with pytest.raises(ValueError, match="rtol"):
        reference_distance(grad, update, np.ones(5), rtol=0.0)
    with pytest.raises(ValueError, match="positive"):
        reference_distance(grad, update, -np.ones(5))
    with pytest.raises(ValueError, match="positive definite"):
        reference_distance(np.eye(5)[2], -np.eye(5)[2], aslinearoperator(indefinite))
    with pytest.raises(TypeError, match="callable"):
        reference_distance(grad, update, lambda step: np.ones(5))
    with pytest.raises(ValueError, match="conjugate gradients"):
        reference_distance(grad, update, aslinearoperator(np.diag([1.0, 1.0, 0.0, 1.0, 1.0])))
    with pytest.raises(ValueError, match="each array"):
        reference_distance({"w": grad}, {"w": update}, {"x": aslinearoperator(np.eye(5))})
    with pytest.raises(TypeError, match="None"):
        reference_course(grad=grad[None], update=update[None])


def named_run(T=30, seed=0):
    rng = np.random.default_rng(seed)
    grad = {"w": rng.normal(size=(T, 3, 2)), "b": rng.normal(size=(T, 4))}
    return grad, {
        k: -0.1 * x * rng.uniform(0.5, 2.0, x.shape[1:]) + 0.01 * rng.normal(size=x.shape) for k, x in grad.items()
    }


def test_a_run_step_by_step_and_block_by_block():
    grad, update = named_run()
    update["b"][4] = -update["b"][4]  # uphill in one block
    grad["w"][5] = 0.0
    rng = np.random.default_rng(1)
    dense = {"w": spd(6, rng), "b": spd(4, rng)}
    course = reference_course(grad=grad, update=update, reference={k: aslinearoperator(b) for k, b in dense.items()})
    joined = np.zeros((10, 10))
    joined[:6, :6], joined[6:, 6:] = dense["w"], dense["b"]
    together = reference_course(grad=grad, update=update, reference=aslinearoperator(joined))
    assert course.blocks == ("(all)", "w", "b")
    assert together.blocks == ("(all)",)
    assert course.status[4, 2] == "ascent"
    assert course.status[5, 1] == "zero_grad"
    np.testing.assert_array_equal(course.status[:, 0], together.status[:, 0])
    np.testing.assert_allclose(course.value[:, 0], together.value[:, 0], rtol=1e-8)
    np.testing.assert_allclose(course.angle[:, 0], together.angle[:, 0], rtol=1e-8)
    for t in (0, 7):
        for name in ("w", "b"):
            one = reference_distance(grad[name][t].ravel(), update[name][t].ravel(), aslinearoperator(dense[name]))
            assert course[name][t] == pytest.approx(one.value, rel=1e-12)
    rows = course.summary()
    assert [row["block"] for row in rows] == ["(all)", "w", "b"]
    assert rows[2]["ok"] == np.count_nonzero(course.status[:, 2] == "ok") < 30
    assert rows[1]["median"] == pytest.approx(np.median(course["w"][course.status[:, 1] == "ok"]))
    json.dumps(course.to_dict())
    assert "median" in repr(course)


def test_a_geometry_that_changes_and_a_recording():
    grad, update = named_run(T=12)
    rec = steepest.recording(
        params={k: np.concatenate([np.zeros((1, *x.shape[1:])), np.cumsum(x, axis=0)]) for k, x in update.items()},
        grad=grad,
    )
    # Adam's sqrt(v) as it stood at each step
    v = {k: np.cumsum(x**2, axis=0) / np.arange(1, 13).reshape(-1, *[1] * (x.ndim - 1)) for k, x in grad.items()}
    course = reference_course(rec, lambda step: {k: np.sqrt(x[step]) for k, x in v.items()})
    assert course.steps == tuple(range(12))
    expected = reference_distance(
        {k: x[3] for k, x in grad.items()},
        {k: x[3] for k, x in update.items()},
        {k: np.sqrt(x[3]) for k, x in v.items()},
    )
    assert course["(all)"][3] == pytest.approx(expected.value, rel=1e-9)
    with pytest.raises(ValueError, match="block"):
        course["c"]


# A real curvature ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what its own imports and hooks say of other packages
        curvlinops = pytest.importorskip("curvlinops")
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(40, 4, generator=generator, dtype=torch.float64)
        labels = torch.randint(0, 3, (40,), generator=generator)
        loss = torch.nn.CrossEntropyLoss()
        params = [p for p in model.parameters() if p.requires_grad]
        ggn = curvlinops.GGNLinearOperator(model, loss, params, [(x, labels)])
        gradients = torch.autograd.grad(loss(model(x), labels), params)
        grad = np.concatenate([g.detach().numpy().ravel() for g in gradients])
        operator = ggn.to_scipy()
        dense = operator @ np.eye(grad.size)
    return ggn, dense, grad


def test_natural_gradient_in_the_gauss_newton_geometry(network):
    ggn, dense, grad = network
    n = grad.size
    damping = 1e-3
    fisher = ggn.to_scipy() + damping * aslinearoperator(np.eye(n))
    natural = -0.5 * np.linalg.solve(0.5 * (dense + dense.T) + damping * np.eye(n), grad)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        at_zero = reference_distance(grad, natural, fisher)
        sgd = reference_distance(grad, -0.1 * grad, fisher)
    assert at_zero.value < 1e-15
    assert at_zero.multiple == pytest.approx(2.0, rel=1e-8)
    matrix = dense + damping * np.eye(n)
    cosine = (grad @ grad) / math.sqrt(grad @ np.linalg.solve(matrix, grad) * (grad @ matrix @ grad))
    assert sgd.value == pytest.approx(-math.log(cosine), rel=1e-7)
    assert sgd.value > 0.1
    assert sgd.residual < 1e-10
    # The operator of the package itself, without export: too singular to solve without damping, and told so
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r"damping|positive definite"):
            reference_distance(np.random.default_rng(0).normal(size=n), -grad, ggn)


def test_natural_gradient_in_the_kfac_geometry_is_not_that_of_gauss_newton(network):
    ggn, _, grad = network
    torch = pytest.importorskip("torch")
    n, damping = grad.size, 1e-2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import curvlinops

        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(40, 4, generator=generator, dtype=torch.float64)
        labels = torch.randint(0, 3, (40,), generator=generator)
        operator = curvlinops.KFACLinearOperator(
            model, torch.nn.CrossEntropyLoss(), list(model.parameters()), [(x, labels)], fisher_type="type-2"
        ).to_scipy()
        matrix = operator @ np.eye(n)
        kfac = operator + damping * aslinearoperator(np.eye(n))
        fisher = ggn.to_scipy() + damping * aslinearoperator(np.eye(n))
        step = -np.linalg.solve(0.5 * (matrix + matrix.T) + damping * np.eye(n), grad)
        assert reference_distance(grad, step, kfac).value < 1e-14
        kfac_step = reference_distance(grad, step, fisher)
        sgd = reference_distance(grad, -grad, fisher)
        # Step by step with an operator that depends on it
        course = reference_course(
            grad=np.stack([grad, grad]), update=np.stack([step, step]), reference=lambda t: (fisher, kfac)[t]
        )
    assert 1e-6 < kfac_step.value < sgd.value
    assert course.value[0, 0] == pytest.approx(kfac_step.value, rel=1e-6)
    assert course.value[1, 0] < 1e-14
    assert course.residual.max() < 1e-10


def test_a_step_that_is_not_finite_is_a_row():
    grad, update = named_run(T=5)
    update["w"][2, 0, 0] = np.nan
    course = reference_course(grad=grad, update=update, reference={"w": np.ones((3, 2)), "b": np.ones(4)})
    assert course.status[2].tolist() == ["nonfinite", "nonfinite", "ok"]
    assert np.isnan(course.value[2, :2]).all()
    assert np.isfinite(course.value[2, 2])
    assert [row["ok"] for row in course.summary()] == [4, 4, 5]
    operator = aslinearoperator(np.eye(10))
    together = reference_course(grad=grad, update=update, reference=operator)
    np.testing.assert_allclose(together.value[:, 0], course.value[:, 0], rtol=1e-9)
    assert pickle.loads(pickle.dumps(course)).blocks == course.blocks
    grad, update = named_run(T=5)
    with pytest.raises(ValueError, match="same blocks"):
        reference_course(grad=grad, update=update, reference=lambda t: operator if t else np.ones(10))
