"""Each kind of bad tree, manifest and archive as a person meets it: refused in one line, or used and told.

The names of the cases are those of the test plan. What each form does with them in detail stands in the tests
of that form.
"""

import io
import json
import os
import pickle
import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

import headstart.runs.fitting
import headstart.runs.sources
from headstart.data import members, streams

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links, pipes and odd names")

ESCAPE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\udc80-\udcff]")
KINDS = ("blobs", "plain", "stripes")


@pytest.fixture(scope="module")
def images(plant, tmp_path_factory):
    """3 pictures of each of three classes."""
    return plant(tmp_path_factory.mktemp("images") / "data", dict.fromkeys(KINDS, 3))


@pytest.fixture
def data(images, tmp_path):
    """A copy of them to spoil; beside it a picture that is none of theirs."""
    (tmp_path / "outside").mkdir()
    shutil.copy(images / "plain/02.png", tmp_path / "outside/secret.png")
    return shutil.copytree(images, tmp_path / "data")


@pytest.fixture
def fit(cli, tiny, tmp_path):
    """A function (source) -> (exit code, stderr); it has looked for what must not have happened."""

    def call(source):
        before = listed(tmp_path)
        given = [word for name, value in tiny.items() for word in (f"--{name}", value)]
        code, out, err = cli("fit", source, "-o", tmp_path / "run", "--penalty", "0.01", *given)
        after = {name for name in listed(tmp_path) if not name.startswith("run/")}
        assert after - {"run"} == before
        assert not (tmp_path / "canary").exists()
        assert "Traceback" not in err
        assert not ESCAPE.search(out + err)
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        if code:
            assert (out, lines) == ("", err.splitlines()[-1:])
            assert not (tmp_path / "run").exists()
        else:
            assert not lines
        return code, err

    return call


def listed(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def link(place, target):
    def spoil(data):
        (data / place).symlink_to(target)

    return spoil


def copy(*places):
    """Each "from > to"; a class of its own where `to` is a folder."""

    def spoil(data):
        for place in places:
            start, end = place.split(" > ")
            (data / end).parent.mkdir(exist_ok=True)
            shutil.copy(data / start, data / end)

    return spoil


def rename(**names):
    def spoil(data):
        for old, new in names.items():
            (data / old).rename(data / new)

    return spoil


def keep(count, *kinds):
    """So many pictures of each of these classes, and none of the others."""

    def spoil(data):
        for path in sorted(data.glob("*/*.png")):
            if path.parent.name not in kinds or int(path.stem) >= count:
                path.unlink()

    return spoil


def each(*spoils):
    """One after another; what the last one gives."""

    def spoil(data):
        return [one(data) for one in spoils][-1]

    return spoil


# ---------------------------------------------------------------- bad trees

# {what it is: (spoils the data, exit code, what stderr says)}
TREES = {
    "directory named x.jpg": (copy("plain/00.png > plain/x.jpg/0.png"), 0, "^10 images in 3 classes"),
    "broken link": (link("plain/x.png", "no.png"), 0, "1 unreadable: plain/x.png: broken link"),
    "looping link": (link("plain/x.png", "x.png"), 0, "plain/x.png: link that leads in a circle"),
    "looping link to a folder": (link("plain/up", ".."), 0, "plain/up: link to a folder that is read alr"),
    "escaping link": (
        link("plain/x.png", "../../outside/secret.png"), 0,
        r"plain/x.png: link leads outside of the data folder \(allow with --allow-outside\)",
    ),
    "escaping link as class": (link("others", "../outside"), 0, "others: link leads outside of the data"),
    "FIFO": (lambda data: os.mkfifo(data / "plain/x.jpg"), 0, "plain/x.jpg: not a regular file"),
    "non-UTF-8 name": (copy("plain/00.png > plain/\udcff.png"), 0, "^10 images in 3 classes"),
    "non-UTF-8 class": (rename(plain="\udcff"), 0, r"\\udcff +3"),
    "newline": (each(copy("plain/00.png > plain/a\nb.png"), rename(blobs="b\nc")), 0, r"b\\nc +3"),
    "ANSI characters": (rename(plain="\x1b[2Jplain"), 0, r"\\x1b\[2Jplain +3"),
    "bidi characters": (rename(plain="p\u202enial"), 0, r"p\\u202enial +3"),
    "markup": (rename(plain="[red]<b>=1+1"), 0, r"\[red\]<b>=1\+1 +3"),
    "odd name of a bad image": (
        link("plain/\x1b[31m[bold]\u202e.png", "no"), 0,
        r"unreadable: plain/\\x1b\[31m\[bold\]\\u202e.png: broken link",
    ),
    "empty class": (lambda data: (data / "none").mkdir(), 0, "class without images, left out: none"),
    "single class": (keep(3, "plain"), 3, "data: at least two classes are needed, found 'plain'; each cl"),
    "no image": (keep(0), 3, "data: no images in class folders; put each class's images in a folder of"),
    "one image a class": (
        keep(1, *KINDS), 0,
        r"too few images a class to measure anything \('blobs' has 1 to train on\); add images",
    ),
    "classes 1, 2 and 10": (rename(blobs="10", plain="2", stripes="1"), 0, r"\n1 +3\n2 +3\n10 +3\n"),
    "case-only different classes": (
        rename(blobs="Plain"), 0, "class 'Plain' differs from another only in upper and lower case"
    ),
    "NFC and NFD": (
        rename(blobs="é", plain="e\u0301"), 0, "class 'é' occurs in two Unicode forms; taken as one"
    ),
    "same image in two classes": (
        copy("plain/00.png > blobs/x.png"), 0,
        "1 set of identical images with different labels .first: 'blobs/x.png' and 'plain/00.png'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TREES)
def test_a_bad_tree_is_told(name, data, fit):
    spoil, code, message = TREES[name]
    spoil(data)
    found, err = fit(data)
    assert found == code, err
    assert re.search(message, err)


def test_an_image_that_cannot_be_opened_is_told(data, fit, monkeypatch):
    start = os.open

    def refuse(path, *arguments, **options):
        if str(path) == str(data / "plain/00.png"):
            raise PermissionError(13, "Permission denied", str(path))
        return start(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    code, err = fit(data)
    assert code == 0
    assert "1 unreadable image was left out: plain/00.png: permission denied" in err


@pytest.mark.parametrize("after", ["load_dataset", "report_scan"])
@pytest.mark.parametrize("what", ["plain/00.png", "plain", ""])
def test_what_vanishes_meanwhile_is_told(after, what, data, cli, tiny, tmp_path, monkeypatch):
    """Between the listing and the scan, or between the scan and the reading."""
    place = headstart.runs.sources if after == "load_dataset" else headstart.runs.fitting
    do = getattr(place, after)

    def vanish(*arguments, **options):
        done = do(*arguments, **options)
        (data / what).unlink() if what.endswith(".png") else shutil.rmtree(data / what)
        return done

    monkeypatch.setattr(place, after, vanish)
    given = [word for name, value in tiny.items() for word in (f"--{name}", value)]
    code, _, err = cli("fit", data, "-o", tmp_path / "run", *given)
    assert code == (0 if what.endswith(".png") else 4)
    assert re.search(r"(plain|blobs)/00.png: no such file or directory", err)
    assert "Traceback" not in err


def test_the_same_image_in_two_splits_is_told(images, plant, tmp_path, cli, fit):
    copies = {"train": range(3), "val": (2, 3), "test": (1, 4)}
    for kind in KINDS:
        plant(tmp_path / "more", {kind: 2}, first=3)
        for split, numbers in copies.items():
            (tmp_path / "data" / split / kind).mkdir(parents=True)
            for n in numbers:
                start = (images if n < 3 else tmp_path / "more") / kind / f"{n:02}.png"
                shutil.copy(start, tmp_path / "data" / split / kind)
    code, err = fit(tmp_path / "data")
    assert code == 0, err
    assert re.search(
        "3 sets of identical images in the training and in the validation part, so", err
    )
    code, _, err = cli("evaluate", tmp_path / "run", tmp_path / "data", "--device", "cpu")
    assert code == 0, err
    assert "3 of these 6 images were trained on, so the figures flatter the model" in err


# ---------------------------------------------------------------- bad manifests


def manifest(more="", *, header="path,label", encoding="utf-8", edit=lambda text: text):
    """Beside the images, with other rows at its end."""

    def spoil(data):
        rows = [
            f"{p.relative_to(data).as_posix()},{p.parent.name}" for p in sorted(data.glob("*/*"))
        ]
        text = edit("\n".join([*([header] if header else []), *rows, more]))
        (data / "m.csv").write_bytes(text.encode(encoding))
        return data / "m.csv"

    return spoil


def jsonl(row):
    def spoil(data):
        rows = [{"path": f"{k}/{n:02}.png", "label": k} for k in KINDS for n in range(3)]
        (data / "m.jsonl").write_text("\n".join(map(json.dumps, [*rows, row])))
        return data / "m.jsonl"

    return spoil


def table(**columns):
    def spoil(data):
        parquet.write_table(pyarrow.table(columns), data / "m.parquet")
        return data / "m.parquet"

    return spoil


MANIFESTS = {
    "no header": (manifest(header=""), 3, "m.csv, line 1: no column 'path'; found 'blobs/00.png', 'blob"),
    "missing column": (manifest(header="path,labl"), 3, r"line 1: no column 'label' \(nearest: labl\); fou"),
    "BOM": (manifest(encoding="utf-8-sig"), 0, "^9 images in 3 classes"),
    "UTF-16": (manifest(encoding="utf-16"), 0, "^9 images in 3 classes"),
    "UTF-16 without a mark": (manifest(encoding="utf-16-le"), 3, "m.csv, line 1: no column 'path'"),
    "neither": (manifest("a.png,caf\xe9", encoding="latin-1"), 3, "m.csv: not utf-8-sig text at byte .*; s"),
    "ragged rows, short": (manifest("a.png"), 3, "m.csv, line 11: 1 cells where the header has 2; quote"),
    "ragged rows, long": (manifest("a.png,b,c"), 3, "m.csv, line 11: 3 cells where the header has 2; quot"),
    "open quote": (manifest('"a.png,b'), 3, "m.csv, line 11: unexpected end of data; check the quotes"),
    "traversal": (
        manifest("../outside/secret.png,plain"), 3,
        "line 11: '../outside/secret.png' leads outside of .*; use paths relative to it, another --root",
    ),
    "traversal by a link": (
        each(link("l.png", "../outside/secret.png"), manifest("l.png,plain")), 3,
        "line 11: 'l.png' is a link that leads outside of .*; allow it with --allow-outside",
    ),
    "absolute": (manifest("/etc/hosts,plain"), 3, "line 11: '/etc/hosts' leads outside of .*--allow-outside"),
    "URLs": (
        manifest("https://example.org/a.png,plain"), 3,
        "line 11: 'https://example.org/a.png' is an address; download the images first",
    ),
    "file URLs": (manifest("file:///etc/hosts,plain"), 3, "'file:///etc/hosts' is an address; downl"),
    "NaN labels, CSV": (
        manifest("plain/x.png,nan", edit=lambda t: t.replace("02.png,plain", "02.png,nan")), 0,
        "class 'nan' reads as a missing label; remove its images or rename it",
    ),
    "NaN labels, empty": (manifest("a.png,"), 3, "line 11: the image 'a.png' has no label; remove the row"),
    "NaN labels, JSONL": (jsonl({"path": "a", "label": np.nan}), 3, "line 10: not JSON: NaN is not JSON; w"),
    "NaN labels, Parquet": (
        table(path=["plain/00.png", "blobs/00.png"], label=[1.0, np.nan]), 3,
        "m.parquet: the column 'label' must be text or whole numbers, and is double; save it as one of these",
    ),
    "null labels, Parquet": (
        table(path=["plain/00.png", "blobs/00.png"], label=["plain", None]), 3,
        "m.parquet, row 2: the image 'blobs/00.png' has no label; remove the row or fill it",
    ),
    "duplicate paths with different labels": (
        manifest("./plain/00.png,blobs"), 3,
        "line 11: './plain/00.png' stands already at line 5 with another label, split or group; keep one",
    ),
    "duplicate paths with the same label": (manifest("plain//00.png,plain"), 0, "1 repeated row counted "),
    "a path that is nowhere": (manifest("no.png,plain"), 0, "unreadable: no.png: no such file or directory"),
    "a path that is a folder": (manifest("plain,plain"), 0, "unreadable: plain: is a directory"),
    "a broken split": (
        manifest("a.png,x", edit=lambda t: t.replace("\n", ",trian\n").replace("l,trian", "l,split") + ","),
        3, r"line 2: split 'trian' is unknown \(nearest: train\); use train, val or test",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_bad_manifest_is_told(name, data, fit):
    spoil, code, message = MANIFESTS[name]
    found, err = fit(spoil(data))
    assert found == code, err
    assert re.search(message, err)


# ---------------------------------------------------------------- bad archives and arrays


def zipped(more=(), edit=lambda data: data, method=zipfile.ZIP_DEFLATED):
    """The images and other members, {name or ZipInfo: bytes}, in a zip, whose bytes are edited."""

    def spoil(data):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", method) as made:
            for path in sorted(data.glob("*/*")):
                made.write(path, path.relative_to(data).as_posix())
            for name, content in dict(more).items():
                made.writestr(name, content)
        (data.parent / "x.zip").write_bytes(edit(stream.getvalue()))
        return data.parent / "x.zip"

    return spoil


def tarred(*more, mode="w", edit=lambda data: data):
    """The images and other members, (name, type, target), in a tar, whose bytes are edited."""

    def spoil(data):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode=mode) as made:
            for path in sorted(data.glob("*/*")):
                made.add(path, path.relative_to(data).as_posix())
            for name, kind, target in more:
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, target
                made.addfile(info)
        (data.parent / "x.tar").write_bytes(edit(stream.getvalue()))
        return data.parent / "x.tar"

    return spoil


def encrypt(data):
    """Say of every member, in both its headers, that it is encrypted."""
    made = bytearray(data)
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        for found in re.finditer(re.escape(magic), data):
            made[found.start() + offset] |= 1
    return bytes(made)


def zip_link(name, target):
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return {info: target}


class Reducer:
    """What Python's own reader would run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def arrays(name, write):
    def spoil(data):
        write(data.parent / name, data.parent / "canary")
        return data.parent / name

    return spoil


def write_objects(path, canary):
    labels = np.array(["a", "b", Reducer(canary)], object)
    np.savez(path, images=np.zeros((3, 4, 4), np.uint8), labels=labels)


def write_npy(path, canary):
    np.save(path, np.array([Reducer(canary)] * 2, object), allow_pickle=True)
    np.save(path.with_name("labels.npy"), np.arange(2))


def write_pickle(path, canary):
    value = {"features": np.zeros((3, 4, 4), np.uint8), "labels": [Reducer(canary)]}
    path.write_bytes(pickle.dumps(value))


def write_cifar(path, canary):
    path.mkdir()
    for name in ("batches.meta", *(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        (path / name).write_bytes(pickle.dumps({b"data": Reducer(canary), b"labels": [0]}))


PASSED_OVER = "passed over 1 member whose name leads out of the archive, or is no path"
ARCHIVES = {
    "zip slip": (zipped({"../canary": b"x"}), 0, rf"{PASSED_OVER} \(first: '../canary'\)"),
    "zip slip, absolute": (zipped({"/tmp/canary": b"x"}), 0, PASSED_OVER),
    "tar slip": (tarred(("../../canary", tarfile.REGTYPE, "")), 0, PASSED_OVER),
    "zip bomb": (
        zipped({"plain/bomb.png": bytes(10**7)}), 0,
        "unreadable: plain/bomb.png: inflates from .* to more than 1 MiB, as a bomb does",
    ),
    "tar bomb": (
        tarred(mode="w:gz", edit=lambda data: data + tar_bomb()), 3,
        "x.tar: inflates to more than 200 times its size, as a bomb does",
    ),
    "zip in a zip": (zipped({"plain/x.zip": b"PK"}), 0, "passed over 1 archive inside of the archive, which"),
    "encrypted zip": (
        zipped(edit=encrypt), 4, "9 of 9 images are unreadable .*: encrypted; pack it without a password"
    ),
    "zip with links": (
        zipped(zip_link("plain/x.png", "/etc/passwd")), 0, "plain/x.png: a link, which is not followed in a"
    ),
    "truncated zip": (zipped(edit=lambda data: data[:-99]), 3, "x.zip: .*; copy or download it again"),
    "tar with links": (
        tarred(("plain/x.png", tarfile.SYMTYPE, "../../outside/secret.png")), 0,
        "plain/x.png: a link, which is not followed in an archive",
    ),
    "tar with hard links": (
        tarred(("plain/x.png", tarfile.LNKTYPE, "/etc/passwd")), 0, "plain/x.png: a link, which is not foll"
    ),
    "tar with devices": (
        tarred(("plain/x.png", tarfile.CHRTYPE, "")), 0, "plain/x.png: not a regular file"
    ),
    "truncated tar": (tarred(edit=lambda data: data[:9999]), 3, "x.tar: .*cut short.*; copy or download it"),
    "truncated tar.gz": (tarred(mode="w:gz", edit=lambda data: data[:-99]), 3, "x.tar: damaged.*cut short"),
    "npz of objects": (
        arrays("x.npz", write_objects), 3, "x.npz, labels: an array of Python objects, which is not read; s"
    ),
    "npy of objects": (arrays("images.npy", write_npy), 3, "images.npy: an array of Python objects, which"),
    "pickle with a reducer": (
        arrays("train.p", write_pickle), 3, "train.p: asks for .*, which could run anything, and is not re"
    ),
    "CIFAR with a reducer": (
        arrays("cifar-10-batches-py", write_cifar), 3, "asks for .*, which could run anything, and is not"
    ),
}  # fmt: skip


def tar_bomb():
    """A second stream of gzip, of nothing but zeros."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as made:
        info = tarfile.TarInfo("plain/bomb.png")
        info.size = 10**8
        made.addfile(info, io.BytesIO(bytes(info.size)))
    return stream.getvalue()


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_bad_archive_is_told(name, data, fit, monkeypatch):
    for module in (members, streams):
        monkeypatch.setattr(module, "FREE_BYTES", 2**20)
    spoil, code, message = ARCHIVES[name]
    source = spoil(data)
    found, err = fit(source)
    assert found == code, err
    assert re.search(message, err)
