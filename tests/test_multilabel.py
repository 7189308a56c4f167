"""Several labels an image: how they are read, split, learned, measured, decided, saved and printed."""

import csv
import io
import json
import shutil
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, log_loss

import headstart.data.parquet
from headstart.data.label_cells import find_separator
from headstart.data.splits import split_dataset
from headstart.errors import InputError, UsageError
from headstart.label_metrics import (
    confuse_labels,
    label_losses,
    label_overlap,
    measure_each_label,
    measure_labels,
)
from headstart.problem import MULTI_LABEL, SINGLE_LABEL, sigmoid
from headstart.training.heads import (
    assign_folds,
    average_heads,
    average_probabilities,
    choose_cuts,
    choose_penalty,
    cross_validate,
    fit_linear,
)
from headstart.training.thresholds import (
    FEWEST_IMAGES,
    choose_thresholds,
    choose_thresholds_apart,
)

NAMES = ("dark", "red", "striped")
COUNT = 72
FIGURES = (
    "mean_average_precision macro_f1 micro_f1 log_loss calibration_error brier roc_auc".split()
)


def labels_of(number):
    """Two labels independent of one another, and a rare third."""
    rng = np.random.default_rng([7, number])
    red, striped, dark = rng.random(3) < (0.5, 0.4, 0.25)
    return tuple(n for n, there in zip(NAMES, (dark, red, striped), strict=True) if there)


def paint(number):
    """uint8 (40, 48, 3): a picture that looks as its labels say, with noise of its own."""
    labels, rng = labels_of(number), np.random.default_rng(number)
    x = np.arange(48)[None, :, None]
    picture = rng.normal(80, 20, (40, 48, 3))
    picture += 80 * (x // 3 % 2) * ("striped" in labels)
    picture += np.array([90, 0, 0]) * ("red" in labels)
    picture *= 0.35 if "dark" in labels else 1
    return np.clip(picture, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of pictures, by number."""
    folder = tmp_path_factory.mktemp("several")
    for number in range(COUNT):
        Image.fromarray(paint(number)).save(folder / f"{number:03}.png")
    return folder


def write_csv(path, numbers, separator="|", header="path,label"):
    rows = [f"{number:03}.png,{separator.join(labels_of(number))}" for number in numbers]
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def train(pictures):
    return write_csv(pictures / "train.csv", range(54))


@pytest.fixture(scope="module")
def test(pictures):
    return write_csv(pictures / "test.csv", range(54, COUNT))


@pytest.fixture(scope="module")
def probe(train, tiny, tmp_path_factory):
    return headstart.fit(train, tmp_path_factory.mktemp("run") / "probe", **tiny)


# ---------------------------------------------------------------- from a manifest to predictions


def test_one_head_a_label_finds_nearly_all(probe, train, test, pictures):
    assert list(probe.metrics) == FIGURES
    assert probe.metrics["mean_average_precision"].value > 0.95
    assert list(probe.per_class) == list(probe.recall) == list(probe.classes) == list(NAMES)
    counts = [sum(name in labels_of(n) for n in range(54)) for name in NAMES]
    assert [figures.images for figures in probe.per_class.values()] == counts
    empty = sum(not labels_of(n) for n in range(54))
    assert f"{empty} images have no label, and count as having none of them" in probe.warnings
    result = headstart.evaluate(probe, test)
    assert result.metrics["mean_average_precision"].value > 0.95
    assert result.metrics["macro_f1"].value > 0.9
    assert result.images == {"evaluated": 18, "unreadable": 0}
    assert result.measured.labels.shape == (18, 3)
    predictions = list(headstart.predict(probe, [pictures / f"{n:03}.png" for n in range(54, 72)]))
    right = sum(
        set(p.label.split("|")) - {""} == set(labels_of(n)) for n, p in enumerate(predictions, 54)
    )
    assert right >= 16
    for p in predictions:
        assert p.label == "|".join(name for name, _ in p.labels)
        assert p.probability == p.top[0][1]
        of = dict(zip(probe.classes, probe.classifier.thresholds, strict=True))
        assert dict(p.labels) == {n: q for n, q in p.top if q >= of[n]}


def test_a_run_is_read_back(probe, tmp_path):
    again = headstart.Run.load(probe.folder)
    assert again.metrics == probe.metrics
    assert again.per_class == probe.per_class
    assert again.problem == probe.problem == "multi-label"
    assert again.classifier.thresholds == probe.classifier.thresholds
    assert again.classifier.problem.name == "multi-label"
    assert (again.measured.labels == probe.measured.labels).all()
    assert (again.measured.probabilities == probe.measured.probabilities).all()
    copy = tmp_path / "copy"
    again.classifier.save(copy)
    assert headstart.Classifier.load(copy).thresholds == probe.classifier.thresholds
    card = json.loads((probe.folder / "headstart.json").read_bytes())
    assert card["format"] == 2, "an older headstart would take the probabilities for those of one"
    assert card["problem"] == "multi-label"


def test_a_run_of_single_labels_says_nothing_of_several(tiny_run):
    card = json.loads((tiny_run.folder / "headstart.json").read_bytes())
    assert card["format"] == 1
    assert not {"problem", "thresholds"} & card.keys()
    assert tiny_run.problem == "single-label"
    assert all(np.isnan(figures.threshold) for figures in tiny_run.per_class.values())
    assert tiny_run.classifier.thresholds == ()
    assert tiny_run.classifier.problem is SINGLE_LABEL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"thresholds": [0.5]}, "needs 3 thresholds between 0 and 1, has 1"),
        ({"thresholds": [0.5, 0.5, 2]}, "needs 3 thresholds between 0 and 1"),
        ({"problem": "regression"}, "problem 'regression' is unknown"),
        ({"problem": "single-label"}, "needs 0 thresholds"),
    ],
)
def test_a_damaged_card_is_refused(probe, tmp_path, change, message):
    copy = shutil.copytree(probe.folder, tmp_path / "copy")
    card = json.loads((copy / "headstart.json").read_bytes())
    (copy / "headstart.json").write_text(json.dumps({**card, **change}))
    with pytest.raises(InputError, match=message):
        headstart.Run.load(copy)


def test_damaged_figures_are_refused(probe, tmp_path):
    copy = shutil.copytree(probe.folder, tmp_path / "copy")
    metrics = json.loads((copy / "metrics.json").read_bytes())
    del metrics["per_class"]["red"]
    (copy / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(InputError, match="'per_class' is not of the run's classes"):
        headstart.Run.load(copy)


def test_the_commands(train, test, pictures, tiny, tmp_path, cli):
    options = [w for n, v in tiny.items() for w in (f"--{n}", v)]
    code, out, err = cli("fit", train, "-o", tmp_path / "run", *options)
    assert code == 0, err
    assert "labels have '|' between them" in err
    assert "headstart predict" in err
    assert f"report: {tmp_path / 'run' / 'report.html'}" in out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert rows["label"][:4] == ["label", "images", "avg.", "prec."]
    assert int(rows["red"][1]) == sum("red" in labels_of(n) for n in range(54))
    assert "recall red" not in out
    code, out, err = cli("evaluate", tmp_path / "run", test)
    assert code == 0, err
    assert "mean average precision" in out
    code, out, _ = cli("evaluate", tmp_path / "run", test, "--json")
    assert json.loads(out)["per_class"]["red"]["images"] == sum(
        "red" in labels_of(n) for n in range(54, COUNT)
    )
    some = [pictures / f"{n:03}.png" for n in range(54, 60)]
    code, out, _ = cli("predict", tmp_path / "run", *some, "--csv")
    for row in csv.DictReader(io.StringIO(out)):
        assert len(row["label"].split("|")) == len(row["probability"].split("|"))
    code, out, _ = cli("predict", tmp_path / "run", *some, "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert all((f["label"] or "") == "|".join(n for n, _ in f["labels"]) for f in found)
    code, out, _ = cli("predict", tmp_path / "run", *some)
    assert code == 0
    for command in ("advise", "audit"):
        code, out, err = cli(command, train)
        assert code == 2
        assert err.count("\n") == 1
        assert "needs data of one label an image" in err


def test_fit_without_a_strategy_takes_a_probe(train, network, tmp_path):
    run = headstart.fit(train, tmp_path / "run", **network)
    assert run.strategy == "linear-probe"
    assert run.settings["strategy"] == {"value": "linear-probe", "origin": "advised"}
    assert run.settings["cut"]["origin"] == "measured"
    assert run.settings["class_weights"] == {"value": "none", "origin": "default"}
    assert any("the advice is for one label an image" in w for w in run.warnings)
    assert headstart.Run.load(run.folder).settings == run.settings


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "shallow-probe"},
        {"strategy": "linear-probe", "cut": "all"},
        {"strategy": "linear-probe", "cut": "blocks.0+blocks.4"},
        {"strategy": "linear-probe", "val": 0.25},
        {"strategy": "linear-probe", "head": "16", "epochs": 30, "lr": 0.01},
        {"strategy": "partial-fine-tune", "epochs": 2, "cut": "blocks.3", "views": 2},
        {"strategy": "fine-tune", "epochs": 2, "mixup": 0.2, "cutmix": 1.0, "refit": True},
        {"strategy": "fine-tune", "epochs": 1, "monitor": "accuracy", "wise_ft": True},
    ],
    ids=str,
)
def test_every_strategy(train, test, network, tmp_path, options):
    run = headstart.fit(train, tmp_path / "run", **network, **options)
    assert run.metrics["mean_average_precision"].value > 0.75
    if run.history:
        assert all(0 <= e["val_accuracy"] <= 1 for e in run.history)
        assert run.settings["label_smoothing"]["value"] == 0
        assert run.settings["monitor"]["value"] in ("loss", "accuracy", "last")
    assert headstart.evaluate(run, test).metrics["mean_average_precision"].value > 0.75


def test_from_random_weights(train, test, network, tmp_path):
    options = {n: v for n, v in network.items() if n != "weights"}
    run = headstart.fit(train, tmp_path / "run", strategy="scratch", epochs=1, **options)
    assert headstart.evaluate(run, test).measured.probabilities.shape == (18, 3)


def test_a_resumed_training_ends_alike(train, network, tmp_path):
    options = {"strategy": "linear-probe", "head": "8", "epochs": 4, "seed": 1}
    whole = headstart.fit(train, tmp_path / "whole", **network, **options)

    def stop(entry):
        if entry["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        headstart.fit(train, tmp_path / "cut", on_epoch=stop, checkpoint_s=0, **network, **options)
    again = headstart.fit(None, tmp_path / "cut", resume=True)
    assert again.metrics == whole.metrics
    assert again.classifier.thresholds == whole.classifier.thresholds


def test_what_has_no_effect_is_refused(train, probe, test, network, tmp_path):
    with pytest.raises(UsageError, match="class_weights balanced has no effect where images have"):
        headstart.fit(train, tmp_path / "run", class_weights="balanced", **network)
    with pytest.raises(UsageError, match="gives an image any number of labels"):
        headstart.evaluate(probe, test, multi_label=False)
    with pytest.raises(UsageError, match="'wrong' has no meaning with several labels"):
        headstart.evaluate(probe, test, unknown_classes="wrong")
    with pytest.raises(UsageError, match="exclude each other"):
        headstart.load_dataset(train, label_separator="|", multi_label=False)


def test_a_label_that_all_have_or_none_has_is_refused(pictures, network, tmp_path):
    path = pictures / "all.csv"
    path.write_text("path,label\n000.png,a|b\n001.png,a|c\n002.png,b|a\n")
    with pytest.raises(InputError, match="all training images have the label 'a'"):
        headstart.fit(path, tmp_path / "run", **network)


def test_evaluation_data_are_read_as_the_classifier_asks(probe, tiny_run, pictures, tmp_path):
    # Alone, neither of these says that there may be several.
    path = pictures / "few.csv"
    path.write_text("path,label\n054.png,red|striped\n055.png,dark\n056.png,\n")
    result = headstart.evaluate(probe, path)
    assert result.measured.labels.tolist() == [[0, 1, 1], [1, 0, 0], [0, 0, 0]]
    single = headstart.load_dataset([(paint(54), "red"), (paint(55), "dark")])
    assert single.problem.name == "single-label"
    assert headstart.evaluate(probe, single).measured.labels.tolist() == [[0, 1, 0], [1, 0, 0]]
    with pytest.raises(InputError, match="'green' is not one that the model knows"):
        headstart.evaluate(probe, ([paint(1)] * 2, [["red", "green"], []]))
    kept = headstart.evaluate(
        probe, ([paint(1)] * 2, [["red", "green"], []]), unknown_classes="skip"
    )
    assert kept.measured.labels.tolist() == [[0, 0, 0]]
    assert kept.unknown == 1
    several = headstart.from_arrays([paint(1)] * 2, [["blobs", "plain"], ["plain"]])
    with pytest.raises(InputError, match="image '0' has 2 labels, and one is needed"):
        headstart.evaluate(tiny_run, several)


def test_validation_data_of_their_own(train, test, tiny, tmp_path):
    run = headstart.fit(train, tmp_path / "run", val=str(test), **tiny)
    assert run.measured_on == "val"
    assert len(run.measured) == 18
    assert headstart.Run.load(run.folder).measured.ids == run.measured.ids


def test_groups_stay_together(pictures, tiny, tmp_path):
    path = pictures / "groups.csv"
    lines = ["path,label,group"]
    lines += [f"{n:03}.png,{'|'.join(labels_of(n))},{n // 3}" for n in range(54)]
    path.write_text("\n".join(lines))
    dataset = split_dataset(headstart.load_dataset(path), val=0.25)
    sides = {}
    for group, split in zip(dataset.groups, dataset.splits, strict=True):
        sides.setdefault(group, set()).add(split)
    assert all(len(side) == 1 for side in sides.values())
    folds = assign_folds(dataset.targets, dataset.units(), 3, 0, problem=MULTI_LABEL)
    assert all(len(set(folds[n : n + 3])) == 1 for n in range(0, 54, 3))
    assert headstart.fit(path, tmp_path / "run", **tiny).metrics["macro_f1"].value > 0.8


# ---------------------------------------------------------------- where several labels stand


@pytest.mark.parametrize(
    ("cells", "separator"),
    [
        (["barn|cow", "cow|dog"], "|"),
        (["cow", "barn|cow"], "|"),
        (["barn;cow", "cow"], ";"),
        (["plants|trees|oak", "plants|trees|elm", "plants"], None),
        (["a|b", "c|d"], None),
        (["cougar, puma, panther", "jaguar, panther", "panther"], None),
        (["red; old", "red; new"], None),
        ([], None),
    ],
)
def test_what_separates_labels(cells, separator):
    assert find_separator(cells) == separator


@given(
    st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True), max_size=8),
    st.sampled_from("|;"),
)
def test_what_a_separator_joins_it_parts(sets, separator):
    cells = [separator.join(own) for own in sets]
    found = find_separator(cells)
    places = {}
    for own in sets:
        for place, name in enumerate(own):
            places.setdefault(name, set()).add(place)
    assert found == (separator if any(len(p) > 1 for p in places.values()) else None)


def load(folder, text, name="m.csv", **options):
    (folder / name).write_text(text)
    return headstart.load_dataset(folder / name, **options)


def test_names_that_may_be_several_labels_are_told(tmp_path):
    text = "path,label\na.png,ants|insect\nb.png,bees|insect\nc.png,bees\n"
    whole = load(tmp_path, text)
    assert whole.classes == ("ants|insect", "bees", "bees|insect")
    assert [w for w in whole.warnings if "'ants|insect' is taken for the name of one" in w]
    for asked, classes in ((True, ("ants", "bees", "insect")), (False, whole.classes)):
        found = load(tmp_path, text, multi_label=asked)
        assert (found.classes, found.warnings) == (classes, ())
    assert load(tmp_path, text.replace("|insect", "|")).warnings == ()


def test_names_with_commas_stay_whole(tmp_path):
    dataset = load(tmp_path, 'path,label\na.png,"red, old"\nb.png,"old, blue"\nc.png,old\n')
    assert dataset.problem is SINGLE_LABEL
    assert dataset.classes == ("old", "old, blue", "red, old")
    text = 'path,label\na.png,"red, old"\nb.png,"old,blue,"\nc.png,\n'
    dataset = load(tmp_path, text, label_separator=",")
    assert dataset.label_names() == ("old|red", "blue|old", "")
    assert load(tmp_path, text.replace(",\n", ",x\n"), multi_label=True).classes[0] == "old,blue,"


def test_a_column_called_labels_has_several(tmp_path):
    text = "path,labels\na.png,barn|cow\nb.png,cow\n"
    assert load(tmp_path, text).label_names() == ("barn|cow", "cow")
    with pytest.raises(InputError, match=r"no column 'label' \(nearest: labels\)"):
        load(tmp_path, text.replace("barn|", ""))
    assert load(tmp_path, text.replace("barn|", ""), label_column="labels").classes == ("cow",)
    assert load(tmp_path, text.replace("barn|", ""), multi_label=True).classes == ("cow",)


def test_the_user_has_the_last_word(tmp_path):
    text = "path,label\na.png,barn|cow\nb.png,cow\n"
    assert load(tmp_path, text).classes == ("barn", "cow")
    whole = load(tmp_path, text, multi_label=False)
    assert (whole.problem, whole.classes) == (SINGLE_LABEL, ("barn|cow", "cow"))
    # Names with the separator always at one place are whole, unless it is said.
    text = "path,label\na.png,plants|oak\nb.png,plants|elm\n"
    assert load(tmp_path, text).classes == ("plants|elm", "plants|oak")
    assert load(tmp_path, text, multi_label=True).classes == ("elm", "oak", "plants")
    ones = load(tmp_path, "path,label\na.png,cow\nb.png,dog\n", multi_label=True)
    assert ones.problem.name == "multi-label"
    assert ones.targets.tolist() == [[1, 0], [0, 1]]


def test_a_row_without_a_label_is_one_only_where_there_are_several(tmp_path):
    with pytest.raises(InputError, match=r"m.csv, line 3: the image 'b.png' has no label"):
        load(tmp_path, "path,label\na.png,cow\nb.png,\nc.png,dog\n")
    dataset = load(tmp_path, "path,label\na.png,cow\nb.png,\nc.png,dog|cow\n")
    assert dataset.targets.tolist() == [[1, 0], [0, 0], [1, 1]]
    assert dataset.labelled().all()
    assert "1 image has no label, and counts as having none of them" in dataset.warnings


@pytest.mark.parametrize("options", [{}, {"multi_label": True}, {"label_separator": "|"}])
def test_a_cell_of_endless_labels(tmp_path, options):
    rows = [{"path": "a.png", "label": "|" * 2**20}, {"path": "b.png", "label": "x"}]
    with pytest.raises(InputError, match=r"more than 10,000 with '\|' between them"):
        load(tmp_path, "\n".join(map(json.dumps, rows)), "m.jsonl", **options)


@pytest.mark.parametrize("separator", ["", "  ", "too long one"])
def test_what_is_no_separator(tmp_path, separator):
    with pytest.raises(UsageError, match="label_separator must be 1 to 8 characters"):
        load(tmp_path, "path,label\na.png,cow\n", label_separator=separator)


LISTS = [("red", "striped"), (), ("red",), ("striped",)]


def assert_lists(dataset):
    assert dataset.problem.name == "multi-label"
    assert dataset.classes == ("red", "striped")
    assert dataset.targets.tolist() == [[1, 1], [0, 0], [1, 0], [0, 1]]


@pytest.mark.parametrize("no", ["0", "-1"])
@pytest.mark.parametrize("options", [{}, {"label_column": "red, striped"}])
def test_a_column_a_label(tmp_path, no, options):
    rows = [
        f"{n}.png,{','.join('1' if c in own else no for c in ('red', 'striped'))}"
        for n, own in enumerate(LISTS)
    ]
    dataset = load(tmp_path, "\n".join(["path,red,striped", *rows]), **options)
    assert_lists(dataset)
    told = "the labels from 2 columns, 'red' to 'striped'"
    assert any(told in w for w in dataset.warnings) is not bool(options)


def test_columns_of_one_label_each_are_single(tmp_path):
    text = "path,cat,dog\na.png,1,0\nb.png,0,1\n"
    assert load(tmp_path, text).targets.tolist() == [0, 1]
    assert load(tmp_path, text, multi_label=False).targets.tolist() == [0, 1]
    assert load(tmp_path, text, multi_label=True).targets.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("path,a,b\nx.png,1,2\n", {}, "no column 'label'"),
        (
            "path,a,b\nx.png,1,2\n",
            {"label_column": "a,b"},
            "line 2: the column 'b' must say 1 or 0",
        ),
        ("path,a,b\nx.png,1,\n", {"label_column": "a,b"}, "the column 'b' must say 1 or 0"),
        ("path,a,b\nx.png,1,0\ny.png,-1,1\n", {}, "columns of labels have 1, 0 and -1"),
        ("path,a,b\nx.png,1,0\n", {"label_column": "a,c"}, "no column 'c'"),
        ("path,a\nx.png,1\n", {}, "no column 'label'"),
        ("path,a,b\nx.png,1,1\ny.png,0,1\n", {"multi_label": False}, "'x.png' has 2 labels"),
    ],
)
def test_columns_that_say_nothing(tmp_path, text, options, message):
    with pytest.raises(InputError, match=message):
        load(tmp_path, text, **options)


def test_a_column_whose_name_has_commas(tmp_path):
    dataset = load(tmp_path, 'path,"a,b"\nx.png,cow\ny.png,dog\n', label_column="a,b")
    assert dataset.classes == ("cow", "dog")


def test_lists_in_jsonl(tmp_path):
    rows = [{"path": f"{n}.png", "label": list(own)} for n, own in enumerate(LISTS)]
    assert_lists(load(tmp_path, "\n".join(map(json.dumps, rows)), "m.jsonl"))
    for own, message in (
        ([""], "has a label without a name"),
        ([[1]], "must be text or a whole number, or a list"),
        ([None], "must be text or a whole number, or a list"),
        ({"a": 1}, "must be text or a whole number, or a list"),
        (["a\0"], "has a NUL in it"),
        (["a"] * 10_001, "must be text or a whole number, or a list"),
    ):
        text = json.dumps({"path": "0.png", "label": own})
        with pytest.raises(InputError, match=message):
            load(tmp_path, text, "m.jsonl")
    numbers = load(
        tmp_path, '{"path":"0.png","label":[10,2]}\n{"path":"1.png","label":2}', "n.jsonl"
    )
    assert numbers.label_names() == ("2|10", "2")


def test_lists_and_columns_in_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    paths, file = [f"{n}.png" for n in range(4)], tmp_path / "m.parquet"
    lists = pyarrow.array([list(own) for own in LISTS], pyarrow.list_(pyarrow.string()))
    for column in (lists, lists.cast(pyarrow.large_list(pyarrow.string()))):
        parquet.write_table(pyarrow.table({"path": paths, "labels": column}), file)
        assert_lists(headstart.load_dataset(file))
    columns = {n: [n in own for own in LISTS] for n in ("red", "striped")}
    parquet.write_table(pyarrow.table({"path": paths, **columns}), file)
    assert_lists(headstart.load_dataset(file))
    numbers = pyarrow.array([[1, 2], [], [1], [2]])
    parquet.write_table(pyarrow.table({"path": paths, "label": numbers}), file)
    assert headstart.load_dataset(file).label_names() == ("1|2", "", "1", "2")
    for wrong in (pyarrow.array([[0.5]] * 4), pyarrow.array([[["a"]]] * 4)):
        parquet.write_table(pyarrow.table({"path": paths, "label": wrong}), file)
        with pytest.raises(InputError, match="'label' must be text or whole numbers"):
            headstart.load_dataset(file)


@pytest.mark.parametrize(
    ("bound", "message"),
    [("MAX_BATCH_VALUES", "lists that are too long"), ("MAX_CHUNK_BYTES", "would take")],
)
def test_a_small_parquet_file_with_endless_lists(tmp_path, monkeypatch, bound, message):
    """A run of a million labels takes a few bytes there."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    values = pyarrow.array(np.zeros(2**20, dtype=np.int8))
    lists = pyarrow.ListArray.from_arrays(pyarrow.array([0, 2**20], pyarrow.int32()), values)
    file = tmp_path / "m.parquet"
    parquet.write_table(pyarrow.table({"path": ["a.png"], "label": lists}), file)
    assert file.stat().st_size < 10_000
    monkeypatch.setattr(headstart.data.parquet, bound, 2**19)
    with pytest.raises(InputError, match=message):
        headstart.load_dataset(file)


def test_metadata_of_a_folder(pictures, tmp_path):
    for number in range(4):
        shutil.copy(pictures / f"{number:03}.png", tmp_path / f"{number}.png")
    rows = [{"file_name": f"{n}.png", "labels": list(own)} for n, own in enumerate(LISTS)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert_lists(headstart.load_dataset(tmp_path))


def test_lists_in_shards(pictures, tmp_path):
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for number, own in enumerate(LISTS):
            shard.add(pictures / f"{number:03}.png", f"{number}.png")
            data = json.dumps({"label": list(own)}).encode()
            member = tarfile.TarInfo(f"{number}.json")
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
    assert_lists(headstart.load_dataset(tmp_path / "shard.tar"))


MATRIX = np.array([[1, 1], [0, 0], [1, 0], [0, 1]])
ROWS = [list(own) for own in LISTS]
PIXELS = np.stack([paint(n) for n in range(4)])


@pytest.mark.parametrize(
    "labels",
    [
        ROWS,
        [set(own) for own in ROWS],
        [tuple(own) for own in ROWS],
    ],
    ids=["lists", "sets", "tuples"],
)
def test_lists_from_python(labels):
    assert_lists(headstart.from_arrays(PIXELS, labels))
    assert_lists(headstart.load_dataset((PIXELS, labels)))
    assert_lists(headstart.load_dataset(list(zip(PIXELS, labels, strict=True))))


@pytest.mark.parametrize(
    "matrix",
    [MATRIX, MATRIX.astype(bool), MATRIX.astype(np.float32), 2 * MATRIX - 1, MATRIX.tolist()],
    ids=["int", "bool", "float", "minus", "list"],
)
def test_matrices_from_python(matrix, tmp_path):
    assert_lists(headstart.from_arrays(PIXELS, matrix, classes=["red", "striped"]))
    np.savez(tmp_path / "d.npz", images=PIXELS, labels=matrix, classes=np.array(["red", "striped"]))
    assert_lists(headstart.load_dataset(tmp_path / "d.npz"))


def test_one_hot_rows_stay_single():
    dataset = headstart.from_arrays(PIXELS, np.eye(4))
    assert dataset.targets.tolist() == [0, 1, 2, 3]
    forced = headstart.load_dataset((PIXELS, np.eye(4)), multi_label=True)
    assert forced.targets.tolist() == np.eye(4).tolist()
    # A part that happens to have one each is of the kind of the whole.
    labels = [["a", "b"], ["b"], ["a"], ["b"]]
    dataset = headstart.from_arrays(PIXELS, labels, splits=["train", "test", "test", "train"])
    assert dataset.problem.name == "multi-label"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([["a"], "b", [], []], "of more than one kind"),
        ([["a"], [""], [], []], "name of a class is empty"),
        ([[0.5], [1], [2], []], "no whole numbers"),
        (np.full((4, 2), 3), "not all 0 and 1"),
        (np.array([[1, 0], [0, -1], [1, 1], [0, 0]]), "not all 0 and 1"),
        (np.array([[1, np.nan]] * 4), "not all 0 and 1"),
        ([[0, 7], [], [], []], "there are 2 names"),
    ],
)
def test_what_names_no_labels(labels, message):
    with pytest.raises(InputError, match=message):
        headstart.from_arrays(PIXELS, labels, classes=["red", "striped"])


def test_lists_of_hugging_face(monkeypatch):
    """What `datasets` offers, without it: a column of images, and one of lists of a ClassLabel's numbers."""
    import dataclasses

    @dataclasses.dataclass
    class Feature:
        decode: bool = True

    feature = type("Image", (Feature,), {})()
    value = type("ClassLabel", (), {"names": ["red", "striped"]})()
    sequence = type("List", (), {"feature": value})()
    files = []
    for picture in PIXELS:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        files.append({"bytes": buffer.getvalue(), "path": None})
    numbers = [[("red", "striped").index(n) for n in own] for own in ROWS]

    class Table:
        def __init__(self, features, columns):
            self.features, self.columns = features, columns

        def with_format(self, kind):
            return self

        def select_columns(self, names):
            return Table(*({n: c[n] for n in names} for c in (self.features, self.columns)))

        def cast_column(self, name, feature):
            return Table({**self.features, name: feature}, self.columns)

        def __getitem__(self, key):
            return {n: column[key] for n, column in self.columns.items()}

        def __len__(self):
            return 4

    part = Table({"image": feature, "tags": sequence}, {"image": files, "tags": numbers})
    assert_lists(headstart.load_dataset(part))
    old = Table({"image": feature, "tags": [value]}, part.columns)
    assert_lists(headstart.load_dataset(old))


# ---------------------------------------------------------------- splits, heads, thresholds


@st.composite
def tables(draw, least=1):
    """Targets int8 (N, C) and probabilities float32 (N, C), with ties."""
    count, classes = draw(st.integers(least, 30)), draw(st.integers(1, 4))
    seed, steps = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([3, 1000]))
    rng = np.random.default_rng(seed)
    targets = (rng.random((count, classes)) < rng.random(classes)).astype(np.int8)
    noise = rng.random((count, classes))
    probabilities = np.round((noise + 0.7 * targets) / 1.7 * steps) / steps
    return targets, probabilities.astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(tables(), st.floats(0.05, 0.95))
def test_figures_are_those_of_scikit_learn(table, threshold):
    targets, probabilities = table
    names = tuple(map(str, range(targets.shape[1])))
    figures = measure_labels(targets, probabilities, names, thresholds=threshold)
    each = measure_each_label(targets, probabilities, names, thresholds=threshold)
    predicted = (probabilities >= threshold).astype(int)
    there = targets.any(axis=0)
    areas, scores = [], []
    for c, name in enumerate(names):
        if not there[c]:
            assert np.isnan(each[name].average_precision.value)
            assert np.isnan(each[name].f1.value)
            assert np.isnan(each[name].recall.value)
            continue
        areas.append(average_precision_score(targets[:, c], probabilities[:, c]))
        scores.append(f1_score(targets[:, c], predicted[:, c], zero_division=0))
        assert each[name].average_precision.value == pytest.approx(areas[-1])
        assert each[name].f1.value == pytest.approx(scores[-1])
        assert each[name].images == targets[:, c].sum()
        for figure in (each[name].average_precision, each[name].f1, each[name].recall):
            assert 0 <= figure.low <= figure.value + 1e-12
            assert figure.value <= figure.high + 1e-12 <= 1 + 1e-9
    if not there.any():
        assert np.isnan(figures["mean_average_precision"].value)
        assert np.isnan(figures["micro_f1"].value)
        return
    assert figures["mean_average_precision"].value == pytest.approx(np.mean(areas))
    assert figures["macro_f1"].value == pytest.approx(np.mean(scores))
    micro = f1_score(targets.ravel(), predicted.ravel(), zero_division=0)
    assert figures["micro_f1"].value == pytest.approx(micro)


def test_log_loss_is_the_sum_over_labels():
    rng = np.random.default_rng(0)
    targets, probabilities = (rng.random((50, 3)) < 0.4).astype(np.int8), rng.random((50, 3))
    expected = sum(log_loss(targets[:, c], probabilities[:, c]) for c in range(3))
    assert label_losses(targets, probabilities).mean() == pytest.approx(expected)
    figures = measure_labels(targets, probabilities, ("a", "b", "c"))
    assert figures["log_loss"].value == pytest.approx(expected)


def test_overlap_and_confusion():
    targets = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]])
    probabilities = np.array([[0.9, 0.1, 0.8], [0.1, 0.1, 0.1], [0.9, 0, 0], [0.9, 0, 0]])
    assert label_overlap(targets, probabilities).tolist() == [1 / 3, 1, 1, 0]
    assert confuse_labels(targets, probabilities).tolist() == [[2, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_the_intervals_hold_what_they_should():
    """The average precision of a known ranking lies within the interval of samples of it."""
    inside, of_samples = 0, 60
    whole = np.random.default_rng(0)
    targets = (whole.random((20_000, 1)) < 0.3).astype(np.int8)
    scores = sigmoid(whole.normal(0, 1, (20_000, 1)) + 1.2 * targets)
    true = average_precision_score(targets[:, 0], scores[:, 0])
    for seed in range(of_samples):
        rows = np.random.default_rng(seed + 1).integers(20_000, size=150)
        figures = measure_labels(targets[rows], scores[rows], ("a",))
        estimate = figures["mean_average_precision"]
        inside += estimate.low <= true <= estimate.high
    assert inside >= 0.9 * of_samples


def f1_of(true, predicted):
    return 2 * (true & predicted).sum() / (true.sum() + predicted.sum())


@settings(max_examples=60, deadline=None)
@given(tables(least=25))
def test_no_other_threshold_has_a_higher_f1(table):
    targets, probabilities = table
    chosen = choose_thresholds(targets, probabilities)
    assert ((chosen > 0) & (chosen < 1)).all()
    for c, threshold in enumerate(chosen):
        true, scores = targets[:, c] > 0, probabilities[:, c]
        if true.sum() < FEWEST_IMAGES:
            few = [
                t for t, label in zip(chosen, targets.T, strict=True) if label.sum() < FEWEST_IMAGES
            ]
            assert set(few) == {threshold}
            assert targets.sum() >= FEWEST_IMAGES or threshold == 0.5
            continue
        best = max(f1_of(true, scores >= t) for t in np.unique(scores))
        assert f1_of(true, scores >= threshold) == pytest.approx(best)


def test_a_threshold_is_not_chosen_by_the_image_it_is_for():
    rng = np.random.default_rng(0)
    targets = (rng.random((200, 2)) < 0.3).astype(np.int8)
    probabilities = rng.random((200, 2))  # that say nothing
    parts = np.arange(200) % 5
    apart = choose_thresholds_apart(targets, probabilities, parts)
    for part in range(5):
        expected = choose_thresholds(targets[parts != part], probabilities[parts != part])
        assert (apart[parts == part] == expected).all()


def test_heads_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 6)) * rng.uniform(0.1, 10, 6) + 3
    targets = (features @ rng.normal(size=(6, 3)) + rng.normal(size=(200, 3)) > 4).astype(np.int8)
    head = fit_linear(features, targets, 3, penalty=0.01, gap=1e-10)
    assert head.problem is MULTI_LABEL
    scaled = (features - features.mean(0)) / features.std(0)
    for c in range(3):
        own = LogisticRegression(C=1 / (0.01 * 200), tol=1e-8).fit(scaled, targets[:, c])
        expected = own.predict_proba(scaled)[:, 1]
        assert head.predict_proba(features)[:, c] == pytest.approx(expected, abs=1e-4)


def test_the_penalty_is_cross_validated():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(120, 30))
    targets = (features[:, :2] + rng.normal(size=(120, 2)) > 0).astype(np.int8)
    units = tuple(map(str, range(120)))
    penalty = choose_penalty(features, targets, units, 2)
    assert penalty.folds == 5
    losses = dict(penalty.path)
    assert min(losses, key=losses.get) == penalty.value
    assert label_losses(targets, penalty.probabilities).mean() == pytest.approx(
        losses[penalty.value], rel=1e-4
    )
    again = cross_validate(features, targets, units, 2, penalty=penalty.value)
    assert again == pytest.approx(penalty.probabilities, abs=2e-3)


def test_a_label_of_one_image_does_not_stop_the_others():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 5))
    targets = np.stack([features[:, 0] > 0, np.arange(40) == 3], axis=1).astype(np.int8)
    penalty = choose_penalty(features, targets, tuple(map(str, range(40))), 2)
    assert penalty.folds == 5
    assert np.isfinite(penalty.probabilities).all()
    assert average_precision_score(targets[:, 0], penalty.probabilities[:, 0]) > 0.9
    few = choose_penalty(features[:1], targets[:1], ("a",), 2)
    assert few.folds == 0


def test_the_mean_of_heads_has_the_mean_of_their_logits():
    rng = np.random.default_rng(0)
    values = {n: rng.normal(size=(60, 4)).astype(np.float32) for n in ("a", "b")}
    targets = np.stack([values["a"][:, 0] > 0, values["b"][:, 0] > 0], axis=1).astype(np.int8)
    units = tuple(map(str, range(60)))
    choice = choose_cuts(values, targets, units, 2, candidates=[("a",), ("b",)])
    assert choice.heads == (("b",), ("a",)) or choice.heads == (("a",), ("b",))
    heads = {(n,): fit_linear(values[n], targets, 2, penalty=0.1) for n in ("a", "b")}
    _, mean = average_heads(heads, {"a": 4, "b": 4})
    parts = [heads[(n,)].predict_proba(values[n]) for n in ("a", "b")]
    both = np.concatenate([values["a"], values["b"]], axis=1)
    expected = average_probabilities(parts, MULTI_LABEL)
    assert mean.predict_proba(both) == pytest.approx(expected, abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.booleans())
def test_folds_are_alike_in_every_label(seed, folds, grouped):
    rng = np.random.default_rng(seed)
    targets = (rng.random((300, 4)) < (0.5, 0.2, 0.05, 0.1)).astype(np.int8)
    units = tuple(str(n // 3 if grouped else n) for n in range(300))
    fold = assign_folds(targets, units, folds, 0, problem=MULTI_LABEL)
    for unit in set(units):
        assert len({f for f, u in zip(fold, units, strict=True) if u == unit}) == 1
    for label in targets.T:
        counts = [label[fold == f].sum() for f in range(folds)]
        assert max(counts) - min(counts) <= (6 if grouped else 3)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_part_held_out_is_alike_in_every_label(seed):
    rng = np.random.default_rng(seed)
    rows = (rng.random((200, 3)) < (0.5, 0.3, 0.06)).astype(np.int8)
    pixels = np.zeros((200, 8, 8, 3), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(200)  # no two are alike
    dataset = split_dataset(headstart.from_arrays(pixels, rows), val=0.2)
    held = np.array([s == "val" for s in dataset.splits])
    for label in dataset.targets.T:
        assert abs(label[held].sum() - 0.2 * label.sum()) <= 2
        assert label[held].any() or label.sum() < 2
