"""The files of MNIST, packed or not, and torn or lying ones as one clear line."""

import struct
import tracemalloc

import numpy as np
import pytest
from array_files import GREY, LABELS, NAMES, check, idx, write_idx

from headstart.data.loading import load_dataset
from headstart.errors import InputError


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
