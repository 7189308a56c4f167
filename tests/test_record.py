"""A run is read back as `fit` gave it, quickly, and a damaged or hostile folder is refused in one line."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

import headstart
from headstart import Decisions, InputError, Run, UsageError, evaluate, fit, measure, measure_each
from headstart.metrics import Estimate
from headstart.runs.documents import Measured, Members, to_json
from headstart.runs.record import Parts, has_record, save_run
from headstart.training.strategies.table import STRATEGIES

SHORT = {"epochs": 2, "batch": 8, "train_precision": "fp32"}
OPTIONS = {
    "linear-probe": {},
    "shallow-probe": {"cut": "blocks.4"},
    "partial-fine-tune": {**SHORT, "views": 2, "cut": "blocks.4"},
}
CASES = [(strategy, 0.25) for strategy in STRATEGIES] + [("linear-probe", 0), ("fine-tune", 0)]


def same(one, other):
    """Whether two values are equal, arrays and dataclasses and NaN included."""
    if isinstance(one, Run | Measured | Estimate):
        names = [f.name for f in dataclasses.fields(one) if f.name != "parts"]
        names += ["members", "measured"] if isinstance(one, Run) else []
        return type(one) is type(other) and all(
            same(getattr(one, n), getattr(other, n)) for n in names
        )
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    return type(one) is type(other) and one == other


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize(("strategy", "val"), CASES)
def test_a_run_is_read_back_as_fit_gave_it(strategy, val, loose, tiny, tmp_path):
    given = {**tiny, **OPTIONS.get(strategy, SHORT), "strategy": strategy, "val": val}
    if strategy == "scratch":
        del given["weights"]
    run = fit(loose, tmp_path / "run", **given)
    found = Run.load(tmp_path / "run")
    assert same(found, run)
    assert found.settings == json.loads((run.folder / "settings.json").read_text())
    assert (found.data, found.root) == (loose, loose)
    assert (len(found.history) == 3) == (strategy not in ("linear-probe", "shallow-probe"))
    assert found.classifier.classes == found.classes == run.classifier.classes
    if val or strategy.endswith("probe"):
        measured = found.measured
        assert measured.probabilities.dtype == np.float32
        assert measured.labels.dtype == np.int64
        assert measured.part == run.measured_on == ("val" if val else "cross-validation")
        assert len(measured) == run.images["val" if val else "train"]
        assert [i.split("/")[0] for i in measured.ids] == [
            measured.classes[label] for label in measured.labels
        ]
        figures = (measured.labels, measured.probabilities, measured.classes)
        assert measure(*figures) == run.metrics
        assert same(measure_each(*figures), run.per_class)
    else:
        assert (found.measured, found.metrics, found.measured_on) == (None, {}, "")


def test_probabilities_are_out_of_fold(loose, tiny, tmp_path):
    """Those of the head itself on the images it was trained on would be better."""
    run = fit(loose, tmp_path / "run", **tiny)
    again = evaluate(run, loose, split="train", device="cpu")
    assert again.measured.ids == run.measured.ids
    assert not np.array_equal(again.measured.probabilities, run.measured.probabilities)
    assert run.metrics["log_loss"].value > again.metrics["log_loss"].value


def test_what_was_evaluated_is_kept(tiny_run, photos, plant, tmp_path):
    data = plant(tmp_path / "data", {"plain": 3, "blobs": 2}, first=80)
    (data / "blobs").rename(data / "zebra")
    result = evaluate(tiny_run, data, unknown_classes="wrong", device="cpu")
    measured = result.measured
    assert (measured.part, measured.classes) == ("all", result.classes)
    assert measured.probabilities.shape == (5, 4)
    assert measured.probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert [measured.classes[label] for label in measured.labels] == ["plain"] * 3 + ["zebra"] * 2
    assert measured.ids == tuple(sorted(measured.ids))
    assert measure(measured.labels, measured.probabilities, measured.classes) == result.metrics
    assert repr(measured) == "Measured(5 images of all, 4 classes)"


def test_where_the_data_lay(photos, loose, plant, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(loose.parent)
    run = fit("loose", tmp_path / "one", **tiny)
    assert (run.data, run.root) == (loose, loose)
    rows = [f"{k}/{n:02},{k}" for k in ("blobs", "plain") for n in range(4)]
    text = "path,label\n" + "\n".join(row.replace(",", ".png,") for row in rows)
    (tmp_path / "list.csv").write_text(text)
    run = fit(tmp_path / "list.csv", tmp_path / "two", root="loose", **tiny)
    assert (run.data, run.root) == (tmp_path / "list.csv", loose)
    run = fit(headstart.load_dataset(loose), tmp_path / "three", **tiny)
    assert (run.data, run.root) == (None, loose)
    assert same(Run.load(tmp_path / "three"), run)
    more = plant(tmp_path / "more", {"plain": 2, "blobs": 2, "stripes": 2}, first=70)
    run = fit("loose", tmp_path / "four", val=str(more), **tiny)
    assert {(run.root / i).resolve() for i in run.measured.ids} == set(more.rglob("*.png"))
    assert same(Run.load(tmp_path / "four"), run)


def test_figures_of_earlier_versions_are_read(tiny_run, tmp_path):
    """Which had recall alone of each class, and of several labels all but the area under the ROC curve."""
    old = shutil.copytree(tiny_run.folder, tmp_path / "old")
    told = json.loads((old / "metrics.json").read_text())
    each = told.pop("per_class")
    recall = {name: figures["recall"] for name, figures in each.items()}
    (old / "metrics.json").write_text(json.dumps({**told, "recall": recall}))
    found = Run.load(old)
    assert found.recall == tiny_run.recall
    assert same(found.metrics, tiny_run.metrics)
    assert all(math.isnan(figures.f1.value) for figures in found.per_class.values())
    assert "macro f1" in found._repr_html_()
    labels = {n: {k: v for k, v in f.items() if k != "roc_auc"} for n, f in each.items()}
    of_labels = {**told, "recall": recall, "labels": labels}
    (old / "metrics.json").write_text(json.dumps(of_labels))
    for name, figures in Run.load(old).per_class.items():
        assert same(figures.f1, tiny_run.per_class[name].f1)
        assert math.isnan(figures.roc_auc.value)
    for field in ("recall", "labels"):
        fewer = dict(list(of_labels[field].items())[1:])
        own = {**told, "recall": recall, field: fewer}
        (old / "metrics.json").write_text(json.dumps(own))
        with pytest.raises(InputError, match=f"field '{field}' is not of the run's classes"):
            Run.load(old)


def test_a_run_outlives_its_folder(loose, tiny, tmp_path):
    run = fit(loose, tmp_path / "run", **tiny)
    shutil.rmtree(tmp_path / "run")
    assert len(run.measured) == len(run.members) == 24
    assert run.classifier.classes == run.classes


# Names of files may hold what is no Unicode.
text = st.text(st.characters(exclude_categories=()) | st.just("\udcff"), max_size=8)
finite = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | finite | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
decisions = st.builds(
    Decisions,
    settled=st.dictionaries(
        text,
        st.tuples(values, st.sampled_from(["default", "user", "measured"]),
                  st.dictionaries(text, values, max_size=2)),
        max_size=3,
    ).map(lambda d: {n: headstart.Decision(n, *v) for n, v in d.items()}),
    facts=st.dictionaries(text, values, max_size=3),
    warnings=st.lists(text, max_size=2),
)  # fmt: skip


@given(decisions)
def test_decisions_are_read_back_as_they_were(made):
    assert Decisions.from_json(json.loads(json.dumps(made.to_json()))) == made


@st.composite
def outcomes(draw):
    """(classes, members, measured) that go together."""
    classes = draw(st.integers(2, 4))
    names = tuple(f"class {n}" for n in range(classes))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=9))
    splits = ["val", *(draw(st.sampled_from(["train", "val"])) for _ in labels[1:])]
    ids = sorted(draw(st.sets(text.filter(bool), min_size=len(labels), max_size=len(labels))))
    ids = [f"{n}/{name.replace('/', '').replace(chr(92), '')}" for n, name in enumerate(ids)]
    digests = [draw(st.sampled_from(["", "ab" * 32])) for _ in labels]
    members = Members(
        ids=tuple(ids),
        splits=tuple(splits),
        labels=tuple(names[label] for label in labels),
        groups=tuple(draw(text) for _ in labels),
        sha256=tuple(digests),
        errors=tuple(draw(text) for _ in labels),
    )
    rows = [row for row, split in enumerate(splits) if split == "val"]
    shares = np.array([[draw(st.floats(0.01, 1)) for _ in names] for _ in rows])
    measured = Measured(
        (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32),
        np.array([labels[row] for row in rows]),
        tuple(ids[row] for row in rows),
        "val",
        names,
        tuple(members.groups[row] for row in rows),
    )
    return names, members, measured


@settings(deadline=None, max_examples=25)
@given(outcomes(), decisions, st.lists(text, max_size=2), finite)
def test_whatever_a_run_holds_is_read_back(tiny_run, outcome, made, warnings, seconds):
    classes, members, measured = outcome
    figures = (measured.labels, measured.probabilities, classes)
    classifier = dataclasses.replace(
        tiny_run.classifier,
        classes=classes,
        head=_Head(len(classes)),
        names=("ä\udc80",) * len(classes),
    )
    folder = tiny_run.folder.parent / "made"
    run = dataclasses.replace(
        tiny_run,
        folder=folder,
        classes=classes,
        names=classifier.names,
        metrics=measure(*figures, groups=measured.groups),
        per_class=measure_each(*figures, groups=measured.groups),
        measured_on="val",
        decisions=made,
        warnings=tuple(warnings),
        seconds=abs(seconds),
        data=None,
        parts=Parts(lambda: classifier, lambda: members, lambda: measured),
    )
    kept = save_run(run, keep=(), model=classifier.files())
    assert same(kept, run)
    assert same(Run.load(folder), run)


class _Head:
    """Of any number of classes; only its card is read."""

    width = 64

    def __init__(self, classes):
        self.classes = classes

    def arrays(self):
        return {"weight": np.zeros((self.classes, 64), np.float32)}


# ---------------------------------------------------------------- what it costs


def test_reading_figures_takes_milliseconds_and_loads_nothing_slow(tiny_run):
    Run.load(tiny_run.folder)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        assert len(Run.load(tiny_run.folder).measured) == 24
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.05
    code = (
        "import sys, headstart\n"
        "run = headstart.Run.load(sys.argv[1])\n"
        "print(run, len(run.measured), run.settings['seed'], run.history)\n"
        "print([n for n in ('torch', 'timm', 'openvino', 'sklearn') if n in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(tiny_run.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.endswith("\n[]\n")
    assert "accuracy" in done.stdout


def test_the_classifier_is_read_when_asked_for(tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run.folder, tmp_path / "run")
    (folder / "model.safetensors").write_bytes(b"damaged")
    run = Run.load(folder)
    assert "accuracy" in repr(run)
    with pytest.raises(InputError, match=r"model\.safetensors: damaged"):
        _ = run.classifier


# ---------------------------------------------------------------- damaged folders


@pytest.fixture
def copy(tiny_run, tmp_path):
    return shutil.copytree(tiny_run.folder, tmp_path / "copy")


def edit(name, change):
    def apply(folder):
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))

    return apply


def line(change, number=0):
    """Of split.jsonl."""

    def apply(folder):
        lines = (folder / "split.jsonl").read_text().splitlines()
        row = json.loads(lines[number])
        change(row)
        lines[number] = json.dumps(row)
        (folder / "split.jsonl").write_text("\n".join(lines) + "\n")

    return apply


def tensors(change):
    def apply(folder):
        path = folder / "predictions.safetensors"
        arrays = {k: np.array(v) for k, v in load_arrays(path.read_bytes()).items()}
        change(arrays)
        path.write_bytes(save_arrays(arrays))

    return apply


def put(name, place, value):
    return tensors(lambda arrays: arrays[name].__setitem__(place, value))


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def remove(name):
    return lambda folder: (folder / name).unlink()


def sparse(name, size):
    def apply(folder):
        with open(folder / name, "ab") as file:
            file.truncate(size)

    return apply


PREDICTIONS, METRICS, MEMBERS = "predictions.safetensors", "metrics.json", "split.jsonl"
# (what to do, the file that is named, what is said of it)
DAMAGE = {
    "no metrics": (remove(METRICS), METRICS, "missing, or not a regular file"),
    "no settings": (remove("settings.json"), "settings.json", "missing"),
    "no provenance": (remove("run.json"), "run.json", "missing"),
    "metrics no JSON": (write(METRICS, b"{"), METRICS, "not JSON"),
    "metrics a list": (write(METRICS, b"[]"), METRICS, "not a JSON object"),
    "huge metrics": (sparse(METRICS, 2**40), METRICS, "larger than 64 MiB"),
    "a figure is text": (
        edit(METRICS, lambda m: m["metrics"]["accuracy"].update(value="1")),
        METRICS, "field 'metrics.accuracy.value'"),
    "a figure is NaN": (
        edit(METRICS, lambda m: m["metrics"]["log_loss"].update(high=math.nan)),
        METRICS, "field 'metrics.log_loss.high'"),
    "an unknown field": (edit(METRICS, lambda m: m.update(more=1)), METRICS, "field 'more'"),
    "a field is missing": (edit(METRICS, lambda m: m.pop("images")), METRICS, "field 'images'"),
    "a count below nought": (
        edit(METRICS, lambda m: m["images"].update(val=-1)), METRICS, "field 'images.val'"),
    "figures of others": (
        edit(METRICS, lambda m: m["per_class"].pop("plain")), METRICS, "field 'per_class'"),
    "a class of less than no images": (
        edit(METRICS, lambda m: m["per_class"]["plain"].update(images=-1)),
        METRICS, "field 'per_class.plain.images'"),
    "an old recall of others": (
        edit(METRICS, lambda m: m.update(recall={"plain": m.pop("per_class")["plain"]["recall"]})),
        METRICS, "field 'recall'"),
    "measured on what": (
        edit(METRICS, lambda m: m.update(measured_on="test")), METRICS, "field 'measured_on'"),
    "measured on nothing": (
        edit(METRICS, lambda m: m.update(measured_on="")), METRICS, "field 'metrics'"),
    "decisions of nothing": (
        edit(METRICS, lambda m: m.update(decisions={})), METRICS, "field 'decisions': settled"),
    "a decision from nowhere": (
        edit(METRICS, lambda m: m["decisions"]["settled"]["penalty"].update(origin="x")),
        METRICS, "field 'decisions': settled.penalty"),
    "evidence is infinite": (
        edit(METRICS, lambda m: m["decisions"]["facts"].update(x=[math.inf])),
        METRICS, "not finite"),
    "an unknown setting": (
        edit("settings.json", lambda s: s.update(x=s["seed"])), "settings.json", "'x' is no setting"),
    "a setting without origin": (
        edit("settings.json", lambda s: s["seed"].pop("origin")), "settings.json", "origin"),
    "a setting that is a list": (
        edit("settings.json", lambda s: s["seed"].update(value=[])), "settings.json", "value"),
    "time below nought": (
        edit("run.json", lambda r: r.update(seconds=-1.0)), "run.json", "field 'seconds'"),
    "an engine of nothing": (
        edit("run.json", lambda r: r["engine"].pop("device")), "run.json", "field 'engine.device'"),
    "data that are a number": (
        edit("run.json", lambda r: r.update(data=3)), "run.json", "field 'data'"),
    "history out of order": (
        write("history.jsonl", b'{"epoch": 1}\n'), "history.jsonl", "field 'epoch'"),
    "history of lists": (write("history.jsonl", b"[]\n"), "history.jsonl", "line 1"),
    "history of text": (
        write("history.jsonl", b'{"epoch": 0, "val_loss": "low"}\n'), "history.jsonl", "'val_loss'"),
    "no members": (remove(MEMBERS), MEMBERS, "missing, which names the images"),
    "a member without id": (line(lambda m: m.pop("id"), 2), MEMBERS, "line 3, field 'id'"),
    "a member of number": (line(lambda m: m.update(id=5)), MEMBERS, "line 1, field 'id'"),
    "a member without name": (line(lambda m: m.update(id="")), MEMBERS, "field 'id' is empty"),
    "a member of no part": (line(lambda m: m.update(split="x")), MEMBERS, "field 'split'"),
    "a digest of what": (line(lambda m: m.update(sha256="x")), MEMBERS, "field 'sha256'"),
    "members twice": (
        line(lambda m: m.update(id="train/blobs/01.png")), MEMBERS, "names an image twice"),
    "a way out": (line(lambda m: m.update(id="../../x.png")), MEMBERS, "leads out of the data"),
    "an absolute way": (line(lambda m: m.update(id="/etc/passwd")), MEMBERS, "leads out of the"),
    "members no text": (write(MEMBERS, b"\xff\n"), MEMBERS, "line 1 is not JSON"),
    "huge members": (sparse(MEMBERS, 2**40), MEMBERS, "larger than 1024 MiB"),
    "one line without end": (write(MEMBERS, b"[" * 2**22), MEMBERS, "line 1 is not JSON"),
    "no predictions": (remove(PREDICTIONS), PREDICTIONS, "missing, or not a regular file"),
    "predictions no tensors": (write(PREDICTIONS, b"x" * 99), PREDICTIONS, "not safetensors"),
    "huge predictions": (sparse(PREDICTIONS, 2**40), PREDICTIONS, "larger than that of 24 images"),
    "a tensor missing": (tensors(lambda a: a.pop("labels")), PREDICTIONS, "probabilities, rows"),
    "a tensor more": (tensors(lambda a: a.update(x=a["rows"])), PREDICTIONS, "it has the tensors"),
    "probabilities of NaN": (put("probabilities", (3, 1), math.nan), PREDICTIONS, "'probabilities'"),
    "probabilities below nought": (
        put("probabilities", 0, [-1, 1, 1]), PREDICTIONS, "'probabilities'"),
    "probabilities of two": (
        put("probabilities", 0, [1, 1, 0]), PREDICTIONS, "does not sum to one"),
    "probabilities of doubles": (
        tensors(lambda a: a.update(probabilities=a["probabilities"].astype("f8"))),
        PREDICTIONS, r"float64 \(24, 3\), not float32 \(24, 3\)"),
    "probabilities of fewer classes": (
        tensors(lambda a: a.update(probabilities=np.ones((24, 1), "f4"))),
        PREDICTIONS, r"float32 \(24, 1\), not float32 \(24, 3\)"),
    "fewer labels": (
        tensors(lambda a: a.update(labels=a["labels"][1:])), PREDICTIONS, "'labels' is int64"),
    "nothing": (
        tensors(lambda a: a.update({k: v[:0] for k, v in a.items()})), PREDICTIONS, "tensor"),
    "a number for rows": (
        tensors(lambda a: a.update(rows=np.array(3))), PREDICTIONS, "tensor"),
    "a label of no class": (put("labels", 0, 3), PREDICTIONS, "out of 0 to 2"),
    "a label below nought": (put("labels", 0, -1), PREDICTIONS, "out of 0 to 2"),
    "a label of another": (put("labels", 0, 2), PREDICTIONS, "'labels' is not what split.jsonl says"),
    "a row beyond": (put("rows", -1, 24), PREDICTIONS, "'rows' does not rise within 0 to 23"),
    "rows twice": (put("rows", 1, 0), PREDICTIONS, "'rows' does not rise"),
    "data of no path": (edit("run.json", lambda r: r.update(data=[])), "run.json", "'data'"),
    "a part is not counted": (
        edit("metrics.json", lambda m: m["images"].pop("val")), "metrics.json", "'images' lacks"),
    "a row of another part": (
        line(lambda m: m.update(split="val")), PREDICTIONS, "line 1, which is not of cross-val"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_run_is_refused(name, copy):
    harm, file, words = DAMAGE[name]
    harm(copy)
    with pytest.raises(InputError, match=rf"{file}: .*{words}") as caught:
        _ = Run.load(copy).measured
    message = str(caught.value)
    assert message.startswith(str(copy))
    assert message.isprintable()
    assert len(message) < len(str(copy)) + 300


def test_what_is_no_run_is_refused(copy, tmp_path):
    with pytest.raises(InputError, match="no such run"):
        Run.load(tmp_path / "nowhere")
    edit("headstart.json", lambda c: c.update(status="incomplete"))(copy)
    with pytest.raises(InputError, match="incomplete, its fit did not end"):
        Run.load(copy)


def test_a_classifier_alone_has_no_record(tiny_run, photos, tmp_path):
    tiny_run.classifier.save(tmp_path / "saved")
    assert not has_record(tmp_path / "saved")
    with pytest.raises(InputError, match=r"metrics\.json: missing"):
        Run.load(tmp_path / "saved")
    found = evaluate(tmp_path / "saved", photos, device="cpu")
    assert found.metrics == evaluate(tiny_run, photos, device="cpu").metrics


@pytest.mark.parametrize("name", ["settings.json", "metrics.json", "run.json"])
def test_evaluate_reads_the_record(name, copy, photos, cli):
    (copy / name).write_text("{")
    with pytest.raises(InputError, match=f"{name}: not JSON"):
        evaluate(copy, photos, device="cpu")
    code, _, err = cli("evaluate", copy, photos)
    assert (code, err.count("\n")) == (3, 1)


def test_json_has_no_nan():
    value = {"a": Estimate(1.0, math.nan, math.inf), "b": (np.zeros(2), [math.nan])}
    wanted = {"a": {"value": 1.0, "low": None, "high": None}, "b": [[0.0, 0.0], [None]]}
    assert to_json(value) == wanted


# ---------------------------------------------------------------- whose error it is


@pytest.mark.parametrize("told", ["on_epoch", "progress", "report"])
def test_an_error_of_the_callers_is_not_blamed_on_the_disk(told, loose, tiny, tmp_path):
    def fail(*_arguments):
        raise FileNotFoundError(2, "my own file", "mine.txt")

    given = {**tiny, **SHORT, "strategy": "fine-tune", "val": 0.25, told: fail}
    with pytest.raises(FileNotFoundError, match=r"my own file: 'mine\.txt'"):
        fit(loose, tmp_path / "run", **given)


@pytest.mark.parametrize("point", ["checkpoint-written:enospc", "history-written:enospc"])
def test_a_full_disk_is_told_while_training(point, loose, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_FAIL_AT", point)
    given = {**tiny, **SHORT, "strategy": "fine-tune", "val": 0.25, "checkpoint_s": 0.0}
    with pytest.raises(headstart.ResourceError, match="No space left on device; free space, or ch"):
        fit(loose, tmp_path / "run", **given)


def test_a_damaged_start_is_named(loose, tiny, tmp_path):
    (tmp_path / "start.json").write_text('{"data": 3, "options": {}}')
    with pytest.raises(InputError, match=r"start\.json: damaged; fit again with --overwrite"):
        fit(None, tmp_path, resume=True)
    (tmp_path / "start.json").write_text('{"data": null, "options": {}}')
    with pytest.raises(UsageError, match="was started from a Dataset; give it again"):
        fit(None, tmp_path, resume=True)
