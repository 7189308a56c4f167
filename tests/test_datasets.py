"""Folders and manifests, clean and hostile, end as the right rows or as one clear message."""

import contextlib
import csv
import dataclasses
import json
import os
import re
import shutil
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.choices import choose, nearest
from headstart.data.dataset import Dataset, Row, add_validation, dataset_of_rows, match_classes
from headstart.data.folders import list_files
from headstart.data.form import Form, LoadOptions
from headstart.data.images import FileSource, MemorySource
from headstart.data.loading import FORMS, load_dataset
from headstart.data.scan import scan_images
from headstart.data.splits import find_identical, split_dataset
from headstart.draws import draw
from headstart.errors import HeadstartError, InputError, UsageError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links, pipes and odd names")

CIRCLE = "link that leads in a circle or cannot be followed"
OUTSIDE = "link leads outside of the data folder (allow with --allow-outside)"
BACK = "link to a folder that is read already"


def plant(root, *entries):
    """Create "a/1.png", the folder "a/", the link "a/2.png -> 1.png" or the pipe "a/p |"."""
    for entry in entries:
        name, _, target = entry.partition(" -> ")
        path = root / name.removesuffix(" |")
        path.parent.mkdir(parents=True, exist_ok=True)
        if target:
            path.symlink_to(target)
        elif name.endswith(" |"):
            os.mkfifo(path)
        elif name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(b"x")
    return root


def rows(dataset):
    """{id: class}, with / split and : error where there are any."""
    labels = [dataset.classes[k] if k >= 0 else "-" for k in dataset.labels]
    columns = zip(dataset.ids, labels, dataset.splits, dataset.errors, strict=True)
    return {i: c + (f" / {s}" if s else "") + (f": {e}" if e else "") for i, c, s, e in columns}


# ---------------------------------------------------------------- folders

TREES = {
    "classes": (["c/1.jpg", "c/deep/2"], {"c/1.jpg": "c", "c/deep/2": "c"}),
    "natural order": (["10/a", "2/a", "1/a"], {"1/a": "1", "10/a": "10", "2/a": "2"}),
    "one class": (["cat/1.png"], {"cat/1.png": "cat"}),
    "train is a class": (["train/1", "car/1"], {"car/1": "car", "train/1": "train"}),
    "test is a class": (["test/1", "blank/1"], {"blank/1": "blank", "test/1": "test"}),
    "companion names": (["license/1", "readme/1"], {"license/1": "license", "readme/1": "readme"}),
    "folder named as a file": (["a/x.jpg/1.png", "a/y.jpg/"], {"a/x.jpg/1.png": "a"}),
    "case": (["Cat/1", "cat/1"], {"Cat/1": "Cat", "cat/1": "cat"}),
    "NFC and NFD": (["é/1", "e\u0301/2"], {"e\u0301/2": "é", "é/1": "é"}),
    "newline": (["a\nb/c\nd"], {"a\nb/c\nd": "a\nb"}),
    "ANSI": (["\x1b[31ma/\x1b[2J"], {"\x1b[31ma/\x1b[2J": "\x1b[31ma"}),
    "bidi": (["a\u202eb/gpj.1\u202e"], {"a\u202eb/gpj.1\u202e": "a\u202eb"}),
    "markup": (["[red]/=1+1"], {"[red]/=1+1": "[red]"}),
    "not UTF-8": (["a\udcff/\udce9.png"], {"a\udcff/\udce9.png": "a\udcff"}),
    "broken link": (["a/1", "a/2 -> no"], {"a/1": "a", "a/2": "a: broken link"}),
    "loop": (["a/1", "a/2 -> 2"], {"a/1": "a", "a/2": f"a: {CIRCLE}"}),
    "loop as class": (["a/1", "b -> b"], {"a/1": "a", "b": f"-: {CIRCLE}"}),
    "loop in train": (
        ["train/a/1", "train/b/1", "train/c -> c"],
        {"train/a/1": "a / train", "train/b/1": "b / train", "train/c": f"- / train: {CIRCLE}"},
    ),
    "link inside": (["a/1", "b/2 -> ../a/1"], {"a/1": "a", "b/2": "b"}),
    "link to a class": (["a/1", "b -> a"], {"a/1": "a", "b/1": "b"}),
    "link to itself": (["a/1", "a/b -> ."], {"a/1": "a", "a/b": f"a: {BACK}"}),
    "link to root": (["a/1", "b/2", "a/c -> .."], {"a/1": "a", "a/c": f"a: {BACK}", "b/2": "b"}),
    "escaping file": (["a/1", "a/2 -> ../../out/x/1"], {"a/1": "a", "a/2": f"a: {OUTSIDE}"}),
    "escaping folder": (["a/1", "a/2 -> ../../out/x"], {"a/1": "a", "a/2": f"a: {OUTSIDE}"}),
    "escaping class": (["a/1", "x -> ../out/x"], {"a/1": "a", "x": f"-: {OUTSIDE}"}),
    "FIFO": (["a/1", "a/pipe.jpg |"], {"a/1": "a", "a/pipe.jpg": "a: not a regular file"}),
}


@pytest.mark.parametrize("name", TREES)
def test_tree(name, tmp_path):
    entries, expected = TREES[name]
    plant(tmp_path, "out/x/1")
    root = plant(tmp_path / "data", *entries)
    dataset = load_dataset(root)
    assert rows(dataset) == expected
    assert dataset.ids == tuple(sorted(dataset.ids))
    assert all(os.path.lexists(dataset.root / image_id) for image_id in dataset.ids)


@pytest.mark.parametrize(
    "link", ["a/2 -> ../../out/x/1", "a/2 -> ../../out/x", "x -> ../out/x", "train -> ../out"]
)
def test_links_that_lead_out_need_leave(link, tmp_path):
    plant(tmp_path, "out/x/1")
    root = plant(tmp_path / "data", "test/a/2" if "train" in link else "a/1", link)
    dataset = load_dataset(root, allow_outside=True)
    assert (len(dataset), set(dataset.errors)) == (2, {""})
    try:
        assert OUTSIDE in load_dataset(root).errors
    except InputError as exc:
        refused = str(exc)
        assert all(word in refused for word in ("train", "--allow-outside"))


def test_links_among_classes_do_not_multiply(tmp_path):
    links = [f"{a}/{b} -> ../{b}" for a in "abcdef" for b in "abcdef" if a != b]
    dataset = load_dataset(plant(tmp_path, *(f"{a}/1" for a in "abcdef"), *links))
    assert dataset.errors.count("") <= 36


@pytest.mark.parametrize("train", ["train", "training", "TRAIN"])
@pytest.mark.parametrize("other", ["val", "valid", "validation", "VAL", "test", "testing", "Test"])
def test_split_names(train, other, tmp_path):
    dataset = load_dataset(plant(tmp_path, f"{train}/a/1", f"{train}/b/1", f"{other}/a/1"))
    split = "test" if "t" in other.lower() and "d" not in other.lower() else "val"
    assert Counter(dataset.splits) == {"train": 2, split: 1}
    assert dataset.classes == ("a", "b")
    assert [dataset.splits[i] for i in dataset.rows(split)] == [split]


UNSEEN = "differs from another only in characters that cannot be seen"


@pytest.mark.parametrize(
    "hidden",
    ["\u200b", "\u200d", "\ufeff", "\u00ad", "\u202e", "\u2066", "\ufe0f", "\u3164", "\xa0", " "],
)
def test_classes_that_look_the_same_are_told(hidden, tmp_path):
    dataset = load_dataset(plant(tmp_path, "cat/1", f"cat{hidden}/1", "cats/1", "c at/1"))
    told = [w for w in dataset.warnings if "cannot be seen" in w]
    assert len(told) == 2
    assert any(ascii(f"cat{hidden}") in w for w in told)


@pytest.mark.parametrize(
    ("entries", "ignored", "warnings"),
    [
        (["a/1", "a/.x", ".git/1", ".y"], {"hidden": 3}, []),
        (["a/1", "a/n.TXT", "m.csv", "a/Thumbs.db"], {".txt": 1, ".csv": 1, "thumbs.db": 1}, []),
        (["a/1", "b/"], {}, ["class without images, left out: b"]),
        (["a/1", "b/n.txt"], {".txt": 1}, ["class without images, left out: b"]),
        (["a/1", "x"], {}, ["passed over 1 file in the data folder outside of any"]),
        (["train/a/1", "train/b/1", "raw/1"], {}, ["passed over raw: beside train, only val and"]),
        (
            ["train/a/1", "train/b/1", "train/x"],
            {},
            ["passed over 1 file in train/ outside"],
        ),
        (
            ["Cat/1", "cat/1"],
            {},
            [f"class '{c}at' differs from another only in upper" for c in "Cc"],
        ),
        (["é/1", "e\u0301/2"], {}, ["class 'é' occurs in two Unicode forms"]),
    ],
)
def test_what_is_passed_over_is_told(entries, ignored, warnings, tmp_path):
    dataset = load_dataset(plant(tmp_path, *entries))
    assert dataset.ignored == ignored
    assert len(dataset.warnings) == len(warnings)
    assert all(map(str.startswith, dataset.warnings, warnings))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "no images in class folders; put each class's images in a folder of its name"),
        (["a/", "b/"], "no images in class folders"),
        (["1.png", "2.png"], "no images in class folders; put each class's images in a folder of"),
        (
            ["a.zip", "b.zip", "c/d.TAR"],
            "no images in class folders; there are archives (1 .tar, 2 ",
        ),
        (["train/a/1", "Train/a/1"], "Train and train both mean the split 'train'; keep one"),
        (["train/a/1", "val/a/1", "valid/a/1"], "val and valid both mean the split 'val'"),
    ],
)
def test_bad_tree(entries, message, tmp_path):
    root = plant(tmp_path / "data", "./", *entries)
    with pytest.raises(InputError) as caught:
        load_dataset(root)
    assert str(caught.value).startswith(f"{root}: {message}")


@pytest.mark.parametrize(
    "name", ["a.zip", "a.tar.gz", "a.tgz", "a.npz", "a.pkl", "a", "pipe.csv |", "none.csv -> no"]
)
def test_what_is_no_data_is_refused(name, tmp_path):
    plant(tmp_path, name)
    message = "expected one of the forms of data .*, manifest, "
    if "->" in name:
        message = "no such file"
    elif name in ("a.zip", "a.tar.gz", "a.tgz"):
        message = "no zip, nor a tar that is plain or compressed by gzip, bzip2, xz or zstd, or dam"
    with pytest.raises(InputError, match=message):
        load_dataset(tmp_path / name.split()[0])


@pytest.mark.parametrize(
    ("given", "advised"),
    [
        ("photos/train/bees", "photos"),
        ("photos/val/bees", "photos"),
        ("plain/bees", "plain"),
    ],
)
def test_the_folder_of_one_class_names_the_one_to_give(given, advised, tmp_path, monkeypatch):
    places = [f"{top}/{k}/1.jpg" for k in ("ants", "bees") for top in ("plain", "train")]
    places += [f"photos/{part}/{k}/1.jpg" for k in ("ants", "bees") for part in ("train", "val")]
    plant(tmp_path, *places)
    message = "it looks like the images of one class; give the folder of all classes: "
    with pytest.raises(InputError, match=re.escape(f"{message}{tmp_path / advised}") + "$"):
        load_dataset(tmp_path / given)
    monkeypatch.chdir(tmp_path / given)
    with pytest.raises(InputError, match=re.escape(message + os.path.relpath(tmp_path / advised))):
        load_dataset(".")
    assert load_dataset(tmp_path / advised).classes == ("ants", "bees")


def test_loose_images_alone_are_no_class_among_others(tmp_path):
    plant(tmp_path, "loose/1.jpg", "documents/notes.txt", "empty/")
    with pytest.raises(InputError, match="put each class's images in a folder of its name"):
        load_dataset(tmp_path / "loose")


@pytest.mark.parametrize("folder", ["train/a", "val"])
def test_a_folder_that_cannot_be_listed_is_named(folder, tmp_path, monkeypatch):
    plant(tmp_path, "train/a/1", "train/b/1", "val/a/1")
    scandir, outcome = os.scandir, []

    def refuse(path):
        if Path(path) == tmp_path / folder:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    try:
        outcome = [f"{i}: {e}" for i, e in rows(load_dataset(tmp_path)).items()]
    except InputError as exc:
        outcome = [str(exc)]
    assert any(f"{folder}: " in o and "cannot be listed: Permission" in o for o in outcome)


def test_list_files(tmp_path):
    plant(tmp_path, "b/2.png", "1.png", ".h", "n.txt", "l.png -> no", "pipe |")
    expected = [("1.png", ""), ("b/2.png", ""), ("l.png", "broken link")]
    assert list(list_files(tmp_path)) == [*expected, ("pipe", "not a regular file")]


# ---------------------------------------------------------------- manifests


def manifest(folder, text, suffix=".csv", **options):
    path = folder / f"m{suffix}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_dataset(path, **options)


@pytest.mark.parametrize(
    ("text", "suffix", "expected"),
    [
        ("path,label\nb.png,dog\na.png,cat\n", ".csv", {"a.png": "cat", "b.png": "dog"}),
        ("PATH, Label \r\na.png,  cat \r\n\r\n", ".CSV", {"a.png": "cat"}),
        ('path,label\n"a,\n1.png","c ""x"""\n', ".csv", {"a,\n1.png": 'c "x"'}),
        ("path\tlabel\na b.png\tcat\n", ".tsv", {"a b.png": "cat"}),
        ('{"path": "a", "label": 3}\n\n', ".jsonl", {"a": "3"}),
        ('{"file_name": "a", "category": "x", "subset": null}', ".ndjson", {"a": "x"}),
        ("filename,class,subset\na,x,VALID\n", ".csv", {"a": "x / val"}),
        ("image,class_name,split\na,x,training\n", ".csv", {"a": "x / train"}),
        ("filepath,label,other\n./d//a,x,1\n", ".csv", {"d/a": "x"}),
        (",path,label\n0,a.png,cat\n1,b.png,dog\n", ".csv", {"a.png": "cat", "b.png": "dog"}),
        ("\ufeffpath,label\na,x\n", ".csv", {"a": "x"}),
        ("path,label\na,x\n".encode("utf-16"), ".csv", {"a": "x"}),
        ("path,label\na,x\nb,x\n./a,x\n", ".csv", {"a": "x", "b": "x"}),
        ("path,label\ra,x\r", ".csv", {"a": "x"}),
        ("path,label\na,e\u0301\nb,é\n", ".csv", {"a": "é", "b": "é"}),
        ('{"image": "a", "label": 1}\n{"file": "b", "class": 1}', ".jsonl", {"a": "1", "b": "1"}),
    ],
)
def test_manifest(text, suffix, expected, tmp_path):
    dataset = manifest(tmp_path, text, suffix)
    assert rows(dataset) == expected
    told = [w for w in dataset.warnings if not w.startswith("columns by their usual names: ")]
    assert told == (["1 repeated row counted once"] if "./a" in str(text) else [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": empty; the first line must name the columns path and label"),
        ("path,label\n", ": no rows; each image needs a row with its path and label"),
        ("a.png,cat\nb.png,dog\n", ", line 1: no column 'path'; found 'a.png', 'cat'"),
        ("path,labels\na,x\n", ", line 1: no column 'label' (nearest: labels)"),
        ("path,path,label\na,b,x\n", ": the header names a column twice"),
        ("path,Path,label\na,b,x\n", ": the header names a column twice"),
        ("path,label\na\n", ", line 2: 1 cells where the header has 2"),
        ("path,label\na,x,y\n", ", line 2: 3 cells where the header has 2"),
        ('path,label\n"a,x\n', ", line 2: unexpected end of data"),
        ("path,label\na,\n", ", line 2: the image 'a' has no label; remove the row or fill it"),
        ("path,label\n,x\n", ", line 2: the path is missing"),
        ("path,label,split\na,x,trian\n", ", line 2: split 'trian' is unknown (nearest: train)"),
        ("path,label\na,x\n./a,y\n", ", line 3: './a' stands already at line 2 with another"),
        ("path,label,split\na,x,train\na,x,val\n", ", line 3: 'a' stands already at line 2"),
        ("path,label,group\na,x,g\na,x,h\n", ", line 3: 'a' stands already at line 2"),
        ("path,label\n../a,x\n", ", line 2: '../a' leads outside of "),
        ("path,label\nb/../../a,x\n", ", line 2: 'b/../../a' leads outside of "),
        ("path,label\n/etc/hosts,x\n", ", line 2: '/etc/hosts' leads outside of "),
        ("path,label\n..\\a,x\n", ", line 2: '..\\a' leads outside of "),
        ("path,label\nC:\\a.png,x\n", ", line 2: 'C:\\a.png' leads outside of "),
        ("path,label\nout.png,x\n", ", line 2: 'out.png' is a link that leads outside of "),
        ("path,label\nout/x,x\n", ", line 2: 'out/x' is a link that leads outside of "),
        ("path,label\nhttps://x.y/a,x\n", ", line 2: 'https://x.y/a' is an address; download"),
        ("path,label\na\0b,x\n", ", line 2: the path contains a NUL character"),
        (b"path,label\na,caf\xe9\n", ": not utf-8-sig text at byte 16; save as UTF-8"),
        ("path,label\na,x\n".encode("utf-16")[:-1], ": not utf-16 text at byte "),
        ('{"path": "a", "label": NaN}', ", line 1: not JSON: NaN is not JSON"),
        ('{"path": "a", "label": null}', ", line 1: the image 'a' has no label"),
        ('{"path": "a", "label": 1.5}', ", line 1: the label must be text or a whole number"),
        ('{"path": "a", "label": true}', ", line 1: the label must be text or a whole number"),
        ('{"path": ["a"], "label": "x"}', ", line 1: the path must be text or a whole number"),
        ('{"path": "a"}', ", line 1: no column 'label'"),
        ("[1]", ", line 1: expected an object with path and label"),
        ('{"path": "a", "label": "x"}\n{"path', ", line 2: not JSON: "),
        ("[" * 100_000, ", line 1: not JSON: "),
    ],
)
def test_bad_manifest(text, message, tmp_path):
    plant(tmp_path, "out/x")
    root = plant(tmp_path / "data", "out.png -> ../out/x", "out -> ../out")
    suffix = ".jsonl" if text[:1] in ("{", "[") else ".csv"
    with pytest.raises(InputError) as caught:
        manifest(root, text, suffix)
    assert str(caught.value).startswith(f"{root / 'm'}{suffix}{message}")


LONG, HALF = "a" * 300, "\ud83d"  # HALF of a surrogate pair, which JSON can spell
HOSTILE_ROWS = [(LONG, "x"), (f"{LONG}/b", "x"), ("a/" * 3000 + "b", "x"), (f"{HALF}.png", "x")]
HOSTILE_ROWS += [(f"{HALF}/b.png", "x"), ("a", HALF), ("a", "1" * 5000), ("../a\nb", "x")]


@pytest.mark.parametrize("row", range(len(HOSTILE_ROWS)))
def test_hostile_values_make_a_row_or_one_line(row, tmp_path):
    path, label = HOSTILE_ROWS[row]
    refused = ""
    try:
        dataset = manifest(tmp_path, json.dumps({"path": path, "label": label}), ".jsonl")
        "".join((*split_dataset(dataset).splits, *dataset.classes)).encode()
    except InputError as exc:
        refused = str(exc)
    assert "\n" not in refused


def test_a_name_of_any_length_is_one_line_that_can_be_read(tmp_path):
    with pytest.raises(InputError, match=r"line 1: '\.\./aaa.*aaa' leads outside of") as caught:
        manifest(tmp_path, json.dumps({"path": f"../{'a' * 100_000}", "label": "x"}), ".jsonl")
    assert len(str(caught.value)) < 2010


def test_root_and_leave_to_go_out(tmp_path):
    plant(tmp_path, "images/a.png", "out/b.png", "images/l.png -> ../out/b.png")
    options = {"root": tmp_path / "images"}
    dataset = manifest(tmp_path, "path,label\na.png,x\n", **options)
    assert dataset.image(0).source == FileSource(tmp_path / "images/a.png")
    text = f"path,label\nl.png,x\n../out/b.png,x\n{tmp_path}/out/b.png,x\n"
    dataset = manifest(tmp_path, text, **options, allow_outside=True)
    assert all(dataset.image(row).stamp() is not None for row in range(3))
    with pytest.raises(InputError, match="the root of the manifest's paths is not a folder"):
        manifest(tmp_path, text, root=tmp_path / "none")
    with pytest.raises(
        UsageError,
        match=r"root applies to the form manifest, and the data are a folder of class folders; lea",
    ):
        load_dataset(tmp_path, root=tmp_path)


@pytest.fixture(scope="module")
def links(tmp_path_factory):
    base = plant(tmp_path_factory.mktemp("links"), "out/x.png")
    escapes = "data/out -> ../out", "data/leak -> ../out/x.png", "data/in/up -> ../.."
    return plant(base, *escapes, "data/in/a", "data/loop -> loop", "data/in/b -> a") / "data"


HOSTILE = ["..", ".", "", "out", "leak", "in", "up", "loop", "b", "~", "C:", "...", "file:", "\0"]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(HOSTILE) | st.text(max_size=20), min_size=1, max_size=6),
    st.sampled_from(["/", "\\", "//"]),
)
def test_no_path_leads_out_of_the_root(links, parts, separator):
    with contextlib.suppress(InputError):
        row = {"path": separator.join(parts), "label": "x"}
        dataset = manifest(links, json.dumps(row), ".jsonl")
        assert Path(os.path.realpath(dataset.root / dataset.ids[0])).is_relative_to(links.resolve())


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
PARTS = TEXT.map(lambda part: "i_" + part.replace("/", "").replace("\\", ""))


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.lists(PARTS, min_size=1).map("/".join), TEXT.filter(str.strip), min_size=1),
    st.sampled_from([(",", ".csv"), ("\t", ".tsv")]),
)
def test_manifest_round_trip(links, labels, form):
    with (links / f"m{form[1]}").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=form[0]).writerows([("path", "label"), *labels.items()])
    found = rows(load_dataset(links / f"m{form[1]}"))
    assert found == {p: unicodedata.normalize("NFC", c.strip()) for p, c in labels.items()}


# ---------------------------------------------------------------- forms


def test_a_form_can_be_insisted_on(tmp_path):
    plant(tmp_path, "a/1", "b/1")
    assert rows(load_dataset(tmp_path, format="folder")) == {"a/1": "a", "b/1": "b"}
    message = f"^{re.escape(str(tmp_path))}: expected a .csv, .tsv, .jsonl or .parquet manifest$"
    with pytest.raises(InputError, match=message):
        load_dataset(tmp_path, format="manifest")
    with pytest.raises(
        UsageError, match=r"format 'foldr' is unknown \(nearest: folder\); known: gtsrb, .*cifar, "
    ):
        load_dataset(tmp_path, format="foldr")


def test_a_form_is_one_object_and_a_line_in_the_table(tmp_path, monkeypatch):
    seen = []

    def load(path, options):
        seen.append(options)
        names = path.read_text().split()
        return dataset_of_rows(path.parent, [Row(name, (name[0],)) for name in names])

    listed = Form(
        name="list",
        looks="a .list of names",
        uses=frozenset({"group"}),
        recognises=lambda path: path.suffix == ".list",
        load=load,
    )
    (tmp_path / "x.list").write_text("b2 a1 a2_0 a2_1")
    with pytest.raises(
        InputError, match=r"expected one of the forms of data .*, folder, .*; such as"
    ):
        load_dataset(tmp_path / "x.list")
    monkeypatch.setitem(FORMS, "list", listed)
    dataset = load_dataset(tmp_path / "x.list", group="(a[0-9])_")
    assert rows(dataset) == {"a1": "a", "a2_0": "a", "a2_1": "a", "b2": "b"}
    assert dataset.groups == ("", "a2", "a2", "")
    assert seen == [LoadOptions(group="(a[0-9])_")]
    for option in ({"root": tmp_path}, {"allow_outside": True}):
        with pytest.raises(
            UsageError, match=f"{min(option)} applies to .*, and the data are a .li"
        ):
            load_dataset(tmp_path / "x.list", **option)
    with pytest.raises(InputError, match=r"expected one of .*, list, "):
        load_dataset(plant(tmp_path, "x.data") / "x.data")


@pytest.mark.parametrize("name", FORMS)
def test_forms_say_what_they_are(name):
    form = FORMS[name]
    assert form.name == name
    assert form.looks.startswith(("a ", "an "))
    assert form.uses <= {field.name for field in dataclasses.fields(LoadOptions)}


# ---------------------------------------------------------------- groups, classes, draws


def test_groups_by_pattern(tmp_path):
    plant(tmp_path, "a/1_0", "a/1_1", "a/2_0", "b/1_0", "b/x")
    dataset = load_dataset(tmp_path, group="([^/]*/[0-9]+)_")
    assert dataset.groups == ("a/1", "a/1", "a/2", "b/1", "")
    assert dataset.units() == ("a/1", "a/1", "a/2", "b/1", "b/x")
    assert dataset.warnings == ("group pattern matches 4 of 5 images",)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "is not a regular"),
        ("(" * 5000 + ")" * 5000, "is not a regular"),
        ("a", "captures nothing; put"),
        ("(zz)", "matches no image; the"),
        ("()", "captures nothing of 'a/1_1', nor of any other image; put the parentheses"),
        ("(zz)?", "captures nothing of 'a/1_1'"),
        (r"[0-9](_)", "puts all 4 images into one group, '_', so none could be held out"),
        ("^([a-z]+)/", "puts all images of a class into one group, in every class"),
    ],
)
def test_bad_group_pattern(pattern, message, tmp_path):
    plant(tmp_path, "a/1_1", "a/1_2", "b/1_1", "b/1_2")
    with pytest.raises(UsageError, match=f"^group '.*' {re.escape(message)}"):
        load_dataset(tmp_path, group=pattern)


def test_groups_that_leave_a_class_whole_are_told(tmp_path):
    plant(tmp_path, "a/1_1", "a/1_2", "b/1_1", "b/2_1", "c/1_1", "d/1_1", "d/1_2")
    dataset = load_dataset(tmp_path, group="(./[0-9]+)_")
    whole = (
        "all images of class 'a' are one group, so none of it, nor of 1 more class can be held out"
    )
    assert dataset.warnings == (whole,)
    text = "path,label,group\na,x,g\nb,x,g\nc,y,1\nd,y,2\n"
    whole = "all images of class 'x' are one group, so none of it can be held out"
    assert manifest(tmp_path, text).warnings == (whole,)
    text = "path,label,group,split\na,x,g,train\nb,x,g,train\nc,x,h,val\nd,y,i,train\n"
    assert manifest(tmp_path, text).warnings == ()


def test_groups_of_a_manifest(tmp_path):
    text = "path,label,split,group\na,x,train,g\nb,x,test,g\nc,x,,7\n"
    dataset = manifest(tmp_path, text)
    assert dataset.groups == ("g", "g", "7")
    assert "1 group has images in more than one split" in dataset.warnings[0]
    with pytest.raises(UsageError, match="the data have a column group already"):
        manifest(tmp_path, text, group="(a)")


def test_match_classes():
    columns = [("", "", "")] * 3
    labels = np.array([0, 2, -1])
    dataset = Dataset(Path("root"), ("cat", "unused", "dog"), ("0", "1", "2"), labels, *columns)
    assert match_classes(dataset, ("dog", "cat")).tolist() == [1, 0, -1]
    with pytest.raises(InputError, match=r"class 'cat' is .* \(nearest: Cat\); it knows Cat"):
        match_classes(dataset, ("Cat", "dog"))


def test_add_validation(tmp_path):
    first = load_dataset(plant(tmp_path / "one", "cat/1", "dog/1"))
    second = load_dataset(plant(tmp_path / "two", "dog/1", "dog/no -> x"))
    both = add_validation(first, second)
    extra = {"../two/dog/1": "dog / val", "../two/dog/no": "dog / val: broken link"}
    assert rows(both) == {"cat/1": "cat", "dog/1": "dog", **extra}
    with pytest.raises(UsageError, match="already have a validation split"):
        add_validation(both, second)
    with pytest.raises(InputError, match="class 'cow' is not one that the model knows"):
        add_validation(first, load_dataset(plant(tmp_path / "three", "cow/1")))
    split = load_dataset(plant(tmp_path / "four", "train/cat/1", "train/dog/1", "val/cat/1"))
    assert "../four/val/cat/1" in (found := rows(add_validation(first, split)))
    assert len(found) == 3


def test_validation_on_the_training_folder_is_refused(tmp_path):
    dataset = load_dataset(plant(tmp_path, "cat/1", "dog/1"))
    with pytest.raises(HeadstartError):
        add_validation(dataset, dataset)


def test_validation_images_among_the_training_images_are_refused(tmp_path):
    plant(tmp_path, "cat/1.png", "dog/1.png", "val/cat/2.png", "val/dog/2.png")
    table = tmp_path / "all.csv"
    table.write_text("path,label\ncat/1.png,cat\ndog/1.png,dog\nval/cat/2.png,cat\n")
    with pytest.raises(InputError, match=r"image 'val/cat/2\.png' is one of .*all\.csv too"):
        add_validation(load_dataset(table), load_dataset(tmp_path / "val"))


def test_validation_on_another_drive(tmp_path, monkeypatch):
    first = load_dataset(plant(tmp_path / "one", "cat/1.png", "dog/1.png"))
    second = load_dataset(plant(tmp_path / "two", "dog/1.png"))

    def other_drive(end, start):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(os.path, "relpath", other_drive)
    both = add_validation(first, second)
    (row,) = both.rows("val")
    assert both.ids[row].startswith(second.root.resolve().as_posix())
    assert both.image(row).read() == second.image(0).read()


def test_names_to_choose_from():
    assert nearest("Trian", ["Train", "test"]) == " (nearest: Train)"
    assert nearest("zzz", ["train"]) == ""
    assert choose("head", "mlp", {"mlp": 1}) == 1
    with pytest.raises(UsageError, match=r"head 'mpl' is unknown \(nearest: mlp\); known: mlp, b"):
        choose("head", "mpl", {"mlp": 1, "b": 2})


def test_draw_never_changes():
    values = {
        (0, "split", "cats/1.png"): 0.782825675927343,
        (1, "split", "cats/1.png"): 0.34878516162676443,
        (0, "scan", "cats/1.png"): 0.030388540326078184,
        (0, "view", "cats/1.png", 3): 0.26626857780173585,
        (0, "split", "café/1.png"): 0.5544019381576973,
        (0, "split", "cafe\u0301/1.png"): 0.5544019381576973,
    }
    assert {arguments: draw(*arguments) for arguments in values} == values


def test_draw_is_uniform():
    values = np.sort([draw(0, "split", str(i)) for i in range(10_000)])
    assert (values >= 0).all()
    assert (values < 1).all()
    assert np.abs(values - np.arange(10_000) / 10_000).max() < 1.63 / 100  # Kolmogorov, 1 %


class Shelf:
    """A reader of images in memory."""

    def __init__(self, files):
        self.files = files

    def open(self, image_id):
        return MemorySource(self.files.get(image_id, b""))


def test_images_may_be_anywhere(plant, tmp_path):
    folder = plant(tmp_path / "photos", {"blobs": 3, "plain": 2})
    shutil.copy(folder / "blobs/00.png", folder / "blobs/copy.png")
    files = load_dataset(folder)
    shelf = Shelf({i: (folder / i).read_bytes() for i in files.ids})
    dataset = dataclasses.replace(files, root=Path("nowhere"), reader=shelf)
    assert find_identical(dataset) == find_identical(files)
    assert sum(map(bool, find_identical(dataset))) == 2
    assert scan_images(dataset) == scan_images(files)
    assert dataset.select(np.array([2])).image(0).read() == files.image(2).read()
    more = load_dataset(plant(tmp_path / "more", {"plain": 1}, first=7))
    both = add_validation(dataset, more)
    assert [both.image(row).read() for row in both.rows("val")] == [more.image(0).read()]
    kept = [row for row in range(len(both)) if both.splits[row] != "val"]
    assert [both.image(row).read() for row in kept] == [files.image(r).read() for r in range(6)]


def test_half_a_character_is_drawn_for_too():
    assert draw(0, "split", "a\ud800") != draw(0, "split", "a\udbff")
