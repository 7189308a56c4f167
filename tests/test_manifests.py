"""Tables of images from elsewhere: Parquet, columns of any name, names of classes, metadata, GTSRB."""

import contextlib
import dataclasses
import io
import json
import os
import random
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

import headstart
import headstart.data.parquet
from headstart.data.class_names import read_class_names
from headstart.data.loading import load_dataset
from headstart.data.paths import Resolver
from headstart.errors import BadImageError, HeadstartError, InputError, UsageError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links and odd names")


def rows(dataset):
    """{id: class}, with / split and @ group where there are any."""
    columns = zip(dataset.ids, dataset.label_names(), dataset.splits, dataset.groups, strict=True)
    return {i: c + (s and f" / {s}") + (g and f" @ {g}") for i, c, s, g in columns}


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def refused(source, **options):
    """The one line of the error."""
    with pytest.raises(HeadstartError) as caught:
        load_dataset(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


# ---------------------------------------------------------------- which columns say what


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        ("Path;ClassId", "a.png;7", "7"),
        ("Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId", "a.png;9;9;1;1;8;8;7", "7"),
        ("ClassId,Path,Width", "7,a.png,1", "7"),
        ("image_path\tspecies", "a.png\toak", "oak"),
        ("FILE NAME,Class-Name", "a.png,oak", "oak"),
        ("id,image,target", "1,a.png,oak", "oak"),
        ("label,class_name,img", "3,oak,a.png", "3"),
        ("filepath,y,fold", "a.png,1,0", "1"),
        ("image_id,label,set", "a.png,x,Training", "x / train"),
        ("file,category,patient_id", "a.png,x,P7", "x @ P7"),
        ("path,label,subset,group,patient", "a.png,x,test,g,p", "x / test @ g"),
    ],
)
def test_usual_names_of_columns(header, row, expected, tmp_path):
    dataset = load_dataset(write(tmp_path / "m.csv", f"{header}\n{row}\n"))
    assert rows(dataset) == {"a.png": expected}


def test_guessed_columns_are_told(tmp_path):
    text = "Image_ID,Species,Patient,split\na.png,oak,7,train\n"
    told = load_dataset(write(tmp_path / "m.csv", text)).warnings[0]
    assert told == (
        "columns by their usual names: the path from 'Image_ID', the label from 'Species', the group from "
        "'Patient'; --path-column and --label-column can name others"
    )
    options = {"path_column": "Image_ID", "label_column": "species"}
    told = load_dataset(tmp_path / "m.csv", **options).warnings[0]
    assert told == "columns by their usual names: the group from 'Patient'"
    assert load_dataset(write(tmp_path / "n.csv", "PATH,label\na.png,x\n")).warnings == ()
    # A pattern of one's own goes before a column that may be the group.
    assert load_dataset(tmp_path / "m.csv", group="(a)").groups == ("a",)


def test_guesses_of_many_rows_are_told_thrice(tmp_path):
    lines = [json.dumps({"".join(name): f"{n}.png", "label": "x"}) for n, name in enumerate(CASES)]
    dataset = load_dataset(write(tmp_path / "m.jsonl", "\n".join(lines)))
    assert len(dataset) == len(CASES)
    assert len(dataset.warnings) == 3


CASES = ["file", "File", "fIle", "fiLe", "filE"]


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        ("image,file,label", {}, "the columns 'file' and 'image' may both be the path; choose one with --p"),
        ("path,class,ClassId", {}, "the columns 'class' and 'ClassId' may both be the label; choose one"),
        ("class_id,ClassId,path", {}, "the columns 'class_id' and 'ClassId' may both be the label; choose"),
        ("path,label,patient,subject", {}, "'patient' and 'subject' may both be the group; rename one"),
        ("path,diagnosis", {}, "no column 'label'; found 'path', 'diagnosis'. The columns path and label"),
        ("path", {}, "no column 'label'; found 'path'. "),
        ("path,diagnosis", {"label_column": "diagnose"}, "no column 'diagnose' (nearest: diagnosis), which"),
        ("path,label", {"path_column": "\0"}, r"no column '\x00', which --path-column names; found 'path'"),
        ("path,label,Path", {}, "the header names a column twice: ['path', 'label', 'Path']"),
    ],
)  # fmt: skip
def test_columns_that_are_not_sure(header, options, message, tmp_path):
    path = write(tmp_path / "m.csv", f"{header}\n{','.join('a' for _ in header.split(','))}\n")
    assert message in refused(path, **options)


def test_columns_that_options_name(tmp_path):
    text = "image,file,diagnosis,label\na.png,b.png,oak,x\n"
    path = write(tmp_path / "m.csv", text)
    options = {"path_column": "file", "label_column": "Diagnosis"}
    assert rows(load_dataset(path, **options)) == {"b.png": "oak"}
    assert load_dataset(path, **options).warnings == ()
    assert rows(load_dataset(path, label_column="image", path_column="file")) == {"b.png": "a.png"}
    (tmp_path / "c/k").mkdir(parents=True)
    write(tmp_path / "c/k/1", "x")
    message = refused(tmp_path / "c", label_column="x")
    assert message.startswith("label_column applies to ")


def test_a_guessed_split_that_is_none_says_what_to_do(tmp_path):
    path = write(tmp_path / "m.csv", "path,label,set\na.png,x,blue\n")
    assert "split 'blue' is unknown; use train, val or test, or call the column" in refused(path)


# ---------------------------------------------------------------- hostile rows

HOSTILE = {
    "traversal": ("path,label\n../a.png,x\n", "'../a.png' leads outside of"),
    "absolute": ("path,label\n/etc/passwd,x\n", "'/etc/passwd' leads outside of"),
    "NUL": ("path,label\na\0.png,x\n", "the path contains a NUL character"),
    "empty label": ("path,label\na.png,\n", "the image 'a.png' has no label"),
    "blank label": ("path,label\na.png,  \n", "the image 'a.png' has no label"),
    "a header alone": ("path,label\n", "no rows; each image needs a row"),
    "a column": ("path\na.png\n", "no column 'label'"),
    "UTF-16 without a mark": ("path,label\na.png,x\n".encode("utf-16-le"), "no column 'path'"),
    "half of a cell": ('path,label\n"a.png,x\n', "unexpected end of data"),
    "a very long cell": (f"path,label\n{'a' * 200_000},x\n", "field larger than field limit"),
    "too few cells": ("path;label\na.png\n", "1 cells where the header has 2"),
    "a name twice": ('{"path": "a", "label": "x", "label": "y"}', "a name stands twice"),
    "not Unicode": ('{"path": "a.png", "label": "\\ud800"}', "is not valid Unicode"),
}
HARMLESS = {
    "long": (f"path,label\n{'a' * 10_000}.png,x\n", {f"{'a' * 10_000}.png": "x"}),
    "BOM": ("\ufeffpath,label\na.png,x\n", {"a.png": "x"}),
    "UTF-16": ("path,label\na.png,x\n".encode("utf-16"), {"a.png": "x"}),
    "formulas": ("path,label\na.png,=1+1\nb.png,@x\n", {"a.png": "=1+1", "b.png": "@x"}),
    "newlines": ("path,label\r\na,x\nb,x\rc,x\r\n", {"a": "x", "b": "x", "c": "x"}),
    "semicolons": ('path;label\n"a;1.png";x,y\n', {"a;1.png": "x,y"}),
    "tabs": ("path\tlabel\na, b.png\tx\n", {"a, b.png": "x"}),
    "markup": ("path,label\n[red].png,<b>\x1b[2J\n", {"[red].png": "<b>\x1b[2J"}),
    "a number as id": ('{"id": 7, "label": 3}', {"7": "3"}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_rows_are_refused_in_one_line(name, tmp_path):
    text, message = HOSTILE[name]
    suffix = ".jsonl" if text[:1] == "{" else ".csv"
    assert message in refused(write(tmp_path / f"m{suffix}", text))


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_rows_are_read(name, tmp_path):
    text, expected = HARMLESS[name]
    suffix = ".jsonl" if text[:1] == "{" else ".csv"
    assert rows(load_dataset(write(tmp_path / f"m{suffix}", text))) == expected


def test_a_pipe_is_no_manifest(tmp_path):
    os.mkfifo(tmp_path / "m.csv")
    assert "expected " in refused(tmp_path / "m.csv")


# ---------------------------------------------------------------- names without a suffix


def test_a_name_without_a_suffix_is_that_of_its_file(tmp_path):
    for name in (
        "train/0a1b.jpg",
        "train/0a1c.JPEG",
        "train/7.png",
        "train/v1.5.png",
        "train/plain",
    ):
        write(tmp_path / name, "x")
    write(tmp_path / "train/0a1b.txt", "x")
    text = "id,label\n0a1b,x\n0a1c,x\n7,y\nv1.5,y\nplain,y\nnone,y\n7.png,y\n"
    dataset = load_dataset(write(tmp_path / "train.csv", text), root=tmp_path / "train")
    ids = ["0a1b.jpg", "0a1c.JPEG", "7.png", "none", "plain", "v1.5.png"]
    assert list(dataset.ids) == ids
    assert "1 repeated row counted once" in dataset.warnings
    write(tmp_path / "train/0a1b.png", "x")
    message = refused(tmp_path / "train.csv", root=tmp_path / "train")
    assert message.endswith("line 2: '0a1b' may be 0a1b.jpg or 0a1b.png; write the suffix too")


def test_a_name_without_a_suffix_leads_nowhere_else(tmp_path):
    write(tmp_path / "out/x.png", "x")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link.png").symlink_to("../out/x.png")
    (tmp_path / "in/out").symlink_to("../out")
    path = write(tmp_path / "in/m.csv", "id,label\nlink,x\n")
    assert "'link.png' is a link that leads outside of" in refused(path)
    path = write(tmp_path / "in/m.csv", "id,label\nout/x,x\n")
    assert "'out/x' is a link that leads outside of" in refused(path)
    assert load_dataset(path, allow_outside=True).ids == ("out/x.png",)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["..", ".", "", "a", "C:", "x.png", "\0", "\ud800"]) | st.text()))
def test_a_resolved_path_stays_below_the_root(parts):
    try:
        found = Resolver(Path("/nowhere/root"), False)("/".join(parts))
    except InputError:
        return
    assert not found.startswith("/")
    assert ".." not in found.split("/")
    found.encode()


# ---------------------------------------------------------------- Parquet


def save(path, columns, **options):
    parquet.write_table(pyarrow.table(columns), path, **options)
    return path


CSV = "path,label,split,group\na/1.png,7,train,p\na/2.png,é,val,\nb/1.png,7,,q\n"


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd"])
@pytest.mark.parametrize("more", [{}, {"use_dictionary": False}, {"data_page_version": "2.0"}])
def test_parquet_is_read_as_csv_is(compression, more, tmp_path):
    cells = [line.split(",") for line in CSV.split()]
    columns = {name: [row[n] for row in cells[1:]] for n, name in enumerate(cells[0])}
    extra = {"score": [0.5, 1.5, 2.5], "box": [[1, 2], [3], []]}
    path = save(tmp_path / "m.parquet", columns | extra, compression=compression, **more)
    expected = load_dataset(write(tmp_path / "m.csv", CSV))
    assert rows(load_dataset(path)) == rows(expected)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (pyarrow.array([3, 10], pyarrow.int64()), ("3", "10")),
        (pyarrow.array([3, 10], pyarrow.uint8()), ("3", "10")),
        (pyarrow.array(["x", "y"], pyarrow.large_string()), ("x", "y")),
        (pyarrow.array(["x", "y"]).dictionary_encode(), ("x", "y")),
        (pyarrow.DictionaryArray.from_arrays(pyarrow.array([1, 0], pyarrow.int8()), ["y", "x"]), ("x", "y")),
    ],
)  # fmt: skip
def test_labels_of_a_parquet(label, expected, tmp_path):
    path = save(tmp_path / "m.parquet", {"path": ["a.png", "b.png"], "label": label})
    assert tuple(load_dataset(path).label_names()) == expected


def test_batches_of_a_parquet_are_in_order(tmp_path):
    count = 40_000
    names = [f"{n:05}.png" for n in range(count)]
    labels = [str(n % 10) for n in range(count)]
    path = save(tmp_path / "m.parquet", {"label": labels, "path": names}, row_group_size=30_000)
    dataset = load_dataset(path)
    assert list(dataset.ids) == names
    assert list(dataset.label_names()) == labels
    labels[-1] = ""
    save(path, {"label": labels, "path": names})
    assert "row 40000: the image '39999.png' has no label" in refused(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": [["a"]], "label": ["x"]}, "the column 'path' must be text or whole numbers, and is list"),
        ({"path": ["a"], "label": [0.5]}, "the column 'label' must be text or whole numbers, and is double"),
        ({"path": ["a"], "label": [True]}, "the column 'label' must be text or whole numbers, and is bool"),
        ({"path": [b"a"], "label": ["x"]}, "the column 'path' must be text or whole numbers, and is binary"),
        ({"path": ["a"], "label": [{"x": 1}]}, "and is struct<x: int64>"),
        ({"image": [{"bytes": b"", "path": "a"}], "label": [1]}, "images inside of Parquet are read by"),
        ({"path": [None], "label": ["x"]}, "row 1: the path is missing"),
        ({"path": ["a"], "label": [None]}, "row 1: the image 'a' has no label"),
        ({"path": ["../a"], "label": ["x"]}, "row 1: '../a' leads outside of"),
        ({"path": ["a"], "Path": ["b"], "label": ["x"]}, "the header names a column twice"),
        ({"path": ["a"]}, "no column 'label'"),
        ({name: pyarrow.array([], pyarrow.string()) for name in ("path", "label")}, "no rows"),
    ],
)  # fmt: skip
def test_bad_parquet(columns, message, tmp_path):
    assert message in refused(save(tmp_path / "m.parquet", columns))


@pytest.mark.parametrize(
    "data", [b"", b"PAR1", b"PAR1" * 3, b"path,label\n", b"PAR1\xff\xff\xff\x7fPAR1"]
)
def test_what_is_no_parquet(data, tmp_path):
    assert "no readable Parquet: " in refused(write(tmp_path / "m.parquet", data))


def test_damaged_parquet_is_one_line(tmp_path):
    columns = {"path": [f"{n}.png" for n in range(300)], "label": [str(n % 7) for n in range(300)]}
    path = save(tmp_path / "m.parquet", columns, row_group_size=120, compression="zstd")
    whole, draw = path.read_bytes(), random.Random(0)
    outcomes, lines = set(), set()
    for _ in range(300):
        data = bytearray(whole)
        del data[draw.choice([len(data), draw.randrange(len(data))]) :]
        if data:
            data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data)
        try:
            outcomes.add(len(load_dataset(path)))
        except HeadstartError as exc:
            outcomes.add(type(exc))
            lines.add(str(exc).count("\n"))
    assert outcomes >= {300, InputError}
    assert lines == {0}


def test_a_text_that_stands_for_many_rows_takes_no_memory(tmp_path):
    texts = pyarrow.DictionaryArray.from_arrays(np.zeros(20_000, np.int32), ["a" * 100_000])
    path = save(tmp_path / "m.parquet", {"path": texts, "label": ["x"] * 20_000})
    assert path.stat().st_size < 500_000
    assert "the column 'path' holds texts that are too long" in refused(path)


def test_pages_that_inflate_are_not_read(tmp_path, monkeypatch):
    names = [f"{n:07}" * 20 for n in range(20_000)]
    columns = {"path": names, "label": ["x"] * 20_000, "other": names}
    path = save(tmp_path / "m.parquet", columns, compression="zstd", use_dictionary=False)
    monkeypatch.setattr(headstart.data.parquet, "MAX_CHUNK_BYTES", 2**21)
    assert path.stat().st_size < 2**21
    assert "the column 'path' would take 2 MiB at once; write smaller row groups" in refused(path)
    save(path, columns, compression="zstd", row_group_size=5000)
    assert len(load_dataset(path)) == 20_000
    monkeypatch.setattr(headstart.data.parquet, "MAX_ROWS", 1000)
    assert "more than 1,000 rows; split the file" in refused(path)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    path = save(tmp_path / "m.parquet", {"path": ["a"], "label": ["x"]})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = "Parquet needs pyarrow: pip install 'headstart[parquet]', or save the table as CSV"
    assert refused(path) == message


# ---------------------------------------------------------------- names of classes

SIGNS = "ClassId,SignName\n0,Speed limit (20km/h)\n1,Speed limit (30km/h)\n2,Stop\n"


def plant_numbers(root, *names):
    for name in names:
        write(root / name / "1.png", "x")
    return root


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("signnames.csv", SIGNS),
        ("signnames.csv", "\ufeff" + SIGNS.replace(",", ";").replace("\n", "\r\n")),
        ("names.tsv", SIGNS.replace(",", "\t")),
        ("names.txt", "Speed limit (20km/h)\nSpeed limit (30km/h)\r\nStop\n\n"),
        ("names", "Speed limit (20km/h)\nSpeed limit (30km/h)\nStop"),
        ("names.json", '["Speed limit (20km/h)", "Speed limit (30km/h)", "Stop"]'),
        ("names.json", '{"2": "Stop", "0": "Speed limit (20km/h)", "1": "Speed limit (30km/h)"}'),
        ("names.jsonl", '{"n": 2, "s": "Stop"}\n{"n": 0, "s": "Speed limit (20km/h)"}\n'),
    ],
)
def test_classes_get_their_names(name, text, tmp_path):
    data = plant_numbers(tmp_path / "data", "00000", "00002")
    dataset = load_dataset(data, class_names=write(tmp_path / name, text))
    assert dataset.classes == ("Speed limit (20km/h)", "Stop")
    assert rows(dataset) == {"00000/1.png": "Speed limit (20km/h)", "00002/1.png": "Stop"}
    unused = f"1 class of {name} without images: 'Speed limit (30km/h)'"
    assert dataset.warnings == ((unused,) if "30km" in text else ())


def test_named_classes_stay_in_the_order_of_their_numbers(tmp_path):
    names = write(tmp_path / "names.txt", "\n".join(f"{chr(122 - n)}" for n in range(12)))
    data = plant_numbers(tmp_path / "data", *map(str, range(12)))
    assert "".join(load_dataset(data, class_names=names).classes) == "zyxwvutsrqpo"
    table = write(tmp_path / "m.csv", "path,label\na,10\nb,2\n")
    assert rows(load_dataset(table, class_names=names)) == {"a": "p", "b": "x"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("n.csv", "ClassId,SignName\n0,a\n", "n.csv: class '00002' has no name there; add a line for it"),
        ("n.csv", "ClassId,SignName\n0,a\n2,a\n", "n.csv: classes 0 and 2 are both called 'a'"),
        ("n.csv", "ClassId,SignName\n0,a\n0,b\n", "n.csv: class 0 has two names: 'a' and 'b'"),
        ("n.csv", "ClassId,SignName\nx,a\n", "line 2: the number of a class must be a whole number from 0"),
        ("n.csv", "ClassId,SignName\n-1,a\n", "line 2: the number of a class must be a whole number from 0"),
        ("n.csv", "ClassId,SignName\n0,\n", "the name of class 0 must have 1 to 200 characters, got ''"),
        ("n.csv", "a,b,c\n0,a,b\n", "line 1: 3 columns, and two are needed: the number of a class and"),
        ("n.csv", "0,a\n2,b\n", "line 1: must name the two columns, as in ClassId,SignName, and is a cla"),
        ("n.csv", "", "n.csv: empty; the first line must name the columns"),
        ("n.txt", "", "n.txt: no names; give one a line"),
        ("n.txt", "a\n\nb\n", "the name of class 1 must have 1 to 200 characters, got ''"),
        ("n.txt", "a" * 201, "the name of class 0 must have 1 to 200 characters"),
        ("n.txt", b"caf\xe9", "n.txt: not utf-8-sig text at byte 3"),
        ("n.json", "[" * 100_000, "n.json: not JSON"),
        ("n.json", "3", "n.json: expected a list of names, or an object {number: name}"),
        ("n.json", "[3]", "the name of class 0 must be text, got 3"),
        ("n.json", '{"0": "a", "0": "b"}', "n.json: class 0 has two names: 'a' and 'b'"),
        ("n.json", '{"a": "0"}', "the number of a class must be a whole number from 0 on, got 'a'"),
        ("n.json", '["\\ud800"]', "the name of class 0 '\\ud800' is not valid Unicode"),
        ("none.csv", None, "none.csv: missing, or not a regular file"),
    ],
)  # fmt: skip
def test_bad_class_names(name, text, message, tmp_path):
    data = plant_numbers(tmp_path / "data", "00000", "00002")
    path = tmp_path / name if text is None else write(tmp_path / name, text)
    assert message in refused(data, class_names=path)


def test_classes_that_are_no_numbers_are_not_named(tmp_path):
    names = write(tmp_path / "names.txt", "a\nb\nc\n")
    data = plant_numbers(tmp_path / "one", "cat", "1")
    assert "class 'cat' is no number, and" in refused(data, class_names=names)
    data = plant_numbers(tmp_path / "two", "1", "01")
    assert "classes '01' and '1' are the same number; merge them" in refused(
        data, class_names=names
    )


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.integers(0, 10**9), st.text(min_size=1, max_size=30), max_size=20))
def test_names_of_classes_round_trip(tmp_path_factory, names):
    path = tmp_path_factory.mktemp("names") / "names.json"
    path.write_text(json.dumps(names))
    found = {}
    with contextlib.suppress(InputError):
        found = read_class_names(path)
    assert found.keys() in (names.keys(), {}.keys())
    if all(map(str.isalnum, names.values())) and len(set(map(str.casefold, names.values()))) == len(
        names
    ):
        assert len(found) == len(names)


# ---------------------------------------------------------------- metadata beside the images


def plant_metadata(root):
    """The layout of https://huggingface.co/docs/datasets/image_dataset, with a table in each split."""
    for name in ("0001.png", "0002.png", "deep/0003.png", "0004.png"):
        write(root / "train" / name, "x")
    write(root / "test/0001.png", "x")
    lines = ["file_name,label,additional_feature", "0001.png,cat,a", "0002.png,dog,b"]
    lines += ["deep/0003.png,cat,", "0004.png,dog,"]
    write(root / "train/metadata.csv", "\n".join(lines))
    write(root / "test/metadata.jsonl", '{"file_name": "0001.png", "label": "dog"}\n')
    return root


def test_metadata_of_each_split(tmp_path):
    dataset = load_dataset(plant_metadata(tmp_path))
    assert rows(dataset) == {
        "test/0001.png": "dog / test",
        "train/0001.png": "cat / train",
        "train/0002.png": "dog / train",
        "train/0004.png": "dog / train",
        "train/deep/0003.png": "cat / train",
    }
    assert dataset.warnings == ()
    assert dataset.image(1).read() == b"x"


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_metadata_above_the_splits(suffix, tmp_path):
    names, labels = ["train/1.png", "test/1.png", "2.png"], [1, 0, 1]
    lines = [json.dumps({"file_name": n, "label": c}) for n, c in zip(names, labels, strict=True)]
    path = tmp_path / f"metadata.{suffix}"
    if suffix == "parquet":
        save(path, {"file_name": names, "label": labels})
    elif suffix == "csv":
        rows_of = [f"{n},{c}" for n, c in zip(names, labels, strict=True)]
        write(path, "\n".join(["file_name,label", *rows_of]))
    else:
        write(path, "\n".join(lines))
    expected = {"2.png": "1", "test/1.png": "0 / test", "train/1.png": "1 / train"}
    assert rows(load_dataset(tmp_path)) == expected


def test_other_metadata_do_not_hide_the_class_folders(tmp_path):
    plant_numbers(tmp_path, "cat", "dog")
    for text in ("image,label\na,b\n", "", b"\xff", "file_name,label,label\n"):
        write(tmp_path / "metadata.csv", text)
        assert load_dataset(tmp_path).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train/metadata.csv", "file_name,text\n1.png,x\n", "no column 'label'"),
        ("train/metadata.csv", "file_name,label\n../1.png,x\n", "line 2: 'train/../1.png' leads outside of"),
        ("train/metadata.csv", "file_name,label\n/etc/passwd,x\n", "line 2: '/etc/passwd' leads outside of"),
        ("train/metadata.csv", "file_name,label\n", "train/metadata.csv name no images"),
        ("metadata.csv", "file_name,label\ntrain/a,x\ntrain/a,y\n", "line 3: 'train/a' stands already at"),
    ],
)  # fmt: skip
def test_bad_metadata(name, text, message, tmp_path):
    write(tmp_path / name, text)
    write(tmp_path / "train/1.png", "x")
    assert message in refused(tmp_path)


def test_metadata_that_contradict_each_other(tmp_path):
    plant_metadata(tmp_path)
    write(tmp_path / "metadata.csv", "file_name,label\ntrain/0001.png,dog\n")
    message = refused(tmp_path)
    assert re.search(
        r"train/metadata.csv, line 2: '0001.png' stands already at .*/metadata.csv, line 2 ",
        message,
    )
    (tmp_path / "metadata.csv").unlink()
    write(tmp_path / "train/metadata.jsonl", '{"file_name": "1", "label": "x"}')
    message = "train/metadata.csv and train/metadata.jsonl stand in one folder; keep one"
    assert message in refused(tmp_path)


def test_metadata_behind_a_link_are_not_read(tmp_path):
    write(tmp_path / "out/metadata.csv", "file_name,label\n1.png,x\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train").symlink_to("../out")
    assert "is a link that leads outside of" in refused(tmp_path / "data")


# ---------------------------------------------------------------- GTSRB

HEADER = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2"
PIXELS = b"P6\n2 1\n255\n" + bytes(range(6))


def plant_signs(root, training="GTSRB/Final_Training/Images", answers="GT-final_test.csv"):
    """As the archives of https://benchmark.ini.rub.de have it: lines end on CR LF, tracks of 30 images."""
    for number, name in enumerate(("00000", "00014")):
        lines = [f"{HEADER};ClassId"]
        for track in range(2):
            for image in range(3):
                file = f"{track:05}_{image:05}.ppm"
                write(root / training / name / file, PIXELS)
                lines.append(f"{file};29;30;5;6;24;25;{int(name)}")
        write(root / training / name / f"GT-{name}.csv", "\r\n".join(lines) + "\r\n")
        write(root / f"GTSRB/Final_Test/Images/{number:05}.ppm", PIXELS)
    lines = [HEADER, "00000.ppm;53;54;6;5;48;49", "00001.ppm;42;45;5;5;36;40"]
    write(root / "GTSRB/Final_Test/Images/GT-final_test.test.csv", "\r\n".join(lines) + "\r\n")
    if answers:
        lines = [f"{lines[0]};ClassId", f"{lines[1]};14", f"{lines[2]};0"]
        write(root / answers, "\r\n".join(lines) + "\r\n")
    return root


@pytest.mark.parametrize("below", ["", "GTSRB"])
@pytest.mark.parametrize("training", ["GTSRB/Final_Training/Images", "GTSRB/Training"])
@pytest.mark.parametrize(
    "answers",
    [
        "GT-final_test.csv",
        "GTSRB/GT-final_test.csv",
        "GTSRB/Final_Test/GT-final_test.csv",
        "GTSRB/Final_Test/Images/GT-final_test.csv",
    ],
)
def test_gtsrb(below, training, answers, tmp_path):
    dataset = load_dataset(plant_signs(tmp_path, training, answers) / below)
    place = f"{training}/".removeprefix(f"{below}/" if below else "")
    test = "Final_Test/Images/" if below else "GTSRB/Final_Test/Images/"
    found = rows(dataset)
    assert found.pop(f"{test}00000.ppm") == "00014 / test"
    assert found.pop(f"{test}00001.ppm") == "00000 / test"
    assert found == {
        f"{place}{name}/{track:05}_{image:05}.ppm": f"{name} / train @ {name}/{track:05}"
        for name in ("00000", "00014")
        for track in range(2)
        for image in range(3)
    }
    assert all(dataset.image(row).read() == PIXELS for row in range(len(dataset)))
    assert [w.partition(" are ")[0] for w in dataset.warnings] == [
        "regions of interest (Roi.X1, …)"
    ]


def test_gtsrb_of_training_images_alone(tmp_path):
    images = plant_signs(tmp_path, answers="") / "GTSRB/Final_Training/Images"
    dataset = load_dataset(tmp_path)
    assert (len(dataset), set(dataset.splits)) == (12, {"train"})
    assert dataset.warnings[-1].startswith(
        "the test images are left out, since no GT-final_test.csv"
    )
    assert len(load_dataset(images)) == len(load_dataset(images.parent)) == 12
    names = write(tmp_path / "signnames.csv", "ClassId,SignName\n0,20\n14,Stop\n")
    assert load_dataset(tmp_path, class_names=names).classes == ("20", "Stop")
    assert load_dataset(tmp_path, group="([0-9]+_0000[0-9])").groups[0] == "00000_00000"
    assert len(load_dataset(tmp_path, format="gtsrb")) == 12


@pytest.mark.parametrize(
    ("place", "old", "new", "message"),
    [
        ("Final_Training/Images/00014/GT-00014.csv", ";14", ";15", "is of another class than its folder"),
        ("Final_Training/Images/00014/GT-00014.csv", ";14", ";", "has no label"),
        ("Final_Training/Images/00014/GT-00014.csv", ";14", ";stop", "ClassId must be a number below 100"),
        ("Final_Training/Images/00014/GT-00014.csv", "Filename", "Name", "no column 'Filename' (nearest: "),
        ("Final_Training/Images/00014/GT-00014.csv", "00001_00001.ppm", "../../x.ppm", "leads outside of"),
        ("Final_Training/Images/00014/GT-00014.csv", "\r\n", ";\r\n;", "cells where the header has"),
        ("GT-final_test.csv", ";14", ";999999", "ClassId must be a number below 100,000, got '999999'"),
        ("GT-final_test.csv", "00001.ppm", "00000.ppm", "line 3: '00000.ppm' stands already at line 2"),
    ],
)  # fmt: skip
def test_bad_gtsrb(place, old, new, message, tmp_path):
    path = plant_signs(tmp_path, answers="GTSRB/GT-final_test.csv") / "GTSRB" / place
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode()))
    assert message in refused(tmp_path)


def test_answers_of_gtsrb_behind_a_link_are_not_read(tmp_path):
    answers = plant_signs(tmp_path) / "GT-final_test.csv"
    (tmp_path / "GTSRB/Final_Test" / answers.name).symlink_to("../../GT-final_test.csv")
    assert "is a link that leads outside of" in refused(tmp_path / "GTSRB")
    assert len(load_dataset(tmp_path)) == 14


def test_gtsrb_with_a_class_that_lacks_its_table(tmp_path):
    plant_signs(tmp_path)
    (tmp_path / "GTSRB/Final_Training/Images/00014/GT-00014.csv").unlink()
    assert "Images/00014/GT-00014.csv is missing; unpack the archive once more" in refused(tmp_path)
    plant_numbers(tmp_path / "plain", "00000", "00014")
    assert load_dataset(tmp_path / "plain").groups == ("", "")


# ---------------------------------------------------------------- datasets of Hugging Face


def paint(number):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@dataclasses.dataclass
class Value:
    dtype: str = "string"


@dataclasses.dataclass
class ClassLabel:
    names: list


@dataclasses.dataclass
class HubImage:
    mode: str | None = None
    decode: bool = True
    id: str | None = None


HubImage.__name__ = "Image"


class Table:
    """Offers what `datasets.Dataset` of datasets 5.2 does, as far as it is used; counts rows."""

    def __init__(self, columns, features):
        self.columns, self.features, self.read = columns, features, []

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def with_format(self, kind):
        assert kind is None
        return self

    def select_columns(self, names):
        return Table({n: self.columns[n] for n in names}, {n: self.features[n] for n in names})

    def cast_column(self, name, feature):
        assert not feature.decode
        return Table(self.columns, {**self.features, name: feature})

    def __getitem__(self, key):
        if isinstance(key, slice):
            return {name: values[key] for name, values in self.columns.items()}
        self.read.append(key)
        assert not self.features["image"].decode
        return {name: values[key] for name, values in self.columns.items()}


def table(count=3, labels=None, **more):
    images = [{"bytes": paint(n), "path": None} for n in range(count)]
    labels = [n % 2 for n in range(count)] if labels is None else labels
    features = {"image": HubImage(), "label": ClassLabel(["cat", "dog"])}
    columns = {"image": images, "label": labels}
    return Table(columns | more, features | dict.fromkeys(more, Value()))


def test_a_dataset_of_hugging_face():
    source = table(12)
    dataset = load_dataset(source)
    assert dataset.ids[:2] == ("00", "01")
    assert rows(dataset)["11"] == "dog"
    assert dataset.image(7).read() == paint(7)
    assert dataset.image(7).read(4) == paint(7)[:4]
    assert dataset.image(7).stamp() is None
    assert (dataset.warnings, dataset.name) == ((), "datasets.Dataset")


def test_splits_of_hugging_face():
    found = {"train": table(2), "validation": table(1, patient=["p"]), "test": table(1, [-1])}
    dataset = load_dataset(found)
    expected = {"train/0": "cat / train", "train/1": "dog / train", "validation/0": "cat / val @ p"}
    assert rows(dataset) == expected
    assert dataset.warnings == (
        "columns by their usual names: the group from 'patient'",
        "datasets.Dataset of test: left out, since none of its images has a label",
    )
    assert dataset.image(2).read() == paint(0)


def test_images_of_hugging_face_on_disk(tmp_path):
    source = table(4)
    write(tmp_path / "1.png", paint(9))
    source.columns["image"] = [
        {"bytes": None, "path": str(tmp_path / "1.png")},
        {"bytes": None, "path": str(tmp_path / "none.png")},
        {"bytes": None, "path": None},
        None,
    ]
    dataset = load_dataset(source)
    assert dataset.image(0).read() == paint(9)
    for row, reason in (
        (1, "no such file"),
        (2, "no image in this row"),
        (3, "no image in this row"),
    ):
        with pytest.raises(BadImageError, match=reason):
            dataset.image(row).read()


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (table(), {"root": "x"}, "root applies to"),
        (
            table(),
            {"path_column": "label"},
            "no column 'label' of images; those of images: ['image']",
        ),
        (table(), {"label_column": "x"}, "no column 'x', which --label-column names"),
        (table(2, [0, -1]), {}, "row 1: the image '1' has no label"),
        (table(2, [0, 2]), {}, "a label 2, and there are 2 names"),
        (table(2, [-1, -1]), {}, "no labelled images"),
        (
            {"train": table(), "extra": table()},
            {},
            "split 'extra' is unknown; give train, val and test",
        ),
        (
            Table({"label": [0]}, {"label": ClassLabel(["a"])}),
            {},
            "no columns of images []; cast one to",
        ),
        (3, {}, "the data are of type int; give a path or a datasets.Dataset"),
        ({}, {}, "no images with labels among"),
    ],
)
def test_bad_datasets_of_hugging_face(source, options, message):
    assert message in refused(source, **options)


def test_labels_of_hugging_face_that_are_not_sure():
    source = table(2)
    source.columns |= {"fine": source.columns.pop("label"), "coarse": [1, 1]}
    source.features |= {"fine": source.features.pop("label"), "coarse": ClassLabel(["a", "b"])}
    assert "the columns 'fine' and 'coarse' may both be the label" in refused(source)
    assert load_dataset(source, label_column="coarse").classes == ("b",)


# ---------------------------------------------------------------- the way through the commands


@pytest.fixture(scope="module")
def signs(loose, tmp_path_factory):
    """(folder with odd.csv of the pictures of `loose`, whose labels are numbers, and names.csv)."""
    folder = tmp_path_factory.mktemp("signs")
    kinds = [path.name for path in sorted(loose.iterdir())]
    lines = [
        f"{path.relative_to(loose).as_posix()},{kinds.index(path.parent.name)}"
        for path in sorted(loose.rglob("*.png"))
    ]
    write(folder / "odd.csv", "\n".join(["where,what", *lines]))
    write(folder / "names.csv", "\n".join(["n,name", *(f"{n},a {k}" for n, k in enumerate(kinds))]))
    return folder


def test_options_go_through_every_command(signs, loose, tiny, network, tmp_path, cli):
    reading = ["--root", loose, "--path-column", "where", "--label-column", "what"]
    reading += ["--class-names", signs / "names.csv"]
    options = [w for n, v in network.items() for w in (f"--{n}", v)]
    run, data = tmp_path / "run", signs / "odd.csv"
    code, _, err = cli("fit", data, "-o", run, "--strategy", "linear-probe", *options, *reading)
    assert (code, headstart.Run.load(run).classes) == (0, ("a blobs", "a plain", "a stripes"))
    assert "--label-column what --class-names" in err
    kept = json.loads((run / "settings.json").read_text())
    assert kept["label_column"] == {"value": "what", "origin": "user"}
    assert kept["class_names"] == {"value": str(signs / "names.csv"), "origin": "user"}
    code, out, _ = cli("evaluate", run, data, "--json", "--device", "cpu", *reading)
    assert (code, list(json.loads(out)["recall"])) == (0, ["a blobs", "a plain", "a stripes"])
    code, out, _ = cli("extract", data, "--json", *reading, "--backbone", "test_vit", *options[2:])
    assert (code, json.loads(out)["images"]) == (0, 24)
    code, out, _ = cli("predict", run, next(loose.rglob("*.png")), "--csv", "--device", "cpu")
    assert (code, "a blobs" in out) == (0, True)
    code, _, err = cli("evaluate", run, data, "--device", "cpu", *reading[:-2])
    assert code == 3
    assert "class '0' is not one that the model knows" in err
    assert f"give --class-names {signs / 'names.csv'} as for the run" in err.replace("\n", " ")
    code, _, err = cli("fit", data, "-o", tmp_path / "two", "--root", loose)
    assert (code, "no column 'path'; found 'where', 'what'" in err) == (3, True)


def test_validation_data_are_named_likewise(signs, loose, tiny, tmp_path):
    header, *lines = (signs / "odd.csv").read_text().split()
    data = write(tmp_path / "train.csv", "\n".join([header, *lines[::2]]))
    more = write(tmp_path / "val.csv", "\n".join([header, *lines[1::2]]))
    for path in loose.rglob("*.png"):
        write(tmp_path / path.relative_to(loose), path.read_bytes())
    reading = {"path_column": "where", "label_column": "what", "class_names": signs / "names.csv"}
    run = headstart.fit(data, tmp_path / "run", **tiny, **reading, val=str(more))
    assert (run.measured_on, run.images) == ("val", {"train": 12, "val": 12, "unreadable": 0})
    assert run.classes == ("a blobs", "a plain", "a stripes")
    with pytest.raises(UsageError, match="the validation data are training data; name others"):
        headstart.fit(data, tmp_path / "two", **tiny, **reading, val=str(data))
    with pytest.raises(UsageError, match="class_names has no effect on a Dataset"):
        headstart.fit(load_dataset(loose), tmp_path / "two", **tiny, class_names="x")


def test_a_run_on_a_dataset_of_hugging_face(loose, tiny, tmp_path, cli):
    paths = sorted(loose.rglob("*.png"))
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    kinds = sorted({path.parent.name for path in paths})
    labels = [kinds.index(path.parent.name) for path in paths]
    features = {"image": HubImage(), "label": ClassLabel(kinds)}
    source = Table({"image": images, "label": labels}, features)
    run = headstart.fit(source, tmp_path / "run", **tiny)
    assert run.classes == tuple(kinds)
    assert run.data is None
    result = headstart.evaluate(run, {"test": source}, device="cpu")
    assert (result.split, result.images["evaluated"]) == ("test", 24)
    with pytest.raises(UsageError, match="the data are of type int"):
        headstart.fit(3, tmp_path / "two", **tiny)
