"""The report of a run: its page, its figures, and that nothing from outside gets into it but as text."""

import base64
import csv
import hashlib
import html
import io
import json
import os
import re
import shlex
import shutil
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import headstart
from headstart.mistakes import list_confusions
from headstart.publish.findings import (
    choose_classes,
    judge,
    list_doubtful,
    list_right,
    list_worst,
    measure_bins,
    project,
)
from headstart.publish.pictures import GRID, Album, find_evidence
from headstart.publish.reporting import name_page
from headstart.runs.documents import Measured
from headstart.runs.sources import find_images

HOSTILE = (
    "<script>alert(1)<-script>",
    "{{ 7 * 7 }}{% raw %}",
    "</title><img src=x onerror=alert(1)>".replace("/", "-"),
    "\x1b[31mred\u202eesrever",
    "' onmouseover='alert(1)",
    '" style="x:y',
    "=cmd()&amp;<b>",
)


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.text = [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture(scope="module")
def measured():
    probabilities = np.array(
        [[0.9, 0.1, 0], [0.2, 0.8, 0], [0.5, 0.45, 0.05], [0, 0.3, 0.7], [0.05, 0.9, 0.05]],
        dtype=np.float32,
    )
    labels = np.array([0, 0, 0, 2, 2])
    return Measured(probabilities, labels, tuple("abcde"), "val", ("x", "y", "z"))


@pytest.fixture(scope="module")
def hostile(paint, tiny, tmp_path_factory):
    """A run on classes and files of hostile names, and the report of it."""
    root = tmp_path_factory.mktemp("hostile")
    for number, name in enumerate(HOSTILE):
        (root / "data" / name).mkdir(parents=True)
        for k in range(9):
            picture = Image.fromarray(paint("plain" if number % 2 else "blobs", 100 * number + k))
            picture.save(root / "data" / name / f"{HOSTILE[k % len(HOSTILE)]}{k}.png")
    run = headstart.fit(root / "data", root / "run", **tiny)
    return run, headstart.report(run, figures=True)


@pytest.fixture(scope="module")
def written(tiny_run, tmp_path_factory):
    return headstart.report(tiny_run, None, tmp_path_factory.mktemp("report") / "page.html")


def test_the_worst_are_those_whose_class_was_given_the_least(measured):
    assert list_worst(judge(measured), 9) == [4, 1]
    assert list_worst(judge(measured), 1) == [4]


def test_the_doubtful_are_those_with_two_classes_close(measured):
    assert list_doubtful(judge(measured), 2) == [2, 3]


def test_each_class_has_its_turn_among_those_that_are_right(measured):
    assert {int(measured.labels[row]) for row in list_right(judge(measured), 2)} == {0, 2}


def test_confusions_are_counted():
    confusion = np.array([[5, 1, 0], [3, 2, 0], [0, 0, 0]])
    assert [tuple(c) for c in list_confusions(confusion)] == [(1, 0, 3), (0, 1, 1)]
    assert choose_classes(confusion, 2).tolist() == [0, 1]


def test_bins_hold_every_image_once(measured):
    bins = measure_bins(judge(measured))
    assert sum(b.images for b in bins) == len(measured)


def test_the_projection_finds_the_widest_direction():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2000, 6)) * [0.1, 0.1, 9, 0.1, 0.1, 3]
    found = project(features)
    assert abs(np.corrcoef(found[:, 0], features[:, 2])[0, 1]) > 0.99
    assert abs(np.corrcoef(found[:, 1], features[:, 5])[0, 1]) > 0.99


def test_evidence_is_where_covering_lowers_the_probability():
    class Corner:
        """Sure of the class by how bright the upper left is."""

        def predict_proba(self, images):
            share = np.array([i[:8, :8].mean() / 255 for i in images])
            return np.stack([share, 1 - share], axis=1)

    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[:8, :8] = 255
    found = find_evidence(pixels, 0, Corner())
    assert found.shape == (GRID, GRID)
    assert np.unravel_index(found.argmax(), found.shape) == (0, 0)
    assert found[4:, 4:].max() == 0


def test_the_page_shows_the_run_and_needs_nothing_else(written, tiny_run):
    page = Page(written.page)
    text = " ".join(page.text)
    accuracy = tiny_run.metrics["accuracy"]
    assert f"{accuracy.value:.3f}" in text
    assert all(name in text for name in tiny_run.classes)
    assert f"headstart fit {tiny_run.data} --strategy linear-probe" in text
    for _, attrs in page.elements:
        for name, value in attrs.items():
            assert not name.startswith("on")
            assert name != "style"
            if name in ("src", "href"):
                assert value.startswith(("data:", "#"))
    assert written.pictures == len(tiny_run.measured)


def test_only_its_own_blocks_run_by_their_hashes(written):
    text = written.page.read_text(encoding="utf-8")
    [policy] = [m["content"] for m in Page(written.page).all("meta") if "http-equiv" in m]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        [block] = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_hostile_names_are_text_everywhere(hostile):
    _, written = hostile
    page = Page(written.page)
    assert not any("onerror" in attrs or "onmouseover" in attrs for _, attrs in page.elements)
    assert len(page.all("script")) == 2
    text = "".join(page.text)
    assert "{{ 7 * 7 }}" in text
    assert "\\x1b[31mred\\u202eesrever" in text
    for path in written.files:
        content = path.read_text(encoding="utf-8")
        assert "\x1b" not in content
        assert "\u202e" not in content
    cells = re.search(r'id="cells">(.*?)</script>', written.page.read_text("utf-8")).group(1)
    assert "<" not in cells
    assert HOSTILE[0] in json.loads(cells)["names"]
    rows = list(csv.reader(io.StringIO(written.files[2].read_text("utf-8"))))
    assert not [cell for row in rows for cell in row if cell[:1] in "=+@" and cell]


def test_figures_are_written_beside_it_and_are_the_same(written, tiny_run):
    names = [f.name for f in written.files]
    ends = ["page.html", "page.json", "page-images.csv", "page-classes.csv", "page-confusions.csv"]
    assert names == ends
    figures = json.loads(written.files[1].read_text("utf-8"))
    assert figures["metrics"]["accuracy"]["value"] == tiny_run.metrics["accuracy"].value
    rows = list(csv.DictReader(io.StringIO(written.files[2].read_text("utf-8"))))
    assert [r["image"] for r in rows] == list(tiny_run.measured.ids)
    right = sum(r["true"] == r["predicted"] for r in rows)
    assert right / len(rows) == pytest.approx(tiny_run.metrics["accuracy"].value)


def test_charts_are_files_where_they_are_asked_for(hostile):
    charts = [f for f in hostile[1].files if f.suffix == ".svg"]
    assert {f.name for f in charts} >= {"report-reliability.svg", "report-map.svg"}
    assert all(f.read_text("utf-8").startswith("<svg") for f in charts)


def test_pictures_are_drawn_again_from_the_pixels(written):
    sources = [i["src"] for i in Page(written.page).all("img")]
    assert sources
    for source in sources:
        data = base64.b64decode(source.removeprefix("data:image/webp;base64,"))
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == "WEBP"
            assert max(image.size) <= 144


def test_a_page_has_room_for_so_many_pictures(tiny_run, monkeypatch):
    monkeypatch.setattr("headstart.publish.pictures.MOST_BYTES", 5000)
    rows = {i: k for k, i in enumerate(tiny_run.measured.ids)}
    run = tiny_run
    dataset = find_images(run.measured, run.data, run.root, headstart.Settings())
    album = Album(lambda i: dataset.image(rows[i]), None)
    album.add(tiny_run.measured.ids, lambda *a: None)
    assert sum(map(len, album.pictures.values())) <= 5000
    assert album.left_out + len(album.pictures) == len(tiny_run.measured)


def test_an_image_that_is_not_what_was_measured_is_not_shown(photos, tiny, tmp_path):
    """A run may name any file: what it does not know the content of stays private."""
    data = shutil.copytree(photos, tmp_path / "photos")
    run = headstart.fit(data, tmp_path / "run", **tiny)
    changed = data / run.measured.ids[0]
    Image.new("RGB", (40, 48), "red").save(changed)
    written = headstart.report(run)
    assert any("changed" in w for w in written.warnings)
    assert written.pictures == len(run.measured) - 1


def test_where_the_images_are_gone_there_is_a_report_that_says_so(photos, tiny, tmp_path):
    data = shutil.copytree(photos, tmp_path / "photos")
    run = headstart.fit(data, tmp_path / "run", **tiny)
    shutil.rmtree(data)
    written = headstart.report(tmp_path / "run")
    assert written.page == tmp_path / "run" / "report.html"
    assert written.pictures == 0
    again = f"headstart report {tmp_path / 'run'} DATA"
    assert again in written.warnings[0]
    assert again in written.page.read_text("utf-8")
    assert headstart.Run.load(tmp_path / "run").metrics == run.metrics


def test_images_of_an_archive_are_shown(photos, tiny, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted(photos.rglob("*.png")):
            archive.write(path, path.relative_to(photos))
    run = headstart.fit(tmp_path / "photos.zip", tmp_path / "run", **tiny)
    assert headstart.report(run).pictures == len(run.measured)


def test_other_data_are_evaluated(tiny_run, photos, tmp_path, cli):
    output = tmp_path / "test.html"
    code, out, _ = cli("report", tiny_run.folder, photos, "--split", "test", "-o", output)
    assert code == 0
    assert out.startswith(str(output)[:20])
    text = html.unescape(output.read_text("utf-8"))
    assert "images of the test split" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "report.txt"], "a report is an HTML file"),
        (["--split", "test"], "split has no effect without data"),
    ],
)
def test_what_has_no_effect_is_refused(tiny_run, words, message, cli):
    code, _, err = cli("report", tiny_run.folder, *words)
    assert code == 2
    assert message in " ".join(err.split())


@pytest.mark.parametrize(
    "facts",
    [
        {"training": {"best_epoch": "<b>"}, "advice": {"facts": {"depths": [{"heads": [[1]]}]}}},
        {
            "advice": {
                "facts": {"images": -1, "per_class": [], "shift": [], "depths": [], "curve": []}
            }
        },
        {"advice": {"chosen": {"strategy": 3, "settings": []}, "others": {}}},
        {"advice": [], "training": []},
    ],
)
def test_a_record_that_is_not_as_it_was_written_makes_a_page_without(tiny_run, facts, tmp_path):
    folder = shutil.copytree(tiny_run.folder, tmp_path / "run")
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    metrics["decisions"]["facts"] = facts
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    page = Page(headstart.report(folder).page)
    assert "Depth and data" not in " ".join(page.text)


def test_the_command_says_in_json_what_was_written(tiny_run, tmp_path, cli):
    code, out, _ = cli("report", tiny_run.folder, "-o", tmp_path / "page.html", "--json")
    assert code == 0
    told = json.loads(out)
    assert told["page"] == str(tmp_path / "page.html")
    assert told["pictures"] == len(tiny_run.measured)
    assert all(Path(f).is_file() for f in told["files"])


def test_curves_are_shown_of_a_run_with_epochs(photos, network, tmp_path):
    run = headstart.fit(photos, tmp_path / "run", strategy="fine-tune", epochs=2, **network)
    written = headstart.report(run, figures=True)
    assert {"report-loss.svg", "report-accuracy.svg"} <= {f.name for f in written.files}


def options_of(tiny):
    return [word for name, value in tiny.items() for word in (f"--{name}", value)]


def test_fit_writes_the_report_of_its_run(photos, tiny, tmp_path, cli):
    code, out, err = cli("fit", photos, "-o", tmp_path / "run", *options_of(tiny))
    page = tmp_path / "run" / "report.html"
    assert (code, page.is_file()) == (0, True), err
    assert out.splitlines()[-1] == f"report: {page}"
    assert "headstart report" not in err
    assert Page(page).all("img")
    code, out, _ = cli("fit", photos, "-o", tmp_path / "json", *options_of(tiny), "--json")
    assert json.loads(out)["report"] == str(tmp_path / "json" / "report.html")


def test_a_run_in_the_place_of_another_has_no_report_of_that(photos, tiny, tmp_path, cli):
    words = ["fit", photos, "-o", tmp_path / "run", *options_of(tiny)]
    assert cli(*words)[0] == 0
    (tmp_path / "run" / "notes.html").write_text("mine")
    assert cli(*words, "--overwrite", "--no-report")[0] == 0
    assert [p.name for p in (tmp_path / "run").glob("*.html")] == ["notes.html"]
    assert not list((tmp_path / "run").glob("report*"))


@pytest.mark.parametrize("trouble", [headstart.ResourceError("disk full"), RuntimeError("a\nbug")])
def test_a_report_that_fails_does_not_fail_the_run(
    photos, tiny, tmp_path, cli, monkeypatch, trouble
):
    def fail(*args, **options):
        raise trouble

    monkeypatch.setattr(headstart, "report", fail)
    code, out, err = cli("fit", photos, "-o", tmp_path / "run", *options_of(tiny))
    assert code == 0
    assert out.splitlines()[-1].startswith("saved to")
    assert f"no report was written: {' '.join(str(trouble).split())}; the run is saved" in err
    assert f"headstart report {tmp_path / 'run'} writes it" in err
    assert headstart.Run.load(tmp_path / "run").metrics


def test_an_interrupted_report_leaves_the_run(photos, tiny, tmp_path, cli, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(headstart, "report", interrupt)
    monkeypatch.setattr("headstart.cli.reporting.leave", leave)
    code, _, err = cli("fit", photos, "-o", tmp_path / "run", *options_of(tiny))
    assert code == 130
    assert "interrupted; the run is saved" in err
    assert headstart.Run.load(tmp_path / "run").metrics


def test_less_is_looked_at_where_there_is_no_time(tiny_run, tmp_path):
    def looks(seconds):
        page = headstart.report(tiny_run, None, tmp_path / "page.html", looking_s=seconds).page
        return sum("look" in attrs["class"].split() for attrs in Page(page).all("figure"))

    assert looks(0) == 0
    assert looks(60) > 0


@pytest.fixture(scope="module")
def several(tiny, tmp_path_factory):
    """A run on images of several labels, some of which it gets wrong, and its report."""
    root, rng = tmp_path_factory.mktemp("several"), np.random.default_rng(0)
    rows = ["file,label"]
    for number in range(60):
        red, dark, odd = rng.random(3) < (0.5, 0.4, 0.5)  # the last of which nothing tells
        pixels = rng.normal(120, 30, (40, 48, 3)) + red * np.array([110, 0, 0])
        name = "=<b>{{7*7}}" if odd else "even"
        labels = "|".join(filter(None, ("red" * int(red), "dark" * int(dark), name)))
        picture = np.clip(pixels * (0.3 if dark else 1), 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(root / f"{number:02}.png")
        rows.append(f"{number:02}.png,{labels}")
    (root / "labels.csv").write_text("\n".join(rows))
    run = headstart.fit(root / "labels.csv", root / "run", **tiny)
    return run, headstart.report(run)


def test_images_of_several_labels_have_a_report(several):
    run, written = several
    text = " ".join(Page(written.page).text)
    thresholds = [figures.threshold for figures in run.per_class.values()]
    assert all(f"{t:.3f}" in text for t in thresholds)
    assert "all labels of" in text
    assert "missed" in text
    assert "{{7*7}}" in text
    rows = list(csv.DictReader(io.StringIO(written.files[2].read_text("utf-8"))))
    given = run.measured.probabilities >= np.array(run.classifier.thresholds)
    names = np.array(["'" + n if n[0] == "=" else n for n in run.classes])
    assert [r["predicted"] for r in rows] == ["|".join(names[row]) for row in given]


def test_cells_of_several_labels_open_images_with_that_mistake(several):
    run, written = several
    text = written.page.read_text("utf-8")
    cells = json.loads(re.search(r'id="cells">(.*?)</script>', text).group(1))["cells"]
    true, given = run.measured.labels > 0, run.measured.probabilities >= run.classifier.thresholds
    assert any(i != j for i, j in (map(int, cell.split("-")) for cell in cells))
    for cell, rows in cells.items():
        i, j = map(int, cell.split("-"))
        for row in rows:
            assert true[row, i]
            assert given[row, j]
            assert i == j or not (given[row, i] or true[row, j])


@pytest.fixture(scope="module")
def shallow(photos, tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "shallow"
    return headstart.fit(photos, folder, **{**tiny, "strategy": "shallow-probe"})


def test_several_runs_are_compared_on_a_page(tiny_run, shallow, tmp_path, cli):
    page = tmp_path / "both.html"
    code, _, err = cli("report", tiny_run.folder, shallow.folder, "-o", page, "--figures")
    assert code == 0, err
    text = " ".join(Page(page).text)
    assert "not distinguishable" in text
    assert str(tiny_run.folder) in text
    assert (tmp_path / "both-costs.svg").read_bytes().startswith(b"<svg")
    found = json.loads((tmp_path / "both.json").read_text())
    assert {c["strategy"] for c in found["contenders"]} == {"linear-probe", "shallow-probe"}


def test_the_page_of_several_runs_is_called_after_them(tiny_run, shallow):
    named = name_page([tiny_run, shallow.folder])
    assert named.name == "tiny-and-shallow.html"
    assert named.resolve().parent == tiny_run.folder.resolve().parent
    assert len(name_page([tiny_run] * 50).name) < 120


def test_learning_curves_of_several_runs_share_a_chart(photos, network, tiny_run, tmp_path):
    trained = headstart.fit(photos, tmp_path / "run", strategy="fine-tune", epochs=2, **network)
    written = headstart.report([tiny_run, trained], None, tmp_path / "page.html", figures=True)
    chart = (tmp_path / "page-courses-accuracy.svg").read_text()
    assert ("k0" in chart, "k1" in chart) == (True, True)
    assert "page-courses-loss.svg" in {f.name for f in written.files}


def test_advice_has_a_page(advice, tmp_path):
    text = " ".join(Page(headstart.report(advice, None, tmp_path / "page.html").page).text)
    assert advice.case.words in text
    assert all(way.name in text for way in (advice.chosen, *advice.others))


def test_an_advice_on_too_little_has_a_page(plant, network, tmp_path):
    data = plant(tmp_path / "few", {"blobs": 1, "plain": 1})
    page = headstart.report(headstart.advise(data, **network), None, tmp_path / "page.html").page
    assert "too few images" in " ".join(Page(page).text)


@pytest.fixture(scope="module")
def flawed(plant, tmp_path_factory):
    """Images with a copy in another split, one under another class, and one that cannot be read."""
    root = tmp_path_factory.mktemp("flawed") / "flawed"
    plant(root, {"train/blobs": 12, "train/plain": 12})
    plant(root, {"test/blobs": 3, "test/plain": 3}, first=50)
    shutil.copy(root / "train/blobs/00.png", root / "test/blobs/copy.png")
    shutil.copy(root / "train/blobs/01.png", root / "train/plain/wrong.png")
    (root / "train/plain/broken.png").write_bytes(b"not an image")
    return root


def test_an_audit_has_a_page_with_the_pictures(flawed, network, tmp_path):
    audit = headstart.audit(flawed, **network)
    written = headstart.report(audit, None, tmp_path / "page.html")
    text = " ".join(Page(written.page).text)
    for title in (
        "Copies across splits",
        "One picture under several classes",
        "Odd and unreadable",
    ):
        assert title in text
    assert written.pictures > 3
    assert "no picture" in text  # of the broken one
    assert json.loads(written.files[1].read_text())["leaks"]


def test_what_was_measured_already_takes_no_options(advice, tmp_path):
    with pytest.raises(headstart.UsageError, match="output is missing"):
        headstart.report(advice)
    with pytest.raises(headstart.UsageError, match="data has no effect"):
        headstart.report(advice, "photos", tmp_path / "page.html")
    for wrong in ([], 3):
        with pytest.raises(headstart.UsageError, match="takes a run, a list of runs"):
            headstart.report(wrong)
    with pytest.raises(headstart.UsageError, match="a single run"):
        headstart.report(advice, None, tmp_path / "page.html", split="test")


@pytest.mark.parametrize("command", ["advise", "audit"])
def test_commands_write_a_page_unless_told_otherwise(
    loose, network, tmp_path, cli, monkeypatch, command
):
    monkeypatch.chdir(tmp_path)
    words = [command, loose, *options_of(network)]
    code, out, err = cli(*words)
    page = Path("runs") / f"loose-{'advice' if command == 'advise' else 'audit'}.html"
    assert (code, out.splitlines()[-1]) == (0, f"report: {page}"), err
    assert page.is_file()
    shutil.rmtree("runs")
    assert cli(*words, "--no-report")[0] == 0
    assert cli(*words, "--json")[0] == 0
    assert not Path("runs").exists()
    assert cli(*words, "--report", "here.html", "--json")[0] == 0
    assert Path("here.html").is_file()
    for wrong in (["--report", "here.txt"], ["--report", "a.html", "--no-report"]):
        assert cli(*words, *wrong)[0] == 2


def test_compare_writes_its_page_into_its_folder(tiny_run, shallow, tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [tiny_run.folder, shallow.folder]
    code, out, err = cli("compare", *runs, "-o", "folder")
    assert (code, out.splitlines()[-1]) == (0, "report: folder/comparison.html"), err
    assert Path("folder/comparison.html").is_file()
    assert cli("compare", *runs, "--no-report")[0] == 0
    assert os.listdir(tmp_path) == ["folder"]


def test_a_page_names_data_from_the_working_folder(tiny_run, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos.parent)
    headstart.report(tiny_run, output=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    figures = json.loads((tmp_path / "page.json").read_bytes())
    assert "<dt>trained on</dt><dd><bdi>photos</bdi>" in page
    assert figures["command"].startswith("headstart fit photos ")
    assert str(photos) not in page
    monkeypatch.chdir(tmp_path)
    headstart.report(tiny_run, output=tmp_path / "page.html")
    assert str(photos) in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_what_writes_a_page_later_has_the_options_of_the_command(
    tiny_run, shallow, tmp_path, cli, monkeypatch, photos
):
    monkeypatch.chdir(tmp_path)
    runs = [str(tiny_run.folder), str(shallow.folder)]

    def report(*arguments, **options):
        raise headstart.ResourceError("no space is left")

    monkeypatch.setattr(headstart, "report", report)
    words = ["compare", *runs, "--test", str(photos), "-o", "folder"]
    code, _, err = cli(*words, "--device", "cpu")
    assert code == 0
    told = " ".join(err.split())
    assert "no report was written: no space is left; the comparison is above" in told
    again = shlex.split(told[told.index("headstart compare") : told.index(" writes it")])
    assert again[:4] == ["headstart", *words[:3]]
    options = dict(zip(again[4::2], again[5::2], strict=True))
    assert options == {"--test": str(photos), "--output": "folder", "--device": "cpu"}


def test_the_page_of_advice_has_the_options_that_it_was_asked_with(
    loose, network, tmp_path, cli, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, _, err = cli("advise", loose, "--budget", "9m", *options_of(network))
    assert code == 0
    step = err.splitlines()[-1].strip().removesuffix("  # does what is advised")
    assert step.startswith(f"headstart fit {loose} --budget 9m --backbone test_vit")
    page = Path("runs/loose-advice.html").read_text(encoding="utf-8")
    assert f"<code>{step}</code>" in page


def test_the_templates_are_in_the_package():
    folder = Path(headstart.__file__).parent / "publish" / "templates"
    assert {p.name for p in folder.iterdir()} == {
        "advice.html",
        "audit.html",
        "base.html",
        "comparison.html",
        "pieces.html",
        "report.html",
        "report.css",
        "report.js",
    }
