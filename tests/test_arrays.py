"""Images in arrays, of every form, give what files of the same pixels give; hostile ones one clear line."""

import collections
import contextlib
import gzip
import io
import pickle
import pickletools
import re
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

import headstart
from headstart.data import unpickling
from headstart.data.array_names import find_pairs, name_labels
from headstart.data.decoding import decode_image
from headstart.data.loading import FORMS, load_dataset
from headstart.data.unpickling import read_pickle
from headstart.errors import BadImageError, HeadstartError, InputError, UsageError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (7, 6, 5, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (7, 6, 5), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 10, 0, 1, 2], dtype=np.uint8)
NAMES = ["0", "1", "2", "10", "0", "1", "2"]
SMALL = RNG.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)  # as in CIFAR


def pixels(dataset):
    """N arrays of uint8 (H, W, 3), as they are decoded."""
    return [np.asarray(decode_image(dataset.image(i).read())) for i in range(len(dataset))]


def as_rgb(images):
    """(N, H, W) or (N, H, W, C) as Pillow makes RGB of it, through a PNG."""
    found = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        found.append(np.asarray(decode_image(file.getvalue())))
    return found


def check(dataset, images, names, splits=""):
    assert list(dataset.label_names()) == list(names)
    assert set(dataset.splits) == ({splits} if isinstance(splits, str) else set(splits))
    for found, expected in zip(pixels(dataset), as_rgb(images), strict=True):
        assert np.array_equal(found, expected)
    for row in range(len(dataset)):
        image = dataset.image(row)
        assert image.read(20) == image.read()[:20]


# ---------------------------------------------------------------- layouts and values


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (GREY, GREY),
        (GREY[..., None], GREY),
        (GREY[:, None], GREY),
        (COLOUR, COLOUR),
        (COLOUR.transpose(0, 3, 1, 2), COLOUR),
        (np.concatenate([COLOUR, COLOUR[..., :1]], axis=3), ...),
        (GREY.astype(np.int64), GREY),
        (GREY.astype(">u2"), GREY),
        (GREY > 99, (GREY > 99) * np.uint8(255)),
        (GREY / 255, GREY),
        ((GREY / 255).astype(np.float32), GREY),
        ((GREY / 255).astype(np.float16), GREY),
        (GREY.astype(np.float64), GREY),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}" if isinstance(value, np.ndarray) else "",
)
@pytest.mark.parametrize("packed", [False, True])
def test_layouts_and_types(tmp_path, given, meant, packed):
    path = tmp_path / "x.npz"
    (np.savez_compressed if packed else np.savez)(path, images=given, labels=LABELS)
    dataset = load_dataset(path)
    check(dataset, given if meant is ... else meant, NAMES)
    assert dataset.classes == ("0", "1", "2", "10")
    assert dataset.ids == tuple(map(str, range(7)))
    assert dataset.source == path
    taken = [w for w in dataset.warnings if "floating-point" in w]
    assert len(taken) == (given.dtype.kind == "f")
    assert (dataset.image(0).stamp() is None) == packed
    same = headstart.from_arrays(given, LABELS)
    assert [same.image(i).read() for i in range(7)] == [dataset.image(i).read() for i in range(7)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((7, 3, 9, 3), np.uint8), "3 x 9 x 3, where the channels may be first or last"),
        (np.zeros((7, 9, 9, 2), np.uint8), "9 x 9 x 2; expected 1, 3 or 4 channels"),
        (
            np.zeros((7, 64), np.uint8),
            "rows of 64 numbers, of which height and width are not known",
        ),
        (np.zeros((7, 0, 5), np.uint8), "images of shape 0 x 5; expected"),
        (np.zeros((7, 9, 9, 3, 1), np.uint8), "9 x 9 x 3 x 1; expected"),
        (np.zeros(7, np.uint8), "images of shape none; expected"),
        (GREY.astype(np.int16) - 1, "numbers from -1 to 2..; expected 0 to 255"),
        (GREY.astype(np.uint16) * 3, "numbers from .* to .*; expected 0 to 255"),
        (GREY / 127.5 - 1, "numbers from -1 to "),
        (GREY.astype(complex), "an array of complex128; save the images as uint8"),
        (GREY[:6], "7 labels for 6 images; each image needs one"),
        (np.zeros((0, 9, 9), np.uint8), "7 labels for 0 images"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path, given, message):
    np.savez(tmp_path / "x.npz", images=given, labels=LABELS)
    with pytest.raises(InputError, match=message) as caught:
        load_dataset(tmp_path / "x.npz")
    assert "\n" not in str(caught.value)
    assert re.match(f"{tmp_path}/x.npz, (images|labels): ", str(caught.value))


def test_scale_goes_by_all_arrays(tmp_path):
    dark = (GREY // 255).astype(np.float32)
    np.savez(
        tmp_path / "x.npz",
        x_train=GREY.astype(np.float32),
        y_train=LABELS,
        x_test=dark,
        y_test=LABELS,
    )
    dataset = load_dataset(tmp_path / "x.npz")
    check(dataset.select(dataset.rows("test")), dark.astype(np.uint8), NAMES, "test")
    assert "are taken as 0 to 255" in dataset.warnings[0]


def test_numbers_that_are_not_finite_are_bad_images():
    images = GREY / 255.0
    images[2, 0, 0], images[5] = np.nan, np.inf
    dataset = headstart.from_arrays(images, LABELS)
    assert [i for i, e in zip(dataset.ids, dataset.errors, strict=True) if e] == ["2", "5"]
    with pytest.raises(BadImageError, match="pixels that are NaN or infinite"):
        dataset.image(2).read()


# ---------------------------------------------------------------- labels and names


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ([0, 10, 2], ["0", "10", "2"]),
        (np.array([[0], [1]]), ["0", "1"]),
        (np.array([1.0, 2.0]), ["1", "2"]),
        (np.eye(3)[[2, 0]], ["2", "0"]),
        (np.array([True, False]), ["1", "0"]),
        (np.array(["a ", "b"]), ["a", "b"]),
        ([b"a", b"b"], ["a", "b"]),
        ([], []),
    ],
)
def test_labels(given, names):
    assert name_labels("y", given, len(given)) == names


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([0, -1], "label -1 of row 1; expected 0 and above"),
        ([0.5], "no whole numbers"),
        ([np.nan, 1], "no whole numbers"),
        ([1e300], "no whole numbers"),
        ([0, "a"], "of more than one kind"),
        ([None], "of more than one kind"),
        ([[0], 1], "of more than one kind"),
        (np.array([{}], object), "labels that are Python objects"),
        (np.full((3, 2), 2), "3 x 2, which are not all 0 and 1"),
        (np.zeros((3, 2, 2)), "labels of 3 dimensions"),
        (["a", ""], "name of a class is empty"),
        (["a", "\ud800"], "not valid Unicode"),
        ([b"\xff"], "not valid Unicode"),
        ([10**30], "labels that are Python objects"),
    ],
)
def test_what_is_no_label_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        name_labels("y", given, len(given))


def test_numbers_without_a_name():
    assert name_labels("y", [1, 0], 2, ["cat", "dog"]) == ["dog", "cat"]
    with pytest.raises(InputError, match="y: label 2 of row 1, and there are 2 names"):
        name_labels("y", [1, 2], 2, ["cat", "dog"])


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("x_train y_train x_test y_test", "train=x_train+y_train test=x_test+y_test"),
        ("train_images train_labels val_images val_labels test_images test_labels",
         "train=train_images+train_labels val=val_images+val_labels test=test_images+test_labels"),
        ("images labels", "=images+labels"),
        ("data target images target_names DESCR", "=images+target"),
        ("features labels sizes coords", "=features+labels"),
        ("X Y", "=X+Y"),
        ("XTrain YTrain x_val y_val", "train=XTrain+YTrain val=x_val+y_val"),
    ],
)  # fmt: skip
def test_names_of_arrays(names, found):
    pairs, _ = find_pairs("x", names.split())
    assert " ".join(f"{p.split}={p.images}+{p.labels}" for p in pairs) == found


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("arr_0 arr_1", r"no images with labels among its arrays \(arr_0, arr_1\); name them"),
        ("", r"\(none\)"),
        ("x_train y_train x_test", "x_test has no labels"),
        ("x_train y_train x y", "x_train and x are both there"),
        ("x_val y_val x_valid y_valid", "x_val and x_valid both mean the split 'val'"),
    ],
)
def test_names_that_do_not_fit(names, message):
    with pytest.raises(InputError, match=message):
        find_pairs("x", names.split())


# ---------------------------------------------------------------- .npz and .npy


def test_keras_and_medmnist(tmp_path):
    parts = {"x_train": GREY, "y_train": LABELS, "x_test": GREY[:2], "y_test": LABELS[:2]}
    np.savez_compressed(tmp_path / "mnist.npz", **parts)
    dataset = load_dataset(tmp_path / "mnist.npz")
    assert dataset.ids == ("test/0", "test/1", *(f"train/{n}" for n in range(7)))
    check(dataset, np.concatenate([GREY[:2], GREY]), NAMES[:2] + NAMES, ("train", "test"))

    rows = {"images": COLOUR, "labels": LABELS[:, None]}
    parts = {
        f"{split}_{name}": array
        for split in ("train", "val", "test")
        for name, array in rows.items()
    }
    np.savez(tmp_path / "bloodmnist.npz", **parts, names=LABELS)
    dataset = load_dataset(tmp_path / "bloodmnist.npz", format="numpy")
    check(dataset, np.concatenate([COLOUR] * 3), NAMES * 3, ("train", "val", "test"))
    assert dataset.warnings == ("arrays left out: names",)


def test_names_of_classes_and_ids_by_number(tmp_path):
    images = np.repeat(GREY, 20, axis=0)
    np.savez(
        tmp_path / "x.npz", images=images, labels=np.repeat(LABELS % 3, 20), classes=["c", "a", "b"]
    )
    dataset = load_dataset(tmp_path / "x.npz")
    assert dataset.classes == ("a", "b", "c")
    assert (dataset.ids[0], dataset.ids[-1]) == ("000", "139")
    assert dataset.label_names()[:21] == (*["c"] * 20, "a")


@pytest.mark.parametrize(
    "files", [("images", "labels"), ("x_train", "y_train"), ("signs", "signs_labels")]
)
def test_npy(tmp_path, files):
    np.save(tmp_path / f"{files[0]}.npy", COLOUR)
    np.save(tmp_path / f"{files[1]}.npy", LABELS)
    split = "train" if "train" in files[0] else ""
    check(load_dataset(tmp_path / f"{files[0]}.npy"), COLOUR, NAMES, split)
    if files[0] != "signs":
        dataset = load_dataset(tmp_path)
        check(dataset, COLOUR, NAMES, split)
        stamp = dataset.image(0).stamp()
        np.save(tmp_path / f"{files[0]}.npy", COLOUR[:3])
        assert dataset.image(0).stamp() not in (None, stamp)
        assert np.array_equal(decode_image(dataset.image(2).read()), COLOUR[2])
        with pytest.raises(BadImageError, match="ends before it"):
            dataset.image(5).read()
        (tmp_path / f"{files[0]}.npy").unlink()
        with pytest.raises(BadImageError, match="no such file"):
            dataset.image(0).read()
    else:
        with pytest.raises(InputError, match="no images in class folders"):
            load_dataset(tmp_path)


def test_what_is_remembered_of_a_row_goes_by_all_files(tmp_path):
    """The number and range of others decide what a row is: the cache must not take it for the same."""
    path = write_cifar(tmp_path, "10-binary", "folder")
    before = load_dataset(path)
    stamp = before.image(before.ids.index("train/04")).stamp()
    assert stamp == before.image(0).stamp()
    whole = (path / "data_batch_1.bin").read_bytes()
    (path / "data_batch_1.bin").write_bytes(whole[3073:])
    after = load_dataset(path)
    assert after.image(after.ids.index("train/04")).stamp() != stamp


def test_npy_of_columns(tmp_path):
    np.save(tmp_path / "x.npy", np.asfortranarray(COLOUR))
    np.save(tmp_path / "y.npy", LABELS)
    check(load_dataset(tmp_path), COLOUR, NAMES)


def test_images_are_read_from_where_they_lie(tmp_path):
    images = np.zeros((64, 512, 512, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(64)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(64) % 2)
    np.save(tmp_path / "x.npy", images)
    np.save(tmp_path / "y.npy", np.arange(64) % 2)
    del images
    for name in ("x.npz", "x.npy"):
        tracemalloc.start()
        dataset = load_dataset(tmp_path / name)
        assert decode_image(dataset.image(41).read()).getpixel((0, 0)) == (41, 0, 0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 * 2**20


def npy(shape, descr="|u1", data=b"", fortran=False):
    header = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + data


def write_npz(path, how=zipfile.ZIP_DEFLATED, **members):
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


GOOD = npy((7,), data=LABELS.tobytes())


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (npy((2**20, 1024, 1024)), GOOD, "claims|GiB of memory once unpacked|ends before its numbers do"),
        (npy((10**6, 10**6, 10**6)), GOOD, "damaged: no shape of an array"),
        (npy((7, 8, -1)), GOOD, "damaged: no shape"),
        (npy((7, 8, 8), data=bytes(7 * 64 - 1)), GOOD, "ends before its numbers do"),
        (npy((7, 8, 8), "|O", bytes(7 * 64 * 8)), GOOD, "an array of Python objects, which is not read"),
        (npy((7,), [("a", "|u1")], bytes(7)), GOOD, "an array of records, which is not read"),
        (npy((7, 8, 8), "|V1", bytes(7 * 64)), GOOD, "save the images as uint8"),
        (npy((7, 8, 8), data=bytes(7 * 64)), npy((2**40,)), "labels of more than 1 GiB"),
        (npy((7, 8, 8), data=bytes(7 * 64)), npy((2**28,)), "labels: (claims|ends before)"),
        (npy((7, 8, 8), data=bytes(7 * 64)), npy((7,), "|O", bytes(56)), "Python objects"),
        (npy((7, 8, 8), data=bytes(7 * 64)), npy((7,), "|S0"), "array of empty texts"),
        (npy((7, 8, 8), data=bytes(7 * 64)), npy((), data=b"1"), "a single number"),
        (b"\x93NUMPY\1\0\xff\xff" + bytes(9), GOOD, "a header of 65,535 bytes"),
        (b"\x93NUMPY\1\0\x05\0[[[[[" + bytes(9), GOOD, "damaged"),
        (b"\x93NUMPY\1\0\x0a\0__import__(1)", GOOD, "damaged"),
        (b"", GOOD, "no array of NumPy's, or damaged"),
    ],
)  # fmt: skip
def test_hostile_npz(tmp_path, how, images, labels, message):
    path = write_npz(tmp_path / "x.npz", how, images=images, labels=labels)
    tracemalloc.start()
    with pytest.raises(InputError, match=message) as caught:
        load_dataset(path)
    assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    tracemalloc.stop()
    assert "\n" not in str(caught.value)


def test_npz_that_is_a_bomb(tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.npy", GOOD)
        with archive.open("images.npy", "w") as file:
            file.write(npy((200, 1024, 1024)))
            for _ in range(200):
                file.write(bytes(2**20))
    tracemalloc.start()
    with pytest.raises(
        InputError, match=r"images: claims 209,715,200 bytes in .* made to fill the memory"
    ):
        load_dataset(path)
    assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    tracemalloc.stop()


def test_damaged_archives(tmp_path):
    np.savez(tmp_path / "x.npz", images=COLOUR, labels=LABELS)
    whole = (tmp_path / "x.npz").read_bytes()
    for cut in (4, 100, len(whole) - 30):
        (tmp_path / "cut.npz").write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"cut\.npz: cannot be read: "):
            load_dataset(tmp_path / "cut.npz")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_changed_bytes_end_in_data_or_an_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("x") / "x.npz"
    np.savez_compressed(path, images=COLOUR, labels=LABELS)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(HeadstartError):
        assert pixels(load_dataset(path))


# ---------------------------------------------------------------- CIFAR


def pickle_as_python_2(batch):
    """Protocol 2 as Python 2 wrote it: text and the bytes of arrays as BINSTRING, keys too."""
    out = [b"\x80\x02"]

    def text(value):
        value = value if isinstance(value, bytes) else value.encode()
        short = len(value) < 256
        out.append(
            (b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value))) + value
        )

    out.append(b"}(")
    for key, value in batch.items():
        text(key)
        if isinstance(value, np.ndarray):
            out.append(
                b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01"
            )
            out.extend(b"M" + struct.pack("<H", n) for n in value.shape)
            out.append({2: b"\x86", 1: b"\x85"}[value.ndim])
            out.append(
                b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
            )
            text(value.tobytes())
            out.append(b"tb")
        elif isinstance(value, list):
            out.append(b"](")
            for item in value:
                if isinstance(item, int):
                    out.append(b"K" + bytes([item]))
                else:
                    text(item)
            out.append(b"e")
        else:
            text(value)
    out.append(b"u.")
    return b"".join(out)


TEN = ["airplane", "automobile", "bird"]


def cifar_files(kind):
    """{name: bytes} of four images in each file, byte for byte in the layout of the original."""
    flat = SMALL.reshape(4, 3072)
    if kind == "10-python":
        batch = {
            "batch_label": "training batch 1 of 5",
            "labels": [0, 1, 2, 1],
            "data": flat,
            "filenames": list("abcd"),
        }
        files = {f"data_batch_{n}": batch for n in range(1, 6)} | {"test_batch": batch}
        files["batches.meta"] = {"num_cases_per_batch": "x", "label_names": TEN, "num_vis": "3072"}
        return {name: pickle_as_python_2(value) for name, value in files.items()}
    if kind == "100-python":
        batch = {
            "filenames": list("abcd"),
            "fine_labels": [0, 1, 2, 1],
            "coarse_labels": [0] * 4,
            "data": flat,
        }
        meta = {"fine_label_names": TEN, "coarse_label_names": ["x"]}
        files = {"meta": meta, "test": batch, "train": batch}
        return {name: pickle_as_python_2(value) for name, value in files.items()} | {
            "file.txt~": b""
        }
    names = "\n".join([*TEN, ""]).encode()
    if kind == "10-binary":
        data = b"".join(
            bytes([label]) + row.tobytes() for label, row in zip([0, 1, 2, 1], flat, strict=True)
        )
        files = {f"data_batch_{n}.bin": data for n in range(1, 6)} | {"test_batch.bin": data}
        return files | {"batches.meta.txt": names + b"\n", "readme.html": b"<html>"}
    data = b"".join(
        bytes([9, label]) + row.tobytes() for label, row in zip([0, 1, 2, 1], flat, strict=True)
    )
    return {
        "train.bin": data,
        "test.bin": data,
        "fine_label_names.txt": names,
        "coarse_label_names.txt": b"x\n",
    }


FOLDERS = {
    "10-python": "cifar-10-batches-py",
    "100-python": "cifar-100-python",
    "10-binary": "cifar-10-batches-bin",
    "100-binary": "cifar-100-binary",
}


def write_cifar(tmp_path, kind, how, change=None):
    files = {**cifar_files(kind), **(change or {})}
    if how == "folder":
        folder = tmp_path / "cifar"
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        return folder
    path = tmp_path / "cifar.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        top = tarfile.TarInfo(FOLDERS[kind])
        top.type = tarfile.DIRTYPE
        archive.addfile(top)
        for name, data in files.items():
            member = tarfile.TarInfo(f"{FOLDERS[kind]}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("how", ["folder", "archive"])
def test_cifar(tmp_path, kind, how):
    path = write_cifar(tmp_path, kind, how)
    if "python" in kind:  # the same as Python's own reader makes of it
        for data in cifar_files(kind).values():
            assert not data or pickle.loads(data, encoding="latin-1")
    dataset = load_dataset(path)
    assert load_dataset(path, format="cifar").ids == dataset.ids
    batches = 5 if kind.startswith("10-") else 1
    images = SMALL.transpose(0, 2, 3, 1)
    names = ["airplane", "automobile", "bird", "automobile"]
    check(
        dataset, np.concatenate([images] * (batches + 1)), names * (batches + 1), ("train", "test")
    )
    assert dataset.ids[-1] == ("train/19" if batches == 5 else "train/3")
    assert not [w for w in dataset.warnings if "one group" not in w]  # of classes with one image


@pytest.mark.parametrize("how", ["folder", "archive"])
@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("10-python", lambda f: {"data_batch_2": f["data_batch_2"][:-900]}, "no pickle of arrays, or"),
        ("10-python", lambda f: {"batches.meta": pickle_as_python_2({"label_names": ["a"]})}, "label 2 of"),
        ("10-python", lambda f: {"batches.meta": pickle_as_python_2({})}, "no list of names"),
        ("10-python", lambda f: {"test_batch": pickle_as_python_2({"labels": [1]})}, "no batch of CIFAR"),
        ("10-python", lambda f: {"test_batch": pickle.dumps([1])}, "which is a dict"),
        ("100-python", lambda f: {"test": pickle_as_python_2({"data": SMALL[:, 0, 0]})}, "not uint8"),
        ("10-binary", lambda f: {"data_batch_3.bin": f["data_batch_3.bin"][:-1]}, "12,291 bytes are not"),
        ("10-binary", lambda f: {"data_batch_3.bin": b""}, "0 bytes are not whole images"),
        ("100-binary", lambda f: {"fine_label_names.txt": b"a\na\nb\n"}, "'a' stands twice"),
    ],
)  # fmt: skip
def test_damaged_cifar(tmp_path, how, kind, change, message):
    path = write_cifar(tmp_path, kind, how, change(cifar_files(kind)))
    with pytest.raises(InputError, match=message) as caught:
        load_dataset(path)
    assert "\n" not in str(caught.value)


def test_cifar_in_part(tmp_path):
    path = write_cifar(tmp_path, "10-binary", "folder")
    (path / "data_batch_4.bin").unlink()
    (path / "batches.meta.txt").unlink()
    dataset = load_dataset(path)
    assert dataset.classes == ("0", "1", "2")
    assert dataset.warnings == ("missing, and done without: data_batch_4.bin, batches.meta.txt",)


def test_damaged_archives_of_cifar(tmp_path):
    whole = write_cifar(tmp_path, "10-python", "archive").read_bytes()
    for cut in (len(whole) - 700, len(whole) - 300):
        (tmp_path / "cut.tar.gz").write_bytes(whole[:cut])
        with pytest.raises(InputError, match="damaged archive: it is cut short"):
            load_dataset(tmp_path / "cut.tar.gz", format="cifar")
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("cifar-10-batches-py/x"))
        member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        member.size = 80 * 2**20
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    with pytest.raises(InputError, match="inflates to more than 200 times its size"):
        load_dataset(tmp_path / "bomb.tar.gz")
    sparse = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
    sparse.pax_headers = {
        "GNU.sparse.map": "0,1",
        "GNU.sparse.size": str(2**40),
        "GNU.sparse.name": sparse.name,
    }
    sparse.size = 1
    with tarfile.open(tmp_path / "holes.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(sparse, io.BytesIO(b"x"))
    with pytest.raises(InputError, match="data_batch_1: a sparse file"):
        load_dataset(tmp_path / "holes.tar.gz")
    with tarfile.open(tmp_path / "link.tar.gz", "w:gz") as archive:
        link = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(InputError, match="data_batch_1: a link, which is not followed"):
        load_dataset(tmp_path / "link.tar.gz")


# ---------------------------------------------------------------- pickles


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_traffic_signs(tmp_path, protocol):
    signs = {
        "features": COLOUR,
        "labels": LABELS,
        "sizes": np.ones((7, 2), np.int64),
        "coords": np.ones((7, 4)),
    }
    for name in ("train.p", "valid.p", "test.p"):
        (tmp_path / name).write_bytes(pickle.dumps(signs, protocol))
    dataset = load_dataset(tmp_path)
    check(dataset, np.concatenate([COLOUR] * 3), NAMES * 3, ("train", "val", "test"))
    assert dataset.ids[0] == "test/0"
    assert dataset.warnings == ("arrays left out: sizes, coords",)
    check(load_dataset(tmp_path / "train.p"), COLOUR, NAMES, "train")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_entry_a_class(tmp_path, protocol):
    folk = collections.defaultdict(list, man=list(COLOUR[:3]), woman=[COLOUR[3], GREY[4]])
    (tmp_path / "folk.pkl").write_bytes(pickle.dumps(folk, protocol))
    dataset = load_dataset(tmp_path / "folk.pkl")
    assert dataset.ids == ("man/0", "man/1", "man/2", "woman/0", "woman/1")
    assert dataset.label_names() == ("man",) * 3 + ("woman",) * 2
    for found, image in zip(pixels(dataset), [*COLOUR[:4], GREY[4]], strict=True):
        assert np.array_equal(found, as_rgb([image])[0])
    (tmp_path / "folk.pkl").write_bytes(pickle.dumps({b"a": GREY, 7: GREY[:2]}, protocol))
    assert load_dataset(tmp_path / "folk.pkl").classes == ("7", "a")


class Reducer:
    """What runs when Python's own reader meets it."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_pickle_runs_anything(tmp_path, protocol):
    canary = tmp_path / "canary"
    evil = Reducer(Path.touch, (canary,))
    for value in (
        evil,
        {"features": evil, "labels": LABELS},
        {"features": COLOUR, "labels": [evil]},
    ):
        (tmp_path / "train.p").write_bytes(pickle.dumps(value, protocol))
        with pytest.raises(InputError, match=r"train.p: asks for [\w.]*(getattr|pathlib|touch)"):
            load_dataset(tmp_path / "train.p")
        assert not canary.exists()
    assert pickle.loads((tmp_path / "train.p").read_bytes())
    assert canary.exists()


def read(data):
    return read_pickle(io.BytesIO(data), len(data), "x")


MAKE_ARRAY = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.", "asks for os.system, which could run anything"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "asks for os.system"),
        (b"\x80\x02cnumpy\nload\n.", "asks for numpy.load"),
        (b"\x80\x02c__builtin__\neval\n.", "asks for __builtin__.eval"),
        (b"(ios\nsystem\n.", "asks for the instruction INST"),
        (b"\x80\x02]X\x01\0\0\0aQ.", "asks for the instruction BINPERSID"),
        (b"\x80\x02\x82\x01.", "asks for the instruction EXT1"),
        (b"\x80\x02cnumpy\ndtype\n)\x81.", "asks for the instruction NEWOBJ"),
        (b"\x80\x02cnumpy\ndtype\n}b.", "asks for the state of an object"),
        (b"\x80\x02]}b.", "asks for the state of an object"),
        (b"\x80\x02K\x01)R.", "calls what is nothing to call"),
        (b"\x80\x02]r\xff\xff\xff\xff.", None),  # a memo of four billion places
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.", "damaged"),
        (b"\x80\x04\x8d" + struct.pack("<Q", 2**63) + b"x.", "damaged"),
        (b"\x80\x04\x96" + struct.pack("<Q", 2**40) + b"x.", "damaged"),
        (b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"].", None),  # a frame, which says nothing
        (b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"K\x01s.", "a key of type tuple"),
        (b"\x80\x02c\\u\n\\q\n.", "asks for .u..q"),
        (b"\x80\x02.", "damaged"),
        (b"\x80\x02(t", "damaged"),
        (b"\x80\x02\x86.", "damaged"),
        (b"\x80\x02}(K\x01u.", "damaged"),
        (b"\x80\x02K\x01K\x02a.", "adds to what is no list"),
        (b"\x80\x02h\x05.", "damaged"),
        (b"", "damaged"),
        (MAKE_ARRAY + b"(cnumpy\nndarray\n(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ftU\x01dtR.", "without numbers"),
        (MAKE_ARRAY + b")R(K\x01(J\xff\xff\xff\x7ftcnumpy\ndtype\nU\x02u1\x85R\x89U\x01xtb.", "damaged"),
        (MAKE_ARRAY + b")R(K\x01K\x01\x85cnumpy\ndtype\nU\x02O8\x85R\x89]tb.", "an array of Python objects"),
        (MAKE_ARRAY + b")R(K\x01K\x01\x85cnumpy\ndtype\nU\x02V8\x85R\x89U\x01xtb.", "of type 'V8'"),
        (b"\x80\x02c_codecs\nencode\nX\x01\0\0\0aX\x03\0\0\0zip\x86R.", "in an encoding that Python does"),
    ],
)  # fmt: skip
def test_hostile_pickles(data, message):
    tracemalloc.start()
    if message is None:
        assert read(data) == []
    else:
        with pytest.raises(InputError, match=message) as caught:
            read(data)
        assert "\n" not in str(caught.value)
    assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    tracemalloc.stop()


def test_pickles_of_too_many_objects(monkeypatch):
    monkeypatch.setattr(unpickling, "MAX_INSTRUCTIONS", 1000)
    with pytest.raises(InputError, match="x: more than 1,000 objects; save arrays"):
        read(b"\x80\x02" + b"]" * 1001 + b".")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.tuples(inner, inner)
    ),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(VALUES, st.integers(0, pickle.HIGHEST_PROTOCOL))
@example([np.float64(2.5)], 2)
def test_plain_values_come_back(value, protocol):
    assert read(pickle.dumps(value, protocol)) == value


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["u1", "<i8", ">f4", "?", "S3", "<U2", "<f2"]),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.sampled_from("CF"),
    st.integers(0, pickle.HIGHEST_PROTOCOL),
)
def test_arrays_come_back(dtype, shape, order, protocol):
    array = np.asarray(RNG.integers(0, 2, shape).astype(dtype), order=order)
    found = read(pickle.dumps({"x": array, "y": [array, array]}, protocol))
    for one in (found["x"], *found["y"]):
        assert one.dtype == array.dtype
        assert np.array_equal(one, array)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_changed_pickles_end_in_a_value_or_an_error(data):
    value = {"features": COLOUR[:2], "labels": LABELS[:2].tolist(), "x": [{"y": b"z"}]}
    content = bytearray(pickle.dumps(value, data.draw(st.integers(2, pickle.HIGHEST_PROTOCOL))))
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, len(content) - 1) | st.integers(0, 200))
        content[place] = data.draw(
            st.integers(0, 255) | st.sampled_from([ord(c) for c in pickletools.code2op])
        )
    with contextlib.suppress(InputError):
        read(bytes(content))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "a pickle of a list; expected a dict"),
        ({}, "expected a dict"),
        ({"features": COLOUR}, "features, which has no labels|no images with labels"),
        ({"features": COLOUR, "labels": LABELS[:3]}, "3 labels for 7 images"),
        (
            {"features": COLOUR.tolist(), "labels": LABELS},
            "no array of images, and no list of them",
        ),
        ({"features": COLOUR.astype(object), "labels": LABELS}, "an array of Python objects"),
        ({"features": 3, "labels": LABELS}, "no array of images"),
        ({"a": GREY, b"a": GREY}, None),
        ({"a": GREY, "b": []}, "no images with labels"),
    ],
)
def test_pickles_of_something_else(tmp_path, value, message):
    (tmp_path / "train.p").write_bytes(pickle.dumps(value))
    if message is None:
        assert load_dataset(tmp_path / "train.p").classes == ("a",)
        return
    with pytest.raises(InputError, match=message):
        load_dataset(tmp_path / "train.p")


# ---------------------------------------------------------------- IDX


def idx(array, type=8):
    return (
        bytes([0, 0, type, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def write_idx(
    folder,
    packed,
    images=GREY,
    labels=LABELS,
    names=("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
):
    for name, array in zip(names, (images, labels), strict=True):
        data = array if isinstance(array, bytes) else idx(array)
        (folder / f"{name}.gz" if packed else folder / name).write_bytes(
            gzip.compress(data) if packed else data
        )
    return folder / (f"{names[0]}.gz" if packed else names[0])


@pytest.mark.parametrize("packed", [False, True])
def test_idx(tmp_path, packed):
    one = write_idx(tmp_path, packed)
    check(load_dataset(one), GREY, NAMES, "train")
    check(load_dataset(tmp_path), GREY, NAMES, "train")
    write_idx(
        tmp_path, packed, GREY[:3], LABELS[:3], ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    )
    write_idx(tmp_path, not packed)  # both lie there after torchvision's download
    dataset = load_dataset(tmp_path)
    assert dataset.ids == ("test/0", "test/1", "test/2", *(f"train/{n}" for n in range(7)))
    check(dataset, np.concatenate([GREY[:3], GREY]), NAMES[:3] + NAMES, ("train", "test"))


def test_idx_by_other_names(tmp_path):
    names = ("emnist-letters-test-images.idx3-ubyte", "emnist-letters-test-labels.idx1-ubyte")
    check(load_dataset(write_idx(tmp_path, False, names=names)), GREY, NAMES, "test")
    names = ("qmnist-images-idx3-ubyte", "qmnist-labels-idx1-ubyte")
    assert set(load_dataset(write_idx(tmp_path, False, names=names)).splits) == {""}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (idx(GREY)[:-1], LABELS, "7 x 6 x 5 bytes, which is a length of 226, and has 225"),
        (idx(GREY) + b"x", LABELS, "and has more"),
        (GREY, LABELS[:5], "5 labels for 7 images"),
        (
            b"\0\0\x08\3" + struct.pack(">3I", 2**31, 2**10, 2**10),
            LABELS,
            "GiB of memory|length of",
        ),
        (
            b"\0\0\x08\3" + struct.pack(">3I", 2**10, 2**10, 2**10),
            LABELS,
            "claims 1,073,741,824 bytes|length of",
        ),
        (idx(GREY, 13), LABELS, "of type 0x0d; only bytes|expected"),
        (b"\0\0\x08\3\0", LABELS, "ends in its header"),
        (GREY, GREY, "not a label for each image"),
        (GREY, idx(LABELS)[:-1], "and has 14"),
        (GREY, b"\0\0", "no IDX file, or damaged"),
    ],
)
def test_hostile_idx(tmp_path, packed, images, labels, message):
    path = write_idx(tmp_path, packed, images, labels)
    tracemalloc.start()
    for place in (path, tmp_path):
        with pytest.raises(InputError, match=message) as caught:
            load_dataset(place)
        assert "\n" not in str(caught.value)
    assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    tracemalloc.stop()


def test_more_images_than_a_packed_file_can_hold(tmp_path):
    path = write_idx(tmp_path, True, np.zeros((2**20, 1, 1), np.uint8), np.zeros(2**20, np.uint8))
    with pytest.raises(InputError, match="claims 1,048,576 bytes in 1,"):
        load_dataset(path)


def test_idx_without_labels_or_torn(tmp_path):
    path = write_idx(tmp_path, True)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match="damaged archive: it is cut short; copy"):
        load_dataset(path)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        InputError, match=r"its labels, train-labels-idx1-ubyte or .* are not beside it"
    ):
        load_dataset(tmp_path)


# ---------------------------------------------------------------- in Python


class Items:
    """A data set as PyTorch's are: a length and items."""

    def __init__(self, images, labels, **more):
        self.images, self.labels, self.read = images, labels, 0
        vars(self).update(more)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        self.read += 1
        return self.images[row], self.labels[row]


PILLOW = [Image.fromarray(image) for image in COLOUR]


@pytest.mark.parametrize(
    "given",
    [
        (COLOUR, LABELS),
        (list(COLOUR), LABELS.tolist()),
        (torch.from_numpy(COLOUR).permute(0, 3, 1, 2), torch.from_numpy(LABELS)),
        (PILLOW, NAMES),
        list(zip(COLOUR, LABELS, strict=True)),
        list(zip(PILLOW, NAMES, strict=True)),
        tuple(zip(COLOUR, LABELS.tolist(), strict=True)),
        {"images": COLOUR, "labels": LABELS},
        Items(PILLOW, LABELS.tolist()),
        Items(COLOUR, torch.from_numpy(LABELS), targets=torch.from_numpy(LABELS)),
        torch.utils.data.TensorDataset(torch.from_numpy(COLOUR), torch.from_numpy(LABELS)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_in_python(given):
    dataset = load_dataset(given)
    check(dataset, COLOUR, NAMES)
    assert dataset.name == "data in memory"


def test_keras_tuples():
    check(
        load_dataset(((GREY, LABELS), (GREY[:1], LABELS[:1]))),
        [GREY[0], *GREY],
        ["0", *NAMES],
        ("train", "test"),
    )
    three = load_dataset(((GREY, LABELS), (GREY[:1], LABELS[:1]), (GREY[:2], LABELS[:2])))
    assert three.ids[:3] == ("test/0", "test/1", "train/0")
    assert "val" in three.splits


def test_bunches():
    digits = sklearn.datasets.load_digits()
    dataset = load_dataset(digits)
    assert len(dataset) == 1797
    assert dataset.classes == tuple("0123456789")
    assert dataset.warnings == ("floating-point pixels from 0 to 16 are taken as 0 to 255",)
    assert np.array_equal(pixels(dataset.select([5]))[0][..., 0], digits.images[5])
    with pytest.raises(
        InputError, match="rows of 4 numbers, of which height and width are not known"
    ):
        load_dataset(sklearn.datasets.load_iris())


def test_images_of_a_data_set_are_read_when_they_are_needed():
    items = Items(PILLOW, LABELS.tolist(), targets=(LABELS % 2).tolist(), classes=["no", "yes"])
    dataset = load_dataset(items)
    assert items.read == 0
    assert dataset.label_names()[:2] == ("no", "yes")
    assert len(dataset.image(3).read()) > 0
    assert items.read == 1
    floats = load_dataset(Items(COLOUR / 255, LABELS.tolist()))
    with pytest.raises(BadImageError, match="an array of float64; have the data set give uint8"):
        floats.image(0).read()


def test_from_arrays_with_splits_and_classes():
    splits = ["train", "val", "test", "", "train", "valid", "train"]
    dataset = headstart.from_arrays(GREY, LABELS % 3, classes=["c", "a", "b"], splits=splits)
    assert dataset.ids == ("0", "test/0", "train/0", "train/1", "train/2", "val/0", "val/1")
    check(
        dataset,
        GREY[[3, 2, 0, 4, 6, 1, 5]],
        [["c", "a", "b"][n] for n in (LABELS % 3)[[3, 2, 0, 4, 6, 1, 5]]],
        ("", "train", "val", "test"),
    )
    assert set(headstart.from_arrays(GREY, LABELS, splits="train").splits) == {"train"}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: load_dataset(3), UsageError, "the data are of type int; give a path or"),
        (lambda: load_dataset(GREY), UsageError, "the data are of type ndarray"),
        (lambda: load_dataset([("a.jpg", "a")]), UsageError, "images that are paths; write them"),
        (lambda: load_dataset([1, 2]), UsageError, "item 0 is of type int; expected a pair"),
        (
            lambda: load_dataset((GREY, LABELS), group="(x)"),
            UsageError,
            "group applies to the forms ",
        ),
        (
            lambda: load_dataset((GREY, LABELS), format="numpy"),
            UsageError,
            "format 'numpy' takes a .npz",
        ),
        (lambda: load_dataset({"a": GREY}), InputError, "no images with labels among"),
        (lambda: headstart.from_arrays(GREY, LABELS[:2]), InputError, "2 labels for 7 images"),
        (
            lambda: headstart.from_arrays(GREY, LABELS, splits=["train"]),
            UsageError,
            "splits has 1 entries",
        ),
        (
            lambda: headstart.from_arrays(GREY, LABELS, splits="dev"),
            UsageError,
            "split 'dev' is unknown",
        ),
        (
            lambda: headstart.from_arrays(GREY, LABELS, classes=["a"]),
            InputError,
            "there are 1 names",
        ),
        (lambda: headstart.from_arrays(3, LABELS), UsageError, "images of type int"),
        (lambda: headstart.from_arrays([], []), InputError, "no images in it"),
        (
            lambda: headstart.from_arrays(GREY.astype(object), LABELS),
            InputError,
            "Python objects",
        ),
    ],
)
def test_what_is_no_data_in_python(call, error, message):
    with pytest.raises(error, match=message):
        call()


# ---------------------------------------------------------------- the same as files


@pytest.mark.parametrize("channels", [1, 4])
def test_arrays_train_the_model_that_files_of_their_pixels_train(tmp_path, paint, channels):
    colours = np.stack([paint(kind, n) for n in range(8) for kind in ("blobs", "plain", "stripes")])
    images = {1: colours[..., 0], 3: colours, 4: np.concatenate([colours, colours[..., :1]], 3)}[
        channels
    ]
    labels = np.tile(np.arange(3), 8)
    np.savez(
        tmp_path / "x.npz",
        x_train=images[:15],
        y_train=labels[:15],
        x_val=images[15:],
        y_val=labels[15:],
    )
    dataset = load_dataset(tmp_path / "x.npz")
    lines = ["path,label,split"]
    for split, first, last in (("train", 0, 15), ("val", 15, 24)):
        (tmp_path / "files" / split).mkdir(parents=True)
        for row in range(first, last):
            image_id = f"{split}/{row - first:0{len(str(last - first - 1))}}"
            Image.fromarray(images[row]).save(tmp_path / "files" / image_id, "PNG")
            lines.append(f"{image_id},{labels[row]},{split}")
    (tmp_path / "files" / "files.csv").write_text("\n".join(lines))
    places = {"arrays": tmp_path / "x.npz", "pngs": tmp_path / "files" / "files.csv"}
    assert load_dataset(places["pngs"]).ids == dataset.ids
    runs = {
        name: headstart.fit(
            place,
            tmp_path / name,
            strategy="linear-probe",
            device="cpu",
            cache_dir=tmp_path / f"c-{name}",
        )
        for name, place in places.items()
    }
    assert runs["arrays"].metrics == runs["pngs"].metrics
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in places]
    assert weights[0] == weights[1]
    assert headstart.Run.load(tmp_path / "arrays").data == tmp_path / "x.npz"


def test_fit_and_evaluate_take_what_python_has(tmp_path, paint):
    images = np.stack([paint(kind, n) for n in range(8) for kind in ("blobs", "plain")])
    labels = np.tile([0, 1], 8)
    run = headstart.fit((images, labels), tmp_path / "run", strategy="linear-probe", device="cpu")
    assert run.data is None
    assert headstart.evaluate(tmp_path / "run", (images, labels)).metrics["accuracy"].value > 0.9


def test_forms_are_found_before_folders():
    files = [name for name, form in FORMS.items() if not form.is_object]
    assert files[-4:] == ["folder", "manifest", "webdataset", "archive"]
