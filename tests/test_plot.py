"""The geometry picture against dense linear algebra in the full space."""

import math
import subprocess
import sys

import numpy as np
import pytest

import steepest
from steepest import plot

ANGLES = [0.0, 1e-3, 20.0, 60.0, 85.0, 89.9]


@pytest.fixture(autouse=True)
def no_display():
    """Draw without a display, and close what pyplot opened."""
    pytest.importorskip("matplotlib").use("Agg")
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def pair(degrees, n=7, seed=0, grad_norm=3.0, update_norm=0.02):
    """(grad, update) in general position, at an angle of `degrees` between -grad and update."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, 2)))
    psi = math.radians(degrees)
    return -grad_norm * q[:, 0], update_norm * (math.cos(psi) * q[:, 0] + math.sin(psi) * q[:, 1])


def plane_basis(grad, update):
    """The orthonormal basis of the picture, as columns."""
    first = -grad / np.linalg.norm(grad)
    second = update - first * (first @ update)
    return np.column_stack([first, second / np.linalg.norm(second)])


def dense_metric(grad, update, alpha):
    """Eq (8), formed."""
    y, g = -grad, update
    return np.outer(y, y) / (y @ g) + alpha * (np.eye(len(y)) - np.outer(g, g) / (g @ g))


@pytest.mark.parametrize("degrees", ANGLES[1:])
@pytest.mark.parametrize("ratio", [1e-2, 1.0, 30.0])
def test_picture_agrees_with_the_dense_metric(degrees, ratio):
    grad, update = pair(degrees)
    rho = np.linalg.norm(grad) / np.linalg.norm(update)
    alpha = ratio * rho / math.cos(math.radians(degrees))
    data = plot.geometry_data(steepest.metric(grad, update, alpha=alpha))
    dense = dense_metric(grad, update, alpha) / rho
    basis = plane_basis(grad, update)

    # The whole boundary lies on the ball of the dense metric, and the axes are its eigenvectors.
    points = data.ball @ basis.T
    np.testing.assert_allclose(np.einsum("pi,ij,pj->p", points, dense, points), 1.0, rtol=2e-7)
    axes = basis @ data.eigenvectors
    scale = np.linalg.norm(dense, 2)
    np.testing.assert_allclose(dense @ axes, axes * data.eigenvalues, atol=1e-9 * scale)
    np.testing.assert_allclose(data.eigenvectors.T @ data.eigenvectors, np.eye(2), atol=1e-12)
    assert data.alpha == pytest.approx(alpha / rho, rel=1e-10)


@pytest.mark.parametrize("degrees", ANGLES)
def test_the_touching_point_is_on_the_ball_and_on_the_update_ray(degrees):
    grad, update = pair(degrees)
    data = plot.geometry_data(steepest.align(grad, update))
    psi = math.radians(degrees)

    # On the ray of the update.
    ray = np.array([math.cos(psi), math.sin(psi)])
    np.testing.assert_allclose(data.touch / np.linalg.norm(data.touch), ray, atol=1e-10)
    # On the ball of the condition-optimal metric, alpha = y.y/(y.g), formed.
    rho = np.linalg.norm(grad) / np.linalg.norm(update)
    dense = dense_metric(grad, update, (grad @ grad) / -(grad @ update)) / rho
    point = np.linalg.norm(data.touch) * update / np.linalg.norm(update)
    assert point @ dense @ point == pytest.approx(1.0, rel=1e-9)
    # No point of the ball goes further along -grad, found by search over its boundary.
    fine = plot.geometry_data(steepest.align(grad, update), n_points=20001)
    furthest = fine.ball[np.argmax(fine.ball[:, 0])]
    assert furthest[0] <= data.touch[0] * (1 + 1e-9)
    assert furthest[0] == pytest.approx(data.touch[0], rel=1e-3)
    # The level line is perpendicular to grad and passes through it.
    np.testing.assert_array_equal(data.level_line[:, 0], data.touch[0])
    assert data.level_line[0, 1] < data.touch[1] < data.level_line[1, 1]


def test_eigenvalues_are_those_of_eq_9():
    data = plot.geometry_data(steepest.align(*pair(60.0)))
    tangent = math.tan(math.pi / 4 + math.radians(60.0) / 2)
    np.testing.assert_allclose(data.eigenvalues, [1 / tangent, tangent], rtol=1e-12)
    assert data.alpha == pytest.approx(2.0, rel=1e-12)


def test_the_picture_does_not_depend_on_the_learning_rate():
    grad, update = pair(50.0)
    one, other = (plot.geometry_data(steepest.align(grad, scale * update)) for scale in (1.0, 1e-30))
    np.testing.assert_allclose(one.ball, other.ball, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(one.touch, other.touch, rtol=1e-12)


@pytest.mark.parametrize("degrees", [20.0, 75.0])
def test_inverse_metric_is_drawn_as_the_metric_of_the_swapped_pair(degrees):
    grad, update = pair(degrees)
    data = plot.geometry_data(steepest.metric(grad, update, alpha=900.0).inv())
    dense = np.linalg.inv(dense_metric(grad, update, 900.0))
    basis = plane_basis(-update, -grad)
    points = data.ball @ basis.T
    rho = np.linalg.norm(update) / np.linalg.norm(grad)
    np.testing.assert_allclose(np.einsum("pi,ij,pj->p", points, dense / rho, points), 1.0, rtol=1e-9)


def test_one_and_two_parameters():
    data = plot.geometry_data(steepest.metric(np.array([2.0]), np.array([-0.1])))
    np.testing.assert_allclose(data.eigenvalues, [1.0, 1.0])
    grad, update = pair(40.0, n=2)
    flat = plot.geometry_data(steepest.metric(grad, update))
    np.testing.assert_allclose(flat.ball, plot.geometry_data(steepest.align(grad, update)).ball, atol=1e-12)


def test_draws_on_new_and_on_given_axes():
    import matplotlib.pyplot as plt

    alignment = steepest.align(*pair(45.0))
    ax = plot.geometry(alignment)
    assert "45" in ax.get_title()
    assert "5.83" in ax.get_title()
    assert {text.get_text() for text in ax.texts} >= {"update", r"$-$grad"}
    ax.figure.canvas.draw()

    _, given = plt.subplots()
    assert plot.geometry(steepest.metric(*pair(45.0)), given) is given
    row = plot.geometry([steepest.align(*pair(degrees)) for degrees in (10.0, 50.0, 80.0)])
    assert [panel.get_title().split("°")[0][-2:] for panel in row] == ["10", "50", "80"]
    _, grid = plt.subplots(2, 1)
    drawn = plot.geometry([alignment, alignment], ax=grid)
    assert list(drawn) == list(grid)


def test_refusals():
    grad, update = pair(45.0)
    with pytest.raises(ValueError, match="status 'ascent'"):
        plot.geometry(steepest.align(grad, -update))
    with pytest.raises(ValueError, match="status 'zero_update'"):
        plot.geometry_data(steepest.align(grad, 0.0 * update))
    with pytest.raises(ValueError, match="n_points must be at least 5, got 4"):
        plot.geometry_data(steepest.align(grad, update), n_points=4)
    with pytest.raises(TypeError, match="got dict"):
        plot.geometry({"grad": grad})
    with pytest.raises(TypeError, match="without"):
        plot.geometry(steepest.metric(grad, update).sqrt())
    with pytest.raises(TypeError, match="base"):
        plot.geometry(steepest.metric(grad, update, base=np.arange(1.0, 8.0)))
    with pytest.raises(ValueError, match="empty"):
        plot.geometry([])
    with pytest.raises(ValueError, match="expected 2 axes"):
        plot.geometry([steepest.align(grad, update)] * 2, ax=[None])


def test_a_failing_row_draws_nothing():
    import matplotlib.pyplot as plt

    grad, update = pair(45.0)
    _, axes = plt.subplots(1, 2)
    with pytest.raises(ValueError, match="ascent"):
        plot.geometry([steepest.align(grad, update), steepest.align(grad, -update)], ax=axes)
    assert not axes[0].lines


def test_importing_the_package_does_not_import_matplotlib():
    code = "import sys, steepest, steepest.plot; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "steepest\[plot\]"'):
        plot.geometry(steepest.align(*pair(45.0)))
