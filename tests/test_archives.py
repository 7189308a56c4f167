"""Archives, clean and hostile, are the data set that their folder is, or end as one clear message."""

import contextlib
import gzip
import io
import os
import pickle
import random
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from archive_files import KINDS, TARS, TREE, pack, special, tar, write, zipped
from hypothesis import given, settings
from hypothesis import strategies as st

import headstart
from headstart.data import members, streams
from headstart.data.dataset import add_validation
from headstart.data.images import MAX_FILE_BYTES
from headstart.data.loading import load_dataset
from headstart.data.scan import scan_images
from headstart.errors import BadImageError, HeadstartError, InputError, UsageError


def plant(root, files):
    for name, data in files.items():
        (root / name).mkdir(parents=True) if name.endswith("/") else write(root / name, data)
    return root


def facts(dataset):
    """What a data set is, whatever it is read from."""
    return {
        "ids": dataset.ids,
        "classes": dataset.label_names(),
        "splits": dataset.splits,
        "errors": dataset.errors,
        "ignored": dataset.ignored,
        "warnings": dataset.warnings,
        "bytes": [None if e else dataset.image(i).read() for i, e in enumerate(dataset.errors)],
    }


def errors(dataset):
    return {i: e for i, e in zip(dataset.ids, dataset.errors, strict=True) if e}


# ---------------------------------------------------------------- the same data set


TREES = {
    "classes": TREE,
    "natural order": {"10/a": b"x", "2/a": b"y", "1/a": b"z"},
    "splits": {"train/a/1": b"1", "train/b/1": b"2", "VAL/a/2": b"3", "test/b/3": b"4"},
    "something beside train": {"train/a/1": b"1", "train/b/1": b"2", "raw/1": b"3", "x": b"4"},
    "train is a class": {"train/1": b"x", "car/1": b"y"},
    "companions": {"a/1": b"x", "a/n.TXT": b"", "m.csv": b"", "a/Thumbs.db": b"", "README": b""},
    "hidden": {"a/1": b"x", "b/1": b"y", ".git/1": b"", "a/.x": b"", "__MACOSX/a/._1": b""},
    "loose": {"a/1": b"x", "b/2": b"y", "3.png": b"z"},
    "empty class": {"a/1": b"x", "b/1": b"y", "c/": b""},
    "NFC and NFD": {"é/1": b"x", "e\u0301/2": b"y", "b/1": b"z"},
    "odd names": {"a\nb/c\nd": b"x", "\x1b[31ma/\x1b[2J": b"y", "[red]/=1+1": b"z"},
    "case": {"Cat/1": b"x", "cat/1": b"y"},
    "empty file": {"a/1": b"", "b/1": b"x"},
    "one class": {"cat/1.png": b"x", "cat/2.png": b"y"},
    "one class, deep": {"cat/deep/1.png": b"x"},
    "long": {f"a/{'x' * 150}/{'y' * 200}": b"x", "b/1": b"y"},
}


@pytest.mark.skipif(sys.platform == "win32", reason="odd names")
@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_is_the_data_set_that_its_folder_is(kind, tmp_path):
    for number, files in enumerate(TREES.values()):
        folder = load_dataset(plant(tmp_path / str(number), files))
        archive = load_dataset(write(tmp_path / f"{number}.data", pack(kind, files)))
        assert facts(archive) == facts(folder)
        assert archive.name.endswith(f"{number}.data")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["classes", "splits", "hidden", "loose", "empty class"])
def test_a_folder_around_everything_is_no_part_of_ids(kind, name, tmp_path):
    files = {f"./photos/{place}": data for place, data in TREES[name].items()}
    around = {"./": b"", "./photos/": b"", "README.md": b"", "__MACOSX/._photos": b""}
    if kind.endswith("zip"):
        del around["./"]
    found = facts(load_dataset(write(tmp_path / "x", pack(kind, {**around, **files}))))
    assert {**found, "ignored": {}} == {
        **facts(load_dataset(plant(tmp_path / "y", TREES[name]))),
        "ignored": {},
    }


def test_train_alone_is_a_split_as_in_a_folder(tmp_path):
    files = {"train/a/1": b"x", "train/b/1": b"y"}
    archive = load_dataset(write(tmp_path / "x", pack("tar", files)))
    assert facts(archive) == facts(load_dataset(plant(tmp_path / "y", files)))


@pytest.mark.parametrize("kind", KINDS)
def test_archives_are_one_a_class(kind, tmp_path):
    cats = write(tmp_path / f"a/cats.{kind}", pack(kind, {"1": b"x", "b/2": b"y", "n.txt": b""}))
    dogs = write(tmp_path / f"b/dogs.{kind}", pack(kind, {"dogs/": b"", "dogs/1": b"z"}))
    dataset = load_dataset([cats, str(dogs)])
    cat, dog = ("cats.stored", "dogs.stored") if kind == "stored.zip" else ("cats", "dogs")
    if kind == "deflated.zip":
        cat, dog = "cats.deflated", "dogs.deflated"
    assert dataset.ids == (f"{cat}/1", f"{cat}/b/2", f"{dog}/1")
    assert dataset.classes == (cat, dog)
    assert [dataset.image(i).read() for i in range(3)] == [b"x", b"y", b"z"]
    assert dataset.ignored == {".txt": 1}
    assert (dataset.root, dataset.source) == (tmp_path, (cats, dogs))
    assert dataset.name == f"{cats}, {dogs}"


def test_a_folder_of_archives_is_one_a_class(tmp_path):
    write(tmp_path / "d/cats.zip", zipped({"1": b"x"}))
    write(tmp_path / "d/dogs.tgz", pack("tar.gz", {"1": b"y"}))
    write(tmp_path / "d/README.md", b"")
    assert load_dataset(tmp_path / "d").ids == ("cats/1", "dogs/1")
    write(tmp_path / "one/photos.zip", zipped(TREE))
    assert load_dataset(tmp_path / "one").ids == tuple(sorted(TREE))


def test_archives_named_as_splits_are_splits(tmp_path):
    for part in ("train", "val"):
        write(tmp_path / f"{part}.zip", zipped({f"{part}/a/1": b"x", f"{part}/b/1": b"y"}))
    dataset = load_dataset([tmp_path / "train.zip", tmp_path / "val.zip"])
    assert dataset.ids == ("train/a/1", "train/b/1", "val/a/1", "val/b/1")
    assert dataset.splits == ("train", "train", "val", "val")


def test_several_data_that_are_not_one_are_refused(tmp_path):
    cats = write(tmp_path / "cats.zip", zipped({"1": b"x"}))
    again = write(tmp_path / "more/cats.tar", tar({"1": b"x"}))
    folder = plant(tmp_path / "folder", TREE)
    with pytest.raises(InputError, match=r"cats\.tar: .*cats\.zip is the class 'cats' already"):
        load_dataset([cats, again])
    with pytest.raises(InputError, match=r"folder: several data are one data set only where each"):
        load_dataset([cats, folder])
    with pytest.raises(InputError, match="no images in it"):
        load_dataset([])
    with pytest.raises(InputError, match=r"none\.zip: no such file"):
        load_dataset([cats, tmp_path / "none.zip"])
    with pytest.raises(UsageError, match="root applies to "):
        load_dataset(cats, root=tmp_path)
    with pytest.raises(InputError, match=r"cats\.zip: no images in class folders; give an archive"):
        load_dataset(cats)
    assert facts(load_dataset([folder])) == facts(load_dataset(folder))


def test_validation_may_be_an_archive(tmp_path):
    data = load_dataset(write(tmp_path / "data.zip", zipped(TREE)))
    more = {"cats/9": b"nine", "dogs/9": b"ten"}
    both = add_validation(data, load_dataset(write(tmp_path / "more.tar", tar(more))))
    (row, _) = both.rows("val")
    assert both.ids[row] == "../more.tar/cats/9"
    assert both.image(row).read() == b"nine"
    assert both.image(both.ids.index("dogs/1.png")).read() == b"dog"
    with pytest.raises(UsageError, match="the validation data are training data"):
        add_validation(data, data)


def test_what_is_no_archive_by_its_content(tmp_path):
    for name, data in {
        "a.npz": zipped(TREE),
        "a.docx": zipped(TREE),
        "a.csv.gz": gzip.compress(b"path,label\n" * 99),
        "a.7z": b"7z\xbc\xaf\x27\x1c" + bytes(600),
        "a.tar": b"x" * 2000,
        "empty.tar": bytes(10240),
        "b.gz": b"\x1f\x8b\x08",
        "c.xz": b"\xfd7zXZ\0" + bytes(99),
    }.items():
        with pytest.raises(
            InputError, match=r"expected one of|no zip, nor a tar|no images with labels"
        ):
            load_dataset(write(tmp_path / name, data))


def test_zstd_needs_a_package_and_says_so(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tar.zst", b"\x28\xb5\x2f\xfd" + bytes(99))
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    with pytest.raises(UsageError, match=r"needs a package: pip install 'headstart\[zstd\]'"):
        load_dataset(path)


# ---------------------------------------------------------------- reading


@pytest.fixture(scope="module")
def noise():
    """Images' bytes of several sizes, which do not shrink, and one that does."""
    rng = random.Random(0)
    files = {f"{'ab'[i % 2]}/{i:03}": rng.randbytes(rng.randrange(20_000)) for i in range(120)}
    return {**files, "b/blank": bytes(1_000_000)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("states", "kept"), [(8, 2**26), (4096, 2**16), (4096, 2**26)])
def test_many_threads_read_in_any_order(kind, states, kept, noise, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "LEAST_SPACING_BYTES", 2**16)
    monkeypatch.setattr(streams, "MAX_STATES", states)
    monkeypatch.setattr(streams, "MAX_KEPT_BYTES", kept)
    path = write(tmp_path / "x", pack(kind, noise))
    dataset = load_dataset(path)
    copy = pickle.loads(pickle.dumps(dataset))
    rows = [*range(len(noise)), *random.Random(1).choices(range(len(noise)), k=250)]

    def check(row):
        some = copy if row % 3 == 0 else dataset
        data = noise[some.ids[row]]
        return some.image(row).read() == data and some.image(row).read(1000) == data[:1000]

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(check, rows))
    info = path.stat()
    assert dataset.image(0).stamp() == (info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def test_states_of_gzip_are_bounded(noise, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "LEAST_SPACING_BYTES", 2**14)
    monkeypatch.setattr(streams, "MAX_STATES", 8)
    dataset = load_dataset(write(tmp_path / "x", pack("tar.gz", noise)))
    parts = dataset.image(0).source.parts
    assert 4 <= len(parts._states) <= 8
    assert parts._spacing > 2**14


def test_gzip_of_several_streams(noise, tmp_path):
    """As bgzip and pigz -i write it."""
    data = tar(noise)
    pieces = [gzip.compress(data[i : i + 65_280]) for i in range(0, len(data), 65_280)]
    dataset = load_dataset(write(tmp_path / "x", b"".join(pieces) + bytes(512)))
    assert {i: dataset.image(r).read() for r, i in enumerate(dataset.ids)} == noise


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_that_changed_is_not_read(kind, tmp_path):
    path = write(tmp_path / "x", pack(kind, TREE))
    dataset = load_dataset(path)
    held = kind in ("tar.bz2", "tar.xz", "tar.zst")
    before = dataset.image(0).stamp()
    write(path, path.read_bytes() + b"\0")
    assert dataset.image(0).stamp() != before
    if not held:  # what is in memory is what was listed
        with pytest.raises(BadImageError, match="its archive has changed since it was listed"):
            dataset.image(0).read()
    path.unlink()
    assert dataset.image(0).stamp() is None
    if not held:
        with pytest.raises(BadImageError, match="no such file"):
            dataset.image(0).read()


def test_features_are_the_same_in_every_form(loose, tiny, tmp_path):
    backbone = headstart.load_backbone(tiny["backbone"], weights=tiny["weights"])
    runtime = headstart.Runtime(cache_dir=str(tmp_path / "cache"), device="cpu")
    folder = load_dataset(loose)
    files = {i: (loose / i).read_bytes() for i in folder.ids}
    first = headstart.extract(folder, backbone, runtime)
    assert first.computed == len(files)
    last = backbone.cuts[-1].name
    for kind in ("tar", "tar.gz", "deflated.zip"):
        dataset = load_dataset(write(tmp_path / "photos", pack(kind, files)))
        assert scan_images(dataset) == scan_images(folder)
        features = headstart.extract(dataset, backbone, runtime)
        assert (features.computed, features.ids) == (0, first.ids)
        assert np.array_equal(features.values[last], first.values[last])
    anew = headstart.Runtime(cache_dir=str(tmp_path / "other"), device="cpu")
    features = headstart.extract(dataset, backbone, anew)
    assert features.computed == len(files)
    assert np.array_equal(features.values[last], first.values[last])


# ---------------------------------------------------------------- hostile names and members


BAD_NAMES = [
    "../x", "a/../../x", "/etc/passwd", "C:\\x", "c:x", "\\\\host\\x", "a\\b", "..", "a/..", "x" * 5000,
    "d/" * 150 + "x",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("kind", ["tar", "tar.gz", "deflated.zip"])
def test_names_that_lead_out_are_passed_over_and_told(kind, name, tmp_path):
    dataset = load_dataset(write(tmp_path / "in/x", pack(kind, {**TREE, name: b"evil"})))
    assert dataset.ids == tuple(sorted(TREE))
    (told,) = dataset.warnings
    assert told.startswith(
        "passed over 1 member whose name leads out of the archive, or is no path"
    )
    assert name[:200] in told
    assert len(told) < 400
    assert os.listdir(tmp_path) == ["in"]
    assert os.listdir(tmp_path / "in") == ["x"]


def test_a_name_with_nul_is_passed_over(tmp_path):
    data = zipped({**TREE, "cats/nul.png": b"evil"}).replace(b"cats/nul.png", b"cats/n\0l.png")
    dataset = load_dataset(write(tmp_path / "x", data))
    assert dataset.ids == tuple(sorted(TREE))
    assert "cats/n\\x00l.png" in dataset.warnings[0].encode("unicode_escape").decode()


def test_only_bad_names_are_one_line(tmp_path):
    path = write(tmp_path / "x.zip", zipped({"../a/1": b"x"}))
    with pytest.raises(
        InputError, match=r"no images in class folders \(passed over 1 member whose n"
    ):
        load_dataset(path)


def test_links_and_devices_in_a_tar_are_bad_images(tmp_path):
    link = "a link, which is not followed in an archive"
    others = {
        "cats/sym.png": (tarfile.SYMTYPE, "1.png", link),
        "cats/out.png": (tarfile.SYMTYPE, "/etc/passwd", link),
        "cats/hard.png": (tarfile.LNKTYPE, "cats/1.png", link),
        "cats/fifo": (tarfile.FIFOTYPE, "", "not a regular file"),
        "cats/char": (tarfile.CHRTYPE, "", "not a regular file"),
        "cats/block": (tarfile.BLKTYPE, "", "not a regular file"),
        "birds": (tarfile.SYMTYPE, "../../birds", link),
    }
    made = [special(name, kind, target) for name, (kind, target, _) in others.items()]
    dataset = load_dataset(write(tmp_path / "x", tar(TREE, *made)))
    assert errors(dataset) == {name: error for name, (_, _, error) in others.items()}
    with pytest.raises(BadImageError, match="not followed"):
        dataset.image(dataset.ids.index("cats/out.png")).read()


def test_links_and_devices_in_a_zip_are_bad_images(tmp_path):
    entries = list(TREE.items())
    for name, mode in (("cats/link", 0o120777), ("cats/pipe", 0o010644)):
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        entries.append((info, b"/etc/passwd"))
    dataset = load_dataset(write(tmp_path / "x", zipped(entries)))
    assert set(errors(dataset)) == {"cats/link", "cats/pipe"}


def test_the_last_of_one_name_is_taken(tmp_path):
    entries = [*TREE.items(), ("cats/1.png", b"later"), ("dogs/1.png/x", b"in a folder")]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as made:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    for data in (zipped(entries), stream.getvalue()):
        dataset = load_dataset(write(tmp_path / "x", data))
        assert dataset.ids == ("cats/1.png", "cats/deep/2", "dogs/1.png/x")
        assert dataset.image(0).read() == b"later"
        assert dataset.warnings == ("1 member has the name of a later one, which is taken",)


def test_archives_in_an_archive_are_not_read(tmp_path):
    files = {**TREE, "cats/more.zip": zipped(TREE), "birds.tar.gz": b"", "dogs/x.png": zipped(TREE)}
    dataset = load_dataset(write(tmp_path / "x", zipped(files)))
    assert dataset.ignored == {".gz": 1, ".zip": 1}
    assert "passed over 2 archives inside of the archive, which are not read" in dataset.warnings
    assert dict(scan_images(dataset).unreadable)["dogs/x.png"] == "not an image: a ZIP archive"


def flags(data, name, change):
    """The bytes of a zip, with the entry of a member in the central directory changed."""
    made = bytearray(data)
    at = data.rindex(name.encode()) - 46
    assert made[at : at + 4] == b"PK\x01\x02"
    change(made, at)
    return bytes(made)


def test_members_of_a_zip_that_cannot_be_read_are_bad_images(tmp_path):
    def change(form, offset, value):
        return lambda made, at: struct.pack_into(form, made, at + offset, value)

    for edit, reason in (
        (change("<H", 8, 1), "encrypted; pack it without a password"),
        (change("<H", 10, 9), "compressed by method 9; pack it with deflate"),
        (change("<I", 24, MAX_FILE_BYTES + 1), "larger than 512 MiB"),
        (change("<I", 42, 0), "damaged archive: it lies in another member, or beyond the end"),
        (change("<I", 20, 2**20), "damaged archive: it lies in another member, or beyond the end"),
    ):
        data = flags(zipped(TREE), "dogs/1.png", edit)
        found = errors(load_dataset(write(tmp_path / "x", data)))
        assert found["dogs/1.png"] == reason
    for edit, reason in (
        (change("<I", 16, 7), "damaged in the archive: its checksum differs"),
        (change("<I", 20, 2), "damaged in the archive: cut short"),
        (change("<H", 10, 0), "damaged in the archive: its checksum differs"),
    ):
        dataset = load_dataset(write(tmp_path / "x", flags(zipped(TREE), "dogs/1.png", edit)))
        with pytest.raises(BadImageError, match=re.escape(reason)):
            dataset.image(dataset.ids.index("dogs/1.png")).read()
    data = bytearray(zipped(TREE, zipfile.ZIP_STORED))
    data[data.index(b"cat one")] ^= 1
    with pytest.raises(BadImageError, match="its checksum differs"):
        load_dataset(write(tmp_path / "x", bytes(data))).image(0).read()
    data = bytearray(zipped(TREE))
    data[0:2] = b"KP"
    with pytest.raises(InputError):
        load_dataset(write(tmp_path / "x", bytes(data)))
    data = bytearray(zipped(TREE))
    at = data.index(b"PK\x03\x04", 4)
    data[at : at + 4] = b"junk"
    with pytest.raises(BadImageError, match="not where it should be"):
        load_dataset(write(tmp_path / "x", bytes(data))).image(1).read()


def test_other_methods_of_zip_are_bad_images(tmp_path):
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        dataset = load_dataset(write(tmp_path / "x", zipped(TREE, method)))
        assert set(dataset.errors) == {f"compressed by method {method}; pack it with deflate"}


@pytest.mark.skipif(not shutil.which("zip"), reason="needs zip")
def test_an_encrypted_zip(tmp_path):
    plant(tmp_path / "x", TREE)
    subprocess.run(["zip", "-qr", "-P", "secret", "../x.zip", "."], cwd=tmp_path / "x", check=True)
    found = load_dataset(tmp_path / "x.zip")
    assert set(found.errors) == {"encrypted; pack it without a password"}


def test_names_in_utf8_that_do_not_say_so(tmp_path):
    """As macOS packs them."""
    data = zipped({"caf\u00e9s/1": b"x", "b/1": b"y"})
    for place, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        at = data.rindex(place) if offset == 8 else data.index(place)
        for found in [m.start() for m in re.finditer(re.escape(place), data)]:
            made = bytearray(data)
            struct.pack_into("<H", made, found + offset, 0)
            data = bytes(made)
        assert at >= 0
    assert load_dataset(write(tmp_path / "x", data)).classes == ("b", "caf\u00e9s")
    odd = data.replace("caf\u00e9s".encode(), b"caf\x82ss")  # cp437
    assert load_dataset(write(tmp_path / "x", odd)).classes == ("b", "caf\u00e9ss")


def test_a_sparse_file_in_a_tar_is_a_bad_image(tmp_path):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as made:
        info = tarfile.TarInfo("cats/sparse")
        info.pax_headers = {
            "GNU.sparse.size": "999",
            "GNU.sparse.map": "0,1",
            "GNU.sparse.numblocks": "1",
        }
        info.size = 1
        made.addfile(info, io.BytesIO(b"x"))
        info = tarfile.TarInfo("dogs/1")
        made.addfile(info)
    found = errors(load_dataset(write(tmp_path / "x", stream.getvalue())))
    assert found == {"cats/sparse": "a sparse file; pack it without --sparse"}


@pytest.mark.parametrize("force", [False, True])
def test_zip64(force, tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        for name, data in TREE.items():
            with made.open(name, "w", force_zip64=True) as file:
                file.write(data)
    data = stream.getvalue()
    if force:  # whose directory is that of a large one
        data = zip64_end(data)
    found = load_dataset(write(tmp_path / "x", data))
    assert {i: found.image(r).read() for r, i in enumerate(found.ids)} == TREE


def zip64_end(data):
    at = data.rindex(b"PK\x05\x06")
    count, size, start = struct.unpack_from("<HII", data, at + 10)
    record = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start)
    place = struct.pack("<4sIQI", b"PK\x06\x07", 0, at, 1)
    end = struct.pack(
        "<4s4HIIH", b"PK\x05\x06", 0, 0, 2**16 - 1, 2**16 - 1, 2**32 - 1, 2**32 - 1, 0
    )
    return data[:at] + record + place + end


# ---------------------------------------------------------------- bombs, damage, bounds


def test_a_bomb_in_a_zip_is_a_bad_image(tmp_path, monkeypatch):
    monkeypatch.setattr(members, "FREE_BYTES", 2**20)
    files = {**TREE, "cats/bomb.png": bytes(10**7)}
    dataset = load_dataset(write(tmp_path / "x", zipped(files)))
    image = dataset.image(dataset.ids.index("cats/bomb.png"))
    with pytest.raises(
        BadImageError, match=r"inflates from 9,\d+ bytes to more than 1 MiB, as a bom"
    ):
        image.read()
    assert image.read(100) == bytes(100)


def test_a_zip_that_says_it_is_small_is_inflated_no_further_than_its_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(members, "FREE_BYTES", 2**20)

    def lie(made, at):
        struct.pack_into("<I", made, at + 24, 10)

    data = flags(zipped({**TREE, "cats/bomb.png": bytes(10**7)}), "cats/bomb.png", lie)
    dataset = load_dataset(write(tmp_path / "x", data))
    with pytest.raises(BadImageError, match="as a bomb does"):
        dataset.image(dataset.ids.index("cats/bomb.png")).read()


@pytest.mark.parametrize("kind", TARS[1:])
def test_a_bomb_in_a_compressed_tar_is_one_line(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "FREE_BYTES", 2**20)
    path = write(tmp_path / "x", pack(kind, {**TREE, "cats/bomb.png": bytes(2 * 10**7)}))
    with pytest.raises(InputError, match="x: inflates to more than 200 times its size, as a bomb"):
        load_dataset(path)


def test_members_that_lie_in_one_another_are_bad_images(tmp_path):
    """The bomb of many names for the same bytes (Fifield, A better zip bomb, WOOT 2019)."""
    data = zipped({f"a/{i}": b"x" * 5000 for i in range(50)}, zipfile.ZIP_STORED)
    made = bytearray(data)
    for found in re.finditer(rb"PK\x01\x02", data):
        struct.pack_into("<I", made, found.start() + 42, 0)
    dataset = load_dataset(write(tmp_path / "x", bytes(made)))
    assert set(dataset.errors) == {"damaged archive: it lies in another member, or beyond the end"}


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_that_is_cut_short_is_one_line_or_a_warning(kind, tmp_path):
    data = pack(kind, {f"{c}/{i}": random.Random(i).randbytes(700) for c in "ab" for i in range(9)})
    end = len(data) if kind != "tar" else 18 * 1536
    for length in [1, 3, 300, 511, 513, *range(600, end, 977), end // 3, end - 1]:
        path = write(tmp_path / "x.zip", data[:length])
        if kind == "tar" and length % 1536 == 0:  # at the end of a member
            assert "no end mark, so it may have been cut short" in load_dataset(path).warnings[0]
            continue
        with pytest.raises(InputError, match=re.escape(str(path))):
            load_dataset(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_archive_never_ends_in_a_traceback(kind, tmp_path):
    data = pack(kind, {f"{c}/{i}": random.Random(i).randbytes(300) for c in "ab" for i in range(5)})
    rng = random.Random(0)
    for number in range(150):
        made = bytearray(data)
        for _ in range(1 + number % 4):
            made[rng.randrange(len(made))] = rng.randrange(256)
        path = write(tmp_path / "x.zip", bytes(made))
        with contextlib.suppress(HeadstartError):
            dataset = load_dataset(path)
            for row in range(len(dataset)):
                with contextlib.suppress(BadImageError):
                    dataset.image(row).read()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=1200), st.sampled_from(["tar", "zip", "gz"]))
def test_any_bytes_are_an_archive_or_one_line(tmp_path_factory, data, kind):
    path = tmp_path_factory.getbasetemp() / "any.zip"
    start = {"tar": tar(TREE)[:2048], "zip": zipped(TREE)[:60], "gz": b"\x1f\x8b\x08\0"}[kind]
    path.write_bytes(start + data)
    with contextlib.suppress(HeadstartError):
        load_dataset(path)


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(members, "MAX_MEMBERS", 20)
    files = {f"{'ab'[i % 2]}/{i}": b"" for i in range(21)}
    for kind in ("tar", "tar.gz", "stored.zip"):
        with pytest.raises(
            InputError, match="x: more than 20 members; pack fewer into one archive"
        ):
            load_dataset(write(tmp_path / "x", pack(kind, files)))
        few = dict(list(files.items())[:20])
        assert len(load_dataset(write(tmp_path / "x", pack(kind, few)))) == 20


def test_headers_of_absurd_size_are_refused(tmp_path):
    info = special("x", tarfile.GNUTYPE_LONGNAME)
    info.size = 2**21
    for data in (tar(TREE, info), gzip.compress(tar(TREE, info))):
        with pytest.raises(InputError, match="x: a header of absurd size"):
            load_dataset(write(tmp_path / "x", data))
    nested = b"".join(special("x", tarfile.XHDTYPE).tobuf() for _ in range(3000))
    with pytest.raises(InputError, match="x: damaged or cut short"):
        load_dataset(write(tmp_path / "x", tar(TREE)[:2560] + nested))


def test_what_other_compressions_hold_in_memory_is_bounded(noise, tmp_path, monkeypatch):
    monkeypatch.setattr(members, "MAX_HELD_BYTES", 2**20)
    path = write(tmp_path / "photos.tar.xz", pack("tar.xz", noise))
    with pytest.raises(
        InputError, match=r"compressed by xz, which can only .*; unxz makes a plain tar"
    ):
        load_dataset(path)
    write(path, pack("tar.gz", noise))
    assert len(load_dataset(path)) == len(noise)


# ---------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def classes(loose, tmp_path_factory):
    """A zip or a tar of each class of `loose`, in a folder of their own."""
    folder = tmp_path_factory.mktemp("packed")
    for number, place in enumerate(sorted(loose.iterdir())):
        files = {f.name: f.read_bytes() for f in sorted(place.iterdir())}
        kind = ("deflated.zip", "tar", "tar.gz")[number]
        write(folder / f"{place.name}.{kind.rpartition('deflated.')[2]}", pack(kind, files))
    return sorted(folder.iterdir())


def test_commands_take_several_archives(cli, classes, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = [w for n in ("backbone", "weights", "device") for w in (f"--{n}", tiny[n])]
    code, _, told = cli("fit", *classes, *network, "--strategy", "linear-probe")
    assert (code, os.listdir("runs")) == (0, ["blobs-plain-stripes-1"]), told
    run = headstart.Run.load("runs/blobs-plain-stripes-1")
    assert run.data == tuple(classes)
    assert (run.root, run.classes) == (classes[0].parent, ("blobs", "plain", "stripes"))
    assert facts(load_dataset(run.data))["ids"] == facts(load_dataset(classes))["ids"]
    code, out, told = cli("evaluate", run.folder, *classes, "--json")
    assert (code, '"images": {"evaluated": 24, "unreadable": 0}' in out) == (0, True), told
    code, out, told = cli("extract", *classes, *network[:4])
    assert (code, "24 images through test_vit: 0 images computed" in out) == (0, True), told


def test_a_training_on_several_archives_names_them_to_resume(classes, tmp_path):
    from headstart.runs.documents import Start, name_data

    start = Start(data=name_data(tuple(classes)), options={})
    assert start.data == [str(path) for path in classes]


def test_an_archive_is_named_in_the_next_commands(cli, loose, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = {f"{'test' if i % 3 == 0 else 'train'}/{f.parent.name}/{f.name}": f.read_bytes()
             for i, f in enumerate(sorted(loose.glob("*/*")))}  # fmt: skip
    write(tmp_path / "photos.tar.gz", pack("tar.gz", files))
    options = [w for n, v in tiny.items() for w in (f"--{n}", v)]
    code, _, told = cli("fit", "photos.tar.gz", *options)
    assert (code, "headstart evaluate runs/photos-1 photos.tar.gz" in told) == (0, True), told
    code, _, told = cli("fit", "photos.tar.gz", "--val", "photos.tar.gz", *options)
    assert (code, "the validation data are training data" in told) == (2, True), told


def test_corrections_go_into_a_manifest_of_files_alone(cli, tmp_path):
    path = write(tmp_path / "x.zip", zipped(TREE))
    write(tmp_path / "table.csv", b"image,suggested,action\n")
    words = ("--apply", tmp_path / "table.csv", "-o", tmp_path / "mended.csv")
    code, out, err = cli("audit", path, *words)
    assert (code, out) == (2, "")
    assert (
        "x.zip: --apply writes a manifest, which names files, and these images are none; unpack"
        in err
    )
    assert not (tmp_path / "mended.csv").exists()


def test_data_of_an_odd_type_are_refused(tmp_path):
    for data in (3, [3], [tmp_path, None], {3}):
        message = (
            r"the data are of type (int|set); give a path|item 0 is of type .*; expected a pair"
        )
        with pytest.raises(UsageError, match=message):
            headstart.fit(data, tmp_path / "run")
