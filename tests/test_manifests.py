"""Tables of images from elsewhere: Parquet, columns of any name, names of classes, metadata, GTSRB."""

import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table_files import refused, rows, write

import headstart
import headstart.data.parquet
from headstart.data.loading import load_dataset
from headstart.data.paths import Resolver
from headstart.errors import InputError, UsageError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links and odd names")


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
    assert (code, list(json.loads(out)["per_class"])) == (0, ["a blobs", "a plain", "a stripes"])
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
