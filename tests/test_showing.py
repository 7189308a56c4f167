"""What notebooks show of runs, evaluations, comparisons and advice: cards, figures, tables."""

import dataclasses
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import headstart
from headstart.canvas import draw_confusion, draw_curves
from headstart.cards import make_card, make_table, paint_confusion
from headstart.frames import make_frame
from headstart.metrics import UNDEFINED, ClassFigures, Estimate
from headstart.mistakes import list_weak
from headstart.runs.documents import Measured
from headstart.runs.sources import find_images

HOSTILE = ("<img src=x onerror=alert(1)>", "\x1b[31mred\u202e", "$\\frac{1}{0}$", "&amp;\"'")
MOST_BYTES = 50_000


class Reader(HTMLParser):
    """Names of elements, and the text between them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        assert not [
            n for n, _ in attrs if n.startswith("on") or n in ("src", "href", "class", "id")
        ]
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def read(shown):
    html = shown._repr_html_()
    assert len(html.encode()) < MOST_BYTES
    page = Reader(html)
    assert set(page.tags) <= {
        "div", "strong", "table", "tr", "th", "td", "svg", "rect", "path", "title",
    }  # fmt: skip
    return page


@pytest.fixture(scope="module")
def evaluation(tiny_run, photos):
    return headstart.evaluate(tiny_run, photos, split="train")


@pytest.fixture(scope="module")
def hostile(tiny_run, evaluation):
    """An evaluation in which all is wrong, of classes with such names."""
    confusion = np.roll(np.eye(4, dtype=np.int64) * 3, 1, axis=1)
    labels = np.repeat(np.arange(4), 3)
    probabilities = np.roll(np.eye(4, dtype=np.float32), 1, axis=1)[labels]
    ids = tuple(f"{name}/{n}.png" for name in HOSTILE for n in range(3))
    zero = Estimate(0.0, 0.0, 0.56)
    figures = ClassFigures(3, zero, zero, zero, UNDEFINED, UNDEFINED)
    return dataclasses.replace(
        evaluation,
        classes=HOSTILE,
        metrics={"accuracy": Estimate(0.5, 0.1, 0.9), "log_loss": UNDEFINED},
        per_class=dict.fromkeys(HOSTILE, figures),
        confusion=confusion,
        measured=Measured(probabilities, labels, ids, "test", HOSTILE),
        warnings=HOSTILE,
        dataset=None,
    )


# ---------------------------------------------------------------- cards


def test_a_card_of_a_run_has_its_figures_and_opens_no_image(run, photos):
    loaded = headstart.Run.load(run.folder)
    page = read(loaded)
    e = run.metrics["accuracy"]
    assert "linear-probe on tf_efficientnet_lite0" in page.text
    assert f"accuracy{e.value:.3f}{e.low:.3f} to {e.high:.3f}" in page.text
    assert str(run.folder) in page.text
    assert read(loaded).text == page.text


def test_a_card_shows_what_is_left_of_a_run(run):
    bare = dataclasses.replace(run, metrics={}, per_class={}, measured_on="", warnings=("<b>",))
    bare = dataclasses.replace(bare, parts=dataclasses.replace(run.parts, measured=lambda: None))
    assert "warning: <b>" in read(bare).text

    def damaged():
        raise headstart.InputError("predictions.safetensors: damaged")

    parts = dataclasses.replace(run.parts, measured=damaged)
    page = read(dataclasses.replace(run, parts=parts))
    assert "accuracy" in page.text


def test_hostile_names_are_text(hostile):
    page = read(hostile)
    assert HOSTILE[0] in page.text
    assert f"{HOSTILE[2]} taken for {HOSTILE[3]}" in page.text
    assert "\\x1b[31mred\\u202e" in page.text
    assert not {"\x1b", "\u202e"} & set(page.text)


def test_cards_of_evaluation_comparison_advice_and_audit(
    evaluation, advice, run, tiny_run, photos, loose, network
):
    assert "24 images, the split train" in read(evaluation).text
    assert f"advice: {advice.chosen.name}" in read(advice).text
    found = headstart.compare([str(run.folder), str(tiny_run.folder)], test=photos)
    assert found.conclude() in read(found).text
    audit = headstart.audit(loose, **network)
    assert f"{len(audit.dataset)} images" in read(audit).text


def test_a_card_is_bounded_whatever_it_is_of():
    rows = [["n" * 100_000, str(k)] for k in range(5_000)]
    html = make_card("t" * 100_000, ["line"], [make_table(("", ""), rows)])
    assert len(html) < MOST_BYTES
    assert "4,976 more" in html
    assert paint_confusion(np.eye(1000, dtype=np.int64), ["c"] * 1000) == ""


# ---------------------------------------------------------------- figures


def test_figures_leave_pyplot_alone_and_a_notebook_shows_them(evaluation, run):
    code = (
        "import sys, headstart, numpy as np\n"
        f"run = headstart.Run.load({str(run.folder)!r})\n"
        "run._repr_html_(), run.plot_confusion()\n"
        "print([n for n in ('torch', 'matplotlib.pyplot') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert (done.stdout, done.stderr) == ("[]\n", "")
    formatter = pytest.importorskip("IPython.core.formatters").DisplayFormatter()
    figure = evaluation.plot_confusion()
    assert isinstance(figure, Figure)
    shown, _ = formatter.format(figure)
    assert shown["image/png"].startswith(b"\x89PNG")
    assert formatter.format(evaluation)[0]["text/html"] == evaluation._repr_html_()


def test_a_confusion_matrix_has_its_counts_and_names(hostile):
    figure = hostile.plot_confusion()
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.texts] == ["3"] * 4
    assert axes.get_xticklabels()[0].get_text().startswith("<img")
    assert figure._repr_png_()  # no letter is read as mathematics
    many = draw_confusion(np.eye(200, dtype=np.int64), ["c"] * 200)
    assert not many.axes[0].texts


def test_curves_have_what_the_epochs_have(run):
    history = [{"epoch": 0, "val_loss": 1.0, "val_accuracy": 0.5}]
    history += [
        {"epoch": k, "train_loss": 1 / k, "val_loss": None, "train_accuracy": 0.5} for k in (1, 2)
    ]
    loss, _ = draw_curves(history, 1).axes
    assert [line.get_xdata().tolist() for line in loss.lines[:2]] == [[1, 2], [0]]
    with pytest.raises(headstart.InputError, match="has no epochs to plot; linear-probe is fitted"):
        run.plot_curves()


def test_mistakes_are_read_again_and_only_if_they_are_those_measured(plant, tiny, tmp_path):
    photos = plant(tmp_path / "photos", {f"{part}/{k}": 6 for part in ("train", "val")
                                         for k in ("blobs", "plain")})  # fmt: skip
    swapped = photos / "val" / "moved"
    (photos / "val" / "blobs").rename(swapped)
    (photos / "val" / "plain").rename(photos / "val" / "blobs")
    swapped.rename(photos / "val" / "plain")
    run = headstart.fit(photos, tmp_path / "run", **tiny)
    wrong = int((~run.to_frame()["right"]).sum())
    assert wrong > 2
    figure = headstart.Run.load(run.folder).plot_mistakes(2)
    assert len([a for a in figure.axes if a.images]) == 2
    assert figure.axes[0].texts[0].get_text().startswith("true: ")
    evaluated = headstart.evaluate(run, photos, split="val")
    assert len([a for a in evaluated.plot_mistakes().axes if a.images]) == min(16, wrong)
    for image in (photos / "val").glob("*/*.png"):
        image.write_bytes(b"secret")
    with pytest.raises(headstart.InputError, match="have changed or cannot be read; evaluate the"):
        run.plot_mistakes()
    (photos / "val").rename(tmp_path / "elsewhere")
    with pytest.raises(headstart.InputError, match="are not where the run found them"):
        run.plot_mistakes()
    with pytest.raises(headstart.UsageError, match="most must be at least 1, got 0"):
        run.plot_mistakes(0)


def test_what_was_not_measured_is_not_drawn(run):
    parts = dataclasses.replace(run.parts, measured=lambda: None)
    bare = dataclasses.replace(run, parts=parts)
    for name in ("plot_confusion", "plot_mistakes"):
        with pytest.raises(headstart.InputError, match=f"nothing was measured; .* {name} of that"):
            getattr(bare, name)()
    assert len(bare.to_frame()) == 0
    several = dataclasses.replace(run, problem="multi-label")
    with pytest.raises(headstart.UsageError, match="plot_mistakes is of one label an image"):
        several.plot_mistakes()


# ---------------------------------------------------------------- tables


def test_a_frame_has_a_row_for_each_measured_image(run, evaluation):
    frame = run.to_frame()
    assert list(frame["image"]) == list(run.measured.ids)
    assert frame["right"].mean() == pytest.approx(run.metrics["accuracy"].value)
    assert set(frame["true"]) == set(run.classes)
    highest = run.measured.probabilities.max(axis=1)
    np.testing.assert_array_equal(frame["probability"], highest)
    assert (frame["of_true"] <= frame["probability"]).all()
    assert len(evaluation.to_frame()) == 24


def test_frames_of_advice_and_comparison(advice, run, tiny_run, photos):
    frame = advice.to_frame()
    assert list(frame["chosen"]) == [True] + [False] * len(advice.others)
    assert frame["way"][0] == advice.chosen.name
    found = headstart.compare([str(run.folder), str(tiny_run.folder)], test=photos)
    assert list(found.to_frame()["contender"]) == [c.name for c in found.contenders]


def test_a_frame_without_pandas_names_the_extra(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(headstart.UsageError, match=r"pip install 'headstart\[frames\]'"):
        run.to_frame()


# ---------------------------------------------------------------- the weak classes


def figures(value, low, high, images=10):
    recall = Estimate(value, low, high)
    return ClassFigures(images, UNDEFINED, recall, UNDEFINED, UNDEFINED, UNDEFINED)


def test_the_weak_classes_are_those_clearly_below_or_else_the_lowest():
    metrics = {"accuracy": Estimate(0.8, 0.7, 0.9)}
    of = {"a": figures(0.9, 0.8, 1.0), "b": figures(0.7, 0.5, 0.85), "c": figures(0.6, 0.4, 0.9)}
    weak = list_weak(metrics, of, "single-label")
    assert [(w.name, w.is_clear) for w in weak] == [("c", False), ("b", False)]
    of |= {"d": figures(0.3, 0.1, 0.5), "e": figures(float("nan"), float("nan"), float("nan"), 0)}
    assert [(w.name, w.is_clear) for w in list_weak(metrics, of, "single-label")] == [("d", True)]
    assert list_weak({}, of, "single-label") == []


def test_names_that_are_no_text_are_escaped_in_tables():
    frame = make_frame({"image": ["a\udcff.png"], "true": [("x\ud800",)], "p": np.float32([0.5])})
    assert frame["image"][0] == "a\\udcff.png"
    assert frame["true"][0] == ("x\\ud800",)
    assert frame["p"].dtype == np.float32


def test_images_below_a_name_that_cannot_be_are_gone(tiny_run):
    far = Path("/" + "a" * 100_000)
    assert find_images(tiny_run.measured, None, far, headstart.Settings()) is None
