"""NumPy's files, clean and hostile: data that lie where they are read from, or one clear line."""

import contextlib
import tracemalloc
import zipfile

import numpy as np
import pytest
from array_files import COLOUR, GREY, LABELS, NAMES, check, npy, pixels, write_npz
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.data.decoding import decode_image
from headstart.data.loading import load_dataset
from headstart.errors import BadImageError, HeadstartError, InputError


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
        (npy((7, 8, 8), data=bytes(7 * 64)), npy((7,), "<U1", b"\xff" * 28), "text that is not valid Uni"),
        (npy((7, 8, 8), data=bytes(7 * 64)), npy((7,), ">U1", b"\xff" * 28), "text that is not valid Uni"),
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
