"""The report: one page that needs nothing else, says what the numbers say, and shows names as they are."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

import steepest
from steepest.report import report
from steepest.report.facts import facts
from steepest.report.page import MAX_BYTES
from steepest.report.words import degrees, number, share
from test_plot_course import momentum_run, repeated

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

EVIL = "<script>alert('x')</script> & \"q\" $a$"
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """What the page holds; fails where its elements do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.loads, self.text = [], [], [], []
        self.tags: dict[str, int] = {}
        self.feed(text)
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self._note(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self._note(tag, attrs)

    def _note(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
                self.loads.append(value)
            assert not name.startswith("on"), f"{tag} {name}"

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


def written(analysis, tmp_path, **options):
    path = report(analysis, tmp_path / "report.html", **options)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert path.stat().st_size < MAX_BYTES
    # Nothing is loaded from anywhere: references lead into the page, or hold their data themselves.
    assert all(load.startswith(("#", "data:")) for load in page.loads)
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", text)
    assert "default-src 'none'" in text
    # Every id is there once, and every reference has its target.
    assert len(page.ids) == len(set(page.ids))
    targets = {load[1:] for load in page.loads if load.startswith("#")} | set(re.findall(r"url\(#([^)]*)\)", text))
    assert targets <= set(page.ids)
    return page, text, " ".join(" ".join(page.text).split())


@pytest.fixture(scope="module")
def analysis():
    runs = {
        "heavy ball": momentum_run(80, skip_at=(9,)),
        EVIL: momentum_run(40, seed=1, beta=0.0, gradient_source="evaluation"),
    }
    return steepest.analyze(runs)


def test_one_page_of_words_tables_and_figures(analysis, tmp_path):
    page, _, words = written(analysis, tmp_path)
    found = facts(analysis.runs["heavy ball"])["(all)"]
    run = analysis.runs["heavy ball"]
    ok = int(np.sum(run["status"][:, 0] == "ok"))
    assert f"At {ok} of 80 steps ({share(ok / 80)}) the update points downhill" in words
    assert f"typically {degrees(np.degrees(np.nanmedian(run['psi'][:, 0])))}" in words
    assert f"{share(float(np.nanmean(run['effective'])))} of the {found.windows} windows" in words
    assert "the training loop skipped the step (1)" in words
    assert "Angles against different gradients are not comparable" in words
    assert page.tags["svg"] >= 5 + 2 * 2 + 2 * 2  # side by side, of each run, of each block
    assert page.tags["table"] == 3
    assert page.tags["details"] == 4 + 2  # of each block, and the notes of each run
    for name in ("w", "_b$1"):
        assert name in words
    for note in [note for run in analysis.runs.values() for note in run.notes]:
        assert " ".join(note.split()) in words
    build = steepest.build_config()
    for value in (build["version"], build["compiler"], build["instruction_set"], np.__version__):
        assert value in words


def test_constant_geometries_are_shown_with_their_scores(tmp_path):
    from steepest.identify import identify

    rng = np.random.default_rng(0)
    grad = rng.standard_normal((80, 4))
    recording = steepest.recording(grad=grad, update=-grad / [1.0, 2.0, 4.0, 8.0])
    analysis = steepest.analyze(recording)
    _, _, before = written(analysis, tmp_path)
    assert "steepest.identify" in before  # what is missing, and how to get it
    analysis.identified["run"] = [identify(recording, family, rng=0) for family in ("scalar", "diagonal")]
    _, _, words = written(analysis, tmp_path)
    # The diagonal metric is exact; the best multiple of the identity is m = sum y.g / sum g.g, scored by hand.
    assert (
        "(a diagonal metric), fitted to the first 60 steps, accounts for 100% of the gradient at the 20 steps" in words
    )
    y, g = -grad, -grad / [1.0, 2.0, 4.0, 8.0]
    m = (y[:60] * g[:60]).sum() / (g[:60] ** 2).sum()
    r2 = 1.0 - ((y[60:] - m * g[60:]) ** 2).sum() / (y[60:] ** 2).sum()
    assert f"(R² = {r2:.3f}," in words
    assert "1 to 8" in words
    noise = steepest.recording(grad=grad, update=rng.standard_normal((80, 4)))
    analysis = steepest.analyze(noise)
    analysis.identified["run"] = [identify(noise, "scalar", rng=0)]
    assert "does not predict the gradient at the 20 steps after them" in written(analysis, tmp_path)[2]
    assert "steepest.identify" not in words


def test_gradient_descent_is_said_to_be_euclidean(tmp_path):
    _, _, words = written(steepest.analyze(momentum_run(20, beta=0.0), pair="continuous"), tmp_path)
    assert "The ordinary Euclidean geometry explains such a step" in words
    assert "Plain gradient descent is at 0° by construction" in words


def test_candidates_are_runs(tmp_path):
    theta = 0.9 ** np.arange(20.0)[:, None] * [1.0, 2.0]
    grads = {"error": theta, "energy": -theta}
    recording = steepest.recording(params=theta, grad=grads, loss={"error": theta[:, 0], "energy": -theta[:, 0]})
    _, _, words = written(steepest.analyze(recording), tmp_path)
    assert "(candidate: error)" in words
    assert "At 0 of 20 steps (0%) the update points downhill" in words


def test_names_are_text_never_markup(analysis, tmp_path):
    page, text, words = written(analysis, tmp_path, title=f"Title {EVIL}")
    assert page.tags["script"] == 1  # the one that switches the colours
    assert f"Title {EVIL}" in words
    assert "<script>alert" not in text
    # In the figures too, where neither a formula nor markup is made of it.
    legends = re.findall(r"<text[^>]*>([^<]*)</text>", text)
    assert any("alert" in legend for legend in legends)


def test_the_page_is_the_same_for_the_same_analysis(analysis, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    first, second = (report(analysis, tmp_path / f"{k}.html").read_bytes() for k in range(2))
    assert first == second
    assert b"1970-01-02 00:00 UTC" in first


def test_colours_follow_the_page(analysis, tmp_path):
    _, text, _ = written(analysis, tmp_path)
    assert "prefers-color-scheme: dark" in text
    figures = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert "currentColor" in figures
    assert not re.search(r"(stroke|fill): #(000000|010203|0072b2|d55e00|6e6e6e)", figures)


def test_large_recordings_fit(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"layers.{layer}.attention.projection.weight" for layer in range(60)]
    grad = {name: rng.standard_normal((40, 3)) for name in names}
    update = {name: -np.abs(rng.standard_normal((40, 3))) * grad[name] for name in names}
    wide = steepest.recording(grad=grad, update=update)
    long = repeated(momentum_run(100), 300)
    analysis = steepest.analyze({f"run {k}": (wide, long)[k % 2] for k in range(6)}, pair="continuous")
    page, _, words = written(analysis, tmp_path)
    assert page.tags["table"] == 1 + 6
    assert names[-1] in words


def test_without_gradients_it_says_what_is_missing(tmp_path):
    losses = np.array([3.0, 2.0, 2.5, 1.0, 0.5])
    silent = steepest.recording(params=np.arange(10.0).reshape(5, 2), loss=losses)
    _, _, words = written(steepest.analyze(silent), tmp_path)
    assert "No step has an angle" in words
    assert "The loss fell over 75.0% of the 4 windows" in words
    empty = steepest.Recording(silent.info, silent.rows[:0])
    assert "0 steps" in written(steepest.analyze(empty), tmp_path)[2]
    nothing = steepest.recording(params=np.arange(10.0).reshape(5, 2))
    _, _, words = written(steepest.analyze(nothing), tmp_path)
    assert "Whether the rule lowered the loss is not known" in words


def test_refusals(tmp_path, monkeypatch):
    with pytest.raises(TypeError, match="expected an Analysis, got dict"):
        report({}, tmp_path / "x.html")
    import sys

    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r'pip install "steepest\[report\]"'):
        report(steepest.analyze(momentum_run(3)), tmp_path / "x.html")


def test_numbers_as_text():
    assert [degrees(x) for x in (0.0, 1e-7, 45.0, 89.99, 90.0, np.nan)] == [
        "0.0°",
        "1e-07°",
        "45.0°",
        "89.99000°",
        "90.0°",
        "–",
    ]
    assert [share(x) for x in (0.0, 1e-5, 0.5, 0.99999, 1.0, np.nan)] == ["0%", "<0.1%", "50.0%", ">99.9%", "100%", "–"]
    assert [number(x) for x in (12345, 1234.5, np.inf, np.nan)] == ["12\u2009345", "1.23e+03", "∞", "–"]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
@pytest.mark.parametrize(("width", "scheme"), [(1280, 1), (1280, 0), (500, 1), (500, 0)], ids=str)
def test_in_a_browser(analysis, tmp_path, width, scheme):
    path = report(analysis, tmp_path / "report.html")
    probe = (
        "<script>var d = document.documentElement;"
        "document.body.dataset.probe = [d.scrollWidth <= d.clientWidth, getComputedStyle(document.body).color,"
        "document.querySelectorAll('svg').length].join('|');</script></body>"
    )
    page = path.read_text(encoding="utf-8").replace("</body>", probe)
    path.write_text(page, encoding="utf-8")
    done = subprocess.run(
        [
            "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}", f"--blink-settings=preferredColorScheme={scheme}",
            f"--window-size={width},900", "--dump-dom", path.as_uri(),
        ],
        capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr  # no message of any kind, so no error
    fits, ink, figures = re.search(r'data-probe="([^"]*)"', done.stdout)[1].split("|")
    assert fits == "true"  # no sideways scrolling of the page
    bright = int(re.search(r"\d+", ink)[0]) > 128
    assert bright == (scheme == 0)
    assert int(figures) >= 9
