"""The experiments on small problems: by identities, and against independent computations."""

import gzip
import math
import pickle

import numpy as np
import pytest
import scipy.integrate
import scipy.special

import steepest
from steepest.experiments import feedback_alignment, lti
from steepest.experiments.digits import Digits, load_digits, load_mnist, read_idx
from steepest.experiments.output import write_csv, write_npz

# Linear dynamics


@pytest.fixture(scope="module")
def trajectory():
    return lti.run(n_steps=120)


def test_the_default_system_is_no_gradient_flow(trajectory):
    eigenvalues = np.linalg.eigvals(trajectory.A)
    assert eigenvalues.real.max() < 0
    assert np.abs(eigenvalues.imag).max() > 1  # complex: no constant metric can exist
    np.testing.assert_allclose(trajectory.A.T @ trajectory.P + trajectory.P @ trajectory.A, -np.eye(3), atol=1e-13)
    assert np.linalg.eigvalsh(trajectory.P).min() > 0


def test_trajectory_agrees_with_an_ode_solver(trajectory):
    solution = scipy.integrate.solve_ivp(
        lambda _, theta: trajectory.A @ theta,
        (0.0, trajectory.time[-1]),
        trajectory.state[0],
        t_eval=trajectory.time,
        method="DOP853",
        rtol=1e-12,
        atol=1e-14,
    )
    np.testing.assert_allclose(trajectory.state, solution.y.T, atol=1e-10)


def test_every_step_of_the_trajectory_is_natural_gradient(trajectory):
    assert trajectory.residual.shape == (120,)
    assert trajectory.residual.max() < 1e-10
    assert (np.diff(trajectory.loss) < 0).all()
    for t in (0, 17, 60, 119):
        grad, rate = trajectory.P @ trajectory.state[t], trajectory.A @ trajectory.state[t]
        y = -grad
        cosine = y @ rate / np.linalg.norm(y) / np.linalg.norm(rate)
        assert trajectory.angle[t] == pytest.approx(math.acos(cosine), rel=1e-9)
        dense = np.outer(y, y) / (y @ rate) + (y @ y) / (y @ rate) * (np.eye(3) - np.outer(rate, rate) / (rate @ rate))
        np.testing.assert_allclose(trajectory.eigenvalues[t], np.linalg.eigvalsh(dense), rtol=1e-9)
        assert trajectory.cond[t] == pytest.approx(np.linalg.cond(dense), rel=1e-8)


def test_larger_random_system():
    A = lti.random_system(40, rng=3)
    assert np.linalg.eigvals(A).real.max() == pytest.approx(-0.1, abs=1e-10)
    result = lti.run(A, n_steps=30, rng=4)
    assert result.residual.max() < 1e-10
    assert result.eigenvalues.shape == (30, 3)
    np.testing.assert_allclose(result.cond, result.eigenvalues[:, 2] / result.eigenvalues[:, 0], rtol=1e-10)


def test_curves_are_those_of_eq_9_and_even():
    curves = lti.eigenvalue_curves(101)
    np.testing.assert_allclose(curves.largest, np.tan(np.pi / 4 + np.abs(curves.angle) / 2), rtol=1e-10)
    np.testing.assert_allclose(curves.smallest * curves.largest, 1.0, rtol=1e-12)
    np.testing.assert_allclose(curves.middle * np.cos(curves.angle), 1.0, rtol=1e-12)
    np.testing.assert_allclose(curves.cond, curves.largest / curves.smallest, rtol=1e-12)
    for name, values in curves.to_dict().items():
        if name != "angle":
            np.testing.assert_allclose(values, values[::-1], rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"A": np.ones((3, 2))}, "square"),
        ({"A": -np.eye(2)}, "at least 3 rows"),
        ({"A": np.eye(3)}, "Hurwitz"),
        ({"start": np.zeros(3)}, "nonzero"),
        ({"start": np.ones(4)}, "shape"),
        ({"n_steps": 1}, "at least 2"),
        ({"duration": -1.0}, "positive"),
    ],
)
def test_lti_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        lti.run(**arguments)
    with pytest.raises(ValueError, match="limit"):
        lti.eigenvalue_curves(limit=2.0)


def test_geometry_figure_shows_the_range_of_angles(trajectory):
    pytest.importorskip("matplotlib")
    titles = [panel.get_title() for panel in lti.geometry_figure(trajectory).axes]
    assert len(titles) == 4
    shown = [float(title.split(" = ")[1].split("°")[0]) for title in titles]
    assert shown[0] == pytest.approx(math.degrees(trajectory.angle.min()), abs=0.06)
    assert shown[-1] == pytest.approx(80.0, abs=3.0)
    np.testing.assert_allclose(np.diff(shown), (shown[-1] - shown[0]) / 3, atol=8.0)


# Feedback alignment


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    return load_digits(rng=0)


@pytest.fixture(scope="module")
def result(digits):
    return feedback_alignment.run(digits, n_hidden=32, step_fraction=0.2, rng=1)


def by(result, rule, loss_name):
    return next(t for t in result.trainings if (t.rule, t.loss_name) == (rule, loss_name))


def test_digits_are_split_without_overlap(digits):
    assert len(digits.train_labels) + len(digits.test_labels) == 1797
    assert digits.train_images.min() == 0.0
    assert digits.train_images.max() == 1.0
    assert set(digits.test_labels.tolist()) == set(range(10))
    assert not np.array_equal(load_digits(rng=5).test_images, digits.test_images)
    np.testing.assert_array_equal(load_digits(rng=0).test_images, digits.test_images)


@pytest.mark.parametrize("loss_name", feedback_alignment.LOSSES)
def test_feedback_alignment_learns_and_aligns(result, loss_name):
    training = by(result, "feedback alignment", loss_name)
    assert math.degrees(training.angle[0]) > 75
    assert math.degrees(training.angle[-1]) < 45
    assert math.degrees(training.angle_w1[-1]) < 45
    assert training.feedback_angle[-1] < training.feedback_angle[0] - math.radians(30)
    assert training.final_accuracy > 0.85
    assert training.final_loss < 0.6 * training.loss[0]
    # The output layer follows its own gradient, whatever the feedback.
    np.testing.assert_allclose(training.angle_w2, 0.0, atol=1e-12)
    assert training.gradient_source == "rule"


@pytest.mark.parametrize("loss_name", feedback_alignment.LOSSES)
def test_backpropagation_is_at_zero_degrees(result, loss_name):
    training = by(result, "backpropagation", loss_name)
    np.testing.assert_allclose(training.angle, 0.0, atol=1e-12)
    np.testing.assert_allclose(training.cond, 1.0, rtol=1e-11)
    assert training.n_without_metric == training.n_without_metric_w1 == 0
    assert (np.diff(training.loss) < 0).all()


def test_status_angle_and_cond_are_consistent(result):
    for training in result.trainings:
        ok = training.status == "ok"
        np.testing.assert_array_equal(ok, training.angle < np.pi / 2)
        np.testing.assert_array_equal(np.isnan(training.cond), ~ok)
        sine = np.sin(training.angle[ok])
        np.testing.assert_allclose(training.cond[ok], (1 + sine) / (1 - sine), rtol=1e-6)
        assert training.accuracy_step[-1] == len(training.step)
        assert training.accuracy[-1] == training.final_accuracy


def small_problem(seed=0, n=300, n_inputs=6):
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((n, n_inputs)).astype(np.float32)
    labels = rng.integers(0, 10, n).astype(np.uint8)
    return inputs, labels, rng.standard_normal((10, n_inputs))


def test_squared_loss_is_the_mean_over_images():
    inputs, labels, F = small_problem()
    objective = feedback_alignment._SquaredLoss(inputs, labels)
    value, error = objective(F)
    x, target = inputs.astype(float), np.eye(10)[labels]
    residual = x @ F.T - target
    assert value == pytest.approx(0.5 * (residual**2).sum(axis=1).mean(), rel=1e-12)
    np.testing.assert_allclose(error, residual.T @ x / len(x), atol=1e-12)
    best, _ = objective(objective.minimiser())
    expected = np.linalg.lstsq(x, target, rcond=None)[0]
    assert best == pytest.approx(0.5 * ((x @ expected - target) ** 2).sum(axis=1).mean(), rel=1e-10)


def test_cross_entropy_is_the_mean_over_images(monkeypatch):
    monkeypatch.setattr(feedback_alignment, "_ROWS", 64)  # several blocks, the last one shorter
    inputs, labels, F = small_problem()
    value, error = feedback_alignment._CrossEntropy(inputs, labels)(F)
    logits = inputs.astype(float) @ F.T
    log_p = scipy.special.log_softmax(logits, axis=1)
    assert value == pytest.approx(-log_p[np.arange(len(labels)), labels].mean(), rel=1e-5)
    expected = (np.exp(log_p) - np.eye(10)[labels]).T @ inputs / len(labels)
    np.testing.assert_allclose(error, expected, atol=1e-5)


@pytest.mark.parametrize("rule", feedback_alignment.RULES)
def test_one_step_is_the_rule(rule):
    inputs, labels, _ = small_problem(2)
    objective = feedback_alignment._SquaredLoss(inputs, labels)
    rng = np.random.default_rng(3)
    W1, W2, B = rng.standard_normal((5, 6)), rng.standard_normal((10, 5)), rng.standard_normal((5, 10))
    kept = W1.copy()
    rate, seen = 1e-3, []
    training = feedback_alignment.train(
        objective, (W1, W2), B, rule=rule, loss_name="squared", rate=rate, n_steps=1,
        accuracy=lambda F: float(seen.append(F) or 0.0),
    )  # fmt: skip
    np.testing.assert_array_equal(W1, kept)

    # The gradient by central differences, the update by the definition of the rule.
    def loss(W1, W2):
        return objective(W2 @ W1)[0]

    gradient = []
    for k, array in enumerate((W1, W2)):
        partial = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            values = []
            for sign in (1, -1):
                moved = [W1.copy(), W2.copy()]
                moved[k][index] += sign * 1e-5
                values.append(loss(*moved))
            partial[index] = (values[0] - values[1]) / 2e-5
        gradient.append(partial)
    x, target = inputs.astype(float), np.eye(10)[labels]
    error = (x @ (W2 @ W1).T - target).T @ x / len(x)
    backward = W2.T if rule == "backpropagation" else B
    update = [-rate * backward @ error, -rate * error @ W1.T]
    np.testing.assert_allclose(seen[-1], (W2 + update[1]) @ (W1 + update[0]), rtol=1e-9, atol=1e-12)
    y = -np.concatenate([part.ravel() for part in gradient])
    g = np.concatenate([part.ravel() for part in update])
    cosine = y @ g / np.linalg.norm(y) / np.linalg.norm(g)
    assert math.cos(training.angle[0]) == pytest.approx(cosine, abs=1e-8)
    assert training.status[0] == ("ok" if cosine > 0 else "ascent")


def test_feedback_against_the_gradient_has_no_metric():
    inputs, labels, _ = small_problem(4)
    objective = feedback_alignment._SquaredLoss(inputs, labels)
    rng = np.random.default_rng(5)
    W1, W2 = 0.01 * rng.standard_normal((5, 6)), rng.standard_normal((10, 5))
    training = feedback_alignment.train(
        objective, (W1, W2), -W2.T, rule="feedback alignment", loss_name="squared", rate=1e-6, n_steps=3,
        accuracy=lambda F: 0.0,
    )  # fmt: skip
    assert training.n_without_metric == training.n_without_metric_w1 == 3
    assert (training.status == "ascent").all()
    assert np.isnan(training.cond).all()
    np.testing.assert_allclose(training.feedback_angle, np.pi, atol=1e-3)
    result = feedback_alignment.FeedbackAlignment("none", 300, 1, 6, 5, 1.0, 0.5, (training,))
    pytest.importorskip("matplotlib")
    panels = feedback_alignment.figure(result).axes
    assert "3 of 3 (all weights)" in panels[3].texts[0].get_text()


def test_feedback_alignment_refuses(digits):
    with pytest.raises(ValueError, match="losses must be among"):
        feedback_alignment.run(digits, losses=["hinge"])
    for name in ("n_hidden", "step_fraction", "init_scale"):
        with pytest.raises(ValueError, match=f"{name} must be positive"):
            feedback_alignment.run(digits, **{name: 0})
    inputs, labels, _ = small_problem()
    objective = feedback_alignment._SquaredLoss(inputs, labels)
    weights = (np.ones((5, 6)), np.ones((10, 5)))
    settings = {"loss_name": "squared", "accuracy": lambda F: 0.0}
    with pytest.raises(ValueError, match="rule must be one of"):
        feedback_alignment.train(objective, weights, np.ones((5, 10)), rule="hebb", rate=1.0, n_steps=1, **settings)
    with pytest.raises(ValueError, match="rate and n_steps must be positive"):
        feedback_alignment.train(
            objective, weights, np.ones((5, 10)), rule="backpropagation", rate=0.0, n_steps=1, **settings
        )
    with (
        np.errstate(all="ignore"),
        pytest.raises(ValueError, match=r"diverged at step \d+ .* lower the rate"),
    ):
        feedback_alignment.train(
            objective, weights, np.ones((5, 10)), rule="backpropagation", rate=100.0, n_steps=50, **settings
        )


def test_progress_is_told_every_step(digits):
    seen = []
    feedback_alignment.run(
        digits, losses=["squared"], step_fraction=0.001, rng=0, progress=lambda *news: seen.append(news)
    )
    assert seen[0] == ("feedback alignment, squared loss", 1, 3)
    assert seen[-1] == ("backpropagation, squared loss", 3, 3)


def test_results_pickle_and_seed_fixes_them(digits):
    runs = [feedback_alignment.run(digits, losses=["squared"], step_fraction=0.01, rng=7) for _ in range(2)]
    for a, b in zip(runs[0].trainings, pickle.loads(pickle.dumps(runs[1])).trainings, strict=True):
        np.testing.assert_array_equal(a.angle, b.angle)
    assert runs[0].to_dict()["trainings"][0]["rule"] == "feedback alignment"


# IDX files


def idx(array, *, code=0x08, ndim=None):
    array = np.asarray(array, dtype=np.uint8)
    head = bytes([0, 0, code, array.ndim if ndim is None else ndim])
    return head + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


IMAGES = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
LABELS = np.array([3, 1, 4, 1, 9], dtype=np.uint8)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_read_idx(tmp_path, pack):
    path = tmp_path / "file"  # the name does not say whether it is compressed
    path.write_bytes(pack(idx(IMAGES)))
    np.testing.assert_array_equal(read_idx(path, ndim=3), IMAGES)
    path.write_bytes(pack(idx(LABELS)))
    np.testing.assert_array_equal(read_idx(str(path), ndim=1), LABELS)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected it to begin with 00000803, got $"),
        (b"\x89PNG\r\n\x1a\n", "expected it to begin with 00000803, got 89504e47"),
        (idx(IMAGES, code=0x0D), "got 00000d03"),
        (idx(LABELS), "got 00000801"),
        (idx(IMAGES)[:9], "ends within its header: expected 16 bytes, got 9"),
        (idx(IMAGES)[:-1], "expected 60 bytes after the header, got only 59"),
        (idx(IMAGES) + b"\0", "expected 60 bytes after the header, got more"),
        (b"\0\0\x08\x03" + b"\xff" * 12 + b"1234", "got only 4"),
    ],
)
def test_read_idx_refuses(tmp_path, pack, content, message):
    path = tmp_path / "file"
    path.write_bytes(pack(content))
    with pytest.raises(ValueError, match=message):
        read_idx(path, ndim=3)


def test_read_idx_refuses_damaged_gzip(tmp_path):
    path = tmp_path / "file.gz"
    packed = gzip.compress(idx(np.random.default_rng(0).integers(0, 256, (50, 10, 10))))
    for content in (packed[:-20], packed[:200] + b"\0" * 40 + packed[240:], packed[:10] + b"\xff" * 50):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged gzip"):
            read_idx(path, ndim=3)


def write_mnist(folder, *, train=(IMAGES, LABELS), test=(IMAGES[:2], LABELS[:2])):
    """The four files, the labels compressed."""
    for part, (images, labels) in (("train", train), ("t10k", test)):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))


def test_load_mnist(tmp_path):
    write_mnist(tmp_path)
    data = load_mnist(tmp_path)
    assert isinstance(data, Digits)
    assert data.train_images.dtype == np.float32
    np.testing.assert_allclose(data.train_images, IMAGES.reshape(5, 12) / 255.0, rtol=1e-6)
    np.testing.assert_array_equal(data.test_labels, LABELS[:2])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train": (IMAGES, LABELS[:4])}, "got 5 images .* and 4 labels"),
        ({"test": (IMAGES[:0], LABELS[:0])}, "at least one"),
        ({"test": (IMAGES[:, :3], LABELS)}, "of one size, got 12 and 9 pixels"),
        ({"train": (IMAGES, LABELS + 1)}, "expected labels 0 to 9, got 10"),
    ],
)
def test_load_mnist_refuses(tmp_path, files, message):
    write_mnist(tmp_path, **files)
    with pytest.raises(ValueError, match=message):
        load_mnist(tmp_path)


def test_load_mnist_names_the_missing_files(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"no t10k-images-idx3-ubyte .*train-images-idx3-ubyte, train-labels"):
        load_mnist(tmp_path)


# Files


def test_csv_reads_back_exactly(tmp_path):
    values = np.array([1 / 3, math.nan, 1e-300])
    path = write_csv(tmp_path / "t.csv", {"name": ["a", "b", "c"], "value": values, "k": np.arange(3)})
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "name,value,k"
    assert lines[2] == "b,,1"
    assert [float(line.split(",")[1]) for line in (lines[1], lines[3])] == [1 / 3, 1e-300]
    with pytest.raises(ValueError, match="columns of one length"):
        write_csv(path, {"a": [1], "b": [1, 2]})


def test_npz_holds_no_objects(tmp_path):
    with pytest.raises(TypeError, match="Python objects in \\['bad'\\]"):
        write_npz(tmp_path / "t.npz", {"good": 1.0, "bad": np.array([None])})
    assert not (tmp_path / "t.npz").exists()


def test_written_numbers_are_the_result(tmp_path, result, trajectory):
    curves = lti.eigenvalue_curves(11)
    paths = [*feedback_alignment.write(result, tmp_path), *lti.write(trajectory, curves, tmp_path)]
    assert all(path.stat().st_size > 0 for path in paths)
    with np.load(tmp_path / "feedback_alignment.npz", allow_pickle=False) as stored:
        training = by(result, "feedback alignment", "squared")
        np.testing.assert_array_equal(stored["feedback_alignment_squared_angle"], training.angle)
        assert str(stored["dataset"]) == "digits 8x8"
    with np.load(tmp_path / "lti.npz", allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["state"], trajectory.state)
        np.testing.assert_array_equal(stored["curves_cond"], curves.cond)
    table = np.genfromtxt(tmp_path / "lti.csv", delimiter=",", names=True)
    np.testing.assert_array_equal(table["residual"], trajectory.residual)
    with (tmp_path / "feedback_alignment.csv").open(encoding="utf-8") as stream:
        assert sum(1 for _ in stream) == 1 + sum(len(t.step) for t in result.trainings)


def test_metric_of_a_recorded_step_is_the_one_reported(trajectory):
    """What the experiment reports is what a user gets from its stored state."""
    t = 30
    M = steepest.metric(trajectory.P @ trajectory.state[t], trajectory.A @ trajectory.state[t])
    assert M.cond() == pytest.approx(trajectory.cond[t], rel=1e-9)
